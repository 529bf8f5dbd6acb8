/* Where a run's experts were at each of its steps: its first maps, and what RUN/placement.jsonl says of changes. Part of `moec
 * explain --against`. */
#ifndef MOE_CLI_RUN_MAPS_H
#define MOE_CLI_RUN_MAPS_H

#include "base/json.h"
#include "placement/map.h"
#include "runtime/plan.h"

typedef struct {
    const MoePlan *plan;
    MoePlaceMap *maps; /* [n_moe_layers], of the plan's ranks and slots */
    json_t *changes;   /* the lines of RUN/placement.jsonl; NULL: none */
    size_t at;         /* the first line that is not taken in */
} MoeRunMaps;

/* The maps of the run's first step: RUN/placement.json, else the plan's, else the usual ones. A map of other ranks or slots than the
 * plan's (a run of another plan) is passed over. In `a`. */
MoeStatus moe_run_maps_open(const MoePlan *plan, const char *run, MoeArena *a, MoeRunMaps *out);
/* Makes maps[] those of this step. Steps are asked for in rising order. */
void moe_run_maps_step(MoeRunMaps *r, int64_t step);
void moe_run_maps_close(MoeRunMaps *r);

#endif
