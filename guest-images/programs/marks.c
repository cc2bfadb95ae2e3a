/*
 * marks: small workloads between marks that a counting plugin sees.
 *
 *   marks mark N          one mark, N = 0..31
 *   marks mte MIB         tag MIB MiB, read every tag back, prove that a wrong one is caught
 *   marks bench NAME N    N operations of one kind between two marks of that kind
 *
 * A mark is HINT #(0x60 + N) at EL0: unallocated, so a NOP for every CPU, and it traps nowhere. Marks 1, 2 and 31 are given by
 * init (guest up, MTE work done, all done); 4 to 13 stand in the table below and come twice, before and after the work.
 * With -icount the difference of two marks is the exact cost of the work, per exception level.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MTE_IMPLEMENTATION
#include "mte.h"

#define TAGS_USED 14 /* tags 1 to 14: never the 0 of fresh memory */

/* The immediate of HINT is part of the instruction, so there is one routine for each mark, 8 bytes long. */
asm(".pushsection .text\n"
    ".balign 8\n"
    "marks_table:\n"
    ".set imm, 0x60\n"
    ".rept 32\n"
    "	hint #imm\n"
    "	ret\n"
    ".set imm, imm + 1\n"
    ".endr\n"
    ".popsection\n");
extern const char marks_table[];

static void mark(unsigned number)
{
	((void (*)(void))(uintptr_t)(marks_table + 8 * (number & 31)))();
}

static uint64_t ticks(void)
{
	uint64_t now;

	asm volatile("isb\n\tmrs %0, cntvct_el0" : "=r"(now) : : "memory");
	return now;
}

/* --- one kind of operation each: set up, between the marks, tear down --- */

struct bench;
typedef void work_fn(struct bench *bench, unsigned count);

struct bench {
	const char *name;
	unsigned mark;
	int (*prepare)(struct bench *bench, unsigned count); /* or NULL; not 0: cannot be done here */
	work_fn *work;
	void (*finish)(struct bench *bench, unsigned count); /* or NULL */
	char *memory;
	int file;
};

static void null_calls(struct bench *bench, unsigned count)
{
	(void)bench;
	while (count--)
		syscall(SYS_getppid);
}

/* EL1 emulates this read for EL0; a hypervisor with HCR_EL2.TID3 set sees EL1's own read of the register. */
static void read_id_register(struct bench *bench, unsigned count)
{
	uint64_t value;

	(void)bench;
	while (count--)
		asm volatile("mrs %0, id_aa64isar0_el1" : "=r"(value));
}

static int map_pages(struct bench *bench, unsigned count, int extra)
{
	size_t bytes = (size_t)count * PAGE;

	bench->memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE | extra, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return bench->memory == MAP_FAILED || madvise(bench->memory, bytes, MADV_NOHUGEPAGE);
}

static int map_plain(struct bench *bench, unsigned count) { return map_pages(bench, count, 0); }

static int map_for_tags(struct bench *bench, unsigned count)
{
	return !has_mte() || tag_checks(CTRL_SYNC) || map_pages(bench, count, PROT_MTE);
}

static void touch_pages(struct bench *bench, unsigned count)
{
	for (volatile char *page = bench->memory; count--; page += PAGE)
		*page = 1;
}

static void tag_pages(struct bench *bench, unsigned count)
{
	for (char *page = with_tag(bench->memory, 3); count--; page += PAGE)
		store_tag(page);
}

static void unmap(struct bench *bench, unsigned count) { munmap(bench->memory, (size_t)count * PAGE); }

static int fine_timers(struct bench *bench, unsigned count)
{
	(void)bench;
	(void)count;
	return prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
}

static void sleep_100us(struct bench *bench, unsigned count)
{
	const struct timespec nap = { .tv_nsec = 100000 };

	(void)bench;
	while (count--)
		nanosleep(&nap, NULL);
}

static void sleep_1s(struct bench *bench, unsigned count)
{
	(void)bench;
	sleep(count);
}

static int open_console(struct bench *bench, unsigned count)
{
	(void)count;
	bench->file = open("/dev/console", O_WRONLY);
	return bench->file < 0;
}

static void write_bytes(struct bench *bench, unsigned count)
{
	for (unsigned i = 1; i <= count; i++)
		if (write(bench->file, i % 64 ? "-" : "\n", 1) != 1)
			return;
}

static void close_console(struct bench *bench, unsigned count)
{
	if (count % 64)
		write_bytes(bench, 64); /* ends the line */
	close(bench->file);
}

/* --- two threads that hand a ball over through a futex; on two CPUs if there are two --- */

static struct {
	atomic_int holder; /* 0 or 1 */
	pthread_t partner;
	unsigned rounds;
} ball;

static void stay_on(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	sched_setaffinity(0, sizeof set, &set);
}

static void wait_for_ball(int me)
{
	while (atomic_load(&ball.holder) != me)
		syscall(SYS_futex, &ball.holder, FUTEX_WAIT_PRIVATE, !me, NULL, NULL, 0);
}

static void hand_over(int to)
{
	atomic_store(&ball.holder, to);
	syscall(SYS_futex, &ball.holder, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static void *partner(void *unused)
{
	(void)unused;
	stay_on(sysconf(_SC_NPROCESSORS_ONLN) > 1);
	for (unsigned i = 0; i < ball.rounds; i++) {
		wait_for_ball(1);
		hand_over(0);
	}
	return NULL;
}

static int start_partner(struct bench *bench, unsigned count)
{
	(void)bench;
	stay_on(0);
	ball.rounds = count;
	if (pthread_create(&ball.partner, NULL, partner, NULL))
		return -1;
	usleep(20000); /* the partner shall be asleep already when counting starts */
	return 0;
}

static void play(struct bench *bench, unsigned count)
{
	(void)bench;
	while (count--) {
		hand_over(1);
		wait_for_ball(0);
	}
}

static void join_partner(struct bench *bench, unsigned count)
{
	(void)bench;
	(void)count;
	pthread_join(ball.partner, NULL);
}

/* A mark for each, and for page faults two: the second pass finds page tables (and stage 2 tables) already there. */
static struct bench benches[] = {
	{ "null", 4, NULL, null_calls, NULL, NULL, -1 },
	{ "pf", 5, map_plain, touch_pages, unmap, NULL, -1 },
	{ "pf2", 6, map_plain, touch_pages, unmap, NULL, -1 },
	{ "mtepf", 7, map_for_tags, tag_pages, unmap, NULL, -1 },
	{ "mtepf2", 8, map_for_tags, tag_pages, unmap, NULL, -1 },
	{ "timer", 9, fine_timers, sleep_100us, NULL, NULL, -1 },
	{ "pingpong", 10, start_partner, play, join_partner, NULL, -1 },
	{ "uart", 11, open_console, write_bytes, close_console, NULL, -1 },
	{ "idreg", 12, NULL, read_id_register, NULL, NULL, -1 },
	{ "idle", 13, NULL, sleep_1s, NULL, NULL, -1 },
};

static int run_bench(const char *name, unsigned count)
{
	struct bench *bench = benches, *end = benches + sizeof benches / sizeof *benches;
	uint64_t start, spent, rate;

	while (bench < end && strcmp(bench->name, name))
		bench++;
	if (bench == end || count == 0)
		return 64;
	if (bench->prepare && bench->prepare(bench, count)) {
		printf("BENCH %s skipped\n", name);
		return 1;
	}
	start = ticks();
	mark(bench->mark);
	bench->work(bench, count);
	mark(bench->mark);
	spent = ticks() - start;
	if (bench->finish)
		bench->finish(bench, count);
	asm("mrs %0, cntfrq_el0" : "=r"(rate));
	printf("BENCH %s n=%u ticks=%lu per=%lu hz=%lu\n", name, count, spent, spent / count, rate);
	return 0;
}

/* --- the MTE work of the boot workload --- */

static unsigned tag_for(size_t page) { return 1 + page % TAGS_USED; }

static size_t tag_and_count_bad(char *base, size_t bytes)
{
	size_t bad = 0;

	for (size_t at = 0; at < bytes; at += GRANULE)
		store_tag(with_tag(base + at, tag_for(at / PAGE)));
	for (size_t at = 0; at < bytes; at += GRANULE)
		bad += tag_of(load_tag(base + at)) != tag_for(at / PAGE);
	return bad;
}

static int run_mte(size_t mib)
{
	size_t bytes = mib << 20, bad;
	volatile char *good;
	char *base;
	int match, mismatch;

	if (!has_mte() || tag_checks(CTRL_SYNC)) {
		printf("MTE RESULT absent\n");
		return 1;
	}
	base = map_tagged(bytes);
	if (base == MAP_FAILED) {
		printf("MTE RESULT fail: %s\n", strerror(errno));
		return 1;
	}
	catch_segv();
	bad = tag_and_count_bad(base, bytes);
	good = with_tag(base, tag_for(0));
	mismatch = FAULT_OF(*with_tag((char *)good, tag_for(0) ^ 8) = 1);
	match = FAULT_OF(*good = 1);
	printf("MTE mib=%zu bad_granules=%zu mismatch=%d match=%d\n", mib, bad, mismatch, match);
	bad += mismatch != SEGV_MTESERR || match != 0;
	printf("MTE RESULT %s\n", bad ? "fail" : "ok");
	return bad != 0;
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc == 3 && !strcmp(argv[1], "mark")) {
		mark(strtoul(argv[2], NULL, 0));
		return 0;
	}
	if (argc == 3 && !strcmp(argv[1], "mte"))
		return run_mte(strtoul(argv[2], NULL, 0));
	if (argc == 4 && !strcmp(argv[1], "bench"))
		return run_bench(argv[2], strtoul(argv[3], NULL, 0));
	fprintf(stderr, "usage: marks mark N | mte MIB | bench NAME N\n");
	return 64;
}
