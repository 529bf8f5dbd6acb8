/* Loading checkpoints: each rank takes from all files what is its own. Newest first, damaged ones named and passed over. */
#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "base/log.h"
#include "runtime/checkpoint_internal.h"
#include "runtime/place_file.h"
#include "runtime/run_config.h"

MoeStatus moe_checkpoint_check_plan(const MoePlan *plan, const json_t *manifest,
                                    const char *where) {
    return moe_plan_facts_check(plan, json_object_get(manifest, "plan"), where);
}

/* One loading on this rank. */
typedef struct {
    const MoePlan *plan;
    MoeExec *x;
    MoeStored from;
    MoeWeightList list;
    MoeCheckpointTensors into;
    size_t n;        /* of its tensors those that are loaded */
    uint64_t *cover; /* [n] what the files hold of each */
    uint64_t *sums;  /* [n] what memory holds */
} Loading;

/* The plan's tensors and the checkpoint's are the same. */
static MoeStatus check_tensors(const Loading *l) {
    const MoeCheckpointTensors *a = &l->from.tensors, *b = &l->into;
    if (a->n != b->n || a->n_weights != b->n_weights)
        return moe_error(MOE_E_CORRUPT, "%s: %zu weights and %zu states, the plan has %zu and %zu",
                         l->from.dir, a->n_weights, a->n - a->n_weights, b->n_weights,
                         b->n - b->n_weights);
    for (size_t i = 0; i < a->n; i++) {
        const MoeCheckpointTensor *t = &a->items[i], *w = &b->items[i];
        if (strcmp(t->name, w->name) || t->rank != w->rank ||
            memcmp(t->dims, w->dims, sizeof *t->dims * (size_t)t->rank))
            return moe_error(MOE_E_CORRUPT,
                             "%s: tensor %s is not the plan's %s, or has another shape",
                             l->from.dir, t->name, w->name);
    }
    return NULL;
}

/* What this rank needs of the piece, into its buffer. */
static MoeStatus read_piece(const Loading *l, MoeBlockFile *f, const MoeStoredPiece *p) {
    const MoeCheckpointTensor *t = &l->into.items[p->tensor];
    MoeRun there, here;
    for (int64_t at = 0; moe_piece_common(&p->piece, &t->weight->piece, at, &there, &here);
         at = here.first + here.n)
        MOE_TRY(moe_block_read(f, p->at + there.at * (int64_t)sizeof(float),
                               here.n * (int64_t)sizeof(float), t->buffer + here.at));
    return NULL;
}

static MoeStatus read_file(const Loading *l, size_t i) {
    MoeBlockFile *f = NULL;
    MoeStoredPiece *pieces = NULL;
    size_t n = 0;
    MOE_TRY(moe_stored_file(&l->from, i, &f));
    MoeStatus st = moe_stored_pieces(&l->from, i, f, &pieces, &n);
    if (!st)
        moe_stored_cover(pieces, n, l->cover);
    for (size_t k = 0; k < n && !st; k++)
        st = read_piece(l, f, &pieces[k]);
    free(pieces);
    moe_block_close(f);
    return st;
}

/* What was read is in the host's mirrors. */
static MoeStatus send_loaded(const Loading *l) {
    for (size_t i = 0; i < l->n; i++) {
        const MoeCheckpointTensor *t = &l->into.items[i];
        float *data = t->buffer + t->weight->piece.offset;
        int64_t bytes = t->weight->piece.count * (int64_t)sizeof *data;
        MOE_TRY(moe_exec_send(l->x, data, bytes));
        moe_exec_forget(l->x, data, bytes);
    }
    return NULL;
}

/* This rank's part of the loading, up to where the ranks meet again. */
static MoeStatus load_own(Loading *l, const char *dir, bool with_optimizer, MoeTrainState *state) {
    MoeComm *c = moe_exec_comm(l->x);
    MOE_TRY(moe_stored_open(dir, &l->from));
    MOE_TRY(moe_checkpoint_check_plan(l->plan, l->from.manifest, dir));
    if (state)
        MOE_TRY(moe_as_damage(moe_manifest_state_read(l->from.manifest, dir, state)));
    if (!moe_exec_keeps_maps(l->x)) /* before the pieces that follow from them */
        MOE_TRY(moe_as_damage(moe_place_json_take(json_object_get(l->from.manifest, "maps"), dir,
                                                  l->plan, l->x)));
    MOE_TRY(moe_as_damage(
        moe_exec_take_choices(l->x, json_object_get(l->from.manifest, "choices"), dir)));
    json_object_del(l->from.manifest, "census"); /* in the tables now */
    json_object_del(l->from.manifest, "files");
    MOE_TRY(moe_weight_list(l->plan, l->x, &l->list));
    moe_checkpoint_tensors(l->plan, l->x, &l->list, &l->into);
    MOE_TRY(check_tensors(l));
    l->n = with_optimizer ? l->into.n : l->into.n_weights;
    l->cover = calloc(l->into.n + 1, sizeof *l->cover);
    l->sums = calloc(l->into.n + 1, sizeof *l->sums);
    if (!l->cover || !l->sums)
        return moe_error(MOE_E_NOMEM, "no memory to load %s", dir);
    if (l->from.version == 1) /* no blocks: the ranks share out the files before they read them */
        MOE_TRY(moe_stored_check(&l->from, c->rank, c->size));
    for (size_t i = 0; i < l->from.n_files; i++)
        if (with_optimizer || l->from.files[i].group == 0)
            MOE_TRY(read_file(l, i));
    MOE_TRY(moe_stored_census(&l->from, l->cover, l->n));
    MOE_TRY(send_loaded(l));
    return l->from.version > 1 ? moe_checkpoint_sums(l->x, &l->into, l->n, l->sums) : NULL;
}

/* What the memory of all ranks holds now is what was saved. */
static MoeStatus check_memory(Loading *l) {
    if (l->from.version == 1)
        return NULL;
    MOE_TRY(moe_checkpoint_add_up(moe_exec_comm(l->x), l->sums, l->n));
    for (size_t i = 0; i < l->n; i++)
        if (l->sums[i] != l->from.tensors.items[i].sum)
            return moe_error(MOE_E_CORRUPT, "%s: %s in memory is not what was saved", l->from.dir,
                             l->into.items[i].name);
    return NULL;
}

MoeStatus moe_checkpoint_load(const MoePlan *plan, MoeExec *x, const char *dir, bool with_optimizer,
                              MoeTrainState *state) {
    Loading l = {.plan = plan, .x = x};
    MoeStatus st = moe_comm_agree(moe_exec_comm(x), load_own(&l, dir, with_optimizer, state),
                                  "loading a checkpoint");
    if (!st)
        st = check_memory(&l);
    free(l.cover);
    free(l.sums);
    moe_weight_list_free(&l.list);
    moe_stored_close(&l.from);
    return st;
}

/* ---- newest first ---- */

/* Rank 0's number on all ranks. */
static MoeStatus from_rank_0(MoeComm *c, int64_t *v) {
    int64_t *all = malloc(sizeof *all * (size_t)(c ? c->size : 1));
    MoeStatus st = all ? NULL : moe_error(MOE_E_NOMEM, "no memory for a number of each rank");
    if (c)
        st = moe_comm_agree(c, st, "finding a checkpoint");
    if (!st && c)
        st = moe_comm_all_gather(c, v, sizeof *v, all, "finding a checkpoint");
    if (!st && c)
        *v = all[0];
    free(all);
    return st;
}

static bool is_damage(MoeStatus st) {
    return moe_status_code(st) == MOE_E_CORRUPT || moe_status_code(st) == MOE_E_IO;
}

/* Tries rank 0's list on all ranks. */
static MoeStatus try_each(const char *run_dir, MoeComm *c, const MoeCheckpointRef *refs, int64_t n,
                          MoeTakeCheckpoint take, void *ctx, char **out_dir, int64_t *out_step) {
    bool speaks = !c || c->rank == 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t step = speaks ? refs[i].step : 0;
        MoeStr dir = {0};
        MOE_TRY(from_rank_0(c, &step));
        moe_str_printf(&dir, "%s/checkpoints/step-%lld", run_dir, (long long)step);
        MoeStatus st = take(ctx, dir.data);
        if (!st) {
            *out_dir = dir.data;
            *out_step = step;
            return NULL;
        }
        moe_str_free(&dir);
        if (!is_damage(st))
            return st;
        if (speaks)
            moe_warn("CHECKPOINT DAMAGED: %s%s", moe_status_message(st),
                     i + 1 < n ? "; falling back to an older one" : "");
        moe_status_free(st);
    }
    return moe_error(MOE_E_CORRUPT,
                     "%s: none of its %lld checkpoints is intact (see the warnings above); start "
                     "anew with another --out",
                     run_dir, (long long)n);
}

MoeStatus moe_checkpoint_first(const char *run_dir, MoeComm *c, MoeTakeCheckpoint take, void *ctx,
                               char **out_dir, int64_t *out_step) {
    MoeCheckpointRef *refs = NULL;
    size_t n_refs = 0;
    MoeStatus st = NULL;
    *out_dir = NULL;
    if (!c || c->rank == 0)
        st = moe_checkpoint_list(run_dir, &refs, &n_refs);
    if (c)
        st = moe_comm_agree(c, st, "finding a checkpoint");
    int64_t n = (int64_t)n_refs;
    if (!st)
        st = from_rank_0(c, &n);
    if (!st && n)
        st = try_each(run_dir, c, refs, n, take, ctx, out_dir, out_step);
    moe_checkpoint_list_free(refs, n_refs);
    return st;
}

static MoeStatus take_verified(void *ctx, const char *dir) {
    (void)ctx;
    return moe_checkpoint_verify(dir, NULL);
}

MoeStatus moe_checkpoint_find(const char *run_dir, char **out_dir, int64_t *out_step) {
    return moe_checkpoint_first(run_dir, NULL, take_verified, NULL, out_dir, out_step);
}

typedef struct {
    const MoePlan *plan;
    MoeExec *x;
    bool with_optimizer;
    MoeTrainState *state;
} Load;

static MoeStatus take_loaded(void *ctx, const char *dir) {
    Load *l = ctx;
    return moe_checkpoint_load(l->plan, l->x, dir, l->with_optimizer, l->state);
}

MoeStatus moe_checkpoint_load_newest(const MoePlan *plan, MoeExec *x, const char *run_dir,
                                     bool with_optimizer, MoeTrainState *state, bool *out_found) {
    Load l = {plan, x, with_optimizer, state};
    char *dir;
    int64_t step;
    *out_found = false;
    MOE_TRY(moe_checkpoint_first(run_dir, moe_exec_comm(x), take_loaded, &l, &dir, &step));
    *out_found = dir != NULL;
    free(dir);
    return NULL;
}
