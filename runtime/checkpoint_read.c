/* Verifying and loading checkpoints: newest first, damaged ones named and passed over. */
#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "base/log.h"
#include "runtime/checkpoint_internal.h"
#include "runtime/run_config.h"

static MoeStatus corrupt(const char *dir, const char *what, const char *name) {
    return moe_error(MOE_E_CORRUPT, "%s: %s: %s", dir, name, what);
}

/* Errors about the content of a checkpoint's own files are damage, whatever reader found them. */
static MoeStatus as_damage(MoeStatus st) {
    if (!st || moe_status_code(st) != MOE_E_INPUT)
        return st;
    MoeStatus damaged = moe_error(MOE_E_CORRUPT, "%s", moe_status_message(st));
    moe_status_free(st);
    return damaged;
}

static MoeStatus verify_file(const char *dir, const json_t *entry, const char *name) {
    char *path = moe_path_join(dir, name), hash[33] = "";
    MoeMap map = {0};
    MoeStatus st = NULL;
    const char *recorded = json_string_value(json_object_get(entry, "xxh3"));
    json_int_t bytes = json_integer_value(json_object_get(entry, "bytes"));
    const char *entry_name = json_string_value(json_object_get(entry, "name"));
    if (!entry_name || strcmp(entry_name, name) || !recorded) {
        st = corrupt(dir, "its manifest has no such file", name);
    } else if (!moe_path_exists(path)) {
        st = corrupt(dir, "is missing", name);
    } else if (!(st = moe_map_open(path, &map))) {
        if ((json_int_t)map.n != bytes)
            st = moe_error(MOE_E_CORRUPT, "%s: %zu bytes, recorded %lld", path, map.n,
                           (long long)bytes);
        else
            moe_hash_hex(map.data, map.n, hash);
        if (!st && strcmp(hash, recorded))
            st = moe_error(MOE_E_CORRUPT, "%s: XXH3 %s, recorded %s: its content is damaged", path,
                           hash, recorded);
        moe_map_close(&map);
    }
    free(path);
    return st;
}

/* The census of one file against its tensors: each named once, none unnamed, contents as they were
 * in memory. */
static MoeStatus verify_census(const char *dir, const json_t *census, int file) {
    char *path = moe_path_join(dir, moe_checkpoint_files[file]);
    MoeSafetensors *s = NULL;
    size_t i, n = 0;
    json_t *e;
    MoeStatus st = as_damage(moe_st_open(path, &s));
    json_array_foreach(census, i, e) {
        if (st || json_integer_value(json_object_get(e, "file")) != file)
            continue;
        const char *name = json_string_value(json_object_get(e, "name"));
        const char *recorded = json_string_value(json_object_get(e, "xxh3"));
        const MoeStTensor *t = name ? moe_st_find(s, name) : NULL;
        char hash[33];
        n++;
        if (!t || !recorded || t->dtype != MOE_ST_F32 ||
            t->elements != json_integer_value(json_object_get(e, "elements"))) {
            st = moe_error(MOE_E_CORRUPT, "%s: the census names %s, which is not there as recorded",
                           path, name ? name : "nothing");
            continue;
        }
        moe_hash_hex(t->data, t->n_bytes, hash);
        if (strcmp(hash, recorded))
            st = moe_error(MOE_E_CORRUPT, "%s: tensor %s: XXH3 %s, recorded %s", path, name, hash,
                           recorded);
    }
    if (!st && n != moe_st_count(s))
        st = moe_error(MOE_E_CORRUPT, "%s: %zu tensors, %zu in the census", path, moe_st_count(s),
                       n);
    moe_st_close(s);
    free(path);
    return st;
}

MoeStatus moe_checkpoint_verify(const char *dir, json_t **out_manifest) {
    json_t *m = NULL;
    if (out_manifest)
        *out_manifest = NULL;
    MOE_TRY(moe_manifest_read(dir, &m));
    const json_t *files = json_object_get(m, "files"), *census = json_object_get(m, "census");
    MoeStatus st = NULL;
    if (json_array_size(files) != MOE_CHECKPOINT_FILES)
        st = corrupt(dir, "does not name the checkpoint's files", "manifest.json");
    for (size_t f = 0; f < MOE_CHECKPOINT_FILES && !st; f++)
        st = verify_file(dir, json_array_get(files, f), moe_checkpoint_files[f]);
    for (int f = 0; f < MOE_CHECKPOINT_FILES && !st; f++)
        st = verify_census(dir, census, f);
    if (st || !out_manifest)
        json_decref(m);
    else
        *out_manifest = m;
    return st;
}

MoeStatus moe_checkpoint_check_plan(const MoePlan *plan, const json_t *manifest,
                                    const char *where) {
    return moe_plan_facts_check(plan, json_object_get(manifest, "plan"), where);
}

/* One file's tensors into memory. The plan's tensors and the file's must be the same set. */
static MoeStatus load_file(const MoePlan *plan, MoeExec *x, const MoeWeightList *list,
                           const char *dir, int file) {
    char *path = moe_path_join(dir, moe_checkpoint_files[file]);
    MoeCheckpointTensors want;
    MoeSafetensors *s = NULL;
    moe_checkpoint_tensors(plan, x, list, file, &want);
    MoeStatus st = as_damage(moe_st_open(path, &s));
    if (!st && moe_st_count(s) != want.n)
        st = moe_error(MOE_E_CORRUPT, "%s: %zu tensors, the plan has %zu", path, moe_st_count(s),
                       want.n);
    for (size_t i = 0; i < want.n && !st; i++) {
        const MoeStOut *w = &want.items[i];
        const MoeStTensor *t = moe_st_find(s, w->name);
        if (!t)
            st = moe_error(MOE_E_CORRUPT, "%s: tensor %s is missing", path, w->name);
        else if (t->dtype != MOE_ST_F32 || t->rank != w->rank ||
                 memcmp(t->dims, w->dims, sizeof *w->dims * (size_t)w->rank))
            st = moe_error(MOE_E_CORRUPT, "%s: tensor %s has not the plan's shape in F32", path,
                           w->name);
        else if (t->n_bytes)
            memcpy((void *)(uintptr_t)w->data, t->data, t->n_bytes);
    }
    moe_st_close(s);
    free(path);
    return st;
}

/* The hashes of the census against what memory holds now. */
static MoeStatus check_memory(const MoePlan *plan, MoeExec *x, const MoeWeightList *list,
                              const json_t *manifest, const char *dir, int n_files) {
    json_t *census = json_object_get(manifest, "census");
    size_t at = 0;
    for (int f = 0; f < n_files; f++) {
        MoeCheckpointTensors want;
        moe_checkpoint_tensors(plan, x, list, f, &want);
        for (size_t i = 0; i < want.n;
             i++, at++) { /* the census is in the order of writing: weights, then states */
            const json_t *e = json_array_get(census, at);
            const char *name = json_string_value(json_object_get(e, "name")),
                       *recorded = json_string_value(json_object_get(e, "xxh3"));
            char hash[33];
            bool same = name && recorded && !strcmp(name, want.items[i].name);
            if (same) {
                moe_hash_hex(want.items[i].data,
                             (size_t)moe_checkpoint_elements(&want.items[i]) * sizeof(float), hash);
                same = !strcmp(recorded, hash);
            }
            if (!same)
                return moe_error(MOE_E_CORRUPT, "%s: %s in memory is not what was saved", dir,
                                 want.items[i].name);
        }
    }
    return NULL;
}

MoeStatus moe_checkpoint_load(const MoePlan *plan, MoeExec *x, const char *dir, bool with_optimizer,
                              MoeTrainState *state) {
    json_t *m = NULL;
    MoeWeightList list = {0};
    MoeStatus st = NULL;
    int n_files = with_optimizer ? 2 : 1;
    MOE_TRY(moe_checkpoint_verify(dir, &m));
    MOE_TRY_GOTO(st, moe_checkpoint_check_plan(plan, m, dir), done);
    if (state)
        MOE_TRY_GOTO(st, as_damage(moe_manifest_state_read(m, dir, state)), done);
    MOE_TRY_GOTO(st, moe_weight_list(plan, &list), done);
    for (int f = 0; f < n_files; f++)
        MOE_TRY_GOTO(st, load_file(plan, x, &list, dir, f), done);
    st = check_memory(plan, x, &list, m, dir, n_files);
done:
    moe_weight_list_free(&list);
    json_decref(m);
    return st;
}

/* ---- newest first ---- */

typedef MoeStatus (*TryFn)(void *ctx, const char *dir);

/* Offers each checkpoint, newest first, until one is taken. A damaged or unreadable one is warned
 * about and passed over; any other error ends the search. */
static MoeStatus first_intact(const char *run_dir, TryFn take, void *ctx, char **out_dir,
                              int64_t *out_step) {
    MoeCheckpointRef *refs;
    size_t n, i;
    *out_dir = NULL;
    MOE_TRY(moe_checkpoint_list(run_dir, &refs, &n));
    MoeStatus st = NULL;
    for (i = 0; i < n; i++) {
        st = take(ctx, refs[i].path);
        if (!st || (moe_status_code(st) != MOE_E_CORRUPT && moe_status_code(st) != MOE_E_IO))
            break;
        moe_warn("CHECKPOINT DAMAGED: %s%s", moe_status_message(st),
                 i + 1 < n ? "; falling back to an older one" : "");
        moe_status_free(st);
        st = NULL;
    }
    if (!st && i < n) {
        *out_dir = strdup(refs[i].path);
        *out_step = refs[i].step;
    } else if (!st && n) {
        st = moe_error(MOE_E_CORRUPT,
                       "%s: none of its %zu checkpoints is intact (see the warnings above); start "
                       "anew with another --out",
                       run_dir, n);
    }
    moe_checkpoint_list_free(refs, n);
    return st;
}

static MoeStatus take_verified(void *ctx, const char *dir) {
    (void)ctx;
    return moe_checkpoint_verify(dir, NULL);
}

MoeStatus moe_checkpoint_find(const char *run_dir, char **out_dir, int64_t *out_step) {
    return first_intact(run_dir, take_verified, NULL, out_dir, out_step);
}

typedef struct {
    const MoePlan *plan;
    MoeExec *x;
    bool with_optimizer;
    MoeTrainState *state;
} Load;

static MoeStatus take_loaded(void *ctx, const char *dir) {
    Load *l = ctx;
    return moe_checkpoint_load(l->plan, l->x, dir, l->with_optimizer, l->state);
}

MoeStatus moe_checkpoint_load_newest(const MoePlan *plan, MoeExec *x, const char *run_dir,
                                     bool with_optimizer, MoeTrainState *state, bool *out_found) {
    Load l = {plan, x, with_optimizer, state};
    char *dir;
    int64_t step;
    *out_found = false;
    MOE_TRY(first_intact(run_dir, take_loaded, &l, &dir, &step));
    *out_found = dir != NULL;
    free(dir);
    return NULL;
}
