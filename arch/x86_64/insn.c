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

/* ---- nops and landings ---- */

enum { SHORT = 2, NEAR = 5, NOP_MAX = 9, LANDING = 4, EMPTY = 3, FAR = 14, ADDRESS = 10 };

/* As recommended: Intel SDM vol. 2, NOP, table 4-12. */
static uint32_t encode_nops(uint8_t *out, uint32_t len)
{
	static const uint8_t nops[NOP_MAX][NOP_MAX] = {
		{0x90},
		{0x66, 0x90},
		{0x0f, 0x1f, 0x00},
		{0x0f, 0x1f, 0x40, 0},
		{0x0f, 0x1f, 0x44, 0, 0},
		{0x66, 0x0f, 0x1f, 0x44, 0, 0},
		{0x0f, 0x1f, 0x80, 0, 0, 0, 0},
		{0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0},
		{0x66, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0},
	};

	for (uint32_t done = 0, part; done < len; done += part) {
		part = len - done < NOP_MAX ? len - done : NOP_MAX;
		memcpy(out + done, nops[part - 1], part);
	}
	return len;
}

/* endbr64. Control-flow enforcement looks at indirect branches only, so what follows here needs none but the far branch, which has no
 * notrack prefix: a kernel may refuse that. */
static uint32_t encode_landing(uint8_t *out)
{
	memcpy(out, (const uint8_t[]){0xf3, 0x0f, 0x1e, 0xfa}, LANDING);
	return LANDING;
}

/* xor %eax, %eax; ret */
static uint32_t encode_empty(uint8_t *out)
{
	memcpy(out, (const uint8_t[]){0x31, 0xc0, 0xc3}, EMPTY);
	return EMPTY;
}

/* ---- branches ---- */

/* An opcode and 32 bits that count from the instruction's end. */
static uint32_t relative(uint8_t *out, uint64_t at, const uint8_t *opcode, uint32_t len, uint64_t to)
{
	int64_t distance = (int64_t)(to - (at + len + 4));
	int32_t low = (int32_t)distance;

	if (low != distance)
		return 0;
	memcpy(out, opcode, len);
	memcpy(out + len, &low, 4);
	return len + 4;
}

static uint32_t encode_branch(uint8_t *out, uint64_t at, uint64_t to)
{
	return relative(out, at, (const uint8_t[]){0xe9}, 1, to);
}

static uint32_t encode_call(uint8_t *out, uint64_t at, uint64_t to)
{
	return relative(out, at, (const uint8_t[]){0xe8}, 1, to);
}

/* jmp *0(%rip) */
static uint32_t encode_far_branch(uint8_t *out, uint64_t to)
{
	memcpy(out, (const uint8_t[]){0xff, 0x25, 0, 0, 0, 0}, 6);
	memcpy(out + 6, &to, 8);
	return FAR;
}

/* A jump of more than five bytes is one of five behind prefixes that do nothing. */
static enum em_arch_encoded encode(int insn, uint64_t site, uint64_t target, uint8_t *out, size_t len)
{
	int64_t distance = (int64_t)(target - (site + len));
	bool call = insn == EXECMEM_INSN_CALL;

	if (insn == EXECMEM_INSN_NOP) {
		if (len == 0 || len > NOP_MAX)
			return EM_ARCH_ENCODE_LENGTH;
		encode_nops(out, (uint32_t)len);
		return EM_ARCH_ENCODED;
	}
	if (len == SHORT && !call) {
		if ((int8_t)distance != distance)
			return EM_ARCH_ENCODE_REACH;
		out[0] = 0xeb;
		out[1] = (uint8_t)distance;
		return EM_ARCH_ENCODED;
	}
	if (len < NEAR || len > (call ? NEAR : EM_ARCH_INSN_MAX))
		return EM_ARCH_ENCODE_LENGTH;
	if (!(call ? encode_call : encode_branch)(out + len - NEAR, site + len - NEAR, target))
		return EM_ARCH_ENCODE_REACH;
	memset(out, EM_X86_64_CS, len - NEAR);
	return EM_ARCH_ENCODED;
}

/* ---- addresses ---- */

/* lea to(%rip), reg; else movabs $to, reg */
static uint32_t encode_address(uint8_t *out, uint64_t at, enum em_arch_register reg, uint64_t to)
{
	uint8_t number = reg == EM_ARCH_RESULT ? 0 : 7; /* rax, rdi */
	uint32_t len = relative(out, at, (const uint8_t[]){0x48, 0x8d, (uint8_t)(number << 3 | 5)}, 3, to);

	if (len)
		return len;
	memcpy(out, (const uint8_t[]){0x48, (uint8_t)(0xb8 | number)}, 2);
	memcpy(out + 2, &to, 8);
	return ADDRESS;
}

/* ---- what an instruction does ---- */

/* The condition of a jcc, by the low four bits of its opcode (Intel SDM vol. 1, appendix B). */
static bool holds(unsigned condition, uint64_t flags)
{
	bool carry = flags & 1, parity = flags >> 2 & 1, zero = flags >> 6 & 1, sign = flags >> 7 & 1, overflow = flags >> 11 & 1;
	const bool by_pair[8] = {overflow, carry, zero, carry || zero, sign, parity, sign != overflow, zero || sign != overflow};

	return by_pair[condition >> 1] != (condition & 1);
}

static bool is_nop(const uint8_t *insn, size_t len)
{
	while (len > 2 && (insn[0] == 0x66 || insn[0] == 0x2E)) {
		insn++;
		len--;
	}
	return (len == 1 && insn[0] == 0x90) || (len == 2 && insn[0] == 0x66 && insn[1] == 0x90) ||
	       (len > 2 && insn[0] == 0x0F && insn[1] == 0x1F && insn[2] < 0xC0);
}

static void push(struct em_frame *frame, uint64_t word)
{
	frame->sp -= sizeof word;
	memcpy((void *)(uintptr_t)frame->sp, &word, sizeof word);
}

/* Plain forms only, without prefixes. A single step (TF) would not come to an end of an instruction. */
static bool emulate(struct em_frame *frame, uint64_t site, const uint8_t *insn, size_t len, bool shadowed)
{
	uint64_t next = site + len;
	int32_t near_distance = 0;
	uint16_t dropped = 0;

	if (frame->flags & EM_X86_64_TF)
		return false;
	if (len >= NEAR)
		memcpy(&near_distance, insn + len - 4, sizeof near_distance);
	if (is_nop(insn, len)) {
		frame->ip = next;
	} else if (len == SHORT && (insn[0] == 0xEB || (insn[0] & 0xF0) == 0x70)) {
		frame->ip = next + (uint64_t)(insn[0] == 0xEB || holds(insn[0] & 0xF, frame->flags) ? (int8_t)insn[1] : 0);
	} else if (len == NEAR && insn[0] == 0xE9) {
		frame->ip = next + (uint64_t)(int64_t)near_distance;
	} else if (len == NEAR + 1 && insn[0] == 0x0F && (insn[1] & 0xF0) == 0x80) {
		frame->ip = next + (uint64_t)(int64_t)(holds(insn[1] & 0xF, frame->flags) ? near_distance : 0);
	} else if (len == NEAR && insn[0] == 0xE8 && !shadowed) {
		push(frame, next);
		frame->ip = next + (uint64_t)(int64_t)near_distance;
	} else if (((len == 1 && insn[0] == 0xC3) || (len == 3 && insn[0] == 0xC2)) && !shadowed) {
		if (len == 3)
			memcpy(&dropped, insn + 1, sizeof dropped);
		memcpy(&frame->ip, (const void *)(uintptr_t)frame->sp, sizeof frame->ip);
		frame->sp += sizeof frame->ip + dropped;
	} else {
		return false;
	}
	return true;
}

/* ---- live changes ---- */

static bool is_one(const uint8_t *bytes, size_t len, struct em_arch_insn *out)
{
	return em_x86_64_decode(bytes, len, out) && out->length == len;
}

/*
 * AMD lets code be changed by a store within an aligned quadword while it runs (APM vol. 2, 7.6.1); Intel only when whoever runs it
 * serializes first (SDM vol. 3, 8.1.3), but for the first byte of a breakpoint, by which both go on.
 */
static enum em_arch_live live_change(uint64_t site, const uint8_t *old_bytes, const uint8_t *new_bytes, size_t len, bool memory,
                                     bool whole)
{
	struct em_arch_insn old_insn, new_insn;
	size_t first = 0;

	if (!is_one(old_bytes, len, &old_insn) || !is_one(new_bytes, len, &new_insn))
		return EM_ARCH_LIVE_NOT_ONE;
	if (old_insn.resumes)
		return EM_ARCH_LIVE_NEVER;
	if (!whole)
		return EM_ARCH_LIVE_BREAKPOINT;
	if (memory && site / 8 == (site + len - 1) / 8)
		return EM_ARCH_LIVE_STORE;
	while (first < len - 1 && old_bytes[first] == new_bytes[first])
		first++;
	return memcmp(old_bytes + first + 1, new_bytes + first + 1, len - first - 1) == 0 ? EM_ARCH_LIVE_STORE
	                                                                                  : EM_ARCH_LIVE_BREAKPOINT;
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
	.insn_align = 1,
	.encode_nops = encode_nops,
	.encode_landing = encode_landing,
	.landing_size = LANDING,
	.encode_empty = encode_empty,
	.empty_size = EMPTY,
	.encode_branch = encode_branch,
	.encode_call = encode_call,
	.branch_size = NEAR,
	.encode_far_branch = encode_far_branch,
	.far_branch_size = FAR,
	.far_branch_align = 1,
	.encode_address = encode_address,
	.address_size = ADDRESS,
	.key_rights = key_rights,
	.encode = encode,
	.site_size = NEAR,
	.live_change = live_change,
	.live_unit = 1,
	.emulate = emulate,
	.decode = em_x86_64_decode,
	.goal = em_x86_64_goal,
	.move = em_x86_64_move,
	.fill_sync = EM_ARCH_SYNC_NONE,
	.interrupts_sync = true,
	.flush = NULL,
	.fill_traps_past = em_x86_64_fill_traps_past,
	.drain = em_x86_64_drain,
	.has_keys = em_x86_64_has_keys,
	.read_rights = em_x86_64_read_rights,
	.write_rights = em_x86_64_write_rights,
	.sees_stores = em_x86_64_sees_stores,
	.has_shadow_stack = em_x86_64_has_shadow_stack,
	.serialize = em_x86_64_serialize,
};
