/* site: the public calls of live patching. All that can be refused is looked at before the first byte changes; live.c does the rest.
 */
#include "block.h"
#include "error.h"
#include "live.h"

#include <stdlib.h>
#include <string.h>

enum { FEW = 4 }; /* sites for which no memory is asked */

struct key { /* what is sorted */
	uint64_t at, index;
};

struct poke {
	execmem_domain *d;
	struct em_shard *one; /* this shard is locked; NULL: all of the domain's */
	struct em_live_site *sites;
	size_t count;
	struct key *keys;
	struct em_live_site few[FEW];
	struct key few_keys[FEW]; /* sorted in place */
};

static int at_index(int err, uint64_t index)
{
	em_error_at(index);
	return err;
}

/* ---- what is given ---- */

static void sort_few(struct key *keys, size_t count)
{
	for (size_t i = 1; i < count; i++) {
		struct key key = keys[i];
		size_t to = i;

		for (; to > 0 && keys[to - 1].at > key.at; to--)
			keys[to] = keys[to - 1];
		keys[to] = key;
	}
}

/* By the bytes of the address that are not alike, the lowest first: sites of a pack differ in three. */
static void sort_many(struct key *keys, struct key *spare, size_t count)
{
	struct key *from = keys, *to = spare, *was;
	uint64_t differ = 0;

	for (size_t i = 1; i < count; i++)
		differ |= keys[i].at ^ keys[0].at;
	for (unsigned shift = 0; shift < 64; shift += 8) {
		uint32_t starts[257] = {0};

		if ((differ >> shift & 0xFF) == 0)
			continue;
		for (size_t i = 0; i < count; i++)
			starts[(from[i].at >> shift & 0xFF) + 1]++;
		for (unsigned digit = 1; digit < 256; digit++)
			starts[digit] += starts[digit - 1];
		for (size_t i = 0; i < count; i++)
			to[starts[from[i].at >> shift & 0xFF]++] = from[i];
		was = from;
		from = to;
		to = was;
	}
	if (from != keys)
		memcpy(keys, from, count * sizeof *keys);
}

struct bytes {
	uint64_t half[2];
};

static uint64_t load(const uint8_t *from, size_t len)
{
	uint64_t word = 0;
	uint32_t low, high;

	if (len >= 8) {
		memcpy(&word, from, 8);
	} else if (len >= 4) {
		memcpy(&low, from, 4);
		memcpy(&high, from + len - 4, 4);
		word = low | (uint64_t)high << (8 * (len - 4));
	} else {
		for (size_t i = 0; i < len; i++)
			word |= (uint64_t)from[i] << (8 * i);
	}
	return word;
}

/* An instruction, zeros behind it, in registers: bytes that are stored one by one and loaded at once make the CPU wait. It is little-endian,
 * as every one of the rooms. */
static struct bytes read_bytes(const void *from, size_t len)
{
	const uint8_t *at = from;

	return (struct bytes){{load(at, len), len > 8 ? load(at + 8, len - 8) : 0}};
}

/* Nobody changes the bytes after they were looked at. */
static int take_site(const execmem_poke_site *given, uint64_t index, struct em_live_site *out)
{
	struct bytes bytes;

	if (!given->old_bytes || !given->new_bytes)
		return em_error_null(given->old_bytes ? "new_bytes" : "old_bytes");
	if (given->len == 0 || given->len > EXECMEM_SITE_MAX)
		return em_error_set(EXECMEM_EINVAL, "an instruction has 1 to %d bytes; %llu were given.", EXECMEM_SITE_MAX,
		                    (unsigned long long)given->len);
	out->at = (uintptr_t)given->site;
	out->index = index;
	out->len = (uint8_t)given->len;
	bytes = read_bytes(given->old_bytes, given->len);
	memcpy(out->old_bytes, &bytes, sizeof bytes);
	bytes = read_bytes(given->new_bytes, given->len);
	memcpy(out->new_bytes, &bytes, sizeof bytes);
	return 0;
}

/* The keys lie behind the sites, and as many spare ones behind them. */
static int take_sites(struct poke *p, const execmem_poke_site *given)
{
	struct key *keys = p->keys;
	bool sorted = true;

	for (size_t i = 0; i < p->count; i++) {
		keys[i] = (struct key){(uintptr_t)given[i].site, i};
		sorted &= i == 0 || keys[i - 1].at <= keys[i].at;
	}
	if (!sorted && p->count <= 16)
		sort_few(keys, p->count);
	else if (!sorted)
		sort_many(keys, keys + p->count, p->count);
	for (size_t i = 0; i < p->count; i++) {
		int err = take_site(&given[keys[i].index], keys[i].index, &p->sites[i]);

		if (err < 0)
			return at_index(err, keys[i].index);
	}
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
	if (em_block_is_blank(at->block)) /* a free of it would find no need to put traps over it */
		return em_error_set(EXECMEM_EINVAL, "the block at %#llx was never filled; write its code with execmem_fill first.",
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

/* 0: the site can be changed, by its `how`; 1: it stays as it is. */
static int check(const struct poke *p, const struct em_live *live, bool may_store, struct em_live_site *site, struct em_place *at)
{
	int err = find_block(p, site, at);
	struct bytes there, expected;

	if (err < 0)
		return err;
	there = read_bytes((const void *)(uintptr_t)site->at, site->len);
	memcpy(&expected, site->old_bytes, sizeof expected);
	if (there.half[0] != expected.half[0] || there.half[1] != expected.half[1])
		return refuse_bytes(site);
	err = !em_live_look(live, may_store, site);
	return site->how > EM_ARCH_LIVE_STOPPED ? refuse_way(site) : err;
}

/* ---- the calls ---- */

static bool owns(uint64_t address)
{
	return em_domain_at(address) != NULL;
}

static int change(const struct poke *p)
{
	struct em_live live = {.map = &p->d->map, .arch = p->d->arch, .sites = p->sites, .owns = owns};
	struct em_place at = {0};
	uint32_t ms = em_domain_ms(p->d);
	bool may_store = em_live_may_store(p->d->arch);
	int err;

	for (size_t i = 0; i < p->count; i++) {
		err = check(p, &live, may_store, &p->sites[i], &at);
		if (err < 0)
			return at_index(err, p->sites[i].index);
		if (live.count < i)
			p->sites[live.count] = p->sites[i];
		live.count += err == 0;
	}
	err = live.count > 0 ? em_live_change(&live) : 0;
	for (size_t i = 0; i < live.count && err == 0; i++) {
		struct em_shard *s = shard_at(p, p->sites[i].at);

		em_ledger_event(s->ring, s->books, EXECMEM_EVENT_POKE, p->sites[i].at, p->sites[i].len, ms);
	}
	return err;
}

/* Sites, keys, and as many spare keys, in one piece; few need none. */
static int take_memory(struct poke *p)
{
	const size_t each = sizeof *p->sites + 2 * sizeof *p->keys;

	p->sites = p->few;
	p->keys = p->few_keys;
	if (p->count <= FEW)
		return 0;
	p->sites = p->count <= UINT32_MAX / each ? malloc(p->count * each) : NULL;
	if (!p->sites)
		return em_error_set(EXECMEM_ENOMEM, "out of memory for a batch of %llu sites.", (unsigned long long)p->count);
	p->keys = (struct key *)(void *)(p->sites + p->count);
	return 0;
}

int execmem_poke_batch(const execmem_poke_site *sites, size_t count)
{
	struct poke p;
	int err;

	if (count == 0)
		return 0;
	if (!sites)
		return em_error_null("sites");
	p.count = count;
	if (take_memory(&p) < 0)
		return execmem_error_code();
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
	case EM_ARCH_ENCODE_ALIGN:
		return em_error_set(EXECMEM_EMISALIGNED, "no instruction lies at %p, or at %p, on this CPU.", site, target);
	case EM_ARCH_ENCODE_REACH:
		return em_error_set(EXECMEM_EREACH, "%p is too far from %p for a branch of %llu bytes; go through code that lies nearer.",
		                    target, site, (unsigned long long)len);
	default:
		return em_error_set(EXECMEM_EINVAL, "no such instruction has %llu bytes on this CPU.", (unsigned long long)len);
	}
}
