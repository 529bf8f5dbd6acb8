/* See comm_socket.h. All sockets are nonblocking; time limits are kept with poll(2). */
#include "runtime/comm_socket.h"

#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <math.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/pool.h"

static socklen_t length_of(const MoeAddress *a) {
    return a->any.sa_family == AF_INET ? sizeof a->v4 : sizeof a->v6;
}

/* An IPv4 address that came through an IPv6 socket becomes one of IPv4. */
static void plain(MoeAddress *a) {
    if (a->any.sa_family != AF_INET6 || !IN6_IS_ADDR_V4MAPPED(&a->v6.sin6_addr))
        return;
    MoeAddress v4 = {.v4 = {.sin_family = AF_INET, .sin_port = a->v6.sin6_port}};
    memcpy(&v4.v4.sin_addr, (const char *)&a->v6.sin6_addr + 12, 4);
    *a = v4;
}

void moe_address_text(const MoeAddress *a, char out[80]) {
    char host[INET6_ADDRSTRLEN] = "?";
    if (a->any.sa_family == AF_INET) {
        inet_ntop(AF_INET, &a->v4.sin_addr, host, sizeof host);
        snprintf(out, 80, "%s:%d", host, moe_address_port(a));
    } else {
        inet_ntop(AF_INET6, &a->v6.sin6_addr, host, sizeof host);
        snprintf(out, 80, "[%s]:%d", host, moe_address_port(a));
    }
}

bool moe_address_is_loopback(const MoeAddress *a) {
    if (a->any.sa_family == AF_INET)
        return ntohl(a->v4.sin_addr.s_addr) >> 24 == 127;
    return a->any.sa_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&a->v6.sin6_addr);
}

int moe_address_port(const MoeAddress *a) {
    return ntohs(a->any.sa_family == AF_INET ? a->v4.sin_port : a->v6.sin6_port);
}

void moe_address_set_port(MoeAddress *a, int port) {
    if (a->any.sa_family == AF_INET)
        a->v4.sin_port = htons((uint16_t)port);
    else
        a->v6.sin6_port = htons((uint16_t)port);
}

static bool is_internet(const struct sockaddr *a) {
    return a && (a->sa_family == AF_INET || a->sa_family == AF_INET6);
}

static void copy_address(MoeAddress *out, const struct sockaddr *from) {
    memset(out, 0, sizeof *out);
    memcpy(out, from, from->sa_family == AF_INET ? sizeof out->v4 : sizeof out->v6);
}

size_t moe_address_find(const char *host, MoeAddress *out, size_t n) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list = NULL;
    if (getaddrinfo(host, NULL, &hints, &list) != 0)
        return 0;
    size_t found = 0;
    for (const struct addrinfo *i = list; i && found < n; i = i->ai_next)
        if (is_internet(i->ai_addr))
            copy_address(&out[found++], i->ai_addr);
    freeaddrinfo(list);
    return found;
}

/* A link-local address means nothing without the interface that it is on. */
static bool is_useful(const struct ifaddrs *i) {
    if (!(i->ifa_flags & IFF_UP) || !is_internet(i->ifa_addr))
        return false;
    MoeAddress a;
    copy_address(&a, i->ifa_addr);
    return a.any.sa_family == AF_INET || !IN6_IS_ADDR_LINKLOCAL(&a.v6.sin6_addr);
}

size_t moe_address_own(MoeAddress *out, size_t n) {
    struct ifaddrs *list = NULL;
    if (getifaddrs(&list) != 0)
        return 0;
    size_t found = 0;
    for (int loopback = 0; loopback < 2; loopback++)
        for (const struct ifaddrs *i = list; i && found < n; i = i->ifa_next)
            if (is_useful(i) && !!(i->ifa_flags & IFF_LOOPBACK) == loopback)
                copy_address(&out[found++], i->ifa_addr);
    freeifaddrs(list);
    return found;
}

static void set_no_delay(int fd) {
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static int close_keeping_errno(int fd) {
    int e = errno;
    close(fd);
    errno = e;
    return -1;
}

static int listen_at(const MoeAddress *at, bool both_families, int *out_port) {
    int fd = socket(at->any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    int one = 1, zero = 0;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (both_families)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero);
    if (bind(fd, &at->any, length_of(at)) != 0 || listen(fd, SOMAXCONN) != 0)
        return close_keeping_errno(fd);
    MoeAddress mine;
    moe_socket_ends(fd, &mine, NULL);
    *out_port = moe_address_port(&mine);
    return fd;
}

int moe_socket_listen(const MoeAddress *at, int port, int *out_port) {
    MoeAddress here;
    if (at) {
        here = *at;
        moe_address_set_port(&here, port);
        return listen_at(&here, false, out_port);
    }
    here = (MoeAddress){.v6 = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)}};
    int fd = listen_at(&here, true, out_port);
    if (fd >= 0 || errno == EADDRINUSE || errno == EACCES)
        return fd;
    here = (MoeAddress){.v4 = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)}};
    return listen_at(&here, false, out_port); /* a host without IPv6 */
}

/* Waits until fd can do `events`; false with errno at the deadline. */
static bool wait_for(int fd, short events, double deadline) {
    struct pollfd p = {.fd = fd, .events = events};
    for (;;) {
        double left = deadline - moe_now();
        int n = poll(&p, 1, left > 0 ? (int)ceil(fmin(left, 1e6) * 1000) : 0);
        if (n > 0)
            return true;
        if (n < 0 && errno != EINTR)
            return false;
        if (left <= 0) {
            errno = ETIMEDOUT;
            return false;
        }
    }
}

int moe_socket_connect(const MoeAddress *to, double seconds) {
    double deadline = moe_now() + seconds;
    int fd = socket(to->any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    if (connect(fd, &to->any, length_of(to)) != 0) {
        if (errno != EINPROGRESS && errno != EINTR)
            return close_keeping_errno(fd);
        if (!wait_for(fd, POLLOUT, deadline))
            return close_keeping_errno(fd);
        int e = 0;
        socklen_t n = sizeof e;
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &e, &n);
        if (e) {
            errno = e;
            return close_keeping_errno(fd);
        }
    }
    MoeAddress local, remote; /* a free port of this host may connect to itself */
    moe_socket_ends(fd, &local, &remote);
    if (memcmp(&local, &remote, sizeof local) == 0) {
        errno = ECONNREFUSED;
        return close_keeping_errno(fd);
    }
    set_no_delay(fd);
    return fd;
}

int moe_socket_accept(int listener, double seconds, MoeAddress *out_from) {
    double deadline = moe_now() + seconds;
    for (;;) {
        socklen_t n = sizeof *out_from;
        memset(out_from, 0, sizeof *out_from);
        int fd = accept4(listener, &out_from->any, &n, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            plain(out_from);
            set_no_delay(fd);
            return fd;
        }
        /* The rest are errors of a connection that is gone again. */
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM ||
            errno == EBADF || errno == EINVAL)
            return -1;
        if (!wait_for(listener, POLLIN, deadline))
            return -1;
    }
}

bool moe_socket_send(int fd, const void *data, size_t n, double seconds) {
    double deadline = moe_now() + seconds;
    for (size_t at = 0; at < n;) {
        ssize_t k = send(fd, (const char *)data + at, n - at, MSG_NOSIGNAL);
        if (k > 0)
            at += (size_t)k;
        else if (k < 0 && errno != EAGAIN && errno != EINTR)
            return false;
        else if (!wait_for(fd, POLLOUT, deadline))
            return false;
    }
    return true;
}

bool moe_socket_receive(int fd, void *data, size_t n, double seconds) {
    double deadline = moe_now() + seconds;
    for (size_t at = 0; at < n;) {
        ssize_t k = recv(fd, (char *)data + at, n - at, 0);
        if (k > 0)
            at += (size_t)k;
        else if (k == 0) {
            errno = ECONNRESET;
            return false;
        } else if (errno != EAGAIN && errno != EINTR)
            return false;
        else if (!wait_for(fd, POLLIN, deadline))
            return false;
    }
    return true;
}

void moe_socket_ends(int fd, MoeAddress *out_local, MoeAddress *out_remote) {
    socklen_t n = sizeof *out_local;
    if (out_local) {
        memset(out_local, 0, sizeof *out_local);
        getsockname(fd, &out_local->any, &n);
        plain(out_local);
    }
    n = sizeof *out_remote;
    if (out_remote) {
        memset(out_remote, 0, sizeof *out_remote);
        getpeername(fd, &out_remote->any, &n);
        plain(out_remote);
    }
}
