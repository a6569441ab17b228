/* pack: see pack.h for the picture and the laws. Every function here is constant in what is live: the longest loop is over the
 * words one block covers, the words of one region, or the words of a summary. */
#include "pack.h"

#include <string.h>

enum { WORDS = EXECMEM_PACK_WORDS, CHUNKS = EXECMEM_PACK_CHUNKS, BIN_WORDS = EM_PACK_REGIONS / 64 };

static_assert(EM_PACK_REGIONS == 128, "a bin is two words");
static_assert(EM_PACK_REGION_WORDS == 4, "find_short_in is written out for four words");
static_assert(EM_PACK_EXACT == 63, "a run whose class is not exact reaches the end of the word it starts in");

/* ---- searching bitmaps ---- */

/* The first word at or after `from` with a used chunk, else WORDS. */
static uint32_t next_word(const struct em_pack_maps *m, uint32_t from)
{
	uint32_t i = from / 64;
	uint64_t word;

	if (from >= WORDS)
		return WORDS;
	word = m->some_used[i] & ~0ull << from % 64;
	while (word == 0)
		if (++i == EM_SUMMARY)
			return WORDS;
		else
			word = m->some_used[i];
	return i * 64 + em_ctz(word);
}

/* The last word before `before` with a used chunk, else WORDS. */
static uint32_t previous_word(const struct em_pack_maps *m, uint32_t before)
{
	uint32_t i;
	uint64_t word;

	if (before == 0)
		return WORDS;
	i = (before - 1) / 64;
	word = m->some_used[i] & ~0ull >> (63 - (before - 1) % 64);
	while (word == 0)
		if (i-- == 0)
			return WORDS;
		else
			word = m->some_used[i];
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
	w = next_word(m, w + 1);
	return w == WORDS ? CHUNKS : w * 64 + em_ctz(m->group[w].used);
}

/* Where the free run that starts at `start` ends. */
static inline uint32_t run_end(const struct em_pack_maps *m, uint32_t start)
{
	const struct em_pack_word *g = &m->group[start / 64];
	uint64_t used = em_pack_window(g[0].used, g[1].used, start % 64);

	return EM_LIKELY(used) ? start + em_ctz(used) : next_used(m, start + 64);
}

/* The chunk after the last used one before `before`: where the free run that ends at `before` starts. */
static uint32_t run_start(const struct em_pack_maps *m, uint32_t before)
{
	uint32_t w = (before - 1) / 64;
	uint64_t word = m->group[w].used & ~0ull >> (63 - (before - 1) % 64);

	if (!word) {
		w = previous_word(m, w);
		if (w == WORDS)
			return 0;
		word = m->group[w].used;
	}
	return w * 64 + em_log2(word) + 1;
}

uint32_t em_pack_length_far(struct em_pack pack, uint32_t first)
{
	const struct em_pack_word *g = pack.maps->group;
	uint32_t w = first / 64;
	uint64_t edge;

	do { /* what of this word em_pack_length saw has none; the last group is one */
		w++;
		edge = ~g[w].used | g[w].head;
	} while (!edge);
	return w * 64 + em_ctz(edge) - first;
}

uint32_t em_pack_block_before(struct em_pack pack, uint32_t chunk)
{
	const struct em_pack_word *g = pack.maps->group;
	uint32_t w = chunk / 64;
	uint64_t word = g[w].head & ~0ull >> (63 - chunk % 64);

	while (!word) {
		em_always(w > 0); /* a used chunk belongs to a block */
		word = g[--w].head;
	}
	return w * 64 + em_log2(word);
}

/* ---- bins ---- */

static inline uint64_t used_before(const struct em_pack_maps *m, uint32_t w)
{
	return w ? m->group[w - 1].used : ~0ull;
}

/* The chunks of a word where free runs of `length` chunks start, at most 63: a run starts there, and one ends (that is: the chunk is used,
 * the one before free) `length` chunks further on. Wrong where one run ends and another starts in between, which is seldom. */
static inline uint64_t short_starts(const struct em_pack_word *g, uint64_t before, unsigned length)
{
	uint64_t low = g[0].used, high = g[1].used;
	uint64_t low_before = low << 1 | before >> 63, high_before = high << 1 | low >> 63;

	return ~low & low_before & em_pack_window(low & ~low_before, high & ~high_before, length);
}

/* The chunks of a word where free runs start that may be of the class. Runs of 64 chunks and more reach the end of their first word. */
static inline uint64_t starts_in(const struct em_pack_maps *m, uint32_t w, unsigned cls)
{
	uint64_t before = used_before(m, w), used = m->group[w].used, starts;

	if (EM_LIKELY(cls < EM_PACK_EXACT))
		return short_starts(&m->group[w], before, cls + 1);
	starts = ~used & (used << 1 | before >> 63);
	return starts && !(used >> 63) ? 1ull << em_log2(starts) : 0;
}

/* A run of the class other than those at `start` and at `gone` starts in the region. */
static bool has_other(const struct em_pack_maps *m, uint32_t region, unsigned cls, uint32_t start, uint32_t gone)
{
	for (uint32_t w = region * EM_PACK_REGION_WORDS; w < (region + 1) * EM_PACK_REGION_WORDS; w++)
		for (uint64_t starts = starts_in(m, w, cls); starts; starts &= starts - 1) {
			uint32_t other = w * 64 + em_ctz(starts);

			if (other != start && other != gone && em_pack_class(run_end(m, other) - other) == cls)
				return true;
		}
	return false;
}

static inline void bin_set(struct em_pack p, uint32_t region, unsigned cls)
{
	p.maps->bins[cls][region / 64] |= 1ull << region % 64;
	p.record->classes[cls / 64] |= 1ull << cls % 64;
}

static inline void bin_clear(struct em_pack p, uint32_t region, unsigned cls)
{
	uint64_t *bin = p.maps->bins[cls], any;

	bin[region / 64] &= ~(1ull << region % 64);
	any = bin[0] | bin[1];
	p.record->classes[cls / 64] &= ~((uint64_t)(any == 0) << cls % 64);
}

static inline void bin_add(struct em_pack p, uint32_t start, uint32_t length)
{
	bin_set(p, start / 64 / EM_PACK_REGION_WORDS, em_pack_class(length));
}

/* Takes the run out of its bin. The bit stays when another run of the class starts in the same region; one that starts at `gone` is
 * about to end too and does not count. */
static void bin_remove(struct em_pack p, uint32_t start, uint32_t length, uint32_t gone)
{
	unsigned cls = em_pack_class(length);
	uint32_t region = start / 64 / EM_PACK_REGION_WORDS;

	if (!has_other(p.maps, region, cls, start, gone))
		bin_clear(p, region, cls);
}

/* ---- marking ---- */

static void note_words(struct em_pack_maps *m, uint32_t first, uint32_t end)
{
	for (uint32_t w = first; w < end && w < WORDS; w++)
		if (m->group[w].used)
			m->some_used[w / 64] |= 1ull << w % 64;
		else
			m->some_used[w / 64] &= ~(1ull << w % 64);
}

static uint64_t mask_of(uint32_t word, uint32_t first, uint32_t end)
{
	uint64_t mask = ~0ull;

	if (word == first / 64)
		mask &= ~0ull << first % 64;
	if (word == (end - 1) / 64)
		mask &= ~0ull >> (63 - (end - 1) % 64);
	return mask;
}

static void mark_long(struct em_pack_maps *m, uint32_t first, uint32_t end, bool used)
{
	for (uint32_t w = first / 64; w <= (end - 1) / 64; w++)
		if (used)
			m->group[w].used |= mask_of(w, first, end);
		else
			m->group[w].used &= ~mask_of(w, first, end);
	note_words(m, first / 64, (end - 1) / 64 + 1);
}

/* Up to 64 chunks lie in two words, of which the second may not be touched: then its mask is 0, and the word may be the shut one. */
static inline void mark(struct em_pack_maps *m, uint32_t first, uint32_t chunks, bool used)
{
	struct em_pack_word *g = &m->group[first / 64];
	uint64_t ones, low, high;
	bool sparse;

	if (EM_UNLIKELY(chunks > 64)) {
		mark_long(m, first, first + chunks, used);
		return;
	}
	ones = ~0ull >> (64 - chunks);
	low = ones << first % 64;
	high = ones >> 1 >> (63 - first % 64);
	g[0].used = used ? g[0].used | low : g[0].used & ~low;
	g[1].used = used ? g[1].used | high : g[1].used & ~high;
	/* The summary can only change where nothing but these chunks is used. */
	sparse = used ? (g[0].used == low) | (g[1].used == high) : (g[0].used == 0) | (g[1].used == 0);
	if (EM_UNLIKELY(sparse))
		note_words(m, first / 64, first / 64 + 2);
}

void em_pack_init(struct em_pack pack)
{
	execmem_pack *r = pack.record;

	memset(pack.maps, 0, sizeof *pack.maps);
	for (uint32_t g = 0; g < WORDS; g++)
		pack.maps->group[g].used = ~0ull;
	pack.maps->group[WORDS] = (struct em_pack_word){~0ull, ~0ull};
	memset(pack.maps->some_used, 0xff, sizeof pack.maps->some_used);
	r->classes[0] = r->classes[1] = 0;
	r->usable_chunks = r->used_chunks = r->blocks = r->parked = r->held = r->retired = 0;
}

void em_pack_grow(struct em_pack pack, uint32_t usable)
{
	uint32_t from = pack.record->usable_chunks, start = from;

	em_assert(usable > from && usable <= CHUNKS);
	if (from > 0 && !em_pack_is_used(pack, from - 1)) {
		start = run_start(pack.maps, from);
		bin_remove(pack, start, from - start, EM_PACK_NONE);
	}
	mark_long(pack.maps, from, usable, false);
	pack.record->usable_chunks = usable;
	bin_add(pack, start, usable - start);
}

/* ---- taking and giving ---- */

struct found {
	uint32_t start, end; /* the run */
	uint32_t first;      /* where the block goes */
	bool others;         /* the region has another run of the class */
};

/* The lowest run of the class in a region that holds the block. */
static bool find_in(const struct em_pack_maps *m, uint32_t region, unsigned cls, uint32_t chunks, uint32_t align, struct found *out)
{
	for (uint32_t w = region * EM_PACK_REGION_WORDS; w < (region + 1) * EM_PACK_REGION_WORDS; w++)
		for (uint64_t starts = starts_in(m, w, cls); starts; starts &= starts - 1) {
			uint32_t start = w * 64 + em_ctz(starts), end = run_end(m, start);
			uint32_t first = (start + align - 1) & ~(align - 1);

			if (em_pack_class(end - start) != cls || first + chunks > end)
				continue;
			*out = (struct found){start, end, first, has_other(m, region, cls, start, EM_PACK_NONE)};
			return true;
		}
	return false;
}

/* The same for a class of one length and a block that may lie anywhere; but without branches, for what a word holds cannot be foretold.
 * False too where the first look errs. */
static inline bool find_short_in(const struct em_pack_maps *m, uint32_t region, unsigned cls, struct found *out)
{
	const struct em_pack_word *g = &m->group[region * EM_PACK_REGION_WORDS];
	uint32_t length = cls + 1, words, w;
	uint64_t starts;

	words = (uint32_t)(short_starts(g, used_before(m, region * EM_PACK_REGION_WORDS), length) != 0);
	words |= (uint32_t)(short_starts(g + 1, g[0].used, length) != 0) << 1;
	words |= (uint32_t)(short_starts(g + 2, g[1].used, length) != 0) << 2;
	words |= (uint32_t)(short_starts(g + 3, g[2].used, length) != 0) << 3;
	w = region * EM_PACK_REGION_WORDS + em_ctz(words | 8);
	starts = starts_in(m, w, cls);
	out->start = out->first = w * 64 + em_ctz(starts | 1ull << 63);
	out->end = out->start + length;
	if (EM_UNLIKELY(starts == 0 || run_end(m, out->start) != out->end))
		return false;
	out->others = ((words & (words - 1)) || (starts & (starts - 1))) && has_other(m, region, cls, out->start, EM_PACK_NONE);
	return true;
}

static inline void take_found(struct em_pack p, uint32_t region, unsigned cls, uint32_t chunks, const struct found *f)
{
	if (!f->others)
		bin_clear(p, region, cls);
	mark(p.maps, f->first, chunks, true);
	p.maps->group[f->first / 64].head |= 1ull << f->first % 64;
	if (EM_UNLIKELY(f->first > f->start))
		bin_add(p, f->start, f->first - f->start);
	if (f->first + chunks < f->end)
		bin_add(p, f->first + chunks, f->end - f->first - chunks);
	em_add(p.record->used_chunks, chunks);
	p.record->blocks++;
}

uint32_t em_pack_take(struct em_pack pack, unsigned cls, uint32_t chunks, uint32_t align, unsigned tries)
{
	uint64_t low = pack.maps->bins[cls][0], high = pack.maps->bins[cls][1];
	struct found found;

	for (; (low | high) && tries > 0; tries--) {
		uint32_t region = low ? em_ctz(low) : 64 + em_ctz(high);

		if (EM_LIKELY((cls < EM_PACK_EXACT && align == 1 && find_short_in(pack.maps, region, cls, &found)) ||
		              find_in(pack.maps, region, cls, chunks, align, &found))) {
			take_found(pack, region, cls, chunks, &found);
			return found.first;
		}
		if (low)
			low &= low - 1;
		else
			high &= high - 1;
	}
	return EM_PACK_NONE;
}

void em_pack_join(struct em_pack pack, uint32_t first, uint32_t end)
{
	em_assert(em_pack_is_head(pack, first));
	for (uint32_t w = first / 64; w <= (end - 1) / 64; w++) {
		uint64_t heads = pack.maps->group[w].head & mask_of(w, first, end);

		if (w == first / 64)
			heads &= ~(1ull << first % 64);
		pack.maps->group[w].head &= ~heads;
		pack.record->blocks -= em_count(heads);
	}
}

void em_pack_give_chunks(struct em_pack pack, uint32_t first, uint32_t chunks)
{
	struct em_pack_maps *m = pack.maps;
	uint32_t start = first, end = first + chunks;

	em_assert(em_pack_is_head(pack, first) && em_pack_is_used(pack, first) && em_pack_length(pack, first) == chunks);
	if (EM_UNLIKELY(first > 0 && !em_pack_is_used(pack, first - 1))) {
		start = run_start(m, first);
		bin_remove(pack, start, first - start, EM_PACK_NONE);
	}
	if (EM_UNLIKELY(!em_pack_is_used(pack, end))) {
		uint32_t next = run_end(m, end);

		bin_remove(pack, end, next - end, start);
		end = next;
	}
	mark(m, first, chunks, false);
	m->group[first / 64].head &= ~(1ull << first % 64);
	bin_add(pack, start, end - start);
	em_add(pack.record->used_chunks, -chunks);
	pack.record->blocks--;
}

uint32_t em_pack_largest(struct em_pack pack)
{
	struct em_classes set = em_pack_classes(pack);
	uint32_t largest = 0;
	unsigned cls;

	if (!set.low && !set.high)
		return 0;
	cls = set.high ? 64 + em_log2(set.high) : em_log2(set.low);
	for (uint32_t w = 0; w < WORDS; w++)
		for (uint64_t starts = starts_in(pack.maps, w, cls); starts; starts &= starts - 1) {
			uint32_t start = w * 64 + em_ctz(starts), length = run_end(pack.maps, start) - start;

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
		used += em_count(m->group[w].used);
		heads += em_count(m->group[w].head);
	}
	if (~m->group[WORDS].used || ~m->group[WORDS].head)
		return "the group after the last is not shut";
	if (used != p.record->used_chunks + (CHUNKS - p.record->usable_chunks))
		return "used_chunks does not count the used bits";
	if (heads != p.record->blocks + p.record->parked + p.record->held)
		return "blocks, parked and held do not count the heads";
	return NULL;
}

static const char *check_runs(struct em_pack p)
{
	const struct em_pack_maps *m = p.maps;
	uint64_t bins[EM_PACK_CLASSES][BIN_WORDS] = {{0}};
	uint64_t classes[2] = {0};
	uint32_t chunk = 0;

	while (chunk < CHUNKS) {
		uint32_t end = chunk;

		while (end < CHUNKS && !em_pack_is_used(p, end))
			end++;
		if (end > chunk) {
			unsigned cls = em_pack_class(end - chunk);
			uint32_t region = chunk / 64 / EM_PACK_REGION_WORDS;

			bins[cls][region / 64] |= 1ull << region % 64;
			classes[cls / 64] |= 1ull << cls % 64;
		}
		chunk = end;
		if (chunk < p.record->usable_chunks && !em_pack_is_head(p, chunk))
			return "used chunks follow a free one without a head";
		while (chunk < CHUNKS && em_pack_is_used(p, chunk))
			chunk++;
	}
	if (memcmp(bins, m->bins, sizeof bins) != 0)
		return "a bin does not hold exactly the free runs of its class";
	if (classes[0] != p.record->classes[0] || classes[1] != p.record->classes[1])
		return "classes does not tell which bins hold runs";
	return NULL;
}

const char *em_pack_check(struct em_pack pack)
{
	const char *broken = check_words(pack);

	return broken ? broken : check_runs(pack);
}
