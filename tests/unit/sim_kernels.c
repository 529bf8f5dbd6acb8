/* The simulated GPU's threads (tests/sim/block.h): exchanges of a warp, barriers, fragments and products against plain ones,
 * and kernels that are wrong: each must be told, with what, where and who. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/half.h"
#include "base/rng.h"
#include "tests/support/check_main.h"
#include "tests/support/gpu_kernel.h"
#include "tests/support/status_checks.h"

static const MoeCudaDriver *cu;

static void begin(const char *devices) {
    OK(moe_gpu_begin(devices, &cu));
}

/* The kernel's result where everything is right: out holds `bytes` bytes of buffer 0. */
static void run(const char *body, unsigned threads, void *out, size_t bytes) {
    MoeGpuKernel k;
    OK(moe_gpu_kernel_make("sm_80", "", body, (int)threads, 0, &k));
    OK(moe_gpu_kernel_buf(&k, 0, NULL, bytes));
    ck_assert_msg(moe_gpu_kernel_run(&k, 1, threads, 4096, NULL, 0) == MOE_CU_SUCCESS, "%s",
                  moe_gpu_last_words());
    OK(moe_gpu_kernel_read(&k, 0, out));
    moe_gpu_kernel_free(&k);
}

/* The kernel fails with this result, and the words hold all of these. */
static void fails(const char *body, unsigned threads, MoeCuResult want, const char *word,
                  const char *other) {
    MoeGpuKernel k;
    OK(moe_gpu_kernel_make("sm_80", "", body, (int)threads, 0, &k));
    OK(moe_gpu_kernel_buf(&k, 0, NULL, 4096));
    MoeCuResult r = moe_gpu_kernel_run(&k, 3, threads, 4096, NULL, 0);
    ck_assert_msg(r == want, "%d instead of %d: %s", r, want, moe_gpu_last_words());
    ck_assert_msg(strstr(moe_gpu_last_words(), "kernel test, block ") &&
                      strstr(moe_gpu_last_words(), word) && strstr(moe_gpu_last_words(), other),
                  "'%s' lacks '%s' or '%s'", moe_gpu_last_words(), word, other);
    ck_assert_int_eq(cu->mem_alloc(&k.bufs[1], 64), want); /* from then on everything fails */
}

/* ---- what is right ---- */

START_TEST(warps) {
    int got[8][64];
    begin("80");
    run("i32 *y = buf<i32>(a, 0); i32 t = threadIdx.x, m = lane();\n"
        "y[t] = __shfl_sync(0xffffffffu, t, 5);\n"
        "y[64 + t] = __shfl_xor_sync(0xffffffffu, t, 3);\n"
        "y[128 + t] = __shfl_up_sync(0xffffffffu, t, 2);\n"
        "y[192 + t] = __shfl_down_sync(0xffffffffu, t, 4, 8);\n"
        "y[256 + t] = (i32)__ballot_sync(0xffffffffu, t % 3 == 0);\n"
        "y[320 + t] = m < 16 ? __shfl_sync(0xffffu, t, 7) : __shfl_sync(0xffff0000u, t, 20);\n"
        "y[384 + t] = (i32)__match_any_sync(0xffffffffu, t % 5);\n"
        "y[448 + t] = __any_sync(0xffffffffu, t == 40) * 2 + __all_sync(0xffffffffu, t < 40);",
        64, got, sizeof got);
    for (int t = 0; t < 64; t++) {
        int w = t / 32 * 32, lane = t % 32;
        unsigned ballot = 0, match = 0;
        for (int i = 0; i < 32; i++) {
            ballot |= (unsigned)((w + i) % 3 == 0) << i;
            match |= (unsigned)((w + i) % 5 == t % 5) << i;
        }
        HOLD(got[0][t] == w + 5);
        HOLD(got[1][t] == (t ^ 3));
        HOLD(got[2][t] == (lane < 2 ? t : t - 2));
        HOLD(got[3][t] == (lane % 8 >= 4 ? t : t + 4));
        HOLD((unsigned)got[4][t] == ballot);
        HOLD(got[5][t] == w + (lane < 16 ? 7 : 20));
        HOLD((unsigned)got[6][t] == match);
        HOLD(got[7][t] == (w ? 2 : 1));
    }
}
END_TEST

/* Values go around the block by shared memory; counted at a barrier; warp 3 hands warp 0 .. 2 something by barriers 1 and 2. */
START_TEST(barriers) {
    int got[3][128];
    begin("80");
    run("MOE_SHARED(s); i32 *v = (i32 *)s, *y = buf<i32>(a, 0), t = threadIdx.x;\n"
        "v[t] = t; __syncthreads();\n"
        "for (int i = 0; i < 5; i++) { i32 w = v[(t + 1) % 128]; __syncthreads(); v[t] = w + 1; "
        "__syncthreads(); }\n"
        "y[t] = v[t];\n"
        "y[128 + t] = __syncthreads_count(t % 7 == 0) + 1000 * __syncthreads_or(t == 9) + 2000 * "
        "__syncthreads_and(t < 128);\n"
        "__shared__ i32 one; i32 sum = 0;\n"
        "for (int i = 0; i < 4; i++) {\n"
        "  if (warp() == 3) { if (lane() == 0) one = 10 + i; }\n"
        "  named_barrier(1, 128); sum += one; named_barrier(2, 128);\n"
        "}\n"
        "y[256 + t] = sum;",
        128, got, sizeof got);
    for (int t = 0; t < 128; t++) {
        HOLD(got[0][t] == (t + 5) % 128 + 5);
        HOLD(got[1][t] == 19 + 1000 + 2000);
        HOLD(got[2][t] == 10 + 11 + 12 + 13);
    }
}
END_TEST

static void random_bf16(uint16_t *out, int n, uint64_t stream) {
    for (int i = 0; i < n; i++)
        out[i] = moe_f32_to_bf16((float)moe_rng_normal(7, stream, (uint64_t)i));
}

/* c[m][n] = sum over k of a[m][k] b[k][n] by a chain of FMAs. */
static float chain(const uint16_t *a, int a_row, int a_k, const uint16_t *b, int b_k, int b_col,
                   int m, int n, int k) {
    float c = 0;
    for (int i = 0; i < k; i++)
        c = fmaf(moe_bf16_to_f32(a[m * a_row + i * a_k]), moe_bf16_to_f32(b[i * b_k + n * b_col]),
                 c);
    return c;
}

/* a [16, 16] by ldmatrix, b [8 columns, 16 k] by ldmatrix, b once more as [16 k, 8] by ldmatrix.trans. */
START_TEST(mma) {
    uint16_t x[256 + 128 + 128];
    float got[2][128];
    MoeGpuKernel k;
    begin("80");
    random_bf16(x, 256 + 128, 1);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++)
            x[384 + i * 8 + j] = x[256 + j * 16 + i];
    OK(moe_gpu_kernel_make(
        "sm_80", "",
        "MOE_SHARED(s); const bf16 *x = buf<bf16>(a, 1); float *y = buf<float>(a, 0); int l = "
        "lane();\n"
        "u32 at = shared_addr(s);\n"
        "for (int i = l; i < 64; i += 32) cp_async16(at + 16 * i, x + 8 * i, 16);\n"
        "cp_async_commit(); cp_async_wait<0>(); __syncwarp();\n"
        "u32 fa[4], fb[4], ft[4];\n"
        "ldmatrix_x4(fa, at + (l % 16) * 32 + l / 16 * 16);\n"
        "ldmatrix_x4(fb, at + 512 + (l % 8) * 32 + l / 8 % 2 * 16);\n"
        "ldmatrix_x4_trans(ft, at + 768 + (l % 16) * 16);\n"
        "for (int by = 0; by < 2; by++) {\n"
        "  float c[4] = {0, 0, 0, 0};\n"
        "  mma_bf16(c, fa, by ? ft[0] : fb[0], by ? ft[1] : fb[1]);\n"
        "  for (int i = 0; i < 4; i++) y[by * 128 + (l / 4 + i / 2 * 8) * 8 + l % 4 * 2 + i % 2] = "
        "c[i];\n"
        "}",
        32, 0, &k));
    OK(moe_gpu_kernel_buf(&k, 0, NULL, sizeof got));
    OK(moe_gpu_kernel_buf(&k, 1, x, sizeof x));
    ck_assert_msg(moe_gpu_kernel_run(&k, 1, 32, 1024, NULL, 0) == MOE_CU_SUCCESS, "%s",
                  moe_gpu_last_words());
    OK(moe_gpu_kernel_read(&k, 0, got));
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 8; n++) {
            float want = chain(x, 16, 1, x + 256, 1, 16, m, n, 16);
            HOLD(got[0][m * 8 + n] == want);
            HOLD(got[1][m * 8 + n] == want);
        }
    moe_gpu_kernel_free(&k);
}
END_TEST

/* A tensor map of a bf16 matrix [rows, cols]: boxes of 64 columns (128 bytes, swizzled) and `box` rows. */
static void encode(MoeCuTensorMap *map, MoeCuPtr at, uint64_t rows, uint64_t cols, uint32_t box) {
    const uint64_t dims[2] = {cols, rows}, strides[1] = {cols * 2};
    const uint32_t boxes[2] = {64, box}, steps[2] = {1, 1};
    OK(moe_cuda_status(cu->tensor_map_encode(map, MOE_CU_TENSOR_BFLOAT16, 2, (void *)(uintptr_t)at,
                                             dims, strides, boxes, steps, MOE_CU_INTERLEAVE_NONE,
                                             MOE_CU_SWIZZLE_128B, MOE_CU_L2_PROMOTION_128B,
                                             MOE_CU_FILL_ZEROS),
                       "cuTensorMapEncodeTiled"));
}

enum { M = 64, N = 64, K = 64, COLS = 72 };

/* 64x64 products over 64 k, operands by tensor map: K-major and M-major (rows are k), of matrices with fewer rows than the box. */
START_TEST(wgmma) {
    static uint16_t x[M * COLS], w[N * COLS];
    static float got[M * N];
    MoeCuTensorMap maps[2];
    MoeGpuKernel k;
    char body[4096];
    bool trans = _i;
    int live = trans ? 64 : 50;
    begin("90");
    random_bf16(x, M * COLS, 1);
    random_bf16(w, N * COLS, 2);
    snprintf(body, sizeof body,
             "MOE_SHARED(raw); float *y = buf<float>(a, 0); int t = threadIdx.x;\n"
             "u32 base = (shared_addr(raw) + 1023u) / 1024u * 1024u, xa = base, wa = base + 8192;\n"
             "__shared__ u64 bars[1]; u32 bar = shared_addr(bars);\n"
             "if (t == 0) { mbar_init(bar, 1); mbar_init_fence(); }\n"
             "__syncthreads();\n"
             "if (t == 0) { mbar_expect(bar, 16384); tma_load_2d(xa, m0, 8, 0, bar); "
             "tma_load_2d(wa, m1, 8, 0, bar); }\n"
             "mbar_wait(bar, 0);\n"
             "float c[32]; for (int i = 0; i < 32; i++) c[i] = 0;\n"
             "wgmma_fence();\n"
             "for (int k = 0; k < 4; k++)\n"
             "  wgmma<64, %s, %s>(c, wgmma_desc(xa + k * %d, 8192, 1024), wgmma_desc(wa + k * %d, "
             "8192, 1024));\n"
             "wgmma_commit(); wgmma_wait<0>();\n"
             "for (int i = 0; i < 32; i++) {\n"
             "  int row = t / 32 * 16 + t %% 32 / 4 + i / 2 %% 2 * 8, col = i / 4 * 8 + t %% 4 * 2 "
             "+ i %% 2;\n"
             "  y[row * 64 + col] = c[i];\n"
             "}",
             trans ? "true" : "false", trans ? "true" : "false", trans ? 2048 : 32,
             trans ? 2048 : 32);
    OK(moe_gpu_kernel_make("sm_90a", "", body, 128, 2, &k));
    OK(moe_gpu_kernel_buf(&k, 0, NULL, sizeof got));
    OK(moe_gpu_kernel_buf(&k, 1, x, sizeof x));
    OK(moe_gpu_kernel_buf(&k, 2, w, sizeof w));
    encode(&maps[0], k.bufs[1], (uint64_t)live, COLS, 64);
    encode(&maps[1], k.bufs[2], N, COLS, 64);
    ck_assert_msg(moe_gpu_kernel_run(&k, 1, 128, 16384 + 1024, maps, 2) == MOE_CU_SUCCESS, "%s",
                  moe_gpu_last_words());
    OK(moe_gpu_kernel_read(&k, 0, got));
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) {
            float want = trans      ? chain(x + 8, 1, COLS, w + 8, COLS, 1, m, n, K)
                         : m < live ? chain(x + 8, COLS, 1, w + 8, 1, COLS, m, n, K)
                                    : 0.0f;
            CHECK_EACH(got[m * N + n] == want, "c[%d][%d] = %g, not %g", m, n,
                       (double)got[m * N + n], (double)want);
        }
    moe_gpu_kernel_free(&k);
}
END_TEST

/* ---- what is wrong ---- */

typedef struct {
    const char *body;
    unsigned threads;
    MoeCuResult result;
    const char *word, *other;
} Wrong;

static const Wrong wrongs[] = {
    {"if (threadIdx.x < 64) __syncthreads();", 128, MOE_CU_LAUNCH_FAILED,
     "threads 0-63 wait at __syncthreads", "threads 64-127 have ended"},
    {"if (warp() == 0) __syncthreads(); else __syncthreads_or(1);", 64, MOE_CU_LAUNCH_FAILED,
     "in two ways", "thread"},
    {"if (lane() != 7) warp_sum(1.0f);", 32, MOE_CU_LAUNCH_FAILED, "__shfl_xor_sync",
     "threads 7-7 have ended"},
    {"if (lane() < 16) __shfl_sync(0xffffffffu, 1, 0); else __syncwarp();", 32,
     MOE_CU_LAUNCH_FAILED, "lane ", "__syncwarp"},
    {"__shfl_sync(0xffffu, 1, 0);", 32, MOE_CU_LAUNCH_FAILED, "mask 0000ffff", "its own lane"},
    {"if (lane() < 16) __shfl_sync(0xffffu, 1, 20);", 32, MOE_CU_LAUNCH_FAILED,
     "a lane that is not in its mask", "thread"},
    {"buf<i32>(a, 0)[1024 + threadIdx.x * 4096] = 1;", 32, MOE_CU_ILLEGAL_ADDRESS,
     "memory that is not there", "thread"},
    {"MOE_SHARED(s); s[5000 + threadIdx.x] = 1;", 32, MOE_CU_ILLEGAL_ADDRESS,
     "memory that is not there", "thread"},
    {"store_words4(buf<i32>(a, 0) + 1, load_words4(buf<i32>(a, 0)));", 32, MOE_CU_LAUNCH_FAILED,
     "misaligned", "16 bytes"},
    {"struct alignas(8) Two { i32 x, y; }; buf<i32>(a, 0)[0] = ((Two *)(buf<i32>(a, 0) + 1))->x;",
     32, MOE_CU_ILLEGAL_ADDRESS, "misaligned", "thread"},
    {"__trap();", 32, MOE_CU_LAUNCH_FAILED, "__trap()", "thread"},
    {"MOE_SHARED(s); cp_async16(shared_addr(s) + 8, buf<i32>(a, 0), 16);", 32, MOE_CU_LAUNCH_FAILED,
     "cp.async", "multiple of 16"},
    {"MOE_SHARED(s); cp_async16(shared_addr(s) + 4096, buf<i32>(a, 0), 16);", 32,
     MOE_CU_LAUNCH_FAILED, "shared memory: 16 bytes at 4096 of 4096", "dynamic"},
    {"__shared__ u64 b; mbar_wait(shared_addr(&b), 0);", 32, MOE_CU_LAUNCH_FAILED,
     "not initialised", "thread"},
    {"__shared__ u64 b; if (threadIdx.x == 0) mbar_init(shared_addr(&b), 2); __syncthreads();"
     "if (threadIdx.x == 0) mbar_arrive(shared_addr(&b)); mbar_wait(shared_addr(&b), 0);",
     32, MOE_CU_LAUNCH_FAILED, "all threads wait", "mbarrier"},
    {"for (;;) __nanosleep(10);", 32, MOE_CU_LAUNCH_FAILED, "never comes", "__nanosleep"},
};

START_TEST(wrong_kernels) {
    const Wrong *w = &wrongs[_i];
    begin("80");
    fails(w->body, w->threads, w->result, w->word, w->other);
}
END_TEST

/* What waits do: without them the data is old when copies land late, and what is overwritten too early is lost when they land
 * at once. */
START_TEST(late_copies) {
    static const char *const good = "MOE_SHARED(s); i32 *v = (i32 *)s; for (int i = 0; i < 4; i++) "
                                    "v[threadIdx.x * 4 + i] = 5;\n"
                                    "i32 *x = buf<i32>(a, 0); if (threadIdx.x == 0) for (int i = "
                                    "0; i < 128; i++) x[i] = 7 + i;\n"
                                    "__syncthreads();\n"
                                    "cp_async16(shared_addr(s) + 16 * threadIdx.x, x + 4 * "
                                    "threadIdx.x, 16); cp_async_commit();\n";
    char body[1024];
    int got[256];
    begin("80");
    for (int early = 0; early < 2; early++)
        for (int waits = 0; waits < 2; waits++) {
            setenv("MOE_SIM_ASYNC", early ? "early" : "late", 1);
            snprintf(body, sizeof body, "%s %s\nx[128 + threadIdx.x] = v[4 * threadIdx.x];", good,
                     waits ? "cp_async_wait<0>();" : "");
            run(body, 32, got, sizeof got);
            for (int t = 0; t < 32; t++)
                HOLD(got[128 + t] == (early || waits ? 7 + 4 * t : 5));
        }
}
END_TEST

/* A forgotten barrier shows in one of the two orders of threads. */
START_TEST(forgotten_barrier) {
    int got[2][64], wrong = 0;
    begin("80");
    for (int with = 0; with < 2; with++) {
        char body[512];
        snprintf(body, sizeof body,
                 "__shared__ i32 v[64]; v[threadIdx.x] = threadIdx.x; %s\n"
                 "buf<i32>(a, 0)[blockIdx.x * 64 + threadIdx.x] = v[63 - threadIdx.x];",
                 with ? "__syncthreads();" : "");
        MoeGpuKernel k;
        OK(moe_gpu_kernel_make("sm_80", "", body, 64, 0, &k));
        OK(moe_gpu_kernel_buf(&k, 0, NULL, sizeof got));
        ck_assert_int_eq(moe_gpu_kernel_run(&k, 2, 64, 0, NULL, 0), MOE_CU_SUCCESS);
        OK(moe_gpu_kernel_read(&k, 0, got));
        wrong = 0;
        for (int b = 0; b < 2; b++)
            for (int t = 0; t < 64; t++)
                wrong += got[b][t] != 63 - t;
        ck_assert_msg(with ? wrong == 0 : wrong > 0, "%d wrong %s barrier", wrong,
                      with ? "with" : "without");
        moe_gpu_kernel_free(&k);
    }
}
END_TEST

int main(void) {
    Suite *s = suite_create("sim_kernels");
    TCase *tc = tcase_create("sim_kernels");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, warps);
    tcase_add_test(tc, barriers);
    tcase_add_test(tc, mma);
    tcase_add_loop_test(tc, wgmma, 0, 2);
    tcase_add_loop_test(tc, wrong_kernels, 0, sizeof wrongs / sizeof wrongs[0]);
    tcase_add_test(tc, late_copies);
    tcase_add_test(tc, forgotten_barrier);
    suite_add_tcase(s, tc);
    return moe_check_main(s);
}
