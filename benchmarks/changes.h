/* changes: what the programs share that change code which runs, and time that. */
#ifndef CHANGES_H
#define CHANGES_H

#include "execmem.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* Ends the program, with the library's words, where something was not done. */
static inline void need(bool done, const char *what)
{
	if (!done) {
		fprintf(stderr, "%s: %s\n", what, execmem_error_text());
		exit(1);
	}
}

static inline double ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

#endif
