/* choices.h: the cache on disk. An entry is a JSON file named by the hash of kind, place and key; it repeats them, and ends with a hash of
 * itself, so that another's entry or a damaged one is none. */
#include "runtime/choices.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cache_dir.h"
#include "base/io.h"
#include "base/log.h"

#define VERSION   1
#define MAX_ENTRY ((size_t)1 << 16)

/* CACHE/choice-HASH.json. */
static bool entry_path(const char *kind, const char *place, const char *key, MoeStr *dir,
                       MoeStr *path) {
    MoeStr text = {0};
    char hash[33];
    if (!moe_cache_dir(dir))
        return false;
    moe_str_printf(&text, "%s\n%s\n%s\n", kind, place, key);
    moe_hash_hex(moe_str_c(&text), text.len, hash);
    moe_str_printf(path, "%s/choice-%s.json", moe_str_c(dir), hash);
    moe_str_free(&text);
    return true;
}

static void entry_text(const char *kind, const char *place, const char *key, const char *value,
                       MoeStr *out) {
    char hash[33];
    json_t *o = json_pack("{s:i, s:s, s:s, s:s, s:s}", "format_version", VERSION, "kind", kind,
                          "place", place, "key", key, "value", value);
    if (!o) /* a text that is not UTF-8 */
        return;
    moe_json_dump(o, out);
    moe_hash_hex(moe_str_c(out), out->len, hash);
    json_object_set_new(o, "hash", json_string(hash));
    moe_str_clear(out);
    moe_json_dump(o, out);
    json_decref(o);
}

/* The value in it, if the entry is what would be written for that value. */
static bool read_entry(const char *kind, const char *place, const char *key, const char *data,
                       size_t n, char out[MOE_CHOICE_BYTES]) {
    json_t *o = NULL;
    const char *value = NULL;
    MoeStr same = {0};
    MoeStatus st = moe_json_load_text(data, n, "a choice", &o);
    if (!st)
        st = moe_json_str(o, "a choice", "value", true, &value);
    bool whole = false;
    if (!st && strlen(value) < MOE_CHOICE_BYTES) {
        entry_text(kind, place, key, value, &same);
        whole = same.len && same.len == n && memcmp(moe_str_c(&same), data, n) == 0;
    }
    if (whole)
        memcpy(out, value, strlen(value) + 1);
    moe_status_free(st);
    moe_str_free(&same);
    json_decref(o);
    return whole;
}

bool moe_choices_cached(const char *kind, const char *place, const char *key,
                        char out[MOE_CHOICE_BYTES]) {
    MoeStr dir = {0}, path = {0};
    char *data = NULL;
    size_t n = 0;
    bool found = false;
    if (entry_path(kind, place, key, &dir, &path) && moe_path_exists(moe_str_c(&path))) {
        MoeStatus st = moe_file_read(moe_str_c(&path), MAX_ENTRY, &data, &n);
        found = !st && read_entry(kind, place, key, data, n, out);
        moe_status_free(st); /* what cannot be read is measured again */
    }
    free(data);
    moe_str_free(&dir);
    moe_str_free(&path);
    return found;
}

void moe_choices_keep(const char *kind, const char *place, const char *key, const char *value) {
    static atomic_flag told = ATOMIC_FLAG_INIT;
    MoeStr dir = {0}, path = {0}, text = {0};
    if (entry_path(kind, place, key, &dir, &path)) {
        entry_text(kind, place, key, value, &text);
        MoeStatus st = moe_dir_make(moe_str_c(&dir));
        if (!st && text.len)
            st = moe_file_write_atomic(moe_str_c(&path), moe_str_c(&text), text.len);
        if (st && !atomic_flag_test_and_set(&told))
            moe_warn("the cache of choices cannot be written: %s; set MOEC_CACHE to a directory "
                     "that can, or to nothing",
                     moe_status_message(st));
        moe_status_free(st);
    }
    moe_str_free(&text);
    moe_str_free(&dir);
    moe_str_free(&path);
}
