/* sys_fault: the system calls of the fault reporter: handlers of the signals that a fault raises, the chain behind them, reading memory
 * that may be gone. sys.h declares them.
 *
 *   fault --> whoever came after us, if somebody did --> on_fault --> tell --> previous handler, or the default action
 *
 * Everything from on_fault down is async-signal-safe: no malloc, no lock, no stdio, no thread-local storage (its first use in a thread
 * may allocate), little stack (an alternate one has 8 KB and up, of which the kernel's frame takes 3 or more).
 */
#include "sys.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

static const struct {
	int signal;
	const char *name;
} signals[] = {{SIGTRAP, "SIGTRAP"}, {SIGILL, "SIGILL"}, {SIGSEGV, "SIGSEGV"}, {SIGBUS, "SIGBUS"}};

enum { SIGNALS = sizeof signals / sizeof signals[0], OUTER_REACH = 16384, PATIENCE = 1000 /* ms, with whoever reads stderr */ };

static struct sigaction previous[SIGNALS]; /* what was there when we came; written before our handler is installed */
static _Atomic bool ours[SIGNALS]; /* our handler was installed, and not taken out by us since */
static _Atomic bool spent[SIGNALS]; /* the previous one was to run once, and has */
static void (*_Atomic tell_fault)(const struct em_sys_fault *);

/* ---- what the CPU and the kernel tell ---- */

#ifdef __x86_64__
enum { BREAKPOINT = 3, INVALID_OPCODE = 6, PROTECTION = 13, PAGE_FAULT = 14, ERROR_WRITE = 2, ERROR_FETCH = 16 };

static uint64_t ip_of(const ucontext_t *context)
{
	return (uint64_t)context->uc_mcontext.gregs[REG_RIP];
}

static enum em_sys_access access_of(const ucontext_t *context)
{
	uint64_t error = (uint64_t)context->uc_mcontext.gregs[REG_ERR];

	if (context->uc_mcontext.gregs[REG_TRAPNO] != PAGE_FAULT)
		return EM_SYS_TOUCHED;
	return error & ERROR_FETCH ? EM_SYS_RAN : error & ERROR_WRITE ? EM_SYS_WROTE : EM_SYS_READ;
}

/* int3 has been executed when its signal comes: the instruction pointer is behind it. */
static uint64_t trap_of(uint64_t ip)
{
	return ip - 1;
}

static void rewind_to_trap(ucontext_t *context)
{
	context->uc_mcontext.gregs[REG_RIP]--;
}

/*
 * A handler that came after us may tell its part, put ours back and raise the signal anew, as Python's faulthandler does. What happened
 * stands in the frame the kernel made for that handler, further up the stack, as a context; not as a siginfo, for handlers of the old
 * style get none. It is known by its looks: the segments and the alternate stack of this thread, and a fault of that signal.
 */
static bool find_outer(const siginfo_t *info, const ucontext_t *context, siginfo_t *out_info, ucontext_t *out)
{
	const greg_t *now = context->uc_mcontext.gregs, *then = out->uc_mcontext.gregs;
	uint64_t sp = em_round_up((uint64_t)now[REG_RSP], sizeof(greg_t));
	greg_t word;

	for (uint64_t at = sp; at < sp + OUTER_REACH; at += sizeof word) {
		int trap;

		if (!em_sys_peek(&word, (const void *)(uintptr_t)(at + offsetof(ucontext_t, uc_mcontext.gregs[REG_CSGSFS])), sizeof word))
			return false;
		if (word != now[REG_CSGSFS] || !em_sys_peek(out, (const void *)(uintptr_t)at, offsetof(ucontext_t, uc_sigmask)))
			continue;
		trap = (int)then[REG_TRAPNO];
		if (out->uc_link || out->uc_stack.ss_sp != context->uc_stack.ss_sp || out->uc_stack.ss_size != context->uc_stack.ss_size ||
		    trap != (info->si_signo == SIGTRAP  ? BREAKPOINT
		             : info->si_signo == SIGILL ? INVALID_OPCODE
		             : trap == PROTECTION       ? PROTECTION
		                                        : PAGE_FAULT))
			continue;
		*out_info = *info;
		out_info->si_code = trap == PAGE_FAULT ? SEGV_ACCERR : trap == INVALID_OPCODE ? ILL_ILLOPN : SI_KERNEL;
		out_info->si_addr = (void *)(uintptr_t)then[REG_CR2];
		return true;
	}
	return false;
}
#else
/* No room of arch/ supports another CPU yet, so no fault can lie in a window. */
static uint64_t ip_of(const ucontext_t *context)
{
	(void)context;
	return 0;
}

static uint64_t sp_of(const ucontext_t *context)
{
	(void)context;
	return 0;
}

static uint64_t segments_of(const ucontext_t *context)
{
	(void)context;
	return 0;
}

static enum em_sys_access access_of(const ucontext_t *context)
{
	(void)context;
	return EM_SYS_TOUCHED;
}

static uint64_t trap_of(uint64_t ip)
{
	return ip;
}

static void rewind_to_trap(ucontext_t *context)
{
	(void)context;
}

static bool find_outer(const siginfo_t *info, const ucontext_t *context, siginfo_t *out_info, ucontext_t *out)
{
	(void)info, (void)context, (void)out_info, (void)out;
	return false;
}
#endif

/* A fault of an instruction of this thread, not a signal that somebody sent. */
static bool is_fault(const siginfo_t *info)
{
	return info->si_code > 0;
}

/* False: a debugger's step or hardware breakpoint, which is no trap in memory. */
static bool describe(const siginfo_t *info, const ucontext_t *context, struct em_sys_fault *out)
{
	*out = (struct em_sys_fault){.ip = ip_of(context), .access = EM_SYS_RAN};
	for (int i = 0; i < SIGNALS; i++)
		if (signals[i].signal == info->si_signo)
			out->name = signals[i].name;
	out->kind = EM_SYS_FAULT_MEMORY;
	switch (info->si_signo) {
	case SIGTRAP:
		out->kind = EM_SYS_FAULT_TRAP;
		out->ip = out->address = trap_of(out->ip);
		return info->si_code == SI_KERNEL;
	case SIGILL:
		out->kind = EM_SYS_FAULT_ILLEGAL;
		out->address = out->ip;
		return true;
	case SIGBUS:
		out->kind = EM_SYS_FAULT_BUS;
		break;
	default:
		break;
	}
	if (info->si_code == SI_KERNEL) { /* no page fault: the kernel knows no address */
		out->address = out->ip;
		out->kind = EM_SYS_FAULT_PROTECTION;
		return true;
	}
	out->address = (uintptr_t)info->si_addr;
	out->access = access_of(context);
	return true;
}

/* A signal that somebody raised in this process: perhaps a handler that was called for a fault. */
static bool describe_outer(const siginfo_t *info, const ucontext_t *context, struct em_sys_fault *out)
{
	siginfo_t outer_info;
	ucontext_t outer;

	return info->si_code == SI_TKILL && info->si_pid == getpid() && find_outer(info, context, &outer_info, &outer) &&
	       describe(&outer_info, &outer, out);
}

/* ---- the chain ---- */

/*
 * Ends the process as the signal would have without us: with what the kernel told of it, at the place where it happened. Where a call is
 * refused by a sandbox, or does nothing because this is the first process of a container, the instruction is run again with the signal
 * blocked: such a fault the kernel never leaves to a handler. Else the thread would go on behind a trap.
 */
static void end_by_default(int signal, siginfo_t *info, ucontext_t *context)
{
	struct sigaction standard = {.sa_handler = SIG_DFL};
	bool ends = sigaction(signal, &standard, NULL) == 0 && getpid() != 1 &&
	            syscall(SYS_rt_tgsigqueueinfo, getpid(), (pid_t)syscall(SYS_gettid), signal, info) == 0;

	if (ends)
		return;
	if (!is_fault(info)) {
		(void)kill(getpid(), SIGKILL); /* no instruction to run again; a first process is spared this too */
		return;
	}
	sigaddset(&context->uc_sigmask, signal);
	if (signal == SIGTRAP)
		rewind_to_trap(context);
}

/* Our handler has its mask and its way with the signal itself, so for who is called it is as if the kernel had. */
void em_sys_fault_pass_on(const void *previous_action, _Atomic bool *was_spent, void *told, void *context)
{
	const struct sigaction *next = previous_action;
	siginfo_t *info = told;
	bool is_default = !(next->sa_flags & SA_SIGINFO) && next->sa_handler == SIG_DFL;
	bool is_ignored = !(next->sa_flags & SA_SIGINFO) && next->sa_handler == SIG_IGN;

	if (is_ignored && !is_fault(info))
		return;
	if (!is_default && !is_ignored && next->sa_flags & (int)SA_RESETHAND)
		is_default = atomic_exchange(was_spent, true);
	if (is_default || is_ignored) /* a fault cannot be ignored: the kernel ends the process */
		end_by_default(info->si_signo, info, context);
	else if (next->sa_flags & SA_SIGINFO)
		next->sa_sigaction(info->si_signo, info, context);
	else
		next->sa_handler(info->si_signo);
}

static void on_fault(int signal, siginfo_t *info, void *context)
{
	void (*tell)(const struct em_sys_fault *) = atomic_load(&tell_fault);
	struct em_sys_fault fault;
	int saved = errno, number = 0;

	if (signal == SIGTRAP && em_sys_trap_took(info, context))
		return;
	while (signals[number].signal != signal)
		number++;
	if (tell && (is_fault(info) ? describe(info, context, &fault) : describe_outer(info, context, &fault)))
		tell(&fault);
	errno = saved;
	em_sys_fault_pass_on(&previous[number], &spent[number], info, context);
}

/* ---- on and off ---- */

static bool is_ours(const struct sigaction *action)
{
	return action->sa_flags & SA_SIGINFO && action->sa_sigaction == on_fault;
}

static bool is_handler(const struct sigaction *action)
{
	return action->sa_flags & SA_SIGINFO || (action->sa_handler != SIG_DFL && action->sa_handler != SIG_IGN);
}

bool em_sys_fault_is_reporter(const void *action)
{
	const struct sigaction *a = action;

	return is_ours(a) && sigismember(&a->sa_mask, SIGALRM) && sigismember(&a->sa_mask, SIGUSR1);
}

static int install(int number)
{
	struct sigaction now, mine;

	if (sigaction(signals[number].signal, NULL, &now) < 0)
		return -errno;
	/* Someone who came after us is left in front: he has our address, and would be called in a circle if we went before him. */
	if (is_ours(&now) || (atomic_load(&ours[number]) && is_handler(&now)))
		return 0;
	mine = now;
	mine.sa_sigaction = on_fault;
	mine.sa_flags = SA_SIGINFO | SA_ONSTACK | (now.sa_flags & (SA_NODEFER | SA_RESTART));
	previous[number] = now;
	atomic_store(&spent[number], false);
	if (sigaction(signals[number].signal, &mine, NULL) < 0)
		return -errno;
	atomic_store(&ours[number], true);
	return 0;
}

static int uninstall(int number)
{
	struct sigaction now;

	if (!atomic_load(&ours[number]))
		return 0;
	if (sigaction(signals[number].signal, NULL, &now) < 0)
		return -errno;
	if (is_ours(&now)) {
		if (sigaction(signals[number].signal, &previous[number], NULL) < 0)
			return -errno;
		atomic_store(&ours[number], false);
	}
	return 0; /* else somebody stands before us and may call us: then we pass on, and tell nothing */
}

int em_sys_faults_on(void (*tell)(const struct em_sys_fault *fault))
{
	for (int i = 0; i < SIGNALS; i++) {
		int err = install(i);

		if (err < 0) {
			while (i-- > 0)
				(void)uninstall(i);
			return err;
		}
	}
	atomic_store(&tell_fault, tell);
	return 0;
}

int em_sys_faults_off(void)
{
	int first = 0;

	atomic_store(&tell_fault, NULL);
	for (int i = 0; i < SIGNALS; i++) {
		int err = uninstall(i);

		first = first ? first : err;
	}
	return first;
}

/* ---- what a handler may do ---- */

bool em_sys_peek(void *to, const void *from, size_t len)
{
	struct iovec local = {to, len}, remote = {(void *)(uintptr_t)from, len};
	int saved = errno;
	ssize_t got = process_vm_readv(getpid(), &local, 1, &remote, 1, 0);

	if (got < 0 && (errno == ENOSYS || errno == EPERM)) {
		memcpy(to, from, len); /* a sandbox that refuses the call: most likely it is still there */
		got = (ssize_t)len;
	}
	errno = saved;
	return got == (ssize_t)len;
}

/*
 * Words must not change how the process ends: nobody reads the pipe, the file is at its limit, the terminal belongs to others, all of
 * which raise a signal; or the reader does not read, and a write would wait for ever.
 */
void em_sys_tell(const char *text, size_t len)
{
	static const struct timespec now = {0};
	struct pollfd out = {.fd = STDERR_FILENO, .events = POLLOUT};
	sigset_t raised, before, pending;
	int saved = errno;

	sigemptyset(&raised);
	sigaddset(&raised, SIGPIPE);
	sigaddset(&raised, SIGXFSZ);
	sigaddset(&raised, SIGTTOU);
	(void)sigpending(&pending);
	(void)pthread_sigmask(SIG_BLOCK, &raised, &before);
	while (len > 0 && !(poll(&out, 1, PATIENCE) == 0)) {
		ssize_t done = write(STDERR_FILENO, text, len < PIPE_BUF ? len : PIPE_BUF);

		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			break; /* nobody listens */
		text += done;
		len -= (size_t)done;
	}
	for (int i = 1; i < NSIG; i++)
		if (sigismember(&pending, i) == 1)
			sigdelset(&raised, i); /* was there before */
	while (sigtimedwait(&raised, NULL, &now) > 0)
		;
	(void)pthread_sigmask(SIG_SETMASK, &before, NULL);
	errno = saved;
}

uint32_t em_sys_thread(void)
{
	return (uint32_t)syscall(SYS_gettid);
}
