/* What each rank computes by itself for the ops between ranks: the plans of who gets which rows, and the gradient norm of
 * slices (docs/RANKS.md). ids: [T,K] tokens with K experts each; place: for each expert its global slot, NULL where ids are global
 * slots. */
#include "base/mesh.h"
#include "ir/eval/eval_internal.h"

/* Every expert of operand 1 has a place of its own in 0..n_slots-1. */
static MoeStatus check_place(MoeEvalOp *e, const MoeTensor *place, int64_t n_slots) {
    int32_t *owner = MOE_NEW_N(e->arena, int32_t, n_slots);
    for (int64_t x = 0; place && x < place->n; x++) {
        int32_t at = place->i[x];
        MOE_TRY(moe_eval_check_index("slot", at, x, n_slots));
        if (owner[at])
            return moe_error(MOE_E_INPUT, "place puts the experts %d and %lld into slot %d",
                             owner[at] - 1, (long long)x, at);
        owner[at] = (int32_t)x + 1;
    }
    return NULL;
}

/* Slot on `rank` of choice p of ids, -1 if its expert is elsewhere. */
static int64_t slot_on(const MoeTensor *ids, const MoeTensor *place, int64_t p, int64_t rank,
                       int64_t slots) {
    int64_t slot = (place ? place->i[ids->i[p]] : ids->i[p]) - rank * slots;
    return slot >= 0 && slot < slots ? slot : -1;
}

/* The chunk in which token t goes to `rank`: that of its lowest slot there; -1: it has no expert there. */
static int64_t chunk_on(const MoeTensor *ids, const MoeTensor *place, int64_t t, int64_t rank,
                        int64_t slots, int64_t chunks) {
    int64_t lowest = -1, k = ids->dims[1];
    for (int64_t p = t * k; p < (t + 1) * k; p++) {
        int64_t slot = slot_on(ids, place, p, rank, slots);
        if (slot >= 0 && (lowest < 0 || slot < lowest))
            lowest = slot;
    }
    return lowest < 0 ? -1 : lowest / ((slots + chunks - 1) / chunks);
}

static MoeStatus check_ids(const MoeTensor *ids, const MoeTensor *place, int64_t n_slots) {
    for (int64_t p = 0; p < ids->n; p++)
        MOE_TRY(moe_eval_check_index(place ? "expert id" : "slot", ids->i[p], p,
                                     place ? place->n : n_slots));
    return NULL;
}

MoeStatus moe_eval_send_plan(MoeEvalOp *e) {
    const MoeTensor *ids = e->in[0], *place = e->op->n_operands == 2 ? e->in[1] : NULL;
    MoeTensor *send = &e->out[0], *idx = &e->out[1];
    int64_t slots = moe_attr_i(e->op, "slots"), chunks = moe_attr_i(e->op, "chunks");
    int64_t ranks = moe_attr_i(e->op, "ranks");
    int32_t n = 0;
    MOE_TRY(check_ids(ids, place, ranks * slots));
    MOE_TRY(check_place(e, place, ranks * slots));
    for (int64_t p = 0; p < ranks; p++)
        for (int64_t c = 0; c < chunks; c++) {
            for (int64_t t = 0; t < ids->dims[0]; t++)
                if (chunk_on(ids, place, t, p, slots, chunks) == c)
                    idx->i[n++] = (int32_t)t;
            send->i[p * chunks + c + 1] = n;
        }
    return NULL;
}

/* Received rows by (chunk, shard, token): recv; u_of[t] = received row of token t, -1 if it has none. */
static void plan_received(MoeEvalOp *e, const MoeTensor *place, const int32_t *tok, int64_t shards,
                          int64_t rank, int32_t *u_of) {
    const MoeTensor *ids = e->in[0];
    int64_t slots = moe_attr_i(e->op, "slots"), chunks = moe_attr_i(e->op, "chunks");
    int32_t u = 0;
    for (int64_t t = 0; t < ids->dims[0]; t++)
        u_of[t] = -1;
    for (int64_t c = 0; c < chunks; c++)
        for (int64_t v = 0; v < shards; v++) {
            for (int64_t t = tok[v]; t < tok[v + 1]; t++)
                if (chunk_on(ids, place, t, rank, slots, chunks) == c)
                    u_of[t] = u++;
            e->out[0].i[c * shards + v + 1] = u;
        }
}

MoeStatus moe_eval_expert_plan(MoeEvalOp *e) {
    const MoeTensor *ids = e->in[0], *place = e->op->n_operands == 3 ? e->in[1] : NULL;
    MoeTensor *seg = &e->out[1], *src = &e->out[2], *inv = &e->out[3];
    int64_t slots = moe_attr_i(e->op, "slots"), k = ids->dims[1], groups, shards;
    int64_t rank = e->in[e->op->n_operands - 1]->i[0];
    const int32_t *tok;
    MOE_TRY(moe_eval_row_segs(e, 0, &tok, &groups, &shards));
    MOE_TRY(check_ids(ids, place, slots * MOE_MAX_RANKS));
    MOE_TRY(moe_eval_check_index("ep_rank", rank, 0, MOE_MAX_RANKS));
    MOE_TRY(check_place(e, place, slots * MOE_MAX_RANKS));
    int32_t *u_of = MOE_NEW_N(e->arena, int32_t, ids->dims[0] + 1), row = 0;
    plan_received(e, place, tok, shards, rank, u_of);
    for (int64_t i = 0; i < inv->n; i++)
        inv->i[i] = -1;
    for (int64_t s = 0; s < slots; s++)
        for (int64_t v = 0; v < shards; v++) {
            for (int64_t p = tok[v] * k; p < tok[v + 1] * k; p++) {
                if (slot_on(ids, place, p, rank, slots) != s)
                    continue;
                int64_t at = u_of[p / k] * k + p % k;
                src->i[row] = (int32_t)at;
                inv->i[at] = row++;
            }
            seg->i[s * shards + v + 1] = row;
        }
    return NULL;
}

/* Rank 1: one row; else dim 0 has the rows. */
MoeStatus moe_eval_block_squares(MoeEvalOp *e) {
    const MoeTensor *x = e->in[0];
    int64_t rows = x->rank == 1 ? 1 : x->dims[0], cols = rows ? x->n / rows : 0;
    int64_t blocks = e->out->dims[e->out->rank - 1];
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) {
            double v = x->f[r * cols + c];
            e->out->f[r * blocks + c / MOE_SLICE_BLOCK] += v * v;
        }
    return NULL;
}

MoeStatus moe_eval_block_tree(MoeEvalOp *e) {
    const MoeTensor *b = e->in[0], *place = e->op->n_operands == 2 ? e->in[1] : NULL;
    int64_t rows = b->rank == 1 ? 1 : b->dims[0], cols = rows ? b->n / rows : 0;
    if (place)
        MOE_TRY(check_place(e, place, rows));
    for (int64_t i = 0, n = place ? place->n : rows; i < n; i++)
        for (int64_t c = 0; c < cols; c++)
            e->out->f[0] += b->f[(place ? place->i[i] : i) * cols + c];
    return NULL;
}
