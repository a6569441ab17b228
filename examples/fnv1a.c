/* fnv1a: the 64-bit FNV-1a hash of `length` bytes (after Fowler, Noll and Vo; the constants are theirs). */
#include <stddef.h>
#include <stdint.h>

uint64_t fnv1a(const uint8_t *data, size_t length)
{
	uint64_t hash = 0xcbf29ce484222325u;

	for (size_t i = 0; i < length; i++) {
		hash ^= data[i];
		hash *= 0x100000001b3u;
	}
	return hash;
}
