/* live: see live.h. */
#include "live.h"
#include "error.h"
#include "sys.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* ---- which way ---- */

/* Asked of the CPU once, for it may cost microseconds. */
bool em_live_may_store(const struct em_arch *arch)
{
	static _Atomic int known; /* 0: not asked yet */
	int now = atomic_load_explicit(&known, memory_order_relaxed);

	if (now == 0) {
		now = arch->sees_stores && arch->sees_stores() ? 1 : -1;
		atomic_store(&known, now);
	}
	return now > 0 && em_sys_may_store();
}

static bool has_memory(int mode)
{
	return mode == EXECMEM_MODE_ALIAS || mode == EXECMEM_MODE_PKEY;
}

bool em_live_look(const struct em_live *live, bool may_store, struct em_live_site *site)
{
	uint64_t was[2], is[2];

	memcpy(was, site->old_bytes, sizeof was);
	memcpy(is, site->new_bytes, sizeof is);
	was[0] ^= is[0];
	was[1] ^= is[1];
	site->from = site->to = 0;
	if (was[0] | was[1]) { /* the CPU is little-endian, as every one of the rooms */
		site->from = (uint8_t)(was[0] ? em_ctz(was[0]) / 8 : 8 + em_ctz(was[1]) / 8);
		site->to = (uint8_t)((was[1] ? 8 + em_log2(was[1]) / 8 : em_log2(was[0]) / 8) + 1);
	}
	site->how = (uint8_t)live->arch->live_change(site->at, site->old_bytes, site->new_bytes, site->len, has_memory(live->map->mode),
	                                             may_store);
	return site->from < site->to;
}

/* ---- writing ---- */

/* What is written of each site. */
enum part { PART_TRAP, PART_TAIL, PART_HEAD, PART_ALL };

/* One change on its way: forth to the new bytes, or back to the old ones. */
struct change {
	const struct em_live *live;
	size_t count; /* of the sites, those that are concerned */
	size_t touched; /* and those before this one may hold something else than the old bytes */
	bool back;
	struct em_map_door door;
	uint8_t traps[EM_LIVE_BYTES];
};

static const uint8_t *aim(const struct change *c, const struct em_live_site *site)
{
	return c->back ? site->old_bytes : site->new_bytes;
}

static int open_door(struct change *c, const struct em_live_site *site)
{
	c->live->arch->fill_traps(c->traps, c->live->arch->trap_size);
	return em_map_open_door(c->live->map, EXECMEM_TEXT, 0, site->extent, site->extent_size, &c->door);
}

/* By the smallest aligned store that has all bytes that differ. */
static void store_whole(const struct change *c, const struct em_live_site *site, uint8_t *to)
{
	const uint8_t *bytes = aim(c, site);
	uint32_t unit = c->live->arch->live_unit, first = site->from, last = site->to - 1u;
	uint8_t *start;
	union {
		uint8_t bytes[8];
		uint16_t two;
		uint32_t four;
		uint64_t eight;
	} word;

	while (unit < 8 && (site->at + first) / unit != (site->at + last) / unit)
		unit *= 2;
	start = to + first - (site->at + first) % unit;
	memcpy(word.bytes, start, unit);
	for (uint32_t i = first; i <= last; i++)
		word.bytes[to + i - start] = bytes[i];
	if (unit == 1)
		__atomic_store_n(start, word.bytes[0], __ATOMIC_RELEASE);
	else if (unit == 2)
		__atomic_store_n((uint16_t *)(void *)start, word.two, __ATOMIC_RELEASE);
	else if (unit == 4)
		__atomic_store_n((uint32_t *)(void *)start, word.four, __ATOMIC_RELEASE);
	else
		__atomic_store_n((uint64_t *)(void *)start, word.eight, __ATOMIC_RELEASE);
}

/* Which bytes of a site a part concerns, [*from, *to), and what they are to be. */
static inline const uint8_t *part_of(const struct change *c, const struct em_live_site *site, enum part part, uint32_t *from,
                                     uint32_t *to)
{
	uint32_t size = c->live->arch->trap_size;
	bool stored = site->how == EM_ARCH_LIVE_STORE;

	*from = site->from;
	*to = site->to;
	if (part == PART_ALL || (part == PART_HEAD && stored))
		return aim(c, site);
	if (stored) {
		*to = *from;
	} else if (part == PART_TAIL) {
		*from = *from > size ? *from : size;
		*to = *to > *from ? *to : *from;
	} else { /* a breakpoint lies over the head, or is to */
		*from = 0;
		*to = size;
	}
	return part == PART_TRAP ? c->traps : aim(c, site);
}

static inline void write_one(const struct change *c, const struct em_live_site *site, enum part part)
{
	uint8_t *to = c->door.memory + (site->at - (uintptr_t)c->live->map->window);
	uint32_t from, end;
	const uint8_t *bytes = part_of(c, site, part, &from, &end);
	/* Where instructions lie aligned, also while threads stand still: their cores may be fetching ahead. */
	bool whole = part == PART_HEAD ? site->how == EM_ARCH_LIVE_STORE : part == PART_ALL && c->live->arch->live_unit > 1;

	if (whole)
		store_whole(c, site, to);
	else if (end - from == 1)
		__atomic_store_n(to + from, bytes[from], __ATOMIC_RELEASE);
	else if (from < end)
		memcpy(to + from, bytes + from, end - from);
}

/* Through a door that is memory: a loop for each part, for this is what a change of many sites takes. */
static void write_memory(struct change *c, size_t from, size_t to, enum part part)
{
	const struct em_live_site *sites = c->live->sites;

	if (!c->back && c->touched < to)
		c->touched = to;
	switch (part) {
	case PART_TRAP:
		for (size_t i = from; i < to; i++)
			write_one(c, &sites[i], PART_TRAP);
		break;
	case PART_TAIL:
		for (size_t i = from; i < to; i++)
			write_one(c, &sites[i], PART_TAIL);
		break;
	case PART_HEAD:
		for (size_t i = from; i < to; i++)
			write_one(c, &sites[i], PART_HEAD);
		break;
	default:
		for (size_t i = from; i < to; i++)
			write_one(c, &sites[i], PART_ALL);
	}
}

/*
 * Where the kernel writes, a call costs more than some hundred bytes: sites that lie near each other are written at once, and what is
 * between them again as it is. Nobody else changes that meanwhile, for the shard is locked, and a byte that is written as it was is no
 * change to who runs it.
 */
enum { STAGE = 2048, NEAR = 512 };

struct stage {
	uint64_t start; /* the address of the first of them */
	size_t used;
	uint8_t bytes[STAGE];
};

static int flush_stage(const struct change *c, struct stage *stage)
{
	size_t done, used = stage->used;

	stage->used = 0;
	return used ? em_sys_write(c->door.fd, stage->bytes, used, c->door.at + (stage->start - (uintptr_t)c->live->map->window), &done)
	            : 0;
}

static int stage_part(const struct change *c, const struct em_live_site *site, enum part part, struct stage *stage)
{
	uint32_t from, to;
	const uint8_t *bytes = part_of(c, site, part, &from, &to);
	uint64_t at = site->at + from, gap = at - (stage->start + stage->used);
	int err = 0;

	if (from == to)
		return 0;
	if (stage->used && (gap > NEAR || stage->used + gap + (to - from) > STAGE))
		err = flush_stage(c, stage);
	if (stage->used == 0) {
		stage->start = at;
		gap = 0;
	}
	memcpy(stage->bytes + stage->used, (const void *)(uintptr_t)(at - gap), gap);
	memcpy(stage->bytes + stage->used + gap, bytes + from, to - from);
	stage->used += gap + (to - from);
	return err;
}

/* The kernel writes. On the way back every site is tried. */
static int write_staged(struct change *c, size_t from, size_t to, enum part part)
{
	struct stage stage;
	int err = 0, failed;

	stage.used = 0;
	for (size_t i = from; i < to && (err == 0 || c->back); i++) {
		if (!c->back && c->touched <= i)
			c->touched = i + 1;
		failed = stage_part(c, &c->live->sites[i], part, &stage);
		err = err ? err : failed;
	}
	failed = err == 0 || c->back ? flush_stage(c, &stage) : 0;
	return err ? err : failed;
}

/* Through an open door. */
static int write_all(struct change *c, size_t from, size_t to, enum part part)
{
	const struct em_live *live = c->live;
	int err = 0;

	if (c->door.memory)
		write_memory(c, from, to, part);
	else
		err = write_staged(c, from, to, part);
	for (size_t i = from; i < to && live->arch->flush; i++)
		live->arch->flush((void *)(uintptr_t)live->sites[i].at, live->sites[i].len);
	return err;
}

/* ---- synchronising ---- */

/* Every other thread by a signal, this one by itself. */
static int sync_by_signals(const struct em_live *live)
{
	int err = em_sys_stop_threads();

	if (err < 0)
		return err;
	em_sys_resume_threads();
	if (live->arch->serialize)
		live->arch->serialize();
	return 0;
}

static int synchronise(const struct change *c)
{
	int err = em_sys_sync_core();

	if (err < 0 && c->live->arch->interrupts_sync)
		err = sync_by_signals(c->live);
	if (err < 0 && c->back) { /* no core goes without an interrupt for anything like this long */
		for (int i = 0; i < 1000; i++)
			em_sys_nap();
		err = 0;
	}
	return err;
}

/* ---- the ways ---- */

static bool tails_differ(const struct change *c)
{
	for (size_t i = 0; i < c->count; i++)
		if (c->live->sites[i].how == EM_ARCH_LIVE_BREAKPOINT && c->live->sites[i].to > c->live->arch->trap_size)
			return true;
	return false;
}

static int step(struct change *c, enum part part)
{
	int err = open_door(c, c->live->sites), closed;

	if (err < 0)
		return err;
	err = write_all(c, 0, c->count, part);
	closed = em_map_close_door(&c->door);
	err = err ? err : closed;
	return err < 0 && !c->back ? err : synchronise(c);
}

static int steps(struct change *c, bool breakpoints)
{
	int err = breakpoints ? step(c, PART_TRAP) : 0;

	if (err == 0 && breakpoints && tails_differ(c))
		err = step(c, PART_TAIL);
	return err == 0 ? step(c, PART_HEAD) : err;
}

static bool run_new(struct em_frame *frame, const void *record)
{
	const struct em_live_site *site = record;
	const struct em_arch *arch = em_arch_host();

	return arch->emulate &&
	       arch->emulate(frame, site->at, site->new_bytes, site->len, arch->has_shadow_stack && arch->has_shadow_stack());
}

/* By stores and behind breakpoints. *begun: else nothing was written, for breakpoints cannot be had. */
static int change_in_steps(const struct em_live *live, bool breakpoints, bool *begun)
{
	struct em_sys_traps traps = {live->sites, live->count, sizeof live->sites[0], run_new, live->owns};
	struct change c = {.live = live, .count = live->count};
	int err = breakpoints ? em_sys_traps_on(&traps) : 0;

	*begun = err == 0;
	if (err < 0)
		return err;
	err = steps(&c, breakpoints);
	if (err < 0) { /* who runs into a breakpoint is still taken care of, and runs the new instruction or the old one */
		c.back = true;
		c.count = c.touched;
		if (c.count > 0)
			(void)steps(&c, breakpoints);
	}
	if (breakpoints)
		em_sys_traps_off();
	return err;
}

static int change_stopped(const struct em_live *live)
{
	struct change c = {.live = live, .count = live->count};
	int err = em_sys_stop_threads();

	if (err < 0)
		return err;
	err = open_door(&c, live->sites);
	if (err == 0) {
		err = write_all(&c, 0, c.count, PART_ALL);
		err = err < 0 || live->arch->interrupts_sync ? err : em_sys_sync_core(); /* before they go on */
		if (err < 0) {
			c.back = true;
			(void)write_all(&c, 0, c.touched, PART_ALL);
		}
		(void)em_map_close_door(&c.door);
	}
	em_sys_resume_threads();
	if (live->arch->serialize)
		live->arch->serialize();
	return err;
}

/* Of mode flip, whose doors stop the other threads: sites [from, to) lie in one pack. The error is set. */
static int flip(struct change *c, size_t from, size_t to)
{
	int err = open_door(c, &c->live->sites[from]);

	if (err < 0)
		return err;
	(void)write_all(c, from, to, PART_ALL);
	err = em_map_close_door(&c->door);
	if (err < 0 && !c->back) { /* still writable */
		c->back = true;
		(void)write_all(c, from, to, PART_ALL);
		c->back = false;
	}
	return err;
}

static int change_flipped(const struct em_live *live)
{
	struct change c = {.live = live, .count = live->count};
	struct em_error_kept kept;
	size_t from = 0, to = 0;
	int err = 0;

	for (; from < c.count && err == 0; from = err == 0 ? to : from) {
		for (to = from; to < c.count && live->sites[to].extent == live->sites[from].extent;)
			to++;
		err = flip(&c, from, to);
	}
	if (err == 0 && !live->arch->interrupts_sync) {
		err = em_sys_sync_core();
		err = err < 0 ? em_error_system(err, "make other threads see changed code") : 0;
	}
	if (err < 0 && from > 0) {
		em_error_keep(&kept);
		c.back = true;
		for (to = from; to > 0; to = from) {
			while (from > 0 && live->sites[from - 1].extent == live->sites[to - 1].extent)
				from--;
			(void)flip(&c, from, to);
		}
		em_error_tell(&kept);
	}
	if (live->arch->serialize)
		live->arch->serialize();
	return err;
}

/* ---- all of it ---- */

/* Adds to what was told which sites the system did not let us put back. */
static int tell_broken(const struct em_live *live, int code)
{
	size_t broken = 0, first = 0;
	struct em_error_kept kept;

	for (size_t i = live->count; i-- > 0;)
		if (memcmp((const void *)(uintptr_t)live->sites[i].at, live->sites[i].old_bytes, live->sites[i].len) != 0) {
			broken++;
			first = i;
		}
	if (broken == 0)
		return code;
	em_error_keep(&kept);
	em_error_set(code, "%s Nor could %llu of %llu instructions be put back: the first, at %#llx, is broken.", kept.text,
	             (unsigned long long)broken, (unsigned long long)live->count, (unsigned long long)live->sites[first].at);
	em_error_blame(kept.policy);
	em_error_at(live->sites[first].index);
	return code;
}

static int tell(const struct em_live *live, int err)
{
	if (err < 0)
		err = err == -EBUSY
		          ? em_error_set(EXECMEM_EBUSY, "to change these instructions all other threads must be stopped for a "
		                                        "moment, and one did not stop within 0.2 s (it blocks signals). Try again.")
		          : em_error_system(err, "change code that may be running");
	return err < 0 ? tell_broken(live, err) : 0;
}

int em_live_change(const struct em_live *live)
{
	bool breakpoints = false, stopped = em_sys_sync_ready() < 0, begun = false;
	int err;

	if (live->map->mode == EXECMEM_MODE_FLIP) {
		err = change_flipped(live);
		return err < 0 ? tell_broken(live, err) : 0;
	}
	for (size_t i = 0; i < live->count; i++) {
		breakpoints |= live->sites[i].how == EM_ARCH_LIVE_BREAKPOINT;
		stopped |= live->sites[i].how == EM_ARCH_LIVE_STOPPED;
	}
	err = stopped ? 0 : change_in_steps(live, breakpoints, &begun);
	return tell(live, begun ? err : change_stopped(live));
}
