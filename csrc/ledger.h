/* ledger: the bookkeeping's own shared memory, laid out so that another process can read it (docs/ledger.md).
 *
 *   header | shards | index[shard][kind] | packs | events[shard] | maps per pack | records per pack | names
 *
 * One sparse memory file a domain: of its address space only what is used takes memory. The records of the blocks that start in one
 * group of 64 chunks lie side by side in an extent of 2 to 64 records, in the order of their heads. So from an address to its
 * record it is one look at the group's head bits, one at where its extent is, and there it is:
 *
 *   record = records of the pack[2 * extent[group] + how many heads of the group lie before]
 *
 * A record therefore moves when a block of its group comes or goes; nobody keeps a pointer to one. All of a pack's books are its own
 * (maps, extents, records): they change hands with the pack and go back with it. The caller holds the lock of the pack's shard.
 *
 * Names are chains of 32-byte cells in pages of 128; cell 0 of a page is its header. They are the domain's, under a lock of their own,
 * which the caller holds.
 */
#ifndef EM_LEDGER_H
#define EM_LEDGER_H

#include "base.h"
#include "index.h"
#include "pack.h"

enum {
	EM_LEDGER_EXTENT_CLASSES = 11, /* sizes of extents */
	EM_LEDGER_EVENTS = 4096,      /* of one shard */
};

struct em_ledger_maps { /* of one pack */
	struct em_pack_maps bits;
	uint16_t extent[EXECMEM_PACK_WORDS];      /* of each group: half the number of its first record */
	uint8_t extent_class[EXECMEM_PACK_WORDS]; /* class + 1; 0: the group has none */
	uint32_t extents_free[EM_LEDGER_EXTENT_CLASSES]; /* of each class: a list of records + 1 */
	uint32_t records_top;                     /* those beyond were never used */
	uint32_t records_lent;                    /* in extents that groups hold */
};

struct em_ledger {
	execmem_header *header;
	execmem_shard *shards;
	execmem_pack *packs;
	execmem_event *events;
	uint8_t *index;
	uint8_t *maps;
	uint8_t *blocks;
	uint8_t *names;
	uint64_t maps_stride, blocks_stride; /* as in the header */
	uint64_t epoch_ms;
	uint64_t names_live;
	int fd; /* -1: private memory, because no memory file could be had; others cannot read it then */
	uint64_t file_number; /* what `fd` is, unless somebody closed it */
};

int em_ledger_open(struct em_ledger *ledger, const char *name, uint32_t packs_max);
void em_ledger_close(struct em_ledger *ledger);
/* For a forked child: a file with what the ledger says now (-1 where the ledger is private memory, of which the child has a copy anyway),
 * and in the child: the ledger is that file from now on, at the same addresses. */
int em_ledger_copy(const struct em_ledger *ledger, int *out);
int em_ledger_become(struct em_ledger *ledger, int copy);
uint64_t em_ledger_resident(const struct em_ledger *ledger);
struct em_index *em_ledger_index(const struct em_ledger *ledger, uint32_t shard); /* [EXECMEM_KINDS] */

/* ---- block records ---- */

/* Makes a record for the block whose head was just set; NULL (an error is set): the table is full. */
execmem_block *em_ledger_add_block(struct em_ledger *ledger, uint32_t pack, uint32_t first);
/* The same for all whose heads lie in a range of chunks and were just set; false: the table is full, no record was made. */
bool em_ledger_add_blocks(struct em_ledger *ledger, uint32_t pack, uint32_t first, uint32_t end);
/* Drops the records of the blocks whose heads lie in a range, are still set and are about to be cleared. */
void em_ledger_drop_blocks(struct em_ledger *ledger, uint32_t pack, uint32_t first, uint32_t end);
/* The bytes of a pack's blocks of one state, rounded or as asked for. There are `left` of them. */
uint64_t em_ledger_bytes_in(const struct em_ledger *ledger, uint32_t pack, uint8_t state, uint32_t left, bool rounded);
void em_ledger_forget_pack(struct em_ledger *ledger, uint32_t pack); /* an empty one: its memory here goes back */

/* ---- names ---- */

int em_ledger_add_name(struct em_ledger *ledger, const char *text, uint32_t *out); /* NULL or "": 0 */
void em_ledger_drop_name(struct em_ledger *ledger, uint32_t name);
void em_ledger_read_name(const struct em_ledger *ledger, uint32_t name, char *out, size_t size);

const char *em_ledger_check_pack(const struct em_ledger *ledger, uint32_t pack);
const char *em_ledger_check(const struct em_ledger *ledger); /* all but the packs */

EM_HOT struct em_ledger_maps *em_ledger_maps_of(const struct em_ledger *ledger, uint32_t pack)
{
	return (struct em_ledger_maps *)(ledger->maps + pack * ledger->maps_stride);
}

EM_HOT struct em_pack em_ledger_pack(const struct em_ledger *ledger, uint32_t pack)
{
	return (struct em_pack){&ledger->packs[pack], &em_ledger_maps_of(ledger, pack)->bits};
}

EM_HOT execmem_block *em_ledger_records(const struct em_ledger *ledger, uint32_t pack)
{
	return (execmem_block *)(ledger->blocks + pack * ledger->blocks_stride);
}

/* The record of the block whose head is `first`. */
EM_HOT execmem_block *em_ledger_block(const struct em_ledger *ledger, uint32_t pack, uint32_t first)
{
	const struct em_ledger_maps *maps = em_ledger_maps_of(ledger, pack);
	uint64_t before = maps->bits.group[first / 64].head & ((1ull << first % 64) - 1);

	return em_ledger_records(ledger, pack) + 2 * maps->extent[first / 64] + em_count(before);
}

EM_HOT execmem_event *em_ledger_ring(const struct em_ledger *ledger, uint32_t shard)
{
	return ledger->events + (uint64_t)shard * EM_LEDGER_EVENTS;
}

/* The next event of a shard, in its ring. */
EM_HOT void em_ledger_event(execmem_event *ring, execmem_shard *books, uint32_t op, uint64_t address, uint32_t size, uint32_t ms)
{
	uint64_t number = books->events;

	ring[number % EM_LEDGER_EVENTS] = (execmem_event){
		.address = address,
		.size = size,
		.time_ms = ms,
		.op = op,
		.sequence = (uint32_t)number,
	};
	__atomic_store_n(&books->events, number + 1, __ATOMIC_RELEASE);
}

#endif
