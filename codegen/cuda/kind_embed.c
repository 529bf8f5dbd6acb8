/* embedding: rows of the table by id. embedding_grad: the sum of dy over the tokens of each id. With an
 * operand `part` the table is one of several parts: an id's row is its distance from the part's first
 * id; ids elsewhere give zeros, or are left out of the sort.
 *
 * embedding_grad: the tokens sorted by id, the table of where each id begins, then the sums (device/embed.cuh). */
#include "base/assert.h"
#include "codegen/cuda/move.h"

enum { THREADS = 256 /* EMBED_THREADS */ };

/* "NAME = the part's first id". */
static void first_id(MoeStr *text, int part, int64_t n) {
    if (part >= 0)
        moe_str_printf(text, "const i64 first = (i64)buf<i32>(a, %d)[0] * %lld;\n", part,
                       (long long)n);
    else
        moe_str_append(text, "const i64 first = 0;\n");
}

static void lower_embedding(MoeCudaTarget *t, const MoeOp *op, MoeLowered *out) {
    const MoeType *type = &op->results[0]->type;
    int64_t n = op->operands[0]->type.dims[0].size;
    MoeCudaWords w = moe_cuda_words(moe_type_cols(type) * moe_dtype_bytes(type->dtype));
    MoeBufs bufs = {.n = 0};
    int table = moe_bufs_add(&bufs, op->operands[0]), ids = moe_bufs_add(&bufs, op->operands[1]);
    int y = moe_bufs_add(&bufs, op->results[0]), seg = moe_bufs_add_seg(&bufs, type);
    int part = op->n_operands > 2 ? moe_bufs_add(&bufs, op->operands[2]) : -1;
    MoeStr begin = {0}, body = {0};
    moe_cuda_live_range(&begin, "live", type, seg);
    first_id(&begin, part, n);
    moe_str_printf(&body,
                   "move_rows<%s, %lld, %d>(live, RowOfId{buf<i32>(a, %d), first, %lld}, "
                   "buf<%s>(a, %d), buf<%s>(a, %d));\n",
                   w.type, (long long)w.n, w.lanes, ids, (long long)n, w.type, table, w.type, y);
    MoeCudaSteps steps = {.t = t,
                          .out = out,
                          .bufs = &bufs,
                          .prefix = "embedding",
                          .parts = 1u << MOE_CUDA_PART_move,
                          .begin = moe_str_c(&begin)};
    int64_t per_block = MOE_CUDA_MOVE_THREADS / w.lanes;
    moe_cuda_step(&steps, "", MOE_CUDA_MOVE_THREADS,
                  moe_cuda_blocks(t, (type->dims[0].size + per_block - 1) / per_block, 8),
                  moe_str_c(&body));
    moe_str_free(&begin);
    moe_str_free(&body);
}

/* ---- the gradient ---- */

typedef struct {
    int64_t vocab, cols, shards, tokens,
        many; /* many: tokens of an id whose shards are summed apart */
} Grad;

static Grad grad_of(const MoeOp *op) {
    const MoeType *ids = &op->operands[1]->type;
    const MoeValue *seg = moe_rows_seg(ids);
    MOE_ASSERT(!seg || seg->type.groups == 1, "embedding_grad: tokens in %lld groups",
               (long long)(seg ? seg->type.groups : 1));
    Grad g = {.vocab = moe_attr_i(op, "vocab"),
              .cols = moe_type_cols(&op->operands[0]->type),
              .shards = seg ? seg->type.shards : 1,
              .tokens = ids->dims[0].size};
    g.many = 16 * g.shards > 256 ? 16 * g.shards : 256; /* sums of shards: at most 1/16 of dy */
    return g;
}

static int64_t grad_workspace(const Grad *g) {
    int64_t sort = moe_cuda_sort_bytes(g->vocab, g->tokens),
            partial = (g->tokens / g->many + 1) * g->shards * g->cols * 4;
    return moe_cuda_list_bytes(g->vocab + 1) + moe_cuda_list_bytes(g->tokens) +
           (sort > partial ? sort : partial);
}

static int levels_of(int64_t n) {
    int levels = 0;
    while (((int64_t)1 << levels) < n)
        levels++;
    return levels;
}

/* The two launches that add. */
static void launch_sums(MoeCudaSteps *steps, const Grad *g) {
    MoeStr begin = {0}, body = {0};
    int64_t e = 4, warps = THREADS / 32, many = g->tokens / g->many + 1;
    while (g->cols % e)
        e /= 2;
    moe_str_printf(&begin,
                   "%sconst EmbedGrad<%lld, %lld, %lld, %d, %lld> grad{dy, tok, work, "
                   "(i64)work.start[%lld]};\n",
                   steps->begin, (long long)g->vocab, (long long)g->cols, (long long)g->shards,
                   levels_of(g->shards), (long long)g->many, (long long)g->vocab);
    steps->begin = moe_str_c(&begin);
    steps->min_blocks = 2; /* rows on the way are registers */
    if (g->tokens > g->many)
        moe_cuda_step(
            steps, "_shards", THREADS,
            moe_cuda_blocks(steps->t, many * g->shards * ((g->cols + 31) / 32) / warps + 1, 8),
            "grad.shards(keys);\n");
    int64_t slabs = (g->cols + 32 * e - 1) / (32 * e);
    moe_str_printf(&body, "grad.sum<%lld>(out);\n", (long long)e);
    moe_cuda_step(steps, "_sum", THREADS,
                  moe_cuda_blocks(steps->t, (g->vocab * slabs + warps - 1) / warps, 32),
                  moe_str_c(&body));
    moe_str_free(&body);
    moe_str_free(&begin);
}

static void lower_grad(MoeCudaTarget *t, const MoeOp *op, MoeLowered *out) {
    Grad g = grad_of(op);
    const MoeType *ids = &op->operands[1]->type;
    MoeBufs bufs = {.n = 0};
    int dy = moe_bufs_add(&bufs, op->operands[0]), in = moe_bufs_add(&bufs, op->operands[1]),
        tok = moe_bufs_add_seg(&bufs, ids), y = moe_bufs_add(&bufs, op->results[0]),
        work = moe_bufs_add_work(&bufs, 0);
    int part = op->n_operands > 2 ? moe_bufs_add(&bufs, op->operands[2]) : -1;
    MoeStr begin = {0};
    moe_cuda_live_rows(&begin, "n", ids, tok);
    first_id(&begin, part, g.vocab);
    moe_str_printf(&begin,
                   "const float *dy = buf<float>(a, %d);\nfloat *out = buf<float>(a, %d);\n"
                   "const PartKeys keys{buf<i32>(a, %d), first, %lld};\n"
                   "const EmbedWork work(buf<i32>(a, %d), n, %lld);\n",
                   dy, y, in, (long long)g.vocab, work, (long long)g.vocab);
    if (tok >= 0)
        moe_str_printf(&begin, "const i32 *tok = buf<i32>(a, %d);\n", tok);
    else
        moe_str_append(&begin, "const i32 *tok = nullptr;\n");
    MoeCudaSteps steps = {.t = t,
                          .out = out,
                          .bufs = &bufs,
                          .prefix = "embedding_grad",
                          .parts = 1u << MOE_CUDA_PART_embed,
                          .begin = moe_str_c(&begin)};
    moe_cuda_sort(&steps, &(MoeCudaSort){g.vocab, g.tokens, "n", "keys", "OrderSink{work.order}",
                                         "work.sort"});
    moe_cuda_sort_table(&steps, "_table", g.vocab, "PartBefore{keys, work.order}", "work.sort[0]",
                        "work.start");
    launch_sums(&steps, &g);
    moe_str_free(&begin);
}

int64_t moe_cuda_embed_workspace(MoeCudaTarget *t, const MoeGroup *g) {
    (void)t;
    if (g->ops[0]->opcode != MOE_OP_EMBEDDING_GRAD)
        return 0;
    Grad grad = grad_of(g->ops[0]);
    return grad_workspace(&grad);
}

MoeStatus moe_cuda_embed_lower(MoeCudaTarget *t, const MoeGroup *g, MoeLowered *out) {
    MOE_ASSERT(g->n_ops == 1, "embed: a group of %zu ops", g->n_ops);
    if (g->ops[0]->opcode == MOE_OP_EMBEDDING_GRAD)
        lower_grad(t, g->ops[0], out);
    else
        lower_embedding(t, g->ops[0], out);
    return NULL;
}
