#include "placement/policy_program_io.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/pool.h"

struct MoeLineProgram {
    pid_t pid;
    int fd; /* a socket that is both its standard input and output: writing to it never raises a signal */
    MoeStr in; /* read, but not a whole line yet */
};

/* In the new process, where only what is safe after a fork of a threaded program may be called. */
static void become(const char *command, int fd) {
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    setpgid(0, 0);
    if (dup2(fd, 0) < 0 || dup2(fd, 1) < 0)
        _exit(127);
    close_range(3, ~0u, 0); /* nothing of ours stays open in it, such as the links to other ranks */
    execl("/bin/sh", "sh", "-c", command, (char *)NULL);
    _exit(127);
}

MoeStatus moe_line_program_start(const char *command, MoeLineProgram **out) {
    int pair[2];
    *out = NULL;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
        return moe_error_errno("cannot open a connection to '%s'", command);
    pid_t pid = fork();
    if (pid == 0)
        become(command, pair[1]);
    if (pid < 0) {
        MoeStatus st = moe_error_errno("cannot start '%s'", command);
        close(pair[0]);
        close(pair[1]);
        return st;
    }
    setpgid(pid, pid); /* also here: it may not have come to it yet when it is stopped */
    close(pair[1]);
    MoeLineProgram *p = calloc(1, sizeof *p);
    MOE_ASSERT(p, "out of memory for a program's connection");
    p->pid = pid;
    p->fd = pair[0];
    *out = p;
    return NULL;
}

/* How it ended, for a message. */
static MoeStatus ended(MoeLineProgram *p) {
    int status = 0;
    for (int i = 0; i < 20; i++) { /* its end and that of its connection need not come at once */
        pid_t got = waitpid(p->pid, &status, WNOHANG);
        if (got == p->pid) {
            p->pid = 0;
            if (WIFEXITED(status))
                return moe_error(MOE_E_IO, "it ended with exit code %d", WEXITSTATUS(status));
            return moe_error(MOE_E_IO, "it was ended by signal %d", WTERMSIG(status));
        }
        usleep(5000);
    }
    return moe_error(MOE_E_IO, "it closed its output");
}

/* Reads what is there. */
static MoeStatus receive(MoeLineProgram *p) {
    char buf[1 << 16];
    ssize_t k = recv(p->fd, buf, sizeof buf, MSG_DONTWAIT);
    if (k > 0)
        moe_str_append_n(&p->in, buf, (size_t)k);
    else if (k == 0 || (errno != EAGAIN && errno != EINTR))
        return ended(p);
    if (p->in.len > MOE_LINE_PROGRAM_BYTES)
        return moe_error(MOE_E_IO, "it answers more than %u bytes without an end of line",
                         MOE_LINE_PROGRAM_BYTES);
    return NULL;
}

/* Sends what there is room for. */
static MoeStatus transmit(MoeLineProgram *p, const MoeStr *out, size_t *at) {
    ssize_t k = send(p->fd, out->data + *at, out->len - *at, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (k > 0)
        *at += (size_t)k;
    else if (k < 0 && errno != EAGAIN && errno != EINTR)
        return ended(p);
    return NULL;
}

/* Sends all of `out`, then reads up to the end of a line. */
static MoeStatus exchange(MoeLineProgram *p, const MoeStr *out, double seconds) {
    double end = moe_now() + seconds;
    for (size_t at = 0; at < out->len || !p->in.data || !memchr(p->in.data, '\n', p->in.len);) {
        double left = end - moe_now();
        if (left <= 0)
            return moe_error(MOE_E_IO, "no answer within %g seconds", seconds);
        struct pollfd fd = {.fd = p->fd, .events = (short)(POLLIN | (at < out->len ? POLLOUT : 0))};
        int n = poll(&fd, 1, left > 1 ? 1000 : (int)(left * 1000) + 1);
        if (n < 0 && errno != EINTR)
            return moe_error_errno("cannot wait for its answer");
        if (n <= 0)
            continue;
        if (fd.revents & POLLOUT)
            MOE_TRY(transmit(p, out, &at));
        if (fd.revents & (POLLIN | POLLHUP | POLLERR))
            MOE_TRY(receive(p));
    }
    return NULL;
}

MoeStatus moe_line_program_ask(MoeLineProgram *p, const char *line, size_t n, double seconds,
                               MoeStr *answer) {
    MoeStr out = {0};
    moe_str_append_n(&out, line, n);
    moe_str_putc(&out, '\n');
    moe_str_clear(&p->in);
    MoeStatus st = exchange(p, &out, seconds);
    moe_str_free(&out);
    if (st)
        return st;
    moe_str_clear(answer);
    moe_str_append_n(answer, p->in.data,
                     (size_t)((char *)memchr(p->in.data, '\n', p->in.len) - p->in.data));
    return NULL;
}

void moe_line_program_stop(MoeLineProgram *p) {
    if (!p)
        return;
    close(p->fd);
    for (int i = 0; i < 50 && p->pid; i++) {
        if (waitpid(p->pid, NULL, WNOHANG) == p->pid) {
            kill(-p->pid, SIGKILL); /* what it may have left behind */
            p->pid = 0;
            break;
        }
        usleep(2000);
    }
    if (p->pid) {
        kill(-p->pid, SIGKILL);
        waitpid(p->pid, NULL, 0);
    }
    moe_str_free(&p->in);
    free(p);
}
