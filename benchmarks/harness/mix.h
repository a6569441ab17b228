/* mix: random numbers and the size mixes every benchmark draws from.
 *
 * A mix is a list of quantiles of code sizes seen in the wild; between two of them sizes are spread evenly in the logarithm.
 * The lognormal mix has median 500 and mean 820 bytes, cut to 64 B .. 32 KB.
 */
#ifndef BENCH_MIX_H
#define BENCH_MIX_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct rng {
	uint64_t state[2];
};

void rng_seed(struct rng *rng, uint64_t seed);
uint64_t rng_next(struct rng *rng);                  /* xoroshiro128+ */
uint32_t rng_below(struct rng *rng, uint32_t bound); /* 0 .. bound - 1 */
double rng_unit(struct rng *rng);                    /* [0, 1) */

struct mix;
const struct mix *mix_find(const char *name); /* NULL: no such mix */
const char *mix_name(size_t i);               /* NULL: past the last */
uint32_t mix_draw(const struct mix *mix, struct rng *rng);
uint32_t mix_max(const struct mix *mix); /* bytes */

#ifdef __cplusplus
}
#endif
#endif
