/* patch: static keys and static calls; see patch.h.
 *
 *   key    on / off --> each of its sites jumps, or goes on                         one batch of pokes for each domain
 *   call   entry: jmp target | pad | a function that gives 0       sites: call or jmp target
 *
 * Laws: (1) a key's sites are sorted and apart, and each has the instruction that the key's state asks for (2) a call's entry jumps to its
 * target, or to a veneer that does, and its sites go to one of the three.
 */
#include "patch.h"
#include "block.h"
#include "domain.h"
#include "error.h"
#include "sys.h"

#include <stdlib.h>
#include <string.h>

static struct em_lock lock = {.rank = EM_RANK_PATCH};

void em_patch_lock(void)
{
	em_sys_lock(&lock);
}

void em_patch_unlock(void)
{
	em_sys_unlock(&lock);
}

/* ---- forks ---- */

static void in_child(void)
{
	lock = (struct em_lock){.rank = EM_RANK_PATCH};
}

const struct em_domain_users_at_fork em_domain_users_at_fork = {em_patch_lock, em_patch_unlock, in_child};

/* ---- instructions ---- */

int em_patch_encode(int insn, uint64_t site, uint64_t to, uint8_t *out, uint32_t len)
{
	return execmem_encode(insn, (const void *)(uintptr_t)site, (const void *)(uintptr_t)to, out, len);
}

static bool reaches(uint64_t from, uint32_t len, uint64_t to)
{
	uint8_t bytes[EM_ARCH_INSN_MAX];

	return em_arch_host()->encode(EXECMEM_INSN_JUMP, from, to, bytes, len) == EM_ARCH_ENCODED;
}

bool em_patch_holds(uint64_t at, const uint8_t *bytes, uint32_t len)
{
	uint8_t there[EM_ARCH_INSN_MAX];

	return em_sys_peek(there, (const void *)(uintptr_t)at, len) && memcmp(there, bytes, len) == 0;
}

/* ---- changing many ---- */

static int by_address(const void *a, const void *b)
{
	const struct em_patch_change *left = a, *right = b;

	return (left->at > right->at) - (left->at < right->at);
}

/* Those of a key are in order already. */
static void sort_changes(struct em_patch_change *changes, size_t count)
{
	for (size_t i = 1; i < count; i++)
		if (changes[i].at < changes[i - 1].at) {
			qsort(changes, count, sizeof *changes, by_address);
			return;
		}
}

static execmem_poke_site poke_of(const struct em_patch_change *c, bool back)
{
	return (execmem_poke_site){.site = (void *)(uintptr_t)c->at,
	                           .old_bytes = back ? c->new_bytes : c->old_bytes,
	                           .new_bytes = back ? c->old_bytes : c->new_bytes,
	                           .len = c->len};
}

/* Those of one domain. */
static int change_group(const struct em_patch_change *changes, size_t count, execmem_poke_site *room, bool back)
{
	int err;

	for (size_t i = 0; i < count; i++)
		room[i] = poke_of(&changes[i], back);
	err = execmem_poke_batch(room, count);
	if (err < 0)
		em_error_at(changes[execmem_error_index()].index);
	return err;
}

/* The end of the group that begins at `from`. A window is one range, so sorted sites of a domain stand together. */
static size_t group_end(const struct em_patch_change *changes, size_t from, size_t count)
{
	execmem_domain *d = em_domain_at(changes[from].at);

	while (from < count && em_domain_at(changes[from].at) == d)
		from++;
	return from;
}

/* Puts back the groups before `end`, of those changed, and keeps what was told. */
static void put_back(const struct em_patch_change *changes, size_t end, execmem_poke_site *room)
{
	struct em_error_kept kept;
	size_t lost = 0;

	em_error_keep(&kept);
	for (size_t from = 0, to; from < end; from = to) {
		to = group_end(changes, from, end);
		if (change_group(&changes[from], to - from, room, true) < 0)
			lost += to - from;
	}
	if (lost > 0) {
		em_error_set(kept.code, "%s Nor could %llu instructions of other domains be put back.", kept.text,
		             (unsigned long long)lost);
		em_error_blame(kept.policy);
		em_error_at(kept.index);
	} else {
		em_error_tell(&kept);
	}
}

int em_patch_change(struct em_patch_change *changes, size_t count)
{
	execmem_poke_site one, *room = count == 1 ? &one : malloc((count | !count) * sizeof *room);
	int err = 0;

	if (!room)
		return em_error_set(EXECMEM_ENOMEM, "out of memory for %llu sites.", (unsigned long long)count);
	sort_changes(changes, count);
	for (size_t from = 0, to; from < count && err == 0; from = to) {
		to = group_end(changes, from, count);
		err = change_group(&changes[from], to - from, room, false);
		if (err < 0)
			put_back(changes, from, room);
	}
	if (room != &one)
		free(room);
	return err;
}

/* ---- reaching a target ---- */

struct em_patch_veneer {
	uint64_t target, at;
};

static int make_room(struct em_patch_veneers *v)
{
	uint32_t room = v->room ? 2 * v->room : 2;
	struct em_patch_veneer *list;

	if (v->count < v->room)
		return 0;
	list = realloc(v->list, room * sizeof *list);
	if (!list)
		return em_error_set(EXECMEM_ENOMEM, "out of memory for a veneer.");
	v->list = list;
	v->room = room;
	return 0;
}

static int make_veneer(struct em_patch_veneers *v, uint64_t target)
{
	const struct em_arch *arch = em_arch_host();
	uint8_t code[EXECMEM_CHUNK];
	int err = make_room(v);
	uint32_t len;
	void *at;

	if (err < 0)
		return err;
	len = arch->encode_far_branch(code, target);
	err = execmem_place(v->domain, EXECMEM_TEXT, code, len, 16, "veneer", &at);
	if (err == 0)
		v->list[v->count++] = (struct em_patch_veneer){target, (uintptr_t)at};
	return err;
}

static int refuse_far(uint64_t from, uint64_t target, bool with_veneer)
{
	return em_error_set(EXECMEM_EREACH,
	                    with_veneer
							? "%#llx is too far from %#llx for a branch, and the domain has no place for a veneer that is "
							  "nearer. Give a domain whose window is smaller, or near."
							: "%#llx is too far from %#llx for a branch. Allow a veneer (EXECMEM_PATCH_VENEER), or place it "
							  "in a domain that is nearer.",
	                    (unsigned long long)target, (unsigned long long)from);
}

int em_patch_reach(struct em_patch_veneers *v, int flags, uint64_t from, uint32_t len, uint64_t target, uint64_t *to)
{
	int err;

	*to = target;
	if (reaches(from, len, target))
		return 0;
	for (uint32_t i = 0; i < v->count; i++)
		if (v->list[i].target == target && reaches(from, len, v->list[i].at)) {
			*to = v->list[i].at;
			return 0;
		}
	if (!(flags & EXECMEM_PATCH_VENEER))
		return refuse_far(from, target, false);
	err = make_veneer(v, target);
	if (err < 0)
		return err;
	*to = v->list[v->count - 1].at;
	if (reaches(from, len, *to))
		return 0;
	em_patch_drop_veneers(v, v->count - 1);
	return refuse_far(from, target, true);
}

void em_patch_drop_veneers(struct em_patch_veneers *v, uint32_t count)
{
	struct em_error_kept kept;

	em_error_keep(&kept);
	while (v->count > count)
		(void)execmem_free_in(v->domain, (void *)(uintptr_t)v->list[--v->count].at); /* gone with its domain already, perhaps */
	em_error_tell(&kept);
	if (count == 0) {
		free(v->list);
		v->list = NULL;
		v->room = 0;
	}
}

/* ---- a function that is one jump ---- */

static uint32_t empty_at(const struct em_arch *arch)
{
	return (uint32_t)em_round_up(arch->site_size, 8);
}

int em_patch_aim_stub(struct em_patch_stub *stub, uint64_t target, int flags, struct em_patch_change *out, uint64_t *to)
{
	const struct em_arch *arch = em_arch_host();
	int err = 0;

	*out = (struct em_patch_change){.at = stub->at, .len = arch->site_size};
	*to = stub->at + empty_at(arch);
	if (target != 0)
		err = em_patch_reach(&stub->veneers, flags, stub->at, out->len, target, to);
	if (err == 0)
		err = em_patch_encode(EXECMEM_INSN_JUMP, stub->at, *to, out->new_bytes, out->len);
	if (err == 0 && stub->to != 0)
		err = em_patch_encode(EXECMEM_INSN_JUMP, stub->at, stub->to, out->old_bytes, out->len);
	return err;
}

int em_patch_set_stub(struct em_patch_stub *stub, uint64_t target, int flags)
{
	struct em_patch_change change;
	uint32_t veneers = stub->veneers.count;
	uint64_t to;
	int err = em_patch_aim_stub(stub, target, flags, &change, &to);

	if (err == 0)
		err = em_patch_change(&change, 1);
	if (err < 0) {
		em_patch_drop_veneers(&stub->veneers, veneers);
		return err;
	}
	stub->target = target;
	stub->to = to;
	return 0;
}

int em_patch_place_stub(execmem_domain *domain, uint64_t target, int flags, const char *name, struct em_patch_stub *out)
{
	const struct em_arch *arch = em_arch_host();
	uint32_t size = empty_at(arch) + arch->empty_size;
	uint8_t code[EXECMEM_CHUNK];
	struct em_patch_change change;
	void *at;
	int err = execmem_alloc_in(domain, EXECMEM_TEXT, size, EXECMEM_CHUNK, name, &at);

	if (err < 0)
		return err;
	*out = (struct em_patch_stub){.at = (uintptr_t)at, .target = target, .veneers = {.domain = em_domain_at((uintptr_t)at)}};
	err = em_patch_aim_stub(out, target, flags, &change, &out->to);
	if (err == 0) {
		arch->fill_traps(code, empty_at(arch));
		memcpy(code, change.new_bytes, change.len);
		(void)arch->encode_empty(code + empty_at(arch));
		err = execmem_fill(at, code, size);
	}
	if (err < 0) {
		struct em_error_kept kept;

		em_error_keep(&kept);
		em_patch_free_stub(out);
		em_error_tell(&kept);
	}
	return err;
}

void em_patch_free_stub(struct em_patch_stub *stub)
{
	em_patch_drop_veneers(&stub->veneers, 0);
	(void)execmem_free_in(stub->veneers.domain, (void *)(uintptr_t)stub->at);
}

/* ---- static keys ---- */

struct site { /* those of a call have no target of their own */
	uint64_t at, target;
	uint32_t index; /* in the table it came with, while that is being added */
	uint8_t len;
	uint8_t form; /* of a key, 1: it jumps while the key is off; of a call: enum execmem_insn */
};

struct sites { /* sorted, apart */
	struct site *list;
	size_t count;
};

struct execmem_key {
	struct sites sites;
	_Atomic uint32_t on;
};

static int site_order(const void *a, const void *b)
{
	const struct site *left = a, *right = b;

	return (left->at > right->at) - (left->at < right->at);
}

/* Those there are and room for `count` more. */
static int copy_sites(const struct sites *sites, size_t count, struct sites *out)
{
	*out = (struct sites){.count = sites->count + count};
	if (count < SIZE_MAX / sizeof *out->list - sites->count)
		out->list = malloc((out->count | !out->count) * sizeof *out->list);
	if (!out->list)
		return em_error_set(EXECMEM_ENOMEM, "out of memory for %llu sites.", (unsigned long long)count);
	if (sites->count > 0)
		memcpy(out->list, sites->list, sites->count * sizeof *out->list);
	return 0;
}

static int sort_sites(struct sites *sites)
{
	qsort(sites->list, sites->count, sizeof *sites->list, site_order);
	for (size_t i = 1; i < sites->count; i++) {
		const struct site *before = &sites->list[i - 1], *s = &sites->list[i];

		if (s->at - before->at < before->len) {
			em_error_set(EXECMEM_EINVAL, "the site at %#llx overlaps the one at %#llx; each is added once.",
			             (unsigned long long)s->at, (unsigned long long)before->at);
			em_error_at(s->index > before->index ? s->index : before->index);
			return EXECMEM_EINVAL;
		}
	}
	return 0;
}

static void drop_sites(struct sites *sites, const void *start, size_t size)
{
	size_t left = 0;

	for (size_t i = 0; i < sites->count; i++)
		if (sites->list[i].at - (uintptr_t)start >= size)
			sites->list[left++] = sites->list[i];
	sites->count = left;
}

static int encode_site(const struct site *s, bool on, uint8_t *out)
{
	return em_patch_encode(on != (s->form != 0) ? EXECMEM_INSN_JUMP : EXECMEM_INSN_NOP, s->at, s->target, out, s->len);
}

/* The change of a site to what the key becomes, from what it is now; a new one may be either. */
static int plan_site(const struct site *s, bool on, bool is_new, struct em_patch_change *out)
{
	uint8_t other[EM_ARCH_INSN_MAX];
	int err = encode_site(s, on, out->new_bytes);

	if (err == 0)
		err = encode_site(s, !on, other);
	if (err < 0)
		return err;
	out->at = s->at;
	out->len = s->len;
	out->index = s->index;
	memcpy(out->old_bytes, is_new && em_patch_holds(s->at, out->new_bytes, s->len) ? out->new_bytes : other, s->len);
	return 0;
}

/* `list` may be a key's, or those that are being added to it. */
static int set_sites(const struct site *list, size_t count, bool on, bool is_new)
{
	struct em_patch_change *changes = count ? malloc(count * sizeof *changes) : NULL;
	int err = 0;

	if (count == 0)
		return 0;
	if (!changes)
		return em_error_set(EXECMEM_ENOMEM, "out of memory for %llu sites.", (unsigned long long)count);
	for (size_t i = 0; i < count && err == 0; i++) {
		err = plan_site(&list[i], on, is_new, &changes[i]);
		if (err < 0)
			em_error_at(list[i].index);
	}
	if (err == 0)
		err = em_patch_change(changes, count);
	free(changes);
	return err;
}

int execmem_key_make(int on, execmem_key **out)
{
	execmem_key *key;

	if (!out)
		return em_error_null("out");
	key = calloc(1, sizeof *key);
	if (!key)
		return em_error_set(EXECMEM_ENOMEM, "out of memory for a static key.");
	atomic_store(&key->on, on != 0);
	*out = key;
	return 0;
}

static int take_key_sites(const execmem_key_site *given, size_t count, struct site *out)
{
	for (size_t i = 0; i < count; i++) {
		if (given[i].len > EXECMEM_SITE_MAX || given[i].inverted > 1) {
			em_error_set(EXECMEM_EINVAL, "site %llu has a length of %u and says inverted = %u; lengths go to %d, and it is 0 or 1.",
			             (unsigned long long)i, given[i].len, given[i].inverted, EXECMEM_SITE_MAX);
			em_error_at(i);
			return EXECMEM_EINVAL;
		}
		out[i] = (struct site){.at = given[i].site,
		                       .target = given[i].target,
		                       .index = (uint32_t)i,
		                       .len = (uint8_t)(given[i].len ? given[i].len : em_arch_host()->site_size),
		                       .form = (uint8_t)given[i].inverted};
	}
	return 0;
}

static int add_key_sites(execmem_key *key, const execmem_key_site *given, size_t count)
{
	struct sites all;
	struct site *fresh;
	int err = copy_sites(&key->sites, count, &all);

	if (err < 0)
		return err;
	fresh = all.list + key->sites.count;
	err = take_key_sites(given, count, fresh);
	if (err == 0) {
		struct site *added = malloc(count * sizeof *added);

		err = added ? 0 : em_error_set(EXECMEM_ENOMEM, "out of memory for %llu sites.", (unsigned long long)count);
		if (added)
			memcpy(added, fresh, count * sizeof *added);
		err = err < 0 ? err : sort_sites(&all);
		err = err < 0 ? err : set_sites(added, count, atomic_load(&key->on), true);
		free(added);
	}
	if (err < 0) {
		free(all.list);
		return err;
	}
	free(key->sites.list);
	key->sites = all;
	return 0;
}

int execmem_key_add(execmem_key *key, const execmem_key_site *sites, size_t count)
{
	int err;

	if (!key || (!sites && count > 0))
		return em_error_null(key ? "sites" : "key");
	if (count == 0)
		return 0;
	em_patch_lock();
	err = add_key_sites(key, sites, count);
	em_patch_unlock();
	return err;
}

int execmem_key_remove(execmem_key *key, const void *start, size_t size)
{
	if (!key)
		return em_error_null("key");
	em_patch_lock();
	drop_sites(&key->sites, start, size);
	em_patch_unlock();
	return 0;
}

int execmem_key_set(execmem_key *key, int on)
{
	int err = 0;

	if (!key)
		return em_error_null("key");
	em_patch_lock();
	if (atomic_load(&key->on) != (on != 0)) {
		err = set_sites(key->sites.list, key->sites.count, on != 0, false);
		if (err == 0)
			atomic_store(&key->on, on != 0);
	}
	em_patch_unlock();
	return err;
}

int execmem_key_is_on(const execmem_key *key)
{
	return key ? (int)atomic_load(&key->on) : 0;
}

size_t execmem_key_count(const execmem_key *key)
{
	size_t count = 0;

	em_patch_lock();
	if (key)
		count = key->sites.count;
	em_patch_unlock();
	return count;
}

static const char *check_key(const execmem_key *key)
{
	bool on = atomic_load(&key->on);

	for (size_t i = 0; i < key->sites.count; i++) {
		const struct site *s = &key->sites.list[i];
		uint8_t bytes[EM_ARCH_INSN_MAX];

		if (i > 0 && s->at - key->sites.list[i - 1].at < key->sites.list[i - 1].len)
			return "the sites of a key are not sorted, or overlap";
		if (encode_site(s, on, bytes) < 0)
			return "a site of a key does not reach its target";
		if (!em_patch_holds(s->at, bytes, s->len))
			return on != (s->form != 0) ? "a site of a key should jump and does not" : "a site of a key should do nothing";
	}
	return NULL;
}

const char *execmem_key_check(const execmem_key *key)
{
	const char *broken;

	em_patch_lock();
	broken = key ? check_key(key) : NULL;
	em_patch_unlock();
	return broken;
}

int execmem_key_free(execmem_key *key)
{
	if (!key)
		return em_error_null("key");
	free(key->sites.list);
	free(key);
	return 0;
}

/* ---- static calls ---- */

struct execmem_call {
	struct em_patch_stub stub;
	struct sites sites;
};

int execmem_call_make(execmem_domain *domain, const void *target, int flags, const char *name, execmem_call **out)
{
	execmem_call *call;
	int err;

	if (!out)
		return em_error_null("out");
	call = calloc(1, sizeof *call);
	if (!call)
		return em_error_set(EXECMEM_ENOMEM, "out of memory for a static call.");
	em_patch_lock();
	err = em_patch_place_stub(domain, (uintptr_t)target, flags, name, &call->stub);
	em_patch_unlock();
	if (err < 0)
		free(call);
	else
		*out = call;
	return err;
}

void *execmem_call_entry(const execmem_call *call)
{
	return call ? (void *)(uintptr_t)call->stub.at : NULL;
}

const void *execmem_call_target(const execmem_call *call)
{
	return call ? (const void *)(uintptr_t)__atomic_load_n(&call->stub.target, __ATOMIC_RELAXED) : NULL;
}

/* Where a site goes for a target whose stub goes `to`: the shortest way that reaches. */
static uint64_t way_of(const struct execmem_call *call, const struct site *s, uint64_t target, uint64_t to)
{
	if (target != 0 && reaches(s->at, s->len, target))
		return target;
	return reaches(s->at, s->len, to) ? to : call->stub.at;
}

static int plan_call_site(const struct execmem_call *call, const struct site *s, uint64_t target, uint64_t to,
                          struct em_patch_change *out)
{
	uint64_t before = way_of(call, s, call->stub.target, call->stub.to);
	int err;

	*out = (struct em_patch_change){.at = s->at, .len = s->len, .index = s->index};
	err = em_patch_encode(s->form, s->at, way_of(call, s, target, to), out->new_bytes, s->len);
	return err < 0 ? err : em_patch_encode(s->form, s->at, before, out->old_bytes, s->len);
}

static int set_call(struct execmem_call *call, uint64_t target, int flags)
{
	struct em_patch_change *changes = malloc((call->sites.count + 1) * sizeof *changes);
	uint32_t veneers = call->stub.veneers.count;
	uint64_t to;
	int err;

	if (!changes)
		return em_error_set(EXECMEM_ENOMEM, "out of memory for the sites of a static call.");
	err = em_patch_aim_stub(&call->stub, target, flags, &changes[0], &to);
	for (size_t i = 0; i < call->sites.count && err == 0; i++)
		err = plan_call_site(call, &call->sites.list[i], target, to, &changes[i + 1]);
	if (err == 0)
		err = em_patch_change(changes, call->sites.count + 1);
	free(changes);
	if (err < 0) {
		em_patch_drop_veneers(&call->stub.veneers, veneers);
		return err;
	}
	__atomic_store_n(&call->stub.target, target, __ATOMIC_RELAXED);
	call->stub.to = to;
	return 0;
}

int execmem_call_set(execmem_call *call, const void *target, int flags)
{
	int err;

	if (!call)
		return em_error_null("call");
	em_patch_lock();
	err = set_call(call, (uintptr_t)target, flags);
	em_patch_unlock();
	return err;
}

/* Which of the branches a site may have before it is added it has: its form and the change's old bytes. */
static bool recognise(const struct execmem_call *call, struct site *s, struct em_patch_change *change)
{
	const uint64_t ways[] = {call->stub.at, call->stub.target, call->stub.to};
	const struct em_arch *arch = em_arch_host();

	for (int insn = EXECMEM_INSN_JUMP; insn <= EXECMEM_INSN_CALL; insn++)
		for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++)
			if (ways[i] != 0 && arch->encode(insn, s->at, ways[i], change->old_bytes, s->len) == EM_ARCH_ENCODED &&
			    em_patch_holds(s->at, change->old_bytes, s->len)) {
				s->form = (uint8_t)insn;
				return true;
			}
	return false;
}

static int refuse_site(const struct site *s)
{
	execmem_info info;
	int err = execmem_find((const void *)(uintptr_t)s->at, &info);

	if (err == 0)
		err = em_error_set(EXECMEM_ECHANGED,
		                   "at %#llx there is no jump or call of %u bytes to the static call's entry, or its target.",
		                   (unsigned long long)s->at, s->len);
	em_error_at(s->index);
	return err;
}

static int add_call_sites(execmem_call *call, const uint64_t *given, size_t count)
{
	struct em_patch_change *changes = malloc(count * sizeof *changes);
	struct sites all = {0};
	int err = changes ? copy_sites(&call->sites, count, &all)
	                  : em_error_set(EXECMEM_ENOMEM, "out of memory for %llu sites.", (unsigned long long)count);

	for (size_t i = 0; i < count && err == 0; i++) {
		struct site *s = &all.list[call->sites.count + i];
		struct em_patch_change *c = &changes[i];

		*s = (struct site){.at = given[i], .index = (uint32_t)i, .len = (uint8_t)em_arch_host()->site_size};
		*c = (struct em_patch_change){.at = s->at, .len = s->len, .index = s->index};
		if (!recognise(call, s, c))
			err = refuse_site(s);
		else if (!reaches(s->at, s->len, call->stub.at)) /* for targets that are farther */
			err = refuse_far(s->at, call->stub.at, false);
		else
			err = em_patch_encode(s->form, s->at, way_of(call, s, call->stub.target, call->stub.to), c->new_bytes, s->len);
	}
	err = err < 0 ? err : sort_sites(&all);
	err = err < 0 ? err : em_patch_change(changes, count);
	free(changes);
	if (err < 0) {
		free(all.list);
		return err;
	}
	free(call->sites.list);
	call->sites = all;
	return 0;
}

int execmem_call_add(execmem_call *call, const uint64_t *sites, size_t count)
{
	int err;

	if (!call || (!sites && count > 0))
		return em_error_null(call ? "sites" : "call");
	if (count == 0)
		return 0;
	em_patch_lock();
	err = add_call_sites(call, sites, count);
	em_patch_unlock();
	return err;
}

int execmem_call_remove(execmem_call *call, const void *start, size_t size)
{
	if (!call)
		return em_error_null("call");
	em_patch_lock();
	drop_sites(&call->sites, start, size);
	em_patch_unlock();
	return 0;
}

static const char *check_call(const execmem_call *call)
{
	const struct em_patch_stub *stub = &call->stub;
	uint8_t bytes[EM_ARCH_INSN_MAX];
	uint32_t len = em_arch_host()->site_size;

	if (em_patch_encode(EXECMEM_INSN_JUMP, stub->at, stub->to, bytes, len) < 0 || !em_patch_holds(stub->at, bytes, len))
		return "the entry of a static call does not jump to its target";
	for (size_t i = 0; i < call->sites.count; i++) {
		const struct site *s = &call->sites.list[i];

		if (em_patch_encode(s->form, s->at, way_of(call, s, stub->target, stub->to), bytes, s->len) < 0 ||
		    !em_patch_holds(s->at, bytes, s->len))
			return "a site of a static call does not go to its target";
	}
	return NULL;
}

const char *execmem_call_check(const execmem_call *call)
{
	const char *broken;

	em_patch_lock();
	broken = call ? check_call(call) : NULL;
	em_patch_unlock();
	return broken;
}

int execmem_call_free(execmem_call *call)
{
	if (!call)
		return em_error_null("call");
	em_patch_lock();
	if (call->sites.count > 0) {
		int err =
			em_error_set(EXECMEM_EBUSY, "the static call has %llu sites, which go to its entry or its target; remove them first.",
			             (unsigned long long)call->sites.count);

		em_patch_unlock();
		return err;
	}
	em_patch_free_stub(&call->stub);
	em_patch_unlock();
	free(call->sites.list);
	free(call);
	return 0;
}
