/* test_pkey: write mode pkey. Where the CPU has protection keys, nobody reaches the writable alias but the writing thread during its
 * write: no other thread, no signal handler, no child, no system call. Where it has none, the mode is refused with the reason, and
 * AUTO takes another. `make test-pkey` runs this on an emulated CPU that has them.
 */
#include "arch.h"
#include "sys.h"
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SEGV_BY_KEY = 4, NO_ACCESS = 1, NO_WRITE = 2, KEYS = 15 }; /* SEGV_PKUERR, PKEY_DISABLE_*, what x86-64 has */

static const uint8_t answer[] = {0xb8, 42, 0, 0, 0, 0xc3}; /* mov eax, 42; ret */
static const struct em_arch *arch;
static int pipes[2];

static execmem_domain *open_mode(int mode)
{
	execmem_options options = {.name = "pkey", .write_mode = mode, .window = 64 << 20};
	execmem_domain *d;

	EXPECT(execmem_domain_open(&options, &d) == 0);
	return d;
}

static void *place_answer(execmem_domain *d)
{
	void *out;

	EXPECT(execmem_place(d, EXECMEM_TEXT, answer, sizeof answer, 16, "answer", &out) == 0);
	EXPECT(((int (*)(void))(uintptr_t)out)() == 42);
	return out;
}

/* Runs a test in a process of its own: what it does to keys, locks and handlers ends with it. */
static void in_child(void (*test)(void))
{
	int status;
	pid_t child = fork();

	if (child == 0) {
		test();
		_exit(0);
	}
	EXPECT(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* ---- where there are no keys ---- */

static void refused_politely(void)
{
	execmem_options options = {.name = "pkey", .write_mode = EXECMEM_MODE_PKEY};
	execmem_domain *d = NULL;

	EXPECT(execmem_probe(EXECMEM_MODE_PKEY) == EXECMEM_EUNSUPPORTED && strstr(execmem_error_text(), "ospke"));
	EXPECT(execmem_domain_open(&options, &d) == EXECMEM_EUNSUPPORTED && d == NULL);
	EXPECT(execmem_domain_ledger(NULL)->write_mode == EXECMEM_MODE_SYSCALL);
}

static void kernels(void)
{
	EXPECT(em_sys_key_is_sound("6.1.0-56-cloud-amd64") && em_sys_key_is_sound("5.13.0") && em_sys_key_is_sound("7.2"));
	EXPECT(em_sys_key_is_sound("5.10.103") && em_sys_key_is_sound("5.4.182-generic"));
	EXPECT(!em_sys_key_is_sound("5.12.19") && !em_sys_key_is_sound("5.10.102") && !em_sys_key_is_sound("5.4.181"));
	EXPECT(!em_sys_key_is_sound("4.18.0-553.el8") && !em_sys_key_is_sound("") && !em_sys_key_is_sound("new"));
}

static void registers(void)
{
	EXPECT(em_arch_x86_64.key_rights(0x55555554, 3, true) == 0x55555514);
	EXPECT(em_arch_x86_64.key_rights(0xffffffff, 15, true) == 0x3fffffff);
	EXPECT(em_arch_x86_64.key_rights(0x55555514, 3, false) == 0x55555554);
	EXPECT(em_arch_x86_64.key_rights(0x80, 3, false) == 0xc0 && !em_arch_none.key_rights);
}

/* ---- the alias ---- */

struct view {
	uint8_t *at;
	int key;
};

/* The writable mapping of the only memory file that has one and is not the ledger's, and its key, as the kernel tells. */
static struct view find_alias(void)
{
	struct view found = {NULL, -1};
	FILE *smaps = fopen("/proc/self/smaps", "r");
	bool here = false;
	char line[512];

	EXPECT(smaps);
	while (fgets(line, sizeof line, smaps)) {
		unsigned long long start;
		char prot[5];

		if (sscanf(line, "%llx-%*x %4s", &start, prot) == 2) {
			here = strstr(line, "memfd:execmem (deleted)") && strcmp(prot, "rw-s") == 0;
			EXPECT(!here || !found.at);
			if (here)
				found.at = (uint8_t *)(uintptr_t)start;
		}
		if (here)
			(void)sscanf(line, "ProtectionKey: %d", &found.key);
	}
	fclose(smaps);
	return found;
}

static _Thread_local sigjmp_buf back;
static _Thread_local siginfo_t fault;

static void jump_back(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	fault = *info;
	siglongjmp(back, 1);
}

static void handle(int number, void (*handler)(int, siginfo_t *, void *))
{
	struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};

	EXPECT(sigaction(number, &action, NULL) == 0);
}

/* A plain access by this thread dies of the key. The handler leaves the kernel's default rights behind, so ours are put back. */
static void expect_out_of_reach(struct view alias, bool write)
{
	uint64_t rights = arch->read_rights();

	handle(SIGSEGV, jump_back);
	memset(&fault, 0, sizeof fault);
	if (sigsetjmp(back, 1) == 0) {
		if (write)
			*(volatile uint8_t *)alias.at = 0x90;
		else
			(void)*(volatile uint8_t *)alias.at;
	}
	arch->write_rights(rights);
	(void)signal(SIGSEGV, SIG_DFL); /* a fault that is not asked for ends the program */
	EXPECT(fault.si_code == SEGV_BY_KEY && (int)fault.si_pkey == alias.key && fault.si_addr == alias.at);
}

/* By this thread's register. */
static bool is_shut(int key)
{
	return arch->read_rights() == arch->key_rights(arch->read_rights(), key, false);
}

/* The kernel refuses to read it and to write it for this thread. Makes no signal, so it can be asked anywhere. */
static bool refused_by_calls(const struct view *alias)
{
	uint8_t byte = 0x90;
	bool reads = write(pipes[1], alias->at, 1) < 0 && errno == EFAULT;

	return reads && write(pipes[1], &byte, 1) == 1 && read(pipes[0], alias->at, 1) < 0 && errno == EFAULT &&
	       read(pipes[0], &byte, 1) == 1;
}

static void only_its_key_opens_it(void)
{
	execmem_domain *d = open_mode(EXECMEM_MODE_PKEY);
	uint8_t *block = place_answer(d);
	uint64_t rights = arch->read_rights();
	struct view alias = find_alias();

	EXPECT(alias.at && alias.key > 0);
	expect_out_of_reach(alias, false);
	expect_out_of_reach(alias, true);
	EXPECT(refused_by_calls(&alias));
	arch->write_rights(arch->key_rights(rights, alias.key, true)); /* so it is the key, and nothing else, that shuts it */
	EXPECT(memcmp(alias.at, answer, sizeof answer) == 0 && !refused_by_calls(&alias));
	arch->write_rights(rights);
	EXPECT(read(pipes[0], &(uint8_t[16]){0}, 16) > 0); /* what went through */
	EXPECT(memcmp(block, answer, sizeof answer) == 0);
	EXPECT(execmem_domain_close(d, 1) == 0);
}

/* ---- rights before and after ---- */

/* Every call that writes, and each failing at some of its system calls, with the rights of another key that nobody may touch. */
static void writes(execmem_domain *d, uint64_t rights)
{
	static const int kinds[] = {EXECMEM_TEXT, EXECMEM_RODATA, EXECMEM_DATA};
	static uint8_t bytes[3 << 20];
	uint64_t offsets[] = {0, 100, 5000, 40000}, out[3];
	void *block;

#define EXPECT_RIGHTS(call) EXPECT(((void)(call), arch->read_rights() == rights))
	memset(bytes, 0x5a, sizeof bytes);
	for (int i = 0; i < 3; i++) {
		block = NULL;
		EXPECT_RIGHTS(execmem_place(d, kinds[i], bytes, 300000, 64, NULL, &block));
		if (block) {
			EXPECT_RIGHTS(execmem_fill(block, bytes, 1000));
			EXPECT_RIGHTS(execmem_fill(block, block, 900));
			EXPECT_RIGHTS(execmem_fill(block, bytes, 300001));
			EXPECT_RIGHTS(execmem_free(block));
		}
		EXPECT_RIGHTS(execmem_place(d, kinds[i], bytes, sizeof bytes, 64, NULL, &block));
		EXPECT_RIGHTS(execmem_free(block));
		if (execmem_place_many(d, kinds[i], 3, bytes, offsets, 16, NULL, out) == 0) {
			EXPECT_RIGHTS(execmem_fill_many(d, 3, out, bytes, offsets));
			EXPECT_RIGHTS(execmem_free_many(d, 3, out));
		}
		EXPECT(arch->read_rights() == rights);
	}
	EXPECT_LAWFUL(d);
}

static void rights_stay(void)
{
	static const char *const scripts[] = {NULL,        "write=F",      "write=..F", "view=F",      "view=..F",    "collapse=F*",
	                                      "protect=F", "protect=.F.F", "resize=F",  "populate=F*", "discard=F*F", "hide=F*"};
	long other = syscall(SYS_pkey_alloc, 0ul, (unsigned long)NO_WRITE);

	EXPECT(other > 0);
	for (size_t i = 0; i < sizeof scripts / sizeof scripts[0]; i++) {
		execmem_domain *d = open_mode(EXECMEM_MODE_PKEY);

		snprintf(test_context, sizeof test_context, "script %s", scripts[i] ? scripts[i] : "none");
		execmem_test_script(scripts[i]);
		writes(d, arch->read_rights());
		EXPECT((execmem_test_script(NULL) > 0) == (scripts[i] != NULL));
		EXPECT(execmem_domain_close(d, 1) == 0);
	}
	snprintf(test_context, sizeof test_context, "rights");
	EXPECT(syscall(SYS_pkey_free, other) == 0);
}

static void *come_with_all_open(void *arg)
{
	struct view alias = find_alias();

	arch->write_rights(0);
	EXPECT(!refused_by_calls(&alias));
	EXPECT(execmem_fill(arg, answer, sizeof answer) == 0);
	EXPECT(arch->read_rights() == arch->key_rights(0, alias.key, false) && refused_by_calls(&alias));
	return NULL;
}

static void *come_as_threads_do(void *arg)
{
	struct view alias = find_alias();

	EXPECT(refused_by_calls(&alias));
	expect_out_of_reach(alias, true);
	EXPECT(execmem_fill(arg, answer, sizeof answer) == 0);
	EXPECT(refused_by_calls(&alias));
	return NULL;
}

/* A thread starts with its maker's rights. What was open for it, by whomever, is shut after its first write. */
static void threads_are_not_trusted(void)
{
	void *(*const comers[])(void *) = {come_as_threads_do, come_with_all_open};
	execmem_domain *d = open_mode(EXECMEM_MODE_PKEY);
	void *block = place_answer(d);

	for (int i = 0; i < 2; i++) {
		pthread_t thread;

		EXPECT(pthread_create(&thread, NULL, comers[i], block) == 0 && pthread_join(thread, NULL) == 0);
	}
	EXPECT(execmem_domain_close(d, 1) == 0);
}

/* ---- during a write ---- */

enum { LONG = 5 * EM_PAGE };
static struct view during;
static uint8_t *source, *target;
static _Atomic int handler_saw, child_saw, write_ended;

/* On the writing thread, in the middle of its write. The raw call: the child has a copy of this thread, stopped in its write too. */
static void look_during_write(int number, siginfo_t *info, void *context)
{
	int kept = errno, status = 0;
	long child;

	(void)number;
	(void)info;
	(void)context;
	handler_saw = is_shut(during.key) && refused_by_calls(&during) ? 1 : -1;
	child = syscall(SYS_fork);
	if (child == 0)
		_exit(refused_by_calls(&during) ? 7 : 1);
	child_saw = child > 0 && waitpid((pid_t)child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 7 ? 1 : -1;
	errno = kept;
}

static void *write_long(void *arg)
{
	uint64_t rights = arch->read_rights();

	(void)arg;
	EXPECT(execmem_fill(target, source, LONG) == 0);
	EXPECT(arch->read_rights() == rights);
	write_ended = 1;
	return NULL;
}

/* Waits until a page of the source is missed. False: the write has ended. */
static bool wait_for_miss(int faults, uint64_t *page)
{
	while (!write_ended) {
		struct pollfd wait = {.fd = faults, .events = POLLIN};
		struct uffd_msg told;

		if (poll(&wait, 1, 20) == 1 && read(faults, &told, sizeof told) == sizeof told) {
			EXPECT(told.event == UFFD_EVENT_PAGEFAULT);
			*page = told.arg.pagefault.address & ~(uint64_t)(EM_PAGE - 1);
			return true;
		}
	}
	return false;
}

/* The source's pages are missing, so the writer waits in the kernel, with the alias open, until we give it each. */
static void nobody_else_during_a_write(void)
{
	static uint8_t page_bytes[EM_PAGE];
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register range = {.mode = UFFDIO_REGISTER_MODE_MISSING};
	execmem_domain *d = open_mode(EXECMEM_MODE_PKEY);
	int faults = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK), misses = 0;
	pthread_t writer;
	uint64_t page;
	void *out;

	source = mmap(NULL, LONG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	range.range.start = (uintptr_t)source;
	range.range.len = LONG;
	EXPECT(faults >= 0 && source != MAP_FAILED && ioctl(faults, UFFDIO_API, &api) == 0);
	EXPECT(ioctl(faults, UFFDIO_REGISTER, &range) == 0);
	EXPECT(execmem_alloc_in(d, EXECMEM_TEXT, LONG, 64, NULL, &out) == 0);
	target = out;
	during = find_alias();
	handle(SIGUSR1, look_during_write);
	memset(page_bytes, 0xc3, sizeof page_bytes);
	handler_saw = child_saw = write_ended = 0;
	EXPECT(pthread_create(&writer, NULL, write_long, NULL) == 0);
	while (wait_for_miss(faults, &page)) {
		struct uffdio_copy copy = {.dst = page, .src = (uintptr_t)page_bytes, .len = EM_PAGE};

		EXPECT(!write_ended);
		expect_out_of_reach(during, false);
		expect_out_of_reach(during, true);
		EXPECT(refused_by_calls(&during));
		if (misses++ == 0) {
			EXPECT(pthread_kill(writer, SIGUSR1) == 0);
			while (!child_saw)
				em_sys_nap();
			EXPECT(handler_saw == 1 && child_saw == 1 && !write_ended);
		}
		EXPECT(ioctl(faults, UFFDIO_COPY, &copy) == 0 || errno == EEXIST); /* missed again after the signal */
	}
	pthread_join(writer, NULL);
	EXPECT(misses >= LONG / EM_PAGE && target[0] == 0xc3 && memcmp(target, target + 1, LONG - 1) == 0);
	EXPECT(munmap(source, LONG) == 0 && close(faults) == 0 && execmem_domain_close(d, 1) == 0);
}

static void give_source(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	handler_saw = refused_by_calls(&during) ? 1 : -1;
	if (info->si_addr < (void *)source || info->si_addr >= (void *)(source + EM_PAGE) || mprotect(source, EM_PAGE, PROT_READ) < 0)
		_exit(3);
}

/* The source cannot be read. A handler that helps finds the alias shut, and the write goes on; one that jumps away leaves it shut. */
static void a_write_that_faults(void)
{
	execmem_domain *d = open_mode(EXECMEM_MODE_PKEY);
	uint64_t rights = arch->read_rights();
	void *out = place_answer(d);

	during = find_alias();
	source = mmap(NULL, EM_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	EXPECT(source != MAP_FAILED);
	handler_saw = 0;
	handle(SIGSEGV, give_source);
	EXPECT(execmem_fill(out, source, sizeof answer) == 0 && handler_saw == 1 && *(uint8_t *)out == 0);
	(void)signal(SIGSEGV, SIG_DFL);
	EXPECT(arch->read_rights() == rights && refused_by_calls(&during));
	EXPECT(mprotect(source, EM_PAGE, PROT_NONE) == 0);
	handle(SIGSEGV, jump_back);
	if (sigsetjmp(back, 1) == 0) {
		(void)execmem_fill(out, source, sizeof answer);
		_exit(4);
	}
	EXPECT((uint8_t *)fault.si_addr >= source && (uint8_t *)fault.si_addr < source + EM_PAGE);
	EXPECT(is_shut(during.key) && refused_by_calls(&during));
	expect_out_of_reach(during, true);
}

/* ---- keys that are taken or refused ---- */

static int take_keys(long keys[KEYS])
{
	int taken = 0;

	while (taken < KEYS && (keys[taken] = syscall(SYS_pkey_alloc, 0ul, (unsigned long)NO_ACCESS)) > 0)
		taken++;
	EXPECT(taken == KEYS || errno == ENOSPC);
	return taken;
}

static void give_keys(const long *keys, int count)
{
	while (count-- > 0)
		EXPECT(syscall(SYS_pkey_free, keys[count]) == 0);
}

static uint32_t auto_mode(void)
{
	execmem_domain *d = open_mode(EXECMEM_MODE_AUTO);
	uint32_t mode = execmem_domain_ledger(d)->write_mode;

	(void)place_answer(d);
	EXPECT(execmem_domain_close(d, 1) == 0);
	return mode;
}

static void every_key_is_taken(void)
{
	execmem_options options = {.write_mode = EXECMEM_MODE_PKEY};
	execmem_domain *d;
	long keys[KEYS];

	EXPECT(take_keys(keys) == KEYS);
	EXPECT(execmem_probe(EXECMEM_MODE_PKEY) == EXECMEM_EBUSY && strstr(execmem_error_text(), "pkey_free"));
	EXPECT(execmem_domain_open(&options, &d) == EXECMEM_EBUSY);
	EXPECT(execmem_probe(EXECMEM_MODE_AUTO) == 0 && auto_mode() == EXECMEM_MODE_SYSCALL);
	give_keys(keys + KEYS - 1, 1);
	EXPECT(execmem_probe(EXECMEM_MODE_PKEY) == 0 && auto_mode() == EXECMEM_MODE_PKEY);
	EXPECT(take_keys(keys) == 0); /* it stays ours, */
	EXPECT(auto_mode() == EXECMEM_MODE_PKEY); /* for every domain */
}

/* What the kernel takes for a page that can be executed and not read. */
static void a_key_of_the_kernels(void)
{
	void *page = mmap(NULL, EM_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	long keys[KEYS];
	int taken;

	EXPECT(page != MAP_FAILED && mprotect(page, EM_PAGE, PROT_EXEC) == 0);
	taken = take_keys(keys);
	EXPECT(taken == KEYS - 1);
	give_keys(keys, taken);
	EXPECT(auto_mode() == EXECMEM_MODE_PKEY);
}

static void calls_are_refused(void)
{
	long keys[KEYS];

	execmem_test_script("protect=F");
	EXPECT(execmem_probe(EXECMEM_MODE_PKEY) == EXECMEM_EDENIED);
	execmem_test_script("key=F*:EPERM");
	EXPECT(execmem_probe(EXECMEM_MODE_PKEY) == EXECMEM_EDENIED);
	EXPECT(auto_mode() == EXECMEM_MODE_SYSCALL);
	execmem_test_script("key=F*:ENOSYS");
	EXPECT(execmem_probe(EXECMEM_MODE_PKEY) == EXECMEM_EUNSUPPORTED);
	execmem_test_script(NULL);
	EXPECT(take_keys(keys) == KEYS); /* a key that was of no use was given back */
	give_keys(keys, KEYS);
	EXPECT(auto_mode() == EXECMEM_MODE_PKEY);
}

/* ---- fork ---- */

static execmem_domain *parents;
static uint8_t *parents_block;

static void be_a_child(void)
{
	execmem_domain *d;

	EXPECT(((int (*)(void))(uintptr_t)parents_block)() == 42);
	EXPECT(!find_alias().at); /* the parent's is hidden from children */
	EXPECT(execmem_fill(parents_block, "\xc3", 1) < 0);
	d = open_mode(EXECMEM_MODE_AUTO);
	EXPECT(execmem_domain_ledger(d)->write_mode == EXECMEM_MODE_PKEY);
	(void)place_answer(d);
	EXPECT(find_alias().key == during.key && find_alias().at != during.at);
	expect_out_of_reach(find_alias(), true);
	in_child(only_its_key_opens_it); /* the grandchild */
}

static void forks(void)
{
	parents = open_mode(EXECMEM_MODE_PKEY);
	parents_block = place_answer(parents);
	during = find_alias();
	in_child(be_a_child);
	EXPECT(memcmp(parents_block, answer, sizeof answer) == 0);
	EXPECT(execmem_domain_close(parents, 1) == 0);
}

/* Those that want all keys come before this process takes one. */
static const struct {
	const char *name;
	void (*run)(void);
	bool apart; /* in a process of its own */
} tests[] = {
	{"every key is taken", every_key_is_taken, true},
	{"a key of the kernel's", a_key_of_the_kernels, true},
	{"calls are refused", calls_are_refused, true},
	{"only its key opens it", only_its_key_opens_it, false},
	{"rights stay as they were", rights_stay, false},
	{"threads are not trusted", threads_are_not_trusted, false},
	{"nobody else during a write", nobody_else_during_a_write, false},
	{"a write that faults", a_write_that_faults, true},
	{"forks", forks, false},
};

int main(void)
{
	arch = em_arch_host();
	kernels();
	registers();
	if (!arch->has_keys || !arch->has_keys()) {
		refused_politely();
		puts("no protection keys here: mode pkey is refused with the reason\nok");
		return 0;
	}
	EXPECT(pipe(pipes) == 0);
	for (size_t i = 0; i < sizeof tests / sizeof tests[0]; i++) {
		snprintf(test_context, sizeof test_context, "%s", tests[i].name);
		printf("%s\n", tests[i].name);
		fflush(stdout);
		if (tests[i].apart)
			in_child(tests[i].run);
		else
			tests[i].run();
	}
	EXPECT_LAWFUL(NULL);
	puts("ok");
	return 0;
}
