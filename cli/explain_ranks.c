/* What a rank of a plan holds and sends: the mesh, experts, virtual shards and slices of each rank, the memory that all have
 * alike, the bytes of each collective. In: a plan. Out: numbers, Markdown, JSON. */
#include "cli/explain_ranks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/str.h"
#include "runtime/touched.h"

#define MAX_RANKS_SHOWN 64

/* ---- memory ---- */

static double larger(double a, double b) {
    return a > b ? a : b;
}

static double sum_of_inputs(const MoePlan *p) {
    double total = 0;
    for (size_t g = 0; g < p->n_programs; g++)
        for (size_t i = 0; i < p->programs[g].n_values; i++) {
            const MoePlanValue *v = &p->programs[g].values[i];
            if (v->kind != MOE_VALUE_INPUT)
                continue;
            bool counted = false; /* the programs share inputs of one name: the largest counts */
            double most = (double)v->bytes;
            for (size_t h = 0; h < p->n_programs; h++)
                for (size_t k = 0; k < p->programs[h].n_values; k++) {
                    const MoePlanValue *u = &p->programs[h].values[k];
                    if (u->kind != MOE_VALUE_INPUT || strcmp(u->input, v->input) != 0)
                        continue;
                    counted |= h < g || (h == g && k < i);
                    most = larger(most, (double)u->bytes);
                }
            total += counted ? 0 : most;
        }
    return total;
}

MoeExplainMemory moe_explain_memory(const MoePlan *p, const MoePlanProgram *g, int threads,
                                    double touched) {
    MoeExplainMemory m = {.gradients = (double)g->mem_gradients,
                          .activations = (double)g->mem_activations,
                          .workspace = (double)g->mem_workspace,
                          .other = (double)g->mem_other,
                          .inputs = sum_of_inputs(p)};
    for (size_t i = 0; i < p->n_params; i++) {
        m.parameters += (double)moe_plan_buffer_bytes(&p->buffers[p->params[i].buffer]);
        for (size_t s = 0; s < p->params[i].n_states; s++)
            m.states += (double)moe_plan_buffer_bytes(&p->buffers[p->params[i].states[s].buffer]);
    }
    double fixed = (double)moe_plan_fixed_bytes(p), elastic = 0;
    for (size_t i = 0; i < p->n_programs; i++) { /* they share one slab */
        const MoePlanProgram *q = &p->programs[i];
        elastic = larger(elastic, (double)q->elastic_expect);
        m.communication = larger(m.communication, (double)q->mem_communication);
    }
    m.scratch = (double)(moe_plan_scratch_bytes(p) * threads);
    m.uneven = touched - elastic;
    m.gaps = fixed + elastic - m.gradients - m.activations - m.workspace - m.other;
    return m;
}

double moe_explain_memory_total(const MoeExplainMemory *m) {
    return m->parameters + m->states + m->gradients + m->activations + m->workspace + m->other +
           m->communication + m->inputs + m->scratch + m->gaps + m->uneven;
}

double moe_explain_rank_memory(const MoePlan *p, const MoeExplainMemory *memory,
                               const MoeExplainTouched *t, int rank) {
    double less = t->bytes ? t->most - t->bytes[rank / p->mesh.tp] : 0;
    return moe_explain_memory_total(memory) - less;
}

/* ---- traffic ---- */

double moe_explain_times(const MoePlan *p, const MoePlanProgram *g, const MoePlanStep *s) {
    if (s->phase > MOE_PHASE_BWD)
        return 1;
    return p->micro_batches * (s->count && g->n_batch_sums ? 2.0 : 1.0);
}

MoeExplainComm moe_explain_traffic(const MoePlan *p, const MoePlanProgram *g) {
    MoeExplainComm c = {.rows = calloc(MOE_N_PLAN_COMM_OPS * MOE_N_GROUPS, sizeof *c.rows)};
    MOE_ASSERT(c.rows, "no memory for %d rows", MOE_N_PLAN_COMM_OPS * MOE_N_GROUPS);
    for (int op = 0; op < MOE_N_PLAN_COMM_OPS; op++)
        for (int group = 0; group < MOE_N_GROUPS; group++) {
            MoeExplainTraffic row = {.op = (MoePlanCommOp)op, .group = (MoeMeshGroup)group};
            for (size_t i = 0; i < g->n_steps; i++)
                for (size_t k = 0; k < g->steps[i].n_comm; k++) {
                    const MoePlanComm *x = &g->steps[i].comm[k];
                    if (x->op != row.op || x->group != row.group)
                        continue;
                    row.ops += moe_explain_times(p, g, &g->steps[i]);
                    row.bytes += moe_explain_times(p, g, &g->steps[i]) * x->bytes;
                }
            if (row.ops > 0)
                c.rows[c.n_rows++] = row;
        }
    for (size_t i = 0; i < g->n_steps; i++) {
        double times = g->steps[i].n_comm ? moe_explain_times(p, g, &g->steps[i]) : 0;
        c.exchanges += times;
        c.started += g->steps[i].start ? times : 0;
        c.bytes += times * g->steps[i].bytes;
        c.seconds += times * g->steps[i].seconds;
    }
    return c;
}

/* ---- what each rank holds ---- */

typedef struct {
    MoeCoords at;
    int first_shard, n_shards;   /* virtual shards of the first micro-batch */
    int first_expert, n_experts; /* as placed at first; n_experts = 0: dense, or empty slots */
    double elements;             /* of parameters, without padding */
} Holds;

/* Experts in this rank's slots in layers of this division, as placed at first. */
static int experts_of(const MoePlan *p, int division, int rank, int *out_first) {
    MoeMesh d = moe_mesh_division(&p->mesh, division);
    int slots = moe_mesh_slots(&d, p->experts);
    *out_first = moe_mesh_coords(&d, rank).ep * slots;
    int n = p->experts - *out_first;
    return n < 0 ? 0 : n > slots ? slots : n;
}

/* This rank's place among those that share out the parameter. */
static double elements_held(const MoePlan *p, const MoePlanParam *q, const Holds *h, int rank) {
    int ranks[MOE_MAX_RANKS];
    MoeMeshGroup group = q->expert ? moe_mesh_group_in(MOE_GROUP_EXPERT_SHARD, q->division)
                                   : MOE_GROUP_DENSE_SHARD;
    int at = moe_mesh_group_ranks(&p->mesh, rank, group, ranks),
        parts = moe_mesh_group_size(&p->mesh, group);
    int64_t n = q->elements / (q->tp_dim >= 0 ? p->mesh.tp : 1), tensors = 1;
    if (q->expert) {
        n /= q->dims[0];
        int first;
        tensors = q->division ? experts_of(p, q->division, rank, &first) : h->n_experts;
    }
    return (double)(tensors * (parts == 1 ? n : moe_slice(n, MOE_SLICE_BLOCK, parts, at).count));
}

static Holds holds_of(const MoePlan *p, int rank) {
    Holds h = {.at = moe_mesh_coords(&p->mesh, rank)};
    h.n_shards = moe_mesh_shard_run(&p->mesh, p->virtual_shards, p->micro_batches, 0, h.at.data,
                                    &h.first_shard);
    h.n_experts = experts_of(p, 0, rank, &h.first_expert);
    for (size_t i = 0; i < p->n_params; i++)
        h.elements += elements_held(p, &p->params[i], &h, rank);
    return h;
}

/* "4-7", "4", "none" */
static void print_range(int first, int n) {
    if (n > 1)
        printf(" %d-%d", first, first + n - 1);
    else if (n == 1)
        printf(" %d", first);
    else
        printf(" none");
}

/* Layers whose experts are divided in a way of their own: a column each. */
static void print_holds_head(const MoePlan *p, bool memory) {
    const MoeMesh *m = &p->mesh;
    printf("\n| rank | dp | shard | ep | tp | virtual shards%s | experts%s |",
           p->micro_batches > 1 ? " of micro-batch 0" : "", m->n_ranges ? " of other layers" : "");
    for (int i = 0; i < m->n_ranges; i++)
        printf(" of layers %d-%d (dp, shard, ep) |", m->ranges[i].first, m->ranges[i].last);
    printf(" parameters |%s\n|---:|---:|---:|---:|---:|---|---|", memory ? " memory |" : "");
    for (int i = 0; i < m->n_ranges; i++)
        printf("---|");
    printf("---:|%s\n", memory ? "---:|" : "");
}

static void print_division(const MoePlan *p, const MoeMeshRange *range, int rank) {
    int k = moe_mesh_of_layer(&p->mesh, range->first), first, n = experts_of(p, k, rank, &first);
    MoeMesh d = moe_mesh_division(&p->mesh, k);
    MoeCoords at = moe_mesh_coords(&d, rank);
    print_range(first, n);
    printf(" (%d, %d, %d) |", at.dp, at.shard, at.ep);
}

static void print_holds(const MoePlan *p, const MoeExplainMemory *memory,
                        const MoeExplainTouched *t) {
    char text[32];
    print_holds_head(p, t->bytes != NULL);
    int n = p->ranks < MAX_RANKS_SHOWN ? p->ranks : MAX_RANKS_SHOWN;
    for (int r = 0; r < n; r++) {
        Holds h = holds_of(p, r);
        printf("| %d | %d | %d | %d | %d |", r, h.at.dp, h.at.shard, h.at.ep, h.at.tp);
        print_range(h.first_shard, h.n_shards);
        printf(" |");
        print_range(h.first_expert, h.n_experts);
        printf(" |");
        for (int i = 0; i < p->mesh.n_ranges; i++)
            print_division(p, &p->mesh.ranges[i], r);
        printf(" %.3f M |", h.elements / 1e6);
        if (t->bytes)
            printf(" %s |", moe_format_bytes(moe_explain_rank_memory(p, memory, t, r), text));
        printf("\n");
    }
    if (n < p->ranks)
        printf("\n(%d more ranks: -o json has all)\n", p->ranks - n);
}

static void print_traffic(const MoePlan *p, const MoePlanProgram *g) {
    MoeExplainComm c = moe_explain_traffic(p, g);
    char text[32];
    printf("\n| a rank sends in a step | group | ranks | collectives | bytes |\n"
           "|---|---|---:|---:|---:|\n");
    for (size_t i = 0; i < c.n_rows; i++)
        printf("| %s | %s | %d | %.0f | %s |\n", moe_plan_comm_op_name(c.rows[i].op),
               moe_mesh_group_name(c.rows[i].group), moe_mesh_group_size(&p->mesh, c.rows[i].group),
               c.rows[i].ops, moe_format_bytes(c.rows[i].bytes, text));
    printf("| **all, in %.0f exchanges** | | | | %s |\n\npredicted %.3f ms for exchanges, ",
           c.exchanges, moe_format_bytes(c.bytes, text), c.seconds * 1e3);
    if (c.started > 0)
        printf("of which %.0f go on behind kernels\n", c.started);
    else
        printf("none of them behind kernels\n");
    free(c.rows);
}

void moe_explain_ranks_md(const MoePlan *p, const MoePlanProgram *g, const MoeExplainMemory *memory,
                          const MoeExplainTouched *t) {
    if (p->ranks == 1)
        return;
    const MoeMesh *m = &p->mesh;
    printf("\n%d ranks: dp %d x shard %d x ep %d x tp %d; dense parameters in %d parts", p->ranks,
           m->dp, m->shard, m->ep, m->tp, m->dense_shard);
    if (p->experts)
        printf(", %d expert slot%s a rank", p->slots, p->slots == 1 ? "" : "s");
    if (m->extra_slots)
        printf(", %d of them for copies", m->extra_slots);
    printf("\n");
    for (int i = 0; i < m->n_ranges; i++)
        printf("layers %d-%d: experts over dp %d x shard %d x ep %d\n", m->ranges[i].first,
               m->ranges[i].last, m->ranges[i].dp, m->ranges[i].shard, m->ranges[i].ep);
    print_holds(p, memory, t);
    print_traffic(p, g);
}

/* By range of layers with a division of their own: this rank's place in it, and its experts there. */
static json_t *json_divisions(const MoePlan *p, int rank) {
    json_t *all = json_array();
    for (int i = 0; i < p->mesh.n_ranges; i++) {
        const MoeMeshRange *g = &p->mesh.ranges[i];
        int k = moe_mesh_of_layer(&p->mesh, g->first), first, n = experts_of(p, k, rank, &first);
        MoeMesh d = moe_mesh_division(&p->mesh, k);
        MoeCoords at = moe_mesh_coords(&d, rank);
        json_array_append_new(all, json_pack("{s:i, s:i, s:i, s:i, s:i, s:i, s:i}", "first",
                                             g->first, "last", g->last, "dp", at.dp, "shard",
                                             at.shard, "ep", at.ep, "first_expert", first,
                                             "experts", n));
    }
    return all;
}

static json_t *json_holds(const MoePlan *p, const MoeExplainMemory *memory,
                          const MoeExplainTouched *t) {
    json_t *holds = json_array();
    for (int r = 0; r < p->ranks; r++) {
        Holds h = holds_of(p, r);
        json_t *o = json_pack("{s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:f}", "rank", r,
                              "dp", h.at.dp, "shard", h.at.shard, "ep", h.at.ep, "tp", h.at.tp,
                              "first_virtual_shard", h.first_shard, "virtual_shards", h.n_shards,
                              "first_expert", h.first_expert, "experts", h.n_experts,
                              "parameter_elements", h.elements, "memory_bytes",
                              moe_explain_rank_memory(p, memory, t, r));
        if (p->mesh.n_ranges)
            json_object_set_new(o, "divisions", json_divisions(p, r));
        json_array_append_new(holds, o);
    }
    return holds;
}

void moe_explain_ranks_json(const MoePlan *p, const MoePlanProgram *g, const MoeExplainMemory *memory,
                            const MoeExplainTouched *t, json_t *root) {
    json_t *traffic = json_array();
    MoeExplainComm c = moe_explain_traffic(p, g);
    for (size_t i = 0; i < c.n_rows; i++)
        json_array_append_new(traffic, json_pack("{s:s, s:s, s:i, s:f, s:f}", "collective",
                                                 moe_plan_comm_op_name(c.rows[i].op), "group",
                                                 moe_mesh_group_name(c.rows[i].group), "ranks",
                                                 moe_mesh_group_size(&p->mesh, c.rows[i].group),
                                                 "times", c.rows[i].ops, "bytes", c.rows[i].bytes));
    free(c.rows);
    json_object_set_new(root, "ranks", json_integer(p->ranks));
    json_object_set_new(root, "mesh",
                        json_pack("{s:i, s:i, s:i, s:i, s:i}", "dp", p->mesh.dp, "shard",
                                  p->mesh.shard, "ep", p->mesh.ep, "tp", p->mesh.tp, "dense_shard",
                                  p->mesh.dense_shard));
    if (p->mesh.extra_slots)
        json_object_set_new(json_object_get(root, "mesh"), "extra_slots",
                            json_integer(p->mesh.extra_slots));
    json_t *layers = json_object_get(json_object_get(p->json, "mesh"), "layers");
    if (layers)
        json_object_set(json_object_get(root, "mesh"), "layers", layers);
    json_object_set_new(root, "slots", json_integer(p->slots));
    json_object_set_new(root, "holds", json_holds(p, memory, t));
    json_object_set_new(root, "traffic", traffic);
    json_object_set_new(root, "exchanges", json_real(c.exchanges));
    json_object_set_new(root, "sent_bytes", json_real(c.bytes));
    json_object_set_new(root, "exchange_seconds", json_real(c.seconds));
}
