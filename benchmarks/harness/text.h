/* text: a piece of JSON that grows, in a buffer of fixed size. */
#ifndef BENCH_TEXT_H
#define BENCH_TEXT_H

#include <stdarg.h>
#include <stdio.h>

enum { TEXT_SIZE = 8192 };

struct text {
	int length;
	char bytes[TEXT_SIZE];
};

/* What does not fit is cut off, and is then no JSON any more: the reader notices. */
static inline void __attribute__((format(printf, 2, 3))) text_add(struct text *text, const char *format, ...)
{
	va_list arguments;
	int room = TEXT_SIZE - text->length;

	va_start(arguments, format);
	int added = vsnprintf(text->bytes + text->length, (size_t)room, format, arguments);
	va_end(arguments);
	text->length += added < 0 ? 0 : added < room ? added : room - 1;
}

#endif
