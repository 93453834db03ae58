/* Clock and chance of a simulated process, preloaded. Time passes only when the process waits, and then at once; random
   bytes follow from the seed. So whatever asks the C library for either (the standard library, tokio, hash maps, ids)
   gets the same answers in every run of a seed. One thread only. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000ull
/* 2026-11-28 and the ten-thousandth second since the machine's start; far enough from 0 to subtract from. */
static const uint64_t EPOCH = 1795824000ull * SECOND, UPTIME = 10000ull * SECOND;

static uint64_t chance, nanos;

__attribute__((constructor)) static void begin(void) {
    const char *seed = getenv("WIREPOST_SIMULATION_SEED");
    chance = seed ? strtoull(seed, 0, 10) : 0;
}

/* splitmix64 */
static uint64_t next(void) {
    uint64_t z = (chance += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

ssize_t getrandom(void *buffer, size_t length, unsigned flags) {
    (void)flags;
    for (size_t at = 0; at < length; at += 8) {
        uint64_t bits = next();
        memcpy((char *)buffer + at, &bits, length - at < 8 ? length - at : 8);
    }
    return (ssize_t)length;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    uint64_t base;
    switch (clock) {
    case CLOCK_REALTIME: case CLOCK_REALTIME_COARSE: base = EPOCH; break;
    case CLOCK_MONOTONIC: case CLOCK_MONOTONIC_COARSE: case CLOCK_MONOTONIC_RAW: case CLOCK_BOOTTIME: base = UPTIME; break;
    default: return (int)syscall(SYS_clock_gettime, clock, time);
    }
    time->tv_sec = (time_t)((base + nanos) / SECOND);
    time->tv_nsec = (long)((base + nanos) % SECOND);
    return 0;
}

/* What the process waits for is its timers and what wakes it by an eventfd, both of which are known here: asking the
   kernel each time costs a part of each run. */
static unsigned char wakes[64];
static int woken;

int eventfd(unsigned count, int flags) {
    int fd = (int)syscall(SYS_eventfd2, count, flags);
    if (fd >= 0 && fd < (int)sizeof wakes) wakes[fd] = 1;
    return fd;
}

ssize_t write(int fd, const void *buffer, size_t length) {
    if (fd < 0 || fd >= (int)sizeof wakes || !wakes[fd] || length != 8) return syscall(SYS_write, fd, buffer, length);
    woken = 1;
    return 8;
}

int epoll_wait(int fd, struct epoll_event *events, int most, int timeout) {
    if (woken || timeout == 0) {
        woken = 0;
        return 0;
    }
    if (timeout < 0) {
        long ready = syscall(SYS_epoll_pwait, fd, events, most, 0, NULL, 8);
        if (ready != 0) return (int)ready;
        static const char text[] = "stuck: everything waits, and no timer is set\n";
        if (write(2, text, sizeof text - 1)) {}
        _exit(70);
    }
    nanos += (uint64_t)timeout * 1000000;
    return 0;
}
