/* Products over rows, dw = dy^T x for each group of rows, by the tree of docs/NUMBERS.md: leaves of LEAF rows from the start of each
 * (group, shard), a binary tree over a shard's leaves, one over the shards. LEAF 0 (--fast-reduce): no trees, a group's rows are one
 * chain, and what is said of leaves below is that of all its rows.
 *
 * A block takes a tile of a group's dw through all its rows, slice by slice, without a break between leaves and shards in the copies
 * to shared memory. At a leaf's end the tile climbs: what waits for it as its left sibling is added on the left, until it is a left
 * child itself and is put down. What waits at the lowest level stays in registers (half of all leaves go there), at the next SHARED_SLOTS
 * levels in shared memory, above in the block's own part of the workspace. */
#ifndef MOE_DEVICE_WGRAD
#define MOE_DEVICE_WGRAD

namespace moe {

/* An operand; gather > 0: row r is row src[r] / gather of it. */
template <class T> struct WgradSide {
    const T *p;
    i64 ld; /* elements between rows */
    int gather;
    const i32 *src;

    __device__ __forceinline__ const T *row(int r) const {
        return p + (i64)(gather > 0 ? src[r] / gather : r) * ld;
    }
};

template <class T> struct Wgrad {
    int n, k;             /* columns of dy, of x */
    WgradSide<T> dy, x;
    const i32 *table;     /* group g's shards: table[g * shards + v] .. table[g * shards + v + 1]; null: 0 .. rows, one shard */
    int groups, shards, rows;
    int leaf_levels;      /* 2^leaf_levels leaves at most in a shard */
    float *stack;         /* of each block: as many tiles as levels of both trees, less one and SHARED_SLOTS */
    int stack_slots;
};

/* ---- rows by slices ---- */

/* The slices of STEP rows of a group, in order; none crosses a leaf's end. */
template <int STEP, int LEAF> struct LeafSlices {
    static_assert(LEAF % STEP == 0, "a leaf is whole slices");
    const i32 *cells;
    int n_cells, cell; /* shards; the one at hand */
    int lo, hi, row;   /* its rows; first row of the slice */

    __device__ __forceinline__ void begin(const i32 *table, int shards, int rows) {
        if constexpr (LEAF == 0) { /* one cell, of all shards */
            cells = nullptr;
            n_cells = 1;
            lo = row = table ? table[0] : 0;
            hi = table ? table[shards] : rows;
            cell = hi > lo ? 0 : 1;
            return;
        }
        cells = table;
        n_cells = table ? shards : 1;
        cell = -1;
        lo = 0, hi = rows, row = 0;
        if (table)
            open();
        else
            cell = rows > 0 ? 0 : 1;
    }
    /* The next shard that has rows. */
    __device__ __forceinline__ void open() {
        cell = next_cell();
        if (cells && cell < n_cells)
            lo = row = cells[cell], hi = cells[cell + 1];
    }
    __device__ __forceinline__ int next_cell() const {
        int c = cell + 1;
        while (cells && c < n_cells && cells[c + 1] <= cells[c])
            c++;
        return c;
    }
    __device__ __forceinline__ bool live() const {
        return cell < n_cells;
    }
    __device__ __forceinline__ int leaf() const {
        return LEAF ? (row - lo) / most(LEAF, 1) : 0;
    }
    __device__ __forceinline__ int leaves() const {
        return LEAF ? ceil_div(hi - lo, most(LEAF, 1)) : 1;
    }
    __device__ __forceinline__ int leaf_end() const {
        return LEAF ? least(lo + (leaf() + 1) * LEAF, hi) : hi;
    }
    __device__ __forceinline__ int end() const {
        return least(row + STEP, leaf_end());
    }
    __device__ __forceinline__ bool ends_leaf() const {
        return row + STEP >= leaf_end();
    }
    __device__ __forceinline__ void next() {
        row = end();
        if (row >= hi)
            open();
    }
};

/* ---- the trees ---- */

constexpr int NO_PLACE = 0x7fffffff;

/* Tiles that wait, N floats a thread. Slots: levels of the leaves' tree, then of the shards' tree. */
template <int N, int THREADS, int SHARED_SLOTS> struct TileTree {
    static constexpr int TILE = N * THREADS;
    float held[N]; /* slot 0 */
    u32 here;      /* bit s: something waits in slot s */
    float *shared, *stack;

    __device__ __forceinline__ void begin(float *shared_slots, float *of_block) {
        here = 0;
        shared = shared_slots + threadIdx.x * 4;
        stack = of_block + threadIdx.x * 4;
    }
    __device__ __forceinline__ float *slot(int s) const {
        return s <= SHARED_SLOTS ? shared + (s - 1) * TILE : stack + (i64)(s - 1 - SHARED_SLOTS) * TILE;
    }
    /* c = what waits in slot s + c. */
    __device__ __forceinline__ void add(int s, float (&c)[N]) {
        if (s == 0) {
#pragma unroll
            for (int i = 0; i < N; i++)
                c[i] = held[i] + c[i];
        } else {
            const float *from = slot(s);
#pragma unroll
            for (int i = 0; i < N; i += 4) {
                Words4 w = load_words4(from + i * THREADS);
                c[i] = __uint_as_float(w.x) + c[i];
                c[i + 1] = __uint_as_float(w.y) + c[i + 1];
                c[i + 2] = __uint_as_float(w.z) + c[i + 2];
                c[i + 3] = __uint_as_float(w.w) + c[i + 3];
            }
        }
        here &= ~(1u << s);
    }
    __device__ __forceinline__ void put(int s, const float (&c)[N]) {
        if (s == 0) {
#pragma unroll
            for (int i = 0; i < N; i++)
                held[i] = c[i];
        } else {
            float *to = slot(s);
#pragma unroll
            for (int i = 0; i < N; i += 4)
                store_words4(to + i * THREADS, Words4{__float_as_uint(c[i]), __float_as_uint(c[i + 1]),
                                                      __float_as_uint(c[i + 2]), __float_as_uint(c[i + 3])});
        }
        here |= 1u << s;
    }
    /* The item at place `pos` of a tree of `places` places, whose levels begin at slot `first`, climbs; `next`: the next place that has
     * an item, NO_PLACE if there is none. True: it is the root. */
    __device__ __forceinline__ bool climb(float (&c)[N], int pos, int next, int places, int first) {
        for (int level = 0; (1 << level) < places; level++) {
            int at = pos >> level;
            if (at & 1) {
                if (here >> (first + level) & 1u)
                    add(first + level, c);
            } else if (next < (at + 2) << level) { /* its right sibling will come */
                put(first + level, c);
                return false;
            }
        }
        return true;
    }
};

/* A leaf's sum is there. True: c is the group's. */
template <int STEP, int LEAF, class Tree, int N>
__device__ __forceinline__ bool end_leaf(const LeafSlices<STEP, LEAF> &s, int leaf_levels, Tree &tree, float (&c)[N]) {
    if constexpr (LEAF == 0)
        return true;
    int leaves = s.leaves(), leaf = s.leaf();
    if (!tree.climb(c, leaf, leaf + 1 < leaves ? leaf + 1 : NO_PLACE, leaves, 0))
        return false;
    int next = s.next_cell();
    return tree.climb(c, s.cell, next < s.n_cells ? next : NO_PLACE, s.n_cells, leaf_levels);
}

/* Where a group's dw goes: f32 [n][k] of group g. */
struct WgradGroups {
    float *dw;
    i64 size; /* n * k */
    __device__ __forceinline__ float *operator()(int g) const {
        return dw + g * size;
    }
};

/* Groups that are roots of `slots` slots: the first of each slot goes to dw, the others to rest, in order. more[s]: roots beyond
 * the first in the slots before s, so slot s's groups begin at s + more[s]. */
struct WgradRoots {
    float *dw, *rest;
    i64 size;
    const i32 *more;
    int slots;
    __device__ __forceinline__ float *operator()(int g) const {
        int lo = 0, hi = slots; /* slot lo begins at or before g */
        while (hi - lo > 1) {
            int mid = (lo + hi) / 2;
            if (mid + more[mid] <= g)
                lo = mid;
            else
                hi = mid;
        }
        return g == lo + more[lo] ? dw + lo * size : rest + (g - lo - 1) * size;
    }
    __device__ __forceinline__ int groups() const {
        return slots + more[slots];
    }
};

/* ---- bf16 ---- */

/* The rows of an operand on their way: addresses are found one slice ahead, so that copies wait for no index. */
template <int COLS, int THREADS> struct WgradCopies {
    typedef RowTile<COLS, THREADS> Tile;
    Tile tile;
    const bf16 *from[Tile::PASSES];

    __device__ __forceinline__ void begin(int col, int cols) {
        tile.begin(cols - col);
    }
    __device__ __forceinline__ void look(const WgradSide<bf16> &side, int col, int row, int end) {
#pragma unroll
        for (int i = 0; i < Tile::PASSES; i++) {
            int r = row + Tile::row(i);
            from[i] = r < end ? side.row(r) + col + Tile::col() : nullptr;
        }
    }
    template <bool ALIGNED> __device__ __forceinline__ void copy(char *stage, u32 stage_addr, u32 at) {
#pragma unroll
        for (int i = 0; i < Tile::PASSES; i++)
            tile.template copy<ALIGNED>(stage, stage_addr, at, i, from[i], from[i] != nullptr);
    }
};

/* The kernel: dynamic shared memory of STAGES * MmaTile::STAGE bytes and SHARED_SLOTS tiles of BM x BN floats; WM * WN warps.
 * groups: how many of w's are there. ALIGNED_DY, ALIGNED_X: rows are multiples of 8 elements, at multiples of 16 bytes. */
template <int BM, int BN, int WM, int WN, int STAGES, int SHARED_SLOTS, int LEAF, bool ALIGNED_DY, bool ALIGNED_X, class Where>
__device__ __forceinline__ void wgrad_mma(const Wgrad<bf16> &w, int groups, Where where) {
    typedef MmaTile<BM, BN, WM, WN, 1, true, true> Block;
    constexpr int N = Block::MT * Block::NT * 4;
    MOE_SHARED(shared);
    const u32 base = shared_addr(shared);
    Block c;
    c.begin();
    TileTree<N, Block::THREADS, SHARED_SLOTS> tree;
    tree.begin((float *)(shared + STAGES * Block::STAGE), w.stack + (i64)blockIdx.x * w.stack_slots * tree.TILE);
    const int n_blocks = ceil_div(w.n, BM), k_blocks = ceil_div(w.k, BN);
    for (i64 t = blockIdx.x; t < (i64)groups * n_blocks * k_blocks; t += gridDim.x) {
        const int g = (int)(t / (n_blocks * k_blocks)), block = (int)(t % (n_blocks * k_blocks));
        const int row0 = block / k_blocks * BM, col0 = block % k_blocks * BN;
        const i32 *cells = w.table ? w.table + (i64)g * w.shards : nullptr;
        LeafSlices<MMA_K, LEAF> ahead, now;
        ahead.begin(cells, w.shards, w.rows);
        now = ahead;
        WgradCopies<BM, Block::THREADS> dy;
        WgradCopies<BN, Block::THREADS> x;
        dy.begin(row0, w.n);
        x.begin(col0, w.k);
        auto look = [&]() {
            if (ahead.live()) {
                dy.look(w.dy, row0, ahead.row, ahead.end());
                x.look(w.x, col0, ahead.row, ahead.end());
            }
        };
        auto load = [&](int number) {
            u32 stage = (u32)number * Block::STAGE;
            if (ahead.live()) {
                dy.template copy<ALIGNED_DY>(shared + stage, base + stage, 0);
                x.template copy<ALIGNED_X>(shared + stage, base + stage, Block::A_BYTES);
                ahead.next();
                look();
            }
            cp_async_commit();
        };
        c.zero();
        look();
#pragma unroll
        for (int s = 0; s < STAGES - 1; s++)
            load(s);
        int use = 0, fill = STAGES - 1;
        while (now.live()) {
            cp_async_wait<STAGES - 2>();
            __syncthreads();
            load(fill);
            c.multiply(base + (u32)use * Block::STAGE);
            if (now.ends_leaf() && !end_leaf(now, w.leaf_levels, tree, *(float(*)[N])c.c))
                c.zero();
            now.next();
            use = use + 1 == STAGES ? 0 : use + 1;
            fill = fill + 1 == STAGES ? 0 : fill + 1;
        }
        cp_async_wait<0>();
        __syncthreads();
        StoreTail<ALIGNED_X> tail = {where(g), w.k};
        c.finish(shared, row0, w.n, col0, w.k, tail);
    }
}

/* ---- f32 ---- */

/* The kernel: 256 threads; dynamic shared memory of two SimtTile::STAGE floats and SHARED_SLOTS tiles of BM x BN floats.
 * ALIGNED_DY, ALIGNED_X: rows are multiples of 4 elements, at multiples of 16 bytes; WHOLE: k is a multiple of 8. */
template <int BM, int BN, int SHARED_SLOTS, int LEAF, bool ALIGNED_DY, bool ALIGNED_X, bool WHOLE, class Where>
__device__ __forceinline__ void wgrad_simt(const Wgrad<float> &w, int groups, Where where) {
    typedef SimtTile<BM, BN, 1> Block;
    typedef typename Block::A A;
    typedef typename Block::B B;
    constexpr int N = Block::TM * TAIL_COLS;
    MOE_SHARED(shared);
    float *stages = (float *)shared;
    Block c;
    TileTree<N, SIMT_THREADS, SHARED_SLOTS> tree;
    tree.begin(stages + 2 * Block::STAGE, w.stack + (i64)blockIdx.x * w.stack_slots * tree.TILE);
    const int n_blocks = ceil_div(w.n, BM), k_blocks = ceil_div(w.k, BN);
    for (i64 t = blockIdx.x; t < (i64)groups * n_blocks * k_blocks; t += gridDim.x) {
        const int g = (int)(t / (n_blocks * k_blocks)), block = (int)(t % (n_blocks * k_blocks));
        const int row0 = block / k_blocks * BM, col0 = block % k_blocks * BN;
        const i32 *cells = w.table ? w.table + (i64)g * w.shards : nullptr;
        LeafSlices<SIMT_K, LEAF> ahead, now;
        ahead.begin(cells, w.shards, w.rows);
        now = ahead;
        A a;
        B b;
        auto fetch = [&]() {
            const int dy_live = w.n - row0 - A::row_col(), x_live = w.k - col0 - B::row_col();
            const int end = ahead.end();
#pragma unroll
            for (int i = 0; i < A::QUADS; i++) {
                int r = ahead.row + A::row_k(i);
                const float *from = w.dy.row(least(r, end - 1)) + row0 + A::row_col();
                fetch4<ALIGNED_DY>(from, r < end ? dy_live : 0, a.v + i * 4);
            }
#pragma unroll
            for (int i = 0; i < B::QUADS; i++) {
                int r = ahead.row + B::row_k(i);
                const float *from = w.x.row(least(r, end - 1)) + col0 + B::row_col();
                fetch4<ALIGNED_X>(from, r < end ? x_live : 0, b.v + i * 4);
            }
            ahead.next();
        };
        auto put = [&](int stage) {
            a.put_rows(stages + stage * Block::STAGE);
            b.put_rows(stages + stage * Block::STAGE + A::FLOATS);
        };
        c.zero();
        if (ahead.live()) {
            fetch();
            put(0);
        }
        __syncthreads();
        for (int stage = 0; now.live(); stage ^= 1) {
            bool more = ahead.live();
            if (more)
                fetch();
            c.multiply(stages + stage * Block::STAGE);
            if (more)
                put(stage ^ 1);
            if (now.ends_leaf() && !end_leaf(now, w.leaf_levels, tree, *(float(*)[N])c.c))
                c.zero();
            now.next();
            __syncthreads();
        }
        StoreTail<WHOLE> tail = {where(g), w.k};
        c.finish(row0, w.n, col0, w.k, tail);
    }
}

} /* namespace moe */

#endif
