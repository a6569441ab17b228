/* sys_stop: system calls that concern other threads' progress: stopping them all for a write in mode flip, their ends, and forks. */
#include "sys.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/*
 * Stopping the other threads. One stop at a time (stop_lock).
 *
 *   stopper                                    every other thread
 *   round += 1 (odd: parked threads sleep)
 *   list /proc/self/task, tgkill each  ----->  handler: tells its slot, sleeps on `round`
 *   wait until each has told, or is gone
 *   list again; new ones, or not as many as there are? once more
 *   ... the write ...
 *   round += 1, wake  ---------------------->  handler returns
 */
enum {
	STOP_MAX = 1024,
	LOOKS = 16, /* at lists that are not whole, for somebody who plays Linux may not count links */
};
static struct em_lock stop_lock = {.rank = EM_RANK_STOP};
static _Atomic uint32_t stop_round;
static _Atomic int32_t stop_parked[STOP_MAX]; /* a thread id, negated once it is parked */
static _Atomic int stop_count;
static int stop_signal; /* 0: not chosen yet */
static sigset_t stop_mask; /* of the stopper, before */

static long futex(_Atomic uint32_t *word, int op, uint32_t value)
{
	return syscall(SYS_futex, word, op | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

static void on_stop(int signal)
{
	int saved = errno;
	int32_t self = (int32_t)syscall(SYS_gettid);
	uint32_t round = atomic_load(&stop_round);
	int count = atomic_load(&stop_count);

	(void)signal;
	for (int i = 0; i < count && (round & 1); i++)
		if (atomic_load(&stop_parked[i]) == self)
			atomic_store(&stop_parked[i], -self);
	while ((round & 1) && atomic_load(&stop_round) == round)
		futex(&stop_round, FUTEX_WAIT, round);
	errno = saved;
}

/* Takes the highest real-time signal that nobody handles. */
static int choose_stop_signal(void)
{
	struct sigaction old, mine = {.sa_handler = on_stop, .sa_flags = SA_RESTART};

	for (int number = SIGRTMAX; !stop_signal && number > SIGRTMIN; number--)
		if (sigaction(number, NULL, &old) == 0 && !(old.sa_flags & SA_SIGINFO) && old.sa_handler == SIG_DFL) {
			sigfillset(&mine.sa_mask);
			if (sigaction(number, &mine, NULL) < 0)
				return -errno;
			stop_signal = number;
		}
	return stop_signal ? 0 : -EBUSY;
}

/* Signals the threads not signalled yet; gives how many that were, or a negative errno. *whole: the list had as many threads as there were
 * when it was begun. Else it may have ended early: the kernel's does at a thread that goes just when its turn has come. */
static int signal_others(int32_t self, bool *whole)
{
	char entries[4096];
	int added = 0, dir = open("/proc/self/task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	long got = -errno;
	struct stat about = {0};
	uint64_t listed = 2; /* as links are counted */

	*whole = true;
	if (dir < 0) /* nobody tells the threads; a process of one needs no list, and only there does this do nothing and succeed */
		return syscall(SYS_unshare, CLONE_THREAD) == 0 ? 0 : (int)got;
	(void)fstat(dir, &about);
	while (added >= 0 && (got = syscall(SYS_getdents64, dir, entries, sizeof entries)) > 0)
		for (long at = 0; at < got && added >= 0;) {
			struct dirent64 *entry = (struct dirent64 *)(entries + at);
			int32_t tid = (int32_t)strtol(entry->d_name, NULL, 10);
			int count = atomic_load(&stop_count), known = 0;

			at += entry->d_reclen;
			listed += tid > 0;
			while (known < count && abs(atomic_load(&stop_parked[known])) != tid)
				known++;
			if (tid <= 0 || tid == self || known < count)
				continue;
			if (count == STOP_MAX) {
				added = -EBUSY;
				break;
			}
			atomic_store(&stop_parked[count], tid);
			atomic_store(&stop_count, count + 1);
			syscall(SYS_tgkill, getpid(), tid, stop_signal);
			added++;
		}
	if (got < 0 && added >= 0)
		added = -errno;
	close(dir);
	*whole = listed == about.st_nlink;
	return added;
}

/* A thread that has ended stays in the list as long as others live, when it was the first. */
static bool is_dead(int32_t tid)
{
	char path[48], text[256];
	const char *state;
	long got;
	int fd;

	snprintf(path, sizeof path, "/proc/self/task/%d/stat", (int)tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	got = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
	if (fd >= 0)
		close(fd);
	if (got <= 0)
		return false; /* it is asked again */
	text[got] = '\0';
	state = strrchr(text, ')'); /* the name before it may hold anything */
	return state && (state[2] == 'Z' || state[2] == 'X');
}

static bool all_parked(bool look_closely)
{
	int count = atomic_load(&stop_count);

	for (int i = 0; i < count; i++) {
		int32_t tid = atomic_load(&stop_parked[i]);

		if (tid > 0 && (syscall(SYS_tgkill, getpid(), tid, 0) == 0 || errno != ESRCH) && !(look_closely && is_dead(tid)))
			return false;
	}
	return true;
}

/* The stopper's own signals wait too: their handlers might run the code that cannot be run meanwhile. */
int em_sys_stop_threads(void)
{
	int err = em_sys_scripted("stop");
	int32_t self = (int32_t)syscall(SYS_gettid);
	uint64_t deadline;
	sigset_t all;
	int naps = 0, looks = 0;
	bool whole;

	if (err)
		return err;
	em_sys_lock(&stop_lock);
	err = choose_stop_signal();
	if (err < 0)
		goto undo_lock;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &stop_mask);
	atomic_store(&stop_count, 0);
	atomic_fetch_add(&stop_round, 1);
	deadline = em_sys_monotonic_ns() + 200000000u;
	while ((err = signal_others(self, &whole)) > 0 || (err == 0 && !whole && ++looks < LOOKS))
		while (!all_parked(++naps % 16 == 0)) {
			struct timespec nap = {.tv_nsec = 20000};

			if (em_sys_monotonic_ns() > deadline) {
				em_sys_resume_threads();
				return -EBUSY;
			}
			nanosleep(&nap, NULL);
		}
	if (err == 0)
		return 0;
	em_sys_resume_threads();
	return err;
undo_lock:
	em_sys_unlock(&stop_lock);
	return err;
}

void em_sys_resume_threads(void)
{
	atomic_fetch_add(&stop_round, 1);
	futex(&stop_round, FUTEX_WAKE, INT_MAX);
	pthread_sigmask(SIG_SETMASK, &stop_mask, NULL);
	em_sys_unlock(&stop_lock);
}

/* ---- threads that end ---- */

/* The caller lets one thread in at a time. */
int em_sys_at_thread_exit(void (*call)(void *), void *arg)
{
	static pthread_key_t key;
	static bool made;
	int err = em_sys_scripted("exit");

	if (err)
		return err;
	if (!made && (err = pthread_key_create(&key, call)) != 0)
		return -err;
	made = true;
	return -pthread_setspecific(key, arg);
}

/* ---- forks ---- */

static void (*fork_before)(void), (*fork_in_parent)(void), (*fork_in_child)(void);

/* No thread is being stopped while the process forks, so that the child finds the lock free and nobody waiting. */
static void before_fork(void)
{
	fork_before();
	em_sys_traps_before_fork();
	em_sys_lock(&stop_lock);
}

static void in_parent_of_fork(void)
{
	em_sys_unlock(&stop_lock);
	em_sys_traps_after_fork(false);
	fork_in_parent();
}

static void in_child_of_fork(void)
{
	stop_lock = (struct em_lock){.rank = EM_RANK_STOP};
	em_sys_order_forget();
	em_sys_traps_after_fork(true);
	fork_in_child();
}

int em_sys_at_fork(void (*before)(void), void (*in_parent)(void), void (*in_child)(void))
{
	fork_before = before;
	fork_in_parent = in_parent;
	fork_in_child = in_child;
	return -pthread_atfork(before_fork, in_parent_of_fork, in_child_of_fork);
}
