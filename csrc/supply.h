/* supply: chunks for blocks, out of a domain's packs. The caller holds the domain's lock, and keeps the records and the counters of blocks.
 */
#ifndef EM_SUPPLY_H
#define EM_SUPPLY_H

#include "domain.h"

enum {
	EM_SUPPLY_SMALL_MIN = 32 << 10, /* the first pack of a kind opens with this much */
	EM_SUPPLY_SMALL_MAX = 256 << 10, /* beyond it the pack is completed and collapsed; docs/performance.md tells why here */
};

/* Takes chunks from a pack of that kind, making one when it must. Locked; the block has no record yet. */
int em_supply_take(execmem_domain *domain, int kind, uint32_t chunks, uint32_t align, uint32_t *pack, uint32_t *first);
/* Gives a block's chunks back: its memory is blank and its record dropped already. */
void em_supply_give(execmem_domain *domain, uint32_t pack, uint32_t first);
/* Instead of give: keeps a blank block whole for the next of its length; false: give it. Its record stays, and says PARKED. */
bool em_supply_park(execmem_domain *domain, uint32_t pack, uint32_t first, uint32_t chunks);
/* Instead of take: a parked block of that length, its record included; false: take one. */
bool em_supply_unpark(execmem_domain *domain, int kind, uint32_t chunks, uint32_t *pack, uint32_t *first);
/* The same for a block larger than a pack. `bytes` is rounded to pages. */
int em_supply_take_span(execmem_domain *domain, int kind, uint64_t bytes, uint32_t *pack);
void em_supply_give_span(execmem_domain *domain, uint32_t pack);

#endif
