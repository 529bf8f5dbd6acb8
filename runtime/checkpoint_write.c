/* Writing checkpoints: every rank its files, rank 0 the manifest and the rename. The protocol is in checkpoint.h; only plain
 * system calls, so that faults can be injected at each of them. Between two points where the ranks meet no rank calls the
 * communicator, so that a failure of one (agreed on at the next point) leaves none waiting. */
#include "runtime/checkpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/io.h"
#include "runtime/checkpoint_internal.h"
#include "runtime/place_file.h"
#include "runtime/run_config.h"

/* What a rank tells the others of its files. */
typedef struct {
    int64_t bytes[MOE_CHECKPOINT_GROUPS];  /* -1: it writes none */
    int64_t blocks[MOE_CHECKPOINT_GROUPS]; /* with so many hashes */
} Written;

typedef struct {
    const MoePlan *plan;
    MoeExec *x;
    MoeComm *c;
    const MoeTrainState *state;
    MoeWeightList list;
    MoeCheckpointTensors tensors;
    uint64_t *cover, *sums; /* [tensors.n], of what this rank writes, then of all */
    MoeBlockHashes hashes[MOE_CHECKPOINT_GROUPS]; /* of this rank's files */
    Written mine, *all;                           /* [ranks] */
    uint64_t **blocks;        /* rank 0: [ranks * groups] the hashes of all files */
    char *root, *final, *tmp; /* directories */
    bool made;                /* rank 0: tmp is there */
    bool replaced;            /* and holds what `final` was before */
} Save;

/* ---- this rank's files ---- */

static void file_name(const Save *s, int rank, int group, char out[64]) {
    const char *name = moe_checkpoint_groups[group];
    if (s->c->size == 1)
        snprintf(out, 64, "%s.safetensors", name);
    else
        snprintf(out, 64, "%s-rank-%d.safetensors", name, rank);
}

/* This rank's part of the tensor as the file has it: see checkpoint.h for the names. */
static MoeStOut out_of(const Save *s, const MoeCheckpointTensor *t) {
    const MoePiece *p = &t->weight->written;
    MoeStOut out = {.name = t->name, .dtype = MOE_ST_F32, .rank = 1, .dims = {p->count}};
    MoeRun r = {0, 0, 0};
    out.data = moe_exec_on_host(s->x) ? t->buffer + p->offset : NULL;
    bool one = moe_piece_run(p, 0, &r) && r.n == p->count;
    if (p->count == t->elements) {
        out.rank = t->rank;
        memcpy(out.dims, t->dims, sizeof out.dims);
    } else if (one) {
        out.name = moe_arena_printf(s->list.arena, "%s@%lld", t->name, (long long)r.first);
    } else {
        out.name =
            moe_arena_printf(s->list.arena, "%s@%lld:%lld:%lld:%lld", t->name, (long long)p->first,
                             (long long)p->column, (long long)p->width, (long long)p->stride);
    }
    return out;
}

/* Whether this rank writes some of the tensor; empty tensors only where one rank writes all. */
static bool is_ours(const Save *s, const MoeCheckpointTensor *t) {
    return t->weight->written.count || s->c->size == 1;
}

/* The tensors of a file, for a device whose memory is copied out block by block. */
typedef struct {
    MoeExec *x;
    const MoeCheckpointTensor **tensors;
} Fill;

static MoeStatus fill(void *ctx, size_t tensor, int64_t first, int64_t n, void *out) {
    const Fill *f = ctx;
    const MoeCheckpointTensor *t = f->tensors[tensor];
    return moe_checkpoint_copy_out(f->x, t->buffer + t->weight->written.offset + first, n, out);
}

static MoeStatus write_group(Save *s, int group) {
    static const char *const metadata[] = {"format", "pt"};
    MoeStOut *outs = MOE_NEW_N(s->list.arena, MoeStOut, s->tensors.n);
    Fill from = {s->x, MOE_NEW_N(s->list.arena, const MoeCheckpointTensor *, s->tensors.n)};
    size_t n = 0;
    for (size_t i = 0; i < s->tensors.n; i++)
        if (s->tensors.items[i].group == group && is_ours(s, &s->tensors.items[i])) {
            from.tensors[n] = &s->tensors.items[i];
            outs[n++] = out_of(s, &s->tensors.items[i]);
        }
    s->mine.bytes[group] = -1;
    if (!n && s->c->size > 1)
        return NULL;
    char name[64], *path;
    uint64_t bytes = 0;
    file_name(s, s->c->rank, group, name);
    path = moe_path_join(s->tmp, name);
    MoeStatus st =
        moe_st_write_blocks(path, outs, n, metadata, 1, fill, &from, &bytes, &s->hashes[group]);
    s->mine.bytes[group] = (int64_t)bytes;
    s->mine.blocks[group] = (int64_t)s->hashes[group].n;
    free(path);
    return st;
}

static MoeStatus write_mine(Save *s) {
    size_t n;
    MOE_TRY(moe_weight_list(s->plan, s->x, &s->list));
    moe_checkpoint_tensors(s->plan, s->x, &s->list, &s->tensors);
    n = s->tensors.n;
    s->cover = calloc(n + 1, sizeof *s->cover);
    s->sums = calloc(n + 1, sizeof *s->sums);
    s->all = calloc((size_t)s->c->size, sizeof *s->all);
    s->blocks = calloc((size_t)s->c->size * MOE_CHECKPOINT_GROUPS, sizeof *s->blocks);
    if (!s->cover || !s->sums || !s->all || !s->blocks)
        return moe_error(MOE_E_NOMEM, "no memory for the checkpoint's census");
    for (int g = 0; g < MOE_CHECKPOINT_GROUPS; g++)
        MOE_TRY(write_group(s, g));
    for (size_t i = 0; i < n; i++)
        if (is_ours(s, &s->tensors.items[i]))
            s->cover[i] = moe_piece_cover(&s->tensors.items[i].weight->written);
    return moe_checkpoint_sums(s->x, &s->tensors, n, s->sums);
}

/* ---- what all ranks wrote ---- */

/* Every element of every tensor is in one file, exactly. */
static MoeStatus take_census(Save *s) {
    MOE_TRY(moe_checkpoint_add_up(s->c, s->cover, s->tensors.n));
    MOE_TRY(moe_checkpoint_add_up(s->c, s->sums, s->tensors.n));
    for (size_t i = 0; i < s->tensors.n; i++)
        if (s->cover[i] != moe_whole_cover(s->tensors.items[i].elements))
            return moe_error(MOE_E_INTERNAL,
                             "census: the pieces of %s that the ranks hold do not make up the "
                             "tensor; the checkpoint is given up",
                             s->tensors.items[i].name);
    return NULL;
}

/* Rank 0's room for the hashes of all files. */
static MoeStatus make_room(Save *s) {
    for (int r = 0; r < s->c->size && s->c->rank == 0; r++)
        for (int g = 0; g < MOE_CHECKPOINT_GROUPS; g++) {
            size_t n = (size_t)s->all[r].blocks[g];
            uint64_t *to = malloc((n + 1) * sizeof *to);
            s->blocks[r * MOE_CHECKPOINT_GROUPS + g] = to;
            if (!to)
                return moe_error(MOE_E_NOMEM, "no memory for the hashes of %zu blocks", n);
            if (r == 0 && n)
                memcpy(to, s->hashes[g].hashes, n * sizeof *to);
        }
    return NULL;
}

/* Sizes to all ranks, the hashes of all files to rank 0. */
static MoeStatus gather_files(Save *s) {
    MoeBlock own[MOE_CHECKPOINT_GROUPS], *theirs = NULL;
    size_t n_own = 0, n_theirs = 0;
    MOE_TRY(moe_comm_all_gather(s->c, &s->mine, sizeof s->mine, s->all, "the checkpoint's files"));
    MoeStatus st = make_room(s);
    if (!st && !(theirs = calloc((size_t)s->c->size * MOE_CHECKPOINT_GROUPS, sizeof *theirs)))
        st = moe_error(MOE_E_NOMEM, "no memory for the list of the checkpoint's files");
    st = moe_comm_agree(s->c, st, "the checkpoint's files");
    for (int g = 0; g < MOE_CHECKPOINT_GROUPS && s->c->rank; g++)
        if (s->mine.blocks[g])
            own[n_own++] =
                (MoeBlock){0, s->hashes[g].hashes, sizeof(uint64_t), s->mine.blocks[g], NULL};
    for (int r = 1; r < s->c->size && !st && s->c->rank == 0; r++)
        for (int g = 0; g < MOE_CHECKPOINT_GROUPS; g++)
            if (s->all[r].blocks[g])
                theirs[n_theirs++] = (MoeBlock){r, s->blocks[r * MOE_CHECKPOINT_GROUPS + g],
                                                sizeof(uint64_t), s->all[r].blocks[g], NULL};
    if (!st)
        st = moe_comm_exchange(s->c, own, n_own, theirs, n_theirs, "the checkpoint's files");
    free(theirs);
    return st;
}

/* ---- rank 0: the manifest ---- */

static json_t *files_json(const Save *s) {
    json_t *files = json_array();
    for (int g = 0; g < MOE_CHECKPOINT_GROUPS; g++)
        for (int r = 0; r < s->c->size; r++) {
            MoeStr hex = {0};
            char name[64];
            if (s->all[r].bytes[g] < 0)
                continue;
            file_name(s, r, g, name);
            moe_hex_put(&hex, s->blocks[r * MOE_CHECKPOINT_GROUPS + g],
                        (size_t)s->all[r].blocks[g]);
            json_array_append_new(files, json_pack("{s:s, s:s, s:I, s:s}", "name", name, "group",
                                                   moe_checkpoint_groups[g], "bytes",
                                                   (json_int_t)s->all[r].bytes[g], "blocks",
                                                   moe_str_c(&hex)));
            moe_str_free(&hex);
        }
    return files;
}

static json_t *census_json(const Save *s) {
    json_t *census = json_array();
    for (size_t i = 0; i < s->tensors.n; i++) {
        const MoeCheckpointTensor *t = &s->tensors.items[i];
        json_t *dims = json_array();
        char sum[17];
        for (int d = 0; d < t->rank; d++)
            json_array_append_new(dims, json_integer(t->dims[d]));
        snprintf(sum, sizeof sum, "%016llx", (unsigned long long)s->sums[i]);
        json_array_append_new(census, json_pack("{s:s, s:i, s:o, s:s}", "name", t->name, "file",
                                                t->group, "dims", dims, "sum", sum));
    }
    return census;
}

static MoeStatus write_text(const char *path, const MoeStr *text) {
    MoeFileOut *f = NULL;
    MOE_TRY(moe_out_create(path, &f));
    MoeStatus st = moe_out_write(f, moe_str_c(text), text->len);
    if (st) {
        moe_out_abandon(f);
        return st;
    }
    return moe_out_finish(f, NULL, NULL);
}

/* Layers whose experts the ranks divide in a way of their own. */
static json_t *ranges_json(const MoeMesh *m) {
    json_t *a = json_array();
    for (int i = 0; i < m->n_ranges; i++) {
        const MoeMeshRange *r = &m->ranges[i];
        json_array_append_new(a, json_pack("{s:i, s:i, s:i, s:i, s:i}", "first", r->first, "last",
                                           r->last, "dp", r->dp, "shard", r->shard, "ep", r->ep));
    }
    return a;
}

static MoeStatus write_manifest(const Save *s) {
    const MoeMesh *m = &s->plan->mesh;
    json_t *manifest = json_pack(
        "{s:i, s:s, s:I, s:o, s:o, s:i, s:{s:i, s:i, s:i, s:i, s:i}, s:i, s:o, s:I, s:o, s:o}",
        "format_version", MOE_CHECKPOINT_FORMAT, "kind", "moec checkpoint", "step",
        (json_int_t)s->state->step, "state", moe_manifest_state(s->state), "plan",
        moe_plan_facts(s->plan), "ranks", s->c->size, "mesh", "dp", m->dp, "shard", m->shard, "ep",
        m->ep, "tp", m->tp, "dense_shard", m->dense_shard, "slots", s->plan->slots, "maps",
        moe_place_json(s->plan, s->x), "block_bytes", (json_int_t)MOE_BLOCK_BYTES, "files", files_json(s), "census",
        census_json(s));
    MoeStr text = {0};
    if (!manifest)
        return moe_error(MOE_E_NOMEM, "no memory for the checkpoint's manifest");
    if (m->n_ranges)
        json_object_set_new(json_object_get(manifest, "mesh"), "layers", ranges_json(m));
    if (moe_exec_choices(s->x)->n)
        json_object_set_new(manifest, "choices", moe_choices_json(moe_exec_choices(s->x)));
    char *path = moe_path_join(s->tmp, "manifest.json");
    moe_manifest_seal(manifest, &text);
    json_decref(manifest);
    MoeStatus st = write_text(path, &text);
    moe_str_free(&text);
    free(path);
    return st ? st : moe_dir_sync(s->tmp);
}

/* ---- rank 0: directories ---- */

static MoeStatus rename_dir(const char *from, const char *to) {
    if (rename(from, to))
        return moe_error_errno("cannot rename %s to %s", from, to);
    return NULL;
}

/* tmp and final change places; at once where the file system can. */
static MoeStatus swap(const Save *s) {
    if (!renameat2(AT_FDCWD, s->tmp, AT_FDCWD, s->final, RENAME_EXCHANGE))
        return NULL;
    if (errno != EINVAL && errno != ENOSYS && errno != ENOTSUP)
        return moe_error_errno("cannot let %s and %s change places", s->tmp, s->final);
    MoeStr aside = {0}; /* a name that a kill in between leaves alone */
    moe_str_printf(&aside, "%s/aside-step-%lld-%ld", s->root, (long long)s->state->step,
                   (long)getpid());
    MoeStatus st = rename_dir(s->final, aside.data);
    if (!st && (st = rename_dir(s->tmp, s->final)))
        moe_status_free(rename_dir(aside.data, s->final));
    else if (!st)
        st = rename_dir(aside.data, s->tmp);
    moe_str_free(&aside);
    return st;
}

/* RUN/checkpoints/step-N.tmp-PID-RANDOM: no other writer's, also none of another host or of a rank that outlived its job. */
static MoeStatus make_tmp(Save *s) {
    if (s->c->rank)
        return NULL;
    MOE_TRY(moe_dir_make(s->root));
    MOE_TRY(moe_dir_remove(s->tmp));
    MOE_TRY(moe_dir_make(s->tmp));
    s->made = true;
    return NULL;
}

static MoeStatus commit(Save *s) {
    if (s->c->rank)
        return NULL;
    MOE_TRY(write_manifest(s));
    if (moe_path_exists(s->final)) { /* the same step saved before: gone once the new one stands */
        MOE_TRY(swap(s));
        s->replaced = true;
    } else {
        MOE_TRY(rename_dir(s->tmp, s->final));
        s->made = false;
    }
    return moe_dir_sync(s->root);
}

/* No bad checkpoint under a good name, and the one before back under it. */
static void take_back(Save *s) {
    MoeStatus st = s->replaced ? swap(s) : rename_dir(s->final, s->tmp);
    s->made = !st; /* else tmp may be the one before: it stays */
    moe_status_free(st);
}

static MoeStatus read_back(const Save *s) {
    MoeStored stored;
    MoeStatus st = moe_stored_open(s->final, &stored);
    if (!st)
        st = moe_stored_check(&stored, s->c->rank, s->c->size);
    moe_stored_close(&stored);
    return st;
}

/* ---- all of it ---- */

/* Names that all ranks agree on: rank 0's process and a random number. */
static MoeStatus agree_names(Save *s, const char *run_dir) {
    struct {
        int64_t step, pid, number;
    } mine = {s->state->step, (int64_t)getpid(), 0}, *all;
    uint32_t number = 0;
    if (getrandom(&number, sizeof number, GRND_NONBLOCK) == (ssize_t)sizeof number)
        mine.number = number;
    all = malloc(sizeof *all * (size_t)s->c->size);
    MoeStatus st = all ? NULL : moe_error(MOE_E_NOMEM, "no memory for the checkpoint's name");
    st = moe_comm_agree(s->c, st, "the checkpoint's name");
    if (!st)
        st = moe_comm_all_gather(s->c, &mine, sizeof mine, all, "the checkpoint's name");
    if (!st) {
        MoeStr final = {0}, tmp = {0};
        s->root = moe_path_join(run_dir, "checkpoints");
        moe_str_printf(&final, "%s/step-%lld", s->root, (long long)all[0].step);
        moe_str_printf(&tmp, "%s.tmp-%lld-%08llx", final.data, (long long)all[0].pid,
                       (unsigned long long)all[0].number);
        s->final = final.data;
        s->tmp = tmp.data;
    }
    free(all);
    return st;
}

static MoeStatus save(Save *s, const char *run_dir) {
    MoeComm *c = s->c;
    MOE_TRY(agree_names(s, run_dir));
    MOE_TRY(moe_comm_agree(c, make_tmp(s), "the checkpoint's directory"));
    MOE_TRY(moe_comm_agree(c, write_mine(s), "writing a checkpoint"));
    MOE_TRY(take_census(s));
    MOE_TRY(gather_files(s));
    MoeStatus st = moe_comm_agree(c, commit(s), "writing a checkpoint's manifest");
    bool stands = !st;
    if (!st)
        st = moe_comm_agree(c, read_back(s), "verifying a checkpoint");
    if (st && c->rank == 0 && moe_status_code(st) != MOE_E_PEER && (stands || s->replaced))
        take_back(s);
    return st;
}

MoeStatus moe_checkpoint_save(const MoePlan *plan, MoeExec *x, const char *run_dir,
                              const MoeTrainState *state) {
    Save s = {.plan = plan, .x = x, .c = moe_exec_comm(x), .state = state};
    MoeStatus st = save(&s, run_dir);
    /* After MOE_E_PEER another rank may still be writing there: left to the next start. */
    if (s.made && !(st && moe_status_code(st) == MOE_E_PEER))
        moe_status_free(moe_dir_remove(s.tmp));
    for (int g = 0; g < MOE_CHECKPOINT_GROUPS; g++)
        moe_block_hashes_free(&s.hashes[g]);
    for (int i = 0; s.blocks && i < s.c->size * MOE_CHECKPOINT_GROUPS; i++)
        free(s.blocks[i]);
    moe_weight_list_free(&s.list);
    free(s.cover);
    free(s.sums);
    free(s.all);
    free(s.blocks);
    free(s.root);
    free(s.final);
    free(s.tmp);
    return moe_status_prefix(st, "checkpoint of step %lld", (long long)state->step);
}
