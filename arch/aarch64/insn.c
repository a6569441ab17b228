/* aarch64/insn: pure facts and encoders. Names of instructions and fields are those of the Arm Architecture Reference Manual (DDI 0487), C6. */
#include "room.h"

#include <string.h>

/* ---- traps ---- */

uint32_t em_aarch64_put(uint8_t *out, uint32_t insn)
{
	for (int i = 0; i < EM_AARCH64_INSN; i++)
		out[i] = (uint8_t)(insn >> 8 * i);
	return EM_AARCH64_INSN;
}

static void fill_traps(void *dst, size_t len)
{
	for (uint8_t *at = dst, *end = at + len; at < end; at += EM_AARCH64_INSN)
		em_aarch64_put(at, (uint32_t)EM_AARCH64_BRK);
}

static bool is_trap(const void *bytes, size_t len)
{
	const uint8_t *b = bytes;
	uint8_t trap[EM_AARCH64_INSN];

	em_aarch64_put(trap, (uint32_t)EM_AARCH64_BRK);
	return len == 0 || (memcmp(b, trap, sizeof trap) == 0 && memcmp(b, b + sizeof trap, len - sizeof trap) == 0);
}

/* ---- protection keys ---- */

/* Those that some CPUs have (permission overlays) are not used, so the table has none. */

/* ---- nops and landings ---- */

static uint32_t encode_nops(uint8_t *out, uint32_t len)
{
	if (len % EM_AARCH64_INSN)
		return 0;
	for (uint32_t done = 0; done < len; done += EM_AARCH64_INSN)
		em_aarch64_put(out + done, 0xd503201f); /* nop */
	return len;
}

/* bti c: for BLR, and for BR through x16 and x17. It is checked in pages mapped with PROT_BTI, which ours are not; elsewhere it is a nop. */
static uint32_t encode_landing(uint8_t *out)
{
	return em_aarch64_put(out, 0xd503245f);
}

/* mov w0, #0; ret */
static uint32_t encode_empty(uint8_t *out)
{
	return em_aarch64_put(out, 0x52800000) + em_aarch64_put(out + 4, 0xd65f03c0);
}

/* ---- branches ---- */

/* B and BL: 26 bits, counted in instructions. */
static uint32_t relative(uint8_t *out, uint32_t opcode, uint64_t at, uint64_t to)
{
	int64_t distance = (int64_t)(to - at);

	if ((at | to) % EM_AARCH64_INSN || distance < -(1 << 27) || distance >= 1 << 27)
		return 0;
	return em_aarch64_put(out, opcode | ((uint64_t)distance >> 2 & 0x3ffffff));
}

static uint32_t encode_branch(uint8_t *out, uint64_t at, uint64_t to)
{
	return relative(out, 0x14000000, at, to);
}

static uint32_t encode_call(uint8_t *out, uint64_t at, uint64_t to)
{
	return relative(out, 0x94000000, at, to);
}

/* ldr x16, #8; br x16. With x16 a target that begins with bti c may be branched to as well as called. */
static uint32_t encode_far_branch(uint8_t *out, uint64_t to)
{
	if (to % EM_AARCH64_INSN)
		return 0;
	em_aarch64_put(out, 0x58000050);
	em_aarch64_put(out + 4, 0xd61f0200);
	em_aarch64_put(out + 8, (uint32_t)to);
	em_aarch64_put(out + 12, (uint32_t)(to >> 32));
	return 16;
}

static enum em_arch_encoded encode(int insn, uint64_t site, uint64_t target, uint8_t *out, size_t len)
{
	if (len != EM_AARCH64_INSN)
		return EM_ARCH_ENCODE_LENGTH;
	if (insn == EXECMEM_INSN_NOP)
		return encode_nops(out, EM_AARCH64_INSN) ? EM_ARCH_ENCODED : EM_ARCH_ENCODE_LENGTH;
	if ((site | target) % EM_AARCH64_INSN)
		return EM_ARCH_ENCODE_ALIGN;
	return (insn == EXECMEM_INSN_CALL ? encode_call : encode_branch)(out, site, target) ? EM_ARCH_ENCODED : EM_ARCH_ENCODE_REACH;
}

/* ---- addresses ---- */

/* 4 GB either way, counted from page to page. */
uint32_t em_aarch64_put_address(uint8_t *out, uint32_t rd, uint64_t at, uint64_t to)
{
	int64_t pages = (int64_t)(to >> 12) - (int64_t)(at >> 12);

	if (pages < -(1 << 20) || pages >= 1 << 20)
		return 0;
	em_aarch64_put(out, 0x90000000 | ((uint32_t)pages & 3) << 29 | ((uint32_t)pages >> 2 & 0x7ffff) << 5 | rd);
	return 4 + em_aarch64_put(out + 4, 0x91000000 | (uint32_t)(to & 0xfff) << 10 | rd << 5 | rd);
}

/* Where adrp and add do not reach: movz and three movk. All registers of enum em_arch_register are x0. */
static uint32_t encode_address(uint8_t *out, uint64_t at, enum em_arch_register reg, uint64_t to)
{
	uint32_t len;

	(void)reg;
	if (at % EM_AARCH64_INSN)
		return 0;
	len = em_aarch64_put_address(out, 0, at, to);
	if (len)
		return len;
	for (uint32_t half = 0; half < 4; half++)
		len += em_aarch64_put(out + len, (half ? 0xf2800000 : 0xd2800000) | half << 21 | (uint32_t)(to >> 16 * half & 0xffff) << 5);
	return len;
}

/* ---- what an instruction does ---- */

/* No breakpoints are put over instructions, so nobody emulates any. */

/* ---- live changes ---- */

/* Only these may be changed, into one of these, while they run: b, bl, nop, isb, brk, svc, hvc, smc (Arm ARM, B2.2.5). */
static bool is_changed_by_store(uint32_t insn)
{
	uint32_t exception = insn & 0xffe0001f;

	return (insn & 0x7c000000) == 0x14000000 || insn == 0xd503201f || (insn & 0xfffff0ff) == 0xd50330df ||
	       exception == 0xd4200000 || (exception > 0xd4000000 && exception <= 0xd4000003);
}

static enum em_arch_live live_change(uint64_t site, const uint8_t *old_bytes, const uint8_t *new_bytes, size_t len, bool memory,
                                     bool whole)
{
	struct em_arch_insn old_insn, new_insn;

	if (site % EM_AARCH64_INSN)
		return EM_ARCH_LIVE_MISALIGNED;
	if (len != EM_AARCH64_INSN || !em_aarch64_decode(old_bytes, len, &old_insn) || !em_aarch64_decode(new_bytes, len, &new_insn))
		return EM_ARCH_LIVE_NOT_ONE;
	if (old_insn.resumes)
		return EM_ARCH_LIVE_NEVER;
	whole = whole && memory && is_changed_by_store(em_aarch64_read(old_bytes)) && is_changed_by_store(em_aarch64_read(new_bytes));
	return whole ? EM_ARCH_LIVE_STORE : EM_ARCH_LIVE_STOPPED;
}

/* ---- the table ---- */

const struct em_arch em_arch_aarch64 = {
	.name = "aarch64",
	.supported = true,
	.why = "",
	.fill_traps = fill_traps,
	.is_trap = is_trap,
	.trap_size = EM_AARCH64_INSN,
	.branch_reach = (1ull << 27) - (1ull << 20), /* a margin as on other CPUs */
	.insn_align = EM_AARCH64_INSN,
	.encode_nops = encode_nops,
	.encode_landing = encode_landing,
	.landing_size = 4,
	.encode_empty = encode_empty,
	.empty_size = 8,
	.encode_branch = encode_branch,
	.encode_call = encode_call,
	.branch_size = 4,
	.encode_far_branch = encode_far_branch,
	.far_branch_size = 16,
	.far_branch_align = EM_AARCH64_INSN,
	.encode_address = encode_address,
	.address_size = 16,
	.encode = encode,
	.site_size = 4,
	.live_change = live_change,
	.live_unit = EM_AARCH64_INSN,
	.decode = em_aarch64_decode,
	.goal = em_aarch64_goal,
	.move = em_aarch64_move,
	.fill_sync = EM_ARCH_SYNC_CORES,
	.interrupts_sync = true, /* coming back from an exception is a context synchronisation event */
	.flush = em_aarch64_flush,
	.sees_stores = em_aarch64_sees_stores,
};
