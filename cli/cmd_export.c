/* moec export RUN -o DIR: a Hugging Face directory that from_pretrained loads. */
#include "cli/commands.h"

#include <stdio.h>
#include <string.h>

#include "runtime/weights.h"

MoeStatus moe_cmd_export(const MoeOptions *o) {
    MOE_TRY(moe_options_expect(o, 1));
    const char *dir = moe_opt(o, OPT_EXPORT_OUT);
    if (!*dir)
        return moe_error(MOE_E_MISUSE, "moec export: -o DIR says where the model goes");
    MoeExportOptions e = {.bf16 = strcmp(moe_opt(o, OPT_EXPORT_DTYPE), "bf16") == 0};
    MOE_TRY(moe_export_checkpoint(o->positionals[0], dir, &e));
    if (!moe_opt_b(o, OPT_QUIET))
        printf("%s: config.json and weights in %s; transformers' from_pretrained loads it\n", dir,
               e.bf16 ? "bfloat16" : "float32");
    return NULL;
}
