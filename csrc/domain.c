/* domain: the tree, its limits, forks, opening and closing. What happens in a domain's packs is supply.c.
 */
#include "domain.h"
#include "error.h"
#include "grave.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CLOSED_KEPT = 1024 }; /* closed handles that answer ECLOSED before one is used again */

static struct em_lock tree_lock = {.rank = EM_RANK_TREE};
static execmem_domain *closed_first, *closed_last; /* oldest first */
static uint32_t closed_count;
static uint32_t domain_numbers;
static struct em_index_atlas atlas;
static uint8_t traps[EM_MAP_BLANK];
static bool started;
static int auto_mode; /* the first choice, once it was seen to work; 0: not yet */
uint32_t em_domain_forks;
execmem_domain *em_domain_default; /* NULL again in a forked child */

/* ---- the start, and forks ---- */

/* Everything is still while the process forks, so that the child inherits it whole. */
static void before_fork(void)
{
	em_domain_users_at_fork.prepare();
	em_sys_lock(&tree_lock);
	em_domain_at_fork.prepare(em_domain_default);
}

static void in_parent(void)
{
	em_domain_at_fork.in_parent(em_domain_default);
	em_sys_unlock(&tree_lock);
	em_domain_users_at_fork.in_parent();
}

/* Only the forking thread lives on. Domains that cannot be used here keep their number of forks, which is not ours any more; then the
 * default domain is to be a new one. */
static void in_forked_child(void)
{
	em_domain_forks++;
	tree_lock = (struct em_lock){.rank = EM_RANK_TREE};
	if (!em_domain_at_fork.in_child(em_domain_default, em_domain_forks))
		__atomic_store_n(&em_domain_default, NULL, __ATOMIC_RELEASE);
	em_domain_users_at_fork.in_child();
}

/* When the library is loaded: a fork during its first use by another thread must find them, or the child would never get the tree's lock. */
static int handlers; /* 0, or why they are not registered */

__attribute__((constructor)) static void register_handlers(void)
{
	handlers = em_sys_at_fork(before_fork, in_parent, in_forked_child);
}

static int start_locked(void)
{
	const struct em_arch *arch = em_arch_host();
	int err;

	if (started)
		return 0;
	if (!arch->supported)
		return em_error_set(EXECMEM_EUNSUPPORTED, "%s", arch->why);
	if (em_sys_page_size() != EM_PAGE)
		return em_error_set(EXECMEM_EUNSUPPORTED, "execmem needs pages of %d bytes, this kernel has %llu.", EM_PAGE,
		                    (unsigned long long)em_sys_page_size());
	arch->fill_traps(traps, sizeof traps);
	if (handlers < 0)
		return em_error_set(EXECMEM_ENOMEM, "could not register a fork handler: out of memory.");
	err = arch->fill_sync == EM_ARCH_SYNC_CORES ? em_sys_sync_core() : 0;
	if (err < 0)
		return em_error_system(err,
		                       "make other threads see new code, which this CPU needs after every write (membarrier; on riscv64 "
		                       "riscv_flush_icache)");
	started = true;
	return 0;
}

/* ---- shards ---- */

static struct em_shard *open_shard(execmem_domain *d, uint32_t number)
{
	struct em_shard *shard = calloc(1, sizeof *shard);

	if (!shard)
		return NULL;
	shard->domain = d;
	shard->lock = &d->gates[number].lock;
	shard->books = &d->ledger.shards[number];
	shard->ring = em_ledger_ring(&d->ledger, number);
	shard->index = em_ledger_index(&d->ledger, number);
	shard->number = number;
	em_domain_set_plain(shard, d->plain);
	for (int kind = 0; kind < EXECMEM_KINDS; kind++)
		shard->small[kind] = EM_PACK_NONE;
	em_sys_lock_init(shard->lock);
	d->shards[number] = shard;
	d->ledger.header->shards = number + 1;
	atomic_store(&d->home[number], em_sys_self());
	atomic_store(&d->shard_count, number + 1);
	return shard;
}

static void close_shards(execmem_domain *d)
{
	uint32_t count = atomic_exchange(&d->shard_count, 0);

	for (uint32_t i = 0; i < count; i++) {
		atomic_store(&d->home[i], 0);
		free(d->shards[i]);
		d->shards[i] = NULL;
	}
}

/* The number of the caller's home: a shard of its own while there are few, else one that is shared. The domain may be closed. */
static uint32_t home_of(execmem_domain *d)
{
	uintptr_t self = em_sys_self();
	uint32_t count = atomic_load(&d->shard_count);

	for (uint32_t i = 0; i < count; i++)
		if (atomic_load_explicit(&d->home[i], memory_order_relaxed) == self)
			return i;
	if (count < EM_SHARDS) {
		em_sys_lock(&d->admin);
		count = atomic_load(&d->shard_count);
		if (d->writable && count < EM_SHARDS && open_shard(d, count))
			count++;
		em_sys_unlock(&d->admin);
		if (count > 0 && atomic_load_explicit(&d->home[count - 1], memory_order_relaxed) == self)
			return count - 1;
	}
	return count ? (uint32_t)((uint64_t)self * 0x9E3779B97F4A7C15u >> 32) % count : 0; /* thread pointers differ in few bits */
}

static int refuse_closed(void)
{
	return em_error_set(EXECMEM_ECLOSED, "the domain is closed; open a new one.");
}

int em_domain_refuse_sealed(const execmem_domain *d)
{
	return em_error_set(
		EXECMEM_ESEALED,
		"domain \"%s\" is sealed: what is in it stays as it is until the process ends. Put new code in another domain.",
		d->ledger.header->name);
}

void em_domain_lock_tree(void)
{
	em_sys_lock(&tree_lock);
}

void em_domain_unlock_tree(void)
{
	em_sys_unlock(&tree_lock);
}

static int find_domain(execmem_domain *domain, execmem_domain **out)
{
	execmem_domain *d = domain ? domain : execmem_domain_root();

	if (!d)
		return execmem_error_code();
	if (d->forks != em_domain_forks && !d->open)
		return refuse_closed(); /* before the fork: its locks are of no use here */
	if (d->forks != em_domain_forks)
		return em_error_set(EXECMEM_EFORKED, "this domain was opened before fork(), and its bookkeeping could not be copied for "
		                                     "the child (memory or files were short): its code runs here, "
		                                     "nothing else. Open a new domain.");
	*out = d;
	return 0;
}

/* `asking`: sealed or not. */
static struct em_shard *enter_shard(execmem_domain *d, uint32_t number, bool asking)
{
	em_sys_lock(&d->gates[number].lock);
	if (EM_LIKELY(d->writable || (asking && d->open)))
		return d->shards[number];
	if (d->open)
		em_domain_refuse_sealed(d);
	else
		refuse_closed();
	em_sys_unlock(&d->gates[number].lock);
	return NULL;
}

struct em_shard *em_domain_enter_slow(execmem_domain *domain)
{
	execmem_domain *d = NULL;

	return find_domain(domain, &d) < 0 ? NULL : enter_shard(d, home_of(d), false);
}

struct em_shard *em_domain_enter_asking(execmem_domain *domain)
{
	execmem_domain *d = NULL;

	return find_domain(domain, &d) < 0 ? NULL : enter_shard(d, 0, true);
}

static struct em_shard *enter_at(execmem_domain *domain, uint64_t address, bool asking)
{
	execmem_domain *d;

	if (find_domain(domain, &d) < 0)
		return NULL;
	for (;;) {
		struct em_shard *s;
		uint64_t pack = (address - (uintptr_t)d->map.window) >> EM_PACK_SHIFT;
		uint32_t number = pack < EXECMEM_WINDOW_PACKS_MAX ? em_domain_shard_of(d, pack) : 0;

		s = enter_shard(d, number, asking);
		if (!s)
			return NULL;
		pack = (address - (uintptr_t)d->map.window) >> EM_PACK_SHIFT;
		if (pack < d->map.packs && em_domain_shard_of(d, pack) == number)
			return s;
		if (pack >= d->map.packs)
			em_error_set(EXECMEM_EFOREIGN, "address %#llx is not in the window of domain \"%s\".", (unsigned long long)address,
			             d->ledger.header->name);
		em_sys_unlock(&d->gates[number].lock);
		if (pack >= d->map.packs)
			return NULL;
		/* the pack changed hands on the way: look again */
	}
}

execmem_domain *em_domain_at(uint64_t address)
{
	return em_index_owner(&atlas, address);
}

struct em_shard *em_domain_enter_at_slow(execmem_domain *domain, uint64_t address)
{
	return enter_at(domain, address, false);
}

struct em_shard *em_domain_enter_at_asking(execmem_domain *domain, uint64_t address)
{
	return enter_at(domain, address, true);
}

execmem_domain *em_domain_owner(const void *address)
{
	execmem_domain *owner = em_domain_at((uintptr_t)address);

	if (EM_UNLIKELY(!owner))
		em_error_set(EXECMEM_EFOREIGN,
		             "address %p lies in no window of execmem in this process; pass the address that alloc or place gave.",
		             address);
	return owner;
}

void em_domain_lock_all(execmem_domain *d)
{
	em_sys_lock(&d->admin);
	for (uint32_t i = 0; i < atomic_load(&d->shard_count); i++)
		em_sys_lock(&d->gates[i].lock);
}

void em_domain_leave_all(execmem_domain *d)
{
	for (uint32_t i = atomic_load(&d->shard_count); i-- > 0;)
		em_sys_unlock(&d->gates[i].lock);
	em_sys_unlock(&d->admin);
}

int em_domain_enter_all(execmem_domain *domain, execmem_domain **out)
{
	execmem_domain *d;
	int err = find_domain(domain, &d);

	if (err < 0)
		return err;
	em_domain_lock_all(d);
	if (!d->open) {
		em_domain_leave_all(d);
		return refuse_closed();
	}
	*out = d;
	return 0;
}

/* Frees first: a block that is counted as freed is then counted as given out too. */
void em_domain_sum(const execmem_domain *d, execmem_shard *out)
{
	uint32_t count = atomic_load(&d->shard_count);

	*out = (execmem_shard){0};
	for (uint32_t i = 0; i < count; i++)
		out->frees += __atomic_load_n(&d->ledger.shards[i].frees, __ATOMIC_ACQUIRE);
	for (uint32_t i = 0; i < count; i++) {
		const execmem_shard *s = &d->ledger.shards[i];

		out->allocs += __atomic_load_n(&s->allocs, __ATOMIC_ACQUIRE);
		out->live_bytes += __atomic_load_n(&s->live_bytes, __ATOMIC_RELAXED);
		out->used_bytes += __atomic_load_n(&s->used_bytes, __ATOMIC_RELAXED);
		out->fills += __atomic_load_n(&s->fills, __ATOMIC_RELAXED);
		out->fill_bytes += __atomic_load_n(&s->fill_bytes, __ATOMIC_RELAXED);
		out->refusals += __atomic_load_n(&s->refusals, __ATOMIC_RELAXED);
		out->quarantined_bytes += __atomic_load_n(&s->quarantined_bytes, __ATOMIC_RELAXED);
		out->quarantined_blocks += __atomic_load_n(&s->quarantined_blocks, __ATOMIC_RELAXED);
		out->retired_bytes += __atomic_load_n(&s->retired_bytes, __ATOMIC_RELAXED);
		out->retired_blocks += __atomic_load_n(&s->retired_blocks, __ATOMIC_RELAXED);
		out->events += __atomic_load_n(&s->events, __ATOMIC_RELAXED);
	}
}

/* ---- limits ---- */

static bool charge_one(execmem_header *h, uint64_t bytes)
{
	uint64_t now = __atomic_load_n(&h->charged_bytes, __ATOMIC_RELAXED);

	do {
		if (bytes > __atomic_load_n(&h->limit, __ATOMIC_RELAXED) - (now < h->limit ? now : h->limit))
			return false;
	} while (!__atomic_compare_exchange_n(&h->charged_bytes, &now, now + bytes, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
	return true;
}

static void uncharge_until(execmem_domain *from, const execmem_domain *end, uint64_t bytes)
{
	for (; from != end; from = from->parent)
		if (from->limited)
			__atomic_fetch_sub(&from->ledger.header->charged_bytes, bytes, __ATOMIC_RELAXED);
}

int em_domain_charge_slow(execmem_domain *domain, uint64_t bytes)
{
	for (execmem_domain *d = domain; d; d = d->parent) {
		execmem_header *h = d->ledger.header;

		if (!d->limited || charge_one(h, bytes))
			continue;
		uncharge_until(domain, d, bytes);
		return em_error_set(EXECMEM_ELIMIT,
		                    "domain \"%s\" has %llu of %llu bytes charged and cannot take %llu more. Free blocks or raise its "
		                    "limit.",
		                    h->name, (unsigned long long)__atomic_load_n(&h->charged_bytes, __ATOMIC_RELAXED),
		                    (unsigned long long)h->limit, (unsigned long long)bytes);
	}
	return 0;
}

void em_domain_uncharge_slow(execmem_domain *domain, uint64_t bytes)
{
	uncharge_until(domain, NULL, bytes);
}

/* The tree's lock is held. */
static uint64_t sum_used(const execmem_domain *d)
{
	execmem_shard own;
	uint64_t sum;

	em_domain_sum(d, &own);
	sum = own.used_bytes;
	for (const execmem_domain *child = d->first_child; child; child = child->next_sibling)
		sum += sum_used(child);
	return sum;
}

uint64_t em_domain_charged(execmem_domain *domain)
{
	uint64_t sum;

	em_sys_lock(&tree_lock);
	sum = domain->open ? sum_used(domain) : 0;
	em_sys_unlock(&tree_lock);
	return sum;
}

static void lock_subtree(execmem_domain *d)
{
	em_domain_lock_all(d);
	for (execmem_domain *child = d->first_child; child; child = child->next_sibling)
		lock_subtree(child);
}

static void unlock_subtree(execmem_domain *d)
{
	for (execmem_domain *child = d->first_child; child; child = child->next_sibling)
		unlock_subtree(child);
	em_domain_leave_all(d);
}

static void mark_charged(execmem_domain *d)
{
	d->charged = true;
	for (execmem_domain *child = d->first_child; child; child = child->next_sibling)
		mark_charged(child);
}

int execmem_domain_limit(execmem_domain *domain, uint64_t limit)
{
	execmem_domain *d;
	int err = find_domain(domain, &d);

	if (err < 0)
		return err;
	em_sys_lock(&tree_lock);
	if (!d->open) {
		em_sys_unlock(&tree_lock);
		return refuse_closed();
	}
	if (!d->writable) { /* it is sealed under the tree's lock */
		em_sys_unlock(&tree_lock);
		return em_domain_refuse_sealed(d);
	}
	lock_subtree(d); /* nobody allocates there while the first count is made */
	if (!d->limited)
		d->ledger.header->charged_bytes = sum_used(d);
	d->limited = true;
	mark_charged(d);
	__atomic_store_n(&d->ledger.header->limit, limit, __ATOMIC_RELAXED);
	unlock_subtree(d);
	em_sys_unlock(&tree_lock);
	return 0;
}

/* ---- opening ---- */

static int choose_mode(int asked, int *out)
{
	static const int order[] = {EXECMEM_MODE_PKEY, EXECMEM_MODE_SYSCALL, EXECMEM_MODE_PROCMEM, EXECMEM_MODE_FLIP};
	size_t choice; /* the first: no CPU gets protection keys while it runs */
	int first = 0;
	char why[600] = "", who[120] = "";
	enum execmem_policy policy = EXECMEM_POLICY_NONE;
	uint32_t backing;

	if (asked < 0 || asked >= EXECMEM_MODES)
		return em_error_set(EXECMEM_EINVAL, "%d is no write mode; use one of enum execmem_write_mode.", asked);
	*out = asked ? asked : auto_mode;
	if (*out)
		return 0;
	choice = em_map_has_keys() ? 0 : 1;
	for (size_t i = choice; i < sizeof order / sizeof order[0]; i++) {
		int err = em_map_works(order[i], traps, &backing);
		size_t told = strlen(who);

		if (err == 0) {
			*out = order[i];
			if (i == choice) /* a fallback is looked at again: what refused may have been passing */
				auto_mode = order[i];
			return 0;
		}
		if (i == choice) {
			first = err;
			policy = em_error_policy();
			strncpy(why, execmem_error_text(), sizeof why - 1);
		}
		snprintf(who + told, sizeof who - told, "%s%s: %s", told ? ", " : "", execmem_mode_name(order[i]),
		         execmem_policy_name((int)em_error_policy()));
	}
	first =
		em_error_set(first, "no write mode works here (%s). The first choice, %s: %s", who, execmem_mode_name(order[choice]), why);
	em_error_blame(policy);
	return first;
}

/* The first leaves, without mappings of their own: memory that nobody touches costs nothing. */
enum { NEAR_LEAVES = 8 };
static _Alignas(EM_PAGE) struct em_index_leaf near_leaves[NEAR_LEAVES];
static uint32_t near_leaves_used;

static int add_leaves(uint64_t start, uint64_t size)
{
	for (uint64_t at = start; at < start + size; at += EXECMEM_PACK_SIZE) {
		void *leaf;
		int err = 0;

		if (at >> EM_INDEX_ADDRESS_BITS)
			return em_error_set(EXECMEM_EUNSUPPORTED, "the window at %#llx lies beyond a 47-bit address space.",
			                    (unsigned long long)at);
		if (em_index_leaf_of(&atlas, at))
			continue;
		if (near_leaves_used < NEAR_LEAVES)
			leaf = &near_leaves[near_leaves_used++];
		else if ((err = em_sys_map_table(sizeof(struct em_index_leaf), -1, &leaf)) < 0)
			return em_error_system(err, "map a table of addresses");
		em_index_add_leaf(&atlas, at, leaf);
	}
	return 0;
}

/* Forgets a window. Leaves stay mapped, for somebody may be looking an address up; the memory of empty ones goes back. */
static void remove_leaves(uint64_t start, uint64_t size)
{
	struct em_index_leaf *done = NULL;

	em_index_set_owner(&atlas, start, size, NULL);
	for (uint64_t at = start; at < start + size; at += EXECMEM_PACK_SIZE) {
		struct em_index_leaf *leaf = em_index_leaf_of(&atlas, at);

		if (leaf != done && em_index_leaf_is_empty(leaf))
			(void)em_sys_discard_table(leaf, sizeof *leaf);
		done = leaf;
	}
}

/* A handle that was never used, or one closed so long ago that nobody should hold it any more. */
static execmem_domain *new_handle(void)
{
	execmem_domain *d = closed_first;

	if (!d || closed_count < CLOSED_KEPT)
		d = aligned_alloc(sizeof d->gates[0], em_round_up(sizeof *d, sizeof d->gates[0]));
	else {
		closed_first = d->next_sibling;
		closed_count--;
	}
	if (!d)
		return NULL;
	memset(d, 0, sizeof *d);
	d->admin.rank = EM_RANK_ADMIN;
	for (uint32_t i = 0; i < EM_SHARDS; i++)
		d->gates[i].lock.rank = (uint8_t)(EM_RANK_SHARD + i);
	d->packs.rank = EM_RANK_PACKS;
	d->names.rank = EM_RANK_NAMES;
	return d;
}

static void keep_closed(execmem_domain *d)
{
	d->next_sibling = NULL;
	if (closed_first)
		closed_last->next_sibling = d;
	else
		closed_first = d;
	closed_last = d;
	closed_count++;
}

/* What hardens: to the nearest chunk. */
static int set_hardening(execmem_domain *d, const execmem_options *o, const execmem_domain *parent)
{
	uint32_t above = parent ? parent->ledger.header->trust : 0;

	if (o->gap > EXECMEM_GAP_MAX)
		return em_error_set(EXECMEM_EINVAL, "a gap has at most %d bytes; %llu were asked for.", EXECMEM_GAP_MAX,
		                    (unsigned long long)o->gap);
	if (o->trust > EXECMEM_TRUST_MAX)
		return em_error_set(EXECMEM_EINVAL, "a trust class is a number from 0 to %d, not %llu.", EXECMEM_TRUST_MAX,
		                    (unsigned long long)o->trust);
	if (o->trust && o->trust < above)
		return em_error_set(EXECMEM_EINVAL,
		                    "trust class %llu is trusted more than class %llu of the parent domain; give %llu or more, or 0 for "
		                    "the parent's.",
		                    (unsigned long long)o->trust, (unsigned long long)above, (unsigned long long)above);
	d->ledger.header->trust = o->trust ? o->trust : above;
	d->quarantine = o->quarantine;
	d->gap = (o->gap + EXECMEM_CHUNK - 1) / EXECMEM_CHUNK;
	d->no_park = d->quarantine || d->gap;
	return 0;
}

static int check_options(const execmem_options *o, struct em_map_options *out)
{
	uint64_t window = o->window ? o->window : o->near_address ? 256ull << 20 : 2048ull << 20;
	uint64_t largest = (uint64_t)EXECMEM_WINDOW_PACKS_MAX * EXECMEM_PACK_SIZE;

	if (window < EXECMEM_PACK_SIZE || window > largest)
		return em_error_set(EXECMEM_EINVAL, "a window of %llu bytes is not possible; ask for 2 MB to %llu MB.",
		                    (unsigned long long)window, (unsigned long long)(largest >> 20));
	if (o->name && strlen(o->name) >= sizeof((execmem_header *)0)->name)
		return em_error_set(EXECMEM_EINVAL, "a domain's name has at most %d bytes, this one has %llu.",
		                    (int)sizeof((execmem_header *)0)->name - 1, (unsigned long long)strlen(o->name));
	out->packs = (uint32_t)(window >> EM_PACK_SHIFT);
	out->shrink = !o->window;
	out->small_pages = o->small_pages;
	out->fallback = o->fallback;
	out->near_address = o->near_address;
	out->reach = o->reach ? o->reach : em_arch_host()->branch_reach;
	out->traps = traps;
	return choose_mode(o->write_mode, &out->mode);
}

/* Window and ledger. Where addresses are short (RLIMIT_AS) and no size was asked for, much smaller ones: others want some too. */
static int open_memory(execmem_domain *d, struct em_map_options *options, const char *name)
{
	for (;; options->packs /= 8) {
		int err = em_map_open(&d->map, options);

		if (err == 0) {
			err = em_ledger_open(&d->ledger, name, d->map.packs);
			if (err == 0)
				return 0;
			em_map_close(&d->map);
		}
		if (err != EXECMEM_ENOMEM || !options->shrink || options->packs < 8)
			return err;
	}
}

static int open_locked(const execmem_options *o, execmem_domain *parent, execmem_domain **out)
{
	struct em_map_options options = {0};
	execmem_header *h;
	execmem_domain *d;
	int err = check_options(o, &options);

	if (err < 0)
		return err;
	d = new_handle();
	if (!d)
		return em_error_set(EXECMEM_ENOMEM, "out of memory for a domain's handle.");
	err = open_memory(d, &options, o->name ? o->name : parent ? "unnamed" : "root");
	if (err < 0)
		goto undo_handle;
	d->arch = em_arch_host();
	d->plain =
		d->map.mode == EXECMEM_MODE_ALIAS && !d->arch->flush && d->arch->fill_sync == EM_ARCH_SYNC_NONE && d->arch->trap_size == 1;
	d->copied_ledger = -1;
	err = add_leaves((uintptr_t)d->map.window, em_domain_offset(d->map.packs, 0));
	if (err == 0)
		err = set_hardening(d, o, parent);
	if (err == 0 && !open_shard(d, 0))
		err = em_error_set(EXECMEM_ENOMEM, "out of memory for a domain's first shard.");
	if (err < 0)
		goto undo_memory;
	d->blank[EXECMEM_TEXT] = traps[0];
	d->forks = em_domain_forks;
	d->parent = parent;
	for (int kind = 0; kind < EXECMEM_KINDS; kind++)
		d->spare[kind] = EM_PACK_NONE;
	h = d->ledger.header;
	h->window = (uintptr_t)d->map.window;
	h->limit = o->limit ? o->limit : UINT64_MAX;
	d->limited = o->limit != 0;
	d->charged = d->limited || (parent && parent->charged);
	em_sys_lock_init(&d->names);
	h->domain = ++domain_numbers;
	h->parent = parent ? parent->ledger.header->domain : 0;
	h->write_mode = (uint32_t)d->map.mode;
	strncpy(h->arch, d->arch->name, sizeof h->arch - 1);
	if (parent) {
		d->next_sibling = parent->first_child;
		parent->first_child = d;
	}
	d->open = d->writable = true;
	em_index_set_owner(&atlas, h->window, em_domain_offset(d->map.packs, 0), d);
	*out = d;
	return 0;
undo_memory:
	em_ledger_close(&d->ledger);
	em_map_close(&d->map);
undo_handle:
	keep_closed(d);
	return err;
}

static int mode_from_environment(int *out)
{
	const char *text = getenv("EXECMEM_WRITE_MODE");

	*out = EXECMEM_MODE_AUTO;
	if (!text || !*text)
		return 0;
	for (int mode = 0; mode < EXECMEM_MODES; mode++)
		if (strcmp(text, execmem_mode_name(mode)) == 0) {
			*out = mode;
			return 0;
		}
	return em_error_set(EXECMEM_EINVAL, "EXECMEM_WRITE_MODE=%s is no write mode; use auto, pkey, syscall, alias, procmem or flip.",
	                    text);
}

static execmem_domain *root_locked(void)
{
	execmem_domain *d = __atomic_load_n(&em_domain_default, __ATOMIC_ACQUIRE);
	execmem_options options = {.name = "root"};

	if (d)
		return d;
	if (start_locked() < 0 || mode_from_environment(&options.write_mode) < 0 || open_locked(&options, NULL, &d) < 0)
		return NULL;
	__atomic_store_n(&em_domain_default, d, __ATOMIC_RELEASE);
	return d;
}

execmem_domain *execmem_domain_root(void)
{
	execmem_domain *d;

	em_sys_lock(&tree_lock);
	d = root_locked();
	em_sys_unlock(&tree_lock);
	return d;
}

int execmem_domain_open(const execmem_options *options, execmem_domain **out)
{
	execmem_domain *parent;
	int err = 0;

	if (!options || !out)
		return em_error_null(options ? "out" : "options");
	em_sys_lock(&tree_lock);
	parent = options->parent ? options->parent : root_locked();
	if (!parent)
		err = execmem_error_code();
	else if (parent->open && parent->forks != em_domain_forks)
		err = em_error_set(EXECMEM_EFORKED,
		                   "the parent domain was opened before fork() and could not be taken over by this child; open a new one.");
	else if (!parent->open)
		err = em_error_set(EXECMEM_ECLOSED, "the parent domain is closed.");
	else
		err = open_locked(options, parent, out);
	em_sys_unlock(&tree_lock);
	return err;
}

/* ---- closing ---- */

/* The domain or one below it that is sealed, NULL: none. */
static const execmem_domain *find_sealed(const execmem_domain *d)
{
	const execmem_domain *found = d->writable ? NULL : d;

	for (const execmem_domain *child = d->first_child; child && !found; child = child->next_sibling)
		found = find_sealed(child);
	return found;
}

/* Refuses, or gives everything back. Children first. The tree's lock is held. */
static int close_locked(execmem_domain *d, bool force)
{
	execmem_domain **link;
	execmem_shard own;
	execmem_header *h;

	if (d->open && d->forks != em_domain_forks)
		return em_error_set(
			EXECMEM_EFORKED,
			"this domain was opened before fork() and could not be taken over by this child; it ends with the process.");
	if (!d->open)
		return em_error_set(EXECMEM_ECLOSED, "the domain is closed already.");
	h = d->ledger.header;
	if (!d->parent)
		return em_error_set(EXECMEM_EBUSY, "the root domain lives as long as the process; free its blocks instead.");
	if (find_sealed(d))
		return em_domain_refuse_sealed(find_sealed(d));
	if (!force && d->first_child)
		return em_error_set(EXECMEM_EBUSY, "domain \"%s\" has children; close them first, or force.", h->name);
	while (d->first_child)
		(void)close_locked(d->first_child, true);
	em_domain_lock_all(d);
	em_domain_sum(d, &own);
	if (!force && own.allocs != own.frees) {
		em_error_set(EXECMEM_EBUSY, "domain \"%s\" has %llu live blocks%s; free them first, or force.", h->name,
		             (unsigned long long)(own.allocs - own.frees),
		             own.retired_blocks ? ", with those that were retired and wait for threads (execmem_retire_wait)" : "");
		em_domain_leave_all(d);
		return EXECMEM_EBUSY;
	}
	d->open = d->writable = false;
	em_domain_leave_all(d);
	while (atomic_load(&d->makers)) /* they find it closed and give up */
		em_sys_nap();
	em_domain_lock_all(d); /* and have left */
	em_domain_leave_all(d);
	em_domain_sum(d, &own);
	uncharge_until(d->parent, NULL, own.used_bytes);
	em_grave_bury_window(h->window, em_domain_offset(d->map.packs, 0), h->domain, h->name);
	remove_leaves(h->window, em_domain_offset(d->map.packs, 0));
	em_map_close(&d->map);
	em_ledger_close(&d->ledger);
	em_sys_lock(&d->admin); /* nobody who holds all of them is left with locks that are not counted any more */
	close_shards(d);
	em_sys_unlock(&d->admin);
	for (link = &d->parent->first_child; *link != d; link = &(*link)->next_sibling)
		;
	*link = d->next_sibling;
	keep_closed(d);
	return 0;
}

int execmem_domain_close(execmem_domain *domain, int force)
{
	int err;

	if (!domain)
		return em_error_set(EXECMEM_EINVAL, "execmem_domain_close needs a domain; the root cannot be closed.");
	em_sys_lock(&tree_lock);
	err = close_locked(domain, force);
	em_sys_unlock(&tree_lock);
	return err;
}

static int probe(int asked, int *mode, uint32_t *backing)
{
	int err;

	em_sys_lock(&tree_lock);
	err = start_locked();
	if (err == 0)
		err = choose_mode(asked, mode);
	if (err == 0)
		err = em_map_works(*mode, traps, backing);
	em_sys_unlock(&tree_lock);
	return err;
}

int execmem_probe(int write_mode)
{
	uint32_t backing;
	int mode;

	return probe(write_mode, &mode, &backing);
}

int execmem_probe_mode(int write_mode, execmem_verdict *out)
{
	uint32_t backing = 0;
	int mode = write_mode, err;

	if (!out || write_mode < 0 || write_mode >= EXECMEM_MODES)
		return out ? em_error_set(EXECMEM_EINVAL, "%d is no write mode; use one of enum execmem_write_mode.", write_mode)
		           : em_error_null("out");
	err = probe(write_mode, &mode, &backing);
	*out = (execmem_verdict){.code = err, .write_mode = (uint32_t)mode};
	if (err == 0) {
		out->backing = backing;
	} else {
		out->policy = em_error_policy();
		snprintf(out->reason, sizeof out->reason, "%s", execmem_error_text());
	}
	return 0;
}

int execmem_probe_policies(execmem_policies *out)
{
	if (!out)
		return em_error_null("out");
	em_sys_policies(out);
	return 0;
}

const char *execmem_arch_name(void)
{
	return em_arch_host()->name;
}
