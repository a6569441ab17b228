/* execmem.h: the public door.
 *
 * The text between the two marks below is also what the Python binding declares, so it holds plain C only: no macros, no
 * includes, constants as enums. The records are the layout of the ledger (docs/ledger.md), which other processes may map.
 *
 * Errors: a function that returns int gives 0 or one of enum execmem_error (negative). The reason, with the numbers of the
 * case and what to do about it, is in execmem_error_text(), kept per thread until that thread's next failure. A call that
 * fails has changed nothing; only a write that the system stops midway leaves what it had written blank. Every function may be called from any thread, none from a signal handler.
 *
 * Costs named here are constant in what is live, unless said otherwise; figures are in docs/performance.md.
 */
#ifndef EXECMEM_H
#define EXECMEM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* cdef: begin */

enum execmem_error {
	EXECMEM_OK = 0,
	EXECMEM_EINVAL = -1,     /* an argument can never be right: size 0, an alignment that is no power of two */
	EXECMEM_ENOMEM = -2,     /* the system gave no memory */
	EXECMEM_ELIMIT = -3,     /* this domain's limit, or an ancestor's */
	EXECMEM_EWINDOW = -4,    /* the window is full, or none could be had within reach */
	EXECMEM_EFOREIGN = -5,   /* no domain of this process owns the address */
	EXECMEM_EINTERIOR = -6,  /* inside a live block, not at its start */
	EXECMEM_EFREED = -7,     /* no live block there: freed before, or never given out */
	EXECMEM_EBOUNDS = -8,    /* the write would leave its block */
	EXECMEM_EDENIED = -9,    /* a policy of the system refuses executable memory */
	EXECMEM_EBUSY = -10,     /* the domain has live blocks or children; threads could not be stopped; no protection key is free */
	EXECMEM_ESYSTEM = -11,   /* a system call failed in a way no other code tells */
	EXECMEM_ECLOSED = -12,   /* the domain is closed */
	EXECMEM_EFORKED = -13,   /* the block was placed before fork(): both processes run it, and it cannot be changed */
	EXECMEM_EUNSUPPORTED = -14, /* this CPU or this kernel cannot do what was asked */
	EXECMEM_ESEALED = -15,     /* the domain is sealed: nothing in it changes any more */
	EXECMEM_ECHANGED = -16,    /* the bytes at a site are not those that were to be replaced */
	EXECMEM_EMISALIGNED = -17, /* this CPU changes no instruction that lies so */
	EXECMEM_EINSN = -18, /* not one instruction for one of the same length, or one that cannot be changed while it may run */
	EXECMEM_EREACH = -19, /* no branch of this length reaches the target */
	EXECMEM_EENTRY = -20  /* a function that begins so cannot be hooked, or not while it may be running */
};

enum execmem_kind { EXECMEM_TEXT = 0, EXECMEM_RODATA = 1, EXECMEM_DATA = 2, EXECMEM_KINDS = 3 };

/* How bytes get into a view that can be executed. AUTO takes the first of PKEY, SYSCALL, PROCMEM, FLIP that works here. */
enum execmem_write_mode {
	EXECMEM_MODE_AUTO = 0,
	EXECMEM_MODE_SYSCALL = 1, /* memfd mapped R-X only, written with pwrite: no writable view exists, ever */
	EXECMEM_MODE_ALIAS = 2,   /* memfd mapped twice at unrelated random addresses: R-X and RW- */
	EXECMEM_MODE_PROCMEM = 3, /* private memory R-X, written through /proc/self/mem */
	EXECMEM_MODE_FLIP = 4,    /* private memory, whole packs turned RW- and back with the other threads stopped */
	EXECMEM_MODE_PKEY = 5,    /* as ALIAS, but RW- under a protection key that only the writing thread opens, for one write */
	EXECMEM_MODES = 6
};

/* Where the pages of packs come from. */
enum execmem_backing {
	EXECMEM_BACKING_PRIVATE = 0, /* anonymous memory: modes procmem and flip */
	EXECMEM_BACKING_MEMFD = 1,
	EXECMEM_BACKING_TMPFS = 2,   /* memfd_create is refused: an unlinked file of a file system in memory */
	EXECMEM_BACKING_DISK = 3,    /* no such place either: one on a disk, to which the system writes it back */
	EXECMEM_BACKINGS = 4
};

/* Who refused. execmem_policy_text() has words for each, execmem_policy_remedy() what an administrator would allow. */
enum execmem_policy {
	EXECMEM_POLICY_NONE = 0,
	EXECMEM_POLICY_MDWE = 1,          /* PR_SET_MDWE: systemd's MemoryDenyWriteExecute= */
	EXECMEM_POLICY_SECCOMP = 2,
	EXECMEM_POLICY_SELINUX = 3,
	EXECMEM_POLICY_APPARMOR = 4,
	EXECMEM_POLICY_MEMFD_NOEXEC = 5,  /* vm.memfd_noexec */
	EXECMEM_POLICY_READ_ONLY = 6,     /* /proc, mounted so */
	EXECMEM_POLICY_PROC = 7,          /* no /proc */
	EXECMEM_POLICY_PROC_MEM = 8,      /* /proc/self/mem does not write to read-only memory */
	EXECMEM_POLICY_FILE_SIZE = 9,    /* RLIMIT_FSIZE */
	EXECMEM_POLICY_ADDRESS_SPACE = 10, /* RLIMIT_AS */
	EXECMEM_POLICY_OPEN_FILES = 11,   /* RLIMIT_NOFILE */
	EXECMEM_POLICY_MEMORY = 12,       /* a shortage: cgroup, vm.max_map_count, a full file system */
	EXECMEM_POLICY_KERNEL = 13,       /* the kernel does not have the call */
	EXECMEM_POLICY_DUMPABLE = 14,     /* the process is not dumpable, so its /proc is not its own */
	EXECMEM_POLICY_UNKNOWN = 15,      /* something that cannot be looked at */
	EXECMEM_POLICIES = 16
};

enum execmem_pack_state {
	EXECMEM_PACK_ABSENT = 0, /* nothing mapped; the address range is reserved */
	EXECMEM_PACK_SMALL = 1,  /* the first of its kind: only `usable` chunks are mapped, on 4 KB pages */
	EXECMEM_PACK_FULL = 2,   /* all 2 MB mapped */
	EXECMEM_PACK_SPAN = 3,   /* first pack of a block larger than a pack */
	EXECMEM_PACK_SPAN_TAIL = 4
};

enum execmem_block_state {
	EXECMEM_BLOCK_NONE = 0,     /* the record is free */
	EXECMEM_BLOCK_RESERVED = 1, /* given out, still all traps */
	EXECMEM_BLOCK_FILLED = 2,   /* written at least once */
	EXECMEM_BLOCK_PARKED = 3,   /* freed and blank; kept whole for the next block of its length */
	EXECMEM_BLOCK_HELD = 7,     /* freed, but a forked process may run it: kept as it is. `born_ms` is when it was freed */
	EXECMEM_BLOCK_QUARANTINED = 11, /* freed and blank; kept from all for now. As HELD it has both bits of PARKED */
	EXECMEM_BLOCK_RETIRED = 35, /* nobody's, but kept whole until no thread can be inside; counted as live. Likewise */
	EXECMEM_BLOCK_DYING = 16    /* added to another: within a free_many that has not ended */
};

/* Who keeps a sealed domain from being written. docs/lockdown.md tells what each stops. */
enum execmem_sealed {
	EXECMEM_SEALED_NOT = 0,
	EXECMEM_SEALED_LIBRARY = 1,  /* this library alone: it has given up its own ways to write */
	EXECMEM_SEALED_MAPPINGS = 2, /* and the kernel keeps the mappings as they are; private memory can still be written through
	                              * /proc/self/mem */
	EXECMEM_SEALED_KERNEL = 3    /* and the kernel refuses every way to write code that this process has, and no
	                              * other has it mapped */
};

enum execmem_event_op {
	EXECMEM_EVENT_ALLOC = 1,
	EXECMEM_EVENT_FREE = 2,
	EXECMEM_EVENT_FILL = 3,
	EXECMEM_EVENT_PACK = 4,    /* a pack was mapped; size: usable bytes */
	EXECMEM_EVENT_COLLAPSE = 5, /* a pack became one 2 MB page */
	EXECMEM_EVENT_RETURN = 6,  /* a pack went back to the system */
	EXECMEM_EVENT_POKE = 7,    /* an instruction was changed */
	EXECMEM_EVENT_RETIRE = 8   /* a block was retired; when it is freed, FREE follows */
};

enum execmem_insn { EXECMEM_INSN_NOP = 0, EXECMEM_INSN_JUMP = 1, EXECMEM_INSN_CALL = 2 };

enum execmem_limits {
	EXECMEM_CHUNK = 64,           /* bytes: the unit of bookkeeping */
	EXECMEM_PACK_SIZE = 2097152,  /* bytes */
	EXECMEM_PACK_CHUNKS = 32768,
	EXECMEM_PACK_WORDS = 512,     /* 64-bit words of one bitmap of a pack */
	EXECMEM_ALIGN_MAX = 4096,
	EXECMEM_NAME_MAX = 255,       /* bytes of a block's name, longer ones are refused */
	EXECMEM_WINDOW_PACKS_MAX = 4096,
	EXECMEM_SHARDS_MAX = 16,
	EXECMEM_GAP_MAX = 1048576, /* bytes */
	EXECMEM_TRUST_MAX = 255,
	EXECMEM_SITE_MAX = 15, /* bytes of one instruction */
	EXECMEM_NAME_CELL = 32,       /* bytes of one cell of the name heap */
	EXECMEM_NAME_CELL_TEXT = 28
};

/* ---- the ledger's records: little-endian, naturally aligned; offsets are from the ledger's start ---- */

typedef struct execmem_header { /* at offset 0 */
	char magic[8];              /* "EXECMEM\0" */
	uint32_t version;           /* 3; a reader refuses others */
	uint32_t header_size;       /* sizeof(struct execmem_header) */
	uint64_t ledger_size;       /* bytes of address space; most of it is never touched */
	uint64_t packs_offset;      /* execmem_pack[packs_max] */
	uint64_t index_offset;      /* private to the library */
	uint64_t shards_offset;     /* execmem_shard[shards_max] */
	uint64_t events_offset;     /* execmem_event[shards_max][events_max]: a ring a shard */
	uint64_t maps_offset; /* per pack, maps_stride apart: 512 pairs of u64, used and head bits of 64 chunks; then private parts */
	uint64_t maps_stride;
	uint64_t
		extents_at; /* in a pack's maps: 512 times u16: half the number of the record of the first block of each group of 64 chunks */
	uint64_t blocks_offset; /* per pack, blocks_stride apart: execmem_block[] */
	uint64_t blocks_stride;
	uint64_t names_offset; /* 32-byte cells: u32 next cell (0: last), 28 bytes of text */
	uint32_t packs_max;
	uint32_t shards_max;
	uint32_t events_max; /* a power of two */
	uint32_t names_max; /* cells */
	uint64_t window; /* address of the first pack */
	uint64_t epoch_realtime_ns; /* when the ledger was made; `born_ms` and `time_ms` count from here */
	uint64_t epoch_monotonic_ns;
	uint64_t limit; /* bytes, UINT64_MAX: none */
	uint32_t pid;
	uint32_t domain; /* a number unique in the process; the root's is 1 */
	uint32_t parent; /* 0: none */
	uint32_t write_mode;
	char name[64];
	char arch[16];
	/* counters: written by the owner only, read by anybody, each correct by itself */
	uint64_t charged_bytes; /* rounded sizes of live blocks, children's included; kept once there is a limit */
	uint64_t packs_live;
	uint64_t packs_made;
	uint64_t packs_returned;
	uint64_t collapses;
	uint64_t collapse_failures;
	uint32_t shards; /* in use; those beyond were never used */
	uint32_t packs_top; /* packs beyond this were never made */
	uint32_t names_top;
	uint32_t name_pages_open; /* private */
	uint32_t trust; /* class: 0 is trusted most */
	uint32_t sealed; /* enum execmem_sealed */
} execmem_header;

/* What the blocks of one shard come to. A shard is a part of a domain with packs and books of its own, so that threads do not wait
 * for each other; the sums over all shards are the domain's. */
typedef struct execmem_shard {
	uint64_t live_bytes; /* as asked for, of retired blocks too; blocks that changed hands make it wrap, its sum is right */
	uint64_t used_bytes; /* as rounded to chunks and pages */
	uint64_t allocs; /* less the frees of all shards: live blocks, and retired ones */
	uint64_t frees;
	uint64_t fills;
	uint64_t fill_bytes;
	uint64_t refusals; /* calls that ended in an error */
	uint64_t events; /* ever written; the newest of its ring is at (events - 1) % events_max */
	uint64_t quarantined_bytes; /* of freed blocks that wait, as rounded */
	uint64_t quarantined_blocks;
	uint64_t retired_bytes; /* of retired blocks that wait, as asked for */
	uint64_t retired_blocks;
	uint64_t reserved[4];
} execmem_shard;

typedef struct execmem_pack { /* one cache line a pack */
	uint64_t address;
	uint64_t classes[2]; /* private: bit c: a free run of size class c exists */
	uint32_t usable_chunks; /* mapped and open for blocks */
	uint32_t used_chunks; /* of live, parked and quarantined blocks */
	uint32_t blocks; /* live ones */
	uint32_t parked; /* freed blocks kept whole: for the next of their length, or in quarantine */
	uint32_t span_packs; /* state SPAN: packs it covers; SPAN_TAIL: packs back to its first */
	uint32_t born_ms;
	uint32_t held; /* freed blocks that are kept as they are, for forked processes */
	uint32_t retired; /* of the live ones, those that are retired */
	uint8_t state; /* enum execmem_pack_state */
	uint8_t kind; /* enum execmem_kind */
	uint8_t huge; /* 1: the kernel reported one 2 MB entry when last asked */
	uint8_t generations; /* times a pack was made here, sticks at 255 */
	uint8_t shard; /* whose it is */
	uint8_t draining; /* 1: no block is put here for now, so that it becomes empty */
	uint8_t inherited; /* 1: another process made it and this one was forked: no block is put here, nothing changed */
	uint8_t reserved[1];
} execmem_pack;

typedef struct execmem_block { /* its address and chunks follow from its place: docs/ledger.md */
	uint32_t name; /* first cell in the name heap, 0: none */
	uint32_t born_ms;
	uint16_t unused; /* bytes of its chunks (a span: pages) beyond what was asked for */
	uint8_t state; /* enum execmem_block_state */
	uint8_t kind; /* enum execmem_kind */
} execmem_block;

typedef struct execmem_event {
	uint64_t address;
	uint32_t size;
	uint32_t time_ms;
	uint32_t op; /* enum execmem_event_op */
	uint32_t sequence; /* low bits of its number; a reader that finds another was overtaken */
} execmem_event;

/* ---- domains ---- */

typedef struct execmem_domain execmem_domain;

typedef struct execmem_options { /* all zero: a child of the root, no limit, anywhere, AUTO */
	const char *name; /* shown in reports, at most 63 bytes */
	execmem_domain *parent; /* NULL: the root */
	uint64_t limit; /* bytes of rounded block sizes, 0: none */
	uint64_t window; /* bytes of address space, 0: 2 GB; 2 MB .. 8 GB */
	uint64_t near_address; /* 0: anywhere; else all of the window is within `reach` of it */
	uint64_t reach; /* bytes either way, 0: 2 GB - 1 MB */
	int32_t fallback; /* 1: when nothing is within reach take any address, else EXECMEM_EWINDOW */
	int32_t write_mode; /* enum execmem_write_mode */
	int32_t small_pages; /* 1: never ask for 2 MB pages */
	int32_t reserved;
	uint64_t quarantine; /* bytes of freed blocks that each shard keeps from reuse, first in, first out; 0: none */
	uint32_t gap; /* bytes: a block lies at random up to so much behind the start of the free run it is taken from; 0: none */
	uint32_t trust; /* class of the code, 1 .. 255: more is less trusted. 0, or the parent's: as the parent; never below it */
} execmem_options;

typedef struct execmem_stats {
	uint64_t live_blocks;
	uint64_t live_bytes; /* as asked for */
	uint64_t used_bytes; /* rounded */
	uint64_t charged_bytes; /* with children */
	uint64_t limit; /* UINT64_MAX: none */
	uint64_t resident_bytes; /* of packs, as the kernel counts it now; of a file on a disk, its blocks there. Not of packs that
	                          * are the memory of the process this one was forked from */
	uint64_t huge_bytes; /* of packs, mapped by 2 MB entries, as the kernel tells now; UINT64_MAX: it cannot be asked (no /proc) */
	uint64_t ledger_bytes; /* resident bytes of the bookkeeping, as the kernel counts it now */
	uint64_t packs;
	uint64_t full_packs; /* packs wholly mapped, spans included */
	uint64_t huge_packs; /* of those, how many are one 2 MB entry now; UINT64_MAX: as above */
	uint64_t vmas; /* mappings in this domain's address ranges, guards included; UINT64_MAX: as above */
	uint64_t largest_free; /* bytes of the longest free run of a text pack */
	uint64_t allocs;
	uint64_t frees;
	uint64_t fills;
	uint64_t fill_bytes;
	uint64_t packs_made;
	uint64_t packs_returned;
	uint64_t collapses;
	uint64_t collapse_failures;
	uint64_t refusals;
	uint64_t held_blocks; /* freed, but kept as they are until forked processes that may run them are gone; in a forked
	                       * child also those that it freed and that are its parent's */
	uint64_t window; /* address */
	uint64_t window_bytes;
	uint32_t write_mode;
	uint32_t far; /* 1: nothing was within reach and the fallback was taken */
	uint32_t domain;
	uint32_t parent;
	uint64_t backing; /* enum execmem_backing */
	uint64_t quarantined_bytes; /* of freed blocks that wait, rounded; in no other count of blocks */
	uint64_t quarantined_blocks;
	uint64_t idle_bytes; /* of packs that blocks can come to, and of no live one: free, parked or quarantined. Not held ones,
	                      * nor anything of packs that a forked child inherits */
	uint32_t sealed; /* enum execmem_sealed */
	uint32_t trust;
	uint64_t held_bytes; /* of the held blocks, rounded; in no other count */
	uint64_t retired_bytes; /* of retired blocks that wait, as asked for; not among the live ones, but used and charged */
	uint64_t retired_blocks;
} execmem_stats;

typedef struct execmem_retirement { /* of the process */
	uint64_t waiting; /* retired blocks that were not freed yet */
	uint64_t retired; /* ever */
	uint64_t periods; /* grace periods that have passed */
	uint64_t threads; /* that were online once and have not ended */
	uint64_t online; /* of these, now */
	uint32_t late_thread; /* the kernel's number of one that the running period waits for; 0: none */
	uint32_t fences; /* 1: the kernel refuses membarrier, so quiescent points cost a fence */
} execmem_retirement;

typedef struct execmem_verdict { /* what execmem_probe_mode tells of a write mode */
	int32_t code; /* 0: it works here, else one of enum execmem_error */
	uint32_t policy; /* enum execmem_policy: who refused */
	uint32_t backing; /* enum execmem_backing, where it works */
	uint32_t write_mode; /* asked for, or what AUTO takes */
	char reason[900]; /* the error's text, empty where it works */
} execmem_verdict;

typedef struct execmem_policies { /* -1: cannot be told here */
	int32_t mdwe; /* 1: PR_SET_MDWE */
	int32_t seccomp; /* 1: strict, 2: a filter, which cannot be read */
	int32_t memfd_noexec; /* vm.memfd_noexec: 0, 1, 2 */
	int32_t selinux; /* 0: off, 1: permissive, 2: enforcing */
	int32_t apparmor; /* 1: on */
	int32_t proc; /* 1: /proc of this process can be read */
	int32_t huge_disabled; /* 1: PR_SET_THP_DISABLE */
	int32_t reserved;
	uint64_t file_size; /* RLIMIT_FSIZE, UINT64_MAX: none */
	uint64_t address_space; /* RLIMIT_AS */
	uint64_t open_files; /* RLIMIT_NOFILE */
	char label[128]; /* this process's SELinux context or AppArmor profile, empty: none or not told */
	char huge[16]; /* transparent_hugepage/enabled, empty: not available */
	char huge_shmem[16]; /* transparent_hugepage/shmem_enabled */
} execmem_policies;

typedef struct execmem_info { /* what execmem_find tells of a block */
	uint64_t address;
	uint64_t size;
	uint64_t rounded; /* bytes it occupies */
	uint64_t pack; /* number of its pack in the window */
	uint32_t born_ms;
	uint32_t state;
	uint32_t kind;
	uint32_t domain;
	char name[256];
} execmem_info;

/* The three calls of the kernel, on the root domain, kind text. */
void *execmem_alloc(size_t size, size_t align); /* NULL: execmem_error_code() tells */
int execmem_fill(void *dst, const void *src, size_t len); /* within one block, of any domain and kind */
int execmem_free(void *address); /* a block of any domain; NULL is refused as foreign */

/* The same on a domain (NULL: the root). `name` may be NULL. What is given out holds traps (text) or zeros (rodata, data). */
int execmem_alloc_in(execmem_domain *domain, int kind, size_t size, size_t align, const char *name, void **out);
int execmem_place(execmem_domain *domain, int kind, const void *src, size_t len, size_t align, const char *name, void **out);
int execmem_free_in(execmem_domain *domain, void *address);

/* Batches: one crossing, one lock; execmem_error_index() tells which element failed. All or none: alloc_many and place_many take
 * back what they took; fill_many and free_many look at every element before they change the first, so only the system refusing
 * a write midway leaves the elements before that index done. `names`: NULL or `count` NUL-terminated strings one after
 * another, an empty one for no name. `offsets` has count + 1 entries into `src`, each block from one to the next. */
int execmem_alloc_many(execmem_domain *domain, int kind, size_t count, const uint64_t *sizes, size_t align, const char *names,
                       uint64_t *out);
int execmem_place_many(execmem_domain *domain, int kind, size_t count, const void *src, const uint64_t *offsets, size_t align,
                       const char *names, uint64_t *out);
int execmem_fill_many(execmem_domain *domain, size_t count, const uint64_t *dst, const void *src, const uint64_t *offsets);
int execmem_free_many(execmem_domain *domain, size_t count, const uint64_t *addresses);

/* Live patching: replaces one instruction by one of the same length while other threads may be running it. Whoever runs it meanwhile runs
 * the old one or the new one, and from the return on everybody runs the new one. `len` bytes at `site`, within a filled block of kind
 * text, must be `old_bytes` (else ECHANGED), and both must be exactly one instruction (EINSN) that this CPU can change (EMISALIGNED,
 * EINSN). Works in every write mode, in some microseconds: docs/patching.md tells what is done on which CPU, and who should block no
 * SIGTRAP. A call that fails has changed nothing, or says which instructions could not be put back. */
int execmem_poke(void *site, const void *old_bytes, const void *new_bytes, size_t len);

typedef struct execmem_poke_site {
	void *site;
	const void *old_bytes;
	const void *new_bytes;
	size_t len;
} execmem_poke_site;

/* Many sites of one domain at the price of one, and some 50 ns each (system calls each, in modes that write by them). In any order; none
 * may overlap another. All or none; while it runs, some may be new and others old. */
int execmem_poke_batch(const execmem_poke_site *sites, size_t count);

/* Writes the instruction (enum execmem_insn) of exactly `len` bytes that does nothing, or goes from `site` to `target`. x86-64: nothing
 * of 1 to 9 bytes, a jump of 2 or 5 to 15, a call of 5; aarch64: 4; riscv64: 4, and 2 but for calls. EINVAL: none has that length;
 * EMISALIGNED: no instruction lies at one of both; EREACH: the target is too far. */
int execmem_encode(int insn, const void *site, const void *target, void *out, size_t len);

/* ---- code that was replaced: docs/retire.md ----
 *
 * Each thread that runs placed code is online while it does, and says now and then that it is outside. Being online promises: a pointer
 * into placed code that was found before a quiescent point, or before the thread came online, is not used after it, for running or
 * for reading; and a quiescent point is passed with no call into placed code on the stack. A thread that was never online, or is offline,
 * promises to run none. execmem_thread_online can be called again before it is taken back; quiescent points then count for nothing until
 * each but the first has been. A thread that ends is offline. Nobody checks these promises.
 *
 * Cost: a store and two loads each, but for the first execmem_thread_online of a thread, which fails when memory is short. */
int execmem_thread_online(void);
int execmem_thread_offline(void); /* EINVAL: it is not online */
int execmem_thread_is_online(void); /* 1: the calling thread is */
void execmem_quiescent(void); /* of a thread that is offline: nothing */

/* Frees a block when every thread that is online has passed a quiescent point, or gone offline, after this call. Before it the caller has
 * replaced each pointer to the block that a thread could find. From here on the block is nobody's: it runs, but to fill, find, free or
 * retire it is EFREED. It counts as used until it is freed, and keeps its domain from closing without force. Frees what is due
 * by now: at once, where no thread is online. Any kind of block. EINVAL: no thread of the process was ever online; ENOMEM: no memory for
 * the queue. Some microseconds. */
int execmem_retire(void *address);
int execmem_retire_in(execmem_domain *domain, void *address); /* the same; of another domain's block: EFOREIGN */
/* Frees what is due, without waiting; 0 whether there was anything or not. An error of the system that refuses a write leaves that block
 * and those after it retired, for another time. */
int execmem_retire_poll(void);
/* Waits until all is freed that was retired before the call. EBUSY: not within the time (UINT64_MAX: for ever), or the caller is online. */
int execmem_retire_wait(uint64_t timeout_ms);
int execmem_retire_count(execmem_retirement *out);
const char *execmem_retire_check(void); /* NULL: lawful, else the broken law */

/* ---- patches: branches that are changed while they run, by execmem_poke_batch ----
 *
 * None of these holds the code it is in: whoever frees a block takes its sites out first, and keeps what branches lead to until no
 * thread can be inside. A site that is stale all the same is told (EFREED, ECHANGED) unless the same bytes came to lie there. */

enum execmem_patch_flags {
	EXECMEM_PATCH_VENEER = 1, /* what no branch reaches is reached through a veneer: 64 bytes in the domain, and an indirect jump */
	EXECMEM_PATCH_QUIET = 2 /* nobody runs the instructions that change, nor will until the call returns */
};

/* A static key: a yes or no that costs code that asks it one instruction for nothing, or one jump. Its sites are such instructions. */
typedef struct execmem_key execmem_key;

typedef struct execmem_key_site {
	uint64_t site; /* where code asks: an instruction for nothing, or a jump to the target, as execmem_encode writes them */
	uint64_t target; /* where it goes while the key is on; while it is off it goes on behind the site */
	uint32_t len; /* bytes of the instruction; 0: of the branch that reaches furthest. x86-64: 2, 5; aarch64: 4; riscv64: 2, 4 */
	uint32_t inverted; /* 1: it goes to the target while the key is off */
} execmem_key_site;

int execmem_key_make(int on, execmem_key **out);
/* A table of sites at once, in any order, of any domains. They become what the key is now. All or none; execmem_error_index() tells which
 * is refused: by EREACH, by what refuses an execmem_poke, or EINVAL where it overlaps another of the key. */
int execmem_key_add(execmem_key *key, const execmem_key_site *sites, size_t count);
/* Forgets the sites in [start, start + size), and leaves their instructions as they are. */
int execmem_key_remove(execmem_key *key, const void *start, size_t size);
/* All sites of a domain change in one execmem_poke_batch. What the key is already is nothing to do. An error: it is as it was, or the
 * text tells which instructions are not. */
int execmem_key_set(execmem_key *key, int on);
int execmem_key_is_on(const execmem_key *key); /* 1 or 0 */
size_t execmem_key_count(const execmem_key *key); /* of sites */
const char *execmem_key_check(const execmem_key *key); /* NULL: each site is what the key is, else the broken law */
int execmem_key_free(execmem_key *key); /* forgets all sites */

/* A static call: a function that is one jump, whose target changes. A call to its entry costs a direct jump more than a direct call; sites
 * that are added call, or jump, to the target itself. */
typedef struct execmem_call execmem_call;

/* Places the entry in a domain. `target` NULL: a call returns at once, and gives 0. EREACH without EXECMEM_PATCH_VENEER: nothing is placed.
 * `name` may be NULL. */
int execmem_call_make(execmem_domain *domain, const void *target, int flags, const char *name, execmem_call **out);
void *execmem_call_entry(const execmem_call *call); /* the same for its life */
const void *execmem_call_target(const execmem_call *call);
/* From the return on every call that begins goes to the target. A veneer is kept for the next time the same target is set. Likewise EREACH. */
int execmem_call_set(execmem_call *call, const void *target, int flags);
/* Branches as long as those of execmem_key_site, which jump or call to the entry or the target: from now on to the target, or where
 * that is too far to the veneer or the entry. All or none. */
int execmem_call_add(execmem_call *call, const uint64_t *sites, size_t count);
int execmem_call_remove(execmem_call *call, const void *start, size_t size); /* forgets sites, which stay as they are */
const char *execmem_call_check(const execmem_call *call);
int execmem_call_free(execmem_call *call); /* EBUSY while it has sites */

/* A hook: code that runs instead of a function, and may call what it would have been. */
typedef struct execmem_hook execmem_hook;

/* All zero is right for functions made with -fpatchable-function-entry=N, or that have a block each. */
typedef struct execmem_hook_options {
	execmem_domain *domain; /* of what the hook needs: up to 192 bytes. NULL: the function's */
	uint64_t size; /* bytes of the function, all of which are code; 0: to the end of its block */
	uint32_t before; /* bytes before it that are there for patching and do nothing: M of -fpatchable-function-entry=N,M */
	uint32_t reserved;
} execmem_hook_options;

/* Looks how the function at `function`, in a block, can be hooked, and makes what its hooks need; nothing changes for who runs it. What
 * begins a function that checks indirect branches (endbr64) stays. After it one of these is replaced by a jump:
 *   one instruction of the length of a jump or more; also one for nothing
 *   one of 2 bytes where `before` has room for a jump: 2 bytes jump there
 *   several: EXECMEM_PATCH_QUIET is needed to replace them
 * What is not for nothing is copied to lie elsewhere. EENTRY: it cannot be, or a branch of the function leads to it, or the function has
 * bytes that are no known instruction. `options` may be NULL. */
int execmem_hook_make(void *function, const execmem_hook_options *options, execmem_hook **out);
/* What the function would be without this hook and those before it: callable from now until the hook is freed. */
const void *execmem_hook_original(const execmem_hook *hook);
/* `replacement` is run for every call of the function that begins after this. Of several hooks the one of higher priority is run
 * first, among equals the one attached last. EREACH, without EXECMEM_PATCH_VENEER; EENTRY, without EXECMEM_PATCH_QUIET where that is needed. */
int execmem_hook_attach(execmem_hook *hook, const void *replacement, int priority, int flags);
/* Calls that begin after this do not run it; others may be inside. With the last hook the function is what it was, byte for byte; but
 * several instructions are put back with EXECMEM_PATCH_QUIET only, then or later: until then it jumps to their copy. */
int execmem_hook_detach(execmem_hook *hook, int flags);
int execmem_hook_is_attached(const execmem_hook *hook);
const char *execmem_hook_check(const execmem_hook *hook);
/* When nobody is inside what it called original. EBUSY: it is attached, or several instructions are still to be put back. */
int execmem_hook_free(execmem_hook *hook);
/* Makes the instructions for nothing that a function begins with, `size` bytes, one, so that it can be hooked while it runs: for functions
 * just placed that nobody runs yet. EENTRY: there are others. */
int execmem_hook_prepare(void *function, size_t size);

int execmem_find(const void *address, execmem_info *out); /* any byte of a live block */

int execmem_domain_open(const execmem_options *options, execmem_domain **out);
int execmem_domain_close(execmem_domain *domain, int force); /* force: live blocks and children go with it */
execmem_domain *execmem_domain_root(void); /* opened on first use; NULL: execmem_error_code() */
int execmem_domain_limit(execmem_domain *domain, uint64_t limit); /* bytes, UINT64_MAX: none; below what is charged is allowed */
int execmem_domain_stats(execmem_domain *domain, execmem_stats *out); /* asks the kernel: microseconds a pack */
int execmem_domain_count(execmem_domain *domain, execmem_shard *out); /* the sums over its shards; about 0.1 us, asks nobody */
const execmem_header *execmem_domain_ledger(execmem_domain *domain); /* readable until the domain closes */
/* No call writes to the domain from here on, for ever: what would answers ESEALED and changes nothing, closing the domain or one above
 * it included. Its code runs, and is asked about as before; its data blocks stay writable by the program. Calls in flight end first. Its
 * quarantine and its empty packs go back. Children are not sealed, and can still be opened. 0 too when it is sealed already; an error has sealed nothing.
 * Who keeps it is in execmem_stats. Tens of microseconds. */
int execmem_domain_seal(execmem_domain *domain);
const char *execmem_domain_check(execmem_domain *domain); /* NULL: lawful, else the broken law; walks everything */

int execmem_error_code(void);
size_t execmem_error_index(void);
const char *execmem_error_text(void);
const char *execmem_error_name(int code);

/* What works here, without opening a domain: 0 or the error that AUTO or the given mode would meet. */
int execmem_probe(int write_mode);
int execmem_probe_mode(int write_mode, execmem_verdict *out); /* the same in more words; 0 whenever `out` was filled */
int execmem_probe_policies(execmem_policies *out); /* what this host has that may refuse; reads /proc and /sys, some 60 us */
const char *execmem_policy_name(int policy);
const char *execmem_policy_text(int policy); /* who refuses what */
const char *execmem_policy_remedy(int policy); /* what to do about it */
const char *execmem_backing_name(int backing);
const char *execmem_mode_name(int write_mode);
const char *execmem_arch_name(void);
int execmem_sync(void); /* every thread of the process runs a serialising instruction before this returns */

/* Tells, on stderr, of a SIGTRAP, SIGILL, SIGSEGV or SIGBUS whose instruction or address lies in a domain's window: which block is or
 * used to be there, and what usually causes it; then whoever handled the signal before does, or the process ends as it would have.
 * For the process, all threads and later forked children. docs/crashes.md has the words. on: 0 puts back what was there.
 * The name of a block that was freed is known when it was freed while this was on. Costs nothing until a fault, but 0.5 MB of
 * addresses, and a copy of its name when a named block is freed. Fails when the system refuses handlers or memory. */
int execmem_report_faults(int on);

/* For tests: fail chosen system calls. "view=..F:ENOMEM collapse=F" lets two views pass, fails the third, and fails every
 * collapse from the first on when the list ends in '*' ("F*"). "12." is twelve that pass; "any" counts calls of all kinds. NULL: none.
 * Returns how often a call was made to fail. */
int execmem_test_script(const char *script);

/* cdef: end */

#ifdef __cplusplus
}
#endif
#endif
