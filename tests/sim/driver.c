/* driver.h: devices, contexts, errors, faults on demand. */
#include "tests/sim/driver.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool initialised;
static int n_devices;
static struct CUctx_st contexts[MOE_SIM_MAX_DEVICES];
static _Thread_local CUcontext current;
static char last_words[1024];
static long n_waits;
static long n_launches; /* since the variable that counts them was set */

static const MoeSimDevice kinds[] = {
    {80, 108, 163 << 10, "Simulated A100"},
    {86, 84, 99 << 10, "Simulated A40"},
    {90, 132, 227 << 10, "Simulated H100"},
    {100, 148, 227 << 10, "Simulated B200"},
};

/* ---- errors ---- */

CUresult moe_sim_complain(CUresult r, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(last_words, sizeof last_words, fmt, ap);
    va_end(ap);
    if (!getenv("MOE_SIM_QUIET"))
        fprintf(stderr, "simulated GPU: %s\n", last_words);
    return r;
}

const char *moe_sim_last_words(void) {
    return last_words;
}

void moe_sim_count_wait(void) {
    n_waits++;
}

static size_t counts[N_COUNTS];

void moe_sim_count(MoeSimCount what, size_t n) {
    counts[what] += n;
}

__attribute__((destructor)) static void write_counts(void) {
    const char *path = getenv("MOE_SIM_TRAFFIC");
    FILE *f = path && *path ? fopen(path, "w") : NULL;
    if (!f)
        return;
    fprintf(f, "bytes_in %zu\nbytes_out %zu\nkernels %zu\ngraphs %zu\n", counts[COUNT_BYTES_IN],
            counts[COUNT_BYTES_OUT], counts[COUNT_KERNELS], counts[COUNT_GRAPHS]);
    fclose(f);
}

long moe_sim_waits(void) {
    pthread_mutex_lock(&lock);
    long n = n_waits;
    pthread_mutex_unlock(&lock);
    return n;
}

MOE_SIM_EXPORT CUresult cuGetErrorName(CUresult r, const char **out) {
    static const struct {
        CUresult r;
        const char *name;
    } rows[] = {
#define X(value, name, text) {name, #name},
        MOE_SIM_RESULTS(X)
#undef X
    };
    *out = NULL;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].r == r)
            *out = rows[i].name;
    return *out ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

MOE_SIM_EXPORT CUresult cuGetErrorString(CUresult r, const char **out) {
    static const struct {
        CUresult r;
        const char *text;
    } rows[] = {
#define X(value, name, text) {name, text},
        MOE_SIM_RESULTS(X)
#undef X
    };
    *out = NULL;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].r == r)
            *out = rows[i].text;
    return *out ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* ---- doors ---- */

CUresult moe_sim_enter_bare(const char *call) {
    pthread_mutex_lock(&lock);
    return initialised ? CUDA_SUCCESS
                       : moe_sim_complain(CUDA_ERROR_NOT_INITIALIZED, "%s before cuInit", call);
}

CUresult moe_sim_enter(const char *call, CUcontext *out) {
    CUresult r = moe_sim_enter_bare(call);
    *out = current;
    if (r)
        return r;
    if (!current || current->retained == 0)
        return moe_sim_complain(CUDA_ERROR_INVALID_CONTEXT,
                                "%s: no context is current in this thread (cuCtxSetCurrent)", call);
    return current->error;
}

static pthread_cond_t change = PTHREAD_COND_INITIALIZER;
static uint64_t n_changes;

void moe_sim_changed(void) {
    n_changes++;
    pthread_cond_broadcast(&change);
}

bool moe_sim_wait_change(double seconds) {
    uint64_t before = n_changes;
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    double end = (double)t.tv_sec + 1e-9 * (double)t.tv_nsec + seconds;
    t.tv_sec = (time_t)end;
    t.tv_nsec = (long)(1e9 * (end - (double)t.tv_sec));
    while (n_changes == before && !pthread_cond_timedwait(&change, &lock, &t))
        ;
    return n_changes != before;
}

CUresult moe_sim_leave(CUresult r) {
    pthread_mutex_unlock(&lock);
    return r;
}

/* ---- devices ---- */

static const MoeSimDevice *kind_of(int capability) {
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (kinds[i].capability == capability)
            return &kinds[i];
    return NULL;
}

const MoeSimDevice *moe_sim_device(CUcontext c) {
    return kind_of(c->capability);
}

CUcontext moe_sim_context_of(CUdevice d) {
    return d >= 0 && d < n_devices ? &contexts[d] : NULL;
}

size_t moe_sim_total_memory(void) {
    const char *s = getenv("MOE_SIM_MEMORY");
    return s && *s ? (size_t)strtoull(s, NULL, 10) : (size_t)16 << 30;
}

static CUresult find_devices(void) {
    const char *s = getenv("MOE_SIM_DEVICES");
    if (!s || !*s)
        s = "90";
    if (!strcmp(s, "none"))
        return CUDA_ERROR_NO_DEVICE;
    for (n_devices = 0; *s && n_devices < MOE_SIM_MAX_DEVICES; s += *s == ',') {
        char *end;
        int capability = (int)strtol(s, &end, 10);
        if (end == s || !kind_of(capability))
            return moe_sim_complain(CUDA_ERROR_UNKNOWN,
                                    "MOE_SIM_DEVICES=%s: 80, 86, 90 and 100 can be simulated",
                                    getenv("MOE_SIM_DEVICES"));
        contexts[n_devices] = (struct CUctx_st){.device = n_devices, .capability = capability};
        n_devices++;
        s = end;
    }
    return CUDA_SUCCESS;
}

MOE_SIM_EXPORT CUresult cuInit(unsigned flags) {
    pthread_mutex_lock(&lock);
    CUresult r = flags ? CUDA_ERROR_INVALID_VALUE : initialised ? CUDA_SUCCESS : find_devices();
    initialised |= r == CUDA_SUCCESS;
    return moe_sim_leave(r);
}

MOE_SIM_EXPORT CUresult cuDriverGetVersion(int *out) {
    const char *s = getenv("MOE_SIM_DRIVER");
    *out = s && *s ? atoi(s) : MOE_SIM_DRIVER_VERSION;
    return CUDA_SUCCESS;
}

MOE_SIM_EXPORT CUresult cuDeviceGetCount(int *out) {
    CUresult r = moe_sim_enter_bare("cuDeviceGetCount");
    *out = n_devices;
    return moe_sim_leave(r);
}

MOE_SIM_EXPORT CUresult cuDeviceGet(CUdevice *out, int ordinal) {
    CUresult r = moe_sim_enter_bare("cuDeviceGet");
    *out = ordinal;
    return moe_sim_leave(r || moe_sim_context_of(ordinal) ? r : CUDA_ERROR_INVALID_DEVICE);
}

MOE_SIM_EXPORT CUresult cuDeviceGetName(char *out, int n, CUdevice d) {
    CUresult r = moe_sim_enter_bare("cuDeviceGetName");
    CUcontext c = moe_sim_context_of(d);
    if (!r && c)
        snprintf(out, (size_t)n, "%s", moe_sim_device(c)->name);
    return moe_sim_leave(r || c ? r : CUDA_ERROR_INVALID_DEVICE);
}

/* Of this machine's device `d`: all processes see the same ones. */
MOE_SIM_EXPORT CUresult cuDeviceGetUuid_v2(char *out, CUdevice d) {
    CUresult r = moe_sim_enter_bare("cuDeviceGetUuid");
    memset(out, 0, 16);
    memcpy(out, "simulated GPU", 13);
    out[15] = (char)d;
    return moe_sim_leave(r || moe_sim_context_of(d) ? r : CUDA_ERROR_INVALID_DEVICE);
}

MOE_SIM_EXPORT CUresult cuDeviceTotalMem_v2(size_t *out, CUdevice d) {
    CUresult r = moe_sim_enter_bare("cuDeviceTotalMem");
    *out = moe_sim_total_memory();
    return moe_sim_leave(r || moe_sim_context_of(d) ? r : CUDA_ERROR_INVALID_DEVICE);
}

MOE_SIM_EXPORT CUresult cuDeviceGetAttribute(int *out, int attribute, CUdevice d) {
    CUresult r = moe_sim_enter_bare("cuDeviceGetAttribute");
    CUcontext c = moe_sim_context_of(d);
    if (r || !c)
        return moe_sim_leave(r ? r : CUDA_ERROR_INVALID_DEVICE);
    const MoeSimDevice *k = moe_sim_device(c);
    const struct {
        int attribute, value;
    } rows[] = {
        {1, 1024},                         /* threads of a block */
        {2, 1024},                         /* .. along x */
        {5, 0x7fffffff},                   /* blocks along x */
        {8, 48 << 10},                     /* shared memory of a block, not asked for */
        {10, 32},                          /* a warp */
        {12, 65536},                       /* registers of a block */
        {16, k->multiprocessors},          /* */
        {31, 1},                           /* kernels beside each other */
        {39, 2048},                        /* threads of a multiprocessor */
        {40, 2},                           /* copy engines */
        {41, 1},                           /* one address space with the host */
        {75, k->capability / 10},          /* major */
        {76, k->capability % 10},          /* minor */
        {81, (int)k->shared_optin + 1024}, /* shared memory of a multiprocessor */
        {97, (int)k->shared_optin},        /* shared memory of a block, asked for */
        {102, 1},                          /* virtual memory */
        {115, 1},                          /* memory pools */
        {127, k->capability >= 90},        /* tensor maps */
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].attribute == attribute) {
            *out = rows[i].value;
            return moe_sim_leave(CUDA_SUCCESS);
        }
    return moe_sim_leave(moe_sim_complain(CUDA_ERROR_INVALID_VALUE,
                                          "cuDeviceGetAttribute: %d is not simulated", attribute));
}

/* ---- contexts ---- */

MOE_SIM_EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext *out, CUdevice d) {
    CUresult r = moe_sim_enter_bare("cuDevicePrimaryCtxRetain");
    *out = moe_sim_context_of(d);
    if (!r && !*out)
        r = CUDA_ERROR_INVALID_DEVICE;
    if (!r)
        (*out)->retained++;
    return moe_sim_leave(r);
}

MOE_SIM_EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice d) {
    CUresult r = moe_sim_enter_bare("cuDevicePrimaryCtxRelease");
    CUcontext c = moe_sim_context_of(d);
    if (!r && (!c || c->retained == 0))
        r = CUDA_ERROR_INVALID_CONTEXT;
    if (!r && --c->retained == 0) {
        moe_sim_flush(c);
        c->error = CUDA_SUCCESS;
    }
    return moe_sim_leave(r);
}

MOE_SIM_EXPORT CUresult cuCtxSetCurrent(CUcontext c) {
    CUresult r = moe_sim_enter_bare("cuCtxSetCurrent");
    if (!r)
        current = c;
    return moe_sim_leave(r);
}

MOE_SIM_EXPORT CUresult cuCtxGetCurrent(CUcontext *out) {
    CUresult r = moe_sim_enter_bare("cuCtxGetCurrent");
    *out = current;
    return moe_sim_leave(r);
}

MOE_SIM_EXPORT CUresult cuCtxGetDevice(CUdevice *out) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuCtxGetDevice", &c);
    *out = c ? c->device : 0;
    return moe_sim_leave(r);
}

MOE_SIM_EXPORT CUresult cuCtxSynchronize(void) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuCtxSynchronize", &c);
    if (!r)
        r = moe_sim_flush(c);
    return moe_sim_leave(r);
}

/* ---- faults on demand ---- */

/* Counts from when the variable got its value. */
CUresult moe_sim_launch_fault(CUcontext c, const char *kernel) {
    static char asked[64];
    const char *fail = getenv("MOE_SIM_FAIL_LAUNCH"), *lost = getenv("MOE_SIM_LOST_AFTER");
    char now[sizeof asked];
    snprintf(now, sizeof now, "%s/%s", fail ? fail : "", lost ? lost : "");
    if (strcmp(now, asked) != 0) {
        memcpy(asked, now, sizeof asked);
        n_launches = 0;
    }
    n_launches++;
    moe_sim_count(COUNT_KERNELS, 1);
    if (lost && *lost && n_launches > atol(lost))
        return c->error = moe_sim_complain(CUDA_ERROR_UNKNOWN,
                                           "the device is gone (MOE_SIM_LOST_AFTER=%s)", lost);
    if (!fail || !*fail)
        return CUDA_SUCCESS;
    bool number = *fail >= '0' && *fail <= '9';
    if (number ? n_launches == atol(fail) : strncmp(kernel, fail, strlen(fail)) == 0)
        return c->error =
                   moe_sim_complain(CUDA_ERROR_LAUNCH_FAILED,
                                    "kernel %s fails (MOE_SIM_FAIL_LAUNCH=%s)", kernel, fail);
    return CUDA_SUCCESS;
}
