/* A ROWS kernel's plan of threads, shared memory and registers (kind_row_internal.h). */
#include "codegen/cuda/kind_row_internal.h"
#include "ir/numbers.h"

enum {
    BLOCK_THREADS = 128, /* of a block without column sums, at least */
    SUM_THREADS = 512,   /* of a block with column sums, at most */
    HELD = 96,  /* registers for values that several stages read; blocks of 512 threads: half of that */
    ROWS = 112, /* for these and for what a loop loads before it computes; likewise */
    SUMS_SHARED = 64 << 10 /* bytes of a block's terms of column sums, at most */
};

static bool read_by_local(const MoeRowPlan *p, int at) {
    for (int i = 0; i < p->n_ops; i++)
        for (int n = 0; moe_cuda_row_is_local(p->ops[i].op->opcode) && n < p->ops[i].n_in; n++)
            if (p->ops[i].in[n] == at)
                return true;
    return false;
}

static void place_shared(MoeCudaRows *w) {
    const MoeRowPlan *p = w->p;
    for (int i = 0; i < p->n_values; i++) {
        const MoeRowValue *v = &p->values[i];
        bool made_here = v->def >= 0 && moe_cuda_row_is_local(p->ops[v->def].op->opcode);
        w->shared[i] = -1;
        if (made_here || (read_by_local(p, i) && (v->def >= 0 || v->is_const))) {
            w->shared[i] = w->team_words;
            w->team_words += v->cols;
        }
    }
    if (w->team_words)
        w->team_words |= 1; /* teams of few threads: no two in one bank */
}

static int64_t registers_of(const MoeRowValue *v) {
    MoeCudaRowMap m = moe_cuda_row_map(v->cols);
    return m.chunks * m.vec;
}

/* Registers of a thread for values that later stages read. */
static int64_t kept_registers(const MoeRowPlan *p) {
    int64_t n = 0;
    for (int i = 0; i < p->n_values; i++)
        n += p->values[i].kept && p->values[i].in_loop ? registers_of(&p->values[i]) : 0;
    return n;
}

static void choose_team(MoeCudaRows *w) {
    const MoeRowPlan *p = w->p;
    w->width = 1;
    for (int i = 0; i < p->n_ops; i++) {
        MoeCudaRowMap m = moe_cuda_row_map(p->ops[i].cols > 0 ? p->ops[i].cols : 1);
        if ((p->ops[i].in_loop || moe_cuda_row_is_local(p->ops[i].op->opcode)) && m.width > w->width)
            w->width = m.width;
    }
    w->sums = p->slot_bytes / 4;
    w->threads = w->width > BLOCK_THREADS ? w->width : BLOCK_THREADS;
    if (!p->col_sums)
        return;
    /* As many rows at once as a leaf has, the registers hold and the terms have room for. */
    int most = kept_registers(p) <= HELD / 2 ? SUM_THREADS : SUM_THREADS / 2;
    if (most > w->width * MOE_LEAF_ROWS)
        most = w->width * MOE_LEAF_ROWS;
    if (most < w->width)
        most = w->width;
    w->threads = most > BLOCK_THREADS ? most : BLOCK_THREADS;
    while (w->threads > w->width && w->threads > 32 &&
           w->threads / w->width * w->sums * 4 > SUMS_SHARED)
        w->threads /= 2;
    w->sums_in_memory = w->threads / w->width * w->sums * 4 > SUMS_SHARED;
}

void moe_cuda_row_choose_team(MoeCudaRows *w) {
    choose_team(w);
    w->teams = w->threads / w->width;
    place_shared(w);
}

void moe_cuda_row_hold(MoeCudaRows *w, bool externals) {
    const MoeRowPlan *p = w->p;
    int64_t share = w->threads > 256 ? 2 : 1, used = 0;
    for (int i = 0; i < p->n_values; i++) {
        const MoeRowValue *v = &p->values[i];
        w->held[i] = v->kept && v->in_loop && w->shared[i] < 0 && !moe_cuda_row_map(v->cols).rolled;
        used += w->held[i] ? registers_of(v) : 0;
    }
    for (int varying = 1; varying >= 0 && externals; varying--)
        for (int i = 0; i < p->n_values; i++) {
            const MoeRowValue *v = &p->values[i];
            if (v->cls != MOE_ROW_VECTOR || v->def >= 0 || v->is_const || w->loads[i] < 2 ||
                w->varies[i] != (varying != 0) || moe_cuda_row_map(v->cols).rolled ||
                used + registers_of(v) > HELD / share)
                continue;
            w->held[i] = true;
            used += registers_of(v);
        }
    w->ahead = ROWS / share - used;
}
