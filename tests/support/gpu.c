/* gpu.h */
#include "tests/support/gpu.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include "codegen/codegen.h"

/* The loader takes a library that is open for every later one of the same SONAME. */
static bool open_library(const char *path) {
    return dlopen(path, RTLD_NOW | RTLD_GLOBAL) != NULL;
}

bool moe_test_simulate(const char *devices) {
    setenv("MOE_SIM_DEVICES", devices, 1);
    setenv("MOEC_CACHE", MOE_SIM_LIBRARIES "/cache", 0);
    return open_library(MOE_SIM_LIBRARIES "/libcuda.so.1") &&
           open_library(MOE_SIM_LIBRARIES "/libnvrtc.so.13") &&
           open_library(MOE_SIM_LIBRARIES "/libcublasLt.so.13") &&
           open_library(MOE_SIM_LIBRARIES "/libcudnn.so.9") &&
           open_library(MOE_SIM_LIBRARIES "/libnccl.so.2");
}

void moe_test_compile_plainly(void) {
    setenv("MOE_SIM_OPTIMIZE", "0", 0);
    setenv("MOEC_CACHE", MOE_SIM_LIBRARIES "/cache-plain", 0);
}

static bool real(void) {
    const char *which = getenv("MOE_TEST_GPU");
    return which && strcmp(which, "real") == 0;
}

const char *moe_test_target(const char *target) {
    return real() && strcmp(target, "cuda:sm_80") == 0 ? "cuda:native" : target;
}

bool moe_test_does_all(const char *target) {
    return strncmp(target, "cuda:", 5) != 0 || real() || getenv("MOE_ALL_CASES");
}

bool moe_test_runs(const char *target) {
    static const struct {
        const char *target, *devices;
    } rows[] = {{"cuda:sm_80", "80"}, {"cuda:sm_90a", "90"}, {"cuda:sm_100", "100"}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (strcmp(target, rows[i].target) == 0) {
            if (real() ? i > 0 : !moe_test_simulate(rows[i].devices))
                return false;
        }
    return moe_target_runs_here(moe_test_target(target));
}
