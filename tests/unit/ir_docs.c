/* docs/OPS.md says what ir/ops.def says. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "tests/support/check_main.h"
#include "tests/support/opdoc.h"

START_TEST(test_ops_md_is_up_to_date) {
    char *text;
    size_t n;
    MoeStatus st = moe_file_read(MOE_SOURCE_DIR "/docs/OPS.md", 1 << 20, &text, &n);
    ck_assert_msg(!st, "%s", moe_status_message(st));
    MoeStr want = {0};
    moe_opdoc_print(&want);
    ck_assert_msg(strcmp(text, moe_str_c(&want)) == 0,
                  "docs/OPS.md is out of date: run build/tests/opdoc docs/OPS.md");
    moe_str_free(&want);
    free(text);
}
END_TEST

int main(void) {
    Suite *s = suite_create("ir_docs");
    TCase *tc = tcase_create("ops");
    tcase_add_test(tc, test_ops_md_is_up_to_date);
    suite_add_tcase(s, tc);
    return moe_check_main(s);
}
