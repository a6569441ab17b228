/* cycle: see cycle.h. */
#include "cycle.h"
#include "mix.h"
#include "peer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__x86_64__)
#include <x86intrin.h>
#endif

enum { SOURCE_STARTS = 64, SOURCE_STEP = 64, AGE_MIN = 2000, AGE_MAX = 200000, WARM_SHARE = 8, WARM_MIN = 200 };

struct block {
	struct span span;
	uint32_t size;
	uint32_t source; /* offset of its bytes in the source */
};

struct op {
	uint32_t slot;
	uint32_t size;
	uint32_t source;
};

struct bench {
	const struct peer *peer;
	const struct mix *mix;
	void *state;
	struct block *blocks;
	uint64_t live;  /* slots */
	uint64_t grown; /* slots that hold a block */
	struct rng rng;
	unsigned char *source;
	struct op *ops;
	uint64_t ops_count;
	uint64_t ops_room;
	struct bench_memory before;
};

static uint64_t read_clock(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* CPU time of this thread, the kernel's work for it included: on an idle machine the same as the time that passes, on a busy
 * one without the time others had the CPU. No peer here works in another thread or sleeps. */
static uint64_t now(void)
{
	return read_clock(CLOCK_THREAD_CPUTIME_ID);
}

/* ---- what a cycle does ---- */

static inline int place(const struct bench *b, struct block *block)
{
	const unsigned char *code = b->source + block->source;

	if (b->peer->place != NULL)
		return b->peer->place(b->state, code, block->size, &block->span);
	if (b->peer->alloc(b->state, block->size, &block->span) != 0)
		return -1;
	return b->peer->write(b->state, &block->span, code, block->size);
}

static int run_ops(struct bench *b)
{
	int failed = 0;

	for (const struct op *op = b->ops, *end = op + b->ops_count; op < end && !failed; op++) {
		struct block *block = &b->blocks[op->slot];
		failed |= b->peer->free(b->state, &block->span, block->size);
		block->size = op->size;
		block->source = op->source;
		failed |= place(b, block);
	}
	return failed ? -1 : 0;
}

static struct op draw_op(struct bench *b)
{
	struct op op;

	op.slot = rng_below(&b->rng, (uint32_t)b->live);
	op.size = mix_draw(b->mix, &b->rng);
	op.source = rng_below(&b->rng, SOURCE_STARTS) * SOURCE_STEP;
	return op;
}

int bench_draw(struct bench *b, uint64_t cycles)
{
	if (cycles > b->ops_room) {
		struct op *ops = realloc(b->ops, cycles * sizeof(*ops));
		if (ops == NULL)
			return -1;
		b->ops = ops;
		b->ops_room = cycles;
	}
	b->ops_count = cycles;
	for (uint64_t i = 0; i < cycles; i++)
		b->ops[i] = draw_op(b);
	return 0;
}

double bench_run(struct bench *b)
{
	uint64_t start = now();

	if (run_ops(b) != 0)
		return -1;
	return (double)(now() - start);
}

double bench_round(struct bench *b, uint64_t cycles)
{
	uint64_t warm = cycles / WARM_SHARE < WARM_MIN ? WARM_MIN : cycles / WARM_SHARE;

	if (bench_draw(b, warm) != 0 || run_ops(b) != 0 || bench_draw(b, cycles) != 0)
		return -1;
	double ns = bench_run(b);
	return ns < 0 ? ns : ns / (double)cycles;
}

/* ---- tails ---- */

/* Single operations are timed by what is cheapest to read, so in time that passes. */
static inline uint64_t ticks(void)
{
#if defined(__x86_64__)
	unsigned int cpu;
	return __rdtscp(&cpu);
#else
	return read_clock(CLOCK_MONOTONIC);
#endif
}

static double ns_per_tick(void)
{
	uint64_t ns = read_clock(CLOCK_MONOTONIC), start = ticks();

	while (read_clock(CLOCK_MONOTONIC) - ns < 2000000)
		;
	return (double)(read_clock(CLOCK_MONOTONIC) - ns) / (double)(ticks() - start);
}

static int compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static int time_ops(struct bench *b, uint32_t *samples[BENCH_OPS])
{
	int failed = 0;

	for (uint64_t i = 0; i < b->ops_count && !failed; i++) {
		const struct op *op = &b->ops[i];
		struct block *block = &b->blocks[op->slot];
		uint64_t start = ticks();
		failed |= b->peer->free(b->state, &block->span, block->size);
		uint64_t middle = ticks();
		block->size = op->size;
		block->source = op->source;
		failed |= place(b, block);
		samples[BENCH_PLACE][i] = (uint32_t)(ticks() - middle);
		samples[BENCH_FREE][i] = (uint32_t)(middle - start);
	}
	return failed ? -1 : 0;
}

int bench_tail(struct bench *b, uint64_t cycles, struct bench_tail *out)
{
	static const double shares[BENCH_SHARES] = {0.5, 0.99, 0.999};
	uint32_t *samples[BENCH_OPS] = {calloc(cycles, sizeof(uint32_t)), calloc(cycles, sizeof(uint32_t))};
	int err = -1;

	if (samples[0] == NULL || samples[1] == NULL || bench_draw(b, cycles) != 0 || time_ops(b, samples) != 0)
		goto end;
	const double ns = ns_per_tick();
	for (int op = 0; op < BENCH_OPS; op++) {
		qsort(samples[op], cycles, sizeof(uint32_t), compare);
		for (int s = 0; s < BENCH_SHARES; s++)
			out->ns[op][s] = samples[op][(uint64_t)((double)(cycles - 1) * shares[s])] * ns;
	}
	uint64_t start = ticks();
	for (int i = 0; i < 1000; i++)
		(void)ticks();
	out->clock = (double)(ticks() - start) * ns / 1000;
	err = 0;
end:
	free(samples[0]);
	free(samples[1]);
	return err;
}

/* ---- memory ---- */

/* Adds up what the kernel tells of this process. PSS, so that a page mapped twice by the process counts once. */
static int read_memory(struct bench_memory *out)
{
	char line[256];
	uint64_t kb, rss = 0, huge = 0;
	FILE *f = fopen("/proc/self/smaps_rollup", "r");

	*out = (struct bench_memory){0};
	if (f == NULL)
		return -1;
	while (fgets(line, sizeof(line), f) != NULL) {
		if (sscanf(line, "Pss: %lu", &kb) == 1)
			out->resident_bytes = kb * 1024;
		else if (sscanf(line, "Rss: %lu", &kb) == 1)
			rss = kb;
		else if (sscanf(line, "ShmemPmdMapped: %lu", &kb) == 1 || sscanf(line, "AnonHugePages: %lu", &kb) == 1)
			huge += kb;
	}
	fclose(f);
	out->huge_share = rss == 0 ? 0 : (double)huge / (double)rss;
	f = fopen("/proc/self/maps", "r");
	if (f == NULL)
		return -1;
	for (int c = fgetc(f); c != EOF; c = fgetc(f))
		out->vmas += c == '\n';
	fclose(f);
	return 0;
}

static void sub_memory(struct bench_memory *after, const struct bench_memory *before)
{
	double huge = after->huge_share * (double)after->resident_bytes;

	huge -= before->huge_share * (double)before->resident_bytes;
	after->resident_bytes -= after->resident_bytes < before->resident_bytes ? after->resident_bytes : before->resident_bytes;
	after->vmas -= after->vmas < before->vmas ? after->vmas : before->vmas;
	after->huge_share = after->resident_bytes == 0 ? 0 : huge / (double)after->resident_bytes;
	after->huge_share = after->huge_share < 0 ? 0 : after->huge_share > 1 ? 1 : after->huge_share;
}

uint64_t bench_verify(struct bench *b)
{
	uint64_t wrong = 0;

	for (uint64_t i = 0; b->peer->holds && i < b->grown; i++) {
		const struct block *block = &b->blocks[i];
		wrong += memcmp(block->span.code, b->source + block->source, block->size) != 0;
	}
	return wrong;
}

int bench_memory(struct bench *b, struct bench_memory *out)
{
	static volatile unsigned char seen;

	for (uint64_t i = 0; i < b->grown; i++) /* what was written past the page tables is mapped by a look through them */
		for (uint64_t at = 0; at < b->blocks[i].size; at += 4096)
			seen = ((volatile unsigned char *)b->blocks[i].span.code)[at];
	(void)seen;
	if (read_memory(out) != 0)
		return -1;
	sub_memory(out, &b->before);
	for (uint64_t i = 0; i < b->grown; i++)
		out->live_bytes += b->blocks[i].size;
	return 0;
}

/* ---- from birth to age ---- */

static int make_source(struct bench *b)
{
	size_t size = mix_max(b->mix) + SOURCE_STARTS * SOURCE_STEP;

	b->source = malloc(size + sizeof(uint64_t));
	if (b->source == NULL)
		return -1;
	for (size_t at = 0; at < size; at += sizeof(uint64_t)) {
		uint64_t word = rng_next(&b->rng);
		memcpy(b->source + at, &word, sizeof(word));
	}
	return 0;
}

/* The first population's sizes are drawn before the peer is opened, so that floors know what is coming. */
static int draw_population(struct bench *b, struct peer_plan *plan)
{
	b->blocks = calloc(b->live, sizeof(*b->blocks));
	b->ops_room = AGE_MAX;
	b->ops = calloc(b->ops_room, sizeof(*b->ops));
	if (b->blocks == NULL || b->ops == NULL)
		return -1;
	memset(b->ops, 1, b->ops_room * sizeof(*b->ops)); /* resident before the peer is */
	for (uint64_t i = 0; i < b->live; i++) {
		b->blocks[i].size = mix_draw(b->mix, &b->rng);
		b->blocks[i].source = rng_below(&b->rng, SOURCE_STARTS) * SOURCE_STEP;
		plan->bytes += peer_round(b->blocks[i].size);
	}
	return 0;
}

static int grow(struct bench *b, char *why)
{
	uint64_t age = b->live * 2 < AGE_MIN ? AGE_MIN : b->live * 2 > AGE_MAX ? AGE_MAX : b->live * 2;

	for (; b->grown < b->live; b->grown++)
		if (place(b, &b->blocks[b->grown]) != 0) {
			snprintf(why, PEER_WHY, "placing block %lu of %lu failed", b->grown + 1, b->live);
			return -1;
		}
	if (bench_draw(b, age) == 0 && run_ops(b) == 0)
		return 0;
	snprintf(why, PEER_WHY, "replacing blocks at %lu live failed", b->live);
	return -1;
}

struct bench *bench_open(const char *peer, const char *mix, uint64_t live, uint64_t seed, char *why)
{
	struct bench *b = calloc(1, sizeof(*b));
	struct peer_plan plan = {.blocks = live, .seed = seed};

	if (b == NULL)
		return NULL;
	b->peer = peer_find(peer);
	b->mix = mix_find(mix);
	b->live = live;
	rng_seed(&b->rng, seed);
	snprintf(why, PEER_WHY, "%s", b->peer == NULL ? "no such peer was built" : b->mix == NULL ? "no such mix" : "no memory");
	if (b->peer == NULL || b->mix == NULL || live == 0 || live > UINT32_MAX || make_source(b) != 0 ||
	    draw_population(b, &plan) != 0)
		goto failed;
	plan.bytes_max = mix_max(b->mix);
	read_memory(&b->before);
	b->state = b->peer->open(b->peer, &plan, why);
	if (b->state != NULL && grow(b, why) == 0)
		return b;
failed:
	bench_close(b);
	return NULL;
}

void bench_close(struct bench *b)
{
	if (b == NULL)
		return;
	if (b->state != NULL) {
		for (uint64_t i = 0; i < b->grown; i++)
			b->peer->free(b->state, &b->blocks[i].span, b->blocks[i].size);
		b->peer->close(b->state);
	}
	free(b->ops);
	free(b->blocks);
	free(b->source);
	free(b);
}
