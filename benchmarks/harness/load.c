/* load: see load.h. */
#include "load.h"
#include "bench.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	TAIL_PASSES = 3,
	BATCH = 64,
	CALLS_MIN = 100000,
	CALLS_MAX = 1000000,
	CALL_PASSES = 5,
	MANY = 1000,
	MANY_SMALL = 64,
	MANY_PASSES = 31,
	WAVES = 10,
	WAVE_SHARE = 10, /* a wave is a tenth of the population */
	PIN_EVERY = 20   /* one in twenty stays */
};

/* ---- series of readings ---- */

struct series {
	double *ns;
	uint64_t count;
	uint64_t room;
};

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* The harness takes its memory past malloc, and gives it back: what a peer holds is read after the series were taken. */
static void *take_pages(size_t size)
{
	void *pages = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return pages == MAP_FAILED ? NULL : pages;
}

static void give_pages(void *pages, size_t size)
{
	if (pages != NULL)
		munmap(pages, size);
}

static int series_open(struct series *s, uint64_t room)
{
	*s = (struct series){take_pages((room + 1) * sizeof(double)), 0, room};
	return s->ns == NULL ? -1 : 0;
}

static void series_close(struct series *s)
{
	give_pages(s->ns, (s->room + 1) * sizeof(double));
}

static inline void series_add(struct series *s, double value)
{
	if (s->count < s->room)
		s->ns[s->count++] = value;
}

/* The clock moves in steps, and many readings are equal: the quantile is taken within its step, as if they were spread evenly
 * over it. The series must be sorted. */
static double series_quantile(const struct series *s, double share, double step)
{
	uint64_t rank = (uint64_t)((double)(s->count - 1) * share), first = rank, last = rank;

	if (s->count == 0)
		return 0;
	while (first > 0 && s->ns[first - 1] == s->ns[rank])
		first--;
	while (last + 1 < s->count && s->ns[last + 1] == s->ns[rank])
		last++;
	double within = ((double)(rank - first) + 0.5) / (double)(last - first + 1) - 0.5;
	return s->ns[rank] + within * step;
}

static double median(struct series *s)
{
	qsort(s->ns, s->count, sizeof(*s->ns), compare);
	return s->count == 0 ? 0 : s->ns[s->count / 2];
}

/* ---- the clock of single operations ---- */

struct watch {
	double ns_per_tick;
	double clock; /* ns of reading it */
	double step;  /* ns by which it moves */
};

static struct watch watch_open(void)
{
	struct watch w = {0};
	uint64_t ns = bench_wall(), start = bench_ticks(), smallest = UINT64_MAX;

	while (bench_wall() - ns < 5000000)
		;
	w.ns_per_tick = (double)(bench_wall() - ns) / (double)(bench_ticks() - start);
	start = bench_ticks();
	for (int i = 0; i < 10000; i++) {
		uint64_t a = bench_ticks(), b = bench_ticks();
		if (b > a && b - a < smallest)
			smallest = b - a;
	}
	w.clock = (double)(bench_ticks() - start) * w.ns_per_tick / 20000;
	w.step = (double)smallest * w.ns_per_tick;
	w.step = w.step > w.clock ? 0 : w.step; /* finer than a reading takes */
	return w;
}

/* ---- single operations ---- */

enum { OP_FREE = 0, OP_PLACE, OP_ALLOC, OP_WRITE, OPS };

static const char *const op_names[OPS] = {"free", "place", "alloc", "write"};

struct samples {
	struct series ops[OPS];  /* during which no pack came or went */
	struct series pack_made; /* placing and allocating, during which one did */
	struct series pack_gone; /* freeing */
};

static int samples_open(struct samples *s, uint64_t room)
{
	int failed = series_open(&s->pack_made, room) | series_open(&s->pack_gone, room);

	for (int op = 0; op < OPS; op++)
		failed |= series_open(&s->ops[op], room);
	return failed;
}

static void samples_close(struct samples *s)
{
	for (int op = 0; op < OPS; op++)
		series_close(&s->ops[op]);
	series_close(&s->pack_made);
	series_close(&s->pack_gone);
}

static inline uint64_t keep(const struct bench *b, struct samples *s, int op, uint64_t ticks, uint64_t events)
{
	uint64_t now = bench_pack_events(b);
	struct series *apart = op == OP_FREE ? &s->pack_gone : &s->pack_made;

	series_add(now == events ? &s->ops[op] : apart, (double)ticks);
	return now;
}

/* One turn in two places in one call, the other allocates and writes, where a peer has both ways. */
static int time_ops(struct bench *b, struct samples *s, int apart)
{
	const struct peer *peer = b->peer;
	uint64_t events = bench_pack_events(b);
	int failed = 0;

	for (uint64_t i = 0; i < b->ops_count && !failed; i++) {
		const struct op *op = &b->ops[i];
		struct block *block = &b->blocks[op->slot];
		uint64_t start = bench_ticks();
		failed |= bench_free(b, block);
		events = keep(b, s, OP_FREE, bench_ticks() - start, events);
		block->size = op->size;
		block->source = op->source;
		if (!apart) {
			start = bench_ticks();
			failed |= bench_place(b, block);
			events = keep(b, s, OP_PLACE, bench_ticks() - start, events);
			continue;
		}
		start = bench_ticks();
		failed |= peer->alloc(b->state, block->size, &block->span);
		events = keep(b, s, OP_ALLOC, bench_ticks() - start, events);
		start = bench_ticks();
		failed |= failed ? 0 : peer->write(b->state, &block->span, b->source + block->source, block->size);
		events = keep(b, s, OP_WRITE, bench_ticks() - start, events);
	}
	return failed ? -1 : 0;
}

static void tell_series(struct series *s, const char *name, const struct watch *w, struct text *out)
{
	static const struct {
		double share;
		const char *name;
	} shares[] = {{0.5, "p50"}, {0.99, "p99"}, {0.999, "p999"}};

	if (s->count == 0)
		return;
	qsort(s->ns, s->count, sizeof(*s->ns), compare);
	for (size_t i = 0; i < sizeof(shares) / sizeof(shares[0]); i++) {
		double ns = series_quantile(s, shares[i].share, w->step / w->ns_per_tick) * w->ns_per_tick - w->clock;
		text_add(out, ", \"%s_%s_ns\": %.1f", name, shares[i].name, fmax(ns, 0));
	}
	text_add(out, ", \"%s_worst_ns\": %.0f", name, s->ns[s->count - 1] * w->ns_per_tick - w->clock);
}

static void tell_packs(struct series *s, const char *name, const struct watch *w, struct text *out)
{
	if (s->count == 0)
		return;
	double middle = median(s) * w->ns_per_tick;
	text_add(out, ", \"%s\": %lu, \"%s_ns\": %.0f, \"%s_worst_ns\": %.0f", name, s->count, name, middle, name,
	         s->ns[s->count - 1] * w->ns_per_tick);
}

int load_tails(struct bench *b, uint64_t cycles, struct text *out)
{
	struct samples s = {0};
	struct watch w = watch_open();
	int err = samples_open(&s, cycles * TAIL_PASSES * 2);

	for (int pass = 0; pass < TAIL_PASSES && err == 0; pass++) {
		err = bench_draw(b, cycles) != 0 || time_ops(b, &s, 0) != 0;
		if (err == 0 && b->peer->alloc != NULL)
			err = bench_draw(b, cycles) != 0 || time_ops(b, &s, 1) != 0;
	}
	for (int op = 0; op < OPS && err == 0; op++)
		tell_series(&s.ops[op], op_names[op], &w, out);
	if (err == 0) {
		tell_packs(&s.pack_made, "pack_made", &w, out);
		tell_packs(&s.pack_gone, "pack_gone", &w, out);
		text_add(out, ", \"clock_ns\": %.1f", w.clock);
	}
	samples_close(&s);
	return err ? -1 : 0;
}

/* ---- a free, an alloc, a write, a place, many at a time ---- */

/* Draws a batch of distinct slots. */
static int draw_batch(struct bench *b, uint64_t count)
{
	if (bench_draw(b, count) != 0)
		return -1;
	for (uint64_t i = 1; i < count; i++)
		for (uint64_t j = 0; j < i; j++)
			if (b->ops[j].slot == b->ops[i].slot) {
				b->ops[i].slot = (b->ops[i].slot + 1) % (uint32_t)b->live;
				j = UINT64_MAX; /* from the start */
			}
	return 0;
}

static int time_batch(struct bench *b, struct series times[OPS], int apart)
{
	uint64_t stamps[4];
	int failed = 0;

	stamps[0] = bench_ticks();
	for (uint64_t i = 0; i < b->ops_count; i++)
		failed |= bench_free(b, &b->blocks[b->ops[i].slot]);
	stamps[1] = bench_ticks();
	for (uint64_t i = 0; i < b->ops_count && !failed; i++) {
		struct block *block = &b->blocks[b->ops[i].slot];
		block->size = b->ops[i].size;
		block->source = b->ops[i].source;
		failed |= apart ? b->peer->alloc(b->state, block->size, &block->span) : bench_place(b, block);
	}
	stamps[2] = bench_ticks();
	for (uint64_t i = 0; apart && i < b->ops_count && !failed; i++) {
		struct block *block = &b->blocks[b->ops[i].slot];
		failed |= b->peer->write(b->state, &block->span, b->source + block->source, block->size);
	}
	stamps[3] = bench_ticks();
	series_add(&times[OP_FREE], (double)(stamps[1] - stamps[0]));
	series_add(&times[apart ? OP_ALLOC : OP_PLACE], (double)(stamps[2] - stamps[1]));
	if (apart)
		series_add(&times[OP_WRITE], (double)(stamps[3] - stamps[2]));
	return failed ? -1 : 0;
}

int load_phases(struct bench *b, uint64_t cycles, struct text *out)
{
	struct series times[OPS] = {0};
	struct watch w = watch_open();
	uint64_t batch = b->live / 4 < BATCH ? b->live / 4 : BATCH, batches = batch == 0 ? 0 : cycles / batch;
	int err = batches == 0 ? -1 : 0;

	for (int op = 0; op < OPS; op++)
		err |= series_open(&times[op], batches);
	for (uint64_t i = 0; i < batches && err == 0; i++) {
		int apart = b->peer->alloc != NULL && (b->peer->place == NULL || i % 2 == 0);
		err = draw_batch(b, batch) != 0 || time_batch(b, times, apart) != 0 ? -1 : 0;
	}
	for (int op = 0; op < OPS; op++) {
		if (err == 0 && times[op].count > 0)
			text_add(out, ", \"batch_%s_ns\": %.1f", op_names[op],
			         fmax(0, (median(&times[op]) * w.ns_per_tick - w.clock) / (double)batch));
		series_close(&times[op]);
	}
	return err;
}

/* ---- calls ---- */

typedef void code_function(void);

int load_calls(struct bench *b, struct text *out)
{
	uint64_t count = b->live < CALLS_MIN ? CALLS_MIN : b->live > CALLS_MAX ? CALLS_MAX : b->live;
	code_function **calls = take_pages(count * sizeof(*calls));
	struct series times;

	if (!b->peer->executable) {
		give_pages(calls, count * sizeof(*calls));
		return 0;
	}
	if (calls == NULL || series_open(&times, CALL_PASSES) != 0) {
		give_pages(calls, count * sizeof(*calls));
		return -1;
	}
	for (uint64_t i = 0; i < count; i++)
		*(void **)&calls[i] = b->blocks[rng_below(&b->rng, (uint32_t)b->live)].span.code;
	for (int pass = -1; pass < CALL_PASSES; pass++) { /* the first fills caches and tables */
		uint64_t start = bench_cpu();
		for (uint64_t i = 0; i < count; i++)
			calls[i]();
		if (pass >= 0)
			series_add(&times, (double)(bench_cpu() - start));
	}
	text_add(out, ", \"call_ns\": %.2f", median(&times) / (double)count);
	series_close(&times);
	give_pages(calls, count * sizeof(*calls));
	return 0;
}

/* ---- many at once ---- */

struct many {
	uint64_t offsets[MANY + 1];
	uint64_t addresses[MANY];
	unsigned char *code, *copy;
	int file; /* in memory: what it costs when the kernel copies */
};

enum { MANY_PLACE = 0, MANY_FREE, MANY_COPY, MANY_PWRITE, MANY_PARTS };

static const char *const many_names[MANY_PARTS] = {"place", "free", "copy", "pwrite"};

static int run_many(const struct bench *b, struct many *m, int part)
{
	size_t bytes = m->offsets[MANY];

	if (part == MANY_PLACE)
		return b->peer->place_many(b->state, MANY, m->code, m->offsets, m->addresses);
	if (part == MANY_FREE)
		return b->peer->free_many(b->state, MANY, m->addresses);
	if (part == MANY_PWRITE)
		return pwrite(m->file, m->code, bytes, 0) == (ssize_t)bytes ? 0 : -1;
	memcpy(m->copy, m->code, bytes);
	return 0;
}

static int time_many(struct bench *b, struct many *m, const char *name, struct text *out)
{
	struct series times[MANY_PARTS];
	int failed = 0;

	for (int part = 0; part < MANY_PARTS; part++)
		failed |= series_open(&times[part], MANY_PASSES);
	for (int pass = -1; pass < MANY_PASSES && !failed; pass++)
		for (int part = 0; part < MANY_PARTS && !failed; part++) {
			uint64_t start = bench_wall();
			failed |= run_many(b, m, part);
			if (pass >= 0)
				series_add(&times[part], (double)(bench_wall() - start));
		}
	for (int part = 0; part < MANY_PARTS; part++) {
		if (!failed)
			text_add(out, ", \"many_%s_%s_ns\": %.1f", name, many_names[part], median(&times[part]) / MANY);
		series_close(&times[part]);
	}
	return failed ? -1 : 0;
}

int load_many(struct bench *b, struct text *out)
{
	struct many m;
	struct block block;
	int err = 0;
	const size_t room = (size_t)MANY * mix_max(b->mix);

	if (b->peer->place_many == NULL)
		return 0;
	m.code = take_pages(room);
	m.copy = take_pages(room);
	m.file = (int)syscall(SYS_memfd_create, "bench", 1 /* MFD_CLOEXEC */);
	for (int mixed = 0; mixed < 2 && m.code != NULL && m.copy != NULL && m.file >= 0 && err == 0; mixed++) {
		m.offsets[0] = 0;
		for (int i = 0; i < MANY; i++) {
			block.size = MANY_SMALL;
			if (mixed)
				bench_draw_block(b, &block);
			m.offsets[i + 1] = m.offsets[i] + block.size;
		}
		memset(m.code, 1, m.offsets[MANY]);
		err = time_many(b, &m, mixed ? "mix" : "64", out);
	}
	give_pages(m.code, room);
	give_pages(m.copy, room);
	close(m.file);
	return err;
}

/* ---- ramp up and drain ---- */

static void shuffle(struct bench *b, struct block *blocks, uint64_t count)
{
	for (uint64_t i = count; i > 1; i--) {
		uint64_t other = rng_below(&b->rng, (uint32_t)i);
		struct block block = blocks[i - 1];
		blocks[i - 1] = blocks[other];
		blocks[other] = block;
	}
}

static int drain(struct bench *b, double *ns)
{
	int failed = 0;

	shuffle(b, b->blocks, b->live);
	uint64_t start = bench_cpu();
	while (b->grown > 0 && !failed)
		failed |= bench_free(b, &b->blocks[--b->grown]);
	*ns = (double)(bench_cpu() - start) / (double)b->live;
	return failed ? -1 : 0;
}

static int ramp(struct bench *b, double *ns)
{
	int failed = 0;

	for (uint64_t i = 0; i < b->live; i++)
		bench_draw_block(b, &b->blocks[i]);
	uint64_t start = bench_cpu();
	for (; b->grown < b->live && !failed; b->grown += !failed)
		failed |= bench_place(b, &b->blocks[b->grown]);
	*ns = (double)(bench_cpu() - start) / (double)b->live;
	return failed ? -1 : 0;
}

static int ramp_sampled(struct bench *b, struct text *out)
{
	struct samples s = {0};
	struct watch w = watch_open();
	uint64_t events;
	int failed = samples_open(&s, b->live);

	for (uint64_t i = 0; i < b->live; i++)
		bench_draw_block(b, &b->blocks[i]);
	events = bench_pack_events(b);
	for (; b->grown < b->live && !failed; b->grown += !failed) {
		uint64_t start = bench_ticks();
		failed |= bench_place(b, &b->blocks[b->grown]);
		events = keep(b, &s, OP_PLACE, bench_ticks() - start, events);
	}
	if (!failed) {
		tell_series(&s.ops[OP_PLACE], "ramp_place", &w, out);
		tell_packs(&s.pack_made, "new_pack", &w, out);
	}
	samples_close(&s);
	return failed ? -1 : 0;
}

int load_growth(struct bench *b, struct text *out)
{
	double drained, grown, again;

	if (drain(b, &drained) != 0 || ramp(b, &grown) != 0 || drain(b, &again) != 0)
		return -1;
	text_add(out, ", \"ramp_ns\": %.1f, \"drain_ns\": %.1f", grown, fmin(drained, again));
	return ramp_sampled(b, out);
}

/* ---- bursts ---- */

/* A wave is placed, then gone through in random order: one in PIN_EVERY takes the place of a block of the population, which is
 * freed, and stays; the others are freed. */
static int run_wave(struct bench *b, struct block *wave, uint64_t count, double *ns)
{
	int failed = 0;

	for (uint64_t i = 0; i < count; i++)
		bench_draw_block(b, &wave[i]);
	if (bench_draw(b, count / PIN_EVERY + 1) != 0)
		return -1;
	uint64_t start = bench_cpu();
	for (uint64_t i = 0; i < count && !failed; i++)
		failed |= bench_place(b, &wave[i]);
	*ns += (double)(bench_cpu() - start);
	shuffle(b, wave, count);
	start = bench_cpu();
	for (uint64_t i = 0; i < count && !failed; i++) {
		struct block gone = wave[i];
		if (i % PIN_EVERY == 0) {
			struct block *slot = &b->blocks[b->ops[i / PIN_EVERY].slot];
			gone = *slot;
			*slot = wave[i];
		}
		failed |= bench_free(b, &gone);
	}
	*ns += (double)(bench_cpu() - start);
	return failed ? -1 : 0;
}

int load_bursts(struct bench *b, struct text *out)
{
	uint64_t count = b->live / WAVE_SHARE;
	struct block *wave = take_pages((count + 1) * sizeof(*wave));
	struct bench_memory memory;
	double ns = 0;
	int failed = wave == NULL || count == 0;

	for (int i = 0; i < WAVES && !failed; i++)
		failed |= run_wave(b, wave, count, &ns);
	give_pages(wave, (count + 1) * sizeof(*wave));
	if (failed || bench_memory(b, &memory) != 0)
		return -1;
	text_add(out, ", \"burst_ns\": %.1f, \"burst_resident_per_live\": %.3f", ns / (double)(count * WAVES),
	         (double)memory.resident_bytes / (double)memory.live_bytes);
	return 0;
}

/* ---- what the peer tells ---- */

void load_told(struct bench *b, struct text *out)
{
	struct peer_told told = {PEER_UNTOLD, PEER_UNTOLD, PEER_UNTOLD};

	if (b->peer->tell != NULL)
		b->peer->tell(b->state, &told);
	if (told.largest_free != PEER_UNTOLD)
		text_add(out, ", \"largest_free\": %ld", told.largest_free);
	if (told.packs != PEER_UNTOLD)
		text_add(out, ", \"full_packs\": %ld", told.packs);
	if (told.huge_packs != PEER_UNTOLD)
		text_add(out, ", \"huge_packs\": %ld", told.huge_packs);
}
