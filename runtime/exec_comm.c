/* Exchanges of a program: started, waited for, finished. See exec_comm.h. */
#include "runtime/exec_comm.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/mem.h"
#include "runtime/emulate.h"

#define COPY_BYTES 262144 /* of a task */

static MoeStatus no_memory(void) {
    return moe_error(MOE_E_NOMEM, "no memory for the tables of exchanges between ranks");
}

/* ---- making ---- */

static MoeStatus make_groups(MoeExec *x) {
    const MoeMesh *m = &x->plan->mesh;
    for (int g = 0; g < MOE_N_GROUPS; g++) {
        MoeExecGroup *out = &x->between->groups[g];
        if (!moe_mesh_has_group(m, (MoeMeshGroup)g))
            continue;
        out->n = moe_mesh_group_size(m, (MoeMeshGroup)g);
        out->ranks = malloc(sizeof *out->ranks * (size_t)out->n);
        if (!out->ranks)
            return no_memory();
        out->self = moe_mesh_group_ranks(m, x->rank, (MoeMeshGroup)g, out->ranks);
    }
    return NULL;
}

static int64_t stage_bytes(const MoeExec *x, const MoePlanStep *s) {
    int64_t n = 0;
    for (size_t i = 0; i < s->n_comm; i++)
        n += moe_exec_is_sum(&s->comm[i]) ? moe_exec_sum_stage(x, &s->comm[i]) : 0;
    return n;
}

static int free_flight(MoeExecComm *c) {
    for (int f = 0; f < c->n_flights; f++)
        if (!c->flights[f].busy)
            return f;
    MoeExecFlight *flights = realloc(c->flights, sizeof *flights * ((size_t)c->n_flights + 1));
    if (!flights)
        return -1;
    c->flights = flights;
    flights[c->n_flights] = (MoeExecFlight){0};
    return c->n_flights++;
}

/* Walks the steps as they will run: which flight each exchange takes, and the staging memory it needs there. */
static MoeStatus plan_flights(MoeExec *x, const MoePlanProgram *g, int *flight) {
    MoeExecComm *c = x->between;
    for (size_t i = 0; i < g->n_steps; i++) {
        const MoePlanStep *s = &g->steps[i];
        if (s->wait >= 0 && g->steps[s->wait].n_comm) {
            flight[i] = flight[s->wait];
            c->flights[flight[i]].busy = false;
        }
        if (!s->n_comm)
            continue;
        for (size_t k = 0; k < s->n_comm; k++)
            if (moe_exec_is_sum(&s->comm[k]))
                MOE_TRY(moe_exec_sum_prepare(x, &s->comm[k]));
        if ((flight[i] = free_flight(c)) < 0)
            return no_memory();
        MoeExecFlight *f = &c->flights[flight[i]];
        int64_t n = stage_bytes(x, s);
        f->bytes = n > f->bytes ? n : f->bytes;
        f->busy = s->start;
    }
    return NULL;
}

/* Global slots of a layer, at most. */
static size_t most_slots(const MoePlan *p) {
    size_t most = 0;
    for (int k = 0; k <= p->mesh.n_ranges; k++) {
        MoeMesh d = moe_mesh_division(&p->mesh, k);
        size_t n = (size_t)d.ep * (size_t)moe_mesh_slots(&d, p->experts);
        most = n > most ? n : most;
    }
    return most;
}

MoeStatus moe_exec_comm_create(MoeExec *x) {
    const MoePlan *p = x->plan;
    MoeExecComm *c = x->between = calloc(1, sizeof *c);
    if (!c)
        return no_memory();
    MOE_TRY(make_groups(x));
    c->flight = calloc(p->n_programs + 1, sizeof *c->flight);
    c->filled = calloc(p->n_programs + 1, sizeof *c->filled);
    c->slot_expert = calloc(most_slots(p) + 1, sizeof *c->slot_expert);
    if (!c->flight || !c->filled || !c->slot_expert)
        return no_memory();
    for (size_t g = 0; g < p->n_programs; g++) {
        c->flight[g] = calloc(p->programs[g].n_steps + 1, sizeof **c->flight);
        c->filled[g] = calloc(p->programs[g].n_steps + 1, sizeof **c->filled);
        if (!c->flight[g] || !c->filled[g])
            return no_memory();
        MOE_TRY(plan_flights(x, &p->programs[g], c->flight[g]));
    }
    for (int f = 0; f < c->n_flights; f++) {
        MoeExecFlight *flight = &c->flights[f];
        void *stage = NULL;
        if (!flight->bytes)
            flight->bytes = MOE_BUFFER_ALIGN; /* a place all the same */
        MOE_TRY(moe_alloc_big((size_t)flight->bytes, "sums over ranks", &stage));
        flight->stage = stage;
    }
    return NULL;
}

static void free_stage(MoeExec *x, MoeExecFlight *f) {
    if (f->on_device)
        x->device->ops->release(x->device, f->stage, f->bytes);
    else
        moe_free_big(f->stage, (size_t)f->bytes);
    f->stage = NULL;
}

void moe_exec_comm_destroy(MoeExec *x) {
    MoeExecComm *c = x->between;
    if (!c)
        return;
    for (int f = 0; f < c->n_flights; f++) {
        if (c->flights[f].request) /* after an error: nothing may write into our memory any more */
            moe_status_free(moe_comm_wait(x->comm, c->flights[f].request));
        free_stage(x, &c->flights[f]);
        free(c->flights[f].results);
    }
    for (size_t g = 0; c->flight && g < x->plan->n_programs; g++)
        free(c->flight[g]);
    for (size_t g = 0; c->filled && g < x->plan->n_programs; g++)
        free(c->filled[g]);
    free(c->filled);
    for (int g = 0; g < MOE_N_GROUPS; g++)
        free(c->groups[g].ranks);
    for (size_t i = 0; i < c->n_sums; i++)
        free(c->sums[i].slice);
    free(c->sums);
    free(c->flight);
    free(c->flights);
    free(c->sends.items);
    free(c->recvs.items);
    free(c->copies);
    free(c->slot_expert);
    free(c);
    x->between = NULL;
}

int64_t moe_exec_comm_bytes(const MoeExec *x) {
    int64_t n = 0;
    for (int f = 0; x->between && f < x->between->n_flights; f++)
        if (moe_device_is_host(x->device) || x->between->flights[f].on_device)
            n += x->between->flights[f].bytes;
    return n;
}

/* ---- copies to oneself, while the transfer goes on ---- */

static void copy_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const MoeExecCopy *c = ctx;
    if (!c->index) {
        int64_t total = c->row_bytes * c->n, at = task * COPY_BYTES,
                n = total - at < COPY_BYTES ? total - at : COPY_BYTES;
        memcpy(c->to + at, c->from + at, (size_t)n);
        return;
    }
    int64_t rows = COPY_BYTES / c->row_bytes + 1, end = (task + 1) * rows;
    for (int64_t i = task * rows; i < end && i < c->n; i++)
        memcpy(c->to + i * c->row_bytes, c->from + c->index[i] * c->row_bytes,
               (size_t)c->row_bytes);
}

static void run_copies(MoeExec *x) {
    MoeExecComm *c = x->between;
    for (size_t i = 0; i < c->n_copies; i++) {
        MoeExecCopy *k = &c->copies[i];
        int64_t tasks = k->index ? k->n / (COPY_BYTES / k->row_bytes + 1) + 1
                                 : (k->row_bytes * k->n + COPY_BYTES - 1) / COPY_BYTES;
        moe_pool_run(x->pool, tasks, copy_task, k);
    }
}

/* ---- running ---- */

static void clear_lists(MoeExecComm *c) {
    c->sends.n = c->recvs.n = c->n_copies = 0;
}

/* Whether the step's groups have any other rank in them: the same on every rank. */
static bool has_peers(const MoeExec *x, const MoePlanStep *s) {
    for (size_t i = 0; i < s->n_comm; i++)
        if (x->between->groups[s->comm[i].group].n > 1)
            return true;
    return false;
}

int64_t moe_exec_op_stage(const MoeExec *x, const MoeExecProgram *g, const MoePlanComm *o) {
    if (moe_exec_is_sum(o))
        return moe_exec_sum_stage(x, o);
    return o->op == MOE_PLAN_FOLD_COPIES ? moe_exec_copies_stage(x, g, o) : 0;
}

/* Where exchanges go over a device's links, its memory is where terms arrive. */
static MoeStatus make_room(MoeExec *x, const MoeExecProgram *g, const MoePlanStep *s,
                           MoeExecFlight *f) {
    const bool on_device = x->device->links != NULL;
    int64_t n = 0;
    for (size_t i = 0; i < s->n_comm; i++)
        n += moe_exec_op_stage(x, g, &s->comm[i]);
    if (n <= f->bytes && on_device == f->on_device)
        return NULL;
    n = n > f->bytes ? n : f->bytes;
    void *stage = NULL;
    free_stage(x, f);
    f->bytes = 0;
    f->on_device = on_device;
    if (on_device)
        MOE_TRY(x->device->ops->alloc(x->device, n, "terms of sums over ranks", &f->stage));
    else
        MOE_TRY(moe_alloc_big((size_t)n, "gradients of experts' copies", &stage));
    f->stage = on_device ? f->stage : stage;
    f->bytes = n;
    return NULL;
}

static MoeStatus begin(MoeExec *x, const MoeExecProgram *g, const MoePlanStep *s,
                       MoeExecFlight *f) {
    MoeExecComm *c = x->between;
    MOE_ASSERT(!f->request, "%s: the flight is taken", s->name);
    MOE_TRY(moe_exec_mirror_tables(x, g, s));
    MOE_TRY(make_room(x, g, s, f));
    if (x->device->links)
        return moe_exec_device_begin(x, g, s, f);
    char *stage = f->stage;
    clear_lists(c);
    for (size_t i = 0; i < s->n_comm; i++) {
        MoeExecPlaces from = {c->sends.n, c->recvs.n, c->n_copies,
                              c->recvs.n ? c->recvs.items[c->recvs.n - 1].row_bytes : 0};
        MOE_TRY(
            moe_status_prefix(moe_exec_op_blocks(x, g, &s->comm[i], stage), "step %s", s->name));
        MOE_TRY(moe_exec_mirror_rows(x, g, &s->comm[i], &from, f));
        stage += moe_exec_op_stage(x, g, &s->comm[i]);
    }
    if (c->failed)
        return no_memory();
    if (has_peers(x, s))
        MOE_TRY(moe_comm_start(x->comm, c->sends.items, c->sends.n, c->recvs.items, c->recvs.n,
                               s->name, &f->request));
    run_copies(x);
    return NULL;
}

/* Parts of slices that were added up apart come together. */
static MoeStatus rejoin(MoeExec *x, const MoeExecProgram *g, const MoePlanStep *s) {
    MoeExecComm *c = x->between;
    bool any = false;
    clear_lists(c);
    for (size_t i = 0; i < s->n_comm; i++)
        if (moe_exec_is_sum(&s->comm[i]) && moe_exec_sum_twice(x, &s->comm[i])) {
            moe_exec_sum_rejoin(x, g, &s->comm[i]);
            any = true;
        }
    if (c->failed)
        return no_memory();
    return any ? moe_comm_exchange(x->comm, c->sends.items, c->sends.n, c->recvs.items, c->recvs.n,
                                   s->name)
               : NULL;
}

/* Expert rows to where they are worked on, or home. */
static bool moves_rows(const MoePlanStep *s) {
    return s->comm[0].op == MOE_PLAN_A2A_DISPATCH || s->comm[0].op == MOE_PLAN_A2A_COMBINE;
}

MoeStatus moe_exec_fold_terms(MoeExec *x, const MoeExecProgram *g, const MoePlanStep *s,
                              const char *stage) {
    for (size_t i = 0; i < s->n_comm; i++) {
        if (moe_exec_is_sum(&s->comm[i]))
            MOE_TRY(moe_exec_sum_fold(x, g, &s->comm[i], stage));
        if (s->comm[i].op == MOE_PLAN_FOLD_COPIES)
            MOE_TRY(moe_exec_copies_fold(x, g, &s->comm[i], stage));
        stage += moe_exec_op_stage(x, g, &s->comm[i]);
    }
    return NULL;
}

static MoeStatus finish(MoeExec *x, const MoeExecProgram *g, const MoePlanStep *s,
                        MoeExecFlight *f) {
    MoeRequest *request = f->request;
    if (x->device->links)
        return moe_exec_device_finish(x, g, s, f);
    f->request = NULL;
    moe_emulate_mark(x->comm, moves_rows(s));
    MoeStatus st = request ? moe_comm_wait(x->comm, request) : NULL;
    moe_emulate_mark(x->comm, false);
    MOE_TRY(st);
    MOE_TRY(moe_exec_fold_terms(x, g, s, f->stage));
    MOE_TRY(rejoin(x, g, s));
    return moe_exec_mirror_results(x, f);
}

void moe_exec_comm_begin_run(MoeExec *x) {
    if (x->between)
        x->between->run++;
}

bool moe_exec_is_filled(const MoeExec *x, const MoeExecProgram *g, size_t i) {
    const MoePlanStep *s = &g->plan->steps[i];
    return s->n_comm && s->comm[0].op == MOE_PLAN_COPY_EXPERTS &&
           x->between->filled[g - x->programs][i] == x->between->run;
}

void moe_exec_set_filled(MoeExec *x, const MoeExecProgram *g, size_t i, bool filled) {
    x->between->filled[g - x->programs][i] = filled ? x->between->run : 0;
}

/* The same, and they are from now on. */
static bool is_filled(MoeExec *x, const MoeExecProgram *g, size_t i) {
    bool done = moe_exec_is_filled(x, g, i);
    moe_exec_set_filled(x, g, i, true);
    return done;
}

MoeStatus moe_exec_comm_step(MoeExec *x, MoeExecProgram *g, size_t i) {
    const MoePlanStep *s = &g->plan->steps[i];
    MoeExecFlight *f = &x->between->flights[x->between->flight[g - x->programs][i]];
    if (moe_device_carries(x->device, x, g, i))
        return s->wait < 0 && is_filled(x, g, i) ? NULL : x->device->ops->exchange(x->device, x, g, i);
    if (s->wait >= 0)
        return finish(x, g, &g->plan->steps[s->wait], f);
    if (is_filled(x, g, i))
        return NULL;
    MOE_TRY(begin(x, g, s, f));
    return s->start ? NULL : finish(x, g, s, f);
}
