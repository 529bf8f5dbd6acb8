/* Which passes there are, which order they need. In: passes.def, a list of names from the command
 * line. Out: rows. */
#include "passes/pass_order.h"

#include <string.h>
#include "base/assert.h"

static const MoePassInfo table[] = {
#define PASS(name, doc) {#name, doc, moe_pass_##name},
#define ORDER(before, after, reason)
#include "passes/passes.def"
#undef PASS
#undef ORDER
};
enum { N_PASSES = sizeof table / sizeof table[0] };

/* Row indices, so that an ORDER row that names no pass does not compile. */
enum {
#define PASS(name, doc) ROW_##name,
#define ORDER(before, after, reason)
#include "passes/passes.def"
#undef PASS
#undef ORDER
};

static const struct {
    int before, after;
    const char *reason;
} orders[] = {
#define PASS(name, doc)
#define ORDER(before, after, reason) {ROW_##before, ROW_##after, reason},
#include "passes/passes.def"
#undef PASS
#undef ORDER
};
enum { N_ORDERS = sizeof orders / sizeof orders[0] };

const MoePassInfo *moe_pass_table(size_t *out_n) {
    *out_n = N_PASSES;
    return table;
}

void moe_pass_check_table(void) {
    for (size_t i = 0; i < N_ORDERS; i++)
        MOE_ASSERT(orders[i].before < orders[i].after, "passes.def: %s stands after %s, but %s",
                   table[orders[i].before].name, table[orders[i].after].name, orders[i].reason);
}

MoeStatus moe_pass_find(const char *name, const char *what, const MoePassInfo **out) {
    const char *names[N_PASSES];
    MoeStr all = {0};
    for (size_t i = 0; i < N_PASSES; i++) {
        if (strcmp(table[i].name, name) == 0) {
            *out = &table[i];
            moe_str_free(&all);
            return NULL;
        }
        names[i] = table[i].name;
        moe_str_printf(&all, "%s%s", i ? ", " : "", table[i].name);
    }
    const char *nearest = moe_nearest_name(name, names, N_PASSES);
    MoeStatus st = nearest ? moe_error(MOE_E_MISUSE, "%s: unknown pass \"%s\"; did you mean %s?",
                                       what, name, nearest)
                           : moe_error(MOE_E_MISUSE, "%s: unknown pass \"%s\"; the passes are %s",
                                       what, name, moe_str_c(&all));
    moe_str_free(&all);
    return st;
}

/* The chosen rows against the ORDER rows; a pass may run once. */
static MoeStatus check_selected(const MoePassInfo *const *rows, size_t n) {
    size_t at[N_PASSES] = {0}; /* by row: place in the list, from 1 */
    for (size_t i = 0; i < n; i++) {
        size_t row = (size_t)(rows[i] - table);
        if (at[row])
            return moe_error(MOE_E_MISUSE, "--passes: %s is named twice", rows[i]->name);
        at[row] = i + 1;
    }
    for (size_t i = 0; i < N_ORDERS; i++)
        if (at[orders[i].after] && at[orders[i].before] > at[orders[i].after])
            return moe_error(MOE_E_MISUSE, "--passes: %s must run before %s: %s",
                             table[orders[i].before].name, table[orders[i].after].name,
                             orders[i].reason);
    return NULL;
}

MoeStatus moe_pass_select(const char *list, MoeArena *arena, const MoePassInfo ***out,
                          size_t *out_n) {
    const MoePassInfo **rows = NULL;
    size_t n = 0, cap = 0;
    if (!list)
        for (size_t i = 0; i < N_PASSES; i++)
            MOE_PUSH(arena, rows, n, cap, &table[i]);
    for (const char *p = list; p && *p;) {
        size_t len = strcspn(p, ",");
        const MoePassInfo *row;
        MOE_TRY(moe_pass_find(moe_arena_strndup(arena, p, len), "--passes", &row));
        MOE_PUSH(arena, rows, n, cap, row);
        p += len;
        if (*p == ',' && !*++p) /* "a," */
            return moe_error(MOE_E_MISUSE, "--passes: a pass name is missing at the end of \"%s\"",
                             list);
    }
    MOE_TRY(check_selected(rows, n));
    *out = rows;
    *out_n = n;
    return NULL;
}
