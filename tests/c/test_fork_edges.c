/* test_fork_edges: what can go wrong round a fork, one case each: news that a fork would swallow, times that are the same or have wrapped,
 * memory and descriptors that are refused or taken away, packs with held blocks that change hands.
 */
#include "test.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BLOCKS = 30000, BLOCKS_OF_A_KIND = 100 };

static const uint8_t code[6] = {0xB8, 1, 0, 0, 0, 0xC3}; /* x86-64: mov eax, 1; ret */
static _Atomic uint64_t clock_ahead_ms; /* the library's clock shows later than it is */
static execmem_domain *domain;

int clock_gettime(clockid_t clock, struct timespec *now)
{
	int result = (int)syscall(SYS_clock_gettime, clock, now);

	if (clock == CLOCK_MONOTONIC_COARSE) {
		uint64_t ms = clock_ahead_ms + (uint64_t)now->tv_nsec / 1000000;

		now->tv_sec += (time_t)(ms / 1000);
		now->tv_nsec = (long)(ms % 1000 * 1000000);
	}
	return result;
}

static void later(uint64_t ms)
{
	atomic_fetch_add(&clock_ahead_ms, ms);
}

static void open_domain(int mode, uint64_t window)
{
	execmem_options options = {.name = "edges", .write_mode = mode, .window = window};

	EXPECT(execmem_domain_open(&options, &domain) == 0);
}

static void close_domain(void)
{
	EXPECT_LAWFUL(domain);
	EXPECT(execmem_domain_close(domain, 1) == 0);
}

static void *place(void)
{
	void *address;

	EXPECT(execmem_place(domain, EXECMEM_TEXT, code, sizeof code, 16, NULL, &address) == 0);
	return address;
}

static execmem_stats told(void)
{
	execmem_stats stats;

	EXPECT(execmem_domain_stats(domain, &stats) == 0);
	return stats;
}

static uint64_t held(void)
{
	return told().held_blocks;
}

/* A child that lives until end(). */
static pid_t fork_sleeper(void)
{
	pid_t child = fork();

	EXPECT(child >= 0);
	if (child == 0) {
		alarm(60);
		for (;;)
			pause();
	}
	return child;
}

static void end(pid_t child)
{
	EXPECT(kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child);
	later(20);
}

static void expect_good_end(pid_t child)
{
	int status;

	EXPECT(waitpid(child, &status, 0) == child && status == 0);
}

/* A later child that never saw a block does not keep it. */
static void test_a_fork_does_not_swallow_the_end_of_another_child(void)
{
	void *address;
	pid_t first, second;

	open_domain(EXECMEM_MODE_SYSCALL, 0);
	address = place();
	first = fork_sleeper();
	later(20);
	EXPECT(execmem_free(address) == 0 && held() == 1);
	end(first);
	second = fork_sleeper();
	later(20);
	EXPECT_SOON(held() == 0);
	end(second);
	close_domain();
}

/* Blocks that come after a fork, in the same tick of the clock or not, are the parent's alone. */
static void test_what_is_placed_after_a_fork_is_not_frozen(int mode)
{
	open_domain(mode, 0);
	for (int i = 0; i < 10; i++) {
		void *before = place(), *after;
		pid_t child = fork_sleeper(), other;

		after = place();
		EXPECT(execmem_fill(after, code, sizeof code) == 0);
		EXPECT(execmem_fill(before, code, sizeof code) == EXECMEM_EFORKED);
		other = fork_sleeper();
		EXPECT(execmem_fill(after, code, sizeof code) == EXECMEM_EFORKED);
		EXPECT(execmem_free(after) == 0 && execmem_free(before) == 0 && held() == 2);
		end(other);
		EXPECT_SOON(held() == 1); /* the first child saw only one of them */
		end(child);
		EXPECT_SOON(held() == 0);
	}
	close_domain();
}

/* A block without bytes may be filled piece by piece, also in one batch. */
static void test_a_reserved_block_is_filled_in_pieces(void)
{
	uint64_t offsets[] = {0, 6, 12}, where[2];
	uint8_t pieces[12];
	void *address;
	pid_t child;

	open_domain(EXECMEM_MODE_SYSCALL, 0);
	memcpy(pieces, code, 6);
	memcpy(pieces + 6, code, 6);
	EXPECT(execmem_alloc_in(domain, EXECMEM_TEXT, 18, 16, NULL, &address) == 0);
	later(20);
	child = fork_sleeper();
	where[0] = (uintptr_t)address;
	where[1] = where[0] + 6;
	EXPECT(execmem_fill_many(domain, 2, where, pieces, offsets) == 0);
	EXPECT(execmem_fill((uint8_t *)address + 12, code, 6) == 0);
	EXPECT(execmem_free(address) == 0 && held() == 0);
	end(child);
	close_domain();
}

/* The times in records wrap after 49.7 days, and forks of days ago still count. */
static void test_a_child_keeps_its_code_when_the_time_has_wrapped(uint64_t before, uint64_t after)
{
	void *address;
	pid_t first, second;

	open_domain(EXECMEM_MODE_SYSCALL, 0);
	address = place();
	later(before);
	first = fork_sleeper();
	second = fork_sleeper();
	later(after);
	EXPECT(execmem_free(address) == 0 && held() == 1);
	end(second);
	EXPECT(held() == 1 && memcmp(address, code, sizeof code) == 0);
	end(first);
	EXPECT_SOON(held() == 0);
	close_domain();
}

/* A fork that could have no witness holds what was there, and nothing that came later. */
static void test_a_fork_without_a_witness_is_one_of_many(void)
{
	pid_t first, second;
	void *old;

	open_domain(EXECMEM_MODE_SYSCALL, 0);
	old = place();
	first = fork_sleeper();
	execmem_test_script("reserve=F");
	second = fork_sleeper();
	EXPECT(execmem_test_script(NULL) == 1);
	end(first);
	end(second);
	for (int i = 0; i < 10; i++) {
		void *address = place();

		EXPECT(execmem_fill(address, code, sizeof code) == 0 && execmem_free(address) == 0 && held() == 0);
		later(20);
	}
	EXPECT(execmem_fill(old, code, sizeof code) == EXECMEM_EFORKED);
	close_domain();
}

/* The alias cannot be cut in the child: then it answers so. The witness cannot be unmapped in the parent: later it can. */
static void test_unmapping_is_refused(void)
{
	void *address;
	pid_t child;

	open_domain(EXECMEM_MODE_ALIAS, 0);
	address = place();
	execmem_test_script("unview=F*");
	child = fork();
	if (child == 0) {
		execmem_test_script(NULL);
		EXPECT(execmem_place(domain, EXECMEM_TEXT, code, sizeof code, 16, NULL, &address) == EXECMEM_EFORKED);
		EXPECT(memcmp(address, code, sizeof code) == 0 && execmem_domain_root() != NULL);
		_exit(0);
	}
	EXPECT(execmem_test_script(NULL) > 0);
	expect_good_end(child);
	later(20);
	EXPECT(execmem_free(address) == 0);
	EXPECT_SOON(held() == 0);
	close_domain();
}

static void *alloc_many(void *out)
{
	for (int i = 0; i < 8000; i++)
		EXPECT(execmem_alloc_in(domain, EXECMEM_TEXT, 64, 16, NULL, out) == 0);
	return NULL;
}

/* No shard counts what a pack with held blocks did not bring along. */
static void test_a_pack_with_held_blocks_changes_hands(void)
{
	static void *blocks[BLOCKS];
	const execmem_header *header;
	const execmem_shard *shards;
	pthread_t thread;
	pid_t child;
	void *last;

	open_domain(EXECMEM_MODE_SYSCALL, EXECMEM_PACK_SIZE);
	for (int i = 0; i < BLOCKS; i++)
		blocks[i] = place();
	for (int i = BLOCKS / 3; i < BLOCKS; i++)
		EXPECT(execmem_free(blocks[i]) == 0);
	child = fork_sleeper();
	for (int i = 0; i < BLOCKS / 6; i++)
		EXPECT(execmem_free(blocks[i]) == 0);
	EXPECT(held() == BLOCKS / 6);
	EXPECT(pthread_create(&thread, NULL, alloc_many, &last) == 0 && pthread_join(thread, NULL) == 0);
	EXPECT_LAWFUL(domain);
	header = execmem_domain_ledger(domain);
	shards = (const execmem_shard *)(const void *)((const uint8_t *)header + header->shards_offset);
	EXPECT(header->shards == 2 && shards[0].used_bytes == 0);
	EXPECT(shards[1].used_bytes == (8000 + BLOCKS / 6) * EXECMEM_CHUNK);
	end(child);
	EXPECT_SOON(held() == 0);
	close_domain();
}

/* A daemon that closes all descriptors and opens others: its own children are not told of books that are not there. */
static void live_as_daemon(const void *address)
{
	char log[5000] = "log";
	pid_t worker;
	void *mine;

	close_range(3, ~0u, 0);
	for (int i = 0; i < 12; i++) {
		int file = open("/tmp", O_TMPFILE | O_RDWR, 0600);

		EXPECT(file >= 0 && write(file, log, sizeof log) == sizeof log);
	}
	mine = place();
	EXPECT_LAWFUL(domain);
	worker = fork();
	if (worker == 0) {
		alarm(60);
		EXPECT(execmem_alloc_in(domain, EXECMEM_TEXT, 6, 16, NULL, &mine) == EXECMEM_EFORKED);
		EXPECT(memcmp(address, code, sizeof code) == 0 && execmem_alloc(6, 16) != NULL);
		_exit(0);
	}
	expect_good_end(worker);
}

static void test_a_daemon_closes_all_descriptors(void)
{
	void *address;
	pid_t child;

	open_domain(EXECMEM_MODE_SYSCALL, 0);
	address = place();
	child = fork();
	if (child == 0) {
		alarm(60);
		live_as_daemon(address);
		_exit(0);
	}
	expect_good_end(child);
	close_domain();
}

static void test_a_domain_closed_before_the_fork_is_closed_in_the_child(void)
{
	void *address;
	pid_t child;

	open_domain(EXECMEM_MODE_SYSCALL, 0);
	close_domain();
	child = fork();
	if (child == 0) {
		EXPECT(execmem_alloc_in(domain, EXECMEM_TEXT, 6, 16, NULL, &address) == EXECMEM_ECLOSED);
		EXPECT(execmem_domain_close(domain, 1) == EXECMEM_ECLOSED);
		_exit(0);
	}
	expect_good_end(child);
}

/* Bytes that are open for blocks, by the ledger: in packs of this process. */
static uint64_t open_bytes(void)
{
	const execmem_header *header = execmem_domain_ledger(domain);
	const execmem_pack *packs = (const execmem_pack *)(const void *)((const uint8_t *)header + header->packs_offset);
	uint64_t chunks = 0;

	for (uint32_t i = 0; i < header->packs_top; i++)
		chunks += packs[i].inherited ? 0 : packs[i].usable_chunks;
	return chunks * EXECMEM_CHUNK;
}

/* A child has no use of what is free in its parent's packs, and does not pay for them. */
static void expect_own_figures(int mode, void *inherited, uint64_t parent_held)
{
	bool is_private = mode == EXECMEM_MODE_PROCMEM || mode == EXECMEM_MODE_FLIP;
	uint64_t inherited_bytes = is_private ? 0 : (uint64_t)BLOCKS_OF_A_KIND * EXECMEM_CHUNK, own;
	execmem_stats stats = told();

	EXPECT(stats.live_blocks == 2 * BLOCKS_OF_A_KIND && stats.used_bytes == 2 * BLOCKS_OF_A_KIND * EXECMEM_CHUNK);
	EXPECT(stats.idle_bytes == open_bytes() - (stats.used_bytes - inherited_bytes));
	EXPECT(stats.held_blocks == parent_held && stats.held_bytes == parent_held * EXECMEM_CHUNK);
	EXPECT(is_private || (stats.idle_bytes < EXECMEM_PACK_SIZE && stats.largest_free == 0)); /* of data alone */
	own = stats.resident_bytes;
	place();
	stats = told();
	EXPECT(is_private || (stats.largest_free > 0 && stats.resident_bytes > own && stats.resident_bytes < own + EXECMEM_PACK_SIZE));
	EXPECT(stats.idle_bytes == open_bytes() - (stats.used_bytes - inherited_bytes));
	EXPECT(execmem_free(inherited) == 0);
	stats = told();
	EXPECT(stats.held_blocks == parent_held + !is_private && stats.held_bytes == stats.held_blocks * EXECMEM_CHUNK);
	EXPECT(stats.idle_bytes == open_bytes() - (stats.used_bytes - inherited_bytes) - (is_private ? 0 : EXECMEM_CHUNK));
}

static void test_figures_of_each_process_are_of_its_own_memory(int mode)
{
	uint64_t many = mode == EXECMEM_MODE_PROCMEM || mode == EXECMEM_MODE_FLIP ? 0 : BLOCKS_OF_A_KIND / 2;
	void *blocks[BLOCKS_OF_A_KIND * 3 / 2], *data;
	pid_t first, child;

	snprintf(test_context, sizeof test_context, "mode %s", execmem_mode_name(mode));
	open_domain(mode, 0);
	for (int i = 0; i < BLOCKS_OF_A_KIND; i++)
		EXPECT(execmem_place(domain, EXECMEM_DATA, code, sizeof code, 16, NULL, &data) == 0);
	for (int i = 0; i < BLOCKS_OF_A_KIND * 3 / 2; i++)
		blocks[i] = place();
	EXPECT(told().idle_bytes == open_bytes() - told().used_bytes && told().held_bytes == 0);
	first = fork_sleeper();
	later(20);
	for (int i = BLOCKS_OF_A_KIND; i < BLOCKS_OF_A_KIND * 3 / 2; i++)
		EXPECT(execmem_free(blocks[i]) == 0);
	EXPECT(held() == many && told().held_bytes == many * EXECMEM_CHUNK);
	EXPECT(told().idle_bytes == open_bytes() - told().used_bytes - told().held_bytes);
	child = fork();
	if (child == 0) {
		expect_own_figures(mode, blocks[0], many);
		EXPECT_LAWFUL(domain);
		_exit(0);
	}
	expect_good_end(child);
	end(first);
	EXPECT_SOON(held() == 0);
	EXPECT(told().held_bytes == 0 && told().idle_bytes == open_bytes() - told().used_bytes);
	close_domain();
}

static void test_a_block_larger_than_a_pack_is_held_whole(void)
{
	static const uint8_t large[3 << 20] = {0xC3};
	void *address;
	pid_t child;

	open_domain(EXECMEM_MODE_SYSCALL, 0);
	EXPECT(execmem_place(domain, EXECMEM_TEXT, large, sizeof large, 16, NULL, &address) == 0);
	place();
	child = fork_sleeper();
	later(20);
	EXPECT(execmem_free(address) == 0 && held() == 1 && told().held_bytes == sizeof large);
	EXPECT(told().idle_bytes == open_bytes() - told().used_bytes - told().held_bytes);
	end(child);
	EXPECT_SOON(held() == 0);
	EXPECT(told().held_bytes == 0);
	close_domain();
}

static atomic_bool go;

static void *use_first(void *unused)
{
	while (!go)
		;
	EXPECT(execmem_domain_root() != NULL);
	return unused;
}

/* A process that forks while another thread of it uses the library for the first time. */
static void test_a_fork_during_the_first_use(int races)
{
	for (int i = 0; i < races; i++) {
		pid_t process = fork(), child;
		pthread_t thread;

		if (process > 0) {
			expect_good_end(process);
			continue;
		}
		test_begin(&thread, use_first, NULL);
		go = true;
		for (volatile int turn = 0; turn < i * 1000; turn++)
			;
		child = fork();
		if (child == 0) {
			alarm(60);
			_exit(execmem_domain_root() ? 0 : 1);
		}
		expect_good_end(child);
		EXPECT(pthread_join(thread, NULL) == 0);
		_exit(0);
	}
}

int main(int argc, char **argv)
{
	test_a_fork_during_the_first_use(test_amount(argc, argv, 40, 10)); /* before the library is used */
	test_a_fork_does_not_swallow_the_end_of_another_child();
	test_what_is_placed_after_a_fork_is_not_frozen(EXECMEM_MODE_SYSCALL);
	test_what_is_placed_after_a_fork_is_not_frozen(EXECMEM_MODE_ALIAS);
	test_a_reserved_block_is_filled_in_pieces();
	test_a_child_keeps_its_code_when_the_time_has_wrapped((1ull << 32) - 100, 200);
	test_a_child_keeps_its_code_when_the_time_has_wrapped((1ull << 32) + 100000, 20);
	test_unmapping_is_refused();
	test_a_pack_with_held_blocks_changes_hands();
	test_a_daemon_closes_all_descriptors();
	test_a_domain_closed_before_the_fork_is_closed_in_the_child();
	for (int mode = EXECMEM_MODE_SYSCALL; mode < EXECMEM_MODES; mode++)
		if (test_takes_mode(mode))
			test_figures_of_each_process_are_of_its_own_memory(mode);
	test_a_block_larger_than_a_pack_is_held_whole();
	test_a_fork_without_a_witness_is_one_of_many(); /* the last: its child is never taken to be gone */
	puts("ok");
	return 0;
}
