/* peer_mmap: pages of its own for every function.
 *
 * mmap  mmap, write, mprotect to R-X; munmap at the end: what programs write by hand.
 * page  the same, the whole mapping filled with traps first: what Linux did for every BPF program before bpf_prog_pack.
 */
#include "peer.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { VARIANT_BARE = 0, VARIANT_FILLED = 1 };

struct pages {
	size_t page;
	int variant;
};

static size_t round_page(const struct pages *p, size_t size)
{
	return (size + p->page - 1) & ~(p->page - 1);
}

static void *mmap_open(const struct peer *self, const struct peer_plan *plan, char why[PEER_WHY])
{
	static struct pages pages;

	(void)plan, (void)why;
	pages = (struct pages){(size_t)sysconf(_SC_PAGESIZE), self->variant};
	return &pages;
}

static int mmap_alloc(void *state, size_t size, struct span *out)
{
	const struct pages *p = state;

	out->code = mmap(NULL, round_page(p, size), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	out->writable = out->code;
	if (out->code == MAP_FAILED)
		return -1;
	if (p->variant == VARIANT_FILLED)
		memset(out->writable, PEER_TRAP, round_page(p, size));
	return 0;
}

static int mmap_write(void *state, const struct span *at, const void *code, size_t size)
{
	memcpy(at->writable, code, size);
	return mprotect(at->code, round_page(state, size), PROT_READ | PROT_EXEC);
}

static int mmap_free(void *state, const struct span *at, size_t size)
{
	return munmap(at->code, round_page(state, size));
}

static void mmap_close(void *state)
{
	(void)state;
}

#define PAGES(which)                                                                                                               \
	.executable = 1, .traps = 1, .holds = 1, .variant = (which), .sharing = PEER_SHARED, .open = mmap_open, .alloc = mmap_alloc,   \
	.write = mmap_write, .free = mmap_free, .close = mmap_close

const struct peer peers_mmap[] = {
	{.name = "mmap", .about = "mmap, write, mprotect, munmap for every function", PAGES(VARIANT_BARE)},
	{.name = "page", .about = "the same, filled with traps first, as Linux before bpf_prog_pack", PAGES(VARIANT_FILLED)},
	{0},
};
