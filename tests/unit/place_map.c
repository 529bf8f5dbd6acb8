/* Maps of experts to slots: what is refused, what differs, and that settling changes as little as possible. */
#include <check.h>
#include <stdlib.h>
#include <string.h>
#include "base/rng.h"
#include "placement/map.h"
#include "tests/support/check_main.h"
#include "tests/support/status_checks.h"

static MoeArena *arena;
static uint64_t counter;

static void setup(void) {
    arena = moe_arena_create();
}
static void teardown(void) {
    moe_arena_destroy(arena);
}
static int below(int n) {
    return (int)moe_rng_below(11, 3, counter++, (uint64_t)n);
}

static MoePlaceMap map_of(int experts, int ranks, int slots) {
    MoePlaceMap m;
    MoeStatus st = moe_place_map_create(experts, ranks, slots, arena, &m);
    CHECK_EACH(!st, "%s", moe_status_message(st));
    return m;
}

/* A valid map at random: primaries anywhere with a free slot, then copies. */
static void shuffle(MoePlaceMap *m) {
    int global = m->ranks * m->slots;
    memset(m->expert, 0xff, sizeof *m->expert * (size_t)global);
    for (int e = 0; e < m->experts; e++) {
        int g = below(global);
        while (m->expert[g] >= 0)
            g = (g + 1) % global;
        m->expert[g] = e;
        m->primary[e] = g;
    }
    for (int g = 0; g < global; g++) {
        int e = below(m->experts), first = g / m->slots * m->slots;
        bool there = m->expert[g] >= 0 || below(3) == 0;
        for (int s = first; s < first + m->slots; s++)
            there = there || m->expert[s] == e;
        if (!there)
            m->expert[g] = e;
    }
    for (int e = 0; e < m->experts; e++) { /* any copy may be the primary */
        int g = below(global);
        if (m->expert[g] == e)
            m->primary[e] = g;
    }
}

START_TEST(the_first_map_is_in_order) {
    MoePlaceMap m = map_of(6, 4, 3);
    int32_t want[] = {0, 1, -1, 2, 3, -1, 4, 5, -1, -1, -1, -1};
    HOLD(memcmp(m.expert, want, sizeof want) == 0);
    HOLD(m.primary[5] == 7);
    HOLD(!moe_place_map_check(&m, 0, "x"));
    MoeStatus st = moe_place_map_create(9, 4, 2, arena, &m);
    HOLD(moe_status_code(st) == MOE_E_MISUSE);
    HOLD(strstr(moe_status_message(st), "3 slots a rank are needed"));
    moe_status_free(st);
}
END_TEST

static void refused(const MoePlaceMap *m, const char *text) {
    MoeStatus st = moe_place_map_check(m, 7, "policy x");
    CHECK_EACH(st && moe_status_code(st) == MOE_E_INPUT, "not refused");
    CHECK_EACH(!strcmp(moe_status_message(st), text), "%s", moe_status_message(st));
    moe_status_free(st);
}

START_TEST(nonsense_is_refused) {
    MoePlaceMap m = map_of(4, 2, 3);
    m.expert[2] = 9;
    refused(&m, "policy x: layer 7: slot 2 of rank 0 holds expert 9: there are 4");
    m.expert[2] = 0;
    refused(&m, "policy x: layer 7: slots 0 and 2 of rank 0 both hold expert 0");
    m.expert[2] = 3;
    m.primary[3] = 5;
    refused(&m,
            "policy x: layer 7: the primary of expert 3 is in slot 2 of rank 1, which holds -1");
    m.primary[3] = 2;
    HOLD(!moe_place_map_check(&m, 7, "policy x"));
    m.primary[3] = -1;
    refused(&m, "policy x: layer 7: the primary of expert 3 is in slot -1: there are 6");
}
END_TEST

START_TEST(what_differs_is_counted) {
    MoePlaceMap a = map_of(4, 2, 3), b = map_of(4, 2, 3);
    HOLD(moe_place_map_equal(&a, &b) && moe_place_map_arrivals(&a, &b) == 0);
    b.expert[2] = 2; /* a copy of 2 on rank 0 */
    HOLD(!moe_place_map_equal(&a, &b));
    HOLD(moe_place_map_arrivals(&a, &b) == 1);
    HOLD(moe_place_map_moves(&a, &b) == 0);
    HOLD(moe_place_map_arrivals(&b, &a) == 0);
    b.primary[2] = 2; /* the primary is now there, the old slot keeps a copy */
    HOLD(moe_place_map_arrivals(&a, &b) == 1);
    HOLD(moe_place_map_moves(&a, &b) == 1);
    moe_place_map_copy(&a, &b);
    HOLD(moe_place_map_equal(&a, &b));
}
END_TEST

static bool holds(const MoePlaceMap *m, int rank, int e) {
    for (int s = 0; s < m->slots; s++)
        if (m->expert[rank * m->slots + s] == e)
            return true;
    return false;
}

START_TEST(settling_keeps_what_it_can) {
    for (int i = 0; i < 40000; i++) {
        int experts = 1 + below(12), ranks = 1 + below(6),
            slots = (experts + ranks - 1) / ranks + below(3);
        MoePlaceMap now = map_of(experts, ranks, slots), want = map_of(experts, ranks, slots),
                    got = map_of(experts, ranks, slots);
        shuffle(&now);
        shuffle(&want);
        moe_place_map_copy(&got, &want);
        if (below(2))
            memset(got.primary, 0xff, sizeof *got.primary * (size_t)experts);
        moe_place_map_settle(&got, &now);
        MoeStatus st = moe_place_map_check(&got, 0, "settled");
        CHECK_EACH(!st, "%s", moe_status_message(st));
        for (int r = 0; r < ranks; r++)
            for (int e = 0; e < experts; e++)
                HOLD(holds(&got, r, e) == holds(&want, r, e));
        for (int g = 0; g < ranks * slots; g++) {
            int e = now.expert[g];
            if (e >= 0 && holds(&want, g / slots, e))
                HOLD(got.expert[g] == e);
        }
        for (int e = 0; e < experts; e++) {
            if (holds(&want, now.primary[e] / slots, e))
                HOLD(got.primary[e] == now.primary[e]);
        }
        HOLD(moe_place_map_arrivals(&now, &got) == moe_place_map_arrivals(&now, &want));
        if (i % 1000 == 0) {
            moe_arena_destroy(arena);
            arena = moe_arena_create();
        }
    }
}
END_TEST

int main(void) {
    Suite *s = suite_create("place_map");
    TCase *t = tcase_create("place_map");
    tcase_set_timeout(t, 120);
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, the_first_map_is_in_order);
    tcase_add_test(t, nonsense_is_refused);
    tcase_add_test(t, what_differs_is_counted);
    tcase_add_test(t, settling_keeps_what_it_can);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
