/* driver: measures several peers in one run and prints one JSON object for each.
 *
 *     driver [--peers a,b,c] [--mix lognormal] [--live 1000] [--rounds 11] [--round-ms 20] [--seed 1] [--age-ms 3000]
 *            [--tails] [--loads] [--budget-ms 3000] [--threads 2]
 *     driver --list                                          peers and mixes, one JSON object each
 *     driver --serve --peers a [--mix lognormal] [--live 1000]    one peer, told what to do on its standard input
 *
 * Each peer lives in a process of its own, forked from here, so that no peer stands on another's heap, page tables or
 * mappings, a crash of one costs only its own figures, and what the kernel tells of a process is what that peer holds. All of
 * them stay alive with their populations; the driver lets one at a time run one round, turn by turn, on the same CPU, so that
 * whatever disturbs the machine for a while disturbs all of them alike. The figure is the median over the rounds, in CPU time.
 *
 * --tails adds single operations, --loads everything of load.h; a load that would take a peer longer than the budget is left
 * out, which is told. With --threads 2 each peer has three processes, one for each mode of crew.h, and the figure is the time
 * that passes.
 */
#include "bench.h"
#include "crew.h"
#include "load.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
	CHILDREN_MAX = 64,
	ROUNDS_MAX = 101,
	CYCLES_MIN = 200,
	CYCLES_MAX = 200000,
	TRIAL = 2000,
	TRIAL_SLOW = 200,
	GROWING = 2, /* populations that grow at the same time */
	PHASE_CYCLES = 20000,
	MEAN_DRAWS = 1 << 20
};

struct options {
	const char *peers;
	struct bench_plan plan;
	int rounds;
	double round_ms;
	double budget_ms;
	int threads;
	int tails;
	int loads;
	int serve;
};

struct ready { /* what a child says when its population stands */
	int ok;
	char why[PEER_WHY];
	uint64_t cycles; /* in a round */
	double ns;       /* of one cycle: the least that was seen */
};

struct child {
	const struct peer *peer;
	enum crew_mode mode; /* with --threads */
	pid_t pid;
	int ask;    /* written by the driver: 'r' a round, 'q' the end */
	int answer; /* read by the driver */
	int alive;
	struct ready ready;
	int rounds;
	double cpu_ns[ROUNDS_MAX];
	double wall_ns[ROUNDS_MAX];
	struct text told; /* at the end: more JSON */
};

struct subject { /* what a child measures: one of both */
	struct bench *bench;
	struct crew *crew;
};

static int read_all(int fd, void *to, size_t size)
{
	for (size_t done = 0; done < size;) {
		ssize_t n = read(fd, (char *)to + done, size - done);
		if (n <= 0)
			return -1;
		done += (size_t)n;
	}
	return 0;
}

static void write_all(int fd, const void *from, size_t size)
{
	if (write(fd, from, size) != (ssize_t)size)
		_exit(1);
}

/* ---- the child ---- */

static cpu_set_t all_cpus; /* that this program was given */
static size_t round_cpu;   /* where rounds run */

/* Rounds run on one CPU. While a peer is opened, and while single operations are timed, threads it may have of its own can use
 * the others. */
static void pin(int to_one)
{
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET(round_cpu, &one);
	sched_setaffinity(0, sizeof(one), to_one ? &one : &all_cpus);
}

static struct bench_round run_round(const struct subject *s, uint64_t cycles)
{
	return s->crew != NULL ? crew_round(s->crew, cycles) : bench_round(s->bench, cycles);
}

static void plan_cycles(const struct subject *s, double round_ms, struct ready *ready)
{
	double ns = run_round(s, TRIAL_SLOW).wall_ns;

	if (ns > 0 && ns * TRIAL < round_ms * 1e6)
		ns = run_round(s, TRIAL).wall_ns;
	ready->ns = ns;
	ready->cycles = 0;
	if (ns <= 0)
		return;
	double cycles = round_ms * 1e6 / ns;
	ready->cycles = cycles < CYCLES_MIN ? CYCLES_MIN : cycles > CYCLES_MAX ? CYCLES_MAX : (uint64_t)cycles;
}

static struct subject open_subject(const struct child *self, const struct options *o, struct ready *ready)
{
	struct subject s = {NULL, NULL};

	if (o->threads > 1)
		s.crew = crew_open(&o->plan, self->mode, ready->why);
	else
		s.bench = bench_open(&o->plan, ready->why);
	return s;
}

static int leave_out(const struct options *o, const struct ready *ready, double operations, const char *what, struct text *out)
{
	if (ready->ns * operations <= o->budget_ms * 1e6)
		return 0;
	text_add(out, ", \"no_%s\": \"would take %.0f s\"", what, ready->ns * operations / 1e9);
	return 1;
}

static void tell_loads(const struct options *o, const struct ready *ready, struct bench *bench, struct text *out)
{
	double live = (double)o->plan.live;
	uint64_t cycles = ready->cycles < TRIAL ? TRIAL : ready->cycles > PHASE_CYCLES ? PHASE_CYCLES : ready->cycles;

	if (load_phases(bench, cycles, out) != 0 || load_calls(bench, out) != 0 || load_many(bench, out) != 0)
		text_add(out, ", \"no_batches\": \"failed\"");
	else if (!leave_out(o, ready, live, "bursts", out) && load_bursts(bench, out) != 0)
		text_add(out, ", \"no_bursts\": \"failed\"");
	else if (!leave_out(o, ready, live * 2, "ramp", out) && load_growth(bench, out) != 0)
		text_add(out, ", \"no_ramp\": \"failed\"");
}

static void tell_end(const struct options *o, const struct ready *ready, const struct subject *s, struct text *out)
{
	if (s->crew != NULL) {
		crew_tell(s->crew, out);
		text_add(out, ", \"wrong_blocks\": %lu", crew_verify(s->crew));
		return;
	}
	pin(0);
	if (o->tails && load_tails(s->bench, ready->cycles < TRIAL ? TRIAL : ready->cycles, out) != 0)
		text_add(out, ", \"no_tails\": \"failed\"");
	if (o->loads)
		tell_loads(o, ready, s->bench, out);
	text_add(out, ", \"wrong_blocks\": %lu", bench_verify(s->bench));
}

static void serve(const struct child *self, struct options *o)
{
	struct ready ready = {0};
	struct text told = {0};
	struct bench_memory memory;
	char order;

	o->plan.peer = self->peer->name;
	struct subject s = open_subject(self, o, &ready);
	if (s.bench != NULL || s.crew != NULL) {
		ready.ok = 1;
		if (s.bench != NULL && (ready.ok = bench_memory(s.bench, &memory) == 0)) {
			bench_tell_memory(&memory, &told);
			load_told(s.bench, &told);
			text_add(&told, ", \"aged\": %lu", bench_aged(s.bench));
			pin(1);
		}
		plan_cycles(&s, o->round_ms, &ready);
		if (!ready.ok || ready.cycles == 0)
			snprintf(ready.why, sizeof(ready.why), "the first cycles failed");
		ready.ok = ready.ok && ready.cycles > 0;
	}
	write_all(self->answer, &ready, sizeof(ready));
	while (ready.ok && read_all(self->ask, &order, 1) == 0 && order == 'r') {
		struct bench_round round = run_round(&s, ready.cycles);
		write_all(self->answer, &round, sizeof(round));
		if (round.wall_ns < 0)
			_exit(1);
		ready.ns = round.cpu_ns < ready.ns ? round.cpu_ns : ready.ns;
	}
	if (!ready.ok)
		_exit(0);
	tell_end(o, &ready, &s, &told);
	write_all(self->answer, &told, sizeof(told));
	_exit(0); /* the kernel takes everything back faster than the peer would */
}

/* ---- the driver ---- */

static int start(struct child *child, struct options *o)
{
	int ask[2], answer[2];

	if (pipe(ask) != 0 || pipe(answer) != 0)
		return -1;
	fflush(stdout);
	child->pid = fork();
	if (child->pid < 0)
		return -1;
	child->ask = child->pid == 0 ? ask[0] : ask[1];
	child->answer = child->pid == 0 ? answer[1] : answer[0];
	close(child->pid == 0 ? ask[1] : ask[0]);
	close(child->pid == 0 ? answer[0] : answer[1]);
	if (child->pid == 0)
		serve(child, o);
	return 0;
}

static void wait_ready(struct child *child)
{
	child->alive = read_all(child->answer, &child->ready, sizeof(child->ready)) == 0;
	if (!child->alive)
		snprintf(child->ready.why, PEER_WHY, "its process died while the population grew");
	child->alive = child->alive && child->ready.ok;
}

/* Populations grow beside each other, for that is not timed: two at a time, with --threads one, which has threads of its own. */
static int start_all(struct child *children, int count, struct options *o)
{
	struct pollfd wait[CHILDREN_MAX];
	int limit = o->threads > 1 ? 1 : GROWING, growing = 0, started = 0;

	while (started < count || growing > 0) {
		while (started < count && growing < limit) {
			if (start(&children[started], o) != 0)
				return -1;
			wait[started] = (struct pollfd){.fd = children[started].answer, .events = POLLIN};
			started++;
			growing++;
		}
		if (poll(wait, (nfds_t)started, -1) < 0 && errno != EINTR)
			return -1;
		for (int i = 0; i < started; i++)
			if (wait[i].fd >= 0 && wait[i].revents != 0) {
				wait_ready(&children[i]);
				wait[i].fd = -1; /* poll passes over it */
				growing--;
			}
	}
	return 0;
}

static void one_round(struct child *child)
{
	struct bench_round round = {-1, -1};

	if (!child->alive)
		return;
	if (write(child->ask, "r", 1) != 1 || read_all(child->answer, &round, sizeof(round)) != 0 || round.wall_ns < 0) {
		snprintf(child->ready.why, PEER_WHY, "failed in round %d", child->rounds + 1);
		child->alive = 0;
		return;
	}
	child->cpu_ns[child->rounds] = round.cpu_ns;
	child->wall_ns[child->rounds++] = round.wall_ns;
}

static void finish(struct child *child)
{
	if (child->alive && (write(child->ask, "q", 1) != 1 || read_all(child->answer, &child->told, sizeof(child->told)) != 0)) {
		snprintf(child->ready.why, PEER_WHY, "died after its last round");
		child->alive = 0;
	}
	close(child->ask);
	close(child->answer);
	waitpid(child->pid, NULL, 0);
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void print_rounds(struct child *c, const char *name, double *ns)
{
	qsort(ns, (size_t)c->rounds, sizeof(ns[0]), compare);
	printf(", \"%s\": %.1f, \"%s_min\": %.1f, \"%s_q1\": %.1f, \"%s_q3\": %.1f", name, ns[c->rounds / 2], name, ns[0], name,
	       ns[c->rounds / 4], name, ns[c->rounds * 3 / 4]);
}

static void print(struct child *c, const struct options *o)
{
	printf("{\"peer\": \"%s\", \"mix\": \"%s\", \"live\": %lu", c->peer->name, o->plan.mix, o->plan.live);
	if (o->threads > 1)
		printf(", \"mode\": \"%s\"", crew_mode_name(c->mode));
	if (!c->alive) {
		for (char *s = c->ready.why; *s != '\0'; s++) /* plain text, no JSON escapes */
			*s = *s == '"' || *s == '\\' || (unsigned char)*s < ' ' ? ' ' : *s;
		printf(", \"failed\": \"%s\"}\n", c->ready.why);
		return;
	}
	print_rounds(c, "ns", o->threads > 1 ? c->wall_ns : c->cpu_ns);
	if (o->threads > 1)
		print_rounds(c, "cpu_ns", c->cpu_ns);
	printf(", \"cycles\": %lu, \"rounds\": %d%s}\n", c->ready.cycles, c->rounds, c->told.bytes);
}

static void list(void)
{
	const struct peer *peer;
	const char *mix;

	for (size_t i = 0; (peer = peer_at(i)) != NULL; i++)
		printf("{\"peer\": \"%s\", \"about\": \"%s\", \"executable\": %s, \"traps\": %s}\n", peer->name, peer->about,
		       peer->executable ? "true" : "false", peer->traps ? "true" : "false");
	for (size_t i = 0; (mix = mix_name(i)) != NULL; i++) {
		struct rng rng;
		double sum = 0;
		rng_seed(&rng, 1);
		for (int n = 0; n < MEAN_DRAWS; n++)
			sum += mix_draw(mix_find(mix), &rng);
		printf("{\"mix\": \"%s\", \"mean_bytes\": %.0f}\n", mix, sum / MEAN_DRAWS);
	}
}

static int parse_flag(struct options *o, const char *word)
{
	o->tails |= strcmp(word, "--tails") == 0;
	o->loads |= strcmp(word, "--loads") == 0;
	o->serve |= strcmp(word, "--serve") == 0;
	return strcmp(word, "--tails") == 0 || strcmp(word, "--loads") == 0 || strcmp(word, "--serve") == 0;
}

static int parse(struct options *o, int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		const char *value = i + 1 < argc ? argv[i + 1] : "";
		if (parse_flag(o, argv[i]))
			continue;
		if (strcmp(argv[i], "--peers") == 0)
			o->peers = value;
		else if (strcmp(argv[i], "--mix") == 0)
			o->plan.mix = value;
		else if (strcmp(argv[i], "--live") == 0)
			o->plan.live = strtoull(value, NULL, 10);
		else if (strcmp(argv[i], "--rounds") == 0)
			o->rounds = atoi(value);
		else if (strcmp(argv[i], "--round-ms") == 0)
			o->round_ms = atof(value);
		else if (strcmp(argv[i], "--age-ms") == 0)
			o->plan.age_ms = atof(value);
		else if (strcmp(argv[i], "--budget-ms") == 0)
			o->budget_ms = atof(value);
		else if (strcmp(argv[i], "--threads") == 0)
			o->threads = atoi(value);
		else if (strcmp(argv[i], "--seed") == 0)
			o->plan.seed = strtoull(value, NULL, 10);
		else
			return -1;
		i++;
	}
	int threads_ok = o->threads == 1 || (o->threads == 2 && !o->serve);
	return o->rounds >= 1 && o->rounds <= ROUNDS_MAX && o->plan.live > 0 && mix_find(o->plan.mix) != NULL && threads_ok ? 0 : -1;
}

static int is_wanted(const char *names, const char *name)
{
	size_t length = strlen(name);

	for (const char *at = names; at != NULL && *at != '\0'; at = strchr(at, ',') == NULL ? NULL : strchr(at, ',') + 1)
		if (strncmp(at, name, length) == 0 && (at[length] == ',' || at[length] == '\0'))
			return 1;
	return names == NULL;
}

/* "draw N", "run", "verify" on the standard input, a line each; every answer is "ok VALUE" or "failed WHY". */
static int serve_input(struct options *o)
{
	char line[64], why[PEER_WHY] = "";
	unsigned long cycles;

	o->plan.peer = o->peers == NULL ? "" : o->peers;
	struct bench *bench = bench_open(&o->plan, why);
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf(bench == NULL ? "failed %s\n" : "ok\n", why);
	while (bench != NULL && fgets(line, sizeof(line), stdin) != NULL) {
		double value = -1;
		if (sscanf(line, "draw %lu", &cycles) == 1)
			value = bench_draw(bench, cycles);
		else if (strcmp(line, "run\n") == 0)
			value = bench_run(bench);
		else if (strcmp(line, "verify\n") == 0)
			value = (double)bench_verify(bench);
		if (value < 0)
			printf("failed %s", line);
		else
			printf("ok %.0f\n", value);
	}
	bench_close(bench);
	return 0;
}

static int choose(struct child *children, const struct options *o)
{
	const struct peer *peer;
	int count = 0;

	for (size_t i = 0; (peer = peer_at(i)) != NULL; i++)
		for (int mode = 0; mode < (o->threads > 1 ? CREW_MODES : 1) && count < CHILDREN_MAX; mode++)
			if (is_wanted(o->peers, peer->name))
				children[count++] = (struct child){.peer = peer, .mode = (enum crew_mode)mode};
	return count;
}

int main(int argc, char **argv)
{
	struct options o = {.plan = {.mix = "lognormal", .live = 1000, .seed = 1, .threads = 1, .age_ms = 3000},
	                    .rounds = 11,
	                    .round_ms = 20,
	                    .budget_ms = 3000,
	                    .threads = 1};
	static struct child children[CHILDREN_MAX];

	if (argc == 2 && strcmp(argv[1], "--list") == 0) {
		list();
		return 0;
	}
	if (parse(&o, argc, argv) != 0) {
		fprintf(stderr, "usage: driver [options], see the head of driver.c; 1 to %d rounds, 1 or 2 threads\n", ROUNDS_MAX);
		return 2;
	}
	sched_getaffinity(0, sizeof(all_cpus), &all_cpus);
	round_cpu = (size_t)sched_getcpu();
	if (o.threads > crew_cpus()) {
		fprintf(stderr, "two threads need two CPUs, and this program may use one\n");
		return 2;
	}
	if (o.serve) {
		pin(1);
		return serve_input(&o);
	}
	int count = choose(children, &o);
	if (start_all(children, count, &o) != 0)
		return 1;
	for (int round = 0; round < o.rounds; round++)
		for (int i = 0; i < count; i++)
			one_round(&children[i]);
	for (int i = 0; i < count; i++)
		finish(&children[i]);
	for (int i = 0; i < count; i++)
		print(&children[i], &o);
	return 0;
}
