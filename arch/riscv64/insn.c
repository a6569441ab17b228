/* riscv64/insn: pure facts and encoders. Names of instructions and fields are those of the RISC-V unprivileged specification. The C extension
 * is taken for granted, as every distribution of Linux does (RV64GC).
 */
#include "room.h"

#include <string.h>

enum { ZERO = 0, RA = 1, T2 = 7, A0 = 10 };

/* ---- traps ---- */

static void fill_traps(void *dst, size_t len)
{
	memset(dst, 0, len);
}

static bool is_trap(const void *bytes, size_t len)
{
	const uint8_t *b = bytes, *end = b + len;
	uint64_t word;

	for (; b < end && (uintptr_t)b % sizeof word; b++)
		if (*b)
			return false;
	for (; (size_t)(end - b) >= sizeof word; b += sizeof word) { /* CPUs may be slow where words do not lie at their size */
		memcpy(&word, __builtin_assume_aligned(b, sizeof word), sizeof word);
		if (word)
			return false;
	}
	for (; b < end; b++)
		if (*b)
			return false;
	return true;
}

/* ---- protection keys ---- */

/* Nothing is known of them on this CPU, so the table has none. */

/* ---- nops and landings ---- */

static uint32_t put(uint8_t *out, uint32_t insn)
{
	for (int i = 0; i < 4; i++)
		out[i] = (uint8_t)(insn >> 8 * i);
	return 4;
}

static uint32_t put_upper(uint8_t *out, uint32_t opcode, uint32_t rd, uint32_t pages)
{
	return put(out, pages << 12 | rd << 7 | opcode);
}

static uint32_t put_immediate(uint8_t *out, uint32_t opcode, uint32_t rd, uint32_t rs, uint32_t immediate)
{
	return put(out, immediate << 20 | rs << 15 | rd << 7 | opcode);
}

/* Opcodes, with the bits of funct3. */
enum { LUI = 0x37, ADDIW = 0x1b, SLLI = 0x1013, LD = 0x3003 };

static uint32_t encode_nops(uint8_t *out, uint32_t len)
{
	uint32_t done = 0;

	if (len % EM_RISCV64_PARCEL)
		return 0;
	while (len - done >= 4)
		done += put_immediate(out + done, EM_RISCV64_ADDI, ZERO, ZERO, 0);
	if (done < len)
		memcpy(out + done, (const uint8_t[]){0x01, 0x00}, 2); /* c.nop */
	return len;
}

/* lpad 0, of Zicfilp, which is auipc zero, 0: without the extension it does nothing. */
static uint32_t encode_landing(uint8_t *out)
{
	return put_upper(out, EM_RISCV64_AUIPC, ZERO, 0);
}

/* li a0, 0; ret */
static uint32_t encode_empty(uint8_t *out)
{
	return put_immediate(out, EM_RISCV64_ADDI, A0, ZERO, 0) + put_immediate(out + 4, EM_RISCV64_JALR, ZERO, RA, 0);
}

/* ---- branches ---- */

/* A distance as auipc's pages and the signed 12 bits that an instruction behind it adds; false: it is longer than some 2 GB. */
static bool split(uint64_t at, uint64_t to, uint32_t *pages, uint32_t *rest)
{
	int64_t distance = (int64_t)(to - at);

	if (at % EM_RISCV64_PARCEL || distance < -(1ll << 31) - 2048 || distance >= (1ll << 31) - 2048)
		return false;
	*pages = (uint32_t)((uint64_t)(distance + 2048) >> 12);
	*rest = (uint32_t)(uint64_t)distance & 0xfff;
	return true;
}

/* auipc via, pages; jalr link, rest(via). Both, not the one JAL that reaches 1 MB: what is a call here is one anywhere in a window. */
static uint32_t relative(uint8_t *out, uint32_t link, uint32_t via, uint64_t at, uint64_t to)
{
	uint32_t pages, rest;

	if (to % EM_RISCV64_PARCEL || !split(at, to, &pages, &rest))
		return 0;
	put_upper(out, EM_RISCV64_AUIPC, via, pages);
	return 4 + put_immediate(out + 4, EM_RISCV64_JALR, link, via, rest);
}

uint32_t em_riscv64_put_pair(uint8_t *out, uint32_t opcode, uint32_t rd, uint64_t at, uint64_t to)
{
	uint32_t pages, rest;

	if (!split(at, to, &pages, &rest))
		return 0;
	put_upper(out, EM_RISCV64_AUIPC, rd, pages);
	return 4 + put_immediate(out + 4, opcode, rd, rd, rest);
}

/* t2: where landings are checked (Zicfilp), a jump through it is taken to be guarded by software, and needs none. */
static uint32_t encode_branch(uint8_t *out, uint64_t at, uint64_t to)
{
	return relative(out, ZERO, T2, at, to);
}

static uint32_t encode_call(uint8_t *out, uint64_t at, uint64_t to)
{
	return relative(out, RA, RA, at, to);
}

/* auipc t2, 0; ld t2, 16(t2); jr t2; four bytes of traps, so that the address is aligned. */
static uint32_t encode_far_branch(uint8_t *out, uint64_t to)
{
	uint32_t len = 0;

	if (to % EM_RISCV64_PARCEL)
		return 0;
	len += put_upper(out + len, EM_RISCV64_AUIPC, T2, 0);
	len += put_immediate(out + len, LD, T2, T2, 16);
	len += put_immediate(out + len, EM_RISCV64_JALR, ZERO, T2, 0);
	len += put(out + len, 0);
	len += put(out + len, (uint32_t)to);
	return len + put(out + len, (uint32_t)(to >> 32));
}

/* c.j: bits 11, 4, 9 and 8, 10, 6, 7, 3 to 1, 5 of a distance of 2 KB either way. */
static uint32_t put_short_jump(uint8_t *out, uint32_t d)
{
	uint32_t insn = 0xa001 | (d >> 11 & 1) << 12 | (d >> 4 & 1) << 11 | (d >> 8 & 3) << 9 | (d >> 10 & 1) << 8 | (d >> 6 & 1) << 7 |
	                (d >> 7 & 1) << 6 | (d >> 1 & 7) << 3 | (d >> 5 & 1) << 2;

	out[0] = (uint8_t)insn;
	out[1] = (uint8_t)(insn >> 8);
	return 2;
}

/* jal: bits 20, 10 to 1, 11, 19 to 12 of a distance of 1 MB either way. */
uint32_t em_riscv64_put_jump(uint8_t *out, uint32_t link, uint32_t d)
{
	return put(out, (d >> 20 & 1) << 31 | (d >> 1 & 0x3ff) << 21 | (d >> 11 & 1) << 20 | (d >> 12 & 0xff) << 12 | link << 7 |
	                    EM_RISCV64_JAL);
}

static enum em_arch_encoded encode(int insn, uint64_t site, uint64_t target, uint8_t *out, size_t len)
{
	int64_t distance = (int64_t)(target - site), reach = len == 2 ? 1 << 11 : 1 << 20;

	if ((len != 2 && len != 4) || (len == 2 && insn == EXECMEM_INSN_CALL))
		return EM_ARCH_ENCODE_LENGTH;
	if (insn == EXECMEM_INSN_NOP)
		return encode_nops(out, (uint32_t)len) ? EM_ARCH_ENCODED : EM_ARCH_ENCODE_LENGTH;
	if ((site | target) % EM_RISCV64_PARCEL)
		return EM_ARCH_ENCODE_ALIGN;
	if (distance < -reach || distance >= reach)
		return EM_ARCH_ENCODE_REACH;
	if (len == 2)
		put_short_jump(out, (uint32_t)distance);
	else
		em_riscv64_put_jump(out, insn == EXECMEM_INSN_CALL ? RA : ZERO, (uint32_t)distance);
	return EM_ARCH_ENCODED;
}

/* ---- addresses ---- */

/* lui and addiw for 32 bits. Longer ones from the top down: what is above the lowest 12 bits, shifted, and those added, which are signed. */
static uint32_t put_number(uint8_t *out, uint32_t rd, uint64_t number)
{
	uint64_t steps[3], above = number;
	uint32_t len = 0, shifts = 0, pages, rest;

	while ((int64_t)above != (int32_t)above) {
		steps[shifts++] = above & 0xfff;
		above = (uint64_t)((int64_t)(above + 2048) >> 12);
	}
	pages = (uint32_t)(above + 2048) >> 12 & 0xfffff;
	rest = (uint32_t)above & 0xfff;
	if (pages)
		len += put_upper(out + len, LUI, rd, pages);
	if (rest || !pages)
		len += put_immediate(out + len, pages ? ADDIW : EM_RISCV64_ADDI, rd, pages ? rd : ZERO, rest);
	while (shifts-- > 0) {
		len += put_immediate(out + len, SLLI, rd, rd, 12);
		if (steps[shifts])
			len += put_immediate(out + len, EM_RISCV64_ADDI, rd, rd, (uint32_t)steps[shifts]);
	}
	return len;
}

/* auipc and addi, else the number. All registers of enum em_arch_register are a0. */
static uint32_t encode_address(uint8_t *out, uint64_t at, enum em_arch_register reg, uint64_t to)
{
	uint32_t len;

	(void)reg;
	if (at % EM_RISCV64_PARCEL)
		return 0;
	len = em_riscv64_put_pair(out, EM_RISCV64_ADDI, A0, at, to);
	return len ? len : put_number(out, A0, to);
}

/* ---- what an instruction does ---- */

/* No breakpoints are put over instructions, so nobody emulates any. */

/* ---- live changes ---- */

/* What is fetched at a multiple of its own size, two bytes or four, comes from one moment of memory (Ziccif, which every CPU for Linux
 * has, by the profiles RVA20 and later), so one aligned store is seen whole or not yet. What lies otherwise is not changed. */
static enum em_arch_live live_change(uint64_t site, const uint8_t *old_bytes, const uint8_t *new_bytes, size_t len, bool memory,
                                     bool whole)
{
	struct em_arch_insn old_insn, new_insn;

	if (site % EM_RISCV64_PARCEL)
		return EM_ARCH_LIVE_MISALIGNED;
	if (!em_riscv64_decode(old_bytes, len, &old_insn) || !em_riscv64_decode(new_bytes, len, &new_insn) || old_insn.length != len ||
	    new_insn.length != len)
		return EM_ARCH_LIVE_NOT_ONE;
	if (site % len)
		return EM_ARCH_LIVE_MISALIGNED;
	if (old_insn.resumes)
		return EM_ARCH_LIVE_NEVER;
	return whole && memory ? EM_ARCH_LIVE_STORE : EM_ARCH_LIVE_STOPPED;
}

/* ---- the table ---- */

const struct em_arch em_arch_riscv64 = {
	.name = "riscv64",
	.supported = true,
	.why = "",
	.fill_traps = fill_traps,
	.is_trap = is_trap,
	.trap_size = EM_RISCV64_PARCEL,
	.branch_reach = (1ull << 31) - (1ull << 20), /* a margin as on other CPUs */
	.insn_align = EM_RISCV64_PARCEL,
	.encode_nops = encode_nops,
	.encode_landing = encode_landing,
	.landing_size = 4,
	.encode_empty = encode_empty,
	.empty_size = 8,
	.encode_branch = encode_branch,
	.encode_call = encode_call,
	.branch_size = 8,
	.encode_far_branch = encode_far_branch,
	.far_branch_size = 24,
	.far_branch_align = 8,
	.encode_address = encode_address,
	.address_size = 32,
	.encode = encode,
	.site_size = 4,
	.live_change = live_change,
	.live_unit = EM_RISCV64_PARCEL,
	.decode = em_riscv64_decode,
	.goal = em_riscv64_goal,
	.move = em_riscv64_move,
	.fill_sync = EM_ARCH_SYNC_CORES,
	.interrupts_sync = false, /* only FENCE.I makes a hart forget what it fetched */
	.flush = NULL,
	.sees_stores = em_riscv64_sees_stores,
};
