/* Attention for bf16 on tensor cores, forward and backward: m16n8k16 products with f32 accumulators, tiles in shared memory by
 * cp.async, softmax in registers. Head sizes up to 256 (the backward's, and the forward's output, in parts of columns).
 *
 * A warp owns MT tiles of 16 rows (queries; keys in dk and dv) of its block's tile and walks the other side in steps. What it
 * computes of scores it feeds to the next product as the left operand: the accumulators of two 16 x 8 tiles are the fragment of
 * a 16 x 16 one. Rows in shared memory are DP + 8 elements apart, an odd number of 16-byte units: eight rows of one column
 * block lie in different banks. P and dS are rounded to bf16 before their products; all sums are f32. */
#ifndef MOE_DEVICE_ATTN_MMA
#define MOE_DEVICE_ATTN_MMA

namespace moe {

/* Above 128 the padded head has two halves of whole tiles, so that a block may compute one. */
template <int D> struct MmaHead {
    static constexpr int UNIT = D > 128 ? 32 : 16, DP = (D + UNIT - 1) / UNIT * UNIT, LD = DP + 8;
};

/* Rows 0 .. n of x (stride: elements) on their way into dst [ROWS][LD]; zeros beyond n and D. */
template <int ROWS, int D, int THREADS>
__device__ __forceinline__ void mma_load(bf16 *dst, const bf16 *x, int stride, int n) {
    constexpr int DP = MmaHead<D>::DP, LD = MmaHead<D>::LD;
    if constexpr (D % 8 == 0) {
        constexpr int UNITS = DP / 8;
        const u32 to = shared_addr(dst);
#pragma unroll 1
        for (int i = (int)threadIdx.x; i < ROWS * UNITS; i += THREADS) {
            const int r = i / UNITS, c = i % UNITS * 8;
            const bool live = r < n && c < D;
            cp_async16(to + (u32)(r * LD + c) * 2, live ? x + r * stride + c : x, live ? 16 : 0);
        }
    } else {
        for (int i = (int)threadIdx.x; i < ROWS * DP; i += THREADS) {
            const int r = i / DP, c = i % DP;
            dst[r * LD + c] = r < n && c < D ? x[r * stride + c] : (bf16)0;
        }
    }
}

/* This lane's row address for ldmatrix_x4: of a left operand's fragment, and of a [k][n] right operand's with .trans. */
template <int LD> __device__ __forceinline__ u32 mma_row_address(const bf16 *tile) {
    return shared_addr(tile + lane() % 16 * LD + lane() / 16 * 8);
}
/* Of an [n][k] right operand's: 16 columns n. */
template <int LD> __device__ __forceinline__ u32 mma_col_address(const bf16 *tile) {
    return shared_addr(tile + (lane() / 16 * 8 + lane() % 8) * LD + lane() / 8 % 2 * 8);
}

template <int MT, int NT> __device__ __forceinline__ void mma_zero(float (&c)[MT][NT][4]) {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                c[m][n][i] = 0;
}

/* c = A B^T over K columns: A [MT * 16][LD] at a (mma_row_address), B [NT * 8][LD] at b (mma_col_address). */
template <int MT, int NT, int K, int LD>
__device__ __forceinline__ void mma_scores(float (&c)[MT][NT][4], u32 a, u32 b) {
    mma_zero(c);
#pragma unroll
    for (int k = 0; k < K; k += 16) {
        u32 x[MT][4];
#pragma unroll
        for (int m = 0; m < MT; m++)
            ldmatrix_x4(x[m], a + (u32)(m * 16 * LD + k) * 2);
#pragma unroll
        for (int n = 0; n < NT; n += 2) {
            u32 y[4];
            ldmatrix_x4(y, b + (u32)(n * 8 * LD + k) * 2);
#pragma unroll
            for (int m = 0; m < MT; m++) {
                mma_bf16(c[m][n], x[m], y[0], y[1]);
                mma_bf16(c[m][n + 1], x[m], y[2], y[3]);
            }
        }
    }
}

/* c += P B: P the fragments of KT steps, B [KT * 16][LD] at b (mma_row_address), NT * 8 columns. */
template <int MT, int NT, int KT, int LD>
__device__ __forceinline__ void mma_add(float (&c)[MT][NT][4], const u32 (&p)[MT][KT][4], u32 b) {
#pragma unroll
    for (int k = 0; k < KT; k++)
#pragma unroll
        for (int n = 0; n < NT; n += 2) {
            u32 y[4];
            ldmatrix_x4_trans(y, b + (u32)(k * 16 * LD + n * 8) * 2);
#pragma unroll
            for (int m = 0; m < MT; m++) {
                mma_bf16(c[m][n], p[m][k], y[0], y[1]);
                mma_bf16(c[m][n + 1], p[m][k], y[2], y[3]);
            }
        }
}

/* Accumulators of NT tiles as the left fragments of NT / 2 steps. */
template <int MT, int NT>
__device__ __forceinline__ void mma_pack(const float (&c)[MT][NT][4], u32 (&p)[MT][NT / 2][4]) {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < NT; n++) {
            p[m][n / 2][n % 2 * 2] = cvt_bf16x2(c[m][n][0], c[m][n][1]);
            p[m][n / 2][n % 2 * 2 + 1] = cvt_bf16x2(c[m][n][2], c[m][n][3]);
        }
}

/* Row `row` of the accumulator tile c (half h: rows 0-7 or 8-15), columns `col`, + 1 below D. */
template <int D, class T>
__device__ __forceinline__ void mma_store(T *out, int col, float a, float b) {
    if constexpr (D % 2 == 0) {
        const float v[2] = {a, b};
        if (col < D)
            store_n(out + col, v);
    } else {
        if (col < D)
            store(out + col, a);
        if (col + 1 < D)
            store(out + col + 1, b);
    }
}

/* A warp's accumulators, times factor[m][half], to rows of out (out: row 0 of the warp's first tile, column 0 of the part
 * from `part` on); rows at `n` and beyond stay as they are. */
template <int D, int MT, int NT, class T>
__device__ __forceinline__ void mma_store_rows(T *out, int stride, int n, int part,
                                               const float (&c)[MT][NT][4],
                                               const float (&factor)[MT][2]) {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int r = m * 16 + h * 8 + lane() / 4;
            if (r < n)
#pragma unroll
                for (int t = 0; t < NT; t++)
                    mma_store<D>(out + r * stride, part + t * 8 + lane() % 4 * 2,
                                 c[m][t][h * 2] * factor[m][h], c[m][t][h * 2 + 1] * factor[m][h]);
        }
}

/* ---- forward ---- */

template <int D, int MT, int WARPS, int BK> struct MmaForwardTile {
    static constexpr int LD = MmaHead<D>::LD, BQ = WARPS * MT * 16;
    static constexpr int K = BQ * LD, V = K + BK * LD; /* offsets, elements */
};

/* The running maximum (of scores before scaling) and sum of a warp's rows. */
template <int MT> struct MmaSoftmax {
    float top[MT][2], sum[MT][2];
};

/* s -> P = 2^(c s - c top) for a tile of keys, masked where it must be; what was summed before is scaled in acc and sum.
 * query: the lane's row in the warp's first tile; key: its first column. */
template <class S, int MT, int NT, int NO>
__device__ __forceinline__ void mma_softmax(float (&s)[MT][NT][4], float (&acc)[MT][NO][4],
                                            MmaSoftmax<MT> &w, int query, int key, bool masked,
                                            float c) {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int row = query + m * 16 + h * 8;
            float top = w.top[m][h];
#pragma unroll
            for (int n = 0; n < NT; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float &x = s[m][n][h * 2 + i];
                    if (masked && !attn_sees<S>(row, key + n * 8 + i))
                        x = -MOE_INFINITY;
                    top = fmaxf(top, x); /* a NaN is seen in P */
                }
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
            const float from = top == -MOE_INFINITY ? 0.0f : top * c;
            const float keep = ex2(fmaf(w.top[m][h], c, -from));
            float more = 0;
#pragma unroll
            for (int n = 0; n < NT; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float &x = s[m][n][h * 2 + i];
                    x = ex2(fmaf(x, c, -from));
                    more += x;
                }
            w.top[m][h] = top;
            w.sum[m][h] = w.sum[m][h] * keep + more; /* of this lane's columns: joined at the end */
#pragma unroll
            for (int n = 0; n < NO; n++) {
                acc[m][n][h * 2] *= keep;
                acc[m][n][h * 2 + 1] *= keep;
            }
        }
}

/* o = softmax(scale q k^T) v and lse; scale > 0. Values arrive while scores are computed, the next keys during softmax and its
 * product. PART: columns of o that a block computes. */
template <class S, int MT, int WARPS, int BK, int PART>
__device__ __forceinline__ void attn_forward_mma(char *shared, const bf16 *q, const bf16 *k,
                                                 const bf16 *v, const i32 *segs, bf16 *o, float *lse,
                                                 float scale) {
    typedef MmaForwardTile<S::D, MT, WARPS, BK> L;
    constexpr int BQ = L::BQ, LD = L::LD, DP = MmaHead<S::D>::DP, THREADS = WARPS * 32;
    constexpr int PARTS = DP / PART, NT = BK / 8, NO = PART / 8;
    const float c = scale * MOE_LOG2_E;
    bf16 *qs = (bf16 *)shared, *ks = qs + L::K, *vs = qs + L::V;
    const int first = warp() * MT * 16; /* the warp's rows in the tile */
    const u32 q_at = mma_row_address<LD>(qs + first * LD), k_at = mma_col_address<LD>(ks);
    const u32 v_at = mma_row_address<LD>(vs);
    const i64 n_tasks = attn_tasks<S, BQ>(segs, S::HEADS) * PARTS;
    for (i64 t = blockIdx.x; t < n_tasks; t += gridDim.x) {
        const AttnTask w = attn_task<S, BQ, true>(segs, S::HEADS, t / PARTS);
        const int part = (int)(t % PARTS) * PART;
        if (w.first >= w.len)
            continue;
        const i64 row = w.row0 + w.first, of_head = (i64)(w.head / S::SHARE) * S::D;
        const bf16 *k_rows = k + w.row0 * S::KV_STRIDE + of_head;
        const bf16 *v_rows = v + w.row0 * S::KV_STRIDE + of_head;
        const int hi = least(w.len, w.first + BQ), query = w.first + first;
        float acc[MT][NO][4];
        MmaSoftmax<MT> run;
        mma_zero(acc);
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                run.top[m][h] = -MOE_INFINITY, run.sum[m][h] = 0;
        int key = attn_first_key<S, BK>(w.first);
        __syncthreads(); /* the task before may still read its tiles */
        mma_load<BQ, S::D, THREADS>(qs, q + row * S::Q_STRIDE + (i64)w.head * S::D, S::Q_STRIDE,
                                    w.len - w.first);
        mma_load<BK, S::D, THREADS>(ks, k_rows + key * S::KV_STRIDE, S::KV_STRIDE, w.len - key);
        cp_async_commit();
        for (; key < hi; key += BK) {
            const bool any = key <= query + MT * 16 - 1; /* else no row of this warp sees the tile */
            cp_async_wait<0>();
            __syncthreads(); /* keys are there; the values before have been read */
            mma_load<BK, S::D, THREADS>(vs, v_rows + key * S::KV_STRIDE, S::KV_STRIDE, w.len - key);
            cp_async_commit();
            float s[MT][NT][4];
            if (any)
                mma_scores<MT, NT, DP, LD>(s, q_at, k_at);
            cp_async_wait<0>();
            __syncthreads(); /* values are there; the keys have been read */
            if (key + BK < hi) {
                mma_load<BK, S::D, THREADS>(ks, k_rows + (key + BK) * S::KV_STRIDE, S::KV_STRIDE,
                                            w.len - key - BK);
                cp_async_commit();
            }
            if (!any)
                continue;
            const bool masked =
                key + BK - 1 > query || (S::WINDOW > 0 && key <= query + MT * 16 - 1 - S::WINDOW);
            if (masked)
                mma_softmax<S>(s, acc, run, query + lane() / 4, key + lane() % 4 * 2, true, c);
            else
                mma_softmax<S>(s, acc, run, query + lane() / 4, key + lane() % 4 * 2, false, c);
            u32 p[MT][NT / 2][4];
            mma_pack(s, p);
            mma_add<MT, NO, NT / 2, LD>(acc, p, v_at + (u32)part * 2);
        }
        float inverse[MT][2];
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int r = first + m * 16 + h * 8 + lane() / 4;
                const float sum = warp_sum<4>(run.sum[m][h]);
                inverse[m][h] = 1.0f / sum;
                if (part == 0 && lane() % 4 == 0 && w.first + r < w.len)
                    lse[(row + r) * S::HEADS + w.head] = run.top[m][h] * scale + logf(sum);
            }
        mma_store_rows<S::D>(o + (row + first) * S::Q_STRIDE + (i64)w.head * S::D, S::Q_STRIDE,
                             w.len - w.first - first, part, acc, inverse);
    }
}

/* ---- backward ---- */

/* dq of a tile of queries: over tiles of keys ascending; the next keys and values arrive meanwhile. Two buffers for them. */
template <int D, int MT, int WARPS, int BK> struct MmaDqTile {
    static constexpr int LD = MmaHead<D>::LD, BQ = WARPS * MT * 16;
    static constexpr int DO = BQ * LD, K = 2 * DO, STAGE = 2 * BK * LD; /* offsets, elements */
};

/* s -> dS = P (g - delta), P = 2^(c s - lse); rows are queries. */
template <class S, int MT, int NT>
__device__ __forceinline__ void mma_ds_rows(float (&s)[MT][NT][4], const float (&g)[MT][NT][4],
                                            const float (&lse)[MT][2], const float (&delta)[MT][2],
                                            int query, int key, bool masked, float c) {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float &x = s[m][n][i];
                const float p = ex2(fmaf(x, c, -lse[m][i / 2]));
                x = p * (g[m][n][i] - delta[m][i / 2]);
                if (masked && !attn_sees<S>(query + m * 16 + i / 2 * 8, key + n * 8 + i % 2))
                    x = 0;
            }
}

/* delta, lse (times log2 e): attn_row_sums, rows of `capacity`. */
template <class S, int MT, int WARPS, int BK, int PART>
__device__ __forceinline__ void attn_dq_mma(char *shared, const bf16 *q, const bf16 *k, const bf16 *v,
                                            const bf16 *d_o, const i32 *segs, const float *delta,
                                            const float *lse, float *dq, i64 capacity, float scale) {
    typedef MmaDqTile<S::D, MT, WARPS, BK> L;
    constexpr int BQ = L::BQ, LD = L::LD, DP = MmaHead<S::D>::DP, THREADS = WARPS * 32;
    constexpr int PARTS = DP / PART, NT = BK / 8, NO = PART / 8;
    const float c = scale * MOE_LOG2_E;
    bf16 *qs = (bf16 *)shared, *ds = qs + L::DO, *ks = qs + L::K;
    const int first = warp() * MT * 16;
    const u32 q_at = mma_row_address<LD>(qs + first * LD), d_at = mma_row_address<LD>(ds + first * LD);
    const i64 n_tasks = attn_tasks<S, BQ>(segs, S::HEADS) * PARTS;
    for (i64 t = blockIdx.x; t < n_tasks; t += gridDim.x) {
        const AttnTask w = attn_task<S, BQ, true>(segs, S::HEADS, t / PARTS);
        const int part = (int)(t % PARTS) * PART;
        if (w.first >= w.len)
            continue;
        const i64 row = w.row0 + w.first, at = row * S::Q_STRIDE + (i64)w.head * S::D;
        const i64 of_keys = w.row0 * S::KV_STRIDE + (i64)(w.head / S::SHARE) * S::D;
        const int n = least(BQ, w.len - w.first), hi = w.first + n, query = w.first + first;
        float acc[MT][NO][4], of_row[MT][2], d[MT][2], factor[MT][2];
        mma_zero(acc);
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int r = first + m * 16 + h * 8 + lane() / 4;
                const i64 sums = w.head * capacity + row + r;
                of_row[m][h] = r < n ? lse[sums] : 0.0f;
                d[m][h] = r < n ? delta[sums] : 0.0f;
                factor[m][h] = scale;
            }
        int key = attn_first_key<S, BK>(w.first), stage = 0;
        __syncthreads();
        mma_load<BQ, S::D, THREADS>(qs, q + at, S::Q_STRIDE, n);
        mma_load<BQ, S::D, THREADS>(ds, d_o + at, S::Q_STRIDE, n);
        mma_load<BK, S::D, THREADS>(ks, k + of_keys + key * S::KV_STRIDE, S::KV_STRIDE, w.len - key);
        mma_load<BK, S::D, THREADS>(ks + BK * LD, v + of_keys + key * S::KV_STRIDE, S::KV_STRIDE,
                                    w.len - key);
        cp_async_commit();
        for (; key < hi; key += BK, stage ^= 1) {
            cp_async_wait<0>();
            __syncthreads(); /* this tile is there; the other stage has been read */
            const int next = key + BK;
            if (next < hi) {
                bf16 *to = ks + (stage ^ 1) * L::STAGE;
                mma_load<BK, S::D, THREADS>(to, k + of_keys + next * S::KV_STRIDE, S::KV_STRIDE,
                                            w.len - next);
                mma_load<BK, S::D, THREADS>(to + BK * LD, v + of_keys + next * S::KV_STRIDE,
                                            S::KV_STRIDE, w.len - next);
                cp_async_commit();
            }
            if (key > query + MT * 16 - 1)
                continue;
            bf16 *keys = ks + stage * L::STAGE;
            float s[MT][NT][4], g[MT][NT][4];
            mma_scores<MT, NT, DP, LD>(s, q_at, mma_col_address<LD>(keys));
            mma_scores<MT, NT, DP, LD>(g, d_at, mma_col_address<LD>(keys + BK * LD));
            const bool masked =
                key + BK - 1 > query || (S::WINDOW > 0 && key <= query + MT * 16 - 1 - S::WINDOW);
            if (masked)
                mma_ds_rows<S>(s, g, of_row, d, query + lane() / 4, key + lane() % 4 * 2, true, c);
            else
                mma_ds_rows<S>(s, g, of_row, d, query + lane() / 4, key + lane() % 4 * 2, false, c);
            u32 p[MT][NT / 2][4];
            mma_pack(s, p);
            mma_add<MT, NO, NT / 2, LD>(acc, p, mma_row_address<LD>(keys) + (u32)part * 2);
        }
        mma_store_rows<S::D>(dq + at + first * S::Q_STRIDE, S::Q_STRIDE, n - first, part, acc,
                             factor);
    }
}

/* dk and dv of a tile of keys: over the query heads of its key head ascending, then over tiles of queries ascending. Two buffers for
 * queries, do, and their lse and delta. */
template <int D, int MT, int WARPS, int BQ> struct MmaDkvTile {
    static constexpr int LD = MmaHead<D>::LD, BK = WARPS * MT * 16;
    static constexpr int V = BK * LD, Q = 2 * V, STAGE = 2 * BQ * LD; /* offsets, elements */
    static constexpr int SUMS = Q + 2 * STAGE;                        /* then f32 [2 stages][2][BQ] */
};

/* s -> P = 2^(c s - lse), g -> dS = P (g - delta); columns are queries, sums [2][BQ] has theirs. Queries past the end have zero q, do
 * and sums, and give nothing. */
template <class S, int MT, int NT>
__device__ __forceinline__ void mma_softmax_grad(float (&s)[MT][NT][4], float (&g)[MT][NT][4],
                                                 const float *sums, int key, int query, bool masked,
                                                 float c) {
#pragma unroll
    for (int n = 0; n < NT; n++) {
        const int col = n * 8 + lane() % 4 * 2;
        float lse[2], delta[2];
        load_n(sums + col, lse);
        load_n(sums + NT * 8 + col, delta);
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float &p = s[m][n][i], &x = g[m][n][i];
                p = ex2(fmaf(p, c, -lse[i % 2]));
                x = p * (x - delta[i % 2]);
                if (masked && !attn_sees<S>(query + col + i % 2, key + m * 16 + i / 2 * 8))
                    p = x = 0;
            }
    }
}

template <class S, int MT, int WARPS, int BQ, int PART>
__device__ __forceinline__ void attn_dkv_mma(char *shared, const bf16 *q, const bf16 *k,
                                             const bf16 *v, const bf16 *d_o, const i32 *segs,
                                             const float *delta, const float *lse, float *dk,
                                             float *dv, i64 capacity, float scale) {
    typedef MmaDkvTile<S::D, MT, WARPS, BQ> L;
    constexpr int BK = L::BK, LD = L::LD, DP = MmaHead<S::D>::DP, THREADS = WARPS * 32;
    constexpr int PARTS = DP / PART, NT = BQ / 8, NO = PART / 8;
    static_assert(BQ <= THREADS, "a thread for each query's lse and delta");
    const float c = scale * MOE_LOG2_E;
    bf16 *ks = (bf16 *)shared, *vs = ks + L::V, *qs = ks + L::Q;
    float *sums = (float *)(ks + L::SUMS);
    const int first = warp() * MT * 16, thread = (int)threadIdx.x;
    const u32 k_at = mma_row_address<LD>(ks + first * LD), v_at = mma_row_address<LD>(vs + first * LD);
    const i64 n_tasks = attn_tasks<S, BK>(segs, S::KV) * PARTS;
    for (i64 t = blockIdx.x; t < n_tasks; t += gridDim.x) {
        const AttnTask w = attn_task<S, BK, false>(segs, S::KV, t / PARTS);
        const int part = (int)(t % PARTS) * PART;
        if (w.first >= w.len)
            continue;
        const i64 at = (w.row0 + w.first) * S::KV_STRIDE + (i64)w.head * S::D;
        const int lo = w.first / BQ * BQ, hi = attn_last_query<S>(w.first, BK, w.len);
        const int tiles = (hi - lo + BQ - 1) / BQ, n_steps = S::SHARE * tiles;
        const int key = w.first + first;
        float of_k[MT][NO][4], of_v[MT][NO][4];
        mma_zero(of_k);
        mma_zero(of_v);
        /* Step i on its way: queries and do of tile i % tiles of head i / tiles; its sums by way of registers. */
        float next_lse = 0, next_delta = 0;
        auto fetch = [&](int i) {
            const int head = w.head * S::SHARE + i / tiles, query = lo + i % tiles * BQ;
            const i64 row = w.row0 + query, from = row * S::Q_STRIDE + (i64)head * S::D;
            bf16 *to = qs + i % 2 * L::STAGE;
            mma_load<BQ, S::D, THREADS>(to, q + from, S::Q_STRIDE, w.len - query);
            mma_load<BQ, S::D, THREADS>(to + BQ * LD, d_o + from, S::Q_STRIDE, w.len - query);
            const bool live = thread < BQ && query + thread < w.len;
            next_lse = live ? lse[head * capacity + row + thread] : 0.0f;
            next_delta = live ? delta[head * capacity + row + thread] : 0.0f;
        };
        auto keep_sums = [&](int i) {
            if (thread < BQ) {
                sums[i % 2 * 2 * BQ + thread] = next_lse;
                sums[i % 2 * 2 * BQ + BQ + thread] = next_delta;
            }
        };
        __syncthreads();
        mma_load<BK, S::D, THREADS>(ks, k + at, S::KV_STRIDE, w.len - w.first);
        mma_load<BK, S::D, THREADS>(vs, v + at, S::KV_STRIDE, w.len - w.first);
        fetch(0);
        cp_async_commit();
        keep_sums(0);
        for (int i = 0; i < n_steps; i++) {
            cp_async_wait<0>();
            __syncthreads(); /* this step's tiles are there; the other stage has been read */
            if (i + 1 < n_steps) {
                fetch(i + 1);
                cp_async_commit();
            }
            const int query = lo + i % tiles * BQ;
            if (query + BQ - 1 >= key) { /* else no key of this warp is seen */
                bf16 *queries = qs + i % 2 * L::STAGE;
                float s[MT][NT][4], g[MT][NT][4];
                mma_scores<MT, NT, DP, LD>(s, k_at, mma_col_address<LD>(queries));
                mma_scores<MT, NT, DP, LD>(g, v_at, mma_col_address<LD>(queries + BQ * LD));
                const bool masked = query < key + MT * 16 - 1 ||
                                    (S::WINDOW > 0 && key <= query + BQ - 1 - S::WINDOW);
                const float *of_step = sums + i % 2 * 2 * BQ;
                if (masked)
                    mma_softmax_grad<S>(s, g, of_step, key + lane() / 4, query, true, c);
                else
                    mma_softmax_grad<S>(s, g, of_step, key + lane() / 4, query, false, c);
                u32 p[MT][NT / 2][4];
                mma_pack(s, p);
                mma_add<MT, NO, NT / 2, LD>(of_v, p,
                                            mma_row_address<LD>(queries + BQ * LD) + (u32)part * 2);
                mma_pack(g, p);
                mma_add<MT, NO, NT / 2, LD>(of_k, p, mma_row_address<LD>(queries) + (u32)part * 2);
            }
            if (i + 1 < n_steps)
                keep_sums(i + 1);
        }
        float factor[MT][2], one[MT][2];
#pragma unroll
        for (int m = 0; m < MT; m++)
            factor[m][0] = factor[m][1] = scale, one[m][0] = one[m][1] = 1.0f;
        const int n = w.len - w.first - first;
        mma_store_rows<S::D>(dk + at + first * S::KV_STRIDE, S::KV_STRIDE, n, part, of_k, factor);
        mma_store_rows<S::D>(dv + at + first * S::KV_STRIDE, S::KV_STRIDE, n, part, of_v, one);
    }
}

} /* namespace moe */

#endif
