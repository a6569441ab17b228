/* model: see model.h. Every draw is taken from the input in one order, so the same bytes are the same operations. */
#include "arch.h"
#include "model_state.h"

#include <malloc.h>
#include <pthread.h>
#include <unistd.h>

struct model_state model;
uint8_t model_source[BIGGEST + 256];
static uint8_t traps[256];
static long failures;
static char script[256];

/* ---- draws ---- */

uint8_t model_draw8(void)
{
	if (model.o.bytes)
		return model.at < model.o.len ? model.o.bytes[model.at++] : 0;
	return (uint8_t)(test_random(&model.random) >> 32);
}

uint32_t model_draw(uint32_t below) /* 0 .. below - 1, below up to 65,536 */
{
	uint32_t value = model_draw8();

	if (below > 256)
		value = value << 8 | model_draw8();
	return value % below;
}

static bool exhausted(void)
{
	return model.o.bytes && model.at >= model.o.len;
}

static uint32_t draw_size(void)
{
	uint32_t dice = model_draw(64);

	if (dice < 40)
		return 1 + model_draw(700);
	if (dice < 60 || model.o.small)
		return 1 + model_draw(9000);
	if (dice < 63 || model.spans >= SPANS)
		return 1 + model_draw(250) * 1000;
	return 1 + model_draw(BIGGEST / 1024 - 1) * 1024 + model_draw(256);
}

int model_draw_room(void)
{
	int at = (int)model_draw(DOMAINS);

	while (!model.rooms[at].open)
		at = (at + 1) % DOMAINS;
	return at;
}

struct thing *model_draw_thing(void)
{
	uint32_t at = model_draw(BLOCKS);

	for (uint32_t i = 0; i < BLOCKS; i++)
		if (model.things[(at + i) % BLOCKS].address)
			return &model.things[(at + i) % BLOCKS];
	return NULL;
}

struct thing *model_free_slot(void)
{
	for (uint32_t i = 0; i < BLOCKS; i++)
		if (!model.things[i].address)
			return &model.things[i];
	return NULL;
}

/* ---- what is expected ---- */

uint64_t model_rounded(uint64_t size)
{
	uint64_t unit = size > EXECMEM_PACK_SIZE ? 4096 : EXECMEM_CHUNK;

	return (size + unit - 1) / unit * unit;
}

void model_blank(uint8_t *to, int kind, uint64_t phase, uint64_t len)
{
	for (uint64_t i = 0; i < len; i++)
		to[i] = kind == EXECMEM_TEXT ? traps[(phase + i) % 64] : 0;
}

void model_expect_bytes(const struct thing *t)
{
	EXPECT(memcmp(t->address, t->bytes, t->size) == 0);
}

/* After a refused write or free: each byte of the range is as it was, or all of the range is blank. */
void model_adopt_blank(struct thing *t, uint64_t from, uint64_t len)
{
	if (memcmp(t->address + from, t->bytes + from, len) != 0)
		model_blank(t->bytes + from, t->kind, from, len);
	model_expect_bytes(t);
}

uint64_t model_charged(int room)
{
	uint64_t sum = model.rooms[room].used + model.rooms[room].lost_used + model.rooms[room].kept_used;

	for (int i = 0; i < DOMAINS; i++)
		if (i != room && model.rooms[i].open && model.rooms[i].parent == room)
			sum += model_charged(i);
	return sum;
}

static bool limit_allows(int room, uint64_t bytes)
{
	for (; room >= 0; room = model.rooms[room].parent)
		if (model.rooms[room].limit && model_charged(room) + bytes > model.rooms[room].limit)
			return false;
	return true;
}

/* A code that right arguments can give when a system call fails. */
bool model_is_systems(int err)
{
	return err == EXECMEM_ENOMEM || err == EXECMEM_EDENIED || err == EXECMEM_ESYSTEM || err == EXECMEM_EUNSUPPORTED ||
	       err == EXECMEM_EWINDOW || err == EXECMEM_EBUSY;
}

/* Whether the system may have refused this; mode flip cannot always stop a thread in time. */
void model_expect_systems(int err, int mode)
{
	EXPECT(execmem_error_text()[0]);
	if (model.scripted)
		EXPECT(model_is_systems(err));
	else
		EXPECT(mode == EXECMEM_MODE_FLIP && err == EXECMEM_EBUSY);
}

/* Of a block, or of a batch. What was begun and undone may have gone through the quarantine. */
void model_expect_refusal(int err, int room, uint64_t bytes)
{
	const struct room *r = &model.rooms[room];
	const execmem_header *h = execmem_domain_ledger(r->d);

	if (err == EXECMEM_ELIMIT) {
		EXPECT(!limit_allows(room, bytes));
		return;
	}
	if (err == EXECMEM_EWINDOW && r->tight) {
		EXPECT(execmem_error_text()[0]);
		if (!model.scripted && bytes > (uint64_t)h->packs_max * EXECMEM_PACK_SIZE)
			return; /* what can never fit is no reason to give the quarantine up */
	} else {
		model_expect_systems(err, r->mode);
	}
	model_waiting_lose_track(room);
}

void model_expect_counts(int room)
{
	const struct room *r = &model.rooms[room];
	execmem_shard sum;

	EXPECT(execmem_domain_count(r->d, &sum) == 0);
	EXPECT(sum.allocs - sum.frees == r->live + r->lost);
	EXPECT(sum.live_bytes == r->live_bytes + r->lost_bytes && sum.used_bytes == r->used + r->lost_used);
	EXPECT(sum.retired_blocks == r->retired && sum.retired_bytes == r->retired_bytes);
	model_waiting_expect_counts(room, &sum);
}

/* A batch that failed may have lost blocks, where calls can fail. */
void model_count_lost(int room)
{
	struct room *r = &model.rooms[room];
	execmem_shard sum;

	EXPECT(execmem_domain_count(r->d, &sum) == 0);
	EXPECT(model.scripted || sum.allocs - sum.frees == r->live + r->lost);
	r->lost = sum.allocs - sum.frees - r->live;
	r->lost_bytes = sum.live_bytes - r->live_bytes;
	r->lost_used = sum.used_bytes - r->used;
	EXPECT(r->lost < 1u << 20 && (r->lost > 0) == (r->lost_used > 0) && r->lost_bytes <= r->lost_used);
}

static void expect_all(void)
{
	for (int i = 0; i < DOMAINS; i++)
		if (model.rooms[i].open)
			model_expect_room(i);
	for (int i = 0; i < BLOCKS; i++)
		if (model.things[i].address)
			model_expect_bytes(&model.things[i]);
	model_live_expect();
}

/* ---- the shadow's books ---- */

void model_enter_thing(struct thing *t, int room, int kind, void *address, uint32_t size, const char *name)
{
	struct room *r = &model.rooms[room];

	*t = (struct thing){.address = address, .size = size, .room = room, .kind = kind, .bytes = malloc(size)};
	EXPECT(t->bytes);
	snprintf(t->name, sizeof t->name, "%s", name ? name : "");
	r->live++;
	r->live_bytes += size;
	r->used += model_rounded(size);
	model.spans += size > EXECMEM_PACK_SIZE;
}

void model_leave_thing(struct thing *t)
{
	struct room *r = &model.rooms[t->room];

	r->live--;
	r->live_bytes -= t->size;
	r->used -= model_rounded(t->size);
	model.freed = *t;
	model_forget_thing(t);
}

void model_forget_thing(struct thing *t)
{
	model.spans -= t->size > EXECMEM_PACK_SIZE;
	free(t->bytes);
	t->address = t->bytes = NULL;
}

/* Counts a block that was freed, from a shard. */
static void bury_thing(struct thing *t, int shard)
{
	model_waiting_add(t->room, shard, t);
	model_leave_thing(t);
}

/* ---- one block ---- */

static const char *draw_name(void)
{
	static const char *const names[] = {"short", "a name that takes more than one cell", ""};
	uint32_t at = model_draw(12);

	return at < 3 ? names[at] : NULL;
}

static void make_thing(bool place)
{
	int room = model_draw_room(), kind = model_draw(6) ? EXECMEM_TEXT : (int)model_draw(EXECMEM_KINDS);
	uint32_t size = draw_size(), align_log = model_draw(32);
	size_t align = align_log <= 12 ? (size_t)1 << align_log : 16;
	const char *name = draw_name();
	const uint8_t *src = model_source + model_draw(256);
	struct thing *t = model_free_slot();
	void *out = NULL;
	int err;

	if (!t)
		return;
	err = place ? execmem_place(model.rooms[room].d, kind, src, size, align, name, &out)
	            : execmem_alloc_in(model.rooms[room].d, kind, size, align, name, &out);
	if (model.rooms[room].sealed) {
		EXPECT(err == EXECMEM_ESEALED && !out);
	} else if (err < 0) {
		EXPECT(!out);
		model_expect_refusal(err, room, model_rounded(size));
		if (err == EXECMEM_EWINDOW && !model.scripted && model.rooms[room].unsure)
			model_waiting_expect_given_up(room); /* rather than refuse */
	} else {
		model_waiting_expect_fresh(room, out, model_rounded(size));
		EXPECT((uintptr_t)out % align == 0 && limit_allows(room, model_rounded(size)));
		model_enter_thing(t, room, kind, out, size, name);
		if (place)
			memcpy(t->bytes, src, size);
		else
			model_blank(t->bytes, kind, 0, size);
		model_expect_bytes(t);
	}
	model_expect_counts(room);
}

static void fill_thing(void)
{
	struct thing *t = model_draw_thing();
	const uint8_t *src = model_source + model_draw(256);
	uint32_t from, len;
	int err;

	if (!t)
		return;
	from = model_draw(65536) % t->size;
	len = 1 + model_draw(65536) % (t->size - from);
	err = execmem_fill(t->address + from, src, len);
	if (model.rooms[t->room].sealed) {
		EXPECT(err == EXECMEM_ESEALED);
		if (t->kind == EXECMEM_DATA) { /* which the program writes to as before */
			memcpy(t->address + from, src, len);
			memcpy(t->bytes + from, src, len);
		}
		model_expect_bytes(t);
	} else if (err == 0) {
		memcpy(t->bytes + from, src, len);
		model_expect_bytes(t);
	} else {
		model_expect_systems(err, model.rooms[t->room].mode);
		model_adopt_blank(t, from, len);
	}
}

static void free_thing(void)
{
	struct thing *t = model_draw_thing();
	bool in = model_draw(2);
	int err, room, shard;

	if (!t)
		return;
	room = t->room;
	shard = model_waiting_shard(room, t->address);
	model_expect_bytes(t);
	err = in ? execmem_free_in(model.rooms[room].d, t->address) : execmem_free(t->address);
	if (model.rooms[room].sealed) {
		EXPECT(err == EXECMEM_ESEALED);
		model_expect_bytes(t);
	} else if (err == 0) {
		bury_thing(t, shard);
	} else {
		model_expect_systems(err, model.rooms[room].mode);
		model_adopt_blank(t, 0, t->size);
	}
	model_expect_counts(room);
}

static void expect_found(const struct thing *t, uint32_t inside)
{
	execmem_info info;

	EXPECT(execmem_find(t->address + inside % t->size, &info) == 0);
	EXPECT(info.address == (uintptr_t)t->address && info.size == t->size && info.kind == (uint32_t)t->kind);
	EXPECT(info.rounded == model_rounded(t->size) && strcmp(info.name, t->name) == 0);
}

static void find_thing(void)
{
	const struct thing *t = model_draw_thing();

	if (t)
		expect_found(t, model_draw(65536));
}

/* Seals a domain, frees again what waits in a quarantine, or looks. */
static void harden(void)
{
	const struct thing *t = model_draw_thing();
	uint32_t value = t ? model_draw(65536) : 0, room = value / 8 % DOMAINS;

	if (!t)
		return;
	if (value % 8 == 0 && model.rooms[room].open)
		model_seal_room((int)room);
	else if (value % 8 < 3)
		model_waiting_free_again(value / 8);
	else
		expect_found(t, value);
}

/* ---- batches ---- */

/* The shadow takes a batch over, and frees again what there are no slots for. */
static void enter_many(int room, int kind, uint32_t count, const uint64_t *sizes, const uint64_t *offsets, const uint64_t *out)
{
	struct room *r = &model.rooms[room];

	for (uint32_t i = 0; i < count; i++)
		model_waiting_expect_fresh(room, (void *)(uintptr_t)out[i], model_rounded(sizes[i]));
	for (uint32_t i = 0; i < count; i++) {
		struct thing spill = {0}, *slot = model_free_slot(), *t = slot ? slot : &spill;
		int err, shard;

		model_enter_thing(t, room, kind, (void *)(uintptr_t)out[i], (uint32_t)sizes[i], NULL);
		if (offsets)
			memcpy(t->bytes, model_source + offsets[i], sizes[i]);
		else
			model_blank(t->bytes, kind, 0, sizes[i]);
		model_expect_bytes(t);
		if (slot)
			continue;
		shard = model_waiting_shard(room, t->address);
		err = execmem_free(t->address);
		if (err == 0) {
			bury_thing(t, shard);
			continue;
		}
		model_expect_systems(err, r->mode);
		r->lost++;
		r->lost_bytes += sizes[i];
		r->lost_used += model_rounded(sizes[i]);
		model_leave_thing(t);
	}
}

static void make_many(bool place)
{
	uint64_t offsets[BATCH + 1] = {0}, sizes[BATCH], out[BATCH], bytes = 0;
	int room = model_draw_room(), kind = model_draw(8) ? EXECMEM_TEXT : (int)model_draw(EXECMEM_KINDS);
	uint32_t count = model_draw(BATCH + 1), span = 1 + model_draw(3000);
	const struct room *r = &model.rooms[room];
	int err;

	if (room == 0 && model.scripted) /* what is lost stays until its domain closes, and the root never does */
		return;
	for (uint32_t i = 0; i < count; i++) {
		sizes[i] = 1 + model_draw(256) * span / 256;
		offsets[i + 1] = offsets[i] + sizes[i];
		bytes += model_rounded(sizes[i]);
	}
	err = place ? execmem_place_many(r->d, kind, count, model_source, offsets, 16, NULL, out)
	            : execmem_alloc_many(r->d, kind, count, sizes, 16, NULL, out);
	if (r->sealed) {
		EXPECT(err == EXECMEM_ESEALED || count == 0);
	} else if (err < 0) {
		model_expect_refusal(err, room, bytes);
		model_waiting_lose_track(room); /* what it took it freed again */
		model_count_lost(room);
	} else {
		EXPECT(limit_allows(room, bytes));
		enter_many(room, kind, count, sizes, place ? offsets : NULL, out);
	}
	model_expect_counts(room);
}

/* Live blocks of one domain, in the order of their slots. */
static uint32_t pick_many(int room, struct thing *picked[BATCH], uint64_t addresses[BATCH])
{
	uint32_t most = model_draw(BATCH + 1), skip = model_draw(4), count = 0;

	for (uint32_t i = 0; i < BLOCKS && count < most; i += 1 + (skip ? i % skip : 0))
		if (model.things[i].address && model.things[i].room == room) {
			picked[count] = &model.things[i];
			addresses[count++] = (uintptr_t)model.things[i].address;
		}
	return count;
}

static void fill_many(void)
{
	struct thing *picked[BATCH];
	uint64_t addresses[BATCH], offsets[BATCH + 1] = {0};
	int room = model_draw_room();
	uint32_t count = pick_many(room, picked, addresses), share = 1 + model_draw(4);
	int err;

	for (uint32_t i = 0; i < count; i++)
		if (picked[i]->size > 20000)
			return;
	for (uint32_t i = 0; i < count; i++)
		offsets[i + 1] = offsets[i] + picked[i]->size / share;
	err = execmem_fill_many(model.rooms[room].d, count, addresses, model_source, offsets);
	if (model.rooms[room].sealed && count > 0) {
		EXPECT(err == EXECMEM_ESEALED && execmem_error_index() == 0);
		return;
	}
	if (err < 0)
		model_expect_systems(err, model.rooms[room].mode);
	for (uint32_t i = 0; i < count; i++) {
		uint32_t done = err == 0 ? count : (uint32_t)execmem_error_index();

		if (i < done)
			memcpy(picked[i]->bytes, model_source + offsets[i], offsets[i + 1] - offsets[i]);
		else if (i == done)
			model_adopt_blank(picked[i], 0, offsets[i + 1] - offsets[i]);
		model_expect_bytes(picked[i]);
	}
}

static void free_many(void)
{
	struct thing *picked[BATCH];
	uint64_t addresses[BATCH];
	int room = model_draw_room(), shards[BATCH], err;
	uint32_t count = pick_many(room, picked, addresses), done = count;

	for (uint32_t i = 0; i < count; i++)
		shards[i] = model_waiting_shard(room, picked[i]->address);
	err = execmem_free_many(model.rooms[room].d, count, addresses);
	if (model.rooms[room].sealed && count > 0) {
		EXPECT(err == EXECMEM_ESEALED && execmem_error_index() == 0);
		done = 0;
	} else if (err < 0) {
		model_expect_systems(err, model.rooms[room].mode);
		done = (uint32_t)execmem_error_index();
	}
	for (uint32_t i = 0; i < count; i++)
		if (i < done)
			bury_thing(picked[i], shards[i]);
		else if (model.rooms[room].sealed)
			model_expect_bytes(picked[i]);
		else
			model_adopt_blank(picked[i], 0, picked[i]->size);
	model_expect_counts(room);
}

/* ---- failures ---- */

static void set_script(void)
{
	static const char *const calls[] = {"any",      "any",  "any",    "memfd",   "resize", "discard",  "write",
	                                    "reserve",  "view", "unview", "protect", "hide",   "collapse", "scan",
	                                    "populate", "maps", "random", "stop",    "seal",   "fseal",    "key"};
	static const char *const errors[] = {"", "", "", ":ENOMEM", ":EACCES", ":EIO", ":EAGAIN", ":EINVAL", ":ENOSYS"};
	const char *call = calls[model_draw(sizeof calls / sizeof calls[0])],
			   *error = errors[model_draw(sizeof errors / sizeof errors[0])];
	uint32_t first = model_draw(40), next = model_draw(8), often = model_draw(12);
	size_t at;

	if (model.o.faults != MODEL_FAULTS_DRAWN)
		return;
	model.scripted = model_draw(4) != 0;
	at = (size_t)snprintf(script, sizeof script, "%s=%u.F%u.%s", call, first, next, often == 0 ? "F*" : often < 5 ? "F" : ".");
	for (uint32_t i = 1; often >= 3 && i < 20; i++) /* and on, at uneven steps */
		at += (size_t)snprintf(script + at, sizeof script - at, "%u.F", (first + 3) * i % 29 + next);
	snprintf(script + at, sizeof script - at, "%s", error);
	failures += execmem_test_script(model.scripted ? script : NULL);
}

void model_stop_failures(void)
{
	failures += execmem_test_script(NULL);
	model.scripted = false;
}

long model_failures(void)
{
	return failures;
}

/* ---- the run ---- */

static void expect_stats(const struct room *r)
{
	execmem_stats stats;

	EXPECT(execmem_domain_stats(r->d, &stats) == 0);
	EXPECT(stats.live_blocks == r->live + r->lost - r->retired && stats.trust == r->trust);
	EXPECT(stats.retired_blocks == r->retired && stats.retired_bytes == r->retired_bytes);
	EXPECT((stats.sealed != EXECMEM_SEALED_NOT) == r->sealed && (stats.quarantined_blocks == 0 || r->quarantine));
}

enum { GO_OFFLINE = 32 }; /* an operation that is not drawn */

/* Of one block, or with blocks that run. */
static void step_on_block(uint32_t op)
{
	if (op == GO_OFFLINE)
		model_live_offline();
	else if (op < 19)
		fill_thing();
	else if (op < 21)
		make_thing(false);
	else if (op < 26)
		make_thing(true);
	else if (op == 26)
		model_live_poke();
	else if (op == 27)
		model_live_retire();
	else
		free_thing();
}

static void step(uint32_t op)
{
	switch (op) {
	case 0:
		model_open_room();
		break;
	case 1:
		model_close_room();
		break;
	case 2:
		model_set_limit();
		break;
	case 3:
		make_many(true);
		break;
	case 4:
		make_many(false);
		break;
	case 5:
		fill_many();
		break;
	case 6:
	case 7:
		free_many();
		break;
	case 8:
		model_wrong_requests();
		break;
	case 9:
		model_wrong_addresses();
		break;
	case 10:
		model_wrong_free_again();
		break;
	case 11:
		model_wrong_closed();
		break;
	case 12:
		find_thing();
		break;
	case 13:
		harden();
		break;
	case 14:
		expect_stats(&model.rooms[model_draw_room()]);
		break;
	case 15:
		set_script();
		break;
	default:
		step_on_block(op);
		break;
	}
}

/* A second thread, with shards of its own; it and the first take turns. */
static struct {
	pthread_mutex_t lock;
	pthread_cond_t turned;
	bool started, mine;
	uint32_t op;
	pid_t process;
} other = {.lock = PTHREAD_MUTEX_INITIALIZER, .turned = PTHREAD_COND_INITIALIZER};

static void *run_other(void *unused)
{
	pthread_mutex_lock(&other.lock);
	for (;;) {
		while (!other.mine)
			pthread_cond_wait(&other.turned, &other.lock);
		step(other.op);
		other.mine = false;
		pthread_cond_broadcast(&other.turned);
	}
	return unused;
}

static void step_elsewhere(uint32_t op)
{
	pthread_t thread;

	if (other.process != getpid()) { /* the first time, in this process */
		EXPECT(pthread_create(&thread, NULL, run_other, NULL) == 0 && pthread_detach(thread) == 0);
		other.process = getpid();
	}
	pthread_mutex_lock(&other.lock);
	other.op = op;
	other.mine = model.elsewhere = true;
	pthread_cond_broadcast(&other.turned);
	while (other.mine)
		pthread_cond_wait(&other.turned, &other.lock);
	model.elsewhere = false;
	pthread_mutex_unlock(&other.lock);
}

static void start(const struct model_options *o)
{
	uint64_t lost[3] = {model.rooms[0].lost, model.rooms[0].lost_bytes, model.rooms[0].lost_used};

	mallopt(M_ARENA_MAX, 1); /* the C library's own reservations would be counted for ours */
	memset(&model, 0, sizeof model);
	model.o = *o;
	model.random = o->seed * 0x9E3779B97F4A7C15u + 1;
	model.scripted = o->faults == MODEL_FAULTS_GIVEN;
	for (size_t i = 0; !model_source[1] && i < sizeof model_source; i++)
		model_source[i] = (uint8_t)(i * 7 + i / 251);
	em_arch_host()->fill_traps(traps, sizeof traps);
	model.rooms[0] = (struct room){.d = execmem_domain_root(), .open = true, .parent = -1};
	EXPECT(model.rooms[0].d);
	model.rooms[0].mode = (int)execmem_domain_ledger(model.rooms[0].d)->write_mode;
	model.rooms[0].lost = lost[0];
	model.rooms[0].lost_bytes = lost[1];
	model.rooms[0].lost_used = lost[2];
}

/* What is left in the root must go, and does when nothing fails any more. */
static void free_for_sure(const struct thing *t)
{
	int err = execmem_free(t->address);

	if (err == 0)
		return;
	model_expect_systems(err, model.rooms[t->room].mode);
	if (t->room != 0)
		return;
	failures += execmem_test_script(NULL);
	while ((err = execmem_free(t->address)) == EXECMEM_EBUSY)
		;
	EXPECT(err == 0);
}

/* The caller's script counts on: what fails while everything is closed is part of it. */
static void finish(void)
{
	if (model.o.faults == MODEL_FAULTS_DRAWN)
		model_stop_failures();
	expect_all();
	model_live_offline();
	step_elsewhere(GO_OFFLINE);
	EXPECT(execmem_domain_limit(model.rooms[0].d, UINT64_MAX) == 0);
	for (int i = 0; i < BLOCKS; i++) {
		struct thing *t = &model.things[i];

		if (!t->address || model.rooms[t->room].pinned)
			continue;
		free_for_sure(t);
		model_leave_thing(t);
	}
	for (int i = 0; i < DOMAINS; i++)
		if (i > 0 && model.rooms[i].open && model.rooms[i].parent == 0)
			model_end_room(i);
	model_stop_failures();
	model_live_settle();
	EXPECT_LAWFUL(model.rooms[0].d);
	model_expect_counts(0);
	model_census_expect_kept();
}

long model_run(const struct model_options *options)
{
	long done = 0;

	(void)model_possible_mode(0);
	(void)model_census_can_seal();
	start(options);
	while (!exhausted() && (options->operations == 0 || done < options->operations)) {
		uint8_t byte = model_draw8();

		if (byte >> 5 == 7)
			step_elsewhere(byte % 32);
		else
			step(byte % 32);
		done++;
		if (options->check_every && done % options->check_every == 0)
			expect_all();
	}
	finish();
	return done;
}

void model_replay(const uint8_t *bytes, size_t len)
{
	struct model_options o = {.bytes = bytes + 1, .len = len - 1, .faults = MODEL_FAULTS_DRAWN, .check_every = 8, .seals = 2};

	if (len < 2)
		return;
	o.mode = bytes[0] % 8 < EXECMEM_MODES ? bytes[0] % 8 : 0;
	if (bytes[0] & 8)
		o.faults = MODEL_FAULTS_NONE;
	o.small = bytes[0] & 16;
	model_run(&o);
}
