/* Memory of a GPU and its mirrors in the host's address space. See cuda/device.h. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/mem.h"
#include "base/str.h"
#include "runtime/cuda/nccl.h"

/* ---- regions ---- */

static const MoeCudaRegion *find(const MoeDeviceCuda *d, const void *host) {
    for (int i = 0; i < d->n_regions; i++)
        if ((const char *)host >= d->regions[i].host &&
            (const char *)host < d->regions[i].host + d->regions[i].bytes)
            return &d->regions[i];
    MOE_ASSERT(0, "%p is no address of the device's memory", host);
    return NULL;
}

MoeCuPtr moe_cuda_address(const MoeDeviceCuda *d, const void *host) {
    const MoeCudaRegion *r = find(d, host);
    return r->at + (MoeCuPtr)((const char *)host - r->host);
}

/* Of a failed allocation: what it was for, and what the whole plan takes. */
static MoeStatus check_memory(MoeDeviceCuda *d, MoeCuResult r, int64_t bytes, const char *what) {
    char size[32], params[32], work[32];
    int64_t states = 0;
    if (r == MOE_CU_SUCCESS)
        return NULL;
    for (size_t i = 0; i < d->plan->n_buffers; i++)
        states += d->plan->buffers[i].bytes;
    return moe_cuda_check(
        d, r,
        "%s for %s (the plan takes %s for parameters and optimiser states and %s for activations "
        "and gradients, which --batch, --micro-batches, --recompute and --memory-limit of moec "
        "compile decide; --hybrid-shard-degree and --expert-parallel-degree share parameters and "
        "states out over ranks)",
        moe_format_bytes((double)bytes, size), what, moe_format_bytes((double)states, params),
        moe_format_bytes((double)moe_plan_fixed_bytes(d->plan), work));
}

/* The mirror of a new region; its place in the list. */
static MoeStatus add_region(MoeDeviceCuda *d, int64_t bytes, const char *what,
                            MoeCudaRegion **out) {
    void *host;
    if (d->n_regions == MOE_CUDA_MAX_REGIONS)
        return moe_error(MOE_E_CORRUPT,
                         "damaged plan: %zu programs with memory of their own; compile it again",
                         d->plan->n_programs);
    MOE_TRY(moe_alloc_big((size_t)bytes, what, &host));
    *out = &d->regions[d->n_regions++];
    **out = (MoeCudaRegion){.host = host, .bytes = bytes};
    return NULL;
}

MoeStatus moe_cuda_table(MoeDeviceCuda *d, int64_t bytes, const char *what, MoeCuPtr *out) {
    MOE_TRY(moe_cuda_enter(d));
    MOE_TRY(check_memory(d, d->cu->mem_alloc(out, (size_t)bytes), bytes, what));
    return moe_cuda_check(d, d->cu->set_bytes(*out, 0, (size_t)bytes, d->stream),
                          "cuMemsetD8Async");
}

MoeStatus moe_cuda_alloc(MoeDevice *base, int64_t bytes, const char *what, char **out) {
    MoeDeviceCuda *d = (MoeDeviceCuda *)base;
    MoeCudaRegion *r;
    MOE_TRY(moe_cuda_enter(d));
    MOE_TRY(add_region(d, bytes + MOE_BUFFER_SLACK, what, &r));
    *out = r->host; /* the caller releases it, also after an error */
    return moe_cuda_table(d, r->bytes, what, &r->at);
}

void moe_cuda_release(MoeDevice *base, char *at, int64_t bytes) {
    MoeDeviceCuda *d = (MoeDeviceCuda *)base;
    (void)bytes;
    if (!at)
        return;
    MoeCudaRegion *r = &d->regions[find(d, at) - d->regions];
    (void)d->cu->context_set(d->context);
    if (d->keep_memory) { /* other ranks' devices may still read it */
        moe_free_big(r->host, (size_t)r->bytes);
        *r = d->regions[--d->n_regions];
        return;
    }
    (void)d->cu->stream_synchronize(d->stream);
    if (r->mapped) {
        for (size_t i = 0; i < d->n_chunks; i++) {
            (void)d->cu->mem_unmap(r->at + (MoeCuPtr)d->chunks[i].at, (size_t)d->chunks[i].bytes);
            (void)d->cu->mem_release(d->chunks[i].memory);
        }
        d->n_chunks = 0;
        if (r->at)
            (void)d->cu->address_free(r->at, (size_t)(d->n_granules * d->granule));
    } else if (r->at) {
        (void)d->cu->mem_free(r->at);
    }
    moe_free_big(r->host, (size_t)r->bytes);
    *r = d->regions[--d->n_regions];
}

/* ---- the slab with elastic values ---- */

static MoeCuAllocationProp properties(const MoeDeviceCuda *d) {
    return (MoeCuAllocationProp){.type = MOE_CU_ALLOCATION_PINNED,
                                 .location = {MOE_CU_LOCATION_DEVICE, d->device}};
}

static MoeCudaRegion *slab_of(MoeDeviceCuda *d) {
    for (int i = 0; i < d->n_regions; i++)
        if (d->regions[i].mapped)
            return &d->regions[i];
    return NULL;
}

/* Memory for granules [first, end), none of which has any. */
static MoeStatus map_run(MoeDeviceCuda *d, MoeCudaRegion *r, int64_t first, int64_t end) {
    MoeCuAllocationProp p = properties(d);
    MoeCuAccess access = {{MOE_CU_LOCATION_DEVICE, d->device}, MOE_CU_ACCESS_READWRITE};
    MoeCudaChunk c = {first * d->granule, (end - first) * d->granule, 0};
    MoeCuPtr at = r->at + (MoeCuPtr)c.at;
    if (!MOE_ROOM(d->chunks, d->n_chunks, d->cap_chunks))
        return moe_error(MOE_E_NOMEM, "no memory for the plan's tables");
    MOE_TRY(check_memory(d, d->cu->mem_create(&c.memory, (size_t)c.bytes, &p, 0), c.bytes,
                         "rows that routing sends here"));
    MoeStatus st = check_memory(d, d->cu->mem_map(at, (size_t)c.bytes, 0, c.memory, 0), c.bytes,
                                "rows that routing sends here (cuMemMap)");
    if (st) {
        (void)d->cu->mem_release(c.memory);
        return st;
    }
    d->chunks[d->n_chunks++] = c;
    memset(d->has + first, 1, (size_t)(end - first));
    d->grew = true;
    MOE_TRY(moe_cuda_check(d,
                           d->cu->mem_access(at, (size_t)c.bytes, d->access ? d->access : &access,
                                             d->access ? d->n_access : 1),
                           "cuMemSetAccess"));
    return moe_cuda_check(d, d->cu->set_bytes(at, 0, (size_t)c.bytes, d->stream),
                          "cuMemsetD8Async of the slab");
}

/* For what is mapped already. */
MoeStatus moe_cuda_share_slab(MoeDeviceCuda *d) {
    const MoeCudaRegion *r = slab_of(d);
    for (size_t i = 0; r && i < d->n_chunks; i++)
        MOE_TRY(
            moe_cuda_check(d,
                           d->cu->mem_access(r->at + (MoeCuPtr)d->chunks[i].at,
                                             (size_t)d->chunks[i].bytes, d->access, d->n_access),
                           "cuMemSetAccess"));
    return NULL;
}

MoeStatus moe_cuda_map(MoeDeviceCuda *d, int64_t at, int64_t bytes) {
    MoeCudaRegion *r = slab_of(d);
    if (!r)
        return NULL;
    int64_t first = at / d->granule,
            end = (at + bytes + MOE_BUFFER_SLACK + d->granule - 1) / d->granule;
    end = end < d->n_granules ? end : d->n_granules;
    for (int64_t i = first, run; i < end; i = run) {
        for (run = i; run < end && d->has[run] == d->has[i]; run++)
            ;
        if (!d->has[i])
            MOE_TRY(map_run(d, r, i, run));
    }
    return NULL;
}

MoeStatus moe_cuda_need(MoeDeviceCuda *d, const void *host, int64_t bytes) {
    const MoeCudaRegion *r = find(d, host);
    return r->mapped && bytes > 0 ? moe_cuda_map(d, (const char *)host - r->host, bytes) : NULL;
}

int64_t moe_cuda_mapped(const MoeDeviceCuda *d, int64_t at) {
    int64_t i = at / d->granule;
    while (i < d->n_granules && d->has[i])
        i++;
    int64_t bytes = i * d->granule - at - MOE_BUFFER_SLACK;
    return bytes > 0 ? bytes : 0;
}

#define TILE_ROWS 128

int64_t moe_cuda_elastic_bytes(const MoePlanValue *v, int64_t rows) {
    int64_t most = v->bytes / v->row_bytes;
    return rows < most - TILE_ROWS ? (rows + TILE_ROWS) * v->row_bytes : v->bytes;
}

int64_t moe_cuda_elastic_rows(const MoePlanValue *v, int64_t bytes) {
    int64_t rows = bytes / v->row_bytes - TILE_ROWS;
    return bytes >= v->bytes ? v->bytes / v->row_bytes : rows > 0 ? rows : 0;
}

/* The first step of g that has value v; n_steps: none. */
static size_t first_step(const MoePlanProgram *g, int v) {
    for (size_t i = 0; i < g->n_steps; i++) {
        const MoePlanStep *s = &g->steps[i];
        for (size_t b = 0; b < s->n_bufs; b++)
            if (s->buf_value[b] == v)
                return i;
        for (size_t c = 0; c < s->n_comm; c++)
            if (s->comm[c].out == v)
                return i;
        for (size_t m = 0; m < s->n_moves; m++)
            if (s->moves[m].value == v)
                return i;
    }
    return g->n_steps;
}

/* A group's launches have one name: its tables are there when the last of them has run. */
bool moe_cuda_rows_known(const MoePlanProgram *g, int v, size_t i) {
    size_t table = first_step(g, g->values[v].rows);
    for (size_t k = table; k < i; k++)
        if (strcmp(g->steps[k].name, g->steps[i].name))
            return true;
    return g->values[g->values[v].rows].kind == MOE_VALUE_INPUT;
}

/* What programs touch when routing is balanced. */
static MoeStatus map_expected(MoeDeviceCuda *d, int64_t fixed) {
    MoeTouch *t = NULL;
    size_t n = 0;
    MoeStatus st = moe_cuda_map(d, 0, fixed);
    if (!st)
        st = moe_touch_list(d->plan, &t, &n);
    for (size_t i = 0; i < n && !st; i++) {
        const MoePlanProgram *g = &d->plan->programs[t[i].program];
        const MoePlanValue *v = &g->values[t[i].value];
        size_t first = first_step(g, t[i].value);
        bool grows = v->elastic && first < g->n_steps && moe_cuda_rows_known(g, t[i].value, first);
        st = moe_cuda_map(d, t[i].at,
                          grows ? moe_cuda_elastic_bytes(v, v->expect / v->row_bytes) : v->bytes);
    }
    free(t);
    return st;
}

MoeStatus moe_cuda_slab(MoeDevice *base, int64_t bytes, int64_t fixed, char **out) {
    static const char *const what = "activations and gradients";
    MoeDeviceCuda *d = (MoeDeviceCuda *)base;
    MoeCuAllocationProp p = properties(d);
    MoeCudaRegion *r;
    size_t granule = 0;
    if (fixed >= bytes)
        return moe_cuda_alloc(base, bytes, what, out);
    MOE_TRY(moe_cuda_enter(d));
    MOE_TRY(moe_cuda_check(d, d->cu->mem_granularity(&granule, &p, MOE_CU_GRANULARITY_MINIMUM),
                           "cuMemGetAllocationGranularity"));
    MOE_ASSERT(granule > 0, "a granularity of 0 bytes");
    d->granule = (int64_t)granule;
    d->n_granules = (bytes + MOE_BUFFER_SLACK + d->granule - 1) / d->granule;
    d->has = calloc((size_t)d->n_granules, 1);
    if (!d->has)
        return moe_error(MOE_E_NOMEM, "no memory for the plan's tables");
    MOE_TRY(add_region(d, bytes + MOE_BUFFER_SLACK, what, &r));
    *out = r->host;
    r->mapped = true;
    MOE_TRY(moe_cuda_check(
        d, d->cu->address_reserve(&r->at, (size_t)(d->n_granules * d->granule), 0, 0, 0),
        "cuMemAddressReserve of %lld bytes", (long long)(d->n_granules * d->granule)));
    return map_expected(d, fixed);
}

/* ---- between memory and mirrors ---- */

MoeStatus moe_cuda_read(MoeDevice *base, const char *at, int64_t bytes) {
    MoeDeviceCuda *d = (MoeDeviceCuda *)base;
    MOE_TRY(moe_cuda_enter(d));
    if (d->peers) /* a copy to memory that is not pinned waits by itself, and hears of no failure */
        MOE_TRY(moe_cuda_wait(d));
    MOE_TRY(moe_cuda_nccl_wait(d, d->stream)); /* the driver would wait for ever */
    MOE_TRY(moe_cuda_check(
        d,
        d->cu->copy_out((void *)(uintptr_t)at, moe_cuda_address(d, at), (size_t)bytes, d->stream),
        "copying %lld bytes out, behind step %s", (long long)bytes, d->step ? d->step : "none"));
    return moe_cuda_wait(d);
}

/* The mirror may be written again at once. */
MoeStatus moe_cuda_write(MoeDevice *base, const char *at, int64_t bytes) {
    MoeDeviceCuda *d = (MoeDeviceCuda *)base;
    const MoeCudaRegion *r = find(d, at);
    MOE_TRY(moe_cuda_enter(d));
    if (r->mapped)
        MOE_TRY(moe_cuda_map(d, at - r->host, bytes));
    return moe_cuda_send(d, moe_cuda_address(d, at), at, bytes);
}

void moe_cuda_forget(MoeDevice *base, char *at, int64_t bytes) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE),
              from = ((uintptr_t)at + page - 1) / page * page,
              end = ((uintptr_t)at + (uintptr_t)bytes) / page * page;
    (void)base;
    if (end > from)
        (void)madvise((void *)from, end - from, MADV_DONTNEED);
}

MoeStatus moe_cuda_zero(MoeDevice *base, char *at, int64_t bytes) {
    MoeDeviceCuda *d = (MoeDeviceCuda *)base;
    int64_t page = sysconf(_SC_PAGESIZE), edge = bytes < page ? bytes : page;
    MOE_TRY(moe_cuda_enter(d));
    moe_cuda_forget(base, at, bytes); /* pages that were given back read as zeros */
    memset(at, 0, (size_t)edge);
    memset(at + bytes - edge, 0, (size_t)edge);
    return moe_cuda_check(d, d->cu->set_bytes(moe_cuda_address(d, at), 0, (size_t)bytes, d->stream),
                          "cuMemsetD8Async of %lld bytes", (long long)bytes);
}
