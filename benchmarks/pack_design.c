/* pack_design: which bookkeeping of free runs is quickest, and which wastes least? No executable memory is involved.
 *
 *     pack_design [--mix lognormal] [--live 100000] [--rounds 7] [--then MIX]
 *
 * prints one JSON object a design. A pair frees a random live block and allocates another of a size drawn from the mix; the
 * figures are taken after ten replacements for every live block (fewer for the plain scan, which is too slow for that). With
 * --then as many replacements of another mix follow: memory cut for the first must serve the second.
 *
 *   tlsf      two-level segregated fit: free runs in doubly linked lists by size class, records out of line, coalescing
 *   lifo      sizes rounded up to classes, a stack of free blocks for each, no splitting, no coalescing
 *   scan      one bitmap a pack, first fit over the packs in order of creation
 *   scan-skip the same, with an upper bound of each pack's longest free run, so that most packs are not looked at
 *   bins      csrc/pack.c and csrc/index.c: bitmaps only; per pack and size class a bitmap of the regions where a free run of
 *             that class starts, per class a bitmap of packs; lowest pack first, coalescing; when much is free, the emptiest
 *             pack is not filled again
 *   bins-park      the same; a freed block both of whose neighbours are used is kept whole for the next of its length
 *   bins-park-all  the same; every freed block is
 */
#include "harness/mix.h"
#include "index.h"
#include "pack.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
	CHUNKS = EXECMEM_PACK_CHUNKS,
	PACKS_MAX = EXECMEM_WINDOW_PACKS_MAX,
	NONE = UINT32_MAX,
	AGE = 10,
	AGE_SLOW_MAX = 100000, /* replacements in all, for designs too slow for AGE */
	PAIRS = 200000,
	PAIRS_SLOW = 2000,
	ROUNDS_MAX = 101,
	FIT_PACKS = 4, /* as in csrc/supply.c */
	FIT_REGIONS = 4,
	DRAIN_SHIFT = 4,
	PARK_LENGTHS = 64,
	PARK_DEPTH = 32,
	PARK_CHUNKS = 128, /* of one length, or two blocks */
};

struct design {
	const char *name;
	void (*open)(void);
	uint32_t (*alloc)(uint32_t chunks);            /* number of its first chunk, counted over all packs; NONE: full */
	void (*free)(uint32_t first, uint32_t chunks); /* `chunks` as asked for; most do not need it */
	void (*close)(void);
	uint64_t live_max; /* not run above */
	bool slow;
};

static uint32_t packs; /* made so far */

static void *zeroed(size_t count, size_t size)
{
	void *p = calloc(count, size); /* large: untouched pages cost nothing */

	if (p == NULL) {
		fprintf(stderr, "pack_design: no memory\n");
		exit(1);
	}
	return p;
}

/* ---- tlsf ---- */

static struct {
	uint32_t *span; /* at the first and the last chunk of a run or block: length * 2 + is_free */
	uint32_t *next, *previous;
	uint32_t heads[EM_PACK_CLASSES];
	struct em_classes classes;
} tlsf;

static void tlsf_open(void)
{
	tlsf.span = zeroed((size_t)PACKS_MAX * CHUNKS, sizeof(uint32_t));
	tlsf.next = zeroed((size_t)PACKS_MAX * CHUNKS, sizeof(uint32_t));
	tlsf.previous = zeroed((size_t)PACKS_MAX * CHUNKS, sizeof(uint32_t));
	tlsf.classes = (struct em_classes){0};
	packs = 0;
}

static void tlsf_close(void)
{
	free(tlsf.span);
	free(tlsf.next);
	free(tlsf.previous);
}

static void set_span(uint32_t first, uint32_t length, uint32_t is_free)
{
	tlsf.span[first] = tlsf.span[first + length - 1] = length * 2 + is_free;
}

static void push_run(uint32_t first, uint32_t length)
{
	unsigned cls = em_pack_class(length);
	uint32_t head = em_classes_have(tlsf.classes, cls) ? tlsf.heads[cls] : NONE;

	set_span(first, length, 1);
	tlsf.next[first] = head;
	tlsf.previous[first] = NONE;
	if (head != NONE)
		tlsf.previous[head] = first;
	tlsf.heads[cls] = first;
	*(cls < 64 ? &tlsf.classes.low : &tlsf.classes.high) |= 1ull << cls % 64;
}

static void unlink_run(uint32_t first)
{
	unsigned cls = em_pack_class(tlsf.span[first] / 2);
	uint32_t next = tlsf.next[first], previous = tlsf.previous[first];

	if (next != NONE)
		tlsf.previous[next] = previous;
	if (previous != NONE)
		tlsf.next[previous] = next;
	else if ((tlsf.heads[cls] = next) == NONE)
		*(cls < 64 ? &tlsf.classes.low : &tlsf.classes.high) &= ~(1ull << cls % 64);
}

static uint32_t tlsf_alloc(uint32_t chunks)
{
	unsigned cls = em_classes_next(tlsf.classes, em_pack_class_for(chunks));

	if (cls == EM_PACK_CLASSES) {
		if (packs == PACKS_MAX)
			return NONE;
		push_run(packs++ * CHUNKS, CHUNKS);
		cls = em_pack_class(CHUNKS);
	}
	uint32_t first = tlsf.heads[cls];
	uint32_t length = tlsf.span[first] / 2;
	unlink_run(first);
	if (length > chunks)
		push_run(first + chunks, length - chunks);
	set_span(first, chunks, 0);
	return first;
}

static void tlsf_free(uint32_t first, uint32_t chunks)
{
	chunks = tlsf.span[first] / 2;
	uint32_t end = first + chunks;

	if (first % CHUNKS != 0 && tlsf.span[first - 1] & 1) {
		first -= tlsf.span[first - 1] / 2;
		unlink_run(first);
	}
	if (end % CHUNKS != 0 && tlsf.span[end] & 1) {
		uint32_t next = end;
		end += tlsf.span[next] / 2;
		unlink_run(next);
	}
	push_run(first, end - first);
}

/* ---- lifo ---- */

static struct {
	uint32_t *next;
	uint8_t *cls;
	uint32_t heads[EM_PACK_CLASSES + 1];
	uint32_t sizes[EM_PACK_CLASSES + 1]; /* smallest length of each class */
	uint32_t bump, bump_end;
} lifo;

static void lifo_open(void)
{
	lifo.next = zeroed((size_t)PACKS_MAX * CHUNKS, sizeof(uint32_t));
	lifo.cls = zeroed((size_t)PACKS_MAX * CHUNKS, 1);
	for (uint32_t length = CHUNKS; length > 0; length--)
		lifo.sizes[em_pack_class(length)] = length;
	lifo.sizes[EM_PACK_CLASSES] = CHUNKS;
	for (unsigned cls = 0; cls <= EM_PACK_CLASSES; cls++)
		lifo.heads[cls] = NONE;
	lifo.bump = lifo.bump_end = packs = 0;
}

static void lifo_close(void)
{
	free(lifo.next);
	free(lifo.cls);
}

static void push_block(uint32_t first, unsigned cls)
{
	lifo.next[first] = lifo.heads[cls];
	lifo.heads[cls] = first;
}

static uint32_t lifo_alloc(uint32_t chunks)
{
	unsigned cls = em_pack_class_for(chunks);
	uint32_t first = lifo.heads[cls], size = lifo.sizes[cls];

	if (first != NONE) {
		lifo.heads[cls] = lifo.next[first];
		return first;
	}
	if (lifo.bump_end - lifo.bump < size) {
		if (lifo.bump_end > lifo.bump) {
			unsigned rest = em_pack_class(lifo.bump_end - lifo.bump);
			lifo.cls[lifo.bump] = (uint8_t)rest;
			push_block(lifo.bump, rest);
		}
		if (packs == PACKS_MAX)
			return NONE;
		lifo.bump = packs++ * CHUNKS;
		lifo.bump_end = lifo.bump + CHUNKS;
	}
	first = lifo.bump;
	lifo.bump += size;
	lifo.cls[first] = (uint8_t)cls;
	return first;
}

static void lifo_free(uint32_t first, uint32_t chunks)
{
	(void)chunks;
	push_block(first, lifo.cls[first]);
}

/* ---- scan ---- */

static struct {
	uint64_t (*used)[EXECMEM_PACK_WORDS];
	uint32_t longest[PACKS_MAX]; /* no free run of the pack is longer */
	bool skips;
} scan;

static void scan_open(void)
{
	scan.used = zeroed(PACKS_MAX, sizeof(*scan.used));
	scan.skips = false;
	packs = 0;
}

static void scan_skip_open(void)
{
	scan_open();
	scan.skips = true;
}

static void scan_close(void)
{
	free(scan.used);
}

static uint32_t find_bit(const uint64_t *map, uint32_t from, uint64_t flip)
{
	if (from >= CHUNKS)
		return CHUNKS;
	uint32_t word = from / 64;
	uint64_t bits = (map[word] ^ flip) & ~0ull << from % 64;
	while (bits == 0) {
		if (++word == EXECMEM_PACK_WORDS)
			return CHUNKS;
		bits = map[word] ^ flip;
	}
	return word * 64 + em_ctz(bits);
}

static uint32_t find_area(const uint64_t *map, uint32_t chunks, uint32_t *longest)
{
	*longest = 0;
	for (uint32_t start = 0;;) {
		start = find_bit(map, start, ~0ull);
		if (start + chunks > CHUNKS) {
			*longest = start < CHUNKS && CHUNKS - start > *longest ? CHUNKS - start : *longest;
			return NONE;
		}
		uint32_t busy = find_bit(map, start, 0);
		if (busy >= start + chunks)
			return start;
		*longest = busy - start > *longest ? busy - start : *longest;
		start = busy + 1;
	}
}

static void mark(uint64_t *map, uint32_t start, uint32_t count, bool used)
{
	while (count > 0) {
		uint32_t bit = start % 64, here = count < 64 - bit ? count : 64 - bit;
		uint64_t bits = ~0ull >> (64 - here) << bit;
		map[start / 64] = used ? map[start / 64] | bits : map[start / 64] & ~bits;
		start += here;
		count -= here;
	}
}

static uint32_t scan_alloc(uint32_t chunks)
{
	uint32_t start = NONE, pack, longest;

	for (pack = 0; pack < packs; pack++) {
		if (scan.skips && scan.longest[pack] < chunks)
			continue;
		start = find_area(scan.used[pack], chunks, &longest);
		if (start != NONE)
			break;
		scan.longest[pack] = longest;
	}
	if (start == NONE) {
		if (packs == PACKS_MAX)
			return NONE;
		pack = packs++;
		scan.longest[pack] = CHUNKS;
		start = 0;
	}
	mark(scan.used[pack], start, chunks, true);
	return pack * CHUNKS + start;
}

static void scan_free(uint32_t first, uint32_t chunks)
{
	uint64_t *used = scan.used[first / CHUNKS];
	uint32_t at = first % CHUNKS, end;

	mark(used, at, chunks, false);
	if (!scan.skips)
		return;
	end = find_bit(used, at, 0);
	while (at > 0 && !(used[(at - 1) / 64] >> (at - 1) % 64 & 1)) /* back to where the run that now holds the block starts */
		at -= at % 64 == 0 && used[at / 64 - 1] == 0 ? 64 : 1;
	if (end - at > scan.longest[first / CHUNKS])
		scan.longest[first / CHUNKS] = end - at;
}

/* ---- bins ---- */

static struct {
	execmem_pack *records;
	struct em_pack_maps *maps;
	struct em_index *index;
	uint64_t draining[PACKS_MAX / 64]; /* packs that the index is not told about; empty ones count as returned */
	uint64_t used;                     /* chunks */
	uint64_t open;                     /* free chunks of packs that are not draining */
	enum { PARK_NONE, PARK_ALONE, PARK_ALL } parks;
	uint32_t parked[PARK_LENGTHS][PARK_DEPTH];
	uint8_t parked_count[PARK_LENGTHS];
} bins;

static void bins_open(void)
{
	memset(&bins, 0, sizeof(bins));
	bins.records = zeroed(PACKS_MAX, sizeof(*bins.records));
	bins.maps = zeroed(PACKS_MAX, sizeof(*bins.maps));
	bins.index = zeroed(1, sizeof(*bins.index));
	packs = 0;
}

static void bins_park_open(void)
{
	bins_open();
	bins.parks = PARK_ALONE;
}

static void bins_park_all_open(void)
{
	bins_open();
	bins.parks = PARK_ALL;
}

static void bins_close(void)
{
	free(bins.records);
	free(bins.maps);
	free(bins.index);
}

static struct em_pack bins_pack(uint32_t pack)
{
	return (struct em_pack){&bins.records[pack], &bins.maps[pack]};
}

static bool is_draining(uint32_t pack)
{
	return bins.draining[pack / 64] >> pack % 64 & 1;
}

static void drain(uint32_t pack)
{
	em_index_update(bins.index, pack, em_pack_classes(bins_pack(pack)), (struct em_classes){0});
	bins.draining[pack / 64] |= 1ull << pack % 64;
	bins.open -= CHUNKS - bins.records[pack].used_chunks;
}

static void bins_give(uint32_t first, uint32_t chunks)
{
	uint32_t pack = first / CHUNKS;
	struct em_pack p = bins_pack(pack);
	struct em_classes before = em_pack_classes(p);

	em_pack_give_chunks(p, first % CHUNKS, chunks);
	bins.used -= chunks;
	if (is_draining(pack))
		return;
	bins.open += chunks;
	em_index_update(bins.index, pack, before, em_pack_classes(p));
	if (p.record->used_chunks == 0)
		drain(pack);
}

/* Gives the parked blocks of one pack, or (NONE) of all; false when there were none. */
static bool unpark(uint32_t pack)
{
	bool any = false;

	for (uint32_t length = 1; length <= PARK_LENGTHS; length++)
		for (uint32_t i = bins.parked_count[length - 1]; i-- > 0;) {
			uint32_t first = bins.parked[length - 1][i];
			if (pack != NONE && first / CHUNKS != pack)
				continue;
			bins.parked[length - 1][i] = bins.parked[length - 1][--bins.parked_count[length - 1]];
			bins_give(first, length);
			any = true;
		}
	return any;
}

static bool park(uint32_t first, uint32_t chunks)
{
	uint32_t pack = first / CHUNKS, depth = chunks > PARK_CHUNKS / 2 ? 2 : PARK_CHUNKS / chunks;

	if (chunks > PARK_LENGTHS || bins.parked_count[chunks - 1] >= (depth < PARK_DEPTH ? depth : PARK_DEPTH) || is_draining(pack) ||
	    (bins.parks == PARK_ALONE && !em_pack_is_alone(bins_pack(pack), first % CHUNKS, chunks)))
		return false;
	bins.parked[chunks - 1][bins.parked_count[chunks - 1]++] = first;
	return true;
}

/* The pack with the fewest used chunks is no longer filled. Looked for when there is more free than blocks of one mix ever leave. */
static void drain_one(void)
{
	uint32_t least = NONE;

	for (uint32_t pack = 0; pack < packs; pack++)
		if (!is_draining(pack) && bins.records[pack].used_chunks > 0 &&
		    (least == NONE || bins.records[pack].used_chunks <= bins.records[least].used_chunks))
			least = pack;
	if (least == NONE)
		return;
	drain(least);
	unpark(least);
}

/* The fullest draining pack that surely holds the block is filled again; false: there is none. */
static bool stop_draining(unsigned safe)
{
	uint32_t most = NONE;

	for (uint32_t pack = 0; pack < packs; pack++)
		if (is_draining(pack) && em_classes_next(em_pack_classes(bins_pack(pack)), safe) < EM_PACK_CLASSES &&
		    (most == NONE || bins.records[pack].used_chunks > bins.records[most].used_chunks))
			most = pack;
	if (most == NONE)
		return false;
	em_index_update(bins.index, most, (struct em_classes){0}, em_pack_classes(bins_pack(most)));
	bins.draining[most / 64] &= ~(1ull << most % 64);
	bins.open += CHUNKS - bins.records[most].used_chunks;
	return true;
}

static uint32_t bins_take(uint32_t pack, unsigned cls, uint32_t chunks, unsigned regions)
{
	struct em_pack p = bins_pack(pack);
	struct em_classes before = em_pack_classes(p);
	uint32_t first = em_pack_take(p, cls, chunks, 1, regions);

	if (first == EM_PACK_NONE)
		return NONE;
	em_index_update(bins.index, pack, before, em_pack_classes(p));
	bins.used += chunks;
	bins.open -= chunks;
	return pack * CHUNKS + first;
}

static uint32_t bins_take_unsure(uint32_t chunks, unsigned safe, uint32_t most, unsigned regions)
{
	for (unsigned cls = em_pack_class(chunks); cls < safe; cls++) {
		uint32_t at = em_index_next(bins.index, cls, UINT32_MAX);
		for (uint32_t n = 0; n < most && at != EM_PACK_NONE; n++) {
			uint32_t first = bins_take(at, cls, chunks, regions);
			if (first != NONE)
				return first;
			at = em_index_next(bins.index, cls, at);
		}
	}
	return NONE;
}

static uint32_t bins_alloc(uint32_t chunks)
{
	unsigned safe = em_pack_class_for(chunks), cls;
	uint32_t pack, first;

	if (chunks <= PARK_LENGTHS && bins.parked_count[chunks - 1] > 0)
		return bins.parked[chunks - 1][--bins.parked_count[chunks - 1]];
	first = bins_take_unsure(chunks, safe, FIT_PACKS, FIT_REGIONS);
	if (first != NONE)
		return first;
	if (em_index_best(bins.index, safe, &cls, &pack))
		return bins_take(pack, cls, chunks, EM_PACK_REGIONS);
	first = bins_take_unsure(chunks, safe, UINT32_MAX, EM_PACK_REGIONS);
	if (first != NONE)
		return first;
	if (stop_draining(safe) || unpark(NONE))
		return bins_alloc(chunks);
	if (packs == PACKS_MAX)
		return NONE;
	pack = packs++;
	em_pack_init(bins_pack(pack));
	em_pack_grow(bins_pack(pack), CHUNKS);
	em_index_update(bins.index, pack, (struct em_classes){0}, em_pack_classes(bins_pack(pack)));
	bins.open += CHUNKS;
	return bins_take(pack, em_pack_class(CHUNKS), chunks, EM_PACK_REGIONS);
}

static void bins_free(uint32_t first, uint32_t chunks)
{
	if (bins.parks != PARK_NONE && park(first, chunks))
		return;
	bins_give(first, chunks);
	/* What the pack's blocks take and what it has free: that much must be had elsewhere. */
	if (bins.open > CHUNKS && bins.open > CHUNKS / 2 + (bins.used >> DRAIN_SHIFT))
		drain_one();
}

/* ---- measuring ---- */

static const struct design designs[] = {
	{"tlsf", tlsf_open, tlsf_alloc, tlsf_free, tlsf_close, UINT64_MAX, false},
	{"lifo", lifo_open, lifo_alloc, lifo_free, lifo_close, UINT64_MAX, false},
	{"scan", scan_open, scan_alloc, scan_free, scan_close, 100000, true},
	{"scan-skip", scan_skip_open, scan_alloc, scan_free, scan_close, 100000, false},
	{"bins", bins_open, bins_alloc, bins_free, bins_close, UINT64_MAX, false},
	{"bins-park", bins_park_open, bins_alloc, bins_free, bins_close, UINT64_MAX, false},
	{"bins-park-all", bins_park_all_open, bins_alloc, bins_free, bins_close, UINT64_MAX, false},
};

struct block {
	uint32_t first;
	uint32_t size;
};

struct pair {
	uint32_t slot;
	uint32_t size;
};

struct run {
	const struct mix *mix;
	uint64_t live;
	struct rng rng;
	struct block *blocks;
	struct pair *pairs;
};

static uint32_t chunks_of(uint32_t size)
{
	return (size + EXECMEM_CHUNK - 1) / EXECMEM_CHUNK;
}

/* ns of a pair; negative: the packs ran out */
static double replace(const struct design *design, struct run *run, uint64_t count)
{
	struct timespec start, end;

	for (uint64_t i = 0; i < count; i++)
		run->pairs[i] = (struct pair){rng_below(&run->rng, (uint32_t)run->live), mix_draw(run->mix, &run->rng)};
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &start);
	for (const struct pair *pair = run->pairs; pair < run->pairs + count; pair++) {
		struct block *block = &run->blocks[pair->slot];
		design->free(block->first, chunks_of(block->size));
		block->size = pair->size;
		block->first = design->alloc(chunks_of(pair->size));
		if (block->first == NONE)
			return -1;
	}
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
	return ((double)(end.tv_sec - start.tv_sec) * 1e9 + (double)(end.tv_nsec - start.tv_nsec)) / (double)count;
}

static int grow_and_age(const struct design *design, struct run *run, uint64_t age)
{
	for (uint64_t i = 0; i < run->live; i++) {
		struct block *block = &run->blocks[i];
		block->size = mix_draw(run->mix, &run->rng);
		block->first = design->alloc(chunks_of(block->size));
		if (block->first == NONE)
			return -1;
	}
	for (uint64_t done = 0; done < age; done += PAIRS)
		if (replace(design, run, age - done < PAIRS ? age - done : PAIRS) < 0)
			return -1;
	return 0;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void report(const struct design *design, struct run *run, const char *mix, double ns, uint64_t age)
{
	static bool is_used[PACKS_MAX];
	uint64_t asked = 0, rounded = 0, used = 0;

	memset(is_used, 0, sizeof(is_used));
	for (uint64_t i = 0; i < run->live; i++) {
		asked += run->blocks[i].size;
		rounded += (uint64_t)chunks_of(run->blocks[i].size) * EXECMEM_CHUNK;
		is_used[run->blocks[i].first / CHUNKS] = true;
	}
	for (uint32_t i = 0; i < packs; i++)
		used += is_used[i];
	printf("{\"design\": \"%s\", \"mix\": \"%s\", \"live\": %lu, \"ns_per_pair\": %.1f, \"replacements\": %lu, "
	       "\"packs\": %lu, \"packs_made\": %u, \"live_bytes\": %lu, \"packs_per_live\": %.3f, \"packs_per_rounded\": %.3f}\n",
	       design->name, mix, run->live, ns, age, used, packs, asked, (double)used * EXECMEM_PACK_SIZE / (double)asked,
	       (double)used * EXECMEM_PACK_SIZE / (double)rounded);
	fflush(stdout);
}

static void measure(const struct design *design, const char *mix, const char *then, uint64_t live, int rounds)
{
	char label[64];
	struct run run = {.mix = mix_find(mix), .live = live};
	uint64_t age = design->slow && live * AGE > AGE_SLOW_MAX ? AGE_SLOW_MAX : live * AGE;
	double ns[ROUNDS_MAX];

	run.blocks = zeroed(live, sizeof(*run.blocks));
	run.pairs = zeroed(PAIRS, sizeof(*run.pairs));
	rng_seed(&run.rng, 1);
	snprintf(label, sizeof(label), strcmp(mix, then) == 0 ? "%s" : "%s then %s", mix, then);
	design->open();
	int failed = grow_and_age(design, &run, age);
	run.mix = mix_find(then);
	for (uint64_t done = 0; run.mix != mix_find(mix) && done < age && !failed; done += PAIRS)
		failed = replace(design, &run, age - done < PAIRS ? age - done : PAIRS) < 0;
	for (int i = 0; i < rounds && !failed; i++) {
		ns[i] = replace(design, &run, design->slow ? PAIRS_SLOW : PAIRS);
		failed = ns[i] < 0;
	}
	if (failed) {
		printf("{\"design\": \"%s\", \"mix\": \"%s\", \"live\": %lu, \"failed\": \"out of packs\"}\n", design->name, label, live);
	} else {
		qsort(ns, (size_t)rounds, sizeof(ns[0]), compare);
		report(design, &run, label, ns[rounds / 2], age);
	}
	design->close();
	free(run.pairs);
	free(run.blocks);
}

int main(int argc, char **argv)
{
	const char *mix = "lognormal", *then = NULL;
	uint64_t live = 100000;
	int rounds = 7;

	for (int i = 1; i + 1 < argc; i += 2) {
		if (strcmp(argv[i], "--mix") == 0)
			mix = argv[i + 1];
		else if (strcmp(argv[i], "--live") == 0)
			live = strtoull(argv[i + 1], NULL, 10);
		else if (strcmp(argv[i], "--then") == 0)
			then = argv[i + 1];
		else if (strcmp(argv[i], "--rounds") == 0)
			rounds = atoi(argv[i + 1]);
		else
			argc = 0;
	}
	then = then == NULL ? mix : then;
	if (argc % 2 == 0 || mix_find(mix) == NULL || mix_find(then) == NULL || live == 0 || rounds < 1 || rounds > ROUNDS_MAX) {
		fprintf(stderr, "usage: pack_design [--mix name] [--live n] [--rounds 1..%d] [--then name]\n", ROUNDS_MAX);
		return 2;
	}
	for (size_t i = 0; i < sizeof(designs) / sizeof(designs[0]); i++)
		if (live <= designs[i].live_max)
			measure(&designs[i], mix, then, live, rounds);
	return 0;
}
