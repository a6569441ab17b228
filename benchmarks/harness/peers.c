/* peers: the list of what was built, and the doubly mapped pages several of them stand on. */
#include "peer.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

static const struct peer *const lists[] = {
#ifdef BENCH_EXECMEM
	peers_execmem,
#endif
#ifdef BENCH_ASMJIT
	peers_asmjit,
#endif
#ifdef BENCH_MIMALLOC
	peers_mimalloc,
#endif
#ifdef BENCH_LIBFFI
	peers_libffi,
#endif
#ifdef BENCH_TCC
	peers_tcc,
#endif
	peers_progpack, peers_mmap, peers_glibc, peers_floor,
};

const struct peer *peer_at(size_t i)
{
	for (size_t l = 0; l < sizeof(lists) / sizeof(lists[0]); l++)
		for (const struct peer *peer = lists[l]; peer->name != NULL; peer++)
			if (i-- == 0)
				return peer;
	return NULL;
}

const struct peer *peer_find(const char *name)
{
	const struct peer *peer;

	for (size_t i = 0; (peer = peer_at(i)) != NULL; i++)
		if (strcmp(peer->name, name) == 0)
			break;
	return peer;
}

/* Address space of `size`. */
static unsigned char *map_aligned(int fd, size_t size, size_t align, int prot)
{
	size_t room = size + align;
	unsigned char *base = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (base == MAP_FAILED)
		return NULL;
	unsigned char *start = (unsigned char *)(((uintptr_t)base + align - 1) & ~(uintptr_t)(align - 1));
	if (start > base)
		munmap(base, (size_t)(start - base));
	if (base + room > start + size)
		munmap(start + size, (size_t)(base + room - start - size));
	if (mmap(start, size, prot, MAP_SHARED | MAP_FIXED, fd, 0) != MAP_FAILED)
		return start;
	munmap(start, size);
	return NULL;
}

int twin_map(struct twin *twin, size_t size, size_t align, char why[PEER_WHY])
{
	size = (size + align - 1) & ~(align - 1);
	*twin = (struct twin){NULL, NULL, size};
	int fd = (int)syscall(SYS_memfd_create, "bench", 1 /* MFD_CLOEXEC */);
	if (fd < 0 || ftruncate(fd, (off_t)size) != 0)
		goto failed;
	twin->writable = map_aligned(fd, size, align, PROT_READ | PROT_WRITE);
	twin->code = twin->writable == NULL ? NULL : map_aligned(fd, size, align, PROT_READ | PROT_EXEC);
	if (twin->code == NULL)
		goto failed;
	close(fd);
	return 0;

failed:
	snprintf(why, PEER_WHY, "no doubly mapped memory of %zu bytes: %s", size, strerror(errno));
	if (fd >= 0)
		close(fd);
	twin_close(twin);
	return -1;
}

/* Refused: 4 KB pages, and the figures tell. */
void twin_collapse(struct twin *twin, size_t at)
{
	madvise(twin->writable + at, PEER_PACK, MADV_COLLAPSE);
	madvise(twin->code + at, PEER_PACK, MADV_COLLAPSE);
}

int twin_open(struct twin *twin, size_t size, char why[PEER_WHY])
{
	if (twin_map(twin, size, PEER_PACK, why) != 0)
		return -1;
	for (size_t at = 0; at < twin->size; at += PEER_PACK) {
		twin->writable[at] = PEER_TRAP;
		twin_collapse(twin, at);
	}
	memset(twin->writable, PEER_TRAP, twin->size);
	return 0;
}

void twin_close(struct twin *twin)
{
	if (twin->writable != NULL)
		munmap(twin->writable, twin->size);
	if (twin->code != NULL)
		munmap(twin->code, twin->size);
	*twin = (struct twin){NULL, NULL, 0};
}
