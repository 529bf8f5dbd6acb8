/* The two engines of parity. Both compile with gradients as outputs ("grad.NAME"). */
#include "tests/support/parity_engine.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "cli/driver.h"
#include "ir/eval/eval.h"
#include "runtime/ranks.h"
#include "runtime/weights.h"

struct ParityEngine {
    bool interpret;
    int64_t batch, seq, vocab;
    int shards;
    MoeCompiled compiled;
    ParityParam *params;
    size_t n_params;
    /* compiled */
    MoePlan *plan;
    MoeComm **comms; /* [n_ranks] */
    MoeExec **execs;
    MoeWeightList *weights_of; /* each rank's pieces */
    int n_ranks, threads;      /* threads of a rank */
    /* interpreter: weights and states in f64, kept here and given to each run */
    double **weights;
    MoeGraph *train, *logits;
    MoeEval *train_eval;
};

static MoeOp *param_op(const MoeGraph *g, const char *name) {
    for (size_t i = 0; i < g->n_ops; i++)
        if (g->ops[i]->opcode == MOE_OP_PARAM && strcmp(moe_attr_s(g->ops[i], "name"), name) == 0)
            return g->ops[i];
    return NULL;
}

static MoeStatus create_interpreter(ParityEngine *e) {
    e->train = moe_module_find(e->compiled.module, "train");
    e->logits = moe_module_find(e->compiled.module, "logits");
    e->train_eval = moe_eval_create(e->train);
    for (size_t i = 0; i < e->train->n_ops; i++) {
        const MoeOp *op = e->train->ops[i];
        if (op->opcode != MOE_OP_PARAM && op->opcode != MOE_OP_STATE)
            continue;
        int64_t n = moe_type_elements(&op->results[0]->type);
        double *zero = calloc((size_t)n, sizeof *zero);
        MOE_TRY(moe_eval_set_f(e->train_eval, op->results[0], zero, n));
        if (op->opcode == MOE_OP_STATE) {
            free(zero);
            continue;
        }
        const MoeType *t = &op->results[0]->type;
        bool stacked = moe_attr_i_or(op, "stacked", 0) != 0;
        e->params = realloc(e->params, sizeof *e->params * (e->n_params + 1));
        e->weights = realloc(e->weights, sizeof *e->weights * (e->n_params + 1));
        e->params[e->n_params] = (ParityParam){moe_attr_s(op, "name"), stacked,
                                               stacked ? t->dims[0].size : 1, n, (int)e->n_params};
        e->weights[e->n_params++] = zero;
    }
    return NULL;
}

static MoeStatus create_rank(void *ctx, MoeComm *comm) {
    ParityEngine *e = ctx;
    MOE_TRY(moe_exec_create(e->plan, comm, e->threads, &e->execs[comm->rank]));
    return moe_weight_list(e->plan, e->execs[comm->rank], &e->weights_of[comm->rank]);
}

static MoeStatus create_compiled(ParityEngine *e, int threads) {
    MOE_TRY(moe_driver_load(&e->compiled, &e->plan));
    e->n_ranks = e->plan->ranks;
    e->threads = threads / e->n_ranks > 1 ? threads / e->n_ranks : 1;
    e->comms = calloc((size_t)e->n_ranks, sizeof(MoeComm *));
    e->execs = calloc((size_t)e->n_ranks, sizeof(MoeExec *));
    e->weights_of = calloc((size_t)e->n_ranks, sizeof *e->weights_of);
    MOE_TRY(e->n_ranks == 1 ? moe_comm_self(e->comms) : moe_comm_threads(e->n_ranks, e->comms));
    MOE_TRY(moe_ranks_run_on(e->comms, e->n_ranks, create_rank, e));
    e->n_params = e->plan->n_params;
    e->params = calloc(e->n_params ? e->n_params : 1, sizeof *e->params);
    for (size_t i = 0; i < e->n_params; i++) {
        const MoePlanParam *p = &e->plan->params[i];
        e->params[i] =
            (ParityParam){p->name, p->stacked, p->stacked ? p->dims[0] : 1, p->elements, (int)i};
    }
    return NULL;
}

MoeStatus parity_create(const char *config, const ParityOptions *o, ParityEngine **out) {
    ParityEngine *e = calloc(1, sizeof *e);
    *out = e;
    e->interpret = strcmp(o->engine, "interpreter") == 0;
    if (!e->interpret && strcmp(o->engine, "compiled") != 0)
        return moe_error(MOE_E_MISUSE, "--engine %s: expected compiled or interpreter", o->engine);
    e->batch = o->batch;
    e->seq = o->seq;
    e->shards = o->virtual_shards ? o->virtual_shards : 8;
    MoeDriverOptions d;
    moe_driver_defaults(&d);
    d.model = config;
    d.target = o->target;
    d.quiet = true;
    d.frontend = (MoeFrontendOptions){.batch = o->batch,
                                      .seq = o->seq,
                                      .virtual_shards = e->shards,
                                      .micro_batches = o->micro_batches,
                                      .mixed_bf16 = strcmp(o->dtype, "bf16") == 0};
    d.strategy = (MoeStrategy){.ranks = o->ranks,
                               .ep = o->expert_parallel,
                               .shard = o->hybrid_shard,
                               .tp = o->tensor_parallel,
                               .dense_shard = o->dense_shard};
    d.pass.recompute = moe_recompute_from_name(o->recompute);
    d.pass.emit_grads = true;
    d.pipeline.verify_each = true;
    if (e->interpret)
        d.pipeline.stop_after = "grad";
    MOE_TRY(moe_driver_compile(&d, &e->compiled));
    e->vocab = e->compiled.config.vocab_size;
    return e->interpret ? create_interpreter(e) : create_compiled(e, o->threads);
}

void parity_destroy(ParityEngine *e) {
    if (!e)
        return;
    if (e->train_eval)
        moe_eval_destroy(e->train_eval);
    for (size_t i = 0; e->interpret && i < e->n_params; i++)
        free(e->weights[i]);
    free(e->weights);
    free(e->params);
    for (int r = 0; r < e->n_ranks; r++) {
        if (e->weights_of[r].items)
            moe_weight_list_free(&e->weights_of[r]);
        moe_exec_destroy(e->execs[r]);
        moe_comm_destroy(e->comms[r]);
    }
    free(e->comms);
    free(e->execs);
    free(e->weights_of);
    if (e->plan)
        moe_plan_free(e->plan);
    moe_driver_free(&e->compiled);
    free(e);
}

const ParityParam *parity_params(const ParityEngine *e, size_t *n) {
    *n = e->n_params;
    return e->params;
}

int64_t parity_vocab(const ParityEngine *e) {
    return e->vocab;
}

/* Rank r's piece of the slice that starts at element `first` of the parameter; NULL if it has nothing of it. */
static const MoePiece *piece_of(const ParityEngine *e, int r, const ParityParam *p, int64_t first) {
    char name[512];
    const char *star = strchr(p->name, '*');
    snprintf(name, sizeof name, "%s", p->name);
    if (star)
        snprintf(name, sizeof name, "%.*s%lld%s", (int)(star - p->name), p->name,
                 (long long)(first / (p->elements / p->slices)), star + 1);
    const MoeWeight *w = moe_weight_find(&e->weights_of[r], name);
    MOE_ASSERT(w, "parity: rank %d knows no weight %s", r, name);
    return w->piece.count ? &w->piece : NULL;
}

/* The slice out of the ranks' buffers, which hold the pieces at the same places as the parameter's. */
static void gather(ParityEngine *e, const ParityParam *p, int64_t first, int64_t n,
                   const float *const *buffers, double *out) {
    char *seen = calloc((size_t)n, 1);
    for (int r = 0; r < e->n_ranks; r++) {
        const MoePiece *piece = piece_of(e, r, p, first);
        MoeRun run;
        for (int64_t at = 0; piece && moe_piece_run(piece, at, &run); at = run.first + run.n)
            for (int64_t i = 0; i < run.n; i++) {
                double v = (double)buffers[r][run.at + i], *to = &out[run.first + i];
                MOE_ASSERT(!seen[run.first + i] || !memcmp(to, &v, sizeof v),
                           "parity: %s, element %lld: rank %d has %g, a lower one %g", p->name,
                           (long long)(run.first + i), r, v, *to);
                *to = v;
                seen[run.first + i] = 1;
            }
    }
    for (int64_t i = 0; i < n; i++)
        MOE_ASSERT(seen[i], "parity: %s, element %lld: no rank has it", p->name, (long long)i);
    free(seen);
}

static const float *exec_param(ParityEngine *e, int r, const ParityParam *p) {
    int b = e->plan->params[p->index].buffer;
    const float *buffer = moe_exec_buffer(e->execs[r], b);
    MoeStatus st = moe_exec_fetch(e->execs[r], buffer, e->plan->buffers[b].bytes);
    MOE_ASSERT(!st, "parity: %s", moe_status_message(st));
    return buffer;
}

void parity_set(ParityEngine *e, const ParityParam *p, int64_t first, int64_t n,
                const float *data) {
    for (int r = 0; r < e->n_ranks; r++) {
        const MoePiece *piece = piece_of(e, r, p, first);
        float *buffer = moe_exec_buffer(e->execs[r], e->plan->params[p->index].buffer);
        MoeRun run;
        for (int64_t at = 0; piece && moe_piece_run(piece, at, &run); at = run.first + run.n)
            memcpy(buffer + run.at, data + run.first, sizeof(float) * (size_t)run.n);
        MoeStatus st = piece ? moe_exec_send(e->execs[r], buffer + piece->offset,
                                             piece->count * (int64_t)sizeof *buffer)
                             : NULL;
        MOE_ASSERT(!st, "parity: %s", moe_status_message(st));
    }
    if (!e->interpret)
        return;
    for (int64_t i = 0; i < n; i++)
        e->weights[p->index][first + i] = data[i];
    MoeStatus st = moe_eval_set_f(e->train_eval, param_op(e->train, p->name)->results[0],
                                  e->weights[p->index], p->elements);
    MOE_ASSERT(!st, "parity: %s", moe_status_message(st));
}

/* What the step gives a parameter: after a run the parameter's own tensor is still the one it started from. */
static const MoeValue *assigned_value(const MoeGraph *g, const MoeValue *param) {
    for (size_t i = 0; i < g->n_ops; i++)
        if (g->ops[i]->opcode == MOE_OP_ASSIGN && g->ops[i]->operands[0] == param)
            return g->ops[i]->operands[1];
    return param;
}

void parity_get(ParityEngine *e, const ParityParam *p, int64_t first, int64_t n, double *out) {
    if (!e->interpret) {
        const float **buffers = malloc(sizeof(float *) * (size_t)e->n_ranks);
        for (int r = 0; r < e->n_ranks; r++)
            buffers[r] = exec_param(e, r, p);
        gather(e, p, first, n, buffers, out);
        free(buffers);
        return;
    }
    const MoeTensor *t = moe_eval_get(
        e->train_eval, assigned_value(e->train, param_op(e->train, p->name)->results[0]));
    memcpy(out, t->f + first, sizeof *out * (size_t)n);
}

void parity_grad(ParityEngine *e, const ParityParam *p, int64_t first, int64_t n, double *out) {
    char key[600];
    snprintf(key, sizeof key, "grad.%s", p->name);
    if (!e->interpret) {
        const float **buffers = malloc(sizeof(float *) * (size_t)e->n_ranks);
        for (int r = 0; r < e->n_ranks; r++) {
            buffers[r] = moe_exec_output(e->execs[r], "train", key, NULL);
            MOE_ASSERT(buffers[r], "parity: no output %s", key);
        }
        gather(e, p, first, n, buffers, out);
        free(buffers);
        return;
    }
    MoeValue *v = moe_graph_find_output(e->train, key);
    MOE_ASSERT(v, "parity: no output %s", key);
    memcpy(out, moe_eval_get(e->train_eval, v)->f + first, sizeof *out * (size_t)n);
}

/* tok for the whole batch: shard v starts at sequence floor(v B / V). */
static MoeStatus set_batch(ParityEngine *e, MoeEval *ev, const MoeGraph *g, const int32_t *ids,
                           const int32_t *labels, int64_t n_seqs) {
    int32_t tok[65];
    for (int v = 0; v <= e->shards; v++)
        tok[v] = (int32_t)(v * n_seqs / e->shards * e->seq);
    int64_t n = n_seqs * e->seq;
    MOE_TRY(moe_eval_set_i(ev, moe_graph_find_input(g, "tok"), tok, e->shards + 1));
    MOE_TRY(moe_eval_set_i(ev, moe_graph_find_input(g, "ids"), ids, n));
    return labels ? moe_eval_set_i(ev, moe_graph_find_input(g, "labels"), labels, n) : NULL;
}

static double output_f(MoeEval *ev, const MoeGraph *g, const char *name) {
    return moe_eval_get(ev, moe_graph_find_output(g, name))->f[0];
}

static MoeStatus interpret(ParityEngine *e, const int32_t *ids, const int32_t *labels,
                           const ParityHyper *h, ParityLosses *out) {
    MoeEval *ev = e->train_eval;
    const MoeGraph *g = e->train;
    MOE_TRY(set_batch(e, ev, g, ids, labels, e->batch));
    struct {
        const char *name;
        double value;
    } scalars[] = {{"lr", h->lr},
                   {"beta1", h->beta1},
                   {"beta2", h->beta2},
                   {"eps", h->eps},
                   {"weight_decay", h->weight_decay},
                   {"bias1", 1 - pow(h->beta1, (double)h->step)},
                   {"bias2", 1 - pow(h->beta2, (double)h->step)},
                   {"max_grad_norm", h->clip}};
    for (size_t i = 0; i < sizeof scalars / sizeof *scalars; i++)
        MOE_TRY(moe_eval_set_f(ev, moe_graph_find_input(g, scalars[i].name), &scalars[i].value, 1));
    MOE_TRY(moe_eval_run(ev));
    out->loss = output_f(ev, g, "loss");
    out->grad_norm = output_f(ev, g, "grad_norm");
    out->has_aux = moe_graph_find_output(g, "aux_loss") != NULL;
    if (out->has_aux)
        out->aux = output_f(ev, g, "aux_loss");
    return NULL;
}

/* One call of every rank's execution. */
typedef struct {
    ParityEngine *e;
    MoeBatch batch;
    MoeHyper hyper;
    bool update;
    const float *logits; /* rank 0's */
    MoeStepResult *results;
} Call;

static MoeStatus logits_rank(void *ctx, MoeComm *comm) {
    Call *c = ctx;
    const float *logits;
    MOE_TRY(moe_exec_logits(c->e->execs[comm->rank], &c->batch, &logits));
    if (comm->rank == 0)
        c->logits = logits;
    return NULL;
}

MoeStatus parity_logits(ParityEngine *e, const int32_t *ids, double *out) {
    int64_t n = e->seq * e->vocab;
    MoeEval *ev = e->interpret ? moe_eval_create(e->logits) : NULL;
    for (size_t i = 0; ev && i < e->n_params; i++)
        MOE_TRY(moe_eval_set_f(ev, param_op(e->logits, e->params[i].name)->results[0],
                               e->weights[i], e->params[i].elements));
    for (int64_t s = 0; s < e->batch; s++) {
        if (ev) {
            MOE_TRY(set_batch(e, ev, e->logits, ids + s * e->seq, NULL, 1));
            MOE_TRY(moe_eval_run(ev));
            memcpy(out + s * n, moe_eval_get(ev, moe_graph_find_output(e->logits, "logits"))->f,
                   sizeof(double) * (size_t)n);
            continue;
        }
        Call c = {.e = e, .batch = {ids + s * e->seq, NULL, 1}};
        MOE_TRY(moe_ranks_run_on(e->comms, e->n_ranks, logits_rank, &c));
        for (int64_t i = 0; i < n; i++)
            out[s * n + i] = c.logits[i];
    }
    if (ev)
        moe_eval_destroy(ev);
    return NULL;
}

static MoeStatus step_rank(void *ctx, MoeComm *comm) {
    Call *c = ctx;
    MoeExec *x = c->e->execs[comm->rank];
    MoeStepResult *r = &c->results[comm->rank];
    return c->update ? moe_exec_train_step(x, &c->batch, &c->hyper, r)
                     : moe_exec_train_grads(x, &c->batch, &c->hyper, r);
}

static MoeStatus execute(ParityEngine *e, const int32_t *ids, const int32_t *labels,
                         const ParityHyper *h, bool update, ParityLosses *out) {
    MoeStepResult *r = calloc((size_t)e->n_ranks, sizeof *r);
    Call c = {.e = e,
              .batch = {ids, labels, e->batch},
              .hyper = {h->lr, h->beta1, h->beta2, h->eps, h->weight_decay, h->clip, h->step},
              .update = update,
              .results = r};
    MoeStatus st = moe_ranks_run_on(e->comms, e->n_ranks, step_rank, &c);
    for (int i = 1; i < e->n_ranks && !st; i++)
        MOE_ASSERT(r[i].loss == r[0].loss && r[i].grad_norm == r[0].grad_norm &&
                       r[i].tokens == r[0].tokens,
                   "parity: rank %d has loss %.17g, rank 0 %.17g", i, r[i].loss, r[0].loss);
    *out = (ParityLosses){r[0].loss, r[0].aux_loss, r[0].grad_norm, r[0].has_aux};
    free(r);
    return st;
}

MoeStatus parity_grads(ParityEngine *e, const int32_t *ids, const int32_t *labels,
                       ParityLosses *out) {
    ParityHyper h = {.lr = 0, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .clip = 1e30, .step = 1};
    return e->interpret ? interpret(e, ids, labels, &h, out)
                        : execute(e, ids, labels, &h, false, out);
}

MoeStatus parity_step(ParityEngine *e, const int32_t *ids, const int32_t *labels,
                      const ParityHyper *h, ParityLosses *out) {
    if (!e->interpret)
        return execute(e, ids, labels, h, true, out);
    MOE_TRY(interpret(e, ids, labels, h, out));
    moe_eval_commit(e->train_eval);
    return NULL;
}
