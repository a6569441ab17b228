/* matmul4: out = a x b for 4x4 matrices of doubles, row by row. `out` may not overlap `a` or `b`. */

void matmul4(double *restrict out, const double *restrict a, const double *restrict b)
{
	for (int row = 0; row < 4; row++) {
		for (int column = 0; column < 4; column++) {
			double sum = 0;

			for (int k = 0; k < 4; k++)
				sum += a[4 * row + k] * b[4 * k + column];
			out[4 * row + column] = sum;
		}
	}
}
