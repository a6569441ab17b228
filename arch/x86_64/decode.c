/* x86_64/decode: how long an instruction is, and what of it depends on where it lies. Pure.
 *
 *   prefixes (66 67 F0 F2 F3, segments) | REX | opcode: one byte, 0F, 0F 38, 0F 3A | ModRM | SIB | distance | immediate
 *                                    VEX or EVEX instead of REX and 0F ...
 *
 * After Intel SDM vol. 2, 2.1 to 2.7 and appendix A, and AMD APM vol. 3, appendix A. What both vendors do not read alike, what needs
 * a newer map (APX, XOP, 3DNow!) and what is no instruction in 64-bit mode is not known here, so it is refused.
 */
#include "room.h"

#include <string.h>

enum {
	LONGEST = 15,
	OPERAND_16 = 1, /* prefix 66 */
	ADDRESS_32 = 2, /* prefix 67 */
	REPEAT = 4,     /* F2 or F3 */
	LOCKED = 8,
	WIDE = 16, /* REX.W */
	REX = 32,
};

struct reader {
	const uint8_t *at;
	uint32_t len, done; /* bytes there, and read */
	unsigned prefixes;
	bool short_of; /* more bytes are needed */
};

static uint8_t next(struct reader *r)
{
	if (r->done < r->len)
		return r->at[r->done++];
	r->short_of = true;
	return 0;
}

/* ---- one instruction ---- */

/* For each opcode what follows it:
 *
 *   . nothing    b w q    1, 2, 3 bytes       z  4 bytes, 2 with prefix 66      v  as z, 8 with REX.W     a  an address
 *   m ModRM      n o      ModRM and b or z    g h  n or o for the first two of eight, else m              j J  a distance of 1 or 4 bytes
 *   x none: not an instruction, or not one for this table. Prefixes, escapes, VEX and EVEX are x too: they are read before. */
static const char one_byte[257] =
	/* 0 1 2 3 4 5 6 7 8 9 a b c d e f */
	"mmmmbzxxmmmmbzxx"  /* 00 add or */
	"mmmmbzxxmmmmbzxx"  /* 10 adc sbb */
	"mmmmbzxxmmmmbzxx"  /* 20 and sub */
	"mmmmbzxxmmmmbzxx"  /* 30 xor cmp */
	"xxxxxxxxxxxxxxxx"  /* 40 */
	"................"  /* 50 push pop */
	"xxxmxxxxzobn...."  /* 60 movsxd push imul ins outs */
	"jjjjjjjjjjjjjjjj"  /* 70 jcc */
	"noxnmmmmmmmmmmmm"  /* 80 group 1, test xchg mov lea pop */
	"..........x....."  /* 90 xchg cwd wait pushf */
	"aaaa....bz......"  /* a0 mov movs cmps test stos lods scas */
	"bbbbbbbbvvvvvvvv"  /* b0 mov */
	"nnw.xxnoq.w..bx."  /* c0 shift ret mov enter leave int iret */
	"mmmmxxx.mmmmmmmm"  /* d0 shift xlat x87 */
	"jjjjbbbbJJxj...."  /* e0 loop in out call jmp */
	"x.xx..gh......mm"; /* f0 group 3, 4, 5 */

static const char two_byte[257] = "mmmmx.....x.xm.x"  /* 00 groups 6, 7, syscall ud2 prefetch */
								  "mmmmmmmmmmmmmmmm"  /* 10 movups, hints */
								  "xxxxxxxxmmmmmmmm"  /* 20 movaps */
								  "......x.xxxxxxxx"  /* 30 wrmsr rdtsc rdmsr rdpmc sysenter sysexit getsec */
								  "mmmmmmmmmmmmmmmm"  /* 40 cmov */
								  "mmmmmmmmmmmmmmmm"  /* 50 */
								  "mmmmmmmmmmmmmmmm"  /* 60 */
								  "nnnnmmm.xxxxmmmm"  /* 70 pshuf, shift groups, emms */
								  "JJJJJJJJJJJJJJJJ"  /* 80 jcc */
								  "mmmmmmmmmmmmmmmm"  /* 90 setcc */
								  "...mnmxx...mnmmm"  /* a0 push cpuid bt shld, shrd imul */
								  "mmmmmmmmxxnmmmmm"  /* b0 cmpxchg movzx; popcnt is below */
								  "mmnmnnnm........"  /* c0 xadd cmpps shufps bswap */
								  "mmmmmmmmmmmmmmmm"  /* d0 */
								  "mmmmmmmmmmmmmmmm"  /* e0 */
								  "mmmmmmmmmmmmmmmx"; /* f0 */

/* Under VEX and EVEX the map of two bytes has no instructions with other immediates than these, and no jumps. */
static char in_vector_map(unsigned map, uint8_t opcode, bool evex)
{
	if (map == 2 || (evex && (map == 5 || map == 6)))
		return 'm';
	if (map == 3)
		return 'n';
	if (map != 1)
		return 'x';
	if (opcode == 0x77)
		return evex ? 'x' : '.'; /* vzeroupper */
	return (opcode >= 0x70 && opcode <= 0x73) || opcode == 0xC2 || (opcode >= 0xC4 && opcode <= 0xC6) ? 'n' : 'm';
}

static uint32_t bytes_of(char what, unsigned prefixes, unsigned reg)
{
	bool half = (prefixes & OPERAND_16) && !(prefixes & WIDE);

	switch (what) {
	case 'b':
	case 'n':
	case 'j':
		return 1;
	case 'w':
		return 2;
	case 'q':
		return 3;
	case 'J':
		return 4;
	case 'z':
	case 'o':
		return half ? 2 : 4;
	case 'v':
		return prefixes & WIDE ? 8 : half ? 2 : 4;
	case 'a':
		return prefixes & ADDRESS_32 ? 4 : 8;
	case 'g':
		return reg < 2 ? 1 : 0;
	case 'h':
		return reg >= 2 ? 0 : half ? 2 : 4;
	default:
		return 0;
	}
}

/* ModRM, SIB and the distance from a base, or from the instruction's end. */
static uint8_t read_operand(struct reader *r, struct em_arch_insn *out)
{
	uint8_t modrm = next(r), mod = modrm >> 6, rm = modrm & 7, sib = mod != 3 && rm == 4 ? next(r) : 0;
	uint32_t size = mod == 1 ? 1 : mod == 2 || (mod == 0 && (rm == 5 || (rm == 4 && (sib & 7) == 5))) ? 4 : 0;

	if (mod == 0 && rm == 5) {
		out->distance_at = (uint8_t)r->done;
		out->distance_size = 4;
	}
	while (size-- > 0)
		(void)next(r);
	return modrm;
}

/* An opcode whose meaning hangs on the rest of it: true where it is none, or none whose length is sure. */
static bool is_doubtful(char what, unsigned map, uint8_t opcode, uint8_t modrm, unsigned prefixes)
{
	unsigned reg = modrm >> 3 & 7;

	if (what == 'J' && (prefixes & OPERAND_16) && !(prefixes & WIDE))
		return true; /* AMD takes 2 bytes for the distance, Intel 4 */
	if (map != 0)
		return false;
	switch (opcode) {
	case 0x8D:
		return modrm >= 0xC0; /* lea of a register */
	case 0x8F:
	case 0xC6:
	case 0xC7:
		return reg != 0; /* XOP; xabort, and xbegin, which goes elsewhere later */
	case 0xFE:
		return reg > 1;
	case 0xFF:
		return reg == 7 || ((reg == 3 || reg == 5) && modrm >= 0xC0);
	default:
		return false;
	}
}

/* Half done it goes on, or is done again, by the address of the instruction itself: string instructions that repeat, gathers and
 * scatters, and calls of the system, which an interruption may start anew. */
static bool is_resumed(unsigned map, uint8_t opcode, unsigned prefixes, bool vector)
{
	if (vector)
		return map == 2 &&
		       ((opcode >= 0x90 && opcode <= 0x93) || (opcode >= 0xA0 && opcode <= 0xA3) || opcode == 0xC6 || opcode == 0xC7);
	if (map == 1)
		return opcode == 0x05 || opcode == 0x34;
	if (map != 0)
		return false;
	if (opcode == 0xCD)
		return true;
	return (prefixes & REPEAT) &&
	       ((opcode >= 0x6C && opcode <= 0x6F) || (opcode >= 0xA4 && opcode <= 0xA7) || (opcode >= 0xAA && opcode <= 0xAF));
}

/* ret, iret, jmp, hlt, and ud2, which ends whatever runs it */
static bool is_end(unsigned map, uint8_t opcode, uint8_t modrm)
{
	unsigned reg = modrm >> 3 & 7;

	if (map == 1)
		return opcode == 0x0B;
	if (map != 0)
		return false;
	switch (opcode) {
	case 0xC2:
	case 0xC3:
	case 0xCA:
	case 0xCB:
	case 0xCF:
	case 0xE9:
	case 0xEB:
	case 0xF4:
		return true;
	default:
		return opcode == 0xFF && (reg == 4 || reg == 5);
	}
}

/* nop, and those of more bytes whose operand is in memory, which they do not touch */
static bool is_nothing(unsigned map, uint8_t opcode, uint8_t modrm, unsigned prefixes)
{
	if (prefixes & (REPEAT | LOCKED))
		return false; /* pause, and what a later CPU makes of it */
	return (map == 0 && opcode == 0x90 && !(prefixes & REX)) ||
	       (map == 1 && opcode == 0x1F && (modrm >> 3 & 7) == 0 && modrm < 0xC0);
}

/* Reads all prefixes and the opcode's first byte, which is returned. */
static uint8_t read_prefixes(struct reader *r)
{
	for (;;) {
		uint8_t byte = next(r);

		switch (byte) {
		case 0x66:
			r->prefixes |= OPERAND_16;
			break;
		case 0x67:
			r->prefixes |= ADDRESS_32;
			break;
		case 0xF0:
			r->prefixes |= LOCKED;
			break;
		case 0xF2:
		case 0xF3:
			r->prefixes |= REPEAT;
			break;
		case 0x26:
		case 0x2E:
		case 0x36:
		case 0x3E:
		case 0x64:
		case 0x65:
			break;
		default:
			if ((byte & 0xF0) != 0x40)
				return byte;
			r->prefixes |= REX | (byte & 8 ? WIDE : 0);
			return next(r); /* a prefix behind REX would undo it: it is no opcode in the tables */
		}
	}
}

/* VEX or EVEX: gives the map and what follows the opcode, 'x' when it is no such thing. */
static char read_vector(struct reader *r, uint8_t escape, unsigned *map, uint8_t *opcode)
{
	uint8_t first = next(r), second;

	if (r->prefixes & (REX | OPERAND_16 | REPEAT | LOCKED))
		return 'x';
	*map = 1;
	if (escape == 0xC4) {
		*map = first & 0x1F;
		(void)next(r);
	} else if (escape == 0x62) {
		*map = first & 7;
		second = next(r);
		if (first & 8 || !(second & 4))
			return 'x';
		(void)next(r);
	}
	*opcode = next(r);
	return in_vector_map(*map, *opcode, escape == 0x62);
}

/* Most instructions that are changed are an opcode with nothing or a number behind it, without prefixes. */
static uint8_t length_of_plain(uint8_t opcode)
{
	switch (opcode == 0xCD ? 'x' : one_byte[opcode]) {
	case '.':
		return 1;
	case 'j':
	case 'b':
		return 2;
	case 'J':
	case 'z':
	case 'v':
		return 5;
	default:
		return 0;
	}
}

/* The other one that is changed most: what takes the place of a jump, 0F 1F, whose operand is not relative to where it lies. */
static uint8_t length_of_nop(const uint8_t *at, size_t len)
{
	uint8_t mod = len > 2 ? at[2] >> 6 : 3;

	if (len < 3 || at[0] != 0x0F || at[1] != 0x1F || (mod != 1 && mod != 2) || (at[2] >> 3 & 7) != 0)
		return 0;
	return (uint8_t)(3 + ((at[2] & 7) == 4) + (mod == 1 ? 1 : 4));
}

bool em_x86_64_decode(const void *code, size_t len, struct em_arch_insn *out)
{
	struct reader r = {.at = code, .len = len < LONGEST ? (uint32_t)len : LONGEST};
	uint8_t opcode, modrm = 0;
	bool vector;
	unsigned map = 0;
	char what;

	*out = (struct em_arch_insn){.length = length_of_nop(r.at, len)};
	if (out->length > 0) {
		out->nothing = true;
		return out->length <= len;
	}
	*out = (struct em_arch_insn){.length = len > 0 ? length_of_plain(r.at[0]) : 0};
	if (out->length > 0) {
		out->branches = one_byte[r.at[0]] == 'j' || one_byte[r.at[0]] == 'J';
		out->distance_at = out->branches;
		out->distance_size = out->branches ? out->length - 1 : 0;
		out->calls = r.at[0] == 0xE8;
		out->nothing = is_nothing(0, r.at[0], 0, 0);
		out->ends = is_end(0, r.at[0], 0);
		return out->length <= len;
	}
	opcode = read_prefixes(&r);
	vector = opcode == 0xC4 || opcode == 0xC5 || opcode == 0x62;
	if (vector) {
		what = read_vector(&r, opcode, &map, &opcode);
	} else if (opcode != 0x0F) {
		what = one_byte[opcode];
	} else {
		map = 1;
		opcode = next(&r);
		what = two_byte[opcode];
		if (opcode == 0x38 || opcode == 0x3A) {
			map = opcode == 0x38 ? 2 : 3;
			what = map == 2 ? 'm' : 'n';
			opcode = next(&r);
		} else if (opcode == 0xB8 && (r.prefixes & REPEAT)) {
			what = 'm'; /* popcnt */
		}
	}
	if (what == 'x' || r.short_of)
		return false;
	if (what == 'm' || what == 'n' || what == 'o' || what == 'g' || what == 'h')
		modrm = read_operand(&r, out);
	if (is_doubtful(what, vector ? 8 : map, opcode, modrm, r.prefixes))
		return false;
	if (what == 'j' || what == 'J') {
		out->distance_at = (uint8_t)r.done;
		out->distance_size = what == 'j' ? 1 : 4;
		out->branches = true;
		out->calls = !vector && map == 0 && opcode == 0xE8;
	}
	for (uint32_t rest = bytes_of(what, r.prefixes, modrm >> 3 & 7); rest > 0; rest--)
		(void)next(&r);
	out->nothing = !vector && is_nothing(map, opcode, modrm, r.prefixes);
	out->ends = !vector && is_end(map, opcode, modrm);
	out->resumes = is_resumed(map, opcode, r.prefixes, vector);
	out->length = (uint8_t)r.done;
	return !r.short_of;
}

/* ---- one instruction elsewhere ---- */

enum { JMP_SHORT = 0xEB, JMP_NEAR = 0xE9, JCC_NEAR = 0x80 };

uint64_t em_x86_64_goal(const uint8_t *code, const struct em_arch_insn *insn, uint64_t at)
{
	int32_t distance;

	if (insn->distance_size == 1)
		return at + insn->length + (uint64_t)(int64_t)(int8_t)code[insn->distance_at];
	memcpy(&distance, code + insn->distance_at, sizeof distance);
	return at + insn->length + (uint64_t)(int64_t)distance;
}

/* jmp and jcc of one byte become those of four; loop and jrcxz have no such form. Writes all but the distance. */
static uint32_t widen(const uint8_t *code, uint8_t *out)
{
	if (code[0] == JMP_SHORT) {
		out[0] = JMP_NEAR;
		return 1;
	}
	if ((code[0] & 0xF0) != 0x70)
		return 0;
	out[0] = 0x0F;
	out[1] = JCC_NEAR | (code[0] & 0xF);
	return 2;
}

/* What it reaches stays; so the distance changes by as much as its end moves. */
enum em_arch_moved em_x86_64_move(const uint8_t *code, const struct em_arch_insn *insn, uint64_t from, uint64_t to, uint8_t *out,
                                  uint32_t *len)
{
	uint32_t at = insn->distance_at, size = insn->length;
	int32_t near_distance;
	int64_t distance;

	if (insn->distance_size == 1) {
		distance = (int8_t)code[at];
		at = at == 1 ? widen(code, out) : 0; /* with prefixes: not known to mean the same */
		if (at == 0)
			return EM_ARCH_MOVED_NEVER;
		size = at + 4;
	} else {
		memcpy(out, code, size);
		*len = size;
		if (insn->distance_size == 0)
			return EM_ARCH_MOVED;
		memcpy(&near_distance, code + at, sizeof near_distance);
		distance = near_distance;
	}
	distance += (int64_t)(from + insn->length - (to + size));
	if (distance != (int32_t)distance)
		return EM_ARCH_MOVED_FAR;
	near_distance = (int32_t)distance;
	memcpy(out + at, &near_distance, sizeof near_distance);
	*len = size;
	return EM_ARCH_MOVED;
}
