/* pyblock: what Python's Domain and Block have of C, so that place and free are one crossing each.
 *
 * Included once, by the module that cffi generates. A call through cffi makes a tuple of its arguments and converts each, and a
 * pointer costs as much as the core's whole work on a small block; objects of Python with a `__del__` of Python cost as much
 * again (docs/performance.md has the figures). So the two types below keep address and state in C: their methods take what the
 * caller gave, and the block's finalizer is C. All else is in execmem/domain.py, in the classes that inherit from them.
 *
 *   DomainBase   the handle                           _make  a block: read, audit, core, object
 *   BlockBase    address, size, state, holders        free, retire, and the finalizer
 *
 * The interpreter lock guards these objects: `live` is read and cleared without giving it up in between, so of two threads that
 * free a block one does. It is given up around each call of the core. An interpreter without that lock takes GATE instead
 * (domain.py). No signal is looked at between the core's success and the moment when an object owns the block, so Ctrl-C loses
 * none; for the same reason the batches at the end set the flags of the blocks they made.
 *
 * Only the stable interface of Python 3.10 is used, and PySys_Audit: that belongs to it from 3.13 on, and is the same before.
 */
#ifndef EM_PYBLOCK_H
#define EM_PYBLOCK_H

#include "execmem.h"

#include <structmember.h>

#include <stdbool.h>
#include <string.h>

PyAPI_FUNC(int) PySys_Audit(const char *event, const char *format, ...);

struct pyblock_domain {
	PyObject base;
	unsigned long long handle; /* an execmem_domain *, 0: closed */
	unsigned long long number;
};

struct pyblock {
	PyObject base;
	PyObject *weak; /* the interpreter's list of weak references */
	PyObject *domain; /* an object whose type inherits from DomainBase */
	PyObject *name, *kind;
	PyObject *holders; /* a dict, None or NULL: why it must not be freed (ledger.py) */
	unsigned long long address, size;
	char live; /* 1: this object has a live block; who clears it frees the block. 0 in elements of a batch, which own none */
	char lost; /* 1: the finalizer met holders, or it is retired; the last of them calls it again */
	char retired; /* 1: nobody gets a new hold on it */
};

struct pyblock_wish { /* arguments of _make as the core takes them */
	bool fill;
	const void *source;
	uint64_t size, align;
	int kind;
	const char *name;
};

/* ---- errors ---- */

/* Raises the exception of a code that the core has just given on this thread. */
static PyObject *pyblock_raise(int code, bool freeing)
{
	PyObject *module = PyImport_ImportModule("execmem.errors");
	PyObject *raise = module ? PyObject_GetAttrString(module, "raise_last") : NULL;
	PyObject *args = Py_BuildValue("(i)", code);
	PyObject *options = Py_BuildValue("{s:i}", "freeing", (int)freeing);

	PyObject *told = raise && args && options ? PyObject_Call(raise, args, options) : NULL;

	Py_XDECREF(told); /* it never returns */
	Py_XDECREF(options);
	Py_XDECREF(args);
	Py_XDECREF(raise);
	Py_XDECREF(module);
	return NULL;
}

/* ---- arguments: false where they are not of the plain kind; Python then converts them, or says what is wrong ---- */

static bool pyblock_read_word(PyObject *number, uint64_t *out)
{
	if (!PyLong_CheckExact(number))
		return false;
	*out = PyLong_AsUnsignedLongLong(number);
	if (*out != UINT64_MAX || !PyErr_Occurred())
		return true;
	PyErr_Clear();
	return false;
}

static bool pyblock_read_kind(PyObject *kind, int *out)
{
	static const char *const names[EXECMEM_KINDS] = {"text", "rodata", "data"}; /* as enum execmem_kind counts */

	if (!PyUnicode_Check(kind))
		return false;
	for (*out = 0; *out < EXECMEM_KINDS; (*out)++)
		if (PyUnicode_CompareWithASCIIString(kind, names[*out]) == 0)
			return true;
	return false;
}

static bool pyblock_read_name(PyObject *name, const char **out)
{
	Py_ssize_t length;

	*out = NULL;
	if (name == Py_None)
		return true;
	if (!PyUnicode_Check(name))
		return false;
	*out = PyUnicode_AsUTF8AndSize(name, &length);
	if (!*out)
		PyErr_Clear(); /* half a surrogate pair, say */
	return *out && strlen(*out) == (size_t)length;
}

static bool pyblock_read_wish(PyObject *const *args, struct pyblock_wish *out)
{
	PyObject *source = args[0], *size = args[1];
	uint64_t address = 0;

	out->fill = source != Py_None;
	if (PyBytes_CheckExact(source)) {
		out->source = PyBytes_AsString(source);
		out->size = (uint64_t)PyBytes_Size(source);
	} else {
		if (out->fill && !pyblock_read_word(source, &address))
			return false;
		out->source = (const void *)(uintptr_t)address;
		if (!pyblock_read_word(size, &out->size))
			return false;
	}
	return pyblock_read_name(args[2], &out->name) && pyblock_read_kind(args[3], &out->kind) &&
	       pyblock_read_word(args[4], &out->align);
}

/* ---- blocks ---- */

/* A new object that owns no block yet; `name` may be None. */
static struct pyblock *pyblock_new(PyObject *type, PyObject *domain, PyObject *name, PyObject *kind)
{
	struct pyblock *b = (struct pyblock *)PyType_GenericAlloc((PyTypeObject *)type, 0);

	if (!b)
		return NULL;
	Py_INCREF(domain);
	b->domain = domain;
	Py_INCREF(kind);
	b->kind = kind;
	if (name == Py_None) {
		b->name = PyUnicode_FromStringAndSize("", 0);
	} else {
		Py_INCREF(name);
		b->name = name;
	}
	return b;
}

static bool pyblock_held(const struct pyblock *b)
{
	return b->holders && b->holders != Py_None && PyDict_Size(b->holders) != 0;
}

static bool pyblock_free_now(const struct pyblock *b)
{
	return b->live && !b->retired && ((struct pyblock_domain *)b->domain)->handle && !pyblock_held(b);
}

/* Threads that Python does not count are those that were online; without one there is nobody to wait for. */
static bool pyblock_waits(void)
{
	execmem_retirement threads;

	return execmem_retire_count(&threads) == 0 && threads.threads > 0;
}

/* Gives the block back to the core, with the interpreter lock given up. The caller has cleared `live`. */
static int pyblock_give(const struct pyblock *b)
{
	execmem_domain *handle = (execmem_domain *)(uintptr_t)((struct pyblock_domain *)b->domain)->handle;
	void *address = (void *)(uintptr_t)b->address;
	bool waits = b->retired && pyblock_waits();
	int err;

	Py_BEGIN_ALLOW_THREADS err = waits ? execmem_retire_in(handle, address) : execmem_free_in(handle, address);
	Py_END_ALLOW_THREADS return err;
}

/* Has Python say why the block cannot be freed, or retired; 0: it found no reason. */
static int pyblock_refuse(PyObject *self, const char *method)
{
	PyObject *told = PyObject_CallMethod(self, method, NULL);

	Py_XDECREF(told);
	return told ? 0 : -1;
}

PyDoc_STRVAR(pyblock_free_doc,
             "free($self, /)\n"
             "--\n\n"
             "Free the block; it holds traps again at once.\n\n"
             "Cost: about 0.1 us in write mode ``alias``, 1 us in ``syscall``. Raises ``BlockBusyError`` while a\n"
             "view, a callable or a call in flight holds the block, and ``DoubleFreeError`` when it was freed\n"
             "before.");

static PyObject *pyblock_free(PyObject *self, PyObject *unused)
{
	struct pyblock *b = (struct pyblock *)self;
	int err;

	if (!pyblock_free_now(b) && pyblock_refuse(self, "_refuse_free") < 0)
		return NULL;
	if (PySys_Audit("execmem.free", "K", b->address) < 0)
		return NULL;
	if (!pyblock_free_now(b)) { /* a hook freed it, or took a view, or closed the domain */
		if (pyblock_refuse(self, "_refuse_free") == 0)
			PyErr_Format(PyExc_RuntimeError, "the block at %p changed while it was freed", (void *)(uintptr_t)b->address);
		return NULL;
	}
	b->live = 0;
	err = pyblock_give(b);
	if (err == 0)
		Py_RETURN_NONE;
	b->live = 1;
	return pyblock_refuse(self, "_refuse_free") < 0 ? NULL : pyblock_raise(err, true);
}

PyDoc_STRVAR(pyblock_retire_doc,
             "retire($self, /)\n"
             "--\n\n"
             "Free the block as soon as nobody can be inside: when its last view, callable and call in flight is gone,\n"
             "and then, where a thread of the process was ever online, when these have passed a quiescent point.\n\n"
             "Replace what leads to it first. Callables that there are go on working; new ones, new views and\n"
             "fills raise ``FreedAddressError`` from now on. The last to leave frees it. Cost: about 0.2 us more\n"
             "than ``free``. Raises ``DoubleFreeError`` when it was freed or retired before.");

/* Whoever finds `lost` and no holder clears `live` and frees; holders look at `lost` after they have left. */
static PyObject *pyblock_retire(PyObject *self, PyObject *unused)
{
	struct pyblock *b = (struct pyblock *)self;
	int err;

	for (int look = 0; look < 2; look++) { /* again: a hook may have freed it, or closed the domain */
		if (!b->live || b->retired || !((struct pyblock_domain *)b->domain)->handle) {
			if (pyblock_refuse(self, "_refuse_retire") == 0)
				PyErr_Format(PyExc_RuntimeError, "the block at %p changed while it was retired", (void *)(uintptr_t)b->address);
			return NULL;
		}
		if (look == 0 && PySys_Audit("execmem.retire", "K", b->address) < 0)
			return NULL;
	}
	b->retired = b->lost = 1;
	if (pyblock_held(b) || !__atomic_exchange_n(&b->live, 0, __ATOMIC_ACQ_REL))
		Py_RETURN_NONE;
	err = pyblock_give(b);
	if (err == 0)
		Py_RETURN_NONE;
	b->retired = b->lost = 0;
	b->live = 1;
	return pyblock_raise(err, true);
}

/* Frees what nobody can reach any more. A hook cannot keep it, but may close the domain. */
static void pyblock_finalize(PyObject *self)
{
	struct pyblock *b = (struct pyblock *)self;
	PyObject *type, *value, *trace;
	int err;

	if (!b->live)
		return;
	if (pyblock_held(b)) {
		b->lost = 1;
		return;
	}
	if (!__atomic_exchange_n(&b->live, 0, __ATOMIC_ACQ_REL)) /* of two last holders one frees it */
		return;
	if (!((struct pyblock_domain *)b->domain)->handle) /* it went with its domain */
		return;
	PyErr_Fetch(&type, &value, &trace); /* an exception may be on its way */
	if (PySys_Audit("execmem.free", "K", b->address) < 0)
		PyErr_WriteUnraisable(self);
	err = ((struct pyblock_domain *)b->domain)->handle ? pyblock_give(b) : 0;
	if (err < 0 && err != EXECMEM_ECLOSED && err != EXECMEM_EFORKED && err != EXECMEM_ESEALED) {
		pyblock_raise(err, true);
		PyErr_WriteUnraisable(self);
	}
	PyErr_Restore(type, value, trace);
}

static int pyblock_traverse(PyObject *self, visitproc visit, void *arg)
{
	struct pyblock *b = (struct pyblock *)self;

	Py_VISIT(Py_TYPE(self));
	Py_VISIT(b->domain);
	Py_VISIT(b->holders);
	return 0;
}

/* There is no tp_clear: the domain does not refer to its blocks, so each cycle has another link that can be cut. */
static void pyblock_dealloc(PyObject *self)
{
	struct pyblock *b = (struct pyblock *)self;
	PyTypeObject *type = Py_TYPE(self);
	freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

	PyObject_GC_UnTrack(self);
	if (b->weak)
		PyObject_ClearWeakRefs(self);
	Py_XDECREF(b->domain);
	Py_XDECREF(b->name);
	Py_XDECREF(b->kind);
	Py_XDECREF(b->holders);
	release(self);
	Py_DECREF(type);
}

static PyMemberDef pyblock_members[] = {
	{"__weaklistoffset__", T_PYSSIZET, offsetof(struct pyblock, weak), READONLY, NULL},
	{"domain", T_OBJECT, offsetof(struct pyblock, domain), READONLY, NULL},
	{"name", T_OBJECT, offsetof(struct pyblock, name), READONLY, NULL},
	{"kind", T_OBJECT, offsetof(struct pyblock, kind), READONLY, NULL},
	{"address", T_ULONGLONG, offsetof(struct pyblock, address), READONLY, NULL},
	{"size", T_ULONGLONG, offsetof(struct pyblock, size), READONLY, NULL},
	{"_holders", T_OBJECT, offsetof(struct pyblock, holders), 0, NULL},
	{"_live", T_BOOL, offsetof(struct pyblock, live), 0, NULL},
	{"_lost", T_BOOL, offsetof(struct pyblock, lost), 0, NULL},
	{"_retired", T_BOOL, offsetof(struct pyblock, retired), READONLY, NULL},
	{NULL, 0, 0, 0, NULL},
};

static PyMethodDef pyblock_methods[] = {
	{"free", pyblock_free, METH_NOARGS, pyblock_free_doc},
	{"retire", pyblock_retire, METH_NOARGS, pyblock_retire_doc},
	{NULL, NULL, 0, NULL},
};

static PyType_Slot pyblock_slots[] = {
	{Py_tp_doc, "What a Block has of C; see csrc/pyblock.h."},
	{Py_tp_members, pyblock_members},
	{Py_tp_methods, pyblock_methods},
	{Py_tp_traverse, pyblock_traverse},
	{Py_tp_finalize, pyblock_finalize},
	{Py_tp_dealloc, pyblock_dealloc},
	{0, NULL},
};

/* Blocks are made by _make and _element alone; the finalizer runs for classes of Python that inherit from this one. */
static PyType_Spec pyblock_spec = {
	.name = "execmem._core.BlockBase",
	.basicsize = sizeof(struct pyblock),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
	.slots = pyblock_slots,
};

/* ---- domains ---- */

/* _make(cls, source, size, name, kind, align): a block of a class that inherits from BlockBase. `source` is bytes (`size` is not
 * looked at then), None to fill nothing, or the address of `size` bytes that the caller keeps. None: an argument is not of the plain
 * kind or the domain is closed, and nothing was done. */
static PyObject *pyblock_make(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
	struct pyblock_domain *d = (struct pyblock_domain *)self;
	execmem_domain *handle;
	struct pyblock_wish wish;
	struct pyblock *b;
	void *address = NULL;
	int err;

	if (count != 6 || !d->handle || !pyblock_read_wish(args + 1, &wish))
		Py_RETURN_NONE;
	if (PySys_Audit("execmem.alloc", "KKK", d->number, (unsigned long long)wish.size, (unsigned long long)wish.align) < 0)
		return NULL;
	if (wish.fill && PySys_Audit("execmem.fill", "OK", Py_None, (unsigned long long)wish.size) < 0)
		return NULL;
	b = pyblock_new(args[0], self, args[3], args[4]);
	if (!b)
		return NULL;
	handle = (execmem_domain *)(uintptr_t)d->handle; /* read last: hooks and a collection may have closed the domain */
	if (!handle) {
		Py_DECREF(b);
		Py_RETURN_NONE;
	}
	Py_BEGIN_ALLOW_THREADS if (wish.fill) err =
		execmem_place(handle, wish.kind, wish.source, wish.size, wish.align, wish.name, &address);
	else err = execmem_alloc_in(handle, wish.kind, wish.size, wish.align, wish.name, &address);
	Py_END_ALLOW_THREADS if (err < 0)
	{
		pyblock_raise(err, false);
		Py_DECREF(b);
		return NULL;
	}
	b->address = (uintptr_t)address;
	b->size = wish.size;
	b->live = 1;
	return (PyObject *)b;
}

/* _element(cls, address, size, name, kind): an object for a block that a batch owns. */
static PyObject *pyblock_element(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
	uint64_t address, size;
	struct pyblock *b;

	if (count != 5 || !pyblock_read_word(args[1], &address) || !pyblock_read_word(args[2], &size))
		return PyErr_Format(PyExc_TypeError, "_element takes a class, two words and two texts");
	b = pyblock_new(args[0], self, args[3], args[4]);
	if (b) {
		b->address = address;
		b->size = size;
	}
	return (PyObject *)b;
}

/* _measure(codes): for a tuple of bytes, where each lies once they are joined, as count + 1 words in a bytearray. None: one of
 * them is something else. */
static PyObject *pyblock_measure(PyObject *unused, PyObject *codes)
{
	Py_ssize_t count = PyTuple_Size(codes);
	PyObject *bounds = count < 0 ? NULL : PyByteArray_FromStringAndSize(NULL, (count + 1) * (Py_ssize_t)sizeof(uint64_t));
	uint64_t *words, at = 0;

	if (!bounds)
		return NULL;
	words = (uint64_t *)(void *)PyByteArray_AsString(bounds);
	words[0] = 0;
	for (Py_ssize_t i = 0; i < count; i++) {
		PyObject *code = PyTuple_GetItem(codes, i);

		if (!PyBytes_CheckExact(code)) {
			Py_DECREF(bounds);
			Py_RETURN_NONE;
		}
		at += (uint64_t)PyBytes_Size(code);
		words[i + 1] = at;
	}
	return bounds;
}

/* _gather(codes, buffer): copies a tuple of bytes, measured before, one behind the other into a bytearray. A new bytes object of half a
 * megabyte costs page faults each time, more than the whole batch. */
static PyObject *pyblock_gather(PyObject *unused, PyObject *const *args, Py_ssize_t nargs)
{
	Py_ssize_t room, count;
	char *to;

	if (nargs != 2 || !PyTuple_Check(args[0]) || !PyByteArray_Check(args[1])) {
		PyErr_SetString(PyExc_TypeError, "_gather takes a tuple and a bytearray");
		return NULL;
	}
	to = PyByteArray_AsString(args[1]);
	room = PyByteArray_Size(args[1]);
	count = PyTuple_Size(args[0]);
	for (Py_ssize_t i = 0; i < count; i++) {
		PyObject *code = PyTuple_GetItem(args[0], i);
		Py_ssize_t size = PyBytes_CheckExact(code) ? PyBytes_Size(code) : -1;

		if (size < 0 || size > room) {
			PyErr_SetString(PyExc_ValueError, "_gather takes bytes for which the bytearray has room");
			return NULL;
		}
		memcpy(to, PyBytes_AsString(code), (size_t)size);
		to += size;
		room -= size;
	}
	Py_RETURN_NONE;
}

static PyMemberDef pyblock_domain_members[] = {
	{"_word", T_ULONGLONG, offsetof(struct pyblock_domain, handle), 0, NULL},
	{"number", T_ULONGLONG, offsetof(struct pyblock_domain, number), 0, NULL},
	{NULL, 0, 0, 0, NULL},
};

static PyMethodDef pyblock_domain_methods[] = {
	{"_make", (PyCFunction)(void (*)(void))pyblock_make, METH_FASTCALL, NULL},
	{"_element", (PyCFunction)(void (*)(void))pyblock_element, METH_FASTCALL, NULL},
	{"_measure", pyblock_measure, METH_O | METH_STATIC, NULL},
	{"_gather", (PyCFunction)(void (*)(void))pyblock_gather, METH_FASTCALL | METH_STATIC, NULL},
	{NULL, NULL, 0, NULL},
};

static PyType_Slot pyblock_domain_slots[] = {
	{Py_tp_doc, "What a Domain has of C; see csrc/pyblock.h."},
	{Py_tp_members, pyblock_domain_members},
	{Py_tp_methods, pyblock_domain_methods},
	{0, NULL},
};

static PyType_Spec pyblock_domain_spec = {
	.name = "execmem._core.DomainBase",
	.basicsize = sizeof(struct pyblock_domain),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
	.slots = pyblock_domain_slots,
};

/* ---- batches, called through cffi: when the blocks are made, `live` has a 1 for each of them; NULL: nobody wants to know ---- */

static int pyblock_told(int err, size_t count, char *live)
{
	if (err == 0 && live)
		memset(live, 1, count);
	return err;
}

static int pyblock_alloc_many(execmem_domain *domain, int kind, size_t count, const uint64_t *sizes, size_t align,
                              const char *names, uint64_t *out, char *live)
{
	return pyblock_told(execmem_alloc_many(domain, kind, count, sizes, align, names, out), count, live);
}

static int pyblock_place_many(execmem_domain *domain, int kind, size_t count, const void *src, const uint64_t *offsets,
                              size_t align, const char *names, uint64_t *out, char *live)
{
	return pyblock_told(execmem_place_many(domain, kind, count, src, offsets, align, names, out), count, live);
}

/* ---- the module: cffi's, and the two types ---- */

static int pyblock_add(PyObject *module, const char *name, PyType_Spec *spec)
{
	PyObject *type = PyType_FromSpec(spec);

	if (!type)
		return -1;
	if (PyModule_AddObject(module, name, type) == 0)
		return 0;
	Py_DECREF(type);
	return -1;
}

PyMODINIT_FUNC pyblock_init_cffi(void);

PyMODINIT_FUNC PyInit__core(void)
{
	PyObject *module = pyblock_init_cffi();

	if (!module)
		return NULL;
	if (pyblock_add(module, "DomainBase", &pyblock_domain_spec) == 0 && pyblock_add(module, "BlockBase", &pyblock_spec) == 0)
		return module;
	Py_DECREF(module);
	return NULL;
}

#define PyInit__core pyblock_init_cffi /* what cffi generates after this line is called from above */

#endif
