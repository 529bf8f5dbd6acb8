/* Libraries that moec uses when they are there: opened by SONAME at the first need, their functions put into a struct of
 * function pointers. moec links none of them, so it builds and starts where they are missing. Used by base/{cuda_driver,nccl,cublaslt,
 * cudnn}.c and codegen/cuda/nvrtc.c.
 *
 * A library is described by one static MoeDynLib. Where it is looked for: the system's way first (LD_LIBRARY_PATH, the
 * loader's cache), under each of its names in order; then `dirs`. */
#ifndef MOE_BASE_DYNLIB_H
#define MOE_BASE_DYNLIB_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include "base/status.h"

typedef struct {
    const char *name; /* as exported */
    size_t at;        /* offset in the struct of function pointers */
} MoeDynSymbol;

typedef struct {
    const char *what;           /* for people: "NVIDIA's driver" */
    const char *const *sonames; /* ends with NULL */
    /* Directories, as patterns of glob(3), that may begin with "$NAME/", the value of an environment variable (left out
     * where it is not set); ends with NULL, or NULL: none. */
    const char *const *dirs;
    /* Pattern of libraries in the same directory that this one opens by name; NULL: none. Opened first where the library
     * was found in one of `dirs`, which the loader does not know. */
    const char *companions;
    const char *install; /* what to do where it is missing: ends the message */
    const MoeDynSymbol *symbols;
    size_t n_symbols;
    void *table; /* the struct; filled in whole, or not at all */
    /* Below: dynlib.c's. Begin with MOE_DYNLIB_CLOSED. */
    pthread_mutex_t lock;
    bool open;
    char path[512]; /* of the file, once open */
} MoeDynLib;

#define MOE_DYNLIB_CLOSED .lock = PTHREAD_MUTEX_INITIALIZER

/* `dirs` of a library of the CUDA toolkit, which PyPI has, too: in the package of CUDA 13, or (wheel) of its own for CUDA 12. */
#define MOE_DYNLIB_TOOLKIT_DIRS(wheel)                                                             \
    "$MOEC_CUDA_PATH/lib64", "$MOEC_CUDA_PATH/lib", "$MOEC_CUDA_PATH", "$CUDA_HOME/lib64",         \
        "/usr/local/cuda/lib64", "/usr/local/cuda-*/lib64",                                        \
        MOE_DYNLIB_WHEEL_DIRS("$VIRTUAL_ENV/lib/python3*/site-packages", wheel),                   \
        MOE_DYNLIB_WHEEL_DIRS("$HOME/.local/lib/python3*/site-packages", wheel),                   \
        MOE_DYNLIB_WHEEL_DIRS("/usr/local/lib/python3*/dist-packages", wheel)
#define MOE_DYNLIB_WHEEL_DIRS(packages, wheel)                                                     \
    packages "/nvidia/cu13/lib", packages "/nvidia/" wheel "/lib"

/* Opens the library unless it is open, and fills its table. MOE_E_IO: it is not there, or lacks a symbol; the message names
 * library, names tried and symbol, and says what to do. A library stays open to the end of the process. Any thread. */
MoeStatus moe_dynlib_open(MoeDynLib *lib);

#endif
