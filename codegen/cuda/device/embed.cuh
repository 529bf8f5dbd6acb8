/* embedding_grad: for each id of the table the sum of dy over its tokens, by shard ascending from +0, then the tree over shards in which
 * those without tokens of this id are absent (docs/NUMBERS.md 4). The tokens were sorted by id (sort.cuh), so each id has a run.
 *
 * embed_sum: a warp has an id and a slab of columns, and walks the id's tokens. An id of more than MANY tokens would keep few warps busy
 * for long: its shards are summed beforehand, each by other warps (embed_shards), and embed_sum folds what they left. Such an id is
 * found at the first multiple of MANY in its run, which also numbers its place in the workspace; so no list of them is needed. */
#ifndef MOE_DEVICE_EMBED
#define MOE_DEVICE_EMBED

namespace moe {

constexpr int EMBED_THREADS = 256, EMBED_WARPS = EMBED_THREADS / 32;

/* Ids as rows of the table's part of n, from id `first`; -1: elsewhere. */
struct PartKeys {
    const i32 *ids;
    i64 first;
    i32 n;
    __device__ __forceinline__ i32 operator()(i64 t) const {
        i64 row = ids[t] - first;
        return row >= 0 && row < n ? (i32)row : -1;
    }
};

struct OrderSink {
    i32 *order;
    __device__ __forceinline__ void put(i64 t, i32, i64 r) const { order[r] = (i32)t; }
    __device__ __forceinline__ void skip(i64) const {}
};

struct PartBefore {
    PartKeys keys;
    const i32 *order;
    __device__ __forceinline__ bool operator()(i64 r, int c) const { return keys(order[r]) < c; }
};

/* The workspace for n live tokens; `sort` and `partial` are not needed at the same time. */
struct EmbedWork {
    i32 *start, *order, *sort; /* start [vocab+1], order [n] */
    float *partial;            /* [n/MANY+1][SHARDS][COLS] */
    __device__ __forceinline__ EmbedWork(i32 *work, i64 n, i64 vocab) {
        start = work;
        order = start + sort_round(vocab + 1);
        sort = order + sort_round(n);
        partial = (float *)sort;
    }
};

/* The tree over shards, of items that come in ascending order with gaps: at[l] is a subtree that waits for a sibling of 2^l places. */
template <int LEVELS, int E> struct ShardFold {
    float at[LEVELS > 0 ? LEVELS : 1][E], sum[E]; /* sum: of the last item and what is below it */
    u32 here;
    int last; /* place; -1: nothing came yet */

    __device__ __forceinline__ void climb(int below) {
#pragma unroll
        for (int l = 0; l < LEVELS; l++)
            if (l < below && (here >> l & 1u)) {
#pragma unroll
                for (int i = 0; i < E; i++)
                    sum[i] = at[l][i] + sum[i];
                here &= ~(1u << l);
            }
    }
    __device__ __forceinline__ void push(int place, const float (&v)[E]) {
        if (last >= 0) {
            u32 differ = (u32)(last ^ place);
            int meet = 0; /* the level at which their subtrees are siblings */
#pragma unroll
            for (int l = 1; l < LEVELS; l++)
                meet = differ >> l ? l : meet;
            climb(meet);
#pragma unroll
            for (int l = 0; l < LEVELS; l++)
                if (l == meet) {
#pragma unroll
                    for (int i = 0; i < E; i++)
                        at[l][i] = sum[i];
                }
            here |= 1u << meet;
        }
#pragma unroll
        for (int i = 0; i < E; i++)
            sum[i] = v[i];
        last = place;
    }
};

/* sum = the rows of dy at columns [at, at+E) of tokens order[begin, end), ascending from +0. By a warp; lanes with live = false only
 * take part. */
template <int COLS, int E, int U>
__device__ __forceinline__ void sum_tokens(const float *dy, const i32 *order, i64 begin, i64 end,
                                           int at, bool live, float (&sum)[E]) {
#pragma unroll
    for (int i = 0; i < E; i++)
        sum[i] = 0.0f;
    for (i64 base = begin; base < end; base += 32) {
        int n = (int)least(end - base, (i64)32);
        i32 mine = lane() < n ? order[base + lane()] : 0;
        for (int k = 0; k < n; k += U) {
            float x[U][E];
#pragma unroll
            for (int u = 0; u < U; u++) {
                i64 t = __shfl_sync(0xffffffffu, mine, k + u);
                if (k + u < n && live)
                    load_n<E>(dy + t * COLS + at, x[u]);
            }
#pragma unroll
            for (int u = 0; u < U; u++)
                if (k + u < n && live) {
#pragma unroll
                    for (int i = 0; i < E; i++)
                        sum[i] += x[u][i];
                }
        }
    }
}

/* The first of the rows [lo, hi) of `order` whose token is not before `token`. */
__device__ __forceinline__ i64 first_from(const i32 *order, i64 lo, i64 hi, i32 token) {
    while (lo < hi) {
        i64 mid = (lo + hi) / 2;
        if (order[mid] < token)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

template <int VOCAB, int COLS, int SHARDS, int LEVELS, int MANY> struct EmbedGrad {
    const float *dy;
    const i32 *tok; /* NULL: one shard */
    EmbedWork work;
    i64 n; /* tokens in the order */

    __device__ __forceinline__ i64 shard_end(i64 lo, i64 hi, int v) const {
        return tok ? first_from(work.order, lo, hi, tok[v + 1]) : hi;
    }
    __device__ __forceinline__ float *partial(i64 place, int v) const {
        return work.partial + (place * SHARDS + v) * COLS;
    }

    /* Rows [lo, hi) of the id that has place s; false if s is none. */
    __device__ __forceinline__ bool many_at(i64 s, const PartKeys &keys, i64 *lo, i64 *hi) const {
        if (s * MANY >= n)
            return false;
        i32 id = keys(work.order[s * MANY]);
        *lo = work.start[id];
        *hi = work.start[id + 1];
        return *hi - *lo > MANY && ceil_div(*lo, (i64)MANY) == s;
    }

    /* One block's share of all (id of many tokens, shard, slab of 32 columns). */
    __device__ __forceinline__ void shards(const PartKeys &keys) const {
        constexpr int SLABS = (COLS + 31) / 32, TASKS = SHARDS * SLABS;
        __shared__ i32 listed[EMBED_THREADS];
        __shared__ int of_warp[EMBED_WARPS];
        i64 places = n / MANY + 1;
        for (i64 s0 = 0; s0 < places; s0 += EMBED_THREADS) {
            i64 s = s0 + threadIdx.x, lo, hi;
            bool many = many_at(s, keys, &lo, &hi);
            u32 those = __ballot_sync(0xffffffffu, many);
            if (lane() == 0)
                of_warp[warp()] = __popc(those);
            __syncthreads();
            int before = __popc(those & ((1u << lane()) - 1)), found = 0;
            for (int w = 0; w < EMBED_WARPS; w++) {
                before += w < warp() ? of_warp[w] : 0;
                found += of_warp[w];
            }
            if (many)
                listed[before] = (i32)s;
            __syncthreads();
            for (i64 task = (i64)blockIdx.x * EMBED_WARPS + warp(); task < (i64)found * TASKS;
                 task += (i64)gridDim.x * EMBED_WARPS)
                shard(keys, listed[task / TASKS], (int)(task % TASKS) / SLABS, (int)(task % SLABS));
            __syncthreads();
        }
    }

    __device__ __forceinline__ void shard(const PartKeys &keys, i64 s, int v, int slab) const {
        i64 lo, hi;
        many_at(s, keys, &lo, &hi);
        i64 begin = tok ? first_from(work.order, lo, hi, tok[v]) : lo,
            end = shard_end(begin, hi, v);
        int at = slab * 32 + lane();
        float sum[1];
        sum_tokens<COLS, 1, 16>(dy, work.order, begin, end, at, at < COLS, sum);
        if (begin < end && at < COLS)
            partial(s, v)[at] = sum[0];
    }

    /* E columns a lane of id's row. */
    template <int E> __device__ __forceinline__ void id_slab(i32 id, int at, float *out) const {
        i64 lo = work.start[id], hi = work.start[id + 1];
        bool live = at < COLS;
        ShardFold<LEVELS, E> fold;
        fold.here = 0;
        fold.last = -1;
#pragma unroll
        for (int i = 0; i < E; i++)
            fold.sum[i] = 0.0f;
        for (i64 begin = lo, end; begin < hi; begin = end) {
            int v = tok && SHARDS > 1 ? segs_cell(tok, SHARDS, work.order[begin]) : 0;
            end = shard_end(begin, hi, v);
            float sum[E];
            if (hi - lo > MANY) {
                if (live)
                    load_n<E>(partial(ceil_div(lo, (i64)MANY), v) + at, sum);
            } else {
                sum_tokens<COLS, E, 4>(dy, work.order, begin, end, at, live, sum);
            }
            fold.push(v, sum);
        }
        fold.climb(LEVELS);
        if (live)
            store_n<E>(out + (i64)id * COLS + at, fold.sum);
    }

    template <int E> __device__ __forceinline__ void sum(float *out) const {
        constexpr int SLABS = (COLS + 32 * E - 1) / (32 * E);
        for (i64 task = (i64)blockIdx.x * EMBED_WARPS + warp(); task < (i64)VOCAB * SLABS;
             task += (i64)gridDim.x * EMBED_WARPS)
            id_slab<E>((i32)(task / SLABS), ((int)(task % SLABS) * 32 + lane()) * E, out);
    }
};

} /* namespace moe */

#endif
