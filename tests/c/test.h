/* test: what the C test programs share. A failed expectation prints its line and ends the program with 1. */
#ifndef EM_TEST_H
#define EM_TEST_H

#include "execmem.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXPECT(what)                                                                                                               \
	do {                                                                                                                           \
		if (!(what)) {                                                                                                             \
			fprintf(stderr, "%s:%d: expected %s (%s; last error: %s)\n", __FILE__, __LINE__, #what, test_context,                  \
			        execmem_error_text());                                                                                         \
			exit(1);                                                                                                               \
		}                                                                                                                          \
	} while (0)

/* It is so within a minute. The kernel gives a child's memory back a moment after its end, while somebody reads its mappings, as ps does. */
#define EXPECT_SOON(what)                                                                                                          \
	do {                                                                                                                           \
		for (int tries_ = 0; tries_ < 60000 && !(what); tries_++)                                                                  \
			usleep(1000);                                                                                                          \
		EXPECT(what);                                                                                                              \
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

/* Whether a walk over refused system calls takes this one: EXECMEM_TEST_CALLS ("write,sync") says so, else all. */
static inline bool test_takes_call(const char *call)
{
	const char *chosen = getenv("EXECMEM_TEST_CALLS");

	return !chosen || strstr(chosen, call);
}

/* Machine code of the CPU that this runs on: a function that gives a number, 32 bits of it, unsigned; and what ends a function. */
#if defined(__x86_64__)
enum { TEST_CODE = 6 };
#else
enum { TEST_CODE = 16 };
#endif

static inline uint32_t test_words(uint8_t *out, const uint32_t *words, uint32_t count)
{
	for (uint32_t i = 0; i < 4 * count; i++)
		out[i] = (uint8_t)(words[i / 4] >> i % 4 * 8);
	return 4 * count;
}

static inline uint32_t test_return(uint8_t *out)
{
#if defined(__aarch64__)
	return test_words(out, (uint32_t[]){0xd65f03c0}, 1);
#elif defined(__riscv)
	return test_words(out, (uint32_t[]){0x00008067}, 1);
#else
	out[0] = 0xC3;
	return 1;
#endif
}

static inline void test_code(uint8_t out[TEST_CODE], uint32_t number)
{
#if defined(__aarch64__)
	/* mov w0, #low; movk w0, #high, lsl #16; nop; ret */
	test_words(out, (uint32_t[]){0x52800000 | (number & 0xffff) << 5, 0x72a00000 | number >> 16 << 5, 0xd503201f, 0xd65f03c0}, 4);
#elif defined(__riscv)
	/* auipc a0, 0; lwu a0, 12(a0); ret; the number */
	test_words(out, (uint32_t[]){0x00000517, 0x00c56503, 0x00008067, number}, 4);
#else
	memset(out, 0, TEST_CODE);
	out[0] = 0xB8; /* mov eax, number; ret */
	memcpy(out + 1, &number, sizeof number);
	out[5] = 0xC3;
#endif
}

/* What such a function gives; on a CPU for which there is none, where no code can be placed, what it says. */
static inline uint32_t test_call(const void *address)
{
	uint32_t number;

#if defined(__x86_64__) || defined(__aarch64__) || defined(__riscv)
	number = ((uint32_t (*)(void))(uintptr_t)address)();
#else
	memcpy(&number, (const uint8_t *)address + 1, sizeof number);
#endif
	return number;
}

/* Begin a thread, and return when it has: a sanitizer's own allocator is at work until then, and is not made ready for a fork, so a child
 * born meanwhile could wait for its lock for ever. */
struct test_beginning {
	void *(*what)(void *);
	void *arg;
	_Atomic bool begun;
};

static inline void *test_begun(void *arg)
{
	struct test_beginning *b = arg;
	struct test_beginning own = {.what = b->what, .arg = b->arg};

	atomic_store(&b->begun, true);
	return own.what(own.arg);
}

static inline void test_begin(pthread_t *thread, void *(*what)(void *), void *arg)
{
	struct test_beginning b = {.what = what, .arg = arg};

	EXPECT(pthread_create(thread, NULL, test_begun, &b) == 0);
	while (!atomic_load(&b.begun))
		sched_yield();
}

/* A little-endian number of 1 to 8 bytes, as instructions hold them on every CPU. */
static inline uint64_t test_bits(const uint8_t *code, int bytes)
{
	uint64_t value = 0;

	for (int i = 0; i < bytes; i++)
		value |= (uint64_t)code[i] << 8 * i;
	return value;
}

static inline uint64_t test_random(uint64_t *state) /* xorshift64*, Marsaglia and Vigna */
{
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return *state * 0x2545F4914F6CDD1Dull;
}

#endif
