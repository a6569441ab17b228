/* peer_execmem: the library itself through its C door, one peer for each write mode, and for what hardens one of them. */
#include "execmem.h"
#include "peer.h"

#include <stdio.h>

enum { CODE_ALIGN = 16, MODE = 0xff, QUARANTINE = 1 << 8, GAP = 1 << 9 }; /* the latter three: of a variant */

static void *execmem_open(const struct peer *self, const struct peer_plan *plan, char why[PEER_WHY])
{
	execmem_options options = {
		.name = "bench",
		.write_mode = self->variant & MODE,
		.quarantine = self->variant & QUARANTINE ? 1 << 20 : 0,
		.gap = self->variant & GAP ? 2048 : 0,
		.window = self->variant & GAP ? 4ull << 30 : 0,
	};
	execmem_domain *domain = NULL;

	(void)plan;
	if (execmem_domain_open(&options, &domain) != 0)
		snprintf(why, PEER_WHY, "%s", execmem_error_text());
	return domain;
}

static int place(void *state, const void *code, size_t size, struct span *out)
{
	return execmem_place(state, EXECMEM_TEXT, code, size, CODE_ALIGN, NULL, &out->code);
}

static int alloc(void *state, size_t size, struct span *out)
{
	return execmem_alloc_in(state, EXECMEM_TEXT, size, CODE_ALIGN, NULL, &out->code);
}

static int fill(void *state, const struct span *at, const void *code, size_t size)
{
	(void)state;
	return execmem_fill(at->code, code, size);
}

static int release(void *state, const struct span *at, size_t size)
{
	(void)size;
	return execmem_free_in(state, at->code);
}

static void execmem_close(void *state)
{
	execmem_domain_close(state, 1);
}

static int place_many(void *state, size_t count, const void *code, const uint64_t *offsets, uint64_t *out)
{
	return execmem_place_many(state, EXECMEM_TEXT, count, code, offsets, CODE_ALIGN, NULL, out);
}

static int free_many(void *state, size_t count, const uint64_t *addresses)
{
	return execmem_free_many(state, count, addresses);
}

/* The ledger's own counters: three plain reads. Nobody but the library writes them. */
static uint64_t pack_events(void *state)
{
	const volatile execmem_header *header = execmem_domain_ledger(state);

	return header->packs_made + header->packs_returned + header->collapses + header->collapse_failures;
}

static void tell(void *state, struct peer_told *out)
{
	execmem_stats stats;

	if (execmem_domain_stats(state, &stats) != 0)
		return;
	out->largest_free = (int64_t)stats.largest_free;
	out->packs = (int64_t)stats.full_packs;
	out->huge_packs = (int64_t)stats.huge_packs;
}

#define EXECMEM(mode)                                                                                                              \
	.executable = 1, .traps = 1, .holds = 1, .variant = (mode), .open = execmem_open, .place = place, .alloc = alloc,              \
	.write = fill, .free = release, .close = execmem_close, .place_many = place_many, .free_many = free_many,                      \
	.sharing = PEER_SHARED, .pack_events = pack_events, .tell = tell

const struct peer peers_execmem[] = {
	{.name = "execmem-alias", .about = "execmem, a second writable view", EXECMEM(EXECMEM_MODE_ALIAS)},
	{.name = "execmem-syscall", .about = "execmem, written with pwrite", EXECMEM(EXECMEM_MODE_SYSCALL)},
	{.name = "execmem-procmem", .about = "execmem, written through /proc/self/mem", EXECMEM(EXECMEM_MODE_PROCMEM)},
	{.name = "execmem-flip", .about = "execmem, whole packs turned writable and back", EXECMEM(EXECMEM_MODE_FLIP)},
	{.name = "execmem-alias-quarantine",
	 .about = "the same as execmem-alias, 1 MB in quarantine",
	 EXECMEM(EXECMEM_MODE_ALIAS | QUARANTINE)},
	{.name = "execmem-alias-gap", .about = "the same as execmem-alias, random gaps up to 2 KB", EXECMEM(EXECMEM_MODE_ALIAS | GAP)},
	{0},
};
