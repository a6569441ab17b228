/* sys: every system call of the house, and nothing else. sys_linux.c makes them, and other files of sys_ beside it.
 *
 * Functions give 0 or a negative errno, and leave nothing behind when they fail. Each that can fail in a running system has a name
 * under which tests can script its failures (execmem_test_script); a scripted failure happens instead of the call.
 */
#ifndef EM_SYS_H
#define EM_SYS_H

#include "base.h"

#include <stdatomic.h>

/* For files of sys alone: 0, or the error with which this call is to fail. */
int em_sys_scripted(const char *call);

enum { EM_READ = 1, EM_WRITE = 2, EM_EXEC = 4 }; /* protection of a view; WRITE with EXEC is a broken law */

/* ---- memory files ---- */

int em_sys_memfd(const char *name, bool code, int *out);                     /* script: memfd; code: to be mapped executable */
int em_sys_resize(int fd, uint64_t size);                                    /* resize; -EFBIG before RLIMIT_FSIZE signals */
int em_sys_discard(int fd, uint64_t offset, uint64_t size);                  /* discard; gives the pages back, reads zero then */
int em_sys_write(int fd, const void *src, size_t len, uint64_t offset, size_t *done); /* write; all of it or an error */
int em_sys_write_repeated(int fd, const void *unit, size_t unit_len, uint64_t len, uint64_t offset); /* write */
int em_sys_self_mem(int *out);                                               /* memfd; opens /proc/self/mem for writing */
int em_sys_may_map_code(int fd);                                             /* 0: its views may be executable */
void em_sys_close(int fd);
uint64_t em_sys_file_resident(int fd, uint64_t *number); /* bytes of memory the file holds; number: NULL, or which file it is */
/* The next stretch of a file's bytes that was ever written, at or after `from`; -ENXIO: there is none. */
int em_sys_file_data(int fd, uint64_t from, uint64_t *start, uint64_t *end);
int em_sys_seal_writing(int fd); /* witness; no more writing; -EBUSY while anybody, in any process, has the file mapped for it */

/* ---- address space ---- */

unsigned em_sys_address_bits(void); /* a user's addresses lie below 2 to this, 48 at most */
bool em_sys_may_choose(void); /* false: somebody else (ThreadSanitizer) has plans for most addresses */
int em_sys_reserve(void *at, uint64_t size, void **out); /* reserve; no access. at: exactly there or -EEXIST; NULL: anywhere */
int em_sys_view(void *at, uint64_t size, int prot, int fd, uint64_t offset); /* view; over a reserved range. fd < 0: private */
int em_sys_unview(void *at, uint64_t size);                                  /* unview; back to reserved, pages dropped */
int em_sys_release(void *at, uint64_t size);                                 /* unview; gives up a reservation */
int em_sys_protect(void *at, uint64_t size, int prot);                       /* protect */
int em_sys_map_table(uint64_t size, int fd, void **out);                     /* reserve; RW, demand zero; fd < 0: private */
int em_sys_discard_table(void *at, uint64_t size);                           /* discard; pages of a table back to the system */
int em_sys_hide_from_children(void *at, uint64_t size);                      /* hide; no copy of this view after fork */
int em_sys_collapse(void *at, uint64_t size);                                /* collapse; to 2 MB pages */
int em_sys_populate(const void *at, uint64_t size);                          /* populate; page tables for reading */

/* ---- protection keys (sys_keys.c) ---- */

/* Does this Linux keep each thread's rights to itself? */
bool em_sys_key_is_sound(const char *release);
/* key; the one key of this process, kept from the first call on, to which no thread has rights. -ENOSPC: all are taken; -EOPNOTSUPP:
 * the kernel's keys do not protect. For one thread at a time. */
int em_sys_key_take(int *out);
/* view, protect; RW- over a reserved range, never for an instant without its key. */
int em_sys_key_view(void *at, uint64_t size, int key, int fd, uint64_t offset);

/* ---- sealing (sys_seal.c) ---- */

/* seal; for ever: no call of this process changes, moves or unmaps a mapping of the range, which must have no hole. -ENOSYS before 6.10. */
int em_sys_seal(void *at, uint64_t size);
/* fseal; for ever: no write, no new writable view, no other size, through whatever descriptor. Writable views that are there stay. */
int em_sys_seal_file(int fd);

/* ---- asking ---- */

enum em_sys_page { EM_SYS_PRESENT, EM_SYS_HUGE };
/* Bytes of [at, at + size) that are such pages now, as the kernel tells (PAGEMAP_SCAN, else smaps). */
int em_sys_scan(const void *at, uint64_t size, enum em_sys_page what, uint64_t *out); /* scan */
/* Calls `each` for every mapping in address order until it gives non-zero, which is returned. */
int em_sys_mappings(int (*each)(void *arg, uint64_t start, uint64_t end), void *arg); /* maps */
int em_sys_random(void *out, size_t len);                                             /* random */
uint64_t em_sys_page_size(void);
uint64_t em_sys_milliseconds(void); /* coarse monotonic clock, a few ns to read */
uint64_t em_sys_realtime_ns(void);
uint64_t em_sys_monotonic_ns(void);
uint32_t em_sys_pid(void);
int em_sys_at_fork(void (*before)(void), void (*in_parent)(void), void (*in_child)(void));

/* ---- what the host allows: sys_host.c, which opens files too ---- */

struct em_sys_code_file {
	int fd;
	uint32_t backing; /* enum execmem_backing */
	int memfd_error;  /* negative: why it is no memfd */
	bool unmappable;  /* there is one, which may not be mapped executable */
	int place_error;  /* negative: why no directory has it */
	bool noexec;      /* every directory that took a file is mounted noexec */
};

/* A file without a name for code: a memfd; where that is refused, an unlinked file in memory, then one on a disk. */
int em_sys_open_code_file(struct em_sys_code_file *out); /* memfd, tmpfile */

enum em_sys_call { /* what was refused, for em_sys_blame */
                   EM_CALL_OTHER,
                   EM_CALL_MEMFD,
                   EM_CALL_MAP_CODE,
                   EM_CALL_PROTECT,   /* turning memory executable */
                   EM_CALL_SELF_MEM,  /* opening /proc/self/mem */
                   EM_CALL_SELF_WRITE /* writing to it */
};

/* The policy that the host must have refused the call by, as far as it lets us look. Some 60 us where a policy refused. */
enum execmem_policy em_sys_blame(int negative_errno, enum em_sys_call call);
void em_sys_policies(execmem_policies *out);

/* ---- other threads ---- */

/* sync; every thread of the process serialises before this returns: runs no instruction that it fetched before. Not in em_sys_stop_threads. */
int em_sys_sync_core(void);
int em_sys_sync_ready(void); /* 0: that can be had here */
bool em_sys_may_store(void); /* store; scripted, code is not changed by a store while it runs, whatever the CPU */
/* Stops every other thread at an unknown place, -EBUSY when one does not stop within 0.2 s. No malloc, no locks, until resumed. */
int em_sys_stop_threads(void); /* stop */
void em_sys_resume_threads(void);
void em_sys_nap(void); /* waits some 20 us, for what another thread is about to end */
void em_sys_nap_long(uint32_t turn); /* the same, twice as long each turn, and at last some ms: who waits may wait for long */
/* fence; between a thread's store and its later loads a compiler's fence is enough, if whoever looks for the store calls
 * em_sys_fence_threads first (membarrier). 0: that can be had here. Never under ThreadSanitizer, which does not know it. */
int em_sys_fence_ready(void);
int em_sys_fence_threads(void); /* fence */
/* exit; `call` is called with `arg` when the calling thread ends. For one `call` in the process, and one `arg` a thread. */
int em_sys_at_thread_exit(void (*call)(void *), void *arg);

/* The fence of a thread for which nobody makes one. */
static inline void em_sys_fence(void)
{
	__sync_synchronize();
}

/* ---- faults (sys_fault.c) ---- */

enum em_sys_access { EM_SYS_TOUCHED, EM_SYS_READ, EM_SYS_WROTE, EM_SYS_RAN }; /* TOUCHED: the CPU does not tell */
enum em_sys_fault_kind {
	EM_SYS_FAULT_TRAP,       /* a trap instruction was run */
	EM_SYS_FAULT_ILLEGAL,    /* one that this CPU does not know */
	EM_SYS_FAULT_MEMORY,     /* memory that is not there or may not be used so */
	EM_SYS_FAULT_BUS,        /* memory for which the system has no page */
	EM_SYS_FAULT_PROTECTION, /* an instruction faulted, and no address is known */
};

struct em_sys_fault {
	const char *name; /* of the signal */
	enum em_sys_fault_kind kind;
	enum em_sys_access access;
	uint64_t ip;      /* of the instruction; for a trap, where it lies */
	uint64_t address; /* that was touched or run */
};

/* From now on `tell` is called when an instruction of the process faults, in the signal handler, then what was there before is done.
 * On again: once more, and whoever came after us stays before us. Off: what was there is put back, where nobody came after us. */
int em_sys_faults_on(void (*tell)(const struct em_sys_fault *fault));
int em_sys_faults_off(void);
/* For signal handlers: */
bool em_sys_peek(void *to, const void *from, size_t len); /* copies memory that may be gone; false: it is */
void em_sys_tell(const char *text, size_t len);           /* to stderr */
uint32_t em_sys_thread(void);                             /* the kernel's number of the calling thread */

/* What sys_fault.c and sys_trap.c do for each other; they know signal.h's types, which are void here. */
bool em_sys_trap_took(void *info, void *context);        /* a breakpoint of ours, and what came of it is done */
bool em_sys_fault_is_reporter(const void *action); /* with other signals blocked: it asks the above first */
/* Does what was there before us; `spent`: that was to run once, and has. */
void em_sys_fault_pass_on(const void *action, _Atomic bool *spent, void *info, void *context);

/* ---- breakpoints (sys_trap.c) ---- */

/* Instructions that are breakpoints for now, sorted by address. Each is a record of `stride` bytes that begins with its address. */
struct em_sys_traps {
	const void *sites;
	size_t count, stride;
	bool (*run)(struct em_frame *frame, const void *site); /* false: the thread waits, and tries again */
	bool (*owns)(uint64_t address); /* code there is changed by us alone */
};

/* trap; from now on who runs one of these is taken care of. The caller's signals wait. Handlers of others for the signal are called for
 * everybody else's breakpoints. -EBUSY: others went before ours too often; -EOPNOTSUPP: not on this CPU. */
int em_sys_traps_on(const struct em_sys_traps *traps);
/* None of these is a breakpoint any more, and nobody is being taken care of when it returns. */
void em_sys_traps_off(void);
void em_sys_traps_before_fork(void);
void em_sys_traps_after_fork(bool in_child);

/*
 * A lock that costs its home thread two plain stores. An atomic read-modify-write would wait until every write to cold code memory
 * before it is done, which is most of what alloc and free take; so the thread that made the lock, its home, goes in by a flag that only
 * it writes, until another thread comes. That one takes `state`, withdraws the bias, and makes all cores agree (membarrier)
 * before it looks at the flag. From then on everybody takes `state`; a home that was alone for long takes its bias back. After
 * Vasudevan, Namjoshi, Edelsohn, "Simple and fast biased locks".
 */
struct em_lock {
	_Atomic uintptr_t bias;  /* thread that may go in by its flag; 0: nobody now */
	_Atomic uint32_t inside; /* that flag */
	_Atomic uint32_t state;  /* 0 free, 1 held */
	_Atomic uint32_t sleepers;
	uint8_t rank;            /* enum em_sys_rank, for good */
	bool by_flag;            /* how the holder came in; only the holder touches this and what follows */
	uint32_t alone;          /* times in a row that the home came by `state` */
	uintptr_t home;          /* 0: never biased */
};

/* The order in which a thread may take locks (domain.h), asserted in debug builds (sys_order.c). */
enum em_sys_rank {
	EM_RANK_NONE, /* not looked at */
	EM_RANK_PATCH,
	EM_RANK_TREE,
	EM_RANK_ADMIN,
	EM_RANK_SHARD, /* and its number */
	EM_RANK_PACKS = EM_RANK_SHARD + EXECMEM_SHARDS_MAX,
	EM_RANK_NAMES,
	EM_RANK_GRACE,
	EM_RANK_FORK,
	EM_RANK_TRAP,
	EM_RANK_STOP,
};
void em_sys_order_take(const struct em_lock *lock);
void em_sys_order_give(const struct em_lock *lock);
void em_sys_order_forget(void); /* a forked child holds what it says it does, not what its parent held */

void em_sys_lock_init(struct em_lock *lock); /* biased to the caller, where the kernel can withdraw it; all zero is unbiased */
void em_sys_lock_slow(struct em_lock *lock);
void em_sys_unlock_slow(struct em_lock *lock);

static inline uintptr_t em_sys_self(void)
{
	return (uintptr_t)__builtin_thread_pointer();
}

static inline void em_sys_lock(struct em_lock *lock)
{
	uintptr_t self = em_sys_self();

	if (EM_DEBUG)
		em_sys_order_take(lock);
	if (EM_LIKELY(atomic_load_explicit(&lock->bias, memory_order_relaxed) == self)) {
		atomic_store_explicit(&lock->inside, 1, memory_order_relaxed);
		atomic_signal_fence(memory_order_seq_cst); /* the core's fence is the withdrawer's membarrier */
		if (EM_LIKELY(atomic_load_explicit(&lock->bias, memory_order_acquire) == self)) {
			lock->by_flag = true;
			return;
		}
		atomic_store_explicit(&lock->inside, 0, memory_order_release);
	}
	em_sys_lock_slow(lock);
}

/* The holder came by its flag, and the bias is not being withdrawn. */
static inline bool em_sys_lock_is_biased(const struct em_lock *lock)
{
	return lock->by_flag && atomic_load_explicit(&lock->bias, memory_order_relaxed) != 0;
}

static inline void em_sys_unlock(struct em_lock *lock)
{
	if (EM_DEBUG)
		em_sys_order_give(lock);
	if (EM_LIKELY(lock->by_flag))
		atomic_store_explicit(&lock->inside, 0, memory_order_release);
	else
		em_sys_unlock_slow(lock);
}

#endif
