/* crc32: the CRC-32 of zlib, PNG and Ethernet, bit by bit. A table would be faster, but it would live outside the function. */
#include <stddef.h>
#include <stdint.h>

uint32_t crc32(const uint8_t *data, size_t length)
{
	uint32_t rest = 0xffffffffu;

	for (size_t i = 0; i < length; i++) {
		rest ^= data[i];
		for (int bit = 0; bit < 8; bit++)
			rest = (rest >> 1) ^ (0xedb88320u & (0u - (rest & 1u)));
	}
	return ~rest;
}
