/* grave: see grave.h for what is kept. */
#include "grave.h"
#include "sys.h"

#include <string.h>

enum { BLOCK = sizeof(struct em_grave_block) / 8, WINDOW = sizeof(struct em_grave_window) / 8 }; /* words */

_Atomic bool em_grave_opened;
static _Atomic(uint64_t *) blocks; /* EM_GRAVE_BLOCKS times BLOCK words; stay once they are there, for a reader may be in them */
static _Atomic uint64_t blocks_buried;
static uint64_t windows[EM_GRAVE_WINDOWS * WINDOW];
static _Atomic uint64_t windows_buried;

/* ---- entries ---- */

/* Each word is stored after the 0 before it, and the number after all words. */
static void write_entry(uint64_t *at, const void *from, size_t words, uint64_t number)
{
	uint64_t copy[BLOCK];

	memcpy(copy, from, words * sizeof *copy);
	__atomic_store_n(&at[0], 0, __ATOMIC_RELAXED);
	for (size_t i = 1; i < words; i++)
		__atomic_store_n(&at[i], copy[i], __ATOMIC_RELEASE);
	__atomic_store_n(&at[0], number, __ATOMIC_RELEASE);
}

/* False: it was overtaken, or is being written. */
static bool read_entry(void *to, const uint64_t *at, size_t words, uint64_t number)
{
	uint64_t copy[BLOCK] = {number};

	if (__atomic_load_n(&at[0], __ATOMIC_ACQUIRE) != number)
		return false;
	for (size_t i = 1; i < words; i++)
		copy[i] = __atomic_load_n(&at[i], __ATOMIC_ACQUIRE);
	memcpy(to, copy, words * sizeof *copy);
	return __atomic_load_n(&at[0], __ATOMIC_RELAXED) == number;
}

/* ---- writing ---- */

int em_grave_open(void)
{
	uint64_t *none = NULL;
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
	uint64_t *ring = atomic_load(&blocks), number;

	if (!ring)
		return;
	number = atomic_fetch_add(&blocks_buried, 1);
	write_entry(&ring[number % EM_GRAVE_BLOCKS * BLOCK], block, BLOCK, number + 1);
}

void em_grave_bury_window(uint64_t start, uint64_t size, uint32_t domain, const char *name)
{
	struct em_grave_window window = {.start = start, .size = size, .closed_ms = em_sys_milliseconds(), .domain = domain};
	uint64_t number = atomic_fetch_add(&windows_buried, 1);

	strncpy(window.name, name, sizeof window.name - 1);
	write_entry(&windows[number % EM_GRAVE_WINDOWS * WINDOW], &window, WINDOW, number + 1);
}

/* ---- reading ---- */

static bool read_block(uint64_t number, struct em_grave_block *out)
{
	return read_entry(out, &atomic_load(&blocks)[(number - 1) % EM_GRAVE_BLOCKS * BLOCK], BLOCK, number);
}

static uint64_t oldest_block(uint64_t newest)
{
	return newest > EM_GRAVE_BLOCKS ? newest - EM_GRAVE_BLOCKS : 0;
}

bool em_grave_find_event(uint32_t domain, uint32_t shard, uint32_t sequence, struct em_grave_block *out)
{
	uint64_t newest = atomic_load(&blocks) ? atomic_load(&blocks_buried) : 0;

	for (uint64_t number = newest; number > oldest_block(newest); number--)
		if (read_block(number, out) && out->domain == domain && out->shard == shard && out->sequence == sequence)
			return true;
	return false;
}

bool em_grave_find_block(uint32_t domain, uint64_t address, struct em_grave_block *out)
{
	uint64_t newest = atomic_load(&blocks) ? atomic_load(&blocks_buried) : 0;

	for (uint64_t number = newest; number > oldest_block(newest); number--)
		if (read_block(number, out) && out->domain == domain && address - out->address < em_round_up(out->size, EXECMEM_CHUNK))
			return true;
	return false;
}

bool em_grave_find_window(uint64_t address, struct em_grave_window *out)
{
	uint64_t newest = atomic_load(&windows_buried);

	for (uint64_t number = newest; number > 0 && newest - number < EM_GRAVE_WINDOWS; number--)
		if (read_entry(out, &windows[(number - 1) % EM_GRAVE_WINDOWS * WINDOW], WINDOW, number) && address - out->start < out->size)
			return true;
	return false;
}
