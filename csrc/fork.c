/* fork: see fork.h. */
#include "fork.h"
#include "grace.h"
#include "quarantine.h"
#include "supply.h"

enum { WITNESSES = 64 }; /* a descriptor each, and a system call a tick; a server seldom has more workers */

struct witness { /* children that were forked within a span of time, as long as one is left */
	int fd;
	uint64_t first_ms, last_ms; /* of these forks; last_ms 0: none yet */
};

static struct {
	struct em_lock lock; /* the last in the order but the one that stops threads; held while the process forks */
	uint32_t count;
	_Atomic uint32_t gone; /* grows when a witness goes */
	uint64_t forked_ms;    /* the last fork: a time that is later than all that em_block_stamp gave before */
	void *page;            /* of the last witness, for the next child: while the process forks, or until it can be unmapped */
	bool copied;           /* the child finds a copy of each ledger; likewise */
	struct witness all[WITNESSES];
	struct witness blind; /* forks that had none: their children are taken to live for ever */
} seen = {.lock = {.rank = EM_RANK_FORK}};

/* ---- witnesses ---- */

/* As long as this process has the page, children seem to be left. */
static void drop_page(void)
{
	if (seen.page && em_sys_release(seen.page, EM_PAGE) == 0)
		seen.page = NULL; /* else another time */
}

/* Forgets witnesses that nobody can see any more. The lock is held. */
static void look(void)
{
	uint32_t left = 0;

	drop_page();
	for (uint32_t i = 0; i < seen.count; i++)
		if (em_sys_seal_writing(seen.all[i].fd) == 0)
			em_sys_close(seen.all[i].fd);
		else
			seen.all[left++] = seen.all[i];
	if (left < seen.count)
		atomic_fetch_add(&seen.gone, 1);
	seen.count = left;
}

static int open_witness(void)
{
	struct witness w = {.fd = -1};
	int err = em_sys_memfd("execmem-witness", false, &w.fd);

	if (err < 0)
		return err;
	err = em_sys_resize(w.fd, EM_PAGE);
	if (err < 0)
		em_sys_close(w.fd);
	else
		seen.all[seen.count++] = w;
	return err;
}

/* Maps the page that the child will have: of a new witness; where there are many, of the youngest. A page that could not be unmapped is
 * the youngest's, and serves again. */
static void call_witness(void)
{
	uint64_t now = em_sys_milliseconds();
	struct witness *w = &seen.blind;

	look();
	seen.forked_ms = now > seen.forked_ms ? now : seen.forked_ms + 1;
	if (!seen.page && seen.count < WITNESSES)
		(void)open_witness(); /* refused: the youngest will do */
	if (seen.page || (seen.count > 0 && em_sys_map_table(EM_PAGE, seen.all[seen.count - 1].fd, &seen.page) == 0))
		w = &seen.all[seen.count - 1];
	w->first_ms = w->last_ms ? w->first_ms : seen.forked_ms;
	w->last_ms = seen.forked_ms;
}

static uint32_t ms_of(const execmem_domain *d, uint64_t ms)
{
	uint64_t age = ms > d->ledger.epoch_ms ? ms - d->ledger.epoch_ms : 0;

	return age < UINT32_MAX ? (uint32_t)age : UINT32_MAX;
}

/* ---- the fork ---- */

static void lock_books(execmem_domain *d)
{
	em_domain_lock_all(d);
	em_sys_lock(&d->packs);
	em_sys_lock(&d->names);
	for (execmem_domain *child = d->first_child; child; child = child->next_sibling)
		lock_books(child);
}

static void unlock_books(execmem_domain *d)
{
	for (execmem_domain *child = d->first_child; child; child = child->next_sibling)
		unlock_books(child);
	em_sys_unlock(&d->names);
	em_sys_unlock(&d->packs);
	em_domain_leave_all(d);
}

/* A ledger in a file is shared as well; the child gets a copy, made before it is there to see a change. */
static bool copy_ledgers(execmem_domain *d)
{
	bool done = em_ledger_copy(&d->ledger, &d->copied_ledger) == 0;

	for (execmem_domain *child = d->first_child; done && child; child = child->next_sibling)
		done = copy_ledgers(child);
	return done;
}

static void close_copies(execmem_domain *d)
{
	em_sys_close(d->copied_ledger);
	d->copied_ledger = -1;
	for (execmem_domain *child = d->first_child; child; child = child->next_sibling)
		close_copies(child);
}

static void prepare(execmem_domain *root)
{
	if (root)
		lock_books(root);
	em_grace_lock();
	em_sys_lock(&seen.lock);
	if (!root)
		return;
	call_witness();
	seen.copied = copy_ledgers(root);
}

static void share(execmem_domain *d)
{
	for (uint32_t i = 0; i < atomic_load(&d->shard_count) && em_map_has_file(d->map.mode); i++) {
		struct em_shard *s = d->shards[i];

		if (!s->shared) /* else it may hold what children could run that this fork found gone */
			s->shared_gone = atomic_load(&seen.gone);
		em_domain_set_plain(s, false);
		s->shared = true;
		s->shared_ms = ms_of(d, seen.forked_ms);
	}
	for (execmem_domain *child = d->first_child; child; child = child->next_sibling)
		share(child);
}

static void in_parent(execmem_domain *root)
{
	if (root) {
		drop_page();
		share(root);
		close_copies(root);
	}
	em_sys_unlock(&seen.lock);
	em_grace_unlock();
	if (root)
		unlock_books(root);
}

/* ---- the child ---- */

/* The thread that made these packs is not here, and nobody else has heard of them. */
static void forget_unfinished(execmem_domain *d)
{
	uint64_t bytes = atomic_exchange(&d->making_bytes, 0), rest = bytes;

	for (uint32_t pack = 0; pack < d->map.packs; pack++)
		if (d->present[pack / 64] >> pack % 64 & 1 && d->ledger.packs[pack].state == EXECMEM_PACK_ABSENT) {
			em_map_forget(&d->map, pack);
			d->present[pack / 64] &= ~(1ull << pack % 64);
		}
	atomic_store(&d->makers, 0);
	for (uint32_t i = 0; i < atomic_load(&d->shard_count); i++) {
		uint64_t *used = &d->ledger.shards[i].used_bytes, part = *used < rest ? *used : rest;

		*used -= part;
		rest -= part;
	}
	if (d->charged)
		em_domain_uncharge_slow(d, bytes);
}

static bool is_shared(const execmem_domain *d, int kind)
{
	return em_map_has_file(d->map.mode) && kind != EXECMEM_DATA;
}

/* No block goes to an inherited pack: the shards know of none that has room. */
static void inherit_packs(execmem_domain *d)
{
	for (uint32_t pack = 0; pack < d->ledger.header->packs_top; pack++)
		if (d->ledger.packs[pack].state != EXECMEM_PACK_ABSENT && is_shared(d, d->ledger.packs[pack].kind)) {
			d->ledger.packs[pack].inherited = 1;
			d->ledger.packs[pack].draining = 0;
		}
	for (uint32_t i = 0; i < atomic_load(&d->shard_count); i++) {
		struct em_shard *s = d->shards[i];

		s->shared = s->inherits = true;
		em_domain_set_plain(s, false);
		s->undrained = false;
		em_quarantine_inherit(s);
		for (int kind = 0; kind < EXECMEM_KINDS; kind++)
			if (is_shared(d, kind)) {
				s->index[kind] = (struct em_index){0};
				s->park[kind] = (struct em_park){0};
				s->small[kind] = EM_PACK_NONE;
				s->packs_of[kind] = s->usable_chunks[kind] = s->free_chunks[kind] = 0;
				s->shut_chunks[kind] = s->drain_at[kind] = 0;
			}
		atomic_store(&d->home[i], 0); /* the next to come gets a shard that inherits nothing, and is quicker */
	}
	for (int kind = 0; kind < EXECMEM_KINDS; kind++)
		if (is_shared(d, kind))
			d->spare[kind] = EM_PACK_NONE;
}

/* Takes the books over, and cuts the ways into the parent's memory. */
static void own_memory(execmem_domain *d, bool *done)
{
	if (*done)
		*done = em_ledger_become(&d->ledger, d->copied_ledger) == 0 && em_map_inherit(&d->map) == 0;
	else
		em_sys_close(d->copied_ledger);
	d->copied_ledger = -1;
	for (execmem_domain *child = d->first_child; child; child = child->next_sibling)
		own_memory(child, done);
}

static void inherit(execmem_domain *d, uint32_t forks)
{
	for (uint32_t i = 0; i < EM_SHARDS; i++)
		d->gates[i].lock = (struct em_lock){.rank = d->gates[i].lock.rank};
	d->admin = (struct em_lock){.rank = EM_RANK_ADMIN};
	d->packs = (struct em_lock){.rank = EM_RANK_PACKS};
	d->names = (struct em_lock){.rank = EM_RANK_NAMES};
	forget_unfinished(d);
	for (uint32_t i = 0; i < atomic_load(&d->shard_count); i++)
		d->shards[i]->dice_left = 0; /* the parent will draw what is left there */
	if (em_map_has_file(d->map.mode))
		inherit_packs(d);
	d->forks = forks;
	for (execmem_domain *child = d->first_child; child; child = child->next_sibling)
		inherit(child, forks);
}

/* What the parent's code is written through is no business of a child's, also when it cannot go on with the domains. */
static void shut_doors(execmem_domain *d)
{
	em_map_inherit(&d->map);
	for (execmem_domain *child = d->first_child; child; child = child->next_sibling)
		shut_doors(child);
}

static bool in_child(execmem_domain *root, uint32_t forks)
{
	bool done = seen.copied;

	for (uint32_t i = 0; i < seen.count; i++) /* of the parent's children; the page of our own stays mapped */
		em_sys_close(seen.all[i].fd);
	seen.lock = (struct em_lock){.rank = EM_RANK_FORK};
	seen.count = 0;
	seen.page = NULL;
	seen.blind = (struct witness){0};
	em_grace_inherit();
	if (!root)
		return true;
	own_memory(root, &done);
	if (done)
		inherit(root, forks);
	else
		shut_doors(root);
	return done;
}

const struct em_domain_at_fork em_domain_at_fork = {prepare, in_parent, in_child};

/* ---- blocks that both see ---- */

static bool release_block(struct em_shard *s, uint32_t pack, uint32_t first)
{
	execmem_domain *d = s->domain;
	execmem_pack *p = &d->ledger.packs[pack];
	bool span = p->state == EXECMEM_PACK_SPAN;
	uint32_t chunks = span ? p->usable_chunks : em_pack_length(em_ledger_pack(&d->ledger, pack), first);
	struct em_poke where = em_domain_where(d, pack);

	if (em_poke_blank(&where, em_domain_offset(pack, first), (uint64_t)chunks << EM_CHUNK_SHIFT) < 0)
		return false; /* the system refuses: later */
	p->held--;
	p->blocks++; /* what giving counts down */
	em_ledger_drop_blocks(&d->ledger, pack, first, first + 1);
	if (span)
		em_supply_give_span(s, pack);
	else
		em_supply_give(s, pack, first);
	return true;
}

/* The forks whose children are left, in times of a domain. */
struct sight {
	uint32_t count;
	struct {
		uint32_t first, last;
	} forks[WITNESSES + 1];
};

static bool is_in_sight(const struct sight *sight, const execmem_block *held)
{
	uint32_t born = held->name, freed = held->born_ms;

	for (uint32_t i = 0; i < sight->count; i++)
		if (born <= sight->forks[i].last && freed >= sight->forks[i].first)
			return true;
	return false;
}

/* Of a pack, what no child that is left can run. */
static void release_pack(struct em_shard *s, uint32_t pack, const struct sight *sight, bool *refused)
{
	const struct em_ledger *l = &s->domain->ledger;
	const execmem_pack *p = &l->packs[pack];

	for (uint32_t chunk = 0; chunk < EXECMEM_PACK_CHUNKS && p->held > 0; chunk++) {
		uint64_t heads =
			em_ledger_maps_of(l, pack)->bits.group[chunk / 64].head >> chunk % 64; /* giving one may give parked ones */
		const execmem_block *block;

		if (!heads) {
			chunk |= 63;
			continue;
		}
		chunk += em_ctz(heads);
		block = em_ledger_block(l, pack, chunk);
		if (block->state != EXECMEM_BLOCK_HELD || is_in_sight(sight, block))
			continue;
		if (!release_block(s, pack, chunk)) {
			*refused = true;
			return;
		}
	}
}

static void see(const execmem_domain *d, const struct witness *w, struct sight *sight)
{
	sight->forks[sight->count].first = ms_of(d, w->first_ms);
	sight->forks[sight->count++].last = ms_of(d, w->last_ms);
}

/* False: nothing has changed since the shard looked last. */
static bool look_for(struct em_shard *s, struct sight *sight)
{
	uint32_t gone;

	sight->count = 0;
	em_sys_lock(&seen.lock);
	look();
	for (uint32_t i = 0; i < seen.count; i++)
		see(s->domain, &seen.all[i], sight);
	if (seen.blind.last_ms)
		see(s->domain, &seen.blind, sight);
	gone = atomic_load(&seen.gone);
	em_sys_unlock(&seen.lock);
	if (gone == s->shared_gone)
		return false;
	s->shared_gone = gone;
	return true;
}

bool em_fork_is_seen(const execmem_domain *d)
{
	bool seen_by_any;

	em_sys_lock(&seen.lock);
	look();
	seen_by_any = seen.blind.last_ms && seen.blind.last_ms >= d->ledger.epoch_ms;
	for (uint32_t i = 0; i < seen.count; i++)
		seen_by_any |= seen.all[i].last_ms >= d->ledger.epoch_ms;
	em_sys_unlock(&seen.lock);
	return seen_by_any;
}

void em_fork_release(struct em_shard *s)
{
	execmem_domain *d = s->domain;
	struct sight sight;
	uint32_t left = 0;
	bool refused = false;

	if (!s->shared || !d->writable || !look_for(s, &sight))
		return;
	for (uint32_t pack = 0; pack < d->ledger.header->packs_top; pack++) {
		const execmem_pack *p = &d->ledger.packs[pack];

		if (em_domain_shard_of(d, pack) != s->number || p->inherited || p->held == 0)
			continue;
		release_pack(s, pack, &sight, &refused);
		left += p->held;
	}
	s->shared_ms = 0;
	for (uint32_t i = 0; i < sight.count; i++)
		s->shared_ms = sight.forks[i].last > s->shared_ms ? sight.forks[i].last : s->shared_ms;
	s->shared_gone -= refused;
	if (left == 0 && sight.count == 0 && !s->inherits) {
		s->shared = false;
		em_domain_set_plain(s, d->plain);
	}
}

void em_fork_tick(struct em_shard *s)
{
	uint32_t now = em_domain_ms(s->domain);

	if (now == s->shared_looked)
		return;
	s->shared_looked = now;
	em_fork_release(s);
}

bool em_fork_keeps(struct em_shard *s, uint32_t pack, uint32_t born_ms)
{
	const execmem_pack *p = &s->domain->ledger.packs[pack];

	if (p->inherited || !is_shared(s->domain, p->kind))
		return p->inherited;
	em_fork_tick(s);
	return s->shared && born_ms <= s->shared_ms;
}
