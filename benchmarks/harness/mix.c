/* mix: see mix.h. The ends of the quantile lists (0 and 1) that no source gives are assumptions, marked so. */
#include "mix.h"

#include <math.h>
#include <string.h>

enum { QUANTILES_MAX = 6, LOGNORMAL_MIN = 64, LOGNORMAL_MAX = 32768 };

struct quantile {
	double share;
	uint32_t size;
};

struct mix {
	const char *name;
	struct quantile quantiles[QUANTILES_MAX]; /* ascending; a share of 1 ends the list; none: lognormal */
};

static const struct mix mixes[] = {
	{"lognormal", {{0, 0}}},
	{"libbpf-tools", {{0, 48}, {0.5, 213}, {0.9, 876}, {0.99, 2974}, {1, 3317}}}, /* minimum assumed */
	{"v8", {{0, 32}, {0.5, 148}, {0.9, 1620}, {0.99, 8400}, {1, 32768}}},         /* both ends assumed */
	{"hotspot", {{0, 64}, {0.5, 576}, {0.9, 2936}, {0.99, 15000}, {1, 65536}}},   /* both ends assumed */
	{"wasmtime", {{0, 32}, {0.5, 199}, {0.9, 987}, {0.99, 6840}, {1, 32768}}},    /* both ends assumed */
	{"cilium", {{0, 512}, {0.5, 6600}, {0.9, 40000}, {1, 205000}}},               /* minimum assumed */
	{"constant", {{0, 512}, {1, 512}}},
};

void rng_seed(struct rng *rng, uint64_t seed)
{
	for (int i = 0; i < 2; i++) { /* splitmix64 */
		seed += 0x9E3779B97F4A7C15u;
		uint64_t z = (seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9u;
		z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
		rng->state[i] = z ^ (z >> 31);
	}
}

uint64_t rng_next(struct rng *rng)
{
	uint64_t a = rng->state[0], b = rng->state[1], result = a + b;

	b ^= a;
	rng->state[0] = ((a << 24) | (a >> 40)) ^ b ^ (b << 16);
	rng->state[1] = (b << 37) | (b >> 27);
	return result;
}

uint32_t rng_below(struct rng *rng, uint32_t bound)
{
	return (uint32_t)(((rng_next(rng) >> 32) * bound) >> 32);
}

double rng_unit(struct rng *rng)
{
	return (double)(rng_next(rng) >> 11) * 0x1p-53;
}

const struct mix *mix_find(const char *name)
{
	for (size_t i = 0; i < sizeof(mixes) / sizeof(mixes[0]); i++)
		if (strcmp(mixes[i].name, name) == 0)
			return &mixes[i];
	return NULL;
}

const char *mix_name(size_t i)
{
	return i < sizeof(mixes) / sizeof(mixes[0]) ? mixes[i].name : NULL;
}

/* mean / median = exp(sigma^2 / 2) */
static uint32_t draw_lognormal(struct rng *rng)
{
	const double sigma = sqrt(2 * log(820.0 / 500.0));
	const double turn = 8 * atan(1.0);
	double normal = sqrt(-2 * log(1 - rng_unit(rng))) * cos(turn * rng_unit(rng));
	double size = 500 * exp(sigma * normal);

	return size < LOGNORMAL_MIN ? LOGNORMAL_MIN : size > LOGNORMAL_MAX ? LOGNORMAL_MAX : (uint32_t)size;
}

uint32_t mix_draw(const struct mix *mix, struct rng *rng)
{
	const struct quantile *high = &mix->quantiles[1];

	if (mix->quantiles[0].size == 0)
		return draw_lognormal(rng);
	double share = rng_unit(rng);
	while (high->share < share)
		high++;
	const struct quantile *low = high - 1;
	double part = (share - low->share) / (high->share - low->share);
	return (uint32_t)(low->size * pow((double)high->size / low->size, part) + 0.5);
}

uint32_t mix_max(const struct mix *mix)
{
	uint32_t max = LOGNORMAL_MAX;

	if (mix->quantiles[0].size != 0)
		for (const struct quantile *q = mix->quantiles; (max = q->size, q->share < 1); q++)
			;
	return max;
}
