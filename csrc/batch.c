/* batch: many blocks in one crossing and under one lock.
 *
 * All or none: what can be refused is looked at before anything changes, or taken back. Where a write is a system call, the bytes of blocks
 * that lie side by side are gathered and written at once. Where other CPUs must be told of new code, they are once, at the end.
 */
#include "block.h"
#include "error.h"

#include <string.h>

enum {
	STAGE = 32768, /* bytes gathered for one write */
	RUN_BLOCKS = 64, /* blocks, */
	RUN_CHUNKS = 512, /* and chunks, taken in one piece */
	RUN_LARGEST = 64, /* chunks of a block that is not worth it; fits 8 bits */
};

static int at_index(int err, size_t index)
{
	em_error_at(index);
	return err;
}

static int check_offsets(size_t count, const void *src, const uint64_t *offsets, const void *addresses)
{
	if (count > 0 && (!src || !offsets || !addresses))
		return em_error_null(!src ? "src" : !offsets ? "offsets" : "out or dst");
	for (size_t i = 0; i < count; i++)
		if (EM_UNLIKELY(offsets[i + 1] < offsets[i]))
			return at_index(em_error_set(EXECMEM_EINVAL, "offsets[%llu] is %llu and the next is %llu; they must not fall.",
			                             (unsigned long long)i, (unsigned long long)offsets[i], (unsigned long long)offsets[i + 1]),
			                i);
	return 0;
}

/* ---- what is locked ---- */

struct hold {
	execmem_domain *d;
	struct em_shard *one; /* this shard; NULL: all of the domain's */
};

static uint64_t pack_at(const execmem_domain *d, uint64_t address)
{
	return (address - (uintptr_t)d->map.window) >> EM_PACK_SHIFT;
}

static void release(const struct hold *h)
{
	if (h->one)
		em_domain_leave(h->one);
	else
		em_domain_leave_all(h->d);
}

/* One shard is locked. Where that is not enough for all of the addresses, it is given up for all shards; an error: nothing is locked. */
static int hold_all_of(struct hold *h, size_t count, const uint64_t *addresses)
{
	execmem_domain *d;
	int err;

	for (size_t i = 0; h->one && i < count; i++) {
		uint64_t pack = pack_at(h->d, addresses[i]);

		if (EM_LIKELY(pack >= h->d->map.packs || em_domain_shard_of(h->d, pack) == h->one->number))
			continue; /* outside of the window it will be refused */
		atomic_fetch_add(&h->d->makers, 1); /* a call in flight, for which sealing and closing wait */
		em_domain_leave(h->one);
		h->one = NULL;
		err = em_domain_enter_all(h->d, &d);
		atomic_fetch_sub(&h->d->makers, 1);
		return err;
	}
	return 0;
}

/* For given addresses, or (NULL) for new blocks. */
static int enter(struct hold *h, execmem_domain *domain, size_t count, const uint64_t *addresses)
{
	h->one = !addresses  ? em_domain_enter(domain)
	         : count > 0 ? em_domain_enter_at(domain, addresses[0])
	                     : em_domain_enter_asking(domain);
	if (!h->one)
		return at_index(execmem_error_code(), 0);
	h->d = h->one->domain;
	return hold_all_of(h, count, addresses);
}

static struct em_shard *shard_at(const struct hold *h, uint64_t address)
{
	return h->one ? h->one : h->d->shards[em_domain_shard_of(h->d, pack_at(h->d, address))];
}

/* The live block that starts at an address. */
static int find_start(const struct hold *h, uint64_t address, struct em_place *out)
{
	if (EM_UNLIKELY(pack_at(h->d, address) >= h->d->map.packs))
		return em_error_set(EXECMEM_EFOREIGN, "address %#llx is not in the window of domain \"%s\".", (unsigned long long)address,
		                    h->d->ledger.header->name);
	if (EM_LIKELY(em_block_is_start(shard_at(h, address), address, out)))
		return 0;
	return em_block_find_start(shard_at(h, address), address, out);
}

static int end(const struct hold *h, int err)
{
	if (EM_UNLIKELY(err < 0))
		em_block_refuse(h->one ? h->one : h->d->shards[0], err);
	release(h);
	return err;
}

/* ---- taking back ---- */

/* Other CPUs are told of all that was written since em_poke_gather. `err`, what came of that, stays; 0: it is what comes of the telling. */
static int tell_cpus(const struct hold *h, int err)
{
	struct em_error_kept kept;

	if (EM_LIKELY(err == 0)) {
		err = em_poke_tell(h->d->arch);
		return EM_UNLIKELY(err < 0) ? at_index(err, 0) : 0;
	}
	em_error_keep(&kept);
	(void)em_poke_tell(h->d->arch);
	return em_error_tell(&kept);
}

/* Frees blocks that this batch took. `written`: other CPUs could not be told of their bytes; as with a block alone, those are taken back
 * once more where the system refuses it. */
static void take_back(struct hold *h, const uint64_t *addresses, size_t count, bool written)
{
	struct em_error_kept kept;

	em_error_keep(&kept);
	if (hold_all_of(h, count, addresses) < 0) { /* closed meanwhile, and the blocks went with it */
		h->d = NULL;
		return;
	}
	while (count-- > 0) {
		struct em_place at;

		if (find_start(h, addresses[count], &at) < 0)
			continue;
		if (written)
			em_block_unwrite(shard_at(h, addresses[count]), &at, at.address, at.size);
		em_block_take_back(shard_at(h, addresses[count]), &at);
	}
	em_error_tell(&kept);
}

/* ---- alloc and place ---- */

/* Blocks of a batch are taken in runs where free runs are long enough: one search for many, they lie side by side, and what is written
 * at once is longer. */
struct batch {
	struct em_shard *s;
	struct em_request r;
	size_t count;
	const uint64_t *sizes, *offsets; /* either */
	const char *names;
	struct em_run run;
	size_t singly; /* elements before this one are taken one by one: no run was long enough */
	uint32_t ms;
};

static uint64_t size_of(const struct batch *b, size_t i)
{
	return b->sizes ? b->sizes[i] : b->offsets[i + 1] - b->offsets[i];
}

/* Gives back what is left of the run: a batch that fails midway does not use it up. */
static void end_run(struct batch *b)
{
	struct em_run *run = &b->run;

	if (run->next < run->end) {
		em_ledger_drop_blocks(&b->s->domain->ledger, run->pack, run->next, run->end);
		em_pack_join(em_ledger_pack(&b->s->domain->ledger, run->pack), run->next, run->end);
		em_supply_give(b->s, run->pack, run->next);
	}
	run->next = run->end = 0;
}

/* Takes a run for as many blocks of these lengths, `chunks` in all; false: no free run is long enough. */
static bool take_run(struct batch *b, size_t many, const uint8_t lengths[RUN_BLOCKS], uint32_t chunks)
{
	struct em_ledger *l = &b->s->domain->ledger;
	struct em_run *run = &b->run;
	uint32_t at;

	if (!em_supply_take_run(b->s, b->r.kind, chunks, &run->pack, &run->next))
		return false;
	run->end = run->next + chunks;
	run->block = NULL;
	at = run->next;
	for (size_t k = 0; k + 1 < many; k++) {
		at += lengths[k];
		em_pack_cut(em_ledger_pack(l, run->pack), at);
	}
	if (EM_LIKELY(em_ledger_add_blocks(l, run->pack, run->next, run->end)))
		return true;
	em_pack_join(em_ledger_pack(l, run->pack), run->next, run->end);
	em_supply_give(b->s, run->pack, run->next);
	run->next = run->end = 0;
	return false;
}

/* Chunks of the elements from i on that a run is to hold, *many at most; *many: how many they are; lengths: chunks of each. */
static uint32_t sum_chunks(const struct batch *b, size_t i, size_t *many, uint8_t lengths[RUN_BLOCKS])
{
	uint32_t chunks = 0;
	size_t most = b->count - i < *many ? b->count - i : *many;

	for (*many = 0; *many < most; ++*many) {
		uint64_t more = (size_of(b, i + *many) + EXECMEM_CHUNK - 1) >> EM_CHUNK_SHIFT;

		if (more == 0 || more > RUN_LARGEST || chunks + more > RUN_CHUNKS)
			break;
		lengths[*many] = (uint8_t)more;
		chunks += (uint32_t)more;
	}
	return chunks;
}

/* Takes the longest run there is for the elements from i on, of those tried: for half as many each time. */
static void start_run(struct batch *b, size_t i)
{
	size_t many = RUN_BLOCKS, first_try = 0;
	uint8_t lengths[RUN_BLOCKS];

	do {
		uint32_t chunks = sum_chunks(b, i, &many, lengths);

		first_try = first_try ? first_try : many;
		if (b->r.align <= EXECMEM_CHUNK && many > 1 && !b->s->domain->gap && take_run(b, many, lengths, chunks))
			return;
		many /= 2;
	} while (many > 1);
	b->singly = i + (first_try ? first_try : 1);
}

/* Allocates element i. */
static int alloc_next(struct batch *b, size_t i, struct em_place *at)
{
	int err;

	b->r.size = size_of(b, i);
	b->r.name = b->names;
	err = em_block_check(&b->r);
	if (EM_LIKELY(err == 0)) {
		if (b->run.next == b->run.end && i >= b->singly)
			start_run(b, i);
		err = em_block_alloc(b->s, &b->r, &b->run, b->ms, at);
	}
	if (EM_UNLIKELY(err < 0))
		return at_index(err, i);
	if (b->names)
		b->names += strlen(b->names) + 1;
	return 0;
}

int execmem_alloc_many(execmem_domain *domain, int kind, size_t count, const uint64_t *sizes, size_t align, const char *names,
                       uint64_t *out)
{
	struct batch b = {.r = {.kind = kind, .align = align}, .count = count, .sizes = sizes, .names = names};
	struct hold h = {0};
	int err = count > 0 && (!sizes || !out) ? em_error_null(sizes ? "out" : "sizes") : enter(&h, domain, 0, NULL);

	if (err < 0)
		return err;
	b.s = h.one;
	b.ms = em_domain_ms(b.s->domain);
	for (size_t i = 0; i < count; i++) {
		struct em_place at;

		err = alloc_next(&b, i, &at);
		if (EM_UNLIKELY(err < 0)) {
			end_run(&b);
			take_back(&h, out, i, false);
			return h.d ? end(&h, err) : err;
		}
		out[i] = at.address;
	}
	end_run(&b);
	return end(&h, 0);
}

/* Writes of one batch, gathered while blocks lie side by side, where each write costs a system call. */
struct stage {
	struct em_shard *s;
	struct em_place at; /* of the first block: which pack the bytes are for */
	size_t used;
	size_t first; /* batch element that the bytes start with */
	uint64_t fills, fill_bytes; /* not counted yet: they are once they are written */
	uint8_t bytes[STAGE];
};

static int flush_stage(struct stage *st)
{
	int err;

	if (!st->used)
		return 0;
	err = em_block_write_slow(st->s, &st->at, st->at.address, st->bytes, st->used);
	st->used = 0;
	if (err < 0)
		return at_index(err, st->first);
	em_add(st->s->books->fills, st->fills);
	em_add(st->s->books->fill_bytes, st->fill_bytes);
	st->fills = st->fill_bytes = 0;
	return 0;
}

static int stage_block(struct stage *st, const struct em_place *at, size_t index, const uint8_t *src, uint64_t size)
{
	uint64_t bytes = (uint64_t)at->chunks << EM_CHUNK_SHIFT;
	int err = 0;

	if (st->used && (bytes > STAGE - st->used || at->address != st->at.address + st->used || at->pack != st->at.pack))
		err = flush_stage(st);
	if (err < 0)
		return err;
	if (bytes > STAGE) {
		err = em_block_write(st->s, at, at->address, src, size);
		return err < 0 ? at_index(err, index) : 0;
	}
	if (!st->used) {
		st->at = *at;
		st->first = index;
	}
	if (at->block->kind == EXECMEM_TEXT) /* the rest of the last chunk stays blank */
		st->s->domain->arch->fill_traps(st->bytes + st->used + bytes - EXECMEM_CHUNK, EXECMEM_CHUNK);
	else
		memset(st->bytes + st->used + bytes - EXECMEM_CHUNK, 0, EXECMEM_CHUNK);
	memcpy(st->bytes + st->used, src, size);
	st->used += bytes;
	at->block->state = EXECMEM_BLOCK_FILLED;
	st->fills++;
	st->fill_bytes += size;
	return 0;
}

/* Places the elements in order. *placed: those that have a block. */
static int place_all(struct stage *st, struct batch *b, const uint8_t *src, uint64_t *out, size_t *placed)
{
	bool direct = b->s->plain || b->r.kind == EXECMEM_DATA;
	int err = 0;

	for (*placed = 0; *placed < b->count; ++*placed) {
		size_t i = *placed;
		struct em_place at;

		err = alloc_next(b, i, &at);
		if (EM_UNLIKELY(err < 0))
			return err;
		out[i] = at.address;
		err = direct ? em_block_write(st->s, &at, at.address, src + b->offsets[i], b->r.size)
		             : stage_block(st, &at, i, src + b->offsets[i], b->r.size);
		if (EM_UNLIKELY(err < 0)) {
			++*placed;
			return direct ? at_index(err, i) : err;
		}
	}
	return flush_stage(st);
}

int execmem_place_many(execmem_domain *domain, int kind, size_t count, const void *src, const uint64_t *offsets, size_t align,
                       const char *names, uint64_t *out)
{
	struct batch b = {.r = {.kind = kind, .align = align}, .count = count, .offsets = offsets, .names = names};
	size_t placed = 0;
	struct stage stage;
	struct hold h = {0};
	int err = check_offsets(count, src, offsets, out);
	bool all_written;

	if (err == 0)
		err = enter(&h, domain, 0, NULL);
	if (err < 0)
		return err;
	b.s = stage.s = h.one;
	b.ms = em_domain_ms(b.s->domain);
	stage.used = 0;
	stage.fills = stage.fill_bytes = 0;
	em_poke_gather(b.s->domain->arch);
	err = place_all(&stage, &b, src, out, &placed);
	end_run(&b);
	all_written = err == 0;
	err = tell_cpus(&h, err);
	if (EM_UNLIKELY(err < 0)) {
		take_back(&h, out, placed, all_written);
		if (!h.d)
			return err;
	}
	return end(&h, err);
}

/* ---- fill ---- */

static int check_fill(const struct hold *h, uint64_t dst, uint64_t size, struct em_place *at)
{
	int err;

	if (EM_UNLIKELY(pack_at(h->d, dst) >= h->d->map.packs))
		return find_start(h, dst, at);
	err = em_block_is_start(shard_at(h, dst), dst, at) ? 0 : em_block_find(shard_at(h, dst), dst, at);
	if (err == 0 && (dst > at->address + at->size || size > at->address + at->size - dst))
		err = em_error_set(EXECMEM_EBOUNDS, "writing %llu bytes at %#llx would leave its block of %llu bytes at %#llx.",
		                   (unsigned long long)size, (unsigned long long)dst, (unsigned long long)at->size,
		                   (unsigned long long)at->address);
	if (EM_UNLIKELY(err == 0 && size > 0))
		err = em_block_refuse_write(shard_at(h, dst), at);
	return err;
}

/* Other CPUs could not be told of what was written: none of it may be run. */
static void take_back_fills(const struct hold *h, size_t count, const uint64_t *dst, const uint64_t *offsets)
{
	struct em_error_kept kept;
	struct em_place at;

	em_error_keep(&kept);
	for (size_t i = 0; i < count; i++)
		if (offsets[i + 1] > offsets[i] && check_fill(h, dst[i], offsets[i + 1] - offsets[i], &at) == 0)
			em_block_unwrite(shard_at(h, dst[i]), &at, dst[i], offsets[i + 1] - offsets[i]);
	em_error_tell(&kept);
}

int execmem_fill_many(execmem_domain *domain, size_t count, const uint64_t *dst, const void *src, const uint64_t *offsets)
{
	struct em_place at;
	struct hold h = {0};
	int err = check_offsets(count, src, offsets, dst);
	bool all_written;

	if (err == 0)
		err = enter(&h, domain, count, dst);
	if (err < 0)
		return err;
	for (size_t i = 0; i < count && err == 0; i++) {
		err = check_fill(&h, dst[i], offsets[i + 1] - offsets[i], &at);
		if (err < 0)
			em_error_at(i);
	}
	em_poke_gather(h.d->arch);
	for (size_t i = 0; i < count && err == 0; i++) {
		uint64_t size = offsets[i + 1] - offsets[i];

		if (size == 0)
			continue;
		err = check_fill(&h, dst[i], size, &at);
		if (err == 0)
			err = em_block_write(shard_at(&h, dst[i]), &at, dst[i], (const uint8_t *)src + offsets[i], size);
		if (err < 0)
			em_error_at(i);
	}
	all_written = err == 0;
	err = tell_cpus(&h, err);
	if (EM_UNLIKELY(all_written && err < 0))
		take_back_fills(&h, count, dst, offsets);
	return end(&h, err);
}

/* ---- free ---- */

/* Marks the blocks; at the first that is no live block, or is named twice, refuses. */
static int mark_dying(const struct hold *h, size_t count, const uint64_t *addresses, size_t *marked)
{
	for (*marked = 0; *marked < count; (*marked)++) {
		struct em_place at;
		int err = find_start(h, addresses[*marked], &at);

		if (err == 0 && at.block->state & EXECMEM_BLOCK_DYING)
			err = em_error_set(EXECMEM_EFREED, "the block at %#llx is named twice in this batch.",
			                   (unsigned long long)addresses[*marked]);
		if (err < 0)
			return at_index(err, *marked);
		at.block->state |= EXECMEM_BLOCK_DYING;
	}
	return 0;
}

static void unmark_dying(const struct hold *h, size_t from, size_t to, const uint64_t *addresses)
{
	for (size_t i = from; i < to; i++) {
		struct em_place at;

		if (find_start(h, addresses[i], &at) == 0)
			at.block->state &= (uint8_t)~EXECMEM_BLOCK_DYING;
	}
}

/* Elements `from` to `to` of a batch: blocks that lie one behind the other in the order given, in one pack. */
struct row {
	size_t from, to;
	struct em_place all; /* the first, with the chunks of all */
	bool filled;         /* one is not blank */
};

static void find_row(const struct hold *h, size_t count, const uint64_t *addresses, size_t from, struct row *row)
{
	struct em_place at;
	uint64_t end;

	row->from = row->to = from;
	row->filled = false;
	do {
		em_always(find_start(h, addresses[row->to], &at) == 0); /* it was marked under this lock */
		if (row->to == from)
			row->all = at;
		else if (at.pack != row->all.pack)
			break;
		else
			row->all.chunks += at.chunks;
		row->filled |= !em_block_is_blank(at.block);
		end = at.address + ((uint64_t)at.chunks << EM_CHUNK_SHIFT);
		row->to++;
	} while (row->to < count && !at.span && addresses[row->to] == end);
}

static int blank_row(struct em_shard *s, const struct row *row, bool *cold)
{
	*cold = false;
	if (!row->filled)
		return 0;
	if (!s->plain)
		return em_block_blank_slow(s, &row->all, (uint64_t)row->all.chunks << EM_CHUNK_SHIFT);
	*cold = em_block_blank_plain(s, &row->all);
	return 0;
}

/* A lone block may be parked; a row becomes one free run, for the next batch. */
static void drop_row(const struct hold *h, struct em_shard *s, const uint64_t *addresses, const struct row *row, bool cold,
                     uint32_t ms)
{
	struct em_ledger *l = &h->d->ledger;
	uint32_t end = row->all.first + row->all.chunks;
	struct em_place at = row->all;

	if (row->to - row->from == 1) {
		em_block_drop(s, &at, cold, ms);
		return;
	}
	for (size_t i = row->from; i < row->to && h->d->quarantine; i++) {
		em_always(find_start(h, addresses[i], &at) == 0);
		em_block_drop(s, &at, cold, ms);
	}
	if (h->d->quarantine)
		return;
	for (size_t i = row->from; i < row->to; i++) {
		em_always(find_start(h, addresses[i], &at) == 0);
		em_block_uncount(s, &at, ms);
	}
	em_ledger_drop_blocks(l, row->all.pack, row->all.first, end);
	em_pack_join(em_ledger_pack(l, row->all.pack), row->all.first, end);
	em_supply_give(s, row->all.pack, row->all.first);
}

/* Frees blocks that are marked. *done: those before the first that is not freed. */
static int free_marked(const struct hold *h, size_t count, const uint64_t *addresses, size_t *done)
{
	uint32_t ms = em_domain_ms(h->d);

	for (*done = 0; *done < count;) {
		struct em_shard *s = shard_at(h, addresses[*done]);
		struct row row;
		bool cold;
		int err;

		if (EM_UNLIKELY(s->shared)) { /* each by itself: some may have to be held */
			struct em_place at;

			em_always(find_start(h, addresses[*done], &at) == 0);
			at.block->state &= (uint8_t)~EXECMEM_BLOCK_DYING;
			err = em_block_free(s, &at, ms);
			if (EM_UNLIKELY(err < 0)) {
				at.block->state |= EXECMEM_BLOCK_DYING; /* until it is taken back from all */
				return at_index(err, *done);
			}
			++*done;
			continue;
		}
		find_row(h, count, addresses, *done, &row);
		err = blank_row(s, &row, &cold);
		if (EM_UNLIKELY(err < 0))
			return at_index(err, *done);
		drop_row(h, s, addresses, &row, cold, ms);
		*done = row.to;
	}
	return 0;
}

int execmem_free_many(execmem_domain *domain, size_t count, const uint64_t *addresses)
{
	size_t marked = 0, done = 0;
	struct em_error_kept kept;
	struct hold h = {0};
	int err = count > 0 && !addresses ? em_error_null("addresses") : enter(&h, domain, count, addresses);

	if (err < 0)
		return err;
	err = mark_dying(&h, count, addresses, &marked);
	em_poke_gather(h.d->arch);
	if (err == 0)
		err = free_marked(&h, count, addresses, &done);
	if (err < 0)
		em_error_keep(&kept);
	(void)em_poke_tell(h.d->arch); /* of traps. Refused: so is what would be written there next */
	if (err < 0) {
		unmark_dying(&h, done, marked, addresses);
		em_error_tell(&kept);
	}
	return end(&h, err);
}
