/* error: one text per thread, overwritten by that thread's next failure.
 *
 * The text lives in thread-local storage, so failing allocates nothing and takes no lock.
 */
#include "error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Thread_local struct em_error_kept last;

static const struct {
	int code;
	const char *name;
} names[] = {
	{EXECMEM_OK, "OK"},
	{EXECMEM_EINVAL, "EINVAL"},
	{EXECMEM_ENOMEM, "ENOMEM"},
	{EXECMEM_ELIMIT, "ELIMIT"},
	{EXECMEM_EWINDOW, "EWINDOW"},
	{EXECMEM_EFOREIGN, "EFOREIGN"},
	{EXECMEM_EINTERIOR, "EINTERIOR"},
	{EXECMEM_EFREED, "EFREED"},
	{EXECMEM_EBOUNDS, "EBOUNDS"},
	{EXECMEM_EDENIED, "EDENIED"},
	{EXECMEM_EBUSY, "EBUSY"},
	{EXECMEM_ESYSTEM, "ESYSTEM"},
	{EXECMEM_ECLOSED, "ECLOSED"},
	{EXECMEM_EFORKED, "EFORKED"},
	{EXECMEM_EUNSUPPORTED, "EUNSUPPORTED"},
	{EXECMEM_ESEALED, "ESEALED"},
	{EXECMEM_ECHANGED, "ECHANGED"},
	{EXECMEM_EMISALIGNED, "EMISALIGNED"},
	{EXECMEM_EINSN, "EINSN"},
	{EXECMEM_EREACH, "EREACH"},
	{EXECMEM_EENTRY, "EENTRY"},
};

/* Name; who refuses what; what to do. */
static const struct {
	const char *name, *text, *remedy;
} policies[EXECMEM_POLICIES] = {
	[EXECMEM_POLICY_NONE] = {"none", "", ""},
	[EXECMEM_POLICY_MDWE] =
		{"mdwe", "PR_SET_MDWE (systemd's MemoryDenyWriteExecute=yes) lets no memory become executable later",
		 "Use write mode syscall, alias or procmem, which need no such change, or set MemoryDenyWriteExecute=no."},
	[EXECMEM_POLICY_SECCOMP] =
		{"seccomp", "This process has a seccomp filter, and nothing else that is known to refuse the call",
		 "Allow it there: SystemCallFilter= and MemoryDenyWriteExecute= of a systemd unit, the seccomp profile of "
		 "a container."},
	[EXECMEM_POLICY_SELINUX] =
		{"selinux", "SELinux is enforcing and refuses it",
		 "See `ausearch -m avc`: private memory needs the permission process execmem (setsebool deny_execmem 0), "
		 "a memory file needs file execute on the domain's tmpfs type; execmod is never needed."},
	[EXECMEM_POLICY_APPARMOR] = {"apparmor", "The AppArmor profile of this process refuses it",
	                             "Allow mapping the file executable (m) in the profile; the kernel's log names the path."},
	[EXECMEM_POLICY_MEMFD_NOEXEC] = {"memfd_noexec", "vm.memfd_noexec=2 refuses memory files that may be executed",
	                                 "Set sysctl vm.memfd_noexec=1, or give a directory in memory that is not mounted noexec."},
	[EXECMEM_POLICY_READ_ONLY] = {"read_only", "The file system is read-only",
	                              "Mount /proc writable, or allow memfd_create for write mode syscall."},
	[EXECMEM_POLICY_PROC] = {"proc", "There is no /proc of this process",
	                         "Mount /proc (ProcSubset=pid is enough), or allow memfd_create for modes that do without."},
	[EXECMEM_POLICY_PROC_MEM] = {"proc_mem", "/proc/self/mem does not write to read-only memory (proc_mem.force_override=)",
	                             "Boot with proc_mem.force_override=always, or allow memfd_create for write mode syscall."},
	[EXECMEM_POLICY_FILE_SIZE] = {"file_size", "RLIMIT_FSIZE bounds the memory file",
	                              "Raise it (ulimit -f, LimitFSIZE=), or use the write mode procmem, which has no file."},
	[EXECMEM_POLICY_ADDRESS_SPACE] = {"address_space", "RLIMIT_AS bounds the address space",
	                                  "Raise it (ulimit -v, LimitAS=), or ask for a smaller window."},
	[EXECMEM_POLICY_OPEN_FILES] = {"open_files", "RLIMIT_NOFILE is reached",
	                               "Raise RLIMIT_NOFILE (ulimit -n, LimitNOFILE=) or close files."},
	[EXECMEM_POLICY_MEMORY] = {"memory", "Memory, or room for mappings, is short",
	                           "Free memory, raise the cgroup's memory.max, raise vm.max_map_count, or ask for a smaller window."},
	[EXECMEM_POLICY_KERNEL] = {"kernel", "This kernel or a sandbox lacks the system call",
	                           "Use another write mode, or a newer kernel."},
	[EXECMEM_POLICY_DUMPABLE] = {"dumpable",
	                             "The process is not dumpable, as after a change of user, so /proc/self/mem is not its own",
	                             "Call prctl(PR_SET_DUMPABLE, 1) after the change, or use write mode syscall."},
	[EXECMEM_POLICY_UNKNOWN] =
		{"unknown", "A policy that cannot be looked at from here refuses it",
		 "Look for systemd's MemoryDenyWriteExecute=, a seccomp filter, SELinux execmem/execmod, vm.memfd_noexec "
		 "or a security module."},
};

int em_error_set(int code, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(last.text, sizeof last.text, format, args);
	va_end(args);
	last.code = code;
	last.policy = EXECMEM_POLICY_NONE;
	last.index = 0;
	return code;
}

void em_error_keep(struct em_error_kept *out)
{
	*out = last;
}

int em_error_tell(const struct em_error_kept *kept)
{
	last = *kept;
	return kept->code;
}

void em_error_blame(enum execmem_policy policy)
{
	last.policy = policy;
}

enum execmem_policy em_error_policy(void)
{
	return last.policy;
}

int em_error_null(const char *argument)
{
	return em_error_set(EXECMEM_EINVAL, "the argument `%s` is NULL.", argument);
}

void em_error_at(size_t index)
{
	last.index = index;
}

static int code_of(int number)
{
	switch (number) {
	case EACCES:
	case EPERM:
	case EROFS:
		return EXECMEM_EDENIED;
	case ENOMEM:
	case ENOSPC:
	case EAGAIN:
	case EFBIG:
	case EMFILE:
	case ENFILE:
		return EXECMEM_ENOMEM;
	case ENOSYS:
	case EOPNOTSUPP:
		return EXECMEM_EUNSUPPORTED;
	default:
		return EXECMEM_ESYSTEM;
	}
}

int em_error_blamed(int negative_errno, enum execmem_policy policy, const char *doing, const char *instead)
{
	int code = code_of(-negative_errno);

	if (policy == EXECMEM_POLICY_PROC || policy == EXECMEM_POLICY_PROC_MEM)
		code = EXECMEM_EDENIED;
	/* What is neither a policy nor a shortage has nothing to advise. */
	if (policy == EXECMEM_POLICY_UNKNOWN && code != EXECMEM_EDENIED)
		return em_error_set(code, "could not %s: %s (errno %d)%s.", doing, strerror(-negative_errno), -negative_errno, instead);
	em_error_set(code, "could not %s: %s (errno %d). %s%s. %s", doing, strerror(-negative_errno), -negative_errno,
	             policies[policy].text, instead, policies[policy].remedy);
	em_error_blame(policy);
	return code;
}

int em_error_refused(int negative_errno, enum em_sys_call call, const char *doing)
{
	return em_error_blamed(negative_errno, em_sys_blame(negative_errno, call), doing, "");
}

int em_error_system(int negative_errno, const char *doing)
{
	return em_error_refused(negative_errno, EM_CALL_OTHER, doing);
}

int execmem_error_code(void)
{
	return last.code;
}

size_t execmem_error_index(void)
{
	return last.index;
}

const char *execmem_error_text(void)
{
	return last.text;
}

const char *execmem_error_name(int code)
{
	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
		if (names[i].code == code)
			return names[i].name;
	return "unknown";
}

const char *execmem_policy_name(int policy)
{
	return policy >= 0 && policy < EXECMEM_POLICIES ? policies[policy].name : "unknown";
}

const char *execmem_policy_text(int policy)
{
	return policy >= 0 && policy < EXECMEM_POLICIES ? policies[policy].text : "";
}

const char *execmem_policy_remedy(int policy)
{
	return policy >= 0 && policy < EXECMEM_POLICIES ? policies[policy].remedy : "";
}

void em_panic(const char *law, const char *file, int line)
{
	fprintf(stderr, "execmem: broken law \"%s\" at %s:%d; stopping before wrong code can run\n", law, file, line);
	abort();
}
