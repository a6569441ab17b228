/* lab_init: the first and only program of a machine of the lab. It loads and unloads BPF socket filters as the file /workload says, prints
 * counters of the direct map after each step, and turns the machine off. lab.py makes the file, and reads the lines that begin with "== ".
 *
 *     == step {"kernel":...}     counters, one JSON object a step
 *     == error TEXT              why there are no more
 *     == end N                   all N steps were printed
 *
 * A filter is straight-line code: mov r0,1; add r0,1; ...; exit. How many instructions is drawn at random from a generator with a fixed
 * seed, as is everything else: runs of one workload differ only by what the kernel does.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

enum {
	PAGE = 4096,
	INSNS_LIMIT = 4096,
	PIPE_PAGES = 256, /* the most that a pipe may hold */
	HOG_PAGES = 16, /* looked at in each step of churn */
	FILL_PERCENT = 92, /* of the memory that is free, for frag= */
	FILES_LIMIT = 1 << 20,
	SETTLE_HALF = 2, /* seconds in which the kernel frees what was unloaded */
	SETTLE_ALL = 3,
	SETTLE_PIPES = 1,
};

static struct {
	char scn[16];
	long n, live, steps, insns_min, insns_max, frag, pfrag, keep, hog;
} workload = {.insns_min = 20, .insns_max = 219};

static struct {
	int *files; /* one for each live program */
	long live, loads, unloads, printed;
	struct timespec start;
	unsigned char *hog, *held; /* the memory, and which of its pages */
	uint64_t dice;
} lab = {.dice = 0x9e3779b97f4a7c15u};

/* ---- what all need ---- */

static void turn_off(void)
{
	fflush(stdout);
	sync();
	reboot(RB_POWER_OFF);
	_exit(1);
}

static void fail(const char *format, ...)
{
	va_list values;

	printf("== error ");
	va_start(values, format);
	vprintf(format, values);
	va_end(values);
	printf("\n");
	turn_off();
}

/* xorshift64*: below `limit`, which is small beside 2^32. */
static uint32_t roll(uint32_t limit)
{
	lab.dice ^= lab.dice >> 12;
	lab.dice ^= lab.dice << 25;
	lab.dice ^= lab.dice >> 27;
	return (uint32_t)(((lab.dice * 0x2545f4914f6cdd1du >> 32) * limit) >> 32);
}

static void mount_at(const char *what, const char *where)
{
	mkdir(where, 0755);
	if (mount(what, where, what, 0, NULL))
		fail("%s cannot be mounted: %s", where, strerror(errno));
}

/* The number behind a name at the start of a line; -1: the file has none. */
static long read_counter(const char *path, const char *name)
{
	FILE *file = fopen(path, "r");
	size_t length = strlen(name);
	char line[256];
	long value = -1;

	if (!file)
		fail("%s cannot be read: %s", path, strerror(errno));
	while (value < 0 && fgets(line, sizeof line, file))
		if (strncmp(line, name, length) == 0 && (line[length] == ':' || line[length] == ' '))
			value = strtol(line + length + 1, NULL, 10);
	fclose(file);
	return value;
}

static long or_zero(long value)
{
	return value < 0 ? 0 : value;
}

/* ---- a step ---- */

/* Areas of vmalloc memory that the BPF compilers asked for, guard pages included: a program each, or packs of them. */
static long count_areas(long *bytes)
{
	FILE *file = fopen("/proc/vmallocinfo", "r");
	char line[512];
	long areas = 0, size;

	*bytes = 0;
	if (!file)
		fail("/proc/vmallocinfo cannot be read: %s", strerror(errno));
	while (fgets(line, sizeof line, file)) {
		if (!strstr(line, "bpf_jit") && !strstr(line, "bpf_prog_pack"))
			continue;
		if (sscanf(line, "%*s %ld", &size) != 1)
			fail("/proc/vmallocinfo has a line of another form: %s", line);
		areas++;
		*bytes += size;
	}
	fclose(file);
	return areas;
}

/* DirectMap* is 0 where the machine has no mapping of that size; the counters of vmstat are -1 where the kernel has none. */
static void print_step(const char *step)
{
	static const char meminfo[] = "/proc/meminfo", vmstat[] = "/proc/vmstat";
	struct utsname system;
	struct timespec now;
	long bytes, areas = count_areas(&bytes);
	double seconds;

	uname(&system);
	clock_gettime(CLOCK_MONOTONIC, &now);
	seconds = (double)(now.tv_sec - lab.start.tv_sec) + 1e-9 * (double)(now.tv_nsec - lab.start.tv_nsec);
	printf("== step {\"kernel\":\"%s\",\"scn\":\"%s\",\"step\":\"%s\",\"live\":%ld,\"loads\":%ld,\"unloads\":%ld,"
	       "\"dm4k_kB\":%ld,\"dm2m_kB\":%ld,\"dm1g_kB\":%ld,\"split2m\":%ld,\"split1g\":%ld,\"coll2m\":%ld,\"coll1g\":%ld,"
	       "\"jit_areas\":%ld,\"jit_kB\":%ld,\"memfree_kB\":%ld,\"t\":%.2f}\n",
	       system.release, workload.scn, step, lab.live, lab.loads, lab.unloads, or_zero(read_counter(meminfo, "DirectMap4k")),
	       or_zero(read_counter(meminfo, "DirectMap2M")), or_zero(read_counter(meminfo, "DirectMap1G")),
	       read_counter(vmstat, "direct_map_level2_splits"), read_counter(vmstat, "direct_map_level3_splits"),
	       read_counter(vmstat, "direct_map_level2_collapses"), read_counter(vmstat, "direct_map_level3_collapses"), areas,
	       bytes / 1024, read_counter(meminfo, "MemFree"), seconds);
	fflush(stdout);
	lab.printed++;
}

static void print_count(const char *step, long count)
{
	char name[32];

	snprintf(name, sizeof name, "%s%ld", step, count);
	print_step(name);
}

/* ---- programs ---- */

static int load(void)
{
	static struct bpf_insn code[INSNS_LIMIT];
	long count = workload.insns_min + roll((uint32_t)(workload.insns_max - workload.insns_min + 1));
	union bpf_attr attributes;
	int file;

	for (long i = 0; i < count; i++)
		code[i] = (struct bpf_insn){.code = BPF_ALU64 | BPF_ADD | BPF_K, .imm = 1};
	code[0].code = BPF_ALU64 | BPF_MOV | BPF_K;
	code[count - 1] = (struct bpf_insn){.code = BPF_JMP | BPF_EXIT};
	memset(&attributes, 0, sizeof attributes);
	attributes.prog_type = BPF_PROG_TYPE_SOCKET_FILTER;
	attributes.insns = (uintptr_t)code;
	attributes.insn_cnt = (uint32_t)count;
	attributes.license = (uintptr_t)"MIT";
	file = (int)syscall(SYS_bpf, BPF_PROG_LOAD, &attributes, sizeof attributes);
	if (file < 0)
		fail("a program of %ld instructions cannot be loaded, %ld are live: %s", count, lab.live, strerror(errno));
	lab.loads++;
	return file;
}

static void unload(int file)
{
	close(file);
	lab.unloads++;
}

static void load_up_to(long live)
{
	while (lab.live < live)
		lab.files[lab.live++] = load();
}

/* The last one takes the place of the one that goes: what is loaded next lies where somebody else was. */
static void unload_one(long i)
{
	unload(lab.files[i]);
	lab.files[i] = lab.files[--lab.live];
}

static void unload_all(void)
{
	while (lab.live)
		unload_one(lab.live - 1);
	sleep(SETTLE_ALL);
	print_step("all_freed");
}

/* ---- memory that is not fresh ---- */

/* Memory is filled with pages of a program, and one of each K given back: pages that the kernel may move. */
static void fragment_movable(void)
{
	long pages = read_counter("/proc/meminfo", "MemFree") * FILL_PERCENT / 100 * 1024 / PAGE;
	unsigned char *memory =
		mmap(NULL, (size_t)pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (memory == MAP_FAILED)
		fail("memory cannot be filled: %s", strerror(errno));
	madvise(memory, (size_t)pages * PAGE, MADV_NOHUGEPAGE);
	for (long page = 0; page < pages; page++)
		memory[page * PAGE] = 1;
	print_step("filled");
	for (long group = 0; group + workload.frag <= pages; group += workload.frag)
		madvise(memory + (group + roll((uint32_t)workload.frag)) * PAGE, PAGE, MADV_DONTNEED);
	print_step("fragmented");
}

/* Memory is filled with pages of pipes, and one pipe of each K closed: pages that the kernel cannot move. The pipes take turns, a page
 * each, so that those of one pipe lie far from each other. */
static void fragment_pipes(void)
{
	static const char page[PAGE];
	long room = read_counter("/proc/meminfo", "MemFree") - workload.keep * 1024;
	long pipes = room / (PIPE_PAGES * PAGE / 1024) + 1;
	int (*ends)[2] = calloc(pipes > 0 ? (size_t)pipes : 1, sizeof *ends);

	if (pipes < workload.pfrag || !ends)
		fail("keep=%ld leaves too little to fill: %ld kB are free", workload.keep, room + workload.keep * 1024);
	for (long i = 0; i < pipes; i++)
		if (pipe2(ends[i], O_NONBLOCK) || fcntl(ends[i][1], F_SETPIPE_SZ, PIPE_PAGES * PAGE) < 0)
			fail("pipe %ld of %ld cannot be made: %s", i, pipes, strerror(errno));
	for (long i = 0; room > 0; i++) {
		if (write(ends[i % pipes][1], page, PAGE) != PAGE)
			fail("pipe %ld of %ld cannot be filled: %s", i % pipes, pipes, strerror(errno));
		if (i % 64 == 0)
			room = read_counter("/proc/meminfo", "MemFree") - workload.keep * 1024;
	}
	print_step("filled");
	for (long group = 0; group < pipes; group += workload.pfrag) {
		long i = group + roll((uint32_t)workload.pfrag);

		if (i < pipes && (close(ends[i][0]) || close(ends[i][1])))
			fail("pipe %ld cannot be closed: %s", i, strerror(errno));
	}
	sleep(SETTLE_PIPES);
	print_step("fragmented");
}

static void make_hog(void)
{
	size_t bytes = (size_t)workload.hog << 20;

	lab.hog = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	lab.held = calloc(bytes / PAGE, 1);
	if (lab.hog == MAP_FAILED || !lab.held)
		fail("hog=%ld cannot be mapped: %s", workload.hog, strerror(errno));
	madvise(lab.hog, bytes, MADV_NOHUGEPAGE);
}

/* Other programs of the machine at work: some pages are taken, some given back, until about half of them are held. */
static void stir_hog(void)
{
	for (int i = 0; i < HOG_PAGES; i++) {
		size_t page = roll((uint32_t)(((size_t)workload.hog << 20) / PAGE));

		lab.held[page] = !lab.held[page];
		if (lab.held[page])
			lab.hog[page * PAGE] = 1;
		else
			madvise(lab.hog + page * PAGE, PAGE, MADV_DONTNEED);
	}
}

/* ---- workloads ---- */

/* Loads n programs one after another, frees a random half and loads them again, frees all and loads all again. */
static void run_ramp(void)
{
	static const long stops[] = {1, 10, 50, 100, 250, 500, 1000, 2000, 3000, 4000, 6000, 8000, 12000, 16000, 20000};
	const long *stop = stops, *last = stops + sizeof stops / sizeof *stops;

	while (lab.live < workload.n) {
		load_up_to(lab.live + 1);
		if (stop < last && lab.live == *stop)
			print_count("load", *stop++);
	}
	print_step("loaded");
	while (lab.live > workload.n - workload.n / 2)
		unload_one(roll((uint32_t)lab.live));
	sleep(SETTLE_HALF);
	print_step("half_freed");
	load_up_to(workload.n);
	print_step("half_reloaded");
	unload_all();
	load_up_to(workload.n);
	print_step("all_reloaded");
}

/* Keeps `live` programs and replaces a random one `steps` times. */
static void run_churn(void)
{
	static const long stops[] = {100, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000};
	const long *stop = stops, *last = stops + sizeof stops / sizeof *stops;

	load_up_to(workload.live);
	print_count("churn", 0);
	for (long step = 1; step <= workload.steps; step++) {
		long i = roll((uint32_t)workload.live);

		unload(lab.files[i]);
		lab.files[i] = load();
		if (lab.hog)
			stir_hog();
		if (stop < last && step == *stop)
			print_count("churn", *stop++);
	}
	unload_all();
}

/* ---- the machine ---- */

/* lab.py has looked at the text before: what is wrong here is wrong between the two. */
static void read_workload(void)
{
	static const struct {
		const char *name;
		long *value;
	} numbers[] = {
		{"n", &workload.n},         {"live", &workload.live}, {"steps", &workload.steps}, {"frag", &workload.frag},
		{"pfrag", &workload.pfrag}, {"keep", &workload.keep}, {"hog", &workload.hog},
	};
	char text[512] = "";
	FILE *file = fopen("/workload", "r");

	if (!file || !fgets(text, sizeof text, file))
		fail("/workload cannot be read");
	fclose(file);
	for (char *word = strtok(text, " \n"); word; word = strtok(NULL, " \n")) {
		size_t i = 0;
		char *value = strchr(word, '=');

		if (!value)
			fail("the workload has a word without '=': %s", word);
		*value++ = 0;
		if (strcmp(word, "scn") == 0) {
			snprintf(workload.scn, sizeof workload.scn, "%s", value);
			continue;
		}
		if (strcmp(word, "insns") == 0) {
			if (sscanf(value, "%ld-%ld", &workload.insns_min, &workload.insns_max) != 2 || workload.insns_min < 2 ||
			    workload.insns_max < workload.insns_min || workload.insns_max > INSNS_LIMIT)
				fail("insns=%s", value);
			continue;
		}
		while (i < sizeof numbers / sizeof *numbers && strcmp(word, numbers[i].name) != 0)
			i++;
		if (i == sizeof numbers / sizeof *numbers || strtol(value, NULL, 10) <= 0)
			fail("the workload says %s=%s", word, value);
		*numbers[i].value = strtol(value, NULL, 10);
	}
}

/* Programs are compiled to machine code, and as many as the workload wants may be held. */
static void prepare(void)
{
	const struct rlimit files = {FILES_LIMIT, FILES_LIMIT}, memory = {RLIM_INFINITY, RLIM_INFINITY};
	int jit = open("/proc/sys/net/core/bpf_jit_enable", O_WRONLY);
	long most = workload.n > workload.live ? workload.n : workload.live;

	if (jit >= 0) { /* a kernel without the file has no interpreter, and always compiles */
		if (write(jit, "1", 1) != 1)
			fail("BPF programs cannot be compiled: %s", strerror(errno));
		close(jit);
	}
	if (setrlimit(RLIMIT_NOFILE, &files) || setrlimit(RLIMIT_MEMLOCK, &memory))
		fail("limits cannot be lifted: %s", strerror(errno));
	lab.files = malloc((size_t)most * sizeof *lab.files);
	if (most <= 0 || !lab.files)
		fail("the workload wants no programs");
}

int main(void)
{
	mount_at("proc", "/proc");
	clock_gettime(CLOCK_MONOTONIC, &lab.start);
	read_workload();
	prepare();
	print_step("boot");
	if (workload.frag)
		fragment_movable();
	if (workload.pfrag)
		fragment_pipes();
	if (workload.hog)
		make_hog();
	if (strcmp(workload.scn, "ramp") == 0)
		run_ramp();
	else if (strcmp(workload.scn, "churn") == 0)
		run_churn();
	else
		fail("there is no workload scn=%s", workload.scn);
	print_step("end");
	printf("== end %ld\n", lab.printed);
	turn_off();
}
