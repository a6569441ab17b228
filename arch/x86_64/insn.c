/* x86_64/insn: pure facts and encoders. */
#include "room.h"

#include <string.h>

/* ---- traps ---- */

static void fill_traps(void *dst, size_t len)
{
	memset(dst, EM_X86_64_INT3, len);
}

static bool is_trap(const void *bytes, size_t len)
{
	const uint8_t *b = bytes;

	return len == 0 || (b[0] == EM_X86_64_INT3 && memcmp(b, b + 1, len - 1) == 0);
}

/* ---- protection keys ---- */

/* PKRU has two bits a key: no access, no writing (Intel SDM vol. 3, 4.6.2). */
static uint64_t key_rights(uint64_t rights, int key, bool open)
{
	return open ? rights & ~(3ull << 2 * key) : rights | 1ull << 2 * key;
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
	.key_rights = key_rights,
	.fill_sync = EM_ARCH_SYNC_NONE,
	.flush = NULL,
	.fill_traps_past = em_x86_64_fill_traps_past,
	.drain = em_x86_64_drain,
	.has_keys = em_x86_64_has_keys,
	.read_rights = em_x86_64_read_rights,
	.write_rights = em_x86_64_write_rights,
};
