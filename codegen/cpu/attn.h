/* What the two attention kernels share: shapes, the strided micro-kernel, packing of one head's rows into scratch.
 *
 * A task is one sequence and one key/value head. Queries go in blocks of QB = lanes * tile_vectors; the scores of a block live transposed in a strip
 * S^T [keys, QB], so that softmax over keys is plain vector arithmetic and each of the six products is the same micro-kernel:
 *   acc[r][v] += A(r, k) * B(k, v), A broadcast from memory, B a row of vectors, k ascending.
 * Everything in scratch is f32, rows padded to whole vectors with zeros; bf16 operands are widened when packed. Strips are at most seq x QB
 * floats; nothing of size seq x seq exists. */
#ifndef MOE_CODEGEN_CPU_ATTN_H
#define MOE_CODEGEN_CPU_ATTN_H

#include "codegen/cpu/emit.h"

typedef struct {
    int64_t heads, kv_heads, head_dim, seq, window; /* window 0: none */
    double scale;
    MoeDtype dtype;     /* of q, k, v, o and do */
    int64_t shards;     /* of the token segments */
    int lanes, vectors; /* vectors of a query block */
    int rows;           /* of a register tile; divides qb */
    int64_t qb;         /* queries of a block */
    int64_t dp;         /* head_dim rounded up to whole vectors */
    int64_t sp;         /* seq rounded up to whole tiles */
} MoeAttn;

/* Byte offsets in scratch, given out one after another. */
int64_t moe_attn_take(int64_t *used, int64_t n_floats);

MoeAttn moe_attn_shape(const MoeCpuTarget *t, const MoeOp *op);
/* Everything the code depends on, as text, after `kind`. */
const char *moe_attn_key(const MoeCpuTarget *t, const MoeAttn *a, const char *kind);

/* Tasks: sequences (a last one may be short) x kv heads. seg_buf: the buffer index of the token segments. */
void moe_attn_emit_tasks(MoeEmit *e, const MoeAttn *a, int seg_buf);

/* In the kernel body: what the task works on. */
typedef struct {
    MoeVal row0; /* first row of the sequence */
    MoeVal len;  /* its rows */
    MoeVal kv_head;
} MoeAttnTask;
MoeAttnTask moe_attn_task(MoeEmit *e, const MoeAttn *a, int seg_buf);

/* Rows [first, first+n) of x [T, x_heads*head_dim], head `head`, times `factor` -> dst [n_rows_padded, dp] f32; rows from n to n_padded are zero. */
void moe_attn_pack(MoeEmit *e, const MoeAttn *a, MoeDtype dtype, MoeVal x, int64_t x_heads,
                   MoeVal head, MoeVal first, MoeVal n, int64_t n_padded, double factor,
                   MoeVal dst);
/* src [qb, dp] -> dst [dp, qb]. */
void moe_attn_transpose(MoeEmit *e, const MoeAttn *a, MoeVal src, MoeVal dst);

/* acc (rows*vecs, row major; in: initial, out: result) += sum over k in [lo, hi) of A(r,k) B(k,v). a_rows[r] and b point at k = 0. */
void moe_attn_product(MoeEmit *e, int rows, int vecs, MoeVal lo, MoeVal hi, const MoeVal *a_rows,
                      int64_t a_step, MoeVal b, int64_t b_step, MoeVal *acc);
/* strip[j][qb] = sum over d of keys[j][d] * bt[d][qb] for j in [lo, hi) (lo a multiple of a->rows; the last tile may run past hi). */
void moe_attn_strip(MoeEmit *e, const MoeAttn *a, MoeVal keys, MoeVal bt, MoeVal strip, MoeVal lo,
                    MoeVal hi);
/* For each tile of the queries from q0 on and chunk of vectors: acc = sum over keys j in [lo, hi) of strip[j][i] * x[j][.], given to `store`. */
typedef void (*MoeAttnStore)(MoeEmit *e, const MoeAttn *a, MoeVal query, int rows, int first_vec,
                             int vecs, MoeVal *acc, void *ctx);
void moe_attn_rows(MoeEmit *e, const MoeAttn *a, MoeVal strip, MoeVal x, MoeVal q0, MoeVal lo,
                   MoeVal hi, MoeAttnStore store, void *ctx);

/* Keys that the queries from q0 on can see: [lo, hi), lo rounded down to whole tiles. */
void moe_attn_range(MoeEmit *e, const MoeAttn *a, MoeVal q0, MoeVal len, MoeVal *lo, MoeVal *hi);
/* <lanes x i1>: query q0 + v*lanes + lane sees key j. */
MoeVal moe_attn_sees(MoeEmit *e, const MoeAttn *a, MoeVal q0, int v, MoeVal j);

/* Vector chunks of a row of dp floats: at most `most` each, as even as can be. */
int moe_attn_chunks(const MoeAttn *a, int most, int *sizes /* [64] */);

#endif
