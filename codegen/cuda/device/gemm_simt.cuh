/* f32 products by fused multiply-adds (gemm.cuh says what a product is): one chain of FMAs over ascending k an element, the bits of
 * the CPU's f32 products. Tensor cores would round the operands (TF32), so they have no part in it.
 *
 * A block of 256 threads has a tile of BM x BN of each product in registers, TM rows x 8 columns a thread; slices of 16 k come by way
 * of registers into two stages of shared memory, [16][BM] and [16][BN], whatever the operand's order in memory was. */
#ifndef MOE_DEVICE_GEMM_SIMT
#define MOE_DEVICE_GEMM_SIMT

namespace moe {

constexpr int SIMT_K = 16, SIMT_THREADS = 256;

/* Four elements at p, of which `live` (any int) are there; ALIGNED: p a multiple of 16 bytes, live of 4. */
template <bool ALIGNED> __device__ __forceinline__ void fetch4(const float *p, int live, float *v) {
    if constexpr (ALIGNED) {
        Words4 w = {0, 0, 0, 0};
        if (live > 0)
            w = load_words4(p);
        v[0] = __uint_as_float(w.x), v[1] = __uint_as_float(w.y);
        v[2] = __uint_as_float(w.z), v[3] = __uint_as_float(w.w);
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++)
            v[i] = i < live ? p[i] : 0.0f;
    }
}

/* A slice [SIMT_K][WIDTH] of an operand on its way. SPREAD: columns 8 t .. 8 t + 3 of all t come first in a row, then 8 t + 4 .. 8 t + 7:
 * threads that read 8 columns each as two times 16 bytes then find neighbours beside each other. Rows are 4 floats longer, which
 * parts the banks of the threads that write a column. */
template <int WIDTH, bool SPREAD> struct SimtSlice {
    static constexpr int STRIDE = WIDTH + 4, FLOATS = SIMT_K * STRIDE;
    static constexpr int QUADS = WIDTH * SIMT_K / 4 / SIMT_THREADS; /* a thread */
    static_assert(QUADS > 0, "a slice has something for every thread");
    float v[QUADS * 4];

    static __device__ __forceinline__ int place(int col) {
        return SPREAD ? (col >> 2 & 1) * (WIDTH / 2) + (col >> 3) * 4 + (col & 3) : col;
    }

    /* Operands whose k is contiguous: quad i is k 4 * (thread % 4) .. of column thread / 4 + 64 i. */
    static __device__ __forceinline__ int k_col(int i) {
        return (int)threadIdx.x / 4 + i * (SIMT_THREADS / 4);
    }
    static __device__ __forceinline__ int k_first() {
        return (int)threadIdx.x % 4 * 4;
    }
    __device__ __forceinline__ void put_k(float *slice) const {
#pragma unroll
        for (int i = 0; i < QUADS; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                slice[(k_first() + j) * STRIDE + place(k_col(i))] = v[i * 4 + j];
    }

    /* Operands whose rows are k: quad i is four columns of row row_k(i). */
    static __device__ __forceinline__ int row_k(int i) {
        return (int)threadIdx.x / (WIDTH / 4) + i * (SIMT_THREADS * 4 / WIDTH);
    }
    static __device__ __forceinline__ int row_col() {
        return (int)threadIdx.x % (WIDTH / 4) * 4;
    }
    __device__ __forceinline__ void put_rows(float *slice) const {
#pragma unroll
        for (int i = 0; i < QUADS; i++)
            store_words4(slice + row_k(i) * STRIDE + place(row_col()),
                         Words4{__float_as_uint(v[i * 4]), __float_as_uint(v[i * 4 + 1]),
                                __float_as_uint(v[i * 4 + 2]), __float_as_uint(v[i * 4 + 3])});
    }
};

/* A block's tile: thread t has rows t / (BN / 8) * TM .. and columns t % (BN / 8) * 8 .. */
template <int BM, int BN, int PRODUCTS> struct SimtTile {
    static constexpr int COLS = BN / TAIL_COLS, TM = BM * COLS / SIMT_THREADS;
    static constexpr int QUAD = TM < 4 ? TM : 4;
    static_assert(TM > 0 && TM % QUAD == 0, "no such tile");
    typedef SimtSlice<BM, false> A;
    typedef SimtSlice<BN, true> B;
    /* Floats of a stage: a, then b of each product. */
    static constexpr int STAGE = A::FLOATS + PRODUCTS * B::FLOATS;
    float c[PRODUCTS][TM][TAIL_COLS];

    static __device__ __forceinline__ int row0() {
        return (int)threadIdx.x / COLS * TM;
    }
    static __device__ __forceinline__ int col0() {
        return (int)threadIdx.x % COLS * TAIL_COLS;
    }
    __device__ __forceinline__ void zero() {
#pragma unroll
        for (int p = 0; p < PRODUCTS; p++)
#pragma unroll
            for (int i = 0; i < TM; i++)
#pragma unroll
                for (int j = 0; j < TAIL_COLS; j++)
                    c[p][i][j] = 0.0f;
    }
    __device__ __forceinline__ void multiply(const float *stage) {
        const float *a = stage + row0(), *b = stage + A::FLOATS + (int)threadIdx.x % COLS * 4;
#pragma unroll
        for (int k = 0; k < SIMT_K; k++) {
            float x[TM], y[TAIL_COLS];
#pragma unroll
            for (int i = 0; i < TM; i += QUAD)
                load_n<QUAD>(a + k * A::STRIDE + i, *(float(*)[QUAD])&x[i]);
#pragma unroll
            for (int p = 0; p < PRODUCTS; p++) {
                const float *row = b + p * B::FLOATS + k * B::STRIDE;
                load_n<4>(row, *(float(*)[4])&y[0]);
                load_n<4>(row + BN / 2, *(float(*)[4])&y[4]);
#pragma unroll
                for (int i = 0; i < TM; i++)
#pragma unroll
                    for (int j = 0; j < TAIL_COLS; j++)
                        c[p][i][j] = fmaf(x[i], y[j], c[p][i][j]);
            }
        }
    }
    /* Rows first .. end, columns col .. cols of the result. */
    template <class Tail>
    __device__ __forceinline__ void finish(int first, int end, int col, int cols, Tail &tail) {
        col += col0();
#pragma unroll
        for (int i = 0; i < TM; i++) {
            int row = first + row0() + i;
            tail_open(tail);
            if (row < end && col < cols) {
                float v[PRODUCTS][TAIL_COLS];
#pragma unroll
                for (int p = 0; p < PRODUCTS; p++)
#pragma unroll
                    for (int j = 0; j < TAIL_COLS; j++)
                        v[p][j] = c[p][i][j];
                tail(row, col, least(cols - col, TAIL_COLS), v);
            }
            tail_close<COLS>(tail, row < end && col < cols, row, col);
        }
    }
};

/* Slices 0 .. steps - 1 (at least one) through two stages: fetch(slice) into registers, put(stage), multiply(stage). */
template <class Fetch, class Put, class Multiply>
__device__ __forceinline__ void simt_slices(int steps, Fetch fetch, Put put, Multiply multiply) {
    fetch(0);
    put(0);
    __syncthreads();
    for (int s = 0; s < steps; s++) {
        if (s + 1 < steps)
            fetch(s + 1);
        multiply(s & 1);
        if (s + 1 < steps)
            put((s + 1) & 1);
        __syncthreads();
    }
}

/* The kernel: 256 threads, dynamic shared memory of two SimtTile::STAGE. ALIGNED_A, ALIGNED_B: rows of the operand are multiples of 4
 * elements, at multiples of 16 bytes. */
template <int BM, int BN, int PRODUCTS, bool TB, bool ALIGNED_A, bool ALIGNED_B, class Tail>
__device__ __forceinline__ void gemm_simt(const Gemm<float> &g, Tail tail) {
    typedef SimtTile<BM, BN, PRODUCTS> Block;
    typedef typename Block::A A;
    typedef typename Block::B B;
    MOE_SHARED(shared);
    float *stages = (float *)shared;
    GemmWalk<BM, BN> walk;
    walk.begin(g);
    GemmTile tile;
    for (int t = blockIdx.x; walk.find(t, tile); t += gridDim.x) {
        A a;
        B b[PRODUCTS];
        Block c;
        const float *rows[A::QUADS];
        u32 dead = 0;
#pragma unroll
        for (int i = 0; i < A::QUADS; i++) {
            int row = tile.row + A::k_col(i);
            rows[i] = gemm_row(g, row < tile.end ? row : tile.row) + A::k_first();
            dead |= row < tile.end ? 0u : 1u << i;
        }
        c.zero();
        if (g.start) {
#pragma unroll
            for (int i = 0; i < Block::TM; i++) {
                int row = tile.row + c.row0() + i, col = tile.col + c.col0();
                if (row < tile.end)
                    load_cols<false>(g.start + (i64)row * g.n + col, g.n - col, c.c[0][i]);
            }
        }
        const i64 group = (i64)tile.group * g.b_group;
        simt_slices(
            ceil_div(g.k, SIMT_K),
            [&](int slice) {
                const int k0 = slice * SIMT_K;
#pragma unroll
                for (int i = 0; i < A::QUADS; i++)
                    fetch4<ALIGNED_A>(rows[i] + k0, dead >> i & 1u ? 0 : g.k - k0 - A::k_first(), a.v + i * 4);
#pragma unroll
                for (int p = 0; p < PRODUCTS; p++)
#pragma unroll
                    for (int i = 0; i < B::QUADS; i++) {
                        const float *from = g.b[p] + group;
                        if constexpr (TB) {
                            int col = tile.col + B::k_col(i), k = k0 + B::k_first();
                            fetch4<ALIGNED_B>(from + col * g.ldb + k, col < g.n ? g.k - k : 0, b[p].v + i * 4);
                        } else {
                            int col = tile.col + B::row_col(), k = k0 + B::row_k(i);
                            fetch4<ALIGNED_B>(from + k * g.ldb + col, k < g.k ? g.n - col : 0, b[p].v + i * 4);
                        }
                    }
            },
            [&](int stage) {
                float *to = stages + stage * Block::STAGE;
                a.put_k(to);
#pragma unroll
                for (int p = 0; p < PRODUCTS; p++) {
                    float *slice = to + A::FLOATS + p * B::FLOATS;
                    if constexpr (TB)
                        b[p].put_k(slice);
                    else
                        b[p].put_rows(slice);
                }
            },
            [&](int stage) { c.multiply(stages + stage * Block::STAGE); });
        c.finish(tile.row, tile.end, tile.col, g.n, tail);
    }
}

} /* namespace moe */

#endif
