/* Thread pool. A launch is published as one 64-bit word, (epoch << 32 | next task); threads take
 * tasks by compare-and-swap on it, so a thread that wakes late can never take a task of a launch
 * that has ended, and the caller never waits for a thread that took nothing. A launch ends when all
 * of its tasks are counted as done.
 *
 * Why the job fields may be read without a lock: they change only between launches, after every
 * task taken is done and after the word has been closed (next task = CLOSED). A thread that read a
 * field of a later launch (acquire; the fields are stored with release) therefore finds the word
 * changed and its compare-and-swap fails; one whose swap succeeds holds a task of the epoch that it
 * read, and what it read of the fields is that launch's. */
#include "base/pool.h"

#include <pthread.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/assert.h"

#if defined(__x86_64__) || defined(__i386__)
#define CPU_RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define CPU_RELAX() __asm__ __volatile__("yield")
#else
#define CPU_RELAX() ((void)0)
#endif

#define SPIN_SECONDS 40e-6 /* longer than the gap between two launches of a step */
#define MAX_THREADS  1024
#define MAX_TASKS    ((int64_t)INT32_MAX)
#define CLOSED       UINT32_MAX /* as next task: above any count */

typedef struct {
    MoePool *pool;
    int thread;
} Worker;

struct MoePool {
    int n_threads;
    bool spin; /* no use where threads outnumber cores */
    bool running;
    bool count_cpu; /* set before the first launch */
    int64_t caller_ns;
    Worker *workers; /* n_threads - 1 */
    pthread_t *handles;
    pthread_mutex_t lock;
    pthread_cond_t wake;     /* workers: a new epoch, or stop */
    pthread_cond_t finished; /* the caller: all done */

    /* The launch: written by the caller between launches. */
    alignas(64) _Atomic(MoePoolFn) fn;
    _Atomic(void *) ctx;
    _Atomic uint32_t n_tasks;

    alignas(64) _Atomic uint64_t state; /* epoch << 32 | next task */
    alignas(64) _Atomic uint32_t done;
    _Atomic bool caller_waits;
    _Atomic int64_t tasks_ns; /* with count_cpu: written before `done` says so */
    alignas(64) _Atomic int sleepers;
    _Atomic bool stop;
};

static int64_t cpu_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

double moe_thread_cpu(void) {
    return 1e-9 * (double)cpu_ns();
}

/* Takes and runs tasks of the current launch until none is left. */
static void run_tasks(MoePool *p, int thread) {
    uint64_t s = atomic_load_explicit(&p->state, memory_order_acquire);
    MoePoolFn fn = NULL;
    void *ctx = NULL;
    uint32_t n = 0, count = 0;
    int64_t began = 0;
    for (;;) {
        if (!count) { /* once a task is taken the launch stays until we count it as done */
            fn = atomic_load_explicit(&p->fn, memory_order_acquire);
            ctx = atomic_load_explicit(&p->ctx, memory_order_acquire);
            n = atomic_load_explicit(&p->n_tasks, memory_order_acquire);
        }
        uint32_t task = (uint32_t)s;
        if (task >= n)
            break;
        if (!atomic_compare_exchange_weak_explicit(&p->state, &s, s + 1, memory_order_acq_rel,
                                                   memory_order_acquire))
            continue;
        if (!count && p->count_cpu)
            began = cpu_ns();
        fn(ctx, task, thread);
        count++;
        s = atomic_load_explicit(&p->state, memory_order_acquire);
    }
    if (!count)
        return;
    if (p->count_cpu)
        atomic_fetch_add(&p->tasks_ns, cpu_ns() - began);
    if (atomic_fetch_add(&p->done, count) + count == n && atomic_load(&p->caller_waits)) {
        pthread_mutex_lock(&p->lock);
        pthread_cond_signal(&p->finished);
        pthread_mutex_unlock(&p->lock);
    }
}

static uint32_t epoch_of(MoePool *p) {
    return (uint32_t)(atomic_load(&p->state) >> 32);
}

/* Until the epoch is no longer `seen`, or stop. */
static void wait_for_launch(MoePool *p, uint32_t seen) {
    double until = p->spin ? moe_now() + SPIN_SECONDS : 0;
    while (p->spin) {
        for (int i = 0; i < 32; i++) {
            if (epoch_of(p) != seen || atomic_load(&p->stop))
                return;
            CPU_RELAX();
        }
        if (moe_now() > until)
            break;
    }
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->sleepers, 1); /* before the check: a launch after it sees a sleeper */
    while (epoch_of(p) == seen && !atomic_load(&p->stop))
        pthread_cond_wait(&p->wake, &p->lock);
    atomic_fetch_sub(&p->sleepers, 1);
    pthread_mutex_unlock(&p->lock);
}

static void *worker_main(void *arg) {
    Worker *w = arg;
    MoePool *p = w->pool;
    uint32_t seen = 0;
    for (;;) {
        wait_for_launch(p, seen);
        if (atomic_load(&p->stop))
            return NULL;
        seen = epoch_of(p);
        run_tasks(p, w->thread);
    }
}

/* The caller, out of tasks: others are still running theirs. */
static void wait_for_tasks(MoePool *p, uint32_t n) {
    double until = p->spin ? moe_now() + SPIN_SECONDS : 0;
    while (p->spin) {
        for (int i = 0; i < 32; i++) {
            if (atomic_load_explicit(&p->done, memory_order_acquire) == n)
                return;
            CPU_RELAX();
        }
        if (moe_now() > until)
            break;
    }
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->caller_waits, true);
    while (atomic_load(&p->done) != n)
        pthread_cond_wait(&p->finished, &p->lock);
    atomic_store(&p->caller_waits, false);
    pthread_mutex_unlock(&p->lock);
}

static void launch(MoePool *p, uint32_t n, MoePoolFn fn, void *ctx) {
    int64_t began = p->count_cpu ? cpu_ns() : 0;
    uint32_t epoch = epoch_of(p);
    atomic_store(&p->state, (uint64_t)epoch << 32 | CLOSED);
    atomic_store_explicit(&p->fn, fn, memory_order_release);
    atomic_store_explicit(&p->ctx, ctx, memory_order_release);
    atomic_store_explicit(&p->n_tasks, n, memory_order_release);
    atomic_store_explicit(&p->done, 0, memory_order_relaxed);
    atomic_store(&p->state, (uint64_t)(epoch + 1) << 32);
    int sleepers = atomic_load(&p->sleepers);
    if (sleepers) {
        pthread_mutex_lock(&p->lock);
        if ((uint32_t)sleepers < n)
            pthread_cond_broadcast(&p->wake);
        else /* not all are needed: the caller takes one of the tasks */
            for (uint32_t i = 1; i < n; i++)
                pthread_cond_signal(&p->wake);
        pthread_mutex_unlock(&p->lock);
    }
    run_tasks(p, 0);
    wait_for_tasks(p, n);
    if (p->count_cpu)
        p->caller_ns += cpu_ns() - began;
}

/* Ranges of more than 2^31 tasks go in several launches; the shift is undone here. */
typedef struct {
    MoePoolFn fn;
    void *ctx;
    int64_t first;
} Shifted;

static void run_shifted(void *ctx, int64_t task, int thread) {
    Shifted *s = ctx;
    s->fn(s->ctx, s->first + task, thread);
}

void moe_pool_run(MoePool *p, int64_t n_tasks, MoePoolFn fn, void *ctx) {
    if (n_tasks <= 0)
        return;
    MOE_ASSERT(!p->running, "moe_pool_run from inside a task, or from two threads");
    p->running = true;
    if (p->n_threads == 1 || n_tasks == 1) {
        for (int64_t i = 0; i < n_tasks; i++)
            fn(ctx, i, 0);
    } else if (n_tasks <= MAX_TASKS) {
        launch(p, (uint32_t)n_tasks, fn, ctx);
    } else {
        Shifted s = {fn, ctx, 0};
        for (; s.first < n_tasks; s.first += MAX_TASKS) {
            int64_t left = n_tasks - s.first;
            launch(p, (uint32_t)(left < MAX_TASKS ? left : MAX_TASKS), run_shifted, &s);
        }
    }
    p->running = false;
}

int moe_pool_threads(const MoePool *p) {
    return p->n_threads;
}

void moe_pool_count_cpu(MoePool *p) {
    p->count_cpu = true;
}

MoePoolCpu moe_pool_cpu(const MoePool *p) {
    return (MoePoolCpu){1e-9 * (double)p->caller_ns, 1e-9 * (double)atomic_load(&p->tasks_ns)};
}

MoeStatus moe_pool_create(int n_threads, MoePool **out) {
    MOE_ASSERT(n_threads >= 1, "a pool of %d threads", n_threads);
    if (n_threads > MAX_THREADS)
        return moe_error(MOE_E_INPUT, "%d threads asked for; at most %d are supported", n_threads,
                         MAX_THREADS);
    MoePool *p = aligned_alloc(64, sizeof *p);
    size_t n_workers = (size_t)n_threads - 1;
    Worker *workers = calloc(n_workers + 1, sizeof *workers);
    pthread_t *handles = calloc(n_workers + 1, sizeof *handles);
    if (!p || !workers || !handles) {
        free(p);
        free(workers);
        free(handles);
        return moe_error(MOE_E_NOMEM, "out of memory for a pool of %d threads", n_threads);
    }
    memset(p, 0, sizeof *p);
    p->workers = workers;
    p->handles = handles;
    p->spin = n_threads <= moe_cpu_count();
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    pthread_cond_init(&p->finished, NULL);
    p->n_threads = 1; /* as many as run: what destroy joins */
    for (int i = 1; i < n_threads; i++) {
        workers[i - 1] = (Worker){p, i};
        int err = pthread_create(&handles[i - 1], NULL, worker_main, &workers[i - 1]);
        if (err) {
            moe_pool_destroy(p);
            return moe_error(MOE_E_IO, "cannot start thread %d of %d: %s", i + 1, n_threads,
                             strerror(err));
        }
        p->n_threads = i + 1;
    }
    *out = p;
    return NULL;
}

void moe_pool_destroy(MoePool *p) {
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->stop, true);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i + 1 < p->n_threads; i++)
        pthread_join(p->handles[i], NULL);
    pthread_cond_destroy(&p->finished);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    free(p->workers);
    free(p->handles);
    free(p);
}
