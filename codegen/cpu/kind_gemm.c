/* Matmul groups: {[dispatch,] matmul [, a second matmul of the same rows], elementwise tail}.
 *
 *   %xs = dispatch %x, %src, %inv          the row pointers come from src
 *   %g = matmul %xs, %w1                   one block of rows and columns at a time,
 *   %u = matmul %xs, %w3                   both products of it,
 *   %y = mul (mul %g, sigmoid %g), %u      then the tail on it while it is in the cache
 *
 * Launches: one packing each right operand into the workspace, then the product (gemm.h). Tail
 * values are tiles [T,n], row scalars [T,1], column vectors [n], or uniform [1]; each is computed
 * at its own level, as vectors. The bits are those of the ops run one by one: every op of the tail
 * is one rounding per element either way. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/assert.h"
#include "base/kernel_abi.h"
#include "codegen/cpu/gemm.h"

#define MAX_OPS    64
#define MAX_VALUES 128

#define STREAM_FROM ((int64_t)16 << 20) /* bytes of an output that no cache keeps */

typedef enum { LEVEL_UNIFORM, LEVEL_ROW, LEVEL_COLUMN, LEVEL_TILE, LEVEL_NONE } Level;

typedef struct {
    const MoeValue *v;
    Level level;
    int buf_in, buf_out; /* kernel buffers, or -1 */
    int product;         /* which matmul makes it, or -1 */
    MoeVal now;          /* while emitting: the vector at the current place, or NULL */
} TailValue;

typedef struct {
    const MoeOp *dispatch, *product[2], *tail[MAX_OPS];
    int n_products, n_tail;
    TailValue values[MAX_VALUES];
    int n_values;
    int64_t n;
    /* while emitting */
    MoeVal row, col, mask, panel_col;
    bool streams; /* outputs go past the caches */
} GemmGroup;

static bool is_ew(const MoeOp *op) {
    return moe_op_info(op->opcode)->kind == MOE_KIND_EW;
}

/* ---- what a group may hold ---- */

static bool same_dim(const MoeDim *a, const MoeDim *b) {
    return a->size == b->size && a->seg == b->seg;
}

/* What a value of type t is beside a product of type `tile`. */
static Level level_of(const MoeType *t, const MoeType *tile) {
    if (t->kind != MOE_TYPE_TENSOR)
        return LEVEL_NONE;
    bool rows = t->rank == 2 && same_dim(&t->dims[0], &tile->dims[0]);
    if (rows && t->dims[1].size == tile->dims[1].size)
        return LEVEL_TILE;
    if (rows && t->dims[1].size == 1)
        return LEVEL_ROW;
    if (!t->dims[0].seg && moe_type_elements(t) == 1)
        return LEVEL_UNIFORM;
    bool one_row = t->rank == 1 || (t->rank == 2 && t->dims[0].size == 1 && !t->dims[0].seg);
    return one_row && moe_type_cols(t) == tile->dims[1].size ? LEVEL_COLUMN : LEVEL_NONE;
}

static bool tail_op_fits(const MoeOp *op, const MoeType *tile) {
    if (!is_ew(op))
        return false;
    for (int i = 0; i < op->n_operands; i++) {
        const MoeType *t = &op->operands[i]->type;
        if (op->opcode == MOE_OP_BROADCAST && i == 1)
            continue;
        if (level_of(t, tile) == LEVEL_NONE ||
            (t->dtype == MOE_I32 && op->opcode != MOE_OP_CONVERT))
            return false;
    }
    Level level = level_of(&op->results[0]->type, tile);
    return op->results[0]->type.dtype != MOE_I32 &&
           (level == LEVEL_TILE || level == LEVEL_ROW || level == LEVEL_UNIFORM);
}

static bool same_product(const MoeOp *a, const MoeOp *b) {
    return a->operands[0] == b->operands[0] && moe_attr_i(a, "tb") == moe_attr_i(b, "tb") &&
           moe_attr_i(a, "grouped") == moe_attr_i(b, "grouped") &&
           moe_type_equal(&a->results[0]->type, &b->results[0]->type);
}

/* Sorts ops into gg; false if they are no matmul group (a dispatch alone may become one). */
static bool analyse(MoeOp *const *ops, size_t n_ops, const MoeOp *more, GemmGroup *gg) {
    memset(gg, 0, sizeof *gg);
    if (n_ops + 1 > MAX_OPS)
        return false;
    for (size_t i = 0; i < n_ops + (more ? 1 : 0); i++) {
        const MoeOp *op = i < n_ops ? ops[i] : more;
        if (op->opcode == MOE_OP_DISPATCH) {
            if (gg->dispatch || gg->n_products || gg->n_tail)
                return false;
            gg->dispatch = op;
        } else if (op->opcode == MOE_OP_MATMUL) {
            if (gg->n_products == 2 || gg->n_tail ||
                (gg->n_products && !same_product(gg->product[0], op)) ||
                (gg->dispatch && op->operands[0] != gg->dispatch->results[0]))
                return false;
            for (int k = 0; k < gg->n_products; k++) /* b made in the group: no */
                if (op->operands[1] == gg->product[k]->results[0])
                    return false;
            if (op->operands[1] == op->operands[0] && gg->dispatch)
                return false;
            gg->product[gg->n_products++] = op;
        } else {
            if (!gg->n_products || !tail_op_fits(op, &gg->product[0]->results[0]->type))
                return false;
            for (int k = 0; k < op->n_operands; k++)
                if (gg->dispatch && op->operands[k] == gg->dispatch->results[0])
                    return false;
            gg->tail[gg->n_tail++] = op;
        }
    }
    return true;
}

bool moe_cpu_gemm_joins(MoeOp *const *ops, size_t n_ops, const MoeOp *op) {
    GemmGroup gg;
    return analyse(ops, n_ops, op, &gg) && gg.n_products > 0;
}

bool moe_cpu_gemm_can_alias(const MoeGroup *g, const MoeValue *input, const MoeValue *output) {
    if (!moe_type_same_shape(&input->type, &output->type) ||
        moe_dtype_bytes(input->type.dtype) != moe_dtype_bytes(output->type.dtype))
        return false;
    GemmGroup gg;
    if (!analyse(g->ops, g->n_ops, NULL, &gg) || !gg.n_products || !gg.n_tail)
        return false;
    const MoeType *tile = &gg.product[0]->results[0]->type;
    /* The tail reads an element of a tile before it writes the one at its place, and only there. */
    if (level_of(&output->type, tile) != LEVEL_TILE || level_of(&input->type, tile) != LEVEL_TILE)
        return false;
    for (size_t i = 0; i < g->n_ops; i++)
        for (int k = 0; k < g->ops[i]->n_operands && !is_ew(g->ops[i]); k++)
            if (g->ops[i]->operands[k] == input)
                return false;
    return true;
}

/* ---- the tail ---- */

static TailValue *find(GemmGroup *gg, const MoeValue *v) {
    for (int i = 0; i < gg->n_values; i++)
        if (gg->values[i].v == v)
            return &gg->values[i];
    return NULL;
}

static TailValue *add_value(GemmGroup *gg, const MoeValue *v) {
    TailValue *x = find(gg, v);
    if (x)
        return x;
    MOE_ASSERT(gg->n_values < MAX_VALUES, "gemm: the tail has too many values");
    x = &gg->values[gg->n_values++];
    *x = (TailValue){.v = v, .buf_in = -1, .buf_out = -1, .product = -1};
    x->level = level_of(&v->type, &gg->product[0]->results[0]->type);
    return x;
}

static MoeVal load_at(MoeEmit *e, GemmGroup *gg, const TailValue *x) {
    MoeDtype d = x->v->type.dtype;
    MoeVal p = moe_emit_buf(e, x->buf_in);
    switch (x->level) {
    case LEVEL_UNIFORM:
        return moe_splat(e, moe_sload(e, d, p, moe_k64(e, 0)));
    case LEVEL_ROW:
        return moe_splat(e, moe_sload(e, d, p, gg->row));
    case LEVEL_COLUMN:
        return moe_vload(e, d, p, gg->col, gg->mask);
    case LEVEL_TILE:
        return moe_vload(e, d, p, moe_iadd(e, moe_imul(e, gg->row, moe_k64(e, gg->n)), gg->col),
                         gg->mask);
    case LEVEL_NONE:
        break;
    }
    MOE_ASSERT(false, "gemm: a tail value has no level");
}

static const MoeOp *constant_of(const MoeValue *v) {
    return v->def && v->def->opcode == MOE_OP_CONST ? v->def : NULL;
}

/* Whether f32 tiles go past the caches, which saves reading the lines they replace: outputs that
 * the caches cannot hold until they are read, in whole lines, none of them over an input. */
static bool should_stream(const MoeCpuTarget *t, const GemmGroup *gg, const MoeGemm *g) {
    int64_t line = MOE_BUFFER_ALIGN / 4;
    if (t->isa.lanes != line || g->n % line || g->rows.expected * g->n * 4 < STREAM_FROM)
        return false;
    for (int i = 0; i < gg->n_values; i++)
        if (gg->values[i].level == LEVEL_TILE && gg->values[i].buf_in >= 0)
            return false;
    return true;
}

static void store_past_caches(MoeEmit *e, MoeVal v, MoeVal p, MoeVal index) {
    MoeVal store = LLVMBuildStore(e->b, v, moe_at(e, p, index, 4));
    LLVMSetAlignment(store, MOE_BUFFER_ALIGN);
    LLVMMetadataRef yes = LLVMValueAsMetadata(moe_k32(e, 1));
    LLVMSetMetadata(store, LLVMGetMDKindIDInContext(e->c, "nontemporal", 11),
                    LLVMMetadataAsValue(e->c, LLVMMDNodeInContext2(e->c, &yes, 1)));
}

/* Loads what of this level comes from outside, computes the ops of this level, stores their
 * outputs. All loads of tiles come first: an output may lie in the memory of an input. */
static void emit_level(MoeEmit *e, GemmGroup *gg, Level level) {
    for (int i = 0; i < gg->n_values; i++) {
        TailValue *x = &gg->values[i];
        bool now = x->level == level || (level == LEVEL_TILE && x->level == LEVEL_COLUMN);
        if (now && constant_of(x->v))
            x->now = moe_vconst(e, moe_attr_f(constant_of(x->v), "value"));
        else if (now && x->buf_in >= 0)
            x->now = load_at(e, gg, x);
    }
    for (int i = 0; i < gg->n_tail; i++) {
        const MoeOp *op = gg->tail[i];
        TailValue *r = find(gg, op->results[0]);
        if (r->level != level)
            continue;
        MoeVal in[2] = {NULL, NULL};
        int n_in = op->opcode == MOE_OP_BROADCAST ? 1 : op->n_operands;
        for (int k = 0; k < n_in; k++)
            in[k] = find(gg, op->operands[k])->now;
        r->now = op->opcode == MOE_OP_BROADCAST ? in[0] : moe_math_ew(e, op, in);
    }
    for (int i = 0; i < gg->n_values; i++) {
        TailValue *x = &gg->values[i];
        if (x->level != level || x->buf_out < 0)
            continue;
        MoeDtype d = x->v->type.dtype;
        MoeVal p = moe_emit_buf(e, x->buf_out);
        if (level == LEVEL_TILE) {
            MoeVal at = moe_iadd(e, moe_imul(e, gg->row, moe_k64(e, gg->n)), gg->col);
            if (gg->streams && d == MOE_F32)
                store_past_caches(e, x->now, p, at);
            else
                moe_vstore(e, d, x->now, p, at, gg->mask);
            continue;
        }
        /* Once: by the first task, or by the tasks that hold column 0 of the row. */
        MoeVal which = level == LEVEL_ROW ? gg->panel_col : e->task;
        MoeIf first;
        moe_if_begin(e, &first, LLVMBuildICmp(e->b, LLVMIntEQ, which, moe_k64(e, 0), ""));
        MoeVal scalar = LLVMBuildExtractElement(e->b, x->now, moe_k32(e, 0), "");
        moe_sstore(e, d, scalar, p, level == LEVEL_ROW ? gg->row : moe_k64(e, 0));
        moe_if_end(e, &first);
    }
}

static void tail_task(MoeEmit *e, void *ctx) {
    emit_level(e, ctx, LEVEL_UNIFORM);
}

static void tail_row(MoeEmit *e, void *ctx, MoeVal row, MoeVal panel_col) {
    GemmGroup *gg = ctx;
    gg->row = row;
    gg->panel_col = panel_col;
    emit_level(e, gg, LEVEL_ROW);
}

static void tail_vector(MoeEmit *e, void *ctx, MoeVal row, MoeVal col, const MoeVal *products,
                        MoeVal mask) {
    GemmGroup *gg = ctx;
    gg->row = row;
    gg->col = col;
    gg->mask = mask;
    for (int i = 0; i < gg->n_values; i++)
        if (gg->values[i].product >= 0)
            gg->values[i].now = products[gg->values[i].product];
    emit_level(e, gg, LEVEL_TILE);
}

/* What the tail's code depends on: ops with their attributes, and for each value its level, dtype
 * and buffers. */
static void tail_key(GemmGroup *gg, MoeStr *key) {
    for (int i = 0; i < gg->n_values; i++) {
        const TailValue *x = &gg->values[i];
        char number[32] = "";
        if (constant_of(x->v))
            moe_format_double(moe_attr_f(constant_of(x->v), "value"), number);
        moe_str_printf(key, "%s%d %s %d %d p%d %s", i ? ", " : "", (int)x->level,
                       moe_dtype_name(x->v->type.dtype), x->buf_in, x->buf_out, x->product, number);
    }
    for (int i = 0; i < gg->n_tail; i++) {
        moe_str_printf(key, "; %s", moe_op_info(gg->tail[i]->opcode)->name);
        int n_in = gg->tail[i]->opcode == MOE_OP_BROADCAST ? 1 : gg->tail[i]->n_operands;
        for (int k = 0; k < n_in; k++)
            moe_str_printf(key, " %d", (int)(find(gg, gg->tail[i]->operands[k]) - gg->values));
        moe_str_printf(key, " -> %d", (int)(find(gg, gg->tail[i]->results[0]) - gg->values));
    }
}

/* ---- lowering ---- */

typedef struct {
    MoeBufRef refs[MAX_VALUES + 8];
    int n;
} Refs;

static int add_ref(Refs *r, MoeBufRef ref) {
    r->refs[r->n] = ref;
    return r->n++;
}

static bool is_output(const MoeGroup *g, const MoeValue *v) {
    for (size_t i = 0; i < g->n_outputs; i++)
        if (g->outputs[i] == v)
            return true;
    return false;
}

/* A is f32 or bf16 [T,k]; B [n,k], [k,n] or with a leading [E]. */
static void shapes(MoeCpuTarget *t, const GemmGroup *gg, MoeGemm *gemm) {
    const MoeOp *mm = gg->product[0];
    const MoeType *a = &mm->operands[0]->type;
    gemm->a_dtype = a->dtype;
    gemm->elem = moe_tile_elem(t, a->dtype);
    gemm->k = a->dims[1].size;
    gemm->n = mm->results[0]->type.dims[1].size;
    gemm->a_stride = gemm->k * moe_dtype_bytes(a->dtype);
    gemm->n_products = gg->n_products;
    gemm->rows = moe_row_space(&mm->results[0]->type, moe_attr_i(mm, "grouped") != 0, -1);
}

int64_t moe_cpu_gemm_workspace(MoeCpuTarget *t, const MoeGroup *g) {
    GemmGroup gg;
    MoeGemm gemm = {0};
    bool ok = analyse(g->ops, g->n_ops, NULL, &gg);
    MOE_ASSERT(ok && gg.n_products, "gemm: the group's ops do not fit together");
    shapes(t, &gg, &gemm);
    return gemm.n_products * moe_gemm_packed_bytes(t, gemm.elem, gemm.rows.groups, gemm.k, gemm.n);
}

static void collect_tail(GemmGroup *gg, const MoeGroup *g, Refs *refs) {
    for (int i = 0; i < gg->n_products; i++)
        add_value(gg, gg->product[i]->results[0])->product = i;
    for (int i = 0; i < gg->n_tail; i++) {
        const MoeOp *op = gg->tail[i];
        int n_in = op->opcode == MOE_OP_BROADCAST ? 1 : op->n_operands;
        for (int k = 0; k < n_in; k++) {
            TailValue *x = find(gg, op->operands[k]);
            if (x)
                continue;
            x = add_value(gg, op->operands[k]);
            if (!constant_of(x->v))
                x->buf_in = add_ref(refs, moe_ref(x->v));
        }
        add_value(gg, op->results[0]);
    }
    for (int i = 0; i < gg->n_values; i++)
        if (is_output(g, gg->values[i].v))
            gg->values[i].buf_out = add_ref(refs, moe_ref(gg->values[i].v));
}

/* A dispatch whose rows are read elsewhere, too, is written out by its own kernel. */
static MoeStatus lower_dispatch(MoeCpuTarget *t, const MoeGroup *g, const MoeOp *dispatch,
                                MoeLowered *out) {
    if (!dispatch || !is_output(g, dispatch->results[0]))
        return NULL;
    MoeGroup alone = *g;
    MoeOp *op = dispatch->results[0]->def;
    MoeValue *result = dispatch->results[0];
    alone.ops = &op;
    alone.n_ops = 1;
    alone.outputs = &result;
    alone.n_outputs = 1;
    return moe_cpu_move_lower(t, &alone, out);
}

MoeStatus moe_cpu_gemm_lower(MoeCpuTarget *t, const MoeGroup *g, MoeLowered *out) {
    GemmGroup gg;
    bool ok = analyse(g->ops, g->n_ops, NULL, &gg);
    MOE_ASSERT(ok && gg.n_products, "gemm: the group's ops do not fit together");
    MoeGemm gemm = {.buf_src = -1, .buf_out = -1, .buf_b = {-1, -1}, .key = ""};
    shapes(t, &gg, &gemm);
    if (gemm.n == 0 || gemm.k == 0)
        return moe_error(MOE_E_INPUT, "matmul: an extent of zero (k = %lld, n = %lld)",
                         (long long)gemm.k, (long long)gemm.n);
    gg.n = gemm.n;
    MOE_TRY(lower_dispatch(t, g, gg.dispatch, out));
    Refs refs = {.n = 0};
    const MoeOp *mm = gg.product[0];
    const MoeValue *seg = moe_rows_seg(&mm->results[0]->type);
    int64_t packed = moe_gemm_packed_bytes(t, gemm.elem, gemm.rows.groups, gemm.k, gemm.n);
    for (int i = 0; i < gg.n_products; i++) {
        const MoeValue *b = gg.product[i]->operands[1];
        bool grouped = gemm.rows.mode == MOE_ROWS_GROUPS;
        MoeBufRef pack_refs[3] = {moe_ref(b), moe_ref_work(i * packed)};
        if (grouped)
            pack_refs[2] = moe_ref(seg);
        const char *pack = moe_gemm_emit_pack(
            t, gemm.elem, b->type.dtype, moe_attr_i(mm, "tb") != 0, gemm.rows.groups,
            grouped ? gemm.rows.shards : 0, gemm.k, gemm.n);
        moe_cpu_launch(out, pack, pack_refs, grouped ? 3 : 2);
        gemm.buf_b[i] = add_ref(&refs, pack_refs[1]);
    }
    gemm.buf_a = add_ref(&refs, moe_ref(gg.dispatch ? gg.dispatch->operands[0] : mm->operands[0]));
    if (gg.dispatch) {
        gemm.gather = gg.dispatch->operands[2]->type.dims[1].size;
        gemm.buf_src = add_ref(&refs, moe_ref(gg.dispatch->operands[1]));
    }
    if (seg)
        gemm.rows.buf = add_ref(&refs, moe_ref(seg));
    MoeStr key = {0};
    if (gg.n_products == 1 && gg.n_tail == 0) {
        gemm.buf_out = add_ref(&refs, moe_ref(mm->results[0]));
    } else {
        collect_tail(&gg, g, &refs);
        gg.streams = gemm.streams = should_stream(t, &gg, &gemm);
        tail_key(&gg, &key);
        moe_str_printf(&key, "; streams=%d", gg.streams);
        gemm.key = moe_str_c(&key);
        gemm.task = tail_task;
        gemm.row = tail_row;
        gemm.vector = tail_vector;
        gemm.ctx = &gg;
        for (int i = 0; i < gg.n_values; i++)
            gemm.one_task_at_least |=
                gg.values[i].level == LEVEL_UNIFORM && gg.values[i].buf_out >= 0;
    }
    const char *name = moe_gemm_emit(t, &gemm, out);
    moe_str_free(&key);
    moe_cpu_launch(out, name, refs.refs, (size_t)refs.n);
    return NULL;
}
