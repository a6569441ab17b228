/* bench_loops: the loops that `execmem bench` times: blocks placed, freed, replaced, called and changed, in one function.
 *
 *     struct bench -> peer, verb -> one loop over blocks, with the clocks read before and after it
 *
 * It is machine code that stands alone: no table, no global, no call but through the pointers it is given, so that it can be placed
 * as a block of execmem where there is no compiler. bench_loops.py has the same structures, and takes the function out of its
 * object; every helper is therefore inlined, once for each peer, so that no loop asks which peer it is for.
 *
 * The peers do what those of benchmarks/harness do; the floor forgets no hole, and a pack is found by its address as there.
 */
#include <stddef.h>
#include <stdint.h>

#define ALWAYS static inline __attribute__((always_inline))

enum { CHUNK = 64, PACK = 2 << 20, CHUNKS = PACK / CHUNK, WORD = 64, WORDS = CHUNKS / WORD, ALIGN = 16, TRAP = 0xCC };
enum peer { EXECMEM, MALLOC, PAGES, FILLED, PROGPACK, FLOOR };
enum verb { PLACE, FREE, CYCLE, VERIFY, CALL, POKE, FLIP };

/* Linux's numbers, the same on the CPUs that there are loops for. */
enum { READ = 1, WRITE = 2, EXEC = 4, SHARED = 1, PRIVATE = 2, FIXED = 16, ANONYMOUS = 32, NORESERVE = 0x4000 };
enum { CLOEXEC = 1, COLLAPSE = 25, CLOCK_WALL = 1, CLOCK_CPU = 2 };

struct block {
	unsigned char *code;
	unsigned char *writable; /* the peer's own: where it is written */
	uint32_t size;
	uint32_t source; /* offset of its bytes in the source */
};

struct op {
	uint32_t slot;
	uint32_t size;
	uint32_t source;
};

struct moment {
	int64_t seconds;
	int64_t nanoseconds;
};

struct twin { /* memory mapped twice */
	unsigned char *code;
	unsigned char *writable;
};

struct pack {
	struct pack *next;
	struct twin twin;
	uint64_t used[WORDS];
};

struct bench {
	struct block *blocks;
	const struct op *ops;
	const uint32_t *order; /* slots, as they are freed or called */
	const unsigned char *source;
	uint64_t peer;
	uint64_t page;
	uint64_t cpu_ns; /* of the last loop */
	uint64_t wall_ns;
	uint64_t error; /* errno after a failure */
	void *domain;   /* execmem's, or a mutex */
	struct pack *first;
	struct twin floor;
	uint64_t floor_bytes;
	uint64_t floor_cursor;
	uint64_t *holes; /* places freed and not used again, the newest last; as many as there are blocks */
	uint64_t holes_count;
	const unsigned char *changes; /* two instructions, for sites */
	uint64_t change_size;
	int (*place)(void *, int, const void *, size_t, size_t, const char *, void **);
	int (*free_in)(void *, void *);
	int (*poke)(void *, const void *, const void *, size_t);
	void *(*malloc)(size_t);
	void (*free)(void *);
	void *(*calloc)(size_t, size_t);
	void *(*memcpy)(void *, const void *, size_t);
	void *(*memset)(void *, int, size_t);
	int (*memcmp)(const void *, const void *, size_t);
	void *(*mmap)(void *, size_t, int, int, int, int64_t);
	int (*mprotect)(void *, size_t, int);
	int (*munmap)(void *, size_t);
	int (*madvise)(void *, size_t, int);
	int (*memfd_create)(const char *, unsigned int);
	int (*ftruncate)(int, int64_t);
	int (*close)(int);
	int (*lock)(void *);
	int (*unlock)(void *);
	int (*clock_gettime)(int, struct moment *);
	int *(*errno_location)(void);
};

ALWAYS uint64_t round_up(uint64_t size, uint64_t to)
{
	return (size + to - 1) & ~(to - 1);
}

ALWAYS uint64_t read_clock(struct bench *b, int clock)
{
	struct moment now;

	b->clock_gettime(clock, &now);
	return (uint64_t)now.seconds * 1000000000u + (uint64_t)now.nanoseconds;
}

/* ---- memory mapped twice, in 2 MB pages, full of traps ---- */

ALWAYS unsigned char *map_aligned(struct bench *b, int fd, uint64_t size, int prot)
{
	unsigned char *base = b->mmap(NULL, size + PACK, 0, PRIVATE | ANONYMOUS | NORESERVE, -1, 0);

	if ((intptr_t)base == -1)
		return NULL;
	unsigned char *start = (unsigned char *)round_up((uintptr_t)base, PACK);
	if (start > base)
		b->munmap(base, (size_t)(start - base));
	if (start < base + PACK)
		b->munmap(start + size, (size_t)(base + PACK - start));
	if ((intptr_t)b->mmap(start, size, prot, SHARED | FIXED, fd, 0) != -1)
		return start;
	b->error = (uint64_t)*b->errno_location();
	b->munmap(start, size);
	return NULL;
}

ALWAYS int open_twin(struct bench *b, struct twin *twin, uint64_t size)
{
	const uint32_t name[2] = {0x636E6562u, 0x68u}; /* "bench", without a table of texts */
	int fd = b->memfd_create((const char *)name, CLOEXEC);

	twin->code = twin->writable = NULL;
	if (fd >= 0 && b->ftruncate(fd, (int64_t)size) == 0) {
		twin->writable = map_aligned(b, fd, size, READ | WRITE);
		twin->code = twin->writable == NULL ? NULL : map_aligned(b, fd, size, READ | EXEC);
	} else
		b->error = (uint64_t)*b->errno_location();
	if (fd >= 0)
		b->close(fd);
	if (twin->code == NULL) {
		if (twin->writable != NULL)
			b->munmap(twin->writable, size);
		return -1;
	}
	for (uint64_t at = 0; at < size; at += PACK) { /* refused: 4 KB pages */
		((volatile unsigned char *)twin->writable)[at] = TRAP;
		b->madvise(twin->writable + at, PACK, COLLAPSE);
		b->madvise(twin->code + at, PACK, COLLAPSE);
	}
	b->memset(twin->writable, TRAP, size);
	return 0;
}

/* ---- bpf_prog_pack: packs in creation order, the first run of chunks that is long enough ---- */

/* The first chunk at or after `from` that is used (flip 0) or free (flip all ones); CHUNKS: none. */
ALWAYS uint64_t find_chunk(const uint64_t *used, uint64_t from, uint64_t flip)
{
	if (from >= CHUNKS)
		return CHUNKS;
	uint64_t word = from / WORD, bits = (used[word] ^ flip) & (~(uint64_t)0 << (from % WORD));
	while (bits == 0 && ++word < WORDS)
		bits = used[word] ^ flip;
	return bits == 0 ? CHUNKS : word * WORD + (uint64_t)__builtin_ctzll(bits);
}

ALWAYS uint64_t find_run(const uint64_t *used, uint64_t count)
{
	uint64_t start = find_chunk(used, 0, ~(uint64_t)0);

	while (start + count <= CHUNKS) {
		uint64_t end = find_chunk(used, start, 0);
		if (end - start >= count)
			return start;
		start = find_chunk(used, end, ~(uint64_t)0);
	}
	return CHUNKS;
}

ALWAYS void flip_chunks(uint64_t *used, uint64_t start, uint64_t count)
{
	while (count > 0) {
		uint64_t bit = start % WORD, here = count < WORD - bit ? count : WORD - bit;
		used[start / WORD] ^= (~(uint64_t)0 >> (WORD - here)) << bit;
		start += here;
		count -= here;
	}
}

ALWAYS struct pack *take_run(struct bench *b, uint64_t count, uint64_t *start)
{
	struct pack **link = &b->first;

	for (; *link != NULL; link = &(*link)->next)
		if ((*start = find_run((*link)->used, count)) < CHUNKS)
			return *link;
	struct pack *pack = count > CHUNKS ? NULL : b->calloc(1, sizeof(*pack));
	if (pack == NULL)
		return NULL;
	if (open_twin(b, &pack->twin, PACK) != 0) {
		b->free(pack);
		return NULL;
	}
	*start = 0;
	return *link = pack;
}

ALWAYS int place_in_pack(struct bench *b, struct block *block)
{
	const uint64_t count = round_up(block->size, CHUNK) / CHUNK;
	uint64_t start;

	b->lock(b->domain);
	struct pack *pack = take_run(b, count, &start);
	if (pack != NULL)
		flip_chunks(pack->used, start, count);
	b->unlock(b->domain);
	if (pack == NULL)
		return -1;
	block->code = pack->twin.code + start * CHUNK;
	block->writable = pack->twin.writable + start * CHUNK;
	b->memcpy(block->writable, b->source + block->source, block->size);
	return 0;
}

ALWAYS int free_in_pack(struct bench *b, const struct block *block)
{
	const uint64_t size = round_up(block->size, CHUNK);
	struct pack **link = &b->first, *pack;

	b->lock(b->domain);
	for (; (pack = *link) != NULL; link = &pack->next)
		if (block->code >= pack->twin.code && block->code < pack->twin.code + PACK)
			break;
	if (pack != NULL) {
		b->memset(block->writable, TRAP, size);
		flip_chunks(pack->used, (uint64_t)(block->code - pack->twin.code) / CHUNK, size / CHUNK);
		if (find_chunk(pack->used, 0, 0) == CHUNKS) {
			*link = pack->next;
			b->munmap(pack->twin.writable, PACK);
			b->munmap(pack->twin.code, PACK);
			b->free(pack);
		}
	}
	b->unlock(b->domain);
	return pack == NULL ? -1 : 0;
}

/* ---- the other peers ---- */

ALWAYS int place_in_pages(struct bench *b, struct block *block, int filled)
{
	const uint64_t size = round_up(block->size, b->page);

	block->code = block->writable = b->mmap(NULL, size, READ | WRITE, PRIVATE | ANONYMOUS, -1, 0);
	if ((intptr_t)block->code == -1)
		return -1;
	if (filled)
		b->memset(block->writable, TRAP, size);
	b->memcpy(block->writable, b->source + block->source, block->size);
	return b->mprotect(block->code, size, READ | EXEC);
}

/* Bytes alone: new ones over those freed last, and nothing is kept. */
ALWAYS int place_on_floor(struct bench *b, struct block *block)
{
	uint64_t at = b->floor_cursor < b->floor_bytes ? b->floor_cursor : 0;

	if (b->floor.code == NULL && open_twin(b, &b->floor, round_up(b->floor_bytes, PACK) + PACK) != 0)
		return -1;
	if (b->holes_count == 0)
		b->floor_cursor = at + round_up(block->size, CHUNK);
	else
		at = b->holes[--b->holes_count];
	block->code = b->floor.code + at;
	block->writable = b->floor.writable + at;
	b->memcpy(block->writable, b->source + block->source, block->size);
	return 0;
}

ALWAYS int place(struct bench *b, enum peer peer, struct block *block)
{
	void *code = NULL;
	int failed = 0;

	if (peer == PAGES || peer == FILLED)
		return place_in_pages(b, block, peer == FILLED);
	if (peer == PROGPACK)
		return place_in_pack(b, block);
	if (peer == FLOOR)
		return place_on_floor(b, block);
	if (peer == EXECMEM)
		failed = b->place(b->domain, 0, b->source + block->source, block->size, ALIGN, NULL, &code);
	else if ((code = b->malloc(block->size)) != NULL)
		b->memcpy(code, b->source + block->source, block->size);
	block->code = block->writable = code;
	return code == NULL ? -1 : failed;
}

ALWAYS int release(struct bench *b, enum peer peer, struct block *block)
{
	if (peer == EXECMEM)
		return b->free_in(b->domain, block->code);
	if (peer == PAGES || peer == FILLED)
		return b->munmap(block->code, round_up(block->size, b->page));
	if (peer == PROGPACK)
		return free_in_pack(b, block);
	if (peer == MALLOC) {
		b->free(block->code);
		return 0;
	}
	b->memset(block->writable, TRAP, round_up(block->size, CHUNK));
	b->holes[b->holes_count++] = (uint64_t)(block->writable - b->floor.writable);
	return 0;
}

/* ---- the loops ---- */

ALWAYS int cycle(struct bench *b, enum peer peer, const struct op *op)
{
	struct block *block = &b->blocks[op->slot];

	if (release(b, peer, block) != 0)
		return -1;
	block->size = op->size;
	block->source = op->source;
	return place(b, peer, block);
}

/* `count` steps from number `first` on; how many went well. */
ALWAYS uint64_t loop(struct bench *b, enum peer peer, enum verb verb, uint64_t first, uint64_t count)
{
	uint64_t i = first;
	const uint64_t end = first + count;

	if (verb == CYCLE)
		for (; i < end && cycle(b, peer, &b->ops[i]) == 0; i++)
			;
	else if (verb == PLACE)
		for (; i < end && place(b, peer, &b->blocks[i]) == 0; i++)
			;
	else
		for (; i < end && release(b, peer, &b->blocks[b->order[i]]) == 0; i++)
			;
	return i - first;
}

ALWAYS uint64_t change(struct bench *b, enum verb verb, uint64_t count)
{
	unsigned char *site = b->blocks[0].code;
	const uint64_t size = b->change_size;
	int failed = 0;
	uint64_t i = 0;

	for (; i < count && !failed; i += !failed) {
		const unsigned char *now = b->changes + i % 2 * size, *then = b->changes + (i + 1) % 2 * size;
		if (verb == POKE) {
			failed = b->poke(site, now, then, size);
			continue;
		}
		failed |= b->mprotect(site, b->page, READ | WRITE);
		if (!failed)
			b->memcpy(site, then, size);
		failed |= b->mprotect(site, b->page, READ | EXEC);
	}
	return i;
}

/* The only function there is. How many steps went well, or for VERIFY how many blocks hold what they were given. */
uint64_t bench_loops(struct bench *b, uint64_t verb, uint64_t first, uint64_t count)
{
	uint64_t done = 0, cpu = read_clock(b, CLOCK_CPU), wall = read_clock(b, CLOCK_WALL);

	b->error = 0;
	if (verb == VERIFY)
		for (uint64_t i = first; i < first + count; i++)
			done += b->memcmp(b->blocks[i].code, b->source + b->blocks[i].source, b->blocks[i].size) == 0;
	else if (verb == CALL)
		for (; done < count; done++)
			((void (*)(void))(uintptr_t)b->blocks[b->order[first + done]].code)();
	else if (verb == POKE || verb == FLIP)
		done = change(b, (enum verb)verb, count);
	else if (b->peer == EXECMEM)
		done = loop(b, EXECMEM, (enum verb)verb, first, count);
	else if (b->peer == MALLOC)
		done = loop(b, MALLOC, (enum verb)verb, first, count);
	else if (b->peer == PAGES || b->peer == FILLED)
		done = b->peer == PAGES ? loop(b, PAGES, (enum verb)verb, first, count) : loop(b, FILLED, (enum verb)verb, first, count);
	else if (b->peer == PROGPACK)
		done = loop(b, PROGPACK, (enum verb)verb, first, count);
	else
		done = loop(b, FLOOR, (enum verb)verb, first, count);
	b->wall_ns = read_clock(b, CLOCK_WALL) - wall;
	b->cpu_ns = read_clock(b, CLOCK_CPU) - cpu;
	if (done < count && b->error == 0)
		b->error = (uint64_t)*b->errno_location();
	return done;
}
