/* Growable arrays, and large, fallible allocations: slabs and tensors. 64-byte aligned, zero-filled on first touch (mmap),
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
/* Room for one more item in a growable array of the heap (T *items; size_t n, cap), which is doubled when it is full. false: no memory, and
 * all is as it was. The caller frees items. In an arena: MOE_PUSH (base/arena.h). */
#define MOE_ROOM(items, n, cap) moe_make_room(&(items), (n), &(cap), sizeof *(items))
bool moe_make_room(void *items, size_t n, size_t *cap, size_t item_bytes);
/* Checked arithmetic for sizes that come from outside; false on overflow, *out unchanged. */
bool moe_mul_i64(int64_t a, int64_t b, int64_t *out);
bool moe_add_i64(int64_t a, int64_t b, int64_t *out);
bool moe_mul_size(size_t a, size_t b, size_t *out);
bool moe_add_size(size_t a, size_t b, size_t *out);
/* Resident set of this process and its peak, bytes (from /proc/self/status); 0 where unknown. */
size_t moe_rss_bytes(void);
size_t moe_rss_peak_bytes(void);

#endif
