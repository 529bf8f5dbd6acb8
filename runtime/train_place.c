/* Online placement in the training loop: the history of a run that goes on, the moves before a step, what is logged of them.
 * Declared in trainer.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "runtime/place_fault.h"
#include "runtime/trainer.h"

/* The placer sees the last steps of a run that goes on as if it had been there. */
static MoeStatus read_history(MoeTrainer *s) {
    const MoePlan *p = s->plan;
    size_t n = p->n_moe_layers * (size_t)p->virtual_shards * (size_t)p->experts;
    int64_t last = s->state.step, first = last - moe_place_window(s->place) + 1;
    first = first < 1 ? 1 : first;
    int64_t steps = last - first + 1;
    if (!s->o->out_dir || steps < 1)
        return NULL;
    int32_t *loads = calloc((size_t)steps, n * sizeof *loads);
    bool *there = calloc((size_t)steps, sizeof *there);
    MoeStatus st = loads && there ? NULL
                                  : moe_error(MOE_E_NOMEM, "no memory for the loads of %lld steps",
                                              (long long)steps);
    if (!st && moe_trace_steps(s->o->out_dir, p->moe_layers, p->n_moe_layers, p->virtual_shards,
                               p->experts, first, last, loads, there))
        for (int64_t i = 0; i < steps; i++)
            if (there[i])
                moe_place_observe(s->place, first + i, loads + (size_t)i * n);
    free(loads);
    free(there);
    return st;
}

MoeStatus moe_train_place_start(MoeTrainer *s, bool resumed) {
    const MoePlaceOptions *o = &s->o->place;
    MOE_TRY(moe_place_open(s->plan, s->x, o, s->state.seed, &s->place));
    if (!s->place && s->speaks && strcmp(o->policy, "static") != 0)
        moe_note(
            "--placement %s is left out: %s", o->policy,
            s->plan->n_moe_layers
                ? "the plan has all experts on each rank (moec compile --expert-parallel-degree)"
                : "the model has no experts");
    if (!s->place || !s->speaks)
        return NULL;
    if (resumed)
        MOE_TRY(read_history(s));
    s->place_due = moe_place_due(s->place, s->state.step + 1);
    return NULL;
}

/* A log that cannot be written does not end the training. */
static void log_events(MoeTrainer *s, const MoeStr *events) {
    MoeStatus st =
        s->log && events->len ? moe_log_placement(s->log, moe_str_c(events), events->len) : NULL;
    if (st && !s->log_failed)
        moe_warn("%s; training goes on", moe_status_message(st));
    s->log_failed = s->log_failed || st;
    moe_status_free(st);
}

MoeStatus moe_train_place(MoeTrainer *s) {
    MoePlaceChange change;
    MoeStr events = {0};
    MoeStatus st =
        moe_place_change(s->place, s->state.step + 1, s->speaks ? &events : NULL, &change);
    s->place_due = false;
    if (!st) {
        MoeTrainReport *r = s->report;
        r->place_changes += change.moved;
        r->place_experts += change.experts;
        r->place_bytes += change.bytes;
        if (change.staging_bytes > r->place_staging_bytes)
            r->place_staging_bytes = change.staging_bytes;
        r->place_seconds += change.seconds;
        s->emulated_seconds += isnan(change.emulated_seconds) ? 0 : change.emulated_seconds;
        log_events(s, &events);
        if (change.moved)
            moe_status_free(moe_place_point(s->comm->rank, MOE_PLACE_AT_LOGGED, NULL, 0));
    }
    moe_str_free(&events);
    return st;
}
