/* See place_hops.h. */
#include "runtime/place_hops.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/weights.h"

static void add_tensor(const MoePlan *p, MoeExec *x, MoePlaceLayer *l, int buffer) {
    int64_t bytes = p->buffers[buffer].bytes / l->slots;
    l->tensors[l->n++] = (MoePlaceTensor){moe_exec_buffer(x, buffer), bytes};
    l->slot_bytes += bytes;
}

static MoeStatus list_layer_tensors(const MoePlan *p, MoeExec *x, size_t k, MoePlaceLayer *l) {
    int n = 0;
    l->division = moe_mesh_of_layer(&p->mesh, p->moe_layers[k]);
    l->mesh = moe_mesh_division(&p->mesh, l->division);
    l->ep = moe_mesh_coords(&l->mesh, moe_exec_rank(x)).ep;
    l->slots = moe_exec_map(x, k)->slots;
    for (size_t i = 0; i < p->n_params; i++)
        n += moe_param_layer(p, &p->params[i]) == (int)k ? 1 + (int)p->params[i].n_states : 0;
    if (!(l->tensors = calloc((size_t)n + 1, sizeof *l->tensors)))
        return moe_error(MOE_E_NOMEM, "no memory for a list of %d tensors", n);
    for (size_t i = 0; i < p->n_params; i++) {
        const MoePlanParam *q = &p->params[i];
        if (moe_param_layer(p, q) != (int)k)
            continue;
        add_tensor(p, x, l, q->buffer);
        for (size_t s = 0; s < q->n_states; s++)
            add_tensor(p, x, l, q->states[s].buffer);
    }
    return NULL;
}

static MoeStatus list_tensors(const MoePlan *p, MoeExec *x, MoePlaceHops *out) {
    out->layers = calloc(p->n_moe_layers + 1, sizeof *out->layers);
    if (!out->layers)
        return moe_error(MOE_E_NOMEM, "no memory for the experts of %zu layers", p->n_moe_layers);
    out->n_layers = p->n_moe_layers;
    for (size_t k = 0; k < p->n_moe_layers; k++)
        MOE_TRY(list_layer_tensors(p, x, k, &out->layers[k]));
    return NULL;
}

/* Layer k's hops, in the order of experts; leaves[slot]: the hop that leaves it. */
static int list_layer(const MoePlaceMap *from, const MoePlaceMap *to, int k, MoePlaceHop *out,
                      int *leaves) {
    int n = 0;
    for (int g = 0; g < from->ranks * from->slots; g++)
        leaves[g] = -1;
    for (int e = 0; e < from->experts; e++)
        if (from->primary[e] != to->primary[e]) {
            leaves[from->primary[e]] = n;
            out[n++] = (MoePlaceHop){k, e, from->primary[e], to->primary[e], -1, true, false};
        }
    for (int i = 0; i < n; i++) {
        out[i].next = leaves[out[i].to];
        if (out[i].next >= 0)
            out[out[i].next].frees = false;
    }
    return n;
}

/* The hops from the start of a chain (or anywhere in a cycle). */
static void follow(MoePlaceHops *out, const MoePlaceHop *hops, bool *done, int i) {
    bool starts = true;
    for (; i >= 0 && !done[i]; i = hops[i].next) {
        done[i] = true;
        out->hops[out->n_hops] = hops[i];
        out->hops[out->n_hops++].starts = starts;
        starts = false;
    }
}

/* All hops, by layer, chain and cycle. */
static MoeStatus list_hops(const MoePlan *p, const MoeExec *x, const MoePlaceMap *to,
                           MoePlaceHops *out) {
    size_t most = (size_t)p->experts, n_slots = 0;
    for (size_t k = 0; k < p->n_moe_layers; k++) {
        size_t n = (size_t)to[k].ranks * (size_t)to[k].slots;
        n_slots = n > n_slots ? n : n_slots;
    }
    out->hops = calloc(p->n_moe_layers * most + 1, sizeof *out->hops);
    MoePlaceHop *hops = calloc(most + 1, sizeof *hops);
    int *leaves = calloc(n_slots + 1, sizeof *leaves);
    bool *done = calloc(most + 1, sizeof *done);
    MoeStatus st = out->hops && hops && leaves && done
                       ? NULL
                       : moe_error(MOE_E_NOMEM, "no memory for the list of experts that move");
    for (size_t k = 0; k < p->n_moe_layers && !st; k++) {
        int n = list_layer(moe_exec_map(x, k), &to[k], (int)k, hops, leaves);
        memset(done, 0, most * sizeof *done);
        for (int i = 0; i < n; i++)
            if (hops[i].frees)
                follow(out, hops, done, i);
        for (int i = 0; i < n; i++) /* what is left are cycles */
            if (!done[i])
                follow(out, hops, done, i);
    }
    free(hops);
    free(leaves);
    free(done);
    return st;
}

MoeStatus moe_place_hops(const MoePlan *plan, MoeExec *x, const MoePlaceMap *to,
                         MoePlaceHops *out) {
    *out = (MoePlaceHops){0};
    MOE_TRY(list_tensors(plan, x, out));
    return list_hops(plan, x, to, out);
}

void moe_place_hops_free(MoePlaceHops *h) {
    for (size_t k = 0; k < h->n_layers; k++)
        free(h->layers[k].tensors);
    free(h->layers);
    free(h->hops);
    *h = (MoePlaceHops){0};
}

/* ---- batches ---- */

/* A rank has a place in each division: it takes in at most the sum of their busiest. */
static int64_t busiest(const int64_t *in, int ranks) {
    int64_t sum = 0;
    for (int d = 0; d <= MOE_MAX_RANGES; d++) {
        int64_t most = 0;
        for (int r = 0; r < ranks; r++)
            most = in[d * ranks + r] > most ? in[d * ranks + r] : most;
        sum += most;
    }
    return sum;
}

int moe_place_batch(const MoePlaceHops *h, int ranks, int lo, int64_t limit, int64_t *in,
                    int64_t *out_bytes) {
    int hi = lo;
    memset(in, 0, (size_t)ranks * (MOE_MAX_RANGES + 1) * sizeof *in);
    *out_bytes = 0;
    while (hi < h->n_hops) {
        int next = hi;
        do {
            const MoePlaceHop *hop = &h->hops[next++];
            const MoePlaceLayer *l = &h->layers[hop->layer];
            in[l->division * ranks + hop->to / l->slots] += l->slot_bytes;
        } while (next < h->n_hops && !h->hops[next].starts);
        int64_t bytes = busiest(in, ranks);
        if (bytes > limit && hi > lo)
            break;
        *out_bytes = bytes;
        hi = next;
    }
    return hi;
}
