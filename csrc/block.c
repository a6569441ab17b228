/* block: what is rare in alloc, fill and free, and so is not inline in block.h. */
#include "block.h"
#include "error.h"
#include "fork.h"
#include "grave.h"
#include "quarantine.h"

#include <string.h>

/* ---- what can never be right ---- */

static int explain_request(const struct em_request *r)
{
	if (r->kind < 0 || r->kind >= EXECMEM_KINDS)
		return em_error_set(EXECMEM_EINVAL, "%d is no kind; use text, rodata or data.", r->kind);
	if (r->size == 0)
		return em_error_set(EXECMEM_EINVAL, "a block needs at least 1 byte; 0 were asked for.");
	if (r->size > EM_BLOCK_MAX)
		return em_error_set(EXECMEM_EINVAL, "a block has at most %llu bytes; %llu were asked for.",
		                    (unsigned long long)EM_BLOCK_MAX, (unsigned long long)r->size);
	return em_error_set(EXECMEM_EINVAL, "an alignment is a power of two from 1 to %d; %llu was asked for.", EXECMEM_ALIGN_MAX,
	                    (unsigned long long)r->align);
}

int em_block_refuse_request(const struct em_request *r)
{
	if (em_block_is_possible(r))
		return em_error_set(EXECMEM_EINVAL, "a block's name has at most %d bytes, this one has %llu.", EXECMEM_NAME_MAX,
		                    (unsigned long long)strlen(r->name));
	return explain_request(r);
}

int em_block_refuse(struct em_shard *s, int err)
{
	em_add(s->books->refusals, 1);
	return err;
}

/* ---- finding ---- */

static int no_block(uint64_t address)
{
	return em_error_set(EXECMEM_EFREED, "no live block at %#llx: it was freed already, or no block was ever given out there.",
	                    (unsigned long long)address);
}

static void fill_place(const execmem_domain *d, uint32_t pack, uint32_t first, struct em_place *out)
{
	*out = (struct em_place){
		.pack = pack,
		.first = first,
		.span = d->ledger.packs[pack].state == EXECMEM_PACK_SPAN,
		.block = em_ledger_block(&d->ledger, pack, first),
		.address = em_domain_address(d, pack, first),
	};
	out->chunks = out->span ? d->ledger.packs[pack].usable_chunks : em_pack_length(em_ledger_pack(&d->ledger, pack), first);
	out->size = ((uint64_t)out->chunks << EM_CHUNK_SHIFT) - out->block->unused;
}

/* Whatever covers an address, live or not; false: nothing. */
static bool find_any(const struct em_shard *s, uint64_t address, struct em_place *out)
{
	const execmem_domain *d = s->domain;
	uint64_t offset = address - (uintptr_t)d->map.window;
	uint32_t pack = (uint32_t)(offset >> EM_PACK_SHIFT), chunk = offset >> EM_CHUNK_SHIFT & (EXECMEM_PACK_CHUNKS - 1);
	const execmem_pack *p = &d->ledger.packs[pack];

	if (p->state == EXECMEM_PACK_ABSENT)
		return false;
	if (p->state == EXECMEM_PACK_SPAN || p->state == EXECMEM_PACK_SPAN_TAIL) {
		if (p->state == EXECMEM_PACK_SPAN_TAIL)
			pack -= p->span_packs;
		chunk = 0;
	} else {
		chunk = em_pack_block_at(em_ledger_pack(&d->ledger, pack), chunk);
	}
	if (chunk == EM_PACK_NONE)
		return false;
	fill_place(d, pack, chunk, out);
	return address - out->address < (uint64_t)out->chunks << EM_CHUNK_SHIFT;
}

int em_block_find(const struct em_shard *s, uint64_t address, struct em_place *out)
{
	if (!find_any(s, address, out))
		return no_block(address);
	if (out->block->state == EXECMEM_BLOCK_RETIRED)
		return em_error_set(EXECMEM_EFREED,
		                    "the block at %#llx was retired: it is freed when no thread can be inside, and is nobody's until then.",
		                    (unsigned long long)out->address);
	return em_block_is_live(out->block) ? 0 : no_block(address);
}

bool em_block_find_retired(const struct em_shard *s, uint64_t address, struct em_place *out)
{
	return find_any(s, address, out) && out->address == address && out->block->state == EXECMEM_BLOCK_RETIRED;
}

int em_block_find_start(const struct em_shard *s, uint64_t address, struct em_place *out)
{
	int err = em_block_find(s, address, out);

	if (err == 0 && out->address != address)
		return em_error_set(EXECMEM_EINTERIOR, "address %#llx lies %llu bytes inside the block at %#llx; pass the block's start.",
		                    (unsigned long long)address, (unsigned long long)(address - out->address),
		                    (unsigned long long)out->address);
	return err;
}

/* ---- memory and a record, when nothing is parked ---- */

/* A random number of chunks, a multiple of `align`, that a block of so many leaves before it. */
static int draw_gap(struct em_shard *s, uint32_t chunks, uint32_t align, uint32_t *gap)
{
	uint32_t room = EXECMEM_PACK_CHUNKS - chunks, most = s->domain->gap < room ? s->domain->gap : room;
	int err;

	if (s->dice_left == 0) {
		err = em_sys_random(s->dice, sizeof s->dice);
		if (err < 0)
			return em_error_system(err, "draw a random gap (getrandom)");
		s->dice_left = EM_DICE;
	}
	*gap = (uint32_t)((uint64_t)s->dice[--s->dice_left] * (most / align + 1) >> 32) * align;
	s->dice[s->dice_left] = 0;
	return 0;
}

/* Chunks within a pack, behind a random gap if the domain wants one and there is room for it; the gap stays free. */
static int take_within(struct em_shard *s, const struct em_request *r, struct em_place *out)
{
	uint32_t align = r->align > EXECMEM_CHUNK ? (uint32_t)r->align / EXECMEM_CHUNK : 1, gap = 0;
	int err = EM_UNLIKELY(s->domain->gap) ? draw_gap(s, out->chunks, align, &gap) : 0;

	if (err < 0)
		return err;
	err = em_supply_take(s, r->kind, gap, out->chunks, align, &out->pack, &out->first);
	if (EM_UNLIKELY(err == EXECMEM_EWINDOW && gap))
		return em_supply_take(s, r->kind, 0, out->chunks, align, &out->pack, &out->first);
	if (EM_UNLIKELY(err == 0 && gap)) {
		em_supply_give_front(s, out->pack, out->first, gap);
		out->first += gap;
	}
	return err;
}

int em_block_take(struct em_shard *s, const struct em_request *r, struct em_place *out)
{
	execmem_domain *d = s->domain;
	uint64_t bytes = (uint64_t)out->chunks << EM_CHUNK_SHIFT;
	int err, closed = 0;

	if (EM_UNLIKELY(s->shared))
		em_fork_tick(s);
	out->first = 0;
	out->span = r->size > EXECMEM_PACK_SIZE;
	do
		err = out->span ? em_supply_take_span(s, r->kind, bytes, &out->pack) : take_within(s, r, out);
	while (EM_UNLIKELY(err == EXECMEM_EWINDOW) && em_quarantine_empty_all(s, bytes, &closed) && closed == 0);
	if (EM_UNLIKELY(err < 0 || closed < 0))
		return closed < 0 ? closed : err;
	out->block = em_ledger_add_block(&d->ledger, out->pack, out->first);
	if (EM_LIKELY(out->block != NULL))
		return 0;
	if (out->span)
		em_supply_give_span(s, out->pack);
	else
		em_supply_give(s, out->pack, out->first);
	return execmem_error_code();
}

void em_block_give(struct em_shard *s, const struct em_place *at)
{
	/* What is larger than the quarantine would drive out all others, and not stay either. */
	if (!at->span && (uint64_t)at->chunks << EM_CHUNK_SHIFT <= s->domain->quarantine) {
		em_quarantine_add(s, at->pack, at->first, at->chunks);
		return;
	}
	em_ledger_drop_blocks(&s->domain->ledger, at->pack, at->first, at->first + 1);
	if (at->span)
		em_supply_give_span(s, at->pack);
	else
		em_supply_give(s, at->pack, at->first);
}

/* ---- names ---- */

int em_block_add_name(struct em_shard *s, const char *text, uint32_t *out)
{
	execmem_domain *d = s->domain;
	int err;

	em_sys_lock(&d->names);
	err = em_ledger_add_name(&d->ledger, text, out);
	em_sys_unlock(&d->names);
	return err;
}

void em_block_drop_name(struct em_shard *s, uint32_t name)
{
	execmem_domain *d = s->domain;

	em_sys_lock(&d->names);
	em_ledger_drop_name(&d->ledger, name);
	em_sys_unlock(&d->names);
}

void em_block_bury_name(struct em_shard *s, const struct em_place *at, uint32_t ms)
{
	struct em_grave_block grave;

	if (em_grave_is_open()) {
		grave = (struct em_grave_block){
			.address = at->address,
			.size = (uint32_t)at->size,
			.domain = s->domain->ledger.header->domain,
			.shard = s->number,
			.sequence = (uint32_t)s->books->events - 1,
			.time_ms = ms,
		};
		em_ledger_read_name(&s->domain->ledger, at->block->name, grave.name, sizeof grave.name); /* ours: no lock */
		em_grave_bury(&grave);
	}
	em_block_drop_name(s, at->block->name);
	at->block->name = 0;
}

/* ---- what a forked process may run ---- */

bool em_block_keeps(struct em_shard *s, struct em_place *at)
{
	bool inherited = s->domain->ledger.packs[at->pack].inherited;
	bool keeps = inherited || (!(at->block->state & EXECMEM_BLOCK_RESERVED) && em_fork_keeps(s, at->pack, at->block->born_ms));

	at->block = em_ledger_block(&s->domain->ledger, at->pack, at->first); /* others may have been given */
	return keeps;
}

int em_block_hold(struct em_shard *s, const struct em_place *at, uint32_t ms)
{
	execmem_pack *p = &s->domain->ledger.packs[at->pack];

	em_block_uncount(s, at, ms);
	at->block->state = EXECMEM_BLOCK_HELD;
	at->block->name = at->block->born_ms; /* fork.c asks who may have seen it */
	at->block->born_ms = em_block_stamp(s, ms);
	p->blocks--;
	p->held++;
	return 0;
}

int em_block_refuse_write(struct em_shard *s, struct em_place *at)
{
	if (EM_LIKELY(!s->shared))
		return 0;
	if (!em_block_keeps(s, at)) {
		if (at->block->state &
		    EXECMEM_BLOCK_RESERVED) /* nobody saw bytes in it: as if it were born now, it can be filled piece by piece */
			at->block->born_ms = em_block_stamp(s, at->block->born_ms);
		return 0;
	}
	return em_error_set(
		EXECMEM_EFORKED,
		s->domain->ledger.packs[at->pack].inherited
			? "the block at %#llx was placed before fork(), and the parent process runs it too: here it cannot be written "
			  "any more. Place a new block."
			: "the block at %#llx was placed before fork(), and a child that has not ended may run it: it cannot be "
			  "written until then. Place a new block.",
		(unsigned long long)at->address);
}

/* ---- writing, when it is not a plain copy ---- */

int em_block_write_slow(struct em_shard *s, const struct em_place *at, uint64_t address, const void *src, uint64_t len)
{
	struct em_poke where = em_domain_where(s->domain, at->pack);
	uint64_t offset = address - (uintptr_t)s->domain->map.window;
	int err = em_poke_copy(&where, offset, src, len);

	if (EM_UNLIKELY(err < 0) && !em_poke_is_blank(&where, offset, len))
		at->block->state = EXECMEM_BLOCK_FILLED;
	return err;
}

void em_block_unwrite(struct em_shard *s, const struct em_place *at, uint64_t address, uint64_t len)
{
	struct em_poke where = em_domain_where(s->domain, at->pack);

	em_poke_unwrite(&where, address - (uintptr_t)s->domain->map.window, len);
}

int em_block_blank_slow(struct em_shard *s, const struct em_place *at, uint64_t bytes)
{
	struct em_poke where = em_domain_where(s->domain, at->pack);

	return em_poke_blank(&where, at->address - (uintptr_t)s->domain->map.window, bytes);
}

void em_block_take_back(struct em_shard *s, struct em_place *at)
{
	struct em_poke where = em_domain_where(s->domain, at->pack);
	struct em_error_kept kept;

	em_error_keep(&kept);
	if (em_poke_is_blank(&where, at->address - (uintptr_t)s->domain->map.window, (uint64_t)at->chunks << EM_CHUNK_SHIFT))
		at->block->state = EXECMEM_BLOCK_RESERVED; /* not a byte was written, or none is left */
	if (em_block_free(s, at, em_domain_ms(s->domain)) < 0)
		at->block->state |= EXECMEM_BLOCK_DYING;
	em_error_tell(&kept);
}
