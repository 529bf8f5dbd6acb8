/* Whole-file reads, mappings and durable writes. Directory operations are in dir.c.
 * An fsync that fails is never retried: the kernel may have dropped the dirty pages, and a second
 * fsync would then report success for data that is lost. */
#include "base/io.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/mem.h"
#include "base/str.h"

static int open_retry(const char *path, int flags, mode_t mode) {
    int fd;
    do
        fd = open(path, flags | O_CLOEXEC, mode);
    while (fd < 0 && errno == EINTR);
    return fd;
}

/* Opens for reading; directories are refused here because their read errors are obscure. */
static MoeStatus open_input(const char *path, int *out_fd, struct stat *out_stat) {
    int fd = open_retry(path, O_RDONLY, 0);
    if (fd < 0)
        return moe_error_errno("cannot open %s", path);
    if (fstat(fd, out_stat) != 0) {
        MoeStatus st = moe_error_errno("cannot read the size of %s", path);
        close(fd);
        return st;
    }
    if (S_ISDIR(out_stat->st_mode)) {
        close(fd);
        return moe_error(MOE_E_INPUT, "%s is a directory, expected a file", path);
    }
    *out_fd = fd;
    return NULL;
}

static MoeStatus too_big(const char *path, size_t max_bytes) {
    char cap[32];
    moe_format_bytes((double)max_bytes, cap);
    return moe_error(MOE_E_INPUT, "%s is larger than the %s that are accepted here", path, cap);
}

/* Reads to the end of the file, which may be a pipe or may grow meanwhile. */
static MoeStatus read_all(int fd, const char *path, size_t max_bytes, size_t hint, char **out_data,
                          size_t *out_n) {
    size_t cap = hint < max_bytes ? hint + 2 : max_bytes + 2,
           n = 0; /* one byte too many, and NUL */
    char *data = malloc(cap);
    if (!data)
        return moe_error(MOE_E_NOMEM, "out of memory reading %s (%zu bytes)", path, cap);
    for (;;) {
        ssize_t got = read(fd, data + n, cap - 1 - n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0) {
            MoeStatus st = moe_error_errno("cannot read %s", path);
            free(data);
            return st;
        }
        if (got == 0)
            break;
        n += (size_t)got;
        if (n > max_bytes) {
            free(data);
            return too_big(path, max_bytes);
        }
        if (n == cap - 1) {
            size_t bigger = cap > max_bytes / 2 ? max_bytes + 2 : cap * 2 + 64;
            char *p = realloc(data, bigger);
            if (!p) {
                free(data);
                return moe_error(MOE_E_NOMEM, "out of memory reading %s (%zu bytes)", path, bigger);
            }
            data = p;
            cap = bigger;
        }
    }
    data[n] = '\0';
    *out_data = data;
    *out_n = n;
    return NULL;
}

MoeStatus moe_file_read(const char *path, size_t max_bytes, char **out_data, size_t *out_n) {
    int fd;
    struct stat info;
    if (max_bytes > SIZE_MAX / 4)
        max_bytes = SIZE_MAX / 4;
    MOE_TRY(open_input(path, &fd, &info));
    size_t hint = S_ISREG(info.st_mode) && info.st_size > 0 ? (size_t)info.st_size : 4096;
    MoeStatus st = S_ISREG(info.st_mode) && (uintmax_t)info.st_size > max_bytes
                       ? too_big(path, max_bytes)
                       : read_all(fd, path, max_bytes, hint, out_data, out_n);
    close(fd);
    return st;
}

MoeStatus moe_map_open(const char *path, MoeMap *out) {
    static const unsigned char nothing[1];
    int fd;
    struct stat info;
    MOE_TRY(open_input(path, &fd, &info));
    if (!S_ISREG(info.st_mode)) {
        close(fd);
        return moe_error(MOE_E_INPUT, "%s is not a regular file", path);
    }
    *out = (MoeMap){nothing, 0};
    MoeStatus st = NULL;
    if (info.st_size > 0) {
        void *p = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED)
            st = moe_error_errno("cannot map %s", path);
        else
            *out = (MoeMap){p, (size_t)info.st_size};
    }
    close(fd);
    return st;
}

void moe_map_close(MoeMap *m) {
    if (m->n)
        munmap((void *)(uintptr_t)m->data, m->n);
    *m = (MoeMap){0};
}

struct MoeFileOut {
    int fd;
    char *path;
    uint64_t n;
    XXH3_state_t *hash;
};

static void hash_text(XXH128_hash_t h, char out[33]) {
    snprintf(out, 33, "%016llx%016llx", (unsigned long long)h.high64, (unsigned long long)h.low64);
}

void moe_hash_hex(const void *data, size_t n, char out[33]) {
    hash_text(XXH3_128bits(data, n), out);
}

uint64_t moe_hash_64(const void *data, size_t n) {
    return XXH3_64bits(data, n);
}

MoeStatus moe_out_create(const char *path, MoeFileOut **out) {
    MoeFileOut *f = calloc(1, sizeof *f);
    char *copy = strdup(path);
    XXH3_state_t *hash = XXH3_createState();
    if (!f || !copy || !hash) {
        free(f);
        free(copy);
        XXH3_freeState(hash);
        return moe_error(MOE_E_NOMEM, "out of memory creating %s", path);
    }
    *f = (MoeFileOut){open_retry(path, O_WRONLY | O_CREAT | O_TRUNC, 0666), copy, 0, hash};
    XXH3_128bits_reset(hash);
    if (f->fd < 0) {
        MoeStatus st = moe_error_errno("cannot create %s", path);
        moe_out_abandon(f);
        return st;
    }
    *out = f;
    return NULL;
}

MoeStatus moe_out_write(MoeFileOut *f, const void *data, size_t n) {
    const char *p = data;
    size_t left = n;
    while (left > 0) {
        ssize_t put = write(f->fd, p, left < ((size_t)1 << 30) ? left : (size_t)1 << 30);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0) {
            if (put == 0)
                errno = ENOSPC;
            return moe_error_errno("cannot write %s (after %llu bytes)", f->path,
                                   (unsigned long long)f->n);
        }
        XXH3_128bits_update(f->hash, p, (size_t)put);
        p += put;
        left -= (size_t)put;
        f->n += (uint64_t)put;
    }
    return NULL;
}

void moe_out_abandon(MoeFileOut *f) {
    if (!f)
        return;
    if (f->fd >= 0)
        close(f->fd);
    XXH3_freeState(f->hash);
    free(f->path);
    free(f);
}

MoeStatus moe_out_finish(MoeFileOut *f, uint64_t *out_bytes, char out_xxh3_hex[33]) {
    MoeStatus st = NULL;
    int rc;
    do
        rc = fsync(f->fd); /* EINTR: not a failure of the write-back, asking again is safe */
    while (rc != 0 && errno == EINTR);
    if (rc != 0)
        st = moe_error_errno("cannot sync %s to disk", f->path);
    int fd = f->fd;
    f->fd = -1;
    if (close(fd) != 0 && errno != EINTR && !st) /* EINTR: closed all the same on Linux */
        st = moe_error_errno("cannot close %s", f->path);
    if (!st && out_bytes)
        *out_bytes = f->n;
    if (!st && out_xxh3_hex)
        hash_text(XXH3_128bits_digest(f->hash), out_xxh3_hex);
    moe_out_abandon(f);
    return st;
}

/* fsync of the directory that holds `path`, so that the rename itself survives a crash. */
static MoeStatus sync_parent(const char *path) {
    const char *slash = strrchr(path, '/');
    if (!slash)
        return moe_dir_sync(".");
    if (slash == path)
        return moe_dir_sync("/");
    char *dir = strndup(path, (size_t)(slash - path));
    if (!dir)
        return moe_error(MOE_E_NOMEM, "out of memory syncing %s", path);
    MoeStatus st = moe_dir_sync(dir);
    free(dir);
    return st;
}

MoeStatus moe_file_write_atomic(const char *path, const void *data, size_t n) {
    MoeStr tmp = {0};
    MoeFileOut *f = NULL;
    bool created = false;
    MoeStatus st;
    moe_str_printf(&tmp, "%s.tmp-%ld", path, (long)getpid());
    MOE_TRY_GOTO(st, moe_out_create(tmp.data, &f), done);
    created = true;
    MOE_TRY_GOTO(st, moe_out_write(f, data, n), done);
    st = moe_out_finish(f, NULL, NULL);
    f = NULL;
    if (st)
        goto done;
    if (rename(tmp.data, path) != 0) {
        st = moe_error_errno("cannot rename %s to %s", tmp.data, path);
        goto done;
    }
    created = false;
    st = sync_parent(path);
done:
    moe_out_abandon(f);
    if (created)
        unlink(tmp.data);
    moe_str_free(&tmp);
    return st;
}
