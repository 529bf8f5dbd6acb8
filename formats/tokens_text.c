/* JSONL decoding, with its UTF-8 checks, for token sources. */
#include "formats/tokens_text.h"

#include <jansson.h>
#include <string.h>

#include "base/assert.h"
#include "base/json.h"
#include "base/str.h"

static MoeStatus not_utf8(const char *path, size_t line, size_t column, size_t offset,
                          unsigned byte) {
    return moe_error(MOE_E_INPUT,
                     "%s:%zu: not UTF-8: byte 0x%02x at byte %zu of the line (offset %zu of the "
                     "file); convert the "
                     "text, or cut it between characters",
                     path, line, byte, column, offset);
}

/* One document. Escapes only shrink text ("\u0041" is 6 bytes for 1), and {"text":""} around it
 * pays for the newline. */
static MoeStatus decode_line(const char *path, size_t line, const char *text, size_t n,
                             unsigned char *out, size_t *out_n) {
    json_error_t error;
    json_t *v = json_loadb(text, n, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
    if (!v)
        return moe_error(
            MOE_E_INPUT,
            "%s:%zu:%d: bad JSON: %s; expected one object a line with a string \"text\"", path,
            line, error.column, error.text);
    json_t *doc = json_object_get(v, "text");
    MoeStatus st = NULL;
    if (json_is_string(doc)) {
        size_t len = json_string_length(doc);
        MOE_ASSERT(len < n, "a decoded document longer than its line");
        memcpy(out + *out_n, json_string_value(doc), len);
        out[*out_n + len] = '\n';
        *out_n += len + 1;
    } else { /* the getter makes the message */
        const char *unused;
        MoeStr where = {0};
        moe_str_printf(&where, "%s:%zu", path, line);
        st = moe_json_str(v, where.data, "text", true, &unused);
        MOE_ASSERT(st, "a text that is no string was accepted");
        moe_str_free(&where);
    }
    json_decref(v);
    return st;
}

MoeStatus moe_jsonl_decode(const char *path, const unsigned char *data, size_t n,
                           unsigned char *out, size_t *out_n) {
    const char *p = (const char *)data;
    size_t at = n >= 3 && !memcmp(p, "\xef\xbb\xbf", 3) ? 3 : 0; /* a byte order mark is no JSON */
    *out_n = 0;
    for (size_t line = 1; at < n; line++) {
        const char *end = memchr(p + at, '\n', n - at);
        size_t len = end ? (size_t)(end - (p + at)) : n - at, bad, blank = 0;
        if (!moe_utf8_valid(p + at, len, &bad))
            return not_utf8(path, line, bad + 1, at + bad, data[at + bad]);
        while (blank < len &&
               (p[at + blank] == ' ' || p[at + blank] == '\t' || p[at + blank] == '\r'))
            blank++;
        if (blank < len)
            MOE_TRY(decode_line(path, line, p + at, len, out, out_n));
        at += len + 1;
    }
    return NULL;
}
