/* libFuzzer target: bytes as plan.json, nothing linked. Nothing crashes, a refusal has a message, and the mesh, the
 * divisions and the groups of a plan that loads hold together: every rank is in one group of each kind, slices cover
 * their tensors, buffers have room for them. Seeds: tests/fuzz/corpus/plan. */
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "runtime/plan.h"
#include "runtime/weights.h"

enum { MOST_RANKS = 64 };

/* A group's ranks: as many as its size says, each once, this rank at its own place, and the same from each of them. */
static void check_group(const MoeMesh *m, MoeMeshGroup g, int rank) {
    int ranks[MOST_RANKS], others[MOST_RANKS], n = moe_mesh_group_size(m, g);
    MOE_ASSERT(n >= 1 && n <= moe_mesh_size(m), "%s has %d ranks", moe_mesh_group_name(g), n);
    int self = moe_mesh_group_ranks(m, rank, g, ranks);
    MOE_ASSERT(self >= 0 && self < n && ranks[self] == rank, "rank %d is not in its own %s", rank,
               moe_mesh_group_name(g));
    for (int i = 0; i < n; i++) {
        MOE_ASSERT(ranks[i] >= 0 && ranks[i] < moe_mesh_size(m) && (!i || ranks[i] > ranks[i - 1]),
                   "%s of rank %d", moe_mesh_group_name(g), rank);
        moe_mesh_group_ranks(m, ranks[i], g, others);
        MOE_ASSERT(!memcmp(ranks, others, sizeof *ranks * (size_t)n),
                   "rank %d and rank %d have other %s", rank, ranks[i], moe_mesh_group_name(g));
    }
}

static void check_mesh(const MoePlan *p) {
    const MoeMesh *m = &p->mesh;
    MOE_ASSERT(p->ranks == moe_mesh_size(m), "%d ranks", p->ranks);
    for (size_t i = 0; i < p->n_moe_layers; i++)
        MOE_ASSERT(moe_mesh_of_layer(m, p->moe_layers[i]) <= m->n_ranges, "layer of no division");
    for (int k = 0; k <= m->n_ranges; k++) {
        MoeMesh d = moe_mesh_division(m, k);
        MOE_ASSERT(moe_mesh_data_ranks(&d) == moe_mesh_data_ranks(m), "division %d", k);
        MOE_ASSERT(moe_mesh_slots(&d, p->experts) * d.ep >= p->experts, "division %d has no place",
                   k);
    }
    if (p->ranks > MOST_RANKS)
        return;
    for (int g = 0; g < MOE_N_GROUPS; g++)
        for (int r = 0; moe_mesh_has_group(m, (MoeMeshGroup)g) && r < p->ranks; r++)
            check_group(m, (MoeMeshGroup)g, r);
}

/* A rank's slots and slices of a parameter fit into its buffer. */
static void check_param(const MoePlan *p, const MoePlanParam *q) {
    MoeMesh d = moe_mesh_division(&p->mesh, q->division);
    int64_t n = q->elements, lead = 1;
    if (q->expert) {
        n /= q->dims[0] ? q->dims[0] : 1;
        lead = moe_mesh_slots(&d, p->experts);
    }
    if (q->tp_dim >= 0)
        n /= p->mesh.tp;
    int parts = q->expert ? d.shard : d.dense_shard;
    int64_t covered = 0, room = p->buffers[q->buffer].elements;
    for (int i = 0; i < parts; i++) {
        MoeSlice s = moe_slice(n, MOE_SLICE_BLOCK, parts, i);
        MOE_ASSERT(s.first == covered && s.count >= 0 && s.count <= s.cap, "slice %d of %s", i,
                   q->name);
        MOE_ASSERT(parts == 1 ? room == lead * n : room == lead * s.cap, "buffer of %s", q->name);
        covered += s.count;
    }
    MOE_ASSERT(covered == n, "slices of %s", q->name);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    MoePlan *p = NULL;
    MoeStatus st = moe_plan_load_memory((const char *)data, n, "plan.json", NULL, 0, &p);
    MOE_ASSERT((p != NULL) == (st == NULL), "a plan and an error, or neither");
    if (st) {
        MOE_ASSERT(strlen(moe_status_message(st)) > 0, "an error without a message");
        moe_status_free(st);
        return 0;
    }
    check_mesh(p);
    for (size_t i = 0; i < p->n_params; i++)
        check_param(p, &p->params[i]);
    moe_plan_free(p);
    return 0;
}
