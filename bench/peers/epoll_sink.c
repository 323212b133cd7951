/* The floor: the least that a server can spend.  A bare epoll loop that answers what the load sends, looks at the first four
 * letters of a command and at each octet of a message once, keeps nothing, limits nothing and checks nothing.  It is no server.
 *
 *     epoll_sink PORT [--lmtp]
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { COMMAND, DATA, BDAT, CLOSING };

#define LINE 2048

struct connection {
    int fd, state, matched, recipients, last;
    size_t chunk; /* octets of the BDAT chunk that are to come */
    size_t held;  /* octets in line */
    char line[LINE];
};

static char input[1 << 18];
static char output[1 << 18];
static size_t written;
static int lmtp;

static void answer(const char *reply) {
    size_t size = strlen(reply);
    if (written + size <= sizeof output) {
        memcpy(output + written, reply, size);
        written += size;
    }
}

static void accepted(struct connection *c) {
    int replies = lmtp ? c->recipients : 1;
    while (replies-- > 0) answer("250 2.0.0 OK\r\n");
    c->recipients = 0;
}

static void command(struct connection *c, const char *line, size_t size) {
    if (size >= 4 && !strncasecmp(line, "MAIL", 4)) answer("250 2.1.0 OK\r\n");
    else if (size >= 4 && !strncasecmp(line, "RCPT", 4)) c->recipients++, answer("250 2.1.5 OK\r\n");
    else if (size >= 4 && !strncasecmp(line, "DATA", 4)) {
        answer("354 Go\r\n");
        c->state = DATA;
        c->matched = 2; /* as after a line end */
    } else if (size >= 4 && !strncasecmp(line, "BDAT", 4)) {
        char *end;
        c->chunk = strtoul(line + 4, &end, 10);
        c->last = !strncasecmp(end, " LAST", 5);
        c->state = BDAT;
    } else if (size >= 4 && (!strncasecmp(line, "EHLO", 4) || !strncasecmp(line, "LHLO", 4)))
        answer("250-localhost\r\n250-PIPELINING\r\n250-SIZE 67108864\r\n250-8BITMIME\r\n250-AUTH PLAIN\r\n250 CHUNKING\r\n");
    else if (size >= 4 && !strncasecmp(line, "AUTH", 4)) answer("235 2.7.0 OK\r\n");
    else if (size >= 4 && !strncasecmp(line, "QUIT", 4)) answer("221 2.0.0 Bye\r\n"), c->state = CLOSING;
    else answer("250 2.0.0 OK\r\n");
}

/* Where the message ends within p..end, or NULL.  `matched` octets of CR LF . CR LF stand before p. */
static const char *message_end(struct connection *c, const char *p, const char *end) {
    int s = c->matched;
    while (p < end) {
        if (s == 0) {
            p = memchr(p, '\r', (size_t)(end - p));
            if (!p) break;
            s = 1;
            p++;
            continue;
        }
        char o = *p++;
        if (s == 4 && o == '\n') return p;
        if (o == '\r') s = s == 3 ? 4 : 1;
        else if (s == 1 && o == '\n') s = 2;
        else if (s == 2 && o == '.') s = 3;
        else s = 0;
    }
    c->matched = s;
    return NULL;
}

static void feed(struct connection *c, const char *p, const char *end) {
    while (p < end || (c->state == BDAT && !c->chunk)) {
        if (c->state == DATA) {
            const char *after = message_end(c, p, end);
            if (!after) return;
            p = after;
            c->state = COMMAND;
            accepted(c);
        } else if (c->state == BDAT) {
            size_t take = (size_t)(end - p) < c->chunk ? (size_t)(end - p) : c->chunk;
            p += take;
            if (c->chunk -= take) return;
            c->state = COMMAND;
            if (c->last) accepted(c);
            else answer("250 2.0.0 OK\r\n");
        } else if (c->state == COMMAND) {
            const char *newline = memchr(p, '\n', (size_t)(end - p));
            size_t size = (size_t)((newline ? newline + 1 : end) - p);
            if (c->held || !newline) {
                if (c->held + size >= LINE) { c->state = CLOSING; return; }
                memcpy(c->line + c->held, p, size);
                c->held += size;
                c->line[c->held] = 0;
                if (newline) {
                    size_t held = c->held;
                    c->held = 0;
                    command(c, c->line, held);
                }
            } else
                command(c, p, size);
            p += size;
        } else
            return;
    }
}

static int flush(struct connection *c) {
    size_t done = 0;
    while (done < written) {
        ssize_t sent = send(c->fd, output + done, written - done, MSG_NOSIGNAL);
        if (sent >= 0) done += (size_t)sent;
        else if (errno == EAGAIN) {
            struct pollfd wait = {c->fd, POLLOUT, 0};
            poll(&wait, 1, 1000);
        } else
            return -1;
    }
    written = 0;
    return 0;
}

static void drop(struct connection *c) {
    written = 0;
    close(c->fd);
    free(c);
}

static void readable(struct connection *c) {
    ssize_t size = recv(c->fd, input, sizeof input, 0);
    if (size < 0 && errno == EAGAIN) return;
    if (size <= 0) { drop(c); return; }
    feed(c, input, input + size);
    if (flush(c) < 0 || c->state == CLOSING) drop(c);
}

static void acceptable(int epoll, int listener) {
    int fd, yes = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct connection *c = malloc(sizeof *c);
        if (!c) { close(fd); return; }
        memset(c, 0, offsetof(struct connection, line));
        c->fd = fd;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        answer(lmtp ? "220 localhost LMTP\r\n" : "220 localhost ESMTP\r\n");
        if (flush(c) < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0) drop(c);
    }
}

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    lmtp = argc > 2 && !strcmp(argv[2], "--lmtp");
    signal(SIGPIPE, SIG_IGN);
    int yes = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 4096) < 0) {
        perror("epoll_sink");
        return 1;
    }
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[512];
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int count = epoll_wait(epoll, events, 512, -1);
        for (int i = 0; i < count; i++) {
            if (events[i].data.ptr) readable(events[i].data.ptr);
            else acceptable(epoll, listener);
        }
    }
}
