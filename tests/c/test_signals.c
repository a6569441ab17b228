/* test_signals: a signal handler runs placed code, over and over, while the thread it interrupts, and another one, allocate, fill and free
 * around it. In mode flip the first thread of the process is gone meanwhile.
 *
 * usage: test_signals [operations per mode]
 */
#include "test.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/time.h>

enum { CODES = 8, LIVE = 200, LIVE_LONG = 12, LONGEST = 100000 };

static void *codes[CODES];
static _Atomic uint64_t calls;
static execmem_domain *domain;
static int operations;
static bool longer; /* in mode flip writes take long, so that signals come in the middle */

static void on_alarm(int number)
{
	(void)number;
	for (uint32_t i = 0; i < CODES; i++)
		if (codes[i] && test_call(codes[i]) != i + 1)
			abort();
	atomic_fetch_add(&calls, 1);
}

/* On a busy machine threads may get no turn to be stopped, which mode flip tells as EBUSY. */
#define PATIENTLY(call)                                                                                                            \
	do {                                                                                                                           \
		int err_;                                                                                                                  \
                                                                                                                                   \
		do                                                                                                                         \
			err_ = (call);                                                                                                         \
		while (err_ == EXECMEM_EBUSY);                                                                                             \
		EXPECT(err_ == 0);                                                                                                         \
	} while (0)

static void place_code(uint32_t number, void **out)
{
	uint8_t code[TEST_CODE];

	test_code(code, number);
	PATIENTLY(execmem_place(domain, EXECMEM_TEXT, code, sizeof code, 16, NULL, out));
}

static void *work(void *seed_at)
{
	void *live[LIVE] = {NULL};
	uint64_t seed = *(uint64_t *)seed_at;
	static uint8_t bytes[LONGEST];
	size_t most = longer ? sizeof bytes : 300, lives = longer ? LIVE_LONG : LIVE;

	for (int i = 0; i < operations; i++) {
		void **at = &live[test_random(&seed) % lives];
		size_t size = 1 + test_random(&seed) % most;

		if (*at)
			PATIENTLY(execmem_free(*at));
		PATIENTLY(execmem_alloc_in(domain, EXECMEM_TEXT, size, 16, NULL, at));
		PATIENTLY(execmem_fill(*at, bytes, size));
	}
	return NULL;
}

static void run_mode(int mode)
{
	execmem_options options = {.name = "signals", .write_mode = mode};
	struct itimerval often = {{0, 150}, {0, 150}}, never = {{0, 0}, {0, 0}};
	uint64_t seeds[2] = {1, 2};
	pthread_t other;

	snprintf(test_context, sizeof test_context, "mode %s", execmem_mode_name(mode));
	EXPECT(execmem_domain_open(&options, &domain) == 0);
	for (uint32_t i = 0; i < CODES; i++)
		place_code(i + 1, &codes[i]);
	atomic_store(&calls, 0);
	EXPECT(setitimer(ITIMER_REAL, &often, NULL) == 0);
	EXPECT(pthread_create(&other, NULL, work, &seeds[0]) == 0);
	do
		work(&seeds[1]); /* around the codes, in their pack */
	while (atomic_load(&calls) == 0);
	EXPECT(pthread_join(other, NULL) == 0);
	EXPECT(setitimer(ITIMER_REAL, &never, NULL) == 0);
	EXPECT(atomic_load(&calls) > 0);
	memset(codes, 0, sizeof codes);
	EXPECT_LAWFUL(domain);
	EXPECT(execmem_domain_close(domain, 1) == 0);
}

static void *run_all(void *unused)
{
	(void)unused;
	for (int mode = EXECMEM_MODE_SYSCALL; mode < EXECMEM_MODES; mode++) {
		int all = operations;

		if (!test_takes_mode(mode))
			continue;
		longer = mode == EXECMEM_MODE_FLIP;
		operations = longer ? operations / 60 + 1 : operations;
		run_mode(mode);
		operations = all;
	}
	puts("ok");
	exit(0);
}

int main(int argc, char **argv)
{
	struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
	pthread_t thread;

	operations = test_amount(argc, argv, 20000, 300);
	EXPECT(sigaction(SIGALRM, &action, NULL) == 0);
	EXPECT(pthread_create(&thread, NULL, run_all, NULL) == 0);
	pthread_exit(NULL); /* it stays in the list of threads, dead */
}
