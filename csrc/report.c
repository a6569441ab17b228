/* report: see report.h. From the address to the place (look_*), from the place to words (say_*), and one write. */
#include "report.h"
#include "error.h"
#include "grave.h"

#include <string.h>

enum {
	AT_ONCE = 2,  /* threads whose faults are told at one time; a third passes on untold */
	MOST = 32,    /* faults told; a handler that returns to the same instruction would else fill the disk */
	PIECE = 128,  /* events read at a time */
	TEXT = 2048,
	NAME = 64, /* bytes of a name that are shown */
};

enum place {
	PLACE_NONE,     /* in no window */
	PLACE_CLOSED,   /* in the window of a domain that was closed */
	PLACE_UNKNOWN,  /* the books cannot be read, or changed meanwhile */
	PLACE_ABSENT,   /* reserved addresses: no pack was made there, or it went back */
	PLACE_LIVE,
	PLACE_RESERVED, /* live, never filled */
	PLACE_DYING,    /* live, being freed by a free_many */
	PLACE_RETIRED,  /* whole, until no thread can be inside */
	PLACE_FREE,
	PLACE_QUARANTINED, /* free, and kept from all for now */
	PLACE_HELD,     /* freed, and kept as it is for a forked process */
	PLACES
};

struct block { /* that is there, or was */
	uint64_t address, size;
	uint32_t freed_ms; /* of its domain's time */
	char name[EM_GRAVE_NAME];
};

struct look {
	uint64_t address;
	enum place place;
	const execmem_domain *domain;
	execmem_header header;         /* a copy */
	struct em_grave_window window; /* PLACE_CLOSED */
	execmem_pack pack;             /* a copy */
	uint32_t number, chunk;        /* of the pack; in it */
	struct block block;            /* LIVE, RESERVED, DYING; else, when `was`, the last one freed there */
	bool was;
	bool all_remembered;           /* no event of a shard was overwritten: what is not found never was */
};

struct teller { /* all that would be too much for a signal's stack */
	_Atomic uint64_t owner;  /* process and thread; 0: free. Of another process: left there by a fork, so free too */
	struct look at, from;    /* where the fault is; where the code lies that made it */
	size_t used;
	char text[TEXT];
	execmem_event events[PIECE];
	struct em_pack_word groups[EXECMEM_PACK_WORDS + 1];
};

static struct teller tellers[AT_ONCE];
static _Atomic uint32_t told;

/* ---- reading the books ---- */

/* Where the ledger is, as long as its domain is open. Handles stay where they are. */
static const uint8_t *ledger_of(const struct look *l)
{
	const execmem_header *at = NULL;

	return em_sys_peek(&at, &l->domain->ledger.header, sizeof at) ? (const uint8_t *)at : NULL;
}

static bool peek_at(const struct look *l, uint64_t offset, void *to, size_t len)
{
	const uint8_t *ledger = ledger_of(l);

	return ledger && offset < l->header.ledger_size && len <= l->header.ledger_size - offset &&
	       em_sys_peek(to, ledger + offset, len);
}

static bool peek_header(struct look *l)
{
	const uint8_t *at = ledger_of(l);
	const execmem_header *h = &l->header;

	return at && em_sys_peek(&l->header, at, sizeof l->header) && memcmp(h->magic, "EXECMEM", 8) == 0 && h->version == 3 &&
	       l->address - h->window < (uint64_t)h->packs_max << EM_PACK_SHIFT && h->shards <= EXECMEM_SHARDS_MAX &&
	       h->events_max == EM_LEDGER_EVENTS && h->maps_stride >= sizeof(struct em_ledger_maps);
}

static void peek_name(const struct look *l, uint32_t cell, char *out, size_t size)
{
	size_t used = 0;
	struct {
		uint32_t next;
		char text[EXECMEM_NAME_CELL_TEXT];
	} c = {.next = cell};

	for (int cells = 0; c.next > 0 && c.next < l->header.names_max && cells < EXECMEM_NAME_MAX; cells++) {
		if (!peek_at(l, l->header.names_offset + (uint64_t)c.next * EXECMEM_NAME_CELL, &c, sizeof c))
			break;
		for (size_t i = 0; i < sizeof c.text && c.text[i] && used + 1 < size; i++)
			out[used++] = c.text[i];
	}
	out[used] = '\0';
}

/* The first chunk of the block that covers one, and its length; false: the chunk is free, or the bits change. */
static bool bounds_of(const struct em_pack_word *g, uint32_t chunk, uint32_t usable, uint32_t *first, uint32_t *chunks)
{
	uint32_t at = chunk, end = chunk + 1;

	if (chunk >= usable || !(g[chunk / 64].used >> chunk % 64 & 1))
		return false;
	while (!(g[at / 64].head >> at % 64 & 1))
		if (at-- == 0)
			return false;
	while (end < usable && g[end / 64].used >> end % 64 & 1 && !(g[end / 64].head >> end % 64 & 1))
		end++;
	*first = at;
	*chunks = end - at;
	return true;
}

/* The record of the block that starts at a chunk, and with it what the place is. */
static enum place look_at_record(struct look *l, const struct em_pack_word *g, uint32_t first, uint64_t bytes)
{
	const execmem_header *h = &l->header;
	uint64_t number, maps = h->maps_offset + l->number * h->maps_stride;
	execmem_block record;
	uint16_t extent;

	if (!peek_at(l, maps + h->extents_at + first / 64 * sizeof extent, &extent, sizeof extent))
		return PLACE_UNKNOWN;
	number = 2ull * extent + em_count(g[first / 64].head & ((1ull << first % 64) - 1));
	if (number >= h->blocks_stride / sizeof record ||
	    !peek_at(l, h->blocks_offset + l->number * h->blocks_stride + number * sizeof record, &record, sizeof record))
		return PLACE_UNKNOWN;
	if (record.state == EXECMEM_BLOCK_NONE || record.unused >= bytes)
		return PLACE_UNKNOWN;
	l->block = (struct block){.address = h->window + em_domain_offset(l->number, first), .size = bytes - record.unused};
	peek_name(l, record.name, l->block.name, sizeof l->block.name);
	if (record.state & EXECMEM_BLOCK_DYING)
		return PLACE_DYING;
	switch (record.state) {
	case EXECMEM_BLOCK_FILLED:
		return PLACE_LIVE;
	case EXECMEM_BLOCK_RESERVED:
		return PLACE_RESERVED;
	case EXECMEM_BLOCK_QUARANTINED:
		return PLACE_QUARANTINED;
	case EXECMEM_BLOCK_HELD:
		return PLACE_HELD;
	case EXECMEM_BLOCK_RETIRED:
		return PLACE_RETIRED;
	default:
		return PLACE_FREE; /* kept whole for the next */
	}
}

static enum place look_at_pack(struct look *l, struct em_pack_word *groups)
{
	const execmem_header *h = &l->header;
	uint32_t first = 0, chunks;

	if (!peek_at(l, h->packs_offset + l->number * sizeof l->pack, &l->pack, sizeof l->pack))
		return PLACE_UNKNOWN;
	if (l->pack.state == EXECMEM_PACK_SPAN_TAIL && l->pack.span_packs <= l->number) {
		l->number -= l->pack.span_packs;
		if (!peek_at(l, h->packs_offset + l->number * sizeof l->pack, &l->pack, sizeof l->pack))
			return PLACE_UNKNOWN;
	}
	if (l->pack.state == EXECMEM_PACK_ABSENT || (l->pack.state == EXECMEM_PACK_SMALL && l->chunk >= l->pack.usable_chunks))
		return PLACE_ABSENT;
	if (!peek_at(l, h->maps_offset + l->number * h->maps_stride, groups, sizeof(struct em_pack_word) * EXECMEM_PACK_WORDS))
		return PLACE_UNKNOWN;
	if (l->pack.state == EXECMEM_PACK_SPAN)
		chunks = l->pack.usable_chunks;
	else if (l->pack.state > EXECMEM_PACK_SPAN || l->pack.usable_chunks > EXECMEM_PACK_CHUNKS)
		return PLACE_UNKNOWN;
	else if (!bounds_of(groups, l->chunk, l->pack.usable_chunks, &first, &chunks))
		return PLACE_FREE;
	return look_at_record(l, groups, first, (uint64_t)chunks << EM_CHUNK_SHIFT);
}

/* ---- who was there ---- */

struct freed {
	bool any;
	execmem_event event;
	uint32_t shard;
};

static void weigh(const struct look *l, const execmem_event *e, uint32_t shard, struct freed *best)
{
	int32_t later = (int32_t)(e->time_ms - best->event.time_ms);

	if (e->op != EXECMEM_EVENT_FREE || l->address - e->address >= em_round_up(e->size, EXECMEM_CHUNK))
		return;
	/* The clock ticks every few ms: within a ring the order tells, else whose the pack is now. */
	if (best->any && later <= 0 && !(later == 0 && (shard == best->shard || shard == l->pack.shard)))
		return;
	*best = (struct freed){true, *e, shard};
}

/* The newest event of freeing what covered the address, out of all rings. */
static void look_at_events(struct look *l, execmem_event *piece, struct freed *best)
{
	const execmem_header *h = &l->header;

	l->all_remembered = true;
	for (uint32_t shard = 0; shard < h->shards; shard++) {
		uint64_t ring = h->events_offset + (uint64_t)shard * EM_LEDGER_EVENTS * sizeof *piece;
		uint64_t end = 0, at;

		if (!peek_at(l, h->shards_offset + shard * sizeof(execmem_shard) + offsetof(execmem_shard, events), &end, sizeof end))
			return;
		l->all_remembered &= end <= EM_LEDGER_EVENTS;
		for (at = end > EM_LEDGER_EVENTS ? end - EM_LEDGER_EVENTS : 0; at < end; at++) {
			if (at % PIECE == 0 || at + EM_LEDGER_EVENTS == end)
				if (!peek_at(l, ring + at % EM_LEDGER_EVENTS / PIECE * PIECE * sizeof *piece, piece, PIECE * sizeof *piece))
					return;
			if (piece[at % PIECE].sequence == (uint32_t)at)
				weigh(l, &piece[at % PIECE], shard, best);
		}
	}
}

static void look_back(struct look *l, execmem_event *piece)
{
	struct freed freed = {0};
	struct em_grave_block grave;

	look_at_events(l, piece, &freed);
	l->was = freed.any;
	if (freed.any) {
		l->block = (struct block){.address = freed.event.address, .size = freed.event.size, .freed_ms = freed.event.time_ms};
		if (em_grave_find_event(l->header.domain, freed.shard, freed.event.sequence, &grave))
			memcpy(l->block.name, grave.name, sizeof grave.name);
	} else if (em_grave_find_block(l->header.domain, l->address, &grave)) {
		l->was = true;
		l->block = (struct block){.address = grave.address, .size = grave.size, .freed_ms = grave.time_ms};
		memcpy(l->block.name, grave.name, sizeof grave.name);
	}
}

static void look(struct teller *t, struct look *l, uint64_t address)
{
	uint64_t offset;

	memset(l, 0, sizeof *l);
	l->address = address;
	l->domain = em_domain_at(address);
	if (!l->domain) {
		l->place = em_grave_find_window(address, &l->window) ? PLACE_CLOSED : PLACE_NONE;
		return;
	}
	l->place = PLACE_UNKNOWN;
	if (!peek_header(l))
		return;
	offset = address - l->header.window;
	l->number = (uint32_t)(offset >> EM_PACK_SHIFT);
	l->chunk = offset >> EM_CHUNK_SHIFT & (EXECMEM_PACK_CHUNKS - 1);
	l->place = look_at_pack(l, t->groups);
	if (l->place == PLACE_ABSENT || l->place >= PLACE_FREE)
		look_back(l, t->events);
}

/* ---- saying ---- */

static void say(struct teller *t, const char *text)
{
	while (*text && t->used < TEXT - 1) /* room for the last line's end */
		t->text[t->used++] = *text++;
}

static void say_number(struct teller *t, uint64_t number, unsigned base)
{
	char digits[24];
	size_t at = sizeof digits - 1;

	digits[at] = '\0';
	do {
		digits[--at] = "0123456789abcdef"[number % base];
		number /= base;
	} while (number);
	say(t, base == 16 ? "0x" : "");
	say(t, &digits[at]);
}

static void say_count(struct teller *t, uint64_t number, const char *unit)
{
	say_number(t, number, 10);
	say(t, unit);
}

/* Bytes of the character in UTF-8 that a text of `left` bytes starts with; 0: none that is well formed and can be shown. What moves a
 * terminal's cursor or turns the direction of writing is not: C0, DEL, C1, the separators U+2028 and 2029, U+061C, 200B..200F,
 * 202A..202E, 2060..206F, FEFF. */
static size_t length_shown(const unsigned char *at, size_t left)
{
	static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
	size_t len = at[0] < 0x80 ? 1 : at[0] >> 5 == 6 ? 2 : at[0] >> 4 == 14 ? 3 : at[0] >> 3 == 30 ? 4 : 0;
	uint32_t c = len == 1 ? at[0] : at[0] & (0x7fu >> len);

	if (len == 0 || len > left)
		return 0;
	for (size_t i = 1; i < len; i++) {
		if (at[i] >> 6 != 2)
			return 0;
		c = c << 6 | (at[i] & 0x3f);
	}
	if (c < least[len] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000) || c < ' ' || (c >= 0x7f && c < 0xa0))
		return 0;
	if (c == 0x61c || (c >= 0x200b && c <= 0x200f) || (c >= 0x2028 && c <= 0x202e) || (c >= 0x2060 && c <= 0x206f) || c == 0xfeff)
		return 0;
	return len;
}

/* A name is anybody's bytes. */
static void say_name(struct teller *t, const char *name, size_t size)
{
	size_t len = strnlen(name, size), i = 0;

	say(t, "\"");
	while (i < len) {
		size_t bytes = length_shown((const unsigned char *)&name[i], len - i);
		char shown[5] = "?";

		if (i + bytes > NAME || i == NAME) {
			say(t, "...");
			break;
		}
		memcpy(shown, bytes ? &name[i] : "?", bytes ? bytes : 1);
		say(t, shown);
		i += bytes ? bytes : 1;
	}
	say(t, "\"");
}

static void say_block(struct teller *t, const struct look *l)
{
	const struct block *b = &l->block;
	uint64_t offset = l->address - b->address;

	say(t, "block ");
	if (b->name[0]) {
		say_name(t, b->name, sizeof b->name);
		say(t, ", ");
	} else {
		say(t, "without a known name, ");
	}
	say_count(t, b->size, b->size == 1 ? " byte at " : " bytes at ");
	say_number(t, b->address, 16);
	say(t, "; the fault is ");
	if (offset < b->size)
		say_count(t, offset, offset == 1 ? " byte into it" : " bytes into it");
	else
		say_count(t, offset - b->size, " bytes past its end");
}

static void say_age(struct teller *t, uint64_t ms)
{
	say_count(t, ms, " ms ago");
}

static void say_freed(struct teller *t, const struct look *l)
{
	uint64_t opened = l->header.epoch_monotonic_ns / 1000000, now = em_sys_milliseconds();

	say(t, ", freed ");
	say_age(t, now > opened + l->block.freed_ms ? now - opened - l->block.freed_ms : 0);
	say(t, " (");
	say_count(t, l->block.freed_ms, " ms after its domain opened)");
}

static void say_place(struct teller *t, const struct look *l)
{
	static const char *const states[PLACES] = {[PLACE_LIVE] = "live ",
	                                           [PLACE_RESERVED] = "reserved, never filled: ",
	                                           [PLACE_DYING] = "being freed: ",
	                                           [PLACE_RETIRED] = "retired "};
	static const char *const free_states[PLACES] = {[PLACE_ABSENT] = "no memory: reserved addresses",
	                                                [PLACE_FREE] = "free memory",
	                                                [PLACE_QUARANTINED] = "free memory in quarantine",
	                                                [PLACE_HELD] = "freed memory that a forked process may run"};

	switch (l->place) {
	case PLACE_CLOSED:
		say(t, "nothing: these addresses went back to the system when their domain was closed, ");
		say_age(t, em_sys_milliseconds() - l->window.closed_ms);
		break;
	case PLACE_UNKNOWN:
		say(t, "the books cannot be read, or changed meanwhile");
		break;
	case PLACE_LIVE:
	case PLACE_RESERVED:
	case PLACE_DYING:
	case PLACE_RETIRED:
		say(t, states[l->place]);
		say_block(t, l);
		break;
	default:
		say(t, free_states[l->place]);
		if (l->was) {
			say(t, l->place == PLACE_ABSENT ? " of a pack that went back to the system; it used to be " : "; it used to be ");
			say_block(t, l);
			say_freed(t, l);
		} else {
			say(t, l->all_remembered ? ", never given out" : ", never given out or freed longer ago than is remembered");
		}
	}
}

static void say_domain(struct teller *t, const struct look *l)
{
	static const char *const kinds[EXECMEM_KINDS] = {"text", "rodata", "data"};
	bool closed = l->place == PLACE_CLOSED;
	const char *name = closed ? l->window.name : l->header.name;
	uint32_t forks;

	if (l->place == PLACE_UNKNOWN)
		return;
	say(t, "\nexecmem:   domain ");
	say_name(t, name, sizeof l->window.name);
	say(t, " (");
	say_count(t, closed ? l->window.domain : l->header.domain, ")");
	if (closed)
		return;
	if (l->place != PLACE_ABSENT && l->pack.kind < EXECMEM_KINDS) {
		say(t, ", kind ");
		say(t, kinds[l->pack.kind]);
	}
	if (l->header.sealed)
		say(t, ", sealed");
	if (em_sys_peek(&forks, &l->domain->forks, sizeof forks) && forks != em_domain_forks)
		say(t, ", opened before this process was forked");
	else if (l->place != PLACE_ABSENT && l->pack.inherited)
		say(t, ", memory of the parent process");
}

static bool is_code(const struct look *l)
{
	return l->place == PLACE_ABSENT || l->place == PLACE_CLOSED || l->pack.kind == EXECMEM_TEXT;
}

static const char *why_run(const struct em_sys_fault *f, const struct look *l)
{
	switch (l->place) {
	case PLACE_CLOSED:
		return "a callback or a pointer outlived the domain. Close it after the last call into it";
	case PLACE_RESERVED:
		return "it was called before it was filled: execmem_fill it (Block.fill) first, or place it";
	case PLACE_DYING:
		return "it was called while another thread frees it. Free a block after its last call";
	case PLACE_FREE:
	case PLACE_QUARANTINED:
	case PLACE_ABSENT:
		if (l->was)
			return "a callback, a table or a cached pointer outlived its block. Free a block after its last call; in Python "
				   "keep the Block, or its callable, for as long as the address is in use";
		return "a wrong address or offset was called, or code ran past its block's end";
	case PLACE_LIVE:
	case PLACE_RETIRED:
		if (!is_code(l))
			return "memory of kinds rodata and data cannot be executed. Place code as kind text";
		if (l->address - l->block.address >= l->block.size)
			return "the code ran past its end: a return or a jump is missing, or a wrong offset was called";
		if (f->kind == EM_SYS_FAULT_ILLEGAL)
			return "the code is for another CPU, or data was run, or a wrong offset was called";
		if (f->kind == EM_SYS_FAULT_TRAP)
			return "the code holds a breakpoint or a trap of its own there, or a wrong offset was called";
		return NULL;
	default:
		return NULL;
	}
}

static const char *why(const struct em_sys_fault *f, const struct look *l)
{
	if (f->kind == EM_SYS_FAULT_BUS)
		return "the system had no page for it: a full memory cgroup, or somebody cut the memory file";
	if (f->access == EM_SYS_RAN)
		return why_run(f, l);
	if (f->access == EM_SYS_WROTE && (l->pack.kind != EXECMEM_DATA || !is_code(l)) && l->place != PLACE_ABSENT &&
	    l->place != PLACE_CLOSED)
		return l->header.sealed ? "the domain is sealed: what is in it stays as it is. Put new code in another domain"
		       : l->pack.inherited
				   ? "executable memory and rodata are never writable at their addresses, and this was placed before a fork: "
					 "here it cannot be written at all. Place a new block"
				   : "executable memory and rodata are never writable at their addresses. Write with execmem_fill "
				     "(Block.fill in Python)";
	if (l->place == PLACE_CLOSED)
		return "a pointer outlived the domain";
	if (l->place == PLACE_ABSENT)
		return l->was ? "a pointer outlived its block" : "a wrong address, or an offset beyond its block";
	return NULL;
}

static void say_fault(struct teller *t, const struct em_sys_fault *f, const struct look *l)
{
	static const char *const verbs[] = {
		[EM_SYS_TOUCHED] = "touched", [EM_SYS_READ] = "read", [EM_SYS_WROTE] = "wrote to", [EM_SYS_RAN] = "ran"};
	const char *reason = why(f, l);

	say(t, "execmem: ");
	say(t, f->name);
	say(t, ": thread ");
	say_count(t, em_sys_thread(), " ");
	say(t, verbs[f->access]);
	say(t, " ");
	say_number(t, l->address, 16);
	say(t, "\nexecmem:   there: ");
	say_place(t, l);
	say_domain(t, l);
	if (reason) {
		say(t, "\nexecmem:   usually: ");
		say(t, reason);
	}
	say(t, ".\n");
}

/* Placed code that faulted on memory which is not ours, or on a block. */
static void say_code(struct teller *t, const struct em_sys_fault *f, bool elsewhere)
{
	say(t, "execmem: ");
	say(t, f->name);
	say(t, ": thread ");
	say_count(t, em_sys_thread(), " ");
	if (f->kind == EM_SYS_FAULT_PROTECTION) {
		say(t, "ran an instruction that may not do what it did, at ");
	} else {
		say(t, elsewhere ? "was at fault with memory of somebody else, " : "did so ");
		if (elsewhere) {
			say_number(t, f->address, 16);
			say(t, ", ");
		}
		say(t, "by placed code at ");
	}
	say_number(t, f->ip, 16);
	say(t, "\nexecmem:   there: ");
	say_place(t, &t->from);
	say_domain(t, &t->from);
	if (elsewhere)
		say(t, "\nexecmem:   usually: the code itself is wrong, or was called with wrong arguments");
	say(t, ".\n");
}

/* ---- the fault ---- */

static struct teller *take_teller(void)
{
	uint64_t self = (uint64_t)em_sys_pid() << 32 | em_sys_thread();

	for (int i = 0; i < AT_ONCE; i++)
		if (atomic_load(&tellers[i].owner) == self)
			return NULL; /* a fault within a report, or a handler that came between: do not tell of ourselves */
	for (int i = 0; i < AT_ONCE; i++) {
		uint64_t owner = atomic_load(&tellers[i].owner);

		if (owner >> 32 != self >> 32 && atomic_compare_exchange_strong(&tellers[i].owner, &owner, self))
			return &tellers[i];
	}
	return NULL;
}

static void tell(const struct em_sys_fault *f)
{
	struct teller *t = atomic_load(&told) < MOST ? take_teller() : NULL;
	bool at, from, separate = f->access != EM_SYS_RAN && f->ip != f->address;

	if (!t)
		return;
	t->used = 0;
	look(t, &t->at, f->address);
	at = t->at.place != PLACE_NONE && f->kind != EM_SYS_FAULT_PROTECTION;
	if (separate || f->kind == EM_SYS_FAULT_PROTECTION)
		look(t, &t->from, f->ip);
	from = (separate || f->kind == EM_SYS_FAULT_PROTECTION) && t->from.place != PLACE_NONE;
	if (at || from) {
		if (at)
			say_fault(t, f, &t->at);
		if (from)
			say_code(t, f, !at);
		if (atomic_fetch_add(&told, 1) == MOST - 1)
			say(t, "execmem: further faults of this process are not told.\n");
		em_sys_tell(t->text, t->used);
	}
	atomic_store(&t->owner, 0);
}

/* ---- on and off ---- */

static _Atomic uint32_t turning; /* the process in which a thread turns it on or off; what is left there by a fork is not ours */

static void begin_turning(void)
{
	uint32_t self = em_sys_pid(), seen = 0;

	while (!atomic_compare_exchange_strong(&turning, &seen, self)) {
		if (seen == self) {
			em_sys_nap();
			seen = 0;
		}
	}
}

int execmem_report_faults(int on)
{
	int err;

	begin_turning();
	if (on) {
		err = em_grave_open();
		err = err < 0 ? err : em_sys_faults_on(tell);
		if (err < 0)
			em_grave_close();
		else
			atomic_store(&told, 0);
	} else {
		err = em_sys_faults_off();
		em_grave_close();
	}
	atomic_store(&turning, 0);
	return err < 0 ? em_error_system(err, on ? "turn on reports of faults" : "put back handlers of faults") : 0;
}
