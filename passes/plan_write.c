/* Writes plan directories. In: a module that all passes have run over. Out: NAME.plan/ (docs/PLAN.md).
 *
 * Nothing that existed is lost: the files are written and synced in DIR.tmp-PID, which then changes places with DIR in one
 * step (or through DIR.old-PID where the file system cannot). Only a plan is ever replaced: a directory with plan.json
 * and nothing but a plan's files. */
#include "passes/plan_write.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/assert.h"
#include "base/io.h"
#include "base/json.h"
#include "ir/text.h"
#include "passes/plan_json.h"

static const char *const plan_files[] = {"plan.json",     "kernels.o",     "kernels.ll",
                                         "model.moe",     "step.moe",      "kernels.cu",
                                         "kernels.cubin", "placement.json"};

MoeStatus moe_plan_build(MoePassContext *cx, const MoePlanInfo *info, char **out_json,
                         void **out_object, size_t *out_object_bytes, char **out_kernel_text) {
    char *text = NULL, hash[33];
    void *object = NULL;
    size_t n = 0;
    json_t *json = NULL;
    *out_json = *out_kernel_text = NULL;
    *out_object = NULL;
    MOE_TRY(cx->target->finish(cx->target, info->want_text, &object, &n, &text));
    moe_hash_hex(object, n, hash);
    MoeStatus st = moe_plan_json(cx, info, hash, &json);
    if (st) {
        free(object);
        free(text);
        return st;
    }
    MoeStr s = {0};
    moe_json_dump(json, &s);
    json_decref(json);
    *out_json = strdup(moe_str_c(&s));
    moe_str_free(&s);
    *out_object = object;
    *out_object_bytes = n;
    *out_kernel_text = text;
    if (!*out_json) {
        free(object);
        free(text);
        *out_object = NULL;
        *out_kernel_text = NULL;
        return moe_error(MOE_E_NOMEM, "no memory for plan.json");
    }
    return NULL;
}

static MoeStatus write_file(const char *dir, const char *name, const void *data, size_t n) {
    char *path = moe_path_join(dir, name);
    MoeFileOut *f = NULL;
    MoeStatus st = moe_out_create(path, &f);
    free(path);
    if (st)
        return st;
    st = moe_out_write(f, data, n);
    if (st) {
        moe_out_abandon(f);
        return st;
    }
    return moe_out_finish(f, NULL, NULL);
}

static bool is_plan_file(const char *name) {
    for (size_t i = 0; i < sizeof plan_files / sizeof *plan_files; i++)
        if (strcmp(name, plan_files[i]) == 0)
            return true;
    return false;
}

/* An existing `dir` must be a plan. */
static MoeStatus check_replaceable(const char *dir, bool *out_exists) {
    struct stat info;
    *out_exists = false;
    if (lstat(dir, &info)) {
        if (errno == ENOENT)
            return NULL;
        return moe_error_errno("%s", dir);
    }
    *out_exists = true;
    if (!S_ISDIR(info.st_mode))
        return moe_error(MOE_E_INPUT,
                         "%s exists and is not a directory; choose another name for the plan", dir);
    char **names;
    size_t n;
    MOE_TRY(moe_dir_list(dir, &names, &n));
    bool has_plan = false;
    const char *foreign = NULL;
    for (size_t i = 0; i < n; i++) {
        has_plan |= strcmp(names[i], "plan.json") == 0;
        if (!is_plan_file(names[i]) && !foreign)
            foreign = names[i];
    }
    MoeStatus st = NULL;
    if (!has_plan)
        st = moe_error(
            MOE_E_INPUT,
            "%s exists and is not a plan (no plan.json); it is left as it is: choose another "
            "name, or remove it",
            dir);
    else if (foreign)
        st = moe_error(
            MOE_E_INPUT,
            "%s holds \"%s\", which is not part of a plan; it is left as it is: move that file "
            "away, or choose another name",
            dir, foreign);
    moe_dir_list_free(names, n);
    return st;
}

static MoeStatus sync_parent(const char *dir) {
    char *parent = strdup(dir), *slash = strrchr(parent, '/');
    if (slash == parent)
        slash[1] = 0;
    else if (slash)
        *slash = 0;
    MoeStatus st = moe_dir_sync(slash ? parent : ".");
    free(parent);
    return st;
}

/* tmp becomes dir; what dir was is removed. */
static MoeStatus put_in_place(const char *tmp, const char *dir, bool exists) {
    if (!exists) {
        if (rename(tmp, dir))
            return moe_error_errno("cannot rename %s to %s", tmp, dir);
        return sync_parent(dir);
    }
    if (renameat2(AT_FDCWD, tmp, AT_FDCWD, dir, RENAME_EXCHANGE) == 0) {
        MOE_TRY(sync_parent(dir));
        return moe_dir_remove(tmp);
    }
    MoeStr old = {0};
    moe_str_printf(&old, "%s.old-%ld", dir, (long)getpid());
    MoeStatus st = NULL;
    if (rename(dir, moe_str_c(&old))) {
        st = moe_error_errno("cannot rename %s to %s", dir, moe_str_c(&old));
    } else if (rename(tmp, dir)) {
        st = moe_error_errno("cannot rename %s to %s", tmp, dir);
        if (rename(moe_str_c(&old), dir))
            st = moe_status_prefix(st, "the former plan is now %s", moe_str_c(&old));
    } else {
        st = sync_parent(dir);
        if (!st)
            st = moe_dir_remove(moe_str_c(&old));
    }
    moe_str_free(&old);
    return st;
}

static MoeStatus write_all(MoePassContext *cx, const MoePlanInfo *info, const char *tmp) {
    char *json = NULL, *text = NULL;
    void *object = NULL;
    size_t n = 0;
    MoeStr step = {0};
    MOE_TRY(moe_plan_build(cx, info, &json, &object, &n, &text));
    MoeStatus st = write_file(tmp, "plan.json", json, strlen(json));
    if (!st)
        st = write_file(tmp, cx->target->object_file, object, n);
    if (!st && text)
        st = write_file(tmp, cx->target->text_file, text, strlen(text));
    if (!st && info->logical_text)
        st = write_file(tmp, "model.moe", info->logical_text, strlen(info->logical_text));
    json_t *maps = st ? NULL : moe_plan_json_maps(cx);
    if (maps) {
        MoeStr s = {0};
        moe_json_dump(maps, &s);
        st = write_file(tmp, "placement.json", moe_str_c(&s), s.len);
        moe_str_free(&s);
        json_decref(maps);
    }
    if (!st) {
        moe_print(cx->module, &step);
        st = write_file(tmp, "step.moe", moe_str_c(&step), step.len);
    }
    if (!st)
        st = moe_dir_sync(tmp);
    moe_str_free(&step);
    free(json);
    free(text);
    free(object);
    return st;
}

MoeStatus moe_plan_write(MoePassContext *cx, const MoePlanInfo *info, const char *dir) {
    char *path = strdup(dir);
    for (size_t n = strlen(path); n > 1 && path[n - 1] == '/'; n--)
        path[n - 1] = 0;
    MoeStr tmp = {0};
    bool exists = false;
    MoeStatus st =
        *path ? check_replaceable(path, &exists) : moe_error(MOE_E_MISUSE, "the plan needs a name");
    if (st)
        goto done;
    moe_str_printf(&tmp, "%s.tmp-%ld", path, (long)getpid());
    MOE_TRY_GOTO(st, moe_dir_remove(moe_str_c(&tmp)), done);
    MOE_TRY_GOTO(st, moe_dir_make(moe_str_c(&tmp)), done);
    st = write_all(cx, info, moe_str_c(&tmp));
    if (!st)
        st = put_in_place(moe_str_c(&tmp), path, exists);
    if (st)
        moe_status_free(moe_dir_remove(moe_str_c(&tmp))); /* the first error is the one to tell */
done:
    moe_str_free(&tmp);
    free(path);
    return st ? moe_status_prefix(st, "writing the plan") : NULL;
}
