/* The directory of checkpoints: listing, pruning, cleaning up. Called by one rank. */
#include "runtime/checkpoint.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/io.h"
#include "base/log.h"
#include "base/str.h"

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
    if (strncmp(name, "step-", 5) || name[5] < '0' || name[5] > '9' || (name[5] == '0' && name[6]))
        return false;
    return moe_parse_i64(name + 5, out);
}

static MoeStatus rename_dir(const char *from, const char *to) {
    if (rename(from, to))
        return moe_error_errno("cannot rename %s to %s", from, to);
    return NULL;
}

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
