/* What runs dense products (runtime/cuda/blaslt*.c), on the simulated GPU with the simulated cuBLASLt: which of its algorithms may
 * be used, which is taken, what the cache and a checkpoint change, and that all ranks do the same. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/io.h"
#include "codegen/cuda/cuda.h"
#include "runtime/dense.h"
#include "runtime/exec.h"
#include "runtime/ranks.h"
#include "tests/support/check_main.h"
#include "tests/support/gpu.h"
#include "tests/support/status_checks.h"

/* tests/sim/cublaslt.c's numbers. */
enum { GOOD, FAST, SPLIT_K, BY_ROWS, BY_PLACE, COARSE, BIG, FEW, CHAINED, NONE, EMITTED = -1 };

#define BAD "split_k:1,by_rows:2,by_place:3,coarse:4,big:5,few:6,none:7"
enum { ROWS = 150, N = 24, K = 40 };

/* ---- a plan of one product, or two ---- */

/* The product as a kernel: one thread an element, products in ascending order. */
static const char *const body =
    "using namespace moe;\n"
    "const int rows = buf<const i32>(a, 4)[4], N = 24, K = 40;\n"
    "for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < rows * N; i += gridDim.x * "
    "blockDim.x) {\n"
    "    float s = 0;\n"
    "    for (int k = 0; k < K; k++)\n"
    "        s = fmaf(load(buf<const T>(a, 0) + i / N * K + k), load(buf<const T>(a, 1) + i % N * "
    "K + k), s);\n"
    "    buf<float>(a, 3)[i] = ADD ? s + buf<const float>(a, 2)[i] : s;\n"
    "}\n";

static void code_of(void **out, size_t *n) {
    MoeTarget *base = NULL;
    char *text = NULL;
    MoeStatus st = moe_cuda_target_create("sm_80", &base);
    MOE_ASSERT(!st, "%s", moe_status_message(st));
    MoeCudaTarget *t = (MoeCudaTarget *)base;
    for (int half = 0; half < 2; half++)
        for (int add = 0; add < 2; add++)
            moe_cuda_kernel(
                t, &(MoeCudaKernelText){
                       .prefix = moe_arena_printf(t->arena, "k_%d%d", half, add),
                       .exact = true,
                       .n_bufs = 5,
                       .threads = 64,
                       .body = moe_arena_printf(t->arena, "using T = %s; const bool ADD = %s;\n%s",
                                                half ? "moe::bf16" : "float",
                                                add ? "true" : "false", body)});
    st = base->finish(base, false, out, n, &text);
    MOE_ASSERT(!st, "%s", moe_status_message(st));
    free(text);
    base->destroy(base);
}

static void add_step(MoeStr *s, bool half, bool add, bool in_place, int rows) {
    moe_str_printf(
        s,
        "%s{\"name\": \"p\", \"kernel\": \"k_%d%d\", \"phase\": \"forward\", \"count\": false, "
        "\"kind\": \"gemm\", \"layer\": 0, \"bufs\": [[0, 0], [1, 0], [%d, 0], [3, 0], [4, 0]], "
        "\"grid\": 4, \"block\": 64, \"dense\": {\"a\": 0, \"b\": 1, ",
        s->len ? ", " : "", half, add, in_place ? 3 : 2);
    if (add)
        moe_str_append(s, "\"c\": 2, ");
    moe_str_printf(
        s,
        "\"out\": 3, \"live\": 4, \"dtype\": \"%s\", \"out_dtype\": \"f32\", \"rows\": %d, "
        "\"n\": %d, \"k\": %d, \"transposed\": true}}",
        half ? "bf16" : "f32", rows, N, K);
}

static void *code; /* of all plans, made before the tests, which have a cache of their own */
static size_t n_code;

/* Products of f32 or bf16: alone, with a matrix added, or in place onto it. */
static MoePlan *plan_of(const char *steps, int ranks) {
    MoeStr s = {0};
    MoePlan *p = NULL;
    moe_str_printf(
        &s,
        "{\"format_version\": 1, \"abi\": 1, \"target\": \"cuda:sm_80\", \"compile\": \"by "
        "hand\",\n"
        " \"model\": {\"model_type\": \"mixtral\", \"vocab_size\": 16}, \"tokenizer\": \"byte\",\n"
        " \"ranks\": %d, \"mesh\": {\"dp\": %d, \"shard\": 1, \"ep\": 1, \"tp\": 1, "
        "\"dense_shard\": 1},\n"
        " \"vocab_size\": 16, \"batch\": 4, \"seq\": 4, \"virtual_shards\": 4, \"micro_batches\": "
        "1,\n"
        " \"dtype\": \"f32\", \"moe_layers\": [], \"experts\": 0, \"experts_per_token\": 0,\n"
        " \"flops_per_token\": 1.0, \"kernels_xxh3\": \"00\", \"params\": [], \"buffers\": [],\n"
        " \"programs\": {\"p\": {\"slab_bytes\": 131136, \"slab_lower_bound\": 1, "
        "\"scratch_bytes\": 0,\n"
        "  \"values\": [{\"slab\": 0, \"bytes\": 24000}, {\"slab\": 24000, \"bytes\": 3840}, "
        "{\"slab\": 32000, \"bytes\": 14400}, {\"slab\": 48000, \"bytes\": 14400}, {\"input\": "
        "\"tok\", "
        "\"bytes\": 20}],\n"
        "  \"inputs\": [{\"name\": \"tok\", \"value\": 4, \"dtype\": \"i32\", \"dims\": [5], "
        "\"ragged\": "
        "false}],\n"
        "  \"outputs\": [], \"steps\": [%s], \"batch_sums\": [], \"accumulates\": []}}}",
        ranks, ranks, steps);
    OK(moe_plan_load_memory(moe_str_c(&s), s.len, "by hand", code, n_code, &p));
    moe_str_free(&s);
    return p;
}

static MoePlan *plan_with(bool half, bool add, bool in_place) {
    MoeStr s = {0};
    add_step(&s, half, add, in_place, ROWS);
    add_step(&s, half, add, in_place, 37); /* the same with fewer rows */
    MoePlan *p = plan_of(moe_str_c(&s), 1);
    moe_str_free(&s);
    return p;
}

/* ---- choosing ---- */

static void offer(const char *algorithms, const char *version) {
    setenv("MOE_SIM_CUBLASLT", algorithms, 1);
    setenv("MOE_SIM_CUBLASLT_VERSION", version, 1);
}

static void begin(void) {
    char **names = NULL;
    size_t n = 0;
    const char *dir = moe_test_path("choices");
    setenv("MOE_SIM_LAUNCH_SECONDS", "10", 1); /* what moec's kernels take */
    setenv("MOEC_CACHE", dir, 1);
    moe_status_free(moe_dir_list(dir, &names, &n));
    moe_dir_list_free(names, n);
    OK(moe_dir_remove(dir));
}

static MoeStatus make(const MoePlan *p, MoeComm *comm, MoeDenseMode mode, MoeExec **out) {
    return moe_exec_create_on(p, comm, 1,
                              &(MoeDevicePlace){.device = -1, .local = -1, .dense = mode}, out);
}

/* The algorithm of the plan's first product. */
static int chosen(MoeExec *x) {
    const MoeChoices *c = moe_exec_choices(x);
    MoeDenseChoice v;
    ck_assert_uint_ge(c->n, 1);
    ck_assert_str_eq(c->items[0].kind, MOE_DENSE_KIND);
    ck_assert(moe_dense_choice_read(c->items[0].value, &v));
    return v.library ? v.config.id : EMITTED;
}

static int choose(const MoePlan *p, MoeDenseMode mode) {
    MoeExec *x;
    OK(make(p, NULL, mode, &x));
    OK(moe_exec_decide(x));
    int id = chosen(x);
    moe_exec_destroy(x);
    return id;
}

/* Each alone: the bad ones are never taken. */
START_TEST(test_bad) {
    static const char *const bad[] = {"split_k", "by_rows", "by_place", "big", "few", "none"};
    begin();
    for (int half = 0; half < 2; half++) {
        MoePlan *p = plan_with(half, false, false);
        for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
            begin();
            offer(bad[i], "130100");
            ck_assert_msg(choose(p, MOE_DENSE_CUBLASLT) == EMITTED, "%s, bf16 %d", bad[i], half);
        }
        begin();
        offer("coarse", "130100"); /* numbers of bf16 have no more bits than that */
        ck_assert_int_eq(choose(p, MOE_DENSE_CUBLASLT), half ? COARSE : EMITTED);
        moe_plan_free(p);
    }
}
END_TEST

START_TEST(test_fastest) {
    MoePlan *p = plan_with(_i & 1, _i & 2, _i & 4);
    begin();
    offer(BAD ",good:2000000,fast:1000000", "130100");
    ck_assert_int_eq(choose(p, MOE_DENSE_CUBLASLT), _i & 1 ? COARSE : FAST);
    begin();
    offer("good:1000000,fast:2000000", "130100");
    ck_assert_int_eq(choose(p, MOE_DENSE_AUTO), GOOD);
    begin();
    offer("chained:1,good:2000000",
          "130100"); /* another number with what is added, the same without */
    ck_assert_int_eq(choose(p, MOE_DENSE_AUTO), _i & 2 ? GOOD : CHAINED);
    begin();
    offer("good:20000000,fast:30000000", "130100"); /* slower than moec's own */
    ck_assert_int_eq(choose(p, MOE_DENSE_AUTO), EMITTED);
    ck_assert_int_eq(choose(p, MOE_DENSE_CUBLASLT),
                     GOOD); /* of the same measurement, by the cache */
    ck_assert_int_eq(choose(p, MOE_DENSE_EMITTED), EMITTED);
    moe_plan_free(p);
}
END_TEST

START_TEST(test_no_library) {
    MoePlan *p = plan_with(false, false, false);
    MoeExec *x;
    begin();
    unsetenv("MOE_SIM_CUBLASLT");
    ck_assert_int_eq(choose(p, MOE_DENSE_AUTO), EMITTED);
    OK(make(p, NULL, MOE_DENSE_CUBLASLT, &x));
    FAILS(moe_exec_decide(x), MOE_E_IO, "cublasLtCreate", "NOT_INITIALIZED");
    moe_exec_destroy(x);
    offer("good", "110400");
    OK(make(p, NULL, MOE_DENSE_CUBLASLT, &x));
    FAILS(moe_exec_decide(x), MOE_E_IO, "older than 12.0");
    moe_exec_destroy(x);
    moe_plan_free(p);
}
END_TEST

START_TEST(test_cache) {
    MoePlan *p = plan_with(true, true, false);
    begin();
    offer("good:1000000,fast:2000000", "130100");
    ck_assert_int_eq(choose(p, MOE_DENSE_AUTO), GOOD);
    offer("good:2000000,fast:1000000", "130100"); /* not measured again */
    ck_assert_int_eq(choose(p, MOE_DENSE_AUTO), GOOD);
    offer("good:2000000,fast:1000000", "130200"); /* another version */
    ck_assert_int_eq(choose(p, MOE_DENSE_AUTO), FAST);
    offer("fast:1000000", "130100"); /* the cached one does not run any more */
    ck_assert_int_eq(choose(p, MOE_DENSE_AUTO), FAST);
    moe_plan_free(p);
}
END_TEST

/* An execution that goes on from a checkpoint whose manifest has these choices. */
static MoeStatus resume(const MoePlan *p, const json_t *choices, MoeDenseMode mode, int *out) {
    MoeExec *x;
    OK(make(p, NULL, mode, &x));
    OK(moe_exec_take_choices(x, choices, "a checkpoint"));
    MoeStatus st = moe_exec_decide(x);
    *out = st ? EMITTED : chosen(x);
    moe_exec_destroy(x);
    return st;
}

START_TEST(test_checkpoint) {
    MoePlan *p = plan_with(true, false, false);
    MoeExec *x;
    int id;
    begin();
    offer("good:1000000,fast:2000000", "130100");
    OK(make(p, NULL, MOE_DENSE_AUTO, &x));
    OK(moe_exec_decide(x));
    json_t *library = moe_choices_json(moe_exec_choices(x));
    moe_exec_destroy(x);
    OK(make(p, NULL, MOE_DENSE_EMITTED, &x));
    OK(moe_exec_decide(x));
    json_t *emitted = moe_choices_json(moe_exec_choices(x));
    moe_exec_destroy(x);
    begin(); /* elsewhere, where another is the fastest */
    offer("good:2000000,fast:1000000", "130100");
    OK(resume(p, library, MOE_DENSE_AUTO, &id));
    ck_assert_int_eq(id, GOOD);
    OK(resume(p, library, MOE_DENSE_SAME, &id));
    ck_assert_int_eq(id, GOOD);
    OK(resume(p, emitted, MOE_DENSE_AUTO, &id));
    ck_assert_int_eq(id, EMITTED);
    OK(resume(p, emitted, MOE_DENSE_CUBLASLT, &id)); /* a wish goes first */
    ck_assert_int_eq(id, FAST);
    OK(resume(p, library, MOE_DENSE_EMITTED, &id));
    ck_assert_int_eq(id, EMITTED);
    OK(resume(p, NULL, MOE_DENSE_SAME, &id)); /* nothing was decided before */
    ck_assert_int_eq(id, FAST);
    offer("good:2000000,fast:1000000", "130200"); /* rebuilt from its attributes, with a warning */
    OK(resume(p, library, MOE_DENSE_AUTO, &id));
    ck_assert_int_eq(id, GOOD);
    FAILS(resume(p, library, MOE_DENSE_SAME, &id), MOE_E_INPUT, "version 13.1.0", "13.2.0",
          "--dense auto");
    offer("fast:1000000", "130100"); /* what was chosen is not there */
    OK(resume(p, library, MOE_DENSE_AUTO, &id));
    ck_assert_int_eq(id, FAST);
    FAILS(resume(p, library, MOE_DENSE_SAME, &id), MOE_E_INPUT, "does not run here");
    unsetenv("MOE_SIM_CUBLASLT");
    OK(resume(p, library, MOE_DENSE_AUTO, &id));
    ck_assert_int_eq(id, EMITTED);
    FAILS(resume(p, library, MOE_DENSE_SAME, &id), MOE_E_INPUT, "cannot be used here");
    json_decref(library);
    json_decref(emitted);
    moe_plan_free(p);
}
END_TEST

/* ---- ranks ---- */

static char texts[4][MOE_CHOICE_BYTES];

static MoeStatus rank_fn(void *ctx, MoeComm *comm) {
    MoeExec *x;
    OK(make(ctx, comm, MOE_DENSE_AUTO, &x));
    OK(moe_exec_decide(x));
    snprintf(texts[comm->rank], MOE_CHOICE_BYTES, "%s", moe_exec_choices(x)->items[0].value);
    ck_assert_int_eq(chosen(x), FAST);
    moe_exec_destroy(x);
    return NULL;
}

START_TEST(test_ranks) {
    MoeStr s = {0};
    begin();
    offer(BAD ",good:2000000,fast:1000000", "130100");
    add_step(&s, false, false, false, ROWS);
    MoePlan *p = plan_of(moe_str_c(&s), 4);
    OK(moe_ranks_run(4, 0, rank_fn, p));
    for (int r = 1; r < 4; r++) /* with the measurement in it: one of them made it */
        ck_assert_str_eq(texts[r], texts[0]);
    moe_plan_free(p);
    moe_str_free(&s);
}
END_TEST

/* What a damaged plan says of a product is found when it is read. */
START_TEST(test_plan) {
    static const struct {
        const char *from, *to, *word;
    } rows[] = {{"\"rows\": 150", "\"rows\": 151", "a"},
                {"\"out\": 3", "\"out\": 9", "out"},
                {"\"n\": 24", "\"n\": 0", "n"},
                {"\"out_dtype\": \"f32\"", "\"out_dtype\": \"i32\"", "out_dtype"},
                {"\"transposed\": true", "\"transposed\": 1", "transposed"},
                {"\"live\": 4", "\"live\": -2", "live"}};
    MoePlan *p = plan_with(false, true, false);
    MoeDenseProduct *products;
    size_t n;
    OK(moe_dense_products(p, &products, &n));
    ck_assert_uint_eq(n, 1);
    ck_assert_str_eq(products[0].key, "n 24 k 40 f32 to f32 transposed added");
    ck_assert_int_eq(products[0].n_rows, 2);
    ck_assert_int_eq(products[0].rows[0], ROWS);
    ck_assert_int_eq(products[0].rows[1], 37);
    free(products);
    MoeStr text = {0};
    moe_json_dump(p->json, &text);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const char *at = strstr(moe_str_c(&text), rows[i].from);
        MoePlan *bad = NULL;
        MoeStr s = {0};
        ck_assert_msg(at, "%s", rows[i].from);
        moe_str_append_n(&s, moe_str_c(&text), (size_t)(at - moe_str_c(&text)));
        moe_str_printf(&s, "%s%s", rows[i].to, at + strlen(rows[i].from));
        FAILS(moe_plan_load_memory(moe_str_c(&s), s.len, "bad", NULL, 0, &bad), MOE_E_CORRUPT,
              "steps[0].dense", rows[i].word);
        moe_str_free(&s);
    }
    moe_str_free(&text);
    moe_plan_free(p);
}
END_TEST

int main(void) {
    if (!moe_test_simulate("80,80,80")) {
        printf("no simulated GPU was built: skipped\n");
        return 0;
    }
    code_of(&code, &n_code);
    Suite *s = suite_create("dense_choice");
    TCase *t = tcase_create("choice");
    tcase_set_timeout(t, 120);
    tcase_add_test(t, test_bad);
    tcase_add_loop_test(t, test_fastest, 0, 8);
    tcase_add_test(t, test_no_library);
    tcase_add_test(t, test_cache);
    tcase_add_test(t, test_checkpoint);
    tcase_add_test(t, test_ranks);
    tcase_add_test(t, test_plan);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
