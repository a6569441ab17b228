/* x86_64/poke: making new bytes run on this CPU. */
#include "room.h"

#ifdef __SSE2__
#include <emmintrin.h>
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
