/* Steps of a range of phases that the device does alone (kernels, and exchanges that it carries), captured once as a CUDA graph and
 * launched as one. See cuda/device.h. */
#include "runtime/cuda/peer.h"

#include "runtime/emulate.h"

#define LEAST_STEPS 2

/* An exchange that is started has its wait among them, and the other way round: a capture has no loose ends. */
static bool is_alone(const MoeDeviceCuda *d, const MoeExec *x, const MoeExecProgram *g,
                     MoePlanPhase lo, MoePlanPhase hi, bool counting) {
    const MoePlanProgram *p = g->plan;
    size_t n = 0, started = 0, waits = 0;
    for (size_t i = 0; i < p->n_steps; i++) {
        const MoePlanStep *s = &p->steps[i];
        if (!moe_exec_is_due(s, lo, hi, counting))
            continue;
        if (!s->kernel && !moe_cuda_carries(&d->base, x, g, i))
            return false;
        if (s->wait >= 0 && !moe_exec_is_due(&p->steps[s->wait], lo, hi, counting))
            return false;
        started += s->start;
        waits += s->wait >= 0;
        n++;
    }
    return n >= LEAST_STEPS && started == waits;
}

/* Whether the slots of experts' copies that these steps fill are filled already. */
static bool is_filled(const MoeExec *x, const MoeExecProgram *g, MoePlanPhase lo, MoePlanPhase hi,
                      bool counting) {
    bool filled = true;
    for (size_t i = 0; i < g->plan->n_steps; i++) {
        const MoePlanStep *s = &g->plan->steps[i];
        if (moe_exec_is_due(s, lo, hi, counting) && s->n_comm &&
            s->comm[0].op == MOE_PLAN_COPY_EXPERTS)
            filled = filled && moe_exec_is_filled(x, g, i);
    }
    return filled;
}

static void set_filled(MoeExec *x, const MoeExecProgram *g, MoePlanPhase lo, MoePlanPhase hi,
                       bool counting) {
    for (size_t i = 0; i < g->plan->n_steps; i++)
        if (moe_exec_is_due(&g->plan->steps[i], lo, hi, counting) && g->plan->steps[i].n_comm)
            moe_exec_set_filled(x, g, i, true);
}

static MoeStatus capture_step(MoeDeviceCuda *d, MoeExec *x, MoeExecProgram *g, size_t i,
                              bool filled) {
    const MoePlanStep *s = &g->plan->steps[i];
    if (s->kernel)
        MOE_TRY(moe_cuda_run(&d->base, x, g, i));
    else if (!filled || !s->n_comm || s->comm[0].op != MOE_PLAN_COPY_EXPERTS)
        MOE_TRY(moe_cuda_exchange(&d->base, x, g, i));
    return g->n_elastic ? moe_cuda_stepped(&d->base, x, g, i) : NULL;
}

/* Launches into a capture; *out NULL where the driver cannot. */
static MoeStatus capture(MoeDeviceCuda *d, MoeExec *x, MoeExecProgram *g, MoePlanPhase lo,
                         MoePlanPhase hi, bool counting, bool filled, MoeCuGraphExec *out) {
    const MoePlanProgram *p = g->plan;
    MoeCuGraph graph = NULL;
    MoeStatus st = NULL;
    if (d->cu->capture_begin(d->stream, MOE_CU_CAPTURE_THREAD_LOCAL) != MOE_CU_SUCCESS) {
        d->no_graphs = true;
        return NULL;
    }
    for (size_t i = 0; i < p->n_steps && !st; i++)
        if (moe_exec_is_due(&p->steps[i], lo, hi, counting))
            st = capture_step(d, x, g, i, filled);
    MoeCuResult r = d->cu->capture_end(d->stream, &graph);
    if (!st && r == MOE_CU_SUCCESS && d->cu->graph_instantiate(out, graph, 0) != MOE_CU_SUCCESS)
        *out = NULL;
    if (graph)
        (void)d->cu->graph_destroy(graph);
    d->no_graphs |= !*out;
    return st;
}

void moe_cuda_forget_graphs(MoeDeviceCuda *d, MoeCudaProgram *c) {
    for (int i = 0; i < c->n_graphs; i++)
        if (c->graphs[i].exec)
            (void)d->cu->graph_exec_destroy(c->graphs[i].exec);
    c->n_graphs = 0;
}

static MoeStatus find_graph(MoeDeviceCuda *d, MoeExec *x, MoeExecProgram *g, MoePlanPhase lo,
                            MoePlanPhase hi, bool counting, bool filled, MoeCuGraphExec *out) {
    MoeCudaProgram *c = moe_cuda_program(d, x, g);
    *out = NULL;
    for (int i = 0; i < c->n_graphs; i++)
        if (c->graphs[i].lo == lo && c->graphs[i].hi == hi && c->graphs[i].counting == counting &&
            c->graphs[i].filled == filled) {
            *out = c->graphs[i].exec;
            return NULL;
        }
    if (c->n_graphs == MOE_CUDA_MAX_GRAPHS)
        return NULL;
    if (is_alone(d, x, g, lo, hi, counting))
        MOE_TRY(capture(d, x, g, lo, hi, counting, filled, out));
    c->graphs[c->n_graphs++] = (MoeCudaGraph){lo, hi, counting, filled, *out};
    return NULL;
}

MoeStatus moe_cuda_replay(MoeDevice *base, MoeExec *x, MoeExecProgram *g, MoePlanPhase lo,
                          MoePlanPhase hi, bool counting, bool *out_done) {
    MoeDeviceCuda *d = (MoeDeviceCuda *)base;
    MoeCuGraphExec exec;
    *out_done = false;
    if (d->no_graphs || x->profile || x->watch || moe_comm_emulated(x->comm))
        return NULL;
    bool filled = is_filled(x, g, lo, hi, counting);
    MOE_TRY(moe_cuda_enter(d));
    if (d->peers)
        MOE_TRY(moe_cuda_peers_micro(d, x));
    MOE_TRY(moe_cuda_limits(d, g, moe_cuda_program(d, x, g))); /* no wait during a capture */
    MOE_TRY(find_graph(d, x, g, lo, hi, counting, filled, &exec));
    if (!exec)
        return NULL;
    set_filled(x, g, lo, hi, counting);
    d->looked |= moe_cuda_program(d, x, g)->n_elastic > 0;
    d->program = g->plan->name;
    for (size_t i = 0; i < g->plan->n_steps; i++) /* what an error may name: the last of them */
        if (moe_exec_is_due(&g->plan->steps[i], lo, hi, counting))
            d->step = g->plan->steps[i].name;
    *out_done = true;
    return moe_cuda_check(d, d->cu->graph_launch(exec, d->stream), "launching program %s",
                          g->plan->name);
}
