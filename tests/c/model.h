/* model: operations drawn from bytes or from a seed, done on the library and on a shadow of it side by side.
 *
 * The shadow knows every live block with its bytes, every freed one that must wait, every domain with its limit, whether it is sealed, and
 * handles closed before. After each operation the
 * library's answer is the one the shadow expects, its counters agree, and what failed has changed nothing; every few operations all
 * domains are lawful and all bytes are right. Used with random bytes, with a fuzzer's, and with one fixed row of operations under
 * which system calls fail one by one.
 */
#ifndef EM_TEST_MODEL_H
#define EM_TEST_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum model_faults {
	MODEL_FAULTS_NONE,  /* nothing fails */
	MODEL_FAULTS_DRAWN, /* scripts of failures are operations like others */
	MODEL_FAULTS_GIVEN, /* the caller has set a script */
};

struct model_options {
	const uint8_t *bytes; /* what operations are drawn from; NULL: from `seed`, without end */
	size_t len;
	uint64_t seed;
	long operations; /* 0: as far as the bytes reach */
	enum model_faults faults;
	int mode;        /* of all domains; 0: drawn */
	int check_every; /* operations; 0: at the end only */
	bool small;      /* no block larger than a pack, few large ones: faster */
	int seals;       /* domains that may be sealed, which stay until the process ends, as do those above them */
};

/* Runs, then frees and closes everything; gives how many operations were done. A failed expectation ends the program. */
long model_run(const struct model_options *options);
/* A fuzzer's bytes: the first chooses the write mode and whether calls fail, the rest are operations with their arguments. */
void model_replay(const uint8_t *bytes, size_t len);
long model_failures(void); /* system calls made to fail, ever */
int model_sealed(void);    /* domains sealed, ever */

struct model_census { /* of this process */
	int files; /* neither these nor the rest count what sealed domains have, which stays */
	int mappings; /* of packs, ledgers and reservations, outside the root's window, which stays; not of the C library */
};
struct model_census model_census(void);
uint64_t model_census_resident(void); /* bytes; 0 under sanitizers and memcheck, which keep memory of their own */

#endif
