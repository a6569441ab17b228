/* peer_floor: what the bytes alone cost, without any allocator. Executable in fact, but nothing is kept: spans overlap.
 *
 * floor       a free writes traps over the block, a place writes the new bytes over the place freed last: the least that any
 *             allocator with traps can cost, were it always lucky enough to reuse what is still in the cache. A thread reuses
 *             what it freed itself.
 * floor-apart the new bytes go to another, random, place: what it costs when freed memory is not reused at once.
 */
#include "mix.h"
#include "peer.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { VARIANT_SAME = 0, VARIANT_APART = 1, HOLES = 8192 };

struct floor {
	struct twin twin;
	struct rng rng;
	size_t bytes; /* of one thread's share: spans start below this; the largest block fits after it */
	size_t stride;
	atomic_size_t threads; /* that have come */
	int variant;
};

struct place { /* each thread works in a share of its own */
	int has_come;
	size_t start;
	size_t cursor; /* next fresh byte while the population grows */
	size_t count;    /* holes: places freed and not used again, the newest last; more are forgotten */
	size_t holes[HOLES];
};

static _Thread_local struct place here;

static void *floor_open(const struct peer *self, const struct peer_plan *plan, char why[PEER_WHY])
{
	struct floor *f = calloc(1, sizeof(*f));

	if (f == NULL)
		return NULL;
	f->bytes = plan->bytes;
	f->stride = (plan->bytes + peer_round(plan->bytes_max) + PEER_PACK - 1) & ~(size_t)(PEER_PACK - 1);
	f->variant = self->variant;
	rng_seed(&f->rng, plan->seed + 1);
	if (twin_open(&f->twin, f->stride * plan->threads, why) == 0)
		return f;
	free(f);
	return NULL;
}

static int floor_place(void *state, const void *code, size_t size, struct span *out)
{
	struct floor *f = state;
	size_t at;

	if (!here.has_come)
		here = (struct place){.has_come = 1, .start = atomic_fetch_add(&f->threads, 1) * f->stride};
	if (here.count == 0) {
		at = here.cursor < f->bytes ? here.cursor : 0;
		here.cursor = at + peer_round(size);
		at += here.start;
	} else {
		at = here.holes[--here.count];
		if (f->variant == VARIANT_APART)
			at = here.start + (size_t)rng_below(&f->rng, (uint32_t)(f->bytes / PEER_CHUNK)) * PEER_CHUNK;
	}
	out->code = f->twin.code + at;
	out->writable = f->twin.writable + at;
	memcpy(out->writable, code, size);
	return 0;
}

static int floor_free(void *state, const struct span *at, size_t size)
{
	struct floor *f = state;

	memset(at->writable, PEER_TRAP, peer_round(size));
	if (here.count < HOLES)
		here.holes[here.count++] = (size_t)((unsigned char *)at->writable - f->twin.writable);
	return 0;
}

static void floor_close(void *state)
{
	struct floor *f = state;

	twin_close(&f->twin);
	free(f);
}

#define FLOOR .traps = 1, .open = floor_open, .place = floor_place, .free = floor_free, .close = floor_close

const struct peer peers_floor[] = {
	{.name = "floor",
	 .about = "the bytes alone, new ones over those just freed",
	 .variant = VARIANT_SAME,
	 .sharing = PEER_SHARED,
	 FLOOR},
	{.name = "floor-apart", .about = "the bytes alone, new ones at a random place", .variant = VARIANT_APART, FLOOR},
	{0},
};
