/* fork: see fork.h. */
#include "fork.h"
#include "supply.h"

enum { WITNESSES = 8 };

struct witness { /* children that were forked within a span of time, as long as one is left */
	int fd;
	uint64_t first_ms, last_ms;
};

static struct {
	struct em_lock lock; /* the last in the order but the one that stops threads; held while the process forks */
	uint32_t count;
	bool blind;            /* a fork had no witness: its child is taken to live for ever */
	_Atomic uint32_t gone; /* grows when a witness goes */
	void *page;            /* of the last witness, for the next child; while the process forks */
	bool copied;           /* the child finds a copy of each ledger; likewise */
	struct witness all[WITNESSES];
} seen;

/* ---- witnesses ---- */

/* Forgets witnesses that nobody can see any more. The lock is held. */
static void look(void)
{
	uint32_t left = 0;

	for (uint32_t i = 0; i < seen.count; i++)
		if (em_sys_seal_writing(seen.all[i].fd) == 0)
			em_sys_close(seen.all[i].fd);
		else
			seen.all[left++] = seen.all[i];
	if (left < seen.count)
		atomic_fetch_add(&seen.gone, 1);
	seen.count = left;
}

static int open_witness(uint64_t now)
{
	struct witness w = {.fd = -1, .first_ms = now};
	int err = em_sys_memfd("execmem-witness", &w.fd);

	if (err < 0)
		return err;
	err = em_sys_resize(w.fd, EM_PAGE);
	if (err < 0)
		em_sys_close(w.fd);
	else
		seen.all[seen.count++] = w;
	return err;
}

/* Maps the page that the child will have: of a new witness; where there are many, of the youngest. */
static void call_witness(void)
{
	uint64_t now = em_sys_milliseconds();

	look();
	seen.page = NULL;
	if (seen.blind || (seen.count < WITNESSES && open_witness(now) < 0 && seen.count == 0) ||
	    em_sys_map_table(EM_PAGE, seen.all[seen.count - 1].fd, &seen.page) < 0)
		seen.blind = true;
	else
		seen.all[seen.count - 1].last_ms = now;
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
	em_sys_lock(&seen.lock);
	if (!root)
		return;
	call_witness();
	seen.copied = copy_ledgers(root);
}

static void share(execmem_domain *d, uint64_t now)
{
	for (uint32_t i = 0; i < atomic_load(&d->shard_count) && em_map_has_file(d->map.mode); i++) {
		d->shards[i]->plain = false;
		d->shards[i]->shared = true;
		d->shards[i]->shared_ms = ms_of(d, now);
		d->shards[i]->shared_gone = atomic_load(&seen.gone);
	}
	for (execmem_domain *child = d->first_child; child; child = child->next_sibling)
		share(child, now);
}

static void in_parent(execmem_domain *root)
{
	if (root) {
		if (seen.page)
			(void)em_sys_release(seen.page, EM_PAGE); /* refused: the child is taken to live as long as this process */
		share(root, em_sys_milliseconds());
		close_copies(root);
	}
	em_sys_unlock(&seen.lock);
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
		s->plain = s->undrained = false;
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

static void own_ledgers(execmem_domain *d, bool *done)
{
	*done = *done && em_ledger_become(&d->ledger, d->copied_ledger) == 0;
	d->copied_ledger = -1;
	for (execmem_domain *child = d->first_child; child; child = child->next_sibling)
		own_ledgers(child, done);
}

static void inherit(execmem_domain *d, uint32_t forks)
{
	for (uint32_t i = 0; i < EM_SHARDS; i++)
		d->gates[i].lock = (struct em_lock){0};
	d->admin = d->packs = d->names = (struct em_lock){0};
	em_map_inherit(&d->map);
	forget_unfinished(d);
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
	seen.lock = (struct em_lock){0};
	seen.count = 0;
	seen.blind = false;
	if (!root)
		return true;
	if (done)
		own_ledgers(root, &done);
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

/* Of a pack, what was freed before any child was forked that is left. */
static void release_pack(struct em_shard *s, uint32_t pack, uint32_t before, bool *refused)
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
		if (block->state != EXECMEM_BLOCK_HELD || block->born_ms >= before)
			continue;
		if (!release_block(s, pack, chunk)) {
			*refused = true;
			return;
		}
	}
}

/* What can be seen now; false: nothing has changed since the shard looked last. */
static bool look_for(struct em_shard *s, uint32_t *before, uint32_t *after)
{
	const execmem_domain *d = s->domain;
	uint32_t gone;

	*before = UINT32_MAX;
	*after = 0;
	em_sys_lock(&seen.lock);
	look();
	for (uint32_t i = 0; i < seen.count; i++) {
		uint32_t first = ms_of(d, seen.all[i].first_ms), last = ms_of(d, seen.all[i].last_ms);

		*before = first < *before ? first : *before;
		*after = last > *after ? last : *after;
	}
	if (seen.blind) {
		*before = 0;
		*after = UINT32_MAX;
	}
	gone = atomic_load(&seen.gone);
	em_sys_unlock(&seen.lock);
	if (gone == s->shared_gone)
		return false;
	s->shared_gone = gone;
	return true;
}

void em_fork_release(struct em_shard *s)
{
	execmem_domain *d = s->domain;
	uint32_t before, after, left = 0;
	bool refused = false;

	if (!s->shared || !look_for(s, &before, &after))
		return;
	for (uint32_t pack = 0; pack < d->ledger.header->packs_top; pack++) {
		const execmem_pack *p = &d->ledger.packs[pack];

		if (d->shard_of[pack] != s->number || p->inherited || p->held == 0)
			continue;
		release_pack(s, pack, before, &refused);
		left += p->held;
	}
	s->shared_ms = after;
	s->shared_gone -= refused;
	if (left == 0 && before == UINT32_MAX && !s->inherits) {
		s->shared = false;
		s->plain = d->plain;
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
