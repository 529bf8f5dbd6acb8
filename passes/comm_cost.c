/* The cost of exchanges. In: a group of COMM ops, the mesh and the cluster. Out: bytes, seconds, staging memory. */
#include "passes/comm_cost.h"

#include <string.h>

#include "base/arena.h"
#include "base/assert.h"
#include "base/pool.h"
#include "passes/group.h"

/* ---- who is where ---- */

static void most(int to[MOE_N_LINKS], const int from[MOE_N_LINKS]) {
    for (int k = 0; k < MOE_N_LINKS; k++)
        to[k] = from[k] > to[k] ? from[k] : to[k];
}

/* slice: of each rank, which slice of a sum over group g it wants. */
static void count_peers(MoeCommModel *m, MoeMeshGroup g, const int *slice, int *ranks) {
    for (int r = 0; r < moe_mesh_size(&m->mesh); r++) {
        int peers[MOE_N_LINKS] = {0}, owners[MOE_N_LINKS] = {0};
        moe_mesh_group_ranks(&m->mesh, r, g, ranks);
        for (int i = 0; i < moe_mesh_group_size(&m->mesh, g); i++) {
            if (ranks[i] == r)
                continue;
            MoeLinkClass k = moe_cluster_link(&m->cluster, r, ranks[i]);
            peers[k]++;
            owners[k] += slice[ranks[i]] == slice[r];
        }
        most(m->peers[g], peers);
        most(m->owners[g], owners);
    }
}

void moe_comm_model(const MoePassContext *cx, MoeCommModel *out) {
    const MoePassOptions *o = &cx->options;
    memset(out, 0, sizeof *out);
    out->skew = cx->skew;
    out->mesh = moe_pass_mesh(o);
    out->cluster = moe_pass_cluster(o);
    MoeArena *a = moe_arena_create();
    int n = moe_mesh_size(&out->mesh), *ranks = MOE_NEW_N(a, int, n), *slice = MOE_NEW_N(a, int, n);
    for (int g = 0; g < MOE_N_GROUPS; g++) {
        MoeMeshGroup sum = (MoeMeshGroup)g;
        MoeMeshGroup shares = moe_mesh_group_kind(sum) == MOE_GROUP_EXPERT_DATA
                                  ? moe_mesh_group_in(MOE_GROUP_EXPERT_SHARD, moe_mesh_group_division(sum))
                                  : MOE_GROUP_DENSE_SHARD;
        if (!moe_mesh_has_group(&out->mesh, sum))
            continue;
        for (int r = 0; r < n; r++)
            slice[r] = moe_mesh_group_ranks(&out->mesh, r, shares, ranks);
        count_peers(out, (MoeMeshGroup)g, slice, ranks);
    }
    moe_arena_destroy(a);
}

/* ---- bytes ---- */

static MoeMeshGroup group_of(const MoeOp *op, const char *key) {
    MoeMeshGroup g = MOE_GROUP_WORLD;
    bool known = moe_mesh_group_from_name(moe_attr_s(op, key), &g);
    MOE_ASSERT(known, "%s: group \"%s\"", moe_op_info(op->opcode)->name, moe_attr_s(op, key));
    return g;
}

static MoeSumShares shares_of(const MoeOp *op, const MoeMesh *mesh) {
    const MoeType *x = &op->operands[0]->type;
    if (op->opcode == MOE_OP_ALL_REDUCE)
        return moe_sum_shares(moe_mesh_group_size(mesh, group_of(op, "group")), 1,
                              moe_type_elements(x), 1, 1);
    int64_t outer = moe_attr_i(op, "outer") ? x->dims[0].size : 1;
    return moe_sum_shares(moe_mesh_group_size(mesh, group_of(op, "sum")),
                          moe_mesh_group_size(mesh, group_of(op, "scatter")),
                          outer ? moe_type_elements(x) / outer : 0, moe_attr_i(op, "unit"), outer);
}

static bool is_sum(const MoeOp *op) {
    return op->opcode == MOE_OP_REDUCE_SCATTER || op->opcode == MOE_OP_ALL_REDUCE;
}

/* Of one of the slots that the op's first operand has. */
static double slot_bytes(const MoeOp *op) {
    const MoeType *t = &op->operands[0]->type;
    return (double)moe_type_bytes(t) / (double)t->dims[0].size;
}

/* Of roots that a rank sends to primaries, or gets: each of its copies has one, and about as many more as root_plan expects. */
static double root_bytes(const MoeOp *op, const MoeMesh *mesh) {
    const MoeValue *rest = op->operands[1];
    double more = (double)moe_segs_expected_rows(rest->type.dims[0].seg, rest->type.dims[0].size);
    return slot_bytes(op) * (mesh->extra_slots + more / 2);
}

double moe_comm_sent_bytes(const MoeOp *op, const MoeMesh *mesh) {
    if (is_sum(op))
        return (double)shares_of(op, mesh).sent_bytes;
    if (op->opcode == MOE_OP_COPY_EXPERTS) /* all slots for copies are taken, here and elsewhere */
        return slot_bytes(op) * mesh->extra_slots;
    if (op->opcode == MOE_OP_FOLD_COPIES)
        return root_bytes(op, mesh);
    double n = moe_mesh_group_size(mesh, group_of(op, "group"));
    const MoeValue *x = op->operands[0], *y = op->results[0];
    if (op->opcode == MOE_OP_ALL_GATHER) /* this rank's part of the result, to each of the others */
        return (double)moe_type_bytes(&y->type) / n * (n - 1);
    if (op->opcode == MOE_OP_ALL_GATHER_ROWS)
        return (double)moe_value_expected_bytes(x) * (n - 1);
    double share = (n - 1) / n; /* balanced: every rank, this one too, gets as many rows */
    if (op->opcode == MOE_OP_A2A_COMBINE)
        return (double)moe_value_expected_bytes(x) * share;
    double row = (double)(moe_type_cols(&x->type) * moe_dtype_bytes(x->type.dtype));
    return (double)moe_value_expected_elements(op->operands[1]) * row * share;
}

/* ---- seconds ---- */

static void carry(double seconds[MOE_N_LINKS], double bytes, const int peers[MOE_N_LINKS],
                  const MoeCluster *c) {
    double all = 0;
    for (int k = 0; k < MOE_N_LINKS; k++)
        all += peers[k];
    for (int k = 0; k < MOE_N_LINKS; k++)
        if (peers[k])
            seconds[k] += bytes * peers[k] / all / c->links[k].bandwidth;
}

/* A sum in two turns: terms to those that add up a part, then the parts to those that want them. */
static void sum_links(const MoeOp *op, const MoeCommModel *m, MoeLinkSeconds *out) {
    bool reduce = op->opcode == MOE_OP_ALL_REDUCE;
    MoeMeshGroup g = group_of(op, reduce ? "group" : "sum");
    const int *owners = reduce ? m->peers[g] : m->owners[g];
    MoeSumShares s = shares_of(op, &m->mesh);
    double n = moe_mesh_group_size(&m->mesh, g) - 1,
           again = s.twice ? owners[MOE_LINK_INTRA] + owners[MOE_LINK_INTER] : 0,
           sent = (double)s.sent_bytes;
    if (n > 0)
        carry(out->first, sent * n / (n + again), m->peers[g], &m->cluster);
    if (again > 0)
        carry(out->second, sent * again / (n + again), owners, &m->cluster);
}

/* Expert rows with the model's skew: what the busiest link of each class carries. */
static bool skewed_links(const MoeOp *op, const MoeSkewLayer *s, const MoeCluster *c,
                         double seconds[MOE_N_LINKS]) {
    bool home = op->opcode == MOE_OP_A2A_COMBINE;
    if (!s || (!home && op->opcode != MOE_OP_A2A_DISPATCH))
        return false;
    const MoeType *x = &op->operands[0]->type;
    double row = (double)(moe_type_cols(x) * moe_dtype_bytes(x->dtype));
    for (int k = 0; k < MOE_N_LINKS; k++)
        if ((home ? s->of.home[k] : s->of.there[k]) > 0)
            seconds[k] += (home ? s->of.home[k] : s->of.there[k]) * row / c->links[k].bandwidth;
    return true;
}

/* Of all links, whoever carries. */
static MoeLinkSeconds link_seconds(const MoeGroup *g, const MoeCommModel *m) {
    MoeLinkSeconds l = {{0}, {0}};
    if (g->ops[0]->opcode == MOE_OP_WAIT)
        return l;
    const MoeSkewLayer *skew = moe_skew_of(m->skew, g);
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i];
        if (skewed_links(op, skew, &m->cluster, l.first))
            continue;
        if (is_sum(op))
            sum_links(op, m, &l);
        else
            carry(l.first, moe_comm_sent_bytes(op, &m->mesh), m->peers[group_of(op, "group")],
                  &m->cluster);
    }
    return l;
}

MoeLinkSeconds moe_comm_links(const MoeGroup *g, const MoeCommModel *m) {
    MoeLinkSeconds l = link_seconds(g, m);
    if (m->cluster.by_cores)
        l.first[MOE_LINK_INTRA] = l.second[MOE_LINK_INTRA] = 0;
    return l;
}

/* Bytes of a gather or of experts' rows that stay on the rank: as many as go to each of the others. They are read and written. */
static double own_bytes(const MoeOp *op, const MoeMesh *mesh) {
    bool moves = op->opcode == MOE_OP_ALL_GATHER || op->opcode == MOE_OP_ALL_GATHER_ROWS ||
                 op->opcode == MOE_OP_A2A_DISPATCH || op->opcode == MOE_OP_A2A_COMBINE;
    int others = moves ? moe_mesh_group_size(mesh, group_of(op, "group")) - 1 : 0;
    return others > 0 ? 2 * moe_comm_sent_bytes(op, mesh) / others : 0;
}

/* Bytes that adding up reads and writes: it takes as long as copying, as it waits for memory. */
static double fold_bytes(const MoeOp *op, const MoeMesh *mesh) {
    if (op->opcode == MOE_OP_FOLD_COPIES)
        return 3 * root_bytes(op, mesh);
    if (!is_sum(op))
        return 0;
    bool reduce = op->opcode == MOE_OP_ALL_REDUCE;
    int n = moe_mesh_group_size(mesh, group_of(op, reduce ? "group" : "sum"));
    const MoeType *x = &op->operands[0]->type;
    double rows = !reduce && moe_attr_i(op, "outer") ? (double)x->dims[0].size : 1;
    return n > 1 ? 4 * rows * (double)shares_of(op, mesh).share * (n + 1) : 0;
}

MoeCoreSeconds moe_comm_cores(const MoeGroup *g, const MoeCommModel *m) {
    MoeCoreSeconds c = {0};
    if (g->ops[0]->opcode == MOE_OP_WAIT)
        return c;
    double own = 0, fold = 0;
    for (size_t i = 0; i < g->n_ops; i++) {
        own += own_bytes(g->ops[i], &m->mesh);
        fold += fold_bytes(g->ops[i], &m->mesh);
    }
    c.own = moe_rates_seconds(&m->cluster.rates, MOE_RATE_copy, own);
    c.fold = moe_rates_seconds(&m->cluster.rates, MOE_RATE_copy, fold);
    if (m->cluster.by_cores) {
        MoeLinkSeconds l = link_seconds(g, m);
        c.copy[0] = l.first[MOE_LINK_INTRA];
        c.copy[1] = l.second[MOE_LINK_INTRA];
    }
    return c;
}

/* Bytes that leave or come; they move beside the steps. */
static MoeCost store_cost(const MoeGroup *g) {
    MoeCost c = {0};
    for (size_t i = 0; i < g->n_ops; i++)
        c.bytes += (double)moe_value_expected_bytes(g->ops[i]->results[0]);
    return c;
}

static MoeCost kernel_cost(const MoeTarget *t, const MoeGroup *g, const MoeCommModel *m, double rows) {
    int threads = moe_cpu_count() / m->cluster.ranks_per_node; /* ranks on one host share its cores */
    MoeCost c = moe_group_cost(t, g, threads > 1 ? threads : 1, rows);
    if (moe_cluster_predicts(&m->cluster))
        c.seconds = moe_cluster_seconds(&m->cluster, c.flops, c.bytes);
    else if (m->cluster.rates.threads)
        c.seconds = moe_group_rated_seconds(g, &m->cluster.rates, c);
    return c;
}

double moe_kernel_seconds(const MoeTarget *t, const MoeGroup *g, const MoeCommModel *m, double rows) {
    return kernel_cost(t, g, m, rows).seconds;
}

MoeCost moe_step_cost(const MoeTarget *t, const MoeGroup *g, const MoeCommModel *m) {
    if (moe_op_is_store(g->ops[0]))
        return store_cost(g);
    if (!moe_group_is_comm(g)) {
        const MoeSkewLayer *skew = moe_skew_of(m->skew, g);
        MoeCost c = kernel_cost(t, g, m, 1);
        c.seconds = skew ? moe_kernel_seconds(t, g, m, skew->of.rows) : c.seconds;
        return c;
    }
    MoeCost c = {0};
    for (size_t i = 0; i < g->n_ops && g->ops[0]->opcode != MOE_OP_WAIT; i++)
        c.bytes += moe_comm_sent_bytes(g->ops[i], &m->mesh);
    MoeSimProblem alone = {.latency = {m->cluster.links[0].latency, m->cluster.links[1].latency}};
    MoeSimStep step = {.kind = MOE_SIM_OTHER_COMM, .links = moe_comm_links(g, m), .cores = moe_comm_cores(g, m)};
    c.seconds = moe_sim_alone(&alone, &step);
    return c;
}

int64_t moe_comm_staging(const MoeGroup *g, const MoeMesh *mesh) {
    int64_t n = 0;
    for (size_t i = 0; i < g->n_ops; i++) {
        n += is_sum(g->ops[i]) ? shares_of(g->ops[i], mesh).stage_bytes : 0;
        n += g->ops[i]->opcode == MOE_OP_FOLD_COPIES ? (int64_t)root_bytes(g->ops[i], mesh) : 0;
    }
    return n;
}
