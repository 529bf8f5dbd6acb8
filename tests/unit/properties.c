/* Properties that hold for any data, on thousands of random cases through the interpreter: routing
 * (every token exactly k times, rows sorted, src and inv bijections), top-k, pairs of ops that are
 * each other's transpose, attention's sight, independence of names of experts and order of tokens,
 * decompositions, memory placement. A failure prints the seed. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "passes/decompose.h"
#include "passes/memplan.h"
#include "tests/support/check_main.h"
#include "tests/support/op_cases.h"

static void ok(MoeStatus st) {
    ck_assert_msg(st == NULL, "%s", moe_status_message(st));
}

/* Check logs every assertion to a file; conditions in loops go through this instead. */
#define REQUIRE(cond, ...)                                                                         \
    do {                                                                                           \
        if (!(cond))                                                                               \
            ck_abort_msg(__VA_ARGS__);                                                             \
    } while (0)

/* The i-th number of a case, in lo..hi. */
static int64_t pick(uint64_t seed, uint64_t i, int64_t lo, int64_t hi) {
    return lo + (int64_t)moe_rng_below(seed, 77, i, (uint64_t)(hi - lo + 1));
}

static MoeOpCase route_case(MoeOpcode op, uint64_t seed) {
    MoeOpCase c = {.op = op, .dtype = MOE_F32, .id = "random"};
    c.experts = pick(seed, 0, 1, 12);
    c.topk = pick(seed, 1, 1, c.experts < 4 ? c.experts : 4);
    c.rows = pick(seed, 2, 0, 40);
    c.capacity = c.rows + pick(seed, 3, 0, 5);
    c.shards = (int64_t)1 << pick(seed, 4, 0, 4);
    c.cols = pick(seed, 5, 1, 5);
    c.layout = (MoeShardLayout)pick(seed, 6, 0, 3);
    c.routing = (MoeRouting)pick(seed, 7, 0, 2);
    return c;
}

/* ---- routing ---- */

/* Whether t is a table from 0 to n that never decreases. */
static bool table_ok(const MoeTensor *t, int64_t n) {
    bool good = t->i[0] == 0 && t->i[t->n - 1] == n;
    for (int64_t s = 1; s < t->n; s++)
        good = good && t->i[s] >= t->i[s - 1];
    return good;
}

static void check_plan(const MoeOpCase *c, const MoeCaseRun *run, uint64_t seed) {
    const MoeTensor *ids = moe_inputs_find(&run->inputs, "x0"),
                    *tok = moe_inputs_find(&run->inputs, "tok");
    const MoeTensor *seg = moe_case_want(run, 0), *src = moe_case_want(run, 1),
                    *inv = moe_case_want(run, 2);
    int64_t k = c->topk, v = c->shards, rows = c->rows * k;
    REQUIRE(ids->n == rows && src->n == rows && inv->n == rows, "seed %llu: rows",
            (unsigned long long)seed);
    REQUIRE(table_ok(seg, rows), "seed %llu: the table", (unsigned long long)seed);
    int *seen = calloc((size_t)rows + 1, sizeof *seen);
    for (int64_t r = 0; r < rows; r++) {
        int32_t p = src->i[r];
        REQUIRE(p >= 0 && p < rows && inv->i[p] == r, "seed %llu: src and inv at row %lld",
                (unsigned long long)seed, (long long)r);
        seen[p]++; /* each token's each choice once: so each token exactly k times */
        if (r > 0) {
            int32_t q = src->i[r - 1];
            REQUIRE(ids->i[q] < ids->i[p] || (ids->i[q] == ids->i[p] && q < p),
                    "seed %llu: rows %lld and %lld are not sorted by (expert, token)",
                    (unsigned long long)seed, (long long)r - 1, (long long)r);
        }
    }
    for (int64_t p = 0; p < rows; p++)
        REQUIRE(seen[p] == 1, "seed %llu: choice %lld is routed %d times", (unsigned long long)seed,
                (long long)p, seen[p]);
    for (int64_t e = 0; e < c->experts; e++) /* the rows of (e, v) are of that expert and shard */
        for (int64_t s = 0; s < v; s++)
            for (int64_t r = seg->i[e * v + s]; r < seg->i[e * v + s + 1]; r++) {
                int64_t token = src->i[r] / k;
                REQUIRE(ids->i[src->i[r]] == e && token >= tok->i[s] && token < tok->i[s + 1],
                        "seed %llu: row %lld lies in segment (%lld, %lld)",
                        (unsigned long long)seed, (long long)r, (long long)e, (long long)s);
            }
    free(seen);
}

START_TEST(plans_route_each_choice_once) {
    int64_t rows = 0;
    for (uint64_t seed = 0; seed < 3000; seed++) {
        MoeOpCase c = route_case(MOE_OP_ROUTE_PLAN, seed);
        MoeCaseRun run;
        ok(moe_case_run_open(&c, seed, &run));
        check_plan(&c, &run, seed);
        rows += c.rows;
        moe_case_run_close(&run);
    }
    ck_assert_int_gt(rows, 30000);
}
END_TEST

/* Against counting: an id is among the k if fewer than k columns beat it (larger, or equal with a
 * lower id), and stands at the place of that count. */
START_TEST(topk_orders_by_value_then_id) {
    int64_t ties = 0;
    for (uint64_t seed = 0; seed < 2000; seed++) {
        MoeOpCase c = route_case(MOE_OP_TOPK, seed);
        MoeCaseRun run;
        ok(moe_case_run_open(&c, seed, &run));
        const MoeTensor *x = moe_inputs_find(&run.inputs, "x0"), *ids = moe_case_want(&run, 0);
        for (int64_t t = 0; t < c.rows; t++)
            for (int64_t e = 0; e < c.experts; e++) {
                const double *row = x->f + t * c.experts;
                int64_t place = 0;
                for (int64_t q = 0; q < c.experts; q++) {
                    place += row[q] > row[e] || (row[q] == row[e] && q < e);
                    ties += q != e && row[q] == row[e];
                }
                bool right = place >= c.topk || ids->i[t * c.topk + place] == e;
                REQUIRE(right, "seed %llu: row %lld, column %lld", (unsigned long long)seed,
                        (long long)t, (long long)e);
            }
        moe_case_run_close(&run);
    }
    ck_assert_int_gt(ties, 1000);
}
END_TEST

/* ---- transposes: <f(x), y> = <x, f'(y)> ---- */

static double inner(const MoeTensor *a, const MoeTensor *b) {
    double sum = 0;
    REQUIRE(a->n == b->n, "inner product of %lld and %lld", (long long)a->n, (long long)b->n);
    for (int64_t k = 0; k < a->n; k++)
        sum += a->f[k] * b->f[k];
    return sum;
}

/* One op on tensors. */
static MoeTensor apply(MoeCaseRun *run, const MoeOpCase *c, const MoeTensor *x) {
    MoeModule *m = moe_module_create();
    MoeGraph *g = moe_op_case_build(m, c);
    MoeEval *ev = moe_eval_create(g);
    for (size_t i = 0; i < run->inputs.n; i++) {
        MoeInputData d = run->inputs.items[i];
        const char *name = moe_attr_s(d.value->def, "name");
        d.value = moe_graph_find_input(g, name);
        if (!strcmp(name, "x0"))
            d.t = *x;
        ok(moe_inputs_give(&(MoeInputs){&d, 1}, ev));
    }
    ok(moe_eval_run(ev));
    MoeTensor y = *moe_eval_get(ev, moe_graph_find_output(g, "y0"));
    y.f = moe_arena_copy(run->arena, y.f, (size_t)y.n * sizeof(double));
    moe_eval_destroy(ev);
    moe_module_destroy(m);
    return y;
}

static MoeTensor random_like(const MoeTensor *t, uint64_t seed, MoeArena *a) {
    MoeTensor r = *t;
    r.f = MOE_NEW_N(a, double, t->n);
    for (int64_t k = 0; k < t->n; k++)
        r.f[k] = moe_rng_normal(seed, 99, (uint64_t)k);
    return r;
}

/* f and its transpose share all inputs but x0. */
static void check_transposes(MoeOpcode f, MoeOpcode transpose) {
    double seen = 0;
    for (uint64_t seed = 0; seed < 1000; seed++) {
        MoeOpCase c = route_case(f, seed), back = c;
        back.op = transpose;
        MoeCaseRun run;
        ok(moe_case_run_open(&c, seed, &run));
        const MoeTensor *x = moe_inputs_find(&run.inputs, "x0"), *fx = moe_case_want(&run, 0);
        MoeTensor y = random_like(fx, seed, run.arena), fy = apply(&run, &back, &y);
        double left = inner(fx, &y), right = inner(x, &fy);
        REQUIRE(fabs(left - right) <= 1e-12 * (double)(x->n + fx->n + 1),
                "seed %llu: <%s x, y> = %.15g, <x, %s y> = %.15g", (unsigned long long)seed,
                moe_op_info(f)->name, left, moe_op_info(transpose)->name, right);
        seen += fabs(left);
        moe_case_run_close(&run);
    }
    ck_assert(seen > 1000);
}

START_TEST(moves_are_transposes) {
    check_transposes(MOE_OP_DISPATCH, MOE_OP_GATHER_SUM);
    check_transposes(MOE_OP_GATHER_SUM, MOE_OP_DISPATCH);
    check_transposes(MOE_OP_DISPATCH_WEIGHT, MOE_OP_COLLECT_WEIGHT);
    check_transposes(MOE_OP_COLLECT_WEIGHT, MOE_OP_DISPATCH_WEIGHT);
    check_transposes(MOE_OP_TAKE, MOE_OP_PUT);
    check_transposes(MOE_OP_PUT, MOE_OP_TAKE);
}
END_TEST

/* dispatch copies, so gather_sum of it is K times x; collect undoes dispatch_weight. */
START_TEST(there_and_back) {
    for (uint64_t seed = 0; seed < 500; seed++) {
        MoeOpCase c = route_case(MOE_OP_DISPATCH, seed), back = c;
        MoeCaseRun run;
        back.op = MOE_OP_GATHER_SUM;
        ok(moe_case_run_open(&c, seed, &run));
        const MoeTensor *x = moe_inputs_find(&run.inputs, "x0");
        MoeTensor y = apply(&run, &back, moe_case_want(&run, 0));
        for (int64_t k = 0; k < x->n; k++)
            REQUIRE(fabs(y.f[k] - (double)c.topk * x->f[k]) <= 1e-14 * (1 + fabs(y.f[k])),
                    "seed %llu: element %lld", (unsigned long long)seed, (long long)k);
        moe_case_run_close(&run);
        c.op = MOE_OP_DISPATCH_WEIGHT;
        back.op = MOE_OP_COLLECT_WEIGHT;
        ok(moe_case_run_open(&c, seed, &run));
        x = moe_inputs_find(&run.inputs, "x0");
        y = apply(&run, &back, moe_case_want(&run, 0));
        for (int64_t k = 0; k < x->n; k++)
            REQUIRE(y.f[k] == x->f[k], "seed %llu: weight %lld", (unsigned long long)seed,
                    (long long)k);
        moe_case_run_close(&run);
    }
}
END_TEST

/* A rotation keeps the length of every row, and its inverse undoes it. */
START_TEST(rope_rotates) {
    for (uint64_t seed = 0; seed < 300; seed++) {
        MoeOpCase c = {.op = MOE_OP_ROPE, .dtype = MOE_F32, .id = "random", .shards = 4};
        c.heads = pick(seed, 0, 1, 4);
        c.head_dim = 2 * pick(seed, 1, 1, 9);
        c.seq = pick(seed, 2, 1, 12);
        c.rows = c.seq * pick(seed, 3, 0, 4);
        c.capacity = c.rows + 1;
        MoeOpCase back = c;
        back.inverse = true;
        MoeCaseRun run;
        ok(moe_case_run_open(&c, seed, &run));
        const MoeTensor *x = moe_inputs_find(&run.inputs, "x0"), *y = moe_case_want(&run, 0);
        MoeTensor z = apply(&run, &back, y);
        REQUIRE(fabs(inner(x, x) - inner(y, y)) <= 1e-12 * (double)(x->n + 1), "seed %llu: length",
                (unsigned long long)seed);
        for (int64_t k = 0; k < x->n; k++)
            REQUIRE(fabs(z.f[k] - x->f[k]) <= 1e-13 * (1 + fabs(x->f[k])),
                    "seed %llu: element %lld", (unsigned long long)seed, (long long)k);
        moe_case_run_close(&run);
    }
}
END_TEST

/* ---- attention ---- */

/* Changing k and v at position s changes the outputs of exactly the positions that see s: t in
 * s..s+window-1 of its sequence. */
START_TEST(attention_sees_what_it_should) {
    int64_t changed = 0, kept = 0;
    for (uint64_t seed = 0; seed < 300; seed++) {
        MoeOpCase c = {.op = MOE_OP_ATTENTION, .dtype = MOE_F32, .id = "random", .shards = 2};
        c.kv_heads = pick(seed, 0, 1, 2);
        c.heads = c.kv_heads * pick(seed, 1, 1, 3);
        c.head_dim = pick(seed, 2, 1, 6);
        c.seq = pick(seed, 3, 1, 9);
        c.rows = c.seq * pick(seed, 4, 1, 3);
        c.capacity = c.rows;
        c.window = pick(seed, 5, 0, 4);
        MoeCaseRun run;
        ok(moe_case_run_open(&c, seed, &run));
        const MoeTensor *before = moe_case_want(&run, 0);
        MoeTensor old = *before;
        old.f = moe_arena_copy(run.arena, before->f, (size_t)before->n * sizeof(double));
        int64_t s = pick(seed, 6, 0, c.rows - 1), width = c.kv_heads * c.head_dim;
        for (int i = 0; i < 2; i++) {
            MoeTensor *t = moe_inputs_find(&run.inputs, i ? "x2" : "x1");
            for (int64_t d = 0; d < width; d++)
                t->f[s * width + d] += 1 + (double)d;
        }
        ok(moe_inputs_give(&run.inputs, run.eval));
        ok(moe_eval_run(run.eval));
        const MoeTensor *now = moe_case_want(&run, 0);
        int64_t cols = c.heads * c.head_dim;
        for (int64_t t = 0; t < c.rows; t++) {
            bool sees = t >= s && t / c.seq == s / c.seq && (c.window == 0 || t - s < c.window);
            bool same = !memcmp(now->f + t * cols, old.f + t * cols, (size_t)cols * sizeof(double));
            REQUIRE(sees != same, "seed %llu: position %lld and key %lld, seq %lld, window %lld",
                    (unsigned long long)seed, (long long)t, (long long)s, (long long)c.seq,
                    (long long)c.window);
            changed += !same;
            kept += same;
        }
        moe_case_run_close(&run);
    }
    ck_assert_int_gt(changed, 300);
    ck_assert_int_gt(kept, 1000);
}
END_TEST

/* ---- the layer as a whole ---- */

enum { T = 12, C = 3, N = 4, E = 5, K = 2 };

/* x, ids, w, expert weights (E, N, C) -> gather_sum(w * (dispatch(x) W')): (T, N) */
static MoeModule *layer(MoeGraph **out_graph) {
    MoeModule *m = moe_module_create();
    MoeGraph *g = *out_graph = moe_module_add_graph(m, "layer");
    MoeDim rows = moe_dim_ragged(T, moe_build_input(g, "tok", moe_type_segs(1, 4)));
    MoeValue *x = moe_build_input(g, "x", moe_type_2d(MOE_F32, rows, C));
    MoeValue *ids = moe_build_input(g, "ids", moe_type_2d(MOE_I32, rows, K));
    MoeValue *w = moe_build_input(g, "w", moe_type_2d(MOE_F32, rows, K));
    MoeValue *experts = moe_build_input(g, "experts", moe_type_3d(MOE_F32, E, N, C));
    MoeOp *p = moe_op_build(g, MOE_OP_ROUTE_PLAN, &ids, 1, moe_ai("experts", E), MOE_END);
    MoeValue *src = p->results[1], *inv = p->results[2];
    MoeValue *r = moe_build(g, MOE_OP_DISPATCH, (MoeValue *[]){x, src, inv}, 3, MOE_END);
    MoeValue *s = moe_build(g, MOE_OP_DISPATCH_WEIGHT, (MoeValue *[]){w, src, inv}, 3, MOE_END);
    MoeValue *y = moe_build(g, MOE_OP_MATMUL, (MoeValue *[]){r, experts}, 2, moe_ai("tb", 1),
                            moe_ai("grouped", 1), MOE_END);
    y = moe_build2(g, MOE_OP_MUL, y, s);
    y = moe_build(g, MOE_OP_GATHER_SUM, (MoeValue *[]){y, src, inv}, 3, MOE_END);
    moe_build_output(g, "y", y);
    return m;
}

static void run_layer(const MoeGraph *g, const MoeInputs *in, double y[T * N]) {
    MoeEval *ev = moe_eval_create(g);
    ok(moe_inputs_give(in, ev));
    ok(moe_eval_run(ev));
    memcpy(y, moe_eval_get(ev, moe_graph_find_output(g, "y"))->f, sizeof(double) * T * N);
    moe_eval_destroy(ev);
}

static void permute_rows(void *data, size_t row_bytes, int64_t rows, const int32_t *to,
                         MoeArena *a) {
    char *old = moe_arena_copy(a, data, row_bytes * (size_t)rows);
    for (int64_t r = 0; r < rows; r++)
        memcpy((char *)data + (size_t)to[r] * row_bytes, old + (size_t)r * row_bytes, row_bytes);
}

/* Renaming experts changes no bit of any token; reordering tokens moves their results and changes
 * no bit either, for a token's sum goes by its own list. */
START_TEST(names_and_order_do_not_matter) {
    MoeGraph *g;
    MoeModule *m = layer(&g);
    for (uint64_t seed = 0; seed < 300; seed++) {
        MoeArena *a = moe_arena_create();
        MoeInputs in;
        MoeRandomOptions o = {.seed = seed,
                              .rows = T,
                              .shards = (MoeShardLayout)(seed % 4),
                              .routing = (MoeRouting)(seed % 3)};
        ok(moe_random_inputs(g, &o, a, &in));
        double want[T * N], got[T * N];
        run_layer(g, &in, want);
        int32_t expert_to[E], token_to[T];
        moe_random_expert_ids(expert_to, 1, E, E, MOE_ROUTING_RANDOM, seed, 5);
        moe_random_expert_ids(token_to, 1, T, T, MOE_ROUTING_RANDOM, seed, 6);
        MoeTensor *ids = moe_inputs_find(&in, "ids");
        for (int64_t p = 0; p < ids->n; p++)
            ids->i[p] = expert_to[ids->i[p]];
        permute_rows(moe_inputs_find(&in, "experts")->f, sizeof(double) * N * C, E, expert_to, a);
        run_layer(g, &in, got);
        REQUIRE(!memcmp(want, got, sizeof want), "seed %llu: experts renamed",
                (unsigned long long)seed);
        permute_rows(ids->i, sizeof(int32_t) * K, T, token_to, a);
        permute_rows(moe_inputs_find(&in, "x")->f, sizeof(double) * C, T, token_to, a);
        permute_rows(moe_inputs_find(&in, "w")->f, sizeof(double) * K, T, token_to, a);
        permute_rows(want, sizeof(double) * N, T, token_to, a);
        run_layer(g, &in, got);
        REQUIRE(!memcmp(want, got, sizeof want), "seed %llu: tokens reordered",
                (unsigned long long)seed);
        moe_arena_destroy(a);
    }
    moe_module_destroy(m);
}
END_TEST

/* ---- passes ---- */

static bool every_composite(const void *cx, MoeOpcode op) {
    (void)cx;
    (void)op;
    return true;
}

/* A composite and its primitives agree to the last digits, on every case of the table. */
START_TEST(decomposition_keeps_values) {
    size_t n, done = 0;
    MoeOpCase *cases = moe_op_cases_all("", &n);
    for (size_t i = 0; i < n; i++) {
        if (!moe_op_is_composite(cases[i].op) || cases[i].rows * cases[i].cols > 50000)
            continue;
        MoeCaseRun whole, parts = {.module = moe_module_create(), .arena = moe_arena_create()};
        ok(moe_case_run_open(&cases[i], 3, &whole));
        parts.graph = moe_op_case_build(parts.module, &cases[i]);
        REQUIRE(moe_graph_decompose(parts.graph, every_composite, NULL) > 0, "%s: nothing to do",
                cases[i].id);
        parts.eval = moe_eval_create(parts.graph);
        ok(moe_case_fill(parts.graph, &cases[i], 3, parts.arena, &parts.inputs));
        for (size_t k = 0; k < parts.inputs.n; k++) /* the same data: roles may look different */
            parts.inputs.items[k].t = *moe_inputs_find(
                &whole.inputs, moe_attr_s(parts.inputs.items[k].value->def, "name"));
        ok(moe_inputs_give(&parts.inputs, parts.eval));
        ok(moe_eval_run(parts.eval));
        for (int r = 0; moe_case_want(&whole, r); r++) {
            const MoeTensor *a = moe_case_want(&whole, r), *b = moe_case_want(&parts, r);
            for (int64_t k = 0; k < a->n; k++)
                REQUIRE(fabs(a->f[k] - b->f[k]) <= 1e-13 * (fabs(a->f[k]) + 1e-3),
                        "%s: y%d[%lld] is %.17g whole, %.17g in parts", cases[i].id, r,
                        (long long)k, a->f[k], b->f[k]);
        }
        moe_case_run_close(&whole);
        moe_case_run_close(&parts);
        done++;
    }
    free(cases);
    ck_assert_uint_gt(done, 40);
}
END_TEST

/* Placement: what is live together never overlaps; the peak is what is used, and no less than the
 * bound. */
START_TEST(live_ranges_never_overlap) {
    for (uint64_t seed = 0; seed < 400; seed++) {
        MoeArena *a = moe_arena_create();
        int steps = (int)pick(seed, 0, 1, 40);
        size_t n = (size_t)pick(seed, 1, 0, 60);
        MoeInterval v[64], again[64];
        for (size_t i = 0; i < n; i++) {
            int start = (int)pick(seed, 10 + 3 * i, 0, steps - 1);
            int end = (int)pick(seed, 11 + 3 * i, start, steps - 1);
            v[i] = (MoeInterval){64 * pick(seed, 12 + 3 * i, 1, 100), start, end, -1};
        }
        memcpy(again, v, sizeof v);
        int64_t bound = moe_place_lower_bound(v, n, steps, NULL), live_peak = 0, top = 0;
        for (int s = 0; s < steps; s++) {
            int64_t live = 0;
            for (size_t i = 0; i < n; i++)
                live += v[i].start <= s && s <= v[i].end ? v[i].bytes : 0;
            live_peak = live > live_peak ? live : live_peak;
        }
        REQUIRE(bound == live_peak, "seed %llu: bound %lld, live %lld", (unsigned long long)seed,
                (long long)bound, (long long)live_peak);
        int64_t peak = moe_place(v, n, bound, a);
        for (size_t i = 0; i < n; i++) {
            REQUIRE(v[i].offset >= 0 && v[i].offset % 64 == 0, "seed %llu: offset %lld",
                    (unsigned long long)seed, (long long)v[i].offset);
            top = v[i].offset + v[i].bytes > top ? v[i].offset + v[i].bytes : top;
            for (size_t j = 0; j < i; j++) {
                bool together = v[i].start <= v[j].end && v[j].start <= v[i].end;
                bool overlap = v[i].offset < v[j].offset + v[j].bytes &&
                               v[j].offset < v[i].offset + v[i].bytes;
                REQUIRE(!(together && overlap), "seed %llu: buffers %zu and %zu overlap",
                        (unsigned long long)seed, j, i);
            }
        }
        REQUIRE(top == peak && peak >= bound, "seed %llu: peak %lld, used %lld, bound %lld",
                (unsigned long long)seed, (long long)peak, (long long)top, (long long)bound);
        REQUIRE(moe_place(again, n, bound, a) == peak && !memcmp(again, v, n * sizeof *v),
                "seed %llu: placed differently the second time", (unsigned long long)seed);
        moe_arena_destroy(a);
    }
}
END_TEST

int main(void) {
    Suite *s = suite_create("properties");
    TCase *t = tcase_create("properties");
    tcase_add_test(t, plans_route_each_choice_once);
    tcase_add_test(t, topk_orders_by_value_then_id);
    tcase_add_test(t, moves_are_transposes);
    tcase_add_test(t, there_and_back);
    tcase_add_test(t, rope_rotates);
    tcase_add_test(t, attention_sees_what_it_should);
    tcase_add_test(t, names_and_order_do_not_matter);
    tcase_add_test(t, decomposition_keeps_values);
    tcase_add_test(t, live_ranges_never_overlap);
    tcase_set_timeout(t, 120);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
