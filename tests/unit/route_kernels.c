/* Plans and moves at sizes that the op cases do not reach: more keys than one pass of a device's sort takes, ids that many tokens
 * have, copies on many ranks, tokens of one rank among its group's. Integers are the interpreter's; the gradient of an embedding is
 * what docs/NUMBERS.md says, bit by bit. On the CPU and on a GPU (MOE_ALL_CASES=1: there all divisions among copies, too). */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/rng.h"
#include "tests/support/check_main.h"
#include "tests/support/gpu.h"
#include "tests/support/group_run.h"
#include "tests/support/status_checks.h"

static const char *const targets[] = {"cpu", "cuda:sm_80"};
#define N_TARGETS ((int)(sizeof targets / sizeof targets[0]))
#define LEN(a)    (sizeof(a) / sizeof *(a))

typedef struct {
    MoeModule *m;
    MoeGraph *g;
    MoeInputs in;
    MoeGroupRun *run;
} Job;

static int32_t below(uint64_t stream, int64_t i, int64_t n) {
    return (int32_t)moe_rng_below(11, stream, (uint64_t)i, (uint64_t)n);
}

static void begin(Job *j) {
    j->m = moe_module_create();
    j->g = moe_module_add_graph(j->m, "job");
}

static void fill(Job *j, int64_t rows) {
    MoeRandomOptions o = {.seed = 5, .rows = rows, .shards = MOE_SHARDS_RANDOM};
    OK(moe_random_inputs(j->g, &o, j->m->arena, &j->in));
}

static void run(Job *j, const char *target) {
    OK(moe_group_run_create(j->g, &(MoeGroupRunOptions){.target = target}, &j->run));
    OK(moe_group_run(j->run, &j->in));
}

static void end(Job *j) {
    moe_group_run_destroy(j->run);
    moe_module_destroy(j->m);
}

/* Every output of integers is the interpreter's. */
static void check_integers(const Job *j, const char *target) {
    MoeEval *ev = moe_eval_create(j->g);
    OK(moe_inputs_give(&j->in, ev));
    OK(moe_eval_run(ev));
    for (size_t i = 0; i < j->g->n_ops; i++) {
        const MoeOp *op = j->g->ops[i];
        if (op->opcode != MOE_OP_OUTPUT)
            continue;
        const MoeTensor *want = moe_eval_get(ev, op->operands[0]);
        const int32_t *got = moe_group_run_data(j->run, op->operands[0]);
        for (int64_t k = 0; k < want->n; k++)
            CHECK_EACH(got[k] == want->i[k], "%s: %s[%lld] is %d, expected %d", target,
                       moe_attr_s(op, "name"), (long long)k, got[k], want->i[k]);
    }
    moe_eval_destroy(ev);
}

/* ---- plans ---- */

/* More experts than digits of a pass, more choices than a tile. */
START_TEST(plans_of_many_experts) {
    enum { TOKENS = 700, TOPK = 5, EXPERTS = 1500, SHARDS = 5, RANKS = 25, HERE = EXPERTS / 2 };
    const char *target = targets[_i];
    if (!moe_test_runs(target))
        return;
    Job j;
    begin(&j);
    MoeValue *tok = moe_build_input(j.g, "tok", moe_type_segs(1, SHARDS));
    MoeValue *in[3] = {
        moe_build_input(j.g, "ids", moe_type_2d(MOE_I32, moe_dim_ragged(TOKENS + 9, tok), TOPK)),
        moe_build_input(j.g, "place", moe_type_1d(MOE_I32, EXPERTS)),
        moe_build_input(j.g, "ep_rank", moe_type_1d(MOE_I32, 1))};
    const MoeOp *plans[3] = {
        moe_op_build(j.g, MOE_OP_ROUTE_PLAN, in, 1, moe_ai("experts", EXPERTS), MOE_END),
        moe_op_build(j.g, MOE_OP_SEND_PLAN, in, 2, moe_ai("slots", EXPERTS / RANKS),
                     moe_ai("ranks", RANKS), moe_ai("chunks", EXPERTS / RANKS),
                     moe_ai("expect", TOKENS), MOE_END),
        moe_op_build(j.g, MOE_OP_EXPERT_PLAN, in, 3, moe_ai("slots", HERE), moe_ai("chunks", 3),
                     moe_ai("expect_recv", TOKENS), moe_ai("expect_rows", TOKENS), MOE_END)};
    for (size_t p = 0; p < LEN(plans); p++)
        for (int r = 0; r < plans[p]->n_results; r++) {
            char name[16];
            snprintf(name, sizeof name, "p%zu_%d", p, r);
            moe_build_output(j.g, name, plans[p]->results[r]);
        }
    fill(&j, TOKENS);
    run(&j, target);
    check_integers(&j, target);
    end(&j);
}
END_TEST

/* ---- copies ---- */

typedef struct {
    int experts, ranks, slots, shards, tokens, topk;
    double skew; /* expert e is chosen as often as (e + 1)^-skew */
    int own;     /* this rank's shards: the own-th quarter */
} Copies;

/* Each expert once, then more of those that are chosen most, wherever there is room. */
static void fill_copies(const Copies *c, int32_t *copies) {
    int *n = calloc((size_t)c->experts, sizeof *n);
    for (int g = 0; g < c->ranks * c->slots; g++)
        copies[g] = -1;
    for (int e = 0; e < c->experts; e++) {
        copies[e % c->ranks * c->slots + e / c->ranks] = e;
        n[e] = 1;
    }
    for (int g = 0; g < c->ranks * c->slots; g++) {
        int best = -1;
        for (int e = 0; copies[g] < 0 && e < c->experts; e++) {
            bool held = false;
            for (int s = 0; s < c->slots; s++)
                held |= copies[g / c->slots * c->slots + s] == e;
            if (!held &&
                (best < 0 || pow(e + 1, -c->skew) / n[e] > pow(best + 1, -c->skew) / n[best]))
                best = e;
        }
        if (best >= 0 && below(1, g, 8)) { /* some stay empty */
            copies[g] = best;
            n[best]++;
        }
    }
    free(n);
}

static void fill_choices(const Copies *c, int32_t *ids) {
    for (int t = 0; t < c->tokens; t++)
        for (int j = 0; j < c->topk; j++) {
            bool again = true;
            for (int tries = 0; again; tries++) { /* the inverse of the distribution, roughly */
                double u =
                    below((uint64_t)(2 + tries), t * c->topk + j, 1 << 20) / (double)(1 << 20);
                int e = (int)(pow(u, 1 + 2 * c->skew) * c->experts);
                again = false;
                for (int k = 0; k < j; k++)
                    again |= ids[t * c->topk + k] == e;
                ids[t * c->topk + j] = e;
            }
        }
}

static void check_copies(const Copies *c, const char *target) {
    Job j;
    begin(&j);
    MoeValue *tok = moe_build_input(j.g, "tok", moe_type_segs(1, c->shards));
    MoeValue *tok_ep = moe_build_input(j.g, "tok_ep", moe_type_segs(1, c->shards));
    MoeValue *in[3] = {
        moe_build_input(j.g, "ids", moe_type_2d(MOE_I32, moe_dim_ragged(c->tokens, tok), c->topk)),
        moe_build_input(j.g, "all",
                        moe_type_2d(MOE_I32, moe_dim_ragged(c->tokens + 3, tok_ep), c->topk)),
        moe_build_input(j.g, "copies", moe_type_1d(MOE_I32, c->ranks * c->slots))};
    MoeValue *rank = moe_build_input(j.g, "ep_rank", moe_type_1d(MOE_I32, 1));
    const MoeOp *plan = moe_op_build(j.g, MOE_OP_COPY_PLAN, in, 3, moe_ai("experts", c->experts),
                                     moe_ai("ranks", c->ranks), moe_ai("slots", c->slots), MOE_END);
    MoeValue *by_slot[2] = {plan->results[1], rank};
    const MoeOp *rows = moe_op_build(j.g, MOE_OP_EXPERT_PLAN, by_slot, 2, moe_ai("slots", c->slots),
                                     moe_ai("chunks", 1), moe_ai("expect_recv", c->tokens),
                                     moe_ai("expect_rows", c->tokens), MOE_END);
    MoeValue *of[5] = {rows->results[1], plan->results[2], plan->results[3], in[2], rank};
    const MoeOp *roots = moe_op_build(j.g, MOE_OP_ROOT_PLAN, of, 5, moe_ai("expect", 2), MOE_END);
    const struct {
        const char *name;
        MoeValue *v;
    } outputs[] = {{"own", plan->results[0]},    {"to", plan->results[1]},
                   {"counts", plan->results[2]}, {"runs", plan->results[3]},
                   {"roots", roots->results[0]}, {"more", roots->results[1]}};
    for (size_t i = 0; i < LEN(outputs); i++)
        moe_build_output(j.g, outputs[i].name, outputs[i].v);
    fill(&j, c->tokens);
    MoeTensor *own = moe_inputs_find(&j.in, "ids"), *all = moe_inputs_find(&j.in, "all");
    int32_t *t_own = moe_inputs_find(&j.in, "tok")->i, *t_all = moe_inputs_find(&j.in, "tok_ep")->i;
    fill_copies(c, moe_inputs_find(&j.in, "copies")->i);
    fill_choices(c, all->i);
    moe_inputs_find(&j.in, "ep_rank")->i[0] = c->own * c->ranks / 4;
    int lo = c->own * c->shards / 4, hi = (c->own + 1) * c->shards / 4;
    for (int v = 0; v <= c->shards; v++)
        t_own[v] = v <= lo ? 0 : (v < hi ? t_all[v] : t_all[hi]) - t_all[lo];
    memcpy(own->i, all->i + (int64_t)t_all[lo] * c->topk,
           (size_t)t_own[c->shards] * (size_t)c->topk * sizeof *own->i);
    own->dims[0] = t_own[c->shards];
    own->n = own->dims[0] * c->topk;
    run(&j, target);
    check_integers(&j, target);
    end(&j);
}

START_TEST(copies_on_many_ranks) {
    static const Copies cases[] = {
        {40, 20, 8, 20, 2500, 3, 1.5, 2}, {64, 64, 3, 64, 4000, 2, 0.0, 0},
        {5, 3, 40, 3, 1000, 2, 1.0, 1},   {16, 4, 6, 8, 1500, 2, 1.0, 0},
        {64, 16, 6, 16, 2500, 4, 0.7, 1}, {12, 40, 3, 64, 4000, 2, 2.0, 3}};
    const bool gpu =
        strncmp(targets[_i], "cuda:", 5) == 0; /* each case has kernels of its own there */
    if (moe_test_runs(targets[_i]))
        for (size_t i = 0; i < (gpu && !moe_test_does_all(targets[_i]) ? 3 : LEN(cases)); i++)
            check_copies(&cases[i], targets[_i]);
}
END_TEST

/* ---- the gradient of an embedding ---- */

typedef struct {
    bool here;
    float v;
} Sum;

static Sum join(Sum a, Sum b) {
    if (!a.here || !b.here)
        return a.here ? a : b;
    return (Sum){true, a.v + b.v};
}

static Sum tree(const Sum *s, int lo, int size, int n) {
    if (lo >= n)
        return (Sum){false, 0};
    return size == 1 ? s[lo] : join(tree(s, lo, size / 2, n), tree(s, lo + size / 2, size / 2, n));
}

enum { VOCAB = 2600, TOKENS = 1900, SHARDS = 11, MOST_COLS = 40 };

/* One element: by shard the tokens in order, then the tree over shards. */
static float wanted(const MoeInputs *in, int64_t cols, int32_t id, int64_t col) {
    const int32_t *ids = moe_inputs_find(in, "ids")->i, *tok = moe_inputs_find(in, "tok")->i;
    const double *dy = moe_inputs_find(in, "dy")->f;
    Sum s[SHARDS];
    for (int v = 0; v < SHARDS; v++) {
        s[v] = (Sum){false, 0};
        for (int32_t t = tok[v]; t < tok[v + 1]; t++)
            if (ids[t] == id)
                s[v] = (Sum){true, s[v].v + (float)dy[t * cols + col]};
    }
    Sum all = tree(s, 0, 16, SHARDS);
    return all.here ? all.v : 0;
}

/* Most tokens have one of three ids, the others any; part 1 of 2 knows the upper half of the ids. */
static void check_gradient(int64_t cols, int64_t parts, const char *target) {
    Job j;
    begin(&j);
    MoeValue *tok = moe_build_input(j.g, "tok", moe_type_segs(1, SHARDS));
    MoeDim rows = moe_dim_ragged(TOKENS + 40, tok);
    MoeType ids_type = moe_type_1d(MOE_I32, rows.size);
    ids_type.dims[0] = rows;
    MoeValue *in[3] = {moe_build_input(j.g, "dy", moe_type_2d(MOE_F32, rows, cols)),
                       moe_build_input(j.g, "ids", ids_type),
                       parts > 1 ? moe_build_input(j.g, "part", moe_type_1d(MOE_I32, 1)) : NULL};
    const MoeOp *op = moe_op_build(j.g, MOE_OP_EMBEDDING_GRAD, in, parts > 1 ? 3 : 2,
                                   moe_ai("vocab", VOCAB / parts), MOE_END);
    moe_build_output(j.g, "dw", op->results[0]);
    fill(&j, TOKENS);
    static const int32_t frequent[] = {VOCAB - 2, 3, VOCAB / 2 + 1};
    int32_t *ids = moe_inputs_find(&j.in, "ids")->i, first = 0;
    for (int64_t t = 0; t < TOKENS; t++)
        ids[t] = below(3, t, 4) ? frequent[below(4, t, 5) % 3] : below(5, t, VOCAB);
    if (parts > 1) {
        moe_inputs_find(&j.in, "part")->i[0] = 1;
        first = VOCAB / (int32_t)parts;
    }
    run(&j, target);
    const float *got = moe_group_run_data(j.run, op->results[0]);
    for (int32_t row = 0; row < VOCAB / parts; row++)
        for (int64_t c = 0; c<cols; c += cols> 8 ? 7 : 1) {
            float want = wanted(&j.in, cols, first + row, c);
            CHECK_EACH(memcmp(&want, &got[row * cols + c], sizeof want) == 0,
                       "%s: row %d column %lld is %.9g, expected %.9g", target, row, (long long)c,
                       (double)got[row * cols + c], (double)want);
        }
    end(&j);
}

START_TEST(gradient_of_an_embedding) {
    if (!moe_test_runs(targets[_i]))
        return;
    check_gradient(36, 1, targets[_i]);
    check_gradient(33, 2, targets[_i]);
    check_gradient(2, 1, targets[_i]);
}
END_TEST

int main(void) {
    Suite *s = suite_create("route_kernels");
    TCase *tc = tcase_create("route_kernels");
    tcase_set_timeout(tc, 600);
    tcase_add_loop_test(tc, plans_of_many_experts, 0, N_TARGETS);
    tcase_add_loop_test(tc, copies_on_many_ranks, 0, N_TARGETS);
    tcase_add_loop_test(tc, gradient_of_an_embedding, 0, N_TARGETS);
    suite_add_tcase(s, tc);
    return moe_check_main(s);
}
