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

/* One instruction, as decode tells of it. */
struct em_arch_insn {
	uint8_t length;        /* bytes */
	uint8_t distance_at;   /* where in it lie the bytes that hold how far it is to what it jumps to, or reads and writes, */
	uint8_t distance_size; /* and how many; 0: there are none, and it does the same wherever it lies, unless `relative` */
	bool branches;         /* it jumps there */
	bool calls;            /* and comes back */
	bool ends;             /* what follows it in memory is not run after it */
	bool nothing;          /* it is for nothing, whatever it looks like */
	bool relative;         /* it depends on where it lies, by bits that are not bytes of their own (aarch64, riscv64) */
	bool resumes;          /* interrupted it may go on, or be started anew, by its own address: it cannot be changed meanwhile */
};

/* How an instruction that other threads may be running is changed into another one. */
enum em_arch_live {
	EM_ARCH_LIVE_STORE,      /* by one aligned store of what differs */
	EM_ARCH_LIVE_BREAKPOINT, /* behind a breakpoint, its first bytes last */
	EM_ARCH_LIVE_STOPPED,    /* while all other threads stand still */
	EM_ARCH_LIVE_MISALIGNED, /* not at all: no instruction can lie there, or none that is changed */
	EM_ARCH_LIVE_NOT_ONE,    /* not at all: the old or the new bytes are not exactly one instruction that decode knows */
	EM_ARCH_LIVE_NEVER,      /* not at all: a thread may be half through the old one */
};

enum em_arch_encoded { EM_ARCH_ENCODED, EM_ARCH_ENCODE_LENGTH, EM_ARCH_ENCODE_REACH, EM_ARCH_ENCODE_ALIGN }; /* or why not */

/* What became of an instruction that was to lie elsewhere; at its end what it did before is done. */
enum em_arch_moved {
	EM_ARCH_MOVED,
	EM_ARCH_MOVED_FAR,   /* not: what it reads or jumps to is out of reach there */
	EM_ARCH_MOVED_NEVER, /* not: it has no form that does the same there */
};

enum { EM_ARCH_INSN_MAX = 15 }; /* bytes of the longest instruction of any CPU */

/* Registers of the C calling convention, for encode_address. */
enum em_arch_register {
	EM_ARCH_RESULT, /* what a function gives back: rax, x0, a0 */
	EM_ARCH_FIRST,  /* its first argument: rdi, x0, a0 */
};

/*
 * An encoder writes an instruction, or a few that do one thing, to `out`, to be run at the address `at`, and gives the bytes it wrote. 0:
 * it cannot be, and nothing was written: `to` is out of reach, or an address is not where instructions may lie. The sizes beside them
 * are the most that they write. They keep every register but those named here, and do not look at memory but for encode_far_branch.
 */
struct em_arch {
	const char *name; /* as `uname -m` tells */
	bool supported;   /* false: domains cannot be opened, and `why` says it politely */
	const char *why;

	/* ---- insn.c: pure ---- */

	/* Fills with trapping instructions; dst and len, of these two, are multiples of trap_size. */
	void (*fill_traps)(void *dst, size_t len);
	bool (*is_trap)(const void *bytes, size_t len); /* are all of these bytes trap fill? */
	uint32_t trap_size;                             /* bytes of one trap instruction */
	uint64_t branch_reach; /* bytes either way that encode_call and encode_branch are sure to cover */
	uint32_t insn_align;   /* instructions lie at multiples of this */
	/* Instructions that do nothing, as few as may be; `len` bytes, a multiple of insn_align. */
	uint32_t (*encode_nops)(uint8_t *out, uint32_t len);
	/* The first instruction of what an indirect branch may go to, where the CPU checks that; it does nothing where not. */
	uint32_t (*encode_landing)(uint8_t *out);
	uint32_t landing_size;
	/* A function that gives 0 at once. */
	uint32_t (*encode_empty)(uint8_t *out);
	uint32_t empty_size;
	/* Relative, always branch_size bytes. riscv64: a branch changes t2, as it does within a function that links to another. */
	uint32_t (*encode_branch)(uint8_t *out, uint64_t at, uint64_t to);
	uint32_t (*encode_call)(uint8_t *out, uint64_t at, uint64_t to);
	uint32_t branch_size;
	/* To anywhere, through the address that stands behind it; always far_branch_size bytes, at a multiple of far_branch_align. Changes x16,
	 * or t2, which linkers use too. Where the CPU checks indirect branches, `to` begins with a landing, but on riscv64, where t2 is exempt. */
	uint32_t (*encode_far_branch)(uint8_t *out, uint64_t to);
	uint32_t far_branch_size, far_branch_align;
	/* Puts an address into a register: relative to `at` where that reaches, else as a number. */
	uint32_t (*encode_address)(uint8_t *out, uint64_t at, enum em_arch_register reg, uint64_t to);
	uint32_t address_size;
	/* A thread's rights to memory under protection keys, as its register holds them, changed: a key opened for reading and writing, or
	 * shut for both. NULL: keys are not known here. */
	uint64_t (*key_rights)(uint64_t rights, int key, bool open);

	/* Writes the instruction (enum execmem_insn) of exactly `len` bytes for a site. */
	enum em_arch_encoded (*encode)(int insn, uint64_t site, uint64_t target, uint8_t *out, size_t len);
	uint32_t site_size; /* bytes of the one that reaches furthest, both as a jump and as a call */
	/*
	 * How `len` old bytes at a site may become the new ones while threads run them; both are of that length, and they differ.
	 *   memory   the write mode has memory to store to, so one aligned store of up to 8 bytes is seen whole, or not yet
	 *   whole    sees_stores() of this CPU
	 */
	enum em_arch_live (*live_change)(uint64_t site, const uint8_t *old_bytes, const uint8_t *new_bytes, size_t len, bool memory,
	                                 bool whole);
	uint32_t live_unit; /* bytes that such a store has at least: 1 where instructions are bytes */
	/* Does to a thread what an instruction at a site would, where that is a branch or nothing. False: it does not know it, or a debugger
	 * wants to see it run; nothing has changed. Reads or writes the word at the stack's top. `shadowed`: calls and returns need more.
	 * NULL: never asked, live_change answers BREAKPOINT for nothing. */
	bool (*emulate)(struct em_frame *frame, uint64_t site, const uint8_t *insn, size_t len, bool shadowed);

	/* ---- decode.c: pure ---- */

	/* The instruction that `code` begins with. False: it is not known, or not over within `len` bytes. */
	bool (*decode)(const void *code, size_t len, struct em_arch_insn *out);
	/* Where an instruction goes that lies at `at`, and of which `decode` told that it branches. */
	uint64_t (*goal)(const uint8_t *code, const struct em_arch_insn *insn, uint64_t at);
	/* The instruction that `decode` told of, lying at `from`, written to `out` for `to`; *len: its bytes there, EM_ARCH_INSN_MAX at most. */
	enum em_arch_moved (*move)(const uint8_t *code, const struct em_arch_insn *insn, uint64_t from, uint64_t to, uint8_t *out,
	                           uint32_t *len);

	/* ---- poke.c: on this CPU ---- */

	enum em_arch_sync fill_sync; /* after a fill of memory that nobody may be executing */
	bool interrupts_sync; /* a thread that comes back from an interrupt has nothing older fetched ahead */
	/* Makes bytes written at `exec` fetchable as instructions on this core (and others, where the CPU broadcasts it). NULL: they are, or
	 * what fill_sync asks for (em_sys_sync_core) does it too. */
	void (*flush)(void *exec, size_t len);
	/* fill_traps past the caches, for memory that is not in them: dst and len are multiples of 64. Stores may come to be seen by other
	 * cores only after drain() or anything else that orders them there. NULL, both: there is no such way. */
	void (*fill_traps_past)(void *dst, size_t len);
	void (*drain)(void);
	bool (*has_keys)(void); /* the CPU has protection keys and the kernel has turned them on. NULL: not known here */
	uint64_t (*read_rights)(void); /* of this thread; both only where has_keys() says so, and both order memory accesses */
	void (*write_rights)(uint64_t rights);
	bool (*sees_stores)(
		void); /* its manual lets code be changed by one aligned store while it runs. NULL: by live_change's rules alone */
	bool (*has_shadow_stack)(void); /* this thread has one now. NULL: not known here */
	void (*serialize)(void); /* this core forgets what it has fetched ahead. NULL: there is no need */
};

extern const struct em_arch em_arch_x86_64;
extern const struct em_arch em_arch_aarch64;
extern const struct em_arch em_arch_riscv64;
extern const struct em_arch em_arch_none;

/* The room of the CPU this runs on, or em_arch_none. */
const struct em_arch *em_arch_host(void);

/* Every room that was built, ended by NULL: for tests. */
extern const struct em_arch *const em_arch_rooms[];

#endif
