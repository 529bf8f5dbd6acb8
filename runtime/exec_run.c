/* Running programs: micro-batches, the counting pass, folding of gradients over micro-batches,
 * phases (docs/PLAN.md). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "runtime/emulate.h"
#include "runtime/exec_comm.h"

/* ---- steps ---- */

typedef struct {
    MoeKernelFn run;
    void *const *bufs;
    char *scratch;
    int64_t stride;
} Launch;

static void run_task(void *ctx, int64_t task, int thread) {
    const Launch *l = ctx;
    l->run(l->bufs, task, l->scratch + l->stride * thread);
}

/* Takes the step's work into account for the clock of emulated links: of the rows of experts that are really here. */
static void emulate_work(const MoeExec *x, const MoeExecProgram *g, size_t i) {
    const MoePlanStep *s = &g->plan->steps[i];
    double more = 0;
    if (!moe_comm_emulated(x->comm))
        return;
    if (s->live.rows >= 0) {
        bool window = s->slot_hi > 0 && s->segs == s->live.rows;
        const int32_t *segs = (const int32_t *)(const void *)g->values[s->live.rows];
        int64_t last = g->plan->values[s->live.rows].bytes / 4 - 1;
        more = (window ? g->windows[i][last] - g->windows[i][0] : segs[last]) - s->live.expect;
    }
    moe_emulate_work(x->comm, s->flops + more * s->live.flops, s->bytes + more * s->live.bytes);
}

static MoeStatus run_kernel(MoeExec *x, MoeExecProgram *g, size_t i) {
    const MoePlanStep *s = &g->plan->steps[i];
    if (!s->run || !s->tasks)
        return moe_error(MOE_E_INTERNAL,
                         "step %s of program %s has no code: the plan is not linked", s->name,
                         g->plan->name);
    if (s->slot_hi)
        moe_exec_window_fill(x, g, i);
    Launch l = {s->run, g->step_bufs[i], x->scratch, x->scratch_stride};
    int64_t n = s->tasks(g->step_bufs[i]);
    if (n < 0)
        return moe_error(MOE_E_INTERNAL, "step %s (%s) of program %s asks for %lld tasks", s->name,
                         s->kernel, g->plan->name, (long long)n);
    moe_pool_run(x->pool, n, run_task, &l);
    emulate_work(x, g, i);
    return NULL;
}

/* The clock that x->compute gains by runs while kernels do: read where a row of them begins and where it ends. */
static void count_compute(MoeExec *x, bool kernel) {
    if (kernel == x->computing)
        return;
    double now = moe_thread_cpu();
    x->compute += x->computing ? now - x->compute_began : 0;
    x->compute_began = now;
    x->computing = kernel;
}

/* Where this rank stands, said at each change of phase or layer. */
static void tell_phase(MoeExec *x, const MoeExecProgram *g, const MoePlanStep *s,
                       const MoePlanStep *before) {
    static const char *const phases[] = {"forward", "backward", "reduce", "update"};
    char text[64];
    bool train = !strcmp(g->plan->name, "train");
    if (before && before->phase == s->phase && before->layer == s->layer)
        return;
    int n = snprintf(text, sizeof text, "%.20s%s%s", train ? "" : g->plan->name, train ? "" : " ",
                     phases[s->phase]);
    if (s->layer >= 0)
        snprintf(text + n, sizeof text - (size_t)n, " layers.%d", s->layer);
    moe_comm_phase(x->comm, x->step, text);
}

static MoeStatus run_step(MoeExec *x, MoeExecProgram *g, size_t i) {
    const MoePlanStep *s = &g->plan->steps[i];
    if (s->kernel)
        return run_kernel(x, g, i);
    bool store = s->n_moves || (s->wait >= 0 && g->plan->steps[s->wait].n_moves);
    return store ? moe_exec_store_step(x, g, i) : moe_exec_comm_step(x, g, i);
}

static double watched_clock(const MoeExec *x) {
    if (!x->watch)
        return 0;
    return moe_comm_emulated(x->comm) ? moe_emulate_stats(x->comm).clock : moe_now();
}

/* Steps of phases lo..hi; counting: only those of the counting pass. */
static MoeStatus run_steps(MoeExec *x, MoeExecProgram *g, MoePlanPhase lo, MoePlanPhase hi,
                           bool counting) {
    const MoePlanStep *before = NULL;
    bool ranks = x->plan->ranks > 1;
    for (size_t i = 0; i < g->plan->n_steps; i++) {
        const MoePlanStep *s = &g->plan->steps[i];
        if (s->phase < lo || s->phase > hi || (counting && !s->count))
            continue;
        double start = x->profile ? moe_now() : 0, began = watched_clock(x);
        if (ranks) {
            tell_phase(x, g, s, before);
            moe_comm_poll(x->comm);
            count_compute(x, s->kernel != NULL);
            before = s;
        }
        MOE_TRY(run_step(x, g, i));
        if (g->elastic)
            moe_exec_elastic_step(x, g, i);
        if (x->profile)
            g->seconds[i] += moe_now() - start;
        if (x->watch)
            x->watch(x->watch_ctx, &(MoeExecSpan){.step = i,
                                                  .micro = x->micro,
                                                  .counting = counting,
                                                  .begin = began,
                                                  .end = watched_clock(x)});
    }
    count_compute(x, false);
    return NULL;
}

/* ---- batches ---- */

typedef struct {
    const int32_t *ids, *labels;
    int64_t n_seqs;
    MoeExecProgram *g;
    const char *program;
    int parts; /* micro-batches; the logits program takes its sequences at once */
} Run;

/* First sequence of virtual shard v. */
static int64_t shard_start(const MoePlan *p, int64_t n_seqs, int64_t v) {
    return v * n_seqs / p->virtual_shards;
}

/* A table of token rows in which only the shards of data ranks d .. d+n-1 have any; *out_first: their first sequence.
 * Returns how many sequences they have. */
static int64_t fill_tok(const MoeExec *x, const Run *r, int m, int d, int n, int32_t *tok,
                        int64_t *out_first) {
    const MoePlan *p = x->plan;
    const int V = p->virtual_shards;
    int run, per = moe_mesh_shard_run(&p->mesh, V, r->parts, m, d, &run);
    int64_t first = shard_start(p, r->n_seqs, run), last = shard_start(p, r->n_seqs, run + per * n);
    for (int v = 0; tok && v <= V; v++) {
        int64_t s = shard_start(p, r->n_seqs, v);
        s = s < first ? first : s > last ? last : s;
        tok[v] = (int32_t)((s - first) * p->seq);
    }
    *out_first = first;
    return last - first;
}

/* Fills tok, ids, labels with this rank's part of micro-batch m; returns the sequences that all ranks have in it. */
static int64_t set_micro_batch(MoeExec *x, const Run *r, int m) {
    const MoePlan *p = x->plan;
    int64_t first, unused, n = p->seq;
    int32_t *ids = moe_exec_input(x, r->program, "ids"),
            *labels = moe_exec_input(x, r->program, "labels");
    x->micro = m;
    x->parts = r->parts;
    n *= fill_tok(x, r, m, x->coords.data, 1, moe_exec_input(x, r->program, "tok"), &first);
    if (n)
        memcpy(ids, r->ids + first * p->seq, (size_t)n * sizeof *ids);
    if (n && labels && r->labels)
        memcpy(labels, r->labels + first * p->seq, (size_t)n * sizeof *labels);
    for (int k = 0; k <= p->mesh.n_ranges; k++) {
        MoeMesh d = moe_mesh_division(&p->mesh, k);
        char name[32];
        moe_mesh_input_name("tok_ep", k, name);
        fill_tok(x, r, m, x->coords.data / d.ep * d.ep, d.ep, moe_exec_input(x, r->program, name),
                 &unused);
    }
    return fill_tok(x, r, m, 0, moe_mesh_data_ranks(&p->mesh), NULL, &unused);
}

/* The batch against the plan: kernels index tables by ids and labels, so none may be outside the
 * vocabulary. */
static MoeStatus check_batch(MoeExec *x, const char *program, const MoeBatch *b, bool need_labels,
                             Run *out) {
    const MoePlan *p = x->plan;
    out->g = moe_exec_program(x, program);
    out->program = program;
    out->parts = strcmp(program, "logits") == 0 ? 1 : p->micro_batches;
    if (!out->g)
        return moe_error(MOE_E_INPUT, "the plan has no program \"%s\"; compile it again", program);
    if (b->n_seqs < 1 || b->n_seqs > p->batch)
        return moe_error(MOE_E_INPUT, "a batch of %lld sequences; the plan holds 1..%lld",
                         (long long)b->n_seqs, (long long)p->batch);
    MoeStatus st = NULL;
    for (int64_t i = 0, n = b->n_seqs * p->seq; i < n && !st; i++) {
        if (b->ids[i] < 0 || b->ids[i] >= p->vocab_size)
            st = moe_error(
                MOE_E_INPUT,
                "token %d at sequence %lld, position %lld is outside the vocabulary of %lld",
                b->ids[i], (long long)(i / p->seq), (long long)(i % p->seq),
                (long long)p->vocab_size);
        else if (need_labels && b->labels[i] != -100 &&
                 (b->labels[i] < 0 || b->labels[i] >= p->vocab_size))
            st = moe_error(MOE_E_INPUT,
                           "label %d at sequence %lld, position %lld is neither -100 nor in the "
                           "vocabulary of %lld",
                           b->labels[i], (long long)(i / p->seq), (long long)(i % p->seq),
                           (long long)p->vocab_size);
    }
    moe_exec_comm_begin_run(x);
    out->ids = b->ids;
    out->labels = b->labels;
    out->n_seqs = b->n_seqs;
    if (x->profile)
        memset(out->g->seconds, 0, sizeof *out->g->seconds * out->g->plan->n_steps);
    return st;
}

static double output_f32(MoeExec *x, const char *program, const char *name) {
    const float *v = moe_exec_output(x, program, name, NULL);
    return v ? (double)*v : NAN;
}

static int64_t output_i32(MoeExec *x, const char *program, const char *name) {
    const int32_t *v = moe_exec_output(x, program, name, NULL);
    return v ? *v : 0;
}

/* ---- the tree over micro-batches ---- */

#define FOLD_CHUNK 32768 /* elements a task */
#define FOLD_BLOCK 512

typedef struct {
    const float *source;
    const float *slots[32];
    int n_slots;
    float *out; /* may be one of the others */
    int64_t n;
} Fold;

/* out = slots[b-1] + ( ... (slots[0] + source)): older operands on the left. */
static void fold_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const Fold *f = ctx;
    int64_t end = (task + 1) * FOLD_CHUNK < f->n ? (task + 1) * FOLD_CHUNK : f->n;
    float acc[FOLD_BLOCK];
    for (int64_t i = task * FOLD_CHUNK; i < end; i += FOLD_BLOCK) {
        int64_t n = end - i < FOLD_BLOCK ? end - i : FOLD_BLOCK;
        memcpy(acc, f->source + i, sizeof *acc * (size_t)n);
        for (int s = 0; s < f->n_slots; s++)
            for (int64_t k = 0; k < n; k++)
                acc[k] = f->slots[s][i + k] + acc[k];
        memcpy(f->out + i, acc, sizeof *acc * (size_t)n);
    }
}

static int trailing_ones(int m) {
    int n = 0;
    while (m & 1) {
        n++;
        m >>= 1;
    }
    return n;
}

static void fold_gradients(MoeExec *x, MoeExecProgram *g, int m) {
    for (size_t i = 0; i < g->plan->n_accumulates; i++) {
        const MoePlanAccumulate *a = &g->plan->accumulates[i];
        Fold f = {.source = (const float *)(const void *)g->values[a->source],
                  .n = a->elements,
                  .n_slots = trailing_ones(m)};
        for (int s = 0; s < f.n_slots; s++)
            f.slots[s] = (const float *)(const void *)g->values[a->slots[s]];
        bool last = m == x->plan->micro_batches - 1;
        f.out = (float *)(void *)g->values[last ? a->value : a->slots[f.n_slots]];
        moe_pool_run(x->pool, (f.n + FOLD_CHUNK - 1) / FOLD_CHUNK, fold_task, &f);
    }
}

/* ---- training ---- */

static MoeStatus count_pass(MoeExec *x, const Run *r) {
    const MoePlanProgram *p = r->g->plan;
    if (!p->n_batch_sums)
        return NULL;
    for (size_t i = 0; i < p->n_batch_sums; i++)
        memset(r->g->values[p->batch_sums[i].value], 0,
               sizeof(int32_t) * (size_t)p->batch_sums[i].elements);
    for (int m = 0; m < x->plan->micro_batches; m++) {
        set_micro_batch(x, r, m);
        MOE_TRY(run_steps(x, r->g, MOE_PHASE_FWD, MOE_PHASE_BWD, true));
        for (size_t i = 0; i < p->n_batch_sums; i++) {
            int32_t *sum = (int32_t *)(void *)r->g->values[p->batch_sums[i].value];
            const int32_t *v = (const int32_t *)(const void *)r->g->values[p->batch_sums[i].source];
            for (int64_t k = 0; k < p->batch_sums[i].elements; k++)
                sum[k] += v[k];
        }
    }
    return NULL;
}

/* Adds the micro-batch's rows a (layer, shard, expert) to x->load. */
static void add_load(MoeExec *x) {
    const MoePlan *p = x->plan;
    const int V = p->virtual_shards, E = p->experts;
    for (size_t k = 0; k < p->n_moe_layers; k++) {
        char name[32];
        snprintf(name, sizeof name, "segs.%d", p->moe_layers[k]);
        const int32_t *segs = moe_exec_output(x, "train", name, NULL); /* [E*V+1] */
        int32_t *load = x->load + k * (size_t)V * (size_t)E;
        for (int e = 0; e < E; e++)
            for (int v = 0; v < V; v++)
                load[v * E + e] += segs[e * V + v + 1] - segs[e * V + v];
    }
}

static void set_scalar(MoeExec *x, const char *name, double value) {
    float *in = moe_exec_input(x, "train", name);
    if (in)
        *in = (float)value;
}

static void set_hyper(MoeExec *x, const MoeHyper *h) {
    set_scalar(x, "lr", h->lr);
    set_scalar(x, "beta1", h->beta1);
    set_scalar(x, "beta2", h->beta2);
    set_scalar(x, "eps", h->eps);
    set_scalar(x, "weight_decay", h->weight_decay);
    set_scalar(x, "bias1", 1 - pow(h->beta1, (double)h->step));
    set_scalar(x, "bias2", 1 - pow(h->beta2, (double)h->step));
    set_scalar(x, "max_grad_norm", h->max_grad_norm > 0 ? h->max_grad_norm : INFINITY);
}

static MoeStatus train(MoeExec *x, const MoeBatch *b, const MoeHyper *h, bool update,
                       MoeStepResult *out) {
    double start = moe_now(), compute = x->compute;
    const MoePlan *p = x->plan;
    Run r;
    MOE_TRY(check_batch(x, "train", b, true, &r));
    set_hyper(x, h);
    memset(x->load, 0,
           sizeof *x->load * p->n_moe_layers * (size_t)p->virtual_shards * (size_t)p->experts);
    MOE_TRY(count_pass(x, &r));
    for (int m = 0; m < p->micro_batches; m++) {
        set_micro_batch(x, &r, m);
        MOE_TRY(run_steps(x, r.g, MOE_PHASE_FWD, MOE_PHASE_BWD, false));
        add_load(x);
        if (p->micro_batches > 1)
            fold_gradients(x, r.g, m);
    }
    MOE_TRY(run_steps(x, r.g, MOE_PHASE_RED, MOE_PHASE_RED, false));
    MOE_TRY(moe_exec_collect_load(x));
    *out = (MoeStepResult){.loss = output_f32(x, "train", "loss"),
                           .ce_loss = output_f32(x, "train", "ce_loss"),
                           .grad_norm = output_f32(x, "train", "grad_norm"),
                           .tokens = output_i32(x, "train", "tokens"),
                           .has_aux = moe_exec_output(x, "train", "aux_loss", NULL) != NULL};
    if (out->has_aux)
        out->aux_loss = output_f32(x, "train", "aux_loss");
    if (update && isfinite(out->loss) && isfinite(out->grad_norm)) {
        MOE_TRY(run_steps(x, r.g, MOE_PHASE_UPD, MOE_PHASE_UPD, false));
        out->updated = true;
    }
    moe_exec_elastic_sum(x);
    out->seconds = moe_now() - start;
    out->compute_seconds = x->compute - compute;
    return NULL;
}

MoeStatus moe_exec_train_step(MoeExec *x, const MoeBatch *b, const MoeHyper *h,
                              MoeStepResult *out) {
    return train(x, b, h, true, out);
}

MoeStatus moe_exec_train_grads(MoeExec *x, const MoeBatch *b, const MoeHyper *h,
                               MoeStepResult *out) {
    return train(x, b, h, false, out);
}

/* ---- evaluation and logits ---- */

MoeStatus moe_exec_eval(MoeExec *x, const MoeBatch *b, double *out_nll_sum, int64_t *out_tokens) {
    Run r;
    int64_t tokens = 0;
    float slots[32] = {0}, sum = 0;
    MOE_TRY(check_batch(x, "eval", b, true, &r));
    for (int m = 0; m < x->plan->micro_batches; m++) {
        sum = 0;
        if (set_micro_batch(x, &r, m)) {
            MOE_TRY(run_steps(x, r.g, MOE_PHASE_FWD, MOE_PHASE_UPD, false));
            sum = (float)output_f32(x, "eval", "nll_sum");
            tokens += output_i32(x, "eval", "tokens");
        }
        /* The tree over micro-batches, as for gradients, so that the sum's bits do not depend on
         * their number. */
        int n = trailing_ones(m);
        for (int s = 0; s < n; s++)
            sum = slots[s] + sum;
        slots[n] = sum;
    }
    *out_nll_sum = (double)sum;
    *out_tokens = tokens;
    return NULL;
}

MoeStatus moe_exec_logits(MoeExec *x, const MoeBatch *b, const float **out_logits) {
    Run r;
    MOE_TRY(check_batch(x, "logits", b, false, &r));
    const MoePlanPort *port;
    float *logits = (float *)(uintptr_t)moe_exec_output(x, "logits", "logits", &port);
    int64_t room = port->elements / (x->plan->seq * x->plan->vocab_size),
            ids_room = moe_exec_logits_ids(x) / x->plan->seq;
    room = room < ids_room ? room : ids_room;
    if (b->n_seqs > room)
        return moe_error(MOE_E_INPUT, "logits of %lld sequences at once; the plan holds %lld",
                         (long long)b->n_seqs, (long long)room);
    set_micro_batch(x, &r, 0);
    MOE_TRY(run_steps(x, r.g, MOE_PHASE_FWD, MOE_PHASE_UPD, false));
    *out_logits = logits;
    return moe_exec_collect_logits(x, logits, b->n_seqs);
}
