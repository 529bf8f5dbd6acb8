/* bf16 products by mma.sync (sm_80 and later; gemm.cuh says what a product is): block tiles of BM x BN for each product, STAGES
 * slices of 64 k in shared memory, filled by cp.async.
 *
 * In shared memory operands are tiles of rows of 64 elements (128 bytes), whose 16-byte chunk c of row r lies at chunk c ^ (r % 8):
 * eight rows at one chunk are in eight different banks, and so is what ldmatrix reads. It is the layout of a tensor map with
 * a swizzle of 128 bytes, too. An operand whose k is contiguous is one such tile of all its rows; one whose rows are k is as many
 * tiles, of 64 rows each, as 64 goes into its columns. */
#ifndef MOE_DEVICE_GEMM_MMA
#define MOE_DEVICE_GEMM_MMA

namespace moe {

constexpr int MMA_K = 64;       /* k of a stage */
constexpr int MMA_ROW = 128;    /* bytes of a row of a tile in shared memory */

/* ---- operands on their way into shared memory ---- */

/* 8 elements at p, of which `live` (any int) are there, to byte `at` of a stage; ALIGNED: p a multiple of 16 bytes, live of 8. */
template <bool ALIGNED>
__device__ __forceinline__ void copy_chunk(char *stage, u32 stage_addr, u32 at, const bf16 *p, int live) {
    if constexpr (ALIGNED) {
        cp_async16(stage_addr + at, p, live > 0 ? 16u : 0u);
    } else {
        u32 w[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 low = 2 * i < live ? p[2 * i] : 0u, high = 2 * i + 1 < live ? p[2 * i + 1] : 0u;
            w[i] = low | high << 16;
        }
        store_words4(stage + at, Words4{w[0], w[1], w[2], w[3]});
    }
}

/* Rows of k: thread t copies chunk t % 8 of rows t / 8, t / 8 + THREADS / 8, ... `ROWS` of them. */
template <int ROWS, int THREADS> struct KTile {
    static constexpr int PASSES = ROWS * 8 / THREADS, STEP = THREADS / 8;
    static_assert(ROWS * 8 % THREADS == 0 && STEP % 8 == 0, "threads do not divide the tile");
    const bf16 *p[PASSES]; /* at the thread's chunk of k = 0; rows that are not there: anything */
    u32 dead;              /* bit i: row of pass i is not there */
    u32 at;                /* byte of pass 0 in the tile */
    int live;              /* elements from p on */

    static __device__ __forceinline__ int row(int pass) {
        return (int)threadIdx.x / 8 + pass * STEP;
    }
    __device__ __forceinline__ void begin(int k) {
        int r = row(0), chunk = (int)threadIdx.x % 8;
        at = (u32)(r * MMA_ROW + ((chunk ^ (r & 7)) << 4));
        live = k - chunk * 8;
        dead = 0;
    }
    /* Row of pass i; NULL: not there. */
    __device__ __forceinline__ void set(int i, const bf16 *row_start, bool is_there) {
        p[i] = row_start + (int)threadIdx.x % 8 * 8;
        dead |= is_there ? 0u : 1u << i;
    }
    template <bool ALIGNED>
    __device__ __forceinline__ void copy(char *stage, u32 stage_addr, u32 tile, int k0) {
#pragma unroll
        for (int i = 0; i < PASSES; i++)
            copy_chunk<ALIGNED>(stage, stage_addr, tile + at + (u32)(i * STEP * MMA_ROW), p[i] + k0,
                                dead >> i & 1u ? 0 : live - k0);
    }
};

/* Rows that are k, of COLS columns each: thread t copies chunk t % (COLS / 8) of rows t / (COLS / 8) + .. of a stage's 64. */
template <int COLS, int THREADS> struct RowTile {
    static constexpr int CHUNKS = COLS / 8, STEP = THREADS / CHUNKS, PASSES = MMA_K / STEP;
    static_assert(COLS % 64 == 0 && THREADS % CHUNKS == 0 && STEP % 8 == 0 && PASSES > 0,
                  "threads do not divide the tile");
    u32 at;
    int live; /* columns from the thread's chunk on */

    static __device__ __forceinline__ int row(int pass) {
        return (int)threadIdx.x / CHUNKS + pass * STEP;
    }
    static __device__ __forceinline__ int col() {
        return (int)threadIdx.x % CHUNKS * 8;
    }
    __device__ __forceinline__ void begin(int cols) {
        int r = row(0), chunk = (int)threadIdx.x % CHUNKS;
        at = (u32)(chunk / 8 * (MMA_K * MMA_ROW) + r * MMA_ROW + ((chunk % 8 ^ (r & 7)) << 4));
        live = cols - col();
    }
    /* Pass i from p, the thread's chunk of its row. */
    template <bool ALIGNED>
    __device__ __forceinline__ void copy(char *stage, u32 stage_addr, u32 tile, int i, const bf16 *p,
                                         bool is_there) {
        copy_chunk<ALIGNED>(stage, stage_addr, tile + at + (u32)(i * STEP * MMA_ROW), p,
                            is_there ? live : 0);
    }
};

/* ---- a block's tile ---- */

/* Warps are WM x WN; A_ROWS_K, B_ROWS_K: the operand's rows are k. A stage is a, then b of each product. */
template <int BM, int BN, int WM, int WN, int PRODUCTS, bool A_ROWS_K, bool B_ROWS_K> struct MmaTile {
    static constexpr int THREADS = WM * WN * 32;
    static constexpr int TM = BM / WM, TN = BN / WN;  /* of a warp */
    static constexpr int MT = TM / 16, NT = TN / 8;   /* in mma tiles */
    static constexpr u32 A_BYTES = BM * MMA_ROW, B_BYTES = BN * MMA_ROW;
    static constexpr u32 STAGE = A_BYTES + PRODUCTS * B_BYTES;
    /* Rows of 16 of a warp's tile in shared memory, as the tail reads them: 8 more floats a row part the banks. */
    static constexpr int OUT_STRIDE = PRODUCTS * TN + 8;
    static_assert(TM % 16 == 0 && TN % 16 == 0 && (TM <= 64 || !A_ROWS_K) && (TN <= 64 || !B_ROWS_K) &&
                      THREADS / 32 * 16 * OUT_STRIDE * 4 <= 2 * (int)STAGE,
                  "no such tile");

    float c[PRODUCTS][MT][NT][4];
    int m0, n0;     /* of the warp's tile in the block's */
    u32 a_at, b_at; /* byte of the lane's first ldmatrix row */

    __device__ __forceinline__ void begin() {
        m0 = warp() / WN * TM, n0 = warp() % WN * TN;
        int l = lane(), low = l & 7, mid = l >> 3 & 1, high = l >> 4;
        if constexpr (A_ROWS_K) /* matrices: m, m + 8, then those of k + 8 */
            a_at = (u32)(m0 / 64 * (MMA_K * MMA_ROW) + (low + high * 8) * MMA_ROW +
                         ((m0 % 64 / 8 + mid) ^ low) * 16);
        else
            a_at = (u32)((m0 + low + mid * 8) * MMA_ROW + (high ^ low) * 16);
        if constexpr (B_ROWS_K) /* matrices: k, k + 8, then those of n + 8 */
            b_at = (u32)(n0 / 64 * (MMA_K * MMA_ROW) + (low + mid * 8) * MMA_ROW +
                         ((n0 % 64 / 8 + high) ^ low) * 16);
        else
            b_at = (u32)((n0 + low + high * 8) * MMA_ROW + (mid ^ low) * 16);
    }

    __device__ __forceinline__ void zero() {
#pragma unroll
        for (int p = 0; p < PRODUCTS; p++)
#pragma unroll
            for (int i = 0; i < MT; i++)
#pragma unroll
                for (int j = 0; j < NT; j++)
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        c[p][i][j][e] = 0.0f;
    }

    /* Element e of mma tile (i, j): row and column in the block's tile. */
    __device__ __forceinline__ int row_of(int i, int e) const {
        return m0 + i * 16 + lane() / 4 + (e >> 1) * 8;
    }
    __device__ __forceinline__ int col_of(int j, int e) const {
        return n0 + j * 8 + lane() % 4 * 2 + (e & 1);
    }

    /* c += a b over the 64 k of a stage. Bits of chunk numbers that a step changes are those that the lane's part leaves alone, so a
     * step is one XOR. */
    __device__ __forceinline__ void multiply(u32 stage) {
#pragma unroll
        for (int kk = 0; kk < MMA_K / 16; kk++) {
            u32 a[MT][4];
#pragma unroll
            for (int i = 0; i < MT; i++) {
                if constexpr (A_ROWS_K)
                    ldmatrix_x4_trans(a[i], stage + (a_at ^ (u32)(i << 5)) + (u32)(kk * 16 * MMA_ROW));
                else
                    ldmatrix_x4(a[i], stage + (a_at ^ (u32)(kk << 5)) + (u32)(i * 16 * MMA_ROW));
            }
#pragma unroll
            for (int p = 0; p < PRODUCTS; p++) {
                u32 from = stage + A_BYTES + p * B_BYTES;
#pragma unroll
                for (int j = 0; j < NT / 2; j++) {
                    u32 b[4];
                    if constexpr (B_ROWS_K)
                        ldmatrix_x4_trans(b, from + (b_at ^ (u32)(j << 5)) + (u32)(kk * 16 * MMA_ROW));
                    else
                        ldmatrix_x4(b, from + (b_at ^ (u32)(kk << 5)) + (u32)(j * 16 * MMA_ROW));
#pragma unroll
                    for (int i = 0; i < MT; i++) {
                        mma_bf16(c[p][i][2 * j], a[i], b[0], b[1]);
                        mma_bf16(c[p][i][2 * j + 1], a[i], b[2], b[3]);
                    }
                }
            }
        }
    }

    /* Hands the tile to the tail, 16 rows of each warp at a time, by way of shared memory (all of it free): rows row0 .. end, columns
     * col0 .. cols. Ends with a barrier. */
    template <class Tail>
    __device__ __forceinline__ void finish(char *shared, int row0, int end, int col0, int cols, Tail &tail) {
        float *mine = (float *)shared + warp() * (16 * OUT_STRIDE);
        constexpr int GROUPS = TN / TAIL_COLS; /* of columns of a row */
#pragma unroll
        for (int i = 0; i < MT; i++) {
#pragma unroll
            for (int p = 0; p < PRODUCTS; p++)
#pragma unroll
                for (int j = 0; j < NT; j++)
#pragma unroll
                    for (int half = 0; half < 2; half++)
                        *(Words2 *)(mine + (lane() / 4 + half * 8) * OUT_STRIDE + p * TN + j * 8 +
                                    lane() % 4 * 2) =
                            Words2{__float_as_uint(c[p][i][j][half * 2]),
                                   __float_as_uint(c[p][i][j][half * 2 + 1])};
            __syncwarp();
#pragma unroll
            for (int s = 0; s < 16 * GROUPS / 32; s++) {
                int at = lane() + s * 32, r = at / GROUPS, g = at % GROUPS * TAIL_COLS;
                int row = row0 + m0 + i * 16 + r, col = col0 + n0 + g;
                tail_open(tail);
                if (row < end && col < cols) {
                    float v[PRODUCTS][TAIL_COLS];
#pragma unroll
                    for (int p = 0; p < PRODUCTS; p++)
                        load_n<TAIL_COLS>(mine + r * OUT_STRIDE + p * TN + g, v[p]);
                    tail(row, col, least(cols - col, TAIL_COLS), v);
                }
                tail_close<GROUPS>(tail, row < end && col < cols, row, col);
            }
            __syncwarp();
        }
        __syncthreads();
    }
};

/* Slices 0 .. steps - 1: load(slice, stage number) fills a stage with copies, multiply(stage number) uses it. */
template <int STAGES, class Load, class Multiply>
__device__ __forceinline__ void mma_slices(int steps, Load load, Multiply multiply) {
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < steps)
            load(s, s);
        cp_async_commit();
    }
    int use = 0, fill = STAGES - 1;
    for (int s = 0; s < steps; s++) {
        cp_async_wait<STAGES - 2>();
        __syncthreads(); /* slice s is there for all; all have used the stage that is filled next */
        if (s + STAGES - 1 < steps)
            load(s + STAGES - 1, fill);
        cp_async_commit();
        multiply(use);
        use = use + 1 == STAGES ? 0 : use + 1;
        fill = fill + 1 == STAGES ? 0 : fill + 1;
    }
    cp_async_wait<0>();
    __syncthreads();
}

/* The kernel: dynamic shared memory of STAGES * MmaTile::STAGE bytes, WM * WN warps. ALIGNED_A, ALIGNED_B: rows of the operand are
 * multiples of 8 elements, at multiples of 16 bytes. */
template <int BM, int BN, int WM, int WN, int STAGES, int PRODUCTS, bool TB, bool ALIGNED_A, bool ALIGNED_B,
          class Tail>
__device__ __forceinline__ void gemm_mma(const Gemm<bf16> &g, Tail tail) {
    typedef MmaTile<BM, BN, WM, WN, PRODUCTS, false, !TB> Block;
    MOE_SHARED(shared);
    const u32 base = shared_addr(shared);
    Block c;
    c.begin();
    GemmWalk<BM, BN> walk;
    walk.begin(g);
    GemmTile tile;
    const int steps = ceil_div(g.k, MMA_K);
    for (int t = blockIdx.x; walk.find(t, tile); t += gridDim.x) {
        KTile<BM, Block::THREADS> a;
        a.begin(g.k);
#pragma unroll
        for (int i = 0; i < a.PASSES; i++) {
            int row = tile.row + a.row(i);
            a.set(i, gemm_row(g, row < tile.end ? row : tile.row), row < tile.end);
        }
        c.zero();
        if (g.start) {
#pragma unroll
            for (int i = 0; i < Block::MT; i++)
#pragma unroll
                for (int j = 0; j < Block::NT; j++)
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        int row = tile.row + c.row_of(i, e), col = tile.col + c.col_of(j, e);
                        if (row < tile.end && col < g.n)
                            c.c[0][i][j][e] = g.start[(i64)row * g.n + col];
                    }
        }
        const i64 group = (i64)tile.group * g.b_group;
        const bf16 *b[PRODUCTS];
#pragma unroll
        for (int p = 0; p < PRODUCTS; p++)
            b[p] = g.b[p] + group;
        auto load_a = [&](int slice, u32 stage) {
            a.template copy<ALIGNED_A>(shared + stage, base + stage, 0, slice * MMA_K);
        };
        auto multiply = [&](int stage) { c.multiply(base + (u32)stage * Block::STAGE); };
        if constexpr (TB) {
            typedef KTile<BN, Block::THREADS> Tile;
            const int first = tile.col + Tile::row(0), chunk = (int)threadIdx.x % 8 * 8;
            Tile part;
            part.begin(g.k);
            mma_slices<STAGES>(
                steps,
                [&](int slice, int number) {
                    u32 stage = (u32)number * Block::STAGE;
                    load_a(slice, stage);
#pragma unroll
                    for (int p = 0; p < PRODUCTS; p++)
#pragma unroll
                        for (int i = 0; i < Tile::PASSES; i++) {
                            int col = first + i * Tile::STEP;
                            copy_chunk<ALIGNED_B>(
                                shared + stage, base + stage,
                                Block::A_BYTES + p * Block::B_BYTES + part.at + (u32)(i * Tile::STEP * MMA_ROW),
                                b[p] + col * g.ldb + slice * MMA_K + chunk,
                                col < g.n ? part.live - slice * MMA_K : 0);
                        }
                },
                multiply);
        } else {
            typedef RowTile<BN, Block::THREADS> Tile;
            Tile part;
            part.begin(g.n - tile.col);
            mma_slices<STAGES>(
                steps,
                [&](int slice, int number) {
                    u32 stage = (u32)number * Block::STAGE;
                    load_a(slice, stage);
#pragma unroll
                    for (int p = 0; p < PRODUCTS; p++)
#pragma unroll
                        for (int i = 0; i < Tile::PASSES; i++) {
                            int row = slice * MMA_K + Tile::row(i);
                            part.template copy<ALIGNED_B>(shared + stage, base + stage,
                                                          Block::A_BYTES + p * Block::B_BYTES, i,
                                                          b[p] + row * g.ldb + tile.col + Tile::col(), row < g.k);
                        }
                },
                multiply);
        }
        c.finish(shared, tile.row, tile.end, tile.col, g.n, tail);
    }
}

} /* namespace moe */

#endif
