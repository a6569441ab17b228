/* dot_i64: the dot product of two arrays of 64-bit integers, modulo 2^64 (unsigned inside, so that it may wrap). */
#include <stddef.h>
#include <stdint.h>

int64_t dot_i64(const int64_t *a, const int64_t *b, size_t count)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < count; i++)
		sum += (uint64_t)a[i] * (uint64_t)b[i];
	return (int64_t)sum;
}
