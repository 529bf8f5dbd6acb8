/* The case table: which lists each op has, and the ids. */
#include "tests/support/op_cases_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/assert.h"

static const char *form_name(MoeCaseForm f) {
    static const char *const names[] = {
#define X(id, name) #name,
        MOE_CASE_FORMS(X)
#undef X
    };
    return names[f];
}

static const char *layout_name(MoeShardLayout l) {
    static const char *const names[] = {
#define X(id, name) #name,
        MOE_SHARD_LAYOUTS(X)
#undef X
    };
    return names[l];
}

static const char *routing_name(MoeRouting r) {
    static const char *const names[] = {
#define X(id, name) #name,
        MOE_ROUTINGS(X)
#undef X
    };
    return names[r];
}

/* Only what the case sets, T always. */
static void make_id(MoeOpCase *c) {
    const struct {
        const char *key;
        int64_t value;
    } fields[] = {{"C", c->cols},       {"k", c->k},         {"n", c->n},
                  {"E", c->experts},    {"K", c->topk},      {"V", c->shards},
                  {"ranks", c->ranks},  {"slots", c->slots}, {"chunks", c->chunks},
                  {"rank", c->ep_rank}, {"h", c->heads},     {"kv", c->kv_heads},
                  {"d", c->head_dim},   {"seq", c->seq},     {"win", c->window},
                  {"N", c->vocab},      {"tb", c->tb},       {"inverse", c->inverse},
                  {"leaf", c->leaf_rows}, {"fast", c->fast_reduce}};
    MoeStr s = {0};
    moe_str_printf(&s, "%s/%s/T=%lld", moe_op_info(c->op)->name, moe_dtype_name(c->dtype),
                   (long long)c->rows);
    for (size_t i = 0; i < LEN(fields); i++)
        if (fields[i].value)
            moe_str_printf(&s, ",%s=%lld", fields[i].key, (long long)fields[i].value);
    if (c->grouped)
        moe_str_append(&s, ",grouped");
    if (c->form != MOE_FORM_PLAIN)
        moe_str_printf(&s, ",%s", form_name(c->form));
    if (c->capacity > 2 * (c->rows + 3))
        moe_str_printf(&s, ",cap=%lld", (long long)c->capacity);
    if (c->shards > 1)
        moe_str_printf(&s, ",shards:%s", layout_name(c->layout));
    if (c->experts)
        moe_str_printf(&s, ",route:%s", routing_name(c->routing));
    MOE_ASSERT(s.len < sizeof c->id, "case id too long: %s", moe_str_c(&s));
    snprintf(c->id, sizeof c->id, "%s", moe_str_c(&s));
    moe_str_free(&s);
}

void moe_case_add(MoeCaseList *l, MoeOpCase c) {
    if (c.capacity < c.rows + 3)
        c.capacity = c.rows + 3; /* never the live extent itself */
    if (l->n < l->cap) {
        make_id(&c);
        l->out[l->n] = c;
    }
    l->n++;
}

static void list_cases(MoeCaseList *l, MoeOpcode op) {
    const MoeTolerance exact = {0, 0, 0}, rounded = moe_tol_rounded();
    const MoeTolerance sig = {1e-38, 0, 6e-7}; /* exp to 2 ulp, a sum and a division */
    switch (op) {
    case MOE_OP_INPUT:
    case MOE_OP_PARAM:
    case MOE_OP_STATE:
    case MOE_OP_CONST:
    case MOE_OP_OUTPUT:
    case MOE_OP_ASSIGN:
        moe_cases_declaration(l, op);
        break;
    case MOE_OP_ADD:
        moe_cases_elementwise(l, op, 2, rounded, true);
        moe_cases_integer_add(l);
        break;
    case MOE_OP_SUB:
    case MOE_OP_MUL:
    case MOE_OP_DIV:
        moe_cases_elementwise(l, op, 2, rounded, true);
        break;
    case MOE_OP_MAX:
    case MOE_OP_MIN:
        moe_cases_elementwise(l, op, 2, exact, true);
        break;
    case MOE_OP_NEG:
        moe_cases_elementwise(l, op, 1, exact, true);
        break;
    case MOE_OP_EXP:
        moe_cases_elementwise(l, op, 1, (MoeTolerance){0, 0, 4e-7}, true);
        break;
    case MOE_OP_LOG:
        moe_cases_elementwise(l, op, 1, (MoeTolerance){2e-7, 0, 4e-7}, true);
        break;
    case MOE_OP_SQRT:
        moe_cases_elementwise(l, op, 1, rounded, true);
        break;
    case MOE_OP_RSQRT:
        moe_cases_elementwise(l, op, 1, (MoeTolerance){0, 0, 2.4e-7}, true);
        break;
    case MOE_OP_SIGMOID:
        moe_cases_elementwise(l, op, 1, sig, true);
        break;
    case MOE_OP_SILU:
        moe_cases_elementwise(l, op, 1, sig, false);
        break;
    case MOE_OP_CONVERT:
        moe_cases_convert(l);
        break;
    case MOE_OP_BROADCAST:
        moe_cases_broadcast(l);
        break;
    case MOE_OP_ROW_SUM:
    case MOE_OP_ROW_MAX:
        moe_cases_row_reduce(l, op);
        break;
    case MOE_OP_TOPK:
    case MOE_OP_TAKE:
    case MOE_OP_PUT:
        moe_cases_routed(l, op);
        break;
    case MOE_OP_COL_SUM:
        moe_cases_col_sum(l);
        break;
    case MOE_OP_SUM_SQUARES:
        moe_cases_sum_squares(l);
        break;
    case MOE_OP_ACCUMULATE:
    case MOE_OP_WAIT:
    case MOE_OP_OFFLOAD:
    case MOE_OP_LOAD:
        moe_cases_identity(l, op, MOE_F32);
        break;
    case MOE_OP_BATCH_SUM:
        moe_cases_identity(l, op, MOE_I32);
        break;
    case MOE_OP_MATMUL:
        moe_cases_matmul(l);
        break;
    case MOE_OP_WEIGHT_GRAD:
        moe_cases_weight_grad(l);
        break;
    case MOE_OP_ROUTE_PLAN:
        moe_cases_routed(l, op);
        break;
    case MOE_OP_EXPERT_COUNTS:
    case MOE_OP_ROW_COUNT:
        moe_cases_count(l, op);
        break;
    case MOE_OP_COUNT_VALID:
        moe_cases_count_valid(l);
        break;
    case MOE_OP_DISPATCH:
        moe_cases_move(l, op, true);
        break;
    case MOE_OP_GATHER_SUM:
        moe_cases_move(l, op, false);
        break;
    case MOE_OP_DISPATCH_WEIGHT:
    case MOE_OP_COLLECT_WEIGHT:
        moe_cases_routed(l, op);
        break;
    case MOE_OP_EMBEDDING:
    case MOE_OP_EMBEDDING_GRAD:
        moe_cases_embedding(l, op);
        break;
    case MOE_OP_ROPE:
        moe_cases_rope(l);
        break;
    case MOE_OP_ATTENTION:
    case MOE_OP_ATTENTION_GRAD:
        moe_cases_attention(l, op);
        break;
    case MOE_OP_LINEAR_CROSS_ENTROPY:
    case MOE_OP_LINEAR_CROSS_ENTROPY_GRAD:
    case MOE_OP_LINEAR_CROSS_ENTROPY_PART:
    case MOE_OP_LINEAR_CROSS_ENTROPY_PART_GRAD:
        moe_cases_cross_entropy(l, op);
        break;
    case MOE_OP_CROSS_ENTROPY_JOIN:
        moe_cases_cross_entropy_join(l);
        break;
    case MOE_OP_SOFTMAX:
        moe_cases_elementwise(l, op, 1, (MoeTolerance){1e-38, 0, 4e-6}, false);
        break;
    case MOE_OP_RMSNORM:
        moe_cases_rmsnorm(l);
        break;
    case MOE_OP_ADAMW:
        moe_cases_adamw(l);
        break;
    case MOE_OP_SEND_PLAN:
    case MOE_OP_EXPERT_PLAN:
        moe_cases_rank_plan(l, op);
        break;
    case MOE_OP_COPY_PLAN:
    case MOE_OP_ROOT_PLAN:
    case MOE_OP_ROOT_GRAD:
        moe_cases_copies(l, op);
        break;
    case MOE_OP_BLOCK_SQUARES:
        moe_cases_block_squares(l);
        break;
    case MOE_OP_BLOCK_TREE:
        moe_cases_block_tree(l);
        break;
    case MOE_OP_ALL_GATHER: /* between ranks: tests/unit/eval_ranks.c */
    case MOE_OP_ALL_GATHER_ROWS:
    case MOE_OP_REDUCE_SCATTER:
    case MOE_OP_ALL_REDUCE:
    case MOE_OP_A2A_DISPATCH:
    case MOE_OP_A2A_COMBINE:
    case MOE_OP_COPY_EXPERTS:
    case MOE_OP_FOLD_COPIES:
    case MOE_N_OPS:
        break;
    }
}

size_t moe_op_cases(MoeOpcode op, MoeOpCase *out, size_t cap) {
    MoeCaseList l = {out, cap, 0};
    list_cases(&l, op);
    return l.n;
}

MoeOpCase *moe_op_cases_all(const char *prefix, size_t *out_n) {
    size_t n = 0, kept = 0;
    for (int op = 0; op < MOE_N_OPS; op++)
        n += moe_op_cases((MoeOpcode)op, NULL, 0);
    MoeOpCase *all = calloc(n, sizeof *all);
    MOE_ASSERT(all, "out of memory for %zu cases", n);
    for (size_t op = 0, at = 0; op < MOE_N_OPS; op++)
        at += moe_op_cases((MoeOpcode)op, all + at, n - at);
    for (size_t i = 0; i < n; i++)
        if (!strncmp(all[i].id, prefix, strlen(prefix)))
            all[kept++] = all[i];
    *out_n = kept;
    return all;
}
