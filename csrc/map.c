/* map: reserving windows, making packs, opening doors.
 *
 * A pack is made full in the order that measures cheapest: one page is touched, the pack is collapsed while it holds that page
 * alone, then it is blanked as one 2 MB page and mapped (docs/performance.md). Where no collapse is to be had everything works
 * on 4 KB pages.
 */
#include "map.h"
#include "arch.h"
#include "error.h"
#include "sys.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { TRIES = 4096 }; /* places tried where the system lists no mappings: all of those within 2 GB either way */

static const int prots[EXECMEM_KINDS] = {
	[EXECMEM_TEXT] = EM_READ | EM_EXEC,
	[EXECMEM_RODATA] = EM_READ,
	[EXECMEM_DATA] = EM_READ | EM_WRITE,
};
static const uint8_t zeros[EM_MAP_BLANK];

static const uint8_t *blank_of(const struct em_map *map, int kind)
{
	return kind == EXECMEM_TEXT ? map->traps : zeros;
}

/* Data is private, so that a forked child has its own. */
static bool in_file(const struct em_map *map, int kind)
{
	return em_map_has_file(map->mode) && kind != EXECMEM_DATA;
}

static uint64_t pack_offset(uint32_t pack)
{
	return (uint64_t)pack * EXECMEM_PACK_SIZE;
}

/* New traps are fetched as such. Code that comes later is told of when it comes (poke.c). */
static void show_traps(const struct em_map *map, int kind, uint64_t offset, uint64_t size)
{
	const struct em_arch *arch = em_arch_host();

	if (kind == EXECMEM_TEXT && arch->flush)
		arch->flush(map->window + offset, size);
}

/* ---- the window ---- */

/* Where user addresses end, less a page. */
static uint64_t user_end(void)
{
	return (1ull << em_sys_address_bits()) - EM_PAGE;
}

struct gap_search {
	uint64_t lo, hi, need; /* window starts allowed: [lo, hi], with `need` bytes free from there, and a guard before and after */
	uint64_t previous_end;
	uint64_t places;       /* how many aligned places were seen */
	uint64_t wanted;       /* which of them to stop at */
	uint64_t found;
};

static int visit_gap(void *arg, uint64_t start, uint64_t end)
{
	struct gap_search *s = arg;

	uint64_t need = s->need + EM_MAP_GUARD, low_end = s->previous_end + EM_MAP_GUARD;
	uint64_t lo = em_round_up(low_end > s->lo ? low_end : s->lo, EXECMEM_PACK_SIZE);
	uint64_t hi = start >= need && start - need < s->hi ? start - need : s->hi;
	bool room = start > lo && start - lo >= need && hi >= lo;
	uint64_t here = room ? (hi - lo) / EXECMEM_PACK_SIZE + 1 : 0;

	if (here > s->wanted - s->places) {
		s->found = lo + (s->wanted - s->places) * EXECMEM_PACK_SIZE;
		return 1;
	}
	s->places += here;
	s->previous_end = end;
	return 0;
}

/* Reserves exactly there, with the guards. */
static int reserve_at(uint64_t start, uint64_t size, void **out)
{
	int err = em_sys_reserve((void *)(uintptr_t)(start - EM_MAP_GUARD), size + 2ull * EM_MAP_GUARD, out);

	if (err == 0)
		*out = (uint8_t *)*out + EM_MAP_GUARD;
	return err;
}

/* Without a list of mappings: tries places of the range one after the other, from anywhere on; the kernel refuses those that are taken. */
static int reserve_by_trying(uint64_t lo, uint64_t hi, uint64_t need, void **out)
{
	uint64_t places = (hi - lo) / EXECMEM_PACK_SIZE + 1, step = places / TRIES + 1, random;
	int err = em_sys_random(&random, sizeof random);

	if (err < 0)
		return err;
	for (uint64_t i = 0; i < places; i += step) {
		uint64_t place = (random % places + i) % places;

		err = reserve_at(lo + place * EXECMEM_PACK_SIZE, need, out);
		if (err != -EEXIST)
			return err;
	}
	return -EEXIST;
}

/* Picks one of the free places of the range with equal chance. */
static int reserve_in_range(uint64_t lo, uint64_t hi, uint64_t need, void **out)
{
	for (int attempt = 0; attempt < 16; attempt++) {
		struct gap_search count = {.lo = lo, .hi = hi, .need = need, .wanted = UINT64_MAX}, pick = count;
		uint64_t random;
		int err = em_sys_mappings(visit_gap, &count);

		if (err < 0)
			return reserve_by_trying(lo, hi, need, out);
		visit_gap(&count, user_end(), user_end()); /* what lies above the last mapping */
		if (count.places == 0)
			return -EEXIST;
		err = em_sys_random(&random, sizeof random);
		if (err < 0)
			return err;
		pick.wanted = random % count.places;
		if (em_sys_mappings(visit_gap, &pick) == 0)
			visit_gap(&pick, user_end(), user_end());
		if (!pick.found)
			continue;
		err = reserve_at(pick.found, need, out);
		if (err != -EEXIST)
			return err;
	}
	return -EEXIST;
}

static int reserve_near(const struct em_map_options *o, uint64_t size, void **out)
{
	uint64_t lo = o->near_address > o->reach ? o->near_address - o->reach : 0;
	uint64_t hi = o->near_address + o->reach < o->near_address ? UINT64_MAX : o->near_address + o->reach, end = user_end();

	if (o->near_address >= end)
		return -EEXIST;
	if (hi > end)
		hi = end;
	if (lo < 1 << 16)
		lo = 1 << 16; /* vm.mmap_min_addr */
	lo = em_round_up(lo, EXECMEM_PACK_SIZE);
	if (hi < size || hi - size < lo)
		return -EEXIST;
	return reserve_in_range(lo, hi - size, size, out);
}

/* Anywhere but in the lowest part of the space (of 47 bits: the first TB) and in the uppermost, by getrandom; where that is taken again and
 * again, where the kernel says. */
static int reserve_anywhere(uint64_t need, void **out)
{
	uint64_t start, end, total = need + EXECMEM_PACK_SIZE + 2ull * EM_MAP_GUARD, part = 1ull << (em_sys_address_bits() - 7);
	void *got;
	int err = -EEXIST;

	for (int attempt = 0; attempt < 32 && em_sys_may_choose(); attempt++) {
		uint64_t random;

		err = em_sys_random(&random, sizeof random);
		if (err < 0)
			return err;
		start = part + (random % (125 * part >> EM_PACK_SHIFT) << EM_PACK_SHIFT);
		err = reserve_at(start, need, out);
		if (err != -EEXIST)
			break;
	}
	if (err == 0 || err == -EAGAIN)
		return err;
	err = em_sys_reserve(NULL, total, &got);
	if (err < 0)
		return err;
	start = em_round_up((uintptr_t)got + EM_MAP_GUARD, EXECMEM_PACK_SIZE);
	end = start + need + EM_MAP_GUARD;
	if (start - EM_MAP_GUARD > (uintptr_t)got)
		(void)em_sys_release(got, start - EM_MAP_GUARD - (uintptr_t)got); /* a leftover reservation costs addresses only */
	if ((uintptr_t)got + total > end)
		(void)em_sys_release((void *)(uintptr_t)end, (uintptr_t)got + total - end);
	*out = (void *)(uintptr_t)start;
	return 0;
}

static int reserve_window(struct em_map *map, const struct em_map_options *o)
{
	uint32_t packs = o->packs;
	void *got = NULL;
	int err;

	for (;;) {
		uint64_t size = pack_offset(packs);

		err = o->near_address ? reserve_near(o, size, &got) : reserve_anywhere(size, &got);
		if (err >= 0 || packs == 1 || !o->shrink || err != -EEXIST)
			break;
		packs /= 2;
	}
	if (err < 0 && o->near_address && o->fallback) {
		struct em_map_options anywhere = *o;

		anywhere.near_address = 0;
		map->far = true;
		return reserve_window(map, &anywhere);
	}
	if (err == -EEXIST)
		return em_error_set(EXECMEM_EWINDOW,
		                    "no window of %llu MB is free within %llu MB of address %#llx. Ask for a smaller window, a longer "
		                    "reach, or fallback=1 to take any address.",
		                    (unsigned long long)(pack_offset(o->packs) >> 20), (unsigned long long)(o->reach >> 20),
		                    (unsigned long long)o->near_address);
	if (err < 0)
		return em_error_system(err, "reserve address space for a window");
	map->window = got;
	map->packs = packs;
	return 0;
}

/* ---- the protection key: mode pkey ---- */

bool em_map_has_keys(void)
{
	const struct em_arch *arch = em_arch_host();

	return arch->has_keys && arch->has_keys();
}

static int take_key(struct em_map *map)
{
	int err;

	if (!em_map_has_keys())
		return em_error_set(EXECMEM_EUNSUPPORTED,
		                    "write mode pkey needs protection keys, which this CPU has not, or its kernel or hypervisor hides "
		                    "(flags pku and ospke in /proc/cpuinfo). Use write mode syscall, which has no writable view at all.");
	err = em_sys_key_take(&map->key);
	if (err == -ENOSPC)
		return em_error_set(EXECMEM_EBUSY,
		                    "write mode pkey needs one protection key for the whole process, and all of them are taken "
		                    "(x86-64 has 15). Free one (pkey_free) or use write mode syscall.");
	if (err == -EOPNOTSUPP)
		return em_error_set(EXECMEM_EUNSUPPORTED,
		                    "write mode pkey needs a kernel that keeps each thread's rights apart: Linux 5.13, 5.10.103, 5.4.182 "
		                    "or later. Use write mode syscall.");
	return err < 0 ? em_error_system(err, "take a protection key (pkey_alloc)") : 0;
}

/* Opens the alias for this thread alone. What the thread had is not trusted: the rights given back, for shut_key, are those it had to
 * other keys, and none to ours. */
static uint64_t open_key(const struct em_map *map)
{
	const struct em_arch *arch = em_arch_host();
	uint64_t rights = arch->read_rights();

	arch->write_rights(arch->key_rights(rights, map->key, true));
	return arch->key_rights(rights, map->key, false);
}

static void shut_key(uint64_t rights)
{
	em_arch_host()->write_rights(rights);
}

/* ---- opening and closing ---- */

static int open_code_file(struct em_map *map)
{
	struct em_sys_code_file file;
	char instead[200] = "";
	int err = em_sys_open_code_file(&file);
	enum execmem_policy policy;

	map->fd = file.fd;
	map->backing = file.backing;
	if (err == 0)
		return 0;
	policy = em_sys_blame(file.memfd_error, file.unmappable ? EM_CALL_MAP_CODE : EM_CALL_MEMFD);
	if (file.place_error < 0)
		snprintf(instead, sizeof instead,
		         "; nor does a directory (/dev/shm, /tmp, ...) have an unlinked file instead: %s; a writable tmpfs would",
		         file.noexec ? "all are mounted noexec" : strerror(-file.place_error));
	return em_error_blamed(
		err, policy, file.unmappable ? "map a memory file executable (mmap)" : "create a memory file (memfd_create)", instead);
}

/* munmap of many mappings can be refused for want of one more; once they are a single reservation again it needs none. An error: nothing
 * was unmapped. */
static int release_range(void *at, uint64_t size)
{
	int err;

	if (em_sys_release(at, size) == 0)
		return 0;
	err = em_sys_unview(at, size);
	if (err == 0)
		(void)em_sys_release(at, size); /* refused again: addresses stay reserved, memory does not */
	return err;
}

/* A window or an alias. */
static int release_guarded(uint8_t *start, uint64_t size)
{
	return release_range(start - EM_MAP_GUARD, size + 2ull * EM_MAP_GUARD);
}

int em_map_open(struct em_map *map, const struct em_map_options *o)
{
	void *alias = NULL;
	int err = 0;

	*map = (struct em_map){.mode = o->mode, .small_pages = o->small_pages, .fd = -1, .traps = o->traps};
	if (o->mode == EXECMEM_MODE_PKEY && (err = take_key(map)) < 0)
		return err;
	if (em_map_has_file(o->mode))
		err = open_code_file(map);
	else if (o->mode == EXECMEM_MODE_PROCMEM && (err = em_sys_self_mem(&map->fd)) < 0)
		err = em_error_refused(err, EM_CALL_SELF_MEM, "open /proc/self/mem");
	if (err < 0)
		return err;
	err = reserve_window(map, o);
	if (err < 0)
		goto undo_fd;
	if (o->mode == EXECMEM_MODE_ALIAS || o->mode == EXECMEM_MODE_PKEY) {
		err = reserve_anywhere(pack_offset(map->packs), &alias);
		if (err < 0) {
			err = em_error_system(err, "reserve address space for the writable alias");
			goto undo_window;
		}
		map->alias = alias;
	}
	return 0;
undo_window:
	(void)release_guarded(map->window, pack_offset(map->packs));
undo_fd:
	em_sys_close(map->fd);
	map->fd = -1;
	return err;
}

void em_map_close(struct em_map *map)
{
	(void)release_guarded(map->window, pack_offset(map->packs));
	if (map->alias)
		(void)release_guarded(map->alias, pack_offset(map->packs));
	em_sys_close(map->fd);
	map->fd = -1;
}

int em_map_seal(struct em_map *map, bool shared)
{
	bool file = em_map_has_file(map->mode), file_sealed;
	int err = map->alias ? release_guarded(map->alias, pack_offset(map->packs)) : 0;

	if (err < 0)
		return em_error_system(err, "unmap the writable alias of a domain that is to be sealed");
	map->alias = NULL;
	map->sealed = true;
	file_sealed = file && em_sys_seal_file(map->fd) == 0 && !map->inherited && !shared;
	em_sys_close(map->fd);
	map->fd = -1;
	if (em_sys_seal(map->window - EM_MAP_GUARD, pack_offset(map->packs) + 2ull * EM_MAP_GUARD) < 0)
		return EXECMEM_SEALED_LIBRARY;
	return file_sealed ? EXECMEM_SEALED_KERNEL : EXECMEM_SEALED_MAPPINGS;
}

/* The address of the alias stays the same; what it led to is gone, also where it could not be hidden from children. */
int em_map_inherit(struct em_map *map)
{
	em_sys_close(map->fd);
	map->fd = -1;
	map->file_size = 0;
	map->inherited = !map->sealed;
	if (map->mode == EXECMEM_MODE_PROCMEM && !map->sealed)
		(void)em_sys_self_mem(&map->fd); /* the inherited one is the parent's memory. Refused: writes say so */
	return map->alias ? em_sys_unview(map->alias, pack_offset(map->packs)) : 0;
}

void em_map_forget(struct em_map *map, uint32_t pack)
{
	(void)em_sys_unview(map->window + pack_offset(pack), EXECMEM_PACK_SIZE); /* refused: it is mapped over when it is made again */
}

/* ---- making packs ---- */

int em_map_extend(struct em_map *map, uint32_t packs)
{
	uint64_t size = pack_offset(packs);
	int err = 0;

	if (!em_map_has_file(map->mode) || size <= map->file_size)
		return 0;
	if (map->fd < 0) /* a forked child's first pack */
		err = open_code_file(map);
	if (err < 0)
		return err;
	err = em_sys_resize(map->fd, size);
	if (err < 0)
		return em_error_system(err, "grow the memory file");
	map->file_size = size;
	return 0;
}

static int view_alias(struct em_map *map, uint32_t pack)
{
	uint8_t *at;
	int err;

	if (!map->alias)
		return 0;
	at = map->alias + pack_offset(pack);
	err = map->key ? em_sys_key_view(at, EXECMEM_PACK_SIZE, map->key, map->fd, pack_offset(pack))
	               : em_sys_view(at, EXECMEM_PACK_SIZE, EM_READ | EM_WRITE, map->fd, pack_offset(pack));
	if (err < 0)
		return em_error_system(err, "map the writable alias of a pack");
	(void)em_sys_hide_from_children(at, EXECMEM_PACK_SIZE); /* a precaution: a child that has it cannot open a door either */
	return 0;
}

static void undo_alias(struct em_map *map, uint32_t pack)
{
	if (map->alias)
		(void)em_sys_unview(map->alias + pack_offset(pack), EXECMEM_PACK_SIZE);
}

static int grow_in_file(struct em_map *map, uint32_t pack, int kind, uint64_t from, uint64_t to)
{
	uint64_t offset = pack_offset(pack) + from;
	int err = from == 0 ? view_alias(map, pack) : 0;

	if (err < 0)
		return err;
	err = em_sys_write_repeated(map->fd, blank_of(map, kind), EM_MAP_BLANK, to - from, offset);
	if (err < 0) {
		err = em_error_system(err, "blank new memory");
		goto undo;
	}
	err = em_sys_view(map->window + offset, to - from, prots[kind], map->fd, offset);
	if (err < 0) {
		err = em_error_refused(err, EM_CALL_MAP_CODE, "map code pages");
		goto undo;
	}
	return 0;
undo:
	(void)em_sys_discard(map->fd, offset, to - from); /* else the pages stay until the pack is made again */
	if (from == 0)
		undo_alias(map, pack);
	return err;
}

/* Private memory is born zero; one page is written all the same, for memory that was only ever read cannot be collapsed. */
static int blank_private(struct em_map *map, int kind, uint64_t offset, uint64_t size)
{
	uint8_t *at = map->window + offset;

	if (kind == EXECMEM_DATA) {
		*(volatile uint8_t *)at = 0;
		return 0;
	}
	if (map->mode == EXECMEM_MODE_PROCMEM)
		return em_sys_write_repeated(map->fd, blank_of(map, kind), EM_MAP_BLANK, kind == EXECMEM_TEXT ? size : EM_PAGE,
		                             (uintptr_t)at);
	if (kind != EXECMEM_TEXT)
		*(volatile uint8_t *)at = 0;
	for (uint64_t done = 0; kind == EXECMEM_TEXT && done < size; done += EM_MAP_BLANK)
		memcpy(at + done, map->traps, size - done < EM_MAP_BLANK ? size - done : EM_MAP_BLANK);
	return em_sys_protect(at, size, prots[kind]);
}

static int grow_private(struct em_map *map, uint32_t pack, int kind, uint64_t from, uint64_t to)
{
	uint64_t offset = pack_offset(pack) + from, size = to - from;
	bool flip = map->mode == EXECMEM_MODE_FLIP; /* not executable before it is blank, as never writable after */
	int err = em_sys_view(map->window + offset, size, flip ? EM_READ | EM_WRITE : prots[kind], -1, 0);

	if (err < 0)
		return em_error_refused(err, EM_CALL_MAP_CODE, "map code pages");
	err = blank_private(map, kind, offset, size);
	if (err < 0) {
		(void)em_sys_unview(map->window + offset, size);
		return em_error_refused(err, flip ? EM_CALL_PROTECT : EM_CALL_SELF_WRITE,
		                        flip ? "turn new memory executable (mprotect)" : "blank new memory");
	}
	return 0;
}

int em_map_grow(struct em_map *map, uint32_t pack, int kind, uint64_t from, uint64_t to)
{
	int err;

	em_assert(from < to && to <= EXECMEM_PACK_SIZE && pack < map->packs);
	err = in_file(map, kind) ? grow_in_file(map, pack, kind, from, to) : grow_private(map, pack, kind, from, to);
	if (err == 0)
		show_traps(map, kind, pack_offset(pack) + from, to - from);
	return err;
}

/* Linux 6.1 makes the 2 MB page but answers EINVAL when the view had no page in the page tables; the memory would then be blanked as if it
 * were not there. So its first page, which the file has, is put into them. */
static bool collapse_view(const volatile uint8_t *at)
{
	(void)*at;
	return em_sys_collapse((void *)(uintptr_t)at, EXECMEM_PACK_SIZE) == 0;
}

/* Collapses a pack's file range, which holds at least a page, through a view of all of it that cannot be executed: the alias; or, while
 * nothing of the pack is mapped, its own addresses; or a scratch view for the moment. */
static bool collapse_file(struct em_map *map, uint32_t pack, bool fresh)
{
	uint8_t *at = map->window + pack_offset(pack);
	void *scratch = NULL;
	bool collapsed;

	if (map->alias) {
		uint64_t rights = map->key ? open_key(map) : 0;

		collapsed = collapse_view(map->alias + pack_offset(pack));
		if (map->key)
			shut_key(rights);
		return collapsed;
	}
	if (!fresh) {
		if (em_sys_reserve(NULL, 2 * EXECMEM_PACK_SIZE, &scratch) < 0)
			return false;
		at = (uint8_t *)em_round_up((uintptr_t)scratch, EXECMEM_PACK_SIZE);
	}
	/* At its own addresses the view that can be executed will replace it. */
	collapsed = em_sys_view(at, EXECMEM_PACK_SIZE, EM_READ, map->fd, pack_offset(pack)) == 0 && collapse_view(at);
	if (scratch)
		(void)release_range(scratch, 2 * EXECMEM_PACK_SIZE);
	return collapsed;
}

static void blank_in_alias(uint8_t *at, const uint8_t *blank, uint64_t size)
{
	if (memcmp(blank, blank + 1, EM_MAP_BLANK - 1) == 0) { /* one byte over and over: setting takes half as long as copying */
		memset(at, blank[0], size);
		return;
	}
	for (uint64_t done = 0; done < size; done += EM_MAP_BLANK)
		memcpy(at + done, blank, size - done < EM_MAP_BLANK ? size - done : EM_MAP_BLANK);
}

/* Blanks new memory of a file. Through the alias that is quicker than by a system call, but memory that is not there yet must be asked
 * for by a call, which can be refused. */
static int blank_in_file(struct em_map *map, int kind, uint64_t offset, uint64_t size, bool is_there)
{
	const uint8_t *blank = blank_of(map, kind);
	uint64_t rights;

	if (!map->alias || !is_there)
		return em_sys_write_repeated(map->fd, blank, EM_MAP_BLANK, size, offset);
	rights = map->key ? open_key(map) : 0;
	blank_in_alias(map->alias + offset, blank, size);
	if (map->key)
		shut_key(rights);
	return 0;
}

static int complete_in_file(struct em_map *map, uint32_t pack, int kind, uint64_t from, bool *collapsed)
{
	uint64_t offset = pack_offset(pack), touched = from ? from : EM_PAGE;
	bool is_there = false;
	int err = from == 0 ? view_alias(map, pack) : 0;

	if (err < 0)
		return err;
	err = from == 0 ? em_sys_write_repeated(map->fd, blank_of(map, kind), EM_MAP_BLANK, EM_PAGE, offset) : 0;
	if (err == 0 && !map->small_pages)
		*collapsed = is_there = collapse_file(map, pack, from == 0);
	if (err == 0)
		err = blank_in_file(map, kind, offset + touched, EXECMEM_PACK_SIZE - touched, is_there);
	if (err < 0) {
		err = em_error_system(err, "blank new memory");
		goto undo;
	}
	/* Over all of it: the part that was there before is replaced in one step, by the same bytes. */
	err = em_sys_view(map->window + offset, EXECMEM_PACK_SIZE, prots[kind], map->fd, offset);
	if (err == 0)
		return 0;
	err = em_error_refused(err, EM_CALL_MAP_CODE, "map code pages");
undo:
	if (from == 0) {
		undo_alias(map, pack);
		(void)em_sys_unview(map->window + offset, EXECMEM_PACK_SIZE); /* the view it was collapsed through */
	}
	(void)em_sys_discard(map->fd, offset + from, EXECMEM_PACK_SIZE - from);
	return err;
}

int em_map_complete(struct em_map *map, uint32_t pack, int kind, uint64_t from, bool *huge)
{
	uint8_t *at = map->window + pack_offset(pack);
	bool collapsed = false;
	uint64_t told;
	int err;

	em_assert(from < EXECMEM_PACK_SIZE && pack < map->packs);
	if (in_file(map, kind)) {
		err = complete_in_file(map, pack, kind, from, &collapsed);
	} else {
		err = grow_private(map, pack, kind, from, EXECMEM_PACK_SIZE);
		collapsed = err == 0 && !map->small_pages && em_sys_collapse(at, EXECMEM_PACK_SIZE) == 0;
	}
	if (err < 0)
		return err;
	(void)em_sys_populate(at, EXECMEM_PACK_SIZE); /* without it the first calls fault the pages in */
	show_traps(map, kind, pack_offset(pack) + from, EXECMEM_PACK_SIZE - from);
	told = em_map_huge(map, pack_offset(pack), EXECMEM_PACK_SIZE);
	*huge =
		told == EM_MAP_UNTOLD ? collapsed : told == EXECMEM_PACK_SIZE; /* the collapse's answer is all that is told without /proc */
	return 0;
}

void em_map_remove(struct em_map *map, uint32_t pack, uint32_t packs)
{
	uint64_t offset = pack_offset(pack), size = pack_offset(packs);
	int err = map->alias ? em_sys_unview(map->alias + offset, size) : 0;
	int err_window = em_sys_unview(map->window + offset, size);

	if (err == 0 && err_window == 0 && em_map_has_file(map->mode))
		(void)em_sys_discard(map->fd, offset, size); /* refused: memory stays charged to the file, and is reused */
}

/* ---- doors ---- */

int em_map_open_door(struct em_map *map, int kind, uint64_t offset, uint64_t extent, uint64_t extent_size, struct em_map_door *out)
{
	int err;

	*out = (struct em_map_door){.fd = -1, .at = offset};
	if (kind == EXECMEM_DATA) {
		out->memory = map->window + offset;
		return 0;
	}
	switch (map->mode) {
	case EXECMEM_MODE_PKEY:
		out->memory = map->alias + offset;
		out->keyed = true;
		out->rights = open_key(map);
		return 0;
	case EXECMEM_MODE_ALIAS:
		out->memory = map->alias + offset;
		return 0;
	case EXECMEM_MODE_SYSCALL:
		out->fd = map->fd;
		return 0;
	case EXECMEM_MODE_PROCMEM:
		out->fd = map->fd;
		out->at = (uintptr_t)map->window + offset;
		return 0;
	default:
		break;
	}
	em_always(map->mode == EXECMEM_MODE_FLIP);
	err = em_sys_stop_threads();
	if (err < 0)
		return err == -EBUSY ? em_error_set(EXECMEM_EBUSY, "write mode flip must stop all other threads for a write, and one "
		                                                   "did not stop within 0.2 s (it blocks signals). Try again, or "
		                                                   "use another write mode.")
		                     : em_error_system(err, "stop the other threads for a write in mode flip");
	err = em_sys_protect(map->window + extent, extent_size, EM_READ | EM_WRITE);
	if (err < 0) {
		em_sys_resume_threads();
		return em_error_refused(err, EM_CALL_PROTECT, "turn a pack writable (mprotect)");
	}
	out->memory = map->window + offset;
	out->flipped = (uintptr_t)map->window + extent;
	out->flipped_size = extent_size;
	out->prot = prots[kind];
	return 0;
}

int em_map_close_door(struct em_map_door *door)
{
	int err = 0;

	if (door->keyed)
		shut_key(door->rights);
	if (!door->flipped_size)
		return 0;
	/* Without this call the pack's code is unreachable, so it is tried more than once. */
	for (int attempt = 0; attempt < 3; attempt++) {
		err = em_sys_protect((void *)(uintptr_t)door->flipped, door->flipped_size, door->prot);
		if (err == 0)
			break;
	}
	em_sys_resume_threads();
	return err < 0 ? em_error_refused(err, EM_CALL_PROTECT,
	                                  "turn a pack executable again; a later write to it tries once more (mprotect)")
	               : 0;
}

/* ---- asking ---- */

uint64_t em_map_resident(const struct em_map *map)
{
	uint64_t bytes = 0;

	if (em_map_has_file(map->mode))
		return em_sys_file_resident(map->fd, NULL);
	(void)em_sys_scan(map->window, pack_offset(map->packs), EM_SYS_PRESENT, &bytes);
	return bytes;
}

uint64_t em_map_present(const struct em_map *map, uint64_t offset, uint64_t size)
{
	uint64_t bytes = 0;

	(void)em_sys_scan(map->window + offset, size, EM_SYS_PRESENT, &bytes);
	return bytes;
}

uint64_t em_map_huge(const struct em_map *map, uint64_t offset, uint64_t size)
{
	uint64_t bytes = 0;

	return em_sys_scan(map->window + offset, size, EM_SYS_HUGE, &bytes) < 0 ? EM_MAP_UNTOLD : bytes;
}

struct vma_count {
	uint64_t lo[2], hi[2], count;
};

static int count_vma(void *arg, uint64_t start, uint64_t end)
{
	struct vma_count *c = arg;

	for (int i = 0; i < 2; i++)
		c->count += start < c->hi[i] && end > c->lo[i];
	return 0;
}

uint64_t em_map_vmas(const struct em_map *map)
{
	struct vma_count c = {
		.lo = {(uintptr_t)map->window - EM_MAP_GUARD, map->alias ? (uintptr_t)map->alias - EM_MAP_GUARD : 0},
		.hi = {(uintptr_t)map->window + pack_offset(map->packs) + EM_MAP_GUARD,
		       map->alias ? (uintptr_t)map->alias + pack_offset(map->packs) + EM_MAP_GUARD : 0},
	};

	return em_sys_mappings(count_vma, &c) < 0 ? EM_MAP_UNTOLD : c.count;
}

/* ---- does a mode work here? ---- */

int em_map_works(int mode, const uint8_t *traps, uint32_t *backing)
{
	struct em_map_options options = {.mode = mode, .packs = 1, .small_pages = true, .traps = traps};
	struct em_map_door door;
	struct em_map map;
	size_t done;
	int err = em_map_open(&map, &options);

	if (err < 0)
		return err;
	*backing = map.backing;
	err = em_map_extend(&map, 1);
	if (err == 0)
		err = em_map_grow(&map, 0, EXECMEM_TEXT, 0, EM_PAGE);
	if (err == 0)
		err = em_map_open_door(&map, EXECMEM_TEXT, 0, 0, EM_PAGE, &door);
	if (err == 0) {
		if (door.memory)
			memcpy(door.memory, traps, EXECMEM_CHUNK);
		else if ((err = em_sys_write(door.fd, traps, EXECMEM_CHUNK, door.at, &done)) < 0)
			err = em_error_refused(err, mode == EXECMEM_MODE_PROCMEM ? EM_CALL_SELF_WRITE : EM_CALL_OTHER, "write to code memory");
		if (em_map_close_door(&door) < 0)
			err = EXECMEM_ESYSTEM;
	}
	em_map_close(&map);
	return err;
}
