/* The training loop. See train.h for the options and docs/PLAN.md for what a step is. */
#include "runtime/train.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/pool.h"
#include "runtime/run_config.h"
#include "runtime/trainer.h"
#include "runtime/train_signal.h"

#define SKIPS_IN_ROW 10

/* ---- one step ---- */

/* Held-out data: all of it, or `batches` batches spread evenly over it. *out_done false when a
 * signal cut it short. */
static MoeStatus evaluate(MoeTrainer *s, int64_t batches, double *out_loss, int64_t *out_tokens,
                          bool *out_done) {
    int64_t windows = moe_data_eval_windows(s->data), B = s->plan->batch,
            all = (windows + B - 1) / B, tokens = 0;
    double nll = 0;
    *out_done = false;
    if (!windows)
        return NULL;
    if (batches <= 0 || batches > all)
        batches = all;
    for (int64_t i = 0; i < batches; i++) {
        double part;
        int64_t n;
        if (moe_signals_received())
            return NULL;
        MoeBatch b = {s->ids, s->labels,
                      moe_data_eval(s->data, i * all / batches * B, B, s->ids, s->labels)};
        MOE_TRY(moe_exec_eval(s->x, &b, &part, &n));
        nll += part;
        tokens += n;
    }
    *out_loss = tokens ? nll / (double)tokens : NAN;
    *out_tokens = tokens;
    *out_done = true;
    return NULL;
}

static MoeStatus evaluate_into(MoeTrainer *s, int64_t batches, MoeLogRecord *r) {
    double bytes = moe_data_bytes_per_token(s->data);
    MOE_TRY(evaluate(s, batches, &r->eval_loss, &r->eval_tokens, &r->has_eval));
    if (!r->has_eval)
        return NULL;
    r->eval_bits_per_byte = bytes > 0 ? r->eval_loss / log(2.0) / bytes : NAN;
    s->report->has_eval = true;
    s->report->eval_loss = r->eval_loss;
    s->report->eval_bits_per_byte = r->eval_bits_per_byte;
    if (bytes > 0)
        moe_progress_say(
            s->progress, "step %lld: held-out loss %.4f, %.4f bits per byte (%lld tokens)",
            (long long)r->step, r->eval_loss, r->eval_bits_per_byte, (long long)r->eval_tokens);
    else
        moe_progress_say(s->progress, "step %lld: held-out loss %.4f (%lld tokens)",
                         (long long)r->step, r->eval_loss, (long long)r->eval_tokens);
    return NULL;
}

/* The peak that MFU is measured against; 0 unknown. */
static double peak_flops(const MoeTrainer *s) {
    int threads = moe_exec_threads(s->x), cores = moe_cpu_count();
    return s->plan->peak_flops * (threads < cores ? threads : cores);
}

static void fill_load(MoeTrainer *s, MoeLogRecord *r) {
    const int32_t *load = moe_exec_load(s->x); /* [layers][V][E] */
    const int V = s->plan->virtual_shards, E = s->plan->experts;
    for (size_t k = 0; k < s->plan->n_moe_layers; k++) {
        int64_t *total = s->report->load + k * (size_t)E, sum = 0, most = 0;
        for (int e = 0; e < E; e++) {
            int64_t n = 0;
            for (int v = 0; v < V; v++)
                n += load[(k * (size_t)V + (size_t)v) * (size_t)E + (size_t)e];
            total[e] += n;
            sum += n;
            most = n > most ? n : most;
        }
        s->imbalance[k] = 1.0; /* one rank holds every expert */
        s->expert_imbalance[k] = sum ? (double)most * E / (double)sum : 1.0;
    }
    r->imbalance = s->imbalance;
    r->expert_imbalance = s->expert_imbalance;
    r->n_layers = s->plan->n_moe_layers;
}

static MoeStatus train_step(MoeTrainer *s, MoeLogRecord *r) {
    const MoeTrainOptions *o = s->o;
    MoeTrainState *state = &s->state;
    MoeStepResult result;
    double start_time = moe_now();
    MoeBatch b = {s->ids, s->labels, s->plan->batch};
    MOE_TRY(moe_data_next(s->data, b.n_seqs, s->ids, s->labels));
    MoeHyper h = {.lr = moe_train_lr(o, state->step + 1),
                  .beta1 = o->beta1,
                  .beta2 = o->beta2,
                  .eps = o->eps,
                  .weight_decay = o->weight_decay,
                  .max_grad_norm = o->max_grad_norm,
                  .step = state->updates + 1};
    MOE_TRY(moe_exec_train_step(s->x, &b, &h, &result));
    double seconds = moe_now() - start_time, peak = peak_flops(s);
    *r = (MoeLogRecord){.step = state->step + 1,
                        .tokens = result.tokens,
                        .memory_bytes = moe_exec_memory_bytes(s->x),
                        .loss = result.loss,
                        .ce_loss = result.ce_loss,
                        .aux_loss = result.aux_loss,
                        .grad_norm = result.grad_norm,
                        .lr = h.lr,
                        .seconds = seconds,
                        .has_aux = result.has_aux,
                        .skipped = !result.updated,
                        .tokens_per_second = (double)result.tokens / seconds,
                        .mfu = NAN};
    if (peak > 0 && s->plan->flops_per_token > 0)
        r->mfu = s->plan->flops_per_token * r->tokens_per_second / peak;
    fill_load(s, r);
    state->step++;
    state->tokens += result.tokens;
    state->train_seconds += seconds;
    state->data = moe_data_position(s->data);
    s->step_seconds += seconds;
    s->step_tokens += result.tokens;
    if (result.updated) {
        state->updates++;
        state->skipped_in_row = 0;
        s->report->loss = result.loss;
        s->report->ce_loss = result.ce_loss;
        s->report->aux_loss = result.aux_loss;
    } else {
        state->skipped++;
        state->skipped_in_row++;
    }
    return NULL;
}

/* A log that cannot be written (a full disk) does not end the training. */
static void write_log(MoeTrainer *s, const MoeLogRecord *r) {
    MoeStatus st = s->log ? moe_log_step(s->log, r, moe_exec_load(s->x), s->plan->moe_layers,
                                         s->plan->virtual_shards)
                          : NULL;
    if (st && !s->log_failed)
        moe_warn("%s; training goes on, steps may be missing from the log", moe_status_message(st));
    s->log_failed = s->log_failed || st;
    moe_status_free(st);
}

/* A checkpoint that cannot be written does not end the training either; the one before stays. */
static void checkpoint(MoeTrainer *s) {
    const char *run = s->o->out_dir;
    if (!run || s->saved_step == s->state.step)
        return;
    MoeStatus st = moe_log_sync(s->log);
    if (!st)
        st = moe_checkpoint_save(s->plan, s->x, run, &s->state);
    s->report->checkpoint_failed = st != NULL;
    if (st) {
        s->state.checkpoint_failures++;
        moe_warn("%s; training goes on, the last good checkpoint is %s", moe_status_message(st),
                 s->report->checkpoint ? s->report->checkpoint : "none");
        moe_status_free(st);
        return;
    }
    MoeStr path = {0};
    moe_str_printf(&path, "%s/checkpoints/step-%lld", run, (long long)s->state.step);
    free(s->report->checkpoint);
    s->report->checkpoint = path.data;
    s->saved_step = s->state.step;
    st = moe_checkpoint_prune(run, s->o->keep);
    if (st)
        moe_warn("%s", moe_status_message(st));
    moe_status_free(st);
}

static bool due(int64_t step, int64_t every) {
    return every > 0 && step % every == 0;
}

static MoeStatus loop(MoeTrainer *s) {
    const MoeTrainOptions *o = s->o;
    MoeStopReason reason = MOE_STOP_DONE;
    bool stop = s->state.step >= o->steps;
    if (stop) { /* nothing left to do: say how good the model is */
        MoeLogRecord r = {.step = s->state.step};
        moe_progress_say(s->progress, "the run has reached step %lld of %lld already",
                         (long long)s->state.step, (long long)o->steps);
        MOE_TRY(evaluate_into(s, 0, &r));
        if (o->out_dir)
            moe_trace_sum(o->out_dir, s->plan->moe_layers, s->plan->n_moe_layers,
                          (size_t)s->plan->experts, s->report->load);
    }
    while (!stop) {
        MoeLogRecord r;
        MOE_TRY(train_step(s, &r));
        /* Decided once a step, so that what is logged and what is done agree. */
        if (moe_signals_received())
            reason = MOE_STOP_SIGNAL;
        else if (s->state.step < o->steps && o->max_seconds > 0 &&
                 moe_now() - s->start >= o->max_seconds)
            reason = MOE_STOP_TIME;
        stop = reason != MOE_STOP_DONE || s->state.step >= o->steps;
        bool give_up = s->state.skipped_in_row >= SKIPS_IN_ROW;
        if (!give_up && reason != MOE_STOP_SIGNAL && (stop || due(s->state.step, o->eval_every)))
            MOE_TRY(evaluate_into(s, stop ? 0 : o->eval_batches, &r));
        write_log(s, &r);
        moe_progress_step(s->progress, &r, moe_now() - s->start);
        if (r.skipped)
            moe_warn("step %lld is skipped: loss %g, gradient norm %g are not both finite; "
                     "parameters are unchanged",
                     (long long)r.step, r.loss, r.grad_norm);
        if (give_up)
            return moe_error(MOE_E_INPUT,
                             "%d steps in a row were not finite (up to step %lld): training stops; "
                             "parameters of the last good step are in "
                             "%s. Lower --lr, raise --warmup, or check the data",
                             SKIPS_IN_ROW, (long long)s->state.step,
                             s->report->checkpoint ? s->report->checkpoint : "no checkpoint");
        if (stop || due(s->state.step, o->checkpoint_every))
            checkpoint(s);
    }
    s->report->reason = reason;
    if (reason == MOE_STOP_SIGNAL)
        moe_progress_say(s->progress, "stopped by signal %d after step %lld",
                         moe_signals_received(), (long long)s->state.step);
    if (reason == MOE_STOP_TIME)
        moe_progress_say(s->progress, "the time budget is used up after step %lld of %lld",
                         (long long)s->state.step, (long long)o->steps);
    return NULL;
}

MoeStatus moe_train_run(const MoePlan *plan, const MoeTrainOptions *o, MoeTrainReport *out) {
    *out = (MoeTrainReport){
        .eval_bits_per_byte = NAN, .mfu = NAN, .loss = NAN, .ce_loss = NAN, .aux_loss = NAN};
    MoeTrainer s = {
        .plan = plan, .o = o, .report = out, .lock = -1, .saved_step = -1, .start = moe_now()};
    moe_signals_catch();
    MoeStatus st = moe_train_start(&s);
    if (!st)
        st = loop(&s);
    moe_signals_restore();
    out->state = s.state;
    out->seconds = moe_now() - s.start;
    if (s.step_seconds > 0) {
        out->tokens_per_second = (double)s.step_tokens / s.step_seconds;
        if (peak_flops(&s) > 0 && plan->flops_per_token > 0)
            out->mfu = plan->flops_per_token * out->tokens_per_second / peak_flops(&s);
    }
    moe_progress_done(s.progress);
    moe_log_close(s.log);
    moe_run_unlock(s.lock);
    moe_exec_destroy(s.x);
    moe_data_close(s.data);
    free(s.ids);
    free(s.labels);
    free(s.imbalance);
    free(s.expert_imbalance);
    if (st)
        moe_train_report_free(out);
    return st;
}

void moe_train_report_free(MoeTrainReport *r) {
    free(r->load);
    free(r->checkpoint);
    r->load = NULL;
    r->checkpoint = NULL;
}
