/* riscv64/decode: how long an instruction is, what of it depends on where it lies, and which cannot be changed while they run. Pure. After
 * the RISC-V unprivileged specification: "Expanded Instruction-Length Encoding", the opcode maps, and "V", exception handling.
 */
#include "room.h"

#include <string.h>

/* ---- one instruction ---- */

enum { LOAD_FP = 0x07, STORE_FP = 0x27, VECTOR = 0x57, ECALL = 0x73, NOP = 0x13, NOP_PARCEL = 0x0001, LINK = 31 << 7 };

/* Instructions on vectors go on at the element where they were interrupted; a call of the system may be started anew by the kernel. */
static bool resumes(uint32_t insn)
{
	uint32_t opcode = insn & 0x7f, width = insn >> 12 & 7;

	return insn == ECALL || opcode == VECTOR || ((opcode == LOAD_FP || opcode == STORE_FP) && (width == 0 || width > 4));
}

static uint32_t read_insn(const uint8_t *code, uint32_t len)
{
	uint32_t insn = 0;

	for (uint32_t i = 0; i < len; i++)
		insn |= (uint32_t)code[i] << 8 * i;
	return insn;
}

static bool decode_one_parcel(uint32_t parcel, struct em_arch_insn *out)
{
	out->length = EM_RISCV64_PARCEL;
	out->branches = (parcel & 3) == 1 && parcel >> 13 >= 5; /* c.j, c.beqz, c.bnez */
	out->relative = out->branches;
	out->ends = (parcel & 0xe003) == 0xa001 || ((parcel & 0xf07f) == 0x8002 && (parcel & LINK)); /* c.j, c.jr */
	out->nothing = parcel == NOP_PARCEL;
	return parcel != 0;
}

/* Longer ones than two parcels are not known here. */
bool em_riscv64_decode(const void *code, size_t len, struct em_arch_insn *out)
{
	const uint8_t *b = code;
	uint32_t insn, opcode;

	*out = (struct em_arch_insn){0};
	if (len < EM_RISCV64_PARCEL)
		return false;
	insn = read_insn(b, EM_RISCV64_PARCEL);
	if ((insn & 3) != 3)
		return decode_one_parcel(insn, out);
	if (len < 2 * EM_RISCV64_PARCEL || (insn & 0x1f) == 0x1f)
		return false;
	insn = read_insn(b, 2 * EM_RISCV64_PARCEL);
	opcode = insn & 0x7f;
	out->length = 2 * EM_RISCV64_PARCEL;
	out->branches = opcode == EM_RISCV64_JAL || opcode == EM_RISCV64_BRANCH;
	out->relative = out->branches || opcode == EM_RISCV64_AUIPC;
	out->calls = opcode == EM_RISCV64_JAL && (insn & LINK);
	out->ends = (opcode == EM_RISCV64_JAL || opcode == EM_RISCV64_JALR) && !(insn & LINK);
	out->nothing = insn == NOP;
	out->resumes = resumes(insn);
	return true;
}

/* ---- one instruction elsewhere ---- */

/* Some bits of an instruction, from `low` on, to stand from `to` on. */
static uint32_t bits(uint32_t insn, unsigned low, unsigned count, unsigned to)
{
	return (insn >> low & ((1u << count) - 1)) << to;
}

static int64_t extend(uint32_t number, unsigned sign)
{
	return (int64_t)((uint64_t)number << (63 - sign)) >> (63 - sign);
}

/* Of a branch of four bytes; the bits of each format as they stand, from the left. */
static int64_t distance_of(uint32_t insn)
{
	if ((insn & 0x7f) == EM_RISCV64_JAL)
		return extend(bits(insn, 31, 1, 20) | bits(insn, 21, 10, 1) | bits(insn, 20, 1, 11) | bits(insn, 12, 8, 12), 20);
	return extend(bits(insn, 31, 1, 12) | bits(insn, 25, 6, 5) | bits(insn, 8, 4, 1) | bits(insn, 7, 1, 11), 12);
}

/* The same branch in four bytes, without its distance: jal zero; beq and bne of s0 to a5, and zero. */
static uint32_t widen(uint32_t parcel, int64_t *distance)
{
	if (parcel >> 13 == 5) {
		*distance = extend(bits(parcel, 12, 1, 11) | bits(parcel, 11, 1, 4) | bits(parcel, 9, 2, 8) | bits(parcel, 8, 1, 10) |
		                       bits(parcel, 7, 1, 6) | bits(parcel, 6, 1, 7) | bits(parcel, 3, 3, 1) | bits(parcel, 2, 1, 5),
		                   11);
		return EM_RISCV64_JAL;
	}
	*distance = extend(
		bits(parcel, 12, 1, 8) | bits(parcel, 10, 2, 3) | bits(parcel, 5, 2, 6) | bits(parcel, 3, 2, 1) | bits(parcel, 2, 1, 5), 8);
	return EM_RISCV64_BRANCH | (8 + bits(parcel, 7, 3, 0)) << 15 | bits(parcel, 13, 1, 12);
}

static uint32_t read_branch(const uint8_t *code, const struct em_arch_insn *insn, int64_t *distance)
{
	uint32_t word = read_insn(code, insn->length);

	if (insn->length == EM_RISCV64_PARCEL)
		return widen(word, distance);
	*distance = distance_of(word);
	return word;
}

uint64_t em_riscv64_goal(const uint8_t *code, const struct em_arch_insn *insn, uint64_t at)
{
	int64_t distance;

	(void)read_branch(code, insn, &distance);
	return at + (uint64_t)distance;
}

static bool reaches(uint64_t distance, unsigned sign)
{
	return distance + (1ull << sign) < 2ull << sign;
}

static uint32_t put_branch(uint8_t *out, uint32_t insn, uint32_t d)
{
	insn = (insn & 0x1fff07f) | bits(d, 12, 1, 31) | bits(d, 5, 6, 25) | bits(d, 1, 4, 8) | bits(d, 11, 1, 7);
	for (unsigned i = 0; i < 4; i++)
		out[i] = (uint8_t)(insn >> 8 * i);
	return 4;
}

/* A call that is too far goes through the register it links to; where one with a condition does not reach, the opposite one goes round
 * a jump. A jump that does not reach would need a register that nobody uses. */
static enum em_arch_moved move_branch(uint32_t insn, uint64_t goal, uint64_t to, uint8_t *out, uint32_t *len)
{
	uint32_t link = bits(insn, 7, 5, 0);

	if ((insn & 0x7f) == EM_RISCV64_JAL) {
		if (reaches(goal - to, 20))
			*len = em_riscv64_put_jump(out, link, (uint32_t)(goal - to));
		else
			*len = link ? em_riscv64_put_pair(out, EM_RISCV64_JALR, link, to, goal) : 0;
	} else if (reaches(goal - to, 12)) {
		*len = put_branch(out, insn, (uint32_t)(goal - to));
	} else if (reaches(goal - (to + 4), 20)) {
		*len = put_branch(out, insn ^ 1 << 12, 8);
		*len += em_riscv64_put_jump(out + 4, 0, (uint32_t)(goal - (to + 4)));
	} else {
		*len = 0;
	}
	return *len ? EM_ARCH_MOVED : EM_ARCH_MOVED_FAR;
}

/* auipc, of which other instructions use what it gave: the same number, by two. Of no register it is a landing, or nothing. */
enum em_arch_moved em_riscv64_move(const uint8_t *code, const struct em_arch_insn *insn, uint64_t from, uint64_t to, uint8_t *out,
                                   uint32_t *len)
{
	uint32_t word = read_insn(code, insn->length), rd = bits(word, 7, 5, 0);
	int64_t distance;

	if (insn->branches) {
		word = read_branch(code, insn, &distance);
		return move_branch(word, from + (uint64_t)distance, to, out, len);
	}
	if (!insn->relative || rd == 0) {
		memcpy(out, code, insn->length);
		*len = insn->length;
		return EM_ARCH_MOVED;
	}
	*len = em_riscv64_put_pair(out, EM_RISCV64_ADDI, rd, to, from + (uint64_t)extend(word & 0xfffff000, 31));
	return *len ? EM_ARCH_MOVED : EM_ARCH_MOVED_FAR;
}
