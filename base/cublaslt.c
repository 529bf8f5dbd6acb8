/* cuBLASLt's table of functions, and statuses from its results. */
#include "base/cublaslt.h"

#include <stdarg.h>
#include <stdio.h>
#include "base/dynlib.h"
#include "base/str.h"

static MoeCublasLt lt;

static const MoeDynSymbol symbols[] = {
#define X(type, member, symbol, params) {symbol, offsetof(MoeCublasLt, member)},
    MOE_LT_FUNCTIONS(X)
#undef X
};

static const char *const sonames[] = {"libcublasLt.so.13", "libcublasLt.so.12", NULL};

/* A toolkit, or the wheels nvidia-cublas and nvidia-cublas-cu12. */
static const char *const dirs[] = {MOE_DYNLIB_TOOLKIT_DIRS("cublas"), NULL};

#define INSTALL                                                                                    \
    "`pip install nvidia-cublas` in an active virtual environment, or install CUDA 12 or 13, or "  \
    "set MOEC_CUDA_PATH to where it is; without it, dense products run by moec's own kernels"

static MoeDynLib library = {
    .what = "cuBLASLt",
    .sonames = sonames,
    .dirs = dirs,
    .install = INSTALL,
    .symbols = symbols,
    .n_symbols = sizeof symbols / sizeof *symbols,
    .table = &lt,
    MOE_DYNLIB_CLOSED,
};

MoeStatus moe_cublaslt(const MoeCublasLt **out) {
    char text[24];
    *out = NULL;
    MOE_TRY(moe_dynlib_open(&library));
    if (lt.version() < MOE_LT_LEAST)
        return moe_error(MOE_E_IO, "cuBLASLt %s (%s) is older than 12.0; %s",
                         moe_cublaslt_version_text(lt.version(), text), library.path, INSTALL);
    *out = &lt;
    return NULL;
}

const char *moe_cublaslt_path(void) {
    return library.path;
}

const char *moe_cublaslt_version_text(size_t v, char out[24]) {
    snprintf(out, 24, "%d.%d.%d", (int)(v / 10000), (int)(v / 100 % 100), (int)(v % 100));
    return out;
}

MoeStatus moe_cublaslt_status(MoeLtResult r, const char *what, ...) {
    if (r == MOE_LT_SUCCESS)
        return NULL;
    MoeStr s = {0};
    va_list args;
    va_start(args, what);
    moe_str_vprintf(&s, what, args);
    va_end(args);
    const char *text = lt.status_text ? lt.status_text(r) : NULL;
    MoeStatus st = moe_error(MOE_E_IO, "%s: cuBLASLt says: %s (%d)", moe_str_c(&s),
                             text ? text : "an error", r);
    moe_str_free(&s);
    return st;
}
