/* Temporary files and error checks for tests. */
#include "tests/support/files.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/io.h"

static char dir[512];
static pid_t owner;

static void remove_dir(void) {
    if (getpid() == owner) /* forked tests inherit the handler, not the directory */
        moe_status_free(moe_dir_remove(dir));
}

const char *moe_test_dir(void) {
    if (owner == getpid() || (owner && moe_path_is_dir(dir)))
        return dir;
    const char *base = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%s/moec-test-XXXXXX", base && *base ? base : "/tmp");
    MOE_ASSERT(mkdtemp(dir), "cannot make %s", dir);
    owner = getpid();
    atexit(remove_dir);
    return dir;
}

const char *moe_test_path(const char *name) {
    static char paths[8][1024];
    static unsigned next;
    char *p = paths[next++ % 8];
    snprintf(p, sizeof paths[0], "%s/%s", moe_test_dir(), name);
    return p;
}

const char *moe_test_file(const char *name, const void *data, size_t n) {
    const char *path = moe_test_path(name);
    FILE *f = fopen(path, "wb");
    MOE_ASSERT(f, "cannot create %s", path);
    bool ok = n == 0 || fwrite(data, 1, n, f) == n;
    ok = fclose(f) == 0 && ok;
    MOE_ASSERT(ok, "cannot write %s", path);
    return path;
}

const char *moe_test_error(MoeStatus st, MoeCode code, ...) {
    static char wrong[2048];
    if (!st)
        return "succeeded, but an error was expected";
    const char *result = NULL, *message = moe_status_message(st);
    if (moe_status_code(st) != code) {
        snprintf(wrong, sizeof wrong, "code %d, expected %d: %s", moe_status_code(st), code,
                 message);
        result = wrong;
    }
    va_list words;
    va_start(words, code);
    for (const char *w; !result && (w = va_arg(words, const char *));)
        if (!strstr(message, w)) {
            snprintf(wrong, sizeof wrong, "message lacks \"%s\": %s", w, message);
            result = wrong;
        }
    va_end(words);
    moe_status_free(st);
    return result;
}
