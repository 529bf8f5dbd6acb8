/* Copies of experts between ranks (docs/PLACEMENT.md): their weights come from the primaries, the roots of their gradients go there. Every
 * rank of an EP group has the same maps and counts, so each knows what the others send. See exec_comm.h. */
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/split_rows.h"
#include "runtime/exec_comm.h"

#define FOLD_CHUNK 16384 /* elements of a task */
#define FOLD_BLOCK 256
#define FOLD_DEPTH                                                                                 \
    48 /* sums that wait for their right neighbour: levels of the trees over shards and leaves */

/* The op's tables as this rank sees them. */
typedef struct {
    const MoePlanComm *o;
    const MoeExecGroup *all;
    char *first, *rest; /* rest: NULL for weights */
    const int32_t *more, *counts, *runs, *copies, *place;
    int shards;
} Op;

static const int32_t *table(const MoeExecProgram *g, int value) {
    return (const int32_t *)(const void *)g->values[value];
}

static Op op_of(const MoeExec *x, const MoeExecProgram *g, const MoePlanComm *o) {
    Op p = {.o = o,
            .all = &x->between->groups[o->group],
            .first = g->values[o->in[0]],
            .shards = x->plan->virtual_shards};
    bool fold = o->op == MOE_PLAN_FOLD_COPIES;
    p.place = table(g, o->in[fold ? 6 : 1]);
    p.copies = table(g, o->in[fold ? 5 : 2]);
    if (!fold)
        return p;
    p.rest = g->values[o->in[1]];
    p.more = table(g, o->in[2]);
    p.counts = table(g, o->in[3]);
    p.runs = table(g, o->in[4]);
    return p;
}

static int64_t all_slots(const Op *p) {
    return p->o->slots * p->all->n;
}

static bool here(const Op *p, int64_t slot) {
    return slot / p->o->slots == p->all->self;
}

static int rank_of(const Op *p, int64_t slot) {
    return p->all->ranks[slot / p->o->slots];
}

/* The slot of the primary of what global slot g has; -1: g is empty. */
static int64_t primary(const Op *p, int64_t g) {
    return p->copies[g] < 0 ? -1 : p->place[p->copies[g]];
}

static MoeStatus check_map(const MoeExec *x, const Op *p) {
    for (int64_t g = 0; g < all_slots(p); g++) {
        int32_t e = p->copies[g];
        if (e == -1)
            continue;
        if (e < 0 || e >= p->o->experts || p->place[e] < 0 || p->place[e] >= all_slots(p) ||
            p->copies[p->place[e]] != e)
            return moe_error(MOE_E_INTERNAL,
                             "rank %d: slot %lld has expert %d, whose primary is in no slot that "
                             "has it",
                             x->rank, (long long)g, e);
    }
    return NULL;
}

/* ---- roots ---- */

/* How many roots slot g's run has. */
static int count_roots(const Op *p, int64_t g, MoeSplitRoot *roots) {
    if (p->copies[g] < 0)
        return 0;
    MoeSplitRun run = {p->runs[2 * g], p->runs[2 * g + 1]};
    int n = moe_split_roots(p->counts + (int64_t)p->copies[g] * p->shards, p->shards,
                            (int)p->o->leaf, run, roots, MOE_COPY_ROOTS);
    MOE_ASSERT(n <= MOE_COPY_ROOTS, "slot %lld: %d roots", (long long)g, n);
    return n;
}

/* Root i of this rank's slot s. */
static char *own_root(const Op *p, int64_t s, int i) {
    return i ? p->rest + (p->more[s] + i - 1) * p->o->row_bytes : p->first + s * p->o->row_bytes;
}

/* ---- blocks ---- */

static void push_weights(MoeExecComm *c, const Op *p) {
    for (int64_t g = 0; g < all_slots(p); g++) {
        int64_t from = primary(p, g), rb = p->o->row_bytes;
        if (from < 0 || from == g)
            continue;
        if (here(p, from))
            moe_block_push(c, &c->sends, rank_of(p, g), p->first + from % p->o->slots * rb, rb);
        if (here(p, g))
            moe_block_push(c, &c->recvs, rank_of(p, from), p->first + g % p->o->slots * rb, rb);
    }
}

static void push_roots(MoeExecComm *c, const Op *p, char *stage) {
    MoeSplitRoot roots[MOE_COPY_ROOTS];
    for (int64_t g = 0; g < all_slots(p); g++) {
        int64_t to = primary(p, g), rb = p->o->row_bytes;
        if (to < 0 || to == g || (!here(p, g) && !here(p, to)))
            continue;
        int n = count_roots(p, g, roots);
        for (int i = 0; i < n && here(p, g); i++)
            moe_block_push(c, &c->sends, rank_of(p, to), own_root(p, g % p->o->slots, i), rb);
        if (here(p, to)) {
            moe_block_push(c, &c->recvs, rank_of(p, g), stage, n * rb);
            stage += n * rb;
        }
    }
}

MoeStatus moe_exec_copies_blocks(MoeExec *x, const MoeExecProgram *g, const MoePlanComm *o,
                                 char *stage) {
    Op p = op_of(x, g, o);
    MOE_TRY(check_map(x, &p));
    if (o->op == MOE_PLAN_FOLD_COPIES)
        push_roots(x->between, &p, stage);
    else
        push_weights(x->between, &p);
    return NULL;
}

int64_t moe_exec_copies_stage(const MoeExec *x, const MoeExecProgram *g, const MoePlanComm *o) {
    Op p = op_of(x, g, o);
    MoeSplitRoot roots[MOE_COPY_ROOTS];
    int64_t n = 0;
    for (int64_t slot = 0; slot < all_slots(&p); slot++) {
        int64_t to = primary(&p, slot);
        if (to >= 0 && to != slot && here(&p, to))
            n += count_roots(&p, slot, roots);
    }
    return (n * o->row_bytes + 63) / 64 * 64;
}

/* ---- folding ---- */

/* One expert: its roots by row, and in what order they add up. */
typedef struct {
    const float **roots;
    uint8_t *program;
    int n_program;
    float *out; /* may be one of the roots */
    int64_t n;
} Fold;

static void add_blocks(const float *a, const float *b, float *out, int64_t n) {
    for (int64_t k = 0; k < n; k++)
        out[k] = a[k] + b[k];
}

static void fold_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const Fold *f = ctx;
    float sums[FOLD_DEPTH][FOLD_BLOCK];
    const float *stack[FOLD_DEPTH + 1];
    int64_t end = (task + 1) * FOLD_CHUNK < f->n ? (task + 1) * FOLD_CHUNK : f->n;
    for (int64_t i = task * FOLD_CHUNK; i < end; i += FOLD_BLOCK) {
        int64_t n = end - i < FOLD_BLOCK ? end - i : FOLD_BLOCK;
        int depth = 0, root = 0;
        for (int k = 0; k < f->n_program; k++) {
            if (f->program[k] == MOE_SPLIT_PUSH) {
                MOE_ASSERT(depth <= FOLD_DEPTH, "a gradient's tree of more than %d levels",
                           FOLD_DEPTH);
                stack[depth++] = f->roots[root++] + i;
                continue;
            }
            depth--;
            add_blocks(stack[depth - 1], stack[depth], sums[depth - 1], n);
            stack[depth - 1] = sums[depth - 1];
        }
        memcpy(f->out + i, stack[0], sizeof **sums * (size_t)n);
    }
}

/* Where the roots of each slot that came for a primary here lie in the staging memory: by global slot. */
static void find_arrived(const Op *p, const char *stage, const char **arrived) {
    MoeSplitRoot roots[MOE_COPY_ROOTS];
    for (int64_t g = 0; g < all_slots(p); g++) {
        int64_t to = primary(p, g);
        if (to < 0 || to == g || !here(p, to))
            continue;
        arrived[g] = stage;
        stage += count_roots(p, g, roots) * p->o->row_bytes;
    }
}

/* The roots of this expert's copies in order. Returns how many. */
static int list_roots(const Op *p, int32_t e, const char *const *arrived, const float **roots,
                      int32_t *ends) {
    MoeSplitRoot r[MOE_COPY_ROOTS];
    int n = 0;
    for (int64_t g = 0; g < all_slots(p); g++) {
        int mine = p->copies[g] == e ? count_roots(p, g, r) : 0;
        for (int i = 0; i < mine; i++) {
            const char *at =
                here(p, g) ? own_root(p, g % p->o->slots, i) : arrived[g] + i * p->o->row_bytes;
            ends[n] = r[i].end;
            roots[n++] = (const float *)(const void *)at;
        }
    }
    return n;
}

static MoeStatus fold_slot(MoeExec *x, const Op *p, int64_t s, const char *const *arrived, Fold *f,
                           int32_t *ends) {
    int64_t g = p->all->self * p->o->slots + s;
    char *out = p->first + s * p->o->row_bytes;
    const MoeDeviceLinks *links = x->device->links;
    if (primary(p, g) != g) { /* its roots have gone to the primary */
        if (links)
            return links->clear(x->device, out, p->o->row_bytes);
        memset(out, 0, (size_t)p->o->row_bytes);
        return NULL;
    }
    int32_t e = p->copies[g];
    int n = list_roots(p, e, arrived, f->roots, ends);
    if (n == 0 || (n == 1 && (const char *)f->roots[0] == out))
        return NULL;
    f->n_program = moe_split_fold(p->counts + (int64_t)e * p->shards, p->shards, (int)p->o->leaf,
                                  ends, n, f->program);
    if (f->n_program < 0)
        return moe_error(MOE_E_INTERNAL, "rank %d: the %d roots of expert %d are no subtrees",
                         x->rank, n, e);
    f->out = (float *)(void *)out;
    f->n = p->o->row_bytes / (int64_t)sizeof *f->out;
    if (links)
        return links->fold(x->device, f->roots, f->program, f->n_program, f->out, f->n);
    moe_pool_run(x->pool, (f->n + FOLD_CHUNK - 1) / FOLD_CHUNK, fold_task, f);
    return NULL;
}

MoeStatus moe_exec_copies_fold(MoeExec *x, const MoeExecProgram *g, const MoePlanComm *o,
                               const char *stage) {
    Op p = op_of(x, g, o);
    size_t slots = (size_t)all_slots(&p), most = slots * MOE_COPY_ROOTS;
    const char **arrived = calloc(slots + 1, sizeof *arrived);
    Fold f = {.roots = calloc(most + 1, sizeof *f.roots), .program = calloc(2 * most + 1, 1)};
    int32_t *ends = calloc(most + 1, sizeof *ends);
    MoeStatus st = NULL;
    if (!arrived || !f.roots || !f.program || !ends)
        st = moe_error(MOE_E_NOMEM, "no memory for the tables of exchanges between ranks");
    else
        find_arrived(&p, stage, arrived);
    for (int64_t s = 0; s < o->slots && !st; s++)
        st = fold_slot(x, &p, s, arrived, &f, ends);
    free(arrived);
    free(f.roots);
    free(f.program);
    free(ends);
    return st;
}
