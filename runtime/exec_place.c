/* Where experts are: the maps of an execution, and the inputs of the programs that come from them (docs/PLACEMENT.md). Setting
 * a map moves nothing: whoever changes one while the buffers hold weights moves those first (place_move.c). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/exec_internal.h"

static int32_t *map_input(const MoeExec *x, size_t k, const char *what, int64_t *out_bytes) {
    char name[32];
    snprintf(name, sizeof name, "%s.%d", what, x->plan->moe_layers[k]);
    for (size_t i = 0; i < x->n_inputs; i++)
        if (!strcmp(x->inputs[i].name, name)) {
            *out_bytes = x->inputs[i].bytes;
            return (int32_t *)(void *)x->inputs[i].data;
        }
    *out_bytes = 0;
    return NULL;
}

/* Sizes of layer k's map; extra slots show in the input `copies` alone. */
static MoeStatus shape(const MoeExec *x, size_t k, MoePlaceMap *out) {
    const MoePlan *p = x->plan;
    MoeMesh d = moe_mesh_division(&p->mesh, moe_mesh_of_layer(&p->mesh, p->moe_layers[k]));
    int64_t bytes, n;
    *out = (MoePlaceMap){
        .experts = p->experts, .ranks = d.ep, .slots = moe_mesh_slots(&d, p->experts)};
    if (!map_input(x, k, "copies", &bytes))
        return NULL;
    n = bytes / (int64_t)sizeof(int32_t);
    if (n % d.ep || n / d.ep < out->slots || !map_input(x, k, "place", &bytes))
        return moe_error(MOE_E_CORRUPT,
                         "damaged plan: input \"copies.%d\" of %lld slots for %d experts on %d "
                         "ranks; compile it again",
                         p->moe_layers[k], (long long)n, p->experts, d.ep);
    out->slots = (int)(n / d.ep);
    return NULL;
}

static int n_slots(const MoePlaceMap *m) {
    return m->ranks * m->slots;
}

/* The map into the inputs that the programs read. */
static void fill(MoeExec *x, size_t k) {
    const MoePlaceMap *m = &x->maps[k];
    int64_t bytes;
    int32_t *place = map_input(x, k, "place", &bytes), *copies = map_input(x, k, "copies", &bytes);
    if (place)
        memcpy(place, m->primary, sizeof *place * (size_t)m->experts);
    if (copies)
        memcpy(copies, m->expert, sizeof *copies * (size_t)n_slots(m));
}

/* Expert e on rank e / ceil(E/ranks), in order. */
static void set_first(MoePlaceMap *m) {
    int a_rank = (m->experts + m->ranks - 1) / m->ranks;
    for (int g = 0; g < n_slots(m); g++)
        m->expert[g] = -1;
    for (int e = 0; e < m->experts; e++) {
        m->primary[e] = e / a_rank * m->slots + e % a_rank;
        m->expert[m->primary[e]] = e;
    }
}

MoeStatus moe_exec_place_create(MoeExec *x) {
    size_t layers = x->plan->n_moe_layers;
    x->maps = calloc(layers + 1, sizeof *x->maps);
    if (!x->maps)
        return moe_error(MOE_E_NOMEM, "no memory for the maps of %zu layers", layers);
    for (size_t k = 0; k < layers; k++) {
        MoePlaceMap *m = &x->maps[k];
        MOE_TRY(shape(x, k, m));
        m->expert = calloc((size_t)n_slots(m) + 1, sizeof *m->expert);
        m->primary = calloc((size_t)m->experts + 1, sizeof *m->primary);
        if (!m->expert || !m->primary)
            return moe_error(MOE_E_NOMEM, "no memory for the map of %d experts", m->experts);
        set_first(m);
        fill(x, k);
    }
    return NULL;
}

void moe_exec_place_destroy(MoeExec *x) {
    for (size_t k = 0; x->maps && k < x->plan->n_moe_layers; k++) {
        free(x->maps[k].expert);
        free(x->maps[k].primary);
    }
    free(x->maps);
}

const MoePlaceMap *moe_exec_map(const MoeExec *x, size_t k) {
    return &x->maps[k];
}

const int32_t *moe_exec_place(const MoeExec *x, size_t k) {
    return x->maps[k].primary;
}

void moe_exec_keep_maps(MoeExec *x, bool keep) {
    x->keep_maps = keep;
}

bool moe_exec_keeps_maps(const MoeExec *x) {
    return x->keep_maps;
}

bool moe_exec_can_place(const MoeExec *x, size_t k) {
    int64_t bytes;
    return map_input(x, k, "place", &bytes) != NULL;
}

bool moe_exec_can_copy(const MoeExec *x, size_t k) {
    int64_t bytes;
    return map_input(x, k, "copies", &bytes) != NULL;
}

/* What the programs can do with a map that is right. */
static MoeStatus check_use(const MoeExec *x, size_t k, const MoePlaceMap *m) {
    int layer = x->plan->moe_layers[k], held = 0;
    for (int g = 0; g < n_slots(m); g++)
        held += m->expert[g] >= 0;
    if (held > m->experts && !moe_exec_can_copy(x, k))
        return moe_error(MOE_E_INPUT,
                         "layer %d: %d copies of %d experts, and the plan's programs know none but "
                         "the primary ones; compile it with --extra-slots",
                         layer, held, m->experts);
    for (int e = 0; e < m->experts && !moe_exec_can_place(x, k); e++)
        if (m->primary[e] != x->maps[k].primary[e])
            return moe_error(MOE_E_INPUT,
                             "layer %d: expert %d in slot %d: all experts are on one rank, in "
                             "order, and the plan's programs know no other map",
                             layer, e, m->primary[e]);
    return NULL;
}

MoeStatus moe_exec_check_map(const MoeExec *x, size_t k, const int32_t *copies,
                             const int32_t *primary) {
    MoePlaceMap want = x->maps[k];
    want.expert = (int32_t *)(uintptr_t)copies;
    want.primary = (int32_t *)(uintptr_t)primary;
    MOE_TRY(moe_place_map_check(&want, x->plan->moe_layers[k], "the map"));
    return check_use(x, k, &want);
}

MoeStatus moe_exec_set_map(MoeExec *x, size_t k, const int32_t *copies, const int32_t *primary) {
    MoePlaceMap *m = &x->maps[k];
    MOE_TRY(moe_exec_check_map(x, k, copies, primary));
    memmove(m->expert, copies, sizeof *copies * (size_t)n_slots(m));
    memmove(m->primary, primary, sizeof *primary * (size_t)m->experts);
    fill(x, k);
    return NULL;
}
