/* test_report: the reporter of faults and who stands before and behind it. Each crime is done by a child, whose end and whose words on
 * stderr are looked at. What a fault in each kind of place is told as is in tests/test_crash.py.
 */
#include "domain.h"
#include "faults.h"
#include "grave.h"
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

static const int signals[] = {SIGTRAP, SIGILL, SIGSEGV, SIGBUS};

/* ---- children ---- */

static int end_status;
static char words[65536]; /* what the last child said */

/* Runs a crime in a child with none of a sanitizer's handlers. */
static void run(const char *name, void (*crime)(void))
{
	char rest[4096]; /* what is said beyond is not looked at */
	int ends[2];
	size_t used = 0;
	ssize_t got;
	pid_t child;

	snprintf(test_context, sizeof test_context, "%s", name);
	fflush(stdout); /* or the child would say it again */
	EXPECT(pipe(ends) == 0);
	child = fork();
	EXPECT(child >= 0);
	if (child == 0) {
		struct rlimit none = {0, 0};

		dup2(ends[1], STDERR_FILENO);
		close(ends[0]);
		close(ends[1]);
		setrlimit(RLIMIT_CORE, &none);
		for (int i = 0; i < 4; i++)
			signal(signals[i], SIG_DFL);
		crime();
		_exit(0);
	}
	close(ends[1]);
	while ((got = used < sizeof words - 1 ? read(ends[0], words + used, sizeof words - 1 - used)
	                                      : read(ends[0], rest, sizeof rest)) > 0)
		used += used < sizeof words - 1 ? (size_t)got : 0;
	words[used] = '\0';
	close(ends[0]);
	EXPECT(waitpid(child, &end_status, 0) == child);
}

static bool died_of(int signal)
{
	return WIFSIGNALED(end_status) && WTERMSIG(end_status) == signal;
}

static bool ended_well(void)
{
	return WIFEXITED(end_status) && WEXITSTATUS(end_status) == 0;
}

static int count(const char *what)
{
	int found = 0;

	for (const char *at = words; (at = strstr(at, what)) != NULL; at++)
		found++;
	return found;
}

#define EXPECT_TOLD(times)                                                                                                         \
	do {                                                                                                                           \
		if (count("execmem:   there: ") != (times)) {                                                                              \
			fprintf(stderr, "%s:%d: %s: not told %d times:\n%s\n", __FILE__, __LINE__, test_context, times, words);                \
			exit(1);                                                                                                               \
		}                                                                                                                          \
	} while (0)

/* For children: their stderr is read. */
#define CHECK(what)                                                                                                                \
	do {                                                                                                                           \
		if (!(what)) {                                                                                                             \
			fprintf(stderr, "line %d: %s\n", __LINE__, #what);                                                                     \
			_exit(1);                                                                                                              \
		}                                                                                                                          \
	} while (0)

/* ---- crimes ---- */

static execmem_domain *domain;
static uint8_t *freed_before; /* while stderr could still be written to */

static uint8_t *place(const char *name)
{
	execmem_options options = {.name = "crimes"};
	void *at = NULL;

	if (!domain)
		CHECK(execmem_domain_open(&options, &domain) == 0);
	CHECK(execmem_place(domain, EXECMEM_TEXT, returns, sizeof returns, 16, name, &at) == 0);
	return at;
}

static void call(const void *code)
{
	void (*function)(void);

	memcpy(&function, &code, sizeof function);
	function();
}

static void call_freed(void)
{
	uint8_t *code = place("gone");

	CHECK(execmem_free(code) == 0);
	call(code);
}

static void report(void)
{
	CHECK(execmem_report_faults(1) == 0);
}

/* The last trap before the code of a block that lives: who goes on behind it comes back as if nothing had been. */
static uint8_t *free_before_live(void)
{
	uint8_t *code = place("gone"), *next = place(NULL);

	CHECK(next == code + 64 && execmem_free(code) == 0);
	return code + 64 - TRAP_SIZE;
}

static void call_last_trap(void)
{
	report();
	call(free_before_live());
}

static void write_code(void)
{
	*(volatile uint8_t *)place("code") = 0x90;
}

static void freed_and_told(void)
{
	report();
	call_freed();
}

static void freed_and_untold(void)
{
	report();
	CHECK(execmem_report_faults(0) == 0);
	call_freed();
}

static void raised(void)
{
	report();
	raise(SIGSEGV);
}

static void sent(void)
{
	report();
	kill(getpid(), SIGTRAP);
	pause();
}

static void test_the_end_stays_what_it_was(void)
{
	run("freed and told", freed_and_told);
	EXPECT(died_of(TRAP));
	EXPECT_TOLD(1);
	EXPECT(count("\"gone\", " LENGTH) == 1 && count("domain \"crimes\"") == 1);
	run("freed and untold", freed_and_untold);
	EXPECT(died_of(TRAP) && words[0] == '\0');
	run("last trap", call_last_trap);
	EXPECT(died_of(TRAP));
	EXPECT_TOLD(1);
	run("raised", raised);
	EXPECT(died_of(SIGSEGV) && words[0] == '\0');
	run("sent", sent);
	EXPECT(died_of(SIGTRAP) && words[0] == '\0');
}

/* ---- handlers of the program's own ---- */

static sigjmp_buf back;
static volatile int handled;
static char stack[65536];

static void handle(void (*handler)(int, siginfo_t *, void *), int flags)
{
	struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags};

	for (int i = 0; i < 4; i++)
		CHECK(sigaction(signals[i], &action, NULL) == 0);
}

static void jump_away(int signal, siginfo_t *info, void *context)
{
	(void)info;
	(void)context;
	handled++;
	siglongjmp(back, signal);
}

static void longjmps(void)
{
	handle(jump_away, 0);
	report();
	for (int i = 0; i < 3; i++) {
		if (sigsetjmp(back, 1) == 0)
			call_freed();
		if (sigsetjmp(back, 1) == 0)
			write_code();
	}
	CHECK(handled == 6);
}

/* As if the trap were a return. */
static void step_over(int signal, siginfo_t *info, void *context)
{
	(void)info;
	CHECK(signal == TRAP);
	handled++;
	return_from(context);
}

static void returns_often(void)
{
	handle(step_over, 0);
	report();
	for (int i = 0; i < 40; i++)
		call_freed();
	CHECK(handled == 40);
}

static void speak(int signal, siginfo_t *info, void *context)
{
	(void)info;
	(void)context;
	CHECK(signal == SIGSEGV && write(STDERR_FILENO, "spoken\n", 7) == 7);
}

static void handled_once(void)
{
	handle(speak, (int)SA_RESETHAND);
	report();
	write_code();
}

static void ignored(void)
{
	signal(TRAP, SIG_IGN);
	report();
	raise(TRAP); /* that is ignored still, */
	call_freed(); /* a fault never is */
}

static void look_at_stack(int signal, siginfo_t *info, void *context)
{
	char here = 0;

	(void)info;
	(void)context;
	CHECK(signal == TRAP && &here > stack && &here < stack + sizeof stack);
	_exit(0);
}

static void on_other_stack(void)
{
	stack_t other = {.ss_sp = stack, .ss_size = 16384};

	CHECK(sigaltstack(&other, NULL) == 0);
	handle(look_at_stack, SA_ONSTACK);
	report();
	call_freed();
}

static void *volatile where_it_was;

static void look_at_context(int signal, siginfo_t *info, void *context)
{
	CHECK(signal == SIGTRAP && (info->si_code == SI_KERNEL || info->si_code == TRAP_BRKPT));
	where_it_was = step_over_breakpoint(context);
}

static void breakpoint_of_others(void)
{
	void *said;

	handle(look_at_context, 0);
	report();
	said = run_breakpoint();
	CHECK(said == where_it_was);
}

static void test_handlers_before_us(void)
{
	run("longjmp", longjmps);
	EXPECT(ended_well());
	EXPECT_TOLD(6);
	run("return", returns_often);
	EXPECT(ended_well());
	EXPECT_TOLD(32); /* then no more */
	EXPECT(count("further faults of this process are not told") == 1);
	run("once", handled_once);
	EXPECT(died_of(SIGSEGV) && count("spoken") == 1);
	EXPECT_TOLD(2);
	run("ignored", ignored);
	EXPECT(died_of(TRAP));
	EXPECT_TOLD(1);
	run("other stack", on_other_stack);
	EXPECT(ended_well());
	EXPECT_TOLD(1);
	run("breakpoint of others", breakpoint_of_others);
	EXPECT(ended_well() && words[0] == '\0');
}

/* ---- handlers that came after us ---- */

static struct sigaction before_speaker;

static void speak_and_call(int signal, siginfo_t *info, void *context)
{
	speak(signal, info, context);
	CHECK(before_speaker.sa_flags & SA_SIGINFO);
	before_speaker.sa_sigaction(signal, info, context);
}

static void come_after(void (*handler)(int, siginfo_t *, void *), int flags)
{
	struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags}, now;

	CHECK(sigaction(SIGSEGV, &action, &before_speaker) == 0);
	CHECK(execmem_report_faults(1) == 0 && execmem_report_faults(1) == 0); /* that does not go before it */
	CHECK(sigaction(SIGSEGV, NULL, &now) == 0 && now.sa_sigaction == handler);
}

static void called_by_another(void)
{
	report();
	come_after(speak_and_call, 0);
	write_code();
}

static void off_behind_another(void)
{
	struct sigaction now;

	report();
	come_after(speak_and_call, 0);
	CHECK(execmem_report_faults(0) == 0);
	CHECK(sigaction(SIGSEGV, NULL, &now) == 0 && now.sa_sigaction == speak_and_call);
	CHECK(sigaction(SIGTRAP, NULL, &now) == 0 && now.sa_handler == SIG_DFL);
	write_code();
}

static void on_again_behind_another(void)
{
	report();
	come_after(speak_and_call, 0);
	CHECK(execmem_report_faults(0) == 0);
	report();
	write_code();
}

/* As faulthandler does it: old style, puts back what was there, raises. */
static void put_back_and_raise(int signal)
{
	CHECK(write(STDERR_FILENO, "spoken\n", 7) == 7 && sigaction(signal, &before_speaker, NULL) == 0);
	raise(signal);
}

static void raised_by_another(void)
{
	struct sigaction action = {.sa_handler = put_back_and_raise, .sa_flags = SA_NODEFER | SA_ONSTACK};

	report();
	CHECK(sigaction(SIGSEGV, &action, &before_speaker) == 0);
	write_code();
}

static void raised_by_another_on_its_stack(void)
{
	stack_t other = {.ss_sp = stack, .ss_size = sizeof stack};

	CHECK(sigaltstack(&other, NULL) == 0);
	raised_by_another();
}

static void test_handlers_after_us(void)
{
	run("called by another", called_by_another);
	EXPECT(died_of(SIGSEGV) && count("spoken") == 1);
	EXPECT_TOLD(1);
	run("off behind another", off_behind_another);
	EXPECT(died_of(SIGSEGV) && count("spoken") == 1);
	EXPECT_TOLD(0);
	run("on again behind another", on_again_behind_another);
	EXPECT(died_of(SIGSEGV) && count("spoken") == 1);
	EXPECT_TOLD(1);
#ifdef __SANITIZE_THREAD__
	puts("skipped, raised by another: ThreadSanitizer gives the first handler a frame of its own making");
	return;
#endif
	run("raised by another", raised_by_another);
	EXPECT(died_of(SIGSEGV) && count("spoken") == 1);
	EXPECT_TOLD(1);
	run("raised by another on its stack", raised_by_another_on_its_stack);
	EXPECT(died_of(SIGSEGV) && count("spoken") == 1);
	EXPECT_TOLD(1);
}

/* ---- on and off ---- */

static void restored(void)
{
	struct sigaction was[4], now;

	handle(speak, SA_NODEFER | SA_ONSTACK);
	for (int i = 0; i < 4; i++)
		CHECK(sigaction(signals[i], NULL, &was[i]) == 0);
	for (int round = 0; round < 3; round++) {
		report();
		report();
		CHECK(execmem_report_faults(0) == 0 && execmem_report_faults(0) == 0);
		for (int i = 0; i < 4; i++)
			CHECK(sigaction(signals[i], NULL, &now) == 0 && now.sa_sigaction == was[i].sa_sigaction &&
			      now.sa_flags == was[i].sa_flags && memcmp(&now.sa_mask, &was[i].sa_mask, sizeof(uint64_t)) == 0);
	}
}

static void refused_memory(void)
{
	struct sigaction now;

	execmem_test_script("reserve=F");
	CHECK(execmem_report_faults(1) == EXECMEM_ENOMEM && strstr(execmem_error_text(), "turn on reports of faults"));
	CHECK(execmem_test_script(NULL) == 1);
	CHECK(sigaction(SIGTRAP, NULL, &now) == 0 && now.sa_handler == SIG_DFL && !em_grave_is_open());
	call_freed();
}

/* A sandbox: a call is refused; where `argument` is not 0, only when its first argument is that and its second is no null pointer. */
static void refuse(unsigned number, unsigned argument)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 6),
		BPF_JUMP(BPF_JMP | BPF_JA, argument ? 0 : 4, 0, 0),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, argument, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {sizeof filter / sizeof filter[0], filter};

	CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

static void refused_handler(void)
{
	struct sigaction now;

	refuse(SYS_rt_sigaction, SIGSEGV);
	CHECK(execmem_report_faults(1) == EXECMEM_EDENIED && strstr(execmem_error_text(), "turn on reports of faults"));
	for (int i = 0; i < 4; i++)
		CHECK(sigaction(signals[i], NULL, &now) == 0 && now.sa_handler == SIG_DFL);
	CHECK(!em_grave_is_open());
	call_freed();
}

static void refused_reading(void)
{
	char byte;
	struct iovec here = {&byte, 1};

	refuse(SYS_process_vm_readv, 0);
	CHECK(process_vm_readv(getpid(), &here, 1, &here, 1, 0) < 0 && errno == EPERM);
	report();
	call_freed();
}

/* The last trap before code that lives: who goes on behind it ends well, and must not. */
static void call_last_trap_without(unsigned number)
{
	uint8_t *code = free_before_live();

	report();
	refuse(number, 0);
	call(code);
}

static void refused_queueing(void)
{
	call_last_trap_without(SYS_rt_tgsigqueueinfo);
}

static void refused_default(void)
{
	call_last_trap_without(SYS_rt_sigaction);
}

static void sent_without_default(void)
{
	report();
	refuse(SYS_rt_sigaction, 0);
	raise(SIGSEGV);
}

/* A pipe for stderr; what it cannot be told to must not change the end. */
static void replace_stderr(int ends[2])
{
	CHECK(pipe(ends) == 0 && dup2(ends[1], STDERR_FILENO) == STDERR_FILENO);
}

static void nobody_reads(void)
{
	int ends[2];

	freed_before = place("gone");
	report();
	CHECK(execmem_free(freed_before) == 0);
	replace_stderr(ends);
	close(ends[0]);
	call(freed_before);
}

static void nobody_reads_and_it_goes_on(void)
{
	int ends[2];
	sigset_t pending;

	handle(step_over, 0);
	replace_stderr(ends);
	close(ends[0]);
	report();
	call_freed();
	if (handled != 1 || sigpending(&pending) < 0 || sigismember(&pending, SIGPIPE))
		_exit(1);
}

static void the_reader_sleeps(void)
{
	char page[4096] = {0};
	int ends[2];

	freed_before = place("gone");
	report();
	CHECK(execmem_free(freed_before) == 0);
	replace_stderr(ends);
	fcntl(ends[1], F_SETFL, O_NONBLOCK);
	while (write(ends[1], page, sizeof page) > 0)
		;
	fcntl(ends[1], F_SETFL, 0);
	alarm(60);
	call(freed_before);
}

static void the_file_is_full(void)
{
	struct rlimit none = {0, 0};
	int file = memfd_create("told", 0);

	freed_before = place("gone");
	report();
	CHECK(execmem_free(freed_before) == 0);
	CHECK(file >= 0 && dup2(file, STDERR_FILENO) == STDERR_FILENO && setrlimit(RLIMIT_FSIZE, &none) == 0);
	call(freed_before);
}

static void test_words_do_not_change_the_end(void)
{
	run("refused queueing", refused_queueing);
	EXPECT(died_of(TRAP));
	EXPECT_TOLD(1);
	run("refused default", refused_default);
	EXPECT(died_of(TRAP));
	EXPECT_TOLD(1);
	run("sent without default", sent_without_default);
	EXPECT(died_of(SIGKILL));
	run("nobody reads", nobody_reads);
	EXPECT(died_of(TRAP));
	run("nobody reads, and it goes on", nobody_reads_and_it_goes_on);
	EXPECT(ended_well());
	run("the reader sleeps", the_reader_sleeps);
	EXPECT(died_of(TRAP));
	run("the file is full", the_file_is_full);
	EXPECT(died_of(TRAP));
}

static void test_on_and_off(void)
{
	run("restored", restored);
	EXPECT(ended_well() && words[0] == '\0');
	run("refused memory", refused_memory);
	EXPECT(died_of(TRAP) && words[0] == '\0');
	run("refused handler", refused_handler);
	EXPECT(died_of(TRAP) && words[0] == '\0');
	run("refused reading", refused_reading);
	EXPECT(died_of(TRAP) && count("\"gone\"") == 1);
	EXPECT_TOLD(1);
}

/* ---- threads, children, the first process ---- */

static _Atomic int stage;

static void *hold_all(void *nothing)
{
	execmem_domain *held;

	CHECK(em_domain_enter_all(domain, &held) == 0);
	stage = 1;
	while (stage < 2)
		usleep(1000);
	return nothing;
}

static void locks_held(void)
{
	uint8_t *code = place("gone");
	pthread_t holder;

	report();
	CHECK(execmem_free(code) == 0);
	CHECK(pthread_create(&holder, NULL, hold_all, NULL) == 0);
	while (stage < 1)
		usleep(1000);
	call(code); /* nobody will ever give the locks back */
}

static void *fault_in_thread(void *nothing)
{
	call_freed();
	return nothing;
}

static void in_thread(void)
{
	pthread_t thread;

	report();
	CHECK(pthread_create(&thread, NULL, fault_in_thread, NULL) == 0);
	pthread_join(thread, NULL);
}

static void die_in_child(int expected, const void *code)
{
	int status;
	pid_t child = fork();

	CHECK(child >= 0);
	if (child == 0) {
		call(code);
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == expected);
}

static void in_child(void)
{
	uint8_t *code = place("gone");

	report();
	CHECK(execmem_free(code) == 0);
	die_in_child(TRAP, code);
}

/* Signals that the first process of a container sends to itself are dropped. */
static void as_first_process(void)
{
	uint8_t *code = free_before_live();

	report();
	if (unshare(CLONE_NEWPID) < 0 && unshare(CLONE_NEWUSER | CLONE_NEWPID) < 0) {
		fprintf(stderr, "no namespace: %s\n", strerror(errno));
		return;
	}
	die_in_child(TRAP, code);
}

enum { ROUNDS = 300 };
static void *_Atomic target; /* freed code, of a domain that comes and goes */

static void *open_and_close(void *nothing)
{
	execmem_options options = {.name = "short-lived", .window = 2 << 20};

	for (int round = 0; round < ROUNDS; round++) {
		execmem_domain *d;
		void *code;

		CHECK(execmem_domain_open(&options, &d) == 0);
		CHECK(execmem_place(d, EXECMEM_TEXT, returns, sizeof returns, 16, "gone", &code) == 0 && execmem_free(code) == 0);
		target = code;
		usleep(100);
		CHECK(execmem_domain_close(d, 0) == 0);
	}
	target = NULL;
	return nothing;
}

/* As if the call had come back, whatever it met. */
static void come_back(int signal, siginfo_t *info, void *context)
{
	(void)info;
	CHECK(signal == TRAP || signal == SIGSEGV);
	handled++;
	return_from(context);
}

static void domains_come_and_go(void)
{
	pthread_t thread;
	void *code;

	handle(come_back, 0);
	report();
	CHECK(pthread_create(&thread, NULL, open_and_close, NULL) == 0);
	while (!target)
		;
	while ((code = target)) {
		if (handled % 16 == 0)
			report(); /* else it would soon fall silent */
		call(code);
	}
	pthread_join(thread, NULL);
	CHECK(handled > ROUNDS);
}

static void test_from_anywhere(void)
{
	run("locks held", locks_held);
	EXPECT(died_of(TRAP) && count("\"gone\"") == 1);
	EXPECT_TOLD(1);
	run("in a thread", in_thread);
	EXPECT(died_of(TRAP));
	EXPECT_TOLD(1);
	run("domains come and go", domains_come_and_go);
	EXPECT(ended_well() && count("domain \"short-lived\"") > 0);
	run("in a child", in_child);
	EXPECT(ended_well() && count("\"gone\"") == 1);
	EXPECT_TOLD(1);
	run("first process", as_first_process);
	EXPECT(ended_well());
	if (count("no namespace"))
		printf("skipped, first process: %s", words);
	else
		EXPECT_TOLD(1);
}

/* ---- what is remembered ---- */

static void overtaken(const char *name)
{
	uint8_t *code = place(name), *other = place(NULL); /* lies behind, and stays */

	report();
	CHECK(execmem_free(code) == 0);
	for (int i = 0; i < EM_LEDGER_EVENTS; i++)
		CHECK(execmem_fill(other, returns, sizeof returns) == 0);
	call(code);
}

static void overtaken_named(void)
{
	overtaken("named");
}

static void overtaken_unnamed(void)
{
	overtaken(NULL);
}

static void named_before(void)
{
	uint8_t *code = place("earlier");

	CHECK(execmem_free(code) == 0);
	report();
	call(code);
}

static struct em_grave_block grave_number(uint64_t number)
{
	struct em_grave_block grave = {
		.address = number * 64, .size = 64, .domain = (uint32_t)(number % 7), .shard = 3, .sequence = (uint32_t)number};

	snprintf(grave.name, sizeof grave.name, "block %llu", (unsigned long long)number);
	return grave;
}

enum { BURIALS = 20000 };

static void *bury_many(void *nothing)
{
	for (uint64_t number = 1; number <= BURIALS; number++) {
		struct em_grave_block grave = grave_number(number);

		em_grave_bury(&grave);
	}
	return nothing;
}

static void test_graves(void)
{
	struct em_grave_block found;
	struct em_grave_window window;
	pthread_t threads[2];

	snprintf(test_context, sizeof test_context, "graves");
	EXPECT(!em_grave_find_event(1, 3, 1, &found) && !em_grave_is_open());
	EXPECT(em_grave_open() == 0 && em_grave_is_open());
	for (int i = 0; i < 2; i++)
		EXPECT(pthread_create(&threads[i], NULL, bury_many, NULL) == 0);
	for (uint64_t number = 1; number <= BURIALS; number += 97) {
		struct em_grave_block wanted = grave_number(number);

		if (em_grave_find_event(wanted.domain, 3, (uint32_t)number, &found)) /* whole, or not at all */
			EXPECT(found.address == wanted.address && strcmp(found.name, wanted.name) == 0);
	}
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	bury_many(NULL);
	EXPECT(em_grave_find_event(BURIALS % 7, 3, BURIALS, &found) && strcmp(found.name, "block 20000") == 0);
	EXPECT(em_grave_find_block(BURIALS % 7, BURIALS * 64 + 63, &found) && found.sequence == BURIALS);
	EXPECT(!em_grave_find_block(BURIALS % 7, BURIALS * 64 + 64, &found));
	EXPECT(em_grave_find_event((BURIALS - 4095) % 7, 3, BURIALS - 4095, &found)); /* the oldest of 4,096 */
	EXPECT(!em_grave_find_event((BURIALS - 4096) % 7, 3, BURIALS - 4096, &found));
	em_grave_close();
	EXPECT(!em_grave_is_open());
	for (uint32_t number = 1; number <= EM_GRAVE_WINDOWS + 1; number++)
		em_grave_bury_window(number * 0x10000ull, 0x10000, number, "window");
	EXPECT(!em_grave_find_window(0x10000, &window)); /* the oldest went */
	EXPECT(em_grave_find_window(0x2ffff, &window) && window.domain == 2 && strcmp(window.name, "window") == 0);
}

static void test_memory(void)
{
	run("overtaken, named", overtaken_named);
	EXPECT(died_of(TRAP) && count("\"named\", " LENGTH) == 1);
	run("overtaken, unnamed", overtaken_unnamed);
	EXPECT(died_of(TRAP) && count("never given out or freed longer ago than is remembered") == 1);
	run("named before", named_before);
	EXPECT(died_of(TRAP) && count("block without a known name, " LENGTH) == 1 && count(" ms ago") == 1);
}

int main(void)
{
	test_the_end_stays_what_it_was();
	test_handlers_before_us();
	test_handlers_after_us();
	test_on_and_off();
	test_words_do_not_change_the_end();
	test_from_anywhere();
	test_memory();
	test_graves();
	puts("ok");
	return 0;
}
