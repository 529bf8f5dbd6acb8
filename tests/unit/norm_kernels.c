/* The gradient norm of slices (docs/NUMBERS.md, 6 and 8): block_squares of what each rank holds, put
 * together as the ranks do, then block_tree, has the very bits of sum_squares over the whole tensor,
 * on every instruction set that runs here: for any number of parts, and for experts in any slots. */
#include <check.h>
#include <stdlib.h>
#include <string.h>
#include "base/mesh.h"
#include "base/rng.h"
#include "codegen/codegen.h"
#include "ir/numbers.h"
#include "tests/support/check_main.h"
#include "tests/support/gpu.h"
#include "tests/support/group_run.h"
#include "tests/support/status_checks.h"

static const char *const targets[] = {"cpu", "cpu:x86-64-v4", "cpu:x86-64-v3", "cpu:x86-64",
                                      "cuda:sm_80"};
#define N_TARGETS ((int)(sizeof targets / sizeof targets[0]))
#define LEN(a)    (sizeof(a) / sizeof *(a))

static MoeTensor tensor_of(MoeArena *a, const MoeType *t, const void *data) {
    MoeTensor x = {.dtype = t->dtype, .rank = t->rank, .n = moe_type_elements(t)};
    for (int d = 0; d < t->rank; d++)
        x.dims[d] = t->dims[d].size;
    x.f = t->dtype == MOE_I32 ? NULL : MOE_NEW_N(a, double, x.n);
    x.i = t->dtype == MOE_I32 ? MOE_NEW_N(a, int32_t, x.n) : NULL;
    if (x.n)
        moe_tensor_unpack(data, &x);
    return x;
}

/* One op on data of these types; the floats of its result go to out. place: a second operand, or
 * NULL. */
static void run_op(const char *target, MoeOpcode op, MoeType x, const float *data, int64_t experts,
                   const int32_t *place, float *out) {
    MoeModule *m = moe_module_create();
    MoeGraph *g = moe_module_add_graph(m, "g");
    MoeValue *in[2] = {moe_build_input(g, "x", x)};
    MoeInputData items[2] = {{in[0], tensor_of(m->arena, &x, data)}};
    MoeInputs inputs = {items, 1};
    if (place) {
        MoeType t = moe_type_1d(MOE_I32, experts);
        in[1] = moe_build_input(g, "place", t);
        items[inputs.n++] = (MoeInputData){in[1], tensor_of(m->arena, &t, place)};
    }
    MoeValue *y = moe_op_build(g, op, in, (int)inputs.n, MOE_END)->results[0];
    moe_build_output(g, "y", y);
    MoeGroupRun *r;
    OK(moe_group_run_create(g, &(MoeGroupRunOptions){.target = target}, &r));
    OK(moe_group_run(r, &inputs));
    memcpy(out, moe_group_run_data(r, y), (size_t)moe_type_bytes(&y->type));
    moe_group_run_destroy(r);
    moe_module_destroy(m);
}

static float *random_floats(int64_t n, uint64_t seed) {
    float *x = malloc((size_t)n * 4 + 4);
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)moe_rng_normal(seed, 1, (uint64_t)i);
    return x;
}

static void expect_bits(float got, float want, const char *target, const char *what, int64_t n,
                        int parts) {
    ck_assert_msg(memcmp(&got, &want, 4) == 0,
                  "%s: %s of %lld elements in %d parts: %.9g, but sum_squares is %.9g", target,
                  what, (long long)n, parts, (double)got, (double)want);
}

/* Part `index` of each of `rows` rows of x (n elements each), as a rank's buffer [rows, cap]. */
static float *cut(const float *x, int64_t rows, int64_t n, int parts, int index) {
    MoeSlice s = moe_slice(n, MOE_SLICE_BLOCK, parts, index);
    float *out = calloc((size_t)(rows * s.cap) + 1, 4);
    for (int64_t r = 0; r < rows; r++)
        memcpy(out + r * s.cap, x + r * n + s.first, (size_t)s.count * 4);
    return out;
}

/* Block sums of the parts of each of `rows` rows, gathered as all_gather {unit = 1} does: [rows, B]. */
static float *gather_blocks(const char *target, const float *x, int64_t rows, int64_t n,
                            int parts) {
    int64_t blocks = (n + MOE_NORM_BLOCK - 1) / MOE_NORM_BLOCK;
    int64_t cap = moe_slice(n, MOE_SLICE_BLOCK, parts, 0).cap;
    int64_t per = (cap + MOE_NORM_BLOCK - 1) / MOE_NORM_BLOCK;
    ck_assert_int_eq(per, moe_slice(blocks, 1, parts, 0).cap);
    float *all = calloc((size_t)(rows * blocks) + 1, 4),
          *sums = malloc((size_t)(rows * per) * 4 + 4);
    for (int i = 0; i < parts; i++) {
        MoeSlice s = moe_slice(blocks, 1, parts, i);
        float *mine = cut(x, rows, n, parts, i);
        MoeType t =
            rows == 1 ? moe_type_1d(MOE_F32, cap) : moe_type_2d(MOE_F32, moe_dim(rows), cap);
        run_op(target, MOE_OP_BLOCK_SQUARES, t, mine, 0, NULL, sums);
        for (int64_t r = 0; r < rows; r++)
            memcpy(all + r * blocks + s.first, sums + r * per, (size_t)s.count * 4);
        free(mine);
    }
    free(sums);
    return all;
}

START_TEST(slices_of_a_tensor) {
    static const int64_t sizes[] = {1, 4095, 4096, 4097, 12289, 8 * 4096, 40000, 100003};
    static const int parts[] = {1, 2, 3, 4, 8};
    const char *target = targets[_i];
    if (!moe_test_runs(target))
        return;
    for (size_t i = 0; i < LEN(sizes); i++) {
        int64_t n = sizes[i], blocks = (n + MOE_NORM_BLOCK - 1) / MOE_NORM_BLOCK;
        float *x = random_floats(n, 10 + i), want, got;
        run_op(target, MOE_OP_SUM_SQUARES, moe_type_1d(MOE_F32, n), x, 0, NULL, &want);
        for (size_t p = 0; p < LEN(parts); p++) {
            float *b = gather_blocks(target, x, 1, n, parts[p]);
            run_op(target, MOE_OP_BLOCK_TREE, moe_type_1d(MOE_F32, blocks), b, 0, NULL, &got);
            expect_bits(got, want, target, "the tree", n, parts[p]);
            free(b);
        }
        free(x);
    }
}
END_TEST

/* Experts [E, n, k] in slots of `ranks` ranks, each slot's tensor in parts. Slots without an expert
 * hold something, too: it does not count. */
static void check_experts(const char *target, int experts, int ranks, int parts, int64_t n,
                          int64_t k, uint64_t seed) {
    MoeMesh mesh = moe_mesh_one();
    mesh.ep = ranks;
    int64_t slots = moe_mesh_slots(&mesh, experts), all = ranks * slots, size = n * k;
    int64_t blocks = (size + MOE_NORM_BLOCK - 1) / MOE_NORM_BLOCK;
    float *x = random_floats(experts * size, seed), want, got;
    int32_t *place = malloc((size_t)experts * 4);
    bool *taken = calloc((size_t)all, 1);
    for (int e = 0; e < experts; e++) {
        int64_t at = (int64_t)moe_rng_below(seed, 2, (uint64_t)e, (uint64_t)all);
        while (taken[at])
            at = (at + 1) % all;
        taken[at] = true;
        place[e] = (int32_t)at;
    }
    float *placed = random_floats(all * size, seed + 1);
    for (int e = 0; e < experts; e++)
        memcpy(placed + place[e] * size, x + e * size, (size_t)size * 4);
    float *b = malloc((size_t)(all * blocks) * 4);
    for (int r = 0; r < ranks; r++) { /* all_gather_rows over the ranks */
        float *mine = gather_blocks(target, placed + r * slots * size, slots, size, parts);
        memcpy(b + r * slots * blocks, mine, (size_t)(slots * blocks) * 4);
        free(mine);
    }
    run_op(target, MOE_OP_SUM_SQUARES, moe_type_3d(MOE_F32, experts, n, k), x, 0, NULL, &want);
    run_op(target, MOE_OP_BLOCK_TREE, moe_type_2d(MOE_F32, moe_dim(all), blocks), b, experts, place,
           &got);
    expect_bits(got, want, target, "the tree through place", experts * size, parts);
    free(x);
    free(placed);
    free(place);
    free(taken);
    free(b);
}

START_TEST(slices_of_experts) {
    static const struct {
        int experts, ranks, parts;
        int64_t n, k;
    } cases[] = {{5, 2, 2, 130, 97}, {8, 4, 3, 64, 128}, {3, 3, 4, 40, 300},
                 {6, 4, 8, 7, 1171}, {7, 1, 1, 33, 400}, {2, 5, 1, 3, 5}};
    if (moe_test_runs(targets[_i]))
        for (size_t i = 0; i < LEN(cases); i++)
            check_experts(targets[_i], cases[i].experts, cases[i].ranks, cases[i].parts, cases[i].n,
                          cases[i].k, 20 + i);
}
END_TEST

int main(void) {
    Suite *s = suite_create("norm_kernels");
    TCase *tc = tcase_create("norm_kernels");
    tcase_set_timeout(tc, 300);
    tcase_add_loop_test(tc, slices_of_a_tensor, 0, N_TARGETS);
    tcase_add_loop_test(tc, slices_of_experts, 0, N_TARGETS);
    suite_add_tcase(s, tc);
    return moe_check_main(s);
}
