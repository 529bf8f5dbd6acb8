/* The shape of a launch in plan.json (docs/PLAN.md): blocks, threads, shared memory, tensor maps; what product it is. */
#include "passes/plan_json_internal.h"

static json_t *numbers64(const int64_t *v, int n) {
    json_t *a = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(a, json_integer(v[i]));
    return a;
}

static json_t *numbers(const int *v, int n) {
    json_t *a = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(a, json_integer(v[i]));
    return a;
}

static json_t *json_map(const MoeTensorMap *m) {
    json_t *o = json_object();
    set_i(o, "buf", m->buf);
    set_s(o, "dtype", moe_dtype_name(m->dtype));
    set(o, "dims", numbers64(m->dims, m->rank));
    set(o, "strides", numbers64(m->strides, m->rank - 1));
    set(o, "box", numbers(m->box, m->rank));
    set_i(o, "swizzle", m->swizzle);
    return o;
}

void moe_plan_json_shape(const MoeLaunchShape *s, json_t *o) {
    if (!s->grid)
        return;
    set_i(o, "grid", s->grid);
    set_i(o, "block", s->block);
    set_i(o, "shared", s->shared_bytes);
    if (!s->n_maps)
        return;
    json_t *maps = json_array();
    for (size_t i = 0; i < s->n_maps; i++)
        json_array_append_new(maps, json_map(&s->maps[i]));
    set(o, "maps", maps);
}

void moe_plan_json_dense(const MoeDense *d, json_t *o) {
    if (!d)
        return;
    json_t *p = json_object();
    set_i(p, "a", d->a);
    set_i(p, "b", d->b);
    if (d->c >= 0)
        set_i(p, "c", d->c);
    set_i(p, "out", d->out);
    if (d->live >= 0)
        set_i(p, "live", d->live);
    set_s(p, "dtype", moe_dtype_name(d->dtype));
    set_s(p, "out_dtype", moe_dtype_name(d->out_dtype));
    set_i(p, "rows", d->rows);
    set_i(p, "n", d->n);
    set_i(p, "k", d->k);
    set(p, "transposed", json_boolean(d->transposed));
    set(o, "dense", p);
}

void moe_plan_json_attention(MoePlanWriter *w, const MoeAttention *a, json_t *o) {
    static const char *const names[] = {
#define X(member) #member,
        MOE_ATTN_BUFS(X)
#undef X
    };
    if (!a)
        return;
    json_t *p = json_object(), *bufs = json_object();
    set(p, "grad", json_boolean(a->grad));
    set_i(p, "steps", a->launches);
    set_s(p, "dtype", "bf16");
    set_i(p, "heads", a->heads);
    set_i(p, "kv_heads", a->kv_heads);
    set_i(p, "head_dim", a->head_dim);
    set_i(p, "seq", a->seq);
    set_i(p, "window", a->window);
    set_i(p, "rows", a->rows);
    set(p, "scale", json_real(a->scale));
    for (int i = 0; i < (a->grad ? MOE_ATTN_GRAD_BUFS : MOE_ATTN_FORWARD_BUFS); i++)
        set_i(bufs, names[i], moe_plan_value_entry(w, a->bufs[i].value));
    set(p, "values", bufs);
    set(o, "attention", p);
}
