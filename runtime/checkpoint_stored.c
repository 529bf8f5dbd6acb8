/* A checkpoint opened for reading: the tables of its manifest, and the pieces that its files hold. Nothing in either is
 * trusted: the seal and the hashes find accidents, the checks here also what was written wrongly. */
#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "base/mem.h"
#include "runtime/checkpoint_internal.h"

#define MAX_TENSORS ((size_t)64 << 20)
#define MAX_DIM     ((int64_t)1 << 40) /* and elements of a tensor */
#define MAX_BYTES   ((int64_t)1 << 50) /* of a file */

MoeStatus moe_as_damage(MoeStatus st) {
    if (!st || moe_status_code(st) != MOE_E_INPUT)
        return st;
    MoeStatus damaged = moe_error(MOE_E_CORRUPT, "%s", moe_status_message(st));
    moe_status_free(st);
    return damaged;
}

/* ---- the manifest's tables ---- */

static MoeStatus bad_entry(const MoeStored *s, const char *table, size_t i) {
    return moe_error(MOE_E_CORRUPT, "%s/manifest.json: entry %zu of its %s is damaged", s->dir, i,
                     table);
}

static bool good_file_name(const char *name) {
    size_t n = name ? strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789.-") : 0;
    return n > 0 && !name[n] && name[0] != '.';
}

static bool read_dims(const json_t *dims, MoeCheckpointTensor *t) {
    t->rank = (int)json_array_size(dims);
    t->elements = 1;
    if (!json_is_array(dims) || t->rank > MOE_ST_MAX_RANK)
        return false;
    for (int i = 0; i < t->rank; i++) {
        const json_t *d = json_array_get(dims, (size_t)i);
        t->dims[i] = json_integer_value(d);
        if (!json_is_integer(d) || t->dims[i] < 0 || t->dims[i] > MAX_DIM ||
            !moe_mul_i64(t->elements, t->dims[i], &t->elements))
            return false;
    }
    return t->elements <= MAX_DIM;
}

/* Version 1 has no dims: they come from the files' headers. */
static MoeStatus read_census(MoeStored *s) {
    const json_t *census = json_object_get(s->manifest, "census");
    size_t n = json_array_size(census);
    if (!json_is_array(census) || n > MAX_TENSORS)
        return moe_error(MOE_E_CORRUPT, "%s/manifest.json has no census", s->dir);
    s->tensors.items = MOE_NEW_N(s->arena, MoeCheckpointTensor, n);
    for (size_t i = 0; i < n; i++) {
        const json_t *e = json_array_get(census, i);
        const char *name = json_string_value(json_object_get(e, "name"));
        json_int_t group = json_integer_value(json_object_get(e, "file"));
        MoeCheckpointTensor *t = &s->tensors.items[s->tensors.n++];
        if (!name || group < 0 || group > 1 || (group == 0 && s->tensors.n_weights != i))
            return bad_entry(s, "census", i);
        t->name = moe_arena_strdup(s->arena, name);
        t->group = (int)group;
        s->tensors.n_weights += group == 0;
        if (s->version == 1)
            t->elements = -1;
        else if (!read_dims(json_object_get(e, "dims"), t) ||
                 !moe_hex_get(json_string_value(json_object_get(e, "sum")), &t->sum, 1))
            return bad_entry(s, "census", i);
    }
    return NULL;
}

static MoeStatus read_files(MoeStored *s) {
    const json_t *files = json_object_get(s->manifest, "files");
    json_int_t block = json_integer_value(json_object_get(s->manifest, "block_bytes"));
    size_t n = json_array_size(files);
    if (!n || n > 2 * MOE_MAX_RANKS || (s->version > 1 && (block < 1 || block > 1 << 30)))
        return moe_error(MOE_E_CORRUPT, "%s/manifest.json does not name the checkpoint's files",
                         s->dir);
    s->files = MOE_NEW_N(s->arena, MoeStoredFile, n);
    for (size_t i = 0; i < n; i++) {
        const json_t *e = json_array_get(files, i);
        const char *name = json_string_value(json_object_get(e, "name")),
                   *group = json_string_value(json_object_get(e, "group")),
                   *xxh3 = json_string_value(json_object_get(e, "xxh3"));
        MoeStoredFile *f = &s->files[s->n_files++];
        f->bytes = json_integer_value(json_object_get(e, "bytes"));
        if (!good_file_name(name) || f->bytes < 0 || f->bytes > MAX_BYTES)
            return bad_entry(s, "files", i);
        f->name = moe_arena_strdup(s->arena, name);
        f->path = moe_arena_printf(s->arena, "%s/%s", s->dir, name);
        if (s->version == 1) {
            f->group = strncmp(name, "optimizer", 9) == 0;
            f->xxh3 = xxh3 ? moe_arena_strdup(s->arena, xxh3) : "none";
            continue;
        }
        const char *blocks = json_string_value(json_object_get(e, "blocks"));
        f->group = group && !strcmp(group, moe_checkpoint_groups[1]);
        f->hashes.block_bytes = block;
        f->hashes.n = (size_t)moe_block_count(f->bytes, block);
        if (!group || strcmp(group, moe_checkpoint_groups[f->group]) || !blocks ||
            strlen(blocks) != 16 * f->hashes.n)
            return bad_entry(s, "files", i);
        f->hashes.hashes = MOE_NEW_N(s->arena, uint64_t, f->hashes.n);
        if (!moe_hex_get(blocks, f->hashes.hashes, f->hashes.n))
            return bad_entry(s, "files", i);
    }
    return NULL;
}

/* ---- tensors by name ---- */

static int compare_names(const void *a, const void *b, void *items) {
    const MoeCheckpointTensor *t = items;
    return strcmp(t[*(const uint32_t *)a].name, t[*(const uint32_t *)b].name);
}

static MoeStatus index_names(MoeStored *s) {
    MoeCheckpointTensor *t = s->tensors.items;
    size_t n = s->tensors.n;
    s->by_name = MOE_NEW_N(s->arena, uint32_t, n);
    for (size_t i = 0; i < n; i++)
        s->by_name[i] = (uint32_t)i;
    if (n)
        qsort_r(s->by_name, n, sizeof *s->by_name, compare_names, t);
    for (size_t i = 1; i < n; i++)
        if (!compare_names(&s->by_name[i - 1], &s->by_name[i], t))
            return moe_error(MOE_E_CORRUPT, "%s/manifest.json: its census names %s twice", s->dir,
                             t[s->by_name[i]].name);
    return NULL;
}

/* The tensor whose name is the first n characters of `name`; false: none. */
static bool find_tensor(const MoeStored *s, const char *name, size_t n, uint32_t *out) {
    size_t lo = 0, hi = s->tensors.n;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        const char *have = s->tensors.items[s->by_name[mid]].name;
        int order = strncmp(have, name, n);
        if (order == 0 && have[n])
            order = 1;
        if (order == 0) {
            *out = s->by_name[mid];
            return true;
        }
        if (order < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return false;
}

/* ---- pieces ---- */

MoeStatus moe_stored_file(const MoeStored *s, size_t i, MoeBlockFile **out) {
    const MoeStoredFile *f = &s->files[i];
    if (!moe_path_exists(f->path))
        return moe_error(MOE_E_CORRUPT, "%s: %s is missing", s->dir, f->name);
    return moe_as_damage(
        moe_block_open(f->path, f->bytes, s->version > 1 ? &f->hashes : NULL, out));
}

/* FIRST or FIRST:COLUMN:WIDTH:STRIDE of the piece with t->elements elements of a tensor of n. */
static bool parse_piece(const char *text, int64_t count, int64_t n, MoePiece *out) {
    int64_t v[4] = {0, 0, n, n};
    int fields = 0;
    for (const char *at = text;; at++) {
        char *end;
        if (*at < '0' || *at > '9' || fields == 4)
            return false;
        v[fields] = (int64_t)strtoull(at, &end, 10);
        if (v[fields] < 0 || v[fields] > n)
            return false;
        fields++;
        at = end;
        if (!*at)
            break;
        if (*at != ':')
            return false;
    }
    *out = (MoePiece){v[0], count, v[2], v[3], v[1], 0};
    if (fields != 1 && fields != 4)
        return false;
    if (count == 0)
        return true;
    if (v[2] < 1 || v[1] + v[2] > v[3])
        return false;
    int64_t last = v[0] + count - 1, row; /* its last element lies in the tensor */
    return moe_mul_i64(last / v[2], v[3], &row) && row <= n && row + v[1] + last % v[2] < n;
}

static MoeStatus read_piece(const MoeStored *s, const MoeStTensor *t, size_t file,
                            MoeStoredPiece *out) {
    const char *cut = strchr(t->name, '@');
    size_t n = cut ? (size_t)(cut - t->name) : strlen(t->name);
    *out = (MoeStoredPiece){.file = (uint32_t)file, .at = t->at};
    if (!find_tensor(s, t->name, n, &out->tensor) ||
        s->tensors.items[out->tensor].group != s->files[file].group)
        return moe_error(MOE_E_CORRUPT, "%s: %s is not in the census", t->file, t->name);
    MoeCheckpointTensor *whole = &s->tensors.items[out->tensor];
    if (s->version == 1) { /* whole tensors, whose dims the manifest does not have */
        whole->rank = t->rank;
        whole->elements = t->elements;
        memcpy(whole->dims, t->dims, sizeof whole->dims);
    }
    bool good = t->dtype == MOE_ST_F32;
    if (cut)
        good =
            good && t->rank == 1 && parse_piece(cut + 1, t->elements, whole->elements, &out->piece);
    else
        good = good && t->rank == whole->rank &&
               !memcmp(t->dims, whole->dims, sizeof *t->dims * (size_t)t->rank);
    if (!cut)
        out->piece = moe_piece_whole(t->elements);
    if (!good)
        return moe_error(MOE_E_CORRUPT, "%s: %s is no piece of the tensor in the census", t->file,
                         t->name);
    return NULL;
}

MoeStatus moe_stored_pieces(const MoeStored *s, size_t i, MoeBlockFile *f, MoeStoredPiece **out,
                            size_t *out_n) {
    MoeSafetensors *st_file = NULL;
    *out = NULL;
    *out_n = 0;
    MOE_TRY(moe_as_damage(moe_st_open_file(f, &st_file)));
    size_t n = moe_st_count(st_file);
    MoeStoredPiece *pieces = malloc((n + 1) * sizeof *pieces);
    MoeStatus st = pieces ? NULL : moe_error(MOE_E_NOMEM, "no memory for %zu tensors", n);
    for (size_t k = 0; k < n && !st; k++)
        st = read_piece(s, moe_st_at(st_file, k), i, &pieces[k]);
    moe_st_close(st_file);
    if (st) {
        free(pieces);
        return st;
    }
    *out = pieces;
    *out_n = n;
    return NULL;
}

/* ---- opening ---- */

/* Version 1: dims from the headers. */
static MoeStatus read_headers(const MoeStored *s) {
    for (size_t i = 0; i < s->n_files; i++) {
        MoeBlockFile *f;
        MoeStoredPiece *pieces;
        size_t n;
        MOE_TRY(moe_stored_file(s, i, &f));
        MoeStatus st = moe_stored_pieces(s, i, f, &pieces, &n);
        moe_block_close(f);
        if (st)
            return st;
        free(pieces);
    }
    for (size_t i = 0; i < s->tensors.n; i++)
        if (s->tensors.items[i].elements < 0)
            return moe_error(MOE_E_CORRUPT, "%s: %s of the census is in no file", s->dir,
                             s->tensors.items[i].name);
    return NULL;
}

MoeStatus moe_stored_open(const char *dir, MoeStored *out) {
    *out = (MoeStored){.arena = moe_arena_create()};
    out->dir = moe_arena_strdup(out->arena, dir);
    MOE_TRY(moe_manifest_read(dir, &out->manifest));
    out->version = (int)json_integer_value(json_object_get(out->manifest, "format_version"));
    MOE_TRY(read_census(out));
    MOE_TRY(read_files(out));
    MOE_TRY(index_names(out));
    return out->version == 1 ? read_headers(out) : NULL;
}

void moe_stored_close(MoeStored *s) {
    json_decref(s->manifest);
    moe_arena_destroy(s->arena);
    *s = (MoeStored){0};
}
