/* See run_maps.h. */
#include "cli/run_maps.h"

#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "placement/map_json.h"

/* A layer's map, as placement.json and RUN/placement.jsonl have it. What makes no sense for the plan is passed over: nothing runs by
 * it here. */
static void take_map(MoeRunMaps *r, const json_t *entry, MoeArena *a) {
    const MoePlan *p = r->plan;
    int64_t number = json_integer_value(json_object_get(entry, "layer"));
    size_t k = 0;
    while (k < p->n_moe_layers && p->moe_layers[k] != number)
        k++;
    if (k == p->n_moe_layers || !moe_place_map_fits(entry, &r->maps[k]))
        return;
    MoePlaceMap new, *now = &r->maps[k];
    MoeStatus st = moe_place_map_create(now->experts, now->ranks, now->slots, a, &new);
    if (!st)
        st = moe_place_map_read(entry, "a run's maps", &new);
    if (!st)
        st = moe_place_map_check(&new, p->moe_layers[k], "a run's maps");
    if (!st)
        moe_place_map_copy(now, &new);
    moe_status_free(st);
}

static MoeStatus usual_maps(MoeRunMaps *r, MoeArena *a) {
    const MoePlan *p = r->plan;
    r->maps = MOE_NEW_N(a, MoePlaceMap, p->n_moe_layers);
    for (size_t k = 0; k < p->n_moe_layers; k++) {
        MoeMesh d = moe_mesh_division(&p->mesh, moe_mesh_of_layer(&p->mesh, p->moe_layers[k]));
        MOE_TRY(moe_place_map_create(p->experts, d.ep, moe_mesh_slots(&d, p->experts), a, &r->maps[k]));
    }
    return NULL;
}

/* dir/placement.json, if there is one. */
static MoeStatus take_file(MoeRunMaps *r, const char *dir, MoeArena *a) {
    char *path = dir ? moe_path_join(dir, "placement.json") : NULL;
    json_t *root = NULL;
    MoeStatus st = path && moe_path_exists(path) ? moe_json_load_file(path, 1u << 30, &root) : NULL;
    const json_t *layers = json_object_get(root, "layers");
    for (size_t i = 0; i < json_array_size(layers); i++)
        take_map(r, json_array_get(layers, i), a);
    json_decref(root);
    free(path);
    return st;
}

static MoeStatus read_changes(const char *run, json_t **out) {
    char *path = moe_path_join(run, "placement.jsonl"), *text = NULL;
    size_t n = 0;
    *out = NULL;
    MoeStatus st = moe_path_exists(path) ? moe_file_read(path, (size_t)1 << 32, &text, &n) : NULL;
    if (text)
        *out = json_array();
    for (char *line = text; line && *line;) {
        size_t len = strcspn(line, "\n");
        json_t *json = json_loadb(line, len, 0, NULL);
        if (json)
            json_array_append_new(*out, json);
        line += len + (line[len] == '\n');
    }
    free(text);
    free(path);
    return st;
}

MoeStatus moe_run_maps_open(const MoePlan *plan, const char *run, MoeArena *a, MoeRunMaps *out) {
    *out = (MoeRunMaps){.plan = plan};
    MOE_TRY(usual_maps(out, a));
    MOE_TRY(take_file(out, plan->dir, a));
    MOE_TRY(take_file(out, run, a));
    return read_changes(run, &out->changes);
}

void moe_run_maps_close(MoeRunMaps *r) {
    json_decref(r->changes);
    r->changes = NULL;
}

static int64_t step_of(const json_t *changes, size_t i) {
    return json_integer_value(json_object_get(json_array_get(changes, i), "step"));
}

static bool is_event(const json_t *line, const char *what) {
    const char *event = json_string_value(json_object_get(line, "event"));
    return event && strcmp(event, what) == 0;
}

/* The lines of one step: maps change only if the experts did move. */
static void take_lines(MoeRunMaps *r, size_t first, size_t end, MoeArena *a) {
    bool moved = false;
    for (size_t i = first; i < end; i++)
        moved |= is_event(json_array_get(r->changes, i), "move");
    for (size_t i = first; i < end && moved; i++)
        if (is_event(json_array_get(r->changes, i), "decision"))
            take_map(r, json_array_get(r->changes, i), a);
}

void moe_run_maps_step(MoeRunMaps *r, int64_t step) {
    size_t n = json_array_size(r->changes);
    MoeArena *a = moe_arena_create();
    while (r->at < n && step_of(r->changes, r->at) <= step) {
        size_t end = r->at;
        while (end < n && step_of(r->changes, end) == step_of(r->changes, r->at))
            end++;
        take_lines(r, r->at, end, a);
        r->at = end;
    }
    moe_arena_destroy(a);
}
