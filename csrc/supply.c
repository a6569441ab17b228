/* supply: where a domain's memory comes from: packs made, grown and returned, chunks taken and given, blocks parked.
 *
 *   a pack:  ABSENT --first of its kind--> SMALL --grows past 256 KB--> FULL --empty, and a spare exists--> ABSENT
 *            ABSENT --any other----------------------------------------> FULL
 *            ABSENT --a block larger than a pack--> SPAN, SPAN_TAIL... --freed--> ABSENT
 *
 * A block's memory is sought in this order: a parked block of its length; a run of the closest class; any run that holds it; the small
 * pack grown; a new pack. Everything here is called with the domain's lock held.
 */
#include "supply.h"
#include "error.h"

enum {
	FIT_PACKS = 4,      /* packs and groups looked at for a run that fits in the class below the safe one */
	FIT_GROUPS = 4,
	PARK_LEAST = 16 << 10, /* bytes that may be parked, and a 32nd of what is used */
	PARK_SHIFT = 5,
};

/* ---- packs: which ---- */

static bool is_present(const execmem_domain *d, uint32_t pack)
{
	return d->present[pack / 64] >> pack % 64 & 1;
}

/* The i-th pack a kind looks at: text from the low end up, data from the high end down, rodata from the middle down and then below the
 * high end, so that packs of one protection lie side by side and are one mapping. */
static uint32_t nth_choice(const execmem_domain *d, int kind, uint32_t i)
{
	uint32_t packs = d->map.packs;

	if (kind == EXECMEM_TEXT)
		return i;
	return kind == EXECMEM_DATA ? packs - 1 - i : (packs / 2 + packs - i) % packs;
}

/* The start of `count` absent packs side by side. At most 4,096 bits are looked at, before work that takes many times as long. */
static uint32_t find_absent(const execmem_domain *d, int kind, uint32_t count)
{
	uint32_t run = 0, previous = 0;

	for (uint32_t i = 0; i < d->map.packs; i++) {
		uint32_t pack = nth_choice(d, kind, i);

		if (i > 0 && pack != previous + 1 && pack + 1 != previous)
			run = 0; /* rodata went on at the high end */
		previous = pack;
		run = is_present(d, pack) ? 0 : run + 1;
		if (run == count)
			return kind == EXECMEM_TEXT ? pack + 1 - count : pack;
	}
	return EM_PACK_NONE;
}

static int window_full(const execmem_domain *d, uint64_t bytes)
{
	return em_error_set(
		EXECMEM_EWINDOW,
		"the window of domain \"%s\" (%llu MB) has no room for %llu more bytes side by side. Free blocks, or open a "
		"domain with a larger window.",
		d->ledger.header->name, (unsigned long long)d->map.packs * 2, (unsigned long long)bytes);
}

/* ---- packs: making ---- */

static void enter_pack(execmem_domain *d, uint32_t pack, int kind, uint8_t state)
{
	execmem_header *h = d->ledger.header;
	execmem_pack *p = &d->ledger.packs[pack];
	uint8_t generations = p->generations;

	*p = (execmem_pack){
		.address = (uintptr_t)d->map.window + em_domain_offset(pack, 0),
		.kind = (uint8_t)kind,
		.state = state,
		.born_ms = em_domain_ms(d),
		.generations = (uint8_t)(generations + (generations < 255)),
	};
	d->present[pack / 64] |= 1ull << pack % 64;
	h->packs_live++;
	h->packs_made++;
	if (pack >= h->packs_top)
		h->packs_top = pack + 1;
}

/* The pack's record now says FULL or SMALL with `usable` chunks. */
static void open_chunks(execmem_domain *d, uint32_t pack, uint32_t usable)
{
	struct em_pack p = em_ledger_pack(&d->ledger, pack);
	uint64_t before = p.record->classes;

	em_pack_grow(p, usable);
	em_index_update(&d->ledger.index[p.record->kind], pack, before, p.record->classes);
	em_ledger_event(&d->ledger, EXECMEM_EVENT_PACK, p.record->address, (uint64_t)usable << EM_CHUNK_SHIFT, em_domain_ms(d));
}

static void note_collapse(execmem_domain *d, uint32_t pack, bool huge)
{
	execmem_header *h = d->ledger.header;

	d->ledger.packs[pack].huge = huge;
	if (d->map.small_pages)
		return;
	if (!huge) {
		h->collapse_failures++;
		return;
	}
	h->collapses++;
	em_ledger_event(&d->ledger, EXECMEM_EVENT_COLLAPSE, d->ledger.packs[pack].address, EXECMEM_PACK_SIZE, em_domain_ms(d));
}

static int complete_pack(execmem_domain *d, uint32_t pack, int kind, uint64_t from)
{
	bool huge = false;
	int err = em_map_complete(&d->map, pack, kind, from, &huge);

	if (err < 0)
		return err;
	d->ledger.packs[pack].state = EXECMEM_PACK_FULL;
	note_collapse(d, pack, huge);
	open_chunks(d, pack, EXECMEM_PACK_CHUNKS);
	return 0;
}

static bool return_empties(execmem_domain *d);

/* Like find_absent; where there is none, packs that are kept though empty are returned first. */
static uint32_t make_absent(execmem_domain *d, int kind, uint32_t count)
{
	uint32_t pack = find_absent(d, kind, count);

	return pack == EM_PACK_NONE && return_empties(d) ? find_absent(d, kind, count) : pack;
}

static int make_pack(execmem_domain *d, int kind, uint64_t need)
{
	uint32_t pack = make_absent(d, kind, 1);
	bool small = d->packs_of[kind] == 0 && need <= EM_SUPPLY_SMALL_MAX;
	uint64_t usable = EM_SUPPLY_SMALL_MIN;
	bool huge = false;
	int err;

	if (pack == EM_PACK_NONE)
		return window_full(d, need);
	while (usable < need)
		usable *= 2;
	if (small)
		err = em_map_grow(&d->map, pack, kind, 0, usable);
	else
		err = em_map_complete(&d->map, pack, kind, 0, &huge);
	if (err < 0)
		return err;
	enter_pack(d, pack, kind, small ? EXECMEM_PACK_SMALL : EXECMEM_PACK_FULL);
	em_pack_init(em_ledger_pack(&d->ledger, pack));
	d->packs_of[kind]++;
	if (small)
		d->small[kind] = pack;
	else
		note_collapse(d, pack, huge);
	open_chunks(d, pack, small ? (uint32_t)(usable >> EM_CHUNK_SHIFT) : EXECMEM_PACK_CHUNKS);
	return 0;
}

static int grow_small(execmem_domain *d, int kind, uint64_t need)
{
	uint32_t pack = d->small[kind];
	uint64_t from = (uint64_t)d->ledger.packs[pack].usable_chunks << EM_CHUNK_SHIFT, to = from * 2;
	int err;

	while (to < from + need)
		to *= 2;
	if (to > EM_SUPPLY_SMALL_MAX) {
		err = complete_pack(d, pack, kind, from);
		if (err == 0)
			d->small[kind] = EM_PACK_NONE;
		return err;
	}
	err = em_map_grow(&d->map, pack, kind, from, to);
	if (err == 0)
		open_chunks(d, pack, (uint32_t)(to >> EM_CHUNK_SHIFT));
	return err;
}

/* Makes it likely that the next look finds `chunks`: grows the small pack, else makes a pack. */
static int make_room(execmem_domain *d, int kind, uint32_t chunks)
{
	uint64_t need = (uint64_t)chunks << EM_CHUNK_SHIFT;

	return d->small[kind] != EM_PACK_NONE ? grow_small(d, kind, need) : make_pack(d, kind, need);
}

/* ---- packs: taking and giving chunks ---- */

struct want {
	int kind;
	uint32_t chunks, align;
	uint32_t worst; /* a run this long holds the block wherever it starts */
	unsigned safe;  /* every run of this class and above is that long */
};

static bool take_from(execmem_domain *d, const struct want *w, unsigned cls, uint32_t pack, unsigned groups, uint32_t *first)
{
	struct em_pack p = em_ledger_pack(&d->ledger, pack);
	uint64_t before = p.record->classes;

	*first = em_pack_take(p, cls, w->chunks, w->align, groups);
	if (*first == EM_PACK_NONE)
		return false;
	if (p.record->classes != before)
		em_index_update(&d->ledger.index[w->kind], pack, before, p.record->classes);
	return true;
}

/* Looks through runs that may or may not hold the block: those of classes from the block's own up to the safe one. */
static bool take_unsure(execmem_domain *d, const struct want *w, uint32_t packs, unsigned groups, uint32_t *pack, uint32_t *first)
{
	for (unsigned cls = em_pack_class(w->chunks); cls < w->safe; cls++) {
		uint32_t at = em_index_next(&d->ledger.index[w->kind], cls, UINT32_MAX);

		for (uint32_t n = 0; n < packs && at != EM_PACK_NONE; n++) {
			if (take_from(d, w, cls, at, groups, first)) {
				*pack = at;
				return true;
			}
			at = em_index_next(&d->ledger.index[w->kind], cls, at);
		}
	}
	return false;
}

static void return_packs(execmem_domain *d, uint32_t first, uint32_t count)
{
	execmem_header *h = d->ledger.header;
	uint32_t ms = em_domain_ms(d);

	em_map_remove(&d->map, first, count);
	for (uint32_t pack = first; pack < first + count; pack++) {
		execmem_pack *p = &d->ledger.packs[pack];

		em_ledger_event(&d->ledger, EXECMEM_EVENT_RETURN, p->address, EXECMEM_PACK_SIZE, ms);
		em_ledger_forget_pack(&d->ledger, pack);
		*p = (execmem_pack){.kind = p->kind, .generations = p->generations};
		d->present[pack / 64] &= ~(1ull << pack % 64);
		h->packs_live--;
		h->packs_returned++;
	}
}

static void return_empty(execmem_domain *d, uint32_t pack)
{
	const execmem_pack *p = &d->ledger.packs[pack];

	em_index_update(&d->ledger.index[p->kind], pack, p->classes, 0);
	d->packs_of[p->kind]--;
	return_packs(d, pack, 1);
}

/* An empty pack: the small one stays, of full ones one a kind is kept, so that a block at the edge does not make and return a pack
 * each time. */
static void on_empty(execmem_domain *d, uint32_t pack)
{
	execmem_pack *p = &d->ledger.packs[pack];
	int kind = p->kind;
	uint32_t spare = d->spare[kind];

	if (p->state == EXECMEM_PACK_SMALL || spare == pack)
		return;
	if (spare == EM_PACK_NONE || d->ledger.packs[spare].state != EXECMEM_PACK_FULL || d->ledger.packs[spare].kind != kind ||
	    d->ledger.packs[spare].blocks > 0) {
		d->spare[kind] = pack;
		return;
	}
	return_empty(d, pack);
}

static void give_chunks(execmem_domain *d, uint32_t pack, uint32_t first)
{
	struct em_pack p = em_ledger_pack(&d->ledger, pack);
	uint64_t before = p.record->classes;

	em_pack_give(p, first);
	if (p.record->classes != before)
		em_index_update(&d->ledger.index[p.record->kind], pack, before, p.record->classes);
	if (EM_UNLIKELY(p.record->blocks + p.record->parked == 0))
		on_empty(d, pack);
}

/* ---- parked blocks ---- */

static void give_parked(execmem_domain *d, uint32_t pack, uint32_t first)
{
	em_ledger_drop_block(&d->ledger, pack, first);
	d->ledger.packs[pack].parked--;
	d->ledger.packs[pack].blocks++; /* what giving counts down */
	give_chunks(d, pack, first);
}

/* Gives all parked blocks of a kind; false when there were none. */
static bool empty_park(execmem_domain *d, int kind)
{
	uint32_t before = d->park[kind].chunks, pack, first;

	for (uint32_t chunks = 1; chunks <= EM_PARK_LENGTHS; chunks++)
		while (em_park_pop(&d->park[kind], chunks, &pack, &first))
			give_parked(d, pack, first);
	return before > 0;
}

/* A pack without live blocks is not kept for the sake of parked ones, unless it is the spare. */
static void on_idle(execmem_domain *d, uint32_t pack)
{
	const execmem_pack *p = &d->ledger.packs[pack];

	if (p->state == EXECMEM_PACK_FULL && p->parked > 0 && d->spare[p->kind] != pack)
		empty_park(d, p->kind);
}

void em_supply_give(execmem_domain *d, uint32_t pack, uint32_t first)
{
	give_chunks(d, pack, first);
	if (EM_UNLIKELY(d->ledger.packs[pack].blocks == 0))
		on_idle(d, pack);
}

bool em_supply_park(execmem_domain *d, uint32_t pack, uint32_t first, uint32_t chunks)
{
	execmem_pack *p = &d->ledger.packs[pack];
	struct em_park *park = &d->park[p->kind];
	uint64_t most = PARK_LEAST + (d->ledger.header->used_bytes >> PARK_SHIFT);

	if (((uint64_t)(park->chunks + chunks) << EM_CHUNK_SHIFT) > most || !em_park_push(park, pack, first, chunks))
		return false;
	p->blocks--;
	p->parked++;
	if (EM_UNLIKELY(p->blocks == 0))
		on_idle(d, pack);
	return true;
}

bool em_supply_unpark(execmem_domain *d, int kind, uint32_t chunks, uint32_t *pack, uint32_t *first)
{
	if (!em_park_pop(&d->park[kind], chunks, pack, first))
		return false;
	d->ledger.packs[*pack].parked--;
	d->ledger.packs[*pack].blocks++;
	return true;
}

int em_supply_take(execmem_domain *d, int kind, uint32_t chunks, uint32_t align, uint32_t *pack, uint32_t *first)
{
	uint32_t worst = chunks + align - 1 < EXECMEM_PACK_CHUNKS ? chunks + align - 1 : EXECMEM_PACK_CHUNKS;
	struct want w = {.kind = kind, .chunks = chunks, .align = align, .worst = worst, .safe = em_pack_class_for(worst)};
	unsigned cls;

	for (int grown = 0;;) {
		int err;

		if (take_unsure(d, &w, FIT_PACKS, FIT_GROUPS, pack, first))
			return 0;
		if (EM_LIKELY(em_index_best(&d->ledger.index[kind], w.safe, &cls, pack)) &&
		    take_from(d, &w, cls, *pack, EXECMEM_PACK_WORDS, first))
			return 0;
		/* A pack costs far more than looking at every run that might do, and than joining what is parked. */
		if (take_unsure(d, &w, UINT32_MAX, EXECMEM_PACK_WORDS, pack, first))
			return 0;
		if (empty_park(d, kind))
			continue;
		em_always(grown++ < 3); /* a grown pack, then a new one: the run that was asked for exists */
		err = make_room(d, kind, worst);
		if (err < 0)
			return err;
	}
}

/* Returns every pack without a live block, small ones and spares too; false when there was none. */
static bool return_empties(execmem_domain *d)
{
	uint64_t before = d->ledger.header->packs_returned;

	for (int kind = 0; kind < EXECMEM_KINDS; kind++)
		(void)empty_park(d, kind);
	for (uint32_t pack = 0; pack < d->ledger.header->packs_top; pack++) {
		execmem_pack *p = &d->ledger.packs[pack];

		if ((p->state != EXECMEM_PACK_SMALL && p->state != EXECMEM_PACK_FULL) || p->used_chunks > 0)
			continue;
		if (d->small[p->kind] == pack)
			d->small[p->kind] = EM_PACK_NONE;
		if (d->spare[p->kind] == pack)
			d->spare[p->kind] = EM_PACK_NONE;
		return_empty(d, pack);
	}
	return d->ledger.header->packs_returned > before;
}

/* ---- spans: blocks larger than a pack ---- */

static void enter_span(execmem_domain *d, int kind, uint64_t bytes, uint32_t first, uint32_t count)
{
	uint32_t chunks = (uint32_t)(bytes >> EM_CHUNK_SHIFT);

	for (uint32_t pack = first; pack < first + count; pack++) {
		execmem_pack *p = &d->ledger.packs[pack];
		uint64_t mapped = bytes - em_domain_offset(pack - first, 0);
		bool whole = mapped >= EXECMEM_PACK_SIZE;

		enter_pack(d, pack, kind, pack == first ? EXECMEM_PACK_SPAN : EXECMEM_PACK_SPAN_TAIL);
		p->span_packs = pack == first ? count : pack - first;
		if (whole)
			note_collapse(d, pack, em_map_huge(&d->map, em_domain_offset(pack, 0), EXECMEM_PACK_SIZE) == EXECMEM_PACK_SIZE);
		em_ledger_event(&d->ledger, EXECMEM_EVENT_PACK, p->address, whole ? EXECMEM_PACK_SIZE : mapped, em_domain_ms(d));
	}
	d->ledger.packs[first].usable_chunks = chunks;
	d->ledger.packs[first].used_chunks = chunks;
	d->ledger.packs[first].blocks = 1;
	em_ledger_maps_of(&d->ledger, first)->bits.group[0].head = 1; /* one record */
}

int em_supply_take_span(execmem_domain *d, int kind, uint64_t bytes, uint32_t *pack)
{
	uint32_t count = (uint32_t)((bytes + EXECMEM_PACK_SIZE - 1) >> EM_PACK_SHIFT);
	uint32_t first = count <= d->map.packs ? make_absent(d, kind, count) : EM_PACK_NONE;

	if (first == EM_PACK_NONE)
		return window_full(d, bytes);
	for (uint32_t i = 0; i < count; i++) {
		uint64_t rest = bytes - em_domain_offset(i, 0);
		bool huge;
		int err = rest >= EXECMEM_PACK_SIZE ? em_map_complete(&d->map, first + i, kind, 0, &huge)
		                                    : em_map_grow(&d->map, first + i, kind, 0, rest);

		if (err < 0) {
			if (i > 0)
				em_map_remove(&d->map, first, i);
			return err;
		}
	}
	enter_span(d, kind, bytes, first, count);
	*pack = first;
	return 0;
}

void em_supply_give_span(execmem_domain *d, uint32_t pack)
{
	return_packs(d, pack, d->ledger.packs[pack].span_packs);
}
