/* Kernels of a CUDA target, without a GPU: names and texts (codegen/cuda/module.h), the container of their code (base/cubins.h)
 * under every damage of its head, the cache (cache.h), ptxas's words. What needs NVRTC is passed over, and said, where it is not. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cubins.h"
#include "base/io.h"
#include "codegen/codegen.h"
#include "codegen/cuda/cache.h"
#include "codegen/cuda/module.h"
#include "tests/support/check_main.h"
#include "tests/support/status_checks.h"

/* ---- the container ---- */

static const MoeCubin images[] = {{"row_1", "second", 6}, {"gemm_0", "the first image", 15}};

START_TEST(test_container) {
    void *data;
    size_t n;
    MoeCubins c;
    OK(moe_cubins_pack(images, 2, &data, &n));
    OK(moe_cubins_read(data, n, &c));
    ck_assert_uint_eq(c.n, 2);
    ck_assert_str_eq(c.images[0].name, "gemm_0"); /* by name */
    for (int i = 0; i < 2; i++) {
        const MoeCubin *found = moe_cubins_find(&c, images[i].name);
        ck_assert(found && found->n == images[i].n &&
                  !memcmp(found->data, images[i].data, found->n));
        ck_assert(((const char *)found->data - (const char *)data) % 64 == 0);
    }
    ck_assert(!moe_cubins_find(&c, "gemm"));
    moe_cubins_free(&c);
    free(data);
    OK(moe_cubins_pack(NULL, 0, &data, &n));
    OK(moe_cubins_read(data, n, &c));
    ck_assert(!c.n && !moe_cubins_find(&c, "gemm_0"));
    moe_cubins_free(&c);
    free(data);
}
END_TEST

/* The container with `bytes` at `at` changed. */
static MoeStatus read_damaged(size_t at, const void *bytes, size_t n_bytes, size_t shorter) {
    void *data;
    size_t n;
    MoeCubins c;
    OK(moe_cubins_pack(images, 2, &data, &n));
    memcpy((char *)data + at, bytes, n_bytes);
    char *copy = malloc(n - shorter); /* its end is the memory's end */
    memcpy(copy, data, n - shorter);
    MoeStatus st = moe_cubins_read(copy, n - shorter, &c);
    if (!st)
        moe_cubins_free(&c);
    free(copy);
    free(data);
    return st;
}

START_TEST(test_damaged_container) {
    char name[64];
    memset(name, 'a', sizeof name);
    FAILS(read_damaged(0, "X", 1, 0), MOE_E_CORRUPT, "not a container");
    FAILS(read_damaged(8, "\2", 1, 0), MOE_E_CORRUPT, "version 2");
    FAILS(read_damaged(12, "\377\377\377\377", 4, 0), MOE_E_CORRUPT, "4294967295 kernels");
    FAILS(read_damaged(16, name, 64, 0), MOE_E_CORRUPT, "entry 0 of 2");
    FAILS(read_damaged(16, "", 1, 0), MOE_E_CORRUPT, "entry 0 of 2");
    FAILS(read_damaged(16, "zz", 2, 0), MOE_E_CORRUPT, "row_1", "out of order");
    FAILS(read_damaged(16 + 64, "\1", 1, 0), MOE_E_CORRUPT, "gemm_0");   /* unaligned */
    FAILS(read_damaged(16 + 64, "\0\0", 2, 0), MOE_E_CORRUPT, "gemm_0"); /* in the head */
    FAILS(read_damaged(16 + 64, "\0\0\0\0\0\0\0\200", 8, 0), MOE_E_CORRUPT, "gemm_0");
    FAILS(read_damaged(16 + 72, "\377\377\377\377\377\377\377\377", 8, 0), MOE_E_CORRUPT, "gemm_0");
    FAILS(read_damaged(16 + 72, "\0", 1, 0), MOE_E_CORRUPT, "gemm_0"); /* no code */
    FAILS(read_damaged(0, "", 0, 64), MOE_E_CORRUPT, "row_1");         /* cut off */
    FAILS(read_damaged(0, "", 0, 64 * 5 - 15), MOE_E_CORRUPT, "not a container");
}
END_TEST

/* ---- texts ---- */

static MoeCudaTarget *new_target(const char *name) {
    MoeTarget *t;
    OK(moe_target_create(name, &t));
    return (MoeCudaTarget *)t;
}

static MoeCudaKernelText kernel_text(const char *body) {
    return (MoeCudaKernelText){.prefix = "twice",
                               .note = "y = 2 x",
                               .n_bufs = 2,
                               .threads = 64,
                               .parts = 1u << MOE_CUDA_PART_math,
                               .body = body};
}

static const char twice[] =
    "moe::buf<float>(a, 1)[threadIdx.x] = moe::buf<float>(a, 0)[threadIdx.x] * 2;";

START_TEST(test_each_kernel_once) {
    MoeCudaTarget *t = new_target("cuda:sm_80");
    MoeCudaKernelText k = kernel_text(twice), other = kernel_text("");
    const char *name = moe_cuda_kernel(t, &k);
    char body[sizeof twice];
    memcpy(body, twice, sizeof twice);
    k.body = body; /* equal, elsewhere */
    ck_assert_str_eq(name, "twice_0");
    ck_assert_ptr_eq(moe_cuda_kernel(t, &k), name);
    ck_assert_str_eq(moe_cuda_kernel(t, &other), "twice_1");
    k.threads = 128;
    ck_assert_str_eq(moe_cuda_kernel(t, &k), "twice_2");
    k.prefix = "other";
    ck_assert_str_eq(moe_cuda_kernel(t, &k), "other_0");
    k.exact = true;
    ck_assert_str_eq(moe_cuda_kernel(t, &k), "other");
    ck_assert_uint_eq(t->n_kernels, 5);
    t->base.destroy(&t->base);
}
END_TEST

static int count_of(const char *text, const char *word) {
    int n = 0;
    for (const char *p = text; (p = strstr(p, word)); p++)
        n++;
    return n;
}

START_TEST(test_texts) {
    MoeCudaTarget *t = new_target("cuda:sm_90a");
    MoeCudaKernelText k = kernel_text(twice), maps = kernel_text("");
    maps.n_maps = 2;
    moe_cuda_kernel(t, &k);
    moe_cuda_kernel(t, &maps);
    MoeStr unit = {0}, all = {0};
    moe_cuda_unit_text(&t->kernels[0], &unit);
    ck_assert(strstr(moe_str_c(&unit), "MOE_KERNEL(twice_0, 2, 64, 0) {") &&
              strstr(unit.data, twice));
    ck_assert(strstr(unit.data, "device/prelude.cuh") && strstr(unit.data, "device/math.cuh"));
    ck_assert(!strstr(unit.data, "twice_1") && !strstr(unit.data, "device/row.cuh"));
    moe_cuda_module_text(t, &all);
    ck_assert(strstr(all.data, "MOE_KERNEL_2(twice_1, 2, 64, 0) {") && strstr(all.data, "sm_90a"));
    ck_assert_int_eq(count_of(all.data, "#line 1 \"device/prelude.cuh\""), 1);
    ck_assert_int_eq(count_of(all.data, "/* y = 2 x */"), 2);
    moe_str_free(&unit);
    moe_str_free(&all);
    t->base.destroy(&t->base);
}
END_TEST

/* Every file of the library is a part that kinds can name, and every part has text. */
START_TEST(test_parts) {
    char dir[512];
    char **names;
    size_t n;
    snprintf(dir, sizeof dir, "%s/codegen/cuda/device", MOE_SOURCE_DIR);
    OK(moe_dir_list(dir, &names, &n));
    ck_assert_uint_gt(n, 0);
    for (size_t i = 0; i < n; i++) {
        bool is_part = false;
        for (int p = 0; p < MOE_CUDA_N_PARTS; p++) {
            const char *part = moe_cuda_part_name((MoeCudaPart)p);
            is_part |= strncmp(names[i], part, strlen(part)) == 0 &&
                       strcmp(names[i] + strlen(part), ".cuh") == 0;
        }
        ck_assert_msg(is_part, "device/%s is no part (MOE_CUDA_PARTS)", names[i]);
    }
    moe_dir_list_free(names, n);
    for (int p = 0; p < MOE_CUDA_N_PARTS; p++)
        ck_assert_msg(*moe_cuda_part_text((MoeCudaPart)p), "device/%s.cuh is empty or not there",
                      moe_cuda_part_name((MoeCudaPart)p));
}
END_TEST

/* ---- ptxas, the cache ---- */

START_TEST(test_log) {
    MoeCudaResources r = moe_nvrtc_parse_log(
        "ptxas info    : 0 bytes gmem\n"
        "ptxas info    : Compiling entry function 'gemm_0' for 'sm_90a'\n"
        "ptxas info    : Function properties for gemm_0\n"
        "    48 bytes stack frame, 44 bytes spill stores, 60 bytes spill loads\n"
        "ptxas info    : Used 168 registers, used 2 barriers, 48 bytes cumulative stack size, 1024 "
        "bytes smem\n");
    ck_assert(r.registers == 168 && r.stack_bytes == 48 && r.spill_bytes == 104 &&
              r.shared_bytes == 1024);
    ck_assert_int_eq(r.warnings, 0);
    r = moe_nvrtc_parse_log("ptxas info    : (C7517) warpgroup.wait is injected in around line 9\n"
                            "gemm_0(3): warning #177-D: variable was declared\n");
    ck_assert_int_eq(r.warnings, 2);
    r = moe_nvrtc_parse_log("");
    ck_assert(!r.registers && !r.stack_bytes && !r.spill_bytes && !r.shared_bytes);
    ck_assert(moe_nvrtc_parse_seconds("") == 0);
    ck_assert(moe_nvrtc_parse_seconds("ptxas info    : Used 45 registers\n"
                                      "ptxas info    : Compile time = 82.500 ms\n"
                                      "ptxas info    : Compile time = 17.500 ms\n") == 0.1);
}
END_TEST

static char *code_of(const char *s) {
    return strdup(s);
}

START_TEST(test_cache) {
    MoeCudaCode code = {
        .data = code_of("device code\nof two lines"), .n = 24, .resources = {40, 8, 4, 1024, 1}};
    MoeCudaCode got;
    char **names, *data;
    size_t n, bytes;
    setenv("MOEC_CACHE", moe_test_path("cache/deep"), 1);
    ck_assert(!moe_cuda_cache_find("text", 4, &got));
    moe_cuda_cache_add("text", 4, &code);
    ck_assert(!moe_cuda_cache_find("Text", 4, &got) && moe_cuda_cache_find("text", 4, &got));
    ck_assert(got.cached && got.n == code.n && !memcmp(got.data, code.data, code.n));
    ck_assert(!memcmp(&got.resources, &code.resources, sizeof got.resources));
    free(got.data);
    OK(moe_dir_list(moe_test_path("cache/deep"), &names, &n));
    ck_assert_uint_eq(n, 1); /* no temporary file is left */
    char *path = moe_path_join(moe_test_path("cache/deep"), names[0]);
    moe_dir_list_free(names, n);
    OK(moe_file_read(path, 1 << 20, &data, &bytes));
    for (size_t i = 0; i < bytes; i++) { /* every byte counts */
        data[i] ^= 1;
        OK(moe_file_write_atomic(path, data, bytes));
        HOLD(!moe_cuda_cache_find("text", 4, &got));
        data[i] ^= 1;
    }
    OK(moe_file_write_atomic(path, data, bytes - 1));
    ck_assert(!moe_cuda_cache_find("text", 4, &got));
    moe_cuda_cache_add("text", 4, &code); /* built again over the damaged one */
    ck_assert(moe_cuda_cache_find("text", 4, &got));
    free(got.data);
    setenv("MOEC_CACHE", "", 1);
    ck_assert(!moe_cuda_cache_find("text", 4, &got));
    setenv("MOEC_CACHE", "/dev/null/no", 1); /* a cache that cannot be written is no error */
    moe_cuda_cache_add("text", 4, &code);
    ck_assert(!moe_cuda_cache_find("text", 4, &got));
    free(data);
    free(path);
    free(code.data);
}
END_TEST

/* ---- NVRTC ---- */

static bool no_nvrtc(void) {
    int major, minor;
    MoeStatus st = moe_nvrtc_version(&major, &minor);
    if (st)
        printf("skipped: %s\n", moe_status_message(st));
    moe_status_free(st);
    return st != NULL;
}

START_TEST(test_compile) {
    static const char *const targets[] = {"cuda:sm_80", "cuda:sm_90a", "cuda:sm_100"};
    if (no_nvrtc())
        return;
    setenv("MOEC_CACHE", moe_test_path("compiled"), 1);
    MoeCudaTarget *t = new_target(targets[_i]);
    MoeCudaKernelText k = kernel_text(twice), two = kernel_text("moe::buf<float>(a, 1)[0] = 2;");
    const char *name = moe_cuda_kernel(t, &k);
    moe_cuda_kernel(t, &two);
    void *object[2];
    size_t n[2];
    MoeCubins c;
    for (int i = 0; i < 2; i++) { /* the second time from the cache: the same bytes */
        char *text;
        OK(t->base.finish(&t->base, false, &object[i], &n[i], &text));
        ck_assert(strstr(text, "registers") && strstr(text, twice));
        ck_assert_msg(strstr(t->base.code_note, i ? ": 0 compiled, " : ", 0 from the cache; ") &&
                          strstr(t->base.code_note, "none spills registers") &&
                          (!i || !strstr(t->base.code_note, "CPU time")),
                      "%s", t->base.code_note);
        free(text);
    }
    ck_assert(n[0] == n[1] && !memcmp(object[0], object[1], n[0]));
    OK(moe_cubins_read(object[0], n[0], &c));
    const MoeCubin *found = moe_cubins_find(&c, name);
    ck_assert(found && found->n > 64 && !memcmp(found->data, "\177ELF", 4));
    ck_assert_int_gt(moe_cuda_find_kernel(t, name)->resources.registers, 0);
    moe_cubins_free(&c);
    free(object[0]);
    free(object[1]);
    t->base.destroy(&t->base);
}
END_TEST

START_TEST(test_compile_error) {
    if (no_nvrtc())
        return;
    MoeCudaTarget *t = new_target("cuda:sm_90a");
    MoeCudaKernelText good = kernel_text(twice), bad = kernel_text("\nthis_is_no_function(a);");
    moe_cuda_kernel(t, &good);
    moe_cuda_kernel(t, &bad);
    void *object;
    size_t n;
    char *text;
    FAILS(t->base.finish(&t->base, true, &object, &n, &text), MOE_E_INTERNAL, "twice_1", "sm_90a",
          "this_is_no_function");
    ck_assert(!object && !text);
    t->base.destroy(&t->base);
}
END_TEST

int main(void) {
    Suite *s = suite_create("cuda_module");
    TCase *t = tcase_create("cuda_module");
    tcase_set_timeout(t, 120);
    tcase_add_test(t, test_container);
    tcase_add_test(t, test_damaged_container);
    tcase_add_test(t, test_each_kernel_once);
    tcase_add_test(t, test_texts);
    tcase_add_test(t, test_parts);
    tcase_add_test(t, test_log);
    tcase_add_test(t, test_cache);
    tcase_add_loop_test(t, test_compile, 0, 3);
    tcase_add_test(t, test_compile_error);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
