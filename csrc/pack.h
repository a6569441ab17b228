/* pack: the chunks of one pack. Pure bookkeeping: no system call, no lock, no global; it never touches the memory it describes.
 *
 *   chunk    0   1   2   3   4   5   6   7 ...
 *   used     1   1   1   0   0   1   1   0        a live block covers it, or it is beyond `usable_chunks`
 *   head     1   0   1   0   0   1   0   0        a live block starts here
 *
 * A block reaches from its head to the next head or free chunk. A free run reaches from a free chunk after a used one (or the pack's
 * start) to the next used one. Runs are found by size class: bit g of bins[c] is set when a free run of class c starts in group g, a
 * group being the 64 chunks of one bitmap word. So finding the lowest run of a class, and taking one out of its bin, look at one
 * cache line and one group: constant in what is live. Summaries (one bit a word) let a search skip words that cannot matter.
 *
 * Laws, as em_pack_check() states them:
 *   (1) a head implies its used bit                      (4) bins[c] has group g exactly when a free run of class c starts there
 *   (2) used_chunks counts the used bits of usable ones  (5) classes has c exactly when bins[c] is not empty
 *   (3) blocks and parked count the heads                (6) each summary bit says what its word says
 */
#ifndef EM_PACK_H
#define EM_PACK_H

#include "base.h"

enum {
	EM_PACK_CLASSES = 60, /* 1..15 chunks exactly, then four to a doubling up to 32,768 */
	EM_PACK_NONE = UINT32_MAX,
};

struct em_pack_word { /* of one group: side by side, for they are looked at together */
	uint64_t used;
	uint64_t head;
};

struct em_pack_maps {
	struct em_pack_word group[EXECMEM_PACK_WORDS];
	uint64_t some_used[EM_SUMMARY]; /* bit g: group[g].used != 0 */
	uint64_t some_free[EM_SUMMARY]; /* bit g: group[g].used != ~0 */
	uint64_t some_head[EM_SUMMARY]; /* bit g: group[g].head != 0 */
	uint64_t bins[EM_PACK_CLASSES][EM_SUMMARY];
};

struct em_pack { /* passed by value: where the two halves are */
	execmem_pack *record;
	struct em_pack_maps *maps;
};

unsigned em_pack_class(uint32_t chunks);          /* of a free run of that length */
unsigned em_pack_class_for(uint32_t chunks);      /* the smallest whose every run holds that many; EM_PACK_CLASSES: none */

void em_pack_init(struct em_pack pack);                     /* nothing usable yet */
void em_pack_grow(struct em_pack pack, uint32_t usable);    /* opens more chunks, up to `usable` */
/* Takes `chunks` chunks aligned to `align` chunks (a power of two) out of the lowest run of class `cls` that holds them. Looks at no
 * more than `tries` groups. EM_PACK_NONE: nothing there, nothing changed. */
uint32_t em_pack_take(struct em_pack pack, unsigned cls, uint32_t chunks, uint32_t align, unsigned tries);
uint32_t em_pack_length(struct em_pack pack, uint32_t first); /* chunks of the block that starts at `first` */
uint32_t em_pack_give(struct em_pack pack, uint32_t first); /* frees the block, joins its neighbours; its chunks */
uint32_t em_pack_block_at(struct em_pack pack, uint32_t chunk); /* first chunk of the block there, EM_PACK_NONE: free */
uint32_t em_pack_largest(struct em_pack pack); /* chunks of the longest free run; walks the top bin */
const char *em_pack_check(struct em_pack pack); /* NULL or the broken law; walks every chunk */

static inline bool em_pack_is_head(struct em_pack pack, uint32_t chunk)
{
	return pack.maps->group[chunk / 64].head >> (chunk % 64) & 1;
}

static inline bool em_pack_is_used(struct em_pack pack, uint32_t chunk)
{
	return pack.maps->group[chunk / 64].used >> (chunk % 64) & 1;
}

#endif
