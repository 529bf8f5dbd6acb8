/* Large allocations by mmap, checked size arithmetic, and this process's resident memory. */
#include "base/mem.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/kernel_abi.h"
#include "base/str.h"

#define HUGE_FROM ((size_t)8 << 20)

/* Whole pages, with the read slack that kernels may use past the end. */
static bool mapping_bytes(size_t n_bytes, size_t *out) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t n;
    if (!moe_add_size(n_bytes, MOE_BUFFER_SLACK + page - 1, &n))
        return false;
    *out = n / page * page;
    return true;
}

MoeStatus moe_alloc_big(size_t n_bytes, const char *what, void **out) {
    size_t n;
    char size[32];
    moe_format_bytes((double)n_bytes, size);
    if (!mapping_bytes(n_bytes, &n))
        return moe_error(MOE_E_NOMEM, "cannot allocate %s for %s: the size is too large", size,
                         what);
    /* No reservation: worst-case capacities that are never touched must not be refused. */
    void *p =
        mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return moe_error_errno("cannot allocate %s for %s", size, what);
    if (n >= HUGE_FROM)
        (void)madvise(p, n, MADV_HUGEPAGE); /* only a hint: fewer faults and TLB misses */
    *out = p;
    return NULL;
}

void moe_free_big(void *p, size_t n_bytes) {
    size_t n;
    if (!p)
        return;
    MOE_ASSERT(mapping_bytes(n_bytes, &n), "free of %zu bytes", n_bytes);
    MOE_ASSERT(munmap(p, n) == 0, "munmap of %zu bytes: %s", n, strerror(errno));
}

bool moe_make_room(void *items, size_t n, size_t *cap, size_t item_bytes) {
    size_t more = *cap ? 2 * *cap : 16, bytes;
    void *p;
    if (n < *cap)
        return true;
    memcpy(&p, items, sizeof p); /* *items is a pointer to something else than void */
    if (more < *cap || !moe_mul_size(more, item_bytes, &bytes) || !(p = realloc(p, bytes)))
        return false;
    memcpy(items, &p, sizeof p);
    *cap = more;
    return true;
}

bool moe_mul_i64(int64_t a, int64_t b, int64_t *out) {
    int64_t r;
    if (__builtin_mul_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}

bool moe_add_i64(int64_t a, int64_t b, int64_t *out) {
    int64_t r;
    if (__builtin_add_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}

bool moe_mul_size(size_t a, size_t b, size_t *out) {
    size_t r;
    if (__builtin_mul_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}

bool moe_add_size(size_t a, size_t b, size_t *out) {
    size_t r;
    if (__builtin_add_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}

static size_t status_field(const char *field) {
    FILE *f = fopen("/proc/self/status", "r");
    if (!f)
        return 0;
    char line[256];
    size_t n = strlen(field), kib = 0;
    while (fgets(line, sizeof line, f))
        if (!strncmp(line, field, n) && sscanf(line + n, " %zu", &kib) == 1)
            break;
    fclose(f);
    return kib * 1024;
}

size_t moe_rss_bytes(void) {
    return status_field("VmRSS:");
}

size_t moe_rss_peak_bytes(void) {
    return status_field("VmHWM:");
}
