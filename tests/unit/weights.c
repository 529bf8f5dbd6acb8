/* runtime/weights.h and init.h: Hugging Face names in and out, every fault named in one error,
 * export that reads back, seeded initialisation. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "base/io.h"
#include "runtime/init.h"
#include "runtime/weights.h"
#include "tests/support/check_main.h"
#include "tests/support/fake_plan.h"
#include "tests/support/files.h"
#include "tests/support/status_checks.h"

static MoePlan *plan;
static MoeExec *x;

static void setup_model(const char *extra_model) {
    plan = fake_plan(&(FakePlanOptions){
        .batch = 4, .seq = 8, .virtual_shards = 4, .micro_batches = 1, .extra_model = extra_model});
    OK(moe_exec_create(plan, NULL, 1, &x));
}

static void setup(void) {
    setup_model("");
}

static void teardown(void) {
    moe_exec_destroy(x);
    moe_plan_free(plan);
}

/* A file of weights to change before it is written. */
enum { MAX_TENSORS = 8 };
typedef struct {
    MoeStOut t[MAX_TENSORS];
    size_t n;
    char data[MAX_TENSORS][512], names[MAX_TENSORS][64];
} File;

static void add(File *f, const char *name, MoeStDtype dtype, int rank, int64_t a, int64_t b,
                float start) {
    size_t i = f->n++;
    snprintf(f->names[i], sizeof f->names[i], "%s", name);
    f->t[i] = (MoeStOut){
        .name = f->names[i], .dtype = dtype, .rank = rank, .dims = {a, b}, .data = f->data[i]};
    for (int64_t k = 0, n = a * (rank > 1 ? b : 1); k < n; k++) {
        float v = start + 0.5f * (float)k;
        uint16_t h = dtype == MOE_ST_BF16 ? moe_f32_to_bf16(v) : moe_f32_to_f16(v);
        double d = (double)v;
        if (dtype == MOE_ST_F32)
            memcpy(f->data[i] + 4 * k, &v, 4);
        else if (dtype == MOE_ST_F64)
            memcpy(f->data[i] + 8 * k, &d, 8);
        else
            memcpy(f->data[i] + 2 * k, &h, 2);
    }
}

static void whole(File *f, MoeStDtype dtype) {
    memset(f, 0, sizeof *f);
    add(f, "model.w.weight", dtype, 1, 8, 1, -2);
    for (int e = 0; e < 4; e++) {
        char name[64];
        snprintf(name, sizeof name, "model.layers.0.experts.%d.u.weight", e);
        add(f, name, dtype, 2, 2, 3, (float)e);
    }
}

static const char *written(const File *f) {
    const char *path = moe_test_path("model.safetensors");
    uint64_t bytes;
    char hash[33];
    OK(moe_st_write(path, f->t, f->n, NULL, 0, NULL, NULL, &bytes, hash));
    return moe_test_dir();
}

START_TEST(test_load) {
    static const MoeStDtype dtypes[] = {MOE_ST_F32, MOE_ST_BF16, MOE_ST_F16, MOE_ST_F64};
    for (int d = 0; d < 4; d++) {
        File f;
        float *w = moe_exec_buffer(x, 0), *u = moe_exec_buffer(x, 3);
        memset(w, 0x7f, 32);
        memset(u, 0x7f, 96);
        whole(&f, dtypes[d]);
        OK(moe_weights_load(plan, x, written(&f)));
        for (int i = 0; i < 8; i++)
            ck_assert_float_eq(w[i], -2 + 0.5f * (float)i);
        for (int e = 0; e < 4; e++)
            for (int i = 0; i < 6; i++)
                ck_assert_float_eq(u[e * 6 + i], (float)e + 0.5f * (float)i);
    }
}
END_TEST

START_TEST(test_faults) {
    File f;
    float w[8], *live = moe_exec_buffer(x, 0);
    for (int i = 0; i < 8; i++)
        live[i] = (float)i;
    memcpy(w, live, sizeof w);
    whole(&f, MOE_ST_F32);
    snprintf(f.names[1], sizeof f.names[1],
             "model.layers.0.experts.4.u.weight"); /* 0 is missing, 4 unexpected */
    f.t[2].dims[0] = 3;                   /* transposed */
    f.t[2].dims[1] = 2;
    f.t[3].dtype = MOE_ST_I32;
    add(&f, "score.weight", MOE_ST_F32, 1, 4, 1, 0);
    FAILS(moe_weights_load(plan, x, written(&f)), MOE_E_INPUT, "missing (1)",
          "model.layers.0.experts.0.u.weight", "wrong shape (1)",
          "model.layers.0.experts.1.u.weight is [3, 2], expected [2, 3]", "wrong dtype (1)",
          "model.layers.0.experts.2.u.weight is I32", "not in the model (2)", "model.layers.0.experts.4.u.weight",
          "score.weight");
    ck_assert_mem_eq(w, live, sizeof w); /* nothing changed */
    FAILS(moe_weights_load(plan, x, moe_test_path("absent")), MOE_E_IO, "absent");
    whole(&f, MOE_ST_F32);
    add(&f, "model.layers.0.self_attn.rotary_emb.inv_freq", MOE_ST_F32, 1, 4, 1,
        0); /* older files have it */
    OK(moe_weights_load(plan, x, written(&f)));
    add(&f, "lm_head.weight", MOE_ST_F32, 1, 8, 1, 0); /* not tied: no such weight */
    FAILS(moe_weights_load(plan, x, written(&f)), MOE_E_INPUT, "not in the model (1)",
          "lm_head.weight");
}
END_TEST

/* A tied head may be there if it is the embedding. */
START_TEST(test_tied) {
    teardown();
    setup_model(", \"tie_word_embeddings\": true");
    json_t *names = json_array_get(json_object_get(plan->json, "params"), 0);
    ck_assert_str_eq(json_string_value(json_object_get(names, "name")), "model.w.weight");
    plan->params[0].name = "model.embed_tokens.weight";
    File f;
    whole(&f, MOE_ST_F32);
    snprintf(f.names[0], sizeof f.names[0], "model.embed_tokens.weight");
    OK(moe_weights_load(plan, x, written(&f)));
    add(&f, "lm_head.weight", MOE_ST_F32, 1, 8, 1, -2);
    OK(moe_weights_load(plan, x, written(&f)));
    f.data[f.n - 1][0] ^= 1;
    FAILS(moe_weights_load(plan, x, written(&f)), MOE_E_INPUT, "lm_head.weight", "ties it");
}
END_TEST

static void fill_params(float start) {
    for (int i = 0; i < 8; i++)
        ((float *)moe_exec_buffer(x, 0))[i] = start + (float)i / 3;
    for (int i = 0; i < 24; i++)
        ((float *)moe_exec_buffer(x, 3))[i] = -start - (float)i / 7;
}

static json_t *json_at(const char *dir, const char *name) {
    char *path = moe_path_join(dir, name);
    json_t *j = NULL;
    OK(moe_json_load_file(path, 1 << 20, &j));
    free(path);
    return j;
}

START_TEST(test_export) {
    for (int bf16 = 0; bf16 < 2; bf16++)
        for (int sharded = 0; sharded < 2; sharded++) {
            float w[8], u[24];
            char dir[600], shard[700];
            snprintf(dir, sizeof dir, "%s/export-%d%d", moe_test_dir(), bf16, sharded);
            snprintf(shard, sizeof shard, "%s/model.safetensors%s", dir,
                     sharded ? ".index.json" : "");
            fill_params((float)(1 + bf16));
            memcpy(w, moe_exec_buffer(x, 0), sizeof w);
            memcpy(u, moe_exec_buffer(x, 3), sizeof u);
            MoeExportOptions o = {.bf16 = bf16, .max_shard_bytes = sharded ? 50 : 0};
            OK(moe_export_model(plan, x, dir, &o));
            ck_assert(moe_path_exists(shard));
            if (sharded) {
                json_t *index = json_at(dir, "model.safetensors.index.json");
                json_int_t total = json_integer_value(
                    json_object_get(json_object_get(index, "metadata"), "total_size"));
                ck_assert_int_eq(total, 32 * (bf16 ? 2 : 4));
                ck_assert_int_eq(json_object_size(json_object_get(index, "weight_map")), 5);
                json_decref(index);
            }
            memset(moe_exec_buffer(x, 0), 0, sizeof w);
            memset(moe_exec_buffer(x, 3), 0, sizeof u);
            OK(moe_weights_load(plan, x, dir));
            for (int i = 0; i < 8; i++)
                ck_assert_float_eq(((float *)moe_exec_buffer(x, 0))[i],
                                   bf16 ? moe_bf16_to_f32(moe_f32_to_bf16(w[i])) : w[i]);
            for (int i = 0; i < 24; i++)
                ck_assert_float_eq(((float *)moe_exec_buffer(x, 3))[i],
                                   bf16 ? moe_bf16_to_f32(moe_f32_to_bf16(u[i])) : u[i]);
            json_t *config = json_at(dir, "config.json"),
                   *generation = json_at(dir, "generation_config.json");
            ck_assert_str_eq(json_string_value(json_object_get(config, "torch_dtype")),
                             bf16 ? "bfloat16" : "float32");
            ck_assert_str_eq(json_string_value(json_object_get(config, "model_type")), "mixtral");
            ck_assert(json_is_true(json_object_get(generation, "_from_model_config")));
            json_decref(config);
            json_decref(generation);
            OK(moe_export_model(plan, x, dir, &o)); /* over itself */
            OK(moe_weights_load(plan, x, dir));
        }
    MoeExportOptions o = {0};
    FAILS(moe_export_model(plan, x, moe_test_file("file", "x", 1), &o), MOE_E_INPUT, "file",
          "another -o");
    char other[600];
    snprintf(other, sizeof other, "%s/other", moe_test_dir());
    OK(moe_dir_make(other));
    OK(moe_export_model(plan, x, other, &o)); /* empty: fine */
    OK(moe_dir_remove(other));
    OK(moe_dir_make(other));
    moe_test_file("other/precious.txt", "x", 1);
    FAILS(moe_export_model(plan, x, other, &o), MOE_E_INPUT, "other", "nothing in it was touched");
    ck_assert(moe_path_exists(moe_test_path("other/precious.txt")));
    /* A model directory of somebody else's is not replaced. */
    File f;
    whole(&f, MOE_ST_F32);
    written(&f);
    FAILS(moe_export_model(plan, x, moe_test_dir(), &o), MOE_E_INPUT, "no export of moec");
    ck_assert(moe_path_exists(moe_test_path("model.safetensors")));
    OK(moe_export_model(plan, x, moe_test_path("slash/"), &o));
    ck_assert(moe_path_exists(moe_test_path("slash/config.json")));
}
END_TEST

START_TEST(test_dtype_keys) {
    static const char *const extra[] = {", \"dtype\": \"bfloat16\"",
                                        ", \"torch_dtype\": \"bfloat16\"",
                                        ", \"dtype\": \"bfloat16\", \"torch_dtype\": \"bfloat16\""};
    for (int i = 0; i < 3; i++) {
        teardown();
        setup_model(extra[i]);
        MoeExportOptions o = {0};
        const char *dir = moe_test_path("dtypes");
        OK(moe_export_model(plan, x, dir, &o));
        json_t *c = json_at(dir, "config.json"), *new = json_object_get(c, "dtype"),
               *old = json_object_get(c, "torch_dtype");
        ck_assert(new ? !strcmp(json_string_value(new), "float32") : i == 1);
        ck_assert(old ? !strcmp(json_string_value(old), "float32") : i == 0);
        json_decref(c);
    }
}
END_TEST

START_TEST(test_init) {
    float w[8], u[24];
    ((float *)moe_exec_buffer(x, 1))[3] = 5;
    OK(moe_init_params(plan, x, 7));
    OK(moe_init_states(plan, x));
    ck_assert_float_eq(((float *)moe_exec_buffer(x, 1))[3], 0);
    memcpy(w, moe_exec_buffer(x, 0), sizeof w);
    memcpy(u, moe_exec_buffer(x, 3), sizeof u);
    double sum = 0, squares = 0;
    for (int i = 0; i < 24; i++) {
        sum += (double)u[i];
        squares += (double)u[i] * (double)u[i];
        for (int k = 0; k < i; k++)
            ck_assert(u[i] != u[k]); /* experts have streams of their own */
    }
    ck_assert(fabs(sum / 24) < 0.02 && sqrt(squares / 24) > 0.01 && sqrt(squares / 24) < 0.04);
    moe_exec_destroy(x);
    OK(moe_exec_create(plan, NULL, 3, &x)); /* any number of threads */
    OK(moe_init_params(plan, x, 7));
    ck_assert_mem_eq(w, moe_exec_buffer(x, 0), sizeof w);
    ck_assert_mem_eq(u, moe_exec_buffer(x, 3), sizeof u);
    OK(moe_init_params(plan, x, 8));
    ck_assert(memcmp(w, moe_exec_buffer(x, 0), sizeof w));
    plan->params[0].init = "ones";
    OK(moe_init_params(plan, x, 8));
    ck_assert_float_eq(*(float *)moe_exec_buffer(x, 0), 1);
}
END_TEST

int main(void) {
    Suite *s = suite_create("weights");
    TCase *t = tcase_create("weights");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, test_load);
    tcase_add_test(t, test_faults);
    tcase_add_test(t, test_tied);
    tcase_add_test(t, test_export);
    tcase_add_test(t, test_dtype_keys);
    tcase_add_test(t, test_init);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
