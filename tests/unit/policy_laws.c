/* What holds for every placement policy, on random small layers: answers are maps, and the same each time; none is better than optimal,
 * which is the best of all maps. MOE_POLICIES_CASES multiplies the random cases. */
#include <check.h>
#include <stdlib.h>
#include <string.h>
#include "base/rng.h"
#include "base/split_flow.h"
#include "placement/policy.h"
#include "tests/support/check_main.h"
#include "tests/support/status_checks.h"

static MoeArena *arena;

static void setup(void) {
    arena = moe_arena_create();
}

static void teardown(void) {
    moe_arena_destroy(arena);
}

static void ok(MoeStatus st) {
    CHECK_EACH(!st, "%s", moe_status_message(st));
}

static uint64_t counter;

static int below(int n) {
    return (int)moe_rng_below(5, 9, counter++, (uint64_t)n);
}

static bool is_program(const MoePolicy *p) {
    return !strcmp(p->name, "program");
}

typedef struct {
    MoePolicySetup s;
    MoePlaceCost cost;
    int32_t *loads, *totals;
    const int32_t **ask_loads, **ask_totals;
    MoePlaceMap now, out, other;
    MoePolicyAsk ask;
} Case;

/* A small layer with loads of a few steps: skewed, some experts idle, now and then no load at all. */
static void make_case(Case *c, int experts, int ranks, int extra) {
    int steps = 1 + below(7), sources = 1 + below(3), nodes = ranks % 2 == 0 && below(2) ? 2 : 1,
        skew = 1 + below(9);
    MoeCluster cl = {.nodes = nodes,
                     .ranks_per_node = ranks / nodes,
                     .links = {{1e-6, 1e11}, {1e-5, 1e10}},
                     .flops = 1e13};
    *c = (Case){.cost = moe_place_cost_of(
                    &cl, &(MoePlaceModel){1 + below(4096), 1 + below(4096), 2, 2, 2})};
    c->s = (MoePolicySetup){.layers = 1,
                            .experts = experts,
                            .ranks = ranks,
                            .slots = (experts + ranks - 1) / ranks + extra,
                            .groups = 1,
                            .sources = sources,
                            .grain = 1,
                            .every = 10,
                            .window = 7,
                            .seed = (uint64_t)below(3),
                            .cost = &c->cost};
    c->loads = MOE_NEW_N(arena, int32_t, steps * experts * sources);
    c->totals = MOE_NEW_N(arena, int32_t, steps * experts);
    c->ask_loads = MOE_NEW_N(arena, const int32_t *, steps);
    c->ask_totals = MOE_NEW_N(arena, const int32_t *, steps);
    for (int e = 0; e < experts; e++) {
        int most = below(20) == 0 ? 0 : below(3) ? 20 : 20 * skew;
        for (int i = 0; i < steps; i++)
            for (int v = 0; v < sources; v++) {
                int n = below(most + 1);
                c->loads[(i * experts + e) * sources + v] = n;
                c->totals[i * experts + e] += n;
            }
    }
    for (int i = 0; i < steps; i++) {
        c->ask_loads[i] = c->loads + i * experts * sources;
        c->ask_totals[i] = c->totals + i * experts;
    }
    ok(moe_place_map_create(experts, ranks, c->s.slots, arena, &c->now));
    ok(moe_place_map_create(experts, ranks, c->s.slots, arena, &c->out));
    ok(moe_place_map_create(experts, ranks, c->s.slots, arena, &c->other));
    c->ask = (MoePolicyAsk){100, 0, &c->now, c->ask_loads, c->ask_totals, steps};
}

static void propose(const MoePolicy *p, void *state, const Case *c, MoePlaceMap *out) {
    moe_place_map_copy(out, &c->now);
    ok(p->propose(p->create ? state : (void *)&c->s, &c->ask, out));
    MoeStatus st = moe_place_map_check(out, 0, p->name);
    CHECK_EACH(!st, "%s", moe_status_message(st));
}

static int64_t level(const Case *c, const MoePlaceMap *m, const int32_t *rows) {
    MoeFlow f;
    moe_flow_init(
        &f, c->s.experts, c->s.ranks, c->s.slots,
        moe_arena_alloc(arena, (size_t)moe_flow_scratch(c->s.experts, c->s.ranks, c->s.slots)));
    moe_flow_divide(&f, m->expert, rows, 1);
    return f.level;
}

/* Answers are maps, and the same from another state of the policy; each is the next question's map of now. */
START_TEST(answers_are_maps) {
    const char *times = getenv("MOE_POLICIES_CASES");
    int n = 6000 * (times ? atoi(times) : 1);
    for (int i = 0; i < n; i++) {
        Case c;
        make_case(&c, 1 + below(12), 1 + below(8), below(3));
        for (size_t k = 0; k < moe_policy_count(); k++) {
            const MoePolicy *p = moe_policy_at(k);
            void *state = NULL, *twin = NULL;
            if (is_program(p) || !strcmp(p->name, "optimal"))
                continue;
            if (p->create) {
                ok(p->create(&c.s, &state));
                ok(p->create(&c.s, &twin));
            }
            for (int again = 0; again < 8; again++) {
                propose(p, state, &c, &c.out);
                propose(p, twin, &c, &c.other);
                CHECK_EACH(moe_place_map_equal(&c.out, &c.other), "%s gives two answers", p->name);
                moe_place_map_copy(&c.now, &c.out);
                c.ask.step++;
            }
            if (p->destroy) {
                p->destroy(state);
                p->destroy(twin);
            }
        }
        if (i % 100 == 0) {
            moe_arena_destroy(arena);
            arena = moe_arena_create();
        }
    }
}
END_TEST

/* No policy's map is better for the loads shown than the optimal one, which is the best of all there are. */
START_TEST(optimal_bounds_all) {
    const MoePolicy *optimal;
    ok(moe_policy_find("optimal", &optimal));
    for (int i = 0; i < 400; i++) {
        Case c;
        void *state;
        make_case(&c, 1 + below(6), 1 + below(4), below(2));
        if (optimal->create(&c.s, &state))
            continue;
        int32_t rows[6] = {0};
        for (int k = 0; k < c.ask.n_loads; k++)
            for (int e = 0; e < c.s.experts; e++)
                rows[e] += c.totals[k * c.s.experts + e];
        propose(optimal, state, &c, &c.out);
        optimal->destroy(state);
        int64_t best = level(&c, &c.out, rows);
        HOLD(best <= level(&c, &c.now, rows));
        for (size_t k = 0; k < moe_policy_count(); k++) {
            const MoePolicy *p = moe_policy_at(k);
            if (is_program(p) || p == optimal)
                continue;
            if (p->create)
                ok(p->create(&c.s, &state));
            propose(p, state, &c, &c.other);
            CHECK_EACH(best <= level(&c, &c.other, rows), "%s is better than optimal", p->name);
            if (p->destroy)
                p->destroy(state);
        }
    }
}
END_TEST

/* By trying really all: each expert on each set of ranks. */
static int64_t best_of_all(Case *c, int e, const int32_t *rows) {
    if (e == c->s.experts)
        return level(c, &c->other, rows);
    int64_t best = INT64_MAX;
    for (int set = 1; set < 1 << c->s.ranks; set++) {
        int at[4], fits = 1;
        for (int r = 0; r < c->s.ranks; r++) {
            at[r] = -1;
            for (int g = r * c->s.slots; g < (r + 1) * c->s.slots && at[r] < 0; g++)
                at[r] = c->other.expert[g] < 0 ? g : -1;
            fits = fits && (!(set >> r & 1) || at[r] >= 0);
        }
        if (!fits)
            continue;
        for (int r = 0; r < c->s.ranks; r++)
            if (set >> r & 1)
                c->other.expert[at[r]] = e;
        int64_t one = best_of_all(c, e + 1, rows);
        best = one < best ? one : best;
        for (int r = 0; r < c->s.ranks; r++)
            if (set >> r & 1)
                c->other.expert[at[r]] = -1;
    }
    return best;
}

START_TEST(optimal_is_optimal) {
    const MoePolicy *optimal;
    ok(moe_policy_find("optimal", &optimal));
    for (int i = 0; i < 150; i++) {
        Case c;
        void *state;
        make_case(&c, 1 + below(4), 1 + below(3), below(2));
        ok(optimal->create(&c.s, &state));
        int32_t rows[4] = {0};
        for (int k = 0; k < c.ask.n_loads; k++)
            for (int e = 0; e < c.s.experts; e++)
                rows[e] += c.totals[k * c.s.experts + e];
        propose(optimal, state, &c, &c.out);
        optimal->destroy(state);
        moe_policy_clear(&c.other);
        HOLD(level(&c, &c.out, rows) == best_of_all(&c, 0, rows));
        if (i % 10 == 0) {
            moe_arena_destroy(arena);
            arena = moe_arena_create();
        }
    }
}
END_TEST

/* SmartMoE's greedy by hand: 0 to rank 0, 1 to rank 1, 2 to rank 1 (31 < 40), and rank 1 is full. */
START_TEST(smartmoe_is_greedy) {
    const MoePolicy *p;
    ok(moe_policy_find("smartmoe", &p));
    Case c;
    make_case(&c, 4, 2, 0);
    static const int32_t rows[4] = {40, 31, 20, 1};
    c.ask.n_loads = 1;
    c.ask_totals[0] = rows;
    c.now.expert[0] = 0;
    propose(p, NULL, &c, &c.out);
    static const int32_t want[4] = {0, 3, 2, 1}; /* from {0,1},{2,3}: 2 stays in its slot */
    HOLD(memcmp(c.out.expert, want, sizeof want) == 0);
    moe_place_map_copy(&c.now, &c.out);
    propose(p, NULL, &c, &c.out); /* as good: stays */
    HOLD(moe_place_map_equal(&c.now, &c.out));
}
END_TEST

int main(void) {
    Suite *s = suite_create("policy_laws");
    TCase *t = tcase_create("policy_laws");
    tcase_set_timeout(t, 600);
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, answers_are_maps);
    tcase_add_test(t, optimal_bounds_all);
    tcase_add_test(t, optimal_is_optimal);
    tcase_add_test(t, smartmoe_is_greedy);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
