/* The op reference as Markdown. In: ir/ops.def. Out: text. */
#include "tests/support/opdoc.h"

#include <string.h>

#include "ir/op.h"

/* What MoeOpInfo leaves out because only one room reads it. */
static const struct {
    const char *grad, *decomp;
} rules[MOE_N_OPS] = {
#define OP(id, name, min_in, max_in, n_out, kind, attrs, infer, grad, decomp, shard, cost, doc)    \
    [MOE_OP_##id] = {#grad, #decomp},
#include "ir/ops.def"
#undef OP
};

/* Text in a table cell: '|' would end it, '<', '*' and '_' would be markup. */
static void print_cell(const char *text, MoeStr *out) {
    for (; *text; text++) {
        if (strchr("|<>*_\\", *text))
            moe_str_putc(out, '\\');
        moe_str_putc(out, *text);
    }
}

static void print_attrs(MoeOpcode op, MoeStr *out) {
    MoeAttrDecl decls[MOE_MAX_ATTRS];
    int n = moe_op_attr_decls(op, decls) - 1; /* layer, which every op has, comes last */
    for (int i = 0; i < n; i++)
        moe_str_printf(out, "%s`%s:%c%s`", i ? " " : "", decls[i].key, decls[i].type,
                       decls[i].optional ? "?" : "");
}

static void print_op(MoeOpcode op, MoeStr *out) {
    const MoeOpInfo *info = moe_op_info(op);
    moe_str_printf(out, "| `%s` | ", info->name);
    if (info->max_in < 0)
        moe_str_printf(out, "%d+", info->min_in);
    else if (info->max_in != info->min_in)
        moe_str_printf(out, "%d-%d", info->min_in, info->max_in);
    else
        moe_str_printf(out, "%d", info->min_in);
    moe_str_printf(out, " | %d | ", info->n_out);
    print_attrs(op, out);
    moe_str_printf(out, " | %s | %s | ", strcmp(rules[op].grad, "none") == 0 ? "" : rules[op].grad,
                   strcmp(rules[op].decomp, "none") == 0 ? "" : rules[op].decomp);
    print_cell(info->doc, out);
    moe_str_append(out, " |\n");
}

void moe_opdoc_print(MoeStr *out) {
    moe_str_printf(out,
                   "# Ops\n\n"
                   "Made from `ir/ops.def` by `build/tests/opdoc docs/OPS.md`; do not edit.\n\n"
                   "%d ops, by the kernel kind that implements them. Attribute types: `i` integer, "
                   "`f` number, "
                   "`s` string, `b` 0 or 1; `?` marks what may be left out.\nEvery op may also "
                   "carry `layer:i`, the "
                   "decoder layer it belongs to. T: token rows, R: expert rows, C: columns, K: "
                   "experts a token, "
                   "E: experts.\nA gradient named `decompose` is that of the op's decomposition.\n",
                   (int)MOE_N_OPS);
    for (int kind = 0; kind < MOE_N_KINDS; kind++) {
        bool any = false;
        for (int op = 0; op < MOE_N_OPS; op++) {
            if ((int)moe_op_info((MoeOpcode)op)->kind != kind)
                continue;
            if (!any)
                moe_str_printf(out,
                               "\n## %s\n\n| op | operands | results | attributes | gradient | "
                               "decomposition | what |\n|---|---|---|---|---|---|---|\n",
                               moe_kind_name((MoeKind)kind));
            any = true;
            print_op((MoeOpcode)op, out);
        }
    }
}
