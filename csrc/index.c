/* index: see index.h for the picture. */
#include "index.h"

/* Of the classes from `base` on: the set of those that some pack has, and those the pack has lost and gained. */
static inline uint64_t change(struct em_index *index, unsigned base, uint64_t set, uint32_t pack, uint64_t lost, uint64_t gained)
{
	uint64_t *packs = &index->packs[pack / 64][base], *top = &index->top[base];

	for (; gained; gained &= gained - 1) {
		unsigned cls = em_ctz(gained);

		packs[cls] |= 1ull << pack % 64;
		top[cls] |= 1ull << pack / 64;
		set |= 1ull << cls;
	}
	for (; lost; lost &= lost - 1) {
		unsigned cls = em_ctz(lost);

		packs[cls] &= ~(1ull << pack % 64);
		top[cls] &= ~((uint64_t)(packs[cls] == 0) << pack / 64);
		set &= ~((uint64_t)(top[cls] == 0) << cls);
	}
	return set;
}

void em_index_change(struct em_index *index, uint32_t pack, struct em_classes before, struct em_classes after)
{
	index->classes.low = change(index, 0, index->classes.low, pack, before.low & ~after.low, after.low & ~before.low);
	if (before.high != after.high)
		index->classes.high = change(index, 64, index->classes.high, pack, before.high & ~after.high, after.high & ~before.high);
}

uint32_t em_index_next(const struct em_index *index, unsigned cls, uint32_t after)
{
	uint32_t from = after + 1; /* UINT32_MAX wraps to 0 */
	uint64_t word, tops;

	if (from >= EXECMEM_WINDOW_PACKS_MAX)
		return EM_PACK_NONE;
	word = index->packs[from / 64][cls] & ~0ull << from % 64;
	if (word)
		return from / 64 * 64 + em_ctz(word);
	tops = from / 64 == 63 ? 0 : index->top[cls] & ~0ull << (from / 64 + 1);
	if (!tops)
		return EM_PACK_NONE;
	return em_ctz(tops) * 64 + em_ctz(index->packs[em_ctz(tops)][cls]);
}

struct em_classes em_index_known(const struct em_index *index, uint32_t pack)
{
	uint64_t known[2] = {0};

	for (unsigned cls = 0; cls < EM_PACK_CLASSES; cls++)
		known[cls / 64] |= (index->packs[pack / 64][cls] >> pack % 64 & 1) << cls % 64;
	return (struct em_classes){known[0], known[1]};
}

const char *em_index_check(const struct em_index *index)
{
	for (unsigned cls = 0; cls < EM_PACK_CLASSES; cls++) {
		for (unsigned i = 0; i < EXECMEM_WINDOW_PACKS_MAX / 64; i++)
			if ((index->top[cls] >> i & 1) != (index->packs[i][cls] != 0))
				return "the index's top does not match its packs";
		if (em_classes_have(index->classes, cls) != (index->top[cls] != 0))
			return "the index's classes do not match its top";
	}
	return NULL;
}

/* ---- the atlas ---- */

struct em_index_leaf *em_index_leaf_of(struct em_index_atlas *atlas, uint64_t address)
{
	return atomic_load_explicit(&atlas->root[address >> (EM_PACK_SHIFT + EM_INDEX_LEAF_BITS)], memory_order_acquire);
}

void em_index_add_leaf(struct em_index_atlas *atlas, uint64_t address, struct em_index_leaf *zeroed)
{
	atomic_store_explicit(&atlas->root[address >> (EM_PACK_SHIFT + EM_INDEX_LEAF_BITS)], zeroed, memory_order_release);
}

void em_index_set_owner(struct em_index_atlas *atlas, uint64_t start, uint64_t size, void *owner)
{
	for (uint64_t address = start; address < start + size; address += EXECMEM_PACK_SIZE) {
		struct em_index_leaf *leaf = em_index_leaf_of(atlas, address);

		em_always(leaf);
		atomic_store_explicit(&leaf->owner[address >> EM_PACK_SHIFT & ((1 << EM_INDEX_LEAF_BITS) - 1)], owner,
		                      memory_order_release);
	}
}

bool em_index_leaf_is_empty(const struct em_index_leaf *leaf)
{
	for (unsigned i = 0; i < 1 << EM_INDEX_LEAF_BITS; i++)
		if (atomic_load_explicit(&leaf->owner[i], memory_order_relaxed))
			return false;
	return true;
}
