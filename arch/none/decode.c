/* none/decode: nothing is known of this CPU's instructions. */
#include "room.h"

/* ---- one instruction ---- */

bool em_none_decode(const void *code, size_t len, struct em_arch_insn *out)
{
	(void)code, (void)len;
	*out = (struct em_arch_insn){0};
	return false;
}

/* ---- one instruction elsewhere ---- */

uint64_t em_none_goal(const uint8_t *code, const struct em_arch_insn *insn, uint64_t at)
{
	(void)code, (void)insn;
	return at;
}

enum em_arch_moved em_none_move(const uint8_t *code, const struct em_arch_insn *insn, uint64_t from, uint64_t to, uint8_t *out,
                                uint32_t *len)
{
	(void)code, (void)insn, (void)from, (void)to, (void)out, (void)len;
	return EM_ARCH_MOVED_NEVER;
}
