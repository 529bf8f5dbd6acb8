/* nccl.h: bytes between ranks, through shared memory, a chunk at a time; and the thread that has streams go on, since other processes
 * wait for what is in them. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "tests/sim/nccl.h"

CUresult cuCtxSetCurrent(CUcontext c);
CUresult cuStreamQuery(CUstream s);

/* ---- the room ---- */

bool moe_sim_nccl_enter(ncclComm_t c, const char *gpu) {
    c->room_bytes = sizeof(MoeSimRoom) + sizeof(MoeSimWay) * (size_t)c->n * (size_t)c->n;
    int fd = shm_open(c->name, O_CREAT | O_RDWR, 0600);
    void *p = fd >= 0 && ftruncate(fd, (off_t)c->room_bytes) == 0
                  ? mmap(NULL, c->room_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
                  : MAP_FAILED;
    if (fd >= 0)
        close(fd);
    if (p == MAP_FAILED)
        return false;
    c->room = p;
    memcpy(c->room->seats[c->rank].gpu, gpu, 16);
    c->room->seats[c->rank].pid = (int)getpid();
    if (++c->room->joined == c->n)
        shm_unlink(c->name); /* all have it */
    return true;
}

void moe_sim_nccl_leave(ncclComm_t c) {
    if (!c->room)
        return;
    if (c->room->joined < c->n)
        shm_unlink(c->name);
    munmap(c->room, c->room_bytes);
    c->room = NULL;
}

bool moe_sim_nccl_complete(ncclComm_t c) {
    return c->room->joined >= c->n;
}

/* Dead, or dead and not yet waited for by its parent. */
static bool is_gone(int pid) {
    char path[64], state = 0;
    if (kill(pid, 0) && errno == ESRCH)
        return true;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *f = fopen(path, "r");
    int n = f ? fscanf(f, "%*d (%*[^)]) %c", &state) : 0;
    if (f)
        fclose(f);
    return n == 1 && state == 'Z';
}

/* ---- moving ---- */

static void copy(char *to, const char *from, size_t n, const char *device) {
    moe_sim_memory_range(device, n, true);
    memcpy(to, from, n);
    moe_sim_memory_range(device, n, false);
}

/* One chunk, or none. An empty message is a chunk of no bytes. */
static bool move_one(MoeSimGroup *g, MoeSimMessage *m) {
    ncclComm_t c = g->comm;
    int from = m->send ? c->rank : m->peer, to = m->send ? m->peer : c->rank;
    MoeSimWay *w = &c->room->ways[from * c->n + to];
    uint64_t written = w->written, taken = w->taken;
    size_t left = m->bytes - m->done;
    if (m->send) {
        if (written != taken)
            return false;
        w->total = (int64_t)m->bytes;
        w->bytes = (int64_t)(left < MOE_SIM_NCCL_CHUNK ? left : MOE_SIM_NCCL_CHUNK);
        copy(w->data, m->at + m->done, (size_t)w->bytes, m->at + m->done);
    } else {
        if (written == taken)
            return false;
        if (w->total != (int64_t)m->bytes) {
            c->room->broken = 1;
            moe_sim_nccl_fail(c, ncclInvalidUsage, "rank %d sends %lld bytes, rank %d receives %zu",
                              from, (long long)w->total, to, m->bytes);
            return false;
        }
        copy(m->at + m->done, w->data, (size_t)w->bytes, m->at + m->done);
    }
    m->done += (size_t)w->bytes;
    if (m->send)
        w->written = written + 1;
    else
        w->taken = taken + 1;
    return true;
}

static bool is_over(const MoeSimMessage *m, bool moved) {
    return m->done == m->bytes && (m->bytes || moved);
}

/* Whether message i is the first of its way that is not over: they go in order. */
static bool is_next(const MoeSimGroup *g, size_t i) {
    for (size_t k = 0; k < i; k++)
        if (g->messages[k].send == g->messages[i].send &&
            g->messages[k].peer == g->messages[i].peer)
            return false;
    return true;
}

static void look_for_the_dead(MoeSimGroup *g) {
    for (size_t i = 0; i < g->n && g->comm->state == ncclSuccess; i++)
        if (is_gone(g->comm->room->seats[g->messages[i].peer].pid))
            moe_sim_nccl_fail(g->comm, ncclRemoteError, "rank %d is gone", g->messages[i].peer);
}

static bool check_memory(MoeSimGroup *g) {
    for (size_t i = 0; i < g->n; i++)
        if (!g->messages[i].done && g->messages[i].bytes &&
            !moe_sim_memory_holds((CUdeviceptr)(uintptr_t)g->messages[i].at,
                                  g->messages[i].bytes)) {
            moe_sim_nccl_fail(g->comm, ncclUnhandledCudaError,
                              "%zu bytes at %p are not all device memory", g->messages[i].bytes,
                              (void *)g->messages[i].at);
            return false;
        }
    return true;
}

/* Messages that are over leave the list. */
static void move_all(MoeSimGroup *g) {
    for (bool any = true; any;) {
        any = false;
        for (size_t i = 0; i < g->n; i++) {
            bool moved = is_next(g, i) && move_one(g, &g->messages[i]);
            any |= moved;
            if (!is_over(&g->messages[i], moved))
                continue;
            memmove(&g->messages[i], &g->messages[i + 1], (g->n - i - 1) * sizeof *g->messages);
            g->n--;
            i--;
        }
    }
}

/* An error leaves the stream standing, until the communicator is aborted. */
bool moe_sim_nccl_move(void *ctx) {
    MoeSimGroup *g = ctx;
    ncclComm_t c = g->comm;
    if (g->over)
        return true;
    if (!c->aborted && c->state <= ncclSuccess && c->room->broken)
        moe_sim_nccl_fail(c, ncclInvalidUsage, "sizes of another rank differ");
    bool sound = !c->aborted && (c->state == ncclSuccess || c->state == ncclInProgress);
    if (sound && check_memory(g))
        move_all(g);
    if (sound && g->n && moe_sim_nccl_fault("notice") >= 0)
        look_for_the_dead(g);
    if (g->n && !c->aborted)
        return false;
    g->over = true;
    c->under_way--;
    return true;
}

/* ---- going on ---- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static MoeSimGroup *driven;
static bool running;

/* Groups that are over go; of another, its stream is asked. */
static bool look_at_first(CUstream *stream, CUcontext *context) {
    pthread_mutex_lock(&lock);
    MoeSimGroup *g = driven;
    while (g && g->over) {
        driven = g->next;
        free(g->messages);
        free(g);
        g = driven;
    }
    if (g) {
        driven = g->next; /* to the end: each has its turn */
        MoeSimGroup **end = &driven;
        while (*end)
            end = &(*end)->next;
        g->next = NULL;
        *end = g;
        *stream = g->stream;
        *context = g->comm->context;
    }
    pthread_mutex_unlock(&lock);
    return g != NULL;
}

static void *drive(void *unused) {
    (void)unused;
    for (;;) {
        CUstream s;
        CUcontext c;
        bool any = look_at_first(&s, &c);
        if (any && !cuCtxSetCurrent(c))
            for (int i = 0; i < 64 && cuStreamQuery(s) == CUDA_ERROR_NOT_READY; i++)
                ;
        usleep(any ? 100 : 500);
    }
    return NULL;
}

void moe_sim_nccl_drive(MoeSimGroup *g) {
    pthread_t t;
    pthread_mutex_lock(&lock);
    g->next = driven;
    driven = g;
    if (!running && pthread_create(&t, NULL, drive, NULL) == 0) {
        pthread_detach(t);
        running = true;
    }
    pthread_mutex_unlock(&lock);
}
