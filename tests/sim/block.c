/* block.h: threads and where they wait. */
#include "tests/sim/block.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#include "tests/sim/switch.h"
#include "tests/sim/tensor_map.h"

enum {
    MAX_THREADS = 1024,
    MAX_WORDS = MAX_THREADS / 64,
    MAX_WARPS = MAX_THREADS / 32,
    BARRIERS = 16,
    STACK = 128 << 10,
    PAGE = 4096,
    MAX_SHARED = 256 << 10,
    SPINS = 100000,
};

typedef enum { READY, AT_WARP, AT_WARPGROUP, AT_BARRIER, AT_WAIT, RELAXED, ENDED } State;

typedef struct {
    MoeSimLater act;
    unsigned group;
    char data[MOE_SIM_DATA] __attribute__((aligned(16)));
} Later;

typedef struct {
    Later *items;
    size_t n, cap;
    unsigned groups; /* committed */
} Queue;

typedef struct {
    MoeSimSelf self; /* first */
    MoeSimContext context;
    State state;
    const char *what; /* it waits for */
    unsigned mask;    /* AT_WARP */
    void *arg;        /* AT_WARP, AT_WARPGROUP, AT_WAIT */
    int (*ready)(void *);
    unsigned barrier; /* AT_BARRIER */
    Queue queues[MOE_SIM_N_QUEUES];
} Thread;

typedef struct {
    unsigned want, arrived, generation;
    MoeSimBarrier kind;
    int value[2]; /* by generation: of this one and the last */
    uint64_t waiting[MAX_WORDS];
} Barrier;

/* The one block that runs. */
static struct {
    const MoeSimLaunch *launch;
    MoeSimDim at;
    unsigned n, alive, words;
    bool down;            /* threads in descending order */
    enum { EARLY, LATE, MIXED } async;
    uint64_t dice;
    uint64_t ready[MAX_WORDS];
    unsigned at_group[MAX_WARPS / 4]; /* threads that wait for their warpgroup */
    Barrier barriers[BARRIERS];
    Queue later; /* of the whole block */
    Thread *current;
    MoeSimContext main;
    bool failed, illegal;
    unsigned spins;
    char why[1024];
    sigjmp_buf out;
} b;

static Thread threads[MAX_THREADS];
static char *stacks, *shared_end; /* both end at memory that is not there */

static void fail(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));

/* ---- order ---- */

static unsigned index_of(const Thread *t) {
    return (unsigned)(t - threads);
}

static void set_ready(Thread *t) {
    unsigned i = index_of(t);
    t->state = READY;
    b.ready[i / 64] |= (uint64_t)1 << i % 64;
}

static uint64_t roll(void) {
    uint64_t x = b.dice += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* The first ready thread after i in the block's direction, around the end; NULL: none. */
static Thread *next_up(unsigned i) {
    unsigned w = i / 64;
    uint64_t bits = i % 64 == 63 ? 0 : b.ready[w] & ~(uint64_t)0 << (i % 64 + 1);
    for (unsigned k = 0; k <= b.words; k++) {
        if (bits)
            return &threads[w * 64 + (unsigned)__builtin_ctzll(bits)];
        w = w + 1 < b.words ? w + 1 : 0;
        bits = b.ready[w];
    }
    return NULL;
}
static Thread *next_down(unsigned i) {
    unsigned w = i / 64;
    uint64_t bits = b.ready[w] & (((uint64_t)1 << i % 64) - 1);
    for (unsigned k = 0; k <= b.words; k++) {
        if (bits)
            return &threads[w * 64 + 63 - (unsigned)__builtin_clzll(bits)];
        w = w ? w - 1 : b.words - 1;
        bits = b.ready[w];
    }
    return NULL;
}

/* ---- what went wrong ---- */

static void give_up(void) {
    b.failed = true;
    MoeSimContext nowhere = {0};
    moe_sim_switch(&nowhere, &b.main);
    abort();
}

static int place(char *out, size_t n, const Thread *t) {
    return snprintf(out, n, "kernel %s, block %u, thread %u: ", b.launch->name, b.at.x, index_of(t));
}

static void fail(const char *fmt, ...) {
    va_list ap;
    int n = place(b.why, sizeof b.why, b.current);
    va_start(ap, fmt);
    vsnprintf(b.why + n, sizeof b.why - (size_t)n, fmt, ap);
    va_end(ap);
    give_up();
    abort();
}

/* What the threads wait for, runs of equal ones together. */
static void describe(char *out, size_t bytes) {
    size_t at = 0;
    int runs = 0;
    for (unsigned i = 0; i < b.n && runs < 8;) {
        unsigned k = i + 1;
        const Thread *t = &threads[i];
        while (k < b.n && threads[k].state == t->state &&
               (t->state == ENDED || (strcmp(threads[k].what, t->what) == 0 && threads[k].mask == t->mask &&
                                      threads[k].barrier == t->barrier)))
            k++;
        char detail[32] = "";
        if (t->state == AT_WARP)
            snprintf(detail, sizeof detail, " (mask %08x)", t->mask);
        if (t->state == AT_BARRIER && t->barrier)
            snprintf(detail, sizeof detail, " %u (%u of %u are there)", t->barrier,
                     b.barriers[t->barrier].arrived, b.barriers[t->barrier].want);
        int n = snprintf(out + at, bytes - at, "%sthreads %u-%u %s%s%s", i ? "; " : "", i, k - 1,
                         t->state == ENDED ? "have ended" : "wait at ", t->state == ENDED ? "" : t->what,
                         detail);
        at = n < 0 || at + (size_t)n >= bytes ? bytes - 1 : at + (size_t)n;
        runs++;
        i = k;
    }
}

static void deadlock(const char *what) {
    char all[800];
    describe(all, sizeof all);
    snprintf(b.why, sizeof b.why, "kernel %s, block %u: %s: %s", b.launch->name, b.at.x, what, all);
    give_up();
}

/* ---- waiting ---- */

static void land(Queue *q, size_t i) {
    Later l = q->items[i];
    memmove(q->items + i, q->items + i + 1, (q->n - i - 1) * sizeof *q->items);
    q->n--;
    l.act(l.data);
}

/* No thread is ready: those whose condition has come true, a copy that lands, loops that look again. False: none. */
static bool wake(void) {
    bool any = false;
    for (unsigned i = 0; i < b.n; i++)
        if (threads[i].state == AT_WAIT && threads[i].ready(threads[i].arg)) {
            set_ready(&threads[i]);
            any = true;
        }
    if (any) {
        b.spins = 0;
        return true;
    }
    if (b.later.n) {
        land(&b.later, b.async == MIXED ? (size_t)(roll() % b.later.n) : 0);
        return true;
    }
    for (unsigned i = 0; i < b.n; i++) /* somebody may wait for what comes after a thread's copies */
        if (threads[i].queues[MOE_SIM_COPIES].n) {
            land(&threads[i].queues[MOE_SIM_COPIES], 0);
            return true;
        }
    for (unsigned i = 0; i < b.n; i++)
        if (threads[i].state == RELAXED) {
            set_ready(&threads[i]);
            any = true;
        }
    if (any && ++b.spins > SPINS)
        deadlock("threads look for something that never comes");
    return any;
}

/* The current thread is not ready: another goes on; returns when it is its turn again. */
static void let_others_run(void) {
    Thread *me = b.current, *t;
    while (!(t = b.down ? next_down(index_of(me)) : next_up(index_of(me))))
        if (!wake())
            deadlock("all threads wait");
    if (t == me)
        return;
    b.current = t;
    b.launch->module->self = &t->self;
    moe_sim_switch(&me->context, &t->context);
}

static void wait_as(State state, const char *what) {
    Thread *me = b.current;
    unsigned i = index_of(me);
    me->state = state;
    me->what = what;
    b.ready[i / 64] &= ~((uint64_t)1 << i % 64);
    let_others_run();
}

static void api_warp(unsigned mask, const char *what, MoeSimTogether act, void *arg) {
    Thread *me = b.current, *first = &threads[index_of(me) & ~31u];
    if (!(mask >> me->self.lane & 1))
        fail("%s with mask %08x, in which its own lane %u is not", what, mask, me->self.lane);
    unsigned lanes = b.n - (unsigned)(first - threads);
    if (lanes < 32 && mask >> lanes)
        fail("%s with mask %08x, but its warp has %u threads", what, mask, lanes);
    me->mask = mask;
    me->arg = arg;
    void *args[32] = {0};
    for (unsigned l = 0; l < 32; l++)
        if (mask >> l & 1) {
            if (&first[l] != me && first[l].state != AT_WARP) {
                wait_as(AT_WARP, what);
                return;
            }
            args[l] = first[l].arg;
        }
    for (unsigned l = 0; l < 32; l++)
        if (mask >> l & 1 && &first[l] != me) {
            if (first[l].mask != mask)
                fail("%s with mask %08x, but lane %u waits with mask %08x", what, mask, l, first[l].mask);
            if (first[l].what != what && strcmp(first[l].what, what) != 0)
                fail("lane %u is at %s, lane %u at %s", me->self.lane, what, l, first[l].what);
        }
    act(args);
    for (unsigned l = 0; l < 32; l++)
        if (mask >> l & 1)
            set_ready(&first[l]);
    b.spins = 0;
}

static void api_warpgroup(const char *what, MoeSimTogether act, void *arg) {
    Thread *me = b.current, *first = &threads[index_of(me) & ~127u];
    unsigned g = index_of(me) / 128;
    if (b.n - g * 128 < 128)
        fail("%s in a warpgroup of %u threads", what, b.n - g * 128);
    me->arg = arg;
    if (++b.at_group[g] < 128) {
        wait_as(AT_WARPGROUP, what);
        return;
    }
    b.at_group[g] = 0;
    void *args[128];
    for (int i = 0; i < 128; i++) {
        if (&first[i] != me && first[i].what != what && strcmp(first[i].what, what) != 0)
            fail("a warpgroup does %s and %s at once", what, first[i].what);
        args[i] = first[i].arg;
    }
    act(args);
    for (int i = 0; i < 128; i++)
        set_ready(&first[i]);
    b.spins = 0;
}

static void barrier_value(Barrier *r, MoeSimBarrier kind, int value) {
    int *v = &r->value[r->generation & 1];
    if (r->arrived == 0)
        *v = kind == MOE_SIM_AND;
    if (kind == MOE_SIM_OR)
        *v |= value != 0;
    if (kind == MOE_SIM_AND)
        *v &= value != 0;
    if (kind == MOE_SIM_COUNT)
        *v += value != 0;
}

static int api_barrier(unsigned id, unsigned n, MoeSimBarrier kind, int value) {
    if (id >= BARRIERS)
        fail("barrier %u: there are %d", id, BARRIERS);
    if (n % 32 || n > b.n)
        fail("barrier %u of %u threads: not whole warps of this block of %u", id, n, b.n);
    Barrier *r = &b.barriers[id];
    unsigned want = n ? n : b.n;
    MoeSimBarrier says = kind == MOE_SIM_ARRIVE ? MOE_SIM_SYNC : kind;
    if (r->arrived && r->want != want)
        fail("barrier %u for %u threads, but others are there for %u", id, want, r->want);
    if (r->arrived && r->kind != says)
        fail("barrier %u is used in two ways at once", id);
    r->want = want;
    r->kind = says;
    barrier_value(r, kind, value);
    unsigned generation = r->generation, i = index_of(b.current);
    if (++r->arrived == want) {
        for (unsigned w = 0; w < b.words; w++)
            for (uint64_t bits = r->waiting[w]; bits; bits &= bits - 1)
                set_ready(&threads[w * 64 + (unsigned)__builtin_ctzll(bits)]);
        memset(r->waiting, 0, sizeof r->waiting);
        r->arrived = 0;
        r->generation++;
        b.spins = 0;
    } else if (kind != MOE_SIM_ARRIVE) {
        r->waiting[i / 64] |= (uint64_t)1 << i % 64;
        b.current->barrier = id;
        wait_as(AT_BARRIER, id ? "barrier" : "__syncthreads");
    }
    return r->value[generation & 1];
}

static void api_wait(const char *what, int (*ready)(void *), void *arg) {
    while (!ready(arg)) {
        b.current->ready = ready;
        b.current->arg = arg;
        wait_as(AT_WAIT, what);
    }
}

static void api_relax(const char *what) {
    wait_as(RELAXED, what);
}

/* ---- what lands later ---- */

static Later *queue_add(Queue *q, MoeSimLater act, const void *data, unsigned bytes) {
    if (bytes > MOE_SIM_DATA)
        fail("%u bytes of data for what lands later: %d at most", bytes, MOE_SIM_DATA);
    if (q->n == q->cap) {
        q->cap = q->cap ? 2 * q->cap : 8;
        q->items = realloc(q->items, q->cap * sizeof *q->items);
        if (!q->items)
            abort();
    }
    Later *l = &q->items[q->n++];
    l->act = act;
    l->group = q->groups;
    memcpy(l->data, data, bytes);
    return l;
}

static bool at_once(void) {
    return b.async == EARLY || (b.async == MIXED && roll() & 1);
}

static Queue *queue_of(MoeSimQueue q) {
    unsigned i = index_of(b.current);
    if (q == MOE_SIM_COPIES_END)
        q = MOE_SIM_COPIES;
    return &threads[q == MOE_SIM_PRODUCTS ? i & ~127u : i].queues[q];
}

/* Products land in order: they add up in the same registers. So does what is to come after all copies. */
static void api_push(MoeSimQueue which, MoeSimLater act, const void *data, unsigned bytes) {
    Queue *q = queue_of(which);
    queue_add(q, act, data, bytes);
    if (at_once() && (which == MOE_SIM_COPIES || which == MOE_SIM_STORES || q->n == 1))
        land(q, q->n - 1);
}
static void api_commit(MoeSimQueue which) {
    queue_of(which)->groups++;
}
static void api_drain(MoeSimQueue which, unsigned left) {
    Queue *q = queue_of(which);
    while (q->n && q->items[0].group + left < q->groups)
        land(q, 0);
}
static void api_later(MoeSimLater act, const void *data, unsigned bytes) {
    queue_add(&b.later, act, data, bytes);
    if (at_once())
        land(&b.later, b.later.n - 1);
}

/* ---- shared memory ---- */

/* The window's addresses, below 256 KB (a descriptor has room for no more): 1 KB that is the system's, static memory, dynamic
 * memory. Low bits are the host's. */
enum { WINDOW_STATIC = 1 << 10, WINDOW_LOW = 1023 };

static size_t static_bytes(void) {
    const MoeSimModule *m = b.launch->module;
    return m->shared ? (size_t)(m->shared_end - m->shared) : 0;
}
static unsigned window_static(void) {
    return WINDOW_STATIC + (unsigned)((uintptr_t)b.launch->module->shared & WINDOW_LOW);
}
static unsigned window_dynamic(void) {
    return 2 * WINDOW_STATIC + (unsigned)((static_bytes() + WINDOW_LOW) / 1024 * 1024) +
           (unsigned)((uintptr_t)b.current->self.shared & WINDOW_LOW);
}

static unsigned api_shared_addr(const void *p) {
    const char *c = p;
    const MoeSimSelf *me = &b.current->self;
    const MoeSimModule *m = b.launch->module;
    if (c >= me->shared && c <= me->shared + me->shared_bytes)
        return window_dynamic() + (unsigned)(c - me->shared);
    if (m->shared && c >= m->shared && c <= m->shared_end)
        return window_static() + (unsigned)(c - m->shared);
    fail("address %p is not in the block's shared memory (%u bytes at %p, dynamic)", p, me->shared_bytes,
         (void *)me->shared);
}

static void *api_shared_at(unsigned addr, unsigned bytes) {
    const MoeSimSelf *me = &b.current->self;
    unsigned from = window_dynamic();
    bool dynamic = addr >= from;
    from = dynamic ? from : window_static();
    size_t all = dynamic ? me->shared_bytes : static_bytes();
    if (addr < from || addr - from + (size_t)bytes > all)
        fail("shared memory: %u bytes at %lld of %zu (%s)", bytes, (long long)addr - from, all,
             dynamic ? "dynamic" : "static");
    return (dynamic ? me->shared : b.launch->module->shared) + (addr - from);
}

static const void *api_tensor_map(const void *map) {
    const char *why;
    const MoeSimTensorMap *m = moe_sim_tensor_map_read(map, &why);
    if (!m)
        fail("tensor map at %p: %s", map, why);
    return m;
}

static void api_fail(const char *why) {
    fail("%s", why);
}

static const MoeSimApi api = {
    api_warp, api_warpgroup, api_barrier, api_wait, api_relax, api_push, api_commit,
    api_drain, api_later, api_shared_addr, api_shared_at, api_tensor_map, api_fail,
};

/* ---- blocks ---- */

static void thread_end(Thread *me) {
    unsigned i = index_of(me);
    for (int q = 0; q < MOE_SIM_N_QUEUES; q++) /* in hardware they land, too */
        while (me->queues[q].n)
            land(&me->queues[q], 0);
    me->state = ENDED;
    b.ready[i / 64] &= ~((uint64_t)1 << i % 64);
    if (--b.alive == 0) {
        while (b.later.n)
            land(&b.later, 0);
        moe_sim_switch(&me->context, &b.main);
    }
    let_others_run();
    abort();
}

static void thread_main(void) {
    b.launch->entry->call(b.launch->params);
    thread_end(b.current);
}

/* Stacks end at different distances from a page's end: else all threads' frames would fall on the same lines of the cache. */
static void make_thread(unsigned i) {
    static unsigned n_stacks;
    for (; n_stacks <= i; n_stacks++)
        if (mprotect(stacks + (size_t)n_stacks * (STACK + PAGE) + PAGE, STACK, PROT_READ | PROT_WRITE))
            abort();
    const MoeSimLaunch *l = b.launch;
    Thread *t = &threads[i];
    MoeSimDim d = l->block;
    t->self = (MoeSimSelf){.thread = {i % d.x, i / d.x % d.y, i / d.x / d.y},
                           .block = b.at,
                           .block_dim = d,
                           .grid_dim = l->grid,
                           .lane = i % 32,
                           .warp = i / 32,
                           .shared = shared_end - (l->shared_bytes + 127) / 128 * 128,
                           .shared_bytes = l->shared_bytes};
    t->what = "";
    t->mask = 0;
    t->barrier = 0;
    for (int q = 0; q < MOE_SIM_N_QUEUES; q++)
        t->queues[q].n = t->queues[q].groups = 0;
    char *top = stacks + (size_t)(i + 1) * (STACK + PAGE) - (i * 320) % PAGE / 64 * 64;
    moe_sim_context(&t->context, top, STACK - PAGE, thread_main);
    set_ready(t);
}

static unsigned env_choice(const char *name, const char *first, const char *second, unsigned otherwise) {
    const char *s = getenv(name);
    return s && !strcmp(s, first) ? 0 : s && !strcmp(s, second) ? 1 : otherwise;
}

static void run_block(uint64_t number) {
    const MoeSimLaunch *l = b.launch;
    b.n = l->block.x * l->block.y * l->block.z;
    b.words = (b.n + 63) / 64;
    b.alive = b.n;
    b.spins = 0;
    b.dice = number * 0x2545f4914f6cdd1du;
    b.down = number & 1;
    b.async = env_choice("MOE_SIM_ASYNC", "early", "late", (unsigned)(number / 2 % 3));
    b.later.n = 0;
    memset(b.ready, 0, sizeof b.ready);
    memset(b.at_group, 0, sizeof b.at_group);
    memset(b.barriers, 0, sizeof b.barriers);
    memset(shared_end - (l->shared_bytes + 127) / 128 * 128, 0xff, (l->shared_bytes + 127) / 128 * 128);
    if (l->module->shared)
        memset(l->module->shared, 0xff, (size_t)(l->module->shared_end - l->module->shared));
    for (unsigned i = 0; i < b.n; i++)
        make_thread(i);
    b.current = &threads[b.down ? b.n - 1 : 0];
    l->module->self = &b.current->self;
    moe_sim_switch(&b.main, &b.current->context);
}

static void on_fault(int sig, siginfo_t *info, void *context) {
    (void)context;
    char *at = info->si_addr;
    int n = place(b.why, sizeof b.why, b.current);
    const char *what = sig == SIGILL   ? "a misaligned access, or code that cannot be reached"
                       : sig == SIGFPE ? "an integer division by zero"
                                       : "an access to memory that is not there";
    if (at >= stacks && at < stacks + (size_t)MAX_THREADS * (STACK + PAGE))
        what = "its stack is full";
    bool no_address = sig == SIGSEGV && info->si_code == SI_KERNEL; /* as of an aligned move of 16 bytes */
    if (no_address)
        what = "a misaligned access, or an address that cannot be";
    if (sig == SIGILL || sig == SIGFPE || no_address)
        snprintf(b.why + n, sizeof b.why - (size_t)n, "%s", what);
    else
        snprintf(b.why + n, sizeof b.why - (size_t)n, "%s, at %p", what, (void *)at);
    b.failed = b.illegal = true;
    siglongjmp(b.out, 1);
}

static void make_memory(void) {
    size_t bytes = (size_t)MAX_THREADS * (STACK + PAGE);
    stacks = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    char *shared = mmap(NULL, MAX_SHARED + PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stacks == MAP_FAILED || shared == MAP_FAILED || mprotect(shared, MAX_SHARED, PROT_READ | PROT_WRITE))
        abort();
    shared_end = shared + MAX_SHARED;
}

static const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
enum { N_SIGNALS = sizeof signals / sizeof signals[0] };

/* Block k of n in an order that is not the usual one. */
static uint64_t block_at(uint64_t k, uint64_t n, unsigned order) {
    if (order == 0)
        return k;
    if (order == 1 || n < 3)
        return n - 1 - k;
    uint64_t step = n * 5 / 8 | 1; /* one after another at a distance that has no factor in common with n */
    for (uint64_t x = step, y = n, t; ; ) {
        while (y) {
            t = x % y;
            x = y;
            y = t;
        }
        if (x == 1)
            break;
        x = step += 2;
        y = n;
    }
    return (k * (step % n) + n / 3) % n;
}

static void run_grid(uint64_t number) {
    const MoeSimDim grid = b.launch->grid;
    uint64_t n = (uint64_t)grid.x * grid.y * grid.z;
    unsigned order = env_choice("MOE_SIM_ORDER", "up", "down", 2);
    for (uint64_t k = 0; k < n && !b.failed; k++) {
        uint64_t i = block_at(k, n, order);
        b.at = (MoeSimDim){(unsigned)(i % grid.x), (unsigned)(i / grid.x % grid.y), (unsigned)(i / grid.x / grid.y)};
        run_block(number + i);
    }
}

MoeSimResult moe_sim_run(const MoeSimLaunch *l, char *why, size_t why_bytes) {
    static uint64_t launches;
    static char handler_stack[64 << 10];
    struct sigaction act = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK}, old[N_SIGNALS];
    stack_t alt = {.ss_sp = handler_stack, .ss_size = sizeof handler_stack}, old_alt;
    if (!stacks)
        make_memory();
    b.launch = l;
    b.failed = b.illegal = false;
    l->module->api = &api;
    sigaltstack(&alt, &old_alt);
    for (int i = 0; i < N_SIGNALS; i++)
        sigaction(signals[i], &act, &old[i]);
    if (!sigsetjmp(b.out, 1))
        run_grid(launches++ * 7);
    for (int i = 0; i < N_SIGNALS; i++)
        sigaction(signals[i], &old[i], NULL);
    sigaltstack(&old_alt, NULL);
    if (b.failed)
        snprintf(why, why_bytes, "%s", b.why);
    return b.illegal ? MOE_SIM_ILLEGAL : b.failed ? MOE_SIM_FAILED : MOE_SIM_RAN;
}
