/* room: what the files of this room share. */
#ifndef EM_ARCH_NONE_ROOM_H
#define EM_ARCH_NONE_ROOM_H

#include "arch.h"

bool em_none_decode(const void *code, size_t len, struct em_arch_insn *out);
uint64_t em_none_goal(const uint8_t *code, const struct em_arch_insn *insn, uint64_t at);
enum em_arch_moved em_none_move(const uint8_t *code, const struct em_arch_insn *insn, uint64_t from, uint64_t to, uint8_t *out,
                                uint32_t *len);
void em_none_flush(void *exec, size_t len);

#endif
