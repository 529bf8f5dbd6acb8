/* The pipeline: runs the chosen passes of passes.def in order over a module, and looks at the
 * result after each as asked (print, verify, evaluate, time). In: a module. Out: the same module,
 * further down the way. */
#include "passes/pipeline.h"

#include <string.h>
#include <time.h>
#include "base/assert.h"
#include "ir/text.h"
#include "ir/verify.h"
#include "passes/eval_each.h"
#include "passes/pass_order.h"
#include "passes/shard.h"

enum { EVAL_SEED = 20240229 };

/* What is remembered between passes. */
typedef struct {
    MoePassContext *cx;
    const MoePipelineOptions *o;
    MoeStr text; /* the module as printed last, when someone needs to know whether it changed */
    MoeSnapshot *values; /* what it computes, with eval_each */
    double seconds;      /* in passes so far */
} Run;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static size_t count_ops(const MoeModule *m) {
    size_t n = 0;
    for (size_t i = 0; i < m->n_graphs; i++)
        n += m->graphs[i]->n_ops;
    return n;
}

/* Passes that ask the target at every turn; grad, decompose and recompute do without one. */
static bool needs_target(const char *pass) {
    return strcmp(pass, "fuse") == 0 || strcmp(pass, "overlap") == 0 || strcmp(pass, "offload") == 0 ||
           strcmp(pass, "memplan") == 0 || strcmp(pass, "kernels") == 0;
}

static MoeStatus check_options(const Run *r, const MoePassInfo *const *rows, size_t n) {
    const MoePassInfo *row;
    if (r->o->stop_after)
        MOE_TRY(moe_pass_find(r->o->stop_after, "--stop-after", &row));
    if (r->o->print_after && strcmp(r->o->print_after, "all") != 0)
        MOE_TRY(moe_pass_find(r->o->print_after, "--print-after", &row));
    for (size_t i = 0; i < n; i++) {
        if (needs_target(rows[i]->name) && !r->cx->target)
            return moe_error(MOE_E_MISUSE,
                             "pass %s needs a target: name one with --target, e.g. --target=cpu",
                             rows[i]->name);
        if (r->o->stop_after && strcmp(rows[i]->name, r->o->stop_after) == 0)
            break;
    }
    return NULL;
}

static void print_after(const Run *r, const char *pass, bool changed) {
    const char *which = r->o->print_after;
    bool all = which && strcmp(which, "all") == 0;
    if (!which || (!all && strcmp(which, pass) != 0))
        return;
    fprintf(r->o->out, "// after %s%s\n", pass, changed ? "" : " (unchanged)");
    if (changed || !all) /* with "all" the text stands above already */
        fputs(moe_str_c(&r->text), r->o->out);
}

/* Evaluates again if the text changed, and compares. */
static MoeStatus eval_again(Run *r, const char *pass) {
    MoeSnapshot *after;
    int n_skipped, n_values;
    double largest;
    MoeMesh mesh = moe_pass_mesh(&r->cx->options);
    MoeStatus taken =
        r->cx->sharded
            ? moe_snapshot_take_ranks(r->cx->module, &mesh, r->values, &after, &n_skipped)
            : moe_snapshot_take(r->cx->module, EVAL_SEED, &after, &n_skipped);
    MOE_TRY(moe_status_prefix(taken, "after pass %s", pass));
    MoeStatus st = moe_snapshot_compare(r->values, after, pass, &largest, &n_values);
    moe_snapshot_free(r->values);
    r->values = after;
    if (st)
        return st;
    fprintf(r->o->err, "eval-each: %s: %d values agree, largest difference %.1e", pass, n_values,
            largest);
    if (n_skipped)
        fprintf(r->o->err, " (%d graphs are too large to evaluate)", n_skipped);
    fputc('\n', r->o->err);
    return NULL;
}

/* The IR's invariants, and, once graphs are programs of a rank, what every value is there. */
static MoeStatus verify(const MoePassContext *cx, const char *pass) {
    MOE_TRY(moe_verify_after(cx->module, pass));
    MoeMesh mesh = moe_pass_mesh(&cx->options);
    return cx->sharded ? moe_shard_verify(cx->module, &mesh, pass) : NULL;
}

static MoeStatus run_pass(Run *r, const MoePassInfo *pass) {
    const MoePipelineOptions *o = r->o;
    MoeModule *m = r->cx->module;
    size_t n_before = count_ops(m);
    double start = now();
    MOE_TRY(pass->run(r->cx));
    double seconds = now() - start;
    r->seconds += seconds;
    if (o->time_passes)
        fprintf(o->err, "%-12s %10.2f ms %8zu ops -> %zu\n", pass->name, 1e3 * seconds, n_before,
                count_ops(m));
    if (o->verify_each)
        MOE_TRY(verify(r->cx, pass->name));
    if (!o->print_after && !o->eval_each)
        return NULL;
    MoeStr text = {0};
    moe_print(m, &text);
    bool changed = strcmp(moe_str_c(&text), moe_str_c(&r->text)) != 0;
    moe_str_free(&r->text);
    r->text = text;
    print_after(r, pass->name, changed);
    return o->eval_each && changed ? eval_again(r, pass->name) : NULL;
}

MoeStatus moe_pipeline_run(MoePassContext *cx, const MoePipelineOptions *o) {
    MOE_ASSERT(o->out || !o->print_after, "pipeline: nowhere to print to");
    MOE_ASSERT(o->err || !(o->time_passes || o->eval_each), "pipeline: nowhere to report to");
    moe_pass_check_table();
    Run r = {.cx = cx, .o = o};
    const MoePassInfo **rows;
    size_t n;
    int n_skipped;
    MoeStatus st;
    MOE_TRY(moe_pass_select(o->passes, cx->arena, &rows, &n));
    MOE_TRY(check_options(&r, rows, n));
    if (o->print_after || o->eval_each)
        moe_print(cx->module, &r.text);
    if (o->eval_each)
        MOE_TRY_GOTO(st, moe_snapshot_take(cx->module, EVAL_SEED, &r.values, &n_skipped), done);
    st = NULL;
    for (size_t i = 0; i < n; i++) {
        MOE_TRY_GOTO(st, run_pass(&r, rows[i]), done);
        if (o->stop_after && strcmp(rows[i]->name, o->stop_after) == 0)
            break;
    }
    if (o->time_passes)
        fprintf(o->err, "%-12s %10.2f ms\n", "all passes", 1e3 * r.seconds);
done:
    moe_snapshot_free(r.values);
    moe_str_free(&r.text);
    return st;
}
