/* What the runtime itself does to values on the device, between the steps of a plan: base/cuda_abi.h has the kernels and their
 * buffers, codegen/cuda/runtime_kernels.c puts them into every plan. */
#ifndef MOE_DEVICE_RUNTIME
#define MOE_DEVICE_RUNTIME

namespace moe {

/* A number that came in place of a buffer. */
template <int N> __device__ __forceinline__ i64 number(const MoeArgs<N> &a, int i) {
    return (i64)a.p[i];
}

__device__ __forceinline__ i64 first_index() {
    return (i64)blockIdx.x * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ i64 index_stride() {
    return (i64)gridDim.x * blockDim.x;
}

/* The tree over micro-batches: out = slot[s-1] + ( .. (slot[0] + source)), older operands on the left. Element by element, so
 * out may be any of the others. */
template <int N> __device__ __forceinline__ void rt_fold(const MoeArgs<N> &a) {
    const float *source = buf<const float>(a, 0);
    float *out = buf<float>(a, 1);
    const i64 n = number(a, 2);
    const int slots = (int)number(a, 3);
    for (i64 i = first_index(); i < n; i += index_stride()) {
        float v = source[i];
        for (int s = 0; s < slots; s++)
            v = buf<const float>(a, 4 + s)[i] + v;
        out[i] = v;
    }
}

__device__ __forceinline__ void rt_add_i32(const MoeArgs<3> &a) {
    const i32 *source = buf<const i32>(a, 0);
    i32 *sum = buf<i32>(a, 1);
    const i64 n = number(a, 2);
    for (i64 i = first_index(); i < n; i += index_stride())
        sum[i] = (i32)((u32)sum[i] + (u32)source[i]);
}

/* A table of rows in which the slots outside [lo, hi) are empty and every row keeps its place. */
__device__ __forceinline__ void rt_window(const MoeArgs<5> &a) {
    const i32 *all = buf<const i32>(a, 0);
    i32 *window = buf<i32>(a, 1);
    const i64 n = number(a, 2);
    const i32 lo = all[number(a, 3)], hi = all[number(a, 4)];
    for (i64 i = first_index(); i < n; i += index_stride())
        window[i] = least(most(all[i], lo), hi);
}

/* An elastic value (MoeRtElastic). */
struct Elastic {
    const i32 *rows;
    i64 limit, seen, need;
};

/* One block. What does not fit stops the program before a kernel touches it. */
__device__ __forceinline__ void rt_guard_rows(const MoeArgs<3> &a) {
    Elastic *e = buf<Elastic>(a, 0);
    const i64 n = number(a, 1);
    for (i64 i = threadIdx.x; i < n; i += blockDim.x) {
        const i64 rows = *e[i].rows;
        e[i].seen = most(e[i].seen, rows);
        if (rows > e[i].limit) {
            e[i].need = rows;
            *a.stop = (int)number(a, 2);
        }
    }
}

__device__ __forceinline__ bool is_finite(float v) {
    return (__float_as_uint(v) & 0x7f800000u) != 0x7f800000u;
}

__device__ __forceinline__ void rt_guard_finite(const MoeArgs<2> &a, int code) {
    if (threadIdx.x == 0 && !(is_finite(*buf<const float>(a, 0)) && is_finite(*buf<const float>(a, 1))))
        *a.stop = code;
}

/* ---- exchanges between ranks ---- */

/* n bytes by the block's threads, in the widest words that both addresses and n allow. */
template <class Word>
__device__ __forceinline__ void copy_words(void *to, const void *from, i64 bytes) {
    for (i64 i = threadIdx.x, n = bytes / (i64)sizeof(Word); i < n; i += blockDim.x)
        ((Word *)to)[i] = ((const Word *)from)[i];
}
__device__ __forceinline__ void copy_bytes(void *to, const void *from, i64 bytes) {
    const u64 all = (u64)to | (u64)from | (u64)bytes;
    if (all % 16 == 0)
        copy_words<Words4>(to, from, bytes);
    else if (all % 4 == 0)
        copy_words<u32>(to, from, bytes);
    else if (all % 2 == 0)
        copy_words<bf16>(to, from, bytes);
    else
        copy_words<u8>(to, from, bytes);
}

/* Rows [lo, hi) by index, `lanes` threads a row. */
template <class Word>
__device__ __forceinline__ void gather_words(char *to, const char *from, const i32 *index, i64 rb,
                                             i64 lo, i64 hi) {
    const int words = (int)(rb / (i64)sizeof(Word));
    int lanes = 1;
    while (lanes < words && lanes < 64)
        lanes *= 2;
    const int at = threadIdx.x % lanes, step = blockDim.x / lanes;
    for (i64 r = lo + threadIdx.x / lanes; r < hi; r += step) {
        const Word *source = (const Word *)(from + index[r] * rb);
        Word *target = (Word *)(to + r * rb);
        for (int w = at; w < words; w += lanes)
            target[w] = source[w];
    }
}
__device__ __forceinline__ void gather_rows(char *to, const char *from, const i32 *index, i64 rb,
                                            i64 lo, i64 hi) {
    const u64 all = (u64)to | (u64)from | (u64)rb;
    if (all % 16 == 0)
        gather_words<Words4>(to, from, index, rb, lo, hi);
    else if (all % 4 == 0)
        gather_words<u32>(to, from, index, rb, lo, hi);
    else if (all % 2 == 0)
        gather_words<bf16>(to, from, index, rb, lo, hi);
    else
        gather_words<u8>(to, from, index, rb, lo, hi);
}

/* MoeRtCopy. */
struct Copy {
    char *to;
    const char *from;
    const i32 *index;
    i64 row_bytes, n, first;
};

/* A block takes one piece at a time; the copy that it is of is found by halving. */
__device__ __forceinline__ void rt_gather(const MoeArgs<3> &a) {
    constexpr i64 PIECE = 32768; /* MOE_RT_PIECE */
    const Copy *copies = buf<const Copy>(a, 0);
    const i64 n = number(a, 1), pieces = number(a, 2);
    for (i64 p = blockIdx.x; p < pieces; p += gridDim.x) {
        i64 lo = 0, hi = n;
        while (hi - lo > 1) {
            const i64 mid = (lo + hi) / 2;
            (copies[mid].first <= p ? lo : hi) = mid;
        }
        const Copy c = copies[lo];
        const i64 piece = p - c.first;
        if (c.index) {
            const i64 rows = c.row_bytes >= PIECE ? 1 : PIECE / c.row_bytes;
            gather_rows(c.to, c.from, c.index, c.row_bytes, piece * rows,
                        least((piece + 1) * rows, c.n));
        } else {
            const i64 at = piece * PIECE;
            copy_bytes(c.to + at, c.from + at, least(PIECE, c.n * c.row_bytes - at));
        }
    }
}

__device__ __forceinline__ float tree_add(float a, float b) {
    return a + b;
}
__device__ __forceinline__ i32 tree_add(i32 a, i32 b) {
    return (i32)((u32)a + (u32)b);
}

/* The tree of docs/NUMBERS.md over the ranks: a counter in binary, whose digits are roots of 2^b ranks. */
template <class T, int N> __device__ __forceinline__ void rank_sum(const MoeArgs<N> &a) {
    constexpr int LEVELS = 13; /* up to 8191 ranks */
    const T *own = buf<const T>(a, 0), *others = buf<const T>(a, 1);
    T *out = buf<T>(a, 2);
    const int ranks = (int)number(a, 3), self = (int)number(a, 4);
    const i64 rows = number(a, 5), columns = number(a, 6), own_stride = number(a, 7),
              out_stride = number(a, 8), term = rows * columns;
    for (i64 i = first_index(); i < term; i += index_stride()) {
        const i64 r = rows == 1 ? 0 : i / columns, c = i - r * columns;
        T roots[LEVELS], v;
        for (int k = 0; k < ranks; k++) {
            v = k == self ? own[r * own_stride + c] : others[(k < self ? k : k - 1) * term + i];
            bool open = true;
#pragma unroll
            for (int b = 0; b < LEVELS; b++)
                if (open) {
                    if (k >> b & 1) {
                        v = tree_add(roots[b], v);
                    } else {
                        roots[b] = v;
                        open = false;
                    }
                }
        }
        bool any = false;
#pragma unroll
        for (int b = 0; b < LEVELS; b++)
            if (ranks >> b & 1) {
                v = any ? tree_add(roots[b], v) : roots[b];
                any = true;
            }
        out[r * out_stride + c] = v;
    }
}
__device__ __forceinline__ void rt_rank_sum(const MoeArgs<10> &a) {
    if (number(a, 9))
        rank_sum<i32>(a);
    else
        rank_sum<float>(a);
}

/* ---- products by a library ---- */

__device__ __forceinline__ void rt_copy(const MoeArgs<3> &a) {
    char *to = buf<char>(a, 0);
    const char *from = buf<const char>(a, 1);
    const i64 bytes = number(a, 2), words = bytes / (i64)sizeof(Words4);
    for (i64 i = first_index(); i < words; i += index_stride())
        ((Words4 *)to)[i] = ((const Words4 *)from)[i];
    for (i64 i = words * (i64)sizeof(Words4) + first_index(); i < bytes; i += index_stride())
        to[i] = from[i];
}

/* In [-1, 1), by a counter (splitmix64). */
__device__ __forceinline__ float random_number(u64 counter) {
    u64 z = counter * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    z ^= z >> 31;
    return (float)(z >> 40) * 0x1p-23f - 1.0f;
}

/* A row mirrored with the other sign times a column that is mirrored sums up to nothing: all that is left is rounding, in which every
 * change of order shows. */
__device__ __forceinline__ void rt_rows_fill(const MoeArgs<7> &a) {
    const i64 rows = number(a, 1), columns = number(a, 2), period = number(a, 3), n = rows * columns;
    const u64 seed = (u64)number(a, 4) << 48;
    const int mirror = (int)number(a, 6);
    for (i64 i = first_index(); i < n; i += index_stride()) {
        const i64 row = i / columns % period, col = i % columns;
        const i64 r = mirror == 2 ? least(row, rows - 1 - row) : row;
        const i64 c = mirror & 1 ? least(col, columns - 1 - col) : col;
        float v = random_number(seed + (u64)(r * columns + c + 1));
        if (mirror == 3)
            v = 2 * col < columns - 1 ? v : 2 * col == columns - 1 ? 0.0f : -v;
        if (number(a, 5))
            store(buf<bf16>(a, 0) + i, v);
        else
            store(buf<float>(a, 0) + i, v);
    }
}

__device__ __forceinline__ void rt_rows_differ(const MoeArgs<6> &a) {
    const bf16 *have = buf<const bf16>(a, 0), *want = buf<const bf16>(a, 1); /* two bytes at a time */
    const i64 columns = number(a, 3) / 2, period = number(a, 4), n = number(a, 2) * columns;
    for (i64 i = first_index(); i < n; i += index_stride())
        if (have[i] != want[i / columns % period * columns + i % columns])
            *buf<i32>(a, 5) = 1;
}

/* ---- attention by a library ---- */

/* n matrices [rows][cols] of 4-byte words, exchanged dims: what is a number a row and head, of a sequence each. */
__device__ __forceinline__ void rt_transpose(const MoeArgs<5> &a) {
    const u32 *from = buf<const u32>(a, 0);
    u32 *to = buf<u32>(a, 1);
    const i64 n = number(a, 2), rows = number(a, 3), cols = number(a, 4), all = n * rows * cols;
    for (i64 i = first_index(); i < all; i += index_stride()) {
        const i64 r = i % rows, c = i / rows % cols, m = i / (rows * cols);
        to[i] = from[(m * rows + r) * cols + c];
    }
}

__device__ __forceinline__ void rt_widen(const MoeArgs<3> &a) {
    const bf16 *from = buf<const bf16>(a, 0);
    float *to = buf<float>(a, 1);
    const i64 n = number(a, 2);
    for (i64 i = 8 * first_index(); i < n; i += 8 * index_stride()) {
        if (i + 8 <= n) {
            float v[8];
            load_n(from + i, v);
            store_n(to + i, v);
        } else {
            for (i64 k = i; k < n; k++)
                to[k] = from_bf16(from[k]);
        }
    }
}

} /* namespace moe */

#endif
