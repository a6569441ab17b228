/* peer_mimalloc: mimalloc 2, as it is and over doubly mapped 2 MB pages. Bounds: it checks nothing.
 *
 * mimalloc       malloc and free, not executable, no traps.
 * mimalloc-twin  an arena of its own over a window mapped twice. mimalloc works in the writable view, where it also keeps its
 *                records and its lists of free blocks: the first word of a free block is a list's, and not a trap. A 2 MB
 *                piece is collapsed when the first block appears in it. The window is thrice what the population needs.
 *
 * The library is loaded in the process of this peer alone, since the one that Debian builds takes malloc over.
 */
#include "peer.h"

#include <dlfcn.h>
#include <mimalloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { VARIANT_PLAIN = 0, VARIANT_TWIN = 1, SPARE = 256 << 20, GROWTH = 3, SEGMENT = 64 << 20 };

struct mimalloc {
	void *library;
	__typeof__(mi_malloc) *malloc;
	__typeof__(mi_free) *free;
	__typeof__(mi_heap_malloc) *heap_malloc;
	__typeof__(mi_heap_new_in_arena) *heap_new_in_arena;
	mi_arena_id_t arena;
	struct twin twin;
	unsigned char *made; /* one for each pack */
	uint64_t packs;
	pthread_mutex_t lock; /* of `made` */
};

static _Thread_local mi_heap_t *heap; /* mimalloc's heaps belong to one thread each */

static int load(struct mimalloc *m, char why[PEER_WHY])
{
	m->library = dlopen("libmimalloc.so.2", RTLD_NOW | RTLD_LOCAL);

	if (m->library == NULL) {
		snprintf(why, PEER_WHY, "%s", dlerror());
		return -1;
	}
	*(void **)&m->malloc = dlsym(m->library, "mi_malloc");
	*(void **)&m->free = dlsym(m->library, "mi_free");
	*(void **)&m->heap_malloc = dlsym(m->library, "mi_heap_malloc");
	*(void **)&m->heap_new_in_arena = dlsym(m->library, "mi_heap_new_in_arena");
	return m->malloc == NULL || m->free == NULL ? -1 : 0;
}

static int manage(struct mimalloc *m, const struct peer_plan *plan, char why[PEER_WHY])
{
	__typeof__(mi_manage_os_memory_ex) *manage_memory;

	*(void **)&manage_memory = dlsym(m->library, "mi_manage_os_memory_ex");
	snprintf(why, PEER_WHY, "this mimalloc has no arenas of one's own (2.0.7 has)");
	if (manage_memory == NULL || m->heap_new_in_arena == NULL || m->heap_malloc == NULL)
		return -1;
	if (twin_map(&m->twin, plan->bytes * plan->threads * GROWTH + SPARE, SEGMENT, why) != 0)
		return -1;
	m->made = calloc(m->twin.size / PEER_PACK, 1);
	snprintf(why, PEER_WHY, "mimalloc did not take the window");
	/* "large": it is not given back piece by piece */
	return m->made != NULL && manage_memory(m->twin.writable, m->twin.size, true, true, true, -1, true, &m->arena) ? 0 : -1;
}

static void *mimalloc_open(const struct peer *self, const struct peer_plan *plan, char why[PEER_WHY])
{
	struct mimalloc *m = calloc(1, sizeof(*m));

	if (m == NULL)
		return NULL;
	pthread_mutex_init(&m->lock, NULL);
	if (load(m, why) == 0 && (self->variant == VARIANT_PLAIN || manage(m, plan, why) == 0))
		return m;
	free(m->made);
	free(m);
	return NULL;
}

static int plain_alloc(void *state, size_t size, struct span *out)
{
	out->code = out->writable = ((struct mimalloc *)state)->malloc(size);
	return out->code == NULL ? -1 : 0;
}

static int plain_free(void *state, const struct span *at, size_t size)
{
	(void)size;
	((struct mimalloc *)state)->free(at->code);
	return 0;
}

static void make_pack(struct mimalloc *m, size_t pack)
{
	pthread_mutex_lock(&m->lock);
	if (!m->made[pack]) {
		m->twin.writable[pack * PEER_PACK] |= 0; /* collapsing takes a page that is there */
		twin_collapse(&m->twin, pack * PEER_PACK);
		m->made[pack] = 1;
		m->packs++;
	}
	pthread_mutex_unlock(&m->lock);
}

static int twin_alloc(void *state, size_t size, struct span *out)
{
	struct mimalloc *m = state;

	if (heap == NULL && (heap = m->heap_new_in_arena(m->arena)) == NULL)
		return -1;
	out->writable = m->heap_malloc(heap, size);
	size_t at = (size_t)((unsigned char *)out->writable - m->twin.writable);
	if (out->writable == NULL || at >= m->twin.size)
		return -1;
	out->code = m->twin.code + at;
	for (size_t pack = at / PEER_PACK; pack <= (at + size - 1) / PEER_PACK; pack++)
		if (__builtin_expect(!m->made[pack], 0))
			make_pack(m, pack);
	return 0;
}

static int mimalloc_write(void *state, const struct span *at, const void *code, size_t size)
{
	(void)state;
	memcpy(at->writable, code, size);
	return 0;
}

static int twin_free(void *state, const struct span *at, size_t size)
{
	memset(at->writable, PEER_TRAP, size);
	((struct mimalloc *)state)->free(at->writable);
	return 0;
}

static uint64_t twin_events(void *state)
{
	return ((volatile struct mimalloc *)state)->packs;
}

/* What mimalloc was given it keeps until the process ends. */
static void mimalloc_close(void *state)
{
	(void)state;
}

const struct peer peers_mimalloc[] = {
	{.name = "mimalloc",
	 .about = "mimalloc 2, not executable, no traps",
	 .holds = 1,
	 .variant = VARIANT_PLAIN,
	 .sharing = PEER_SHARED,
	 .open = mimalloc_open,
	 .alloc = plain_alloc,
	 .write = mimalloc_write,
	 .free = plain_free,
	 .close = mimalloc_close},
	{.name = "mimalloc-twin",
	 .about = "mimalloc 2 over doubly mapped 2 MB pages, traps on free, its lists inside free code memory, nothing checked",
	 .executable = 1,
	 .traps = 1,
	 .holds = 1,
	 .variant = VARIANT_TWIN,
	 .sharing = PEER_SHARED,
	 .open = mimalloc_open,
	 .alloc = twin_alloc,
	 .write = mimalloc_write,
	 .free = twin_free,
	 .close = mimalloc_close,
	 .pack_events = twin_events},
	{0},
};
