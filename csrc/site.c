/* site: the public calls of live patching. All that can be refused is looked at before the first byte changes; live.c does the rest.
 */
#include "block.h"
#include "error.h"
#include "live.h"

#include <stdlib.h>
#include <string.h>

enum { FEW = 4 }; /* sites for which no memory is asked */

struct poke {
	execmem_domain *d;
	struct em_shard *one; /* this shard is locked; NULL: all of the domain's */
	struct em_live_site *sites;
	size_t count;
	struct em_live_site few[FEW];
};

static int at_index(int err, uint64_t index)
{
	em_error_at(index);
	return err;
}

/* ---- what is given ---- */

/* Copies: nobody changes the bytes after they were looked at. */
static int take_site(const execmem_poke_site *given, uint64_t index, struct em_live_site *out)
{
	if (!given->old_bytes || !given->new_bytes)
		return em_error_null(given->old_bytes ? "new_bytes" : "old_bytes");
	if (given->len == 0 || given->len > EXECMEM_SITE_MAX)
		return em_error_set(EXECMEM_EINVAL, "an instruction has 1 to %d bytes; %llu were given.", EXECMEM_SITE_MAX,
		                    (unsigned long long)given->len);
	*out = (struct em_live_site){.at = (uintptr_t)given->site, .index = index, .len = (uint8_t)given->len};
	memcpy(out->old_bytes, given->old_bytes, given->len);
	memcpy(out->new_bytes, given->new_bytes, given->len);
	return 0;
}

static int by_address(const void *a, const void *b)
{
	const struct em_live_site *left = a, *right = b;

	return (left->at > right->at) - (left->at < right->at);
}

static int take_sites(struct poke *p, const execmem_poke_site *given)
{
	bool sorted = true;

	for (size_t i = 0; i < p->count; i++) {
		int err = take_site(&given[i], i, &p->sites[i]);

		if (err < 0)
			return at_index(err, i);
		sorted &= i == 0 || p->sites[i - 1].at < p->sites[i].at;
	}
	if (!sorted)
		qsort(p->sites, p->count, sizeof p->sites[0], by_address);
	for (size_t i = 1; i < p->count; i++)
		if (p->sites[i].at - p->sites[i - 1].at < p->sites[i - 1].len)
			return at_index(em_error_set(EXECMEM_EINVAL, "sites %llu, at %#llx, and %llu, at %#llx, overlap.",
			                             (unsigned long long)p->sites[i - 1].index, (unsigned long long)p->sites[i - 1].at,
			                             (unsigned long long)p->sites[i].index, (unsigned long long)p->sites[i].at),
			                p->sites[i].index);
	return 0;
}

/* ---- what is locked ---- */

static uint64_t pack_of(const execmem_domain *d, uint64_t address)
{
	return (address - (uintptr_t)d->map.window) >> EM_PACK_SHIFT;
}

/* Locks the shard of all sites, or all shards. */
static int enter(struct poke *p)
{
	bool all = false;
	int err;

	p->d = em_domain_owner((const void *)(uintptr_t)p->sites[0].at);
	p->one = p->d ? em_domain_enter_at(p->d, p->sites[0].at) : NULL;
	if (!p->one)
		return at_index(execmem_error_code(), p->sites[0].index);
	for (size_t i = 1; i < p->count && !all; i++) {
		uint64_t pack = pack_of(p->d, p->sites[i].at);

		all = pack < p->d->map.packs && em_domain_shard_of(p->d, pack) != p->one->number;
	}
	if (!all)
		return 0;
	atomic_fetch_add(&p->d->makers, 1); /* a call in flight, for which sealing and closing wait */
	em_domain_leave(p->one);
	p->one = NULL;
	err = em_domain_enter_all(p->d, &p->d);
	atomic_fetch_sub(&p->d->makers, 1);
	return err;
}

static void leave(const struct poke *p)
{
	if (p->one)
		em_domain_leave(p->one);
	else
		em_domain_leave_all(p->d);
}

static struct em_shard *shard_at(const struct poke *p, uint64_t address)
{
	return p->one ? p->one : p->d->shards[em_domain_shard_of(p->d, pack_of(p->d, address))];
}

/* ---- what is refused ---- */

static int refuse_other(const struct em_live_site *site, const execmem_domain *d)
{
	if (!em_domain_owner((const void *)(uintptr_t)site->at))
		return EXECMEM_EFOREIGN;
	return em_error_set(EXECMEM_EINVAL, "site %#llx is not in domain \"%s\" as the first is; give each domain a batch of its own.",
	                    (unsigned long long)site->at, d->ledger.header->name);
}

/* The block that a site lies in; *at: the last one found, for the next may lie in it too. */
static int find_block(const struct poke *p, struct em_live_site *site, struct em_place *at)
{
	struct em_shard *s;
	struct em_poke where;
	int err;

	if (at->block && site->at >= at->address && site->at - at->address < at->size)
		goto found;
	if (pack_of(p->d, site->at) >= p->d->map.packs)
		return refuse_other(site, p->d);
	s = shard_at(p, site->at);
	err = em_block_find(s, site->at, at);
	if (err < 0)
		return err;
	if (at->block->kind != EXECMEM_TEXT)
		return em_error_set(EXECMEM_EINVAL, "the block at %#llx is no code; write to it with execmem_fill.",
		                    (unsigned long long)at->address);
	err = em_block_refuse_write(s, at);
	if (err < 0)
		return err;
found:
	if (site->at - at->address > at->size || site->len > at->size - (site->at - at->address))
		return em_error_set(EXECMEM_EBOUNDS, "%u bytes at %#llx would leave their block, which has %llu bytes at %#llx.", site->len,
		                    (unsigned long long)site->at, (unsigned long long)at->size, (unsigned long long)at->address);
	where = em_domain_where(p->d, at->pack);
	site->extent = where.extent;
	site->extent_size = where.extent_size;
	return 0;
}

static void spell(char text[3 * EXECMEM_SITE_MAX + 1], const uint8_t *bytes, size_t len)
{
	static const char digits[] = "0123456789abcdef";

	for (size_t i = 0; i < len; i++) {
		text[3 * i] = ' ';
		text[3 * i + 1] = digits[bytes[i] >> 4];
		text[3 * i + 2] = digits[bytes[i] & 15];
	}
	text[3 * len] = '\0';
}

static int refuse_bytes(const struct em_live_site *site)
{
	char there[3 * EXECMEM_SITE_MAX + 1], expected[sizeof there];

	spell(there, (const uint8_t *)(uintptr_t)site->at, site->len);
	spell(expected, site->old_bytes, site->len);
	return em_error_set(EXECMEM_ECHANGED, "at %#llx there is%s, not%s: somebody changed it, or it is not the site that was meant.",
	                    (unsigned long long)site->at, there, expected);
}

static int refuse_way(const struct em_live_site *site)
{
	char before[3 * EXECMEM_SITE_MAX + 1], after[sizeof before];

	spell(before, site->old_bytes, site->len);
	spell(after, site->new_bytes, site->len);
	if (site->how == EM_ARCH_LIVE_MISALIGNED)
		return em_error_set(EXECMEM_EMISALIGNED, "site %#llx is not aligned as an instruction that is changed must be here.",
		                    (unsigned long long)site->at);
	return em_error_set(
		EXECMEM_EINSN,
		site->how == EM_ARCH_LIVE_NOT_ONE
			? "at %#llx%s should become%s: each must be exactly one instruction that can be changed on this CPU, or a "
			  "thread might stand in the middle of it. Pad with a longer instruction for nothing."
			: "at %#llx%s should become%s, but a thread may be half through the old instruction and come back to its "
			  "address. Place new code and change the jump or call that leads to it.",
		(unsigned long long)site->at, before, after);
}

/* 0: the site can be changed, by its `how`. */
static int check(const struct poke *p, struct em_live_site *site, struct em_place *at)
{
	int err = find_block(p, site, at);

	if (err < 0)
		return err;
	if (memcmp((const void *)(uintptr_t)site->at, site->old_bytes, site->len) != 0)
		return refuse_bytes(site);
	site->how = (uint8_t)em_live_way(&p->d->map, p->d->arch, site);
	return site->how > EM_ARCH_LIVE_STOPPED ? refuse_way(site) : 0;
}

/* ---- the calls ---- */

static bool owns(uint64_t address)
{
	return em_domain_at(address) != NULL;
}

/* Those whose bytes stay as they are need nothing done. */
static size_t drop_equal(const struct poke *p)
{
	size_t left = 0;

	for (size_t i = 0; i < p->count; i++) {
		const struct em_live_site *site = &p->sites[i];

		if (memcmp(site->old_bytes, site->new_bytes, site->len) != 0)
			p->sites[left++] = *site;
	}
	return left;
}

static int change(const struct poke *p)
{
	struct em_live live = {.map = &p->d->map, .arch = p->d->arch, .sites = p->sites, .owns = owns};
	struct em_place at = {0};
	uint32_t ms = em_domain_ms(p->d);
	int err;

	for (size_t i = 0; i < p->count; i++) {
		err = check(p, &p->sites[i], &at);
		if (err < 0)
			return at_index(err, p->sites[i].index);
	}
	live.count = drop_equal(p);
	err = live.count > 0 ? em_live_change(&live) : 0;
	for (size_t i = 0; i < live.count && err == 0; i++) {
		struct em_shard *s = shard_at(p, p->sites[i].at);

		em_ledger_event(s->ring, s->books, EXECMEM_EVENT_POKE, p->sites[i].at, p->sites[i].len, ms);
	}
	return err;
}

int execmem_poke_batch(const execmem_poke_site *sites, size_t count)
{
	struct poke p = {.count = count};
	int err;

	if (count == 0)
		return 0;
	if (!sites)
		return em_error_null("sites");
	p.sites = count <= FEW ? p.few : count < SIZE_MAX / sizeof *p.sites ? malloc(count * sizeof *p.sites) : NULL;
	if (!p.sites)
		return em_error_set(EXECMEM_ENOMEM, "out of memory for a batch of %llu sites.", (unsigned long long)count);
	err = take_sites(&p, sites);
	err = err < 0 ? err : enter(&p);
	if (err == 0) {
		err = change(&p);
		if (err < 0)
			em_block_refuse(p.one ? p.one : p.d->shards[0], err);
		leave(&p);
	}
	if (p.sites != p.few)
		free(p.sites);
	return err;
}

int execmem_poke(void *site, const void *old_bytes, const void *new_bytes, size_t len)
{
	execmem_poke_site one = {site, old_bytes, new_bytes, len};

	return execmem_poke_batch(&one, 1);
}

int execmem_encode(int insn, const void *site, const void *target, void *out, size_t len)
{
	const struct em_arch *arch = em_arch_host();

	if (insn < EXECMEM_INSN_NOP || insn > EXECMEM_INSN_CALL)
		return em_error_set(EXECMEM_EINVAL, "%d is no instruction; use nop, jump or call.", insn);
	if (!out)
		return em_error_null("out");
	switch (arch->encode(insn, (uintptr_t)site, (uintptr_t)target, out, len)) {
	case EM_ARCH_ENCODED:
		return 0;
	case EM_ARCH_ENCODE_REACH:
		return em_error_set(EXECMEM_EREACH, "%p is too far from %p for a branch of %llu bytes; go through code that lies nearer.",
		                    target, site, (unsigned long long)len);
	default:
		return em_error_set(EXECMEM_EINVAL, "no such instruction has %llu bytes on this CPU.", (unsigned long long)len);
	}
}
