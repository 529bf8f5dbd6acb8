/* A stable counting sort of items 0 .. n-1 by a key in [0, n_keys): the rows of the result are ordered by key, then by item.
 * Items with key -1 are left out. By digits of BITS bits from the lowest, one pass a digit; each pass is three launches:
 *
 *   sort_count   tiles of consecutive items: how many have which digit
 *   sort_scan    for each digit the sum over the tiles before, and in all
 *   sort_deal    every item to its row
 *
 * Nothing is atomic: a warp's 32 items find their rank among equals by votes, warps and tiles follow each other. Keys and the way of
 * results are the caller's:
 *
 *   struct Keys { i32 operator()(i64 item) const; }      the key, or -1
 *   struct Sink { void put(i64 item, i32 key, i64 row); void skip(i64 item); }      skip: key -1
 *
 * The workspace is laid out by the live n (sort_layout), so what is touched is that of the live items:
 * i32 sorted[64] (sorted[0]: how many have a key), then two lists of n items where there is more than one pass, i32 total[digits],
 * i32 before[digits][tiles]. */
#ifndef MOE_DEVICE_SORT
#define MOE_DEVICE_SORT

namespace moe {

constexpr int SORT_THREADS = 256, SORT_WARPS = SORT_THREADS / 32, SORT_TILE = 2048,
              SORT_TILES = 1024;
constexpr int SORT_AHEAD = 4; /* rounds of 32 items of a warp whose keys are loaded at a time */

__device__ constexpr int sort_bits(int n_keys) {
    int b = 1;
    while (b < 31 && (1ll << b) < n_keys)
        b++;
    return b;
}

/* Passes over digits of at most 10 bits that are as equal as can be. */
template <int N_KEYS> struct SortShape {
    static constexpr int KEY_BITS = sort_bits(N_KEYS), PASSES = (KEY_BITS + 9) / 10,
                         BITS = (KEY_BITS + PASSES - 1) / PASSES,
                         DIGITS = PASSES == 1 ? N_KEYS : 1 << BITS;
};

/* Items of a tile, tiles. */
__device__ __forceinline__ i64 sort_tile(i64 n) {
    return ceil_div(ceil_div(n, (i64)SORT_TILES), (i64)SORT_TILE) * SORT_TILE;
}
__device__ __forceinline__ int sort_tiles(i64 n) {
    return n ? (int)ceil_div(n, sort_tile(n)) : 0;
}

struct SortWork {
    i32 *sorted, *items[2], *total, *before;
};

__device__ __forceinline__ i64 sort_round(i64 n) {
    return (n + 63) / 64 * 64;
}

template <class Shape> __device__ __forceinline__ SortWork sort_layout(i32 *work, i64 n) {
    SortWork w;
    i64 list = Shape::PASSES > 1 ? sort_round(n) : 0;
    w.sorted = work;
    w.items[0] = work + 64;
    w.items[1] = w.items[0] + list;
    w.total = w.items[1] + list;
    w.before = w.total + sort_round(Shape::DIGITS);
    return w;
}

/* Lanes of the warp with the same digit, among those that are present. */
template <int BITS> __device__ __forceinline__ u32 sort_equals(int digit, bool present) {
    u32 same = __ballot_sync(0xffffffffu, present);
#pragma unroll
    for (int b = 0; b < BITS; b++) {
        bool one = (digit >> b) & 1;
        u32 ones = __ballot_sync(0xffffffffu, one);
        same &= one ? ones : ~ones;
    }
    return same;
}

/* Pass PASS's view of its items: all of them, or the list that the pass before made. */
template <class Shape, int PASS, class Keys> struct SortItems {
    const Keys &keys;
    const i32 *list;
    i64 n;
    __device__ __forceinline__ SortItems(const Keys &k, const SortWork &w, i64 all)
        : keys(k), list(PASS ? w.items[(PASS - 1) % 2] : nullptr),
          n(PASS ? (i64)w.sorted[0] : all) {}
    __device__ __forceinline__ i64 item(i64 i) const { return PASS ? (i64)list[i] : i; }
    __device__ __forceinline__ static int digit(i32 key) {
        if (Shape::PASSES == 1)
            return key;
        return (key >> (PASS * Shape::BITS)) & (Shape::DIGITS - 1);
    }
};

/* This lane's items of the next rounds, and their keys; -1 also behind the end. */
template <class Shape, int PASS, class Keys> struct SortRounds {
    i32 item[SORT_AHEAD], key[SORT_AHEAD];
    __device__ __forceinline__ SortRounds(const SortItems<Shape, PASS, Keys> &s, i64 first,
                                          i64 end) {
#pragma unroll
        for (int u = 0; u < SORT_AHEAD; u++) {
            i64 i = first + u * 32 + lane();
            item[u] = i < end ? (i32)s.item(i) : -1;
            key[u] = i < end ? s.keys(item[u]) : -1;
        }
    }
};

/* Into count[warp][digit]: how many of the warp's part of the tile have which digit. */
template <class Shape, int PASS, class Keys>
__device__ __forceinline__ void sort_tile_count(const SortItems<Shape, PASS, Keys> &s, i64 begin,
                                                i64 end, i32 (&count)[SORT_WARPS][Shape::DIGITS]) {
    for (int i = threadIdx.x; i < SORT_WARPS * Shape::DIGITS; i += SORT_THREADS)
        (&count[0][0])[i] = 0;
    __syncthreads();
    for (i64 first = begin; first < end; first += 32 * SORT_AHEAD) {
        SortRounds<Shape, PASS, Keys> r(s, first, end);
#pragma unroll
        for (int u = 0; u < SORT_AHEAD; u++) {
            int digit = s.digit(r.key[u]);
            u32 same = sort_equals<Shape::BITS>(digit, r.key[u] >= 0);
            if (r.key[u] >= 0 && same >> lane() == 1) /* the last of them */
                count[warp()][digit] += __popc(same);
            __syncwarp();
        }
    }
    __syncthreads();
}

/* The warp's part of a tile. */
struct SortPart {
    i64 begin, end;
    __device__ __forceinline__ SortPart(i64 tile, i64 length, i64 n) {
        i64 part = length / SORT_WARPS;
        begin = least(tile * length + warp() * part, n);
        end = least(begin + part, n);
    }
};

template <class Shape, int PASS, class Keys>
__device__ __forceinline__ void sort_count(const Keys &keys, i64 n_all, i32 *work) {
    __shared__ i32 count[SORT_WARPS][Shape::DIGITS];
    SortWork w = sort_layout<Shape>(work, n_all);
    SortItems<Shape, PASS, Keys> s(keys, w, n_all);
    i64 length = sort_tile(s.n);
    int tiles = sort_tiles(s.n);
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        SortPart part(tile, length, s.n);
        sort_tile_count<Shape, PASS>(s, part.begin, part.end, count);
        for (int d = threadIdx.x; d < Shape::DIGITS; d += SORT_THREADS) {
            i32 sum = 0;
            for (int i = 0; i < SORT_WARPS; i++)
                sum += count[i][d];
            w.before[(i64)d * tiles + tile] = sum;
        }
        __syncthreads();
    }
}

/* Sum of the lanes before, and in *all that of the warp. */
__device__ __forceinline__ i32 warp_before(i32 v, i32 *all) {
    i32 sum = v;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        i32 other = __shfl_up_sync(0xffffffffu, sum, d);
        sum += lane() >= d ? other : 0;
    }
    *all = __shfl_sync(0xffffffffu, sum, 31);
    return sum - v;
}

/* One warp a digit. */
template <class Shape, int PASS> __device__ __forceinline__ void sort_scan(i64 n_all, i32 *work) {
    SortWork w = sort_layout<Shape>(work, n_all);
    int tiles = sort_tiles(PASS ? (i64)w.sorted[0] : n_all);
    for (int d = blockIdx.x * SORT_WARPS + warp(); d < Shape::DIGITS; d += gridDim.x * SORT_WARPS) {
        i32 *row = w.before + (i64)d * tiles, sum = 0;
        for (int first = 0; first < tiles; first += 32) {
            int i = first + lane();
            i32 all, before = warp_before(i < tiles ? row[i] : 0, &all);
            if (i < tiles)
                row[i] = sum + before;
            sum += all;
        }
        if (lane() == 0)
            w.total[d] = sum;
    }
}

/* base[i]: the sum of value(0) .. value(i-1), for i = 0 .. n. By the whole block. */
template <int THREADS, class Value>
__device__ __forceinline__ void block_before(const Value &value, int n, i32 *base) {
    __shared__ i32 of_warp[THREADS / 32];
    i32 carry = 0;
    for (int first = 0; first < n; first += THREADS) {
        int i = first + (int)threadIdx.x;
        i32 all, before = warp_before(i < n ? value(i) : 0, &all);
        __syncthreads();
        if (lane() == 0)
            of_warp[warp()] = all;
        __syncthreads();
        i32 sum = carry;
        for (int k = 0; k < THREADS / 32; k++) {
            if (k < warp())
                sum += of_warp[k];
            carry += of_warp[k];
        }
        if (i < n)
            base[i] = sum + before;
    }
    if (threadIdx.x == 0)
        base[n] = carry;
    __syncthreads();
}

template <class Shape, int PASS, class Keys, class Sink>
__device__ __forceinline__ void sort_deal(const Keys &keys, const Sink &sink, i64 n_all,
                                          i32 *work) {
    constexpr bool LAST = PASS == Shape::PASSES - 1;
    __shared__ i32 next[SORT_WARPS][Shape::DIGITS];
    __shared__ i32 base[Shape::DIGITS + 1];
    SortWork w = sort_layout<Shape>(work, n_all);
    SortItems<Shape, PASS, Keys> s(keys, w, n_all);
    i64 length = sort_tile(s.n);
    int tiles = sort_tiles(s.n);
    block_before<SORT_THREADS>([&](int d) { return w.total[d]; }, Shape::DIGITS, base);
    if (PASS == 0 && blockIdx.x == 0 && threadIdx.x == 0)
        w.sorted[0] = tiles ? base[Shape::DIGITS] : 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        SortPart part(tile, length, s.n);
        sort_tile_count<Shape, PASS>(s, part.begin, part.end, next);
        for (int d = threadIdx.x; d < Shape::DIGITS; d += SORT_THREADS) {
            i32 row = base[d] + w.before[(i64)d * tiles + tile];
            for (int i = 0; i < SORT_WARPS; i++) {
                i32 n = next[i][d];
                next[i][d] = row;
                row += n;
            }
        }
        __syncthreads();
        for (i64 first = part.begin; first < part.end; first += 32 * SORT_AHEAD) {
            SortRounds<Shape, PASS, Keys> r(s, first, part.end);
#pragma unroll
            for (int u = 0; u < SORT_AHEAD; u++) {
                i32 key = r.key[u], item = r.item[u];
                int digit = s.digit(key);
                u32 same = sort_equals<Shape::BITS>(digit, key >= 0);
                i32 row = key >= 0 ? next[warp()][digit] + __popc(same & ((1u << lane()) - 1)) : 0;
                __syncwarp();
                if (key >= 0 && same >> lane() == 1)
                    next[warp()][digit] = row + 1;
                __syncwarp();
                if (LAST && key >= 0)
                    sink.put(item, key, row);
                else if (key >= 0)
                    w.items[PASS % 2][row] = item;
                else if (PASS == 0 && item >= 0)
                    sink.skip(item);
            }
        }
        __syncthreads();
    }
}

/* out[c], c = 0 .. cells: how many of the sorted rows lie before cell c; before.operator()(row, c) says so, out[cells] is all of them. */
template <class Before>
__device__ __forceinline__ void sort_table(const Before &before, i64 rows, int cells, i32 *out) {
    for (i64 c = (i64)blockIdx.x * blockDim.x + threadIdx.x; c <= cells;
         c += (i64)gridDim.x * blockDim.x) {
        i64 lo = c < cells ? 0 : rows, hi = rows;
        while (lo < hi) {
            i64 mid = (lo + hi) / 2;
            if (before(mid, (int)c))
                lo = mid + 1;
            else
                hi = mid;
        }
        out[c] = (i32)lo;
    }
}

} /* namespace moe */

#endif
