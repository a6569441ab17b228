/* The rooms of arch/: each is asked on every host for what it encodes, which is read back here by the manuals' fields. With the argument
 * "list" it prints what was encoded, for a disassembler (tests/test_arch.py). What is encoded for the CPU that this runs on is run.
 */
#include "arch.h"
#include "test.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ROUNDS = 20000, LISTED = 40, MOST = 64 };

static bool listing;
static const struct em_arch *arch;

/* ---- reading back ---- */

/* The low bits of a value, their highest one being the sign. */
static uint64_t sign(uint64_t value, int bits)
{
	return (uint64_t)((int64_t)(value << (64 - bits)) >> (64 - bits));
}

/* What an instruction or two at `at` lead to or load; false: not what is meant. */
static bool read_x86(const uint8_t *code, uint32_t len, uint64_t at, uint64_t *to)
{
	bool wide = code[0] == 0x48 && (code[1] == 0xbf || code[1] == 0xb8), near = code[0] == 0xe8 || code[0] == 0xe9;
	bool lea = code[0] == 0x48 && code[1] == 0x8d && (code[2] == 0x3d || code[2] == 0x05);

	*to = wide ? test_bits(code + 2, 8) : at + len + sign(test_bits(code + len - 4, 4), 32);
	return wide ? len == 10 : near ? len == 5 : lea && len == 7;
}

static bool read_aarch64(const uint8_t *code, uint32_t len, uint64_t at, uint64_t *to)
{
	uint32_t insn = (uint32_t)test_bits(code, 4), second = len > 4 ? (uint32_t)test_bits(code + 4, 4) : 0;

	if (len == 4) { /* b, bl */
		*to = at + (sign(insn & 0x3ffffff, 26) << 2);
		return (insn & 0x7c000000) == 0x14000000;
	}
	if (len == 8) { /* adrp x0; add x0, x0 */
		*to = (at & ~0xfffull) + (sign((insn >> 5 & 0x7ffff) << 2 | (insn >> 29 & 3), 21) << 12) + (second >> 10 & 0xfff);
		return (insn & 0x9f00001f) == 0x90000000 && (second & 0xffc003ff) == 0x91000000;
	}
	*to = 0;
	for (uint32_t i = 0; i < 4; i++) { /* movz, movk */
		insn = (uint32_t)test_bits(code + 4 * i, 4);
		*to |= (uint64_t)(insn >> 5 & 0xffff) << 16 * i;
		if ((insn & 0xffe0001f) != ((i ? 0xf2800000 : 0xd2800000) | i << 21))
			return false;
	}
	return len == 16;
}

/* Runs the few instructions that load numbers; a jalr ends it. */
static bool read_riscv64(const uint8_t *code, uint32_t len, uint64_t at, uint64_t *to)
{
	uint64_t regs[32] = {0};

	for (uint32_t pc = 0; pc < len; pc += 4) {
		uint32_t insn = (uint32_t)test_bits(code + pc, 4), rd = insn >> 7 & 31, rs = insn >> 15 & 31;
		uint64_t upper = sign(insn & 0xfffff000, 32), low = sign(insn >> 20, 12);

		switch (insn & 0x707f) {
		case 0x0013:
			regs[rd] = regs[rs] + low;
			break;
		case 0x001b:
			regs[rd] = sign(regs[rs] + low, 32);
			break;
		case 0x1013:
			regs[rd] = regs[rs] << (insn >> 20);
			break;
		case 0x0067:
			*to = (regs[rs] + low) & ~1ull;
			return pc == 4 && len == 8;
		default:
			if ((insn & 0x7f) != 0x17 && (insn & 0x7f) != 0x37)
				return false;
			regs[rd] = upper + ((insn & 0x7f) == 0x17 ? at + pc : 0);
		}
		regs[0] = 0;
	}
	*to = regs[10];
	return true;
}

static bool reads_back(const uint8_t *code, uint32_t len, uint64_t at, uint64_t to)
{
	uint64_t read = ~to;
	bool good = arch == &em_arch_x86_64    ? read_x86(code, len, at, &read)
	            : arch == &em_arch_aarch64 ? read_aarch64(code, len, at, &read)
	                                       : read_riscv64(code, len, at, &read);

	return good && read == to;
}

static void list(const char *what, const uint8_t *code, uint32_t len, uint64_t at, uint64_t to)
{
	if (!listing)
		return;
	printf("%s %s %#" PRIx64 " %#" PRIx64 " ", arch->name, what, at, to);
	for (uint32_t i = 0; i < len; i++)
		printf("%02x", code[i]);
	printf("\n");
}

/* ---- each room ---- */

typedef uint32_t encode_relative(uint8_t *out, uint64_t at, uint64_t to);

/* Writes no byte behind what it says, and none at all when it says 0. */
static uint32_t encode(encode_relative *how, uint8_t *code, uint64_t at, uint64_t to)
{
	uint32_t len;

	memset(code, 0xa5, MOST);
	len = how(code, at, to);
	for (uint32_t i = len; i < MOST; i++)
		EXPECT(code[i] == 0xa5);
	return len;
}

static encode_relative *addressing(enum em_arch_register reg);

static uint32_t address_of_result(uint8_t *out, uint64_t at, uint64_t to)
{
	return arch->encode_address(out, at, EM_ARCH_RESULT, to);
}

static uint32_t address_of_first(uint8_t *out, uint64_t at, uint64_t to)
{
	return arch->encode_address(out, at, EM_ARCH_FIRST, to);
}

static encode_relative *addressing(enum em_arch_register reg)
{
	return reg == EM_ARCH_RESULT ? address_of_result : address_of_first;
}

/* Both ends of what a branch reaches, counted from where it stands: the last that can be, the first that cannot. */
static void ends(uint64_t at, int64_t lowest, int64_t highest)
{
	uint8_t code[MOST];
	int64_t step = arch->insn_align;

	for (int call = 0; call < 2; call++) {
		encode_relative *how = call ? arch->encode_call : arch->encode_branch;
		uint32_t size = arch->branch_size;

		EXPECT(encode(how, code, at, at + (uint64_t)lowest) == size && reads_back(code, size, at, at + (uint64_t)lowest));
		list(call ? "call" : "branch", code, size, at, at + (uint64_t)lowest);
		EXPECT(encode(how, code, at, at + (uint64_t)highest) == size && reads_back(code, size, at, at + (uint64_t)highest));
		list(call ? "call" : "branch", code, size, at, at + (uint64_t)highest);
		EXPECT(encode(how, code, at, at + (uint64_t)(lowest - step)) == 0);
		EXPECT(encode(how, code, at, at + (uint64_t)(highest + step)) == 0);
		if (step > 1) {
			EXPECT(encode(how, code, at, at + (uint64_t)step / 2) == 0);
			EXPECT(encode(how, code, at + (uint64_t)step / 2, at) == 0);
		}
	}
	EXPECT(arch->branch_reach <= (uint64_t)-lowest && arch->branch_reach <= (uint64_t)highest);
}

static void random_targets(uint64_t seed)
{
	uint64_t state = seed;
	uint8_t code[MOST];

	for (int i = 0; i < ROUNDS; i++) {
		uint64_t mask = ~((uint64_t)arch->insn_align - 1), at = test_random(&state) >> 16 & mask;
		uint64_t distance = test_random(&state) >> (1 + test_random(&state) % 63);
		uint64_t to = test_random(&state) & 1 ? at + distance : at - distance;
		uint32_t len = encode(arch->encode_branch, code, at, to & mask);

		EXPECT(len == 0 || (len == arch->branch_size && reads_back(code, len, at, to & mask)));
		EXPECT(len != 0 || (distance | ~mask) > arch->branch_reach);
		if (i < LISTED && len)
			list("branch", code, len, at, to & mask);
		EXPECT(encode(arch->encode_call, code, at, to & mask) == (len ? arch->branch_size : 0));
		EXPECT(len == 0 || reads_back(code, arch->branch_size, at, to & mask));
		for (int reg = EM_ARCH_RESULT; reg <= EM_ARCH_FIRST; reg++) {
			len = encode(addressing((enum em_arch_register)reg), code, at, to);
			EXPECT(len > 0 && len <= arch->address_size && reads_back(code, len, at, to));
			if (i < LISTED)
				list(reg == EM_ARCH_RESULT ? "result" : "first", code, len, at, to);
		}
		EXPECT(arch->insn_align == 1 || encode(addressing(EM_ARCH_FIRST), code, at + arch->insn_align / 2, to) == 0);
	}
}

/* Numbers at whose edges a part of an address carries into the next, or is left out. */
static void odd_addresses(void)
{
	uint8_t code[MOST];

	for (int bit = 0; bit < 64; bit++)
		for (int less = -1; less <= 1; less++) {
			uint64_t to = (1ull << bit) + (uint64_t)less;
			uint64_t from[] = {0x7f0000001000, to - (1ull << 31), to + (1ull << 31), to + (1ull << 32)};

			for (int i = 0; i < 4; i++) {
				uint64_t at = from[i] & ~3ull;
				uint32_t len = encode(addressing(EM_ARCH_FIRST), code, at, to);

				EXPECT(len > 0 && len <= arch->address_size && reads_back(code, len, at, to));
				list("first", code, len, at, to);
			}
		}
}

static void fixed(void)
{
	uint8_t code[MOST], traps[MOST];
	uint32_t len;

	for (len = 0; len <= 48; len++) {
		memset(code, 0xa5, sizeof code);
		EXPECT(arch->encode_nops(code, len) == (len % arch->insn_align ? 0 : len) && code[len] == 0xa5);
		if (len && len % arch->insn_align == 0)
			list("nops", code, len, 0x1000, 0);
	}
	len = arch->encode_landing(code);
	EXPECT(len == arch->landing_size);
	list("landing", code, len, 0x1000, 0);
	EXPECT(arch->encode_empty(code) == arch->empty_size);
	list("empty", code, arch->empty_size, 0x1000, 0);
	len = arch->encode_far_branch(code, 0x123456789abcdef0);
	EXPECT(len == arch->far_branch_size && test_bits(code + len - 8, 8) == 0x123456789abcdef0 &&
	       (len - 8) % arch->far_branch_align == 0);
	list("far", code, len, 0x1000, 0x123456789abcdef0);
	EXPECT(arch->insn_align == 1 || arch->encode_far_branch(code, 0x1001) == 0);
	arch->fill_traps(traps, sizeof traps);
	EXPECT(arch->is_trap(traps, sizeof traps) && arch->is_trap(traps, 0) && MOST % arch->trap_size == 0);
	list("trap", traps, arch->trap_size, 0x1000, 0);
	for (uint32_t i = 0; i < MOST; i++) {
		traps[i] ^= 0x40;
		EXPECT(!arch->is_trap(traps, sizeof traps));
		traps[i] ^= 0x40;
	}
}

/* ---- the CPU that this runs on ---- */

typedef uint64_t function(uint64_t);

static uint64_t run(const uint8_t *code, uint32_t len, uint64_t argument, void *at)
{
	EXPECT(execmem_fill(at, code, len) == 0);
	return ((function *)(uintptr_t)at)(argument);
}

/* Code of this room, run: a function reached by what was encoded gives its number. */
static void running(uint32_t rounds)
{
	uint8_t code[256], leaf[TEST_CODE], *target = execmem_alloc(TEST_CODE, 64), *at = execmem_alloc(sizeof code, 64);
	uint32_t len;

	EXPECT(target && at);
	test_code(leaf, 4711);
	EXPECT(execmem_fill(target, leaf, sizeof leaf) == 0);
	len = arch->encode_landing(code);
	len += arch->encode_nops(code + len, 60);
	len += arch->encode_branch(code + len, (uintptr_t)at + len, (uintptr_t)target);
	EXPECT(run(code, len, 0, at) == 4711);
	len = arch->encode_far_branch(code, (uintptr_t)target);
	EXPECT(run(code, len, 0, at) == 4711);
	EXPECT(run(code, arch->encode_empty(code), 4711, at) == 0);
	for (int far = 0; far < 2; far++) { /* an address, given back */
		uint64_t to = far ? 0x123456789abcd8f1 : (uintptr_t)target + 1;

		len = arch->encode_address(code, (uintptr_t)at, EM_ARCH_RESULT, to);
		len += test_return(code + len);
		EXPECT(run(code, len, 0, at) == to);
	}
	for (uint32_t number = 0; number < rounds; number++) { /* the same bytes again and again: old ones are never run */
		test_code(code, number * 0x10001);
		EXPECT(run(code, TEST_CODE, 0, at) == number * 0x10001);
	}
	EXPECT(execmem_free(at) == 0 && execmem_free(target) == 0);
}

static void *sleep_for_ever(void *unused)
{
	while (pause())
		;
	return unused;
}

/* A sandbox that refuses membarrier: code is placed and changed all the same, also where other threads must be told. */
static void running_without_membarrier(void)
{
	struct sock_filter refuse[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_membarrier, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {sizeof refuse / sizeof refuse[0], refuse};
	pthread_t thread;
	pid_t child;
	int status;

	fflush(stdout);
	child = fork();
	EXPECT(child >= 0);
	if (child == 0) {
		EXPECT(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
		EXPECT(syscall(SYS_membarrier, 0, 0, 0) < 0 && errno == EPERM);
		EXPECT(pthread_create(&thread, NULL, sleep_for_ever, NULL) == 0);
		running(100);
		_exit(0);
	}
	EXPECT(waitpid(child, &status, 0) == child && status == 0);
}

static void nothing_known(void)
{
	uint8_t code[MOST];

	EXPECT(!em_arch_none.supported && strstr(em_arch_none.why, "arch/arch.h"));
	EXPECT(em_arch_none.encode_nops(code, 4) == 0 && em_arch_none.encode_landing(code) == 0 &&
	       em_arch_none.encode_empty(code) == 0);
	EXPECT(em_arch_none.encode_branch(code, 0, 8) == 0 && em_arch_none.encode_call(code, 0, 8) == 0);
	EXPECT(em_arch_none.encode_far_branch(code, 8) == 0 && em_arch_none.encode_address(code, 0, EM_ARCH_FIRST, 8) == 0);
}

int main(int argc, char **argv)
{
	listing = argc > 1 && strcmp(argv[1], "list") == 0;
	for (int i = 0; em_arch_rooms[i]; i++) {
		uint64_t at = 0x7f1234568000;
		int64_t gigabytes = 1ll << 31;

		arch = em_arch_rooms[i];
		snprintf(test_context, sizeof test_context, "room %s", arch->name);
		if (!arch->supported)
			continue;
		fixed();
		random_targets((uint64_t)i + 1);
		odd_addresses();
		if (arch == &em_arch_x86_64)
			ends(at, 5 - gigabytes, gigabytes - 1 + 5);
		else if (arch == &em_arch_aarch64)
			ends(at, -(1 << 27), (1 << 27) - 4);
		else
			ends(at, -gigabytes - 2048, gigabytes - 2048 - 2);
	}
	nothing_known();
	arch = em_arch_host();
	if (arch->supported && !listing) {
		running_without_membarrier(); /* before this process uses the library, so that the child is the first */
		running(2000);
	}
	if (!listing)
		printf("ok\n");
	return 0;
}
