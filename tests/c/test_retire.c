/* test_retire: code is replaced while threads run it, and what was replaced goes when nobody can be inside. Each test has a process of its
 * own, for whether a thread was ever online is known of a process.
 *
 * usage: test_retire [replacements per thread]
 */
#include "arch.h"
#include "test.h"

#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static execmem_domain *domain;
static int mode, rounds;
static atomic_bool stop;

static execmem_stats stats(void)
{
	execmem_stats out;

	EXPECT(execmem_domain_stats(domain, &out) == 0);
	return out;
}

static execmem_retirement count(void)
{
	execmem_retirement out;

	EXPECT(execmem_retire_count(&out) == 0);
	return out;
}

static void expect_lawful(void)
{
	EXPECT_LAWFUL(domain);
	EXPECT(execmem_retire_check() == NULL);
}

static void open_domain(void)
{
	execmem_options options = {.name = "retire", .write_mode = mode, .window = 64 << 20};

	EXPECT(execmem_domain_open(&options, &domain) == 0);
}

/* In mode flip a write waits for all threads to stop, and on a busy machine one may take too long: the call may be made again. */
#define INSIST(result, call)                                                                                                       \
	do                                                                                                                             \
		(result) = (call);                                                                                                         \
	while ((result) == EXECMEM_EBUSY && mode == EXECMEM_MODE_FLIP)

/* A function that gives the number. */
static void *place_named(uint32_t number, size_t size, const char *name)
{
	uint8_t code[4096];
	void *out;
	int err;

	EXPECT(size >= TEST_CODE);
	memset(code, 0x90, size);
	test_code(code, number);
	INSIST(err, execmem_place(domain, EXECMEM_TEXT, code, size, 16, name, &out));
	EXPECT(err == 0);
	return out;
}

static void *place(uint32_t number, size_t size)
{
	return place_named(number, size, NULL);
}

static bool is_gone(const void *address) /* freed, and not given out again */
{
	return em_arch_host()->is_trap(address, TEST_CODE);
}

static int poll_until_told(void)
{
	int err;

	INSIST(err, execmem_retire_poll());
	return err;
}

/* ---- a thread that does as it is told ---- */

enum order { REST, ONLINE, OFFLINE, QUIESCENT, END };

struct obedient {
	pthread_t thread;
	_Atomic int order; /* REST once it is done */
};

static void *obey(void *arg)
{
	struct obedient *self = arg;

	for (;;) {
		int order = atomic_load(&self->order);

		if (order == ONLINE)
			EXPECT(execmem_thread_online() == 0);
		if (order == OFFLINE)
			EXPECT(execmem_thread_offline() == 0);
		if (order == QUIESCENT)
			execmem_quiescent();
		if (order == END)
			return NULL;
		if (order != REST)
			atomic_store(&self->order, REST);
		usleep(50);
	}
}

static void start(struct obedient *o)
{
	atomic_init(&o->order, REST);
	EXPECT(pthread_create(&o->thread, NULL, obey, o) == 0);
}

static void tell(struct obedient *o, enum order order)
{
	atomic_store(&o->order, order);
	while (order != END && atomic_load(&o->order) != REST)
		usleep(50);
	if (order == END)
		pthread_join(o->thread, NULL);
}

/* ---- what is refused ---- */

static void refusals(void)
{
	struct obedient one;
	execmem_retirement before;
	void *block, *large, *reserved;

	open_domain();
	block = place(1, 100);
	EXPECT(execmem_retire(block) == EXECMEM_EINVAL && strstr(execmem_error_text(), "execmem_thread_online"));
	EXPECT(test_call(block) == 1 && stats().live_blocks == 1 && count().retired == 0);
	EXPECT(execmem_thread_offline() == EXECMEM_EINVAL);
	execmem_quiescent(); /* of nobody: nothing */
	EXPECT(count().threads == 0 && execmem_retire_count(NULL) == EXECMEM_EINVAL);
	EXPECT(execmem_retire_poll() == 0 && execmem_retire_wait(0) == 0);
	start(&one);
	tell(&one, ONLINE);
	EXPECT(execmem_retire(NULL) == EXECMEM_EFOREIGN && execmem_retire(&block) == EXECMEM_EFOREIGN);
	EXPECT(execmem_retire((char *)block + 1) == EXECMEM_EINTERIOR && execmem_retire((char *)block + 4096) == EXECMEM_EFREED);
	EXPECT(stats().live_blocks == 1 && stats().retired_blocks == 0 && count().retired == 0);
	EXPECT(execmem_retire(block) == 0 && test_call(block) == 1);
	before = count();
	EXPECT(before.waiting == 1 && before.retired == 1 && before.threads == 1 && before.online == 1 && before.late_thread > 0);
	EXPECT(execmem_retire(block) == EXECMEM_EFREED && strstr(execmem_error_text(), "was retired"));
	EXPECT(execmem_free(block) == EXECMEM_EFREED && strstr(execmem_error_text(), "was retired"));
	EXPECT(execmem_free_many(domain, 1, &(uint64_t){(uintptr_t)block}) == EXECMEM_EFREED);
	EXPECT(execmem_fill(block, "", 1) == EXECMEM_EFREED && execmem_find(block, &(execmem_info){0}) == EXECMEM_EFREED);
	EXPECT(execmem_retire((char *)block + 1) == EXECMEM_EFREED && test_call(block) == 1);
	expect_lawful();
	/* larger than a pack; and never filled */
	EXPECT(execmem_alloc_in(domain, EXECMEM_DATA, 3 << 20, 16, "large", &large) == 0);
	EXPECT(execmem_alloc_in(domain, EXECMEM_TEXT, 300, 16, "reserved", &reserved) == 0);
	memset(large, 1, 3 << 20);
	EXPECT(execmem_retire(large) == 0 && execmem_retire(reserved) == 0 && ((char *)large)[3 << 19] == 1);
	EXPECT(stats().retired_blocks == 3 && stats().retired_bytes == 100 + 300 + (3 << 20) && stats().live_blocks == 0);
	EXPECT(stats().live_bytes == 0 && stats().used_bytes == 128 + 320 + (3 << 20));
	expect_lawful();
	tell(&one, OFFLINE);
	EXPECT(poll_until_told() == 0 && stats().retired_blocks == 0 && stats().used_bytes == 0 && is_gone(block));
	EXPECT(stats().allocs == 3 && stats().frees == 3 && count().waiting == 0 && count().retired == 3);
	expect_lawful();
	tell(&one, END);
	EXPECT(count().threads == 0);
	EXPECT(execmem_retire(place(2, 64)) == 0 && stats().used_bytes == 0); /* nobody is online: at once */
}

/* ---- who is waited for ---- */

static void waits(void)
{
	struct obedient one, two;
	void *first, *second;

	open_domain();
	start(&one);
	start(&two);
	tell(&one, ONLINE);
	tell(&two, ONLINE);
	first = place_named(1, 700, "replaced");
	EXPECT(execmem_retire(first) == 0);
	second = place(2, 700);
	EXPECT(execmem_retire(second) == 0 && poll_until_told() == 0 && count().waiting == 2);
	tell(&one, QUIESCENT);
	EXPECT(poll_until_told() == 0 && test_call(first) == 1 && test_call(second) == 2); /* two has not */
	tell(&two, QUIESCENT);
	EXPECT(poll_until_told() == 0 && is_gone(first) && count().waiting == 1);
	EXPECT(test_call(second) == 2); /* came when the first period ran already */
	EXPECT(execmem_retire_wait(1) == EXECMEM_EBUSY && strstr(execmem_error_text(), "execmem_quiescent"));
	expect_lawful();
	tell(&two, QUIESCENT);
	tell(&one, OFFLINE);
	EXPECT(poll_until_told() == 0 && is_gone(second) && count().waiting == 0 && execmem_retire_wait(0) == 0);

	/* Two users within one thread: the inner one's quiescent points and end say nothing about the outer one. */
	tell(&two, ONLINE);
	first = place(3, 64);
	EXPECT(execmem_retire(first) == 0);
	tell(&two, QUIESCENT);
	EXPECT(poll_until_told() == 0 && test_call(first) == 3);
	tell(&two, OFFLINE);
	EXPECT(poll_until_told() == 0 && test_call(first) == 3);
	tell(&two, QUIESCENT);
	EXPECT(poll_until_told() == 0 && is_gone(first));
	tell(&two, OFFLINE);

	/* The caller, if it is online itself. */
	EXPECT(execmem_thread_online() == 0);
	first = place(4, 64);
	EXPECT(execmem_retire(first) == 0 && test_call(first) == 4);
	EXPECT(execmem_retire_wait(0) == EXECMEM_EBUSY && strstr(execmem_error_text(), "itself"));
	execmem_quiescent();
	EXPECT(poll_until_told() == 0 && is_gone(first));
	EXPECT(execmem_thread_offline() == 0 && execmem_thread_offline() == EXECMEM_EINVAL);

	/* A thread that ends while it is online is waited for no longer. */
	tell(&one, ONLINE);
	first = place(5, 64);
	EXPECT(execmem_retire(first) == 0 && execmem_retire_wait(0) == EXECMEM_EBUSY && count().threads == 3);
	tell(&one, END);
	EXPECT(execmem_retire_wait(UINT64_MAX) == 0 && is_gone(first) && count().threads == 2 && count().online == 0);
	tell(&two, END);
	expect_lawful();
}

/* What is called at a thread's end, after the library is, may run placed code still; and it may come online anew in the last rounds. */
static pthread_key_t later, rounds_later;
static void *at_end;
static atomic_int ends;

static void run_at_end(void *unused)
{
	(void)unused;
	EXPECT(execmem_thread_is_online() && execmem_retire_poll() == 0 && test_call(at_end) == 7);
	atomic_fetch_add(&ends, 1);
}

static void come_back_at_end(void *arg)
{
	uintptr_t round = (uintptr_t)arg;

	EXPECT(execmem_thread_is_online() == (round == 1));
	if (round < PTHREAD_DESTRUCTOR_ITERATIONS - 1)
		EXPECT(pthread_setspecific(rounds_later, (void *)(round + 1)) == 0);
	else
		EXPECT(execmem_thread_online() == 0 && count().online == 1);
	atomic_fetch_add(&ends, 1);
}

static void *end_online(void *unused)
{
	EXPECT(execmem_thread_online() == 0 && execmem_retire(at_end) == 0 && pthread_setspecific(later, &later) == 0);
	return unused;
}

static void *end_in_rounds(void *unused)
{
	EXPECT(execmem_thread_online() == 0 && pthread_setspecific(rounds_later, (void *)1) == 0);
	return unused;
}

static void run_thread(void *(*body)(void *))
{
	pthread_t thread;

	EXPECT(pthread_create(&thread, NULL, body, NULL) == 0);
	pthread_join(thread, NULL);
}

static void ending(void)
{
	open_domain();
	at_end = place(7, 64);
	EXPECT(execmem_thread_online() == 0 && execmem_thread_offline() == 0); /* the library's key is the first */
	EXPECT(pthread_key_create(&later, run_at_end) == 0 && pthread_key_create(&rounds_later, come_back_at_end) == 0);
	run_thread(end_online);
	EXPECT(atomic_load(&ends) == 1 && execmem_retire_wait(UINT64_MAX) == 0 && is_gone(at_end) && count().threads == 1);
	run_thread(end_in_rounds);
	EXPECT(atomic_load(&ends) == PTHREAD_DESTRUCTOR_ITERATIONS && count().threads == 1);
	expect_lawful();
}

/* A pack goes to another thread's shard, its retired blocks with it; that one frees nothing under a thread either. */
static void *place_there(void *arg)
{
	void *retired = arg, *mine = place(9, 64);

	EXPECT(((uintptr_t)mine ^ (uintptr_t)retired) < EXECMEM_PACK_SIZE);
	EXPECT(execmem_free(retired) == EXECMEM_EFREED && test_call(retired) == 1);
	expect_lawful();
	EXPECT(execmem_free(mine) == 0);
	return NULL;
}

static void taken_over(void)
{
	execmem_options options = {.name = "one pack", .write_mode = mode, .window = EXECMEM_PACK_SIZE};
	struct obedient one;
	execmem_shard sum;
	pthread_t thread;
	void *block;

	EXPECT(execmem_domain_open(&options, &domain) == 0);
	start(&one);
	tell(&one, ONLINE);
	block = place(1, 100);
	EXPECT(execmem_retire(block) == 0 && execmem_retire(place(2, 1000)) == 0);
	EXPECT(pthread_create(&thread, NULL, place_there, block) == 0);
	pthread_join(thread, NULL);
	EXPECT(execmem_domain_count(domain, &sum) == 0 && sum.retired_blocks == 2 && sum.retired_bytes == 1100);
	tell(&one, OFFLINE);
	EXPECT(poll_until_told() == 0 && execmem_domain_count(domain, &sum) == 0 && sum.retired_blocks == 0 && is_gone(block));
	tell(&one, END);
	expect_lawful();
}

/* ---- limits, closing, sealing ---- */

static void counts(void)
{
	execmem_options options = {.name = "limited", .write_mode = mode, .limit = 1024, .quarantine = 1024};
	struct obedient one;
	execmem_domain *old;
	void *block, *kept;

	open_domain();
	old = domain;
	options.parent = old;
	EXPECT(execmem_domain_open(&options, &domain) == 0);
	start(&one);
	tell(&one, ONLINE);
	block = place(1, 1000);
	EXPECT(execmem_retire(block) == 0 && stats().charged_bytes == 1024 && stats().quarantined_blocks == 0);
	EXPECT(execmem_alloc_in(domain, EXECMEM_TEXT, 64, 16, NULL, &kept) == EXECMEM_ELIMIT);
	EXPECT(execmem_domain_close(domain, 0) == EXECMEM_EBUSY && strstr(execmem_error_text(), "retired"));
	tell(&one, QUIESCENT);
	EXPECT(poll_until_told() == 0 && stats().charged_bytes == 0 && stats().quarantined_blocks == 1);
	expect_lawful();
	EXPECT(execmem_alloc_in(domain, EXECMEM_TEXT, 64, 16, NULL, &kept) == 0);

	/* By force a retired block goes with its domain; the one after it in the queue finds its turn. */
	EXPECT(execmem_retire(kept) == 0 && execmem_domain_close(domain, 1) == 0);
	domain = old;
	kept = place(2, 64);
	EXPECT(execmem_retire(kept) == 0 && count().waiting == 2);
	tell(&one, QUIESCENT);
	EXPECT(poll_until_told() == 0); /* perhaps the first period only */
	tell(&one, QUIESCENT);
	EXPECT(poll_until_told() == 0 && count().waiting == 0 && is_gone(kept) && stats().used_bytes == 0);
	EXPECT(execmem_domain_close(domain, 0) == 0);

	/* What is retired in a domain that is sealed meanwhile stays as it is. */
	open_domain();
	block = place(3, 64);
	kept = place(4, 64);
	EXPECT(execmem_retire(block) == 0 && execmem_domain_seal(domain) == 0 && execmem_retire(kept) == EXECMEM_ESEALED);
	tell(&one, OFFLINE);
	EXPECT(execmem_retire_wait(UINT64_MAX) == 0 && test_call(block) == 3 && test_call(kept) == 4);
	EXPECT(stats().retired_blocks == 1 && stats().live_blocks == 1);
	expect_lawful();
	tell(&one, END);
}

/* Sealing waits for those who make packs; what comes up meanwhile waits too, for it may turn out that nothing is sealed. */
static void *make_packs(void *unused)
{
	void *large;

	while (!atomic_load(&stop))
		if (execmem_alloc_in(domain, EXECMEM_TEXT, 8 << 20, 16, NULL, &large) == 0)
			(void)execmem_free(large); /* refused while the domain is being sealed */
	return unused;
}

static void *retire_always(void *unused)
{
	void *block;

	while (!atomic_load(&stop)) {
		if (execmem_alloc_in(domain, EXECMEM_TEXT, 64, 16, NULL, &block) == 0)
			(void)execmem_retire(block);
		(void)execmem_retire_poll();
	}
	return unused;
}

#ifdef __SANITIZE_THREAD__
enum { MAY_SCRIPT_BESIDE_THREADS = 0 }; /* a script begins without a word to threads that run already */
#else
enum { MAY_SCRIPT_BESIDE_THREADS = 1 };
#endif

static void not_sealed(void)
{
	pthread_t maker, retirer;

	open_domain();
	EXPECT(execmem_thread_online() == 0 && execmem_thread_offline() == 0); /* opt in */
	EXPECT(pthread_create(&maker, NULL, make_packs, NULL) == 0 && pthread_create(&retirer, NULL, retire_always, NULL) == 0);
	for (int i = 0; i < 100; i++) {
		execmem_test_script("unview=F*");
		EXPECT(execmem_domain_seal(domain) == EXECMEM_ENOMEM);
		execmem_test_script(NULL);
		usleep(500);
	}
	atomic_store(&stop, true);
	pthread_join(maker, NULL);
	pthread_join(retirer, NULL);
	EXPECT(execmem_retire_wait(UINT64_MAX) == 0 && stats().retired_blocks == 0);
	expect_lawful();
}

/* ---- what the system refuses ---- */

static const char *write_script(void)
{
	return mode == EXECMEM_MODE_SYSCALL || mode == EXECMEM_MODE_PROCMEM ? "write=F*"
	       : mode == EXECMEM_MODE_FLIP                                  ? "protect=F*"
	                                                                    : NULL;
}

static void refused(void)
{
	struct obedient one;
	execmem_shard before, after;
	void *block;
	int made = 0;

	open_domain();
	execmem_test_script("exit=F");
	EXPECT(execmem_thread_online() == EXECMEM_ENOMEM && count().threads == 0 && execmem_thread_offline() == EXECMEM_EINVAL);
	EXPECT(execmem_retire(place(1, 64)) == EXECMEM_EINVAL);
	EXPECT(execmem_test_script(NULL) == 1);
	start(&one);
	tell(&one, ONLINE);

	/* The queue's memory: at the first block, and whenever it is full. */
	for (int i = 0; i < 1000; i++) {
		block = place((uint32_t)i, 64);
		EXPECT(execmem_domain_count(domain, &before) == 0);
		execmem_test_script("reserve=F*");
		if (execmem_retire(block) < 0) {
			made++;
			EXPECT(execmem_error_code() == EXECMEM_ENOMEM && test_call(block) == (uint32_t)i);
			EXPECT(execmem_domain_count(domain, &after) == 0 && after.refusals == before.refusals + 1);
			after.refusals = before.refusals;
			EXPECT(memcmp(&before, &after, sizeof after) == 0);
			execmem_test_script(NULL);
			EXPECT(execmem_retire(block) == 0);
		}
		execmem_test_script(NULL);
	}
	EXPECT(made == 4 && count().waiting == 1000);
	expect_lawful();
	tell(&one, QUIESCENT);
	EXPECT(poll_until_told() == 0);
	tell(&one, QUIESCENT);
	if (write_script()) { /* the blanking: the block stays retired, and is freed another time */
		execmem_test_script(write_script());
		EXPECT(execmem_retire_poll() < 0 && count().waiting == 999 && execmem_retire_wait(0) < 0);
		expect_lawful();
		EXPECT(execmem_test_script(NULL) >= 2);
	}
	EXPECT(poll_until_told() == 0 && count().waiting == 0 && stats().used_bytes == 64); /* the one that was refused */
	expect_lawful();

	/* membarrier, from now on: a period lasts longer than what a core keeps for itself. */
	if (!count().fences) {
		block = place(1, 64);
		tell(&one, OFFLINE);
		execmem_test_script("fence=F*");
		EXPECT(execmem_retire(block) == 0 && test_call(block) == 1 && count().waiting == 1);
		EXPECT(execmem_retire_wait(UINT64_MAX) == 0 && is_gone(block));
		EXPECT(execmem_test_script(NULL) == 1);
	}
	tell(&one, END);
}

/* ---- forks ---- */

static void expect_child(pid_t child)
{
	int status;

	EXPECT(waitpid(child, &status, 0) == child);
	EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void forked(void)
{
	bool shared = mode != EXECMEM_MODE_PROCMEM && mode != EXECMEM_MODE_FLIP;
	struct obedient one;
	void *block;
	pid_t child;

	open_domain();
	start(&one);
	tell(&one, ONLINE);
	EXPECT(execmem_thread_online() == 0);
	block = place(1, 64);
	EXPECT(execmem_retire(block) == 0);
	child = fork();
	if (child == 0) { /* the other thread is not here; this one is online still */
		void *own = place(2, 64);

		EXPECT(count().threads == 1 && count().online == 1 && count().waiting == 1 && stats().retired_blocks == 1);
		expect_lawful();
		EXPECT(execmem_retire(own) == 0 && test_call(own) == 2 && count().waiting == 2);
		execmem_quiescent();
		EXPECT(execmem_retire_poll() == 0);
		execmem_quiescent();
		EXPECT(execmem_retire_poll() == 0 && count().waiting == 0 && is_gone(own));
		EXPECT(stats().retired_blocks == 0 && stats().held_blocks == (shared ? 1 : 0));
		EXPECT(shared ? test_call(block) == 1 : is_gone(block)); /* shared memory is the parent's */
		expect_lawful();
		_exit(0);
	}
	expect_child(child);
	EXPECT(test_call(block) == 1 && count().threads == 2 && count().waiting == 1);
	EXPECT(execmem_thread_offline() == 0);
	child = fork();
	if (child == 0) { /* nobody is online here */
		EXPECT(execmem_retire_wait(UINT64_MAX) == 0 && stats().retired_blocks == 0);
		expect_lawful();
		pause();
	}
	tell(&one, OFFLINE);
	EXPECT(execmem_retire_wait(UINT64_MAX) == 0 && stats().retired_blocks == 0);
	EXPECT(shared ? test_call(block) == 1 && stats().held_blocks == 1 : is_gone(block)); /* a child may run it */
	kill(child, SIGKILL);
	EXPECT(waitpid(child, NULL, 0) == child);
	EXPECT_SOON(stats().held_blocks == 0);
	EXPECT(is_gone(block));
	tell(&one, END);
	expect_lawful();
}

/* ---- everything at once ---- */

enum { PLACES = 32, NUMBERS = 1 << 24, WRITERS = 2, READERS = 4 };

static _Atomic uintptr_t table[PLACES];

static void call_any(uint64_t *random)
{
	uint32_t number = (uint32_t)(test_random(random) % PLACES);
	const void *code = (const void *)atomic_load_explicit(&table[number], memory_order_relaxed);

	EXPECT(test_call(code) / NUMBERS == number); /* not another block that came to lie there */
}

static void *run_quiescent(void *arg)
{
	uint64_t random = 1 + (uintptr_t)arg;

	EXPECT(execmem_thread_online() == 0);
	while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
		for (uint64_t i = test_random(&random) % 100; i-- > 0;)
			call_any(&random);
		execmem_quiescent();
	}
	return NULL; /* online */
}

static void *run_nested(void *arg)
{
	uint64_t random = 1000 + (uintptr_t)arg;

	while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
		EXPECT(execmem_thread_online() == 0);
		call_any(&random);
		EXPECT(execmem_thread_online() == 0);
		call_any(&random);
		execmem_quiescent();
		EXPECT(execmem_thread_offline() == 0);
		call_any(&random);
		EXPECT(execmem_thread_offline() == 0);
	}
	return NULL;
}

static void *run_once(void *arg)
{
	uint64_t random = (uintptr_t)arg;

	EXPECT(execmem_thread_online() == 0);
	for (int i = 0; i < 10; i++)
		call_any(&random);
	return NULL; /* online */
}

static void *run_and_end(void *arg)
{
	pthread_t thread;

	for (uintptr_t i = 1; !atomic_load(&stop); i++) {
		EXPECT(pthread_create(&thread, NULL, run_once, (void *)(i + (uintptr_t)arg)) == 0);
		pthread_join(thread, NULL);
	}
	return NULL;
}

static void *replace(void *arg)
{
	uint64_t random = 77 + (uintptr_t)arg;

	for (int i = 0; i < rounds; i++) {
		uint32_t number = (uint32_t)(test_random(&random) % PLACES);
		void *made = place(number * NUMBERS + (uint32_t)i, TEST_CODE + test_random(&random) % 500);
		int err;

		made = (void *)atomic_exchange(&table[number], (uintptr_t)made);
		err = execmem_retire(made);
		EXPECT(err == 0);
		(void)execmem_retire_poll(); /* of two at once one frees it */
		while (count().waiting > 5000)
			EXPECT(execmem_retire_wait(10) >= EXECMEM_EBUSY);
	}
	return NULL;
}

static void stress(void)
{
	void *(*const readers[READERS])(void *) = {run_quiescent, run_quiescent, run_nested, run_and_end};
	pthread_t threads[WRITERS + READERS];
	execmem_retirement end;

	open_domain();
	atomic_store(&stop, false);
	EXPECT(execmem_thread_online() == 0 && execmem_thread_offline() == 0); /* opt in */
	for (uint32_t i = 0; i < PLACES; i++)
		atomic_store(&table[i], (uintptr_t)place(i * NUMBERS, 64));
	for (uintptr_t i = 0; i < WRITERS + READERS; i++)
		EXPECT(pthread_create(&threads[i], NULL, i < WRITERS ? replace : readers[i - WRITERS], (void *)(i << 32)) == 0);
	for (int i = 0; i < WRITERS; i++)
		pthread_join(threads[i], NULL);
	end = count();
	atomic_store(&stop, true);
	for (int i = WRITERS; i < WRITERS + READERS; i++)
		pthread_join(threads[i], NULL);
	EXPECT(execmem_retire_wait(UINT64_MAX) == 0 && count().waiting == 0 && count().online == 0);
	EXPECT(stats().live_blocks == PLACES && stats().retired_blocks == 0 && stats().retired_bytes == 0);
	expect_lawful();
	printf("%s: %llu retired, %llu periods meanwhile, %llu waited at the end\n", test_context, (unsigned long long)end.retired,
	       (unsigned long long)end.periods, (unsigned long long)end.waiting);
}

static void stress_with_fences(void)
{
	execmem_test_script("fence=F*");
	stress();
	EXPECT(count().fences == 1);
}

/* ---- what happens without ---- */

static atomic_bool leave;

/* Gives 42 when the byte it is told of is not 0 any more; the signal that ends who runs on when it is freed. */
#if defined(__aarch64__)
static const uint32_t spin[] = {0x39400001, 0x34ffffe1, 0x52800540, 0xd65f03c0}; /* ldrb w1, [x0]; cbz w1, .-4; mov w0, 42; ret */
enum { END_SIGNAL = SIGTRAP };
#elif defined(__riscv)
static const uint32_t spin[] = {0x00054583, 0xfe058ee3, 0x02a00513, 0x00008067}; /* lbu a1, (a0); beqz a1, .-4; li a0, 42; ret */
enum { END_SIGNAL = SIGILL };
#else
/* again: cmp byte [rdi], 0; je again; mov eax, 42; ret */
static const uint8_t spin[] = {0x80, 0x3F, 0x00, 0x74, 0xFB, 0xB8, 42, 0, 0, 0, 0xC3};
enum { END_SIGNAL = SIGTRAP };
#endif
static void *spinning;
static atomic_bool entered;

static void *run_spin(void *arg)
{
	(void)arg;
	EXPECT(execmem_thread_online() == 0);
	atomic_store(&entered, true);
	EXPECT(((uint32_t (*)(atomic_bool *))(uintptr_t)spinning)(&leave) == 42);
	EXPECT(execmem_thread_offline() == 0);
	return NULL;
}

static pthread_t enter_spin(void)
{
	pthread_t thread;

	open_domain();
	EXPECT(execmem_place(domain, EXECMEM_TEXT, spin, sizeof spin, 16, NULL, &spinning) == 0);
	EXPECT(pthread_create(&thread, NULL, run_spin, NULL) == 0);
	while (!atomic_load(&entered))
		usleep(100);
	usleep(10000); /* in all likelihood it is inside by now; else it goes in soon, to the same end */
	return thread;
}

static void freed_under_a_thread(void)
{
	struct rlimit no_core = {0};
	pthread_t thread;
	int err;

	setrlimit(RLIMIT_CORE, &no_core);
	thread = enter_spin();
	INSIST(err, execmem_free(spinning));
	EXPECT(err == 0);
	pthread_join(thread, NULL);
}

static void retired_under_a_thread(void)
{
	pthread_t thread = enter_spin();

	EXPECT(execmem_retire(spinning) == 0 && execmem_retire_wait(20) == EXECMEM_EBUSY);
	EXPECT(memcmp(spinning, spin, sizeof spin) == 0);
	atomic_store(&leave, true);
	EXPECT(execmem_retire_wait(UINT64_MAX) == 0 && memcmp(spinning, spin, sizeof spin) != 0);
	pthread_join(thread, NULL);
	expect_lawful();
}

/* ---- a process each ---- */

static void run(void (*test)(void), const char *name, int end_signal)
{
	pid_t child;
	int status;

	snprintf(test_context, sizeof test_context, "%s, mode %s", name, execmem_mode_name(mode));
	fflush(NULL);
	child = fork();
	if (child == 0) {
		test();
		exit(0);
	}
	EXPECT(waitpid(child, &status, 0) == child);
	if (end_signal)
		EXPECT(WIFSIGNALED(status) && WTERMSIG(status) == end_signal);
	else
		EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(int argc, char **argv)
{
	int asked = test_amount(argc, argv, 5000, 500), told = em_arch_host()->fill_sync == EM_ARCH_SYNC_CORES ? 10 : 1;

	for (mode = EXECMEM_MODE_SYSCALL; mode < EXECMEM_MODES; mode++) {
		if (!test_takes_mode(mode))
			continue;
		rounds = mode == EXECMEM_MODE_FLIP ? asked / 50 + 1 : asked / told; /* each write stops every thread, or interrupts it */
		run(refusals, "refusals", 0);
		run(waits, "waits", 0);
		run(ending, "ending", 0);
		run(taken_over, "taken over", 0);
		run(counts, "counts", 0);
		if (mode == EXECMEM_MODE_ALIAS && MAY_SCRIPT_BESIDE_THREADS)
			run(not_sealed, "not sealed", 0);
		run(refused, "refused", 0);
		run(forked, "forked", 0);
		run(stress, "stress", 0);
		run(stress_with_fences, "stress with fences", 0);
		run(retired_under_a_thread, "retired under a thread", 0);
		run(freed_under_a_thread, "freed under a thread", END_SIGNAL);
	}
	printf("ok\n");
	return 0;
}
