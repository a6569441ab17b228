/* hook: code that runs instead of a function.
 *
 *   function: landing | jump --> first replacement .. calls its stub --> second replacement .. calls its stub --> the original
 *
 *   the original   behind the entry's instructions, where these did nothing
 *                  else a copy of them that lies elsewhere, with a jump behind them
 *
 * The entry is one of three:
 *   ONE      an instruction that has room for the jump: one for one
 *   PAD      an instruction of two bytes: becomes a jump to the bytes before the function, where the long jump is
 *   SEVERAL  a thread may stand between them, so the jump is written only where the caller says that nobody runs them; from then on it
 *            is one instruction, and stays, leading to the copy when no hook is left, until the caller says so again
 *
 * Laws: (1) hooks are in order of priority, the younger first among equals (2) the entry jumps to the first one's replacement, each
 * hook's stub to that of the next, the last one's to the original (3) without hooks the entry has its old bytes, or leads to the copy.
 */
#include "block.h"
#include "error.h"
#include "patch.h"
#include "sys.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum form { FORM_ONE, FORM_PAD, FORM_SEVERAL };
enum { SHORT_JUMP = 2 };

struct function {
	struct function *next;
	uint64_t at;     /* as it is called */
	uint64_t entry;  /* behind the landing: what changes, */
	uint32_t len;    /* and how many bytes; */
	uint32_t room;   /* these and the rest of the last of its instructions */
	enum form form;
	bool jumps;      /* the entry is a jump of ours */
	bool padded;     /* the pad is one */
	uint8_t old_bytes[EM_ARCH_INSN_MAX], old_pad[EM_ARCH_INSN_MAX];
	uint64_t original; /* what it is without hooks */
	uint64_t to;       /* where the entry, or the pad, goes */
	uint32_t users;    /* hooks made */
	execmem_hook *first; /* attached */
	execmem_domain *copy_domain;
	uint64_t copy; /* 0: none is needed */
	struct em_patch_veneers veneers; /* of the entry */
};

struct execmem_hook {
	struct function *function;
	execmem_hook *after; /* the next to run */
	struct em_patch_stub stub; /* its original */
	uint64_t replacement;
	int priority;
	bool attached;
};

static struct function *functions; /* under the lock of patch.h */

/* ---- looking at a function ---- */

struct look {
	const struct em_arch *arch;
	uint64_t at, entry, end; /* end: of what may be read */
	uint32_t before, count;  /* count: instructions of the entry */
	bool nothing;            /* all of them do nothing */
};

static int refuse_entry(uint64_t at, const char *why)
{
	return em_error_set(EXECMEM_EENTRY, "the function at %#llx cannot be hooked: %s", (unsigned long long)at, why);
}

static const uint8_t *bytes_at(uint64_t at)
{
	return (const uint8_t *)(uintptr_t)at;
}

static bool does_nothing(const struct em_arch *arch, uint64_t at, uint64_t end)
{
	struct em_arch_insn insn;

	for (; at < end; at += insn.length)
		if (!arch->decode(bytes_at(at), end - at, &insn) || !insn.nothing)
			return false;
	return true;
}

/* Where the function lies: its block is filled text, and stays while we look, for who hooks a function has it. */
static int find_function(void *function, const execmem_hook_options *options, struct look *l)
{
	uint8_t landing[EM_ARCH_INSN_MAX];
	execmem_info info;
	uint32_t size;
	int err = execmem_find(function, &info);

	if (err < 0)
		return err;
	*l = (struct look){.arch = em_arch_host(), .at = (uintptr_t)function, .entry = (uintptr_t)function, .before = options->before};
	l->end = info.address + info.size;
	if (info.kind != EXECMEM_TEXT || info.state != EXECMEM_BLOCK_FILLED)
		return refuse_entry(l->at, "its block is no code, or was never filled.");
	if (options->size > l->end - l->at || options->before > l->at - info.address)
		return em_error_set(EXECMEM_EBOUNDS,
		                    "%llu bytes from %#llx on, and %u before, are not all in its block of %llu bytes at %#llx.",
		                    (unsigned long long)options->size, (unsigned long long)l->at, options->before,
		                    (unsigned long long)info.size, (unsigned long long)info.address);
	if (options->size > 0)
		l->end = l->at + options->size;
	size = l->arch->encode_landing(landing);
	if (size > 0 && l->end - l->at > size && memcmp(landing, bytes_at(l->at), size) == 0)
		l->entry += size;
	return 0;
}

/* The instructions that a jump takes the place of. */
static int measure(struct look *l, struct function *f)
{
	uint32_t room = l->arch->site_size;
	struct em_arch_insn insn = {0};
	uint32_t len = 0;

	l->nothing = true;
	while (len < room) {
		if (!l->arch->decode(bytes_at(l->entry + len), l->end - l->entry - len, &insn))
			return refuse_entry(l->at, "it begins with bytes that are no known instruction, or is over before a jump has room.");
		l->nothing = l->nothing && insn.nothing;
		len += insn.length;
		l->count++;
		if (l->count == 1 && len == SHORT_JUMP && l->before >= room) {
			f->form = FORM_PAD;
			break;
		}
		if (len < room && insn.ends)
			return refuse_entry(l->at, "it is over before a jump has room.");
	}
	if (f->form != FORM_PAD)
		f->form = l->count == 1 ? FORM_ONE : FORM_SEVERAL;
	if (len > EM_ARCH_INSN_MAX)
		return refuse_entry(l->at, "its first instructions are too long to be taken for one.");
	f->at = l->at;
	f->entry = l->entry;
	f->room = len;
	f->len = f->form == FORM_SEVERAL && l->arch->insn_align > 1 ? room : len; /* jumps have one length, or any */
	memcpy(f->old_bytes, bytes_at(l->entry), len);
	if (l->arch->insn_align > 1 && (f->form == FORM_PAD ? l->at : l->entry) % room != 0)
		return refuse_entry(l->at, "it does not lie where a jump can be changed on this CPU.");
	return 0;
}

/* The pad is what the caller says it is. */
static int check_pad(const struct look *l, struct function *f)
{
	uint32_t room = l->arch->site_size;

	if (f->form != FORM_PAD)
		return 0;
	if (!does_nothing(l->arch, l->at - l->before, l->at))
		return refuse_entry(l->at, "the bytes before it that are for patching do something.");
	memcpy(f->old_pad, bytes_at(l->at - room), room);
	return 0;
}

/* No branch of the function leads to where the jump will be, but calls of the function itself. */
static int check_branches(const struct look *l, const struct function *f)
{
	struct em_arch_insn insn;
	char why[160];

	for (uint64_t at = l->entry; at < l->end; at += insn.length) {
		uint64_t goal;

		if (!l->arch->decode(bytes_at(at), l->end - at, &insn)) {
			snprintf(why, sizeof why,
			         "the bytes at %#llx are no known instruction, and whether branches lead to its start cannot be told. "
			         "Give the size of what is code.",
			         (unsigned long long)at);
			return refuse_entry(l->at, why);
		}
		if (!insn.branches)
			continue;
		goal = l->arch->goal(bytes_at(at), &insn, at);
		if (goal < l->at || goal >= f->entry + f->room || (insn.calls && goal == l->at))
			continue;
		snprintf(why, sizeof why, "a branch at %#llx leads back to its first instructions.", (unsigned long long)at);
		return refuse_entry(l->at, why);
	}
	return 0;
}

/* ---- a copy of the first instructions ---- */

static int move_one(const struct look *l, uint64_t from, const struct em_arch_insn *insn, uint64_t to, uint8_t *out, uint32_t *len)
{
	switch (l->arch->move(bytes_at(from), insn, from, to, out, len)) {
	case EM_ARCH_MOVED:
		return 0;
	case EM_ARCH_MOVED_FAR:
		return em_error_set(EXECMEM_EREACH,
		                    "the instruction at %#llx reaches what it needs only from nearby, and its copy would lie at "
		                    "%#llx. Give a domain that is nearer.",
		                    (unsigned long long)from, (unsigned long long)to);
	default:
		return refuse_entry(l->at, "its first instructions do not do the same elsewhere.");
	}
}

/* Writes the copy, and the jump behind it, into `code`. */
static int write_copy(const struct look *l, const struct function *f, uint8_t code[EXECMEM_CHUNK], uint32_t *size)
{
	struct em_arch_insn insn = {0};
	uint32_t len;

	for (uint32_t done = 0; done < f->room; done += insn.length) {
		uint64_t from = f->entry + done, goal;
		int err;

		if (!l->arch->decode(bytes_at(from), l->end - from, &insn))
			return refuse_entry(l->at, "it begins with bytes that are no known instruction.");
		goal = insn.branches ? l->arch->goal(bytes_at(from), &insn, from) : 0;
		if (goal == from + insn.length) /* a call that wants to know where it is */
			return refuse_entry(l->at, "it begins by asking where it lies.");
		err = move_one(l, from, &insn, f->copy + *size, code + *size, &len);
		if (err < 0)
			return err;
		*size += len;
	}
	if (insn.ends)
		return 0;
	if (em_patch_encode(EXECMEM_INSN_JUMP, f->copy + *size, f->entry + f->room, code + *size, l->arch->site_size) < 0)
		return EXECMEM_EREACH;
	*size += l->arch->site_size;
	return 0;
}

static void drop_copy(struct function *f)
{
	if (f->copy != 0)
		(void)execmem_free_in(f->copy_domain, (void *)(uintptr_t)f->copy);
	f->copy = 0;
}

static int make_copy(const struct look *l, struct function *f)
{
	uint8_t code[EXECMEM_CHUNK];
	uint32_t size = 0;
	void *at;
	int err = execmem_alloc_in(f->copy_domain, EXECMEM_TEXT, sizeof code, 16, "hooked", &at);

	if (err < 0)
		return err;
	f->copy = (uintptr_t)at;
	err = write_copy(l, f, code, &size);
	if (err == 0)
		err = execmem_fill(at, code, size);
	f->original = f->copy;
	return err;
}

/* ---- the record of a function ---- */

/* Takes back what was made for a function, keeping what was told. */
static int undo(struct function *f)
{
	struct em_error_kept kept;

	em_error_keep(&kept);
	drop_copy(f);
	free(f);
	return em_error_tell(&kept);
}

static int make_function(void *function, const execmem_hook_options *options, struct function **out)
{
	struct function *f = calloc(1, sizeof *f);
	struct look look;
	int err;

	if (!f)
		return em_error_set(EXECMEM_ENOMEM, "out of memory for a hook.");
	err = find_function(function, options, &look);
	err = err < 0 ? err : measure(&look, f);
	err = err < 0 ? err : check_pad(&look, f);
	if (err == 0) {
		f->copy_domain = options->domain ? options->domain : em_domain_at(look.at);
		f->veneers.domain = f->copy_domain;
		f->original = f->entry + f->room;
		if (!look.nothing)
			err = check_branches(&look, f);
		if (err == 0 && !look.nothing)
			err = make_copy(&look, f);
	}
	if (err < 0)
		return undo(f);
	f->next = functions;
	functions = f;
	*out = f;
	return 0;
}

static void drop_function(struct function *f)
{
	struct function **link = &functions;

	while (*link != f)
		link = &(*link)->next;
	*link = f->next;
	em_patch_drop_veneers(&f->veneers, 0);
	drop_copy(f);
	free(f);
}

static struct function *known_function(uint64_t at)
{
	struct function *f = functions;

	while (f && f->at != at)
		f = f->next;
	return f;
}

/* ---- the entry ---- */

/* Nobody runs these bytes. */
static int write_quietly(uint64_t at, const uint8_t *old_bytes, const uint8_t *new_bytes, uint32_t len)
{
	struct em_error_kept kept;
	int err;

	if (memcmp(bytes_at(at), old_bytes, len) != 0)
		return em_error_set(EXECMEM_ECHANGED, "the bytes at %#llx are not those that were to be replaced: somebody changed them.",
		                    (unsigned long long)at);
	err = execmem_fill((void *)(uintptr_t)at, new_bytes, len);
	if (err < 0) {
		em_error_keep(&kept);
		if (!em_patch_holds(at, old_bytes, len)) /* a CPU that must be told of every write was not, and there are traps */
			(void)execmem_fill((void *)(uintptr_t)at, old_bytes, len);
		return em_error_tell(&kept);
	}
	if (em_arch_host()->fill_sync == EM_ARCH_SYNC_CORES)
		return 0;
	err = em_sys_sync_core();
	if (err < 0) { /* a thread that is stopped and goes on has nothing fetched ahead */
		err = em_sys_stop_threads();
		if (err == 0)
			em_sys_resume_threads();
	}
	if (err == 0)
		return 0;
	(void)execmem_fill((void *)(uintptr_t)at, old_bytes, len);
	return em_error_system(err, "synchronise every thread's instruction stream");
}

static int poke_entry(const struct function *f, const uint8_t *old_bytes, const uint8_t *new_bytes)
{
	return execmem_poke((void *)(uintptr_t)f->entry, old_bytes, new_bytes, f->len);
}

static int jump_from(uint64_t at, uint64_t to, uint8_t *out, uint32_t len)
{
	return em_patch_encode(EXECMEM_INSN_JUMP, at, to, out, len);
}

static uint64_t pad_of(const struct function *f)
{
	return f->at - em_arch_host()->site_size;
}

/* The long jump is written first: until the entry leads there nobody runs it, but who is late from an earlier hook. */
static int turn_pad(struct function *f, uint64_t to)
{
	uint32_t room = em_arch_host()->site_size;
	uint8_t before[EM_ARCH_INSN_MAX], after[EM_ARCH_INSN_MAX];
	uint64_t pad = pad_of(f);
	int err = jump_from(pad, to, after, room);

	if (err == 0 && !f->padded) {
		err = write_quietly(pad, f->old_pad, after, room);
	} else if (err == 0) {
		err = jump_from(pad, f->to, before, room);
		err = err < 0 ? err : execmem_poke((void *)(uintptr_t)pad, before, after, room);
	}
	if (err < 0)
		return err;
	f->padded = true;
	f->to = to;
	if (f->jumps)
		return 0;
	err = jump_from(f->entry, pad, after, f->len);
	err = err < 0 ? err : poke_entry(f, f->old_bytes, after);
	f->jumps = f->jumps || err == 0;
	return err;
}

static int turn_entry(struct function *f, uint64_t to, int flags)
{
	uint8_t before[EM_ARCH_INSN_MAX], after[EM_ARCH_INSN_MAX];
	int err = jump_from(f->entry, to, after, f->len);

	if (err < 0)
		return err;
	if (f->jumps) {
		err = jump_from(f->entry, f->to, before, f->len);
		err = err < 0 ? err : poke_entry(f, before, after);
	} else if (f->form == FORM_ONE) {
		err = poke_entry(f, f->old_bytes, after);
	} else if (flags & EXECMEM_PATCH_QUIET) {
		err = write_quietly(f->entry, f->old_bytes, after, f->len);
	} else {
		err = refuse_entry(f->at,
		                   "a jump takes the place of several instructions, and a thread may stand between them. Hook it while "
		                   "nobody runs it (EXECMEM_PATCH_QUIET), or compile it with -fpatchable-function-entry.");
	}
	if (err == 0) {
		f->jumps = true;
		f->to = to;
	}
	return err;
}

/* Who calls the function comes to `target`. */
static int lead(struct function *f, uint64_t target, int flags)
{
	uint64_t from = f->form == FORM_PAD ? pad_of(f) : f->entry, to;
	uint32_t veneers = f->veneers.count;
	int err = em_patch_reach(&f->veneers, flags, from, f->form == FORM_PAD ? em_arch_host()->site_size : f->len, target, &to);

	if (err == 0)
		err = f->form == FORM_PAD ? turn_pad(f, to) : turn_entry(f, to, flags);
	if (err < 0 && f->to != to)
		em_patch_drop_veneers(&f->veneers, veneers);
	return err;
}

/* The last hook goes. */
static int restore(struct function *f, int flags)
{
	uint8_t before[EM_ARCH_INSN_MAX];
	int err;

	if (f->form == FORM_SEVERAL && !(flags & EXECMEM_PATCH_QUIET))
		return f->to == f->original ? 0 : turn_entry(f, f->original, flags);
	err = jump_from(f->entry, f->form == FORM_PAD ? pad_of(f) : f->to, before, f->len);
	if (err == 0)
		err = f->form == FORM_SEVERAL ? write_quietly(f->entry, before, f->old_bytes, f->len) : poke_entry(f, before, f->old_bytes);
	if (err == 0)
		f->jumps = false;
	return err;
}

/* ---- the calls ---- */

int execmem_hook_make(void *function, const execmem_hook_options *options, execmem_hook **out)
{
	static const execmem_hook_options none;
	execmem_hook *hook;
	struct function *f;
	int err = 0;

	if (!out)
		return em_error_null("out");
	hook = calloc(1, sizeof *hook);
	if (!hook)
		return em_error_set(EXECMEM_ENOMEM, "out of memory for a hook.");
	em_patch_lock();
	f = known_function((uintptr_t)function);
	if (!f)
		err = make_function(function, options ? options : &none, &f);
	if (err == 0) {
		err = em_patch_place_stub(f->copy_domain, f->original, EXECMEM_PATCH_VENEER, "hook", &hook->stub);
		if (err == 0)
			f->users++;
		else if (f->users == 0)
			drop_function(f);
	}
	em_patch_unlock();
	if (err < 0) {
		free(hook);
		return err;
	}
	hook->function = f;
	*out = hook;
	return 0;
}

const void *execmem_hook_original(const execmem_hook *hook)
{
	return hook ? (const void *)(uintptr_t)hook->stub.at : NULL;
}

/* First its own way out, then the way in: from then on it is run. */
static int attach(execmem_hook *hook, uint64_t replacement, int priority, int flags)
{
	struct function *f = hook->function;
	execmem_hook *before = NULL, *after = f->first;
	int err;

	while (after && after->priority > priority) {
		before = after;
		after = after->after;
	}
	err = em_patch_set_stub(&hook->stub, after ? after->replacement : f->original, EXECMEM_PATCH_VENEER);
	if (err == 0)
		err = before ? em_patch_set_stub(&before->stub, replacement, flags) : lead(f, replacement, flags);
	if (err < 0)
		return err;
	hook->replacement = replacement;
	hook->priority = priority;
	hook->attached = true;
	hook->after = after;
	if (before)
		before->after = hook;
	else
		f->first = hook;
	return 0;
}

int execmem_hook_attach(execmem_hook *hook, const void *replacement, int priority, int flags)
{
	int err;

	if (!hook || !replacement)
		return em_error_null(hook ? "replacement" : "hook");
	em_patch_lock();
	if (hook->attached)
		err = em_error_set(EXECMEM_EBUSY, "the hook is attached; detach it first.");
	else
		err = attach(hook, (uintptr_t)replacement, priority, flags);
	em_patch_unlock();
	return err;
}

/* Its own stub stays as it is, for who is inside. */
static int detach(execmem_hook *hook, int flags)
{
	struct function *f = hook->function;
	execmem_hook *before = NULL;
	int err;

	for (execmem_hook *h = f->first; h != hook; h = h->after)
		before = h;
	if (before)
		err = em_patch_set_stub(&before->stub, hook->after ? hook->after->replacement : f->original, EXECMEM_PATCH_VENEER);
	else
		err = hook->after ? lead(f, hook->after->replacement, EXECMEM_PATCH_VENEER) : restore(f, flags);
	if (err < 0)
		return err;
	if (before)
		before->after = hook->after;
	else
		f->first = hook->after;
	hook->attached = false;
	hook->after = NULL;
	return 0;
}

int execmem_hook_detach(execmem_hook *hook, int flags)
{
	int err = 0;

	if (!hook)
		return em_error_null("hook");
	em_patch_lock();
	if (hook->attached)
		err = detach(hook, flags);
	else if (!hook->function->first && hook->function->jumps)
		err = restore(hook->function, flags);
	em_patch_unlock();
	return err;
}

int execmem_hook_is_attached(const execmem_hook *hook)
{
	bool attached;

	em_patch_lock();
	attached = hook && hook->attached;
	em_patch_unlock();
	return attached;
}

static const char *check_entry(const struct function *f)
{
	uint8_t bytes[EM_ARCH_INSN_MAX];
	uint64_t goal = f->form == FORM_PAD ? pad_of(f) : f->to;

	if (!f->jumps)
		return em_patch_holds(f->entry, f->old_bytes, f->len) ? NULL : "a function without hooks is not as it was";
	if (jump_from(f->entry, goal, bytes, f->len) < 0 || !em_patch_holds(f->entry, bytes, f->len))
		return "a hooked function does not jump to its first hook";
	if (f->form != FORM_PAD)
		return NULL;
	if (jump_from(goal, f->to, bytes, em_arch_host()->site_size) < 0 || !em_patch_holds(goal, bytes, em_arch_host()->site_size))
		return "the bytes before a hooked function do not jump to its first hook";
	return NULL;
}

static const char *check_function(const struct function *f)
{
	for (const execmem_hook *h = f->first; h; h = h->after) {
		if (!h->attached || h->function != f)
			return "a hook is in the chain of a function it is not attached to";
		if (h->after && h->priority < h->after->priority)
			return "the hooks of a function are not in order";
		if (h->stub.target != (h->after ? h->after->replacement : f->original))
			return "a hook does not lead to the next";
	}
	if (f->first && !f->jumps)
		return "a function has hooks and does not jump to them";
	return check_entry(f);
}

const char *execmem_hook_check(const execmem_hook *hook)
{
	const char *broken;

	em_patch_lock();
	broken = hook ? check_function(hook->function) : NULL;
	em_patch_unlock();
	return broken;
}

static int free_hook(execmem_hook *hook)
{
	struct function *f = hook->function;
	int err = 0;

	if (hook->attached)
		return em_error_set(EXECMEM_EBUSY, "the hook is attached; detach it first.");
	if (f->users == 1 && f->jumps)
		return em_error_set(EXECMEM_EBUSY,
		                    "the function at %#llx still jumps to a copy of its first instructions; detach once more while "
		                    "nobody runs it (EXECMEM_PATCH_QUIET).",
		                    (unsigned long long)f->at);
	if (f->users == 1 && f->padded) {
		uint8_t jump[EM_ARCH_INSN_MAX];

		err = jump_from(pad_of(f), f->to, jump, em_arch_host()->site_size);
		err = err < 0 ? err : write_quietly(pad_of(f), jump, f->old_pad, em_arch_host()->site_size);
		if (err < 0)
			return err;
		f->padded = false;
	}
	em_patch_free_stub(&hook->stub);
	if (--f->users == 0)
		drop_function(f);
	return 0;
}

int execmem_hook_free(execmem_hook *hook)
{
	int err;

	if (!hook)
		return em_error_null("hook");
	em_patch_lock();
	err = free_hook(hook);
	em_patch_unlock();
	if (err == 0)
		free(hook);
	return err;
}

int execmem_hook_prepare(void *function, size_t size)
{
	execmem_hook_options options = {.size = 0};
	uint8_t nop[EM_ARCH_INSN_MAX], before[EM_ARCH_INSN_MAX];
	struct look l;
	int err;

	em_patch_lock();
	err = find_function(function, &options, &l);
	if (err == 0 && (size > EM_ARCH_INSN_MAX || size > l.end - l.entry || !does_nothing(l.arch, l.entry, l.entry + size)))
		err = refuse_entry(l.at, "it does not begin with so many bytes that do nothing.");
	if (err == 0)
		err = em_patch_encode(EXECMEM_INSN_NOP, l.entry, 0, nop, (uint32_t)size);
	if (err == 0) {
		memcpy(before, bytes_at(l.entry), size);
		err = memcmp(before, nop, size) == 0 ? 0 : write_quietly(l.entry, before, nop, (uint32_t)size);
	}
	em_patch_unlock();
	return err;
}
