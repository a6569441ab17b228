/* peer_progpack: the algorithm of the Linux kernel's bpf_prog_pack, written anew for a process.
 *
 * Packs of 2 MB in creation order, one bitmap of 64-byte chunks each, one mutex. A request is the first run of zero bits
 * that is long enough, looked for from the start of the first pack. A free finds its pack by walking the list, clears the
 * bits, writes traps, and returns the pack when it is empty. What the kernel does with text_poke is a write through the
 * second view here. Larger requests than a pack are refused (the kernel gives them pages of their own; no mix draws one).
 */
#include "peer.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNKS = PEER_PACK / PEER_CHUNK, WORD_BITS = 64, WORDS = CHUNKS / WORD_BITS };

struct prog_pack {
	struct prog_pack *next;
	struct twin twin;
	uint64_t used[WORDS];
};

struct progpack {
	pthread_mutex_t lock;
	struct prog_pack *first;
	struct prog_pack **last; /* where the next pack's address goes */
	uint64_t events;         /* packs made and given back */
};

/* First bit at or after `from` that equals `value`, or CHUNKS. */
static size_t find_bit(const uint64_t *map, size_t from, int value)
{
	const uint64_t flip = value ? 0 : ~UINT64_C(0);

	if (from >= CHUNKS)
		return CHUNKS;
	size_t word = from / WORD_BITS;
	uint64_t bits = (map[word] ^ flip) & (~UINT64_C(0) << (from % WORD_BITS));
	while (bits == 0) {
		if (++word == WORDS)
			return CHUNKS;
		bits = map[word] ^ flip;
	}
	return word * WORD_BITS + (size_t)__builtin_ctzll(bits);
}

/* After bitmap_find_next_zero_area. CHUNKS: none. */
static size_t find_area(const uint64_t *map, size_t count)
{
	size_t start = 0;

	for (;;) {
		start = find_bit(map, start, 0);
		if (start + count > CHUNKS)
			return CHUNKS;
		size_t busy = find_bit(map, start, 1);
		if (busy >= start + count)
			return start;
		start = busy + 1;
	}
}

static void mark(uint64_t *map, size_t start, size_t count, int value)
{
	while (count > 0) {
		size_t bit = start % WORD_BITS;
		size_t here = count < WORD_BITS - bit ? count : WORD_BITS - bit;
		uint64_t bits = (here == WORD_BITS ? ~UINT64_C(0) : (UINT64_C(1) << here) - 1) << bit;
		if (value)
			map[start / WORD_BITS] |= bits;
		else
			map[start / WORD_BITS] &= ~bits;
		start += here;
		count -= here;
	}
}

static void *progpack_open(const struct peer *self, const struct peer_plan *plan, char why[PEER_WHY])
{
	struct progpack *p = calloc(1, sizeof(*p));

	(void)self, (void)plan, (void)why;
	if (p != NULL) {
		pthread_mutex_init(&p->lock, NULL);
		p->last = &p->first;
	}
	return p;
}

static struct prog_pack *add_pack(struct progpack *p)
{
	char why[PEER_WHY];
	struct prog_pack *pack = calloc(1, sizeof(*pack));

	if (pack == NULL)
		return NULL;
	if (twin_open(&pack->twin, PEER_PACK, why) != 0) {
		free(pack);
		return NULL;
	}
	*p->last = pack;
	p->last = &pack->next;
	p->events++;
	return pack;
}

static int progpack_alloc(void *state, size_t size, struct span *out)
{
	struct progpack *p = state;
	const size_t count = peer_round(size) / PEER_CHUNK;
	struct prog_pack *pack;
	size_t start = CHUNKS;

	if (count > CHUNKS)
		return -1;
	pthread_mutex_lock(&p->lock);
	for (pack = p->first; pack != NULL; pack = pack->next)
		if ((start = find_area(pack->used, count)) < CHUNKS)
			break;
	if (pack == NULL && (pack = add_pack(p)) != NULL)
		start = 0;
	if (pack != NULL)
		mark(pack->used, start, count, 1);
	pthread_mutex_unlock(&p->lock);
	if (pack == NULL)
		return -1;
	out->code = pack->twin.code + start * PEER_CHUNK;
	out->writable = pack->twin.writable + start * PEER_CHUNK;
	return 0;
}

static int progpack_write(void *state, const struct span *at, const void *code, size_t size)
{
	(void)state;
	memcpy(at->writable, code, size);
	return 0;
}

static int progpack_free(void *state, const struct span *at, size_t size)
{
	struct progpack *p = state;
	unsigned char *code = at->code;

	pthread_mutex_lock(&p->lock);
	struct prog_pack **link = &p->first;
	while (*link != NULL && !(code >= (*link)->twin.code && code < (*link)->twin.code + PEER_PACK))
		link = &(*link)->next;
	struct prog_pack *pack = *link;
	if (pack != NULL) {
		memset(at->writable, PEER_TRAP, peer_round(size));
		mark(pack->used, (size_t)(code - pack->twin.code) / PEER_CHUNK, peer_round(size) / PEER_CHUNK, 0);
		if (find_bit(pack->used, 0, 1) == CHUNKS) {
			*link = pack->next;
			if (p->last == &pack->next)
				p->last = link;
			twin_close(&pack->twin);
			free(pack);
			p->events++;
		}
	}
	pthread_mutex_unlock(&p->lock);
	return pack == NULL ? -1 : 0;
}

static uint64_t progpack_events(void *state)
{
	return ((volatile struct progpack *)state)->events;
}

static void progpack_tell(void *state, struct peer_told *out)
{
	size_t longest = 0, end;

	out->packs = 0;
	for (struct prog_pack *pack = ((struct progpack *)state)->first; pack != NULL; pack = pack->next, out->packs++)
		for (size_t start = find_bit(pack->used, 0, 0); start < CHUNKS; start = find_bit(pack->used, end, 0)) {
			end = find_bit(pack->used, start, 1);
			longest = end - start > longest ? end - start : longest;
		}
	out->largest_free = (int64_t)(longest * PEER_CHUNK);
}

static void progpack_close(void *state)
{
	struct progpack *p = state;

	while (p->first != NULL) {
		struct prog_pack *pack = p->first;
		p->first = pack->next;
		twin_close(&pack->twin);
		free(pack);
	}
	pthread_mutex_destroy(&p->lock);
	free(p);
}

const struct peer peers_progpack[] = {
	{.name = "progpack",
	 .about = "the kernel's bpf_prog_pack algorithm over doubly mapped 2 MB pages",
	 .executable = 1,
	 .traps = 1,
	 .holds = 1,
	 .sharing = PEER_SHARED,
	 .open = progpack_open,
	 .alloc = progpack_alloc,
	 .write = progpack_write,
	 .free = progpack_free,
	 .close = progpack_close,
	 .pack_events = progpack_events,
	 .tell = progpack_tell},
	{0},
};
