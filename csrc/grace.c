/* grace: see grace.h. A period costs a membarrier and a look at each thread, whatever waits. */
#include "grace.h"
#include "error.h"

#include <stdlib.h>
#include <string.h>

enum {
	FIRST = EM_PAGE / sizeof(struct em_grace_wait), /* waits there is room for at first, */
	KEPT = 64 * FIRST,                              /* and at most while none waits */
	DRAIN_NS = 25000000, /* no store stays in a core's buffer for anything like this long */
};

_Thread_local struct em_grace_thread *em_grace_self;
_Atomic uint64_t em_grace_period = 1;
bool em_grace_fences;

static struct {
	struct em_lock lock;
	struct em_grace_thread *threads;
	uint64_t passed;     /* the last period that has; the one after it may have begun */
	uint64_t not_before; /* when that can have passed at the earliest; monotonic */
	struct em_grace_wait *queue; /* a ring: that with ticket t is queue[t % room]; NULL: none yet */
	uint64_t room;       /* a power of two */
	uint64_t oldest, next; /* tickets */
} grace = {.lock = {.rank = EM_RANK_GRACE}, .passed = 1};

static _Atomic bool used;
static _Thread_local bool ends; /* the thread's record was taken out; of another one there may be no second round */

/* ---- threads ---- */

static void forget(struct em_grace_thread *thread)
{
	if (thread->next)
		thread->next->previous = thread->previous;
	if (thread->previous)
		thread->previous->next = thread->next;
	else
		grace.threads = thread->next;
	free(thread);
}

/* The thread ends, online or not. What else is called at its end may run placed code still, so it goes a round later. */
static void on_exit_of(void *arg)
{
	struct em_grace_thread *thread = arg;
	bool again = !thread->last;

	thread->last = true;
	em_sys_lock(&grace.lock);
	if (!again || em_sys_at_thread_exit(on_exit_of, thread) < 0) {
		ends = true;
		em_grace_self = NULL;
		forget(thread);
	}
	em_sys_unlock(&grace.lock);
}

int em_grace_enter_new(void)
{
	struct em_grace_thread *self = aligned_alloc(sizeof *self, sizeof *self);
	int err;

	if (!self)
		return em_error_set(EXECMEM_ENOMEM, "out of memory for the record of a thread that runs placed code.");
	memset(self, 0, sizeof *self);
	self->number = em_sys_thread();
	self->last = ends;
	em_sys_lock(&grace.lock);
	if (!atomic_load_explicit(&used, memory_order_relaxed))
		em_grace_fences = em_sys_fence_ready() < 0;
	err = em_sys_at_thread_exit(on_exit_of, self);
	if (err == 0) {
		self->next = grace.threads;
		if (self->next)
			self->next->previous = self;
		grace.threads = self;
		em_grace_self = self;
		atomic_store_explicit(&used, true, memory_order_release);
	}
	em_sys_unlock(&grace.lock);
	if (err == 0)
		return 0;
	free(self);
	return em_error_system(err, "be told when the thread ends (pthread_key_create)");
}

bool em_grace_is_used(void)
{
	return atomic_load_explicit(&used, memory_order_acquire);
}

/* ---- periods: the lock is held ---- */

/* A thread that may still be inside since before the running period; NULL: none. */
static const struct em_grace_thread *late(void)
{
	uint64_t period = atomic_load_explicit(&em_grace_period, memory_order_relaxed);

	for (const struct em_grace_thread *t = grace.threads; t; t = t->next) {
		uint64_t seen = atomic_load_explicit(&t->seen, memory_order_acquire);

		if (seen && seen < period)
			return t;
	}
	return NULL;
}

static void begin(void)
{
	atomic_fetch_add(&em_grace_period, 1);
	grace.not_before = 0;
	if (em_grace_fences)
		em_sys_fence();
	else if (em_sys_fence_threads() < 0) /* a seccomp filter that came after the first thread */
		grace.not_before = em_sys_monotonic_ns() + DRAIN_NS;
}

static bool has_passed(void)
{
	return (!grace.not_before || em_sys_monotonic_ns() >= grace.not_before) && !late();
}

/* The oldest that waits is due, or becomes so by what can be done without waiting. */
static bool is_due(const struct em_grace_wait *oldest)
{
	uint64_t period = atomic_load_explicit(&em_grace_period, memory_order_relaxed);

	if (grace.passed < period && has_passed())
		grace.passed = period;
	if (oldest->period < grace.passed)
		return true;
	if (grace.passed < period)
		return false;
	begin();
	if (has_passed())
		grace.passed = period + 1;
	return oldest->period < grace.passed;
}

/* ---- the queue ---- */

static int grow(void)
{
	uint64_t room = grace.room ? 2 * grace.room : FIRST;
	struct em_grace_wait *queue;
	void *table;
	int err = em_sys_map_table(room * sizeof *queue, -1, &table);

	if (err < 0)
		return em_error_system(err, "map the queue of retired blocks");
	queue = table;
	for (uint64_t ticket = grace.oldest; ticket < grace.next; ticket++)
		queue[ticket % room] = grace.queue[ticket % grace.room];
	if (grace.queue)
		(void)em_sys_release(grace.queue, grace.room * sizeof *queue);
	grace.queue = queue;
	grace.room = room;
	return 0;
}

/* A queue that was long once goes. */
static void shrink(void)
{
	if (grace.room > KEPT && em_sys_release(grace.queue, grace.room * sizeof *grace.queue) == 0) {
		grace.queue = NULL;
		grace.room = 0;
	}
}

int em_grace_add(uint64_t address, uint32_t domain)
{
	int err = 0;

	em_sys_lock(&grace.lock);
	if (grace.next - grace.oldest == grace.room)
		err = grow();
	if (err == 0) {
		grace.queue[grace.next % grace.room] = (struct em_grace_wait){
			.ticket = grace.next,
			.address = address,
			.period = atomic_load_explicit(&em_grace_period, memory_order_relaxed),
			.domain = domain,
		};
		grace.next++;
	}
	em_sys_unlock(&grace.lock);
	return err;
}

bool em_grace_due(struct em_grace_wait *out)
{
	bool due = false;

	em_sys_lock(&grace.lock);
	if (grace.oldest < grace.next) {
		*out = grace.queue[grace.oldest % grace.room];
		due = is_due(out);
	}
	em_sys_unlock(&grace.lock);
	return due;
}

bool em_grace_is_oldest(uint64_t ticket)
{
	bool is;

	em_sys_lock(&grace.lock);
	is = grace.oldest == ticket && grace.oldest < grace.next;
	em_sys_unlock(&grace.lock);
	return is;
}

void em_grace_drop(uint64_t ticket)
{
	em_sys_lock(&grace.lock);
	if (grace.oldest == ticket && grace.oldest < grace.next) {
		grace.oldest++;
		if (grace.oldest == grace.next)
			shrink();
	}
	em_sys_unlock(&grace.lock);
}

uint64_t em_grace_next_ticket(void)
{
	uint64_t next;

	em_sys_lock(&grace.lock);
	next = grace.next;
	em_sys_unlock(&grace.lock);
	return next;
}

uint64_t em_grace_oldest_ticket(void)
{
	uint64_t oldest;

	em_sys_lock(&grace.lock);
	oldest = grace.oldest;
	em_sys_unlock(&grace.lock);
	return oldest;
}

/* ---- asking ---- */

void em_grace_count(execmem_retirement *out)
{
	const struct em_grace_thread *first;

	*out = (execmem_retirement){0};
	em_sys_lock(&grace.lock);
	out->waiting = grace.next - grace.oldest;
	out->retired = grace.next;
	out->periods = grace.passed - 1;
	for (const struct em_grace_thread *t = grace.threads; t; t = t->next) {
		out->threads++;
		out->online += atomic_load_explicit(&t->seen, memory_order_relaxed) != 0;
	}
	first = grace.passed < atomic_load_explicit(&em_grace_period, memory_order_relaxed) ? late() : NULL;
	out->late_thread = first ? first->number : 0;
	out->fences = em_grace_fences;
	em_sys_unlock(&grace.lock);
}

const char *em_grace_check(void)
{
	uint64_t period, before = 0;
	const char *broken = NULL;

	em_sys_lock(&grace.lock);
	period = atomic_load_explicit(&em_grace_period, memory_order_relaxed);
	if (grace.passed > period || grace.passed + 1 < period)
		broken = "more than one grace period runs, or one has passed that never began";
	if (grace.next - grace.oldest > grace.room || (grace.room & (grace.room - 1)))
		broken = "the queue of retired blocks is longer than its room";
	for (uint64_t ticket = grace.oldest; !broken && ticket < grace.next; ticket++) {
		const struct em_grace_wait *w = &grace.queue[ticket % grace.room];

		if (w->ticket != ticket || w->period < before || w->period > period)
			broken = "the queue of retired blocks is out of order";
		before = w->period;
	}
	for (const struct em_grace_thread *t = grace.threads; !broken && t; t = t->next)
		if (atomic_load_explicit(&t->seen, memory_order_relaxed) > period || (t->next && t->next->previous != t))
			broken = "a thread has seen a grace period that never began, or is not in the list of threads";
	em_sys_unlock(&grace.lock);
	return broken;
}

/* ---- forks ---- */

void em_grace_lock(void)
{
	em_sys_lock(&grace.lock);
}

void em_grace_unlock(void)
{
	em_sys_unlock(&grace.lock);
}

void em_grace_inherit(void)
{
	struct em_grace_thread *next;

	grace.lock = (struct em_lock){.rank = EM_RANK_GRACE};
	for (struct em_grace_thread *t = grace.threads; t; t = next) {
		next = t->next;
		if (t != em_grace_self)
			forget(t);
	}
	if (em_grace_self)
		em_grace_self->number = em_sys_thread();
	if (em_grace_is_used() && !em_grace_fences)
		(void)em_sys_fence_ready(); /* refused here, periods last longer */
}
