/* One MoE layer, written for ranks as docs/RANKS.md says, gives what the logical layer gives on one rank: the forward pass to
 * the last bit, its weight gradients and counts after their reductions. On random meshes, placements of experts, layouts of
 * tokens (ranks without any) and routings (all to one expert, none to another, fewer experts than ranks). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "ir/eval/eval_ranks.h"
#include "ir/verify.h"
#include "tests/support/check_main.h"
#include "tests/support/mesh.h"
#include "tests/support/random_graph.h"
#include "tests/support/status_checks.h"

/* Check logs every assertion to a file; conditions in loops go through this instead. */
#define REQUIRE(cond, ...)                                                                         \
    do {                                                                                           \
        if (!(cond))                                                                               \
            ck_abort_msg(__VA_ARGS__);                                                             \
    } while (0)

enum { V = 8, C = 3, F = 5, UNIT = 4 }; /* slices are cut at multiples of UNIT */

typedef struct {
    uint64_t seed;
    MoeMesh mesh;
    int experts, topk, chunks, tokens;
    MoeShardLayout layout;
    MoeRouting routing;
    bool bf16;
} Spec;

/* The data of the whole batch. */
typedef struct {
    int32_t tok[V + 1], *ids, *place;
    double *x, *w, *w1, *w2;
} Data;

static double *normals(int64_t n, uint64_t seed, uint64_t stream) {
    double *x = calloc((size_t)n + 1, sizeof *x);
    for (int64_t k = 0; k < n; k++)
        x[k] = moe_rng_normal(seed, stream, (uint64_t)k);
    return x;
}

static int below(const Spec *s, uint64_t stream, uint64_t at, int n) {
    return (int)moe_rng_below(s->seed, stream, at, (uint64_t)n);
}

/* The shard of token t, ascending in t. */
static void fill_table(const Spec *s, int32_t *tok) {
    int first = below(s, 90, 0, V), last = first + below(s, 90, 1, V - first);
    for (int t = 0; t < s->tokens; t++) {
        int v = t * V / s->tokens;
        if (s->layout == MOE_SHARDS_RANDOM) /* an inner run of shards has them all */
            v = first + t * (last - first + 1) / s->tokens;
        else if (s->layout != MOE_SHARDS_EVEN)
            v = s->layout == MOE_SHARDS_FIRST ? 0 : V - 1;
        tok[v + 1]++;
    }
    for (int v = 0; v < V; v++)
        tok[v + 1] += tok[v];
}

/* expert -> global slot: a random one for each. */
static int32_t *random_place(const Spec *s) {
    int n = moe_mesh_slots(&s->mesh, s->experts) * s->mesh.ep;
    int32_t *slots = calloc((size_t)n, sizeof *slots);
    for (int i = 0; i < n; i++) {
        int j = below(s, 91, (uint64_t)i, i + 1);
        slots[i] = slots[j];
        slots[j] = i;
    }
    return slots;
}

static Data make_data(const Spec *s) {
    Data d = {.place = random_place(s)};
    fill_table(s, d.tok);
    d.ids = calloc((size_t)(s->tokens * s->topk) + 1, sizeof *d.ids);
    moe_random_expert_ids(d.ids, s->tokens, s->topk, s->experts, s->routing, s->seed, 5);
    d.x = normals(s->tokens * C, s->seed, 1);
    d.w = normals(s->tokens * s->topk, s->seed, 2);
    d.w1 = normals(s->experts * F * C, s->seed, 3);
    d.w2 = normals(s->experts * C * F, s->seed, 4);
    return d;
}

static void free_data(Data *d) {
    free(d->ids);
    free(d->place);
    free(d->x);
    free(d->w);
    free(d->w1);
    free(d->w2);
}

/* ---- the layer, logical and of a rank ---- */

typedef struct {
    MoeGraph *g;
    const Spec *s;
    MoeValue *tok, *tok_ep, *place, *ep_rank, *x, *ids, *w, *w1, *w2;
    MoeValue *home, *src_h, *inv_h, *send, *idx, *recv, *seg, *src, *inv; /* the plans */
    MoeValue *y, *collected, *dw1, *dense, *counts;                       /* results */
} Layer;

static MoeValue *op3(MoeGraph *g, MoeOpcode op, MoeValue *a, MoeValue *b, MoeValue *c) {
    return moe_build(g, op, (MoeValue *[]){a, b, c}, 3, MOE_END);
}

static MoeValue *grouped(MoeGraph *g, MoeOpcode op, MoeValue *a, MoeValue *b) {
    if (op == MOE_OP_WEIGHT_GRAD)
        return moe_build(g, op, (MoeValue *[]){a, b}, 2, moe_ai("grouped", 1), MOE_END);
    return moe_build(g, op, (MoeValue *[]){a, b}, 2, moe_ai("tb", 1), moe_ai("grouped", 1),
                     MOE_END);
}

static MoeValue *narrow(const Layer *l, MoeValue *v) {
    return l->s->bf16 ? moe_build_convert(l->g, v, MOE_BF16) : v;
}

static void build_inputs(Layer *l, int64_t capacity, MoeType w1, MoeType w2) {
    MoeGraph *g = l->g;
    l->tok = moe_build_input(g, "tok", moe_type_segs(1, V));
    MoeDim rows = moe_dim_ragged(capacity, l->tok);
    l->x = moe_build_input(g, "x", moe_type_2d(MOE_F32, rows, C));
    l->ids = moe_build_input(g, "ids", moe_type_2d(MOE_I32, rows, l->s->topk));
    l->w = moe_build_input(g, "w", moe_type_2d(MOE_F32, rows, l->s->topk));
    l->w1 = moe_build_input(g, "w1", w1);
    l->w2 = moe_build_input(g, "w2", w2);
    MoeOp *plan =
        moe_op_build(g, MOE_OP_ROUTE_PLAN, &l->ids, 1, moe_ai("experts", l->s->experts), MOE_END);
    l->home = plan->results[0];
    l->src_h = plan->results[1];
    l->inv_h = plan->results[2];
    l->counts = moe_build1(g, MOE_OP_EXPERT_COUNTS, l->home);
    l->dense = moe_build1(g, MOE_OP_COL_SUM, l->x);
}

/* Rows through the experts: x and w as the dispatches take them; sets dw1, returns the weighted rows. */
static MoeValue *experts(Layer *l, MoeValue *x, MoeValue *w, MoeValue *w1, MoeValue *w2) {
    MoeGraph *g = l->g;
    MoeValue *rows = op3(g, MOE_OP_DISPATCH, x, l->src, l->inv);
    MoeValue *h = moe_build1(g, MOE_OP_SIGMOID, grouped(g, MOE_OP_MATMUL, rows, w1));
    l->dw1 = grouped(g, MOE_OP_WEIGHT_GRAD, narrow(l, h), rows);
    MoeValue *y = grouped(g, MOE_OP_MATMUL, narrow(l, h), w2);
    return moe_build2(g, MOE_OP_MUL, y, op3(g, MOE_OP_DISPATCH_WEIGHT, w, l->src, l->inv));
}

static Layer build_logical(MoeModule *m, const Spec *s) {
    Layer l = {.g = moe_module_add_graph(m, "logical"), .s = s};
    build_inputs(&l, s->tokens + 2, moe_type_3d(MOE_F32, s->experts, F, C),
                 moe_type_3d(MOE_F32, s->experts, C, F));
    l.seg = l.home;
    l.src = l.src_h;
    l.inv = l.inv_h;
    MoeValue *rows = experts(&l, narrow(&l, l.x), l.w, narrow(&l, l.w1), narrow(&l, l.w2));
    l.y = op3(l.g, MOE_OP_GATHER_SUM, rows, l.src, l.inv);
    l.collected =
        op3(l.g, MOE_OP_COLLECT_WEIGHT, moe_build1(l.g, MOE_OP_ROW_SUM, rows), l.src, l.inv);
    return l;
}

static void build_plans(Layer *l, int slots, int64_t capacity) {
    MoeGraph *g = l->g;
    int ep = l->s->mesh.ep, chunks = l->s->chunks;
    l->tok_ep = moe_build_input(g, "tok_ep", moe_type_segs(1, V));
    l->place = moe_build_input(g, "place.0", moe_type_1d(MOE_I32, l->s->experts));
    l->ep_rank = moe_build_input(g, "ep_rank", moe_type_1d(MOE_I32, 1));
    MoeValue *all = moe_build(g, MOE_OP_ALL_GATHER_ROWS, (MoeValue *[]){l->ids, l->tok_ep}, 2,
                              moe_as("group", "ep"), moe_ai("ranks", ep), MOE_END);
    MoeOp *send = moe_op_build(g, MOE_OP_SEND_PLAN, (MoeValue *[]){l->ids, l->place}, 2,
                               moe_ai("slots", slots), moe_ai("ranks", ep),
                               moe_ai("chunks", chunks), moe_ai("expect", capacity), MOE_END);
    MoeOp *plan = moe_op_build(g, MOE_OP_EXPERT_PLAN, (MoeValue *[]){all, l->place, l->ep_rank}, 3,
                               moe_ai("slots", slots), moe_ai("chunks", chunks),
                               moe_ai("expect_recv", 0), moe_ai("expect_rows", capacity), MOE_END);
    l->send = send->results[0];
    l->idx = send->results[1];
    l->recv = plan->results[0];
    l->seg = plan->results[1];
    l->src = plan->results[2];
    l->inv = plan->results[3];
}

static MoeValue *to_experts(const Layer *l, MoeValue *v) {
    return moe_build(l->g, MOE_OP_A2A_DISPATCH, (MoeValue *[]){v, l->idx, l->inv}, 3,
                     moe_as("group", "ep"), MOE_END);
}

static MoeValue *to_home(const Layer *l, MoeValue *v, int slots) {
    return moe_build(l->g, MOE_OP_A2A_COMBINE, (MoeValue *[]){v, l->place, l->src_h}, 3,
                     moe_as("group", "ep"), moe_ai("slots", slots), MOE_END);
}

/* The whole [slots,n,k] of a weight, converted before it is gathered. */
static MoeValue *gathered(const Layer *l, MoeValue *slice, int slots, int n, int k) {
    char dims[64];
    snprintf(dims, sizeof dims, "%d,%d,%d", slots, n, k);
    slice = narrow(l, slice);
    if (l->s->mesh.shard == 1)
        return slice;
    slice = moe_build(l->g, MOE_OP_ALL_GATHER, &slice, 1, moe_as("group", "expert_shard"),
                      moe_ai("unit", UNIT), moe_as("dims", dims), MOE_END);
    return moe_build1(l->g, MOE_OP_WAIT, slice);
}

static MoeValue *scattered(const Layer *l, MoeValue *v, const char *sum, const char *scatter,
                           int parts, bool outer) {
    return moe_build(l->g, MOE_OP_REDUCE_SCATTER, &v, 1, moe_as("sum", sum),
                     moe_as("scatter", scatter), moe_ai("unit", UNIT), moe_ai("parts", parts),
                     moe_ai("outer", outer), MOE_END);
}

static MoeType slice_type(const Spec *s, int slots, int64_t n, int64_t k) {
    if (s->mesh.shard == 1)
        return moe_type_3d(MOE_F32, slots, n, k);
    return moe_type_2d(MOE_F32, moe_dim(slots), moe_slice(n * k, UNIT, s->mesh.shard, 0).cap);
}

static Layer build_ranked(MoeModule *m, const Spec *s) {
    Layer l = {.g = moe_module_add_graph(m, "ranked"), .s = s};
    int slots = moe_mesh_slots(&s->mesh, s->experts);
    build_inputs(&l, s->tokens + 2, slice_type(s, slots, F, C), slice_type(s, slots, C, F));
    build_plans(&l, slots, s->tokens);
    MoeValue *rows = experts(&l, to_experts(&l, narrow(&l, l.x)), to_experts(&l, l.w),
                             gathered(&l, l.w1, slots, F, C), gathered(&l, l.w2, slots, C, F));
    l.y = op3(l.g, MOE_OP_GATHER_SUM, to_home(&l, rows, slots), l.src_h, l.inv_h);
    MoeValue *sums = to_home(&l, moe_build1(l.g, MOE_OP_ROW_SUM, rows), slots);
    l.collected = op3(l.g, MOE_OP_COLLECT_WEIGHT, sums, l.src_h, l.inv_h);
    l.dw1 = scattered(&l, l.dw1, "expert_data", "expert_shard", s->mesh.shard, true);
    l.dense = scattered(&l, l.dense, "data", "dense_shard", s->mesh.dense_shard, false);
    l.counts = moe_build(l.g, MOE_OP_ALL_REDUCE, &l.counts, 1, moe_as("group", "data"), MOE_END);
    return l;
}

/* ---- data for each ---- */

static void give_batch(const Layer *l, MoeEval *ev, const Data *d, int lo, int hi) {
    int32_t tok[V + 1];
    int first = d->tok[lo], n = d->tok[hi] - first, k = l->s->topk;
    for (int v = 0; v <= V; v++)
        tok[v] = v < lo ? 0 : (v > hi ? d->tok[hi] : d->tok[v]) - first;
    OK(moe_eval_set_i(ev, l->tok, tok, V + 1));
    OK(moe_eval_set_f(ev, l->x, d->x + first * C, n * C));
    OK(moe_eval_set_f(ev, l->w, d->w + first * k, n * k));
    OK(moe_eval_set_i(ev, l->ids, d->ids + first * k, n * k));
}

/* The rank's part of an expert weight [E,n]: its slots, of each its slice. What belongs to no expert, or lies behind the
 * slice, is not a number. */
static void give_weight(const Layer *l, MoeEval *ev, MoeCoords c, const Data *d, MoeValue *v,
                        const double *w, int64_t n) {
    const Spec *s = l->s;
    int slots = moe_mesh_slots(&s->mesh, s->experts);
    MoeSlice part = moe_slice(n, UNIT, s->mesh.shard, c.shard);
    double *x = calloc((size_t)(slots * part.cap), sizeof *x);
    for (int64_t i = 0; i < slots * part.cap; i++)
        x[i] = NAN;
    for (int e = 0; e < s->experts; e++) {
        int slot = d->place[e] - c.ep * slots;
        if (slot >= 0 && slot < slots)
            memcpy(x + slot * part.cap, w + e * n + part.first, (size_t)part.count * sizeof *x);
    }
    OK(moe_eval_set_f(ev, v, x, slots * part.cap));
    free(x);
}

static void give_rank(const Layer *l, MoeEval *ev, int rank, const Data *d) {
    const MoeMesh *m = &l->s->mesh;
    MoeCoords c = moe_mesh_coords(m, rank);
    int lo, n = moe_mesh_shard_run(m, V, 1, 0, c.data, &lo);
    give_batch(l, ev, d, lo, lo + n);
    int ep_lo = (c.data - c.ep) * n, ep_hi = ep_lo + m->ep * n;
    int32_t all[V + 1], ep_rank = c.ep;
    for (int v = 0; v <= V; v++)
        all[v] = v < ep_lo ? 0 : d->tok[v < ep_hi ? v : ep_hi] - d->tok[ep_lo];
    OK(moe_eval_set_i(ev, l->tok_ep, all, V + 1));
    OK(moe_eval_set_i(ev, l->place, d->place, l->s->experts));
    OK(moe_eval_set_i(ev, l->ep_rank, &ep_rank, 1));
    give_weight(l, ev, c, d, l->w1, d->w1, F * C);
    give_weight(l, ev, c, d, l->w2, d->w2, C * F);
}

/* ---- comparison ---- */

static bool near(double a, double b) {
    return a == b || fabs(a - b) <= 1e-12 * (1 + fabs(b));
}

/* Rows [first, first + n) of the logical value are the rank's, bit by bit. */
static void same_rows(const Spec *s, const MoeTensor *got, const MoeTensor *want, int64_t first,
                      int64_t n, const char *what) {
    int64_t cols = want->dims[1];
    REQUIRE(got->n == n * cols, "seed %llu: %s has %lld elements, not %lld",
            (unsigned long long)s->seed, what, (long long)got->n, (long long)(n * cols));
    for (int64_t k = 0; k < n * cols; k++)
        REQUIRE(got->f[k] == want->f[first * cols + k], "seed %llu: %s[%lld] is %.17g, not %.17g",
                (unsigned long long)s->seed, what, (long long)k, got->f[k],
                want->f[first * cols + k]);
}

static void same_slice(const Spec *s, const double *got, const double *want, MoeSlice part,
                       const char *what) {
    for (int64_t k = 0; k < part.cap; k++) {
        double w = k < part.count ? want[part.first + k] : 0;
        REQUIRE(near(got[k], w), "seed %llu: %s, slice element %lld is %.17g, not %.17g",
                (unsigned long long)s->seed, what, (long long)k, got[k], w);
    }
}

/* Every slot's gradient slice; zero where no expert is. */
static void check_gradient(const Spec *s, MoeCoords c, const Data *d, const MoeTensor *got,
                           const MoeTensor *want) {
    int slots = moe_mesh_slots(&s->mesh, s->experts);
    MoeSlice part = moe_slice(F * C, UNIT, s->mesh.shard, c.shard);
    static const double zeros[F * C];
    for (int slot = 0; slot < slots; slot++) {
        const double *w = zeros;
        for (int e = 0; e < s->experts; e++)
            if (d->place[e] == c.ep * slots + slot)
                w = want->f + e * F * C;
        same_slice(s, got->f + slot * part.cap, w, part, "dw1");
    }
}

/* A token goes once to each rank of its group that has one of its experts. */
static int64_t rows_to_send(const Spec *s, const Data *d) {
    int slots = moe_mesh_slots(&s->mesh, s->experts);
    int64_t n = 0;
    for (int t = 0; t < s->tokens; t++)
        for (int p = 0; p < s->mesh.ep; p++) {
            bool any = false;
            for (int j = 0; j < s->topk; j++)
                any |= d->place[d->ids[t * s->topk + j]] / slots == p;
            n += any;
        }
    return n;
}

static void compare(const Spec *s, const Data *d, const Layer *a, MoeEval *one, const Layer *b,
                    MoeEvalRanks *many) {
    int64_t sent = 0, received = 0;
    for (int p = 0; p < moe_eval_ranks_size(many); p++) {
        MoeEval *ev = moe_eval_rank(many, p);
        MoeCoords c = moe_mesh_coords(&s->mesh, p);
        int lo, n = moe_mesh_shard_run(&s->mesh, V, 1, 0, c.data, &lo);
        int64_t first = d->tok[lo], rows = d->tok[lo + n] - first;
        same_rows(s, moe_eval_get(ev, b->y), moe_eval_get(one, a->y), first, rows, "y");
        same_rows(s, moe_eval_get(ev, b->collected), moe_eval_get(one, a->collected), first, rows,
                  "collected");
        check_gradient(s, c, d, moe_eval_get(ev, b->dw1), moe_eval_get(one, a->dw1));
        int group[MOE_MAX_RANKS];
        int at = moe_mesh_group_ranks(&s->mesh, p, MOE_GROUP_DENSE_SHARD, group);
        same_slice(s, moe_eval_get(ev, b->dense)->f, moe_eval_get(one, a->dense)->f,
                   moe_slice(C, UNIT, s->mesh.dense_shard, at), "dense");
        REQUIRE(!memcmp(moe_eval_get(ev, b->counts)->i, moe_eval_get(one, a->counts)->i,
                        (size_t)s->experts * sizeof(int32_t)),
                "seed %llu: counts", (unsigned long long)s->seed);
        if (c.tp == 0) {
            sent += moe_eval_get(ev, b->idx)->n;
            received += moe_eval_get(ev, b->inv)->dims[0];
        }
    }
    REQUIRE(sent == rows_to_send(s, d) && received == sent,
            "seed %llu: %lld rows sent, %lld received, expected %lld", (unsigned long long)s->seed,
            (long long)sent, (long long)received, (long long)rows_to_send(s, d));
}

static void check_layer(const Spec *s) {
    MoeModule *m = moe_module_create();
    Data d = make_data(s);
    Layer a = build_logical(m, s), b = build_ranked(m, s);
    MoeDiag diag = {.file = "layer"};
    REQUIRE(moe_verify(m, &diag), "%s", moe_str_c(&diag.text));
    moe_diag_free(&diag);
    MoeEval *one = moe_eval_create(a.g);
    MoeEvalRanks *many = moe_eval_ranks_create(b.g, &s->mesh);
    give_batch(&a, one, &d, 0, V);
    OK(moe_eval_set_f(one, a.w1, d.w1, s->experts * F * C));
    OK(moe_eval_set_f(one, a.w2, d.w2, s->experts * C * F));
    for (int p = 0; p < moe_eval_ranks_size(many); p++)
        give_rank(&b, moe_eval_rank(many, p), p, &d);
    OK(moe_eval_run(one));
    MoeStatus st =
        moe_status_prefix(moe_eval_ranks_run(many), "seed %llu", (unsigned long long)s->seed);
    OK(st);
    compare(s, &d, &a, one, &b, many);
    moe_eval_destroy(one);
    moe_eval_ranks_destroy(many);
    free_data(&d);
    moe_module_destroy(m);
}

static const MoeMesh meshes[] = {MESH(1, 1, 1, 1, 1), MESH(1, 1, 2, 1, 1), MESH(1, 1, 2, 1, 2), MESH(2, 1, 1, 1, 1),
                                 MESH(1, 2, 1, 1, 2), MESH(2, 1, 2, 1, 2), MESH(1, 2, 2, 1, 4), MESH(1, 4, 1, 1, 4),
                                 MESH(1, 1, 4, 1, 2), MESH(2, 2, 2, 1, 2), MESH(1, 1, 8, 1, 8), MESH(1, 2, 2, 2, 1),
                                 MESH(1, 4, 2, 1, 8)};
enum { N_MESHES = sizeof meshes / sizeof *meshes, N_SEEDS = 60 };

static Spec random_spec(const MoeMesh *mesh, uint64_t seed) {
    Spec s = {.seed = seed, .mesh = *mesh};
    s.experts = 1 + below(&s, 80, 0, 10);
    s.topk = 1 + below(&s, 80, 1, s.experts < 4 ? s.experts : 4);
    s.tokens = below(&s, 80, 2, 4) ? below(&s, 80, 3, 40) : below(&s, 80, 3, 3);
    s.layout = (MoeShardLayout)below(&s, 80, 4, 4);
    s.routing = (MoeRouting)below(&s, 80, 5, 3);
    s.bf16 = below(&s, 80, 6, 3) == 0;
    int slots = moe_mesh_slots(mesh, s.experts);
    s.chunks = slots > 1 && below(&s, 80, 7, 2) ? 2 : 1;
    if ((slots == 3 || slots > 4) && below(&s, 80, 8, 2))
        s.chunks = 3; /* four slots would be two chunks of two and one of none */
    return s;
}

START_TEST(layer_on_mesh) {
    for (uint64_t i = 0; i < N_SEEDS; i++) {
        Spec s = random_spec(&meshes[_i], (uint64_t)_i * 1000 + i);
        check_layer(&s);
    }
}
END_TEST

/* All tokens to the one expert of the last of four ranks; three have nothing to do, two no expert. */
START_TEST(one_expert_has_all) {
    Spec s = {.seed = 1,
              .mesh = {1, 1, 4, 1, 4},
              .experts = 2,
              .topk = 1,
              .chunks = 1,
              .tokens = 30,
              .routing = MOE_ROUTING_ONE};
    check_layer(&s);
    s.tokens = 0;
    check_layer(&s);
}
END_TEST

/* What the plans of different ranks must agree on. */
START_TEST(ranks_that_disagree) {
    Spec s = {
        .seed = 2, .mesh = {1, 1, 2, 1, 1}, .experts = 4, .topk = 2, .chunks = 2, .tokens = 9};
    MoeModule *m = moe_module_create();
    Data d = make_data(&s);
    Layer b = build_ranked(m, &s);
    MoeEvalRanks *r = moe_eval_ranks_create(b.g, &s.mesh);
    for (int p = 0; p < 2; p++)
        give_rank(&b, moe_eval_rank(r, p), p, &d);
    OK(moe_eval_ranks_run(r));
    int32_t other[4] = {d.place[1], d.place[2], d.place[3], d.place[0]};
    OK(moe_eval_set_i(moe_eval_rank(r, 1), b.place, other, 4));
    FAILS(moe_eval_ranks_run(r), MOE_E_INPUT, "a2a_dispatch", "the group ep sends", "which expects",
          "place");
    OK(moe_eval_set_i(moe_eval_rank(r, 1), b.place, d.place, 4));
    int32_t both = 0;
    OK(moe_eval_set_i(moe_eval_rank(r, 1), b.ep_rank, &both, 1));
    FAILS(moe_eval_ranks_run(r), MOE_E_INPUT, "rank 1: ", "a2a_dispatch", "which expects");
    moe_eval_ranks_destroy(r);
    /* the graph was made for two ranks */
    MoeMesh four = MESH(1, 1, 4, 1, 1);
    r = moe_eval_ranks_create(b.g, &four);
    for (int p = 0; p < 4; p++)
        give_rank(&b, moe_eval_rank(r, p), p % 2, &d);
    FAILS(moe_eval_ranks_run(r), MOE_E_INPUT, "ranks says 2 ranks", "group ep of this mesh has 4");
    moe_eval_ranks_destroy(r);
    free_data(&d);
    moe_module_destroy(m);
}
END_TEST

int main(void) {
    Suite *s = suite_create("eval_ranks_moe");
    TCase *tc = tcase_create("eval_ranks_moe");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, layer_on_mesh, 0, N_MESHES);
    tcase_add_test(tc, one_expert_has_all);
    tcase_add_test(tc, ranks_that_disagree);
    suite_add_tcase(s, tc);
    return moe_check_main(s);
}
