/* cycle: see cycle.h. */
#include "bench.h"

#include <stdlib.h>
#include <string.h>

enum { AGE_MIN = 2000, AGE_MAX = 2000000, OPS_MAX = 200000, AGE_STEP = 1000, WARM_SHARE = 8, WARM_MIN = 200, RET = 0xC3 };

/* ---- what a cycle does ---- */

int bench_run_ops(struct bench *b)
{
	int failed = 0;

	for (const struct op *op = b->ops, *end = op + b->ops_count; op < end && !failed; op++) {
		struct block *block = &b->blocks[op->slot];
		failed |= bench_free(b, block);
		block->size = op->size;
		block->source = op->source;
		failed |= bench_place(b, block);
	}
	return failed ? -1 : 0;
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
	for (struct op *op = b->ops, *end = op + cycles; op < end; op++) {
		op->slot = rng_below(&b->rng, (uint32_t)b->live);
		op->size = mix_draw(b->mix, &b->rng);
		op->source = rng_below(&b->rng, SOURCE_STARTS) * SOURCE_STEP;
	}
	return 0;
}

double bench_run(struct bench *b)
{
	uint64_t start = bench_cpu();

	if (bench_run_ops(b) != 0)
		return -1;
	return (double)(bench_cpu() - start);
}

struct bench_round bench_round(struct bench *b, uint64_t cycles)
{
	uint64_t warm = cycles / WARM_SHARE < WARM_MIN ? WARM_MIN : cycles / WARM_SHARE;
	struct bench_round round = {-1, -1};

	if (bench_draw(b, warm) != 0 || bench_run_ops(b) != 0 || bench_draw(b, cycles) != 0)
		return round;
	uint64_t start = bench_wall();
	round.cpu_ns = bench_run(b) / (double)cycles;
	round.wall_ns = (double)(bench_wall() - start) / (double)cycles;
	return round;
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

	/* what was written past the page tables is mapped by a look through them; a peer without `holds` has less to look at */
	for (uint64_t i = 0; i < b->grown; i++)
		for (uint64_t at = 0; at < (b->peer->holds ? b->blocks[i].size : 1); at += 4096)
			seen = ((volatile unsigned char *)b->blocks[i].span.code)[at];
	(void)seen;
	if (read_memory(out) != 0)
		return -1;
	sub_memory(out, &b->before);
	for (uint64_t i = 0; i < b->grown; i++)
		out->live_bytes += b->blocks[i].size;
	return 0;
}

void bench_tell_memory(const struct bench_memory *m, struct text *out)
{
	text_add(out,
	         ", \"live_bytes\": %lu, \"resident_bytes\": %lu, \"resident_per_live\": %.3f, \"vmas\": %lu, \"huge_share\": %.3f",
	         m->live_bytes, m->resident_bytes, m->live_bytes == 0 ? 0 : (double)m->resident_bytes / (double)m->live_bytes, m->vmas,
	         m->huge_share);
}

uint64_t bench_aged(const struct bench *b)
{
	return b->aged;
}

/* ---- from birth to age ---- */

/* Random bytes. Where a block may start stands a `ret`, so that every block can be called. */
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
	for (int i = 0; i < SOURCE_STARTS; i++)
		b->source[i * SOURCE_STEP] = RET;
	return 0;
}

/* The first population's sizes are drawn before the peer is opened, so that floors know what is coming. */
static int draw_population(struct bench *b, struct peer_plan *plan)
{
	b->blocks = calloc(b->live, sizeof(*b->blocks));
	b->ops_room = OPS_MAX;
	b->ops = calloc(b->ops_room, sizeof(*b->ops));
	if (b->blocks == NULL || b->ops == NULL)
		return -1;
	memset(b->ops, 1, b->ops_room * sizeof(*b->ops)); /* resident before the peer is */
	for (uint64_t i = 0; i < b->live; i++) {
		bench_draw_block(b, &b->blocks[i]);
		plan->bytes += peer_round(b->blocks[i].size);
	}
	return 0;
}

static int grow(struct bench *b, double age_ms, char *why)
{
	uint64_t age = b->live * 2 < AGE_MIN ? AGE_MIN : b->live * 2 > AGE_MAX ? AGE_MAX : b->live * 2;

	for (; b->grown < b->live; b->grown++)
		if (bench_place(b, &b->blocks[b->grown]) != 0) {
			snprintf(why, PEER_WHY, "placing block %lu of %lu failed", b->grown + 1, b->live);
			return -1;
		}
	for (uint64_t start = bench_cpu(); b->aged < age && (double)(bench_cpu() - start) < age_ms * 1e6; b->aged += AGE_STEP)
		if (bench_draw(b, AGE_STEP) != 0 || bench_run_ops(b) != 0) {
			snprintf(why, PEER_WHY, "replacing blocks at %lu live failed", b->live);
			return -1;
		}
	return 0;
}

static const char *refusal(const struct bench *b, const struct bench_plan *plan)
{
	if (b->peer == NULL)
		return "no such peer was built";
	if (b->mix == NULL)
		return "no such mix";
	if (plan->live == 0 || plan->live > UINT32_MAX)
		return "no such population";
	if (b->peer->only_mix != NULL && strcmp(b->peer->only_mix, plan->mix) != 0)
		return "its blocks have one size: see the mix constant";
	if (b->peer->blocks_max != 0 && plan->live > b->peer->blocks_max)
		return "too slow for so many";
	if (plan->threads > 1 && b->peer->sharing == PEER_ALONE)
		return "cannot be used by several threads";
	return NULL;
}

static struct bench *prepare(const struct bench_plan *plan, struct peer_plan *peer_plan, char *why)
{
	struct bench *b = calloc(1, sizeof(*b));

	if (b == NULL)
		return NULL;
	b->peer = peer_find(plan->peer);
	b->mix = mix_find(plan->mix);
	b->live = plan->live;
	rng_seed(&b->rng, plan->seed);
	const char *refused = refusal(b, plan);
	snprintf(why, PEER_WHY, "%s", refused == NULL ? "no memory" : refused);
	if (refused == NULL && make_source(b) == 0 && draw_population(b, peer_plan) == 0)
		return b;
	bench_close(b);
	return NULL;
}

struct bench *bench_open(const struct bench_plan *plan, char *why)
{
	struct peer_plan peer_plan = {.blocks = plan->live, .threads = plan->threads, .seed = plan->seed};
	struct bench *b = prepare(plan, &peer_plan, why);

	if (b == NULL)
		return NULL;
	peer_plan.bytes_max = mix_max(b->mix);
	read_memory(&b->before);
	b->state = b->peer->open(b->peer, &peer_plan, why);
	if (b->state != NULL && grow(b, plan->age_ms, why) == 0)
		return b;
	bench_close(b);
	return NULL;
}

struct bench *bench_join(const struct bench *first, const struct bench_plan *plan, char *why)
{
	struct peer_plan peer_plan = {0};
	struct bench *b = prepare(plan, &peer_plan, why);

	if (b == NULL)
		return NULL;
	b->state = first->state;
	b->shares_state = 1;
	if (grow(b, plan->age_ms, why) == 0)
		return b;
	bench_close(b);
	return NULL;
}

void bench_close(struct bench *b)
{
	if (b == NULL)
		return;
	if (b->state != NULL) {
		for (uint64_t i = 0; i < b->grown; i++)
			bench_free(b, &b->blocks[i]);
		if (!b->shares_state)
			b->peer->close(b->state);
	}
	free(b->ops);
	free(b->blocks);
	free(b->source);
	free(b);
}
