/* quarantine: freed blocks that nobody gets for a while.
 *
 *   oldest -> block -> block -> ... -> newest        linked through `name` of their records, which no name needs any more
 *
 * A block that is freed goes in at the end, blank and counted as freed; when more bytes wait than the domain asked for, the oldest come
 * out and are parked or given back like any other. Each shard has a queue of its own, and a pack with a block in it stays with its shard.
 * To the pack's books such a block is one that is parked. Constant in what waits. The caller holds the shard's lock.
 */
#ifndef EM_QUARANTINE_H
#define EM_QUARANTINE_H

#include "domain.h"

void em_quarantine_add(struct em_shard *shard, uint32_t pack, uint32_t first, uint32_t chunks); /* a block within a pack */
void em_quarantine_empty(struct em_shard *shard);
/* For a block of so many bytes, counted already, that finds no room: empties those of all shards of the domain. The lock is given up
 * meanwhile. True: something was in them, so another try is worth it. *closed: 0, or ECLOSED. */
bool em_quarantine_empty_all(struct em_shard *shard, uint64_t bytes, int *closed);
/* In a forked child: what lies in inherited packs is the parent's, and comes to nobody here; to the books it is parked there. */
void em_quarantine_inherit(struct em_shard *shard);
const char *em_quarantine_check(const struct em_shard *shard);

#endif
