/* The list scheduler of the overlap pass. In: items, a policy. Out: an order of them, its seconds and its memory. See overlap.h.
 *
 * Two resources, compute and links, with the simulator's clocks. Phases stay in order. Of a phase, again and again the first of
 * these that applies:
 * 1. an exchange that kernels need starts as soon as its operands are there;
 * 2. sums and gathers start when their links have nothing to do: one or two sums at a time, gathers as far ahead as the policy
 *    says;
 * 3. the next step in the given order runs, if it need not wait for an exchange - or a filler, if more of them are held back
 *    than the policy says, or memory is short, in which case sums start and end whatever they take;
 * 4. while it would have to wait: the oldest filler, or a step further on;
 * 5. else whatever can run first, and the rank waits.
 * Waits, feeders and gathers that were not started ahead run when what reads them does. */
#include "base/assert.h"
#include "passes/overlap.h"
#include "passes/overlap_memory.h"

typedef struct {
    const Overlap *x;
    const OverlapPolicy *policy;
    MoeArena *a;
    MoeSim *sim;
    OverlapMemory *memory;
    bool *issued;  /* by item */
    int *order;
    size_t n_order;
    int *sums; /* the waits for sums under way, as far as they are of this phase */
    size_t n_sums;
    MoePhase phase;
    size_t first[ITEM_WAIT + 1]; /* by kind: where to look for the first that is left */
} Sched;

static const OverlapItem *item(const Sched *s, int i) {
    return &s->x->items[i];
}

/* ---- running an item ---- */

static void issue(Sched *s, int i) {
    const OverlapItem *it = item(s, i);
    s->issued[i] = true;
    for (size_t k = 0; k < it->n_needs; k++)
        if (!s->issued[it->needs[k]])
            issue(s, it->needs[k]);
    for (size_t k = 0; k < it->n_steps; k++)
        moe_sim_run(s->sim, it->steps[k]);
    moe_overlap_memory_run(s->memory, i);
    s->order[s->n_order++] = i;
}

/* ---- what can run ---- */

/* Runs only because something that reads it does, or when there is room. */
static bool on_demand(OverlapClass k) {
    return k != ITEM_STEP && k != ITEM_FILLER;
}

static bool can_issue(const Sched *s, int i) {
    const OverlapItem *it = item(s, i);
    for (size_t k = 0; k < it->n_needs; k++) {
        int need = it->needs[k];
        if (!s->issued[need] && !(on_demand(item(s, need)->kind) && can_issue(s, need)))
            return false;
    }
    return true;
}

/* When it could run; what is issued on demand is taken to run now. *out_starts: it needs an exchange that has not started. */
static double ready_at(const Sched *s, int i, bool *out_starts) {
    const OverlapItem *it = item(s, i);
    double t = moe_sim_ready(s->sim, it->steps[0]);
    for (size_t k = 0; k < it->n_needs; k++) {
        int need = it->needs[k];
        if (s->issued[need])
            continue;
        double ready = ready_at(s, need, out_starts);
        *out_starts |= moe_overlap_is_exchange(item(s, need));
        t = ready > t ? ready : t;
    }
    return t;
}

static bool now(const Sched *s, int i) {
    bool starts = false;
    return ready_at(s, i, &starts) <= moe_sim_clock(s->sim) && !starts;
}

/* The first item of the kind from place `from` on in this phase that is left; -1: none. */
static int next_of(const Sched *s, OverlapClass kind, size_t from) {
    for (size_t i = from; i < s->x->n_items; i++)
        if (!s->issued[i] && item(s, (int)i)->kind == kind && item(s, (int)i)->phase == s->phase)
            return (int)i;
    return -1;
}

static int first_of(Sched *s, OverlapClass kind) {
    int i = next_of(s, kind, s->first[kind]);
    s->first[kind] = i < 0 ? s->x->n_items : (size_t)i;
    return i;
}

/* ---- the choices ---- */

static void end_sums(Sched *s, size_t keep) {
    size_t drop = s->n_sums > keep ? s->n_sums - keep : 0;
    for (size_t k = 0; k < drop; k++)
        if (!s->issued[s->sums[k]])
            issue(s, s->sums[k]);
    for (size_t k = drop; k < s->n_sums; k++)
        s->sums[k - drop] = s->sums[k];
    s->n_sums -= drop;
}

/* A sum ends when another wants its place, if nobody reads it before. */
static void start_exchange(Sched *s, int i) {
    const OverlapItem *it = item(s, i);
    if (moe_overlap_is_sum(it))
        end_sums(s, s->policy->sums - 1);
    issue(s, i);
    for (size_t k = 0; k < it->n_users && moe_overlap_is_sum(it); k++)
        if (item(s, it->users[k])->kind == ITEM_WAIT && item(s, it->users[k])->phase == s->phase)
            s->sums[s->n_sums++] = it->users[k];
}

static bool start_comm(Sched *s) {
    for (int i = first_of(s, ITEM_COMM); i >= 0; i = next_of(s, ITEM_COMM, (size_t)i + 1))
        if (can_issue(s, i) && now(s, i)) {
            start_exchange(s, i);
            return true;
        }
    return false;
}

static bool link_is_free(const Sched *s, int i, double by) {
    return moe_sim_link_free(s->sim, item(s, i)->steps[0]) <= by;
}

/* Makes room: the oldest sum under way ends, whatever its wait takes, or the next one starts. */
static bool end_or_start_sum(Sched *s) {
    if (s->n_sums) {
        end_sums(s, s->n_sums - 1);
        return true;
    }
    for (int i = first_of(s, ITEM_LATE); i >= 0; i = next_of(s, ITEM_LATE, (size_t)i + 1))
        if (can_issue(s, i) && now(s, i)) {
            start_exchange(s, i);
            return true;
        }
    return false;
}

/* Sums and gathers whose links have nothing to do by the time given. */
static bool start_others(Sched *s, double by) {
    for (int i = first_of(s, ITEM_LATE); i >= 0; i = next_of(s, ITEM_LATE, (size_t)i + 1))
        if (can_issue(s, i) && now(s, i)) {
            if (!s->policy->eager && !link_is_free(s, i, by))
                break;
            start_exchange(s, i);
            return true;
        }
    int i = first_of(s, ITEM_GATHER);
    if (i < 0 || !link_is_free(s, i, by) ||
        s->memory->ahead_bytes + item(s, i)->makes > s->policy->gather_bytes)
        return false;
    issue(s, i);
    return true;
}

/* Fillers that could run now: the first, and the seconds of all. */
static int find_filler(Sched *s, double *out_seconds) {
    int oldest = -1;
    *out_seconds = 0;
    for (int i = first_of(s, ITEM_FILLER); i >= 0; i = next_of(s, ITEM_FILLER, (size_t)i + 1)) {
        if (!can_issue(s, i))
            continue;
        if (!now(s, i))
            continue;
        oldest = oldest < 0 ? i : oldest;
        *out_seconds += item(s, i)->seconds;
    }
    return oldest;
}

/* A step behind the next one that can run now within the memory allowed. */
static int find_ahead(const Sched *s, int step) {
    for (int k = 0; k < s->policy->ahead; k++) {
        step = next_of(s, ITEM_STEP, (size_t)step + 1);
        if (step < 0)
            return -1;
        if (can_issue(s, step) && now(s, step) &&
            moe_overlap_memory_live(s->memory) + item(s, step)->makes <= s->policy->memory)
            return step;
    }
    return -1;
}

/* Of the next step, the steps behind it and all exchanges: what can run first. */
static int find_earliest(Sched *s, int step) {
    bool unused = false;
    int best = step;
    double t = step < 0 ? 0 : ready_at(s, step, &unused);
    for (int i = first_of(s, ITEM_COMM); i >= 0; i = next_of(s, ITEM_COMM, (size_t)i + 1)) {
        if (!can_issue(s, i))
            continue;
        double ready = ready_at(s, i, &unused);
        if (best < 0 || ready < t) {
            best = i;
            t = ready;
        }
    }
    return best;
}

/* An exchange that item i needs and that has not started; -1: none. */
static int find_needed(const Sched *s, int i) {
    const OverlapItem *it = item(s, i);
    for (size_t k = 0; k < it->n_needs; k++) {
        int need = it->needs[k];
        if (s->issued[need])
            continue;
        if (moe_overlap_is_exchange(item(s, need)))
            return need;
        int deeper = find_needed(s, need);
        if (deeper >= 0)
            return deeper;
    }
    return -1;
}

/* The rest of the phase once its steps have run. */
static bool run_rest(Sched *s, int filler) {
    static const OverlapClass kinds[] = {ITEM_COMM, ITEM_FILLER, ITEM_LATE, ITEM_GATHER, ITEM_FEEDER};
    int any = filler;
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds && any < 0; k++) {
        any = first_of(s, kinds[k]);
        while (any >= 0 && !can_issue(s, any))
            any = next_of(s, kinds[k], (size_t)any + 1);
    }
    if (any < 0)
        return false;
    if (moe_overlap_is_exchange(item(s, any)))
        start_exchange(s, any);
    else
        issue(s, any);
    return true;
}

/* What item i waits for ends, so that others can start before it runs: the next gather, where this one's was the last that was
 * allowed ahead. */
static bool wait_first(Sched *s, int i) {
    const OverlapItem *it = item(s, i);
    bool any = false;
    for (size_t k = 0; k < it->n_needs; k++) {
        int wait = it->needs[k];
        if (s->issued[wait] || item(s, wait)->kind != ITEM_WAIT)
            continue;
        issue(s, wait);
        for (size_t n = 0; n < item(s, wait)->n_needs; n++)
            moe_overlap_memory_stop_ahead(s->memory, item(s, wait)->needs[n]);
        any = true;
    }
    return any;
}

static bool run_next(Sched *s) {
    double held;
    int step = first_of(s, ITEM_STEP), filler = find_filler(s, &held);
    if (step < 0)
        return run_rest(s, filler);
    MOE_ASSERT(can_issue(s, step), "overlap: @%s: a step before what it needs", s->x->g->name);
    bool full = moe_overlap_memory_live(s->memory) + item(s, step)->makes > s->policy->memory;
    if (full && end_or_start_sum(s))
        return true;
    if (filler >= 0 && (held > s->policy->reserve || full)) {
        issue(s, filler);
        return true;
    }
    int needed = find_needed(s, step);
    if (needed >= 0) { /* a gather that was not started ahead */
        issue(s, needed);
        return true;
    }
    if (!now(s, step)) {
        bool unused = false;
        int other = filler >= 0 ? filler : find_ahead(s, step);
        if (other < 0) {
            step = find_earliest(s, step);
            if (start_others(s, ready_at(s, step, &unused)))
                return true;
        }
        step = other >= 0 ? other : step;
    }
    if (!wait_first(s, step))
        issue(s, step);
    return true;
}

static void run_phase(Sched *s) {
    for (int k = 0; k <= ITEM_WAIT; k++)
        s->first[k] = 0;
    while (start_comm(s) || start_others(s, moe_sim_clock(s->sim)) || run_next(s))
        continue;
    for (int i = first_of(s, ITEM_WAIT); i >= 0; i = first_of(s, ITEM_WAIT))
        issue(s, i);
    s->n_sums = 0;
}

/* ---- */

static Sched start(const Overlap *x, const OverlapPolicy *policy) {
    Sched s = {.x = x, .policy = policy, .a = moe_arena_create()};
    s.sim = moe_sim_create(&x->problem, s.a);
    s.issued = MOE_NEW_N(s.a, bool, x->n_items);
    s.memory = moe_overlap_memory_create(x, s.a);
    s.sums = MOE_NEW_N(s.a, int, x->n_items);
    s.order = MOE_NEW_N(x->a, int, x->n_items);
    return s;
}

/* The order is simulated as a whole, with the counting pass and all micro-batches. */
static OverlapOrder finish(Sched *s) {
    const Overlap *x = s->x;
    MOE_ASSERT(s->n_order == x->n_items, "overlap: @%s: %zu of %zu items are ordered", x->g->name,
               s->n_order, x->n_items);
    int *steps = MOE_NEW_N(s->a, int, x->problem.n_steps);
    size_t n = 0;
    for (size_t i = 0; i < x->n_items; i++)
        for (size_t k = 0; k < item(s, s->order[i])->n_steps; k++)
            steps[n++] = item(s, s->order[i])->steps[k];
    OverlapOrder out = {.order = s->order, .peak = s->memory->peak};
    out.seconds = moe_predict_seconds(&x->problem, steps, x->counted, x->micro_batches);
    moe_arena_destroy(s->a);
    return out;
}

OverlapOrder moe_overlap_schedule(const Overlap *x, const OverlapPolicy *policy) {
    Sched s = start(x, policy);
    for (s.phase = 0; s.phase < MOE_N_PHASES; s.phase++)
        run_phase(&s);
    return finish(&s);
}

OverlapOrder moe_overlap_as_given(const Overlap *x) {
    OverlapPolicy none = {0};
    Sched s = start(x, &none);
    for (size_t i = 0; i < x->n_items; i++) {
        const OverlapItem *it = item(&s, (int)i);
        if (s.issued[i])
            continue;
        issue(&s, (int)i);
        for (size_t k = 0; k < it->n_users && moe_overlap_is_exchange(it); k++)
            if (item(&s, it->users[k])->kind == ITEM_WAIT && !s.issued[it->users[k]])
                issue(&s, it->users[k]);
    }
    return finish(&s);
}
