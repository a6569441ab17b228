/* crew: one or two threads on one peer, each with a population of `live` blocks of its own, each on a CPU of its own.
 *
 * one    one thread alone: what the others are compared with.
 * own    each replaces its own blocks.
 * cross  each hands the blocks it takes out to the other, 256 at a time, and frees those it is handed.
 * beside one replaces its own blocks, each place timed, while the other places `live` more blocks and frees them again, over and
 *        over, so that packs come and go: does the first wait for them?
 */
#ifndef BENCH_CREW_H
#define BENCH_CREW_H

#include "cycle.h"

enum crew_mode { CREW_ONE = 0, CREW_OWN, CREW_CROSS, CREW_BESIDE, CREW_MODES };

struct crew;

const char *crew_mode_name(enum crew_mode mode);
int crew_cpus(void); /* CPUs this process may use; two threads need two */
struct crew *crew_open(const struct bench_plan *plan, enum crew_mode mode, char *why);
/* `cycles` in every thread; the time from the common start to the last thread's end, for one cycle of one thread. */
struct bench_round crew_round(struct crew *crew, uint64_t cycles);
/* In mode `beside`: the first thread's places over all rounds, and how often packs came or went meanwhile. */
void crew_tell(const struct crew *crew, struct text *out);
uint64_t crew_verify(struct crew *crew);

#endif
