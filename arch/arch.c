/* arch: the list of rooms, and the one place that chooses. */
#include "arch.h"

const struct em_arch *const em_arch_rooms[] = {&em_arch_x86_64, &em_arch_none, NULL};

const struct em_arch *em_arch_host(void)
{
#if defined(__x86_64__) && defined(__LP64__)
	return __builtin_cpu_supports("popcnt") ? &em_arch_x86_64 : &em_arch_none; /* the core is compiled with it */
#else
	return &em_arch_none;
#endif
}
