/* What each exchange of a plan pulls: tables of MoeRtPeerOp (base/cuda_abi.h), made once, with the addresses of all members' values. See
 * cuda/peer.h. The arithmetic is that of exec_comm_blocks.c, exec_comm_sum.c and exec_comm_copies.c, seen from who receives. */
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/split.h"
#include "runtime/cuda/peer.h"
#include "runtime/plan_read.h"

_Static_assert(MOE_RT_PEER_FOLD_BYTES == 8 + 12 * MOE_COPY_ROOTS * MOE_RT_PEERS, "PeerFold");

/* ---- whether it can be ---- */

static bool overlap(const MoePlanValue *a, const MoePlanValue *b) {
    if (a->kind != b->kind || a->kind == MOE_VALUE_INPUT)
        return false;
    if (a->kind == MOE_VALUE_BUFFER)
        return a->buffer == b->buffer;
    return a->offset < b->offset + b->bytes && b->offset < a->offset + a->bytes;
}

static bool in_place(const MoePlanComm *o) {
    return o->op == MOE_PLAN_COPY_EXPERTS || o->op == MOE_PLAN_FOLD_COPIES;
}

/* Peers read operands while results are written. */
static bool results_apart(const MoePlanProgram *p, const MoePlanStep *s) {
    for (size_t a = 0; a < s->n_comm; a++)
        for (size_t b = 0; b < s->n_comm; b++)
            for (int k = 0; k < s->comm[b].n_in; k++)
                if (!in_place(&s->comm[a]) &&
                    overlap(&p->values[s->comm[a].out], &p->values[s->comm[b].in[k]]))
                    return false;
    return true;
}

const char *moe_peer_refuses(const MoeExec *x) {
    if (x->plan->ranks > MOE_RT_PEERS)
        return "there are more than 32 ranks";
    for (size_t g = 0; g < x->plan->n_programs; g++)
        for (size_t i = 0; i < x->plan->programs[g].n_steps; i++)
            if (!results_apart(&x->plan->programs[g], &x->plan->programs[g].steps[i]))
                return "an exchange's result lies in its operand";
    return NULL;
}

/* ---- making ops ---- */

/* A program's table while it is made. */
typedef struct {
    MoeDeviceCuda *d;
    MoeExec *x;
    const MoePeerHub *hub;
    size_t program;
    MoeRtPeerOp *ops;
    size_t n, cap;
    int64_t work; /* bytes of the largest fold */
    bool failed;
} Table;

static MoeRtPeerOp *add(Table *t, MoeRtPeerKind kind, MoePeerOps *to, int64_t bytes) {
    static MoeRtPeerOp nowhere;
    if (t->n == t->cap) {
        size_t cap = t->cap ? 2 * t->cap : 32;
        MoeRtPeerOp *more = realloc(t->ops, cap * sizeof *more);
        if (!more) {
            t->failed = true;
            return &nowhere;
        }
        t->ops = more;
        t->cap = cap;
    }
    MOE_ASSERT(!to->n || to->first + to->n == t->n, "ops of one exchange apart");
    if (!to->n)
        to->first = t->n;
    to->n++;
    to->bytes += bytes;
    t->ops[t->n] = (MoeRtPeerOp){.kind = (int32_t)kind, .word = 16};
    return &t->ops[t->n++];
}

static MoeCuPtr address(const Table *t, int rank, int value) {
    const MoePeerRank *r = &t->hub->ranks[rank];
    return moe_cuda_address(r->device, r->x->programs[t->program].values[value]);
}

static MoeCuPtr own(const Table *t, int value) {
    return address(t, t->x->rank, value);
}

/* The members, with the addresses of one of their values. */
static void members(const Table *t, MoeRtPeerOp *r, const MoePlanComm *o, int value) {
    const MoeExecGroup *all = &t->x->between->groups[o->group];
    r->n = all->n;
    r->self = all->self;
    r->t[3] = moe_peer_word(t->hub, t->x->rank, MOE_PEER_MICRO);
    for (int i = 0; i < all->n; i++) {
        r->from[i] = address(t, all->ranks[i], value);
        r->at[i] = all->ranks[i] / t->x->plan->mesh.tp; /* its data rank */
    }
}

/* The largest word that divides all of these or'ed together. */
static int32_t word_of(uint64_t all) {
    int32_t w = 16;
    while (w > 1 && all % (uint64_t)w)
        w /= 2;
    return w;
}

static void rows(const Table *t, MoeRtPeerOp *r, int64_t row_bytes) {
    r->a[0] = row_bytes;
    r->a[1] = t->x->plan->virtual_shards;
    r->a[2] = moe_mesh_data_ranks(&t->x->plan->mesh);
    r->word = word_of((uint64_t)row_bytes);
}

static void gather_word(MoeRtPeerOp *r) {
    uint64_t all = r->to;
    for (int i = 0; i < r->n; i++)
        if (r->count[i])
            all |= r->from[i] | (uint64_t)r->at[i] | (uint64_t)r->count[i];
    r->word = word_of(r->a[0] > 1 ? all | (uint64_t)r->a[1] | (uint64_t)r->a[2] : all);
}

static void all_gather(Table *t, const MoePlanComm *o, MoePeerExchange *e) {
    int64_t size = (int64_t)moe_plan_dtype_bytes(o->dtype);
    MoeRtPeerOp *r = add(t, MOE_PEER_GATHER, &e->pull, size * o->outer * o->elements);
    members(t, r, o, o->in[0]);
    r->to = own(t, o->out);
    r->a[0] = o->outer;
    r->a[1] = size * moe_slice(o->elements, o->unit, r->n, r->self).cap;
    r->a[2] = size * o->elements;
    for (int i = 0; i < r->n; i++) {
        MoeSlice s = moe_slice(o->elements, o->unit, r->n, i);
        r->at[i] = size * s.first;
        r->count[i] = size * s.count;
    }
    gather_word(r);
}

static void all_gather_rows(Table *t, const MoePlanComm *o, MoePeerExchange *e) {
    bool live = o->n_in == 2;
    int64_t bytes = t->x->plan->programs[t->program].values[o->out].bytes;
    MoeRtPeerOp *r = add(t, live ? MOE_PEER_ROWS : MOE_PEER_GATHER, &e->pull, bytes);
    members(t, r, o, o->in[0]);
    r->to = own(t, o->out);
    if (live) {
        rows(t, r, o->row_bytes);
        r->t[0] = own(t, o->in[1]);
        return;
    }
    r->a[0] = 1;
    for (int i = 0; i < r->n; i++) {
        r->at[i] = i * o->rows * o->row_bytes;
        r->count[i] = o->rows * o->row_bytes;
    }
    gather_word(r);
}

/* About what arrives of an elastic value. */
static int64_t expected(const Table *t, int value) {
    const MoePlanValue *v = &t->x->plan->programs[t->program].values[value];
    return v->elastic ? v->expect : v->bytes;
}

static void a2a_dispatch(Table *t, const MoePlanComm *o, MoePeerExchange *e) {
    const MoeExecGroup *all = &t->x->between->groups[o->group];
    MoeRtPeerOp *r = add(t, MOE_PEER_DISPATCH, &e->pull, expected(t, o->out));
    members(t, r, o, o->in[0]);
    rows(t, r, o->row_bytes);
    r->to = own(t, o->out);
    r->t[0] = own(t, o->in[3]);
    r->a[3] = o->chunks;
    r->a[4] = o->lo;
    r->a[5] = o->hi;
    for (int i = 0; i < r->n; i++) {
        r->table[i] = address(t, all->ranks[i], o->in[1]);
        r->index[i] = address(t, all->ranks[i], o->in[2]);
    }
}

static void a2a_combine(Table *t, const MoePlanComm *o, MoePeerExchange *e) {
    const MoeExecGroup *all = &t->x->between->groups[o->group];
    MoeRtPeerOp *r = add(t, MOE_PEER_COMBINE, &e->pull, expected(t, o->out));
    members(t, r, o, o->in[0]);
    rows(t, r, o->row_bytes);
    r->to = own(t, o->out);
    r->t[0] = own(t, o->in[o->n_in - 1]);
    r->t[1] = o->n_in == 4 ? own(t, o->in[2]) : 0;
    r->a[3] = o->slots;
    r->a[4] = o->lo;
    r->a[5] = o->hi;
    r->a[6] = o->experts;
    r->a[7] = t->x->rank / t->x->plan->mesh.tp;
    for (int i = 0; i < r->n; i++)
        r->table[i] = address(t, all->ranks[i], o->in[1]);
}

/* ---- sums ---- */

static const MoeExecSum *find_sum(const MoeExec *x, const MoePlanComm *o) {
    MoeMeshGroup scatter = o->op == MOE_PLAN_REDUCE_SCATTER ? o->scatter : MOE_N_GROUPS;
    for (size_t i = 0; i < x->between->n_sums; i++)
        if (x->between->sums[i].group == o->group && x->between->sums[i].scatter == scatter)
            return &x->between->sums[i];
    MOE_ASSERT(0, "a sum over group %d that nobody prepared", (int)o->group);
    return NULL;
}

/* Of each row what a member owns, and of that what it adds up. */
static MoeSlice slice_of(const MoeExecSum *s, const MoePlanComm *o, int member) {
    return moe_slice(o->elements, o->unit, s->slices, s->slice[member]);
}

static MoeSlice share_of(const MoeExecSum *s, const MoePlanComm *o, int member, bool twice) {
    MoeSlice all = slice_of(s, o, member), part;
    if (!twice)
        return all;
    part = moe_slice(all.count, MOE_SUM_PART, s->copies, s->copy[member]);
    part.first += all.first;
    return part;
}

/* Parts that other owners of the slice have added up. */
static void rejoin(Table *t, const MoePlanComm *o, const MoeExecSum *s, MoePeerExchange *e) {
    const MoeExecGroup *all = &t->x->between->groups[o->group];
    MoeSlice slice = slice_of(s, o, all->self);
    MoeRtPeerOp *r = add(t, MOE_PEER_GATHER, &e->rejoin, 4 * o->outer * slice.count);
    members(t, r, o, o->out);
    r->to = own(t, o->out);
    r->a[0] = o->outer;
    r->a[1] = r->a[2] = 4 * slice.cap;
    for (int i = 0; i < r->n; i++) {
        MoeSlice theirs = share_of(s, o, i, true);
        bool mine = i != all->self && s->slice[i] == s->slice[all->self];
        r->at[i] = mine ? 4 * (theirs.first - slice.first) : 0;
        r->from[i] += (MoeCuPtr)r->at[i];
        r->count[i] = mine ? 4 * theirs.count : 0;
    }
    gather_word(r);
}

static void sum(Table *t, const MoePlanComm *o, MoePeerExchange *e) {
    const MoeExecSum *s = find_sum(t->x, o);
    bool integers = o->dtype == MOE_PLAN_I32,
         twice =
             moe_sum_shares(s->slices * s->copies, s->slices, o->elements, o->unit, o->outer).twice;
    int self = t->x->between->groups[o->group].self;
    MoeSlice slice = slice_of(s, o, self), mine = share_of(s, o, self, twice);
    MoeRtPeerOp *r = add(t, integers ? MOE_PEER_SUM_I32 : MOE_PEER_SUM, &e->pull,
                         4 * o->outer * mine.count * (s->slices * s->copies));
    members(t, r, o, o->in[0]);
    r->to = own(t, o->out);
    r->a[0] = o->outer;
    r->a[1] = o->elements;
    r->a[2] = slice.cap;
    r->a[3] = mine.first;
    r->a[4] = mine.count;
    r->a[5] = mine.first - slice.first;
    r->a[6] = slice.count;
    uint64_t all = r->to;
    for (int i = 0; i < r->n; i++)
        all |= r->from[i];
    all |= 4 * (uint64_t)(mine.first | mine.count | r->a[5] |
                          (o->outer > 1 ? o->elements | slice.cap : 0));
    r->word = word_of(all) == 16 ? 16 : 4;
}

/* ---- copies of experts ---- */

static void copy_experts(Table *t, const MoePlanComm *o, MoePeerExchange *e) {
    MoeRtPeerOp *r = add(t, MOE_PEER_EXPERTS, &e->pull, o->slots * o->row_bytes);
    members(t, r, o, o->in[0]);
    rows(t, r, o->row_bytes);
    r->to = own(t, o->in[0]);
    r->a[3] = o->slots;
    r->t[0] = own(t, o->in[1]);
    r->t[1] = own(t, o->in[2]);
}

static void fold_op(const Table *t, const MoePlanComm *o, MoeRtPeerOp *r) {
    members(t, r, o, o->in[0]);
    rows(t, r, o->row_bytes);
    r->to = own(t, o->in[0]);
    r->a[3] = o->slots;
    r->a[6] = o->leaf;
    r->t[0] = own(t, o->in[6]);
    r->t[1] = own(t, o->in[5]);
}

static void fold_copies(Table *t, const MoePlanComm *o, MoePeerExchange *e) {
    const MoeExecGroup *all = &t->x->between->groups[o->group];
    MoeRtPeerOp *r = add(t, MOE_PEER_FOLD_PLAN, &e->fold, o->slots * o->row_bytes);
    int64_t work = o->slots * (MOE_RT_PEER_FOLD_BYTES + 4 * (t->x->plan->virtual_shards + 1));
    fold_op(t, o, r);
    r->t[2] = own(t, o->in[3]);
    r->t[3] = own(t, o->in[4]);
    for (int i = 0; i < r->n; i++) {
        r->index[i] = address(t, all->ranks[i], o->in[1]);
        r->table[i] = address(t, all->ranks[i], o->in[2]);
    }
    t->work = work > t->work ? work : t->work;
}

/* ---- tables ---- */

/* Ops of one part of an exchange lie together, so each part is a walk over all. */
typedef enum { PULL, FOLD, REJOIN, CLEAR } Part;

static void part_of_op(Table *t, const MoePlanComm *o, Part part, MoePeerExchange *e) {
    bool is_sum = moe_exec_is_sum(o), is_fold = o->op == MOE_PLAN_FOLD_COPIES;
    if (part == FOLD && is_fold)
        fold_copies(t, o, e);
    if (part == REJOIN && is_sum && moe_exec_sum_twice(t->x, o))
        rejoin(t, o, find_sum(t->x, o), e);
    if (part == CLEAR && is_fold)
        fold_op(t, o, add(t, MOE_PEER_CLEAR, &e->clear, o->slots * o->row_bytes));
    if (part != PULL)
        return;
    switch (o->op) {
    case MOE_PLAN_ALL_GATHER:
        all_gather(t, o, e);
        return;
    case MOE_PLAN_ALL_GATHER_ROWS:
        all_gather_rows(t, o, e);
        return;
    case MOE_PLAN_REDUCE_SCATTER:
    case MOE_PLAN_ALL_REDUCE:
        sum(t, o, e);
        return;
    case MOE_PLAN_A2A_DISPATCH:
        a2a_dispatch(t, o, e);
        return;
    case MOE_PLAN_A2A_COMBINE:
        a2a_combine(t, o, e);
        return;
    case MOE_PLAN_COPY_EXPERTS:
        copy_experts(t, o, e);
        return;
    case MOE_PLAN_FOLD_COPIES:
    case MOE_N_PLAN_COMM_OPS:
        return;
    }
}

static bool same_ranks(const MoeExecGroup *a, const MoeExecGroup *b) {
    return a->n == b->n && !memcmp(a->ranks, b->ranks, sizeof *a->ranks * (size_t)a->n);
}

/* With whom: the group, or all ranks where ops have several, so that all who meet agree on whether it takes place. */
static MoeStatus list_peers(const MoeExec *x, const MoePlanStep *s, MoePeerExchange *e) {
    const MoeExecGroup *all = &x->between->groups[s->comm[0].group];
    bool one = true;
    for (size_t c = 1; c < s->n_comm; c++)
        one = one && same_ranks(all, &x->between->groups[s->comm[c].group]);
    e->peers = calloc((size_t)x->plan->ranks, sizeof *e->peers);
    if (!e->peers)
        return moe_error(MOE_E_NOMEM, "no memory for the tables of exchanges between ranks");
    for (int i = 0; i < (one ? all->n : x->plan->ranks); i++)
        if ((one ? all->ranks[i] : i) != x->rank)
            e->peers[e->n_peers++] = one ? all->ranks[i] : i;
    return NULL;
}

static MoeStatus send(MoeDeviceCuda *d, const void *from, size_t bytes, MoeCuPtr *out) {
    MOE_TRY(moe_cuda_table(d, (int64_t)bytes, "the tables of exchanges between ranks", out));
    return moe_cuda_check(d, d->cu->copy_in(*out, from, bytes, d->stream),
                          "copying the tables of exchanges between ranks");
}

static MoeStatus list_flags(Table *t, MoePeerExchange *e) {
    uint64_t list[MOE_RT_PEERS];
    int n = 0;
    MOE_ASSERT(e->n_peers < MOE_RT_PEERS, "%d peers", e->n_peers);
    for (int k = 0; k < e->n_peers; k++)
        list[n++] = moe_peer_word(t->hub, e->peers[k], MOE_PEER_STOPPED);
    list[n++] = moe_peer_word(t->hub, t->x->rank, MOE_PEER_STOPPED);
    return send(t->d, list, sizeof *list * (size_t)n, &e->flags);
}

static MoeStatus make_exchange(Table *t, const MoePlanStep *s, MoePeerExchange *e) {
    MOE_TRY(list_peers(t->x, s, e));
    for (int part = PULL; part <= CLEAR; part++)
        for (size_t c = 0; c < s->n_comm; c++)
            part_of_op(t, &s->comm[c], (Part)part, e);
    e->guarded = t->x->programs[t->program].n_elastic || s->phase == MOE_PHASE_UPD;
    MOE_TRY(list_flags(t, e));
    return moe_cuda_check(t->d, t->d->cu->event_create(&e->over, MOE_CU_EVENT_DISABLE_TIMING),
                          "cuEventCreate");
}

static MoeStatus make_program(Table *t, MoePeerProgram *out) {
    const MoePlanProgram *p = &t->x->plan->programs[t->program];
    out->exchanges = calloc(p->n_steps + 1, sizeof *out->exchanges);
    if (!out->exchanges)
        return moe_error(MOE_E_NOMEM, "no memory for the tables of exchanges between ranks");
    for (size_t i = 0; i < p->n_steps; i++)
        if (p->steps[i].n_comm)
            MOE_TRY(make_exchange(t, &p->steps[i], &out->exchanges[i]));
    if (t->failed)
        return moe_error(MOE_E_NOMEM, "no memory for the tables of exchanges between ranks");
    if (t->work)
        MOE_TRY(moe_cuda_table(t->d, t->work, "gradients of experts' copies", &out->work));
    out->work_bytes = t->work;
    for (size_t k = 0; k < t->n; k++)
        t->ops[k].work = out->work;
    return t->n ? send(t->d, t->ops, t->n * sizeof *t->ops, &out->ops) : NULL;
}

MoeStatus moe_peer_tables(MoeDeviceCuda *d, MoeExec *x, struct MoeCudaPeers *p) {
    int word = MOE_PEER_WORDS + MOE_PEER_SAYINGS * x->plan->ranks;
    MoeStatus st = NULL;
    p->programs = calloc(x->plan->n_programs + 1, sizeof *p->programs);
    if (!p->programs)
        return moe_error(MOE_E_NOMEM, "no memory for the tables of exchanges between ranks");
    for (size_t g = 0; g < x->plan->n_programs && !st; g++) {
        Table t = {.d = d, .x = x, .hub = p->hub, .program = g};
        p->programs[g].skipped = moe_peer_word(p->hub, x->rank, word);
        word += (int)x->plan->programs[g].n_steps;
        st = make_program(&t, &p->programs[g]);
        if (!st)
            st = moe_cuda_wait(d); /* the tables have gone */
        free(t.ops);
    }
    return st;
}

int64_t moe_cuda_peers_bytes(const MoeDeviceCuda *d) {
    int64_t n = 0;
    for (size_t g = 0; d->peers && d->peers->programs && g < d->plan->n_programs; g++)
        n += d->peers->programs[g].work_bytes;
    return n;
}

void moe_peer_free_tables(MoeDeviceCuda *d, struct MoeCudaPeers *p) {
    for (size_t g = 0; p->programs && g < d->plan->n_programs; g++) {
        MoePeerProgram *q = &p->programs[g];
        for (size_t i = 0; q->exchanges && i < d->plan->programs[g].n_steps; i++) {
            free(q->exchanges[i].peers);
            if (q->exchanges[i].over)
                (void)d->cu->event_destroy(q->exchanges[i].over);
            if (q->exchanges[i].flags && !d->keep_memory)
                (void)d->cu->mem_free(q->exchanges[i].flags);
        }
        free(q->exchanges);
        if (q->ops && !d->keep_memory)
            (void)d->cu->mem_free(q->ops);
        if (q->work && !d->keep_memory)
            (void)d->cu->mem_free(q->work);
    }
    free(p->programs);
}
