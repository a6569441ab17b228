/* peer_tcc: libtcc, which compiles, links and maps one function at a time; sizes asked for play no part.
 *
 * Nearly all of its time goes into compiling. It stands here as what a user of libtcc pays for a function, from text to
 * address and back, and is no allocator to compare with. It keeps global state: one thread.
 */
#include "peer.h"

#include <libtcc.h>
#include <stdio.h>

enum { FUNCTIONS_MAX = 1000 };

static void *tcc_open(const struct peer *self, const struct peer_plan *plan, char why[PEER_WHY])
{
	static int opened;

	(void)self, (void)plan, (void)why;
	return &opened;
}

static int tcc_place(void *state, const void *code, size_t size, struct span *out)
{
	TCCState *tcc = tcc_new();

	(void)state, (void)code, (void)size;
	if (tcc == NULL)
		return -1;
	tcc_set_options(tcc, "-nostdlib");
	tcc_set_output_type(tcc, TCC_OUTPUT_MEMORY);
	if (tcc_compile_string(tcc, "void f(void) {}") != 0 || tcc_relocate(tcc, TCC_RELOCATE_AUTO) != 0 ||
	    (out->code = tcc_get_symbol(tcc, "f")) == NULL) {
		tcc_delete(tcc);
		return -1;
	}
	out->writable = tcc;
	return 0;
}

static int tcc_free(void *state, const struct span *at, size_t size)
{
	(void)state, (void)size;
	tcc_delete(at->writable);
	return 0;
}

static void tcc_close(void *state)
{
	(void)state;
}

const struct peer peers_tcc[] = {
	{.name = "tcc",
	 .about = "libtcc, compiling and mapping an empty function, whatever size is asked for",
	 .executable = 1,
	 .only_mix = "constant",
	 .blocks_max = FUNCTIONS_MAX,
	 .open = tcc_open,
	 .place = tcc_place,
	 .free = tcc_free,
	 .close = tcc_close},
	{0},
};
