/* See mesh.h. */
#include "base/mesh.h"

#include <string.h>

MoeMesh moe_mesh_one(void) {
    return (MoeMesh){1, 1, 1, 1, 1};
}

int moe_mesh_size(const MoeMesh *m) {
    return m->dp * m->shard * m->ep * m->tp;
}

int moe_mesh_data_ranks(const MoeMesh *m) {
    return m->dp * m->shard * m->ep;
}

MoeCoords moe_mesh_coords(const MoeMesh *m, int rank) {
    int data = rank / m->tp, rest = data / m->ep;
    return (MoeCoords){rest / m->shard, rest % m->shard, data % m->ep, rank % m->tp, data};
}

const char *moe_mesh_group_name(MoeMeshGroup g) {
    static const char *const names[] = {
#define X(id, name) #name,
        MOE_MESH_GROUPS(X)
#undef X
    };
    return names[g];
}

bool moe_mesh_group_from_name(const char *name, MoeMeshGroup *out) {
    for (int g = 0; g < MOE_N_GROUPS; g++)
        if (!strcmp(moe_mesh_group_name((MoeMeshGroup)g), name)) {
            *out = (MoeMeshGroup)g;
            return true;
        }
    return false;
}

/* Data ranks of the group of data rank d: first, stride and count. */
static int data_group(const MoeMesh *m, MoeCoords c, MoeMeshGroup g, int *first, int *stride) {
    int per_dp = m->shard * m->ep, w = per_dp / m->dense_shard, in_dp = c.data % per_dp;
    *first = c.data;
    *stride = 1;
    switch (g) {
    case MOE_GROUP_WORLD:
    case MOE_GROUP_DATA:
        *first = 0;
        return m->dp * per_dp;
    case MOE_GROUP_EP:
        *first = c.data - c.ep;
        return m->ep;
    case MOE_GROUP_EXPERT_DATA:
        *first = c.ep;
        *stride = m->ep;
        return m->dp * m->shard;
    case MOE_GROUP_EXPERT_SHARD:
        *first = c.dp * per_dp + c.ep;
        *stride = m->ep;
        return m->shard;
    case MOE_GROUP_DENSE_SHARD:
        *first = c.dp * per_dp + in_dp % w;
        *stride = w;
        return m->dense_shard;
    case MOE_GROUP_TP:
    case MOE_N_GROUPS:
        break;
    }
    return 1;
}

int moe_mesh_group_size(const MoeMesh *m, MoeMeshGroup g) {
    int first, stride, n = data_group(m, moe_mesh_coords(m, 0), g, &first, &stride);
    return g == MOE_GROUP_TP || g == MOE_GROUP_WORLD ? n * m->tp : n;
}

int moe_mesh_group_ranks(const MoeMesh *m, int rank, MoeMeshGroup g, int *out) {
    MoeCoords c = moe_mesh_coords(m, rank);
    int first, stride, n = data_group(m, c, g, &first, &stride), self = 0, at = 0;
    bool all_tp = g == MOE_GROUP_TP || g == MOE_GROUP_WORLD;
    for (int i = 0; i < n; i++)
        for (int t = 0; t < m->tp; t++) {
            if (!all_tp && t != c.tp)
                continue;
            int r = (first + i * stride) * m->tp + t;
            if (r == rank)
                self = at;
            out[at++] = r;
        }
    return self;
}

MoeStatus moe_mesh_check(const MoeMesh *m, int virtual_shards, int micro_batches) {
    const struct {
        int n;
        const char *what;
    } degrees[] = {{m->dp, "data-parallel degree"},
                   {m->shard, "hybrid shard degree"},
                   {m->ep, "expert parallel degree"},
                   {m->tp, "tensor parallel degree"},
                   {m->dense_shard, "dense shard degree"}};
    for (int i = 0; i < 5; i++)
        if (degrees[i].n < 1 || degrees[i].n > MOE_MAX_RANKS)
            return moe_error(MOE_E_MISUSE, "%s %d: expected 1 to %d", degrees[i].what, degrees[i].n,
                             MOE_MAX_RANKS);
    int64_t d = (int64_t)m->dp * m->shard * m->ep;
    if (d > MOE_MAX_RANKS || d * m->tp > MOE_MAX_RANKS)
        return moe_error(MOE_E_MISUSE, "%lld ranks are more than %d", (long long)(d * m->tp),
                         MOE_MAX_RANKS);
    if (m->shard * m->ep % m->dense_shard)
        return moe_error(MOE_E_MISUSE,
                         "dense shard degree %d does not divide %d (hybrid shard degree %d x expert "
                         "parallel degree %d)",
                         m->dense_shard, m->shard * m->ep, m->shard, m->ep);
    if (d & (d - 1))
        return moe_error(MOE_E_MISUSE,
                         "%lld data ranks (%d x %d x %d): their number must be a power of two",
                         (long long)d, m->dp, m->shard, m->ep);
    if (d * micro_batches > virtual_shards)
        return moe_error(MOE_E_MISUSE,
                         "%lld data ranks x %d micro-batches are more than %d virtual shards; give "
                         "--virtual-shards %lld or more",
                         (long long)d, micro_batches, virtual_shards,
                         (long long)(d * micro_batches));
    return NULL;
}

MoeSlice moe_slice(int64_t n, int64_t unit, int parts, int index) {
    int64_t blocks = (n + unit - 1) / unit, lo = blocks * index / parts,
            hi = blocks * (index + 1) / parts, cap = (blocks + parts - 1) / parts * unit;
    MoeSlice s = {lo * unit, 0, cap < n ? cap : n};
    int64_t end = hi * unit < n ? hi * unit : n;
    if (s.first > n)
        s.first = n;
    s.count = end - s.first;
    return s;
}

MoeSumShares moe_sum_shares(int n, int parts, int64_t elements, int64_t unit, int64_t outer) {
    const int64_t worth = 32768; /* bytes that a second exchange must save */
    int owners = n / parts;
    int64_t slice = moe_slice(elements, unit, parts, 0).cap,
            part = moe_slice(slice, MOE_SUM_PART, owners, 0).cap,
            direct = (n - 1) * slice * 4 * outer, turns = (n - 1 + owners - 1) * part * 4 * outer;
    MoeSumShares s = {.twice = owners > 1 && direct - turns > worth};
    s.share = s.twice ? part : slice;
    s.stage_bytes = ((n - 1) * s.share * 4 * outer + 63) / 64 * 64;
    s.sent_bytes = s.twice ? turns : direct;
    return s;
}

int moe_mesh_slots(const MoeMesh *m, int experts) {
    return (experts + m->ep - 1) / m->ep;
}

int moe_mesh_shard_run(const MoeMesh *m, int virtual_shards, int micro_batches, int micro_batch,
                       int data_rank, int *out_first) {
    int per_micro = virtual_shards / micro_batches, n = per_micro / moe_mesh_data_ranks(m);
    *out_first = micro_batch * per_micro + data_rank * n;
    return n;
}

int64_t moe_mesh_most_sequences(const MoeMesh *m, int64_t batch, int virtual_shards,
                                int micro_batches) {
    int64_t parts = (int64_t)micro_batches * moe_mesh_data_ranks(m), most = 0;
    (void)virtual_shards;
    for (int64_t i = 0; i < parts; i++) {
        int64_t n = (i + 1) * batch / parts - i * batch / parts;
        most = n > most ? n : most;
    }
    return most;
}
