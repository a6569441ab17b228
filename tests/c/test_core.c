/* test_core: random work on every write mode against a model, limits, spans, trees, and each error with its code.
 *
 * usage: test_core [operations per mode]
 */
#include "index.h"
#include "pack.h"
#include "sys.h"
#include "test.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

enum { LIVE_MAX = 3000, PACKS = 5, BLOCKS_MAX = 20000 };

struct shadow { /* what we believe of one block */
	uint8_t *address;
	uint32_t size;
	uint8_t byte;
	int kind;
};

static struct shadow live[LIVE_MAX];
static int count;

static uint32_t random_size(uint64_t *seed)
{
	uint64_t dice = test_random(seed) % 100;

	if (dice < 70)
		return (uint32_t)(1 + test_random(seed) % 2000);
	if (dice < 95)
		return (uint32_t)(1 + test_random(seed) % 40000);
	return (uint32_t)(1 + test_random(seed) % 300000);
}

static void expect_bytes(const struct shadow *s)
{
	for (uint32_t i = 0; i < s->size; i++)
		EXPECT(s->address[i] == s->byte);
}

static void place_one(execmem_domain *d, uint64_t *seed)
{
	static uint8_t bytes[400000];
	static const size_t aligns[] = {1, 16, 64, 128, 4096};
	uint32_t size = random_size(seed);
	size_t align = aligns[test_random(seed) % 5];
	struct shadow *s = &live[count++];
	char name[80];
	void *out;

	s->size = size;
	s->kind = test_random(seed) % 8 == 0 ? (int)(test_random(seed) % EXECMEM_KINDS) : EXECMEM_TEXT;
	s->byte = (uint8_t)test_random(seed);
	snprintf(name, sizeof name, "block %d with a name that may be long %0*d", count, (int)(test_random(seed) % 30) + 1, count);
	memset(bytes, s->byte, size);
	EXPECT(execmem_place(d, s->kind, bytes, size, align, test_random(seed) % 2 ? name : NULL, &out) == 0);
	s->address = out;
	EXPECT((uintptr_t)out % align == 0);
	expect_bytes(s);
}

static void free_one(execmem_domain *d, uint64_t *seed)
{
	int victim = (int)(test_random(seed) % (uint64_t)count);
	struct shadow s = live[victim];

	expect_bytes(&s);
	live[victim] = live[--count];
	EXPECT(execmem_free_in(d, s.address) == 0);
	EXPECT(execmem_free(s.address) == EXECMEM_EFREED);
}

static void refill_one(uint64_t *seed)
{
	struct shadow *s = &live[test_random(seed) % (uint64_t)count];
	uint8_t *bytes = malloc(s->size);

	expect_bytes(s);
	s->byte++;
	memset(bytes, s->byte, s->size);
	EXPECT(execmem_fill(s->address, bytes, s->size / 2) == 0);
	EXPECT(execmem_fill(s->address + s->size / 2, bytes, s->size - s->size / 2) == 0);
	EXPECT(execmem_fill(s->address + 1, bytes, s->size) == EXECMEM_EBOUNDS);
	expect_bytes(s);
	free(bytes);
}

static void random_work(int mode, int operations)
{
	execmem_options options = {.name = "random work", .write_mode = mode, .window = 512 << 20};
	execmem_stats stats;
	execmem_domain *d;
	uint64_t seed = 88172645463325252ull + (uint64_t)mode;

	EXPECT(execmem_domain_open(&options, &d) == 0);
	for (int i = 0; i < operations; i++) {
		uint64_t dice = test_random(&seed) % 100;
		int target = i < operations / 2 ? 2000 : 200;

		if (count == 0 || (count < LIVE_MAX && dice < (count < target ? 60u : 35u)))
			place_one(d, &seed);
		else if (dice < 80)
			free_one(d, &seed);
		else
			refill_one(&seed);
		if (i % 1000 == 0)
			EXPECT_LAWFUL(d);
	}
	EXPECT(execmem_domain_stats(d, &stats) == 0);
	EXPECT(stats.live_blocks == (uint64_t)count);
	printf("%s: %llu packs, %llu full, %llu huge, resident %llu, live %llu, ledger %llu, vmas %llu\n", execmem_mode_name(mode),
	       (unsigned long long)stats.packs, (unsigned long long)stats.full_packs, (unsigned long long)stats.huge_packs,
	       (unsigned long long)stats.resident_bytes, (unsigned long long)stats.live_bytes, (unsigned long long)stats.ledger_bytes,
	       (unsigned long long)stats.vmas);
	while (count > 0)
		free_one(d, &seed);
	EXPECT_LAWFUL(d);
	EXPECT(execmem_domain_stats(d, &stats) == 0);
	EXPECT(stats.live_blocks == 0 && stats.live_bytes == 0 && stats.used_bytes == 0 && stats.charged_bytes == 0);
	EXPECT(stats.packs <= 6); /* of each kind one spare, or the small one */
	EXPECT(execmem_domain_close(d, 0) == 0);
}

static void errors(void)
{
	execmem_options options = {.name = "errors", .limit = 1 << 20, .window = 8 << 20};
	uint64_t two[2] = {100, 0}, addresses[2];
	execmem_domain *d;
	uint8_t byte = 1, *block;
	void *out;

	EXPECT(execmem_domain_open(&options, &d) == 0);
	EXPECT(execmem_alloc_in(d, 0, 0, 16, NULL, &out) == EXECMEM_EINVAL);
	EXPECT(execmem_alloc_in(d, 0, SIZE_MAX, 16, NULL, &out) == EXECMEM_EINVAL);
	EXPECT(execmem_alloc_in(d, 0, 1, 0, NULL, &out) == EXECMEM_EINVAL);
	EXPECT(execmem_alloc_in(d, 0, 1, 3, NULL, &out) == EXECMEM_EINVAL);
	EXPECT(execmem_alloc_in(d, 0, 1, 8192, NULL, &out) == EXECMEM_EINVAL);
	EXPECT(execmem_alloc_in(d, 3, 1, 1, NULL, &out) == EXECMEM_EINVAL);
	EXPECT(execmem_alloc_in(d, 0, 1 << 21, 1, NULL, &out) == EXECMEM_ELIMIT);
	EXPECT(execmem_domain_limit(d, UINT64_MAX) == 0);
	EXPECT(execmem_alloc_in(d, 0, 16 << 20, 1, NULL, &out) == EXECMEM_EWINDOW);
	EXPECT(execmem_alloc_in(d, 0, 200, 16, "one", &out) == 0);
	block = out;
	EXPECT(block[0] == 0xCC || strcmp(execmem_arch_name(), "x86_64") != 0);
	EXPECT(execmem_free(NULL) == EXECMEM_EFOREIGN);
	EXPECT(execmem_free(&byte) == EXECMEM_EFOREIGN);
	EXPECT(execmem_free(block + 64) == EXECMEM_EINTERIOR);
	EXPECT(execmem_free(block + 1) == EXECMEM_EINTERIOR);
	EXPECT(execmem_free(block + 256) == EXECMEM_EFREED);
	EXPECT(execmem_free(block + (4 << 20)) == EXECMEM_EFREED);
	EXPECT(execmem_fill(block + 201, &byte, 1) == EXECMEM_EBOUNDS);
	EXPECT(execmem_fill(block + 199, &byte, 2) == EXECMEM_EBOUNDS);
	EXPECT(execmem_fill(block, NULL, 2) == EXECMEM_EINVAL);
	EXPECT(execmem_fill(block + 200, &byte, 0) == 0);
	EXPECT(execmem_fill(block, &byte, 1) == 0);
	EXPECT(execmem_alloc_many(d, 0, 2, two, 16, NULL, addresses) == EXECMEM_EINVAL && execmem_error_index() == 1);
	addresses[0] = addresses[1] = (uintptr_t)block;
	two[0] = 0;
	two[1] = 0 - (uint64_t)(uintptr_t)block + 16; /* an end that wraps to within the block */
	EXPECT(execmem_fill_many(d, 1, addresses, &byte, two) == EXECMEM_EBOUNDS && execmem_error_index() == 0);
	EXPECT(execmem_free_many(d, 2, addresses) == EXECMEM_EFREED && execmem_error_index() == 1);
	EXPECT_LAWFUL(d);
	EXPECT(execmem_domain_close(d, 0) == EXECMEM_EBUSY);
	EXPECT(execmem_free_in(d, block) == 0);
	EXPECT(execmem_free_in(d, block) == EXECMEM_EFREED);
	EXPECT(execmem_fill(block, &byte, 1) == EXECMEM_EFREED);
	EXPECT(execmem_domain_close(d, 0) == 0);
	EXPECT(execmem_free_in(d, block) == EXECMEM_ECLOSED);
	EXPECT(execmem_free(block) == EXECMEM_EFOREIGN);
	EXPECT(execmem_domain_close(d, 0) == EXECMEM_ECLOSED);
	EXPECT(execmem_domain_close(NULL, 0) == EXECMEM_EINVAL);
	EXPECT(execmem_domain_close(execmem_domain_root(), 1) == EXECMEM_EBUSY);
}

static void nulls(void)
{
	uint64_t two[2] = {0, 8}, out = 0;
	execmem_domain *d;
	void *block;

	EXPECT(execmem_domain_open(NULL, &d) == EXECMEM_EINVAL);
	EXPECT(execmem_domain_open(&(execmem_options){0}, NULL) == EXECMEM_EINVAL);
	EXPECT(execmem_alloc_in(NULL, 0, 8, 16, NULL, NULL) == EXECMEM_EINVAL);
	EXPECT(execmem_place(NULL, 0, NULL, 8, 16, NULL, &block) == EXECMEM_EINVAL);
	EXPECT(execmem_place(NULL, 0, two, 8, 16, NULL, NULL) == EXECMEM_EINVAL);
	EXPECT(execmem_alloc_many(NULL, 0, 1, NULL, 16, NULL, &out) == EXECMEM_EINVAL);
	EXPECT(execmem_alloc_many(NULL, 0, 1, two, 16, NULL, NULL) == EXECMEM_EINVAL);
	EXPECT(execmem_place_many(NULL, 0, 1, NULL, two, 16, NULL, &out) == EXECMEM_EINVAL);
	EXPECT(execmem_place_many(NULL, 0, 1, two, NULL, 16, NULL, &out) == EXECMEM_EINVAL);
	EXPECT(execmem_fill_many(NULL, 1, NULL, two, two) == EXECMEM_EINVAL);
	EXPECT(execmem_free_many(NULL, 1, NULL) == EXECMEM_EINVAL);
	EXPECT(execmem_free_many(NULL, 0, NULL) == 0);
	EXPECT(execmem_find(NULL, NULL) == EXECMEM_EINVAL);
	EXPECT(execmem_domain_stats(NULL, NULL) == EXECMEM_EINVAL);
	EXPECT_LAWFUL(NULL);
}

/* Packs kept though empty give way before a window counts as full. */
static void tight_window(void)
{
	execmem_options options = {.name = "tight", .window = 8 << 20};
	execmem_domain *d;
	void *out;

	EXPECT(execmem_domain_open(&options, &d) == 0);
	for (int kind = 0; kind < EXECMEM_KINDS; kind++) {
		EXPECT(execmem_alloc_in(d, kind, 1 << 20, 16, NULL, &out) == 0);
		EXPECT(execmem_free(out) == 0);
	}
	EXPECT(execmem_alloc_in(d, EXECMEM_TEXT, 8 << 20, 16, NULL, &out) == 0);
	EXPECT_LAWFUL(d);
	EXPECT(execmem_alloc_in(d, EXECMEM_DATA, 1, 16, NULL, &out) == EXECMEM_EWINDOW);
	EXPECT_LAWFUL(d);
	EXPECT(execmem_domain_close(d, 1) == 0);
}

/* As many blocks as chunks, in the order that grows every group's records through all sizes at once. */
static void smallest_blocks(void)
{
	execmem_options options = {.name = "smallest", .window = 2 << 20};
	execmem_domain *d;
	uint64_t blocks = 0;
	void *out;

	EXPECT(execmem_domain_open(&options, &d) == 0);
	for (size_t align = 4096; align >= 64; align /= 2)
		while (execmem_alloc_in(d, EXECMEM_TEXT, 64, align, NULL, &out) == 0)
			blocks++;
	EXPECT(execmem_error_code() == EXECMEM_EWINDOW);
	EXPECT(blocks == EXECMEM_PACK_CHUNKS);
	EXPECT_LAWFUL(d);
	EXPECT(execmem_domain_close(d, 1) == 0);
}

/* A block's own bytes, read through the window, moved within it. */
static void overlap(int mode)
{
	execmem_options options = {.name = "overlap", .write_mode = mode};
	uint8_t bytes[256];
	execmem_domain *d;
	uint8_t *block;
	void *out;

	for (int i = 0; i < 256; i++)
		bytes[i] = (uint8_t)i;
	EXPECT(execmem_domain_open(&options, &d) == 0);
	for (int kind = 0; kind < EXECMEM_KINDS; kind++) {
		EXPECT(execmem_place(d, kind, bytes, 256, 16, NULL, &out) == 0);
		block = out;
		EXPECT(execmem_fill(block + 1, block, 255) == 0);
		EXPECT(block[0] == 0 && memcmp(block + 1, bytes, 255) == 0);
		EXPECT(execmem_free(block) == 0);
	}
	EXPECT(execmem_domain_close(d, 0) == 0);
}

static void spans(int mode)
{
	execmem_options options = {.name = "spans", .write_mode = mode, .window = 64 << 20};
	size_t size = (5 << 20) + 123;
	uint8_t *bytes = malloc(size), *a, *b;
	execmem_info info;
	execmem_domain *d;
	void *out;

	memset(bytes, 0x5a, size);
	EXPECT(execmem_domain_open(&options, &d) == 0);
	for (int kind = 0; kind < EXECMEM_KINDS; kind++) {
		EXPECT(execmem_place(d, kind, bytes, size, 64, "large", &out) == 0);
		a = out;
		EXPECT(a[0] == 0x5a && a[size - 1] == 0x5a);
		EXPECT(execmem_place(d, kind, bytes, 100, 64, NULL, &out) == 0);
		b = out;
		EXPECT(execmem_place(d, kind, bytes, 2 << 20, 4096, NULL, &out) == 0);
		EXPECT_LAWFUL(d);
		EXPECT(execmem_find(a + size - 1, &info) == 0 && info.address == (uintptr_t)a && strcmp(info.name, "large") == 0);
		EXPECT(execmem_fill(a + size - 1, bytes, 1) == 0);
		EXPECT(execmem_fill(a + size - 1, bytes, 2) == EXECMEM_EBOUNDS);
		EXPECT(execmem_free(a + (2 << 20)) == EXECMEM_EINTERIOR);
		EXPECT(execmem_free(a) == 0);
		EXPECT(execmem_free(a) == EXECMEM_EFREED);
		EXPECT(execmem_free(b) == 0);
		EXPECT(execmem_free(out) == 0);
		EXPECT_LAWFUL(d);
	}
	EXPECT(execmem_domain_close(d, 0) == 0);
	free(bytes);
}

static void tree(void)
{
	execmem_options options = {.name = "parent", .limit = 4096};
	execmem_domain *parent, *child, *grandchild;
	void *a, *b;

	EXPECT(execmem_domain_open(&options, &parent) == 0);
	options = (execmem_options){.name = "child", .parent = parent};
	EXPECT(execmem_domain_open(&options, &child) == 0);
	options = (execmem_options){.name = "grandchild", .parent = child};
	EXPECT(execmem_domain_open(&options, &grandchild) == 0);
	EXPECT(execmem_alloc_in(grandchild, 0, 3000, 16, NULL, &a) == 0);
	EXPECT(execmem_alloc_in(child, 0, 2000, 16, NULL, &b) == EXECMEM_ELIMIT);
	EXPECT(strstr(execmem_error_text(), "\"parent\""));
	EXPECT(execmem_alloc_in(child, 0, 1000, 16, NULL, &b) == 0);
	EXPECT(execmem_free_in(child, a) == EXECMEM_EFOREIGN);
	EXPECT(execmem_domain_close(parent, 0) == EXECMEM_EBUSY);
	EXPECT(execmem_free(a) == 0);
	EXPECT(execmem_alloc_in(child, 0, 2000, 16, NULL, &a) == 0);
	EXPECT(execmem_domain_close(parent, 1) == 0);
	EXPECT(execmem_alloc_in(grandchild, 0, 1, 1, NULL, &a) == EXECMEM_ECLOSED);
	EXPECT_LAWFUL(NULL);
}

static void near(void)
{
	uint64_t here = (uintptr_t)&execmem_free;
	execmem_options options = {.name = "near", .near_address = here};
	execmem_stats stats;
	execmem_domain *d;

	EXPECT(execmem_domain_open(&options, &d) == 0);
	EXPECT(execmem_domain_stats(d, &stats) == 0);
	EXPECT(stats.window + (1ull << 31) > here && stats.window + stats.window_bytes < here + (1ull << 31) && !stats.far);
	EXPECT(execmem_domain_close(d, 0) == 0);
	options.reach = 1 << 20;
	EXPECT(execmem_domain_open(&options, &d) == EXECMEM_EWINDOW);
	options.near_address = UINT64_MAX - 10;
	EXPECT(execmem_domain_open(&options, &d) == EXECMEM_EWINDOW);
	options.near_address = here;
	options.fallback = 1;
	EXPECT(execmem_domain_open(&options, &d) == 0);
	EXPECT(execmem_domain_stats(d, &stats) == 0 && stats.far);
	EXPECT(execmem_domain_close(d, 0) == 0);
}

/* ---- the bookkeeping by itself, against one byte a chunk ---- */

static struct {
	execmem_pack records[PACKS];
	struct em_pack_maps maps[PACKS];
	struct em_index index;
	uint8_t used[PACKS][EXECMEM_PACK_CHUNKS];
	struct {
		uint32_t pack, first, chunks;
	} blocks[BLOCKS_MAX];
	uint32_t count;
} books;

static struct em_pack book(uint32_t pack)
{
	return (struct em_pack){&books.records[pack], &books.maps[pack]};
}

static void grow_book(uint32_t pack, uint32_t usable)
{
	struct em_classes before = em_pack_classes(book(pack));

	em_pack_grow(book(pack), usable);
	em_index_update(&books.index, pack, before, em_pack_classes(book(pack)));
}

static void expect_lawful_books(void)
{
	for (uint32_t pack = 0; pack < PACKS; pack++) {
		uint32_t longest = 0, run = 0;

		for (uint32_t chunk = 0; chunk < books.records[pack].usable_chunks; chunk++) {
			EXPECT(em_pack_is_used(book(pack), chunk) == books.used[pack][chunk]);
			run = books.used[pack][chunk] ? 0 : run + 1;
			longest = run > longest ? run : longest;
		}
		EXPECT(em_pack_check(book(pack)) == NULL);
		EXPECT(em_pack_largest(book(pack)) == longest);
		EXPECT(em_classes_equal(em_index_known(&books.index, pack), em_pack_classes(book(pack))));
	}
	EXPECT(em_index_check(&books.index) == NULL);
}

/* From the class of every run that must do, else the longest way round; false: no run does, which the bytes confirm. */
static bool take_chunks(uint32_t chunks, uint32_t align)
{
	uint32_t first = EM_PACK_NONE, pack = 0;
	unsigned cls = em_pack_class(chunks), safe = em_pack_class_for(chunks + align - 1);

	if (em_index_best(&books.index, safe, &cls, &pack))
		safe = cls + 1;
	for (; cls < safe && first == EM_PACK_NONE; cls++)
		for (pack = em_index_next(&books.index, cls, UINT32_MAX); pack != EM_PACK_NONE;
		     pack = em_index_next(&books.index, cls, pack)) {
			struct em_classes before = em_pack_classes(book(pack));

			first = em_pack_take(book(pack), cls, chunks, align, UINT32_MAX);
			em_index_update(&books.index, pack, before, em_pack_classes(book(pack)));
			if (first != EM_PACK_NONE)
				break;
		}
	if (first == EM_PACK_NONE) {
		for (pack = 0; pack < PACKS; pack++)
			for (uint32_t at = 0; at + chunks <= books.records[pack].usable_chunks; at += align)
				EXPECT(memchr(books.used[pack] + at, 1, chunks) != NULL);
		return false;
	}
	EXPECT(first % align == 0 && first + chunks <= books.records[pack].usable_chunks);
	EXPECT(memchr(books.used[pack] + first, 1, chunks) == NULL);
	memset(books.used[pack] + first, 1, chunks);
	books.blocks[books.count].pack = pack;
	books.blocks[books.count].first = first;
	books.blocks[books.count++].chunks = chunks;
	return true;
}

static void give_chunks(uint32_t victim, uint32_t within)
{
	uint32_t at = books.blocks[victim].pack, first = books.blocks[victim].first, chunks = books.blocks[victim].chunks;
	struct em_pack pack = book(at);
	struct em_classes before = em_pack_classes(pack);
	uint32_t end = first + chunks;
	bool joins = (first > 0 && !books.used[at][first - 1]) || (end < pack.record->usable_chunks && !books.used[at][end]);

	books.blocks[victim] = books.blocks[--books.count];
	EXPECT(em_pack_length(pack, first) == chunks && em_pack_is_head(pack, first));
	EXPECT(em_pack_block_at(pack, first + within % chunks) == first);
	EXPECT(em_pack_is_alone(pack, first, chunks) == !joins);
	EXPECT(em_pack_give(pack, first) == chunks);
	EXPECT(em_pack_block_at(pack, first + within % chunks) == EM_PACK_NONE);
	em_index_update(&books.index, at, before, em_pack_classes(pack));
	memset(books.used[at] + first, 0, chunks);
}

/* Every run of a class is at least as long as those of the class below, and of the class for a length it holds that many. */
static void classes(void)
{
	for (uint32_t chunks = 1; chunks <= EXECMEM_PACK_CHUNKS; chunks++) {
		unsigned cls = em_pack_class(chunks), least = em_pack_class_for(chunks);

		EXPECT(cls < EM_PACK_CLASSES && (least == cls || least == cls + 1));
		EXPECT(chunks == 1 || (em_pack_class(chunks - 1) <= cls && em_pack_class(chunks - 1) < least));
		EXPECT((least == EM_PACK_CLASSES) == (chunks > EXECMEM_PACK_CHUNKS / 2));
	}
}

static void packs(int operations)
{
	static const uint32_t longest[] = {3, 40, 80, 3000, EXECMEM_PACK_CHUNKS};
	uint64_t seed = 362436069362436069ull;

	for (uint32_t pack = 0; pack < PACKS; pack++) {
		em_pack_init(book(pack));
		grow_book(pack, pack == 0 ? 1024 : EXECMEM_PACK_CHUNKS);
	}
	for (int i = 0; i < operations; i++) {
		uint32_t limit = longest[test_random(&seed) % (test_random(&seed) % 100 ? 3 : 5)];
		uint32_t chunks = (uint32_t)(1 + test_random(&seed) % limit),
				 align = test_random(&seed) % 8 ? 1 : 1u << test_random(&seed) % 7;

		if (chunks + align - 1 > EXECMEM_PACK_CHUNKS)
			align = 1;
		if (test_random(&seed) % 100 < (i < operations / 2 ? 65u : 35u) && books.count < BLOCKS_MAX) {
			if (!take_chunks(chunks, align) && books.records[0].usable_chunks < EXECMEM_PACK_CHUNKS)
				grow_book(0, books.records[0].usable_chunks * 2);
		} else if (books.count > 0) {
			give_chunks((uint32_t)(test_random(&seed) % books.count), (uint32_t)test_random(&seed));
		}
		if (i % (operations / 8 + 1) == 0)
			expect_lawful_books();
	}
	while (books.count > 0)
		give_chunks(books.count - 1, 0);
	expect_lawful_books();
	for (uint32_t pack = 0; pack < PACKS; pack++)
		EXPECT(em_pack_largest(book(pack)) == books.records[pack].usable_chunks);
}

/* Whoever takes locks out of order is stopped, in builds with asserts as this one. */
static void lock_order(void)
{
	struct em_lock packs = {.rank = EM_RANK_PACKS}, names = {.rank = EM_RANK_NAMES};
	int status;
	pid_t child = fork();

	EXPECT(child >= 0);
	if (child == 0) {
		(void)!freopen("/dev/null", "w", stderr);
		em_sys_lock(&packs);
		em_sys_lock(&names);
		em_sys_unlock(&packs);
		em_sys_unlock(&names); /* so far in order */
		em_sys_lock(&names);
		em_sys_lock(&packs);
		_exit(0);
	}
	EXPECT(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

int main(int argc, char **argv)
{
	int operations = test_amount(argc, argv, 20000, 400);

	classes();
	packs(operations);
	lock_order();
	errors();
	nulls();
	tight_window();
	smallest_blocks();
	tree();
	near();
	for (int mode = EXECMEM_MODE_SYSCALL; mode < EXECMEM_MODES; mode++) {
		if (!test_takes_mode(mode))
			continue;
		overlap(mode);
		spans(mode);
		random_work(mode, operations);
	}
	EXPECT_LAWFUL(NULL);
	puts("ok");
	return 0;
}
