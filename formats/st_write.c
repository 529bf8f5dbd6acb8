/* Writes a safetensors file in one pass: length, header in the order given, then the data in
 * chunks. */
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/json.h"
#include "base/mem.h"
#include "formats/st_dtype.h"

#define CHUNK_BYTES ((int64_t)4 << 20)

/* Appends `text` as a JSON string; false if it is not UTF-8. */
static bool append_json_string(MoeStr *out, const char *text) {
    json_t *v = json_string(text);
    char *quoted = v ? json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
    if (quoted)
        moe_str_append(out, quoted);
    bool ok = quoted != NULL;
    free(quoted);
    json_decref(v);
    return ok;
}

static MoeStatus append_metadata(MoeStr *h, const char *path, const char *const *kv, size_t n) {
    json_t *seen = json_object();
    MOE_ASSERT(seen, "out of memory writing %s", path);
    MoeStatus st = NULL;
    moe_str_append(h, "\"__metadata__\":{");
    for (size_t i = 0; i < n && !st; i++) {
        const char *key = kv[2 * i];
        moe_str_append(h, i ? "," : "");
        bool ok = append_json_string(h, key);
        moe_str_putc(h, ':');
        ok = ok && append_json_string(h, kv[2 * i + 1]);
        if (!ok)
            st = moe_error(MOE_E_INPUT, "%s: metadata %zu is not UTF-8", path, i);
        else if (json_object_get(seen, key))
            st = moe_error(MOE_E_INPUT, "%s: metadata \"%s\" is given twice", path, key);
        else
            json_object_set_new(seen, key, json_true());
    }
    moe_str_putc(h, '}');
    json_decref(seen);
    return st;
}

/* `at`: where its data begins; advanced past it. */
static MoeStatus append_tensor(MoeStr *h, const char *path, const MoeStOut *t, int64_t *at) {
    int64_t elements = 1, n_bytes;
    size_t width = moe_st_dtype_bytes(t->dtype);
    if (!width)
        return moe_error(MOE_E_INPUT, "%s: tensor \"%s\": this dtype cannot be written", path,
                         t->name);
    MOE_ASSERT(t->rank >= 0 && t->rank <= MOE_ST_MAX_RANK, "tensor %s of rank %d", t->name,
               t->rank);
    if (!append_json_string(h, t->name))
        return moe_error(MOE_E_INPUT, "%s: a tensor name is not UTF-8", path);
    moe_str_printf(h, ":{\"dtype\":\"%s\",\"shape\":[", moe_st_dtype_name(t->dtype));
    for (int i = 0; i < t->rank; i++) {
        if (t->dims[i] < 0 || !moe_mul_i64(elements, t->dims[i], &elements))
            return moe_error(MOE_E_INPUT, "%s: tensor \"%s\": bad or overflowing shape", path,
                             t->name);
        moe_str_printf(h, i ? ",%lld" : "%lld", (long long)t->dims[i]);
    }
    int64_t begin = *at;
    if (!moe_mul_i64(elements, (int64_t)width, &n_bytes) || !moe_add_i64(begin, n_bytes, at))
        return moe_error(MOE_E_INPUT, "%s: tensor \"%s\": the file size overflows 64 bits", path,
                         t->name);
    moe_str_printf(h, "],\"data_offsets\":[%lld,%lld]}", (long long)begin, (long long)*at);
    return NULL;
}

static MoeStatus make_header(MoeStr *h, const char *path, const MoeStOut *tensors, size_t n,
                             const char *const *metadata_kv, size_t n_metadata) {
    json_t *seen = json_object();
    MOE_ASSERT(seen, "out of memory writing %s", path);
    MoeStatus st = NULL;
    int64_t at = 0;
    moe_str_putc(h, '{');
    if (n_metadata)
        st = append_metadata(h, path, metadata_kv, n_metadata);
    for (size_t i = 0; i < n && !st; i++) {
        const char *name = tensors[i].name;
        if (i || n_metadata)
            moe_str_putc(h, ',');
        st = append_tensor(h, path, &tensors[i], &at);
        if (!st && (json_object_get(seen, name) || !strcmp(name, "__metadata__")))
            st = moe_error(MOE_E_INPUT, "%s: tensor name \"%s\" is taken", path, name);
        if (!st)
            json_object_set_new(seen, name, json_null());
    }
    moe_str_putc(h, '}');
    while (h->len % 8)
        moe_str_putc(h, ' ');
    if (!st && h->len > MOE_ST_MAX_HEADER)
        st = moe_error(MOE_E_INPUT, "%s: the header needs %zu bytes, at most %zu are allowed", path,
                       h->len, MOE_ST_MAX_HEADER);
    json_decref(seen);
    return st;
}

/* Where the bytes go: the file, and the hashes of its blocks (NULL: none are kept). */
typedef struct {
    MoeFileOut *f;
    MoeBlockHasher *blocks;
} Out;

static MoeStatus put(Out *o, const void *data, size_t n) {
    if (o->blocks)
        MOE_TRY(moe_block_hasher_add(o->blocks, data, n));
    return moe_out_write(o->f, data, n);
}

static MoeStatus write_tensor(Out *o, const MoeStOut *tensors, size_t i, MoeStFill fill, void *ctx,
                              void *chunk) {
    const MoeStOut *t = &tensors[i];
    int64_t width = (int64_t)moe_st_dtype_bytes(t->dtype), elements = 1;
    for (int d = 0; d < t->rank; d++)
        elements *= t->dims[d]; /* checked with the header */
    if (t->data)
        return put(o, t->data, (size_t)(elements * width));
    MOE_ASSERT(fill || elements == 0, "tensor %s has neither data nor a source", t->name);
    int64_t step = CHUNK_BYTES / width;
    for (int64_t first = 0; first < elements; first += step) {
        int64_t n = elements - first < step ? elements - first : step;
        MOE_TRY(fill(ctx, i, first, n, chunk));
        MOE_TRY(put(o, chunk, (size_t)(n * width)));
    }
    return NULL;
}

static MoeStatus write_file(const char *path, const MoeStOut *tensors, size_t n,
                            const char *const *metadata_kv, size_t n_metadata, MoeStFill fill,
                            void *ctx, MoeBlockHasher *blocks, uint64_t *out_bytes,
                            char out_xxh3_hex[33]) {
    MoeStr h = {0};
    Out o = {NULL, blocks};
    unsigned char length[8];
    MoeStatus st;
    void *chunk = malloc((size_t)CHUNK_BYTES);
    if (!chunk)
        return moe_error(MOE_E_NOMEM, "out of memory writing %s", path);
    MOE_TRY_GOTO(st, make_header(&h, path, tensors, n, metadata_kv, n_metadata), done);
    for (int i = 0; i < 8; i++)
        length[i] = (unsigned char)((uint64_t)h.len >> (8 * i));
    MOE_TRY_GOTO(st, moe_out_create(path, &o.f), done);
    MOE_TRY_GOTO(st, put(&o, length, sizeof length), done);
    MOE_TRY_GOTO(st, put(&o, h.data, h.len), done);
    for (size_t i = 0; i < n; i++)
        MOE_TRY_GOTO(st, write_tensor(&o, tensors, i, fill, ctx, chunk), done);
    st = moe_out_finish(o.f, out_bytes, out_xxh3_hex);
    o.f = NULL;
done:
    moe_out_abandon(o.f);
    moe_str_free(&h);
    free(chunk);
    return st;
}

MoeStatus moe_st_write(const char *path, const MoeStOut *tensors, size_t n,
                       const char *const *metadata_kv, size_t n_metadata, MoeStFill fill, void *ctx,
                       uint64_t *out_bytes, char out_xxh3_hex[33]) {
    return write_file(path, tensors, n, metadata_kv, n_metadata, fill, ctx, NULL, out_bytes,
                      out_xxh3_hex);
}

MoeStatus moe_st_write_blocks(const char *path, const MoeStOut *tensors, size_t n,
                              const char *const *metadata_kv, size_t n_metadata, MoeStFill fill,
                              void *ctx, uint64_t *out_bytes, MoeBlockHashes *out_hashes) {
    MoeBlockHasher *blocks;
    MOE_TRY(moe_block_hasher_create(MOE_BLOCK_BYTES, &blocks));
    MoeStatus st =
        write_file(path, tensors, n, metadata_kv, n_metadata, fill, ctx, blocks, out_bytes, NULL);
    moe_block_hasher_end(blocks, st ? NULL : out_hashes);
    return st;
}
