/* block.h: whose turn it is, and where threads wait: exchanges of a warp, barriers, conditions. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tests/sim/block_internal.h"

enum { SPINS = 100000 };

Block moe_sim_now;
Thread moe_sim_threads[MAX_THREADS];

/* ---- order ---- */

uint64_t moe_sim_roll(void) {
    uint64_t x = moe_sim_now.dice += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* The first ready thread after i in the block's direction, around the end; NULL: none. */
static Thread *next_up(unsigned i) {
    unsigned w = i / 64;
    uint64_t bits = i % 64 == 63 ? 0 : moe_sim_now.ready[w] & ~(uint64_t)0 << (i % 64 + 1);
    for (unsigned k = 0; k <= moe_sim_now.words; k++) {
        if (bits)
            return &moe_sim_threads[w * 64 + (unsigned)__builtin_ctzll(bits)];
        w = w + 1 < moe_sim_now.words ? w + 1 : 0;
        bits = moe_sim_now.ready[w];
    }
    return NULL;
}
static Thread *next_down(unsigned i) {
    unsigned w = i / 64;
    uint64_t bits = moe_sim_now.ready[w] & (((uint64_t)1 << i % 64) - 1);
    for (unsigned k = 0; k <= moe_sim_now.words; k++) {
        if (bits)
            return &moe_sim_threads[w * 64 + 63 - (unsigned)__builtin_clzll(bits)];
        w = w ? w - 1 : moe_sim_now.words - 1;
        bits = moe_sim_now.ready[w];
    }
    return NULL;
}

/* ---- what went wrong ---- */

static void give_up(void) {
    moe_sim_now.failed = true;
    MoeSimContext nowhere = {0};
    moe_sim_switch(&nowhere, &moe_sim_now.main);
    abort();
}

int moe_sim_place(char *out, size_t n, const Thread *t) {
    return snprintf(out, n, "kernel %s, block %u, thread %u: ", moe_sim_now.launch->name,
                    moe_sim_now.at.x, index_of(t));
}

void moe_sim_fail(const char *fmt, ...) {
    va_list ap;
    int n = moe_sim_place(moe_sim_now.why, sizeof moe_sim_now.why, moe_sim_now.current);
    va_start(ap, fmt);
    vsnprintf(moe_sim_now.why + n, sizeof moe_sim_now.why - (size_t)n, fmt, ap);
    va_end(ap);
    give_up();
    abort();
}

/* What the threads wait for, runs of equal ones together. */
static void describe(char *out, size_t bytes) {
    size_t at = 0;
    int runs = 0;
    for (unsigned i = 0; i < moe_sim_now.n && runs < 8;) {
        unsigned k = i + 1;
        const Thread *t = &moe_sim_threads[i];
        while (k < moe_sim_now.n && moe_sim_threads[k].state == t->state &&
               (t->state == ENDED ||
                (strcmp(moe_sim_threads[k].what, t->what) == 0 &&
                 moe_sim_threads[k].mask == t->mask && moe_sim_threads[k].barrier == t->barrier)))
            k++;
        char detail[32] = "";
        if (t->state == AT_WARP)
            snprintf(detail, sizeof detail, " (mask %08x)", t->mask);
        if (t->state == AT_BARRIER && t->barrier)
            snprintf(detail, sizeof detail, " %u (%u of %u are there)", t->barrier,
                     moe_sim_now.barriers[t->barrier].arrived,
                     moe_sim_now.barriers[t->barrier].want);
        int n = snprintf(out + at, bytes - at, "%sthreads %u-%u %s%s%s", i ? "; " : "", i, k - 1,
                         t->state == ENDED ? "have ended" : "wait at ",
                         t->state == ENDED ? "" : t->what, detail);
        at = n < 0 || at + (size_t)n >= bytes ? bytes - 1 : at + (size_t)n;
        runs++;
        i = k;
    }
}

static void deadlock(const char *what) {
    char all[800];
    describe(all, sizeof all);
    snprintf(moe_sim_now.why, sizeof moe_sim_now.why, "kernel %s, block %u: %s: %s",
             moe_sim_now.launch->name, moe_sim_now.at.x, what, all);
    give_up();
}

/* ---- waiting ---- */

/* No thread is ready: those whose condition has come true, a copy that lands, loops that look again. False: none. */
static bool wake(void) {
    bool any = false;
    for (unsigned i = 0; i < moe_sim_now.n; i++)
        if (moe_sim_threads[i].state == AT_WAIT &&
            moe_sim_threads[i].ready(moe_sim_threads[i].arg)) {
            set_ready(&moe_sim_threads[i]);
            any = true;
        }
    if (any) {
        moe_sim_now.spins = 0;
        return true;
    }
    if (moe_sim_now.later.n) {
        moe_sim_land(&moe_sim_now.later, moe_sim_now.async == MIXED
                                             ? (size_t)(moe_sim_roll() % moe_sim_now.later.n)
                                             : 0);
        return true;
    }
    for (unsigned i = 0; i < moe_sim_now.n;
         i++) /* somebody may wait for what comes after a thread's copies */
        if (moe_sim_threads[i].queues[MOE_SIM_COPIES].n) {
            moe_sim_land(&moe_sim_threads[i].queues[MOE_SIM_COPIES], 0);
            return true;
        }
    for (unsigned i = 0; i < moe_sim_now.n; i++)
        if (moe_sim_threads[i].state == RELAXED) {
            set_ready(&moe_sim_threads[i]);
            any = true;
        }
    if (any && ++moe_sim_now.spins > SPINS)
        deadlock("threads look for something that never comes");
    return any;
}

/* The current thread is not ready: another goes on; returns when it is its turn again. */
void moe_sim_let_others_run(void) {
    Thread *me = moe_sim_now.current, *t;
    while (!(t = moe_sim_now.down ? next_down(index_of(me)) : next_up(index_of(me))))
        if (!wake())
            deadlock("all threads wait");
    if (t == me)
        return;
    moe_sim_now.current = t;
    moe_sim_now.launch->module->self = &t->self;
    moe_sim_switch(&me->context, &t->context);
}

static void wait_as(State state, const char *what) {
    Thread *me = moe_sim_now.current;
    unsigned i = index_of(me);
    me->state = state;
    me->what = what;
    moe_sim_now.ready[i / 64] &= ~((uint64_t)1 << i % 64);
    moe_sim_let_others_run();
}

void moe_sim_warp(unsigned mask, const char *what, MoeSimTogether act, void *arg) {
    Thread *me = moe_sim_now.current, *first = &moe_sim_threads[index_of(me) & ~31u];
    if (!(mask >> me->self.lane & 1))
        moe_sim_fail("%s with mask %08x, in which its own lane %u is not", what, mask,
                     me->self.lane);
    unsigned lanes = moe_sim_now.n - (unsigned)(first - moe_sim_threads);
    if (lanes < 32 && mask >> lanes)
        moe_sim_fail("%s with mask %08x, but its warp has %u threads", what, mask, lanes);
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
                moe_sim_fail("%s with mask %08x, but lane %u waits with mask %08x", what, mask, l,
                             first[l].mask);
            if (first[l].what != what && strcmp(first[l].what, what) != 0)
                moe_sim_fail("lane %u is at %s, lane %u at %s", me->self.lane, what, l,
                             first[l].what);
        }
    act(args);
    for (unsigned l = 0; l < 32; l++)
        if (mask >> l & 1)
            set_ready(&first[l]);
    moe_sim_now.spins = 0;
}

void moe_sim_warpgroup(const char *what, MoeSimTogether act, void *arg) {
    Thread *me = moe_sim_now.current, *first = &moe_sim_threads[index_of(me) & ~127u];
    unsigned g = index_of(me) / 128;
    if (moe_sim_now.n - g * 128 < 128)
        moe_sim_fail("%s in a warpgroup of %u threads", what, moe_sim_now.n - g * 128);
    me->arg = arg;
    if (++moe_sim_now.at_group[g] < 128) {
        wait_as(AT_WARPGROUP, what);
        return;
    }
    moe_sim_now.at_group[g] = 0;
    void *args[128];
    for (int i = 0; i < 128; i++) {
        if (&first[i] != me && first[i].what != what && strcmp(first[i].what, what) != 0)
            moe_sim_fail("a warpgroup does %s and %s at once", what, first[i].what);
        args[i] = first[i].arg;
    }
    act(args);
    for (int i = 0; i < 128; i++)
        set_ready(&first[i]);
    moe_sim_now.spins = 0;
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

int moe_sim_barrier(unsigned id, unsigned n, MoeSimBarrier kind, int value) {
    if (id >= BARRIERS)
        moe_sim_fail("barrier %u: there are %d", id, BARRIERS);
    if (n % 32 || n > moe_sim_now.n)
        moe_sim_fail("barrier %u of %u threads: not whole warps of this block of %u", id, n,
                     moe_sim_now.n);
    Barrier *r = &moe_sim_now.barriers[id];
    unsigned want = n ? n : moe_sim_now.n;
    MoeSimBarrier says = kind == MOE_SIM_ARRIVE ? MOE_SIM_SYNC : kind;
    if (r->arrived && r->want != want)
        moe_sim_fail("barrier %u for %u threads, but others are there for %u", id, want, r->want);
    if (r->arrived && r->kind != says)
        moe_sim_fail("barrier %u is used in two ways at once", id);
    r->want = want;
    r->kind = says;
    barrier_value(r, kind, value);
    unsigned generation = r->generation, i = index_of(moe_sim_now.current);
    if (++r->arrived == want) {
        for (unsigned w = 0; w < moe_sim_now.words; w++)
            for (uint64_t bits = r->waiting[w]; bits; bits &= bits - 1)
                set_ready(&moe_sim_threads[w * 64 + (unsigned)__builtin_ctzll(bits)]);
        memset(r->waiting, 0, sizeof r->waiting);
        r->arrived = 0;
        r->generation++;
        moe_sim_now.spins = 0;
    } else if (kind != MOE_SIM_ARRIVE) {
        r->waiting[i / 64] |= (uint64_t)1 << i % 64;
        moe_sim_now.current->barrier = id;
        wait_as(AT_BARRIER, id ? "barrier" : "__syncthreads");
    }
    return r->value[generation & 1];
}

void moe_sim_wait(const char *what, int (*ready)(void *), void *arg) {
    while (!ready(arg)) {
        moe_sim_now.current->ready = ready;
        moe_sim_now.current->arg = arg;
        wait_as(AT_WAIT, what);
    }
}

void moe_sim_relax(const char *what) {
    wait_as(RELAXED, what);
}
