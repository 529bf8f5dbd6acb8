/* Pass grad: the training step. In: graph @train, forward and loss (output "loss"). Out: the same
 * graph with the backward pass, the gradient norm and the optimiser's update; other graphs stay as
 * they are.
 *
 *   phase forward    as it was; state exp_avg, exp_avg_sq after each trained param; the scalar
 * inputs below phase backward   gradients of the loss with respect to every trained param phase
 * reduce     accumulate(gradient) with several micro-batches; grad_norm = sqrt(sum of squares);
 *                    clip = min(1, max_grad_norm / (grad_norm + 1e-6))
 *   phase update     p', m', v' = adamw(p, m, v, g, clip, ...); assign p, p'; assign m, m'; assign
 * v, v'
 */
#include <string.h>
#include "base/assert.h"
#include "base/log.h"
#include "passes/grad.h"
#include "passes/pass.h"
#include "passes/phases.h"

static const char *const scalar_names[] = {"lr",           "beta1", "beta2", "eps",
                                           "weight_decay", "bias1", "bias2", "max_grad_norm"};
enum { LR, BETA1, BETA2, EPS, WEIGHT_DECAY, BIAS1, BIAS2, MAX_GRAD_NORM, N_SCALARS };

typedef struct {
    MoeValue *p, *grad, *m, *v; /* of one shape */
} Trained;

typedef struct {
    MoeGraph *g;
    Trained *params;
    size_t n;
    MoeValue *scalars[N_SCALARS]; /* (1) */
} Step;

static const char *name_of(const MoeValue *p) {
    return moe_attr_s(p->def, "name");
}

static MoeStatus check_loss(const MoeGraph *g, const MoeValue *loss) {
    if (!loss)
        return moe_error(MOE_E_INPUT, "grad: graph @train has no output named \"loss\"");
    const MoeType *t = &loss->type;
    if (t->kind == MOE_TYPE_TENSOR && t->dtype == MOE_F32 && t->rank == 1 && t->dims[0].size == 1 &&
        !t->dims[0].seg)
        return NULL;
    MoeStr have = {0};
    moe_type_print(t, &have);
    MoeStatus st =
        moe_error(MOE_E_INPUT, "grad: output \"loss\" of graph @%s is %s, expected f32[1]", g->name,
                  moe_str_c(&have));
    moe_str_free(&have);
    return st;
}

/* A graph that assigns is a training step already (a step.moe read again). */
static bool has_update(const MoeGraph *g) {
    for (size_t i = 0; i < g->n_ops; i++)
        if (g->ops[i]->opcode == MOE_OP_ASSIGN)
            return true;
    return false;
}

/* Gradients of all trained params; those that the loss does not depend on stay untrained. */
static MoeStatus differentiate(Step *s, MoeValue *loss, MoeArena *scratch) {
    MoeGraph *g = s->g;
    size_t n = 0;
    MoeValue **wrt = MOE_NEW_N(scratch, MoeValue *, g->n_ops);
    for (size_t i = 0; i < g->n_ops; i++) {
        MoeOp *op = g->ops[i];
        if (op->opcode != MOE_OP_PARAM || !moe_attr_i_or(op, "trainable", 1))
            continue;
        if (op->results[0]->type.dtype != MOE_F32)
            return moe_error(
                MOE_E_INPUT,
                "grad: parameter %s is %s; trained parameters are f32 (mixed precision "
                "converts them where they are used)",
                name_of(op->results[0]), moe_dtype_name(op->results[0]->type.dtype));
        wrt[n++] = op->results[0];
    }
    MoeValue **grads = MOE_NEW_N(scratch, MoeValue *, n);
    MOE_TRY(moe_grad_graph(g, loss, wrt, n, grads));
    s->params = MOE_NEW_N(scratch, Trained, n);
    for (size_t i = 0; i < n; i++) {
        if (grads[i])
            s->params[s->n++] = (Trained){.p = wrt[i], .grad = grads[i]};
        else
            moe_warn("the loss does not depend on parameter %s: it will not be trained",
                     name_of(wrt[i]));
    }
    if (!s->n)
        return moe_error(MOE_E_INPUT, "grad: the loss of graph @%s depends on no trained parameter",
                         g->name);
    return NULL;
}

static MoeValue *build_state(MoeGraph *g, const char *name, const MoeValue *p) {
    MoeAttr attrs[] = {moe_as("name", name), moe_as("of", name_of(p))};
    return moe_op_build_v(g, MOE_OP_STATE, NULL, 0, attrs, 2, &p->type, NULL)->results[0];
}

/* The scalar inputs after the leading inputs, the states after their params. */
static void declare(Step *s) {
    MoeGraph *g = s->g;
    MoeType scalar = moe_type_1d(MOE_F32, 1);
    size_t n_ops, i = 0;
    MoeOp **ops = moe_graph_take_ops(g, &n_ops);
    g->phase = MOE_PHASE_FORWARD;
    for (; i < n_ops && ops[i]->opcode == MOE_OP_INPUT; i++)
        moe_graph_append(g, ops[i]);
    for (int k = 0; k < N_SCALARS; k++)
        s->scalars[k] = moe_build_input(g, scalar_names[k], scalar);
    for (; i < n_ops; i++) {
        moe_graph_append(g, ops[i]);
        for (size_t k = 0; ops[i]->opcode == MOE_OP_PARAM && k < s->n; k++)
            if (s->params[k].p->def == ops[i]) {
                s->params[k].m = build_state(g, "exp_avg", s->params[k].p);
                s->params[k].v = build_state(g, "exp_avg_sq", s->params[k].p);
            }
    }
}

/* The gradient summed over micro-batches. The contributions to a parameter that is used twice (tied
 * embeddings) are summed each by itself and added after that, as with one micro-batch: the number of
 * micro-batches must not reorder sums. */
static MoeValue *accumulate(MoeGraph *g, MoeValue *grad) {
    const MoeOp *op = grad->def;
    if (op->opcode == MOE_OP_ADD) {
        MoeValue *a = accumulate(g, op->operands[0]), *b = accumulate(g, op->operands[1]);
        return moe_build2(g, MOE_OP_ADD, a, b);
    }
    return moe_build1(g, MOE_OP_ACCUMULATE, grad);
}

/* Sums over micro-batches, the norm over all params in order of definition, and the clip
 * coefficient (1). */
static MoeValue *reduce(Step *s, const MoePassOptions *o) {
    MoeGraph *g = s->g;
    g->phase = MOE_PHASE_REDUCE;
    for (size_t i = 0; o->micro_batches > 1 && i < s->n; i++)
        s->params[i].grad = accumulate(g, s->params[i].grad);
    MoeValue *total = NULL;
    for (size_t i = 0; i < s->n; i++) {
        MoeValue *sum = moe_build1(g, MOE_OP_SUM_SQUARES, s->params[i].grad);
        total = total ? moe_build2(g, MOE_OP_ADD, total, sum) : sum;
    }
    MoeValue *norm = moe_build1(g, MOE_OP_SQRT, total);
    MoeValue *scale = moe_build2(g, MOE_OP_DIV, s->scalars[MAX_GRAD_NORM],
                                 moe_build2(g, MOE_OP_ADD, norm, moe_build_const(g, 1e-6)));
    MoeValue *clip = moe_build2(g, MOE_OP_MIN, moe_build_const(g, 1.0), scale);
    moe_build_output(g, "grad_norm", norm);
    for (size_t i = 0; o->emit_grads && i < s->n; i++) {
        const char *name = moe_arena_printf(g->arena, "grad.%s", name_of(s->params[i].p));
        moe_build_output(g, name, s->params[i].grad);
    }
    return clip;
}

static void update(Step *s, MoeValue *clip) {
    MoeGraph *g = s->g;
    MoeValue *const *in = s->scalars;
    g->phase = MOE_PHASE_UPDATE;
    MoeValue *no_decay = NULL;
    for (size_t i = 0; i < s->n; i++) {
        const Trained *t = &s->params[i];
        MoeValue *decay = in[WEIGHT_DECAY];
        if (!moe_attr_i(t->p->def, "decay"))
            decay = no_decay = no_decay ? no_decay : moe_build_const(g, 0.0);
        MoeValue *operands[] = {t->p,      t->m,      t->v,    t->grad, clip,      in[LR],
                                in[BETA1], in[BETA2], in[EPS], decay,   in[BIAS1], in[BIAS2]};
        g->layer = (int)moe_attr_i_or(t->p->def, "layer", -1);
        MoeOp *op = moe_op_build(g, MOE_OP_ADAMW, operands, 12, MOE_END);
        MoeValue *old[] = {t->p, t->m, t->v};
        for (int k = 0; k < 3; k++)
            moe_op_build(g, MOE_OP_ASSIGN, (MoeValue *[]){old[k], op->results[k]}, 2, MOE_END);
        g->layer = -1;
    }
}

static MoeStatus train_step(MoeGraph *g, const MoePassOptions *o, MoeArena *scratch) {
    Step s = {.g = g};
    MoeValue *loss = moe_graph_find_output(g, "loss");
    MOE_TRY(check_loss(g, loss));
    for (int k = 0; k < N_SCALARS; k++)
        if (moe_graph_find_input(g, scalar_names[k]))
            return moe_error(MOE_E_INPUT,
                             "grad: graph @%s has an input or parameter named \"%s\" already; the "
                             "training step adds one of that name",
                             g->name, scalar_names[k]);
    MOE_TRY(differentiate(&s, loss, scratch));
    declare(&s);
    update(&s, reduce(&s, o));
    g->phase = MOE_PHASE_FORWARD;
    bool acyclic = moe_graph_schedule(g);
    MOE_ASSERT(acyclic, "grad: the update of graph @%s depends on itself", g->name);
    moe_graph_dce(g);
    moe_graph_renumber(g);
    return NULL;
}

MoeStatus moe_pass_grad(MoePassContext *cx) {
    MoeGraph *g = moe_module_find(cx->module, "train");
    if (!g || has_update(g))
        return NULL;
    MoeArena *scratch = moe_arena_create();
    MoeStatus st = train_step(g, &cx->options, scratch);
    moe_arena_destroy(scratch);
    return st;
}
