/* TCP sockets with time limits, for comm_watch and comm_tcp: listen, connect, whole sends and receives. */
#ifndef MOE_RUNTIME_COMM_SOCKET_H
#define MOE_RUNTIME_COMM_SOCKET_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>
#include "base/status.h"

typedef union {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    struct sockaddr_storage storage;
} MoeAddress;

/* "10.0.0.1:29400", "[fe80::1]:29400" */
void moe_address_text(const MoeAddress *a, char out[80]);
bool moe_address_is_loopback(const MoeAddress *a);
int moe_address_port(const MoeAddress *a);
void moe_address_set_port(MoeAddress *a, int port);
/* The first n addresses of host (a name or a number); how many there are, 0 if the name is not known. Port 0. */
size_t moe_address_find(const char *host, MoeAddress *out, size_t n);
/* The first n addresses of this host's interfaces that are up; loopback comes last. Port 0. */
size_t moe_address_own(MoeAddress *out, size_t n);

/* A listening socket at `at` (NULL: all addresses of the host), whose port is `port` (0: any free one; *out_port says which).
 * Sockets are nonblocking, closed on exec, without delay for small messages. -1 with errno set on failure. */
int moe_socket_listen(const MoeAddress *at, int port, int *out_port);
/* A connection, within `seconds`; -1 with errno set. */
int moe_socket_connect(const MoeAddress *to, double seconds);
/* The next connection within `seconds` (0: only one that waits already); -1 with errno set (ETIMEDOUT, EAGAIN). */
int moe_socket_accept(int listener, double seconds, MoeAddress *out_from);
/* All n bytes within `seconds`; false with errno set (ETIMEDOUT; ECONNRESET at the end of the stream). */
bool moe_socket_send(int fd, const void *data, size_t n, double seconds);
bool moe_socket_receive(int fd, void *data, size_t n, double seconds);
void moe_socket_ends(int fd, MoeAddress *out_local,
                     MoeAddress *out_remote); /* either may be NULL */

#endif
