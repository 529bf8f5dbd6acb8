/* Routing and moving rows between token order and expert order. T tokens, K experts each, R = T*K
 * expert rows. */
#include "ir/eval/eval_internal.h"

#include <string.h>

/* Rows sorted by (expert, token, position in the token's list): for each expert in turn, all of ids
 * in order. */
MoeStatus moe_eval_route_plan(MoeEvalOp *e) {
    const MoeTensor *ids = e->in[0];
    MoeTensor *seg = &e->out[0], *src = &e->out[1], *inv = &e->out[2];
    int64_t experts = moe_attr_i(e->op, "experts"), k = ids->dims[1];
    const int32_t *tok;
    int64_t groups, shards;
    MOE_TRY(moe_eval_row_segs(e, 0, &tok, &groups, &shards));
    if (groups != 1 || seg->n != experts * shards + 1)
        return moe_error(MOE_E_INPUT, "the shards of ids and of the plan differ");
    for (int64_t p = 0; p < ids->n; p++)
        MOE_TRY(moe_eval_check_index("expert id", ids->i[p], p, experts));
    int32_t row = 0;
    for (int64_t x = 0; x < experts; x++)
        for (int64_t v = 0; v < shards; v++) {
            for (int64_t p = tok[v] * k; p < tok[v + 1] * k; p++)
                if (ids->i[p] == x) {
                    src->i[row] = (int32_t)p;
                    inv->i[p] = row++;
                }
            seg->i[x * shards + v + 1] = row;
        }
    return NULL;
}

MoeStatus moe_eval_expert_counts(MoeEvalOp *e) {
    const MoeType *type = &e->op->operands[0]->type;
    const int32_t *table = e->in[0]->i;
    for (int64_t g = 0; g < type->groups; g++)
        e->out->i[g] = table[(g + 1) * type->shards] - table[g * type->shards];
    return NULL;
}

MoeStatus moe_eval_row_count(MoeEvalOp *e) {
    e->out->i[0] = e->in[0]->i[e->in[0]->n - 1];
    return NULL;
}

MoeStatus moe_eval_count_valid(MoeEvalOp *e) {
    for (int64_t t = 0; t < e->in[0]->n; t++)
        e->out->i[0] += e->in[0]->i[t] >= 0;
    return NULL;
}

/* src, rows to flat positions in (T, K), and inv, positions to rows, undo each other. `full`: R = T*K; else an entry of inv
 * may be -1 (its expert is on another rank), and R is the number of the others. */
static MoeStatus check_plan(const MoeTensor *src, const MoeTensor *inv, bool full) {
    int64_t here = 0;
    for (int64_t p = 0; p < inv->n; p++)
        here += full || inv->i[p] != -1;
    if (src->n != here)
        return moe_error(MOE_E_INPUT, "src has %lld rows, inv %lld entries%s", (long long)src->n,
                         (long long)here, full ? "" : " that are not -1");
    for (int64_t p = 0; p < inv->n; p++)
        if (full || inv->i[p] != -1)
            MOE_TRY(moe_eval_check_index("inv", inv->i[p], p, src->n));
    for (int64_t r = 0; r < src->n; r++) {
        MOE_TRY(moe_eval_check_index("src", src->i[r], r, inv->n));
        if (inv->i[src->i[r]] != r)
            return moe_error(MOE_E_INPUT,
                             "row %lld comes from position %d, but inv sends that to "
                             "row %d",
                             (long long)r, src->i[r], inv->i[src->i[r]]);
    }
    return NULL;
}

MoeStatus moe_eval_dispatch(MoeEvalOp *e) {
    const MoeTensor *x = e->in[0], *src = e->in[1], *inv = e->in[2];
    int64_t cols = x->dims[1], k = inv->dims[1];
    MOE_TRY(check_plan(src, inv, false));
    for (int64_t r = 0; r < src->n; r++)
        memcpy(e->out->f + r * cols, x->f + src->i[r] / k * cols, (size_t)cols * sizeof(double));
    return NULL;
}

MoeStatus moe_eval_gather_sum(MoeEvalOp *e) {
    const MoeTensor *y = e->in[0], *src = e->in[1], *inv = e->in[2];
    int64_t cols = y->dims[1], k = inv->dims[1];
    MOE_TRY(check_plan(src, inv, true));
    for (int64_t p = 0; p < inv->n; p++)
        for (int64_t c = 0; c < cols; c++)
            e->out->f[p / k * cols + c] += y->f[inv->i[p] * cols + c];
    return NULL;
}

MoeStatus moe_eval_dispatch_weight(MoeEvalOp *e) {
    const MoeTensor *w = e->in[0], *src = e->in[1], *inv = e->in[2];
    MOE_TRY(check_plan(src, inv, false));
    for (int64_t r = 0; r < src->n; r++)
        e->out->f[r] = w->f[src->i[r]];
    return NULL;
}

MoeStatus moe_eval_collect_weight(MoeEvalOp *e) {
    const MoeTensor *s = e->in[0], *src = e->in[1], *inv = e->in[2];
    MOE_TRY(check_plan(src, inv, true));
    for (int64_t p = 0; p < inv->n; p++)
        e->out->f[p] = s->f[inv->i[p]];
    return NULL;
}
