/* placement/synthetic.h: totals, repeatability, and that each kind has the trait that it is named for. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "placement/synthetic.h"
#include "tests/support/check_main.h"
#include "tests/support/status_checks.h"

static MoeArena *arena;
static MoeLoad load;
static MoeSyntheticSizes sizes;

static void setup(void) {
    arena = moe_arena_create();
    sizes = (MoeSyntheticSizes){.experts = 64,
                                .layers = 2,
                                .steps = 120,
                                .sources = 4,
                                .top_k = 2,
                                .tokens = 8192,
                                .seed = 1};
}
static void teardown(void) {
    moe_arena_destroy(arena);
}

/* Rows of an expert over the mean, all sources together, steps [from, to). */
static double part(int layer, int e, int from, int to) {
    int64_t mine = 0, all = 0;
    for (int t = from; t < to; t++)
        for (int i = 0; i < load.sources * load.experts; i++) {
            int32_t c = moe_load_at(&load, t, layer)[i];
            all += c;
            mine += i % load.experts == e ? c : 0;
        }
    return (double)mine * load.experts / (double)all;
}

static int hottest(int layer, int from, int to) {
    int best = 0;
    for (int e = 1; e < load.experts; e++)
        best = part(layer, e, from, to) > part(layer, best, from, to) ? e : best;
    return best;
}

START_TEST(test_totals) {
    const char *all[] = {"uniform",  "zipf", "zipf:3",   "drift", "drift:4", "bursts",
                         "switch:7", "hot",  "hot:1000", "hot:1", "zipf:0"};
    const struct {
        int experts, sources, top_k;
        int64_t tokens;
    } odd[] = {{64, 4, 2, 8192}, {1, 1, 1, 1},       {3, 5, 3, 7},
               {7, 3, 6, 100},   {256, 64, 8, 1000}, {5, 8, 1, 3}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        for (size_t k = 0; k < sizeof odd / sizeof *odd; k++) {
            MoeSyntheticSizes n = sizes;
            n.experts = odd[k].experts;
            n.sources = odd[k].sources;
            n.top_k = odd[k].top_k;
            n.tokens = odd[k].tokens;
            n.steps = 9;
            OK(moe_synthetic_make(all[i], &n, arena, &load));
            for (int t = 0; t < load.steps; t++)
                for (int l = 0; l < load.layers; l++) {
                    const int32_t *c = moe_load_at(&load, t, l);
                    int64_t total = 0;
                    for (int s = 0; s < load.sources; s++) {
                        int64_t tokens = n.tokens * (s + 1) / n.sources - n.tokens * s / n.sources,
                                rows = 0;
                        for (int e = 0; e < load.experts; e++) {
                            int32_t x = c[s * load.experts + e];
                            ck_assert_msg(x >= 0 && x <= tokens,
                                          "%s: expert %d has %d of %lld tokens", all[i], e, x,
                                          (long long)tokens);
                            rows += x;
                        }
                        ck_assert_int_eq(rows, tokens * n.top_k);
                        total += rows;
                    }
                    ck_assert_int_eq(total, n.tokens * n.top_k);
                }
        }
}
END_TEST

START_TEST(test_repeatable) {
    const char *all[] = {"uniform", "zipf", "drift", "bursts", "switch", "hot"};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        MoeLoad again, other;
        size_t bytes =
            sizeof(int32_t) * (size_t)(sizes.steps * sizes.layers * sizes.sources * sizes.experts);
        MoeSyntheticSizes n = sizes;
        OK(moe_synthetic_make(all[i], &sizes, arena, &load));
        OK(moe_synthetic_make(all[i], &sizes, arena, &again));
        n.seed = 2;
        OK(moe_synthetic_make(all[i], &n, arena, &other));
        ck_assert(memcmp(load.counts, again.counts, bytes) == 0);
        ck_assert(memcmp(load.counts, other.counts, bytes) != 0);
        /* layers are not alike, nor are sources */
        const int32_t *a = moe_load_at(&load, 5, 0), *b = moe_load_at(&load, 5, 1);
        ck_assert(memcmp(a, b, sizeof *a * (size_t)sizes.experts) != 0);
        ck_assert(memcmp(a, a + sizes.experts, sizeof *a * (size_t)sizes.experts) != 0);
    }
}
END_TEST

START_TEST(test_traits) {
    OK(moe_synthetic_make("uniform", &sizes, arena, &load));
    ck_assert_double_lt(part(0, hottest(0, 0, 120), 0, 120), 1.3);
    OK(moe_synthetic_make("zipf", &sizes, arena, &load));
    double first = part(0, hottest(0, 0, 120), 0, 120); /* 64 / H(64) = 13.5 */
    ck_assert_double_gt(first, 11);
    ck_assert_double_lt(first, 16);
    ck_assert_int_eq(hottest(0, 0, 20), hottest(0, 100, 120));
    OK(moe_synthetic_make("hot:5", &sizes, arena, &load));
    ck_assert_double_eq_tol(part(1, hottest(1, 0, 120), 0, 120), 5, 0.6);
    OK(moe_synthetic_make("switch:20", &sizes, arena, &load));
    int changed = 0;
    for (int t = 20; t < 120; t += 20) {
        ck_assert_int_eq(hottest(0, t - 20, t - 10), hottest(0, t - 10, t));
        changed += hottest(0, t - 20, t) != hottest(0, t, t + 20);
    }
    ck_assert_int_ge(changed, 4);
    /* drifts: near steps are alike, far ones are not */
    sizes.steps = 400;
    OK(moe_synthetic_make("drift", &sizes, arena, &load));
    double near = 0, far = 0;
    for (int e = 0; e < 64; e++) {
        near += abs((int)(100 * (part(0, e, 0, 3) - part(0, e, 3, 6))));
        far += abs((int)(100 * (part(0, e, 0, 3) - part(0, e, 390, 393))));
    }
    ck_assert_double_lt(near * 3, far);
    /* bursts: some expert is far above its usual load for a few steps */
    OK(moe_synthetic_make("bursts:10", &sizes, arena, &load));
    int seen = 0;
    for (int e = 0; e < 64; e++) {
        double usual = part(0, e, 0, 400);
        for (int t = 0; t + 4 <= 400; t += 4)
            if (part(0, e, t, t + 4) > 4 * usual) {
                seen++;
                break;
            }
    }
    ck_assert_int_gt(seen, 32);
}
END_TEST

START_TEST(test_bad) {
    FAILS(moe_synthetic_make("zipff", &sizes, arena, &load), MOE_E_MISUSE, "zipff", "zipf[:1]",
          "switch[:50]");
    FAILS(moe_synthetic_make("", &sizes, arena, &load), MOE_E_MISUSE, "unknown");
    FAILS(moe_synthetic_make("zipf:", &sizes, arena, &load), MOE_E_MISUSE, "zipf:", "number");
    FAILS(moe_synthetic_make("zipf:-1", &sizes, arena, &load), MOE_E_MISUSE, "zipf:-1");
    FAILS(moe_synthetic_make("switch:0", &sizes, arena, &load), MOE_E_MISUSE, "switch:0", "from 1");
    FAILS(moe_synthetic_make("uniform:2", &sizes, arena, &load), MOE_E_MISUSE, "uniform:2",
          "no parameter");
    MoeSyntheticSizes n = sizes;
    n.top_k = 65;
    FAILS(moe_synthetic_make("zipf", &n, arena, &load), MOE_E_MISUSE, "65 top_k", "1 to 64");
    n = sizes;
    n.steps = 0;
    FAILS(moe_synthetic_make("zipf", &n, arena, &load), MOE_E_MISUSE, "0 steps");
    n = sizes;
    n.steps = 1 << 20;
    n.layers = 1 << 10;
    FAILS(moe_synthetic_make("zipf", &n, arena, &load), MOE_E_MISUSE, "counts");
    n = sizes;
    n.tokens = 1 << 28;
    n.top_k = 32;
    FAILS(moe_synthetic_make("zipf", &n, arena, &load), MOE_E_MISUSE, "268435456 tokens");
}
END_TEST

int main(void) {
    Suite *s = suite_create("synthetic");
    TCase *t = tcase_create("all");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_set_timeout(t, 60);
    tcase_add_test(t, test_totals);
    tcase_add_test(t, test_repeatable);
    tcase_add_test(t, test_traits);
    tcase_add_test(t, test_bad);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
