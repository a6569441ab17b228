/* park: freed blocks kept whole for the next of their length. Pure.
 *
 * Most programs that free code allocate code of the same sizes again. A parked block keeps its chunks, its record and its lines in the
 * cache, so the next block of that many chunks takes it over without a search. It is blank, and no call knows it any more.
 * One stack a length, of few places. Its top is the next to go. A block whose lines are in no
 * cache is pushed under the top, so that the lines of the top can be asked for ahead of time.
 */
#ifndef EM_PARK_H
#define EM_PARK_H

#include "base.h"

enum {
	EM_PARK_LENGTHS = 64, /* blocks of 1..64 chunks are parked */
	EM_PARK_DEPTH = 32,
	EM_PARK_CHUNKS = 128, /* a stack's where much is live, if that allows two blocks: more would cost a pack (docs/allocator.md) */
};

struct em_park {
	uint32_t chunks; /* in all stacks */
	uint8_t count[EM_PARK_LENGTHS];
	uint32_t at[EM_PARK_LENGTHS][EM_PARK_DEPTH]; /* pack * 32768 + first chunk */
};

static_assert((uint64_t)EXECMEM_WINDOW_PACKS_MAX * EXECMEM_PACK_CHUNKS <= UINT32_MAX, "a place has 32 bits");

static inline bool em_park_has_room(const struct em_park *park, uint32_t chunks, bool much_is_live)
{
	uint32_t count = chunks <= EM_PARK_LENGTHS ? park->count[chunks - 1] : EM_PARK_DEPTH;

	if (EM_UNLIKELY(much_is_live))
		return count < EM_PARK_DEPTH && (count < 2 || (count + 1) * chunks <= EM_PARK_CHUNKS);
	return count < EM_PARK_DEPTH;
}

/* There is room. */
static inline void em_park_push(struct em_park *park, uint32_t pack, uint32_t first, uint32_t chunks, bool under)
{
	uint32_t *stack = park->at[chunks - 1], count = park->count[chunks - 1]++;

	if (under && count > 0) {
		stack[count] = stack[count - 1];
		count--;
	}
	stack[count] = pack * EXECMEM_PACK_CHUNKS + first;
	park->chunks += chunks;
}

static inline bool em_park_pop(struct em_park *park, uint32_t chunks, uint32_t *pack, uint32_t *first)
{
	uint32_t at;

	if (chunks > EM_PARK_LENGTHS || park->count[chunks - 1] == 0)
		return false;
	at = park->at[chunks - 1][--park->count[chunks - 1]];
	park->chunks -= chunks;
	*pack = at / EXECMEM_PACK_CHUNKS;
	*first = at % EXECMEM_PACK_CHUNKS;
	return true;
}

/* The one to go next; false: none of that length. */
static inline bool em_park_top(const struct em_park *park, uint32_t chunks, uint64_t *chunk_of_window)
{
	uint32_t count = park->count[chunks - 1];

	*chunk_of_window = count > 0 ? park->at[chunks - 1][count - 1] : 0;
	return count > 0;
}

#endif
