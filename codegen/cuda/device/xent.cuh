/* The loss head, -ln softmax(h w^T)[label] and its gradient, by chunks of the vocabulary, so that no [T, N] tensor is there.
 *
 *   first pass    a chunk's logits (gemm_*.cuh) leave the largest of every 8 columns and sum e^(logit - largest); xent_merge
 *                 makes of them each row's, blocks of 1024 columns one after the other: the order is that of the vocabulary alone
 *   between       nll and lse = top + ln sum (xent_loss), or the sums of a part of the vocabulary (xent_sums)
 *   second pass   a chunk's logits once more, as dlogits = (e^(logit - lse) - [label]) * dnll in h's type; dh's chains go on over
 *                 it, and dw's rows are its product with h
 *
 * A chunk is an entry of a table in memory, i32 {its first row of w, how many}, so that one kernel serves all chunks. */
#ifndef MOE_DEVICE_XENT
#define MOE_DEVICE_XENT

namespace moe {

constexpr int XENT_GROUP = TAIL_COLS;          /* columns of one entry of the first pass */
constexpr int XENT_BLOCK = 1024;               /* columns whose entries are joined at once */
constexpr int XENT_ENTRY = 16;                 /* i32 of the table a chunk */

struct XentChunk {
    int first, n;
};
__device__ __forceinline__ XentChunk xent_chunk(const i32 *entry) {
    return XentChunk{entry[0], entry[1]};
}

/* The table: chunks of `width` columns of n. */
__device__ __forceinline__ void xent_table(i32 *table, int n, int width) {
    for (int i = (int)threadIdx.x; i * width < n; i += (int)blockDim.x) {
        table[i * XENT_ENTRY] = i * width;
        table[i * XENT_ENTRY + 1] = least(width, n - i * width);
    }
}

/* Labels, and the rows before .. before + n of the whole vocabulary that w has. */
struct XentLabels {
    const i32 *labels;
    int before, n;
    bool whole; /* nothing is elsewhere */

    static constexpr int IGNORED = -1, ELSEWHERE = -2;
    /* The label's row of w. Ids are checked where data is read: what is too large takes the last. */
    __device__ __forceinline__ int column(i64 row) const {
        const int label = labels[row];
        if (label < 0)
            return IGNORED;
        if (whole)
            return least(label, n - 1);
        return (u32)(label - before) < (u32)n ? label - before : ELSEWHERE;
    }
};
__device__ __forceinline__ XentLabels xent_whole(const i32 *labels, int n) {
    return XentLabels{labels, 0, n, true};
}
__device__ __forceinline__ XentLabels xent_part(const i32 *labels, int n, const i32 *part) {
    return XentLabels{labels, *part * n, n, false};
}

/* Of a row so far: the largest logit, sum e^(logit - top), the label's logit. f32 [T] each. */
struct XentState {
    float *top, *sum, *own;
};

/* The tail of the first pass's product. stats: [T][ld] pairs. */
struct XentStatsTail {
    XentLabels labels;
    Words2 *stats;
    i64 ld;
    float *own;
    int first; /* the chunk's */

    __device__ __forceinline__ void operator()(int row, int col, int live,
                                               const float (&z)[1][TAIL_COLS]) const {
        float top = z[0][0], sum = 0;
#pragma unroll
        for (int i = 1; i < TAIL_COLS; i++)
            if (i < live)
                top = max_nan(top, z[0][i]);
#pragma unroll
        for (int i = 0; i < TAIL_COLS; i++)
            if (i < live)
                sum += expf(z[0][i] - top);
        stats[row * ld + col / XENT_GROUP] = Words2{__float_as_uint(top), __float_as_uint(sum)};
        const int at = labels.column(row) - first - col;
#pragma unroll
        for (int i = 0; i < TAIL_COLS; i++)
            if (i == at)
                own[row] = z[0][i];
    }
};

/* The chunk's n columns into the state of rows 0 .. rows: a warp a row. begin: the state is not there yet. */
__device__ __forceinline__ void xent_merge(const Words2 *stats, i64 ld, int n, i64 rows,
                                           XentState state, bool begin) {
    constexpr int MINE = XENT_BLOCK / XENT_GROUP / 32;
    const int groups = ceil_div(n, XENT_GROUP), warps = (int)blockDim.x / 32;
    for (i64 row = (i64)blockIdx.x * warps + warp(); row < rows; row += (i64)gridDim.x * warps) {
        float top = begin ? -MOE_INFINITY : state.top[row], sum = begin ? 0.0f : state.sum[row];
        for (int g = 0; g < groups; g += MINE * 32) {
            float m[MINE], s[MINE], largest = -MOE_INFINITY, part = 0;
#pragma unroll
            for (int i = 0; i < MINE; i++) {
                const int at = g + i * 32 + lane();
                m[i] = -MOE_INFINITY, s[i] = 0;
                if (at < groups) {
                    const Words2 entry = stats[row * ld + at];
                    m[i] = __uint_as_float(entry.x), s[i] = __uint_as_float(entry.y);
                }
                largest = max_nan(largest, m[i]);
            }
            largest = warp_max(largest);
#pragma unroll
            for (int i = 0; i < MINE; i++)
                part = fmaf(s[i], expf(m[i] - largest), part);
            part = warp_sum(part);
            const float next = max_nan(top, largest);
            sum = fmaf(sum, expf(top - next), part * expf(largest - next));
            top = next;
        }
        __syncwarp(); /* all have read the state */
        if (lane() == 0)
            state.top[row] = top, state.sum[row] = sum;
    }
}

/* nll and, where it is not null, lse. */
__device__ __forceinline__ void xent_loss(XentState state, XentLabels labels, i64 rows, float *nll,
                                          float *lse) {
    const i64 step = (i64)gridDim.x * blockDim.x;
    for (i64 row = (i64)blockIdx.x * blockDim.x + threadIdx.x; row < rows; row += step) {
        const bool live = labels.column(row) >= 0;
        const float log_sum = logf(state.sum[row]);
        nll[row] = live ? log_sum + (state.top[row] - state.own[row]) : 0.0f;
        if (lse)
            lse[row] = live ? state.top[row] + log_sum : 0.0f;
    }
}

/* out [T, 3 * parts]: this part's top, sum and label's logit in its columns, zeros in the others. */
__device__ __forceinline__ void xent_sums(XentState state, XentLabels labels, i64 rows,
                                          const i32 *part, int parts, float *out) {
    const i64 n = rows * parts, step = (i64)gridDim.x * blockDim.x;
    for (i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x; at < n; at += step) {
        const i64 row = at / parts;
        const int own = labels.column(row);
        const bool mine = at % parts == *part && own != XentLabels::IGNORED;
        out[at * 3] = mine ? state.top[row] : 0.0f;
        out[at * 3 + 1] = mine ? state.sum[row] : 0.0f;
        out[at * 3 + 2] = mine && own >= 0 ? state.own[row] : 0.0f;
    }
}

/* The tail of the second pass's product: dlogits [T][ld], ld a multiple of 8: columns up to the next one are zeros. */
template <class T> struct XentGradTail {
    XentLabels labels;
    const float *lse, *dnll;
    T *out;
    i64 ld;
    int first;

    __device__ __forceinline__ void operator()(int row, int col, int live,
                                               const float (&z)[1][TAIL_COLS]) const {
        const int label = labels.column(row), at = label - first - col;
        const bool counts = label != XentLabels::IGNORED;
        const float log_sum = lse[row], scale = dnll[row];
        float g[TAIL_COLS];
#pragma unroll
        for (int i = 0; i < TAIL_COLS; i++) {
            const float p = expf(z[0][i] - log_sum);
            g[i] = counts && i < live ? (label >= 0 && i == at ? p - 1.0f : p) * scale : 0.0f;
        }
        store_n(out + row * ld + col, g);
    }
};

/* cross_entropy_join: the parts' largest m, sums s and label's logits (0 in all but one) -> lse = M + ln S and nll = ln S + (M -
 * label's), M the largest m and S = sum s e^(m - M), parts ascending. nll, lse: may be null. */
__device__ __forceinline__ void xent_join(const float *sums, const i32 *labels, i64 rows, int parts,
                                          float *nll, float *lse) {
    const i64 step = (i64)gridDim.x * blockDim.x;
    for (i64 row = (i64)blockIdx.x * blockDim.x + threadIdx.x; row < rows; row += step) {
        const float *of_row = sums + row * 3 * parts;
        float top = -MOE_INFINITY, sum = 0, own = 0;
        for (int p = 0; p < parts; p++)
            top = max_nan(top, of_row[3 * p]);
        for (int p = 0; p < parts; p++) {
            sum = fmaf(of_row[3 * p + 1], expf(of_row[3 * p] - top), sum);
            own += of_row[3 * p + 2];
        }
        const bool live = labels[row] >= 0;
        const float log_sum = logf(sum);
        if (nll)
            nll[row] = live ? log_sum + (top - own) : 0.0f;
        if (lse)
            lse[row] = live ? top + log_sum : 0.0f;
    }
}

} /* namespace moe */

#endif
