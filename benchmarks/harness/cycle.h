/* cycle: a population of live blocks; a cycle frees a random one and places another of a size drawn from the mix. What will be
 * freed and what will be placed is drawn before the clock starts.
 */
#ifndef BENCH_CYCLE_H
#define BENCH_CYCLE_H

#include "text.h"

#include <stddef.h>
#include <stdint.h>

struct bench; /* one peer with a population */

struct bench_plan {
	const char *peer;
	const char *mix;
	uint64_t live;
	uint64_t seed;
	uint64_t threads; /* populations that will share the peer */
	double age_ms;    /* the CPU time that ageing may take at most */
};

struct bench_memory {
	uint64_t live_bytes;     /* as asked for */
	uint64_t resident_bytes; /* physical memory the peer added, its bookkeeping included, a page mapped twice counted once */
	uint64_t vmas;           /* mappings the peer added */
	double huge_share;       /* of the resident bytes, mapped by 2 MB entries */
};

struct bench_round {
	double cpu_ns; /* of one cycle; negative: the peer failed */
	double wall_ns;
};

/* Opens the peer, grows `live` blocks, then replaces random ones until the layout is that of a process of some age.
 * NULL: `why` (160 bytes) tells. */
struct bench *bench_open(const struct bench_plan *plan, char *why);
/* Another population on the peer that `first` opened, for another thread, which calls this itself. */
struct bench *bench_join(const struct bench *first, const struct bench_plan *plan, char *why);
int bench_draw(struct bench *bench, uint64_t cycles);                   /* 0, or -1: no memory */
double bench_run(struct bench *bench);                                  /* runs what was drawn; ns, negative: the peer failed */
struct bench_round bench_round(struct bench *bench, uint64_t cycles);   /* a short warm-up, then `cycles` */
int bench_memory(struct bench *bench, struct bench_memory *out);
void bench_tell_memory(const struct bench_memory *memory, struct text *out);
uint64_t bench_verify(struct bench *bench); /* live blocks that do not hold what was written: 0 is right */
uint64_t bench_aged(const struct bench *bench);
void bench_close(struct bench *bench);

#endif
