/* Assertions for loops over many cases. Those of Check leave a record in a file each time, also when they hold; these only when they
 * do not. */
#ifndef MOE_TESTS_HOLD_H
#define MOE_TESTS_HOLD_H

#include <check.h>

#define HOLD(cond)                                                                                 \
    do {                                                                                           \
        if (!(cond))                                                                               \
            ck_abort_msg("%s:%d: %s", __FILE__, __LINE__, #cond);                                  \
    } while (0)
/* With a printf-style message. */
#define HOLD_MSG(cond, ...)                                                                        \
    do {                                                                                           \
        if (!(cond))                                                                               \
            ck_abort_msg(__VA_ARGS__);                                                             \
    } while (0)

#endif
