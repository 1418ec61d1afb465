/*
 * A load generator for poems: many connections from one thread, every byte checked.
 *
 * It opens connections to HOST:PORT, reads each poem to its end, compares it with the expected file and prints one
 * line of JSON. taskset and run.py select processors, start servers and write reports. The exit status is 1 if any
 * poem was wrong, short, reset, refused or late.
 *
 *     cc -O2 -o load load.c && taskset -c 1 ./load -e poem.txt -c 64 -t 5 127.0.0.1:10000
 *
 * Latency runs from the *intended* start of a connection to its last byte. With --rate, it includes the wait of
 * connections that could not start because the server stalled.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "tally.h"

enum { CHUNK = 256 * 1024, EVENTS = 32, GRACE_SECONDS = 10 };

struct reader {
    int fd;
    int wrong;         /* a byte differed, or the poem was too long */
    size_t seen;       /* bytes of the poem so far */
    uint64_t intended; /* when it should have begun, ns */
};

static struct {
    struct sockaddr_in to;
    long readers, hold, spread;
    uint64_t count;
    double seconds, rate, pace;
    int receiveBuffer;
} opt = {.readers = 64, .seconds = 5, .count = UINT64_MAX};

static uint64_t opened;  /* connections begun; selects the source address */
static long live;        /* connections open now */
static int poll_;
static char chunk[CHUNK];
static volatile sig_atomic_t stopping;

static void stop(int signal) {
    (void)signal;
    stopping = 1;
}

static void leave(struct reader *r) {
    close(r->fd);
    r->fd = -1;
    live--;
}

/* Binds each of --spread readers to its own source address, for more ports and to stay below limits per source. */
static void bindSource(int fd) {
    uint32_t n = (uint32_t)(opened % (uint64_t)opt.spread);
    struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl((127u << 24) + (1u << 16) + 1 + n)};
    int yes = 1;
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &yes, sizeof yes);
    if (bind(fd, (struct sockaddr *)&from, sizeof from)) die("bind");
}

static void enter(struct reader *r, uint64_t intended) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) die("socket");
    if (opt.spread) bindSource(fd);
    if (opt.receiveBuffer) setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &opt.receiveBuffer, sizeof opt.receiveBuffer);
    *r = (struct reader){.fd = fd, .intended = intended};
    opened++, live++;
    if (connect(fd, (struct sockaddr *)&opt.to, sizeof opt.to) && errno != EINPROGRESS) {
        if (errno == EADDRNOTAVAIL) die("connect"); /* our own limit, not the server's */
        sum.refused++;
        leave(r);
        return;
    }
    struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP | EPOLLET, .data.ptr = r};
    if (epoll_ctl(poll_, EPOLL_CTL_ADD, fd, &e)) die("epoll_ctl");
}

static void finish(struct reader *r) {
    tally(r->intended, r->seen, r->wrong);
    leave(r);
}

static void broken(struct reader *r) {
    if (errno == ECONNREFUSED)
        sum.refused++;
    else
        sum.reset++;
    leave(r);
}

/* Reads up to `most` of the bytes that have arrived; true when the connection has ended. */
static int readOn(struct reader *r, size_t most, uint32_t events) {
    while (most) {
        size_t want = most < CHUNK ? most : CHUNK;
        ssize_t n = recv(r->fd, chunk, want, MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN) return 0;
        if (n < 0) return broken(r), 1;
        if (n == 0) return finish(r), 1;
        if (r->seen + (size_t)n > poemBytes || memcmp(chunk, poem + r->seen, (size_t)n)) r->wrong = 1;
        r->seen += (size_t)n, most -= (size_t)n, sum.bytes += (uint64_t)n;
        /* The end had come before this read, and the read emptied the socket: skip the read that returns 0. */
        if ((size_t)n < want && (events & EPOLLRDHUP) && !(events & (EPOLLERR | EPOLLHUP))) return finish(r), 1;
    }
    return 0;
}

static int wait_(struct epoll_event *events, int milliseconds) {
    int n = epoll_wait(poll_, events, EVENTS, milliseconds);
    if (n < 0 && errno != EINTR) die("epoll_wait");
    return n;
}

/* Begins every connection that is due. Without a rate, a connection is due as soon as a reader is idle. */
static void begin(struct reader **idle, long *idles, uint64_t start) {
    static uint64_t scheduled;
    while (*idles && opened < opt.count) {
        uint64_t t = now();
        uint64_t due = opt.rate > 0 ? start + (uint64_t)(1e9 / opt.rate * (double)scheduled) : t;
        if (stopping || due > t || t >= start + (uint64_t)(opt.seconds * 1e9)) return;
        scheduled++;
        enter(idle[*idles - 1], due);
        if (idle[*idles - 1]->fd < 0) return; /* refused: serve the other readers first */
        --*idles;
    }
}

/* Keeps opt.readers connections open, or begins them at opt.rate, until the time or the count is over. */
static double run(struct reader *readers) {
    struct epoll_event events[EVENTS];
    struct reader **idle = malloc((size_t)opt.readers * sizeof *idle);
    long idles = 0;
    while (idles < opt.readers) idle[idles] = &readers[idles], idles++;
    uint64_t start = now(), end = start + (uint64_t)(opt.seconds * 1e9);
    for (;;) {
        begin(idle, &idles, start);
        int over = stopping || now() >= end || opened >= opt.count;
        if (over && (!live || stopping || now() > end + GRACE_SECONDS * 1000000000ull)) break;
        /* With a rate, poll without a timeout: a timer would add its own delay to every poem. */
        int n = wait_(events, over || opt.rate <= 0 ? 100 : 0);
        for (int i = 0; i < n; i++) {
            struct reader *r = events[i].data.ptr;
            if (!readOn(r, SIZE_MAX, events[i].events)) continue;
            idle[idles++] = r;
            begin(idle, &idles, start); /* at once, so that the server never waits for us */
        }
    }
    free(idle);
    sum.late = (uint64_t)live;
    return (double)((lastEnd > start ? lastEnd : now()) - start) / 1e9;
}

/* Holds opt.hold connections, each reading opt.pace bytes a second, and replaces those that the server ends. */
static double hold(struct reader *readers) {
    struct epoll_event events[EVENTS];
    uint64_t start = now(), tick = start;
    long next = 0;
    for (long i = 0; i < opt.hold && !stopping; i++) {
        enter(&readers[i], now());
        if (i % 100 == 99) usleep(10000); /* slowly: a full backlog costs a second */
    }
    fprintf(stderr, "holding\n");
    while (!stopping) {
        int n = wait_(events, 100);
        for (int i = 0; i < n; i++) {
            struct reader *r = events[i].data.ptr;
            if (!(events[i].events & (EPOLLERR | EPOLLHUP))) continue;
            readOn(r, SIZE_MAX, events[i].events);
            if (r->fd >= 0) leave(r);
            sum.reopened++, enter(r, now());
        }
        /* Read from a tenth of the connections every tenth of a second. */
        if (now() - tick < 100000000 || opt.pace <= 0) continue;
        tick += 100000000;
        for (long k = 0; k < opt.hold / 10 + 1; k++, next = (next + 1) % opt.hold) {
            struct reader *r = &readers[next];
            if (r->fd < 0 || readOn(r, (size_t)opt.pace, 0)) sum.reopened++, enter(r, now());
        }
    }
    sum.reset = 0; /* a server may end slow readers: sum.reopened counts them */
    return (double)(now() - start) / 1e9;
}

static void setAddress(const char *text) {
    const char *colon = strrchr(text, ':');
    char host[64];
    if (!colon || colon - text >= (long)sizeof host) die(text);
    snprintf(host, sizeof host, "%.*s", (int)(colon - text), text);
    opt.to.sin_family = AF_INET;
    opt.to.sin_port = htons((uint16_t)atoi(colon + 1));
    if (inet_pton(AF_INET, host, &opt.to.sin_addr) != 1) die(text);
}

static void usage(void) {
    fputs("load -e FILE [options] HOST:PORT\n"
          "  -e FILE    the poem expected, every byte of it\n"
          "  -c N       connections at a time (64)\n"
          "  -t S       seconds (5)\n"
          "  -n N       at most N connections\n"
          "  -r R       begin R connections a second, whatever the server does (at most -c at a time)\n"
          "  -s N       use N source addresses from 127.1.0.1 on\n"
          "  -b BYTES   receive buffer of each connection (the kernel's smallest is 2304)\n"
          "  -H N       hold N connections until SIGTERM; says \"holding\" on stderr when they are there\n"
          "  -p B       a held connection reads B bytes a second (0: never)\n",
          stderr);
    exit(2);
}

static void options(int argc, char **argv) {
    int o;
    while ((o = getopt(argc, argv, "e:c:t:n:r:s:b:H:p:")) != -1) {
        switch (o) {
        case 'e': readPoem(optarg); break;
        case 'c': opt.readers = atol(optarg); break;
        case 't': opt.seconds = atof(optarg); break;
        case 'n': opt.count = strtoull(optarg, NULL, 10); break;
        case 'r': opt.rate = atof(optarg); break;
        case 's': opt.spread = atol(optarg); break;
        case 'b': opt.receiveBuffer = atoi(optarg); break;
        case 'H': opt.hold = atol(optarg); break;
        case 'p': opt.pace = atof(optarg); break;
        default: usage();
        }
    }
    if (optind + 1 != argc || !poem || opt.readers < 1) usage();
    setAddress(argv[optind]);
}

int main(int argc, char **argv) {
    options(argc, argv);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGTERM, stop);
    signal(SIGINT, stop);
    poll_ = epoll_create1(EPOLL_CLOEXEC);
    struct reader *readers = calloc((size_t)(opt.hold ? opt.hold : opt.readers), sizeof *readers);
    double seconds = opt.hold ? hold(readers) : run(readers);
    return report(seconds);
}
