/* test_fork: four threads place, call, fill and free while the process forks; children do the same with what they inherit and with their own,
 * some with four threads and some with children themselves. Nobody may see a wrong result, and nothing may be left behind.
 *
 * usage: test_fork [forks per mode]
 */
#include "test.h"

#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/wait.h>
#include <unistd.h>

enum { THREADS = 4, SLOTS = 300, CHILDREN = 3, SIZE_MOST = 3000, ROUNDS = 60 };

/* A block that returns its number. The number is written last and taken back first, so a child that finds one has a live block. */
struct slot {
	void *address;
	uint32_t size;
	_Atomic uint32_t number;
};

struct worker {
	pthread_t thread;
	uint64_t seed;
	struct slot slots[SLOTS];
};

static struct worker workers[THREADS];
static execmem_domain *domain;
static atomic_bool stop;
static _Atomic uint64_t operations;
static int mode;

/* In mode flip a write waits for all threads to stop, and on a busy machine one may take too long: the call may be made again. */
#define INSIST(result, call)                                                                                                       \
	do                                                                                                                             \
		(result) = (call);                                                                                                         \
	while ((result) == EXECMEM_EBUSY && mode == EXECMEM_MODE_FLIP)

static bool is_shared(void)
{
	return mode != EXECMEM_MODE_PROCMEM && mode != EXECMEM_MODE_FLIP;
}

static void write_code(uint8_t *to, uint32_t number, uint32_t size)
{
	memset(to, 0x90, size);
	test_code(to, number);
}

static void expect_slot(const struct slot *s)
{
	uint32_t number = atomic_load(&s->number);

	EXPECT(!number || test_call(s->address) == number);
}

static void drop(struct slot *s)
{
	int err = 0;

	if (atomic_exchange(&s->number, 0))
		INSIST(err, execmem_free_in(domain, s->address));
	EXPECT(err == 0);
}

static void place(struct slot *s, uint64_t *seed)
{
	uint8_t code[SIZE_MOST];
	uint32_t number = 1 + (uint32_t)(test_random(seed) >> 33);
	int err;

	s->size = TEST_CODE + (uint32_t)(test_random(seed) % (test_random(seed) % 8 ? 200 : SIZE_MOST - TEST_CODE));
	write_code(code, number, s->size);
	if (test_random(seed) % 4) {
		INSIST(err, execmem_place(domain, EXECMEM_TEXT, code, s->size, 16, NULL, &s->address));
	} else { /* a fork may come between */
		err = execmem_alloc_in(domain, EXECMEM_TEXT, s->size, 16, test_random(seed) % 2 ? "named" : NULL, &s->address);
		EXPECT(err == 0);
		INSIST(err, execmem_fill(s->address, code, s->size));
	}
	EXPECT(err == 0);
	EXPECT(test_call(s->address) == number);
	atomic_store(&s->number, number);
}

static void replace_batch(struct worker *w)
{
	uint64_t addresses[16];
	size_t from = test_random(&w->seed) % (SLOTS - 16), count = 0, done = 0;
	int err;

	for (size_t i = from; i < from + 16; i++)
		if (atomic_exchange(&w->slots[i].number, 0))
			addresses[count++] = (uintptr_t)w->slots[i].address;
	do {
		err = execmem_free_many(domain, count - done, addresses + done);
		done += err == EXECMEM_EBUSY ? execmem_error_index() : 0;
	} while (err == EXECMEM_EBUSY && mode == EXECMEM_MODE_FLIP);
	EXPECT(err == 0);
}

static void work_once(struct worker *w)
{
	struct slot *s = &w->slots[test_random(&w->seed) % SLOTS];
	const struct worker *other = &workers[test_random(&w->seed) % THREADS];

	expect_slot(s);
	if (other == w)
		expect_slot(&other->slots[test_random(&w->seed) % SLOTS]);
	drop(s);
	place(s, &w->seed);
	if (test_random(&w->seed) % 64 == 0)
		replace_batch(w);
	atomic_fetch_add(&operations, 1);
}

static void *work(void *argument)
{
	while (!atomic_load(&stop))
		work_once(argument);
	return NULL;
}

static void *work_a_little(void *argument)
{
	for (int i = 0; i < ROUNDS; i++)
		work_once(argument);
	return NULL;
}

static void start_threads(void *(*what)(void *))
{
	for (int i = 0; i < THREADS; i++)
		test_begin(&workers[i].thread, what, &workers[i]);
}

static void join_threads(void)
{
	for (int i = 0; i < THREADS; i++)
		EXPECT(pthread_join(workers[i].thread, NULL) == 0);
}

/* What is inherited runs, cannot be written, and can be freed once. */
static void use_inherited(uint64_t *seed)
{
	for (int t = 0; t < THREADS; t++)
		for (int i = 0; i < SLOTS; i++) {
			struct slot *s = &workers[t].slots[i];
			uint32_t number = atomic_load(&s->number);
			uint8_t code[TEST_CODE];
			int err;

			expect_slot(s);
			if (!number || test_random(seed) % 4)
				continue;
			write_code(code, number ^ 1, sizeof code);
			INSIST(err, execmem_fill(s->address, code, sizeof code));
			EXPECT(err == (is_shared() ? EXECMEM_EFORKED : 0));
			EXPECT(test_call(s->address) == (is_shared() ? number : number ^ 1));
			INSIST(err, execmem_free_in(domain, s->address));
			EXPECT(err == 0);
			EXPECT(execmem_free_in(domain, s->address) == EXECMEM_EFREED);
			EXPECT(!is_shared() || test_call(s->address) == number); /* as it was, for the parent */
			atomic_store(&s->number, 0);
		}
}

static void live_as_child(uint64_t seed, int depth);

static void fork_child(uint64_t seed, int depth)
{
	pid_t child = fork();

	EXPECT(child >= 0);
	if (child == 0) {
		alarm(60);
		live_as_child(seed, depth);
		_exit(0);
	}
}

static void wait_child(void)
{
	int status;

	EXPECT(wait(&status) > 0);
	if (status)
		fprintf(stderr, "a child ended with status %#x (%s)\n", (unsigned int)status, test_context);
	EXPECT(status == 0);
}

static void live_as_child(uint64_t seed, int depth)
{
	use_inherited(&seed);
	if (test_random(&seed) % 3 == 0) {
		start_threads(work_a_little);
		join_threads();
	} else {
		work_a_little(&workers[test_random(&seed) % THREADS]);
	}
	EXPECT_LAWFUL(domain);
	EXPECT_LAWFUL(NULL);
	if (depth < 2 && test_random(&seed) % 8 == 0) {
		fork_child(seed, depth + 1);
		work_a_little(&workers[0]);
		wait_child();
		EXPECT_LAWFUL(domain);
	}
	if (test_random(&seed) % 4 == 0)
		EXPECT(execmem_domain_close(domain, 1) == 0);
}

static int count_descriptors(void)
{
	DIR *directory = opendir("/proc/self/fd");
	int count = 0;

	EXPECT(directory != NULL);
	while (readdir(directory))
		count++;
	closedir(directory);
	return count;
}

static void expect_nothing_left(void)
{
	execmem_stats stats;

	for (int t = 0; t < THREADS; t++)
		for (int i = 0; i < SLOTS; i++) {
			expect_slot(&workers[t].slots[i]);
			drop(&workers[t].slots[i]);
		}
	EXPECT_SOON(execmem_domain_stats(domain, &stats) == 0 && stats.held_blocks == 0);
	EXPECT_LAWFUL(domain);
	EXPECT(stats.live_blocks == 0 && stats.live_bytes == 0 && stats.used_bytes == 0);
	EXPECT(stats.packs <= THREADS + 2); /* the first of each shard, and a spare */
}

static void forks(int how_many)
{
	execmem_options options = {.name = "forks", .write_mode = mode};
	uint64_t seed = 20260101 + (uint64_t)mode;
	int descriptors = count_descriptors(), children = 0;
	execmem_stats stats;

	EXPECT(execmem_domain_open(&options, &domain) == 0);
	memset(workers, 0, sizeof workers);
	for (int t = 0; t < THREADS; t++)
		workers[t].seed = seed + 1 + (uint64_t)t;
	atomic_store(&stop, false);
	atomic_store(&operations, 0);
	start_threads(work);
	for (int i = 0; i < how_many; i++) {
		snprintf(test_context, sizeof test_context, "mode %s, fork %d", execmem_mode_name(mode), i);
		fork_child(test_random(&seed) | 1, 0);
		for (children++; children >= (int)(1 + test_random(&seed) % CHILDREN); children--)
			wait_child();
		if (i % (how_many / 8 + 1) == 0)
			EXPECT_LAWFUL(domain);
	}
	for (; children > 0; children--)
		wait_child();
	atomic_store(&stop, true);
	join_threads();
	EXPECT_LAWFUL(domain);
	expect_nothing_left();
	EXPECT(execmem_domain_close(domain, 0) == 0);
	/* The first looks whether children are left, and closes what it asked by. */
	EXPECT_SOON(execmem_domain_stats(NULL, &stats) == 0 && count_descriptors() == descriptors);
	printf("%s: %d forks, %llu operations beside them\n", execmem_mode_name(mode), how_many, (unsigned long long)operations);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	int how_many = test_amount(argc, argv, 120, 3);

	EXPECT(execmem_domain_root() != NULL);
	for (mode = EXECMEM_MODE_SYSCALL; mode < EXECMEM_MODES; mode++)
		if (test_takes_mode(mode))
			forks(mode == EXECMEM_MODE_FLIP ? how_many / 4 + 1 : how_many);
	puts("ok");
	return 0;
}
