/* Pass overlap: what it may not do (change what is computed, run a step before what it needs, lose an exchange, use much more
 * memory), what it is for (less time), and chunks as steps. Small models on many meshes, through all passes. */
#include <check.h>
#include <stdlib.h>
#include <string.h>
#include "ir/text.h"
#include "passes/group.h"
#include "passes/memplan.h"
#include "tests/support/check_main.h"
#include "tests/support/mesh.h"
#include "tests/support/pass_model.h"
#include "tests/support/status_checks.h"

static const MoeCluster slow = {.nodes = 2,
                                .ranks_per_node = 2,
                                .links = {{2e-6, 2e9}, {2e-5, 2e7}},
                                .flops = 1e9};
static const MoeCluster pair = {
    .nodes = 2, .ranks_per_node = 1, .links = {{0, 1e300}, {2e-5, 2e7}}, .flops = 1e9};

static const struct {
    MoeMesh mesh;
    const MoeCluster *cluster;
    bool dense, bf16;
    int micro_batches;
    MoeRecompute recompute;
} cases[] = {
    {MESH(1, 1, 2, 1, 1), &pair, false, false, 1, MOE_RECOMPUTE_NONE},
    {MESH(1, 1, 2, 1, 2), &pair, false, true, 2, MOE_RECOMPUTE_LAYER},
    {MESH(1, 2, 1, 1, 2), &pair, false, false, 1, MOE_RECOMPUTE_CHEAP},
    {MESH(2, 1, 1, 1, 1), &pair, true, false, 2, MOE_RECOMPUTE_NONE},
    {MESH(1, 2, 2, 1, 2), &slow, false, false, 1, MOE_RECOMPUTE_CHEAP},
    {MESH(2, 1, 2, 1, 1), &slow, false, true, 1, MOE_RECOMPUTE_LAYER},
    {MESH(1, 1, 4, 1, 4), &slow, false, false, 1, MOE_RECOMPUTE_NONE},
    {MESH(1, 4, 1, 1, 4), &slow, true, false, 1, MOE_RECOMPUTE_LAYER},
    {MESH(1, 1, 2, 2, 1), &slow, false, false, 1, MOE_RECOMPUTE_NONE},
};
enum { N_CASES = sizeof cases / sizeof *cases };

static void make(int i, bool overlap, int chunks, MoePassModel *out) {
    MoePassModelOptions o = {.batch = 8,
                             .seq = 32,
                             .mesh = cases[i].mesh,
                             .dense = cases[i].dense,
                             .bf16 = cases[i].bf16,
                             .micro_batches = cases[i].micro_batches,
                             .recompute = cases[i].recompute,
                             .cluster = cases[i].cluster,
                             .overlap = overlap,
                             .overlap_chunks = chunks};
    MoeStatus st = moe_pass_model_make(&o, out);
    ck_assert_msg(!st, "case %d: %s", i, moe_status_message(st));
}

static const MoeProgram *train(const MoePassModel *m) {
    for (size_t i = 0; i < m->cx.module->n_graphs; i++)
        if (!strcmp(m->cx.module->graphs[i]->name, "train"))
            return &m->cx.programs[i];
    ck_abort_msg("no graph @train");
}

static int count_steps(const MoeProgram *p, bool (*is)(const MoeGroup *)) {
    int n = 0;
    for (size_t s = 0; s < p->n_steps; s++)
        n += is(&p->steps[s].group);
    return n;
}

static bool is_wait(const MoeGroup *g) {
    return g->ops[0]->opcode == MOE_OP_WAIT;
}

static bool is_exchange(const MoeGroup *g) {
    return moe_group_is_comm(g) && !is_wait(g);
}

static bool is_kernel(const MoeGroup *g) {
    return !moe_group_is_comm(g) && g->part == 0;
}

/* ---- order ---- */

/* Chunks done of what a step makes. */
typedef struct {
    const MoeProgram *p;
    int *started, *waited, *done; /* by value id: parts */
} Walk;

static int parts_of(const MoeGroup *g) {
    return g->parts ? g->parts : 1;
}

static bool made_by_exchange(const MoeValue *v) {
    return moe_op_info(v->def->opcode)->kind == MOE_KIND_COMM;
}

/* A value is there: made whole, and if it is an exchange's, only a wait for it may come; of the chunk that is wanted, in a loop. */
static void check_there(const Walk *w, const MoeGroup *g, const MoeValue *v, size_t step) {
    while (moe_op_info(v->def->opcode)->kind == MOE_KIND_SYNC && v->def->opcode != MOE_OP_WAIT)
        v = v->def->operands[0];
    if (moe_op_info(v->def->opcode)->kind == MOE_KIND_DECL)
        return;
    int all = 1;
    for (size_t s = 0; s < w->p->n_steps; s++)
        if (w->p->steps[s].group.ops[0]->group == v->def->group)
            all = parts_of(&w->p->steps[s].group);
    int need = g->parts && all > 1 ? g->part + 1 : all;
    const int *have = made_by_exchange(v) && is_wait(g) ? w->started : w->done;
    CHECK_EACH(have[v->id] >= need, "step %zu (%s, part %d) comes before part %d of what %s makes",
               step, moe_op_info(g->ops[0]->opcode)->name, g->part, need - 1,
               moe_op_info(v->def->opcode)->name);
}

/* An exchange that nobody waits for is over at once. */
static bool has_wait(const MoeProgram *p, const MoeGroup *exchange) {
    for (size_t s = 0; s < p->n_steps; s++)
        if (is_wait(&p->steps[s].group) &&
            p->steps[s].group.ops[0]->operands[0]->def->group == exchange->ops[0]->group)
            return true;
    return false;
}

static void check_order(const MoeProgram *p) {
    MoeArena *a = moe_arena_create();
    size_t n = (size_t)p->graph->n_values;
    Walk w = {p, MOE_NEW_N(a, int, n), MOE_NEW_N(a, int, n), MOE_NEW_N(a, int, n)};
    for (size_t s = 0; s < p->n_steps; s++) {
        const MoeGroup *g = &p->steps[s].group;
        for (size_t i = 0; i < g->n_inputs; i++)
            check_there(&w, g, g->inputs[i], s);
        for (size_t i = 0; i < g->n_ops; i++)
            for (int k = 0; k < g->ops[i]->n_results; k++) {
                const MoeValue *v = g->ops[i]->results[k];
                w.started[v->id]++;
                w.done[v->id] += !is_exchange(g) || !has_wait(p, g);
            }
        if (s)
            ck_assert_int_ge(p->steps[s].phase, p->steps[s - 1].phase);
    }
    moe_arena_destroy(a);
}

/* All exchanges and kernels are there once, each started exchange is waited for once, part by part. */
static void check_complete(const MoeProgram *off, const MoeProgram *on) {
    ck_assert_int_eq(count_steps(off, is_kernel), count_steps(on, is_kernel));
    ck_assert_int_eq(count_steps(off, is_wait), 0);
    int whole = 0;
    for (size_t s = 0; s < on->n_steps; s++) {
        const MoeGroup *g = &on->steps[s].group;
        whole += is_exchange(g) && g->part == 0;
        if (!is_exchange(g) || !has_wait(on, g))
            continue;
        int waits = 0;
        for (size_t k = s + 1; k < on->n_steps; k++) {
            const MoeGroup *w = &on->steps[k].group;
            bool mine = is_wait(w) && w->ops[0]->operands[0]->def->group == g->ops[0]->group &&
                        w->part == g->part;
            waits += mine;
            if (mine) {
                ck_assert_int_eq(on->steps[k].count_pass, on->steps[s].count_pass);
                ck_assert_int_eq(on->steps[k].phase > MOE_PHASE_BACKWARD,
                                 on->steps[s].phase > MOE_PHASE_BACKWARD);
            }
        }
        ck_assert_int_eq(waits, 1);
    }
    ck_assert_int_eq(count_steps(off, is_exchange), whole);
}

START_TEST(test_steps_run_after_what_they_need) {
    for (int chunks = 0; chunks <= 2; chunks++) {
        MoePassModel off, on;
        make(_i, false, 0, &off);
        make(_i, true, chunks, &on);
        for (size_t g = 0; g < on.cx.module->n_graphs; g++) {
            check_order(&off.cx.programs[g]);
            check_order(&on.cx.programs[g]);
            check_complete(&off.cx.programs[g], &on.cx.programs[g]);
        }
        moe_pass_model_free(&off);
        moe_pass_model_free(&on);
    }
}
END_TEST

/* ---- what it is for ---- */

START_TEST(test_less_time_and_not_much_more_memory) {
    MoePassModel off, on;
    make(_i, false, 0, &off);
    make(_i, true, 0, &on);
    const MoePrediction *a = &train(&off)->predicted, *b = &train(&on)->predicted;
    double exposed = b->a2a_exposed + b->other_exposed;
    ck_assert_double_lt(b->seconds, a->seconds);
    ck_assert_double_eq_tol(a->compute, b->compute, 1e-9 * a->compute);
    ck_assert_double_eq_tol(b->seconds, b->compute + exposed, 1e-9 * b->seconds);
    ck_assert_double_eq_tol(a->a2a_exposed, a->a2a, 1e-9 + 1e-9 * a->a2a);
    ck_assert_double_ge(exposed, b->bound - 1e-9);
    ck_assert_double_ge(b->a2a_exposed, b->a2a_bound - 1e-9);
    int64_t gathers = 0, sums = 0;
    for (size_t s = 0; s < train(&on)->n_steps; s++) {
        const MoeGroup *g = &train(&on)->steps[s].group;
        int64_t bytes = 0;
        for (size_t i = 0; i < g->n_ops; i++) {
            bool sum = g->ops[i]->opcode == MOE_OP_REDUCE_SCATTER;
            bytes += sum ? moe_type_bytes(&g->ops[i]->operands[0]->type) : 0;
            if (g->ops[i]->opcode == MOE_OP_ALL_GATHER && train(&on)->steps[s].phase == 0)
                gathers += moe_type_bytes(&g->ops[i]->results[0]->type);
        }
        sums = bytes > sums ? bytes : sums;
    }
    /* a tenth (as far as the pass can tell), gathers ahead (two of the three layers), two sums under way */
    ck_assert_int_le(train(&on)->memory.lower_bound,
                     train(&off)->memory.lower_bound * 115 / 100 + gathers + 2 * sums);
    moe_pass_model_free(&off);
    moe_pass_model_free(&on);
}
END_TEST

static char *text_of(const MoePassModel *m) {
    MoeStr s = {0};
    moe_print(m->cx.module, &s);
    char *t = strdup(moe_str_c(&s));
    moe_str_free(&s);
    return t;
}

START_TEST(test_the_same_again) {
    MoePassModel a, b;
    make(4, true, 0, &a);
    make(4, true, 0, &b);
    char *x = text_of(&a), *y = text_of(&b);
    ck_assert_str_eq(x, y);
    free(x);
    free(y);
    moe_pass_model_free(&a);
    moe_pass_model_free(&b);
}
END_TEST

START_TEST(test_one_rank_is_left_alone) {
    MoePassModel off, on;
    MoePassModelOptions o = {.overlap = false};
    ck_assert_ptr_null(moe_pass_model_make(&o, &off));
    o.overlap = true;
    ck_assert_ptr_null(moe_pass_model_make(&o, &on));
    char *x = text_of(&off), *y = text_of(&on);
    ck_assert_str_eq(x, y);
    free(x);
    free(y);
    moe_pass_model_free(&off);
    moe_pass_model_free(&on);
}
END_TEST

/* With a limit that the order given just keeps, no order needs more. */
START_TEST(test_the_memory_limit_holds) {
    MoePassModelOptions o = {.batch = 8,
                             .seq = 32,
                             .mesh = {1, 2, 2, 1, 2},
                             .cluster = &slow,
                             .recompute = MOE_RECOMPUTE_CHEAP};
    MoePassModel off, on;
    ck_assert_ptr_null(moe_pass_model_make(&o, &off));
    int64_t constant = 0;
    const MoeGraph *g = train(&off)->graph;
    for (size_t i = 0; i < g->n_ops; i++)
        if (g->ops[i]->opcode == MOE_OP_PARAM || g->ops[i]->opcode == MOE_OP_STATE)
            constant += moe_type_bytes(&g->ops[i]->results[0]->type);
    int64_t given = moe_memplan_expected_bytes(&train(&off)->memory);
    o.overlap = true;
    ck_assert_ptr_null(moe_pass_model_make(&o, &on));
    ck_assert_int_gt(moe_memplan_expected_bytes(&train(&on)->memory), given);
    moe_pass_model_free(&on);
    o.memory_limit = constant + given;
    ck_assert_ptr_null(moe_pass_model_make(&o, &on));
    ck_assert_int_le(moe_memplan_expected_bytes(&train(&on)->memory), given);
    moe_pass_model_free(&on);
    moe_pass_model_free(&off);
}
END_TEST

/* ---- chunks ---- */

static bool is_part(const MoeGroup *g) {
    return g->parts > 0;
}

START_TEST(test_chunks_are_steps) {
    MoePassModel whole, cut;
    make(0, true, 1, &whole);
    make(0, true, 2, &cut);
    const MoeProgram *p = train(&cut);
    ck_assert_int_eq(count_steps(train(&whole), is_part), 0);
    int sends = 0, loops = 0, homes = 0;
    for (size_t s = 0; s < p->n_steps; s++) {
        const MoeOp *plan;
        const MoeGroup *g = &p->steps[s].group;
        MoeChunkRole role = moe_group_chunk_role(g, &plan);
        if (!g->parts)
            continue;
        ck_assert_int_eq(g->parts, 2);
        ck_assert_int_eq(moe_attr_i(plan, "chunks"), 2);
        sends += role == MOE_CHUNK_SEND;
        homes += role == MOE_CHUNK_HOME;
        /* the loop: all of the first chunk between its wait and the second's */
        if (role == MOE_CHUNK_ARRIVE && g->part == 1) {
            size_t k = s;
            int home = 0;
            while (p->steps[k - 1].group.ops != g->ops) {
                const MoeOp *of;
                MoeChunkRole r = moe_group_chunk_role(&p->steps[k - 1].group, &of);
                ck_assert_ptr_eq(of, plan);
                ck_assert_int_eq(p->steps[k - 1].group.part, 0);
                home += r == MOE_CHUNK_HOME;
                k--;
            }
            ck_assert_int_ge(home, 1);
            loops++;
        }
        double share = 0; /* of the group's work: the parts add up */
        for (size_t k = 0; k < p->n_steps; k++)
            if (p->steps[k].group.ops == g->ops)
                share += moe_group_is_comm(g) ? p->steps[k].bytes : p->steps[k].flops;
        for (size_t k = 0; k < train(&whole)->n_steps && role == MOE_CHUNK_SEND; k++) {
            const MoeStep *t = &train(&whole)->steps[k];
            if (t->group.ops[0]->opcode == MOE_OP_A2A_DISPATCH && t->group.n_ops == g->n_ops &&
                t->phase == p->steps[s].phase)
                ck_assert_double_eq_tol(share, t->bytes, 1e-6 * t->bytes);
        }
    }
    ck_assert_int_eq(sends, 2 * 2 * 3); /* chunks, phases, layers */
    ck_assert_int_eq(loops, 2 * 3);
    ck_assert_int_ge(homes, sends);
    ck_assert_double_lt(p->predicted.a2a_exposed, train(&whole)->predicted.a2a_exposed);
    moe_pass_model_free(&whole);
    moe_pass_model_free(&cut);
}
END_TEST

/* A loop, an exchange that nobody waits for, and what is no part of it, in a graph written by hand. */
START_TEST(test_rules_for_parts) {
    static const char text[] =
        "moe 1\n"
        "graph @train {\n"
        "  %tok = input {name = \"tok\"} : segs<1,2>\n"
        "  %tok_ep = input {name = \"tok_ep\"} : segs<1,2>\n"
        "  %place = input {name = \"place.0\"} : i32[8]\n"
        "  %ep_rank = input {name = \"ep_rank\"} : i32[1]\n"
        "  %x = input {name = \"x\"} : f32[r<=16 @%tok, 8]\n"
        "  %ids = input {name = \"ids\"} : i32[r<=16 @%tok, 2]\n"
        "  %w = param {name = \"w\", init = \"ones\", decay = 1} : f32[4, 8, 8]\n"
        "  %hs, %hsrc, %hinv = route_plan %ids {experts = 8} : segs<8,2>, i32[r<=32 @%hs], "
        "i32[r<=16 @%tok, 2] #0\n"
        "  %all = all_gather_rows %ids, %tok_ep {group = \"ep\", ranks = 2} : i32[r<=32 "
        "@%tok_ep, 2] #1\n"
        "  %send, %idx = send_plan %ids, %place {slots = 4, ranks = 2, chunks = 2, expect = "
        "24} : segs<2,2>, i32[r<=32 @%send] #2\n"
        "  %recv, %seg, %src, %inv = expert_plan %all, %place, %ep_rank {slots = 4, chunks = "
        "2, expect_recv = 24, expect_rows = 32} : segs<2,2>, segs<4,2>, i32[r<=64 @%seg], "
        "i32[r<=32 @%recv, 2] #3\n"
        "  %u = a2a_dispatch %x, %idx, %inv {group = \"ep\"} : f32[r<=32 @%recv, 8] #4\n"
        "  %here = wait %u : f32[r<=32 @%recv, 8] #5\n"
        "  %r = dispatch %here, %src, %inv : f32[r<=64 @%seg, 8] #6\n"
        "  %y = matmul %r, %w {tb = 1, grouped = 1} : f32[r<=64 @%seg, 8] #7\n"
        "  %home = a2a_combine %y, %place, %hsrc {group = \"ep\", slots = 4} : f32[r<=32 "
        "@%hs, 8] #8\n"
        "  %sum = col_sum %y : f32[8] #9\n"
        "  %z = neg %y : f32[r<=64 @%seg, 8] #10\n"
        "  %back = wait %home : f32[r<=32 @%hs, 8] #11\n"
        "  %home2 = a2a_combine %z, %place, %hsrc {group = \"ep\", slots = 4} : f32[r<=32 "
        "@%hs, 8] #12\n"
        "  output %back {name = \"back\"}\n"
        "  output %sum {name = \"sum\"}\n"
        "  output %home2 {name = \"again\"}\n"
        "}\n";
    static const struct {
        int group, part, parts;
    } expected[] = {{0, 0, 0},  {1, 0, 0}, {2, 0, 0}, {3, 0, 0}, {4, 0, 2},  {4, 1, 2}, {5, 0, 2},
                    {6, 0, 2},  {7, 0, 2}, {8, 0, 2}, {5, 1, 2}, {6, 1, 2},  {7, 1, 2}, {8, 1, 2},
                    {9, 0, 0},  {10, 0, 2}, {10, 1, 2}, {11, 0, 2}, {11, 1, 2}, {12, 0, 0}};
    MoeDiag d = {.file = "case", .source = text};
    MoeModule *m = moe_parse(&d);
    ck_assert_msg(m, "%s", moe_str_c(&d.text));
    MoeGroups gs = moe_groups_of(m->graphs[0], m->arena);
    ck_assert_uint_eq(gs.n_groups, sizeof expected / sizeof *expected);
    for (size_t i = 0; i < gs.n_groups; i++) {
        ck_assert_int_eq(gs.groups[i].ops[0]->group, expected[i].group);
        ck_assert_int_eq(gs.groups[i].part, expected[i].part);
        ck_assert_int_eq(gs.groups[i].parts, expected[i].parts);
    }
    moe_diag_free(&d);
    moe_module_destroy(m);
}
END_TEST

int main(void) {
    Suite *s = suite_create("overlap");
    TCase *t = tcase_create("overlap");
    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, test_steps_run_after_what_they_need, 0, N_CASES);
    tcase_add_loop_test(t, test_less_time_and_not_much_more_memory, 0, N_CASES);
    tcase_add_test(t, test_the_same_again);
    tcase_add_test(t, test_one_rank_is_left_alone);
    tcase_add_test(t, test_the_memory_limit_holds);
    tcase_add_test(t, test_chunks_are_steps);
    tcase_add_test(t, test_rules_for_parts);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
