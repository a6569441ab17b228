/* test_trap: live changes beside others who use SIGTRAP: handlers that were there before, that come after, that chain and that do not; the
 * reporter of faults; a thread that steps itself; a debugger that steps one; a sandbox without membarrier. Each in a process of its own.
 *
 * usage: test_trap [changes in each case]
 */
#include "sites.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#ifdef __x86_64__

enum { SITES = 30 };

static execmem_domain *domain;
static struct site sites[SITES];
static struct runners runners;
static uint64_t seed = 3;
static int changes;

/* ---- a process for each case ---- */

static void open_sites(void)
{
	execmem_options options = {.name = "trap"};

	EXPECT(execmem_domain_open(&options, &domain) == 0);
	for (int i = 0; i < SITES; i++)
		site_place(&sites[i], domain, &site_kinds[i % site_kind_count], (uint32_t)i % 11);
	execmem_test_script("store=F*");
}

static void change_some(int count)
{
	for (int i = 0; i < count; i++) {
		struct site *s = &sites[test_random(&seed) % SITES];

		site_change(s, (s->now + 1) % s->kind->variants);
	}
}

static void run_and_change(void)
{
	runners_start(&runners, sites, SITES, 2);
	change_some(changes);
	runners_stop(&runners);
}

/* Runs it; gives its end as waitpid does, and what it wrote to stderr. */
static int in_child(void (*what)(void), char *told, size_t size)
{
	int ends[2], status;
	size_t got = 0;
	ssize_t more;
	pid_t child;

	EXPECT(pipe(ends) == 0);
	fflush(stdout);
	child = fork();
	EXPECT(child >= 0);
	if (child == 0) {
		dup2(ends[1], STDERR_FILENO);
		close(ends[0]);
		close(ends[1]);
		what();
		_exit(0);
	}
	close(ends[1]);
	while ((more = read(ends[0], told + got, size - 1 - got)) > 0)
		got += (size_t)more;
	told[got] = '\0';
	close(ends[0]);
	EXPECT(waitpid(child, &status, 0) == child);
	return status;
}

static void expect_fine(const char *name, void (*what)(void))
{
	char told[2000];
	int status = in_child(what, told, sizeof told);

	if (status != 0 || told[0]) {
		fprintf(stderr, "%s: status %#x, told: %s\n", name, (unsigned)status, told);
		exit(1);
	}
}

static void expect_ends_by_trap(const char *name, void (*what)(void), const char *words)
{
	char told[4000];
	int status = in_child(what, told, sizeof told);

	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGTRAP || !strstr(told, words)) {
		fprintf(stderr, "%s: status %#x, told: %s\n", name, (unsigned)status, told);
		exit(1);
	}
}

/* ---- handlers of others ---- */

static _Atomic int first_called, second_called, plain_called, steps_seen;
static struct sigaction saved;

static void raise_trap(void)
{
	__asm__ volatile("int3" ::: "memory");
}

static bool is_blocked(int number)
{
	sigset_t mask;

	EXPECT(pthread_sigmask(SIG_SETMASK, NULL, &mask) == 0);
	return sigismember(&mask, number);
}

/* It finds what the kernel would have given it: the place, the siginfo, and the mask it asked for. */
static void on_first(int number, siginfo_t *info, void *context)
{
	const ucontext_t *at = context;

	if (info->si_code == TRAP_TRACE || info->si_code == TRAP_BRKPT) {
		atomic_fetch_add(&steps_seen, 1);
		return;
	}
	if (number != SIGTRAP || info->si_code != SI_KERNEL ||
	    *(const uint8_t *)((uintptr_t)at->uc_mcontext.gregs[REG_RIP] - 1) != 0xCC)
		abort();
	if (!is_blocked(SIGTRAP) || !is_blocked(SIGUSR2) || is_blocked(SIGALRM))
		abort();
	atomic_fetch_add(&first_called, 1);
}

static void on_second(int number, siginfo_t *info, void *context)
{
	atomic_fetch_add(&second_called, 1);
	if (saved.sa_flags & SA_SIGINFO)
		saved.sa_sigaction(number, info, context);
}

static void on_plain(int number)
{
	if (number != SIGTRAP)
		abort();
	atomic_fetch_add(&plain_called, 1);
}

static void install_first(void)
{
	struct sigaction first = {.sa_sigaction = on_first, .sa_flags = SA_SIGINFO};

	sigemptyset(&first.sa_mask);
	sigaddset(&first.sa_mask, SIGUSR2);
	EXPECT(sigaction(SIGTRAP, &first, NULL) == 0);
}

static void case_handler_before(void)
{
	install_first();
	open_sites();
	run_and_change();
	for (int i = 1; i <= 3; i++) {
		raise_trap();
		EXPECT(atomic_load(&first_called) == i);
	}
	EXPECT(!is_blocked(SIGTRAP) && !is_blocked(SIGUSR2));
}

/* One that comes after us and calls us for everything: nobody goes in a circle. */
static void case_handler_between(void)
{
	struct sigaction second = {.sa_sigaction = on_second, .sa_flags = SA_SIGINFO};

	install_first();
	open_sites();
	change_some(3);
	EXPECT(sigaction(SIGTRAP, &second, &saved) == 0);
	run_and_change();
	atomic_store(&first_called, 0);
	atomic_store(&second_called, 0);
	raise_trap();
	EXPECT(atomic_load(&first_called) == 1 && atomic_load(&second_called) == 1);
	/* Ours from before are put back by somebody who does not know of the others. */
	EXPECT(sigaction(SIGTRAP, &saved, NULL) == 0);
	run_and_change();
	raise_trap();
	EXPECT(atomic_load(&first_called) == 2);
}

/* Again and again somebody takes our place: until all handlers are used, and after. */
static void case_handlers_without_end(void)
{
	struct sigaction plain = {.sa_handler = on_plain};

	open_sites();
	for (int i = 1; i <= 20; i++) {
		EXPECT(sigaction(SIGTRAP, &plain, NULL) == 0);
		runners_start(&runners, sites, SITES, 2);
		change_some(10);
		runners_stop(&runners);
		raise_trap();
		EXPECT(atomic_load(&plain_called) == i);
	}
}

static void end_with(void (*handler)(int), int flags)
{
	struct sigaction action = {.sa_handler = handler, .sa_flags = flags};

	EXPECT(sigaction(SIGTRAP, &action, NULL) == 0);
	open_sites();
	run_and_change();
	raise_trap();
}

static void case_default(void)
{
	end_with(SIG_DFL, 0);
}

static void case_ignored(void)
{
	end_with(SIG_IGN, 0);
}

static void case_once(void)
{
	end_with(on_plain, (int)SA_RESETHAND);
	EXPECT(atomic_load(&plain_called) == 1);
	raise_trap();
}

/* ---- the reporter ---- */

static void case_reporter_before(void)
{
	EXPECT(execmem_report_faults(1) == 0);
	open_sites();
	run_and_change();
}

static void case_reporter_after(void)
{
	open_sites();
	change_some(3);
	EXPECT(execmem_report_faults(1) == 0);
	run_and_change();
	EXPECT(execmem_report_faults(0) == 0);
	run_and_change();
	EXPECT(execmem_report_faults(1) == 0);
	run_and_change();
}

static void run_freed(void)
{
	void *at = sites[0].code;

	EXPECT(execmem_free(at) == 0);
	test_call(at);
}

static void case_reporter_before_tells(void)
{
	case_reporter_before();
	run_freed();
}

static void case_reporter_after_tells(void)
{
	case_reporter_after();
	run_freed();
}

/* ---- stepping ---- */

/* Calls with the flag set that traps after each instruction. */
static uint32_t step_through(const void *code)
{
	uint32_t value;

	__asm__ volatile("leaq -128(%%rsp), %%rsp\n\t"
	                 "pushfq\n\torq $0x100, (%%rsp)\n\tpopfq\n\t"
	                 "call *%1\n\t"
	                 "pushfq\n\tandq $~0x100, (%%rsp)\n\tpopfq\n\t"
	                 "leaq 128(%%rsp), %%rsp"
	                 : "=a"(value)
	                 : "r"(code)
	                 : "rcx", "memory", "cc");
	return value;
}

static _Atomic bool ended;

static void *change_until_ended(void *unused)
{
	while (!atomic_load(&ended))
		change_some(1);
	return unused;
}

static void case_steps_itself(void)
{
	pthread_t writer;

	install_first();
	open_sites();
	change_some(1);
	EXPECT(pthread_create(&writer, NULL, change_until_ended, NULL) == 0);
	for (int i = 0; i < changes / 10 + 10; i++)
		for (int k = 0; k < SITES; k++) {
			int before = atomic_load(&steps_seen), steps;
			uint32_t value = step_through(sites[k].code), known = 0;

			for (int v = 0; v < sites[k].kind->variants; v++)
				known += sites[k].kind->values[v] == value;
			EXPECT(known > 0);
			steps = atomic_load(&steps_seen) - before;
			EXPECT(steps >= 5 && steps <= 16); /* mov, test, jmp, the site, ret; no instruction is stepped over */
		}
	atomic_store(&ended, true);
	EXPECT(pthread_join(writer, NULL) == 0);
}

static int to_tracer[2], from_tracer[2];

static void case_is_traced(void)
{
	int32_t tid;
	char end;

	open_sites();
	change_some(1);
	runners_start(&runners, sites, SITES, 1);
	tid = atomic_load(&runners.tid);
	EXPECT(write(to_tracer[1], &tid, sizeof tid) == sizeof tid);
	atomic_store(&ended, false);
	close(from_tracer[1]);
	for (;;) {
		fd_set ready;
		struct timeval now = {0, 0};

		FD_ZERO(&ready);
		FD_SET(from_tracer[0], &ready);
		change_some(5);
		if (select(from_tracer[0] + 1, &ready, NULL, NULL, &now) == 1)
			break;
	}
	EXPECT(read(from_tracer[0], &end, 1) == 1);
	runners_stop(&runners);
}

/* Steps the thread, and passes on what is not of the stepping, until it met breakpoints so many times. */
static void step_thread(int32_t tid, int breakpoints)
{
	int met = 0, status;
	long steps = 0;

	EXPECT(ptrace(PTRACE_SEIZE, tid, NULL, NULL) == 0);
	EXPECT(ptrace(PTRACE_INTERRUPT, tid, NULL, NULL) == 0);
	for (;;) {
		int number = 0;
		siginfo_t info;

		EXPECT(waitpid(tid, &status, __WALL) == tid);
		snprintf(test_context, sizeof test_context, "status %#x after %ld steps and %d breakpoints", (unsigned)status, steps, met);
		EXPECT(WIFSTOPPED(status));
		if (status >> 16 == 0) {
			number = WSTOPSIG(status);
			EXPECT(ptrace(PTRACE_GETSIGINFO, tid, NULL, &info) == 0);
			met += number == SIGTRAP && info.si_code == SI_KERNEL;
			if (number == SIGTRAP && info.si_code != SI_KERNEL)
				number = 0; /* a step */
		}
		steps++;
		if (met >= breakpoints && number == 0)
			break;
		EXPECT(ptrace(PTRACE_SINGLESTEP, tid, NULL, (void *)(intptr_t)number) == 0);
	}
	EXPECT(ptrace(PTRACE_DETACH, tid, NULL, NULL) == 0);
	printf("a debugger stepped %ld instructions and met %d breakpoints\n", steps, met);
}

static void test_traced(void)
{
	pid_t child;
	int32_t tid;
	int status;

	EXPECT(pipe(to_tracer) == 0 && pipe(from_tracer) == 0);
	fflush(stdout);
	child = fork();
	EXPECT(child >= 0);
	if (child == 0) {
		case_is_traced();
		_exit(0);
	}
	close(to_tracer[1]);
	EXPECT(read(to_tracer[0], &tid, sizeof tid) == sizeof tid);
	step_thread(tid, changes / 20 + 5);
	EXPECT(write(from_tracer[1], "", 1) == 1);
	EXPECT(waitpid(child, &status, 0) == child);
	EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* ---- a sandbox ---- */

static void case_without_membarrier(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_membarrier, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog filter = {sizeof code / sizeof code[0], code};

	EXPECT(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	EXPECT(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0);
	EXPECT(execmem_sync() == EXECMEM_EDENIED);
	open_sites();
	run_and_change();
	runners_start(&runners, sites, SITES - 1, 2);
	site_change_all(sites, SITES - 1, &seed);
	runners_stop(&runners);
}

int main(int argc, char **argv)
{
	changes = test_amount(argc, argv, 600, 40);
	expect_fine("a handler from before", case_handler_before);
	expect_fine("a handler in between", case_handler_between);
	if (TEST_STOPS_THREADS)
		expect_fine("handlers without end", case_handlers_without_end);
	expect_ends_by_trap("default", case_default, "");
	expect_ends_by_trap("ignored", case_ignored, "");
	expect_ends_by_trap("a handler for once", case_once, "");
	expect_fine("the reporter first", case_reporter_before);
	expect_fine("the reporter later", case_reporter_after);
	expect_ends_by_trap("the reporter first, and a fault", case_reporter_before_tells, "freed");
	expect_ends_by_trap("the reporter later, and a fault", case_reporter_after_tells, "freed");
	expect_fine("a thread that steps itself", case_steps_itself);
	test_traced();
	if (TEST_STOPS_THREADS)
		expect_fine("a sandbox without membarrier", case_without_membarrier);
	puts("ok");
	return 0;
}
#else
int main(void)
{
	EXPECT(strcmp(execmem_arch_name(), "x86_64") != 0);
	printf("left out: no breakpoints are used on %s\n", execmem_arch_name());
	return 0;
}
#endif
