/* Cluster files with measured rates: written and read back, looked up, and everything that may be wrong with them. (Files by hand:
 * emulate.c.) */
#include <check.h>
#include <math.h>
#include <string.h>
#include "base/str.h"
#include "placement/cluster.h"
#include "tests/support/check_main.h"
#include "tests/support/mesh.h"
#include "tests/support/status_checks.h"

static MoeStatus parse(const char *text, MoeCluster *out) {
    return moe_cluster_parse(text, strlen(text), "c.json", out);
}

START_TEST(test_round_trip) {
    MoeCluster c = {.nodes = 2, .ranks_per_node = 2, .links = {{1e-6, 5e9}, {2e-5, 1e9}}, .by_cores = _i}, back;
    c.rates.threads = 3;
    c.rates.tables[MOE_RATE_gemm] = (MoeRateTable){2, {{1e6, 1e10}, {1e8, 1e11}}};
    c.rates.tables[MOE_RATE_row] = (MoeRateTable){1, {{1e6, 3e10}}};
    json_t *o = moe_cluster_json(&c);
    MoeStr text = {0};
    moe_json_dump(o, &text);
    json_decref(o);
    OK(parse(moe_str_c(&text), &back));
    ck_assert(!memcmp(&back.rates, &c.rates, sizeof c.rates) && !memcmp(back.links, c.links, sizeof c.links));
    ck_assert(back.by_cores == c.by_cores && back.nodes == 2 && back.ranks_per_node == 2 && !moe_cluster_predicts(&back));
    moe_str_free(&text);
}
END_TEST

START_TEST(test_looked_up) {
    MoeRates r = {.threads = 1};
    r.tables[MOE_RATE_gemm] = (MoeRateTable){2, {{1e6, 1e10}, {1e8, 1e12}}};
    r.tables[MOE_RATE_row] = (MoeRateTable){1, {{1e6, 3e10}}};
    ck_assert(fabs(moe_rates_seconds(&r, MOE_RATE_gemm, 1e6) - 1e-4) < 1e-12);
    ck_assert(fabs(moe_rates_seconds(&r, MOE_RATE_gemm, 1e7) - 1e-4) < 1e-12); /* the rate's geometric mean: 1e11 */
    ck_assert(fabs(moe_rates_seconds(&r, MOE_RATE_gemm, 1e9) - 1e-3) < 1e-12); /* beyond the last: its rate */
    ck_assert(fabs(moe_rates_seconds(&r, MOE_RATE_gemm, 1e4) - 1e-6) < 1e-12);
    ck_assert(moe_rates_seconds(&r, MOE_RATE_gemm, 0) == 0);
    /* a kind that was not measured: its f32 twin's rate, else that of rows */
    ck_assert(moe_rates_seconds(&r, MOE_RATE_gemm_bf16, 1e6) == moe_rates_seconds(&r, MOE_RATE_gemm, 1e6));
    ck_assert(moe_rates_seconds(&r, MOE_RATE_update, 3e10) == 1);
    ck_assert(moe_rates_seconds(&r, MOE_RATE_pack, 3e10) == 0); /* measured with the products, then */
    ck_assert(moe_rates_seconds(&r, MOE_RATE_copy, 3e10) == 0);
    for (int i = 0; i < MOE_N_RATES; i++) { /* twins stand behind each other */
        const char *name = moe_rate_name((MoeRateName)i), *end = strstr(name, "_bf16");
        if (end)
            ck_assert(!strncmp(name, moe_rate_name((MoeRateName)(i - 1)), (size_t)(end - name)));
    }
}
END_TEST

#define HEAD "{\"format_version\": 1, \"nodes\": 1, \"ranks_per_node\": 1"
#define ROW  "\"row\": [[1, 1]]"
static const struct {
    const char *text, *says;
} wrong[] = {
    {HEAD ", \"rates\": {\"threads\": 1, \"gem\": [[1, 1]]}}", "did you mean \"gemm\""},
    {HEAD ", \"rates\": {\"gemm\": [[1, 1]], " ROW "}}", "threads"},
    {HEAD ", \"rates\": {\"threads\": 0, \"gemm\": [[1, 1]], " ROW "}}", "\"threads\" is 0"},
    {HEAD ", \"rates\": {\"threads\": 1, " ROW "}}", "\"gemm\" and \"row\""},
    {HEAD ", \"rates\": {\"threads\": 1, \"gemm\": [], " ROW "}}", "\"gemm\": expected a list"},
    {HEAD ", \"rates\": {\"threads\": 1, \"gemm\": [[1, -1]], " ROW "}}", "\"gemm\"[0]"},
    {HEAD ", \"rates\": {\"threads\": 1, \"gemm\": [[1, 1], [1, 2]], " ROW "}}", "\"gemm\"[1]: size 1 is not above"},
    {HEAD ", \"rates\": {\"threads\": 1, \"gemm\": [[1, 1, 1]], " ROW "}}", "\"gemm\"[0]"},
    {HEAD ", \"flops\": 1, \"rates\": {\"threads\": 1, \"gemm\": [[1, 1]], " ROW "}}", "give either"},
    {HEAD ", \"rates\": 3}", "rates"},
    {"{\"format_version\": 1, \"nodes\": 0, \"ranks_per_node\": 1}", "\"nodes\" is 0"},
    {"{\"format_version\": 1, \"nodes\": 1, \"ranks_per_node\": 2}", "intra"},
    {"{\"format_version\": 1, \"nodes\": 1, \"ranks_per_node\": 2, \"intra\": {\"latency\": 0, \"bandwidth\": 0}}", "\"bandwidth\" is 0"},
    {"{\"format_version\": 1, \"nodes\": 1, \"ranks_per_node\": 2, \"intra\": {\"latency\": -1, \"bandwidth\": 1}}", "\"latency\" is -1"},
    {"{\"format_version\": 1, \"nodes\": 1, \"ranks_per_node\": 2, \"intra\": {\"latency\": NaN, \"bandwidth\": 1}}", "c.json"},
    {HEAD ", \"intra\": {\"latency\": 0, \"bandwidth\": 1, \"by_cores\": 1}}", "by_cores"},
    {HEAD ", \"inter\": {\"latency\": 0, \"bandwidth\": 1, \"by_cores\": true}}", "inter: unknown key \"by_cores\""},
    {"{\"format_version\": 1, \"nodes\": 1, \"ranks_per_node\": 2, \"intra\": {\"latency\": 1, \"speed\": 1}}", "speed"},
};

START_TEST(test_wrong) {
    MoeCluster c;
    FAILS(parse(wrong[_i].text, &c), MOE_E_INPUT, "c.json", wrong[_i].says);
}
END_TEST

START_TEST(test_groups) { /* the cluster of an EP group's ranks, which are tp apart */
    const MoeCluster c = {.nodes = 2, .ranks_per_node = 4};
    const struct {
        MoeMesh mesh;
        int nodes, per;
    } cases[] = {{MESH(1, 1, 8, 1, 1), 2, 4}, {MESH(2, 1, 4, 1, 1), 1, 4}, {MESH(1, 1, 4, 2, 1), 2, 2}, {MESH(1, 1, 2, 4, 1), 2, 1}, {MESH(1, 4, 2, 1, 1), 1, 2}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        MoeCluster g = moe_cluster_of_group(&c, &cases[i].mesh);
        ck_assert_msg(g.nodes == cases[i].nodes && g.ranks_per_node == cases[i].per, "case %zu: %d x %d", i, g.nodes, g.ranks_per_node);
    }
}
END_TEST

int main(void) {
    Suite *s = suite_create("cluster");
    TCase *c = tcase_create("cluster");
    tcase_add_loop_test(c, test_round_trip, 0, 2);
    tcase_add_test(c, test_looked_up);
    tcase_add_loop_test(c, test_wrong, 0, (int)(sizeof wrong / sizeof *wrong));
    tcase_add_test(c, test_groups);
    suite_add_tcase(s, c);
    return moe_check_main(s);
}
