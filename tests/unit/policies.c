/* Placement policies: published algorithms reproduce what is published, and all are replayed on the traces of tests/data/traces: what
 * each reaches is bounded here. The measure: at each step and layer the busiest rank's rows over the mean, averaged over layers and
 * steps >= 20, rows of experts with copies divided with the step's own counts. MOE_POLICIES_TABLE=1 prints all. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/pool.h"
#include "placement/load.h"
#include "placement/placer.h"
#include "placement/policy_eplb.h"
#include "placement/synthetic.h"
#include "tests/support/check_main.h"
#include "tests/support/status_checks.h"

static MoeArena *arena;

static void setup(void) {
    arena = moe_arena_create();
}
static void teardown(void) {
    moe_arena_destroy(arena);
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
    OK(moe_load_read(path, arena, &load));
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
    OK(moe_policy_find(name, &policy));
    MoePlaceCost cost = cost_of(ranks);
    MoePolicySetup setup = {.layers = load->layers,
                            .experts = load->experts,
                            .ranks = ranks,
                            .slots = slots,
                            .groups = 1,
                            .sources = load->sources,
                            .grain = 1,
                            .every = 10,
                            .window = 10,
                            .seed = 1,
                            .cost = &cost};
    MoePlacer *placer;
    OK(moe_placer_create(policy, &setup, gate, &placer));
    MoePlaceMap *maps = MOE_NEW_N(arena, MoePlaceMap, load->layers);
    MoePlaceDecision *d = MOE_NEW_N(arena, MoePlaceDecision, load->layers);
    void *scratch = malloc((size_t)moe_split_scratch(load->experts, ranks, slots, 1));
    MoeSplitRun *runs = malloc((size_t)(ranks * slots) * sizeof *runs);
    double *all = MOE_NEW_N(arena, double, load->layers * load->steps), sum = 0;
    Outcome out = {0};
    for (int l = 0; l < load->layers; l++)
        OK(moe_place_map_create(load->experts, ranks, slots, arena, &maps[l]));
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

/* EPLB's figures as the published program has them (even shares; 1.3131 and 1.3679, 872 and 3673, with other ties): ours agree. */
START_TEST(eplb_on_the_traces) {
    static const struct {
        const char *trace;
        int arrivals;
        double even, flow;
    } want[] = {{"mixtral_e8k2", 872, 1.313, 1.17}, {"olmoe_e32k4", 3673, 1.368, 1.18}};
    for (int t = 0; t < 2; t++) {
        MoeLoad load = read_trace(want[t].trace);
        int n = load.experts + 8, per = n / 8, steps = 0, arrivals = 0;
        double even = 0;
        int32_t *slot = MOE_NEW_N(arena, int32_t, n),
                *total = MOE_NEW_N(arena, int32_t, load.steps * load.experts);
        for (int l = 0; l < load.layers; l++) {
            for (int s = 0; s < load.steps; s++)
                for (int e = 0; e < load.experts; e++) {
                    total[s * load.experts + e] = 0;
                    for (int v = 0; v < load.sources; v++)
                        total[s * load.experts + e] +=
                            moe_load_at(&load, s, l)[v * load.experts + e];
                }
            for (int s = 10; s < load.steps; s++) {
                float weight[32] = {0};
                int copies[32] = {0};
                for (int k = s - 10; k < s && s % 10 == 0; k++)
                    for (int e = 0; e < load.experts; e++)
                        weight[e] += (float)total[k * load.experts + e];
                if (s % 10 == 0)
                    moe_eplb(weight, load.experts, n, 1, 1, 8, slot);
                double most = 0, sum = 0;
                for (int i = 0; i < n; i++)
                    copies[slot[i]]++;
                for (int r = 0; r < 8; r++) {
                    double rows = 0;
                    for (int i = r * per; i < (r + 1) * per; i++)
                        rows += (double)total[s * load.experts + slot[i]] / copies[slot[i]];
                    most = rows > most ? rows : most;
                    sum += rows;
                }
                if (s >= WARM_UP) {
                    even += most / (sum / 8);
                    steps++;
                }
            }
        }
        Outcome o = replay(&load, "eplb", 8, 1, (MoePlacerGate){0});
        arrivals = o.arrivals;
        ck_assert_msg(fabs(even / steps - want[t].even) < 0.003, "even shares: %.4f", even / steps);
        ck_assert_msg(fabs(o.imbalance - want[t].flow) < 0.01, "%.4f", o.imbalance);
        ck_assert_msg(abs(arrivals - want[t].arrivals) <= want[t].arrivals / 100, "%d arrivals",
                      arrivals);
    }
}
END_TEST

/* What moec's own policy reaches, at most: and with how many arrivals. Without extra slots it is EPLB's, within 1 %, with a fifth of its
 * arrivals. */
START_TEST(moec_on_the_traces) {
    static const struct {
        const char *trace;
        int ranks, extra;
        double imbalance;
        int arrivals;
    } want[] = {{"mixtral_e8k2", 8, 1, 1.01, 150},  {"olmoe_e32k4", 8, 1, 1.03, 600},
                {"mixtral_e8k2", 8, 2, 1.005, 150}, {"olmoe_e32k4", 8, 2, 1.015, 600},
                {"mixtral_e8k2", 2, 0, 0, 0},       {"mixtral_e8k2", 4, 0, 0, 0},
                {"mixtral_e8k2", 8, 0, 0, 0},       {"olmoe_e32k4", 2, 0, 0, 0},
                {"olmoe_e32k4", 4, 0, 0, 0},        {"olmoe_e32k4", 8, 0, 0, 0},
                {"olmoe_e32k4", 16, 0, 0, 0},       {"olmoe_e32k4", 32, 0, 0, 0},
                {"mixtral_e8k2", 1, 0, 0, 0}};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        MoeLoad load = read_trace(want[i].trace);
        Outcome got = replay(&load, "moec", want[i].ranks, want[i].extra, (MoePlacerGate){0});
        double imbalance = want[i].imbalance;
        int arrivals = want[i].arrivals;
        if (want[i].extra == 0) {
            Outcome eplb = replay(&load, "eplb", want[i].ranks, 0, (MoePlacerGate){0});
            imbalance = eplb.imbalance * 1.01;
            arrivals = eplb.arrivals / 5;
        }
        ck_assert_msg(got.imbalance <= imbalance && got.arrivals <= arrivals,
                      "%s, %d ranks, %d extra: %.4f with %d arrivals, wanted %.4f with %d",
                      want[i].trace, want[i].ranks, want[i].extra, got.imbalance, got.arrivals,
                      imbalance, arrivals);
    }
}
END_TEST

/* The others, so that a change that makes one worse shows: 8 ranks, one extra slot. */
START_TEST(others_on_the_traces) {
    static const struct {
        const char *policy;
        double mixtral, olmoe;
    } want[] = {{"static", 3.26, 2.29},
                {"lpt", 3.26, 1.45},
                {"smartmoe", 3.26, 1.46},
                {"search", 3.26, 1.50},
                {"fastermoe", 2.86, 1.92}};
    MoeLoad mixtral = read_trace("mixtral_e8k2"), olmoe = read_trace("olmoe_e32k4");
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        Outcome a = replay(&mixtral, want[i].policy, 8, 1, (MoePlacerGate){0}),
                b = replay(&olmoe, want[i].policy, 8, 1, (MoePlacerGate){0});
        ck_assert_msg(a.imbalance < want[i].mixtral && b.imbalance < want[i].olmoe,
                      "%s: %.4f, %.4f", want[i].policy, a.imbalance, b.imbalance);
    }
}
END_TEST

static bool is_program(const MoePolicy *p) {
    return !strcmp(p->name, "program");
}

/* Decisions up to step n are the same whatever comes after it. */
START_TEST(nothing_peeks) {
    MoeLoad load = read_trace("mixtral_e8k2");
    enum { STEPS = 60, CUT = 37 };
    size_t per = (size_t)load.layers * (size_t)load.sources * (size_t)load.experts;
    for (size_t k = 0; k < moe_policy_count(); k++) {
        const MoePolicy *p = moe_policy_at(k);
        MoePlaceCost cost = cost_of(4);
        MoePolicySetup s = {.layers = load.layers,
                            .experts = 8,
                            .ranks = 4,
                            .slots = 3,
                            .groups = 1,
                            .sources = load.sources,
                            .grain = 1,
                            .every = 10,
                            .window = 10,
                            .seed = 1,
                            .cost = &cost};
        MoePlacer *placer[2];
        MoePlaceMap *maps[2];
        if (is_program(p) || !strcmp(p->name, "optimal"))
            continue;
        for (int i = 0; i < 2; i++) {
            OK(moe_placer_create(p, &s, (MoePlacerGate){0}, &placer[i]));
            maps[i] = MOE_NEW_N(arena, MoePlaceMap, load.layers);
            for (int l = 0; l < load.layers; l++)
                OK(moe_place_map_create(8, 4, 3, arena, &maps[i][l]));
        }
        bool differ = false;
        for (int step = 0; step < STEPS; step++)
            for (int i = 0; i < 2; i++) {
                MoePlaceDecision d[8];
                if (moe_placer_due(placer[i], step))
                    moe_placer_decide(placer[i], step, maps[i], d);
                for (int l = 0; l < load.layers && i == 1; l++) {
                    differ = differ || !moe_place_map_equal(&maps[0][l], &maps[1][l]);
                    ck_assert_msg(step > CUT || !differ, "%s peeks: step %d", p->name, step);
                }
                const int32_t *counts = moe_load_at(&load, step, 0);
                if (i == 1 &&
                    step >= CUT) { /* from here on another load: experts change their names */
                    int32_t *turned = MOE_NEW_N(arena, int32_t, per);
                    for (size_t at = 0; at < per; at++)
                        turned[at] = counts[at / 8 * 8 + (at + 3) % 8];
                    counts = turned;
                }
                moe_placer_observe(placer[i], step, counts, maps[i]);
            }
        ck_assert_msg(differ || !strcmp(p->name, "static") || !strcmp(p->name, "round-robin") ||
                          !strcmp(p->name, "random"),
                      "%s does not look at loads", p->name);
        moe_placer_destroy(placer[0]);
        moe_placer_destroy(placer[1]);
    }
}
END_TEST

/* 256 experts, 58 layers, 64 ranks with one extra slot each: the first decision, from a map that is 8 times the mean, and later ones. */
START_TEST(moec_decides_for_many_layers) {
    MoeLoad load;
    OK(moe_synthetic_make("zipf:1", &(MoeSyntheticSizes){256, 58, 4, 64, 8, 64 * 4096, 1}, arena,
                          &load));
    MoeCluster cl = {
        .nodes = 8, .ranks_per_node = 8, .links = {{1e-6, 2e11}, {1e-5, 5e10}}, .flops = 4e14};
    MoePlaceCost cost = moe_place_cost_of(&cl, &(MoePlaceModel){4096, 1536, 8, 2, 2});
    MoePolicySetup s = {.layers = 58,
                        .experts = 256,
                        .ranks = 64,
                        .slots = 5,
                        .groups = 1,
                        .sources = 64,
                        .grain = 1,
                        .every = 10,
                        .window = 10,
                        .seed = 1,
                        .cost = &cost};
    const MoePolicy *p;
    OK(moe_policy_find("moec", &p));
    MoePlaceDecision d[58];
    MoePlaceMap maps[58];
    double first = 1e9, later = 0;
    for (int round = 0; round < 3; round++) { /* the best of three: the machine may be busy */
        MoePlacer *placer;
        OK(moe_placer_create(p, &s, (MoePlacerGate){0}, &placer));
        for (int l = 0; l < 58; l++)
            OK(moe_place_map_create(256, 64, 5, arena, &maps[l]));
        for (int step = 0; step < load.steps; step++) {
            if (step > 0) {
                double t = moe_thread_cpu();
                moe_placer_decide(placer, step, maps, d);
                t = (moe_thread_cpu() - t) * 1e3;
                if (step == 1)
                    first = t < first ? t : first;
                else
                    later = t > later && round == 0 ? t : later;
            }
            moe_placer_observe(placer, step, moe_load_at(&load, step, 0), maps);
            double after = 0;
            for (int l = 0; l < 58 && step == 1; l++)
                after += d[l].after / 58;
            ck_assert_msg(after < 1.2, "%.4f after the first decision", after);
        }
        moe_placer_destroy(placer);
    }
    printf("58 layers of 256 experts, 64 ranks, 64 extra slots: first decision %.1f ms, later ones "
           "at most %.1f ms\n",
           first, later);
    if (getenv("MOE_TIMED")) /* on a quiet machine */
        ck_assert_msg(first < 50, "%.1f ms", first);
}
END_TEST

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
                    if (!strcmp(name, "program") || !strcmp(name, "optimal") ||
                        (only && !strstr(only, name)))
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
    tcase_add_test(t, eplb_on_the_traces);
    tcase_add_test(t, moec_on_the_traces);
    tcase_add_test(t, others_on_the_traces);
    tcase_add_test(t, nothing_peeks);
    tcase_add_test(t, moec_decides_for_many_layers);
    tcase_add_test(t, table);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
