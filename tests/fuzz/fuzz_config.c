/* libFuzzer entry for config.json: no text crashes the reader, a refusal has a message that names
 * the file, and what is accepted builds graphs that verify and print to text that parses, or is
 * refused by the batch it does not fit. Seeds: tests/fuzz/corpus/config. */
#include <math.h>
#include <string.h>

#include "base/assert.h"
#include "base/json.h"
#include "frontends/frontend.h"
#include "ir/text.h"
#include "ir/verify.h"

/* Layers alone cost time: tensors are never allocated. */
#define MOST_LAYERS 4

static void check_refusal(MoeStatus st, const char *prefix) {
    MOE_ASSERT(strncmp(moe_status_message(st), prefix, strlen(prefix)) == 0 &&
                   strlen(moe_status_message(st)) > strlen(prefix) + 4,
               "a refusal that says nothing: %s", moe_status_message(st));
    moe_status_free(st);
}

static void check_module(const MoeModule *m) {
    MoeDiag d = {.file = "built"};
    MOE_ASSERT(moe_verify(m, &d), "built graphs do not verify:\n%s", moe_str_c(&d.text));
    moe_diag_free(&d);
    MoeStr first = {0}, second = {0};
    moe_print(m, &first);
    d = (MoeDiag){.file = "printed", .source = first.data};
    MoeModule *parsed = moe_parse(&d);
    MOE_ASSERT(parsed, "the print does not parse:\n%s", moe_str_c(&d.text));
    moe_print(parsed, &second);
    MOE_ASSERT(strcmp(first.data, second.data) == 0, "two prints differ:\n%s\n%s", first.data,
               second.data);
    moe_module_destroy(parsed);
    moe_diag_free(&d);
    moe_str_free(&first);
    moe_str_free(&second);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    json_t *json = NULL;
    MoeStatus st = moe_json_load_text((const char *)data, n, "fuzz", &json);
    if (st) {
        check_refusal(st, "fuzz:");
        return 0;
    }
    MoeHfConfig c;
    st = moe_hf_config_parse(json, "fuzz", &c);
    json_decref(json);
    if (st) {
        check_refusal(st, "fuzz: ");
        return 0;
    }
    if (c.layers > MOST_LAYERS)
        return 0;
    /* The batch: anything, but always the same for the same input. */
    MoeFrontendOptions o = {.batch = 1 + (int64_t)(n % 5), .mixed_from_config = n & 1};
    o.virtual_shards = 1 << n % 4;
    o.micro_batches = n & 8 ? o.virtual_shards : 1;
    o.seq = n & 16 ? c.max_positions : (int64_t)(n % 7);
    o.aux = (MoeAuxChoice)(n % 3);
    MoeModule *m = NULL;
    st = moe_hf_build(&c, &o, &m);
    if (st) {
        check_refusal(st, "");
        return 0;
    }
    check_module(m);
    double flops = moe_hf_flops_per_token(&c, o.seq ? o.seq : 1);
    MOE_ASSERT(isfinite(flops) && flops > 0, "%g FLOPs", flops);
    moe_module_destroy(m);
    return 0;
}
