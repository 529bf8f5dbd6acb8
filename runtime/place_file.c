/* See place_file.h. */
#include "runtime/place_file.h"

#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "placement/map_json.h"

#define FORMAT    1
#define MAX_BYTES ((size_t)256 << 20)

json_t *moe_place_json(const MoePlan *plan, const MoeExec *x) {
    json_t *layers = json_array();
    for (size_t k = 0; k < plan->n_moe_layers; k++)
        json_array_append_new(layers, moe_place_map_json(plan->moe_layers[k], moe_exec_map(x, k)));
    return layers;
}

static MoeStatus set_layer(const json_t *entry, const char *where, bool exact, const MoePlan *plan,
                           MoeExec *x, size_t k) {
    const MoePlaceMap *m = moe_exec_map(x, k);
    json_t *slots = NULL, *primary = NULL;
    MOE_TRY(moe_json_array(entry, where, "slots", true, &slots));
    MOE_TRY(moe_json_array(entry, where, "primary", false, &primary));
    bool same = moe_place_map_fits(entry, m);
    if (!same && exact)
        return moe_error(MOE_E_INPUT,
                         "%s: layer %d: \"slots\" of %zu ranks (%zu slots on the first), the plan "
                         "has %d EP ranks of "
                         "%d slots",
                         where, plan->moe_layers[k], json_array_size(slots),
                         json_array_size(json_array_get(slots, 0)), m->ranks, m->slots);
    if (!same || (!exact && !moe_exec_can_place(x, k)))
        return NULL;
    MoePlaceMap new;
    MoeArena *a = moe_arena_create();
    MoeStatus st = moe_place_map_create(m->experts, m->ranks, m->slots, a, &new);
    if (!st)
        st = moe_place_map_read(entry, where, &new);
    if (!st)
        st = moe_status_prefix(moe_exec_set_map(x, k, new.expert, new.primary), "%s", where);
    moe_arena_destroy(a);
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

MoeStatus moe_place_file_write(const char *path, const MoePlan *plan, const MoeExec *x) {
    MoeStr text = {0};
    json_t *root = json_pack("{s:i, s:o}", "format_version", FORMAT, "layers", moe_place_json(plan, x));
    moe_json_dump(root, &text);
    json_decref(root);
    MoeStatus st = moe_file_write_atomic(path, moe_str_c(&text), text.len);
    moe_str_free(&text);
    return st;
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
