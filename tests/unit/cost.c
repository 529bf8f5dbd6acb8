/* What a layer's map costs, by hand: compute of the busiest rank, the busiest link of exchanges, copies, moves. */
#include <check.h>
#include <math.h>
#include <string.h>
#include "placement/cost.h"
#include "tests/support/check_main.h"

/* Four EP ranks on two nodes; experts 0..3 in slot 0 of ranks 0..3, slot 1 empty. */
enum { E = 4, RANKS = 4, SLOTS = 2 };
static int32_t expert[RANKS * SLOTS], primary[E];
static MoePlaceMap map = {E, RANKS, SLOTS, expert, primary};

static const MoePlaceCost cost = {
    .cluster = {.nodes = 2,
                .ranks_per_node = 2,
                .links = {[MOE_LINK_INTRA] = {1e-3, 1000}, [MOE_LINK_INTER] = {2e-3, 100}}},
    .top_k = 1,
    .exchanges = 4,
    .row_seconds = 0.5,
    .token_bytes = 10,
    .row_bytes = 20,
    .copy_bytes = 1000,
    .root_bytes = 2000,
    .move_bytes = 5000};

static void setup(void) {
    for (int e = 0; e < E; e++) {
        primary[e] = e * SLOTS;
        expert[e * SLOTS] = e;
        expert[e * SLOTS + 1] = -1;
    }
}

static void near(double a, double b, const char *what) {
    ck_assert_msg(fabs(a - b) <= 1e-9 * (1 + fabs(b)), "%s: %.12g, not %.12g", what, a, b);
}
#define NEAR(a, b) near(a, b, #a)

START_TEST(test_no_rows) {
    const int32_t none[E * RANKS] = {0};
    MoePlaceStep s = moe_place_step(&cost, &map, none, RANKS, NULL);
    NEAR(s.compute, 0);
    NEAR(s.exchange, 0); /* nothing travels, not even a latency */
    NEAR(s.total, 0);
    NEAR(s.imbalance, 1);
}
END_TEST

/* Every rank has 8 tokens for expert 2: rank 2 computes 32 rows, 8 come from its node, 16 from the other one. */
START_TEST(test_hot_expert) {
    int32_t counts[E][RANKS] = {{0}};
    for (int s = 0; s < RANKS; s++)
        counts[2][s] = 8;
    MoePlaceStep s = moe_place_step(&cost, &map, counts[0], RANKS, NULL);
    NEAR(s.imbalance, 4);
    NEAR(s.compute, 16);
    NEAR(s.exchange, 16 * (10.0 + 20) / 100 + 4 * 2e-3); /* inside a node: 8 * 30 / 1000, less */
    NEAR(s.copies, 0);
    NEAR(s.total, s.compute + s.exchange);
    MoePlaceCost hidden = cost;
    hidden.hidden = 0.75;
    NEAR(moe_place_step(&hidden, &map, counts[0], RANKS, NULL).total, s.compute + s.exchange / 4);
}
END_TEST

/* Where a rank's own tokens go, nothing travels. */
START_TEST(test_at_home) {
    int32_t counts[E][RANKS] = {{0}};
    for (int s = 0; s < RANKS; s++)
        counts[s][s] = 5;
    MoePlaceStep s = moe_place_step(&cost, &map, counts[0], RANKS, NULL);
    NEAR(s.exchange, 0);
    NEAR(s.imbalance, 1);
    NEAR(s.compute, 2.5);
}
END_TEST

/* Two experts on rank 0, top-2: tokens of rank 1 that want both go there once, and two rows come home. */
START_TEST(test_once_a_rank) {
    MoePlaceCost c = cost;
    c.top_k = 2;
    expert[1] = 1;
    expert[1 * SLOTS] = -1;
    primary[1] = 1;
    int32_t counts[E][RANKS] = {{0}};
    counts[0][1] = counts[1][1] = 6; /* six tokens: all want both */
    MoePlaceStep s = moe_place_step(&c, &map, counts[0], RANKS, NULL);
    NEAR(s.exchange, (6 * 10.0 + 12 * 20) / 1000 + 4 * 1e-3);
    counts[1][1] = counts[3][1] = 3; /* half want expert 1, too: half of six by the estimate that choices are independent */
    counts[0][1] = 6;
    s = moe_place_step(&c, &map, counts[0], RANKS, NULL);
    /* to rank 0: all 6 tokens, 9 rows home inside the node; to rank 3: 3 and 3 over the network */
    NEAR(s.exchange, fmax(6.0 / 1000, 3.0 / 100) * 10 + fmax(9.0 / 1000, 3.0 / 100) * 20 + 4 * 2e-3);
}
END_TEST

/* Half of the sources: each is two ranks', in equal parts. Twice as many: merged. */
START_TEST(test_sources) {
    int32_t two[E][2] = {{0}}, four[E][4] = {{0}}, eight[E][8] = {{0}};
    for (int e = 0; e < E; e++) {
        two[e][0] = 2 * (3 + e);
        two[e][1] = 2 * (2 * e + 1);
        for (int r = 0; r < 4; r++)
            four[e][r] = two[e][r / 2] / 2;
        for (int r = 0; r < 8; r++)
            eight[e][r] = r % 2 ? 1 : four[e][r / 2] - 1;
    }
    MoePlaceStep a = moe_place_step(&cost, &map, two[0], 2, NULL), b = moe_place_step(&cost, &map, four[0], 4, NULL),
                 c = moe_place_step(&cost, &map, eight[0], 8, NULL);
    NEAR(a.exchange, b.exchange);
    NEAR(a.compute, b.compute);
    NEAR(c.exchange, b.exchange);
    NEAR(c.compute, b.compute);
    ck_assert(b.exchange > 0);
}
END_TEST

/* A copy of the hot expert on rank 0 takes the first half of its rows, which are those of ranks 0 and 1. */
START_TEST(test_copies) {
    int32_t counts[E][RANKS] = {{0}};
    for (int s = 0; s < RANKS; s++)
        counts[2][s] = 8;
    expert[1] = 2;
    MoeSplitRun runs[RANKS * SLOTS] = {{0}};
    runs[1] = (MoeSplitRun){0, 16};
    runs[2 * SLOTS] = (MoeSplitRun){16, 32};
    MoePlaceStep s = moe_place_step(&cost, &map, counts[0], RANKS, runs);
    NEAR(s.imbalance, 2);
    NEAR(s.compute, 8);
    NEAR(s.exchange, 8 * 30.0 / 1000 + 4 * 1e-3); /* all within nodes */
    NEAR(s.copies, 3000.0 / 100 + 2 * 2e-3);
    NEAR(moe_place_copy_seconds(&cost, &map), s.copies);
    /* a run that begins within a source: 4 of rank 1's rows go to rank 2 */
    runs[1].end = runs[2 * SLOTS].begin = 12;
    s = moe_place_step(&cost, &map, counts[0], RANKS, runs);
    NEAR(s.compute, 10);
    NEAR(s.exchange, 4 * 30.0 / 100 + 4 * 2e-3);
    expert[3] = 2; /* a second copy from the same primary: the same link out of its node carries both */
    NEAR(moe_place_copy_seconds(&cost, &map), 2 * 3000.0 / 100 + 2 * 2e-3);
}
END_TEST

START_TEST(test_moves) {
    int32_t expert2[RANKS * SLOTS], primary2[E];
    MoePlaceMap to = {E, RANKS, SLOTS, expert2, primary2};
    memcpy(expert2, expert, sizeof expert);
    memcpy(primary2, primary, sizeof primary);
    NEAR(moe_place_move_seconds(&cost, &map, &to), 0);
    primary2[0] = 1; /* to the other slot of the rank: nothing is sent */
    expert2[0] = -1;
    expert2[1] = 0;
    NEAR(moe_place_move_seconds(&cost, &map, &to), 0);
    primary2[0] = 1 * SLOTS + 1; /* 0 to rank 1 and 1 to rank 0: side by side */
    primary2[1] = 1;
    NEAR(moe_place_move_seconds(&cost, &map, &to), 5000.0 / 1000 + 1e-3);
    primary2[0] = 2 * SLOTS + 1;
    primary2[1] = 2 * SLOTS; /* both to rank 2 over the network */
    NEAR(moe_place_move_seconds(&cost, &map, &to), 2 * 5000.0 / 100 + 2e-3);
}
END_TEST

START_TEST(test_by_sizes) {
    MoeCluster c = {.nodes = 1, .ranks_per_node = 4, .links = {[0] = {1e-6, 1e9}, [1] = {0, INFINITY}}, .flops = 1e12};
    MoePlaceModel m = {.hidden = 512, .intermediate = 1024, .top_k = 2, .element_bytes = 2, .states = 2};
    MoePlaceCost k = moe_place_cost_of(&c, &m);
    NEAR(k.row_seconds, 18.0 * 512 * 1024 / 1e12);
    NEAR(k.token_bytes, 2 * 2 * 512);
    NEAR(k.copy_bytes, 2 * 3 * 512 * 1024.0);
    NEAR(k.move_bytes, 12 * 3 * 512 * 1024.0);
    ck_assert_int_eq(k.top_k, 2);
}
END_TEST

int main(void) {
    Suite *s = suite_create("cost");
    TCase *c = tcase_create("cost");
    tcase_add_checked_fixture(c, setup, NULL);
    tcase_add_test(c, test_no_rows);
    tcase_add_test(c, test_hot_expert);
    tcase_add_test(c, test_at_home);
    tcase_add_test(c, test_once_a_rank);
    tcase_add_test(c, test_sources);
    tcase_add_test(c, test_copies);
    tcase_add_test(c, test_moves);
    tcase_add_test(c, test_by_sizes);
    suite_add_tcase(s, c);
    return moe_check_main(s);
}
