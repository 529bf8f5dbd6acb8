/* See predict_ranks.h. In: steps, a load, maps. Out: seconds of a step. */
#include "passes/predict_ranks.h"

#include <math.h>
#include <string.h>

#include "base/assert.h"
#include "passes/plan_json.h"
#include "placement/links.h"

enum { MOST_STEPS = 3 }; /* of the load */

/* Rows of one MoE layer in the step and micro-batch that is looked at, by world rank. */
typedef struct {
    int layer;
    double *rows;         /* [ranks], over the mean */
    double *there, *home; /* [ranks][ranks]: tokens, rows */
} LayerFlows;

typedef struct {
    const MoePassContext *cx;
    const MoeGroups *whole;
    const MoeGroupStep *steps;
    const MoeSimProblem *p;
    const MoeCommModel *m;
    MoeArena *a;
    int n; /* ranks */
    LayerFlows *flows;
    size_t n_flows;
    /* The simulation. */
    MoeLinks *links;
    MoeTimeline ignored;
    double *clock, *compute, *exposed[MOE_N_SIM_KINDS]; /* [ranks] */
    double **end;                                       /* by step: of exchanges under way (exchange) */
    int64_t *bytes;                                     /* [ranks][ranks]: scratch */
    MoeLinkTimes *times;
    int stretch;
} Sim;

/* ---- rows of experts ---- */

static void find_flows(Sim *s, int step, int micro_batch) {
    const MoePassOptions *o = &s->cx->options;
    int micro = o->micro_batches > 1 ? o->micro_batches : 1;
    for (size_t i = 0; i < s->n_flows; i++) {
        const MoeSkewRoute *r = &s->cx->routes[i];
        LayerFlows *f = &s->flows[i];
        MoeMesh d = moe_mesh_division(&s->m->mesh, moe_mesh_of_layer(&s->m->mesh, r->layer));
        MoeSpreadWhere w = {.cluster = s->m->cluster, .groups = d.dp * d.shard, .top_k = r->top_k, .micro_batches = micro,
                            .shards = o->virtual_shards, .grain = moe_module_leaf_rows(s->cx->module)};
        double all = (double)o->batch * (double)o->seq * r->top_k / micro, mean = all / (w.groups * d.ep);
        MoeFlows g = {MOE_NEW_N(s->a, double, d.ep), MOE_NEW_N(s->a, double, d.ep * d.ep), MOE_NEW_N(s->a, double, d.ep * d.ep)};
        f->layer = r->layer;
        memset(f->there, 0, (size_t)(s->n * s->n) * sizeof *f->there);
        memset(f->home, 0, (size_t)(s->n * s->n) * sizeof *f->home);
        for (int group = 0; group < w.groups; group++) {
            moe_spread_flows(o->load, (int)i, step, micro_batch, group, &s->cx->maps[i], &w, all, &g);
            for (int q = 0; q < d.ep * d.tp; q++) { /* ranks of a group: ep, then tp */
                int to = group * d.ep * d.tp + q;
                f->rows[to] = d.ep > 1 ? g.rows[q / d.tp] / mean : 1;
                for (int p = q % d.tp; p < d.ep * d.tp; p += d.tp) {
                    int from = group * d.ep * d.tp + p;
                    f->there[from * s->n + to] = g.there[p / d.tp * d.ep + q / d.tp];
                    f->home[from * s->n + to] = g.home[p / d.tp * d.ep + q / d.tp];
                }
            }
        }
    }
}

static const LayerFlows *flows_of(const Sim *s, const MoeGroup *g) {
    int64_t layer = moe_plan_step_layer(g);
    for (size_t i = 0; i < s->n_flows; i++)
        if (s->flows[i].layer == layer)
            return &s->flows[i];
    return NULL;
}

/* ---- what exchanges carry ---- */

static MoeMeshGroup group_named(const MoeOp *op, const char *key) {
    MoeMeshGroup g = MOE_GROUP_WORLD;
    bool known = moe_mesh_group_from_name(moe_attr_s(op, key), &g);
    MOE_ASSERT(known, "%s: group \"%s\"", moe_op_info(op->opcode)->name, moe_attr_s(op, key));
    return g;
}

/* Every rank sends so many bytes to each other one of its group. */
static void add_even(Sim *s, MoeMeshGroup g, double each) {
    int ranks[MOE_PREDICT_MOST_RANKS];
    for (int p = 0; p < s->n; p++) {
        int own = moe_mesh_group_ranks(&s->m->mesh, p, g, ranks);
        for (int i = 0; i < moe_mesh_group_size(&s->m->mesh, g); i++)
            if (i != own)
                s->bytes[p * s->n + ranks[i]] += (int64_t)each;
    }
}

/* Every rank's slice, to the others: slices are whole blocks, so they are not alike. */
static void add_gather(Sim *s, const MoeOp *op) {
    MoeMeshGroup g = group_named(op, "group");
    const MoeType *x = &op->operands[0]->type, *y = &op->results[0]->type;
    int64_t outer = x->rank == 2 ? x->dims[0].size : 1, elements = moe_type_elements(y) / outer,
            size = (int64_t)moe_dtype_bytes(y->dtype);
    int ranks[MOE_PREDICT_MOST_RANKS], n = moe_mesh_group_size(&s->m->mesh, g);
    for (int p = 0; p < s->n; p++) {
        int own = moe_mesh_group_ranks(&s->m->mesh, p, g, ranks);
        int64_t mine = size * outer * moe_slice(elements, moe_attr_i(op, "unit"), n, own).count;
        for (int i = 0; i < n; i++)
            s->bytes[p * s->n + ranks[i]] += i == own ? 0 : mine;
    }
}

static void add_rows(Sim *s, const MoeOp *op, const LayerFlows *f, double share) {
    const MoeType *t = &op->operands[0]->type;
    double row = (double)(moe_type_cols(t) * moe_dtype_bytes(t->dtype)) * share;
    const double *flow = op->opcode == MOE_OP_A2A_COMBINE ? f->home : f->there;
    for (int i = 0; i < s->n * s->n; i++)
        s->bytes[i] += i / s->n == i % s->n ? 0 : (int64_t)(flow[i] * row);
}

/* A sum's members and what each adds up, as the runtime has it (runtime/exec_comm_sum.c). */
typedef struct {
    MoeMeshGroup group;
    int n, ranks[MOE_PREDICT_MOST_RANKS], slice[MOE_PREDICT_MOST_RANKS];
    int64_t share[MOE_PREDICT_MOST_RANKS]; /* bytes */
    bool twice;
} Sum;

static Sum sum_of(const Sim *s, const MoeOp *op, int rank) {
    bool reduce = op->opcode == MOE_OP_ALL_REDUCE;
    const MoeMesh *mesh = &s->m->mesh;
    const MoeType *x = &op->operands[0]->type;
    Sum u = {.group = group_named(op, reduce ? "group" : "sum")};
    int64_t outer = !reduce && moe_attr_i(op, "outer") ? x->dims[0].size : 1, unit = reduce ? 1 : moe_attr_i(op, "unit"),
            elements = outer ? moe_type_elements(x) / outer : 0;
    int scatter[MOE_PREDICT_MOST_RANKS], owners[MOE_PREDICT_MOST_RANKS] = {0};
    MoeMeshGroup shares = reduce ? MOE_GROUP_WORLD : group_named(op, "scatter");
    int parts = reduce ? 1 : moe_mesh_group_size(mesh, shares);
    u.n = moe_mesh_group_size(mesh, u.group);
    moe_mesh_group_ranks(mesh, rank, u.group, u.ranks);
    u.twice = moe_sum_shares(u.n, parts, elements, unit, outer).twice;
    for (int i = 0; i < u.n; i++) {
        u.slice[i] = parts > 1 ? moe_mesh_group_ranks(mesh, u.ranks[i], shares, scatter) : 0;
        int copy = owners[u.slice[i]]++;
        int64_t all = moe_slice(elements, unit, parts, u.slice[i]).count;
        u.share[i] = 4 * outer * (u.twice ? moe_slice(all, MOE_SUM_PART, u.n / parts, copy).count : all);
    }
    return u;
}

/* The turn in which terms go to those that add them up, or that in which the others get the parts. */
static bool add_sum(Sim *s, const MoeOp *op, bool second) {
    bool twice = false;
    for (int p = 0; p < s->n; p++) {
        Sum u = sum_of(s, op, p);
        int own = 0;
        while (u.ranks[own] != p)
            own++;
        twice = u.twice;
        for (int i = 0; i < u.n; i++)
            if (i != own && (!second || (u.twice && u.slice[i] == u.slice[own])))
                s->bytes[p * s->n + u.ranks[i]] += second ? u.share[own] : u.share[i];
    }
    return second && twice;
}

/* Fills s->bytes; whether there is anything. */
static bool carry(Sim *s, int step, bool second) {
    const MoeGroupStep *me = &s->steps[step];
    const MoeGroup *g = &s->whole->groups[me->group];
    const LayerFlows *f = flows_of(s, g);
    double share = moe_predict_share(g, me->part, me->parts);
    bool any = !second;
    memset(s->bytes, 0, (size_t)(s->n * s->n) * sizeof *s->bytes);
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i];
        bool sum = op->opcode == MOE_OP_REDUCE_SCATTER || op->opcode == MOE_OP_ALL_REDUCE;
        bool rows = op->opcode == MOE_OP_A2A_DISPATCH || op->opcode == MOE_OP_A2A_COMBINE;
        if (sum)
            any |= add_sum(s, op, second);
        else if (!second && rows && f)
            add_rows(s, op, f, share);
        else if (!second && op->opcode == MOE_OP_ALL_GATHER)
            add_gather(s, op);
        else if (!second) {
            MoeMeshGroup group = group_named(op, "group");
            int others = moe_mesh_group_size(&s->m->mesh, group) - 1;
            if (others > 0)
                add_even(s, group, moe_comm_sent_bytes(op, &s->m->mesh) / others * share);
        }
    }
    return any;
}

/* ---- the simulation ---- */

/* Seconds in which rank r copies what comes to it over links that are by cores. */
static double copying(const Sim *s, int r) {
    const MoeCluster *c = &s->m->cluster;
    double bytes = 0;
    for (int p = 0; p < s->n && c->by_cores; p++)
        if (p != r && moe_cluster_link(c, p, r) == MOE_LINK_INTRA)
            bytes += (double)s->bytes[p * s->n + r];
    return bytes > 0 ? bytes / c->links[MOE_LINK_INTRA].bandwidth : 0;
}

/* All ranks start the exchange now. out [3][ranks]: when its links have ended for each rank, what the rank then has to copy, and
 * when those that copy from it can be done at the earliest. */
static void exchange(Sim *s, double *out) {
    MoeStatus st = moe_links_exchange(s->links, s->clock, s->bytes, 0, s->times, &s->ignored);
    double *copy = out + s->n, *taken = copy + s->n;
    for (int r = 0; r < s->n; r++) {
        out[r] = st ? s->clock[r] : s->times[r].end; /* no memory: as if nothing were carried */
        copy[r] = copying(s, r);
    }
    for (int r = 0; r < s->n; r++) {
        taken[r] = out[r];
        for (int q = 0; q < s->n; q++)
            if (copy[q] > 0 && s->bytes[r * s->n + q] && out[q] + copy[q] > taken[r])
                taken[r] = out[q] + copy[q];
    }
    moe_status_free(st);
}

/* Rank r waits for the end of what exchange() laid down. */
static double ended(const Sim *s, const double *end, int r) {
    double mine = (end[r] > s->clock[r] ? end[r] : s->clock[r]) + end[s->n + r], taken = end[2 * s->n + r];
    return taken > mine ? taken : mine;
}

static void wait_for(Sim *s, int step) {
    MoeSimKind kind = s->p->steps[step].kind;
    double *end = s->end[step];
    s->end[step] = NULL;
    for (int r = 0; r < s->n; r++) {
        double later = ended(s, end, r) + s->p->steps[step].cores.fold;
        s->exposed[kind][r] += later - s->clock[r];
        s->clock[r] = later;
    }
    if (!carry(s, step, true))
        return;
    exchange(s, end);
    for (int r = 0; r < s->n; r++) {
        double later = ended(s, end, r);
        s->exposed[kind][r] += later - s->clock[r];
        s->clock[r] = later;
    }
}

static void wait_for_all(Sim *s) {
    for (size_t i = 0; i < s->p->n_steps; i++)
        if (s->end[i])
            wait_for(s, (int)i);
}

static void run_step(Sim *s, int step) {
    const MoeSimStep *x = &s->p->steps[step];
    const MoeGroupStep *me = &s->steps[step];
    const MoeGroup *g = &s->whole->groups[me->group];
    if (x->stretch > s->stretch)
        wait_for_all(s);
    s->stretch = x->stretch;
    for (size_t i = 0; i < x->n_needs; i++)
        if (s->end[x->needs[i]])
            wait_for(s, x->needs[i]);
    if (g->ops[0]->opcode == MOE_OP_WAIT || moe_op_is_store(g->ops[0]))
        return;
    if (!moe_group_is_comm(g)) {
        const LayerFlows *f = flows_of(s, g);
        bool elastic = f && moe_group_elastic(g).rows;
        double share = moe_predict_share(g, me->part, me->parts), each = moe_kernel_seconds(s->cx->target, g, s->m, 1) * share;
        for (int r = 0; r < s->n; r++) {
            double t = elastic ? moe_kernel_seconds(s->cx->target, g, s->m, f->rows[r]) * share : each;
            s->clock[r] += t;
            s->compute[r] += t;
        }
        return;
    }
    carry(s, step, false);
    s->end[step] = MOE_NEW_N(s->a, double, 3 * s->n);
    exchange(s, s->end[step]);
    for (int r = 0; r < s->n; r++) { /* its own rows, meanwhile */
        s->clock[r] += x->cores.own;
        s->exposed[x->kind][r] += x->cores.own;
    }
    if (x->at_once)
        wait_for(s, step);
}

/* Some of the steps: those of the counting pass, of a micro-batch, of the end. */
typedef enum { COUNTED, MICRO, REST } Which;
static void run_steps(Sim *s, Which which, const bool *counted) {
    s->stretch = 0;
    for (size_t i = 0; i < s->p->n_steps; i++) {
        bool rest = s->p->steps[i].stretch > 0;
        if (which == COUNTED ? counted[i] : rest == (which == REST))
            run_step(s, (int)i);
    }
    wait_for_all(s);
}

static bool begin(Sim *s, MoeArena *a) {
    size_t n = (size_t)s->n;
    MoeCluster c = s->m->cluster;
    if (c.by_cores) /* which copy when both ranks have started */
        c.links[MOE_LINK_INTRA].bandwidth = INFINITY;
    MoeStatus st = moe_links_create(&c, &s->links);
    bool ok = !st;
    moe_status_free(st);
    s->a = a;
    s->n_flows = s->cx->n_routes;
    s->flows = MOE_NEW_N(a, LayerFlows, s->n_flows);
    for (size_t i = 0; i < s->n_flows; i++)
        s->flows[i] = (LayerFlows){0, MOE_NEW_N(a, double, n), MOE_NEW_N(a, double, n * n), MOE_NEW_N(a, double, n * n)};
    s->clock = MOE_NEW_N(a, double, n);
    s->compute = MOE_NEW_N(a, double, n);
    for (int k = 0; k < MOE_N_SIM_KINDS; k++)
        s->exposed[k] = MOE_NEW_N(a, double, n);
    s->end = MOE_NEW_N(a, double *, s->p->n_steps);
    s->bytes = MOE_NEW_N(a, int64_t, n * n);
    s->times = MOE_NEW_N(a, MoeLinkTimes, n);
    return ok;
}

static double mean(const double *v, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += v[i];
    return sum / n;
}

void moe_predict_ranks(const MoePassContext *cx, const MoeGroups *whole, const MoeGroupStep *steps, const MoeSimProblem *p,
                       const MoeCommModel *m, const bool *counted, MoePrediction *out) {
    const MoeLoad *load = cx->options.load;
    int n = load->steps < MOST_STEPS ? load->steps : MOST_STEPS,
        micro = cx->options.micro_batches > 1 ? cx->options.micro_batches : 1;
    MoeArena *a = moe_arena_create();
    Sim s = {.cx = cx, .whole = whole, .steps = steps, .p = p, .m = m, .n = moe_mesh_size(&m->mesh)};
    if (begin(&s, a)) {
        for (int i = 0; i < n; i++) {
            int step = (int)((int64_t)i * load->steps / n);
            for (int k = 0; k < micro && micro > 1; k++) {
                find_flows(&s, step, k);
                run_steps(&s, COUNTED, counted);
            }
            for (int k = 0; k < micro; k++) {
                find_flows(&s, step, k);
                run_steps(&s, MICRO, counted);
            }
            run_steps(&s, REST, counted);
        }
        out->seconds = 0;
        for (int r = 0; r < s.n; r++)
            out->seconds = s.clock[r] / n > out->seconds ? s.clock[r] / n : out->seconds;
        out->compute = mean(s.compute, s.n) / n;
        out->a2a_exposed = mean(s.exposed[MOE_SIM_A2A], s.n) / n;
        out->other_exposed = mean(s.exposed[MOE_SIM_OTHER_COMM], s.n) / n;
    }
    moe_links_destroy(s.links);
    moe_timeline_free_all(&s.ignored);
    moe_arena_destroy(a);
}
