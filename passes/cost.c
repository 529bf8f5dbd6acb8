/* FLOPs of ops and the roofline of groups.
 * In: a group. Out: FLOPs, bytes to and from memory, predicted seconds. */
#include "passes/cost.h"

typedef double (*CostFn)(const MoeOp *op);

static double elements(const MoeValue *v) {
    return (double)moe_value_expected_elements(v);
}

static double moe_cost_zero(const MoeOp *op) {
    (void)op;
    return 0;
}

/* One operation an element; functions computed by polynomials count as about what they cost. */
static double moe_cost_ew(const MoeOp *op) {
    double n = 0;
    for (int i = 0; i < op->n_operands; i++)
        if (op->operands[i]->type.kind == MOE_TYPE_TENSOR && elements(op->operands[i]) > n)
            n = elements(op->operands[i]);
    for (int i = 0; i < op->n_results; i++)
        if (elements(op->results[i]) > n)
            n = elements(op->results[i]);
    static const struct {
        MoeOpcode op;
        double each;
    } heavy[] = {{MOE_OP_EXP, 12},  {MOE_OP_LOG, 16},     {MOE_OP_SIGMOID, 16},
                 {MOE_OP_DIV, 4},   {MOE_OP_SQRT, 4},     {MOE_OP_RSQRT, 8},
                 {MOE_OP_SILU, 17}, {MOE_OP_SOFTMAX, 18}, {MOE_OP_RMSNORM, 4}};
    for (size_t i = 0; i < sizeof heavy / sizeof *heavy; i++)
        if (heavy[i].op == op->opcode)
            return n * heavy[i].each;
    if (op->opcode == MOE_OP_TOPK)
        return n * (double)moe_attr_i(op, "k");
    return n;
}

static double moe_cost_sumsq(const MoeOp *op) {
    return 2 * elements(op->operands[0]);
}

/* matmul: a [T,k] -> [T,n]; weight_grad: dy [T,n], x [T,k] -> [n,k]: 2 T n k, per expert or not. */
static double moe_cost_gemm(const MoeOp *op) {
    if (op->opcode == MOE_OP_MATMUL)
        return 2 * elements(op->operands[0]) * (double)moe_type_cols(&op->results[0]->type);
    return 2 * elements(op->operands[0]) * (double)moe_type_cols(&op->operands[1]->type);
}

/* (query, key) pairs of all sequences, causal and windowed. */
static double pairs(const MoeOp *op) {
    double t = (double)op->operands[0]->type.dims[0].size;
    double s = (double)moe_attr_i(op, "seq"), w = (double)moe_attr_i(op, "window");
    if (w <= 0 || w > s)
        w = s;
    double each = w * (w + 1) / 2 + (s - w) * w;
    return s > 0 ? t / s * each : 0;
}

static double moe_cost_attn(const MoeOp *op) {
    return 4 * pairs(op) * (double)(moe_attr_i(op, "heads") * moe_attr_i(op, "head_dim"));
}

static double moe_cost_attn_grad(const MoeOp *op) { /* q k again, dp, dv, dq, dk */
    return 10 * pairs(op) * (double)(moe_attr_i(op, "heads") * moe_attr_i(op, "head_dim"));
}

static double moe_cost_xent(const MoeOp *op) {
    return 2 * elements(op->operands[0]) * (double)op->operands[1]->type.dims[0].size;
}

static double moe_cost_xent_grad(const MoeOp *op) {
    return 3 * moe_cost_xent(op);
}

static double moe_cost_adamw(const MoeOp *op) {
    return 16 * elements(op->operands[0]);
}

static const CostFn cost_fns[MOE_N_OPS] = {
#define OP(id, name, min_in, max_in, n_out, kind, attrs, infer, grad, decomp, shard, cost, doc)    \
    moe_cost_##cost,
#include "ir/ops.def"
#undef OP
};

double moe_op_flops(const MoeOp *op) {
    return cost_fns[op->opcode](op);
}

/* Bytes read of an input: a gather reads the rows it needs, not the table. */
static double bytes_read(const MoeGroup *g, const MoeValue *v) {
    double n = (double)moe_value_expected_bytes(v);
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i];
        if (op->opcode == MOE_OP_EMBEDDING && op->operands[0] == v) {
            double rows = (double)moe_value_expected_bytes(op->results[0]);
            return rows < n ? rows : n;
        }
    }
    return n;
}

static bool is_elastic(const MoeValue *v) {
    const MoeDim *d = &v->type.dims[0];
    return v->type.kind == MOE_TYPE_TENSOR && d->seg && moe_segs_expected_rows(d->seg, d->size) < d->size;
}

/* Whether what the op does goes by elastic rows; *rows: the first table that says so. What sums rows goes by those, however few its
 * results are. */
static bool goes_by_rows(const MoeOp *op, const MoeValue **rows) {
    const MoeValue *v = NULL;
    bool sums = moe_op_info(op->opcode)->kind == MOE_KIND_WGRAD;
    for (int i = 0; i < op->n_results && !v && !sums; i++)
        v = is_elastic(op->results[i]) ? op->results[i] : NULL;
    for (int i = 0; i < op->n_operands && !v; i++)
        v = is_elastic(op->operands[i]) ? op->operands[i] : NULL;
    if (v && rows)
        *rows = v->type.dims[0].seg;
    return v != NULL;
}

static double elastic_bytes(const MoeGroup *g) {
    double n = 0;
    for (size_t i = 0; i < g->n_inputs; i++)
        n += is_elastic(g->inputs[i]) ? bytes_read(g, g->inputs[i]) : 0;
    for (size_t i = 0; i < g->n_outputs; i++)
        n += is_elastic(g->outputs[i]) ? (double)moe_value_expected_bytes(g->outputs[i]) : 0;
    return n;
}

MoeElasticCost moe_group_elastic(const MoeGroup *g) {
    MoeElasticCost e = {0};
    double most = -1;
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeValue *rows = NULL;
        if (!goes_by_rows(g->ops[i], &rows))
            continue;
        double f = moe_op_flops(g->ops[i]);
        e.flops += f;
        if (f > most)
            e.rows = rows;
        most = f > most ? f : most;
    }
    if (!e.rows)
        return e;
    e.expect = (double)moe_segs_expected_rows(e.rows, INT64_MAX);
    e.bytes = elastic_bytes(g);
    return e;
}

MoeCost moe_group_cost(const MoeTarget *t, const MoeGroup *g, int n_threads, double rows) {
    MoeCost c = {0};
    double compute = 0;
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i];
        MoeKind k = moe_op_info(op->opcode)->kind;
        bool dots = k == MOE_KIND_GEMM || k == MOE_KIND_WGRAD || k == MOE_KIND_ATTN ||
                    k == MOE_KIND_ATTN_GRAD || k == MOE_KIND_XENT;
        bool bf16 = dots && op->operands[0]->type.dtype == MOE_BF16;
        double f = moe_op_flops(op), peak = bf16 ? t->peak_flops_bf16 : t->peak_flops_f32;
        f *= rows != 1 && goes_by_rows(op, NULL) ? rows : 1;
        c.flops += f;
        if (peak > 0)
            compute += f / (peak * n_threads);
    }
    for (size_t i = 0; i < g->n_inputs; i++)
        if (g->inputs[i]->def->opcode != MOE_OP_CONST)
            c.bytes += bytes_read(g, g->inputs[i]);
    for (size_t i = 0; i < g->n_outputs; i++)
        c.bytes += (double)moe_value_expected_bytes(g->outputs[i]);
    c.bytes += rows != 1 ? (rows - 1) * elastic_bytes(g) : 0;
    double move = t->memory_bandwidth > 0 ? c.bytes / t->memory_bandwidth : 0;
    c.seconds = compute > move ? compute : move;
    return c;
}

MoeRateName moe_group_rate(const MoeGroup *g) {
    MoeRateName name = MOE_RATE_row;
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i];
        int bf16 = op->n_operands && op->operands[0]->type.dtype == MOE_BF16;
        switch (moe_op_info(op->opcode)->kind) {
        case MOE_KIND_GEMM:
            return MOE_RATE_gemm + (MoeRateName)bf16;
        case MOE_KIND_WGRAD:
            return MOE_RATE_wgrad + (MoeRateName)bf16;
        case MOE_KIND_ATTN:
            return MOE_RATE_attn + (MoeRateName)bf16;
        case MOE_KIND_ATTN_GRAD:
            return MOE_RATE_attn_grad + (MoeRateName)bf16;
        case MOE_KIND_XENT:
            return MOE_RATE_xent + (MoeRateName)bf16;
        case MOE_KIND_REDUCE:
            name = MOE_RATE_reduce;
            break;
        case MOE_KIND_DECL:
        case MOE_KIND_EW:
        case MOE_KIND_ROW:
        case MOE_KIND_MOVE:
        case MOE_KIND_SYNC:
        case MOE_KIND_ROUTE:
        case MOE_KIND_EMBED:
        case MOE_KIND_EMBED_GRAD:
        case MOE_KIND_ROPE:
        case MOE_KIND_COMM:
        case MOE_KIND_STORE:
        case MOE_KIND_COMPOSITE:
        case MOE_N_KINDS:
            break;
        }
        if (op->phase == MOE_PHASE_UPDATE)
            name = MOE_RATE_update;
    }
    return name;
}

double moe_op_packed_bytes(const MoeOp *op) {
    return op->opcode == MOE_OP_MATMUL ? 2 * (double)moe_value_expected_bytes(op->operands[1]) : 0;
}

double moe_group_rated_seconds(const MoeGroup *g, const MoeRates *r, MoeCost c) {
    MoeRateName name = moe_group_rate(g);
    double seconds = moe_rates_seconds(r, name, moe_rate_in_flops(name) ? c.flops : c.bytes);
    for (size_t i = 0; i < g->n_ops; i++)
        seconds += moe_rates_seconds(r, MOE_RATE_pack, moe_op_packed_bytes(g->ops[i]));
    return seconds;
}
