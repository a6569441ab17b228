/* grave: see grave.h for what is kept. */
#include "grave.h"
#include "sys.h"

#include <string.h>

_Atomic bool em_grave_opened;
static _Atomic(struct em_grave_block *) blocks; /* [EM_GRAVE_BLOCKS]; stays once it is there, for a reader may be in it */
static _Atomic uint64_t blocks_buried;
static struct em_grave_window windows[EM_GRAVE_WINDOWS];
static _Atomic uint64_t windows_buried;

/* ---- writing ---- */

int em_grave_open(void)
{
	struct em_grave_block *none = NULL;
	void *ring = NULL;

	if (!atomic_load(&blocks)) {
		int err = em_sys_map_table(sizeof(struct em_grave_block) * EM_GRAVE_BLOCKS, -1, &ring);

		if (err < 0)
			return err;
		if (!atomic_compare_exchange_strong(&blocks, &none, ring)) /* another thread was quicker */
			(void)em_sys_release(ring, sizeof(struct em_grave_block) * EM_GRAVE_BLOCKS);
	}
	atomic_store(&em_grave_opened, true);
	return 0;
}

void em_grave_close(void)
{
	atomic_store(&em_grave_opened, false);
}

void em_grave_bury(const struct em_grave_block *block)
{
	struct em_grave_block *ring = atomic_load(&blocks), *at;
	uint64_t number;

	if (!ring)
		return;
	number = atomic_fetch_add(&blocks_buried, 1);
	at = &ring[number % EM_GRAVE_BLOCKS];
	atomic_store(&at->number, 0);
	atomic_thread_fence(memory_order_seq_cst);
	at->address = block->address;
	at->size = block->size;
	at->domain = block->domain;
	at->shard = block->shard;
	at->sequence = block->sequence;
	at->time_ms = block->time_ms;
	memcpy(at->name, block->name, sizeof at->name);
	atomic_store(&at->number, number + 1);
}

void em_grave_bury_window(uint64_t start, uint64_t size, uint32_t domain, const char *name)
{
	uint64_t number = atomic_fetch_add(&windows_buried, 1);
	struct em_grave_window *at = &windows[number % EM_GRAVE_WINDOWS];

	atomic_store(&at->number, 0);
	atomic_thread_fence(memory_order_seq_cst);
	at->start = start;
	at->size = size;
	at->closed_ms = em_sys_milliseconds();
	at->domain = domain;
	memset(at->name, 0, sizeof at->name);
	strncpy(at->name, name, sizeof at->name - 1);
	atomic_store(&at->number, number + 1);
}

/* ---- reading ---- */

/* Copies an entry whose number is the first thing in it; false: it was overtaken. */
static bool copy_whole(void *out, const void *at, size_t size, const _Atomic uint64_t *number, uint64_t wanted)
{
	if (atomic_load(number) != wanted)
		return false;
	memcpy(out, at, size);
	atomic_thread_fence(memory_order_seq_cst);
	return atomic_load(number) == wanted;
}

static bool copy_block(uint64_t number, struct em_grave_block *out)
{
	const struct em_grave_block *at = &atomic_load(&blocks)[(number - 1) % EM_GRAVE_BLOCKS];

	return copy_whole(out, at, sizeof *out, &at->number, number);
}

static uint64_t oldest_block(uint64_t newest)
{
	return newest > EM_GRAVE_BLOCKS ? newest - EM_GRAVE_BLOCKS : 0;
}

bool em_grave_find_event(uint32_t domain, uint32_t shard, uint32_t sequence, struct em_grave_block *out)
{
	uint64_t newest = atomic_load(&blocks) ? atomic_load(&blocks_buried) : 0;

	for (uint64_t number = newest; number > oldest_block(newest); number--)
		if (copy_block(number, out) && out->domain == domain && out->shard == shard && out->sequence == sequence)
			return true;
	return false;
}

bool em_grave_find_block(uint32_t domain, uint64_t address, struct em_grave_block *out)
{
	uint64_t newest = atomic_load(&blocks) ? atomic_load(&blocks_buried) : 0;

	for (uint64_t number = newest; number > oldest_block(newest); number--)
		if (copy_block(number, out) && out->domain == domain && address - out->address < em_round_up(out->size, EXECMEM_CHUNK))
			return true;
	return false;
}

bool em_grave_find_window(uint64_t address, struct em_grave_window *out)
{
	uint64_t newest = atomic_load(&windows_buried);

	for (uint64_t number = newest; number > 0 && newest - number < EM_GRAVE_WINDOWS; number--) {
		const struct em_grave_window *at = &windows[(number - 1) % EM_GRAVE_WINDOWS];

		if (copy_whole(out, at, sizeof *out, &at->number, number) && address - out->start < out->size)
			return true;
	}
	return false;
}
