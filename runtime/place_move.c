/* See place_move.h. Between two points where the ranks meet no rank leaves the way of the others: a failure of one is agreed on at
 * the next such point. */
#include "runtime/place_move.h"

#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "base/mem.h"
#include "runtime/place_fault.h"
#include "runtime/weights.h"

/* One tensor of a layer's experts on this rank: `bytes` a slot. */
typedef struct {
    char *base;
    int64_t bytes;
} Tensor;

typedef struct {
    Tensor *tensors; /* weights, and all states of each */
    int n;
    int64_t slot_bytes; /* of all of them together */
    MoeMesh mesh;       /* the division of the layer's experts */
    int ep;             /* this rank's place in it */
} Layer;

/* One expert's way from a global slot to another of its layer. */
typedef struct {
    int layer, expert, from, to;
    int next;   /* the hop that leaves `to`; -1 none */
    bool frees; /* none ends in `from` */
} Hop;

typedef struct {
    const MoePlan *plan;
    MoeExec *x;
    MoeComm *c;
    Layer *layers; /* [n_moe_layers] */
    Hop *hops;     /* those of a cycle or chain one after another */
    bool *starts;  /* [n_hops] of one */
    int n_hops;
    /* Of a batch: */
    char *stage;
    int64_t stage_bytes;
    MoeBlock *sends, *recvs;
    uint64_t *sent, *came, *told; /* [hops of the batch]: hashes of what this rank sent, got, should have got */
    MoeStatus fault;              /* that a test asked for */
} Move;

/* ---- what there is to move ---- */

static void layer_of(Move *m, size_t k, Layer *out) {
    const MoePlan *p = m->plan;
    out->mesh = moe_mesh_division(&p->mesh, moe_mesh_of_layer(&p->mesh, p->moe_layers[k]));
    out->ep = moe_mesh_coords(&out->mesh, m->c->rank).ep;
}

static void add_tensor(Move *m, Layer *l, int slots, int buffer) {
    int64_t bytes = m->plan->buffers[buffer].bytes / slots;
    l->tensors[l->n++] = (Tensor){moe_exec_buffer(m->x, buffer), bytes};
    l->slot_bytes += bytes;
}

static MoeStatus list_tensors(Move *m) {
    const MoePlan *p = m->plan;
    m->layers = calloc(p->n_moe_layers + 1, sizeof *m->layers);
    if (!m->layers)
        return moe_error(MOE_E_NOMEM, "no memory for the experts of %zu layers", p->n_moe_layers);
    for (size_t k = 0; k < p->n_moe_layers; k++) {
        Layer *l = &m->layers[k];
        int slots = moe_exec_map(m->x, k)->slots, n = 0;
        layer_of(m, k, l);
        for (size_t i = 0; i < p->n_params; i++)
            n += moe_param_layer(p, &p->params[i]) == (int)k ? 1 + (int)p->params[i].n_states : 0;
        if (!(l->tensors = calloc((size_t)n + 1, sizeof *l->tensors)))
            return moe_error(MOE_E_NOMEM, "no memory for a list of %d tensors", n);
        for (size_t i = 0; i < p->n_params; i++) {
            const MoePlanParam *q = &p->params[i];
            if (moe_param_layer(p, q) != (int)k)
                continue;
            add_tensor(m, l, slots, q->buffer);
            for (size_t s = 0; s < q->n_states; s++)
                add_tensor(m, l, slots, q->states[s].buffer);
        }
    }
    return NULL;
}

/* Layer k's hops, in the order of experts; leaves[slot]: the hop that leaves it. */
static int list_layer(const MoePlaceMap *from, const MoePlaceMap *to, int k, Hop *out, int *leaves) {
    int n = 0;
    for (int g = 0; g < from->ranks * from->slots; g++)
        leaves[g] = -1;
    for (int e = 0; e < from->experts; e++)
        if (from->primary[e] != to->primary[e]) {
            leaves[from->primary[e]] = n;
            out[n++] = (Hop){k, e, from->primary[e], to->primary[e], -1, true};
        }
    for (int i = 0; i < n; i++) {
        out[i].next = leaves[out[i].to];
        if (out[i].next >= 0)
            out[out[i].next].frees = false;
    }
    return n;
}

/* The hops from the start of a chain (or anywhere in a cycle) into m->hops. */
static void follow(Move *m, const Hop *hops, bool *done, int i) {
    m->starts[m->n_hops] = true;
    for (; i >= 0 && !done[i]; i = hops[i].next) {
        done[i] = true;
        m->hops[m->n_hops++] = hops[i];
    }
}

/* All hops, by layer, chain and cycle. */
static MoeStatus list_hops(Move *m, const MoePlaceMap *to) {
    const MoePlan *p = m->plan;
    size_t all = p->n_moe_layers * (size_t)p->experts;
    int most = p->experts, n_slots = 0;
    for (size_t k = 0; k < p->n_moe_layers; k++)
        if (to[k].ranks * to[k].slots > n_slots)
            n_slots = to[k].ranks * to[k].slots;
    m->hops = calloc(all + 1, sizeof *m->hops);
    m->starts = calloc(all + 1, sizeof *m->starts);
    Hop *hops = calloc((size_t)most + 1, sizeof *hops);
    int *leaves = calloc((size_t)n_slots + 1, sizeof *leaves);
    bool *done = calloc((size_t)most + 1, sizeof *done);
    MoeStatus st = m->hops && m->starts && hops && leaves && done
                       ? NULL
                       : moe_error(MOE_E_NOMEM, "no memory for the list of experts that move");
    for (size_t k = 0; k < p->n_moe_layers && !st; k++) {
        int n = list_layer(moe_exec_map(m->x, k), &to[k], (int)k, hops, leaves);
        memset(done, 0, (size_t)most * sizeof *done);
        for (int i = 0; i < n; i++)
            if (hops[i].frees)
                follow(m, hops, done, i);
        for (int i = 0; i < n; i++) /* what is left are cycles */
            if (!done[i])
                follow(m, hops, done, i);
    }
    free(hops);
    free(leaves);
    free(done);
    return st;
}

/* ---- one batch: hops [lo, hi) ---- */

static int rank_of(const Move *m, const Layer *l, int ep) {
    MoeCoords c = moe_mesh_coords(&l->mesh, m->c->rank);
    return ((c.dp * l->mesh.shard + c.shard) * l->mesh.ep + ep) * l->mesh.tp + c.tp;
}

static int slots_of(const Move *m, const Hop *h) {
    return moe_exec_map(m->x, (size_t)h->layer)->slots;
}

static bool leaves_here(const Move *m, const Hop *h) {
    return h->from / slots_of(m, h) == m->layers[h->layer].ep;
}

static bool comes_here(const Move *m, const Hop *h) {
    return h->to / slots_of(m, h) == m->layers[h->layer].ep;
}

static char *slot_data(const Move *m, const Hop *h, const Tensor *t, int slot) {
    return t->base + t->bytes * (slot % slots_of(m, h));
}

/* Memory for what comes, and lists for it all. */
static MoeStatus prepare(Move *m, int lo, int hi) {
    int64_t bytes = 0;
    size_t n = (size_t)(hi - lo), tensors = 0;
    for (int i = lo; i < hi; i++) {
        const Layer *l = &m->layers[m->hops[i].layer];
        tensors += (size_t)l->n;
        bytes += comes_here(m, &m->hops[i]) ? l->slot_bytes : 0;
    }
    MOE_TRY(moe_place_point(m->c->rank, MOE_PLACE_AT_LISTED, NULL, 0));
    m->stage_bytes = bytes;
    m->sends = calloc(tensors + 1, sizeof *m->sends);
    m->recvs = calloc(tensors + 1, sizeof *m->recvs);
    m->sent = calloc(n + 1, sizeof *m->sent);
    m->came = calloc(n + 1, sizeof *m->came);
    m->told = calloc(n + 1, sizeof *m->told);
    if (!m->sends || !m->recvs || !m->sent || !m->came || !m->told)
        return moe_error(MOE_E_NOMEM, "no memory for the list of %zu experts that move", n);
    if (bytes) {
        void *data;
        MOE_TRY(moe_alloc_big((size_t)bytes, "experts on their way to this rank", &data));
        m->stage = data;
    }
    return moe_place_point(m->c->rank, MOE_PLACE_AT_STAGED, NULL, 0);
}

/* A fault here is heard of when the ranks agree. */
static void may_fail(Move *m, MoePlacePoint point) {
    MoeStatus st = moe_place_point(m->c->rank, point, m->stage, m->stage_bytes);
    if (m->fault)
        moe_status_free(st);
    else
        m->fault = st;
}

static MoeStatus transfer(Move *m, int lo, int hi) {
    size_t n_sends = 0, n_recvs = 0;
    char *at = m->stage;
    MoeRequest *r;
    for (int i = lo; i < hi; i++) {
        const Hop *h = &m->hops[i];
        const Layer *l = &m->layers[h->layer];
        int slots = slots_of(m, h);
        for (int t = 0; t < l->n && leaves_here(m, h); t++)
            m->sends[n_sends++] =
                (MoeBlock){rank_of(m, l, h->to / slots), slot_data(m, h, &l->tensors[t], h->from), 1,
                           l->tensors[t].bytes, NULL};
        for (int t = 0; t < l->n && comes_here(m, h); t++, at += l->tensors[t - 1].bytes)
            m->recvs[n_recvs++] = (MoeBlock){rank_of(m, l, h->from / slots), at, 1,
                                             l->tensors[t].bytes, NULL};
    }
    MOE_TRY(moe_comm_start(m->c, m->sends, n_sends, m->recvs, n_recvs, "experts that move", &r));
    may_fail(m, MOE_PLACE_AT_STARTED);
    MOE_TRY(moe_comm_wait(m->c, r));
    may_fail(m, MOE_PLACE_AT_ARRIVED);
    return NULL;
}

/* A hash over the hashes of the expert's tensors. from NULL: where they are in their slots. */
static uint64_t hash_expert(const Move *m, const Hop *h, const char *from) {
    const Layer *l = &m->layers[h->layer];
    uint64_t both[2] = {(uint64_t)h->expert, 0};
    for (int t = 0; t < l->n; t++) {
        const Tensor *q = &l->tensors[t];
        both[1] = moe_hash_64(from ? from : slot_data(m, h, q, h->from), (size_t)q->bytes);
        both[0] = moe_hash_64(both, sizeof both);
        from = from ? from + q->bytes : NULL;
    }
    return both[0];
}

/* Senders' hashes to the receivers. */
static MoeStatus tell_hashes(Move *m, int lo, int hi) {
    size_t n_sends = 0, n_recvs = 0;
    const char *at = m->stage;
    for (int i = lo; i < hi; i++) {
        const Hop *h = &m->hops[i];
        const Layer *l = &m->layers[h->layer];
        int slots = slots_of(m, h);
        if (leaves_here(m, h)) {
            m->sent[i - lo] = hash_expert(m, h, NULL);
            m->sends[n_sends++] =
                (MoeBlock){rank_of(m, l, h->to / slots), &m->sent[i - lo], 1, sizeof *m->sent, NULL};
        }
        if (comes_here(m, h)) {
            m->came[i - lo] = hash_expert(m, h, at);
            at += l->slot_bytes;
            m->recvs[n_recvs++] = (MoeBlock){rank_of(m, l, h->from / slots), &m->told[i - lo], 1,
                                             sizeof *m->told, NULL};
        }
    }
    MOE_TRY(moe_comm_exchange(m->c, m->sends, n_sends, m->recvs, n_recvs, "hashes of experts that move"));
    may_fail(m, MOE_PLACE_AT_HASHED);
    return NULL;
}

/* What came is what was sent. */
static MoeStatus compare(Move *m, int lo, int hi) {
    for (int i = lo; i < hi; i++)
        if (comes_here(m, &m->hops[i]) && m->came[i - lo] != m->told[i - lo])
            return moe_error(MOE_E_IO,
                             "expert %d of layer %d arrived damaged on its way from rank %d: XXH3 "
                             "%016llx, sent %016llx",
                             m->hops[i].expert, m->plan->moe_layers[m->hops[i].layer],
                             rank_of(m, &m->layers[m->hops[i].layer],
                                     m->hops[i].from / slots_of(m, &m->hops[i])),
                             (unsigned long long)m->came[i - lo],
                             (unsigned long long)m->told[i - lo]);
    may_fail(m, MOE_PLACE_AT_CONFIRMED);
    MoeStatus st = m->fault;
    m->fault = NULL;
    return st;
}

/* Points behind the agreement only kill: no rank may fail there alone. */
static void passed(const Move *m, MoePlacePoint point) {
    moe_status_free(moe_place_point(m->c->rank, point, NULL, 0));
}

/* What came into its slots; slots that were left and not taken: zero. */
static void copy_in(Move *m, int lo, int hi) {
    const char *at = m->stage;
    passed(m, MOE_PLACE_AT_AGREED);
    for (int i = lo; i < hi; i++) {
        const Hop *h = &m->hops[i];
        const Layer *l = &m->layers[h->layer];
        for (int t = 0; t < l->n && comes_here(m, h); t++) {
            const Tensor *q = &l->tensors[t];
            memcpy(slot_data(m, h, q, h->to), at, (size_t)q->bytes);
            at += q->bytes;
        }
        if (i == lo)
            passed(m, MOE_PLACE_AT_COPYING);
    }
    passed(m, MOE_PLACE_AT_COPIED);
    for (int i = lo; i < hi; i++) {
        const Hop *h = &m->hops[i];
        const Layer *l = &m->layers[h->layer];
        for (int t = 0; t < l->n && h->frees && leaves_here(m, h); t++)
            memset(slot_data(m, h, &l->tensors[t], h->from), 0, (size_t)l->tensors[t].bytes);
    }
    passed(m, MOE_PLACE_AT_ZEROED);
}

/* Layer k's map once some of its experts have moved: of the copies that are to be those that there is room for. */
static MoeStatus set_map(Move *m, size_t k, const int32_t *primary, const MoePlaceMap *to) {
    size_t n = (size_t)to->ranks * (size_t)to->slots;
    int32_t *copies = malloc((n + 1) * sizeof *copies);
    bool *held = calloc((size_t)to->ranks * (size_t)to->experts + 1, sizeof *held);
    MoeStatus st = copies && held ? NULL : moe_error(MOE_E_NOMEM, "no memory for a map of %d experts", to->experts);
    for (size_t g = 0; g < n && !st; g++)
        copies[g] = -1;
    for (int e = 0; e < to->experts && !st; e++) {
        copies[primary[e]] = e;
        held[primary[e] / to->slots * to->experts + e] = true;
    }
    for (size_t g = 0; g < n && !st; g++) {
        int e = to->expert[g], r = (int)g / to->slots;
        if (copies[g] >= 0 || e < 0 || to->primary[e] == (int)g || held[r * to->experts + e])
            continue;
        copies[g] = e;
        held[r * to->experts + e] = true;
    }
    if (!st)
        st = moe_exec_set_map(m->x, k, copies, primary);
    free(copies);
    free(held);
    return st;
}

/* The maps of the layers of a batch. */
static MoeStatus set_maps(Move *m, int lo, int hi, const MoePlaceMap *to) {
    int32_t *primary = malloc(((size_t)m->plan->experts + 1) * sizeof *primary);
    if (!primary)
        return moe_error(MOE_E_NOMEM, "no memory for a map of %d experts", m->plan->experts);
    MoeStatus st = NULL;
    for (int i = lo; i < hi && !st;) {
        int k = m->hops[i].layer;
        memcpy(primary, moe_exec_place(m->x, (size_t)k),
               (size_t)m->plan->experts * sizeof *primary);
        for (; i < hi && m->hops[i].layer == k; i++)
            primary[m->hops[i].expert] = m->hops[i].to;
        st = set_map(m, (size_t)k, primary, &to[k]);
    }
    free(primary);
    passed(m, MOE_PLACE_AT_MAPPED);
    return st;
}

static void end_batch(Move *m) {
    moe_status_free(m->fault);
    m->fault = NULL;
    moe_free_big(m->stage, (size_t)m->stage_bytes);
    free(m->sends);
    free(m->recvs);
    free(m->sent);
    free(m->came);
    free(m->told);
    m->stage = NULL;
    m->sends = m->recvs = NULL;
    m->sent = m->came = m->told = NULL;
}

/* All ranks have the same of it, and nothing has changed. */
static MoeStatus agree(Move *m, MoeStatus mine, MoePlaceMoved *out) {
    MoeStatus st = moe_comm_agree(m->c, mine, "moving experts");
    out->given_up = st && moe_status_code(st) != MOE_E_PEER;
    return st;
}

static MoeStatus batch(Move *m, int lo, int hi, const MoePlaceMap *to, MoePlaceMoved *out) {
    MOE_TRY(agree(m, prepare(m, lo, hi), out));
    MOE_TRY(transfer(m, lo, hi));
    MOE_TRY(tell_hashes(m, lo, hi));
    MOE_TRY(agree(m, compare(m, lo, hi), out));
    copy_in(m, lo, hi);
    return set_maps(m, lo, hi, to);
}

/* ---- batches ---- */

/* The end of the batch that begins at lo: whole chains and cycles, as many as let no rank take in more than `limit`. in [EP ranks],
 * scratch: what comes to each of the division that takes in the most. */
static int batch_end(const Move *m, int lo, int64_t limit, int64_t *in) {
    int hi = lo, n_in = 0;
    memset(in, 0, (size_t)m->c->size * (MOE_MAX_RANGES + 1) * sizeof *in);
    while (hi < m->n_hops) {
        int next = hi;
        int64_t most = 0;
        for (; next == hi || (next < m->n_hops && !m->starts[next]); next++) {
            const Hop *h = &m->hops[next];
            const Layer *l = &m->layers[h->layer];
            int d = moe_mesh_of_layer(&m->plan->mesh, m->plan->moe_layers[h->layer]);
            in[d * m->c->size + h->to / slots_of(m, h)] += l->slot_bytes;
            n_in = d + 1 > n_in ? d + 1 : n_in;
        }
        for (int d = 0; d < n_in; d++) { /* a rank has a place in each division: at most the sum of their busiest */
            int64_t busiest = 0;
            for (int r = 0; r < m->c->size; r++)
                busiest = in[d * m->c->size + r] > busiest ? in[d * m->c->size + r] : busiest;
            most += busiest;
        }
        if (most > limit && hi > lo)
            break;
        hi = next;
    }
    return hi;
}

static void count(const Move *m, int lo, int hi, MoePlaceMoved *out) {
    for (int i = lo; i < hi; i++) {
        const Hop *h = &m->hops[i];
        const Layer *l = &m->layers[h->layer];
        int slots = slots_of(m, h);
        out->experts += h->from / slots != h->to / slots;
        out->bytes += h->from / slots != h->to / slots ? l->slot_bytes * (m->c->size / l->mesh.ep) : 0;
    }
    out->staging_bytes = m->stage_bytes > out->staging_bytes ? m->stage_bytes : out->staging_bytes;
    out->batches++;
}

static MoeStatus move_all(Move *m, const MoePlaceMap *to, int64_t limit, MoePlaceMoved *out) {
    int64_t *in = calloc((size_t)m->c->size * (MOE_MAX_RANGES + 1), sizeof *in);
    MoeStatus st = in ? NULL : moe_error(MOE_E_NOMEM, "no memory for a number of each rank");
    st = agree(m, st, out);
    for (int lo = 0, hi; lo < m->n_hops && !st; lo = hi) {
        hi = batch_end(m, lo, limit, in);
        st = batch(m, lo, hi, to, out);
        if (!st)
            count(m, lo, hi, out);
        end_batch(m);
    }
    free(in);
    for (size_t k = 0; k < m->plan->n_moe_layers && !st; k++) /* copies come and go without a move */
        st = moe_exec_set_map(m->x, k, to[k].expert, to[k].primary);
    return st;
}

static MoeStatus start(Move *m, const MoePlaceMap *to) {
    for (size_t k = 0; k < m->plan->n_moe_layers; k++)
        MOE_TRY(moe_exec_check_map(m->x, k, to[k].expert, to[k].primary));
    MOE_TRY(list_tensors(m));
    return list_hops(m, to);
}

MoeStatus moe_place_move(const MoePlan *plan, MoeExec *x, const MoePlaceMap *to,
                         int64_t staging_bytes, MoePlaceMoved *out) {
    Move m = {.plan = plan, .x = x, .c = moe_exec_comm(x)};
    *out = (MoePlaceMoved){0};
    MoeStatus st = agree(&m, start(&m, to), out);
    if (!st)
        st = move_all(&m, to, staging_bytes, out);
    for (size_t k = 0; m.layers && k < plan->n_moe_layers; k++)
        free(m.layers[k].tensors);
    free(m.layers);
    free(m.hops);
    free(m.starts);
    return st;
}
