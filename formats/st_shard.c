/* Reads the header of one safetensors file. The file is hostile until each of these holds: 8 bytes
 * of length, at most 100,000,000 and within the file; a JSON object padded with spaces, no key
 * twice; for each tensor a known dtype, rank <= 8, a product of dims that does not overflow and
 * gives the bytes of data_offsets; offsets that tile the rest of the file exactly. */
#include "formats/st_shard.h"

#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "formats/st_dtype.h"

/* Where the header of a file of file_n bytes ends; p: its first 8. */
static MoeStatus header_length(const char *file, const unsigned char *p, size_t file_n,
                               size_t *out_n) {
    if (file_n < 8)
        return moe_error(MOE_E_INPUT,
                         "%s: not a safetensors file: %zu bytes, too short for a header", file,
                         file_n);
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--)
        n = n << 8 | p[i];
    if (n > MOE_ST_MAX_HEADER)
        return moe_error(MOE_E_INPUT,
                         "%s: not a safetensors file: header length %llu, at most %zu is accepted",
                         file, (unsigned long long)n, MOE_ST_MAX_HEADER);
    if (n > file_n - 8)
        return moe_error(
            MOE_E_INPUT,
            "%s: truncated: the header should have %llu bytes, the file has %zu after its length",
            file, (unsigned long long)n, file_n - 8);
    *out_n = (size_t)n;
    return NULL;
}

/* The length of the header's text without its padding. */
static MoeStatus trim_header(const char *file, const char *text, size_t n, size_t *out_n) {
    if (n == 0 || text[0] != '{')
        return moe_error(MOE_E_INPUT,
                         "%s: not a safetensors file: the header does not begin with '{'", file);
    while (text[n - 1] == ' ')
        n--;
    if (text[n - 1] != '}')
        return moe_error(MOE_E_INPUT, "%s: the header does not end with '}' and spaces", file);
    *out_n = n;
    return NULL;
}

/* Where a file's tensors lie: `n` bytes from byte `at` on; data is NULL when they are not mapped. */
typedef struct {
    const unsigned char *data;
    size_t n;
    int64_t at;
} Data;

static MoeStatus bad_tensor(const MoeStTensor *t, const char *what) {
    return moe_error(MOE_E_INPUT, "%s: tensor \"%.200s\": %s", t->file, t->name, what);
}

/* shape -> rank, dims, elements */
static MoeStatus read_shape(const json_t *info, MoeStTensor *t) {
    const json_t *shape = json_object_get(info, "shape");
    if (!json_is_array(shape))
        return bad_tensor(t, "\"shape\" must be an array of integers");
    size_t rank = json_array_size(shape);
    if (rank > MOE_ST_MAX_RANK)
        return moe_error(MOE_E_INPUT, "%s: tensor \"%.200s\": rank %zu, at most %d is supported",
                         t->file, t->name, rank, MOE_ST_MAX_RANK);
    t->rank = (int)rank;
    t->elements = 1;
    bool overflow = false;
    for (size_t i = 0; i < rank; i++) {
        const json_t *d = json_array_get(shape, i);
        if (!json_is_integer(d) || json_integer_value(d) < 0)
            return bad_tensor(t, "\"shape\" must hold integers of 0 or more");
        t->dims[i] = json_integer_value(d);
        overflow = overflow || !moe_mul_i64(t->elements, t->dims[i], &t->elements);
    }
    if (overflow) /* left to right, as other readers do: also for [2^62, 4, 0] */
        return bad_tensor(t, "\"shape\": the number of elements overflows 64 bits");
    return NULL;
}

/* data_offsets -> at, data, n_bytes */
static MoeStatus read_offsets(const json_t *info, const Data *data, int bits, MoeStTensor *t) {
    const json_t *offsets = json_object_get(info, "data_offsets");
    const json_t *first = json_array_get(offsets, 0), *last = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(last))
        return bad_tensor(t, "\"data_offsets\" must be an array of two integers");
    int64_t begin = json_integer_value(first), end = json_integer_value(last), n_bits;
    if (begin < 0 || end < begin || (uint64_t)end > data->n)
        return moe_error(
            MOE_E_INPUT,
            "%s: tensor \"%.200s\": data_offsets [%lld, %lld] do not lie in the %zu bytes of data",
            t->file, t->name, (long long)begin, (long long)end, data->n);
    if (!moe_mul_i64(t->elements, bits, &n_bits))
        return bad_tensor(t, "\"shape\": the number of bytes overflows 64 bits");
    if (n_bits % 8)
        return bad_tensor(t, "its elements do not fill whole bytes");
    if (n_bits / 8 != end - begin)
        return moe_error(
            MOE_E_INPUT,
            "%s: tensor \"%.200s\": dtype and shape need %lld bytes, data_offsets give %lld",
            t->file, t->name, (long long)(n_bits / 8), (long long)(end - begin));
    t->n_bytes = (size_t)(end - begin);
    t->at = data->at + begin;
    t->data = data->data ? data->data + begin : NULL;
    return NULL;
}

static MoeStatus read_tensor(const json_t *info, const Data *data, MoeStTensor *t) {
    int bits = 0;
    if (!json_is_object(info))
        return bad_tensor(t, "expected an object with dtype, shape and data_offsets");
    const char *dtype = json_string_value(json_object_get(info, "dtype"));
    if (!dtype)
        return bad_tensor(t, "\"dtype\" must be a string");
    if (!moe_st_dtype_parse(dtype, &t->dtype, &bits))
        return moe_error(MOE_E_INPUT, "%s: tensor \"%.200s\": unknown dtype \"%.40s\"", t->file,
                         t->name, dtype);
    MOE_TRY(read_shape(info, t));
    return read_offsets(info, data, bits, t);
}

static int compare_place(const void *a, const void *b) {
    const MoeStTensor *x = a, *y = b;
    if (x->at != y->at)
        return x->at < y->at ? -1 : 1;
    if (x->n_bytes != y->n_bytes) /* empty ones before the one that starts at the same place */
        return x->n_bytes < y->n_bytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

/* The tensors tile the data: no hole, no overlap, nothing after the last. */
static MoeStatus check_tiling(const MoeStShard *s, const Data *data) {
    size_t at = 0;
    for (size_t i = 0; i < s->n; i++) {
        const MoeStTensor *t = &s->tensors[i];
        size_t begin = (size_t)(t->at - data->at);
        if (begin != at)
            return moe_error(MOE_E_INPUT,
                             "%s: tensor \"%.200s\" begins at data byte %zu, %s byte %zu", s->file,
                             t->name, begin,
                             begin > at ? "leaving a hole from"
                                        : "overlapping the tensor before it, which ends at",
                             at);
        at += t->n_bytes;
    }
    if (at != data->n)
        return moe_error(MOE_E_INPUT, "%s: %zu bytes of data, but the tensors cover only %zu",
                         s->file, data->n, at);
    return NULL;
}

static MoeStatus read_metadata(MoeStShard *s, json_t *metadata) {
    const char *key;
    json_t *value;
    if (!json_is_object(metadata))
        return moe_error(MOE_E_INPUT, "%s: \"__metadata__\" must be an object", s->file);
    json_object_foreach(metadata, key, value) {
        if (!json_is_string(value))
            return moe_error(MOE_E_INPUT, "%s: \"__metadata__\": \"%.200s\" must be a string",
                             s->file, key);
    }
    s->metadata = json_incref(metadata);
    return NULL;
}

static MoeStatus read_header(MoeArena *arena, const json_t *header, const Data *data,
                             MoeStShard *s) {
    size_t n = json_object_size(header);
    if (n > MOE_ST_MAX_TENSORS)
        return moe_error(MOE_E_INPUT, "%s: %zu tensors, at most %zu are accepted", s->file, n,
                         MOE_ST_MAX_TENSORS);
    s->tensors = MOE_NEW_N(arena, MoeStTensor, n);
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)header, key, value) {
        if (!strcmp(key, "__metadata__")) {
            MOE_TRY(read_metadata(s, value));
            continue;
        }
        MoeStTensor *t = &s->tensors[s->n];
        t->name = moe_arena_strdup(arena, key);
        t->file = s->file;
        MOE_TRY(read_tensor(value, data, t));
        s->n++;
    }
    if (s->n > 1)
        qsort(s->tensors, s->n, sizeof *s->tensors, compare_place);
    return check_tiling(s, data);
}

/* text: the header, n bytes with padding. */
static MoeStatus read_text(MoeArena *arena, const char *text, size_t n, const Data *data,
                           MoeStShard *s) {
    json_t *header = NULL;
    MOE_TRY(trim_header(s->file, text, n, &n));
    MOE_TRY(moe_json_load_text(text, n, moe_arena_printf(arena, "%s: header", s->file), &header));
    MoeStatus st = read_header(arena, header, data, s);
    json_decref(header);
    return st;
}

MoeStatus moe_st_shard_open(MoeArena *arena, const char *path, MoeStShard *out) {
    MoeStShard s = {.file = moe_arena_strdup(arena, path)};
    size_t n = 0;
    MoeStatus st;
    MOE_TRY(moe_map_open(path, &s.map));
    MOE_TRY_GOTO(st, header_length(s.file, s.map.data, s.map.n, &n), done);
    Data data = {s.map.data + 8 + n, s.map.n - 8 - n, 8 + (int64_t)n};
    st = read_text(arena, (const char *)s.map.data + 8, n, &data, &s);
done:
    if (st)
        moe_st_shard_close(&s);
    *out = s;
    return st;
}

MoeStatus moe_st_shard_read(MoeArena *arena, MoeBlockFile *f, MoeStShard *out) {
    MoeStShard s = {.file = moe_arena_strdup(arena, moe_block_path(f))};
    unsigned char length[8] = {0};
    size_t n = 0, file_n = (size_t)moe_block_file_bytes(f);
    MoeStatus st;
    char *text = NULL;
    MOE_TRY_GOTO(st, moe_block_read(f, 0, file_n < 8 ? 0 : 8, length), done);
    MOE_TRY_GOTO(st, header_length(s.file, length, file_n, &n), done);
    text = malloc(n + 1);
    if (!text) {
        st = moe_error(MOE_E_NOMEM, "no memory for the header of %s", s.file);
        goto done;
    }
    MOE_TRY_GOTO(st, moe_block_read(f, 8, (int64_t)n, text), done);
    Data data = {NULL, file_n - 8 - n, 8 + (int64_t)n};
    st = read_text(arena, text, n, &data, &s);
done:
    free(text);
    if (st)
        moe_st_shard_close(&s);
    *out = s;
    return st;
}

void moe_st_shard_close(MoeStShard *s) {
    json_decref(s->metadata);
    moe_map_close(&s->map);
    *s = (MoeStShard){0};
}
