/* test_decode: lengths of instructions and what they do to those behind them, against a table, and against objdump (where there is one) on
 * the C library and on random bytes.
 *
 * usage: test_decode [instructions of random bytes]
 */
#include "arch.h"
#include "test.h"

#include <errno.h>
#include <unistd.h>

static const struct em_arch *const x86 = &em_arch_x86_64;

static size_t from_hex(const char *hex, uint8_t *out)
{
	size_t len = 0;

	for (; hex[0] && hex[1]; hex += 2) {
		unsigned byte;

		EXPECT(sscanf(hex, "%2x", &byte) == 1);
		out[len++] = (uint8_t)byte;
	}
	return len;
}

/* ---- a table ---- */

static const struct {
	const char *hex; /* followed by bytes that do not belong to it */
	int length; /* 0: refused */
	int distance_at, distance_size;
	bool branches, resumes;
} known[] = {
	{.hex = "90", .length = 1},
	{.hex = "c3", .length = 1},
	{.hex = "cc", .length = 1},
	{.hex = "0f1f4400009090", .length = 5},
	{.hex = "662e0f1f84000000000090", .length = 10},
	{.hex = "e90000000090", .length = 5, .distance_at = 1, .distance_size = 4, .branches = true},
	{.hex = "e80000000090", .length = 5, .distance_at = 1, .distance_size = 4, .branches = true},
	{.hex = "eb0090", .length = 2, .distance_at = 1, .distance_size = 1, .branches = true},
	{.hex = "7f0090", .length = 2, .distance_at = 1, .distance_size = 1, .branches = true},
	{.hex = "0f840000000090", .length = 6, .distance_at = 2, .distance_size = 4, .branches = true},
	{.hex = "e30090", .length = 2, .distance_at = 1, .distance_size = 1, .branches = true},
	{.hex = "666648e80000000090", .length = 8, .distance_at = 4, .distance_size = 4, .branches = true},
	{.hex = "488b050000000090", .length = 7, .distance_at = 3, .distance_size = 4},
	{.hex = "c705000000000000000090", .length = 10, .distance_at = 2, .distance_size = 4},
	{.hex = "66c70500000000000090", .length = 9, .distance_at = 3, .distance_size = 4},
	{.hex = "ff250000000090", .length = 6, .distance_at = 2, .distance_size = 4},
	{.hex = "488b0425000000009090", .length = 8},
	{.hex = "48b8112233445566778890", .length = 10},
	{.hex = "66b8112290", .length = 4},
	{.hex = "b81122334490", .length = 5},
	{.hex = "488d442408909090", .length = 5},
	{.hex = "488d84241111111190", .length = 8},
	{.hex = "f6c40190", .length = 3},
	{.hex = "f6d490", .length = 2},
	{.hex = "f7c00000000090", .length = 6},
	{.hex = "66f7c0000090", .length = 5},
	{.hex = "c8112233", .length = 4},
	{.hex = "c2112290", .length = 3},
	{.hex = "48a1112233445566778890", .length = 10},
	{.hex = "6748a11122334490", .length = 7},
	{.hex = "660f3a0fc10890", .length = 6},
	{.hex = "660f3800c190", .length = 5},
	{.hex = "f30fb8c190", .length = 4},
	{.hex = "c5f877", .length = 3},
	{.hex = "c5fd6f0590909090", .length = 8, .distance_at = 4, .distance_size = 4},
	{.hex = "c4e37d19c10190", .length = 6},
	{.hex = "c4e2f5b8c290", .length = 5},
	{.hex = "62f17c48284501", .length = 7},
	{.hex = "62f3f548254501ff", .length = 8},
	{.hex = "c4e2e990048000", .length = 6, .resumes = true},
	{.hex = "f348a5", .length = 3, .resumes = true},
	{.hex = "a4", .length = 1},
	{.hex = "0f05", .length = 2, .resumes = true},
	{.hex = "cd80", .length = 2, .resumes = true},
	{.hex = "f0480fb10a", .length = 5},
	{.hex = "f30f1efa", .length = 4},
	{.hex = "3effe0", .length = 3},
	{.hex = "e8000000"}, /* not over */
	{.hex = "0f"},
	{.hex = "66666666666666666666666666666690"},
	{.hex = "06"}, /* not in 64-bit mode */
	{.hex = "9a112233445566"},
	{.hex = "66e80000000000"}, /* vendors differ */
	{.hex = "c7f800000000"}, /* xbegin */
	{.hex = "4866b8112290"}, /* REX that is none */
	{.hex = "8fe9789bc100"}, /* XOP */
	{.hex = "66c5f877"},
	{.hex = "d5004801"}, /* REX2 */
	{.hex = ""},
};

static void test_known(void)
{
	for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
		uint8_t bytes[20];
		size_t len = from_hex(known[i].hex, bytes);
		struct em_arch_insn insn;

		snprintf(test_context, sizeof test_context, "%s", known[i].hex);
		if (known[i].length == 0) {
			EXPECT(!x86->decode(bytes, len, &insn));
			continue;
		}
		EXPECT(x86->decode(bytes, len, &insn));
		EXPECT(insn.length == known[i].length);
		EXPECT(insn.distance_at == known[i].distance_at && insn.distance_size == known[i].distance_size);
		EXPECT(insn.branches == known[i].branches && insn.resumes == known[i].resumes);
		EXPECT(x86->decode(bytes, (size_t)known[i].length, &insn));
		EXPECT(!x86->decode(bytes, (size_t)known[i].length - 1, &insn));
	}
}

/* Whatever the bytes, the decoder reads no more than it is given: sanitizers look on. */
static void test_bounds(int rounds)
{
	uint64_t seed = 77;

	for (int i = 0; i < rounds; i++) {
		size_t len = test_random(&seed) % 17;
		uint8_t *bytes = malloc(len + 1);
		struct em_arch_insn insn;

		EXPECT(bytes);
		for (size_t k = 0; k < len; k++)
			bytes[k] = (uint8_t)test_random(&seed);
		if (x86->decode(bytes, len, &insn)) {
			EXPECT(insn.length >= 1 && insn.length <= len && insn.length <= EM_ARCH_INSN_MAX);
			EXPECT(insn.distance_at + insn.distance_size <= insn.length);
		}
		free(bytes);
	}
}

/* ---- objdump ---- */

/* The bytes and the words of a line of objdump; 0: it shows no instruction. */
static size_t read_line(const char *line, uint8_t bytes[32], const char **words)
{
	const char *at = strchr(line, ':');
	size_t len = 0;
	unsigned byte;

	if (line[0] != ' ' || !at || at[1] != '\t')
		return 0;
	for (at += 2; len < 32 && at[0] != ' ' && sscanf(at, "%2x", &byte) == 1 && at[2] == ' '; at += 3)
		bytes[len++] = (uint8_t)byte;
	*words = strchr(at, '\t');
	return *words ? len : 0;
}

/* What objdump takes for no instruction, or shows apart from the instruction it belongs to. */
static bool is_bare(const char *words)
{
	static const char *const bare[] = {"(bad)",   "rex",   "data16", "addr32",   "lock",     "repz", "repnz",
	                                   "cs",      "ds",    "es",     "ss",       "fs",       "gs",   "bnd",
	                                   "notrack", "fwait", "wait",   "xacquire", "xrelease", "{rex2"};

	words++;
	if (strstr(words, "(bad)"))
		return true;
	for (size_t i = 0; i < sizeof bare / sizeof bare[0]; i++)
		if (strncmp(words, bare[i], strlen(bare[i])) == 0 && !strpbrk(words, "%$(") && strlen(words) < 12)
			return true;
	return false;
}

/* Whether one of the words is such an instruction; those before it are prefixes. */
static bool is_one_of(const char *words, const char *const *names)
{
	while (*words) {
		size_t len;

		words += strspn(words, "\t ,");
		len = strcspn(words, "\t \n,");
		for (size_t i = 0; names[i]; i++)
			if (strlen(names[i]) == len && strncmp(words, names[i], len) == 0)
				return true;
		words += len;
		words += strspn(words, "\n");
	}
	return false;
}

/* What ends goes nowhere else; a direct call is one; and what is told to do nothing does nothing. */
static bool means_the_same(const char *words, const struct em_arch_insn *insn)
{
	static const char *const ends[] = {"ret", "retw", "retq", "lret", "lretw", "lretq", "iret", "iretw", "iretq",
	                                   "jmp", "jmpw", "jmpq", "ljmp", "ljmpw", "ljmpq", "hlt",  "ud2",   NULL};
	static const char *const calls[] = {"call", "callq", "callw", NULL}, *const nothing[] = {"nop",  "nopw", "nopl",
	                                                                                         "nopq", "xchg", NULL};

	if (insn->ends != is_one_of(words, ends))
		return false;
	if (insn->calls != (is_one_of(words, calls) && !strstr(words, " *")))
		return false;
	return !insn->nothing || is_one_of(words, nothing);
}

struct tally {
	uint64_t same, refused, other;
};

static bool compare(const char *command, struct tally *out, bool tell)
{
	FILE *pipe = popen(command, "r");
	static char line[1024];

	*out = (struct tally){0};
	EXPECT(pipe);
	while (fgets(line, sizeof line, pipe)) {
		uint8_t bytes[32];
		struct em_arch_insn insn;
		const char *words;
		size_t len = read_line(line, bytes, &words);

		if (len == 0 || len > EM_ARCH_INSN_MAX || is_bare(words))
			continue;
		if (!x86->decode(bytes, len, &insn))
			out->refused++;
		else if (!means_the_same(words, &insn))
			out->other++;
		else if (insn.length == len || bytes[insn.length - 1] == 0x9B) /* objdump joins a wait to what follows it */
			out->same++;
		else
			out->other++;
		if (tell && (!x86->decode(bytes, len, &insn) || insn.length != len || !means_the_same(words, &insn)))
			fputs(line, stdout);
	}
	return pclose(pipe) == 0;
}

static bool find_libc(char path[256])
{
	FILE *maps = fopen("/proc/self/maps", "r");
	static char line[512];
	bool found = false;

	while (maps && !found && fgets(line, sizeof line, maps)) {
		char *name = strchr(line, '/');

		if (name && strstr(name, "libc.so") && strlen(name) < 256) {
			snprintf(path, 256, "%s", name);
			path[strcspn(path, "\n")] = '\0';
			found = true;
		}
	}
	if (maps)
		fclose(maps);
	return found;
}

static void test_libc(void)
{
	char path[256], command[400];
	struct tally t;

	if (!find_libc(path)) {
		puts("left out: there is no C library that can be read");
		return;
	}
	snprintf(command, sizeof command, "objdump -d -w '%s'", path);
	EXPECT(compare(command, &t, getenv("EXECMEM_TEST_TELL") != NULL));
	printf("%s: %llu instructions alike, %llu not known, %llu of another length or meaning\n", path, (unsigned long long)t.same,
	       (unsigned long long)t.refused, (unsigned long long)t.other);
	EXPECT(t.same > 100000 && t.other == 0);
	EXPECT(t.refused * 1000 < t.same); /* transactions: xbegin */
}

/* objdump takes what it does not know byte by byte, so most random bytes are shown as some instruction. */
static void test_objdump_random(int instructions)
{
	FILE *file = tmpfile(); /* nothing is left of it, whatever happens */
	char command[200];
	uint64_t seed = 4242;
	struct tally t;

	EXPECT(file != NULL);
	for (int i = 0; i < instructions; i++) {
		uint64_t word = test_random(&seed);

		EXPECT(fwrite(&word, 5, 1, file) == 1);
	}
	EXPECT(fflush(file) == 0);
	snprintf(command, sizeof command, "objdump -D -w -b binary -m i386:x86-64 /proc/%d/fd/%d", (int)getpid(), fileno(file));
	EXPECT(compare(command, &t, getenv("EXECMEM_TEST_TELL") != NULL));
	fclose(file);
	printf("random bytes: %llu instructions alike, %llu not known, %llu of another length or meaning\n", (unsigned long long)t.same,
	       (unsigned long long)t.refused, (unsigned long long)t.other);
	EXPECT(t.same > (uint64_t)instructions && t.other == 0);
	EXPECT(t.refused * 20 < t.same);
}

int main(int argc, char **argv)
{
	int amount = test_amount(argc, argv, 100000, 2000);

	test_known();
	test_context[0] = '\0';
	test_bounds(amount);
	if (getenv("EXECMEM_TEST_SHORT")) {
		puts("left out of a short run: the comparison with objdump");
	} else if (system("objdump --version > /dev/null 2>&1") != 0) {
		puts("left out: there is no objdump to compare with");
	} else {
		test_libc();
		test_objdump_random(amount);
	}
	puts("ok");
	return 0;
}
