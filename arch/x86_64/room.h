/* room: what the files of this room share. */
#ifndef EM_ARCH_X86_64_ROOM_H
#define EM_ARCH_X86_64_ROOM_H

#include "arch.h"

void em_x86_64_flush(void *exec, size_t len);

#endif
