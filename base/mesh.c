/* See mesh.h. */
#include "base/mesh.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"

MoeMesh moe_mesh_one(void) {
    return (MoeMesh){.dp = 1, .shard = 1, .ep = 1, .tp = 1, .dense_shard = 1};
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

/* ---- divisions ---- */

int moe_mesh_of_layer(const MoeMesh *m, int layer) {
    const MoeMeshRange *own = NULL;
    for (int i = 0; i < m->n_ranges; i++)
        if (layer >= m->ranges[i].first && layer <= m->ranges[i].last)
            own = &m->ranges[i];
    if (!own || (own->shard == m->shard && own->ep == m->ep))
        return 0;
    int k = 0;
    while (m->ranges[k].shard != own->shard || m->ranges[k].ep != own->ep)
        k++;
    return k + 1;
}

MoeMesh moe_mesh_division(const MoeMesh *m, int k) {
    MoeMesh d = *m;
    d.n_ranges = 0;
    if (!k)
        return d;
    MOE_ASSERT(k <= m->n_ranges, "division %d of %d", k, m->n_ranges);
    const MoeMeshRange *r = &m->ranges[k - 1];
    return (MoeMesh){.dp = r->dp,
                     .shard = r->shard,
                     .ep = r->ep,
                     .tp = m->tp,
                     .dense_shard = 1,
                     .extra_slots = m->extra_slots};
}

void moe_mesh_input_name(const char *what, int k, char *name) {
    if (k)
        snprintf(name, 32, "%s.%d", what, k);
    else
        snprintf(name, 32, "%s", what);
}

bool moe_mesh_is_input(const char *name, const char *what, int *out_k) {
    size_t n = strlen(what);
    *out_k = 0;
    if (strncmp(name, what, n) != 0)
        return false;
    if (name[n] == '.')
        *out_k = atoi(name + n + 1);
    return !name[n] || (*out_k > 0 && *out_k <= MOE_MAX_RANGES);
}

/* ---- groups ---- */

static const MoeMeshGroup divided[] = {MOE_GROUP_EP, MOE_GROUP_EXPERT_DATA, MOE_GROUP_EXPERT_SHARD};

MoeMeshGroup moe_mesh_group_in(MoeMeshGroup g, int k) {
    for (int i = 0; k && i < 3; i++)
        if (g == divided[i])
            return (MoeMeshGroup)(MOE_N_OWN_GROUPS + 3 * (k - 1) + i);
    return g;
}

MoeMeshGroup moe_mesh_group_kind(MoeMeshGroup g) {
    return g < MOE_N_OWN_GROUPS ? g : divided[(g - MOE_N_OWN_GROUPS) % 3];
}

int moe_mesh_group_division(MoeMeshGroup g) {
    return g < MOE_N_OWN_GROUPS ? 0 : (int)(g - MOE_N_OWN_GROUPS) / 3 + 1;
}

bool moe_mesh_has_group(const MoeMesh *m, MoeMeshGroup g) {
    return moe_mesh_group_division(g) <= m->n_ranges;
}

const char *moe_mesh_group_name(MoeMeshGroup g) {
#define DIVISION(k) "ep." #k, "expert_data." #k, "expert_shard." #k
    static const char *const names[] = {
#define X(id, name) #name,
        MOE_MESH_GROUPS(X)
#undef X
        DIVISION(1), DIVISION(2), DIVISION(3), DIVISION(4), DIVISION(5), DIVISION(6), DIVISION(7),
        DIVISION(8), DIVISION(9), DIVISION(10), DIVISION(11), DIVISION(12), DIVISION(13),
        DIVISION(14), DIVISION(15)};
#undef DIVISION
    _Static_assert(sizeof names / sizeof *names == MOE_N_GROUPS, "a name for each group");
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
    case MOE_N_OWN_GROUPS:
    case MOE_N_GROUPS:
        break;
    }
    return 1;
}

int moe_mesh_group_size(const MoeMesh *m, MoeMeshGroup g) {
    if (moe_mesh_group_division(g)) {
        MoeMesh d = moe_mesh_division(m, moe_mesh_group_division(g));
        return moe_mesh_group_size(&d, moe_mesh_group_kind(g));
    }
    int first, stride, n = data_group(m, moe_mesh_coords(m, 0), g, &first, &stride);
    return g == MOE_GROUP_TP || g == MOE_GROUP_WORLD ? n * m->tp : n;
}

int moe_mesh_group_ranks(const MoeMesh *m, int rank, MoeMeshGroup g, int *out) {
    if (moe_mesh_group_division(g)) {
        MoeMesh d = moe_mesh_division(m, moe_mesh_group_division(g));
        return moe_mesh_group_ranks(&d, rank, moe_mesh_group_kind(g), out);
    }
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

static MoeStatus check_ranges(const MoeMesh *m) {
    if (m->n_ranges < 0 || m->n_ranges > MOE_MAX_RANGES)
        return moe_error(MOE_E_MISUSE, "%d ranges of layers: at most %d", m->n_ranges,
                         MOE_MAX_RANGES);
    int D = moe_mesh_data_ranks(m);
    for (int i = 0; i < m->n_ranges; i++) {
        const MoeMeshRange *r = &m->ranges[i], *before = i ? r - 1 : NULL;
        if (r->first < 0 || r->last < r->first)
            return moe_error(MOE_E_MISUSE, "layers %d to %d: no range of layers", r->first,
                             r->last);
        if (before && r->first <= before->last)
            return moe_error(MOE_E_MISUSE,
                             "layers %d to %d and layers %d to %d: ranges in order that have no "
                             "layer in common are needed",
                             before->first, before->last, r->first, r->last);
        if (r->dp < 1 || r->shard < 1 || r->ep < 1 || r->dp > D || r->shard > D || r->ep > D ||
            (int64_t)r->dp * r->shard * r->ep != D)
            return moe_error(MOE_E_MISUSE,
                             "layers %d to %d: %d x %d x %d (data parallel x hybrid shard x expert "
                             "parallel degree) are not the %d data ranks",
                             r->first, r->last, r->dp, r->shard, r->ep, D);
    }
    return NULL;
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
    if (m->extra_slots < 0 || m->extra_slots > MOE_MAX_EXTRA_SLOTS)
        return moe_error(MOE_E_MISUSE, "%d extra slots a rank: expected 0 to %d", m->extra_slots,
                         MOE_MAX_EXTRA_SLOTS);
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
    return check_ranges(m);
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
    return (experts + m->ep - 1) / m->ep + (moe_mesh_has_copies(m) ? m->extra_slots : 0);
}

bool moe_mesh_has_copies(const MoeMesh *m) {
    return m->ep > 1 && m->extra_slots > 0;
}

int moe_mesh_shard_run(const MoeMesh *m, int virtual_shards, int micro_batches, int micro_batch,
                       int data_rank, int *out_first) {
    int per_micro = virtual_shards / micro_batches, n = per_micro / moe_mesh_data_ranks(m);
    *out_first = micro_batch * per_micro + data_rank * n;
    return n;
}

/* Its shards begin where a whole number of parts of the batch ends: floor(i batch / parts), whatever the shards. */
int64_t moe_mesh_most_sequences(const MoeMesh *m, int64_t batch, int micro_batches) {
    int64_t parts = (int64_t)micro_batches * moe_mesh_data_ranks(m);
    return (batch + parts - 1) / parts;
}
