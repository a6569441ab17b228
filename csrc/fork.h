/* fork: what a forked child and its parent may do with memory that both see.
 *
 * Packs of text and rodata in a memory file are shared: what one process writes, the other runs. So
 *
 *   in the child   packs that it inherits belong to the parent. Their code runs; a block there is never written, and when it is freed
 *                  its memory is held as it is. New blocks go to new packs, in a file of the child's own. Books are its own too.
 *   in the parent  a block that was there at the fork is not written, and when it is freed its memory is held, until no child that was
 *                  forked while it lived is left: each has ended or executed another program. All else goes on as before.
 *
 * Data packs, and all packs of the modes procmem and flip, are private memory: the kernel gives each process its own.
 *
 * Whether children are left is asked of a witness: a page of a memory file that a child inherits mapped for writing. As long as
 * somebody has it so, the kernel refuses to seal the file against writing. Nothing a child does with descriptors changes that.
 */
#ifndef EM_FORK_H
#define EM_FORK_H

#include "domain.h"

/* Whether a filled block must stay as it is, or (inherited packs) any block. Asks for children that ended, once a tick of the clock; that
 * may give other blocks of the shard, which is `shared`. */
bool em_fork_keeps(struct em_shard *shard, uint32_t pack, uint32_t born_ms);
/* Gives what was held and no child can see any more. */
void em_fork_release(struct em_shard *shard);
/* Whether a child may be left that has the domain's packs mapped: what it does with its mappings, this process cannot forbid. */
bool em_fork_is_seen(const execmem_domain *domain);
/* The same as em_fork_release, once a tick. */
void em_fork_tick(struct em_shard *shard);

#endif
