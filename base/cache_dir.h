/* Where moec keeps what it can make again: device code, choices by measurement. Used by codegen/cuda/cache.c and
 * runtime/choices_cache.c. */
#ifndef MOE_BASE_CACHE_DIR_H
#define MOE_BASE_CACHE_DIR_H

#include <stdbool.h>
#include "base/str.h"

/* Appends the directory: $MOEC_CACHE, else $XDG_CACHE_HOME/moec, else ~/.cache/moec; it may not be there yet. false: there is to be no
 * cache (MOEC_CACHE is empty, or there is no home). */
bool moe_cache_dir(MoeStr *out);

#endif
