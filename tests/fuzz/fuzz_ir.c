/* libFuzzer entry for the text form: no text crashes moe_parse, a refusal has a message, and
 * whatever parses prints to text that parses and prints to the same bytes. Seeds:
 * tests/fuzz/corpus/ir. */
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "ir/text.h"

static MoeModule *parse(const char *text, MoeStr *said) {
    MoeDiag d = {.file = "fuzz", .source = text};
    MoeModule *m = moe_parse(&d);
    MOE_ASSERT((m != NULL) == (d.n_errors == 0) && (m != NULL) == (d.text.len == 0),
               "a module and errors, or neither");
    moe_str_append(said, moe_str_c(&d.text));
    moe_diag_free(&d);
    return m;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    char *text = malloc(n + 1);
    if (!text)
        return 0;
    if (n)
        memcpy(text, data, n);
    text[n] = 0;
    MoeStr said = {0}, first = {0}, second = {0};
    MoeModule *m = parse(text, &said);
    if (m) {
        moe_print(m, &first);
        moe_module_destroy(m);
        m = parse(moe_str_c(&first), &said);
        MOE_ASSERT(m != NULL, "the print does not parse: %s", moe_str_c(&said));
        moe_print(m, &second);
        MOE_ASSERT(strcmp(first.data, second.data) == 0, "two prints differ:\n%s\n%s", first.data,
                   second.data);
        moe_module_destroy(m);
    }
    moe_str_free(&said);
    moe_str_free(&first);
    moe_str_free(&second);
    free(text);
    return 0;
}
