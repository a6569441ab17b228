/* sys_seal: what is asked of the kernel once and cannot be taken back, for Linux.
 *
 * mseal(2), 6.10: the mappings of a range stay as they are until the process ends or executes another program. Among what it refuses are
 * mprotect, munmap, mmap over it, mremap, and madvise that would drop private memory. It says nothing about the file behind a mapping;
 * that has seals of its own (memfd_create(2)). F_SEAL_WRITE is not among those asked for: the kernel refuses it while a shared view
 * exists that was made from a writable descriptor, as all of ours are. F_SEAL_FUTURE_WRITE (5.1) stops the same calls: write,
 * fallocate, ftruncate with the other two, and new writable views.
 */
#include "sys.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Newer than the headers of the oldest system this is built on. */
#ifndef SYS_mseal
#define SYS_mseal 462 /* the same number on every architecture */
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x10
#endif

int em_sys_seal(void *at, uint64_t size)
{
	int err = em_sys_scripted("seal");

	if (err)
		return err;
	return syscall(SYS_mseal, at, (size_t)size, 0ul) < 0 ? -errno : 0;
}

int em_sys_seal_file(int fd)
{
	int err = em_sys_scripted("fseal");

	if (err)
		return err;
	return fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0 ? -errno : 0;
}
