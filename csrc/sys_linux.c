/* sys_linux: the system calls, for Linux, but those that stop threads (sys_stop.c).
 *
 * Law 1 is asserted here, at the only mmap and mprotect there are: no view is ever writable and executable.
 * Scripted failures are looked up at the head of each function, one relaxed load when there is no script.
 */
#include "sys.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* Newer than the headers of the oldest system this is built on. */
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

struct page_region {
	uint64_t start, end, categories;
};

struct pagemap_scan { /* struct pm_scan_arg of linux/fs.h, 6.7 */
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define PAGEMAP_SCAN_CALL _IOWR('f', 16, struct pagemap_scan)
enum { PAGE_PRESENT = 1 << 3, PAGE_HUGE = 1 << 6 };

/* ---- scripted failures ---- */

#define EM_SYS_OPS(X)                                                                                                              \
	X(memfd, EMFILE)                                                                                                               \
	X(tmpfile, EROFS)                                                                                                              \
	X(resize, ENOSPC)                                                                                                              \
	X(discard, ENOSYS)                                                                                                             \
	X(write, ENOSPC)                                                                                                               \
	X(reserve, ENOMEM)                                                                                                             \
	X(view, ENOMEM)                                                                                                                \
	X(unview, ENOMEM)                                                                                                              \
	X(protect, EACCES)                                                                                                             \
	X(key, ENOSPC)                                                                                                                 \
	X(hide, EINVAL)                                                                                                                \
	X(collapse, EINVAL)                                                                                                            \
	X(populate, EFAULT)                                                                                                            \
	X(scan, ENOTTY)                                                                                                                \
	X(maps, EACCES)                                                                                                                \
	X(random, EAGAIN)                                                                                                              \
	X(witness, EPERM)                                                                                                              \
	X(seal, ENOSYS)                                                                                                                \
	X(fseal, EPERM)                                                                                                                \
	X(sync, EPERM)                                                                                                                 \
	X(fence, EPERM)                                                                                                                \
	X(exit, EAGAIN)                                                                                                                \
	X(stop, EBUSY)                                                                                                                 \
	X(store, EPERM)                                                                                                                \
	X(trap, EPERM)

enum op {
#define X(name, error) OP_##name,
	EM_SYS_OPS(X)
#undef X
		OPS
};

static const struct {
	const char *name;
	int error;
} ops[OPS + 1] = {[OPS] = {"any", 0}, /* every call of every kind; the error is that of the kind */
#define X(op_name, op_error) [OP_##op_name] = {#op_name, op_error},
                  EM_SYS_OPS(X)
#undef X
};

static const struct {
	const char *name;
	int error;
} error_names[] = {
	{"EPERM", EPERM},   {"EACCES", EACCES}, {"ENOMEM", ENOMEM}, {"ENOSPC", ENOSPC}, {"ENOSYS", ENOSYS}, {"EINVAL", EINVAL},
	{"EMFILE", EMFILE}, {"EAGAIN", EAGAIN}, {"EIO", EIO},       {"EFBIG", EFBIG},   {"EBUSY", EBUSY},   {"ENFILE", ENFILE},
	{"EEXIST", EEXIST}, {"ENODEV", ENODEV}, {"EFAULT", EFAULT}, {"EROFS", EROFS},
};

struct plan {
	const char *steps; /* into the script's text; '.' passes, 'F' fails, "F*" fails from there on; "12." is twelve that pass */
	int error;
	_Atomic uint32_t at;
};

static _Atomic(struct plan *) script; /* NULL: none */
static struct plan plans[OPS + 1];
static char script_text[512];
static _Atomic int script_failures;

/* Whether the next call is to fail. */
static bool plan_fails(struct plan *plan)
{
	uint32_t at = plan->steps ? atomic_fetch_add(&plan->at, 1) : 0;
	char *end;

	for (const char *step = plan->steps; step; step++) {
		uint32_t times = (uint32_t)strtoul(step, &end, 10);

		times = end == step ? 1 : times;
		step = end;
		if (*step != '.' && *step != 'F')
			break;
		if (at < times || (step[0] == 'F' && step[1] == '*'))
			return *step == 'F';
		at -= times;
	}
	return false;
}

static int scripted_slow(struct plan *planned, enum op op)
{
	bool one = plan_fails(&planned[op]), any = plan_fails(&planned[OPS]);
	int error = one ? planned[op].error : planned[OPS].error;

	if (!one && !any)
		return 0;
	atomic_fetch_add(&script_failures, 1);
	return -(error ? error : ops[op].error);
}

/* 0, or the negative errno with which this call is to fail. */
static int scripted(enum op op)
{
	struct plan *planned = atomic_load_explicit(&script, memory_order_acquire);

	return EM_LIKELY(!planned) ? 0 : scripted_slow(planned, op);
}

int em_sys_scripted(const char *call)
{
	for (int op = 0; op < OPS; op++)
		if (strcmp(ops[op].name, call) == 0)
			return scripted((enum op)op);
	em_always(!"a name that EM_SYS_OPS has");
	return 0;
}

static void script_word(char *word)
{
	char *steps = strchr(word, '=');
	char *error = strchr(word, ':');

	if (!steps)
		return;
	*steps++ = '\0';
	for (int op = 0; op <= OPS; op++) {
		if (strcmp(ops[op].name, word) != 0)
			continue;
		plans[op].steps = steps;
		plans[op].error = ops[op].error;
		for (size_t i = 0; error && i < sizeof error_names / sizeof error_names[0]; i++)
			if (strcmp(error_names[i].name, error + 1) == 0)
				plans[op].error = error_names[i].error;
		return;
	}
}

int execmem_test_script(const char *text)
{
	char *rest = NULL;

	atomic_store(&script, NULL);
	for (int op = 0; op <= OPS; op++) {
		plans[op].steps = NULL;
		atomic_store(&plans[op].at, 0);
	}
	if (text) {
		snprintf(script_text, sizeof script_text, "%s", text);
		for (char *word = strtok_r(script_text, " ", &rest); word; word = strtok_r(NULL, " ", &rest))
			script_word(word);
		atomic_store(&script, plans);
	}
	return atomic_exchange(&script_failures, 0);
}

/* ---- memory files ---- */

int em_sys_resize(int fd, uint64_t size)
{
	struct rlimit limit;
	int err = scripted(OP_resize);

	if (err)
		return err;
	/* Beyond the limit the kernel would send SIGXFSZ, which ends the process. */
	if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && size > limit.rlim_cur)
		return -EFBIG;
	return ftruncate(fd, (off_t)size) < 0 ? -errno : 0;
}

int em_sys_discard(int fd, uint64_t offset, uint64_t size)
{
	int err = scripted(OP_discard);

	if (err)
		return err;
	return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)size) < 0 ? -errno : 0;
}

int em_sys_write(int fd, const void *src, size_t len, uint64_t offset, size_t *written)
{
	const char *from = src;
	int err = scripted(OP_write);

	*written = 0;
	if (err)
		return err;
	while (len > 0) {
		ssize_t done = pwrite(fd, from, len, (off_t)offset);

		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return done < 0 ? -errno : -EIO;
		from += done;
		*written += (size_t)done;
		len -= (size_t)done;
		offset += (uint64_t)done;
	}
	return 0;
}

int em_sys_write_repeated(int fd, const void *unit, size_t unit_len, uint64_t len, uint64_t offset)
{
	struct iovec vec[512]; /* 2 MB of the usual units */
	int err = scripted(OP_write);

	if (err)
		return err;
	while (len > 0) {
		uint64_t planned = 0;
		int n = 0;
		ssize_t done;

		for (; n < 512 && planned < len; n++) {
			size_t part = len - planned < unit_len ? (size_t)(len - planned) : unit_len;

			vec[n] = (struct iovec){.iov_base = (void *)(uintptr_t)unit, .iov_len = part};
			planned += part;
		}
		done = pwritev(fd, vec, n, (off_t)offset);
		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return done < 0 ? -errno : -EIO;
		/* A short write ends at any byte; every byte of the unit is alike for traps of one byte, and callers keep
		 * offset and unit aligned for longer ones, so start again at a unit's beginning. */
		done -= (ssize_t)((uint64_t)done == planned ? 0 : (uint64_t)done % unit_len);
		if (done == 0)
			return -EIO;
		len -= (uint64_t)done;
		offset += (uint64_t)done;
	}
	return 0;
}

void em_sys_close(int fd)
{
	if (fd >= 0)
		close(fd);
}

uint64_t em_sys_file_resident(int fd, uint64_t *number)
{
	struct stat status = {0};

	if (fstat(fd, &status) == 0 && number)
		*number = status.st_ino;
	return (uint64_t)status.st_blocks * 512;
}

int em_sys_file_data(int fd, uint64_t from, uint64_t *start, uint64_t *end)
{
	off_t data = lseek(fd, (off_t)from, SEEK_DATA), hole = data < 0 ? -1 : lseek(fd, data, SEEK_HOLE);

	*start = (uint64_t)data;
	*end = (uint64_t)hole;
	return hole < 0 ? -errno : 0;
}

int em_sys_seal_writing(int fd)
{
	int err = scripted(OP_witness);

	if (err)
		return err;
	return fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) < 0 ? -errno : 0;
}

/* ---- address space ---- */

static int native_prot(int prot)
{
	em_always(!((prot & EM_WRITE) && (prot & EM_EXEC))); /* law 1 */
	return (prot & EM_READ ? PROT_READ : 0) | (prot & EM_WRITE ? PROT_WRITE : 0) | (prot & EM_EXEC ? PROT_EXEC : 0);
}

int em_sys_may_map_code(int fd)
{
	void *at = mmap(NULL, EM_PAGE, native_prot(EM_READ | EM_EXEC), MAP_SHARED, fd, 0);

	if (at == MAP_FAILED)
		return -errno;
	munmap(at, EM_PAGE);
	return 0;
}

bool em_sys_may_choose(void)
{
#ifdef __SANITIZE_THREAD__
	return false;
#else
	return true;
#endif
}

/* Where CPU and kernel decide: what can be reserved below 2^bits, or is taken, is a user's. */
unsigned em_sys_address_bits(void)
{
#ifdef __x86_64__
	return 47; /* no CPU gives more unasked */
#else
	enum { MOST = 48, LEAST = 36 };
	static _Atomic unsigned known;
	unsigned bits = atomic_load_explicit(&known, memory_order_relaxed);

	if (bits)
		return bits;
	for (bits = MOST; bits > LEAST; bits--) {
		void *below = (void *)((uintptr_t)(1ull << bits) - EXECMEM_PACK_SIZE);
		void *got = mmap(below, EM_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
		bool taken = got == MAP_FAILED && errno == EEXIST;

		if (got != MAP_FAILED)
			munmap(got, EM_PAGE);
		if (taken || got == below) {
			atomic_store_explicit(&known, bits, memory_order_relaxed);
			break;
		}
	}
	return bits;
#endif
}

int em_sys_reserve(void *at, uint64_t size, void **out)
{
	int err = scripted(OP_reserve);
	void *got;

	if (err)
		return err;
	got = mmap(at, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (at ? MAP_FIXED_NOREPLACE : 0), -1, 0);
	if (got == MAP_FAILED)
		return -errno;
	if (at && got != at) { /* a kernel before 4.17 takes the address for a hint */
		munmap(got, size);
		return -EEXIST;
	}
	*out = got;
	return 0;
}

int em_sys_view(void *at, uint64_t size, int prot, int fd, uint64_t offset)
{
	int err = scripted(OP_view);
	int flags = MAP_FIXED | (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED);

	if (err)
		return err;
	return mmap(at, size, native_prot(prot), flags, fd, (off_t)offset) == MAP_FAILED ? -errno : 0;
}

int em_sys_unview(void *at, uint64_t size)
{
	int err = scripted(OP_unview);

	if (err)
		return err;
	return mmap(at, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED ? -errno : 0;
}

int em_sys_release(void *at, uint64_t size)
{
	int err = scripted(OP_unview);

	if (err)
		return err;
	return munmap(at, size) < 0 ? -errno : 0;
}

int em_sys_protect(void *at, uint64_t size, int prot)
{
	int err = scripted(OP_protect);

	if (err)
		return err;
	return mprotect(at, size, native_prot(prot)) < 0 ? -errno : 0;
}

int em_sys_map_table(uint64_t size, int fd, void **out)
{
	int err = scripted(OP_reserve);
	void *got;

	if (err)
		return err;
	got = mmap(NULL, size, PROT_READ | PROT_WRITE, (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED) | MAP_NORESERVE, fd, 0);
	if (got == MAP_FAILED)
		return -errno;
	*out = got;
	return 0;
}

int em_sys_discard_table(void *at, uint64_t size)
{
	int err = scripted(OP_discard);

	if (err)
		return err;
	/* MADV_REMOVE frees the pages of a shared file, MADV_DONTNEED those of private memory; both read zero afterwards. */
	if (madvise(at, size, MADV_REMOVE) == 0)
		return 0;
	if (errno != EINVAL) /* only private memory answers so, and there MADV_DONTNEED zeroes */
		return -errno;
	return madvise(at, size, MADV_DONTNEED) < 0 ? -errno : 0;
}

int em_sys_hide_from_children(void *at, uint64_t size)
{
	int err = scripted(OP_hide);

	if (err)
		return err;
	return madvise(at, size, MADV_DONTFORK) < 0 ? -errno : 0;
}

int em_sys_collapse(void *at, uint64_t size)
{
	int err = scripted(OP_collapse);

	if (err)
		return err;
	return madvise(at, size, MADV_COLLAPSE) < 0 ? -errno : 0;
}

int em_sys_populate(const void *at, uint64_t size)
{
	int err = scripted(OP_populate);

	if (err)
		return err;
	if (madvise((void *)(uintptr_t)at, size, MADV_POPULATE_READ) == 0)
		return 0;
	for (uint64_t i = 0; i < size; i += EM_PAGE) /* before 5.14 */
		(void)((const volatile char *)at)[i];
	return 0;
}

/* ---- asking ---- */

/* Reads a /proc file line by line without malloc; `line` is NUL-terminated and cut at 255 bytes. */
static int each_line(const char *path, int (*each)(void *arg, const char *line), void *arg)
{
	char buffer[4096], line[256];
	size_t used = 0;
	int stop = 0;
	ssize_t got;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	while (!stop && ((got = read(fd, buffer, sizeof buffer)) > 0 || (got < 0 && errno == EINTR)))
		for (ssize_t i = 0; i < got && !stop; i++) {
			if (buffer[i] != '\n') {
				if (used < sizeof line - 1)
					line[used++] = buffer[i];
				continue;
			}
			line[used] = '\0';
			used = 0;
			stop = each(arg, line);
		}
	close(fd);
	return stop;
}

static bool parse_range(const char *line, uint64_t *start, uint64_t *end)
{
	char *rest;

	*start = strtoull(line, &rest, 16);
	if (*rest != '-' || rest == line)
		return false;
	*end = strtoull(rest + 1, &rest, 16);
	return *rest == ' ';
}

struct smaps_sum {
	uint64_t start, end, vma_start, vma_end, sum;
	enum em_sys_page what;
};

static int smaps_line(void *arg, const char *line)
{
	static const char *const huge[] = {"AnonHugePages:", "ShmemPmdMapped:", "FilePmdMapped:"};
	struct smaps_sum *s = arg;
	uint64_t start, end, bytes = 0;

	if (parse_range(line, &start, &end)) {
		s->vma_start = start;
		s->vma_end = end;
		return 0;
	}
	if (s->vma_end <= s->start || s->vma_start >= s->end)
		return 0;
	if (s->what == EM_SYS_PRESENT && strncmp(line, "Rss:", 4) == 0)
		bytes = strtoull(line + 4, NULL, 10) * 1024;
	for (size_t i = 0; s->what == EM_SYS_HUGE && i < 3; i++)
		if (strncmp(line, huge[i], strlen(huge[i])) == 0)
			bytes = strtoull(line + strlen(huge[i]), NULL, 10) * 1024;
	/* smaps counts whole mappings. One that reaches beyond the range tells of the range only when it is all or nothing. */
	if (s->vma_start < s->start || s->vma_end > s->end) {
		uint64_t lo = s->vma_start > s->start ? s->vma_start : s->start;
		uint64_t hi = s->vma_end < s->end ? s->vma_end : s->end;

		bytes = bytes == s->vma_end - s->vma_start ? hi - lo : 0;
	}
	s->sum += bytes;
	return 0;
}

/* Without /proc: only the pages that are there can be told, not how they are mapped. */
static int count_present(const void *at, uint64_t size, uint64_t *out)
{
	unsigned char there[2048];
	uint64_t part;

	*out = 0;
	for (uint64_t done = 0; done < size; done += part) {
		part = size - done < sizeof there * EM_PAGE ? size - done : sizeof there * EM_PAGE;
		if (mincore((char *)(uintptr_t)at + done, part, there) < 0)
			return -errno;
		for (uint64_t i = 0; i < part / EM_PAGE; i++)
			*out += there[i] & 1 ? EM_PAGE : 0;
	}
	return 0;
}

int em_sys_scan(const void *at, uint64_t size, enum em_sys_page what, uint64_t *out)
{
	struct page_region regions[64] = {{0}}; /* zeroed for memcheck, which does not know the call */
	struct pagemap_scan scan = {
		.size = sizeof scan,
		.start = (uintptr_t)at,
		.end = (uintptr_t)at + size,
		.vec = (uintptr_t)regions,
		.vec_len = 64,
		.category_mask = what == EM_SYS_HUGE ? PAGE_PRESENT | PAGE_HUGE : PAGE_PRESENT,
		.return_mask = PAGE_PRESENT,
	};
	struct smaps_sum sum = {.start = scan.start, .end = scan.end, .what = what};
	int err = scripted(OP_scan);
	int fd;
	long got = 0;

	*out = 0;
	fd = err ? -1 : open("/proc/thread-self/pagemap", O_RDONLY | O_CLOEXEC);
	while (fd >= 0 && scan.start < scan.end && (got = ioctl(fd, PAGEMAP_SCAN_CALL, &scan)) >= 0) {
		for (long i = 0; i < got; i++)
			*out += regions[i].end - regions[i].start;
		if (scan.walk_end <= scan.start) /* no progress: let smaps tell */
			got = -1;
		scan.start = scan.walk_end;
		if (got < 0)
			break;
	}
	if (fd >= 0)
		close(fd);
	if (fd >= 0 && got >= 0)
		return 0;
	*out = 0;
	err = each_line("/proc/thread-self/smaps", smaps_line, &sum);
	*out = sum.sum;
	return err < 0 && what == EM_SYS_PRESENT ? count_present(at, size, out) : err;
}

struct mapping_visit {
	int (*each)(void *arg, uint64_t start, uint64_t end);
	void *arg;
};

static int mapping_line(void *arg, const char *line)
{
	struct mapping_visit *visit = arg;
	uint64_t start, end;

	return parse_range(line, &start, &end) ? visit->each(visit->arg, start, end) : 0;
}

int em_sys_mappings(int (*each)(void *arg, uint64_t start, uint64_t end), void *arg)
{
	struct mapping_visit visit = {each, arg};
	int err = scripted(OP_maps);

	return err ? err : each_line("/proc/thread-self/maps", mapping_line, &visit);
}

int em_sys_random(void *out, size_t len)
{
	char *to = out;
	int err = scripted(OP_random);

	if (err)
		return err;
	while (len > 0) {
		long got = syscall(SYS_getrandom, to, len, 0);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return got < 0 ? -errno : -EIO;
		to += got;
		len -= (size_t)got;
	}
	return 0;
}

uint64_t em_sys_page_size(void)
{
	return (uint64_t)sysconf(_SC_PAGESIZE);
}

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t em_sys_milliseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	return (uint64_t)now.tv_sec * 1000u + (uint64_t)now.tv_nsec / 1000000u;
}

uint64_t em_sys_realtime_ns(void)
{
	return clock_ns(CLOCK_REALTIME);
}

uint64_t em_sys_monotonic_ns(void)
{
	return clock_ns(CLOCK_MONOTONIC);
}

uint32_t em_sys_pid(void)
{
	return (uint32_t)getpid();
}

/* ---- other threads ---- */

/* membarrier must be asked for once. riscv64: it knows the command since Linux 6.10; the call that is meant for it does the same since 4.15. */
int em_sys_sync_ready(void)
{
	static _Atomic bool registered;

	if (atomic_load_explicit(&registered, memory_order_relaxed))
		return 0;
#ifdef __riscv
	if (syscall(SYS_riscv_flush_icache, NULL, NULL, 0) == 0)
		return 0;
#endif
	if (syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0) < 0)
		return -errno;
	atomic_store(&registered, true);
	return 0;
}

static int sync_core(void)
{
	int err;

#ifdef __riscv
	if (syscall(SYS_riscv_flush_icache, NULL, NULL, 0) == 0)
		return 0;
#endif
	err = em_sys_sync_ready();
	if (err)
		return err;
	return syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0) < 0 ? -errno : 0;
}

/* aarch64: where membarrier is refused, each thread's way into a signal handler and back synchronises its core too (Arm ARM, B2.7.4.2). */
int em_sys_sync_core(void)
{
	int err = scripted(OP_sync);

	if (err)
		return err;
	err = sync_core();
#ifdef __aarch64__
	if (err < 0 && em_sys_stop_threads() == 0) {
		em_sys_resume_threads();
		return 0;
	}
#endif
	return err;
}

bool em_sys_may_store(void)
{
	return scripted(OP_store) == 0;
}

int em_sys_fence_ready(void)
{
	int err = scripted(OP_fence);

#ifdef __SANITIZE_THREAD__
	err = err ? err : -ENOSYS;
#endif
	if (err)
		return err;
	return syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) < 0 ? -errno : 0;
}

int em_sys_fence_threads(void)
{
	int err = scripted(OP_fence);

	if (err)
		return err;
	return syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) < 0 ? -errno : 0;
}

/* ---- locks ---- */

enum {
	ALONE = 4096, /* uses after which a home takes its bias back; withdrawing it costs some microseconds */
	SPINS = 500, /* looks, */
	APART = 50,  /* and turns between them: some 15 us in all */
};

static long futex(_Atomic uint32_t *word, int op, uint32_t value)
{
	return syscall(SYS_futex, word, op | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

/* Whether membarrier can order a thread's flag against our look at it. Never under ThreadSanitizer, which does not know it. */
void em_sys_lock_init(struct em_lock *lock)
{
	bool can = syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0;

#ifdef __SANITIZE_THREAD__
	can = false;
#endif
	*lock = (struct em_lock){.rank = lock->rank, .bias = can ? em_sys_self() : 0, .home = can ? em_sys_self() : 0};
}

void em_sys_nap(void)
{
	struct timespec nap = {.tv_nsec = 20000};

	nanosleep(&nap, NULL);
}

void em_sys_nap_long(uint32_t turn)
{
	struct timespec nap = {.tv_nsec = 20000l << (turn < 8 ? turn : 8)};

	nanosleep(&nap, NULL);
}

/* The caller holds `state`. Afterwards the biased thread is outside and will come by `state` too. */
static void withdraw_bias(struct em_lock *lock)
{
	atomic_store(&lock->bias, 0);
	if (syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) < 0) {
		/* A seccomp filter that came after em_sys_lock_init. No store stays in a core's buffer for anything like this long. */
		struct timespec long_nap = {.tv_nsec = 20000000};

		nanosleep(&long_nap, NULL);
	}
	while (atomic_load(&lock->inside))
		em_sys_nap();
}

/* A futex lock that spins first: a shard is held for a fraction of a microsecond as a rule, and to sleep and be woken costs ten. */
static void take_state(struct em_lock *lock)
{
	for (int spin = 0; spin < SPINS; spin++) {
		uint32_t free = 0;

		if (atomic_load_explicit(&lock->state, memory_order_relaxed) == 0 &&
		    atomic_compare_exchange_strong_explicit(&lock->state, &free, 1, memory_order_acquire, memory_order_relaxed))
			return;
		for (int i = 0; i < APART; i++)
			__asm__ volatile("" ::: "memory"); /* leave the line to who holds it */
	}
	atomic_fetch_add(&lock->sleepers, 1);
	while (atomic_exchange(&lock->state, 1) != 0)
		futex(&lock->state, FUTEX_WAIT, 1);
	atomic_fetch_sub(&lock->sleepers, 1);
}

void em_sys_lock_slow(struct em_lock *lock)
{
	take_state(lock);
	if (atomic_load_explicit(&lock->bias, memory_order_relaxed))
		withdraw_bias(lock);
	lock->by_flag = false;
	lock->alone = lock->home == em_sys_self() ? lock->alone + 1 : 0;
}

void em_sys_unlock_slow(struct em_lock *lock)
{
	if (EM_UNLIKELY(lock->alone >= ALONE)) {
		lock->alone = 0;
		atomic_store_explicit(&lock->bias, lock->home,
		                      memory_order_relaxed); /* whoever comes next sees it: it takes `state` first */
	}
	atomic_exchange(&lock->state, 0); /* in one order with `sleepers`: who counts after this look finds the lock free */
	if (EM_UNLIKELY(atomic_load(&lock->sleepers)))
		futex(&lock->state, FUTEX_WAKE, 1);
}
