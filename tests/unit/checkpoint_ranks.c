/* runtime/checkpoint.h, weights.h and init.h with many ranks (threads): what is saved at one layout loads at every other,
 * each rank what is its own; export is the same bytes; damage, lies and full disks are found by all ranks together; kills
 * at every system call (this program runs itself under strace with --save DIR STEP LAYOUT). */
#include <check.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/io.h"
#include "base/rng.h"
#include "formats/blocks.h"
#include "runtime/checkpoint.h"
#include "runtime/init.h"
#include "runtime/weights.h"
#include "tests/support/check_main.h"
#include "tests/support/mesh.h"
#include "tests/support/slice_fill.h"
#include "tests/support/slice_plan.h"
#include "tests/support/status_checks.h"

#define EXPERTS 5

static const char *program;
static char run[600];

/* Odd sizes, tensors of less than a block and of several, cut by rows and by columns; dims that 1, 2 and 3 divide. */
static const SliceParam params[] = {
    {"model.embed_tokens.weight", 0, 2, {96, 131}},
    {"model.layers.0.mlp.experts.*.w1.weight", 1, 3, {EXPERTS, 102, 89}},
    {"model.layers.0.mlp.experts.*.w2.weight", 2, 3, {EXPERTS, 89, 102}},
    {"model.layers.0.norm.weight", -1, 1, {7}},
    {"model.layers.1.mlp.experts.*.w1.weight", 1, 3, {EXPERTS, 6, 3}},
    {"model.layers.1.self_attn.o_proj.weight", 1, 2, {91, 102}},
    {"model.layers.1.self_attn.q_proj.weight", 0, 2, {102, 91}},
};
#define N_PARAMS (sizeof params / sizeof *params)

/* dp shard ep tp dense_shard; map: a seed for the experts' places, 0 = the initial ones */
static const struct {
    MoeMesh mesh;
    uint64_t map;
} layouts[] = {
    {MESH(1, 1, 1, 1, 1), 0}, {MESH(2, 1, 1, 1, 1), 0}, {MESH(1, 2, 1, 1, 2), 0}, {MESH(1, 1, 2, 1, 1), 3},
    {MESH(1, 1, 4, 1, 4), 0}, {MESH(1, 2, 2, 1, 4), 5}, {MESH(2, 2, 1, 1, 2), 0}, {MESH(1, 1, 8, 1, 2), 7},
    {MESH(1, 1, 1, 2, 1), 0}, {MESH(1, 2, 1, 3, 2), 0}, {MESH(2, 1, 2, 2, 2), 9}, {MESH(1, 4, 2, 1, 8), 0},
};
#define N_LAYOUTS ((int)(sizeof layouts / sizeof *layouts))

/* Both layers' maps: each expert in a slot of its own, anywhere. */
static void set_maps(SliceRanks *r, uint64_t seed) {
    int n = r->plan->slots * r->plan->mesh.ep;
    for (size_t k = 0; k < r->plan->n_moe_layers && seed; k++) {
        int32_t slots[64], held[64];
        for (int i = 0; i < n; i++)
            slots[i] = i;
        for (int i = n - 1; i > 0; i--) {
            int j = (int)moe_rng_below(seed, k, (uint64_t)i, (uint64_t)i + 1);
            int32_t was = slots[i];
            slots[i] = slots[j];
            slots[j] = was;
        }
        memset(held, 0xff, sizeof held);
        for (int e = 0; e < EXPERTS; e++)
            held[slots[e]] = e;
        for (int q = 0; q < r->n; q++)
            if (moe_exec_set_map(r->x[q], k, held, slots)) /* no Check here, as in slice_fill_rank */
                abort();
    }
}

static SliceRanks ranks_of(int layout) {
    SliceRanks r = slice_ranks(slice_plan(&layouts[layout].mesh, EXPERTS, 2, params, N_PARAMS));
    set_maps(&r, layouts[layout].map);
    return r;
}

static void setup(void) {
    snprintf(run, sizeof run, "%s/run", moe_test_dir());
    OK(moe_dir_remove(run));
    OK(moe_dir_make(run));
}

/* ---- saving and loading by all ranks ---- */

static MoeTrainState state_of(int64_t step) {
    return (MoeTrainState){.step = step,
                           .updates = step,
                           .tokens = 32 * step,
                           .train_seconds = 0.25,
                           .seed = 9,
                           .data = {1, step},
                           .data_fingerprint = "0123456789abcdef0123456789abcdef"};
}

typedef struct {
    const MoePlan *plan;
    const char *dir;
    int64_t step;
    MoeTrainState states[64];
    bool found[64], weights_only;
} Call;

static MoeStatus save_rank(void *ctx, int rank, MoeExec *x) {
    const Call *c = ctx;
    (void)rank;
    MoeTrainState s = state_of(c->step);
    return moe_checkpoint_save(c->plan, x, c->dir, &s);
}

static MoeStatus load_rank(void *ctx, int rank, MoeExec *x) {
    Call *c = ctx;
    return moe_checkpoint_load(c->plan, x, c->dir, !c->weights_only, &c->states[rank]);
}

static MoeStatus newest_rank(void *ctx, int rank, MoeExec *x) {
    Call *c = ctx;
    return moe_checkpoint_load_newest(c->plan, x, c->dir, true, &c->states[rank], &c->found[rank]);
}

static MoeStatus save(SliceRanks *r, int64_t step) {
    Call c = {.plan = r->plan, .dir = run, .step = step};
    slice_fill(r, step);
    return slice_ranks_run(r, save_rank, &c, NULL);
}

/* The newest intact step, the same on all ranks; 0 = none. */
static int64_t newest(SliceRanks *r) {
    Call c = {.plan = r->plan, .dir = run};
    slice_wipe(r);
    OK(slice_ranks_run(r, newest_rank, &c, NULL));
    for (int q = 0; q < r->n; q++)
        ck_assert(c.found[q] == c.found[0] && c.states[q].step == c.states[0].step);
    if (!c.found[0])
        return 0;
    ck_assert(slice_holds(r, c.states[0].step));
    return c.states[0].step;
}

static const char *in_run(const char *name) {
    char path[800];
    snprintf(path, sizeof path, "run/checkpoints/%s", name);
    return moe_test_path(path);
}

static int files_in(const char *dir) {
    char **names;
    size_t n;
    OK(moe_dir_list(dir, &names, &n));
    moe_dir_list_free(names, n);
    return (int)n;
}

static void same_file(const char *a, const char *b) {
    char *x, *y;
    size_t n, m;
    OK(moe_file_read(a, 1 << 28, &x, &n));
    OK(moe_file_read(b, 1 << 28, &y, &m));
    ck_assert_msg(n == m && !memcmp(x, y, n), "%s and %s differ", a, b);
    free(x);
    free(y);
}

/* ---- layouts ---- */

/* Saved at layout _i: loads at every layout, exports to the same bytes, verifies without a plan. */
START_TEST(test_layouts) {
    SliceRanks a = ranks_of(_i);
    OK(save(&a, 4 + _i));
    char *dir = strdup(moe_test_path("run/checkpoints")), name[64], path[900];
    snprintf(name, sizeof name, "step-%d", 4 + _i);
    snprintf(path, sizeof path, "%s/%s", dir, name);
    if (a.n == 1)
        ck_assert(files_in(path) == 3 && moe_path_exists(in_run("step-4/model.safetensors")));
    for (int b = 0; b < N_LAYOUTS; b++) {
        SliceRanks r = ranks_of(b);
        Call c = {.plan = r.plan, .dir = path};
        OK(slice_ranks_run(&r, load_rank, &c, NULL));
        ck_assert_msg(slice_holds(&r, 4 + _i), "layout %d at layout %d", _i, b);
        for (int q = 0; q < r.n; q++)
            ck_assert(c.states[q].step == 4 + _i && c.states[q].tokens == 32 * (4 + _i));
        /* Weights alone: the states stay. */
        slice_fill(&r, 2);
        c.weights_only = true;
        OK(slice_ranks_run(&r, load_rank, &c, NULL));
        SliceFill f = {.step = 4 + _i, .check = true, .weights = true};
        for (int q = 0; q < r.n; q++)
            slice_fill_rank(&f, r.plan, r.x[q]);
        ck_assert(f.wrong == 0 && !slice_holds(&r, 4 + _i));
        slice_ranks_free(&r);
    }
    json_t *manifest;
    OK(moe_checkpoint_verify(path, &manifest));
    ck_assert_int_eq(json_integer_value(json_object_get(manifest, "ranks")), a.n);
    const json_t *maps = json_object_get(manifest, "maps");
    ck_assert_int_eq(json_array_size(maps), 2);
    for (size_t k = 0; k < 2; k++) {
        const json_t *primary = json_object_get(json_array_get(maps, k), "primary");
        for (size_t e = 0; e < EXPERTS; e++)
            ck_assert_int_eq(json_integer_value(json_array_get(primary, e)),
                             moe_exec_place(a.x[0], k)[e]);
    }
    json_decref(manifest);
    /* Against the one rank's, filled with the same. */
    SliceRanks one = ranks_of(0);
    slice_fill(&one, 4 + _i);
    for (int bf16 = 0; bf16 < 2; bf16++)
        for (int shards = 0; shards < 2; shards++) {
            MoeExportOptions o = {.bf16 = bf16, .max_shard_bytes = shards ? 40000 : 0};
            char *want = strdup(moe_test_path("want")), *have = strdup(moe_test_path("have"));
            OK(moe_export_model(one.plan, one.x[0], want, &o));
            OK(moe_export_checkpoint(path, have, &o));
            char **names;
            size_t n;
            OK(moe_dir_list(want, &names, &n));
            ck_assert_int_eq(files_in(have), n);
            for (size_t i = 0; i < n; i++) {
                char *x = moe_path_join(want, names[i]), *y = moe_path_join(have, names[i]);
                same_file(x, y);
                free(x);
                free(y);
            }
            moe_dir_list_free(names, n);
            OK(moe_dir_remove(want));
            OK(moe_dir_remove(have));
            free(want);
            free(have);
        }
    slice_ranks_free(&one);
    slice_ranks_free(&a);
    free(dir);
}
END_TEST

static MoeStatus init_rank(void *ctx, int rank, MoeExec *x) {
    (void)rank;
    return moe_init_params(ctx, x, 77);
}

static MoeStatus weights_rank(void *ctx, int rank, MoeExec *x) {
    const Call *c = ctx;
    (void)rank;
    return moe_weights_load(c->plan, x, c->dir);
}

/* This rank's weights are the elements of the one rank's buffers. */
static void same_weights(SliceRanks *r, SliceRanks *one) {
    MoeWeightList whole;
    OK(moe_weight_list(one->plan, one->x[0], &whole));
    for (int q = 0; q < r->n; q++) {
        MoeWeightList list;
        OK(moe_weight_list(r->plan, r->x[q], &list));
        for (size_t i = 0; i < list.n; i++) {
            const MoeWeight *w = &list.items[i], *v = &whole.items[i];
            const float *have = moe_exec_buffer(r->x[q], slice_buffer(r->plan, w, 0)),
                        *want = (float *)moe_exec_buffer(one->x[0], slice_buffer(one->plan, v, 0)) +
                                v->piece.offset;
            MoeRun run_;
            for (int64_t at = 0; moe_piece_run(&w->piece, at, &run_); at = run_.first + run_.n)
                ck_assert_msg(!memcmp(have + run_.at, want + run_.first, (size_t)run_.n * 4),
                              "rank %d: %s", q, w->name);
        }
        moe_weight_list_free(&list);
    }
    moe_weight_list_free(&whole);
}

/* Seeded weights, and weights from a Hugging Face directory, are the same at every layout. */
START_TEST(test_init_and_import) {
    SliceRanks one = ranks_of(0), r = ranks_of(_i);
    OK(slice_ranks_run(&one, init_rank, one.plan, NULL));
    OK(slice_ranks_run(&r, init_rank, r.plan, NULL));
    same_weights(&r, &one);
    for (int bf16 = 0; bf16 < 2; bf16++) {
        MoeExportOptions o = {.bf16 = bf16, .max_shard_bytes = 40000};
        Call c = {.dir = moe_test_path("hf")};
        OK(moe_export_model(one.plan, one.x[0], c.dir, &o));
        slice_wipe(&r);
        c.plan = r.plan;
        OK(slice_ranks_run(&r, weights_rank, &c, NULL));
        if (bf16) {
            c.plan = one.plan;
            OK(slice_ranks_run(&one, weights_rank, &c, NULL));
        }
        same_weights(&r, &one);
    }
    /* Every rank names what is wrong, and its buffers are as they were. */
    slice_fill(&r, 3);
    Call c = {.plan = r.plan, .dir = moe_test_path("absent")};
    MoeStatus all[64];
    slice_ranks_run(&r, weights_rank, &c, all);
    for (int q = 0; q < r.n; q++)
        FAILS(all[q], MOE_E_IO, "absent");
    ck_assert(slice_holds(&r, 3));
    slice_ranks_free(&r);
    slice_ranks_free(&one);
}
END_TEST

/* Files of several blocks: a tensor of 3.2 million elements, cut at blocks of 4096 and read across. */
START_TEST(test_many_blocks) {
    static const SliceParam big[] = {{"big.weight", -1, 2, {1000, 3201}},
                                     {"small.weight", -1, 1, {5}}};
    MoeMesh two = MESH(1, 2, 1, 1, 2), four = MESH(1, 4, 1, 1, 4);
    SliceRanks a = slice_ranks(slice_plan(&two, 1, 0, big, 2)),
               b = slice_ranks(slice_plan(&four, 1, 0, big, 2));
    OK(save(&a, 1));
    OK(save(&a, 2));
    ck_assert_int_eq(newest(&b), 2);
    char *data;
    const char *path = in_run("step-2/optimizer-rank-1.safetensors");
    size_t n;
    OK(moe_file_read(path, 1 << 28, &data, &n));
    ck_assert(n > 3 * MOE_BLOCK_BYTES);
    data[2 * MOE_BLOCK_BYTES + 12345] ^= 2; /* in a block that some of the ranks need */
    FILE *f = fopen(path, "wb");
    ck_assert(f && fwrite(data, 1, n, f) == n && !fclose(f));
    free(data);
    FAILS(moe_checkpoint_verify(in_run("step-2"), NULL), MOE_E_CORRUPT,
          "optimizer-rank-1.safetensors", "bytes 8388608 to 12582912");
    freopen("/dev/null", "w", stderr);
    ck_assert_int_eq(newest(&b), 1);
    ck_assert_int_eq(newest(&a), 1);
    slice_ranks_free(&a);
    slice_ranks_free(&b);
}
END_TEST

/* ---- version 1 ---- */

/* Turns the one rank's checkpoint into what version 1 wrote. */
static void make_version_1(const char *dir) {
    char *path = moe_path_join(dir, "manifest.json");
    json_t *m, *files, *census = json_array();
    OK(moe_json_load_file(path, 1 << 24, &m));
    files = json_object_get(m, "files");
    for (size_t i = 0; i < json_array_size(files); i++) {
        json_t *e = json_array_get(files, i);
        char hash[33], *data,
            *file = moe_path_join(dir, json_string_value(json_object_get(e, "name")));
        size_t n;
        MoeSafetensors *s;
        OK(moe_file_read(file, 1 << 28, &data, &n));
        moe_hash_hex(data, n, hash);
        json_object_del(e, "blocks");
        json_object_del(e, "group");
        json_object_set_new(e, "xxh3", json_string(hash));
        OK(moe_st_open(file, &s));
        for (size_t k = 0; k < moe_st_count(s); k++) {
            const MoeStTensor *t = moe_st_at(s, k);
            moe_hash_hex(t->data, t->n_bytes, hash);
            json_array_append_new(census,
                                  json_pack("{s:s, s:i, s:I, s:s}", "name", t->name, "file", (int)i,
                                            "elements", (json_int_t)t->elements, "xxh3", hash));
        }
        moe_st_close(s);
        free(data);
        free(file);
    }
    static const char *const newer[] = {"ranks", "mesh", "slots", "place", "block_bytes", "census"};
    for (int i = 0; i < 6; i++)
        json_object_del(m, newer[i]);
    json_object_set_new(m, "census", census);
    json_object_set_new(m, "format_version", json_integer(1));
    MoeStr text = {0};
    char hash[33];
    json_object_del(m, "manifest_xxh3");
    moe_json_dump(m, &text);
    moe_hash_hex(text.data, text.len, hash);
    json_object_set_new(m, "manifest_xxh3", json_string(hash));
    moe_str_clear(&text);
    moe_json_dump(m, &text);
    OK(moe_file_write_atomic(path, text.data, text.len));
    moe_str_free(&text);
    json_decref(m);
    free(path);
}

static void flip(const char *path, int64_t at) {
    char *data;
    size_t n;
    OK(moe_file_read(path, 1 << 28, &data, &n));
    data[at < 0 ? (int64_t)n + at : at] ^= 4;
    FILE *f = fopen(path, "wb");
    ck_assert(f && fwrite(data, 1, n, f) == n && !fclose(f));
    free(data);
}

START_TEST(test_version_1) {
    SliceRanks one = ranks_of(0), four = ranks_of(5);
    OK(save(&one, 6));
    OK(save(&one, 7));
    make_version_1(in_run("step-6"));
    make_version_1(in_run("step-7"));
    ck_assert_int_eq(newest(&one), 7);
    ck_assert_int_eq(newest(&four), 7);
    MoeExportOptions o = {0};
    OK(moe_export_checkpoint(in_run("step-7"), moe_test_path("have"), &o));
    slice_fill(&one, 7);
    OK(moe_export_model(one.plan, one.x[0], moe_test_path("want"), &o));
    same_file(moe_test_path("have/model.safetensors"), moe_test_path("want/model.safetensors"));
    freopen("/dev/null", "w", stderr);
    flip(in_run("step-7/optimizer.safetensors"), -5000);
    FAILS(moe_checkpoint_verify(in_run("step-7"), NULL), MOE_E_CORRUPT,
          "step-7/optimizer.safetensors", "XXH3");
    ck_assert_int_eq(newest(&four), 6);
    ck_assert_int_eq(newest(&one), 6);
    flip(in_run("step-6/model.safetensors"), 40); /* in the header */
    FAILS(moe_checkpoint_verify(in_run("step-6"), NULL), MOE_E_CORRUPT, "step-6/model.safetensors");
    slice_ranks_free(&one);
    slice_ranks_free(&four);
}
END_TEST

/* ---- damage ---- */

/* Every rank refuses step-2, naming it and `word`; together they fall back to step-1. */
static void found_damage(SliceRanks *r, const char *word) {
    Call c = {.plan = r->plan, .dir = in_run("step-2")};
    MoeStatus all[64];
    char dir[600];
    snprintf(dir, sizeof dir, "%s", c.dir);
    c.dir = dir;
    FAILS(moe_checkpoint_verify(dir, NULL), MOE_E_CORRUPT, "step-2", word);
    slice_ranks_run(r, load_rank, &c, all);
    for (int q = 0; q < r->n; q++)
        FAILS(all[q], MOE_E_CORRUPT, "step-2", word);
    ck_assert_int_eq(newest(r), 1);
}

static void put_back(SliceRanks *r) {
    OK(moe_dir_remove(in_run("step-2")));
    OK(save(r, 2));
}

START_TEST(test_damage) {
    SliceRanks r = ranks_of(5); /* 4 ranks, all of which write */
    OK(save(&r, 1));
    OK(save(&r, 2));
    ck_assert_int_eq(files_in(in_run("step-2")), 9);
    freopen("/dev/null", "w", stderr); /* a warning each */
    for (int q = 0; q < r.n; q++)
        for (int g = 0; g < 2; g++) {
            char name[64], path[100];
            snprintf(name, sizeof name, "%s-rank-%d.safetensors", g ? "optimizer" : "model", q);
            snprintf(path, sizeof path, "step-2/%s", name);
            for (int64_t at = 0; at < 3; at++) {
                int64_t place = at == 0 ? 30 : at == 1 ? -1 : -40000;
                flip(in_run(path), place);
                found_damage(&r, name);
                flip(in_run(path), place);
            }
            ck_assert(!truncate(in_run(path), 1000 * q));
            found_damage(&r, name);
            unlink(in_run(path));
            found_damage(&r, name);
            put_back(&r);
        }
    /* Two ranks' files change names; one is another step's. */
    ck_assert(!rename(in_run("step-2/model-rank-1.safetensors"), in_run("step-2/x")));
    ck_assert(!rename(in_run("step-2/model-rank-2.safetensors"),
                      in_run("step-2/model-rank-1.safetensors")));
    ck_assert(!rename(in_run("step-2/x"), in_run("step-2/model-rank-2.safetensors")));
    found_damage(&r, "model-rank-1.safetensors");
    put_back(&r);
    unlink(in_run("step-2/optimizer-rank-3.safetensors"));
    ck_assert(!link(in_run("step-1/optimizer-rank-3.safetensors"),
                    in_run("step-2/optimizer-rank-3.safetensors")));
    found_damage(&r, "optimizer-rank-3.safetensors");
    put_back(&r);
    ck_assert_int_eq(newest(&r), 2);
    /* None intact: an error on every rank. */
    flip(in_run("step-2/manifest.json"), 200);
    flip(in_run("step-1/model-rank-3.safetensors"), -1);
    Call c = {.plan = r.plan, .dir = run};
    MoeStatus all[64];
    slice_ranks_run(&r, newest_rank, &c, all);
    for (int q = 0; q < r.n; q++)
        FAILS(all[q], MOE_E_CORRUPT, "none of its 2 checkpoints");
    slice_ranks_free(&r);
}
END_TEST

/* ---- lies: manifests and files that go together, with the right hashes, but are wrong ---- */

static json_t *manifest_of(const char *dir) {
    char *path = moe_path_join(dir, "manifest.json");
    json_t *m;
    OK(moe_json_load_file(path, 1 << 24, &m));
    free(path);
    return m;
}

static void seal(const char *dir, json_t *m) {
    char *path = moe_path_join(dir, "manifest.json"), hash[33];
    MoeStr text = {0};
    json_object_del(m, "manifest_xxh3");
    moe_json_dump(m, &text);
    moe_hash_hex(text.data, text.len, hash);
    json_object_set_new(m, "manifest_xxh3", json_string(hash));
    moe_str_clear(&text);
    moe_json_dump(m, &text);
    OK(moe_file_write_atomic(path, text.data, text.len));
    moe_str_free(&text);
    json_decref(m);
    free(path);
}

static json_t *file_entry(json_t *m, const char *name) {
    size_t i;
    json_t *e;
    json_array_foreach(json_object_get(m, "files"), i, e) {
        if (!strcmp(json_string_value(json_object_get(e, "name")), name))
            return e;
    }
    ck_abort_msg("no file %s", name);
    return NULL;
}

/* Replaces text in a file's header (of the same length), or puts bytes at its end's -offset; then makes the manifest go
 * with it. */
static void forge(const char *dir, const char *name, const char *from, const char *to,
                  int64_t value_at) {
    char *path = moe_path_join(dir, name), *data;
    size_t n;
    json_t *m = manifest_of(dir), *e = file_entry(m, name);
    OK(moe_file_read(path, 1 << 28, &data, &n));
    if (from) {
        char *at = memmem(data, n, from, strlen(from));
        ck_assert_msg(at && strlen(from) == strlen(to), "%s is not in %s", from, name);
        memcpy(at, to, strlen(to));
    } else {
        data[(int64_t)n - value_at] ^= 1;
    }
    MoeBlockHasher *h;
    MoeBlockHashes hashes;
    MoeStr hex = {0};
    OK(moe_block_hasher_create(MOE_BLOCK_BYTES, &h));
    OK(moe_block_hasher_add(h, data, n));
    moe_block_hasher_end(h, &hashes);
    for (size_t i = 0; i < hashes.n; i++)
        moe_str_printf(&hex, "%016llx", (unsigned long long)hashes.hashes[i]);
    json_object_set_new(e, "blocks", json_string(moe_str_c(&hex)));
    FILE *f = fopen(path, "wb");
    ck_assert(f && fwrite(data, 1, n, f) == n && !fclose(f));
    seal(dir, m);
    moe_block_hashes_free(&hashes);
    moe_str_free(&hex);
    free(data);
    free(path);
}

START_TEST(test_lies) {
    SliceRanks r = ranks_of(5); /* dp 1, shard 2, ep 2: dense tensors in 4 parts */
    const char *embed = "model.embed_tokens.weight";
    OK(save(&r, 1));
    OK(save(&r, 2));
    freopen("/dev/null", "w", stderr);
    char *dir = strdup(in_run("step-2"));
    /* 96*131 elements are 4 blocks: rank 1 has the second. */
    forge(dir, "model-rank-1.safetensors", "embed_tokens.weight@4096", "embed_tokens.weight@4095",
          0); /* overlap and hole */
    found_damage(&r, embed);
    put_back(&r);
    forge(dir, "model-rank-1.safetensors", "embed_tokens.weight@4096", "embed_tokens.weight@8192",
          0); /* twice, and missing */
    found_damage(&r, embed);
    put_back(&r);
    forge(dir, "model-rank-1.safetensors", "embed_tokens.weight@4096", "embed_tokens.weight@9999",
          0); /* past the end */
    found_damage(&r, "model-rank-1.safetensors");
    put_back(&r);
    forge(dir, "model-rank-1.safetensors", "embed_tokens.weight@4096", "embed_token5.weight@4096",
          0); /* unknown */
    found_damage(&r, "not in the census");
    put_back(&r);
    forge(dir, "optimizer-rank-0.safetensors", "weight.exp_avg@", "weight.exp_avg:", 0);
    found_damage(&r, "optimizer-rank-0.safetensors");
    put_back(&r);
    /* The manifest: a file less, a file twice, other dims, a tensor less, one more. */
    for (int lie = 0; lie < 6; lie++) {
        json_t *m = manifest_of(dir), *files = json_object_get(m, "files"),
               *census = json_object_get(m, "census");
        json_t *e = json_array_get(census, 0);
        if (lie == 0)
            json_array_remove(files, 2);
        else if (lie == 1)
            json_array_append(files, json_array_get(files, 2));
        else if (lie == 2)
            json_array_set_new(json_object_get(e, "dims"), 0, json_integer(97));
        else if (lie == 3)
            json_array_remove(census, 0);
        else if (lie == 4)
            json_array_insert_new(census, 0,
                                  json_pack("{s:s, s:i, s:[i], s:s}", "name", "model.a.weight",
                                            "file", 0, "dims", 3, "sum", "0000000000000000"));
        else
            json_object_set_new(file_entry(m, "model-rank-1.safetensors"), "group",
                                json_string("optimizer"));
        seal(dir, m);
        found_damage(&r, lie == 0 || lie == 1 ? "make up the tensor" : "step-2");
        put_back(&r);
    }
    /* Right in every way but the value: the census of memory sees it on all ranks; a sum that lies is the same. */
    for (int lie = 0; lie < 2; lie++) {
        if (lie == 0) {
            forge(dir, "optimizer-rank-2.safetensors", NULL, NULL, 2);
        } else {
            json_t *m = manifest_of(dir);
            json_object_set_new(json_array_get(json_object_get(m, "census"), 3), "sum",
                                json_string("0123456789abcdef"));
            seal(dir, m);
        }
        Call c = {.plan = r.plan, .dir = dir};
        MoeStatus all[64];
        slice_ranks_run(&r, load_rank, &c, all);
        for (int q = 0; q < r.n; q++)
            FAILS(all[q], MOE_E_CORRUPT, "step-2", "in memory is not what was saved");
        ck_assert_int_eq(newest(&r), 1);
        put_back(&r);
    }
    free(dir);
    slice_ranks_free(&r);
}
END_TEST

/* ---- faults ---- */

/* A limit that only the larger files of some ranks hit: all ranks fail together, naming one, and go on. */
START_TEST(test_full_for_some) {
    SliceRanks r = ranks_of(3); /* ep 2: rank 0 has all that is dense, and more experts */
    OK(save(&r, 1));
    signal(SIGXFSZ, SIG_IGN);
    int failed = 0;
    rlim_t sizes[] = {100, 3000, 90000, 200000, 330000, 500000, 700000, 0};
    for (int i = 0; sizes[i]; i++) {
        struct rlimit old, now;
        getrlimit(RLIMIT_FSIZE, &old);
        now = old;
        now.rlim_cur = sizes[i];
        setrlimit(RLIMIT_FSIZE, &now);
        Call c = {.plan = r.plan, .dir = run, .step = 2};
        MoeStatus all[64];
        slice_fill(&r, 2);
        slice_ranks_run(&r, save_rank, &c, all);
        setrlimit(RLIMIT_FSIZE, &old);
        failed += all[0] != NULL;
        for (int q = 0; q < r.n; q++) {
            ck_assert(!all[q] == !all[0]);
            if (all[q])
                FAILS(all[q], MOE_E_IO, "checkpoint of step 2", "rank-");
        }
        ck_assert_int_eq(files_in(in_run("")), all[0] ? 1 : 2); /* nothing half written stays */
        ck_assert_int_eq(newest(&r), all[0] ? 1 : 2);
    }
    ck_assert(failed >= 5);
    OK(save(&r, 2));
    OK(save(&r, 2)); /* again over itself */
    ck_assert_int_eq(newest(&r), 2);
    ck_assert_int_eq(files_in(in_run("")), 2);
    slice_ranks_free(&r);
}
END_TEST

/* Runs `program --save RUN STEP LAYOUT` under strace with the injection, into calls on that file alone unless it is NULL;
 * returns its wait status. */
static int run_traced(const char *inject, const char *file, int step, int layout) {
    char number[32], mesh[32];
    snprintf(number, sizeof number, "%d", step);
    snprintf(mesh, sizeof mesh, "%d", layout);
    pid_t pid = fork();
    if (pid == 0) {
        freopen("/dev/null", "w", stderr);
        freopen("/dev/null", "w", stdout);
        setenv("ASAN_OPTIONS", "detect_leaks=0", 1);
        const char *argv[20] = {"strace", "-qq", "-f", "-o", "/dev/null", "-e", inject},
                   *rest[] = {program, "--save", run, number, mesh};
        int n = 7;
        if (file) {
            argv[n++] = "-P";
            argv[n++] = file;
        }
        for (int i = 0; i < 5; i++)
            argv[n++] = rest[i];
        execvp("strace", (char *const *)(uintptr_t)argv);
        _exit(99);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    return status;
}

static bool have_strace(void) {
    int status = system("strace -f -o /dev/null true >/dev/null 2>&1");
    if (status)
        fprintf(stderr, "strace cannot be used here: the tests that inject faults into system "
                        "calls are left out\n");
    return !status;
}

/* The process (all its ranks) killed as any rank enters its n-th call of each kind: the old or the new one, whole. */
START_TEST(test_kill_everywhere) {
    static const char *const calls[] = {
        "mkdir", "openat", "write", "fsync", "rename,renameat2", "unlinkat,rmdir", "close"};
    int kills = 0, kept_old = 0, got_new = 0;
    if (!have_strace())
        return;
    SliceRanks r = ranks_of(3);
    for (size_t c = 0; c < sizeof calls / sizeof *calls; c++)
        for (int n = 1;; n += n < 12 ? 1 : 4) {
            char inject[200];
            ck_assert_int_lt(n, 1000);
            OK(moe_dir_remove(run));
            OK(save(&r, 1));
            snprintf(inject, sizeof inject, "inject=%s:signal=SIGKILL:when=%d", calls[c], n);
            int status = run_traced(inject, NULL, 2, 3);
            ck_assert(!(WIFEXITED(status) && WEXITSTATUS(status) == 99));
            if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
                break;
            kills++;
            int64_t step = newest(&r);
            ck_assert_msg(step == 1 || step == 2, "%s: step %lld", inject, (long long)step);
            kept_old += step == 1;
            got_new += step == 2;
            moe_checkpoint_clean(run);
            OK(save(&r, 3));
            ck_assert_int_eq(newest(&r), 3);
        }
    ck_assert_int_gt(kills, 20);
    ck_assert_int_gt(kept_old, 10);
    ck_assert_int_gt(got_new, 0);
    slice_ranks_free(&r);
}
END_TEST

/* What was written cannot be read again, any block of any file or the manifest: the save fails on all ranks, the one
 * before is put back, also under the same name. */
START_TEST(test_read_back) {
    static const char *const files[] = {"manifest.json", "model-rank-0.safetensors",
                                        "model-rank-1.safetensors", "optimizer-rank-0.safetensors",
                                        "optimizer-rank-1.safetensors"};
    if (!have_strace())
        return;
    SliceRanks r = ranks_of(3);
    for (int same = 0; same < 2; same++) {
        OK(moe_dir_remove(run));
        OK(save(&r, 1));
        for (int i = 0; i < 5; i++) {
            char path[900];
            snprintf(path, sizeof path, "%s/checkpoints/step-%d/%s", run, same ? 1 : 2, files[i]);
            /* The manifest is read, the others are read at places. */
            int status = run_traced(i ? "inject=pread64:error=EIO" : "inject=read:error=EIO", path,
                                    same ? 1 : 2, 3);
            ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 1, "%s: %x", files[i],
                          status);
            ck_assert_int_eq(files_in(in_run("")), 1);
            ck_assert_int_eq(newest(&r), 1);
        }
    }
    slice_ranks_free(&r);
}
END_TEST

int main(int argc, char **argv) {
    program = argv[0];
    if (argc == 5 && !strcmp(argv[1], "--save")) {
        SliceRanks r = ranks_of(atoi(argv[4]));
        snprintf(run, sizeof run, "%s", argv[2]);
        MoeStatus st = save(&r, atoi(argv[3]));
        return st ? 1 : 0;
    }
    Suite *s = suite_create("checkpoint_ranks");
    TCase *t = tcase_create("checkpoint_ranks");
    tcase_set_timeout(t, 300);
    tcase_add_checked_fixture(t, setup, NULL);
    tcase_add_loop_test(t, test_layouts, 0, N_LAYOUTS);
    tcase_add_loop_test(t, test_init_and_import, 0, N_LAYOUTS);
    tcase_add_test(t, test_many_blocks);
    tcase_add_test(t, test_version_1);
    tcase_add_test(t, test_damage);
    tcase_add_test(t, test_lies);
    tcase_add_test(t, test_full_for_some);
    tcase_add_test(t, test_kill_everywhere);
    tcase_add_test(t, test_read_back);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
