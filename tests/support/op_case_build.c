/* From a case to its graph, inputs, expected results and the comparison. */
#include "tests/support/op_cases.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include "base/assert.h"

/* What a case's graph is built with. */
typedef struct {
    MoeGraph *g;
    const MoeOpCase *c;
    MoeDim rows; /* ragged over tok, or seg for EXPERT forms and grouped ops */
    int n_in;
} Build;

static MoeValue *input(Build *b, MoeType t) {
    char name[16];
    snprintf(name, sizeof name, "x%d", b->n_in++);
    return moe_build_input(b->g, name, t);
}

static MoeValue *rows_by(Build *b, MoeDtype d, int64_t cols) {
    return input(b, moe_type_2d(d, b->rows, cols));
}

/* The operand shape of a form; `other`: the second operand of a binary op. */
static MoeType form_type(const Build *b, bool other) {
    const MoeOpCase *c = b->c;
    MoeCaseForm f = c->form;
    MoeType scalar = moe_type_1d(c->dtype, 1), row = moe_type_1d(c->dtype, c->cols);
    MoeType column = moe_type_2d(c->dtype, b->rows, 1);
    if (f == MOE_FORM_VECTOR)
        return row;
    if (f == MOE_FORM_MATRIX)
        return moe_type_2d(c->dtype, moe_dim(3), c->cols);
    if (f == MOE_FORM_STACK)
        return other ? scalar : moe_type_3d(c->dtype, 3, 5, c->cols);
    if (f == MOE_FORM_SCALAR && other)
        return scalar;
    if (f == MOE_FORM_LEFT && !other)
        return scalar;
    if (f == MOE_FORM_COLS && other)
        return row;
    if (f == MOE_FORM_ROWS && other)
        return column;
    if (f == MOE_FORM_OUTER)
        return other ? row : column;
    return moe_type_2d(c->dtype, b->rows, c->cols);
}

static MoeOp *build_ew1(Build *b, MoeOpcode op) {
    MoeType t = b->c->form == MOE_FORM_SCALAR ? moe_type_1d(b->c->dtype, 1) : form_type(b, false);
    return moe_op_build(b->g, op, (MoeValue *[]){input(b, t)}, 1, MOE_END);
}

static MoeOp *build_load(Build *b) {
    MoeValue *x = input(b, form_type(b, false)), *out = moe_build1(b->g, MOE_OP_OFFLOAD, x);
    return moe_op_build(b->g, MOE_OP_LOAD, (MoeValue *[]){moe_build1(b->g, MOE_OP_WAIT, out)}, 1,
                        MOE_END);
}

static MoeOp *build_ew2(Build *b, MoeOpcode op) {
    MoeValue *x = input(b, form_type(b, false));
    MoeValue *y = b->c->form == MOE_FORM_SAME ? x : input(b, form_type(b, true));
    return moe_op_build(b->g, op, (MoeValue *[]){x, y}, 2, MOE_END);
}

static MoeOp *build_broadcast(Build *b) {
    const MoeOpCase *c = b->c;
    MoeCaseForm f = c->form;
    MoeType t = moe_type_1d(c->dtype, f == MOE_FORM_COLS || f == MOE_FORM_MATRIX ? c->cols : 1);
    if (f == MOE_FORM_ROWS)
        t = moe_type_2d(c->dtype, b->rows, 1);
    bool ragged = f != MOE_FORM_VECTOR && f != MOE_FORM_MATRIX;
    int64_t rows = ragged ? c->capacity : f == MOE_FORM_MATRIX ? 3 : 0;
    MoeValue *in[2] = {input(b, t), (MoeValue *)b->rows.seg};
    return moe_op_build(b->g, MOE_OP_BROADCAST, in, ragged ? 2 : 1, moe_ai("rows", rows),
                        moe_ai("cols", c->cols), MOE_END);
}

static MoeOp *build_contract(Build *b) {
    const MoeOpCase *c = b->c;
    bool wgrad = c->op == MOE_OP_WEIGHT_GRAD;
    if (c->form == MOE_FORM_MATRIX)
        b->rows = moe_dim(3);
    MoeValue *x = rows_by(b, c->dtype, wgrad ? c->n : c->k), *y;
    int64_t outer = c->tb ? c->n : c->k, inner = c->tb ? c->k : c->n;
    if (wgrad) {
        y = rows_by(b, c->dtype, c->k);
        return moe_op_build(b->g, c->op, (MoeValue *[]){x, y}, 2, moe_ai("grouped", c->grouped),
                            MOE_END);
    }
    y = input(b, c->grouped ? moe_type_3d(c->dtype, c->experts, outer, inner)
                            : moe_type_2d(c->dtype, moe_dim(outer), inner));
    return moe_op_build(b->g, c->op, (MoeValue *[]){x, y}, 2, moe_ai("tb", c->tb),
                        moe_ai("grouped", c->grouped), MOE_END);
}

/* topk, take, put, route_plan: on token rows. */
static MoeOp *build_routed(Build *b) {
    const MoeOpCase *c = b->c;
    if (c->op == MOE_OP_TOPK)
        return moe_op_build(b->g, c->op, (MoeValue *[]){rows_by(b, MOE_F32, c->experts)}, 1,
                            moe_ai("k", c->topk), MOE_END);
    if (c->op == MOE_OP_ROUTE_PLAN)
        return moe_op_build(b->g, c->op, (MoeValue *[]){rows_by(b, MOE_I32, c->topk)}, 1,
                            moe_ai("experts", c->experts), MOE_END);
    MoeValue *x = rows_by(b, MOE_F32, c->op == MOE_OP_TAKE ? c->experts : c->topk);
    MoeValue *in[2] = {x, rows_by(b, MOE_I32, c->topk)};
    if (c->op == MOE_OP_TAKE)
        return moe_op_build(b->g, c->op, in, 2, MOE_END);
    return moe_op_build(b->g, c->op, in, 2, moe_ai("cols", c->experts), MOE_END);
}

/* send_plan, expert_plan. */
static MoeOp *build_rank_plan(Build *b) {
    const MoeOpCase *c = b->c;
    MoeValue *in[3] = {rows_by(b, MOE_I32, c->topk)};
    in[1] = moe_build_input(b->g, "place", moe_type_1d(MOE_I32, c->experts));
    if (c->op == MOE_OP_SEND_PLAN)
        return moe_op_build(b->g, c->op, in, 2, moe_ai("slots", c->slots),
                            moe_ai("ranks", c->ranks), moe_ai("chunks", c->chunks),
                            moe_ai("expect", c->rows), MOE_END);
    in[2] = moe_build_input(b->g, "ep_rank", moe_type_1d(MOE_I32, 1));
    return moe_op_build(b->g, c->op, in, 3, moe_ai("slots", c->slots), moe_ai("chunks", c->chunks),
                        moe_ai("expect_recv", c->rows), moe_ai("expect_rows", c->rows), MOE_END);
}

/* The op's results are wanted, all of them, as in a program. */
static void keep_all(Build *b, const MoeOp *op, const char *what) {
    for (int i = 0; i < op->n_results; i++)
        moe_build_output(b->g, moe_arena_printf(b->g->arena, "%s.%d", what, i), op->results[i]);
}

/* copy_plan; with its results root_plan; with these root_grad, over rows of all slots as if they were one rank's. */
static MoeOp *build_copies(Build *b) {
    const MoeOpCase *c = b->c;
    MoeValue *ids = rows_by(b, MOE_I32, c->topk);
    MoeValue *copies = moe_build_input(b->g, "copies", moe_type_1d(MOE_I32, c->ranks * c->slots));
    MoeOp *plan = moe_op_build(b->g, MOE_OP_COPY_PLAN, (MoeValue *[]){ids, ids, copies}, 3,
                               moe_ai("experts", c->experts), moe_ai("ranks", c->ranks),
                               moe_ai("slots", c->slots), MOE_END);
    if (c->op == MOE_OP_COPY_PLAN)
        return plan;
    keep_all(b, plan, "copy");
    MoeValue *ep_rank = moe_build_input(b->g, "ep_rank", moe_type_1d(MOE_I32, 1)), *seg;
    MoeOp *rows = NULL;
    if (c->op == MOE_OP_ROOT_PLAN) {
        MoeValue *in[] = {plan->results[1], ep_rank};
        seg = moe_op_build(b->g, MOE_OP_EXPERT_PLAN, in, 2, moe_ai("slots", c->slots),
                           moe_ai("chunks", 1), moe_ai("expect_recv", c->rows),
                           moe_ai("expect_rows", c->rows), MOE_END)
                  ->results[1];
    } else {
        rows = moe_op_build(b->g, MOE_OP_ROUTE_PLAN, plan->results, 1,
                            moe_ai("experts", c->ranks * c->slots), MOE_END);
        seg = rows->results[0];
    }
    MoeValue *in[] = {seg, plan->results[2], plan->results[3], copies, ep_rank};
    MoeOp *roots = moe_op_build(b->g, MOE_OP_ROOT_PLAN, in, 5, moe_ai("expect", 2), MOE_END);
    if (c->op == MOE_OP_ROOT_PLAN)
        return roots;
    MoeValue *grad[4] = {rows_by(b, c->dtype, c->n), rows_by(b, c->dtype, c->k), roots->results[0],
                         roots->results[1]};
    for (int i = 0; i < 2; i++)
        grad[i] = moe_build(b->g, MOE_OP_DISPATCH,
                            (MoeValue *[]){grad[i], rows->results[1], rows->results[2]}, 3, MOE_END);
    return moe_op_build(b->g, MOE_OP_ROOT_GRAD, grad, 4, MOE_END);
}

static MoeOp *build_block_tree(Build *b) {
    const MoeOpCase *c = b->c;
    if (!c->experts)
        return moe_op_build(b->g, c->op, (MoeValue *[]){input(b, form_type(b, false))}, 1, MOE_END);
    MoeValue *in[2] = {input(b, moe_type_2d(MOE_F32, moe_dim(c->ranks * c->slots), c->cols))};
    in[1] = moe_build_input(b->g, "place", moe_type_1d(MOE_I32, c->experts));
    return moe_op_build(b->g, c->op, in, 2, MOE_END);
}

/* dispatch, gather_sum, dispatch_weight, collect_weight: the plan comes in as inputs. */
static MoeOp *build_move(Build *b) {
    const MoeOpCase *c = b->c;
    if (c->form == MOE_FORM_RECEIVED) {
        MoeValue *recv = moe_build_input(b->g, "recv", moe_type_segs(c->chunks, c->shards));
        b->rows = moe_dim_ragged(c->capacity, recv);
    }
    MoeValue *seg = moe_build_input(b->g, "seg", moe_type_segs(c->experts, c->shards));
    MoeDim expert_rows = moe_dim_ragged(c->capacity * c->topk, seg);
    MoeType src_type = moe_type_1d(MOE_I32, expert_rows.size), t;
    src_type.dims[0] = expert_rows;
    if (c->op == MOE_OP_DISPATCH)
        t = moe_type_2d(c->dtype, b->rows, c->cols);
    else if (c->op == MOE_OP_GATHER_SUM)
        t = moe_type_2d(MOE_F32, expert_rows, c->cols);
    else if (c->op == MOE_OP_DISPATCH_WEIGHT)
        t = moe_type_2d(MOE_F32, b->rows, c->topk);
    else
        t = moe_type_2d(MOE_F32, expert_rows, 1);
    MoeValue *x = input(b, t), *src = moe_build_input(b->g, "src", src_type);
    MoeValue *inv = moe_build_input(b->g, "inv", moe_type_2d(MOE_I32, b->rows, c->topk));
    return moe_op_build(b->g, c->op, (MoeValue *[]){x, src, inv}, 3, MOE_END);
}

static MoeType row_ids(const Build *b) {
    MoeType t = moe_type_1d(MOE_I32, b->rows.size);
    t.dims[0] = b->rows;
    return t;
}

static MoeOp *build_embedding(Build *b) {
    const MoeOpCase *c = b->c;
    bool forward = c->op == MOE_OP_EMBEDDING;
    MoeValue *in[3] = {forward ? input(b, moe_type_2d(MOE_F32, moe_dim(c->vocab), c->cols))
                               : rows_by(b, MOE_F32, c->cols)};
    in[1] = input(b, row_ids(b));
    int n = 2;
    if (c->ranks)
        in[n++] = moe_build_input(b->g, "part", moe_type_1d(MOE_I32, 1));
    if (forward)
        return moe_op_build(b->g, c->op, in, n, MOE_END);
    return moe_op_build(b->g, c->op, in, n, moe_ai("vocab", c->vocab), MOE_END);
}

static MoeOp *build_attention(Build *b) {
    const MoeOpCase *c = b->c;
    int64_t q_cols = c->heads * c->head_dim, kv_cols = c->kv_heads * c->head_dim;
    if (c->op == MOE_OP_ROPE)
        return moe_op_build(b->g, c->op, (MoeValue *[]){rows_by(b, MOE_F32, q_cols)}, 1,
                            moe_ai("heads", c->heads), moe_ai("head_dim", c->head_dim),
                            moe_af("theta", 10000), moe_ai("seq", c->seq),
                            moe_ai("inverse", c->inverse), MOE_END);
    MoeValue *in[6] = {rows_by(b, c->dtype, q_cols), rows_by(b, c->dtype, kv_cols),
                       rows_by(b, c->dtype, kv_cols)};
    int n = 3;
    if (c->op == MOE_OP_ATTENTION_GRAD) {
        in[n++] = rows_by(b, c->dtype, q_cols);
        in[n++] = rows_by(b, MOE_F32, c->heads);
        in[n++] = rows_by(b, c->dtype, q_cols);
    }
    return moe_op_build(b->g, c->op, in, n, moe_ai("heads", c->heads),
                        moe_ai("kv_heads", c->kv_heads), moe_ai("head_dim", c->head_dim),
                        moe_ai("seq", c->seq), moe_ai("window", c->window),
                        moe_af("scale", 1 / sqrt((double)c->head_dim)), MOE_END);
}

static MoeOp *build_cross_entropy(Build *b) {
    const MoeOpCase *c = b->c;
    MoeValue *in[6] = {NULL};
    if (c->op == MOE_OP_CROSS_ENTROPY_JOIN) {
        in[0] = rows_by(b, MOE_F32, 3 * c->ranks);
        in[1] = input(b, row_ids(b));
        return moe_op_build(b->g, c->op, in, 2, MOE_END);
    }
    in[0] = rows_by(b, c->dtype, c->cols);
    in[1] = input(b, moe_type_2d(c->dtype, moe_dim(c->vocab), c->cols));
    in[2] = input(b, row_ids(b));
    int n = 3;
    if (c->ranks)
        in[n++] = moe_build_input(b->g, "part", moe_type_1d(MOE_I32, 1));
    if (c->op == MOE_OP_LINEAR_CROSS_ENTROPY_PART)
        return moe_op_build(b->g, c->op, in, n, moe_ai("parts", c->ranks), MOE_END);
    if (c->op == MOE_OP_LINEAR_CROSS_ENTROPY_PART_GRAD)
        in[n++] = rows_by(b, MOE_F32, 1); /* lse */
    if (c->op != MOE_OP_LINEAR_CROSS_ENTROPY)
        in[n++] = rows_by(b, MOE_F32, 1); /* dnll */
    return moe_op_build(b->g, c->op, in, n, MOE_END);
}

static MoeOp *build_adamw(Build *b) {
    MoeValue *in[12];
    for (int i = 0; i < 12; i++)
        in[i] = input(b, i < 4 ? form_type(b, false) : moe_type_1d(MOE_F32, 1));
    return moe_op_build(b->g, MOE_OP_ADAMW, in, 12, MOE_END);
}

static MoeValue *declare(Build *b, MoeOpcode op, const MoeAttr *attrs, int n, MoeType t) {
    return moe_op_build_v(b->g, op, NULL, 0, attrs, n, &t, NULL)->results[0];
}

/* A declaration and an op that uses it; y0 is that op's result. */
static MoeValue *build_declaration(Build *b) {
    const MoeOpCase *c = b->c;
    MoeType t = moe_type_2d(c->dtype, b->rows, c->cols);
    MoeAttr param[] = {moe_as("name", "w"), moe_as("init", "ones"), moe_ai("decay", 0)};
    MoeAttr state[] = {moe_as("name", "exp_avg"), moe_as("of", "w")};
    MoeAttr constant[] = {moe_af("value", c->dtype == MOE_I32 ? -3 : 0.3)};
    MoeType w_type = moe_type_1d(MOE_F32, c->cols);
    MoeValue *x = input(b, t), *w;
    if (c->op == MOE_OP_INPUT || c->op == MOE_OP_OUTPUT)
        return moe_build2(b->g, MOE_OP_ADD, x, x);
    if (c->op == MOE_OP_CONST) {
        w = declare(b, c->op, constant, 1, moe_type_1d(c->dtype, 1));
        return moe_build2(b->g, MOE_OP_ADD, x, w);
    }
    w = declare(b, MOE_OP_PARAM, param, 3, w_type);
    if (c->op == MOE_OP_STATE)
        w = declare(b, c->op, state, 2, w_type);
    if (c->op != MOE_OP_ASSIGN)
        return moe_build2(b->g, MOE_OP_ADD, x, w);
    MoeValue *next = moe_build2(b->g, MOE_OP_ADD, w, input(b, w_type));
    moe_op_build(b->g, MOE_OP_ASSIGN, (MoeValue *[]){w, next}, 2, MOE_END);
    return next;
}

static MoeOp *build_op(Build *b) {
    const MoeOpCase *c = b->c;
    MoeOpcode op = c->op;
    const MoeOpInfo *info = moe_op_info(op);
    if (op == MOE_OP_CONVERT)
        return moe_op_build(b->g, op, (MoeValue *[]){input(b, form_type(b, false))}, 1,
                            moe_as("to", c->dtype == MOE_F32 ? "bf16" : "f32"), MOE_END);
    if (op == MOE_OP_BROADCAST)
        return build_broadcast(b);
    if (op == MOE_OP_RMSNORM) {
        MoeValue *x = rows_by(b, MOE_F32, c->cols), *w = input(b, moe_type_1d(MOE_F32, c->cols));
        return moe_op_build(b->g, op, (MoeValue *[]){x, w}, 2, moe_af("eps", 1e-5), MOE_END);
    }
    if (op == MOE_OP_ADAMW)
        return build_adamw(b);
    if (op == MOE_OP_OFFLOAD || op == MOE_OP_LOAD)
        return build_load(b);
    if (op == MOE_OP_MATMUL || op == MOE_OP_WEIGHT_GRAD)
        return build_contract(b);
    if (op == MOE_OP_TOPK || op == MOE_OP_TAKE || op == MOE_OP_PUT || op == MOE_OP_ROUTE_PLAN)
        return build_routed(b);
    if (op == MOE_OP_EXPERT_COUNTS || op == MOE_OP_ROW_COUNT)
        return moe_op_build(b->g, op, (MoeValue *[]){(MoeValue *)b->rows.seg}, 1, MOE_END);
    if (op == MOE_OP_COUNT_VALID)
        return moe_op_build(b->g, op, (MoeValue *[]){input(b, row_ids(b))}, 1, MOE_END);
    if (info->kind == MOE_KIND_MOVE)
        return build_move(b);
    if (op == MOE_OP_SEND_PLAN || op == MOE_OP_EXPERT_PLAN)
        return build_rank_plan(b);
    if (op == MOE_OP_BLOCK_TREE)
        return build_block_tree(b);
    if (op == MOE_OP_COPY_PLAN || op == MOE_OP_ROOT_PLAN || op == MOE_OP_ROOT_GRAD)
        return build_copies(b);
    if (op == MOE_OP_EMBEDDING || op == MOE_OP_EMBEDDING_GRAD)
        return build_embedding(b);
    if (op == MOE_OP_ROPE || op == MOE_OP_ATTENTION || op == MOE_OP_ATTENTION_GRAD)
        return build_attention(b);
    if (info->kind == MOE_KIND_XENT)
        return build_cross_entropy(b);
    MOE_ASSERT(info->n_out == 1 && info->min_in == info->max_in && info->min_in <= 2,
               "no way to build a case of %s", info->name);
    return info->min_in == 1 ? build_ew1(b, op) : build_ew2(b, op);
}

/* Whether the main rows of the case are expert rows. Move ops have both and make their own. */
static bool over_experts(const MoeOpCase *c) {
    return c->experts && (c->form == MOE_FORM_EXPERT || c->grouped ||
                          c->op == MOE_OP_EXPERT_COUNTS || c->op == MOE_OP_ROW_COUNT);
}

MoeGraph *moe_op_case_build(MoeModule *m, const MoeOpCase *c) {
    Build b = {moe_module_add_graph(m, "case"), c, {0, NULL}, 0};
    b.g->leaf_rows = c->leaf_rows;
    b.g->fast_reduce = c->fast_reduce;
    if (c->shards && c->form != MOE_FORM_RECEIVED) {
        MoeValue *seg = over_experts(c)
                            ? moe_build_input(b.g, "seg", moe_type_segs(c->experts, c->shards))
                            : moe_build_input(b.g, "tok", moe_type_segs(1, c->shards));
        b.rows = moe_dim_ragged(c->capacity, seg);
    }
    if (moe_op_info(c->op)->kind == MOE_KIND_DECL) {
        moe_build_output(b.g, "y0", build_declaration(&b));
        return b.g;
    }
    MoeOp *op = build_op(&b);
    for (int r = 0; r < op->n_results; r++) {
        char name[16];
        snprintf(name, sizeof name, "y%d", r);
        moe_build_output(b.g, name, op->results[r]);
    }
    return b.g;
}

MoeStatus moe_case_fill(const MoeGraph *g, const MoeOpCase *c, uint64_t seed, MoeArena *a,
                        MoeInputs *out) {
    MoeRandomOptions o = {.seed = seed,
                          .rows = c->rows,
                          .shards = c->layout,
                          .routing = c->routing,
                          .ignored = 0.2,
                          .slots = c->ranks * c->slots,
                          .ep_rank = c->ep_rank,
                          .parts = c->ranks,
                          .elsewhere = c->form == MOE_FORM_RECEIVED};
    return moe_random_inputs(g, &o, a, out);
}

MoeStatus moe_case_run_open(const MoeOpCase *c, uint64_t seed, MoeCaseRun *out) {
    MoeStatus st = NULL;
    *out = (MoeCaseRun){.module = moe_module_create(), .arena = moe_arena_create()};
    out->graph = moe_op_case_build(out->module, c);
    MOE_TRY_GOTO(st, moe_case_fill(out->graph, c, seed, out->arena, &out->inputs), done);
    out->eval = moe_eval_create(out->graph);
    MOE_TRY_GOTO(st, moe_inputs_give(&out->inputs, out->eval), done);
    MOE_TRY_GOTO(st, moe_eval_run(out->eval), done);
done:
    if (st)
        moe_case_run_close(out);
    return moe_status_prefix(st, "case %s", c->id);
}

void moe_case_run_close(MoeCaseRun *run) {
    moe_eval_destroy(run->eval);
    moe_arena_destroy(run->arena);
    if (run->module)
        moe_module_destroy(run->module);
    *run = (MoeCaseRun){0};
}

const MoeTensor *moe_case_want(const MoeCaseRun *run, int r) {
    char name[16];
    snprintf(name, sizeof name, "y%d", r);
    const MoeValue *v = moe_graph_find_output(run->graph, name);
    return v ? moe_eval_get(run->eval, v) : NULL;
}

bool moe_case_check(const MoeOpCase *c, int r, const MoeTensor *want, const MoeTensor *got,
                    MoeStr *why) {
    const MoeTolerance *tol = &c->tolerance[r];
    double top = 0, worst = 0;
    int64_t at = -1, bad = 0;
    if (got->n != want->n) {
        moe_str_printf(why, "y%d has %lld elements, expected %lld", r, (long long)got->n,
                       (long long)want->n);
        return false;
    }
    for (int64_t k = 0; want->f && k < want->n; k++)
        if (isfinite(want->f[k]))
            top = fmax(top, fabs(want->f[k]));
    for (int64_t k = 0; k < want->n; k++) {
        double w = want->f ? want->f[k] : want->i[k], g = want->f ? got->f[k] : got->i[k];
        double bound = want->f ? tol->absolute + tol->of_max * top + tol->of_element * fabs(w) : 0;
        double off = fabs(g - w);
        if (w == g || (isnan(w) && isnan(g)) || (isfinite(w) && off <= bound))
            continue;
        bad++;
        double over = isfinite(off) && bound > 0 ? off / bound : INFINITY;
        if (at < 0 || over > worst) {
            worst = over;
            at = k;
        }
    }
    if (!bad)
        return true;
    double w = want->f ? want->f[at] : want->i[at], g = want->f ? got->f[at] : got->i[at];
    double bound = want->f ? tol->absolute + tol->of_max * top + tol->of_element * fabs(w) : 0;
    moe_str_printf(why,
                   "y%d: %lld of %lld elements are off; element %lld is %.9g, expected %.9g, "
                   "bound %.3g",
                   r, (long long)bad, (long long)want->n, (long long)at, g, w, bound);
    return false;
}
