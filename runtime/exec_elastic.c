/* Elastic values: rows that routing may send here, with address space for all that could come. Memory is touched by
 * live rows alone, so what is used is read off the tables of rows as the steps run. */
#include <stdlib.h>
#include <string.h>

#include "runtime/exec_internal.h"

#define TELL_FROM 1.1 /* times what was said before */

/* Value v, if it is elastic and has not been seen. */
static void begin_value(MoeExecProgram *g, size_t step, int v, bool *seen) {
    if (!g->plan->values[v].elastic || seen[v])
        return;
    seen[v] = true;
    g->elastic[g->n_elastic++] = (MoeExecElastic){v, g->plan->steps[step].layer};
}

/* The program's elastic values in the order of the steps that they begin at. */
static MoeStatus list_values(MoeExecProgram *g) {
    const MoePlanProgram *p = g->plan;
    size_t n = 0;
    for (size_t i = 0; i < p->n_values; i++)
        n += p->values[i].elastic;
    if (!n)
        return NULL;
    g->elastic = calloc(n, sizeof *g->elastic);
    g->elastic_at = calloc(p->n_steps + 1, sizeof *g->elastic_at);
    g->used = calloc(p->n_values, sizeof *g->used);
    bool *seen = calloc(p->n_values, sizeof *seen);
    if (!g->elastic || !g->elastic_at || !g->used || !seen) {
        free(seen);
        return moe_error(MOE_E_NOMEM, "no memory for the plan's tables");
    }
    for (size_t s = 0; s < p->n_steps; s++) {
        g->elastic_at[s] = g->n_elastic;
        for (size_t b = 0; b < p->steps[s].n_bufs; b++)
            begin_value(g, s, p->steps[s].buf_value[b], seen);
        for (size_t c = 0; c < p->steps[s].n_comm; c++)
            begin_value(g, s, p->steps[s].comm[c].out, seen);
        for (size_t m = 0; m < p->steps[s].n_moves; m++)
            begin_value(g, s, p->steps[s].moves[m].value, seen);
    }
    g->elastic_at[p->n_steps] = g->n_elastic;
    free(seen);
    return NULL;
}

static MoeExecLayer *layer_of(MoeExec *x, int layer) {
    for (size_t i = 0; i < x->n_layers; i++)
        if (x->layers[i].layer == layer)
            return &x->layers[i];
    x->layers[x->n_layers] = (MoeExecLayer){.layer = layer};
    return &x->layers[x->n_layers++];
}

MoeStatus moe_exec_elastic_create(MoeExec *x) {
    size_t most = 0;
    for (size_t g = 0; g < x->plan->n_programs; g++) {
        MOE_TRY(list_values(&x->programs[g]));
        most += x->programs[g].n_elastic;
    }
    x->layers = calloc(most + 1, sizeof *x->layers);
    MoeExecProgram *train = moe_exec_program(x, "train");
    if (!x->layers)
        return moe_error(MOE_E_NOMEM, "no memory for the plan's tables");
    for (size_t i = 0; train && i < train->n_elastic; i++) {
        MoeExecLayer *l = layer_of(x, train->elastic[i].layer);
        l->planned += train->plan->values[train->elastic[i].value].expect;
        l->told = l->planned;
    }
    return most ? moe_touch_list(x->plan, &x->touched, &x->n_touched) : NULL;
}

void moe_exec_elastic_destroy(MoeExec *x) {
    for (size_t g = 0; x->programs && g < x->plan->n_programs; g++) {
        free(x->programs[g].elastic);
        free(x->programs[g].elastic_at);
        free(x->programs[g].used);
    }
    free(x->layers);
    free(x->touched);
}

void moe_exec_elastic_used(MoeExec *x, MoeExecProgram *g, int value, int64_t used) {
    int64_t most = g->plan->values[value].bytes;
    used = used < most ? used : most;
    g->ran = true;
    if (used > g->used[value]) {
        g->used[value] = used;
        x->elastic_grew = true;
    }
}

void moe_exec_elastic_step(MoeExec *x, MoeExecProgram *g, size_t i) {
    g->ran = true;
    for (size_t k = g->elastic_at[i]; k < g->elastic_at[i + 1]; k++) {
        const MoeExecElastic *e = &g->elastic[k];
        const MoePlanValue *v = &g->plan->values[e->value];
        const int32_t *segs = (const int32_t *)(const void *)g->values[v->rows];
        moe_exec_elastic_used(x, g, e->value,
                              segs[g->plan->values[v->rows].bytes / 4 - 1] * v->row_bytes);
    }
}

/* Values share addresses: what counts is the union of all that was ever touched beyond the fixed part. */
static void sum_touched(MoeExec *x) {
    for (size_t i = 0; i < x->n_touched; i++) {
        MoeTouch *t = &x->touched[i];
        const MoeExecProgram *g = &x->programs[t->program];
        t->used = t->elastic ? g->used[t->value] : g->ran ? g->plan->values[t->value].bytes : 0;
    }
    x->elastic_used = moe_touch_bytes(x->touched, x->n_touched, x->fixed_bytes);
}

void moe_exec_elastic_sum(MoeExec *x) {
    MoeExecProgram *train = moe_exec_program(x, "train");
    if (!x->elastic_grew)
        return;
    x->elastic_grew = false;
    sum_touched(x);
    for (size_t i = 0; i < x->n_layers; i++)
        x->layers[i].used = 0;
    for (size_t i = 0; train && i < train->n_elastic; i++)
        layer_of(x, train->elastic[i].layer)->used += train->used[train->elastic[i].value];
}

bool moe_exec_growth(MoeExec *x, MoeExecGrowth *out) {
    MoeExecLayer *worst = NULL;
    for (size_t i = 0; i < x->n_layers; i++) {
        MoeExecLayer *l = &x->layers[i];
        if ((double)l->used > TELL_FROM * (double)l->told &&
            (!worst || l->used - l->told > worst->used - worst->told))
            worst = l;
    }
    if (!worst)
        return false;
    *out = (MoeExecGrowth){worst->layer, worst->planned, worst->used};
    for (size_t i = 0; i < x->n_layers; i++) /* one line for all that grew in this step */
        if (x->layers[i].used > x->layers[i].told)
            x->layers[i].told = x->layers[i].used;
    return true;
}
