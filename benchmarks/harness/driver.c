/* driver: measures several peers in one run and prints one JSON object for each.
 *
 *     driver [--peers a,b,c] [--mix lognormal] [--live 1000] [--rounds 11] [--round-ms 20] [--seed 1] [--tails]
 *     driver --list                                          peers and mixes, one JSON object each
 *     driver --serve --peers a [--mix lognormal] [--live 1000]    one peer, told what to do on its standard input
 *
 * Each peer lives in a process of its own, forked from here, so that no peer stands on another's heap, page tables or
 * mappings, a crash of one costs only its own figures, and what the kernel tells of a process is what that peer holds. All of
 * them stay alive with their populations; the driver lets one at a time run one round, turn by turn, on the same CPU, so that
 * whatever disturbs the machine for a while disturbs all of them alike. The figure is the median over the rounds, in CPU time.
 */
#include "cycle.h"
#include "mix.h"
#include "peer.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
	PEERS_MAX = 32,
	ROUNDS_MAX = 101,
	CYCLES_MIN = 200,
	CYCLES_MAX = 1 << 18,
	TRIAL = 2000,
	TRIAL_SLOW = 200,
	MEAN_DRAWS = 1 << 20
};

struct options {
	const char *peers;
	const char *mix;
	uint64_t live;
	int rounds;
	double round_ms;
	uint64_t seed;
	int tails;
	int serve;
};

struct ready { /* what a child says when its population stands */
	int ok;
	char why[PEER_WHY];
	uint64_t cycles; /* in a round */
	struct bench_memory memory;
};

struct last { /* what a child says at the end */
	uint64_t wrong;
	int has_tail;
	struct bench_tail tail;
};

struct child {
	const struct peer *peer;
	pid_t pid;
	int ask;    /* written by the driver: 'r' a round, 'q' the end */
	int answer; /* read by the driver */
	int alive;
	struct ready ready;
	int rounds;
	double ns[ROUNDS_MAX];
	struct last last;
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

static uint64_t plan_cycles(struct bench *bench, double round_ms)
{
	double ns = bench_round(bench, TRIAL_SLOW);

	if (ns > 0 && ns * TRIAL < round_ms * 1e6)
		ns = bench_round(bench, TRIAL);
	if (ns <= 0)
		return 0;
	double cycles = round_ms * 1e6 / ns;
	return cycles < CYCLES_MIN ? CYCLES_MIN : cycles > CYCLES_MAX ? CYCLES_MAX : (uint64_t)cycles;
}

static void serve(const struct child *self, const struct options *o)
{
	struct ready ready = {0};
	struct last last = {0};
	char order;
	struct bench *bench = bench_open(self->peer->name, o->mix, o->live, o->seed, ready.why);

	if (bench != NULL) {
		ready.ok = bench_memory(bench, &ready.memory) == 0;
		ready.cycles = plan_cycles(bench, o->round_ms);
		if (!ready.ok || ready.cycles == 0)
			snprintf(ready.why, sizeof(ready.why), "the first cycles failed");
		ready.ok = ready.ok && ready.cycles > 0;
	}
	write_all(self->answer, &ready, sizeof(ready));
	while (ready.ok && read_all(self->ask, &order, 1) == 0 && order == 'r') {
		double ns = bench_round(bench, ready.cycles);
		write_all(self->answer, &ns, sizeof(ns));
		if (ns < 0)
			_exit(1);
	}
	if (!ready.ok)
		_exit(0);
	if (o->tails)
		last.has_tail = bench_tail(bench, ready.cycles < TRIAL ? TRIAL : ready.cycles, &last.tail) == 0;
	last.wrong = bench_verify(bench);
	write_all(self->answer, &last, sizeof(last));
	_exit(0); /* the kernel takes everything back faster than the peer would */
}

/* ---- the driver ---- */

static int start(struct child *child, const struct options *o)
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
	child->alive = read_all(child->answer, &child->ready, sizeof(child->ready)) == 0;
	if (!child->alive)
		snprintf(child->ready.why, PEER_WHY, "its process died while the population grew");
	child->alive = child->alive && child->ready.ok;
	return 0;
}

static void one_round(struct child *child)
{
	double ns = -1;

	if (!child->alive)
		return;
	if (write(child->ask, "r", 1) != 1 || read_all(child->answer, &ns, sizeof(ns)) != 0 || ns < 0) {
		snprintf(child->ready.why, PEER_WHY, "failed in round %d", child->rounds + 1);
		child->alive = 0;
		return;
	}
	child->ns[child->rounds++] = ns;
}

static void finish(struct child *child)
{
	if (child->alive && (write(child->ask, "q", 1) != 1 || read_all(child->answer, &child->last, sizeof(child->last)) != 0)) {
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

static void print_tail(const struct bench_tail *tail)
{
	static const char *const ops[BENCH_OPS] = {"free", "place"};

	for (int op = 0; op < BENCH_OPS; op++)
		printf(", \"%s_p50_ns\": %.1f, \"%s_p99_ns\": %.1f, \"%s_p999_ns\": %.1f", ops[op], tail->ns[op][0], ops[op],
		       tail->ns[op][1], ops[op], tail->ns[op][2]);
	printf(", \"clock_ns\": %.1f", tail->clock);
}

static void print(struct child *c, const struct options *o)
{
	const struct bench_memory *m = &c->ready.memory;

	printf("{\"peer\": \"%s\", \"mix\": \"%s\", \"live\": %lu", c->peer->name, o->mix, o->live);
	if (!c->alive) {
		for (char *s = c->ready.why; *s != '\0'; s++) /* plain text, no JSON escapes */
			*s = *s == '"' || *s == '\\' || (unsigned char)*s < ' ' ? ' ' : *s;
		printf(", \"failed\": \"%s\"}\n", c->ready.why);
		return;
	}
	qsort(c->ns, (size_t)c->rounds, sizeof(c->ns[0]), compare);
	printf(", \"ns\": %.1f, \"ns_min\": %.1f, \"ns_q1\": %.1f, \"ns_q3\": %.1f", c->ns[c->rounds / 2], c->ns[0],
	       c->ns[c->rounds / 4], c->ns[c->rounds * 3 / 4]);
	printf(", \"cycles\": %lu, \"rounds\": %d, \"wrong_blocks\": %lu", c->ready.cycles, c->rounds, c->last.wrong);
	printf(", \"live_bytes\": %lu, \"resident_bytes\": %lu, \"resident_per_live\": %.3f, \"vmas\": %lu, \"huge_share\": %.3f",
	       m->live_bytes, m->resident_bytes, (double)m->resident_bytes / (double)m->live_bytes, m->vmas, m->huge_share);
	if (c->last.has_tail)
		print_tail(&c->last.tail);
	printf("}\n");
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

static int parse(struct options *o, int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		const char *value = i + 1 < argc ? argv[i + 1] : "";
		if (strcmp(argv[i], "--tails") == 0) {
			o->tails = 1;
			continue;
		}
		if (strcmp(argv[i], "--serve") == 0) {
			o->serve = 1;
			continue;
		}
		if (strcmp(argv[i], "--peers") == 0)
			o->peers = value;
		else if (strcmp(argv[i], "--mix") == 0)
			o->mix = value;
		else if (strcmp(argv[i], "--live") == 0)
			o->live = strtoull(value, NULL, 10);
		else if (strcmp(argv[i], "--rounds") == 0)
			o->rounds = atoi(value);
		else if (strcmp(argv[i], "--round-ms") == 0)
			o->round_ms = atof(value);
		else if (strcmp(argv[i], "--seed") == 0)
			o->seed = strtoull(value, NULL, 10);
		else
			return -1;
		i++;
	}
	return o->rounds >= 1 && o->rounds <= ROUNDS_MAX && o->live > 0 && mix_find(o->mix) != NULL ? 0 : -1;
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
static int serve_input(const struct options *o)
{
	char line[64], why[PEER_WHY] = "";
	unsigned long cycles;
	struct bench *bench = bench_open(o->peers == NULL ? "" : o->peers, o->mix, o->live, o->seed, why);

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

static void pin(void)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET((size_t)sched_getcpu(), &set);
	sched_setaffinity(0, sizeof(set), &set);
}

int main(int argc, char **argv)
{
	struct options o = {.mix = "lognormal", .live = 1000, .rounds = 11, .round_ms = 20, .seed = 1};
	static struct child children[PEERS_MAX];
	const struct peer *peer;
	int count = 0;

	if (argc == 2 && strcmp(argv[1], "--list") == 0) {
		list();
		return 0;
	}
	if (parse(&o, argc, argv) != 0) {
		fprintf(stderr,
		        "usage: driver [--peers a,b] [--mix name] [--live n] [--rounds 1..%d] [--round-ms x] [--seed n] "
		        "[--tails] [--serve] | --list\n",
		        ROUNDS_MAX);
		return 2;
	}
	pin();
	if (o.serve)
		return serve_input(&o);
	for (size_t i = 0; (peer = peer_at(i)) != NULL && count < PEERS_MAX; i++)
		if (is_wanted(o.peers, peer->name)) {
			children[count].peer = peer;
			if (start(&children[count++], &o) != 0)
				return 1;
		}
	for (int round = 0; round < o.rounds; round++)
		for (int i = 0; i < count; i++)
			one_round(&children[i]);
	for (int i = 0; i < count; i++)
		finish(&children[i]);
	for (int i = 0; i < count; i++)
		print(&children[i], &o);
	return 0;
}
