/* opdoc [FILE]: writes the op reference (docs/OPS.md) to FILE, or to standard output. */
#include <stdio.h>

#include "base/io.h"
#include "tests/support/opdoc.h"

int main(int argc, char **argv) {
    MoeStr text = {0};
    moe_opdoc_print(&text);
    MoeStatus st = NULL;
    if (argc > 1)
        st = moe_file_write_atomic(argv[1], text.data, text.len);
    else
        fputs(moe_str_c(&text), stdout);
    if (st)
        fprintf(stderr, "opdoc: %s\n", moe_status_message(st));
    int code = moe_status_exit_code(st);
    moe_status_free(st);
    moe_str_free(&text);
    return code;
}
