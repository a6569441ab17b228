/* room: what the files of this room share. */
#ifndef EM_ARCH_NONE_ROOM_H
#define EM_ARCH_NONE_ROOM_H

#include "arch.h"

void em_none_flush(void *exec, size_t len);

#endif
