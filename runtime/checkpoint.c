/* Writing checkpoints, listing and pruning them. The protocol is in checkpoint.h; only plain system
 * calls, so that faults can be injected at each of them. */
#include "runtime/checkpoint.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/io.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/str.h"
#include "runtime/checkpoint_internal.h"
#include "runtime/run_config.h"

static char *checkpoints_dir(const char *run_dir) {
    return moe_path_join(run_dir, "checkpoints");
}

/* "RUN/checkpoints/" + formatted name; malloc'd. */
static char *entry_path(const char *root, const char *fmt, ...) MOE_PRINTF(2, 3);
static char *entry_path(const char *root, const char *fmt, ...) {
    char name[128];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    return moe_path_join(root, name);
}

/* The N of "step-N"; false for any other name. */
static bool parse_step(const char *name, int64_t *out) {
    if (strncmp(name, "step-", 5) || name[5] < '0' || name[5] > '9')
        return false;
    return moe_parse_i64(name + 5, out);
}

/* ---- writing ---- */

/* Every tensor written, once, with the hash of what memory holds. */
static void append_census(json_t *census, const MoeCheckpointTensors *t, int file) {
    for (size_t i = 0; i < t->n; i++) {
        char hash[33];
        int64_t n = moe_checkpoint_elements(&t->items[i]);
        moe_hash_hex(t->items[i].data, (size_t)n * sizeof(float), hash);
        json_array_append_new(census,
                              json_pack("{s:s, s:i, s:I, s:s}", "name", t->items[i].name, "file",
                                        file, "elements", (json_int_t)n, "xxh3", hash));
    }
}

static MoeStatus write_text(const char *path, const MoeStr *text) {
    MoeFileOut *f = NULL;
    uint64_t bytes;
    char hash[33];
    MOE_TRY(moe_out_create(path, &f));
    MoeStatus st = moe_out_write(f, moe_str_c(text), text->len);
    if (st) {
        moe_out_abandon(f);
        return st;
    }
    return moe_out_finish(f, &bytes, hash);
}

/* All files of the checkpoint into `dir`, which exists and is empty. */
static MoeStatus write_files(const MoePlan *plan, MoeExec *x, const MoeTrainState *state,
                             const char *dir) {
    static const char *const metadata[] = {"format", "pt"};
    json_t *files = json_array(), *census = json_array();
    json_t *manifest = json_pack("{s:i, s:s, s:I, s:o, s:o, s:o, s:o}", "format_version",
                                 MOE_CHECKPOINT_FORMAT, "kind", "moec checkpoint", "step",
                                 (json_int_t)state->step, "state", moe_manifest_state(state),
                                 "plan", moe_plan_facts(plan), "files", files, "census", census);
    MoeWeightList list = {0};
    MoeStr text = {0};
    char *path = NULL;
    MoeStatus st =
        manifest ? NULL : moe_error(MOE_E_NOMEM, "no memory for the checkpoint's manifest");
    if (st)
        return st;
    MOE_TRY_GOTO(st, moe_weight_list(plan, &list), done);
    for (int f = 0; f < MOE_CHECKPOINT_FILES; f++) {
        MoeCheckpointTensors t;
        uint64_t bytes = 0;
        char hash[33];
        moe_checkpoint_tensors(plan, x, &list, f, &t);
        append_census(census, &t, f);
        free(path);
        path = moe_path_join(dir, moe_checkpoint_files[f]);
        MOE_TRY_GOTO(st, moe_st_write(path, t.items, t.n, metadata, 1, NULL, NULL, &bytes, hash),
                     done);
        json_array_append_new(files, json_pack("{s:s, s:I, s:s}", "name", moe_checkpoint_files[f],
                                               "bytes", (json_int_t)bytes, "xxh3", hash));
    }
    free(path);
    path = moe_path_join(dir, "manifest.json");
    moe_manifest_seal(manifest, &text);
    MOE_TRY_GOTO(st, write_text(path, &text), done);
    st = moe_dir_sync(dir);
done:
    moe_str_free(&text);
    moe_weight_list_free(&list);
    json_decref(manifest);
    free(path);
    return st;
}

static MoeStatus rename_dir(const char *from, const char *to) {
    if (rename(from, to))
        return moe_error_errno("cannot rename %s to %s", from, to);
    return NULL;
}

MoeStatus moe_checkpoint_save(const MoePlan *plan, MoeExec *x, const char *run_dir,
                              const MoeTrainState *state) {
    char *root = checkpoints_dir(run_dir);
    char *final = entry_path(root, "step-%lld", (long long)state->step);
    char *tmp = entry_path(root, "step-%lld.tmp-%ld", (long long)state->step, (long)getpid());
    char *old = entry_path(root, ".trash-step-%lld-%ld", (long long)state->step, (long)getpid());
    MoeStatus st = NULL;
    bool made = false, moved = false;
    MOE_TRY_GOTO(st, moe_dir_make(root), done);
    MOE_TRY_GOTO(st, moe_dir_remove(tmp), done);
    MOE_TRY_GOTO(st, moe_dir_make(tmp), done);
    made = true;
    MOE_TRY_GOTO(st, write_files(plan, x, state, tmp), done);
    if (moe_path_exists(final)) { /* the same step saved before: out of the way first, gone once the
                                     new one stands */
        MOE_TRY_GOTO(st, moe_dir_remove(old), done);
        MOE_TRY_GOTO(st, rename_dir(final, old), done);
        moved = true;
    }
    MOE_TRY_GOTO(st, rename_dir(tmp, final), done);
    made = false;
    MOE_TRY_GOTO(st, moe_dir_sync(root), done);
    st = moe_checkpoint_verify(final, NULL);
    if (st) /* no bad checkpoint under a good name */
        made = !rename(final, tmp);
    else if (moved)
        moe_status_free(moe_dir_remove(old));
done:
    if (st && moved && !moe_path_exists(final))
        moe_status_free(rename_dir(old, final));
    if (made)
        moe_status_free(moe_dir_remove(tmp));
    st = moe_status_prefix(st, "checkpoint of step %lld", (long long)state->step);
    free(root);
    free(final);
    free(tmp);
    free(old);
    return st;
}

/* ---- the directory of checkpoints ---- */

static int newest_first(const void *a, const void *b) {
    int64_t x = ((const MoeCheckpointRef *)a)->step, y = ((const MoeCheckpointRef *)b)->step;
    return x < y ? 1 : x > y ? -1 : 0;
}

MoeStatus moe_checkpoint_list(const char *run_dir, MoeCheckpointRef **out, size_t *out_n) {
    char *root = checkpoints_dir(run_dir), **names = NULL;
    size_t n = 0, found = 0;
    MoeCheckpointRef *refs = NULL;
    MoeStatus st = NULL;
    *out = NULL;
    *out_n = 0;
    if (moe_path_is_dir(root))
        MOE_TRY_GOTO(st, moe_dir_list(root, &names, &n), done);
    refs = calloc(n + 1, sizeof *refs);
    if (!refs) {
        st = moe_error(MOE_E_NOMEM, "no memory to list %s", root);
        goto done;
    }
    for (size_t i = 0; i < n; i++) {
        int64_t step;
        if (!parse_step(names[i], &step))
            continue;
        refs[found].path = moe_path_join(root, names[i]);
        refs[found++].step = step;
    }
    qsort(refs, found, sizeof *refs, newest_first);
    *out = refs;
    *out_n = found;
done:
    moe_dir_list_free(names, n);
    free(root);
    return st;
}

void moe_checkpoint_list_free(MoeCheckpointRef *refs, size_t n) {
    for (size_t i = 0; i < n; i++)
        free(refs[i].path);
    free(refs);
}

MoeStatus moe_checkpoint_prune(const char *run_dir, int keep) {
    MoeCheckpointRef *refs;
    size_t n;
    MOE_TRY(moe_checkpoint_list(run_dir, &refs, &n));
    char *root = checkpoints_dir(run_dir);
    MoeStatus st = NULL;
    for (size_t i = (size_t)(keep < 1 ? 1 : keep); i < n && !st; i++) {
        /* Renamed first: a kill in the middle of the removal leaves no half checkpoint under a good
         * name. */
        char *trash =
            entry_path(root, ".trash-step-%lld-%ld", (long long)refs[i].step, (long)getpid());
        st = moe_dir_remove(trash);
        if (!st)
            st = rename_dir(refs[i].path, trash);
        if (!st)
            st = moe_dir_remove(trash);
        free(trash);
    }
    moe_checkpoint_list_free(refs, n);
    free(root);
    return moe_status_prefix(st, "removing old checkpoints");
}

void moe_checkpoint_clean(const char *run_dir) {
    char *root = checkpoints_dir(run_dir), **names = NULL;
    size_t n = 0;
    if (moe_path_is_dir(root))
        moe_status_free(moe_dir_list(root, &names, &n));
    for (size_t i = 0; i < n; i++) {
        bool tmp = !strncmp(names[i], "step-", 5) && strstr(names[i], ".tmp-");
        if (!tmp && strncmp(names[i], ".trash-", 7))
            continue;
        char *path = moe_path_join(root, names[i]);
        moe_status_free(moe_dir_remove(path)); /* tried again by the next start */
        free(path);
    }
    moe_dir_list_free(names, n);
    free(root);
}

MoeStatus moe_checkpoint_set_newer_aside(const char *run_dir, int64_t step) {
    MoeCheckpointRef *refs;
    size_t n;
    MOE_TRY(moe_checkpoint_list(run_dir, &refs, &n));
    char *root = checkpoints_dir(run_dir);
    MoeStatus st = NULL;
    for (size_t i = 0; i < n && refs[i].step > step && !st; i++) {
        char *aside =
            entry_path(root, "aside-step-%lld-%ld", (long long)refs[i].step, (long)getpid());
        st = rename_dir(refs[i].path, aside);
        if (!st)
            moe_warn("%s is put aside as %s: training goes on from step %lld", refs[i].path, aside,
                     (long long)step);
        free(aside);
    }
    moe_checkpoint_list_free(refs, n);
    free(root);
    return st;
}
