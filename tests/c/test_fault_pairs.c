/* test_fault_pairs: one row of a few hundred operations (model.h) for each write mode, under which system calls are refused: each call
 * of each kind with each error it may plausibly have; then two, the second among those that follow the first, so in what recovers from
 * it; then two anywhere. No law breaks, no block is lost or changed, and when all is closed nothing is left.
 *
 * usage: test_fault_pairs [stride [seed]]: 1 walks every occurrence (minutes), n every n-th; 1000 and more a few, in one mode
 */
#include "model.h"
#include "test.h"

enum { OPERATIONS = 300, AFTER = 8, CALLS_MAX = 4000, WINDOW_MAPPINGS = 16 };

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
};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

static struct model_options row = {.operations = OPERATIONS, .faults = MODEL_FAULTS_GIVEN, .check_every = 60};
static struct model_census before;
static uint64_t seed = 1;
static long runs, refused;

/* Does the row under a script; gives how many calls were refused. */
static long walk(const char *script)
{
	struct model_census after;
	long failures = model_failures();

	snprintf(test_context, sizeof test_context, "mode %.10s, refusing %.200s", execmem_mode_name(row.mode), script);
	execmem_test_script(script);
	model_run(&row);
	failures = model_failures() - failures;
	after = model_census();
	EXPECT(after.files == before.files);
	/* What cannot be unmapped stays. A window that is refused twice stays with all of its own: guards, packs that
	 * are not alike, and what lies between. */
	EXPECT(after.mappings <= before.mappings + failures + (failures > 1 ? WINDOW_MAPPINGS - 2 : 0));
	before.mappings = after.mappings;
	runs++;
	refused += failures;
	return failures;
}

static void walk_singles(int stride)
{
	char script[256];

	for (int k = 0; k < KINDS; k++)
		for (int e = 0; e < 5 && kinds[k].errors[e]; e++)
			for (int at = e % stride; at < CALLS_MAX; at += stride) {
				snprintf(script, sizeof script, "%s=%d.F:%s", kinds[k].call, at, kinds[k].errors[e]);
				if (walk(script) == 0)
					break;
			}
}

/* The second refusal is among the next calls after the first. Gives how many calls there are. */
static int walk_pairs(int stride)
{
	char script[256];
	int at = 0;

	for (; at < CALLS_MAX; at += stride)
		for (int after = 0; after < AFTER; after++) {
			snprintf(script, sizeof script, "any=%d.F%d.F", at, after);
			if (walk(script) == 0)
				return at;
		}
	return at;
}

static void walk_random_pairs(int calls, int count)
{
	char script[256];

	for (int i = 0; i < count; i++) {
		int one = (int)(test_random(&seed) % KINDS), two = (int)(test_random(&seed) % KINDS);
		const char *error = kinds[one].errors[test_random(&seed) % 2];

		if (i % 2)
			snprintf(script, sizeof script, "any=%d.F%d.F:%s", (int)(test_random(&seed) % (uint64_t)calls),
			         (int)(test_random(&seed) % (uint64_t)calls), error);
		else
			snprintf(script, sizeof script, "%s=%d.F:%s %s=%d.F", kinds[one].call, (int)(test_random(&seed) % 40), error,
			         kinds[two].call, (int)(test_random(&seed) % 40));
		walk(script);
	}
}

int main(int argc, char **argv)
{
	int stride = test_amount(argc, argv, 47, 1000);
	uint64_t resident;

	seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
	for (row.mode = EXECMEM_MODE_SYSCALL; row.mode < EXECMEM_MODES; row.mode++) {
		int calls;

		if (!test_takes_mode(row.mode) || (stride >= 1000 && row.mode != EXECMEM_MODE_SYSCALL))
			continue;
		row.seed = seed * 100 + (uint64_t)row.mode;
		for (int i = 0; i < 3; i++) { /* buffers of the C library, what the root keeps */
			execmem_test_script("any=.");
			model_run(&row);
		}
		before = model_census();
		resident = before.resident;
		walk_singles(stride);
		calls = walk_pairs(stride);
		walk_random_pairs(calls > 0 ? calls : 1, 2000 / stride);
		EXPECT(model_census().resident <= resident + (24 << 20));
		EXPECT(calls > 100);
		printf("%s: %d operations, about %d system calls; %ld runs, %ld calls refused\n", execmem_mode_name(row.mode), OPERATIONS,
		       calls, runs, refused);
	}
	puts("ok");
	return 0;
}
