/* Declarations and the ops that are an identity in one run: input, param, state, const, output,
 * assign, accumulate, batch_sum, wait, offload, load. */
#include "ir/eval/eval_internal.h"

#include <string.h>

static void copy_tensor(const MoeTensor *from, MoeTensor *to) {
    if (!from->n)
        return;
    if (from->f)
        memcpy(to->f, from->f, (size_t)from->n * sizeof(double));
    else
        memcpy(to->i, from->i, (size_t)from->n * sizeof(int32_t));
}

/* The data given for the op's value; `zero` : nothing given means zeros. */
static MoeStatus load_given(MoeEvalOp *e, bool zero) {
    const MoeEval *ev = ((MoeEvalContext *)e->ctx)->ev;
    const MoeValue *v = e->op->results[0];
    const char *name = moe_attr_s(e->op, "name");
    if (!ev)
        return moe_error(MOE_E_INPUT, "a declaration has no value by itself");
    const MoeEvalGiven *g = &ev->given[v->id];
    if (g->n < 0 && zero)
        return NULL;
    if (g->n < 0)
        return moe_error(MOE_E_INPUT, "no data was given for '%s'", name);
    if (g->n != e->out->n)
        return moe_error(MOE_E_INPUT, "'%s' was given %lld elements, its segments say %lld", name,
                         (long long)g->n, (long long)e->out->n);
    MoeTensor from = {.n = g->n, .f = e->out->f ? g->f : NULL, .i = g->i};
    copy_tensor(&from, e->out);
    return NULL;
}

MoeStatus moe_eval_input(MoeEvalOp *e) {
    return load_given(e, false);
}

MoeStatus moe_eval_param(MoeEvalOp *e) {
    return load_given(e, false);
}

MoeStatus moe_eval_state(MoeEvalOp *e) {
    return load_given(e, true);
}

MoeStatus moe_eval_const(MoeEvalOp *e) {
    double value = moe_attr_f(e->op, "value");
    for (int64_t k = 0; k < e->out->n; k++) {
        if (e->out->f)
            e->out->f[k] = value;
        else
            e->out->i[k] = (int32_t)value;
    }
    return NULL;
}

MoeStatus moe_eval_output(MoeEvalOp *e) {
    (void)e;
    return NULL;
}

/* The copy itself waits for moe_eval_commit: within a run a param keeps the value it started with.
 */
MoeStatus moe_eval_assign(MoeEvalOp *e) {
    MoeOpcode to = e->op->operands[0]->def->opcode;
    if (to != MOE_OP_PARAM && to != MOE_OP_STATE)
        return moe_error(MOE_E_INPUT, "only params and states can be assigned");
    if (e->in[0]->n != e->in[1]->n)
        return moe_error(MOE_E_INPUT, "%lld elements do not fit into %lld", (long long)e->in[1]->n,
                         (long long)e->in[0]->n);
    return NULL;
}

MoeStatus moe_eval_accumulate(MoeEvalOp *e) {
    copy_tensor(e->in[0], e->out);
    return NULL;
}

MoeStatus moe_eval_wait(MoeEvalOp *e) {
    copy_tensor(e->in[0], e->out);
    return NULL;
}

MoeStatus moe_eval_offload(MoeEvalOp *e) {
    copy_tensor(e->in[0], e->out);
    return NULL;
}

MoeStatus moe_eval_load(MoeEvalOp *e) {
    copy_tensor(e->in[0], e->out);
    return NULL;
}

MoeStatus moe_eval_batch_sum(MoeEvalOp *e) {
    copy_tensor(e->in[0], e->out);
    return NULL;
}
