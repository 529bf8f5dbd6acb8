/* base/nccl.c against whatever NCCL this machine has: all functions are there, and those that need no GPU do what moec relies on.
 * Without one, what is said. */
#include <check.h>
#include <string.h>

#include "base/nccl.h"
#include "tests/support/check_main.h"
#include "tests/support/status_checks.h"

START_TEST(test_library) {
    const MoeNccl *nccl = NULL;
    char version[24];
    MoeNcclId a, b;
    int v = 0;
    MoeStatus st = moe_nccl(&nccl);
    if (st) {
        ck_assert_ptr_null(nccl);
        ck_assert_msg(strstr(moe_status_message(st), "pip install nvidia-nccl"), "%s",
                      moe_status_message(st));
        moe_status_free(st);
        return;
    }
    ck_assert_int_eq(nccl->get_version(&v), MOE_NCCL_SUCCESS);
    ck_assert_msg(v >= MOE_NCCL_OLDEST && strchr(moe_nccl_version(version), '.') &&
                      *moe_nccl_path() == '/',
                  "%d, %s, %s", v, moe_nccl_version(version), moe_nccl_path());
    memset(&a, 0, sizeof a);
    memset(&b, 0, sizeof b);
    ck_assert_int_eq(nccl->get_id(&a), MOE_NCCL_SUCCESS);
    ck_assert_int_eq(nccl->get_id(&b), MOE_NCCL_SUCCESS);
    ck_assert(memcmp(&a, &b, sizeof a) != 0);
    OK(moe_nccl_status(MOE_NCCL_SUCCESS, NULL, "nothing"));
    OK(moe_nccl_status(MOE_NCCL_IN_PROGRESS, NULL, "nothing"));
    FAILS(moe_nccl_status(MOE_NCCL_SYSTEM_ERROR, NULL, "joining %d ranks", 4), MOE_E_IO,
          "joining 4 ranks: NCCL says: ", "NCCL_DEBUG=WARN");
}
END_TEST

int main(void) {
    Suite *s = suite_create("nccl");
    TCase *t = tcase_create("nccl");
    tcase_set_timeout(t, 60);
    tcase_add_test(t, test_library);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
