/* test_threads: many threads on one domain: each with its own blocks, freeing each other's, asking, being closed under way. */
#include "test.h"

#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

enum { THREADS = 20, SLOTS = 64, SIZE_MAX_ = 20000 }; /* more threads than shards */

static unsigned char bytes[SIZE_MAX_];
static execmem_domain *domain;
static _Atomic uintptr_t board[THREADS * SLOTS]; /* blocks that anybody may take and free */
static atomic_int stop;
static int rounds;
static int usual; /* the write mode where one will do */

static size_t draw_size(uint64_t *random)
{
	uint64_t r = test_random(random);

	return r % 16 ? 1 + r / 16 % 900 : r % 512 ? 1 + r / 512 % 6000 : 1 + r / 512 % SIZE_MAX_;
}

/* Takes what lies on a random place of the board, sees that it is whole, frees it, and puts a new block there. */
static void *trade(void *arg)
{
	uint64_t random = 0x9E3779B97F4A7C15u * ((uintptr_t)arg + 1);

	for (int i = 0; i < rounds; i++) {
		_Atomic uintptr_t *place = &board[test_random(&random) % (THREADS * SLOTS)];
		unsigned char *taken = (unsigned char *)atomic_exchange(place, 0);
		size_t size = draw_size(&random);
		void *made = NULL;

		if (taken) {
			execmem_info info;

			EXPECT(execmem_find(taken, &info) == 0 && info.address == (uintptr_t)taken);
			EXPECT(memcmp(taken, bytes, info.size) == 0);
			EXPECT((random % 2 ? execmem_free(taken) : execmem_free_in(domain, taken)) == 0);
		}
		if (random % 8 == 0) { /* in two steps, and named */
			EXPECT(execmem_alloc_in(domain, EXECMEM_TEXT, size, 16, "a name that takes more than one cell", &made) == 0);
			EXPECT(execmem_fill(made, bytes, size) == 0);
		} else {
			EXPECT(execmem_place(domain, EXECMEM_TEXT, bytes, size, 16, NULL, &made) == 0);
		}
		made = (void *)atomic_exchange(place, (uintptr_t)made);
		if (made)
			EXPECT(execmem_free_in(domain, made) == 0);
	}
	return NULL;
}

/* Batches whose blocks lie in whatever shards. */
static void *trade_batches(void *arg)
{
	uint64_t random = 77 + (uintptr_t)arg;

	while (!atomic_load(&stop)) {
		uint64_t offsets[33] = {0}, mine[64];
		size_t count = 32;

		for (int i = 0; i < 32; i++)
			offsets[i + 1] = offsets[i] + 1 + test_random(&random) % 500;
		EXPECT(execmem_place_many(domain, EXECMEM_TEXT, 32, bytes, offsets, 16, NULL, mine) == 0);
		for (int i = 0; i < 32; i++) {
			uintptr_t other = atomic_exchange(&board[test_random(&random) % (THREADS * SLOTS)], 0);

			EXPECT(memcmp((void *)(uintptr_t)mine[i], bytes + offsets[i], offsets[i + 1] - offsets[i]) == 0);
			if (other)
				mine[count++] = other;
		}
		mine[count] = mine[0]; /* named twice: refused, and nothing is freed */
		if (count < 64)
			EXPECT(execmem_free_many(domain, count + 1, mine) == EXECMEM_EFREED && execmem_error_index() == count);
		EXPECT(execmem_free_many(domain, count, mine) == 0);
	}
	return NULL;
}

static void *ask(void *arg)
{
	(void)arg;
	while (!atomic_load(&stop)) {
		execmem_stats stats;

		EXPECT_LAWFUL(domain);
		EXPECT(execmem_domain_stats(domain, &stats) == 0);
		EXPECT(execmem_domain_limit(domain, stats.charged_bytes + (512 << 20)) == 0);
		usleep(2000);
	}
	return NULL;
}

static void run(int mode, int threads)
{
	execmem_options options = {.name = "threads", .write_mode = mode};
	pthread_t thread[THREADS], asker, batcher;
	execmem_shard sum;

	snprintf(test_context, sizeof test_context, "mode %s, %d threads", execmem_mode_name(mode), threads);
	EXPECT(execmem_domain_open(&options, &domain) == 0);
	atomic_store(&stop, 0);
	for (int i = 0; i < threads; i++)
		EXPECT(pthread_create(&thread[i], NULL, trade, (void *)(uintptr_t)i) == 0);
	EXPECT(pthread_create(&asker, NULL, ask, NULL) == 0);
	EXPECT(pthread_create(&batcher, NULL, trade_batches, NULL) == 0);
	for (int i = 0; i < threads; i++)
		pthread_join(thread[i], NULL);
	atomic_store(&stop, 1);
	pthread_join(asker, NULL);
	pthread_join(batcher, NULL);
	EXPECT_LAWFUL(domain);
	for (int i = 0; i < THREADS * SLOTS; i++) {
		void *left = (void *)atomic_exchange(&board[i], 0);

		if (left)
			EXPECT(execmem_free_in(domain, left) == 0);
	}
	EXPECT_LAWFUL(domain);
	EXPECT(execmem_domain_count(domain, &sum) == 0 && sum.allocs == sum.frees && sum.used_bytes == 0);
	EXPECT(execmem_domain_close(domain, 0) == 0);
}

/* ---- a shard does not hoard ---- */

static void *fill_and_free(void *arg)
{
	static void *blocks[16000];

	for (int i = 0; i < 16000; i++)
		EXPECT(execmem_place(domain, EXECMEM_TEXT, bytes, 900, 16, NULL, &blocks[i]) == 0);
	for (int i = 0; i < 16000; i++)
		if (i % 40) /* every pack keeps some */
			EXPECT(execmem_free_in(domain, blocks[i]) == 0);
	(void)arg;
	return NULL;
}

static void one_takes_over_what_another_left(void)
{
	execmem_options options = {.name = "heirs", .write_mode = usual};
	execmem_stats before, after;
	pthread_t thread;
	void *out;

	snprintf(test_context, sizeof test_context, "taking over");
	EXPECT(execmem_domain_open(&options, &domain) == 0);
	EXPECT(pthread_create(&thread, NULL, fill_and_free, NULL) == 0);
	pthread_join(thread, NULL);
	EXPECT(execmem_domain_stats(domain, &before) == 0);
	for (int i = 0; i < 9000; i++)
		EXPECT(execmem_place(domain, EXECMEM_TEXT, bytes, 900, 16, NULL, &out) == 0);
	EXPECT_LAWFUL(domain);
	EXPECT(execmem_domain_stats(domain, &after) == 0);
	EXPECT(after.packs <= before.packs + 1); /* a small one of its own, then those that stood nearly empty */
	EXPECT(execmem_domain_close(domain, 1) == 0);
}

static void *place_one(void *arg)
{
	void *out = NULL;

	EXPECT(execmem_place(domain, EXECMEM_TEXT, bytes, (uintptr_t)arg, 16, NULL, &out) == 0);
	return out;
}

static void place_elsewhere(uintptr_t size)
{
	pthread_t thread;

	EXPECT(pthread_create(&thread, NULL, place_one, (void *)size) == 0);
	pthread_join(thread, NULL);
}

static void a_full_window_is_shared(void)
{
	execmem_options options = {.name = "narrow", .write_mode = usual, .window = 2 << 20};
	void *out[4000];
	int placed = 0;

	snprintf(test_context, sizeof test_context, "a window of one pack");
	EXPECT(execmem_domain_open(&options, &domain) == 0);
	EXPECT(execmem_place(domain, EXECMEM_TEXT, bytes, 64, 16, NULL, &out[0]) == 0);
	place_elsewhere(64); /* a small pack changes hands */
	EXPECT_LAWFUL(domain);
	place_elsewhere(SIZE_MAX_); /* and grows there */
	EXPECT(execmem_domain_close(domain, 1) == 0);
	options.window = 8 << 20;
	EXPECT(execmem_domain_open(&options, &domain) == 0);
	for (; placed < 4000 && execmem_place(domain, EXECMEM_TEXT, bytes, 2200, 16, NULL, &out[placed]) == 0; placed++)
		;
	EXPECT(execmem_error_code() == EXECMEM_EWINDOW);
	for (int i = 0; i < placed; i += 9) /* not enough for anybody to have plenty */
		EXPECT(execmem_free_in(domain, out[i]) == 0);
	place_elsewhere(2200);
	EXPECT_LAWFUL(domain);
	EXPECT(execmem_domain_close(domain, 1) == 0);
}

/* ---- an aligned block waits for its pack ---- */

static void *place_aligned(void *arg)
{
	void *out;

	(void)arg;
	for (int i = 0; i < rounds / 100 + 3; i++)
		EXPECT(execmem_alloc_in(domain, EXECMEM_TEXT, 1 << 20, 4096, NULL, &out) == 0);
	atomic_store(&stop, 1);
	return NULL;
}

static void what_waits_is_counted(void)
{
	execmem_options options = {.name = "aligned", .write_mode = usual};
	pthread_t thread;

	snprintf(test_context, sizeof test_context, "aligned blocks");
	EXPECT(execmem_domain_open(&options, &domain) == 0);
	atomic_store(&stop, 0);
	EXPECT(pthread_create(&thread, NULL, place_aligned, NULL) == 0);
	while (!atomic_load(&stop)) {
		execmem_shard sum;

		EXPECT_LAWFUL(domain);
		EXPECT(execmem_domain_count(domain, &sum) == 0 && sum.allocs >= sum.frees);
	}
	pthread_join(thread, NULL);
	EXPECT(execmem_domain_close(domain, 1) == 0);
}

/* ---- closing while others are inside ---- */

static void *ask_until_closed(void *arg)
{
	(void)arg;
	while (execmem_domain_ledger(domain))
		(void)execmem_domain_check(domain);
	return NULL;
}

/* Whoever asks while it closes leaves no lock behind. */
static void closed_while_asked(void)
{
	execmem_options options = {.name = "asked", .write_mode = usual};
	pthread_t thread[3];
	void *out;

	snprintf(test_context, sizeof test_context, "asked while closing");
	for (int i = 0; i < rounds / 20 + 10; i++) {
		EXPECT(execmem_domain_open(&options, &domain) == 0);
		for (int t = 0; t < 3; t++)
			EXPECT(pthread_create(&thread[t], NULL, ask_until_closed, NULL) == 0);
		EXPECT(execmem_domain_close(domain, 1) == 0);
		EXPECT(execmem_place(domain, EXECMEM_TEXT, bytes, 64, 16, NULL, &out) == EXECMEM_ECLOSED);
		for (int t = 0; t < 3; t++)
			pthread_join(thread[t], NULL);
	}
}

static void *place_until_closed(void *arg)
{
	uint64_t random = 5 + (uintptr_t)arg;
	void *out;
	int err;

	while ((err = execmem_place(domain, EXECMEM_TEXT, bytes, 1 + test_random(&random) % SIZE_MAX_, 16, NULL, &out)) == 0)
		;
	EXPECT(err == EXECMEM_ECLOSED);
	return NULL;
}

static void close_under_way(int mode)
{
	execmem_options options = {.name = "closing", .write_mode = mode};
	pthread_t thread[4];

	snprintf(test_context, sizeof test_context, "closing, mode %s", execmem_mode_name(mode));
	for (int i = 0; i < rounds / 400 + 2; i++) {
		EXPECT(execmem_domain_open(&options, &domain) == 0);
		for (int t = 0; t < 4; t++)
			EXPECT(pthread_create(&thread[t], NULL, place_until_closed, (void *)(uintptr_t)t) == 0);
		usleep(1000 + i * 500);
		EXPECT(execmem_domain_close(domain, 1) == 0);
		for (int t = 0; t < 4; t++)
			pthread_join(thread[t], NULL);
	}
}

int main(int argc, char **argv)
{
	static const int modes[] = {EXECMEM_MODE_ALIAS, EXECMEM_MODE_SYSCALL, EXECMEM_MODE_PKEY};

	rounds = test_amount(argc, argv, 6000, 150);
	for (size_t i = 0; i < sizeof bytes; i++)
		bytes[i] = (unsigned char)(i * 7 + i / 256);
	for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++) {
		if (!test_takes_mode(modes[i]))
			continue;
		if (!usual)
			run(usual = modes[i], 2);
		run(modes[i], THREADS);
		close_under_way(modes[i]);
	}
	one_takes_over_what_another_left();
	a_full_window_is_shared();
	what_waits_is_counted();
	closed_while_asked();
	puts("ok");
	return 0;
}
