/* patching: what branches that can change cost while they do not change, beside those that cannot; and what changing them costs.
 * x86-64 code. Prints a JSON object a line; patching.py runs it and takes medians.
 *
 * usage: patching rounds mode
 *
 * Subjects are run in turns, round by round, each by a loop of its own that lies on a line of its own and differs in what is measured only:
 *
 *   keys    16 questions in a row, with one instruction between two of them, or as many instructions without questions
 *   calls   a call of a function that returns, each way
 *   hooks   the same function with a hook that goes straight to the original
 *
 * Then what changes cost, while another thread runs the code that is changed. All figures are nanoseconds by the clock: of one question, one
 * call, one change.
 */
#include "changes.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ASKS = 16, TURNS = 20000, MANY = 256, CHANGES = 20, SUBJECTS_MAX = 24, JUMP = 5 };

static execmem_domain *domain;

/* ---- writing code ---- */

struct code {
	uint8_t *at, bytes[1024];
	uint32_t size;
};

static struct code begin(uint32_t room)
{
	struct code c = {.size = 0};
	void *at;

	need(execmem_alloc_in(domain, EXECMEM_TEXT, room, 64, NULL, &at) == 0, "alloc");
	c.at = at;
	return c;
}

static void put(struct code *c, const char *hex)
{
	for (unsigned byte; *hex; hex += 2) {
		if (sscanf(hex, "%2x", &byte) == 1)
			c->bytes[c->size++] = (uint8_t)byte;
	}
}

static void put_insn(struct code *c, int insn, const void *to)
{
	need(execmem_encode(insn, c->at + c->size, to, c->bytes + c->size, JUMP) == 0, "encode");
	c->size += JUMP;
}

/* An instruction with the distance from its end to an address, and the bytes behind that. */
static void put_distance(struct code *c, const char *hex, const void *to, const char *behind)
{
	uint32_t more = (uint32_t)strlen(behind) / 2;
	int32_t distance;

	put(c, hex);
	distance = (int32_t)((const uint8_t *)to - (c->at + c->size + sizeof distance + more));
	memcpy(c->bytes + c->size, &distance, sizeof distance);
	c->size += sizeof distance;
	put(c, behind);
}

static void *end(const struct code *c)
{
	need(execmem_fill(c->at, c->bytes, c->size) == 0, "fill");
	return c->at;
}

/* ---- what is measured ---- */

struct subject {
	const char *group, *name;
	void (*loop)(uint64_t turns);
	uint32_t asks; /* in one turn */
};

static struct subject subjects[SUBJECTS_MAX];
static uint32_t subject_count;

static void add_subject(const char *group, const char *name, void *loop, uint32_t asks)
{
	need(subject_count < SUBJECTS_MAX, "too many subjects");
	subjects[subject_count++] = (struct subject){group, name, (void (*)(uint64_t))(uintptr_t)loop, asks};
}

enum question { NO_QUESTION, QUESTION_NOP, QUESTION_JUMP, QUESTION_FLAG };

/* Questions and mov eax, 1, in turns; an answer yes leaves the mov out. Then sub rdi, 1; jnz to the start; ret. */
static void *place_questions(enum question question, const void *flag, execmem_key *key)
{
	struct code c = begin(sizeof c.bytes);
	execmem_key_site sites[ASKS];
	int32_t back;

	for (int i = 0; i < ASKS; i++) {
		sites[i] = (execmem_key_site){.site = (uintptr_t)(c.at + c.size), .target = (uintptr_t)(c.at + c.size + 2 * JUMP)};
		if (question == QUESTION_NOP)
			put(&c, "0f1f440000");
		else if (question == QUESTION_JUMP)
			put_insn(&c, EXECMEM_INSN_JUMP, c.at + c.size + 2 * JUMP);
		else if (question == QUESTION_FLAG)
			put_distance(&c, "803d", flag, "00"); /* cmp byte [flag], 0 */
		put(&c, question == QUESTION_FLAG ? "7505b801000000" : "b801000000");
	}
	put(&c, "4883ef010f85");
	back = -(int32_t)(c.size + sizeof back);
	memcpy(c.bytes + c.size, &back, sizeof back);
	c.size += sizeof back;
	put(&c, "c3");
	end(&c);
	need(!key || execmem_key_add(key, sites, ASKS) == 0, "key");
	return c.at;
}

enum way { WAY_CALL, WAY_SLOT, WAY_REGISTER };

static void *place_loop(enum way way, const void *to, execmem_call *call)
{
	struct code c = begin(64);
	uint64_t site;
	uint32_t start;

	put(&c, "534154554889fb49bc"); /* push rbx; push r12; push rbp; mov rbx, rdi; mov r12, to */
	memcpy(c.bytes + c.size, &to, sizeof to);
	c.size += sizeof to;
	start = c.size;
	site = (uintptr_t)(c.at + c.size);
	if (way == WAY_CALL)
		put_insn(&c, EXECMEM_INSN_CALL, to);
	else if (way == WAY_SLOT)
		put_distance(&c, "ff15", to, ""); /* call [to] */
	else
		put(&c, "41ffd4"); /* call r12 */
	put(&c, "4883eb0175");
	c.bytes[c.size] = (uint8_t)(start - c.size - 1);
	c.size++;
	put(&c, "5d415c5bc3");
	end(&c);
	need(!call || execmem_call_add(call, &site, 1) == 0, "site");
	return c.at;
}

static void *place_code(const char *hex)
{
	struct code c = begin(64);

	put(&c, hex);
	return end(&c);
}

static void *place_jump(const void *to)
{
	struct code c = begin(64);

	put_insn(&c, EXECMEM_INSN_JUMP, to);
	return end(&c);
}

static void *place_data(const void *bytes, uint32_t size)
{
	void *at;

	need(execmem_place(domain, EXECMEM_DATA, bytes, size, 64, NULL, &at) == 0, "data");
	return at;
}

static int far_away(void)
{
	return 1;
}

/* ---- the subjects ---- */

static execmem_key *key_off, *key_on;
static execmem_call *call_near, *call_site, *call_far, *call_none;
static execmem_hook *hook;
static void *returns, *also_returns;

static void make_keys(void)
{
	void *flag = place_data("", 1);

	need(execmem_key_make(0, &key_off) == 0 && execmem_key_make(0, &key_on) == 0, "key");
	add_subject("keys", "no question", place_questions(NO_QUESTION, NULL, NULL), ASKS);
	add_subject("keys", "a nop", place_questions(QUESTION_NOP, NULL, NULL), ASKS);
	add_subject("keys", "a key that is off", place_questions(QUESTION_NOP, NULL, key_off), ASKS);
	add_subject("keys", "a jump", place_questions(QUESTION_JUMP, NULL, NULL), ASKS);
	add_subject("keys", "a key that is on", place_questions(QUESTION_NOP, NULL, key_on), ASKS);
	add_subject("keys", "a flag in memory", place_questions(QUESTION_FLAG, flag, NULL), ASKS);
	for (int i = 0; i < 11; i++) /* what has been changed often costs what it did */
		need(execmem_key_set(key_off, i % 2 == 0) == 0 && execmem_key_set(key_on, i % 2 == 0) == 0, "set");
	need(execmem_key_set(key_off, 0) == 0, "set");
}

static void make_calls(void)
{
	void *slot = place_data(&returns, sizeof returns);

	need(execmem_call_make(domain, returns, 0, NULL, &call_near) == 0, "call");
	need(execmem_call_make(domain, returns, 0, NULL, &call_site) == 0, "call");
	need(execmem_call_make(domain, (const void *)(uintptr_t)far_away, EXECMEM_PATCH_VENEER, NULL, &call_far) == 0, "call");
	need(execmem_call_make(domain, NULL, 0, NULL, &call_none) == 0, "call");
	add_subject("calls", "a direct call", place_loop(WAY_CALL, returns, NULL), 1);
	add_subject("calls", "a site of a static call", place_loop(WAY_CALL, execmem_call_entry(call_site), call_site), 1);
	add_subject("calls", "a direct call of a direct jump", place_loop(WAY_CALL, place_jump(returns), NULL), 1);
	add_subject("calls", "a static call", place_loop(WAY_CALL, execmem_call_entry(call_near), NULL), 1);
	add_subject("calls", "a static call of nothing", place_loop(WAY_CALL, execmem_call_entry(call_none), NULL), 1);
	add_subject("calls", "a call through a register", place_loop(WAY_REGISTER, returns, NULL), 1);
	add_subject("calls", "a call through memory", place_loop(WAY_SLOT, slot, NULL), 1);
	add_subject("calls", "far: a call through a register", place_loop(WAY_REGISTER, (const void *)(uintptr_t)far_away, NULL), 1);
	add_subject("calls", "far: a static call", place_loop(WAY_CALL, execmem_call_entry(call_far), NULL), 1);
	for (int i = 0; i < 11; i++) {
		need(execmem_call_set(call_near, i % 2 ? also_returns : returns, 0) == 0, "set");
		need(execmem_call_set(call_site, i % 2 ? also_returns : returns, 0) == 0, "set");
	}
}

static void make_hooks(void)
{
	void *bare = place_code("b801000000c3"), *hooked = place_code("0f1f440000b801000000c3");

	add_subject("hooks", "a function", place_loop(WAY_CALL, bare, NULL), 1);
	add_subject("hooks", "a function that can be hooked", place_loop(WAY_CALL, place_code("0f1f440000b801000000c3"), NULL), 1);
	add_subject("hooks", "a function with a hook that jumps to the original", place_loop(WAY_CALL, hooked, NULL), 1);
	need(execmem_hook_make(hooked, NULL, &hook) == 0, "hook");
	need(execmem_hook_attach(hook, place_jump(execmem_hook_original(hook)), 0, 0) == 0, "attach");
}

static void run_subjects(int round)
{
	for (uint32_t i = 0; i < subject_count; i++) {
		const struct subject *s = &subjects[(i + (uint32_t)round) % subject_count];
		double start;

		s->loop(TURNS / 10);
		start = ns();
		s->loop(TURNS);
		printf("{\"group\": \"%s\", \"name\": \"%s\", \"ns\": %.4f}\n", s->group, s->name, (ns() - start) / TURNS / s->asks);
	}
}

/* ---- changes ---- */

static execmem_key *key_one, *key_many;
static execmem_hook *hook_to_move;
static void *hook_replacement;
static _Atomic bool ended;
static _Atomic uint64_t laps;
static void *running[4];

static void *run_them(void *unused)
{
	while (!atomic_load_explicit(&ended, memory_order_relaxed)) {
		for (size_t i = 0; i < sizeof running / sizeof running[0]; i++)
			((void (*)(uint64_t))(uintptr_t)running[i])(8);
		atomic_fetch_add_explicit(&laps, 1, memory_order_relaxed);
	}
	return unused;
}

static void make_changes(void)
{
	execmem_key_site site;
	uint8_t *at = place_code("0f1f440000b801000000c3"), *function = place_code("0f1f440000b801000000c3");

	need(execmem_key_make(0, &key_one) == 0 && execmem_key_make(0, &key_many) == 0, "key");
	site = (execmem_key_site){.site = (uintptr_t)at, .target = (uintptr_t)at + 2 * JUMP};
	need(execmem_key_add(key_one, &site, 1) == 0, "key");
	running[0] = at;
	for (int i = 0; i < MANY / ASKS; i++)
		running[1] = place_questions(QUESTION_NOP, NULL, key_many);
	running[2] = place_loop(WAY_CALL, execmem_call_entry(call_near), NULL);
	running[3] = function;
	need(execmem_hook_make(function, NULL, &hook_to_move) == 0, "hook");
	hook_replacement = place_jump(execmem_hook_original(hook_to_move));
}

static int change(int what, int i)
{
	switch (what) {
	case 0:
		return execmem_sync();
	case 1:
		return execmem_key_set(key_one, i % 2);
	case 2:
		return execmem_key_set(key_many, i % 2);
	case 3:
		return execmem_call_set(call_near, i % 2 ? also_returns : returns, 0);
	default:
		return i % 2 ? execmem_hook_attach(hook_to_move, hook_replacement, 0, 0) : execmem_hook_detach(hook_to_move, 0);
	}
}

static void run_changes(void)
{
	static const char *const names[] = {"one synchronisation", "switching a key of 1 site", "switching a key of 256 sites",
	                                    "setting a static call", "attaching or detaching a hook"};

	for (int what = 0; what < 5; what++) {
		uint64_t lap = atomic_load(&laps);
		double start;

		while (atomic_load(&laps) < lap + 2) /* the other thread has a CPU */
			;
		start = ns();
		for (int i = 1; i <= CHANGES; i++)
			need(change(what, i) == 0, "change");
		printf("{\"group\": \"changes\", \"name\": \"%s\", \"ns\": %.0f}\n", names[what], (ns() - start) / CHANGES);
	}
}

int main(int argc, char **argv)
{
	execmem_options options = {.name = "patching", .window = 16 << 20};
	int rounds = argc > 2 ? atoi(argv[1]) : 0, mode = 0;
	pthread_t thread;

	while (argc > 2 && mode < EXECMEM_MODES && strcmp(execmem_mode_name(mode), argv[2]) != 0)
		mode++;
	if (rounds < 1 || mode == EXECMEM_MODES) {
		fprintf(stderr, "usage: patching rounds mode\n");
		return 2;
	}
	options.write_mode = mode;
	need(execmem_domain_open(&options, &domain) == 0, "open");
	returns = place_code("b801000000c3");
	also_returns = place_code("b802000000c3");
	make_keys();
	make_calls();
	make_hooks();
	make_changes();
	for (int i = 0; i < rounds; i++)
		run_subjects(i);
	need(pthread_create(&thread, NULL, run_them, NULL) == 0, "thread");
	for (int i = 0; i < rounds; i++)
		run_changes();
	atomic_store(&ended, true);
	need(pthread_join(thread, NULL) == 0, "join");
	need(!execmem_key_check(key_off) && !execmem_key_check(key_on) && !execmem_key_check(key_many), "law");
	need(!execmem_call_check(call_near) && !execmem_call_check(call_site) && !execmem_hook_check(hook), "law");
	return 0;
}
