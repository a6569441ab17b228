/* retire: blocks that are freed when no thread can be inside any more.
 *
 *   FILLED --execmem_retire--> RETIRED: whole and run, but nobody's --a grace period--> freed like any other
 *
 * Whose turn it is grace.c knows; here is what happens to blocks. A retired block is counted with the live ones until it is freed: it
 * takes its memory, is charged, and keeps its pack. The queue knows it by address and the number of its domain, so a domain may be
 * closed or sealed meanwhile: what is gone with it is dropped from the queue when its turn comes.
 */
#include "block.h"
#include "error.h"
#include "grace.h"

/* ---- threads ---- */

int execmem_thread_online(void)
{
	struct em_grace_thread *self = em_grace_self;

	if (EM_UNLIKELY(!self)) {
		if (em_grace_enter_new() < 0)
			return execmem_error_code();
		self = em_grace_self;
	}
	if (self->depth++ == 0)
		em_grace_see(self);
	return 0;
}

int execmem_thread_offline(void)
{
	struct em_grace_thread *self = em_grace_self;

	if (EM_UNLIKELY(!self || self->depth == 0))
		return em_error_set(EXECMEM_EINVAL, "this thread is not online: each execmem_thread_offline takes back one "
		                                    "execmem_thread_online of its own thread.");
	if (--self->depth == 0)
		em_grace_leave(self);
	return 0;
}

int execmem_thread_is_online(void)
{
	return em_grace_self && em_grace_self->depth > 0;
}

void execmem_quiescent(void)
{
	struct em_grace_thread *self = em_grace_self;

	if (EM_LIKELY(self && self->depth == 1)) /* of two users within one another the inner cannot speak for the outer */
		em_grace_see(self);
}

/* ---- blocks; their shard's lock is held ---- */

static void turn(struct em_shard *s, const struct em_place *at, bool retired)
{
	execmem_shard *books = s->books;

	at->block->state = retired ? EXECMEM_BLOCK_RETIRED : EXECMEM_BLOCK_FILLED;
	s->domain->ledger.packs[at->pack].retired += retired ? 1 : -1u;
	em_add(books->retired_bytes, retired ? at->size : -at->size);
	em_add(books->retired_blocks, retired ? 1 : -1ull);
	em_domain_set_plain(s, s->plain);
}

/* A block that was never filled comes back as a filled one: it is made blank once more, that is all. */
static int free_marked(struct em_shard *s, uint64_t address)
{
	struct em_place at;
	int err;

	em_always(em_block_find_retired(s, address, &at));
	turn(s, &at, false);
	err = em_block_free(s, &at, em_domain_ms(s->domain));
	if (EM_LIKELY(err == 0))
		return 0;
	em_always(em_block_find_start(s, address, &at) == 0);
	turn(s, &at, true);
	return em_block_refuse(s, err);
}

/* ---- taking turns ---- */

/* The shard is locked. A domain that is being sealed may yet find that it cannot be. */
static int free_waiting(struct em_shard *s, const struct em_grace_wait *w)
{
	const execmem_domain *d = s->domain;

	if (d->ledger.header->domain != w->domain || d->map.sealed || !em_grace_is_oldest(w->ticket))
		return 0;
	if (!d->writable)
		return em_error_set(EXECMEM_EBUSY, "domain \"%s\" is being sealed; its retired blocks wait until that is done.",
		                    d->ledger.header->name);
	return free_marked(s, w->address);
}

static int release(const struct em_grace_wait *w)
{
	execmem_domain *d = em_domain_at(w->address);
	struct em_shard *s = d ? em_domain_enter_at_asking(d, w->address) : NULL;
	int err = s ? free_waiting(s, w) : 0;

	if (err == 0)
		em_grace_drop(w->ticket); /* also what went with its domain, or stays in one that is sealed */
	if (s)
		em_domain_leave(s);
	return err;
}

/* Frees what is due. The error is of the system, that did not let a block be blanked: it and what comes after it wait on. */
static int release_due(void)
{
	struct em_grace_wait w;
	int err = 0;

	while (err == 0 && em_grace_due(&w))
		err = release(&w);
	return err;
}

static int refuse_unused(void)
{
	return em_error_set(EXECMEM_EINVAL,
	                    "no thread of this process has ever been online, so none can say when it is outside of "
	                    "placed code. Call execmem_thread_online in each thread that runs some, or free the block.");
}

int execmem_retire_in(execmem_domain *domain, void *address)
{
	struct em_shard *s;
	struct em_place at;
	int err;

	if (!em_grace_is_used())
		return refuse_unused();
	s = em_domain_enter_at(domain, (uintptr_t)address);
	if (!s)
		return execmem_error_code();
	err = em_block_find_start(s, (uintptr_t)address, &at);
	if (err == 0)
		err = em_grace_add((uintptr_t)address, s->domain->ledger.header->domain);
	if (err == 0) {
		turn(s, &at, true);
		em_ledger_event(s->ring, s->books, EXECMEM_EVENT_RETIRE, at.address, (uint32_t)at.size, em_domain_ms(s->domain));
	} else {
		em_block_refuse(s, err);
	}
	em_domain_leave(s);
	if (err == 0)
		(void)release_due(); /* what stands in the way of another block is told by poll and wait */
	return err;
}

int execmem_retire(void *address)
{
	execmem_domain *d = em_grace_is_used() ? em_domain_owner(address) : NULL;

	if (!em_grace_is_used())
		return refuse_unused();
	return d ? execmem_retire_in(d, address) : execmem_error_code();
}

int execmem_retire_poll(void)
{
	return release_due();
}

static int tell_late(uint64_t timeout_ms)
{
	execmem_retirement now;

	em_grace_count(&now);
	if (!now.late_thread)
		return em_error_set(EXECMEM_EBUSY, "%llu retired blocks wait still after %llu ms. Wait again.",
		                    (unsigned long long)now.waiting, (unsigned long long)timeout_ms);
	return em_error_set(
		EXECMEM_EBUSY,
		"%llu retired blocks wait still after %llu ms: thread %llu has not said since that it is outside of placed code. "
		"It must call execmem_quiescent or execmem_thread_offline.",
		(unsigned long long)now.waiting, (unsigned long long)timeout_ms, (unsigned long long)now.late_thread);
}

int execmem_retire_wait(uint64_t timeout_ms)
{
	uint64_t start = em_sys_monotonic_ns(), end = em_grace_next_ticket();
	int err;

	if (execmem_thread_is_online())
		return em_error_set(EXECMEM_EBUSY, "this thread is online and would wait for itself; call execmem_thread_offline before.");
	for (uint32_t turn = 0;; turn++) {
		err = release_due();
		if (em_grace_oldest_ticket() >= end)
			return 0;
		if ((em_sys_monotonic_ns() - start) / 1000000u >= timeout_ms)
			return err < 0 ? err : tell_late(timeout_ms);
		em_sys_nap_long(turn);
	}
}

int execmem_retire_count(execmem_retirement *out)
{
	if (!out)
		return em_error_null("out");
	em_grace_count(out);
	return 0;
}

const char *execmem_retire_check(void)
{
	return em_grace_check();
}
