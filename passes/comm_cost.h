/* What exchanges between ranks cost: bytes that a rank sends when routing is balanced, the seconds that the cluster's links
 * are busy with them, and the staging memory of sums. Called by memplan, overlap and kernels, which see groups of COMM ops
 * (passes/group.h). */
#ifndef MOE_PASSES_COMM_COST_H
#define MOE_PASSES_COMM_COST_H

#include "passes/cost.h"
#include "passes/pass.h"
#include "passes/simulate.h"
#include "passes/skew.h"

/* The mesh on a cluster: how many ranks of a group are reached over each class of links, from the rank that has the most of
 * them. */
typedef struct {
    MoeMesh mesh;
    MoeCluster cluster;
    int peers[MOE_N_GROUPS][MOE_N_LINKS];
    int owners[MOE_N_GROUPS][MOE_N_LINKS]; /* of a sum over the group: those that want the same slice of it */
    const MoeSkew *skew; /* borrowed; NULL: routing is balanced */
} MoeCommModel;
void moe_comm_model(const MoePassContext *cx, MoeCommModel *out);

/* Bytes that a rank sends to others for a COMM op. */
double moe_comm_sent_bytes(const MoeOp *op, const MoeMesh *mesh);
/* Seconds that links are busy with an exchange; nothing for a group of `wait`, nor for links that are by cores. */
MoeLinkSeconds moe_comm_links(const MoeGroup *g, const MoeCommModel *m);
/* Seconds that the rank's own cores spend on it: copying what comes over links that are by cores, by their bandwidth; rows that stay
 * and sums of terms, by the cluster's rate of copying, where it has one. */
MoeCoreSeconds moe_comm_cores(const MoeGroup *g, const MoeCommModel *m);
/* Seconds of a kernel when the rank has `rows` times the rows of experts that balanced routing gives. */
double moe_kernel_seconds(const MoeTarget *t, const MoeGroup *g, const MoeCommModel *m, double rows);
/* Bytes that the runtime needs beside the slab to carry out the exchange: room for other ranks' terms of sums. */
int64_t moe_comm_staging(const MoeGroup *g, const MoeMesh *mesh);

/* Of any step: a kernel by the cluster's rates, or the target's where it gives none (moe_group_cost); an exchange by itself: no
 * FLOPs, the bytes sent; an offload or load: the bytes moved, no time; nothing for a wait. Flops and bytes are those of balanced
 * routing, seconds those of the busiest rank and link with the model's skew. */
MoeCost moe_step_cost(const MoeTarget *t, const MoeGroup *g, const MoeCommModel *m);

#endif
