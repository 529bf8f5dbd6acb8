/* "attention" of a step: which one begins with it (docs/PLAN.md). See plan_reader.h. */
#include <string.h>

#include "base/arena.h"
#include "runtime/plan_reader.h"

#define MAX_HEAD 256

/* Value `name`, of rows x cols elements of that many bytes. */
static int read_value(MoePlanReader *r, const json_t *o, const char *name, const MoePlanProgram *g,
                      int64_t rows, int64_t cols, int64_t bytes) {
    int v = moe_plan_value(r, json_object_get(o, name), g, name);
    if (!r->st && rows > g->values[v].bytes / bytes / cols)
        moe_plan_fail(r, name, "%d has %lld bytes, too few for %lld x %lld of %lld", v,
                      (long long)g->values[v].bytes, (long long)rows, (long long)cols,
                      (long long)bytes);
    return v;
}

static void read_values(MoePlanReader *r, const json_t *o, const MoePlanProgram *g,
                        MoePlanAttn *a) {
    const int64_t q = a->heads * a->head_dim, k = a->kv_heads * a->head_dim;
    a->values.d_o = a->values.dq = a->values.dk = a->values.dv = -1;
    a->values.q = read_value(r, o, "q", g, a->rows, q, 2);
    a->values.k = read_value(r, o, "k", g, a->rows, k, 2);
    a->values.v = read_value(r, o, "v", g, a->rows, k, 2);
    a->values.o = read_value(r, o, "o", g, a->rows, q, 2);
    a->values.lse = read_value(r, o, "lse", g, a->rows, a->heads, 4);
    a->values.segs = read_value(r, o, "segs", g, 2, 1, 4);
    if (!a->grad)
        return;
    a->values.d_o = read_value(r, o, "d_o", g, a->rows, q, 2);
    a->values.dq = read_value(r, o, "dq", g, a->rows, q, 4);
    a->values.dk = read_value(r, o, "dk", g, a->rows, k, 4);
    a->values.dv = read_value(r, o, "dv", g, a->rows, k, 4);
}

void moe_plan_read_attn(MoePlanReader *r, const json_t *o, MoePlanProgram *g, size_t i) {
    const json_t *e = json_object_get(o, "attention");
    if (!e || r->st)
        return;
    MoePlanAttn *a = MOE_NEW_N(r->plan->arena, MoePlanAttn, 1);
    moe_plan_at(r, "programs.%s.steps[%zu].attention", g->name, i);
    a->grad = moe_plan_bool(r, e, "grad");
    a->steps = (int)moe_plan_int(r, e, "steps", 1, 16);
    a->heads = moe_plan_int(r, e, "heads", 1, 1 << 20);
    a->kv_heads = moe_plan_int(r, e, "kv_heads", 1, 1 << 20);
    a->head_dim = moe_plan_int(r, e, "head_dim", 8, MAX_HEAD);
    a->seq = moe_plan_int(r, e, "seq", 1, INT32_MAX);
    a->window = moe_plan_int(r, e, "window", 0, INT32_MAX);
    a->rows = moe_plan_int(r, e, "rows", 1, INT32_MAX);
    a->scale = moe_plan_num(r, e, "scale", true);
    if (!r->st && (a->heads % a->kv_heads || a->rows % a->seq || a->head_dim % 8))
        moe_plan_fail(r, "", "%lld heads over %lld of %lld columns, %lld rows of sequences of %lld",
                      (long long)a->heads, (long long)a->kv_heads, (long long)a->head_dim,
                      (long long)a->rows, (long long)a->seq);
    moe_plan_at(r, "programs.%s.steps[%zu].attention.values", g->name, i);
    if (!r->st)
        read_values(r, json_object_get(e, "values"), g, a);
    g->steps[i].attn = a;
    moe_plan_at(r, "programs.%s.steps[%zu]", g->name, i);
}

void moe_plan_check_attn(MoePlanReader *r, const MoePlanProgram *g) {
    for (size_t i = 0; i < g->n_steps && !r->st; i++) {
        const MoePlanAttn *a = g->steps[i].attn;
        if (!a)
            continue;
        moe_plan_at(r, "programs.%s.steps[%zu].attention", g->name, i);
        for (size_t k = 1; k < (size_t)a->steps && !r->st; k++)
            if (i + k >= g->n_steps || !g->steps[i + k].kernel || g->steps[i + k].attn ||
                strcmp(g->steps[i + k].name, g->steps[i].name))
                moe_plan_fail(r, "steps", "is %d, more kernels of its name than follow", a->steps);
    }
}
