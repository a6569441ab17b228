/* test: what the C test programs share. A failed expectation prints its line and ends the program with 1. */
#ifndef EM_TEST_H
#define EM_TEST_H

#include "execmem.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPECT(what)                                                                                                               \
	do {                                                                                                                           \
		if (!(what)) {                                                                                                             \
			fprintf(stderr, "%s:%d: expected %s (%s; last error: %s)\n", __FILE__, __LINE__, #what, test_context,                  \
			        execmem_error_text());                                                                                         \
			exit(1);                                                                                                               \
		}                                                                                                                          \
	} while (0)

static char test_context[256]; /* what a failure was about: printed with it */

/* The domain is lawful, or the program ends saying which law is broken. */
#define EXPECT_LAWFUL(domain)                                                                                                      \
	do {                                                                                                                           \
		const char *broken_ = execmem_domain_check(domain);                                                                        \
		if (broken_) {                                                                                                             \
			fprintf(stderr, "%s:%d: broken law: %s (%s)\n", __FILE__, __LINE__, broken_, test_context);                            \
			exit(1);                                                                                                               \
		}                                                                                                                          \
	} while (0)

/* The first argument as a number; without one, `full`, or `little` where EXECMEM_TEST_SHORT is set (under valgrind). */
static inline int test_amount(int argc, char **argv, int full, int little)
{
	if (argc > 1)
		return atoi(argv[1]);
	return getenv("EXECMEM_TEST_SHORT") ? little : full;
}

/* ThreadSanitizer has a thread of its own that takes no signals, so that not all others can be stopped. */
#ifdef __SANITIZE_THREAD__
enum { TEST_STOPS_THREADS = false };
#else
enum { TEST_STOPS_THREADS = true };
#endif

/* Whether a loop over the write modes takes this one: EXECMEM_TEST_MODES ("alias,pkey") says so, else all that there are. Only pkey may be
 * left out, on a CPU without protection keys, and that is told. */
static inline bool test_takes_mode(int mode)
{
	const char *chosen = getenv("EXECMEM_TEST_MODES");

	if (chosen)
		return strstr(chosen, execmem_mode_name(mode)) != NULL;
	if (mode != EXECMEM_MODE_PKEY || execmem_probe(mode) != EXECMEM_EUNSUPPORTED)
		return true;
	printf("left out: mode pkey: %s\n", execmem_error_text());
	return false;
}

/* What code that begins with "mov eax, number" and then returns gives; on other CPUs, which do not run it, what it says. */
static inline uint32_t test_call(const void *address)
{
	uint32_t number;

#if defined(__x86_64__)
	number = ((uint32_t (*)(void))(uintptr_t)address)();
#else
	memcpy(&number, (const uint8_t *)address + 1, sizeof number);
#endif
	return number;
}

static inline uint64_t test_random(uint64_t *state) /* xorshift64*, Marsaglia and Vigna */
{
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return *state * 0x2545F4914F6CDD1Dull;
}

#endif
