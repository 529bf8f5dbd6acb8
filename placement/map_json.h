/* A layer's map as JSON, the same in plans, checkpoints, runs and dumps:
 *   {"layer": 3, "slots": [[expert or -1, ...] per EP rank], "primary": [global slot of expert 0, ...]} */
#ifndef MOE_PLACEMENT_MAP_JSON_H
#define MOE_PLACEMENT_MAP_JSON_H

#include "base/json.h"
#include "placement/map.h"

json_t *moe_place_map_json(int layer, const MoePlaceMap *m);
/* Whether an entry's "slots" are of m's ranks and slots. */
bool moe_place_map_fits(const json_t *entry, const MoePlaceMap *m);
/* The maps of an entry that fits into m, which keeps its sizes; what they say is for moe_place_map_check. Without "primary" an expert's
 * copy on the lowest rank is. MOE_E_INPUT names `where`, layer and numbers. */
MoeStatus moe_place_map_read(const json_t *entry, const char *where, MoePlaceMap *m);

#endif
