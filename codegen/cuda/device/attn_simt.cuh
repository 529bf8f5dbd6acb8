/* Attention in f32 arithmetic, forward and backward, for operands of either dtype and any head_dim up to 512: the way of f32
 * models, and of head sizes that attn_mma.cuh has no tiles for.
 *
 * A block of 256 threads, 16 x 16: thread (ty, tx) owns rows ty*R .. of a tile and columns tx, tx + 16, .. of scores, or runs of
 * W columns of a head. Tiles stand in shared memory as f32, columns padded to 16 with zeros. Each product is one chain of
 * fused multiply-adds over ascending k. */
#ifndef MOE_DEVICE_ATTN_SIMT
#define MOE_DEVICE_ATTN_SIMT

namespace moe {

/* The padded head in shared memory and its division among 16 threads. */
template <int D> struct SimtHead {
    static constexpr int DP = (D + 15) / 16 * 16, LD = DP + 4;
    static constexpr int W = DP % 64 == 0 ? 4 : DP % 32 == 0 ? 2 : 1, N = DP / 16; /* N columns a thread */
    static __device__ __forceinline__ int col(int tx, int n) {
        return W * (tx + 16 * (n / W)) + n % W;
    }
};

/* Rows 0 .. n of x (stride: elements) into dst [ROWS][LD]; zeros beyond n and D. */
template <int ROWS, int D, class T>
__device__ __forceinline__ void simt_load(float *dst, const T *x, i64 stride, int n) {
    typedef SimtHead<D> H;
    constexpr int V = D % 4 == 0 ? 4 : 1;
    for (int i = (int)threadIdx.x; i < ROWS * H::DP / V; i += 256) {
        const int r = i / (H::DP / V), c = i % (H::DP / V) * V;
        float v[V] = {};
        if (r < n && c < D)
            load_n(x + r * stride + c, v);
        store_n(dst + r * H::LD + c, v);
    }
}

/* s[i][j] = a[ty*R + i] . b[tx + 16 j] over the head. */
template <int R, int C, int D>
__device__ __forceinline__ void simt_scores(const float *a, const float *b, float (&s)[R][C]) {
    typedef SimtHead<D> H;
    const int tx = (int)(threadIdx.x % 16), ty = (int)(threadIdx.x / 16);
    for (int i = 0; i < R; i++)
        for (int j = 0; j < C; j++)
            s[i][j] = 0;
#pragma unroll 2
    for (int d = 0; d < H::DP; d += 4) {
        float x[R][4], y[C][4];
#pragma unroll
        for (int i = 0; i < R; i++)
            load_n(a + (ty * R + i) * H::LD + d, x[i]);
#pragma unroll
        for (int j = 0; j < C; j++)
            load_n(b + (tx + 16 * j) * H::LD + d, y[j]);
#pragma unroll
        for (int k = 0; k < 4; k++)
#pragma unroll
            for (int i = 0; i < R; i++)
#pragma unroll
                for (int j = 0; j < C; j++)
                    s[i][j] = fmaf(x[i][k], y[j][k], s[i][j]);
    }
}

/* acc[i][n] += sum over k < K ascending of p(ty*R + i, k) x[k][col n]. p: [rows][LP], or with TURNED [k][LP]. */
template <int R, int D, int K, int LP, bool TURNED>
__device__ __forceinline__ void simt_add(const float *p, const float *x,
                                         float (&acc)[R][SimtHead<D>::N]) {
    typedef SimtHead<D> H;
    const int tx = (int)(threadIdx.x % 16), ty = (int)(threadIdx.x / 16);
#pragma unroll 2
    for (int k = 0; k < K; k++) {
        float a[R];
#pragma unroll
        for (int i = 0; i < R; i++)
            a[i] = TURNED ? p[k * LP + ty * R + i] : p[(ty * R + i) * LP + k];
#pragma unroll
        for (int n = 0; n < H::N; n += H::W) {
            float v[H::W];
            load_n(x + k * H::LD + H::col(tx, n), v);
#pragma unroll
            for (int w = 0; w < H::W; w++)
#pragma unroll
                for (int i = 0; i < R; i++)
                    acc[i][n + w] = fmaf(a[i], v[w], acc[i][n + w]);
        }
    }
}

/* out row = acc * factor. */
template <int D, class T>
__device__ __forceinline__ void simt_store(T *out, const float (&acc)[SimtHead<D>::N],
                                           float factor) {
    typedef SimtHead<D> H;
    const int tx = (int)(threadIdx.x % 16);
#pragma unroll
    for (int n = 0; n < H::N; n++)
        if (H::col(tx, n) < D)
            store(out + H::col(tx, n), acc[n] * factor);
}

/* ---- forward ---- */

template <int D, int BQ, int BK> struct SimtForwardTile {
    static constexpr int LP = BK + 4;
    static constexpr int K = BQ * SimtHead<D>::LD, P = K + BK * SimtHead<D>::LD; /* offsets, floats */
};

/* o = softmax(scale q k^T) v and lse. Keys and values take turns in one tile of shared memory. */
template <class S, int BQ, int BK, class T>
__device__ __forceinline__ void attn_forward_simt(char *shared, const T *q, const T *k, const T *v,
                                                  const i32 *segs, T *o, float *lse, float scale) {
    typedef SimtForwardTile<S::D, BQ, BK> L;
    constexpr int R = BQ / 16, C = BK / 16, LP = L::LP;
    float *qs = (float *)shared, *kv = qs + L::K, *ps = qs + L::P;
    const int tx = (int)(threadIdx.x % 16), ty = (int)(threadIdx.x / 16);
    const i64 n_tasks = attn_tasks<S, BQ>(segs, S::HEADS);
    for (i64 t = blockIdx.x; t < n_tasks; t += gridDim.x) {
        const AttnTask w = attn_task<S, BQ, true>(segs, S::HEADS, t);
        if (w.first >= w.len)
            continue;
        const i64 row = w.row0 + w.first, of_head = (i64)(w.head / S::SHARE) * S::D;
        float acc[R][SimtHead<S::D>::N] = {}, top[R], sum[R] = {};
        for (int i = 0; i < R; i++)
            top[i] = -MOE_INFINITY;
        __syncthreads(); /* the task before may still read its tiles */
        simt_load<BQ, S::D>(qs, q + row * S::Q_STRIDE + (i64)w.head * S::D, S::Q_STRIDE,
                            w.len - w.first);
        const int hi = least(w.len, w.first + BQ);
        for (int key = attn_first_key<S, BK>(w.first); key < hi; key += BK) {
            const i64 at = (w.row0 + key) * S::KV_STRIDE + of_head;
            simt_load<BK, S::D>(kv, k + at, S::KV_STRIDE, w.len - key);
            __syncthreads();
            float s[R][C];
            simt_scores<R, C, S::D>(qs, kv, s);
#pragma unroll
            for (int i = 0; i < R; i++) {
                const int query = w.first + ty * R + i;
                float m = top[i], more = 0;
#pragma unroll
                for (int j = 0; j < C; j++) {
                    const bool sees = attn_sees<S>(query, key + tx + 16 * j);
                    s[i][j] = sees ? s[i][j] * scale : -MOE_INFINITY;
                    m = max_nan(m, s[i][j]);
                }
                m = warp_max<16>(m);
                const float from = m == -MOE_INFINITY ? 0.0f : m, keep = expf(top[i] - from);
#pragma unroll
                for (int j = 0; j < C; j++) {
                    const float p = expf(s[i][j] - from);
                    ps[(ty * R + i) * LP + tx + 16 * j] = p;
                    more += p;
                }
                sum[i] = sum[i] * keep + warp_sum<16>(more);
                top[i] = m;
#pragma unroll
                for (int n = 0; n < SimtHead<S::D>::N; n++)
                    acc[i][n] *= keep;
            }
            __syncthreads(); /* the keys have been read */
            simt_load<BK, S::D>(kv, v + at, S::KV_STRIDE, w.len - key);
            __syncthreads();
            simt_add<R, S::D, BK, LP, false>(ps, kv, acc);
            __syncthreads();
        }
        for (int i = 0; i < R; i++) {
            const int at = ty * R + i;
            if (w.first + at >= w.len)
                continue;
            simt_store<S::D>(o + (row + at) * S::Q_STRIDE + (i64)w.head * S::D, acc[i],
                             1.0f / sum[i]);
            if (tx == 0)
                lse[(row + at) * S::HEADS + w.head] = top[i] + logf(sum[i]);
        }
    }
}

/* ---- backward ---- */

/* Four tiles [B][LD] (queries, their do, keys, values), then P and dS [B queries][LP]. */
template <int D, int B> struct SimtBackwardTile {
    static constexpr int TILE = B * SimtHead<D>::LD, LP = B + 4;
    static constexpr int P = 4 * TILE, DS = P + B * LP;
};

/* P and dS of the tile of queries from `query` on and keys from `key` on, into shared memory. lse, delta: of the tile's first query;
 * queries past the end have zero q and do and give nothing. */
template <class S, int B>
__device__ __forceinline__ void simt_softmax_grad(float *shared, const float *lse, const float *delta,
                                                  int query, int key, int n, float scale) {
    typedef SimtBackwardTile<S::D, B> L;
    constexpr int R = B / 16;
    const int tx = (int)(threadIdx.x % 16), ty = (int)(threadIdx.x / 16);
    float s[R][R], g[R][R];
    simt_scores<R, R, S::D>(shared, shared + 2 * L::TILE, s);
    simt_scores<R, R, S::D>(shared + L::TILE, shared + 3 * L::TILE, g);
#pragma unroll
    for (int i = 0; i < R; i++) {
        const int at = ty * R + i;
        const float of_row = at < n ? lse[at] : 0.0f, d = at < n ? delta[at] : 0.0f;
#pragma unroll
        for (int j = 0; j < R; j++) {
            const bool sees = at < n && attn_sees<S>(query + at, key + tx + 16 * j);
            const float p = sees ? expf(s[i][j] * scale - of_row) : 0.0f;
            shared[L::P + at * L::LP + tx + 16 * j] = p;
            shared[L::DS + at * L::LP + tx + 16 * j] = sees ? p * (g[i][j] - d) : 0.0f;
        }
    }
}

/* dq of a tile of queries: over tiles of keys ascending. delta, lse: attn_row_sums, rows of `capacity`. */
template <class S, int B, class T>
__device__ __forceinline__ void attn_dq_simt(char *memory, const T *q, const T *k, const T *v,
                                             const T *d_o, const i32 *segs, const float *delta,
                                             const float *lse, float *dq, i64 capacity,
                                             float scale) {
    typedef SimtBackwardTile<S::D, B> L;
    constexpr int R = B / 16;
    float *shared = (float *)memory;
    const int ty = (int)(threadIdx.x / 16);
    const i64 n_tasks = attn_tasks<S, B>(segs, S::HEADS);
    for (i64 t = blockIdx.x; t < n_tasks; t += gridDim.x) {
        const AttnTask w = attn_task<S, B, true>(segs, S::HEADS, t);
        if (w.first >= w.len)
            continue;
        const i64 row = w.row0 + w.first, of_head = (i64)w.head * S::D;
        const int n = least(B, w.len - w.first), hi = w.first + n;
        float acc[R][SimtHead<S::D>::N] = {};
        __syncthreads();
        simt_load<B, S::D>(shared, q + row * S::Q_STRIDE + of_head, S::Q_STRIDE, n);
        simt_load<B, S::D>(shared + L::TILE, d_o + row * S::Q_STRIDE + of_head, S::Q_STRIDE, n);
        for (int key = attn_first_key<S, B>(w.first); key < hi; key += B) {
            const i64 at = (w.row0 + key) * S::KV_STRIDE + (i64)(w.head / S::SHARE) * S::D;
            simt_load<B, S::D>(shared + 2 * L::TILE, k + at, S::KV_STRIDE, w.len - key);
            simt_load<B, S::D>(shared + 3 * L::TILE, v + at, S::KV_STRIDE, w.len - key);
            __syncthreads();
            const i64 sums = w.head * capacity + row;
            simt_softmax_grad<S, B>(shared, lse + sums, delta + sums, w.first, key, n, scale);
            __syncthreads();
            simt_add<R, S::D, B, L::LP, false>(shared + L::DS, shared + 2 * L::TILE, acc);
            __syncthreads();
        }
        for (int i = 0; i < R; i++)
            if (ty * R + i < n)
                simt_store<S::D>(dq + (row + ty * R + i) * S::Q_STRIDE + of_head, acc[i], scale);
    }
}

/* dk and dv of a tile of keys: over the query heads of its key head ascending, then over tiles of queries ascending. */
template <class S, int B, class T>
__device__ __forceinline__ void attn_dkv_simt(char *memory, const T *q, const T *k, const T *v,
                                              const T *d_o, const i32 *segs, const float *delta,
                                              const float *lse, float *dk, float *dv, i64 capacity,
                                              float scale) {
    typedef SimtBackwardTile<S::D, B> L;
    constexpr int R = B / 16;
    float *shared = (float *)memory;
    const int ty = (int)(threadIdx.x / 16);
    const i64 n_tasks = attn_tasks<S, B>(segs, S::KV);
    for (i64 t = blockIdx.x; t < n_tasks; t += gridDim.x) {
        const AttnTask w = attn_task<S, B, false>(segs, S::KV, t);
        if (w.first >= w.len)
            continue;
        const i64 at = (w.row0 + w.first) * S::KV_STRIDE + (i64)w.head * S::D;
        float of_k[R][SimtHead<S::D>::N] = {}, of_v[R][SimtHead<S::D>::N] = {};
        __syncthreads();
        simt_load<B, S::D>(shared + 2 * L::TILE, k + at, S::KV_STRIDE, w.len - w.first);
        simt_load<B, S::D>(shared + 3 * L::TILE, v + at, S::KV_STRIDE, w.len - w.first);
        const int hi = attn_last_query<S>(w.first, B, w.len);
        for (int head = w.head * S::SHARE; head < (w.head + 1) * S::SHARE; head++)
            for (int query = w.first; query < hi; query += B) {
                const i64 row = w.row0 + query, from = row * S::Q_STRIDE + (i64)head * S::D;
                const int n = least(B, w.len - query);
                simt_load<B, S::D>(shared, q + from, S::Q_STRIDE, n);
                simt_load<B, S::D>(shared + L::TILE, d_o + from, S::Q_STRIDE, n);
                __syncthreads();
                const i64 sums = head * capacity + row;
                simt_softmax_grad<S, B>(shared, lse + sums, delta + sums, query, w.first, n, scale);
                __syncthreads();
                simt_add<R, S::D, B, L::LP, true>(shared + L::P, shared + L::TILE, of_v);
                simt_add<R, S::D, B, L::LP, true>(shared + L::DS, shared, of_k);
                __syncthreads();
            }
        for (int i = 0; i < R; i++) {
            const int key = ty * R + i;
            if (w.first + key >= w.len)
                continue;
            simt_store<S::D>(dk + at + key * S::KV_STRIDE, of_k[i], scale);
            simt_store<S::D>(dv + at + key * S::KV_STRIDE, of_v[i], 1.0f);
        }
    }
}

} /* namespace moe */

#endif
