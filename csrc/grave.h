/* grave: what used to be there, for whoever comes too late: named blocks that were freed, and windows of domains that were closed.
 *
 * Two rings of words, newest over oldest, read without a lock by a signal handler while others write: an entry's number, its first word, is
 * 0 while it is written, and a reader that does not find the same number after its copy was overtaken. Blocks are kept only while somebody asked for it
 * (em_grave_open), for their names go with them; their address, size and time are in the ledger's events in any case.
 */
#ifndef EM_GRAVE_H
#define EM_GRAVE_H

#include "base.h"

#include <stdatomic.h>

enum {
	EM_GRAVE_BLOCKS = 4096, /* of all domains; 128 bytes each, mapped when the ring is first opened */
	EM_GRAVE_WINDOWS = 64,
	EM_GRAVE_NAME = 88, /* bytes kept of a block's name, with the NUL */
};

struct em_grave_block {
	uint64_t number; /* 1 and up in the order of burial */
	uint64_t address;
	uint32_t size;
	uint32_t domain;   /* its number */
	uint32_t shard;    /* in whose ring of events, */
	uint32_t sequence; /* and under which number, it was freed */
	uint32_t time_ms;  /* as in that event */
	uint32_t reserved;
	char name[EM_GRAVE_NAME];
};

struct em_grave_window {
	uint64_t number;
	uint64_t start, size;
	uint64_t closed_ms; /* em_sys_milliseconds */
	uint32_t domain;
	uint32_t reserved;
	char name[64];
};

static_assert(sizeof(struct em_grave_block) == 128 && sizeof(struct em_grave_window) % 8 == 0, "graves are whole words");

extern _Atomic bool em_grave_opened;

int em_grave_open(void);   /* from now on blocks are buried; a negative errno: no memory for the ring */
void em_grave_close(void); /* no longer; what lies there stays */
/* Buries a copy; its number is given here. Any number of threads at once. */
void em_grave_bury(const struct em_grave_block *block);
/* The same for a window; the caller sees to it that it is one at a time. */
void em_grave_bury_window(uint64_t start, uint64_t size, uint32_t domain, const char *name);

/* The newest that was freed in that event; that covers the address; that has the address. False: none is known. */
bool em_grave_find_event(uint32_t domain, uint32_t shard, uint32_t sequence, struct em_grave_block *out);
bool em_grave_find_block(uint32_t domain, uint64_t address, struct em_grave_block *out);
bool em_grave_find_window(uint64_t address, struct em_grave_window *out);

static inline bool em_grave_is_open(void)
{
	return atomic_load_explicit(&em_grave_opened, memory_order_relaxed);
}

#endif
