/* The offline planner: what is enumerated, what fits, what a load does to estimates; loads made by a gate's rule; how a load spreads. */
#include <check.h>
#include <math.h>
#include <string.h>
#include "placement/gate.h"
#include "placement/planner.h"
#include "placement/spread.h"
#include "tests/support/check_main.h"
#include "tests/support/status_checks.h"

static MoeArena *a;
static void setup(void) {
    a = moe_arena_create();
}
static void teardown(void) {
    moe_arena_destroy(a);
}

static const MoeCluster two_nodes = {.nodes = 2, .ranks_per_node = 4, .links = {{2e-6, 20e9}, {20e-6, 1e9}}, .flops = 1e12};

/* 16 experts top-2, four MoE layers; a second of work in all, most of it in experts. */
static const MoeModelSummary model = {.batch = 16, .seq = 256, .virtual_shards = 8, .layers = 4, .moe_layers = 4, .experts = 16,
                                      .top_k = 2, .hidden = 256, .tp_divides = 2, .element_bytes = 4, .dense_params = 2e6,
                                      .expert_params = 24e6, .state_bytes = 12, .update = 0.01, .workspace = 1e6,
                                      .work = {{0.2, 0.8, 400e6}, {0.21, 0.8, 300e6}, {0.3, 1.1, 100e6}}};
static const MoePlanWish any = {.levels = {true, true, true}};

static size_t enumerate(const MoeCluster *c, const MoeLoad *l, const MoePlanWish *w, MoePlanCandidate **out, size_t *dropped) {
    double least;
    return moe_planner_enumerate(&model, c, l, w, a, out, dropped, &least);
}

/* Rows of all experts alike, of one alone. */
static MoeLoad load_of(int hot) {
    MoeLoad l = {.steps = 1, .layers = 4, .sources = 8, .experts = 16, .counts = MOE_NEW_N(a, int32_t, 4 * 8 * 16)};
    for (int i = 0; i < 4 * 8; i++)
        for (int e = 0; e < 16; e++)
            l.counts[i * 16 + e] = hot < 0 ? 64 : e == hot ? 512 : 512 / 15;
    return l;
}

START_TEST(test_enumerates) {
    MoePlanCandidate *list;
    size_t dropped, n = enumerate(&two_nodes, NULL, &any, &list, &dropped);
    int seen[5][5] = {{0}};
    ck_assert_uint_gt(n, 50);
    ck_assert_uint_eq(dropped, 0);
    for (size_t i = 0; i < n; i++) {
        const MoePlanCandidate *x = &list[i];
        ck_assert_int_eq(moe_mesh_size(&x->mesh), 8);
        OK(moe_mesh_check(&x->mesh, model.virtual_shards, x->micro_batches));
        ck_assert(x->mesh.ep <= 16 && model.tp_divides % x->mesh.tp == 0);
        ck_assert(x->seconds > 0 && x->memory > 0);
        ck_assert(!i || list[i - 1].seconds <= x->seconds);
        for (size_t k = 0; k < i; k++)
            ck_assert_msg(memcmp(&list[k].mesh, &x->mesh, sizeof x->mesh) || list[k].micro_batches != x->micro_batches ||
                              list[k].level != x->level,
                          "candidates %zu and %zu are the same", k, i);
        if (x->mesh.tp == 1 && x->micro_batches == 1 && x->level == MOE_PLAN_KEEP && x->mesh.dense_shard == x->mesh.shard)
            seen[(int)log2(x->mesh.ep)][(int)log2(x->mesh.shard)]++;
    }
    for (int e = 0; e <= 3; e++)
        for (int s = 0; s + e <= 3; s++)
            ck_assert_msg(seen[e][s] == 1, "ep %d shard %d: %d times", 1 << e, 1 << s, seen[e][s]);
}
END_TEST

START_TEST(test_wishes) {
    MoePlanCandidate *list;
    size_t dropped;
    MoePlanWish w = {.ep = 4, .micro_batches = 2, .levels = {false, true, false}, .most_extra = 1};
    size_t n = enumerate(&two_nodes, NULL, &w, &list, &dropped);
    int extra = 0;
    ck_assert_uint_gt(n, 0);
    for (size_t i = 0; i < n; i++) {
        ck_assert(list[i].mesh.ep == 4 && list[i].micro_batches == 2 && list[i].level == MOE_PLAN_CHEAP);
        extra += list[i].extra;
    }
    ck_assert_int_eq(extra * 2, (int)n);
    w = (MoePlanWish){.ep = 3, .levels = {true, true, true}};
    ck_assert_uint_eq(enumerate(&two_nodes, NULL, &w, &list, &dropped), 0);
}
END_TEST

START_TEST(test_memory) {
    MoePlanCandidate *list, *small;
    size_t dropped, n = enumerate(&two_nodes, NULL, &any, &list, &dropped), m;
    double most = 0, least;
    for (size_t i = 0; i < n; i++)
        most = fmax(most, list[i].memory);
    MoePlanWish w = any;
    w.memory_limit = most / 4;
    m = moe_planner_enumerate(&model, &two_nodes, NULL, &w, a, &small, &dropped, &least);
    ck_assert(m > 0 && m < n && m + dropped == n);
    for (size_t i = 0; i < m; i++)
        ck_assert(small[i].memory <= 1.25 * w.memory_limit && small[i].memory >= least);
    w.memory_limit = least / 2;
    ck_assert_uint_eq(enumerate(&two_nodes, NULL, &w, &small, &dropped), 0);
    ck_assert_uint_eq(dropped, n);
    /* sharded states, fewer rows at a time, rows computed again: each takes less */
    MoePlanCandidate x = {.mesh = {8, 1, 1, 1, 1}, .micro_batches = 1}, y = x;
    moe_planner_score(&model, &two_nodes, NULL, &x);
    y.mesh = (MoeMesh){.dp = 1, .shard = 8, .ep = 1, .tp = 1, .dense_shard = 8};
    moe_planner_score(&model, &two_nodes, NULL, &y);
    ck_assert(y.memory < x.memory);
    y = x;
    y.level = MOE_PLAN_LAYER;
    moe_planner_score(&model, &two_nodes, NULL, &y);
    ck_assert(y.memory < x.memory && y.compute > x.compute);
}
END_TEST

/* One hot expert: its rank works while the others wait, the more of them the longer; without expert parallelism nobody does. */
START_TEST(test_by_load) {
    MoeLoad even = load_of(-1), hot = load_of(3);
    double before[4], after[4];
    for (int i = 0; i < 4; i++) {
        MoePlanCandidate x = {.mesh = {8 >> i, 1, 1 << i, 1, 1}, .micro_batches = 1};
        moe_planner_score(&model, &two_nodes, &even, &x);
        before[i] = x.seconds;
        ck_assert(fabs(x.imbalance - 1) < 1e-9);
        moe_planner_score(&model, &two_nodes, &hot, &x);
        after[i] = x.seconds;
        ck_assert(i == 0 ? x.imbalance == 1 : x.imbalance > 1 + 0.3 * i);
    }
    ck_assert(after[0] == before[0]);
    for (int i = 1; i < 4; i++)
        ck_assert_msg(after[i] / before[i] > after[i - 1] / before[i - 1], "ep %d: %g -> %g", 1 << i, before[i], after[i]);
    /* NULL is balanced */
    MoePlanCandidate x = {.mesh = {1, 1, 8, 1, 1}, .micro_batches = 1};
    moe_planner_score(&model, &two_nodes, NULL, &x);
    ck_assert(fabs(x.seconds - before[3]) < 1e-9);
}
END_TEST

/* Slower links between nodes cost what crosses them alone. */
START_TEST(test_by_links) {
    MoeCluster slow = two_nodes;
    slow.links[MOE_LINK_INTER].bandwidth /= 10;
    MoePlanCandidate inside = {.mesh = {2, 1, 4, 1, 1}, .micro_batches = 1}, across = {.mesh = {1, 1, 8, 1, 1}, .micro_batches = 1};
    MoePlanCandidate x = inside, y = across;
    moe_planner_score(&model, &two_nodes, NULL, &inside);
    moe_planner_score(&model, &two_nodes, NULL, &across);
    moe_planner_score(&model, &slow, NULL, &x);
    moe_planner_score(&model, &slow, NULL, &y);
    ck_assert(x.exchange == inside.exchange && y.exchange > 5 * across.exchange);
    ck_assert(x.other > inside.other); /* gradients are summed over the two groups */
}
END_TEST

static const MoeGateSizes sizes = {.experts = 8, .layers = 2, .sources = 8, .top_k = 2, .tokens = 4096, .groups = 1, .ep = 4};

static int64_t rows_of(const MoeLoad *l, int e) {
    int64_t n = 0;
    for (int s = 0; s < l->sources; s++)
        n += moe_load_at(l, 0, 1)[s * l->experts + e];
    return n;
}

START_TEST(test_capacity) {
    MoeLoad l;
    int64_t all = 0;
    OK(moe_gate_capacity(1, &sizes, a, &l)); /* no expert may have more than the mean */
    for (int e = 0; e < 8; e++)
        ck_assert_int_eq(rows_of(&l, e), 1024);
    OK(moe_gate_capacity(1.5, &sizes, a, &l));
    for (int e = 0; e < 8; e++)
        all += rows_of(&l, e);
    ck_assert_int_eq(all, 8192);
    ck_assert(rows_of(&l, 0) == 1536 && rows_of(&l, 4) == 1536 && rows_of(&l, 5) == 512 && rows_of(&l, 7) == 0);
    OK(moe_gate_capacity(INFINITY, &sizes, a, &l)); /* all tokens to the same two */
    ck_assert(rows_of(&l, 0) == 4096 && rows_of(&l, 1) == 4096 && rows_of(&l, 2) == 0);
    FAILS(moe_gate_capacity(0.5, &sizes, a, &l), MOE_E_MISUSE, "0.5");
}
END_TEST

START_TEST(test_topology) {
    MoeCluster c = {.nodes = 2, .ranks_per_node = 2, .links = {{0, 9e9}, {0, 1e9}}};
    MoeLoad l;
    OK(moe_gate_topology(&c, &sizes, a, &l));
    const int32_t *first = moe_load_at(&l, 0, 0); /* source 0: rank 0, whose node has experts 0..3 */
    int near = first[0] + first[1] + first[2] + first[3], far = first[4] + first[5] + first[6] + first[7];
    ck_assert_int_eq(near + far, 1024);
    ck_assert(far >= 100 && far <= 104); /* a tenth, as the links have it */
    const int32_t *last = moe_load_at(&l, 0, 0) + 7 * 8;
    ck_assert(last[7] > 200 && last[0] < 40);
}
END_TEST

/* Two micro-batches with opposite loads: each is as uneven as if it were alone, though together they are even. */
START_TEST(test_spread) {
    MoeLoad l = {.steps = 1, .layers = 1, .sources = 4, .experts = 2, .counts = MOE_NEW_N(a, int32_t, 8)};
    for (int s = 0; s < 4; s++)
        l.counts[s * 2 + (s >= 2)] = 10;
    MoePlaceMap map;
    OK(moe_place_map_create(2, 2, 1, a, &map));
    MoeSpreadWhere w = {.cluster = {.nodes = 1, .ranks_per_node = 2, .links = {{0, 1e9}, {0, 1e9}}}, .groups = 1, .top_k = 1,
                        .micro_batches = 1, .shards = 4, .grain = 1};
    MoeSpread one = moe_spread(&l, 0, &map, &w, 40, 8);
    ck_assert(fabs(one.rows - 1) < 1e-9); /* each rank keeps what it has */
    ck_assert(one.there[MOE_LINK_INTRA] == 0);
    w.micro_batches = 2;
    MoeSpread two = moe_spread(&l, 0, &map, &w, 20, 8);
    ck_assert(fabs(two.rows - 2) < 1e-9);
    ck_assert(fabs(two.there[MOE_LINK_INTRA] - 10) < 1e-9 && fabs(two.home[MOE_LINK_INTRA] - 10) < 1e-9);
    /* counts are scaled to the rows that are asked for */
    ck_assert(fabs(moe_spread(&l, 0, &map, &w, 200, 8).home[MOE_LINK_INTRA] - 100) < 1e-9);
}
END_TEST

int main(void) {
    Suite *s = suite_create("planner");
    TCase *c = tcase_create("planner");
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_test(c, test_enumerates);
    tcase_add_test(c, test_wishes);
    tcase_add_test(c, test_memory);
    tcase_add_test(c, test_by_load);
    tcase_add_test(c, test_by_links);
    tcase_add_test(c, test_capacity);
    tcase_add_test(c, test_topology);
    tcase_add_test(c, test_spread);
    suite_add_tcase(s, c);
    return moe_check_main(s);
}
