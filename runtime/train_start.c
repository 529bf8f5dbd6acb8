/* The start of training: opens everything, and finds out where training stands. See
 * trainer.h. */
#include "runtime/trainer.h"

#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "base/log.h"
#include "runtime/init.h"
#include "runtime/place_file.h"
#include "runtime/run_config.h"
#include "runtime/weights.h"

static bool has_checkpoints(const char *run_dir) {
    MoeCheckpointRef *refs = NULL;
    size_t n = 0;
    moe_status_free(moe_checkpoint_list(run_dir, &refs, &n));
    moe_checkpoint_list_free(refs, n);
    return n > 0;
}

/* --resume DIR: a checkpoint or a run. */
static MoeStatus load_given(MoeTrainer *s, bool *out_loaded) {
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

/* Where experts are when training starts: as --placement-from or the plan says, else in order. A run that goes on has maps of
 * its own, in its checkpoints. */
static MoeStatus set_first_maps(MoeTrainer *s, bool goes_on) {
    const char *from = s->o->place.from;
    if (from && goes_on && s->speaks)
        moe_note("--placement-from %s is left out: the run goes on with its own placement", from);
    moe_exec_keep_maps(s->x, from && !goes_on);
    if (from && !goes_on)
        return moe_place_file_read(from, s->plan, s->x);
    char *own = s->plan->dir ? moe_path_join(s->plan->dir, "placement.json") : NULL;
    MoeStatus st = own && moe_path_exists(own) ? moe_place_file_read(own, s->plan, s->x) : NULL;
    free(own);
    return st;
}

/* Weights, states and counters: from a checkpoint, a Hugging Face directory, or the seed. holds: the run has
 * checkpoints. */
static MoeStatus load_or_init(MoeTrainer *s, bool holds, bool *out_resumed) {
    const MoeTrainOptions *o = s->o;
    bool loaded = false;
    if (holds && o->resume == MOE_RESUME_NEVER)
        return moe_error(MOE_E_INPUT,
                         "%s holds checkpoints of an earlier run; to start anew give another --out "
                         "(or remove it), to go on leave "
                         "out --resume never",
                         o->out_dir);
    if (holds && o->resume == MOE_RESUME_DIR && !is_inside(o->resume_dir, o->out_dir))
        return moe_error(MOE_E_INPUT,
                         "%s holds checkpoints of its own; to resume from %s give another --out",
                         o->out_dir, o->resume_dir);
    MOE_TRY(moe_train_agree(s, set_first_maps(s, holds), "the placement"));
    if (o->resume == MOE_RESUME_DIR)
        MOE_TRY(load_given(s, &loaded));
    else if (holds)
        MOE_TRY(moe_checkpoint_load_newest(s->plan, s->x, o->out_dir, true, &s->state, &loaded));
    *out_resumed = loaded;
    if (loaded && o->init_from && s->speaks)
        moe_note("--init-from %s is left out: training goes on from step %lld", o->init_from,
                 (long long)s->state.step);
    if (loaded)
        return NULL;
    s->state = (MoeTrainState){.seed = o->seed};
    MOE_TRY(moe_init_states(s->plan, s->x));
    return o->init_from ? moe_weights_load(s->plan, s->x, o->init_from)
                        : moe_init_params(s->plan, s->x, o->seed);
}

/* The data where the checkpoint left it. */
static void place_data(MoeTrainer *s, bool resumed) {
    MoeTrainState *state = &s->state;
    const char *print = moe_data_fingerprint(s->data);
    if (resumed && s->speaks && state->seed != s->o->seed)
        moe_warn("the run was started with seed %llu and keeps it (not %llu)",
                 (unsigned long long)state->seed, (unsigned long long)s->o->seed);
    moe_data_set_seed(s->data, state->seed);
    bool same = !strcmp(print, state->data_fingerprint);
    if (resumed && same) {
        MoeStatus st = moe_data_seek(s->data, state->data);
        same = !st;
        moe_status_free(st);
    }
    if (resumed && !same && s->speaks)
        moe_warn("the data (or how it is divided) is not what the checkpoint was trained on: its "
                 "order starts at the beginning");
    snprintf(state->data_fingerprint, sizeof state->data_fingerprint, "%s", print);
    state->data = moe_data_position(s->data);
}

static MoeStatus alloc_trainer(MoeTrainer *s) {
    size_t n = (size_t)(s->plan->batch * s->plan->seq), layers = s->plan->n_moe_layers;
    s->ids = malloc(n * sizeof *s->ids);
    s->labels = malloc(n * sizeof *s->labels);
    s->imbalance = calloc(layers + 1, sizeof *s->imbalance);
    s->expert_imbalance = calloc(layers + 1, sizeof *s->expert_imbalance);
    s->report->load = calloc(layers * (size_t)s->plan->experts + 1, sizeof *s->report->load);
    s->report->n_layers = layers;
    s->report->n_experts = (size_t)s->plan->experts;
    s->notes = calloc((size_t)s->plan->ranks, sizeof *s->notes);
    if (!s->notes || !s->ids || !s->labels || !s->imbalance || !s->expert_imbalance ||
        !s->report->load)
        return moe_error(MOE_E_NOMEM, "no memory for a batch of %zu tokens", n);
    return NULL;
}

/* What each rank needs for itself. */
static MoeStatus open_rank(MoeTrainer *s) {
    const MoeTrainOptions *o = s->o;
    const MoeDataOptions d = {o->data_path, o->data_format, o->eval_fraction, o->seed};
    MOE_TRY(moe_train_options_check(o));
    MOE_TRY(moe_data_open(s->plan, &d, &s->data));
    MOE_TRY(alloc_trainer(s));
    MOE_TRY(moe_exec_create_on(s->plan, s->comm, o->threads, &o->device, &s->x));
    return s->speaks ? moe_train_split_create(s) : NULL;
}

/* Rank 0: the run directory is ours, and what killed writers left is gone. */
static MoeStatus open_run(MoeTrainer *s, bool *out_holds) {
    const MoeTrainOptions *o = s->o;
    bool existing = false;
    if (!s->speaks || !o->out_dir)
        return NULL;
    MOE_TRY(moe_run_dir_prepare(o->out_dir, s->plan, &existing));
    MOE_TRY(moe_run_lock(o->out_dir, &s->lock));
    moe_checkpoint_clean(o->out_dir);
    *out_holds = existing && has_checkpoints(o->out_dir);
    return NULL;
}

/* Every rank takes its part of the same batch, so all must read the same data. */
static MoeStatus check_same_data(MoeTrainer *s) {
    char first[40];
    snprintf(first, sizeof first, "%s", moe_data_fingerprint(s->data));
    MOE_TRY(moe_train_share(s, first, sizeof first, "the data's fingerprint"));
    MoeStatus st = NULL;
    if (strcmp(first, moe_data_fingerprint(s->data)))
        st = moe_error(MOE_E_INPUT,
                       "%s: other data here than where rank 0 is (fingerprint %s, there %s); every "
                       "rank reads the same file",
                       s->o->data_path, moe_data_fingerprint(s->data), first);
    return moe_train_agree(s, st, "the data");
}

/* RUN/placement.json: where experts were when the run began. Not where a plan leaves no choice. */
static MoeStatus note_first_maps(const MoeTrainer *s) {
    bool any = false;
    for (size_t k = 0; k < s->plan->n_moe_layers; k++)
        any |= moe_exec_can_place(s->x, k);
    if (!any)
        return NULL;
    char *path = moe_path_join(s->o->out_dir, "placement.json");
    MoeStatus st = moe_place_file_write(path, s->plan, s->x);
    free(path);
    return st;
}

/* Rank 0: the run as it goes on from here. holds: it began earlier. */
static MoeStatus begin_run(MoeTrainer *s, bool holds) {
    const MoeTrainOptions *o = s->o;
    if (!s->speaks || !o->out_dir)
        return NULL;
    MOE_TRY(moe_checkpoint_set_newer_aside(o->out_dir, s->state.step));
    MOE_TRY(moe_run_config_write(o->out_dir, s->plan, o->plan_dir, o->data_path, o->resolved));
    if (!holds) /* behind config.json: a directory with anything but that is no run's */
        MOE_TRY(note_first_maps(s));
    return moe_log_open(o->out_dir, o->trace && s->plan->n_moe_layers, s->plan->experts,
                        s->state.step, &s->log);
}

/* The checkpoint that we go on from, if it is in this run (not when resumed from another). */
static MoeStatus find_saved(MoeTrainer *s) {
    MoeStr path = {0};
    bool there = false;
    moe_str_printf(&path, "%s/checkpoints/step-%lld", s->o->out_dir, (long long)s->state.step);
    if (s->speaks)
        there = moe_path_exists(path.data);
    MoeStatus st = moe_train_share(s, &there, sizeof there, "the checkpoint");
    if (!st && there) {
        s->saved_step = s->state.step;
        s->report->checkpoint = path.data;
    } else {
        moe_str_free(&path);
    }
    return st;
}

/* Where activations go that the plan offloads; NULL: they stay in the process's memory. */
static const char *offload_dir(const MoeTrainer *s) {
    const char *to = s->o->offload_to ? s->o->offload_to : s->o->out_dir;
    return to && strcmp(to, "memory") != 0 ? to : NULL;
}

static void say_start(MoeTrainer *s, bool resumed) {
    const MoeTrainOptions *o = s->o;
    s->progress =
        moe_progress_create(o->quiet || !s->speaks, o->log_seconds, o->steps, o->max_seconds);
    if (resumed)
        moe_progress_say(s->progress, "resumed at step %lld of %lld", (long long)s->state.step,
                         (long long)o->steps);
    int64_t train = moe_data_train_windows(s->data);
    moe_progress_say(s->progress,
                     "data: %lld tokens, %lld sequences of %lld to train on, %lld held out",
                     (long long)moe_data_tokens(s->data), (long long)train, (long long)s->plan->seq,
                     (long long)moe_data_eval_windows(s->data));
    const MoePlanProgram *p = moe_plan_program(s->plan, "train");
    if (p->n_slots && s->speaks)
        moe_progress_say(s->progress, "activations that the plan offloads go to %s%s",
                         offload_dir(s) ? "a file in " : "this process's memory",
                         offload_dir(s) ? offload_dir(s) : "");
    else if (o->offload_to && s->speaks)
        moe_note("--offload-to %s is left out: the plan offloads nothing (moec compile "
                 "--offload-activations)",
                 o->offload_to);
    if (train < s->plan->batch && s->speaks)
        moe_warn(
            "%s: %lld training sequences are fewer than a batch of %lld: each batch repeats some",
            o->data_path, (long long)train, (long long)s->plan->batch);
}

MoeStatus moe_train_start(MoeTrainer *s) {
    bool holds = false, resumed = false;
    moe_comm_phase(s->comm, 0, "start");
    MOE_TRY(moe_train_agree(s, open_rank(s), "start"));
    MOE_TRY(moe_train_cores(s));
    MOE_TRY(check_same_data(s));
    MOE_TRY(moe_train_agree(s, open_run(s, &holds), "the run directory"));
    MOE_TRY(moe_train_share(s, &holds, sizeof holds, "the run directory"));
    MOE_TRY(moe_train_agree(s, moe_exec_offload_to(s->x, offload_dir(s)), "the file for offloaded activations"));
    MOE_TRY(moe_train_agree(s, load_or_init(s, holds, &resumed), "the weights"));
    place_data(s, resumed);
    MOE_TRY(moe_train_agree(s, moe_train_place_start(s, resumed), "placement"));
    MOE_TRY(moe_train_share(s, &s->place_due, sizeof s->place_due, "placement"));
    MOE_TRY(moe_train_agree(s, begin_run(s, holds), "the run directory"));
    if (resumed && s->o->out_dir)
        MOE_TRY(find_saved(s));
    MOE_TRY(moe_train_agree(s, moe_exec_decide(s->x), "choices by measurement"));
    s->report->first_step = s->state.step + 1;
    s->report->memory_bytes = s->report->memory_bytes_max = moe_exec_memory_bytes(s->x);
    say_start(s, resumed);
    return NULL;
}
