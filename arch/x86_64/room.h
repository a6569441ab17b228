/* room: what the files of this room share. */
#ifndef EM_ARCH_X86_64_ROOM_H
#define EM_ARCH_X86_64_ROOM_H

#include "arch.h"

enum { EM_X86_64_TF = 0x100 }; /* of RFLAGS: trap after each instruction (Intel SDM vol. 1, 3.4.3) */
enum { EM_X86_64_CS = 0x2E };  /* a segment that is not there: a prefix that does nothing (Intel SDM vol. 1, 3.4.2.1) */
enum { EM_X86_64_INT3 = 0xCC }; /* one byte, so a jump to any offset traps (Intel SDM vol. 2, INT3) */

bool em_x86_64_decode(const void *code, size_t len, struct em_arch_insn *out);
uint64_t em_x86_64_goal(const uint8_t *code, const struct em_arch_insn *insn, uint64_t at);
enum em_arch_moved em_x86_64_move(const uint8_t *code, const struct em_arch_insn *insn, uint64_t from, uint64_t to, uint8_t *out,
                                  uint32_t *len);
void em_x86_64_fill_traps_past(void *dst, size_t len);
void em_x86_64_drain(void);
bool em_x86_64_has_keys(void);
uint64_t em_x86_64_read_rights(void);
void em_x86_64_write_rights(uint64_t rights);
bool em_x86_64_sees_stores(void);
bool em_x86_64_has_shadow_stack(void);
void em_x86_64_serialize(void);

#endif
