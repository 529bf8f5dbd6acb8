/* runtime/plan.h: reading, refusing damaged plans (every entry), linking object code. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include <llvm-c/Core.h>
#include <llvm-c/IRReader.h>
#include <llvm-c/Target.h>
#include <llvm-c/TargetMachine.h>

#include "base/io.h"
#include "runtime/exec.h"
#include "tests/support/fake_plan.h"
#include "tests/support/files.h"
#include "tests/support/status_checks.h"

static json_t *fake_json(int micro_batches) {
    MoeStr text = {0};
    json_t *j = NULL;
    fake_plan_json(
        &(FakePlanOptions){
            .batch = 8, .seq = 4, .virtual_shards = 4, .micro_batches = micro_batches},
        &text);
    OK(moe_json_load_text(moe_str_c(&text), text.len, "fake", &j));
    moe_str_free(&text);
    return j;
}

static MoeStatus load_json(const json_t *j, MoePlan **out) {
    char *text = json_dumps(j, 0);
    MoeStatus st = moe_plan_load_memory(text, strlen(text), "p.json", NULL, 0, out);
    free(text);
    return st;
}

START_TEST(test_reads) {
    json_t *j = fake_json(2);
    MoePlan *p;
    OK(load_json(j, &p));
    ck_assert_int_eq(p->batch, 8);
    ck_assert_int_eq(p->seq, 4);
    ck_assert_int_eq(p->n_params, 2);
    ck_assert_str_eq(p->params[1].name, "model.experts.*.u.weight");
    ck_assert(p->params[1].stacked && p->params[1].decay && p->params[1].n_states == 2);
    ck_assert_int_eq(p->buffers[3].elements, 24);
    ck_assert_int_eq(p->n_programs, 3);
    const MoePlanProgram *g = moe_plan_program(p, "train");
    ck_assert_int_eq(g->n_steps, 6);
    ck_assert(g->steps[0].count && g->steps[3].phase == MOE_PHASE_BWD &&
              g->steps[5].phase == MOE_PHASE_UPD);
    ck_assert_int_eq(g->n_accumulates, 2);
    ck_assert_int_eq(g->accumulates[1].n_slots, 1);
    ck_assert_int_eq(g->n_batch_sums, 1);
    ck_assert_ptr_null(moe_plan_program(p, "nothing"));
    moe_plan_free(p);
    moe_plan_free(NULL);
    json_decref(j);
}
END_TEST

/* "a.b[3].c" -> the holder of the last part; the last part in *out_key or *out_index. */
static json_t *holder(json_t *j, const char *path, char *out_key, int *out_index) {
    *out_index = -1;
    char copy[200];
    snprintf(copy, sizeof copy, "%s", path);
    json_t *parent = j;
    for (char *part = strtok(copy, "."); part; part = strtok(NULL, ".")) {
        if (*out_index >= 0)
            parent = json_array_get(parent, (size_t)*out_index);
        else if (parent != j || out_key[0])
            parent = out_key[0] ? json_object_get(parent, out_key) : parent;
        *out_index = part[0] >= '0' && part[0] <= '9' ? atoi(part) : -1;
        snprintf(out_key, 64, "%s", *out_index < 0 ? part : "");
    }
    return parent;
}

static void set_at(json_t *j, const char *path, const char *value) {
    char key[64] = "";
    int index;
    json_t *at = holder(j, path, key, &index), *v = json_loads(value, JSON_DECODE_ANY, NULL);
    ck_assert_msg(v && at, "%s", path);
    ck_assert(index >= 0 ? !json_array_set_new(at, (size_t)index, v)
                         : !json_object_set_new(at, key, v));
}

/* Each damage, and what the error must name. */
START_TEST(test_damage) {
    static const struct {
        const char *path, *value, *named;
    } cases[] = {
        {"target", "3", "target"},
        {"batch", "0", "batch"},
        {"batch", "\"8\"", "batch"},
        {"seq", "1099511627776", "2^31"},
        {"virtual_shards", "3", "powers of two"},
        {"micro_batches", "8", "powers of two"},
        {"moe_layers", "[\"x\"]", "moe_layers"},
        {"experts", "0", "experts"},
        {"buffers.2.bytes", "31", "buffers[2].bytes"},
        {"buffers.3.dims", "[4, -2, 3]", "buffers[3].dims"},
        {"buffers.3.dims", "[1,1,1,1,1,1,1,1,1]", "rank 9"},
        {"buffers.1.dtype", "\"f16\"", "buffers[1].dtype"},
        {"params.0.buffer", "6", "params[0].buffer"},
        {"params.0.buffer", "-1", "params[0].buffer"},
        {"params.0.buffer", "1", "params[0].states[0].buffer"},
        {"params.1.dims", "[4, 3, 2]", "params[1].dims"},
        {"params.1.name", "\"no.star\"", "params[1].name"},
        {"params.1.states.1.buffer", "4", "params[1].states[1].buffer"},
        {"params.0.init", "\"uniform\"", "params[0].init"},
        {"params.0.std", "-1", "params[0].std"},
        {"programs.train.slab_bytes", "64", "slab"},
        {"programs.train.slab_bytes", "-1", "slab_bytes"},
        {"programs.train.values.0.buffer", "60", "programs.train.values[0].buffer"},
        {"programs.train.values.18.slab", "3", "programs.train.values[18].slab"},
        {"programs.train.values.18.slab", "1000000000", "programs.train.values[18].slab"},
        {"programs.train.values.18.bytes", "1000000000", "programs.train.values[18].bytes"},
        {"programs.train.inputs.0.value", "99", "programs.train.inputs[0].value"},
        {"programs.train.inputs.0.value", "0", "programs.train.inputs[0].value"},
        {"programs.train.inputs.1.dims", "[4096]", "programs.train.inputs[1].value"},
        {"programs.train.outputs.1.name", "\"loss\"", "programs.train.outputs[1].name"},
        {"programs.train.steps.2.bufs.1", "[99, 0]", "programs.train.steps[2].bufs[1]"},
        {"programs.train.steps.2.bufs.1", "[1, 4096]", "programs.train.steps[2].bufs[1]"},
        {"programs.train.steps.2.bufs.1", "[1, -4]", "programs.train.steps[2].bufs[1]"},
        {"programs.train.steps.2.bufs.1", "7", "programs.train.steps[2].bufs[1]"},
        {"programs.train.steps.2.kernel", "\"a b\"", "programs.train.steps[2].kernel"},
        {"programs.train.steps.0.phase", "\"update\"", "programs.train.steps[1].phase"},
        {"programs.train.steps.0.phase", "\"later\"", "programs.train.steps[0].phase"},
        {"programs.train.accumulates.1.elements", "9", "programs.train.accumulates[1].elements"},
        {"programs.train.accumulates.1.slots", "[]", "programs.train.accumulates[1].slots"},
        {"programs.train.batch_sums.0.value", "-2", "programs.train.batch_sums[0].value"},
        {"programs", "[]", "programs"},
        {"model", "1", "model"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *j = fake_json(2);
        MoePlan *p = NULL;
        set_at(j, cases[i].path, cases[i].value);
        const char *wrong = moe_test_error(load_json(j, &p), MOE_E_CORRUPT, "p.json",
                                           "damaged plan", cases[i].named, NULL);
        ck_assert_msg(!wrong, "%s = %s: %s", cases[i].path, cases[i].value, wrong);
        json_decref(j);
    }
    json_t *j = fake_json(2);
    MoePlan *p = NULL;
    set_at(j, "format_version", "2");
    FAILS(load_json(j, &p), MOE_E_INPUT, "another moec", "compile it again");
    json_decref(j);
    /* Folds in a plan of one micro-batch. */
    j = fake_json(2);
    set_at(j, "micro_batches", "1");
    FAILS(load_json(j, &p), MOE_E_CORRUPT, "accumulates", "empty with one micro-batch");
    json_decref(j);
    /* Ports that the runtime needs. */
    static const char *const renamed[][2] = {{"programs.train.outputs.0.name", "loss"},
                                             {"programs.train.inputs.0.name", "tok"},
                                             {"programs.train.outputs.5.name", "segs.0"},
                                             {"programs.eval.outputs.0.name", "nll_sum"},
                                             {"programs.logits.outputs.0.name", "logits"}};
    for (size_t i = 0; i < 5; i++) {
        MoeExec *x;
        j = fake_json(1);
        set_at(j, renamed[i][0], "\"other\"");
        OK(load_json(j, &p));
        FAILS(moe_exec_create(p, 1, &x), MOE_E_CORRUPT, "damaged plan", renamed[i][1]);
        moe_plan_free(p);
        json_decref(j);
    }
}
END_TEST

/* Every value of the file in turn made something else: an error or a plan, never a crash
 * (sanitizers watch). */
static int n_changed, n_refused;

static void try_load(json_t *root) {
    MoePlan *p = NULL;
    MoeExec *x = NULL;
    MoeStatus st = load_json(root, &p);
    n_changed++;
    n_refused += st != NULL;
    moe_status_free(st);
    if (p && p->batch * p->seq < 1000 && moe_plan_program(p, "train") &&
        moe_plan_program(p, "train")->slab_bytes < 1 << 20) {
        moe_status_free(moe_exec_create(p, 1, &x));
        moe_exec_destroy(x);
    }
    moe_plan_free(p);
}

static void change_all(json_t *root, json_t *at) {
    static const char *const values[] = {"-1",    "null", "7",  "1152921504606846976",
                                         "\"x\"", "[]",   "{}", "1e300"};
    const char *key;
    json_t *v;
    size_t i;
    for (size_t k = 0; k < sizeof values / sizeof *values; k++) {
        json_t *bad = json_loads(values[k], JSON_DECODE_ANY, NULL);
        void *next;
        json_object_foreach_safe(at, next, key, v) {
            json_incref(v);
            json_object_set(at, key, bad);
            try_load(root);
            json_object_set_new(at, key, v);
        }
        for (i = 0; json_is_array(at) && i < json_array_size(at); i++) {
            v = json_incref(json_array_get(at, i));
            json_array_set(at, i, bad);
            try_load(root);
            json_array_set_new(at, i, v);
        }
        json_decref(bad);
    }
    json_object_foreach(at, key, v) change_all(root, v);
    json_array_foreach(at, i, v) change_all(root, v);
}

START_TEST(test_every_value) {
    json_t *j = fake_json(2);
    json_object_del(json_object_get(j, "programs"), "logits"); /* large */
    change_all(j, json_object_get(j, "programs"));
    change_all(j, json_object_get(j, "params"));
    change_all(j, json_object_get(j, "buffers"));
    ck_assert_int_gt(n_changed, 1000);
    ck_assert_int_gt(n_refused, n_changed / 2);
    json_decref(j);
}
END_TEST

/* ---- linking ---- */

/* A kernel that needs memcpy and libm from the process: out[i] = expf(in[i]) for task i. */
static const char kernel_ir[] = "declare float @expf(float)\n"
                                "declare ptr @memcpy(ptr, ptr, i64)\n"
                                "define i64 @k_exp_tasks(ptr %bufs) {\n  ret i64 3\n}\n"
                                "define void @k_exp(ptr %bufs, i64 %task, ptr %scratch) {\n"
                                "  %in = load ptr, ptr %bufs\n"
                                "  %q = getelementptr ptr, ptr %bufs, i64 1\n"
                                "  %out = load ptr, ptr %q\n"
                                "  %p = getelementptr float, ptr %in, i64 %task\n"
                                "  %c = call ptr @memcpy(ptr %scratch, ptr %p, i64 4)\n"
                                "  %v = load float, ptr %scratch\n"
                                "  %e = call float @expf(float %v)\n"
                                "  %r = getelementptr float, ptr %out, i64 %task\n"
                                "  store float %e, ptr %r\n  ret void\n}\n";

static LLVMMemoryBufferRef compile(const char *ir) {
    char *error = NULL, *triple = LLVMGetDefaultTargetTriple();
    LLVMModuleRef m;
    LLVMTargetRef target;
    LLVMMemoryBufferRef object;
    LLVMContextRef cx = LLVMContextCreate();
    LLVMInitializeNativeTarget();
    LLVMInitializeNativeAsmPrinter();
    ck_assert(!LLVMParseIRInContext(
        cx, LLVMCreateMemoryBufferWithMemoryRangeCopy(ir, strlen(ir), "ir"), &m, &error));
    ck_assert(!LLVMGetTargetFromTriple(triple, &target, &error));
    LLVMTargetMachineRef tm = LLVMCreateTargetMachine(
        target, triple, "generic", "", LLVMCodeGenLevelDefault, LLVMRelocPIC, LLVMCodeModelDefault);
    ck_assert(!LLVMTargetMachineEmitToMemoryBuffer(tm, m, LLVMObjectFile, &error, &object));
    LLVMDisposeTargetMachine(tm);
    LLVMDisposeModule(m);
    LLVMContextDispose(cx);
    LLVMDisposeMessage(triple);
    return object;
}

/* A plan of one program with one step of `kernel`. */
static void link_plan_json(MoeStr *s, const char *kernel, const char *hash) {
    moe_str_printf(s,
                   "{\"format_version\": 1, \"abi\": 1, \"target\": \"cpu:generic\", \"model\": "
                   "{}, \"tokenizer\": \"byte\", \"vocab_size\": 256,"
                   "\"batch\": 1, \"seq\": 1, \"virtual_shards\": 1, \"micro_batches\": 1, "
                   "\"dtype\": \"f32\", \"moe_layers\": [],"
                   "\"experts\": 0, \"experts_per_token\": 0, \"kernels_xxh3\": \"%s\", "
                   "\"params\": [], \"buffers\": [],"
                   "\"programs\": {\"p\": {\"slab_bytes\": 128, \"slab_lower_bound\": 128, "
                   "\"scratch_bytes\": 64,"
                   "\"values\": [{\"slab\": 0, \"bytes\": 12}, {\"slab\": 64, \"bytes\": 12}], "
                   "\"inputs\": [], \"outputs\": [],"
                   "\"steps\": [{\"name\": \"s\", \"kernel\": \"%s\", \"phase\": \"forward\", "
                   "\"count\": false, \"kind\": \"k\","
                   "\"layer\": -1, \"bufs\": [[0, 0], [1, 0]]}]}}}",
                   hash, kernel);
}

static void write_plan(const char *dir, const char *kernel, const char *hash, const void *object,
                       size_t n) {
    MoeStr s = {0};
    char *json = moe_path_join(dir, "plan.json"), *obj = moe_path_join(dir, "kernels.o");
    OK(moe_dir_make(dir));
    link_plan_json(&s, kernel, hash);
    OK(moe_file_write_atomic(json, s.data, s.len));
    OK(moe_file_write_atomic(obj, object, n));
    moe_str_free(&s);
    free(json);
    free(obj);
}

START_TEST(test_links) {
    LLVMMemoryBufferRef object = compile(kernel_ir);
    const void *data = LLVMGetBufferStart(object);
    size_t n = LLVMGetBufferSize(object);
    char hash[33], *dir = strdup(moe_test_path("a.plan"));
    moe_hash_hex(data, n, hash);
    MoePlan *p = NULL;
    write_plan(dir, "k_exp", hash, data, n);
    OK(moe_plan_load(dir, &p));
    ck_assert_str_eq(p->dir, dir);
    const MoePlanStep *s = &p->programs[0].steps[0];
    float in[3] = {0, 1, -2}, out[3] = {0}, scratch[16];
    void *bufs[] = {in, out};
    ck_assert_int_eq(s->tasks(bufs), 3);
    for (int t = 0; t < 3; t++)
        s->run(bufs, t, scratch);
    ck_assert_float_eq(out[0], 1);
    ck_assert_float_eq_tol(out[1], 2.7182817f, 1e-6f);
    ck_assert_float_eq_tol(out[2], 0.13533528f, 1e-6f);
    moe_plan_free(p);

    write_plan(dir, "k_other", hash, data, n);
    FAILS(moe_plan_load(dir, &p), MOE_E_CORRUPT, "programs.p.steps[0]", "k_other");
    write_plan(dir, "exit", hash, data,
               n); /* the process has it; a plan's kernels come from the plan */
    FAILS(moe_plan_load(dir, &p), MOE_E_CORRUPT, "programs.p.steps[0]", "exit");
    write_plan(dir, "k_exp", "00000000000000000000000000000000", data, n);
    FAILS(moe_plan_load(dir, &p), MOE_E_CORRUPT, "kernels.o does not match");
    char junk[] = "not an object file at all, whatever it says";
    moe_hash_hex(junk, sizeof junk, hash);
    write_plan(dir, "k_exp", hash, junk, sizeof junk);
    FAILS(moe_plan_load(dir, &p), MOE_E_CORRUPT, dir);
    FAILS(moe_plan_load(moe_test_path("absent.plan"), &p), MOE_E_INPUT, "absent.plan",
          "moec compile");
    FAILS(moe_plan_load(moe_test_dir(), &p), MOE_E_INPUT, "plan.json");
    LLVMDisposeMemoryBuffer(object);
    free(dir);
}
END_TEST

START_TEST(test_target) {
    MoePlan *p = NULL;
    json_t *j = fake_json(1);
    char *text;
    set_at(j, "target", "\"cuda:sm_90a\"");
    text = json_dumps(j, 0);
    FAILS(moe_plan_load_memory(text, strlen(text), "p", "x", 1, &p), MOE_E_INPUT, "cuda:sm_90a",
          "compile");
    free(text);
    json_decref(j);
}
END_TEST

int main(void) {
    Suite *s = suite_create("plan");
    TCase *t = tcase_create("plan");
    tcase_set_timeout(t, 120);
    tcase_add_test(t, test_reads);
    tcase_add_test(t, test_damage);
    tcase_add_test(t, test_every_value);
    tcase_add_test(t, test_links);
    tcase_add_test(t, test_target);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
