/* runtime/place.h with ranks as threads: rank 0 decides by the loads that it saw, all ranks have the maps and the experts then; events; failures; options.
 * And what it stands on in the log: RUN/placement.jsonl, the history read back from RUN/trace.csv. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "base/json.h"
#include "runtime/log.h"
#include "runtime/place.h"
#include "runtime/place_fault.h"
#include "tests/support/check_main.h"
#include "tests/support/mesh.h"
#include "tests/support/slice_fill.h"
#include "tests/support/status_checks.h"

enum { EXPERTS = 8, LAYERS = 2, V = 64 };

static const SliceParam params[] = {
    {"model.layers.0.mlp.experts.*.w1.weight", 1, 3, {EXPERTS, 64, 32}},
    {"model.layers.1.mlp.experts.*.w1.weight", 1, 3, {EXPERTS, 6, 3}},
    {"model.layers.1.self_attn.q_proj.weight", 0, 2, {102, 91}},
};
static const MoeMesh mesh = MESH(1, 2, 4, 1, 4);
static MoePlaceOptions options;

static SliceRanks ranks(void) {
    SliceRanks r = slice_ranks(slice_plan(&mesh, EXPERTS, LAYERS, params, 3));
    slice_fill(&r, 2);
    return r;
}

static void setup(void) {
    moe_place_options_default(&options);
    options.policy = "lpt";
    options.every = 4;
    options.window = 3;
    options.hysteresis = 0;
}

/* Experts 0 and 1, which are on one rank at first, have most of the rows, in layer 1 alone. */
static void skewed(int32_t *load) {
    for (int k = 0; k < LAYERS; k++)
        for (int v = 0; v < V; v++)
            for (int e = 0; e < EXPERTS; e++)
                *load++ = k == 1 && e < 2 ? 900 : 100;
}

typedef struct {
    const MoePlan *plan;
    MoePlaceChange changes[64];
    bool due[8]; /* before steps 1.. */
    MoeStr events;
} Call;

/* Opens, sees three steps, decides before step 4. */
static MoeStatus change_rank(void *ctx, int rank, MoeExec *x) {
    Call *c = ctx;
    MoePlace *p;
    int32_t load[LAYERS * V * EXPERTS];
    skewed(load);
    MOE_TRY(moe_place_open(c->plan, x, &options, 1, &p));
    for (int step = 1; step <= 3 && rank == 0; step++) {
        c->due[step] = moe_place_due(p, step);
        moe_place_observe(p, step, load);
    }
    if (rank == 0)
        c->due[4] = moe_place_due(p, 4);
    MoeStatus st = moe_place_change(p, 4, rank ? NULL : &c->events, &c->changes[rank]);
    moe_place_close(p);
    return st;
}

/* The line of that event, of layer 1 if it is a layer's. */
static json_t *event(const Call *c, const char *name) {
    for (const char *at = moe_str_c(&c->events); *at; at += strcspn(at, "\n") + 1) {
        json_t *out = NULL;
        OK(moe_json_load_text(at, strcspn(at, "\n"), "event", &out));
        const json_t *layer = json_object_get(out, "layer");
        if (!strcmp(json_string_value(json_object_get(out, "event")), name) &&
            (!layer || json_integer_value(layer) == 1))
            return out;
        json_decref(out);
    }
    ck_abort_msg("no event \"%s\" in %s", name, moe_str_c(&c->events));
    return NULL;
}

static const char *text_of(const json_t *e, const char *key) {
    const char *s = json_string_value(json_object_get(e, key));
    return s ? s : "";
}

START_TEST(test_change) {
    SliceRanks r = ranks();
    Call c = {.plan = r.plan};
    OK(slice_ranks_run(&r, change_rank, &c, NULL));
    ck_assert(!c.due[1] && !c.due[2] && !c.due[3] && c.due[4]);
    for (int q = 0; q < r.n; q++) {
        ck_assert(c.changes[q].moved && !c.changes[q].failed &&
                  isnan(c.changes[q].emulated_seconds));
        ck_assert_int_eq(c.changes[q].bytes, c.changes[0].bytes);
        for (size_t k = 0; k < LAYERS; k++)
            ck_assert(moe_place_map_equal(moe_exec_map(r.x[q], k), moe_exec_map(r.x[0], k)));
    }
    const MoePlaceMap *m = moe_exec_map(r.x[0], 1);
    ck_assert_int_ne(m->primary[0] / m->slots, m->primary[1] / m->slots);
    ck_assert(slice_holds(&r, 2));
    json_t *second = event(&c, "decision"), *moved = event(&c, "move");
    ck_assert_int_ge(json_integer_value(json_object_get(moved, "changed")), 1);
    ck_assert_str_eq(text_of(second, "verdict"), "changed");
    ck_assert_int_eq(json_array_size(json_object_get(second, "slots")), 4);
    ck_assert_int_eq(json_array_size(json_object_get(second, "primary")), EXPERTS);
    ck_assert(json_number_value(json_object_get(second, "before")) >
              json_number_value(json_object_get(second, "after")) + 0.5);
    ck_assert_str_eq(text_of(moved, "event"), "move");
    ck_assert_int_eq(json_integer_value(json_object_get(moved, "bytes")), c.changes[0].bytes);
    ck_assert_int_eq(json_integer_value(json_object_get(moved, "step")), 4);
    json_decref(second);
    json_decref(moved);
    moe_str_free(&c.events);
    slice_ranks_free(&r);
}
END_TEST

/* Not worth its cost: nothing moves, and the event says so. */
START_TEST(test_too_dear) {
    SliceRanks r = ranks();
    Call c = {.plan = r.plan};
    options.hysteresis = 1e9;
    OK(slice_ranks_run(&r, change_rank, &c, NULL));
    for (int q = 0; q < r.n; q++)
        ck_assert(!c.changes[q].moved && c.changes[q].bytes == 0);
    for (int e = 0; e < EXPERTS; e++)
        ck_assert_int_eq(moe_exec_place(r.x[1], 1)[e], e);
    json_t *second = event(&c, "decision"), *asked = event(&c, "asked");
    ck_assert_str_eq(text_of(second, "verdict"), "too dear");
    ck_assert(json_integer_value(json_object_get(asked, "too dear")) >= 1 &&
              !json_object_get(asked, "bytes"));
    json_decref(second);
    json_decref(asked);
    ck_assert(!strstr(moe_str_c(&c.events), "\"move\""));
    moe_str_free(&c.events);
    slice_ranks_free(&r);
}
END_TEST

/* A rank that cannot: the old maps, an event, no error. */
START_TEST(test_failure) {
    SliceRanks r = ranks();
    Call c = {.plan = r.plan};
    moe_place_fault_reset();
    setenv("MOEC_MOVE_FAULT", "fail staged 5 1", 1);
    OK(slice_ranks_run(&r, change_rank, &c, NULL));
    unsetenv("MOEC_MOVE_FAULT");
    for (int q = 0; q < r.n; q++) {
        ck_assert(!c.changes[q].moved && c.changes[q].failed);
        for (int e = 0; e < EXPERTS; e++)
            ck_assert_int_eq(moe_exec_place(r.x[q], 1)[e], e);
    }
    ck_assert(slice_holds(&r, 2));
    ck_assert(strstr(moe_str_c(&c.events), "\"failure\"") &&
              strstr(moe_str_c(&c.events), "rank 5"));
    moe_str_free(&c.events);
    slice_ranks_free(&r);
}
END_TEST

static MoeStatus open_rank(void *ctx, int rank, MoeExec *x) {
    const Call *c = ctx;
    MoePlace *p;
    (void)rank;
    MOE_TRY(moe_place_open(c->plan, x, &options, 1, &p));
    MoeStatus st = p ? moe_error(MOE_E_INTERNAL, "there is something to place") : NULL;
    moe_place_close(p);
    return st;
}

START_TEST(test_static) {
    SliceRanks r = ranks();
    Call c = {.plan = r.plan};
    options.policy = "static";
    OK(slice_ranks_run(&r, open_rank, &c, NULL));
    slice_ranks_free(&r);
}
END_TEST

START_TEST(test_options) {
    OK(moe_place_options_check(&options));
    options.policy = "clever";
    FAILS(moe_place_options_check(&options), MOE_E_MISUSE, "--placement", "clever", "lpt");
    setup();
    options.every = 0;
    FAILS(moe_place_options_check(&options), MOE_E_MISUSE, "--placement-every");
    setup();
    options.window = 0;
    FAILS(moe_place_options_check(&options), MOE_E_MISUSE, "--placement-window");
    setup();
    options.drift = NAN;
    FAILS(moe_place_options_check(&options), MOE_E_MISUSE, "--placement-drift");
    setup();
    options.hysteresis = -1;
    FAILS(moe_place_options_check(&options), MOE_E_MISUSE, "--placement-hysteresis");
    setup();
    options.staging_bytes = 0;
    FAILS(moe_place_options_check(&options), MOE_E_MISUSE, "--placement-staging");
    setup();
    options.program = "x";
    FAILS(moe_place_options_check(&options), MOE_E_MISUSE, "--placement-program");
}
END_TEST

/* ---- the log ---- */

static char run[600];

static MoeLog *open_log(int64_t last_step) {
    MoeLog *l;
    OK(moe_log_open(run, true, 3, last_step, &l));
    return l;
}

static void write_step(MoeLog *l, int64_t step) {
    static const int layers[] = {1, 4};
    double imbalance[2] = {1, 1};
    int32_t load[2 * 2 * 3];
    MoeLogRecord r = {
        .step = step, .imbalance = imbalance, .expert_imbalance = imbalance, .n_layers = 2};
    for (int i = 0; i < 12; i++)
        load[i] = (int32_t)(100 * step + i);
    OK(moe_log_step(l, &r, load, layers, 2));
}

START_TEST(test_log) {
    static const int layers[] = {1, 4};
    int32_t out[4 * 24];
    bool there[4];
    snprintf(run, sizeof run, "%s/run", moe_test_dir());
    OK(moe_dir_remove(run));
    OK(moe_dir_make(run));
    ck_assert(!moe_trace_steps(run, layers, 2, 2, 3, 1, 4, out, there));
    MoeLog *l = open_log(0);
    ck_assert(!moe_trace_steps(run, layers, 2, 2, 3, 1, 4, out, there)); /* a header alone */
    for (int64_t step = 1; step <= 9; step++) {
        char line[64];
        write_step(l, step);
        int n = snprintf(line, sizeof line, "{\"step\": %d, \"event\": \"x\"}\n", (int)step + 1);
        OK(moe_log_placement(l, line, (size_t)n));
    }
    OK(moe_log_sync(l));
    moe_log_close(l);
    memset(out, 0, sizeof out);
    ck_assert(moe_trace_steps(run, layers, 2, 2, 3, 7, 10, out, there));
    ck_assert(there[0] && there[1] && there[2] && !there[3]);
    for (int i = 0; i < 36; i++)
        ck_assert_int_eq(out[i], 100 * (7 + i / 12) + i % 12);
    ck_assert(!moe_trace_steps(run, (int[]){1, 5}, 2, 2, 3, 7, 9, out, there)); /* other layers */
    ck_assert(!moe_trace_steps(run, layers, 2, 4, 3, 7, 9, out, there));        /* more shards */
    ck_assert(moe_trace_steps(run, layers, 2, 2, 3, 1, 1, out, there) && out[0] == 100);
    moe_log_close(open_log(5)); /* cut back: what was decided before step 6 is decided again */
    char *path = moe_path_join(run, "placement.jsonl"), *text;
    size_t n;
    OK(moe_file_read(path, 1 << 20, &text, &n));
    ck_assert(strstr(text, "{\"step\": 5,") && !strstr(text, "{\"step\": 6,"));
    free(text);
    free(path);
}
END_TEST

int main(void) {
    Suite *s = suite_create("place_online");
    TCase *c = tcase_create("online");
    tcase_add_checked_fixture(c, setup, NULL);
    tcase_add_test(c, test_change);
    tcase_add_test(c, test_too_dear);
    tcase_add_test(c, test_failure);
    tcase_add_test(c, test_static);
    tcase_add_test(c, test_options);
    tcase_add_test(c, test_log);
    suite_add_tcase(s, c);
    return moe_check_main(s);
}
