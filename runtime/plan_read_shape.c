/* How a GPU runs a step's kernel: grid, block, shared memory, tensor maps. See plan_reader.h. */
#include <string.h>

#include "base/arena.h"
#include "runtime/plan_reader.h"

#define MAX_GRID   ((int64_t)INT32_MAX)
#define MAX_BLOCK  1024
#define MAX_SHARED ((int64_t)1 << 20)
#define MAX_STRIDE ((int64_t)1 << 40) /* what a tensor map can say, cuTensorMapEncodeTiled */
#define MAX_BOX    256

/* n numbers lo .. hi. */
static void read_numbers(MoePlanReader *r, const json_t *o, const char *key, int n, int64_t lo,
                         int64_t hi, int64_t *out) {
    size_t have;
    const json_t *a = moe_plan_array(r, o, key, &have);
    if (!r->st && have != (size_t)n)
        moe_plan_fail(r, key, "has %zu entries, expected %d", have, n);
    for (int k = 0; k < n && !r->st; k++) {
        const json_t *v = json_array_get(a, (size_t)k);
        out[k] = json_integer_value(v);
        if (!json_is_integer(v) || out[k] < lo || out[k] > hi)
            moe_plan_fail(r, key, "entry %d is not a number %lld..%lld", k, (long long)lo,
                          (long long)hi);
    }
}

/* The box of all elements is inside the buffer. */
static void check_extent(MoePlanReader *r, const MoePlanProgram *g, const MoePlanStep *s,
                         const MoePlanTensorMap *m) {
    int64_t room = g->values[s->buf_value[m->buf]].bytes - s->buf_offset[m->buf],
            end = m->dims[0] * (int64_t)moe_plan_dtype_bytes(m->dtype);
    bool fits = end <= room;
    for (int k = 1; k < m->rank && fits; k++) {
        fits = (m->dims[k] - 1) <= (room - end) / m->strides[k - 1];
        end += fits ? (m->dims[k] - 1) * m->strides[k - 1] : 0;
    }
    if (!fits)
        moe_plan_fail(r, "dims", "reach beyond the %lld bytes of buffer %d", (long long)room,
                      m->buf);
}

static void read_map(MoePlanReader *r, const json_t *o, const MoePlanProgram *g,
                     const MoePlanStep *s, MoePlanTensorMap *m) {
    size_t rank;
    int64_t box[5] = {0};
    m->buf = (int)moe_plan_int(r, o, "buf", 0, (int64_t)s->n_bufs - 1);
    m->dtype = moe_plan_dtype(r, o);
    moe_plan_array(r, o, "dims", &rank);
    if (!r->st && (rank < 1 || rank > 5))
        moe_plan_fail(r, "dims", "has %zu entries, expected 1 to 5", rank);
    if (r->st)
        return;
    m->rank = (int)rank;
    read_numbers(r, o, "dims", m->rank, 1, (int64_t)1 << 32, m->dims);
    read_numbers(r, o, "strides", m->rank - 1, 16, MAX_STRIDE, m->strides);
    read_numbers(r, o, "box", m->rank, 1, MAX_BOX, box);
    for (int k = 0; k < m->rank; k++)
        m->box[k] = (int)box[k];
    m->swizzle = (int)moe_plan_int(r, o, "swizzle", 0, 128);
    for (int k = 0; k < m->rank - 1 && !r->st; k++)
        if (m->strides[k] % 16)
            moe_plan_fail(r, "strides", "entry %d is no multiple of 16", k);
    if (!r->st && m->swizzle && m->swizzle != 32 && m->swizzle != 64 && m->swizzle != 128)
        moe_plan_fail(r, "swizzle", "is %d, expected 0, 32, 64 or 128", m->swizzle);
    if (!r->st)
        check_extent(r, g, s, m);
}

void moe_plan_read_shape(MoePlanReader *r, const json_t *o, MoePlanProgram *g, size_t i) {
    MoePlanStep *s = &g->steps[i];
    s->shape.grid = moe_plan_int(r, o, "grid", 1, MAX_GRID);
    s->shape.block = (int)moe_plan_int(r, o, "block", 1, MAX_BLOCK);
    if (json_object_get(o, "shared"))
        s->shape.shared_bytes = moe_plan_int(r, o, "shared", 0, MAX_SHARED);
    if (!r->st && strlen(s->kernel) >= MOE_CUBIN_NAME_BYTES)
        moe_plan_fail(r, "kernel", "\"%.100s\" is longer than a name in kernels.cubin can be",
                      s->kernel);
    if (!json_object_get(o, "maps"))
        return;
    const json_t *a = moe_plan_array(r, o, "maps", &s->shape.n_maps);
    s->shape.maps = MOE_NEW_N(r->plan->arena, MoePlanTensorMap, s->shape.n_maps);
    for (size_t k = 0; k < s->shape.n_maps && !r->st; k++) {
        moe_plan_at(r, "programs.%s.steps[%zu].maps[%zu]", g->name, i, k);
        read_map(r, json_array_get(a, k), g, s, &s->shape.maps[k]);
    }
    moe_plan_at(r, "programs.%s.steps[%zu]", g->name, i);
}
