/* none/insn: a CPU nobody has written a room for yet. Refuses politely. */
#include "room.h"

#include <string.h>

/* ---- traps ---- */

static void fill_traps(void *dst, size_t len)
{
	memset(dst, 0, len);
}

static bool is_trap(const void *bytes, size_t len)
{
	const uint8_t *b = bytes;

	return len == 0 || (b[0] == 0 && memcmp(b, b + 1, len - 1) == 0);
}

/* ---- protection keys ---- */

/* Nothing is known of this CPU's rights, so the table has none. */

/* ---- the table ---- */

const struct em_arch em_arch_none = {
	.name = "none",
	.supported = false,
	.why = "execmem has no room for this CPU yet; x86-64 with POPCNT (2008 and later) works. See arch/arch.h for what one needs.",
	.fill_traps = fill_traps,
	.is_trap = is_trap,
	.trap_size = 1,
	.branch_reach = 0,
	.fill_sync = EM_ARCH_SYNC_CORES,
	.flush = em_none_flush,
};
