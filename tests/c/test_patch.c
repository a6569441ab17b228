/* test_patch: static keys and static calls, while two threads run what they change; what is refused; failures of the system.
 *
 * usage: test_patch [switches in each mode]
 */
#include "arch.h"
#include "patches.h"

#include <sys/wait.h>

enum { SITES = 1000 };

static uint64_t seed = 5;

#if defined(__x86_64__)
static void test_long_jumps(void)
{
	uint8_t *site = (uint8_t *)0x10000000, out[16];

	for (size_t len = 6; len <= EXECMEM_SITE_MAX; len++) {
		EXPECT(execmem_encode(EXECMEM_INSN_JUMP, site, site + len + 0x100, out, len) == 0);
		EXPECT(out[0] == 0x2E && out[len - 6] == 0x2E && memcmp(out + len - 5, "\xE9\x00\x01\x00\x00", 5) == 0);
		EXPECT(execmem_encode(EXECMEM_INSN_CALL, site, site, out, len) == EXECMEM_EINVAL);
	}
	EXPECT(execmem_encode(EXECMEM_INSN_JUMP, site, site + 9 + 0x80000000, out, 9) == EXECMEM_EREACH);
	EXPECT(execmem_encode(EXECMEM_INSN_JUMP, site, site, out, 16) == EXECMEM_EINVAL);
}
#else
static void test_long_jumps(void)
{
	uint8_t *site = (uint8_t *)0x10000000, out[16];

	for (size_t len = 5; len <= EXECMEM_SITE_MAX; len++)
		EXPECT(execmem_encode(EXECMEM_INSN_JUMP, site, site + 0x100, out, len) == EXECMEM_EINVAL);
}
#endif

/* ---- keys ---- */

static const uint8_t *nop_of(uint32_t len)
{
	static uint8_t nops[2][SITE_LONG];

	em_arch_host()->encode_nops(nops[len == SITE_LONG], len);
	return nops[len == SITE_LONG];
}

/* site; it gives 1; there: it gives 2. It begins at `skew` bytes of the block, or before, where it can lie. */
static execmem_key_site place_asker(execmem_domain *d, uint32_t len, uint32_t skew, bool inverted)
{
	uint8_t code[64];
	uint8_t *at;

	skew -= em_arch_host()->insn_align > 1 ? skew % len : 0;
	em_arch_host()->fill_traps(code, sizeof code);
	memcpy(code + skew, nop_of(len), len);
	put_number(code + skew + len, 1);
	put_number(code + skew + len + NUMBER_SIZE, 2);
	at = place(d, code, sizeof code) + skew;
	return (execmem_key_site){.site = (uintptr_t)at, .target = (uintptr_t)at + len + NUMBER_SIZE, .len = len, .inverted = inverted};
}

static const uint8_t *code_of(const execmem_key_site *s)
{
	return (const uint8_t *)(uintptr_t)s->site;
}

static void expect_key(execmem_key *key, const execmem_key_site *sites, size_t count, bool on)
{
	EXPECT(execmem_key_check(key) == NULL);
	EXPECT(execmem_key_is_on(key) == on && execmem_key_count(key) == count);
	for (size_t i = 0; i < count; i++)
		EXPECT(call(code_of(&sites[i])) == (on != sites[i].inverted ? 2 : 1));
}

/* A table of many sites, in no order, of two domains. */
static void test_table(void)
{
	static execmem_key_site sites[SITES];
	execmem_key *key;

	for (uint32_t i = 0; i < SITES; i++)
		sites[i] = place_asker(i % 3 ? domain : second, i % 5 ? SITE_LONG : SITE_SHORT, i % 11, i % 7 == 0);
	for (uint32_t i = SITES - 1; i > 0; i--) {
		uint32_t k = (uint32_t)(test_random(&seed) % (i + 1));
		execmem_key_site kept = sites[i];

		sites[i] = sites[k];
		sites[k] = kept;
	}
	EXPECT(execmem_key_make(0, &key) == 0);
	EXPECT(execmem_key_add(key, sites, SITES / 2) == 0); /* inverted ones become jumps */
	expect_key(key, sites, SITES / 2, false);
	EXPECT(execmem_key_set(key, 1) == 0 && execmem_key_set(key, 5) == 0);
	expect_key(key, sites, SITES / 2, true);
	EXPECT(execmem_key_add(key, sites + SITES / 2, SITES - SITES / 2) == 0); /* and of these, others */
	expect_key(key, sites, SITES, true);
	EXPECT(execmem_key_set(key, 0) == 0);
	expect_key(key, sites, SITES, false);
	EXPECT(memcmp(code_of(&sites[0]), sites[0].inverted ? code_of(&sites[0]) : nop_of(sites[0].len), sites[0].len) == 0);
	for (uint32_t i = 1; i < SITES; i++)
		EXPECT(execmem_key_remove(key, code_of(&sites[i]), 1) == 0);
	EXPECT(execmem_key_set(key, 1) == 0);
	expect_key(key, sites, 1, true);
	EXPECT(execmem_key_free(key) == 0);
	for (uint32_t i = 0; i < SITES; i++)
		EXPECT(execmem_free((void *)(uintptr_t)(sites[i].site & ~63ull)) == 0);
}

static void refuse_add(execmem_key *key, execmem_key_site *table, size_t count, int code, size_t index)
{
	uint8_t before[64];
	size_t had = execmem_key_count(key);

	memcpy(before, code_of(&table[0]), sizeof before - 16);
	EXPECT(execmem_key_add(key, table, count) == code && execmem_error_index() == index);
	EXPECT(strlen(execmem_error_text()) > 20 && execmem_key_count(key) == had && !execmem_key_check(key));
	EXPECT(memcmp(before, code_of(&table[0]), sizeof before - 16) == 0);
}

static void test_key_refusals(void)
{
	execmem_key_site good[3], bad[3];
	execmem_key *key;
	_Alignas(8) uint8_t here[8] = {0};

	EXPECT(execmem_key_make(1, &key) == 0);
	for (int i = 0; i < 3; i++)
		good[i] = place_asker(i == 1 ? second : domain, SITE_LONG, 0, false);
#define REFUSE(index, field, value, code)                                                                                          \
	do {                                                                                                                           \
		memcpy(bad, good, sizeof bad);                                                                                             \
		bad[index].field = (value);                                                                                                \
		refuse_add(key, bad, 3, code, index);                                                                                      \
	} while (0)
	REFUSE(2, site, good[2].site + SITE_LONG, EXECMEM_ECHANGED);
	REFUSE(1, site, (uintptr_t)here, EXECMEM_EREACH); /* a site in a stack has no near target */
	bad[1].target = bad[1].site + 100;
	refuse_add(key, bad, 3, EXECMEM_EFOREIGN, 1);
	REFUSE(2, site, good[0].site, EXECMEM_EINVAL); /* twice */
	REFUSE(2, site, good[0].site + 3, EXECMEM_EINVAL);
	REFUSE(2, target, (uintptr_t)far_away, EXECMEM_EREACH);
	REFUSE(2, len, 2, SITE_SHORT == 2 ? EXECMEM_ECHANGED : EXECMEM_EINVAL);
	REFUSE(2, len, 3, EXECMEM_EINVAL);
	REFUSE(2, len, 16, EXECMEM_EINVAL);
	REFUSE(2, inverted, 2, EXECMEM_EINVAL);
	REFUSE(2, site, good[2].site + 62, SITE_SHORT == 2 ? EXECMEM_EBOUNDS : EXECMEM_EMISALIGNED);
#undef REFUSE
	EXPECT(execmem_key_add(key, good, 3) == 0);
	expect_key(key, good, 3, true);
	refuse_add(key, good, 1, EXECMEM_EINVAL, 0);
	EXPECT(execmem_free((void *)(uintptr_t)good[2].site) == 0); /* stale: told, and the others stay */
	EXPECT(execmem_key_set(key, 0) == EXECMEM_EFREED && execmem_key_is_on(key));
	EXPECT(call(code_of(&good[0])) == 2 && call(code_of(&good[1])) == 2);
	EXPECT(strstr(execmem_key_check(key), "should jump"));
	EXPECT(execmem_key_remove(key, code_of(&good[2]), 64) == 0 && execmem_key_set(key, 0) == 0);
	expect_key(key, good, 2, false);
	EXPECT(execmem_key_add(key, NULL, 1) == EXECMEM_EINVAL && execmem_key_add(key, NULL, 0) == 0);
	EXPECT(execmem_key_set(NULL, 1) == EXECMEM_EINVAL && execmem_key_make(0, NULL) == EXECMEM_EINVAL);
	EXPECT(execmem_key_free(NULL) == EXECMEM_EINVAL && execmem_key_remove(NULL, key, 1) == EXECMEM_EINVAL);
	EXPECT(execmem_key_free(key) == 0);
}

/* Sites of two domains under refusals of the system: all, or none. */
static void test_key_failures(int mode)
{
	static const char *const ops[] = {"write", "sync", "protect", "stop"};
	execmem_key_site sites[FEW];
	execmem_key *key;

	EXPECT(execmem_key_make(0, &key) == 0);
	for (int i = 0; i < FEW; i++)
		sites[i] = place_asker(i % 2 ? domain : second, SITE_LONG, (uint32_t)i, false);
	EXPECT(execmem_key_add(key, sites, FEW) == 0);
	for (size_t op = 0; op < sizeof ops / sizeof ops[0]; op++)
		for (int at = 0; at < 40; at++) {
			char script[40];
			bool was = execmem_key_is_on(key);
			int err;

			snprintf(script, sizeof script, "%s=%d.F", ops[op], at);
			snprintf(test_context, sizeof test_context, "mode %s, script %s", execmem_mode_name(mode), script);
			execmem_test_script(script);
			err = execmem_key_set(key, !was);
			execmem_test_script(NULL);
			expect_key(key, sites, FEW, err == 0 ? !was : was);
		}
	EXPECT(execmem_key_free(key) == 0);
}

static void stress_key(int amount)
{
	execmem_key_site sites[FEW];
	execmem_key *key;

	EXPECT(execmem_key_make(0, &key) == 0);
	for (int i = 0; i < FEW; i++) { /* some straddle words and lines */
		sites[i] = place_asker(i % 2 ? domain : second, i % 4 == 3 ? SITE_SHORT : SITE_LONG, (uint32_t)(i * 5 % 8), false);
		runners.code[i] = code_of(&sites[i]);
	}
	runners.count = FEW;
	EXPECT(execmem_key_add(key, sites, FEW) == 0);
	start(0, 1, 2);
	for (int i = 1; i <= amount; i++) {
		begin_change();
		CHANGE(execmem_key_set(key, i % 2));
		end_change(i % 2);
		if (i % 64 == 0)
			EXPECT(execmem_key_check(key) == NULL);
	}
	stop();
	EXPECT(execmem_key_free(key) == 0);
}

/* ---- calls ---- */

/* One more than what `to` gives, or by a jump what it gives. */
static uint8_t *place_one_more(bool jumps, const void *to)
{
	return place_caller(domain, jumps, to, 0, 1);
}

static uint64_t site_of(const uint8_t *caller)
{
	return (uintptr_t)caller + CALLER_SITE;
}

static void expect_call(execmem_call *c, const void *target, uint32_t number, const uint8_t *const *sites)
{
	EXPECT(execmem_call_target(c) == target && !execmem_call_check(c));
	EXPECT(call(execmem_call_entry(c)) == number);
	EXPECT(!sites || (call(sites[0]) == number + 1 && call(sites[1]) == number));
}

static void test_calls(void)
{
	const uint8_t *one = place_number(domain, 1), *two = place_number(domain, 2);
	const uint8_t *sites[2];
	uint64_t addresses[2], live = live_blocks(domain);
	execmem_call *c;

	EXPECT(execmem_call_make(domain, (void *)(uintptr_t)far_away, 0, NULL, &c) == EXECMEM_EREACH);
	EXPECT(strstr(execmem_error_text(), "veneer") && live_blocks(domain) == live);
	EXPECT(execmem_call_make(domain, one, 0, "answer", &c) == 0);
	expect_call(c, one, 1, NULL);
	for (int i = 0; i < 2; i++) {
		sites[i] = place_one_more(i, execmem_call_entry(c));
		addresses[i] = site_of(sites[i]);
	}
	EXPECT(execmem_call_add(c, addresses, 2) == 0);
	expect_call(c, one, 1, sites);
	EXPECT(execmem_call_set(c, two, 0) == 0);
	expect_call(c, two, 2, sites);
	EXPECT(execmem_call_set(c, NULL, 0) == 0);
	expect_call(c, NULL, 0, sites);
	live = live_blocks(domain);
	EXPECT(execmem_call_set(c, (void *)(uintptr_t)far_away, 0) == EXECMEM_EREACH && live_blocks(domain) == live);
	expect_call(c, NULL, 0, sites);
	for (int i = 0; i < 3; i++) { /* one veneer a target */
		EXPECT(execmem_call_set(c, (void *)(uintptr_t)far_away, EXECMEM_PATCH_VENEER) == 0 && live_blocks(domain) == live + 1);
		expect_call(c, (void *)(uintptr_t)far_away, 77, sites);
		EXPECT(execmem_call_set(c, two, 0) == 0);
		expect_call(c, two, 2, sites);
	}
	EXPECT(execmem_call_free(c) == EXECMEM_EBUSY);
	EXPECT(execmem_call_remove(c, sites[0], CALLER_SIZE) == 0 && execmem_call_remove(c, sites[1], CALLER_SIZE) == 0);
	EXPECT(execmem_call_free(c) == 0 && live_blocks(domain) == live - 1);
	EXPECT(call(sites[0]) == 3 && call(sites[1]) == 2); /* they stay as they are */
}

static void test_call_refusals(void)
{
	const uint8_t *one = place_number(domain, 1), *two = place_number(domain, 2);
	const uint8_t *callers[3];
	uint64_t sites[3];
	execmem_call *c;

	EXPECT(execmem_call_make(domain, one, 0, NULL, &c) == 0);
	callers[0] = place_one_more(false, execmem_call_entry(c));
	callers[1] = place_one_more(true, one); /* straight to the target: known too */
	callers[2] = place_one_more(false, two);
	for (int i = 0; i < 3; i++)
		sites[i] = site_of(callers[i]);
	EXPECT(execmem_call_add(c, sites, 3) == EXECMEM_ECHANGED && execmem_error_index() == 2);
	sites[2] = (uintptr_t)&sites;
	EXPECT(execmem_call_add(c, sites, 3) == EXECMEM_EFOREIGN && execmem_error_index() == 2);
	sites[2] = sites[0];
	EXPECT(execmem_call_add(c, sites, 3) == EXECMEM_EINVAL && execmem_error_index() == 2);
	EXPECT(execmem_call_add(c, NULL, 1) == EXECMEM_EINVAL && execmem_call_add(c, NULL, 0) == 0);
	EXPECT(execmem_call_check(c) == NULL && execmem_call_add(c, sites, 2) == 0);
	EXPECT(execmem_free((void *)(uintptr_t)callers[0]) == 0);
	EXPECT(execmem_call_set(c, two, 0) == EXECMEM_EFREED && call(execmem_call_entry(c)) == 1);
	EXPECT(strstr(execmem_call_check(c), "a site"));
	EXPECT(execmem_call_remove(c, callers[0], CALLER_SIZE) == 0 && execmem_call_set(c, two, 0) == 0);
	EXPECT(call(callers[1]) == 2);
	EXPECT(execmem_call_remove(c, callers[1], CALLER_SIZE) == 0 && execmem_call_free(c) == 0);
	EXPECT(execmem_call_make(domain, one, 0, NULL, NULL) == EXECMEM_EINVAL && execmem_call_set(NULL, one, 0) == EXECMEM_EINVAL);
	EXPECT(execmem_call_free(NULL) == EXECMEM_EINVAL && !execmem_call_entry(NULL) && !execmem_call_target(NULL));
}

static void stress_call(int amount)
{
	const void *targets[] = {place_number(domain, 0), place_number(domain, 77), (void *)(uintptr_t)far_away, NULL};
	const int values[] = {0, 1, 1, 0};
	uint64_t sites[FEW - 1];
	execmem_call *c;

	EXPECT(execmem_call_make(domain, targets[0], 0, NULL, &c) == 0);
	runners.code[0] = execmem_call_entry(c);
	for (int i = 0; i < FEW - 1; i++) {
		runners.code[i + 1] = place_one_more(true, execmem_call_entry(c));
		sites[i] = site_of(runners.code[i + 1]);
	}
	runners.count = FEW;
	EXPECT(execmem_call_add(c, sites, FEW - 1) == 0);
	start(0, 0, 77);
	for (int i = 1; i <= amount; i++) {
		int next = (int)(test_random(&seed) % 4);

		begin_change();
		CHANGE(execmem_call_set(c, targets[next], EXECMEM_PATCH_VENEER));
		end_change(values[next]);
	}
	stop();
	EXPECT(execmem_call_check(c) == NULL);
	for (int i = 0; i < FEW - 1; i++)
		EXPECT(execmem_call_remove(c, runners.code[i + 1], CALLER_SIZE) == 0);
	EXPECT(execmem_call_free(c) == 0);
}

static void test_call_failures(void)
{
	const void *one = place_number(domain, 1), *far = (const void *)(uintptr_t)far_away;
	uint64_t live = live_blocks(domain);
	execmem_call *c;
	bool refused = true;

	for (int number = 0; refused; number++) {
		int err;

		refuse_call(number);
		err = execmem_call_make(domain, far, EXECMEM_PATCH_VENEER, NULL, &c);
		refused = was_refused();
		EXPECT(err < 0 || (call(execmem_call_entry(c)) == 77 && execmem_call_free(c) == 0));
		EXPECT(live_blocks(domain) == live);
	}
	refused = true;
	for (int number = 0; refused; number++) {
		const uint8_t *caller;
		uint64_t site;
		int err;

		EXPECT(execmem_call_make(domain, one, 0, NULL, &c) == 0);
		caller = place_one_more(false, execmem_call_entry(c));
		site = site_of(caller);
		EXPECT(execmem_call_add(c, &site, 1) == 0);
		live = live_blocks(domain);
		refuse_call(number);
		err = execmem_call_set(c, far, EXECMEM_PATCH_VENEER);
		refused = was_refused();
		EXPECT(err == 0 || live_blocks(domain) == live);
		EXPECT(!execmem_call_check(c) && call(caller) == (err == 0 ? 78 : 2));
		EXPECT(execmem_call_remove(c, (void *)(uintptr_t)site, 1) == 0 && execmem_call_free(c) == 0);
	}
}

/* ---- forks ---- */

static void *keep_switching(void *key)
{
	for (int on = 1; !atomic_load(&runners.stop); on = !on) {
		int err = execmem_key_set(key, on);

		EXPECT(err == 0 || err == EXECMEM_EFORKED || err == EXECMEM_EBUSY);
	}
	return NULL;
}

/* The child has the lock, and cannot change what the parent runs; what it places itself it can. */
static void fork_once(execmem_key *key)
{
	execmem_key *own;
	int status;
	pid_t child = fork();

	EXPECT(child >= 0);
	if (child == 0) {
		int was = execmem_key_is_on(key), err;
		execmem_key_site mine;

		alarm(60);
		mine = place_asker(domain, SITE_LONG, 0, false);
		err = execmem_key_set(key, !was);
		EXPECT((err == 0 || err == EXECMEM_EFORKED) && !execmem_key_check(key) && execmem_key_is_on(key) == (was ^ (err == 0)));
		EXPECT(execmem_key_make(1, &own) == 0 && execmem_key_add(own, &mine, 1) == 0 && call(code_of(&mine)) == 2);
		_exit(0);
	}
	EXPECT(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void test_fork(void)
{
	execmem_key_site site = place_asker(domain, SITE_LONG, 0, false);
	pthread_t thread;
	execmem_key *key;
	bool on;

	EXPECT(execmem_key_make(0, &key) == 0 && execmem_key_add(key, &site, 1) == 0);
	fork_once(key);
	atomic_store(&runners.stop, false);
	test_begin(&thread, keep_switching, key);
	for (int i = 0; i < 10; i++)
		fork_once(key);
	atomic_store(&runners.stop, true);
	EXPECT(pthread_join(thread, NULL) == 0);
	alarm(60);
	while (execmem_key_set(key, 0) == EXECMEM_EFORKED) /* whether a child is left is asked once in a tick of the clock */
		usleep(1000);
	alarm(0);
	EXPECT(!execmem_key_is_on(key));
	on = execmem_key_set(key, 1) == 0;
	EXPECT(call(code_of(&site)) == (on ? 2 : 1) && execmem_key_free(key) == 0);
}

int main(int argc, char **argv)
{
	int amount = test_amount(argc, argv, 2000, 100);

	test_long_jumps();
	for (int mode = EXECMEM_MODE_SYSCALL; mode < EXECMEM_MODES; mode++) {
		int some = mode == EXECMEM_MODE_FLIP ? amount / 20 + 1 : amount;

		if (!test_takes_mode(mode) || (mode == EXECMEM_MODE_FLIP && !TEST_STOPS_THREADS))
			continue;
		open_domains(mode);
		snprintf(test_context, sizeof test_context, "mode %s", execmem_mode_name(mode));
		test_table();
		test_key_refusals();
		test_key_failures(mode);
		stress_key(some);
		test_calls();
		test_call_refusals();
		test_call_failures();
		stress_call(some);
		test_fork();
		close_domains();
	}
	puts("ok");
	return 0;
}
