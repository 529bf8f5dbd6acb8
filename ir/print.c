/* The text form, out: modules, graphs and single ops. In: IR. Out: text that moe_parse reads back
 * to the same bytes. Format: ir/text.h. */
#include <inttypes.h>
#include <string.h>

#include "base/assert.h"
#include "ir/internal.h"
#include "ir/text.h"

/* A JSON string: quotes, backslashes and control characters escaped, the rest (UTF-8) as it is. */
static void print_string(const char *s, MoeStr *out) {
    static const char short_forms[][2] = {{'"', '"'},  {'\\', '\\'}, {'\n', 'n'}, {'\t', 't'},
                                          {'\r', 'r'}, {'\b', 'b'},  {'\f', 'f'}};
    moe_str_putc(out, '"');
    for (; *s; s++) {
        size_t i = 0, n = sizeof short_forms / sizeof *short_forms;
        while (i < n && short_forms[i][0] != *s)
            i++;
        if (i < n) {
            moe_str_putc(out, '\\');
            moe_str_putc(out, short_forms[i][1]);
        } else if ((unsigned char)*s < 0x20) {
            moe_str_printf(out, "\\u%04x", (unsigned)(unsigned char)*s);
        } else {
            moe_str_putc(out, *s);
        }
    }
    moe_str_putc(out, '"');
}

static void print_attr(const MoeAttr *a, MoeStr *out) {
    char buf[32];
    moe_str_printf(out, "%s = ", a->key);
    if (a->type == 's')
        print_string(a->s, out);
    else if (a->type == 'f')
        moe_str_append(out, moe_format_double(a->f, buf));
    else
        moe_str_printf(out, "%" PRId64, a->i);
}

void moe_op_print_numbered(const MoeOp *op, const int *numbers, int n_numbers, MoeStr *out) {
    for (int i = 0; i < op->n_results; i++) {
        moe_str_append(out, i ? ", " : "");
        moe_value_print_numbered(op->results[i], numbers, n_numbers, out);
    }
    moe_str_append(out, op->n_results ? " = " : "");
    moe_str_append(out, moe_op_info(op->opcode)->name);
    for (int i = 0; i < op->n_operands; i++) {
        moe_str_append(out, i ? ", " : " ");
        moe_value_print_numbered(op->operands[i], numbers, n_numbers, out);
    }
    for (int i = 0; i < op->n_attrs; i++) { /* every builder keeps them in the column's order */
        moe_str_append(out, i ? ", " : " {");
        print_attr(&op->attrs[i], out);
    }
    moe_str_append(out, op->n_attrs ? "}" : "");
    for (int i = 0; i < op->n_results; i++) {
        moe_str_append(out, i ? ", " : " : ");
        moe_type_print_numbered(&op->results[i]->type, numbers, n_numbers, out);
    }
    if (op->group >= 0)
        moe_str_printf(out, " #%d", op->group);
}

void moe_print_op(const MoeOp *op, MoeStr *out) {
    moe_op_print_numbered(op, NULL, 0, out);
}

/* Numbers for the unnamed values, in order of definition; -1 for the named. */
static int *number_values(const MoeGraph *g, MoeArena *scratch) {
    int *numbers = MOE_NEW_N(scratch, int, g->n_values + 1);
    for (int i = 0; i < g->n_values; i++)
        numbers[i] = -1;
    int next = 0;
    for (size_t i = 0; i < g->n_ops; i++) {
        for (int r = 0; r < g->ops[i]->n_results; r++) {
            const MoeValue *v = g->ops[i]->results[r];
            MOE_ASSERT(v->id >= 0 && v->id < g->n_values, "graph %s: value id %d of %d", g->name,
                       v->id, g->n_values);
            if (!v->name)
                numbers[v->id] = next++;
        }
    }
    return numbers;
}

void moe_print_graph(const MoeGraph *g, MoeStr *out) {
    MoeArena *scratch = moe_arena_create();
    int *numbers = number_values(g, scratch);
    moe_str_printf(out, "graph @%s ", g->name);
    if (g->leaf_rows)
        moe_str_printf(out, "leaf_rows = %d%s", g->leaf_rows, g->fast_reduce ? ", " : " ");
    moe_str_append(out, g->fast_reduce ? "fast_reduce = 1 {\n" : "{\n");
    MoePhase phase = MOE_PHASE_FORWARD;
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i];
        if (op->phase != phase)
            moe_str_printf(out, "%s:\n", moe_phase_name(op->phase));
        phase = op->phase;
        moe_str_append(out, "  ");
        moe_op_print_numbered(op, numbers, g->n_values, out);
        moe_str_putc(out, '\n');
    }
    moe_str_append(out, "}\n");
    moe_arena_destroy(scratch);
}

void moe_print(const MoeModule *m, MoeStr *out) {
    moe_str_printf(out, "moe %d\n", MOE_IR_FORMAT_VERSION);
    for (size_t i = 0; i < m->n_graphs; i++) {
        moe_str_append(out, i ? "\n" : ""); /* a blank line between graphs */
        moe_print_graph(m->graphs[i], out);
    }
}
