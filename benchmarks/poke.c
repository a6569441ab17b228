/* poke: what changing an instruction costs while other threads run, beside one synchronisation of all threads and beside the usual way, which
 * makes the page writable, writes and makes it executable again. Prints a JSON object a line; poke.py builds and runs it.
 *
 * usage: poke rounds mode others way
 *
 *   others  0: no other thread; 1: one that runs something else; 2: one that runs the sites
 *   way     0: as the CPU allows; 1: behind breakpoints on every CPU
 *
 * In each round everything is measured in turn; the figures are medians over the rounds, in nanoseconds by the clock.
 */
#include "changes.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { BATCH = 256, SINGLES = 20, SYNCS = 20, HUGE_SIZE = 2 << 20, ROUNDS_MAX = 1000, LEN = 5 };

static const uint8_t forms[2][LEN + 1] = {{0x0F, 0x1F, 0x44, 0, 0, 0xC3},
                                          {0xB8, 7, 0, 0, 0, 0xC3}}; /* nop; mov eax, 7; both: ret */
static uint8_t *sites[BATCH];
static int now; /* which form they have */
static _Atomic bool ended;

/* ---- what is measured ---- */

static double sync_once(void)
{
	double start = ns();

	for (int i = 0; i < SYNCS; i++)
		need(execmem_sync() == 0, "sync");
	return (ns() - start) / SYNCS;
}

static double change_singly(void)
{
	double start = ns();

	for (int i = 0; i < SINGLES; i++)
		need(execmem_poke(sites[i], forms[now], forms[!now], LEN) == 0, "poke");
	start = (ns() - start) / SINGLES;
	for (int i = 0; i < SINGLES; i++)
		need(execmem_poke(sites[i], forms[!now], forms[now], LEN) == 0, "poke");
	return start;
}

/* In an order that is not theirs. */
static double change_all(void)
{
	execmem_poke_site batch[BATCH];
	double start;

	for (int i = 0; i < BATCH; i++)
		batch[i] = (execmem_poke_site){sites[(i * 77 + 13) % BATCH], forms[now], forms[!now], LEN};
	start = ns();
	need(execmem_poke_batch(batch, BATCH) == 0, "batch");
	now = !now;
	return ns() - start;
}

static double protect_and_write(uint8_t *pack)
{
	double start = ns();

	for (int i = 0; i < SINGLES; i++) {
		uint8_t *page = pack + i * 4096;

		need(mprotect(page, 4096, PROT_READ | PROT_WRITE) == 0, "mprotect");
		memcpy(page + 64, forms[i & 1], LEN);
		need(mprotect(page, 4096, PROT_READ | PROT_EXEC) == 0, "mprotect");
	}
	return (ns() - start) / SINGLES;
}

/* ---- around it ---- */

static void *spin(void *unused)
{
	static volatile uint64_t count;

	while (!atomic_load_explicit(&ended, memory_order_relaxed))
		count++;
	return unused;
}

static void *run(void *unused)
{
	while (!atomic_load_explicit(&ended, memory_order_relaxed))
		for (int i = 0; i < BATCH; i++)
			((void (*)(void))(uintptr_t)sites[i])();
	return unused;
}

/* Bytes of 2 MB pages in the range, as smaps tells. */
static long huge_bytes(const uint8_t *from, size_t size)
{
	FILE *smaps = fopen("/proc/self/smaps", "r");
	char line[512];
	unsigned long start, end;
	bool inside = false;
	long kb, sum = 0;

	while (smaps && fgets(line, sizeof line, smaps)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			inside = start < (uintptr_t)from + size && end > (uintptr_t)from;
		else if (inside && (sscanf(line, "AnonHugePages: %ld kB", &kb) == 1 || sscanf(line, "ShmemPmdMapped: %ld kB", &kb) == 1 ||
		                    sscanf(line, "FilePmdMapped: %ld kB", &kb) == 1))
			sum += kb * 1024;
	}
	if (smaps)
		fclose(smaps);
	return sum;
}

/* A pack as one would make it by hand: private, one 2 MB page where the system gives it. */
static uint8_t *make_pack(void)
{
	uint8_t *at = mmap(NULL, 2 * HUGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	need(at != MAP_FAILED, "mmap");
	at = (uint8_t *)(((uintptr_t)at + HUGE_SIZE - 1) & ~(uintptr_t)(HUGE_SIZE - 1));
	madvise(at, HUGE_SIZE, MADV_HUGEPAGE);
	memset(at, 0xCC, HUGE_SIZE);
	madvise(at, HUGE_SIZE, 25 /* MADV_COLLAPSE */);
	need(mprotect(at, HUGE_SIZE, PROT_READ | PROT_EXEC) == 0, "mprotect");
	return at;
}

/* Half of the sites lie over the edge of an 8-byte word. A large block beside them makes the pack a full one. */
static void place_sites(execmem_domain *domain)
{
	void *at;

	need(execmem_alloc_in(domain, EXECMEM_TEXT, HUGE_SIZE - (64 << 10), 64, NULL, &at) == 0, "alloc");
	for (int i = 0; i < BATCH; i++) {
		uint8_t code[16];

		memset(code, 0x90, sizeof code);
		memcpy(code + (i & 1 ? 6 : 0), forms[0], sizeof forms[0]);
		need(execmem_place(domain, EXECMEM_TEXT, code, sizeof code, 16, NULL, &at) == 0, "place");
		sites[i] = (uint8_t *)at + (i & 1 ? 6 : 0);
	}
}

static int by_size(const void *a, const void *b)
{
	double left = *(const double *)a, right = *(const double *)b;

	return (left > right) - (left < right);
}

static double median(double *of, int count)
{
	qsort(of, (size_t)count, sizeof *of, by_size);
	return of[count / 2];
}

int main(int argc, char **argv)
{
	static double sync_ns[ROUNDS_MAX], single_ns[ROUNDS_MAX], batch_ns[ROUNDS_MAX], protect_ns[ROUNDS_MAX], protect_all;
	int rounds = argc > 4 ? atoi(argv[1]) : 0, others = argc > 4 ? atoi(argv[3]) : 0, way = argc > 4 ? atoi(argv[4]) : 0, mode = 0;
	execmem_options options = {.name = "poke", .window = 16 << 20};
	execmem_domain *domain;
	uint8_t *pack;
	long pack_before, sites_before;
	pthread_t thread;

	while (argc > 4 && mode < EXECMEM_MODES && strcmp(execmem_mode_name(mode), argv[2]) != 0)
		mode++;
	if (rounds < 1 || rounds > ROUNDS_MAX || mode == EXECMEM_MODES) {
		fprintf(stderr, "usage: poke rounds mode others way\n");
		return 2;
	}
	options.write_mode = mode;
	need(execmem_domain_open(&options, &domain) == 0, "open");
	place_sites(domain);
	pack = make_pack();
	if (way)
		execmem_test_script("store=F*");
	pack_before = huge_bytes(pack, HUGE_SIZE);
	sites_before = huge_bytes(sites[0], 1);
	if (others)
		need(pthread_create(&thread, NULL, others == 2 ? run : spin, NULL) == 0, "thread");
	for (int i = 0; i < rounds; i++) {
		sync_ns[i] = sync_once();
		single_ns[i] = change_singly();
		batch_ns[i] = change_all();
		protect_ns[i] = protect_and_write(pack);
	}
	atomic_store(&ended, true);
	if (others)
		need(pthread_join(thread, NULL) == 0, "join");
	protect_all = median(protect_ns, rounds);
	printf("{\"mode\": \"%s\", \"others\": \"%s\", \"way\": \"%s\", \"sync_ns\": %.0f, \"single_ns\": %.0f, \"batch_ns\": %.0f, "
	       "\"mprotect_ns\": %.0f, \"sites_huge\": [%ld, %ld], \"mprotect_huge\": [%ld, %ld]}\n",
	       argv[2],
	       others == 2 ? "one runs the sites"
	       : others    ? "one runs something else"
	                   : "none",
	       way ? "breakpoints" : "as allowed", median(sync_ns, rounds), median(single_ns, rounds), median(batch_ns, rounds),
	       protect_all, sites_before, huge_bytes(sites[0], 1), pack_before, huge_bytes(pack, HUGE_SIZE));
	return 0;
}
