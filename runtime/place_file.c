/* See place_file.h. */
#include "runtime/place_file.h"

#include <stdlib.h>
#include <string.h>

#include "placement/map_json.h"

#define FORMAT    1
#define MAX_BYTES ((size_t)256 << 20)

/* One layer's entry, as arrays of the execution's sizes. */
typedef struct {
    const char *where;
    int layer;
    int32_t *copies, *primary;
} Entry;

json_t *moe_place_json(const MoePlan *plan, const MoeExec *x) {
    json_t *layers = json_array();
    for (size_t k = 0; k < plan->n_moe_layers; k++)
        json_array_append_new(layers, moe_place_map_json(plan->moe_layers[k], moe_exec_map(x, k)));
    return layers;
}

static bool read_number(const json_t *v, int32_t *out) {
    json_int_t n = json_integer_value(v);
    if (!json_is_integer(v) || n < -1 || n > INT32_MAX)
        return false;
    *out = (int32_t)n;
    return true;
}

/* Whether the entry is of so many ranks with so many slots each. */
static bool fits(const json_t *slots, const MoePlaceMap *m) {
    if (json_array_size(slots) != (size_t)m->ranks)
        return false;
    for (int r = 0; r < m->ranks; r++) {
        const json_t *row = json_array_get(slots, (size_t)r);
        if (!json_is_array(row) || json_array_size(row) != (size_t)m->slots)
            return false;
    }
    return true;
}

static MoeStatus read_primary(const Entry *e, const json_t *primary, const MoePlaceMap *m) {
    for (int i = 0; i < m->experts; i++)
        e->primary[i] = -1;
    for (int g = m->ranks * m->slots - 1; g >= 0 && !primary; g--)
        if (e->copies[g] >= 0 && e->copies[g] < m->experts)
            e->primary[e->copies[g]] = g;
    if (primary && json_array_size(primary) != (size_t)m->experts)
        return moe_error(MOE_E_INPUT,
                         "%s: layer %d: \"primary\" of %zu numbers, expected %d (one an expert)",
                         e->where, e->layer, json_array_size(primary), m->experts);
    for (int i = 0; primary && i < m->experts; i++)
        if (!read_number(json_array_get(primary, (size_t)i), &e->primary[i]))
            return moe_error(MOE_E_INPUT, "%s: layer %d: \"primary\"[%d] is no slot", e->where,
                             e->layer, i);
    return NULL;
}

static MoeStatus read_entry(const Entry *e, const json_t *slots, const json_t *primary,
                            const MoePlaceMap *m) {
    for (int g = 0; g < m->ranks * m->slots; g++) {
        const json_t *row = json_array_get(slots, (size_t)(g / m->slots));
        if (!read_number(json_array_get(row, (size_t)(g % m->slots)), &e->copies[g]))
            return moe_error(MOE_E_INPUT,
                             "%s: layer %d: slot %d of rank %d is neither an expert nor -1 (empty)",
                             e->where, e->layer, g % m->slots, g / m->slots);
    }
    return read_primary(e, primary, m);
}

static MoeStatus set_layer(const json_t *entry, const char *where, bool exact, const MoePlan *plan,
                           MoeExec *x, size_t k) {
    const MoePlaceMap *m = moe_exec_map(x, k);
    json_t *slots = NULL, *primary = NULL;
    size_t n = (size_t)m->ranks * (size_t)m->slots;
    MOE_TRY(moe_json_array(entry, where, "slots", true, &slots));
    MOE_TRY(moe_json_array(entry, where, "primary", false, &primary));
    bool same = fits(slots, m);
    if (!same && exact)
        return moe_error(MOE_E_INPUT,
                         "%s: layer %d: \"slots\" of %zu ranks (%zu slots on the first), the plan "
                         "has %d EP ranks of "
                         "%d slots",
                         where, plan->moe_layers[k], json_array_size(slots),
                         json_array_size(json_array_get(slots, 0)), m->ranks, m->slots);
    if (!same || (!exact && !moe_exec_can_place(x, k)))
        return NULL;
    Entry e = {where, plan->moe_layers[k], malloc((n + 1) * sizeof *e.copies),
               malloc(((size_t)m->experts + 1) * sizeof *e.primary)};
    MoeStatus st = NULL;
    if (!e.copies || !e.primary)
        st = moe_error(MOE_E_NOMEM, "no memory for the map of %d experts", m->experts);
    if (!st)
        st = read_entry(&e, slots, primary, m);
    if (!st)
        st = moe_status_prefix(moe_exec_set_map(x, k, e.copies, e.primary), "%s", where);
    free(e.copies);
    free(e.primary);
    return st;
}

static MoeStatus take(const json_t *layers, const char *where, bool exact, const MoePlan *plan,
                      MoeExec *x) {
    bool *seen = calloc(plan->n_moe_layers + 1, sizeof *seen);
    MoeStatus st = seen ? NULL : moe_error(MOE_E_NOMEM, "no memory to read %s", where);
    for (size_t i = 0; i < json_array_size(layers) && !st; i++) {
        const json_t *entry = json_array_get(layers, i);
        int64_t layer = -1;
        size_t k = 0;
        MOE_TRY_GOTO(st, moe_json_i64(entry, where, "layer", true, &layer), done);
        while (k < plan->n_moe_layers && plan->moe_layers[k] != layer)
            k++;
        if (k == plan->n_moe_layers || seen[k])
            st = moe_error(MOE_E_INPUT, "%s: layer %lld %s", where, (long long)layer,
                           k == plan->n_moe_layers ? "is no MoE layer of the plan"
                                                   : "is there twice");
        else
            st = set_layer(entry, where, exact, plan, x, k);
        seen[k] = true;
    }
done:
    free(seen);
    return st;
}

MoeStatus moe_place_json_take(const json_t *layers, const char *where, const MoePlan *plan,
                              MoeExec *x) {
    return take(layers, where, false, plan, x);
}

MoeStatus moe_place_file_read(const char *path, const MoePlan *plan, MoeExec *x) {
    json_t *root = NULL, *layers = NULL;
    int64_t version = 0;
    MoeStatus st = NULL;
    MOE_TRY(moe_json_load_file(path, MAX_BYTES, &root));
    MOE_TRY_GOTO(st, moe_json_i64(root, path, "format_version", true, &version), done);
    if (version != FORMAT) {
        st = moe_error(MOE_E_INPUT, "%s: format version %lld; this moec reads %d", path,
                       (long long)version, FORMAT);
        goto done;
    }
    MOE_TRY_GOTO(st, moe_json_array(root, path, "layers", true, &layers), done);
    st = take(layers, path, true, plan, x);
done:
    json_decref(root);
    return st;
}
