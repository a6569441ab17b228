/* test_faults: walks every rung of every ladder. For each system call and each of its occurrences in a script of operations, that one
 * call fails; then every second one from there on. After every operation the domain is lawful, an operation that failed has changed
 * nothing, and at the end no mapping and no file descriptor is left over. The same for a domain with all that hardens, which is forked,
 * sealed and forked again.
 *
 * usage: test_faults [stride]: 1 walks every occurrence, n every n-th; 1000 and more the first only, in one mode
 */
#include "test.h"

#include <dirent.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *const calls[] = {"memfd",   "resize", "discard",  "write", "reserve",  "view",   "unview",
                                    "protect", "hide",   "collapse", "scan",  "populate", "maps",   "random",
                                    "sync",    "stop",   "key",      "seal",  "fseal",    "witness"};
static uint8_t bytes[6 << 20];

static int count_files(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int files = 0;

	while (readdir(dir))
		files++;
	closedir(dir);
	return files;
}

/* Mappings of packs, ledgers and reservations; ordinary memory of the C library and the table of addresses are not counted. */
static int count_mappings(void)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	char line[512];
	int lines = 0;

	while (fgets(line, sizeof line, maps))
		lines += strstr(line, "memfd:execmem") != NULL || strstr(line, "---p 00000000 00:00") != NULL ||
		         strstr(line, "r-xp 00000000 00:00") != NULL;
	fclose(maps);
	return lines;
}

static execmem_shard counts(execmem_domain *d)
{
	execmem_shard sum;

	EXPECT(execmem_domain_count(d, &sum) == 0);
	return sum;
}

static uint64_t live(const execmem_shard *sum)
{
	return sum->allocs - sum->frees;
}

static uint64_t count_live(execmem_domain *d)
{
	execmem_shard sum = counts(d);

	return live(&sum);
}

/* Places, and when that fails sees that nothing changed. */
static void *place(execmem_domain *d, int kind, size_t size, size_t align, const char *name)
{
	const execmem_header *h = execmem_domain_ledger(d);
	execmem_shard before = counts(d), after;
	uint64_t charged = h->charged_bytes;
	void *out = NULL;

	if (execmem_place(d, kind, bytes, size, align, name, &out) < 0) {
		EXPECT(execmem_error_text()[0] && out == NULL);
		after = counts(d);
		EXPECT(live(&after) == live(&before) && after.used_bytes == before.used_bytes && h->charged_bytes == charged);
	} else {
		EXPECT(memcmp(out, bytes, size) == 0);
	}
	EXPECT_LAWFUL(d);
	return out;
}

/* Blocks of a batch that could neither be completed nor made blank again stay out of use until the domain closes. */
static uint64_t count_dying(execmem_domain *d)
{
	const execmem_header *h = execmem_domain_ledger(d);
	uint64_t dying = 0;

	for (uint32_t pack = 0; pack < h->packs_top; pack++) {
		const char *records = (const char *)h + h->blocks_offset + pack * h->blocks_stride;

		for (uint32_t i = 0; i < 2000; i++) /* more than a pack of this test ever has */
			dying += (((const execmem_block *)records)[i].state & EXECMEM_BLOCK_DYING) != 0;
	}
	return dying;
}

static void batches(execmem_domain *d)
{
	uint64_t offsets[65], out[64];
	uint64_t before = count_live(d) - count_dying(d);

	for (int i = 0; i < 65; i++)
		offsets[i] = (uint64_t)i * 1500;
	if (execmem_place_many(d, EXECMEM_TEXT, 64, bytes, offsets, 16, NULL, out) < 0) {
		EXPECT(count_live(d) == before + count_dying(d));
		EXPECT_LAWFUL(d);
		return;
	}
	EXPECT_LAWFUL(d);
	if (execmem_fill_many(d, 64, out, bytes, offsets) == 0)
		EXPECT(memcmp((void *)(uintptr_t)out[63], bytes + offsets[63], 1500) == 0);
	if (execmem_free_many(d, 64, out) < 0)
		EXPECT(count_live(d) == before + 64 - execmem_error_index());
	EXPECT_LAWFUL(d);
}

/* One scenario; any of its calls may fail and none may break a law. */
static void scenario(int mode)
{
	static const size_t sizes[] = {200, 5000, 60000, 100000, 300000, 1 << 20, 900000, 2 << 20, (2 << 20) + 5000};
	execmem_options options = {.name = "faults", .write_mode = mode, .window = 64 << 20};
	void *blocks[40] = {NULL};
	execmem_stats stats;
	execmem_domain *d;

	if (execmem_domain_open(&options, &d) < 0)
		return;
	for (int i = 0; i < 18; i++)
		blocks[i] = place(d, i < 12 ? EXECMEM_TEXT : i % EXECMEM_KINDS, sizes[i % 9], 16, i % 2 ? "named" : NULL);
	batches(d);
	for (int i = 0; i < 18; i += 2) {
		if (blocks[i] && execmem_fill(blocks[i], bytes + 100, 100) == 0)
			EXPECT(memcmp(blocks[i], bytes + 100, 100) == 0);
		if (blocks[i] && execmem_free_in(d, blocks[i]) == 0)
			blocks[i] = NULL;
		EXPECT_LAWFUL(d);
	}
	blocks[30] = place(d, EXECMEM_TEXT, 700, 4096, "again");
	EXPECT(execmem_domain_stats(d, &stats) == 0);
	for (int i = 0; i < 40; i++)
		if (blocks[i])
			(void)execmem_free(blocks[i]);
	EXPECT_LAWFUL(d);
	(void)execmem_sync();
	EXPECT(execmem_domain_close(d, 1) == 0);
}

static void near_scenario(void)
{
	execmem_options options = {.name = "near", .near_address = (uintptr_t)&execmem_free, .fallback = 1};
	execmem_domain *d;

	if (execmem_domain_open(&options, &d) == 0)
		EXPECT(execmem_domain_close(d, 0) == 0);
}

/* ---- hardened, forked, sealed ---- */

enum { HARD = 24 };

struct hard {
	execmem_domain *d;
	uint8_t *blocks[HARD]; /* NULL: not placed, or freed */
	bool changed[HARD]; /* a refused call may have left it blank */
};

static void expect_blocks(const struct hard *h)
{
	for (int i = 0; i < HARD; i++)
		EXPECT(!h->blocks[i] || h->changed[i] || memcmp(h->blocks[i], bytes, 300) == 0);
}

/* Every second one from `from` on goes. What is freed is nobody's, and cannot be freed again. */
static void free_half(struct hard *h, int from)
{
	for (int i = from; i < HARD; i += 2) {
		if (!h->blocks[i])
			continue;
		if (execmem_free(h->blocks[i]) == 0) {
			EXPECT(execmem_free(h->blocks[i]) == EXECMEM_EFREED);
			h->blocks[i] = NULL;
		} else {
			EXPECT(execmem_error_text()[0] && execmem_error_code() != EXECMEM_EFREED);
			h->changed[i] = true;
		}
		EXPECT_LAWFUL(h->d);
	}
}

/* Every change is refused, for the reason given. */
static void expect_refused(const struct hard *h, int code)
{
	void *out = NULL;

	EXPECT(execmem_place(h->d, EXECMEM_TEXT, bytes, 100, 16, NULL, &out) == code && !out);
	for (int i = 0; i < HARD; i++)
		EXPECT(!h->blocks[i] || execmem_free(h->blocks[i]) == code);
	EXPECT(execmem_domain_close(h->d, 1) == code);
	expect_blocks(h);
}

/* In a forked child: the code is there; the books are, too, or every call says that they could not be copied. */
static void live_as_child(struct hard *h, bool sealed)
{
	execmem_shard sum;
	void *out = NULL;

	expect_blocks(h);
	if (execmem_domain_count(h->d, &sum) < 0) {
		EXPECT(execmem_error_code() == EXECMEM_EFORKED);
		expect_refused(h, EXECMEM_EFORKED);
		return;
	}
	EXPECT_LAWFUL(h->d);
	if (sealed) {
		expect_refused(h, EXECMEM_ESEALED);
		return;
	}
	out = place(h->d, EXECMEM_TEXT, 300, 16, NULL);
	EXPECT(!out || execmem_free(out) == 0 || execmem_error_text()[0]);
	free_half(h, 0);
	expect_blocks(h);
	(void)execmem_domain_seal(h->d);
	EXPECT_LAWFUL(h->d);
	expect_blocks(h);
}

static void fork_hard(struct hard *h, bool sealed)
{
	pid_t child = fork();
	int status;

	EXPECT(child >= 0);
	if (child == 0) {
		live_as_child(h, sealed);
		_exit(0);
	}
	EXPECT(waitpid(child, &status, 0) == child && status == 0);
}

static void seal_hard(struct hard *h, int mode)
{
	if (execmem_domain_seal(h->d) < 0) {
		EXPECT((mode == EXECMEM_MODE_ALIAS || mode == EXECMEM_MODE_PKEY) && execmem_domain_ledger(h->d)->sealed == 0);
		EXPECT_LAWFUL(h->d);
		expect_blocks(h);
		execmem_test_script(NULL);
		EXPECT(execmem_domain_seal(h->d) == 0);
	}
	EXPECT(execmem_domain_ledger(h->d)->sealed >= EXECMEM_SEALED_LIBRARY && counts(h->d).quarantined_blocks == 0);
	EXPECT_LAWFUL(h->d);
	expect_refused(h, EXECMEM_ESEALED);
}

/* In a process of its own, for what is sealed stays; true: a call was made to fail. */
static bool hardened(int mode, const char *script)
{
	execmem_options options = {.name = "hard", .write_mode = mode, .window = 64 << 20, .quarantine = 2048, .gap = 2048, .trust = 3};
	int files = count_files();
	struct hard h = {0};

	execmem_test_script(script);
	if (execmem_domain_open(&options, &h.d) == 0) {
		for (int i = 0; i < HARD; i++)
			h.blocks[i] = place(h.d, i % 6 == 5 ? EXECMEM_DATA : EXECMEM_TEXT, i == 3 ? 300000 : 300, 16, i % 4 ? NULL : "named");
		free_half(&h, 0);
		fork_hard(&h, false);
		free_half(&h, 3);
		h.blocks[0] = h.blocks[0] ? h.blocks[0] : place(h.d, EXECMEM_TEXT, 300, 16, NULL);
		seal_hard(&h, mode);
		fork_hard(&h, true);
		EXPECT(count_files() <= files + 3); /* its ledger, what tells of two children */
	} else {
		EXPECT(count_files() == files);
	}
	return execmem_test_script(NULL) > 0;
}

static bool walk_hardened(const char *call, const char *steps, int mode, int at)
{
	char script[256];
	int status;
	pid_t child = (snprintf(script, sizeof script, "%s=%d.%s", call, at, steps), fork());

	EXPECT(child >= 0);
	snprintf(test_context, sizeof test_context, "hardened, mode %.10s, failing %.200s", execmem_mode_name(mode), script);
	if (child == 0)
		_exit(hardened(mode, script) ? 2 : 0);
	EXPECT(waitpid(child, &status, 0) == child && (status == 0 || (WIFEXITED(status) && WEXITSTATUS(status) == 2)));
	return status != 0;
}

/* ---- the walk ---- */

static int walk(const char *call, const char *steps, int mode, int at)
{
	char script[256];
	int failures;

	snprintf(
		script, sizeof script, "%s=%.*s%s", call, at,
		"......................................................................................................................"
		"....................................................................",
		steps);
	snprintf(test_context, sizeof test_context, "mode %.10s, failing %.200s", execmem_mode_name(mode), script);
	execmem_test_script(script);
	scenario(mode);
	near_scenario();
	failures = execmem_test_script(NULL);
	return failures;
}

/* Each occurrence of a call, till there are no more; gives how many calls failed. */
static int walk_call(const char *call, int mode, int stride, int files, int *mappings)
{
	int rungs = 0;

	for (int at = 0; at < 180; at += stride) {
		int once = walk(call, "F", mode, at);
		int often = walk(call, "FF.F.F*", mode, at);

		EXPECT(count_files() == files);
		if (strcmp(call, "unview") != 0) /* what cannot be unmapped stays reserved */
			EXPECT(count_mappings() <= *mappings);
		else
			*mappings = count_mappings();
		rungs += once + often;
		if (once + often == 0)
			break;
	}
	return rungs;
}

static int walk_call_hardened(const char *call, int mode, int stride)
{
	int rungs = 0, more = 1;

	for (int at = 0; more > 0; at += stride) {
		more = walk_hardened(call, "F", mode, at) + walk_hardened(call, "FF.F.F*", mode, at);
		rungs += more;
	}
	return rungs;
}

static bool takes_mode(int mode, int stride)
{
	return (stride < 1000 || mode == EXECMEM_MODE_SYSCALL || getenv("EXECMEM_TEST_MODES")) && test_takes_mode(mode);
}

int main(int argc, char **argv)
{
	enum { CALLS = sizeof calls / sizeof calls[0] };
	int stride = test_amount(argc, argv, 3, 1000), rungs = 0, hard_rungs = 0;
	bool no_forks = getenv("EXECMEM_TEST_NO_FORKS"); /* set for memcheck, which takes half a second and more for each */

	for (size_t i = 0; i < sizeof bytes; i++)
		bytes[i] = (uint8_t)(i * 7 + 1);
	EXPECT(execmem_domain_root());
	for (int mode = EXECMEM_MODE_SYSCALL; mode < EXECMEM_MODES; mode++) {
		int files, mappings;

		if (!takes_mode(mode, stride))
			continue;
		scenario(mode); /* libc's own first uses: buffers, handlers */
		files = count_files();
		mappings = count_mappings();
		for (int c = 0; c < CALLS; c++)
			if (test_takes_call(calls[c]))
				rungs += walk_call(calls[c], mode, stride, files, &mappings);
	}
	EXPECT(rungs > (getenv("EXECMEM_TEST_CALLS") ? 0 : 100));
	for (int mode = EXECMEM_MODE_SYSCALL; mode < EXECMEM_MODES; mode++) { /* last, for each fork leaves a witness for a while */
		if (!takes_mode(mode, stride) || no_forks)
			continue;
		for (int c = 0; c < CALLS; c++)
			if (test_takes_call(calls[c]))
				hard_rungs += walk_call_hardened(calls[c], mode, stride);
	}
	EXPECT(no_forks || hard_rungs > (getenv("EXECMEM_TEST_CALLS") ? 0 : stride < 1000 ? 100 : 10));
	printf("%d injected failures, %d times one or more where all is hardened\nok\n", rungs, hard_rungs);
	return 0;
}
