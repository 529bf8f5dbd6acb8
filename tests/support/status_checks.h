/* Check assertions on statuses and on many elements, for the unit tests. */
#ifndef MOE_TESTS_SUPPORT_STATUS_CHECKS_H
#define MOE_TESTS_SUPPORT_STATUS_CHECKS_H

#include <check.h>
#include "tests/support/files.h"

/* The call succeeds. */
#define OK(expr)                                                                                   \
    do {                                                                                           \
        MoeStatus st_ = (expr);                                                                    \
        ck_assert_msg(!st_, "%s", moe_status_message(st_));                                        \
    } while (0)
/* It fails with this code and a message that holds every word. */
#define FAILS(expr, code, ...)                                                                     \
    do {                                                                                           \
        const char *wrong_ = moe_test_error((expr), code, __VA_ARGS__, NULL);                      \
        ck_assert_msg(!wrong_, "%s", wrong_);                                                      \
    } while (0)
/* An assertion on each of many elements or cases: Check writes down every ck_assert that holds, which costs more than most of what
 * is compared. The rest: a format and its arguments. */
#define CHECK_EACH(condition, ...)                                                                 \
    do {                                                                                           \
        if (!(condition))                                                                          \
            ck_abort_msg(__VA_ARGS__);                                                             \
    } while (0)
/* The same, with the condition as its message. */
#define HOLD(condition) CHECK_EACH(condition, "%s:%d: %s", __FILE__, __LINE__, #condition)

#endif
