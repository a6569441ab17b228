/* error: what went wrong on this thread, in words that name the cause and the remedy. */
#ifndef EM_ERROR_H
#define EM_ERROR_H

#include "base.h"

/* Keeps `code` and the text for execmem_error_text(), gives back `code`. The text says what, with its numbers; then what to do. */
int em_error_set(int code, const char *format, ...) __attribute__((format(printf, 2, 3), cold));

/* EINVAL for an argument that must not be NULL. */
int em_error_null(const char *argument) __attribute__((cold));

/* The batch element that the last failure of this thread was about. */
void em_error_at(size_t index);

/* Turns a negative errno of a system call into a code and words: `doing` completes "could not ...". */
int em_error_system(int negative_errno, const char *doing) __attribute__((cold));

#endif
