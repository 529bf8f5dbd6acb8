/* Strategies: what --ranks and the degrees come to, what does not divide, and files that say the same. */
#include <check.h>
#include <stdio.h>
#include <string.h>
#include "cli/strategy.h"
#include "tests/support/check_main.h"
#include "tests/support/files.h"
#include "tests/support/mesh.h"

static void ok(MoeStatus st) {
    ck_assert_msg(!st, "%s", moe_status_message(st));
}

static void fails(MoeStatus st, MoeCode code, const char *part) {
    ck_assert_msg(st, "expected an error with \"%s\"", part);
    ck_assert_msg(moe_status_code(st) == code && strstr(moe_status_message(st), part), "%s",
                  moe_status_message(st));
    moe_status_free(st);
}

/* given: ranks, ep, shard, tp, dense_shard; experts; then dp, shard, ep, tp, dense_shard. */
static const struct {
    MoeStrategy given;
    int64_t experts;
    MoeMesh mesh;
    const char *text;
} resolved[] = {
    {{0}, 8, MESH(1, 1, 1, 1, 1), "1 rank"},
    {{.ranks = 4}, 8, MESH(1, 1, 4, 1, 1), "4 ranks: expert parallel 4"},
    {{.ranks = 16}, 8, MESH(1, 2, 8, 1, 2), "16 ranks: shard 2 x expert parallel 8"},
    {{.ranks = 8}, 5, MESH(1, 2, 4, 1, 2), "8 ranks: shard 2 x expert parallel 4"},
    {{.ranks = 12}, 8, MESH(1, 3, 4, 1, 3), "12 ranks: shard 3 x expert parallel 4"},
    {{.ranks = 4}, 0, MESH(1, 4, 1, 1, 4), "4 ranks: shard 4"},
    {{.ranks = 8, .ep = 2}, 8, MESH(4, 1, 2, 1, 1), "8 ranks: data parallel 4 x expert parallel 2"},
    {{.ranks = 8, .ep = 2, .shard = 2},
     8,
     MESH(2, 2, 2, 1, 2),
     "8 ranks: data parallel 2 x shard 2 x expert parallel 2"},
    {{.ranks = 8, .ep = 4, .tp = 2, .dense_shard = 4},
     8,
     MESH(1, 1, 4, 2, 4),
     "8 ranks: expert parallel 4 x tensor parallel 2, tensors that are no expert's over 4"},
    {{.ranks = 2, .tp = 2}, 0, MESH(1, 1, 1, 2, 1), "2 ranks: tensor parallel 2"},
    {{.ranks = 4, .shard = 2}, 0, MESH(2, 2, 1, 1, 2), "4 ranks: data parallel 2 x shard 2"},
    {{.ranks = 8, .ep = 8, .n_layers = 2, .layers = {{0, 1, 2, 4}, {3, 3, 4, 0}}},
     8,
     MESH_RANGES(1, 1, 8, 1, 1, 2, {0, 1, 1, 4, 2}, {3, 3, 2, 1, 4}),
     "8 ranks: expert parallel 8; experts of layers 0-1: shard 4 x expert parallel 2; experts of "
     "layers 3-3: data parallel 2 x expert parallel 4"},
};

START_TEST(test_resolve) {
    MoeMesh m;
    MoeStr text = {0};
    ok(moe_strategy_resolve(&resolved[_i].given, resolved[_i].experts, &m));
    ck_assert_msg(memcmp(&m, &resolved[_i].mesh, sizeof m) == 0,
                  "case %d: dp %d shard %d ep %d tp %d dense %d", _i, m.dp, m.shard, m.ep, m.tp,
                  m.dense_shard);
    moe_strategy_text(&m, &text);
    ck_assert_str_eq(moe_str_c(&text), resolved[_i].text);
    moe_str_free(&text);
    MoeStrategy again = moe_strategy_of_mesh(&m); /* says all of it */
    MoeMesh twice;
    ok(moe_strategy_resolve(&again, resolved[_i].experts, &twice));
    ck_assert(memcmp(&m, &twice, sizeof m) == 0);
}
END_TEST

START_TEST(test_refused) {
    MoeMesh m;
    MoeStrategy a = {.ranks = 6, .shard = 4}, b = {.ep = 2}, c = {.ranks = 4, .ep = 2, .tp = 4};
    fails(moe_strategy_resolve(&a, 8, &m), MOE_E_MISUSE,
          "6 ranks cannot be divided by 4 (hybrid shard degree 4 x expert parallel degree 1 x "
          "tensor parallel degree 1)");
    fails(moe_strategy_resolve(&b, 8, &m), MOE_E_MISUSE, "--ranks N says how many there are");
    fails(moe_strategy_resolve(&c, 8, &m), MOE_E_MISUSE, "4 ranks cannot be divided by 8");
    b.ranks = 2;
    fails(moe_strategy_resolve(&b, 0, &m), MOE_E_MISUSE, "the model has no experts");
}
END_TEST

static const char *file(const char *name, const char *text) {
    return moe_test_file(name, text, strlen(text));
}

START_TEST(test_file) {
    MoeStrategy s = {0};
    ok(moe_strategy_load(file("a.json", "{\"ranks\": 8, \"expert_parallel_degree\": 2, "
                                        "\"hybrid_shard_degree\": 2, \"dense_shard_degree\": 4}"),
                         &s));
    ck_assert(s.ranks == 8 && s.ep == 2 && s.shard == 2 && s.tp == 0 && s.dense_shard == 4);
    fails(moe_strategy_load(file("b.json", "{\"expert_paralel_degree\": 2}"), &s), MOE_E_INPUT,
          "did you mean \"expert_parallel_degree\"?");
    fails(moe_strategy_load(file("c.json", "{\"ranks\": 0}"), &s), MOE_E_INPUT,
          "\"ranks\" is 0; expected 1 to 4096");
    fails(moe_strategy_load(file("d.json", "{\"ranks\": \"two\"}"), &s), MOE_E_INPUT, "ranks");
    fails(moe_strategy_load(file("e.json", "[]"), &s), MOE_E_INPUT, "expected a JSON object");
    fails(moe_strategy_load(file("f.json", "{\"xyzzy\": 1}"), &s), MOE_E_INPUT,
          "the keys are ranks, expert_parallel_degree");
}
END_TEST

static void refused(const char *layers, int64_t experts, MoeCode code, const char *part) {
    char text[512];
    MoeStrategy s = {0};
    MoeMesh m;
    snprintf(text, sizeof text, "{\"ranks\": 16, \"expert_parallel_degree\": 8, "
                                "\"tensor_parallel_degree\": 2, \"layers\": %s}",
             layers);
    MoeStatus st = moe_strategy_load(file("layers.json", text), &s);
    fails(st ? st : moe_strategy_resolve(&s, experts, &m), code, part);
}

/* Ranges of layers: sorted; what is wrong names the range and its numbers. */
START_TEST(test_layers) {
    MoeStrategy s = {0};
    ok(moe_strategy_load(
        file("h.json", "{\"ranks\": 8, \"expert_parallel_degree\": 8, \"layers\": ["
                       "{\"first\": 4, \"last\": 4, \"hybrid_shard_degree\": 8}, "
                       "{\"first\": 0, \"last\": 3, \"expert_parallel_degree\": 2, "
                       "\"hybrid_shard_degree\": 4}]}"),
        &s));
    ck_assert(s.n_layers == 2 && s.layers[0].first == 0 && s.layers[0].last == 3 &&
              s.layers[0].ep == 2 && s.layers[0].shard == 4);
    ck_assert(s.layers[1].first == 4 && s.layers[1].ep == 0 && s.layers[1].shard == 8);
    refused("[{\"first\": 0, \"last\": 3}, {\"first\": 3, \"last\": 5}]", 8, MOE_E_MISUSE,
            "layers 0 to 3 and layers 3 to 5 overlap");
    refused("[{\"first\": 1, \"last\": 2, \"expert_parallel_degree\": 2, "
            "\"hybrid_shard_degree\": 8}]",
            8, MOE_E_MISUSE,
            "layers 1 to 2: the 8 data ranks cannot be divided by 16 (hybrid shard degree 8 x "
            "expert parallel degree 2)");
    refused("[{\"first\": 0, \"last\": 0, \"expert_parallel_degree\": 3}]", 8, MOE_E_MISUSE,
            "cannot be divided by 3");
    refused("[{\"first\": 2, \"last\": 1}]", 8, MOE_E_INPUT,
            "layers[0]: ");
    refused("[{\"first\": 0, \"last\": 1, \"expert_paralel_degree\": 2}]", 8, MOE_E_INPUT,
            "did you mean \"expert_parallel_degree\"?");
    refused("[{\"last\": 1}]", 8, MOE_E_INPUT, "first");
    refused("[{\"first\": 0, \"last\": 1, \"hybrid_shard_degree\": 0}]", 8, MOE_E_INPUT,
            "\"hybrid_shard_degree\" is 0; expected 1 to 4096");
    refused("[7]", 8, MOE_E_INPUT, "layers[0]: ");
    refused("{}", 8, MOE_E_INPUT, "expected a list of at most 15 ranges");
    s = (MoeStrategy){.ranks = 2, .n_layers = 1, .layers = {{0, 1, 2, 1}}};
    MoeMesh m;
    fails(moe_strategy_resolve(&s, 0, &m), MOE_E_MISUSE, "layers 0 to 1: the model has no experts");
}
END_TEST

/* Flags go over the file. */
START_TEST(test_options) {
    const char *path = file("g.json", "{\"ranks\": 8, \"expert_parallel_degree\": 2}");
    char flag[4096];
    snprintf(flag, sizeof flag, "--strategy=%s", path);
    char *argv[] = {"model", flag, "--expert-parallel-degree=4", "--tensor-parallel-degree",
                    "2",     NULL};
    MoeOptions o;
    MoeStrategy s;
    ok(moe_options_parse("compile", 5, argv, &o));
    ok(moe_strategy_from_options(&o, &s));
    ck_assert(s.ranks == 8 && s.ep == 4 && s.tp == 2 && s.shard == 0 && s.dense_shard == 0);
    moe_options_free(&o);
    char *bad[] = {"model", "--ranks=5000", NULL};
    ok(moe_options_parse("compile", 2, bad, &o));
    fails(moe_strategy_from_options(&o, &s), MOE_E_MISUSE, "--ranks 5000: expected 1 to 4096");
    moe_options_free(&o);
}
END_TEST

int main(void) {
    Suite *s = suite_create("strategy");
    TCase *t = tcase_create("strategy");
    tcase_add_loop_test(t, test_resolve, 0, (int)(sizeof resolved / sizeof resolved[0]));
    tcase_add_test(t, test_refused);
    tcase_add_test(t, test_file);
    tcase_add_test(t, test_layers);
    tcase_add_test(t, test_options);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
