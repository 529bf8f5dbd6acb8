/* block.h: a block's threads and stacks, faults, the grid. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "tests/sim/block_internal.h"

enum { STACK = 128 << 10, PAGE = 4096, MAX_SHARED = 256 << 10 };

static char *stacks, *shared_end; /* both end at memory that is not there */

/* ---- blocks ---- */

static void thread_end(Thread *me) {
    unsigned i = index_of(me);
    for (int q = 0; q < MOE_SIM_N_QUEUES; q++) /* in hardware they land, too */
        while (me->queues[q].n)
            moe_sim_land(&me->queues[q], 0);
    me->state = ENDED;
    moe_sim_now.ready[i / 64] &= ~((uint64_t)1 << i % 64);
    if (--moe_sim_now.alive == 0) {
        while (moe_sim_now.later.n)
            moe_sim_land(&moe_sim_now.later, 0);
        moe_sim_switch(&me->context, &moe_sim_now.main);
    }
    moe_sim_let_others_run();
    abort();
}

static void thread_main(void) {
    moe_sim_now.launch->entry->call(moe_sim_now.launch->params);
    thread_end(moe_sim_now.current);
}

/* Stacks end at different distances from a page's end: else all threads' frames would fall on the same lines of the cache. */
static void make_thread(unsigned i) {
    static unsigned n_stacks;
    for (; n_stacks <= i; n_stacks++)
        if (mprotect(stacks + (size_t)n_stacks * (STACK + PAGE) + PAGE, STACK,
                     PROT_READ | PROT_WRITE))
            abort();
    const MoeSimLaunch *l = moe_sim_now.launch;
    Thread *t = &moe_sim_threads[i];
    MoeSimDim d = l->block;
    t->self = (MoeSimSelf){.thread = {i % d.x, i / d.x % d.y, i / d.x / d.y},
                           .block = moe_sim_now.at,
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

static unsigned env_choice(const char *name, const char *first, const char *second,
                           unsigned otherwise) {
    const char *s = getenv(name);
    return s && !strcmp(s, first) ? 0 : s && !strcmp(s, second) ? 1 : otherwise;
}

static void run_block(uint64_t number) {
    const MoeSimLaunch *l = moe_sim_now.launch;
    moe_sim_now.n = l->block.x * l->block.y * l->block.z;
    moe_sim_now.words = (moe_sim_now.n + 63) / 64;
    moe_sim_now.alive = moe_sim_now.n;
    moe_sim_now.spins = 0;
    moe_sim_now.dice = number * 0x2545f4914f6cdd1du;
    moe_sim_now.down = number & 1;
    moe_sim_now.async = env_choice("MOE_SIM_ASYNC", "early", "late", (unsigned)(number / 2 % 3));
    moe_sim_now.later.n = 0;
    memset(moe_sim_now.ready, 0, sizeof moe_sim_now.ready);
    memset(moe_sim_now.at_group, 0, sizeof moe_sim_now.at_group);
    memset(moe_sim_now.barriers, 0, sizeof moe_sim_now.barriers);
    memset(shared_end - (l->shared_bytes + 127) / 128 * 128, 0xff,
           (l->shared_bytes + 127) / 128 * 128);
    if (l->module->shared)
        memset(l->module->shared, 0xff, (size_t)(l->module->shared_end - l->module->shared));
    for (unsigned i = 0; i < moe_sim_now.n; i++)
        make_thread(i);
    moe_sim_now.current = &moe_sim_threads[moe_sim_now.down ? moe_sim_now.n - 1 : 0];
    l->module->self = &moe_sim_now.current->self;
    moe_sim_switch(&moe_sim_now.main, &moe_sim_now.current->context);
}

static void on_fault(int sig, siginfo_t *info, void *context) {
    (void)context;
    char *at = info->si_addr;
    int n = moe_sim_place(moe_sim_now.why, sizeof moe_sim_now.why, moe_sim_now.current);
    const char *what = sig == SIGILL   ? "a misaligned access, or code that cannot be reached"
                       : sig == SIGFPE ? "an integer division by zero"
                                       : "an access to memory that is not there";
    if (at >= stacks && at < stacks + (size_t)MAX_THREADS * (STACK + PAGE))
        what = "its stack is full";
    bool no_address =
        sig == SIGSEGV && info->si_code == SI_KERNEL; /* as of an aligned move of 16 bytes */
    if (no_address)
        what = "a misaligned access, or an address that cannot be";
    if (sig == SIGILL || sig == SIGFPE || no_address)
        snprintf(moe_sim_now.why + n, sizeof moe_sim_now.why - (size_t)n, "%s", what);
    else
        snprintf(moe_sim_now.why + n, sizeof moe_sim_now.why - (size_t)n, "%s, at %p", what,
                 (void *)at);
    moe_sim_now.failed = moe_sim_now.illegal = true;
    siglongjmp(moe_sim_now.out, 1);
}

static void make_memory(void) {
    size_t bytes = (size_t)MAX_THREADS * (STACK + PAGE);
    stacks = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    char *shared = mmap(NULL, MAX_SHARED + PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stacks == MAP_FAILED || shared == MAP_FAILED ||
        mprotect(shared, MAX_SHARED, PROT_READ | PROT_WRITE))
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
    uint64_t step =
        n * 5 / 8 | 1; /* one after another at a distance that has no factor in common with n */
    for (uint64_t x = step, y = n, t;;) {
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
    const MoeSimDim grid = moe_sim_now.launch->grid;
    uint64_t n = (uint64_t)grid.x * grid.y * grid.z;
    unsigned order = env_choice("MOE_SIM_ORDER", "up", "down", 2);
    for (uint64_t k = 0; k < n && !moe_sim_now.failed; k++) {
        uint64_t i = block_at(k, n, order);
        moe_sim_now.at = (MoeSimDim){(unsigned)(i % grid.x), (unsigned)(i / grid.x % grid.y),
                                     (unsigned)(i / grid.x / grid.y)};
        run_block(number + i);
    }
}

MoeSimResult moe_sim_run(const MoeSimLaunch *l, char *why, size_t why_bytes) {
    static uint64_t launches;
    static char handler_stack[64 << 10];
    struct sigaction act = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK},
                     old[N_SIGNALS];
    stack_t alt = {.ss_sp = handler_stack, .ss_size = sizeof handler_stack}, old_alt;
    if (!stacks)
        make_memory();
    moe_sim_now.launch = l;
    moe_sim_now.failed = moe_sim_now.illegal = false;
    l->module->api = &moe_sim_api;
    sigaltstack(&alt, &old_alt);
    for (int i = 0; i < N_SIGNALS; i++)
        sigaction(signals[i], &act, &old[i]);
    if (!sigsetjmp(moe_sim_now.out, 1))
        run_grid(launches++ * 7);
    for (int i = 0; i < N_SIGNALS; i++)
        sigaction(signals[i], &old[i], NULL);
    sigaltstack(&old_alt, NULL);
    if (moe_sim_now.failed)
        snprintf(why, why_bytes, "%s", moe_sim_now.why);
    return moe_sim_now.illegal  ? MOE_SIM_ILLEGAL
           : moe_sim_now.failed ? MOE_SIM_FAILED
                                : MOE_SIM_RAN;
}
