/* supply: chunks for blocks, out of the packs of a shard. The caller holds the shard's lock, and keeps the records and the counters of
 * blocks.
 */
#ifndef EM_SUPPLY_H
#define EM_SUPPLY_H

#include "domain.h"

enum {
	EM_SUPPLY_SMALL_MIN = 32 << 10, /* the first pack of a kind opens with this much */
	EM_SUPPLY_SMALL_MAX = 256 << 10, /* beyond it the pack is completed and collapsed; docs/performance.md tells why here */
	EM_SUPPLY_JOIN = 4 << 20, /* used bytes above which joining free runs is worth more than keeping blocks whole */
	EM_SUPPLY_LATER_MAX = 7 << 18, /* the same for later ones that start small: they are the last resort, and seldom filled */
};

/* Takes a gap, which nobody counts yet, and the chunks of a block behind it, which are, in one piece from a pack of that kind, making one when it must: the shard's lock is given up meanwhile, and the domain may be closed
 * then (ECLOSED). The block has no record yet. */
int em_supply_take(struct em_shard *shard, int kind, uint32_t gap, uint32_t chunks, uint32_t align, uint32_t *pack,
                   uint32_t *first);
/* The same, from a run that holds them for sure and makes nothing; false: there is none. */
bool em_supply_take_run(struct em_shard *shard, int kind, uint32_t chunks, uint32_t *pack, uint32_t *first);
/* Gives a block's chunks back: its memory is blank and its record dropped already. */
void em_supply_give(struct em_shard *shard, uint32_t pack, uint32_t first);
/* Gives the first chunks of a block back, which has no record yet and starts behind them from now on. */
void em_supply_give_front(struct em_shard *shard, uint32_t pack, uint32_t first, uint32_t chunks);
/* The same as take and give for a block larger than a pack. `bytes` is rounded to pages. */
int em_supply_take_span(struct em_shard *shard, int kind, uint64_t bytes, uint32_t *pack);
void em_supply_give_span(struct em_shard *shard, uint32_t pack);

bool em_supply_return_empties(
	struct em_shard *shard); /* every pack without a block; all shards are locked. False: there was none */

/* Gives the lock up for what takes long, as a maker, for a block of so many bytes that is counted already. ECLOSED: the domain is gone. */
void em_supply_leave(struct em_shard *shard, uint64_t bytes);
int em_supply_come_back(struct em_shard *shard, uint64_t bytes);

void em_supply_idle(struct em_shard *shard, uint32_t pack); /* the last live block of a pack was parked */

/* Instead of give: keeps a blank block whole for the next of its length; false: give it. Its record stays, and says PARKED.
 * `cold`: its lines are in no cache. Where more is live than a pack or two, a block beside a free run is not kept: the two would never
 * join (docs/allocator.md). */
EM_HOT bool em_supply_park(struct em_shard *shard, struct em_pack p, uint32_t pack, uint32_t first, uint32_t chunks, bool cold)
{
	struct em_park *park = &shard->park[p.record->kind];
	uint64_t used = shard->books->used_bytes;

	if (!em_park_has_room(park, chunks, used > EM_DOMAIN_MUCH) || EM_UNLIKELY(p.record->draining) ||
	    (used > EM_SUPPLY_JOIN && !em_pack_is_alone(p, first, chunks)))
		return false;
	em_park_push(park, pack, first, chunks, cold);
	p.record->parked++;
	if (EM_UNLIKELY(--p.record->blocks == 0))
		em_supply_idle(shard, pack);
	return true;
}

/* Instead of take: a parked block of that length, its record included; false: take one. */
EM_HOT bool em_supply_unpark(struct em_shard *shard, int kind, uint32_t chunks, uint32_t *pack, uint32_t *first)
{
	execmem_pack *p;

	if (!em_park_pop(&shard->park[kind], chunks, pack, first))
		return false;
	p = &shard->domain->ledger.packs[*pack];
	p->parked--;
	p->blocks++;
	return true;
}

#endif
