/* The dtype names of safetensors: those that moec reads, and those it only knows the size of.
 * Private to formats/. */
#ifndef MOE_FORMATS_ST_DTYPE_H
#define MOE_FORMATS_ST_DTYPE_H

#include <stdbool.h>
#include "formats/safetensors.h"

/* False for a name that is not in the format. A known name that moec cannot compute with gives
 * MOE_ST_OTHER. */
bool moe_st_dtype_parse(const char *name, MoeStDtype *out, int *out_bits);

/* Header length that readers of the format accept at most, and the number of tensors that moec
 * does. */
#define MOE_ST_MAX_HEADER  ((size_t)100000000)
#define MOE_ST_MAX_TENSORS ((size_t)1000000)

#endif
