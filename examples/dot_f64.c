/* dot_f64: the dot product of two arrays of doubles, summed from first to last, so every rounding is Python's too. */
#include <stddef.h>

double dot_f64(const double *a, const double *b, size_t count)
{
	double sum = 0;

	for (size_t i = 0; i < count; i++)
		sum += a[i] * b[i];
	return sum;
}
