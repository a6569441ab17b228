/* test_batch: random batches on every write mode against a model: placed, refused midway, freed in rows, backwards and out of order.
 *
 * usage: test_batch [batches per mode]
 */
#include "test.h"

#include <stdbool.h>

enum { LIVE_MAX = 6000, BATCH_MAX = 300, LONG_SIZE = 3000 };

struct shadow {
	uint64_t address;
	uint32_t size;
	uint8_t byte;
};

static struct shadow live[LIVE_MAX];
static size_t count;
static uint64_t live_bytes;

static uint32_t random_size(uint64_t *seed)
{
	uint64_t dice = test_random(seed) % 100;

	if (dice < 50)
		return 1 + (uint32_t)(test_random(seed) % 64);
	return 1 + (uint32_t)(test_random(seed) % (dice < 98 ? LONG_SIZE : 40 * LONG_SIZE)); /* some are longer than a run may be */
}

/* Offsets and bytes of a batch; `wrong`: this element has size 0, BATCH_MAX: none. */
static size_t draw(uint64_t *seed, uint64_t offsets[BATCH_MAX + 1], uint8_t **bytes, size_t wrong)
{
	size_t many = 1 + test_random(seed) % BATCH_MAX;

	offsets[0] = 0;
	for (size_t i = 0; i < many; i++)
		offsets[i + 1] = offsets[i] + (i == wrong ? 0 : random_size(seed));
	*bytes = malloc(offsets[many] + 1);
	EXPECT(*bytes);
	for (size_t i = 0; i < many; i++)
		memset(*bytes + offsets[i], (int)(offsets[i] % 251), offsets[i + 1] - offsets[i]);
	return many;
}

static void expect_block(const struct shadow *s)
{
	const uint8_t *at = (const uint8_t *)(uintptr_t)s->address;

	for (uint32_t i = 0; i < s->size; i++)
		EXPECT(at[i] == s->byte);
}

static void expect_counts(execmem_domain *d)
{
	execmem_stats stats;

	EXPECT(execmem_domain_stats(d, &stats) == 0 && stats.live_blocks == count && stats.live_bytes == live_bytes);
}

static void place_batch(execmem_domain *d, uint64_t *seed)
{
	uint64_t offsets[BATCH_MAX + 1], out[BATCH_MAX];
	bool refused = test_random(seed) % 4 == 0;
	size_t wrong = refused ? test_random(seed) % BATCH_MAX : BATCH_MAX;
	uint8_t *bytes;
	size_t many = draw(seed, offsets, &bytes, wrong);
	int align = test_random(seed) % 8 ? 16 : 256;
	int err = execmem_place_many(d, EXECMEM_TEXT, many, bytes, offsets, (size_t)align, NULL, out);

	EXPECT(err == (wrong < many ? EXECMEM_EINVAL : 0));
	if (err < 0)
		EXPECT(execmem_error_index() == wrong);
	for (size_t i = 0; i < many && err == 0; i++) {
		live[count] = (struct shadow){out[i], (uint32_t)(offsets[i + 1] - offsets[i]), (uint8_t)(offsets[i] % 251)};
		expect_block(&live[count]);
		live_bytes += live[count++].size;
	}
	free(bytes);
}

/* Takes blocks out of the model: neighbours in the order of their birth, which often lie side by side. */
static size_t take_out(uint64_t *seed, uint64_t out[BATCH_MAX])
{
	size_t many = 1 + test_random(seed) % BATCH_MAX, from;
	uint64_t order = test_random(seed) % 4;

	many = many < count ? many : count;
	from = test_random(seed) % (count - many + 1);
	for (size_t i = 0; i < many; i++) {
		const struct shadow *s = &live[from + (order == 1 ? many - 1 - i : i)];

		expect_block(s);
		out[i] = s->address;
		live_bytes -= s->size;
	}
	for (size_t i = many; order == 2 && i-- > 1;) { /* out of order */
		size_t other = test_random(seed) % (i + 1);
		uint64_t kept = out[i];

		out[i] = out[other];
		out[other] = kept;
	}
	memmove(&live[from], &live[from + many], (count - from - many) * sizeof *live);
	count -= many;
	return many;
}

static void free_batch(execmem_domain *d, uint64_t *seed)
{
	uint64_t out[BATCH_MAX + 1];
	size_t many = take_out(seed, out);

	out[many] = out[test_random(seed) % many];
	EXPECT(execmem_free_many(d, many + 1, out) == EXECMEM_EFREED && execmem_error_index() == many);
	EXPECT(execmem_free_many(d, many, out) == 0);
	EXPECT(execmem_free_many(d, 1, out) == EXECMEM_EFREED);
}

static void replace_some(execmem_domain *d, uint64_t *seed)
{
	for (size_t n = test_random(seed) % 40; n-- > 0 && count > 0;) {
		struct shadow *s = &live[test_random(seed) % count];
		uint8_t bytes[LONG_SIZE];
		void *out;

		EXPECT(execmem_free((void *)(uintptr_t)s->address) == 0);
		live_bytes -= s->size;
		s->size = 1 + (uint32_t)(test_random(seed) % LONG_SIZE);
		s->byte = (uint8_t)test_random(seed);
		memset(bytes, s->byte, s->size);
		EXPECT(execmem_place(d, EXECMEM_TEXT, bytes, s->size, 16, NULL, &out) == 0);
		s->address = (uintptr_t)out;
		live_bytes += s->size;
	}
}

static void random_batches(int mode, int batches)
{
	execmem_options options = {.name = "batches", .write_mode = mode};
	uint64_t seed = 88172645463325252ull + (uint64_t)mode;
	execmem_domain *d;

	EXPECT(execmem_domain_open(&options, &d) == 0);
	for (int i = 0; i < batches; i++) {
		snprintf(test_context, sizeof test_context, "mode %d, batch %d", mode, i);
		if (count + BATCH_MAX <= LIVE_MAX && (count == 0 || test_random(&seed) % 100 < 55))
			place_batch(d, &seed);
		else
			free_batch(d, &seed);
		replace_some(d, &seed);
		expect_counts(d);
		if (i % (batches / 50 + 1) == 0)
			EXPECT_LAWFUL(d);
	}
	for (size_t i = 0; i < count; i++)
		expect_block(&live[i]);
	while (count > 0)
		free_batch(d, &seed);
	expect_counts(d);
	EXPECT_LAWFUL(d);
	EXPECT(execmem_domain_close(d, 0) == 0);
}

int main(int argc, char **argv)
{
	int batches = test_amount(argc, argv, 2000, 60);

	for (int mode = EXECMEM_MODE_SYSCALL; mode < EXECMEM_MODES; mode++)
		if (test_takes_mode(mode))
			random_batches(mode, mode == EXECMEM_MODE_FLIP ? batches / 4 : batches);
	puts("ok");
	return 0;
}
