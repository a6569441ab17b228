/* model_waiting: what is promised of a quarantine of N bytes: a freed block is nobody's until more than N bytes, its own among them, were
 * freed in its shard since; it is blank, and to free it again is refused. All of it is given up only for a block that finds the window full.
 */
#include "model_state.h"

static const uint8_t zeros[1 << 16];
static uint8_t traps[1 << 16];

int model_waiting_shard(int room, const void *address)
{
	const execmem_header *h = execmem_domain_ledger(model.rooms[room].d);
	const execmem_pack *packs = (const execmem_pack *)((const char *)h + h->packs_offset);

	return packs[((uintptr_t)address - h->window) / EXECMEM_PACK_SIZE].shard;
}

static void push(struct queue *q, struct waiting w)
{
	if (q->to == q->room && q->from > 0) {
		memmove(q->all, q->all + q->from, (q->to - q->from) * sizeof w);
		q->to -= q->from;
		q->from = 0;
	}
	if (q->to * 2 >= q->room) {
		q->room = q->room * 2 + 64;
		q->all = realloc(q->all, q->room * sizeof w);
		EXPECT(q->all);
	}
	q->all[q->to++] = w;
	q->bytes += w.bytes;
}

void model_waiting_add(int room, int shard, const struct thing *freed)
{
	struct room *r = &model.rooms[room];
	struct queue *q = &r->waiting[shard];
	struct waiting w = {.address = freed->address, .bytes = (uint32_t)model_rounded(freed->size), .kind = freed->kind};

	if (w.bytes > r->quarantine || freed->size > EXECMEM_PACK_SIZE)
		return; /* it is not kept, and drives nothing out */
	push(q, w);
	while (q->bytes > r->quarantine)
		q->bytes -= q->all[q->from++].bytes;
}

static void clear(struct room *r)
{
	for (int i = 0; i < EXECMEM_SHARDS_MAX; i++) {
		r->waiting[i].from = r->waiting[i].to = 0;
		r->waiting[i].bytes = 0;
	}
}

void model_waiting_lose_track(int room)
{
	clear(&model.rooms[room]);
	model.rooms[room].unsure = model.rooms[room].quarantine != 0;
}

void model_waiting_forget(int room)
{
	struct room *r = &model.rooms[room];

	for (int i = 0; i < EXECMEM_SHARDS_MAX; i++) {
		free(r->waiting[i].all);
		r->waiting[i] = (struct queue){0};
	}
	r->unsure = false;
}

void model_waiting_expect_given_up(int room)
{
	execmem_shard sum;

	EXPECT(execmem_domain_count(model.rooms[room].d, &sum) == 0);
	EXPECT(sum.quarantined_blocks == 0 && sum.quarantined_bytes == 0);
	clear(&model.rooms[room]);
	model.rooms[room].unsure = false;
}

void model_waiting_expect_fresh(int room, const void *address, uint64_t bytes)
{
	struct room *r = &model.rooms[room];
	const uint8_t *start = address;
	execmem_shard sum;

	if (!r->quarantine)
		return;
	EXPECT(execmem_domain_count(r->d, &sum) == 0);
	if (r->tight && sum.quarantined_blocks == 0)
		model_waiting_expect_given_up(room);
	for (int i = 0; i < EXECMEM_SHARDS_MAX; i++)
		for (size_t at = r->waiting[i].from; at < r->waiting[i].to; at++)
			EXPECT(start + bytes <= r->waiting[i].all[at].address ||
			       start >= r->waiting[i].all[at].address + r->waiting[i].all[at].bytes);
}

void model_waiting_expect_counts(int room, const execmem_shard *sum)
{
	struct room *r = &model.rooms[room];
	uint64_t blocks = 0, bytes = 0;

	for (int i = 0; i < EXECMEM_SHARDS_MAX; i++) {
		blocks += r->waiting[i].to - r->waiting[i].from;
		bytes += r->waiting[i].bytes;
	}
	if (r->unsure && sum->quarantined_blocks == blocks)
		r->unsure = false;
	EXPECT(r->unsure ? sum->quarantined_blocks > blocks : sum->quarantined_blocks == blocks);
	EXPECT(r->unsure ? sum->quarantined_bytes > bytes : sum->quarantined_bytes == bytes);
	EXPECT(sum->quarantined_bytes <= r->quarantine * EXECMEM_SHARDS_MAX);
}

static void expect_blank(const struct waiting *w)
{
	if (!traps[0])
		model_blank(traps, EXECMEM_TEXT, 0, sizeof traps);
	for (uint32_t done = 0, part; done < w->bytes; done += part) {
		part = w->bytes - done < sizeof zeros ? w->bytes - done : (uint32_t)sizeof zeros;
		EXPECT(memcmp(w->address + done, w->kind == EXECMEM_TEXT ? traps : zeros, part) == 0);
	}
}

void model_waiting_expect_blank(int room)
{
	const struct room *r = &model.rooms[room];

	for (int i = 0; i < EXECMEM_SHARDS_MAX; i++)
		for (size_t at = r->waiting[i].from; at < r->waiting[i].to; at++)
			expect_blank(&r->waiting[i].all[at]);
}

/* One that waits, chosen by a number; NULL: none does. */
static const struct waiting *choose(uint32_t drawn, int *room)
{
	for (uint32_t i = 0; i < DOMAINS * EXECMEM_SHARDS_MAX; i++) {
		uint32_t place = (drawn + i) % (DOMAINS * EXECMEM_SHARDS_MAX);
		const struct queue *q = &model.rooms[place / EXECMEM_SHARDS_MAX].waiting[place % EXECMEM_SHARDS_MAX];

		*room = (int)(place / EXECMEM_SHARDS_MAX);
		if (model.rooms[*room].open && q->to > q->from)
			return &q->all[q->from + drawn % (q->to - q->from)];
	}
	return NULL;
}

void model_waiting_free_again(uint32_t drawn)
{
	int room;
	const struct waiting *w = choose(drawn, &room);
	execmem_domain *d = model.rooms[room].d;
	uint64_t one, offsets[2] = {0, 1};
	execmem_info info;

	if (!w)
		return;
	one = (uintptr_t)w->address;
	EXPECT(execmem_free(w->address) == EXECMEM_EFREED && execmem_free_in(d, w->address) == EXECMEM_EFREED);
	EXPECT(execmem_fill(w->address + w->bytes - 1, model_source, 1) == EXECMEM_EFREED);
	EXPECT(execmem_find(w->address, &info) == EXECMEM_EFREED);
	EXPECT(execmem_free_many(d, 1, &one) == EXECMEM_EFREED && execmem_error_index() == 0);
	EXPECT(execmem_fill_many(d, 1, &one, model_source, offsets) == EXECMEM_EFREED && execmem_error_index() == 0);
	expect_blank(w);
	model_expect_counts(room);
}
