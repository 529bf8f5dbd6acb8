/* The simulator of steps on clocks (passes/simulate.h), against times worked out by hand. */
#include <check.h>
#include "passes/simulate.h"
#include "tests/support/check_main.h"

#define NEAR(x, y) ck_assert_double_eq_tol(x, y, 1e-12)

/* Latency 2 inside a node, 10 between nodes. */
static MoeSimProblem problem(const MoeSimStep *steps, size_t n) {
    return (MoeSimProblem){.steps = steps, .n_steps = n, .latency = {2, 10}};
}

static MoeSimResult run(const MoeSimStep *steps, size_t n) {
    int order[16];
    for (size_t i = 0; i < n; i++)
        order[i] = (int)i;
    MoeSimProblem p = problem(steps, n);
    return moe_simulate(&p, order, n);
}

#define COMPUTE(s, ...)                                                                            \
    {                                                                                              \
        .kind = MOE_SIM_COMPUTE, .seconds = s, __VA_ARGS__                                         \
    }
#define INTER(s, ...)                                                                              \
    {                                                                                              \
        .kind = MOE_SIM_A2A, .links = {{0, s}, {0, 0}}, __VA_ARGS__                                \
    }
#define INTRA(s, ...)                                                                              \
    {                                                                                              \
        .kind = MOE_SIM_OTHER_COMM, .links = {{s, 0}, {0, 0}}, __VA_ARGS__                         \
    }
#define NEEDS(n, ...) .needs = (int[]){__VA_ARGS__}, .n_needs = n

START_TEST(test_steps_that_compute_run_one_after_another) {
    const MoeSimStep steps[] = {COMPUTE(3, .n_needs = 0), COMPUTE(4, NEEDS(1, 0))};
    MoeSimResult r = run(steps, 2);
    NEAR(r.seconds, 7);
    NEAR(r.compute, 7);
}
END_TEST

START_TEST(test_an_exchange_takes_its_bytes_and_the_latency) {
    const MoeSimStep steps[] = {INTER(5, .n_needs = 0), COMPUTE(1, NEEDS(1, 0))};
    MoeSimResult r = run(steps, 2);
    NEAR(r.seconds, 16);
    NEAR(r.communication[MOE_SIM_A2A], 15);
    NEAR(r.exposed[MOE_SIM_A2A], 15);
}
END_TEST

START_TEST(test_compute_beside_an_exchange_hides_it) {
    const MoeSimStep steps[] = {INTER(5, .n_needs = 0), COMPUTE(9, .n_needs = 0),
                                COMPUTE(1, NEEDS(1, 0))};
    MoeSimResult r = run(steps, 3);
    NEAR(r.seconds, 16); /* ends at 15 */
    NEAR(r.exposed[MOE_SIM_A2A], 6);
    const MoeSimStep longer[] = {INTER(5, .n_needs = 0), COMPUTE(20, .n_needs = 0),
                                 COMPUTE(1, NEEDS(1, 0))};
    r = run(longer, 3);
    NEAR(r.seconds, 21);
    NEAR(r.exposed[MOE_SIM_A2A], 0);
}
END_TEST

START_TEST(test_what_is_waited_for_at_once_hides_behind_nothing) {
    const MoeSimStep steps[] = {INTER(5, .at_once = true), COMPUTE(9, .n_needs = 0),
                                COMPUTE(1, NEEDS(1, 0))};
    MoeSimResult r = run(steps, 3);
    NEAR(r.seconds, 25);
    NEAR(r.exposed[MOE_SIM_A2A], 15);
}
END_TEST

/* One link: bytes queue, latencies pass side by side. */
START_TEST(test_exchanges_queue_on_a_link) {
    const MoeSimStep steps[] = {INTER(5, .n_needs = 0), INTER(3, .n_needs = 0),
                                COMPUTE(1, NEEDS(2, 0, 1))};
    MoeSimResult r = run(steps, 3);
    NEAR(r.seconds, 5 + 3 + 10 + 1);
    NEAR(r.communication[MOE_SIM_A2A], 15 + 13);
    NEAR(r.exposed[MOE_SIM_A2A], 18);
}
END_TEST

/* Links inside the node and between nodes carry their parts at the same time. */
START_TEST(test_classes_of_links_work_side_by_side) {
    const MoeSimStep steps[] = {INTER(5, .n_needs = 0), INTRA(14, .n_needs = 0),
                                COMPUTE(1, NEEDS(2, 0, 1))};
    MoeSimResult r = run(steps, 3);
    NEAR(r.seconds, 16 + 1);
    NEAR(r.exposed[MOE_SIM_A2A], 15);
    NEAR(r.exposed[MOE_SIM_OTHER_COMM], 1);
    const MoeSimStep both[] = {{.kind = MOE_SIM_A2A, .links = {{14, 5}, {0, 0}}},
                               COMPUTE(1, NEEDS(1, 0))};
    NEAR(run(both, 2).seconds, 17);
}
END_TEST

/* The second turn of a sum begins at the wait: nothing hides it. */
START_TEST(test_the_second_turn_of_a_sum_is_exposed) {
    const MoeSimStep steps[] = {{.kind = MOE_SIM_OTHER_COMM, .links = {{4, 0}, {3, 0}}},
                                COMPUTE(100, .n_needs = 0), COMPUTE(1, NEEDS(1, 0))};
    MoeSimResult r = run(steps, 3);
    NEAR(r.communication[MOE_SIM_OTHER_COMM], 6 + 5);
    NEAR(r.exposed[MOE_SIM_OTHER_COMM], 5);
    NEAR(r.seconds, 106);
}
END_TEST

/* What the rank's cores copy and add up takes its own time: compute beside hides the latency, no more. */
START_TEST(test_nothing_hides_what_cores_do) {
    const MoeSimStep steps[] = {{.kind = MOE_SIM_OTHER_COMM, .cores = {1, {4, 3}, 5}}, COMPUTE(100, .n_needs = 0),
                                COMPUTE(1, NEEDS(1, 0))};
    MoeSimResult r = run(steps, 3);
    NEAR(r.communication[MOE_SIM_OTHER_COMM], 1 + 2 + 4 + 5 + 2 + 3);
    NEAR(r.exposed[MOE_SIM_OTHER_COMM], 1 + 4 + 5 + 2 + 3); /* the second turn begins at the wait */
    NEAR(r.seconds, 101 + 15);
    NEAR(r.compute, 101);
    MoeSimProblem p = problem(steps, 3);
    NEAR(moe_sim_by_cores(&steps[0]), 13);
    NEAR(moe_sim_bound(&p, NULL).total, 13); /* no order hides that */
    const MoeSimStep waits[] = {{.kind = MOE_SIM_OTHER_COMM, .cores = {0, {4, 0}, 0}}, COMPUTE(1, .n_needs = 0),
                                COMPUTE(1, NEEDS(1, 0))};
    NEAR(run(waits, 3).seconds, 2 + 4 + 1); /* the peer is heard of at 2 */
}
END_TEST

START_TEST(test_a_stretch_ends_with_what_is_under_way) {
    const MoeSimStep steps[] = {INTER(5, .n_needs = 0), COMPUTE(1, .n_needs = 0),
                                COMPUTE(2, .phase = 2, .stretch = 2)};
    MoeSimResult r = run(steps, 3);
    NEAR(r.seconds, 15 + 2);
    NEAR(r.exposed[MOE_SIM_A2A], 14);
}
END_TEST

START_TEST(test_an_order_is_followed) {
    const MoeSimStep steps[] = {COMPUTE(9, .n_needs = 0), INTER(5, .n_needs = 0),
                                COMPUTE(1, NEEDS(1, 1))};
    MoeSimProblem p = problem(steps, 3);
    NEAR(moe_simulate(&p, (int[]){0, 1, 2}, 3).seconds, 9 + 15 + 1);
    NEAR(moe_simulate(&p, (int[]){1, 0, 2}, 3).seconds, 15 + 1);
    NEAR(moe_simulate(&p, (int[]){1}, 1).seconds, 15); /* the end waits, too */
}
END_TEST

/* ---- the bound ---- */

START_TEST(test_bound_counts_compute_that_neither_feeds_nor_needs) {
    /* 0 feeds the exchange 1, 2 needs it, 3 is free: 15 seconds beside 6 */
    const MoeSimStep steps[] = {COMPUTE(50, .n_needs = 0), INTER(5, NEEDS(1, 0)),
                                COMPUTE(50, NEEDS(1, 1)), COMPUTE(6, .n_needs = 0)};
    MoeSimProblem p = problem(steps, 4);
    MoeSimBound b = moe_sim_bound(&p, NULL);
    NEAR(b.exposed[MOE_SIM_A2A], 9);
    NEAR(b.total, 9);
    NEAR(b.exposed[MOE_SIM_OTHER_COMM], 0);
    /* of another phase: no help, unless the wait is there */
    const MoeSimStep later[] = {INTER(5, .n_needs = 0), COMPUTE(1, NEEDS(1, 0)),
                                COMPUTE(6, .phase = 1)};
    p = problem(later, 3);
    NEAR(moe_sim_bound(&p, NULL).total, 15);
    const MoeSimStep until[] = {INTER(5, .n_needs = 0), COMPUTE(1, NEEDS(1, 0), .phase = 1),
                                COMPUTE(6, .phase = 1)};
    p = problem(until, 3);
    NEAR(moe_sim_bound(&p, NULL).total, 9);
}
END_TEST

/* Two exchanges of one link cannot hide behind the same seconds: 2 x 20 beside 25; only their latencies pass together. */
START_TEST(test_bound_shares_compute_among_exchanges) {
    const MoeSimStep steps[] = {INTER(20, .n_needs = 0), INTER(20, .n_needs = 0),
                                COMPUTE(25, .n_needs = 0), COMPUTE(1, NEEDS(2, 0, 1))};
    MoeSimProblem p = problem(steps, 4);
    MoeSimBound b = moe_sim_bound(&p, NULL);
    NEAR(b.exposed[MOE_SIM_A2A], 60 - (25 + 2 * 10));
    /* of other links: both behind the same */
    const MoeSimStep apart[] = {INTER(20, .n_needs = 0), INTRA(20, .n_needs = 0),
                                COMPUTE(25, .n_needs = 0), COMPUTE(1, NEEDS(2, 0, 1))};
    p = problem(apart, 4);
    b = moe_sim_bound(&p, NULL);
    NEAR(b.exposed[MOE_SIM_A2A], 5);
    NEAR(b.exposed[MOE_SIM_OTHER_COMM], 0);
    NEAR(b.total, 5);
    bool only[] = {false, true, true, true};
    NEAR(moe_sim_bound(&p, only).total, 0);
}
END_TEST

/* No order of a small problem has less exposed than the bound. */
START_TEST(test_no_order_beats_the_bound) {
    const MoeSimStep steps[] = {COMPUTE(4, .n_needs = 0),   INTER(6, NEEDS(1, 0)),
                                COMPUTE(7, NEEDS(1, 0)),    COMPUTE(3, NEEDS(1, 1)),
                                INTER(2, NEEDS(1, 3)),      COMPUTE(5, .n_needs = 0),
                                COMPUTE(1, NEEDS(2, 4, 2))};
    enum { N = 7 };
    MoeSimProblem p = problem(steps, N);
    double bound = moe_sim_bound(&p, NULL).total, least = 1e9;
    int order[N] = {0};
    for (int code = 0; code < 7 * 7 * 7 * 7 * 7 * 7 * 7; code++) { /* all that are orders */
        int c = code;
        bool done[N] = {false}, good = true;
        for (int i = 0; i < N && good; i++, c /= N) {
            order[i] = c % N;
            good = !done[order[i]];
            for (size_t k = 0; k < steps[order[i]].n_needs && good; k++)
                good = done[steps[order[i]].needs[k]];
            done[order[i]] = true;
        }
        if (!good)
            continue;
        MoeSimResult r = moe_simulate(&p, order, N);
        double exposed = r.exposed[MOE_SIM_A2A];
        least = exposed < least ? exposed : least;
        NEAR(r.seconds, r.compute + exposed);
    }
    ck_assert_double_ge(least, bound);
    ck_assert_double_lt(least, 28); /* what it would be at once */
}
END_TEST

int main(void) {
    Suite *s = suite_create("simulate");
    TCase *t = tcase_create("clocks");
    tcase_add_test(t, test_steps_that_compute_run_one_after_another);
    tcase_add_test(t, test_an_exchange_takes_its_bytes_and_the_latency);
    tcase_add_test(t, test_compute_beside_an_exchange_hides_it);
    tcase_add_test(t, test_what_is_waited_for_at_once_hides_behind_nothing);
    tcase_add_test(t, test_exchanges_queue_on_a_link);
    tcase_add_test(t, test_classes_of_links_work_side_by_side);
    tcase_add_test(t, test_the_second_turn_of_a_sum_is_exposed);
    tcase_add_test(t, test_nothing_hides_what_cores_do);
    tcase_add_test(t, test_a_stretch_ends_with_what_is_under_way);
    tcase_add_test(t, test_an_order_is_followed);
    tcase_add_test(t, test_bound_counts_compute_that_neither_feeds_nor_needs);
    tcase_add_test(t, test_bound_shares_compute_among_exchanges);
    tcase_add_test(t, test_no_order_beats_the_bound);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
