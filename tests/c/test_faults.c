/* test_faults: walks every rung of every ladder. For each system call and each of its occurrences in a script of operations, that one
 * call fails; then every second one from there on. After every operation the domain is lawful, an operation that failed has changed
 * nothing, and at the end no mapping and no file descriptor is left over.
 *
 * usage: test_faults [stride]: 1 walks every occurrence, n every n-th; 1000 and more the first only, in one mode
 */
#include "test.h"

#include <dirent.h>
#include <unistd.h>

static const char *const calls[] = {"memfd",    "resize", "discard",  "write", "reserve", "view", "unview", "protect", "hide",
                                    "collapse", "scan",   "populate", "maps",  "random",  "sync", "stop",   "key"};
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

int main(int argc, char **argv)
{
	int stride = test_amount(argc, argv, 3, 1000), rungs = 0;

	for (size_t i = 0; i < sizeof bytes; i++)
		bytes[i] = (uint8_t)(i * 7 + 1);
	EXPECT(execmem_domain_root());
	for (int mode = EXECMEM_MODE_SYSCALL; mode < EXECMEM_MODES; mode++) {
		int files, mappings;

		if ((stride >= 1000 && mode != EXECMEM_MODE_SYSCALL && !getenv("EXECMEM_TEST_MODES")) || !test_takes_mode(mode))
			continue;
		scenario(mode); /* libc's own first uses: buffers, handlers */
		files = count_files();
		mappings = count_mappings();
		for (size_t c = 0; c < sizeof calls / sizeof calls[0]; c++)
			for (int at = 0; at < 180; at += stride) {
				int once = walk(calls[c], "F", mode, at);
				int often = walk(calls[c], "FF.F.F*", mode, at);

				EXPECT(count_files() == files);
				if (strcmp(calls[c], "unview") != 0) /* what cannot be unmapped stays reserved */
					EXPECT(count_mappings() <= mappings);
				else
					mappings = count_mappings();
				rungs += once + often;
				if (once + often == 0)
					break;
			}
	}
	EXPECT(rungs > 100);
	printf("%d injected failures\nok\n", rungs);
	return 0;
}
