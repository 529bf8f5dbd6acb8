/* The real cuDNN, where it is installed, without a GPU: that it has all functions, and that its engines take attention's graphs. cuDNN
 * makes plans for devices that are described to it (9.8 and newer); it looks for an engine, compiles the engine's kernels by NVRTC
 * and loads them, here into a driver that has no device (tests/sim/deviceless.c). Skipped where cuDNN or NVRTC are missing. */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include "codegen/cuda/nvrtc.h"
#include "runtime/cuda/cudnn_attn.h"
#include "tests/support/check_main.h"
#include "tests/support/status_checks.h"

static const MoeCudnn *cudnn;

/* What cuDNN asks of a device: of the product that stands for an architecture, as its data sheet and deviceQuery have it. */
static void describe(int capability, char *out, size_t n) {
    static const struct {
        int capability, multiprocessors, shared_optin;
        const char *name;
    } rows[] = {{80, 108, 166912, "NVIDIA A100-SXM4-80GB"},
                {90, 132, 232448, "NVIDIA H100 80GB HBM3"},
                {100, 148, 232448, "NVIDIA B200"}};
    int i = 0;
    while (rows[i].capability != capability)
        i++;
    snprintf(
        out, n,
        "{\"version\":1,\"deviceVer\":%d,\"driverVer\":13000,\"maxGridSize\":[2147483647,65535,"
        "65535],"
        "\"maxBlockSize\":[1024,1024,64],\"regsPerBlock\":65536,\"multiProcessorCount\":%d,"
        "\"smCountOrigin\":0,\"warpSize\":32,\"maxSharedMemoryPerBlock\":49152,"
        "\"maxSharedMemoryPerBlockOptin\":%d,\"oversizedSharedMemoryPerBlock\":%d,"
        "\"reservedSharedMemoryPerBlock\":1024,\"maxRegistersPerSM\":65536,\"maxCtasPerSM\":32,"
        "\"maxThreadsPerBlock\":1024,\"maxThreadsPerSM\":2048,\"pciDeviceId\":0,\"isTccDriver\":0,"
        "\"supportCoopLaunch\":1,\"smClockRateKHz\":1980000,\"memClockRateKHz\":2619000,"
        "\"l2CacheSize\":52428800,\"deviceName\":\"%s\",\"cudaDeviceId\":0,"
        "\"totalGlobalMem\":85899345920}",
        10 * capability, rows[i].multiprocessors, rows[i].shared_optin, rows[i].shared_optin,
        rows[i].name);
}

static void check_form(int capability, MoeCudnnForm form, int64_t batch, MoeAttnShape s) {
    char text[1024];
    MoeCudnnBuild b;
    MoeCudnnAttn a;
    describe(capability, text, sizeof text);
    moe_cudnn_build_init(cudnn, &b);
    MoeCudnnDesc device = moe_cudnn_new(&b, MOE_CUDNN_DEVICEPROP, "a device");
    moe_cudnn_set(&b, device, MOE_CUDNN_ATTR_DEVICEPROP_JSON, MOE_CUDNN_TYPE_CHAR,
                  (int64_t)strlen(text), text);
    moe_cudnn_finalize(&b, device, "a device");
    OK(b.st);
    MoeStatus st = moe_cudnn_attn_plan(cudnn, &s, form, batch, capability,
                                       (MoeCudnnPlace){.device = device}, &a);
    ck_assert_msg(!st, "%s for sm_%d: %s", moe_cudnn_form_name(form), capability,
                  moe_status_message(st));
    ck_assert_int_ge(a.plan.workspace, 0);
    ck_assert(!a.plan.nondeterministic);
    moe_cudnn_attn_free(&a);
    moe_cudnn_build_free(&b);
}

static const MoeAttnShape
    plain = {8, 8, 64, 256, 0, 0.125f},
    odd = {8, 2, 128, 500, 100, 0.09f}; /* grouped heads, a window, a length that no tile divides */

START_TEST(forward) {
    check_form(90, MOE_CUDNN_FORWARD, 4, plain);
    check_form(90, MOE_CUDNN_FORWARD, 1, odd);
}
END_TEST

START_TEST(gradient) {
    check_form(90, MOE_CUDNN_GRAD_WHOLE, 4, plain);
    check_form(90, MOE_CUDNN_GRAD_WHOLE, 1, odd);
}
END_TEST

START_TEST(in_order) {
    if (cudnn->version() >= 92500)
        check_form(90, MOE_CUDNN_GRAD_ORDERED, 2, odd);
    if (cudnn->version() >= 92300)
        check_form(100, MOE_CUDNN_GRAD_ORDERED, 2, odd);
}
END_TEST

START_TEST(other_devices) {
    check_form(80, MOE_CUDNN_FORWARD, 2, odd);
    check_form(80, MOE_CUDNN_GRAD_WHOLE, 2, odd);
    check_form(100, MOE_CUDNN_FORWARD, 2, odd);
    check_form(100, MOE_CUDNN_GRAD_WHOLE, 2, odd);
}
END_TEST

/* The real library is as strict as the simulated one (sim_cudnn.c). */
START_TEST(strict) {
    MoeCudnnBuild b;
    const int64_t dims[4] = {1, 1, 4, 4};
    moe_cudnn_build_init(cudnn, &b);
    MoeCudnnDesc t = moe_cudnn_new(&b, MOE_CUDNN_TENSOR, "a tensor");
    OK(b.st);
    moe_cudnn_set(&b, t, MOE_CUDNN_ATTR_TENSOR_DATA_TYPE, MOE_CUDNN_TYPE_INT64, 1, dims);
    FAILS(b.st, MOE_E_IO, "BAD_PARAM", "901");
    b.st = NULL;
    moe_cudnn_finalize(&b, t, "a tensor");
    FAILS(b.st, MOE_E_IO, "BAD_PARAM");
    b.st = NULL;
    moe_cudnn_build_free(&b);
}
END_TEST

static bool skip(const char *what, MoeStatus st) {
    if (st)
        printf("skip %s: %s\n", what, moe_status_message(st));
    moe_status_free(st);
    return st != NULL;
}

int main(void) {
    int major, minor;
    if (!dlopen(MOE_BUILD_DIR "/tests/sim/deviceless/libcuda.so.1", RTLD_NOW | RTLD_GLOBAL)) {
        printf("skip: no driver without a device was built (ninja sim)\n");
        return 0;
    }
    if (skip("the real cuDNN", moe_cudnn(&cudnn)) ||
        skip("the real cuDNN", moe_nvrtc_version(&major, &minor)))
        return 0;
    printf("cuDNN %zu (%s)\n", cudnn->version(), moe_cudnn_path());
    Suite *s = suite_create("cuDNN without a GPU");
    TCase *t = tcase_create("engines");
    tcase_set_timeout(t, 120);
    tcase_add_test(t, forward);
    tcase_add_test(t, gradient);
    tcase_add_test(t, in_order);
    tcase_add_test(t, other_devices);
    tcase_add_test(t, strict);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
