/* faults: code that faults, and what a signal handler is told of it, on each CPU. */
#ifndef FAULTS_H
#define FAULTS_H

#include <signal.h>
#include <stdint.h>
#include <ucontext.h>

/* Code that returns; what its length is called; the signal of a trap, and how long one is. */
#if defined(__x86_64__)
static const uint8_t returns[] = {0xc3};
#define LENGTH "1 byte at "
enum { TRAP = SIGTRAP, TRAP_SIZE = 1 };
#elif defined(__aarch64__)
static const uint8_t returns[] = {0xc0, 0x03, 0x5f, 0xd6};
#define LENGTH "4 bytes at "
enum { TRAP = SIGTRAP, TRAP_SIZE = 4 };
#else
static const uint8_t returns[] = {0x67, 0x80, 0x00, 0x00};
#define LENGTH "4 bytes at "
enum { TRAP = SIGILL, TRAP_SIZE = 2 }; /* zeros are an instruction that is none */
#endif

/* As if what was called had returned at once. */
static inline void return_from(void *context)
{
	mcontext_t *registers = &((ucontext_t *)context)->uc_mcontext;

#if defined(__x86_64__)
	registers->gregs[REG_RIP] = *(const greg_t *)(uintptr_t)registers->gregs[REG_RSP];
	registers->gregs[REG_RSP] += 8;
#elif defined(__aarch64__)
	registers->pc = registers->regs[30];
#else
	registers->__gregs[REG_PC] = registers->__gregs[REG_RA];
#endif
}

/* Where a breakpoint says it is: behind it on x86-64, else at it, and then it is stepped over. */
static inline void *step_over_breakpoint(void *context)
{
	mcontext_t *registers = &((ucontext_t *)context)->uc_mcontext;

#if defined(__x86_64__)
	return (void *)(uintptr_t)registers->gregs[REG_RIP];
#elif defined(__aarch64__)
	registers->pc += 4;
	return (void *)(uintptr_t)(registers->pc - 4);
#else
	registers->__gregs[REG_PC] += 4;
	return (void *)(uintptr_t)(registers->__gregs[REG_PC] - 4);
#endif
}

/* Runs one. What comes back: where it will be said to be. */
static inline void *run_breakpoint(void)
{
	void *said = NULL;

#if defined(__x86_64__)
	__asm__ volatile("lea 1f(%%rip), %0\n\tint3\n1:" : "=r"(said));
#elif defined(__aarch64__)
	__asm__ volatile("adr %0, 1f\n1:\tbrk #7" : "=r"(said));
#else
	__asm__ volatile(".option push\n\t.option norvc\n\tlla %0, 1f\n1:\tebreak\n\t.option pop" : "=r"(said));
#endif
	return said;
}

#endif
