/* sys_host: what this host allows. Files for code, also where memfd_create is refused; which policy it was that refused.
 *
 * Policies are read when something failed or when somebody asks, never on the way of a call that works: /proc and /sys where they
 * can be read, prctl and getrlimit where they cannot. What cannot be told is -1 or empty, never 0.
 */
#include "sys.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

/* Newer than the headers of the oldest system this is built on. */
#ifndef O_TMPFILE
#define O_TMPFILE (020000000 | O_DIRECTORY)
#endif
enum { MFD_CLOEXEC_BIT = 1, MFD_ALLOW_SEALING_BIT = 2, MFD_NOEXEC_SEAL_BIT = 8, MFD_EXEC_BIT = 0x10 };
enum { GET_SECCOMP = 21, GET_THP_DISABLE = 42, GET_MDWE = 66, MDWE_REFUSE_EXEC_GAIN = 1 };

/* ---- files ---- */

int em_sys_memfd(const char *name, bool code, int *out)
{
	int err = em_sys_scripted("memfd");
	long fd;

	if (err)
		return err;
	/* MFD_EXEC is what vm.memfd_noexec=1 wants of code, and what 2 refuses. A file with MFD_NOEXEC_SEAL cannot be run as a program,
	 * yet may be mapped executable. Before 6.3 both flags are unknown, and EINVAL. */
	fd = code ? syscall(SYS_memfd_create, name, MFD_CLOEXEC_BIT | MFD_ALLOW_SEALING_BIT | MFD_EXEC_BIT) : -1;
	if (!code || (fd < 0 && errno == EACCES))
		fd = syscall(SYS_memfd_create, name, MFD_CLOEXEC_BIT | MFD_ALLOW_SEALING_BIT | MFD_NOEXEC_SEAL_BIT);
	if (fd < 0 && errno == EINVAL)
		fd = syscall(SYS_memfd_create, name, MFD_CLOEXEC_BIT | MFD_ALLOW_SEALING_BIT);
	if (fd < 0)
		return -errno;
	*out = (int)fd;
	return 0;
}

int em_sys_self_mem(int *out)
{
	int err = em_sys_scripted("memfd");
	int fd;

	if (err)
		return err;
	/* Not /proc/self, which is empty when the first thread has ended. */
	fd = open("/proc/thread-self/mem", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	*out = fd;
	return 0;
}

/* Removed before anybody can see it where the file system knows how; else it has an unguessable name for a moment. */
static int open_unlinked(const char *directory)
{
	char path[512];
	uint64_t random;
	int fd, err;

	/* O_EXCL: it can never be given a name. */
	fd = open(directory, O_TMPFILE | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
	if (fd >= 0)
		return fd;
	err = -errno;
	if (err != -EOPNOTSUPP && err != -EISDIR && err != -EINVAL)
		return err;
	if (em_sys_random(&random, sizeof random) < 0)
		return err;
	if ((size_t)snprintf(path, sizeof path, "%s/.execmem-%016llx", directory, (unsigned long long)random) >= sizeof path)
		return err;
	fd = open(path, O_CREAT | O_EXCL | O_NOFOLLOW | O_RDWR | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	if (unlink(path) == 0)
		return fd;
	err = -errno;
	close(fd);
	return err;
}

static bool is_in_memory(int fd)
{
	struct statfs system;

	return fstatfs(fd, &system) == 0 && ((uint32_t)system.f_type == TMPFS_MAGIC || (uint32_t)system.f_type == RAMFS_MAGIC);
}

/* Files in memory first, wherever they are: on a disk what is written to code would be written there too. */
static int open_place(struct em_sys_code_file *out)
{
	const char *const places[] = {
		secure_getenv("XDG_RUNTIME_DIR"), "/dev/shm", secure_getenv("TMPDIR"), "/tmp", "/run", "/var/tmp",
	};
	bool taken = false, noexec = true;
	int first = -ENOENT;

	for (int disk = 0; disk < 2; disk++)
		for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
			int fd = places[i] && *places[i] ? open_unlinked(places[i]) : -ENOENT;
			bool memory = fd >= 0 && is_in_memory(fd);
			struct statvfs mount;
			int err = fd < 0 ? fd : memory == (disk == 0) ? em_sys_may_map_code(fd) : -EAGAIN;

			if (err == 0) {
				out->fd = fd;
				out->backing = disk ? EXECMEM_BACKING_DISK : EXECMEM_BACKING_TMPFS;
				return 0;
			}
			if (fd >= 0) {
				taken = true;
				noexec = noexec && fstatvfs(fd, &mount) == 0 && (mount.f_flag & ST_NOEXEC);
				close(fd);
			}
			if (err != -EAGAIN && (first == -ENOENT || fd >= 0))
				first = err;
		}
	out->noexec = taken && noexec;
	return first;
}

int em_sys_open_code_file(struct em_sys_code_file *out)
{
	int err;

	*out = (struct em_sys_code_file){.fd = -1, .backing = EXECMEM_BACKING_MEMFD};
	err = em_sys_memfd("execmem", true, &out->fd);
	if (err == 0) {
		err = em_sys_may_map_code(out->fd);
		if (err == 0)
			return 0;
		em_sys_close(out->fd);
		out->fd = -1;
		out->unmappable = true;
	}
	out->memfd_error = err;
	if (err == -EMFILE || err == -ENFILE || err == -ENOMEM) /* a shortage, which another file would meet too */
		return err;
	out->place_error = em_sys_scripted("tmpfile");
	if (out->place_error == 0)
		out->place_error = open_place(out);
	return out->place_error < 0 ? err : 0;
}

/* ---- policies ---- */

/* The first line of a small file, or nothing. */
static bool read_line(const char *path, char *out, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got = fd >= 0 ? read(fd, out, size - 1) : -1;

	if (fd >= 0)
		close(fd);
	out[got > 0 ? got : 0] = '\0';
	out[strcspn(out, "\n")] = '\0';
	return got > 0;
}

static int32_t read_number(const char *path)
{
	char line[16];

	return read_line(path, line, sizeof line) ? (int32_t)strtol(line, NULL, 10) : -1;
}

/* The word in brackets of "always [madvise] never". */
static void read_choice(const char *path, char *out, size_t size)
{
	char line[128], *word, *end;

	*out = '\0';
	if (!read_line(path, line, sizeof line) || !(word = strchr(line, '[')) || !(end = strchr(word, ']')))
		return;
	*end = '\0';
	snprintf(out, size, "%s", word + 1);
}

/* Whether a thing that /sys would show is there: 1, 0, or -1 without /sys. */
static int32_t is_shown(const char *path, const char *above)
{
	return access(path, F_OK) == 0 ? 1 : access(above, F_OK) == 0 ? 0 : -1;
}

static int32_t selinux_state(void)
{
	int32_t enforcing = read_number("/sys/fs/selinux/enforce");

	return enforcing >= 0 ? enforcing + 1 : is_shown("/sys/fs/selinux/enforce", "/sys/fs") == 0 ? 0 : -1;
}

static int32_t apparmor_state(void)
{
	char line[16];

	if (read_line("/sys/module/apparmor/parameters/enabled", line, sizeof line))
		return line[0] == 'Y';
	return is_shown("/sys/module/apparmor", "/sys/module") == 0 ? 0 : -1;
}

static uint64_t limit_of(__typeof__(RLIMIT_AS) what)
{
	struct rlimit limit;

	return getrlimit(what, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY ? limit.rlim_cur : UINT64_MAX;
}

void em_sys_policies(execmem_policies *out)
{
	int mdwe = prctl(GET_MDWE, 0, 0, 0, 0), seccomp = prctl(GET_SECCOMP, 0, 0, 0, 0);
	int thp = prctl(GET_THP_DISABLE, 0, 0, 0, 0);

	*out = (execmem_policies){
		.mdwe = mdwe < 0 ? -1 : mdwe & MDWE_REFUSE_EXEC_GAIN,
		.seccomp = seccomp < 0 ? -1 : seccomp,
		.memfd_noexec = read_number("/proc/sys/vm/memfd_noexec"),
		.selinux = selinux_state(),
		.apparmor = apparmor_state(),
		.proc = access("/proc/thread-self/maps", R_OK) == 0,
		.huge_disabled = thp < 0 ? -1 : thp & 1,
		.file_size = limit_of(RLIMIT_FSIZE),
		.address_space = limit_of(RLIMIT_AS),
		.open_files = limit_of(RLIMIT_NOFILE),
	};
	if (out->selinux > 0 || out->apparmor > 0)
		(void)read_line("/proc/thread-self/attr/current", out->label, sizeof out->label);
	read_choice("/sys/kernel/mm/transparent_hugepage/enabled", out->huge, sizeof out->huge);
	read_choice("/sys/kernel/mm/transparent_hugepage/shmem_enabled", out->huge_shmem, sizeof out->huge_shmem);
}

/* ---- which of them was it? ---- */

static bool is_confined(const execmem_policies *p)
{
	return p->apparmor > 0 && p->label[0] && strncmp(p->label, "unconfined", 10) != 0;
}

/* A filter runs before the kernel looks at the call, and answers what its author wrote: EPERM as a rule. The others answer EACCES. */
static enum execmem_policy blame_refusal(int number, enum em_sys_call call)
{
	execmem_policies p;

	if (call == EM_CALL_SELF_MEM && prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) != 1)
		return EXECMEM_POLICY_DUMPABLE;
	em_sys_policies(&p);
	if (number == EACCES && p.mdwe > 0 && call == EM_CALL_PROTECT)
		return EXECMEM_POLICY_MDWE;
	if (number == EACCES && p.selinux > 1)
		return EXECMEM_POLICY_SELINUX;
	if (number == EACCES && is_confined(&p))
		return EXECMEM_POLICY_APPARMOR;
	if (number == EACCES && (call == EM_CALL_MEMFD || call == EM_CALL_MAP_CODE) && p.memfd_noexec == 2)
		return EXECMEM_POLICY_MEMFD_NOEXEC;
	return p.seccomp > 0 ? EXECMEM_POLICY_SECCOMP : EXECMEM_POLICY_UNKNOWN;
}

enum execmem_policy em_sys_blame(int negative_errno, enum em_sys_call call)
{
	int number = -negative_errno;

	switch (number) {
	case EACCES:
	case EPERM:
		return blame_refusal(number, call);
	case ENOSYS: /* filters that mean "not here" answer so too */
		return blame_refusal(number, call) == EXECMEM_POLICY_SECCOMP ? EXECMEM_POLICY_SECCOMP : EXECMEM_POLICY_KERNEL;
	case ENOENT:
	case ENOTDIR:
		return EXECMEM_POLICY_PROC;
	case EIO:
		return call == EM_CALL_SELF_WRITE ? EXECMEM_POLICY_PROC_MEM : EXECMEM_POLICY_UNKNOWN;
	case EROFS:
		return EXECMEM_POLICY_READ_ONLY;
	case EFBIG:
		return EXECMEM_POLICY_FILE_SIZE;
	case EMFILE:
	case ENFILE:
		return EXECMEM_POLICY_OPEN_FILES;
	case ENOMEM:
	case ENOSPC:
	case EAGAIN:
		return number == ENOMEM && limit_of(RLIMIT_AS) != UINT64_MAX ? EXECMEM_POLICY_ADDRESS_SPACE : EXECMEM_POLICY_MEMORY;
	default:
		return EXECMEM_POLICY_UNKNOWN;
	}
}
