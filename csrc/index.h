/* index: which packs of one kind hold a free run of a class; and which owner has an address. Pure.
 *
 *   classes       bit c: some pack has a run of class c
 *   top[c]        bit i: packs[i][c] is not 0
 *   packs[i][c]   bit j: pack 64 i + j has one
 *
 * So the lowest pack with the best class is three bit searches away, however many packs there are. The words of 64 packs lie together,
 * so that a domain of few packs touches little of the table. A pack that nobody told the index about is not found: that is how a pack
 * is kept from being filled again. The atlas does the same job for addresses: two levels of tables, the first indexed by bits 34..47,
 * the second by bits 21..33 of the address.
 */
#ifndef EM_INDEX_H
#define EM_INDEX_H

#include "base.h"
#include "pack.h"

#include <stdatomic.h>

struct em_index {
	struct em_classes classes;
	uint64_t top[EM_PACK_CLASSES];
	uint64_t packs[EXECMEM_WINDOW_PACKS_MAX / 64][EM_PACK_CLASSES];
};

static_assert(EXECMEM_WINDOW_PACKS_MAX / 64 <= 64, "one top word covers a class");

/* em_index_update where something changed. */
void em_index_change(struct em_index *index, uint32_t pack, struct em_classes before, struct em_classes after);
/* The first pack after `after` (UINT32_MAX: from the start) with a run of class `cls`, else EM_PACK_NONE. */
uint32_t em_index_next(const struct em_index *index, unsigned cls, uint32_t after);
/* What the index knows of a pack. */
struct em_classes em_index_known(const struct em_index *index, uint32_t pack);
const char *em_index_check(const struct em_index *index);

/* Tells the index that a pack's classes went from `before` to `after`. */
static inline void em_index_update(struct em_index *index, uint32_t pack, struct em_classes before, struct em_classes after)
{
	if (!em_classes_equal(before, after))
		em_index_change(index, pack, before, after);
}

/* The lowest pack with a run of the smallest class that is `from` or above; false when there is none. */
static inline bool em_index_best(const struct em_index *index, unsigned from, unsigned *cls, uint32_t *pack)
{
	unsigned best = em_classes_next(index->classes, from), word = 0;

	if (best == EM_PACK_CLASSES)
		return false;
	if (EM_UNLIKELY(index->packs[0][best] == 0))
		word = em_ctz(index->top[best]);
	*cls = best;
	*pack = word * 64 + em_ctz(index->packs[word][best]);
	return true;
}

/* ---- the atlas: address -> owner, for readers without a lock ---- */

enum {
	EM_INDEX_LEAF_BITS = 13,
	EM_INDEX_ROOT_BITS = 14, /* em_sys_address_bits */
	EM_INDEX_ADDRESS_BITS = EM_PACK_SHIFT + EM_INDEX_LEAF_BITS + EM_INDEX_ROOT_BITS,
};

struct em_index_leaf {
	_Atomic(void *) owner[1 << EM_INDEX_LEAF_BITS];
};

struct em_index_atlas {
	_Atomic(struct em_index_leaf *) root[1 << EM_INDEX_ROOT_BITS];
};

/* The leaf that `address` needs; NULL: the caller is to supply one with em_index_add_leaf. */
struct em_index_leaf *em_index_leaf_of(struct em_index_atlas *atlas, uint64_t address);
void em_index_add_leaf(struct em_index_atlas *atlas, uint64_t address, struct em_index_leaf *zeroed);
/* Every leaf in the range must be there. owner NULL: forget. */
void em_index_set_owner(struct em_index_atlas *atlas, uint64_t start, uint64_t size, void *owner);
bool em_index_leaf_is_empty(const struct em_index_leaf *leaf); /* walks it */

static inline void *em_index_owner(struct em_index_atlas *atlas, uint64_t address)
{
	struct em_index_leaf *leaf;

	if (EM_UNLIKELY(address >> EM_INDEX_ADDRESS_BITS))
		return NULL;
	leaf = atomic_load_explicit(&atlas->root[address >> (EM_PACK_SHIFT + EM_INDEX_LEAF_BITS)], memory_order_acquire);
	if (EM_UNLIKELY(!leaf))
		return NULL;
	return atomic_load_explicit(&leaf->owner[address >> EM_PACK_SHIFT & ((1 << EM_INDEX_LEAF_BITS) - 1)], memory_order_acquire);
}

#endif
