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

static _Thread_local struct {
	int code;
	size_t index;
	char text[480];
} last;

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
};

int em_error_set(int code, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(last.text, sizeof last.text, format, args);
	va_end(args);
	last.code = code;
	last.index = 0;
	return code;
}

int em_error_null(const char *argument)
{
	return em_error_set(EXECMEM_EINVAL, "the argument `%s` is NULL.", argument);
}

void em_error_at(size_t index)
{
	last.index = index;
}

int em_error_system(int negative_errno, const char *doing)
{
	int number = -negative_errno;

	switch (number) {
	case EACCES:
	case EPERM:
		return em_error_set(EXECMEM_EDENIED,
		                    "could not %s: %s (errno %d). A policy of this system refuses it: look for systemd's "
		                    "MemoryDenyWriteExecute=, a seccomp filter, SELinux execmem/execmod or vm.memfd_noexec; "
		                    "execmem_probe() tells which write modes still work.",
		                    doing, strerror(number), number);
	case ENOMEM:
	case ENOSPC:
	case EAGAIN:
		return em_error_set(EXECMEM_ENOMEM,
		                    "could not %s: %s (errno %d). Free memory, raise RLIMIT_AS or the cgroup's memory.max, raise "
		                    "vm.max_map_count, or ask for a smaller window.",
		                    doing, strerror(number), number);
	case EFBIG:
		return em_error_set(EXECMEM_ENOMEM,
		                    "could not %s: %s (errno %d). RLIMIT_FSIZE bounds the memory file: raise it (ulimit -f) or use "
		                    "the write mode procmem, which has no file.",
		                    doing, strerror(number), number);
	case EMFILE:
	case ENFILE:
		return em_error_set(EXECMEM_ENOMEM, "could not %s: %s (errno %d). Raise RLIMIT_NOFILE (ulimit -n) or close files.", doing,
		                    strerror(number), number);
	case ENOSYS:
	case EOPNOTSUPP:
		return em_error_set(EXECMEM_EUNSUPPORTED, "could not %s: %s (errno %d). This kernel or a sandbox lacks the system call.",
		                    doing, strerror(number), number);
	default:
		return em_error_set(EXECMEM_ESYSTEM, "could not %s: %s (errno %d).", doing, strerror(number), number);
	}
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

void em_panic(const char *law, const char *file, int line)
{
	fprintf(stderr, "execmem: broken law \"%s\" at %s:%d; stopping before wrong code can run\n", law, file, line);
	abort();
}
