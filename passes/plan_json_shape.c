/* The shape of a launch in plan.json (docs/PLAN.md): blocks, threads, shared memory, tensor maps. */
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
