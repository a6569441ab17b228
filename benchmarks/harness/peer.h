/* peer: one interface for everything that hands out memory for machine code, and for the bounds it is compared with.
 *
 * A peer places a piece of code (allocates and writes it, the way its users would) and frees it again. `place` does both in
 * one call; a peer without it has `alloc` and `write`, which the harness calls one after the other. What a peer keeps per block
 * beyond the address (a writable twin) travels in struct span, as it would in the records of its user.
 *
 * All functions are called from one thread, but for a peer that says how it may be shared: then several threads call alloc,
 * write, place and free at once, each having called nothing before.
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
	size_t threads;   /* that will each have as much */
	uint64_t seed;
};

enum { PEER_UNTOLD = -1 };

struct peer_told { /* what a peer knows of itself and the kernel does not; PEER_UNTOLD where it cannot tell */
	int64_t largest_free; /* bytes of the longest free run */
	int64_t packs;        /* 2 MB pieces wholly mapped */
	int64_t huge_packs;   /* of those, mapped by one 2 MB entry */
};

enum peer_sharing { PEER_ALONE = 0, PEER_SHARED = 1 };

struct peer {
	const char *name;
	const char *about;
	int executable;
	int traps;   /* 1: what is freed is overwritten with traps */
	int holds;   /* 1: blocks keep the bytes they were given until freed (the floors do not: nothing is allocated there) */
	int variant; /* the peer's own */
	enum peer_sharing sharing;
	const char *only_mix; /* NULL: any */
	uint64_t blocks_max;  /* 0: as many as fit in memory */
	void *(*open)(const struct peer *self, const struct peer_plan *plan, char why[PEER_WHY]); /* NULL: why not */
	int (*place)(void *state, const void *code, size_t size, struct span *out);               /* 0 or -1 */
	int (*alloc)(void *state, size_t size, struct span *out);
	int (*write)(void *state, const struct span *at, const void *code, size_t size);
	int (*free)(void *state, const struct span *at, size_t size);
	void (*close)(void *state);
	/* NULL: none. Many blocks at once, out of one buffer: block i goes from offsets[i] to offsets[i + 1]. */
	int (*place_many)(void *state, size_t count, const void *code, const uint64_t *offsets, uint64_t *out);
	int (*free_many)(void *state, size_t count, const uint64_t *addresses);
	uint64_t (*pack_events)(void *state); /* NULL: not told; a number that changes when a pack is made, grown or given back */
	void (*tell)(void *state, struct peer_told *out); /* NULL: nothing told; may be slow */
};

const struct peer *peer_find(const char *name); /* NULL: not known or not built */
const struct peer *peer_at(size_t i);           /* NULL: past the last */

/* Each file's list ends with a nameless peer. */
extern const struct peer peers_execmem[], peers_asmjit[], peers_floor[], peers_progpack[], peers_glibc[], peers_mmap[];
extern const struct peer peers_mimalloc[], peers_libffi[], peers_tcc[];

/* A range of memory mapped twice, R-X and RW-, in 2 MB pages, full of traps: made in the cheap way, each pack touched once,
 * collapsed, then filled. */
struct twin {
	unsigned char *code;
	unsigned char *writable;
	size_t size;
};

int twin_open(struct twin *twin, size_t size, char why[PEER_WHY]); /* size: rounded up to packs */
/* The same without a page in it; `align` is a power of two, at least a pack. twin_collapse makes one
 * 2 MB page of a pack of which at least one page was touched. */
int twin_map(struct twin *twin, size_t size, size_t align, char why[PEER_WHY]);
void twin_collapse(struct twin *twin, size_t at);
void twin_close(struct twin *twin);

static inline size_t peer_round(size_t size)
{
	return (size + PEER_CHUNK - 1) & ~(size_t)(PEER_CHUNK - 1);
}

#ifdef __cplusplus
}
#endif
#endif
