/* The manifest of a checkpoint: sealed with a hash of its own text, so that a flipped digit
 * anywhere in it is found. */
#include "runtime/checkpoint_internal.h"

#include <stdlib.h>
#include <string.h>

#include "base/io.h"

#define MAX_MANIFEST_BYTES ((size_t)1 << 30)

void moe_hex_put(MoeStr *out, const uint64_t *v, size_t n) {
    for (size_t i = 0; i < n; i++)
        moe_str_printf(out, "%016llx", (unsigned long long)v[i]);
}

bool moe_hex_get(const char *text, uint64_t *out, size_t n) {
    if (!text || strlen(text) != 16 * n || strspn(text, "0123456789abcdef") != 16 * n)
        return false;
    for (size_t i = 0; i < n; i++) {
        char digits[17] = "";
        memcpy(digits, text + 16 * i, 16);
        out[i] = strtoull(digits, NULL, 16);
    }
    return true;
}

void moe_manifest_seal(json_t *manifest, MoeStr *out_text) {
    char hash[33];
    json_object_del(manifest, "manifest_xxh3");
    moe_json_dump(manifest, out_text);
    moe_hash_hex(moe_str_c(out_text), out_text->len, hash);
    json_object_set_new(manifest, "manifest_xxh3", json_string(hash));
    moe_str_clear(out_text);
    moe_json_dump(manifest, out_text);
}

static MoeStatus check_seal(json_t *manifest, const char *path) {
    MoeStr text = {0};
    const char *s = json_string_value(json_object_get(manifest, "manifest_xxh3"));
    char want[33] = "", have[33];
    if (s && strlen(s) == 32)
        memcpy(want, s, sizeof want);
    json_object_del(manifest, "manifest_xxh3");
    moe_json_dump(manifest, &text);
    moe_hash_hex(moe_str_c(&text), text.len, have);
    moe_str_free(&text);
    if (strcmp(want, have))
        return moe_error(MOE_E_CORRUPT, "%s: its hash is %s, recorded %s: the manifest is damaged",
                         path, have, want[0] ? want : "none");
    return NULL;
}

MoeStatus moe_manifest_read(const char *dir, json_t **out) {
    char *path = moe_path_join(dir, "manifest.json");
    json_t *m = NULL;
    MoeStatus st = NULL;
    *out = NULL;
    if (!moe_path_exists(path)) {
        st = moe_error(MOE_E_CORRUPT, "%s is not a checkpoint: it has no manifest.json", dir);
        goto done;
    }
    st = moe_json_load_file(path, MAX_MANIFEST_BYTES, &m);
    if (st && moe_status_code(st) == MOE_E_INPUT) { /* bad JSON in a file of ours is damage */
        MoeStatus damaged = moe_error(MOE_E_CORRUPT, "%s", moe_status_message(st));
        moe_status_free(st);
        st = damaged;
    }
    if (st)
        goto done;
    MOE_TRY_GOTO(st, check_seal(m, path), done);
    const char *kind = json_string_value(json_object_get(m, "kind"));
    json_int_t version = json_integer_value(json_object_get(m, "format_version"));
    if (!kind || strcmp(kind, "moec checkpoint") || version < 1)
        st = moe_error(MOE_E_CORRUPT, "%s is not a moec checkpoint's manifest", path);
    else if (version > MOE_CHECKPOINT_FORMAT)
        st = moe_error(MOE_E_INPUT,
                       "%s has format version %lld; this moec reads up to %d: use a newer moec",
                       path, (long long)version, MOE_CHECKPOINT_FORMAT);
done:
    if (st)
        json_decref(m);
    else
        *out = m;
    free(path);
    return st;
}

json_t *moe_manifest_state(const MoeTrainState *s) {
    char seed[32];
    snprintf(seed, sizeof seed, "%llu", (unsigned long long)s->seed);
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:f, s:s, s:{s:I, s:I, s:s}, s:I}", "step",
                     (json_int_t)s->step, "updates", (json_int_t)s->updates, "skipped",
                     (json_int_t)s->skipped, "skipped_in_row", (json_int_t)s->skipped_in_row,
                     "tokens", (json_int_t)s->tokens, "train_seconds", s->train_seconds, "seed",
                     seed, "data", "epoch", (json_int_t)s->data.epoch, "index",
                     (json_int_t)s->data.index, "fingerprint", s->data_fingerprint,
                     "checkpoint_failures", (json_int_t)s->checkpoint_failures);
}

MoeStatus moe_manifest_state_read(const json_t *manifest, const char *where, MoeTrainState *out) {
    const json_t *s = json_object_get(manifest, "state"), *d = json_object_get(s, "data");
    const char *seed = "0", *print = "";
    *out = (MoeTrainState){0};
    MOE_TRY(moe_json_i64(s, where, "step", true, &out->step));
    MOE_TRY(moe_json_i64(s, where, "updates", true, &out->updates));
    MOE_TRY(moe_json_i64(s, where, "skipped", true, &out->skipped));
    MOE_TRY(moe_json_i64(s, where, "skipped_in_row", true, &out->skipped_in_row));
    MOE_TRY(moe_json_i64(s, where, "tokens", true, &out->tokens));
    MOE_TRY(moe_json_f64(s, where, "train_seconds", true, &out->train_seconds));
    MOE_TRY(moe_json_str(s, where, "seed", true, &seed));
    MOE_TRY(moe_json_i64(s, where, "checkpoint_failures", true, &out->checkpoint_failures));
    MOE_TRY(moe_json_i64(d, where, "epoch", true, &out->data.epoch));
    MOE_TRY(moe_json_i64(d, where, "index", true, &out->data.index));
    MOE_TRY(moe_json_str(d, where, "fingerprint", true, &print));
    out->seed = strtoull(seed, NULL, 10);
    snprintf(out->data_fingerprint, sizeof out->data_fingerprint, "%s", print);
    return NULL;
}
