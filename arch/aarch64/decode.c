/* aarch64/decode: what of an instruction depends on where it lies, and which cannot be changed while they run. Pure. Fields as in the Arm
 * Architecture Reference Manual (DDI 0487), C4.1.
 */
#include "room.h"

/* ---- one instruction ---- */

/* Bits 28 to 25. */
enum { RESERVED = 0, UNALLOCATED = 1, SVE = 2, UNALLOCATED_TOO = 3 };

/* Memory copied and set (FEAT_MOPS) goes on where it was interrupted; loads and stores of SVE are taken to; a call of the system may be
 * started anew by the kernel. */
static bool resumes(uint32_t insn, uint32_t group)
{
	return (insn & 0x3b200c00) == 0x19000400 || (group == SVE && insn >> 31) || (insn & 0xffe0001f) == 0xd4000001;
}

/* Each is four bytes; UDF, which is most of what is no instruction, and SME are not known here. */
bool em_aarch64_decode(const void *code, size_t len, struct em_arch_insn *out)
{
	uint32_t insn, group;

	*out = (struct em_arch_insn){0};
	if (len < EM_AARCH64_INSN)
		return false;
	insn = em_aarch64_read(code);
	group = insn >> 25 & 15;
	if (group == RESERVED || group == UNALLOCATED || group == UNALLOCATED_TOO)
		return false;
	out->length = EM_AARCH64_INSN;
	/* b, bl; b.cond; cbz, cbnz, tbz, tbnz */
	out->branches = (insn & 0x7c000000) == 0x14000000 || (insn & 0xff000000) == 0x54000000 || (insn & 0x7c000000) == 0x34000000;
	out->calls = (insn & 0xfc000000) == 0x94000000;
	/* b; br, ret, eret and those that authenticate, but not blr */
	out->ends = (insn & 0xfc000000) == 0x14000000 || ((insn & 0xfe000000) == 0xd6000000 && (insn >> 21 & 7) != 1);
	out->nothing = insn == 0xd503201f;
	/* adr, adrp; ldr, ldrsw and prfm of a literal */
	out->relative = out->branches || (insn & 0x1f000000) == 0x10000000 || (insn & 0x3b000000) == 0x18000000;
	out->resumes = resumes(insn, group);
	return true;
}

/* ---- one instruction elsewhere ---- */

/* Where the distance lies in an instruction that branches, or has a literal: counted in instructions, signed. */
struct field {
	unsigned low, bits;
};

static struct field field_of(uint32_t insn)
{
	if ((insn & 0x7c000000) == 0x14000000)
		return (struct field){0, 26}; /* b, bl */
	return (insn & 0x7e000000) == 0x36000000 ? (struct field){5, 14} /* tbz, tbnz */ : (struct field){5, 19};
}

static int64_t get(uint32_t insn, struct field f)
{
	return (int64_t)((uint64_t)insn << (64 - f.low - f.bits)) >> (64 - f.bits);
}

static bool set(uint32_t *insn, uint64_t at, uint64_t goal)
{
	struct field f = field_of(*insn);
	uint64_t distance = goal - at, half = EM_AARCH64_INSN / 2 * (1ull << f.bits);
	uint32_t mask = ((1u << f.bits) - 1) << f.low;

	if (distance + half >= 2 * half)
		return false;
	*insn = (*insn & ~mask) | ((uint32_t)(distance / EM_AARCH64_INSN) << f.low & mask);
	return true;
}

uint64_t em_aarch64_goal(const uint8_t *code, const struct em_arch_insn *insn, uint64_t at)
{
	uint32_t word = em_aarch64_read(code);

	(void)insn;
	return at + (uint64_t)(get(word, field_of(word)) * EM_AARCH64_INSN);
}

/* Where one with a condition does not reach, the opposite one goes round a branch. */
static enum em_arch_moved move_branch(uint32_t insn, uint64_t goal, uint64_t to, uint8_t *out, uint32_t *len)
{
	uint32_t branch = 0x14000000;
	bool by_flags = insn >> 24 == 0x54;

	if (set(&insn, to, goal)) {
		*len = em_aarch64_put(out, insn);
		return EM_ARCH_MOVED;
	}
	if (field_of(insn).bits == 26 || (by_flags && (insn & 14) == 14) || !set(&branch, to + EM_AARCH64_INSN, goal))
		return EM_ARCH_MOVED_FAR; /* b and bl; b.al has no opposite */
	insn ^= by_flags ? 1 : 1 << 24;
	(void)set(&insn, to, to + 2 * EM_AARCH64_INSN);
	*len = em_aarch64_put(out, insn);
	*len += em_aarch64_put(out + *len, branch);
	return EM_ARCH_MOVED;
}

/* adr, adrp: as adrp and add. */
static enum em_arch_moved move_address(uint32_t insn, uint64_t from, uint64_t to, uint8_t *out, uint32_t *len)
{
	int64_t number = get(insn, (struct field){5, 19}) * 4 + (insn >> 29 & 3);
	uint64_t value = insn >> 31 ? (from & ~0xfffull) + (uint64_t)(number * 4096) : from + (uint64_t)number;

	if ((insn & 31) == 31)
		return EM_ARCH_MOVED_NEVER; /* of no register; add means another by that number */
	*len = em_aarch64_put_address(out, insn & 31, to, value);
	return *len ? EM_ARCH_MOVED : EM_ARCH_MOVED_FAR;
}

/* A literal that is too far is read through the register it is read into: ldr w, ldr x, ldrsw. Hints to fetch it are left out. */
static enum em_arch_moved move_literal(uint32_t insn, uint64_t goal, uint64_t to, uint8_t *out, uint32_t *len)
{
	static const uint32_t loads[3] = {0xb9400000, 0xf9400000, 0xb9800000};
	uint32_t rt = insn & 31, size = insn >> 30;

	if (set(&insn, to, goal)) {
		*len = em_aarch64_put(out, insn);
		return EM_ARCH_MOVED;
	}
	if (insn >> 26 & 1)
		return EM_ARCH_MOVED_FAR; /* into a register of floating point */
	if (size == 3) {
		*len = em_aarch64_put(out, 0xd503201f);
		return EM_ARCH_MOVED;
	}
	if (rt == 31)
		return EM_ARCH_MOVED_NEVER;
	*len = em_aarch64_put_address(out, rt, to, goal);
	if (*len == 0)
		return EM_ARCH_MOVED_FAR;
	*len += em_aarch64_put(out + *len, loads[size] | rt << 5 | rt);
	return EM_ARCH_MOVED;
}

enum em_arch_moved em_aarch64_move(const uint8_t *code, const struct em_arch_insn *insn, uint64_t from, uint64_t to, uint8_t *out,
                                   uint32_t *len)
{
	uint32_t word = em_aarch64_read(code);

	if (insn->branches)
		return move_branch(word, em_aarch64_goal(code, insn, from), to, out, len);
	if (!insn->relative) {
		*len = em_aarch64_put(out, word);
		return EM_ARCH_MOVED;
	}
	if ((word & 0x1f000000) == 0x10000000)
		return move_address(word, from, to, out, len);
	return move_literal(word, em_aarch64_goal(code, insn, from), to, out, len);
}
