/* Instruction sets: which CPU names the target knows, what vectors they have, and whether this
 * machine runs them.
 *
 * In: "native" or a name of the table. Out: MoeIsa. "native" becomes the host's own name where the
 * table has it and the host has every feature that the row needs (a virtual machine may hide some),
 * else the best general level the host has. */
#include "codegen/cpu/isa.h"

#include <llvm-c/Core.h>
#include <llvm-c/TargetMachine.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/str.h"

typedef enum {
    LEVEL_V1,
    LEVEL_V2,
    LEVEL_V3,
    LEVEL_V4,
    LEVEL_ICL,
    LEVEL_BF16,
    LEVEL_NEON,
    N_LEVELS
} Level;

typedef struct {
    const char *needs; /* LLVM feature names a host must have to run code for it */
    int lanes;
    bool fma, bf16_dot;
    int tile_rows, tile_vectors;
} LevelInfo;

#define NEEDS_V2 "sse4.2 ssse3 popcnt sahf cx16 "
#define NEEDS_V3 NEEDS_V2 "avx avx2 fma bmi bmi2 f16c lzcnt movbe "
#define NEEDS_V4 NEEDS_V3 "avx512f avx512bw avx512cd avx512dq avx512vl "
#define NEEDS_ICL                                                                                  \
    NEEDS_V4 "avx512vnni avx512vbmi avx512vbmi2 avx512ifma avx512bitalg avx512vpopcntdq "

static const LevelInfo levels[N_LEVELS] = {
    [LEVEL_V1] = {"", 4, false, false, 6, 2},
    [LEVEL_V2] = {NEEDS_V2, 4, false, false, 6, 2},
    [LEVEL_V3] = {NEEDS_V3, 8, true, false, 6, 2},
    [LEVEL_V4] = {NEEDS_V4, 16, true, false, 8, 3},
    [LEVEL_ICL] = {NEEDS_ICL, 16, true, false, 8, 3},
    [LEVEL_BF16] = {NEEDS_ICL "avx512bf16 ", 16, true, true, 8, 3},
    [LEVEL_NEON] = {"neon ", 4, true, false, 6, 2},
};

static const struct {
    const char *name;
    Level level;
} cpus[] = {
    {"x86-64", LEVEL_V1},          {"x86-64-v2", LEVEL_V2},        {"x86-64-v3", LEVEL_V3},
    {"x86-64-v4", LEVEL_V4},       {"nehalem", LEVEL_V2},          {"haswell", LEVEL_V3},
    {"broadwell", LEVEL_V3},       {"skylake", LEVEL_V3},          {"alderlake", LEVEL_V3},
    {"raptorlake", LEVEL_V3},      {"znver1", LEVEL_V3},           {"znver2", LEVEL_V3},
    {"znver3", LEVEL_V3},          {"skylake-avx512", LEVEL_V4},   {"cascadelake", LEVEL_V4},
    {"icelake-client", LEVEL_ICL}, {"icelake-server", LEVEL_ICL},  {"tigerlake", LEVEL_ICL},
    {"rocketlake", LEVEL_ICL},     {"sapphirerapids", LEVEL_BF16}, {"emeraldrapids", LEVEL_BF16},
    {"graniterapids", LEVEL_BF16}, {"znver4", LEVEL_BF16},         {"znver5", LEVEL_BF16},
    {"neoverse-n1", LEVEL_NEON},   {"neoverse-n2", LEVEL_NEON},    {"neoverse-v1", LEVEL_NEON},
    {"neoverse-v2", LEVEL_NEON},   {"cortex-a72", LEVEL_NEON},     {"cortex-a76", LEVEL_NEON},
};
#define N_CPUS (sizeof cpus / sizeof cpus[0])

static bool host_is_aarch64(void) {
    char *triple = LLVMGetDefaultTargetTriple();
    bool yes = strncmp(triple, "aarch64", 7) == 0 || strncmp(triple, "arm64", 5) == 0;
    LLVMDisposeMessage(triple);
    return yes;
}

/* features: "+a,-b,...": whether every word of `needs` is there with a plus. */
static bool has_all(const char *features, const char *needs) {
    while (*needs) {
        size_t n = strcspn(needs, " ");
        bool found = false;
        for (const char *p = features; p && *p && !found; p = strchr(p, ',')) {
            p += *p == ',';
            found = p[0] == '+' && strncmp(p + 1, needs, n) == 0 && (p[1 + n] == ',' || !p[1 + n]);
        }
        if (!found)
            return false;
        needs += n + (needs[n] == ' ');
    }
    return true;
}

static bool host_runs(Level level) {
    bool arm = host_is_aarch64();
    if (arm || level == LEVEL_NEON)
        return arm && level == LEVEL_NEON;
    char *features = LLVMGetHostCPUFeatures();
    bool yes = has_all(features, levels[level].needs);
    LLVMDisposeMessage(features);
    return yes;
}

static bool find_cpu(const char *name, size_t *out) {
    for (size_t i = 0; i < N_CPUS; i++)
        if (strcmp(cpus[i].name, name) == 0) {
            *out = i;
            return true;
        }
    return false;
}

/* The table's row for this machine. */
static size_t native_row(void) {
    char *name = LLVMGetHostCPUName();
    size_t row;
    bool known = find_cpu(name, &row) && host_runs(cpus[row].level);
    LLVMDisposeMessage(name);
    if (known)
        return row;
    static const char *const general[] = {"x86-64-v4", "x86-64-v3", "x86-64-v2", "neoverse-n1"};
    for (size_t i = 0; i < sizeof general / sizeof general[0]; i++)
        if (find_cpu(general[i], &row) && host_runs(cpus[row].level))
            return row;
    return 0; /* x86-64 */
}

MoeStatus moe_isa_get(const char *cpu, MoeIsa *out) {
    bool native = strcmp(cpu, "native") == 0;
    size_t row = 0;
    if (native) {
        row = native_row();
    } else if (!find_cpu(cpu, &row)) {
        const char *names[N_CPUS + 1];
        for (size_t i = 0; i < N_CPUS; i++)
            names[i] = cpus[i].name;
        names[N_CPUS] = "native";
        const char *near = moe_nearest_name(cpu, names, N_CPUS + 1);
        return moe_error(
            MOE_E_MISUSE,
            "unknown CPU '%s' in the target's name%s%s%s; use cpu:native, cpu:x86-64-v4, "
            "cpu:x86-64-v3, cpu:x86-64 or a CPU's name such as cpu:znver4",
            cpu, near ? " (did you mean '" : "", near ? near : "", near ? "'?)" : "");
    }
    const LevelInfo *level = &levels[cpus[row].level];
    *out = (MoeIsa){.lanes = level->lanes,
                    .bf16_dot = level->bf16_dot,
                    .fma = level->fma,
                    .tile_rows = level->tile_rows,
                    .tile_vectors = level->tile_vectors};
    snprintf(out->cpu, sizeof out->cpu, "%s", cpus[row].name);
    /* The host's own triple where it is of the same architecture, so that object formats agree. */
    bool arm = cpus[row].level == LEVEL_NEON;
    if (arm == host_is_aarch64()) {
        char *triple = LLVMGetDefaultTargetTriple();
        snprintf(out->triple, sizeof out->triple, "%s", triple);
        LLVMDisposeMessage(triple);
    } else {
        snprintf(out->triple, sizeof out->triple, "%s-unknown-linux-gnu",
                 arm ? "aarch64" : "x86_64");
    }
    if (native) {
        char *features = LLVMGetHostCPUFeatures();
        out->features = strdup(features);
        LLVMDisposeMessage(features);
    } else {
        out->features = strdup("");
    }
    return out->features ? NULL : moe_error(MOE_E_NOMEM, "out of memory");
}

void moe_isa_free(MoeIsa *isa) {
    free(isa->features);
    isa->features = NULL;
}

/* The x86-64 levels are sets of features. Any other name is a CPU whose code may hold instructions
 * that a CPU of the same level lacks: it runs on its own kind. */
bool moe_isa_runs_here(const char *cpu) {
    size_t row;
    if (strcmp(cpu, "native") == 0)
        return true;
    if (!find_cpu(cpu, &row) || !host_runs(cpus[row].level))
        return false;
    return strncmp(cpu, "x86-64", 6) == 0 || row == native_row();
}

void moe_isa_llvm_version(char out[32]) {
    unsigned major = 0, minor = 0, patch = 0;
    LLVMGetVersion(&major, &minor, &patch);
    snprintf(out, 32, "%u.%u.%u", major, minor, patch);
}
