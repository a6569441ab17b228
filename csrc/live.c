/* live: see live.h. */
#include "live.h"
#include "error.h"
#include "sys.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* ---- which way ---- */

/* Whether this CPU's manual lets code be changed by a store while it runs: asked once, for it may cost microseconds. */
static bool sees_stores(const struct em_arch *arch)
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

enum em_arch_live em_live_way(const struct em_map *map, const struct em_arch *arch, const struct em_live_site *site)
{
	return arch->live_change(site->at, site->old_bytes, site->new_bytes, site->len, has_memory(map->mode), sees_stores(arch));
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
};

static const uint8_t *aim(const struct change *c, const struct em_live_site *site)
{
	return c->back ? site->old_bytes : site->new_bytes;
}

static int open_door(struct change *c, const struct em_live_site *site)
{
	return em_map_open_door(c->live->map, EXECMEM_TEXT, 0, site->extent, site->extent_size, &c->door);
}

/* By the smallest aligned store that has all bytes that differ. */
static void store_whole(const struct change *c, const struct em_live_site *site, uint8_t *to)
{
	const uint8_t *bytes = aim(c, site);
	uint32_t first = 0, last = site->len - 1u, unit = c->live->arch->live_unit;
	uint8_t *start;
	union {
		uint8_t bytes[8];
		uint16_t two;
		uint32_t four;
		uint64_t eight;
	} word;

	while (first < last && site->old_bytes[first] == site->new_bytes[first])
		first++;
	while (last > first && site->old_bytes[last] == site->new_bytes[last])
		last--;
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

/* Writes bytes [from, to) of a site. */
static int write_bytes(const struct change *c, const struct em_live_site *site, const uint8_t *bytes, uint32_t from, uint32_t to)
{
	uint64_t offset = site->at - (uintptr_t)c->live->map->window + from;
	size_t done;

	if (from >= to)
		return 0;
	if (!c->door.memory)
		return em_sys_write(c->door.fd, bytes + from, to - from, c->door.at + offset, &done);
	if (to - from == 1)
		__atomic_store_n(c->door.memory + offset, bytes[from], __ATOMIC_RELEASE);
	else
		memcpy(c->door.memory + offset, bytes + from, to - from);
	return 0;
}

/* A byte that a store changes alone, where the kernel writes. */
static int write_changed(const struct change *c, const struct em_live_site *site)
{
	uint32_t from = 0, to = site->len;

	if (c->door.memory) {
		store_whole(c, site, c->door.memory + (site->at - (uintptr_t)c->live->map->window));
		return 0;
	}
	while (from < to && site->old_bytes[from] == site->new_bytes[from])
		from++;
	while (to > from && site->old_bytes[to - 1] == site->new_bytes[to - 1])
		to--;
	return write_bytes(c, site, aim(c, site), from, to);
}

static int write_part(const struct change *c, const struct em_live_site *site, enum part part)
{
	uint32_t size = c->live->arch->trap_size;
	uint8_t traps[EM_ARCH_INSN_MAX];

	if (part == PART_ALL)
		return write_bytes(c, site, aim(c, site), 0, site->len);
	if (site->how == EM_ARCH_LIVE_STORE)
		return part == PART_HEAD ? write_changed(c, site) : 0;
	if (part == PART_TAIL)
		return write_bytes(c, site, aim(c, site), size, site->len);
	if (part == PART_HEAD)
		return write_bytes(c, site, aim(c, site), 0, size);
	c->live->arch->fill_traps(traps, size);
	return write_bytes(c, site, traps, 0, size);
}

/* Through an open door. On the way back every site is tried. */
static int write_all(struct change *c, size_t from, size_t to, enum part part)
{
	const struct em_live *live = c->live;
	int err = 0;

	for (size_t i = from; i < to && (err == 0 || c->back); i++) {
		const struct em_live_site *site = &live->sites[i];
		int failed;

		if (!c->back && c->touched <= i)
			c->touched = i + 1;
		failed = write_part(c, site, part);
		if (live->arch->flush)
			live->arch->flush((void *)(uintptr_t)site->at, site->len);
		err = err ? err : failed;
	}
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

	err = err < 0 ? sync_by_signals(c->live) : err;
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
	uint32_t size = c->live->arch->trap_size;

	for (size_t i = 0; i < c->count; i++) {
		const struct em_live_site *site = &c->live->sites[i];

		if (site->how == EM_ARCH_LIVE_BREAKPOINT && site->len > size &&
		    memcmp(site->old_bytes + size, site->new_bytes + size, site->len - size) != 0)
			return true;
	}
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

/* What was told of a failure, kept while things are put back. */
struct told {
	int code;
	enum execmem_policy policy;
	char text[500];
};

static struct told keep(int code)
{
	struct told told = {.code = code, .policy = em_error_policy()};

	snprintf(told.text, sizeof told.text, "%s", execmem_error_text());
	return told;
}

static int change_flipped(const struct em_live *live)
{
	struct change c = {.live = live, .count = live->count};
	struct told told;
	size_t from = 0, to = 0;
	int err = 0;

	for (; from < c.count && err == 0; from = err == 0 ? to : from) {
		for (to = from; to < c.count && live->sites[to].extent == live->sites[from].extent;)
			to++;
		err = flip(&c, from, to);
	}
	if (err < 0 && from > 0) {
		told = keep(err);
		c.back = true;
		for (to = from; to > 0; to = from) {
			while (from > 0 && live->sites[from - 1].extent == live->sites[to - 1].extent)
				from--;
			(void)flip(&c, from, to);
		}
		em_error_set(err, "%s", told.text);
		em_error_blame(told.policy);
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
	struct told told;

	for (size_t i = live->count; i-- > 0;)
		if (memcmp((const void *)(uintptr_t)live->sites[i].at, live->sites[i].old_bytes, live->sites[i].len) != 0) {
			broken++;
			first = i;
		}
	if (broken == 0)
		return code;
	told = keep(code);
	em_error_set(code, "%s Nor could %llu of %llu instructions be put back: the first, at %#llx, is broken.", told.text,
	             (unsigned long long)broken, (unsigned long long)live->count, (unsigned long long)live->sites[first].at);
	em_error_blame(told.policy);
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
