/* The manifest of a checkpoint: sealed with a hash of its own text, so that a flipped digit
 * anywhere in it is found. */
#include "runtime/checkpoint_internal.h"

#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/io.h"

#define MAX_MANIFEST_BYTES ((size_t)1 << 30)

const char *const moe_checkpoint_files[MOE_CHECKPOINT_FILES] = {"model.safetensors",
                                                                "optimizer.safetensors"};

static MoeStOut tensor_of(MoeExec *x, const MoeWeight *w, const char *name, int buffer) {
    MoeStOut t = {.name = name, .dtype = MOE_ST_F32, .rank = w->rank};
    memcpy(t.dims, w->dims, sizeof t.dims);
    t.data = (const float *)moe_exec_buffer(x, buffer) + w->first;
    return t;
}

void moe_checkpoint_tensors(const MoePlan *plan, MoeExec *x, const MoeWeightList *list, int file,
                            MoeCheckpointTensors *out) {
    size_t n = list->n;
    for (size_t i = 0; file == 1 && i < list->n; i++)
        n += plan->params[list->items[i].param].n_states;
    out->items = MOE_NEW_N(list->arena, MoeStOut, n);
    out->n = 0;
    for (size_t i = 0; i < list->n; i++) {
        const MoeWeight *w = &list->items[i];
        const MoePlanParam *p = &plan->params[w->param];
        if (file == 0)
            out->items[out->n++] = tensor_of(x, w, w->name, p->buffer);
        for (size_t k = 0; file == 1 && k < p->n_states; k++)
            out->items[out->n++] =
                tensor_of(x, w, moe_arena_printf(list->arena, "%s.%s", w->name, p->states[k].name),
                          p->states[k].buffer);
    }
}

int64_t moe_checkpoint_elements(const MoeStOut *t) {
    int64_t n = 1;
    for (int i = 0; i < t->rank; i++)
        n *= t->dims[i];
    return n;
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
