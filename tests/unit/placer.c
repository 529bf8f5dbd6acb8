/* The driver of policies: when it asks, what it takes, what it refuses and goes on; programs as policies, well behaved and not. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/pool.h"
#include "placement/placer.h"
#include "tests/support/check_main.h"
#include "tests/support/status_checks.h"

enum { LAYERS = 2, EXPERTS = 4, RANKS = 2, SLOTS = 3, SOURCES = 2 };

static MoeArena *arena;
static MoePlaceCost cost;
static MoePolicySetup setup_of;
static MoePlaceMap maps[LAYERS];
static MoePlaceDecision out[LAYERS];

static void setup(void) {
    MoeCluster c = {
        .nodes = 1, .ranks_per_node = RANKS, .links = {{1e-6, 1e10}, {1e-5, 1e9}}, .flops = 1e12};
    arena = moe_arena_create();
    cost = moe_place_cost_of(&c, &(MoePlaceModel){64, 64, 1, 4, 2});
    setup_of = (MoePolicySetup){.layers = LAYERS,
                                .experts = EXPERTS,
                                .ranks = RANKS,
                                .slots = SLOTS,
                                .groups = 1,
                                .sources = SOURCES,
                                .grain = 1,
                                .every = 5,
                                .window = 3,
                                .seed = 1,
                                .cost = &cost};
    for (int l = 0; l < LAYERS; l++)
        OK(moe_place_map_create(EXPERTS, RANKS, SLOTS, arena, &maps[l]));
}

static void teardown(void) {
    moe_arena_destroy(arena);
}

static MoePlacer *placer(const MoePolicy *p, MoePlacerGate gate) {
    MoePlacer *made;
    OK(moe_placer_create(p, &setup_of, gate, &made));
    return made;
}

static const MoePolicy *find(const char *name) {
    const MoePolicy *p;
    OK(moe_policy_find(name, &p));
    return p;
}

/* A step in which each layer's experts have these rows, half from either source. */
static void observe(MoePlacer *p, int64_t step, const int *rows) {
    int32_t counts[LAYERS][SOURCES][EXPERTS];
    for (int l = 0; l < LAYERS; l++)
        for (int v = 0; v < SOURCES; v++)
            for (int e = 0; e < EXPERTS; e++)
                counts[l][v][e] = v ? rows[e] - rows[e] / 2 : rows[e] / 2;
    moe_placer_observe(p, step, &counts[0][0][0], maps);
}

static const int skewed[] = {1000, 900, 10, 20}, even[] = {500, 500, 500, 500};

/* ---- what the policy is given ---- */

static int asked, shown;
static int64_t shown_sum;

static MoeStatus spy(void *state, const MoePolicyAsk *ask, MoePlaceMap *map) {
    (void)map;
    ck_assert_ptr_eq(((const MoePolicySetup *)state)->cost, &cost);
    asked++;
    shown = ask->n_loads;
    shown_sum = 0;
    for (int i = 0; i < ask->n_loads; i++)
        for (int e = 0; e < EXPERTS; e++) {
            int64_t sum = 0;
            for (int v = 0; v < SOURCES; v++)
                sum += ask->loads[i][e * SOURCES + v];
            ck_assert_int_eq(sum, ask->totals[i][e]);
            shown_sum += sum;
        }
    return NULL;
}

static const MoePolicy spy_policy = {.name = "spy", .doc = "", .propose = spy};

START_TEST(a_policy_sees_the_last_steps) {
    MoePlacer *p = placer(&spy_policy, (MoePlacerGate){0});
    ck_assert(!moe_placer_due(p, 0));
    for (int s = 0; s < 7; s++) {
        int rows[] = {s, 0, 0, 0};
        ck_assert(moe_placer_due(p, s) == (s == 5));
        if (s == 5) {
            moe_placer_decide(p, s, maps, out);
            ck_assert_int_eq(asked, LAYERS);
            ck_assert_int_eq(shown, 3);
            ck_assert_int_eq(shown_sum, 4 + 3 + 2);
            ck_assert_int_eq(out[0].verdict, MOE_PLACE_KEPT);
        }
        observe(p, s, rows);
    }
    moe_placer_destroy(p);
}
END_TEST

START_TEST(drift_asks_early) {
    MoePlacer *p = placer(&spy_policy, (MoePlacerGate){.drift = 0.2});
    int s = 6;
    for (int i = 0; i < 6; i++, s++) {
        observe(p, s, even);
        ck_assert(s + 1 == 10 || !moe_placer_due(p, s + 1));
    }
    s = 21;
    for (; s < 23; s++)
        observe(p, s, skewed); /* 1.9 against 1.0: two of four are enough */
    ck_assert(moe_placer_due(p, 23));
    moe_placer_decide(p, 23, maps, out);
    ck_assert(!moe_placer_due(p, 24)); /* from here on that is what a decision left */
    for (; s < 29; s++)
        observe(p, s, skewed);
    ck_assert(!moe_placer_due(p, 29));
    moe_placer_destroy(p);
}
END_TEST

/* ---- what is taken ---- */

/* Experts 0 and 1, on rank 0 together, part. */
static MoeStatus part(void *state, const MoePolicyAsk *ask, MoePlaceMap *map) {
    (void)state;
    map->expert[ask->now->primary[1]] = 2;
    map->expert[ask->now->primary[2]] = 1;
    map->primary[1] = ask->now->primary[2];
    map->primary[2] = ask->now->primary[1];
    return NULL;
}

static const MoePolicy part_policy = {.name = "part", .doc = "", .propose = part};

START_TEST(a_gain_is_weighed) {
    MoePlacer *p = placer(&part_policy, (MoePlacerGate){.hysteresis = 1});
    observe(p, 0, skewed);
    moe_placer_decide(p, 1, maps, out);
    ck_assert_int_eq(out[0].verdict, MOE_PLACE_CHANGED);
    ck_assert(out[0].gain > out[0].cost && out[0].cost > 0);
    ck_assert_int_eq(out[0].arrivals, 2);
    ck_assert_int_eq(out[0].moves, 2);
    ck_assert(out[0].before > 1.9 && out[0].after < 1.1);
    ck_assert_int_eq(maps[0].primary[1] / SLOTS, 1);
    moe_placer_decide(p, 2, maps, out); /* back again would be worse */
    ck_assert_int_eq(out[1].verdict, MOE_PLACE_TOO_DEAR);
    ck_assert_int_eq(maps[1].primary[1] / SLOTS, 1);
    moe_placer_destroy(p);
    p = placer(&part_policy, (MoePlacerGate){.hysteresis = 1e9});
    observe(p, 0, even);
    moe_placer_decide(p, 1, maps, out);
    ck_assert_int_eq(out[0].verdict, MOE_PLACE_TOO_DEAR);
    moe_placer_destroy(p);
    p = placer(&part_policy, (MoePlacerGate){0}); /* no gate: also what loses */
    observe(p, 0, skewed);
    moe_placer_decide(p, 1, maps, out);
    ck_assert_int_eq(out[0].verdict, MOE_PLACE_CHANGED);
    ck_assert(out[0].gain < 0);
    ck_assert(moe_placer_seconds(p) > 0);
    moe_placer_destroy(p);
    /* Nobody wants the figures: the same verdict without them; hysteresis goes on needing them. */
    for (int hysteresis = 0; hysteresis < 2; hysteresis++) {
        p = placer(&part_policy, (MoePlacerGate){.hysteresis = hysteresis, .unweighed = true});
        observe(p, 0, skewed);
        moe_placer_decide(p, 1, maps, out);
        ck_assert_int_eq(out[0].verdict, hysteresis ? MOE_PLACE_TOO_DEAR : MOE_PLACE_CHANGED);
        ck_assert((out[0].before > 0) == (hysteresis > 0));
        ck_assert_int_eq(out[0].arrivals, 2);
        moe_placer_destroy(p);
    }
}
END_TEST

static MoeStatus nonsense(void *state, const MoePolicyAsk *ask, MoePlaceMap *map) {
    (void)state;
    if (ask->layer == 0)
        return moe_error(MOE_E_INPUT, "two\nlines");
    map->expert[0] = 3; /* expert 0 is nowhere then */
    return NULL;
}

static const MoePolicy nonsense_policy = {.name = "nonsense", .doc = "", .propose = nonsense};

START_TEST(nonsense_is_refused) {
    MoePlaceMap before;
    OK(moe_place_map_create(EXPERTS, RANKS, SLOTS, arena, &before));
    MoePlacer *p = placer(&nonsense_policy, (MoePlacerGate){0});
    observe(p, 0, skewed);
    moe_placer_decide(p, 1, maps, out);
    ck_assert(out[0].verdict == MOE_PLACE_REFUSED && out[1].verdict == MOE_PLACE_REFUSED);
    ck_assert_str_eq(out[0].why, "two");
    ck_assert_str_eq(
        out[1].why,
        "nonsense: layer 1: the primary of expert 0 is in slot 0 of rank 0, which holds 3");
    ck_assert(moe_place_map_equal(&maps[1], &before));
    moe_placer_destroy(p);
}
END_TEST

START_TEST(impossible_setups_are_refused) {
    MoePlacer *p;
    MoeStatus st;
    setup_of.slots = 1;
    st = moe_placer_create(&spy_policy, &setup_of, (MoePlacerGate){0}, &p);
    ck_assert_str_eq(moe_status_message(st), "4 experts do not fit 2 ranks with 1 slots each");
    moe_status_free(st);
    setup_of.slots = SLOTS;
    setup_of.groups = 3;
    st = moe_placer_create(&spy_policy, &setup_of, (MoePlacerGate){0}, &p);
    ck_assert_int_eq(moe_status_code(st), MOE_E_MISUSE);
    moe_status_free(st);
    setup_of.groups = 1;
    setup_of.ranks = 64;
    setup_of.experts = 64;
    st = moe_placer_create(find("optimal"), &setup_of, (MoePlacerGate){0}, &p);
    ck_assert_ptr_nonnull(strstr(moe_status_message(st), "64 experts on 64 ranks with 3 slots"));
    moe_status_free(st);
    ck_assert_ptr_null(p);
    const MoePolicy *policy;
    st = moe_policy_find("best", &policy);
    ck_assert_ptr_nonnull(strstr(moe_status_message(st), "there are static, round-robin, "));
    moe_status_free(st);
}
END_TEST

/* Two groups with opposite loads: what one gains the other loses, so the slower of them decides. */
START_TEST(groups_are_judged_by_the_slowest) {
    setup_of.groups = 2;
    MoePlacer *p = placer(&part_policy, (MoePlacerGate){.hysteresis = 1});
    int32_t counts[LAYERS][SOURCES][EXPERTS] = {{{1000, 900, 0, 0}, {1000, 0, 900, 0}},
                                                {{1000, 900, 0, 0}, {0, 1000, 900, 0}}};
    moe_placer_observe(p, 0, &counts[0][0][0], maps);
    moe_placer_decide(p, 1, maps, out);
    ck_assert_int_eq(out[0].verdict,
                     MOE_PLACE_TOO_DEAR); /* 1900 of 1900 rows are on one rank, before and after */
    ck_assert_int_eq(out[1].verdict, MOE_PLACE_CHANGED);
    moe_placer_destroy(p);
}
END_TEST

/* ---- programs ---- */

static MoePlacer *program(const char *command) {
    setup_of.program = command;
    setup_of.program_seconds = 0.3;
    return placer(find("program"), (MoePlacerGate){0});
}

static void decide(MoePlacer *p, int64_t step) {
    observe(p, step - 1, skewed);
    moe_placer_decide(p, step, maps, out);
}

static void refused(int layer, const char *part_of_why) {
    ck_assert_int_eq(out[layer].verdict, MOE_PLACE_REFUSED);
    ck_assert_msg(strstr(out[layer].why, part_of_why), "%s", out[layer].why);
}

START_TEST(the_example_program_works) {
    setup_of.program_seconds = 0;
    setup_of.program = "exec python3 " MOE_SOURCE_DIR "/tests/data/policy_hottest.py";
    MoePlacer *p = placer(find("program"), (MoePlacerGate){0});
    decide(p, 1);
    for (int l = 0; l < LAYERS; l++) {
        ck_assert_msg(out[l].verdict == MOE_PLACE_CHANGED, "%s", out[l].why);
        ck_assert_int_eq(maps[l].expert[SLOTS + 2], 0); /* rank 1 takes a copy of the hottest */
        ck_assert_int_eq(out[l].moves, 0);
    }
    decide(p, 2);
    ck_assert_int_eq(out[0].verdict, MOE_PLACE_KEPT);
    moe_placer_destroy(p);
}
END_TEST

START_TEST(a_program_may_say_all) {
    MoePlacer *p =
        program("read h; echo '{\"ready\":true}'; read a; echo "
                "'{\"slots\":[[3,2],[1,0]],\"primary\":[4,3,1,0]}'; "
                "read a; echo '{\"keep\":true}'; read a; echo '{\"error\":\"no idea\"}'; "
                "read a; echo '{\"slots\":[[0,1,2],[3]]}'; cat > /dev/null");
    decide(p, 1);
    ck_assert_msg(out[0].verdict == MOE_PLACE_CHANGED, "%s", out[0].why);
    ck_assert(maps[0].expert[0] == 3 && maps[0].expert[1] == 2 && maps[0].expert[2] == -1 &&
              maps[0].primary[0] == 4);
    ck_assert_int_eq(out[1].verdict, MOE_PLACE_KEPT);
    decide(p, 2);
    refused(0, "the placement program says: no idea");
    ck_assert_int_eq(out[1].verdict, MOE_PLACE_CHANGED);
    ck_assert(maps[1].expert[0] == 0 && maps[1].expert[1] == 1 &&
              maps[1].expert[2] == 2); /* 0 and 1 stay in their slots */
    moe_placer_destroy(p);
}
END_TEST

START_TEST(a_program_that_talks_nonsense_is_asked_again) {
    MoePlacer *p = program(
        "read h; echo '{\"ready\":true}'; read a; echo 'hm'; read a; echo '{\"slots\":[[0,1]]}'; "
        "read a; echo '{\"slots\":[[0,1,2],[3,9]]}'; read a; echo '{\"slots\":[[0,0],[1,2,3]]}'; "
        "read a; echo '{\"slots\":[[0,\"x\"],[1,2,3]]}'; read a; echo "
        "'{\"slots\":[[0,1],[2,3]],\"primary\":[0]}'; "
        "read a; echo '{\"slots\":[[0,1],[2]]}'; read a; echo '{}'; cat > /dev/null");
    decide(p, 1);
    refused(0, "bad JSON");
    refused(1, "slots has 1 ranks: there are 2");
    decide(p, 2);
    refused(0, "holds expert 9: there are 4");
    refused(1, "both hold expert 0");
    decide(p, 3);
    refused(0, "slots[0][1] is not an integer");
    refused(1, "primary has 1 experts: there are 4");
    decide(p, 4);
    refused(0, "the primary of expert 3 is in slot -1");
    refused(1, "\"slots\"");
    moe_placer_destroy(p);
}
END_TEST

START_TEST(a_program_that_hangs_is_started_again) {
    char flag[] = "/tmp/moec-placer-XXXXXX", command[600];
    int fd = mkstemp(flag);
    ck_assert(fd >= 0);
    close(fd);
    /* Hangs as long as the file is there. */
    snprintf(command, sizeof command,
             "read h; echo '{\"ready\":true}'; while read a; do while [ -e %s ]; do sleep 0.01; "
             "done; echo '{\"keep\":true}'; done",
             flag);
    MoePlacer *p = program(command);
    double start = moe_now();
    decide(p, 1);
    refused(0, "no answer within 0.3 seconds");
    refused(1, "failed at this step");
    ck_assert(moe_now() - start < 5);
    unlink(flag);
    decide(p, 2);
    ck_assert_msg(out[0].verdict == MOE_PLACE_KEPT && out[1].verdict == MOE_PLACE_KEPT, "%s",
                  out[0].why);
    moe_placer_destroy(p);
}
END_TEST

START_TEST(a_program_that_ends_is_given_up) {
    MoePlacer *p = program("read h; echo '{\"ready\":true}'; read a; exit 3");
    for (int s = 1; s <= 4; s++) {
        decide(p, s);
        refused(0, "it ended with exit code 3");
        refused(1, "failed at this step");
    }
    decide(p, 5);
    refused(0, "failed 4 times and is not started again");
    moe_placer_destroy(p);
    setup_of.program = "exit 4";
    MoeStatus st = moe_placer_create(find("program"), &setup_of, (MoePlacerGate){0}, &p);
    ck_assert_ptr_nonnull(strstr(moe_status_message(st), "'exit 4': it ended with exit code 4"));
    moe_status_free(st);
    setup_of.program = "no-such-program-at-all 2>/dev/null";
    st = moe_placer_create(find("program"), &setup_of, (MoePlacerGate){0}, &p);
    ck_assert_ptr_nonnull(strstr(moe_status_message(st), "exit code 127"));
    moe_status_free(st);
    setup_of.program = "read h; echo '{\"ready\":false}'; cat > /dev/null";
    st = moe_placer_create(find("program"), &setup_of, (MoePlacerGate){0}, &p);
    ck_assert_ptr_nonnull(strstr(moe_status_message(st), "its first answer is not"));
    moe_status_free(st);
}
END_TEST

/* A child that its program leaves behind is ended with it, and does not keep the answer open. */
START_TEST(nothing_is_left_behind) {
    char pid_file[] = "/tmp/moec-placer-XXXXXX", command[600];
    int fd = mkstemp(pid_file), pid = 0;
    ck_assert(fd >= 0);
    close(fd);
    snprintf(command, sizeof command,
             "sleep 1000 & echo $! > %s; read h; echo '{\"ready\":true}'; sleep 1000", pid_file);
    MoePlacer *p = program(command);
    moe_placer_destroy(p);
    FILE *f = fopen(pid_file, "r");
    ck_assert(f && fscanf(f, "%d", &pid) == 1);
    fclose(f);
    unlink(pid_file);
    char proc[40], state = 'Z';
    snprintf(proc, sizeof proc, "/proc/%d/stat", pid);
    for (int i = 0; i < 200;
         i++) { /* it may wait for its end to be noticed by whoever is its parent now */
        f = fopen(proc, "r");
        state = 'Z';
        if (f && fscanf(f, "%*d %*s %c", &state) != 1)
            state = 'Z';
        if (f)
            fclose(f);
        if (!f || state == 'Z')
            break;
        usleep(10000);
    }
    ck_assert_int_eq(state, 'Z');
}
END_TEST

int main(void) {
    Suite *s = suite_create("placer");
    TCase *t = tcase_create("placer");
    tcase_set_timeout(t, 60);
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, a_policy_sees_the_last_steps);
    tcase_add_test(t, drift_asks_early);
    tcase_add_test(t, a_gain_is_weighed);
    tcase_add_test(t, nonsense_is_refused);
    tcase_add_test(t, impossible_setups_are_refused);
    tcase_add_test(t, groups_are_judged_by_the_slowest);
    tcase_add_test(t, the_example_program_works);
    tcase_add_test(t, a_program_may_say_all);
    tcase_add_test(t, a_program_that_talks_nonsense_is_asked_again);
    tcase_add_test(t, a_program_that_hangs_is_started_again);
    tcase_add_test(t, a_program_that_ends_is_given_up);
    tcase_add_test(t, nothing_is_left_behind);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
