/* none/decode: nothing is known of this CPU's instructions. */
#include "room.h"

/* ---- one instruction ---- */

bool em_none_decode(const void *code, size_t len, struct em_arch_insn *out)
{
	(void)code, (void)len;
	*out = (struct em_arch_insn){0};
	return false;
}
