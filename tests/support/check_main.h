/* The end of a Check program's main. */
#ifndef MOE_TESTS_SUPPORT_CHECK_MAIN_H
#define MOE_TESTS_SUPPORT_CHECK_MAIN_H

#include <check.h>

/* Runs the suite (CK_FORK, CK_RUN_CASE and CK_VERBOSITY count) and returns main's status. */
static inline int moe_check_main(Suite *s) {
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? 1 : 0;
}

#endif
