/* arch: what the core must know of a CPU, as a value.
 *
 * Every room arch/<cpu>/ defines one `const struct em_arch em_arch_<cpu>` from files of the same names, banners and order. The pure
 * members of every room are built and can be tested on every host; only the members of poke.c act on the running CPU, and they
 * are reached through em_arch_host() alone. A room that cannot do a thing says so in its table; the core has no CPU #if.
 */
#ifndef EM_ARCH_H
#define EM_ARCH_H

#include "base.h"

/* Which threads must do what before bytes just written to memory that held other bytes may be called. */
enum em_arch_sync {
	EM_ARCH_SYNC_NONE,  /* instruction fetch is coherent and a call to new code needs no event elsewhere (x86-64) */
	EM_ARCH_SYNC_CORES, /* every thread must pass a context-synchronising event (aarch64, riscv64) */
};

struct em_arch {
	const char *name; /* as `uname -m` tells */
	bool supported;   /* false: domains cannot be opened, and `why` says it politely */
	const char *why;

	/* ---- insn.c: pure ---- */

	/* Fills with trapping instructions; dst and len are multiples of trap_size. */
	void (*fill_traps)(void *dst, size_t len);
	bool (*is_trap)(const void *bytes, size_t len); /* are all of these bytes trap fill? */
	uint32_t trap_size;                             /* bytes of one trap instruction */
	uint64_t branch_reach;                          /* bytes either way that one relative call covers */
	/* A thread's rights to memory under protection keys, as its register holds them, changed: a key opened for reading and writing, or
	 * shut for both. NULL: keys are not known here. */
	uint64_t (*key_rights)(uint64_t rights, int key, bool open);

	/* ---- poke.c: on this CPU ---- */

	enum em_arch_sync fill_sync; /* after a fill of memory that nobody may be executing */
	/* Makes bytes written at `exec` fetchable as instructions on this core (and others, where the CPU broadcasts it). NULL: they are. */
	void (*flush)(void *exec, size_t len);
	/* fill_traps past the caches, for memory that is not in them: dst and len are multiples of 64. Stores may come to be seen by other
	 * cores only after drain() or anything else that orders them there. NULL, both: there is no such way. */
	void (*fill_traps_past)(void *dst, size_t len);
	void (*drain)(void);
	bool (*has_keys)(void); /* the CPU has protection keys and the kernel has turned them on. NULL: not known here */
	uint64_t (*read_rights)(void); /* of this thread; both only where has_keys() says so, and both order memory accesses */
	void (*write_rights)(uint64_t rights);
};

extern const struct em_arch em_arch_x86_64;
extern const struct em_arch em_arch_none;

/* The room of the CPU this runs on, or em_arch_none. */
const struct em_arch *em_arch_host(void);

/* Every room that was built, ended by NULL: for tests. */
extern const struct em_arch *const em_arch_rooms[];

#endif
