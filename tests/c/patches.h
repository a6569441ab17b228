/* patches: what the tests of keys, calls and hooks share: two domains, small functions in them, and two threads that run what changes. */
#ifndef PATCHES_H
#define PATCHES_H

#include "test.h"

#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

enum { RUNNERS = 2, FEW = 8 };

/* Bytes, on this CPU: of the shortest and the longest site of a key, of put_number, of a caller's block, and before its site. */
#if defined(__aarch64__)
enum { SITE_SHORT = 4, SITE_LONG = 4, NUMBER_SIZE = 8, CALLER_SIZE = 32, CALLER_SITE = 4 };
#elif defined(__riscv)
enum { SITE_SHORT = 2, SITE_LONG = 4, NUMBER_SIZE = 8, CALLER_SIZE = 32, CALLER_SITE = 8 };
#else
enum { SITE_SHORT = 2, SITE_LONG = 5, NUMBER_SIZE = 6, CALLER_SIZE = 16, CALLER_SITE = 0 };
#endif

extern execmem_domain *domain, *second;

void open_domains(int mode);
void close_domains(void);
uint64_t live_blocks(execmem_domain *d);
uint8_t *place(execmem_domain *d, const void *code, size_t len);
uint32_t call(const void *code);
uint8_t *place_number(execmem_domain *d, uint32_t number); /* a function that gives it; it is small */
void put_number(uint8_t *out, uint32_t number); /* its code */
/* A function that calls, or jumps to, another; if it calls, it shifts what that gives to the left and adds a number. */
uint8_t *place_caller(execmem_domain *d, bool jumps, const void *to, uint32_t shift, uint32_t add);
uint32_t far_away(void); /* 77; no branch reaches it */

/* Each function gives one of two values, and `now` says which, but for the time of a change. */
struct runners {
	const uint8_t *code[FEW];
	int count;
	uint32_t values[2];
	bool nested;
	_Atomic uint32_t epoch; /* odd: a change is on its way */
	_Atomic int now;
	_Atomic bool stop;
	_Atomic int running;
	_Atomic uint64_t calls;
	pthread_t ids[RUNNERS];
};
extern struct runners runners;

void start(int now, uint32_t first, uint32_t other);
void begin_change(void);
void end_change(int now);
void stop(void);

/* On a busy machine threads may get no turn to be stopped, which mode flip tells as EBUSY, with nothing changed. */
#define CHANGE(call)                                                                                                               \
	do {                                                                                                                           \
		int err;                                                                                                                   \
                                                                                                                                   \
		while ((err = (call)) == EXECMEM_EBUSY)                                                                                    \
			usleep(1000);                                                                                                          \
		EXPECT(err == 0);                                                                                                          \
	} while (0)

/* Each call of the system that is made for something is refused in turn, until it makes no more. */
void refuse_call(int at);
bool was_refused(void);

#endif
