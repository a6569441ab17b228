/* model_census: what this process holds of files, mappings and memory, but for what sealed domains keep, which is looked at here. */
#include "model_state.h"

#include <dirent.h>
#include <malloc.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

enum { KEPT = 1000, GUARD = 64 << 10 };

static struct kept { /* a sealed domain */
	struct room room;
	uint64_t window, window_end, ledger, ledger_end;
	dev_t device; /* of the ledger's file, */
	ino_t file; /* which stays open */
} kept[KEPT];
static int count;
static uint64_t kept_bytes;

static uint64_t memory_of(const struct room *r)
{
	execmem_stats stats;

	EXPECT(execmem_domain_stats(r->d, &stats) == 0 && stats.sealed != EXECMEM_SEALED_NOT);
	return stats.resident_bytes + stats.ledger_bytes;
}

bool model_census_can_seal(void)
{
	static int can; /* 1: yes, -1: no */
	void *page;

	if (!can) {
		page = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		can = syscall(462, page, 4096ul, 0ul) == 0 ? 1 : -1;
	}
	return can > 0;
}

bool model_census_has_room(void)
{
	return count < KEPT - DOMAINS * 2 && kept_bytes < 1ull << 30;
}

void model_census_keep(const struct room *sealed)
{
	const execmem_header *h = execmem_domain_ledger(sealed->d);
	struct kept *k = &kept[count++];

	EXPECT(count < KEPT);
	*k = (struct kept){.room = *sealed, .window = h->window - GUARD, .ledger = (uintptr_t)h};
	k->window_end = h->window + (uint64_t)h->packs_max * EXECMEM_PACK_SIZE + GUARD;
	k->ledger_end = k->ledger + h->ledger_size;
	kept_bytes += memory_of(sealed);
}

void model_census_expect_kept(void)
{
	execmem_shard sum;

	for (int i = 0; i < count; i++) {
		const struct room *r = &kept[i].room;

		EXPECT(execmem_domain_count(r->d, &sum) == 0);
		EXPECT(sum.allocs - sum.frees == r->live + r->lost && sum.used_bytes == r->used + r->lost_used);
		EXPECT(!r->code || test_call(r->code) == r->result);
		EXPECT(execmem_domain_ledger(r->d)->sealed != EXECMEM_SEALED_NOT);
		EXPECT(i % 16 || execmem_domain_close(r->d, 1) == EXECMEM_ESEALED);
	}
}

/* A line of /proc/self/maps that belongs to a sealed domain. */
static bool is_kept(const char *line)
{
	uint64_t start, inode;
	unsigned major, minor;

	if (sscanf(line, "%lx-%*x %*s %*x %x:%x %lu", &start, &major, &minor, &inode) != 4)
		return false;
	for (int i = 0; i < count; i++) {
		if (start == kept[i].ledger) {
			kept[i].device = makedev(major, minor);
			kept[i].file = (ino_t)inode;
		}
		if ((start >= kept[i].window && start < kept[i].window_end) || (start >= kept[i].ledger && start < kept[i].ledger_end))
			return true;
	}
	return false;
}

static bool is_kept_file(int fd)
{
	struct stat status;

	if (fstat(fd, &status) < 0)
		return false;
	for (int i = 0; i < count; i++)
		if (kept[i].file == status.st_ino && kept[i].device == status.st_dev)
			return true;
	return false;
}

/* AddressSanitizer's heap: it reserves another part for each new size of what a test allocates. */
static bool is_sanitizers(uint64_t start)
{
#ifdef __SANITIZE_ADDRESS__
	return start >= 0x600000000000 && start < 0x640000000000;
#else
	(void)start;
	return false;
#endif
}

static int count_mappings(void)
{
	const execmem_header *root = execmem_domain_ledger(NULL);
	FILE *file = fopen("/proc/self/maps", "r");
	char line[512];
	int lines = 0;

	EXPECT(file && root);
	while (fgets(line, sizeof line, file)) {
		/* The root's guards are mappings of their own, or parts of larger ones, as its outermost packs are used or not. */
		uint64_t start = strtoull(line, NULL, 16), at = start - (root->window - GUARD);

		if (!is_sanitizers(start) && at >= (uint64_t)root->packs_max * EXECMEM_PACK_SIZE + 2 * GUARD && !is_kept(line))
			lines += strstr(line, "memfd:execmem") != NULL || strstr(line, "---p 00000000 00:00") != NULL ||
			         strstr(line, "r-xp 00000000 00:00") != NULL;
	}
	fclose(file);
	return lines;
}

static int count_files(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int files = 0;

	EXPECT(dir);
	for (struct dirent *e = readdir(dir); e; e = readdir(dir))
		files += e->d_name[0] != '.' && !is_kept_file(atoi(e->d_name));
	closedir(dir);
	return files;
}

uint64_t model_census_resident(void)
{
	unsigned long pages = 0, resident = 0;
	uint64_t bytes, theirs = 0;
	FILE *file;

	if (getenv("EXECMEM_TEST_SHORT")) /* set where a sanitizer or memcheck keeps memory of its own */
		return 0;
	malloc_trim(0);
	file = fopen("/proc/self/statm", "r");
	EXPECT(file && fscanf(file, "%lu %lu", &pages, &resident) == 2);
	fclose(file);
	bytes = (uint64_t)resident * (uint64_t)sysconf(_SC_PAGESIZE);
	for (int i = 0; i < count; i++)
		theirs += memory_of(&kept[i].room);
	return bytes > theirs ? bytes - theirs : 0;
}

struct model_census model_census(void)
{
	struct model_census c = {.mappings = count_mappings()};

	c.files = count_files(); /* after the mappings, which tell the ledgers' files */
	return c;
}
