/* bf16 products by wgmma (sm_90a; gemm.cuh says what a product is): tiles of 128 x BN for each product, 64 rows to each of two
 * warpgroups of consumers; a third one, the producer, fills STAGES slices of 64 k in shared memory ahead of them, over the ends of
 * tiles. Blocks stay and take tile after tile.
 *
 * A stage is a, then b of each product, as a tensor map with a swizzle of 128 bytes lays them down (gemm_mma.cuh has the same
 * layout). Operands whose k is contiguous are one tile of rows of 64 k; b whose rows are k is BN / 64 tiles of 64 rows each.
 * Rows that stand next to each other come by tensor map; gathered ones by copies of 16 bytes from all threads of the producer.
 * Both arrive at the stage's barrier `full`; the consumers free it at `empty`. */
#ifndef MOE_DEVICE_GEMM_HOPPER
#define MOE_DEVICE_GEMM_HOPPER

namespace moe {

constexpr int HOPPER_THREADS = 384; /* consumers, then the producer */
constexpr int HOPPER_M = 128;       /* rows of a tile */
constexpr int HOPPER_K = 64;        /* k of a stage: 128 bytes */

/* Where things are in shared memory. */
template <int BN, int STAGES, int PRODUCTS> struct HopperStages {
    static constexpr u32 A_BYTES = HOPPER_M * 128, B_BYTES = BN * 128;
    static constexpr u32 STAGE = A_BYTES + PRODUCTS * B_BYTES;
    /* A warp's tile on its way to the tail: 8 rows of OUT_COLS floats, 8 more floats a row part the banks. */
    static constexpr int OUT_COLS = 64, OUT_STRIDE = OUT_COLS + 8;
    static constexpr u32 OUT = 8 * OUT_STRIDE * 4;
    static constexpr u32 BARRIERS = STAGES * STAGE + 8 * OUT;
    static constexpr u32 BYTES = BARRIERS + 16 * STAGES + 1024; /* 1024: to a multiple of 1024 */
};

/* Stages in turn, for producer and consumers alike: which one, and the parity of its phase. */
template <int STAGES> struct HopperTurn {
    int stage;
    u32 parity;
    __device__ __forceinline__ void next() {
        if (++stage == STAGES)
            stage = 0, parity ^= 1u;
    }
};

/* One 64 x BN part of each product, in the registers of a warpgroup. */
template <int BN, int PRODUCTS> struct HopperTile {
    static constexpr int COUNT = BN / 2;
    float c[PRODUCTS][COUNT];

    /* Element i of a product: row of the warpgroup's 64, and column. */
    static __device__ __forceinline__ int row_of(int i) {
        return warp() % 4 * 16 + lane() / 4 + (i >> 1 & 1) * 8;
    }
    static __device__ __forceinline__ int col_of(int i) {
        return i / 4 * 8 + lane() % 4 * 2 + (i & 1);
    }

    __device__ __forceinline__ void zero() {
#pragma unroll
        for (int p = 0; p < PRODUCTS; p++)
#pragma unroll
            for (int i = 0; i < COUNT; i++)
                c[p][i] = 0.0f;
    }
    __device__ __forceinline__ void hold() {
#pragma unroll
        for (int p = 0; p < PRODUCTS; p++)
            wgmma_hold(c[p]);
    }

    /* c += a b over the 64 k of a stage; a: the warpgroup's rows, b: of product 0, the next one's B_BYTES behind. A_ROWS_K, B_ROWS_K:
     * the operand's rows are k. */
    template <bool A_ROWS_K, bool B_ROWS_K, u32 B_BYTES>
    __device__ __forceinline__ void multiply(u32 a, u32 b) {
#pragma unroll
        for (int kk = 0; kk < HOPPER_K / 16; kk++) {
            const u64 of_a = wgmma_desc(a + (A_ROWS_K ? kk * 2048 : kk * 32), 8192, 1024);
#pragma unroll
            for (int p = 0; p < PRODUCTS; p++) {
                const u64 of_b = wgmma_desc(b + p * B_BYTES + (B_ROWS_K ? kk * 2048 : kk * 32), 8192, 1024);
                wgmma<BN, A_ROWS_K, B_ROWS_K>(c[p], of_a, of_b);
            }
        }
    }

    /* Hands the part to the tail, 8 rows of a warp at a time, by way of the warp's OUT bytes: rows row0 .. end, columns col0 ..
     * cols. */
    template <class Stages, class Tail>
    __device__ __forceinline__ void finish(float *mine, int row0, int end, int col0, int cols, Tail &tail) {
        constexpr int WIDTH = Stages::OUT_COLS / PRODUCTS; /* columns of each product at a time */
        constexpr int GROUPS = WIDTH / TAIL_COLS, STRIDE = Stages::OUT_STRIDE;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int first = row0 + warp() % 4 * 16 + half * 8;
#pragma unroll
            for (int w = 0; w < BN / WIDTH; w++) {
                __syncwarp();
#pragma unroll
                for (int p = 0; p < PRODUCTS; p++)
#pragma unroll
                    for (int j = 0; j < WIDTH / 8; j++) {
                        const int at = (w * (WIDTH / 8) + j) * 4 + half * 2;
                        *(Words2 *)(mine + lane() / 4 * STRIDE + p * WIDTH + j * 8 + lane() % 4 * 2) =
                            Words2{__float_as_uint(c[p][at]), __float_as_uint(c[p][at + 1])};
                    }
                __syncwarp();
#pragma unroll
                for (int s = 0; s < 8 * GROUPS / 32; s++) {
                    const int i = lane() + s * 32, r = i / GROUPS, g = i % GROUPS * TAIL_COLS;
                    const int row = first + r, col = col0 + w * WIDTH + g;
                    tail_open(tail);
                    if (row < end && col < cols) {
                        float v[PRODUCTS][TAIL_COLS];
#pragma unroll
                        for (int p = 0; p < PRODUCTS; p++)
                            load_n<TAIL_COLS>(mine + r * STRIDE + p * WIDTH + g, v[p]);
                        tail(row, col, least(cols - col, TAIL_COLS), v);
                    }
                    tail_close<GROUPS>(tail, row < end && col < cols, row, col);
                }
            }
        }
    }
};

/* ---- the producer ---- */

/* The producer's part of a stage of gathered rows: thread t of 128 copies chunk t % 8 of rows t / 8 + 16 i. Rows that are not there
 * are zeros. */
struct HopperGather {
    static constexpr int PASSES = HOPPER_M / 16;
    const bf16 *p[PASSES];
    u32 dead, at;

    __device__ __forceinline__ void begin(const Gemm<bf16> &g, const GemmTile &tile, int thread) {
        const int chunk = thread % 8, r = thread / 8;
        dead = 0;
        at = (u32)(r * 128 + ((chunk ^ (r & 7)) << 4));
#pragma unroll
        for (int i = 0; i < PASSES; i++) {
            const int row = tile.row + r + 16 * i;
            dead |= row < tile.end ? 0u : 1u << i;
            p[i] = gemm_row(g, row < tile.end ? row : tile.row) + chunk * 8;
        }
    }
    /* k0: of the stage; live: elements from the thread's chunk on, 8 or more where they are there. */
    __device__ __forceinline__ void copy(u32 stage, int k0, int live) const {
#pragma unroll
        for (int i = 0; i < PASSES; i++)
            cp_async16(stage + at + (u32)(i * 16 * 128), live > 0 ? p[i] + k0 : p[i],
                       live > 0 && !(dead >> i & 1u) ? 16 : 0);
    }
};

/* b of one product, columns col .. col + BN of group `group`, k from k0 on. */
template <int BN, bool TB>
__device__ __forceinline__ void hopper_load_b(u32 dst, const MoeMap &map, int col, int k0, int group, u32 full) {
    if constexpr (TB) {
        tma_load_3d(dst, map, k0, col, group, full);
    } else {
#pragma unroll
        for (int j = 0; j < BN / 64; j++)
            tma_load_3d(dst + j * 8192, map, col + j * 64, k0, group, full);
    }
}

/* ---- the kernel ---- */

/* HOPPER_THREADS threads, HopperStages::BYTES of dynamic shared memory, one block a multiprocessor. Maps, all with a swizzle of 128
 * bytes: a {k, rows}, box {64, 128} (unless GATHER); b[p] TB: {k, n, groups}, box {64, BN, 1}; else {n, k, groups}, box {64, 64, 1}.
 * k, n and the strides are multiples of 8 elements, pointers of 16 bytes; gathered rows are there for whole chunks of 8 k. */
template <int BN, int STAGES, int PRODUCTS, bool TB, bool GATHER, class Tail>
__device__ __forceinline__ void gemm_hopper(const Gemm<bf16> &g, const MoeMap &map_a, const MoeMap &map_b0,
                                            const MoeMap &map_b1, Tail tail) {
    typedef HopperStages<BN, STAGES, PRODUCTS> Stages;
    MOE_SHARED(shared);
    const u32 base = (shared_addr(shared) + 1023u) & ~1023u;
    char *const start = shared + (base - shared_addr(shared));
    const u32 full = base + Stages::BARRIERS, empty = full + 8 * STAGES;
    const int steps = ceil_div(g.k, HOPPER_K);
    if (threadIdx.x == 0) {
#pragma unroll
        for (int s = 0; s < STAGES; s++) {
            mbar_init(full + 8 * s, GATHER ? 129 : 1);
            mbar_init(empty + 8 * s, 8);
        }
        mbar_init_fence();
    }
    __syncthreads();

    GemmWalk<HOPPER_M, BN> walk;
    walk.begin(g);
    GemmTile tile;
    HopperTurn<STAGES> turn{0, 0u};
    if (threadIdx.x < 256) {
        reg_inc<GATHER ? 224 : 232>();
        const int group = (int)threadIdx.x / 128; /* of the consumers */
        float *mine = (float *)(start + STAGES * Stages::STAGE + warp() * Stages::OUT);
        HopperTile<BN, PRODUCTS> c;
        for (int t = blockIdx.x; walk.find(t, tile); t += gridDim.x) {
            c.zero();
            /* One choice an element: under a branch, ptxas lets the first product wait for all of them, and every later one, too. */
#pragma unroll
            for (int i = 0; i < c.COUNT; i++) {
                const int row = tile.row + group * 64 + c.row_of(i), col = tile.col + c.col_of(i);
                c.c[0][i] = g.start && row < tile.end && col < g.n ? g.start[(i64)row * g.n + col] : 0.0f;
            }
            int before = -1; /* the stage whose products are still under way */
            c.hold();
            for (int s = 0; s < steps; s++) {
                mbar_wait(full + 8 * turn.stage, turn.parity);
                if (GATHER)
                    fence_async();
                const u32 stage = base + (u32)turn.stage * Stages::STAGE;
                wgmma_fence();
                c.template multiply<false, !TB, Stages::B_BYTES>(stage + (u32)group * (64 * 128),
                                                                 stage + Stages::A_BYTES);
                wgmma_commit();
                wgmma_wait<1>();
                if (before >= 0 && lane() == 0)
                    mbar_arrive(empty + 8 * before);
                before = turn.stage;
                turn.next();
            }
            wgmma_wait<0>();
            c.hold();
            if (before >= 0 && lane() == 0)
                mbar_arrive(empty + 8 * before);
            c.template finish<Stages>(mine, tile.row + group * 64, tile.end, tile.col, g.n, tail);
        }
    } else {
        reg_dec<GATHER ? 56 : 40>();
        const int thread = (int)threadIdx.x - 256;
        if (!GATHER && thread >= 32)
            return;
        for (int t = blockIdx.x; walk.find(t, tile); t += gridDim.x) {
            HopperGather rows;
            if constexpr (GATHER)
                rows.begin(g, tile, thread);
            for (int s = 0; s < steps; s++) {
                const u32 stage = base + (u32)turn.stage * Stages::STAGE, bar = full + 8 * turn.stage;
                mbar_wait(empty + 8 * turn.stage, turn.parity ^ 1u);
                if (thread == 0) {
                    mbar_expect(bar, (GATHER ? 0 : Stages::A_BYTES) + PRODUCTS * Stages::B_BYTES);
                    if constexpr (!GATHER)
                        tma_load_2d(stage, map_a, s * HOPPER_K, tile.row, bar);
                    const int col = tile.col + (TB ? g.b_first : 0);
                    const int k0 = s * HOPPER_K + (TB ? 0 : g.b_first);
                    hopper_load_b<BN, TB>(stage + Stages::A_BYTES, map_b0, col, k0, tile.group, bar);
                    if constexpr (PRODUCTS == 2)
                        hopper_load_b<BN, TB>(stage + Stages::A_BYTES + Stages::B_BYTES, map_b1, col, k0,
                                              tile.group, bar);
                }
                if constexpr (GATHER) {
                    rows.copy(stage, s * HOPPER_K, g.k - s * HOPPER_K - thread % 8 * 8);
                    cp_async_arrive(bar);
                }
                __syncwarp();
                turn.next();
            }
        }
        if constexpr (GATHER) {
            cp_async_commit(); /* no thread ends before its copies have landed */
            cp_async_wait<0>();
        }
    }
}

} /* namespace moe */

#endif
