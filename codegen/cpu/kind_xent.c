/* linear_cross_entropy, its gradient, and both over a part of the vocabulary, in row chunks: no
 * [T, N] tensor.
 *
 *   once       table of chunks; w packed for logits = h w^T, and for dh = dlogits w
 *   a chunk    logits (gemm.h) -> nll (of a part: its sums) and dlogits in place (xent_rows.c) -> dh
 *              rows (gemm.h), and the chunk's part of dw (wgrad.h), which is added to those of earlier
 *              chunks by the tree over the rows of a shard, then over shards
 *
 * cross_entropy_join (xent_join.c) makes nll of the sums of all parts. Workspace: table, packed
 * images, one chunk of logits, slots of the tree (the last is dw itself). */
#include <stdio.h>
#include "base/assert.h"
#include "codegen/cpu/gemm.h"
#include "codegen/cpu/xent.h"
#include "codegen/wgrad_group.h"
#include "ir/numbers.h"

/* Bytes of a chunk's logits, but for the smallest chunk. */
#define MAX_LOGITS     ((int64_t)64 << 20)
#define MAX_CHUNK_ROWS 2048

typedef struct {
    const MoeOp *op;
    MoeXentRows what;
    bool grad;
    const MoeValue *dh, *dw; /* with grad */
    MoeDtype dtype;
    MoeTileElem elem;
    int64_t n, c, chunk_rows, max_chunks; /* h (T, c), w (n, c) */
    int64_t leaf_rows; /* of dw's trees; 0: none within a chunk */
    MoeRowSpace rows;
    int64_t table, packed_w, packed_wt, logits, slots, bytes; /* offsets in the workspace */
} Xent;

static int64_t round64(int64_t v) {
    return (v + 63) / 64 * 64;
}

/* The power of two of leaves that needs least memory for logits and slots together. */
static int64_t choose_chunk(const Xent *x) {
    int64_t least = x->leaf_rows ? x->leaf_rows : MOE_LEAF_ROWS, best = least, best_bytes = 0;
    for (int64_t r = least; r <= MAX_CHUNK_ROWS; r *= 2) {
        int slots = moe_xent_chunk_slots(&x->rows, r) - 1;
        int64_t bytes = r * x->n * 4 + (x->grad && slots > 0 ? slots * x->n * x->c * 4 : 0);
        bool fits = r * x->n * 4 <= MAX_LOGITS && r < 2 * x->rows.capacity;
        /* The forward op takes what runs well: a few row blocks a chunk. */
        bool better = x->grad ? bytes < best_bytes : r <= 512;
        if (r == least || (fits && better)) {
            best = r;
            best_bytes = bytes;
        }
    }
    return best;
}

static MoeXentRows rows_of(MoeOpcode op) {
    if (op == MOE_OP_LINEAR_CROSS_ENTROPY)
        return MOE_XENT_LOSS;
    if (op == MOE_OP_LINEAR_CROSS_ENTROPY_GRAD)
        return MOE_XENT_GRAD;
    if (op == MOE_OP_LINEAR_CROSS_ENTROPY_PART)
        return MOE_XENT_PART;
    MOE_ASSERT(op == MOE_OP_LINEAR_CROSS_ENTROPY_PART_GRAD, "xent: op %s", moe_op_info(op)->name);
    return MOE_XENT_PART_GRAD;
}

static void analyse(MoeCpuTarget *t, const MoeGroup *g, Xent *x) {
    const MoeOp *op = g->ops[0];
    MOE_ASSERT(g->n_ops == 1, "xent: a group of %zu ops", g->n_ops);
    const MoeType *h = &op->operands[0]->type, *w = &op->operands[1]->type;
    *x = (Xent){.op = op, .what = rows_of(op->opcode), .dtype = h->dtype};
    x->leaf_rows = moe_wgrad_leaf_rows(g->graph);
    if (x->what == MOE_XENT_GRAD || x->what == MOE_XENT_PART_GRAD) {
        int first = x->what == MOE_XENT_GRAD; /* result 0 is nll */
        x->grad = true;
        x->dh = op->results[first];
        x->dw = op->results[first + 1];
    }
    x->elem = moe_tile_elem(t, h->dtype);
    x->n = w->dims[0].size;
    x->c = w->dims[1].size;
    x->rows = moe_row_space(h, false, -1);
    x->chunk_rows = choose_chunk(x);
    x->max_chunks = moe_xent_max_chunks(&x->rows, x->chunk_rows);
    x->packed_w = round64(x->max_chunks * MOE_CHUNK_FIELDS * 4);
    x->packed_wt = x->packed_w + moe_gemm_packed_bytes(t, x->elem, 1, x->c, x->n);
    x->logits = x->packed_wt + (x->grad ? moe_gemm_packed_bytes(t, x->elem, 1, x->n, x->c) : 0);
    x->slots = round64(x->logits + x->chunk_rows * x->n * 4 + 64);
    int slots = moe_xent_chunk_slots(&x->rows, x->chunk_rows) - 1;
    x->bytes = x->slots + (x->grad && slots > 0 ? round64(slots * x->n * x->c * 4) : 0);
}

int64_t moe_cpu_xent_workspace(MoeCpuTarget *t, const MoeGroup *g) {
    if (g->ops[0]->opcode == MOE_OP_CROSS_ENTROPY_JOIN)
        return 0;
    Xent x;
    analyse(t, g, &x);
    return x.bytes;
}

static MoeRowSpace chunk_space(const Xent *x, int buf) {
    return (MoeRowSpace){.mode = MOE_ROWS_RANGE,
                         .capacity = x->chunk_rows,
                         .expected = x->chunk_rows,
                         .groups = 1,
                         .shards = 1,
                         .buf = buf};
}

static void launch_logits(MoeCpuTarget *t, const Xent *x, MoeBufRef entry, MoeLowered *out) {
    MoeBufRef refs[] = {entry, moe_ref(x->op->operands[0]), moe_ref_work(x->packed_w),
                        moe_ref_work(x->logits)};
    MoeGemm g = {.rows = chunk_space(x, 0),
                 .elem = x->elem,
                 .a_dtype = x->dtype,
                 .k = x->c,
                 .n = x->n,
                 .n_products = 1,
                 .a_stride = x->c * moe_dtype_bytes(x->dtype),
                 .out_local = true,
                 .buf_a = 1,
                 .buf_src = -1,
                 .buf_b = {2, -1},
                 .buf_out = 3,
                 .key = ""};
    moe_cpu_launch(out, moe_gemm_emit(t, &g, out), refs, 4);
}

static void launch_rows(MoeCpuTarget *t, const Xent *x, MoeBufRef entry, MoeLowered *out) {
    const MoeOp *op = x->op;
    MoeBufRef refs[6] = {entry, moe_ref_work(x->logits), moe_ref(op->operands[2])};
    size_t n = 3;
    if (x->what != MOE_XENT_PART_GRAD)
        refs[n++] = moe_ref(op->results[0]);
    else
        refs[n++] = moe_ref(op->operands[4]);
    if (x->what == MOE_XENT_PART_GRAD)
        refs[n++] = moe_ref(op->operands[5]);
    if (x->what != MOE_XENT_LOSS) /* dnll, or the part */
        refs[n++] = moe_ref(op->operands[3]);
    int64_t parts = x->what == MOE_XENT_PART ? moe_attr_i(op, "parts") : 0;
    moe_cpu_launch(out, moe_xent_emit_rows(t, x->n, x->what, parts, x->dtype), refs, n);
}

static void launch_dh(MoeCpuTarget *t, const Xent *x, MoeBufRef entry, MoeLowered *out) {
    MoeBufRef refs[] = {entry, moe_ref_work(x->logits), moe_ref_work(x->packed_wt), moe_ref(x->dh)};
    MoeGemm g = {.rows = chunk_space(x, 0),
                 .elem = x->elem,
                 .a_dtype = x->dtype,
                 .k = x->n,
                 .n = x->c,
                 .n_products = 1,
                 .a_stride = x->n * 4,
                 .a_local = true,
                 .buf_a = 1,
                 .buf_src = -1,
                 .buf_b = {2, -1},
                 .buf_out = 3,
                 .key = ""};
    moe_cpu_launch(out, moe_gemm_emit(t, &g, out), refs, 4);
}

static void launch_dw(MoeCpuTarget *t, const Xent *x, MoeBufRef entry, MoeLowered *out) {
    MoeBufRef refs[] = {entry, moe_ref_work(x->logits), moe_ref(x->op->operands[0]), moe_ref(x->dw),
                        moe_ref_work(x->slots)};
    MoeWgrad w = {.rows = chunk_space(x, 0),
                  .leaf_rows = x->leaf_rows,
                  .elem = x->elem,
                  .dtype = x->dtype,
                  .n = x->n,
                  .k = x->c,
                  .dy_stride = x->n * 4,
                  .x_stride = x->c * moe_dtype_bytes(x->dtype),
                  .dy_local = true,
                  .buf_dy = 1,
                  .buf_src_dy = -1,
                  .buf_x = 2,
                  .buf_src_x = -1,
                  .buf_out = 3,
                  .buf_slots = 4};
    moe_cpu_launch(out, moe_wgrad_emit(t, &w, out), refs, 5);
}

MoeStatus moe_cpu_xent_lower(MoeCpuTarget *t, const MoeGroup *g, MoeLowered *out) {
    if (g->ops[0]->opcode == MOE_OP_CROSS_ENTROPY_JOIN) {
        moe_xent_lower_join(t, g, out);
        return NULL;
    }
    Xent x;
    analyse(t, g, &x);
    if (x.n == 0 || x.c == 0)
        return moe_error(MOE_E_INPUT, "%s: an extent of zero (N = %lld, C = %lld)",
                         moe_op_info(x.op->opcode)->name, (long long)x.n, (long long)x.c);
    const MoeValue *w = x.op->operands[1], *seg = moe_rows_seg(&x.op->operands[0]->type);
    MoeBufRef plan_refs[] = {moe_ref_work(x.table), moe_ref(seg)};
    x.rows.buf = 1;
    moe_cpu_launch(out, moe_xent_emit_chunks(t, &x.rows, x.chunk_rows), plan_refs, seg ? 2 : 1);
    MoeBufRef pack_refs[] = {moe_ref(w), moe_ref_work(x.packed_w)};
    moe_cpu_launch(out, moe_gemm_emit_pack(t, x.elem, w->type.dtype, true, 1, 0, x.c, x.n),
                   pack_refs, 2);
    if (x.grad) {
        pack_refs[1] = moe_ref_work(x.packed_wt);
        moe_cpu_launch(out, moe_gemm_emit_pack(t, x.elem, w->type.dtype, false, 1, 0, x.n, x.c),
                       pack_refs, 2);
    }
    for (int64_t i = 0; i < x.max_chunks; i++) {
        MoeBufRef entry = moe_ref_work(x.table + i * MOE_CHUNK_FIELDS * 4);
        launch_logits(t, &x, entry, out);
        launch_rows(t, &x, entry, out);
        if (x.grad) {
            launch_dh(t, &x, entry, out);
            launch_dw(t, &x, entry, out);
        }
    }
    return NULL;
}
