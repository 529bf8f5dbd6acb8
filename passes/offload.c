/* offload: rows of the forward phase that the backward phase reads again leave the slab in between.
 *
 * In: grouped graphs in their final order. Out: STORE groups, each with a later `wait`; backward readers read what came back.
 *
 *   forward    %h = matmul ...   #3  layer 0, read here last        %h = matmul ...   #3
 *                                                                   %o = offload %h   #4
 *              ...               layer 1                            ...
 *                                                                   %p = wait %o      #9   before layer 2
 *   backward   ...               layer 1                            %l = load %p      #30  before layer 1
 *                                                                   ...
 *              ... %h ...        layer 0                            %i = wait %l      #38
 *                                                                   ... %i ...
 *
 * Between the first wait and the load the value has no memory. What is read in layer L of the backward phase is loaded when layer
 * L + horizon begins, and written by the time that as many layers (at least one) have followed in the forward phase; the head counts
 * as a layer behind the last. Values that would not be gone for a moment stay: those of the last layers; and those whose absence does not lower
 * the peak: the last layers' first. Moved are ragged float rows; tables and plans of rows stay, and whatever the reduce and update
 * phases or the runtime read.
 * The runtime moves live rows only (docs/PLAN.md). No bit changes. */
#include "passes/offload.h"

#include <string.h>

#include "base/assert.h"
#include "passes/group.h"
#include "passes/memplan.h"
#include "passes/plan_json.h"

/* A value on its way. Places are numbers of groups: what happens there happens before that group. */
typedef struct {
    MoeValue *v;
    int64_t layer;             /* that reads it again */
    int out, gone, back, used; /* offload, wait; load, wait: out <= gone < back <= used */
    MoeValue *at[4];           /* the results of these four */
} Move;

typedef struct {
    MoeGraph *g;
    MoeArena *a;
    MoeGroups gs;
    int n;             /* groups */
    int64_t *layer_of; /* by group */
    bool *glued;       /* by group: it and the one before are in one loop over chunks */
    int n_layers, horizon;
    int *stage; /* where layers 0.. of the forward phase begin, the head, its gradients, layers ..0 */
    Move *moves;
    size_t n_moves, cap_moves;
} Offload;

/* ---- where layers begin ---- */

static bool is_rows(const MoeValue *v) {
    return v->type.kind == MOE_TYPE_TENSOR && v->type.rank > 0 && v->type.dims[0].seg;
}

static bool makes_rows(const MoeGroup *g) {
    for (size_t i = 0; i < g->n_outputs; i++)
        if (is_rows(g->outputs[i]))
            return true;
    return false;
}

static MoePhase phase_of(const Offload *o, int group) {
    return o->gs.groups[group].ops[0]->phase;
}

/* The first group of the phase that works on rows of the layer (-1: of none), from `from` on; n: none. */
static int find_start(const Offload *o, MoePhase ph, int64_t layer, int from) {
    for (int i = from; i < o->n; i++)
        if (phase_of(o, i) == ph && o->layer_of[i] == layer && makes_rows(&o->gs.groups[i]))
            return i;
    return o->n;
}

static int first_of_phase(const Offload *o, MoePhase ph) {
    int i = 0;
    while (i < o->n && phase_of(o, i) < ph)
        i++;
    return i;
}

static void find_stages(Offload *o) {
    int n = o->n_layers, backward = first_of_phase(o, MOE_PHASE_BACKWARD);
    o->stage = MOE_NEW_N(o->a, int, 2 * n + 2);
    for (int l = 0; l < n; l++)
        o->stage[l] = find_start(o, MOE_PHASE_FORWARD, l, 0);
    o->stage[n] = n ? find_start(o, MOE_PHASE_FORWARD, -1, o->stage[n - 1]) : backward;
    o->stage[n + 1] = backward;
    for (int l = n - 1; l >= 0; l--)
        o->stage[2 * n + 1 - l] = find_start(o, MOE_PHASE_BACKWARD, l, 0);
    for (int s = 0; s < 2 * n + 2; s++) { /* in order, and each in its phase */
        if (s <= n && o->stage[s] > backward)
            o->stage[s] = backward;
        if (s && o->stage[s] < o->stage[s - 1])
            o->stage[s] = o->stage[s - 1];
    }
}

static void find_glue(Offload *o) {
    const MoeOp *plan = NULL;
    bool loops = false;
    for (int i = 0; i < o->n; i++) {
        const MoeOp *before = plan;
        bool looped = loops;
        loops = moe_chunk_role_loops(moe_group_chunk_role(&o->gs.groups[i], &plan)) &&
                moe_attr_i(plan, "chunks") > 1;
        o->glued[i] = loops && looped && plan == before;
    }
}

/* ---- which values, and when ---- */

typedef struct {
    int last_forward;   /* the last group of that phase that reads or makes it; -1: none */
    int first_backward; /* that reads it; -1: none */
    bool stays;         /* someone else reads it */
} Uses;

static bool is_exchange(const MoeValue *v) {
    return moe_op_info(v->def->opcode)->kind == MOE_KIND_COMM;
}

static void note_use(const Offload *o, Uses *u, const MoeOp *op) {
    int at = op->group >= 0 ? o->gs.step_of[op->results[0]->id] : -1;
    if (at < 0 || op->phase > MOE_PHASE_BACKWARD || op->opcode == MOE_OP_WAIT)
        u->stays = true;
    else if (op->phase == MOE_PHASE_FORWARD)
        u->last_forward = at > u->last_forward ? at : u->last_forward;
    else
        u->first_backward =
            u->first_backward < 0 || at < u->first_backward ? at : u->first_backward;
}

static Uses *find_uses(const Offload *o) {
    Uses *uses = MOE_NEW_N(o->a, Uses, o->g->n_values);
    for (int i = 0; i < o->g->n_values; i++)
        uses[i] = (Uses){o->gs.step_of[i], -1, false};
    for (size_t i = 0; i < o->g->n_ops; i++)
        for (int k = 0; k < o->g->ops[i]->n_operands; k++)
            note_use(o, &uses[o->g->ops[i]->operands[k]->id], o->g->ops[i]);
    return uses;
}

/* When it would go and come; false: it would not be gone for a moment. */
static bool find_times(const Offload *o, const Uses *u, Move *m) {
    int n = o->n_layers, behind = o->horizon > 1 ? o->horizon : 1;
    int64_t from = o->layer_of[u->last_forward], to = o->layer_of[u->first_backward];
    if (from < 0 || to < 0)
        return false;
    int64_t gone = from + 1 + behind, back = 2 * n + 1 - to - o->horizon;
    if (gone > n + 1)
        return false;
    back = back > n ? back : n + 1;
    m->layer = to;
    m->out = u->last_forward + 1;
    m->gone = o->stage[gone];
    m->back = o->stage[back];
    m->used = u->first_backward;
    while (m->out < o->n && o->glued[m->out]) /* loops stay whole */
        m->out++;
    while (m->used > 0 && o->glued[m->used])
        m->used--;
    m->gone = m->gone > m->out ? m->gone : m->out;
    while (m->gone < o->n && o->glued[m->gone])
        m->gone++;
    m->back = m->back < m->used ? m->back : m->used;
    while (m->back > 0 && o->glued[m->back])
        m->back--;
    return m->gone < m->back;
}

static void choose(Offload *o) {
    Uses *uses = find_uses(o);
    for (int s = 0; s < o->n && phase_of(o, s) == MOE_PHASE_FORWARD; s++)
        for (size_t i = 0; i < o->gs.groups[s].n_outputs; i++) {
            MoeValue *v = (MoeValue *)o->gs.groups[s].outputs[i];
            const Uses *u = &uses[v->id];
            Move m = {.v = v};
            bool floats = v->type.dtype == MOE_F32 || v->type.dtype == MOE_BF16;
            if (is_rows(v) && floats && !u->stays && u->first_backward >= 0 && !is_exchange(v) &&
                moe_value_expected_bytes(v) >= MOE_OFFLOAD_LEAST && find_times(o, u, &m))
                MOE_PUSH(o->a, o->moves, o->n_moves, o->cap_moves, m);
        }
}

/* ---- which of them lower the peak ---- */

/* By group: its first step. */
static int *find_steps(const Offload *o) {
    MoeGroups steps = moe_groups_of(o->g, o->a);
    int *first = MOE_NEW_N(o->a, int, o->n + 1);
    first[o->n] = (int)steps.n_groups;
    for (int s = (int)steps.n_groups - 1; s >= 0; s--) /* chunks: a group several times */
        first[o->gs.step_of[steps.groups[s].ops[0]->results[0]->id]] = s;
    return first;
}

static int64_t largest(const int64_t *live, int from, int to) {
    int64_t most = 0;
    for (int s = from; s < to; s++)
        most = live[s] > most ? live[s] : most;
    return most;
}

/* Adds n bytes to all steps in which the value would be gone. */
static void add_gone(const Move *m, const int *first, int64_t *live, int64_t n) {
    for (int s = first[m->gone]; s < first[m->back]; s++)
        live[s] += n;
}

static MoeStatus drop_useless(Offload *o, MoeTarget *t, const MoePassOptions *options) {
    int64_t *live;
    int *first = find_steps(o);
    MOE_TRY(moe_memplan_live(t, o->g, options, o->a, &live));
    for (size_t i = 0; i < o->n_moves; i++)
        add_gone(&o->moves[i], first, live, -moe_value_expected_bytes(o->moves[i].v));
    int64_t peak = largest(live, 0, first[o->n]);
    bool *stays = MOE_NEW_N(o->a, bool, o->n_moves);
    for (size_t i = o->n_moves; i-- > 0;) {
        const Move *m = &o->moves[i];
        int64_t n = moe_value_expected_bytes(m->v);
        stays[i] = largest(live, first[m->gone], first[m->back]) + n <= peak;
        if (stays[i])
            add_gone(m, first, live, n);
    }
    size_t n = 0;
    for (size_t i = 0; i < o->n_moves; i++)
        if (!stays[i])
            o->moves[n++] = o->moves[i];
    o->n_moves = n;
    return NULL;
}

/* ---- rewriting ---- */

enum { OUT, GONE, BACK, USED };

static int place_of(const Move *m, int what) {
    const int places[] = {m->out, m->gone, m->back, m->used};
    return places[what];
}

/* Moves whose step `what` is one with the first's: that begin and end together. */
static bool together(const Move *x, const Move *y, int what) {
    int pair = what & ~1; /* a start and its wait */
    return place_of(x, pair) == place_of(y, pair) && place_of(x, pair + 1) == place_of(y, pair + 1);
}

/* All steps of one sort that stand before group `place`; *next: the number of the next group. */
static void put_steps(Offload *o, int what, int place, int *next) {
    static const MoeOpcode ops[] = {MOE_OP_OFFLOAD, MOE_OP_WAIT, MOE_OP_LOAD, MOE_OP_WAIT};
    for (size_t i = 0; i < o->n_moves; i++) {
        if (place_of(&o->moves[i], what) != place || o->moves[i].at[what])
            continue;
        for (size_t k = i; k < o->n_moves; k++) {
            Move *m = &o->moves[k];
            if (!together(&o->moves[i], m, what))
                continue;
            MoeValue *x = what == OUT ? m->v : m->at[what - 1];
            o->g->layer = (int)m->layer;
            m->at[what] = moe_build1(o->g, ops[what], x);
            m->at[what]->def->group = *next;
        }
        ++*next;
    }
}

static void rewrite(Offload *o) {
    MoeGraph *g = o->g;
    int n_old = g->n_values, next = 0, at = -1, before = -1, layer = g->layer;
    size_t n_ops;
    MoePhase phase = g->phase;
    MoeOp **ops = moe_graph_take_ops(g, &n_ops);
    Move **move_of = MOE_NEW_N(o->a, Move *, n_old);
    for (size_t i = 0; i < o->n_moves; i++)
        move_of[o->moves[i].v->id] = &o->moves[i];
    for (size_t i = 0; i < n_ops; i++) {
        MoeOp *op = ops[i];
        bool begins = op->group >= 0 && op->group != before,
             ends = op->group >= 0 && (i + 1 == n_ops || ops[i + 1]->group != op->group);
        before = op->group;
        g->phase = op->phase;
        if (begins) {
            at++;
            for (int what = GONE; what <= USED; what++)
                put_steps(o, what, at, &next);
        }
        for (int k = 0; k < op->n_operands && op->phase == MOE_PHASE_BACKWARD; k++) {
            const Move *m = op->operands[k]->id < n_old ? move_of[op->operands[k]->id] : NULL;
            if (m)
                op->operands[k] = m->at[USED];
        }
        moe_graph_append(g, op);
        if (op->group >= 0)
            op->group = next;
        if (ends) {
            next++;
            put_steps(o, OUT, at + 1, &next);
        }
    }
    g->phase = phase;
    g->layer = layer;
    moe_graph_renumber(g);
}

MoeStatus moe_offload_graph(MoeTarget *t, MoeGraph *g, const MoePassOptions *options) {
    Offload o = {.g = g, .a = moe_arena_create(), .horizon = options->loading_horizon};
    o.gs = moe_groups_whole(g, o.a);
    o.n = (int)o.gs.n_groups;
    o.layer_of = MOE_NEW_N(o.a, int64_t, o.n);
    o.glued = MOE_NEW_N(o.a, bool, o.n);
    for (int i = 0; i < o.n; i++) {
        o.layer_of[i] = moe_plan_step_layer(&o.gs.groups[i]);
        o.n_layers = (int)o.layer_of[i] + 1 > o.n_layers ? (int)o.layer_of[i] + 1 : o.n_layers;
    }
    find_stages(&o);
    find_glue(&o);
    choose(&o);
    MoeStatus st = o.n_moves ? drop_useless(&o, t, options) : NULL;
    if (!st && o.n_moves)
        rewrite(&o);
    moe_arena_destroy(o.a);
    return st;
}

const MoeValue *moe_offload_origin(const MoeValue *v) {
    const MoeOp *load = v->def->opcode == MOE_OP_WAIT ? v->def->operands[0]->def : NULL;
    if (!load || load->opcode != MOE_OP_LOAD)
        return v;
    return load->operands[0]->def->operands[0]->def->operands[0];
}

MoeStatus moe_pass_offload(MoePassContext *cx) {
    if (!cx->options.offload)
        return NULL;
    if (!cx->target)
        return moe_error(MOE_E_INTERNAL, "the offload pass needs a target");
    for (size_t i = 0; i < cx->module->n_graphs; i++)
        MOE_TRY(moe_offload_graph(cx->target, cx->module->graphs[i], &cx->options));
    return NULL;
}
