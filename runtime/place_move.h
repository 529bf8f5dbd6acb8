/* Moves experts between ranks: weights and every state, all layers together, in two phases (docs/PLACEMENT.md "Moving experts
 * online"). Owners send, receivers keep what comes in memory of its own, both hash it; only when all ranks have said that
 * everything arrived as it was sent do slots and maps change. Until then each expert is where it was; from then on, on every rank, where
 * it is to be.
 *
 * Experts that change places with each other (a cycle, or a chain that ends in a free slot) go together. When what comes in is
 * more than the memory allowed, several such groups follow one another, each by itself all or nothing: an error then leaves the
 * groups before in their new slots and all others in their old ones, each expert in exactly one. */
#ifndef MOE_RUNTIME_PLACE_MOVE_H
#define MOE_RUNTIME_PLACE_MOVE_H

#include "runtime/exec.h"

typedef struct {
    int experts;           /* primary copies that changed slots */
    int64_t bytes;         /* sent, by all ranks; to another rank */
    int64_t staging_bytes; /* at a time, of the rank that takes in the most */
    int batches;
    bool given_up; /* of an error: all ranks have it, and training may go on with the maps as they are now */
} MoePlaceMoved;

/* Collective: every rank gives the same maps, [n_moe_layers], of the execution's sizes. staging_bytes: what comes in at a time,
 * unless one cycle or chain is more. On success the maps are set, and slots
 * that no primary copy is in any more are zero. */
MoeStatus moe_place_move(const MoePlan *plan, MoeExec *x, const MoePlaceMap *to,
                         int64_t staging_bytes, MoePlaceMoved *out);

#endif
