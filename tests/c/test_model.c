/* test_model: random operations beside a shadow, every write mode, with system calls that fail at random; each round in a process of its
 * own, at whose end everything is closed and nothing is left behind.
 *
 * usage: test_model [operations [seed]]
 */
#include "model.h"
#include "test.h"

#include <sys/wait.h>
#include <unistd.h>

enum { ROUND = 50000 };

/* In a child: what a process holds after the round, it held before. */
static void run_round(uint64_t seed, long operations, enum model_faults faults, int out)
{
	struct model_options o = {
		.seed = seed, .operations = operations, .faults = faults, .check_every = 400, .small = seed % 4 != 0, .seals = 100};
	struct model_census before, after;
	struct model_options warm = {.seed = 1, .operations = 400};
	uint64_t resident;
	long told[2];

	model_run(&warm); /* buffers of the C library, the second thread */
	before = model_census();
	resident = model_census_resident();
	told[0] = model_run(&o);
	told[1] = model_failures();
	after = model_census();
	EXPECT(after.files == before.files);
	/* What cannot be unmapped at the second try either stays, with its memory. */
	EXPECT(after.mappings >= before.mappings && after.mappings <= before.mappings + told[1]);
	EXPECT(model_census_resident() <= resident + (uint64_t)(24 + 6 * (after.mappings - before.mappings)) * (1 << 20));
	EXPECT(write(out, told, sizeof told) == (ssize_t)sizeof told);
}

int main(int argc, char **argv)
{
	long operations = argc > 1 ? atol(argv[1]) : test_amount(1, argv, 200000, 2000), done = 0, failures = 0;
	uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;

	for (; done < operations; seed++) {
		long told[2] = {0}, part = operations - done < ROUND ? operations - done : ROUND;
		int ends[2], status;
		pid_t child;

		EXPECT(pipe(ends) == 0);
		child = fork();
		EXPECT(child >= 0);
		if (child == 0) {
			snprintf(test_context, sizeof test_context, "seed %llu", (unsigned long long)seed);
			run_round(seed, part, seed % 8 ? MODEL_FAULTS_DRAWN : MODEL_FAULTS_NONE, ends[1]);
			_exit(0);
		}
		EXPECT(waitpid(child, &status, 0) == child);
		snprintf(test_context, sizeof test_context, "seed %llu, status %#x", (unsigned long long)seed, (unsigned)status);
		EXPECT(status == 0 && read(ends[0], told, sizeof told) == (ssize_t)sizeof told);
		close(ends[0]);
		close(ends[1]);
		done += told[0];
		failures += told[1];
	}
	printf("%ld operations, %ld system calls made to fail, 0 broken laws\nok\n", done, failures);
	return 0;
}
