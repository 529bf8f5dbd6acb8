/* Experts with copies (docs/PLACEMENT.md), what each rank computes by itself: which copy a choice goes to, the roots of a slot's rows,
 * the product over rows for each root. */
#include <string.h>

#include "base/split.h"
#include "ir/eval/eval_internal.h"

/* Every expert has a slot, no rank holds one twice. */
static MoeStatus check_copies(MoeEvalOp *e, const MoeTensor *copies, int64_t experts,
                              int64_t slots) {
    bool *held = MOE_NEW_N(e->arena, bool, experts);
    for (int64_t g = 0; g < copies->n; g++) {
        int32_t x = copies->i[g];
        if (x == -1)
            continue;
        MOE_TRY(moe_eval_check_index("expert id", x, g, experts));
        held[x] = true;
        for (int64_t k = g / slots * slots; k < g; k++)
            if (copies->i[k] == x)
                return moe_error(MOE_E_INPUT, "slots %lld and %lld of one rank hold expert %d",
                                 (long long)k, (long long)g, x);
    }
    for (int64_t x = 0; x < experts; x++)
        if (!held[x])
            return moe_error(MOE_E_INPUT, "no slot holds expert %lld", (long long)x);
    return NULL;
}

/* The slot of expert x whose run has row `row`; -1: none. */
static int64_t slot_of_row(const MoeTensor *copies, const MoeSplitRun *runs, int32_t x,
                           int32_t row) {
    for (int64_t g = 0; g < copies->n; g++)
        if (copies->i[g] == x && row >= runs[g].begin && row < runs[g].end)
            return g;
    return -1;
}

/* The rows of this rank's tokens among those of its group: by virtual shard. */
static MoeStatus take_own(MoeEvalOp *e, const int32_t *tok_all, const MoeTensor *all) {
    const MoeTensor *ids = e->in[0];
    const int32_t *tok;
    int64_t groups, shards, k = ids->dims[1];
    MOE_TRY(moe_eval_row_segs(e, 0, &tok, &groups, &shards));
    for (int64_t v = 0; v < shards; v++) {
        int64_t n = tok[v + 1] - tok[v];
        if (n && n != tok_all[v + 1] - tok_all[v])
            return moe_error(MOE_E_INPUT,
                             "ids has %lld rows of virtual shard %lld, the group's table says %d",
                             (long long)n, (long long)v, tok_all[v + 1] - tok_all[v]);
        if (!n)
            continue;
        size_t bytes = (size_t)(n * k) * sizeof(int32_t);
        if (memcmp(ids->i + tok[v] * k, e->in[1]->i + tok_all[v] * k, bytes) != 0)
            return moe_error(MOE_E_INPUT, "ids of virtual shard %lld are not those of the group",
                             (long long)v);
        memcpy(e->out[0].i + tok[v] * k, all->i + tok_all[v] * k, bytes);
    }
    return NULL;
}

MoeStatus moe_eval_copy_plan(MoeEvalOp *e) {
    const MoeTensor *all = e->in[1], *copies = e->in[2];
    MoeTensor *to = &e->out[1], *counts = &e->out[2];
    int64_t experts = moe_attr_i(e->op, "experts"), ranks = moe_attr_i(e->op, "ranks"),
            slots = moe_attr_i(e->op, "slots"), groups, shards, k = all->dims[1];
    const int32_t *tok;
    MOE_TRY(moe_eval_row_segs(e, 1, &tok, &groups, &shards));
    MOE_TRY(check_copies(e, copies, experts, slots));
    for (int64_t v = 0; v < shards; v++)
        for (int64_t p = tok[v] * k; p < tok[v + 1] * k; p++) {
            MOE_TRY(moe_eval_check_index("expert id", all->i[p], p, experts));
            counts->i[all->i[p] * shards + v]++;
        }
    MoeSplitRun *runs = MOE_NEW_N(e->arena, MoeSplitRun, ranks * slots);
    MoeSplit in = {(int)experts, (int)ranks, (int)slots, copies->i,
                   (int)shards,  counts->i,  e->leaf_rows};
    moe_split(
        &in,
        MOE_NEW_N(e->arena, int64_t,
                  moe_split_scratch((int)experts, (int)ranks, (int)slots, (int)shards) / 8 + 1),
        runs);
    int32_t *rows = MOE_NEW_N(e->arena, int32_t, experts);
    for (int64_t p = 0; p < tok[shards] * k; p++) {
        int64_t slot = slot_of_row(copies, runs, all->i[p], rows[all->i[p]]++);
        if (slot < 0)
            return moe_error(MOE_E_INTERNAL, "a row of expert %d is in no copy's run", all->i[p]);
        to->i[p] = (int32_t)slot;
    }
    for (int64_t g = 0; g < ranks * slots; g++) {
        e->out[3].i[2 * g] = runs[g].begin;
        e->out[3].i[2 * g + 1] = runs[g].end;
    }
    return take_own(e, tok, to);
}

/* Rows of root r of shard v. */
static int32_t root_rows(const MoeSplitRoot *r, const int32_t *counts, int64_t v) {
    if (v < r->shard || v >= r->shard + r->shards)
        return 0;
    return r->leaf_end > r->leaf_begin ? r->end - r->begin : counts[v];
}

MoeStatus moe_eval_root_plan(MoeEvalOp *e) {
    const MoeTensor *seg = e->in[0], *counts = e->in[1], *runs = e->in[2], *copies = e->in[3];
    int64_t slots = e->op->operands[0]->type.groups, shards = e->op->operands[0]->type.shards;
    int64_t rank = e->in[4]->i[0], group = 0;
    int32_t *roots = e->out[0].i, *more = e->out[1].i;
    MOE_TRY(moe_eval_check_index("ep_rank", rank, 0, copies->n / slots));
    for (int64_t s = 0; s < slots; s++) {
        int64_t g = rank * slots + s, x = copies->i[g];
        MoeSplitRun run = {runs->i[2 * g], runs->i[2 * g + 1]};
        MoeSplitRoot r[MOE_COPY_ROOTS];
        int n = 0;
        if (x >= 0) {
            MOE_TRY(moe_eval_check_index("expert id", x, g, counts->dims[0]));
            n = moe_split_roots(counts->i + x * shards, (int)shards, e->leaf_rows, run, r,
                                MOE_COPY_ROOTS);
        }
        if (n > MOE_COPY_ROOTS)
            return moe_error(MOE_E_INPUT, "slot %lld has %d roots, at most %d are planned for",
                             (long long)s, n, MOE_COPY_ROOTS);
        for (int i = 0; i < (n ? n : 1); i++, group++)
            for (int64_t v = 0; v < shards; v++)
                roots[group * shards + v + 1] =
                    roots[group * shards + v] +
                    (n ? root_rows(&r[i], counts->i + x * shards, v) : 0);
        if (roots[group * shards] != seg->i[(s + 1) * shards])
            return moe_error(MOE_E_INPUT, "the roots of slots 0 to %lld have %d rows, seg says %d",
                             (long long)s, roots[group * shards], seg->i[(s + 1) * shards]);
        more[s + 1] = (int32_t)(group - s - 1);
    }
    for (int64_t c = group * shards + 1; c < e->out[0].n; c++)
        roots[c] = roots[group * shards];
    return NULL;
}

MoeStatus moe_eval_root_grad(MoeEvalOp *e) {
    const MoeTensor *dy = e->in[0], *x = e->in[1], *roots = e->in[2], *more = e->in[3];
    int64_t slots = more->n - 1, shards = e->op->operands[2]->type.shards, n = dy->dims[1],
            k = x->dims[1];
    if (roots->i[roots->n - 1] != dy->dims[0])
        return moe_error(MOE_E_INPUT, "the roots have %d rows, dy has %lld", roots->i[roots->n - 1],
                         (long long)dy->dims[0]);
    for (int64_t s = 0, root = 0; s < slots; s++)
        for (int64_t i = more->i[s] - 1; i < more->i[s + 1]; i++, root++) {
            double *out = i < more->i[s] ? e->out[0].f + s * n * k : e->out[1].f + i * n * k;
            for (int64_t r = roots->i[root * shards]; r < roots->i[(root + 1) * shards]; r++)
                for (int64_t a = 0; a < n; a++)
                    for (int64_t b = 0; b < k; b++)
                        out[a * k + b] += dy->f[r * n + a] * x->f[r * k + b];
        }
    return NULL;
}
