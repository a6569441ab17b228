/* popcount: how many bits are set in `count` words, without the CPU's own instruction: pairs, nibbles, bytes, then one sum. */
#include <stddef.h>
#include <stdint.h>

uint64_t popcount(const uint64_t *words, size_t count)
{
	uint64_t total = 0;

	for (size_t i = 0; i < count; i++) {
		uint64_t w = words[i];

		w -= (w >> 1) & 0x5555555555555555u;
		w = (w & 0x3333333333333333u) + ((w >> 2) & 0x3333333333333333u);
		w = (w + (w >> 4)) & 0x0f0f0f0f0f0f0f0fu;
		total += (w * 0x0101010101010101u) >> 56;
	}
	return total;
}
