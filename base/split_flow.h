/* The exact division of experts' rows among ranks that hold copies, as a bipartite flow: experts send rows to ranks, a rank takes
 * at most `level`, and the level is the least at which all rows arrive. For moe_split, and for policies that ask what a map could
 * do with a load, one after another. */
#ifndef MOE_BASE_SPLIT_FLOW_H
#define MOE_BASE_SPLIT_FLOW_H

#include <stdint.h>

typedef struct {
    int experts, ranks, slots;
    const int32_t *copies; /* [ranks*slots] as in MoeSplit; borrowed */
    int64_t level;         /* rows of the busiest rank */
    int64_t *rows;         /* [experts] */
    int64_t *load;         /* [ranks] rows given to its slots */
    int64_t *amount;       /* [ranks*slots] rows given to the slot */
    int32_t *first;        /* [experts+1] into slot */
    int32_t *slot;         /* global slots by expert, ascending */
    int32_t *order;        /* experts with rows and several copies, most rows first */
    int n_order;
    /* Why the level is not lower: the rows of experts with copies on these ranks alone fill them. None if it is the mean's. */
    int32_t *tight; /* [ranks] */
    int n_tight;
    /* Of the search. */
    int64_t *left;  /* [experts] rows that no copy has yet */
    int32_t *queue; /* [ranks] full ranks in the order that it met them */
    int32_t *via;   /* [ranks] the slot by which it met the rank, -1: not met */
    int32_t
        *from; /* [experts] the slot that could give rows away, -1: has rows left, -2: not met */
    int32_t *held; /* [ranks*slots] copies as moe_flow_again last saw them */
} MoeFlow;

int64_t moe_flow_scratch(int experts, int ranks, int slots);
/* Lays the arrays out in scratch, which may lie anywhere and is the caller's. */
void moe_flow_init(MoeFlow *f, int experts, int ranks, int slots, void *scratch);
/* Divides the experts' rows, sources [experts][shards] of them. Experts without a copy are left out. */
void moe_flow_divide(MoeFlow *f, const int32_t *copies, const int32_t *counts, int shards);
/* The same rows with copies that changed since, in place or by another array; what still holds is kept. Also after that the level
 * is the least, but amounts depend on what was before. */
void moe_flow_again(MoeFlow *f, const int32_t *copies);
/* Gives left[e] rows to e's copies so that its ranks become level, none above `level`; left[e] is what then remains. */
void moe_flow_fill(MoeFlow *f, int e);

#endif
