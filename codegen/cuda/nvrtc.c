/* Compiling kernels by NVRTC. In: the text of a unit. Out: a cubin and what ptxas said of it.
 *
 * Options: a product and a sum are two roundings wherever the text does not say fmaf (--fmad=false), so that the bits do not
 * depend on what ops were fused; division, square root and denormals as IEEE 754 has them (NVRTC's defaults). Generic lambdas
 * are functions of the device (NVRTC takes them for the host's otherwise). --minimal leaves out built-in declarations that no
 * kernel uses, of textures and of the CUDA runtime: a tenth of all the time and more. */
#include "codegen/cuda/nvrtc.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "base/dynlib.h"
#include "base/pool.h"
#include "base/str.h"
#include "codegen/cuda/cache.h"

/* Of nvrtc.h, CUDA 12.0 and newer. */
typedef struct NvrtcProgramRep *NvrtcProgram;
enum { NVRTC_OUT_OF_MEMORY = 1, NVRTC_INVALID_OPTION = 5 };

#define NVRTC_FUNCTIONS(X)                                                                         \
    X(int, version, "nvrtcVersion", (int *major, int *minor))                                      \
    X(const char *, error_string, "nvrtcGetErrorString", (int result))                             \
    X(int, create, "nvrtcCreateProgram",                                                           \
      (NvrtcProgram * p, const char *text, const char *name, int n_headers,                        \
       const char *const *headers, const char *const *header_names))                               \
    X(int, compile, "nvrtcCompileProgram", (NvrtcProgram p, int n, const char *const *options))    \
    X(int, log_size, "nvrtcGetProgramLogSize", (NvrtcProgram p, size_t * n))                       \
    X(int, log, "nvrtcGetProgramLog", (NvrtcProgram p, char *log))                                 \
    X(int, cubin_size, "nvrtcGetCUBINSize", (NvrtcProgram p, size_t * n))                          \
    X(int, cubin, "nvrtcGetCUBIN", (NvrtcProgram p, char *cubin))                                  \
    X(int, destroy, "nvrtcDestroyProgram", (NvrtcProgram * p))

typedef struct {
#define X(ret, member, symbol, params) ret(*member) params;
    NVRTC_FUNCTIONS(X)
#undef X
} Nvrtc;

static Nvrtc nvrtc;

static const MoeDynSymbol symbols[] = {
#define X(ret, member, symbol, params) {symbol, offsetof(Nvrtc, member)},
    NVRTC_FUNCTIONS(X)
#undef X
};

static const char *const sonames[] = {"libnvrtc.so.13", "libnvrtc.so.12", NULL};

/* A toolkit, or the wheels nvidia-cuda-nvrtc (CUDA 13) and nvidia-cuda-nvrtc-cu12. */
static const char *const dirs[] = {MOE_DYNLIB_TOOLKIT_DIRS("cuda_nvrtc"), NULL};

static MoeDynLib library = {
    .what = "NVRTC, NVIDIA's compiler for kernels",
    .sonames = sonames,
    .dirs = dirs,
    .companions = "libnvrtc-builtins.so*",
    .install = "install CUDA 12 or 13 (its nvrtc package is enough), or `pip install "
               "nvidia-cuda-nvrtc` in an active virtual environment, or set MOEC_CUDA_PATH to "
               "where libnvrtc is",
    .symbols = symbols,
    .n_symbols = sizeof symbols / sizeof *symbols,
    .table = &nvrtc,
    MOE_DYNLIB_CLOSED,
};

MoeStatus moe_nvrtc_version(int *out_major, int *out_minor) {
    MOE_TRY(moe_dynlib_open(&library));
    int r = nvrtc.version(out_major, out_minor);
    return r ? moe_error(MOE_E_IO, "nvrtcVersion failed: %s", nvrtc.error_string(r)) : NULL;
}

/* ---- ptxas's words ---- */

static bool has_word(const char *line, size_t n, const char *word) {
    return memmem(line, n, word, strlen(word)) != NULL;
}

/* The number before `word` in a line; 0: it is not there. */
static int number_before(const char *line, size_t n, const char *word) {
    const char *at = memmem(line, n, word, strlen(word)), *first = at;
    while (first && first > line && first[-1] >= '0' && first[-1] <= '9')
        first--;
    return first && first < at ? atoi(first) : 0;
}

MoeCudaResources moe_nvrtc_parse_log(const char *log) {
    MoeCudaResources r = {0};
    for (const char *line = log; *line;) {
        size_t n = strcspn(line, "\n");
        int registers = number_before(line, n, " registers");
        if (registers > r.registers)
            r.registers = registers;
        r.stack_bytes += number_before(line, n, " bytes stack frame");
        r.spill_bytes += number_before(line, n, " bytes spill stores") +
                         number_before(line, n, " bytes spill loads");
        r.shared_bytes += number_before(line, n, " bytes smem");
        r.warnings += has_word(line, n, "warning") || has_word(line, n, "(C75");
        line += n + (line[n] == '\n');
    }
    return r;
}

double moe_nvrtc_parse_seconds(const char *log) {
    static const char word[] = "Compile time = ";
    double ms = 0;
    for (const char *at = log; (at = strstr(at, word)); at += sizeof word)
        ms += strtod(at + sizeof word - 1, NULL);
    return ms / 1e3;
}

/* ---- compiling ---- */

static MoeStatus fails(int r, const char *call, const char *name) {
    return r ? moe_error(r == NVRTC_OUT_OF_MEMORY ? MOE_E_NOMEM : MOE_E_INTERNAL,
                         "kernel %s: %s failed: %s", name, call, nvrtc.error_string(r))
             : NULL;
}

static char *program_log(NvrtcProgram p) {
    size_t n = 0;
    if (nvrtc.log_size(p, &n))
        n = 0;
    char *log = calloc(1, n + 1);
    if (log && n && nvrtc.log(p, log))
        *log = 0;
    return log;
}

static MoeStatus not_compiled(int r, const char *arch, const char *name, const char *log) {
    int major = 0, minor = 0;
    nvrtc.version(&major, &minor);
    if (r == NVRTC_INVALID_OPTION)
        return moe_error(MOE_E_IO,
                         "NVRTC %d.%d (%s) does not know the options for %s: sm_100 needs 12.8 or "
                         "newer, sm_90a 12.0: %s",
                         major, minor, library.path, arch, log);
    return moe_error(MOE_E_INTERNAL, "NVRTC %d.%d could not compile kernel %s for %s (%s):\n%s",
                     major, minor, name, arch, nvrtc.error_string(r), log);
}

static MoeStatus take_cubin(NvrtcProgram p, const char *name, MoeCudaCode *out) {
    MOE_TRY(fails(nvrtc.cubin_size(p, &out->n), "nvrtcGetCUBINSize", name));
    out->data = malloc(out->n ? out->n : 1);
    if (!out->data)
        return moe_error(MOE_E_NOMEM, "no memory for %zu bytes of device code", out->n);
    MoeStatus st = fails(nvrtc.cubin(p, out->data), "nvrtcGetCUBIN", name);
    if (st) {
        free(out->data);
        out->data = NULL;
    }
    return st;
}

enum { MAX_OPTIONS = 6 };
typedef struct {
    char arch[64];
    const char *all[MAX_OPTIONS];
    int n;
} Options;

/* The last one is of CUDA 12.9; an older NVRTC takes longer without. */
static MoeStatus make_options(const char *arch, Options *out) {
    int major = 0, minor = 0;
    MOE_TRY(moe_nvrtc_version(&major, &minor));
    snprintf(out->arch, sizeof out->arch, "--gpu-architecture=%s", arch);
    const char *const all[MAX_OPTIONS] = {out->arch,
                                          "--std=c++17",
                                          "--fmad=false",
                                          "--device-as-default-execution-space",
                                          "--ptxas-options=-v",
                                          "--minimal"};
    memcpy(out->all, all, sizeof all);
    out->n = major > 12 || (major == 12 && minor >= 9) ? MAX_OPTIONS : MAX_OPTIONS - 1;
    return NULL;
}

static MoeStatus compile(const char *arch, const char *name, const char *text, const Options *o,
                         MoeCudaCode *out) {
    NvrtcProgram p = NULL;
    MoeStr file = {0};
    moe_str_printf(&file, "%s.cu", name);
    MoeStatus st =
        fails(nvrtc.create(&p, text, moe_str_c(&file), 0, NULL, NULL), "nvrtcCreateProgram", name);
    moe_str_free(&file);
    if (st)
        return st;
    double began = moe_now();
    int r = nvrtc.compile(p, o->n, o->all);
    out->seconds = moe_now() - began;
    char *log = program_log(p);
    if (!log)
        st = moe_error(MOE_E_NOMEM, "no memory for NVRTC's log");
    else if (r)
        st = not_compiled(r, arch, name, log);
    if (!st) {
        out->resources = moe_nvrtc_parse_log(log);
        out->ptxas_seconds = moe_nvrtc_parse_seconds(log);
        st = take_cubin(p, name, out);
    }
    free(log);
    nvrtc.destroy(&p);
    return st;
}

/* What decides the code: the text, the options, and this very library. */
static MoeStatus make_key(const char *text, const Options *o, MoeStr *out) {
    int major = 0, minor = 0;
    struct stat info = {0};
    MOE_TRY(moe_nvrtc_version(&major, &minor));
    (void)stat(library.path, &info); /* not found: all zero, the version is enough */
    moe_str_printf(out, "NVRTC %d.%d %s %lld %lld.%09ld\n", major, minor, library.path,
                   (long long)info.st_size, (long long)info.st_mtim.tv_sec,
                   (long)info.st_mtim.tv_nsec);
    for (int i = 0; i < o->n; i++)
        moe_str_printf(out, "%s\n", o->all[i]);
    moe_str_append(out, text);
    return NULL;
}

MoeStatus moe_nvrtc_compile(const char *arch, const char *name, const char *text,
                            MoeCudaCode *out) {
    Options options;
    MoeStr key = {0};
    *out = (MoeCudaCode){0};
    MOE_TRY(make_options(arch, &options));
    MoeStatus st = make_key(text, &options, &key);
    if (!st && !moe_cuda_cache_find(moe_str_c(&key), key.len, out)) {
        st = compile(arch, name, text, &options, out);
        if (!st)
            moe_cuda_cache_add(moe_str_c(&key), key.len, out);
    }
    moe_str_free(&key);
    return st;
}
