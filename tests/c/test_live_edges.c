/* test_live_edges: live changes where something else is going on with the same block: it is freed, kept, inherited, calls the change itself;
 * threads that take no signals; a CPU that answers otherwise; handlers that come in the midst of it.
 *
 * usage: test_live_edges [rounds]
 */
#include "domain.h"
#include "sites.h"

#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SITES = 20 };

/* Functions that give 1 or 2, by their first instruction. Then one that calls what stands in it at TARGET, by the instruction at CALL, which a
 * nop may take the place of, and gives 7. */
#if defined(__aarch64__)
enum { FIRST = 4, CALL = 8, TARGET = 24 };
static const uint32_t one[] = {0x52800020, 0xd65f03c0}, two[] = {0x52800040, 0xd65f03c0}; /* mov w0, 1 or 2; ret */
/* stp x29, x30, [sp, -16]!; ldr x16, target; blr x16; ldp x29, x30, [sp], 16; mov w0, 7; ret */
static const uint32_t caller[] = {0xa9bf7bfd, 0x580000b0, 0xd63f0200, 0xa8c17bfd, 0x528000e0, 0xd65f03c0, 0, 0};
static const uint32_t call_insn[] = {0xd63f0200}, nop_insn[] = {0xd503201f};
#elif defined(__riscv)
enum { FIRST = 4, CALL = 16, TARGET = 40 };
static const uint32_t one[] = {0x00100513, 0x00008067}, two[] = {0x00200513, 0x00008067}; /* li a0, 1 or 2; ret */
/* addi sp, sp, -16; sd ra, 8(sp); auipc t0, 0; ld t0, target; jalr t0; ld ra, 8(sp); addi sp, sp, 16; li a0, 7; ret */
static const uint32_t caller[] = {0xff010113, 0x00113423, 0x00000297, 0x0202b283, 0x000280e7, 0x00813083,
                                  0x01010113, 0x00700513, 0x00008067, 0,          0,          0};
static const uint32_t call_insn[] = {0x000280e7}, nop_insn[] = {0x00000013};
#else
enum { FIRST = 5, CALL = 14, TARGET = 6 };
static const uint8_t one[] = {0xB8, 1, 0, 0, 0, 0xC3}, two[] = {0xB8, 2, 0, 0, 0, 0xC3}; /* mov eax, 1 or 2; ret */
/* sub rsp, 8; mov rax, target; call rax; add rsp, 8; mov eax, 7; ret */
static const uint8_t caller[] = {0x48, 0x83, 0xEC, 8,    0x48, 0xB8, 0, 0,    0, 0, 0, 0, 0,
                                 0,    0xFF, 0xD0, 0x48, 0x83, 0xC4, 8, 0xB8, 7, 0, 0, 0, 0xC3};
static const uint8_t call_insn[] = {0xFF, 0xD0}, nop_insn[] = {0x66, 0x90};
#endif
static execmem_domain *domain;
static int rounds;

static void open_domain(int mode, uint64_t quarantine)
{
	execmem_options options = {.name = "edges", .write_mode = mode, .quarantine = quarantine};

	EXPECT(execmem_domain_open(&options, &domain) == 0);
}

static void close_domain(void)
{
	execmem_test_script(NULL);
	EXPECT_LAWFUL(domain);
	EXPECT(execmem_domain_close(domain, 1) == 0);
}

static uint8_t *place(const void *code, size_t size)
{
	void *at;

	EXPECT(execmem_place(domain, EXECMEM_TEXT, code, size, 16, NULL, &at) == 0);
	return at;
}

static int poke_number(void *at)
{
	return execmem_poke(at, one, two, FIRST);
}

/* ---- freed ---- */

static void case_quarantine(int mode)
{
	uint8_t *at, traps[FIRST];

	open_domain(mode, 1 << 20);
	at = place(one, sizeof one);
	EXPECT(execmem_free(at) == 0);
	EXPECT(poke_number(at) == EXECMEM_EFREED);
	memcpy(traps, at, sizeof traps);
	EXPECT(execmem_poke(at, traps, one, sizeof traps) == EXECMEM_EFREED && memcmp(at, traps, sizeof traps) == 0);
	close_domain();
}

static _Atomic(uint8_t *) shown; /* a block that will be freed any moment, and another given out at its place */
static _Atomic bool ended;

static void *give_and_take(void *unused)
{
	uint64_t seed = 5;

	while (!atomic_load(&ended)) {
		uint8_t *at[4];
		int err;

		for (int i = 0; i < 4; i++) {
			err = execmem_place(domain, EXECMEM_TEXT, one, sizeof one, 16, NULL, (void **)&at[i]);
			at[i] = err == 0 ? at[i] : NULL;
			EXPECT(err == 0 || err == EXECMEM_EBUSY);
			atomic_store(&shown, at[i]);
		}
		usleep((useconds_t)(test_random(&seed) % 100));
		for (int i = 0; i < 4; i++) {
			do
				err = at[i] ? execmem_free(at[i]) : 0;
			while (err == EXECMEM_EBUSY);
			EXPECT(err == 0);
		}
	}
	return unused;
}

/* Nothing is changed in what is not a filled block with these very bytes: the laws say so at the end. */
static void case_freed_meanwhile(int mode)
{
	pthread_t thread;
	int done = 0;

	open_domain(mode, 0);
	atomic_store(&shown, NULL);
	atomic_store(&ended, false);
	EXPECT(pthread_create(&thread, NULL, give_and_take, NULL) == 0);
	for (int i = 0; i < rounds || (done == 0 && i < 100 * rounds); i++) {
		uint8_t *at = atomic_load(&shown);
		int err = at ? poke_number(at) : EXECMEM_EFREED;

		EXPECT(err == 0 || err == EXECMEM_EFREED || err == EXECMEM_EFOREIGN || err == EXECMEM_ECHANGED || err == EXECMEM_EBUSY);
		done += err == 0;
		if (err == EXECMEM_EFREED)
			usleep(1); /* or the other thread never gets the lock */
	}
	atomic_store(&ended, true);
	EXPECT(pthread_join(thread, NULL) == 0);
	EXPECT(done > 0);
	close_domain();
}

/* ---- changed by what it calls ---- */

static uint8_t *own_site;
static int own_calls;

static void change_own_site(void)
{
	own_calls++;
	EXPECT(execmem_poke(own_site, call_insn, nop_insn, sizeof nop_insn) == 0);
}

static void case_own_site(int mode)
{
	void (*target)(void) = change_own_site;
	uint8_t code[sizeof caller];

	open_domain(mode, 0);
	memcpy(code, caller, sizeof code);
	memcpy(code + TARGET, &target, sizeof target);
	own_site = place(code, sizeof code) + CALL;
	own_calls = 0;
	for (int i = 0; i < 3; i++)
		EXPECT(((uint32_t (*)(void))(uintptr_t)(own_site - CALL))() == 7);
	EXPECT(own_calls == 1);
	close_domain();
}

/* ---- inherited ---- */

static bool has_file(int mode)
{
	return mode == EXECMEM_MODE_SYSCALL || mode == EXECMEM_MODE_ALIAS || mode == EXECMEM_MODE_PKEY;
}

static void case_inherited(int mode)
{
	int expected = has_file(mode) ? EXECMEM_EFORKED : 0, status, hold[2];
	uint8_t *at;
	pid_t child;
	char end;

	open_domain(mode, 0);
	at = place(one, sizeof one);
	EXPECT(pipe(hold) == 0);
	child = fork();
	EXPECT(child >= 0);
	if (child == 0) {
		uint8_t *own;

		EXPECT(poke_number(at) == expected);
		EXPECT(test_call(at) == (expected ? 1 : 2));
		own = place(one, sizeof one);
		EXPECT(poke_number(own) == 0 && test_call(own) == 2);
		close(hold[1]);
		EXPECT(read(hold[0], &end, 1) == 0);
		_exit(0);
	}
	EXPECT(poke_number(at) == expected && test_call(at) == (expected ? 1 : 2));
	EXPECT(poke_number(place(one, sizeof one)) == 0);
	close(hold[1]);
	close(hold[0]);
	EXPECT(waitpid(child, &status, 0) == child && status == 0);
	for (int i = 0; expected && i < 1000 && (expected = poke_number(at)) == EXECMEM_EFORKED; i++)
		usleep(10000); /* the kernel gives the child's memory back a while after its end */
	EXPECT(expected == 0 && test_call(at) == 2);
	close_domain();
}

/* ---- threads that take no signals ---- */

static void *sleep_deaf(void *unused)
{
	sigset_t all;

	sigfillset(&all);
	EXPECT(pthread_sigmask(SIG_SETMASK, &all, NULL) == 0);
	atomic_store(&shown, (uint8_t *)&all);
	while (!atomic_load(&ended))
		usleep(1000);
	return unused;
}

/* Where threads must be stopped, or be told by a signal, one that takes none makes the change fail, and nothing has changed. */
static void case_deaf(int mode)
{
	/* Without breakpoints a call is stopped for all the same; and where each write must be told, none is made without membarrier. */
	static const char *const scripts[] = {"store=F* trap=F*", "store=F* sync=F*"};
	bool breakpoints = em_arch_host()->emulate;
	pthread_t thread;
	uint8_t *at;

	open_domain(mode, 0);
	at = place(one, sizeof one);
	atomic_store(&shown, NULL);
	atomic_store(&ended, false);
	EXPECT(pthread_create(&thread, NULL, sleep_deaf, NULL) == 0);
	while (!atomic_load(&shown))
		usleep(100);
	for (int i = 0; i < (breakpoints ? 2 : 1); i++) {
		execmem_test_script(scripts[i]);
		EXPECT(poke_number(at) == EXECMEM_EBUSY && memcmp(at, one, sizeof one) == 0);
		execmem_test_script(NULL);
	}
	if (mode != EXECMEM_MODE_FLIP && breakpoints) {
		execmem_test_script("store=F*");
		EXPECT(poke_number(at) == 0 && memcmp(at, two, sizeof two) == 0);
	}
	atomic_store(&ended, true);
	EXPECT(pthread_join(thread, NULL) == 0);
	close_domain();
}

/* ---- threads that begin and end ---- */

static struct site sites[SITES];

static void place_sites(void)
{
	for (int i = 0; i < SITES; i++)
		site_place(&sites[i], domain, &site_kinds[i % site_kind_count], (uint32_t)i % 11);
}

static void change_sites(int count)
{
	uint64_t seed = 1;

	for (int i = 0; i < count; i++) {
		struct site *s = &sites[test_random(&seed) % SITES];

		site_change(s, (s->now + 1) % s->kind->variants);
	}
}

static void *run_once(void *unused)
{
	for (int i = 0; i < SITES; i++)
		site_check(&sites[i]);
	return unused;
}

/* A child made so shares all memory with this process until it ends. */
static void *begin_and_end(void *unused)
{
	while (!atomic_load(&ended)) {
		pthread_t threads[3];
		pid_t child;

		for (int i = 0; i < 3; i++)
			EXPECT(pthread_create(&threads[i], NULL, run_once, NULL) == 0);
		child = vfork();
		if (child == 0)
			_exit(0);
		EXPECT(child > 0 && waitpid(child, NULL, 0) == child);
		for (int i = 0; i < 3; i++)
			EXPECT(pthread_join(threads[i], NULL) == 0);
	}
	return unused;
}

static void case_threads_begin_and_end(int mode)
{
	static const char *const scripts[] = {NULL, "store=F*", "store=F* sync=F*", "store=F* trap=F*"};
	pthread_t thread;

	open_domain(mode, 0);
	place_sites();
	for (int i = 0; i < (TEST_STOPS_THREADS ? 4 : 2); i++) {
		if (i == 2 && !em_arch_host()->interrupts_sync)
			continue; /* nothing takes the place of that call */
		execmem_test_script(scripts[i]);
		atomic_store(&ended, false);
		EXPECT(pthread_create(&thread, NULL, begin_and_end, NULL) == 0);
		change_sites(i < 2 ? rounds : rounds / 10);
		atomic_store(&ended, true);
		EXPECT(pthread_join(thread, NULL) == 0);
	}
	close_domain();
}

/* ---- another CPU's answers ---- */

static enum em_arch_live answer;

static enum em_arch_live live_change(uint64_t site, const uint8_t *old_bytes, const uint8_t *new_bytes, size_t len, bool memory,
                                     bool whole)
{
	(void)site, (void)old_bytes, (void)new_bytes, (void)len, (void)memory, (void)whole;
	return answer;
}

static void case_answers(int mode)
{
	static const struct {
		enum em_arch_live answer;
		int code;
	} answers[] = {
		{EM_ARCH_LIVE_MISALIGNED, EXECMEM_EMISALIGNED},
		{EM_ARCH_LIVE_NOT_ONE, EXECMEM_EINSN},
		{EM_ARCH_LIVE_NEVER, EXECMEM_EINSN},
		{EM_ARCH_LIVE_STOPPED, 0},
		{EM_ARCH_LIVE_BREAKPOINT, 0},
	};
	struct em_arch other;

	open_domain(mode, 0);
	other = *domain->arch;
	other.live_change = live_change;
	domain->arch = &other;
	for (size_t i = 0; i < sizeof answers / sizeof answers[0]; i++) {
		uint8_t *at = place(one, sizeof one);

		if (answers[i].answer == EM_ARCH_LIVE_STOPPED && !TEST_STOPS_THREADS)
			continue;
		if (answers[i].answer == EM_ARCH_LIVE_BREAKPOINT && !em_arch_host()->emulate)
			continue;
		answer = answers[i].answer;
		EXPECT(poke_number(at) == answers[i].code);
		EXPECT(test_call(at) == (answers[i].code ? 1 : 2));
	}
	close_domain();
}

#ifdef __x86_64__ /* the CPU that has breakpoints */
static struct runners runners;
/* ---- handlers that come in the midst ---- */

#define HANDLERS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
enum { COMERS = 8 };
static struct sigaction befores[COMERS];
static _Atomic int foreign;

static void pass(const struct sigaction *before, int number, siginfo_t *info, void *context)
{
	if (before->sa_flags & SA_SIGINFO)
		before->sa_sigaction(number, info, context);
	else
		atomic_fetch_add(&foreign, 1); /* the first of all had none before */
}

#define X(n)                                                                                                                       \
	static void comer_##n(int number, siginfo_t *info, void *context)                                                              \
	{                                                                                                                              \
		pass(&befores[n], number, info, context);                                                                                  \
	}
HANDLERS(X)
#undef X

static void (*const comers[COMERS])(int, siginfo_t *, void *) = {
#define X(n) comer_##n,
	HANDLERS(X)
#undef X
};

/* Each chains to whom it found, which is written down before it can be called. */
static void *come(void *unused)
{
	for (int i = 0; i < COMERS && !atomic_load(&ended); i++) {
		struct sigaction mine = {.sa_sigaction = comers[i], .sa_flags = SA_SIGINFO};

		EXPECT(sigaction(SIGTRAP, NULL, &befores[i]) == 0);
		EXPECT(sigaction(SIGTRAP, &mine, NULL) == 0);
		usleep(5000);
	}
	return unused;
}

static void case_handlers_come(void)
{
	uint64_t seed = 1;
	pthread_t thread;

	open_domain(EXECMEM_MODE_SYSCALL, 0);
	place_sites();
	execmem_test_script("store=F*");
	atomic_store(&ended, false);
	runners_start(&runners, sites, SITES, 2);
	site_change_all(sites, SITES - 1, &seed); /* ours is there */
	EXPECT(pthread_create(&thread, NULL, come, NULL) == 0);
	change_sites(5 * rounds);
	atomic_store(&ended, true);
	EXPECT(pthread_join(thread, NULL) == 0);
	runners_stop(&runners);
	EXPECT(atomic_load(&foreign) == 0);
	close_domain();
}

#ifndef __SANITIZE_THREAD__ /* which must see every handler come */
extern int __sigaction(int number, const struct sigaction *action, struct sigaction *old); /* the C library's own name for it */
static bool one_comes;
static _Atomic int plain_called;

static void on_plain(int number)
{
	(void)number;
	atomic_fetch_add(&plain_called, 1);
}

/* Right after somebody asked who handles the signal, another one comes. */
int sigaction(int number, const struct sigaction *action, struct sigaction *old)
{
	struct sigaction plain = {.sa_handler = on_plain};
	int err = __sigaction(number, action, old);

	if (number == SIGTRAP && !action && one_comes) {
		one_comes = false;
		EXPECT(__sigaction(SIGTRAP, &plain, NULL) == 0);
	}
	return err;
}

static void case_one_comes_between(void)
{
	uint8_t *at;

	open_domain(EXECMEM_MODE_SYSCALL, 0);
	at = place(one, sizeof one);
	for (int i = 1; i <= 3; i++) {
		struct sigaction standard = {.sa_handler = SIG_DFL};

		EXPECT(__sigaction(SIGTRAP, &standard, NULL) == 0);
		one_comes = true;
		execmem_test_script("store=F*");
		EXPECT(execmem_poke(at, i & 1 ? one : two, i & 1 ? two : one, 5) == 0 && !one_comes);
		__asm__ volatile("int3" ::: "memory");
		EXPECT(atomic_load(&plain_called) == i);
	}
	close_domain();
}
#else
static void case_one_comes_between(void)
{
}
#endif
#endif

int main(int argc, char **argv)
{
	rounds = test_amount(argc, argv, 300, 20);
	for (int mode = EXECMEM_MODE_SYSCALL; mode < EXECMEM_MODES; mode++) {
		if (!test_takes_mode(mode) || (mode == EXECMEM_MODE_FLIP && !TEST_STOPS_THREADS))
			continue;
		snprintf(test_context, sizeof test_context, "mode %s", execmem_mode_name(mode));
		case_quarantine(mode);
		case_freed_meanwhile(mode);
		case_own_site(mode);
		case_inherited(mode);
		case_deaf(mode);
		case_answers(mode);
		case_threads_begin_and_end(mode);
	}
#ifdef __x86_64__
	case_handlers_come();
	case_one_comes_between();
#endif
	puts("ok");
	return 0;
}
