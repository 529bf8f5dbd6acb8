/* Op by op: every case of the op table (tests/support/op_cases.h) on every kind of target that runs
 * here, against the f64 interpreter, with guard bytes around every buffer
 * (tests/support/group_run.h).
 *
 *   MOE_CASE=matmul/f32/T=17 MOE_TARGET=cpu:x86-64-v3 build/tests/ops      the cases whose id
 * starts so, on one target
 *
 * On GPUs (the simulator, or with MOE_TEST_GPU=real the machine's) a part of the cases is run; MOE_ALL_CASES=1: all.
 * MOE_PART=2/16: every sixteenth case of these from the third on, so that several programs share the work.
 *
 * An op without a case fails. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "tests/support/check_main.h"
#include "tests/support/gpu.h"
#include "tests/support/group_run.h"
#include "tests/support/op_cases.h"

#define SHOWN 12 /* failures shown in full for each target */
static const uint64_t seeds[] = {20240607u, 1u}; /* of the inputs; the kernels are compiled once */

static const char *const targets[] = {"cpu:native", "cpu:x86-64-v3", "cpu:x86-64", "cuda:sm_80",
                                      "cuda:sm_90a"};

/* The result of output r of the case as the kernels left it; false (and why) if it is wrong. */
static bool check_output(const MoeOpCase *c, const MoeCaseRun *run, const MoeGroupRun *gr, int r,
                         MoeStr *why) {
    char name[16];
    snprintf(name, sizeof name, "y%d", r);
    const MoeValue *v = moe_graph_find_output(run->graph, name);
    const MoeTensor *want = moe_case_want(run, r);
    if (!want)
        return true;
    const void *data = moe_group_run_data(gr, v);
    if (!data) {
        moe_str_printf(why, "%s has no memory", name);
        return false;
    }
    MoeTensor got = *want;
    size_t n = (size_t)(want->n ? want->n : 1);
    got.f = calloc(n, sizeof *got.f);
    got.i = calloc(n, sizeof *got.i);
    if (want->f) {
        free(got.i);
        got.i = NULL;
    } else {
        free(got.f);
        got.f = NULL;
    }
    moe_tensor_unpack(data, &got);
    bool ok = moe_case_check(c, r, want, &got, why);
    free(got.f);
    free(got.i);
    return ok;
}

static bool run_case(const MoeOpCase *c, const char *target, uint64_t seed, MoeStr *why) {
    MoeCaseRun run;
    MoeGroupRun *gr = NULL;
    bool ok = true;
    MoeStatus st = moe_case_run_open(c, seed, &run);
    if (st) {
        moe_str_printf(why, "interpreter: %s", moe_status_message(st));
        moe_status_free(st);
        return false;
    }
    MoeGroupRunOptions options = {.target = target};
    st = moe_group_run_create(run.graph, &options, &gr);
    if (!st)
        st = moe_group_run(gr, &run.inputs);
    if (st) {
        moe_str_printf(why, "%s", moe_status_message(st));
        moe_status_free(st);
        ok = false;
    }
    for (int r = 0; ok && r < moe_op_info(c->op)->n_out; r++)
        ok = check_output(c, &run, gr, r, why);
    moe_group_run_destroy(gr);
    moe_case_run_close(&run);
    return ok;
}

/* Not declarations, not what decompose takes apart before any target sees it, not what the runtime
 * does. */
static bool target_runs(MoeOpcode op) {
    MoeKind k = moe_op_info(op)->kind;
    return k != MOE_KIND_DECL && k != MOE_KIND_SYNC && k != MOE_KIND_COMM &&
           k != MOE_KIND_STORE && k != MOE_KIND_COMPOSITE;
}

/* Products, attention and the loss head take the interpreter long: one seed. */
static size_t n_seeds(MoeOpcode op) {
    MoeKind k = moe_op_info(op)->kind;
    bool quick = k == MOE_KIND_EW || k == MOE_KIND_ROW || k == MOE_KIND_REDUCE ||
                 k == MOE_KIND_ROUTE || k == MOE_KIND_MOVE || k == MOE_KIND_EMBED ||
                 k == MOE_KIND_EMBED_GRAD || k == MOE_KIND_ROPE;
    return quick ? sizeof seeds / sizeof seeds[0] : 1;
}

static bool same_kind(const MoeOpCase *a, const MoeOpCase *b) {
    return a->dtype == b->dtype && a->form == b->form && a->tb == b->tb &&
           a->grouped == b->grouped && a->inverse == b->inverse;
}

/* Whether case i is run on a GPU, which is mostly a simulated one that compiles for long: with MOE_ALL_CASES or MOE_CASE, all.
 * Else of each op MOST cases, evenly over its list, and the first case of each dtype, form and variant; of elementwise ops, which
 * have one kernel for all, one op's. From sm_90a on: products alone, which are others there. */
static bool on_gpu(const char *target, const MoeOpCase *cases, size_t n, size_t i) {
    enum { MOST = 1 };
    MoeKind kind = moe_op_info(cases[i].op)->kind;
    size_t first = i, end = i;
    if (moe_test_does_all(target) || getenv("MOE_CASE"))
        return true;
    bool product = kind == MOE_KIND_GEMM || kind == MOE_KIND_WGRAD || kind == MOE_KIND_XENT;
    if (strcmp(target, "cuda:sm_80") != 0 && !(product && cases[i].dtype == MOE_BF16))
        return false;
    while (first > 0 && cases[first - 1].op == cases[i].op)
        first--;
    while (end < n && cases[end].op == cases[i].op)
        end++;
    bool new_kind = true;
    for (size_t k = 0; k < i && new_kind; k++)
        new_kind = (k < first && (kind != MOE_KIND_EW || moe_op_info(cases[k].op)->kind != kind)) ||
                   !same_kind(&cases[k], &cases[i]);
    size_t step = (end - first + MOST - 1) / MOST;
    return new_kind || (i - first) % step == (size_t)cases[i].op % step;
}

/* Whether the n-th case to be run is in this program's part. */
static bool in_part(size_t n) {
    const char *part = getenv("MOE_PART"), *of = part ? strchr(part, '/') : NULL;
    return !of || n % strtoul(of + 1, NULL, 10) == strtoul(part, NULL, 10);
}

START_TEST(every_case) {
    const char *target = targets[_i], *only = getenv("MOE_CASE"),
               *only_target = getenv("MOE_TARGET");
    if ((only_target && strcmp(only_target, target) != 0) || !moe_test_runs(target))
        return;
    size_t n, n_seen = 0, n_run = 0, n_failed = 0;
    bool gpu = strncmp(target, "cuda:", 5) == 0;
    MoeOpCase *cases = moe_op_cases_all(only ? only : "", &n);
    for (size_t i = 0; i < n; i++) {
        if (!target_runs(cases[i].op) || (gpu && !on_gpu(target, cases, n, i)))
            continue;
        if (!in_part(n_seen++))
            continue;
        bool good = true;
        n_run++;
        for (size_t k = 0; k < (gpu ? 1 : n_seeds(cases[i].op)) && good; k++) {
            MoeStr why = {0};
            good = run_case(&cases[i], target, seeds[k], &why);
            if (!good && n_failed++ < SHOWN)
                fprintf(stderr, "MOE_CASE='%s' MOE_TARGET=%s (seed %llu): %s\n", cases[i].id, target,
                        (unsigned long long)seeds[k], moe_str_c(&why));
            moe_str_free(&why);
        }
    }
    free(cases);
    ck_assert_msg(n_run > 0, "no case matches '%s'", only ? only : "");
    if (getenv("MOE_CASE") || getenv("MOE_ALL_CASES") || getenv("MOE_PART"))
        fprintf(stderr, "%s: %zu cases\n", moe_test_target(target), n_run);
    ck_assert_msg(n_failed == 0, "%s: %zu of %zu cases failed", target, n_failed, n_run);
}
END_TEST

START_TEST(every_op_has_cases) {
    for (int op = 0; op < MOE_N_OPS; op++) {
        MoeKind k = moe_op_info((MoeOpcode)op)->kind;
        if (k != MOE_KIND_DECL && k != MOE_KIND_COMM) /* those need several ranks */
            ck_assert_msg(moe_op_cases((MoeOpcode)op, NULL, 0) > 0, "op %s has no case",
                          moe_op_info((MoeOpcode)op)->name);
    }
}
END_TEST

int main(void) {
    moe_test_compile_plainly();
    Suite *s = suite_create("ops");
    TCase *tc = tcase_create("ops");
    tcase_set_timeout(tc, 1200);
    tcase_add_test(tc, every_op_has_cases);
    tcase_add_loop_test(tc, every_case, 0, (int)(sizeof targets / sizeof targets[0]));
    suite_add_tcase(s, tc);
    return moe_check_main(s);
}
