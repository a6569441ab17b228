/* sites: code to be changed while it runs, and who runs it. Each site is one instruction in a small function whose value tells which
 * instruction was run. Everybody who calls it checks that it was the one before, or the one after, a change on its way, and after a
 * change has returned the new one alone. */
#ifndef SITES_H
#define SITES_H

#include "test.h"

#include <stdatomic.h>

enum { SITE_VARIANTS = 4, SITE_HISTORY = 64, SITE_SIZE = 192 };

struct site_kind { /* instructions of one length that take each other's place */
	int len, variants;
	uint8_t bytes[SITE_VARIANTS][16];
	uint32_t values[SITE_VARIANTS]; /* that the function gives then */
};

struct site {
	const struct site_kind *kind;
	uint8_t *code, *at; /* the function, and the instruction in it */
	int now; /* variant; its owner's */
	_Atomic uint32_t epoch; /* odd: a change is on its way */
	_Atomic uint32_t values[SITE_HISTORY]; /* by half the epoch */
};

extern const struct site_kind site_kinds[];
extern const int site_kind_count;
/* The first of them, whose sites this CPU may change by a store: not the others too, or not in all of their variants. */
extern const int site_stored_kinds;
/* Where a site of the kind that is fourth jumps to as its second variant, and calls as its third: so far behind its end. */
extern const int site_there, site_helper;

/* Places a function whose site begins so many bytes before the end of a cache line; 0: at the start of one. */
void site_place(struct site *site, execmem_domain *domain, const struct site_kind *kind, uint32_t before_end);
/* Calls it and checks. */
void site_check(struct site *site);
/* What is to become of it, between site_begin and site_end; `done` false: nothing came of it. */
void site_begin(struct site *site, int variant);
void site_end(struct site *site, int variant, bool done);
/* Changes it; tries again until children are gone (EFORKED), and while threads get no turn to be stopped on a busy machine (EBUSY). */
void site_change(struct site *site, int variant);
/* The same for many at once, variant v + 1 for each. */
void site_change_all(struct site *sites, int count, uint64_t *seed);

/* Threads that run the sites until they are stopped. */
struct runners {
	struct site *sites;
	int count, threads;
	_Atomic bool stop;
	_Atomic uint64_t calls;
	_Atomic int32_t tid; /* of the last that started */
	uintptr_t ids[8];
};
void runners_start(struct runners *r, struct site *sites, int count, int threads);
void runners_stop(struct runners *r);

#endif
