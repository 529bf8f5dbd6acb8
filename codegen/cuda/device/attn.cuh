/* Causal attention: what its kernels share. Flash attention (Dao et al., 2022): softmax over tiles of keys with a running
 * maximum, only the log-sum-exp is saved; the gradient forms P anew, with D = rowsum(do * o).
 *
 * q, o, do, dq: [T, HEADS * D]; k, v, dk, dv: [T, KV * D]; lse [T, HEADS]; query head h reads key head h / SHARE. Rows
 * [i * SEQ, (i + 1) * SEQ) below the live extent are a sequence; WINDOW > 0: a query sees its last WINDOW keys, its own
 * included. Every sum's order follows from positions in the sequence: no block adds to another's result.
 *
 * attn_simt.cuh: f32 arithmetic for any operands; attn_mma.cuh: tensor cores for bf16. */
#ifndef MOE_DEVICE_ATTN
#define MOE_DEVICE_ATTN

namespace moe {

#define MOE_LOG2_E 1.44269504088896341f

template <int HEADS_, int KV_, int D_, int SEQ_, int WINDOW_, int SHARDS_> struct AttnShape {
    static constexpr int HEADS = HEADS_, KV = KV_, D = D_, SEQ = SEQ_, WINDOW = WINDOW_;
    static constexpr int SHARDS = SHARDS_, SHARE = HEADS / KV;
    static constexpr i64 Q_STRIDE = (i64)HEADS * D, KV_STRIDE = (i64)KV * D; /* elements of a row */
};

/* A block's work: rows row0 .. row0 + len of a sequence, a head, the tile of rows from `first` on. */
struct AttnTask {
    i64 row0;
    int len, head, first;
};

/* Tasks over `heads` heads and tiles of TILE rows. */
template <class S, int TILE> __device__ __forceinline__ i64 attn_tasks(const i32 *segs, int heads) {
    constexpr int TILES = (S::SEQ + TILE - 1) / TILE;
    return (i64)ceil_div(segs[S::SHARDS], S::SEQ) * heads * TILES;
}

/* Task t: heads of one sequence side by side, its longest tiles first: queries from the last, keys from the first on. */
template <class S, int TILE, bool QUERIES>
__device__ __forceinline__ AttnTask attn_task(const i32 *segs, int heads, i64 t) {
    constexpr int TILES = (S::SEQ + TILE - 1) / TILE;
    int tile = (int)(t % TILES);
    i64 rest = t / TILES;
    AttnTask w;
    w.head = (int)(rest % heads);
    w.row0 = rest / heads * S::SEQ;
    w.len = (int)least((i64)S::SEQ, (i64)segs[S::SHARDS] - w.row0);
    w.first = (QUERIES ? TILES - 1 - tile : tile) * TILE;
    return w;
}

/* Keys that the n queries from `first` on see: [lo, hi), lo at a tile's edge. */
template <class S, int TILE> __device__ __forceinline__ int attn_first_key(int first) {
    return S::WINDOW > 0 ? most(0, first - S::WINDOW + 1) / TILE * TILE : 0;
}

/* Queries that see any of the n keys from `first` on: up to this one. */
template <class S> __device__ __forceinline__ int attn_last_query(int first, int n, int len) {
    return S::WINDOW > 0 ? (int)least((i64)len, (i64)first + n - 1 + S::WINDOW) : len;
}

template <class S> __device__ __forceinline__ bool attn_sees(int query, int key) {
    return key <= query && (S::WINDOW == 0 || key > query - S::WINDOW);
}

/* delta[head][row] = sum of do * o over the head's columns, lse_t[head][row] = factor * lse: head by head, so that a tile of
 * queries is a run. capacity: rows of each. Eight lanes a sum: lane i takes elements 8i .. 8i+7, then those 64 on. */
template <class S, class T>
__device__ __forceinline__ void attn_row_sums(const T *o, const T *d_o, const float *lse,
                                              const i32 *segs, float *delta, float *lse_t,
                                              i64 capacity, float factor) {
    const i64 n = (i64)segs[S::SHARDS] * S::HEADS, step = (i64)gridDim.x * (blockDim.x / 8);
    const int part = (int)(threadIdx.x % 8);
    for (i64 first = (i64)blockIdx.x * (blockDim.x / 8); first < n; first += step) {
        const i64 at = first + threadIdx.x / 8;
        float sum = 0;
        if (at < n) {
            for (int c = part * 8; c < S::D; c += 64) {
                float a[8], b[8];
                if constexpr (S::D % 8 == 0) {
                    load_n(o + at * S::D + c, a);
                    load_n(d_o + at * S::D + c, b);
                } else {
                    for (int i = 0; i < 8; i++) {
                        a[i] = c + i < S::D ? load(o + at * S::D + c + i) : 0.0f;
                        b[i] = c + i < S::D ? load(d_o + at * S::D + c + i) : 0.0f;
                    }
                }
                for (int i = 0; i < 8; i++)
                    sum = fmaf(a[i], b[i], sum);
            }
        }
        sum = warp_sum<8>(sum);
        if (at < n && part == 0) {
            const i64 to = at % S::HEADS * capacity + at / S::HEADS;
            delta[to] = sum;
            lse_t[to] = lse[at] * factor;
        }
    }
}

} /* namespace moe */

#endif
