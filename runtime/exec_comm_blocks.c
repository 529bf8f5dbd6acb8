/* The blocks of each op of an exchange: what goes to whom, what comes from whom, what this rank copies to itself.
 * Extents of rows are read off the live tables of segs. See exec_comm.h. */
#include "runtime/exec_comm.h"

#include <stdlib.h>

#include "base/mem.h"
#include "runtime/plan_read.h"

/* ---- lists ---- */

static void push(MoeExecComm *c, MoeBlockList *l, MoeBlock b) {
    if (MOE_ROOM(l->items, l->n, l->cap))
        l->items[l->n++] = b;
    else
        c->failed = true;
}

/* One run of bytes; what goes on where the last block ends becomes part of it. */
void moe_block_push(MoeExecComm *c, MoeBlockList *l, int peer, void *base, int64_t bytes) {
    MoeBlock *last = l->n ? &l->items[l->n - 1] : NULL;
    if (!bytes)
        return;
    if (last && last->peer == peer && !last->index && last->n == 1 &&
        (char *)last->base + last->row_bytes == (char *)base)
        last->row_bytes += bytes;
    else
        push(c, l, (MoeBlock){peer, base, bytes, 1, NULL});
}

static void push_rows(MoeExecComm *c, int peer, void *base, int64_t row_bytes, int64_t n,
                      const int32_t *index) {
    if (n)
        push(c, &c->sends, (MoeBlock){peer, base, row_bytes, n, index});
}

static void push_copy(MoeExecComm *c, char *to, const char *from, int64_t row_bytes, int64_t n,
                      const int32_t *index) {
    if (!n)
        return;
    if (MOE_ROOM(c->copies, c->n_copies, c->cap_copies))
        c->copies[c->n_copies++] = (MoeExecCopy){to, from, row_bytes, n, index};
    else
        c->failed = true;
}

/* ---- whose rows ---- */

static int data_rank(const MoeExec *x, int rank) {
    return rank / x->plan->mesh.tp;
}

/* Rows of `segs` (V entries and an end) that data rank d's shards have in this micro-batch. */
static int64_t rows_of(const MoeExec *x, const int32_t *segs, int d, int64_t *out_first) {
    int run, n = moe_mesh_shard_run(&x->plan->mesh, x->plan->virtual_shards, x->parts, x->micro, d,
                                    &run);
    *out_first = segs[run];
    return segs[run + n] - segs[run];
}

static MoeStatus too_many(const MoeExec *x, const MoePlanComm *o, const char *what, int64_t have,
                          int64_t want) {
    return moe_error(MOE_E_INTERNAL, "rank %d: %s: %s: %lld rows, expected %lld", x->rank,
                     moe_plan_comm_op_name(o->op), what, (long long)have, (long long)want);
}

static const int32_t *table(const MoeExecProgram *g, int value) {
    return (const int32_t *)(const void *)g->values[value];
}

/* ---- the ops ---- */

static void all_gather(MoeExec *x, const MoeExecProgram *g, const MoePlanComm *o) {
    MoeExecComm *c = x->between;
    const MoeExecGroup *all = &c->groups[o->group];
    int64_t size = (int64_t)moe_plan_dtype_bytes(o->dtype);
    MoeSlice mine = moe_slice(o->elements, o->unit, all->n, all->self);
    char *in = g->values[o->in[0]], *out = g->values[o->out];
    for (int i = 0; i < all->n; i++) {
        MoeSlice theirs = moe_slice(o->elements, o->unit, all->n, i);
        for (int64_t l = 0; l < o->outer; l++) {
            char *from = in + size * l * mine.cap,
                 *to = out + size * (l * o->elements + theirs.first);
            if (i == all->self) {
                push_copy(c, to, from, size * mine.count, 1, NULL);
                continue;
            }
            moe_block_push(c, &c->sends, all->ranks[i], from, size * mine.count);
            moe_block_push(c, &c->recvs, all->ranks[i], to, size * theirs.count);
        }
    }
}

static MoeStatus all_gather_rows(MoeExec *x, const MoeExecProgram *g, const MoePlanComm *o) {
    MoeExecComm *c = x->between;
    const MoeExecGroup *all = &c->groups[o->group];
    const int32_t *segs = o->n_in == 2 ? table(g, o->in[1]) : NULL;
    char *in = g->values[o->in[0]], *out = g->values[o->out];
    int64_t first, mine = o->rows, room = g->plan->values[o->out].bytes / o->row_bytes;
    if (segs) {
        mine = rows_of(x, segs, data_rank(x, x->rank), &first);
        if (segs[x->plan->virtual_shards] > room)
            return too_many(x, o, "the result", segs[x->plan->virtual_shards], room);
    }
    for (int i = 0; i < all->n; i++) {
        int64_t n = o->rows, at = i * o->rows;
        if (segs)
            n = rows_of(x, segs, data_rank(x, all->ranks[i]), &at);
        char *to = out + at * o->row_bytes;
        if (i == all->self) {
            push_copy(c, to, in, n * o->row_bytes, n > 0, NULL);
            continue;
        }
        moe_block_push(c, &c->sends, all->ranks[i], in, mine * o->row_bytes);
        moe_block_push(c, &c->recvs, all->ranks[i], to, n * o->row_bytes);
    }
    return NULL;
}

/* Rows idx[send[q, *]] of x go to member q; what comes lies by chunk, then by source. A step may carry a chunk alone. */
static MoeStatus a2a_dispatch(MoeExec *x, const MoeExecProgram *g, const MoePlanComm *o) {
    MoeExecComm *c = x->between;
    const MoeExecGroup *all = &c->groups[o->group];
    const int32_t *send = table(g, o->in[1]), *idx = table(g, o->in[2]), *recv = table(g, o->in[3]);
    const int64_t V = x->plan->virtual_shards, rb = o->row_bytes, chunks = o->chunks;
    char *in = g->values[o->in[0]], *out = g->values[o->out];
    if (recv[chunks * V] > o->capacity)
        return too_many(x, o, "the result", recv[chunks * V], o->capacity);
    for (int i = 0; i < all->n; i++) {
        const int32_t *theirs = send + i * chunks;
        if (i != all->self)
            push_rows(c, all->ranks[i], in, rb, theirs[o->hi] - theirs[o->lo], idx + theirs[o->lo]);
        for (int64_t k = o->lo; k < o->hi; k++) {
            int64_t at, n = rows_of(x, recv + k * V, data_rank(x, all->ranks[i]), &at);
            if (i != all->self) {
                moe_block_push(c, &c->recvs, all->ranks[i], out + at * rb, n * rb);
                continue;
            }
            if (n != theirs[k + 1] - theirs[k])
                return too_many(x, o, "to itself", theirs[k + 1] - theirs[k], n);
            push_copy(c, out + at * rb, in, rb, n, idx + theirs[k]);
        }
    }
    return NULL;
}

/* Which expert is in each global slot, by the layer's map. */
static MoeStatus invert_place(MoeExec *x, const MoePlanComm *o, const int32_t *place) {
    int64_t n = o->slots * x->between->groups[o->group].n;
    for (int64_t i = 0; i < n; i++)
        x->between->slot_expert[i] = -1;
    for (int64_t e = 0; e < o->experts; e++) {
        if (place[e] < 0 || place[e] >= n || x->between->slot_expert[place[e]] >= 0)
            return moe_error(MOE_E_INTERNAL,
                             "rank %d: expert %lld's slot %d: not a free one of %lld", x->rank,
                             (long long)e, place[e], (long long)n);
        x->between->slot_expert[place[e]] = (int)e;
    }
    return NULL;
}

/* Slot by slot: rows of each source's shards go back to it; an expert's rows come to where home order has them. A step may carry
 * some slots alone. */
static MoeStatus a2a_combine(MoeExec *x, const MoeExecProgram *g, const MoePlanComm *o) {
    MoeExecComm *c = x->between;
    const MoeExecGroup *all = &c->groups[o->group];
    const int32_t *seg = table(g, o->in[1]), *home = table(g, o->in[o->n_in - 1]);
    const int64_t V = x->plan->virtual_shards, rb = o->row_bytes;
    char *in = g->values[o->in[0]], *out = g->values[o->out];
    int64_t room = g->plan->values[o->out].bytes / rb;
    bool by_slot = o->n_in == 3; /* home order is by global slot */
    if (!by_slot)
        MOE_TRY(invert_place(x, o, table(g, o->in[2])));
    if (home[o->experts * V] > room)
        return too_many(x, o, "the result", home[o->experts * V], room);
    for (int i = 0; i < all->n; i++)
        for (int64_t s = o->lo; s < o->hi; s++) {
            int64_t slot = i * o->slots + s, e = by_slot ? slot : c->slot_expert[slot];
            int64_t at, n = rows_of(x, seg + s * V, data_rank(x, all->ranks[i]), &at),
                        to = e < 0 ? 0 : home[e * V],
                        back = e < 0 ? 0 : home[(e + 1) * V] - home[e * V];
            if (i != all->self) {
                moe_block_push(c, &c->sends, all->ranks[i], in + at * rb, n * rb);
                moe_block_push(c, &c->recvs, all->ranks[i], out + to * rb, back * rb);
                continue;
            }
            if (n != back)
                return too_many(x, o, "to itself", n, back);
            push_copy(c, out + to * rb, in + at * rb, n * rb, n > 0, NULL);
        }
    return NULL;
}

MoeStatus moe_exec_op_blocks(MoeExec *x, const MoeExecProgram *g, const MoePlanComm *o,
                             char *stage) {
    switch (o->op) {
    case MOE_PLAN_ALL_GATHER:
        all_gather(x, g, o);
        return NULL;
    case MOE_PLAN_ALL_GATHER_ROWS:
        return all_gather_rows(x, g, o);
    case MOE_PLAN_REDUCE_SCATTER:
    case MOE_PLAN_ALL_REDUCE:
        moe_exec_sum_blocks(x, g, o, stage);
        return NULL;
    case MOE_PLAN_A2A_DISPATCH:
        return a2a_dispatch(x, g, o);
    case MOE_PLAN_A2A_COMBINE:
        return a2a_combine(x, g, o);
    case MOE_PLAN_COPY_EXPERTS:
    case MOE_PLAN_FOLD_COPIES:
        return moe_exec_copies_blocks(x, g, o, stage);
    case MOE_N_PLAN_COMM_OPS:
        break;
    }
    return moe_error(MOE_E_INTERNAL, "collective %d", (int)o->op);
}
