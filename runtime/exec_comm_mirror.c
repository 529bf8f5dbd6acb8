/* Exchanges on a device with memory of its own: what an op reads is copied to the mirrors before, what it wrote is copied to the
 * device behind it. See exec_comm.h. */
#include "base/mem.h"
#include "runtime/exec_comm.h"

/* ---- reading ---- */

/* A value as far as it is live. */
static MoeStatus read_value(MoeExec *x, const MoeExecProgram *g, int value) {
    const MoePlanValue *v = &g->plan->values[value];
    int64_t bytes = v->bytes;
    if (v->kind == MOE_VALUE_INPUT)
        return NULL; /* the mirror is what was sent */
    if (v->elastic) {
        const int32_t *segs = (const int32_t *)(const void *)g->values[v->rows],
                      *last = &segs[g->plan->values[v->rows].bytes / 4 - 1];
        MOE_TRY(moe_device_read(x->device, last, sizeof *last));
        bytes = *last * v->row_bytes < bytes ? *last * v->row_bytes : bytes;
    }
    return moe_device_read(x->device, g->values[value], bytes);
}

/* The first operand that is a table of integers: those behind it are too. */
static int first_table(const MoePlanComm *o) {
    return o->op == MOE_PLAN_FOLD_COPIES ? 2 : 1;
}

/* The host reads it to make lists; a device gathers rows by itself. */
static bool is_read(const MoeExec *x, const MoePlanComm *o, int k) {
    return !x->device->links || o->op != MOE_PLAN_A2A_DISPATCH || k != 2;
}

MoeStatus moe_exec_mirror_tables(MoeExec *x, const MoeExecProgram *g, const MoePlanStep *s) {
    if (moe_device_is_host(x->device))
        return NULL;
    for (size_t i = 0; i < s->n_comm; i++)
        for (int k = first_table(&s->comm[i]); k < s->comm[i].n_in; k++)
            if (is_read(x, &s->comm[i], k))
                MOE_TRY(read_value(x, g, s->comm[i].in[k]));
    return NULL;
}

/* Rows by index: up to the last one that any of the peers gets. */
typedef struct {
    const char *base;
    int64_t bytes;
} Indexed;

static MoeStatus flush(MoeExec *x, Indexed *r) {
    MoeStatus st = r->base ? moe_device_read(x->device, r->base, r->bytes) : NULL;
    *r = (Indexed){0};
    return st;
}

static MoeStatus read_rows(MoeExec *x, const char *base, int64_t row_bytes, int64_t n,
                           const int32_t *index, Indexed *r) {
    if (!index)
        return moe_device_read(x->device, base, n * row_bytes);
    if (r->base != base)
        MOE_TRY(flush(x, r));
    r->base = base;
    for (int64_t i = 0; i < n; i++)
        r->bytes = (index[i] + 1) * row_bytes > r->bytes ? (index[i] + 1) * row_bytes : r->bytes;
    return NULL;
}

/* Sources of the op's blocks, which may have become part of the block before. */
static MoeStatus read_sources(MoeExec *x, const MoeExecPlaces *from) {
    const MoeExecComm *c = x->between;
    Indexed r = {0};
    for (size_t i = from->sends ? from->sends - 1 : 0; i < c->sends.n; i++) {
        const MoeBlock *b = &c->sends.items[i];
        MOE_TRY(read_rows(x, b->base, b->row_bytes, b->n, b->index, &r));
    }
    for (size_t i = from->copies; i < c->n_copies; i++) {
        const MoeExecCopy *k = &c->copies[i];
        MOE_TRY(read_rows(x, k->from, k->row_bytes, k->n, k->index, &r));
    }
    return flush(x, &r);
}

/* ---- results ---- */

static MoeStatus add_result(MoeExecFlight *f, const char *at, int64_t bytes) {
    MoeExecRange *last = f->n_results ? &f->results[f->n_results - 1] : NULL;
    if (last && last->at + last->bytes == at) {
        last->bytes += bytes;
        return NULL;
    }
    if (!MOE_ROOM(f->results, f->n_results, f->cap_results))
        return moe_error(MOE_E_NOMEM, "no memory for the tables of exchanges between ranks");
    f->results[f->n_results++] = (MoeExecRange){at, bytes};
    return NULL;
}

/* Where rows arrive: no more of an elastic value than is live. */
static MoeStatus add_arrivals(const MoeExecComm *c, const MoeExecPlaces *from, MoeExecFlight *f) {
    const MoeBlock *grown = from->recvs ? &c->recvs.items[from->recvs - 1] : NULL;
    if (grown && grown->row_bytes > from->last_recv)
        MOE_TRY(add_result(f, (char *)grown->base + from->last_recv,
                           grown->row_bytes - from->last_recv));
    for (size_t i = from->recvs; i < c->recvs.n; i++)
        MOE_TRY(add_result(f, c->recvs.items[i].base,
                           c->recvs.items[i].n * c->recvs.items[i].row_bytes));
    for (size_t i = from->copies; i < c->n_copies; i++)
        MOE_TRY(add_result(f, c->copies[i].to, c->copies[i].n * c->copies[i].row_bytes));
    return NULL;
}

static MoeStatus whole_result(const MoeExecProgram *g, int value, MoeExecFlight *f) {
    return add_result(f, g->values[value], g->plan->values[value].bytes);
}

/* The roots that slots have beyond their first. */
static MoeStatus read_rest(MoeExec *x, const MoeExecProgram *g, const MoePlanComm *o) {
    const int32_t *more = (const int32_t *)(const void *)g->values[o->in[2]];
    return moe_device_read(x->device, g->values[o->in[1]], more[o->slots] * o->row_bytes);
}

MoeStatus moe_exec_mirror_rows(MoeExec *x, const MoeExecProgram *g, const MoePlanComm *o,
                               const MoeExecPlaces *from, MoeExecFlight *f) {
    if (moe_device_is_host(x->device))
        return NULL;
    switch (o->op) {
    case MOE_PLAN_ALL_GATHER:
    case MOE_PLAN_REDUCE_SCATTER:
    case MOE_PLAN_ALL_REDUCE:
        MOE_TRY(read_value(x, g, o->in[0]));
        return whole_result(g, o->out, f);
    case MOE_PLAN_FOLD_COPIES:
        MOE_TRY(read_value(x, g, o->in[0]));
        MOE_TRY(read_rest(x, g, o));
        return whole_result(g, o->in[0], f);
    case MOE_PLAN_ALL_GATHER_ROWS:
    case MOE_PLAN_A2A_DISPATCH:
    case MOE_PLAN_A2A_COMBINE:
    case MOE_PLAN_COPY_EXPERTS:
        MOE_TRY(read_sources(x, from));
        return add_arrivals(x->between, from, f);
    case MOE_N_PLAN_COMM_OPS:
        break;
    }
    return moe_error(MOE_E_INTERNAL, "collective %d", (int)o->op);
}

MoeStatus moe_exec_mirror_results(MoeExec *x, MoeExecFlight *f) {
    for (size_t i = 0; i < f->n_results; i++)
        MOE_TRY(moe_device_write(x->device, f->results[i].at, f->results[i].bytes));
    f->n_results = 0;
    return NULL;
}
