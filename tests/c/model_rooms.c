/* model_rooms: domains of the model: opened with all that hardens them, limited, sealed and closed. */
#include "model_state.h"

#include <sys/uio.h>
#include <unistd.h>

enum { GUARD = 64 << 10, SEALED_BYTES = 16 << 20 };

static int sealed;

/* ---- what is always true of one ---- */

/* Whether a byte can be read, without a fault. */
static bool is_readable(uint64_t address)
{
	char byte;
	struct iovec to = {&byte, 1}, from = {(void *)(uintptr_t)address, 1};

	return process_vm_readv(getpid(), &to, 1, &from, 1, 0) == 1;
}

static void expect_guards(const struct room *r)
{
	const execmem_header *h = execmem_domain_ledger(r->d);
	uint64_t end = h->window + (uint64_t)h->packs_max * EXECMEM_PACK_SIZE;

	if (getenv("EXECMEM_TEST_SHORT")) /* memcheck takes the question for a mistake */
		return;
	EXPECT(is_readable((uintptr_t)h));
	EXPECT(!is_readable(h->window - 1) && !is_readable(h->window - GUARD));
	EXPECT(!is_readable(end) && !is_readable(end + GUARD - 1));
}

static void expect_sealed(const struct room *r)
{
	const execmem_header *h = execmem_domain_ledger(r->d);

	EXPECT((h->sealed != EXECMEM_SEALED_NOT) == r->sealed && h->trust == r->trust);
	EXPECT(!r->code || test_call(r->code) == r->result);
}

void model_expect_room(int room)
{
	EXPECT_LAWFUL(model.rooms[room].d);
	model_expect_counts(room);
	model_waiting_expect_blank(room);
	expect_guards(&model.rooms[room]);
	expect_sealed(&model.rooms[room]);
}

/* ---- opening, limits ---- */

/* Modes are drawn, and stand in inputs that are kept: where a CPU cannot have pkey, alias stands in for it. */
int model_possible_mode(int mode)
{
	static int keys; /* 1: there are some; -1: none */

	if (!keys)
		keys = execmem_probe(EXECMEM_MODE_PKEY) == EXECMEM_EUNSUPPORTED ? -1 : 1; /* before any call is made to fail */
	return mode == EXECMEM_MODE_PKEY && keys < 0 ? EXECMEM_MODE_ALIAS : mode;
}

/* Half of all domains have a quarantine, gaps or a trust class of their own; five bits say which. */
static void draw_hardening(uint32_t drawn, uint32_t above, execmem_options *o)
{
	static const uint64_t quarantines[] = {0, 4 << 10, 64 << 10, 512 << 10};
	static const uint32_t gaps[] = {0, 200, 2048, 64 << 10};

	if (drawn < 16)
		return;
	o->quarantine = quarantines[drawn % 4];
	o->gap = gaps[drawn / 4 % 4];
	o->trust = drawn % 3 == 0 || above + drawn > EXECMEM_TRUST_MAX ? above : above + drawn;
}

void model_open_room(void)
{
	static const uint64_t windows[] = {0, 64 << 20, 2 << 20, 8 << 20}, limits[] = {0, 0, 64 << 10, 3 << 20};
	int at = 1, parent = model_draw_room();
	int mode = model_possible_mode(model.o.mode ? model.o.mode : (int)model_draw(EXECMEM_MODES));
	uint32_t window = model_draw(4), limit = model_draw(4), drawn = model_draw(256), extra = drawn % 8;
	execmem_options o = {.name = "model", .parent = model.rooms[parent].d, .write_mode = mode};
	execmem_domain *d = NULL;
	struct room *r;
	int err;

	while (at < DOMAINS && model.rooms[at].open)
		at++;
	if (at == DOMAINS)
		return;
	o.window = windows[window];
	o.limit = limits[limit];
	o.small_pages = extra == 1;
	o.near_address = extra == 2 ? (uintptr_t)&execmem_free : 0;
	o.fallback = 1;
	draw_hardening(drawn / 8, model.rooms[parent].trust, &o);
	err = execmem_domain_open(&o, &d);
	if (err < 0) {
		EXPECT(!d);
		model_expect_systems(err, 0);
		return;
	}
	r = &model.rooms[at];
	*r = (struct room){.d = d, .open = true, .parent = parent, .tight = window >= 1, .limit = o.limit, .quarantine = o.quarantine};
	r->mode = (int)execmem_domain_ledger(d)->write_mode;
	r->trust = o.trust ? o.trust : model.rooms[parent].trust;
	model_expect_room(at);
}

void model_set_limit(void)
{
	int room = model_draw_room();
	struct room *r = &model.rooms[room];
	uint64_t limit = model_charged(room) + model_draw(256) * 512;
	int err;

	if (room == 0 || model_draw(2))
		limit = 0;
	err = execmem_domain_limit(r->d, limit ? limit : UINT64_MAX);
	EXPECT(err == (r->sealed ? EXECMEM_ESEALED : 0));
	if (err == 0)
		r->limit = limit;
	EXPECT(execmem_domain_ledger(r->d)->limit == (r->limit ? r->limit : UINT64_MAX));
}

/* ---- sealing ---- */

/* A function, which is called as long as there is the domain. It is one of its blocks like others. */
static void place_code(int room)
{
	struct room *r = &model.rooms[room];
	struct thing *t = model_free_slot();
	uint32_t result = (uint8_t)model.seals | 0x070700;
	uint8_t code[TEST_CODE];
	void *out = NULL;
	int err;

	if (!t)
		return;
	test_code(code, result);
	err = execmem_place(r->d, EXECMEM_TEXT, code, sizeof code, 16, NULL, &out);
	if (err < 0) {
		model_expect_refusal(err, room, EXECMEM_CHUNK);
		return;
	}
	model_waiting_expect_fresh(room, out, EXECMEM_CHUNK);
	model_enter_thing(t, room, EXECMEM_TEXT, out, sizeof code, NULL);
	memcpy(t->bytes, code, sizeof code);
	r->code = out;
	r->result = result;
	model_expect_counts(room);
}

/* No pack is kept for blocks to come. */
static void expect_no_empty_pack(const struct room *r)
{
	const execmem_header *h = execmem_domain_ledger(r->d);
	const execmem_pack *packs = (const execmem_pack *)((const char *)h + h->packs_offset);

	for (uint32_t i = 0; i < h->packs_top; i++)
		EXPECT(packs[i].state == EXECMEM_PACK_ABSENT || packs[i].state == EXECMEM_PACK_SPAN_TAIL || packs[i].blocks > 0);
}

/* The shadow looks at a few blocks of a sealed domain only, or there would soon be no others. */
static void watch_few(int room)
{
	int left = WATCHED;

	for (int i = 0; i < BLOCKS; i++) {
		struct thing *t = &model.things[i];

		if (!t->address || t->room != room || t->address == model.rooms[room].code)
			continue;
		model_expect_bytes(t);
		if (left-- <= 0)
			model_forget_thing(t);
	}
}

static void seal(int room)
{
	struct room *r = &model.rooms[room];
	execmem_stats stats;
	int err;

	place_code(room);
	err = execmem_domain_seal(r->d);
	if (err < 0) { /* the writable alias could not be unmapped */
		EXPECT(r->mode == EXECMEM_MODE_ALIAS || r->mode == EXECMEM_MODE_PKEY);
		model_expect_systems(err, r->mode);
		model_waiting_lose_track(room);
		r->code = NULL; /* it can be freed like others */
		model_expect_counts(room);
		EXPECT(execmem_domain_ledger(r->d)->sealed == EXECMEM_SEALED_NOT);
		return;
	}
	r->sealed = true;
	for (int i = room; i > 0; i = model.rooms[i].parent)
		model.rooms[i].pinned = true;
	model.seals++;
	sealed++;
	model_waiting_expect_given_up(room);
	expect_no_empty_pack(r);
	EXPECT(execmem_domain_stats(r->d, &stats) == 0);
	EXPECT(stats.sealed >= EXECMEM_SEALED_LIBRARY && stats.sealed <= EXECMEM_SEALED_KERNEL);
	EXPECT(model.scripted || getenv("EXECMEM_TEST_SHORT") || stats.sealed > EXECMEM_SEALED_LIBRARY || !model_census_can_seal());
	EXPECT(stats.quarantined_blocks == 0 && stats.live_blocks == r->live + r->lost - r->retired);
	watch_few(room);
	model_live_forget(room); /* it stays as it is for good */
	model_expect_counts(room);
	EXPECT(execmem_domain_seal(r->d) == 0); /* it is */
}

int model_sealed(void)
{
	return sealed;
}

/* What is sealed stays until the process ends, so that not much of it may be. */
void model_seal_room(int room)
{
	const struct room *r = &model.rooms[room];

	if (r->sealed)
		EXPECT(execmem_domain_seal(r->d) == 0);
	else if (room > 0 && model.seals < model.o.seals && r->used <= SEALED_BYTES && model_census_has_room())
		seal(room);
}

/* ---- closing ---- */

static bool has_children(int room)
{
	for (int i = 0; i < DOMAINS; i++)
		if (i != room && model.rooms[i].open && model.rooms[i].parent == room)
			return true;
	return false;
}

static void forget_room(int room)
{
	for (int i = 0; i < DOMAINS; i++)
		if (i != room && model.rooms[i].open && model.rooms[i].parent == room)
			forget_room(i);
	for (int i = 0; i < BLOCKS; i++)
		if (model.things[i].address && model.things[i].room == room)
			model_leave_thing(&model.things[i]);
	model_live_forget(room);
	model_waiting_forget(room);
	memmove(model.stale + 1, model.stale, sizeof model.stale - sizeof model.stale[0]);
	model.stale[0] = model.rooms[room].d;
	model.rooms[room].open = false;
	model.freed.address = NULL;
}

/* A sealed domain is watched no more, but for what is seen from afar. */
static void retire_room(int room)
{
	struct room *r = &model.rooms[room];

	model_expect_room(room);
	for (int i = 0; i < BLOCKS; i++)
		if (model.things[i].address && model.things[i].room == room) {
			model_expect_bytes(&model.things[i]);
			model_forget_thing(&model.things[i]);
		}
	model.rooms[r->parent].kept_used += r->used + r->lost_used + r->kept_used;
	model_census_keep(r);
	model_waiting_forget(room);
	r->open = false;
	model.freed.address = NULL;
}

void model_close_room(void)
{
	int room = model_draw_room();
	bool force = model_draw(2), children = has_children(room);
	const struct room *r = &model.rooms[room];
	int err = execmem_domain_close(r->d, force);

	if (room > 0 && r->pinned) { /* nothing of it went, not a child either */
		EXPECT(err == EXECMEM_ESEALED);
		for (int i = 0; i < DOMAINS; i++)
			if (model.rooms[i].open)
				model_expect_counts(i);
		if (r->sealed && !children && force)
			retire_room(room);
		return;
	}
	if (room == 0 || (!force && (children || r->live + r->lost > 0))) {
		EXPECT(err == EXECMEM_EBUSY);
		model_expect_counts(room);
		return;
	}
	EXPECT(err == 0);
	forget_room(room);
}

void model_end_room(int room)
{
	struct room *r = &model.rooms[room];

	EXPECT_LAWFUL(r->d);
	if (!r->pinned) {
		EXPECT(execmem_domain_close(r->d, 1) == 0);
		forget_room(room);
		return;
	}
	EXPECT(execmem_domain_close(r->d, 1) == EXECMEM_ESEALED);
	for (int i = 1; i < DOMAINS; i++)
		if (i != room && model.rooms[i].open && model.rooms[i].parent == room)
			model_end_room(i);
	if (!r->sealed)
		seal(room);
	if (!r->sealed) { /* it was refused */
		model_stop_failures();
		seal(room);
		EXPECT(r->sealed);
	}
	retire_room(room);
}
