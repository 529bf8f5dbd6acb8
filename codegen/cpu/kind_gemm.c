/* Matmul groups (codegen/gemm_group.h) on the CPU.
 *
 * Launches: one packing each right operand into the workspace, then the product (gemm.h), with the tail on each block while it is
 * in the cache: what is uniform once, row scalars for each row, tiles and column vectors as vectors. */
#include "codegen/gemm_group.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/assert.h"
#include "base/kernel_abi.h"
#include "codegen/cpu/gemm.h"

#define STREAM_FROM ((int64_t)16 << 20) /* bytes of an output that no cache keeps */

/* A group while its tail is emitted. */
typedef struct {
    MoeGemmGroup group;
    MoeVal now[MOE_GEMM_MAX_VALUES]; /* of each value: the vector at the current place, or NULL */
    int64_t n;
    MoeVal row, col, mask, panel_col;
    bool streams; /* outputs go past the caches */
} Tail;

/* ---- the tail ---- */

static MoeVal load_at(MoeEmit *e, const Tail *tail, const MoeGemmValue *x) {
    MoeDtype d = x->v->type.dtype;
    MoeVal p = moe_emit_buf(e, x->buf_in);
    switch (x->level) {
    case MOE_LEVEL_UNIFORM:
        return moe_splat(e, moe_sload(e, d, p, moe_k64(e, 0)));
    case MOE_LEVEL_ROW:
        return moe_splat(e, moe_sload(e, d, p, tail->row));
    case MOE_LEVEL_COLUMN:
        return moe_vload(e, d, p, tail->col, tail->mask);
    case MOE_LEVEL_TILE:
        return moe_vload(e, d, p,
                         moe_iadd(e, moe_imul(e, tail->row, moe_k64(e, tail->n)), tail->col),
                         tail->mask);
    case MOE_LEVEL_NONE:
        break;
    }
    MOE_ASSERT(false, "gemm: a tail value has no level");
}

/* Whether f32 tiles go past the caches, which saves reading the lines they replace: outputs that
 * the caches cannot hold until they are read, in whole lines, none of them over an input. */
static bool should_stream(const MoeCpuTarget *t, const MoeGemmGroup *gg, const MoeGemm *g) {
    int64_t line = MOE_BUFFER_ALIGN / 4;
    if (t->isa.lanes != line || g->n % line || g->rows.expected * g->n * 4 < STREAM_FROM)
        return false;
    for (int i = 0; i < gg->n_values; i++)
        if (gg->values[i].level == MOE_LEVEL_TILE && gg->values[i].buf_in >= 0)
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
static void emit_level(MoeEmit *e, Tail *tail, MoeGemmLevel level) {
    const MoeGemmGroup *gg = &tail->group;
    for (int i = 0; i < gg->n_values; i++) {
        const MoeGemmValue *x = &gg->values[i];
        bool now = x->level == level || (level == MOE_LEVEL_TILE && x->level == MOE_LEVEL_COLUMN);
        if (now && moe_constant_of(x->v))
            tail->now[i] = moe_vconst(e, moe_attr_f(moe_constant_of(x->v), "value"));
        else if (now && x->buf_in >= 0)
            tail->now[i] = load_at(e, tail, x);
    }
    for (int i = 0; i < gg->n_tail; i++) {
        const MoeOp *op = gg->tail[i];
        int r = moe_gemm_group_find(gg, op->results[0]);
        if (gg->values[r].level != level)
            continue;
        MoeVal in[2] = {NULL, NULL};
        for (int k = 0; k < moe_gemm_tail_inputs(op); k++)
            in[k] = tail->now[moe_gemm_group_find(gg, op->operands[k])];
        tail->now[r] = op->opcode == MOE_OP_BROADCAST ? in[0] : moe_math_ew(e, op, in);
    }
    for (int i = 0; i < gg->n_values; i++) {
        const MoeGemmValue *x = &gg->values[i];
        if (x->level != level || x->buf_out < 0)
            continue;
        MoeDtype d = x->v->type.dtype;
        MoeVal p = moe_emit_buf(e, x->buf_out);
        if (level == MOE_LEVEL_TILE) {
            MoeVal at = moe_iadd(e, moe_imul(e, tail->row, moe_k64(e, tail->n)), tail->col);
            if (tail->streams && d == MOE_F32)
                store_past_caches(e, tail->now[i], p, at);
            else
                moe_vstore(e, d, tail->now[i], p, at, tail->mask);
            continue;
        }
        /* Once: by the first task, or by the tasks that hold column 0 of the row. */
        MoeVal which = level == MOE_LEVEL_ROW ? tail->panel_col : e->task;
        MoeIf first;
        moe_if_begin(e, &first, LLVMBuildICmp(e->b, LLVMIntEQ, which, moe_k64(e, 0), ""));
        MoeVal scalar = LLVMBuildExtractElement(e->b, tail->now[i], moe_k32(e, 0), "");
        moe_sstore(e, d, scalar, p, level == MOE_LEVEL_ROW ? tail->row : moe_k64(e, 0));
        moe_if_end(e, &first);
    }
}

static void tail_task(MoeEmit *e, void *ctx) {
    emit_level(e, ctx, MOE_LEVEL_UNIFORM);
}

static void tail_row(MoeEmit *e, void *ctx, MoeVal row, MoeVal panel_col) {
    Tail *tail = ctx;
    tail->row = row;
    tail->panel_col = panel_col;
    emit_level(e, tail, MOE_LEVEL_ROW);
}

static void tail_vector(MoeEmit *e, void *ctx, MoeVal row, MoeVal col, const MoeVal *products,
                        MoeVal mask) {
    Tail *tail = ctx;
    tail->row = row;
    tail->col = col;
    tail->mask = mask;
    for (int i = 0; i < tail->group.n_values; i++)
        if (tail->group.values[i].product >= 0)
            tail->now[i] = products[tail->group.values[i].product];
    emit_level(e, tail, MOE_LEVEL_TILE);
}

/* What the tail's code depends on: ops with their attributes, and for each value its level, dtype
 * and buffers. */
static void tail_key(const MoeGemmGroup *gg, MoeStr *key) {
    for (int i = 0; i < gg->n_values; i++) {
        const MoeGemmValue *x = &gg->values[i];
        char number[32] = "";
        if (moe_constant_of(x->v))
            moe_format_double(moe_attr_f(moe_constant_of(x->v), "value"), number);
        moe_str_printf(key, "%s%d %s %d %d p%d %s", i ? ", " : "", (int)x->level,
                       moe_dtype_name(x->v->type.dtype), x->buf_in, x->buf_out, x->product, number);
    }
    for (int i = 0; i < gg->n_tail; i++) {
        const MoeOp *op = gg->tail[i];
        moe_str_printf(key, "; %s", moe_op_info(op->opcode)->name);
        for (int k = 0; k < moe_gemm_tail_inputs(op); k++)
            moe_str_printf(key, " %d", moe_gemm_group_find(gg, op->operands[k]));
        moe_str_printf(key, " -> %d", moe_gemm_group_find(gg, op->results[0]));
    }
}

/* ---- lowering ---- */

typedef struct {
    MoeBufRef refs[MOE_GEMM_MAX_VALUES + 8];
    int n;
} Refs;

static int add_ref(Refs *r, MoeBufRef ref) {
    r->refs[r->n] = ref;
    return r->n++;
}

/* A is f32 or bf16 [T,k]; B [n,k], [k,n] or with a leading [E]. */
static void shapes(MoeCpuTarget *t, const MoeGemmGroup *gg, MoeGemm *gemm) {
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
    MoeGemmGroup gg;
    MoeGemm gemm = {0};
    bool ok = moe_gemm_group(g->ops, g->n_ops, NULL, &gg);
    MOE_ASSERT(ok && gg.n_products, "gemm: the group's ops do not fit together");
    shapes(t, &gg, &gemm);
    return gemm.n_products * moe_gemm_packed_bytes(t, gemm.elem, gemm.rows.groups, gemm.k, gemm.n);
}

static void bind_tail(MoeGemmGroup *gg, const MoeGroup *g, Refs *refs) {
    moe_gemm_group_values(gg, g);
    for (int i = 0; i < gg->n_values; i++)
        if (gg->values[i].is_input)
            gg->values[i].buf_in = add_ref(refs, moe_ref(gg->values[i].v));
    for (int i = 0; i < gg->n_values; i++)
        if (gg->values[i].is_output)
            gg->values[i].buf_out = add_ref(refs, moe_ref(gg->values[i].v));
}

MoeStatus moe_cpu_gemm_lower(MoeCpuTarget *t, const MoeGroup *g, MoeLowered *out) {
    Tail tail = {.streams = false};
    MoeGemmGroup *gg = &tail.group;
    bool ok = moe_gemm_group(g->ops, g->n_ops, NULL, gg);
    MOE_ASSERT(ok && gg->n_products && !gg->n_sums, "gemm: the group's ops do not fit together");
    MoeGemm gemm = {.buf_src = -1, .buf_out = -1, .buf_b = {-1, -1}, .key = ""};
    shapes(t, gg, &gemm);
    if (gemm.n == 0 || gemm.k == 0)
        return moe_error(MOE_E_INPUT, "matmul: an extent of zero (k = %lld, n = %lld)",
                         (long long)gemm.k, (long long)gemm.n);
    tail.n = gemm.n;
    MOE_TRY(moe_cpu_dispatch_lower(t, g, gg->dispatch, out));
    Refs refs = {.n = 0};
    const MoeOp *mm = gg->product[0];
    const MoeValue *seg = moe_rows_seg(&mm->results[0]->type);
    int64_t packed = moe_gemm_packed_bytes(t, gemm.elem, gemm.rows.groups, gemm.k, gemm.n);
    for (int i = 0; i < gg->n_products; i++) {
        const MoeValue *b = gg->product[i]->operands[1];
        bool grouped = gemm.rows.mode == MOE_ROWS_GROUPS;
        MoeBufRef pack_refs[3] = {moe_ref(b), moe_ref_work(i * packed)};
        if (grouped)
            pack_refs[2] = moe_ref(seg);
        const char *pack =
            moe_gemm_emit_pack(t, gemm.elem, b->type.dtype, moe_attr_i(mm, "tb") != 0,
                               gemm.rows.groups, grouped ? gemm.rows.shards : 0, gemm.k, gemm.n);
        moe_cpu_launch(out, pack, pack_refs, grouped ? 3 : 2);
        gemm.buf_b[i] = add_ref(&refs, pack_refs[1]);
    }
    gemm.buf_a =
        add_ref(&refs, moe_ref(gg->dispatch ? gg->dispatch->operands[0] : mm->operands[0]));
    if (gg->dispatch) {
        gemm.gather = gg->dispatch->operands[2]->type.dims[1].size;
        gemm.buf_src = add_ref(&refs, moe_ref(gg->dispatch->operands[1]));
    }
    if (seg)
        gemm.rows.buf = add_ref(&refs, moe_ref(seg));
    MoeStr key = {0};
    if (moe_gemm_group_plain(gg)) {
        gemm.buf_out = add_ref(&refs, moe_ref(mm->results[0]));
    } else {
        bind_tail(gg, g, &refs);
        tail.streams = gemm.streams = should_stream(t, gg, &gemm);
        tail_key(gg, &key);
        moe_str_printf(&key, "; streams=%d", tail.streams);
        gemm.key = moe_str_c(&key);
        gemm.task = tail_task;
        gemm.row = tail_row;
        gemm.vector = tail_vector;
        gemm.ctx = &tail;
        for (int i = 0; i < gg->n_values; i++)
            gemm.one_task_at_least |=
                gg->values[i].level == MOE_LEVEL_UNIFORM && gg->values[i].buf_out >= 0;
    }
    const char *name = moe_gemm_emit(t, &gemm, out);
    moe_str_free(&key);
    moe_cpu_launch(out, name, refs.refs, (size_t)refs.n);
    return NULL;
}
