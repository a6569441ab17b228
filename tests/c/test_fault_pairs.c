/* test_fault_pairs: one row of a few hundred operations (model.h) for each write mode, under which system calls are refused: each call
 * of each kind with each error it may plausibly have; then two, the second among those that follow the first, so in what recovers from
 * it; then two anywhere. No law breaks, no block is lost or changed, and when all is closed nothing is left but
 * what was sealed, for which the row is chosen so that a domain is. That stays until its process ends, so there are many processes.
 *
 * usage: test_fault_pairs [stride [seed]]: 1 walks every occurrence (minutes), n every n-th; 1000 and more a few, in one mode
 */
#include "model.h"
#include "test.h"

#include <sys/wait.h>
#include <unistd.h>

enum { OPERATIONS = 300, AFTER = 8, CALLS_MAX = 4000, WINDOW_MAPPINGS = 16, RUNS = 150 };

static const struct {
	const char *call, *errors[5];
} kinds[] = {
	{"memfd", {"EMFILE", "ENFILE", "ENOMEM", "EPERM", "ENOSYS"}},
	{"resize", {"ENOSPC", "EFBIG", "EPERM", "ENOMEM", NULL}},
	{"discard", {"ENOSYS", "EPERM", "ENOMEM", "EINVAL", NULL}},
	{"write", {"ENOSPC", "EIO", "EPERM", "EFBIG", "ENOMEM"}},
	{"reserve", {"ENOMEM", "EEXIST", "EPERM", "EAGAIN", NULL}},
	{"view", {"ENOMEM", "EACCES", "EPERM", "EAGAIN", "ENODEV"}},
	{"unview", {"ENOMEM", "EPERM", "EAGAIN", NULL, NULL}},
	{"protect", {"EACCES", "ENOMEM", "EPERM", NULL, NULL}},
	{"hide", {"EINVAL", "ENOMEM", NULL, NULL, NULL}},
	{"collapse", {"EINVAL", "EAGAIN", "ENOMEM", "EBUSY", NULL}},
	{"populate", {"EFAULT", "ENOMEM", NULL, NULL, NULL}},
	{"scan", {"EINVAL", "EPERM", "ENOMEM", NULL, NULL}},
	{"maps", {"EACCES", "EMFILE", "ENOMEM", NULL, NULL}},
	{"random", {"EAGAIN", "ENOSYS", NULL, NULL, NULL}},
	{"sync", {"EPERM", "ENOSYS", NULL, NULL, NULL}},
	{"stop", {"EBUSY", "EPERM", "EMFILE", NULL, NULL}},
	{"seal", {"ENOSYS", "EPERM", "EACCES", "ENOMEM", NULL}},
	{"fseal", {"EPERM", "EBUSY", "EINVAL", "ENOSYS", NULL}},
	{"key", {"ENOSPC", "EINVAL", "ENOSYS", "EPERM", NULL}},
};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

static struct model_options row = {.operations = OPERATIONS, .faults = MODEL_FAULTS_GIVEN, .check_every = 60, .seals = 2};
static struct model_census before;

static struct told { /* by a process to the one that started it */
	long runs, refused;
	long next; /* the script to go on with; -1: there are no more */
} sum;

/* A walk: its scripts, by number. */
struct walk {
	void (*write_script)(const struct walk *, long number, char script[256]);
	int kind; /* of singles */
	int stride;
	long count; /* of scripts; 0: until the first that refuses nothing, of singles each error's */
	int calls; /* that a row makes, about */
	uint64_t seed;
};

/* Does the row under a script; gives how many calls were refused. */
static long run_row(const char *script)
{
	struct model_census after;
	long failures = model_failures();

	snprintf(test_context, sizeof test_context, "mode %.10s, seed %llu, refusing %.200s", execmem_mode_name(row.mode),
	         (unsigned long long)row.seed, script);
	execmem_test_script(script);
	model_run(&row);
	failures = model_failures() - failures;
	after = model_census();
	EXPECT(after.files == before.files);
	/* What cannot be unmapped stays. A window that is refused twice stays with all of its own: guards, packs that
	 * are not alike, and what lies between. */
	EXPECT(after.mappings <= before.mappings + failures + (failures > 1 ? WINDOW_MAPPINGS - 2 : 0));
	before.mappings = after.mappings;
	return failures;
}

/* One error's scripts after another's. */
static void write_single(const struct walk *w, long number, char script[256])
{
	long error = number / CALLS_MAX;

	snprintf(script, 256, "%s=%ld.F:%s", kinds[w->kind].call, error % w->stride + number % CALLS_MAX * w->stride,
	         kinds[w->kind].errors[error]);
}

/* The second refusal is among the next calls after the first. */
static void write_pair(const struct walk *w, long number, char script[256])
{
	snprintf(script, 256, "any=%ld.F%ld.F", number / AFTER * w->stride, number % AFTER);
}

static void write_random_pair(const struct walk *w, long number, char script[256])
{
	uint64_t seed = (w->seed + (uint64_t)number) * 0x9E3779B97F4A7C15u + 1;
	int one = (int)(test_random(&seed) % KINDS), two = (int)(test_random(&seed) % KINDS);
	const char *error = kinds[one].errors[test_random(&seed) % 2];

	if (number % 2)
		snprintf(script, 256, "any=%d.F%d.F:%s", (int)(test_random(&seed) % (uint64_t)w->calls),
		         (int)(test_random(&seed) % (uint64_t)w->calls), error);
	else
		snprintf(script, 256, "%s=%d.F:%s %s=%d.F", kinds[one].call, (int)(test_random(&seed) % 40), error, kinds[two].call,
		         (int)(test_random(&seed) % 40));
}

/* The number after this one, which refused so many calls; -1: it was the last. */
static long next_script(const struct walk *w, long number, long refused)
{
	long error = number / CALLS_MAX + 1;

	if (w->count > 0)
		return number + 1 < w->count ? number + 1 : -1;
	if (refused > 0)
		return number + 1;
	return w->write_script == write_single && error < 5 && kinds[w->kind].errors[error] ? error * CALLS_MAX : -1;
}

/* In a process of its own. */
static void walk_some(const struct walk *w, long from, struct told *told)
{
	uint64_t resident;
	char script[256];
	long refused;

	execmem_test_script("any=."); /* once for buffers of the C library, and what the root keeps */
	model_run(&row);
	before = model_census();
	resident = model_census_resident();
	for (told->next = from; told->next >= 0 && told->runs < RUNS; told->runs++) {
		w->write_script(w, told->next, script);
		refused = run_row(script);
		told->refused += refused;
		told->next = next_script(w, told->next, refused);
	}
	EXPECT(model_census_resident() <= resident + (24 << 20));
}

/* Does some work in a child and adds up what it tells. */
static long in_child(const struct walk *w, long from)
{
	struct told told = {.next = -1};
	int ends[2], status;
	pid_t child;

	EXPECT(pipe(ends) == 0);
	child = fork();
	EXPECT(child >= 0);
	if (child == 0) {
		walk_some(w, from, &told);
		EXPECT(write(ends[1], &told, sizeof told) == (ssize_t)sizeof told);
		_exit(0);
	}
	EXPECT(waitpid(child, &status, 0) == child);
	snprintf(test_context, sizeof test_context, "mode %.10s, scripts from %ld on, status %#x", execmem_mode_name(row.mode), from,
	         (unsigned)status);
	EXPECT(status == 0 && read(ends[0], &told, sizeof told) == (ssize_t)sizeof told);
	close(ends[0]);
	close(ends[1]);
	sum.runs += told.runs;
	sum.refused += told.refused;
	return told.next;
}

/* Gives how many scripts there were. */
static long walk_all(const struct walk *w)
{
	long runs = sum.runs;

	for (long next = 0; next >= 0;)
		next = in_child(w, next);
	return sum.runs - runs;
}

/* The first seed from `seed` on whose row seals a domain, when nothing fails. */
static uint64_t choose_row(uint64_t seed)
{
	int status;

	for (;; seed++) {
		pid_t child = fork();

		EXPECT(child >= 0);
		if (child == 0) {
			row.seed = seed;
			model_run(&row);
			_exit(model_sealed() > 0 ? 0 : 2);
		}
		EXPECT(waitpid(child, &status, 0) == child && (status == 0 || WEXITSTATUS(status) == 2));
		if (status == 0)
			return seed;
	}
}

static void walk_mode(int stride, uint64_t seed)
{
	struct walk w = {.write_script = write_single, .stride = stride, .seed = seed};
	long pairs;

	row.seed = choose_row(seed * 100 + (uint64_t)row.mode);
	for (w.kind = 0; w.kind < KINDS; w.kind++)
		if (test_takes_call(kinds[w.kind].call))
			walk_all(&w);
	w.write_script = write_pair;
	pairs = walk_all(&w);
	w.calls = (int)(pairs / AFTER) * stride;
	EXPECT(w.calls > 100 || stride >= 1000);
	w.calls = w.calls > 0 ? w.calls : 1;
	w.write_script = write_random_pair;
	w.count = 2000 / stride;
	if (w.count > 0)
		walk_all(&w);
	printf("%s: seed %llu, %ld operations, about %d system calls; %ld runs, %ld calls refused\n", execmem_mode_name(row.mode),
	       (unsigned long long)row.seed, row.operations, w.calls, sum.runs, sum.refused);
}

int main(int argc, char **argv)
{
	int stride = test_amount(argc, argv, 47, 1000);
	uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;

	if (getenv("EXECMEM_TEST_CALLS"))
		row.operations = OPERATIONS / 3;
	for (row.mode = EXECMEM_MODE_SYSCALL; row.mode < EXECMEM_MODES; row.mode++) {
		if (!test_takes_mode(row.mode) || (stride >= 1000 && row.mode != EXECMEM_MODE_SYSCALL))
			continue;
		fflush(stdout);
		walk_mode(stride, seed);
	}
	EXPECT(sum.refused > (getenv("EXECMEM_TEST_CALLS") ? 0 : 20));
	puts("ok");
	return 0;
}
