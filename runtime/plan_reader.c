/* See plan_reader.h. */
#include "runtime/plan_reader.h"

#include <math.h>
#include <string.h>

#include "base/mem.h"

#define MAX_ITEMS ((size_t)4 << 20)

void moe_plan_fail(MoePlanReader *r, const char *key, const char *fmt, ...) {
    if (r->st)
        return;
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    r->st = moe_error(MOE_E_CORRUPT, "%s: damaged plan: %s%s%s %s; compile it again", r->name,
                      r->at, r->at[0] && key[0] ? "." : "", key, text);
}

const char *moe_plan_kind(const json_t *v) {
    static const char *const names[] = {"an object", "an array", "a string", "an integer",
                                        "a number",  "true",     "false",    "null"};
    return v ? names[json_typeof(v)] : "nothing";
}

int64_t moe_plan_int(MoePlanReader *r, const json_t *o, const char *key, int64_t lo, int64_t hi) {
    const json_t *v = json_object_get(o, key);
    if (!json_is_integer(v)) {
        moe_plan_fail(r, key, "should be an integer, found %s", moe_plan_kind(v));
        return lo;
    }
    int64_t x = json_integer_value(v);
    if (x < lo || x > hi) {
        moe_plan_fail(r, key, "is %lld, allowed %lld..%lld", (long long)x, (long long)lo,
                      (long long)hi);
        return lo;
    }
    return x;
}

double moe_plan_num(MoePlanReader *r, const json_t *o, const char *key, bool required) {
    const json_t *v = json_object_get(o, key);
    if (!v && !required)
        return 0;
    if (!json_is_number(v) || !isfinite(json_number_value(v)) || json_number_value(v) < 0) {
        moe_plan_fail(r, key, "should be a number >= 0, found %s", moe_plan_kind(v));
        return 0;
    }
    return json_number_value(v);
}

bool moe_plan_bool(MoePlanReader *r, const json_t *o, const char *key) {
    const json_t *v = json_object_get(o, key);
    if (!json_is_boolean(v))
        moe_plan_fail(r, key, "should be true or false, found %s", moe_plan_kind(v));
    return json_is_true(v);
}

const char *moe_plan_str(MoePlanReader *r, const json_t *o, const char *key) {
    const json_t *v = json_object_get(o, key);
    if (!json_is_string(v) || json_string_length(v) == 0 ||
        strlen(json_string_value(v)) != json_string_length(v)) {
        moe_plan_fail(r, key, "should be a text, found %s", moe_plan_kind(v));
        return "";
    }
    return json_string_value(v);
}

const json_t *moe_plan_array(MoePlanReader *r, const json_t *o, const char *key, size_t *out_n) {
    const json_t *v = json_object_get(o, key);
    *out_n = 0;
    if (!json_is_array(v))
        moe_plan_fail(r, key, "should be an array, found %s", moe_plan_kind(v));
    else if (json_array_size(v) > MAX_ITEMS)
        moe_plan_fail(r, key, "has %zu entries, more than %zu", json_array_size(v), MAX_ITEMS);
    else
        *out_n = json_array_size(v);
    return v;
}

MoePlanDtype moe_plan_dtype(MoePlanReader *r, const json_t *o) {
    const char *s = moe_plan_str(r, o, "dtype");
    if (!strcmp(s, "bf16"))
        return MOE_PLAN_BF16;
    if (!strcmp(s, "i32"))
        return MOE_PLAN_I32;
    if (strcmp(s, "f32"))
        moe_plan_fail(r, "dtype", "is \"%.40s\", expected f32, bf16 or i32", s);
    return MOE_PLAN_F32;
}

void moe_plan_dims(MoePlanReader *r, const json_t *o, int *out_rank, int64_t dims[8],
                   int64_t *out_elements) {
    size_t n;
    const json_t *a = moe_plan_array(r, o, "dims", &n);
    *out_rank = 0;
    *out_elements = 0;
    if (n > 8) {
        moe_plan_fail(r, "dims", "has rank %zu, at most 8", n);
        return;
    }
    int64_t e = 1;
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(a, i);
        int64_t d = json_integer_value(v);
        if (!json_is_integer(v) || d < 0 || d > MOE_PLAN_MAX_DIM || !moe_mul_i64(e, d, &e) ||
            e > MOE_PLAN_MAX_BYTES) {
            moe_plan_fail(r, "dims", "entry %zu is not a size", i);
            return;
        }
        dims[i] = d;
    }
    *out_rank = (int)n;
    *out_elements = e;
}

void moe_plan_at(MoePlanReader *r, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(r->at, sizeof r->at, fmt, ap);
    va_end(ap);
}
