/* block: what alloc, fill and free do at nearly every call, inline, with the shard's lock held; the rest is block.c. Single calls
 * (execmem.c) and batches (batch.c) are made of these.
 *
 * To free a block takes three looks at its books, each perhaps a wait for memory: the group's bits, where the group's records are, the
 * record. The first tells how long the block is, so its memory is blanked while the others come.
 */
#ifndef EM_BLOCK_H
#define EM_BLOCK_H

#include "domain.h"
#include "supply.h"

#include <string.h>

#define EM_BLOCK_MAX                                                                                                               \
	((uint64_t)UINT32_MAX - EM_PAGE) /* bytes: chunks of a span are counted in 32 bits, and more than this is a mistake */

struct em_request {
	int kind;
	uint64_t size;
	uint64_t align;
	const char *name;
};

struct em_place { /* where a block is; valid until another block of its pack comes or goes */
	uint32_t pack, first, chunks;
	bool span;
	execmem_block *block;
	uint64_t address, size;
};

int em_block_refuse_request(const struct em_request *request) __attribute__((cold)); /* why it can never be */
int em_block_refuse(struct em_shard *shard, int err) __attribute__((cold));          /* counts it; gives `err` back */
/* The live block that covers an address of the shard's packs, or that starts there. */
int em_block_find(const struct em_shard *shard, uint64_t address, struct em_place *out);
int em_block_find_start(const struct em_shard *shard, uint64_t address, struct em_place *out);
bool em_block_find_retired(const struct em_shard *shard, uint64_t address, struct em_place *out); /* that starts there */

int em_block_take(struct em_shard *shard, const struct em_request *request, struct em_place *out);
void em_block_give(struct em_shard *shard, const struct em_place *at); /* to the quarantine, where there is one */
int em_block_add_name(struct em_shard *shard, const char *text, uint32_t *out);
void em_block_drop_name(struct em_shard *shard, uint32_t name);
/* Whether a forked process may run a live block, so that it must stay as it is (fork.h); `at` is good afterwards too. */
bool em_block_keeps(struct em_shard *shard, struct em_place *at);
int em_block_hold(struct em_shard *shard, const struct em_place *at, uint32_t ms); /* frees such a block; 0 */
int em_block_refuse_write(struct em_shard *shard,
                          struct em_place *at); /* the error of who would write to such a block, or 0; likewise */
/* Drops the name of a block whose end is the last event of the shard, and buries it where that was asked for (grave.h). */
void em_block_bury_name(struct em_shard *shard, const struct em_place *at, uint32_t ms);
/* When that fails, a block whose bytes could not be taken back counts as filled, so that who frees it makes it blank. */
int em_block_write_slow(struct em_shard *shard, const struct em_place *at, uint64_t address, const void *src, uint64_t len);
/* Takes back bytes that were written, but that other CPUs could not be told of. */
void em_block_unwrite(struct em_shard *shard, const struct em_place *at, uint64_t address, uint64_t len) __attribute__((cold));
/* Frees a block that the caller was never given, for his call fails; his error stays the last. When its memory cannot be made blank
 * it stays taken, out of everybody's hands, until its domain closes: a free chunk must hold traps. */
void em_block_take_back(struct em_shard *shard, struct em_place *at) __attribute__((cold));
/* Makes `bytes` from a block's start on blank: its own, and those of blocks that follow it in the pack. */
int em_block_blank_slow(struct em_shard *shard, const struct em_place *at, uint64_t bytes);

/* ---- what can never be right ---- */

EM_HOT bool em_block_is_possible(const struct em_request *r)
{
	return (unsigned)r->kind < EXECMEM_KINDS && r->size - 1 < EM_BLOCK_MAX && r->align - 1 < EXECMEM_ALIGN_MAX &&
	       (r->align & (r->align - 1)) == 0;
}

EM_HOT int em_block_check(const struct em_request *r)
{
	if (EM_LIKELY(em_block_is_possible(r) && (!r->name || strlen(r->name) <= EXECMEM_NAME_MAX)))
		return 0;
	return em_block_refuse_request(r);
}

EM_HOT uint64_t em_block_rounded(uint64_t size)
{
	return em_round_up(size, size > EXECMEM_PACK_SIZE ? EM_PAGE : EXECMEM_CHUNK);
}

/* ---- finding ---- */

/* A live block: it is neither parked, nor quarantined, nor held, nor retired. */
EM_HOT bool em_block_is_live(const execmem_block *block)
{
	return (block->state & EXECMEM_BLOCK_PARKED) != EXECMEM_BLOCK_PARKED;
}

/* Whether a block of a pack starts exactly there, live or parked. Reads only the group's bits: not the record, nor `size`. */
EM_HOT bool em_block_starts(const struct em_shard *s, uint64_t address, struct em_place *out)
{
	const struct em_ledger *l = &s->domain->ledger;
	uint64_t offset = address - (uintptr_t)s->domain->map.window;
	uint32_t pack = (uint32_t)(offset >> EM_PACK_SHIFT), first = offset >> EM_CHUNK_SHIFT & (EXECMEM_PACK_CHUNKS - 1);
	struct em_pack p = em_ledger_pack(l, pack);

	if (EM_UNLIKELY(offset % EXECMEM_CHUNK || !(em_pack_is_head(p, first) && em_pack_is_used(p, first))))
		return false;
	out->pack = pack;
	out->first = first;
	out->span = false;
	out->address = address;
	out->block = em_ledger_block(l, pack, first);
	out->chunks = em_pack_length(p, first);
	return true;
}

/* Reads the record of what em_block_starts found; false: it is freed, so no block to any caller. */
EM_HOT bool em_block_read(struct em_place *at)
{
	at->size = ((uint64_t)at->chunks << EM_CHUNK_SHIFT) - at->block->unused;
	return EM_LIKELY(em_block_is_live(at->block));
}

/* The common case of em_block_find_start: a block within a pack that starts exactly there. */
EM_HOT bool em_block_is_start(const struct em_shard *s, uint64_t address, struct em_place *out)
{
	return em_block_starts(s, address, out) && em_block_read(out);
}

/* ---- writing ---- */

/* Where a block can be written by plain stores that need no word to any CPU; NULL: it cannot. */
EM_HOT uint8_t *em_block_memory(const struct em_shard *s, int kind, uint64_t address)
{
	const struct em_map *map = &s->domain->map;

	if (EM_UNLIKELY(!s->plain))
		return NULL;
	return EM_LIKELY(kind != EXECMEM_DATA) ? map->alias + (address - (uintptr_t)map->window) : (uint8_t *)(uintptr_t)address;
}

EM_HOT int em_block_write(struct em_shard *s, const struct em_place *at, uint64_t address, const void *src, uint64_t len)
{
	const struct em_map *map = &s->domain->map;
	uint8_t *to = em_block_memory(s, at->block->kind, address);
	bool aside = (uintptr_t)src - (uintptr_t)map->window < (uint64_t)map->packs << EM_PACK_SHIFT; /* it may overlap */

	if (EM_LIKELY(to && !aside)) {
		memcpy(to, src, len);
	} else {
		int err = em_block_write_slow(s, at, address, src, len);

		if (EM_UNLIKELY(err < 0))
			return err;
	}
	at->block->state = EXECMEM_BLOCK_FILLED;
	em_add(s->books->fills, 1);
	em_add(s->books->fill_bytes, len);
	return 0;
}

/* Makes a block blank where plain stores do it. True: past the caches, in which its lines are not. */
EM_HOT bool em_block_blank_plain(struct em_shard *s, const struct em_place *at)
{
	const execmem_domain *d = s->domain;
	uint64_t len = (uint64_t)at->chunks << EM_CHUNK_SHIFT;
	int kind = d->ledger.packs[at->pack].kind;
	uint8_t *to = em_block_memory(s, kind, at->address);

	if (em_domain_much_is_live(s) && d->arch->fill_traps_past && kind == EXECMEM_TEXT) {
		d->arch->fill_traps_past(to, len);
		s->undrained = true;
		return true;
	}
	memset(to, d->blank[kind], len);
	return false;
}

/* What was never filled is blank still; but data is written by anybody. Other bits of the state may be set. */
EM_HOT bool em_block_is_blank(const execmem_block *block)
{
	return block->state & EXECMEM_BLOCK_RESERVED && block->kind != EXECMEM_DATA;
}

/* Bytes of a block that may not be blank. */
EM_HOT uint64_t em_block_touched(const struct em_place *at)
{
	return at->block->kind == EXECMEM_DATA ? (uint64_t)at->chunks << EM_CHUNK_SHIFT : em_round_up(at->size, 16);
}

/* ---- alloc and free ---- */

/* Asks for the lines of the block that will go next, and of its books, so that they are in the cache when its turn comes. */
EM_HOT void em_block_expect(const struct em_shard *s, int kind, uint32_t chunks)
{
	const execmem_domain *d = s->domain;
	const struct em_ledger_maps *maps;
	uint64_t next;

	if (EM_LIKELY(!em_domain_much_is_live(s)) || d->map.mode != EXECMEM_MODE_ALIAS || !em_park_top(&s->park[kind], chunks, &next))
		return;
	maps = em_ledger_maps_of(&d->ledger, (uint32_t)(next / EXECMEM_PACK_CHUNKS));
	__builtin_prefetch(&maps->bits.group[next % EXECMEM_PACK_CHUNKS / 64]);
	__builtin_prefetch(&maps->extent[next % EXECMEM_PACK_CHUNKS / 64]);
	for (uint32_t i = 0; i < chunks; i++)
		__builtin_prefetch(d->map.alias + ((next + i) << EM_CHUNK_SHIFT), 1);
}

/* Chunks that were taken in one piece for the next blocks of a batch, whose heads and records are there already. */
struct em_run {
	uint32_t pack, next, end;
	uint32_t group;       /* of the last block that was cut, */
	execmem_block *block; /* whose record this is: those of a group lie side by side. NULL: none yet */
};

/* The next block of a run; false: it was the last. */
EM_HOT bool em_block_cut(const struct em_shard *s, struct em_run *run, struct em_place *out)
{
	if (!run || run->next == run->end)
		return false;
	out->pack = run->pack;
	out->first = run->next;
	out->span = false;
	out->block = EM_LIKELY(run->block && run->next / 64 == run->group) ? run->block + 1
	                                                                   : em_ledger_block(&s->domain->ledger, run->pack, run->next);
	run->block = out->block;
	run->group = run->next / 64;
	run->next += out->chunks;
	return true;
}

/* The time; where children are left a later one than that of their forks, so that what comes after can be told from what they may see,
 * within a tick of the clock and after it has wrapped. */
EM_HOT uint32_t em_block_stamp(const struct em_shard *s, uint32_t ms)
{
	return EM_UNLIKELY(s->shared) && ms <= s->shared_ms ? s->shared_ms + (s->shared_ms < UINT32_MAX) : ms;
}

/* The request is possible. `run`: NULL, or chunks to take first. `ms`: the time. */
EM_HOT int em_block_alloc(struct em_shard *s, const struct em_request *r, struct em_run *run, uint32_t ms, struct em_place *out)
{
	const execmem_domain *d = s->domain;
	execmem_shard *books = s->books;
	uint64_t bytes = em_block_rounded(r->size);
	uint32_t name = 0;
	int err = em_domain_charge(s, bytes);

	if (EM_UNLIKELY(err < 0))
		return err;
	if (EM_UNLIKELY(r->name && *r->name) && (err = em_block_add_name(s, r->name, &name)) < 0)
		goto undo_charge;
	out->chunks = (uint32_t)(bytes >> EM_CHUNK_SHIFT);
	if (em_block_cut(s, run, out)) {
		; /* as far as it reaches */
	} else if (EM_LIKELY(r->align <= EXECMEM_CHUNK && em_supply_unpark(s, r->kind, out->chunks, &out->pack, &out->first))) {
		out->span = false;
		out->block = em_ledger_block(&d->ledger, out->pack, out->first);
		em_block_expect(s, r->kind, out->chunks);
	} else if ((err = em_block_take(s, r, out)) < 0) {
		goto undo_name;
	}
	out->address = em_domain_address(d, out->pack, out->first);
	out->size = r->size;
	out->block->name = name;
	out->block->born_ms = em_block_stamp(s, ms);
	out->block->unused = (uint16_t)(bytes - r->size);
	out->block->state = EXECMEM_BLOCK_RESERVED;
	out->block->kind = (uint8_t)r->kind;
	em_add(books->live_bytes, r->size);
	em_add(books->allocs, 1);
	em_ledger_event(s->ring, books, EXECMEM_EVENT_ALLOC, out->address, (uint32_t)r->size, ms);
	return 0;
undo_name:
	if (name)
		em_block_drop_name(s, name);
undo_charge:
	em_domain_uncharge(s, bytes);
	return err;
}

/* Counts a block that goes, whose memory is blank. */
EM_HOT void em_block_uncount(struct em_shard *s, const struct em_place *at, uint32_t ms)
{
	execmem_shard *books = s->books;

	em_add(books->live_bytes, -at->size);
	em_add(books->frees, 1);
	em_ledger_event(s->ring, books, EXECMEM_EVENT_FREE, at->address, (uint32_t)at->size, ms);
	if (EM_UNLIKELY(at->block->name))
		em_block_bury_name(s, at, ms);
	em_domain_uncharge(s, (uint64_t)at->chunks << EM_CHUNK_SHIFT);
}

/* Forgets a block whose memory is blank. */
EM_HOT void em_block_drop(struct em_shard *s, const struct em_place *at, bool cold, uint32_t ms)
{
	const execmem_domain *d = s->domain;

	at->block->state = EXECMEM_BLOCK_PARKED;
	em_block_uncount(s, at, ms);
	if (EM_UNLIKELY(at->span | d->no_park) ||
	    !em_supply_park(s, em_ledger_pack(&d->ledger, at->pack), at->pack, at->first, at->chunks, cold))
		em_block_give(s, at);
}

EM_HOT int em_block_free(struct em_shard *s, struct em_place *at, uint32_t ms)
{
	bool cold = false;
	int err;

	if (EM_UNLIKELY(s->shared) && em_block_keeps(s, at))
		return em_block_hold(s, at, ms);
	if (EM_LIKELY(!em_block_is_blank(at->block))) {
		if (EM_LIKELY(s->plain))
			cold = em_block_blank_plain(s, at);
		else if ((err = em_block_blank_slow(s, at, em_block_touched(at))) < 0)
			return err;
	}
	em_block_drop(s, at, cold, ms);
	return 0;
}

/* Frees the block that starts at an address. */
EM_HOT int em_block_free_at(struct em_shard *s, uint64_t address)
{
	struct em_place at;
	int err;

	if (EM_LIKELY(s->eager && em_block_starts(s, address, &at))) {
		if (!s->plain)
			__builtin_unreachable();
		/* Blanked while the record comes: had it been parked or never filled it would be blank already. */
		bool cold = (__builtin_prefetch(at.block, 1), em_block_blank_plain(s, &at));
		uint32_t ms = em_domain_ms(s->domain);

		if (EM_LIKELY(em_block_read(&at))) {
			em_block_drop(s, &at, cold, ms);
			return 0;
		}
	}
	err = em_block_is_start(s, address, &at) ? 0 : em_block_find_start(s, address, &at);
	return EM_LIKELY(err == 0) ? em_block_free(s, &at, em_domain_ms(s->domain)) : err;
}

#endif
