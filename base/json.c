/* JSON through jansson: parse errors with file:line:col, typed getters whose errors name object and
 * key. */
#include "base/json.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/io.h"

MoeStatus moe_json_load_text(const char *text, size_t n, const char *name, json_t **out) {
    json_error_t error;
    json_t *v = json_loadb(text, n, JSON_REJECT_DUPLICATES, &error);
    if (!v) {
        if (json_error_code(&error) == json_error_out_of_memory)
            return moe_error(MOE_E_NOMEM, "%s: out of memory parsing %zu bytes of JSON", name, n);
        return moe_error(MOE_E_INPUT, "%s:%d:%d: bad JSON: %s", name, error.line, error.column,
                         error.text);
    }
    *out = v;
    return NULL;
}

MoeStatus moe_json_load_file(const char *path, size_t max_bytes, json_t **out) {
    char *text;
    size_t n;
    MOE_TRY(moe_file_read(path, max_bytes, &text, &n));
    MoeStatus st = moe_json_load_text(text, n, path, out);
    free(text);
    return st;
}

static const char *type_name(const json_t *v) {
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a real number";
    case JSON_TRUE:
        return "true";
    case JSON_FALSE:
        return "false";
    case JSON_NULL:
        return "null";
    }
    return "an unknown value";
}

/* *out = the value, or NULL where it is absent (or null) and not required. */
static MoeStatus get(const json_t *obj, const char *where, const char *key, bool required,
                     const char *expected, json_t **out) {
    *out = NULL;
    if (!json_is_object(obj))
        return moe_error(MOE_E_INPUT, "%s: expected an object with \"%s\", found %s", where, key,
                         obj ? type_name(obj) : "nothing");
    json_t *v = json_object_get(obj, key);
    if (v && !json_is_null(v)) {
        *out = v;
        return NULL;
    }
    if (required)
        return moe_error(MOE_E_INPUT, "%s: \"%s\" is %s; it is required: %s", where, key,
                         v ? "null" : "missing", expected);
    return NULL;
}

static MoeStatus wrong_type(const char *where, const char *key, const char *expected,
                            const json_t *found) {
    MoeStr value = {0};
    if (json_is_string(found))
        moe_str_printf(&value, " \"%.40s\"", json_string_value(found));
    else if (json_is_integer(found))
        moe_str_printf(&value, " %" JSON_INTEGER_FORMAT, json_integer_value(found));
    else if (json_is_real(found))
        moe_str_printf(&value, " %.17g", json_real_value(found));
    MoeStatus st = moe_error(MOE_E_INPUT, "%s: \"%s\" must be %s, found %s%s", where, key, expected,
                             type_name(found), moe_str_c(&value));
    moe_str_free(&value);
    return st;
}

MoeStatus moe_json_i64(const json_t *obj, const char *where, const char *key, bool required,
                       int64_t *out) {
    json_t *v;
    MOE_TRY(get(obj, where, key, required, "an integer", &v));
    if (v && !json_is_integer(v))
        return wrong_type(where, key, "an integer", v);
    if (v)
        *out = json_integer_value(v);
    return NULL;
}

MoeStatus moe_json_f64(const json_t *obj, const char *where, const char *key, bool required,
                       double *out) {
    json_t *v;
    MOE_TRY(get(obj, where, key, required, "a number", &v));
    if (v && !json_is_number(v))
        return wrong_type(where, key, "a number", v);
    if (v)
        *out = json_number_value(v);
    return NULL;
}

MoeStatus moe_json_bool(const json_t *obj, const char *where, const char *key, bool required,
                        bool *out) {
    json_t *v;
    MOE_TRY(get(obj, where, key, required, "true or false", &v));
    if (v && !json_is_boolean(v))
        return wrong_type(where, key, "true or false", v);
    if (v)
        *out = json_is_true(v);
    return NULL;
}

MoeStatus moe_json_str(const json_t *obj, const char *where, const char *key, bool required,
                       const char **out) {
    json_t *v;
    MOE_TRY(get(obj, where, key, required, "a string", &v));
    if (v && !json_is_string(v))
        return wrong_type(where, key, "a string", v);
    if (v)
        *out = json_string_value(v);
    return NULL;
}

MoeStatus moe_json_array(const json_t *obj, const char *where, const char *key, bool required,
                         json_t **out) {
    json_t *v;
    MOE_TRY(get(obj, where, key, required, "an array", &v));
    if (v && !json_is_array(v))
        return wrong_type(where, key, "an array", v);
    if (v)
        *out = v;
    return NULL;
}

MoeStatus moe_json_object(const json_t *obj, const char *where, const char *key, bool required,
                          json_t **out) {
    json_t *v;
    MOE_TRY(get(obj, where, key, required, "an object", &v));
    if (v && !json_is_object(v))
        return wrong_type(where, key, "an object", v);
    if (v)
        *out = v;
    return NULL;
}

static int append_chunk(const char *text, size_t n, void *out) {
    moe_str_append_n(out, text, n);
    return 0;
}

void moe_json_dump(const json_t *v, MoeStr *out) {
    size_t flags = JSON_INDENT(1) | JSON_REAL_PRECISION(17) | JSON_ENCODE_ANY;
    MOE_ASSERT(json_dump_callback(v, append_chunk, out, flags) == 0,
               "a JSON value that cannot be written");
    moe_str_putc(out, '\n');
}
