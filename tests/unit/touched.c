/* What values touch of the slab's end: the union of what each uses, against a table of bytes. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "runtime/touched.h"
#include "tests/support/check_main.h"

enum { BYTES = 300, VALUES = 12 };

/* Two programs on one slab; values anywhere in it, some elastic. */
static void make_plan(uint64_t seed, MoePlan *p, MoePlanProgram *g, MoePlanValue *v) {
    *p = (MoePlan){.programs = g, .n_programs = 2};
    for (size_t i = 0; i < 2; i++) {
        int64_t slab = 100 + (int64_t)moe_rng_below(seed, 1, i, 200);
        g[i] =
            (MoePlanProgram){.values = v + i * VALUES,
                             .n_values = VALUES,
                             .slab_bytes = slab,
                             .elastic_bytes = (int64_t)moe_rng_below(seed, 2, i, (uint64_t)slab)};
        for (size_t k = 0; k < VALUES; k++) {
            uint64_t at = i * VALUES + k;
            int64_t offset = (int64_t)moe_rng_below(seed, 3, at, (uint64_t)slab);
            bool elastic = moe_rng_below(seed, 4, at, 2) && offset >= slab - g[i].elastic_bytes;
            v[at] = (MoePlanValue){
                .kind = moe_rng_below(seed, 5, at, 5) ? MOE_VALUE_SLAB : MOE_VALUE_INPUT,
                .offset = offset,
                .elastic = elastic,
                .bytes = (int64_t)moe_rng_below(seed, 6, at, (uint64_t)(slab - offset) + 1)};
        }
    }
}

START_TEST(test_union) {
    for (uint64_t seed = 1; seed <= 500; seed++) {
        MoePlan p;
        MoePlanProgram g[2];
        MoePlanValue v[2 * VALUES];
        char used[BYTES] = {0};
        int64_t fixed = 0, want = 0;
        MoeTouch *t;
        size_t n;
        make_plan(seed, &p, g, v);
        for (int i = 0; i < 2; i++)
            fixed = g[i].slab_bytes - g[i].elastic_bytes > fixed
                        ? g[i].slab_bytes - g[i].elastic_bytes
                        : fixed;
        ck_assert_int_eq(moe_plan_fixed_bytes(&p), fixed);
        ck_assert(!moe_touch_list(&p, &t, &n));
        for (size_t i = 0; i < n; i++) {
            const MoePlanValue *x = &p.programs[t[i].program].values[t[i].value];
            ck_assert(x->kind == MOE_VALUE_SLAB && t[i].at == x->offset && t[i].used == 0 &&
                      t[i].elastic == x->elastic);
            t[i].used = (int64_t)moe_rng_below(seed, 7, i, (uint64_t)x->bytes + 1);
            memset(used + t[i].at, 1, (size_t)t[i].used);
        }
        for (int64_t b = fixed; b < BYTES; b++)
            want += used[b];
        ck_assert_int_eq(moe_touch_bytes(t, n, fixed), want);
        free(t);
    }
}
END_TEST

/* Whatever reaches beyond the part that is there anyway is listed, and nothing else but elastic values. */
START_TEST(test_list) {
    for (uint64_t seed = 1; seed <= 200; seed++) {
        MoePlan p;
        MoePlanProgram g[2];
        MoePlanValue v[2 * VALUES];
        MoeTouch *t;
        size_t n, want = 0;
        make_plan(seed, &p, g, v);
        for (size_t i = 0; i < 2 * VALUES; i++)
            want += v[i].kind == MOE_VALUE_SLAB &&
                    (v[i].elastic || v[i].offset + v[i].bytes > moe_plan_fixed_bytes(&p));
        ck_assert(!moe_touch_list(&p, &t, &n));
        ck_assert_uint_eq(n, want);
        free(t);
    }
}
END_TEST

int main(void) {
    Suite *s = suite_create("touched");
    TCase *c = tcase_create("touched");
    tcase_add_test(c, test_union);
    tcase_add_test(c, test_list);
    suite_add_tcase(s, c);
    return moe_check_main(s);
}
