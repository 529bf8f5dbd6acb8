/* What is exported: an execution's weights, or a checkpoint's, wherever their pieces are. Declared in weights.h. */
#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "runtime/checkpoint_internal.h"

/* An execution's weights. */
typedef struct {
    MoeExec *x;
    const MoeCheckpointTensors *tensors;
} Memory;

static MoeStatus read_memory(void *ctx, size_t tensor, int64_t first, int64_t n, float *out) {
    const Memory *m = ctx;
    const MoeCheckpointTensor *t = &m->tensors->items[tensor];
    return moe_checkpoint_copy_out(m->x, t->buffer + t->weight->piece.offset + first, n, out);
}

/* The weights among the tensors, as they are exported; malloc'd. */
static MoeStatus export_list(const MoeCheckpointTensors *t, MoeStOut **out) {
    MoeStOut *items = calloc(t->n_weights + 1, sizeof *items);
    if (!items)
        return moe_error(MOE_E_NOMEM, "no memory to export %zu tensors", t->n_weights);
    for (size_t i = 0; i < t->n_weights; i++) {
        items[i] = (MoeStOut){.name = t->items[i].name, .rank = t->items[i].rank};
        memcpy(items[i].dims, t->items[i].dims, sizeof items[i].dims);
    }
    *out = items;
    return NULL;
}

MoeStatus moe_export_model(const MoePlan *plan, MoeExec *x, const char *dir,
                           const MoeExportOptions *o) {
    MoeWeightList list;
    MoeCheckpointTensors t;
    MoeStOut *items = NULL;
    if (plan->ranks > 1)
        return moe_error(MOE_E_INPUT, "no rank of %d has the whole model: export a checkpoint",
                         plan->ranks);
    MOE_TRY(moe_weight_list(plan, x, &list));
    moe_checkpoint_tensors(plan, x, &list, &t);
    MoeStatus st = export_list(&t, &items);
    if (!st)
        st = moe_export_tensors(items, t.n_weights, read_memory, &(Memory){x, &t}, plan->model, dir,
                                o);
    free(items);
    moe_weight_list_free(&list);
    return st;
}

/* A checkpoint's weights, wherever their pieces are. */
typedef struct {
    MoeStored *s;
    MoeStoredPiece *pieces; /* by tensor */
    size_t n;
    size_t *first;        /* [n_weights + 1] of each tensor's pieces */
    MoeBlockFile **files; /* opened as they are needed, read without proof: they were verified */
} Stored;

static int by_tensor(const void *a, const void *b) {
    const MoeStoredPiece *x = a, *y = b;
    if (x->tensor != y->tensor)
        return x->tensor < y->tensor ? -1 : 1;
    return x->file < y->file ? -1 : x->file > y->file;
}

static MoeStatus collect_pieces(Stored *e) {
    for (size_t i = 0; i < e->s->n_files; i++) {
        MoeBlockFile *f = NULL;
        MoeStoredPiece *more = NULL;
        size_t n = 0;
        if (e->s->files[i].group != 0)
            continue;
        MOE_TRY(moe_stored_file(e->s, i, &f));
        MoeStatus st = moe_stored_pieces(e->s, i, f, &more, &n);
        moe_block_close(f);
        if (st)
            return st;
        MoeStoredPiece *all = realloc(e->pieces, (e->n + n + 1) * sizeof *all);
        if (all) {
            e->pieces = all;
            memcpy(all + e->n, more, n * sizeof *more);
            e->n += n;
        }
        free(more);
        if (!all)
            return moe_error(MOE_E_NOMEM, "no memory for the tables of %s", e->s->dir);
    }
    qsort(e->pieces, e->n, sizeof *e->pieces, by_tensor);
    for (size_t i = 0; i < e->n; i++)
        e->first[e->pieces[i].tensor + 1] = i + 1;
    for (size_t t = 0; t < e->s->tensors.n_weights; t++) /* a tensor without elements has none */
        if (e->first[t + 1] < e->first[t])
            e->first[t + 1] = e->first[t];
    return NULL;
}

#define OPEN_AT_MOST 64

static MoeStatus file_of(Stored *e, size_t i, MoeBlockFile **out) {
    if (!e->files[i]) {
        size_t n = 0;
        for (size_t k = 0; k < e->s->n_files; k++)
            n += e->files[k] != NULL;
        for (size_t k = 0; k < e->s->n_files && n >= OPEN_AT_MOST; k++) {
            moe_block_close(e->files[k]);
            e->files[k] = NULL;
        }
        MOE_TRY(moe_block_open(e->s->files[i].path, 0, NULL, &e->files[i]));
    }
    *out = e->files[i];
    return NULL;
}

static MoeStatus read_stored(void *ctx, size_t tensor, int64_t first, int64_t n, float *out) {
    Stored *e = ctx;
    const int64_t all = e->s->tensors.items[tensor].elements;
    const MoePiece want = {first, n, all, all, 0, 0};
    for (size_t i = e->first[tensor]; i < e->first[tensor + 1]; i++) {
        const MoeStoredPiece *p = &e->pieces[i];
        MoeRun there, here;
        MoeBlockFile *f;
        MOE_TRY(file_of(e, p->file, &f));
        for (int64_t at = 0; moe_piece_common(&p->piece, &want, at, &there, &here);
             at = here.first + here.n)
            MOE_TRY(moe_block_read(f, p->at + there.at * (int64_t)sizeof(float),
                                   here.n * (int64_t)sizeof(float), out + here.at));
    }
    return NULL;
}

static MoeStatus export_verified(MoeStored *s, const char *dir, const MoeExportOptions *o) {
    const json_t *model = json_object_get(json_object_get(s->manifest, "plan"), "model");
    Stored e = {.s = s,
                .first = calloc(s->tensors.n_weights + 1, sizeof *e.first),
                .files = calloc(s->n_files + 1, sizeof *e.files)};
    MoeStOut *items = NULL;
    MoeStatus st = NULL;
    if (!json_is_object(model))
        st = moe_error(MOE_E_CORRUPT, "%s: its manifest has no model", s->dir);
    else if (!e.first || !e.files)
        st = moe_error(MOE_E_NOMEM, "no memory for the tables of %s", s->dir);
    if (!st)
        st = export_list(&s->tensors, &items);
    if (!st)
        st = collect_pieces(&e);
    if (!st)
        st = moe_export_tensors(items, s->tensors.n_weights, read_stored, &e, model, dir, o);
    for (size_t i = 0; e.files && i < s->n_files; i++)
        moe_block_close(e.files[i]);
    free(e.files);
    free(e.first);
    free(e.pieces);
    free(items);
    return st;
}

MoeStatus moe_export_checkpoint(const char *path, const char *dir, const MoeExportOptions *o) {
    char *manifest_path = moe_path_join(path, "manifest.json"), *found = NULL;
    bool is_checkpoint = moe_path_exists(manifest_path);
    int64_t step;
    MoeStatus st = NULL;
    free(manifest_path);
    if (!moe_path_is_dir(path))
        return moe_error(MOE_E_INPUT, "%s: no such run or checkpoint directory", path);
    if (is_checkpoint) {
        found = strdup(path);
        st = moe_checkpoint_verify(path, NULL);
    } else {
        st = moe_checkpoint_find(path, &found, &step); /* verifies it */
        if (!st && !found)
            st = moe_error(MOE_E_INPUT, "%s holds no checkpoint", path);
    }
    if (!st) {
        MoeStored s;
        st = moe_stored_open(found, &s);
        if (!st)
            st = export_verified(&s, dir, o);
        moe_stored_close(&s);
    }
    free(found);
    return st;
}
