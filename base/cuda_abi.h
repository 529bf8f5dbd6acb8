/* The binary interface between the runtime and the kernels of plans for NVIDIA GPUs (docs/GPU.md): what every plan's
 * kernels.cubin has beside the kernels of its steps. Made by codegen/cuda/runtime_kernels.c, launched by
 * runtime/cuda/; their text is in codegen/cuda/device/runtime.cuh.
 *
 * A kernel gets one struct by value: the address of the stop flag (int32), then its buffers, each a 64-bit address or, where it
 * says so, a number in its place. */
#ifndef MOE_BASE_CUDA_ABI_H
#define MOE_BASE_CUDA_ABI_H

#include <stdint.h>

#define MOE_RT_THREADS 256
#define MOE_RT_SLOTS   32 /* of the tree over micro-batches, at most */

/* X(name, buffers)
 * moe_rt_fold          source, out, n (number), slots (number), slot 0 .. 31: out[i] = slot[s-1][i] + ( .. (slot[0][i] + source[i]));
 *                      f32; out may be one of the others
 * moe_rt_add_i32       source, sum, n (number): sum[i] += source[i]
 * moe_rt_peer_word     mode (number), out, in, n, code (numbers): 0: out = whether in is set; 1: whether one of the n words that the addresses
 *                      at `in` say is; 2: out = code where in is set (int32)
 * moe_rt_peer_pull     MoeRtPeerOp[], n (number): what this rank gets from others (device/peer.cuh)
 * moe_rt_peer_fold     MoeRtPeerOp, a MOE_PEER_FOLD_PLAN that has run: the sums
 * moe_rt_window        all, window, entries (number), lo, hi (numbers: indexes into all): all[k] within [all[lo], all[hi]]
 * moe_rt_guard_rows    MoeRtElastic[], n (number), code (number): notes the rows; stop = code where they are more than fit
 * moe_rt_guard_finite  a, b: stop = MOE_RT_NOT_FINITE unless the first float of both is finite
 * moe_rt_gather        MoeRtCopy[], n (number), pieces of all (number): copies
 * moe_rt_rank_sum      own, others, out, ranks, self, rows, columns, own's stride, out's, i32 (numbers; strides in elements):
 *                      out[r][c] = the tree over the ranks in order of their [r][c]; others: [ranks - 1][rows][columns],
 *                      without this rank's. f32, or i32 if the last is 1
 * moe_rt_transpose     from, to, n, rows, cols (numbers): n matrices of 4-byte elements: to[i][c][r] = from[i][r][c]
 * moe_rt_widen         from, to, n (number): to[i] = from[i], bf16 to f32; both at multiples of 16
 * moe_rt_copy          to, from, bytes (number): a copy; both at multiples of 16
 * moe_rt_rows_fill     out, rows, columns, period, seed, bf16, mirror (numbers): numbers in [-1, 1) by row % period and column; bf16 if that is
 *                      1, else f32. mirror 1: the last columns are the first ones in reverse, 2: rows are so, 3: columns, with the other sign
 * moe_rt_rows_differ   rows, want, n, row_bytes, period (numbers), flag: flag[0] = 1 (int32) if row i is not want's row i % period, in any bit */
#define MOE_RT_KERNELS(X)                                                                          \
    X(moe_rt_transpose, 5)                                                                         \
    X(moe_rt_widen, 3)                                                                             \
    X(moe_rt_fold, 4 + MOE_RT_SLOTS)                                                               \
    X(moe_rt_add_i32, 3)                                                                           \
    X(moe_rt_peer_word, 5)                                                                         \
    X(moe_rt_peer_pull, 2)                                                                         \
    X(moe_rt_peer_fold, 1)                                                                         \
    X(moe_rt_window, 5)                                                                            \
    X(moe_rt_guard_rows, 3)                                                                        \
    X(moe_rt_guard_finite, 2)                                                                      \
    X(moe_rt_gather, 3)                                                                            \
    X(moe_rt_rank_sum, 10)                                                                         \
    X(moe_rt_copy, 3)                                                                              \
    X(moe_rt_rows_fill, 7)                                                                         \
    X(moe_rt_rows_differ, 6)

typedef enum {
#define X(name, bufs) MOE_RT_ID_##name,
    MOE_RT_KERNELS(X)
#undef X
        MOE_RT_N_KERNELS
} MoeRtKernel;

/* Exchanges between ranks whose memory a device reaches (docs/GPU.md, "Exchanges between peers"): one op of one rank. `n` members in the
 * group's order, this rank is number `self`; what the numbers and tables are says device/peer.cuh, op by op. Addresses. */
#define MOE_RT_PEERS 32 /* members at most */
typedef enum {
    MOE_PEER_GATHER,
    MOE_PEER_ROWS,
    MOE_PEER_DISPATCH,
    MOE_PEER_COMBINE,
    MOE_PEER_EXPERTS,
    MOE_PEER_CLEAR,
    MOE_PEER_SUM,
    MOE_PEER_SUM_I32,
    MOE_PEER_FOLD_PLAN
} MoeRtPeerKind;
typedef struct {
    int32_t kind, n, self;
    int32_t word; /* bytes that are copied at a time: 16, 8, 4, 2; of a sum 16: four elements, else one */
    int64_t a[8];
    uint64_t t[4];     /* this rank's tables */
    uint64_t to, work; /* the result; scratch memory */
    uint64_t from[MOE_RT_PEERS], table[MOE_RT_PEERS], index[MOE_RT_PEERS]; /* the members' */
    int64_t at[MOE_RT_PEERS], count[MOE_RT_PEERS];
} MoeRtPeerOp;
/* Of MOE_PEER_FOLD_PLAN, for each slot; and so many int32 for each slot and shard, and one more a slot. */
#define MOE_RT_PEER_FOLD_BYTES (8 + 12 * 4 * MOE_RT_PEERS)

/* An elastic value on the device. */
typedef struct {
    uint64_t rows;      /* address of the int32 that counts the live rows */
    int64_t limit;      /* rows that there is memory for */
    int64_t seen, need; /* the most so far; of these, what did not fit */
} MoeRtElastic;

/* Of moe_rt_gather: n rows of row_bytes to `to`, one after another: row i is row index[i] of `from`, or without an index (0) row i.
 * Blocks of threads take pieces: of MOE_RT_PIECE bytes, or with an index of moe_rt_piece_rows rows. */
typedef struct {
    uint64_t to, from, index; /* addresses; index: int32[n], or 0 */
    int64_t row_bytes, n;
    int64_t first; /* the pieces of the copies before */
} MoeRtCopy;

#define MOE_RT_PIECE 32768 /* bytes */
static inline int64_t moe_rt_piece_rows(int64_t row_bytes) {
    return row_bytes >= MOE_RT_PIECE ? 1 : MOE_RT_PIECE / row_bytes;
}
static inline int64_t moe_rt_pieces(const MoeRtCopy *c) {
    int64_t all = c->index ? c->n : c->n * c->row_bytes,
            one = c->index ? moe_rt_piece_rows(c->row_bytes) : MOE_RT_PIECE;
    return (all + one - 1) / one;
}

/* The stop flag: 0, step i of the program has not run and nothing since (1 + i), or this. */
#define MOE_RT_NOT_FINITE (-1)

#endif
