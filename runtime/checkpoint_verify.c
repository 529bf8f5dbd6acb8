/* Proving a checkpoint: its files are what was written, and they hold every tensor exactly once. */
#include <stdlib.h>
#include <string.h>

#include "runtime/checkpoint_internal.h"

/* ---- hashes ---- */

static MoeStatus check_whole(const MoeStored *s, size_t i) {
    const MoeStoredFile *file = &s->files[i];
    MoeBlockFile *f;
    char hash[33] = "";
    MOE_TRY(moe_stored_file(s, i, &f));
    MoeStatus st = NULL;
    if (moe_block_file_bytes(f) != file->bytes)
        st = moe_error(MOE_E_CORRUPT, "%s: %lld bytes, recorded %lld", file->path,
                       (long long)moe_block_file_bytes(f), (long long)file->bytes);
    else
        st = moe_block_whole_hash(f, hash);
    if (!st && strcmp(hash, file->xxh3))
        st = moe_error(MOE_E_CORRUPT, "%s: XXH3 %s, recorded %s: its content is damaged",
                       file->path, hash, file->xxh3);
    moe_block_close(f);
    return st;
}

/* Of the file's blocks those that are `share` modulo `shares`, counted from `first`. */
static MoeStatus check_blocks(const MoeStored *s, size_t i, int64_t first, int share, int shares) {
    int64_t n = (int64_t)s->files[i].hashes.n,
            at = (share - first % shares + shares) % shares; /* its first one of the share */
    MoeBlockFile *f;
    if (at >= n && share != 0)
        return NULL;
    MOE_TRY(moe_stored_file(s, i, &f)); /* share 0: the length of each file, also of empty ones */
    MoeStatus st = NULL;
    for (; at < n && !st; at += shares)
        st = moe_block_check(f, at);
    moe_block_close(f);
    return st;
}

MoeStatus moe_stored_check(const MoeStored *s, int share, int shares) {
    int64_t first = 0;
    for (size_t i = 0; i < s->n_files; i++) {
        if (s->version > 1)
            MOE_TRY(check_blocks(s, i, first, share, shares));
        else if ((int)(i % (size_t)shares) == share)
            MOE_TRY(check_whole(s, i));
        first += (int64_t)s->files[i].hashes.n;
    }
    return NULL;
}

/* ---- census ---- */

void moe_stored_cover(const MoeStoredPiece *pieces, size_t n, uint64_t *cover) {
    for (size_t i = 0; i < n; i++)
        cover[pieces[i].tensor] += moe_piece_cover(&pieces[i].piece);
}

MoeStatus moe_stored_census(const MoeStored *s, const uint64_t *cover, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (cover[i] != moe_whole_cover(s->tensors.items[i].elements))
            return moe_error(MOE_E_CORRUPT,
                             "%s: the pieces of %s in its files do not make up the tensor: some of "
                             "its elements are missing or there twice",
                             s->dir, s->tensors.items[i].name);
    return NULL;
}

static MoeStatus check_census(const MoeStored *s) {
    uint64_t *cover = calloc(s->tensors.n + 1, sizeof *cover);
    MoeStatus st = cover ? NULL : moe_error(MOE_E_NOMEM, "no memory to verify %s", s->dir);
    for (size_t i = 0; i < s->n_files && !st; i++) {
        MoeBlockFile *f = NULL;
        MoeStoredPiece *pieces = NULL;
        size_t n = 0;
        st = moe_stored_file(s, i, &f);
        if (!st)
            st = moe_stored_pieces(s, i, f, &pieces, &n);
        if (!st)
            moe_stored_cover(pieces, n, cover);
        free(pieces);
        moe_block_close(f);
    }
    if (!st)
        st = moe_stored_census(s, cover, s->tensors.n);
    free(cover);
    return st;
}

MoeStatus moe_checkpoint_verify(const char *dir, json_t **out_manifest) {
    MoeStored s;
    if (out_manifest)
        *out_manifest = NULL;
    MoeStatus st = moe_stored_open(dir, &s);
    if (!st)
        st = moe_stored_check(&s, 0, 1);
    if (!st)
        st = check_census(&s);
    if (!st && out_manifest)
        *out_manifest = json_incref(s.manifest);
    moe_stored_close(&s);
    return st;
}
