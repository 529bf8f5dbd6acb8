#include "placement/map.h"

#include <stddef.h>
#include <string.h>

#include "base/assert.h"

MoeStatus moe_place_map_create(int experts, int ranks, int slots, MoeArena *a, MoePlaceMap *out) {
    MOE_ASSERT(experts > 0 && ranks > 0 && slots > 0, "%d experts, %d ranks, %d slots", experts,
               ranks, slots);
    if ((int64_t)ranks * slots < experts)
        return moe_error(
            MOE_E_MISUSE,
            "%d experts do not fit %d ranks with %d slots each: %d slots a rank are needed",
            experts, ranks, slots, (experts + ranks - 1) / ranks);
    int per = (experts + ranks - 1) / ranks;
    *out =
        (MoePlaceMap){experts, ranks, slots, MOE_NEW_N(a, int32_t, (size_t)ranks * (size_t)slots),
                      MOE_NEW_N(a, int32_t, experts)};
    memset(out->expert, 0xff, sizeof *out->expert * (size_t)ranks * (size_t)slots);
    for (int e = 0; e < experts; e++) {
        out->primary[e] = e / per * slots + e % per;
        out->expert[out->primary[e]] = e;
    }
    return NULL;
}

static void same_sizes(const MoePlaceMap *a, const MoePlaceMap *b) {
    MOE_ASSERT(a->experts == b->experts && a->ranks == b->ranks && a->slots == b->slots,
               "maps of %d experts on %d ranks of %d slots and of %d on %d of %d", a->experts,
               a->ranks, a->slots, b->experts, b->ranks, b->slots);
}

static size_t slot_bytes(const MoePlaceMap *m) {
    return sizeof *m->expert * (size_t)m->ranks * (size_t)m->slots;
}

void moe_place_map_copy(MoePlaceMap *to, const MoePlaceMap *from) {
    same_sizes(to, from);
    memcpy(to->expert, from->expert, slot_bytes(to));
    memcpy(to->primary, from->primary, sizeof *to->primary * (size_t)to->experts);
}

bool moe_place_map_equal(const MoePlaceMap *a, const MoePlaceMap *b) {
    return a->experts == b->experts && a->ranks == b->ranks && a->slots == b->slots &&
           memcmp(a->expert, b->expert, slot_bytes(a)) == 0 &&
           memcmp(a->primary, b->primary, sizeof *a->primary * (size_t)a->experts) == 0;
}

/* The slot of a rank that holds e, -1 without one. */
static int find_on_rank(const MoePlaceMap *m, int rank, int e) {
    const int32_t *slot = m->expert + (ptrdiff_t)rank * m->slots;
    for (int s = 0; s < m->slots; s++)
        if (slot[s] == e)
            return rank * m->slots + s;
    return -1;
}

MoeStatus moe_place_map_check(const MoePlaceMap *m, int layer, const char *who) {
    for (int g = 0; g < m->ranks * m->slots; g++) {
        int e = m->expert[g], rank = g / m->slots;
        if (e < -1 || e >= m->experts)
            return moe_error(MOE_E_INPUT,
                             "%s: layer %d: slot %d of rank %d holds expert %d: there are %d", who,
                             layer, g % m->slots, rank, e, m->experts);
        if (e >= 0 && find_on_rank(m, rank, e) != g)
            return moe_error(MOE_E_INPUT,
                             "%s: layer %d: slots %d and %d of rank %d both hold expert %d", who,
                             layer, find_on_rank(m, rank, e) % m->slots, g % m->slots, rank, e);
    }
    for (int e = 0; e < m->experts; e++) {
        int g = m->primary[e];
        if (g < 0 || g >= m->ranks * m->slots)
            return moe_error(MOE_E_INPUT,
                             "%s: layer %d: the primary of expert %d is in slot %d: there are %d",
                             who, layer, e, g, m->ranks * m->slots);
        if (m->expert[g] != e)
            return moe_error(
                MOE_E_INPUT,
                "%s: layer %d: the primary of expert %d is in slot %d of rank %d, which holds %d",
                who, layer, e, g % m->slots, g / m->slots, m->expert[g]);
    }
    return NULL;
}

/* Within a rank, what stays goes to the slot that it has now; newcomers are in the others. */
static void settle_rank(MoePlaceMap *want, const MoePlaceMap *now, int rank) {
    int32_t *slot = want->expert + (ptrdiff_t)rank * want->slots;
    for (int s = 0; s < want->slots; s++) {
        int e = now->expert[rank * now->slots + s], at = e < 0 ? -1 : find_on_rank(want, rank, e);
        if (at < 0)
            continue;
        slot[at - rank * want->slots] = slot[s];
        slot[s] = e;
    }
}

void moe_place_map_settle(MoePlaceMap *want, const MoePlaceMap *now) {
    same_sizes(want, now);
    for (int r = 0; r < want->ranks; r++)
        settle_rank(want, now, r);
    for (int e = 0; e < want->experts; e++) {
        int wanted = want->primary[e]; /* a slot of the rank where it should be, or -1 */
        int g = find_on_rank(want, now->primary[e] / now->slots, e);
        if (g < 0 && wanted >= 0)
            g = find_on_rank(want, wanted / want->slots, e);
        for (int r = 0; g < 0 && r < want->ranks; r++)
            g = find_on_rank(want, r, e);
        want->primary[e] = g;
    }
}

int moe_place_map_arrivals(const MoePlaceMap *from, const MoePlaceMap *to) {
    int n = 0;
    for (int r = 0; r < to->ranks; r++)
        for (int s = 0; s < to->slots; s++) {
            int e = to->expert[r * to->slots + s];
            n += e >= 0 && find_on_rank(from, r, e) < 0;
        }
    return n;
}

int moe_place_map_moves(const MoePlaceMap *from, const MoePlaceMap *to) {
    int n = 0;
    for (int e = 0; e < to->experts; e++)
        n += from->primary[e] / from->slots != to->primary[e] / to->slots;
    return n;
}
