/* index: see index.h for the picture. */
#include "index.h"

void em_index_update(struct em_index *index, uint32_t pack, uint64_t before, uint64_t after)
{
	for (uint64_t changed = before ^ after; changed; changed &= changed - 1) {
		unsigned cls = em_ctz(changed);
		uint64_t *word = &index->packs[cls][pack / 64];

		if (after >> cls & 1) {
			*word |= 1ull << pack % 64;
			index->top[cls] |= 1ull << pack / 64;
			index->classes |= 1ull << cls;
			continue;
		}
		*word &= ~(1ull << pack % 64);
		if (*word == 0)
			index->top[cls] &= ~(1ull << pack / 64);
		if (index->top[cls] == 0)
			index->classes &= ~(1ull << cls);
	}
}

bool em_index_best(const struct em_index *index, unsigned from, unsigned *cls, uint32_t *pack)
{
	uint64_t classes = from < EM_PACK_CLASSES ? index->classes & ~0ull << from : 0;
	unsigned word;

	if (!classes)
		return false;
	*cls = em_ctz(classes);
	word = em_ctz(index->top[*cls]);
	*pack = word * 64 + em_ctz(index->packs[*cls][word]);
	return true;
}

uint32_t em_index_next(const struct em_index *index, unsigned cls, uint32_t after)
{
	uint32_t from = after + 1; /* UINT32_MAX wraps to 0 */
	uint64_t word, tops;

	if (from >= EXECMEM_WINDOW_PACKS_MAX)
		return EM_PACK_NONE;
	word = index->packs[cls][from / 64] & ~0ull << from % 64;
	if (word)
		return from / 64 * 64 + em_ctz(word);
	tops = from / 64 == 63 ? 0 : index->top[cls] & ~0ull << (from / 64 + 1);
	if (!tops)
		return EM_PACK_NONE;
	return em_ctz(tops) * 64 + em_ctz(index->packs[cls][em_ctz(tops)]);
}

const char *em_index_check(const struct em_index *index)
{
	for (unsigned cls = 0; cls < EM_PACK_CLASSES; cls++) {
		for (unsigned i = 0; i < EXECMEM_WINDOW_PACKS_MAX / 64; i++)
			if ((index->top[cls] >> i & 1) != (index->packs[cls][i] != 0))
				return "the index's top does not match its packs";
		if ((index->classes >> cls & 1) != (index->top[cls] != 0))
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
