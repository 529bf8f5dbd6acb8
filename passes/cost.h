/* The cost model: FLOPs of an op, bytes a group moves, and the seconds they predict (a roofline). Sizes are the static
 * ones: on one rank the capacity of expert rows is exact. Called by kernels and by whoever explains a plan. */
#ifndef MOE_PASSES_COST_H
#define MOE_PASSES_COST_H

#include "ir/target.h"
#include "placement/rates.h"

typedef struct {
    double flops, bytes, seconds;
} MoeCost;

/* FLOPs of one op, by the cost column of ops.def. */
double moe_op_flops(const MoeOp *op);
/* The part of a group's work that goes by rows of experts, of which a rank gets as many as routing sends it. */
typedef struct {
    const MoeValue *rows; /* the table that counts them: segs; NULL: there is none */
    double expect;        /* rows when routing is balanced */
    double flops, bytes;  /* of those */
} MoeElasticCost;
MoeElasticCost moe_group_elastic(const MoeGroup *g);

/* Which table has the group's rate: by the op that most of the time goes to. */
MoeRateName moe_group_rate(const MoeGroup *g);
/* Bytes read and written to pack the op's weights before its product; 0: it packs nothing of its own. */
double moe_op_packed_bytes(const MoeOp *op);
/* The group's seconds on one rank by measured rates; c: its FLOPs and bytes. Packing takes as long for few rows as for many. */
double moe_group_rated_seconds(const MoeGroup *g, const MoeRates *r, MoeCost c);

/* Of a group: max(flops / (threads * peak), bytes / bandwidth). rows: of experts, times what balanced routing gives (1). */
MoeCost moe_group_cost(const MoeTarget *t, const MoeGroup *g, int n_threads, double rows);

#endif
