/* sys_trap: the system calls of live patching: the handler that takes care of who runs into a breakpoint of ours. sys.h declares them.
 *
 *   SIGTRAP --> on_trap --> one of our sites?  the new instruction is done for the thread, or it waits a little and tries again
 *                       --> a site that was one until a moment ago?  it tries again
 *                       --> else whoever handled the signal before
 *
 * All of it is async-signal-safe, as in sys_fault.c. The handler runs with all other signals blocked, so that no handler of theirs runs into
 * a breakpoint in the middle of it. SIGTRAP itself is never blocked, here or by the writer: when a debugger steps a thread that blocks it,
 * the kernel takes its handler away. Who else handles SIGTRAP may come after us, without calling us
 * from then on, or calling us for what it does not know. Before each use it is looked who is in front; if it is not us, we go there again.
 * To be called in a circle by somebody who calls us is avoided by having many handlers, each with a predecessor for good.
 */
#include "sys.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

static struct em_lock trap_lock = {.rank = EM_RANK_TRAP}; /* from on to off */
static struct em_sys_traps table;
static const struct em_sys_traps *_Atomic current; /* `table`, or NULL */
static _Atomic uint32_t rounds; /* grows before `current` is set */
static _Atomic uint32_t inside; /* threads that look at `current` */
static bool (*_Atomic owns)(uint64_t address);
static uint64_t masked; /* signals that the caller of em_sys_traps_on had blocked */

/* ---- what the CPU and the kernel tell ---- */

#ifdef __x86_64__
enum { HAS_TRAPS = 1, INT3 = 0xCC, INT = 0xCD, VECTOR = 0x03 };

static bool is_breakpoint(const siginfo_t *info)
{
	return info->si_code == SI_KERNEL;
}

static struct em_frame frame_of(const ucontext_t *context)
{
	const greg_t *g = context->uc_mcontext.gregs;

	return (struct em_frame){.ip = (uint64_t)g[REG_RIP], .sp = (uint64_t)g[REG_RSP], .flags = (uint64_t)g[REG_EFL]};
}

static void set_frame(ucontext_t *context, const struct em_frame *frame)
{
	context->uc_mcontext.gregs[REG_RIP] = (greg_t)frame->ip;
	context->uc_mcontext.gregs[REG_RSP] = (greg_t)frame->sp;
}

/* int3 has been executed when its signal comes. */
static uint64_t site_of(const struct em_frame *frame)
{
	return frame->ip - 1;
}

/* Whether the trap may come from what lies there now; not one of us wrote the two-byte form. */
static bool is_there(uint64_t at)
{
	uint8_t byte, before;

	if (!em_sys_peek(&byte, (const void *)(uintptr_t)at, 1) || byte == INT3)
		return true;
	return byte == VECTOR && em_sys_peek(&before, (const void *)(uintptr_t)(at - 1), 1) && before == INT;
}
#else
/* No breakpoints are used on other CPUs. */
enum { HAS_TRAPS = 0 };

static bool is_breakpoint(const siginfo_t *info)
{
	(void)info;
	return false;
}

static struct em_frame frame_of(const ucontext_t *context)
{
	(void)context;
	return (struct em_frame){0};
}

static void set_frame(ucontext_t *context, const struct em_frame *frame)
{
	(void)context, (void)frame;
}

static uint64_t site_of(const struct em_frame *frame)
{
	return frame->ip;
}

static bool is_there(uint64_t at)
{
	(void)at;
	return true;
}
#endif

/* ---- who runs into a breakpoint ---- */

static const void *find(const struct em_sys_traps *t, uint64_t address)
{
	size_t low = 0, high = t->count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;
		const void *site = (const uint8_t *)t->sites + middle * t->stride;
		uint64_t at;

		memcpy(&at, site, sizeof at);
		if (at == address)
			return site;
		if (at < address)
			low = middle + 1;
		else
			high = middle;
	}
	return NULL;
}

/* False: no breakpoint of ours is there, as of now. *done: the frame is behind it. What is done is done before `inside` falls, for after
 * em_sys_traps_off nobody may come with an instruction that is old by then. */
static bool take(uint64_t at, struct em_frame *frame, bool *done)
{
	const struct em_sys_traps *t;
	const void *site;
	uint64_t stack[2]; /* what a call writes and a return reads: were it not there, the fault would not be ours to have */

	atomic_fetch_add(&inside, 1);
	t = atomic_load(&current);
	site = t ? find(t, at) : NULL;
	*done = site && em_sys_peek(stack, (const void *)(uintptr_t)(frame->sp - sizeof stack[0]), sizeof stack) && t->run(frame, site);
	atomic_fetch_sub(&inside, 1);
	return site != NULL;
}

bool em_sys_trap_took(void *info, void *context)
{
	bool (*is_ours)(uint64_t) = atomic_load(&owns);
	struct em_frame frame = frame_of(context);
	uint64_t at = site_of(&frame);
	int saved = errno;
	uint32_t round;
	bool done;

	if (!is_ours || !is_breakpoint(info))
		return false;
	do {
		round = atomic_load(&rounds);
		if (take(at, &frame, &done)) {
			if (!done) {
				em_sys_nap(); /* not sched_yield: a thread of higher priority would not let the writer go on */
				frame.ip = at;
			}
			set_frame(context, &frame);
			errno = saved;
			return true;
		}
		if (!is_ours(at))
			return false;
		if (!is_there(at)) { /* the signal took so long that the site has its instruction by now */
			frame.ip = at;
			set_frame(context, &frame);
			errno = saved;
			return true;
		}
	} while (atomic_load(&rounds) != round);
	errno = saved;
	return false;
}

/* ---- the chain ---- */

enum { FRONTS = 16, SPINS = 500 };

static struct front {
	struct sigaction previous;
	_Atomic bool spent;
} fronts[FRONTS];
static int fronts_used;

/* Blocks what would be blocked if the previous handler had been called at once. The kernel's mask has 64 bits. */
static void unblock_for(const struct sigaction *previous, const ucontext_t *context)
{
	uint64_t mask, more;

	memcpy(&mask, &context->uc_sigmask, sizeof mask);
	memcpy(&more, &previous->sa_mask, sizeof more);
	mask |= more | (previous->sa_flags & SA_NODEFER ? 0 : 1ull << (SIGTRAP - 1));
	(void)syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, NULL, sizeof mask);
}

static void on_trap(struct front *front, siginfo_t *info, void *context)
{
	int saved = errno;

	if (em_sys_trap_took(info, context))
		return;
	unblock_for(&front->previous, context);
	errno = saved;
	em_sys_fault_pass_on(&front->previous, &front->spent, info, context);
}

#define FRONTS_ALL(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define X(n)                                                                                                                       \
	static void on_trap_##n(int signal, siginfo_t *info, void *context)                                                            \
	{                                                                                                                              \
		(void)signal;                                                                                                              \
		on_trap(&fronts[n], info, context);                                                                                        \
	}
FRONTS_ALL(X)
#undef X

static void (*const handlers[FRONTS])(int, siginfo_t *, void *) = {
#define X(n) on_trap_##n,
	FRONTS_ALL(X)
#undef X
};

static bool is_ours_in_front(const struct sigaction *action)
{
	for (int i = 0; i < fronts_used && action->sa_flags & SA_SIGINFO; i++)
		if (action->sa_sigaction == handlers[i])
			return true;
	return em_sys_fault_is_reporter(action);
}

/* Installs the next of ours, to call `previous`; *replaced: whom it took the place of. */
static int install(const struct sigaction *previous, struct sigaction *replaced)
{
	struct sigaction mine = {.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};

	if (fronts_used == FRONTS)
		return -EBUSY;
	fronts[fronts_used].previous = *previous;
	atomic_store(&fronts[fronts_used].spent, false);
	mine.sa_sigaction = handlers[fronts_used];
	mine.sa_flags |= previous->sa_flags & SA_RESTART;
	sigfillset(&mine.sa_mask);
	sigdelset(&mine.sa_mask, SIGTRAP);
	if (sigaction(SIGTRAP, &mine, replaced) < 0)
		return -errno;
	fronts_used++;
	return 0;
}

/* Who comes between the question and the answer, and loses his place to us, is called by one more of ours. */
static int go_in_front(void)
{
	struct sigaction now, replaced, expected;
	int err = sigaction(SIGTRAP, NULL, &now) < 0 ? -errno : 0;

	if (err < 0 || (fronts_used > 0 && is_ours_in_front(&now)))
		return err;
	expected = now;
	for (;;) {
		err = install(&now, &replaced);
		if (err < 0 || replaced.sa_sigaction == expected.sa_sigaction)
			return err;
		now = replaced;
		expected.sa_sigaction = handlers[fronts_used - 1];
	}
}

/* ---- on and off ---- */

int em_sys_traps_on(const struct em_sys_traps *traps)
{
	uint64_t others = ~(1ull << (SIGTRAP - 1));
	int err = em_sys_scripted("trap");

	if (err || !HAS_TRAPS)
		return err ? err : -EOPNOTSUPP;
	em_sys_lock(&trap_lock);
	/* A handler of the caller's could run into what the caller is at, and would wait for ever. SIGTRAP: see above. */
	(void)syscall(SYS_rt_sigprocmask, SIG_BLOCK, &others, &masked, sizeof others);
	err = go_in_front();
	if (err < 0) {
		(void)syscall(SYS_rt_sigprocmask, SIG_SETMASK, &masked, NULL, sizeof masked);
		em_sys_unlock(&trap_lock);
		return err;
	}
	table = *traps;
	atomic_store(&owns, traps->owns);
	atomic_fetch_add(&rounds, 1);
	atomic_store(&current, &table);
	return 0;
}

void em_sys_traps_off(void)
{
	atomic_store(&current, NULL);
	for (int spin = 0; atomic_load(&inside); spin++)
		if (spin > SPINS)
			em_sys_nap();
	(void)syscall(SYS_rt_sigprocmask, SIG_SETMASK, &masked, NULL, sizeof masked);
	em_sys_unlock(&trap_lock);
}

/* ---- forks ---- */

void em_sys_traps_before_fork(void)
{
	em_sys_lock(&trap_lock);
}

/* Threads that looked at the table are not in the child. */
void em_sys_traps_after_fork(bool in_child)
{
	if (!in_child) {
		em_sys_unlock(&trap_lock);
		return;
	}
	trap_lock = (struct em_lock){.rank = EM_RANK_TRAP};
	atomic_store(&inside, 0);
}
