/* poke: open the door, write, close it, make CPUs see the new bytes.
 *
 * A write that fails half way leaves blank memory, never half a function: the write modes with a file write pages that exist, so in a
 * running system only a policy that changed or an injected failure gets there. Where the other CPUs must be told of new bytes, and that is
 * refused, the bytes are taken back as well: nobody has been told where they are.
 */
#include "poke.h"
#include "error.h"
#include "sys.h"

#include <stdlib.h>
#include <string.h>

static const uint8_t zeros[EM_MAP_BLANK];

static const uint8_t *blank_of(const struct em_poke *where)
{
	return where->kind == EXECMEM_TEXT ? where->map->traps : zeros;
}

/* ---- other CPUs ---- */

static _Thread_local struct {
	bool gathers, owes;
} telling;

static int refuse_visible(int negative_errno)
{
	return em_error_system(negative_errno, "make other threads see new code (membarrier; on riscv64 riscv_flush_icache)");
}

/* A negative errno: the bytes are there, and other CPUs may not see them as instructions. */
static int make_visible(const struct em_poke *where, uint64_t offset, uint64_t len)
{
	if (where->kind != EXECMEM_TEXT)
		return 0;
	if (where->arch->flush)
		where->arch->flush(where->map->window + offset, len);
	if (where->arch->fill_sync == EM_ARCH_SYNC_NONE)
		return 0;
	if (!telling.gathers)
		return em_sys_sync_core();
	telling.owes = true;
	return 0;
}

void em_poke_gather(const struct em_arch *arch)
{
	if (arch->fill_sync != EM_ARCH_SYNC_NONE)
		telling.gathers = true;
}

int em_poke_tell(const struct em_arch *arch)
{
	int err = 0;

	if (arch->fill_sync == EM_ARCH_SYNC_NONE)
		return 0;
	telling.gathers = false;
	if (telling.owes)
		err = em_sys_sync_core();
	telling.owes = false;
	return err < 0 ? refuse_visible(err) : 0;
}

/* ---- writing ---- */

static void blank_memory(const struct em_poke *where, uint8_t *to, uint64_t len)
{
	if (where->kind == EXECMEM_TEXT)
		where->arch->fill_traps(to, len);
	else
		memset(to, 0, len);
}

/* Taking back goes by whole traps: a write may begin or end within one. */
struct range {
	uint64_t from, len;
};

static struct range whole_traps(const struct em_poke *where, uint64_t offset, uint64_t len)
{
	uint64_t unit = where->kind == EXECMEM_TEXT ? where->arch->trap_size : 1, from = offset & ~(unit - 1);

	return (struct range){from, em_round_up(offset + len, unit) - from};
}

/* A source in the window may overlap the target, which is the same memory under another address or behind a file, where no memmove
 * sees it. So it is copied aside first. */
static int copy_within(const struct em_poke *where, uint64_t offset, const void *src, size_t len)
{
	void *aside = malloc(len);
	int err;

	if (!aside)
		return em_error_set(EXECMEM_ENOMEM, "out of memory for a copy of %llu bytes.", (unsigned long long)len);
	memcpy(aside, src, len);
	err = em_poke_copy(where, offset, aside, len);
	free(aside);
	return err;
}

int em_poke_copy(const struct em_poke *where, uint64_t offset, const void *src, size_t len)
{
	struct em_map_door door;
	int err;

	if (EM_UNLIKELY((uintptr_t)src - (uintptr_t)where->map->window < (uint64_t)where->map->packs << EM_PACK_SHIFT))
		return copy_within(where, offset, src, len);
	err = em_map_open_door(where->map, where->kind, offset, where->extent, where->extent_size, &door);
	if (EM_UNLIKELY(err < 0))
		return err;
	if (door.memory) {
		memcpy(door.memory, src, len);
	} else {
		size_t done;

		err = em_sys_write(door.fd, src, len, door.at, &done);
		if (EM_UNLIKELY(err < 0)) {
			struct range back = whole_traps(where, offset, done);

			if (done > 0)
				(void)em_sys_write_repeated(door.fd, blank_of(where), EM_MAP_BLANK, back.len, door.at - (offset - back.from));
			return em_error_system(err, "write to code memory");
		}
	}
	err = em_map_close_door(&door);
	if (EM_UNLIKELY(err < 0)) { /* still writable, so what was written can be taken back */
		struct range back = whole_traps(where, offset, len);

		blank_memory(where, door.memory - (offset - back.from), back.len);
		return err;
	}
	err = make_visible(where, offset, len);
	if (EM_UNLIKELY(err < 0)) {
		em_poke_unwrite(where, offset, len);
		return refuse_visible(err);
	}
	return 0;
}

void em_poke_unwrite(const struct em_poke *where, uint64_t offset, uint64_t len)
{
	struct range back = whole_traps(where, offset, len);

	(void)em_poke_blank(where, back.from, back.len);
}

int em_poke_blank(const struct em_poke *where, uint64_t offset, uint64_t len)
{
	struct em_map_door door;
	int err = em_map_open_door(where->map, where->kind, offset, where->extent, where->extent_size, &door);

	if (EM_UNLIKELY(err < 0))
		return err;
	if (door.memory) {
		blank_memory(where, door.memory, len);
	} else {
		err = em_sys_write_repeated(door.fd, blank_of(where), EM_MAP_BLANK, len, door.at);
		if (EM_UNLIKELY(err < 0))
			return em_error_system(err, "put traps over freed code");
	}
	err = em_map_close_door(&door);
	if (EM_UNLIKELY(err < 0))
		return err;
	err = make_visible(where, offset, len);
	return EM_UNLIKELY(err < 0) ? refuse_visible(err) : 0;
}

bool em_poke_is_blank(const struct em_poke *where, uint64_t offset, uint64_t len)
{
	struct range all = whole_traps(where, offset, len);
	const uint8_t *at = where->map->window + all.from;

	if (where->kind == EXECMEM_TEXT)
		return where->arch->is_trap(at, all.len);
	for (uint64_t i = 0; i < all.len; i++)
		if (at[i])
			return false;
	return true;
}
