/* See blocks.h. */
#include "formats/blocks.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/assert.h"

void moe_block_hashes_free(MoeBlockHashes *h) {
    free(h->hashes);
    *h = (MoeBlockHashes){0};
}

int64_t moe_block_count(int64_t bytes, int64_t block_bytes) {
    return bytes / block_bytes + (bytes % block_bytes != 0);
}

/* ---- writing ---- */

struct MoeBlockHasher {
    MoeBlockHashes done;
    size_t cap;
    int64_t filled; /* bytes of the block in work */
    XXH3_state_t *state;
};

MoeStatus moe_block_hasher_create(int64_t block_bytes, MoeBlockHasher **out) {
    MoeBlockHasher *h = calloc(1, sizeof *h);
    XXH3_state_t *state = XXH3_createState();
    if (!h || !state) {
        free(h);
        XXH3_freeState(state);
        return moe_error(MOE_E_NOMEM, "no memory to hash a file");
    }
    h->done.block_bytes = block_bytes;
    h->state = state;
    XXH3_64bits_reset(state);
    *out = h;
    return NULL;
}

/* Room for one more. */
static MoeStatus grow(MoeBlockHasher *h) {
    if (h->done.n < h->cap)
        return NULL;
    size_t cap = h->cap ? 2 * h->cap : 16;
    uint64_t *more = realloc(h->done.hashes, cap * sizeof *more);
    if (!more)
        return moe_error(MOE_E_NOMEM, "no memory for the hashes of %zu blocks", cap);
    h->done.hashes = more;
    h->cap = cap;
    return NULL;
}

MoeStatus moe_block_hasher_add(MoeBlockHasher *h, const void *data, size_t n) {
    const char *p = data;
    while (n) {
        MOE_TRY(grow(h)); /* also for the block that stays open: its end cannot fail */
        size_t room = (size_t)(h->done.block_bytes - h->filled), k = n < room ? n : room;
        XXH3_64bits_update(h->state, p, k);
        h->filled += (int64_t)k;
        p += k;
        n -= k;
        if (h->filled == h->done.block_bytes) {
            h->done.hashes[h->done.n++] = XXH3_64bits_digest(h->state);
            XXH3_64bits_reset(h->state);
            h->filled = 0;
        }
    }
    return NULL;
}

void moe_block_hasher_end(MoeBlockHasher *h, MoeBlockHashes *out) {
    if (!h)
        return;
    if (h->filled)
        h->done.hashes[h->done.n++] = XXH3_64bits_digest(h->state);
    if (out)
        *out = h->done;
    else
        free(h->done.hashes);
    XXH3_freeState(h->state);
    free(h);
}

/* ---- reading ---- */

struct MoeBlockFile {
    int fd;
    char *path;
    int64_t bytes;
    const MoeBlockHashes *hashes; /* NULL: unproved */
    char *block;                  /* [block_bytes] */
    int64_t held;                 /* which block that is; -1 none */
};

MoeStatus moe_block_open(const char *path, int64_t bytes, const MoeBlockHashes *hashes,
                         MoeBlockFile **out) {
    MoeBlockFile *f = calloc(1, sizeof *f);
    char *copy = strdup(path);
    struct stat info;
    MoeStatus st = NULL;
    if (!f || !copy) {
        free(f);
        free(copy);
        return moe_error(MOE_E_NOMEM, "no memory to open %s", path);
    }
    *f = (MoeBlockFile){.path = copy, .hashes = hashes, .held = -1};
    do
        f->fd = open(path, O_RDONLY | O_CLOEXEC);
    while (f->fd < 0 && errno == EINTR);
    if (f->fd < 0 || fstat(f->fd, &info))
        st = moe_error_errno("cannot open %s", path);
    else if (!S_ISREG(info.st_mode))
        st = moe_error(MOE_E_INPUT, "%s is not a regular file", path);
    else if (hashes && (info.st_size != bytes ||
                        moe_block_count(bytes, hashes->block_bytes) != (int64_t)hashes->n))
        st = moe_error(MOE_E_CORRUPT, "%s: %lld bytes, recorded %lld in %zu blocks", path,
                       (long long)info.st_size, (long long)bytes, hashes->n);
    else if (hashes && !(f->block = malloc((size_t)hashes->block_bytes)))
        st = moe_error(MOE_E_NOMEM, "no memory to read %s", path);
    if (st) {
        moe_block_close(f);
        return st;
    }
    f->bytes = info.st_size;
    *out = f;
    return NULL;
}

void moe_block_close(MoeBlockFile *f) {
    if (!f)
        return;
    if (f->fd >= 0)
        close(f->fd);
    free(f->block);
    free(f->path);
    free(f);
}

const char *moe_block_path(const MoeBlockFile *f) {
    return f->path;
}

int64_t moe_block_file_bytes(const MoeBlockFile *f) {
    return f->bytes;
}

static MoeStatus read_at(const MoeBlockFile *f, int64_t at, int64_t n, char *out) {
    while (n > 0) {
        ssize_t got = pread(f->fd, out, n < (1 << 30) ? (size_t)n : (size_t)1 << 30, (off_t)at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return moe_error_errno("cannot read %s at byte %lld", f->path, (long long)at);
        if (got == 0)
            return moe_error(MOE_E_CORRUPT, "%s ends at byte %lld, before its time", f->path,
                             (long long)at);
        at += got;
        out += got;
        n -= got;
    }
    return NULL;
}

MoeStatus moe_block_check(MoeBlockFile *f, int64_t i) {
    MOE_ASSERT(f->hashes && i >= 0 && i < (int64_t)f->hashes->n, "%s: block %lld", f->path,
               (long long)i);
    int64_t first = i * f->hashes->block_bytes, n = f->bytes - first;
    n = n < f->hashes->block_bytes ? n : f->hashes->block_bytes;
    f->held = -1;
    MOE_TRY(read_at(f, first, n, f->block));
    uint64_t hash = XXH3_64bits(f->block, (size_t)n);
    if (hash != f->hashes->hashes[i])
        return moe_error(MOE_E_CORRUPT,
                         "%s: bytes %lld to %lld: XXH3 %016llx, recorded %016llx: the content is "
                         "damaged",
                         f->path, (long long)first, (long long)(first + n),
                         (unsigned long long)hash, (unsigned long long)f->hashes->hashes[i]);
    f->held = i;
    return NULL;
}

MoeStatus moe_block_read(MoeBlockFile *f, int64_t at, int64_t n, void *out) {
    char *to = out;
    if (at < 0 || n < 0 || at > f->bytes || n > f->bytes - at)
        return moe_error(MOE_E_CORRUPT, "%s has %lld bytes, %lld are needed from byte %lld on",
                         f->path, (long long)f->bytes, (long long)n, (long long)at);
    if (!f->hashes)
        return read_at(f, at, n, to);
    while (n > 0) {
        int64_t size = f->hashes->block_bytes, i = at / size, in = at % size, k = size - in;
        if (i != f->held)
            MOE_TRY(moe_block_check(f, i));
        k = k < n ? k : n;
        memcpy(to, f->block + in, (size_t)k);
        at += k;
        to += k;
        n -= k;
    }
    return NULL;
}

MoeStatus moe_block_whole_hash(MoeBlockFile *f, char out[33]) {
    const int64_t step = 256 << 10;
    XXH3_state_t *state = XXH3_createState();
    char *chunk = malloc((size_t)step);
    MoeStatus st = state && chunk ? NULL : moe_error(MOE_E_NOMEM, "no memory to read %s", f->path);
    if (!st)
        XXH3_128bits_reset(state);
    for (int64_t at = 0; at < f->bytes && !st; at += step) {
        int64_t n = f->bytes - at < step ? f->bytes - at : step;
        st = moe_block_read(f, at, n, chunk);
        if (!st)
            XXH3_128bits_update(state, chunk, (size_t)n);
    }
    if (!st) {
        XXH128_hash_t h = XXH3_128bits_digest(state);
        snprintf(out, 33, "%016llx%016llx", (unsigned long long)h.high64,
                 (unsigned long long)h.low64);
    }
    XXH3_freeState(state);
    free(chunk);
    return st;
}
