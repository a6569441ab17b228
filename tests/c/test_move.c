/* test_move: instructions that depend on where they lie, written for another place by every room: random ones, from and to random places.
 * What they lead to, read or load is read back here by the manuals' fields, and must be the same.
 *
 * usage: test_move [moves of each instruction]
 */
#include "arch.h"
#include "test.h"

enum kind { BRANCH, ADDRESS, LITERAL, ALIKE }; /* leads to; gives as a number; reads; the same everywhere */

struct form {
	uint32_t word, random; /* the instruction, and those of its bits that are random */
	uint8_t len;
	enum kind kind;
	bool calls, ends;
	uint64_t reach; /* beyond so many bytes from its new place it may be refused; 0: never */
};

static const struct em_arch *arch;

static void put(uint8_t *code, uint32_t word, int bytes)
{
	for (int i = 0; i < bytes; i++)
		code[i] = (uint8_t)(word >> 8 * i);
}

/* The low bits of a value, their highest one being the sign. */
static uint64_t sign(uint64_t value, int bits)
{
	return (uint64_t)((int64_t)(value << (64 - bits)) >> (64 - bits));
}

/* ---- aarch64 ---- */

enum { MB = 1 << 20 };

static const struct form aarch64[] = {
	{0x14000000, 0x03ffffff, 4, BRANCH, false, true, 127 * MB}, /* b */
	{0x94000000, 0x03ffffff, 4, BRANCH, true, false, 127 * MB}, /* bl */
	{0x54000000, 0x00ffffe1, 4, BRANCH, false, false, 127 * MB}, /* b.eq, b.ne */
	{0x5400000e, 0x00ffffe0, 4, BRANCH, false, false, MB - 8}, /* b.al */
	{0x34000003, 0x81ffffe0, 4, BRANCH, false, false, 127 * MB}, /* cbz, cbnz */
	{0x36000003, 0x81ffffe0, 4, BRANCH, false, false, 127 * MB}, /* tbz, tbnz */
	{0x10000005, 0x60ffffe0, 4, ADDRESS, false, false, 0xfffff000}, /* adr x5 */
	{0x90000005, 0x60ffffe0, 4, ADDRESS, false, false, 0xfffff000}, /* adrp x5 */
	{0x18000005, 0x00ffffe0, 4, LITERAL, false, false, 0xfffff000}, /* ldr w5 */
	{0x58000005, 0x00ffffe0, 4, LITERAL, false, false, 0xfffff000}, /* ldr x5 */
	{0x98000005, 0x00ffffe0, 4, LITERAL, false, false, 0xfffff000}, /* ldrsw x5 */
	{0x5c000005, 0x00ffffe0, 4, LITERAL, false, false, MB - 8}, /* ldr d5 */
	{0xd65f03c0, 0, 4, ALIKE, false, true, 0}, /* ret */
	{0xd63f0200, 0, 4, ALIKE, false, false, 0}, /* blr x16 */
	{0xd61f0200, 0, 4, ALIKE, false, true, 0}, /* br x16 */
	{0xf9400000, 0x003fffff, 4, ALIKE, false, false, 0}, /* ldr x, [x] */
	{0},
};

/* As the instruction alone would go, and *taken: when its condition holds. */
static uint64_t follow_aarch64(uint32_t word, uint64_t at)
{
	if ((word & 0x7c000000) == 0x14000000)
		return at + (sign(word, 26) << 2);
	return at + (sign(word >> 5, (word & 0x7e000000) == 0x36000000 ? 14 : 19) << 2);
}

static uint64_t number_of_aarch64(uint32_t word, uint64_t at)
{
	uint64_t number = sign((word >> 5 & 0x7ffff) << 2 | (word >> 29 & 3), 21);

	return word >> 31 ? (at & ~0xfffull) + (number << 12) : at + number;
}

static bool same_aarch64(const struct form *f, uint32_t word, uint64_t from, const uint8_t *out, uint32_t len, uint64_t to)
{
	uint32_t first = (uint32_t)test_bits(out, 4), second = (uint32_t)test_bits(out + 4, 4), third = (uint32_t)test_bits(out + 8, 4);
	uint32_t opposite = word >> 24 == 0x54 ? 1 : 1 << 24, fixed = (word & 0x7e000000) == 0x36000000 ? 0xfff8001f : 0xff00001f;
	bool pair = (first & 0x9f00001f) == 0x90000005 && (second & 0xffc003ff) == 0x910000a5;
	uint64_t number = number_of_aarch64(first, to) + (second >> 10 & 0xfff);

	if (f->kind == ADDRESS)
		return len == 8 && pair && number == number_of_aarch64(word, from);
	if (len == 4)
		return follow_aarch64(first, to) == follow_aarch64(word, from) && ((first ^ word) & ~f->random) == 0;
	if (f->kind == LITERAL)
		return len == 12 && pair && number == follow_aarch64(word, from) &&
		       third == (word >> 30 == 0   ? 0xb94000a5
		                 : word >> 30 == 1 ? 0xf94000a5
		                                   : 0xb98000a5);
	return len == 8 && !f->calls && !f->ends && ((first ^ word ^ opposite) & fixed) == 0 && follow_aarch64(first, to) == to + 8 &&
	       second >> 26 == 5 && follow_aarch64(second, to + 4) == follow_aarch64(word, from);
}

/* ---- riscv64 ---- */

static const struct form riscv64[] = {
	{0x0000006f, 0xfffff000, 4, BRANCH, false, true, MB - 8}, /* j */
	{0x000000ef, 0xfffff000, 4, BRANCH, true, false, 0x7ffff000}, /* jal ra */
	{0x00b50063, 0xfe001f80, 4, BRANCH, false, false, MB - 8}, /* beq, bne a0, a1 */
	{0x00b54063, 0xfe003f80, 4, BRANCH, false, false, MB - 8}, /* blt, bge, bltu, bgeu a0, a1 */
	{0xa001, 0x1ffc, 2, BRANCH, false, true, MB - 8}, /* c.j */
	{0xc101, 0x3c7c, 2, BRANCH, false, false, MB - 8}, /* c.beqz, c.bnez a0 */
	{0x00000297, 0xfffff000, 4, ADDRESS, false, false, 0x7ffff000}, /* auipc t0 */
	{0x00000017, 0xfffff000, 4, ALIKE, false, false, 0}, /* lpad */
	{0x00008067, 0, 4, ALIKE, false, true, 0}, /* ret */
	{0x000280e7, 0, 4, ALIKE, false, false, 0}, /* jalr t0 */
	{0x8082, 0, 2, ALIKE, false, true, 0}, /* c.jr ra */
	{0x9282, 0, 2, ALIKE, false, false, 0}, /* c.jalr t0 */
	{0x00053503, 0xfff00000, 4, ALIKE, false, false, 0}, /* ld a0, (a0) */
	{0},
};

/* A part of an instruction, at its place in a distance. */
static uint64_t part(uint32_t word, int high, int low, int to)
{
	return (uint64_t)(word >> low & ((2u << (high - low)) - 1)) << to;
}

static uint64_t follow_riscv64(uint32_t word, uint64_t at)
{
	if ((word & 0x7f) == 0x6f)
		return at + sign(part(word, 31, 31, 20) | part(word, 30, 21, 1) | part(word, 20, 20, 11) | part(word, 19, 12, 12), 21);
	if ((word & 0x7f) == 0x63)
		return at + sign(part(word, 31, 31, 12) | part(word, 30, 25, 5) | part(word, 11, 8, 1) | part(word, 7, 7, 11), 13);
	if (word >> 13 == 5)
		return at + sign(part(word, 12, 12, 11) | part(word, 11, 11, 4) | part(word, 10, 9, 8) | part(word, 8, 8, 10) |
		                     part(word, 7, 7, 6) | part(word, 6, 6, 7) | part(word, 5, 3, 1) | part(word, 2, 2, 5),
		                 12);
	return at +
	       sign(part(word, 12, 12, 8) | part(word, 11, 10, 3) | part(word, 6, 5, 6) | part(word, 4, 3, 1) | part(word, 2, 2, 5), 9);
}

/* What a branch of two bytes is in four, but for its distance. */
static uint32_t longer(uint32_t word)
{
	return word >> 13 == 5 ? 0x6f : 0x00050063 | (word >> 13 & 1) << 12;
}

static bool same_riscv64(const struct form *f, uint32_t word, uint64_t from, const uint8_t *out, uint32_t len, uint64_t to)
{
	uint32_t first = (uint32_t)test_bits(out, 4), second = (uint32_t)test_bits(out + 4, 4);
	uint32_t alike = f->len == 2 ? longer(word) : word, fixed = (alike & 0x7f) == 0x6f ? 0xfff : 0x01fff07f;
	uint64_t pair = to + sign(first & 0xfffff000, 32) + sign(second >> 20, 12);

	if (f->kind == ADDRESS)
		return len == 8 && (first & 0xfff) == 0x297 && (second & 0xfffff) == 0x28293 && pair == from + sign(word & 0xfffff000, 32);
	if (len == 4)
		return follow_riscv64(first, to) == follow_riscv64(word, from) && ((first ^ alike) & fixed) == 0;
	if (f->calls)
		return len == 8 && (first & 0xfff) == 0x97 && (second & 0xfffff) == 0x080e7 && pair == follow_riscv64(word, from);
	return len == 8 && !f->ends && ((first ^ alike ^ 1 << 12) & fixed) == 0 && follow_riscv64(first, to) == to + 8 &&
	       (second & 0xfff) == 0x6f && follow_riscv64(second, to + 4) == follow_riscv64(word, from);
}

/* ---- each room ---- */

static uint64_t goal_of(const struct form *f, uint32_t word, uint64_t from)
{
	bool arm = arch == &em_arch_aarch64;

	if (f->kind == ADDRESS)
		return arm ? number_of_aarch64(word, from) : from + sign(word & 0xfffff000, 32);
	return arm ? follow_aarch64(word, from) : follow_riscv64(word, from);
}

static void move(const struct form *f, uint64_t *seed, int *far)
{
	uint32_t word = f->word | ((uint32_t)test_random(seed) & f->random), len = 0;
	uint64_t from = test_random(seed) >> 17 & ~3ull, distance = test_random(seed) >> (17 + test_random(seed) % 46) & ~3ull;
	uint64_t to = test_random(seed) & 1 ? from + distance : from - distance, goal = goal_of(f, word, from);
	uint8_t code[4], out[EM_ARCH_INSN_MAX + 1];
	struct em_arch_insn insn;
	enum em_arch_moved moved;
	bool same;

	put(code, word, 4);
	memset(out, 0xa5, sizeof out);
	EXPECT(arch->decode(code, sizeof code, &insn) && insn.length == f->len);
	EXPECT(insn.branches == (f->kind == BRANCH) && insn.calls == f->calls && insn.ends == f->ends);
	EXPECT(insn.relative == (f->kind != ALIKE || f->word == 0x17));
	EXPECT(!insn.branches || arch->goal(code, &insn, from) == goal);
	moved = arch->move(code, &insn, from, to, out, &len);
	snprintf(test_context, sizeof test_context, "%s %#x, %#llx to %#llx, goal %#llx: %d", arch->name, word,
	         (unsigned long long)from, (unsigned long long)to, (unsigned long long)goal, moved);
	if (moved != EM_ARCH_MOVED) {
		distance = goal > to ? goal - to : to - goal;
		EXPECT(moved == EM_ARCH_MOVED_FAR && f->reach && distance > f->reach);
		++*far;
		return;
	}
	EXPECT(len < sizeof out && out[len] == 0xa5);
	if (f->kind == ALIKE)
		same = len == f->len && memcmp(out, code, len) == 0;
	else
		same = (arch == &em_arch_aarch64 ? same_aarch64 : same_riscv64)(f, word, from, out, len, to);
	EXPECT(same);
}

/* What has no form elsewhere, and a hint that is left out. */
static void test_odd(void)
{
	static const uint32_t never[] = {0x1000001f, 0x9000001f, 0x1800001f, 0x9800001f}; /* of the register that is none */
	uint8_t code[4], out[EM_ARCH_INSN_MAX];
	struct em_arch_insn insn;
	uint32_t len;

	for (size_t i = 0; i < sizeof never / sizeof never[0]; i++) {
		put(code, never[i], 4);
		EXPECT(em_arch_aarch64.decode(code, 4, &insn));
		EXPECT(em_arch_aarch64.move(code, &insn, 0x1000, 1ull << 24, out, &len) == EM_ARCH_MOVED_NEVER);
	}
	put(code, 0xd8000000, 4); /* prfm */
	EXPECT(em_arch_aarch64.decode(code, 4, &insn));
	EXPECT(em_arch_aarch64.move(code, &insn, 0x1000, 1ull << 24, out, &len) == EM_ARCH_MOVED && len == 4);
	EXPECT(test_bits(out, 4) == 0xd503201f && em_arch_aarch64.decode(out, 4, &insn) && insn.nothing);
	put(code, 0x00010001, 4); /* c.nop, and nop */
	EXPECT(em_arch_riscv64.decode(code, 4, &insn) && insn.nothing && insn.length == 2);
	put(code, 0x00000013, 4);
	EXPECT(em_arch_riscv64.decode(code, 4, &insn) && insn.nothing && insn.length == 4);
	EXPECT(em_arch_none.move(code, &insn, 0, 8, out, &len) == EM_ARCH_MOVED_NEVER);
}

int main(int argc, char **argv)
{
	int amount = test_amount(argc, argv, 100000, 5000);
	uint64_t seed = 8;

	for (int room = 0; room < 2; room++) {
		arch = room ? &em_arch_riscv64 : &em_arch_aarch64;
		for (const struct form *f = room ? riscv64 : aarch64; f->len > 0; f++) {
			int far = 0;

			for (int i = 0; i < amount; i++)
				move(f, &seed, &far);
			EXPECT((f->reach != 0) == (far > 0) && far < amount);
		}
	}
	test_odd();
	puts("ok");
	return 0;
}
