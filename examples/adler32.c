/* adler32: the checksum of RFC 1950. 5,552 is the longest run of bytes whose sums still fit in 32 bits. */
#include <stddef.h>
#include <stdint.h>

uint32_t adler32(const uint8_t *data, size_t length)
{
	uint32_t low = 1;
	uint32_t high = 0;

	while (length > 0) {
		size_t run = length < 5552 ? length : 5552;

		length -= run;
		for (; run > 0; run--) {
			low += *data++;
			high += low;
		}
		low %= 65521u;
		high %= 65521u;
	}
	return (high << 16) | low;
}
