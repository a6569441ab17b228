/* x86_64/poke: making new bytes run on this CPU. */
#include "room.h"

/* ---- after a write ---- */

/*
 * Instruction fetch is coherent with stores, and with stores through another linear address of the same physical line once a
 * branch has been taken (Intel SDM vol. 3, 8.1.3 and 11.6; AMD APM vol. 2, 7.6.1). The address of a new function reaches another
 * thread through memory and is called by an indirect branch, so nothing has to be flushed, as in Linux's text_poke_copy().
 * The compiler must still not move the write past this point.
 */
void em_x86_64_flush(void *exec, size_t len)
{
	(void)exec;
	(void)len;
	__asm__ volatile("" ::: "memory");
}
