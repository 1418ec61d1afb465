/*
 * A poetry server in C that makes the fast port's system calls: what its promise costs without Python.
 *
 * A connection inherits a reset from its listener. The server sends the poem and the end in one segment. 100 ms
 * later it looks at the connection: one that both sides have closed is closed. Of any other the server takes the
 * reset back, reads what the client writes, and closes after the client. It has no deadlines, limits, counts or
 * records, and it serves only poems that fit into the send buffer.
 *
 *     cc -O2 -o promise promise.c && ./promise HOST PORT FILE
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "tally.h"

enum { BATCH = 64, EVENTS = 64, SOON_NS = 100000000, MOST_WAITING = 1 << 16 };

static const struct linger RESET = {1, 0}, END = {0, 0};

/* A ring of the connections to look at. All wait equally long, so it is in order of time. */
static struct {
    uint64_t due;
    int fd;
} waiting[MOST_WAITING];
static unsigned first, next;

static int listener, poll_;

static void setLinger(int fd, const struct linger *linger) {
    setsockopt(fd, SOL_SOCKET, SO_LINGER, linger, sizeof *linger);
}

/* How many connections are in the backlog: tcpi_unacked of a listening socket. */
static unsigned countWaiting(void) {
    struct tcp_info info;
    socklen_t size = offsetof(struct tcp_info, tcpi_unacked) + sizeof info.tcpi_unacked;
    return getsockopt(listener, IPPROTO_TCP, TCP_INFO, &info, &size) ? 0 : info.tcpi_unacked;
}

static int isOver(int fd) {
    unsigned char state = 0;
    socklen_t size = sizeof state;
    return !getsockopt(fd, IPPROTO_TCP, TCP_INFO, &state, &size) && state == TCP_CLOSE;
}

static void acceptSome(void) {
    unsigned backlog = 1; /* or more: epoll says so */
    uint64_t due = now() + SOON_NS;
    for (int i = 0; i < BATCH && next - first < MOST_WAITING; i++) {
        if (!backlog && !(backlog = countWaiting())) return;
        backlog--;
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0) return;
        ssize_t sent = send(fd, poem, poemBytes, MSG_DONTWAIT | MSG_MORE | MSG_NOSIGNAL);
        if (sent != (ssize_t)poemBytes || shutdown(fd, SHUT_WR)) {
            close(fd);
            continue;
        }
        waiting[next % MOST_WAITING].due = due;
        waiting[next++ % MOST_WAITING].fd = fd;
    }
}

/* Reads and drops what a client has written; closes the connection at the client's end. */
static void drain(int fd) {
    static char dropped[65536];
    ssize_t count;
    while ((count = recv(fd, dropped, sizeof dropped, MSG_DONTWAIT)) > 0) {
    }
    if (count == 0 || errno != EAGAIN) close(fd);
}

static void lookAt(int fd) {
    if (isOver(fd)) {
        close(fd);
        return;
    }
    setLinger(fd, &END);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(poll_, EPOLL_CTL_ADD, fd, &event)) close(fd);
}

/* Looks at the connections that are due; returns the milliseconds until the next one is, or -1. */
static int lookAtDue(void) {
    uint64_t time = now();
    while (first != next && waiting[first % MOST_WAITING].due <= time) lookAt(waiting[first++ % MOST_WAITING].fd);
    return first == next ? -1 : (int)((waiting[first % MOST_WAITING].due - time + 999999) / 1000000);
}

static void listen_(const char *host, const char *port) {
    int yes = 1;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    inet_pton(AF_INET, host, &at.sin_addr);
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    setLinger(listener, &RESET);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 4096)) die("listen");
    poll_ = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
    if (epoll_ctl(poll_, EPOLL_CTL_ADD, listener, &event)) die("epoll_ctl");
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    readPoem(argv[3]);
    listen_(argv[1], argv[2]);
    for (;;) {
        struct epoll_event events[EVENTS];
        int count = epoll_wait(poll_, events, EVENTS, lookAtDue());
        for (int i = 0; i < count; i++) {
            if (events[i].data.fd == listener)
                acceptSome();
            else
                drain(events[i].data.fd);
        }
    }
}
