/* Memory of an order of items while the list scheduler makes it (overlap_schedule.c): what lives, and the most so far. */
#ifndef MOE_PASSES_OVERLAP_MEMORY_H
#define MOE_PASSES_OVERLAP_MEMORY_H

#include "passes/overlap.h"

typedef struct {
    const Overlap *x;
    bool *ahead;         /* by item: gathers that nobody has read yet */
    int *readers;        /* by value: left */
    bool *taken;         /* by value: another has its memory now */
    bool *took;          /* by value: it has another's */
    int64_t *flight;     /* by item: of a sum under way, what its wait frees */
    int64_t live, peak;  /* peak: without what is apart */
    int64_t apart;       /* of live: gathers ahead, sums under way */
    int64_t ahead_bytes; /* of these: gathers ahead */
} OverlapMemory;

/* Nothing has run. In the arena. */
OverlapMemory *moe_overlap_memory_create(const Overlap *x, MoeArena *a);
/* Item i is the next of the order. */
void moe_overlap_memory_run(OverlapMemory *s, int i);
/* What was gathered ahead counts like other memory from now on: it has a reader. */
void moe_overlap_memory_stop_ahead(OverlapMemory *s, int gather);
/* What lives now and counts: without gathers ahead and sums under way. */
int64_t moe_overlap_memory_live(const OverlapMemory *s);

bool moe_overlap_is_exchange(const OverlapItem *it);
/* An exchange that keeps memory until its wait, which may be far off. */
bool moe_overlap_is_sum(const OverlapItem *it);

#endif
