/* grace: when has every thread that may run placed code been seen outside of it?
 *
 *   a thread:   offline --online--> inside --quiescent--> inside --offline--> offline        `seen`: 0, or the period it saw last
 *   a block:    add --> waits in the queue --> due: every thread was outside once since --> drop
 *
 *   who waits                                                  a thread
 *   the block is unlinked, add                                 ... runs what it found ...
 *   period += 1                                                seen = period      (quiescent: it holds nothing found before)
 *   membarrier                                                 compiler's fence
 *   looks at `seen` of each thread                             finds a pointer, runs what it points to ...
 *
 * A thread whose `seen` is the new period read it after the block was unlinked, so what it finds later is what replaced the block. One
 * whose `seen` was 0 when it was looked at either stores it later, and then the membarrier lies before its next look, or is outside.
 * So when all are seen so the period has passed, and what was added before it began can go. After McKenney and Slingwine's
 * read-copy-update; the fence by membarrier after Desnoyers et al., "User-level implementations of read-copy update" (liburcu).
 *
 * Where the kernel refuses membarrier from the beginning threads make the fence themselves; where it does so later, a period lasts
 * longer than a store stays in any core's buffer.
 *
 * One lock guards threads and queue; it is taken with a shard's lock held, and none but that of a fork is taken under it.
 */
#ifndef EM_GRACE_H
#define EM_GRACE_H

#include "base.h"
#include "sys.h"

struct em_grace_thread { /* one that was ever online, on cache lines of its own; only it writes `seen` */
	_Atomic uint64_t seen;
	uint32_t depth; /* times online; only the thread touches it */
	uint32_t number; /* the kernel's */
	struct em_grace_thread *next, *previous;
	bool last; /* the thread ends, and this round is the last in which it may be online; only the thread touches it */
	uint8_t apart[88];
};
static_assert(sizeof(struct em_grace_thread) == 128, "no two threads share a cache line, nor the pair that is fetched together");

struct em_grace_wait { /* what waits */
	uint64_t ticket; /* numbers in the order of adding, without a gap */
	uint64_t address;
	uint64_t period; /* the last one that had begun */
	uint32_t domain; /* its number: the address may be another's when the time has come */
	uint32_t reserved;
};
static_assert(EM_PAGE % sizeof(struct em_grace_wait) == 0, "a page is whole waits");

extern _Thread_local struct em_grace_thread *em_grace_self; /* NULL: it was never online */
extern _Atomic uint64_t em_grace_period; /* from 1 on */
extern bool em_grace_fences; /* threads make their fences themselves; for good from the first thread on */

int em_grace_enter_new(void); /* the first time in a thread */

/* What was found before is not held any more, and what is found from here on is found after the store. */
static inline void em_grace_see(struct em_grace_thread *self)
{
	uint64_t period = atomic_load_explicit(&em_grace_period, memory_order_acquire);

	atomic_store_explicit(&self->seen, period, memory_order_release);
	if (EM_UNLIKELY(em_grace_fences))
		em_sys_fence();
	else
		atomic_signal_fence(memory_order_seq_cst); /* the core's fence is the membarrier of who waits */
}

static inline void em_grace_leave(struct em_grace_thread *self)
{
	atomic_store_explicit(&self->seen, 0, memory_order_release);
}

bool em_grace_is_used(void); /* a thread was online, in this process or one it was forked from */
/* Whoever adds holds the lock of the shard that has the block. ENOMEM: nothing was added. */
int em_grace_add(uint64_t address, uint32_t domain);
/* Moves on without waiting, and tells the oldest that waits, if its time has come. */
bool em_grace_due(struct em_grace_wait *out);
bool em_grace_is_oldest(uint64_t ticket); /* nobody has dropped it: stays so under the lock of its shard */
void em_grace_drop(uint64_t ticket); /* the oldest; another than that was dropped already */
uint64_t em_grace_next_ticket(void);   /* of who comes next */
uint64_t em_grace_oldest_ticket(void); /* the same, when none waits */
void em_grace_count(execmem_retirement *out);

/* While the process forks; in the child only the calling thread is left, and what waited still does. */
void em_grace_lock(void);
void em_grace_unlock(void);
void em_grace_inherit(void);

const char *em_grace_check(void);

#endif
