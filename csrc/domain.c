/* domain: the tree, its limits, and the making and returning of packs.
 *
 *   a pack:  ABSENT --first of its kind--> SMALL --grows past 256 KB--> FULL --empty, and a spare exists--> ABSENT
 *            ABSENT --any other----------------------------------------> FULL
 *            ABSENT --a block larger than a pack--> SPAN, SPAN_TAIL... --freed--> ABSENT
 *
 * Text packs are taken from the window's low end, the other kinds from its high end, so that each protection is one mapping.
 */
#include "domain.h"
#include "error.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
	CLOSED_KEPT = 1024, /* closed handles that answer ECLOSED before one is used again */
	FIT_PACKS = 4,      /* packs and groups looked at for a run that fits in the class below the safe one */
	FIT_GROUPS = 4,
	PARK_LEAST = 16 << 10, /* bytes that may be parked, and a 32nd of what is used */
	PARK_SHIFT = 5,
};

static struct em_lock tree_lock;
static execmem_domain *root;                    /* atomic; NULL until first used, and again in a forked child */
static execmem_domain *closed_first, *closed_last; /* oldest first */
static uint32_t closed_count;
static uint32_t domain_numbers;
static struct em_index_atlas atlas;
static uint8_t traps[EM_MAP_BLANK];
static bool started;
static int auto_mode; /* the first choice, once it was seen to work; 0: not yet */
uint32_t em_domain_forks;

/* ---- the start, and forks ---- */

/* Runs in a forked child, where only the forking thread lives on. Locks that others held are free now, the inherited domains
 * are frozen (their number of forks is not ours), and the default domain is to be a new one. */
static void in_forked_child(void)
{
	em_domain_forks++;
	tree_lock = (struct em_lock){0};
	__atomic_store_n(&root, NULL, __ATOMIC_RELEASE);
}

static int start_locked(void)
{
	const struct em_arch *arch = em_arch_host();

	if (started)
		return 0;
	if (!arch->supported)
		return em_error_set(EXECMEM_EUNSUPPORTED, "%s", arch->why);
	if (em_sys_page_size() != EM_PAGE)
		return em_error_set(EXECMEM_EUNSUPPORTED, "execmem needs pages of %d bytes, this kernel has %llu.", EM_PAGE,
		                    (unsigned long long)em_sys_page_size());
	arch->fill_traps(traps, sizeof traps);
	if (em_sys_at_fork(in_forked_child) < 0)
		return em_error_set(EXECMEM_ENOMEM, "could not register a fork handler: out of memory.");
	started = true;
	return 0;
}

/* ---- entering ---- */

int em_domain_enter(execmem_domain *domain, execmem_domain **out)
{
	execmem_domain *d = domain ? domain : __atomic_load_n(&root, __ATOMIC_ACQUIRE);

	if (EM_UNLIKELY(!d) && !(d = execmem_domain_root()))
		return execmem_error_code();
	if (EM_UNLIKELY(d->forks != em_domain_forks))
		return em_error_set(EXECMEM_EFORKED, "this domain was opened before fork() and belongs to the parent process; its code "
		                                     "runs here, but only the parent can change it. Open a new domain in the child.");
	em_sys_lock(&d->lock);
	if (EM_UNLIKELY(!d->open)) {
		em_sys_unlock(&d->lock);
		return em_error_set(EXECMEM_ECLOSED, "the domain is closed; open a new one.");
	}
	*out = d;
	return 0;
}

int em_domain_enter_owner(const void *address, execmem_domain **out)
{
	execmem_domain *owner = em_index_owner(&atlas, (uintptr_t)address);

	if (EM_LIKELY(owner != NULL))
		return em_domain_enter(owner, out);
	return em_error_set(EXECMEM_EFOREIGN,
	                    "address %p lies in no window of execmem in this process; pass the address that alloc or "
	                    "place gave.",
	                    address);
}

/* ---- limits ---- */

static bool charge_one(execmem_header *h, uint64_t bytes)
{
	uint64_t now = __atomic_load_n(&h->charged_bytes, __ATOMIC_RELAXED);

	do {
		if (bytes > __atomic_load_n(&h->limit, __ATOMIC_RELAXED) - (now < h->limit ? now : h->limit))
			return false;
	} while (!__atomic_compare_exchange_n(&h->charged_bytes, &now, now + bytes, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
	return true;
}

static void uncharge_until(execmem_domain *from, const execmem_domain *end, uint64_t bytes)
{
	for (; from != end; from = from->parent)
		if (from->limited)
			__atomic_fetch_sub(&from->ledger.header->charged_bytes, bytes, __ATOMIC_RELAXED);
}

int em_domain_charge(execmem_domain *domain, uint64_t bytes)
{
	for (execmem_domain *d = domain; d; d = d->parent) {
		execmem_header *h = d->ledger.header;

		if (EM_LIKELY(!d->limited) || charge_one(h, bytes))
			continue;
		uncharge_until(domain, d, bytes);
		return em_error_set(EXECMEM_ELIMIT,
		                    "domain \"%s\" has %llu of %llu bytes charged and cannot take %llu more. Free blocks or raise its "
		                    "limit.",
		                    h->name, (unsigned long long)__atomic_load_n(&h->charged_bytes, __ATOMIC_RELAXED),
		                    (unsigned long long)h->limit, (unsigned long long)bytes);
	}
	return 0;
}

void em_domain_uncharge(execmem_domain *domain, uint64_t bytes)
{
	uncharge_until(domain, NULL, bytes);
}

/* The tree's lock is held. */
static uint64_t sum_used(const execmem_domain *d)
{
	uint64_t sum = __atomic_load_n(&d->ledger.header->used_bytes, __ATOMIC_RELAXED);

	for (const execmem_domain *child = d->first_child; child; child = child->next_sibling)
		sum += sum_used(child);
	return sum;
}

uint64_t em_domain_charged(execmem_domain *domain)
{
	uint64_t sum;

	em_sys_lock(&tree_lock);
	sum = domain->open ? sum_used(domain) : 0;
	em_sys_unlock(&tree_lock);
	return sum;
}

static void lock_subtree(execmem_domain *d)
{
	em_sys_lock(&d->lock);
	for (execmem_domain *child = d->first_child; child; child = child->next_sibling)
		lock_subtree(child);
}

static void unlock_subtree(execmem_domain *d)
{
	for (execmem_domain *child = d->first_child; child; child = child->next_sibling)
		unlock_subtree(child);
	em_sys_unlock(&d->lock);
}

int execmem_domain_limit(execmem_domain *domain, uint64_t limit)
{
	execmem_domain *d;
	int err = em_domain_enter(domain, &d);

	if (err < 0)
		return err;
	em_domain_leave(d);
	em_sys_lock(&tree_lock);
	if (!d->open) {
		em_sys_unlock(&tree_lock);
		return em_error_set(EXECMEM_ECLOSED, "the domain is closed; open a new one.");
	}
	lock_subtree(d); /* nobody allocates there while the first count is made */
	if (!d->limited)
		d->ledger.header->charged_bytes = sum_used(d);
	d->limited = true;
	__atomic_store_n(&d->ledger.header->limit, limit, __ATOMIC_RELAXED);
	unlock_subtree(d);
	em_sys_unlock(&tree_lock);
	return 0;
}

/* ---- packs: which ---- */

static bool is_present(const execmem_domain *d, uint32_t pack)
{
	return d->present[pack / 64] >> pack % 64 & 1;
}

/* The start of `count` absent packs side by side: text lowest first, other kinds highest first. At most 4,096 bits are looked at,
 * before work that takes many times as long. */
static uint32_t find_absent(const execmem_domain *d, int kind, uint32_t count)
{
	uint32_t run = 0;

	for (uint32_t i = 0; i < d->map.packs; i++) {
		uint32_t pack = kind == EXECMEM_TEXT ? i : d->map.packs - 1 - i;

		if (pack % 64 == (kind == EXECMEM_TEXT ? 0 : 63) && d->present[pack / 64] == ~0ull) {
			i += 63;
			run = 0;
			continue;
		}
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

static int make_pack(execmem_domain *d, int kind, uint64_t need)
{
	uint32_t pack = find_absent(d, kind, 1);
	bool small = d->packs_of[kind] == 0 && need <= EM_DOMAIN_SMALL_MAX;
	uint64_t usable = EM_DOMAIN_SMALL_MIN;
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
	if (to > EM_DOMAIN_SMALL_MAX) {
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

/* An empty pack: the small one stays, of full ones one a kind is kept, so that a block at the edge does not make and return a pack
 * each time. */
static void on_empty(execmem_domain *d, uint32_t pack)
{
	execmem_pack *p = &d->ledger.packs[pack];
	int kind = p->kind;
	uint32_t spare = d->spare[kind];
	uint64_t classes = p->classes;

	if (p->state == EXECMEM_PACK_SMALL || spare == pack)
		return;
	if (spare == EM_PACK_NONE || d->ledger.packs[spare].state != EXECMEM_PACK_FULL || d->ledger.packs[spare].kind != kind ||
	    d->ledger.packs[spare].blocks > 0) {
		d->spare[kind] = pack;
		return;
	}
	em_index_update(&d->ledger.index[kind], pack, classes, 0);
	d->packs_of[kind]--;
	return_packs(d, pack, 1);
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

void em_domain_give(execmem_domain *d, uint32_t pack, uint32_t first)
{
	give_chunks(d, pack, first);
	if (EM_UNLIKELY(d->ledger.packs[pack].blocks == 0))
		on_idle(d, pack);
}

bool em_domain_park(execmem_domain *d, uint32_t pack, uint32_t first, uint32_t chunks)
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

bool em_domain_unpark(execmem_domain *d, int kind, uint32_t chunks, uint32_t *pack, uint32_t *first)
{
	if (!em_park_pop(&d->park[kind], chunks, pack, first))
		return false;
	d->ledger.packs[*pack].parked--;
	d->ledger.packs[*pack].blocks++;
	return true;
}

int em_domain_take(execmem_domain *d, int kind, uint32_t chunks, uint32_t align, uint32_t *pack, uint32_t *first)
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

int em_domain_take_span(execmem_domain *d, int kind, uint64_t bytes, uint32_t *pack)
{
	uint32_t count = (uint32_t)((bytes + EXECMEM_PACK_SIZE - 1) >> EM_PACK_SHIFT);
	uint32_t first = count <= d->map.packs ? find_absent(d, kind, count) : EM_PACK_NONE;

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

void em_domain_give_span(execmem_domain *d, uint32_t pack)
{
	return_packs(d, pack, d->ledger.packs[pack].span_packs);
}

/* ---- opening ---- */

static int choose_mode(int asked, int *out)
{
	static const int order[] = {EXECMEM_MODE_SYSCALL, EXECMEM_MODE_PROCMEM, EXECMEM_MODE_FLIP};
	int first = 0;
	char why[200] = "";

	if (asked < 0 || asked >= EXECMEM_MODES)
		return em_error_set(EXECMEM_EINVAL, "%d is no write mode; use one of enum execmem_write_mode.", asked);
	*out = asked ? asked : auto_mode;
	if (*out)
		return 0;
	for (size_t i = 0; i < sizeof order / sizeof order[0]; i++) {
		int err = em_map_works(order[i], traps);

		if (err == 0) {
			*out = order[i];
			if (i == 0) /* a fallback is looked at again: what refused may have been passing */
				auto_mode = order[i];
			return 0;
		}
		if (i == 0) {
			first = err;
			strncpy(why, execmem_error_text(), sizeof why - 1);
		}
	}
	return em_error_set(first, "no write mode works here. The first choice, syscall: %s", why);
}

static int add_leaves(uint64_t start, uint64_t size)
{
	for (uint64_t at = start; at < start + size; at += EXECMEM_PACK_SIZE) {
		void *leaf;
		int err;

		if (at >> EM_INDEX_ADDRESS_BITS)
			return em_error_set(EXECMEM_EUNSUPPORTED, "the window at %#llx lies beyond a 47-bit address space.",
			                    (unsigned long long)at);
		if (em_index_leaf_of(&atlas, at))
			continue;
		err = em_sys_map_table(sizeof(struct em_index_leaf), -1, &leaf);
		if (err < 0)
			return em_error_system(err, "map a table of addresses");
		em_index_add_leaf(&atlas, at, leaf);
	}
	return 0;
}

/* Forgets a window. Leaves stay mapped, for somebody may be looking an address up; the memory of empty ones goes back. */
static void remove_leaves(uint64_t start, uint64_t size)
{
	struct em_index_leaf *done = NULL;

	em_index_set_owner(&atlas, start, size, NULL);
	for (uint64_t at = start; at < start + size; at += EXECMEM_PACK_SIZE) {
		struct em_index_leaf *leaf = em_index_leaf_of(&atlas, at);

		if (leaf != done && em_index_leaf_is_empty(leaf))
			(void)em_sys_discard_table(leaf, sizeof *leaf);
		done = leaf;
	}
}

/* A handle that was never used, or one closed so long ago that nobody should hold it any more. */
static execmem_domain *new_handle(void)
{
	execmem_domain *d = closed_first;

	if (!d || closed_count < CLOSED_KEPT)
		return calloc(1, sizeof *d);
	closed_first = d->next_sibling;
	closed_count--;
	memset(d, 0, sizeof *d);
	return d;
}

static void keep_closed(execmem_domain *d)
{
	d->next_sibling = NULL;
	if (closed_first)
		closed_last->next_sibling = d;
	else
		closed_first = d;
	closed_last = d;
	closed_count++;
}

static int check_options(const execmem_options *o, struct em_map_options *out)
{
	uint64_t window = o->window ? o->window : o->near_address ? 256ull << 20 : 2048ull << 20;
	uint64_t largest = (uint64_t)EXECMEM_WINDOW_PACKS_MAX * EXECMEM_PACK_SIZE;

	if (window < EXECMEM_PACK_SIZE || window > largest)
		return em_error_set(EXECMEM_EINVAL, "a window of %llu bytes is not possible; ask for 2 MB to %llu MB.",
		                    (unsigned long long)window, (unsigned long long)(largest >> 20));
	if (o->name && strlen(o->name) >= sizeof((execmem_header *)0)->name)
		return em_error_set(EXECMEM_EINVAL, "a domain's name has at most %d bytes, this one has %llu.",
		                    (int)sizeof((execmem_header *)0)->name - 1, (unsigned long long)strlen(o->name));
	out->packs = (uint32_t)(window >> EM_PACK_SHIFT);
	out->shrink = !o->window;
	out->small_pages = o->small_pages;
	out->fallback = o->fallback;
	out->near_address = o->near_address;
	out->reach = o->reach ? o->reach : em_arch_host()->branch_reach;
	out->traps = traps;
	return choose_mode(o->write_mode, &out->mode);
}

static int open_locked(const execmem_options *o, execmem_domain *parent, execmem_domain **out)
{
	struct em_map_options options = {0};
	execmem_header *h;
	execmem_domain *d;
	int err = check_options(o, &options);

	if (err < 0)
		return err;
	d = new_handle();
	if (!d)
		return em_error_set(EXECMEM_ENOMEM, "out of memory for a domain's handle.");
	err = em_map_open(&d->map, &options);
	if (err < 0)
		goto undo_handle;
	err = em_ledger_open(&d->ledger, o->name ? o->name : parent ? "unnamed" : "root", d->map.packs);
	if (err < 0)
		goto undo_map;
	err = add_leaves((uintptr_t)d->map.window, em_domain_offset(d->map.packs, 0));
	if (err < 0)
		goto undo_ledger;
	d->arch = em_arch_host();
	d->forks = em_domain_forks;
	d->parent = parent;
	for (int kind = 0; kind < EXECMEM_KINDS; kind++)
		d->small[kind] = d->spare[kind] = EM_PACK_NONE;
	h = d->ledger.header;
	h->window = (uintptr_t)d->map.window;
	h->limit = o->limit ? o->limit : UINT64_MAX;
	d->limited = o->limit != 0;
	em_sys_lock_init(&d->lock);
	h->domain = ++domain_numbers;
	h->parent = parent ? parent->ledger.header->domain : 0;
	h->write_mode = (uint32_t)d->map.mode;
	strncpy(h->arch, d->arch->name, sizeof h->arch - 1);
	if (parent) {
		d->next_sibling = parent->first_child;
		parent->first_child = d;
	}
	d->open = true;
	em_index_set_owner(&atlas, h->window, em_domain_offset(d->map.packs, 0), d);
	*out = d;
	return 0;
undo_ledger:
	em_ledger_close(&d->ledger);
undo_map:
	em_map_close(&d->map);
undo_handle:
	keep_closed(d);
	return err;
}

static int mode_from_environment(int *out)
{
	const char *text = getenv("EXECMEM_WRITE_MODE");

	*out = EXECMEM_MODE_AUTO;
	if (!text || !*text)
		return 0;
	for (int mode = 0; mode < EXECMEM_MODES; mode++)
		if (strcmp(text, execmem_mode_name(mode)) == 0) {
			*out = mode;
			return 0;
		}
	return em_error_set(EXECMEM_EINVAL, "EXECMEM_WRITE_MODE=%s is no write mode; use auto, syscall, alias, procmem or flip.", text);
}

static execmem_domain *root_locked(void)
{
	execmem_domain *d = __atomic_load_n(&root, __ATOMIC_ACQUIRE);
	execmem_options options = {.name = "root"};

	if (d)
		return d;
	if (start_locked() < 0 || mode_from_environment(&options.write_mode) < 0 || open_locked(&options, NULL, &d) < 0)
		return NULL;
	__atomic_store_n(&root, d, __ATOMIC_RELEASE);
	return d;
}

execmem_domain *execmem_domain_root(void)
{
	execmem_domain *d;

	em_sys_lock(&tree_lock);
	d = root_locked();
	em_sys_unlock(&tree_lock);
	return d;
}

int execmem_domain_open(const execmem_options *options, execmem_domain **out)
{
	execmem_domain *parent;
	int err = 0;

	em_sys_lock(&tree_lock);
	parent = options->parent ? options->parent : root_locked();
	if (!parent)
		err = execmem_error_code();
	else if (parent->forks != em_domain_forks)
		err = em_error_set(EXECMEM_EFORKED, "the parent domain was opened before fork(); open a new one in the child.");
	else if (!parent->open)
		err = em_error_set(EXECMEM_ECLOSED, "the parent domain is closed.");
	else
		err = open_locked(options, parent, out);
	em_sys_unlock(&tree_lock);
	return err;
}

/* ---- closing ---- */

/* Refuses, or gives everything back. Children first. The tree's lock is held. */
static int close_locked(execmem_domain *d, bool force)
{
	execmem_domain **link;
	execmem_header *h;
	uint64_t own = 0;

	if (d->forks != em_domain_forks)
		return em_error_set(EXECMEM_EFORKED, "only the process that opened a domain can close it; it ends with the process.");
	if (!d->open)
		return em_error_set(EXECMEM_ECLOSED, "the domain is closed already.");
	h = d->ledger.header;
	if (!d->parent)
		return em_error_set(EXECMEM_EBUSY, "the root domain lives as long as the process; free its blocks instead.");
	if (!force && d->first_child)
		return em_error_set(EXECMEM_EBUSY, "domain \"%s\" has children; close them first, or force.", h->name);
	em_sys_lock(&d->lock);
	if (!force && h->live_blocks) {
		em_error_set(EXECMEM_EBUSY, "domain \"%s\" has %llu live blocks; free them first, or force.", h->name,
		             (unsigned long long)h->live_blocks);
		em_sys_unlock(&d->lock);
		return EXECMEM_EBUSY;
	}
	em_sys_unlock(&d->lock);
	while (d->first_child)
		(void)close_locked(d->first_child, true);
	em_sys_lock(&d->lock);
	d->open = false;
	own = h->used_bytes;
	uncharge_until(d->parent, NULL, own);
	remove_leaves(h->window, em_domain_offset(d->map.packs, 0));
	em_map_close(&d->map);
	em_ledger_close(&d->ledger);
	em_sys_unlock(&d->lock);
	for (link = &d->parent->first_child; *link != d; link = &(*link)->next_sibling)
		;
	*link = d->next_sibling;
	keep_closed(d);
	return 0;
}

int execmem_domain_close(execmem_domain *domain, int force)
{
	int err;

	if (!domain)
		return em_error_set(EXECMEM_EINVAL, "execmem_domain_close needs a domain; the root cannot be closed.");
	em_sys_lock(&tree_lock);
	err = close_locked(domain, force);
	em_sys_unlock(&tree_lock);
	return err;
}

int execmem_probe(int write_mode)
{
	int mode, err;

	em_sys_lock(&tree_lock);
	err = start_locked();
	if (err == 0)
		err = choose_mode(write_mode, &mode);
	if (err == 0)
		err = em_map_works(mode, traps);
	em_sys_unlock(&tree_lock);
	return err;
}

const char *execmem_arch_name(void)
{
	return em_arch_host()->name;
}
