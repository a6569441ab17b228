/* peer_mmap: pages of its own for every function: mmap, write, mprotect to R-X; munmap at the end. */
#include "peer.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static size_t page_size;

static size_t round_page(size_t size)
{
	return (size + page_size - 1) & ~(page_size - 1);
}

static void *mmap_open(const struct peer *self, const struct peer_plan *plan, char why[PEER_WHY])
{
	(void)self, (void)plan, (void)why;
	page_size = (size_t)sysconf(_SC_PAGESIZE);
	return &page_size;
}

static int mmap_alloc(void *state, size_t size, struct span *out)
{
	(void)state;
	out->code = mmap(NULL, round_page(size), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	out->writable = out->code;
	return out->code == MAP_FAILED ? -1 : 0;
}

static int mmap_write(void *state, const struct span *at, const void *code, size_t size)
{
	(void)state;
	memcpy(at->writable, code, size);
	return mprotect(at->code, round_page(size), PROT_READ | PROT_EXEC);
}

static int mmap_free(void *state, const struct span *at, size_t size)
{
	(void)state;
	return munmap(at->code, round_page(size));
}

static void mmap_close(void *state)
{
	(void)state;
}

const struct peer peers_mmap[] = {
	{.name = "mmap",
	 .about = "mmap, write, mprotect, munmap for every function",
	 .executable = 1,
	 .traps = 1,
	 .holds = 1,
	 .open = mmap_open,
	 .alloc = mmap_alloc,
	 .write = mmap_write,
	 .free = mmap_free,
	 .close = mmap_close},
	{0},
};
