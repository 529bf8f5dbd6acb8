/* Paths and directories (declared in io.h). */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/io.h"

bool moe_path_exists(const char *path) {
    struct stat info;
    return stat(path, &info) == 0;
}

bool moe_path_is_dir(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

char *moe_path_join(const char *dir, const char *name) {
    size_t n = strlen(dir), m = strlen(name);
    bool slash = n > 0 && dir[n - 1] != '/';
    char *p = malloc(n + m + 2);
    MOE_ASSERT(p, "out of memory for a path");
    memcpy(p, dir, n);
    if (slash)
        p[n++] = '/';
    memcpy(p + n, name, m + 1);
    return p;
}

MoeStatus moe_dir_make(const char *path) {
    if (!*path)
        return moe_error(MOE_E_INPUT, "cannot create a directory with an empty name");
    char *p = strdup(path);
    MoeStatus st = NULL;
    if (!p)
        return moe_error(MOE_E_NOMEM, "out of memory creating %s", path);
    for (char *at = p; !st && at;) {
        at = strchr(at + 1, '/');
        if (at)
            *at = '\0';
        if (mkdir(p, 0777) != 0) {
            int err = errno;
            /* Also another process's mkdir, and EROFS or EACCES on a parent that is there already.
             */
            if (!moe_path_is_dir(p)) {
                errno = err == EEXIST ? ENOTDIR : err;
                st = moe_error_errno("cannot create the directory %s", p);
            }
        }
        if (at)
            *at = '/';
    }
    free(p);
    return st;
}

MoeStatus moe_dir_sync(const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return moe_error_errno("cannot open the directory %s", path);
    MoeStatus st = NULL;
    /* EINVAL, ENOTSUP: a file system that has no such operation for directories. */
    if (fsync(fd) != 0 && errno != EINVAL && errno != ENOTSUP)
        st = moe_error_errno("cannot sync the directory %s to disk", path);
    close(fd);
    return st;
}

static bool is_dots(const char *name) {
    return !strcmp(name, ".") || !strcmp(name, "..");
}

/* Removes what is in the open directory `fd` (taken). Symbolic links are removed, never followed.
 */
static MoeStatus remove_entries(int fd, const char *path) {
    DIR *d = fdopendir(fd);
    if (!d) {
        MoeStatus st = moe_error_errno("cannot read the directory %s", path);
        close(fd);
        return st;
    }
    MoeStatus st = NULL;
    while (!st) {
        errno = 0;
        struct dirent *e = readdir(d);
        if (!e) {
            if (errno)
                st = moe_error_errno("cannot read the directory %s", path);
            break;
        }
        if (is_dots(e->d_name))
            continue;
        char *sub = moe_path_join(path, e->d_name);
        struct stat info;
        int sub_fd = -1;
        bool is_dir =
            fstatat(fd, e->d_name, &info, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(info.st_mode);
        if (is_dir) {
            sub_fd = openat(fd, e->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            st = sub_fd < 0 ? moe_error_errno("cannot open the directory %s", sub)
                            : remove_entries(sub_fd, sub);
        }
        if (!st && unlinkat(fd, e->d_name, is_dir ? AT_REMOVEDIR : 0) != 0 && errno != ENOENT)
            st = moe_error_errno("cannot remove %s", sub);
        free(sub);
    }
    closedir(d);
    return st;
}

MoeStatus moe_dir_remove(const char *path) {
    size_t n = strlen(path);
    while (n > 0 && path[n - 1] == '/')
        n--;
    char *p = strndup(path, n); /* "a/" would follow a link */
    MOE_ASSERT(p, "out of memory for a path");
    const char *last = strrchr(p, '/') ? strrchr(p, '/') + 1 : p;
    MoeStatus st = NULL;
    if (!*last || is_dots(last)) {
        st = moe_error(MOE_E_INPUT, "refusing to remove the directory \"%s\"", path);
        goto done;
    }
    int fd = open(p, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) {
        if (errno != ENOENT)
            st = moe_error_errno("cannot remove the directory %s", p);
        goto done;
    }
    MOE_TRY_GOTO(st, remove_entries(fd, p), done);
    if (rmdir(p) != 0)
        st = moe_error_errno("cannot remove the directory %s", p);
done:
    free(p);
    return st;
}

static int compare_names(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

MoeStatus moe_dir_list(const char *path, char ***out_names, size_t *out_n) {
    DIR *d = opendir(path);
    if (!d)
        return moe_error_errno("cannot read the directory %s", path);
    char **names = NULL;
    size_t n = 0, cap = 0;
    MoeStatus st = NULL;
    for (;;) {
        errno = 0;
        struct dirent *e = readdir(d);
        if (!e)
            break;
        if (is_dots(e->d_name))
            continue;
        if (n == cap) {
            cap = cap ? cap * 2 : 32;
            char **more = realloc(names, cap * sizeof *names);
            MOE_ASSERT(more, "out of memory listing %s", path);
            names = more;
        }
        names[n] = strdup(e->d_name);
        MOE_ASSERT(names[n], "out of memory listing %s", path);
        n++;
    }
    if (errno)
        st = moe_error_errno("cannot read the directory %s", path);
    closedir(d);
    if (st) {
        moe_dir_list_free(names, n);
        return st;
    }
    if (n > 1)
        qsort(names, n, sizeof *names, compare_names);
    *out_names = names;
    *out_n = n;
    return NULL;
}

void moe_dir_list_free(char **names, size_t n) {
    for (size_t i = 0; i < n; i++)
        free(names[i]);
    free(names);
}
