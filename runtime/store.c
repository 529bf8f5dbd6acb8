/* Slots outside the slab, and the threads that fill and empty them. See store.h. */
#include "runtime/store.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/str.h"

#define N_THREADS  2
#define SLOT_ALIGN 4096

typedef struct {
    int64_t bytes, offset; /* capacity; place in the file */
    char *memory;          /* NULL: in the file */
    int64_t used;          /* the most that was ever in it */
} Slot;

typedef struct {
    size_t ticket, slot;
    bool load;
    char *data;
    int64_t n;
} Job;

typedef struct {
    int under_way;
    MoeStatus failed;
} Ticket;

struct MoeStore {
    Slot *slots;
    size_t n_slots;
    Ticket *tickets;
    size_t n_tickets;
    int fd; /* -1: in memory */
    char *dir, *who;
    bool warned, stop;
    int64_t moved;
    Job *jobs; /* a queue: [first, first + n) of cap, wrapping */
    size_t first, n, cap;
    pthread_mutex_t lock; /* of all the above but the slots of jobs under way */
    pthread_cond_t work, done;
    pthread_t threads[N_THREADS];
    int n_threads;
};

/* ---- one copy ---- */

/* 0, or errno. */
static int write_all(int fd, const char *data, int64_t n, int64_t at) {
    while (n > 0) {
        ssize_t k = pwrite(fd, data, (size_t)n, at);
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0)
            return k ? errno : ENOSPC;
        data += k;
        at += k;
        n -= k;
    }
    return 0;
}

/* 0, or errno; the file's end is EIO. */
static int read_all(int fd, char *data, int64_t n, int64_t at) {
    while (n > 0) {
        ssize_t k = pread(fd, data, (size_t)n, at);
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0)
            return k ? errno : EIO;
        data += k;
        at += k;
        n -= k;
    }
    return 0;
}

static MoeStatus slot_memory(Slot *t) {
    void *p;
    MOE_TRY(moe_alloc_big((size_t)t->bytes, "offloaded activations", &p));
    t->memory = p;
    return NULL;
}

/* The file does not take it: into memory, for good. */
static MoeStatus keep_in_memory(MoeStore *s, Slot *t, int error) {
    pthread_mutex_lock(&s->lock);
    bool first = !s->warned;
    s->warned = true;
    pthread_mutex_unlock(&s->lock);
    if (first)
        moe_warn("%soffloaded activations cannot be written to a file in %s: %s; those that do not "
                 "fit stay in memory from now on (--offload-to DIR names another place)",
                 s->who, s->dir, strerror(error));
    return moe_status_prefix(slot_memory(t), "%s is full (%s)", s->dir, strerror(error));
}

static MoeStatus run_job(MoeStore *s, const Job *j) {
    Slot *t = &s->slots[j->slot];
    if (j->load && t->memory) {
        memcpy(j->data, t->memory, (size_t)j->n);
    } else if (j->load) {
        int error = read_all(s->fd, j->data, j->n, t->offset);
        if (error)
            return moe_error(MOE_E_IO,
                             "offloaded activations cannot be read back from the file in %s: %s; "
                             "the last checkpoint is as it was",
                             s->dir, strerror(error));
    } else {
        int error = t->memory ? 0 : s->fd < 0 ? -1 : write_all(s->fd, j->data, j->n, t->offset);
        if (error)
            MOE_TRY(error > 0 ? keep_in_memory(s, t, error) : slot_memory(t));
        if (t->memory)
            memcpy(t->memory, j->data, (size_t)j->n);
        t->used = j->n > t->used ? j->n : t->used;
    }
    return NULL;
}

/* ---- threads ---- */

static void *thread_main(void *arg) {
    MoeStore *s = arg;
    pthread_mutex_lock(&s->lock);
    for (;;) {
        while (!s->n && !s->stop)
            pthread_cond_wait(&s->work, &s->lock);
        if (!s->n)
            break;
        Job j = s->jobs[s->first];
        s->first = (s->first + 1) % s->cap;
        s->n--;
        pthread_mutex_unlock(&s->lock);
        MoeStatus st = run_job(s, &j);
        pthread_mutex_lock(&s->lock);
        Ticket *t = &s->tickets[j.ticket];
        if (t->failed)
            moe_status_free(st);
        else
            t->failed = st;
        s->moved += j.load ? 0 : j.n;
        if (--t->under_way == 0)
            pthread_cond_broadcast(&s->done);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

static MoeStatus start_threads(MoeStore *s) {
    while (s->n_threads < N_THREADS) {
        int error = pthread_create(&s->threads[s->n_threads], NULL, thread_main, s);
        if (error)
            return moe_error(MOE_E_IO, "cannot start a thread that offloads activations: %s",
                             strerror(error));
        s->n_threads++;
    }
    return NULL;
}

/* ---- public ---- */

MoeStatus moe_store_create(const int64_t *slot_bytes, size_t n, size_t n_tickets, MoeStore **out) {
    MoeStore *s = calloc(1, sizeof *s);
    if (!s)
        return moe_error(MOE_E_NOMEM, "no memory for the table of offloaded activations");
    s->fd = -1;
    s->n_slots = n;
    s->n_tickets = n_tickets;
    s->slots = calloc(n + 1, sizeof *s->slots);
    s->tickets = calloc(n_tickets + 1, sizeof *s->tickets);
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->work, NULL);
    pthread_cond_init(&s->done, NULL);
    MoeStatus st = NULL;
    if (!s->slots || !s->tickets)
        st = moe_error(MOE_E_NOMEM, "no memory for the table of offloaded activations");
    int64_t at = 0;
    for (size_t i = 0; i < n && !st; i++) {
        s->slots[i] = (Slot){.bytes = slot_bytes[i], .offset = at};
        if (!moe_add_i64(at, (slot_bytes[i] + SLOT_ALIGN - 1) / SLOT_ALIGN * SLOT_ALIGN, &at))
            st = moe_error(MOE_E_NOMEM, "the offloaded activations are too large");
    }
    if (st)
        moe_store_destroy(s);
    else
        *out = s;
    return st;
}

/* A file that nobody else sees: without a name where the file system can do that, else unlinked at once. */
static int open_unnamed(const char *dir) {
    int fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd >= 0)
        return fd;
    MoeStr path = {0};
    moe_str_printf(&path, "%s/.offload-XXXXXX", dir);
    fd = mkostemp(path.data, O_CLOEXEC);
    if (fd >= 0)
        (void)unlink(path.data);
    moe_str_free(&path);
    return fd;
}

MoeStatus moe_store_open(MoeStore *s, const char *dir, const char *who) {
    MOE_ASSERT(s->fd < 0 && !s->moved, "the store has a file already");
    s->dir = strdup(dir);
    s->who = strdup(who);
    if (!s->dir || !s->who)
        return moe_error(MOE_E_NOMEM, "no memory for the table of offloaded activations");
    s->fd = open_unnamed(dir);
    if (s->fd < 0)
        return moe_error_errno("no file for offloaded activations can be made in %s (--offload-to "
                               "names another directory, or memory)",
                               dir);
    return NULL;
}

static bool push(MoeStore *s, Job j) {
    if (s->n == s->cap) {
        size_t cap = s->cap ? 2 * s->cap : 32;
        Job *jobs = malloc(cap * sizeof *jobs);
        if (!jobs)
            return false;
        for (size_t i = 0; i < s->n; i++)
            jobs[i] = s->jobs[(s->first + i) % s->cap];
        free(s->jobs);
        s->jobs = jobs;
        s->cap = cap;
        s->first = 0;
    }
    s->jobs[(s->first + s->n++) % s->cap] = j;
    return true;
}

MoeStatus moe_store_start(MoeStore *s, size_t ticket, size_t slot, bool load, void *data,
                          int64_t n_bytes) {
    MOE_ASSERT(ticket < s->n_tickets && slot < s->n_slots && n_bytes >= 0 &&
                   n_bytes <= s->slots[slot].bytes,
               "offload: ticket %zu, slot %zu, %lld bytes", ticket, slot, (long long)n_bytes);
    if (s->n_threads < N_THREADS)
        MOE_TRY(start_threads(s));
    pthread_mutex_lock(&s->lock);
    bool pushed = push(s, (Job){ticket, slot, load, data, n_bytes});
    s->tickets[ticket].under_way += pushed;
    pthread_cond_signal(&s->work);
    pthread_mutex_unlock(&s->lock);
    return pushed ? NULL : moe_error(MOE_E_NOMEM, "no memory for the queue of offloads");
}

bool moe_store_done(MoeStore *s, size_t ticket, double seconds) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    int64_t ns = until.tv_nsec + (int64_t)(seconds * 1e9);
    until.tv_sec += ns / 1000000000;
    until.tv_nsec = ns % 1000000000;
    pthread_mutex_lock(&s->lock);
    int late = 0;
    while (s->tickets[ticket].under_way && !late)
        late = pthread_cond_timedwait(&s->done, &s->lock, &until);
    bool done = !s->tickets[ticket].under_way;
    pthread_mutex_unlock(&s->lock);
    return done;
}

MoeStatus moe_store_result(MoeStore *s, size_t ticket) {
    pthread_mutex_lock(&s->lock);
    MoeStatus st = s->tickets[ticket].failed;
    s->tickets[ticket].failed = NULL;
    pthread_mutex_unlock(&s->lock);
    return st;
}

int64_t moe_store_memory(const MoeStore *s) {
    int64_t n = 0;
    for (size_t i = 0; i < s->n_slots; i++)
        n += s->slots[i].memory ? s->slots[i].used : 0;
    return n;
}

int64_t moe_store_moved(MoeStore *s) {
    pthread_mutex_lock(&s->lock);
    int64_t n = s->moved;
    pthread_mutex_unlock(&s->lock);
    return n;
}

void moe_store_destroy(MoeStore *s) {
    if (!s)
        return;
    pthread_mutex_lock(&s->lock);
    s->stop = true;
    pthread_cond_broadcast(&s->work);
    pthread_mutex_unlock(&s->lock);
    for (int i = 0; i < s->n_threads; i++)
        pthread_join(s->threads[i], NULL);
    for (size_t i = 0; s->slots && i < s->n_slots; i++)
        moe_free_big(s->slots[i].memory, (size_t)s->slots[i].bytes);
    for (size_t i = 0; s->tickets && i < s->n_tickets; i++)
        moe_status_free(s->tickets[i].failed);
    if (s->fd >= 0)
        close(s->fd);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->work);
    pthread_cond_destroy(&s->done);
    free(s->slots);
    free(s->tickets);
    free(s->jobs);
    free(s->dir);
    free(s->who);
    free(s);
}
