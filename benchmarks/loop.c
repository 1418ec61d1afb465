/*
 * The simplest poetry server: accept, send, close, one client after the other.
 *
 * It shows what a poem costs the kernel, and is the measure for large poems: its `send` blocks until the kernel has
 * the whole poem. It reads no input, so a client that wrote first may get a short poem. It has no deadlines, limits or
 * records.
 *
 *     cc -O2 -o loop loop.c && ./loop HOST PORT FILE
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static void die(const char *what) {
    perror(what);
    exit(1);
}

int main(int argc, char **argv) {
    struct stat s;
    int yes = 1;
    if (argc != 4) return 2;
    int file = open(argv[3], O_RDONLY);
    if (file < 0 || fstat(file, &s)) die(argv[3]);
    const char *poem = mmap(NULL, (size_t)s.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, file, 0);
    if (poem == MAP_FAILED) die(argv[3]);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[2]))};
    inet_pton(AF_INET, argv[1], &at.sin_addr);
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 4096)) die("listen");
    for (;;) {
        int client = accept(listener, NULL, NULL);
        if (client < 0) continue;
        off_t sent = 0;
        while (sent < s.st_size) {
            ssize_t n = send(client, poem + sent, (size_t)(s.st_size - sent), MSG_NOSIGNAL);
            if (n < 0) break;
            sent += n;
        }
        close(client);
    }
}
