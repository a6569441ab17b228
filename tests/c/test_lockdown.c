/* test_lockdown: quarantine, gaps, trust classes, guards and seals, in every write mode, against what is promised of them.
 *
 * usage: test_lockdown [operations per mode]
 */
#include "fork.h"
#include "test.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { LIVE_MAX = 1500, GONE_MAX = 8192, QUARANTINE = 256 << 10, GAP = 2048 };

struct shadow {
	uint8_t *address;
	uint32_t size;
	uint8_t byte;
	int kind;
};

static struct shadow live[LIVE_MAX];
static int count;
static struct { /* freed, oldest first: a ring */
	uint64_t address;
	uint32_t bytes;
} gone[GONE_MAX];
static uint64_t gone_first, gone_end, gone_bytes;
static uint8_t bytes[400000];

static uint32_t rounded(uint32_t size)
{
	return (size + EXECMEM_CHUNK - 1) / EXECMEM_CHUNK * EXECMEM_CHUNK;
}

static execmem_shard counts(execmem_domain *d)
{
	execmem_shard sum;

	EXPECT(execmem_domain_count(d, &sum) == 0);
	return sum;
}

static execmem_stats stats_of(execmem_domain *d)
{
	execmem_stats stats;

	EXPECT(execmem_domain_stats(d, &stats) == 0);
	return stats;
}

/* ---- quarantine and gaps, by random work of one thread ---- */

/* Among the newest of the freed that `quarantine` bytes hold, none may be given out again. */
static void expect_fresh(uint64_t address, uint32_t size, uint64_t quarantine)
{
	while (gone_bytes > quarantine)
		gone_bytes -= gone[gone_first++ % GONE_MAX].bytes;
	for (uint64_t i = gone_first; i < gone_end; i++)
		EXPECT(address + rounded(size) <= gone[i % GONE_MAX].address ||
		       address >= gone[i % GONE_MAX].address + gone[i % GONE_MAX].bytes);
}

static void place_one(execmem_domain *d, uint64_t *seed, uint64_t quarantine)
{
	static const size_t aligns[] = {1, 16, 64, 128, 4096};
	struct shadow *s = &live[count++];
	size_t align = aligns[test_random(seed) % 5];
	void *out;

	s->size = (uint32_t)(1 + test_random(seed) % (test_random(seed) % 10 ? 3000 : 60000));
	s->kind = test_random(seed) % 8 == 0 ? (int)(test_random(seed) % EXECMEM_KINDS) : EXECMEM_TEXT;
	s->byte = (uint8_t)test_random(seed);
	memset(bytes, s->byte, s->size);
	EXPECT(execmem_place(d, s->kind, bytes, s->size, align, test_random(seed) % 2 ? "named" : NULL, &out) == 0);
	s->address = out;
	EXPECT((uintptr_t)out % align == 0);
	expect_fresh((uintptr_t)out, s->size, quarantine);
}

static void expect_bytes(const struct shadow *s)
{
	for (uint32_t i = 0; i < s->size; i++)
		EXPECT(s->address[i] == s->byte);
}

static void note_gone(const struct shadow *s)
{
	EXPECT(gone_end - gone_first < GONE_MAX);
	gone[gone_end % GONE_MAX].address = (uintptr_t)s->address;
	gone[gone_end++ % GONE_MAX].bytes = rounded(s->size);
	gone_bytes += rounded(s->size);
}

static void free_some(execmem_domain *d, uint64_t *seed)
{
	uint64_t addresses[8];
	size_t many = test_random(seed) % 4 ? 1 : 1 + test_random(seed) % 8;

	for (size_t i = 0; i < many && count > 0; i++) {
		int victim = (int)(test_random(seed) % (uint64_t)count);
		struct shadow s = live[victim];

		expect_bytes(&s);
		live[victim] = live[--count];
		addresses[i] = (uintptr_t)s.address;
		note_gone(&s);
		many = count == 0 ? i + 1 : many;
	}
	if (many == 1)
		EXPECT(execmem_free_in(d, (void *)(uintptr_t)addresses[0]) == 0);
	else
		EXPECT(execmem_free_many(d, many, addresses) == 0);
	for (size_t i = 0; i < many; i++) {
		EXPECT(execmem_free((void *)(uintptr_t)addresses[i]) == EXECMEM_EFREED);
		EXPECT(execmem_fill((void *)(uintptr_t)addresses[i], bytes, 1) == EXECMEM_EFREED);
		EXPECT(execmem_find((void *)(uintptr_t)addresses[i], &(execmem_info){0}) == EXECMEM_EFREED);
	}
}

static void random_work(int mode, uint64_t quarantine, uint32_t gap, int operations)
{
	execmem_options options = {
		.name = "random work", .write_mode = mode, .window = 256 << 20, .quarantine = quarantine, .gap = gap, .limit = 64 << 20};
	uint64_t seed = 88172645463325252ull + (uint64_t)mode, used = 0;
	execmem_domain *d;

	snprintf(test_context, sizeof test_context, "mode %s, quarantine %llu, gap %u", execmem_mode_name(mode),
	         (unsigned long long)quarantine, gap);
	EXPECT(execmem_domain_open(&options, &d) == 0);
	for (int i = 0; i < operations; i++) {
		int target = i < operations / 2 ? 1000 : 100;
		execmem_shard sum;

		if (count == 0 || (count < LIVE_MAX && test_random(&seed) % 100 < (count < target ? 65u : 30u)))
			place_one(d, &seed, quarantine);
		else
			free_some(d, &seed);
		sum = counts(d);
		EXPECT(sum.allocs - sum.frees == (uint64_t)count && sum.quarantined_bytes <= quarantine);
		EXPECT(sum.quarantined_bytes == gone_bytes || gone_bytes > quarantine || quarantine == 0);
		if (i % 500 == 0)
			EXPECT_LAWFUL(d);
	}
	for (int i = 0; i < count; i++)
		used += rounded(live[i].size);
	EXPECT(stats_of(d).used_bytes == used && stats_of(d).charged_bytes == used); /* what waits is not charged */
	printf("%s: live %llu, quarantined %llu, idle %llu\n", test_context, (unsigned long long)used,
	       (unsigned long long)stats_of(d).quarantined_bytes, (unsigned long long)stats_of(d).idle_bytes);
	while (count > 0)
		free_some(d, &seed);
	EXPECT_LAWFUL(d);
	EXPECT(execmem_domain_close(d, 0) == 0);
	gone_first = gone_end = gone_bytes = 0;
}

/* Oldest first, not before, and given up when the window is full. */
static void quarantine_order(void)
{
	execmem_options options = {.name = "order", .quarantine = 10 * 4096, .window = 2 << 20};
	execmem_domain *d;
	void *blocks[20], *out;

	EXPECT(execmem_domain_open(&options, &d) == 0);
	for (int i = 0; i < 20; i++)
		EXPECT(execmem_alloc_in(d, EXECMEM_TEXT, 4096, 4096, NULL, &blocks[i]) == 0);
	for (int i = 0; i < 10; i++)
		EXPECT(execmem_free(blocks[i]) == 0);
	EXPECT(counts(d).quarantined_blocks == 10);
	EXPECT(execmem_free(blocks[10]) == 0); /* the first comes out */
	EXPECT(counts(d).quarantined_blocks == 10);
	EXPECT(execmem_alloc_in(d, EXECMEM_TEXT, 4096, 16, NULL, &out) == 0 && out == blocks[0]);
	EXPECT(execmem_free(blocks[11]) == 0);
	EXPECT(execmem_alloc_in(d, EXECMEM_TEXT, 4096, 16, NULL, &out) == 0 && out == blocks[1]);
	EXPECT_LAWFUL(d);
	for (int i = 12; i < 20; i++)
		EXPECT(execmem_free(blocks[i]) == 0);
	EXPECT(execmem_alloc_in(d, EXECMEM_TEXT, 2 << 20, 16, NULL, &out) == EXECMEM_EWINDOW); /* two blocks live still */
	EXPECT(counts(d).quarantined_blocks == 0);
	EXPECT_LAWFUL(d);
	EXPECT(execmem_domain_close(d, 1) == 0);
	/* Larger than the quarantine: not kept. An impossible size is no reason to give it up. */
	EXPECT(execmem_domain_open(&options, &d) == 0);
	EXPECT(execmem_alloc_in(d, EXECMEM_TEXT, 65536, 16, NULL, &blocks[0]) == 0);
	EXPECT(execmem_free(blocks[0]) == 0 && counts(d).quarantined_blocks == 0);
	EXPECT(execmem_alloc_in(d, EXECMEM_TEXT, 100, 16, NULL, &blocks[0]) == 0);
	EXPECT(execmem_free(blocks[0]) == 0 && counts(d).quarantined_bytes == 128);
	EXPECT(execmem_alloc_in(d, EXECMEM_TEXT, 65536, 16, NULL, &blocks[1]) == 0);
	EXPECT(execmem_free(blocks[1]) == 0 && counts(d).quarantined_bytes == 128); /* nor does it drive out who waits */
	EXPECT(execmem_alloc_in(d, EXECMEM_TEXT, 3 << 20, 16, NULL, &out) == EXECMEM_EWINDOW && counts(d).quarantined_blocks == 1);
	EXPECT(execmem_alloc_in(d, EXECMEM_TEXT, 2 << 20, 16, NULL, &out) == 0); /* all of the window */
	EXPECT(counts(d).quarantined_blocks == 0);
	EXPECT_LAWFUL(d);
	EXPECT(execmem_domain_close(d, 1) == 0);
}

/* How far apart blocks of one chunk lie: never less than a chunk, often more, at most the gap. */
static void gap_distances(void)
{
	execmem_options options = {.name = "gaps", .gap = GAP};
	uint64_t last = 0, addresses[64], sizes[64];
	bool seen[GAP / EXECMEM_CHUNK + 1] = {false};
	int different = 0;
	execmem_domain *d;
	void *out;

	EXPECT(execmem_domain_open(&options, &d) == 0);
	for (int i = 0; i < 2000; i++) {
		/* Longer than a gap, so that none fits into an older gap: they lie in order. */
		EXPECT(execmem_alloc_in(d, EXECMEM_TEXT, 2 * GAP, 16, NULL, &out) == 0);
		if (last && (uintptr_t)out > last && (uintptr_t)out / (2 << 20) == last / (2 << 20)) {
			uint64_t gap = (uintptr_t)out - last - 2 * GAP;

			EXPECT(gap % EXECMEM_CHUNK == 0 && gap <= GAP);
			seen[gap / EXECMEM_CHUNK] = true;
		}
		last = (uintptr_t)out;
	}
	for (size_t i = 0; i < sizeof seen; i++)
		different += seen[i];
	EXPECT(different > 25); /* of 33, in some 600 draws or more */
	for (int i = 0; i < 64; i++)
		sizes[i] = 64;
	EXPECT(execmem_alloc_many(d, EXECMEM_TEXT, 64, sizes, 16, NULL, addresses) == 0);
	different = 0;
	for (int i = 1; i < 64; i++)
		different += addresses[i] != addresses[i - 1] + 64;
	EXPECT(different > 16); /* batches too */
	EXPECT_LAWFUL(d);
	EXPECT(execmem_domain_close(d, 1) == 0);
	options.window = 2 << 20; /* a full window does without gaps */
	EXPECT(execmem_domain_open(&options, &d) == 0);
	for (int i = 0; i < EXECMEM_PACK_CHUNKS / 8; i++)
		EXPECT(execmem_alloc_in(d, EXECMEM_TEXT, 512, 16, NULL, &out) == 0 || execmem_error_code() == EXECMEM_EWINDOW);
	EXPECT(stats_of(d).idle_bytes < 2 << 18);
	EXPECT_LAWFUL(d);
	EXPECT(execmem_domain_close(d, 1) == 0);
	execmem_test_script("random=...F*"); /* what cannot be random is no gap */
	EXPECT(execmem_domain_open(&options, &d) == 0);
	for (int i = 0; i < 200 && execmem_alloc_in(d, EXECMEM_TEXT, 64, 16, NULL, &out) == 0; i++)
		;
	EXPECT(execmem_error_code() == EXECMEM_ENOMEM && strstr(execmem_error_text(), "random gap"));
	execmem_test_script(NULL);
	EXPECT_LAWFUL(d);
	EXPECT(execmem_domain_close(d, 1) == 0);
}

/* ---- trust ---- */

static void trust(void)
{
	execmem_options options = {.name = "plugins", .trust = 3};
	execmem_domain *d, *child, *refused;

	EXPECT(stats_of(NULL).trust == 0);
	EXPECT(execmem_domain_open(&options, &d) == 0 && stats_of(d).trust == 3 && execmem_domain_ledger(d)->trust == 3);
	options = (execmem_options){.name = "child", .parent = d};
	EXPECT(execmem_domain_open(&options, &child) == 0 && stats_of(child).trust == 3);
	options.trust = 2;
	EXPECT(execmem_domain_open(&options, &refused) == EXECMEM_EINVAL && strstr(execmem_error_text(), "class 3"));
	options.trust = EXECMEM_TRUST_MAX + 1;
	EXPECT(execmem_domain_open(&options, &refused) == EXECMEM_EINVAL);
	options.trust = EXECMEM_TRUST_MAX;
	options.gap = EXECMEM_GAP_MAX + 1;
	EXPECT(execmem_domain_open(&options, &refused) == EXECMEM_EINVAL);
	EXPECT(execmem_domain_close(d, 1) == 0);
}

/* ---- guards ---- */

/* What reading a byte ends with: 0, or the signal. */
static int reading(const volatile uint8_t *at)
{
	pid_t child = fork();
	int status;

	EXPECT(child >= 0);
	if (child == 0) {
		signal(SIGSEGV, SIG_DFL); /* a sanitizer's handler would make an exit of it */
		(void)*at;
		_exit(0);
	}
	EXPECT(waitpid(child, &status, 0) == child);
	return WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status);
}

static void guards(int mode)
{
	execmem_options options = {.name = "guards", .write_mode = mode, .window = 2 << 20};
	const uint8_t *start;
	execmem_domain *d;
	void *out;

	EXPECT(execmem_domain_open(&options, &d) == 0);
	EXPECT(execmem_alloc_in(d, EXECMEM_RODATA, 2 << 20, 16, NULL, &out) == 0);
	start = out;
	EXPECT(reading(start) == 0 && reading(start + (2 << 20) - 1) == 0);
	EXPECT(reading(start - 1) == SIGSEGV && reading(start + (2 << 20)) == SIGSEGV);
	EXPECT(reading(start - 65536) == SIGSEGV && reading(start + (2 << 20) + 65535) == SIGSEGV);
	EXPECT(execmem_domain_close(d, 1) == 0);
}

/* ---- seals ---- */

static int files(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int n = 0;

	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

/* Every call that would change a sealed domain is refused and changes nothing. */
static void expect_sealed(execmem_domain *d, void *block, void *other)
{
	uint64_t one = (uintptr_t)block, two[2] = {0, 8}, out, size = 64;
	execmem_shard before = counts(d), after;
	execmem_info info;
	void *got = NULL;

	EXPECT(execmem_alloc_in(d, EXECMEM_TEXT, 64, 16, NULL, &got) == EXECMEM_ESEALED && got == NULL);
	EXPECT(strstr(execmem_error_text(), "sealed"));
	EXPECT(execmem_place(d, EXECMEM_TEXT, bytes, 64, 16, NULL, &got) == EXECMEM_ESEALED && got == NULL);
	EXPECT(execmem_fill(block, bytes, 8) == EXECMEM_ESEALED);
	EXPECT(execmem_free(block) == EXECMEM_ESEALED && execmem_free_in(d, block) == EXECMEM_ESEALED);
	EXPECT(execmem_alloc_many(d, EXECMEM_TEXT, 1, &size, 16, NULL, &out) == EXECMEM_ESEALED);
	EXPECT(execmem_place_many(d, EXECMEM_TEXT, 1, bytes, two, 16, NULL, &out) == EXECMEM_ESEALED);
	EXPECT(execmem_fill_many(d, 1, &one, bytes, two) == EXECMEM_ESEALED);
	EXPECT(execmem_free_many(d, 1, &one) == EXECMEM_ESEALED);
	EXPECT(execmem_domain_limit(d, 1 << 20) == EXECMEM_ESEALED);
	EXPECT(execmem_domain_close(d, 0) == EXECMEM_ESEALED && execmem_domain_close(d, 1) == EXECMEM_ESEALED);
	after = counts(d);
	EXPECT(memcmp(&before, &after, sizeof before) == 0);
	EXPECT(execmem_find(block, &info) == 0 && info.address == (uintptr_t)block);
	EXPECT(memcmp(block, bytes, 100) == 0 && memcmp(other, bytes, 100) == 0);
	EXPECT(stats_of(d).live_blocks == 3 && stats_of(d).resident_bytes > 0);
	EXPECT(execmem_domain_seal(d) == 0);
	EXPECT_LAWFUL(d);
}

/* The kernel has mseal, and lets it through; a checker that runs the program (memcheck) may not know it. */
static bool has_mseal(void)
{
	void *page = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return syscall(462, page, 4096ul, 0ul) == 0;
}

struct refusal { /* a script, and what of the kernel it takes away */
	const char *script;
	bool mappings, file;
};

static void seal(int mode, const struct refusal *refused)
{
	const char *script = refused->script;
	execmem_options options = {.name = "sealed", .write_mode = mode, .window = 64 << 20, .quarantine = 65536};
	bool with_file = mode != EXECMEM_MODE_PROCMEM && mode != EXECMEM_MODE_FLIP;
	uint32_t best = with_file ? EXECMEM_SEALED_KERNEL : EXECMEM_SEALED_MAPPINGS, sealed;
	bool mappings = has_mseal() && !refused->mappings;
	execmem_domain *parent, *d, *child;
	void *block, *data, *large, *out;
	int open_files, err;

	snprintf(test_context, sizeof test_context, "sealing in mode %s, failing %s", execmem_mode_name(mode),
	         script ? script : "nothing");
	EXPECT(execmem_domain_open(&(execmem_options){.name = "parent"}, &parent) == 0);
	options.parent = parent;
	EXPECT(execmem_domain_open(&options, &d) == 0);
	EXPECT(execmem_place(d, EXECMEM_TEXT, bytes, 200, 16, "code", &block) == 0);
	EXPECT(execmem_place(d, EXECMEM_DATA, bytes, 200, 16, "data", &data) == 0);
	EXPECT(execmem_place(d, EXECMEM_TEXT, bytes, 3 << 17, 16, NULL, &large) == 0);
	EXPECT(execmem_place(d, EXECMEM_RODATA, bytes, 200, 16, NULL, &out) == 0 && execmem_free(out) == 0);
	(void)stats_of(NULL); /* looks whether children have ended: each has a file, which sealing would close */
	open_files = files();
	execmem_test_script(script);
	err = execmem_domain_seal(d);
	execmem_test_script(NULL);
	if (err < 0) { /* the alias stands in the way, and all is as it was */
		EXPECT((mode == EXECMEM_MODE_ALIAS || mode == EXECMEM_MODE_PKEY) && strstr(script, "unview"));
		EXPECT(stats_of(d).sealed == EXECMEM_SEALED_NOT && files() == open_files);
		EXPECT(execmem_fill(block, bytes, 200) == 0);
		EXPECT_LAWFUL(d);
		EXPECT(execmem_domain_seal(d) == 0);
	}
	sealed = stats_of(d).sealed;
	EXPECT(execmem_domain_ledger(d)->sealed == sealed && sealed >= EXECMEM_SEALED_LIBRARY);
	EXPECT(sealed == (!mappings ? EXECMEM_SEALED_LIBRARY : refused->file ? EXECMEM_SEALED_MAPPINGS : best));
	EXPECT(files() == open_files - (mode != EXECMEM_MODE_FLIP));
	EXPECT(stats_of(d).quarantined_bytes == 0 && stats_of(d).packs == 2);
	expect_sealed(d, block, large);
	memset(data, 7, 200); /* the program's own data */
	/* The tree: children come and go, what is above cannot be closed. */
	options.parent = d;
	EXPECT(execmem_domain_open(&options, &child) == 0 && stats_of(child).sealed == EXECMEM_SEALED_NOT);
	EXPECT(execmem_place(child, EXECMEM_TEXT, bytes, 200, 16, NULL, &out) == 0 && execmem_free(out) == 0);
	EXPECT(execmem_domain_close(parent, 1) == EXECMEM_ESEALED);
	EXPECT(execmem_place(child, EXECMEM_TEXT, bytes, 200, 16, NULL, &out) == 0 && execmem_free(out) == 0);
	EXPECT(execmem_domain_close(child, 0) == 0);
	EXPECT(execmem_place(parent, EXECMEM_TEXT, bytes, 200, 16, NULL, &out) == 0 && execmem_free(out) == 0);
}

/* Once sealed, what is resident is counted another way: private data, which is in no file, once as before. */
static void seal_data(int mode)
{
	execmem_options options = {.name = "data", .write_mode = mode, .window = 16 << 20};
	uint64_t resident;
	execmem_domain *d;
	void *data;

	snprintf(test_context, sizeof test_context, "sealing data, mode %s", execmem_mode_name(mode));
	EXPECT(execmem_domain_open(&options, &d) == 0);
	EXPECT(execmem_place(d, EXECMEM_DATA, bytes, sizeof bytes, 16, NULL, &data) == 0);
	resident = stats_of(d).resident_bytes;
	EXPECT(resident >= sizeof bytes && execmem_domain_seal(d) == 0);
	EXPECT(stats_of(d).resident_bytes == resident);
	EXPECT_LAWFUL(d);
}

/* ---- forks ---- */

static void expect_child_ends_well(pid_t child)
{
	int status;

	EXPECT(waitpid(child, &status, 0) == child && status == 0);
}

static void expect_room_elsewhere(int mode)
{
	execmem_options options = {.name = "elsewhere", .write_mode = mode, .window = 16 << 20};
	execmem_domain *d;
	void *out;

	EXPECT(execmem_domain_open(&options, &d) == 0);
	EXPECT(execmem_place(d, EXECMEM_TEXT, bytes, 3000, 16, NULL, &out) == 0 && memcmp(out, bytes, 3000) == 0);
	EXPECT(execmem_free(out) == 0);
	EXPECT_LAWFUL(d);
	EXPECT(execmem_domain_close(d, 0) == 0);
}

/* Whether a descriptor is one of /proc/<pid>/mem, through which private memory can be written whatever its protection. */
static bool has_memory_open(void)
{
	DIR *dir = opendir("/proc/self/fd");
	char path[300], target[300];
	bool found = false;

	for (struct dirent *e = readdir(dir); e; e = readdir(dir)) {
		ssize_t length;

		snprintf(path, sizeof path, "/proc/self/fd/%s", e->d_name);
		length = readlink(path, target, sizeof target);
		found |= length > 4 && strncmp(target, "/proc/", 6) == 0 && memcmp(target + length - 4, "/mem", 4) == 0;
	}
	closedir(dir);
	return found;
}

/* Sealed before the fork: sealed in the child and in its children, and in the parent. */
static void fork_sealed(int mode)
{
	execmem_options options = {.name = "sealed", .write_mode = mode, .window = 16 << 20};
	bool with_file = mode != EXECMEM_MODE_PROCMEM && mode != EXECMEM_MODE_FLIP;
	void *block, *large, *data;
	uint32_t sealed;
	execmem_domain *d;
	pid_t child;

	snprintf(test_context, sizeof test_context, "a fork after sealing, mode %s", execmem_mode_name(mode));
	EXPECT(execmem_domain_open(&options, &d) == 0);
	EXPECT(execmem_place(d, EXECMEM_TEXT, bytes, 200, 16, "code", &block) == 0);
	EXPECT(execmem_place(d, EXECMEM_DATA, bytes, 200, 16, "data", &data) == 0);
	EXPECT(execmem_place(d, EXECMEM_TEXT, bytes, 3 << 17, 16, NULL, &large) == 0);
	EXPECT(execmem_domain_seal(d) == 0);
	sealed = stats_of(d).sealed;
	child = fork();
	EXPECT(child >= 0);
	if (child == 0) {
		pid_t grandchild = fork();

		EXPECT(grandchild >= 0);
		expect_sealed(d, block, large);
		EXPECT(stats_of(d).sealed == sealed && stats_of(d).held_blocks == 0);
		EXPECT(memcmp(large, bytes, 3 << 17) == 0 && (stats_of(d).resident_bytes < 3 << 17) == with_file); /* the parent's */
		EXPECT(!has_mseal() || munmap((void *)((uintptr_t)block & ~4095ull), 4096) == -1); /* the seals of the kernel came along */
		memset(data, 7, 200);
		EXPECT(!has_memory_open());
		expect_room_elsewhere(mode);
		if (grandchild > 0)
			expect_child_ends_well(grandchild);
		_exit(0);
	}
	expect_child_ends_well(child);
	EXPECT(memcmp(data, bytes, 200) == 0);
	expect_sealed(d, block, large);
	expect_room_elsewhere(mode);
}

/* Sealed when there are children: blocks that are held stay as they are for good. What a child seals its parent can still write to. */
static void seal_forked(int mode)
{
	execmem_options options = {.name = "forked", .write_mode = mode, .window = 16 << 20};
	bool with_file = mode != EXECMEM_MODE_PROCMEM && mode != EXECMEM_MODE_FLIP;
	void *block, *freed, *out;
	int talk[2];
	execmem_domain *d;
	pid_t child;

	snprintf(test_context, sizeof test_context, "sealing after a fork, mode %s", execmem_mode_name(mode));
	EXPECT(execmem_domain_open(&options, &d) == 0 && pipe(talk) == 0);
	EXPECT(execmem_place(d, EXECMEM_TEXT, bytes, 200, 16, NULL, &block) == 0);
	EXPECT(execmem_place(d, EXECMEM_TEXT, bytes, 200, 16, NULL, &freed) == 0);
	child = fork();
	EXPECT(child >= 0);
	if (child == 0) {
		EXPECT(execmem_place(d, EXECMEM_TEXT, bytes, 200, 16, NULL, &out) == 0);
		EXPECT(execmem_domain_seal(d) == 0);
		EXPECT(stats_of(d).sealed == (has_mseal() ? EXECMEM_SEALED_MAPPINGS : EXECMEM_SEALED_LIBRARY));
		EXPECT(execmem_free(freed) == EXECMEM_ESEALED && execmem_fill(out, bytes, 1) == EXECMEM_ESEALED);
		EXPECT_LAWFUL(d);
		close(talk[1]);
		EXPECT(read(talk[0], &(char){0}, 1) == 0); /* till the parent is done */
		EXPECT(memcmp(freed, bytes, 200) == 0 && memcmp(out, bytes, 200) == 0);
		_exit(0);
	}
	EXPECT(execmem_free(freed) == 0 && stats_of(d).held_blocks == with_file);
	EXPECT(execmem_domain_seal(d) == 0 && stats_of(d).held_blocks == with_file);
	EXPECT(stats_of(d).sealed == (has_mseal() ? EXECMEM_SEALED_MAPPINGS : EXECMEM_SEALED_LIBRARY)); /* for the child's sake */
	EXPECT_LAWFUL(d);
	close(talk[0]);
	close(talk[1]);
	expect_child_ends_well(child);
	EXPECT(stats_of(d).held_blocks == with_file && execmem_fill(block, bytes, 1) == EXECMEM_ESEALED);
	EXPECT_LAWFUL(d);
}

/* A child that was there before the seal has a mapping without one, and by that can write what the parent runs: no seal that says
 * "kernel" is given while it lives. Where it opened after the fork, or the child has ended, it is. */
static void seal_beside_a_child(int mode)
{
	execmem_options options = {.name = "seen", .write_mode = mode, .window = 16 << 20};
	bool with_file = mode != EXECMEM_MODE_PROCMEM && mode != EXECMEM_MODE_FLIP;
	uint32_t best = !has_mseal() ? EXECMEM_SEALED_LIBRARY : with_file ? EXECMEM_SEALED_KERNEL : EXECMEM_SEALED_MAPPINGS;
	execmem_domain *seen, *later, *after;
	uint64_t forked_ms;
	void *block;
	int talk[2];
	pid_t child;

	snprintf(test_context, sizeof test_context, "sealing beside a child, mode %s", execmem_mode_name(mode));
	EXPECT(execmem_domain_open(&options, &seen) == 0 && execmem_domain_open(&options, &after) == 0 && pipe(talk) == 0);
	EXPECT(execmem_place(seen, EXECMEM_TEXT, bytes, 200, 16, NULL, &block) == 0);
	child = fork();
	EXPECT(child >= 0);
	if (child == 0) {
		void *page = (void *)((uintptr_t)block & ~4095ull);

		close(talk[1]);
		EXPECT(read(talk[0], &(char){0}, 1) == 0); /* till all is sealed */
		if (mprotect(page, 4096, PROT_READ | PROT_WRITE) == 0)
			*(volatile uint8_t *)block ^= 255;
		_exit(0);
	}
	forked_ms = em_sys_milliseconds();
	while (em_sys_milliseconds() < forked_ms + 20) /* the clock that forks are told by ticks every few ms, or later */
		usleep(1000);
	EXPECT(execmem_domain_open(&options, &later) == 0);
	EXPECT(execmem_domain_seal(seen) == 0 && execmem_domain_seal(later) == 0);
	EXPECT(stats_of(later).sealed == best);
	close(talk[0]);
	close(talk[1]);
	expect_child_ends_well(child);
	EXPECT(*(uint8_t *)block == bytes[0] || stats_of(seen).sealed < EXECMEM_SEALED_KERNEL);
	EXPECT(*(uint8_t *)block == bytes[0] || with_file);
	EXPECT_SOON(!em_fork_is_seen(after));
	EXPECT(execmem_domain_seal(after) == 0 && stats_of(after).sealed == best);
}

/* What is random after a fork is not what the other process draws. Private memory: without gaps both would take the same places. */
static void fork_gaps(int mode)
{
	execmem_options options = {.name = "dice", .write_mode = mode, .window = 16 << 20, .gap = GAP};
	void *mine[16], *others[16];
	execmem_domain *d;
	int talk[2];
	pid_t child;

	snprintf(test_context, sizeof test_context, "gaps after a fork, mode %s", execmem_mode_name(mode));
	EXPECT(execmem_domain_open(&options, &d) == 0 && pipe(talk) == 0);
	EXPECT(execmem_alloc_in(d, EXECMEM_TEXT, 64, 16, NULL, &mine[0]) == 0); /* numbers are drawn */
	child = fork();
	EXPECT(child >= 0);
	for (int i = 0; i < 16; i++)
		EXPECT(execmem_alloc_in(d, EXECMEM_TEXT, 2 * GAP, 16, NULL, &mine[i]) == 0);
	if (child == 0) {
		EXPECT(write(talk[1], mine, sizeof mine) == sizeof mine);
		_exit(0);
	}
	EXPECT(read(talk[0], others, sizeof others) == sizeof others);
	EXPECT(memcmp(mine, others, sizeof mine) != 0);
	close(talk[0]);
	close(talk[1]);
	expect_child_ends_well(child);
	EXPECT(execmem_domain_close(d, 1) == 0);
}

/* Frees what it placed and more, so that all that waits comes out and is placed anew. */
static void turn_over(execmem_domain *d, int kind)
{
	void *blocks[64];

	for (int round = 0; round < 20; round++) {
		for (int i = 0; i < 64; i++) {
			EXPECT(execmem_place(d, kind, bytes, 100 + 64 * (size_t)(i % 9), 16, NULL, &blocks[i]) == 0);
			EXPECT(memcmp(blocks[i], bytes, 100) == 0);
		}
		for (int i = 0; i < 64; i++)
			EXPECT(execmem_free(blocks[i]) == 0);
		EXPECT(counts(d).quarantined_bytes <= 2 * 65536); /* a child has a shard that inherits and a new one */
	}
	EXPECT_LAWFUL(d);
}

/* What waits in memory that both see is the parent's; the child goes on with the rest, and with what it frees itself. */
static void fork_quarantined(int mode, uint32_t gap)
{
	execmem_options options = {.name = "waiting", .write_mode = mode, .window = 64 << 20, .quarantine = 65536, .gap = gap};
	bool with_file = mode != EXECMEM_MODE_PROCMEM && mode != EXECMEM_MODE_FLIP;
	void *blocks[2][20], *kept;
	execmem_domain *d;
	pid_t child;

	snprintf(test_context, sizeof test_context, "a fork while blocks wait, mode %s, gap %u", execmem_mode_name(mode), gap);
	EXPECT(execmem_domain_open(&options, &d) == 0);
	EXPECT(execmem_place(d, EXECMEM_TEXT, bytes, 500, 16, NULL, &kept) == 0);
	for (int i = 0; i < 40; i++)
		EXPECT(execmem_place(d, i % 2 ? EXECMEM_DATA : EXECMEM_TEXT, bytes, 300, 16, NULL, &blocks[i % 2][i / 2]) == 0);
	for (int i = 0; i < 40; i++)
		EXPECT(execmem_free(blocks[i % 2][i / 2]) == 0);
	EXPECT(counts(d).quarantined_blocks == 40);
	child = fork();
	EXPECT(child >= 0);
	if (child == 0) {
		EXPECT(counts(d).quarantined_blocks == (with_file ? 20 : 40));
		EXPECT(execmem_free(blocks[0][3]) == EXECMEM_EFREED && execmem_free(blocks[1][3]) == EXECMEM_EFREED);
		EXPECT_LAWFUL(d);
		EXPECT(execmem_free(kept) == 0 && counts(d).quarantined_blocks == (with_file ? 20 : 41)); /* else held */
		for (int kind = 0; kind < EXECMEM_KINDS; kind++)
			turn_over(d, kind);
		EXPECT(execmem_domain_close(d, 0) == 0);
		_exit(0);
	}
	EXPECT(counts(d).quarantined_blocks == 40);
	for (int kind = 0; kind < EXECMEM_KINDS; kind++)
		turn_over(d, kind);
	expect_child_ends_well(child);
	EXPECT(memcmp(kept, bytes, 500) == 0 && execmem_free(kept) == 0);
	EXPECT_LAWFUL(d);
	for (int kind = 0; kind < EXECMEM_KINDS; kind++)
		turn_over(d, kind);
	EXPECT_SOON(stats_of(d).held_blocks == 0);
	EXPECT_LAWFUL(d);
	EXPECT(execmem_domain_close(d, 0) == 0);
}

/* ---- threads ---- */

/* Threads place, batch and free while another seals: each call is done or refused, and no block is half made. */
struct racer {
	execmem_domain *d;
	uint64_t seed;
	uint64_t kept;
	_Atomic int *placed;
};

static void *race(void *arg)
{
	struct racer *r = arg;
	uint64_t offsets[65], out[64];

	for (;;) {
		size_t many = 1 + test_random(&r->seed) % 64;
		int err;

		offsets[0] = 0;
		for (size_t i = 0; i < many; i++)
			offsets[i + 1] = offsets[i] + 1 + test_random(&r->seed) % 4000;
		err = execmem_place_many(r->d, EXECMEM_TEXT, many, bytes, offsets, 16, NULL, out);
		if (err == EXECMEM_ESEALED)
			return NULL;
		EXPECT(err == 0);
		r->kept += many;
		atomic_fetch_add(r->placed, 1);
		for (size_t i = 0; i < many; i++)
			EXPECT(memcmp((void *)(uintptr_t)out[i], bytes + offsets[i], offsets[i + 1] - offsets[i]) == 0);
		err = execmem_free_many(r->d, many / 2, out);
		if (err == EXECMEM_ESEALED && many / 2 > 0)
			return NULL;
		EXPECT(err == 0);
		r->kept -= many / 2;
	}
}

static void seal_while_others_work(int mode)
{
	execmem_options options = {.name = "raced", .write_mode = mode, .quarantine = 1 << 20};
	_Atomic int placed = 0;
	struct racer racers[3];
	pthread_t threads[3];
	execmem_domain *d;

	snprintf(test_context, sizeof test_context, "sealing while others work, mode %s", execmem_mode_name(mode));
	EXPECT(execmem_domain_open(&options, &d) == 0);
	for (int i = 0; i < 3; i++) {
		racers[i] = (struct racer){.d = d, .seed = 1234567 + (uint64_t)i, .placed = &placed};
		EXPECT(pthread_create(&threads[i], NULL, race, &racers[i]) == 0);
	}
	while (atomic_load(&placed) < 60)
		usleep(1000);
	EXPECT(execmem_domain_seal(d) == 0);
	for (int i = 0; i < 3; i++)
		EXPECT(pthread_join(threads[i], NULL) == 0);
	EXPECT(stats_of(d).live_blocks == racers[0].kept + racers[1].kept + racers[2].kept);
	EXPECT_LAWFUL(d);
}

/* A pack that is being made is counted for its block, not for the gap before it, by whoever looks meanwhile. */
struct maker {
	execmem_domain *d;
	_Atomic bool stop;
};

static void *make_packs(void *arg)
{
	struct maker *m = arg;
	void *blocks[4];

	while (!m->stop) {
		for (int i = 0; i < 4; i++)
			EXPECT(execmem_alloc_in(m->d, EXECMEM_TEXT, 3 << 18, 16, NULL, &blocks[i]) == 0);
		for (int i = 0; i < 4; i++)
			EXPECT(execmem_free(blocks[i]) == 0);
	}
	return NULL;
}

static void gaps_are_not_charged(void)
{
	execmem_options options = {.name = "made", .gap = EXECMEM_GAP_MAX, .window = 64 << 20, .limit = 64 << 20, .small_pages = 1};
	struct maker maker = {0};
	pthread_t thread;

	snprintf(test_context, sizeof test_context, "packs made for blocks with gaps");
	EXPECT(execmem_domain_open(&options, &maker.d) == 0);
	test_begin(&thread, make_packs, &maker);
	for (int i = 0; i < 80; i++) {
		pid_t child = i % 20 ? -1 : fork();

		EXPECT_LAWFUL(maker.d);
		if (child == 0) { /* where what was being made is forgotten */
			EXPECT(stats_of(maker.d).charged_bytes <= 4 * (3 << 18));
			_exit(0);
		}
		if (child > 0)
			expect_child_ends_well(child);
	}
	maker.stop = true;
	EXPECT(pthread_join(thread, NULL) == 0 && stats_of(maker.d).charged_bytes == 0);
	EXPECT(execmem_domain_close(maker.d, 1) == 0);
}

int main(int argc, char **argv)
{
	static const struct refusal refusals[] = {
		{NULL, false, false},           {"seal=F", true, false},       {"fseal=F", false, true},
		{"seal=F fseal=F", true, true}, {"unview=F", false, false},    {"unview=FF", false, false},
		{"unview=.FF", false, false},   {"unview=..FF", false, false}, {"unview=...FF", false, false},
		{"discard=F*", false, false},   {"write=F*", false, false},    {"protect=F* stop=F*", false, false},
	};
	int operations = test_amount(argc, argv, 4000, 300);

	for (size_t i = 0; i < sizeof bytes; i++)
		bytes[i] = (uint8_t)(i * 11 + 3);
	quarantine_order();
	gap_distances();
	trust();
	gaps_are_not_charged();
	for (int mode = EXECMEM_MODE_SYSCALL; mode < EXECMEM_MODES; mode++) {
		if (!test_takes_mode(mode))
			continue;
		guards(mode);
		random_work(mode, QUARANTINE, 0, operations);
		random_work(mode, 0, GAP, operations);
		random_work(mode, QUARANTINE, GAP, operations);
		for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++)
			seal(mode, &refusals[i]);
		seal_data(mode);
		fork_sealed(mode);
		fork_gaps(mode);
		seal_forked(mode);
		seal_beside_a_child(mode);
		fork_quarantined(mode, 0);
		fork_quarantined(mode, GAP);
		if (mode != EXECMEM_MODE_FLIP) /* where a write is refused when others do not stop in time */
			seal_while_others_work(mode);
	}
	EXPECT_LAWFUL(NULL);
	puts("ok");
	return 0;
}
