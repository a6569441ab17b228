/* aarch64/poke: making new bytes run on this CPU. */
#include "room.h"

/* ---- after a write ---- */

/*
 * Data and instruction caches need not agree. Lines that were written are cleaned to where both meet, then what the instruction caches of
 * all cores hold of them is dropped; the CPU tells when either is not needed (CTR_EL0.IDC and DIC), and how long lines are. ISB is for
 * this core alone: others must pass one, or an exception, before they run the bytes (Arm ARM, B2.7.4.2), which em_sys_sync_core sees to.
 * By the address that is run, for caches that are indexed by it; it may be read, which the instructions below need.
 */
void em_aarch64_flush(void *exec, size_t len)
{
#ifdef __aarch64__
	uint64_t type, data, insn, start = (uintptr_t)exec, end = start + len;

	__asm__("mrs %0, ctr_el0" : "=r"(type));
	data = 4ull << (type >> 16 & 15);
	insn = 4ull << (type & 15);
	if (!(type >> 28 & 1)) /* IDC */
		for (uint64_t at = start & ~(data - 1); at < end; at += data)
			__asm__ volatile("dc cvau, %0" : : "r"(at) : "memory");
	__asm__ volatile("dsb ish" : : : "memory");
	if (!(type >> 29 & 1)) { /* DIC */
		for (uint64_t at = start & ~(insn - 1); at < end; at += insn)
			__asm__ volatile("ic ivau, %0" : : "r"(at) : "memory");
		__asm__ volatile("dsb ish" : : : "memory");
	}
	__asm__ volatile("isb" : : : "memory");
#else
	(void)exec;
	(void)len;
#endif
}

/* ---- past the caches ---- */

/* There is no store that writes whole lines of memory past them, so the table has none. */

/* ---- protection keys ---- */

/* None are used, so the table has none. */

/* ---- live changes ---- */

/* Every CPU of this kind, for the few instructions that may be changed so (insn.c, live_change). */
bool em_aarch64_sees_stores(void)
{
	return true;
}
