/* cuDNN's table of functions, and statuses from its results. */
#include "base/cudnn.h"

#include <pthread.h>
#include <stdarg.h>
#include "base/dynlib.h"
#include "base/str.h"

static MoeCudnn cudnn;

static const MoeDynSymbol symbols[] = {
#define X(ret, member, symbol, params) {symbol, offsetof(MoeCudnn, member)},
    MOE_CUDNN_FUNCTIONS(X)
#undef X
};

/* The first opens the libraries beside it as they are needed (its RPATH is its own directory). */
static const char *const sonames[] = {"libcudnn.so.9", NULL};

/* A toolkit's directory that cuDNN was unpacked into, or the wheels nvidia-cudnn-cu13 and nvidia-cudnn-cu12. */
static const char *const dirs[] = {
    "$MOEC_CUDA_PATH/lib64",
    "$CUDNN_HOME/lib",
    "$CUDA_HOME/lib64",
    "/usr/local/cuda/lib64",
    "/usr/local/cuda-*/lib64",
    "$VIRTUAL_ENV/lib/python3*/site-packages/nvidia/cudnn/lib",
    "$HOME/.local/lib/python3*/site-packages/nvidia/cudnn/lib",
    "/usr/local/lib/python3*/dist-packages/nvidia/cudnn/lib",
    NULL,
};

#define INSTALL                                                                                    \
    "install cuDNN 9.11 or newer (`pip install nvidia-cudnn-cu13` in an active virtual "           \
    "environment, or Debian's cudnn9 of NVIDIA's repository), or run with --attention=emitted"

static MoeDynLib library = {
    .what = "cuDNN",
    .sonames = sonames,
    .dirs = dirs,
    .install = INSTALL,
    .symbols = symbols,
    .n_symbols = sizeof symbols / sizeof *symbols,
    .table = &cudnn,
    MOE_DYNLIB_CLOSED,
};

MoeStatus moe_cudnn(const MoeCudnn **out) {
    *out = NULL;
    MOE_TRY(moe_dynlib_open(&library));
    size_t v = cudnn.version();
    if (v < MOE_CUDNN_LEAST)
        return moe_error(MOE_E_IO,
                         "cuDNN (%s) is version %zu.%zu.%zu, and moec uses 9.11 and newer; %s",
                         library.path, v / 10000, v / 100 % 100, v % 100, INSTALL);
    *out = &cudnn;
    return NULL;
}

const char *moe_cudnn_path(void) {
    return library.path;
}

static MoeCode kind_of(MoeCudnnResult r) {
    if (r == 4003 || r == 4004) /* INTERNAL_ERROR_HOST_, _DEVICE_ALLOCATION_FAILED */
        return MOE_E_NOMEM;
    return r / 1000 == MOE_CUDNN_NOT_SUPPORTED / 1000 ? MOE_E_INPUT : MOE_E_IO;
}

MoeStatus moe_cudnn_status(MoeCudnnResult r, const char *what, ...) {
    if (r == MOE_CUDNN_SUCCESS)
        return NULL;
    char words[512] = "";
    MoeStr s = {0};
    va_list args;
    va_start(args, what);
    moe_str_vprintf(&s, what, args);
    va_end(args);
    cudnn.last_error(words, sizeof words);
    for (char *c = words; *c; c++)
        if (*c == '\n')
            *c = ' ';
    MoeStatus st = moe_error(kind_of(r), "%s: %s (%d)%s%s", moe_str_c(&s), cudnn.error_string(r), r,
                             *words ? ": " : "", words);
    moe_str_free(&s);
    return st;
}
