/* The cache of device code. An entry: the head below as a line of text, then the code. */
#include "codegen/cuda/cache.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/cache_dir.h"
#include "base/io.h"
#include "base/log.h"
#include "base/str.h"

#define VERSION   1
#define MAX_ENTRY ((size_t)256 << 20)

static bool entry_path(const char *key, size_t n, MoeStr *out) {
    char hash[33];
    if (!moe_cache_dir(out))
        return false;
    moe_hash_hex(key, n, hash);
    moe_str_printf(out, "/%s-%zu.cubin", hash, n);
    return true;
}

/* All of the entry that is not code; the hash at its end is of the line before it. */
static void write_head(const MoeCudaCode *c, MoeStr *out) {
    char hash[33];
    const MoeCudaResources *r = &c->resources;
    moe_hash_hex(c->data, c->n, hash);
    moe_str_printf(
        out, "moec cubin %d: %zu bytes %s registers %d stack %d spill %d shared %d warnings %d",
        VERSION, c->n, hash, r->registers, r->stack_bytes, r->spill_bytes, r->shared_bytes,
        r->warnings);
    moe_hash_hex(moe_str_c(out), out->len, hash);
    moe_str_printf(out, " %s\n", hash);
}

/* An entry is what would be written for the code in it, or nothing. data ends with a NUL. */
static bool read_entry(const char *data, size_t n, MoeCudaCode *out) {
    const char *end = memchr(data, '\n', n);
    MoeCudaResources r = {0};
    if (!end ||
        sscanf(
            data,
            "moec cubin %*d: %*u bytes %*32s registers %d stack %d spill %d shared %d warnings %d",
            &r.registers, &r.stack_bytes, &r.spill_bytes, &r.shared_bytes, &r.warnings) != 5)
        return false;
    size_t head_bytes = (size_t)(end + 1 - data);
    MoeCudaCode code = {.n = n - head_bytes, .resources = r, .cached = true};
    MoeStr head = {0};
    code.data = malloc(code.n ? code.n : 1);
    if (!code.data)
        return false;
    memcpy(code.data, end + 1, code.n);
    write_head(&code, &head);
    bool whole = head.len == head_bytes && memcmp(moe_str_c(&head), data, head_bytes) == 0;
    moe_str_free(&head);
    if (whole)
        *out = code;
    else
        free(code.data);
    return whole;
}

bool moe_cuda_cache_find(const char *key, size_t n, MoeCudaCode *out) {
    MoeStr path = {0};
    char *data = NULL;
    size_t bytes = 0;
    bool found = false;
    if (entry_path(key, n, &path) && moe_path_exists(moe_str_c(&path))) {
        MoeStatus st = moe_file_read(moe_str_c(&path), MAX_ENTRY, &data, &bytes);
        found = !st && read_entry(data, bytes, out);
        moe_status_free(st); /* what cannot be read is compiled again */
    }
    free(data);
    moe_str_free(&path);
    return found;
}

static MoeStatus write_entry(const char *path, const MoeCudaCode *code) {
    MoeStr entry = {0}, dir = {0};
    (void)moe_cache_dir(&dir);
    MoeStatus st = moe_dir_make(moe_str_c(&dir));
    if (!st) {
        write_head(code, &entry);
        moe_str_append_n(&entry, code->data, code->n);
        st = moe_file_write_atomic(path, moe_str_c(&entry), entry.len);
    }
    moe_str_free(&entry);
    moe_str_free(&dir);
    return st;
}

void moe_cuda_cache_add(const char *key, size_t n, const MoeCudaCode *code) {
    static atomic_flag told = ATOMIC_FLAG_INIT;
    MoeStr path = {0};
    if (entry_path(key, n, &path)) {
        MoeStatus st = write_entry(moe_str_c(&path), code);
        if (st && !atomic_flag_test_and_set(&told))
            moe_warn("the cache of compiled kernels cannot be written: %s; set MOEC_CACHE to a "
                     "directory that can, or to "
                     "nothing",
                     moe_status_message(st));
        moe_status_free(st);
    }
    moe_str_free(&path);
}
