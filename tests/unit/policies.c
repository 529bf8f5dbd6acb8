/* Placement policies: published algorithms reproduce what is published, and all are replayed on the traces of tests/data/traces: what
 * each reaches is bounded here. The measure: at each step and layer the busiest rank's rows over the mean, averaged over layers and
 * steps >= 20, rows of experts with copies divided with the step's own counts. MOE_POLICIES_TABLE=1 prints all. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "placement/load.h"
#include "placement/placer.h"
#include "placement/policy_eplb.h"

static MoeArena *arena;

static void setup(void) {
    arena = moe_arena_create();
}
static void teardown(void) {
    moe_arena_destroy(arena);
}

static void ok(MoeStatus st) {
    ck_assert_msg(!st, "%s", moe_status_message(st));
}

/* The example of EPLB's README: two layers of 12 experts in 4 groups, 16 replicas on 2 nodes of 4 gpus. */
START_TEST(eplb_gives_the_published_example) {
    static const float weight[2][12] = {{90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86},
                                        {20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27}};
    static const int32_t want[2][16] = {{5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1},
                                        {7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1}};
    for (int l = 0; l < 2; l++) {
        int32_t slot[16];
        moe_eplb(weight[l], 12, 16, 4, 2, 8, slot);
        ck_assert_mem_eq(slot, want[l], sizeof slot);
    }
}
END_TEST

/* ---- replay ---- */

enum { WARM_UP = 20 };

typedef struct {
    double imbalance, p95, worst;
    int arrivals;
    double seconds;
} Outcome;

typedef struct {
    const char *policy, *trace;
    int ranks, extra;
} Run;

static MoePlaceCost cost_of(int ranks) {
    MoeCluster c = {
        .nodes = 1, .ranks_per_node = ranks, .links = {{1e-6, 1e11}, {1e-5, 1e10}}, .flops = 1e13};
    return moe_place_cost_of(&c, &(MoePlaceModel){4096, 14336, 2, 2, 2});
}

static MoeLoad read_trace(const char *name) {
    MoeLoad load;
    char path[500];
    snprintf(path, sizeof path, MOE_SOURCE_DIR "/tests/data/traces/%s.csv", name);
    ok(moe_load_read(path, arena, &load));
    return load;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Rows of the busiest rank over the mean, with the counts of the step. */
static double imbalance_of(const MoePlaceMap *m, const int32_t *by_source, int sources,
                           void *scratch, MoeSplitRun *runs) {
    int32_t *total = calloc((size_t)m->experts, 4);
    double sum = 0, most = 0;
    for (int v = 0; v < sources; v++)
        for (int e = 0; e < m->experts; e++) {
            total[e] += by_source[v * m->experts + e];
            sum += by_source[v * m->experts + e];
        }
    moe_split(&(MoeSplit){m->experts, m->ranks, m->slots, m->expert, 1, total, 1}, scratch, runs);
    for (int r = 0; r < m->ranks; r++) {
        double load = 0;
        for (int g = r * m->slots; g < (r + 1) * m->slots; g++)
            load += runs[g].end - runs[g].begin;
        most = load > most ? load : most;
    }
    free(total);
    return most / (sum / m->ranks);
}

/* Every policy is asked every 10 steps (or at each, if it wants that), with a window of 10. */
static Outcome replay(const MoeLoad *load, const char *name, int ranks, int extra,
                      MoePlacerGate gate) {
    int slots = (load->experts + ranks - 1) / ranks + extra, n = 0;
    const MoePolicy *policy;
    ok(moe_policy_find(name, &policy));
    MoePlaceCost cost = cost_of(ranks);
    MoePolicySetup setup = {
        load->layers, load->experts, ranks, slots, 1, load->sources, 1, 10, 10, 1, &cost, NULL};
    MoePlacer *placer;
    ok(moe_placer_create(policy, &setup, gate, &placer));
    MoePlaceMap *maps = MOE_NEW_N(arena, MoePlaceMap, load->layers);
    MoePlaceDecision *d = MOE_NEW_N(arena, MoePlaceDecision, load->layers);
    void *scratch = malloc((size_t)moe_split_scratch(load->experts, ranks, slots, 1));
    MoeSplitRun *runs = malloc((size_t)(ranks * slots) * sizeof *runs);
    double *all = MOE_NEW_N(arena, double, load->layers * load->steps), sum = 0;
    Outcome out = {0};
    for (int l = 0; l < load->layers; l++)
        ok(moe_place_map_create(load->experts, ranks, slots, arena, &maps[l]));
    for (int s = 0; s < load->steps; s++) {
        if (moe_placer_due(placer, s)) {
            moe_placer_decide(placer, s, maps, d);
            for (int l = 0; l < load->layers; l++) {
                ck_assert_msg(d[l].verdict != MOE_PLACE_REFUSED, "%s", d[l].why);
                out.arrivals += d[l].verdict == MOE_PLACE_CHANGED ? d[l].arrivals : 0;
            }
        }
        for (int l = 0; l < load->layers && s >= WARM_UP; l++)
            sum += all[n++] =
                imbalance_of(&maps[l], moe_load_at(load, s, l), load->sources, scratch, runs);
        moe_placer_observe(placer, s, moe_load_at(load, s, 0), maps);
    }
    out.imbalance = sum / n;
    qsort(all, (size_t)n, sizeof *all, by_value);
    out.p95 = all[n * 95 / 100];
    out.worst = all[n - 1];
    out.seconds = moe_placer_seconds(placer);
    moe_placer_destroy(placer);
    free(scratch);
    free(runs);
    return out;
}

START_TEST(table) {
    if (!getenv("MOE_POLICIES_TABLE"))
        return;
    static const char *const traces[] = {"mixtral_e8k2", "olmoe_e32k4"};
    for (int t = 0; t < 2; t++) {
        MoeLoad load = read_trace(traces[t]);
        for (int ranks = 2; ranks <= load.experts; ranks *= 2)
            for (int extra = 0; extra <= (ranks == 8 ? 2 : 1); extra++)
                for (size_t p = 0; p < moe_policy_count(); p++) {
                    const char *only = getenv("MOE_POLICY"), *name = moe_policy_at(p)->name;
                    if (only && !strstr(only, name))
                        continue;
                    Outcome o = replay(&load, name, ranks, extra, (MoePlacerGate){0});
                    printf("%-13s ranks %2d extra %d %-12s imbalance %.4f p95 %.4f max %.4f "
                           "arrivals %5d, %.0f ms\n",
                           traces[t], ranks, extra, name, o.imbalance, o.p95, o.worst, o.arrivals,
                           o.seconds * 1e3);
                }
    }
}
END_TEST

int main(void) {
    Suite *s = suite_create("policies");
    TCase *t = tcase_create("policies");
    tcase_set_timeout(t, 600);
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, eplb_gives_the_published_example);
    tcase_add_test(t, table);
    suite_add_tcase(s, t);
    SRunner *runner = srunner_create(s);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
