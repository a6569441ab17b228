/* sites: see sites.h. */
#include "sites.h"
#include "arch.h"

#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

/* ---- the code ---- */

/*
 *   result 1 | jump to the site | ... | site: the instruction | end | there: result 2, end | helper: result 3, end
 *
 * What jumps goes to `there`, what calls to `helper`; both lie at fixed distances behind the site's end. Where a call leaves the way back in
 * a register, the function keeps it in another one.
 */
enum { LONGEST = 16 };

struct code {
	uint32_t before_len, after_len; /* before: up to the jump */
	uint8_t before[LONGEST], after[2 * LONGEST];
};

#define WORD(w) (w) & 0xff, (w) >> 8 & 0xff, (w) >> 16 & 0xff, (w) >> 24 & 0xff
#define HALF(w) (w) & 0xff, (w) >> 8 & 0xff

#if defined(__aarch64__)
enum { STORED_KINDS = 2, THERE = 8, HELPER = 16 }; /* from a site's end */

static const struct code function = {
	8,
	24,
	{WORD(0x52800020), WORD(0xaa1e03e9)}, /* mov w0, 1; mov x9, x30 */
	/* br x9, as ret; mov w0, 2; ret x9; mov w0, 3; ret x9 */
	{WORD(0xd503201f), WORD(0xd65f0120), WORD(0x52800040), WORD(0xd65f0120), WORD(0x52800060), WORD(0xd65f0120)},
};

#define B(to) WORD(0x14000000 | (4 + (to)) / 4)
#define BL(to) WORD(0x94000000 | (4 + (to)) / 4)
#define NOP WORD(0xd503201f)
#define ADD5 WORD(0x11001400) /* add w0, w0, 5 */
#define MOV9 WORD(0x52800120) /* mov w0, 9 */

const struct site_kind site_kinds[] = {
	/* nop; jump: one store */
	{4, 2, {{NOP}, {B(THERE)}}, {1, 2}},
	/* nop; jump; call; another jump: one store */
	{4, 4, {{NOP}, {B(THERE)}, {BL(HELPER)}, {B(HELPER)}}, {1, 2, 3, 3}},
	/* some that a store may change, some that it may not */
	{4, 4, {{NOP}, {MOV9}, {ADD5}, {B(THERE)}}, {1, 9, 6, 2}},
	{4, 4, {{NOP}, {B(THERE)}, {BL(HELPER)}, {MOV9}}, {1, 2, 3, 9}},
	/* nop; cbnz, taken; cbz, not taken */
	{4, 4, {{NOP}, {WORD(0x35000000 | (4 + THERE) / 4 << 5)}, {WORD(0x34000000 | (4 + THERE) / 4 << 5)}, {ADD5}}, {1, 2, 1, 6}},
};
#elif defined(__riscv)
enum { STORED_KINDS = 5, THERE = 8, HELPER = 16 };

static const struct code function = {
	8,
	24,
	{WORD(0x00100513), WORD(0x00008313)}, /* li a0, 1; mv t1, ra */
	/* nop; jr t1; li a0, 2; jr t1; li a0, 3; jr t1 */
	{WORD(0x00000013), WORD(0x00030067), WORD(0x00200513), WORD(0x00030067), WORD(0x00300513), WORD(0x00030067)},
};

#define J(to) WORD(0x0000006f | (4 + (to)) << 20)   /* jal zero */
#define JAL(to) WORD(0x000000ef | (4 + (to)) << 20) /* jal ra */
#define NOP WORD(0x00000013)
#define ADD5 WORD(0x00550513) /* addi a0, a0, 5 */
#define MOV9 WORD(0x00900513) /* li a0, 9 */

const struct site_kind site_kinds[] = {
	/* c.nop; c.jr t1 */
	{2, 2, {{HALF(0x0001)}, {HALF(0x8302)}}, {1, 1}},
	/* c.nop; c.j over 10 bytes; c.li a0, 9; c.addi a0, 4 */
	{2, 4, {{HALF(0x0001)}, {HALF(0xa029)}, {HALF(0x4525)}, {HALF(0x0511)}}, {1, 2, 9, 5}},
	/* nop; li; addi; jump */
	{4, 4, {{NOP}, {MOV9}, {ADD5}, {J(THERE)}}, {1, 9, 6, 2}},
	/* nop; jump; call; li */
	{4, 4, {{NOP}, {J(THERE)}, {JAL(HELPER)}, {MOV9}}, {1, 2, 3, 9}},
	/* nop; bnez, taken; beqz, not taken; addi */
	{4, 4, {{NOP}, {WORD(0x00051663)}, {WORD(0x00050663)}, {ADD5}}, {1, 2, 1, 6}},
};
#else
enum { STORED_KINDS = 5, THERE = 5, HELPER = 11 };

static const struct code function = {
	7,
	17,
	{0xB8, 1, 0, 0, 0, 0x85, 0xC0}, /* mov eax, 1; test eax, eax */
	/* mov ecx, eax; mov eax, ecx; ret; mov eax, 2; ret; mov eax, 3; ret */
	{0x89, 0xC1, 0x89, 0xC8, 0xC3, 0xB8, 2, 0, 0, 0, 0xC3, 0xB8, 3, 0, 0, 0, 0xC3},
};

const struct site_kind site_kinds[] = {
	/* nop; ret */
	{1, 2, {{0x90}, {0xC3}}, {1, 1}},
	/* nop; jmp; mov al, 9; add al, 4 */
	{2, 4, {{0x66, 0x90}, {0xEB, THERE}, {0xB0, 9}, {0x04, 4}}, {1, 2, 9, 5}},
	/* nop; a jump with prefixes; add eax, 5; lea eax, [rax + 6] */
	{4, 4, {{0x0F, 0x1F, 0x40, 0}, {0x3E, 0x3E, 0xEB, THERE}, {0x40, 0x83, 0xC0, 5}, {0x67, 0x8D, 0x40, 6}}, {1, 2, 6, 7}},
	/* nop; jmp; call; mov eax, 9 */
	{5, 4, {{0x0F, 0x1F, 0x44, 0, 0}, {0xE9, THERE, 0, 0, 0}, {0xE8, HELPER, 0, 0, 0}, {0xB8, 9, 0, 0, 0}}, {1, 2, 3, 9}},
	/* nop; jns, taken, for the flags come from the caller's test of 1; js, not taken; add eax, 5 with a long number */
	{6,
	 4,
	 {{0x66, 0x0F, 0x1F, 0x44, 0, 0}, {0x0F, 0x89, THERE, 0, 0, 0}, {0x0F, 0x88, THERE, 0, 0, 0}, {0x81, 0xC0, 5, 0, 0, 0}},
	 {1, 2, 1, 6}},
};
#endif
const int site_kind_count = sizeof site_kinds / sizeof site_kinds[0], site_stored_kinds = STORED_KINDS, site_there = THERE,
		  site_helper = HELPER;

/* Where a site of this length can lie, at or before that. */
static uint32_t align_site(uint32_t at, const struct site_kind *kind)
{
#if defined(__x86_64__)
	(void)kind;
	return at;
#else
	return at & ~((uint32_t)kind->len - 1);
#endif
}

void site_place(struct site *s, execmem_domain *domain, const struct site_kind *kind, uint32_t before_end)
{
	uint32_t at = align_site(before_end ? 64 - before_end : 64, kind), start = function.before_len;
	uint8_t code[SITE_SIZE];
	void *out;

	at += at < start + LONGEST ? 64 : 0;
	em_arch_host()->fill_traps(code, sizeof code);
	memcpy(code, function.before, start);
	EXPECT(execmem_alloc_in(domain, EXECMEM_TEXT, sizeof code, 64, NULL, &out) == 0);
	em_arch_host()->encode_branch(code + start, (uintptr_t)out + start, (uintptr_t)out + at);
	memcpy(code + at, kind->bytes[0], (size_t)kind->len);
	memcpy(code + at + kind->len, function.after, function.after_len);
	EXPECT(execmem_fill(out, code, sizeof code) == 0);
	s->kind = kind;
	s->code = out;
	s->at = s->code + at;
	s->now = 0;
	atomic_store(&s->values[0], kind->values[0]);
	atomic_store(&s->epoch, 0);
}

/* ---- checking ---- */

static uint32_t call(const uint8_t *code)
{
	return ((uint32_t (*)(void))(uintptr_t)code)();
}

void site_check(struct site *s)
{
	uint32_t from = atomic_load(&s->epoch), value = call(s->code), to = atomic_load(&s->epoch);

	for (uint32_t i = from / 2; i <= (to + 1) / 2 && to - from <= SITE_HISTORY; i++)
		if (atomic_load(&s->values[i % SITE_HISTORY]) == value)
			return;
	if (atomic_load(&s->epoch) - from > SITE_HISTORY) /* it slept so long, be it just now, that other values are there */
		return;
	fprintf(stderr, "a site of %d bytes at %p gave %u, in epochs %u to %u (%s)\n", s->kind->len, (void *)s->at, value, from, to,
	        test_context);
	abort();
}

void site_begin(struct site *s, int variant)
{
	uint32_t epoch = atomic_load(&s->epoch);

	atomic_store(&s->values[(epoch / 2 + 1) % SITE_HISTORY], s->kind->values[variant]);
	atomic_store(&s->epoch, epoch + 1);
}

void site_end(struct site *s, int variant, bool done)
{
	if (done)
		s->now = variant;
	else /* both were allowed until here */
		atomic_store(&s->values[(atomic_load(&s->epoch) / 2 + 1) % SITE_HISTORY], s->kind->values[s->now]);
	atomic_fetch_add(&s->epoch, 1);
}

void site_change(struct site *s, int variant)
{
	int err;

	site_begin(s, variant);
	do {
		err = execmem_poke(s->at, s->kind->bytes[s->now], s->kind->bytes[variant], (size_t)s->kind->len);
		if (err)
			usleep(1000);
	} while (err == EXECMEM_EFORKED || err == EXECMEM_EBUSY);
	EXPECT(err == 0);
	EXPECT(memcmp(s->at, s->kind->bytes[variant], (size_t)s->kind->len) == 0);
	site_end(s, variant, true);
	site_check(s);
}

void site_change_all(struct site *sites, int count, uint64_t *seed)
{
	execmem_poke_site *batch = calloc((size_t)count, sizeof *batch);
	uint32_t turn = (uint32_t)(test_random(seed) % (uint32_t)count);
	int err;

	EXPECT(batch);
	for (int i = 0; i < count; i++) { /* in an order that is not theirs */
		struct site *s = &sites[((uint32_t)i * 7u + turn) % (uint32_t)count];
		int variant = (s->now + 1) % s->kind->variants;

		batch[i] = (execmem_poke_site){s->at, s->kind->bytes[s->now], s->kind->bytes[variant], (size_t)s->kind->len};
	}
	for (int i = 0; i < count; i++)
		site_begin(&sites[i], (sites[i].now + 1) % sites[i].kind->variants);
	do {
		err = execmem_poke_batch(batch, (size_t)count);
		if (err)
			usleep(1000);
	} while (err == EXECMEM_EFORKED || err == EXECMEM_EBUSY);
	EXPECT(err == 0);
	for (int i = 0; i < count; i++)
		site_end(&sites[i], (sites[i].now + 1) % sites[i].kind->variants, true);
	free(batch);
}

/* ---- who runs it ---- */

static void *run(void *arg)
{
	struct runners *r = arg;
	uint64_t calls = 0;

	atomic_store(&r->tid, (int32_t)syscall(SYS_gettid));
	while (!atomic_load(&r->stop)) {
		for (int i = 0; i < r->count; i++)
			site_check(&r->sites[i]);
		calls += (uint64_t)r->count;
	}
	atomic_fetch_add(&r->calls, calls);
	return NULL;
}

void runners_start(struct runners *r, struct site *sites, int count, int threads)
{
	r->sites = sites;
	r->count = count;
	r->threads = threads;
	atomic_store(&r->stop, false);
	atomic_store(&r->calls, 0);
	atomic_store(&r->tid, 0);
	for (int i = 0; i < threads; i++) {
		pthread_t id;

		test_begin(&id, run, r);
		r->ids[i] = (uintptr_t)id;
	}
	while (atomic_load(&r->tid) == 0)
		usleep(100);
}

void runners_stop(struct runners *r)
{
	atomic_store(&r->stop, true);
	for (int i = 0; i < r->threads; i++)
		EXPECT(pthread_join((pthread_t)r->ids[i], NULL) == 0);
	EXPECT(atomic_load(&r->calls) > 0);
}
