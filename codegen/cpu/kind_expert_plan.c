/* send_plan and expert_plan (docs/RANKS.md): integers only, one task each, linear in the choices.
 *
 * Both walk the tokens twice around a counting sort: count, then deal out rows. Experts are found
 * through `place`, expert -> global slot, or the choices are global slots themselves: global slot g is slot g % slots of rank g / slots, in chunk
 * (g % slots) / ceil(slots / chunks).
 *
 *   send_plan    a token goes to each rank that any of its choices names, once: `first[rank]` in the
 *                scratch memory holds the first chunk wanted there, until that rank is dealt with
 *   expert_plan  two sorts at once: tokens with an expert here by (first chunk, shard) make the
 *                received rows, their choices here by (slot, shard) the expert rows. Tokens are walked in
 *                order, so an expert's rows ascend by token although received rows are ordered by
 *                chunk first */
#include "codegen/cpu/kind_expert_plan.h"

#include "base/assert.h"
#include "codegen/cpu/count_sort.h"
#include "codegen/cpu/live.h"

typedef struct {
    MoeEmit *e;
    const MoeOp *op;
    int64_t k, slots, chunks, shards;
    int ids, place, tok; /* buffers; place -1: ids are global slots; tok -1: static rows, one shard */
    bool deal;           /* the second walk */
    /* send_plan */
    int send, idx; /* buffers; -1: not wanted */
    int64_t ranks;
    MoeVal first, to_ranks; /* i32[ranks]; the table of the walk */
    /* expert_plan */
    int ep_rank, recv, seg, src, inv;
    MoeVal base, arrived, rows; /* first global slot here; tables of the walk */
} Plan;

/* For each shard v and each token t of it. */
static void each_token(Plan *p, void (*body)(Plan *p, MoeVal t, MoeVal v)) {
    MoeEmit *e = p->e;
    MoeVal zero = moe_k64(e, 0), one = moe_k64(e, 1);
    MoeVal lo = zero, hi = moe_k64(e, p->op->operands[0]->type.dims[0].size);
    MoeLoop shards, tokens;
    moe_loop_begin(e, &shards, zero, moe_k64(e, p->shards), one);
    if (p->tok >= 0) {
        lo = moe_load_index(e, moe_emit_buf(e, p->tok), shards.index);
        hi = moe_load_index(e, moe_emit_buf(e, p->tok), moe_iadd(e, shards.index, one));
    }
    moe_loop_begin(e, &tokens, lo, hi, one);
    body(p, tokens.index, shards.index);
    moe_loop_end(e, &tokens);
    moe_loop_end(e, &shards);
}

static void choices_begin(Plan *p, MoeLoop *l) {
    moe_loop_begin(p->e, l, moe_k64(p->e, 0), moe_k64(p->e, p->k), moe_k64(p->e, 1));
}

/* The global slot of choice j of token t. */
static MoeVal global_slot(Plan *p, MoeVal t, MoeVal j) {
    MoeEmit *e = p->e;
    MoeVal at = moe_iadd(e, moe_imul(e, t, moe_k64(e, p->k)), j);
    if (p->place < 0)
        return moe_load_index(e, moe_emit_buf(e, p->ids), at);
    return moe_load_index(e, moe_emit_buf(e, p->place),
                          moe_load_index(e, moe_emit_buf(e, p->ids), at));
}

static MoeVal chunk_of(Plan *p, MoeVal slot) {
    return moe_idiv(p->e, slot, moe_k64(p->e, (p->slots + p->chunks - 1) / p->chunks));
}

/* i1: 0 <= i < n. */
static MoeVal inside(MoeEmit *e, MoeVal i, int64_t n) {
    return LLVMBuildICmp(e->b, LLVMIntULT, i, moe_k64(e, n), "");
}

/* ---- send_plan ---- */

static void note_ranks(Plan *p, MoeVal t) {
    MoeEmit *e = p->e;
    MoeLoop l;
    choices_begin(p, &l);
    MoeVal g = global_slot(p, t, l.index), slots = moe_k64(e, p->slots);
    MoeVal rank = moe_idiv(e, g, slots), chunk = chunk_of(p, moe_irem(e, g, slots));
    moe_store_i32(e, moe_imin(e, moe_load_index(e, p->first, rank), chunk), p->first, rank);
    moe_loop_end(e, &l);
}

static void send_token(Plan *p, MoeVal t, MoeVal v) {
    MoeEmit *e = p->e;
    (void)v;
    note_ranks(p, t);
    MoeLoop l;
    choices_begin(p, &l);
    MoeVal rank = moe_idiv(e, global_slot(p, t, l.index), moe_k64(e, p->slots));
    MoeVal chunk = moe_load_index(e, p->first, rank);
    MoeIf wanted;
    moe_if_begin(e, &wanted, inside(e, chunk, p->chunks));
    MoeVal cell = moe_iadd(e, moe_imul(e, rank, moe_k64(e, p->chunks)), chunk);
    if (p->deal)
        moe_store_i32(e, t, moe_emit_buf(e, p->idx), moe_count_deal(e, p->to_ranks, cell));
    else
        moe_count_add(e, p->to_ranks, cell);
    moe_store_i32(e, moe_k64(e, p->chunks), p->first, rank); /* once */
    moe_if_end(e, &wanted);
    moe_loop_end(e, &l);
}

/* Scratch: next rows, first, then the table where it is not wanted outside. */
static void emit_send_plan(Plan *p) {
    MoeEmit *e = p->e;
    int64_t cells = p->ranks * p->chunks;
    MoeVal next = e->scratch;
    p->first = moe_at(e, e->scratch, moe_k64(e, cells), 4);
    MoeVal send = p->send >= 0 ? moe_emit_buf(e, p->send)
                               : moe_at(e, e->scratch, moe_k64(e, cells + p->ranks), 4);
    MoeLoop l;
    moe_loop_begin(e, &l, moe_k64(e, 0), moe_k64(e, p->ranks), moe_k64(e, 1));
    moe_store_i32(e, moe_k64(e, p->chunks), p->first, l.index);
    moe_loop_end(e, &l);
    moe_count_clear(e, send, cells);
    p->to_ranks = send;
    each_token(p, send_token);
    moe_count_scan(e, send, next, cells);
    p->to_ranks = next;
    p->deal = true;
    if (p->idx >= 0)
        each_token(p, send_token);
}

/* ---- expert_plan ---- */

static MoeVal slot_here(Plan *p, MoeVal t, MoeVal j) {
    return moe_isub(p->e, global_slot(p, t, j), p->base);
}

/* The cell of (group, v) in a table of V shards. */
static MoeVal cell_of(Plan *p, MoeVal group, MoeVal v) {
    return moe_iadd(p->e, moe_imul(p->e, group, moe_k64(p->e, p->shards)), v);
}

/* The first chunk that wants token t; `chunks` if none does. Counts its rows on the first walk. */
static MoeVal first_chunk(Plan *p, MoeVal t, MoeVal v) {
    MoeEmit *e = p->e;
    MoeVal none = moe_k64(e, p->chunks), first = none;
    MoeCarryLoop l;
    moe_carry_begin(e, &l, moe_k64(e, 0), moe_k64(e, p->k), moe_k64(e, 1), &first, 1);
    MoeVal slot = slot_here(p, t, l.l.index), here = inside(e, slot, p->slots);
    if (!p->deal) {
        MoeIf row;
        moe_if_begin(e, &row, here);
        moe_count_add(e, p->rows, cell_of(p, slot, v));
        moe_if_end(e, &row);
    }
    first = moe_imin(e, first, LLVMBuildSelect(e->b, here, chunk_of(p, slot), none, ""));
    moe_carry_end(e, &l, &first);
    return first;
}

/* Received row u is token t: its choices get their rows. */
static void deal_choices(Plan *p, MoeVal t, MoeVal v, MoeVal u) {
    MoeEmit *e = p->e;
    MoeLoop l;
    choices_begin(p, &l);
    MoeVal at = moe_iadd(e, moe_imul(e, u, moe_k64(e, p->k)), l.index);
    MoeVal slot = slot_here(p, t, l.index);
    MoeIf here;
    moe_if_begin(e, &here, inside(e, slot, p->slots));
    MoeVal r = moe_count_deal(e, p->rows, cell_of(p, slot, v));
    if (p->src >= 0)
        moe_store_i32(e, at, moe_emit_buf(e, p->src), r);
    if (p->inv >= 0)
        moe_store_i32(e, r, moe_emit_buf(e, p->inv), at);
    moe_if_else(e, &here);
    if (p->inv >= 0)
        moe_store_i32(e, moe_k64(e, -1), moe_emit_buf(e, p->inv), at);
    moe_if_end(e, &here);
    moe_loop_end(e, &l);
}

static void receive_token(Plan *p, MoeVal t, MoeVal v) {
    MoeEmit *e = p->e;
    MoeVal chunk = first_chunk(p, t, v), cell = cell_of(p, chunk, v);
    MoeIf wanted;
    moe_if_begin(e, &wanted, inside(e, chunk, p->chunks));
    if (p->deal)
        deal_choices(p, t, v, moe_count_deal(e, p->arrived, cell));
    else
        moe_count_add(e, p->arrived, cell);
    moe_if_end(e, &wanted);
}

/* Scratch: next received rows, next expert rows, then the tables that are not wanted outside. */
static void emit_expert_plan(Plan *p) {
    MoeEmit *e = p->e;
    int64_t chunk_cells = p->chunks * p->shards, slot_cells = p->slots * p->shards;
    int64_t at = chunk_cells + slot_cells;
    MoeVal next = e->scratch, next_rows = moe_at(e, e->scratch, moe_k64(e, chunk_cells), 4);
    p->arrived = p->recv >= 0 ? moe_emit_buf(e, p->recv) : moe_at(e, e->scratch, moe_k64(e, at), 4);
    at += chunk_cells + 1;
    p->rows = p->seg >= 0 ? moe_emit_buf(e, p->seg) : moe_at(e, e->scratch, moe_k64(e, at), 4);
    p->base = moe_imul(e, moe_load_index(e, moe_emit_buf(e, p->ep_rank), moe_k64(e, 0)),
                       moe_k64(e, p->slots));
    moe_count_clear(e, p->arrived, chunk_cells);
    moe_count_clear(e, p->rows, slot_cells);
    each_token(p, receive_token);
    moe_count_scan(e, p->arrived, next, chunk_cells);
    moe_count_scan(e, p->rows, next_rows, slot_cells);
    p->arrived = next;
    p->rows = next_rows;
    p->deal = true;
    if (p->src >= 0 || p->inv >= 0)
        each_token(p, receive_token);
}

/* ---- lowering ---- */

static Plan plan_of(const MoeOp *op, bool place, MoeBufs *bufs) {
    const MoeType *ids = &op->operands[0]->type;
    const MoeValue *tok = moe_rows_seg(ids);
    Plan p = {.op = op,
              .k = ids->dims[1].size,
              .slots = moe_attr_i(op, "slots"),
              .chunks = moe_attr_i(op, "chunks"),
              .shards = tok ? tok->type.groups * tok->type.shards : 1};
    MOE_ASSERT(p.chunks >= 1 && p.chunks <= p.slots, "%s: %lld slots in %lld chunks",
               moe_op_info(op->opcode)->name, (long long)p.slots, (long long)p.chunks);
    p.ids = moe_bufs_add(bufs, op->operands[0]);
    p.place = place ? moe_bufs_add(bufs, op->operands[1]) : -1;
    p.tok = moe_bufs_add_seg(bufs, ids);
    return p;
}

static void launch(MoeCpuTarget *t, Plan *p, MoeBufs *bufs, void (*emit)(Plan *p),
                   MoeLowered *out) {
    const char *what = moe_op_info(p->op->opcode)->name, *name;
    MoeStr key = {0};
    MoeEmit e;
    moe_str_printf(&key, "%s slots=%lld chunks=%lld ranks=%lld out=%d,%d,%d,%d,%d,%d", what,
                   (long long)p->slots, (long long)p->chunks, (long long)p->ranks, p->send, p->idx,
                   p->recv, p->seg, p->src, p->inv);
    if (p->place < 0)
        moe_str_append(&key, " by slots");
    moe_live_key(&key, &p->op->operands[0]->type);
    if (moe_emit_begin(t, moe_str_c(&key), what, &e, &name)) {
        p->e = &e;
        moe_emit_tasks_body(&e);
        moe_emit_return(&e, moe_k64(&e, 1));
        moe_emit_kernel_body(&e);
        emit(p);
        moe_emit_end(&e);
    }
    moe_str_free(&key);
    moe_cpu_launch(out, name, bufs->refs, (size_t)bufs->n);
}

MoeStatus moe_cpu_send_plan_lower(MoeCpuTarget *t, const MoeGroup *g, MoeLowered *out) {
    MoeBufs bufs = {.n = 0};
    Plan p = plan_of(g->ops[0], g->ops[0]->n_operands == 2, &bufs);
    p.ranks = moe_attr_i(p.op, "ranks");
    p.send = moe_bufs_add_output(&bufs, g, 0);
    p.idx = moe_bufs_add_output(&bufs, g, 1);
    p.recv = p.seg = p.src = p.inv = -1;
    moe_cpu_need_scratch(out, (2 * p.ranks * p.chunks + p.ranks + 1) * 4);
    launch(t, &p, &bufs, emit_send_plan, out);
    return NULL;
}

MoeStatus moe_cpu_expert_plan_lower(MoeCpuTarget *t, const MoeGroup *g, MoeLowered *out) {
    MoeBufs bufs = {.n = 0};
    Plan p = plan_of(g->ops[0], g->ops[0]->n_operands == 3, &bufs);
    p.ep_rank = moe_bufs_add(&bufs, p.op->operands[p.op->n_operands - 1]);
    p.recv = moe_bufs_add_output(&bufs, g, 0);
    p.seg = moe_bufs_add_output(&bufs, g, 1);
    p.src = moe_bufs_add_output(&bufs, g, 2);
    p.inv = moe_bufs_add_output(&bufs, g, 3);
    p.send = p.idx = -1;
    moe_cpu_need_scratch(out, (2 * (p.chunks + p.slots) * p.shards + 2) * 4);
    launch(t, &p, &bufs, emit_expert_plan, out);
    return NULL;
}
