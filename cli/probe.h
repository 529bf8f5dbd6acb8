/* Inside `moec probe`: measuring what a cluster file says. Called by cmd_probe.c as each rank. */
#ifndef MOE_CLI_PROBE_H
#define MOE_CLI_PROBE_H

#include "cli/driver.h"
#include "placement/cluster.h"
#include "runtime/comm.h"

/* A model that is trained for a few steps to see how fast its kernels run. */
typedef struct {
    const char *name;
    MoeCompiled compiled;
    MoePlan *plan; /* one rank's, linked */
} MoeProbeModel;

enum { MOE_PROBE_MODELS = 6 };

/* Compiles the models, small and large, f32 and bf16, on the CPU target `target`. To be freed also after an error. */
MoeStatus moe_probe_models(const char *target, MoeProbeModel models[MOE_PROBE_MODELS], int *n);
void moe_probe_models_free(MoeProbeModel *models, int n);

/* Trains them on every rank of comm at the same time, each by itself with so many threads; *out: this rank's rates. */
MoeStatus moe_probe_compute(const MoeProbeModel *models, int n, int threads, MoeComm *comm, MoeRates *out);

/* nodes, ranks_per_node and links, from hosts' names and exchanges of all ranks at once: the same on every rank. MOE_E_INPUT if
 * hosts do not have equally many ranks, one host after the other. */
MoeStatus moe_probe_links(MoeComm *comm, MoeCluster *out);

/* Bytes a second that all ranks' copying moves, of one rank; read and written bytes both count. */
MoeStatus moe_probe_memory(MoeComm *comm, double *out);

#endif
