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

void put_number(uint8_t *at, uint32_t number)
{
	memcpy(at, &number, sizeof number);
}

uint8_t *place_number(execmem_domain *d, uint32_t number)
{
	uint8_t code[] = {0xB8, 0, 0, 0, 0, 0xC3};

	put_number(code + 1, number);
	return place(d, code, sizeof code);
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
