/* See map_json.h. */
#include "placement/map_json.h"

static json_t *numbers(const int32_t *v, int n) {
    json_t *a = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(a, json_integer(v[i]));
    return a;
}

json_t *moe_place_map_json(int layer, const MoePlaceMap *m) {
    json_t *slots = json_array();
    for (int r = 0; r < m->ranks; r++)
        json_array_append_new(slots, numbers(m->expert + r * m->slots, m->slots));
    return json_pack("{s:i, s:o, s:o}", "layer", layer, "slots", slots, "primary",
                     numbers(m->primary, m->experts));
}
