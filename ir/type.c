/* Types of IR values: constructors, comparison, sizes, text. In: dtypes and dims. Out: MoeType
 * values (no allocation). */
#include "ir/type.h"

#include <inttypes.h>
#include <string.h>

#include "base/mem.h"
#include "ir/internal.h"

static const struct {
    const char *name;
    int bytes;
} dtypes[MOE_N_DTYPES] = {
#define X(id, name, bytes) [MOE_##id] = {#name, bytes},
    MOE_DTYPES(X)
#undef X
};

const char *moe_dtype_name(MoeDtype d) {
    return dtypes[d].name;
}

int moe_dtype_bytes(MoeDtype d) {
    return dtypes[d].bytes;
}

bool moe_dtype_from_name(const char *name, MoeDtype *out) {
    for (int i = 0; i < MOE_N_DTYPES; i++) {
        if (strcmp(dtypes[i].name, name) == 0) {
            *out = (MoeDtype)i;
            return true;
        }
    }
    return false;
}

bool moe_dtype_is_float(MoeDtype d) {
    return d != MOE_I32;
}

MoeDim moe_dim(int64_t n) {
    return (MoeDim){.size = n, .seg = NULL};
}

MoeDim moe_dim_ragged(int64_t capacity, const struct MoeValue *seg) {
    return (MoeDim){.size = capacity, .seg = seg};
}

MoeType moe_type_1d(MoeDtype d, int64_t n) {
    return (MoeType){.kind = MOE_TYPE_TENSOR, .dtype = d, .rank = 1, .dims = {moe_dim(n)}};
}

MoeType moe_type_2d(MoeDtype d, MoeDim rows, int64_t cols) {
    return (MoeType){.kind = MOE_TYPE_TENSOR, .dtype = d, .rank = 2, .dims = {rows, moe_dim(cols)}};
}

MoeType moe_type_3d(MoeDtype d, int64_t a, int64_t b, int64_t c) {
    return (MoeType){.kind = MOE_TYPE_TENSOR,
                     .dtype = d,
                     .rank = 3,
                     .dims = {moe_dim(a), moe_dim(b), moe_dim(c)}};
}

MoeType moe_type_segs(int64_t groups, int64_t shards) {
    return (MoeType){.kind = MOE_TYPE_SEGS, .dtype = MOE_I32, .groups = groups, .shards = shards};
}

bool moe_dim_equal(MoeDim a, MoeDim b) {
    return a.size == b.size && a.seg == b.seg;
}

const char *moe_type_check(const MoeType *t) {
    if (t->kind == MOE_TYPE_SEGS) {
        if (t->shards < 1 || t->shards > MOE_MAX_SEGS_SHARDS)
            return "segs<G,V> needs 1 to 64 virtual shards";
        int64_t n;
        if (t->groups < 1 || !moe_mul_i64(t->groups, t->shards, &n) || n + 1 > MOE_MAX_SEGS_ENTRIES)
            return "segs<G,V> needs G >= 1 and G*V+1 <= 2^24";
        return NULL;
    }
    if (t->rank < 1 || t->rank > MOE_MAX_RANK)
        return "a tensor has 1 to 4 dims";
    int64_t n = 1;
    for (int i = 0; i < t->rank; i++) {
        const MoeDim *dim = &t->dims[i];
        if (dim->size < 0)
            return "a dim cannot be negative";
        /* Zero dims count as one: partial products must fit too. */
        if (!moe_mul_i64(n, dim->size > 0 ? dim->size : 1, &n) || n > MOE_MAX_ELEMENTS)
            return "more than 2^48 elements";
        if (dim->seg && i > 0)
            return "only dim 0 may be ragged";
        if (dim->seg && dim->seg->type.kind != MOE_TYPE_SEGS)
            return "a ragged dim needs a segs value";
    }
    return NULL;
}

bool moe_type_same_shape(const MoeType *a, const MoeType *b) {
    if (a->kind != b->kind)
        return false;
    if (a->kind == MOE_TYPE_SEGS)
        return a->groups == b->groups && a->shards == b->shards;
    if (a->rank != b->rank)
        return false;
    for (int i = 0; i < a->rank; i++) {
        if (!moe_dim_equal(a->dims[i], b->dims[i]))
            return false;
    }
    return true;
}

bool moe_type_equal(const MoeType *a, const MoeType *b) {
    return moe_type_same_shape(a, b) && (a->kind == MOE_TYPE_SEGS || a->dtype == b->dtype);
}

int64_t moe_type_elements(const MoeType *t) {
    int64_t n = 1;
    if (t->kind == MOE_TYPE_SEGS)
        return moe_mul_i64(t->groups, t->shards, &n) && n < INT64_MAX ? n + 1 : INT64_MAX;
    for (int i = 0; i < t->rank; i++) {
        if (!moe_mul_i64(n, t->dims[i].size, &n))
            return INT64_MAX; /* no checked type gets here */
    }
    return n;
}

int64_t moe_type_bytes(const MoeType *t) {
    int64_t n;
    if (!moe_mul_i64(moe_type_elements(t), moe_dtype_bytes(t->dtype), &n))
        return INT64_MAX;
    return n;
}

int64_t moe_type_cols(const MoeType *t) {
    return t->kind == MOE_TYPE_SEGS ? moe_type_elements(t) : t->dims[t->rank - 1].size;
}

static const char *const want_dims =
    "expected dims such as \"8,1024,512\": decimal numbers with a comma between";

const char *moe_dims_from_text(const char *text, MoeType *t) {
    t->rank = 0;
    for (const char *p = text;; p++) {
        if (t->rank == MOE_MAX_RANK)
            return "a tensor has 1 to 4 dims";
        if (*p < '0' || *p > '9')
            return want_dims;
        int64_t n = 0;
        for (; *p >= '0' && *p <= '9'; p++) {
            n = n * 10 + (*p - '0');
            if (n > MOE_MAX_ELEMENTS)
                return "a dim is larger than 2^48";
        }
        t->dims[t->rank++] = moe_dim(n);
        if (*p == 0)
            return moe_type_check(t);
        if (*p != ',')
            return want_dims;
    }
}

void moe_dims_to_text(const MoeType *t, MoeStr *out) {
    for (int i = 0; i < t->rank; i++)
        moe_str_printf(out, "%s%" PRId64, i ? "," : "", t->dims[i].size);
}

void moe_type_print(const MoeType *t, MoeStr *out) {
    moe_type_print_numbered(t, NULL, 0, out);
}

void moe_value_print_numbered(const MoeValue *v, const int *numbers, int n_numbers, MoeStr *out) {
    if (v && v->name)
        moe_str_printf(out, "%%%s", v->name);
    else if (v && !numbers)
        moe_str_printf(out, "%%%d", v->id);
    else if (v && v->id >= 0 && v->id < n_numbers && numbers[v->id] >= 0)
        moe_str_printf(out, "%%%d", numbers[v->id]);
    else
        moe_str_append(out, "%?"); /* not a value of the graph: a broken graph is being shown */
}

void moe_type_print_numbered(const MoeType *t, const int *numbers, int n_numbers, MoeStr *out) {
    if (t->kind == MOE_TYPE_SEGS) {
        moe_str_printf(out, "segs<%" PRId64 ",%" PRId64 ">", t->groups, t->shards);
        return;
    }
    moe_str_printf(out, "%s[", moe_dtype_name(t->dtype));
    for (int i = 0; i < t->rank; i++) {
        if (i)
            moe_str_append(out, ", ");
        if (!t->dims[i].seg) {
            moe_str_printf(out, "%" PRId64, t->dims[i].size);
            continue;
        }
        moe_str_printf(out, "r<=%" PRId64 " @", t->dims[i].size);
        moe_value_print_numbered(t->dims[i].seg, numbers, n_numbers, out);
    }
    moe_str_putc(out, ']');
}
