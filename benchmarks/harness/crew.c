/* crew: see crew.h. */
#include "crew.h"
#include "bench.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { THREADS_MAX = 2, BATCH = 256, RING = 4, WARM_SHARE = 8, SPINS = 1000, SAMPLES_MAX = 4 << 20, LONG_NS = 100000 };

struct batch {
	uint64_t count;
	struct block blocks[BATCH];
};

struct ring { /* one thread puts batches in, the other takes them out */
	_Alignas(128) atomic_uint put;
	_Alignas(128) atomic_uint taken;
	_Alignas(128) struct batch batches[RING];
};

struct member {
	struct crew *crew;
	struct bench *bench;
	pthread_t thread;
	uint64_t start, end; /* of its last round, time that passes */
	uint64_t cpu;        /* of its last round */
	int failed;
	char why[PEER_WHY];
	struct ring outbox;
};

struct crew {
	enum crew_mode mode;
	int threads;
	struct bench_plan plan;
	uint64_t cycles;        /* of the next round */
	pthread_barrier_t gate; /* before and after a round */
	atomic_int arrived;     /* spinning, after the gate, so that all start at once */
	struct member members[THREADS_MAX];
	/* mode beside */
	atomic_int done;       /* the first thread's round is over */
	struct block *growing; /* the second's further blocks */
	uint64_t grown;
	uint32_t *samples; /* the first's places: ticks */
	uint64_t count;
	double elapsed_ns, elapsed_ticks; /* over all rounds, to turn the one into the other */
	uint64_t events;                  /* packs that came or went */
};

const char *crew_mode_name(enum crew_mode mode)
{
	static const char *const names[CREW_MODES] = {"one", "own", "cross", "beside"};

	return names[mode];
}

int crew_cpus(void)
{
	cpu_set_t set;

	return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
}

/* Keeps this thread on the n-th of the CPUs it may use. */
static void pin_to(int n)
{
	cpu_set_t set, one;

	CPU_ZERO(&one);
	if (sched_getaffinity(0, sizeof(set), &set) != 0)
		return;
	for (size_t cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, &set) && n-- == 0)
			CPU_SET(cpu, &one);
	sched_setaffinity(0, sizeof(one), &one);
}

static inline void wait_a_little(unsigned int *spins)
{
	if (++*spins % SPINS == 0)
		sched_yield(); /* the other may be waiting for this very CPU */
#if defined(__x86_64__)
	_mm_pause();
#endif
}

/* ---- blocks that go from one thread to the other ---- */

static int take_all(const struct bench *b, struct ring *inbox, uint64_t *taken)
{
	int failed = 0;
	unsigned int at = atomic_load_explicit(&inbox->taken, memory_order_relaxed);

	for (; at != atomic_load_explicit(&inbox->put, memory_order_acquire) && !failed; ++*taken) {
		const struct batch *batch = &inbox->batches[at % RING];
		for (uint64_t i = 0; i < batch->count; i++)
			failed |= bench_free(b, &batch->blocks[i]);
		atomic_store_explicit(&inbox->taken, ++at, memory_order_release);
	}
	return failed ? -1 : 0;
}

static int put_one(struct bench *b, struct ring *outbox, const struct op *ops, uint64_t count)
{
	unsigned int at = atomic_load_explicit(&outbox->put, memory_order_relaxed);
	struct batch *batch = &outbox->batches[at % RING];
	int failed = 0;

	batch->count = count;
	for (uint64_t i = 0; i < count && !failed; i++) {
		struct block *block = &b->blocks[ops[i].slot];
		batch->blocks[i] = *block;
		block->size = ops[i].size;
		block->source = ops[i].source;
		failed |= bench_place(b, block);
	}
	atomic_store_explicit(&outbox->put, at + 1, memory_order_release);
	return failed ? -1 : 0;
}

static int run_cross(struct bench *b, struct ring *outbox, struct ring *inbox)
{
	uint64_t batches = (b->ops_count + BATCH - 1) / BATCH, put = 0, taken = 0;
	unsigned int spins = 0;
	int failed = 0;

	while ((put < batches || taken < batches) && !failed) { /* the other's batches are as many */
		unsigned int waiting = atomic_load_explicit(&outbox->put, memory_order_relaxed);
		waiting -= atomic_load_explicit(&outbox->taken, memory_order_acquire);
		uint64_t before = taken;
		if (put < batches && waiting < RING) {
			uint64_t left = b->ops_count - put * BATCH;
			failed |= put_one(b, outbox, b->ops + put * BATCH, left < BATCH ? left : BATCH);
			put++;
		} else {
			failed |= take_all(b, inbox, &taken);
			if (taken == before)
				wait_a_little(&spins);
			continue;
		}
		failed |= take_all(b, inbox, &taken);
	}
	return failed ? -1 : 0;
}

/* ---- one beside another that makes packs ---- */

static int run_sampled(struct crew *crew, struct bench *b)
{
	uint64_t events = bench_pack_events(b), ns = bench_wall(), ticks = bench_ticks();
	int failed = 0;

	for (uint64_t i = 0; i < b->ops_count && !failed; i++) {
		const struct op *op = &b->ops[i];
		struct block *block = &b->blocks[op->slot];
		failed |= bench_free(b, block);
		block->size = op->size;
		block->source = op->source;
		uint64_t start = bench_ticks();
		failed |= bench_place(b, block);
		uint64_t took = bench_ticks() - start;
		if (crew->count < SAMPLES_MAX)
			crew->samples[crew->count++] = took > UINT32_MAX ? UINT32_MAX : (uint32_t)took;
	}
	crew->elapsed_ticks += (double)(bench_ticks() - ticks);
	crew->elapsed_ns += (double)(bench_wall() - ns);
	crew->events += bench_pack_events(b) - events;
	atomic_store(&crew->done, 1);
	return failed ? -1 : 0;
}

static int run_growing(struct crew *crew, struct bench *b)
{
	int failed = 0, shrinking = 0;

	while (!atomic_load_explicit(&crew->done, memory_order_relaxed) && !failed) {
		struct block *block = &crew->growing[crew->grown - (uint64_t)shrinking];
		if (shrinking) {
			failed |= bench_free(b, block);
		} else {
			bench_draw_block(b, block);
			failed |= bench_place(b, block);
		}
		crew->grown += shrinking ? UINT64_MAX : 1;
		shrinking = crew->grown == 0 ? 0 : crew->grown == b->live ? 1 : shrinking;
	}
	return failed ? -1 : 0;
}

static int compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

void crew_tell(const struct crew *crew, struct text *out)
{
	double ns = crew->elapsed_ns / crew->elapsed_ticks;
	uint64_t waits = 0;

	if (crew->mode != CREW_BESIDE || crew->count == 0)
		return;
	qsort(crew->samples, crew->count, sizeof(*crew->samples), compare);
	for (uint64_t i = crew->count; i > 0 && crew->samples[i - 1] * ns > LONG_NS; i--)
		waits++;
	text_add(out, ", \"places\": %lu, \"place_p50_ns\": %.1f, \"place_p999_ns\": %.1f, \"place_worst_ns\": %.0f", crew->count,
	         crew->samples[crew->count / 2] * ns, crew->samples[crew->count - 1 - crew->count / 1000] * ns,
	         crew->samples[crew->count - 1] * ns);
	text_add(out, ", \"places_over_100_us\": %lu", waits);
	if (crew->members[0].bench->peer->pack_events != NULL)
		text_add(out, ", \"pack_events\": %lu", crew->events);
}

/* ---- a round ---- */

static int run_mode(struct member *m, struct member *other)
{
	struct crew *crew = m->crew;

	if (crew->mode == CREW_CROSS)
		return run_cross(m->bench, &m->outbox, &other->outbox);
	if (crew->mode == CREW_BESIDE)
		return m == crew->members ? run_sampled(crew, m->bench) : run_growing(crew, m->bench);
	return bench_run_ops(m->bench);
}

static void run_member(struct member *m)
{
	struct crew *crew = m->crew;
	unsigned int spins = 0;
	struct member *other = &crew->members[crew->threads - 1 - (int)(m - crew->members)];

	m->failed = bench_draw(m->bench, crew->cycles);
	atomic_fetch_add(&crew->arrived, 1);
	while (atomic_load(&crew->arrived) < crew->threads)
		wait_a_little(&spins);
	m->start = bench_wall();
	m->cpu = bench_clock(CLOCK_THREAD_CPUTIME_ID);
	m->failed |= m->failed ? 0 : run_mode(m, other);
	m->end = bench_wall();
	m->cpu = bench_clock(CLOCK_THREAD_CPUTIME_ID) - m->cpu;
}

static void *live_member(void *argument)
{
	struct member *m = argument;

	pin_to((int)(m - m->crew->members));
	m->bench = bench_join(m->crew->members[0].bench, &m->crew->plan, m->why);
	pthread_barrier_wait(&m->crew->gate);
	while (m->bench != NULL) { /* the end of the process ends it */
		pthread_barrier_wait(&m->crew->gate);
		run_member(m);
		pthread_barrier_wait(&m->crew->gate);
	}
	return NULL;
}

static struct bench_round run_round(struct crew *crew, uint64_t cycles)
{
	struct bench_round round = {-1, -1};
	uint64_t start = UINT64_MAX, end = 0, cpu = 0;

	crew->cycles = cycles;
	atomic_store(&crew->arrived, 0);
	atomic_store(&crew->done, 0);
	if (crew->threads > 1)
		pthread_barrier_wait(&crew->gate);
	run_member(&crew->members[0]);
	if (crew->threads > 1)
		pthread_barrier_wait(&crew->gate);
	for (int i = 0; i < crew->threads; i++) {
		const struct member *m = &crew->members[i];
		if (m->failed)
			return round;
		start = m->start < start ? m->start : start;
		end = m->end > end ? m->end : end;
		cpu += m->cpu;
	}
	round.wall_ns = (double)(end - start) / (double)cycles;
	round.cpu_ns = (double)cpu / (double)cycles;
	return round;
}

struct bench_round crew_round(struct crew *crew, uint64_t cycles)
{
	struct bench_round warm = run_round(crew, cycles / WARM_SHARE + BATCH);

	return warm.wall_ns < 0 ? warm : run_round(crew, cycles);
}

uint64_t crew_verify(struct crew *crew)
{
	uint64_t wrong = 0;

	for (int i = 0; i < crew->threads; i++)
		wrong += bench_verify(crew->members[i].bench);
	return wrong;
}

struct crew *crew_open(const struct bench_plan *plan, enum crew_mode mode, char *why)
{
	struct crew *crew = aligned_alloc(128, (sizeof(*crew) + 127) & ~(size_t)127);

	snprintf(why, PEER_WHY, "no memory");
	if (crew == NULL)
		return NULL;
	*crew = (struct crew){.mode = mode, .threads = mode == CREW_ONE ? 1 : 2, .plan = *plan};
	crew->plan.threads = mode == CREW_BESIDE ? 3 : (uint64_t)crew->threads; /* shares of memory */
	pthread_barrier_init(&crew->gate, NULL, (unsigned int)crew->threads);
	crew->growing = calloc(plan->live, sizeof(*crew->growing));
	crew->samples = mode == CREW_BESIDE ? malloc(SAMPLES_MAX * sizeof(*crew->samples)) : NULL;
	if (crew->growing == NULL || (mode == CREW_BESIDE && crew->samples == NULL))
		return NULL;
	crew->members[0].crew = crew->members[1].crew = crew;
	crew->members[0].bench = bench_open(&crew->plan, why);
	crew->plan.seed++;
	if (crew->members[0].bench == NULL)
		return NULL;
	if (crew->threads > 1 && pthread_create(&crew->members[1].thread, NULL, live_member, &crew->members[1]) == 0) {
		pthread_barrier_wait(&crew->gate);
		if (crew->members[1].bench == NULL) {
			snprintf(why, PEER_WHY, "%s", crew->members[1].why);
			return NULL;
		}
	}
	pin_to(0);
	return crew;
}
