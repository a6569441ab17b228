/* model: see model.h. Every draw is taken from the input in one order, so the same bytes are the same operations. */
#include "model.h"
#include "arch.h"
#include "test.h"

#include <malloc.h>
#include <pthread.h>
#include <unistd.h>

enum { DOMAINS = 6, BLOCKS = 192, BATCH = 48, STALE = 4, BIGGEST = 5 << 20, SPANS = 2 };

struct room { /* a domain; the first is the root */
	execmem_domain *d;
	bool open;
	int parent;
	int mode;
	bool tight;   /* a small window, which may be full */
	uint64_t limit;
	uint64_t live, live_bytes, used; /* what the shadow has in it */
	uint64_t lost, lost_bytes, lost_used; /* blocks of a batch that could neither be completed nor made blank again */
};

struct thing { /* a block */
	uint8_t *address; /* NULL: the slot is free */
	uint8_t *bytes;
	uint32_t size;
	int room, kind;
	char name[40];
};

static struct {
	struct model_options o;
	size_t at;
	uint64_t random;
	bool scripted; /* a call may fail */
	struct room rooms[DOMAINS];
	struct thing things[BLOCKS];
	execmem_domain *stale[STALE];
	struct thing freed; /* the last one: address, room */
	int spans;
} m;

static uint8_t source[BIGGEST + 256];
static uint8_t traps[256];
static long failures;
static char script[256];

/* ---- draws ---- */

static uint8_t draw8(void)
{
	if (m.o.bytes)
		return m.at < m.o.len ? m.o.bytes[m.at++] : 0;
	return (uint8_t)(test_random(&m.random) >> 32);
}

static uint32_t draw(uint32_t below) /* 0 .. below - 1, below up to 65,536 */
{
	uint32_t value = draw8();

	if (below > 256)
		value = value << 8 | draw8();
	return value % below;
}

static bool exhausted(void)
{
	return m.o.bytes && m.at >= m.o.len;
}

static uint32_t draw_size(void)
{
	uint32_t dice = draw(64);

	if (dice < 40)
		return 1 + draw(700);
	if (dice < 60 || m.o.small)
		return 1 + draw(9000);
	if (dice < 63 || m.spans >= SPANS)
		return 1 + draw(250) * 1000;
	return 1 + draw(BIGGEST / 1024 - 1) * 1024 + draw(256);
}

static int draw_room(void)
{
	int at = (int)draw(DOMAINS);

	while (!m.rooms[at].open)
		at = (at + 1) % DOMAINS;
	return at;
}

/* A live block; NULL: there is none. */
static struct thing *draw_thing(void)
{
	uint32_t at = draw(BLOCKS);

	for (uint32_t i = 0; i < BLOCKS; i++)
		if (m.things[(at + i) % BLOCKS].address)
			return &m.things[(at + i) % BLOCKS];
	return NULL;
}

static struct thing *free_slot(void)
{
	for (uint32_t i = 0; i < BLOCKS; i++)
		if (!m.things[i].address)
			return &m.things[i];
	return NULL;
}

/* ---- what is expected ---- */

static uint64_t rounded(uint64_t size)
{
	uint64_t unit = size > EXECMEM_PACK_SIZE ? 4096 : EXECMEM_CHUNK;

	return (size + unit - 1) / unit * unit;
}

static void blank(uint8_t *to, int kind, uint64_t phase, uint64_t len)
{
	for (uint64_t i = 0; i < len; i++)
		to[i] = kind == EXECMEM_TEXT ? traps[(phase + i) % 64] : 0;
}

static void expect_bytes(const struct thing *t)
{
	EXPECT(memcmp(t->address, t->bytes, t->size) == 0);
}

/* After a refused write or free: each byte of the range is as it was, or all of the range is blank. */
static void adopt_blank(struct thing *t, uint64_t from, uint64_t len)
{
	if (memcmp(t->address + from, t->bytes + from, len) != 0)
		blank(t->bytes + from, t->kind, from, len);
	expect_bytes(t);
}

static uint64_t charged(int room)
{
	uint64_t sum = m.rooms[room].used + m.rooms[room].lost_used;

	for (int i = 0; i < DOMAINS; i++)
		if (i != room && m.rooms[i].open && m.rooms[i].parent == room)
			sum += charged(i);
	return sum;
}

static bool limit_allows(int room, uint64_t bytes)
{
	for (; room >= 0; room = m.rooms[room].parent)
		if (m.rooms[room].limit && charged(room) + bytes > m.rooms[room].limit)
			return false;
	return true;
}

/* A code that right arguments can give when a system call fails. */
static bool is_systems(int err)
{
	return err == EXECMEM_ENOMEM || err == EXECMEM_EDENIED || err == EXECMEM_ESYSTEM || err == EXECMEM_EUNSUPPORTED ||
	       err == EXECMEM_EWINDOW || err == EXECMEM_EBUSY;
}

/* Whether the system may have refused this; mode flip cannot always stop a thread in time. */
static void expect_systems(int err, int mode)
{
	EXPECT(execmem_error_text()[0]);
	if (m.scripted)
		EXPECT(is_systems(err));
	else
		EXPECT(mode == EXECMEM_MODE_FLIP && err == EXECMEM_EBUSY);
}

static void expect_refusal(int err, int room, uint64_t bytes)
{
	if (err == EXECMEM_ELIMIT)
		EXPECT(!limit_allows(room, bytes));
	else if (err == EXECMEM_EWINDOW && m.rooms[room].tight)
		EXPECT(execmem_error_text()[0]);
	else
		expect_systems(err, m.rooms[room].mode);
}

static void expect_counts(int room)
{
	const struct room *r = &m.rooms[room];
	execmem_shard sum;

	EXPECT(execmem_domain_count(r->d, &sum) == 0);
	EXPECT(sum.allocs - sum.frees == r->live + r->lost);
	EXPECT(sum.live_bytes == r->live_bytes + r->lost_bytes && sum.used_bytes == r->used + r->lost_used);
}

/* A batch that failed may have lost blocks, where calls can fail. */
static void count_lost(int room)
{
	struct room *r = &m.rooms[room];
	execmem_shard sum;

	EXPECT(execmem_domain_count(r->d, &sum) == 0);
	EXPECT(m.scripted || sum.allocs - sum.frees == r->live + r->lost);
	r->lost = sum.allocs - sum.frees - r->live;
	r->lost_bytes = sum.live_bytes - r->live_bytes;
	r->lost_used = sum.used_bytes - r->used;
	EXPECT(r->lost < 1u << 20 && (r->lost > 0) == (r->lost_used > 0) && r->lost_bytes <= r->lost_used);
}

static void expect_all(void)
{
	for (int i = 0; i < DOMAINS; i++)
		if (m.rooms[i].open) {
			EXPECT_LAWFUL(m.rooms[i].d);
			expect_counts(i);
		}
	for (int i = 0; i < BLOCKS; i++)
		if (m.things[i].address)
			expect_bytes(&m.things[i]);
}

/* ---- the shadow's books ---- */

static void enter_thing(struct thing *t, int room, int kind, void *address, uint32_t size, const char *name)
{
	struct room *r = &m.rooms[room];

	*t = (struct thing){.address = address, .size = size, .room = room, .kind = kind, .bytes = malloc(size)};
	EXPECT(t->bytes);
	snprintf(t->name, sizeof t->name, "%s", name ? name : "");
	r->live++;
	r->live_bytes += size;
	r->used += rounded(size);
	m.spans += size > EXECMEM_PACK_SIZE;
}

static void leave_thing(struct thing *t)
{
	struct room *r = &m.rooms[t->room];

	r->live--;
	r->live_bytes -= t->size;
	r->used -= rounded(t->size);
	m.spans -= t->size > EXECMEM_PACK_SIZE;
	free(t->bytes);
	m.freed = *t;
	t->address = t->bytes = NULL;
}

/* ---- domains ---- */

/* Modes are drawn, and stand in inputs that are kept: where a CPU cannot have pkey, alias stands in for it. */
static int possible_mode(int mode)
{
	static int keys; /* 1: there are some; -1: none */

	if (!keys)
		keys = execmem_probe(EXECMEM_MODE_PKEY) == EXECMEM_EUNSUPPORTED ? -1 : 1; /* before any call is made to fail */
	return mode == EXECMEM_MODE_PKEY && keys < 0 ? EXECMEM_MODE_ALIAS : mode;
}

static void open_room(void)
{
	static const uint64_t windows[] = {0, 64 << 20, 2 << 20, 8 << 20}, limits[] = {0, 0, 64 << 10, 3 << 20};
	int at = 1, parent = draw_room(), mode = possible_mode(m.o.mode ? m.o.mode : (int)draw(EXECMEM_MODES));
	uint32_t window = draw(4), limit = draw(4), extra = draw(8);
	execmem_options o = {.name = "model", .parent = m.rooms[parent].d, .write_mode = mode};
	execmem_domain *d = NULL;
	int err;

	while (at < DOMAINS && m.rooms[at].open)
		at++;
	if (at == DOMAINS)
		return;
	o.window = windows[window];
	o.limit = limits[limit];
	o.small_pages = extra == 1;
	o.near_address = extra == 2 ? (uintptr_t)&execmem_free : 0;
	o.fallback = 1;
	err = execmem_domain_open(&o, &d);
	if (err < 0) {
		EXPECT(!d);
		expect_systems(err, 0);
		return;
	}
	m.rooms[at] = (struct room){.d = d, .open = true, .parent = parent, .tight = window >= 1, .limit = o.limit};
	m.rooms[at].mode = (int)execmem_domain_ledger(d)->write_mode;
}

static void forget_room(int room)
{
	for (int i = 0; i < DOMAINS; i++)
		if (i != room && m.rooms[i].open && m.rooms[i].parent == room)
			forget_room(i);
	for (int i = 0; i < BLOCKS; i++)
		if (m.things[i].address && m.things[i].room == room)
			leave_thing(&m.things[i]);
	memmove(m.stale + 1, m.stale, sizeof m.stale - sizeof m.stale[0]);
	m.stale[0] = m.rooms[room].d;
	m.rooms[room].open = false;
	m.freed.address = NULL;
}

static void close_room(void)
{
	int room = draw_room();
	bool force = draw(2), children = false;
	const struct room *r = &m.rooms[room];
	int err;

	for (int i = 0; i < DOMAINS; i++)
		children |= i != room && m.rooms[i].open && m.rooms[i].parent == room;
	err = execmem_domain_close(r->d, force);
	if (room == 0 || (!force && (children || r->live + r->lost > 0))) {
		EXPECT(err == EXECMEM_EBUSY);
		expect_counts(room);
		return;
	}
	EXPECT(err == 0);
	forget_room(room);
}

static void set_limit(void)
{
	int room = draw_room();
	uint64_t limit = charged(room) + draw(256) * 512;

	if (room == 0 || draw(2))
		limit = 0;
	EXPECT(execmem_domain_limit(m.rooms[room].d, limit ? limit : UINT64_MAX) == 0);
	m.rooms[room].limit = limit;
}

/* ---- one block ---- */

static const char *draw_name(void)
{
	static const char *const names[] = {"short", "a name that takes more than one cell", ""};
	uint32_t at = draw(12);

	return at < 3 ? names[at] : NULL;
}

static void make_thing(bool place)
{
	int room = draw_room(), kind = draw(6) ? EXECMEM_TEXT : (int)draw(EXECMEM_KINDS);
	uint32_t size = draw_size(), align_log = draw(32);
	size_t align = align_log <= 12 ? (size_t)1 << align_log : 16;
	const char *name = draw_name();
	const uint8_t *src = source + draw(256);
	struct thing *t = free_slot();
	void *out = NULL;
	int err;

	if (!t)
		return;
	err = place ? execmem_place(m.rooms[room].d, kind, src, size, align, name, &out)
	            : execmem_alloc_in(m.rooms[room].d, kind, size, align, name, &out);
	if (err < 0) {
		EXPECT(!out);
		expect_refusal(err, room, rounded(size));
	} else {
		EXPECT((uintptr_t)out % align == 0 && limit_allows(room, rounded(size)));
		enter_thing(t, room, kind, out, size, name);
		if (place)
			memcpy(t->bytes, src, size);
		else
			blank(t->bytes, kind, 0, size);
		expect_bytes(t);
	}
	expect_counts(room);
}

static void fill_thing(void)
{
	struct thing *t = draw_thing();
	const uint8_t *src = source + draw(256);
	uint32_t from, len;
	int err;

	if (!t)
		return;
	from = draw(65536) % t->size;
	len = 1 + draw(65536) % (t->size - from);
	err = execmem_fill(t->address + from, src, len);
	if (err == 0) {
		memcpy(t->bytes + from, src, len);
		expect_bytes(t);
	} else {
		expect_systems(err, m.rooms[t->room].mode);
		adopt_blank(t, from, len);
	}
}

static void free_thing(void)
{
	struct thing *t = draw_thing();
	bool in = draw(2);
	int err, room;

	if (!t)
		return;
	room = t->room;
	expect_bytes(t);
	err = in ? execmem_free_in(m.rooms[room].d, t->address) : execmem_free(t->address);
	if (err == 0) {
		leave_thing(t);
	} else {
		expect_systems(err, m.rooms[room].mode);
		adopt_blank(t, 0, t->size);
	}
	expect_counts(room);
}

static void find_thing(void)
{
	struct thing *t = draw_thing();
	execmem_info info;

	if (!t)
		return;
	EXPECT(execmem_find(t->address + draw(65536) % t->size, &info) == 0);
	EXPECT(info.address == (uintptr_t)t->address && info.size == t->size && info.kind == (uint32_t)t->kind);
	EXPECT(info.rounded == rounded(t->size) && strcmp(info.name, t->name) == 0);
}

/* ---- batches ---- */

static void make_many(bool place)
{
	uint64_t offsets[BATCH + 1] = {0}, sizes[BATCH], out[BATCH], bytes = 0;
	int room = draw_room(), kind = draw(8) ? EXECMEM_TEXT : (int)draw(EXECMEM_KINDS);
	uint32_t count = draw(BATCH + 1), span = 1 + draw(3000);
	struct room *r = &m.rooms[room];
	int err;

	if (room == 0 && m.scripted) /* what is lost stays until its domain closes, and the root never does */
		return;
	for (uint32_t i = 0; i < count; i++) {
		sizes[i] = 1 + draw(256) * span / 256;
		offsets[i + 1] = offsets[i] + sizes[i];
		bytes += rounded(sizes[i]);
	}
	err = place ? execmem_place_many(r->d, kind, count, source, offsets, 16, NULL, out)
	            : execmem_alloc_many(r->d, kind, count, sizes, 16, NULL, out);
	if (err < 0) {
		expect_refusal(err, room, bytes);
		count_lost(room);
	} else {
		EXPECT(limit_allows(room, bytes));
		for (uint32_t i = 0; i < count; i++) {
			struct thing spill = {0}, *t = free_slot();

			enter_thing(t ? t : &spill, room, kind, (void *)(uintptr_t)out[i], (uint32_t)sizes[i], NULL);
			t = t ? t : &spill;
			if (place)
				memcpy(t->bytes, source + offsets[i], sizes[i]);
			else
				blank(t->bytes, kind, 0, sizes[i]);
			expect_bytes(t);
			if (t != &spill)
				continue;
			err = execmem_free(t->address); /* more than there are slots */
			if (err < 0) {
				expect_systems(err, r->mode);
				r->lost++;
				r->lost_bytes += sizes[i];
				r->lost_used += rounded(sizes[i]);
			}
			leave_thing(&spill);
		}
	}
	expect_counts(room);
}

/* Live blocks of one domain, in the order of their slots. */
static uint32_t pick_many(int room, struct thing *picked[BATCH], uint64_t addresses[BATCH])
{
	uint32_t most = draw(BATCH + 1), skip = draw(4), count = 0;

	for (uint32_t i = 0; i < BLOCKS && count < most; i += 1 + (skip ? i % skip : 0))
		if (m.things[i].address && m.things[i].room == room) {
			picked[count] = &m.things[i];
			addresses[count++] = (uintptr_t)m.things[i].address;
		}
	return count;
}

static void fill_many(void)
{
	struct thing *picked[BATCH];
	uint64_t addresses[BATCH], offsets[BATCH + 1] = {0};
	int room = draw_room();
	uint32_t count = pick_many(room, picked, addresses), share = 1 + draw(4);
	int err;

	for (uint32_t i = 0; i < count; i++)
		if (picked[i]->size > 20000)
			return;
	for (uint32_t i = 0; i < count; i++)
		offsets[i + 1] = offsets[i] + picked[i]->size / share;
	err = execmem_fill_many(m.rooms[room].d, count, addresses, source, offsets);
	if (err < 0)
		expect_systems(err, m.rooms[room].mode);
	for (uint32_t i = 0; i < count; i++) {
		uint32_t done = err == 0 ? count : (uint32_t)execmem_error_index();

		if (i < done)
			memcpy(picked[i]->bytes, source + offsets[i], offsets[i + 1] - offsets[i]);
		else if (i == done)
			adopt_blank(picked[i], 0, offsets[i + 1] - offsets[i]);
		expect_bytes(picked[i]);
	}
}

static void free_many(void)
{
	struct thing *picked[BATCH];
	uint64_t addresses[BATCH];
	int room = draw_room();
	uint32_t count = pick_many(room, picked, addresses), done = count;
	int err = execmem_free_many(m.rooms[room].d, count, addresses);

	if (err < 0) {
		expect_systems(err, m.rooms[room].mode);
		done = (uint32_t)execmem_error_index();
	}
	for (uint32_t i = 0; i < count; i++)
		if (i < done)
			leave_thing(picked[i]);
		else
			adopt_blank(picked[i], 0, picked[i]->size);
	expect_counts(room);
}

/* ---- what is wrong ---- */

static void wrong_requests(void)
{
	int room = draw_room(), which = (int)draw(12);
	execmem_domain *d = m.rooms[room].d, *none = NULL;
	uint64_t two[3] = {0, 100, 50}, out[2] = {7, 7};
	char name[300];
	void *at = NULL;

	memset(name, 'n', sizeof name);
	name[draw(2) ? 256 : 299] = '\0';
	switch (which) {
	case 0:
		EXPECT(execmem_alloc_in(d, 0, draw(2) ? 0 : SIZE_MAX - draw(256), 16, NULL, &at) == EXECMEM_EINVAL);
		break;
	case 1:
		EXPECT(execmem_alloc_in(d, 0, 1 + draw(256), draw(2) ? 0 : 3 + 2 * draw(9000), NULL, &at) == EXECMEM_EINVAL);
		break;
	case 2:
		EXPECT(execmem_place(d, draw(2) ? -1 : 3 + (int)draw(256), source, 9, 16, NULL, &at) == EXECMEM_EINVAL);
		break;
	case 3:
		EXPECT(execmem_alloc_in(d, 0, 9, 16, name, &at) == EXECMEM_EINVAL);
		break;
	case 4:
		EXPECT(execmem_place(d, 0, NULL, 9, 16, NULL, &at) == EXECMEM_EINVAL);
		break;
	case 5:
		EXPECT(execmem_alloc_in(d, 0, 9, 16, NULL, NULL) == EXECMEM_EINVAL);
		break;
	case 6:
		EXPECT(execmem_place_many(d, 0, 2, source, two, 16, NULL, out) == EXECMEM_EINVAL && execmem_error_index() == 1);
		break;
	case 7:
		EXPECT(execmem_place_many(d, 0, SIZE_MAX, NULL, two, 16, NULL, out) == EXECMEM_EINVAL);
		break;
	case 8:
		EXPECT(execmem_fill_many(d, 2, out, source, two) < 0 && execmem_free_many(d, SIZE_MAX / 8, NULL) < 0);
		break;
	case 9:
		EXPECT(execmem_domain_open(&(execmem_options){.window = 1 + draw(65536)}, &none) == EXECMEM_EINVAL && !none);
		break;
	case 10:
		EXPECT(execmem_domain_open(&(execmem_options){.name = name}, &none) == EXECMEM_EINVAL && !none);
		break;
	default:
		EXPECT(execmem_domain_open(&(execmem_options){.write_mode = -1 - (int)draw(256)}, &none) < 0 && !none);
		break;
	}
	EXPECT(!at);
	if (which != 6) /* there the first element may have been taken, and lost on the way back */
		expect_counts(room);
	else
		count_lost(room);
}

static void wrong_addresses(void)
{
	struct thing *t = draw_thing(), *other = draw_thing();
	uint64_t twice[2], far;
	uint32_t inside = draw(65536);
	execmem_domain *d;

	EXPECT(execmem_free(NULL) == EXECMEM_EFOREIGN && execmem_fill(&far, source, 1) == EXECMEM_EFOREIGN);
	if (!t)
		return;
	d = m.rooms[t->room].d;
	far = rounded(t->size);
	inside = 1 + inside % (uint32_t)(far - 1);
	EXPECT(execmem_free(t->address + inside) == EXECMEM_EINTERIOR);
	EXPECT(execmem_free_in(d, t->address + inside) == EXECMEM_EINTERIOR);
	EXPECT(execmem_fill(t->address, source, t->size + 1ull) == EXECMEM_EBOUNDS);
	EXPECT(execmem_fill(t->address + t->size - 1, source, SIZE_MAX - inside) == EXECMEM_EBOUNDS);
	EXPECT(execmem_fill(t->address, NULL, 1) == EXECMEM_EINVAL);
	twice[0] = twice[1] = (uintptr_t)t->address;
	EXPECT(execmem_free_many(d, 2, twice) == EXECMEM_EFREED && execmem_error_index() == 1);
	twice[1] = (uintptr_t)t->address + inside;
	EXPECT(execmem_free_many(d, 2, twice) == EXECMEM_EINTERIOR && execmem_error_index() == 1);
	twice[1] = 1;
	EXPECT(execmem_free_many(d, 2, twice) == EXECMEM_EFOREIGN && execmem_error_index() == 1);
	if (other->room != t->room)
		EXPECT(execmem_free_in(d, other->address) == EXECMEM_EFOREIGN);
	expect_counts(t->room);
}

/* Frees again what was freed last, unless something else lies there by now. */
static void free_again(void)
{
	uint8_t *at = m.freed.address;
	int room = m.freed.room;

	if (!at || !m.rooms[room].open || m.rooms[room].lost > 0)
		return;
	for (int i = 0; i < BLOCKS; i++)
		if (m.things[i].address && at >= m.things[i].address && at < m.things[i].address + rounded(m.things[i].size))
			return;
	EXPECT(execmem_free(at) == EXECMEM_EFREED && execmem_fill(at, source, 1) == EXECMEM_EFREED);
	expect_counts(room);
}

static void use_closed(void)
{
	execmem_domain *d = m.stale[draw(STALE)], *none = NULL;
	uint64_t out[2], sizes[1] = {8};
	execmem_stats stats;
	void *at = NULL;

	if (!d)
		return;
	EXPECT(execmem_alloc_in(d, 0, 8, 16, NULL, &at) == EXECMEM_ECLOSED && execmem_free_in(d, source) == EXECMEM_ECLOSED);
	EXPECT(execmem_place(d, 0, source, 8, 16, NULL, &at) == EXECMEM_ECLOSED && !at);
	EXPECT(execmem_domain_close(d, (int)draw(2)) == EXECMEM_ECLOSED && execmem_domain_stats(d, &stats) == EXECMEM_ECLOSED);
	EXPECT(execmem_domain_limit(d, 5) == EXECMEM_ECLOSED && execmem_alloc_many(d, 0, 1, sizes, 16, NULL, out) == EXECMEM_ECLOSED);
	EXPECT(!execmem_domain_ledger(d) && execmem_domain_check(d));
	EXPECT(execmem_domain_open(&(execmem_options){.parent = d}, &none) == EXECMEM_ECLOSED && !none);
}

/* ---- failures ---- */

static void set_script(void)
{
	static const char *const calls[] = {"any",    "any",     "any",  "memfd",    "resize", "discard",  "write", "reserve", "view",
	                                    "unview", "protect", "hide", "collapse", "scan",   "populate", "maps",  "random",  "stop"};
	static const char *const errors[] = {"", "", "", ":ENOMEM", ":EACCES", ":EIO", ":EAGAIN", ":EINVAL", ":ENOSYS"};
	const char *call = calls[draw(sizeof calls / sizeof calls[0])], *error = errors[draw(sizeof errors / sizeof errors[0])];
	uint32_t first = draw(40), next = draw(8), often = draw(12);
	size_t at;

	if (m.o.faults != MODEL_FAULTS_DRAWN)
		return;
	m.scripted = draw(4) != 0;
	at = (size_t)snprintf(script, sizeof script, "%s=%u.F%u.%s", call, first, next, often == 0 ? "F*" : often < 5 ? "F" : ".");
	for (uint32_t i = 1; often >= 3 && i < 20; i++) /* and on, at uneven steps */
		at += (size_t)snprintf(script + at, sizeof script - at, "%u.F", (first + 3) * i % 29 + next);
	snprintf(script + at, sizeof script - at, "%s", error);
	failures += execmem_test_script(m.scripted ? script : NULL);
}

long model_failures(void)
{
	return failures;
}

/* ---- the run ---- */

static void step(uint32_t op)
{
	execmem_stats stats;

	switch (op) {
	case 0:
		open_room();
		break;
	case 1:
		close_room();
		break;
	case 2:
		set_limit();
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
		wrong_requests();
		break;
	case 9:
		wrong_addresses();
		break;
	case 10:
		free_again();
		break;
	case 11:
		use_closed();
		break;
	case 12:
	case 13:
		find_thing();
		break;
	case 14:
		EXPECT(execmem_domain_stats(m.rooms[draw_room()].d, &stats) == 0);
		break;
	case 15:
		set_script();
		break;
	case 16:
	case 17:
	case 18:
		fill_thing();
		break;
	case 19:
	case 20:
		make_thing(false);
		break;
	case 21:
	case 22:
	case 23:
	case 24:
	case 25:
		make_thing(true);
		break;
	default:
		free_thing();
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
	other.mine = true;
	pthread_cond_broadcast(&other.turned);
	while (other.mine)
		pthread_cond_wait(&other.turned, &other.lock);
	pthread_mutex_unlock(&other.lock);
}

static void start(const struct model_options *o)
{
	uint64_t lost[3] = {m.rooms[0].lost, m.rooms[0].lost_bytes, m.rooms[0].lost_used};

	mallopt(M_ARENA_MAX, 1); /* the C library's own reservations would be counted for ours */
	memset(&m, 0, sizeof m);
	m.o = *o;
	m.random = o->seed * 0x9E3779B97F4A7C15u + 1;
	m.scripted = o->faults == MODEL_FAULTS_GIVEN;
	for (size_t i = 0; !source[1] && i < sizeof source; i++)
		source[i] = (uint8_t)(i * 7 + i / 251);
	em_arch_host()->fill_traps(traps, sizeof traps);
	m.rooms[0] = (struct room){.d = execmem_domain_root(), .open = true, .parent = -1};
	EXPECT(m.rooms[0].d);
	m.rooms[0].mode = (int)execmem_domain_ledger(m.rooms[0].d)->write_mode;
	m.rooms[0].lost = lost[0];
	m.rooms[0].lost_bytes = lost[1];
	m.rooms[0].lost_used = lost[2];
}

/* The caller's script counts on: what fails while everything is closed is part of it. */
static void finish(void)
{
	if (m.o.faults == MODEL_FAULTS_DRAWN) {
		failures += execmem_test_script(NULL);
		m.scripted = false;
	}
	expect_all();
	EXPECT(execmem_domain_limit(m.rooms[0].d, UINT64_MAX) == 0);
	for (int i = 0; i < BLOCKS; i++) {
		struct thing *t = &m.things[i];
		int err = t->address ? execmem_free(t->address) : 0;

		if (err < 0 && t->room == 0) { /* it must go, and does when nothing fails any more */
			expect_systems(err, m.rooms[0].mode);
			failures += execmem_test_script(NULL);
			while ((err = execmem_free(t->address)) == EXECMEM_EBUSY)
				;
			EXPECT(err == 0);
		} else if (err < 0) {
			expect_systems(err, m.rooms[t->room].mode);
		}
		if (t->address)
			leave_thing(t);
	}
	for (int i = 1; i < DOMAINS; i++)
		if (m.rooms[i].open && m.rooms[i].parent == 0) {
			EXPECT_LAWFUL(m.rooms[i].d);
			EXPECT(execmem_domain_close(m.rooms[i].d, 1) == 0);
			forget_room(i);
		}
	failures += execmem_test_script(NULL);
	m.scripted = false;
	EXPECT_LAWFUL(m.rooms[0].d);
	expect_counts(0);
}

long model_run(const struct model_options *options)
{
	long done = 0;

	(void)possible_mode(0);
	start(options);
	while (!exhausted() && (options->operations == 0 || done < options->operations)) {
		uint8_t byte = draw8();

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
	struct model_options o = {.bytes = bytes + 1, .len = len - 1, .faults = MODEL_FAULTS_DRAWN, .check_every = 8};

	if (len < 2)
		return;
	o.mode = bytes[0] % 8 < EXECMEM_MODES ? bytes[0] % 8 : 0;
	if (bytes[0] & 8)
		o.faults = MODEL_FAULTS_NONE;
	o.small = bytes[0] & 16;
	model_run(&o);
}
