/* ledger: see ledger.h for the picture. Costs: a record or a name is a few loads and stores, whatever is live. */
#include "ledger.h"
#include "error.h"
#include "sys.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum {
	CELLS = EM_PAGE / EXECMEM_NAME_CELL, /* of one name page, the first is its header */
	NAME_PAGES_PER_PACK = EXECMEM_PACK_CHUNKS / CELLS + 1,
	/* The worst a growing group can leave behind: extents of every smaller class beside its own of 64 records. */
	RECORDS = EXECMEM_PACK_WORDS * (2 + 4 + 6 + 8 + 10 + 12 + 16 + 24 + 32 + 48 + 64),
	INDEX_STRIDE = (sizeof(struct em_index) * EXECMEM_KINDS + EM_PAGE - 1) / EM_PAGE * EM_PAGE,
	NAMES_KEPT = 64, /* pages of an unused name heap that are not worth a system call */
};

struct name_page { /* in cell 0 */
	uint64_t free[2]; /* bit: the cell is free */
	uint32_t next, previous; /* page number + 1 on the open list, 0: end */
	uint32_t reserved[2];
};
static_assert(sizeof(struct name_page) == EXECMEM_NAME_CELL, "the header is one cell");

struct name_cell {
	uint32_t next;
	char text[EXECMEM_NAME_CELL_TEXT];
};

static_assert(RECORDS / 2 <= UINT16_MAX, "a pair of records has 16 bits");

/* ---- layout ---- */

static uint64_t lay(uint64_t *at, uint64_t size)
{
	uint64_t here = *at;

	*at = em_round_up(here + size, EM_PAGE);
	return here;
}

static void set_layout(execmem_header *h, uint32_t packs_max)
{
	uint64_t at = EM_PAGE;

	h->packs_max = packs_max;
	h->shards_max = EXECMEM_SHARDS_MAX;
	h->events_max = EM_LEDGER_EVENTS;
	h->names_max = packs_max * NAME_PAGES_PER_PACK * CELLS;
	h->extents_at = offsetof(struct em_ledger_maps, extent);
	h->maps_stride = em_round_up(sizeof(struct em_ledger_maps), EM_PAGE);
	h->blocks_stride = em_round_up(RECORDS * sizeof(execmem_block), EM_PAGE);
	h->shards_offset = lay(&at, sizeof(execmem_shard) * EXECMEM_SHARDS_MAX);
	h->index_offset = lay(&at, INDEX_STRIDE * EXECMEM_SHARDS_MAX);
	h->packs_offset = lay(&at, sizeof(execmem_pack) * packs_max);
	h->events_offset = lay(&at, sizeof(execmem_event) * EM_LEDGER_EVENTS * EXECMEM_SHARDS_MAX);
	h->maps_offset = lay(&at, h->maps_stride * packs_max);
	h->blocks_offset = lay(&at, h->blocks_stride * packs_max);
	h->names_offset = lay(&at, (uint64_t)h->names_max * EXECMEM_NAME_CELL);
	h->ledger_size = at;
}

int em_ledger_open(struct em_ledger *ledger, const char *name, uint32_t packs_max)
{
	execmem_header layout = {.magic = "EXECMEM", .version = 3, .header_size = sizeof layout};
	char file[80];
	void *at;
	int err;

	*ledger = (struct em_ledger){.fd = -1};
	set_layout(&layout, packs_max);
	snprintf(file, sizeof file, "execmem-ledger:%.60s", name);
	/* Named shared memory, so that another process can watch. Where that is refused the library works without watchers. */
	if (em_sys_memfd(file, false, &ledger->fd) == 0 && em_sys_resize(ledger->fd, layout.ledger_size) < 0) {
		em_sys_close(ledger->fd);
		ledger->fd = -1;
	}
	(void)em_sys_file_resident(ledger->fd, &ledger->file_number);
	err = em_sys_map_table(layout.ledger_size, ledger->fd, &at);
	if (err < 0) {
		em_sys_close(ledger->fd);
		return em_error_system(err, "map the ledger");
	}
	ledger->header = at;
	layout.epoch_monotonic_ns = em_sys_monotonic_ns();
	layout.epoch_realtime_ns = em_sys_realtime_ns();
	layout.pid = em_sys_pid();
	snprintf(layout.name, sizeof layout.name, "%s", name);
	*ledger->header = layout;
	ledger->shards = (execmem_shard *)((uint8_t *)at + layout.shards_offset);
	ledger->index = (uint8_t *)at + layout.index_offset;
	ledger->packs = (execmem_pack *)((uint8_t *)at + layout.packs_offset);
	ledger->events = (execmem_event *)((uint8_t *)at + layout.events_offset);
	ledger->maps = (uint8_t *)at + layout.maps_offset;
	ledger->maps_stride = layout.maps_stride;
	ledger->blocks = (uint8_t *)at + layout.blocks_offset;
	ledger->blocks_stride = layout.blocks_stride;
	ledger->names = (uint8_t *)at + layout.names_offset;
	ledger->epoch_ms = em_sys_milliseconds();
	return 0;
}

void em_ledger_close(struct em_ledger *ledger)
{
	uint64_t size = ledger->header ? ledger->header->ledger_size : 0;

	if (size > 0 && em_sys_release(ledger->header, size) < 0)
		(void)em_sys_unview(ledger->header, size); /* its memory goes, if not its addresses */
	em_sys_close(ledger->fd);
	*ledger = (struct em_ledger){.fd = -1};
}

int em_ledger_copy(const struct em_ledger *ledger, int *out)
{
	uint64_t start, end = 0, number = 0;
	char file[80];
	int err;

	*out = -1;
	if (ledger->fd < 0)
		return 0;
	(void)em_sys_file_resident(ledger->fd, &number);
	if (number != ledger->file_number)
		return -EBADF; /* a daemon closed all its descriptors, and perhaps opened another file there */
	snprintf(file, sizeof file, "execmem-ledger:%.60s", ledger->header->name);
	err = em_sys_memfd(file, false, out);
	if (err == 0)
		err = em_sys_resize(*out, ledger->header->ledger_size);
	while (err == 0 && (err = em_sys_file_data(ledger->fd, end, &start, &end)) == 0) {
		size_t done;

		err = em_sys_write(*out, (const uint8_t *)ledger->header + start, end - start, start, &done);
	}
	if (err == -ENXIO)
		return 0;
	em_sys_close(*out);
	*out = -1;
	return err;
}

int em_ledger_become(struct em_ledger *ledger, int copy)
{
	int err = copy < 0 ? 0 : em_sys_view(ledger->header, ledger->header->ledger_size, EM_READ | EM_WRITE, copy, 0);

	if (err < 0) {
		em_sys_close(copy);
		return err;
	}
	if (copy >= 0) {
		em_sys_close(ledger->fd);
		ledger->fd = copy;
		(void)em_sys_file_resident(copy, &ledger->file_number);
	}
	ledger->header->pid = em_sys_pid();
	return 0;
}

uint64_t em_ledger_resident(const struct em_ledger *ledger)
{
	uint64_t bytes = 0;

	if (ledger->fd >= 0)
		return em_sys_file_resident(ledger->fd, NULL);
	(void)em_sys_scan(ledger->header, ledger->header->ledger_size, EM_SYS_PRESENT, &bytes);
	return bytes;
}

struct em_index *em_ledger_index(const struct em_ledger *ledger, uint32_t shard)
{
	return (struct em_index *)(ledger->index + (uint64_t)shard * INDEX_STRIDE);
}

/* ---- block records ---- */

static const uint8_t extent_records[EM_LEDGER_EXTENT_CLASSES] = {2, 4, 6, 8, 10, 12, 16, 24, 32, 48, 64};

static uint32_t extent_size(uint8_t class_plus_1)
{
	return class_plus_1 ? extent_records[class_plus_1 - 1] : 0;
}

/* Free extents of a class are a list through the `name` of their first record, which holds the next one's record + 1. */
static bool borrow_extent(execmem_block *records, struct em_ledger_maps *maps, uint8_t class_plus_1, uint32_t *out)
{
	uint32_t *list = &maps->extents_free[class_plus_1 - 1], count = extent_size(class_plus_1);

	if (*list) {
		*out = *list - 1;
		*list = records[*out].name;
		records[*out].name = 0;
	} else {
		if (maps->records_top + count > RECORDS)
			return false;
		*out = maps->records_top;
		maps->records_top += count;
	}
	maps->records_lent += count;
	return true;
}

static void return_extent(execmem_block *records, struct em_ledger_maps *maps, uint32_t extent, uint8_t class_plus_1)
{
	uint32_t *list = &maps->extents_free[class_plus_1 - 1];

	memset(&records[extent], 0, extent_size(class_plus_1) * sizeof *records);
	records[extent].name = *list;
	*list = extent + 1;
	maps->records_lent -= extent_size(class_plus_1);
}

/* Moves a group's `count` records to an extent of another class; false, with nothing changed, when there is none. */
static bool move_extent(execmem_block *records, struct em_ledger_maps *maps, uint32_t group, uint32_t count, uint8_t to)
{
	uint8_t from = maps->extent_class[group];
	uint32_t extent = 0;

	if (to && !borrow_extent(records, maps, to, &extent))
		return false;
	if (from) {
		memcpy(&records[extent], &records[2 * maps->extent[group]], count * sizeof *records);
		return_extent(records, maps, 2 * maps->extent[group], from);
	}
	maps->extent[group] = (uint16_t)(extent / 2); /* all sizes are even */
	maps->extent_class[group] = to;
	return true;
}

/* Makes room for `more` records, after the first `before` of a group's `count`. */
static bool add_records(execmem_block *records, struct em_ledger_maps *maps, uint32_t group, uint32_t before, uint32_t more,
                        uint32_t count)
{
	uint8_t cls = maps->extent_class[group], to = cls;
	execmem_block *at;

	while (extent_size(to) < count + more)
		to++;
	if (to != cls && !move_extent(records, maps, group, count, to))
		return false;
	at = &records[2 * maps->extent[group]];
	for (uint32_t i = count; i-- > before;)
		at[i + more] = at[i];
	for (uint32_t i = before; i < before + more; i++)
		at[i] = (execmem_block){0};
	return true;
}

/* The heads of a group that lie in a range. */
static uint64_t heads_in(const struct em_ledger_maps *maps, uint32_t group, uint32_t first, uint32_t end)
{
	uint64_t head = maps->bits.group[group].head;

	if (group == first / 64)
		head &= ~0ull << first % 64;
	if (group == (end - 1) / 64)
		head &= ~0ull >> (63 - (end - 1) % 64);
	return head;
}

/* Takes `gone` records, from the `before`-th on, out of a group's `count`. */
static void drop_records(execmem_block *records, struct em_ledger_maps *maps, uint32_t group, uint32_t before, uint32_t gone,
                         uint32_t count)
{
	execmem_block *at = &records[2 * maps->extent[group] + before];
	uint32_t stay = count - gone;
	uint8_t cls = maps->extent_class[group], to = stay ? cls : 0;

	for (uint32_t i = before; i < stay; i++, at++)
		*at = at[gone];
	for (uint32_t i = 0; i < gone; i++)
		at[i] = (execmem_block){0};
	while (to > 1 && stay < extent_size((uint8_t)(to - 1))) /* one to spare, so that the next block does not move them back */
		to--;
	if (to != cls)
		(void)move_extent(records, maps, group, stay, to); /* the table is full: stay */
}

static uint32_t heads_before(const struct em_ledger_maps *maps, uint32_t chunk)
{
	return em_count(maps->bits.group[chunk / 64].head & ((1ull << chunk % 64) - 1));
}

execmem_block *em_ledger_add_block(struct em_ledger *l, uint32_t pack, uint32_t first)
{
	struct em_ledger_maps *maps = em_ledger_maps_of(l, pack);
	uint32_t group = first / 64, count = em_count(maps->bits.group[group].head) - 1; /* of the records that are there */

	if (add_records(em_ledger_records(l, pack), maps, group, heads_before(maps, first), 1, count))
		return em_ledger_block(l, pack, first);
	em_error_set(EXECMEM_ENOMEM, "a pack's table of %d block records is full; open another domain.", RECORDS);
	return NULL;
}

bool em_ledger_add_blocks(struct em_ledger *l, uint32_t pack, uint32_t first, uint32_t end)
{
	struct em_ledger_maps *maps = em_ledger_maps_of(l, pack);

	for (uint32_t group = first / 64; group <= (end - 1) / 64; group++) {
		uint64_t heads = heads_in(maps, group, first, end);
		uint32_t more = em_count(heads), count = em_count(maps->bits.group[group].head) - more;

		if (!heads ||
		    add_records(em_ledger_records(l, pack), maps, group, heads_before(maps, group * 64 + em_ctz(heads)), more, count))
			continue;
		if (group > first / 64)
			em_ledger_drop_blocks(l, pack, first, group * 64);
		return false;
	}
	return true;
}

void em_ledger_drop_blocks(struct em_ledger *l, uint32_t pack, uint32_t first, uint32_t end)
{
	struct em_ledger_maps *maps = em_ledger_maps_of(l, pack);

	for (uint32_t group = first / 64; group <= (end - 1) / 64; group++) {
		uint64_t heads = heads_in(maps, group, first, end);

		if (heads)
			drop_records(em_ledger_records(l, pack), maps, group, heads_before(maps, group * 64 + em_ctz(heads)), em_count(heads),
			             em_count(maps->bits.group[group].head));
	}
}

uint64_t em_ledger_bytes_in(const struct em_ledger *l, uint32_t pack, uint8_t state, uint32_t left, bool rounded)
{
	struct em_pack p = em_ledger_pack(l, pack);
	uint64_t bytes = 0;

	for (uint32_t chunk = 0; left > 0 && chunk < p.record->usable_chunks; chunk++)
		if (em_pack_is_head(p, chunk) && em_ledger_block(l, pack, chunk)->state == state) {
			bytes += (uint64_t)em_pack_length(p, chunk) << EM_CHUNK_SHIFT;
			bytes -= rounded ? 0 : em_ledger_block(l, pack, chunk)->unused;
			left--;
		}
	return bytes;
}

static void discard(void *at, uint64_t size)
{
	if (size > 0 && em_sys_discard_table(at, em_round_up(size, EM_PAGE)) < 0)
		memset(at, 0, size); /* refused: the memory stays, what it said must not */
}

void em_ledger_forget_pack(struct em_ledger *l, uint32_t pack)
{
	struct em_ledger_maps *maps = em_ledger_maps_of(l, pack);

	discard(em_ledger_records(l, pack), maps->records_top * sizeof(execmem_block));
	discard(maps, sizeof *maps);
}

/* ---- names ---- */

static struct name_page *page_at(const struct em_ledger *l, uint32_t page)
{
	return (struct name_page *)(l->names + (uint64_t)page * EM_PAGE);
}

static struct name_cell *cell_at(const struct em_ledger *l, uint32_t cell)
{
	return (struct name_cell *)(l->names + (uint64_t)cell * EXECMEM_NAME_CELL);
}

static void open_page(struct em_ledger *l, uint32_t page)
{
	struct name_page *p = page_at(l, page);

	p->previous = 0;
	p->next = l->header->name_pages_open;
	if (p->next)
		page_at(l, p->next - 1)->previous = page + 1;
	l->header->name_pages_open = page + 1;
}

static void unlink_page(struct em_ledger *l, uint32_t page)
{
	struct name_page *p = page_at(l, page);

	if (p->previous)
		page_at(l, p->previous - 1)->next = p->next;
	else
		l->header->name_pages_open = p->next;
	if (p->next)
		page_at(l, p->next - 1)->previous = p->previous;
}

/* A free cell; 0: none is left. */
static uint32_t take_cell(struct em_ledger *l)
{
	struct name_page *p;
	uint32_t page, bit;

	if (!l->header->name_pages_open) {
		if (l->header->names_top == l->header->names_max)
			return 0;
		page = l->header->names_top / CELLS;
		l->header->names_top += CELLS;
		p = page_at(l, page);
		p->free[0] = ~1ull;
		p->free[1] = ~0ull;
		open_page(l, page);
	}
	page = l->header->name_pages_open - 1;
	p = page_at(l, page);
	bit = p->free[0] ? em_ctz(p->free[0]) : 64 + em_ctz(p->free[1]);
	p->free[bit / 64] &= ~(1ull << bit % 64);
	if (!p->free[0] && !p->free[1])
		unlink_page(l, page);
	l->names_live++;
	return page * CELLS + bit;
}

static void give_cell(struct em_ledger *l, uint32_t cell)
{
	uint32_t page = cell / CELLS, bit = cell % CELLS;
	struct name_page *p = page_at(l, page);

	if (!p->free[0] && !p->free[1])
		open_page(l, page);
	p->free[bit / 64] |= 1ull << bit % 64;
	l->names_live--;
}

int em_ledger_add_name(struct em_ledger *l, const char *text, uint32_t *out)
{
	size_t len = text ? strlen(text) : 0;
	uint32_t first = 0, last = 0;

	*out = 0;
	for (size_t at = 0; at < len; at += EXECMEM_NAME_CELL_TEXT) {
		uint32_t cell = take_cell(l);
		size_t part = len - at < EXECMEM_NAME_CELL_TEXT ? len - at : EXECMEM_NAME_CELL_TEXT;

		if (!cell) {
			em_ledger_drop_name(l, first);
			return em_error_set(EXECMEM_ENOMEM, "the ledger's heap of names is full; use shorter names or none.");
		}
		cell_at(l, cell)->next = 0;
		memset(cell_at(l, cell)->text, 0, EXECMEM_NAME_CELL_TEXT);
		memcpy(cell_at(l, cell)->text, text + at, part);
		if (last)
			cell_at(l, last)->next = cell;
		else
			first = cell;
		last = cell;
	}
	*out = first;
	return 0;
}

void em_ledger_drop_name(struct em_ledger *l, uint32_t name)
{
	if (!name)
		return;
	while (name) {
		uint32_t next = cell_at(l, name)->next;

		give_cell(l, name);
		name = next;
	}
	if (l->names_live == 0 && l->header->names_top > NAMES_KEPT * CELLS &&
	    em_sys_discard_table(l->names, (uint64_t)l->header->names_top * EXECMEM_NAME_CELL) == 0) {
		l->header->names_top = 0;
		l->header->name_pages_open = 0;
	}
}

void em_ledger_read_name(const struct em_ledger *l, uint32_t name, char *out, size_t size)
{
	size_t used = 0;

	for (; name && used + 1 < size; name = cell_at(l, name)->next) {
		const char *text = cell_at(l, name)->text;

		for (size_t i = 0; i < EXECMEM_NAME_CELL_TEXT && text[i] && used + 1 < size; i++)
			out[used++] = text[i];
	}
	out[used] = '\0';
}

/* ---- is it lawful? ---- */

const char *em_ledger_check_pack(const struct em_ledger *l, uint32_t pack)
{
	const struct em_ledger_maps *maps = em_ledger_maps_of(l, pack);
	const execmem_block *records = em_ledger_records(l, pack);
	uint64_t lent = 0, free_records = 0;

	for (uint32_t group = 0; group < EXECMEM_PACK_WORDS; group++) {
		uint32_t heads = em_count(maps->bits.group[group].head);

		if (heads > extent_size(maps->extent_class[group]) || (heads == 0) != (maps->extent_class[group] == 0))
			return "a group's extent does not fit its blocks";
		lent += extent_size(maps->extent_class[group]);
	}
	if (lent != maps->records_lent)
		return "records_lent does not count the records groups hold";
	for (uint8_t cls = 1; cls <= EM_LEDGER_EXTENT_CLASSES; cls++)
		for (uint32_t e = maps->extents_free[cls - 1]; e; e = records[e - 1].name)
			if ((free_records += extent_size(cls)) > maps->records_top)
				return "the list of free extents has a cycle";
	return lent + free_records == maps->records_top ? NULL : "a block record is neither lent nor free";
}

const char *em_ledger_check(const struct em_ledger *l)
{
	const execmem_header *h = l->header;
	uint64_t cells_used = 0;

	if (memcmp(h->magic, "EXECMEM", 8) != 0 || h->version != 3)
		return "the ledger's header was overwritten";
	for (uint32_t page = 0; page < h->names_top / CELLS; page++) {
		const struct name_page *p = page_at(l, page);

		cells_used += CELLS - 1u - em_count(p->free[0]) - em_count(p->free[1]);
	}
	return cells_used == l->names_live ? NULL : "names_live does not count the cells in use";
}
