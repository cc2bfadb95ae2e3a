/*
 * Memory tagging at EL0: what tagdemo and marks share.
 * Terms as in the Arm ARM, DDI 0487, D10 and in the kernel's memory-tagging-extension.rst.
 */
#ifndef TAGVISOR_MTE_H
#define TAGVISOR_MTE_H

#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#define GRANULE 16u /* bytes under one tag */
#define PAGE 4096u
#define TAG_SHIFT 56

/* Kernel interface; stated here because older cross C libraries lack some of it. */
#ifndef PROT_MTE
#define PROT_MTE 0x20
#endif
#ifndef SEGV_MTEAERR
#define SEGV_MTEAERR 8
#define SEGV_MTESERR 9
#endif
#define HWCAP2_HAS_MTE (1ul << 18)
#define HWCAP2_HAS_MTE3 (1ul << 22)
#define CTRL_TAGGED_ADDR (1ul << 0)
#define CTRL_SYNC (1ul << 1)
#define CTRL_ASYNC (1ul << 2)
#define CTRL_INCLUDE_ALL (0xfffful << 3)

static inline int has_mte(void) { return (getauxval(AT_HWCAP2) & HWCAP2_HAS_MTE) != 0; }
static inline int has_mte3(void) { return (getauxval(AT_HWCAP2) & HWCAP2_HAS_MTE3) != 0; }

/* Sets how this thread's tag check faults are reported. 0, or -1 with errno. */
static inline int tag_checks(unsigned long how)
{
	return prctl(PR_SET_TAGGED_ADDR_CTRL, CTRL_TAGGED_ADDR | CTRL_INCLUDE_ALL | how, 0, 0, 0);
}

static inline void *map_tagged(size_t bytes)
{
	return mmap(NULL, bytes, PROT_READ | PROT_WRITE | PROT_MTE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static inline char *with_tag(const char *p, unsigned tag)
{
	uintptr_t bits = (uintptr_t)p & ~((uintptr_t)0xf << TAG_SHIFT);

	return (char *)(bits | (uintptr_t)(tag & 0xf) << TAG_SHIFT);
}

static inline unsigned tag_of(const char *p) { return (uintptr_t)p >> TAG_SHIFT & 0xf; }

/* STG: gives the granule at p the tag of p. */
static inline void store_tag(char *p) { asm volatile("stg %0, [%0]" : : "r"(p) : "memory"); }

/* LDG: returns p with the tag that the granule at p has. */
static inline char *load_tag(char *p)
{
	asm volatile("ldg %0, [%0]" : "+r"(p) : : "memory");
	return p;
}

/* One access that may fault, and what came of it: 0, or the si_code of the SIGSEGV. */
extern sigjmp_buf mte_return;
extern volatile sig_atomic_t mte_code;
extern void *volatile mte_address;

#define FAULT_OF(access) (mte_code = 0, sigsetjmp(mte_return, 1) == 0 ? ((void)(access), mte_code) : mte_code)

/* Makes SIGSEGV come back to FAULT_OF, which otherwise stays fatal. */
void catch_segv(void);

#ifdef MTE_IMPLEMENTATION
sigjmp_buf mte_return;
volatile sig_atomic_t mte_code;
void *volatile mte_address;

static void on_segv(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	mte_code = info->si_code;
	mte_address = info->si_addr;
	siglongjmp(mte_return, 1);
}

void catch_segv(void)
{
	struct sigaction action = { .sa_sigaction = on_segv, .sa_flags = SA_SIGINFO };

	sigaction(SIGSEGV, &action, NULL);
}
#endif

#endif
