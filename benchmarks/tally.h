/* The parts that load.c and far.c share: the poem, the clock, the counts, and the line of JSON. */
#ifndef TALLY_H
#define TALLY_H

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* Log-linear histogram of nanoseconds: 64 steps in each power of two, so no more than 1.6 % off. */
enum { STEPS = 64, BUCKETS = 64 * STEPS };

static struct {
    uint64_t poems, bytes, wrong, shorter, reset, refused, late, reopened;
} sum;

static const char *poem;
static size_t poemBytes;
static uint64_t histogram[BUCKETS], slowest;
static uint64_t lastEnd; /* when the last poem was whole, ns */

static void die(const char *what) {
    perror(what);
    exit(2);
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void readPoem(const char *path) {
    struct stat s;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &s)) die(path);
    poemBytes = (size_t)s.st_size;
    poem = mmap(NULL, poemBytes ? poemBytes : 1, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
    if (poem == MAP_FAILED) die(path);
    close(fd);
}

static void observe(uint64_t ns) {
    int shift = ns < STEPS ? 0 : 63 - __builtin_clzll(ns) - 6;
    histogram[shift * STEPS + (int)(ns >> shift)]++;
    if (ns > slowest) slowest = ns;
}

static double percentile(double share) {
    uint64_t wanted = (uint64_t)(share * (double)sum.poems), passed = 0;
    for (int i = 0; i < BUCKETS; i++) {
        passed += histogram[i];
        if (passed <= wanted) continue;
        int shift = i < 2 * STEPS ? 0 : i / STEPS - 1;
        return (double)((uint64_t)(i - shift * STEPS) << shift) / 1000;
    }
    return (double)slowest / 1000;
}

/* Counts a connection that came to a clean end. */
static void tally(uint64_t intended, size_t seen, int wrong) {
    if (wrong || seen > poemBytes) {
        sum.wrong++;
    } else if (seen < poemBytes) {
        sum.shorter++;
    } else {
        lastEnd = now();
        sum.poems++;
        observe(lastEnd - intended);
    }
}

/* Prints the counts; the exit status is 1 if any poem was wrong or incomplete. */
static int report(double seconds) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double busy = (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
                  (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    printf("{\"poems\": %lu, \"seconds\": %.6f, \"poemsPerSecond\": %.1f, \"bytesPerSecond\": %.0f, "
           "\"p50us\": %.1f, \"p99us\": %.1f, \"maxus\": %.1f, \"wrong\": %lu, \"short\": %lu, \"reset\": %lu, "
           "\"refused\": %lu, \"late\": %lu, \"reopened\": %lu, \"busy\": %.3f}\n",
           sum.poems, seconds, (double)sum.poems / seconds, (double)sum.bytes / seconds, percentile(0.5),
           percentile(0.99), (double)slowest / 1000, sum.wrong, sum.shorter, sum.reset, sum.refused, sum.late,
           sum.reopened, busy / seconds);
    return sum.wrong || sum.shorter || sum.reset || sum.refused || sum.late;
}

#endif
