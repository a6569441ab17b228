/* test_poke: what is left of a write that is refused after its bytes have arrived, on a CPU whose traps have four bytes and whose other
 * cores must be told of new code: nothing that a free chunk may not hold, and no block that nobody can free.
 */
#include "domain.h"
#include "test.h"

#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { COUNT = 3 };

static const uint8_t trap[4] = {0x00, 0x00, 0x20, 0xD4}; /* BRK #0 of aarch64 */
static uint8_t traps[EM_MAP_BLANK], code[300];
static struct em_arch other;
static execmem_domain *domain;
static bool stops_midway; /* the next write of a file takes half of the bytes and then none */

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset)
{
	static bool stopped;

	if (stopped) {
		stopped = false;
		errno = ENOSPC;
		return -1;
	}
	if (stops_midway) {
		stops_midway = false;
		stopped = true;
		length = (length + 1) / 2;
	}
	return syscall(SYS_pwrite64, fd, bytes, length, offset);
}

static void fill_traps(void *to, size_t length)
{
	EXPECT((uintptr_t)to % sizeof trap == 0 && length % sizeof trap == 0);
	for (size_t i = 0; i < length; i += sizeof trap)
		memcpy((uint8_t *)to + i, trap, sizeof trap);
}

static bool is_trap(const void *bytes, size_t length)
{
	EXPECT((uintptr_t)bytes % sizeof trap == 0 && length % sizeof trap == 0);
	for (size_t i = 0; i < length; i += sizeof trap)
		if (memcmp((const uint8_t *)bytes + i, trap, sizeof trap) != 0)
			return false;
	return true;
}

/* A domain that takes the CPU to be another from before its first pack on. */
static void open_domain(int mode)
{
	execmem_options options = {.name = "poke", .write_mode = mode, .window = 16 << 20};

	EXPECT(execmem_domain_open(&options, &domain) == 0);
	other = *domain->arch;
	other.trap_size = sizeof trap;
	other.fill_traps = fill_traps;
	other.is_trap = is_trap;
	other.fill_sync = EM_ARCH_SYNC_CORES;
	other.fill_traps_past = NULL;
	other.drain = NULL;
	domain->arch = &other;
	domain->map.traps = traps;
	domain->plain = false;
	for (uint32_t i = 0; i < domain->shard_count; i++)
		em_domain_set_plain(domain->shards[i], false);
}

static uint64_t live(void)
{
	execmem_stats stats;

	EXPECT(execmem_domain_stats(domain, &stats) == 0);
	return stats.live_blocks;
}

struct refusal {
	const char *script;
	bool midway;
	bool stays; /* in modes that write to a file: what was written cannot be made blank at all, */
	bool stays_in_flip; /* or in mode flip */
};

static void start(const struct refusal *r)
{
	snprintf(test_context, sizeof test_context, "%s refused%s, mode %s", r->script ? r->script : "nothing",
	         r->midway ? " after half of a write" : "", execmem_mode_name(domain->map.mode));
	stops_midway = r->midway;
	execmem_test_script(r->script);
}

static void end_refusals(int err)
{
	execmem_test_script(NULL);
	EXPECT(err < 0 && !stops_midway);
}

static bool has_file_writes(int mode)
{
	return mode == EXECMEM_MODE_SYSCALL || mode == EXECMEM_MODE_PROCMEM;
}

static bool block_stays(const struct refusal *r)
{
	int mode = (int)domain->map.mode;

	return has_file_writes(mode) ? r->stays : mode == EXECMEM_MODE_FLIP ? r->stays_in_flip : false;
}

static void refuse_place(const struct refusal *r)
{
	uint64_t before = live();
	void *address = NULL, *next;
	int err;

	start(r);
	err = execmem_place(domain, EXECMEM_TEXT, code, 130, 16, NULL, &address);
	end_refusals(err);
	EXPECT(!address && live() == before + block_stays(r));
	EXPECT_LAWFUL(domain);
	EXPECT(execmem_alloc_in(domain, EXECMEM_TEXT, 130, 16, NULL, &next) == 0 && is_trap(next, 192));
	EXPECT(execmem_free(next) == 0);
}

static void refuse_place_many(const struct refusal *r)
{
	uint64_t offsets[COUNT + 1], before = live(), out[COUNT];
	int err;

	for (uint64_t i = 0; i <= COUNT; i++)
		offsets[i] = i * 70;
	start(r);
	err = execmem_place_many(domain, EXECMEM_TEXT, COUNT, code, offsets, 16, NULL, out);
	end_refusals(err);
	EXPECT(live() >= before && live() <= before + (block_stays(r) ? COUNT : 0));
	EXPECT_LAWFUL(domain);
}

/* A block of the caller's stays his. It counts as never filled only if it is blank. */
static void refuse_fill(const struct refusal *r, bool filled)
{
	uint64_t before = live();
	execmem_info info;
	uint8_t *block;
	int err;

	EXPECT(execmem_alloc_in(domain, EXECMEM_TEXT, 130, 16, NULL, (void **)&block) == 0);
	EXPECT(!filled || execmem_fill(block, code, 130) == 0);
	start(r);
	err = execmem_fill(block + 6, code, 101); /* not a whole number of traps, at either end */
	end_refusals(err);
	EXPECT(execmem_find(block, &info) == 0);
	EXPECT((info.state == EXECMEM_BLOCK_RESERVED) == (!filled && is_trap(block, 192)));
	EXPECT(!filled || (memcmp(block, code, 4) == 0 && memcmp(block + 112, code + 112, 18) == 0));
	EXPECT_LAWFUL(domain);
	EXPECT(execmem_free(block) == 0 && live() == before);
	EXPECT_LAWFUL(domain);
}

static void walk(int mode)
{
	static const struct refusal refusals[] = {
		{"sync=F", false, false, false},
		{"sync=F write=.F", false, false, false},
		{"sync=F protect=..F", false, false, false},
		{"sync=F write=.F*", false, true, false},
		{"sync=F protect=..FF", false, false, true},
		{NULL, true, false, false},
		{"write=.F", true, false, false},
		{"write=.F*", true, true, false},
	};

	open_domain(mode);
	for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
		if (refusals[i].midway && !has_file_writes(mode))
			continue;
		refuse_place(&refusals[i]);
		refuse_place_many(&refusals[i]);
		refuse_fill(&refusals[i], false);
		refuse_fill(&refusals[i], true);
	}
	test_context[0] = '\0';
	EXPECT(execmem_domain_close(domain, 1) == 0);
}

int main(void)
{
	fill_traps(traps, sizeof traps);
	for (size_t i = 0; i < sizeof code; i++)
		code[i] = (uint8_t)(i * 7 + 1);
	for (int mode = EXECMEM_MODE_SYSCALL; mode < EXECMEM_MODES; mode++)
		if (test_takes_mode(mode))
			walk(mode);
	puts("ok");
	return 0;
}
