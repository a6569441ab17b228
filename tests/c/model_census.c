/* model_census: what this process holds of files, mappings and memory. */
#include "model.h"
#include "test.h"

#include <dirent.h>
#include <malloc.h>
#include <unistd.h>

struct model_census model_census(void)
{
	struct model_census c = {0};
	const execmem_header *root = execmem_domain_ledger(NULL);
	unsigned long pages = 0, resident = 0;
	char line[512];
	DIR *dir = (malloc_trim(0), opendir("/proc/self/fd"));
	FILE *file;

	EXPECT(dir && root);
	while (readdir(dir))
		c.files++;
	closedir(dir);
	file = fopen("/proc/self/maps", "r");
	EXPECT(file);
	while (fgets(line, sizeof line, file)) {
		uint64_t at = strtoull(line, NULL, 16) - root->window;

		if (at / EXECMEM_PACK_SIZE >= root->packs_max)
			c.mappings += strstr(line, "memfd:execmem") != NULL || strstr(line, "---p 00000000 00:00") != NULL ||
			              strstr(line, "r-xp 00000000 00:00") != NULL;
	}
	fclose(file);
	file = fopen("/proc/self/statm", "r");
	EXPECT(file && fscanf(file, "%lu %lu", &pages, &resident) == 2);
	fclose(file);
	if (!getenv("EXECMEM_TEST_SHORT")) /* set where a sanitizer or memcheck keeps memory of its own */
		c.resident = (uint64_t)resident * (uint64_t)sysconf(_SC_PAGESIZE);
	return c;
}
