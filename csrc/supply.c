/* supply: where a shard's memory comes from: packs made, grown, taken over and returned, chunks taken and given, blocks parked.
 *
 *   a pack:  ABSENT --first of its kind, or much is free elsewhere--> SMALL --grows past 256 KB--> FULL --empty, and a spare exists--> ABSENT
 *            ABSENT --any other----------------------------------------> FULL
 *            ABSENT --a block larger than a pack--> SPAN, SPAN_TAIL... --freed--> ABSENT
 *            FULL <--too much is free | nothing else fits--> FULL and draining: no block is put there
 *
 * A block's memory is sought in this order: a parked block of its length; a run of the closest class; any run that holds it; the small
 * pack grown; what is parked joined; a pack of another shard that has plenty; a new pack. Everything here is called with the shard's
 * lock held. It is given up while a pack is made or taken over: that takes long, and others need not wait. A thread is then counted
 * among the domain's `makers`, and a closing domain waits for it.
 */
#include "supply.h"
#include "error.h"

enum {
	DRAIN_SHIFT = 4,     /* a pack drains when in those that do not a 16th of what is used is free, */
	DRAIN_LEAST = 1 << 14, /* and half a pack */
	DRAIN_STEP = 1 << 10,  /* chunks freed before it is looked at again */
	FREE_SHIFT = 8,        /* much is free: a 256th of what is used, */
	FREE_LEAST = 1 << 11,  /* and a sixteenth of a pack */
	ROOMS = 1000,        /* attempts to make room for one block before others are believed to take it each time */
	LOOK = 4,            /* packs and groups looked at for a run that fits in the class below the safe one */
	PLENTY_SHIFT = 2,    /* a shard has plenty when it has a 4th of its chunks free, */
	PLENTY = 1 << 14,    /* and so many */
};

/* For counters that other shards look at without this one's lock. */
static void change(uint32_t *counter, int64_t by)
{
	__atomic_store_n(counter, (uint32_t)(*counter + by), __ATOMIC_RELAXED);
}

static void add_to(uint64_t *counter, int64_t by)
{
	__atomic_fetch_add(counter, (uint64_t)by, __ATOMIC_RELAXED);
}

/* ---- packs: which ---- */

static bool is_present(const execmem_domain *d, uint32_t pack)
{
	return d->present[pack / 64] >> pack % 64 & 1;
}

static void set_present(execmem_domain *d, uint32_t pack, bool present)
{
	uint64_t *word = &d->present[pack / 64], bit = 1ull << pack % 64;

	__atomic_store_n(word, present ? *word | bit : *word & ~bit, __ATOMIC_RELAXED); /* who checks looks without `packs` */
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

/* ---- leaving and coming back ---- */

void em_supply_leave(struct em_shard *s, uint64_t bytes)
{
	atomic_fetch_add(&s->domain->making_bytes, bytes);
	atomic_fetch_add(&s->domain->makers, 1);
	em_domain_leave(s);
}

int em_supply_come_back(struct em_shard *s, uint64_t bytes)
{
	execmem_domain *d = s->domain;
	bool open;

	em_sys_lock(s->lock);
	open = d->open;
	atomic_fetch_sub(&d->making_bytes, bytes);
	atomic_fetch_sub(&d->makers, 1); /* under the lock: who closes takes it once more */
	return open ? 0 : em_error_set(EXECMEM_ECLOSED, "the domain was closed meanwhile by another thread; open a new one.");
}

/* ---- packs: claiming addresses ---- */

static void unclaim(execmem_domain *d, uint32_t first, uint32_t packs)
{
	em_sys_lock(&d->packs);
	for (uint32_t pack = first; pack < first + packs; pack++)
		set_present(d, pack, false);
	em_sys_unlock(&d->packs);
}

/* Absent packs side by side become the shard's to make. EM_PACK_NONE: there are none; an error: the file could not grow. No shard's lock
 * is held, so that those of the packs' former shards can be taken. */
static int claim(struct em_shard *s, int kind, uint32_t packs, uint32_t *out)
{
	execmem_domain *d = s->domain;
	int err = 0;

	em_sys_lock(&d->packs);
	*out = packs <= d->map.packs ? find_absent(d, kind, packs) : EM_PACK_NONE;
	if (*out != EM_PACK_NONE && kind != EXECMEM_DATA)
		err = em_map_extend(&d->map, *out + packs);
	if (*out != EM_PACK_NONE && err == 0) {
		for (uint32_t pack = *out; pack < *out + packs; pack++)
			set_present(d, pack, true);
		if (*out + packs > d->ledger.header->packs_top)
			__atomic_store_n(&d->ledger.header->packs_top, *out + packs, __ATOMIC_RELAXED);
	}
	em_sys_unlock(&d->packs);
	if (err < 0)
		*out = EM_PACK_NONE;
	if (*out == EM_PACK_NONE)
		return err;
	for (uint32_t pack = *out; pack < *out + packs; pack++) {
		uint32_t former = em_domain_shard_of(d, pack);

		if (former == s->number)
			continue;
		em_sys_lock(&d->gates[former].lock); /* nobody there is looking at the pack when it changes hands */
		__atomic_store_n(&d->shard_of[pack], (uint8_t)s->number, __ATOMIC_RELEASE);
		em_sys_unlock(&d->gates[former].lock);
	}
	return 0;
}

/* ---- packs: making ---- */

static void enter_pack(struct em_shard *s, uint32_t pack, int kind, uint8_t state)
{
	execmem_domain *d = s->domain;
	execmem_header *h = d->ledger.header;
	execmem_pack *p = &d->ledger.packs[pack];
	uint8_t generations = p->generations;

	em_sys_lock(&d->packs); /* who looks for a spare reads records of others under it */
	*p = (execmem_pack){
		.address = em_domain_address(d, pack, 0),
		.kind = (uint8_t)kind,
		.state = state,
		.shard = (uint8_t)s->number,
		.born_ms = em_domain_ms(d),
		.generations = (uint8_t)(generations + (generations < 255)),
	};
	em_sys_unlock(&d->packs);
	add_to(&h->packs_live, 1);
	add_to(&h->packs_made, 1);
}

static void note(struct em_shard *s, uint32_t op, uint64_t address, uint64_t size)
{
	em_ledger_event(s->ring, s->books, op, address, (uint32_t)(size < UINT32_MAX ? size : UINT32_MAX), em_domain_ms(s->domain));
}

/* The pack's classes were `before`. */
static void update_index(struct em_shard *s, struct em_pack p, uint32_t pack, struct em_classes before)
{
	if (EM_LIKELY(!p.record->draining))
		em_index_update(&s->index[p.record->kind], pack, before, em_pack_classes(p));
}

/* The pack's record now says FULL or SMALL with `usable` chunks. */
static void open_chunks(struct em_shard *s, uint32_t pack, uint32_t usable)
{
	struct em_pack p = em_ledger_pack(&s->domain->ledger, pack);
	struct em_classes before = em_pack_classes(p);
	uint32_t more = usable - p.record->usable_chunks;

	em_pack_grow(p, usable);
	change(&s->usable_chunks[p.record->kind], more);
	change(&s->free_chunks[p.record->kind], more);
	update_index(s, p, pack, before);
	note(s, EXECMEM_EVENT_PACK, p.record->address, (uint64_t)usable << EM_CHUNK_SHIFT);
}

static void note_collapse(struct em_shard *s, uint32_t pack, bool huge)
{
	execmem_domain *d = s->domain;

	d->ledger.packs[pack].huge = huge;
	if (d->map.small_pages)
		return;
	add_to(huge ? &d->ledger.header->collapses : &d->ledger.header->collapse_failures, 1);
	if (huge)
		note(s, EXECMEM_EVENT_COLLAPSE, d->ledger.packs[pack].address, EXECMEM_PACK_SIZE);
}

static int complete_small(struct em_shard *s, uint32_t pack, int kind, uint64_t from)
{
	bool huge = false;
	int err = em_map_complete(&s->domain->map, pack, kind, from, &huge);

	if (err < 0)
		return err;
	s->small[kind] = EM_PACK_NONE;
	__atomic_store_n(&s->domain->ledger.packs[pack].state, EXECMEM_PACK_FULL, __ATOMIC_RELAXED);
	note_collapse(s, pack, huge);
	open_chunks(s, pack, EXECMEM_PACK_CHUNKS);
	return 0;
}

static int grow_small(struct em_shard *s, int kind, uint64_t need)
{
	uint32_t pack = s->small[kind];
	uint64_t from = (uint64_t)s->domain->ledger.packs[pack].usable_chunks << EM_CHUNK_SHIFT, to = from * 2;
	int err;

	while (to < from + need)
		to *= 2;
	if (s->packs_of[kind] > 1 && to > EM_SUPPLY_SMALL_MAX) /* a later one: by steps, and further */
		to = em_round_up(from + need, EM_SUPPLY_SMALL_MAX);
	if (to > (s->packs_of[kind] > 1 ? EM_SUPPLY_LATER_MAX : EM_SUPPLY_SMALL_MAX))
		return complete_small(s, pack, kind, from);
	err = em_map_grow(&s->domain->map, pack, kind, from, to);
	if (err == 0)
		open_chunks(s, pack, (uint32_t)(to >> EM_CHUNK_SHIFT));
	return err;
}

static bool return_all_empties(execmem_domain *d);

/* Like claim; where there is none, packs that are kept though empty are returned first. */
static int claim_some(struct em_shard *s, int kind, uint32_t packs, uint64_t bytes, uint32_t *out)
{
	int err = claim(s, kind, packs, out);

	if (err == 0 && *out == EM_PACK_NONE && return_all_empties(s->domain))
		err = claim(s, kind, packs, out);
	return err == 0 && *out == EM_PACK_NONE ? window_full(s->domain, bytes) : err;
}

/* A claimed pack that was mapped becomes the shard's, whose lock is held. */
static void adopt_new(struct em_shard *s, uint32_t pack, int kind, uint64_t usable, bool huge)
{
	bool small = usable < EXECMEM_PACK_SIZE;

	enter_pack(s, pack, kind, small ? EXECMEM_PACK_SMALL : EXECMEM_PACK_FULL);
	em_pack_init(em_ledger_pack(&s->domain->ledger, pack));
	s->packs_of[kind]++;
	if (small)
		s->small[kind] = pack;
	else
		note_collapse(s, pack, huge);
	open_chunks(s, pack, (uint32_t)(usable >> EM_CHUNK_SHIFT));
}

static bool much_is_free(const struct em_shard *s, int kind)
{
	return s->free_chunks[kind] >= FREE_LEAST &&
	       s->free_chunks[kind] >= (s->usable_chunks[kind] - s->free_chunks[kind]) >> FREE_SHIFT;
}

/* `need` bytes side by side, for a block of `bytes`. */
static int make_pack(struct em_shard *s, int kind, uint64_t need, uint64_t bytes)
{
	execmem_domain *d = s->domain;
	/* The first of a kind starts small; so does one that is wanted for its unbroken run only, when much is free elsewhere. */
	bool small = need <= EM_SUPPLY_SMALL_MAX && (s->packs_of[kind] == 0 || much_is_free(s, kind));
	bool huge = false, mapped;
	uint64_t usable = small ? EM_SUPPLY_SMALL_MIN : EXECMEM_PACK_SIZE;
	uint32_t pack;
	int err, closed;

	while (usable < need)
		usable *= 2;
	em_supply_leave(s, bytes);
	err = claim_some(s, kind, 1, need, &pack);
	if (err == 0)
		err = small ? em_map_grow(&d->map, pack, kind, 0, usable) : em_map_complete(&d->map, pack, kind, 0, &huge);
	mapped = err == 0;
	if (err < 0 && pack != EM_PACK_NONE)
		unclaim(d, pack, 1);
	closed = em_supply_come_back(s, bytes);
	if (mapped && closed == 0 && (!small || s->small[kind] == EM_PACK_NONE)) {
		adopt_new(s, pack, kind, usable, huge);
	} else if (mapped) { /* closed, or somebody who shares the shard was quicker */
		em_map_remove(&d->map, pack, 1);
		unclaim(d, pack, 1);
	}
	return closed < 0 ? closed : err;
}

struct want {
	int kind;
	uint32_t chunks, align;
	uint64_t bytes; /* of the block, which are counted already; a gap before it is in `chunks` alone */
	uint32_t worst; /* a run this long holds the block wherever it starts */
	unsigned own;  /* no run of a class below the block's own holds it */
	unsigned safe; /* every run of this class and above does, wherever it starts */
};

/* ---- packs: draining ---- */

/*
 * The closest fit wastes least while blocks of the same sizes come and go, but it keeps every pack in use. When the sizes change, or there are
 * fewer blocks than there were, packs stay that hold little. So when much is free the emptiest pack is left alone until its last block
 * is freed, or until nothing else will do (docs/allocator.md).
 */
static void undrain(struct em_shard *s, uint32_t pack)
{
	struct em_pack p = em_ledger_pack(&s->domain->ledger, pack);
	struct em_classes none = {0};

	if (!p.record->draining)
		return;
	p.record->draining = 0;
	s->shut_chunks[p.record->kind] -= p.record->usable_chunks - p.record->used_chunks;
	em_index_update(&s->index[p.record->kind], pack, none, em_pack_classes(p));
}

static void give_parked_of(struct em_shard *s, int kind, uint32_t pack);

static void drain(struct em_shard *s, uint32_t pack)
{
	struct em_pack p = em_ledger_pack(&s->domain->ledger, pack);
	struct em_classes none = {0};
	int kind = p.record->kind;

	em_index_update(&s->index[kind], pack, em_pack_classes(p), none);
	p.record->draining = 1;
	s->shut_chunks[kind] += p.record->usable_chunks - p.record->used_chunks;
	give_parked_of(s, kind, pack);
}

/* The emptiest pack with a block in it, the highest of several. */
static uint32_t pack_to_drain(const struct em_shard *s, int kind)
{
	const execmem_domain *d = s->domain;
	uint32_t best = EM_PACK_NONE, least = EXECMEM_PACK_CHUNKS;

	for (uint32_t pack = 0; pack < em_peek(d->ledger.header->packs_top); pack++) {
		const execmem_pack *p = &d->ledger.packs[pack];

		if (em_domain_shard_of(d, pack) == s->number && p->state == EXECMEM_PACK_FULL && p->kind == kind && !p->draining &&
		    !p->inherited && p->used_chunks > 0 && p->used_chunks <= least) {
			best = pack;
			least = p->used_chunks;
		}
	}
	return best;
}

/* Called when a block was given back. Looks at every pack, so not often. */
static void consider_draining(struct em_shard *s, int kind)
{
	const execmem_pack *packs = s->domain->ledger.packs;
	uint32_t open = s->free_chunks[kind] - s->shut_chunks[kind], spare;
	uint32_t enough = ((s->usable_chunks[kind] - s->free_chunks[kind]) >> DRAIN_SHIFT) + DRAIN_LEAST, pack;

	if (enough < EXECMEM_PACK_CHUNKS)
		enough = EXECMEM_PACK_CHUNKS; /* what stays must be able to hold what a pack holds */

	if (EM_LIKELY(open <= enough)) {
		s->drain_at[kind] = 0;
		return;
	}
	if (EM_LIKELY(open < s->drain_at[kind]))
		return;
	s->drain_at[kind] = open + DRAIN_STEP;
	spare = __atomic_load_n(&s->domain->spare[kind], __ATOMIC_RELAXED);
	if (spare != EM_PACK_NONE && em_domain_shard_of(s->domain, spare) == s->number && packs[spare].used_chunks == 0)
		open -= packs[spare].usable_chunks;
	pack = pack_to_drain(s, kind);
	if (pack != EM_PACK_NONE && open > enough)
		drain(s, pack);
}

/* ---- packs: taking over ---- */

/* Moves what the counters of the former shard say about the pack. Both shards are locked, nothing is parked there. */
static void move_counts(struct em_shard *from, struct em_shard *to, uint32_t pack)
{
	const struct em_ledger *l = &to->domain->ledger;
	const execmem_pack *p = &l->packs[pack];
	/* Those that were freed and are held are in no counter of blocks any more. */
	uint64_t held = em_ledger_bytes_in(l, pack, EXECMEM_BLOCK_HELD, p->held, true);
	uint64_t retired = em_ledger_bytes_in(l, pack, EXECMEM_BLOCK_RETIRED, p->retired, false);
	uint64_t used = ((uint64_t)p->used_chunks << EM_CHUNK_SHIFT) - held;
	uint32_t free = p->usable_chunks - p->used_chunks;
	int kind = p->kind;

	em_add(from->books->used_bytes, -used);
	em_add(to->books->used_bytes, used);
	em_add(from->books->retired_bytes, -retired);
	em_add(to->books->retired_bytes, retired);
	em_add(from->books->retired_blocks, -(uint64_t)p->retired);
	em_add(to->books->retired_blocks, p->retired);
	em_domain_set_plain(from, from->plain);
	em_domain_set_plain(to, to->plain);
	from->packs_of[kind]--;
	to->packs_of[kind]++;
	change(&from->usable_chunks[kind], -(int64_t)p->usable_chunks);
	change(&to->usable_chunks[kind], p->usable_chunks);
	change(&from->free_chunks[kind], -(int64_t)free);
	change(&to->free_chunks[kind], free);
}

static bool empty_park(struct em_shard *s, int kind);

/* The emptiest of the packs of a shard that hold the block for sure; a full one with plenty of room, unless in need. EM_PACK_NONE: none. */
static uint32_t pack_to_spare(const struct em_shard *s, const struct want *w, bool in_need)
{
	const execmem_domain *d = s->domain;
	uint32_t best = EM_PACK_NONE;
	uint32_t used = in_need ? EXECMEM_PACK_CHUNKS : EXECMEM_PACK_CHUNKS - (EXECMEM_PACK_CHUNKS >> PLENTY_SHIFT) + 1;

	for (uint32_t pack = 0; pack < em_peek(d->ledger.header->packs_top); pack++) {
		struct em_pack p = em_ledger_pack(&d->ledger, pack);
		bool full, small;

		if (em_domain_shard_of(d, pack) != s->number)
			continue;
		full = p.record->state == EXECMEM_PACK_FULL;
		small = p.record->state == EXECMEM_PACK_SMALL && in_need;
		/* A small one can be grown until it holds the block, perhaps. */
		if ((full || small) && !p.record->inherited && p.record->kind == w->kind && p.record->used_chunks < used &&
		    p.record->parked == 0 && /* of what is parked nothing is left: blocks in quarantine stay with their shard */
		    (small || em_classes_next(em_pack_classes(p), w->safe) < EM_PACK_CLASSES)) {
			best = pack;
			used = p.record->used_chunks;
		}
	}
	return best;
}

static void take_over(struct em_shard *from, struct em_shard *to, uint32_t pack)
{
	execmem_domain *d = to->domain;
	struct em_pack p = em_ledger_pack(&d->ledger, pack);
	struct em_classes classes = em_pack_classes(p), none = {0};

	if (from->shared) { /* the pack may hold what a forked process runs */
		em_domain_set_plain(to, false);
		to->shared_ms = to->shared && to->shared_ms > from->shared_ms ? to->shared_ms : from->shared_ms;
		to->shared_gone = from->shared_gone - 1; /* it looks for itself: one of the two may have missed something */
		to->shared = true;
	}
	undrain(from, pack);
	if (from->small[p.record->kind] == pack) {
		from->small[p.record->kind] = EM_PACK_NONE;
		to->small[p.record->kind] = pack; /* it has none, or would have grown it */
	}
	em_index_update(&from->index[p.record->kind], pack, classes, none);
	move_counts(from, to, pack);
	p.record->shard = (uint8_t)to->number;
	__atomic_store_n(&d->shard_of[pack], (uint8_t)to->number, __ATOMIC_RELEASE);
	em_index_update(&to->index[p.record->kind], pack, none, classes);
}

/* A shard must not hoard what another lacks. Looks without a lock, then makes sure. */
static bool has_plenty(const struct em_shard *s, int kind)
{
	uint32_t free = __atomic_load_n(&s->free_chunks[kind], __ATOMIC_RELAXED);

	return free >= PLENTY && free >= __atomic_load_n(&s->usable_chunks[kind], __ATOMIC_RELAXED) >> PLENTY_SHIFT;
}

static bool take_over_from(struct em_shard *from, struct em_shard *s, const struct want *w, bool in_need)
{
	struct em_shard *low = from->number < s->number ? from : s, *high = low == s ? from : s;
	uint32_t pack = EM_PACK_NONE;

	em_sys_lock(low->lock);
	em_sys_lock(high->lock);
	if (s->domain->open && (in_need ? s->small[w->kind] == EM_PACK_NONE : has_plenty(from, w->kind))) {
		(void)empty_park(from, w->kind);
		pack = pack_to_spare(from, w, in_need);
		if (pack != EM_PACK_NONE)
			take_over(from, s, pack);
	}
	em_domain_leave(high);
	em_domain_leave(low);
	return pack != EM_PACK_NONE;
}

/* True: a pack of another shard is ours now. The lock was given up; when the domain was closed meanwhile *closed is the error. */
static bool take_over_any(struct em_shard *s, const struct want *w, bool in_need, int *closed)
{
	execmem_domain *d = s->domain;
	uint32_t shards = atomic_load(&d->shard_count);
	bool left = false, took = false;

	*closed = 0;
	for (uint32_t i = 0; i < shards && !took; i++) {
		if (i == s->number || !(in_need || has_plenty(d->shards[i], w->kind)))
			continue;
		if (!left)
			em_supply_leave(s, w->bytes);
		left = true;
		took = take_over_from(d->shards[i], s, w, in_need);
	}
	if (left)
		*closed = em_supply_come_back(s, w->bytes);
	return took;
}

/* Makes it likely that the next look finds a run: grows the small pack, else gets or makes a pack. */
static int make_room(struct em_shard *s, const struct want *w)
{
	uint64_t need = (uint64_t)w->worst << EM_CHUNK_SHIFT;
	int closed, err;

	if (s->small[w->kind] != EM_PACK_NONE)
		return grow_small(s, w->kind, need);
	if (take_over_any(s, w, false, &closed) || closed < 0)
		return closed;
	err = make_pack(s, w->kind, need, w->bytes);
	if (err != EXECMEM_EWINDOW) /* else the addresses are all taken, and others may have room in theirs */
		return err;
	if (take_over_any(s, w, true, &closed) || closed < 0)
		return closed;
	return window_full(s->domain, need);
}

/* ---- packs: taking and giving chunks ---- */

static bool take_from(struct em_shard *s, const struct want *w, unsigned cls, uint32_t pack, unsigned groups, uint32_t *first)
{
	struct em_pack p = em_ledger_pack(&s->domain->ledger, pack);
	struct em_classes before = em_pack_classes(p);

	*first = em_pack_take(p, cls, w->chunks, w->align, groups);
	if (*first == EM_PACK_NONE)
		return false;
	change(&s->free_chunks[w->kind], -(int64_t)w->chunks);
	update_index(s, p, pack, before);
	return true;
}

/* Looks through runs that may or may not hold the block: those of classes from the block's own up to the safe one. */
static bool take_unsure(struct em_shard *s, const struct want *w, uint32_t packs, unsigned groups, uint32_t *pack, uint32_t *first)
{
	for (unsigned cls = w->own; cls < w->safe; cls++) {
		uint32_t at = em_index_next(&s->index[w->kind], cls, UINT32_MAX);

		for (uint32_t n = 0; n < packs && at != EM_PACK_NONE; n++) {
			if (take_from(s, w, cls, at, groups, first)) {
				*pack = at;
				return true;
			}
			at = em_index_next(&s->index[w->kind], cls, at);
		}
	}
	return false;
}

/* Opens the fullest of the draining packs that hold the block; false: none does. */
static bool undrain_for(struct em_shard *s, const struct want *w)
{
	const execmem_domain *d = s->domain;
	uint32_t best = EM_PACK_NONE, most = 0;

	if (EM_LIKELY(s->shut_chunks[w->kind] == 0))
		return false;
	for (uint32_t pack = 0; pack < em_peek(d->ledger.header->packs_top); pack++) {
		struct em_pack p = em_ledger_pack(&d->ledger, pack);

		if (em_domain_shard_of(d, pack) == s->number && p.record->draining && p.record->kind == w->kind &&
		    p.record->used_chunks > most && em_classes_next(em_pack_classes(p), w->safe) < EM_PACK_CLASSES) {
			best = pack;
			most = p.record->used_chunks;
		}
	}
	if (best != EM_PACK_NONE)
		undrain(s, best);
	return best != EM_PACK_NONE;
}

static void return_packs(struct em_shard *s, uint32_t first, uint32_t packs)
{
	execmem_domain *d = s->domain;

	em_map_remove(&d->map, first, packs);
	for (uint32_t pack = first; pack < first + packs; pack++) {
		execmem_pack *p = &d->ledger.packs[pack];

		note(s, EXECMEM_EVENT_RETURN, p->address, EXECMEM_PACK_SIZE);
		em_ledger_forget_pack(&d->ledger, pack);
		em_sys_lock(&d->packs); /* as in enter_pack */
		*p = (execmem_pack){.kind = p->kind, .generations = p->generations};
		em_sys_unlock(&d->packs);
	}
	add_to(&d->ledger.header->packs_live, -(int64_t)packs);
	add_to(&d->ledger.header->packs_returned, packs);
	unclaim(d, first, packs);
}

static void return_empty(struct em_shard *s, uint32_t pack)
{
	const execmem_pack *p = &s->domain->ledger.packs[pack];
	struct em_classes none = {0};

	undrain(s, pack);
	em_index_update(&s->index[p->kind], pack, em_pack_classes(em_ledger_pack(&s->domain->ledger, pack)), none);
	s->packs_of[p->kind]--;
	change(&s->usable_chunks[p->kind], -(int64_t)p->usable_chunks);
	change(&s->free_chunks[p->kind], -(int64_t)p->usable_chunks);
	return_packs(s, pack, 1);
}

/* An empty pack: the small one stays, of full ones one a kind is kept in a domain, so that a block at the edge does not make and
 * return a pack each time. */
static void on_empty(struct em_shard *s, uint32_t pack)
{
	execmem_domain *d = s->domain;
	const execmem_pack *p = &d->ledger.packs[pack];
	bool keep = p->state == EXECMEM_PACK_SMALL;

	if (!keep) {
		uint32_t spare;

		em_sys_lock(&d->packs);
		spare = d->spare[p->kind];
		keep = spare == pack || spare == EM_PACK_NONE || !is_present(d, spare);
		if (!keep) { /* is it empty still? Another shard's: a look without its lock will do */
			const execmem_pack *other = &d->ledger.packs[spare];

			keep = em_peek(other->used_chunks) > 0 || other->kind != p->kind || em_peek(other->state) != EXECMEM_PACK_FULL;
		}
		if (keep)
			d->spare[p->kind] = pack;
		em_sys_unlock(&d->packs);
	}
	if (keep)
		undrain(s, pack);
	else
		return_empty(s, pack);
}

static void give_chunks(struct em_shard *s, uint32_t pack, uint32_t first)
{
	struct em_pack p = em_ledger_pack(&s->domain->ledger, pack);
	struct em_classes before = em_pack_classes(p);
	uint32_t chunks = em_pack_give(p, first);

	change(&s->free_chunks[p.record->kind], chunks);
	if (EM_UNLIKELY(p.record->draining))
		s->shut_chunks[p.record->kind] += chunks;
	update_index(s, p, pack, before);
	if (EM_UNLIKELY(p.record->blocks + p.record->parked + p.record->held == 0))
		on_empty(s, pack);
}

/* ---- parked blocks ---- */

static void give_parked(struct em_shard *s, uint32_t pack, uint32_t first)
{
	em_ledger_drop_blocks(&s->domain->ledger, pack, first, first + 1);
	s->domain->ledger.packs[pack].parked--;
	s->domain->ledger.packs[pack].blocks++; /* what giving counts down */
	give_chunks(s, pack, first);
}

static void give_parked_of(struct em_shard *s, int kind, uint32_t pack)
{
	struct em_park *park = &s->park[kind];

	for (uint32_t chunks = 1; chunks <= EM_PARK_LENGTHS; chunks++) {
		uint32_t at, first, others[EM_PARK_DEPTH], kept = 0;

		while (em_park_pop(park, chunks, &at, &first))
			if (at == pack)
				give_parked(s, at, first);
			else
				others[kept++] = at * EXECMEM_PACK_CHUNKS + first;
		while (kept-- > 0) /* as they lay */
			em_park_push(park, others[kept] / EXECMEM_PACK_CHUNKS, others[kept] % EXECMEM_PACK_CHUNKS, chunks, false);
	}
}

/* Gives all parked blocks of a kind; false when there were none. */
static bool empty_park(struct em_shard *s, int kind)
{
	uint32_t before = s->park[kind].chunks, pack, first;

	for (uint32_t chunks = 1; chunks <= EM_PARK_LENGTHS; chunks++)
		while (em_park_pop(&s->park[kind], chunks, &pack, &first))
			give_parked(s, pack, first);
	return before > 0;
}

/* A pack without live blocks is not kept for the sake of parked ones, unless it is the spare. */
void em_supply_idle(struct em_shard *s, uint32_t pack)
{
	const execmem_pack *p = &s->domain->ledger.packs[pack];

	if (p->state == EXECMEM_PACK_FULL && p->parked > 0 && __atomic_load_n(&s->domain->spare[p->kind], __ATOMIC_RELAXED) != pack)
		empty_park(s, p->kind);
}

void em_supply_give(struct em_shard *s, uint32_t pack, uint32_t first)
{
	int kind = s->domain->ledger.packs[pack].kind;

	give_chunks(s, pack, first);
	consider_draining(s, kind);
	if (EM_UNLIKELY(s->domain->ledger.packs[pack].blocks == 0))
		em_supply_idle(s, pack);
}

void em_supply_give_front(struct em_shard *s, uint32_t pack, uint32_t first, uint32_t chunks)
{
	em_pack_cut(em_ledger_pack(&s->domain->ledger, pack), first + chunks);
	give_chunks(s, pack, first);
}

int em_supply_take(struct em_shard *s, int kind, uint32_t gap, uint32_t block, uint32_t align, uint32_t *pack, uint32_t *first)
{
	uint32_t chunks = gap + block;
	uint32_t worst = chunks + align - 1 < EXECMEM_PACK_CHUNKS ? chunks + align - 1 : EXECMEM_PACK_CHUNKS;
	struct want w = {.kind = kind,
	                 .chunks = chunks,
	                 .align = align,
	                 .bytes = (uint64_t)block << EM_CHUNK_SHIFT,
	                 .worst = worst,
	                 .own = em_pack_class(chunks),
	                 .safe = em_pack_class_for(worst)};
	unsigned cls;

	for (int rooms = 0;; rooms++) { /* what was made can be gone when the lock is back, but not for ever */
		int err;

		if (w.own < w.safe && take_unsure(s, &w, LOOK, LOOK, pack, first))
			return 0;
		if (EM_LIKELY(em_index_best(&s->index[kind], w.safe, &cls, pack)) &&
		    take_from(s, &w, cls, *pack, EXECMEM_PACK_WORDS, first))
			return 0;
		/* A pack costs far more than looking at every run that might do, and than joining what is parked. */
		if (w.own < w.safe && take_unsure(s, &w, UINT32_MAX, EXECMEM_PACK_WORDS, pack, first))
			return 0;
		if (undrain_for(s, &w) || empty_park(s, kind))
			continue;
		err = rooms < ROOMS ? make_room(s, &w) : window_full(s->domain, (uint64_t)worst << EM_CHUNK_SHIFT);
		if (err < 0)
			return err;
	}
}

bool em_supply_take_run(struct em_shard *s, int kind, uint32_t chunks, uint32_t *pack, uint32_t *first)
{
	struct want w = {.kind = kind,
	                 .chunks = chunks,
	                 .align = 1,
	                 .worst = chunks,
	                 .own = em_pack_class(chunks),
	                 .safe = em_pack_class_for(chunks)};
	unsigned cls;

	return em_index_best(&s->index[kind], w.safe, &cls, pack) && take_from(s, &w, cls, *pack, EXECMEM_PACK_WORDS, first);
}

/* Small ones and spares too. */
bool em_supply_return_empties(struct em_shard *s)
{
	execmem_domain *d = s->domain;
	bool any = false;

	for (int kind = 0; kind < EXECMEM_KINDS; kind++)
		(void)empty_park(s, kind);
	for (uint32_t pack = 0; pack < em_peek(d->ledger.header->packs_top); pack++) {
		execmem_pack *p = &d->ledger.packs[pack];

		if (em_domain_shard_of(d, pack) != s->number || p->inherited ||
		    (p->state != EXECMEM_PACK_SMALL && p->state != EXECMEM_PACK_FULL) || p->used_chunks > 0)
			continue;
		if (s->small[p->kind] == pack)
			s->small[p->kind] = EM_PACK_NONE;
		return_empty(s, pack);
		any = true;
	}
	return any;
}

static bool return_all_empties(execmem_domain *domain)
{
	execmem_domain *d;
	bool any = false;

	if (em_domain_enter_all(domain, &d) < 0)
		return false; /* closed meanwhile */
	for (uint32_t i = 0; i < atomic_load(&d->shard_count); i++)
		any |= em_supply_return_empties(d->shards[i]);
	em_domain_leave_all(d);
	return any;
}

/* ---- spans: blocks larger than a pack ---- */

static void enter_span(struct em_shard *s, int kind, uint64_t bytes, uint32_t first, uint32_t packs)
{
	execmem_domain *d = s->domain;
	uint32_t chunks = (uint32_t)(bytes >> EM_CHUNK_SHIFT);

	for (uint32_t pack = first; pack < first + packs; pack++) {
		execmem_pack *p = &d->ledger.packs[pack];
		uint64_t mapped = bytes - em_domain_offset(pack - first, 0);
		bool whole = mapped >= EXECMEM_PACK_SIZE;
		uint64_t huge;

		enter_pack(s, pack, kind, pack == first ? EXECMEM_PACK_SPAN : EXECMEM_PACK_SPAN_TAIL);
		p->span_packs = pack == first ? packs : pack - first;
		if (whole && (huge = em_map_huge(&d->map, em_domain_offset(pack, 0), EXECMEM_PACK_SIZE)) != EM_MAP_UNTOLD)
			note_collapse(s, pack, huge == EXECMEM_PACK_SIZE);
		note(s, EXECMEM_EVENT_PACK, p->address, whole ? EXECMEM_PACK_SIZE : mapped);
	}
	d->ledger.packs[first].usable_chunks = chunks;
	d->ledger.packs[first].used_chunks = chunks;
	d->ledger.packs[first].blocks = 1;
	em_ledger_maps_of(&d->ledger, first)->bits.group[0].head = 1; /* one record */
}

static int map_span(struct em_map *map, int kind, uint64_t bytes, uint32_t first, uint32_t packs)
{
	for (uint32_t i = 0; i < packs; i++) {
		uint64_t rest = bytes - em_domain_offset(i, 0);
		bool huge;
		int err = rest >= EXECMEM_PACK_SIZE ? em_map_complete(map, first + i, kind, 0, &huge)
		                                    : em_map_grow(map, first + i, kind, 0, rest);

		if (err < 0) {
			if (i > 0)
				em_map_remove(map, first, i);
			return err;
		}
	}
	return 0;
}

int em_supply_take_span(struct em_shard *s, int kind, uint64_t bytes, uint32_t *pack)
{
	execmem_domain *d = s->domain;
	uint32_t packs = (uint32_t)((bytes + EXECMEM_PACK_SIZE - 1) >> EM_PACK_SHIFT), first;
	int err, closed;

	em_supply_leave(s, bytes);
	err = claim_some(s, kind, packs, bytes, &first);
	if (err == 0) {
		err = map_span(&d->map, kind, bytes, first, packs);
		if (err < 0)
			unclaim(d, first, packs);
	}
	closed = em_supply_come_back(s, bytes);
	if (err == 0 && closed < 0) {
		em_map_remove(&d->map, first, packs);
		unclaim(d, first, packs);
	} else if (err == 0) {
		enter_span(s, kind, bytes, first, packs);
		*pack = first;
	}
	return closed < 0 ? closed : err;
}

void em_supply_give_span(struct em_shard *s, uint32_t pack)
{
	return_packs(s, pack, s->domain->ledger.packs[pack].span_packs);
}
