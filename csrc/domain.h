/* domain: who the memory is for, how much of it, and where. A tree; the root is the default domain.
 *
 *   open --------> live blocks come and go --------> closed (execmem_domain_close; the handle then answers ECLOSED)
 *     \-- fork --> in the child: frozen: its code runs, every call that would change it answers EFORKED
 *
 * Locks, in the order in which they may be taken: the tree's, then one domain's, then the one that stops threads (mode flip).
 * Where several domains are locked it is by one who holds the tree's, parents before children. Charges up the tree are atomic
 * and take no lock; a domain that never had a limit is not charged at all.
 */
#ifndef EM_DOMAIN_H
#define EM_DOMAIN_H

#include "arch.h"
#include "base.h"
#include "ledger.h"
#include "map.h"
#include "park.h"
#include "poke.h"
#include "sys.h"

struct execmem_domain {
	struct em_lock lock;
	bool open;              /* under the lock */
	bool limited;           /* has had a limit, so charged_bytes is kept; under the locks of its whole subtree */
	uint32_t forks;         /* of em_domain_forks when it was opened */
	execmem_domain *parent; /* the tree: under the tree's lock */
	execmem_domain *first_child;
	execmem_domain *next_sibling; /* also links closed ones */
	const struct em_arch *arch;
	struct em_map map;
	struct em_ledger ledger;
	uint32_t small[EXECMEM_KINDS]; /* the pack that still grows, EM_PACK_NONE: none */
	uint32_t spare[EXECMEM_KINDS]; /* an empty full pack that is kept, EM_PACK_NONE: none */
	uint32_t packs_of[EXECMEM_KINDS];
	struct em_park park[EXECMEM_KINDS];
	uint64_t present[EXECMEM_WINDOW_PACKS_MAX / 64]; /* bit: the pack is not ABSENT */
};

extern uint32_t em_domain_forks; /* forks that lie between the first process and this one */

/* Finds the domain (NULL: the root) and locks it; an error when it is closed, forked or never was. */
int em_domain_enter(execmem_domain *domain, execmem_domain **out);
/* The same for the owner of an address; EFOREIGN when there is none. */
int em_domain_enter_owner(const void *address, execmem_domain **out);

static inline void em_domain_leave(execmem_domain *domain)
{
	em_sys_unlock(&domain->lock);
}

/* Adds to what is charged to every domain from here up that has a limit, all or none. */
int em_domain_charge(execmem_domain *domain, uint64_t bytes);
void em_domain_uncharge(execmem_domain *domain, uint64_t bytes);

/* Rounded bytes of live blocks here and in all children, whether limited or not. Takes the tree's lock. */
uint64_t em_domain_charged(execmem_domain *domain);

static inline uint64_t em_domain_offset(uint32_t pack, uint32_t chunk)
{
	return ((uint64_t)pack << EM_PACK_SHIFT) + ((uint64_t)chunk << EM_CHUNK_SHIFT);
}

static inline uint32_t em_domain_ms(const execmem_domain *domain)
{
	return (uint32_t)(em_sys_milliseconds() - domain->ledger.epoch_ms);
}

static inline struct em_poke em_domain_where(execmem_domain *domain, uint32_t pack)
{
	const execmem_pack *p = &domain->ledger.packs[pack];

	return (struct em_poke){
		.map = &domain->map,
		.arch = domain->arch,
		.kind = p->kind,
		.extent = (uint64_t)pack << EM_PACK_SHIFT,
		.extent_size = (uint64_t)p->usable_chunks << EM_CHUNK_SHIFT,
	};
}

#endif
