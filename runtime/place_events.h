/* The lines of RUN/placement.jsonl (docs/PLACEMENT.md "Using it"). Each is added to `out`; "step" is the first that runs after it. */
#ifndef MOE_RUNTIME_PLACE_EVENTS_H
#define MOE_RUNTIME_PLACE_EVENTS_H

#include "base/str.h"
#include "placement/placer.h"
#include "runtime/place.h"

enum { MOE_PLACE_VERDICTS = MOE_PLACE_REFUSED + 1 };

/* Of a layer for which another map was proposed; `map`: its map now. Nothing for one that was kept. */
void moe_place_put_decision(MoeStr *out, int64_t step, int layer, const MoePlaceDecision *d,
                            const MoePlaceMap *map);
/* A move that was given up after so many batches. */
void moe_place_put_failure(MoeStr *out, int64_t step, const char *why, int batches);
/* What was asked and what came of it: layers by verdict, and if maps changed, the move. */
void moe_place_put_change(MoeStr *out, int64_t step, bool changed,
                          const int counts[MOE_PLACE_VERDICTS], const MoePlaceChange *c);

#endif
