/* driver.h: device memory, which nobody touches while no kernel or copy runs: PROT_NONE, between pages that are never
 * there, ending where the next page does. Fresh memory holds NaNs (all ones). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "tests/sim/driver.h"

enum { PAGE = 4096, ALIGN = 256, PATTERN = 0xff };

static size_t granularity(void) {
    const char *s = getenv("MOE_SIM_GRANULARITY");
    return s && *s ? (size_t)strtoull(s, NULL, 10) : (size_t)2 << 20;
}

/* Memory that can be touched: an allocation, a mapping into a reserved range, or pinned memory of the host. */
typedef struct {
    char *at; /* the caller's */
    size_t bytes;
    char *pages; /* what mprotect gets */
    size_t page_bytes;
    enum { DEVICE, MAPPED, HOST } kind;
    unsigned access; /* MAPPED: bits of devices, by cuMemSetAccess */
    CUcontext context;
    uint64_t handle; /* MAPPED */
} Region;

/* Physical memory of cuMemCreate. */
typedef struct {
    uint64_t handle;
    int fd, maps;
    size_t bytes;
    bool released;
    CUcontext context;
} Physical;

typedef struct {
    char *at;
    size_t bytes;
} Reserved;

static Region *regions;
static size_t n_regions, cap_regions;
static Physical *physicals;
static size_t n_physicals, cap_physicals;
static Reserved *reserved;
static size_t n_reserved, cap_reserved;
static uint64_t next_handle = 1;
static int open_count;
static CUcontext open_for;

#define ADD(list, n, cap)                                                                          \
    ((n) == (cap)                                                                                  \
         ? ((cap) = (cap) ? 2 * (cap) : 16, (list) = realloc((list), (cap) * sizeof *(list)))      \
         : (list),                                                                                 \
     (list) ? &(list)[(n)++] : (abort(), (list)))

/* ---- who may touch what ---- */

static void protect(const Region *r, int how) {
    if (r->kind != HOST && (r->kind == DEVICE || r->access) &&
        mprotect(r->pages, r->page_bytes, how)) {
        perror("simulated GPU: mprotect");
        abort();
    }
}

static bool reaches(CUcontext c, const Region *r) {
    if (r->kind == MAPPED)
        return r->access >> c->device & 1;
    return r->kind == HOST || r->context == c || (c->peers >> r->context->device & 1);
}

/* As it is to be now. */
static void protect_now(const Region *r) {
    protect(r, open_count && reaches(open_for, r) ? PROT_READ | PROT_WRITE : PROT_NONE);
}

void moe_sim_memory_open(CUcontext c) {
    bool other = open_for != c;
    open_for = c;
    if (open_count++ == 0 || other)
        for (size_t i = 0; i < n_regions; i++)
            protect_now(&regions[i]);
}

void moe_sim_memory_close(void) {
    if (--open_count == 0)
        for (size_t i = 0; i < n_regions; i++)
            protect_now(&regions[i]);
}

static bool stays;

void moe_sim_memory_stay(CUcontext c) {
    if (stays && open_for == c)
        return;
    moe_sim_memory_leave();
    moe_sim_memory_open(c);
    stays = true;
}

void moe_sim_memory_leave(void) {
    if (stays)
        moe_sim_memory_close();
    stays = false;
}

void moe_sim_memory_range(const void *p, size_t n, bool open) {
    const char *at = p;
    for (size_t i = 0; i < n_regions; i++) {
        if (at >= regions[i].at + regions[i].bytes || at + n <= regions[i].at)
            continue;
        if (open)
            protect(&regions[i], PROT_READ | PROT_WRITE);
        else
            protect_now(&regions[i]);
    }
}

static Region *find(const char *p) {
    for (size_t i = 0; i < n_regions; i++)
        if (p >= regions[i].at && p < regions[i].at + regions[i].bytes)
            return &regions[i];
    return NULL;
}

/* Mapped pieces that touch count as one. */
bool moe_sim_memory_holds(CUdeviceptr p, size_t n) {
    const char *at = (const char *)(uintptr_t)p, *end = at + n;
    if (n == 0)
        return true;
    while (at < end) {
        Region *r = find(at);
        if (!r || r->kind == HOST || (r->kind == MAPPED && !r->access))
            return false;
        at = r->at + r->bytes;
    }
    return true;
}

bool moe_sim_memory_reached(CUcontext c, CUdeviceptr p, size_t n) {
    const char *at = (const char *)(uintptr_t)p, *end = at + n;
    for (Region *r; at < end && moe_sim_memory_holds(p, n); at = r->at + r->bytes)
        if (!(r = find(at)) || !reaches(c, r))
            return false;
    return at >= end;
}

bool moe_sim_memory_touches(const void *p, size_t n) {
    const char *at = p;
    for (size_t i = 0; i < n_regions; i++)
        if (regions[i].kind != HOST && at < regions[i].at + regions[i].bytes &&
            at + n > regions[i].at)
            return true;
    return false;
}

bool moe_sim_memory_pinned(const void *p, size_t n) {
    Region *r = find(p);
    return r && r->kind == HOST && (const char *)p + n <= r->at + r->bytes;
}

/* ---- allocations ---- */

static bool room(CUcontext c, size_t bytes) {
    size_t total = moe_sim_total_memory();
    return bytes <= total && c->used <= total - bytes;
}

/* Large memory: its two ends only, for that is where mistakes show. */
static void fill(char *p, size_t n) {
    const size_t end = (size_t)64 << 20;
    memset(p, PATTERN, n <= 2 * end ? n : end);
    if (n > 2 * end)
        memset(p + n - end, PATTERN, end);
}

MOE_SIM_EXPORT CUresult cuMemAlloc_v2(CUdeviceptr *out, size_t bytes) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuMemAlloc", &c);
    *out = 0;
    if (!r)
        r = moe_sim_no_capture();
    if (!r && bytes == 0)
        r = moe_sim_complain(CUDA_ERROR_INVALID_VALUE, "cuMemAlloc of 0 bytes");
    size_t rounded = (bytes + ALIGN - 1) / ALIGN * ALIGN,
           pages = (rounded + PAGE - 1) / PAGE * PAGE;
    if (!r && (bytes > (size_t)1 << 46 || !room(c, rounded)))
        r = CUDA_ERROR_OUT_OF_MEMORY;
    if (r)
        return moe_sim_leave(r);
    char *all =
        mmap(NULL, pages + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED)
        return moe_sim_leave(CUDA_ERROR_OUT_OF_MEMORY);
    Region *g = ADD(regions, n_regions, cap_regions);
    *g = (Region){.at = all + PAGE + pages - rounded,
                  .bytes = bytes,
                  .pages = all + PAGE,
                  .page_bytes = pages,
                  .kind = DEVICE,
                  .context = c};
    c->used += rounded;
    protect(g, PROT_READ | PROT_WRITE);
    fill(g->pages, pages);
    protect_now(g);
    *out = (uintptr_t)g->at;
    return moe_sim_leave(r);
}

MOE_SIM_EXPORT CUresult cuMemFree_v2(CUdeviceptr p) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuMemFree", &c);
    if (p == 0 || !c)
        return moe_sim_leave(r);
    CUresult flushed = moe_sim_flush(c);
    moe_sim_count_wait();
    Region *g = find((char *)(uintptr_t)p);
    if (!g || g->kind != DEVICE || (uintptr_t)g->at != p)
        return moe_sim_leave(moe_sim_complain(CUDA_ERROR_INVALID_VALUE,
                                              "cuMemFree of %#llx, which no cuMemAlloc returned",
                                              (unsigned long long)p));
    g->context->used -= (g->bytes + ALIGN - 1) / ALIGN * ALIGN;
    munmap(g->pages - PAGE, g->page_bytes + 2 * PAGE);
    *g = regions[--n_regions];
    return moe_sim_leave(r ? r : flushed);
}

MOE_SIM_EXPORT CUresult cuMemGetInfo_v2(size_t *left, size_t *total) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuMemGetInfo", &c);
    *total = moe_sim_total_memory();
    *left = c && c->used < *total ? *total - c->used : 0;
    return moe_sim_leave(r);
}

MOE_SIM_EXPORT CUresult cuMemHostAlloc(void **out, size_t bytes, unsigned flags) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuMemHostAlloc", &c);
    size_t pages = (bytes + PAGE - 1) / PAGE * PAGE;
    *out = NULL;
    if (!r && (bytes == 0 || flags & ~7u))
        r = CUDA_ERROR_INVALID_VALUE;
    if (!r && getenv("MOE_SIM_NO_PINNED"))
        r = CUDA_ERROR_OUT_OF_MEMORY;
    char *p = r ? MAP_FAILED
                : mmap(NULL, pages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!r && p == MAP_FAILED)
        r = CUDA_ERROR_OUT_OF_MEMORY;
    if (!r) {
        fill(p, pages);
        *ADD(regions, n_regions, cap_regions) = (Region){
            .at = p, .bytes = bytes, .pages = p, .page_bytes = pages, .kind = HOST, .context = c};
        *out = p;
    }
    return moe_sim_leave(r);
}

MOE_SIM_EXPORT CUresult cuMemFreeHost(void *p) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuMemFreeHost", &c);
    if (c)
        moe_sim_flush(c); /* first: who waits lets other threads in, which allocate and free */
    Region *g = find(p);
    if (!p || !g || g->kind != HOST || g->at != p)
        return moe_sim_leave(moe_sim_complain(
            CUDA_ERROR_INVALID_VALUE, "cuMemFreeHost of memory that no cuMemHostAlloc returned"));
    munmap(g->pages, g->page_bytes);
    *g = regions[--n_regions];
    return moe_sim_leave(r);
}

/* ---- reserved addresses and what is mapped there ---- */

typedef struct {
    int type, id;
} Location;
typedef struct {
    int type, handle_types;
    Location location;
} AllocationProp; /* as far as it is read */
typedef struct {
    Location location;
    int flags;
} AccessDesc;

MOE_SIM_EXPORT CUresult cuMemGetAllocationGranularity(size_t *out, const AllocationProp *prop,
                                                      int which) {
    CUresult r = moe_sim_enter_bare("cuMemGetAllocationGranularity");
    *out = granularity();
    return moe_sim_leave(
        r || (prop->type == 1 && prop->location.type == 1 && (which == 0 || which == 1))
            ? r
            : CUDA_ERROR_INVALID_VALUE);
}

static CUresult granular(const char *call, uint64_t a, uint64_t b) {
    return a % granularity() || b % granularity() || b == 0
               ? moe_sim_complain(CUDA_ERROR_INVALID_VALUE,
                                  "%s: %llu and %llu are not multiples of the granularity, %zu",
                                  call, (unsigned long long)a, (unsigned long long)b, granularity())
               : CUDA_SUCCESS;
}

MOE_SIM_EXPORT CUresult cuMemAddressReserve(CUdeviceptr *out, size_t bytes, size_t alignment,
                                            CUdeviceptr at, unsigned long long flags) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuMemAddressReserve", &c);
    (void)at; /* a wish */
    *out = 0;
    if (!r && flags)
        r = CUDA_ERROR_INVALID_VALUE;
    if (!r)
        r = granular("cuMemAddressReserve", alignment, bytes);
    if (r)
        return moe_sim_leave(r);
    size_t align = alignment ? alignment : granularity();
    char *all = mmap(NULL, bytes + 2 * align, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED)
        return moe_sim_leave(CUDA_ERROR_OUT_OF_MEMORY);
    /* At least a page that is never there on both sides. */
    char *p = all + align - (uintptr_t)all % align;
    if (p - all > PAGE)
        munmap(all, (size_t)(p - all) - PAGE);
    munmap(p + bytes + PAGE, (size_t)(all + bytes + 2 * align - (p + bytes + PAGE)));
    *ADD(reserved, n_reserved, cap_reserved) = (Reserved){p, bytes};
    *out = (uintptr_t)p;
    return moe_sim_leave(r);
}

static Reserved *reserved_at(CUdeviceptr p, size_t n) {
    const char *at = (const char *)(uintptr_t)p;
    for (size_t i = 0; i < n_reserved; i++)
        if (at >= reserved[i].at && at + n <= reserved[i].at + reserved[i].bytes)
            return &reserved[i];
    return NULL;
}

MOE_SIM_EXPORT CUresult cuMemAddressFree(CUdeviceptr p, size_t bytes) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuMemAddressFree", &c);
    Reserved *v = reserved_at(p, bytes);
    if (!v || (uintptr_t)v->at != p || v->bytes != bytes)
        return moe_sim_leave(moe_sim_complain(
            CUDA_ERROR_INVALID_VALUE, "cuMemAddressFree of a range that was not reserved so"));
    if (moe_sim_memory_touches(v->at, bytes))
        return moe_sim_leave(moe_sim_complain(
            CUDA_ERROR_INVALID_VALUE, "cuMemAddressFree of a range where memory is mapped"));
    munmap(v->at - PAGE, bytes + 2 * PAGE);
    *v = reserved[--n_reserved];
    return moe_sim_leave(r);
}

MOE_SIM_EXPORT CUresult cuMemCreate(CUmemGenericAllocationHandle *out, size_t bytes,
                                    const AllocationProp *prop, unsigned long long flags) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuMemCreate", &c);
    CUcontext owner = prop ? moe_sim_context_of(prop->location.id) : NULL;
    *out = 0;
    if (!r && (flags || !owner || prop->type != 1 || prop->location.type != 1))
        r = CUDA_ERROR_INVALID_VALUE;
    if (!r)
        r = granular("cuMemCreate", 0, bytes);
    if (!r && !room(owner, bytes))
        r = CUDA_ERROR_OUT_OF_MEMORY;
    if (r)
        return moe_sim_leave(r);
    int fd = memfd_create("simulated GPU memory", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)bytes)) {
        if (fd >= 0)
            close(fd);
        return moe_sim_leave(CUDA_ERROR_OUT_OF_MEMORY);
    }
    char *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p != MAP_FAILED) {
        fill(p, bytes);
        munmap(p, bytes);
    }
    owner->used += bytes;
    *ADD(physicals, n_physicals, cap_physicals) =
        (Physical){.handle = next_handle, .fd = fd, .bytes = bytes, .context = owner};
    *out = next_handle++;
    return moe_sim_leave(r);
}

static Physical *physical(uint64_t handle) {
    for (size_t i = 0; i < n_physicals; i++)
        if (physicals[i].handle == handle)
            return &physicals[i];
    return NULL;
}

static void drop_if_unused(Physical *m) {
    if (!m->released || m->maps)
        return;
    close(m->fd);
    m->context->used -= m->bytes;
    *m = physicals[--n_physicals];
}

MOE_SIM_EXPORT CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuMemRelease", &c);
    Physical *m = physical(handle);
    if (!m || m->released)
        return moe_sim_leave(moe_sim_complain(CUDA_ERROR_INVALID_VALUE,
                                              "cuMemRelease of a handle that is not there"));
    m->released = true;
    drop_if_unused(m);
    return moe_sim_leave(r);
}

MOE_SIM_EXPORT CUresult cuMemMap(CUdeviceptr p, size_t bytes, size_t offset,
                                 CUmemGenericAllocationHandle handle, unsigned long long flags) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuMemMap", &c);
    Physical *m = physical(handle);
    char *at = (char *)(uintptr_t)p;
    if (!r)
        r = granular("cuMemMap", p, bytes);
    if (!r && (flags || offset || !m || m->released || bytes != m->bytes))
        r = moe_sim_complain(CUDA_ERROR_INVALID_VALUE,
                             "cuMemMap: a handle is mapped whole, at offset 0");
    if (!r && (!reserved_at(p, bytes) || moe_sim_memory_touches(at, bytes)))
        r = moe_sim_complain(CUDA_ERROR_INVALID_VALUE,
                             "cuMemMap: the range is not reserved, or something is mapped there");
    if (!r && mmap(at, bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, m->fd, 0) == MAP_FAILED)
        r = CUDA_ERROR_OUT_OF_MEMORY;
    if (!r) {
        m->maps++;
        *ADD(regions, n_regions, cap_regions) = (Region){.at = at,
                                                         .bytes = bytes,
                                                         .pages = at,
                                                         .page_bytes = bytes,
                                                         .kind = MAPPED,
                                                         .context = m->context,
                                                         .handle = handle};
    }
    return moe_sim_leave(r);
}

/* Memory is not waited for: who unmaps what a kernel still uses is told by the kernel's fault. */
MOE_SIM_EXPORT CUresult cuMemUnmap(CUdeviceptr p, size_t bytes) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuMemUnmap", &c);
    char *at = (char *)(uintptr_t)p, *end = at + bytes;
    size_t covered = 0;
    for (size_t i = 0; i < n_regions; i++)
        if (regions[i].kind == MAPPED && regions[i].at >= at &&
            regions[i].at + regions[i].bytes <= end)
            covered += regions[i].bytes;
    if (covered != bytes || bytes == 0)
        return moe_sim_leave(moe_sim_complain(
            CUDA_ERROR_INVALID_VALUE,
            "cuMemUnmap of %zu bytes, of which %zu are mappings as a whole", bytes, covered));
    for (size_t i = 0; i < n_regions;) {
        Region *g = &regions[i];
        if (g->kind != MAPPED || g->at < at || g->at + g->bytes > end) {
            i++;
            continue;
        }
        Physical *m = physical(g->handle);
        mmap(g->at, g->bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
             -1, 0);
        m->maps--;
        drop_if_unused(m);
        *g = regions[--n_regions];
    }
    return moe_sim_leave(r);
}

MOE_SIM_EXPORT CUresult cuMemSetAccess(CUdeviceptr p, size_t bytes, const AccessDesc *access,
                                       size_t n) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuMemSetAccess", &c);
    char *at = (char *)(uintptr_t)p, *end = at + bytes;
    size_t covered = 0;
    for (size_t i = 0; !r && i < n; i++)
        if (access[i].location.type != 1 || !moe_sim_context_of(access[i].location.id) ||
            (access[i].flags != 3 && access[i].flags != 1 && access[i].flags != 0))
            r = CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; !r && i < n_regions; i++) {
        Region *g = &regions[i];
        if (g->kind != MAPPED || g->at < at || g->at + g->bytes > end)
            continue;
        for (size_t k = 0; k < n; k++) {
            unsigned bit = 1u << access[k].location.id;
            g->access = access[k].flags == 3 ? g->access | bit : g->access & ~bit;
        }
        covered += g->bytes;
        protect_now(g);
    }
    if (!r && covered != bytes)
        r = moe_sim_complain(CUDA_ERROR_INVALID_VALUE,
                             "cuMemSetAccess on %zu bytes, of which %zu are mapped", bytes,
                             covered);
    return moe_sim_leave(r);
}
