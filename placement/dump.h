/* `moec place --dump`: every map and every division of a replay as JSON lines, so that another program can work out each figure
 * anew. In the order in which they happen:
 *   {"trace": T, "policy": P, "step": 10, "layer": 0, "slots": [[3, 1], [7, -1], ...]}      before this step; -1: an empty slot
 *   {"trace": T, "policy": P, "step": 10, "layer": 0, "tokens": [[102, 80], [97, 0], ...]}  rows of each slot in this step
 * A list of slots is an EP rank's; tokens has lists for the ranks of all groups, one group after another. Maps are there for
 * the first step and for every step before which the policy was asked, with "verdict" (kept, changed, too dear, refused). */
#ifndef MOE_PLACEMENT_DUMP_H
#define MOE_PLACEMENT_DUMP_H

#include "placement/replay.h"

typedef struct MoeDump MoeDump;
MoeStatus moe_dump_open(const char *path, MoeDump **out);
/* What the next replay belongs to; borrowed. */
void moe_dump_begin(MoeDump *d, const MoeLoad *load, const char *trace, const char *policy,
                    int groups);
/* Sets the callbacks of *see that the dump needs. */
void moe_dump_observe(MoeDump *d, MoeReplayObserver *see);
MoeStatus moe_dump_close(MoeDump *d); /* written to disk; frees d */
void moe_dump_abandon(MoeDump *d);    /* NULL is fine */

#endif
