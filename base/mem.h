/* Large, fallible allocations: slabs and tensors. 64-byte aligned, zero-filled on first touch (mmap),
 * so that untouched capacity costs no memory. */
#ifndef MOE_BASE_MEM_H
#define MOE_BASE_MEM_H

#include <stddef.h>
#include <stdint.h>
#include <stdbool.h>
#include "base/status.h"

/* `what` names the thing in the error: "cannot allocate 1.2 GiB for the activation slab: ...". */
MoeStatus moe_alloc_big(size_t n_bytes, const char *what, void **out);
void moe_free_big(void *p, size_t n_bytes);
/* Checked arithmetic for sizes that come from outside; false on overflow, *out unchanged. */
bool moe_mul_i64(int64_t a, int64_t b, int64_t *out);
bool moe_add_i64(int64_t a, int64_t b, int64_t *out);
bool moe_mul_size(size_t a, size_t b, size_t *out);
bool moe_add_size(size_t a, size_t b, size_t *out);
/* Resident set of this process and its peak, bytes (from /proc/self/status); 0 where unknown. */
size_t moe_rss_bytes(void);
size_t moe_rss_peak_bytes(void);

#endif
