/* NCCL's table of functions, and statuses from its results. */
#include "base/nccl.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "base/dynlib.h"
#include "base/str.h"

static MoeNccl nccl;

static const MoeDynSymbol symbols[] = {
#define X(type, member, symbol, params) {symbol, offsetof(MoeNccl, member)},
    MOE_NCCL_FUNCTIONS(X)
#undef X
};

static const char *const sonames[] = {"libnccl.so.2", NULL};

/* A toolkit, or the wheels nvidia-nccl-cu13 and nvidia-nccl-cu12. */
static const char *const dirs[] = {
    "$MOEC_CUDA_PATH/lib64",
    "$MOEC_CUDA_PATH/lib",
    "$CUDA_HOME/lib64",
    "/usr/local/cuda/lib64",
    "/usr/local/cuda-*/lib64",
    "$VIRTUAL_ENV/lib/python3*/site-packages/nvidia/nccl/lib",
    "$HOME/.local/lib/python3*/site-packages/nvidia/nccl/lib",
    "/usr/local/lib/python3*/dist-packages/nvidia/nccl/lib",
    NULL,
};

#define INSTALL                                                                                    \
    "`pip install nvidia-nccl-cu13` in an active virtual environment, or apt-get install "         \
    "libnccl2 "                                                                                    \
    "(of NVIDIA's repository); without it, GPUs of several processes exchange rows through the "   \
    "host's memory"

static MoeDynLib library = {
    .what = "NCCL",
    .sonames = sonames,
    .dirs = dirs,
    .install = INSTALL,
    .symbols = symbols,
    .n_symbols = sizeof symbols / sizeof *symbols,
    .table = &nccl,
    MOE_DYNLIB_CLOSED,
};

MoeStatus moe_nccl(const MoeNccl **out) {
    int version = 0;
    char text[24];
    *out = NULL;
    MOE_TRY(moe_dynlib_open(&library));
    MOE_TRY(moe_nccl_status(nccl.get_version(&version), NULL, "asking for its version"));
    if (version < MOE_NCCL_OLDEST)
        return moe_error(MOE_E_IO, "NCCL %s (%s) is older than 2.18; %s", moe_nccl_version(text),
                         library.path, INSTALL);
    *out = &nccl;
    return NULL;
}

/* 2.9 and newer count by 10000; what is older has no place here anyway. */
const char *moe_nccl_version(char out[24]) {
    int v = 0;
    if (nccl.get_version)
        (void)nccl.get_version(&v);
    snprintf(out, 24, "%d.%d.%d", v / 10000, v / 100 % 100, v % 100);
    return out;
}

const char *moe_nccl_path(void) {
    return library.path;
}

MoeStatus moe_nccl_status(int result, MoeNcclComm comm, const char *what, ...) {
    if (result == MOE_NCCL_SUCCESS || result == MOE_NCCL_IN_PROGRESS)
        return NULL;
    MoeStr s = {0};
    va_list args;
    va_start(args, what);
    moe_str_vprintf(&s, what, args);
    va_end(args);
    const char *text = nccl.error_string(result), *last = nccl.last_error(comm);
    moe_str_printf(&s, ": NCCL says: %s", text ? text : "an error");
    if (last && *last)
        moe_str_printf(&s, " (%s)", last);
    if (result == MOE_NCCL_SYSTEM_ERROR || result == MOE_NCCL_CUDA_ERROR)
        moe_str_append(&s, "; NCCL_DEBUG=WARN in the environment has it say more");
    MoeStatus st = moe_error(MOE_E_IO, "%s", moe_str_c(&s));
    moe_str_free(&s);
    return st;
}
