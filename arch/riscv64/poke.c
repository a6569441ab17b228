/* riscv64/poke: making new bytes run on this CPU. */
#include "room.h"

/* ---- after a write ---- */

/*
 * FENCE.I makes a hart fetch what it has stored, itself alone, and a thread may go to another hart right after it; so user code may not
 * rely on it. Linux does it on every hart that runs this process, and on those that will: riscv_flush_icache(2), which is what
 * em_sys_sync_core calls on this CPU. That is all, so `flush` is NULL.
 */

/* ---- past the caches ---- */

/* There is no such store, so the table has none. */

/* ---- protection keys ---- */

/* None are known, so the table has none. */

/* ---- live changes ---- */

/* Ziccif, which is taken for granted (insn.c, live_change). */
bool em_riscv64_sees_stores(void)
{
	return true;
}
