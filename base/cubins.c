/* Packing images into a container, and reading one that may be damaged. */
#include "base/cubins.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "base/assert.h"
#include "base/mem.h"

#define MAGIC        "MOECUBIN"
#define VERSION      1
#define ALIGN        64
#define HEADER_BYTES 16
#define ENTRY_BYTES  (MOE_CUBIN_NAME_BYTES + 16)

static void put(unsigned char *p, uint64_t v, int bytes) {
    for (int i = 0; i < bytes; i++)
        p[i] = (unsigned char)(v >> 8 * i);
}

static uint64_t get(const unsigned char *p, int bytes) {
    uint64_t v = 0;
    for (int i = 0; i < bytes; i++)
        v |= (uint64_t)p[i] << 8 * i;
    return v;
}

static size_t aligned(size_t n) {
    return (n + ALIGN - 1) / ALIGN * ALIGN;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const MoeCubin *)a)->name, ((const MoeCubin *)b)->name);
}

MoeStatus moe_cubins_pack(const MoeCubin *images, size_t n, void **out, size_t *out_n) {
    size_t bytes = aligned(HEADER_BYTES + n * ENTRY_BYTES), at = bytes;
    for (size_t i = 0; i < n; i++)
        bytes += aligned(images[i].n);
    MoeCubin *sorted = malloc((n ? n : 1) * sizeof *sorted);
    unsigned char *p = calloc(1, bytes);
    *out = p;
    *out_n = bytes;
    if (!p || !sorted) {
        free(p);
        free(sorted);
        *out = NULL;
        return moe_error(MOE_E_NOMEM, "no memory for %zu bytes of device code", bytes);
    }
    if (n)
        memcpy(sorted, images, n * sizeof *sorted);
    qsort(sorted, n, sizeof *sorted, by_name);
    memcpy(p, MAGIC, 8);
    put(p + 8, VERSION, 4);
    put(p + 12, n, 4);
    for (size_t i = 0; i < n; i++) {
        unsigned char *entry = p + HEADER_BYTES + i * ENTRY_BYTES;
        size_t length = strlen(sorted[i].name);
        MOE_ASSERT(length && length < MOE_CUBIN_NAME_BYTES, "cubins: the name %s is too long",
                   sorted[i].name);
        MOE_ASSERT(!i || strcmp(sorted[i - 1].name, sorted[i].name), "cubins: %s is there twice",
                   sorted[i].name);
        memcpy(entry, sorted[i].name, length);
        put(entry + MOE_CUBIN_NAME_BYTES, at, 8);
        put(entry + MOE_CUBIN_NAME_BYTES + 8, sorted[i].n, 8);
        memcpy(p + at, sorted[i].data, sorted[i].n);
        at += aligned(sorted[i].n);
    }
    free(sorted);
    return NULL;
}

static MoeStatus read_entry(const unsigned char *data, size_t n, size_t i, size_t n_entries,
                            MoeCubin *out) {
    const unsigned char *entry = data + HEADER_BYTES + i * ENTRY_BYTES;
    if (!*entry || !memchr(entry, 0, MOE_CUBIN_NAME_BYTES))
        return moe_error(MOE_E_CORRUPT, "entry %zu of %zu has no name that ends within %d bytes", i,
                         n_entries, MOE_CUBIN_NAME_BYTES);
    const char *name = (const char *)entry;
    uint64_t at = get(entry + MOE_CUBIN_NAME_BYTES, 8),
             bytes = get(entry + MOE_CUBIN_NAME_BYTES + 8, 8);
    if (at % ALIGN || at < HEADER_BYTES + n_entries * ENTRY_BYTES || at > n || bytes > n - at ||
        !bytes)
        return moe_error(MOE_E_CORRUPT,
                         "the code of %s lies at %llu, %llu bytes: not at a multiple of %d within "
                         "the file's %zu bytes",
                         name, (unsigned long long)at, (unsigned long long)bytes, ALIGN, n);
    *out = (MoeCubin){.name = name, .data = data + at, .n = (size_t)bytes};
    return NULL;
}

MoeStatus moe_cubins_read(const void *data, size_t n, MoeCubins *out) {
    const unsigned char *p = data;
    *out = (MoeCubins){0};
    if (n < HEADER_BYTES || memcmp(p, MAGIC, 8))
        return moe_error(MOE_E_CORRUPT, "not a container of device code (%zu bytes)", n);
    uint64_t version = get(p + 8, 4);
    size_t n_entries = (size_t)get(p + 12, 4);
    if (version != VERSION)
        return moe_error(MOE_E_CORRUPT,
                         "the container of device code has version %llu, this moec reads %d: "
                         "compile the plan again",
                         (unsigned long long)version, VERSION);
    if (n_entries > (n - HEADER_BYTES) / ENTRY_BYTES)
        return moe_error(MOE_E_CORRUPT, "the container says %zu kernels, but has %zu bytes",
                         n_entries, n);
    out->images = calloc(n_entries ? n_entries : 1, sizeof *out->images);
    if (!out->images)
        return moe_error(MOE_E_NOMEM, "no memory for the names of %zu kernels", n_entries);
    for (size_t i = 0; i < n_entries; i++) {
        MoeStatus st = read_entry(p, n, i, n_entries, &out->images[i]);
        if (!st && i && strcmp(out->images[i - 1].name, out->images[i].name) >= 0)
            st = moe_error(MOE_E_CORRUPT, "kernel %s stands behind %s, out of order",
                           out->images[i].name, out->images[i - 1].name);
        if (st) {
            moe_cubins_free(out);
            return st;
        }
    }
    out->n = n_entries;
    return NULL;
}

const MoeCubin *moe_cubins_find(const MoeCubins *c, const char *name) {
    MoeCubin key = {.name = name};
    return c->n ? bsearch(&key, c->images, c->n, sizeof key, by_name) : NULL;
}

void moe_cubins_free(MoeCubins *c) {
    free(c->images);
    *c = (MoeCubins){0};
}
