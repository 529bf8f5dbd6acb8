/* Runs of rows from the exact division (split_flow.c), moved to leaf edges if asked (split_edges.c). */
#include "base/split.h"

#include <stddef.h>
#include <string.h>

#include "base/assert.h"
#include "base/split_internal.h"

static int64_t align16(int64_t n) {
    return (n + 15) / 16 * 16;
}

/* Lays what edges need out from base (NULL: only counts); returns the bytes. */
static int64_t lay_out(MoeSplitWork *w, char *base, int64_t ranks, int64_t shards) {
    int64_t at = 0, cuts = ranks + 1;
#define PART(field, n)                                                                             \
    do {                                                                                           \
        if (base)                                                                                  \
            w->field = (void *)(base + at);                                                        \
        at += align16((int64_t)sizeof *w->field * (n));                                            \
    } while (0)
    PART(prefix, shards + 1);
    PART(saved, ranks);
    PART(edges, cuts * MOE_SPLIT_EDGES);
    PART(n_edges, cuts);
    PART(cost, cuts * MOE_SPLIT_EDGES);
    PART(best, cuts * MOE_SPLIT_EDGES);
#undef PART
    return at;
}

int64_t moe_split_scratch(int experts, int ranks, int slots, int shards) {
    MoeSplitWork w;
    return lay_out(&w, NULL, ranks, shards) + moe_flow_scratch(experts, ranks, slots) + 15;
}

static void write_runs(const MoeFlow *f, MoeSplitRun *out) {
    memset(out, 0, sizeof *out * (size_t)f->ranks * (size_t)f->slots);
    for (int e = 0; e < f->experts; e++) {
        int32_t at = 0;
        for (int i = f->first[e]; i < f->first[e + 1]; i++) {
            int g = f->slot[i];
            out[g].begin = at;
            at += (int32_t)f->amount[g];
            out[g].end = at;
        }
    }
}

void moe_split(const MoeSplit *in, void *scratch, MoeSplitRun *out) {
    MOE_ASSERT(in->experts > 0 && in->ranks > 0 && in->slots > 0 && in->shards > 0 && in->grain > 0,
               "%d experts, %d ranks, %d slots, %d shards, grain %d", in->experts, in->ranks,
               in->slots, in->shards, in->grain);
    MoeSplitWork w = {.in = in};
    char *base = (char *)scratch + (16 - (uintptr_t)scratch % 16) % 16;
    int64_t used = lay_out(&w, base, in->ranks, in->shards);
    moe_flow_init(&w.flow, in->experts, in->ranks, in->slots, base + used);
    moe_flow_divide(&w.flow, in->copies, in->counts, in->shards);
    if (in->grain > 1 && w.flow.n_order > 0)
        moe_split_to_edges(&w);
    write_runs(&w.flow, out);
}
