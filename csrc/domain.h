/* domain: who the memory is for, how much of it, and where. A tree; the root is the default domain.
 *
 *   open --------> live blocks come and go --------> closed (execmem_domain_close; the handle then answers ECLOSED)
 *     \-- fork --> in both processes: goes on; blocks that the other may run are kept as they are (fork.h)
 *      \-- seal --> for good: its code runs, every call that would change it answers ESEALED (seal.c)
 *
 * A domain's packs are divided among shards, each with a lock, free runs, parked blocks and counters of its own. A thread that comes
 * for memory has a shard for its home: the first EM_SHARDS threads one each, later ones share. A block is freed under the lock of the
 * shard whose pack it lies in, whoever frees it. A pack that stands idle in one shard can be taken over by another (supply.c).
 *
 * Locks, in the order in which they may be taken: that of patch.c, the tree's, one domain's `admin`, the shards' by number, `packs`,
 * `names`, those of grace.c and fork.c, of breakpoints (sys_trap.c), and the one that stops threads. Where several domains are locked it is
 * by one who holds the tree's, parents before children. Charges up the tree are atomic and take no lock; a domain under which nothing ever
 * had a limit is not charged at all.
 *
 *   tree    who is whose parent; opening and closing          shard   its packs, their blocks and records, its counters
 *   admin   adding shards; held by whoever wants all of them   packs   which packs are present; the file's size; the spares
 *                                                             names   the heap of names
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

enum {
	EM_SHARDS = EXECMEM_SHARDS_MAX,
	/* Used bytes above which caches do not hold them, so a block that is freed is taken to be in none; few in a debug build, so that
	 * tests get there. */
	EM_DOMAIN_MUCH = EM_DEBUG ? 1 << 20 : 32 << 20,
	EM_DICE = 64,
};

struct em_quarantine { /* quarantine.h; places in the window, in chunks, plus 1; 0: it is empty */
	uint32_t oldest, newest;
};

struct em_shard {
	execmem_domain *domain;
	struct em_lock *lock;
	execmem_shard *books;
	execmem_event *ring;
	struct em_index *index; /* [EXECMEM_KINDS] */
	uint32_t number;
	bool undrained; /* traps were written past the caches and not drained since */
	bool plain;     /* the domain's, unless `shared` */
	bool eager;     /* plain, and no block is retired: what begins at an address may be blanked before its record is read */
	bool shared;    /* a forked process may run blocks of its packs (fork.h): */
	bool inherits;  /* some packs are the parent process's; */
	uint32_t shared_ms;     /* blocks born until then may be seen; */
	uint32_t shared_looked; /* when it was last looked whether children are gone, */
	uint32_t shared_gone;   /* and how many were */
	uint32_t small[EXECMEM_KINDS]; /* the pack that still grows, EM_PACK_NONE: none */
	uint32_t packs_of[EXECMEM_KINDS]; /* and of those, spans apart: */
	uint32_t usable_chunks[EXECMEM_KINDS];
	uint32_t free_chunks[EXECMEM_KINDS]; /* parked ones are not free */
	uint32_t shut_chunks[EXECMEM_KINDS]; /* of the free ones, those in draining packs */
	uint32_t drain_at[EXECMEM_KINDS];    /* free chunks at which to look again for a pack to drain */
	struct em_park park[EXECMEM_KINDS];
	struct em_quarantine quarantine;
	uint32_t dice[EM_DICE], dice_left; /* random numbers for gaps, drawn ahead */
};

struct em_gate { /* a lock on cache lines of its own */
	struct em_lock lock;
	uint8_t apart[128 - sizeof(struct em_lock)];
};

struct execmem_domain {
	struct em_gate gates[EM_SHARDS]; /* of the shards: lockable for as long as the handle is known, closed or not */
	_Atomic uintptr_t home[EM_SHARDS]; /* whose home a shard is */
	struct em_shard *shards[EM_SHARDS]; /* there while the domain is open */
	_Atomic uint32_t shard_count;
	bool open;              /* written under all shards' locks */
	bool writable;          /* open and not sealed; likewise */
	bool no_park;           /* what is freed is not parked at once: the domain has a quarantine or gaps */
	bool limited;           /* has had a limit; under the locks of its whole subtree */
	bool plain; /* shards can be: mode alias, on a CPU where a store to code needs nothing done after it and traps are bytes */
	uint8_t blank[EXECMEM_KINDS]; /* those bytes */
	bool charged;           /* it or a domain above is limited, so charges are kept; like `limited` */
	uint64_t quarantine;    /* bytes a shard; 0: none */
	uint32_t gap;           /* chunks at most; 0: none */
	uint32_t forks;         /* of em_domain_forks when it was opened, or inherited */
	int copied_ledger;      /* for the child, while the process forks */
	execmem_domain *parent; /* the tree: under the tree's lock */
	execmem_domain *first_child;
	execmem_domain *next_sibling; /* also links closed ones */
	const struct em_arch *arch;
	struct em_map map;
	struct em_ledger ledger;
	struct em_lock admin, packs, names;
	_Atomic uint32_t makers; /* threads that make packs, outside their shards' locks */
	_Atomic uint64_t making_bytes; /* and the blocks they make them for, which are in used_bytes already */
	uint32_t spare[EXECMEM_KINDS]; /* an empty full pack that is kept, EM_PACK_NONE: none; under `packs` */
	uint64_t present[EXECMEM_WINDOW_PACKS_MAX / 64]; /* bit: the pack is not ABSENT, or is being made; under `packs` */
	uint8_t shard_of[EXECMEM_WINDOW_PACKS_MAX]; /* changes under the locks of the old and the new shard */
};

/* What a fork does with everything, called with the tree's lock held. fork.c, which stands above, has it. `root` may be NULL. */
struct em_domain_at_fork {
	void (*prepare)(execmem_domain *root);
	void (*in_parent)(execmem_domain *root);
	bool (*in_child)(execmem_domain *root, uint32_t forks); /* false: the inherited domains cannot be used here */
};
extern const struct em_domain_at_fork em_domain_at_fork;

/* The same of what is built on domains and has a lock that is taken before the tree's. patch.c has it. */
struct em_domain_users_at_fork {
	void (*prepare)(void);
	void (*in_parent)(void);
	void (*in_child)(void);
};
extern const struct em_domain_users_at_fork em_domain_users_at_fork;

extern uint32_t em_domain_forks; /* forks that lie between the first process and this one */
extern execmem_domain *em_domain_default; /* the root; atomic; NULL until first used */

/* Locks the caller's home shard in a domain (NULL: the root), to change it. NULL and an error: it is closed, sealed, forked or never was. */
struct em_shard *em_domain_enter_slow(execmem_domain *domain);
/* Locks any shard, for a question about the whole domain: gives nobody a home. Errors likewise. */
struct em_shard *em_domain_enter_asking(execmem_domain *domain);
/* Locks the shard whose pack has the address; NULL and an error: likewise, or it lies outside the domain's window. */
struct em_shard *em_domain_enter_at_slow(execmem_domain *domain, uint64_t address);
struct em_shard *em_domain_enter_at_asking(execmem_domain *domain, uint64_t address); /* sealed or not */
int em_domain_refuse_sealed(const execmem_domain *domain) __attribute__((cold));
void em_domain_lock_tree(void);
void em_domain_unlock_tree(void);
/* The domain whose window has the address; NULL and EFOREIGN: none. Takes no lock. */
execmem_domain *em_domain_owner(const void *address);
execmem_domain *em_domain_at(uint64_t address); /* the same without an error; for signal handlers too */
/* Locks all shards, for what concerns the whole domain, sealed or not. */
int em_domain_enter_all(execmem_domain *domain, execmem_domain **out);
void em_domain_leave_all(execmem_domain *domain);
void em_domain_lock_all(execmem_domain *domain); /* the same, open or not; the tree's lock is held */
void em_domain_sum(const execmem_domain *domain, execmem_shard *out); /* what its shards have counted */

/* Which shard a pack belongs to, for good only under that shard's lock. Whoever reads a number finds its lock made: that came before. */
EM_HOT uint32_t em_domain_shard_of(const execmem_domain *domain, uint64_t pack)
{
	return __atomic_load_n(&domain->shard_of[pack], __ATOMIC_ACQUIRE);
}

EM_HOT struct em_shard *em_domain_enter(execmem_domain *domain)
{
	execmem_domain *d = domain ? domain : __atomic_load_n(&em_domain_default, __ATOMIC_ACQUIRE);
	uintptr_t self = em_sys_self();
	uint32_t number = 0;

	if (EM_LIKELY(d && d->forks == em_domain_forks)) {
		while (EM_UNLIKELY(number < EM_SHARDS && atomic_load_explicit(&d->home[number], memory_order_relaxed) != self))
			number++;
		if (EM_LIKELY(number < EM_SHARDS)) {
			em_sys_lock(&d->gates[number].lock);
			if (EM_LIKELY(d->writable))
				return d->shards[number];
			em_sys_unlock(&d->gates[number].lock);
		}
	}
	return em_domain_enter_slow(domain);
}

EM_HOT struct em_shard *em_domain_enter_at(execmem_domain *domain, uint64_t address)
{
	execmem_domain *d = domain ? domain : __atomic_load_n(&em_domain_default, __ATOMIC_ACQUIRE);
	uint64_t pack;
	unsigned number;

	if (EM_LIKELY(d && d->forks == em_domain_forks)) {
		pack = (address - (uintptr_t)d->map.window) >> EM_PACK_SHIFT;
		if (EM_LIKELY(pack < d->map.packs)) {
			number = em_domain_shard_of(d, pack);
			em_sys_lock(&d->gates[number].lock);
			if (EM_LIKELY(d->writable && em_domain_shard_of(d, pack) == number && pack < d->map.packs))
				return d->shards[number];
			em_sys_unlock(&d->gates[number].lock);
		}
	}
	return em_domain_enter_at_slow(domain, address);
}

EM_HOT void em_domain_leave(struct em_shard *shard)
{
	/* A home leaves its stores to whoever withdraws the bias from here on: that drains them. Else the next would come before they have. */
	if (EM_UNLIKELY(shard->undrained) && EM_UNLIKELY(!em_sys_lock_is_biased(shard->lock))) {
		shard->domain->arch->drain();
		shard->undrained = false;
	}
	em_sys_unlock(shard->lock);
}

/* Called whenever one of the two changes. */
static inline void em_domain_set_plain(struct em_shard *shard, bool plain)
{
	shard->plain = plain;
	shard->eager = plain && shard->books->retired_blocks == 0;
}

EM_HOT bool em_domain_much_is_live(const struct em_shard *shard)
{
	return shard->books->used_bytes > EM_DOMAIN_MUCH;
}

/* Adds to what is charged to every domain from here up that has a limit, all or none. A block is in its shard's used_bytes for as
 * long as it is charged: a limit that comes meanwhile counts from there. */
int em_domain_charge_slow(execmem_domain *domain, uint64_t bytes);
void em_domain_uncharge_slow(execmem_domain *domain, uint64_t bytes);

EM_HOT int em_domain_charge(struct em_shard *shard, uint64_t bytes)
{
	int err = EM_UNLIKELY(shard->domain->charged) ? em_domain_charge_slow(shard->domain, bytes) : 0;

	if (EM_LIKELY(err == 0))
		em_add(shard->books->used_bytes, bytes);
	return err;
}

EM_HOT void em_domain_uncharge(struct em_shard *shard, uint64_t bytes)
{
	em_add(shard->books->used_bytes, -bytes);
	if (EM_UNLIKELY(shard->domain->charged))
		em_domain_uncharge_slow(shard->domain, bytes);
}

/* Rounded bytes of live blocks here and in all children, whether limited or not. Takes the tree's lock. */
uint64_t em_domain_charged(execmem_domain *domain);

static inline uint64_t em_domain_offset(uint32_t pack, uint32_t chunk)
{
	return ((uint64_t)pack << EM_PACK_SHIFT) + ((uint64_t)chunk << EM_CHUNK_SHIFT);
}

EM_HOT uint32_t em_domain_ms(const execmem_domain *domain)
{
	return (uint32_t)(em_sys_milliseconds() - domain->ledger.epoch_ms);
}

static inline uint64_t em_domain_address(const execmem_domain *domain, uint32_t pack, uint32_t chunk)
{
	return (uintptr_t)domain->map.window + em_domain_offset(pack, chunk);
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
