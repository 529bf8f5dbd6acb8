/* Sums over ranks: reduce_scatter and all_reduce. See exec_comm.h. */
#include "runtime/exec_comm.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"

#define FOLD_CHUNK 32768 /* elements a task */
#define FOLD_BLOCK 512

bool moe_exec_is_sum(const MoePlanComm *o) {
    return o->op == MOE_PLAN_REDUCE_SCATTER || o->op == MOE_PLAN_ALL_REDUCE;
}

static MoeMeshGroup scatter_of(const MoePlanComm *o) {
    return o->op == MOE_PLAN_REDUCE_SCATTER ? o->scatter : MOE_N_GROUPS;
}

static const MoeExecSum *find_sum(const MoeExec *x, const MoePlanComm *o) {
    for (size_t i = 0; i < x->between->n_sums; i++)
        if (x->between->sums[i].group == o->group && x->between->sums[i].scatter == scatter_of(o))
            return &x->between->sums[i];
    return NULL;
}

MoeStatus moe_exec_sum_prepare(MoeExec *x, const MoePlanComm *o) {
    MoeExecComm *c = x->between;
    const MoeExecGroup *g = &c->groups[o->group];
    if (find_sum(x, o))
        return NULL;
    int parts = scatter_of(o) == MOE_N_GROUPS ? 1 : moe_mesh_group_size(&x->plan->mesh, o->scatter);
    MoeExecSum *sums = realloc(c->sums, sizeof *sums * (c->n_sums + 1));
    int *places = calloc((size_t)g->n * 2, sizeof *places),
        *owners = calloc((size_t)parts, sizeof *owners),
        *ranks = malloc(sizeof *ranks * (size_t)parts);
    c->sums = sums ? sums : c->sums;
    if (!sums || !places || !owners || !ranks) {
        free(places);
        free(owners);
        free(ranks);
        return moe_error(MOE_E_NOMEM, "no memory for the groups of ranks");
    }
    MoeExecSum s = {o->group, scatter_of(o), parts, g->n / parts, places, places + g->n};
    for (int i = 0; i < g->n; i++) {
        if (parts > 1)
            s.slice[i] = moe_mesh_group_ranks(&x->plan->mesh, g->ranks[i], o->scatter, ranks);
        s.copy[i] = owners[s.slice[i]]++;
    }
    for (int i = 0; i < parts; i++)
        MOE_ASSERT(owners[i] == s.copies, "%d of %d ranks own slice %d of %d", owners[i], g->n, i,
                   parts);
    free(owners);
    free(ranks);
    sums[c->n_sums++] = s;
    return NULL;
}

static MoeSumShares shares(const MoeExec *x, const MoePlanComm *o) {
    const MoeExecSum *s = find_sum(x, o);
    return moe_sum_shares(s->slices * s->copies, s->slices, o->elements, o->unit, o->outer);
}

bool moe_exec_sum_twice(const MoeExec *x, const MoePlanComm *o) {
    return shares(x, o).twice;
}

int64_t moe_exec_sum_stage(const MoeExec *x, const MoePlanComm *o) {
    return shares(x, o).stage_bytes;
}

static MoeSlice slice_of(const MoeExec *x, const MoePlanComm *o, int member) {
    const MoeExecSum *s = find_sum(x, o);
    return moe_slice(o->elements, o->unit, s->slices, s->slice[member]);
}

/* Of each row the elements that a member adds up: its slice, or its part of it. */
static MoeSlice share_of(const MoeExec *x, const MoePlanComm *o, int member) {
    const MoeExecSum *s = find_sum(x, o);
    MoeSlice all = slice_of(x, o, member), part;
    if (!moe_exec_sum_twice(x, o))
        return all;
    part = moe_slice(all.count, MOE_SUM_PART, s->copies, s->copy[member]);
    part.first += all.first;
    return part;
}

/* In the staging memory: the terms of the other members in order, [outer, share]. */
static int64_t term_bytes(const MoeExec *x, const MoePlanComm *o) {
    return 4 * o->outer * share_of(x, o, x->between->groups[o->group].self).count;
}

void moe_exec_sum_blocks(MoeExec *x, const MoeExecProgram *g, const MoePlanComm *o, char *stage) {
    MoeExecComm *c = x->between;
    const MoeExecGroup *all = &c->groups[o->group];
    int64_t term = term_bytes(x, o);
    for (int i = 0; i < all->n; i++) {
        if (i == all->self)
            continue;
        MoeSlice theirs = share_of(x, o, i);
        for (int64_t l = 0; l < o->outer; l++)
            moe_block_push(c, &c->sends, all->ranks[i],
                           g->values[o->in[0]] + 4 * (l * o->elements + theirs.first),
                           4 * theirs.count);
        moe_block_push(c, &c->recvs, all->ranks[i], stage, term);
        stage += term;
    }
}

/* ---- the tree ---- */

typedef struct {
    const char *own, *stage; /* this rank's terms; the others' */
    char *out;
    int64_t own_stride, out_stride; /* bytes from row to row */
    int64_t term, count, total;     /* bytes of a staged term; elements of a row, of all */
    int n, self;
} Fold;

/* Member i's elements at [at, ...) of row l. */
static const float *term_at(const Fold *f, int i, int64_t l, int64_t at) {
    const char *p = i == f->self
                        ? f->own + l * f->own_stride
                        : f->stage + (i < f->self ? i : i - 1) * f->term + 4 * l * f->count;
    return (const float *)(const void *)(p + 4 * at);
}

/* out = the tree over members lo..hi-1; the left half is a whole power of two. */
static void tree(const Fold *f, int lo, int hi, int64_t l, int64_t at, int64_t n, float *out) {
    const float *a = term_at(f, lo, l, at);
    if (hi - lo == 1) {
        memcpy(out, a, sizeof *out * (size_t)n);
        return;
    }
    if (hi - lo == 2) {
        const float *b = term_at(f, hi - 1, l, at);
        for (int64_t i = 0; i < n; i++)
            out[i] = a[i] + b[i];
        return;
    }
    int half = 1;
    while (half * 2 < hi - lo)
        half *= 2;
    float right[FOLD_BLOCK];
    tree(f, lo, lo + half, l, at, n, out);
    tree(f, lo + half, hi, l, at, n, right);
    for (int64_t i = 0; i < n; i++)
        out[i] = out[i] + right[i];
}

static void fold_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const Fold *f = ctx;
    int64_t end = (task + 1) * FOLD_CHUNK < f->total ? (task + 1) * FOLD_CHUNK : f->total;
    float sum[FOLD_BLOCK];
    for (int64_t i = task * FOLD_CHUNK, n; i < end; i += n) {
        int64_t l = i / f->count, at = i % f->count;
        n = f->count - at < end - i ? f->count - at : end - i;
        n = n < FOLD_BLOCK ? n : FOLD_BLOCK;
        tree(f, 0, f->n, l, at, n, sum);
        memcpy(f->out + l * f->out_stride + 4 * at, sum, sizeof *sum * (size_t)n);
    }
}

/* Integers: any order will do. */
static void add_counts(const Fold *f) {
    int32_t *out = (int32_t *)(void *)f->out;
    memcpy(out, f->own, 4 * (size_t)f->total);
    for (int i = 0; i < f->n - 1; i++) {
        const int32_t *term = (const int32_t *)(const void *)(f->stage + i * f->term);
        for (int64_t k = 0; k < f->total; k++)
            out[k] = (int32_t)((uint32_t)out[k] + (uint32_t)term[k]);
    }
}

/* The same on a device that has the terms. */
static MoeStatus fold_on(MoeDevice *d, const MoePlanComm *o, const Fold *f) {
    MoeDeviceTerms t = {.own = f->own,
                        .others = f->stage,
                        .out = f->out,
                        .rows = o->outer,
                        .columns = f->count,
                        .own_stride = f->own_stride,
                        .out_stride = f->out_stride,
                        .n = f->n,
                        .self = f->self,
                        .integers = o->dtype == MOE_PLAN_I32};
    return f->total ? d->links->sum(d, &t) : NULL;
}

/* What slices have beyond their elements is zero. */
static MoeStatus clear_rest(MoeExec *x, const MoePlanComm *o, const MoeSlice *slice, char *out) {
    int64_t rest = 4 * (slice->cap - slice->count);
    for (int64_t l = 0; rest && l < o->outer; l++) {
        char *at = out + 4 * (l * slice->cap + slice->count);
        if (x->device->links)
            MOE_TRY(x->device->links->clear(x->device, at, rest));
        else
            memset(at, 0, (size_t)rest);
    }
    return NULL;
}

MoeStatus moe_exec_sum_fold(MoeExec *x, const MoeExecProgram *g, const MoePlanComm *o,
                            const char *stage) {
    const MoeExecGroup *all = &x->between->groups[o->group];
    MoeSlice slice = slice_of(x, o, all->self), mine = share_of(x, o, all->self);
    char *out = g->values[o->out];
    Fold f = {.own = g->values[o->in[0]] + 4 * mine.first,
              .stage = stage,
              .out = out + 4 * (mine.first - slice.first),
              .own_stride = 4 * o->elements,
              .out_stride = 4 * slice.cap,
              .term = term_bytes(x, o),
              .count = mine.count,
              .total = o->outer * mine.count,
              .n = all->n,
              .self = all->self};
    if (x->device->links)
        MOE_TRY(fold_on(x->device, o, &f));
    else if (o->dtype == MOE_PLAN_I32)
        add_counts(&f);
    else
        moe_pool_run(x->pool, (f.total + FOLD_CHUNK - 1) / FOLD_CHUNK, fold_task, &f);
    return clear_rest(x, o, &slice, out);
}

void moe_exec_sum_rejoin(MoeExec *x, const MoeExecProgram *g, const MoePlanComm *o) {
    MoeExecComm *c = x->between;
    const MoeExecGroup *all = &c->groups[o->group];
    const MoeExecSum *s = find_sum(x, o);
    MoeSlice slice = slice_of(x, o, all->self), mine = share_of(x, o, all->self);
    for (int i = 0; i < all->n; i++) {
        if (i == all->self || s->slice[i] != s->slice[all->self])
            continue;
        MoeSlice theirs = share_of(x, o, i);
        for (int64_t l = 0; l < o->outer; l++) {
            char *row = g->values[o->out] + 4 * (l * slice.cap - slice.first);
            moe_block_push(c, &c->sends, all->ranks[i], row + 4 * mine.first, 4 * mine.count);
            moe_block_push(c, &c->recvs, all->ranks[i], row + 4 * theirs.first, 4 * theirs.count);
        }
    }
}
