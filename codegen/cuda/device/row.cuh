/* Rows of a row group (kind_row.c): sums over a row's team of threads, and ops that address a row's columns by id.
 *
 * A team is WIDTH threads (a power of two) of a block of THREADS; all teams of a block run the same row code in step. Columns
 * of a row lie at (chunk * width + thread) * n + 0 .. n-1, where width and n follow from the column count alone. Threads and
 * columns beyond a row hold +0 or -inf, which change no bit: sums are trees by halves, the far threads first. */
#ifndef MOE_DEVICE_ROW
#define MOE_DEVICE_ROW

namespace moe {

template <int WIDTH> __device__ __forceinline__ void team_sync() {
    if constexpr (WIDTH <= 32)
        __syncwarp();
    else
        __syncthreads();
}

template <int WIDTH, int THREADS> __device__ __forceinline__ float team_sum(float v) {
    if constexpr (WIDTH <= 32) {
        return warp_sum<WIDTH>(v);
    } else {
        constexpr int WARPS = WIDTH / 32;
        __shared__ float of_warp[THREADS / 32];
        v = warp_sum(v);
        __syncthreads();
        if (lane() == 0)
            of_warp[warp()] = v;
        __syncthreads();
        return warp_sum<WARPS>(of_warp[warp() / WARPS * WARPS + lane() % WARPS]);
    }
}

template <int WIDTH, int THREADS> __device__ __forceinline__ float team_max(float v) {
    if constexpr (WIDTH <= 32) {
        return warp_max<WIDTH>(v);
    } else {
        constexpr int WARPS = WIDTH / 32;
        __shared__ float of_warp[THREADS / 32];
        v = warp_max(v);
        __syncthreads();
        if (lane() == 0)
            of_warp[warp()] = v;
        __syncthreads();
        return warp_max<WARPS>(of_warp[warp() / WARPS * WARPS + lane() % WARPS]);
    }
}

/* A value and its column as one integer: the largest key is the largest value with the lowest column. NaN counts as -inf,
 * -0 as +0. No key is 0. */
__device__ __forceinline__ u64 order_key(float x, int col) {
    u32 u = __float_as_uint((x != x ? -MOE_INFINITY : x) + 0.0f);
    u32 order = u & 0x80000000u ? ~u : u | 0x80000000u;
    return (u64)order << 32 | (0xffffffffu - (u32)col);
}

template <int WIDTH> __device__ __forceinline__ u64 warp_largest(u64 key) {
#pragma unroll
    for (int d = WIDTH / 2; d > 0; d /= 2) {
        u32 high = (u32)__shfl_xor_sync(0xffffffffu, (int)(u32)(key >> 32), d);
        u32 low = (u32)__shfl_xor_sync(0xffffffffu, (int)(u32)key, d);
        key = most(key, (u64)high << 32 | low);
    }
    return key;
}

template <int WIDTH, int THREADS> __device__ __forceinline__ u64 team_largest(u64 key) {
    if constexpr (WIDTH <= 32) {
        return warp_largest<WIDTH>(key);
    } else {
        constexpr int WARPS = WIDTH / 32;
        __shared__ u64 of_warp[THREADS / 32];
        key = warp_largest<32>(key);
        __syncthreads();
        if (lane() == 0)
            of_warp[warp()] = key;
        __syncthreads();
        return warp_largest<WARPS>(of_warp[warp() / WARPS * WARPS + lane() % WARPS]);
    }
}

/* ids[0 .. K-1]: the columns of the K largest of x[0 .. COLS-1], descending, ties to the lower column. t: the thread of the
 * team. */
template <int WIDTH, int THREADS, int COLS, int K, class T>
__device__ __forceinline__ void row_topk(const T *x, i32 *ids, int t) {
    constexpr int MINE = (COLS + WIDTH - 1) / WIDTH;
    if constexpr (MINE <= 16) {
        u64 key[MINE];
#pragma unroll
        for (int i = 0; i < MINE; i++) {
            int col = t + i * WIDTH;
            key[i] = col < COLS ? order_key(load(x + (col < COLS ? col : 0)), col) : 0;
        }
#pragma unroll 1
        for (int k = 0; k < K; k++) {
            u64 best = key[0];
#pragma unroll
            for (int i = 1; i < MINE; i++)
                best = most(best, key[i]);
            best = team_largest<WIDTH, THREADS>(best);
            if (t == 0)
                ids[k] = (i32)(0xffffffffu - (u32)best);
#pragma unroll
            for (int i = 0; i < MINE; i++)
                key[i] = key[i] == best ? 0 : key[i];
        }
    } else { /* too many to hold: the next largest below the last */
        u64 last = ~(u64)0;
#pragma unroll 1
        for (int k = 0; k < K; k++) {
            u64 best = 0;
            for (int col = t; col < COLS; col += WIDTH) {
                u64 key = order_key(load(x + col), col);
                best = key < last ? most(best, key) : best;
            }
            last = team_largest<WIDTH, THREADS>(best);
            if (t == 0)
                ids[k] = (i32)(0xffffffffu - (u32)last);
        }
    }
}

/* out[j] = x[ids[j]], j < K. */
template <int WIDTH, int K, class T, class I, class O>
__device__ __forceinline__ void row_take(const T *x, const I *ids, O *out, int t) {
    for (int j = t; j < K; j += WIDTH)
        store(out + j, load(x + ids[j]));
}

/* out[0 .. COLS-1]: zeros but x[j] at ids[j], j < K. */
template <int WIDTH, int K, int COLS, class T, class I, class O>
__device__ __forceinline__ void row_put(const T *x, const I *ids, O *out, int t) {
    for (int col = t; col < COLS; col += WIDTH)
        store(out + col, 0.0f);
    team_sync<WIDTH>();
    for (int j = t; j < K; j += WIDTH)
        store(out + ids[j], load(x + j));
}

} /* namespace moe */

#endif
