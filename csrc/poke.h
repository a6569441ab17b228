/* poke: the only way bytes get into memory that is mapped for execution. Asks map for a door, writes, and makes CPUs see it.
 *
 * The caller holds the shard's lock and has made sure that the range lies in one block (or in free chunks), and that nothing
 * executes it.
 */
#ifndef EM_POKE_H
#define EM_POKE_H

#include "arch.h"
#include "base.h"
#include "map.h"

struct em_poke { /* where: the mapped part of a pack or span, and what it holds */
	struct em_map *map;
	const struct em_arch *arch;
	int kind;
	uint64_t extent, extent_size; /* bytes from the window's start */
};

/* Writes `len` bytes at `offset`. When the system refuses, nothing has changed; when it stops midway, what was written is blank, in whole
 * traps, unless the system refuses that too: em_poke_is_blank tells. */
int em_poke_copy(const struct em_poke *where, uint64_t offset, const void *src, size_t len);
/* Makes the range blank: traps for text, zeros otherwise. */
int em_poke_blank(const struct em_poke *where, uint64_t offset, uint64_t len);
/* Makes blank what em_poke_copy wrote, in whole traps, unless the system refuses that too. */
void em_poke_unwrite(const struct em_poke *where, uint64_t offset, uint64_t len);
/* Whether the traps that the range touches, or its bytes, are blank: reads them. */
bool em_poke_is_blank(const struct em_poke *where, uint64_t offset, uint64_t len);

/* Where other CPUs must be told of each write (fill_sync), which takes a system call and interrupts them: from em_poke_gather on this thread
 * owes that, until em_poke_tell does it for all that it wrote meanwhile. An error: they may not see the new bytes. */
void em_poke_gather(const struct em_arch *arch);
int em_poke_tell(const struct em_arch *arch);

#endif
