/* An NVIDIA GPU as a device: opened through the driver API, in the primary context of the device, which ranks that are threads
 * share. See cuda/device.h. */
#include "runtime/cuda/nccl.h"
#include "runtime/cuda/peer.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"

/* ---- errors ---- */

MoeStatus moe_cuda_enter(MoeDeviceCuda *d) {
    if (d->failed)
        return moe_error(MOE_E_IO, "%s", d->failed);
    return moe_cuda_check(d, d->cu->context_set(d->context), "cuCtxSetCurrent");
}

MoeStatus moe_cuda_check(MoeDeviceCuda *d, MoeCuResult r, const char *what, ...) {
    if (r == MOE_CU_SUCCESS)
        return NULL;
    MoeStr s = {0};
    va_list args;
    va_start(args, what);
    moe_str_vprintf(&s, what, args);
    va_end(args);
    MoeStatus st = moe_cuda_status(r, "GPU %d (%s): %s", d->ordinal, d->name, moe_str_c(&s));
    moe_str_free(&s);
    if (r != MOE_CU_OUT_OF_MEMORY && !d->failed)
        d->failed = strdup(moe_status_message(st));
    return st;
}

/* For an event. */
MoeStatus moe_cuda_await(MoeDeviceCuda *d, MoeCuEvent e, const char *what) {
    if (d->peers)
        return moe_cuda_peers_await(d, e);
    MOE_TRY(moe_cuda_nccl_await(d, e));
    return moe_cuda_check(d, d->cu->event_synchronize(e),
                          "waiting for %s, running program %s up to step %s", what,
                          d->program ? d->program : "none", d->step ? d->step : "none");
}

/* With peers: their part first, which an end of theirs ends. */
static MoeStatus await_peers(MoeDeviceCuda *d) {
    if (!d->peers)
        return NULL;
    MOE_TRY(moe_cuda_check(d, d->cu->event_record(d->peers->idle, d->stream), "cuEventRecord"));
    return moe_cuda_peers_await(d, d->peers->idle);
}

MoeStatus moe_cuda_wait(MoeDeviceCuda *d) {
    MOE_TRY(moe_cuda_nccl_wait(d, d->stream));
    MOE_TRY(await_peers(d));
    MoeCuResult r = d->cu->stream_synchronize(d->stream);
    d->transfer.gone = d->transfer.sent;
    if (!d->step)
        return moe_cuda_check(d, r, "waiting for copies");
    return moe_cuda_check(d, r, "running program %s up to step %s", d->program, d->step);
}

/* ---- which device ---- */

/* "cuda:sm_90a" -> 9, 0, exact. */
static MoeStatus read_target(const char *target, int *major, int *minor, bool *exact) {
    const char *at = strstr(target, "sm_");
    char *end = NULL;
    long n = at ? strtol(at + 3, &end, 10) : 0;
    if (!at || n < 10 || n > 9999 || (*end && (end[1] || !isalpha((unsigned char)*end))))
        return moe_error(MOE_E_INPUT,
                         "the plan is for target %s, which this moec does not know; compile it "
                         "again, for cuda:native or cpu",
                         target);
    *major = (int)(n / 10);
    *minor = (int)(n % 10);
    *exact = *end != 0;
    return NULL;
}

/* Code runs on its own capability; but for 'a' architectures also on later ones of the same major number. */
static MoeStatus check_capability(const MoeDeviceCuda *d) {
    int major = 0, minor = 0, has_major = 0, has_minor = 0;
    bool exact = false;
    MOE_TRY(read_target(d->plan->target, &major, &minor, &exact));
    MOE_TRY(moe_cuda_status(d->cu->device_attribute(&has_major, MOE_CU_ATTR_MAJOR, d->device),
                            "cuDeviceGetAttribute of GPU %d", d->ordinal));
    MOE_TRY(moe_cuda_status(d->cu->device_attribute(&has_minor, MOE_CU_ATTR_MINOR, d->device),
                            "cuDeviceGetAttribute of GPU %d", d->ordinal));
    if (has_major == major && (has_minor == minor || (!exact && has_minor > minor)))
        return NULL;
    const char *line = json_string_value(json_object_get(d->plan->json, "compile"));
    return moe_error(MOE_E_INPUT,
                     "the plan is for %s, and GPU %d (%s) has compute capability %d.%d: compile it "
                     "again with --target=cuda:native (it was made by: %s), or choose another GPU "
                     "with --device",
                     d->plan->target, d->ordinal, d->name, has_major, has_minor,
                     line ? line : "moec compile");
}

static MoeStatus choose(MoeDeviceCuda *d, const MoeDevicePlace *place) {
    int n = 0;
    MOE_TRY(moe_cuda_status(d->cu->device_count(&n), "cuDeviceGetCount"));
    d->ordinal = place->device >= 0 ? place->device : n > 0 ? place->local % n : 0;
    MOE_TRY(moe_cuda_device(d->ordinal, &d->device));
    MOE_TRY(moe_cuda_status(d->cu->device_name(d->name, (int)sizeof d->name - 1, d->device),
                            "cuDeviceGetName of GPU %d", d->ordinal));
    return check_capability(d);
}

/* ---- opening, closing ---- */

static void cuda_close(MoeDevice *base) {
    MoeDeviceCuda *d = (MoeDeviceCuda *)base;
    if (d->context) {
        const MoeCudaDriver *cu = d->cu;
        (void)cu->context_set(d->context);
        if (d->stream)
            (void)cu->stream_synchronize(d->stream);
        moe_cuda_blaslt_close(d);
        moe_cuda_cudnn_close(d);
        moe_cuda_unbind(d);
        moe_cuda_transfer_close(d);
        if (d->stop && !d->keep_memory)
            (void)cu->mem_free(d->stop);
        if (d->begin)
            (void)cu->event_destroy(d->begin);
        if (d->end)
            (void)cu->event_destroy(d->end);
        if (d->stream)
            (void)cu->stream_destroy(d->stream);
        (void)cu->context_release(d->device);
    }
    free(d->failed);
    free(d->access);
    free(d->has);
    free(d->chunks);
    free(d);
}

/* Once: the devices of all ranks find each other. */
static MoeStatus cuda_meet(MoeDevice *base, MoeExec *x) {
    MoeDeviceCuda *d = (MoeDeviceCuda *)base;
    if (d->met)
        return NULL;
    d->met = true;
    MOE_TRY(moe_cuda_peers_open(d, x));
    return d->peers ? NULL : moe_cuda_nccl_open(d, x, d->exchange);
}

static void cuda_leave(MoeDevice *base, MoeExec *x) {
    moe_cuda_peers_close((MoeDeviceCuda *)base, x);
    moe_cuda_nccl_close((MoeDeviceCuda *)base);
}

static int64_t cuda_beside(const MoeDevice *base) {
    const MoeDeviceCuda *d = (const MoeDeviceCuda *)base;
    return moe_cuda_blaslt_bytes(d) + moe_cuda_cudnn_bytes(d) + moe_cuda_nccl_bytes(d) +
           moe_cuda_peers_bytes(d);
}

static const MoeDeviceOps ops = {
    .close = cuda_close,
    .beside = cuda_beside,
    .meet = cuda_meet,
    .decide = moe_cuda_decide,
    .leave = cuda_leave,
    .alloc = moe_cuda_alloc,
    .slab = moe_cuda_slab,
    .release = moe_cuda_release,
    .read = moe_cuda_read,
    .write = moe_cuda_write,
    .zero = moe_cuda_zero,
    .ask = moe_cuda_ask,
    .asked = moe_cuda_asked,
    .answers = moe_cuda_answers,
    .forget = moe_cuda_forget,
    .bind = moe_cuda_bind,
    .run = moe_cuda_run,
    .fold = moe_cuda_fold,
    .clear_sums = moe_cuda_clear_sums,
    .add_sums = moe_cuda_add_sums,
    .stepped = moe_cuda_stepped,
    .timed = moe_cuda_timed,
    .settle = moe_cuda_settle,
    .guard = moe_cuda_guard,
    .replay = moe_cuda_replay,
    .carries = moe_cuda_carries,
    .exchange = moe_cuda_exchange,
};

static MoeStatus open_device(MoeDeviceCuda *d, const MoeDevicePlace *place) {
    MOE_TRY(moe_cuda_driver(&d->cu));
    MOE_TRY(choose(d, place));
    MOE_TRY(moe_cuda_check(d, d->cu->context_retain(&d->context, d->device),
                           "cuDevicePrimaryCtxRetain"));
    MOE_TRY(moe_cuda_enter(d));
    MOE_TRY(moe_cuda_check(d, d->cu->stream_create(&d->stream, MOE_CU_STREAM_NON_BLOCKING),
                           "cuStreamCreate"));
    MOE_TRY(
        moe_cuda_check(d, d->cu->event_create(&d->begin, MOE_CU_EVENT_DEFAULT), "cuEventCreate"));
    MOE_TRY(moe_cuda_check(d, d->cu->event_create(&d->end, MOE_CU_EVENT_DEFAULT), "cuEventCreate"));
    MOE_TRY(moe_cuda_transfer_open(d));
    return moe_cuda_table(d, sizeof(int32_t), "the stop flag", &d->stop);
}

MoeStatus moe_device_cuda(const MoePlan *plan, const MoeDevicePlace *place, MoeDevice **out) {
    *out = NULL;
    if (!plan->cubins.n)
        return moe_error(MOE_E_INTERNAL, "the plan is not linked");
    MoeDeviceCuda *d = calloc(1, sizeof *d);
    if (!d)
        return moe_error(MOE_E_NOMEM, "no memory for the plan's tables");
    d->base.ops = &ops;
    d->plan = plan;
    d->exchange = place->exchange;
    MoeStatus st = open_device(d, place);
    if (st) {
        cuda_close(&d->base);
        return st;
    }
    d->base.number = d->ordinal;
    *out = &d->base;
    return NULL;
}
