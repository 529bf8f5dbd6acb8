/* base/cublaslt.h against a real library, where one is: every function is there, and what needs no GPU takes the attributes that moec sets,
 * of the sizes that it gives them. */
#include <check.h>
#include <stdio.h>
#include <string.h>

#include "base/cublaslt.h"
#include "tests/support/check_main.h"
#include "tests/support/status_checks.h"

static const MoeCublasLt *lt;

START_TEST(test_functions) {
    char text[24];
#define X(type, member, symbol, params) ck_assert_msg(lt->member != NULL, "%s", symbol);
    MOE_LT_FUNCTIONS(X)
#undef X
    ck_assert_uint_ge(lt->version(), MOE_LT_LEAST);
    ck_assert(strcmp(moe_cublaslt_version_text(lt->version(), text), "12") >= 0);
    ck_assert(*moe_cublaslt_path());
    ck_assert(moe_cublaslt_status(MOE_LT_SUCCESS, "nothing") == NULL);
    FAILS(moe_cublaslt_status(MOE_LT_NOT_SUPPORTED, "product %d", 7), MOE_E_IO, "product 7",
          "cuBLASLt says: ", "(15)");
    FAILS(moe_cublaslt_status(MOE_LT_INVALID_VALUE, "x"), MOE_E_IO, "(7)");
}
END_TEST

START_TEST(test_descriptors) {
    static const int computes[] = {MOE_LT_COMPUTE_32F, MOE_LT_COMPUTE_32F_PEDANTIC},
                     types[] = {MOE_LT_R_16BF, MOE_LT_R_32F};
    for (int i = 0; i < 2; i++) {
        MoeLtDesc desc = NULL;
        MoeLtLayout layout = NULL;
        int32_t op = MOE_LT_OP_T;
        int64_t wrong = 0;
        OK(moe_cublaslt_status(lt->desc_create(&desc, computes[i], MOE_LT_R_32F), "create"));
        OK(moe_cublaslt_status(lt->desc_set(desc, MOE_LT_DESC_TRANSA, &op, sizeof op), "transa"));
        ck_assert_int_ne(lt->desc_set(desc, MOE_LT_DESC_TRANSA, &wrong, sizeof wrong), 0);
        OK(moe_cublaslt_status(lt->layout_create(&layout, types[i], 64, 37, 64), "layout"));
        OK(moe_cublaslt_status(lt->layout_destroy(layout), "destroy"));
        OK(moe_cublaslt_status(lt->desc_destroy(desc), "destroy"));
    }
}
END_TEST

START_TEST(test_preferences) {
    MoeLtPrefer p = NULL;
    uint64_t workspace = 32 << 20;
    uint32_t none = 0, align = 64;
    OK(moe_cublaslt_status(lt->prefer_create(&p), "create"));
    OK(moe_cublaslt_status(
        lt->prefer_set(p, MOE_LT_PREFER_WORKSPACE_BYTES, &workspace, sizeof workspace), "bytes"));
    OK(moe_cublaslt_status(lt->prefer_set(p, MOE_LT_PREFER_REDUCTION_MASK, &none, sizeof none),
                           "reduction"));
    for (int a = MOE_LT_PREFER_ALIGN_A; a <= MOE_LT_PREFER_ALIGN_D; a++)
        OK(moe_cublaslt_status(lt->prefer_set(p, a, &align, sizeof align), "alignment %d", a));
    ck_assert_int_ne(lt->prefer_set(p, MOE_LT_PREFER_WORKSPACE_BYTES, &none, sizeof none), 0);
    OK(moe_cublaslt_status(lt->prefer_destroy(p), "destroy"));
}
END_TEST

/* An algorithm's configuration: each attribute has the size that the table says, as set so got. */
START_TEST(test_config) {
    MoeLtAlgo algo;
    size_t n;
    memset(&algo, 0, sizeof algo);
#define X(member, value, type)                                                                     \
    {                                                                                              \
        type one = 1, got = 0;                                                                     \
        MoeLtResult r = lt->config_set(&algo, value, &one, sizeof one);                            \
        if (value != MOE_LT_CONFIG_id) {                                                           \
            OK(moe_cublaslt_status(r, "setting " #member));                                        \
            OK(moe_cublaslt_status(lt->config_get(&algo, value, &got, sizeof got, &n), #member));  \
            ck_assert_int_eq(got, one);                                                            \
            ck_assert_uint_eq(n, sizeof got);                                                      \
        }                                                                                          \
    }
    MOE_LT_CONFIG(X)
#undef X
}
END_TEST

int main(void) {
    MoeStatus st = moe_cublaslt(&lt);
    if (st) {
        printf("skipped: %s\n", moe_status_message(st));
        moe_status_free(st);
        return 0;
    }
    Suite *s = suite_create("cublaslt_real");
    TCase *t = tcase_create("library");
    tcase_set_timeout(t, 120);
    tcase_add_test(t, test_functions);
    tcase_add_test(t, test_descriptors);
    tcase_add_test(t, test_preferences);
    tcase_add_test(t, test_config);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
