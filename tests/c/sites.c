/* sites: see sites.h. */
#include "sites.h"

#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

/* ---- the code ---- */

/*
 *   mov eax, 1 | jmp site | ... | site: the instruction | mov ecx, eax; mov eax, ecx; ret | there: mov eax, 2; ret | helper: mov eax, 3; ret
 *
 * What jumps goes to `there`, what calls to `helper`; both lie at fixed distances behind the site's end.
 */
enum { AFTER = 5, THERE = AFTER, HELPER = AFTER + 6 };

static const uint8_t after[] = {0x89, 0xC1, 0x89, 0xC8, 0xC3, 0xB8, 2, 0, 0, 0, 0xC3, 0xB8, 3, 0, 0, 0, 0xC3};

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
const int site_kind_count = sizeof site_kinds / sizeof site_kinds[0];

void site_place(struct site *s, execmem_domain *domain, const struct site_kind *kind, uint32_t before_end)
{
	uint8_t code[SITE_SIZE];
	/* mov eax, 1; test eax, eax; jmp to the site */
	static const uint8_t before[] = {0xB8, 1, 0, 0, 0, 0x85, 0xC0, 0xE9};
	uint32_t at = before_end ? 64 - before_end : 64, distance = at - (uint32_t)sizeof before - 4;
	void *out;

	if (at < sizeof before + 4) {
		at += 64;
		distance += 64;
	}
	memset(code, 0xCC, sizeof code);
	memcpy(code, before, sizeof before);
	memcpy(code + sizeof before, &distance, sizeof distance);
	memcpy(code + at, kind->bytes[0], (size_t)kind->len);
	memcpy(code + at + kind->len, after, sizeof after);
	EXPECT(execmem_place(domain, EXECMEM_TEXT, code, sizeof code, 64, NULL, &out) == 0);
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

		EXPECT(pthread_create(&id, NULL, run, r) == 0);
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
