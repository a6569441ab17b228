/* model_live: code that is changed as if it ran, and blocks that are freed when no thread can be inside. Two threads take turns, each may be
 * online; what is promised: a retired block is nobody's and stays as it is until each thread that was online then has said that it is
 * outside, and they go in the order in which they came.
 */
#include "model_state.h"

enum { LONGEST = 15 };

/* Not where each refusal takes a second. */
static bool can_stop(const struct thing *t)
{
	return TEST_STOPS_THREADS || model.rooms[t->room].mode != EXECMEM_MODE_FLIP;
}

static bool ever_online; /* some thread of this process */

/* ---- changing an instruction ---- */

static size_t instruction_length(void)
{
#if defined(__x86_64__)
	return 5;
#else
	return 4;
#endif
}

/* A refused change leaves the old instruction, or says that it could not put it back. */
static void expect_unchanged(struct thing *t, uint32_t from, size_t len)
{
	if (memcmp(t->address + from, t->bytes + from, len) != 0) {
		EXPECT(model.scripted && strstr(execmem_error_text(), "be put back"));
		memcpy(t->bytes + from, t->address + from, len);
	}
	model_expect_bytes(t);
}

static void poke(struct thing *t, uint32_t from, const uint8_t *old, const uint8_t *new, size_t len)
{
	const struct room *r = &model.rooms[t->room];
	int err = execmem_poke(t->address + from, old, new, len);

	if (r->sealed) {
		EXPECT(err == EXECMEM_ESEALED);
	} else if (err == 0) {
		memcpy(t->bytes + from, new, len);
	} else {
		model_expect_systems(err, r->mode);
		expect_unchanged(t, from, len);
	}
	model_expect_bytes(t);
}

/* What no system is asked for. */
static void poke_wrongly(struct thing *t, uint32_t from, const uint8_t *old, const uint8_t *new, size_t len)
{
	const struct room *r = &model.rooms[t->room];
	const execmem_poke_site twice[2] = {{t->address + from, old, new, len}, {t->address + from + 2, old, new, len}};
	uint8_t other[LONGEST];
	uint32_t which = model_draw(5);

	memcpy(other, old, len);
	other[len - 1] ^= 1;
	if (r->sealed)
		EXPECT(execmem_poke(t->address + from, old, new, len) == EXECMEM_ESEALED);
	else if (which == 0)
		EXPECT(execmem_poke(t->address + from, other, new, len) == EXECMEM_ECHANGED);
	else if (which == 1)
		EXPECT(execmem_poke(t->address + t->size - 2, old, new, len) == EXECMEM_EBOUNDS);
	else if (which == 2)
		EXPECT(execmem_poke(t->address + from, old, new, 0) == EXECMEM_EINVAL);
	else if (which == 3)
		EXPECT(execmem_poke_batch(twice, 2) == EXECMEM_EINVAL && execmem_error_index() == 1);
	else
		EXPECT(execmem_poke(t->address + from, old, NULL, len) == EXECMEM_EINVAL);
	model_expect_bytes(t);
}

void model_live_poke(void)
{
	struct thing *t = model_draw_thing();
	uint32_t from = model_draw(65536), over = 8 + 4 * model_draw(8), what = model_draw(4);
	size_t len = instruction_length();
	uint8_t none[LONGEST], jump[LONGEST];
	int err;

	if (!t || t->kind != EXECMEM_TEXT || t->size < 64 || !can_stop(t))
		return;

	from = from % (t->size - 48) / 4 * 4; /* on an instruction of any CPU, across lines too */
	EXPECT(execmem_encode(EXECMEM_INSN_NOP, t->address + from, NULL, none, len) == 0);
	EXPECT(execmem_encode(EXECMEM_INSN_JUMP, t->address + from, t->address + from + over, jump, len) == 0);
	if (!model.rooms[t->room].sealed) {
		err = execmem_fill(t->address + from, none, len);
		if (err < 0) {
			model_expect_systems(err, model.rooms[t->room].mode);
			model_adopt_blank(t, from, len);
			return;
		}
		memcpy(t->bytes + from, none, len);
	}
	if (what == 3) {
		poke_wrongly(t, from, none, jump, len);
		return;
	}
	poke(t, from, none, jump, len);
	if (what == 2 && memcmp(t->bytes + from, jump, len) == 0)
		poke(t, from, jump, none, len);
}

/* ---- who is inside ---- */

static void is_outside(int thread)
{
	for (int i = 0; i < model.retired; i++)
		model.gone[i].late[thread] = false;
}

void model_live_offline(void)
{
	int self = model.elsewhere;

	while (model.online[self] > 0) {
		EXPECT(execmem_thread_is_online() == 1 && execmem_thread_offline() == 0);
		model.online[self]--;
	}
	EXPECT(execmem_thread_is_online() == 0 && execmem_thread_offline() == EXECMEM_EINVAL);
	is_outside(self);
}

static void turn_online(void)
{
	int self = model.elsewhere, err;

	if (model.online[self] > 2)
		return;
	err = execmem_thread_online();
	if (err < 0) {
		EXPECT(model.scripted);
		return;
	}
	model.online[self]++;
	ever_online = true;
}

static void pass(void)
{
	execmem_quiescent();
	if (model.online[model.elsewhere] == 1)
		is_outside(model.elsewhere);
}

/* ---- retiring ---- */

static void drop(int at)
{
	model.spans -= model.gone[at].thing.size > EXECMEM_PACK_SIZE;
	free(model.gone[at].thing.bytes);
	memmove(model.gone + at, model.gone + at + 1, (size_t)(model.retired - at - 1) * sizeof model.gone[0]);
	model.retired--;
}

void model_live_forget(int room)
{
	for (int i = model.retired; i-- > 0;)
		if (model.gone[i].thing.room == room)
			drop(i);
}

/* Where each would go if it were freed now. */
static void note_shards(void)
{
	for (int i = 0; i < model.retired; i++)
		model.gone[i].shard = model_waiting_shard(model.gone[i].thing.room, model.gone[i].thing.address);
}

/* The oldest went: nobody may have been inside. */
static void take_over_oldest(void)
{
	struct thing *t = &model.gone[0].thing;
	struct room *r = &model.rooms[t->room];

	EXPECT(!model.gone[0].late[0] && !model.gone[0].late[1]);
	model_waiting_add(t->room, model.gone[0].shard, t);
	r->live--;
	r->live_bytes -= t->size;
	r->used -= model_rounded(t->size);
	r->retired--;
	r->retired_bytes -= t->size;
	drop(0);
}

/* After a call that frees what is due. */
static void follow(void)
{
	execmem_retirement all;
	execmem_shard sum;

	while (model.retired > 0) {
		struct thing *oldest = &model.gone[0].thing;

		EXPECT(execmem_domain_count(model.rooms[oldest->room].d, &sum) == 0);
		if (sum.retired_blocks == model.rooms[oldest->room].retired) {
			model_adopt_blank(oldest, 0, oldest->size); /* it was refused, or its turn has not come */
			break;
		}
		take_over_oldest();
	}
	for (int i = 0; i < DOMAINS; i++)
		if (model.rooms[i].open)
			model_expect_counts(i);
	EXPECT(execmem_retire_count(&all) == 0 && all.waiting >= (uint64_t)model.retired);
	EXPECT(execmem_retire_check() == NULL);
}

static void poll(void)
{
	int err;

	note_shards();
	err = execmem_retire_poll();
	if (err < 0) {
		EXPECT(model.retired > 0);
		model_expect_systems(err, model.rooms[model.gone[0].thing.room].mode);
	}
	follow();
	/* A fence that was refused makes a period last. */
	if (err == 0 && !model.online[0] && !model.online[1] && model_failures() == 0 && !model.scripted)
		EXPECT(model.retired == 0);
}

static void expect_nobodys(const struct thing *t, uint32_t inside)
{
	execmem_info info;

	EXPECT(execmem_free(t->address) == EXECMEM_EFREED && execmem_retire(t->address) == EXECMEM_EFREED);
	EXPECT(execmem_fill(t->address + inside % t->size, model_source, 1) == EXECMEM_EFREED);
	EXPECT(execmem_find(t->address + inside % t->size, &info) == EXECMEM_EFREED);
	model_expect_bytes(t);
}

static void retire(struct thing *t)
{
	struct room *r = &model.rooms[t->room];
	struct retired *place = &model.gone[model.retired];
	bool in = model_draw(2);
	int err;

	if (!ever_online) {
		EXPECT(execmem_retire(t->address) == EXECMEM_EINVAL);
		return;
	}
	if (model.retired == RETIRED)
		return;
	note_shards();
	*place = (struct retired){.thing = *t, .late = {model.online[0] > 0, model.online[1] > 0}};
	place->shard = model_waiting_shard(t->room, t->address);
	err = in ? execmem_retire_in(r->d, t->address) : execmem_retire(t->address);
	if (r->sealed) {
		EXPECT(err == EXECMEM_ESEALED);
	} else if (err < 0) {
		EXPECT(err == EXECMEM_ENOMEM);
		model_expect_systems(err, r->mode);
	} else {
		model.retired++;
		r->retired++;
		r->retired_bytes += t->size;
		model.freed = *t;
		t->address = t->bytes = NULL;
	}
	follow();
}

/* One of what has to do with who is inside. */
void model_live_retire(void)
{
	uint32_t what = model_draw(16);
	struct thing *t = what >= 8 ? model_draw_thing() : NULL;

	if (what < 2)
		turn_online();
	else if (what == 2)
		model_live_offline();
	else if (what < 5)
		pass();
	else if (what < 7)
		poll();
	else if (what == 7 && model.retired > 0)
		expect_nobodys(&model.gone[model_draw(256) % (uint32_t)model.retired].thing, model_draw(65536));
	else if (t && can_stop(t))
		retire(t);
}

/* Both threads are offline, and nothing fails any more. */
void model_live_settle(void)
{
	int err;

	do {
		note_shards();
		err = execmem_retire_wait(1000);
		follow();
	} while (err == EXECMEM_EBUSY && model.retired > 0 && model.rooms[model.gone[0].thing.room].mode == EXECMEM_MODE_FLIP);
	EXPECT(err == 0 && model.retired == 0);
}

void model_live_expect(void)
{
	for (int i = 0; i < model.retired; i++)
		model_expect_bytes(&model.gone[i].thing);
}
