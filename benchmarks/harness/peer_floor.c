/* peer_floor: what the bytes alone cost, without any allocator. Executable in fact, but nothing is kept: spans overlap.
 *
 * floor       a free writes traps over the block, a place writes the new bytes over the place just freed: the least that any
 *             allocator with traps can cost, were it always lucky enough to reuse what is still in the cache.
 * floor-apart the new bytes go to another, random, place: what it costs when freed memory is not reused at once.
 */
#include "mix.h"
#include "peer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { VARIANT_SAME = 0, VARIANT_APART = 1 };

struct floor {
	struct twin twin;
	struct rng rng;
	size_t cursor;   /* next fresh byte while the population grows */
	size_t bytes;    /* spans start below this; the largest block fits after it */
	size_t hole;     /* where the next block goes */
	int hole_is_set; /* a block was freed since the last place */
	int variant;
};

static void *floor_open(const struct peer *self, const struct peer_plan *plan, char why[PEER_WHY])
{
	struct floor *f = calloc(1, sizeof(*f));

	if (f == NULL)
		return NULL;
	f->bytes = plan->bytes;
	f->variant = self->variant;
	rng_seed(&f->rng, plan->seed + 1);
	if (twin_open(&f->twin, plan->bytes + peer_round(plan->bytes_max), why) == 0)
		return f;
	free(f);
	return NULL;
}

static int floor_place(void *state, const void *code, size_t size, struct span *out)
{
	struct floor *f = state;
	size_t at;

	if (!f->hole_is_set) {
		at = f->cursor < f->bytes ? f->cursor : 0;
		f->cursor = at + peer_round(size);
	} else if (f->variant == VARIANT_APART) {
		at = (size_t)rng_below(&f->rng, (uint32_t)(f->bytes / PEER_CHUNK)) * PEER_CHUNK;
	} else {
		at = f->hole;
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
	f->hole = (size_t)((unsigned char *)at->writable - f->twin.writable);
	f->hole_is_set = 1;
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
	{.name = "floor", .about = "the bytes alone, new ones over those just freed", .variant = VARIANT_SAME, FLOOR},
	{.name = "floor-apart", .about = "the bytes alone, new ones at a random place", .variant = VARIANT_APART, FLOOR},
	{0},
};
