/* peer_libffi: closures, the executable memory that most processes have without knowing it.
 *
 * A closure has one size whatever is asked for, and holds what libffi writes: allocating is ffi_closure_alloc, writing is
 * ffi_prep_closure_loc, and calling it goes through libffi into an empty function.
 */
#include "peer.h"

#include <ffi.h>

static ffi_cif signature;

static void closure_body(ffi_cif *cif, void *result, void **arguments, void *data)
{
	(void)cif, (void)result, (void)arguments, (void)data;
}

static void *libffi_open(const struct peer *self, const struct peer_plan *plan, char why[PEER_WHY])
{
	(void)self, (void)plan, (void)why;
	return ffi_prep_cif(&signature, FFI_DEFAULT_ABI, 0, &ffi_type_void, NULL) == FFI_OK ? &signature : NULL;
}

static int libffi_alloc(void *state, size_t size, struct span *out)
{
	(void)state, (void)size;
	out->writable = ffi_closure_alloc(sizeof(ffi_closure), &out->code);
	return out->writable == NULL ? -1 : 0;
}

static int libffi_write(void *state, const struct span *at, const void *code, size_t size)
{
	(void)code, (void)size;
	return ffi_prep_closure_loc(at->writable, state, closure_body, NULL, at->code) == FFI_OK ? 0 : -1;
}

static int libffi_free(void *state, const struct span *at, size_t size)
{
	(void)state, (void)size;
	ffi_closure_free(at->writable);
	return 0;
}

static void libffi_close(void *state)
{
	(void)state;
}

const struct peer peers_libffi[] = {
	{.name = "libffi",
	 .about = "libffi closures, of one size whatever is asked for, no traps",
	 .executable = 1,
	 .sharing = PEER_SHARED, /* ffi_closure_alloc has a lock of its own */
	 .only_mix = "constant",
	 .open = libffi_open,
	 .alloc = libffi_alloc,
	 .write = libffi_write,
	 .free = libffi_free,
	 .close = libffi_close},
	{0},
};
