/* See pass.h. */
#include "passes/pass.h"

/* Links of one host: what a rank copies out of another's memory. */
#define HOST_LATENCY   1e-5
#define HOST_BANDWIDTH 8e9

MoeMesh moe_pass_mesh(const MoePassOptions *o) {
    return o->mesh.dp ? o->mesh : moe_mesh_one();
}

MoeCluster moe_pass_cluster(const MoePassOptions *o) {
    MoeMesh mesh = moe_pass_mesh(o);
    if (o->cluster.nodes)
        return o->cluster;
    return (MoeCluster){.nodes = 1,
                        .ranks_per_node = moe_mesh_size(&mesh),
                        .links = {{HOST_LATENCY, HOST_BANDWIDTH}, {HOST_LATENCY, HOST_BANDWIDTH}}};
}
