/* See planner.h. In: a summary of the model, a cluster, a load. Out: divisions, best first. */
#include "placement/planner.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "placement/spread.h"

/* What estimates take the compiler's schedule to be: the part of exchanges of expert rows that it hides, the part of compute
 * that gathers and sums may run beside, and what of these stays exposed in any case. */
#define ROWS_HIDDEN  0.6
#define BESIDE       0.6
#define NEVER_HIDDEN 0.1
/* What a first placement leaves of the imbalance of usual maps, and one with copies of hot experts; what copies send: weights once,
 * two roots of gradients, f32. */
#define PLACED_LEAVES 0.3
#define COPIES_LEAVE 0.15
#define COPY_BYTES   12.0
/* Estimates of memory may be so much too high before a candidate counts as too large; what compiling says decides. */
#define MARGIN       0.25
enum { STEPS = 4, LAYERS = 6 }; /* of a load, that an estimate looks at */

const char *moe_plan_level_name(MoePlanLevel l) {
    static const char *const names[MOE_N_PLAN_LEVELS] = {"none", "cheap", "layer"};
    return names[l];
}

/* ---- exchanges ---- */

typedef struct {
    const MoeModelSummary *m;
    const MoeCluster *c;
    const MoePlanCandidate *x;
    double tokens; /* of a data rank in a micro-batch */
} Estimate;

/* Seconds in which a rank sends `bytes` evenly to the others of the group. */
static double to_group(const Estimate *e, MoeMeshGroup g, double bytes) {
    int ranks[MOE_MAX_RANKS], n = moe_mesh_group_size(&e->x->mesh, g), peers[MOE_N_LINKS] = {0};
    double most = 0, latency = 0;
    int own = moe_mesh_group_ranks(&e->x->mesh, 0, g, ranks);
    for (int i = 0; i < n; i++)
        if (i != own)
            peers[moe_cluster_link(e->c, 0, ranks[i])]++;
    for (int k = 0; k < MOE_N_LINKS && n > 1; k++) {
        double busy = bytes * peers[k] / (n - 1) / e->c->links[k].bandwidth;
        most = peers[k] && busy > most ? busy : most;
        latency = peers[k] && e->c->links[k].latency > latency ? e->c->links[k].latency : latency;
    }
    return n > 1 ? most + latency : 0;
}

/* Of each layer: elements of a rank before they are sliced. */
static double gathers_and_sums(const Estimate *e) {
    const MoeMesh *s = &e->x->mesh;
    const MoeModelSummary *m = e->m;
    int layers = m->layers > 0 ? m->layers : 1, moe = m->moe_layers > 0 ? m->moe_layers : 1;
    double dense = m->dense_params / layers / s->tp, expert = m->expert_params / moe / s->ep / s->tp;
    int uses = e->x->level == MOE_PLAN_LAYER ? 3 : 2;
    double each = 0, t = 0;
    if (s->dense_shard > 1)
        each += uses * to_group(e, MOE_GROUP_DENSE_SHARD, dense * m->element_bytes * (s->dense_shard - 1) / s->dense_shard);
    int64_t sent = moe_sum_shares(moe_mesh_data_ranks(s), s->dense_shard, (int64_t)dense, MOE_SLICE_BLOCK, 1).sent_bytes;
    each += to_group(e, MOE_GROUP_DATA, (double)sent);
    t += layers * each;
    each = 0;
    if (s->shard > 1)
        each += uses * to_group(e, MOE_GROUP_EXPERT_SHARD, expert * m->element_bytes * (s->shard - 1) / s->shard);
    sent = moe_sum_shares(s->dp * s->shard, s->shard, (int64_t)expert, MOE_SLICE_BLOCK, 1).sent_bytes;
    each += to_group(e, MOE_GROUP_EXPERT_DATA, (double)sent);
    t += m->moe_layers * each;
    return t * e->x->micro_batches;
}

/* Sums over tp: after attention and after the MLP, forward and backward. */
static double tensor_sums(const Estimate *e) {
    const MoeMesh *s = &e->x->mesh;
    int each = e->x->level == MOE_PLAN_LAYER ? 6 : 4;
    if (s->tp < 2)
        return 0;
    int64_t sent = moe_sum_shares(s->tp, 1, (int64_t)(e->tokens * (double)e->m->hidden), 1, 1).sent_bytes;
    return each * e->m->layers * e->x->micro_batches * to_group(e, MOE_GROUP_TP, (double)sent);
}

/* ---- rows of experts ---- */

static MoeLoad uniform_load(const MoeModelSummary *m, MoeArena *a) {
    MoeLoad l = {.steps = 1, .layers = 1, .sources = m->virtual_shards, .experts = m->experts};
    size_t n = (size_t)m->virtual_shards * (size_t)m->experts;
    l.counts = MOE_NEW_N(a, int32_t, n);
    for (size_t i = 0; i < n; i++)
        l.counts[i] = 1000;
    return l;
}

/* What exchanges of rows take on a division, whatever is computed again: seconds of one there and one home in each MoE layer of a
 * micro-batch, latencies. */
typedef struct {
    int ep, groups, tp, micro_batches, extra; /* that it is of */
    double there, home, latency, imbalance;
} Rows;

static MoeSpreadWhere where(const Estimate *e) {
    const MoeMesh *s = &e->x->mesh;
    MoeMesh d = moe_mesh_division(s, 0);
    return (MoeSpreadWhere){.cluster = moe_cluster_of_group(e->c, &d),
                            .groups = s->dp * s->shard,
                            .top_k = e->m->top_k,
                            .micro_batches = e->x->micro_batches,
                            .shards = e->m->virtual_shards,
                            .grain = 1};
}

static void add_layer(const Estimate *e, const MoeSpread *p, Rows *r) {
    double row = (double)e->m->hidden * e->m->element_bytes, there = 0, home = 0, latency = 0;
    for (int k = 0; k < MOE_N_LINKS; k++) {
        const MoeLink *link = &e->c->links[k];
        there = p->there[k] > 0 ? fmax(there, p->there[k] * row / link->bandwidth) : there;
        home = p->home[k] > 0 ? fmax(home, p->home[k] * row / link->bandwidth) : home;
        latency = p->home[k] > 0 ? fmax(latency, link->latency) : latency;
    }
    r->there += there;
    r->home += home;
    r->latency += latency;
    r->imbalance += p->rows;
}

static Rows rows_of(const Estimate *e, const MoeLoad *load) {
    const MoeMesh *s = &e->x->mesh;
    const MoeModelSummary *m = e->m;
    Rows r = {s->ep, s->dp * s->shard, s->tp, e->x->micro_batches, e->x->extra, 0, 0, 0, 0};
    MoeArena *a = moe_arena_create();
    MoeLoad uniform = uniform_load(m, a);
    const MoeLoad *l = load ? load : &uniform;
    MoeSpreadWhere w = where(e);
    MoePlaceMap map;
    int n = l->layers < LAYERS ? l->layers : LAYERS, slots = (m->experts + s->ep - 1) / s->ep + e->x->extra;
    double rows = (double)m->batch * (double)m->seq * m->top_k / e->x->micro_batches;
    moe_status_free(moe_place_map_create(m->experts, s->ep, slots, a, &map)); /* there are slots enough */
    for (int i = 0; i < n; i++) {
        MoeSpread p = moe_spread(l, (int)((int64_t)i * l->layers / n), &map, &w, rows, STEPS);
        add_layer(e, &p, &r);
    }
    moe_arena_destroy(a);
    r.there /= n;
    r.home /= n;
    r.latency /= n;
    r.imbalance /= n;
    return r;
}

/* The part of the exchanges of rows that compute hides: none where ranks' own cores carry them. */
static double rows_hidden(const MoeCluster *c) {
    return c->by_cores && c->nodes == 1 ? 0 : ROWS_HIDDEN;
}

/* Seconds of filling extra slots and folding their gradients, as far as compute does not hide it. */
static double copies(const Estimate *e) {
    const MoeModelSummary *m = e->m;
    MoeMeshGroup ep = MOE_GROUP_EP;
    double each = m->expert_params / m->moe_layers / m->experts / e->x->mesh.shard / e->x->mesh.tp * COPY_BYTES;
    return e->x->extra ? m->moe_layers * to_group(e, ep, e->x->extra * each) * (1 - rows_hidden(e->c)) : 0;
}

/* Seconds of the exchanges of rows in a step. */
static double exchange_rows(const Estimate *e, const Rows *r) {
    int there = e->x->level == MOE_PLAN_LAYER ? 3 : 2, home = 2;
    double each = there * r->there + home * r->home + (there + home) * r->latency;
    return each * e->m->moe_layers * e->x->micro_batches;
}

/* ---- a candidate ---- */

static double memory_of(const Estimate *e) {
    const MoeMesh *s = &e->x->mesh;
    const MoeModelSummary *m = e->m;
    double part = (double)e->x->micro_batches * moe_mesh_data_ranks(s),
           slots = m->experts ? ((double)((m->experts + s->ep - 1) / s->ep) + e->x->extra) * s->ep / m->experts : 1;
    double dense = m->dense_params / s->dense_shard / s->tp,
           expert = m->expert_params * slots / s->ep / s->shard / s->tp;
    double gathered = 0;
    if (s->dense_shard > 1)
        gathered += 2 * m->dense_params / (m->layers > 0 ? m->layers : 1) / s->tp * m->element_bytes;
    if (s->shard > 1 && m->moe_layers)
        gathered += 2 * m->expert_params * slots / m->moe_layers / s->ep / s->tp * m->element_bytes;
    double activations = m->work[e->x->level].activations / part * (0.4 + 0.6 / s->tp);
    return (dense + expert) * (m->state_bytes + 4) + gathered + activations + m->workspace / s->tp;
}

/* rows: of the division; NULL: none travel. */
static void score(const MoeModelSummary *m, const MoeCluster *c, const Rows *r, MoePlanCandidate *x) {
    const MoeMesh *s = &x->mesh;
    Estimate e = {m, c, x, (double)m->batch * (double)m->seq / moe_mesh_data_ranks(s) / x->micro_batches};
    const MoePlanWork *w = &m->work[x->level];
    double params = m->dense_params + m->expert_params,
           local = m->dense_params / s->dense_shard / s->tp + m->expert_params / s->ep / s->shard / s->tp;
    x->imbalance = r ? r->imbalance : 1;
    if (x->placed)
        x->imbalance = 1 + (x->imbalance - 1) * (x->extra ? COPIES_LEAVE : PLACED_LEAVES);
    x->compute = (w->dense + w->expert * x->imbalance) / moe_mesh_size(s) + (params > 0 ? m->update * local / params : 0);
    double sums = gathers_and_sums(&e), beside = sums - BESIDE * x->compute;
    x->exchange = r ? exchange_rows(&e, r) * (1 - rows_hidden(c)) + copies(&e) : 0;
    x->other = (rows_hidden(c) > 0 ? fmax(NEVER_HIDDEN * sums, beside) : sums) + tensor_sums(&e);
    x->seconds = x->compute + x->exchange + x->other;
    x->memory = memory_of(&e);
}

static bool rows_travel(const MoeModelSummary *m, const MoePlanCandidate *x) {
    return m->moe_layers > 0 && x->mesh.ep > 1;
}

void moe_planner_score(const MoeModelSummary *m, const MoeCluster *c, const MoeLoad *load, MoePlanCandidate *x) {
    Estimate e = {m, c, x, 0};
    Rows r = rows_travel(m, x) ? rows_of(&e, load) : (Rows){0};
    score(m, c, rows_travel(m, x) ? &r : NULL, x);
}

/* ---- all of them ---- */

typedef struct {
    const MoeModelSummary *m;
    const MoeCluster *c;
    const MoeLoad *load;
    const MoePlanWish *w;
    MoeArena *a;
    MoePlanCandidate *list;
    Rows *rows; /* of divisions that were looked at */
    size_t n, cap, n_rows, cap_rows, dropped;
    double least;
} Search;

static const Rows *find_rows(Search *s, const MoePlanCandidate *x) {
    if (!rows_travel(s->m, x))
        return NULL;
    for (size_t i = s->n_rows; i-- > 0;) {
        const Rows *r = &s->rows[i];
        if (r->ep == x->mesh.ep && r->groups == x->mesh.dp * x->mesh.shard && r->tp == x->mesh.tp &&
            r->micro_batches == x->micro_batches && r->extra == x->extra)
            return r;
    }
    Estimate e = {s->m, s->c, x, 0};
    MOE_PUSH(s->a, s->rows, s->n_rows, s->cap_rows, rows_of(&e, s->load));
    return &s->rows[s->n_rows - 1];
}

static bool wanted(int asked, int n) {
    return asked == 0 || asked == n;
}

static void consider(Search *s, MoePlanCandidate x) {
    score(s->m, s->c, find_rows(s, &x), &x);
    s->least = s->least == 0 || x.memory < s->least ? x.memory : s->least;
    if (s->w->memory_limit > 0 && x.memory > (1 + MARGIN) * s->w->memory_limit)
        s->dropped++;
    else
        MOE_PUSH(s->a, s->list, s->n, s->cap, x);
}

/* Micro-batches, levels, extra slots of a mesh. */
static void consider_mesh(Search *s, MoeMesh mesh) {
    for (int micro = 1; micro <= s->m->virtual_shards; micro *= 2) {
        MoeStatus bad = moe_mesh_check(&mesh, s->m->virtual_shards, micro);
        bool fits = !bad && wanted(s->w->micro_batches, micro) && micro <= s->m->batch;
        moe_status_free(bad);
        for (int l = 0; l < MOE_N_PLAN_LEVELS && fits; l++)
            for (int extra = s->w->least_extra; extra <= s->w->most_extra && s->w->levels[l]; extra++) {
                mesh.extra_slots = extra;
                if (!extra || mesh.ep > 1)
                    consider(s, (MoePlanCandidate){.mesh = mesh, .micro_batches = micro, .extra = extra,
                                                   .placed = s->w->placed, .level = (MoePlanLevel)l});
            }
    }
}

/* Sharding of what is no expert's: as the experts', or over the EP ranks too. */
static void consider_degrees(Search *s, int ep, int shard, int tp) {
    int ranks = moe_cluster_ranks(s->c);
    MoeMesh mesh = {.dp = ranks / (ep * shard * tp), .shard = shard, .ep = ep, .tp = tp, .dense_shard = shard};
    if (wanted(s->w->dense_shard, shard))
        consider_mesh(s, mesh);
    mesh.dense_shard = shard * ep;
    if (ep > 1 && wanted(s->w->dense_shard, shard * ep))
        consider_mesh(s, mesh);
}

static int divisions(const MoePlanCandidate *x) {
    return (x->mesh.shard > 1) + (x->mesh.ep > 1) + (x->mesh.tp > 1) + (x->mesh.dense_shard != x->mesh.shard) +
           (x->micro_batches > 1) + x->level + x->extra;
}

static int by_seconds(const void *a, const void *b) {
    const MoePlanCandidate *x = a, *y = b;
    if (x->seconds != y->seconds)
        return x->seconds < y->seconds ? -1 : 1;
    if (divisions(x) != divisions(y))
        return divisions(x) - divisions(y);
    int d = memcmp(&x->mesh, &y->mesh, sizeof x->mesh);
    return d ? d : x->micro_batches - y->micro_batches;
}

size_t moe_planner_enumerate(const MoeModelSummary *m, const MoeCluster *c, const MoeLoad *load, const MoePlanWish *w,
                             MoeArena *a, MoePlanCandidate **out, size_t *dropped, double *least) {
    Search s = {.m = m, .c = c, .load = load, .w = w, .a = a};
    int ranks = moe_cluster_ranks(c);
    for (int tp = 1; tp <= ranks; tp *= 2) {
        if (ranks % tp || m->tp_divides % tp || !wanted(w->tp, tp))
            continue;
        for (int ep = 1; ep == 1 || ep <= m->experts; ep *= 2)
            for (int shard = 1; ep * tp * shard <= ranks; shard *= 2)
                if (ranks % (ep * tp * shard) == 0 && wanted(w->ep, ep) && wanted(w->shard, shard))
                    consider_degrees(&s, ep, shard, tp);
    }
    if (s.n)
        qsort(s.list, s.n, sizeof *s.list, by_seconds);
    *out = s.list;
    *dropped = s.dropped;
    *least = s.least;
    return s.n;
}

void moe_planner_text(const MoePlanCandidate *x, MoeStr *out) {
    const struct {
        int n;
        const char *what;
    } parts[] = {{x->mesh.dp, "data"}, {x->mesh.shard, "shard"}, {x->mesh.ep, "expert"}, {x->mesh.tp, "tensor"}};
    const char *before = "";
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (parts[i].n > 1) {
            moe_str_printf(out, "%s%s %d", before, parts[i].what, parts[i].n);
            before = " x ";
        }
    if (!*before)
        moe_str_printf(out, "one rank");
    if (x->mesh.dense_shard != x->mesh.shard)
        moe_str_printf(out, ", dense over %d", x->mesh.dense_shard);
    if (x->extra)
        moe_str_printf(out, ", %d extra slot%s", x->extra, x->extra == 1 ? "" : "s");
    if (x->micro_batches > 1)
        moe_str_printf(out, ", %d micro-batches", x->micro_batches);
    if (x->level != MOE_PLAN_KEEP)
        moe_str_printf(out, ", recompute %s", moe_plan_level_name(x->level));
}
