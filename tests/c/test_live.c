/* test_live: instructions changed while two threads run them, in every write mode and way; what is refused; failures at each system call.
 *
 * usage: test_live [changes under each mode and way], or EXECMEM_TEST_CHANGES, where no arguments can be given
 */
#include "arch.h"
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
static int place_sites_of(int count, int kinds)
{
	for (int i = 0; i < count; i++) {
		const struct site_kind *kind = &site_kinds[i % kinds];
		uint32_t places[] = {0, 1, 2, 3, 4, 5, 8 + 1, 8 + 3, 16 + 2, 8};

		site_place(&sites[i], domain, kind, places[(uint32_t)(i / kinds) % 10]);
	}
	return count;
}

static int place_sites(int count)
{
	return place_sites_of(count, site_kind_count);
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

/* Where there are no breakpoints, all is changed as the CPU allows or while threads stand still; where each fill needs membarrier too, nobody
 * can do without. */
static bool takes_way(const struct way *way, int mode)
{
	const struct em_arch *arch = em_arch_host();

	if (way == ways)
		return true;
	if (mode == EXECMEM_MODE_FLIP)
		return false;
	return arch->emulate || (way->script && strcmp(way->script, "store=F*") == 0);
}

static bool is_slow(const struct way *way, int mode)
{
	bool memory = mode == EXECMEM_MODE_ALIAS || mode == EXECMEM_MODE_PKEY;

	return way->slow || mode == EXECMEM_MODE_FLIP || (!em_arch_host()->emulate && (way->script || !memory));
}

/* EXECMEM_TEST_TELL: says what comes next, for machines that are slow. */
static void begin(const char *what, int mode, const struct way *way)
{
	snprintf(test_context, sizeof test_context, "%s in mode %s, %s", what, execmem_mode_name(mode), way->name);
	if (getenv("EXECMEM_TEST_TELL")) {
		puts(test_context);
		fflush(stdout);
	}
}

/* CPUs without breakpoints are emulated ones, where it takes long until another one is told. */
static int least(int amount)
{
	return em_arch_host()->emulate || amount < 200 ? amount : 200;
}

static void change_batches(int kinds, int batches)
{
	place_sites_of(BATCH, kinds);
	runners_start(&runners, sites, BATCH, 2);
	for (int i = 0; i < batches; i++)
		site_change_all(sites, BATCH, &seed);
	runners_stop(&runners);
}

static void change_singly(int kinds, int singles)
{
	place_sites_of(SINGLES, kinds);
	runners_start(&runners, sites, SINGLES, 2);
	for (int i = 0; i < singles; i++) {
		struct site *s = &sites[test_random(&seed) % SINGLES];

		site_change(s, (s->now + 1 + (int)(test_random(&seed) % (uint64_t)(s->kind->variants - 1))) % s->kind->variants);
	}
	runners_stop(&runners);
}

static void stress(int mode, const struct way *way, int amount)
{
	bool slow = is_slow(way, mode);
	int singles, batches;

	amount = slow ? amount / 50 + 1 : amount;
	singles = amount / 10 + 1;
	batches = amount / BATCH + 1;
	begin("changes", mode, way);
	open_domain(mode);
	execmem_test_script(way->script);
	change_singly(site_kind_count, least(singles));
	change_batches(site_kind_count, batches);
	if (!slow && site_stored_kinds < site_kind_count) { /* the others need threads to stand still, which takes long */
		begin("changes by single stores", mode, way);
		change_singly(site_stored_kinds, singles);
		change_batches(site_stored_kinds, batches);
	}
	execmem_test_script(NULL);
	close_domain();
}

/* ---- signals and forks in between ---- */

static void on_alarm(int number)
{
	(void)number;
#ifdef __SANITIZE_THREAD__
	return; /* it runs handlers with all signals blocked, SIGTRAP too: who meets a breakpoint then is ended */
#endif
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

#if defined(__aarch64__)
static const uint8_t not_one[] = {0, 0, 0, 0}, resumes[] = {0x01, 0, 0, 0xd4},
					 nothing[] = {0x1f, 0x20, 0x03, 0xd5}; /* udf; svc 0; nop */
#elif defined(__riscv)
static const uint8_t not_one[] = {1, 0, 1, 0}, resumes[] = {0x73, 0, 0, 0}, nothing[] = {0x13, 0, 0, 0}; /* two c.nop; ecall; nop */
#else
static const uint8_t not_one[] = {0x90, 0x90, 0x90, 0x90, 0x90}, resumes[] = {0xF3, 0xA4},
					 nothing[] = {0x66, 0x90}; /* nops; rep movs */
#endif

/* What it says of bytes that are not the old ones: both. */
static void expect_both(const uint8_t *there, const uint8_t *expected, size_t len)
{
	char words[8 * EXECMEM_SITE_MAX] = "";
	size_t used = 0;

	for (size_t i = 0; i < 2 * len; i++)
		used += (size_t)snprintf(words + used, sizeof words - used, "%s %02x", i == len ? ", not" : "",
		                         i < len ? there[i] : expected[i - len]);
	EXPECT(strstr(execmem_error_text(), words));
}

static void refused_bytes(void)
{
	const struct site_kind *kind = sites[3].kind;
	const uint8_t *now = kind->bytes[0], *mov = kind->bytes[3];
	uint8_t *at = sites[3].at;
	size_t len = (size_t)kind->len;
	void *other;

	expect_refused(EXECMEM_ECHANGED, at, kind->bytes[1], mov, len);
	expect_both(now, kind->bytes[1], len);
	expect_refused(EXECMEM_EINSN, at, now, not_one, len);
	expect_refused(EXECMEM_EINSN, at, now, mov, len - 1);
	expect_refused(EXECMEM_EINVAL, at, now, mov, 0);
	expect_refused(EXECMEM_EINVAL, at, now, mov, 16);
	expect_refused(EXECMEM_EINVAL, at, NULL, mov, len);
	expect_refused(EXECMEM_EINVAL, at, now, NULL, len);
	expect_refused(EXECMEM_EFOREIGN, &other, now, mov, len);
	expect_refused(EXECMEM_EFOREIGN, NULL, now, mov, len);
	expect_refused(EXECMEM_EBOUNDS, sites[3].code + SITE_SIZE - 2, now, mov, len);
	EXPECT(execmem_place(domain, EXECMEM_TEXT, resumes, sizeof resumes, 16, NULL, &other) == 0);
	expect_refused(EXECMEM_EINSN, other, resumes, nothing, sizeof nothing);
	EXPECT(strstr(execmem_error_text(), "half through"));
	EXPECT(execmem_free(other) == 0);
	expect_refused(EXECMEM_EFREED, other, resumes, nothing, sizeof nothing);
	EXPECT(execmem_place(domain, EXECMEM_RODATA, nothing, sizeof nothing, 16, NULL, &other) == 0);
	expect_refused(EXECMEM_EINVAL, other, nothing, resumes, sizeof nothing);
	EXPECT(execmem_alloc_in(domain, EXECMEM_TEXT, 100, 16, NULL, &other) == 0);
	expect_refused(EXECMEM_EINVAL, other, nothing, now, sizeof nothing);
	EXPECT(strstr(execmem_error_text(), "never filled") && em_arch_host()->is_trap(other, 64));
	EXPECT(execmem_free(other) == 0);
	EXPECT_LAWFUL(domain);
	EXPECT(execmem_poke(at, now, now, len) == 0);
	EXPECT(execmem_poke_batch(NULL, 0) == 0 && execmem_poke_batch(NULL, 1) == EXECMEM_EINVAL);
}

/* Where instructions lie aligned. */
static void refused_places(void)
{
	uint32_t align = em_arch_host()->insn_align;
	const struct site_kind *kind = sites[3].kind;
	uint8_t code[16], there[4];
	void *other;

	if (align == 1)
		return;
	memcpy(there, sites[3].at + align / 2, sizeof there);
	expect_refused(EXECMEM_EMISALIGNED, sites[3].at + align / 2, there, nothing, sizeof there);
	if (align == 4)
		return;
	em_arch_host()->encode_nops(code, 2);
	memcpy(code + 2, kind->bytes[0], 4); /* it runs there, but no hart must fetch it at once */
	EXPECT(execmem_place(domain, EXECMEM_TEXT, code, 6, 16, NULL, &other) == 0);
	expect_refused(EXECMEM_EMISALIGNED, (uint8_t *)other + 2, kind->bytes[0], kind->bytes[3], 4);
	EXPECT(execmem_free(other) == 0);
}

static void refused_batches(int mode)
{
	execmem_options options = {.name = "other", .write_mode = mode};
	struct site apart;
	execmem_domain *second;
	execmem_poke_site batch[3];
	size_t len = (size_t)sites[3].kind->len;

	for (int i = 0; i < 3; i++) {
		struct site *s = &sites[3 + i * site_kind_count];

		batch[i] = (execmem_poke_site){s->at, s->kind->bytes[0], s->kind->bytes[3], len};
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
	EXPECT(memcmp(batch[0].site, batch[0].old_bytes, len) == 0 && memcmp(batch[2].site, batch[2].old_bytes, len) == 0);
	EXPECT(execmem_domain_seal(second) == 0);
	EXPECT(execmem_poke(apart.at, apart.kind->bytes[0], apart.kind->bytes[1], len) == EXECMEM_ESEALED);
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
		refused_places();
		refused_batches(mode);
		close_domain();
	}
}

#if defined(__aarch64__)
static void encode_here(uint8_t *site)
{
	uint8_t out[16];

	for (int insn = EXECMEM_INSN_NOP; insn <= EXECMEM_INSN_CALL; insn++)
		for (size_t len = 1; len <= 15; len++)
			EXPECT(execmem_encode(insn, site, site + 64, out, len) == (len == 4 ? 0 : EXECMEM_EINVAL));
	EXPECT(execmem_encode(EXECMEM_INSN_JUMP, site, site + (1 << 27) - 4, out, 4) == 0);
	EXPECT(execmem_encode(EXECMEM_INSN_JUMP, site, site + (1 << 27), out, 4) == EXECMEM_EREACH);
	EXPECT(execmem_encode(EXECMEM_INSN_CALL, site, site - (1 << 27), out, 4) == 0);
	EXPECT(execmem_encode(EXECMEM_INSN_CALL, site, site - (1 << 27) - 4, out, 4) == EXECMEM_EREACH);
	EXPECT(execmem_encode(EXECMEM_INSN_JUMP, site, site + 2, out, 4) == EXECMEM_EMISALIGNED);
}
#elif defined(__riscv)
static void encode_here(uint8_t *site)
{
	uint8_t out[16];

	for (int insn = EXECMEM_INSN_NOP; insn <= EXECMEM_INSN_CALL; insn++)
		for (size_t len = 1; len <= 15; len++)
			EXPECT(execmem_encode(insn, site, site + 64, out, len) ==
			       (len == 4 || (len == 2 && insn != EXECMEM_INSN_CALL) ? 0 : EXECMEM_EINVAL));
	EXPECT(execmem_encode(EXECMEM_INSN_JUMP, site, site + 10, out, 2) == 0 && memcmp(out, site_kinds[1].bytes[1], 2) == 0);
	EXPECT(execmem_encode(EXECMEM_INSN_JUMP, site, site + 2046, out, 2) == 0);
	EXPECT(execmem_encode(EXECMEM_INSN_JUMP, site, site + 2048, out, 2) == EXECMEM_EREACH);
	EXPECT(execmem_encode(EXECMEM_INSN_JUMP, site, site - 2048, out, 2) == 0);
	EXPECT(execmem_encode(EXECMEM_INSN_JUMP, site, site - 2050, out, 2) == EXECMEM_EREACH);
	EXPECT(execmem_encode(EXECMEM_INSN_JUMP, site, site + (1 << 20) - 2, out, 4) == 0);
	EXPECT(execmem_encode(EXECMEM_INSN_CALL, site, site + (1 << 20), out, 4) == EXECMEM_EREACH);
	EXPECT(execmem_encode(EXECMEM_INSN_CALL, site, site - (1 << 20), out, 4) == 0);
	EXPECT(execmem_encode(EXECMEM_INSN_JUMP, site, site - (1 << 20) - 2, out, 4) == EXECMEM_EREACH);
	EXPECT(execmem_encode(EXECMEM_INSN_JUMP, site, site + 1, out, 4) == EXECMEM_EMISALIGNED);
}
#else
static void encode_here(uint8_t *site)
{
	uint8_t out[16];

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
}
#endif

/* What the sites are made of is encoded so too. */
static void test_encode(void)
{
	uint8_t out[16], *site = (uint8_t *)0x10000000;
	size_t len = (size_t)site_kinds[3].len;

	test_context[0] = '\0';
	encode_here(site);
	EXPECT(execmem_encode(EXECMEM_INSN_NOP, site, NULL, out, len) == 0 && memcmp(out, site_kinds[3].bytes[0], len) == 0);
	EXPECT(execmem_encode(EXECMEM_INSN_JUMP, site, site + len + site_there, out, len) == 0);
	EXPECT(memcmp(out, site_kinds[3].bytes[1], len) == 0);
	EXPECT(execmem_encode(EXECMEM_INSN_CALL, site, site + len + site_helper, out, len) == 0);
	EXPECT(memcmp(out, site_kinds[3].bytes[2], len) == 0);
	EXPECT(execmem_encode(3, site, site, out, len) == EXECMEM_EINVAL);
	EXPECT(execmem_encode(EXECMEM_INSN_NOP, site, site, NULL, len) == EXECMEM_EINVAL);
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
			for (int more = 0; more < 2 && test_takes_call(ops[op]); more++) {
				fail_each(mode, "", ops[op], more ? "*" : "");
				fail_each(mode, "store=F*", ops[op], more ? "*" : "");
				if (!em_arch_host()->emulate) /* there are no breakpoints */
					continue;
				fail_each(mode, "store=F* trap=F*", ops[op], more ? "*" : "");
				fail_each(mode, "store=F* stop=F*", ops[op], more ? "*" : "");
			}
		close_domain();
	}
}

int main(int argc, char **argv)
{
	const char *chosen = getenv("EXECMEM_TEST_CHANGES");
	int amount = chosen ? atoi(chosen) : test_amount(argc, argv, 3000, 300);

	test_encode();
	test_refusals();
	test_failures();
	for (int mode = EXECMEM_MODE_SYSCALL; mode < EXECMEM_MODES; mode++) {
		if (!test_takes_mode(mode))
			continue;
		for (size_t way = 0; way < sizeof ways / sizeof ways[0]; way++) {
			bool slow = is_slow(&ways[way], mode);
			int some = amount / 20 + 1, most = slow ? 2000 : INT_MAX;

			if (!takes_way(&ways[way], mode) || (slow && !TEST_STOPS_THREADS))
				continue;
			stress(mode, &ways[way], amount);
			disturbed(mode, &ways[way], least(some < most ? some : most));
			crowd(mode, &ways[way], least(some / 5 < most ? some / 5 + 1 : most));
		}
	}
	puts("ok");
	return 0;
}
