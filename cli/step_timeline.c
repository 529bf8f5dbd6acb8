/* See step_timeline.h. */
#include "cli/step_timeline.h"

#include <math.h>
#include <stdlib.h>

#include "base/assert.h"

static void add(MoeStepTimeline *t, MoeStepTimelineEvent e) {
    if (t->n == t->cap) {
        t->cap = t->cap ? t->cap * 2 : 1024;
        t->events = realloc(t->events, t->cap * sizeof *t->events);
        MOE_ASSERT(t->events, "no memory for %zu events", t->cap);
    }
    t->events[t->n++] = e;
    t->seconds = fmax(t->seconds, e.end);
}

void moe_step_timeline_free(MoeStepTimeline *t) {
    free(t->events);
    *t = (MoeStepTimeline){0};
}

/* Where what a step starts, or does, shows. */
static MoeStepTimelineRow row_of(const MoePlanStep *s) {
    return s->n_moves ? MOE_ROW_STORE : s->n_comm ? MOE_ROW_LINKS : MOE_ROW_COMPUTE;
}

/* begun [n_steps]: when each exchange was started that nothing has waited for yet. */
static void add_step(MoeStepTimeline *t, const MoePlanProgram *g, MoeStepTimelineEvent e,
                     double *begun, double ended) {
    const MoePlanStep *s = e.step;
    size_t i = (size_t)(s - g->steps);
    bool starts = s->start || s->n_moves;
    if (starts)
        begun[i] = e.begin;
    if (!starts && s->wait < 0)
        add(t, e);
    if (s->wait < 0)
        return;
    add(t, e); /* on the row of compute, which stands still meanwhile */
    const MoePlanStep *of = &g->steps[s->wait];
    e.begin = begun[s->wait];
    e.end = ended;
    e.step = of;
    e.row = row_of(of);
    if (e.end > e.begin)
        add(t, e);
}

static int by_begin(const void *a, const void *b) {
    const MoeStepTimelineEvent *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    if (x->row != y->row)
        return x->row < y->row ? -1 : 1;
    if (x->end != y->end)
        return x->end < y->end ? -1 : 1;
    return (x->step > y->step) - (x->step < y->step);
}

/* Exchanges came in as they were waited for. */
static void sort(MoeStepTimeline *t) {
    if (t->n)
        qsort(t->events, t->n, sizeof *t->events, by_begin);
}

void moe_step_timeline_measured(const MoePlanProgram *g, const MoeProfileRank *p, double start,
                                MoeStepTimeline *out) {
    double *begun = calloc(g->n_steps + 1, sizeof *begun);
    MOE_ASSERT(begun, "no memory for %zu steps", g->n_steps);
    *out = (MoeStepTimeline){0};
    for (size_t i = 0; i < p->n; i++) {
        const MoeExecSpan *a = &p->spans[i];
        const MoePlanStep *s = &g->steps[a->step];
        add_step(out, g,
                 (MoeStepTimelineEvent){.row = s->wait >= 0 ? MOE_ROW_COMPUTE : row_of(s),
                                        .step = s,
                                        .micro = a->micro,
                                        .counting = a->counting,
                                        .begin = a->begin - start,
                                        .end = a->end - start},
                 begun, a->end - start);
    }
    free(begun);
    sort(out);
}

typedef struct {
    const MoePlanProgram *g;
    MoeStepTimeline *out;
    double *begun, *ends; /* [n_steps] of what was started */
    double clock, free[MOE_N_ROWS];
} Predict;

static void predict_step(Predict *p, const MoePlanStep *s, int micro, bool counting) {
    size_t i = (size_t)(s - p->g->steps);
    MoeStepTimelineRow row = row_of(s);
    MoeStepTimelineEvent e = {
        .row = row, .step = s, .micro = micro, .counting = counting, .begin = p->clock};
    double ended = 0;
    if (s->wait >= 0) {
        ended = p->ends[s->wait];
        p->clock = fmax(p->clock, ended);
        e.row = MOE_ROW_COMPUTE;
    } else if (s->start || s->n_moves) {
        e.begin = fmax(p->clock, p->free[row]);
        p->free[row] = p->ends[i] = e.begin + s->seconds;
    } else {
        if (row == MOE_ROW_LINKS)
            e.begin = fmax(p->clock, p->free[row]);
        p->clock = e.begin + s->seconds;
        p->free[row] = p->clock;
    }
    e.end = fmax(p->clock, e.begin);
    add_step(p->out, p->g, e, p->begun, ended);
}

static void predict_phases(Predict *p, MoePlanPhase lo, MoePlanPhase hi, int micro, bool counting) {
    for (size_t i = 0; i < p->g->n_steps; i++) {
        const MoePlanStep *s = &p->g->steps[i];
        if (s->phase >= lo && s->phase <= hi && (s->count || !counting))
            predict_step(p, s, micro, counting);
    }
}

void moe_step_timeline_predicted(const MoePlan *plan, const MoePlanProgram *g,
                                 MoeStepTimeline *out) {
    Predict p = {.g = g,
                 .out = out,
                 .begun = calloc(g->n_steps + 1, sizeof(double)),
                 .ends = calloc(g->n_steps + 1, sizeof(double))};
    MOE_ASSERT(p.begun && p.ends, "no memory for %zu steps", g->n_steps);
    *out = (MoeStepTimeline){0};
    for (int m = 0; m < plan->micro_batches && g->n_batch_sums; m++)
        predict_phases(&p, MOE_PHASE_FWD, MOE_PHASE_BWD, m, true);
    for (int m = 0; m < plan->micro_batches; m++)
        predict_phases(&p, MOE_PHASE_FWD, MOE_PHASE_BWD, m, false);
    predict_phases(&p, MOE_PHASE_RED, MOE_PHASE_UPD, plan->micro_batches - 1, false);
    free(p.begun);
    free(p.ends);
    sort(out);
}
