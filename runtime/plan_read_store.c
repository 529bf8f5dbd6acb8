/* Steps of plan.json that offload and load rows (docs/PLAN.md). What depends on live rows the execution looks at itself. */
#include <string.h>

#include "base/arena.h"
#include "runtime/plan_reader.h"

void moe_plan_read_slot_bytes(MoePlanReader *r, const json_t *o, MoePlanProgram *g) {
    if (!json_object_get(o, "offload_slots"))
        return;
    const json_t *a = moe_plan_array(r, o, "offload_slots", &g->n_slots);
    g->slot_bytes = MOE_NEW_N(r->plan->arena, int64_t, g->n_slots);
    for (size_t i = 0; i < g->n_slots && !r->st; i++) {
        const json_t *e = json_array_get(a, i);
        g->slot_bytes[i] = json_integer_value(e);
        if (!json_is_integer(e) || g->slot_bytes[i] < 1 || g->slot_bytes[i] > MOE_PLAN_MAX_BYTES)
            moe_plan_fail(r, "offload_slots", "has no number of bytes at place %zu", i);
    }
}

static void read_move(MoePlanReader *r, const json_t *o, const MoePlanProgram *g, MoePlanMove *m) {
    const char *op = moe_plan_str(r, o, "op");
    m->load = !strcmp(op, "load");
    if (!r->st && !m->load && strcmp(op, "offload") != 0)
        moe_plan_fail(r, "op", "is \"%.40s\", expected offload or load", op);
    m->value = moe_plan_value(r, json_object_get(o, "value"), g, "value");
    m->slot = (int)moe_plan_int(r, o, "slot", 0, (int64_t)g->n_slots - 1);
    m->bytes = moe_plan_int(r, o, "bytes", 0, MOE_PLAN_MAX_BYTES);
    m->rows = -1;
    if (json_object_get(o, "rows")) {
        m->rows = moe_plan_value(r, json_object_get(o, "rows"), g, "rows");
        m->row_bytes = moe_plan_int(r, o, "row_bytes", 0, MOE_PLAN_MAX_DIM);
    }
    if (r->st)
        return;
    if (g->values[m->value].kind != MOE_VALUE_SLAB || g->values[m->value].bytes < m->bytes)
        moe_plan_fail(r, "value", "%d is not in the slab, or has less than %lld bytes", m->value,
                      (long long)m->bytes);
    if (g->slot_bytes[m->slot] < m->bytes)
        moe_plan_fail(r, "slot", "%d has %lld bytes, too few for %lld", m->slot,
                      (long long)g->slot_bytes[m->slot], (long long)m->bytes);
    if (m->rows >= 0 && g->values[m->rows].bytes < 8)
        moe_plan_fail(r, "rows", "%d is too small for a table of rows", m->rows);
}

void moe_plan_read_store(MoePlanReader *r, const json_t *o, MoePlanProgram *g, size_t i) {
    MoePlanStep *s = &g->steps[i];
    const json_t *moves = moe_plan_array(r, o, "store", &s->n_moves);
    s->moves = MOE_NEW_N(r->plan->arena, MoePlanMove, s->n_moves);
    s->start = moe_plan_bool(r, o, "start");
    if (!r->st && (s->n_moves == 0 || !s->start))
        moe_plan_fail(r, s->start ? "store" : "start", s->start ? "is empty" : "should be true");
    for (size_t k = 0; k < s->n_moves && !r->st; k++) {
        moe_plan_at(r, "programs.%s.steps[%zu].store[%zu]", g->name, i, k);
        read_move(r, json_array_get(moves, k), g, &s->moves[k]);
    }
}

/* The move that put what `load` reads there: of an earlier step that was waited for. */
static const MoePlanMove *find_offload(const MoePlanProgram *g, size_t before,
                                       const MoePlanMove *load) {
    for (size_t i = before; i-- > 0;) {
        const MoePlanStep *s = &g->steps[i];
        for (size_t k = 0; s->wait >= 0 && k < g->steps[s->wait].n_moves; k++) {
            const MoePlanMove *m = &g->steps[s->wait].moves[k];
            if (!m->load && m->slot == load->slot)
                return m;
        }
    }
    return NULL;
}

void moe_plan_check_moves(MoePlanReader *r, const MoePlanProgram *g) {
    for (size_t i = 0; i < g->n_steps && !r->st; i++)
        for (size_t k = 0; k < g->steps[i].n_moves && !r->st; k++) {
            const MoePlanMove *m = &g->steps[i].moves[k],
                              *from = m->load ? find_offload(g, i, m) : m;
            moe_plan_at(r, "programs.%s.steps[%zu].store[%zu]", g->name, i, k);
            if (!from)
                moe_plan_fail(r, "slot", "%d: nothing was offloaded to it", m->slot);
            else if (from->bytes != m->bytes || from->rows != m->rows ||
                     from->row_bytes != m->row_bytes)
                moe_plan_fail(r, "slot", "%d: other rows were offloaded to it", m->slot);
        }
}
