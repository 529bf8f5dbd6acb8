/* See explain_planner.h. */
#include "cli/explain_planner.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- JSON ---- */

static json_t *json_row(const MoePlannerRow *r, int pool) {
    MoeStr text = {0};
    const MoePlanCandidate *x = &r->candidate;
    moe_planner_text(x, &text);
    json_t *o = json_pack("{s:i, s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:s, s:i}", "pool", pool, "division",
                          moe_str_c(&text), "dp", x->mesh.dp, "shard", x->mesh.shard, "ep", x->mesh.ep, "tp",
                          x->mesh.tp, "dense_shard", x->mesh.dense_shard, "micro_batches", x->micro_batches,
                          "recompute", moe_plan_level_name(x->level), "extra_slots", x->extra);
    const struct {
        const char *key;
        double value;
    } numbers[] = {{"seconds", r->predicted.seconds},
                   {"compute", r->predicted.compute},
                   {"rows_exposed", r->predicted.a2a_exposed},
                   {"other_exposed", r->predicted.other_exposed},
                   {"memory", r->memory},
                   {"imbalance", r->imbalance},
                   {"estimated_seconds", x->seconds},
                   {"estimated_memory", x->memory}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        json_object_set_new(o, numbers[i].key, json_real(numbers[i].value));
    const char *none = x->mesh.ep > 1 ? "usual" : "none";
    json_object_set_new(o, "first_placement", json_string(r->placement ? r->placement : none));
    moe_str_free(&text);
    return o;
}

static int by_seconds(const void *a, const void *b) {
    const MoePlannerRow *x = *(const MoePlannerRow *const *)a, *y = *(const MoePlannerRow *const *)b;
    if (x->predicted.seconds != y->predicted.seconds)
        return x->predicted.seconds < y->predicted.seconds ? -1 : 1;
    return (x > y) - (x < y);
}

/* Where the runner-up loses most. */
static void reason(const MoePlannerReport *r, const MoePlannerRow *best, const MoePlannerRow *next, MoeStr *out) {
    if (!next) {
        moe_str_printf(out, "the only division that is possible%s", r->memory_limit > 0 ? " within the memory limit" : "");
        return;
    }
    const struct {
        const char *what;
        double more;
    } parts[] = {
        {"compute of the busiest rank", next->predicted.compute - best->predicted.compute},
        {"waits for rows of experts", next->predicted.a2a_exposed - best->predicted.a2a_exposed},
        {"waits for parameters and sums", next->predicted.other_exposed - best->predicted.other_exposed}};
    size_t most = 0;
    for (size_t i = 1; i < sizeof parts / sizeof *parts; i++)
        most = parts[i].more > parts[most].more ? i : most;
    moe_str_printf(out, "%.1f%% less time than the next: that has %.3f ms more of %s",
                   100 * (1 - best->predicted.seconds / next->predicted.seconds), 1e3 * parts[most].more,
                   parts[most].what);
    if (r->usual && r->usual->predicted.seconds > best->predicted.seconds)
        moe_str_printf(out, "; the first placement (%s) saves %.1f%% of its pool's usual one", best->placement,
                       100 * (1 - best->predicted.seconds / r->usual->predicted.seconds));
}

json_t *moe_planner_json(const MoePlannerReport *r) {
    const MoePlannerRow **order = malloc((r->n_rows + 1) * sizeof *order);
    json_t *rows = json_array();
    MoeStr why = {0};
    for (size_t i = 0; order && i < r->n_rows; i++)
        order[i] = &r->rows[i];
    if (order)
        qsort(order, r->n_rows, sizeof *order, by_seconds);
    for (size_t i = 0; order && i < r->n_rows; i++) {
        json_array_append_new(rows, json_row(order[i], (int)i + 1));
        if (i == 0 && r->usual)
            json_array_append_new(rows, json_row(r->usual, 1));
    }
    if (order)
        reason(r, order[0], r->n_rows > 1 ? order[1] : NULL, &why);
    json_t *o = json_pack("{s:i, s:i, s:s, s:f, s:I, s:I, s:I, s:f, s:s, s:o}", "ranks", moe_cluster_ranks(r->cluster),
                          "nodes", r->cluster->nodes, "load", r->load, "memory_limit", r->memory_limit, "considered",
                          (json_int_t)r->considered, "too_large", (json_int_t)r->dropped, "refused",
                          (json_int_t)r->refused, "planning_seconds", r->seconds, "reason", moe_str_c(&why), "divisions",
                          rows);
    moe_str_free(&why);
    free(order);
    return o;
}

/* ---- for people ---- */

static double number(const json_t *o, const char *key) {
    return json_number_value(json_object_get(o, key));
}

static const char *text_of(const json_t *o, const char *key) {
    const char *s = json_string_value(json_object_get(o, key));
    return s ? s : "";
}

static void print_row(const json_t *r, FILE *to) {
    char memory[32];
    fprintf(to, "| %.0f | %s | %s | %.3f | %.3f | %.3f | %.3f | %.2f | %s |\n", number(r, "pool"), text_of(r, "division"),
            text_of(r, "first_placement"), 1e3 * number(r, "seconds"), 1e3 * number(r, "compute"),
            1e3 * number(r, "rows_exposed"), 1e3 * number(r, "other_exposed"), number(r, "imbalance"),
            moe_format_bytes(number(r, "memory"), memory));
}

void moe_planner_print(const json_t *o, FILE *to) {
    char limit[32] = "";
    if (!o)
        return;
    double bytes = number(o, "memory_limit");
    fprintf(to, "\nplanned for %.0f ranks on %.0f node%s, load: %s%s%s\n%.0f divisions considered, %.0f too large%s; %zu compiled and "
                "simulated in %.1f s:\n\n",
            number(o, "ranks"), number(o, "nodes"), number(o, "nodes") == 1 ? "" : "s", text_of(o, "load"),
            bytes > 0 ? ", at most " : "", bytes > 0 ? moe_format_bytes(bytes, limit) : "", number(o, "considered"),
            number(o, "too_large"), number(o, "refused") > 0 ? ", some not possible" : "",
            json_array_size(json_object_get(o, "divisions")), number(o, "planning_seconds"));
    fprintf(to, "| pool | division | first placement | predicted ms | compute | rows exposed | other exposed | imbalance | memory a rank |\n"
                "|---:|---|---|---:|---:|---:|---:|---:|---:|\n");
    for (size_t i = 0; i < json_array_size(json_object_get(o, "divisions")); i++)
        print_row(json_array_get(json_object_get(o, "divisions"), i), to);
    fprintf(to, "\nchosen: pool 1: %s\na pool is what moving experts alone can reach (docs/CLUSTER.md)\n", text_of(o, "reason"));
}
