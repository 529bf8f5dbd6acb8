/* base/dynlib.h: libraries found by name and by directory, and what is said of those that are missing, broken or too old.
 * The library is the C library's libm. base/cuda_driver.h and codegen/cuda/arch.h: architectures by name, results as statuses. */
#include <check.h>
#include <dlfcn.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cuda_driver.h"
#include "base/dynlib.h"
#include "codegen/cuda/arch.h"
#include "codegen/cuda/cuda.h"
#include "tests/support/check_main.h"
#include "tests/support/status_checks.h"

typedef struct {
    double (*cosine)(double);
    double (*sine)(double);
} Functions;

static Functions functions;
static const MoeDynSymbol both[] = {{"cos", offsetof(Functions, cosine)},
                                    {"sin", offsetof(Functions, sine)}};
static const char *const names[] = {"libmoec-is-not-there.so.7", "libm.so.6", NULL};

static MoeDynLib library(const char *const *sonames, const char *const *dirs) {
    functions = (Functions){0};
    return (MoeDynLib){.what = "the library of sines",
                       .sonames = sonames,
                       .dirs = dirs,
                       .install = "apt-get install sines",
                       .symbols = both,
                       .n_symbols = 2,
                       .table = &functions,
                       MOE_DYNLIB_CLOSED};
}

START_TEST(test_second_name) {
    MoeDynLib lib = library(names, NULL);
    OK(moe_dynlib_open(&lib));
    ck_assert(lib.open && strstr(lib.path, "libm"));
    ck_assert(functions.cosine(0.5) == cos(0.5) && functions.sine(0.5) == sin(0.5));
    OK(moe_dynlib_open(&lib)); /* open already */
}
END_TEST

START_TEST(test_missing) {
    static const char *const absent[] = {"libmoec-a.so.2", "libmoec-a.so.1", NULL};
    MoeDynLib lib = library(absent, NULL);
    FAILS(moe_dynlib_open(&lib), MOE_E_IO, "the library of sines", "libmoec-a.so.2",
          "libmoec-a.so.1", "apt-get install sines");
    ck_assert(!lib.open && !functions.cosine);
}
END_TEST

START_TEST(test_missing_symbol) {
    static const MoeDynSymbol with_new[] = {{"cos", offsetof(Functions, cosine)},
                                            {"moec_new_function", offsetof(Functions, sine)}};
    MoeDynLib lib = library(names, NULL);
    lib.symbols = with_new;
    FAILS(moe_dynlib_open(&lib), MOE_E_IO, "moec_new_function", "libm", "too old");
    ck_assert(!lib.open && !functions.cosine); /* all or nothing */
}
END_TEST

/* A name that only a directory of the environment has, behind one with a file that is no library. */
START_TEST(test_directories) {
    static const char *const only_here[] = {"libmoec-only-here.so", NULL};
    static const char *const dirs[] = {"$MOE_TEST_NOT_SET/lib", "$MOE_TEST_LIBS/none*",
                                       "$MOE_TEST_LIBS/pla?e", NULL};
    Dl_info info;
    double (*cosine)(double) = cos;
    void *address;
    memcpy(&address, &cosine, sizeof address);
    ck_assert(dladdr(address, &info));
    char dir[1024], link[2048];
    snprintf(dir, sizeof dir, "%s/place", moe_test_dir());
    ck_assert(mkdir(dir, 0777) == 0);
    snprintf(link, sizeof link, "%s/libmoec-only-here.so", dir);
    setenv("MOE_TEST_LIBS", moe_test_dir(), 1);
    MoeDynLib lib = library(only_here, dirs);
    FAILS(moe_dynlib_open(&lib), MOE_E_IO, "libmoec-only-here.so");
    moe_test_file("place/libmoec-only-here.so", "no library", 10);
    FAILS(moe_dynlib_open(&lib), MOE_E_IO, "libmoec-only-here.so");
    ck_assert(unlink(link) == 0 && symlink(info.dli_fname, link) == 0);
    OK(moe_dynlib_open(&lib)); /* a failure is not kept */
    ck_assert(functions.cosine(1) == cos(1));
}
END_TEST

static void *open_it(void *lib) {
    return moe_dynlib_open(lib);
}

START_TEST(test_threads) {
    MoeDynLib lib = library(names, NULL);
    pthread_t threads[8];
    for (int i = 0; i < 8; i++)
        ck_assert(!pthread_create(&threads[i], NULL, open_it, &lib));
    for (int i = 0; i < 8; i++) {
        void *st;
        pthread_join(threads[i], &st);
        ck_assert(!st);
    }
    ck_assert(functions.cosine(1) == cos(1));
}
END_TEST

START_TEST(test_results) {
    ck_assert(!moe_cuda_status(MOE_CU_SUCCESS, "cuInit"));
    FAILS(moe_cuda_status(MOE_CU_OUT_OF_MEMORY, "cuMemAlloc of %d bytes for the slab", 77),
          MOE_E_NOMEM, "cuMemAlloc of 77 bytes for the slab");
    FAILS(moe_cuda_status(MOE_CU_NO_BINARY_FOR_GPU, "cuModuleLoadDataEx"), MOE_E_IO,
          "cuModuleLoadDataEx", "--target=cuda:native");
}
END_TEST

START_TEST(test_archs) {
    static const char *const known[] = {"sm_80", "sm_90a", "sm_100"};
    const MoeCudaArch *a;
    for (int i = 0; i < 3; i++) {
        OK(moe_cuda_arch_get(known[i], &a));
        ck_assert_str_eq(a->name, known[i]);
        ck_assert(a->multiprocessors > 100 && a->shared_bytes >= 160 * 1024 && a->flops_bf16 > 0);
        ck_assert(a->wgmma == (i == 1) && a->tensor_maps == (i > 0));
    }
    FAILS(moe_cuda_arch_get("sm_90", &a), MOE_E_MISUSE, "sm_90", "did you mean 'sm_90a'",
          "cuda:sm_80");
    ck_assert(!moe_cuda_runs_here("sm_70"));
    /* Where there is no driver, "native" says what is missing. */
    const MoeCudaDriver *cu;
    MoeStatus st = moe_cuda_driver(&cu);
    if (st)
        FAILS(moe_cuda_arch_get("native", &a), MOE_E_IO, "cuda:native");
    moe_status_free(st);
}
END_TEST

int main(void) {
    Suite *s = suite_create("dynlib");
    TCase *t = tcase_create("dynlib");
    tcase_add_test(t, test_second_name);
    tcase_add_test(t, test_missing);
    tcase_add_test(t, test_missing_symbol);
    tcase_add_test(t, test_directories);
    tcase_add_test(t, test_threads);
    tcase_add_test(t, test_results);
    tcase_add_test(t, test_archs);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
