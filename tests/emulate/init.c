/* init: the first and only program of an emulated machine. Mounts what tests look at, runs each program of /tests in the order of their
 * names, tells how each ended, and turns the machine off. emulate.py reads the lines that begin with "== ".
 *
 * What stood on the kernel's command line as NAME=value is in the environment.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int mount_at(const char *what, const char *where)
{
	mkdir(where, 0755);
	if (mount(what, where, what, 0, NULL) == 0)
		return 0;
	perror(where);
	return 1;
}

static int is_program(const struct dirent *entry)
{
	return entry->d_name[0] != '.';
}

/* 0: it ended well. */
static int run(const char *name)
{
	char path[512];
	struct timespec start, end;
	int status = -1;
	pid_t child;

	snprintf(path, sizeof path, "/tests/%s", name);
	printf("== run %s\n", name);
	clock_gettime(CLOCK_MONOTONIC, &start);
	fflush(stdout);
	child = fork();
	if (child == 0) {
		execl(path, path, (char *)NULL);
		perror(path);
		_exit(127);
	}
	if (child < 0 || waitpid(child, &status, 0) != child)
		perror(name);
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("== %s %s: %s %d, %ld s\n", status == 0 ? "passed" : "FAILED", name, WIFSIGNALED(status) ? "signal" : "exit",
	       WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status), (long)(end.tv_sec - start.tv_sec));
	fflush(stdout);
	return status != 0;
}

int main(void)
{
	int failed = mount_at("proc", "/proc") + mount_at("sysfs", "/sys") + mount_at("devtmpfs", "/dev") + mount_at("tmpfs", "/tmp");
	struct dirent **programs = NULL;
	int count = scandir("/tests", &programs, is_program, alphasort);

	for (int i = 0; i < count; i++)
		failed += run(programs[i]->d_name);
	printf("== end: %d run, %d failed\n", count, failed);
	fflush(stdout);
	sync();
	reboot(RB_POWER_OFF);
	return 1;
}
