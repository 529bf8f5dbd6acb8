/* Targets by name: one row a family. In: "cpu", "cpu:CPU", "cuda:ARCH". Out: an owned MoeTarget. */
#include "codegen/codegen.h"

#include <string.h>
#include "base/str.h"
#include "codegen/cpu/cpu.h"
#include "codegen/cuda/cuda.h"

typedef struct {
    const char *family;
    MoeStatus (*create)(const char *variant, MoeTarget **out);
    bool (*runs_here)(const char *variant);
} Family;

static const Family families[] = {
    {"cpu", moe_cpu_target_create, moe_isa_runs_here},
    {"cuda", moe_cuda_target_create, moe_cuda_runs_here},
};
#define N_FAMILIES (sizeof families / sizeof families[0])

/* "cpu:znver4" -> the row of "cpu", variant "znver4" ("native" when none is given). */
static const Family *find_family(const char *name, const char **out_variant) {
    size_t n = strcspn(name, ":");
    *out_variant = name[n] == ':' ? name + n + 1 : "native";
    for (size_t i = 0; i < N_FAMILIES; i++)
        if (strlen(families[i].family) == n && strncmp(families[i].family, name, n) == 0)
            return &families[i];
    return NULL;
}

MoeStatus moe_target_create(const char *name, MoeTarget **out) {
    const char *variant;
    const Family *family = find_family(name, &variant);
    *out = NULL;
    if (!family) {
        const char *names[N_FAMILIES];
        for (size_t i = 0; i < N_FAMILIES; i++)
            names[i] = families[i].family;
        const char *near = moe_nearest_name(name, names, N_FAMILIES);
        return moe_error(
            MOE_E_MISUSE,
            "unknown target '%s'%s%s%s; use cpu:native, cpu:x86-64-v4, cpu:x86-64-v3, cpu:x86-64, "
            "cuda:native, cuda:sm_80, cuda:sm_90a or cuda:sm_100",
            name, near ? " (did you mean '" : "", near ? near : "", near ? "'?)" : "");
    }
    return family->create(variant, out);
}

bool moe_target_runs_here(const char *name) {
    const char *variant;
    const Family *family = find_family(name, &variant);
    return family && family->runs_here(variant);
}
