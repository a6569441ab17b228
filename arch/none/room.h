/* room: what the files of this room share. */
#ifndef EM_ARCH_NONE_ROOM_H
#define EM_ARCH_NONE_ROOM_H

#include "arch.h"

bool em_none_decode(const void *code, size_t len, struct em_arch_insn *out);
void em_none_flush(void *exec, size_t len);

#endif
