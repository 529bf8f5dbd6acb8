/* What lives in memory as items run one after the other. See overlap_memory.h. */
#include "passes/overlap_memory.h"

bool moe_overlap_is_exchange(const OverlapItem *it) {
    return it->kind == ITEM_COMM || it->kind == ITEM_LATE || it->kind == ITEM_GATHER;
}

bool moe_overlap_is_sum(const OverlapItem *it) {
    return it->kind == ITEM_LATE || (moe_overlap_is_exchange(it) && it->staging > 0);
}

OverlapMemory *moe_overlap_memory_create(const Overlap *x, MoeArena *a) {
    OverlapMemory *s = MOE_NEW(a, OverlapMemory);
    s->x = x;
    s->ahead = MOE_NEW_N(a, bool, x->n_items);
    s->flight = MOE_NEW_N(a, int64_t, x->n_items);
    s->readers = MOE_NEW_N(a, int, x->n_values);
    s->taken = MOE_NEW_N(a, bool, x->n_values);
    s->took = MOE_NEW_N(a, bool, x->n_values);
    for (size_t i = 0; i < x->n_values; i++)
        s->readers[i] = x->values[i].readers;
    return s;
}

int64_t moe_overlap_memory_live(const OverlapMemory *s) {
    return s->live - s->apart;
}

static void note_peak(OverlapMemory *s) {
    int64_t bytes = s->live - s->apart;
    s->peak = bytes > s->peak ? bytes : s->peak;
}

void moe_overlap_memory_stop_ahead(OverlapMemory *s, int gather) {
    if (!s->ahead[gather])
        return;
    s->ahead[gather] = false;
    s->ahead_bytes -= s->x->items[gather].makes;
    s->apart -= s->x->items[gather].makes;
}

/* Bytes that item i need not find, as its results take over what dies here. */
static int64_t take_over(OverlapMemory *s, const OverlapItem *it) {
    int64_t bytes = 0;
    for (size_t k = 0; k < it->n_aliases; k++) {
        int from = it->aliases[k].from, to = it->aliases[k].to;
        if (s->readers[from] != 1 || s->taken[from] || s->took[to])
            continue;
        s->taken[from] = s->took[to] = true;
        bytes += s->x->values[to].bytes;
    }
    return bytes;
}

/* What a sum keeps until its wait: staging memory, and what it adds up, if nobody else wants it. */
static void take_off(OverlapMemory *s, int sum) {
    const OverlapItem *it = &s->x->items[sum];
    s->flight[sum] = it->staging;
    for (size_t k = 0; k < it->n_reads; k++)
        if (s->readers[it->reads[k]] == 2) /* itself and the wait */
            s->flight[sum] += s->x->values[it->reads[k]].bytes;
    s->apart += s->flight[sum];
}

static void land(OverlapMemory *s, int exchange) {
    s->live -= s->x->items[exchange].staging;
    s->apart -= s->flight[exchange];
    s->flight[exchange] = 0;
}

void moe_overlap_memory_run(OverlapMemory *s, int i) {
    const OverlapItem *it = &s->x->items[i];
    s->live += it->makes + it->staging - take_over(s, it);
    if (it->kind == ITEM_GATHER) {
        s->ahead[i] = true;
        s->ahead_bytes += it->makes;
        s->apart += it->makes;
    }
    if (moe_overlap_is_sum(it))
        take_off(s, i);
    for (size_t k = 0; k < it->n_reads && it->kind != ITEM_WAIT; k++)
        moe_overlap_memory_stop_ahead(s, s->x->values[it->reads[k]].item);
    note_peak(s);
    for (size_t k = 0; k < it->n_reads; k++)
        if (--s->readers[it->reads[k]] == 0 && !s->taken[it->reads[k]])
            s->live -= s->x->values[it->reads[k]].bytes;
    for (size_t k = 0; k < it->n_needs && it->kind == ITEM_WAIT; k++)
        land(s, it->needs[k]);
}
