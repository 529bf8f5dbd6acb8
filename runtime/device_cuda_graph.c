/* Steps of a range of phases that are kernels alone, captured once as a CUDA graph and launched as one. See device_cuda.h. */
#include "runtime/device_cuda.h"

#include "runtime/emulate.h"

#define LEAST_STEPS 2

static bool is_kernels_alone(const MoePlanProgram *p, MoePlanPhase lo, MoePlanPhase hi,
                             bool counting) {
    size_t n = 0;
    for (size_t i = 0; i < p->n_steps; i++) {
        if (!moe_exec_is_due(&p->steps[i], lo, hi, counting))
            continue;
        if (!p->steps[i].kernel)
            return false;
        n++;
    }
    return n >= LEAST_STEPS;
}

/* Launches into a capture; *out NULL where the driver cannot. */
static MoeStatus capture(MoeDeviceCuda *d, MoeExec *x, MoeExecProgram *g, MoePlanPhase lo,
                         MoePlanPhase hi, bool counting, MoeCuGraphExec *out) {
    const MoePlanProgram *p = g->plan;
    MoeCuGraph graph = NULL;
    MoeStatus st = NULL;
    if (d->cu->capture_begin(d->stream, MOE_CU_CAPTURE_THREAD_LOCAL) != MOE_CU_SUCCESS) {
        d->no_graphs = true;
        return NULL;
    }
    for (size_t i = 0; i < p->n_steps && !st; i++)
        if (moe_exec_is_due(&p->steps[i], lo, hi, counting))
            st = moe_cuda_run(&d->base, x, g, i);
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
                            MoePlanPhase hi, bool counting, MoeCuGraphExec *out) {
    MoeCudaProgram *c = moe_cuda_program(d, x, g);
    *out = NULL;
    for (int i = 0; i < c->n_graphs; i++)
        if (c->graphs[i].lo == lo && c->graphs[i].hi == hi && c->graphs[i].counting == counting) {
            *out = c->graphs[i].exec;
            return NULL;
        }
    if (c->n_graphs == MOE_CUDA_MAX_GRAPHS)
        return NULL;
    if (is_kernels_alone(g->plan, lo, hi, counting))
        MOE_TRY(capture(d, x, g, lo, hi, counting, out));
    c->graphs[c->n_graphs++] = (MoeCudaGraph){lo, hi, counting, *out};
    return NULL;
}

MoeStatus moe_cuda_replay(MoeDevice *base, MoeExec *x, MoeExecProgram *g, MoePlanPhase lo,
                          MoePlanPhase hi, bool counting, bool *out_done) {
    MoeDeviceCuda *d = (MoeDeviceCuda *)base;
    MoeCuGraphExec exec;
    *out_done = false;
    if (d->no_graphs || x->profile || x->watch || moe_cuda_program(d, x, g)->n_elastic ||
        moe_comm_emulated(x->comm))
        return NULL;
    MOE_TRY(moe_cuda_enter(d));
    MOE_TRY(find_graph(d, x, g, lo, hi, counting, &exec));
    if (!exec)
        return NULL;
    d->program = g->plan->name;
    for (size_t i = 0; i < g->plan->n_steps; i++) /* what an error may name: the last of them */
        if (moe_exec_is_due(&g->plan->steps[i], lo, hi, counting))
            d->step = g->plan->steps[i].name;
    *out_done = true;
    return moe_cuda_check(d, d->cu->graph_launch(exec, d->stream), "launching program %s",
                          g->plan->name);
}
