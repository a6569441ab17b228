/* load: what is asked of a population beside its cycles. Each adds its figures to a piece of JSON; 0, or -1: the peer failed. */
#ifndef BENCH_LOAD_H
#define BENCH_LOAD_H

#include "cycle.h"

/* Single operations: p50, p99, p99.9 and the worst of free and place, and of alloc and write where the peer has them apart.
 * Operations during which a pack was made or given back are told apart. */
int load_tails(struct bench *bench, uint64_t cycles, struct text *out);
int load_phases(struct bench *bench, uint64_t cycles, struct text *out); /* ns of a free, an alloc, a write, a place */
int load_calls(struct bench *bench, struct text *out);                   /* ns of calling a random live block */
int load_many(struct bench *bench, struct text *out); /* ns a block of placing and freeing 1,000 at once; nothing without */
int load_bursts(struct bench *bench, struct text *out);                  /* short-lived blocks in waves, some of which stay */
int load_growth(struct bench *bench, struct text *out); /* frees all in random order, places as many, both twice */
void load_told(struct bench *bench, struct text *out);  /* what the peer knows of itself */

#endif
