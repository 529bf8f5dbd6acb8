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

static bool read_number(const json_t *v, int32_t *out) {
    json_int_t n = json_integer_value(v);
    if (!json_is_integer(v) || n < -1 || n > INT32_MAX)
        return false;
    *out = (int32_t)n;
    return true;
}

bool moe_place_map_fits(const json_t *entry, const MoePlaceMap *m) {
    const json_t *slots = json_object_get(entry, "slots");
    if (json_array_size(slots) != (size_t)m->ranks)
        return false;
    for (int r = 0; r < m->ranks; r++) {
        const json_t *row = json_array_get(slots, (size_t)r);
        if (!json_is_array(row) || json_array_size(row) != (size_t)m->slots)
            return false;
    }
    return true;
}

static MoeStatus read_primary(const json_t *primary, const char *where, int layer, MoePlaceMap *m) {
    for (int i = 0; i < m->experts; i++)
        m->primary[i] = -1;
    for (int g = m->ranks * m->slots - 1; g >= 0 && !primary; g--)
        if (m->expert[g] >= 0 && m->expert[g] < m->experts)
            m->primary[m->expert[g]] = g;
    if (primary && json_array_size(primary) != (size_t)m->experts)
        return moe_error(MOE_E_INPUT,
                         "%s: layer %d: \"primary\" of %zu numbers, expected %d (one an expert)",
                         where, layer, json_array_size(primary), m->experts);
    for (int i = 0; primary && i < m->experts; i++)
        if (!read_number(json_array_get(primary, (size_t)i), &m->primary[i]))
            return moe_error(MOE_E_INPUT, "%s: layer %d: \"primary\"[%d] is no slot", where, layer, i);
    return NULL;
}

MoeStatus moe_place_map_read(const json_t *entry, const char *where, MoePlaceMap *m) {
    const json_t *slots = json_object_get(entry, "slots");
    int layer = (int)json_integer_value(json_object_get(entry, "layer"));
    for (int g = 0; g < m->ranks * m->slots; g++) {
        const json_t *row = json_array_get(slots, (size_t)(g / m->slots));
        if (!read_number(json_array_get(row, (size_t)(g % m->slots)), &m->expert[g]))
            return moe_error(MOE_E_INPUT,
                             "%s: layer %d: slot %d of rank %d is neither an expert nor -1 (empty)",
                             where, layer, g % m->slots, g / m->slots);
    }
    return read_primary(json_object_get(entry, "primary"), where, layer, m);
}
