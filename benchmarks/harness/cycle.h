/* cycle: the workload. A population of live blocks; a cycle frees a random one and places another of a size drawn from the
 * mix. What will be freed and what will be placed is drawn before the clock starts.
 */
#ifndef BENCH_CYCLE_H
#define BENCH_CYCLE_H

#include <stddef.h>
#include <stdint.h>

enum { BENCH_OPS = 2, BENCH_FREE = 0, BENCH_PLACE = 1, BENCH_SHARES = 3 };

struct bench; /* one peer with its population */

struct bench_memory {
	uint64_t live_bytes;     /* as asked for */
	uint64_t resident_bytes; /* physical memory the peer added, its bookkeeping included, a page mapped twice counted once */
	uint64_t vmas;           /* mappings the peer added */
	double huge_share;       /* of the resident bytes, mapped by 2 MB entries */
};

struct bench_tail { /* ns of single operations: p50, p99, p99.9; one reading of the clock included */
	double ns[BENCH_OPS][BENCH_SHARES];
	double clock; /* ns of reading the clock twice */
};

/* Opens the peer, grows `live` blocks, then replaces random ones until the layout is that of a process of some age.
 * NULL: `why` (160 bytes) tells. */
struct bench *bench_open(const char *peer, const char *mix, uint64_t live, uint64_t seed, char *why);
int bench_draw(struct bench *bench, uint64_t cycles);  /* 0, or -1: no memory */
double bench_run(struct bench *bench);                 /* runs what was drawn; ns, negative: the peer failed */
double bench_round(struct bench *bench, uint64_t cycles); /* a short warm-up, then `cycles`; ns of one, negative: failed */
int bench_tail(struct bench *bench, uint64_t cycles, struct bench_tail *out);
int bench_memory(struct bench *bench, struct bench_memory *out);
uint64_t bench_verify(struct bench *bench); /* live blocks that do not hold what was written: 0 is right */
void bench_close(struct bench *bench);

#endif
