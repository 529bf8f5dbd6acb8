/* The training loop. See train.h for the options and docs/PLAN.md for what a step is. */
#include "runtime/train.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "base/log.h"
#include "base/pool.h"
#include "runtime/init.h"
#include "runtime/log.h"
#include "runtime/run_config.h"
#include "runtime/train_signal.h"
#include "runtime/weights.h"

#define SKIPS_IN_ROW 10

/* One session: everything that the loop holds. */
typedef struct {
    const MoePlan *plan;
    const MoeTrainOptions *o;
    MoeTrainReport *report;
    MoeTrainState state;
    MoeExec *x;
    MoeData *data;
    MoeLog *log;
    MoeProgress *progress;
    int lock;
    int32_t *ids, *labels;                /* [batch, seq] */
    double *imbalance, *expert_imbalance; /* [n_moe_layers] */
    double start;                         /* of the session */
    double step_seconds;                  /* in steps, this session */
    int64_t step_tokens;
    bool log_failed;                      /* said once */
    int64_t saved_step;                   /* of the last checkpoint, -1 none */
} Session;

/* ---- start ---- */

static bool has_checkpoints(const char *run_dir) {
    MoeCheckpointRef *refs = NULL;
    size_t n = 0;
    moe_status_free(moe_checkpoint_list(run_dir, &refs, &n));
    moe_checkpoint_list_free(refs, n);
    return n > 0;
}

/* --resume DIR: a checkpoint or a run. */
static MoeStatus load_given(Session *s, bool *out_loaded) {
    const char *dir = s->o->resume_dir;
    char *manifest = moe_path_join(dir, "manifest.json");
    MoeStatus st = NULL;
    if (!moe_path_is_dir(dir))
        st = moe_error(MOE_E_INPUT, "--resume %s: no such run or checkpoint directory", dir);
    else if (moe_path_exists(manifest)) {
        st = moe_checkpoint_load(s->plan, s->x, dir, true, &s->state);
        *out_loaded = !st;
    } else {
        st = moe_checkpoint_load_newest(s->plan, s->x, dir, true, &s->state, out_loaded);
        if (!st && !*out_loaded)
            st = moe_error(MOE_E_INPUT, "--resume %s: it holds no checkpoint", dir);
    }
    free(manifest);
    return st;
}

/* Whether `dir` (a run or one of its checkpoints) is of the run that is written. */
static bool is_inside(const char *dir, const char *run_dir) {
    char *a = realpath(dir, NULL), *b = realpath(run_dir, NULL);
    size_t n = b ? strlen(b) : 0;
    bool inside = a && b && !strncmp(a, b, n) && (a[n] == 0 || a[n] == '/');
    free(a);
    free(b);
    return inside;
}

/* Weights, states and counters: from a checkpoint, a Hugging Face directory, or the seed. */
static MoeStatus load_or_init(Session *s, bool existing, bool *out_resumed) {
    const MoeTrainOptions *o = s->o;
    bool loaded = false;
    bool holds = existing && has_checkpoints(o->out_dir);
    if (holds && o->resume == MOE_RESUME_NEVER)
        return moe_error(MOE_E_INPUT, "%s holds checkpoints of an earlier run; to start anew give another --out (or remove it), to go on leave "
                                      "out --resume never",
                         o->out_dir);
    if (holds && o->resume == MOE_RESUME_DIR && !is_inside(o->resume_dir, o->out_dir))
        return moe_error(MOE_E_INPUT, "%s holds checkpoints of its own; to resume from %s give another --out", o->out_dir, o->resume_dir);
    if (o->resume == MOE_RESUME_DIR)
        MOE_TRY(load_given(s, &loaded));
    else if (holds)
        MOE_TRY(moe_checkpoint_load_newest(s->plan, s->x, o->out_dir, true, &s->state, &loaded));
    *out_resumed = loaded;
    if (loaded && o->init_from)
        moe_note("--init-from %s is left out: training goes on from step %lld", o->init_from, (long long)s->state.step);
    if (loaded)
        return NULL;
    s->state = (MoeTrainState){.seed = o->seed};
    moe_init_states(s->plan, s->x);
    return o->init_from ? moe_weights_load(s->plan, s->x, o->init_from) : moe_init_params(s->plan, s->x, o->seed);
}

/* The data where the checkpoint left it. */
static void place_data(Session *s, bool resumed) {
    MoeTrainState *state = &s->state;
    const char *print = moe_data_fingerprint(s->data);
    if (resumed && state->seed != s->o->seed)
        moe_warn("the run was started with seed %llu and keeps it (not %llu)", (unsigned long long)state->seed,
                 (unsigned long long)s->o->seed);
    moe_data_set_seed(s->data, state->seed);
    bool same = !strcmp(print, state->data_fingerprint);
    if (resumed && same) {
        MoeStatus st = moe_data_seek(s->data, state->data);
        same = !st;
        moe_status_free(st);
    }
    if (resumed && !same)
        moe_warn("the data (or how it is divided) is not what the checkpoint was trained on: its order starts at the beginning");
    snprintf(state->data_fingerprint, sizeof state->data_fingerprint, "%s", print);
    state->data = moe_data_position(s->data);
}

static MoeStatus alloc_session(Session *s) {
    size_t n = (size_t)(s->plan->batch * s->plan->seq), layers = s->plan->n_moe_layers;
    s->ids = malloc(n * sizeof *s->ids);
    s->labels = malloc(n * sizeof *s->labels);
    s->imbalance = calloc(layers + 1, sizeof *s->imbalance);
    s->expert_imbalance = calloc(layers + 1, sizeof *s->expert_imbalance);
    s->report->load = calloc(layers * (size_t)s->plan->experts + 1, sizeof *s->report->load);
    s->report->n_layers = layers;
    s->report->n_experts = (size_t)s->plan->experts;
    if (!s->ids || !s->labels || !s->imbalance || !s->expert_imbalance || !s->report->load)
        return moe_error(MOE_E_NOMEM, "no memory for a batch of %zu tokens", n);
    return NULL;
}

static MoeStatus start(Session *s) {
    const MoeTrainOptions *o = s->o;
    const MoeDataOptions d = {o->data_path, o->data_format, o->eval_fraction, o->seed};
    bool existing = false, resumed = false;
    MOE_TRY(moe_train_options_check(o));
    MOE_TRY(moe_data_open(s->plan, &d, &s->data));
    MOE_TRY(alloc_session(s));
    MOE_TRY(moe_exec_create(s->plan, o->threads, &s->x));
    if (o->out_dir) {
        MOE_TRY(moe_run_dir_prepare(o->out_dir, s->plan, &existing));
        MOE_TRY(moe_run_lock(o->out_dir, &s->lock));
        moe_checkpoint_clean(o->out_dir);
    }
    MOE_TRY(load_or_init(s, existing, &resumed));
    place_data(s, resumed);
    if (o->out_dir) {
        MOE_TRY(moe_checkpoint_set_newer_aside(o->out_dir, s->state.step));
        MOE_TRY(moe_run_config_write(o->out_dir, s->plan, o->plan_dir, o->data_path, o->resolved));
        MOE_TRY(moe_log_open(o->out_dir, o->trace && s->plan->n_moe_layers, s->plan->experts, s->state.step, &s->log));
    }
    if (resumed && o->out_dir) {
        MoeStr path = {0};
        moe_str_printf(&path, "%s/checkpoints/step-%lld", o->out_dir, (long long)s->state.step);
        if (moe_path_exists(path.data)) { /* not when resumed from another run */
            s->saved_step = s->state.step;
            s->report->checkpoint = path.data;
        } else {
            moe_str_free(&path);
        }
    }
    s->report->first_step = s->state.step + 1;
    s->report->memory_bytes = moe_exec_memory_bytes(s->x);
    s->progress = moe_progress_create(o->quiet, o->log_seconds, o->steps, o->max_seconds);
    if (resumed)
        moe_progress_say(s->progress, "resumed at step %lld of %lld", (long long)s->state.step, (long long)o->steps);
    int64_t train = moe_data_train_windows(s->data);
    moe_progress_say(s->progress, "data: %lld tokens, %lld sequences of %lld to train on, %lld held out",
                     (long long)moe_data_tokens(s->data), (long long)train, (long long)s->plan->seq,
                     (long long)moe_data_eval_windows(s->data));
    if (train < s->plan->batch)
        moe_warn("%s: %lld training sequences are fewer than a batch of %lld: each batch repeats some", o->data_path, (long long)train,
                 (long long)s->plan->batch);
    return NULL;
}

/* ---- one step ---- */

/* Held-out data: all of it, or `batches` batches spread evenly over it. *out_done false when a signal cut it short. */
static MoeStatus evaluate(Session *s, int64_t batches, double *out_loss, int64_t *out_tokens, bool *out_done) {
    int64_t windows = moe_data_eval_windows(s->data), B = s->plan->batch, all = (windows + B - 1) / B, tokens = 0;
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
        MoeBatch b = {s->ids, s->labels, moe_data_eval(s->data, i * all / batches * B, B, s->ids, s->labels)};
        MOE_TRY(moe_exec_eval(s->x, &b, &part, &n));
        nll += part;
        tokens += n;
    }
    *out_loss = tokens ? nll / (double)tokens : NAN;
    *out_tokens = tokens;
    *out_done = true;
    return NULL;
}

static MoeStatus evaluate_into(Session *s, int64_t batches, MoeLogRecord *r) {
    double bytes = moe_data_bytes_per_token(s->data);
    MOE_TRY(evaluate(s, batches, &r->eval_loss, &r->eval_tokens, &r->has_eval));
    if (!r->has_eval)
        return NULL;
    r->eval_bits_per_byte = bytes > 0 ? r->eval_loss / log(2.0) / bytes : NAN;
    s->report->has_eval = true;
    s->report->eval_loss = r->eval_loss;
    s->report->eval_bits_per_byte = r->eval_bits_per_byte;
    if (bytes > 0)
        moe_progress_say(s->progress, "step %lld: held-out loss %.4f, %.4f bits per byte (%lld tokens)", (long long)r->step,
                         r->eval_loss, r->eval_bits_per_byte, (long long)r->eval_tokens);
    else
        moe_progress_say(s->progress, "step %lld: held-out loss %.4f (%lld tokens)", (long long)r->step, r->eval_loss,
                         (long long)r->eval_tokens);
    return NULL;
}

/* The peak that MFU is measured against; 0 unknown. */
static double peak_flops(const Session *s) {
    int threads = moe_exec_threads(s->x), cores = moe_cpu_count();
    return s->plan->peak_flops * (threads < cores ? threads : cores);
}

static void fill_load(Session *s, MoeLogRecord *r) {
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

static MoeStatus train_step(Session *s, MoeLogRecord *r) {
    const MoeTrainOptions *o = s->o;
    MoeTrainState *state = &s->state;
    MoeStepResult result;
    double start_time = moe_now();
    MoeBatch b = {s->ids, s->labels, s->plan->batch};
    MOE_TRY(moe_data_next(s->data, b.n_seqs, s->ids, s->labels));
    MoeHyper h = {.lr = moe_train_lr(o, state->step + 1), .beta1 = o->beta1, .beta2 = o->beta2, .eps = o->eps,
                  .weight_decay = o->weight_decay, .max_grad_norm = o->max_grad_norm, .step = state->updates + 1};
    MOE_TRY(moe_exec_train_step(s->x, &b, &h, &result));
    double seconds = moe_now() - start_time, peak = peak_flops(s);
    *r = (MoeLogRecord){.step = state->step + 1, .tokens = result.tokens, .memory_bytes = moe_exec_memory_bytes(s->x),
                        .loss = result.loss, .ce_loss = result.ce_loss, .aux_loss = result.aux_loss, .grad_norm = result.grad_norm,
                        .lr = h.lr, .seconds = seconds, .has_aux = result.has_aux, .skipped = !result.updated,
                        .tokens_per_second = (double)result.tokens / seconds, .mfu = NAN};
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
static void write_log(Session *s, const MoeLogRecord *r) {
    MoeStatus st = s->log ? moe_log_step(s->log, r, moe_exec_load(s->x), s->plan->moe_layers, s->plan->virtual_shards) : NULL;
    if (st && !s->log_failed)
        moe_warn("%s; training goes on, steps may be missing from the log", moe_status_message(st));
    s->log_failed = s->log_failed || st;
    moe_status_free(st);
}

/* A checkpoint that cannot be written does not end the training either; the one before stays. */
static void checkpoint(Session *s) {
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

static bool due(int64_t step, int64_t every) { return every > 0 && step % every == 0; }

static MoeStatus loop(Session *s) {
    const MoeTrainOptions *o = s->o;
    MoeStopReason reason = MOE_STOP_DONE;
    bool stop = s->state.step >= o->steps;
    if (stop) { /* nothing left to do: say how good the model is */
        MoeLogRecord r = {.step = s->state.step};
        moe_progress_say(s->progress, "the run has reached step %lld of %lld already", (long long)s->state.step, (long long)o->steps);
        MOE_TRY(evaluate_into(s, 0, &r));
        if (o->out_dir)
            moe_trace_sum(o->out_dir, s->plan->moe_layers, s->plan->n_moe_layers, (size_t)s->plan->experts, s->report->load);
    }
    while (!stop) {
        MoeLogRecord r;
        MOE_TRY(train_step(s, &r));
        /* Decided once a step, so that what is logged and what is done agree. */
        if (moe_signals_received())
            reason = MOE_STOP_SIGNAL;
        else if (s->state.step < o->steps && o->max_seconds > 0 && moe_now() - s->start >= o->max_seconds)
            reason = MOE_STOP_TIME;
        stop = reason != MOE_STOP_DONE || s->state.step >= o->steps;
        bool give_up = s->state.skipped_in_row >= SKIPS_IN_ROW;
        if (!give_up && reason != MOE_STOP_SIGNAL && (stop || due(s->state.step, o->eval_every)))
            MOE_TRY(evaluate_into(s, stop ? 0 : o->eval_batches, &r));
        write_log(s, &r);
        moe_progress_step(s->progress, &r, moe_now() - s->start);
        if (r.skipped)
            moe_warn("step %lld is skipped: loss %g, gradient norm %g are not both finite; parameters are unchanged",
                     (long long)r.step, r.loss, r.grad_norm);
        if (give_up)
            return moe_error(MOE_E_INPUT,
                             "%d steps in a row were not finite (up to step %lld): training stops; parameters of the last good step are in "
                             "%s. Lower --lr, raise --warmup, or check the data",
                             SKIPS_IN_ROW, (long long)s->state.step, s->report->checkpoint ? s->report->checkpoint : "no checkpoint");
        if (stop || due(s->state.step, o->checkpoint_every))
            checkpoint(s);
    }
    s->report->reason = reason;
    if (reason == MOE_STOP_SIGNAL)
        moe_progress_say(s->progress, "stopped by signal %d after step %lld", moe_signals_received(), (long long)s->state.step);
    if (reason == MOE_STOP_TIME)
        moe_progress_say(s->progress, "the time budget is used up after step %lld of %lld", (long long)s->state.step,
                         (long long)o->steps);
    return NULL;
}

MoeStatus moe_train_run(const MoePlan *plan, const MoeTrainOptions *o, MoeTrainReport *out) {
    *out = (MoeTrainReport){.eval_bits_per_byte = NAN, .mfu = NAN, .loss = NAN, .ce_loss = NAN, .aux_loss = NAN};
    Session s = {.plan = plan, .o = o, .report = out, .lock = -1, .saved_step = -1, .start = moe_now()};
    moe_signals_catch();
    MoeStatus st = start(&s);
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
