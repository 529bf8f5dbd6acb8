/* Products over rows by wgmma (sm_90a): the trees of wgrad.cuh, tiles of 128 x BN, 64 of the rows of dw to each of two warpgroups
 * of consumers, slices of 64 rows filled ahead of them by a producer as in gemm_hopper.cuh (here the block's first warpgroup).
 *
 * Both operands' rows are k. An operand whose rows stand next to each other comes by tensor map, a whole slice at a time; rows of a
 * slice that its leaf cuts short, and gathered ones, by copies of 16 bytes, zeros behind the last. */
#ifndef MOE_DEVICE_WGRAD_HOPPER
#define MOE_DEVICE_WGRAD_HOPPER

namespace moe {

/* COLS columns of an operand from `col` on, on their way into a stage; MAP: by tensor map where the slice is whole. */
template <int COLS, bool MAP> struct HopperRows {
    WgradCopies<COLS, 128> copies;
    static constexpr u32 BYTES = COLS * 128;

    /* Bytes that will come by map. */
    static __device__ __forceinline__ u32 announced(bool whole) {
        return MAP && whole ? BYTES : 0u;
    }
    __device__ __forceinline__ void load(const WgradSide<bf16> &side, const MoeMap &map, int col, int row, int end,
                                         char *stage, u32 stage_addr, u32 at, u32 full) {
        if (MAP && end - row == HOPPER_K) {
            if (threadIdx.x == 0) {
#pragma unroll
                for (int j = 0; j < COLS / 64; j++)
                    tma_load_2d(stage_addr + at + j * 8192, map, col + j * 64, row, full);
            }
            return;
        }
        if (MAP)
            copies.look(side, col, row, end);
        copies.template copy<true>(stage, stage_addr, at);
    }
    /* The addresses of gathered rows are found one slice ahead. */
    __device__ __forceinline__ void look(const WgradSide<bf16> &side, int col, int row, int end) {
        if (!MAP)
            copies.look(side, col, row, end);
    }
};

/* HOPPER_THREADS threads, HopperStages<BN, STAGES, 1>::BYTES of dynamic shared memory and SHARED_SLOTS tiles of 128 x BN floats, one
 * block a multiprocessor. groups: how many of w's are there. Maps {columns, rows}, box {64, 64}, swizzle of 128 bytes, of operands with
 * MAP. Columns and strides are multiples of 8 elements, pointers of 16 bytes. */
template <int BN, int STAGES, int SHARED_SLOTS, int LEAF, bool MAP_DY, bool MAP_X, class Where>
__device__ __forceinline__ void wgrad_hopper(const Wgrad<bf16> &w, int groups, const MoeMap &map_dy,
                                             const MoeMap &map_x, Where where) {
    typedef HopperStages<BN, STAGES, 1> Stages;
    typedef HopperTile<BN, 1> Tile;
    constexpr int SLOTS_AT = (int)Stages::BYTES - 1024; /* behind the barriers */
    static_assert(SLOTS_AT % 16 == 0, "slots are read by 16 bytes");
    MOE_SHARED(shared);
    const u32 base = (shared_addr(shared) + 1023u) & ~1023u;
    char *const start = shared + (base - shared_addr(shared));
    const u32 full = base + Stages::BARRIERS, empty = full + 8 * STAGES;
    if (threadIdx.x == 0) {
#pragma unroll
        for (int s = 0; s < STAGES; s++) {
            mbar_init(full + 8 * s, 129);
            mbar_init(empty + 8 * s, 8);
        }
        mbar_init_fence();
    }
    __syncthreads();

    const int n_blocks = ceil_div(w.n, HOPPER_M), k_blocks = ceil_div(w.k, BN);
    const i64 tiles = (i64)groups * n_blocks * k_blocks;
    HopperTurn<STAGES> turn{0, 0u};
    LeafSlices<HOPPER_K, LEAF> slices;
    if (threadIdx.x >= 128) {
        reg_inc<208>();
        const int group = (int)threadIdx.x / 128 - 1; /* of the consumers */
        float *mine = (float *)(start + STAGES * Stages::STAGE + (warp() - 4) * Stages::OUT);
        TileTree<Tile::COUNT, 256, SHARED_SLOTS> tree;
        tree.begin((float *)(start + SLOTS_AT) - 128 * 4,
                   w.stack + (i64)blockIdx.x * w.stack_slots * tree.TILE - 128 * 4);
        Tile c;
        for (i64 t = blockIdx.x; t < tiles; t += gridDim.x) {
            const int g = (int)(t / (n_blocks * k_blocks)), block = (int)(t % (n_blocks * k_blocks));
            const int row0 = block / k_blocks * HOPPER_M, col0 = block % k_blocks * BN;
            slices.begin(w.table ? w.table + (i64)g * w.shards : nullptr, w.shards, w.rows);
            int before = -1; /* the stage whose products are still under way */
            c.zero();
            c.hold();
            while (slices.live()) {
                mbar_wait(full + 8 * turn.stage, turn.parity);
                fence_async();
                const u32 stage = base + (u32)turn.stage * Stages::STAGE;
                wgmma_fence();
                c.template multiply<true, true, Stages::B_BYTES>(stage + (u32)group * 8192, stage + Stages::A_BYTES);
                wgmma_commit();
                wgmma_wait<1>();
                if (before >= 0 && lane() == 0)
                    mbar_arrive(empty + 8 * before);
                before = turn.stage;
                turn.next();
                if (slices.ends_leaf()) {
                    wgmma_wait<0>();
                    c.hold();
                    if (lane() == 0)
                        mbar_arrive(empty + 8 * before);
                    before = -1;
                    if (!end_leaf(slices, w.leaf_levels, tree, c.c[0]))
                        c.zero();
                    c.hold();
                }
                slices.next();
            }
            wgmma_wait<0>(); /* all have ended with their leaf: ptxas does not know */
            c.hold();
            StoreTail<true> tail = {where(g), w.k};
            c.template finish<Stages>(mine, row0 + group * 64, w.n, col0, w.k, tail);
        }
    } else {
        reg_dec<80>();
        for (i64 t = blockIdx.x; t < tiles; t += gridDim.x) {
            const int g = (int)(t / (n_blocks * k_blocks)), block = (int)(t % (n_blocks * k_blocks));
            const int row0 = block / k_blocks * HOPPER_M, col0 = block % k_blocks * BN;
            HopperRows<HOPPER_M, MAP_DY> dy;
            HopperRows<BN, MAP_X> x;
            dy.copies.begin(row0, w.n);
            x.copies.begin(col0, w.k);
            slices.begin(w.table ? w.table + (i64)g * w.shards : nullptr, w.shards, w.rows);
            if (slices.live()) {
                dy.look(w.dy, row0, slices.row, slices.end());
                x.look(w.x, col0, slices.row, slices.end());
            }
            while (slices.live()) {
                const u32 at = (u32)turn.stage * Stages::STAGE, bar = full + 8 * turn.stage;
                const int row = slices.row, end = slices.end();
                mbar_wait(empty + 8 * turn.stage, turn.parity ^ 1u);
                if (threadIdx.x == 0) {
                    const bool whole = end - row == HOPPER_K;
                    mbar_expect(bar, dy.announced(whole) + x.announced(whole));
                }
                dy.load(w.dy, map_dy, row0, row, end, start + at, base + at, 0, bar);
                x.load(w.x, map_x, col0, row, end, start + at, base + at, Stages::A_BYTES, bar);
                cp_async_arrive(bar);
                __syncwarp();
                turn.next();
                slices.next();
                if (slices.live()) {
                    dy.look(w.dy, row0, slices.row, slices.end());
                    x.look(w.x, col0, slices.row, slices.end());
                }
            }
        }
        cp_async_commit(); /* no thread ends before its copies have landed */
        cp_async_wait<0>();
    }
}

} /* namespace moe */

#endif
