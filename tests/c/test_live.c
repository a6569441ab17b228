/* test_live: instructions changed while two threads run them, in every write mode and way; what is refused; failures at each system call.
 *
 * usage: test_live [changes under each mode and way]
 */
#include "sites.h"

#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BATCH = 256, SINGLES = 30 };

static execmem_domain *domain;
static struct site sites[BATCH];
static struct runners runners;
static uint64_t seed = 20;

static void open_domain(int mode)
{
	execmem_options options = {.name = "poke", .write_mode = mode};

	EXPECT(execmem_domain_open(&options, &domain) == 0);
}

static void close_domain(void)
{
	EXPECT_LAWFUL(domain);
	EXPECT(execmem_domain_close(domain, 1) == 0);
}

/* Sites of each length: within a word, over the edge of one, and over that of a cache line. */
static int place_sites(int count)
{
	for (int i = 0; i < count; i++) {
		const struct site_kind *kind = &site_kinds[i % site_kind_count];
		uint32_t places[] = {0, 1, 2, 3, 4, 5, 8 + 1, 8 + 3, 16 + 2, 8};

		site_place(&sites[i], domain, kind, places[(uint32_t)(i / site_kind_count) % 10]);
	}
	return count;
}

/* ---- under load ---- */

static const struct way {
	const char *name, *script;
	bool slow; /* threads are stopped by signals */
} ways[] = {
	{"as the CPU allows", NULL, false},
	{"behind breakpoints", "store=F*", false},
	{"without a handler", "store=F* trap=F*", true},
	{"without membarrier", "store=F* sync=F*", true},
};

/* EXECMEM_TEST_TELL: says what comes next, for machines that are slow. */
static void begin(const char *what, int mode, const struct way *way)
{
	snprintf(test_context, sizeof test_context, "%s in mode %s, %s", what, execmem_mode_name(mode), way->name);
	if (getenv("EXECMEM_TEST_TELL")) {
		puts(test_context);
		fflush(stdout);
	}
}

static void stress(int mode, const struct way *way, int amount)
{
	bool slow = way->slow || mode == EXECMEM_MODE_FLIP;
	int singles, batches;

	amount = slow ? amount / 50 + 1 : amount;
	singles = amount / 10 + 1;
	batches = amount / BATCH + 1;
	begin("changes", mode, way);
	open_domain(mode);
	place_sites(SINGLES);
	execmem_test_script(way->script);
	runners_start(&runners, sites, SINGLES, 2);
	for (int i = 0; i < singles; i++) {
		struct site *s = &sites[test_random(&seed) % SINGLES];

		site_change(s, (s->now + 1 + (int)(test_random(&seed) % (uint64_t)(s->kind->variants - 1))) % s->kind->variants);
	}
	runners_stop(&runners);
	place_sites(BATCH);
	runners_start(&runners, sites, BATCH, 2);
	for (int i = 0; i < batches; i++)
		site_change_all(sites, BATCH, &seed);
	runners_stop(&runners);
	execmem_test_script(NULL);
	close_domain();
}

/* ---- signals and forks in between ---- */

static void on_alarm(int number)
{
	(void)number;
	for (int i = 0; i < 8; i++)
		site_check(&sites[i]);
}

/* A child runs what it inherited; where packs are shared it changes nothing, else only its own copy. */
static void fork_once(void)
{
	pid_t child = fork();
	int status;

	EXPECT(child >= 0);
	if (child == 0) {
		struct site *s = &sites[0];
		int err;

		for (int i = 0; i < SINGLES; i++)
			site_check(&sites[i]);
		err = execmem_poke(s->at, s->kind->bytes[s->now], s->kind->bytes[(s->now + 1) % s->kind->variants], (size_t)s->kind->len);
		_exit(err == 0 || err == EXECMEM_EFORKED ? 0 : 1);
	}
	EXPECT(waitpid(child, &status, 0) == child);
	EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void disturbed(int mode, const struct way *way, int amount)
{
	struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART}, before;
	struct itimerval often = {{0, 300}, {0, 300}}, never = {{0, 0}, {0, 0}};

	begin("changes with signals and forks", mode, way);
	open_domain(mode);
	place_sites(SINGLES);
	execmem_test_script(way->script);
	runners_start(&runners, sites, SINGLES, 2);
	EXPECT(sigaction(SIGALRM, &action, &before) == 0);
	EXPECT(setitimer(ITIMER_REAL, &often, NULL) == 0);
	for (int i = 0; i < amount; i++) {
		struct site *s = &sites[test_random(&seed) % SINGLES];

		site_change(s, (s->now + 1) % s->kind->variants);
		if (i % 50 == 25)
			fork_once();
		if (i % 20 == 10)
			site_change_all(sites, SINGLES - 1, &seed); /* 29 and 7 share no factor */
	}
	EXPECT(setitimer(ITIMER_REAL, &never, NULL) == 0);
	runners_stop(&runners);
	EXPECT(sigaction(SIGALRM, &before, NULL) == 0);
	execmem_test_script(NULL);
	close_domain();
}

/* ---- several writers, and blocks that come and go ---- */

static _Atomic bool ended;

static void *change_own(void *arg)
{
	struct site *mine = arg;

	for (int i = 0; !atomic_load(&ended); i = (i + 1) % 4)
		site_change(&mine[i], (mine[i].now + 1) % mine[i].kind->variants);
	return NULL;
}

/* On a busy machine threads may get no turn to be stopped, which mode flip tells as EBUSY. */
static void *come_and_go(void *unused)
{
	uint64_t own = 9;
	uint8_t bytes[300] = {0xC3};

	while (!atomic_load(&ended)) {
		void *at[8] = {NULL};
		int err;

		for (int i = 0; i < 8; i++) {
			err = execmem_place(domain, EXECMEM_TEXT, bytes, 1 + test_random(&own) % sizeof bytes, 16, NULL, &at[i]);
			EXPECT(err == 0 || err == EXECMEM_EBUSY);
		}
		for (int i = 0; i < 8; i++) {
			err = at[i] ? execmem_free(at[i]) : 0;
			EXPECT(err == 0 || err == EXECMEM_EBUSY);
		}
	}
	return unused;
}

static void crowd(int mode, const struct way *way, int amount)
{
	pthread_t threads[3];

	begin("several who change", mode, way);
	open_domain(mode);
	place_sites(SINGLES);
	execmem_test_script(way->script);
	atomic_store(&ended, false);
	runners_start(&runners, sites, SINGLES, 1);
	EXPECT(pthread_create(&threads[0], NULL, change_own, &sites[0]) == 0);
	EXPECT(pthread_create(&threads[1], NULL, change_own, &sites[4]) == 0);
	EXPECT(pthread_create(&threads[2], NULL, come_and_go, NULL) == 0);
	for (int i = 0; i < amount; i++)
		site_change_all(&sites[8], 20, &seed);
	atomic_store(&ended, true);
	for (int i = 0; i < 3; i++)
		EXPECT(pthread_join(threads[i], NULL) == 0);
	runners_stop(&runners);
	execmem_test_script(NULL);
	close_domain();
}

/* ---- what is refused ---- */

static void expect_refused(int code, void *at, const void *old_bytes, const void *new_bytes, size_t len)
{
	uint8_t before[SITE_SIZE];

	memcpy(before, sites[3].code, sizeof before);
	EXPECT(execmem_poke(at, old_bytes, new_bytes, len) == code);
	EXPECT(execmem_error_code() == code && strlen(execmem_error_text()) > 20);
	EXPECT(memcmp(before, sites[3].code, sizeof before) == 0);
}

static void refused_bytes(void)
{
	static const uint8_t nops[5] = {0x90, 0x90, 0x90, 0x90, 0x90}, mov[] = {0xB8, 9, 0, 0, 0}, movs[] = {0xF3, 0xA4};
	static const uint8_t nop2[] = {0x66, 0x90};
	const uint8_t *now = sites[3].kind->bytes[0];
	uint8_t *at = sites[3].at;
	void *other;

	expect_refused(EXECMEM_ECHANGED, at, sites[3].kind->bytes[1], mov, 5);
	EXPECT(strstr(execmem_error_text(), "0f 1f 44 00 00, not e9 05"));
	expect_refused(EXECMEM_EINSN, at, now, nops, 5);
	expect_refused(EXECMEM_EINSN, at, now, mov, 4);
	expect_refused(EXECMEM_EINVAL, at, now, mov, 0);
	expect_refused(EXECMEM_EINVAL, at, now, mov, 16);
	expect_refused(EXECMEM_EINVAL, at, NULL, mov, 5);
	expect_refused(EXECMEM_EINVAL, at, now, NULL, 5);
	expect_refused(EXECMEM_EFOREIGN, &other, now, mov, 5);
	expect_refused(EXECMEM_EFOREIGN, NULL, now, mov, 5);
	expect_refused(EXECMEM_EBOUNDS, sites[3].code + SITE_SIZE - 2, now, mov, 5);
	EXPECT(execmem_place(domain, EXECMEM_TEXT, movs, 2, 16, NULL, &other) == 0);
	expect_refused(EXECMEM_EINSN, other, movs, nop2, 2);
	EXPECT(strstr(execmem_error_text(), "half through"));
	EXPECT(execmem_free(other) == 0);
	expect_refused(EXECMEM_EFREED, other, movs, nop2, 2);
	EXPECT(execmem_place(domain, EXECMEM_RODATA, nop2, 2, 16, NULL, &other) == 0);
	expect_refused(EXECMEM_EINVAL, other, nop2, movs, 2);
	EXPECT(execmem_alloc_in(domain, EXECMEM_TEXT, 100, 16, NULL, &other) == 0);
	expect_refused(EXECMEM_EINVAL, other, "\xCC", "\x90", 1);
	EXPECT(strstr(execmem_error_text(), "never filled") && *(uint8_t *)other == 0xCC);
	EXPECT(execmem_free(other) == 0);
	EXPECT_LAWFUL(domain);
	EXPECT(execmem_poke(at, now, now, 5) == 0);
	EXPECT(execmem_poke_batch(NULL, 0) == 0 && execmem_poke_batch(NULL, 1) == EXECMEM_EINVAL);
}

static void refused_batches(int mode)
{
	execmem_options options = {.name = "other", .write_mode = mode};
	struct site apart;
	execmem_domain *second;
	execmem_poke_site batch[3];

	for (int i = 0; i < 3; i++) {
		struct site *s = &sites[3 + i * site_kind_count];

		batch[i] = (execmem_poke_site){s->at, s->kind->bytes[0], s->kind->bytes[3], 5};
	}
	batch[1].old_bytes = sites[3].kind->bytes[1];
	EXPECT(execmem_poke_batch(batch, 3) == EXECMEM_ECHANGED && execmem_error_index() == 1);
	batch[1] = batch[0];
	EXPECT(execmem_poke_batch(batch, 3) == EXECMEM_EINVAL && strstr(execmem_error_text(), "overlap"));
	EXPECT(execmem_domain_open(&options, &second) == 0);
	site_place(&apart, second, sites[3].kind, 0);
	batch[1].site = apart.at;
	EXPECT(execmem_poke_batch(batch, 3) == EXECMEM_EINVAL && strstr(execmem_error_text(), "a batch of its own"));
	batch[1].site = &batch;
	EXPECT(execmem_poke_batch(batch, 3) == EXECMEM_EFOREIGN && execmem_error_index() == 1);
	EXPECT(memcmp(batch[0].site, batch[0].old_bytes, 5) == 0 && memcmp(batch[2].site, batch[2].old_bytes, 5) == 0);
	EXPECT(execmem_domain_seal(second) == 0);
	EXPECT(execmem_poke(apart.at, apart.kind->bytes[0], apart.kind->bytes[1], 5) == EXECMEM_ESEALED);
}

static void test_refusals(void)
{
	for (int mode = EXECMEM_MODE_SYSCALL; mode < EXECMEM_MODES; mode++) {
		if (!test_takes_mode(mode))
			continue;
		snprintf(test_context, sizeof test_context, "refusals in mode %s", execmem_mode_name(mode));
		open_domain(mode);
		place_sites(SINGLES);
		refused_bytes();
		refused_batches(mode);
		close_domain();
	}
}

static void test_encode(void)
{
	uint8_t out[16], *site = (uint8_t *)0x10000000;

	test_context[0] = '\0';
	for (size_t len = 1; len <= 9; len++)
		EXPECT(execmem_encode(EXECMEM_INSN_NOP, site, NULL, out, len) == 0);
	EXPECT(execmem_encode(EXECMEM_INSN_NOP, site, NULL, out, 10) == EXECMEM_EINVAL);
	EXPECT(execmem_encode(EXECMEM_INSN_JUMP, site, site + 0x1005, out, 5) == 0 && memcmp(out, "\xE9\x00\x10\x00\x00", 5) == 0);
	EXPECT(execmem_encode(EXECMEM_INSN_CALL, site, site + 5, out, 5) == 0 && memcmp(out, "\xE8\x00\x00\x00\x00", 5) == 0);
	EXPECT(execmem_encode(EXECMEM_INSN_JUMP, site, site - 126, out, 2) == 0 && memcmp(out, "\xEB\x80", 2) == 0);
	EXPECT(execmem_encode(EXECMEM_INSN_JUMP, site, site - 127, out, 2) == EXECMEM_EREACH);
	EXPECT(execmem_encode(EXECMEM_INSN_JUMP, site, site + 129, out, 2) == 0 && out[1] == 127);
	EXPECT(execmem_encode(EXECMEM_INSN_JUMP, site, site + 130, out, 2) == EXECMEM_EREACH);
	EXPECT(execmem_encode(EXECMEM_INSN_CALL, site, site + 5 + 0x7fffffff, out, 5) == 0);
	EXPECT(execmem_encode(EXECMEM_INSN_CALL, site, site + 5 + 0x80000000, out, 5) == EXECMEM_EREACH);
	EXPECT(execmem_encode(EXECMEM_INSN_CALL, site, site, out, 2) == EXECMEM_EINVAL);
	EXPECT(execmem_encode(3, site, site, out, 5) == EXECMEM_EINVAL && execmem_encode(0, site, site, NULL, 5) == EXECMEM_EINVAL);
}

/* ---- failures ---- */

enum { FEW = 6 };

/* One batch under a script: all of it, or nothing and an error. */
static void fail_once(const char *script, bool may_break)
{
	execmem_poke_site batch[FEW];
	size_t len = (size_t)sites[3].kind->len, same = 0, changed = 0;
	int err;

	for (int i = 0; i < FEW; i++) {
		struct site *s = &sites[3 + i * site_kind_count];

		batch[i] = (execmem_poke_site){s->at, s->kind->bytes[0], s->kind->bytes[3], len};
	}
	execmem_test_script(script);
	err = execmem_poke_batch(batch, FEW);
	execmem_test_script(NULL);
	for (int i = 0; i < FEW; i++) {
		same += memcmp(batch[i].site, batch[i].old_bytes, len) == 0;
		changed += memcmp(batch[i].site, batch[i].new_bytes, len) == 0;
	}
	if (err == 0) {
		EXPECT(changed == FEW);
		for (int i = 0; i < FEW; i++) {
			const void *was = batch[i].old_bytes;

			batch[i].old_bytes = batch[i].new_bytes;
			batch[i].new_bytes = was;
		}
		EXPECT(execmem_poke_batch(batch, FEW) == 0);
	} else if (same < FEW) {
		EXPECT(may_break && strstr(execmem_error_text(), "broken"));
		for (int i = 0; i < FEW; i++) /* made whole by who may write anything: nobody runs it */
			EXPECT(execmem_fill(batch[i].site, sites[3].kind->bytes[0], len) == 0);
	}
}

static void fail_each(int mode, const char *prefix, const char *op, const char *end)
{
	char script[100];

	for (int at = 0; at < 4 * FEW; at++) { /* three calls a site, and one more way */
		snprintf(script, sizeof script, "%s %s=%d.F%s", prefix, op, at, end);
		snprintf(test_context, sizeof test_context, "mode %s, script %s", execmem_mode_name(mode), script);
		fail_once(script, *end);
	}
}

static void test_failures(void)
{
	static const char *const ops[] = {"write", "sync", "trap", "stop", "protect", "store"};

	for (int mode = EXECMEM_MODE_SYSCALL; mode < EXECMEM_MODES; mode++) {
		if (!test_takes_mode(mode))
			continue;
		open_domain(mode);
		place_sites(SINGLES + 5);
		for (size_t op = 0; op < sizeof ops / sizeof ops[0]; op++)
			for (int more = 0; more < 2; more++) {
				fail_each(mode, "", ops[op], more ? "*" : "");
				fail_each(mode, "store=F*", ops[op], more ? "*" : "");
				fail_each(mode, "store=F* trap=F*", ops[op], more ? "*" : "");
				fail_each(mode, "store=F* stop=F*", ops[op], more ? "*" : "");
			}
		close_domain();
	}
}

int main(int argc, char **argv)
{
	int amount = test_amount(argc, argv, 3000, 300);

	if (strcmp(execmem_arch_name(), "x86_64") != 0) {
		printf("left out: no sites are written for %s\n", execmem_arch_name());
		return 0;
	}
	test_encode();
	test_refusals();
	test_failures();
	for (int mode = EXECMEM_MODE_SYSCALL; mode < EXECMEM_MODES; mode++) {
		if (!test_takes_mode(mode))
			continue;
		for (size_t way = 0; way < sizeof ways / sizeof ways[0] && (way == 0 || mode != EXECMEM_MODE_FLIP); way++) {
			if ((ways[way].slow || mode == EXECMEM_MODE_FLIP) && !TEST_STOPS_THREADS)
				continue;
			int some = amount / 20 + 1, most = ways[way].slow || mode == EXECMEM_MODE_FLIP ? 2000 : INT_MAX;

			stress(mode, &ways[way], amount);
			disturbed(mode, &ways[way], some < most ? some : most);
			crowd(mode, &ways[way], some / 5 < most ? some / 5 + 1 : most);
		}
	}
	puts("ok");
	return 0;
}
