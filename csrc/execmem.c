/* execmem: the public calls on one block. Batches are batch.c, what both are made of is block.h.
 *
 *   a block:  NONE --alloc--> RESERVED --fill--> FILLED --fill--> FILLED
 *                                 \---------------\--free--> NONE        (free_many passes through DYING)
 *
 * Each call enters a shard (its lock), does all of its work or undoes what it did in reverse, and leaves. Memory is blanked before its
 * chunks are given back, so a free chunk holds traps from the moment it is one.
 */
#include "block.h"
#include "error.h"

/* ---- one at a time ---- */

int execmem_alloc_in(execmem_domain *domain, int kind, size_t size, size_t align, const char *name, void **out)
{
	struct em_request r = {kind, size, align, name};
	struct em_shard *s;
	struct em_place at;
	int err = em_block_check(&r);

	if (EM_UNLIKELY(err < 0 || !out))
		return err < 0 ? err : em_error_null("out");
	s = em_domain_enter(domain);
	if (EM_UNLIKELY(!s))
		return execmem_error_code();
	err = em_block_alloc(s, &r, NULL, em_domain_ms(s->domain), &at);
	if (EM_LIKELY(err == 0))
		*out = (void *)(uintptr_t)at.address;
	else
		em_block_refuse(s, err);
	em_domain_leave(s);
	return err;
}

int execmem_place(execmem_domain *domain, int kind, const void *src, size_t len, size_t align, const char *name, void **out)
{
	struct em_request r = {kind, len, align, name};
	struct em_shard *s;
	struct em_place at;
	int err = em_block_check(&r);

	if (EM_UNLIKELY(err < 0 || !src || !out))
		return err < 0 ? err : em_error_null(src ? "out" : "src");
	s = em_domain_enter(domain);
	if (EM_UNLIKELY(!s))
		return execmem_error_code();
	err = em_block_alloc(s, &r, NULL, em_domain_ms(s->domain), &at);
	if (EM_LIKELY(err == 0)) {
		err = em_block_write(s, &at, at.address, src, len);
		if (EM_UNLIKELY(err < 0))
			em_block_take_back(s, &at);
	}
	if (EM_LIKELY(err == 0))
		*out = (void *)(uintptr_t)at.address;
	else
		em_block_refuse(s, err);
	em_domain_leave(s);
	return err;
}

static int check_bounds(struct em_shard *s, uint64_t address, uint64_t len, struct em_place *at)
{
	int err = em_block_is_start(s, address, at) ? 0 : em_block_find(s, address, at);

	if (EM_LIKELY(err == 0 && address - at->address <= at->size && len <= at->size - (address - at->address)))
		return 0;
	return err < 0 ? err
	               : em_error_set(
						 EXECMEM_EBOUNDS,
						 "writing %llu bytes at %#llx would leave its block, which has %llu bytes at %#llx. Allocate a larger one.",
						 (unsigned long long)len, (unsigned long long)address, (unsigned long long)at->size,
						 (unsigned long long)at->address);
}

int execmem_fill(void *dst, const void *src, size_t len)
{
	uint64_t address = (uintptr_t)dst;
	execmem_domain *d = em_domain_owner(dst);
	struct em_shard *s = d ? em_domain_enter_at(d, address) : NULL;
	struct em_place at;
	int err;

	if (EM_UNLIKELY(!s))
		return execmem_error_code();
	err = check_bounds(s, address, len, &at);
	if (EM_UNLIKELY(err == 0 && !src && len > 0))
		err = em_error_null("src");
	if (EM_UNLIKELY(err == 0 && s->shared && len > 0))
		err = em_block_refuse_write(s, &at);
	if (EM_LIKELY(err == 0 && len > 0)) {
		err = em_block_write(s, &at, address, src, len);
		if (EM_LIKELY(err == 0))
			em_ledger_event(s->ring, s->books, EXECMEM_EVENT_FILL, address, (uint32_t)len, em_domain_ms(d));
	}
	if (EM_UNLIKELY(err < 0))
		em_block_refuse(s, err);
	em_domain_leave(s);
	return err;
}

__attribute__((always_inline)) static inline int free_entered(struct em_shard *s, uint64_t address)
{
	int err = em_block_free_at(s, address);

	if (EM_UNLIKELY(err < 0))
		em_block_refuse(s, err);
	em_domain_leave(s);
	return err;
}

int execmem_free_in(execmem_domain *domain, void *address)
{
	struct em_shard *s = em_domain_enter_at(domain, (uintptr_t)address);

	return EM_LIKELY(s != NULL) ? free_entered(s, (uintptr_t)address) : execmem_error_code();
}

/* ---- the kernel's three calls ---- */

void *execmem_alloc(size_t size, size_t align)
{
	void *out;

	return execmem_alloc_in(NULL, EXECMEM_TEXT, size, align, NULL, &out) == 0 ? out : NULL;
}

int execmem_free(void *address)
{
	execmem_domain *d = em_domain_owner(address);
	struct em_shard *s = d ? em_domain_enter_at(d, (uintptr_t)address) : NULL;

	return EM_LIKELY(s != NULL) ? free_entered(s, (uintptr_t)address) : execmem_error_code();
}

/* ---- asking ---- */

int execmem_find(const void *address, execmem_info *out)
{
	execmem_domain *d = out ? em_domain_owner(address) : NULL;
	struct em_shard *s;
	struct em_place at;
	int err;

	if (!out)
		return em_error_null("out");
	s = d ? em_domain_enter_at_asking(d, (uintptr_t)address) : NULL;
	if (!s)
		return execmem_error_code();
	err = em_block_find(s, (uintptr_t)address, &at);
	if (err == 0) {
		*out = (execmem_info){
			.address = at.address,
			.size = at.size,
			.rounded = (uint64_t)at.chunks << EM_CHUNK_SHIFT,
			.pack = at.pack,
			.born_ms = at.block->born_ms,
			.state = at.block->state,
			.kind = at.block->kind,
			.domain = d->ledger.header->domain,
		};
		em_sys_lock(&d->names);
		em_ledger_read_name(&d->ledger, at.block->name, out->name, sizeof out->name);
		em_sys_unlock(&d->names);
	}
	em_domain_leave(s);
	return err;
}

const char *execmem_mode_name(int write_mode)
{
	static const char *const names[EXECMEM_MODES] = {"auto", "syscall", "alias", "procmem", "flip", "pkey"};

	return write_mode >= 0 && write_mode < EXECMEM_MODES ? names[write_mode] : "unknown";
}

const char *execmem_backing_name(int backing)
{
	static const char *const names[EXECMEM_BACKINGS] = {"private", "memfd", "tmpfs", "disk"};

	return backing >= 0 && backing < EXECMEM_BACKINGS ? names[backing] : "unknown";
}

int execmem_sync(void)
{
	int err = em_sys_sync_core();

	return err < 0 ? em_error_system(err, "synchronise every thread's instruction stream (membarrier)") : 0;
}
