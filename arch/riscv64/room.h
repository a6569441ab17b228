/* room: what the files of this room share. */
#ifndef EM_ARCH_RISCV64_ROOM_H
#define EM_ARCH_RISCV64_ROOM_H

#include "arch.h"

enum {
	EM_RISCV64_PARCEL = 2
}; /* bytes: instructions are one or two of them, little-endian; a parcel of zeros is illegal for ever */

enum em_riscv64_opcode {
	EM_RISCV64_ADDI = 0x13,
	EM_RISCV64_AUIPC = 0x17,
	EM_RISCV64_BRANCH = 0x63,
	EM_RISCV64_JALR = 0x67,
	EM_RISCV64_JAL = 0x6f,
};

/* jal, to a distance that it must reach. Both give the bytes they wrote. */
uint32_t em_riscv64_put_jump(uint8_t *out, uint32_t link, uint32_t distance);
/* auipc rd, and behind it addi or jalr, from rd to rd; 0: they do not reach. */
uint32_t em_riscv64_put_pair(uint8_t *out, uint32_t opcode, uint32_t rd, uint64_t at, uint64_t to);
bool em_riscv64_decode(const void *code, size_t len, struct em_arch_insn *out);
uint64_t em_riscv64_goal(const uint8_t *code, const struct em_arch_insn *insn, uint64_t at);
enum em_arch_moved em_riscv64_move(const uint8_t *code, const struct em_arch_insn *insn, uint64_t from, uint64_t to, uint8_t *out,
                                   uint32_t *len);
bool em_riscv64_sees_stores(void);

#endif
