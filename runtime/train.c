/* The training loop. See train.h for the options and docs/PLAN.md for what a step is. */
#include "runtime/train.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/pool.h"
#include "runtime/emulate.h"
#include "runtime/profile.h"
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
        int signal;
        MOE_TRY(moe_train_signal(s, &signal));
        if (signal)
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

/* The peak that MFU is measured against, of the cores that all ranks can keep busy; 0 unknown. */
static double peak_flops(const MoeTrainer *s) {
    return s->plan->peak_flops * s->cores;
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
        s->expert_imbalance[k] = sum ? (double)most * E / (double)sum : 1.0;
    }
    moe_train_imbalance(s, s->imbalance);
    r->imbalance = s->imbalance;
    r->expert_imbalance = s->expert_imbalance;
    r->n_layers = s->plan->n_moe_layers;
}

/* What the clocks of emulated links have gained since this was last called, and how much of it in waits. */
static MoeStatus read_clocks(MoeTrainer *s, MoeLogRecord *r) {
    int n = s->comm->size;
    r->emulated = moe_comm_emulated(s->comm);
    if (!r->emulated)
        return NULL;
    MoeEmulateStats *ranks = calloc((size_t)n, sizeof *ranks);
    if (!ranks)
        return moe_error(MOE_E_NOMEM, "no memory for the clocks of %d ranks", n);
    MoeStatus st = moe_emulate_step(s->comm, &r->emulated_seconds, ranks);
    r->emulated_exposed = r->emulated_a2a_exposed = 0;
    for (int i = 0; i < n; i++) {
        r->emulated_exposed += ranks[i].exposed / n;
        r->emulated_a2a_exposed += ranks[i].marked / n;
    }
    free(ranks);
    return st;
}

/* The step, of which the timeline is kept if it is the one that was asked for. A profile that cannot be written is no reason to stop. */
static MoeStatus profiled_step(MoeTrainer *s, const MoeBatch *b, const MoeHyper *h, MoeStepResult *out) {
    MoeProfile *profile = NULL;
    bool wanted = s->o->out_dir && s->o->profile_step == s->state.step + 1;
    if (wanted)
        MOE_TRY(moe_profile_begin(s->x, &profile));
    MoeStatus st = moe_exec_train_step(s->x, b, h, out);
    if (!wanted || st) {
        moe_profile_abandon(profile);
        return st;
    }
    st = moe_profile_end(profile, s->o->out_dir, s->state.step + 1);
    if (st)
        moe_warn("%s; training goes on", moe_status_message(st));
    moe_status_free(st);
    return NULL;
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
    moe_exec_set_step(s->x, state->step + 1);
    MoeLogRecord clocks = {0};
    MOE_TRY(read_clocks(s, &clocks)); /* what came between steps is no step's */
    MOE_TRY(profiled_step(s, &b, &h, &result));
    double seconds = moe_now() - start_time, peak = peak_flops(s);
    MOE_TRY(read_clocks(s, &clocks));
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
                        .fast_reduce = s->plan->fast_reduce,
                        .emulated = clocks.emulated,
                        .emulated_seconds = clocks.emulated_seconds,
                        .emulated_exposed = clocks.emulated_exposed,
                        .emulated_a2a_exposed = clocks.emulated_a2a_exposed,
                        .tokens_per_second = (double)result.tokens / seconds,
                        .mfu = NAN};
    if (peak > 0 && s->plan->flops_per_token > 0)
        r->mfu = s->plan->flops_per_token * r->tokens_per_second / peak;
    state->step++;
    if (s->speaks)
        fill_load(s, r);
    if (s->speaks && s->place)
        moe_place_observe(s->place, state->step, moe_exec_load(s->x));
    state->tokens += result.tokens;
    state->train_seconds += seconds;
    state->data = moe_data_position(s->data);
    s->step_seconds += seconds;
    s->compute_seconds = result.compute_seconds;
    s->step_tokens += result.tokens;
    s->steps++;
    s->emulated_seconds += clocks.emulated ? clocks.emulated_seconds : NAN;
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

/* A checkpoint that cannot be written does not end the training either; the one before stays. All ranks have the same
 * status of it. */
static MoeStatus checkpoint(MoeTrainer *s) {
    const char *run = s->o->out_dir;
    if (!run || s->saved_step == s->state.step)
        return NULL;
    moe_comm_phase(s->comm, s->state.step, "checkpoint");
    MoeStatus st = moe_train_agree(s, s->log ? moe_log_sync(s->log) : NULL, "the log");
    if (!st)
        st = moe_checkpoint_save(s->plan, s->x, run, &s->state);
    s->agreed = false;
    s->report->checkpoint_failed = st != NULL;
    if (st && moe_status_code(st) == MOE_E_PEER)
        return st;
    if (st) {
        s->state.checkpoint_failures++;
        if (s->speaks)
            moe_warn("%s; training goes on, the last good checkpoint is %s", moe_status_message(st),
                     s->report->checkpoint ? s->report->checkpoint : "none");
        moe_status_free(st);
        return NULL;
    }
    MoeStr path = {0};
    moe_str_printf(&path, "%s/checkpoints/step-%lld", run, (long long)s->state.step);
    free(s->report->checkpoint);
    s->report->checkpoint = path.data;
    s->saved_step = s->state.step;
    st = s->speaks ? moe_checkpoint_prune(run, s->o->keep) : NULL;
    if (st)
        moe_warn("%s", moe_status_message(st));
    moe_status_free(st);
    return NULL;
}

static bool due(int64_t step, int64_t every) {
    return every > 0 && step % every == 0;
}

/* Where this process ends at the latest. */
static int64_t last_step(const MoeTrainOptions *o) {
    return o->stop_after_step && o->stop_after_step < o->steps ? o->stop_after_step : o->steps;
}

static void say_growth(MoeTrainer *s, int rank) {
    const MoeExecGrowth *g = &s->notes[rank].growth;
    char used[32], planned[32], all[32];
    if (!s->speaks)
        return;
    moe_format_bytes((double)g->used, used);
    moe_format_bytes((double)g->planned, planned);
    moe_format_bytes((double)s->notes[rank].memory_bytes, all);
    moe_progress_say(s->progress,
                     "step %lld: layer %d of rank %d got more rows than balanced routing sends: "
                     "they take %s, planned %s; the rank's memory is %s now",
                     (long long)s->state.step, g->layer, rank, used, planned, all);
}

/* Nothing left to do: says how good the model is. */
static MoeStatus finished_already(MoeTrainer *s) {
    const MoeTrainOptions *o = s->o;
    MoeLogRecord r = {.step = s->state.step};
    moe_progress_say(s->progress, "the run has reached step %lld of %lld already",
                     (long long)s->state.step, (long long)last_step(o));
    MOE_TRY(evaluate_into(s, 0, &r));
    if (o->out_dir && s->speaks)
        moe_trace_sum(o->out_dir, s->plan->moe_layers, s->plan->n_moe_layers,
                      (size_t)s->plan->experts, s->report->load);
    return NULL;
}

/* Decided once a step, from what all ranks say, so that what is logged and what is done agree, everywhere. */
static MoeStatus decide(MoeTrainer *s, MoeLogRecord *r, MoeStopReason *out) {
    const MoeTrainOptions *o = s->o;
    MoeRankNote any = {0};
    double compute = 0;
    int grown = -1;
    MOE_TRY(moe_train_notes(s));
    for (int i = 0; i < s->plan->ranks; i++) {
        const MoeRankNote *n = &s->notes[i];
        any.signal = any.signal ? any.signal : n->signal;
        any.time_up |= n->time_up;
        any.memory_bytes = n->memory_bytes > any.memory_bytes ? n->memory_bytes : any.memory_bytes;
        compute += n->compute_seconds;
        any.compute_seconds = fmax(any.compute_seconds, n->compute_seconds);
        if (n->growth.used &&
            (grown < 0 || n->growth.used - n->growth.planned >
                              s->notes[grown].growth.used - s->notes[grown].growth.planned))
            grown = i;
    }
    if (grown >= 0)
        say_growth(s, grown);
    s->signal = any.signal;
    s->place_due = s->notes[0].place_due;
    s->report->memory_bytes = r->memory_bytes;
    s->report->memory_bytes_max = r->memory_bytes_max = any.memory_bytes;
    r->n_ranks = s->plan->ranks;
    r->compute_imbalance = compute > 0 ? any.compute_seconds * r->n_ranks / compute : 1;
    *out = any.signal                                                  ? MOE_STOP_SIGNAL
           : s->state.step >= o->steps                                 ? MOE_STOP_DONE
           : o->stop_after_step && s->state.step >= o->stop_after_step ? MOE_STOP_STEP
           : any.time_up                                               ? MOE_STOP_TIME
                                                                       : MOE_STOP_DONE;
    return NULL;
}

static MoeStatus give_up(const MoeTrainer *s) {
    return moe_error(MOE_E_INPUT,
                     "%d steps in a row were not finite (up to step %lld): training stops; "
                     "parameters of the last good step are in "
                     "%s. Lower --lr, raise --warmup, or check the data",
                     SKIPS_IN_ROW, (long long)s->state.step,
                     s->report->checkpoint ? s->report->checkpoint : "no checkpoint");
}

/* A step and what follows it; *out_stop: it was the last. */
static MoeStatus turn(MoeTrainer *s, bool *out_stop) {
    const MoeTrainOptions *o = s->o;
    MoeLogRecord r;
    MoeStopReason reason;
    if (s->place_due)
        MOE_TRY(moe_train_place(s));
    MOE_TRY(train_step(s, &r));
    MOE_TRY(decide(s, &r, &reason));
    s->report->reason = reason;
    *out_stop = reason != MOE_STOP_DONE || s->state.step >= o->steps;
    bool hopeless = s->state.skipped_in_row >= SKIPS_IN_ROW; /* the same losses everywhere */
    /* A stop that is to go on later leaves the log as if there had been none. */
    bool last = reason == MOE_STOP_TIME || s->state.step >= o->steps;
    if (!hopeless && reason != MOE_STOP_SIGNAL && (last || due(s->state.step, o->eval_every)))
        MOE_TRY(evaluate_into(s, last ? 0 : o->eval_batches, &r));
    write_log(s, &r);
    moe_progress_step(s->progress, &r, moe_now() - s->start);
    if (r.skipped && s->speaks)
        moe_warn("step %lld is skipped: loss %g, gradient norm %g are not both finite; "
                 "parameters are unchanged",
                 (long long)r.step, r.loss, r.grad_norm);
    if (hopeless)
        return moe_train_agree(s, give_up(s), "giving up");
    return *out_stop || due(s->state.step, o->checkpoint_every) ? checkpoint(s) : NULL;
}

static MoeStatus loop(MoeTrainer *s) {
    const MoeTrainOptions *o = s->o;
    bool stop = s->state.step >= last_step(o);
    if (stop)
        return finished_already(s);
    while (!stop)
        MOE_TRY(turn(s, &stop));
    if (s->report->reason == MOE_STOP_SIGNAL)
        moe_progress_say(s->progress, "stopped by signal %d after step %lld", s->signal,
                         (long long)s->state.step);
    if (s->report->reason == MOE_STOP_TIME)
        moe_progress_say(s->progress, "the time budget is used up after step %lld of %lld",
                         (long long)s->state.step, (long long)o->steps);
    return NULL;
}

/* Starts and trains; the others hear of an error that is this rank's alone. */
static MoeStatus run(MoeTrainer *s, MoeComm *comm) {
    if (!comm)
        MOE_TRY(moe_comm_self(&s->own_comm));
    s->comm = comm ? comm : s->own_comm;
    s->speaks = s->comm->rank == 0;
    MoeStatus st = moe_train_start(s);
    if (!st)
        st = loop(s);
    if (st && !s->agreed && moe_status_code(st) != MOE_E_PEER)
        moe_comm_abort(s->comm, moe_status_message(st));
    return st;
}

MoeStatus moe_train_run(const MoePlan *plan, MoeComm *comm, const MoeTrainOptions *o,
                        MoeTrainReport *out) {
    *out = (MoeTrainReport){
        .eval_bits_per_byte = NAN, .mfu = NAN, .loss = NAN, .ce_loss = NAN, .aux_loss = NAN};
    MoeTrainer s = {
        .plan = plan, .o = o, .report = out, .lock = -1, .saved_step = -1, .start = moe_now()};
    moe_signals_catch();
    MoeStatus st = run(&s, comm);
    moe_signals_restore();
    out->state = s.state;
    out->agreed = st && s.agreed;
    out->seconds = moe_now() - s.start;
    out->emulated = s.steps && moe_comm_emulated(s.comm);
    out->emulated_seconds = s.emulated_seconds / (double)s.steps;
    if (s.step_seconds > 0) {
        out->tokens_per_second = (double)s.step_tokens / s.step_seconds;
        if (peak_flops(&s) > 0 && plan->flops_per_token > 0)
            out->mfu = plan->flops_per_token * out->tokens_per_second / peak_flops(&s);
    }
    moe_progress_done(s.progress);
    moe_log_close(s.log);
    moe_run_unlock(s.lock);
    moe_place_close(s.place);
    moe_train_split_destroy(s.split);
    moe_exec_destroy(s.x);
    moe_comm_destroy(s.own_comm);
    moe_data_close(s.data);
    free(s.ids);
    free(s.labels);
    free(s.notes);
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
