/* A layer's map as JSON, the same in plans, checkpoints and dumps:
 *   {"layer": 3, "slots": [[expert or -1, ...] per EP rank], "primary": [global slot of expert 0, ...]} */
#ifndef MOE_PLACEMENT_MAP_JSON_H
#define MOE_PLACEMENT_MAP_JSON_H

#include "base/json.h"
#include "placement/map.h"

json_t *moe_place_map_json(int layer, const MoePlaceMap *m);

#endif
