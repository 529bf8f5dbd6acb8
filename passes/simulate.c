/* See simulate.h. In: steps, dependences, an order. Out: seconds. */
#include "passes/simulate.h"

#include <stdint.h>
#include <string.h>

#include "base/assert.h"

struct MoeSim {
    const MoeSimProblem *p;
    double clock, free[MOE_N_LINKS]; /* free: from when on a class of links has nothing to carry */
    double *end;                     /* of each exchange that was started */
    bool *open;                      /* started, and nobody has waited for it */
    int *under_way;                  /* the open ones in the order in which they started */
    size_t n_under_way;
    int stretch;
    MoeSimResult sum;
};

static double later(double a, double b) {
    return a > b ? a : b;
}

static bool is_comm(const MoeSimStep *s) {
    return s->kind != MOE_SIM_COMPUTE;
}

/* Puts a turn of an exchange on the links at `clock`; when it has arrived, or can be copied. */
static double carry(const MoeSimProblem *p, const double seconds[MOE_N_LINKS], double copy, double clock,
                    double free[MOE_N_LINKS]) {
    double end = copy > 0 ? clock + p->latency[MOE_LINK_INTRA] : clock;
    for (int k = 0; k < MOE_N_LINKS; k++) {
        if (!(seconds[k] > 0))
            continue;
        free[k] = later(free[k], clock) + seconds[k];
        end = later(end, free[k] + p->latency[k]);
    }
    return end;
}

double moe_sim_alone(const MoeSimProblem *p, const MoeSimStep *s) {
    const MoeCoreSeconds *c = &s->cores;
    double idle[MOE_N_LINKS] = {0}, first = carry(p, s->links.first, c->copy[0], 0, idle);
    memset(idle, 0, sizeof idle);
    return moe_sim_by_cores(s) + first + carry(p, s->links.second, c->copy[1], 0, idle);
}

double moe_sim_by_cores(const MoeSimStep *s) {
    return s->cores.own + s->cores.copy[0] + s->cores.fold + s->cores.copy[1];
}

MoeSim *moe_sim_create(const MoeSimProblem *p, MoeArena *a) {
    MoeSim *s = MOE_NEW_N(a, MoeSim, 1);
    s->p = p;
    s->end = MOE_NEW_N(a, double, p->n_steps);
    s->open = MOE_NEW_N(a, bool, p->n_steps);
    s->under_way = MOE_NEW_N(a, int, p->n_steps);
    return s;
}

double moe_sim_clock(const MoeSim *s) {
    return s->clock;
}

double moe_sim_link_free(const MoeSim *s, int step) {
    const double *seconds = s->p->steps[step].links.first;
    int most = 0;
    for (int k = 1; k < MOE_N_LINKS; k++)
        most = seconds[k] > seconds[most] ? k : most;
    return s->free[most];
}

double moe_sim_ready(const MoeSim *s, int step) {
    const MoeSimStep *x = &s->p->steps[step];
    double t = s->clock;
    for (size_t i = 0; i < x->n_needs; i++)
        if (s->open[x->needs[i]])
            t = later(t, s->end[x->needs[i]]);
    return t;
}

static void wait_for(MoeSim *s, int step) {
    const MoeSimStep *x = &s->p->steps[step];
    double before = s->clock;
    s->open[step] = false;
    size_t n = 0;
    for (size_t i = 0; i < s->n_under_way; i++)
        if (s->under_way[i] != step)
            s->under_way[n++] = s->under_way[i];
    s->n_under_way = n;
    s->clock = later(s->clock, s->end[step]) + x->cores.copy[0] + x->cores.fold;
    s->clock = carry(s->p, x->links.second, x->cores.copy[1], s->clock, s->free) + x->cores.copy[1];
    s->sum.exposed[x->kind] += s->clock - before;
}

static void wait_for_all(MoeSim *s) {
    while (s->n_under_way)
        wait_for(s, s->under_way[0]);
}

void moe_sim_run(MoeSim *s, int step) {
    const MoeSimStep *x = &s->p->steps[step];
    MOE_ASSERT(x->stretch >= s->stretch, "simulate: step %d comes after its stretch", step);
    if (x->stretch > s->stretch)
        wait_for_all(s);
    s->stretch = x->stretch;
    for (size_t i = 0; i < x->n_needs; i++)
        if (s->open[x->needs[i]])
            wait_for(s, x->needs[i]);
    if (!is_comm(x)) {
        s->clock += x->seconds;
        s->sum.compute += x->seconds;
        return;
    }
    s->end[step] = carry(s->p, x->links.first, x->cores.copy[0], s->clock, s->free);
    s->clock += x->cores.own;
    s->sum.exposed[x->kind] += x->cores.own;
    s->open[step] = true;
    s->under_way[s->n_under_way++] = step;
    s->sum.communication[x->kind] += moe_sim_alone(s->p, x);
    if (x->at_once)
        wait_for(s, step);
}

MoeSimResult moe_sim_finish(MoeSim *s) {
    wait_for_all(s);
    s->sum.seconds = s->clock;
    return s->sum;
}

MoeSimResult moe_simulate(const MoeSimProblem *p, const int *order, size_t n) {
    MoeArena *a = moe_arena_create();
    MoeSim *s = moe_sim_create(p, a);
    for (size_t i = 0; i < n; i++)
        moe_sim_run(s, order[i]);
    MoeSimResult r = moe_sim_finish(s);
    moe_arena_destroy(a);
    return r;
}

/* ---- the bound ---- */

typedef struct {
    const MoeSimProblem *p;
    const bool *only;
    int *until; /* of an exchange: the last phase of a step that reads it, at least its own */
    size_t n_words;
    uint64_t *above; /* [n_steps][n_words]: the steps that a step needs, directly or not */
} Closure;

static bool has(const uint64_t *set, size_t i) {
    return set[i / 64] >> (i % 64) & 1;
}

static bool counts(const Closure *c, size_t step) {
    return !c->only || c->only[step];
}

/* The sets of all steps; needs may point forward in the array, so steps wait for theirs. */
static void close_over(Closure *c, size_t step, bool *done) {
    if (done[step])
        return;
    done[step] = true;
    uint64_t *mine = c->above + step * c->n_words;
    const MoeSimStep *x = &c->p->steps[step];
    for (size_t i = 0; i < x->n_needs; i++) {
        size_t need = (size_t)x->needs[i];
        close_over(c, need, done);
        for (size_t w = 0; w < c->n_words; w++)
            mine[w] |= c->above[need * c->n_words + w];
        mine[need / 64] |= (uint64_t)1 << (need % 64);
    }
}

/* Compute that exchange x may run beside; marks it in `beside`. */
static double independent(const Closure *c, size_t x, bool *beside) {
    double sum = 0;
    for (size_t i = 0; i < c->p->n_steps; i++) {
        const MoeSimStep *s = &c->p->steps[i];
        if (is_comm(s) || !counts(c, i) || s->phase < c->p->steps[x].phase || s->phase > c->until[x] ||
            has(c->above + x * c->n_words, i) || has(c->above + i * c->n_words, x))
            continue;
        sum += s->seconds;
        beside[i] = true;
    }
    return sum;
}

static int busiest(const MoeSimStep *s) {
    int most = 0;
    for (int k = 1; k < MOE_N_LINKS; k++)
        if (s->links.first[k] + s->links.second[k] > s->links.first[most] + s->links.second[most])
            most = k;
    return most;
}

/* Takes what exchanges that keep links of class k busiest can hide from *b. */
static void bound_class(const Closure *c, int k, MoeSimBound *b, bool *beside) {
    const MoeSimProblem *p = c->p;
    double hidden[MOE_N_SIM_KINDS] = {0}, total = 0, room = 0;
    memset(beside, 0, p->n_steps * sizeof *beside);
    for (size_t i = 0; i < p->n_steps; i++) {
        const MoeSimStep *s = &p->steps[i];
        if (!is_comm(s) || !counts(c, i) || busiest(s) != k)
            continue;
        double carried = moe_sim_alone(p, s) - moe_sim_by_cores(s), free = independent(c, i, beside),
               most = carried < free ? carried : free;
        hidden[s->kind] += most;
        total += most;
        room += carried - s->links.first[k] - s->links.second[k]; /* latencies pass side by side */
    }
    for (size_t i = 0; i < p->n_steps; i++)
        room += beside[i] ? p->steps[i].seconds : 0;
    for (int kind = 0; kind < MOE_N_SIM_KINDS; kind++)
        b->exposed[kind] -= hidden[kind] < room ? hidden[kind] : room;
    b->total -= total < room ? total : room;
}

static int *last_phases(const MoeSimProblem *p, MoeArena *a) {
    int *until = MOE_NEW_N(a, int, p->n_steps);
    for (size_t i = 0; i < p->n_steps; i++)
        until[i] = p->steps[i].phase;
    for (size_t i = 0; i < p->n_steps; i++)
        for (size_t k = 0; k < p->steps[i].n_needs; k++) {
            int x = p->steps[i].needs[k];
            if (p->steps[i].stretch == p->steps[x].stretch && p->steps[i].phase > until[x])
                until[x] = p->steps[i].phase;
        }
    return until;
}

MoeSimBound moe_sim_bound(const MoeSimProblem *p, const bool *only) {
    MoeArena *a = moe_arena_create();
    MoeSimBound b = {0};
    Closure c = {.p = p, .only = only, .n_words = (p->n_steps + 63) / 64};
    bool *flags = MOE_NEW_N(a, bool, p->n_steps);
    c.above = MOE_NEW_N(a, uint64_t, p->n_steps * c.n_words);
    c.until = last_phases(p, a);
    for (size_t i = 0; i < p->n_steps; i++) {
        close_over(&c, i, flags);
        bool comm = is_comm(&p->steps[i]) && counts(&c, i);
        double alone = comm ? moe_sim_alone(p, &p->steps[i]) : 0;
        b.exposed[p->steps[i].kind] += alone;
        b.total += alone;
    }
    for (int k = 0; k < MOE_N_LINKS; k++)
        bound_class(&c, k, &b, flags);
    moe_arena_destroy(a);
    return b;
}
