/* What the commands that compile say of the cluster, of overlap and of offload: --cluster, --overlap, --overlap-chunks,
 * --offload-activations, --activation-loading-horizon. */
#ifndef MOE_CLI_CLUSTER_OPTIONS_H
#define MOE_CLI_CLUSTER_OPTIONS_H

#include "cli/strategy.h"
#include "passes/pass.h"

/* Fills in offload and loading_horizon of *pass. */
MoeStatus moe_offload_from_options(const MoeOptions *o, MoePassOptions *pass);
/* Fills in cluster, overlap and overlap_chunks of *pass. A cluster says how many ranks there are if the strategy does not.
 * MOE_E_MISUSE, MOE_E_INPUT. */
MoeStatus moe_cluster_from_options(const MoeOptions *o, MoeStrategy *strategy, MoePassOptions *pass);
/* MOE_E_MISUSE unless the mesh has as many ranks as the cluster, if there is one. */
MoeStatus moe_cluster_check_mesh(const MoePassOptions *pass);

#endif
