/* The driver API's table of functions, and statuses from its results. */
#include "base/cuda_driver.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include "base/dynlib.h"
#include "base/str.h"

static MoeCudaDriver driver;

static const MoeDynSymbol symbols[] = {
#define X(member, symbol, params) {symbol, offsetof(MoeCudaDriver, member)},
    MOE_CUDA_DRIVER_FUNCTIONS(X)
#undef X
};

static const char *const sonames[] = {"libcuda.so.1", NULL};

static MoeDynLib library = {
    .what = "NVIDIA's driver (libcuda)",
    .sonames = sonames,
    .install = "install NVIDIA's driver of version 525 or newer (Debian: apt-get install "
               "nvidia-driver; in a container: "
               "start it with --gpus all), or compile for cpu",
    .symbols = symbols,
    .n_symbols = sizeof symbols / sizeof *symbols,
    .table = &driver,
    MOE_DYNLIB_CLOSED,
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool ready; /* cuInit has succeeded */

static MoeStatus init(void) {
    MOE_TRY(moe_dynlib_open(&library));
    if (ready)
        return NULL;
    /* Streams of one device that wait for each other by words in memory must not share a queue; the default is 8. */
    setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
    MOE_TRY(moe_cuda_status(driver.init(0), "cuInit"));
    ready = true;
    return NULL;
}

MoeStatus moe_cuda_driver(const MoeCudaDriver **out) {
    pthread_mutex_lock(&lock);
    MoeStatus st = init();
    pthread_mutex_unlock(&lock);
    *out = st ? NULL : &driver;
    return st;
}

const char *moe_cuda_driver_path(void) {
    return library.path;
}

/* What to do about results that have one cause. */
static const char *advice(MoeCuResult r) {
    static const struct {
        MoeCuResult result;
        const char *text;
    } rows[] = {
        {MOE_CU_NO_DEVICE,
         "no NVIDIA GPU is visible (nvidia-smi, CUDA_VISIBLE_DEVICES); compile for cpu"},
        {MOE_CU_INVALID_IMAGE, "the device code is damaged: compile the plan again"},
        {MOE_CU_NO_BINARY_FOR_GPU,
         "the plan is for another GPU: compile it with --target=cuda:native"},
        {MOE_CU_ILLEGAL_ADDRESS,
         "a kernel reached outside its buffers; this process cannot use the GPU any more"},
        {MOE_CU_LAUNCH_OUT_OF_RESOURCES, "the kernel needs more registers or shared memory than "
                                         "this GPU has: compile it with --target=cuda:native"},
        {MOE_CU_LAUNCH_TIMEOUT,
         "a kernel ran longer than this GPU's watchdog allows; use one without a display"},
        {MOE_CU_ILLEGAL_INSTRUCTION,
         "the plan is for another GPU: compile it with --target=cuda:native"},
        {MOE_CU_MISALIGNED_ADDRESS,
         "a kernel read across an alignment; this process cannot use the GPU any more"},
        {MOE_CU_LAUNCH_FAILED, "a kernel failed; this process cannot use the GPU any more"},
        {214, "the GPU's memory has an error that ECC cannot correct: see nvidia-smi -q, and reset "
              "the GPU"},
        {46, "another process holds the GPU in exclusive mode: see nvidia-smi"},
        {803, "driver and libcuda are of different versions: reboot, or reload the kernel module"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].result == r)
            return rows[i].text;
    return NULL;
}

static void append_memory(MoeStr *s) {
    size_t left = 0, total = 0;
    char a[32], b[32];
    if (driver.mem_info(&left, &total) == MOE_CU_SUCCESS)
        moe_str_printf(s,
                       ": %s of the device's %s are free; use a smaller batch, more micro-batches, "
                       "or --recompute",
                       moe_format_bytes((double)left, a), moe_format_bytes((double)total, b));
}

MoeStatus moe_cuda_status(MoeCuResult r, const char *what, ...) {
    if (r == MOE_CU_SUCCESS)
        return NULL;
    MoeStr s = {0};
    const char *name = NULL, *text = NULL, *hint = advice(r);
    va_list args;
    va_start(args, what);
    moe_str_vprintf(&s, what, args);
    va_end(args);
    if (driver.error_name && driver.error_name(r, &name) == MOE_CU_SUCCESS && name)
        moe_str_printf(&s, " failed: %s", name);
    else
        moe_str_printf(&s, " failed: CUDA error %d", r);
    if (driver.error_string && driver.error_string(r, &text) == MOE_CU_SUCCESS && text)
        moe_str_printf(&s, " (%s)", text);
    if (hint)
        moe_str_printf(&s, ": %s", hint);
    if (r == MOE_CU_OUT_OF_MEMORY && driver.mem_info)
        append_memory(&s);
    MoeStatus st =
        moe_error(r == MOE_CU_OUT_OF_MEMORY ? MOE_E_NOMEM : MOE_E_IO, "%s", moe_str_c(&s));
    moe_str_free(&s);
    return st;
}

MoeStatus moe_cuda_device(int ordinal, MoeCuDevice *out) {
    const MoeCudaDriver *cu;
    int n = 0;
    MOE_TRY(moe_cuda_driver(&cu));
    MOE_TRY(moe_cuda_status(cu->device_count(&n), "cuDeviceGetCount"));
    if (n == 0)
        return moe_cuda_status(MOE_CU_NO_DEVICE, "looking for a device");
    if (ordinal < 0 || ordinal >= n)
        return moe_error(MOE_E_MISUSE, "there is no GPU %d: this machine has %d, counted from 0",
                         ordinal, n);
    return moe_cuda_status(cu->device_get(out, ordinal), "cuDeviceGet of device %d", ordinal);
}
