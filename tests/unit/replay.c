/* placement/replay.h: figures worked out by hand, no peeking, dumps and reports that say the same, options that do not go together. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "base/json.h"
#include "placement/dump.h"
#include "placement/plot.h"
#include "placement/report.h"
#include "placement/synthetic.h"
#include "tests/support/check_main.h"
#include "tests/support/status_checks.h"

static MoeArena *arena;
static MoeLoad load;
static MoePlaceCost cost;
static MoeReplayOptions options;

static void setup(void) {
    arena = moe_arena_create();
    MoeCluster c = moe_replay_default_cluster(4);
    cost = moe_place_cost_of(
        &c, &(MoePlaceModel){
                .hidden = 1024, .intermediate = 512, .top_k = 2, .element_bytes = 2, .states = 2});
    options = (MoeReplayOptions){.ranks = 4,
                                 .groups = 1,
                                 .every = 5,
                                 .window = 5,
                                 .warmup = 10,
                                 .grain = 1,
                                 .seed = 1,
                                 .cost = &cost,
                                 .watch = -1};
    OK(moe_synthetic_make("drift:1.5",
                          &(MoeSyntheticSizes){.experts = 16,
                                               .layers = 2,
                                               .steps = 40,
                                               .sources = 8,
                                               .top_k = 2,
                                               .tokens = 4096,
                                               .seed = 3},
                          arena, &load));
    moe_replay_scale(&cost, 100);
}
static void teardown(void) {
    moe_arena_destroy(arena);
}

static const MoePolicy *policy(const char *name) {
    const MoePolicy *p = NULL;
    OK(moe_policy_find(name, &p));
    return p;
}

static MoeReplay replay(const char *name, const MoeReplayObserver *see) {
    MoeReplay out;
    OK(moe_replay(&load, policy(name), &options, see, arena, &out));
    return out;
}

/* ---- by hand ---- */

static void read_trace(const char *text) {
    OK(moe_load_read(moe_test_file("t.csv", text, strlen(text)), arena, &load));
}

START_TEST(test_static_by_hand) {
    /* 2 ranks of 2 experts: rows of the ranks 3 and 7, 10 and 0, 5 and 5 */
    read_trace("step,layer,rank,e0,e1,e2,e3\n0,0,0,1,2,3,4\n1,0,0,10,0,0,0\n2,0,0,0,5,5,0\n");
    options.ranks = 2;
    options.warmup = 0;
    cost.cluster.nodes = 1;
    cost.cluster.ranks_per_node = 2;
    MoeReplay r = replay("static", NULL);
    const double want[] = {1.4, 2, 1};
    for (int i = 0; i < 3; i++)
        ck_assert_double_eq_tol(r.imbalance[i], want[i], 1e-12);
    ck_assert_double_eq_tol(r.all.mean, 4.4 / 3, 1e-12);
    ck_assert_double_eq(r.all.max, 2);
    ck_assert_double_eq_tol(r.all.p95, 1.4 + 0.9 * 0.6, 1e-12);
    ck_assert_int_eq(r.all.arrivals + r.all.moves + r.all.changes, 0);
    options.warmup = 2;
    r = replay("static", NULL);
    ck_assert_double_eq(r.all.mean, 1);
    ck_assert_double_eq(r.all.p95, 1);
    /* no rows at all: balanced */
    read_trace("step,layer,rank,e0,e1\n0,0,0,0,0\n1,0,0,0,0\n");
    options.warmup = 0;
    r = replay("static", NULL);
    ck_assert_double_eq(r.all.max, 1);
}
END_TEST

START_TEST(test_seconds_by_hand) {
    read_trace("step,layer,rank,e0,e1,e2,e3\n0,0,0,10,0,0,0\n0,0,1,0,30,0,0\n1,0,0,10,0,0,0\n1,0,1,"
               "0,30,0,0\n");
    options.ranks = 2;
    options.warmup = 0;
    cost = (MoePlaceCost){.cluster = {.nodes = 1, .ranks_per_node = 2, .links = {{0, 1}, {0, 1}}},
                          .top_k = 1,
                          .row_seconds = 2,
                          .token_bytes = 3,
                          .row_bytes = 5,
                          .fixed_seconds = 7};
    MoeReplay r =
        replay("static", NULL); /* rank 0 computes 40 rows; 30 come over its link and go back */
    ck_assert_double_eq_tol(r.all.seconds, 40 * 2 + 30 * 3 + 30 * 5 + 7, 1e-9);
    ck_assert_double_eq_tol(r.layer[0].seconds, r.all.seconds, 1e-9);
}
END_TEST

START_TEST(test_groups_by_hand) {
    /* two groups of two ranks; the first group's sources are 0 and 1 */
    read_trace("step,layer,rank,e0,e1\n0,0,0,8,0\n0,0,1,0,0\n0,0,2,2,1\n0,0,3,0,1\n1,0,0,1,1\n1,0,"
               "1,1,1\n1,0,2,1,1\n1,0,3,1,1\n");
    options.ranks = 2;
    options.groups = 2;
    options.warmup = 0;
    cost.cluster.nodes = 1;
    cost.cluster.ranks_per_node = 2;
    MoeReplay r = replay("static", NULL);
    ck_assert_double_eq_tol(r.imbalance[0], 8.0 / 3, 1e-12); /* 8 of 12 on one of four */
    ck_assert_double_eq(r.imbalance[1], 1);
}
END_TEST

START_TEST(test_one_step) {
    const char *text = "100 1 1 1\n1 1 1 100\n";
    OK(moe_load_read(moe_test_file("t", text, strlen(text)), arena, &load));
    options.ranks = 2;
    cost.cluster.nodes = 1;
    cost.cluster.ranks_per_node = 2;
    MoeReplay r = replay("lpt", NULL);
    ck_assert_int_eq(r.steps, options.warmup + options.every);
    ck_assert_double_eq_tol(r.all.mean, 101.0 / 51.5, 1e-9);
}
END_TEST

/* ---- decisions ---- */

typedef struct {
    MoeStr text;
    int64_t until;
    int divisions, maps;
    const MoeLoad *load;
    int64_t rows[64][2]; /* divided rows by step, layer */
} Log;

static MoeStatus log_map(void *ctx, int64_t step, int layer, const MoePlaceMap *m,
                         const MoePlaceDecision *d) {
    Log *l = ctx;
    ck_assert(!d == (step == l->load->first_step));
    OK(moe_place_map_check(m, layer, "test"));
    l->maps++;
    if (step > l->until)
        return NULL;
    moe_str_printf(&l->text, "%lld %d:", (long long)step, layer);
    for (int g = 0; g < m->ranks * m->slots; g++)
        moe_str_printf(&l->text, " %d", m->expert[g]);
    moe_str_putc(&l->text, '\n');
    return NULL;
}

static MoeStatus log_division(void *ctx, int64_t step, int layer, const MoePlaceMap *m,
                              const MoeSplitRun *runs) {
    Log *l = ctx;
    l->divisions++;
    for (int g = 0; g < m->ranks * m->slots; g++) {
        ck_assert_int_le(runs[g].begin, runs[g].end);
        if (m->expert[g] < 0)
            ck_assert_int_eq(runs[g].begin, runs[g].end);
        l->rows[step][layer] += runs[g].end - runs[g].begin;
    }
    return NULL;
}

/* Cutting the trace, or changing what comes after, leaves every decision up to there as it was. */
START_TEST(test_no_peeking) {
    options.extra_slots = 1;
    for (size_t i = 0; i < moe_policy_count(); i++) {
        const char *name = moe_policy_at(i)->name;
        if (!strcmp(name, "program") || !strcmp(name, "optimal"))
            continue;
        Log all = {.until = 25, .load = &load}, cut = {.until = 25, .load = &load},
            other = {.until = 25, .load = &load};
        MoeReplayObserver see = {.ctx = &all, .map = log_map, .division = log_division};
        replay(name, &see);
        ck_assert_int_eq(all.divisions, 40 * 2);
        for (int s = 0; s < 40; s++)
            for (int k = 0; k < 2; k++)
                ck_assert_int_eq(all.rows[s][k], 4096 * 2);
        MoeLoad whole = load;
        load.steps = 26;
        see.ctx = &cut;
        replay(name, &see);
        ck_assert_msg(!strcmp(moe_str_c(&all.text), moe_str_c(&cut.text)),
                      "%s looks ahead of a cut", name);
        load = whole;
        size_t step = (size_t)load.layers * load.sources * load.experts;
        int32_t *counts = moe_arena_copy(arena, load.counts, sizeof *counts * step * 40);
        for (size_t k = 26 * step; k < 40 * step; k++)
            counts[k] = load.counts[40 * step - 1 - (k - 26 * step)];
        load.counts = counts;
        see.ctx = &other;
        replay(name, &see);
        ck_assert_msg(!strcmp(moe_str_c(&all.text), moe_str_c(&other.text)),
                      "%s looks at the future", name);
        load = whole;
        moe_str_free(&all.text);
        moe_str_free(&cut.text);
        moe_str_free(&other.text);
    }
}
END_TEST

START_TEST(test_repeatable) {
    MoePool *pool;
    OK(moe_pool_create(3, &pool));
    options.extra_slots = 1;
    const char *names[] = {"eplb", "moec", "random"};
    for (size_t i = 0; i < 3; i++) {
        options.pool = NULL;
        MoeReplay a = replay(names[i], NULL);
        options.pool = pool;
        MoeReplay b = replay(names[i], NULL);
        ck_assert(memcmp(a.imbalance, b.imbalance, sizeof(double) * 80) == 0);
        ck_assert(memcmp(&a.all, &b.all, sizeof a.all) == 0);
    }
    moe_pool_destroy(pool);
}
END_TEST

START_TEST(test_better) {
    options.extra_slots = 1;
    double fixed = replay("static", NULL).all.mean, eplb = replay("eplb", NULL).all.mean;
    options.even = true;
    double even = replay("eplb", NULL).all.mean;
    ck_assert_double_lt(eplb, even);
    ck_assert_double_lt(even, fixed);
    options.even = false;
    options.grain = 128;
    double coarse = replay("eplb", NULL).all.mean;
    ck_assert_double_le(eplb, coarse);
    ck_assert_double_lt(coarse, fixed);
}
END_TEST

/* ---- what is written ---- */

START_TEST(test_dump) {
    MoeDump *d;
    MoeReplayObserver see = {0};
    options.extra_slots = 1;
    OK(moe_dump_open(moe_test_path("d.jsonl"), &d));
    moe_dump_begin(d, &load, "a \"trace\"", "eplb", 1);
    moe_dump_observe(d, &see);
    MoeReplay r = replay("eplb", &see);
    OK(moe_dump_close(d));
    char *text;
    size_t n;
    OK(moe_file_read(moe_test_path("d.jsonl"), 1 << 24, &text, &n));
    int divisions = 0;
    for (char *line = text; *line;) {
        char *end = strchr(line, '\n');
        json_t *o;
        OK(moe_json_load_text(line, (size_t)(end - line), "line", &o));
        ck_assert_str_eq(json_string_value(json_object_get(o, "trace")), "a \"trace\"");
        json_t *tokens = json_object_get(o, "tokens"), *slots = json_object_get(o, "slots");
        ck_assert(!tokens != !slots);
        ck_assert_int_eq(json_array_size(tokens ? tokens : slots), 4);
        if (tokens) {
            int64_t busiest = 0, total = 0;
            for (size_t k = 0; k < 4; k++) {
                int64_t rows = 0;
                ck_assert_int_eq(json_array_size(json_array_get(tokens, k)), 5);
                for (size_t g = 0; g < 5; g++)
                    rows += json_integer_value(json_array_get(json_array_get(tokens, k), g));
                busiest = rows > busiest ? rows : busiest;
                total += rows;
            }
            json_int_t step = json_integer_value(json_object_get(o, "step")),
                       layer = json_integer_value(json_object_get(o, "layer"));
            ck_assert_double_eq_tol((double)busiest * 4 / (double)total,
                                    r.imbalance[step * 2 + layer], 1e-12);
            divisions++;
        }
        json_decref(o);
        line = end + 1;
    }
    free(text);
    ck_assert_int_eq(divisions, 80);
    FAILS(moe_dump_open(moe_test_path("no/such/dir"), &d), MOE_E_IO, "no/such/dir");
}
END_TEST

START_TEST(test_reports) {
    options.extra_slots = 1;
    options.watch = moe_replay_worst_layer(&load, 4);
    MoeReplay all[2] = {replay("static", NULL), replay("eplb", NULL)};
    MoeReport r = {.trace = "x,<y>&\"z\"",
                   .load = &load,
                   .options = &options,
                   .cluster = "c",
                   .scale = 1,
                   .fixed = &all[0],
                   .replays = all,
                   .n_replays = 2,
                   .per_layer = true};
    ck_assert_int_ge(all[1].n_watched, 2);
    MoeStr s = {0};
    moe_report_md(&r, &s);
    ck_assert(strstr(moe_str_c(&s), "| eplb | 1 |"));
    moe_str_clear(&s);
    moe_report_csv(&r, true, &s);
    int lines = 0;
    for (const char *p = moe_str_c(&s); *p; p++)
        lines += *p == '\n';
    ck_assert_int_eq(lines, 1 + 2 * 3);
    ck_assert(strstr(moe_str_c(&s), "\n\"x,<y>&\"\"z\"\"\",eplb,,4,5,"));
    json_t *o = moe_report_json(&r);
    json_t *second = json_array_get(json_object_get(o, "policies"), 1);
    ck_assert_double_eq(json_real_value(json_object_get(second, "imbalance_mean")),
                        all[1].all.mean);
    ck_assert_int_eq(json_array_size(json_object_get(second, "layers")), 2);
    ck_assert_double_eq(json_real_value(json_object_get(second, "speed_up")),
                        all[0].all.seconds / all[1].all.seconds);
    json_decref(o);
    moe_str_clear(&s);
    moe_plot(&r, 1, &s);
    ck_assert(strstr(moe_str_c(&s), "x,&lt;y&gt;&amp;&quot;z&quot;"));
    ck_assert(!strstr(moe_str_c(&s), "nan") && !strstr(moe_str_c(&s), "inf") &&
              !strstr(moe_str_c(&s), "<script"));
    ck_assert_int_eq(strncmp(moe_str_c(&s) + s.len - 7, "</svg>\n", 7), 0);
    moe_str_free(&s);
}
END_TEST

START_TEST(test_bad_options) {
    MoeReplay out;
    const MoeReplayOptions good = options;
#define BAD(change, ...)                                                                           \
    do {                                                                                           \
        options = good;                                                                            \
        change;                                                                                    \
        FAILS(moe_replay(&load, policy("static"), &options, NULL, arena, &out), MOE_E_MISUSE,      \
              __VA_ARGS__);                                                                        \
    } while (0)
    BAD(options.ranks = 0, "0 ranks");
    BAD(options.ranks = 100000, "100000 ranks");
    BAD(options.groups = 4096, "4096 groups");
    BAD(options.extra_slots = 13, "13 extra slots", "17 slots", "16 experts");
    BAD(options.warmup = 40, "40 steps", "warm-up of 40");
    BAD(options.window = 0, "from 0 steps");
}
END_TEST

int main(void) {
    Suite *s = suite_create("replay");
    TCase *t = tcase_create("all");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_set_timeout(t, 120);
    tcase_add_test(t, test_static_by_hand);
    tcase_add_test(t, test_seconds_by_hand);
    tcase_add_test(t, test_groups_by_hand);
    tcase_add_test(t, test_one_step);
    tcase_add_test(t, test_no_peeking);
    tcase_add_test(t, test_repeatable);
    tcase_add_test(t, test_better);
    tcase_add_test(t, test_dump);
    tcase_add_test(t, test_reports);
    tcase_add_test(t, test_bad_options);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
