/* The reductions of the CPU and CUDA targets are the trees of docs/NUMBERS.md, bit by bit: col_sum,
 * sum_squares and embedding_grad against plain C in f32, on every instruction set that runs here and on the simulated GPU.
 */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "ir/numbers.h"
#include "tests/support/check_main.h"
#include "tests/support/gpu.h"
#include "tests/support/group_run.h"
#include "tests/support/status_checks.h"

static const char *const targets[] = {"cpu", "cpu:x86-64-v3", "cpu:x86-64", "cuda:sm_80"};
#define N_TARGETS ((int)(sizeof targets / sizeof targets[0]))

/* The tree over n items of `width` floats, absent where present[i] is false; returns whether any
 * was there. */
static bool tree(const float *items, const bool *present, int64_t n, int64_t width, float *out) {
    if (n == 1) {
        memcpy(out, items, (size_t)width * 4);
        return present[0];
    }
    int64_t half = 1;
    while (half * 2 < n)
        half *= 2;
    float *right = malloc((size_t)width * 4);
    bool a = tree(items, present, half, width, out),
         b = tree(items + half * width, present + half, n - half, width, right);
    for (int64_t i = 0; i < width && b; i++)
        out[i] = a ? out[i] + right[i] : right[i];
    free(right);
    return a || b;
}

static void col_sum_reference(const float *x, const int32_t *seg, int64_t groups, int64_t shards,
                              int64_t cols, float *out) {
    float *by_group = calloc((size_t)(groups * cols), 4),
          *by_shard = calloc((size_t)(shards * cols), 4);
    bool *group_there = calloc((size_t)groups, 1), *shard_there = calloc((size_t)shards, 1);
    for (int64_t g = 0; g < groups; g++) {
        for (int64_t v = 0; v < shards; v++) {
            int64_t lo = seg[g * shards + v], hi = seg[g * shards + v + 1],
                    leaves = (hi - lo + MOE_LEAF_ROWS - 1) / MOE_LEAF_ROWS;
            float *sums = calloc((size_t)((leaves + 1) * cols), 4);
            bool *there = malloc((size_t)leaves + 1);
            memset(there, 1, (size_t)leaves + 1);
            for (int64_t r = lo; r < hi; r++)
                for (int64_t c = 0; c < cols; c++)
                    sums[(r - lo) / MOE_LEAF_ROWS * cols + c] += x[r * cols + c];
            shard_there[v] = leaves > 0 && tree(sums, there, leaves, cols, by_shard + v * cols);
            free(sums);
            free(there);
        }
        group_there[g] = tree(by_shard, shard_there, shards, cols, by_group + g * cols);
    }
    if (!tree(by_group, group_there, groups, cols, out))
        memset(out, 0, (size_t)cols * 4);
    free(by_group);
    free(by_shard);
    free(group_there);
    free(shard_there);
}

static void run_one(const char *target, const MoeGraph *g, const MoeInputs *in, const MoeValue *v,
                    void *out, size_t bytes) {
    MoeGroupRun *r;
    OK(moe_group_run_create(g, &(MoeGroupRunOptions){.target = target}, &r));
    OK(moe_group_run(r, in));
    memcpy(out, moe_group_run_data(r, v), bytes);
    moe_group_run_destroy(r);
}

static void check_col_sum(const char *target, int64_t groups, int64_t shards, int64_t rows,
                          int64_t cols, uint64_t seed) {
    MoeModule *m = moe_module_create();
    MoeGraph *g = moe_module_add_graph(m, "tree");
    MoeValue *seg = moe_build_input(g, "seg", moe_type_segs(groups, shards));
    MoeValue *x =
        moe_build_input(g, "x", moe_type_2d(MOE_F32, moe_dim_ragged(rows + 5, seg), cols));
    MoeValue *y = moe_build1(g, MOE_OP_COL_SUM, x);
    moe_build_output(g, "y", y);
    MoeInputs in;
    OK(moe_random_inputs(
        g, &(MoeRandomOptions){.seed = seed, .rows = rows, .shards = MOE_SHARDS_RANDOM}, m->arena,
        &in));
    float *data = MOE_NEW_N(m->arena, float, (rows + 5) * cols),
          *want = MOE_NEW_N(m->arena, float, cols), *got = MOE_NEW_N(m->arena, float, cols);
    moe_tensor_pack(moe_inputs_find(&in, "x"), data);
    col_sum_reference(data, moe_inputs_find(&in, "seg")->i, groups, shards, cols, want);
    run_one(target, g, &in, y, got, (size_t)cols * 4);
    ck_assert_msg(memcmp(want, got, (size_t)cols * 4) == 0,
                  "%s: col_sum over segs<%lld,%lld>, %lld rows: not the tree's bits", target,
                  (long long)groups, (long long)shards, (long long)rows);
    moe_module_destroy(m);
}

START_TEST(column_sums_are_the_tree) {
    if (!moe_test_runs(targets[_i]))
        return;
    static const int64_t shapes[][4] = {{1, 8, 3000, 33}, {1, 8, 5, 1},    {5, 8, 2000, 7},
                                        {3, 1, 900, 16},  {1, 1, 129, 40}, {1, 64, 4000, 5},
                                        {8, 4, 0, 9}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        check_col_sum(targets[_i], shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3], 40 + i);
}
END_TEST

static float sum_squares_reference(const float *x, int64_t slices, int64_t n, int lanes, bool fma) {
    int64_t blocks = (n + MOE_NORM_BLOCK - 1) / MOE_NORM_BLOCK;
    float *by_slice = calloc((size_t)slices, 4), *by_block = calloc((size_t)blocks, 4), root = 0;
    bool *there = malloc((size_t)(slices + blocks));
    memset(there, 1, (size_t)(slices + blocks));
    for (int64_t s = 0; s < slices; s++) {
        for (int64_t b = 0; b < blocks; b++) {
            float lane[128] = {0};
            for (int64_t i = b * MOE_NORM_BLOCK; i < n && i < (b + 1) * MOE_NORM_BLOCK; i++) {
                float v = x[s * n + i], *sum = &lane[(i - b * MOE_NORM_BLOCK) % lanes];
                *sum = fma ? fmaf(v, v, *sum) : *sum + v * v;
            }
            for (int half = lanes / 2; half > 0; half /= 2)
                for (int i = 0; i < half; i++)
                    lane[i] += lane[i + half];
            by_block[b] = lane[0];
        }
        tree(by_block, there, blocks, 1, &by_slice[s]);
    }
    tree(by_slice, there, slices, 1, &root);
    free(by_slice);
    free(by_block);
    free(there);
    return root;
}

START_TEST(sums_of_squares_are_the_tree) {
    if (!moe_test_runs(targets[_i]))
        return;
    static const int64_t shapes[][3] = {
        {1, 1, 3}, {1, 1, 4097}, {3, 70, 91}, {5, 64, 256}, {1, 300, 200}};
    static const int lanes_of[N_TARGETS] = {0, 8, 4, 128}; /* 0: the width is this machine's */
    const int lanes = lanes_of[_i];
    for (size_t k = 0; k < sizeof shapes / sizeof *shapes; k++) {
        int64_t a = shapes[k][0], b = shapes[k][1], c = shapes[k][2], n = a * b * c;
        MoeModule *m = moe_module_create();
        MoeGraph *g = moe_module_add_graph(m, "norm");
        MoeValue *x = moe_build_input(
            g, "x", a > 1 ? moe_type_3d(MOE_F32, a, b, c) : moe_type_2d(MOE_F32, moe_dim(b), c));
        MoeValue *y = moe_build1(g, MOE_OP_SUM_SQUARES, x);
        moe_build_output(g, "y", y);
        MoeInputs in;
        OK(moe_random_inputs(g, &(MoeRandomOptions){.seed = k, .rows = -1}, m->arena, &in));
        float *data = MOE_NEW_N(m->arena, float, n), got;
        moe_tensor_pack(moe_inputs_find(&in, "x"), data);
        run_one(targets[_i], g, &in, y, &got, 4);
        bool ok = false;
        for (int w = 4; w <= 128; w *= 2)
            if (lanes ? w == lanes : w <= 16)
                ok |= got == sum_squares_reference(data, a, b * c, w, _i != 2);
        ck_assert_msg(ok, "%s: sum_squares of %lld x %lld x %lld: not the tree's bits", targets[_i],
                      (long long)a, (long long)b, (long long)c);
        moe_module_destroy(m);
    }
}
END_TEST

static void check_embedding_grad(const char *target, int64_t vocab, int64_t rows, int64_t cols,
                                 uint64_t seed) {
    MoeModule *m = moe_module_create();
    MoeGraph *g = moe_module_add_graph(m, "tokens");
    MoeValue *seg = moe_build_input(g, "tok", moe_type_segs(1, 8));
    MoeDim dim = moe_dim_ragged(rows + 2, seg);
    MoeType ids_type = moe_type_1d(MOE_I32, rows + 2);
    ids_type.dims[0] = dim;
    MoeValue *dy = moe_build_input(g, "dy", moe_type_2d(MOE_F32, dim, cols));
    MoeValue *ids = moe_build_input(g, "ids", ids_type), *in_ops[] = {dy, ids};
    MoeValue *y = moe_build(g, MOE_OP_EMBEDDING_GRAD, in_ops, 2, moe_ai("vocab", vocab), MOE_END);
    moe_build_output(g, "y", y);
    MoeInputs in;
    OK(moe_random_inputs(
        g, &(MoeRandomOptions){.seed = seed, .rows = rows, .shards = MOE_SHARDS_RANDOM}, m->arena,
        &in));
    const int32_t *tok = moe_inputs_find(&in, "tok")->i, *id = moe_inputs_find(&in, "ids")->i;
    float *data = MOE_NEW_N(m->arena, float, (rows + 2) * cols),
          *want = MOE_NEW_N(m->arena, float, vocab *cols);
    float *got = MOE_NEW_N(m->arena, float, vocab *cols),
          *sums = MOE_NEW_N(m->arena, float, 8 * cols);
    moe_tensor_pack(moe_inputs_find(&in, "dy"), data);
    for (int64_t w = 0; w < vocab; w++) {
        bool there[8] = {false};
        memset(sums, 0, (size_t)(8 * cols) * 4);
        for (int v = 0; v < 8; v++)
            for (int64_t t = tok[v]; t < tok[v + 1]; t++)
                for (int64_t c = 0; c < cols && id[t] == w; c++) {
                    sums[v * cols + c] += data[t * cols + c];
                    there[v] = true;
                }
        if (!tree(sums, there, 8, cols, want + w * cols))
            memset(want + w * cols, 0, (size_t)cols * 4);
    }
    run_one(target, g, &in, y, got, (size_t)(vocab * cols) * 4);
    ck_assert_msg(memcmp(want, got, (size_t)(vocab * cols) * 4) == 0,
                  "%s: embedding_grad of %lld tokens: not the tree's bits", target,
                  (long long)rows);
    moe_module_destroy(m);
}

START_TEST(embedding_gradients_are_the_tree) {
    if (!moe_test_runs(targets[_i]))
        return;
    check_embedding_grad(targets[_i], 40, 300, 37, 1);
    check_embedding_grad(targets[_i], 700, 64, 16, 2);
    check_embedding_grad(targets[_i], 3, 1000, 5, 3);
}
END_TEST

Suite *suite(void);
Suite *suite(void) {
    Suite *s = suite_create("row_trees");
    TCase *t = tcase_create("row_trees");
    tcase_set_timeout(t, 300);
    tcase_add_loop_test(t, column_sums_are_the_tree, 0, N_TARGETS);
    tcase_add_loop_test(t, sums_of_squares_are_the_tree, 0, N_TARGETS);
    tcase_add_loop_test(t, embedding_gradients_are_the_tree, 0, N_TARGETS);
    suite_add_tcase(s, t);
    return s;
}

int main(void) {
    return moe_check_main(suite());
}
