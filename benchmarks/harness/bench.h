/* bench: what the files of the harness share about one population. Drivers use cycle.h, load.h and crew.h. */
#ifndef BENCH_BENCH_H
#define BENCH_BENCH_H

#include "cycle.h"
#include "mix.h"
#include "peer.h"

#include <time.h>
#if defined(__x86_64__)
#include <x86intrin.h>
#endif

enum { SOURCE_STARTS = 64, SOURCE_STEP = 64 };

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
	int shares_state; /* another population opened the peer and will close it */
	struct block *blocks;
	uint64_t live;  /* slots */
	uint64_t grown; /* slots that hold a block: the first ones */
	struct rng rng;
	unsigned char *source;
	struct op *ops;
	uint64_t ops_count;
	uint64_t ops_room;
	uint64_t aged; /* blocks replaced before anything is measured */
	struct bench_memory before;
};

static inline uint64_t bench_clock(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* CPU time of this process, all its threads' and the kernel's work for them included: on an idle machine the same as the time that
 * passes, on a busy one without the time others had the CPU. What a peer does in another thread counts. */
static inline uint64_t bench_cpu(void)
{
	return bench_clock(CLOCK_PROCESS_CPUTIME_ID);
}

static inline uint64_t bench_wall(void)
{
	return bench_clock(CLOCK_MONOTONIC);
}

/* Single operations are timed by what is cheapest to read, so in time that passes. */
static inline uint64_t bench_ticks(void)
{
#if defined(__x86_64__)
	unsigned int cpu;
	return __rdtscp(&cpu);
#else
	return bench_wall();
#endif
}

static inline int bench_place(const struct bench *b, struct block *block)
{
	const unsigned char *code = b->source + block->source;

	if (b->peer->place != NULL)
		return b->peer->place(b->state, code, block->size, &block->span);
	if (b->peer->alloc(b->state, block->size, &block->span) != 0)
		return -1;
	return b->peer->write(b->state, &block->span, code, block->size);
}

static inline int bench_free(const struct bench *b, const struct block *block)
{
	return b->peer->free(b->state, &block->span, block->size);
}

static inline uint64_t bench_pack_events(const struct bench *b)
{
	return b->peer->pack_events == NULL ? 0 : b->peer->pack_events(b->state);
}

static inline void bench_draw_block(struct bench *b, struct block *block)
{
	block->size = mix_draw(b->mix, &b->rng);
	block->source = rng_below(&b->rng, SOURCE_STARTS) * SOURCE_STEP;
}

int bench_run_ops(struct bench *bench); /* 0 or -1 */

#endif
