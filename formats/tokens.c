/* Token sources. Text and token files are mapped and read in place; JSONL is decoded once into
 * memory. Everything is checked when a source is opened, so that reading during training cannot
 * fail. */
#include "formats/tokens.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/io.h"
#include "base/mem.h"
#include "formats/tokens_text.h"

#define LLMC_HEADER_BYTES 1024 /* 256 little-endian int32: magic, version, token count, zeros */

struct MoeTokens {
    MoeMap map;
    void *decoded; /* JSONL: map.n bytes of address space */
    size_t decoded_cap;
    const unsigned char *data; /* count * width bytes */
    int width;                 /* of a token: 1, 2 or 4 bytes */
    int64_t count;
    double bytes_per_token;
};

static const struct {
    const char *name;
    MoeDataFormat format;
} format_names[] = {
    {"auto", MOE_DATA_AUTO}, {"text", MOE_DATA_TEXT}, {"jsonl", MOE_DATA_JSONL},
    {"u16", MOE_DATA_U16},   {"u32", MOE_DATA_U32},   {"llmc", MOE_DATA_LLMC},
};

bool moe_data_format_from_name(const char *name, MoeDataFormat *out) {
    for (size_t i = 0; i < sizeof format_names / sizeof *format_names; i++)
        if (!strcmp(name, format_names[i].name)) {
            *out = format_names[i].format;
            return true;
        }
    return false;
}

static uint32_t load_u32(const unsigned char *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Two headers exist: magic 20240520 version 1 with uint16 tokens, magic 20240801 version 7 with
 * uint32. 0 if neither. */
static int llmc_width(const MoeMap *map) {
    if (map->n < LLMC_HEADER_BYTES)
        return 0;
    uint32_t magic = load_u32(map->data), version = load_u32(map->data + 4);
    if (magic == 20240520u && version == 1)
        return 2;
    return magic == 20240801u && version == 7 ? 4 : 0;
}

static bool has_suffix(const char *s, const char *suffix) {
    size_t n = strlen(s), m = strlen(suffix);
    return n >= m && !strcmp(s + n - m, suffix);
}

static MoeStatus detect_format(const char *path, const MoeMap *map, MoeDataFormat *out) {
    if (has_suffix(path, ".jsonl"))
        *out = MOE_DATA_JSONL;
    else if (has_suffix(path, ".u16"))
        *out = MOE_DATA_U16;
    else if (has_suffix(path, ".u32"))
        *out = MOE_DATA_U32;
    else if (!has_suffix(path, ".bin"))
        *out = MOE_DATA_TEXT;
    else if (llmc_width(map))
        *out = MOE_DATA_LLMC;
    else
        return moe_error(MOE_E_INPUT,
                         "%s: a .bin file without llm.c's header; say what it holds: --format u16 "
                         "or --format u32",
                         path);
    return NULL;
}

static MoeStatus open_llmc(MoeTokens *t, const char *path) {
    const MoeMap *m = &t->map;
    t->width = llmc_width(m);
    if (m->n < LLMC_HEADER_BYTES)
        return moe_error(MOE_E_INPUT, "%s: %zu bytes, too short for llm.c's header of %d", path,
                         m->n, LLMC_HEADER_BYTES);
    if (!t->width)
        return moe_error(
            MOE_E_INPUT,
            "%s: no llm.c token file: magic %u version %u, expected 20240520 version 1 (uint16) or "
            "20240801 version 7 (uint32)",
            path, load_u32(m->data), load_u32(m->data + 4));
    uint32_t count = load_u32(m->data + 8);
    uint64_t expected = LLMC_HEADER_BYTES + (uint64_t)count * (uint64_t)t->width;
    if (count > INT32_MAX || expected != m->n)
        return moe_error(
            MOE_E_INPUT,
            "%s: the header says %u tokens of %d bytes (a file of %llu bytes), the file has %zu",
            path, count, t->width, (unsigned long long)expected, m->n);
    t->data = m->data + LLMC_HEADER_BYTES;
    t->count = (int64_t)count;
    return NULL;
}

static MoeStatus open_raw(MoeTokens *t, const char *path, int width) {
    if (t->map.n % (size_t)width)
        return moe_error(MOE_E_INPUT, "%s: %zu bytes is no whole number of %d-byte tokens", path,
                         t->map.n, width);
    t->width = width;
    t->data = t->map.data;
    t->count = (int64_t)(t->map.n / (size_t)width);
    return NULL;
}

static MoeStatus open_text(MoeTokens *t, const char *path) {
    t->bytes_per_token = 1;
    return open_raw(t, path, 1);
}

static MoeStatus open_jsonl(MoeTokens *t, const char *path) {
    size_t n;
    MOE_TRY(moe_alloc_big(t->map.n, "the decoded JSONL", &t->decoded));
    t->decoded_cap = t->map.n;
    MOE_TRY(moe_jsonl_decode(path, t->map.data, t->map.n, t->decoded, &n));
    moe_map_close(&t->map);
    t->data = t->decoded;
    t->width = 1;
    t->count = (int64_t)n;
    t->bytes_per_token = 1;
    return NULL;
}

static uint32_t token_at(const MoeTokens *t, int64_t i) {
    const unsigned char *p = t->data + i * t->width;
    if (t->width == 1)
        return p[0];
    if (t->width == 2)
        return (uint32_t)p[0] | (uint32_t)p[1] << 8;
    return load_u32(p);
}

static MoeStatus check_ids(const MoeTokens *t, const char *path, int64_t vocab_size) {
    if (t->width < 4 && vocab_size >= (int64_t)1 << (8 * t->width))
        return NULL; /* no id can be out of range: gigabytes need not be read */
    for (int64_t i = 0; i < t->count; i++) {
        uint32_t id = token_at(t, i);
        if (id >= vocab_size || id > INT32_MAX)
            return moe_error(
                MOE_E_INPUT,
                "%s: token %lld has id %u, the model's vocab_size is %lld: another tokenizer, or "
                "another --format (u16, u32)?",
                path, (long long)i, id, (long long)vocab_size);
    }
    return NULL;
}

static MoeStatus check_tokenizer(const char *path, const char *tokenizer, int64_t vocab_size) {
    if (!tokenizer || strcmp(tokenizer, "byte") != 0)
        return moe_error(MOE_E_INPUT,
                         "%s: text needs the tokenizer \"byte\", got \"%s\"; for another one, "
                         "tokenize beforehand and "
                         "pass a token file",
                         path, tokenizer ? tokenizer : "(none)");
    if (vocab_size < 256)
        return moe_error(
            MOE_E_INPUT,
            "%s: the byte tokenizer needs a vocab_size of 256 or more, the model has %lld", path,
            (long long)vocab_size);
    return NULL;
}

static MoeStatus open_format(MoeTokens *t, const char *path, MoeDataFormat format,
                             const char *tokenizer, int64_t vocab_size) {
    if (format == MOE_DATA_AUTO)
        MOE_TRY(detect_format(path, &t->map, &format));
    if (format == MOE_DATA_TEXT || format == MOE_DATA_JSONL)
        MOE_TRY(check_tokenizer(path, tokenizer, vocab_size));
    if (format == MOE_DATA_TEXT)
        MOE_TRY(open_text(t, path));
    else if (format == MOE_DATA_JSONL)
        MOE_TRY(open_jsonl(t, path));
    else if (format == MOE_DATA_LLMC)
        MOE_TRY(open_llmc(t, path));
    else
        MOE_TRY(open_raw(t, path, format == MOE_DATA_U16 ? 2 : 4));
    if (t->count == 0)
        return moe_error(MOE_E_INPUT, "%s: no tokens in it", path);
    return check_ids(t, path, vocab_size);
}

MoeStatus moe_tokens_open(const char *path, MoeDataFormat format, const char *tokenizer,
                          int64_t vocab_size, MoeTokens **out) {
    MOE_ASSERT(vocab_size > 0, "a vocab_size of %lld", (long long)vocab_size);
    MoeTokens *t = calloc(1, sizeof *t);
    if (!t)
        return moe_error(MOE_E_NOMEM, "out of memory opening %s", path);
    MoeStatus st = moe_map_open(path, &t->map);
    if (!st)
        st = open_format(t, path, format, tokenizer, vocab_size);
    if (st) {
        moe_tokens_close(t);
        return st;
    }
    *out = t;
    return NULL;
}

void moe_tokens_close(MoeTokens *t) {
    if (!t)
        return;
    moe_free_big(t->decoded, t->decoded_cap);
    moe_map_close(&t->map);
    free(t);
}

int64_t moe_tokens_count(const MoeTokens *t) {
    return t->count;
}

void moe_tokens_read(const MoeTokens *t, int64_t first, int64_t n, int32_t *out) {
    MOE_ASSERT(first >= 0 && n >= 0 && first <= t->count && n <= t->count - first,
               "tokens %lld + %lld of %lld", (long long)first, (long long)n, (long long)t->count);
    for (int64_t i = 0; i < n; i++)
        out[i] = (int32_t)token_at(t, first + i);
}

double moe_tokens_bytes_per_token(const MoeTokens *t) {
    return t->bytes_per_token;
}
