/* pack_making: what a pack costs on small pages, by how much of it is opened, and what it costs to complete and collapse it from there.
 * The answer sets EM_SUPPLY_SMALL_MAX (csrc/supply.h). Prints JSON; medians of many rounds in microseconds.
 *
 *     cc -O2 -o build/pack_making benchmarks/pack_making.c && build/pack_making > benchmarks/results/pack_making.json
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

enum { PACK = 2 << 20, UNIT = 65536, ROUNDS = 41, COLLAPSE = 25, POPULATE_READ = 22 };

static uint8_t traps[UNIT];
static int file;
static uint8_t *window, *scratch;

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static void expect(int right, const char *what)
{
	if (!right) {
		perror(what);
		exit(1);
	}
}

static void blank(long from, long to)
{
	for (long at = from; at < to; at += UNIT)
		expect(pwrite(file, traps, (size_t)(to - at < UNIT ? to - at : UNIT), at) > 0, "pwrite");
}

static void view(long size)
{
	expect(mmap(window, (size_t)size, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED, file, 0) == window, "mmap");
	madvise(window, (size_t)size, POPULATE_READ);
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double median(double *values)
{
	qsort(values, ROUNDS, sizeof *values, compare);
	return values[ROUNDS / 2];
}

int main(void)
{
	static double small[ROUNDS], collapse[ROUNDS], rest[ROUNDS];
	struct utsname name;
	uint8_t *at = mmap(NULL, 3 * PACK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	window = (uint8_t *)(((uintptr_t)at + PACK - 1) & ~(uintptr_t)(PACK - 1));
	scratch = window + PACK;
	file = (int)syscall(SYS_memfd_create, "pack_making", 1);
	expect(file >= 0 && ftruncate(file, PACK) == 0, "memfd_create");
	memset(traps, 0xCC, sizeof traps);
	uname(&name);
	printf("{\"what\": \"microseconds, medians of %d rounds\", \"kernel\": \"%s\", \"machine\": \"%s\", \"rows\": [\n", ROUNDS,
	       name.release, name.machine);
	for (long opened = 4096; opened <= PACK; opened *= 2) {
		for (int round = 0; round < ROUNDS; round++) {
			double t0, t1, t2;

			expect(mmap(window, 2 * PACK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == window,
			       "mmap");
			fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PACK);
			t0 = now();
			blank(0, opened);
			view(opened);
			t1 = now();
			expect(mmap(scratch, PACK, PROT_READ, MAP_SHARED | MAP_FIXED, file, 0) == scratch, "mmap");
			expect(madvise(scratch, PACK, COLLAPSE) == 0, "MADV_COLLAPSE");
			t2 = now();
			blank(opened, PACK);
			view(PACK);
			small[round] = t1 - t0;
			collapse[round] = t2 - t1;
			rest[round] = now() - t2;
		}
		printf("  {\"opened_kb\": %ld, \"open_us\": %.1f, \"collapse_us\": %.1f, \"blank_rest_us\": %.1f}%s\n", opened / 1024,
		       median(small), median(collapse), median(rest), opened == PACK ? "" : ",");
	}
	puts("]}");
	return 0;
}
