/* See place_move.h. Between two points where the ranks meet no rank leaves the way of the others: a failure of one is agreed on at
 * the next such point. */
#include "runtime/place_move.h"

#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "base/mem.h"
#include "runtime/place_fault.h"
#include "runtime/place_hops.h"

typedef struct {
    const MoePlan *plan;
    MoeExec *x;
    MoeComm *c;
    MoePlaceHops h;
    /* Of a batch: */
    char *stage;
    int64_t stage_bytes;
    MoeBlock *sends, *recvs;
    uint64_t *sent, *came,
        *told;       /* [hops of the batch]: hashes of what this rank sent, got, should have got */
    MoeStatus fault; /* that a test asked for */
} Move;

/* ---- one batch: hops [lo, hi) ---- */

static int rank_of(const Move *m, const MoePlaceLayer *l, int ep) {
    MoeCoords c = moe_mesh_coords(&l->mesh, m->c->rank);
    return ((c.dp * l->mesh.shard + c.shard) * l->mesh.ep + ep) * l->mesh.tp + c.tp;
}

static int slots_of(const Move *m, const MoePlaceHop *h) {
    return m->h.layers[h->layer].slots;
}

static bool leaves_here(const Move *m, const MoePlaceHop *h) {
    return h->from / slots_of(m, h) == m->h.layers[h->layer].ep;
}

static bool comes_here(const Move *m, const MoePlaceHop *h) {
    return h->to / slots_of(m, h) == m->h.layers[h->layer].ep;
}

static char *slot_data(const Move *m, const MoePlaceHop *h, const MoePlaceTensor *t, int slot) {
    return t->base + t->bytes * (slot % slots_of(m, h));
}

/* Memory for what comes, and lists for it all. */
static MoeStatus prepare(Move *m, int lo, int hi) {
    int64_t bytes = 0;
    size_t n = (size_t)(hi - lo), tensors = 0;
    for (int i = lo; i < hi; i++) {
        const MoePlaceHop *h = &m->h.hops[i];
        const MoePlaceLayer *l = &m->h.layers[h->layer];
        tensors += (size_t)l->n;
        bytes += comes_here(m, h) ? l->slot_bytes : 0;
        for (int t = 0; t < l->n && leaves_here(m, h); t++)
            MOE_TRY(moe_exec_fetch(m->x, slot_data(m, h, &l->tensors[t], h->from),
                                   l->tensors[t].bytes));
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
        const MoePlaceHop *h = &m->h.hops[i];
        const MoePlaceLayer *l = &m->h.layers[h->layer];
        int slots = slots_of(m, h);
        for (int t = 0; t < l->n && leaves_here(m, h); t++)
            m->sends[n_sends++] =
                (MoeBlock){rank_of(m, l, h->to / slots), slot_data(m, h, &l->tensors[t], h->from),
                           1, l->tensors[t].bytes, NULL};
        for (int t = 0; t < l->n && comes_here(m, h); t++, at += l->tensors[t - 1].bytes)
            m->recvs[n_recvs++] =
                (MoeBlock){rank_of(m, l, h->from / slots), at, 1, l->tensors[t].bytes, NULL};
    }
    MOE_TRY(moe_comm_start(m->c, m->sends, n_sends, m->recvs, n_recvs, "experts that move", &r));
    may_fail(m, MOE_PLACE_AT_STARTED);
    MOE_TRY(moe_comm_wait(m->c, r));
    may_fail(m, MOE_PLACE_AT_ARRIVED);
    return NULL;
}

/* A hash over the hashes of the expert's tensors. from NULL: where they are in their slots. */
static uint64_t hash_expert(const Move *m, const MoePlaceHop *h, const char *from) {
    const MoePlaceLayer *l = &m->h.layers[h->layer];
    uint64_t both[2] = {(uint64_t)h->expert, 0};
    for (int t = 0; t < l->n; t++) {
        const MoePlaceTensor *q = &l->tensors[t];
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
        const MoePlaceHop *h = &m->h.hops[i];
        const MoePlaceLayer *l = &m->h.layers[h->layer];
        int slots = slots_of(m, h);
        if (leaves_here(m, h)) {
            m->sent[i - lo] = hash_expert(m, h, NULL);
            m->sends[n_sends++] = (MoeBlock){rank_of(m, l, h->to / slots), &m->sent[i - lo], 1,
                                             sizeof *m->sent, NULL};
        }
        if (comes_here(m, h)) {
            m->came[i - lo] = hash_expert(m, h, at);
            at += l->slot_bytes;
            m->recvs[n_recvs++] = (MoeBlock){rank_of(m, l, h->from / slots), &m->told[i - lo], 1,
                                             sizeof *m->told, NULL};
        }
    }
    MOE_TRY(moe_comm_exchange(m->c, m->sends, n_sends, m->recvs, n_recvs,
                              "hashes of experts that move"));
    may_fail(m, MOE_PLACE_AT_HASHED);
    return NULL;
}

/* What came is what was sent. */
static MoeStatus compare(Move *m, int lo, int hi) {
    for (int i = lo; i < hi; i++)
        if (comes_here(m, &m->h.hops[i]) && m->came[i - lo] != m->told[i - lo])
            return moe_error(MOE_E_IO,
                             "expert %d of layer %d arrived damaged on its way from rank %d: XXH3 "
                             "%016llx, sent %016llx",
                             m->h.hops[i].expert, m->plan->moe_layers[m->h.hops[i].layer],
                             rank_of(m, &m->h.layers[m->h.hops[i].layer],
                                     m->h.hops[i].from / slots_of(m, &m->h.hops[i])),
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
static MoeStatus copy_in(Move *m, int lo, int hi) {
    const char *at = m->stage;
    passed(m, MOE_PLACE_AT_AGREED);
    for (int i = lo; i < hi; i++) {
        const MoePlaceHop *h = &m->h.hops[i];
        const MoePlaceLayer *l = &m->h.layers[h->layer];
        for (int t = 0; t < l->n && comes_here(m, h); t++) {
            const MoePlaceTensor *q = &l->tensors[t];
            memcpy(slot_data(m, h, q, h->to), at, (size_t)q->bytes);
            MOE_TRY(moe_exec_send(m->x, slot_data(m, h, q, h->to), q->bytes));
            at += q->bytes;
        }
        if (i == lo)
            passed(m, MOE_PLACE_AT_COPYING);
    }
    passed(m, MOE_PLACE_AT_COPIED);
    for (int i = lo; i < hi; i++) {
        const MoePlaceHop *h = &m->h.hops[i];
        const MoePlaceLayer *l = &m->h.layers[h->layer];
        for (int t = 0; t < l->n && h->frees && leaves_here(m, h); t++)
            MOE_TRY(
                moe_exec_zero(m->x, slot_data(m, h, &l->tensors[t], h->from), l->tensors[t].bytes));
    }
    passed(m, MOE_PLACE_AT_ZEROED);
    return NULL;
}

/* Layer k's map once some of its experts have moved: of the copies that are to be those that there is room for. */
static MoeStatus set_map(Move *m, size_t k, const int32_t *primary, const MoePlaceMap *to) {
    size_t n = (size_t)to->ranks * (size_t)to->slots;
    int32_t *copies = malloc((n + 1) * sizeof *copies);
    bool *held = calloc((size_t)to->ranks * (size_t)to->experts + 1, sizeof *held);
    MoeStatus st = copies && held
                       ? NULL
                       : moe_error(MOE_E_NOMEM, "no memory for a map of %d experts", to->experts);
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
        int k = m->h.hops[i].layer;
        memcpy(primary, moe_exec_place(m->x, (size_t)k),
               (size_t)m->plan->experts * sizeof *primary);
        for (; i < hi && m->h.hops[i].layer == k; i++)
            primary[m->h.hops[i].expert] = m->h.hops[i].to;
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
    MOE_TRY(copy_in(m, lo, hi)); /* fails with its device alone, and then the run ends */
    return set_maps(m, lo, hi, to);
}

/* ---- batches ---- */

static void count(const Move *m, int lo, int hi, int64_t staged, MoePlaceMoved *out) {
    for (int i = lo; i < hi; i++) {
        const MoePlaceHop *h = &m->h.hops[i];
        const MoePlaceLayer *l = &m->h.layers[h->layer];
        int slots = slots_of(m, h);
        out->experts += h->from / slots != h->to / slots;
        out->bytes +=
            h->from / slots != h->to / slots ? l->slot_bytes * (m->c->size / l->mesh.ep) : 0;
    }
    out->staging_bytes = staged > out->staging_bytes ? staged : out->staging_bytes;
    out->batches++;
}

static MoeStatus move_all(Move *m, const MoePlaceMap *to, int64_t limit, MoePlaceMoved *out) {
    int64_t *in = calloc((size_t)m->c->size * (MOE_MAX_RANGES + 1), sizeof *in);
    MoeStatus st = in ? NULL : moe_error(MOE_E_NOMEM, "no memory for a number of each rank");
    st = agree(m, st, out);
    for (int lo = 0, hi; lo < m->h.n_hops && !st; lo = hi) {
        int64_t staged;
        hi = moe_place_batch(&m->h, m->c->size, lo, limit, in, &staged);
        st = batch(m, lo, hi, to, out);
        if (!st)
            count(m, lo, hi, staged, out);
        end_batch(m);
    }
    free(in);
    for (size_t k = 0; k < m->plan->n_moe_layers && !st;
         k++) /* copies come and go without a move */
        st = moe_exec_set_map(m->x, k, to[k].expert, to[k].primary);
    return st;
}

static MoeStatus start(Move *m, const MoePlaceMap *to) {
    for (size_t k = 0; k < m->plan->n_moe_layers; k++)
        MOE_TRY(moe_exec_check_map(m->x, k, to[k].expert, to[k].primary));
    return moe_place_hops(m->plan, m->x, to, &m->h);
}

MoeStatus moe_place_move(const MoePlan *plan, MoeExec *x, const MoePlaceMap *to,
                         int64_t staging_bytes, MoePlaceMoved *out) {
    Move m = {.plan = plan, .x = x, .c = moe_exec_comm(x)};
    *out = (MoePlaceMoved){0};
    MoeStatus st = agree(&m, start(&m, to), out);
    if (!st)
        st = move_all(&m, to, staging_bytes, out);
    moe_place_hops_free(&m.h);
    return st;
}
