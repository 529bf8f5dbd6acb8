/* "dense" of a step: which product it is (docs/PLAN.md). See plan_reader.h. */
#include <string.h>

#include "base/arena.h"
#include "runtime/plan_reader.h"

/* A dtype by name at `key`. */
static MoePlanDtype read_dtype(MoePlanReader *r, const json_t *o, const char *key) {
    const char *name = moe_plan_str(r, o, key);
    if (!r->st && strcmp(name, "f32") && strcmp(name, "bf16"))
        moe_plan_fail(r, key, "is \"%.40s\", expected f32 or bf16", name);
    return strcmp(name, "bf16") ? MOE_PLAN_F32 : MOE_PLAN_BF16;
}

/* Buffer `buf` of step s holds a matrix of rows x cols. */
static void check_room(MoePlanReader *r, const MoePlanProgram *g, const MoePlanStep *s,
                       const char *key, int buf, int64_t rows, int64_t cols, MoePlanDtype dtype) {
    if (r->st)
        return;
    int64_t room = g->values[s->buf_value[buf]].bytes - s->buf_offset[buf],
            most = room / (int64_t)moe_plan_dtype_bytes(dtype);
    if (rows > most / cols)
        moe_plan_fail(r, key, "%d has %lld bytes, too few for %lld x %lld", buf, (long long)room,
                      (long long)rows, (long long)cols);
}

/* An index into the step's buffers; -1 where it may be absent and is. */
static int read_buf(MoePlanReader *r, const json_t *o, const char *key, bool required,
                    const MoePlanStep *s) {
    if (!required && !json_object_get(o, key))
        return -1;
    return (int)moe_plan_int(r, o, key, 0, (int64_t)s->n_bufs - 1);
}

void moe_plan_read_dense(MoePlanReader *r, const json_t *o, MoePlanProgram *g, size_t i) {
    MoePlanStep *s = &g->steps[i];
    const json_t *e = json_object_get(o, "dense");
    if (!e || r->st)
        return;
    MoePlanDense *d = MOE_NEW_N(r->plan->arena, MoePlanDense, 1);
    moe_plan_at(r, "programs.%s.steps[%zu].dense", g->name, i);
    d->a = read_buf(r, e, "a", true, s);
    d->b = read_buf(r, e, "b", true, s);
    d->c = read_buf(r, e, "c", false, s);
    d->out = read_buf(r, e, "out", true, s);
    d->live = read_buf(r, e, "live", false, s);
    d->dtype = read_dtype(r, e, "dtype");
    d->out_dtype = read_dtype(r, e, "out_dtype");
    d->rows = moe_plan_int(r, e, "rows", 1, INT32_MAX);
    d->n = moe_plan_int(r, e, "n", 1, INT32_MAX);
    d->k = moe_plan_int(r, e, "k", 1, INT32_MAX);
    d->transposed = moe_plan_bool(r, e, "transposed");
    if (!r->st && d->c >= 0 && d->out_dtype != MOE_PLAN_F32)
        moe_plan_fail(r, "c", "is added to a result that is no f32");
    check_room(r, g, s, "a", d->a, d->rows, d->k, d->dtype);
    check_room(r, g, s, "b", d->b, d->n, d->k, d->dtype);
    check_room(r, g, s, "out", d->out, d->rows, d->n, d->out_dtype);
    if (d->c >= 0)
        check_room(r, g, s, "c", d->c, d->rows, d->n, MOE_PLAN_F32);
    if (d->live >= 0)
        check_room(r, g, s, "live", d->live, 2, 1, MOE_PLAN_I32);
    s->dense = d;
    moe_plan_at(r, "programs.%s.steps[%zu]", g->name, i);
}
