/* execmem: alloc, fill, free, on any domain, one at a time and in batches.
 *
 *   a block:  NONE --alloc--> RESERVED --fill--> FILLED --fill--> FILLED
 *                                 \---------------\--free--> NONE        (free_many passes through DYING)
 *
 * Each operation enters the domain (its lock), does all of its work or undoes what it did in reverse, and leaves. Memory is blanked
 * before its chunks are given back, so a free chunk holds traps from the moment it is one.
 */
#include "domain.h"
#include "error.h"
#include "supply.h"

#include <string.h>

enum {
	BLOCK_MAX = UINT32_MAX - EM_PAGE, /* bytes: a record's size has 32 bits */
	PREFETCH = 16,                    /* lines asked for ahead of time */
	STAGE = 32768,                    /* bytes gathered for one write where a write is a system call */
};

struct request {
	int kind;
	uint64_t size;
	uint64_t align;
	const char *name;
};

struct place { /* where a live block is */
	uint32_t pack, first;
	bool span;
	execmem_block *block;
};

/* ---- what can never be right ---- */

static int check_size(const struct request *r)
{
	if (r->size == 0)
		return em_error_set(EXECMEM_EINVAL, "a block needs at least 1 byte; 0 were asked for.");
	if (r->size > BLOCK_MAX)
		return em_error_set(EXECMEM_EINVAL, "a block has at most %llu bytes; %llu were asked for.", (unsigned long long)BLOCK_MAX,
		                    (unsigned long long)r->size);
	if (!em_is_power_of_two(r->align) || r->align > EXECMEM_ALIGN_MAX)
		return em_error_set(EXECMEM_EINVAL, "an alignment is a power of two from 1 to %d; %llu was asked for.", EXECMEM_ALIGN_MAX,
		                    (unsigned long long)r->align);
	return 0;
}

static int check_request(const struct request *r)
{
	if (r->kind < 0 || r->kind >= EXECMEM_KINDS)
		return em_error_set(EXECMEM_EINVAL, "%d is no kind; use text, rodata or data.", r->kind);
	if (r->name && strlen(r->name) > EXECMEM_NAME_MAX)
		return em_error_set(EXECMEM_EINVAL, "a block's name has at most %d bytes, this one has %llu.", EXECMEM_NAME_MAX,
		                    (unsigned long long)strlen(r->name));
	return check_size(r);
}

static uint64_t rounded(uint64_t size)
{
	return em_round_up(size, size > EXECMEM_PACK_SIZE ? EM_PAGE : EXECMEM_CHUNK);
}

static int refuse(execmem_domain *d, int err)
{
	d->ledger.header->refusals++;
	return err;
}

/* ---- finding ---- */

static int no_block(uint64_t address)
{
	return em_error_set(EXECMEM_EFREED, "no live block at %#llx: it was freed already, or no block was ever given out there.",
	                    (unsigned long long)address);
}

static int not_here(const execmem_domain *d, uint64_t address)
{
	return em_error_set(EXECMEM_EFOREIGN, "address %#llx is not in the window of domain \"%s\".", (unsigned long long)address,
	                    d->ledger.header->name);
}

/* The live block that covers an address of the domain's window. */
static int find_block(execmem_domain *d, uint64_t address, struct place *out)
{
	uint64_t offset = address - d->ledger.header->window;
	uint32_t pack = (uint32_t)(offset >> EM_PACK_SHIFT), chunk = offset >> EM_CHUNK_SHIFT & (EXECMEM_PACK_CHUNKS - 1);
	const execmem_pack *p = &d->ledger.packs[pack];

	if (EM_UNLIKELY(offset >=
	                em_domain_offset(d->map.packs, 0))) /* the handle serves another window since the address was looked up */
		return not_here(d, address);
	if (p->state == EXECMEM_PACK_ABSENT)
		return no_block(address);
	if (p->state == EXECMEM_PACK_SPAN_TAIL) {
		pack -= p->span_packs;
		p = &d->ledger.packs[pack];
	}
	if (p->state == EXECMEM_PACK_SPAN) {
		if (address >= p->address + ((uint64_t)p->usable_chunks << EM_CHUNK_SHIFT))
			return no_block(address);
		*out = (struct place){pack, 0, true, em_ledger_block(&d->ledger, pack, 0)};
		return 0;
	}
	chunk = em_pack_block_at(em_ledger_pack(&d->ledger, pack), chunk);
	if (chunk == EM_PACK_NONE)
		return no_block(address);
	*out = (struct place){pack, chunk, false, em_ledger_block(&d->ledger, pack, chunk)};
	return EM_LIKELY(out->block->address != 0) ? 0 : no_block(address); /* parked */
}

/* The live block that starts at an address. */
static int find_start(execmem_domain *d, uint64_t address, struct place *out)
{
	int err;

	err = find_block(d, address, out);
	if (EM_UNLIKELY(err < 0))
		return err;
	if (EM_UNLIKELY(out->block->address != address))
		return em_error_set(EXECMEM_EINTERIOR, "address %#llx lies %llu bytes inside the block at %#llx; pass the block's start.",
		                    (unsigned long long)address, (unsigned long long)(address - out->block->address),
		                    (unsigned long long)out->block->address);
	return 0;
}

int execmem_find(const void *address, execmem_info *out)
{
	execmem_domain *d;
	struct place at;
	int err = out ? em_domain_enter_owner(address, &d) : em_error_null("out");

	if (err < 0)
		return err;
	err = find_block(d, (uintptr_t)address, &at);
	if (err == 0) {
		*out = (execmem_info){
			.address = at.block->address,
			.size = at.block->size,
			.rounded = rounded(at.block->size),
			.pack = at.pack,
			.born_ms = at.block->born_ms,
			.state = at.block->state,
			.kind = at.block->kind,
			.domain = d->ledger.header->domain,
		};
		em_ledger_read_name(&d->ledger, at.block->name, out->name, sizeof out->name);
	}
	em_domain_leave(d);
	return err;
}

/* ---- alloc and free, with the lock held ---- */

/* Finds memory and a record for a block. */
static int take(execmem_domain *d, const struct request *r, struct place *out)
{
	uint64_t bytes = rounded(r->size);
	uint32_t chunks = (uint32_t)(bytes / EXECMEM_CHUNK);
	uint32_t align = r->align > EXECMEM_CHUNK ? (uint32_t)r->align / EXECMEM_CHUNK : 1;
	int err;

	out->span = r->size > EXECMEM_PACK_SIZE;
	out->first = 0;
	if (align == 1 && em_supply_unpark(d, r->kind, chunks, &out->pack, &out->first)) {
		out->block = em_ledger_block(&d->ledger, out->pack, out->first);
		return 0;
	}
	if (out->span)
		err = em_supply_take_span(d, r->kind, bytes, &out->pack);
	else
		err = em_supply_take(d, r->kind, chunks, align, &out->pack, &out->first);
	if (EM_UNLIKELY(err < 0))
		return err;
	out->block = em_ledger_add_block(&d->ledger, out->pack, out->first);
	if (EM_LIKELY(out->block != NULL))
		return 0;
	if (out->span)
		em_supply_give_span(d, out->pack);
	else
		em_supply_give(d, out->pack, out->first);
	return execmem_error_code();
}

/* Gives back the memory and the record of a block that is blank. */
static void give(execmem_domain *d, const struct place *at, uint64_t bytes)
{
	at->block->address = 0;
	at->block->state = EXECMEM_BLOCK_PARKED;
	if (!at->span && em_supply_park(d, at->pack, at->first, (uint32_t)(bytes / EXECMEM_CHUNK)))
		return;
	em_ledger_drop_block(&d->ledger, at->pack, at->first);
	if (at->span)
		em_supply_give_span(d, at->pack);
	else
		em_supply_give(d, at->pack, at->first);
}

static int alloc_locked(execmem_domain *d, const struct request *r, struct place *out)
{
	execmem_header *h = d->ledger.header;
	uint64_t bytes = rounded(r->size), address;
	uint32_t name, ms;
	int err = em_domain_charge(d, bytes);

	if (EM_UNLIKELY(err < 0))
		return err;
	err = em_ledger_add_name(&d->ledger, r->name, &name);
	if (EM_UNLIKELY(err < 0))
		goto undo_charge;
	err = take(d, r, out);
	if (EM_UNLIKELY(err < 0))
		goto undo_name;
	address = h->window + em_domain_offset(out->pack, out->first);
	ms = em_domain_ms(d);
	*out->block = (execmem_block){
		.address = address,
		.size = (uint32_t)r->size,
		.name = name,
		.born_ms = ms,
		.state = EXECMEM_BLOCK_RESERVED,
		.kind = (uint8_t)r->kind,
	};
	h->live_blocks++;
	h->live_bytes += r->size;
	h->used_bytes += bytes;
	h->allocs++;
	em_ledger_event(&d->ledger, EXECMEM_EVENT_ALLOC, address, r->size, ms);
	return 0;
undo_name:
	em_ledger_drop_name(&d->ledger, name);
undo_charge:
	em_domain_uncharge(d, bytes);
	return err;
}

/* Forgets a block whose memory is blank. */
static void drop_locked(execmem_domain *d, const struct place *at)
{
	execmem_header *h = d->ledger.header;
	uint64_t address = at->block->address, size = at->block->size, bytes = rounded(size);

	em_ledger_drop_name(&d->ledger, at->block->name);
	h->live_blocks--;
	h->live_bytes -= size;
	h->used_bytes -= bytes;
	h->frees++;
	em_ledger_event(&d->ledger, EXECMEM_EVENT_FREE, address, size, em_domain_ms(d));
	give(d, at, bytes);
	em_domain_uncharge(d, bytes);
}

static int free_locked(execmem_domain *d, const struct place *at)
{
	struct em_poke where = em_domain_where(d, at->pack);
	int err = 0;

	if (at->block->state != EXECMEM_BLOCK_RESERVED) /* what was never filled is blank still */
		err = em_poke_blank(&where, at->block->address - d->ledger.header->window, em_round_up(at->block->size, 16));
	if (EM_UNLIKELY(err < 0))
		return err;
	drop_locked(d, at);
	return 0;
}

static int write_locked(execmem_domain *d, const struct place *at, uint64_t address, const void *src, size_t len)
{
	execmem_header *h = d->ledger.header;
	struct em_poke where = em_domain_where(d, at->pack);
	int err = em_poke_copy(&where, address - h->window, src, len);

	if (EM_UNLIKELY(err < 0))
		return err;
	at->block->state = EXECMEM_BLOCK_FILLED;
	h->fills++;
	h->fill_bytes += len;
	return 0;
}

/* ---- one at a time ---- */

int execmem_alloc_in(execmem_domain *domain, int kind, size_t size, size_t align, const char *name, void **out)
{
	struct request r = {kind, size, align, name};
	execmem_domain *d;
	struct place at;
	int err = out ? check_request(&r) : em_error_null("out");

	if (EM_UNLIKELY(err < 0))
		return err;
	err = em_domain_enter(domain, &d);
	if (EM_UNLIKELY(err < 0))
		return err;
	err = alloc_locked(d, &r, &at);
	if (EM_LIKELY(err == 0))
		*out = (void *)(uintptr_t)at.block->address;
	else
		refuse(d, err);
	em_domain_leave(d);
	return err;
}

int execmem_place(execmem_domain *domain, int kind, const void *src, size_t len, size_t align, const char *name, void **out)
{
	struct request r = {kind, len, align, name};
	execmem_domain *d;
	struct place at;
	int err = check_request(&r);

	if (EM_UNLIKELY(err == 0 && (!src || !out)))
		err = em_error_null(src ? "out" : "src");
	if (EM_UNLIKELY(err < 0))
		return err;
	err = em_domain_enter(domain, &d);
	if (EM_UNLIKELY(err < 0))
		return err;
	err = alloc_locked(d, &r, &at);
	if (EM_LIKELY(err == 0)) {
		err = write_locked(d, &at, at.block->address, src, len);
		if (EM_UNLIKELY(err < 0))
			drop_locked(d, &at); /* nothing was written, or it is blank again */
	}
	if (EM_LIKELY(err == 0))
		*out = (void *)(uintptr_t)at.block->address;
	else
		refuse(d, err);
	em_domain_leave(d);
	return err;
}

int execmem_fill(void *dst, const void *src, size_t len)
{
	uint64_t address = (uintptr_t)dst;
	execmem_domain *d;
	struct place at;
	int err = em_domain_enter_owner(dst, &d);

	if (EM_UNLIKELY(err < 0))
		return err;
	err = find_block(d, address, &at);
	if (EM_UNLIKELY(err == 0 && len > at.block->address + at.block->size - address))
		err = em_error_set(EXECMEM_EBOUNDS,
		                   "writing %llu bytes at %#llx would leave its block, which has %u bytes at %#llx. Allocate a larger one.",
		                   (unsigned long long)len, (unsigned long long)address, at.block->size,
		                   (unsigned long long)at.block->address);
	/* An address in the last chunk beyond the block's size lies outside of it too. */
	if (EM_UNLIKELY(err == 0 && address > at.block->address + at.block->size))
		err = em_error_set(EXECMEM_EBOUNDS, "address %#llx lies beyond the %u bytes of the block at %#llx.",
		                   (unsigned long long)address, at.block->size, (unsigned long long)at.block->address);
	if (EM_UNLIKELY(err == 0 && !src && len > 0))
		err = em_error_null("src");
	if (EM_LIKELY(err == 0 && len > 0)) {
		err = write_locked(d, &at, address, src, len);
		if (EM_LIKELY(err == 0))
			em_ledger_event(&d->ledger, EXECMEM_EVENT_FILL, address, len, em_domain_ms(d));
	}
	if (EM_UNLIKELY(err < 0))
		refuse(d, err);
	em_domain_leave(d);
	return err;
}

/* Asks for the lines that free is about to blank, so that they come while the block's record does: both are cold as a rule. */
static void expect_blanking(execmem_domain *d, uint64_t address)
{
	uint64_t offset = address - d->ledger.header->window;
	uint32_t pack = (uint32_t)(offset >> EM_PACK_SHIFT), chunk = offset >> EM_CHUNK_SHIFT & (EXECMEM_PACK_CHUNKS - 1);
	uint32_t chunks;

	if (!d->map.alias || pack >= d->map.packs || d->ledger.packs[pack].state == EXECMEM_PACK_ABSENT)
		return;
	chunks = em_pack_length(em_ledger_pack(&d->ledger, pack), chunk);
	for (uint32_t i = 0; i < chunks && i < PREFETCH; i++)
		__builtin_prefetch(d->map.alias + offset + (uint64_t)i * EXECMEM_CHUNK, 1);
}

static int free_entered(execmem_domain *d, void *address)
{
	struct place at;
	int err;

	expect_blanking(d, (uintptr_t)address);
	err = find_start(d, (uintptr_t)address, &at);
	if (EM_LIKELY(err == 0))
		err = free_locked(d, &at);
	if (EM_UNLIKELY(err < 0))
		refuse(d, err);
	em_domain_leave(d);
	return err;
}

int execmem_free_in(execmem_domain *domain, void *address)
{
	execmem_domain *d;
	int err = em_domain_enter(domain, &d);

	return EM_UNLIKELY(err < 0) ? err : free_entered(d, address);
}

/* ---- the kernel's three calls ---- */

void *execmem_alloc(size_t size, size_t align)
{
	void *out;

	return execmem_alloc_in(NULL, EXECMEM_TEXT, size, align, NULL, &out) == 0 ? out : NULL;
}

int execmem_free(void *address)
{
	execmem_domain *d;
	int err = em_domain_enter_owner(address, &d);

	return EM_UNLIKELY(err < 0) ? err : free_entered(d, address);
}

/* ---- batches ---- */

static int at_index(int err, size_t index)
{
	em_error_at(index);
	return err;
}

/* A block that this batch took. When its memory cannot be made blank again it stays taken, out of everybody's hands, until its domain
 * closes: a free chunk must hold traps. */
static void take_back(execmem_domain *d, uint64_t address)
{
	struct place at;

	if (find_start(d, address, &at) == 0 && free_locked(d, &at) < 0)
		at.block->state = EXECMEM_BLOCK_DYING;
}

struct kept_error {
	int code;
	char text[480];
};

static void take_back_many(execmem_domain *d, const uint64_t *addresses, size_t count)
{
	struct kept_error kept = {.code = execmem_error_code()};

	strncpy(kept.text, execmem_error_text(), sizeof kept.text - 1);
	while (count-- > 0)
		take_back(d, addresses[count]);
	em_error_set(kept.code, "%s", kept.text);
}

static int alloc_many_locked(execmem_domain *d, struct request *r, size_t count, const uint64_t *sizes, const uint64_t *offsets,
                             const char *names, uint64_t *out)
{
	for (size_t i = 0; i < count; i++) {
		struct place at;
		int err;

		r->size = sizes ? sizes[i] : offsets[i + 1] - offsets[i];
		r->name = names;
		err = check_request(r);
		if (EM_LIKELY(err == 0))
			err = alloc_locked(d, r, &at);
		if (EM_UNLIKELY(err < 0)) {
			take_back_many(d, out, i);
			return at_index(err, i);
		}
		out[i] = at.block->address;
		if (names)
			names += strlen(names) + 1;
	}
	return 0;
}

int execmem_alloc_many(execmem_domain *domain, int kind, size_t count, const uint64_t *sizes, size_t align, const char *names,
                       uint64_t *out)
{
	struct request r = {.kind = kind, .align = align};
	execmem_domain *d;
	int err = count > 0 && (!sizes || !out) ? em_error_null(sizes ? "out" : "sizes") : em_domain_enter(domain, &d);

	if (err < 0)
		return err;
	err = alloc_many_locked(d, &r, count, sizes, NULL, names, out);
	if (err < 0)
		refuse(d, err);
	em_domain_leave(d);
	return err;
}

/* Writes of one batch, gathered while blocks lie side by side, where each write costs a system call. */
struct stage {
	execmem_domain *d;
	struct place at; /* a block of the pack the bytes are for */
	uint64_t offset; /* from the window's start */
	size_t used;
	size_t first; /* batch element that the bytes start with */
	uint64_t fills, fill_bytes; /* not counted yet: they are once they are written */
	uint8_t bytes[STAGE];
};

static int flush_stage(struct stage *s)
{
	struct em_poke where;
	int err;

	if (!s->used)
		return 0;
	where = em_domain_where(s->d, s->at.pack);
	err = em_poke_copy(&where, s->offset, s->bytes, s->used);
	s->used = 0;
	if (err < 0)
		return at_index(err, s->first);
	s->d->ledger.header->fills += s->fills;
	s->d->ledger.header->fill_bytes += s->fill_bytes;
	s->fills = s->fill_bytes = 0;
	return 0;
}

static int stage_block(struct stage *s, const struct place *at, size_t index, const uint8_t *src, uint64_t size)
{
	execmem_domain *d = s->d;
	uint64_t offset = at->block->address - d->ledger.header->window, bytes = rounded(size);
	int err;

	if (bytes > STAGE) {
		err = flush_stage(s);
		if (err < 0)
			return err;
		err = write_locked(d, at, at->block->address, src, size);
		return err < 0 ? at_index(err, index) : 0;
	}
	if (s->used && (offset != s->offset + s->used || s->used + bytes > STAGE || at->pack != s->at.pack)) {
		err = flush_stage(s);
		if (err < 0)
			return err;
	}
	if (!s->used) {
		s->offset = offset;
		s->at = *at;
		s->first = index;
	}
	if (at->block->kind == EXECMEM_TEXT) /* the rest of the last chunk stays blank */
		d->arch->fill_traps(s->bytes + s->used + bytes - EXECMEM_CHUNK, EXECMEM_CHUNK);
	else
		memset(s->bytes + s->used + bytes - EXECMEM_CHUNK, 0, EXECMEM_CHUNK);
	memcpy(s->bytes + s->used, src, size);
	s->used += bytes;
	at->block->state = EXECMEM_BLOCK_FILLED;
	s->fills++;
	s->fill_bytes += size;
	return 0;
}

/* Writes the blocks of a batch in order. On failure execmem_error_index() is the first that was not written. */
static int write_many(execmem_domain *d, int kind, size_t count, const uint8_t *src, const uint64_t *offsets,
                      const uint64_t *addresses)
{
	bool direct = d->map.mode == EXECMEM_MODE_ALIAS || kind == EXECMEM_DATA;
	struct stage stage;

	stage.d = d;
	stage.used = 0;
	stage.fills = stage.fill_bytes = 0;
	for (size_t i = 0; i < count; i++) {
		uint64_t size = offsets[i + 1] - offsets[i];
		struct place at;
		int err = find_start(d, addresses[i], &at);

		em_always(err == 0); /* this batch took it */
		if (!direct)
			err = stage_block(&stage, &at, i, src + offsets[i], size);
		else if ((err = write_locked(d, &at, addresses[i], src + offsets[i], size)) < 0)
			em_error_at(i);
		if (err < 0)
			return err;
	}
	return flush_stage(&stage);
}

static int check_offsets(size_t count, const void *src, const uint64_t *offsets, const void *addresses)
{
	if (count > 0 && (!src || !offsets || !addresses))
		return em_error_null(!src ? "src" : !offsets ? "offsets" : "out or dst");
	for (size_t i = 0; i < count; i++)
		if (offsets[i + 1] < offsets[i])
			return at_index(em_error_set(EXECMEM_EINVAL, "offsets[%llu] is %llu and the next is %llu; they must not fall.",
			                             (unsigned long long)i, (unsigned long long)offsets[i], (unsigned long long)offsets[i + 1]),
			                i);
	return 0;
}

int execmem_place_many(execmem_domain *domain, int kind, size_t count, const void *src, const uint64_t *offsets, size_t align,
                       const char *names, uint64_t *out)
{
	struct request r = {.kind = kind, .align = align};
	execmem_domain *d;
	int err = check_offsets(count, src, offsets, out);

	if (err == 0)
		err = em_domain_enter(domain, &d);
	if (err < 0)
		return err;
	err = alloc_many_locked(d, &r, count, NULL, offsets, names, out);
	if (err == 0) {
		err = write_many(d, kind, count, src, offsets, out);
		if (err < 0) {
			size_t index = execmem_error_index();

			for (size_t i = index; i < count; i++) { /* not written, so blank still */
				struct place at;

				if (find_start(d, out[i], &at) == 0)
					at.block->state = EXECMEM_BLOCK_RESERVED;
			}
			take_back_many(d, out, count);
			em_error_at(index);
		}
	}
	if (err < 0)
		refuse(d, err);
	em_domain_leave(d);
	return err;
}

static int check_fill(execmem_domain *d, uint64_t dst, uint64_t size, struct place *at)
{
	int err = find_block(d, dst, at);

	if (err == 0 && (dst > at->block->address + at->block->size || size > at->block->address + at->block->size - dst))
		err = em_error_set(EXECMEM_EBOUNDS, "writing %llu bytes at %#llx would leave its block of %u bytes at %#llx.",
		                   (unsigned long long)size, (unsigned long long)dst, at->block->size,
		                   (unsigned long long)at->block->address);
	return err;
}

int execmem_fill_many(execmem_domain *domain, size_t count, const uint64_t *dst, const void *src, const uint64_t *offsets)
{
	execmem_domain *d;
	struct place at;
	int err = check_offsets(count, src, offsets, dst);

	if (err == 0)
		err = em_domain_enter(domain, &d);
	if (err < 0)
		return err;
	for (size_t i = 0; i < count && err == 0; i++) {
		err = check_fill(d, dst[i], offsets[i + 1] - offsets[i], &at);
		if (err < 0)
			em_error_at(i);
	}
	for (size_t i = 0; i < count && err == 0; i++) {
		uint64_t size = offsets[i + 1] - offsets[i];

		if (size == 0)
			continue;
		err = check_fill(d, dst[i], size, &at);
		if (err == 0)
			err = write_locked(d, &at, dst[i], (const uint8_t *)src + offsets[i], size);
		if (err < 0)
			em_error_at(i);
	}
	if (err < 0)
		refuse(d, err);
	em_domain_leave(d);
	return err;
}

/* Marks the blocks; at the first that is no live block, or is named twice, unmarks and refuses. */
static int mark_dying(execmem_domain *d, size_t count, const uint64_t *addresses, size_t *marked)
{
	for (*marked = 0; *marked < count; (*marked)++) {
		struct place at;
		int err = find_start(d, addresses[*marked], &at);

		if (err == 0 && at.block->state == EXECMEM_BLOCK_DYING)
			err = em_error_set(EXECMEM_EFREED, "the block at %#llx is named twice in this batch.",
			                   (unsigned long long)addresses[*marked]);
		if (err < 0)
			return at_index(err, *marked);
		at.block->reserved = at.block->state;
		at.block->state = EXECMEM_BLOCK_DYING;
	}
	return 0;
}

static void unmark_dying(execmem_domain *d, size_t from, size_t to, const uint64_t *addresses)
{
	for (size_t i = from; i < to; i++) {
		struct place at;

		if (find_start(d, addresses[i], &at) == 0 && at.block->state == EXECMEM_BLOCK_DYING)
			at.block->state = (uint8_t)at.block->reserved;
	}
}

int execmem_free_many(execmem_domain *domain, size_t count, const uint64_t *addresses)
{
	execmem_domain *d;
	size_t marked = 0, done = 0;
	int err = count > 0 && !addresses ? em_error_null("addresses") : em_domain_enter(domain, &d);

	if (err < 0)
		return err;
	err = mark_dying(d, count, addresses, &marked);
	for (; err == 0 && done < count; done++) {
		struct place at;

		err = find_start(d, addresses[done], &at);
		em_always(err == 0); /* it was marked under this lock */
		at.block->state = (uint8_t)at.block->reserved;
		err = free_locked(d, &at);
		if (err < 0) {
			em_error_at(done);
			break;
		}
	}
	if (err < 0) {
		struct kept_error kept = {.code = err};
		size_t index = execmem_error_index();

		strncpy(kept.text, execmem_error_text(), sizeof kept.text - 1);
		unmark_dying(d, done, marked, addresses);
		em_error_set(kept.code, "%s", kept.text);
		em_error_at(index);
		refuse(d, err);
	}
	em_domain_leave(d);
	return err;
}

/* ---- small answers ---- */

const char *execmem_mode_name(int write_mode)
{
	static const char *const names[EXECMEM_MODES] = {"auto", "syscall", "alias", "procmem", "flip"};

	return write_mode >= 0 && write_mode < EXECMEM_MODES ? names[write_mode] : "unknown";
}

int execmem_sync(void)
{
	int err = em_sys_sync_core();

	return err < 0 ? em_error_system(err, "synchronise every thread's instruction stream (membarrier)") : 0;
}
