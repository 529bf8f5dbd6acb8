/* The shard pass on whole models: every mesh computes what one rank computes (--eval-each over all ranks in lockstep), the
 * verifier refuses every collective that is left out or runs in another group, and what travels does so once. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "frontends/frontend.h"
#include "ir/verify.h"
#include "passes/eval_each.h"
#include "passes/pipeline.h"
#include "passes/shard.h"
#include "tests/support/check_main.h"
#include "tests/support/fake_target.h"
#include "tests/support/mesh.h"

static void ok(MoeStatus st) {
    ck_assert_msg(!st, "%s", moe_status_message(st));
}

/* ---- models ---- */

typedef struct {
    bool dense, tied, bf16;
    int64_t experts, batch;            /* 0: 5 experts, 4 sequences */
    int micro_batches, virtual_shards; /* 0: 1, 8 */
    MoeRecompute recompute;
} Model;

/* Tensors of one block of 4096 elements and of two: slices are empty, short and full. */
static MoeModule *build(const Model *o, MoePassOptions *p) {
    MoeHfConfig c = {.vocab_size = 130,
                     .hidden_size = 32,
                     .intermediate_size = 136,
                     .layers = 2,
                     .heads = 4,
                     .kv_heads = 2,
                     .head_dim = 8,
                     .experts = o->dense     ? 0
                                : o->experts ? o->experts
                                             : 5,
                     .experts_per_token = o->dense ? 0 : 2,
                     .max_positions = 16,
                     .rope_theta = 100.0,
                     .rms_norm_eps = 1e-5,
                     .initializer_range = 0.02,
                     .router_aux_loss_coef = 0.5,
                     .tie_word_embeddings = o->tied,
                     .output_router_logits = true};
    strcpy(c.model_type, o->dense ? "llama" : "mixtral");
    MoeFrontendOptions f = {.batch = o->batch ? o->batch : 4,
                            .seq = 6,
                            .virtual_shards = o->virtual_shards ? o->virtual_shards : 8,
                            .micro_batches = o->micro_batches ? o->micro_batches : 1,
                            .mixed_bf16 = o->bf16};
    *p = (MoePassOptions){.batch = f.batch,
                          .seq = f.seq,
                          .virtual_shards = f.virtual_shards,
                          .micro_batches = f.micro_batches,
                          .mixed_bf16 = o->bf16,
                          .recompute = o->recompute,
                          .emit_grads = true};
    MoeModule *m;
    ok(moe_hf_build(&c, &f, &m));
    return m;
}

/* Runs passes; what --eval-each said is in *err (free it). */
static MoeModule *run(const Model *o, MoeMesh mesh, const char *passes, char **err) {
    MoePassOptions p;
    MoeModule *m = build(o, &p);
    p.mesh = mesh;
    MoePassContext cx = {.module = m, .options = p, .arena = m->arena};
    size_t n;
    FILE *f = err ? open_memstream(err, &n) : NULL;
    MoePipelineOptions pipe = {
        .passes = passes, .verify_each = true, .eval_each = err != NULL, .err = f};
    MoeStatus st = moe_pipeline_run(&cx, &pipe);
    if (f)
        fclose(f);
    ok(st);
    return m;
}

/* ---- every mesh ---- */

/* dp, shard, ep, tp, dense_shard; then ranges of layers: first, last, dp, shard, ep */
static const MoeMesh meshes[] = {
    MESH(1, 1, 2, 1, 1), MESH(1, 1, 4, 1, 1), MESH(1, 2, 1, 1, 2), MESH(1, 2, 2, 1, 2), MESH(2, 1, 1, 1, 1),
    MESH(1, 1, 2, 1, 2), MESH(1, 2, 4, 1, 8), MESH(2, 2, 2, 1, 4), MESH(1, 1, 8, 1, 4), MESH(1, 4, 1, 1, 2),
    MESH(1, 1, 1, 2, 1), MESH(1, 1, 2, 2, 1), MESH(2, 1, 1, 2, 1), MESH(1, 2, 2, 2, 4), MESH(1, 2, 1, 2, 2),
    MESH_RANGES(1, 1, 8, 1, 1, 1, {1, 1, 1, 4, 2}),
    MESH_RANGES(1, 4, 1, 1, 4, 1, {0, 0, 1, 2, 2}),
    MESH_RANGES(2, 1, 2, 1, 2, 1, {1, 1, 2, 2, 1}),
    MESH_RANGES(4, 1, 1, 1, 1, 2, {0, 0, 1, 1, 4}, {1, 1, 2, 1, 2}),
    MESH_RANGES(1, 2, 2, 2, 4, 1, {0, 0, 1, 1, 4}),
};
enum { N_MESHES = sizeof meshes / sizeof meshes[0] };

static int agreed(const char *err, const char *pass) {
    char line[64];
    int n = -1;
    snprintf(line, sizeof line, "eval-each: %s: ", pass);
    const char *at = strstr(err, line);
    if (at)
        sscanf(at + strlen(line), "%d values agree", &n);
    return n;
}

static void check_agrees(const Model *o, MoeMesh mesh, int at_least) {
    char *err = NULL;
    MoeModule *m = run(o, mesh, "grad,decompose,shard,recompute", &err);
    ck_assert_msg(agreed(err, "shard") >= at_least, "%s", err);
    if (o->recompute != MOE_RECOMPUTE_NONE)
        ck_assert_msg(agreed(err, "recompute") >= at_least, "%s", err);
    ck_assert_msg(!strstr(err, "too large"), "%s", err);
    moe_module_destroy(m);
    free(err);
}

/* 23 parameters, three new values and a gradient of each; losses, norm, counts, load trace, eval, logits. */
START_TEST(test_experts) {
    MoeMesh mesh = meshes[_i % N_MESHES];
    Model o = {.bf16 = _i / N_MESHES, .recompute = MOE_RECOMPUTE_LAYER};
    check_agrees(&o, mesh, 23 * 4 + 9);
    o.micro_batches = 2; /* as many virtual shards as data ranks need */
    o.virtual_shards = 16;
    o.batch = 5;
    check_agrees(&o, mesh, 23 * 4 + 9);
}
END_TEST

START_TEST(test_dense) {
    MoeMesh mesh = meshes[_i % N_MESHES];
    mesh.shard *= mesh.ep;
    mesh.ep = 1;
    mesh.n_ranges = 0;
    Model o = {.dense = true, .tied = _i / N_MESHES, .recompute = MOE_RECOMPUTE_CHEAP};
    check_agrees(&o, mesh, 20 * 4 + 6 - 4 * o.tied);
}
END_TEST

/* Two sequences on eight data ranks: most have none. */
START_TEST(test_empty_ranks) {
    Model o = {.batch = 2, .experts = 8};
    check_agrees(&o, (MoeMesh)MESH(1, 1, 8, 1, 8), 23 * 4 + 9);
    check_agrees(&o, (MoeMesh)MESH(2, 2, 2, 1, 2), 23 * 4 + 9);
}
END_TEST

START_TEST(test_one_rank_unchanged) {
    MoePassOptions p;
    Model o = {0};
    MoeModule *m = build(&o, &p);
    size_t n = m->graphs[0]->n_ops;
    MoeOp **ops = m->graphs[0]->ops;
    MoePassContext cx = {.module = m, .options = p, .arena = m->arena};
    ok(moe_pass_shard(&cx)); /* options without a mesh */
    cx.options.mesh = moe_mesh_one();
    ok(moe_pass_shard(&cx));
    ck_assert(!cx.sharded && m->graphs[0]->ops == ops && m->graphs[0]->n_ops == n);
    moe_module_destroy(m);
}
END_TEST

/* What a pass after shard might break is noticed: another rope in one layer. */
START_TEST(test_eval_each_notices) {
    Model o = {.experts = 4};
    MoePassOptions p;
    MoeMesh mesh = MESH(1, 2, 2, 1, 2);
    MoeModule *m = build(&o, &p);
    MoeSnapshot *before, *same, *other;
    int n_skipped, n;
    double largest;
    ok(moe_snapshot_take(m, 7, &before, &n_skipped));
    p.mesh = mesh;
    MoePassContext cx = {.module = m, .options = p, .arena = m->arena};
    ok(moe_pass_shard(&cx));
    ok(moe_snapshot_take_ranks(m, &mesh, before, &same, &n_skipped));
    ck_assert_int_eq(n_skipped, 0);
    ok(moe_snapshot_compare(before, same, "test", &largest, &n));
    ck_assert_int_ge(n, 9);
    MoeGraph *g = moe_module_find(m, "eval");
    for (size_t i = 0; i < g->n_ops; i++)
        if (g->ops[i]->opcode == MOE_OP_ROPE && moe_attr_i_or(g->ops[i], "layer", -1) == 1)
            for (int k = 0; k < g->ops[i]->n_attrs; k++)
                if (strcmp(g->ops[i]->attrs[k].key, "theta") == 0)
                    g->ops[i]->attrs[k].f = 101.0;
    ok(moe_snapshot_take_ranks(m, &mesh, same, &other, &n_skipped));
    MoeStatus st = moe_snapshot_compare(same, other, "test", &largest, &n);
    ck_assert_msg(st && strstr(moe_status_message(st), "output nll_sum of graph @eval"), "%s",
                  moe_status_message(st));
    moe_status_free(st);
    moe_snapshot_free(before);
    moe_snapshot_free(same);
    moe_snapshot_free(other);
    moe_module_destroy(m);
}
END_TEST

/* ---- the verifier ---- */

static void accepted(const MoeModule *m, const MoeMesh *mesh) {
    ok(moe_shard_verify(m, mesh, "test"));
}

static void refused(const MoeModule *m, const MoeMesh *mesh, const MoeOp *op, const char *what) {
    MoeStatus st = moe_shard_verify(m, mesh, "test");
    ck_assert_msg(st, "%s of layer %d: %s was not noticed", moe_op_info(op->opcode)->name,
                  (int)moe_attr_i_or(op, "layer", -1), what);
    ck_assert_int_eq(moe_status_code(st), MOE_E_INTERNAL);
    ck_assert_msg(strstr(moe_status_message(st), "after pass test, graph @"), "%s",
                  moe_status_message(st));
    moe_status_free(st);
}

/* Readers of the op's result read its operand instead. */
static void bypass(MoeGraph *g, const MoeOp *op, bool undo) {
    MoeValue *from = op->results[0], *to = op->operands[0];
    static MoeOp *changed[64];
    static int slot[64], n;
    if (undo) {
        while (n > 0) {
            n--;
            changed[n]->operands[slot[n]] = from;
        }
        return;
    }
    n = 0;
    for (size_t i = 0; i < g->n_ops; i++)
        for (int k = 0; k < g->ops[i]->n_operands; k++)
            if (g->ops[i]->operands[k] == from) {
                ck_assert_int_lt(n, 64);
                changed[n] = g->ops[i];
                slot[n++] = k;
                g->ops[i]->operands[k] = to;
            }
}

static int mutate_groups(const MoeModule *m, const MoeMesh *mesh, MoeOp *op) {
    int n = 0;
    for (int k = 0; k < op->n_attrs; k++) {
        const char *key = op->attrs[k].key, *right = op->attrs[k].s;
        if (strcmp(key, "group") != 0 && strcmp(key, "sum") != 0 && strcmp(key, "scatter") != 0)
            continue;
        for (int g = 0; g < MOE_N_GROUPS; g++) {
            const char *wrong = moe_mesh_group_name((MoeMeshGroup)g);
            if (strcmp(wrong, right) == 0)
                continue;
            op->attrs[k].s = wrong;
            refused(m, mesh, op, "another group");
            n++;
        }
        op->attrs[k].s = right;
    }
    return n;
}

static const MoeMesh mutated[] = {
    MESH(1, 2, 2, 1, 2), MESH(1, 2, 1, 1, 2), MESH(2, 1, 2, 1, 2), MESH(1, 2, 2, 2, 4), MESH(1, 1, 2, 2, 1),
    MESH_RANGES(1, 2, 2, 1, 2, 1, {1, 1, 1, 1, 4})};

START_TEST(test_verifier) {
    MoeMesh mesh = mutated[_i];
    Model o = {.experts = 4, .micro_batches = 2};
    if (mesh.ep == 1)
        o.dense = true;
    MoeModule *m = run(&o, mesh, "grad,decompose,shard", NULL);
    int n_bypassed = 0, n_groups = 0, kinds[MOE_N_OPS] = {0};
    accepted(m, &mesh);
    for (size_t i = 0; i < m->n_graphs; i++) {
        MoeGraph *g = m->graphs[i];
        for (size_t k = 0; k < g->n_ops; k++) {
            MoeOp *op = g->ops[k];
            if (moe_op_info(op->opcode)->kind != MOE_KIND_COMM)
                continue;
            kinds[op->opcode]++;
            n_groups += mutate_groups(m, &mesh, op);
            if (!moe_type_equal(&op->results[0]->type, &op->operands[0]->type))
                continue; /* leaving it out changes types: the shape rules refuse that */
            bypass(g, op, false);
            refused(m, &mesh, op, "leaving it out");
            bypass(g, op, true);
            n_bypassed++;
        }
    }
    accepted(m, &mesh);
    ck_assert_int_ge(n_groups, 100);
    ck_assert_int_ge(n_bypassed, 5);
    ck_assert_int_ge(kinds[MOE_OP_ALL_REDUCE], 2);
    ck_assert_int_ge(kinds[MOE_OP_REDUCE_SCATTER], 10);
    ck_assert(o.dense == !kinds[MOE_OP_A2A_COMBINE]);
    moe_module_destroy(m);
}
END_TEST

/* A parameter that says something else of itself. */
START_TEST(test_verifier_params) {
    MoeMesh mesh = MESH(1, 2, 2, 1, 2);
    Model o = {.experts = 4};
    MoeModule *m = run(&o, mesh, "grad,decompose,shard", NULL);
    int n = 0;
    for (size_t k = 0; k < m->graphs[0]->n_ops; k++) {
        MoeOp *op = m->graphs[0]->ops[k];
        if (op->opcode != MOE_OP_PARAM)
            continue;
        MoeAttr *whole = (MoeAttr *)moe_attr(op, "whole");
        const char *right = whole->s;
        whole->s = "4096,4096";
        refused(m, &mesh, op, "another whole");
        whole->s = "x";
        refused(m, &mesh, op, "no dims");
        whole->s = right;
        n++;
    }
    ck_assert_int_eq(n, 23);
    accepted(m, &mesh);
    moe_module_destroy(m);
}
END_TEST

/* ---- what travels ---- */

/* With bf16 token rows travel in bf16, both ways (fuse rounds gradients before they go, not after); weights are f32. */
START_TEST(test_rows_travel_rounded) {
    Model o = {.bf16 = true, .experts = 4};
    MoePassOptions p;
    MoeModule *m = build(&o, &p);
    MoeFakeTarget target;
    moe_fake_target_init(&target);
    p.mesh = (MoeMesh)MESH(1, 1, 2, 1, 1);
    MoePassContext cx = {.module = m, .options = p, .target = &target.base, .arena = m->arena};
    MoePipelineOptions pipe = {.passes = "grad,decompose,shard,fuse", .verify_each = true};
    ok(moe_pipeline_run(&cx, &pipe));
    MoeGraph *g = moe_module_find(m, "train");
    int n = 0;
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i];
        if (op->opcode != MOE_OP_A2A_DISPATCH)
            continue;
        const MoeType *t = &op->results[0]->type;
        ck_assert_int_eq(t->dtype, moe_type_cols(t) == 2 ? MOE_F32 : MOE_BF16);
        n++;
    }
    ck_assert_int_eq(n, 2 * 3); /* a layer: rows and weights, rows of gradients */
    moe_module_destroy(m);
}
END_TEST

/* Whole parameters live in one phase: what the backward phase reads it gathers itself, once; bf16 uses gather bf16. */
START_TEST(test_gathers) {
    Model o = {.bf16 = true, .experts = 4};
    MoeModule *m = run(&o, (MoeMesh)MESH(1, 2, 2, 1, 4), "grad,decompose,shard", NULL);
    MoeGraph *g = moe_module_find(m, "train");
    int n = 0, n_bf16 = 0;
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i];
        for (int k = 0; k < op->n_operands; k++) {
            const MoeOp *d = op->operands[k]->def;
            ck_assert_msg(d->opcode != MOE_OP_ALL_GATHER || d->phase == op->phase,
                          "%s keeps a parameter from the phase before",
                          moe_op_info(op->opcode)->name);
        }
        if (op->opcode != MOE_OP_ALL_GATHER || op->phase > MOE_PHASE_BACKWARD)
            continue;
        n++;
        n_bf16 += op->results[0]->type.dtype == MOE_BF16;
        for (size_t k = 0; k < i; k++)
            ck_assert_msg(g->ops[k]->opcode != MOE_OP_ALL_GATHER || g->ops[k]->phase != op->phase ||
                              g->ops[k]->operands[0] != op->operands[0],
                          "a parameter is gathered twice in a phase");
    }
    /* Forward: embedding, final norm, and of a layer 2 norms, 4 of attention, router, 3 of experts; backward: head, norm
     * and the same of layers. */
    ck_assert_int_eq(n, 2 + 2 + 2 * 2 * 10);
    ck_assert_int_eq(n_bf16, 1 + 2 * 2 * 7);
    moe_module_destroy(m);
}
END_TEST

/* Rows to count on between ranks: experts of a token are different ones, ranks with fewer of them get fewer. */
START_TEST(test_expected_rows) {
    static const struct {
        int experts, ep, rows;
    } cases[] = {{8, 2, 19},  /* 12 tokens to 2 ranks: 24 (1 - C(4, 2) / C(8, 2)) = 18.9 */
                 {5, 4, 11},  /* 6 tokens to ranks of 2, 2, 1, 0 experts: 6 (7/10 + 7/10 + 4/10) = 10.8 */
                 {2, 2, 24}}; /* all tokens to both */
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        Model o = {.experts = cases[c].experts};
        MoeModule *m =
            run(&o, (MoeMesh)MESH(1, 1, cases[c].ep, 1, 1), "grad,decompose,shard", NULL);
        MoeGraph *g = moe_module_find(m, "train");
        int found = 0;
        for (size_t i = 0; i < g->n_ops; i++) {
            bool send = g->ops[i]->opcode == MOE_OP_SEND_PLAN;
            if (!send && g->ops[i]->opcode != MOE_OP_EXPERT_PLAN)
                continue;
            ck_assert_int_eq(moe_attr_i(g->ops[i], send ? "expect" : "expect_recv"), cases[c].rows);
            found++;
        }
        ck_assert_int_ge(found, 2);
        moe_module_destroy(m);
    }
}
END_TEST

/* Capacities are those of one data rank: 4 sequences of 6 tokens on 4 ranks. */
START_TEST(test_capacities) {
    Model o = {.experts = 4};
    MoeModule *m = run(&o, (MoeMesh)MESH(1, 1, 4, 1, 1), "grad,decompose,shard", NULL);
    MoeGraph *g = moe_module_find(m, "train");
    ck_assert_int_eq(moe_graph_find_input(g, "ids")->type.dims[0].size, 6);
    ck_assert_int_eq(moe_graph_find_input(g, "place.1")->type.dims[0].size, 4);
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i];
        if (op->opcode == MOE_OP_EXPERT_PLAN) {
            ck_assert_int_eq(op->results[2]->type.dims[0].size,
                             4 * 6 * 2); /* all of the group's pairs */
            ck_assert_int_eq(moe_attr_i(op, "expect_rows"), 6 * 2);
            /* each of 4 ranks with the odds of 1 - C(3, 2) / C(4, 2): 6 * 4 * 1/2 */
            ck_assert_int_eq(moe_attr_i(op, "expect_recv"), 12);
        }
        if (op->opcode == MOE_OP_SEND_PLAN)
            ck_assert_int_eq(moe_attr_i(op, "expect"), 12);
    }
    moe_module_destroy(m);
}
END_TEST

/* Layers that the model has not; degrees of a group that the mesh has not. */
START_TEST(test_ranges_refused) {
    static const struct {
        MoeMesh mesh;
        const char *part;
    } cases[] = {
        {MESH_RANGES(1, 1, 4, 1, 1, 1, {0, 2, 1, 2, 2}), "layers 0 to 2 of the strategy: the range ends "},
        {MESH_RANGES(1, 1, 4, 1, 1, 1, {5, 6, 1, 2, 2}), "layers 5 to 6 of the strategy: no layer with "},
        {MESH_RANGES(1, 1, 4, 1, 1, 1, {0, 1, 1, 2, 1}), "layers 0 to 1: 1 x 2 x 1"},
        {MESH_RANGES(1, 1, 4, 1, 1, 2, {0, 1, 1, 2, 2}, {1, 1, 4, 1, 1}), "layers 0 to 1 and layers 1 to 1"},
    };
    MoePassOptions p;
    Model o = {.experts = 4};
    MoeModule *m = build(&o, &p);
    p.mesh = cases[_i].mesh;
    MoePassContext cx = {.module = m, .options = p, .arena = m->arena};
    MoeStatus st = moe_pass_shard(&cx);
    ck_assert(st && moe_status_code(st) == MOE_E_MISUSE);
    ck_assert_msg(strstr(moe_status_message(st), cases[_i].part), "%s", moe_status_message(st));
    moe_status_free(st);
    moe_module_destroy(m);
}
END_TEST

int main(void) {
    Suite *s = suite_create("shard");
    TCase *t = tcase_create("shard");
    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, test_experts, 0, 2 * N_MESHES);
    tcase_add_loop_test(t, test_dense, 0, 2 * N_MESHES);
    tcase_add_test(t, test_empty_ranks);
    tcase_add_test(t, test_one_rank_unchanged);
    tcase_add_test(t, test_eval_each_notices);
    tcase_add_loop_test(t, test_verifier, 0, (int)(sizeof mutated / sizeof mutated[0]));
    tcase_add_test(t, test_verifier_params);
    tcase_add_test(t, test_rows_travel_rounded);
    tcase_add_test(t, test_gathers);
    tcase_add_test(t, test_expected_rows);
    tcase_add_test(t, test_capacities);
    tcase_add_loop_test(t, test_ranges_refused, 0, 4);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
