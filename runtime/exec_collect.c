/* What rank 0 gets from the others after a run: their shards' expert loads, their sequences' logits. */
#include "runtime/exec_comm.h"

/* Shards of data rank d in micro-batch m of layer k's load. */
static void load_block(MoeExec *x, bool send, int d, size_t k, int m) {
    const MoePlan *p = x->plan;
    const int V = p->virtual_shards, E = p->experts;
    int run, n = moe_mesh_shard_run(&p->mesh, V, p->micro_batches, m, d, &run);
    int32_t *rows = x->load + (k * (size_t)V + (size_t)run) * (size_t)E;
    moe_block_push(x->between, send ? &x->between->sends : &x->between->recvs,
                   send ? 0 : d * p->mesh.tp, rows, (int64_t)sizeof *rows * n * E);
}

/* Of ranks that have the same tokens the first speaks for all. */
static bool speaks(const MoeExec *x) {
    return x->coords.tp == 0 && x->rank > 0;
}

static MoeStatus exchange(MoeExec *x, const char *what) {
    MoeExecComm *c = x->between;
    if (c->failed)
        return moe_error(MOE_E_NOMEM, "no memory for the tables of exchanges between ranks");
    return moe_comm_exchange(x->comm, c->sends.items, c->sends.n, c->recvs.items, c->recvs.n, what);
}

MoeStatus moe_exec_collect_load(MoeExec *x) {
    const MoePlan *p = x->plan;
    if (p->ranks == 1 || !p->n_moe_layers)
        return NULL;
    x->between->sends.n = x->between->recvs.n = 0;
    for (int d = 0; d < moe_mesh_data_ranks(&p->mesh); d++)
        for (size_t k = 0; k < p->n_moe_layers; k++)
            for (int m = 0; m < p->micro_batches; m++) {
                if (x->rank == 0 && d > 0)
                    load_block(x, false, d, k, m);
                if (speaks(x) && d == x->coords.data)
                    load_block(x, true, d, k, m);
            }
    return exchange(x, "expert load");
}

/* Sequences of data rank d, when `n_seqs` are taken at once. */
static int64_t sequences(const MoePlan *p, int64_t n_seqs, int d, int64_t *out_first) {
    int run, n = moe_mesh_shard_run(&p->mesh, p->virtual_shards, 1, 0, d, &run);
    *out_first = run * n_seqs / p->virtual_shards;
    return (run + n) * n_seqs / p->virtual_shards - *out_first;
}

MoeStatus moe_exec_collect_logits(MoeExec *x, float *logits, int64_t n_seqs) {
    const MoePlan *p = x->plan;
    int64_t first, row = p->seq * p->vocab_size, bytes = row * (int64_t)sizeof *logits;
    if (p->ranks == 1)
        return NULL;
    x->between->sends.n = x->between->recvs.n = 0;
    if (speaks(x)) {
        int64_t n = sequences(p, n_seqs, x->coords.data, &first);
        moe_block_push(x->between, &x->between->sends, 0, logits, n * bytes);
    }
    for (int d = 1; x->rank == 0 && d < moe_mesh_data_ranks(&p->mesh); d++) {
        int64_t n = sequences(p, n_seqs, d, &first);
        moe_block_push(x->between, &x->between->recvs, d * p->mesh.tp, logits + first * row,
                       n * bytes);
    }
    return exchange(x, "logits");
}
