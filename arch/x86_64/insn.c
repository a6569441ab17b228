/* x86_64/insn: pure facts and encoders. */
#include "room.h"

#include <string.h>

/* ---- traps ---- */

enum { INT3 = 0xCC }; /* one byte, so a jump to any offset traps (Intel SDM vol. 2, INT3) */

static void fill_traps(void *dst, size_t len)
{
	memset(dst, INT3, len);
}

static bool is_trap(const void *bytes, size_t len)
{
	const uint8_t *b = bytes;

	return len == 0 || (b[0] == INT3 && memcmp(b, b + 1, len - 1) == 0);
}

/* ---- the table ---- */

const struct em_arch em_arch_x86_64 = {
	.name = "x86_64",
	.supported = true,
	.why = "",
	.fill_traps = fill_traps,
	.is_trap = is_trap,
	.trap_size = 1,
	.branch_reach = (1ull << 31) - (1ull << 20), /* rel32, less a margin for the branch's own end */
	.fill_sync = EM_ARCH_SYNC_NONE,
	.flush = em_x86_64_flush,
};
