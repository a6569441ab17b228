/* peer: one interface for everything that hands out memory for machine code, and for the bounds it is compared with.
 *
 * A peer places a piece of code (allocates and writes it, the way its users would) and frees it again. `place` does both in
 * one call; a peer without it has `alloc` and `write`, which the harness calls one after the other. All functions are called
 * from one thread. What a peer keeps per block beyond the address (a writable twin) travels in struct span, as it would in
 * the records of its user.
 */
#ifndef BENCH_PEER_H
#define BENCH_PEER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { PEER_WHY = 160, PEER_CHUNK = 64, PEER_PACK = 2 << 20, PEER_TRAP = 0xCC };

struct span {
	void *code;     /* where it would be executed */
	void *writable; /* the peer's own: where it is written */
};

struct peer_plan { /* what is coming, for peers that are told sizes in advance (the floors) */
	size_t blocks;
	size_t bytes;     /* sum of their sizes, rounded to chunks */
	size_t bytes_max; /* largest block */
	uint64_t seed;
};

struct peer {
	const char *name;
	const char *about;
	int executable;
	int traps;   /* 1: what is freed is overwritten with traps */
	int holds;   /* 1: blocks keep their bytes until freed (the floors do not: nothing is allocated there) */
	int variant; /* the peer's own */
	void *(*open)(const struct peer *self, const struct peer_plan *plan, char why[PEER_WHY]); /* NULL: why not */
	int (*place)(void *state, const void *code, size_t size, struct span *out);               /* 0 or -1 */
	int (*alloc)(void *state, size_t size, struct span *out);
	int (*write)(void *state, const struct span *at, const void *code, size_t size);
	int (*free)(void *state, const struct span *at, size_t size);
	void (*close)(void *state);
};

const struct peer *peer_find(const char *name); /* NULL: not known or not built */
const struct peer *peer_at(size_t i);           /* NULL: past the last */

/* Each file's list ends with a nameless peer. */
extern const struct peer peers_execmem[], peers_asmjit[], peers_floor[], peers_progpack[], peers_glibc[], peers_mmap[];

/* A range of memory mapped twice, R-X and RW-, in 2 MB pages, full of traps: made in the cheap way, each pack touched once,
 * collapsed, then filled. */
struct twin {
	unsigned char *code;
	unsigned char *writable;
	size_t size;
};

int twin_open(struct twin *twin, size_t size, char why[PEER_WHY]); /* size: rounded up to packs */
void twin_close(struct twin *twin);

static inline size_t peer_round(size_t size)
{
	return (size + PEER_CHUNK - 1) & ~(size_t)(PEER_CHUNK - 1);
}

#ifdef __cplusplus
}
#endif
#endif
