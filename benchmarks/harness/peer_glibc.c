/* peer_glibc: malloc as everybody uses it. Nothing it returns can be executed and nothing is trapped: a bound. */
#include "peer.h"

#include <malloc.h>
#include <stdlib.h>
#include <string.h>

static void *glibc_open(const struct peer *self, const struct peer_plan *plan, char why[PEER_WHY])
{
	static int opened;

	(void)self, (void)plan, (void)why;
	return &opened;
}

static int glibc_alloc(void *state, size_t size, struct span *out)
{
	(void)state;
	out->code = out->writable = malloc(size);
	return out->code == NULL ? -1 : 0;
}

static int glibc_write(void *state, const struct span *at, const void *code, size_t size)
{
	(void)state;
	memcpy(at->writable, code, size);
	return 0;
}

static int glibc_free(void *state, const struct span *at, size_t size)
{
	(void)state, (void)size;
	free(at->code);
	return 0;
}

static void glibc_close(void *state)
{
	(void)state;
	malloc_trim(0);
}

const struct peer peers_glibc[] = {
	{.name = "glibc",
	 .about = "malloc and free, not executable, no traps",
	 .holds = 1,
	 .sharing = PEER_SHARED,
	 .open = glibc_open,
	 .alloc = glibc_alloc,
	 .write = glibc_write,
	 .free = glibc_free,
	 .close = glibc_close},
	{0},
};
