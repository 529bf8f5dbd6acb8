/* The simulated driver and NVRTC (tests/sim): memory that the host cannot touch, order in streams and between them, graphs,
 * reserved addresses, limits of launches, faults on demand, texts that do not compile. What moec relies on when it runs on it. */
#include <dlfcn.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include "codegen/cuda/nvrtc.h"
#include "tests/support/check_main.h"
#include "tests/support/gpu.h"
#include "tests/support/gpu_kernel.h"
#include "tests/support/status_checks.h"

#define GOOD(call) ck_assert_int_eq((call), MOE_CU_SUCCESS)
enum { MB = 1 << 20, GRANULE = 2 * MB, N = 256 };

static const MoeCudaDriver *cu;

static void begin(const char *devices) {
    OK(moe_gpu_begin(devices, &cu));
}

/* A kernel that adds what stands in buffer 1 to buffer 0, element by element (int32). */
static void make_add(MoeGpuKernel *k) {
    int none[N] = {0};
    OK(moe_gpu_kernel_make(
        "sm_80", "",
        "i32 i = blockIdx.x * 64 + threadIdx.x; buf<i32>(a, 0)[i] += buf<i32>(a, 1)[i];", 64, 0,
        k));
    OK(moe_gpu_kernel_buf(k, 0, none, sizeof none));
    OK(moe_gpu_kernel_buf(k, 1, none, sizeof none));
    GOOD(cu->stream_synchronize(k->stream));
}

static MoeCuResult launch(MoeGpuKernel *k, MoeCuStream s, unsigned threads, unsigned shared_bytes) {
    MoeCuPtr args[5] = {k->stop, k->bufs[0], k->bufs[1], k->bufs[2], k->bufs[3]};
    void *params[1] = {args};
    return cu->launch(k->f, N / 64, 1, 1, threads, 1, 1, shared_bytes, s, params, NULL);
}

/* ---- memory ---- */

START_TEST(host_access) {
    MoeCuPtr p;
    begin("80");
    GOOD(cu->mem_alloc(&p, 4096));
    *(volatile int *)(uintptr_t)p = 1; /* SIGSEGV */
}
END_TEST

START_TEST(memory) {
    MoeCuPtr p, q;
    unsigned char got[1000];
    size_t left, total, before;
    begin("80");
    setenv("MOE_SIM_MEMORY", "1048576", 1);
    GOOD(cu->mem_info(&before, &total));
    ck_assert_uint_eq(total, MB);
    GOOD(cu->mem_alloc(&p, 1000));
    ck_assert_uint_eq(p % 256, 0);
    GOOD(cu->copy_out(got, p, 1000, NULL));
    for (int i = 0; i < 1000; i++)
        HOLD(got[i] == 0xff); /* fresh memory: NaNs */
    ck_assert_int_eq(cu->mem_alloc(&q, MB), MOE_CU_OUT_OF_MEMORY);
    GOOD(cu->mem_info(&left, &total));
    ck_assert_uint_eq(before - left, 1024);
    ck_assert_int_eq(cu->copy_out(got, p + 1, 1000, NULL), MOE_CU_INVALID_VALUE);
    ck_assert_int_eq(cu->set_bytes(p - 1, 0, 8, NULL), MOE_CU_INVALID_VALUE);
    ck_assert_int_eq(cu->mem_free(p + 256), MOE_CU_INVALID_VALUE);
    GOOD(cu->mem_free(p));
    ck_assert_int_eq(cu->copy_in(p, got, 8, NULL), MOE_CU_INVALID_VALUE);
    GOOD(cu->mem_alloc(&q, MB));
    GOOD(cu->mem_free(q));
}
END_TEST

static const MoeCuAllocationProp prop = {.type = MOE_CU_ALLOCATION_PINNED,
                                         .location = {MOE_CU_LOCATION_DEVICE, 0}};
static const MoeCuAccess access_rw = {{MOE_CU_LOCATION_DEVICE, 0}, MOE_CU_ACCESS_READWRITE};

/* A range of which parts are mapped: what is not mapped is not there, for copies and for kernels. */
START_TEST(reserved) {
    MoeCuPtr p;
    MoeCuMem mem[2];
    size_t granule, left, total;
    unsigned char got[16];
    begin("80");
    setenv("MOE_SIM_MEMORY", "4194304", 1);
    GOOD(cu->mem_granularity(&granule, &prop, MOE_CU_GRANULARITY_MINIMUM));
    ck_assert_uint_eq(granule, GRANULE);
    ck_assert_int_eq(cu->address_reserve(&p, 1000, 0, 0, 0), MOE_CU_INVALID_VALUE);
    GOOD(cu->address_reserve(&p, 64 * granule, 0, 0, 0)); /* more than there is memory */
    for (int i = 0; i < 2; i++) {
        GOOD(cu->mem_create(&mem[i], granule, &prop, 0));
        GOOD(cu->mem_map(p + (MoeCuPtr)i * granule, granule, 0, mem[i], 0));
        GOOD(cu->mem_release(mem[i]));
    }
    ck_assert_int_eq(cu->mem_create(&mem[0], granule, &prop, 0), MOE_CU_OUT_OF_MEMORY);
    ck_assert_int_eq(cu->set_bytes(p, 1, 8, NULL), MOE_CU_INVALID_VALUE); /* no access yet */
    GOOD(cu->mem_access(p, 2 * granule, &access_rw, 1));
    GOOD(cu->set_bytes(p + granule - 8, 3, 16, NULL)); /* across the two */
    GOOD(cu->copy_out(got, p + granule - 8, 16, NULL));
    for (int i = 0; i < 16; i++)
        HOLD(got[i] == 3);
    ck_assert_int_eq(cu->set_bytes(p + 2 * granule - 8, 3, 16, NULL), MOE_CU_INVALID_VALUE);
    ck_assert_int_eq(cu->address_free(p, 64 * granule),
                     MOE_CU_INVALID_VALUE); /* something is mapped */
    ck_assert_int_eq(cu->mem_unmap(p, granule / 2), MOE_CU_INVALID_VALUE);
    GOOD(cu->mem_unmap(p, 2 * granule));
    GOOD(cu->mem_info(&left, &total));
    ck_assert_uint_eq(left, total);
    GOOD(cu->address_free(p, 64 * granule));
}
END_TEST

/* ---- streams ---- */

/* Work runs when it is waited for, with what pinned memory holds then; other memory is read at once. */
START_TEST(streams) {
    MoeGpuKernel k;
    int plain[N], *pinned, got[N];
    begin("80");
    make_add(&k);
    GOOD(cu->host_alloc((void **)&pinned, sizeof plain, MOE_CU_HOST_PORTABLE));
    for (int i = 0; i < N; i++)
        plain[i] = pinned[i] = i;
    GOOD(cu->copy_in(k.bufs[0], plain, sizeof plain, k.stream));
    GOOD(cu->copy_in(k.bufs[1], pinned, sizeof plain, k.stream));
    GOOD(launch(&k, k.stream, 64, 0));
    for (int i = 0; i < N; i++)
        plain[i] = pinned[i] = 1000;
    GOOD(cu->copy_out(got, k.bufs[0], sizeof got, k.stream)); /* into such memory: waited for */
    for (int i = 0; i < N; i++)
        HOLD(got[i] == i + 1000);
    GOOD(cu->host_free(pinned));
    moe_gpu_kernel_free(&k);
}
END_TEST

/* Another stream sees what an event says it may, and nothing of what is not waited for. */
START_TEST(events) {
    MoeGpuKernel k;
    MoeCuStream other;
    MoeCuEvent e;
    float ms;
    int one[N], got[N];
    begin("80");
    make_add(&k);
    GOOD(cu->stream_create(&other, MOE_CU_STREAM_NON_BLOCKING));
    GOOD(cu->event_create(&e, MOE_CU_EVENT_DEFAULT));
    for (int i = 0; i < N; i++)
        one[i] = 1;
    GOOD(cu->copy_in(k.bufs[1], one, sizeof one, k.stream));
    GOOD(launch(&k, k.stream, 64, 0));
    GOOD(cu->event_record(e, k.stream));
    GOOD(launch(&k, k.stream, 64, 0)); /* nobody waits for this one */
    GOOD(cu->copy_out(got, k.bufs[0], sizeof got, other));
    HOLD(got[0] == 0);
    ck_assert_int_eq(cu->event_query(e), MOE_CU_NOT_READY);
    GOOD(cu->stream_wait(other, e, 0));
    GOOD(cu->copy_out(got, k.bufs[0], sizeof got, other));
    HOLD(got[0] == 1 && got[N - 1] == 1);
    GOOD(cu->event_query(e));
    GOOD(cu->stream_synchronize(k.stream));
    GOOD(cu->copy_out(got, k.bufs[0], sizeof got, other));
    HOLD(got[0] == 2);
    GOOD(cu->event_ms(&ms, e, e));
    ck_assert(ms == 0);
    GOOD(cu->event_destroy(e));
    GOOD(cu->stream_destroy(other));
    moe_gpu_kernel_free(&k);
}
END_TEST

/* Two streams captured into one graph; it runs as often as it is launched, never while captured. */
START_TEST(graphs) {
    MoeGpuKernel k;
    MoeCuStream other;
    MoeCuEvent fork, join;
    MoeCuGraph graph;
    MoeCuGraphExec exec;
    int one[N], got[N];
    begin("80");
    make_add(&k);
    for (int i = 0; i < N; i++)
        one[i] = 1;
    GOOD(cu->copy_in(k.bufs[1], one, sizeof one, k.stream));
    GOOD(cu->stream_synchronize(k.stream));
    GOOD(cu->stream_create(&other, MOE_CU_STREAM_NON_BLOCKING));
    GOOD(cu->event_create(&fork, MOE_CU_EVENT_DISABLE_TIMING));
    GOOD(cu->event_create(&join, MOE_CU_EVENT_DISABLE_TIMING));
    for (int joined = 0; joined < 2; joined++) {
        GOOD(cu->capture_begin(k.stream, MOE_CU_CAPTURE_THREAD_LOCAL));
        GOOD(launch(&k, k.stream, 64, 0));
        GOOD(cu->event_record(fork, k.stream));
        GOOD(cu->stream_wait(other, fork, 0));
        GOOD(launch(&k, other, 64, 0));
        GOOD(cu->event_record(join, other));
        if (joined)
            GOOD(cu->stream_wait(k.stream, join, 0));
        ck_assert_int_eq(cu->capture_end(k.stream, &graph), joined ? MOE_CU_SUCCESS : 904);
    }
    GOOD(cu->graph_instantiate(&exec, graph, 0));
    GOOD(cu->graph_destroy(graph));
    for (int i = 0; i < 3; i++)
        GOOD(cu->graph_launch(exec, k.stream));
    OK(moe_gpu_kernel_read(&k, 0, got));
    HOLD(got[0] == 6 && got[N - 1] == 6);
    GOOD(cu->graph_exec_destroy(exec));
    GOOD(cu->capture_begin(k.stream, MOE_CU_CAPTURE_GLOBAL));
    ck_assert_int_eq(cu->mem_alloc(&k.bufs[2], 64),
                     900); /* not allowed, and it spoils the capture */
    ck_assert_int_eq(cu->capture_end(k.stream, &graph), 901);
    GOOD(cu->capture_begin(k.stream, MOE_CU_CAPTURE_RELAXED));
    ck_assert_int_eq(cu->stream_synchronize(k.stream), 900);
    ck_assert_int_eq(cu->capture_end(k.stream, &graph), 901);
}
END_TEST

/* ---- launches ---- */

START_TEST(limits) {
    MoeGpuKernel k;
    begin("80");
    make_add(&k);
    ck_assert_int_eq(launch(&k, k.stream, 128, 0),
                     MOE_CU_LAUNCH_OUT_OF_RESOURCES); /* compiled for 64 */
    ck_assert_int_eq(launch(&k, k.stream, 0, 0), MOE_CU_INVALID_VALUE);
    GOOD(launch(&k, k.stream, 64, 48 << 10));
    ck_assert_int_eq(launch(&k, k.stream, 64, 64 << 10), MOE_CU_INVALID_VALUE); /* not asked for */
    GOOD(cu->function_set(k.f, MOE_CU_FUNC_MAX_DYNAMIC_SHARED_BYTES, 163 << 10));
    GOOD(launch(&k, k.stream, 64, 163 << 10));
    ck_assert_int_eq(cu->function_set(k.f, MOE_CU_FUNC_MAX_DYNAMIC_SHARED_BYTES, 164 << 10),
                     MOE_CU_INVALID_VALUE);
    moe_gpu_kernel_free(&k);
}
END_TEST

START_TEST(code) {
    MoeCuModule m;
    MoeCuFunction f;
    MoeGpuKernel k;
    MoeCudaCode c;
    begin("80");
    OK(moe_nvrtc_compile("sm_90a", "x", "extern \"C\" __global__ void x() {}", &c));
    ck_assert_int_eq(cu->module_load(&m, c.data, 0, NULL, NULL), MOE_CU_NO_BINARY_FOR_GPU);
    memset(c.data, 0, 4);
    ck_assert_int_eq(cu->module_load(&m, c.data, 0, NULL, NULL), MOE_CU_INVALID_IMAGE);
    free(c.data);
    make_add(&k);
    ck_assert_int_eq(cu->module_function(&f, k.module, "other"), MOE_CU_NOT_FOUND);
    FAILS(moe_nvrtc_compile("sm_80", "x", "extern \"C\" __global__ void x() { y(); }", &c),
          MOE_E_INTERNAL, "x.cu", "y");
    FAILS(moe_nvrtc_compile("sm_12", "x", "", &c), MOE_E_IO, "sm_12");
}
END_TEST

/* ---- faults on demand ---- */

START_TEST(launch_faults) {
    MoeGpuKernel k;
    begin("80");
    make_add(&k);
    if (_i == 0) {
        setenv("MOE_SIM_FAIL_LAUNCH", "2", 1);
        GOOD(launch(&k, k.stream, 64, 0));
        ck_assert_int_eq(launch(&k, k.stream, 64, 0), MOE_CU_LAUNCH_FAILED);
    } else if (_i == 1) {
        setenv("MOE_SIM_FAIL_LAUNCH", "other", 1);
        GOOD(launch(&k, k.stream, 64, 0));
        setenv("MOE_SIM_FAIL_LAUNCH", "te", 1);
        ck_assert_int_eq(launch(&k, k.stream, 64, 0), MOE_CU_LAUNCH_FAILED);
    } else {
        setenv("MOE_SIM_LOST_AFTER", "1", 1);
        GOOD(launch(&k, k.stream, 64, 0));
        ck_assert_int_eq(launch(&k, k.stream, 64, 0), 999);
    }
    ck_assert_int_ne(cu->stream_synchronize(k.stream), MOE_CU_SUCCESS); /* nothing works any more */
    ck_assert_int_ne(cu->copy_in(k.bufs[0], &k, 4, k.stream), MOE_CU_SUCCESS);
}
END_TEST

START_TEST(no_device) {
    ck_assert(moe_test_simulate("none"));
    FAILS(moe_cuda_driver(&cu), MOE_E_IO, "cuInit", "no NVIDIA GPU is visible");
}
END_TEST

/* A driver of CUDA 11 lacks what came later: the message names it. */
START_TEST(old_driver) {
    ck_assert(dlopen(MOE_BUILD_DIR "/tests/sim/old/libcuda.so.1", RTLD_NOW | RTLD_GLOBAL));
    FAILS(moe_cuda_driver(&cu), MOE_E_IO, "cuTensorMapEncodeTiled", "525");
}
END_TEST

/* A thread without a context. */
START_TEST(no_context) {
    MoeCuPtr p;
    begin("80");
    GOOD(cu->context_set(NULL));
    ck_assert_int_eq(cu->mem_alloc(&p, 64), 201);
    ck_assert(strstr(moe_gpu_last_words(), "cuCtxSetCurrent"));
}
END_TEST

int main(void) {
    Suite *s = suite_create("sim_driver");
    TCase *tc = tcase_create("sim_driver");
    tcase_set_timeout(tc, 120);
    tcase_add_test_raise_signal(tc, host_access, SIGSEGV);
    tcase_add_test(tc, memory);
    tcase_add_test(tc, reserved);
    tcase_add_test(tc, streams);
    tcase_add_test(tc, events);
    tcase_add_test(tc, graphs);
    tcase_add_test(tc, limits);
    tcase_add_test(tc, code);
    tcase_add_loop_test(tc, launch_faults, 0, 3);
    tcase_add_test(tc, no_device);
    tcase_add_test(tc, old_driver);
    tcase_add_test(tc, no_context);
    suite_add_tcase(s, tc);
    return moe_check_main(s);
}
