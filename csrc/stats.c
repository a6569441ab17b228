/* stats: what is there now, as counted here and as the kernel tells; and whether a domain is lawful.
 *
 * These walk: costs grow with packs (stats) or with everything (check). No hot path comes here.
 */
#include "domain.h"
#include "error.h"
#include "fork.h"
#include "quarantine.h"

static uint64_t largest_free(const execmem_domain *d)
{
	uint64_t largest = 0;

	for (uint32_t pack = 0; pack < em_peek(d->ledger.header->packs_top); pack++) {
		const execmem_pack *p = &d->ledger.packs[pack];

		if (p->kind == EXECMEM_TEXT && !p->inherited && (p->state == EXECMEM_PACK_FULL || p->state == EXECMEM_PACK_SMALL)) {
			uint64_t run = (uint64_t)em_pack_largest(em_ledger_pack(&d->ledger, pack)) << EM_CHUNK_SHIFT;

			largest = run > largest ? run : largest;
		}
	}
	return largest;
}

/* Packs that are mapped whole, one kind of pack or span after the other. */
static bool is_whole(const execmem_domain *d, uint32_t pack)
{
	const execmem_pack *p = &d->ledger.packs[pack];
	uint32_t first = p->state == EXECMEM_PACK_SPAN_TAIL ? pack - p->span_packs : pack;
	uint64_t end = em_domain_offset(first, 0) + ((uint64_t)d->ledger.packs[first].usable_chunks << EM_CHUNK_SHIFT);

	return p->state != EXECMEM_PACK_ABSENT && em_domain_offset(pack + 1, 0) <= end;
}

/* Free chunks and parked ones; the packs that a forked child inherits are in neither count. */
static uint64_t idle_bytes(const execmem_domain *d, const execmem_shard *sum)
{
	uint64_t chunks = 0;

	for (uint32_t i = 0; i < atomic_load(&d->shard_count); i++)
		for (int kind = 0; kind < EXECMEM_KINDS; kind++)
			chunks += d->shards[i]->free_chunks[kind] + d->shards[i]->park[kind].chunks;
	return (chunks << EM_CHUNK_SHIFT) + sum->quarantined_bytes;
}

/* Of a pack that has held blocks. */
static uint64_t held_bytes(const execmem_domain *d, uint32_t pack)
{
	struct em_pack p = em_ledger_pack(&d->ledger, pack);
	uint64_t chunks = 0;

	if (p.record->state == EXECMEM_PACK_SPAN)
		return (uint64_t)p.record->usable_chunks << EM_CHUNK_SHIFT;
	for (uint32_t chunk = 0; chunk < p.record->usable_chunks; chunk++)
		if (em_pack_is_head(p, chunk) && em_ledger_block(&d->ledger, pack, chunk)->state == EXECMEM_BLOCK_HELD)
			chunks += em_pack_length(p, chunk);
	return chunks << EM_CHUNK_SHIFT;
}

/* Packs that no open file counts: data; and, once the domain is sealed and its file closed, all but those of the parent process. */
static bool is_counted_alone(const execmem_domain *d, uint32_t pack)
{
	const execmem_pack *p = &d->ledger.packs[pack];

	return em_map_has_file(d->map.mode) && (d->map.sealed ? !p->inherited : p->kind == EXECMEM_DATA);
}

static void ask_kernel(execmem_domain *d, execmem_stats *out)
{
	bool untold = false;

	for (uint32_t pack = 0; pack < em_peek(d->ledger.header->packs_top); pack++) {
		if (is_counted_alone(d, pack))
			out->resident_bytes += em_map_present(&d->map, em_domain_offset(pack, 0), EXECMEM_PACK_SIZE);
		if (d->ledger.packs[pack].held > 0) {
			out->held_blocks += d->ledger.packs[pack].held;
			out->held_bytes += held_bytes(d, pack);
		}
		if (is_whole(d, pack)) {
			uint64_t huge = em_map_huge(&d->map, em_domain_offset(pack, 0), EXECMEM_PACK_SIZE);

			out->full_packs++;
			if (huge == EM_MAP_UNTOLD) {
				untold = true;
				continue;
			}
			d->ledger.packs[pack].huge = huge == EXECMEM_PACK_SIZE;
			out->huge_packs += huge == EXECMEM_PACK_SIZE;
		}
	}
	out->huge_bytes = out->huge_packs * EXECMEM_PACK_SIZE;
	if (untold)
		out->huge_packs = out->huge_bytes = EM_MAP_UNTOLD;
	out->resident_bytes += em_map_resident(&d->map);
	out->ledger_bytes = em_ledger_resident(&d->ledger);
	out->vmas = em_map_vmas(&d->map);
}

int execmem_domain_stats(execmem_domain *domain, execmem_stats *out)
{
	const execmem_header *h;
	execmem_shard sum;
	execmem_domain *d;
	int err = out ? em_domain_enter_all(domain, &d) : em_error_null("out");

	if (err < 0)
		return err;
	h = d->ledger.header;
	for (uint32_t i = 0; i < atomic_load(&d->shard_count); i++)
		em_fork_release(d->shards[i]);
	em_domain_sum(d, &sum);
	*out = (execmem_stats){
		.live_blocks = sum.allocs - sum.frees - sum.retired_blocks,
		.live_bytes = sum.live_bytes - sum.retired_bytes,
		.used_bytes = sum.used_bytes,
		.limit = h->limit,
		.packs = h->packs_live,
		.largest_free = largest_free(d),
		.allocs = sum.allocs,
		.frees = sum.frees,
		.fills = sum.fills,
		.fill_bytes = sum.fill_bytes,
		.packs_made = h->packs_made,
		.packs_returned = h->packs_returned,
		.collapses = h->collapses,
		.collapse_failures = h->collapse_failures,
		.refusals = sum.refusals,
		.window = h->window,
		.window_bytes = em_domain_offset(d->map.packs, 0),
		.write_mode = h->write_mode,
		.far = d->map.far,
		.domain = h->domain,
		.parent = h->parent,
		.backing = d->map.backing,
		.quarantined_bytes = sum.quarantined_bytes,
		.quarantined_blocks = sum.quarantined_blocks,
		.idle_bytes = idle_bytes(d, &sum),
		.sealed = h->sealed,
		.trust = h->trust,
		.retired_bytes = sum.retired_bytes,
		.retired_blocks = sum.retired_blocks,
	};
	ask_kernel(d, out);
	em_domain_leave_all(d);
	out->charged_bytes = em_domain_charged(d);
	return 0;
}

int execmem_domain_count(execmem_domain *domain, execmem_shard *out)
{
	struct em_shard *s;

	if (!out)
		return em_error_null("out");
	s = em_domain_enter_asking(domain);
	if (!s)
		return execmem_error_code();
	em_domain_sum(s->domain, out);
	em_domain_leave(s);
	return 0;
}

const execmem_header *execmem_domain_ledger(execmem_domain *domain)
{
	struct em_shard *s = em_domain_enter_asking(domain);
	const execmem_header *h = s ? s->domain->ledger.header : NULL;

	if (s)
		em_domain_leave(s);
	return h;
}

/* ---- is it lawful? ---- */

struct census { /* of one shard */
	uint64_t blocks, live_bytes, used_bytes;
	uint32_t packs_of[EXECMEM_KINDS], usable_chunks[EXECMEM_KINDS], free_chunks[EXECMEM_KINDS];
	uint32_t shut_chunks[EXECMEM_KINDS];
	uint64_t parked_chunks[EXECMEM_KINDS];
	uint64_t held_blocks;
	uint64_t quarantined;
	uint64_t retired_blocks, retired_bytes; /* among the first two */
	uint32_t retired_of_pack; /* the pack that is looked at */
};

/* Law 2, on the memory itself. */
static bool is_blank(execmem_domain *d, uint32_t pack, uint32_t chunk, uint32_t chunks)
{
	struct em_poke where = em_domain_where(d, pack);

	return em_poke_is_blank(&where, em_domain_offset(pack, chunk), (uint64_t)chunks << EM_CHUNK_SHIFT);
}

static const char *check_block(execmem_domain *d, uint32_t pack, uint32_t first, uint64_t bytes, struct census *c)
{
	const execmem_block *block = em_ledger_block(&d->ledger, pack, first);
	bool inherited = d->ledger.packs[pack].inherited;

	if (block->state == EXECMEM_BLOCK_HELD || (inherited && block->state == EXECMEM_BLOCK_PARKED)) {
		c->held_blocks += block->state == EXECMEM_BLOCK_HELD;
		return NULL; /* another process may write there, or this one must not */
	}
	if (block->state == EXECMEM_BLOCK_PARKED || block->state == EXECMEM_BLOCK_QUARANTINED) {
		bool parked = block->state == EXECMEM_BLOCK_PARKED;

		c->parked_chunks[block->kind] += parked ? bytes >> EM_CHUNK_SHIFT : 0;
		c->quarantined += !parked;
		return is_blank(d, pack, first, (uint32_t)(bytes >> EM_CHUNK_SHIFT)) ? NULL : "a parked or quarantined block is not blank";
	}
	if ((block->state != EXECMEM_BLOCK_RESERVED && block->state != EXECMEM_BLOCK_FILLED && block->state != EXECMEM_BLOCK_RETIRED &&
	     !(block->state & EXECMEM_BLOCK_DYING)) ||
	    block->kind != d->ledger.packs[pack].kind)
		return "a block's record tells another state or kind than its pack";
	if (block->unused >= (bytes > EXECMEM_PACK_SIZE ? EM_PAGE : EXECMEM_CHUNK))
		return "a block's record tells another size than its chunks";
	if (block->state == EXECMEM_BLOCK_RETIRED) {
		c->retired_blocks++;
		c->retired_of_pack++;
		c->retired_bytes += bytes - block->unused;
	}
	c->blocks++;
	c->live_bytes += bytes - block->unused;
	c->used_bytes += bytes;
	return NULL;
}

static const char *check_chunks(execmem_domain *d, uint32_t pack, struct census *c)
{
	struct em_pack p = em_ledger_pack(&d->ledger, pack);
	uint32_t chunk = 0;

	while (chunk < p.record->usable_chunks) {
		if (em_pack_is_head(p, chunk)) {
			uint32_t chunks = em_pack_length(p, chunk);
			const char *broken = check_block(d, pack, chunk, (uint64_t)chunks << EM_CHUNK_SHIFT, c);

			if (broken)
				return broken;
			chunk += chunks;
			continue;
		}
		if (!p.record->inherited && !is_blank(d, pack, chunk, 1))
			return "a free chunk is not blank";
		chunk++;
	}
	return NULL;
}

static const char *check_inherited(execmem_domain *d, uint32_t pack, struct census *c)
{
	struct em_pack pair = em_ledger_pack(&d->ledger, pack);
	const char *broken = em_pack_check(pair);

	if (!broken)
		broken = em_ledger_check_pack(&d->ledger, pack);
	return broken ? broken : check_chunks(d, pack, c);
}

static const char *check_pack(execmem_domain *d, const struct em_shard *s, uint32_t pack, struct census *c)
{
	const execmem_pack *p = &d->ledger.packs[pack];
	struct em_pack pair = em_ledger_pack(&d->ledger, pack);
	struct em_classes none = {0};
	const char *broken;

	if (p->state == EXECMEM_PACK_ABSENT)
		return NULL;
	if (!(em_peek(d->present[pack / 64]) >> pack % 64 & 1))
		return "a pack is not in the map of those present";
	if (p->shard != s->number)
		return "a pack's record tells another shard";
	if (p->state == EXECMEM_PACK_SPAN_TAIL)
		return d->ledger.packs[pack - p->span_packs].state == EXECMEM_PACK_SPAN ? NULL : "a span's tail has no head";
	if (p->state == EXECMEM_PACK_SPAN)
		return check_block(d, pack, 0, (uint64_t)p->usable_chunks << EM_CHUNK_SHIFT, c);
	if (p->inherited)
		return check_inherited(d, pack, c);
	c->packs_of[p->kind]++;
	c->usable_chunks[p->kind] += p->usable_chunks;
	c->free_chunks[p->kind] += p->usable_chunks - p->used_chunks;
	if ((p->state == EXECMEM_PACK_SMALL) != (s->small[p->kind] == pack))
		return "a small pack is not the one its kind grows";
	if (p->draining)
		c->shut_chunks[p->kind] += p->usable_chunks - p->used_chunks;
	if (!em_classes_equal(em_index_known(&s->index[p->kind], pack), p->draining ? none : em_pack_classes(pair)))
		return "the index does not know a pack's classes, or knows those of one that drains";
	broken = em_pack_check(pair);
	if (!broken)
		broken = em_ledger_check_pack(&d->ledger, pack);
	return broken ? broken : check_chunks(d, pack, c);
}

static const char *check_shard(execmem_domain *d, const struct em_shard *s, struct census *total)
{
	struct census c = {0};
	const char *broken = NULL;

	for (int kind = 0; !broken && kind < EXECMEM_KINDS; kind++)
		broken = em_index_check(&s->index[kind]);
	for (uint32_t pack = 0; !broken && pack < em_peek(d->ledger.header->packs_top); pack++)
		if (em_domain_shard_of(d, pack) == s->number) {
			c.retired_of_pack = 0;
			broken = check_pack(d, s, pack, &c);
			if (!broken && c.retired_of_pack != d->ledger.packs[pack].retired)
				broken = "a pack's retired blocks are not counted right";
		}
	if (!broken)
		broken = em_quarantine_check(s);
	if (!broken && c.quarantined != s->books->quarantined_blocks)
		broken = "a quarantined block is not in its shard's quarantine";
	if (!broken && (c.retired_blocks != s->books->retired_blocks || c.retired_bytes != s->books->retired_bytes ||
	                s->eager != (s->plain && c.retired_blocks == 0)))
		broken = "a shard's retired blocks are not counted right";
	if (broken)
		return broken;
	total->blocks += c.blocks;
	total->live_bytes += c.live_bytes;
	total->used_bytes += c.used_bytes;
	for (int kind = 0; kind < EXECMEM_KINDS; kind++)
		if (c.packs_of[kind] != s->packs_of[kind] || c.parked_chunks[kind] != s->park[kind].chunks ||
		    c.usable_chunks[kind] != s->usable_chunks[kind] || c.free_chunks[kind] != s->free_chunks[kind] ||
		    c.shut_chunks[kind] != s->shut_chunks[kind])
			return "a kind's packs, chunks or parked blocks are not counted right";
	return NULL;
}

static const char *check_all(execmem_domain *d)
{
	const execmem_header *h = d->ledger.header;
	const char *broken = em_ledger_check(&d->ledger);
	struct census total = {0};
	uint64_t packs = 0;
	execmem_shard sum;

	for (uint32_t i = 0; !broken && i < atomic_load(&d->shard_count); i++)
		broken = check_shard(d, d->shards[i], &total);
	if (broken)
		return broken;
	em_domain_sum(d, &sum);
	for (uint32_t pack = 0; pack < em_peek(h->packs_top); pack++)
		packs += d->ledger.packs[pack].state != EXECMEM_PACK_ABSENT;
	if (sum.allocs - sum.frees != total.blocks || sum.live_bytes != total.live_bytes)
		return "the counters do not count the live blocks";
	if (sum.used_bytes != total.used_bytes + atomic_load(&d->making_bytes))
		return "used_bytes does not count the chunks of blocks";
	if (packs != h->packs_live || h->packs_made - h->packs_returned != h->packs_live)
		return "the counters do not count the packs";
	if (d->limited && __atomic_load_n(&h->charged_bytes, __ATOMIC_RELAXED) < sum.used_bytes)
		return "less is charged than is used";
	return NULL;
}

const char *execmem_domain_check(execmem_domain *domain)
{
	const char *broken;
	execmem_domain *d;

	if (em_domain_enter_all(domain, &d) < 0)
		return execmem_error_text();
	broken = check_all(d);
	em_domain_leave_all(d);
	return broken;
}
