/*
 * A load generator for distant readers: it plays the network and all the clients on it.
 *
 * Loopback acknowledges every byte before `send` returns, so a server there never waits for a client. Here a TUN device
 * is the wire, and this program everything beyond it. It speaks just enough TCP to read poems, and answers each packet
 * after a whole round trip. That needs no netem in the kernel, and costs a fraction of real client sockets on the same
 * machine. It sends no data, so it resends none. It drops segments that come out of order; the server's kernel sends
 * them again.
 *
 *     cc -O2 -o far far.c && ./far -e poem.txt -c 4000 -t 5 -d 10 0.0.0.0:10000
 *
 * The server must listen on all addresses; this program uses only the port of HOST:PORT. With -r, a mask as in
 * rps_cpus (see Documentation/networking/scaling.rst), the server's kernel receives on those processors. It needs
 * root; run it in its own network namespace to leave no device behind. The rest is as in load.c.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <linux/virtio_net.h>
#include <poll.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "tally.h"

enum {
    SERVER = (10 << 24) + (77 << 16) + 1, /* 10.77.0.1; clients are 10.77.1.1 to .250 */
    ADDRESSES = 250,
    FIRST_PORT = 1024,
    PORTS = 64 * 1024 - FIRST_PORT,
    PENDING = 1 << 16,
    RETRY_SECONDS = 1,
    GRACE_SECONDS = 10,
};

enum state { IDLE, CALLING, READING };

struct reader {
    enum state state;
    uint32_t address;
    uint16_t port;
    uint32_t next;     /* sequence number of our next byte */
    uint32_t expected; /* sequence number of the server's next byte */
    uint32_t turn;     /* connections so far; selects an unused port and address */
    int wrong;
    size_t seen;
    uint64_t intended, called; /* ns */
};

/* A packet for the device: the device's header, then IP, then TCP with room for the options of a SYN. */
struct packet {
    struct virtio_net_hdr device;
    struct iphdr ip;
    struct tcphdr tcp;
    uint8_t options[8];
} __attribute__((packed));

static struct {
    uint64_t due;
    size_t length;
    struct packet packet;
} wire[PENDING]; /* the packets on their way to the server, in order of arrival */
static uint32_t wireHead, wireTail;

static struct {
    long readers;
    double seconds;
    uint64_t roundTrip; /* ns */
    const char *receivers;
    uint16_t port;
} opt = {.readers = 64, .seconds = 5};

static struct reader *readers;
static long *idle, idles;
static int device;

static void openDevice(void) {
    struct ifreq r = {.ifr_name = "far0", .ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR};
    struct sockaddr_in *address = (struct sockaddr_in *)&r.ifr_addr;
    int s = socket(AF_INET, SOCK_DGRAM, 0);
    device = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (s < 0 || device < 0 || ioctl(device, TUNSETIFF, &r)) die("/dev/net/tun");
    /* Work like a network card: no checksums in software, and large segments in one piece. */
    if (ioctl(device, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)) die("TUNSETOFFLOAD");
    r.ifr_qlen = 20000;
    if (ioctl(s, SIOCSIFTXQLEN, &r)) die("SIOCSIFTXQLEN");
    *address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(SERVER)};
    if (ioctl(s, SIOCSIFADDR, &r)) die("SIOCSIFADDR");
    address->sin_addr.s_addr = htonl(0xffff0000u);
    if (ioctl(s, SIOCSIFNETMASK, &r)) die("SIOCSIFNETMASK");
    r.ifr_flags = IFF_UP | IFF_RUNNING;
    if (ioctl(s, SIOCSIFFLAGS, &r)) die("SIOCSIFFLAGS");
    close(s);
}

/* Lets other processors receive, as with a network card. By default, the process that writes to the device does. */
static void steer(const char *processors) {
    static const char path[] = "/sys/class/net/far0/queues/rx-0/rps_cpus";
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, processors, strlen(processors)) < 0) die(path);
    close(fd);
}

static uint16_t fold(uint32_t total) {
    while (total >> 16) total = (total & 0xffff) + (total >> 16);
    return (uint16_t)total;
}

static uint32_t add(const void *data, size_t bytes) {
    uint32_t total = 0;
    for (const uint8_t *at = data; bytes; at += 2, bytes -= 2) {
        uint16_t word;
        memcpy(&word, at, 2);
        total += word;
    }
    return total;
}

/* Queues a packet of a reader, to arrive after a round trip. */
static void post(const struct reader *r, int syn, int fin) {
    static const uint8_t options[8] = {2, 4, 1460 >> 8, 1460 & 255, 1, 3, 3, 8}; /* segment size, window scale */
    if (wireTail - wireHead == PENDING) die("too many packets under way");
    struct packet *p = &wire[wireTail % PENDING].packet;
    size_t tcpBytes = sizeof p->tcp + (syn ? sizeof options : 0), bytes = sizeof p->ip + tcpBytes;
    memset(p, 0, sizeof *p);
    p->device.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM; /* no TCP checksum: sender and receiver are the same kernel */
    p->device.csum_start = sizeof p->ip;
    p->device.csum_offset = offsetof(struct tcphdr, check);
    p->ip = (struct iphdr){.version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_TCP, .tot_len = htons((uint16_t)bytes),
                           .saddr = htonl(r->address), .daddr = htonl(SERVER)};
    p->ip.check = (uint16_t)~fold(add(&p->ip, sizeof p->ip));
    p->tcp = (struct tcphdr){.source = htons(r->port), .dest = htons(opt.port), .seq = htonl(r->next),
                             .ack_seq = htonl(syn ? 0 : r->expected), .doff = (uint16_t)(tcpBytes / 4) & 15,
                             .syn = syn & 1, .fin = fin & 1, .ack = !syn, .window = 0xffff};
    if (syn) memcpy(p->options, options, sizeof options);
    /* The pseudo header of RFC 9293, 3.1; the kernel adds the rest if it needs the checksum. */
    p->tcp.check = fold(add(&p->ip.saddr, 8) + htons(IPPROTO_TCP) + htons((uint16_t)tcpBytes));
    wire[wireTail % PENDING].length = sizeof p->device + bytes;
    wire[wireTail % PENDING].due = now() + opt.roundTrip;
    wireTail++;
}

static void deliver(void) {
    uint64_t t = now();
    for (; wireHead != wireTail && wire[wireHead % PENDING].due <= t; wireHead++)
        if (write(device, &wire[wireHead % PENDING].packet, wire[wireHead % PENDING].length) < 0 && errno != EAGAIN)
            die("write");
}

static void call(long i) {
    struct reader *r = &readers[i];
    long own = PORTS / opt.readers; /* each reader has its own ports, so a port identifies the reader */
    r->state = CALLING;
    r->port = (uint16_t)(FIRST_PORT + i + opt.readers * (r->turn % own));
    r->address = SERVER + 256 + (uint32_t)(r->turn / own % ADDRESSES);
    r->turn++;
    r->wrong = 0, r->seen = 0;
    r->intended = r->called = now();
    r->next = (uint32_t)(r->intended / 4000); /* RFC 9293, 3.4.1: never lower than in an earlier connection */
    post(r, 1, 0);
}

static void finish(long i) {
    readers[i].state = IDLE;
    idle[idles++] = i;
}

/* Compares new text, which is in order, with the poem. */
static void take(struct reader *r, const char *text, size_t bytes) {
    if (r->seen + bytes > poemBytes || memcmp(text, poem + r->seen, bytes)) r->wrong = 1;
    r->seen += bytes, r->expected += (uint32_t)bytes, sum.bytes += bytes;
}

static void receive(const char *data, size_t bytes) {
    const struct iphdr *ip = (const struct iphdr *)data;
    const struct tcphdr *tcp = (const struct tcphdr *)(data + sizeof *ip);
    if (bytes < sizeof *ip + sizeof *tcp || ip->version != 4 || ip->protocol != IPPROTO_TCP) return;
    long port = ntohs(tcp->dest);
    if (port < FIRST_PORT) return;
    long i = (port - FIRST_PORT) % opt.readers;
    struct reader *r = &readers[i];
    if (r->state == IDLE || r->port != port || htonl(r->address) != ip->daddr) return; /* of an earlier connection */
    if (tcp->rst) {
        r->state == CALLING ? sum.refused++ : sum.reset++;
        finish(i);
        return;
    }
    if (tcp->syn) {
        if (r->state == CALLING) r->next++, r->state = READING;
        r->expected = ntohl(tcp->seq) + 1;
        post(r, 0, 0);
        return;
    }
    size_t skip = sizeof *ip + tcp->doff * 4u;
    size_t text = ntohs(ip->tot_len) - skip;
    int inOrder = ntohl(tcp->seq) == r->expected;
    if (inOrder && text) take(r, data + skip, text);
    if (inOrder && tcp->fin) {
        r->expected++;
        post(r, 0, 1);
        tally(r->intended, r->seen, r->wrong);
        finish(i);
    } else if (text || tcp->fin) {
        post(r, 0, 0);
    }
}

/* Sends a SYN again if the backlog was full, as any client does. */
static void callAgain(void) {
    static uint64_t last;
    uint64_t t = now();
    if (t - last < RETRY_SECONDS * 1000000000ull / 10) return;
    last = t;
    for (long i = 0; i < opt.readers; i++) {
        struct reader *r = &readers[i];
        if (r->state != CALLING || t - r->called < RETRY_SECONDS * 1000000000ull + opt.roundTrip) continue;
        r->called = t, sum.reopened++;
        post(r, 1, 0);
    }
}

static void wait_(void) {
    struct pollfd p = {.fd = device, .events = POLLIN};
    struct timespec most = {.tv_nsec = 100000000};
    if (wireHead != wireTail) {
        uint64_t t = now(), due = wire[wireHead % PENDING].due;
        most.tv_nsec = due > t ? (long)(due - t) : 0;
    }
    if (most.tv_nsec > 100000000) most.tv_nsec = 100000000;
    if (ppoll(&p, 1, &most, NULL) < 0 && errno != EINTR) die("ppoll");
}

static double run(void) {
    static char data[sizeof(struct virtio_net_hdr) + 65536];
    uint64_t start = now(), end = start + (uint64_t)(opt.seconds * 1e9), t;
    for (long i = 0; i < opt.readers; i++) idle[idles++] = i;
    while ((t = now()) < end || (idles < opt.readers && t < end + GRACE_SECONDS * 1000000000ull) || wireHead != wireTail) {
        while (t < end && idles) call(idle[--idles]);
        deliver();
        callAgain();
        ssize_t n = 0;
        for (int burst = 0; burst < 32; burst++) {
            n = read(device, data, sizeof data);
            if (n < 0) break;
            receive(data + sizeof(struct virtio_net_hdr), (size_t)n - sizeof(struct virtio_net_hdr));
        }
        if (n < 0 && !(t < end && idles)) wait_();
    }
    sum.late = (uint64_t)(opt.readers - idles);
    return (double)((lastEnd > start ? lastEnd : now()) - start) / 1e9;
}

int main(int argc, char **argv) {
    int o;
    while ((o = getopt(argc, argv, "e:c:t:d:r:")) != -1) {
        switch (o) {
        case 'e': readPoem(optarg); break;
        case 'c': opt.readers = atol(optarg); break;
        case 't': opt.seconds = atof(optarg); break;
        case 'd': opt.roundTrip = (uint64_t)(atof(optarg) * 2e6); break; /* milliseconds each way */
        case 'r': opt.receivers = optarg; break;
        default: return 2;
        }
    }
    const char *port = optind + 1 == argc ? strrchr(argv[optind], ':') : NULL;
    if (!port || !poem || opt.readers < 1 || opt.readers > PORTS) {
        fputs("far -e FILE [-c CONNECTIONS] [-t SECONDS] [-d MILLISECONDS] [-r PROCESSORS] HOST:PORT\n", stderr);
        return 2;
    }
    opt.port = (uint16_t)atoi(port + 1);
    readers = calloc((size_t)opt.readers, sizeof *readers);
    idle = calloc((size_t)opt.readers, sizeof *idle);
    openDevice();
    if (opt.receivers) steer(opt.receivers);
    return report(run());
}
