/* live: instructions changed while other threads may be running them.
 *
 * One instruction takes the place of one of the same length, so no thread stands in the middle of it. Which of three ways is taken the
 * CPU's room says for each site (live_change in arch.h), and what the write mode and the system can do:
 *
 *   store       one aligned store of what differs; one synchronisation
 *   breakpoint  1. a breakpoint over the first bytes    synchronise    who runs into it from here on is taken care of (sys_trap.c):
 *               2. the other bytes                      synchronise    the new instruction is done for him, or he waits
 *               3. the first bytes                      synchronise    and nobody is being taken care of any more
 *   stopped     every other thread is stopped by a signal, all is written, they go on: its return serialises them
 *
 * To synchronise is to have every thread of the process serialise (membarrier), so that none has older bytes fetched ahead. After
 * Linux's text_poke_bp_batch(). Sites of one call that are stored share the last step of those behind breakpoints.
 */
#ifndef EM_LIVE_H
#define EM_LIVE_H

#include "arch.h"
#include "base.h"
#include "map.h"

enum { EM_LIVE_BYTES = 16 };

struct em_live_site {
	uint64_t at; /* the first: sys_trap.c searches by it */
	uint64_t extent, extent_size; /* as in poke.h, */
	uint64_t index;               /* and for the caller */
	uint8_t len;
	uint8_t how;                     /* enum em_arch_live */
	uint8_t from, to;                /* the bytes that differ, [from, to) */
	uint8_t old_bytes[EM_LIVE_BYTES], new_bytes[EM_LIVE_BYTES]; /* zeros behind the end */
};

struct em_live {
	struct em_map *map;
	const struct em_arch *arch;
	struct em_live_site *sites; /* sorted, apart, with the old bytes in memory */
	size_t count;
	bool (*owns)(uint64_t address); /* for signal handlers; code there is changed by this library alone */
};

/* Whether the CPU's manual lets code be changed by a store while it runs. */
bool em_live_may_store(const struct em_arch *arch);
/* Finds out which bytes of a site differ, and how they can be changed in this write mode. False: none does. */
bool em_live_look(const struct em_live *live, bool may_store, struct em_live_site *site);
/* Changes all, each in its way, which is one of the three. The caller holds the locks of the shards. An error: they are as they were, or
 * its text tells which could not be put back. */
int em_live_change(const struct em_live *live);

#endif
