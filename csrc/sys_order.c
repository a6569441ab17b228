/* sys_order: in debug builds each thread knows the locks it holds, and takes none out of order (sys.h; who they are: domain.h).
 *
 * A lock may be taken when it comes after the last one held. Of several domains whoever holds the tree's lock may take the locks, one
 * domain after the other: their order is the tree's.
 */
#include "sys.h"

enum { HELD_MAX = 512 }; /* those beyond are not looked at: a limit locks every shard of a subtree */

static _Thread_local struct {
	const struct em_lock *locks[HELD_MAX];
	uint32_t count;
} held;

void em_sys_order_take(const struct em_lock *lock)
{
	uint8_t last = held.count > 0 ? held.locks[held.count - 1]->rank : EM_RANK_NONE;
	uint32_t outer = held.count > 0 && held.locks[0]->rank == EM_RANK_PATCH; /* a fork takes it before the tree's */
	bool next_domain = lock->rank == EM_RANK_ADMIN && held.count > outer && held.locks[outer]->rank == EM_RANK_TREE;

	if (lock->rank == EM_RANK_NONE || held.count == HELD_MAX)
		return;
	em_always(lock->rank > last || next_domain); /* locks are taken in order */
	held.locks[held.count++] = lock;
}

void em_sys_order_give(const struct em_lock *lock)
{
	for (uint32_t i = held.count; i-- > 0;)
		if (held.locks[i] == lock) {
			held.count--;
			for (; i < held.count; i++)
				held.locks[i] = held.locks[i + 1];
			return;
		}
}

void em_sys_order_forget(void)
{
	held.count = 0;
}
