/* room: what the files of this room share. */
#ifndef EM_ARCH_AARCH64_ROOM_H
#define EM_ARCH_AARCH64_ROOM_H

#include "arch.h"

enum {
	EM_AARCH64_BRK = (int)0xd4200000, /* brk #0 */
	EM_AARCH64_INSN = 4,              /* bytes; little-endian, whatever the order of data */
};

static inline uint32_t em_aarch64_read(const void *code)
{
	const uint8_t *b = code;

	return (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

uint32_t em_aarch64_put(uint8_t *out, uint32_t insn); /* gives EM_AARCH64_INSN, as far as the next one */
/* adrp and add, at `at`, of a number of a register; 0: they do not reach. */
uint32_t em_aarch64_put_address(uint8_t *out, uint32_t rd, uint64_t at, uint64_t to);
bool em_aarch64_decode(const void *code, size_t len, struct em_arch_insn *out);
uint64_t em_aarch64_goal(const uint8_t *code, const struct em_arch_insn *insn, uint64_t at);
enum em_arch_moved em_aarch64_move(const uint8_t *code, const struct em_arch_insn *insn, uint64_t from, uint64_t to, uint8_t *out,
                                   uint32_t *len);
void em_aarch64_flush(void *exec, size_t len);
bool em_aarch64_sees_stores(void);

#endif
