/* quarantine: see quarantine.h. */
#include "quarantine.h"
#include "supply.h"

static execmem_block *record_at(const struct em_shard *s, uint32_t place)
{
	return em_ledger_block(&s->domain->ledger, (place - 1) / EXECMEM_PACK_CHUNKS, (place - 1) % EXECMEM_PACK_CHUNKS);
}

static void release_oldest(struct em_shard *s)
{
	struct em_ledger *l = &s->domain->ledger;
	uint32_t place = s->quarantine.oldest, pack = (place - 1) / EXECMEM_PACK_CHUNKS, first = (place - 1) % EXECMEM_PACK_CHUNKS;
	struct em_pack p = em_ledger_pack(l, pack);
	execmem_block *record = record_at(s, place);
	uint32_t chunks = em_pack_length(p, first);

	em_always(place && record->state == EXECMEM_BLOCK_QUARANTINED);
	s->quarantine.oldest = record->name;
	if (!record->name)
		s->quarantine.newest = 0;
	record->name = 0;
	record->state = EXECMEM_BLOCK_PARKED;
	em_add(s->books->quarantined_bytes, -((uint64_t)chunks << EM_CHUNK_SHIFT));
	em_add(s->books->quarantined_blocks, -1);
	p.record->parked--;
	p.record->blocks++; /* what parking and giving count down */
	if (!s->domain->gap && em_supply_park(s, p, pack, first, chunks, true))
		return;
	em_ledger_drop_blocks(l, pack, first, first + 1);
	em_supply_give(s, pack, first);
}

static void append(struct em_shard *s, uint32_t place)
{
	if (s->quarantine.newest)
		record_at(s, s->quarantine.newest)->name = place;
	else
		s->quarantine.oldest = place;
	s->quarantine.newest = place;
}

void em_quarantine_add(struct em_shard *s, uint32_t pack, uint32_t first, uint32_t chunks)
{
	struct em_pack p = em_ledger_pack(&s->domain->ledger, pack);
	uint32_t place = pack * EXECMEM_PACK_CHUNKS + first + 1;
	execmem_block *record = record_at(s, place);

	record->state = EXECMEM_BLOCK_QUARANTINED;
	record->name = 0;
	append(s, place);
	em_add(s->books->quarantined_bytes, (uint64_t)chunks << EM_CHUNK_SHIFT);
	em_add(s->books->quarantined_blocks, 1);
	p.record->parked++;
	if (--p.record->blocks == 0)
		em_supply_idle(s, pack);
	while (s->books->quarantined_bytes > s->domain->quarantine)
		release_oldest(s);
}

void em_quarantine_empty(struct em_shard *s)
{
	while (s->quarantine.oldest)
		release_oldest(s);
}

void em_quarantine_inherit(struct em_shard *s)
{
	struct em_ledger *l = &s->domain->ledger;
	uint32_t next = s->quarantine.oldest;

	s->quarantine = (struct em_quarantine){0};
	while (next) {
		uint32_t place = next, pack = (place - 1) / EXECMEM_PACK_CHUNKS, first = (place - 1) % EXECMEM_PACK_CHUNKS;
		execmem_block *record = record_at(s, place);

		next = record->name;
		record->name = 0;
		if (!l->packs[pack].inherited) {
			append(s, place);
			continue;
		}
		record->state = EXECMEM_BLOCK_PARKED;
		em_add(s->books->quarantined_bytes, -((uint64_t)em_pack_length(em_ledger_pack(l, pack), first) << EM_CHUNK_SHIFT));
		em_add(s->books->quarantined_blocks, -1);
	}
}

bool em_quarantine_empty_all(struct em_shard *s, uint64_t bytes, int *closed)
{
	execmem_domain *d = s->domain;
	bool any = false;

	*closed = 0;
	if (!d->quarantine || bytes > em_domain_offset(d->map.packs, 0)) /* what can never fit is no reason */
		return false;
	em_supply_leave(s, bytes);
	if (em_domain_enter_all(d, &d) == 0) {
		for (uint32_t i = 0; i < atomic_load(&d->shard_count); i++) {
			any |= d->shards[i]->quarantine.oldest != 0;
			em_quarantine_empty(d->shards[i]);
		}
		em_domain_leave_all(d);
	}
	*closed = em_supply_come_back(s, bytes);
	return any;
}

const char *em_quarantine_check(const struct em_shard *s)
{
	uint64_t bytes = 0, blocks = 0;
	uint32_t last = 0;

	for (uint32_t place = s->quarantine.oldest; place; place = record_at(s, place)->name) {
		uint32_t pack = (place - 1) / EXECMEM_PACK_CHUNKS, first = (place - 1) % EXECMEM_PACK_CHUNKS;

		if (em_domain_shard_of(s->domain, pack) != s->number || !em_pack_is_head(em_ledger_pack(&s->domain->ledger, pack), first) ||
		    record_at(s, place)->state != EXECMEM_BLOCK_QUARANTINED)
			return "the quarantine leads to a block that is not in it";
		if (++blocks > s->books->quarantined_blocks)
			return "the quarantine has more blocks than are counted, or is a circle";
		bytes += (uint64_t)em_pack_length(em_ledger_pack(&s->domain->ledger, pack), first) << EM_CHUNK_SHIFT;
		last = place;
	}
	if (blocks != s->books->quarantined_blocks || bytes != s->books->quarantined_bytes || last != s->quarantine.newest)
		return "the quarantine is not counted right";
	return bytes <= s->domain->quarantine ? NULL : "the quarantine holds more than was asked for";
}
