/* patch: branches that change while they run. What keys and calls (patch.c) and hooks (hook.c) share.
 *
 *   a place --branch--> its target
 *   a place --branch--> veneer --> its target      where no branch reaches it: an indirect jump through an address that lies behind it
 *
 * A thread may stand before a veneer's jump for as long as it likes, so a veneer is never changed: another target has one of its own.
 * All of it is under one lock, which is taken before every other: changes of code wait for each other anyway (sys_trap.c).
 */
#ifndef EM_PATCH_H
#define EM_PATCH_H

#include "arch.h"
#include "base.h"

void em_patch_lock(void);
void em_patch_unlock(void);

/* One instruction that changes. */
struct em_patch_change {
	uint64_t at;
	uint32_t len;
	uint32_t index; /* for the caller: em_error_at */
	uint8_t old_bytes[EM_ARCH_INSN_MAX], new_bytes[EM_ARCH_INSN_MAX];
};

/* Changes all, of any domains, in a batch each; sorts them. All or none, or the error's text tells which are not as they were. Those whose
 * bytes stay are looked at only. */
int em_patch_change(struct em_patch_change *changes, size_t count);

struct em_patch_veneers {
	execmem_domain *domain; /* where they are placed */
	struct em_patch_veneer *list;
	uint32_t count, room;
};

/* Where a branch of `len` bytes at `from` has to go for a target, and a veneer is made for that if `flags` has EXECMEM_PATCH_VENEER. */
int em_patch_reach(struct em_patch_veneers *veneers, int flags, uint64_t from, uint32_t len, uint64_t target, uint64_t *to);
/* Frees those beyond the first `count`: none of them was ever reached, or is any more. */
void em_patch_drop_veneers(struct em_patch_veneers *veneers, uint32_t count);

/* A function that is one jump. Its veneers are its own. */
struct em_patch_stub {
	uint64_t at, target, to;
	struct em_patch_veneers veneers;
};

/* target 0: it returns at once. */
int em_patch_place_stub(execmem_domain *domain, uint64_t target, int flags, const char *name, struct em_patch_stub *out);
/* What its jump must become for another target: `out`, and *to; veneers may be added. */
int em_patch_aim_stub(struct em_patch_stub *stub, uint64_t target, int flags, struct em_patch_change *out, uint64_t *to);
int em_patch_set_stub(struct em_patch_stub *stub, uint64_t target, int flags); /* aims and changes */
void em_patch_free_stub(struct em_patch_stub *stub);

/* The instruction (enum execmem_insn) from `site` to `to`; it must reach. */
int em_patch_encode(int insn, uint64_t site, uint64_t to, uint8_t *out, uint32_t len);
/* As bytes are told. */
bool em_patch_holds(uint64_t at, const uint8_t *bytes, uint32_t len);

#endif
