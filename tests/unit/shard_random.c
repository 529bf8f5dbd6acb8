/* The shard pass on random models: whatever it accepts computes on all ranks what one rank computes (--eval-each), and what it
 * refuses it refuses with an error that says why. A failing case is named by its seed. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/rng.h"
#include "ir/verify.h"
#include "passes/pipeline.h"
#include "passes/shard.h"
#include "tests/support/check_main.h"

enum { SEQ = 4, BATCH = 4, SHARDS = 8, MAX_VALUES = 64, SEEDS = 40, PER_TEST = 25 };

typedef struct {
    uint64_t seed, n; /* n: draws so far */
    MoeGraph *g;
    MoeValue *tok, *values[MAX_VALUES]; /* f32[T, 4 or 8] */
    int n_values, n_params, n_experts, micro_batches;
} Gen;

static int draw(Gen *r, int below) {
    return (int)moe_rng_below(r->seed, 1, r->n++, (uint64_t)below);
}

static MoeValue *pick(Gen *r) {
    return r->values[draw(r, r->n_values)];
}

static void push(Gen *r, MoeValue *v) {
    if (r->n_values < MAX_VALUES)
        r->values[r->n_values++] = v;
}

static MoeValue *param(Gen *r, MoeType t, bool stacked) {
    const char *name = moe_arena_printf(r->g->arena, "p%d%s", r->n_params++, stacked ? ".*" : "");
    MoeAttr attrs[] = {moe_as("name", name), moe_as("init", "normal"), moe_af("std", 0.02),
                       moe_ai("decay", draw(r, 2)), moe_ai("stacked", stacked)};
    return moe_op_build_v(r->g, MOE_OP_PARAM, NULL, 0, attrs, 5, &t, NULL)->results[0];
}

static int64_t cols(const MoeValue *v) {
    return moe_type_cols(&v->type);
}

/* x [T,k] -> [T,n]; experts > 0: grouped */
static MoeValue *linear(Gen *r, MoeValue *x, int64_t n, int64_t experts) {
    int tb = draw(r, 2);
    int64_t k = cols(x), a = tb ? n : k, b = tb ? k : n;
    MoeValue *w = param(
        r, experts ? moe_type_3d(MOE_F32, experts, a, b) : moe_type_2d(MOE_F32, moe_dim(a), b),
        experts > 0);
    if (draw(r, 3) == 0) {
        x = moe_build_convert(r->g, x, MOE_BF16);
        w = moe_build_convert(r->g, w, MOE_BF16);
    }
    return moe_build(r->g, MOE_OP_MATMUL, (MoeValue *[]){x, w}, 2, moe_ai("tb", tb),
                     moe_ai("grouped", experts > 0), MOE_END);
}

static MoeValue *unary(Gen *r, MoeValue *x) {
    static const MoeOpcode ops[] = {MOE_OP_SIGMOID, MOE_OP_SILU, MOE_OP_NEG, MOE_OP_SOFTMAX};
    return moe_build1(r->g, ops[draw(r, 4)], x);
}

static MoeValue *same_width(Gen *r, const MoeValue *x) {
    for (int tries = 0; tries < 20; tries++) {
        MoeValue *y = pick(r);
        if (cols(y) == cols(x))
            return y;
    }
    return NULL;
}

static void binary(Gen *r, MoeValue *x) {
    static const MoeOpcode ops[] = {MOE_OP_ADD, MOE_OP_SUB, MOE_OP_MUL};
    MoeValue *y = same_width(r, x);
    if (y)
        push(r, moe_build2(r->g, ops[draw(r, 3)], x, y));
}

static void attention(Gen *r, MoeValue *x) {
    int64_t heads = draw(r, 2) ? 4 : 2, kv = draw(r, 2) ? heads : 2;
    MoeValue *q = linear(r, x, heads * 2, 0), *k = linear(r, x, kv * 2, 0),
             *v = linear(r, x, kv * 2, 0);
    MoeAttr dim = moe_ai("head_dim", 2), seq = moe_ai("seq", SEQ);
    if (draw(r, 2))
        q = moe_build(r->g, MOE_OP_ROPE, &q, 1, moe_ai("heads", heads), dim, moe_af("theta", 100.0),
                      seq, moe_ai("inverse", 0), MOE_END);
    MoeValue *o = moe_build(r->g, MOE_OP_ATTENTION, (MoeValue *[]){q, k, v}, 3,
                            moe_ai("heads", heads), moe_ai("kv_heads", kv), dim, seq,
                            moe_ai("window", 0), moe_af("scale", 0.7), MOE_END);
    push(r, draw(r, 3) ? linear(r, o, cols(x), 0) : o);
}

static void experts(Gen *r, MoeValue *x) {
    int64_t n = 2 + draw(r, 4), k = 1 + draw(r, 2), width = draw(r, 2) ? 4 : 8;
    r->g->layer++;
    r->n_experts++;
    MoeValue *probs = moe_build1(r->g, MOE_OP_SOFTMAX, linear(r, x, n, 0));
    MoeValue *ids = moe_build(r->g, MOE_OP_TOPK, &probs, 1, moe_ai("k", k), MOE_END);
    MoeValue *top = moe_build2(r->g, MOE_OP_TAKE, probs, ids);
    MoeOp *plan = moe_op_build(r->g, MOE_OP_ROUTE_PLAN, &ids, 1, moe_ai("experts", n), MOE_END);
    MoeValue *src = plan->results[1], *inv = plan->results[2];
    if (draw(r, 4) == 0) /* moved before they are rounded */
        x = unary(r, x);
    MoeValue *rows = moe_build(r->g, MOE_OP_DISPATCH, (MoeValue *[]){x, src, inv}, 3, MOE_END);
    MoeValue *h = linear(r, rows, width, n);
    MoeValue *scale =
        moe_build(r->g, MOE_OP_DISPATCH_WEIGHT, (MoeValue *[]){top, src, inv}, 3, MOE_END);
    h = moe_build2(r->g, MOE_OP_MUL, unary(r, h), scale);
    if (draw(r, 2))
        h = linear(r, h, cols(x), n);
    push(r, moe_build(r->g, MOE_OP_GATHER_SUM, (MoeValue *[]){h, src, inv}, 3, MOE_END));
    moe_build_output(r->g, moe_arena_printf(r->g->arena, "segs.%d", r->g->layer), plan->results[0]);
    MoeValue *counts = moe_build1(r->g, MOE_OP_EXPERT_COUNTS, plan->results[0]);
    moe_build_output(r->g, moe_arena_printf(r->g->arena, "counts.%d", r->g->layer),
                     moe_build1(r->g, MOE_OP_BATCH_SUM, counts));
}

static void step(Gen *r) {
    MoeValue *x = pick(r);
    switch (draw(r, 9)) {
    case 0:
    case 1:
        push(r, linear(r, x, draw(r, 2) ? 4 : 8, 0));
        break;
    case 2:
        push(r, unary(r, x));
        break;
    case 3:
    case 4:
        binary(r, x);
        break;
    case 5:
        push(r, moe_build2(r->g, MOE_OP_MUL, x, param(r, moe_type_1d(MOE_F32, cols(x)), false)));
        break;
    case 6:
        push(r, moe_build2(r->g, MOE_OP_MUL, x, moe_build1(r->g, MOE_OP_ROW_SUM, pick(r))));
        break;
    case 7:
        attention(r, x);
        break;
    default:
        experts(r, x);
    }
}

/* The loss of all values that were made, each a mean over the batch's rows. */
static void loss(Gen *r) {
    MoeGraph *g = r->g;
    g->layer = -1;
    MoeValue *rows = moe_build1(g, MOE_OP_BATCH_SUM, moe_build1(g, MOE_OP_ROW_COUNT, r->tok)),
             *sum = NULL;
    rows = moe_build_convert(g, rows, MOE_F32);
    for (int i = 1; i < r->n_values; i++) {
        MoeValue *s = moe_build1(g, MOE_OP_ACCUMULATE, moe_build1(g, MOE_OP_COL_SUM, r->values[i]));
        s = moe_build1(g, MOE_OP_ROW_SUM, moe_build2(g, MOE_OP_DIV, s, rows));
        sum = sum ? moe_build2(g, MOE_OP_ADD, sum, s) : s;
    }
    moe_build_output(g, "loss", sum);
    moe_build_output(g, "last", r->values[r->n_values - 1]);
}

static MoeModule *generate(Gen *r) {
    MoeModule *m = moe_module_create();
    r->g = moe_module_add_graph(m, "train");
    r->tok = moe_build_input(r->g, "tok", moe_type_segs(1, SHARDS));
    MoeDim rows = moe_dim_ragged(SEQ * BATCH / r->micro_batches, r->tok);
    if (draw(r, 2)) {
        MoeType ids = {.kind = MOE_TYPE_TENSOR, .dtype = MOE_I32, .rank = 1, .dims = {rows}};
        MoeValue *v = moe_build_input(r->g, "ids", ids);
        MoeValue *table = param(r, moe_type_2d(MOE_F32, moe_dim(5 + draw(r, 3)), 8), false);
        push(r, moe_build2(r->g, MOE_OP_EMBEDDING, table, v));
    } else
        push(r, moe_build_input(r->g, "x", moe_type_2d(MOE_F32, rows, 8)));
    push(r, linear(r, r->values[0], 4, 0)); /* at least one parameter */
    for (int i = 3 + draw(r, 6); i > 0; i--)
        step(r);
    loss(r);
    return m;
}

static MoeMesh random_mesh(Gen *r) {
    MoeMesh m = moe_mesh_one();
    for (int i = 1 + draw(r, 3); i > 0; i--) {
        int *degrees[] = {&m.dp, &m.shard, &m.ep, &m.tp};
        *degrees[draw(r, 4)] *= 2;
    }
    if (m.tp > 4)
        m.tp = 4;
    int most = m.shard * m.ep;
    while (m.dense_shard < most && draw(r, 2))
        m.dense_shard *= 2;
    m.extra_slots = draw(r, 3); /* eval-each fills most of them with copies */
    return m;
}

static void run_case(uint64_t seed, int *n_accepted) {
    Gen r = {.seed = seed};
    MoeMesh mesh = random_mesh(&r);
    int data = moe_mesh_data_ranks(&mesh);
    r.micro_batches = data < SHARDS && draw(&r, 2) ? 2 : 1;
    MoeModule *m = generate(&r);
    if (!r.n_experts && draw(&r, 8))
        mesh.ep = 1, mesh.dense_shard = 1;
    ck_assert_msg(data * r.micro_batches <= SHARDS, "seed %d", (int)seed);
    MoePassContext cx = {.module = m, .arena = m->arena};
    cx.options = (MoePassOptions){.batch = BATCH,
                                  .seq = SEQ,
                                  .virtual_shards = SHARDS,
                                  .micro_batches = r.micro_batches,
                                  .recompute = (MoeRecompute)draw(&r, 3),
                                  .mesh = mesh,
                                  .emit_grads = true};
    char *err = NULL;
    size_t n;
    FILE *f = open_memstream(&err, &n);
    MoePipelineOptions o = {.passes = "grad,decompose,shard,recompute",
                            .verify_each = true,
                            .eval_each = true,
                            .err = f};
    MoeStatus st = moe_pipeline_run(&cx, &o);
    fclose(f);
    if (st) {
        bool refused = moe_status_code(st) == MOE_E_INPUT || moe_status_code(st) == MOE_E_MISUSE;
        ck_assert_msg(refused && mesh.ep * mesh.tp > 1, "seed %d, dp %d shard %d ep %d tp %d extra %d: %s",
                      (int)seed, mesh.dp, mesh.shard, mesh.ep, mesh.tp, mesh.extra_slots, moe_status_message(st));
        moe_status_free(st);
    } else {
        ck_assert_msg(moe_mesh_size(&mesh) == 1 || strstr(err, "eval-each: shard: "), "seed %d: %s",
                      (int)seed, err);
        ++*n_accepted;
    }
    free(err);
    moe_module_destroy(m);
}

START_TEST(test_random) {
    int n_accepted = 0;
    for (int i = 0; i < PER_TEST; i++)
        run_case((uint64_t)(_i * PER_TEST + i), &n_accepted);
    ck_assert_msg(n_accepted >= PER_TEST / 2, "only %d of %d models were accepted", n_accepted,
                  PER_TEST);
}
END_TEST

int main(void) {
    Suite *s = suite_create("shard_random");
    TCase *t = tcase_create("shard_random");
    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, test_random, 0, SEEDS);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
