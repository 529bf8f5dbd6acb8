/* The analysis of a row group: row_plan.h says what it decides. In: a MoeGroup. Out: a MoeRowPlan,
 * with a key that covers all that the emitted code depends on. Example, softmax over [T, 64]: stage
 * 0: loop: row_max(x)      stage 1: loop: e = exp(x - top), row_sum(e)      stage 2: loop: y = e /
 * sum, with e kept in a row buffer. */
#include "codegen/row_plan.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include "base/assert.h"
#include "base/kernel_abi.h"
#include "ir/numbers.h"

#define CHEAP_OPS 3 /* a value of at most so many cheap ops is computed again instead of kept */

static int64_t lead_count(const MoeType *t) {
    int64_t n = 1;
    for (int d = 0; d + 1 < t->rank; d++)
        n *= t->dims[d].size;
    return n;
}

static bool is_local(MoeOpcode o) {
    return o == MOE_OP_TOPK || o == MOE_OP_TAKE || o == MOE_OP_PUT;
}
static bool is_reduce(MoeOpcode o) {
    return o == MOE_OP_ROW_SUM || o == MOE_OP_ROW_MAX;
}
static bool is_elementwise(MoeOpcode o) {
    return moe_op_info(o)->kind == MOE_KIND_EW;
}

const MoeType *moe_row_type(const MoeOp *op) {
    return is_elementwise(op->opcode) ? &op->results[0]->type : &op->operands[0]->type;
}

/* ---- values ---- */

int moe_row_find(const MoeRowPlan *p, const MoeValue *v) {
    for (int i = 0; i < p->n_values; i++)
        if (p->values[i].v == v)
            return i;
    return -1;
}

static int add_value(MoeRowPlan *p, const MoeValue *v, int def) {
    MoeRowValue *x = &p->values[p->n_values];
    *x = (MoeRowValue){.v = v,
                       .dtype = v->type.dtype,
                       .buf_in = -1,
                       .buf_out = -1,
                       .def = def,
                       .scratch = -1,
                       .last_read = -1};
    if (v->type.kind == MOE_TYPE_SEGS) {
        x->cls = MOE_ROW_SEG;
    } else {
        x->cols = moe_type_cols(&v->type);
        x->cls = x->cols == 1 ? MOE_ROW_SCALAR : MOE_ROW_VECTOR;
    }
    if (def < 0 && v->def && v->def->opcode == MOE_OP_CONST) {
        x->is_const = true;
        x->constant = moe_attr_f(v->def, "value");
    }
    bool one = v->type.kind == MOE_TYPE_TENSOR && moe_type_elements(&v->type) == 1;
    if (def < 0 && one && (v->type.rank == 0 || !v->type.dims[0].seg))
        x->cls = MOE_ROW_UNIFORM;
    return p->n_values++;
}

/* An elementwise result is uniform if all that it reads is. */
static bool all_uniform(const MoeRowPlan *p, const MoeRowOp *o) {
    for (int i = 0; i < o->n_in; i++)
        if (p->values[o->in[i]].cls != MOE_ROW_UNIFORM)
            return false;
    return true;
}

static void collect(MoeArena *a, MoeRowPlan *p, const MoeGroup *g) {
    int cap = (int)(g->n_inputs + g->n_outputs + g->n_ops * 4);
    p->values = MOE_NEW_N(a, MoeRowValue, cap);
    p->ops = MOE_NEW_N(a, MoeRowOp, g->n_ops);
    for (size_t i = 0; i < g->n_inputs; i++)
        add_value(p, g->inputs[i], -1);
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i];
        MoeRowOp *o = &p->ops[p->n_ops++];
        o->op = op;
        for (int k = 0; k < op->n_operands; k++) {
            int at = moe_row_find(p, op->operands[k]);
            if (at < 0) /* a group made by hand may leave out constants */
                at = add_value(p, op->operands[k], -1);
            if (p->values[at].cls == MOE_ROW_SEG)
                continue;
            MOE_ASSERT(o->n_in < 3, "row: %s has too many operands", moe_op_info(op->opcode)->name);
            o->in[o->n_in++] = at;
        }
        bool uniform = is_elementwise(op->opcode) && all_uniform(p, o) &&
                       moe_type_elements(&op->results[0]->type) == 1;
        o->out = add_value(p, op->results[0], (int)i);
        if (uniform)
            p->values[o->out].cls = MOE_ROW_UNIFORM;
        if (op->opcode == MOE_OP_COL_SUM)
            p->col_sums = true;
    }
}

/* ---- the row space ---- */

static void find_rows(MoeRowPlan *p) {
    const MoeType *best = NULL;
    for (int i = 0; i < p->n_ops; i++) {
        const MoeType *t = moe_row_type(p->ops[i].op);
        if (!best || lead_count(t) > lead_count(best) || (!moe_rows_seg(best) && moe_rows_seg(t)))
            best = t;
    }
    p->rows = lead_count(best);
    p->lead_rank = best->rank - 1;
    for (int d = 0; d < p->lead_rank; d++)
        p->lead[d] = best->dims[d].size;
    const MoeValue *seg = moe_rows_seg(best);
    p->seg = seg ? moe_row_find(p, seg) : -1;
    MOE_ASSERT(!seg || p->seg >= 0, "row: the rows' segs value is no input of the group");
}

void moe_row_tree_shape(const MoeRowPlan *p, int64_t *out_groups, int64_t *out_shards) {
    *out_groups = p->seg < 0 ? 1 : p->values[p->seg].v->type.groups;
    *out_shards = p->seg < 0 ? 1 : p->values[p->seg].v->type.shards;
}

MoeRowMatch moe_row_match(const MoeRowPlan *p, const MoeRowValue *v, int *shift) {
    const MoeType *t = &v->v->type;
    int lead = t->rank - 1, missing = p->lead_rank - lead;
    MOE_ASSERT(missing >= 0, "row: an operand has more dims than the group's rows");
    bool same = missing == 0, none = true;
    for (int d = 0; d < lead; d++) {
        same &= t->dims[d].seg || t->dims[d].size == p->lead[d + missing];
        none &= !t->dims[d].seg && t->dims[d].size == 1;
    }
    if (shift)
        *shift = missing;
    return same ? MOE_ROW_SAME : none ? MOE_ROW_FIRST : MOE_ROW_MIXED;
}

/* All values have the elements of one shape, or are uniform; all ops elementwise. */
static bool find_flat(MoeRowPlan *p) {
    const MoeRowValue *model = NULL;
    for (int i = 0; i < p->n_ops; i++)
        if (!is_elementwise(p->ops[i].op->opcode))
            return false;
    for (int i = 0; i < p->n_values; i++) {
        const MoeRowValue *x = &p->values[i];
        if (x->cls == MOE_ROW_UNIFORM || x->cls == MOE_ROW_SEG)
            continue;
        if (model && (x->cols != model->cols ||
                      moe_type_elements(&x->v->type) != moe_type_elements(&model->v->type) ||
                      moe_rows_seg(&x->v->type) != moe_rows_seg(&model->v->type)))
            return false;
        model = x;
    }
    p->flat_cols = model ? model->cols : 0;
    p->flat_elements = model ? moe_type_elements(&model->v->type) : 0;
    return true;
}

/* ---- stages ---- */

/* The first stage in which `reader` may use x: within the loop that computes it only from that
 * loop. */
static int ready(const MoeRowValue *x, bool reader_in_loop) {
    return x->in_loop && !reader_in_loop ? x->stage + 1 : x->stage;
}

static void stage_op(MoeRowPlan *p, MoeRowOp *o) {
    MoeOpcode code = o->op->opcode;
    MoeRowValue *out = &p->values[o->out];
    const MoeRowValue *first = &p->values[o->in[0]];
    bool vector_in = first->cls == MOE_ROW_VECTOR;
    o->in_loop = is_elementwise(code) ? out->cls == MOE_ROW_VECTOR : !is_local(code) && vector_in;
    o->cols = is_elementwise(code) ? out->cols : first->cols;
    for (int i = 0; i < o->n_in; i++) {
        int r = ready(&p->values[o->in[i]], o->in_loop);
        if (r > o->stage)
            o->stage = r;
    }
    if (is_elementwise(code)) {
        out->in_loop = o->in_loop;
        out->stage = o->stage;
    } else if (is_local(code)) {
        out->stage = o->stage;
    } else if (is_reduce(code)) {
        out->cls = MOE_ROW_SCALAR;
        out->stage = o->in_loop ? o->stage + 1 : o->stage;
    }
}

/* Moves elementwise ops to the first stage that reads them, where that keeps no more values than
 * before. */
static void sink(MoeRowPlan *p) {
    for (int i = p->n_ops - 1; i >= 0; i--) {
        MoeRowOp *o = &p->ops[i];
        if (!is_elementwise(o->op->opcode) || !o->in_loop)
            continue;
        int first_use = MOE_ROW_READ_LATE, kept_operands = 0;
        for (int k = i + 1; k < p->n_ops; k++)
            for (int n = 0; n < p->ops[k].n_in; n++)
                if (p->ops[k].in[n] == o->out) {
                    int use = p->ops[k].in_loop ? p->ops[k].stage : p->ops[k].stage - 1;
                    first_use = use < first_use ? use : first_use;
                }
        for (int n = 0; n < o->n_in; n++)
            kept_operands += p->values[o->in[n]].in_loop;
        if (first_use != MOE_ROW_READ_LATE && first_use > o->stage && kept_operands <= 1)
            o->stage = p->values[o->out].stage = first_use;
    }
}

/* ---- what is kept ---- */

static bool is_cheap(MoeOpcode o) {
    return o == MOE_OP_ADD || o == MOE_OP_SUB || o == MOE_OP_MUL || o == MOE_OP_NEG ||
           o == MOE_OP_MAX || o == MOE_OP_MIN || o == MOE_OP_BROADCAST || o == MOE_OP_CONVERT;
}

/* How many ops it takes to have vector x again in a later loop; large if it must be kept. */
static int cost_again(const MoeRowPlan *p, int at) {
    const MoeRowValue *x = &p->values[at];
    if (!x->in_loop || x->kept)
        return 0;
    const MoeRowOp *o = &p->ops[x->def];
    if (!is_cheap(o->op->opcode))
        return 1000;
    int cost = o->op->opcode == MOE_OP_BROADCAST ? 0 : 1;
    for (int i = 0; i < o->n_in; i++)
        cost += cost_again(p, o->in[i]);
    return cost;
}

static void read_at(MoeRowPlan *p, int at, int stage) {
    MoeRowValue *x = &p->values[at];
    if (x->last_read < stage)
        x->last_read = stage;
    if (x->def >= 0 && x->in_loop && x->stage < stage &&
        !x->kept) { /* computed again: its operands are read there */
        const MoeRowOp *o = &p->ops[x->def];
        for (int i = 0; i < o->n_in; i++)
            read_at(p, o->in[i], stage);
    }
}

/* Whether one more value of so many columns may be kept beside those that are. */
static bool room_for(const MoeRowPlan *p, const MoeRowRules *rules, int64_t cols) {
    int64_t all = cols;
    int n = 1;
    for (int i = 0; i < p->n_values; i++)
        if (p->values[i].kept && p->values[i].in_loop) {
            all += p->values[i].cols;
            n++;
        }
    return (!rules->kept_values || n <= rules->kept_values) &&
           (!rules->kept_cols || all <= rules->kept_cols);
}

static void keep(MoeRowPlan *p, const MoeRowRules *rules) {
    for (int i = 0; i < p->n_ops; i++) {
        const MoeRowOp *o = &p->ops[i];
        bool local = is_local(o->op->opcode);
        for (int n = 0; n < o->n_in; n++) {
            MoeRowValue *x = &p->values[o->in[n]];
            if (x->def < 0 || x->kept)
                continue;
            x->kept = local || (x->in_loop && x->stage < o->stage &&
                                cost_again(p, o->in[n]) > CHEAP_OPS && room_for(p, rules, x->cols));
        }
        if (local)
            p->values[o->out].kept = true;
    }
    for (int i = 0; i < p->n_ops; i++)
        for (int n = 0; n < p->ops[i].n_in; n++)
            read_at(p, p->ops[i].in[n],
                    is_local(p->ops[i].op->opcode) ? MOE_ROW_READ_LATE : p->ops[i].stage);
}

/* ---- buffers and scratch ---- */

static int64_t round64(int64_t n) {
    return (n + 63) / 64 * 64;
}

int64_t moe_row_workspace_for(const MoeRowPlan *p, int64_t rows) {
    int64_t groups, shards;
    moe_row_tree_shape(p, &groups, &shards);
    int64_t leaves = (rows + MOE_LEAF_ROWS - 1) / MOE_LEAF_ROWS + groups * shards;
    return p->slot_bytes ? round64(leaves * p->slot_bytes + MOE_BUFFER_SLACK) : 0;
}

static void place(MoeArena *a, MoeRowPlan *p, const MoeGroup *g, int lanes) {
    p->refs = MOE_NEW_N(a, MoeBufRef, p->n_values + p->n_ops + 1);
    for (int i = 0; i < p->n_values; i++) {
        MoeRowValue *x = &p->values[i];
        if (x->def < 0 && !x->is_const) {
            x->buf_in = p->n_bufs;
            p->refs[p->n_bufs++] = moe_ref(x->v);
        }
    }
    for (size_t i = 0; i < g->n_outputs; i++) {
        int at = moe_row_find(p, g->outputs[i]);
        MOE_ASSERT(at >= 0, "row: an output is not defined in the group");
        MoeRowValue *x = &p->values[at];
        if (x->v->def->opcode == MOE_OP_COL_SUM)
            continue; /* written by the second launch */
        x->buf_out = p->n_bufs;
        p->refs[p->n_bufs++] = moe_ref(x->v);
        p->uniform_outputs |= x->cls == MOE_ROW_UNIFORM;
    }
    for (int i = 0; i < p->n_values; i++) {
        MoeRowValue *x = &p->values[i];
        /* A row that ends inside a vector is kept whole in the scratch: reading back what a masked
         * store wrote is slow. */
        bool ragged_end = x->in_loop && x->cols % lanes != 0;
        if (x->kept && (x->buf_out < 0 || x->cls == MOE_ROW_UNIFORM || ragged_end)) {
            x->scratch = p->scratch;
            p->scratch += round64(4 * (x->cols + lanes));
        }
    }
    for (int i = 0; i < p->n_ops; i++)
        if (p->ops[i].op->opcode == MOE_OP_COL_SUM) {
            p->ops[i].partial = p->slot_bytes;
            p->slot_bytes += p->ops[i].cols * 4;
        }
    p->workspace = moe_row_workspace_for(p, p->rows);
    if (p->workspace)
        p->refs[p->n_bufs++] = moe_ref_work(0);
}

/* ---- the key ---- */

static void key_type(MoeStr *s, const MoeType *t) {
    if (t->kind == MOE_TYPE_SEGS) {
        moe_str_printf(s, "s%lldx%lld", (long long)t->groups, (long long)t->shards);
        return;
    }
    moe_str_append(s, moe_dtype_name(t->dtype));
    for (int d = 0; d < t->rank; d++)
        if (t->dims[d].seg)
            moe_str_append(s, ",r");
        else
            moe_str_printf(s, ",%lld", (long long)t->dims[d].size);
}

static void make_key(MoeArena *a, MoeRowPlan *p) {
    MoeStr s = {0};
    moe_str_printf(&s, "row:%s seg%d", p->flat ? "flat" : "rows", p->seg);
    for (int i = 0; i < p->n_values; i++) {
        const MoeRowValue *x = &p->values[i];
        moe_str_printf(&s, "|%d:", i);
        key_type(&s, &x->v->type);
        if (x->is_const)
            moe_str_printf(&s, "=%a", x->constant);
        moe_str_printf(&s, " i%d o%d", x->buf_in, x->buf_out);
        if (x->def >= 0) {
            const MoeRowOp *o = &p->ops[x->def];
            moe_str_printf(&s, " %s", moe_op_info(o->op->opcode)->name);
            for (int n = 0; n < o->n_in; n++)
                moe_str_printf(&s, " %d", o->in[n]);
        }
    }
    p->key = moe_arena_strdup(a, moe_str_c(&s));
    moe_str_free(&s);
}

/* Narrow rows get narrow vectors: whole-vector loads and masked stores of neighbouring rows would
 * overlap and stall each other. The bits are the same: the lanes left out hold the neutral element,
 * and the fold over lanes takes them first. */
static int choose_lanes(const MoeRowPlan *p, int lanes) {
    int64_t widest = 1;
    for (int i = 0; i < p->n_ops; i++)
        if (p->ops[i].in_loop && p->ops[i].cols > widest)
            widest = p->ops[i].cols;
    while (lanes > 4 && lanes / 2 >= widest)
        lanes /= 2;
    return lanes;
}

MoeRowPlan *moe_row_plan(MoeArena *arena, const MoeGroup *g, const MoeRowRules *rules) {
    MoeRowPlan *p = MOE_NEW(arena, MoeRowPlan);
    collect(arena, p, g);
    find_rows(p);
    p->flat = find_flat(p);
    if (!p->flat) {
        for (int i = 0; i < p->n_ops; i++)
            stage_op(p, &p->ops[i]);
        sink(p);
        keep(p, rules);
        for (int i = 0; i < p->n_ops; i++)
            if (p->ops[i].stage >= p->n_stages)
                p->n_stages = p->ops[i].stage + 1;
    }
    p->lanes = p->flat ? rules->lanes : choose_lanes(p, rules->lanes);
    place(arena, p, g, p->lanes);
    make_key(arena, p);
    return p;
}
