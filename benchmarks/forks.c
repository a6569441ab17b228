/* forks: what a fork costs a process that keeps code in execmem, beside processes that do not.
 *
 *     forks [--live 10000] [--rounds 11]
 *
 * Each subject is a process of its own that was forked before anything was allocated: `bare` has nothing, `plain` touches anonymous memory
 * on 4 KB pages, as much as `syscall` has resident with its bookkeeping, and `syscall` and `alias` have so many live blocks, of lognormal
 * sizes, in a domain of that write mode. They take turns, round by round. Prints a JSON object a line: a sample of one subject. forks.py
 * takes medians. What a sample means is told where it is measured. Cycles are CPU time; all else is time that passes.
 */
#include "execmem.h"
#include "harness/mix.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { ALIGN = 16, OWN_BLOCKS = 1000, OWN_CYCLES = 2000, CYCLES_MOST = 10000, FIGURES = 6, DRAINS = 3 };

extern char **environ;

struct figures {
	double value[FIGURES];
};

struct order {
	char what;       /* of measures[], or one of the two below */
	uint64_t amount; /* 'g', grow: blocks, or bytes of plain memory */
};

struct subject {
	const char *name;
	int mode; /* 0: no execmem */
	int orders, answers;
	pid_t process;
};

struct block {
	void *code;
	uint32_t size;
};

/* ---- what a subject has ---- */

static execmem_domain *domain;
static struct block *blocks;
static uint64_t live;
static struct rng rng;
static const struct mix *mix;
static unsigned char *source;
static uint32_t sizes[CYCLES_MOST], slots[CYCLES_MOST];

static void check(bool right, const char *what)
{
	if (!right) {
		fprintf(stderr, "forks: %s: %s; %s\n", what, strerror(errno), execmem_error_text());
		_exit(1);
	}
}

static double clock_us(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static double wall(void)
{
	return clock_us(CLOCK_MONOTONIC);
}

static double cpu(void)
{
	return clock_us(CLOCK_PROCESS_CPUTIME_ID);
}

static void place(struct block *b, uint32_t size)
{
	check(execmem_place(domain, EXECMEM_TEXT, source, size, ALIGN, NULL, &b->code) == 0, "place");
	b->size = size;
}

static void release(const struct block *b)
{
	check(execmem_free_in(domain, b->code) == 0, "free");
}

/* Nanoseconds a cycle: a random one of the blocks is freed and another is placed. */
static double cycle(struct block *of, uint64_t count, uint32_t cycles)
{
	double start;

	for (uint32_t i = 0; i < cycles; i++) {
		slots[i] = rng_below(&rng, (uint32_t)count);
		sizes[i] = mix_draw(mix, &rng);
	}
	start = cpu();
	for (uint32_t i = 0; i < cycles; i++) {
		release(&of[slots[i]]);
		place(&of[slots[i]], sizes[i]);
	}
	return (cpu() - start) * 1e3 / cycles;
}

static uint32_t cycles_of_round(void)
{
	return live / 2 < CYCLES_MOST ? (uint32_t)(live / 2) : CYCLES_MOST;
}

static execmem_stats stats(void)
{
	execmem_stats out;

	check(execmem_domain_stats(domain, &out) == 0, "stats");
	return out;
}

/* Held blocks by the ledger: stats() would look whether children are left, and give back. */
static uint64_t held_by_ledger(void)
{
	const execmem_header *h = execmem_domain_ledger(domain);
	const execmem_pack *packs = (const execmem_pack *)(const void *)((const char *)h + h->packs_offset);
	uint64_t held = 0;

	for (uint32_t i = 0; i < h->packs_top; i++)
		held += packs[i].held;
	return held;
}

static void fill_blocks(void)
{
	for (uint64_t i = 0; i < live; i++)
		place(&blocks[i], mix_draw(mix, &rng));
}

/* ---- children ---- */

static void make_pipe(int ends[2], int flags)
{
	check(pipe2(ends, flags) == 0, "pipe");
}

static void expect_good_end(pid_t child)
{
	int status;

	check(waitpid(child, &status, 0) == child && status == 0, "a child's end");
}

struct sleeper {
	pid_t process;
	int gate; /* lives until this is closed */
};

static struct sleeper fork_sleeper(void)
{
	struct sleeper s;
	int ends[2];
	char none;

	make_pipe(ends, 0);
	s.process = fork();
	check(s.process >= 0, "fork");
	if (s.process == 0) {
		close(ends[1]);
		_exit(read(ends[0], &none, 1) == 0 ? 0 : 1);
	}
	close(ends[0]);
	s.gate = ends[1];
	return s;
}

static void end_sleeper(const struct sleeper *s)
{
	close(s->gate);
	expect_good_end(s->process);
}

/* ---- what is measured ---- */

/* A fork of which nothing comes: until the call has returned in the parent, in the child, and until the child has been waited for. */
static void measure_fork(struct figures *out)
{
	double start, back, in_child;
	int ends[2];
	pid_t child;

	make_pipe(ends, 0);
	start = wall();
	child = fork();
	check(child >= 0, "fork");
	if (child == 0) {
		in_child = wall();
		_exit(write(ends[1], &in_child, sizeof in_child) == sizeof in_child ? 0 : 1);
	}
	back = wall();
	expect_good_end(child);
	out->value[2] = wall() - start;
	check(read(ends[0], &in_child, sizeof in_child) == sizeof in_child, "read");
	close(ends[0]);
	close(ends[1]);
	out->value[0] = back - start;
	out->value[1] = in_child - start;
}

/* Another program, by posix_spawn and by fork and execve: until it runs, which closes the pipe. */
static void measure_spawn(struct figures *out)
{
	char *words[] = {"true", NULL}, none;
	double start;
	int ends[2];
	pid_t child;

	start = wall();
	check(posix_spawn(&child, "/bin/true", NULL, NULL, words, environ) == 0, "posix_spawn");
	out->value[0] = wall() - start;
	expect_good_end(child);
	make_pipe(ends, O_CLOEXEC);
	start = wall();
	child = fork();
	check(child >= 0, "fork");
	if (child == 0) {
		execve("/bin/true", words, environ);
		_exit(1);
	}
	close(ends[1]);
	check(read(ends[0], &none, 1) == 0, "read");
	out->value[1] = wall() - start;
	close(ends[0]);
	expect_good_end(child);
}

/* In a child: the first block of its own, the next, and cycles of its own blocks. */
static void measure_child(struct figures *out)
{
	static struct block own[OWN_BLOCKS];
	int ends[2];
	pid_t child;

	make_pipe(ends, 0);
	child = fork();
	check(child >= 0, "fork");
	if (child == 0) {
		double start = wall();

		place(&own[0], 64);
		out->value[0] = wall() - start;
		start = wall();
		place(&own[1], 64);
		out->value[1] = wall() - start;
		for (int i = 2; i < OWN_BLOCKS; i++)
			place(&own[i], mix_draw(mix, &rng));
		out->value[2] = cycle(own, OWN_BLOCKS, OWN_CYCLES);
		_exit(write(ends[1], out, sizeof *out) == sizeof *out ? 0 : 1);
	}
	close(ends[1]);
	check(read(ends[0], out, sizeof *out) == sizeof *out, "read");
	close(ends[0]);
	expect_good_end(child);
}

/* In the parent: cycles before a fork, while its child lives, and after what was held has been given back; what that took a block. */
static void measure_parent(struct figures *out)
{
	uint32_t cycles = cycles_of_round();
	struct sleeper child;
	double start;

	(void)cycle(blocks, live, cycles); /* others had the caches meanwhile */
	out->value[0] = cycle(blocks, live, cycles);
	child = fork_sleeper();
	out->value[1] = cycle(blocks, live, cycles);
	out->value[2] = (double)stats().held_blocks;
	end_sleeper(&child);
	start = cpu();
	check(stats().held_blocks == 0, "giving back");
	out->value[3] = out->value[2] > 0 ? (cpu() - start) * 1e3 / out->value[2] : 0;
	out->value[4] = cycle(blocks, live, cycles);
}

/* All is freed while a child lives, which then ends: how much was live and is held; and for a parent that goes on placing and freeing one
 * block, how long it takes from there until nothing is held, and how long the call took that gave it back. */
static void measure_drain(struct figures *out)
{
	struct sleeper child = fork_sleeper();
	double start, longest = 0;
	struct block one;
	execmem_stats now = stats();

	out->value[0] = (double)now.used_bytes;
	start = cpu();
	for (uint64_t i = 0; i < live; i++)
		release(&blocks[i]);
	out->value[1] = (cpu() - start) * 1e3 / (double)live;
	now = stats();
	check(now.used_bytes == 0, "freeing all");
	out->value[2] = (double)now.held_bytes;
	end_sleeper(&child);
	start = wall();
	while (held_by_ledger() > 0) {
		double call = wall();

		place(&one, 64);
		release(&one);
		call = wall() - call;
		longest = call > longest ? call : longest;
	}
	out->value[3] = wall() - start;
	out->value[4] = longest;
	out->value[5] = (double)stats().resident_bytes;
	fill_blocks();
}

static const struct {
	const char *what;
	void (*measure)(struct figures *);
	bool needs_code;
	const char *names[FIGURES];
} measures[] = {
	{"fork", measure_fork, false, {"fork_us", "child_us", "whole_us"}},
	{"spawn", measure_spawn, false, {"spawn_us", "fork_exec_us"}},
	{"child", measure_child, true, {"first_place_us", "next_place_us", "child_cycle_ns"}},
	{"parent", measure_parent, true, {"before_ns", "during_ns", "held_blocks", "give_back_ns", "after_ns"}},
	{"drain", measure_drain, true, {"used_bytes", "free_ns", "held_bytes", "until_free_us", "longest_us", "left_bytes"}},
};

static struct subject subjects[] = {
	{.name = "bare"},
	{.name = "plain"},
	{.name = "syscall", .mode = EXECMEM_MODE_SYSCALL},
	{.name = "alias", .mode = EXECMEM_MODE_ALIAS},
};
enum { SUBJECTS = sizeof subjects / sizeof subjects[0], MEASURES = sizeof measures / sizeof measures[0] };

/* ---- starting and asking one ---- */

/* Gets what it is to have; tells how much that is, in resident bytes and those of the bookkeeping. */
static void grow(const struct subject *s, uint64_t amount, struct figures *out)
{
	execmem_options options = {.name = "forks", .write_mode = s->mode};
	unsigned char *memory;
	execmem_stats now;

	*out = (struct figures){{0}};
	if (!s->mode) {
		if (amount == 0)
			return;
		memory = mmap(NULL, amount, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		check(memory != MAP_FAILED && madvise(memory, amount, MADV_NOHUGEPAGE) == 0, "plain memory");
		memset(memory, 1, amount);
		out->value[0] = (double)amount;
		return;
	}
	live = amount;
	mix = mix_find("lognormal");
	rng_seed(&rng, 1);
	blocks = calloc(live, sizeof *blocks);
	source = malloc(mix_max(mix));
	check(blocks && source, "memory");
	memset(source, 0xC3, mix_max(mix));
	check(execmem_domain_open(&options, &domain) == 0, "a domain");
	fill_blocks();
	(void)cycle(blocks, live, cycles_of_round());
	now = stats();
	out->value[0] = (double)now.resident_bytes;
	out->value[1] = (double)now.ledger_bytes;
}

static void serve(const struct subject *s, int orders, int answers)
{
	struct figures figures;
	struct order order;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (read(orders, &order, sizeof order) == sizeof order) {
		figures = (struct figures){{0}};
		if (order.what == 'g')
			grow(s, order.amount, &figures);
		else
			measures[(int)order.what].measure(&figures);
		if (write(answers, &figures, sizeof figures) != sizeof figures)
			break;
	}
	_exit(0);
}

static void start(struct subject *s)
{
	int orders[2], answers[2];

	make_pipe(orders, O_CLOEXEC);
	make_pipe(answers, O_CLOEXEC);
	s->process = fork();
	check(s->process >= 0, "fork");
	if (s->process == 0) {
		close(orders[1]);
		close(answers[0]);
		for (const struct subject *older = subjects; older < s; older++) { /* which would not end */
			close(older->orders);
			close(older->answers);
		}
		serve(s, orders[0], answers[1]);
	}
	close(orders[0]);
	close(answers[1]);
	s->orders = orders[1];
	s->answers = answers[0];
}

static struct figures ask(const struct subject *s, int what, uint64_t amount)
{
	struct order order = {(char)what, amount};
	struct figures out;

	check(write(s->orders, &order, sizeof order) == sizeof order, s->name);
	check(read(s->answers, &out, sizeof out) == sizeof out, s->name);
	return out;
}

/* ---- the run ---- */

static void sample(const struct subject *s, uint64_t of, int what)
{
	struct figures f;

	if (measures[what].needs_code && !s->mode)
		return;
	f = ask(s, what, 0);
	printf("{\"live\": %llu, \"subject\": \"%s\", \"what\": \"%s\"", (unsigned long long)of, s->name, measures[what].what);
	for (int i = 0; i < FIGURES && measures[what].names[i]; i++)
		printf(", \"%s\": %.3f", measures[what].names[i], f.value[i]);
	puts("}");
}

static void run(uint64_t of, int rounds)
{
	uint64_t plain = 0;

	for (int i = SUBJECTS; i-- > 0;) { /* plain knows then how much it is to have */
		struct subject *s = &subjects[i];
		struct figures f = ask(s, 'g', s->mode ? of : strcmp(s->name, "plain") == 0 ? plain : 0);

		if (s->mode == EXECMEM_MODE_SYSCALL)
			plain = (uint64_t)(f.value[0] + f.value[1]);
		printf("{\"live\": %llu, \"subject\": \"%s\", \"what\": \"memory\", \"resident_bytes\": %.0f, \"ledger_bytes\": %.0f}\n",
		       (unsigned long long)of, s->name, f.value[0], f.value[1]);
	}
	for (int round = 0; round < rounds; round++)
		for (int what = 0; what < MEASURES; what++)
			for (int i = 0; i < SUBJECTS; i++)
				if (measures[what].measure != measure_drain || round < DRAINS)
					sample(&subjects[i], of, what);
}

int main(int argc, char **argv)
{
	unsigned long long of = 10000;
	int rounds = 11;

	for (int i = 1; i + 1 < argc; i += 2) {
		if (strcmp(argv[i], "--live") == 0)
			of = strtoull(argv[i + 1], NULL, 10);
		else if (strcmp(argv[i], "--rounds") == 0)
			rounds = atoi(argv[i + 1]);
		else
			argc = 0;
	}
	if (argc % 2 == 0 || of < 2 || of > UINT32_MAX || rounds < 1) {
		fprintf(stderr, "usage: forks [--live n] [--rounds n]\n");
		return 2;
	}
	for (int i = 0; i < SUBJECTS; i++)
		start(&subjects[i]);
	run(of, rounds);
	for (int i = 0; i < SUBJECTS; i++) {
		close(subjects[i].orders);
		expect_good_end(subjects[i].process);
	}
	return 0;
}
