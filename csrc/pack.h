/* pack: the chunks of one pack. Pure bookkeeping: no system call, no lock, no global; it never touches the memory it describes.
 *
 *   chunk    0   1   2   3   4   5   6   7 ...
 *   used     1   1   1   0   0   1   1   0        a block covers it, or it is beyond `usable_chunks`
 *   head     1   0   1   0   0   1   0   0        a block starts here
 *
 * A block reaches from its head to the next head or free chunk. A free run reaches from a free chunk after a used one (or the pack's
 * start) to the next used one. A group is the 64 chunks of one pair of words, a region is four groups. Runs are found by size class:
 * bit r of bins[c] is set when a free run of class c starts in region r. So finding the lowest run of a class, and taking one out of
 * its bin, look at one row of bins and the words of one region: constant in what is live.
 *
 * After the last group comes one more whose chunks count as used and as heads, so that whoever looks at two words side by side, as
 * nearly every function does, never needs to ask whether there is a second.
 *
 * Laws, as em_pack_check() states them:
 *   (1) a head implies its used bit                      (4) bins[c] has region r exactly when a free run of class c starts there
 *   (2) used_chunks counts the used bits of usable ones  (5) classes has c exactly when bins[c] is not empty
 *   (3) blocks and parked count the heads                (6) some_used says of each word whether it is 0; the last group is shut
 */
#ifndef EM_PACK_H
#define EM_PACK_H

#include "base.h"

enum {
	EM_PACK_EXACT = 63, /* runs of 1..63 chunks have a class for each length; longer ones eight to a doubling; 127: 16,384 and up */
	EM_PACK_CLASSES = 128,
	EM_PACK_REGION_WORDS = 4,
	EM_PACK_REGIONS = EXECMEM_PACK_WORDS / EM_PACK_REGION_WORDS,
	EM_PACK_NONE = UINT32_MAX,
};

struct em_classes { /* a set of size classes; {0}: none. Two members and no array: then compilers keep it in registers */
	uint64_t low, high;
};

struct em_pack_word { /* of one group: side by side, for they are looked at together */
	uint64_t used;
	uint64_t head;
};

struct em_pack_maps {
	struct em_pack_word group[EXECMEM_PACK_WORDS + 1]; /* the last one shut: ~0, ~0 */
	uint64_t some_used[EM_SUMMARY]; /* bit g: group[g].used != 0 */
	_Alignas(16) uint64_t bins[EM_PACK_CLASSES][EM_PACK_REGIONS / 64];
};

struct em_pack { /* passed by value: where the two halves are */
	execmem_pack *record;
	struct em_pack_maps *maps;
};

void em_pack_init(struct em_pack pack); /* nothing usable yet */
void em_pack_grow(struct em_pack pack, uint32_t usable); /* opens more chunks, up to `usable` */
/* Takes `chunks` chunks aligned to `align` chunks (a power of two) out of the lowest run of class `cls` that holds them. Looks at no
 * more than `tries` regions. EM_PACK_NONE: nothing there, nothing changed. */
uint32_t em_pack_take(struct em_pack pack, unsigned cls, uint32_t chunks, uint32_t align, unsigned tries);
/* Frees the block of `chunks` chunks at `first` and joins its neighbours. em_pack_give asks for the length itself. */
void em_pack_give_chunks(struct em_pack pack, uint32_t first, uint32_t chunks);
uint32_t em_pack_largest(struct em_pack pack); /* chunks of the longest free run; walks the top bin */
const char *em_pack_check(struct em_pack pack); /* NULL or the broken law; walks every chunk */

/* The rest of em_pack_length and em_pack_block_at for blocks that reach further than the next word. */
uint32_t em_pack_length_far(struct em_pack pack, uint32_t first);
uint32_t em_pack_block_before(struct em_pack pack, uint32_t chunk);

/* ---- classes ---- */

/* The class of a free run of that length. */
static inline unsigned em_pack_class(uint32_t chunks)
{
	unsigned power, cls;

	em_assert(chunks >= 1 && chunks <= EXECMEM_PACK_CHUNKS);
	if (EM_LIKELY(chunks <= EM_PACK_EXACT))
		return chunks - 1;
	power = em_log2(chunks);
	cls = EM_PACK_EXACT + (power - 6) * 8 + (chunks >> (power - 3) & 7);
	return cls < EM_PACK_CLASSES - 1 ? cls : EM_PACK_CLASSES - 1;
}

/* The smallest class whose every run holds that many; EM_PACK_CLASSES: none. */
static inline unsigned em_pack_class_for(uint32_t chunks)
{
	if (EM_LIKELY(chunks <= EM_PACK_EXACT))
		return chunks - 1;
	if (chunks > EXECMEM_PACK_CHUNKS / 2)
		return EM_PACK_CLASSES;
	return em_pack_class(chunks) + ((chunks & ((1u << (em_log2(chunks) - 3)) - 1)) != 0);
}

static inline struct em_classes em_pack_classes(struct em_pack pack)
{
	return (struct em_classes){pack.record->classes[0], pack.record->classes[1]};
}

static inline bool em_classes_have(struct em_classes set, unsigned cls)
{
	return (cls < 64 ? set.low : set.high) >> cls % 64 & 1;
}

static inline bool em_classes_equal(struct em_classes a, struct em_classes b)
{
	return ((a.low ^ b.low) | (a.high ^ b.high)) == 0;
}

/* The smallest class of the set that is `from` or above, else EM_PACK_CLASSES. */
static inline unsigned em_classes_next(struct em_classes set, unsigned from)
{
	uint64_t low = from < 64 ? set.low & ~0ull << from : 0;
	uint64_t high = from < 64 ? set.high : from < EM_PACK_CLASSES ? set.high & ~0ull << from % 64 : 0;

	if (EM_LIKELY(low))
		return em_ctz(low);
	return high ? 64 + em_ctz(high) : EM_PACK_CLASSES;
}

/* ---- chunks ---- */

/* 64 bits from bit `at` of the first of two words on. */
static inline uint64_t em_pack_window(uint64_t low, uint64_t high, uint32_t at)
{
	return low >> at | high << 1 << (63 - at);
}

static inline bool em_pack_is_head(struct em_pack pack, uint32_t chunk)
{
	return pack.maps->group[chunk / 64].head >> (chunk % 64) & 1;
}

static inline bool em_pack_is_used(struct em_pack pack, uint32_t chunk)
{
	return pack.maps->group[chunk / 64].used >> (chunk % 64) & 1;
}

/* Both neighbours of the block are used, or it touches the pack's edge: freeing it will join nothing. Only such blocks may be kept whole
 * for the next of their length; docs/allocator.md tells what it costs to keep others. */
static inline bool em_pack_is_alone(struct em_pack pack, uint32_t first, uint32_t chunks)
{
	return (first == 0 || em_pack_is_used(pack, first - 1)) && em_pack_is_used(pack, first + chunks);
}

/* Chunks of the block that starts at `first`. */
static inline uint32_t em_pack_length(struct em_pack pack, uint32_t first)
{
	const struct em_pack_word *g = &pack.maps->group[first / 64];
	uint64_t edges = em_pack_window(~g[0].used | g[0].head, ~g[1].used | g[1].head, first % 64) >> 1;
	uint32_t chunks = EM_LIKELY(edges) ? em_ctz(edges) + 1 : em_pack_length_far(pack, first);

	/* Chunks beyond the usable ones are marked used and have no head. */
	return chunks < pack.record->usable_chunks - first ? chunks : pack.record->usable_chunks - first;
}

/* First chunk of the block there, EM_PACK_NONE: free. */
static inline uint32_t em_pack_block_at(struct em_pack pack, uint32_t chunk)
{
	if (EM_LIKELY(em_pack_is_head(pack, chunk)))
		return chunk;
	if (chunk >= pack.record->usable_chunks || !em_pack_is_used(pack, chunk))
		return EM_PACK_NONE;
	return em_pack_block_before(pack, chunk);
}

/* Cuts a block in two: a block starts at `chunk`, which lies within one. */
static inline void em_pack_cut(struct em_pack pack, uint32_t chunk)
{
	em_assert(em_pack_is_used(pack, chunk) && !em_pack_is_head(pack, chunk));
	pack.maps->group[chunk / 64].head |= 1ull << chunk % 64;
	pack.record->blocks++;
}

/* Makes one block of those that start in a range of chunks, the first of which is a start. */
void em_pack_join(struct em_pack pack, uint32_t first, uint32_t end);

static inline uint32_t em_pack_give(struct em_pack pack, uint32_t first)
{
	uint32_t chunks = em_pack_length(pack, first);

	em_pack_give_chunks(pack, first, chunks);
	return chunks;
}

#endif
