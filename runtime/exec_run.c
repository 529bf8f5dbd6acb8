/* Running programs: micro-batches, the counting pass, folding of gradients over micro-batches,
 * phases (docs/PLAN.md). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "runtime/emulate.h"
#include "runtime/exec_comm.h"

#define ASKED_BYTES ((size_t)32 << 20) /* of tables on their way from a device, at most */

/* ---- steps ---- */

/* Takes the step's work into account for the clock of emulated links: of the rows of experts that are really here. */
static MoeStatus emulate_work(const MoeExec *x, const MoeExecProgram *g, size_t i) {
    const MoePlanStep *s = &g->plan->steps[i];
    double more = 0;
    if (!moe_comm_emulated(x->comm))
        return NULL;
    if (s->live.rows >= 0) {
        bool window = s->slot_hi > 0 && s->segs == s->live.rows;
        const int32_t *segs =
            window ? g->windows[i] : (const int32_t *)(const void *)g->values[s->live.rows];
        int64_t last = g->plan->values[s->live.rows].bytes / 4 - 1;
        MOE_TRY(moe_device_read(x->device, segs, (last + 1) * 4));
        more = segs[last] - (window ? segs[0] : 0) - s->live.expect;
    }
    moe_emulate_work(x->comm, s->flops + more * s->live.flops, s->bytes + more * s->live.bytes);
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
    if (s->kernel) {
        MOE_TRY(x->device->ops->run(x->device, x, g, i));
        return emulate_work(x, g, i);
    }
    bool store = s->n_moves || (s->wait >= 0 && g->plan->steps[s->wait].n_moves);
    return store ? moe_exec_store_step(x, g, i) : moe_exec_comm_step(x, g, i);
}

static double watched_clock(const MoeExec *x) {
    if (!x->watch)
        return 0;
    return moe_comm_emulated(x->comm) ? moe_emulate_stats(x->comm).clock : moe_now();
}

/* A step that is due: what the other ranks are told of it, and how long it took. */
static MoeStatus take_step(MoeExec *x, MoeExecProgram *g, size_t i, bool counting,
                           const MoePlanStep *before) {
    const MoePlanStep *s = &g->plan->steps[i];
    double start = x->profile ? moe_now() : 0, began = watched_clock(x);
    if (x->plan->ranks > 1) {
        tell_phase(x, g, s, before);
        moe_comm_poll(x->comm);
        count_compute(x, s->kernel != NULL);
    }
    MOE_TRY(run_step(x, g, i));
    if (g->elastic)
        MOE_TRY(x->device->ops->stepped(x->device, x, g, i));
    if ((x->profile || x->watch) && x->device->ops->timed) {
        double ran;
        MOE_TRY(x->device->ops->timed(x->device, &ran));
        start = ran < 0 ? start : moe_now() - ran;
        began = ran < 0 || moe_comm_emulated(x->comm) ? began : moe_now() - ran;
    }
    if (x->profile)
        g->seconds[i] += moe_now() - start;
    if (x->watch)
        x->watch(x->watch_ctx, &(MoeExecSpan){.step = i,
                                              .micro = x->micro,
                                              .counting = counting,
                                              .begin = began,
                                              .end = watched_clock(x)});
    return NULL;
}

/* Steps of phases lo..hi; counting: only those of the counting pass. Before a step that is the host's, and at the end, a
 * device says whether all that was started has run: if not, it goes on from there. */
static MoeStatus run_steps(MoeExec *x, MoeExecProgram *g, MoePlanPhase lo, MoePlanPhase hi,
                           bool counting) {
    const MoeDeviceOps *ops = x->device->ops;
    const MoePlanStep *before = NULL;
    const size_t n = g->plan->n_steps;
    bool done = false;
    if (ops->replay)
        MOE_TRY(ops->replay(x->device, x, g, lo, hi, counting, &done));
    for (size_t i = done ? n : 0; i <= n; i++) {
        const MoePlanStep *s = i < n ? &g->plan->steps[i] : NULL;
        size_t again = n;
        if (s && !moe_exec_is_due(s, lo, hi, counting))
            continue;
        if (ops->settle && (!s || (!s->kernel && !moe_device_carries(x->device, x, g, i))))
            MOE_TRY(ops->settle(x->device, x, g, &again));
        if (again < n) {
            i = again - 1; /* the loop's increment: 0 wraps round */
            continue;
        }
        if (s)
            MOE_TRY(take_step(x, g, i, counting, before));
        before = s;
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

/* Fills tok, ids, labels with this rank's part of micro-batch m, and sends all inputs to the device; *out: the sequences that
 * all ranks have in it. */
static MoeStatus set_micro_batch(MoeExec *x, const Run *r, int m, int64_t *out) {
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
    *out = fill_tok(x, r, m, 0, moe_mesh_data_ranks(&p->mesh), NULL, &unused);
    return moe_device_write(x->device, x->input_memory, x->input_bytes);
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
    if (!st && x->device->ops->meet)
        st = x->device->ops->meet(x->device, x);
    if (!st)
        st = moe_exec_decide(x);
    out->ids = b->ids;
    out->labels = b->labels;
    out->n_seqs = b->n_seqs;
    if (x->profile)
        memset(out->g->seconds, 0, sizeof *out->g->seconds * out->g->plan->n_steps);
    return st;
}

/* Asks for `bytes` of an output; *out NULL: the program has none of that name. */
static MoeStatus ask_output(MoeExec *x, const MoeExecProgram *g, const char *name, int64_t bytes,
                            const void **out) {
    *out = NULL;
    for (size_t i = 0; i < g->plan->n_outputs; i++)
        if (!strcmp(g->plan->outputs[i].name, name))
            return moe_device_ask(x->device, g->values[g->plan->outputs[i].value], bytes, out);
    return NULL;
}

/* The first element of an output that was asked for. */
static double of_f32(const void *v) {
    return v ? (double)*(const float *)v : NAN;
}
static int64_t of_i32(const void *v) {
    return v ? *(const int32_t *)v : 0;
}

int moe_exec_fold_depth(int m) {
    int n = 0;
    while (m & 1) {
        n++;
        m >>= 1;
    }
    return n;
}

/* ---- training ---- */

static MoeStatus count_pass(MoeExec *x, const Run *r) {
    if (!r->g->plan->n_batch_sums)
        return NULL;
    MOE_TRY(x->device->ops->clear_sums(x->device, x, r->g));
    for (int m = 0; m < x->plan->micro_batches; m++) {
        int64_t unused;
        MOE_TRY(set_micro_batch(x, r, m, &unused));
        MOE_TRY(run_steps(x, r->g, MOE_PHASE_FWD, MOE_PHASE_BWD, true));
        MOE_TRY(x->device->ops->add_sums(x->device, x, r->g));
    }
    return NULL;
}

/* The micro-batches' rows a (layer, shard, expert) that were asked for, into x->load. */
static void add_load(MoeExec *x) {
    const MoePlan *p = x->plan;
    const int V = p->virtual_shards, E = p->experts;
    for (size_t i = 0; i < x->n_segs; i++) {
        const int32_t *segs = x->segs[i]; /* [E*V+1] */
        int32_t *load = x->load + i % p->n_moe_layers * (size_t)V * (size_t)E;
        for (int e = 0; e < E; e++)
            for (int v = 0; v < V; v++)
                load[v * E + e] += segs[e * V + v + 1] - segs[e * V + v];
    }
    x->n_segs = 0;
}

/* Asks for the micro-batch's tables of rows, and adds them up when they are many; others wait for the end of the step. */
static MoeStatus ask_load(MoeExec *x, const MoeExecProgram *g) {
    const MoePlan *p = x->plan;
    int64_t bytes = ((int64_t)p->experts * p->virtual_shards + 1) * (int64_t)sizeof(int32_t);
    for (size_t k = 0; k < p->n_moe_layers; k++) {
        char name[32];
        snprintf(name, sizeof name, "segs.%d", p->moe_layers[k]);
        MOE_TRY(ask_output(x, g, name, bytes, (const void **)&x->segs[x->n_segs++]));
    }
    bool many = (x->n_segs + p->n_moe_layers) * (size_t)bytes > ASKED_BYTES;
    if (!moe_device_is_host(x->device) && !many)
        return NULL;
    MOE_TRY(moe_device_asked(x->device));
    MOE_TRY(moe_device_answers(x->device));
    add_load(x);
    return NULL;
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

/* Forward and backward of all micro-batches. */
static MoeStatus run_micro_batches(MoeExec *x, const Run *r) {
    const int M = x->plan->micro_batches;
    MOE_TRY(count_pass(x, r));
    for (int m = 0; m < M; m++) {
        int64_t unused;
        MOE_TRY(set_micro_batch(x, r, m, &unused));
        MOE_TRY(run_steps(x, r->g, MOE_PHASE_FWD, MOE_PHASE_BWD, false));
        MOE_TRY(ask_load(x, r->g));
        if (M > 1)
            MOE_TRY(x->device->ops->fold(x->device, x, r->g, m));
    }
    return NULL;
}

/* What a step tells, on its way. */
typedef struct {
    const void *loss, *ce_loss, *aux_loss, *grad_norm, *tokens;
} Asked;

static MoeStatus ask_results(MoeExec *x, const MoeExecProgram *g, Asked *a) {
    MOE_TRY(ask_output(x, g, "loss", 4, &a->loss));
    MOE_TRY(ask_output(x, g, "ce_loss", 4, &a->ce_loss));
    MOE_TRY(ask_output(x, g, "aux_loss", 4, &a->aux_loss));
    MOE_TRY(ask_output(x, g, "grad_norm", 4, &a->grad_norm));
    MOE_TRY(ask_output(x, g, "tokens", 4, &a->tokens));
    return moe_device_asked(x->device);
}

static MoeStepResult results(const Asked *a) {
    return (MoeStepResult){.loss = of_f32(a->loss),
                           .ce_loss = of_f32(a->ce_loss),
                           .aux_loss = a->aux_loss ? of_f32(a->aux_loss) : 0,
                           .has_aux = a->aux_loss != NULL,
                           .grad_norm = of_f32(a->grad_norm),
                           .tokens = of_i32(a->tokens)};
}

/* Whether the update is the device's alone: one that can guard its steps need not ask the host before. */
static bool updates_alone(const MoeExec *x, const MoeExecProgram *g) {
    for (size_t i = 0; i < g->plan->n_steps; i++)
        if (g->plan->steps[i].phase == MOE_PHASE_UPD && !g->plan->steps[i].kernel &&
            !moe_device_carries(x->device, x, g, i))
            return false;
    return x->device->ops->guard != NULL;
}

/* The update, unless loss or gradient norm are not finite; and what came out. A device that updates alone may still do so when
 * this returns: the next batch is sent, and its steps are started, meanwhile. */
static MoeStatus finish_step(MoeExec *x, MoeExecProgram *g, bool update, MoeStepResult *out) {
    bool alone = update && updates_alone(x, g);
    Asked asked;
    MOE_TRY(ask_results(x, g, &asked));
    if (alone) {
        MOE_TRY(x->device->ops->guard(x->device, x, g));
        MOE_TRY(run_steps(x, g, MOE_PHASE_UPD, MOE_PHASE_UPD, false));
    }
    MOE_TRY(moe_device_answers(x->device));
    add_load(x);
    *out = results(&asked);
    MOE_TRY(moe_exec_collect_load(x));
    out->updated = update && isfinite(out->loss) && isfinite(out->grad_norm);
    return out->updated && !alone ? run_steps(x, g, MOE_PHASE_UPD, MOE_PHASE_UPD, false) : NULL;
}

static MoeStatus train(MoeExec *x, const MoeBatch *b, const MoeHyper *h, bool update,
                       MoeStepResult *out) {
    double start = moe_now(), compute = x->compute;
    const MoePlan *p = x->plan;
    Run r;
    MOE_TRY(check_batch(x, "train", b, true, &r));
    set_hyper(x, h);
    x->n_segs = 0; /* of a step that failed */
    memset(x->load, 0,
           sizeof *x->load * p->n_moe_layers * (size_t)p->virtual_shards * (size_t)p->experts);
    MOE_TRY(run_micro_batches(x, &r));
    MOE_TRY(run_steps(x, r.g, MOE_PHASE_RED, MOE_PHASE_RED, false));
    MOE_TRY(finish_step(x, r.g, update, out));
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
        int64_t seqs;
        double part = 0;
        MOE_TRY(set_micro_batch(x, &r, m, &seqs));
        if (seqs) {
            MOE_TRY(run_steps(x, r.g, MOE_PHASE_FWD, MOE_PHASE_UPD, false));
            const void *nll, *n;
            MOE_TRY(ask_output(x, r.g, "nll_sum", 4, &nll));
            MOE_TRY(ask_output(x, r.g, "tokens", 4, &n));
            MOE_TRY(moe_device_asked(x->device));
            MOE_TRY(moe_device_answers(x->device));
            part = of_f32(nll);
            tokens += of_i32(n);
        }
        sum = (float)part;
        /* The tree over micro-batches, as for gradients, so that the sum's bits do not depend on
         * their number. */
        int n = moe_exec_fold_depth(m);
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
    int64_t unused;
    MOE_TRY(set_micro_batch(x, &r, 0, &unused));
    MOE_TRY(run_steps(x, r.g, MOE_PHASE_FWD, MOE_PHASE_UPD, false));
    MOE_TRY(moe_device_read(x->device, logits, port->elements * (int64_t)sizeof *logits));
    *out_logits = logits;
    return moe_exec_collect_logits(x, logits, b->n_seqs);
}
