/* A layer's map of experts to slots: EP rank r has the slots [r*slots, (r+1)*slots). Every expert has one primary copy; more
 * copies of it lie in slots of other ranks; slots may be empty. */
#ifndef MOE_PLACEMENT_MAP_H
#define MOE_PLACEMENT_MAP_H

#include <stdbool.h>
#include <stdint.h>
#include "base/arena.h"
#include "base/status.h"

typedef struct {
    int experts, ranks, slots; /* slots of each rank */
    int32_t *expert;           /* [ranks*slots]: the expert there, -1 empty */
    int32_t *primary;          /* [experts]: global slot */
} MoePlaceMap;

/* Expert e at rank e / ceil(E/ranks), in order; extra slots empty. MOE_E_MISUSE with the numbers if ranks*slots < experts. */
MoeStatus moe_place_map_create(int experts, int ranks, int slots, MoeArena *a, MoePlaceMap *out);
/* to and from have the same sizes. */
void moe_place_map_copy(MoePlaceMap *to, const MoePlaceMap *from);
bool moe_place_map_equal(const MoePlaceMap *a, const MoePlaceMap *b);
/* MOE_E_INPUT naming layer, slot and expert unless: every expert has a primary in a slot that holds it, no rank holds one
 * twice, ids are in range. `who`: what made the map, for the message. */
MoeStatus moe_place_map_check(const MoePlaceMap *m, int layer, const char *who);
/* Keeps as many experts of `now` in their slots, and as primaries, as the set of experts of each rank in `want` permits:
 * the same holdings a rank, with the fewest slots and primaries changed. A primary whose rank lets it go goes to the rank of
 * want's primary, or if that is -1 to the lowest rank with a copy. Policies that only say who holds what end with this;
 * an expert that no rank holds has the primary -1 then, which moe_place_map_check refuses. */
void moe_place_map_settle(MoePlaceMap *want, const MoePlaceMap *now);
/* Experts that a rank holds in `to` and did not in `from`, over all ranks (what placement papers count as moves). */
int moe_place_map_arrivals(const MoePlaceMap *from, const MoePlaceMap *to);
/* Experts whose primary changes rank: what a move sends. */
int moe_place_map_moves(const MoePlaceMap *from, const MoePlaceMap *to);

#endif
