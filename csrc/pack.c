/* pack: see pack.h for the picture and the laws. Every function here is constant in what is live: the longest loop is over the
 * words one block covers, or over the eight words of a summary. */
#include "pack.h"

#include <string.h>

enum { EXACT = 15, WORDS = EXECMEM_PACK_WORDS, CHUNKS = EXECMEM_PACK_CHUNKS };

unsigned em_pack_class(uint32_t chunks)
{
	unsigned power;

	em_assert(chunks >= 1 && chunks <= CHUNKS);
	if (chunks <= EXACT)
		return chunks - 1;
	power = em_log2(chunks);
	return EXACT + (power - 4) * 4 + (chunks >> (power - 2) & 3);
}

unsigned em_pack_class_for(uint32_t chunks)
{
	unsigned power;

	if (chunks <= EXACT)
		return chunks - 1;
	power = em_log2(chunks);
	return em_pack_class(chunks) + ((chunks & ((1u << (power - 2)) - 1)) != 0);
}

/* ---- searching bitmaps ---- */

/* The first set bit of `summary` at or after `from`, else WORDS. */
static uint32_t next_word(const uint64_t *summary, uint32_t from)
{
	uint32_t i = from / 64;
	uint64_t word;

	if (from >= WORDS)
		return WORDS;
	word = summary[i] & ~0ull << from % 64;
	while (word == 0)
		if (++i == EM_SUMMARY)
			return WORDS;
		else
			word = summary[i];
	return i * 64 + em_ctz(word);
}

/* The last set bit of `summary` before `before`, else WORDS. */
static uint32_t previous_word(const uint64_t *summary, uint32_t before)
{
	uint32_t i;
	uint64_t word;

	if (before == 0)
		return WORDS;
	i = (before - 1) / 64;
	word = summary[i] & ~0ull >> (63 - (before - 1) % 64);
	while (word == 0)
		if (i-- == 0)
			return WORDS;
		else
			word = summary[i];
	return i * 64 + em_log2(word);
}

/* The first used chunk at or after `from`, else CHUNKS. */
static uint32_t next_used(const struct em_pack_maps *m, uint32_t from)
{
	uint32_t w = from / 64;
	uint64_t word;

	if (from >= CHUNKS)
		return CHUNKS;
	word = m->group[w].used & ~0ull << from % 64;
	if (word)
		return w * 64 + em_ctz(word);
	w = next_word(m->some_used, w + 1);
	return w == WORDS ? CHUNKS : w * 64 + em_ctz(m->group[w].used);
}

/* The chunk after the last used one before `before`: where the free run that ends at `before` starts. */
static uint32_t run_start(const struct em_pack_maps *m, uint32_t before)
{
	uint32_t w = (before - 1) / 64;
	uint64_t word = m->group[w].used & ~0ull >> (63 - (before - 1) % 64);

	if (!word) {
		w = previous_word(m->some_used, w);
		if (w == WORDS)
			return 0;
		word = m->group[w].used;
	}
	return w * 64 + em_log2(word) + 1;
}

/* The first chunk after `first` that is free or a head: where the block that covers `first` ends. */
static uint32_t block_end(const struct em_pack_maps *m, uint32_t first)
{
	uint32_t w = first / 64, f, h;
	uint64_t edge = (~m->group[w].used | m->group[w].head) & (~0ull << first % 64) << 1;

	if (first % 64 == 63)
		edge = 0;
	if (edge)
		return w * 64 + em_ctz(edge);
	f = next_word(m->some_free, w + 1);
	h = next_word(m->some_head, w + 1);
	w = f < h ? f : h;
	return w == WORDS ? CHUNKS : w * 64 + em_ctz(~m->group[w].used | m->group[w].head);
}

uint32_t em_pack_length(struct em_pack pack, uint32_t first)
{
	uint32_t end = block_end(pack.maps, first);

	/* Chunks beyond the usable ones are marked used and have no head. */
	return (end < pack.record->usable_chunks ? end : pack.record->usable_chunks) - first;
}

/* ---- bins ---- */

static uint64_t starts_in(const struct em_pack_maps *m, uint32_t group)
{
	uint64_t free = ~m->group[group].used;
	uint64_t before = group ? ~m->group[group - 1].used >> 63 : 0;

	return free & ~(free << 1 | before);
}

static void bin_add(struct em_pack p, uint32_t start, uint32_t length)
{
	unsigned cls = em_pack_class(length);
	uint32_t group = start / 64;

	p.maps->bins[cls][group / 64] |= 1ull << group % 64;
	p.record->classes |= 1ull << cls;
}

static bool bin_is_empty(const uint64_t *bin)
{
	uint64_t any = 0;

	for (unsigned i = 0; i < EM_SUMMARY; i++)
		any |= bin[i];
	return any == 0;
}

/* Takes the run out of its bin. The bit stays when another run of the class starts in the same group; one that starts at `gone` is
 * about to end too and does not count. */
static void bin_remove(struct em_pack p, uint32_t start, uint32_t length, uint32_t gone)
{
	unsigned cls = em_pack_class(length);
	uint32_t group = start / 64;
	uint64_t others = starts_in(p.maps, group) & ~(1ull << start % 64);

	if (gone / 64 == group)
		others &= ~(1ull << gone % 64);

	for (; others; others &= others - 1) {
		uint32_t other = group * 64 + em_ctz(others);

		if (em_pack_class(next_used(p.maps, other) - other) == cls)
			return;
	}
	p.maps->bins[cls][group / 64] &= ~(1ull << group % 64);
	if (bin_is_empty(p.maps->bins[cls]))
		p.record->classes &= ~(1ull << cls);
}

/* ---- marking ---- */

static uint64_t mask_of(uint32_t word, uint32_t first, uint32_t end)
{
	uint64_t mask = ~0ull;

	if (word == first / 64)
		mask &= ~0ull << first % 64;
	if (word == (end - 1) / 64)
		mask &= ~0ull >> (63 - (end - 1) % 64);
	return mask;
}

static void mark_used(struct em_pack_maps *m, uint32_t first, uint32_t end)
{
	for (uint32_t w = first / 64; w <= (end - 1) / 64; w++) {
		m->group[w].used |= mask_of(w, first, end);
		m->some_used[w / 64] |= 1ull << w % 64;
		if (m->group[w].used == ~0ull)
			m->some_free[w / 64] &= ~(1ull << w % 64);
	}
}

static void mark_free(struct em_pack_maps *m, uint32_t first, uint32_t end)
{
	for (uint32_t w = first / 64; w <= (end - 1) / 64; w++) {
		m->group[w].used &= ~mask_of(w, first, end);
		m->some_free[w / 64] |= 1ull << w % 64;
		if (m->group[w].used == 0)
			m->some_used[w / 64] &= ~(1ull << w % 64);
	}
}

void em_pack_init(struct em_pack pack)
{
	execmem_pack *r = pack.record;

	memset(pack.maps, 0, sizeof *pack.maps);
	for (uint32_t g = 0; g < WORDS; g++)
		pack.maps->group[g].used = ~0ull;
	memset(pack.maps->some_used, 0xff, sizeof pack.maps->some_used);
	r->classes = 0;
	r->usable_chunks = r->used_chunks = r->blocks = r->parked = 0;
}

void em_pack_grow(struct em_pack pack, uint32_t usable)
{
	uint32_t from = pack.record->usable_chunks, start = from;

	em_assert(usable > from && usable <= CHUNKS);
	if (from > 0 && !em_pack_is_used(pack, from - 1)) {
		start = run_start(pack.maps, from);
		bin_remove(pack, start, from - start, EM_PACK_NONE);
	}
	mark_free(pack.maps, from, usable);
	pack.record->usable_chunks = usable;
	bin_add(pack, start, usable - start);
}

/* ---- taking and giving ---- */

static void take_run(struct em_pack p, uint32_t start, uint32_t length, uint32_t first, uint32_t chunks)
{
	bin_remove(p, start, length, EM_PACK_NONE);
	mark_used(p.maps, first, first + chunks);
	p.maps->group[first / 64].head |= 1ull << first % 64;
	p.maps->some_head[first / 64 / 64] |= 1ull << first / 64 % 64;
	if (first > start)
		bin_add(p, start, first - start);
	if (first + chunks < start + length)
		bin_add(p, first + chunks, start + length - first - chunks);
	p.record->used_chunks += chunks;
	p.record->blocks++;
}

uint32_t em_pack_take(struct em_pack pack, unsigned cls, uint32_t chunks, uint32_t align, unsigned tries)
{
	uint32_t group = next_word(pack.maps->bins[cls], 0);

	for (; group < WORDS && tries > 0; group = next_word(pack.maps->bins[cls], group + 1), tries--)
		for (uint64_t starts = starts_in(pack.maps, group); starts; starts &= starts - 1) {
			uint32_t start = group * 64 + em_ctz(starts);
			uint32_t length = next_used(pack.maps, start) - start;
			uint32_t first = (start + align - 1) & ~(align - 1);

			if (first + chunks > start + length || em_pack_class(length) != cls)
				continue;
			take_run(pack, start, length, first, chunks);
			return first;
		}
	return EM_PACK_NONE;
}

uint32_t em_pack_give(struct em_pack pack, uint32_t first)
{
	struct em_pack_maps *m = pack.maps;
	uint32_t chunks = em_pack_length(pack, first);
	uint32_t start = first, end = first + chunks;

	em_assert(em_pack_is_head(pack, first) && em_pack_is_used(pack, first));
	if (first > 0 && !em_pack_is_used(pack, first - 1)) {
		start = run_start(m, first);
		bin_remove(pack, start, first - start, EM_PACK_NONE);
	}
	if (end < CHUNKS && !em_pack_is_used(pack, end)) {
		uint32_t next = next_used(m, end);

		bin_remove(pack, end, next - end, start);
		end = next;
	}
	mark_free(m, first, first + chunks);
	m->group[first / 64].head &= ~(1ull << first % 64);
	if (m->group[first / 64].head == 0)
		m->some_head[first / 64 / 64] &= ~(1ull << first / 64 % 64);
	bin_add(pack, start, end - start);
	pack.record->used_chunks -= chunks;
	pack.record->blocks--;
	return chunks;
}

uint32_t em_pack_block_at(struct em_pack pack, uint32_t chunk)
{
	const struct em_pack_maps *m = pack.maps;
	uint32_t w = chunk / 64;
	uint64_t word;

	if (chunk >= pack.record->usable_chunks || !em_pack_is_used(pack, chunk))
		return EM_PACK_NONE;
	word = m->group[w].head & ~0ull >> (63 - chunk % 64);
	if (!word) {
		w = previous_word(m->some_head, w);
		em_always(w != WORDS); /* a used chunk belongs to a block */
		word = m->group[w].head;
	}
	return w * 64 + em_log2(word);
}

uint32_t em_pack_largest(struct em_pack pack)
{
	uint32_t largest = 0;
	unsigned cls;

	if (!pack.record->classes)
		return 0;
	cls = em_log2(pack.record->classes);
	for (uint32_t g = next_word(pack.maps->bins[cls], 0); g < WORDS; g = next_word(pack.maps->bins[cls], g + 1))
		for (uint64_t starts = starts_in(pack.maps, g); starts; starts &= starts - 1) {
			uint32_t start = g * 64 + em_ctz(starts), length = next_used(pack.maps, start) - start;

			if (length > largest)
				largest = length;
		}
	return largest;
}

/* ---- is it lawful? ---- */

static const char *check_words(struct em_pack p)
{
	const struct em_pack_maps *m = p.maps;
	uint32_t used = 0, heads = 0;

	for (uint32_t w = 0; w < WORDS; w++) {
		if (m->group[w].head & ~m->group[w].used)
			return "a block starts on a free chunk";
		if ((m->some_used[w / 64] >> w % 64 & 1) != (m->group[w].used != 0))
			return "the summary of used words does not match";
		if ((m->some_free[w / 64] >> w % 64 & 1) != (m->group[w].used != ~0ull))
			return "the summary of free words does not match";
		if ((m->some_head[w / 64] >> w % 64 & 1) != (m->group[w].head != 0))
			return "the summary of heads does not match";
		used += em_count(m->group[w].used);
		heads += em_count(m->group[w].head);
	}
	if (used != p.record->used_chunks + (CHUNKS - p.record->usable_chunks))
		return "used_chunks does not count the used bits";
	if (heads != p.record->blocks + p.record->parked)
		return "blocks and parked do not count the heads";
	return NULL;
}

static const char *check_runs(struct em_pack p)
{
	const struct em_pack_maps *m = p.maps;
	uint64_t bins[EM_PACK_CLASSES][EM_SUMMARY] = {{0}};
	uint64_t classes = 0;
	uint32_t chunk = 0;

	while (chunk < CHUNKS) {
		uint32_t end = chunk;

		while (end < CHUNKS && !em_pack_is_used(p, end))
			end++;
		if (end > chunk) {
			unsigned cls = em_pack_class(end - chunk);

			bins[cls][chunk / 64 / 64] |= 1ull << chunk / 64 % 64;
			classes |= 1ull << cls;
		}
		chunk = end;
		if (chunk < p.record->usable_chunks && !em_pack_is_head(p, chunk))
			return "used chunks follow a free one without a head";
		while (chunk < CHUNKS && em_pack_is_used(p, chunk))
			chunk++;
	}
	if (memcmp(bins, m->bins, sizeof bins) != 0)
		return "a bin does not hold exactly the free runs of its class";
	if (classes != p.record->classes)
		return "classes does not tell which bins hold runs";
	return NULL;
}

const char *em_pack_check(struct em_pack pack)
{
	const char *broken = check_words(pack);

	return broken ? broken : check_runs(pack);
}
