/*
 * tagdemo: tags memory, checks every tag and byte of it, and shows that a wrong tag is caught.
 *
 *   tagdemo [MIB [SEED]]      default 16 MiB, seed 1
 *
 * Every granule of a PROT_MTE mapping gets a pseudo-random tag and pseudo-random data, both from the seed. All are read back
 * twice: as written, and after all tags (not the data) were changed. A hypervisor that loses a tag, or lets tag storage and
 * data share memory, is caught by one of the two. No other page of the process is PROT_MTE, so the pages printed are the
 * tagged pages of the guest (the kernel has a few of its own).
 *
 * The last line is for programs:
 *   TAGDEMO pages=4096 bad=0 mismatch=segv_mteserr async=segv_mteaerr asymm=segv_mteserr,segv_mteaerr result=ok
 * Exit status: 0 all well, 1 not, 2 the CPU has no MTE, 64 usage.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MTE_IMPLEMENTATION
#include "mte.h"

#define TCF_FILE "/sys/devices/system/cpu/cpu%ld/mte_tcf_preferred"

struct area {
	char *base; /* untagged */
	size_t bytes;
	uint64_t seed;
};

/* A well mixed function of the seed and a place: splitmix64's finalizer (Steele, Lea, Flood, OOPSLA 2014). */
static uint64_t mix(uint64_t seed, uint64_t place)
{
	uint64_t z = seed + place * 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

static unsigned expected_tag(const struct area *area, size_t at, int round)
{
	return mix(area->seed + 1000 + round, at / GRANULE) & 0xf;
}

static void write_tags(const struct area *area, int round)
{
	for (size_t at = 0; at < area->bytes; at += GRANULE)
		store_tag(with_tag(area->base + at, expected_tag(area, at, round)));
}

/* Through tagged pointers, so that each store is checked by the CPU too. */
static void write_data(const struct area *area, int round)
{
	for (size_t at = 0; at < area->bytes; at += GRANULE) {
		uint64_t *words = (uint64_t *)with_tag(area->base + at, expected_tag(area, at, round));

		words[0] = mix(area->seed, at);
		words[1] = ~words[0];
	}
}

/* Granules whose tag or data is not what was written. Reads by the tag found: a wrong one is counted, not fatal. */
static size_t count_bad(const struct area *area, int round)
{
	size_t bad = 0;

	for (size_t at = 0; at < area->bytes; at += GRANULE) {
		char *found = load_tag(area->base + at);
		const uint64_t *words = (const uint64_t *)found;
		uint64_t data = mix(area->seed, at);

		bad += tag_of(found) != expected_tag(area, at, round) || words[0] != data || words[1] != ~data;
	}
	return bad;
}

static size_t tag_and_check(const struct area *area)
{
	size_t bad = 0;

	for (int round = 0; round < 2; round++) {
		double start = seconds(), tagged;

		write_tags(area, round);
		if (round == 0)
			write_data(area, round);
		tagged = seconds();
		bad += count_bad(area, round);
		printf("%s %zu MiB in %.2f s, checked in %.2f s, %zu bad granules\n", round ? "retagged" : "tagged",
		       area->bytes >> 20, tagged - start, seconds() - tagged, bad);
	}
	return bad;
}

static const char *code_name(int code)
{
	switch (code) {
	case 0: return "none";
	case SEGV_MTESERR: return "segv_mteserr";
	case SEGV_MTEAERR: return "segv_mteaerr";
	default: return "other";
	}
}

/* Asynchronous faults are seen at the next entry to the kernel. */
static void store_then_enter_kernel(volatile char *p)
{
	*p = 1;
	getppid();
}

/* Synchronous checks at the first, a middle and the last granule, by load and by store. */
static int sync_code(const struct area *area)
{
	const size_t places[] = { 0, area->bytes / 2, area->bytes - GRANULE };

	for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
		volatile char *good = load_tag(area->base + places[i]);
		volatile char *wrong = with_tag((char *)good, tag_of((char *)good) + 1 + i);
		char old = *good;
		int load = FAULT_OF(*wrong);
		int loaded_at_wrong = mte_address == (void *)with_tag((char *)wrong, 0);
		int store = FAULT_OF(*wrong = ~old);

		if (load != SEGV_MTESERR || store != SEGV_MTESERR)
			return load != SEGV_MTESERR ? load : store;
		if (!loaded_at_wrong || FAULT_OF(*good) || *good != old)
			return -1; /* wrong address told, a matching access stopped, or the stopped store done */
	}
	return SEGV_MTESERR;
}

static int async_code(const struct area *area)
{
	char *good = load_tag(area->base);

	return FAULT_OF(store_then_enter_kernel(with_tag(good, tag_of(good) ^ 8)));
}

/* The mode that the kernel picks when a thread allows several. Returns 0 if every CPU took it. */
static int prefer(const char *mode, long cpus)
{
	for (long cpu = 0; cpu < cpus; cpu++) {
		char name[sizeof TCF_FILE + 20];
		FILE *file;
		int bad;

		snprintf(name, sizeof name, TCF_FILE, cpu);
		file = fopen(name, "w");
		if (!file)
			return -1;
		bad = fputs(mode, file) < 0;
		if (fclose(file) || bad)
			return -1;
	}
	return 0;
}

/* Asymmetric checks: loads synchronous, stores asynchronous. Needs FEAT_MTE_ASYM_FAULT and the right to ask for it. */
static const char *asymm_codes(const struct area *area, int *ok)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	volatile char *wrong;
	int load, store;

	if (!has_mte3() || prefer("asymm", cpus))
		return "untested";
	if (tag_checks(CTRL_SYNC | CTRL_ASYNC))
		return *ok = 0, "refused";
	wrong = load_tag(area->base);
	wrong = with_tag((char *)wrong, tag_of((char *)wrong) ^ 8);
	load = FAULT_OF(*wrong);
	store = FAULT_OF(store_then_enter_kernel(wrong));
	prefer("async", cpus); /* the kernel's own default */
	*ok &= load == SEGV_MTESERR && store == SEGV_MTEAERR;
	return *ok ? "segv_mteserr,segv_mteaerr" : "wrong";
}

static int show_mismatches(const struct area *area, const char *names[3])
{
	int sync, async = -1, ok;

	sync = tag_checks(CTRL_SYNC) ? -1 : sync_code(area);
	if (!tag_checks(CTRL_ASYNC))
		async = async_code(area);
	ok = sync == SEGV_MTESERR && async == SEGV_MTEAERR;
	names[0] = code_name(sync);
	names[1] = code_name(async);
	names[2] = asymm_codes(area, &ok);
	return ok;
}

/* The flags as the kernel shows them to people. */
static void print_cpu_flags(void)
{
	char line[4096];
	FILE *file = fopen("/proc/cpuinfo", "r");

	printf("/proc/cpuinfo:");
	while (file && fgets(line, sizeof line, file)) {
		if (strncmp(line, "Features", 8))
			continue;
		for (char *word = strtok(line, " \t\n"); word; word = strtok(NULL, " \t\n"))
			if (!strncmp(word, "mte", 3))
				printf(" %s", word);
		break;
	}
	if (file)
		fclose(file);
	printf("%s\n", has_mte() ? "" : " no mte");
}

static int parse(int argc, char **argv, struct area *area)
{
	char *end = "";
	size_t mib = 16;

	area->seed = 1;
	if (argc > 1)
		mib = strtoul(argv[1], &end, 10);
	if (argc > 2 && !*end)
		area->seed = strtoull(argv[2], &end, 0);
	area->bytes = mib << 20;
	return argc > 3 || *end || mib == 0 || mib > 1 << 20 ? -1 : 0;
}

int main(int argc, char **argv)
{
	const char *names[3];
	struct area area;
	size_t bad;
	int ok;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (parse(argc, argv, &area)) {
		fprintf(stderr, "usage: tagdemo [MIB [SEED]]\n");
		return 64;
	}
	print_cpu_flags();
	if (!has_mte()) {
		printf("TAGDEMO pages=0 bad=0 result=no-mte\n");
		return 2;
	}
	catch_segv();
	area.base = map_tagged(area.bytes);
	if (area.base == MAP_FAILED || tag_checks(CTRL_SYNC)) {
		printf("TAGDEMO error=\"%s\" result=fail\n", strerror(errno));
		return 1;
	}
	bad = tag_and_check(&area);
	ok = show_mismatches(&area, names) && bad == 0;
	printf("TAGDEMO pages=%zu bad=%zu mismatch=%s async=%s asymm=%s result=%s\n", area.bytes / PAGE, bad, names[0],
	       names[1], names[2], ok ? "ok" : "fail");
	return !ok;
}
