/* Opening libraries by name. In: a MoeDynLib. Out: its table of functions. */
#include "base/dynlib.h"

#include <dlfcn.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/assert.h"
#include "base/str.h"

/* The pattern with the variable at its start filled in; false: it is not set. */
static bool expand(const char *pattern, MoeStr *out) {
    moe_str_clear(out);
    if (*pattern == '$') {
        size_t n = strcspn(pattern, "/");
        char name[64];
        MOE_ASSERT(n < sizeof name, "dynlib: the variable of %s is too long", pattern);
        snprintf(name, sizeof name, "%.*s", (int)(n - 1), pattern + 1);
        const char *value = getenv(name);
        if (!value || !*value)
            return false;
        moe_str_append(out, value);
        pattern += n;
    }
    moe_str_append(out, pattern);
    return true;
}

static void open_companions(const char *dir, const char *pattern) {
    MoeStr s = {0};
    glob_t found;
    moe_str_printf(&s, "%s/%s", dir, pattern);
    if (glob(moe_str_c(&s), 0, NULL, &found) == 0) {
        for (size_t i = 0; i < found.gl_pathc; i++)
            (void)dlopen(found.gl_pathv[i],
                         RTLD_NOW | RTLD_LOCAL); /* one that is missed is told by its user */
        globfree(&found);
    }
    moe_str_free(&s);
}

static void *open_in(const MoeDynLib *lib, const char *dir) {
    void *handle = NULL;
    MoeStr s = {0};
    for (size_t i = 0; lib->sonames[i] && !handle; i++) {
        moe_str_clear(&s);
        moe_str_printf(&s, "%s/%s", dir, lib->sonames[i]);
        handle = dlopen(moe_str_c(&s), RTLD_NOW | RTLD_LOCAL);
    }
    if (handle && lib->companions)
        open_companions(dir, lib->companions);
    moe_str_free(&s);
    return handle;
}

static void *open_in_dirs(const MoeDynLib *lib) {
    void *handle = NULL;
    MoeStr s = {0};
    for (size_t i = 0; lib->dirs && lib->dirs[i] && !handle; i++) {
        glob_t found;
        if (!expand(lib->dirs[i], &s) || glob(moe_str_c(&s), 0, NULL, &found))
            continue;
        for (size_t k = 0; k < found.gl_pathc && !handle; k++)
            handle = open_in(lib, found.gl_pathv[k]);
        globfree(&found);
    }
    moe_str_free(&s);
    return handle;
}

/* A file that is there but cannot be loaded says why; of those that are not there, one word is enough. */
static MoeStatus not_found(const MoeDynLib *lib, const char *reason) {
    MoeStr names = {0};
    for (size_t i = 0; lib->sonames[i]; i++)
        moe_str_printf(&names, "%s%s", i ? ", " : "", lib->sonames[i]);
    bool absent = !*reason || strstr(reason, "No such file");
    MoeStatus st = moe_error(MOE_E_IO, "%s is not on this machine (looked for %s)%s%s%s; %s",
                             lib->what, moe_str_c(&names), absent ? "" : " or cannot be loaded (",
                             absent ? "" : reason, absent ? "" : ")", lib->install);
    moe_str_free(&names);
    return st;
}

static MoeStatus fill(MoeDynLib *lib, void *handle) {
    size_t bytes = 0;
    for (size_t i = 0; i < lib->n_symbols; i++)
        if (lib->symbols[i].at + sizeof(void *) > bytes)
            bytes = lib->symbols[i].at + sizeof(void *);
    char *filled = calloc(1, bytes ? bytes : 1);
    if (!filled)
        return moe_error(MOE_E_NOMEM, "no memory for the functions of %s", lib->what);
    for (size_t i = 0; i < lib->n_symbols; i++) {
        void *p = dlsym(handle, lib->symbols[i].name);
        if (!p) {
            free(filled);
            return moe_error(MOE_E_IO, "%s (%s) has no function %s: it is too old for moec; %s",
                             lib->what, lib->path, lib->symbols[i].name, lib->install);
        }
        memcpy(filled + lib->symbols[i].at, &p, sizeof p);
    }
    memcpy(lib->table, filled, bytes);
    free(filled);
    return NULL;
}

static MoeStatus open_library(MoeDynLib *lib) {
    void *handle = NULL;
    char reason[256] = "";
    for (size_t i = 0; lib->sonames[i] && !handle; i++) {
        handle = dlopen(lib->sonames[i], RTLD_NOW | RTLD_LOCAL);
        const char *why = handle ? NULL : dlerror();
        if (why && (!*reason || strstr(reason, "No such file")))
            snprintf(reason, sizeof reason, "%s", why);
    }
    if (!handle)
        handle = open_in_dirs(lib);
    if (!handle)
        return not_found(lib, reason);
    Dl_info info;
    void *first = lib->n_symbols ? dlsym(handle, lib->symbols[0].name) : NULL;
    bool known = first && dladdr(first, &info) && info.dli_fname;
    snprintf(lib->path, sizeof lib->path, "%s", known ? info.dli_fname : lib->sonames[0]);
    MoeStatus st = fill(lib, handle);
    if (st)
        dlclose(handle);
    return st;
}

MoeStatus moe_dynlib_open(MoeDynLib *lib) {
    pthread_mutex_lock(&lib->lock);
    MoeStatus st = NULL;
    if (!lib->open) {
        st = open_library(lib);
        lib->open = !st;
    }
    pthread_mutex_unlock(&lib->lock);
    return st;
}
