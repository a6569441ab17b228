/* seal: no call writes to a domain any more, for ever.
 *
 *   writable --execmem_domain_seal--> calls in flight end; new ones answer ESEALED --> what is idle goes back --> sealed
 *                                          \-- the alias could not be unmapped --> writable
 *
 * The tree is locked all the while: nobody opens, closes or forks in between. Whoever is out making a pack is counted among the `makers`
 * and comes back under its shard's lock, so when there are none while all shards are locked, no call is in flight.
 */
#include "domain.h"
#include "fork.h"
#include "quarantine.h"
#include "supply.h"

static int seal_locked(execmem_domain *d)
{
	int sealed;

	for (uint32_t i = 0; i < atomic_load(&d->shard_count); i++) {
		em_quarantine_empty(d->shards[i]);
		(void)em_supply_return_empties(d->shards[i]);
	}
	sealed = em_map_seal(&d->map, em_map_has_file(d->map.mode) && em_fork_is_seen(d));
	if (sealed < 0)
		return sealed;
	__atomic_store_n(&d->ledger.header->sealed, (uint32_t)sealed, __ATOMIC_RELEASE);
	return 0;
}

/* The tree's lock is held. */
static int seal(execmem_domain *domain)
{
	execmem_domain *d;
	int err = em_domain_enter_all(domain, &d);

	if (err < 0)
		return err;
	if (d->map.sealed) {
		em_domain_leave_all(d);
		return 0;
	}
	for (uint32_t i = 0; i < atomic_load(&d->shard_count); i++)
		em_fork_release(d->shards[i]); /* what is held still stays as it is, for good */
	d->writable = false;
	while (err == 0 && atomic_load(&d->makers)) {
		em_domain_leave_all(d);
		em_sys_nap();
		err = em_domain_enter_all(d, &d);
	}
	if (err < 0)
		return err;
	err = seal_locked(d);
	d->writable = err < 0;
	em_domain_leave_all(d);
	return err;
}

int execmem_domain_seal(execmem_domain *domain)
{
	execmem_domain *d = domain ? domain : execmem_domain_root();
	int err;

	if (!d)
		return execmem_error_code();
	em_domain_lock_tree();
	err = seal(d);
	em_domain_unlock_tree();
	return err;
}
