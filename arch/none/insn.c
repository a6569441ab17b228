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

/* ---- nops and landings ---- */

/* No instruction is known, so nothing can be encoded. */
static uint32_t encode_nops(uint8_t *out, uint32_t len)
{
	(void)out, (void)len;
	return 0;
}

static uint32_t encode_landing(uint8_t *out)
{
	(void)out;
	return 0;
}

/* ---- branches ---- */

static uint32_t encode_branch(uint8_t *out, uint64_t at, uint64_t to)
{
	(void)out, (void)at, (void)to;
	return 0;
}

static uint32_t encode_far_branch(uint8_t *out, uint64_t to)
{
	(void)out, (void)to;
	return 0;
}

static enum em_arch_encoded encode(int insn, uint64_t site, uint64_t target, uint8_t *out, size_t len)
{
	(void)insn, (void)site, (void)target, (void)out, (void)len;
	return EM_ARCH_ENCODE_LENGTH;
}

/* ---- addresses ---- */

static uint32_t encode_address(uint8_t *out, uint64_t at, enum em_arch_register reg, uint64_t to)
{
	(void)out, (void)at, (void)reg, (void)to;
	return 0;
}

/* ---- what an instruction does ---- */

/* No length is that of an instruction, so nobody emulates any. */

/* ---- live changes ---- */

static enum em_arch_live live_change(uint64_t site, const uint8_t *old_bytes, const uint8_t *new_bytes, size_t len, bool memory,
                                     bool whole)
{
	(void)site, (void)old_bytes, (void)new_bytes, (void)len, (void)memory, (void)whole;
	return EM_ARCH_LIVE_NOT_ONE;
}

/* ---- the table ---- */

const struct em_arch em_arch_none = {
	.name = "none",
	.supported = false,
	.why =
		"execmem has no room for this CPU yet; x86-64 with POPCNT (2008 and later), aarch64 and riscv64 work. See arch/arch.h for "
		"what one needs.",
	.fill_traps = fill_traps,
	.is_trap = is_trap,
	.trap_size = 1,
	.branch_reach = 0,
	.insn_align = 1,
	.encode_nops = encode_nops,
	.encode_landing = encode_landing,
	.encode_empty = encode_landing,
	.encode_branch = encode_branch,
	.encode_call = encode_branch,
	.encode_far_branch = encode_far_branch,
	.far_branch_align = 1,
	.encode_address = encode_address,
	.encode = encode,
	.live_change = live_change,
	.live_unit = 1,
	.decode = em_none_decode,
	.goal = em_none_goal,
	.move = em_none_move,
	.fill_sync = EM_ARCH_SYNC_CORES,
	.flush = em_none_flush,
};
