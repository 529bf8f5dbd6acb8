/* libnvrtc.so.13 of the simulator: NVRTC's interface over a C++ compiler of the host. A unit becomes a shared object behind
 * a header (cubin.h), which the simulated driver loads; a text with errors fails with the compiler's words in the log.
 *
 * The compiler is MOE_SIM_CXX, or the clang that was there when the simulator was built. MOE_SIM_OPTIMIZE=0: units take a quarter
 * of the time to compile, and several times as long to run; the same results. Units are compiled without the
 * C++ library, without contraction of a*b+c (--fmad=false is asked for), without exceptions, and with misaligned accesses
 * as traps, for a GPU has no others. */
#include <fcntl.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "tests/sim/cubin.h"
#include "tests/sim/kernel_api.h"

#define EXPORT __attribute__((visibility("default")))

extern char **environ;

/* Another file where a header that units include is another: who caches code tells compilers apart by their file. */
EXPORT const char moe_sim_headers[] = MOE_SIM_HEADERS;

typedef enum {
    NVRTC_SUCCESS = 0,
    NVRTC_ERROR_OUT_OF_MEMORY = 1,
    NVRTC_ERROR_PROGRAM_CREATION_FAILURE = 2,
    NVRTC_ERROR_INVALID_INPUT = 3,
    NVRTC_ERROR_INVALID_PROGRAM = 4,
    NVRTC_ERROR_INVALID_OPTION = 5,
    NVRTC_ERROR_COMPILATION = 6,
    NVRTC_ERROR_INTERNAL_ERROR = 11
} nvrtcResult;

typedef struct Program {
    char *text, *name;
    char *log;   /* with its end; NULL: empty */
    char *cubin; /* NULL: not compiled */
    size_t cubin_bytes;
} * nvrtcProgram;

static const struct {
    const char *name;
    int capability;
    bool exact;
} archs[] = {{"sm_80", 80, false}, {"sm_86", 86, false},   {"sm_90", 90, false},
             {"sm_90a", 90, true}, {"sm_100", 100, false}, {"sm_100a", 100, true}};

EXPORT nvrtcResult nvrtcVersion(int *major, int *minor) {
    *major = 13;
    *minor = 0;
    return NVRTC_SUCCESS;
}

EXPORT const char *nvrtcGetErrorString(nvrtcResult r) {
    switch (r) {
    case NVRTC_SUCCESS:
        return "NVRTC_SUCCESS";
    case NVRTC_ERROR_OUT_OF_MEMORY:
        return "NVRTC_ERROR_OUT_OF_MEMORY";
    case NVRTC_ERROR_PROGRAM_CREATION_FAILURE:
        return "NVRTC_ERROR_PROGRAM_CREATION_FAILURE";
    case NVRTC_ERROR_INVALID_INPUT:
        return "NVRTC_ERROR_INVALID_INPUT";
    case NVRTC_ERROR_INVALID_PROGRAM:
        return "NVRTC_ERROR_INVALID_PROGRAM";
    case NVRTC_ERROR_INVALID_OPTION:
        return "NVRTC_ERROR_INVALID_OPTION";
    case NVRTC_ERROR_COMPILATION:
        return "NVRTC_ERROR_COMPILATION";
    case NVRTC_ERROR_INTERNAL_ERROR:
        return "NVRTC_ERROR_INTERNAL_ERROR";
    }
    return "NVRTC_ERROR unknown";
}

EXPORT nvrtcResult nvrtcCreateProgram(nvrtcProgram *out, const char *text, const char *name,
                                      int n_headers, const char *const *headers,
                                      const char *const *header_names) {
    (void)headers, (void)header_names;
    *out = NULL;
    if (!text || n_headers)
        return NVRTC_ERROR_INVALID_INPUT;
    nvrtcProgram p = calloc(1, sizeof *p);
    if (!p)
        return NVRTC_ERROR_OUT_OF_MEMORY;
    p->text = strdup(text);
    p->name = strdup(name && *name ? name : "default_program");
    *out = p;
    return NVRTC_SUCCESS;
}

EXPORT nvrtcResult nvrtcDestroyProgram(nvrtcProgram *p) {
    if (!p || !*p)
        return NVRTC_ERROR_INVALID_PROGRAM;
    free((*p)->text);
    free((*p)->name);
    free((*p)->log);
    free((*p)->cubin);
    free(*p);
    *p = NULL;
    return NVRTC_SUCCESS;
}

static nvrtcResult fails(nvrtcProgram p, nvrtcResult r, const char *why, const char *what) {
    size_t n = strlen(why) + strlen(what) + 4;
    free(p->log);
    p->log = malloc(n);
    if (p->log)
        snprintf(p->log, n, "%s%s\n", why, what);
    return r;
}

/* ---- files ---- */

/* The whole file, with a 0 behind it; NULL where it cannot be read. `before`: bytes left free in front. */
static char *read_file(const char *path, size_t before, size_t *out_n) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st)) {
        if (fd >= 0)
            close(fd);
        return NULL;
    }
    size_t n = (size_t)st.st_size, done = 0;
    char *p = malloc(before + n + 1);
    while (p && done < n) {
        ssize_t k = read(fd, p + before + done, n - done);
        if (k <= 0)
            break;
        done += (size_t)k;
    }
    close(fd);
    if (p)
        p[before + done] = 0;
    *out_n = before + done;
    return p;
}

/* The text, of which messages say that it is called `name`. */
static bool write_file(const char *path, const char *name, const char *text) {
    FILE *f = fopen(path, "we");
    if (!f)
        return false;
    bool good = fprintf(f, "#line 1 \"%s\"\n%s", name, text) >= 0;
    return fclose(f) == 0 && good;
}

/* ---- compiling ---- */

/* FMA as one instruction where the machine has it; else fmaf() of libm, which takes long, to the same bits. */
static const char *machine(void) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("fma") && __builtin_cpu_supports("avx2"))
        return "-march=x86-64-v3";
#endif
    return "-DMOE_SIM_PLAIN";
}

static const char *level(void) {
    const char *l = getenv("MOE_SIM_OPTIMIZE");
    return l && !strcmp(l, "0") ? "-O0" : "-O2";
}

static bool run(const char *const *argv, const char *log) {
    posix_spawn_file_actions_t files;
    pid_t pid;
    int status = -1;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, 1, log, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_adddup2(&files, 1, 2);
    posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
    int bad = posix_spawnp(&pid, argv[0], &files, NULL, (char *const *)(uintptr_t)argv, environ);
    posix_spawn_file_actions_destroy(&files);
    if (bad)
        return false;
    while (waitpid(pid, &status, 0) < 0)
        ;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static bool compile_in(nvrtcProgram p, const char *dir, int capability, bool exact) {
    char in[512], object[512], out[512], log[512], arch[64];
    const char *cxx = getenv("MOE_SIM_CXX");
    if (!cxx || !*cxx)
        cxx = MOE_SIM_DEFAULT_CXX;
    snprintf(in, sizeof in, "%s/unit.cu", dir);
    snprintf(object, sizeof object, "%s/unit.o", dir);
    snprintf(out, sizeof out, "%s/unit.so", dir);
    snprintf(log, sizeof log, "%s/log", dir);
    snprintf(arch, sizeof arch, "-D__CUDA_ARCH__=%d", capability * 10);
    const char *compile[] = {cxx,
                             "-x",
                             "c++",
                             "-std=c++17",
                             level(),
                             "-w",
                             "-c",
                             "-fPIC",
                             "-nostdinc",
                             "-fvisibility=hidden",
                             "-ffp-contract=off",
                             "-fno-exceptions",
                             "-fno-rtti",
                             "-fno-strict-aliasing",
                             "-fno-math-errno",
                             "-fno-stack-protector",
                             "-fno-slp-vectorize",
                             "-fsanitize=alignment",
                             "-fsanitize-trap=alignment",
                             machine(),
                             arch,
                             exact ? "-DMOE_SIM_EXACT_ARCH" : "-DMOE_SIM_ANY_ARCH",
                             "-I",
                             MOE_SIM_ROOT,
                             "-include",
                             MOE_SIM_ROOT "/tests/sim/cuda_host.h",
                             in,
                             "-o",
                             object,
                             NULL};
    /* The linker itself: through the compiler it takes as long as compiling. What units need of libm the driver opens. */
    const char *link[] = {"ld", "-shared", object, "-o", out, NULL};
    bool good = write_file(in, p->name, p->text);
    if (!good)
        fails(p, NVRTC_ERROR_INTERNAL_ERROR, "cannot write ", in);
    if (good && !(run(compile, log) && run(link, log))) {
        size_t n;
        p->log = read_file(log, 0, &n);
        if (!p->log || !*p->log)
            fails(p, NVRTC_ERROR_COMPILATION, "cannot run ", cxx);
        good = false;
    }
    if (good) {
        p->cubin = read_file(out, sizeof(MoeSimCubin), &p->cubin_bytes);
        good = p->cubin && p->cubin_bytes > sizeof(MoeSimCubin);
    }
    unlink(in), unlink(object), unlink(out), unlink(log);
    return good;
}

static nvrtcResult parse(nvrtcProgram p, int n, const char *const *options, int *capability,
                         bool *exact) {
    bool fmad = true;
    *capability = 0;
    for (int i = 0; i < n; i++) {
        const char *o = options[i];
        if (strncmp(o, "--gpu-architecture=", 19) == 0) {
            for (size_t k = 0; k < sizeof archs / sizeof *archs; k++)
                if (!strcmp(o + 19, archs[k].name)) {
                    *capability = archs[k].capability;
                    *exact = archs[k].exact;
                }
            if (!*capability)
                return fails(p, NVRTC_ERROR_INVALID_OPTION,
                             "an architecture that is not simulated: ", o);
        } else if (!strcmp(o, "--fmad=false")) {
            fmad = false;
        } else if (strcmp(o, "--std=c++17") && strcmp(o, "--device-as-default-execution-space") &&
                   strcmp(o, "--minimal") &&
                   strncmp(o, "--ptxas-options=", 16) && strncmp(o, "-D", 2)) {
            return fails(p, NVRTC_ERROR_INVALID_OPTION, "an option that is not simulated: ", o);
        }
    }
    if (!*capability)
        return fails(p, NVRTC_ERROR_INVALID_OPTION, "no --gpu-architecture=sm_..", "");
    if (fmad)
        return fails(p, NVRTC_ERROR_INVALID_OPTION,
                     "the simulator contracts nothing: --fmad=false is missing", "");
    return NVRTC_SUCCESS;
}

EXPORT nvrtcResult nvrtcCompileProgram(nvrtcProgram p, int n, const char *const *options) {
    int capability;
    bool exact = false;
    char dir[400];
    const char *tmp = getenv("TMPDIR");
    if (!p)
        return NVRTC_ERROR_INVALID_PROGRAM;
    nvrtcResult r = parse(p, n, options, &capability, &exact);
    if (r)
        return r;
    snprintf(dir, sizeof dir, "%s/simulated-nvrtc-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    if (!mkdtemp(dir))
        return fails(p, NVRTC_ERROR_INTERNAL_ERROR, "no directory for a unit: ", dir);
    free(p->cubin);
    p->cubin = NULL;
    bool good = compile_in(p, dir, capability, exact);
    rmdir(dir);
    if (!good)
        return NVRTC_ERROR_COMPILATION;
    MoeSimCubin h = {MOE_SIM_CUBIN_MAGIC_BYTES,           MOE_SIM_VERSION, capability, exact, 0,
                     p->cubin_bytes - sizeof(MoeSimCubin)};
    memcpy(p->cubin, &h, sizeof h);
    fails(p, NVRTC_SUCCESS,
          "ptxas info    : Function properties for a simulated GPU\n"
          "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
          "ptxas info    : Used 32 registers, used 1 barriers, 0 bytes smem",
          "");
    return NVRTC_SUCCESS;
}

/* ---- results ---- */

EXPORT nvrtcResult nvrtcGetProgramLogSize(nvrtcProgram p, size_t *n) {
    *n = p && p->log ? strlen(p->log) + 1 : 1;
    return p ? NVRTC_SUCCESS : NVRTC_ERROR_INVALID_PROGRAM;
}
EXPORT nvrtcResult nvrtcGetProgramLog(nvrtcProgram p, char *log) {
    if (!p)
        return NVRTC_ERROR_INVALID_PROGRAM;
    memcpy(log, p->log ? p->log : "", p->log ? strlen(p->log) + 1 : 1);
    return NVRTC_SUCCESS;
}
EXPORT nvrtcResult nvrtcGetCUBINSize(nvrtcProgram p, size_t *n) {
    *n = p && p->cubin ? p->cubin_bytes : 0;
    return p && p->cubin ? NVRTC_SUCCESS : NVRTC_ERROR_INVALID_PROGRAM;
}
EXPORT nvrtcResult nvrtcGetCUBIN(nvrtcProgram p, char *out) {
    if (!p || !p->cubin)
        return NVRTC_ERROR_INVALID_PROGRAM;
    memcpy(out, p->cubin, p->cubin_bytes);
    return NVRTC_SUCCESS;
}
