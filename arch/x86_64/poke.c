/* x86_64/poke: making new bytes run on this CPU. */
#include "room.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif
#ifdef __x86_64__
#include <cpuid.h>
#endif

/* ---- after a write ---- */

/*
 * There is nothing to do, so `flush` is NULL. Instruction fetch is coherent with stores, and with stores through another linear address
 * of the same physical line once a branch has been taken (Intel SDM vol. 3, 8.1.3 and 11.6; AMD APM vol. 2, 7.6.1). The
 * address of a new function reaches another thread through memory and is called by an indirect branch, as in Linux's
 * text_poke_copy().
 */

/* ---- past the caches ---- */

/*
 * An ordinary store to a line that no cache holds first reads it from memory. A non-temporal one writes whole lines without reading, and
 * without putting out of the caches what is used. The same core sees its own stores in order, through any linear address of the line;
 * others are sure to see them after SFENCE, a locked instruction or an interrupt (Intel SDM vol. 3, 11.3.1; AMD APM vol. 2, 7.4).
 */
void em_x86_64_fill_traps_past(void *dst, size_t len)
{
#ifdef __SSE2__
	const __m128i traps = _mm_set1_epi8((char)EM_X86_64_INT3);

	for (uint8_t *at = dst, *end = at + len; at < end; at += 64)
		for (int i = 0; i < 64; i += 16)
			_mm_stream_si128((__m128i *)(void *)(at + i), traps);
#else
	__builtin_memset(dst, EM_X86_64_INT3, len);
#endif
}

void em_x86_64_drain(void)
{
#ifdef __SSE2__
	_mm_sfence();
#endif
}

/* ---- protection keys ---- */

/* OSPKE, the bit that mirrors CR4.PKE: the kernel has turned keys on, so RDPKRU and WRPKRU do not trap (Intel SDM vol. 2, CPUID leaf 7). */
bool em_x86_64_has_keys(void)
{
#ifdef __x86_64__
	unsigned a, b, c, d;

	return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c >> 4 & 1);
#else
	return false;
#endif
}

/* Written as bytes, for assemblers that do not know the instructions. Accesses to memory that follow a WRPKRU wait for it, those that are
 * only guessed at too (Intel SDM vol. 2, WRPKRU); `memory` keeps the compiler to the same order. */
uint64_t em_x86_64_read_rights(void)
{
	uint32_t pkru = 0;

#ifdef __x86_64__
	uint32_t high;

	__asm__ volatile(".byte 0x0f, 0x01, 0xee" : "=a"(pkru), "=d"(high) : "c"(0) : "memory"); /* rdpkru */
#endif
	return pkru;
}

void em_x86_64_write_rights(uint64_t rights)
{
#ifdef __x86_64__
	__asm__ volatile(".byte 0x0f, 0x01, 0xef" : : "a"((uint32_t)rights), "c"(0), "d"(0) : "memory"); /* wrpkru */
#else
	(void)rights;
#endif
}

/* ---- live changes ---- */

/* AMD and Hygon, whose cores are AMD's (insn.c, live_change). */
bool em_x86_64_sees_stores(void)
{
#ifdef __x86_64__
	unsigned a, name[3];

	return __get_cpuid(0, &a, &name[0], &name[2], &name[1]) &&
	       (__builtin_memcmp(name, "AuthenticAMD", sizeof name) == 0 || __builtin_memcmp(name, "HygonGenuine", sizeof name) == 0);
#else
	return false;
#endif
}

/* RDSSPQ leaves its register as it was where there is none (Intel SDM vol. 2, RDSSPD/RDSSPQ); as bytes, for older assemblers. */
bool em_x86_64_has_shadow_stack(void)
{
	uint64_t top = 0;

#ifdef __x86_64__
	__asm__ volatile(".byte 0xf3, 0x48, 0x0f, 0x1e, 0xc8" : "+a"(top)); /* rdsspq rax */
#endif
	return top != 0;
}

/* Code was changed through another address than it is run at (Intel SDM vol. 3, 8.1.3). CPUID serializes; it costs microseconds in a
 * virtual machine. */
void em_x86_64_serialize(void)
{
#ifdef __x86_64__
	unsigned leaf = 0;

	__asm__ volatile("cpuid" : "+a"(leaf) : : "ebx", "ecx", "edx", "memory");
#endif
}
