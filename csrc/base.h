/* base.h: words everybody uses, and the three kinds of failure.
 *
 *   a caller's mistake or a shortage    a negative code of enum execmem_error, with words left by em_error_set (error.h)
 *   a broken law of our own             em_panic: one line, then abort
 *   a bool                              an answer, never an error
 */
#ifndef EM_BASE_H
#define EM_BASE_H

#include "execmem.h"

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifndef EM_DEBUG
#define EM_DEBUG 0
#endif

#define EM_LIKELY(x) __builtin_expect(!!(x), 1)
#define EM_UNLIKELY(x) __builtin_expect(!!(x), 0)

/* For what runs at every call: it grows into its callers, whatever the compiler thinks of their size. */
#define EM_HOT static inline __attribute__((always_inline))

/* Ends the process with one line: a law of the library is broken, and going on could execute the wrong bytes. */
_Noreturn void em_panic(const char *law, const char *file, int line);

#define em_always(law) (EM_LIKELY(law) ? (void)0 : em_panic(#law, __FILE__, __LINE__))
#if EM_DEBUG
#define em_assert(law) em_always(law)
#else
#define em_assert(law) ((void)0)
#endif

enum {
	EM_PAGE = 4096, /* the unit of protection assumed by layouts; em_sys_page_size() is checked against it once */
	EM_PAGE_CHUNKS = EM_PAGE / EXECMEM_CHUNK,
	EM_SUMMARY = EXECMEM_PACK_WORDS / 64, /* words of a bitmap that has one bit per word of a pack's bitmap */
	EM_PACK_SHIFT = 21,
	EM_CHUNK_SHIFT = 6,
};

static_assert(EXECMEM_PACK_SIZE == 1 << EM_PACK_SHIFT, "a pack is one 2 MB page");
static_assert(EXECMEM_CHUNK == 1 << EM_CHUNK_SHIFT, "a chunk is one cache line");
static_assert(EXECMEM_PACK_SIZE / EXECMEM_CHUNK == EXECMEM_PACK_CHUNKS, "a pack is whole chunks");
static_assert(EXECMEM_PACK_CHUNKS == EXECMEM_PACK_WORDS * 64, "a pack's bitmap is whole words");
static_assert(EM_PAGE % EXECMEM_CHUNK == 0, "a page is whole chunks");
static_assert(sizeof(execmem_header) <= 4096, "the header is one page");
static_assert(sizeof(execmem_pack) == 64, "one cache line a pack");
static_assert(sizeof(execmem_shard) == 128, "no two shards share a cache line, nor the pair that is fetched together");
static_assert(sizeof(execmem_block) == 12 && sizeof(execmem_event) == 24, "records have no padding");

/* What of an interrupted thread's registers a branch reads and writes. */
struct em_frame {
	uint64_t ip, sp, flags;
};

static inline unsigned em_ctz(uint64_t x)
{
	return (unsigned)__builtin_ctzll(x);
}

/* Ones in x. Where the compiler knows no instruction for it, its own would be a call. */
static inline uint32_t em_count(uint64_t x)
{
#if defined(__POPCNT__) || defined(__ARM_NEON)
	return (uint32_t)__builtin_popcountll(x);
#else
	x -= x >> 1 & 0x5555555555555555u;
	x = (x & 0x3333333333333333u) + (x >> 2 & 0x3333333333333333u);
	return (uint32_t)(((x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu) * 0x0101010101010101u >> 56);
#endif
}

static inline unsigned em_log2(uint64_t x)
{
	return 63u - (unsigned)__builtin_clzll(x);
}

/* Adds to a counter that only the holder of its lock writes and others read without it (em_peek). To an aligned word compilers add with
 * one instruction where an atomic load and store are three: a dozen more a cycle of free and alloc. So ThreadSanitizer is told only. */
#ifdef __SANITIZE_THREAD__
#define em_add(counter, by) __atomic_store_n(&(counter), (counter) + (by), __ATOMIC_RELAXED)
#else
#define em_add(counter, by) ((void)((counter) += (by)))
#endif
#define em_peek(counter) __atomic_load_n(&(counter), __ATOMIC_RELAXED)

static inline uint64_t em_round_up(uint64_t x, uint64_t unit)
{
	return (x + unit - 1) & ~(unit - 1);
}

static inline bool em_is_power_of_two(uint64_t x)
{
	return x != 0 && (x & (x - 1)) == 0;
}

#endif
