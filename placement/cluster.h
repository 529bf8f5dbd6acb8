/* A cluster as cost models and the emulation of links see it: nodes, ranks on each, the links inside and between them, and
 * optionally how fast a rank computes. Read from cluster.json (docs/CLUSTER.md). Ranks fill one node after another:
 * rank r is on node r / ranks_per_node. */
#ifndef MOE_PLACEMENT_CLUSTER_H
#define MOE_PLACEMENT_CLUSTER_H

#include <stdbool.h>
#include <stddef.h>
#include "base/json.h"
#include "base/mesh.h"
#include "base/status.h"
#include "placement/rates.h"

typedef struct {
    double latency;   /* seconds from the first byte's departure to its arrival */
    double bandwidth; /* bytes a second, of one rank, each direction by itself */
} MoeLink;

typedef enum { MOE_LINK_INTRA, MOE_LINK_INTER, MOE_N_LINKS } MoeLinkClass;

typedef struct {
    int nodes, ranks_per_node;
    MoeLink links[MOE_N_LINKS];
    bool by_cores;           /* ranks' own cores copy what goes over links inside a node: no kernel runs beside (predictions) */
    double flops;            /* FLOP/s of a rank; 0 = not given: compute is measured */
    double memory_bandwidth; /* bytes/s of a rank; 0 = not given */
    MoeRates rates;          /* measured by kind and size; where neither of the two above is given */
    bool real_time;          /* emulation also takes the time that it emulates */
} MoeCluster;

/* MOE_E_INPUT naming file and key. */
MoeStatus moe_cluster_load(const char *path, MoeCluster *out);
/* From JSON text of n bytes; `name` stands for the file in errors. */
MoeStatus moe_cluster_parse(const char *text, size_t n, const char *name, MoeCluster *out);
/* From a JSON object, the same. */
MoeStatus moe_cluster_read(const json_t *o, const char *name, MoeCluster *out);
/* As cluster.json, the caller's. */
json_t *moe_cluster_json(const MoeCluster *c);
int moe_cluster_ranks(const MoeCluster *c);
/* MOE_E_MISUSE with both numbers unless the cluster has just so many ranks. */
MoeStatus moe_cluster_check_ranks(const MoeCluster *c, int ranks);
/* Of the link between two different ranks. */
MoeLinkClass moe_cluster_link(const MoeCluster *c, int a, int b);
/* The cluster as the ranks of one EP group see it: EP rank r is on node r / ranks_per_node. division: a mesh without ranges.
 * Where groups do not fill whole nodes, or nodes whole groups, it is the one of the first group. */
MoeCluster moe_cluster_of_group(const MoeCluster *c, const MoeMesh *division);
/* Whether the file says how fast a rank computes. */
bool moe_cluster_predicts(const MoeCluster *c);
/* Seconds of work: the longer of its FLOPs and its bytes of memory traffic at the given rates; a rate that is not given
 * counts as infinite. */
double moe_cluster_seconds(const MoeCluster *c, double flops, double bytes);

#endif
