/* Device code that was compiled before, on disk: $MOEC_CACHE, else $XDG_CACHE_HOME/moec, else $HOME/.cache/moec; MOEC_CACHE set
 * to nothing: no cache. One file a kernel, named by hash (XXH3-128) and length of all that decides the code, and checked when
 * read: one that is damaged counts as not there. The cache may be removed at any time. Any thread, any number of processes. */
#ifndef MOE_CODEGEN_CUDA_CACHE_H
#define MOE_CODEGEN_CUDA_CACHE_H

#include "codegen/cuda/nvrtc.h"

/* Whether the code for this key is there; then *out has it. */
bool moe_cuda_cache_find(const char *key, size_t n, MoeCudaCode *out);
/* A cache that cannot be written is told once, as a warning: code is compiled each time then. */
void moe_cuda_cache_add(const char *key, size_t n, const MoeCudaCode *code);

#endif
