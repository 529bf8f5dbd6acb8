/* Matrix products, c = a b for the rows of each group: what gemm_simt.cuh (f32), gemm_mma.cuh (bf16, sm_80) and gemm_hopper.cuh
 * (bf16, sm_90a) share: the operands, the walk over tiles, and what follows a finished tile, the tail.
 *
 * A tail is a functor  tail(int row, int col, int live, const float (&p)[PRODUCTS][TAIL_COLS]) : it gets columns
 * col .. col + live - 1 (live: 1 .. TAIL_COLS, always TAIL_COLS where n is a multiple of it; col is a multiple of TAIL_COLS) of one
 * live row of every product, and does with them what it wants: kind_gemm.c writes one out of the group's elementwise ops. It is
 * called once for each row and column of the result, by one thread; lanes of a warp have neighbouring columns, so its loads
 * and stores of 16 or 32 bytes are coalesced. It reads other tensors only at its own place, before it writes there.
 *
 * Every element is one chain over ascending k from its start value on, whatever the tile: results depend neither on the shape of
 * tiles nor on the grid nor on other rows. */
#ifndef MOE_DEVICE_GEMM
#define MOE_DEVICE_GEMM

namespace moe {

constexpr int TAIL_COLS = 8;

/* The operands; strides in elements. */
template <class T> struct Gemm {
    int n, k;
    const T *a; /* [rows][lda] */
    i64 lda;
    int gather; /* > 0: row r is row src[r] / gather of a */
    const i32 *src;
    const T *b[2]; /* of each product, of group 0: [n][ldb] where TB, else [k][ldb] */
    i64 ldb, b_group; /* b_group: from one group's matrix to the next one's */
    int b_first;      /* of b's tensor map (gemm_hopper.cuh): the row, [n] where TB, else [k], that b[p] points at */
    const i32 *table; /* rows of group g: table[g * shards] .. table[(g + 1) * shards]; null: 0 .. rows, one group */
    int groups, shards, rows;
    const float *start; /* [rows][n]: the chains begin from there (of product 0); null: from +0 */
};

/* Row r of a. */
template <class T> __device__ __forceinline__ const T *gemm_row(const Gemm<T> &g, int r) {
    i64 row = g.gather > 0 ? g.src[r] / g.gather : r;
    return g.a + row * g.lda;
}

/* ---- tiles ---- */

/* Rows row .. least(row + BM, end) of a group, columns col .. col + BN. */
struct GemmTile {
    int group, row, end, col;
};

/* The tiles of all groups, group by group: find() of ascending t. A warp looks at 32 groups at a time; all warps find the same.
 * Inside a group tiles go through bands of BAND column blocks, row block by row block, so that those that run at one time
 * share operands. */
template <int BM, int BN> struct GemmWalk {
    static constexpr int BAND = 8;
    const i32 *table;
    int groups, shards, rows, col_blocks;
    int chunk, before, total; /* groups chunk .. chunk + 31; tiles before them; theirs */
    int lo, hi, upto;         /* of the lane's group: rows; tiles of the chunk up to and with it */

    template <class T> __device__ __forceinline__ void begin(const Gemm<T> &g) {
        table = g.table, groups = g.groups, shards = g.shards, rows = g.rows;
        col_blocks = ceil_div(g.n, BN);
        chunk = 0, before = 0;
        look();
    }

    __device__ __forceinline__ void look() {
        int g = chunk + lane();
        lo = 0, hi = 0;
        if (!table && g == 0) {
            hi = rows;
        } else if (table && g < groups) {
            lo = table[(i64)g * shards];
            hi = table[(i64)(g + 1) * shards];
        }
        upto = ceil_div(hi - lo, BM) * col_blocks;
#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            int left = __shfl_up_sync(0xffffffffu, upto, d);
            upto += lane() >= d ? left : 0;
        }
        total = __shfl_sync(0xffffffffu, upto, 31);
    }

    /* Tile t, or false if there are no more; t never less than before. */
    __device__ __forceinline__ bool find(int t, GemmTile &tile) {
        while (t - before >= total) {
            if (chunk + 32 >= groups)
                return false;
            before += total;
            chunk += 32;
            look();
        }
        int at = t - before;
        int which = __popc(__ballot_sync(0xffffffffu, upto <= at));
        int left = __shfl_sync(0xffffffffu, upto, which > 0 ? which - 1 : 0);
        int first = __shfl_sync(0xffffffffu, lo, which);
        tile.group = chunk + which;
        tile.end = __shfl_sync(0xffffffffu, hi, which);
        at -= which > 0 ? left : 0;
        int row_blocks = ceil_div(tile.end - first, BM);
        int band = at / (row_blocks * BAND);
        int width = least(col_blocks - band * BAND, BAND);
        at -= band * BAND * row_blocks;
        tile.row = first + at / width * BM;
        tile.col = (band * BAND + at % width) * BN;
        return true;
    }
};

/* ---- row sums behind a product ----
 *
 * A tail may add up values of its row: SumTail. A tile's row is cut into pieces of SUM_COLS columns, whatever the tile: 8 columns in
 * ascending order from +0, then four such sums by halves. The sum of each piece goes to memory; once all tiles are done,
 * fold_row_sums adds a row's pieces in ascending order. So the order depends on n alone. */

constexpr int SUM_COLS = 4 * TAIL_COLS;

/* each(row, col, live, p, sum) is the tail, which adds to `sum`. */
template <int SUMS, class Each> struct SumTail {
    Each each;
    float *pieces; /* [rows][SUMS][n_pieces] */
    int n_pieces;
    float sum[SUMS];
    template <int PRODUCTS>
    __device__ __forceinline__ void operator()(int row, int col, int live,
                                               const float (&p)[PRODUCTS][TAIL_COLS]) {
        each(row, col, live, p, sum);
    }
};
template <int SUMS, class Each>
__device__ __forceinline__ SumTail<SUMS, Each> sum_tail(Each each, float *pieces, int n_pieces) {
    return SumTail<SUMS, Each>{each, pieces, n_pieces, {}};
}

/* Before and after each call of a tail, by all lanes of a warp, whether their row and columns are there or not. NEIGHBOURS: so many
 * lanes beside each other have columns of the same row, in ascending order, the first one at a multiple of them. */
template <class Tail> __device__ __forceinline__ void tail_open(Tail &) {}
template <int SUMS, class Each> __device__ __forceinline__ void tail_open(SumTail<SUMS, Each> &tail) {
#pragma unroll
    for (int s = 0; s < SUMS; s++)
        tail.sum[s] = 0.0f;
}
template <int NEIGHBOURS, class Tail>
__device__ __forceinline__ void tail_close(Tail &, bool, int, int) {}
template <int NEIGHBOURS, int SUMS, class Each>
__device__ __forceinline__ void tail_close(SumTail<SUMS, Each> &tail, bool is_there, int row, int col) {
    static_assert(NEIGHBOURS % 4 == 0, "the lanes of a piece are in a row");
#pragma unroll
    for (int s = 0; s < SUMS; s++) {
        float piece = warp_sum<4>(tail.sum[s]);
        if (is_there && lane() % 4 == 0)
            tail.pieces[((i64)row * SUMS + s) * tail.n_pieces + col / SUM_COLS] = piece;
    }
}

/* y[row] = the row's pieces, pieces[row * stride ..], in ascending order; a thread a row. VEC: elements of a load, which divides n_pieces
 * and stride. */
template <int VEC>
__device__ __forceinline__ void fold_row_sums(i64 first, i64 end, const float *pieces, i64 stride,
                                              int n_pieces, float *y) {
    for (i64 row = first + (i64)blockIdx.x * blockDim.x + threadIdx.x; row < end;
         row += (i64)gridDim.x * blockDim.x) {
        const float *of_row = pieces + row * stride;
        float sum = 0.0f, v[VEC];
        for (int i = 0; i < n_pieces; i += VEC) {
            load_n<VEC>(of_row + i, v);
#pragma unroll
            for (int k = 0; k < VEC; k++)
                sum += v[k];
        }
        y[row] = sum;
    }
}

/* ---- what tails load and store: `live` columns at p; WHOLE: always all, at multiples of 16 bytes ---- */

template <bool WHOLE, class T>
__device__ __forceinline__ void load_cols(const T *p, int live, float (&v)[TAIL_COLS]) {
    if constexpr (WHOLE) {
        load_n<TAIL_COLS>(p, v);
    } else {
#pragma unroll
        for (int i = 0; i < TAIL_COLS; i++)
            v[i] = i < live ? (float)load(p + i) : 0.0f;
    }
}

/* Integers arrive as floats: tails only convert them. */
template <bool WHOLE>
__device__ __forceinline__ void load_cols(const i32 *p, int live, float (&v)[TAIL_COLS]) {
#pragma unroll
    for (int i = 0; i < TAIL_COLS; i++)
        v[i] = i < live ? (float)p[i] : 0.0f;
}

template <bool WHOLE, class T>
__device__ __forceinline__ void store_cols(T *p, int live, const float (&v)[TAIL_COLS]) {
    if constexpr (WHOLE) {
        store_n<TAIL_COLS>(p, v);
    } else {
#pragma unroll
        for (int i = 0; i < TAIL_COLS; i++)
            if (i < live)
                store(p + i, v[i]);
    }
}

/* The tail that stores product 0 as it is: f32 [rows][ldc]. */
template <bool WHOLE> struct StoreTail {
    float *c;
    i64 ldc;
    template <int PRODUCTS>
    __device__ __forceinline__ void operator()(int row, int col, int live,
                                               const float (&p)[PRODUCTS][TAIL_COLS]) const {
        store_cols<WHOLE>(c + row * ldc + col, live, p[0]);
    }
};

} /* namespace moe */

#endif
