/* arch: the list of rooms, and the one place that chooses. */
#include "arch.h"

const struct em_arch *const em_arch_rooms[] = {&em_arch_x86_64, &em_arch_aarch64, &em_arch_riscv64, &em_arch_none, NULL};

const struct em_arch *em_arch_host(void)
{
#if defined(__x86_64__) && defined(__LP64__)
	return __builtin_cpu_supports("popcnt") ? &em_arch_x86_64 : &em_arch_none; /* the core is compiled with it */
#elif defined(__aarch64__) && defined(__LP64__) && defined(__AARCH64EL__)
	return &em_arch_aarch64;
#elif defined(__riscv) && defined(__LP64__) && __riscv_xlen == 64
	return &em_arch_riscv64;
#else
	return &em_arch_none;
#endif
}
