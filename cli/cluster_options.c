/* See cluster_options.h. */
#include "cli/cluster_options.h"

#include <string.h>

MoeStatus moe_offload_from_options(const MoeOptions *o, MoePassOptions *pass) {
    int64_t horizon = moe_opt_i(o, OPT_LOADING_HORIZON);
    if (horizon < 0 || horizon > 1 << 20)
        return moe_error(MOE_E_MISUSE,
                         "--activation-loading-horizon %lld: expected 0 (as late as possible) or "
                         "more layers",
                         (long long)horizon);
    pass->offload = moe_opt_b(o, OPT_OFFLOAD);
    pass->loading_horizon = (int)horizon;
    return NULL;
}

MoeStatus moe_cluster_from_options(const MoeOptions *o, MoeStrategy *strategy, MoePassOptions *pass) {
    const char *path = moe_opt(o, OPT_CLUSTER);
    int64_t chunks = moe_opt_i(o, OPT_OVERLAP_CHUNKS);
    if (chunks < 0 || chunks > 64)
        return moe_error(MOE_E_MISUSE, "--overlap-chunks %lld: expected 0 (chosen) to 64",
                         (long long)chunks);
    pass->overlap = strcmp(moe_opt(o, OPT_OVERLAP), "on") == 0;
    pass->overlap_chunks = (int)chunks;
    if (!*path)
        return NULL;
    MOE_TRY(moe_cluster_load(path, &pass->cluster));
    if (!strategy->ranks)
        strategy->ranks = moe_cluster_ranks(&pass->cluster);
    return NULL;
}

MoeStatus moe_cluster_check_mesh(const MoePassOptions *pass) {
    MoeMesh mesh = moe_pass_mesh(pass);
    return pass->cluster.nodes ? moe_cluster_check_ranks(&pass->cluster, moe_mesh_size(&mesh)) : NULL;
}
