/* The pipeline: golden IR for every pass, what it prints and refuses, and that --eval-each notices
 * a wrong pass.
 *
 * A golden file tests/golden/passes/PASS/NAME.moe is a .moe file, so it parses as it stands:
 *   // moec opt --passes=a,b [--micro-batches=N --virtual-shards=N --batch=N --seq=N --emit-grads
 * --target=T --ranks=N --expert-parallel-degree=N ...]
 *   // what the case is about
 *   moe 1
 *   ...
 *   //| a line of the expected text       or   //! a line of the expected error
 * MOE_BLESS=1 in the environment rewrites the expectations. Every case also runs with --verify-each
 * and --eval-each. */
#include <check.h>
#include <glob.h>
#include <stdlib.h>
#include <string.h>
#include "base/io.h"
#include "cli/strategy.h"
#include "codegen/codegen.h"
#include "frontends/frontend.h"
#include "ir/text.h"
#include "passes/eval_each.h"
#include "passes/pass_order.h"
#include "passes/pipeline.h"

static glob_t golden;

static void ok(MoeStatus st) {
    ck_assert_msg(!st, "%s", moe_status_message(st));
}

/* ---- golden files ---- */

typedef struct {
    char passes[256], target[64];
    MoePassOptions options;
} Command;

static void parse_recompute(const char *name, MoeRecompute *out) {
    static const char *const names[] = {"none", "cheap", "layer", "auto"};
    for (size_t i = 0; i < 4; i++)
        if (strcmp(names[i], name) == 0) {
            *out = (MoeRecompute)i;
            return;
        }
    ck_abort_msg("unknown recompute \"%s\"", name);
}

/* A file of the source tree. */
static void load_cluster(const char *path, MoeCluster *out) {
    char *full = moe_path_join(MOE_SOURCE_DIR, path);
    ok(moe_cluster_load(full, out));
    free(full);
}

/* "// moec opt --passes=... ..." */
static Command parse_command(const char *text, const char *file) {
    Command c = {.options = {.micro_batches = 1, .virtual_shards = 4, .batch = 4, .seq = 1, .loading_horizon = 1}};
    MoeStrategy ranks = {0};
    char line[512];
    snprintf(line, sizeof line, "%.*s", (int)strcspn(text, "\n"), text);
    ck_assert_msg(strncmp(line, "// moec opt ", 12) == 0, "%s: the first line is the command",
                  file);
    for (char *save, *w = strtok_r(line + 12, " ", &save); w; w = strtok_r(NULL, " ", &save)) {
        char *eq = strchr(w, '='), *value = eq ? eq + 1 : "";
        size_t n = eq ? (size_t)(eq - w) : strlen(w);
        if (strncmp(w, "--passes", n) == 0)
            snprintf(c.passes, sizeof c.passes, "%s", value);
        else if (strncmp(w, "--target", n) == 0)
            snprintf(c.target, sizeof c.target, "%s", value);
        else if (strncmp(w, "--micro-batches", n) == 0)
            c.options.micro_batches = atoi(value);
        else if (strncmp(w, "--virtual-shards", n) == 0)
            c.options.virtual_shards = atoi(value);
        else if (strncmp(w, "--batch", n) == 0)
            c.options.batch = atoi(value);
        else if (strncmp(w, "--seq", n) == 0)
            c.options.seq = atoi(value);
        else if (strncmp(w, "--memory-limit", n) == 0)
            c.options.memory_limit = atoll(value);
        else if (strncmp(w, "--recompute", n) == 0)
            parse_recompute(value, &c.options.recompute);
        else if (strcmp(w, "--offload-activations") == 0)
            c.options.offload = true;
        else if (strncmp(w, "--activation-loading-horizon", n) == 0)
            c.options.loading_horizon = atoi(value);
        else if (strcmp(w, "--emit-grads") == 0)
            c.options.emit_grads = true;
        else if (strncmp(w, "--ranks", n) == 0)
            ranks.ranks = atoi(value);
        else if (strncmp(w, "--expert-parallel-degree", n) == 0)
            ranks.ep = atoi(value);
        else if (strncmp(w, "--hybrid-shard-degree", n) == 0)
            ranks.shard = atoi(value);
        else if (strncmp(w, "--extra-slots", n) == 0)
            ranks.extra_slots = atoi(value);
        else if (strncmp(w, "--tensor-parallel-degree", n) == 0)
            ranks.tp = atoi(value);
        else if (strncmp(w, "--dense-shard-degree", n) == 0)
            ranks.dense_shard = atoi(value);
        else if (strncmp(w, "--strategy", n) == 0) { /* beside the golden file */
            char path[4096];
            snprintf(path, sizeof path, "%.*s/%s", (int)(strrchr(file, '/') - file), file, value);
            ok(moe_strategy_load(path, &ranks));
        }
        else if (strncmp(w, "--cluster", n) == 0)
            load_cluster(value, &c.options.cluster);
        else if (strncmp(w, "--overlap", n) == 0)
            c.options.overlap = strcmp(value, "on") == 0;
        else if (strncmp(w, "--overlap-chunks", n) == 0)
            c.options.overlap_chunks = atoi(value);
        else
            ck_abort_msg("%s: unknown option %s", file, w);
    }
    ok(moe_strategy_resolve(&ranks, ranks.ep, &c.options.mesh));
    return c;
}

/* Each line of `text` behind `mark`. */
static void mark_lines(MoeStr *out, const char *mark, const char *text) {
    while (*text) {
        size_t n = strcspn(text, "\n");
        moe_str_append(out, mark);
        if (n)
            moe_str_putc(out, ' ');
        moe_str_append_n(out, text, n);
        moe_str_putc(out, '\n');
        text += n + (text[n] == '\n');
    }
}

/* What the case gives now, as marked lines. */
static void run_command(const Command *c, const char *source, MoeStr *out) {
    MoeDiag d = {.file = "input", .source = source};
    MoeModule *m = moe_parse(&d);
    ck_assert_msg(m, "%s", moe_str_c(&d.text));
    MoeTarget *target = NULL;
    if (c->target[0])
        ok(moe_target_create(c->target, &target));
    MoePassContext cx = {.module = m, .options = c->options, .target = target, .arena = m->arena};
    FILE *sink = fopen("/dev/null", "w");
    ck_assert_ptr_nonnull(sink);
    MoePipelineOptions o = {
        .passes = c->passes, .verify_each = true, .eval_each = true, .out = sink, .err = sink};
    MoeStatus st = moe_pipeline_run(&cx, &o);
    if (st) {
        mark_lines(out, "//!", moe_status_message(st));
        moe_status_free(st);
    } else {
        MoeStr text = {0};
        moe_print(m, &text);
        mark_lines(out, "//|", moe_str_c(&text));
        moe_str_free(&text);
    }
    fclose(sink);
    if (target)
        target->destroy(target);
    moe_module_destroy(m);
    moe_diag_free(&d);
}

static char *read_text(const char *path) {
    FILE *f = fopen(path, "r");
    ck_assert_msg(f, "cannot open %s", path);
    MoeStr s = {0};
    char buf[4096];
    for (size_t n; (n = fread(buf, 1, sizeof buf, f)) > 0;)
        moe_str_append_n(&s, buf, n);
    fclose(f);
    return s.data ? s.data : calloc(1, 1);
}

/* Where the marked lines begin: they are the end of the file. */
static size_t expectation_at(const char *text) {
    for (const char *line = text; *line; line += strcspn(line, "\n"), line += *line == '\n')
        if (strncmp(line, "//|", 3) == 0 || strncmp(line, "//!", 3) == 0)
            return (size_t)(line - text);
    return strlen(text);
}

START_TEST(test_golden) {
    const char *path = golden.gl_pathv[_i];
    char *text = read_text(path);
    size_t at = expectation_at(text);
    Command c = parse_command(text, path);
    MoeStr now = {0};
    run_command(&c, text, &now);
    if (getenv("MOE_BLESS")) {
        FILE *f = fopen(path, "w");
        ck_assert_msg(f, "cannot write %s", path);
        fwrite(text, 1, at, f);
        fputs(moe_str_c(&now), f);
        ck_assert_int_eq(fclose(f), 0);
    } else {
        ck_assert_msg(text[at], "%s: no expectation; MOE_BLESS=1 writes it", path);
        ck_assert_msg(strcmp(text + at, moe_str_c(&now)) == 0,
                      "%s: expected\n%sgot\n%s(MOE_BLESS=1 accepts this)", path, text + at,
                      moe_str_c(&now));
    }
    moe_str_free(&now);
    free(text);
}
END_TEST

START_TEST(test_golden_exist) {
    static const char *const passes[] = {"/grad/", "/decompose/", "/shard/"};
    for (size_t p = 0; p < 3; p++) {
        int n = 0;
        for (size_t i = 0; i < golden.gl_pathc; i++)
            n += strstr(golden.gl_pathv[i], passes[p]) != NULL;
        ck_assert_msg(n >= 3, "only %d golden files in tests/golden/passes%s", n, passes[p]);
    }
}
END_TEST

/* ---- the pipeline itself ---- */

static MoeModule *mixtral(bool bf16, int micro_batches) {
    MoeHfConfig config = {.model_type = "mixtral",
                          .vocab_size = 19,
                          .hidden_size = 8,
                          .intermediate_size = 6,
                          .layers = 2,
                          .heads = 4,
                          .kv_heads = 2,
                          .head_dim = 2,
                          .experts = 3,
                          .experts_per_token = 2,
                          .max_positions = 16,
                          .rope_theta = 100.0,
                          .rms_norm_eps = 1e-5,
                          .initializer_range = 0.02,
                          .router_aux_loss_coef = 0.5,
                          .output_router_logits = true};
    MoeFrontendOptions o = {.batch = 4,
                            .seq = 5,
                            .virtual_shards = 4,
                            .micro_batches = micro_batches,
                            .mixed_bf16 = bf16};
    MoeModule *m;
    ok(moe_hf_build(&config, &o, &m));
    return m;
}

/* Runs passes over the small Mixtral; what was printed and reported is in out and err (free them).
 */
typedef struct {
    char *out, *err;
    MoeStatus st;
    MoeModule *m;
} Result;

static Result run(MoePipelineOptions o, bool bf16, int micro_batches) {
    Result r = {.m = mixtral(bf16, micro_batches)};
    size_t n_out, n_err;
    MoePassContext cx = {.module = r.m, .arena = r.m->arena};
    cx.options = (MoePassOptions){.batch = 4,
                                  .seq = 5,
                                  .micro_batches = micro_batches,
                                  .virtual_shards = 4,
                                  .mixed_bf16 = bf16,
                                  .emit_grads = true};
    o.out = open_memstream(&r.out, &n_out);
    o.err = open_memstream(&r.err, &n_err);
    r.st = moe_pipeline_run(&cx, &o);
    fclose(o.out);
    fclose(o.err);
    return r;
}

static void result_free(Result *r) {
    moe_status_free(r->st);
    moe_module_destroy(r->m);
    free(r->out);
    free(r->err);
}

static void refused(MoePipelineOptions o, const char *part) {
    Result r = run(o, false, 1);
    ck_assert_msg(r.st, "expected an error with \"%s\"", part);
    ck_assert_int_eq(moe_status_code(r.st), MOE_E_MISUSE);
    ck_assert_msg(strstr(moe_status_message(r.st), part), "\"%s\" lacks \"%s\"",
                  moe_status_message(r.st), part);
    result_free(&r);
}

START_TEST(test_refused) {
    refused((MoePipelineOptions){.passes = "grad,decompos"}, "did you mean decompose?");
    refused((MoePipelineOptions){.passes = "xyzzy"}, "the passes are grad, decompose, place, shard, recompute");
    refused((MoePipelineOptions){.passes = "grad,"}, "missing at the end");
    refused((MoePipelineOptions){.passes = "grad,grad"}, "named twice");
    refused((MoePipelineOptions){.passes = "decompose,grad"}, "grad must run before decompose: ");
    refused((MoePipelineOptions){.passes = "grad", .stop_after = "grab"},
            "--stop-after: unknown pass \"grab\"; did you mean grad?");
    refused((MoePipelineOptions){.passes = "grad", .print_after = "gradd"}, "--print-after");
    refused((MoePipelineOptions){.passes = "grad,fuse"}, "pass fuse needs a target");
    refused((MoePipelineOptions){0}, "needs a target");
}
END_TEST

START_TEST(test_table_order) {
    size_t n;
    const MoePassInfo *table = moe_pass_table(&n);
    moe_pass_check_table();
    ck_assert_str_eq(table[0].name, "grad");
    ck_assert_str_eq(table[n - 1].name, "kernels");
}
END_TEST

START_TEST(test_print_and_stop) {
    Result r =
        run((MoePipelineOptions){.passes = "grad,decompose", .print_after = "all"}, false, 1);
    ok(r.st);
    ck_assert_int_eq(strncmp(r.out, "// after grad\nmoe 1\n", 20), 0);
    ck_assert_ptr_nonnull(strstr(r.out, "\n// after decompose\nmoe 1\n"));
    result_free(&r);

    r = run((MoePipelineOptions){.passes = "grad,decompose",
                                 .print_after = "decompose",
                                 .stop_after = "grad",
                                 .time_passes = true},
            false, 1);
    ok(r.st);
    ck_assert_str_eq(r.out, ""); /* it never came to decompose */
    ck_assert_int_eq(strncmp(r.err, "grad  ", 6), 0);
    ck_assert_ptr_null(strstr(r.err, "decompose"));
    ck_assert_ptr_nonnull(strstr(r.err, "all passes"));
    result_free(&r);

    r = run((MoePipelineOptions){.passes = "", .print_after = "all"}, false, 1);
    ok(r.st);
    ck_assert_str_eq(r.out, "");
    result_free(&r);
}
END_TEST

/* A pass that finds nothing to do says so; "all" does not repeat the text. */
START_TEST(test_unchanged) {
    const char *source =
        "moe 1\ngraph @eval {\n  %w = param {name = \"w\", init = \"ones\", decay = "
        "0} : f32[1]\n  output %w {name = \"w\"}\n}\n";
    for (int all = 0; all < 2; all++) {
        MoeDiag d = {.file = "input", .source = source};
        MoeModule *m = moe_parse(&d);
        ck_assert_msg(m, "%s", moe_str_c(&d.text));
        MoePassContext cx = {.module = m, .arena = m->arena};
        char *out;
        size_t n;
        FILE *f = open_memstream(&out, &n);
        ok(moe_pipeline_run(
            &cx, &(MoePipelineOptions){
                     .passes = "grad", .out = f, .err = f, .print_after = all ? "all" : "grad"}));
        fclose(f);
        ck_assert_int_eq(strncmp(out, "// after grad (unchanged)\n", 26), 0);
        ck_assert_str_eq(out + 26, all ? "" : source);
        free(out);
        moe_module_destroy(m);
    }
}
END_TEST

/* grad and decompose preserve every output of a whole model, in f32 and bf16, with and without
 * micro-batches. */
START_TEST(test_mixtral_preserved) {
    bool bf16 = _i & 1;
    int micro_batches = _i & 2 ? 2 : 1;
    Result r = run(
        (MoePipelineOptions){.passes = "grad,decompose", .verify_each = true, .eval_each = true},
        bf16, micro_batches);
    ok(r.st);
    ck_assert_msg(strstr(r.err, "eval-each: grad: "), "%s", r.err);
    /* decompose: the outputs, 23 gradients, and three assigned values for each of 23 parameters. */
    int n = 0;
    const char *line = strstr(r.err, "eval-each: decompose: ");
    ck_assert_msg(line && sscanf(line, "eval-each: decompose: %d values agree", &n) == 1, "%s",
                  r.err);
    ck_assert_msg(n >= 23 * 4 + 6, "only %d values were compared", n);
    result_free(&r);
}
END_TEST

static MoeSnapshot *snapshot(const MoeModule *m) {
    MoeSnapshot *s;
    int n_skipped;
    ok(moe_snapshot_take(m, 1, &s, &n_skipped));
    ck_assert_int_eq(n_skipped, 0);
    return s;
}

static void differs(const MoeSnapshot *a, const MoeSnapshot *b, const char *part) {
    double largest;
    int n;
    MoeStatus st = moe_snapshot_compare(a, b, "test", &largest, &n);
    ck_assert_msg(st, "the change was not noticed");
    ck_assert_msg(strstr(moe_status_message(st), part), "\"%s\" lacks \"%s\"",
                  moe_status_message(st), part);
    moe_status_free(st);
}

/* What a wrong pass would do: a slightly different constant, a lost output, a wrong integer. */
START_TEST(test_eval_each_notices) {
    const char *format = "moe 1\ngraph @eval {\n  %%tok = input {name = \"tok\"} : segs<1,4>\n"
                         "  %%x = input {name = \"x\"} : f32[r<=8 @%%tok, 2]\n"
                         "  %%c = const {value = %s} : f32[1]\n"
                         "  %%y = mul %%x, %%c : f32[r<=8 @%%tok, 2]\n"
                         "  %%n = row_count %%tok : i32[1]\n%s"
                         "  output %%y {name = \"%s\"}\n  output %%%s {name = \"n\"}\n}\n";
    static const char *const variants[][4] = {
        {"2.0", "", "y", "n"},
        {"2.0000001", "", "y", "n"},
        {"2.0", "", "z", "n"},
        {"2.0", "  %nn = add %n, %n : i32[1]\n", "y", "nn"},
        {"2.0000000000001", "", "y", "n"},
    };
    MoeSnapshot *s[5];
    for (int i = 0; i < 5; i++) {
        char source[1024];
        snprintf(source, sizeof source, format, variants[i][0], variants[i][1], variants[i][2],
                 variants[i][3]);
        MoeDiag d = {.file = "input", .source = source};
        MoeModule *m = moe_parse(&d);
        ck_assert_msg(m, "%s", moe_str_c(&d.text));
        s[i] = snapshot(m);
        moe_module_destroy(m);
    }
    differs(s[0], s[1], "pass test changed output y of graph @eval: element ");
    differs(s[0], s[2], "pass test lost output y of graph @eval");
    differs(s[0], s[3], "pass test changed output n");
    double largest;
    int n;
    ok(moe_snapshot_compare(s[0], s[4], "test", &largest, &n));
    ck_assert_int_eq(n, 2);
    ck_assert(largest > 0 && largest < 1e-12);
    for (int i = 0; i < 5; i++)
        moe_snapshot_free(s[i]);
}
END_TEST

int main(void) {
    glob(MOE_SOURCE_DIR "/tests/golden/passes/*/*.moe", 0, NULL, &golden);
    Suite *s = suite_create("pipeline");
    TCase *files = tcase_create("golden"), *t = tcase_create("pipeline");
    tcase_set_timeout(files, 60);
    tcase_set_timeout(t, 120);
    tcase_add_loop_test(files, test_golden, 0, (int)golden.gl_pathc);
    tcase_add_test(files, test_golden_exist);
    tcase_add_test(t, test_refused);
    tcase_add_test(t, test_table_order);
    tcase_add_test(t, test_print_and_stop);
    tcase_add_test(t, test_unchanged);
    tcase_add_loop_test(t, test_mixtral_preserved, 0, 4);
    tcase_add_test(t, test_eval_each_notices);
    suite_add_tcase(s, files);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    globfree(&golden);
    return failed ? 1 : 0;
}
