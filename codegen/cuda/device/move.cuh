/* Rows between token order and expert order, and rows of a table by id: each result row is read once and written once, with as many
 * loads on the way at a time as registers allow. A row belongs to LANES threads (a power of two, at most a warp). */
#ifndef MOE_DEVICE_MOVE
#define MOE_DEVICE_MOVE

namespace moe {

constexpr int MOVE_THREADS = 256;

__device__ __forceinline__ void clear(u32 &w) {
    w = 0;
}
__device__ __forceinline__ void clear(bf16 &w) {
    w = 0;
}
__device__ __forceinline__ void clear(Words2 &w) {
    w = Words2{0, 0};
}
__device__ __forceinline__ void clear(Words4 &w) {
    w = Words4{0, 0, 0, 0};
}

/* N words by LANES threads, of which this is thread `at`. */
template <class Word, int N, int LANES>
__device__ __forceinline__ void copy_row(const Word *from, Word *to, int at) {
    constexpr int EACH = (N + LANES - 1) / LANES, U = EACH < 8 ? EACH : 8, STEP = LANES * U,
                  WHOLE = N / STEP * STEP;
    for (int i = at; i < WHOLE; i += STEP) {
        Word w[U];
#pragma unroll
        for (int u = 0; u < U; u++)
            w[u] = from[i + u * LANES];
#pragma unroll
        for (int u = 0; u < U; u++)
            to[i + u * LANES] = w[u];
    }
    if constexpr (WHOLE < N) {
        Word w[U];
#pragma unroll
        for (int u = 0; u < U; u++)
            if (WHOLE + at + u * LANES < N)
                w[u] = from[WHOLE + at + u * LANES];
#pragma unroll
        for (int u = 0; u < U; u++)
            if (WHOLE + at + u * LANES < N)
                to[WHOLE + at + u * LANES] = w[u];
    }
}

template <class Word, int N, int LANES>
__device__ __forceinline__ void clear_row(Word *to, int at) {
    Word none;
    clear(none);
    for (int i = at; i < N; i += LANES)
        to[i] = none;
}

/* Row r of out is row source(r) of x, zeros if that is negative; rows have N words. */
template <class Word, int N, int LANES, class Source>
__device__ __forceinline__ void move_rows(Rows live, const Source &source, const Word *x,
                                          Word *out) {
    constexpr int PER_BLOCK = MOVE_THREADS / LANES;
    int at = threadIdx.x % LANES;
    for (i64 r = live.first + (i64)blockIdx.x * PER_BLOCK + threadIdx.x / LANES; r < live.end;
         r += (i64)gridDim.x * PER_BLOCK) {
        i64 from = source(r);
        if (from >= 0)
            copy_row<Word, N, LANES>(x + from * N, out + r * N, at);
        else
            clear_row<Word, N, LANES>(out + r * N, at);
    }
}

/* dispatch: the token of choice src[r]. */
struct TokenOfRow {
    const i32 *src;
    int k;
    __device__ __forceinline__ i64 operator()(i64 r) const { return src[r] / k; }
};

/* embedding: the row of token t's id in a table of n rows, the first of which is that of id `first`; -1: not there. */
struct RowOfId {
    const i32 *ids;
    i64 first, n;
    __device__ __forceinline__ i64 operator()(i64 t) const {
        i64 row = ids[t] - first;
        return row >= 0 && row < n ? row : -1;
    }
};

/* E columns at `at` of a token: the sum over its K rows, ascending. */
template <class T, int K, int COLS, int E>
__device__ __forceinline__ void gather_columns(const T *y, const i32 *rows, int at,
                                               float (&sum)[E]) {
    constexpr int U = K < 16 ? K : 16;
#pragma unroll
    for (int j0 = 0; j0 < K; j0 += U) {
        float v[U][E];
#pragma unroll
        for (int u = 0; u < U; u++)
            if (j0 + u < K)
                load_n<E>(y + (i64)rows[j0 + u] * COLS + at, v[u]);
#pragma unroll
        for (int u = 0; u < U; u++)
#pragma unroll
            for (int i = 0; i < E; i++)
                if (j0 + u < K)
                    sum[i] = j0 + u == 0 ? v[u][i] : sum[i] + v[u][i];
    }
}

/* gather_sum: E columns a thread at a time; COLS is a multiple of E. */
template <class T, int K, int COLS, int E, int LANES>
__device__ __forceinline__ void gather_sum(Rows live, const T *y, const i32 *inv, float *out) {
    constexpr int PER_BLOCK = MOVE_THREADS / LANES, N = COLS / E;
    constexpr int W = K * E >= 32 || N <= LANES ? 1
                      : K * E >= 16             ? 2
                                                : 4; /* columns on the way at a time */
    int at = threadIdx.x % LANES;
    for (i64 t = live.first + (i64)blockIdx.x * PER_BLOCK + threadIdx.x / LANES; t < live.end;
         t += (i64)gridDim.x * PER_BLOCK) {
        i32 rows[K];
#pragma unroll
        for (int j = 0; j < K; j++)
            rows[j] = inv[t * K + j];
        for (int c = at; c < N; c += LANES * W) {
            float sum[W][E];
#pragma unroll
            for (int w = 0; w < W; w++)
                if (c + w * LANES < N)
                    gather_columns<T, K, COLS, E>(y, rows, (c + w * LANES) * E, sum[w]);
#pragma unroll
            for (int w = 0; w < W; w++)
                if (c + w * LANES < N)
                    store_n<E>(out + t * COLS + (c + w * LANES) * E, sum[w]);
        }
    }
}

/* dispatch_weight, collect_weight: out[i] = x[index[i]]. */
__device__ __forceinline__ void pick(i64 first, i64 end, const float *x, const i32 *index,
                                     float *out) {
    for (i64 i = first + (i64)blockIdx.x * blockDim.x + threadIdx.x; i < end;
         i += (i64)gridDim.x * blockDim.x)
        out[i] = x[index[i]];
}

} /* namespace moe */

#endif
