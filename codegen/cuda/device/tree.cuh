/* Sums in the order of docs/NUMBERS.md: trees over items of which some may be absent, and the leaves of a tree over rows.
 *
 * A tree over n items pads n to a power of two with absent items; a node with one child present is that child, the left
 * operand is the one with the lower index. Nothing here depends on how many blocks or threads there are. */
#ifndef MOE_DEVICE_TREE
#define MOE_DEVICE_TREE

namespace moe {

/* A sum that may be absent. */
struct Part {
    float v;
    bool here;
};

__device__ __forceinline__ Part join(Part left, Part right) {
    return Part{left.here && right.here ? left.v + right.v : left.here ? left.v : right.v,
                left.here || right.here};
}

/* The tree over items that come one by one, at most 2^LEVELS of them: of each level the subtree that waits for its right
 * sibling. All in registers. */
template <int LEVELS> struct Fold {
    float at[LEVELS + 1];
    u32 here;  /* bit l: at[l] is present */
    u32 count; /* items so far: bit l tells that a subtree of 2^l items waits in at[l] */

    __device__ __forceinline__ void clear() {
        here = count = 0;
#pragma unroll
        for (int l = 0; l <= LEVELS; l++)
            at[l] = 0.0f;
    }

    /* The item, of a subtree of 2^FROM places, takes the next 2^FROM of them; so far their number divides `count`. */
    template <int FROM = 0> __device__ __forceinline__ void push(Part p) {
        bool climbs = true;
#pragma unroll
        for (int l = FROM; l <= LEVELS; l++) {
            bool waits = (count >> l & 1u) != 0;
            if (climbs && waits) {
                p = join(Part{at[l], (here >> l & 1u) != 0}, p);
            } else if (climbs) {
                at[l] = p.v;
                here = (here & ~(1u << l)) | (p.here ? 1u << l : 0u);
                climbs = false;
            }
        }
        count += 1u << FROM;
    }

    /* The root. */
    __device__ __forceinline__ Part finish() const {
        Part p = Part{0.0f, false};
#pragma unroll
        for (int l = 0; l <= LEVELS; l++)
            if (count >> l & 1u)
                p = join(Part{at[l], (here >> l & 1u) != 0}, p);
        return Part{p.here ? p.v : 0.0f, p.here};
    }
};

/* The tree over n <= 2^LEVELS items item(0) .. item(n-1), in one thread: eight at a time, so that eight loads are under
 * way. */
template <int LEVELS, class Item> __device__ __forceinline__ Part fold_items(int n, Item item) {
    Fold<LEVELS> fold;
    fold.clear();
    int i = 0;
    if constexpr (LEVELS >= 3) {
        for (; i + 8 <= n; i += 8) {
            Part p[8];
#pragma unroll
            for (int k = 0; k < 8; k++)
                p[k] = item(i + k);
            fold.template push<3>(join(join(join(p[0], p[1]), join(p[2], p[3])),
                                       join(join(p[4], p[5]), join(p[6], p[7]))));
        }
    }
    for (; i < n; i++)
        fold.push(item(i));
    return fold.finish();
}

/* The tree over n items in THREADS threads of a block: each takes a run of 2^k items, then neighbours join. Every thread
 * gets the root. item(i) is asked for i < n only. Holds barriers. */
template <int THREADS, int LEVELS, class Item>
__device__ __forceinline__ Part block_fold(int n, Item item) {
    constexpr int WARPS = THREADS / 32;
    __shared__ float of_warp[WARPS];
    __shared__ u32 here_warp[WARPS];
    int run = 1;
    while ((i64)run * THREADS < n)
        run *= 2;
    i64 lo = (i64)threadIdx.x * run;
    int mine = (int)least((i64)run, most((i64)n - lo, (i64)0));
    Part p = fold_items<LEVELS>(mine, [&](int i) { return item((int)lo + i); });
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        Part o = Part{__shfl_xor_sync(0xffffffffu, p.v, d),
                      __shfl_xor_sync(0xffffffffu, (int)p.here, d) != 0};
        p = lane() & d ? join(o, p) : join(p, o);
    }
    __syncthreads();
    if (lane() == 0) {
        of_warp[warp()] = p.v;
        here_warp[warp()] = p.here;
    }
    __syncthreads();
    p = Part{of_warp[lane() % WARPS], here_warp[lane() % WARPS] != 0};
#pragma unroll
    for (int d = 1; d < WARPS; d *= 2) {
        Part o = Part{__shfl_xor_sync(0xffffffffu, p.v, d),
                      __shfl_xor_sync(0xffffffffu, (int)p.here, d) != 0};
        p = lane() & d ? join(o, p) : join(p, o);
    }
    return p;
}

/* ---- the gradient norm: blocks of 4096 elements, trees over them ---- */

enum { NORM_BLOCK = 4096 };

/* sums[block] of every block of every slice (slice elements each). A warp has a block: 128 sums at stride 128, of which a
 * thread has four neighbours, each a chain of fmaf; they are folded by halves. Elements behind the slice's end add nothing. */
template <int THREADS, class T>
__device__ __forceinline__ void block_squares(const T *x, float *sums, i64 slices, i64 slice,
                                              i64 blocks) {
    const i64 all = slices * blocks, stride = (i64)gridDim.x * (THREADS / 32);
    for (i64 b = (i64)blockIdx.x * (THREADS / 32) + warp(); b < all; b += stride) {
        const i64 first = b % blocks * NORM_BLOCK;
        const T *at = x + b / blocks * slice + first;
        const int n = (int)least((i64)NORM_BLOCK, slice - first);
        float sum[4] = {};
        if (n == NORM_BLOCK && (u64)at % (4 * sizeof(T)) == 0) {
#pragma unroll 8
            for (int i = 0; i < NORM_BLOCK; i += 128) {
                float v[4];
                load_n(at + i + 4 * lane(), v);
#pragma unroll
                for (int k = 0; k < 4; k++)
                    sum[k] = fmaf(v[k], v[k], sum[k]);
            }
        } else {
            for (int i = 4 * lane(); i < n; i += 128)
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    float v = i + k < n ? load(at + i + k) : 0.0f;
                    sum[k] = fmaf(v, v, sum[k]);
                }
        }
#pragma unroll
        for (int k = 0; k < 4; k++)
            sum[k] = warp_sum(sum[k]);
        const float v = (sum[0] + sum[2]) + (sum[1] + sum[3]);
        if (lane() == 0)
            sums[b] = v;
    }
}

/* sums[r] = the tree over the n items of row order[r] (r without order), a block of threads a row. n <= THREADS 2^LEVELS. */
template <int THREADS, int LEVELS>
__device__ __forceinline__ void block_trees(const float *items, i64 rows, i64 n, const i32 *order,
                                            float *sums) {
    for (i64 r = (i64)blockIdx.x; r < rows; r += gridDim.x) {
        const float *row = items + (order ? (i64)order[r] : r) * n;
        Part p = block_fold<THREADS, LEVELS>((int)n, [&](int i) { return Part{row[i], true}; });
        if (threadIdx.x == 0)
            sums[r] = p.here ? p.v : 0.0f;
    }
}

/* ---- leaves of column sums: 128 consecutive rows from the start of each entry (group, shard) of a segs table ---- */

enum { LEAF_ROWS = 128 };

__device__ __forceinline__ int leaves_of(int rows) {
    return (rows + LEAF_ROWS - 1) / LEAF_ROWS;
}

/* First row of entry i; table null: `rows` static rows, one entry. */
__device__ __forceinline__ int entry_start(const i32 *table, i64 rows, int i) {
    return table ? table[i] : i ? (int)rows : 0;
}

struct LeafRows {
    int lo, hi;
};

/* Rows of leaf number `leaf`, counted through the entries; lo < 0 where there is no such leaf. All lanes of a warp ask for
 * the same leaf, and all get the answer. */
__device__ __forceinline__ LeafRows leaf_rows(const i32 *table, i64 rows, int entries, int leaf) {
    for (int first = 0; first < entries; first += 32) {
        int i = first + lane(), lo = 0, n = 0, hi = 0;
        if (i < entries) {
            lo = entry_start(table, rows, i), hi = entry_start(table, rows, i + 1);
            n = leaves_of(hi - lo);
        }
        int before = n; /* leaves of entries first .. i */
#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            int o = __shfl_up_sync(0xffffffffu, before, d);
            before += lane() >= d ? o : 0;
        }
        int all = __shfl_sync(0xffffffffu, before, 31);
        if (leaf < all) {
            before -= n;
            u32 mine = __ballot_sync(0xffffffffu, leaf >= before && leaf < before + n);
            int who = __ffs((int)mine) - 1;
            int start = lo + (leaf - before) * LEAF_ROWS;
            int end = least(hi, start + LEAF_ROWS);
            return LeafRows{__shfl_sync(0xffffffffu, start, who), __shfl_sync(0xffffffffu, end, who)};
        }
        leaf -= all;
    }
    return LeafRows{-1, -1};
}

/* ---- column sums: partial sums by leaf -> the sum of each column ---- */

/* Columns 32 blockIdx.x .. of sum[cols]; partial sums of leaf n: slots + n * stride (floats). By group: the warps take its
 * shards in turn, each the tree over the shard's leaves (at most 2^LEVELS of them); the first warp then the tree over the
 * shards. Last the tree over groups. THREADS: 32 times a power of two. */
template <int THREADS, int GROUPS, int SHARDS, int LEVELS>
__device__ __forceinline__ void col_fold(const i32 *table, i64 rows, const float *slots, i64 stride,
                                         int cols, float *sum) {
    constexpr int WARPS = THREADS / 32;
    __shared__ float root[SHARDS][32];
    __shared__ int start[SHARDS + 1]; /* leaves before each shard of the group */
    int col = (int)blockIdx.x * 32 + lane();
    const float *at = slots + (col < cols ? col : 0);
    Fold<24> over_groups;
    over_groups.clear();
    int before = 0;
    for (int g = 0; g < GROUPS; g++) {
        __syncthreads();
        if (threadIdx.x == 0) {
            start[0] = before;
            for (int v = 0; v < SHARDS; v++)
                start[v + 1] = start[v] + leaves_of(entry_start(table, rows, g * SHARDS + v + 1) -
                                                    entry_start(table, rows, g * SHARDS + v));
        }
        __syncthreads();
        for (int v = warp(); v < SHARDS; v += WARPS) {
            const float *first = at + start[v] * stride;
            Part p = fold_items<LEVELS>(start[v + 1] - start[v],
                                        [&](int i) { return Part{first[i * stride], true}; });
            root[v][lane()] = p.v;
        }
        before = start[SHARDS];
        __syncthreads();
        if (warp() == 0)
            over_groups.push(fold_items<7>(SHARDS, [&](int v) {
                return Part{root[v][lane()], start[v + 1] > start[v]};
            }));
    }
    if (warp() == 0 && col < cols)
        sum[col] = over_groups.finish().v;
}

} /* namespace moe */

#endif
