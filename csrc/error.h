/* error: what went wrong on this thread, in words that name the cause and the remedy. */
#ifndef EM_ERROR_H
#define EM_ERROR_H

#include "base.h"
#include "sys.h"

/* Keeps `code` and the text for execmem_error_text(), gives back `code`. The text says what, with its numbers; then what to do. */
int em_error_set(int code, const char *format, ...) __attribute__((format(printf, 2, 3), cold));

/* EINVAL for an argument that must not be NULL. */
int em_error_null(const char *argument) __attribute__((cold));

/* This thread's last failure, kept while what it left half done is taken back, which may fail too. */
struct em_error_kept {
	int code;
	enum execmem_policy policy;
	size_t index;
	char text[900];
};
void em_error_keep(struct em_error_kept *out) __attribute__((cold));
int em_error_tell(const struct em_error_kept *kept) __attribute__((cold)); /* is the last failure again; gives its code */

/* The batch element that the last failure of this thread was about. */
void em_error_at(size_t index);

/* Turns a negative errno of a system call into a code and words: `doing` completes "could not ...". Looks who refused (em_sys_blame). */
int em_error_system(int negative_errno, const char *doing) __attribute__((cold));
int em_error_refused(int negative_errno, enum em_sys_call call, const char *doing) __attribute__((cold));

/* The same for a call whose refuser is known already; what was tried instead goes before the remedy. */
int em_error_blamed(int negative_errno, enum execmem_policy policy, const char *doing, const char *instead) __attribute__((cold));

void em_error_blame(enum execmem_policy policy); /* adds who refused to this thread's last failure */
enum execmem_policy em_error_policy(void); /* who refused in this thread's last failure; NONE: nobody did */

#endif
