/* moec doctor: what is there of what moec can use, and the line that installs what is not. */
#include "cli/commands.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cublaslt.h"
#include "base/cuda_driver.h"
#include "base/cudnn.h"
#include "base/nccl.h"
#include "base/pool.h"
#include "base/str.h"
#include "codegen/codegen.h"
#include "codegen/cpu/isa.h"
#include "codegen/cuda/nvrtc.h"
#include "runtime/comm.h"

/* "ok       CPU       znver4" */
static void say(const char *state, const char *what, const char *text) {
    printf("%-8s %-12s %s\n", state, what, text);
}

/* What is missing, in the words of who looked for it: a line each. Takes st. */
static void say_missing(const char *what, MoeStatus st) {
    const char *text = moe_status_message(st);
    printf("%-8s %s\n", "missing", what);
    for (size_t n; *text; text += n + (text[n] != 0)) {
        n = strcspn(text, "\n");
        printf("  %.*s\n", (int)n, text);
    }
    moe_status_free(st);
}

/* ---- the machine ---- */

static MoeStatus see_cpu(void) {
    MoeTarget *t = NULL;
    char text[160];
    MOE_TRY(moe_target_create("cpu", &t));
    snprintf(text, sizeof text, "%.64s, %d usable cores", t->name + strlen("cpu:"), moe_cpu_count());
    t->destroy(t);
    say("ok", "CPU", text);
    return NULL;
}

static void see_memory(void) {
    char all[32], left[32], text[96];
    double page = (double)sysconf(_SC_PAGESIZE);
    moe_format_bytes(page * (double)sysconf(_SC_PHYS_PAGES), all);
    moe_format_bytes(page * (double)sysconf(_SC_AVPHYS_PAGES), left);
    snprintf(text, sizeof text, "%s, %s of it free", all, left);
    say("ok", "memory", text);
}

static void see_llvm(void) {
    char text[32];
    moe_isa_llvm_version(text);
    say("ok", "LLVM", text);
}

static void see_mpi(void) {
    MoeStatus st = moe_comm_mpi_check();
    if (st)
        say_missing("MPI", st);
    else
        say("ok", "MPI", "the plugin libmoe_mpi.so opens: moec run under mpirun");
}

/* ---- NVIDIA ---- */

static MoeStatus see_device(const MoeCudaDriver *cu, int i) {
    MoeCuDevice d;
    MoeCuContext context = NULL;
    int major = 0, minor = 0, units = 0;
    size_t left = 0, all = 0;
    char name[96] = "", what[24], text[256], left_text[32], all_text[32];
    MOE_TRY(moe_cuda_device(i, &d));
    MOE_TRY(moe_cuda_status(cu->device_name(name, (int)sizeof name - 1, d), "cuDeviceGetName"));
    MOE_TRY(moe_cuda_status(cu->device_attribute(&major, MOE_CU_ATTR_MAJOR, d), "capability"));
    MOE_TRY(moe_cuda_status(cu->device_attribute(&minor, MOE_CU_ATTR_MINOR, d), "capability"));
    MOE_TRY(moe_cuda_status(cu->device_attribute(&units, MOE_CU_ATTR_MULTIPROCESSORS, d),
                            "multiprocessors"));
    MOE_TRY(moe_cuda_status(cu->context_retain(&context, d), "cuDevicePrimaryCtxRetain"));
    MoeStatus st = moe_cuda_status(cu->context_set(context), "cuCtxSetCurrent");
    if (!st)
        st = moe_cuda_status(cu->mem_info(&left, &all), "cuMemGetInfo");
    (void)cu->context_release(d);
    if (st)
        return st;
    moe_format_bytes((double)left, left_text);
    moe_format_bytes((double)all, all_text);
    snprintf(what, sizeof what, "GPU %d", i);
    snprintf(text, sizeof text, "%s, capability %d.%d, %d multiprocessors, %s, %s of it free", name,
             major, minor, units, all_text, left_text);
    say("ok", what, text);
    return NULL;
}

static MoeStatus see_devices(const MoeCudaDriver *cu) {
    int version = 0, n = 0;
    char text[640];
    MOE_TRY(moe_cuda_status(cu->driver_version(&version), "cuDriverGetVersion"));
    snprintf(text, sizeof text, "for CUDA %d.%d (%s)", version / 1000, version % 1000 / 10,
             moe_cuda_driver_path());
    say("ok", "driver", text);
    MOE_TRY(moe_cuda_status(cu->device_count(&n), "cuDeviceGetCount"));
    for (int i = 0; i < n; i++) {
        MoeStatus st = see_device(cu, i);
        if (st) {
            snprintf(text, sizeof text, "GPU %d", i);
            say_missing(text, st);
        }
    }
    return NULL;
}

static void see_driver(void) {
    const MoeCudaDriver *cu;
    MoeStatus st = moe_cuda_driver(&cu);
    if (!st)
        st = see_devices(cu);
    if (st)
        say_missing("driver", st);
}

static void see_nvrtc(void) {
    int major = 0, minor = 0;
    char text[64];
    MoeStatus st = moe_nvrtc_version(&major, &minor);
    snprintf(text, sizeof text, "%d.%d: moec compile --target=cuda:...", major, minor);
    if (st)
        say_missing("NVRTC", st);
    else
        say("ok", "NVRTC", text);
}

static void see_nccl(void) {
    const MoeNccl *nccl;
    char version[24], text[640];
    MoeStatus st = moe_nccl(&nccl);
    if (st) {
        say_missing("NCCL", st);
        return;
    }
    snprintf(text, sizeof text, "%s: GPUs of several processes (%s)", moe_nccl_version(version),
             moe_nccl_path());
    say("ok", "NCCL", text);
}

static void see_cudnn(void) {
    const MoeCudnn *c;
    char text[640];
    MoeStatus st = moe_cudnn(&c);
    if (st) {
        say_missing("cuDNN", st);
        return;
    }
    size_t v = c->version();
    snprintf(text, sizeof text, "%zu.%zu.%zu: moec run --attention auto|cudnn (%s)", v / 10000,
             v / 100 % 100, v % 100, moe_cudnn_path());
    say("ok", "cuDNN", text);
}

static void see_cublaslt(void) {
    const MoeCublasLt *lt;
    char version[24], text[640];
    MoeStatus st = moe_cublaslt(&lt);
    if (st) {
        say_missing("cuBLASLt", st);
        return;
    }
    snprintf(text, sizeof text, "%s: moec run --dense auto|cublaslt (%s)",
             moe_cublaslt_version_text(lt->version(), version), moe_cublaslt_path());
    say("ok", "cuBLASLt", text);
}

MoeStatus moe_cmd_doctor(const MoeOptions *o) {
    MOE_TRY(moe_options_expect(o, 0));
    printf("moec %s\n", MOE_VERSION);
    MOE_TRY(see_cpu());
    see_memory();
    see_llvm();
    see_mpi();
    see_driver();
    see_nvrtc();
    see_nccl();
    see_cudnn();
    see_cublaslt();
    return NULL;
}
