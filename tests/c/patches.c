/* patches: see patches.h. */
#include "patches.h"

#include <pthread.h>
#include <unistd.h>

execmem_domain *domain, *second;

static execmem_domain *open_one(const char *name, int mode)
{
	execmem_options options = {.name = name, .write_mode = mode};
	execmem_domain *d;

	EXPECT(execmem_domain_open(&options, &d) == 0);
	return d;
}

void open_domains(int mode)
{
	domain = open_one("patch", mode);
	second = open_one("second", mode);
}

void close_domains(void)
{
	EXPECT_LAWFUL(domain);
	EXPECT_LAWFUL(second);
	EXPECT(execmem_domain_close(domain, 1) == 0);
	EXPECT(execmem_domain_close(second, 1) == 0);
}

uint64_t live_blocks(execmem_domain *d)
{
	execmem_shard sum;

	EXPECT(execmem_domain_count(d, &sum) == 0);
	return sum.allocs - sum.frees;
}

uint8_t *place(execmem_domain *d, const void *code, size_t len)
{
	void *out;

	EXPECT(execmem_place(d, EXECMEM_TEXT, code, len, 16, NULL, &out) == 0);
	return out;
}

uint32_t call(const void *code)
{
	return ((uint32_t (*)(void))(uintptr_t)code)();
}

#if defined(__aarch64__)
void put_number(uint8_t *out, uint32_t number)
{
	test_words(out, (uint32_t[]){0x52800000 | number << 5, 0xd65f03c0}, 2); /* mov w0, number; ret */
}

static void put_caller(uint8_t *out, bool jumps, uint32_t shift, uint32_t add)
{
	/* str x30, [sp, -16]!, or nop; the site; lsl w0, w0, shift; add w0, w0, number; ldr x30, [sp], 16; ret */
	test_words(out,
	           (uint32_t[]){jumps ? 0xd503201f : 0xf81f0ffe, 0xd503201f, 0x53000000 | (-shift & 31) << 16 | (31 - shift) << 10,
	                        0x11000000 | add << 10, 0xf84107fe, 0xd65f03c0},
	           6);
}
#elif defined(__riscv)
void put_number(uint8_t *out, uint32_t number)
{
	test_words(out, (uint32_t[]){0x00000513 | number << 20, 0x00008067}, 2); /* li a0, number; ret */
}

static void put_caller(uint8_t *out, bool jumps, uint32_t shift, uint32_t add)
{
	/* addi sp, sp, -16 and sd ra, 8(sp), or nops; the site; slli a0, a0, shift; addi a0, a0, number; ld ra, 8(sp); addi sp, sp, 16; ret */
	test_words(out,
	           (uint32_t[]){jumps ? 0x00000013 : 0xff010113, jumps ? 0x00000013 : 0x00113423, 0x00000013, 0x00051513 | shift << 20,
	                        0x00050513 | add << 20, 0x00813083, 0x01010113, 0x00008067},
	           8);
}
#else
void put_number(uint8_t *out, uint32_t number)
{
	out[0] = 0xB8; /* mov eax, number; ret */
	memcpy(out + 1, &number, sizeof number);
	out[5] = 0xC3;
}

static void put_caller(uint8_t *out, bool jumps, uint32_t shift, uint32_t add)
{
	(void)jumps; /* the site; shl eax, shift; add eax, number; ret */
	memcpy(out + 5, (const uint8_t[]){0xC1, 0xE0, (uint8_t)shift, 0x83, 0xC0, (uint8_t)add, 0xC3}, 7);
}
#endif

uint8_t *place_number(execmem_domain *d, uint32_t number)
{
	uint8_t code[NUMBER_SIZE];

	put_number(code, number);
	return place(d, code, sizeof code);
}

uint8_t *place_caller(execmem_domain *d, bool jumps, const void *to, uint32_t shift, uint32_t add)
{
	uint8_t code[CALLER_SIZE] = {0};
	uint8_t *at;
	void *out;

	EXPECT(execmem_alloc_in(d, EXECMEM_TEXT, sizeof code, 16, NULL, &out) == 0);
	at = out;
	put_caller(code, jumps, shift, add);
	EXPECT(execmem_encode(jumps ? EXECMEM_INSN_JUMP : EXECMEM_INSN_CALL, at + CALLER_SITE, to, code + CALLER_SITE, SITE_LONG) == 0);
	EXPECT(execmem_fill(at, code, sizeof code) == 0);
	return at;
}

uint32_t far_away(void)
{
	return 77;
}

/* ---- running what changes ---- */

struct runners runners;

static void *run(void *unused)
{
	uint64_t calls = 0;

	atomic_fetch_add(&runners.running, 1);
	while (!atomic_load(&runners.stop))
		for (int i = 0; i < runners.count; i++, calls++) {
			uint32_t from = atomic_load(&runners.epoch), value;
			int now = atomic_load(&runners.now);

			value = call(runners.code[i]);
			if (from % 2 == 0 && atomic_load(&runners.epoch) == from)
				EXPECT(value == runners.values[now]);
			else if (!runners.nested)
				EXPECT(value == runners.values[0] || value == runners.values[1]);
			else /* within a call that lasts for several changes a hook may come twice */
				EXPECT(value % 10 == runners.values[0] % 10);
		}
	atomic_fetch_add(&runners.calls, calls);
	return unused;
}

void start(int now, uint32_t first, uint32_t other)
{
	runners.values[0] = first;
	runners.values[1] = other;
	atomic_store(&runners.now, now);
	atomic_store(&runners.stop, false);
	atomic_store(&runners.running, 0);
	for (int i = 0; i < RUNNERS; i++)
		EXPECT(pthread_create(&runners.ids[i], NULL, run, NULL) == 0);
	while (atomic_load(&runners.running) < RUNNERS)
		usleep(100);
}

void begin_change(void)
{
	atomic_fetch_add(&runners.epoch, 1);
}

void end_change(int now)
{
	atomic_store(&runners.now, now);
	atomic_fetch_add(&runners.epoch, 1);
}

void stop(void)
{
	atomic_store(&runners.stop, true);
	for (int i = 0; i < RUNNERS; i++)
		EXPECT(pthread_join(runners.ids[i], NULL) == 0);
	EXPECT(atomic_load(&runners.calls) > 0);
}

/* ---- refusals of the system ---- */

void refuse_call(int at)
{
	char script[40];

	snprintf(script, sizeof script, "any=%d.F", at);
	execmem_test_script(script);
}

bool was_refused(void)
{
	return execmem_test_script(NULL) > 0;
}
