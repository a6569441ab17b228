/* sys_keys: protection keys, for Linux.
 *
 * A key (pkeys(7)) is a number in a page's table entry; each thread has a register that tells which keys it may read and write by, and
 * changes it without a system call. Here are the calls around that; the register itself is arch/<cpu>/poke.c.
 *
 * One key serves all domains, for there are few, and it is kept until the process ends: a key given back while one page still has it
 * would lend that page to whoever gets the key next.
 */
#include "sys.h"

#include <errno.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#ifndef PKEY_DISABLE_ACCESS
#define PKEY_DISABLE_ACCESS 1
#endif

/* Until 5.13, and the repairs of two older lines, a switch of threads could leave one with wrong rights. */
bool em_sys_key_is_sound(const char *release)
{
	unsigned major, minor, patch = 0;

	if (sscanf(release, "%u.%u.%u", &major, &minor, &patch) < 2)
		return false;
	if (major == 5 && minor < 13)
		return (minor == 10 && patch >= 103) || (minor == 4 && patch >= 182);
	return major >= 5;
}

static int protect(void *at, uint64_t size, int key)
{
	int err = em_sys_scripted("protect");

	if (err)
		return err;
	return syscall(SYS_pkey_mprotect, at, (size_t)size, (unsigned long)(PROT_READ | PROT_WRITE), key) < 0 ? -errno : 0;
}

/* Whether a page under the key is out of this thread's reach: the kernel writes to memory with the rights of the thread that asks it to. */
static int try_key(int key)
{
	void *page;
	int err = em_sys_reserve(NULL, EM_PAGE, &page);

	if (err < 0)
		return err;
	err = protect(page, EM_PAGE, key);
	if (err == 0 && !(syscall(SYS_getrandom, page, 1, 0) < 0 && errno == EFAULT))
		err = -EOPNOTSUPP;
	(void)em_sys_release(page, EM_PAGE);
	return err;
}

int em_sys_key_take(int *out)
{
	static int taken; /* 0, which is everybody's key: none yet */
	struct utsname system;
	int err = em_sys_scripted("key");
	long key;

	if (err)
		return err;
	if (!taken) {
		if (uname(&system) < 0 || !em_sys_key_is_sound(system.release))
			return -EOPNOTSUPP;
		key = syscall(SYS_pkey_alloc, 0ul, (unsigned long)PKEY_DISABLE_ACCESS);
		if (key < 0)
			return -errno;
		err = try_key((int)key);
		if (err < 0) {
			(void)syscall(SYS_pkey_free, key);
			return err;
		}
		taken = (int)key;
	}
	*out = taken;
	return 0;
}

int em_sys_key_view(void *at, uint64_t size, int key, int fd, uint64_t offset)
{
	int err = em_sys_view(at, size, 0, fd, offset);

	if (err < 0)
		return err;
	err = protect(at, size, key);
	if (err < 0)
		(void)em_sys_unview(at, size); /* refused: it stays, without access */
	return err;
}
