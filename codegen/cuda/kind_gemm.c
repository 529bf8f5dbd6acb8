/* Matmul groups (codegen/gemm_group.h) on NVIDIA GPUs: one launch, the product (gemm.h) with the group's elementwise tail as a functor
 * over 8 columns of a row (device/gemm.cuh). A dispatch is a gather of rows as they are read. Row sums leave the tail as sums of
 * pieces of a row, in the workspace: [rows][sums][pieces], f32; a second launch for each adds them up.
 *
 * The functor's values are v0, v1, ... in the order of MoeGemmGroup's values. What is uniform is computed once by each thread
 * before the product, row scalars with each call, tiles and column vectors element by element; all loads of a call come
 * first, since an output may lie in the memory of an input. */
#include "codegen/gemm_group.h"
#include <stdio.h>
#include "base/assert.h"
#include "codegen/bufs.h"
#include "codegen/cuda/dense.h"
#include "codegen/cuda/ew.h"
#include "codegen/cuda/gemm.h"
#include "codegen/cuda/gemm_hopper.h"
#include "codegen/cuda/move.h"

enum { FOLD_THREADS = 128 };

/* A group while its kernel is written. */
typedef struct {
    MoeGemmGroup group;
    MoeCudaRefs refs;
    int a, b[2]; /* buffers of the operands */
    int64_t n;
    bool whole; /* rows of the result are multiples of the tail's columns */
    int work;   /* buffer of the row sums' pieces */
} Tail;

static const char *c_type(MoeDtype d) {
    return d == MOE_BF16 ? "bf16" : d == MOE_I32 ? "i32" : "float";
}

static void bind(Tail *tail, const MoeGroup *g) {
    MoeGemmGroup *gg = &tail->group;
    moe_gemm_group_values(gg, g);
    for (int i = 0; i < gg->n_values; i++)
        if (gg->values[i].is_input)
            gg->values[i].buf_in = moe_cuda_add_ref(&tail->refs, moe_ref(gg->values[i].v));
    for (int i = 0; i < gg->n_values; i++)
        if (gg->values[i].is_output)
            gg->values[i].buf_out = moe_cuda_add_ref(&tail->refs, moe_ref(gg->values[i].v));
}

/* Whether value i has one number a call (or a thread), not one a column. */
static bool is_scalar(const MoeGemmValue *x) {
    return x->level == MOE_LEVEL_UNIFORM || x->level == MOE_LEVEL_ROW;
}

/* Value i as an operand in the loop over columns. */
static void operand(const Tail *tail, int i, char *out, size_t cap) {
    const MoeGemmValue *x = &tail->group.values[i];
    if (x->product >= 0)
        snprintf(out, cap, "p[%d][i]", x->product);
    else
        snprintf(out, cap, "v%d%s", i, x->is_input && !is_scalar(x) ? "[i]" : "");
}

/* Constants, and inputs of that level. */
static void emit_inputs(const Tail *tail, MoeGemmLevel level, const char *indent, MoeStr *out) {
    const MoeGemmGroup *gg = &tail->group;
    for (int i = 0; i < gg->n_values; i++) {
        const MoeGemmValue *x = &gg->values[i];
        const MoeOp *constant = moe_constant_of(x->v);
        if (constant &&
            level == MOE_LEVEL_UNIFORM) { /* a float, whatever it is: tails only convert integers */
            moe_str_printf(out, "%sconst float v%d = ", indent, i);
            moe_cuda_number(out, MOE_F32, moe_attr_f(constant, "value"));
            moe_str_append(out, ";\n");
        }
        if (constant || !x->is_input || x->level != level)
            continue;
        const char *type = c_type(x->v->type.dtype);
        if (is_scalar(x))
            moe_str_printf(out, "%sconst float v%d = (float)load(buf<const %s>(a, %d)%s);\n",
                           indent, i, type, x->buf_in, level == MOE_LEVEL_ROW ? " + row" : "");
        else
            moe_str_printf(
                out,
                "%sfloat v%d[TAIL_COLS];\n%sload_cols<%s>(buf<const %s>(a, %d) + %s, live, v%d);\n",
                indent, i, indent, tail->whole ? "true" : "false", type, x->buf_in,
                level == MOE_LEVEL_TILE ? "at" : "col", i);
    }
}

static void emit_ops(const Tail *tail, MoeGemmLevel level, const char *indent, MoeStr *out) {
    const MoeGemmGroup *gg = &tail->group;
    for (int i = 0; i < gg->n_tail; i++) {
        const MoeOp *op = gg->tail[i];
        int r = moe_gemm_group_find(gg, op->results[0]);
        if (gg->values[r].level != level)
            continue;
        char names[2][32] = {"", ""};
        for (int k = 0; k < moe_gemm_tail_inputs(op); k++)
            operand(tail, moe_gemm_group_find(gg, op->operands[k]), names[k], sizeof names[k]);
        bool integer = op->operands[0]->type.dtype == MOE_I32; /* arrived as floats */
        moe_str_printf(out, "%sconst float v%d = ", indent, r);
        if (integer && op->results[0]->type.dtype == MOE_BF16)
            moe_str_printf(out, "round_bf16(%s)", names[0]);
        else if (integer)
            moe_str_append(out, names[0]);
        else
            moe_cuda_ew(out, op, (const char *const[]){names[0], names[1]});
        moe_str_printf(out, "; /* %s */\n", moe_op_info(op->opcode)->name);
    }
}

/* Outputs that are one number: stored by one thread of all that have it. */
static void emit_scalar_outputs(const Tail *tail, MoeGemmLevel level, const char *indent,
                                const char *condition, const char *place, MoeStr *out) {
    const MoeGemmGroup *gg = &tail->group;
    for (int i = 0; i < gg->n_values; i++) {
        const MoeGemmValue *x = &gg->values[i];
        if (x->level == level && x->buf_out >= 0)
            moe_str_printf(out, "%sif (%s)\n%s    store(buf<%s>(a, %d)%s, v%d);\n", indent,
                           condition, indent, c_type(x->v->type.dtype), x->buf_out, place, i);
    }
}

static int64_t pieces(const MoeType *product) {
    return (product->dims[1].size + MOE_CUDA_SUM_COLS - 1) / MOE_CUDA_SUM_COLS;
}

static void emit_sums(const Tail *tail, const char *indent, MoeStr *out) {
    const MoeGemmGroup *gg = &tail->group;
    for (int s = 0; s < gg->n_sums; s++) {
        char name[32];
        operand(tail, moe_gemm_group_find(gg, gg->sum[s]->operands[0]), name, sizeof name);
        moe_str_printf(out, "%s%ssum[%d] += %s;\n", indent,
                       tail->whole ? "" : "if (i < live)\n            ", s, name);
    }
}

static void emit_tail(const Tail *tail, MoeStr *out) {
    const MoeGemmGroup *gg = &tail->group;
    const char *in = "    ";
    emit_inputs(tail, MOE_LEVEL_UNIFORM, "", out);
    emit_ops(tail, MOE_LEVEL_UNIFORM, "", out);
    emit_scalar_outputs(tail, MOE_LEVEL_UNIFORM, "", "blockIdx.x == 0 && threadIdx.x == 0", "",
                        out);
    moe_str_printf(out, "auto %s = [&](int row, int col, int live, const float (&p)[%d][TAIL_COLS]",
                   gg->n_sums ? "each" : "tail", gg->n_products);
    if (gg->n_sums)
        moe_str_printf(out, ", float (&sum)[%d]", gg->n_sums);
    moe_str_printf(out, ") {\n    const i64 at = (i64)row * %lld + col;\n", (long long)tail->n);
    emit_inputs(tail, MOE_LEVEL_ROW, in, out);
    emit_ops(tail, MOE_LEVEL_ROW, in, out);
    emit_scalar_outputs(tail, MOE_LEVEL_ROW, in, "col == 0", " + row", out);
    emit_inputs(tail, MOE_LEVEL_COLUMN, in, out);
    emit_inputs(tail, MOE_LEVEL_TILE, in, out);
    for (int i = 0; i < gg->n_values; i++)
        if (gg->values[i].level == MOE_LEVEL_TILE && gg->values[i].buf_out >= 0 &&
            gg->values[i].product < 0)
            moe_str_printf(out, "    float out%d[TAIL_COLS];\n", i);
    moe_str_append(out, "#pragma unroll\n    for (int i = 0; i < TAIL_COLS; i++) {\n");
    emit_ops(tail, MOE_LEVEL_TILE, "        ", out);
    emit_sums(tail, "        ", out);
    for (int i = 0; i < gg->n_values; i++)
        if (gg->values[i].level == MOE_LEVEL_TILE && gg->values[i].buf_out >= 0 &&
            gg->values[i].product < 0)
            moe_str_printf(out, "        out%d[i] = v%d;\n", i, i);
    moe_str_append(out, "    }\n");
    for (int i = 0; i < gg->n_values; i++) {
        const MoeGemmValue *x = &gg->values[i];
        char name[24];
        if (x->level != MOE_LEVEL_TILE || x->buf_out < 0)
            continue;
        snprintf(name, sizeof name, x->product >= 0 ? "p[%d]" : "out%d",
                 x->product >= 0 ? x->product : i);
        moe_str_printf(out, "    store_cols<%s>(buf<%s>(a, %d) + at, live, %s);\n",
                       tail->whole ? "true" : "false", c_type(x->v->type.dtype), x->buf_out, name);
    }
    moe_str_append(out, "};\n");
    if (gg->n_sums)
        moe_str_printf(out, "auto tail = sum_tail<%d>(each, buf<float>(a, %d), %lld);\n", gg->n_sums,
                       tail->work, (long long)pieces(&gg->product[0]->results[0]->type));
}

/* ---- lowering ---- */

static void shapes(const MoeGemmGroup *gg, MoeCudaGemm *gemm) {
    const MoeOp *mm = gg->product[0];
    const MoeType *a = &mm->operands[0]->type;
    gemm->dtype = a->dtype;
    gemm->k = gemm->lda = a->dims[1].size;
    gemm->n = mm->results[0]->type.dims[1].size;
    gemm->tb = moe_attr_i(mm, "tb") != 0;
    gemm->ldb = gemm->tb ? gemm->k : gemm->n;
    gemm->products = gg->n_products;
    gemm->gather = gg->dispatch != NULL;
    gemm->plain = moe_gemm_group_plain(gg);
    gemm->sums = gg->n_sums > 0;
    gemm->maps = true;
    gemm->rows = moe_row_space(&mm->results[0]->type, moe_attr_i(mm, "grouped") != 0, -1);
}

static void note(const MoeGemmGroup *gg, MoeStr *out) {
    moe_cuda_shape_note(&gg->product[0]->operands[0]->type, out);
    moe_str_append(out, moe_attr_i(gg->product[0], "tb") ? " times transposed " : " times ");
    moe_cuda_shape_note(&gg->product[0]->operands[1]->type, out);
    if (gg->n_products == 2)
        moe_str_append(out, ", twice");
    if (gg->dispatch)
        moe_str_append(out, ", rows gathered");
    if (gg->n_tail)
        moe_str_printf(out, ", then %d elementwise ops", gg->n_tail);
    if (gg->n_sums)
        moe_str_printf(out, ", %d row sum%s", gg->n_sums, gg->n_sums > 1 ? "s" : "");
}

/* Bytes of the row sums' pieces: of all rows, or of those that are expected. */
static int64_t workspace(const MoeGroup *g, bool expected) {
    MoeGemmGroup gg;
    bool ok = moe_gemm_group(g->ops, g->n_ops, NULL, &gg);
    MOE_ASSERT(ok && gg.n_products, "gemm: the group's ops do not fit together");
    const MoeType *c = &gg.product[0]->results[0]->type;
    MoeRowSpace rows = moe_row_space(c, moe_attr_i(gg.product[0], "grouped") != 0, -1);
    return (expected ? rows.expected : rows.capacity) * gg.n_sums * pieces(c) *
           (int64_t)sizeof(float);
}

int64_t moe_cuda_gemm_workspace(MoeCudaTarget *t, const MoeGroup *g) {
    (void)t;
    return workspace(g, false);
}

int64_t moe_cuda_gemm_workspace_expected(const MoeGroup *g) {
    return workspace(g, true);
}

/* Buffers of the operands, and `Gemm g`. */
static void emit_operands(Tail *tail, const MoeCudaGemm *gemm, MoeStr *out) {
    const MoeGemmGroup *gg = &tail->group;
    const MoeOp *mm = gg->product[0];
    const MoeValue *seg = moe_rows_seg(&mm->results[0]->type);
    char a[48], b[2][48], src[48], table[48];
    MoeCudaGemmOperands o = {.a = a, .b = {b[0], b[1]}};
    const char *type = c_type(gemm->dtype);
    tail->a = moe_cuda_add_ref(&tail->refs,
                               moe_ref(gg->dispatch ? gg->dispatch->operands[0] : mm->operands[0]));
    snprintf(a, sizeof a, "buf<const %s>(a, %d)", type, tail->a);
    for (int i = 0; i < gg->n_products; i++) {
        tail->b[i] = moe_cuda_add_ref(&tail->refs, moe_ref(gg->product[i]->operands[1]));
        snprintf(b[i], sizeof b[i], "buf<const %s>(a, %d)", type, tail->b[i]);
    }
    if (gg->dispatch) {
        o.gather = gg->dispatch->operands[2]->type.dims[1].size;
        snprintf(src, sizeof src, "buf<const i32>(a, %d)",
                 moe_cuda_add_ref(&tail->refs, moe_ref(gg->dispatch->operands[1])));
        o.src = src;
    }
    if (seg) {
        snprintf(table, sizeof table, "buf<const i32>(a, %d)",
                 moe_cuda_add_ref(&tail->refs, moe_ref(seg)));
        o.table = table;
    }
    moe_cuda_gemm_text(gemm, &o, out);
}

/* The launch that adds up the pieces of row sum s. */
static void launch_fold(MoeCudaTarget *t, const MoeGemmGroup *gg, int s, MoeLowered *out) {
    const MoeType *c = &gg->product[0]->results[0]->type;
    const MoeValue *seg = moe_rows_seg(c);
    MoeCudaRefs refs = {.n = 0};
    MoeStr body = {0}, comment = {0};
    int64_t n = pieces(c);
    int table = seg ? moe_cuda_add_ref(&refs, moe_ref(seg)) : -1;
    int work = moe_cuda_add_ref(&refs, moe_ref_work(0));
    int y = moe_cuda_add_ref(&refs, moe_ref(gg->sum[s]->results[0]));
    moe_str_append(&body, "using namespace moe;\n");
    moe_cuda_live_range(&body, "live", c, table);
    moe_str_printf(&body,
                   "fold_row_sums<%d>(live.first, live.end, buf<const float>(a, %d) + %lld, %lld, "
                   "%lld, buf<float>(a, %d));\n",
                   n % 4 == 0 ? 4 : 1, work, (long long)(s * n), (long long)(gg->n_sums * n),
                   (long long)n, y);
    moe_str_printf(&comment, "row sums of %lld columns from sums of %d",
                   (long long)c->dims[1].size, MOE_CUDA_SUM_COLS);
    MoeCudaProductPlan plan = {
        .threads = FOLD_THREADS,
        .min_blocks = 1,
        .blocks = moe_cuda_blocks(t, (c->dims[0].size + FOLD_THREADS - 1) / FOLD_THREADS, 8)};
    moe_cuda_product_launch(t, &plan,
                            &(MoeCudaProductKernel){.prefix = "row_fold",
                                                    .note = moe_str_c(&comment),
                                                    .parts = 1u << MOE_CUDA_PART_segs |
                                                             1u << MOE_CUDA_PART_gemm,
                                                    .body = &body,
                                                    .refs = &refs},
                            out);
    moe_str_free(&comment);
}

MoeStatus moe_cuda_gemm_lower(MoeCudaTarget *t, const MoeGroup *g, MoeLowered *out) {
    Tail tail = {.n = 0};
    MoeGemmGroup *gg = &tail.group;
    bool ok = moe_gemm_group(g->ops, g->n_ops, NULL, gg);
    MOE_ASSERT(ok && gg->n_products, "gemm: the group's ops do not fit together");
    MoeCudaGemm gemm = {.products = 1};
    shapes(gg, &gemm);
    if (gemm.n == 0 || gemm.k == 0)
        return moe_error(MOE_E_INPUT, "matmul: an extent of zero (k = %lld, n = %lld)",
                         (long long)gemm.k, (long long)gemm.n);
    MOE_TRY(moe_cuda_dispatch_lower(t, g, gg->dispatch, out));
    MoeCudaProductPlan plan;
    moe_cuda_gemm_plan(t, &gemm, &plan);
    tail.n = gemm.n;
    tail.whole = gemm.n % 8 == 0;
    MoeStr body = {0}, comment = {0};
    note(gg, &comment);
    moe_str_append(&body, "using namespace moe;\n");
    emit_operands(&tail, &gemm, &body);
    bind(&tail, g);
    if (gg->n_sums)
        tail.work = moe_cuda_add_ref(&tail.refs, moe_ref_work(0));
    if (moe_gemm_group_plain(gg)) {
        moe_str_printf(&body, "%s(g, %sStoreTail<%s>{buf<float>(a, %d), %lld});\n", plan.call,
                       plan.maps, tail.whole ? "true" : "false", gg->values[0].buf_out,
                       (long long)tail.n);
    } else {
        emit_tail(&tail, &body);
        moe_str_printf(&body, "%s(g, %stail);\n", plan.call, plan.maps);
    }
    MoeTensorMap maps[MOE_CUDA_MAX_MAPS];
    if (plan.n_maps)
        moe_cuda_hopper_maps(&gemm, &plan, tail.a, tail.b, maps);
    moe_cuda_product_launch(t, &plan,
                            &(MoeCudaProductKernel){.prefix = "gemm",
                                                    .note = moe_str_c(&comment),
                                                    .body = &body,
                                                    .refs = &tail.refs,
                                                    .maps = maps},
                            out);
    moe_cuda_dense_note(gg, g, tail.a, tail.b[0], out);
    moe_str_free(&comment);
    for (int s = 0; s < gg->n_sums; s++)
        if (moe_group_writes(g, gg->sum[s]->results[0]))
            launch_fold(t, gg, s, out);
    return NULL;
}
