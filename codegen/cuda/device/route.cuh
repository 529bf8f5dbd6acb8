/* Where rows of experts come from: integers only, all of them those of the interpreter. One stable sort (sort.cuh) makes each plan; a
 * table of rows is then found by searching the sorted rows for each cell's beginning. */
#ifndef MOE_DEVICE_ROUTE
#define MOE_DEVICE_ROUTE

namespace moe {

/* ---- route_plan: choices by (expert, token) ---- */

/* The key of choice p is its number itself: an expert, or a global slot. */
struct IdKeys {
    const i32 *ids;
    __device__ __forceinline__ i32 operator()(i64 p) const { return ids[p]; }
};

/* Choice p has row r; both tables may be absent. */
struct RouteSink {
    i32 *src, *inv;
    __device__ __forceinline__ void put(i64 p, i32, i64 r) const {
        if (src)
            src[r] = (i32)p;
        if (inv)
            inv[p] = (i32)r;
    }
    __device__ __forceinline__ void skip(i64) const {}
};

/* Whether sorted row r is before the first row of cell (expert, shard): its choice order[r] is one of a token. */
struct RouteBefore {
    const i32 *ids, *order, *tok; /* tok: NULL with one shard */
    int shards, k;
    __device__ __forceinline__ bool operator()(i64 r, int c) const {
        i32 p = order[r], e = ids[p], cell = c / shards;
        return e < cell || (e == cell && tok && p < (i64)tok[c % shards] * k);
    }
};

/* ---- between ranks: global slots ---- */

/* The global slot of each choice: by `place` from the expert, or the choice itself. */
struct Places {
    const i32 *ids, *place;
    int k, slots, per_chunk; /* slots of a rank; of a chunk, rounded up */
    __device__ __forceinline__ i32 slot(i64 p) const {
        i32 id = ids[p];
        return place ? place[id] : id;
    }
    /* Of a slot of its rank. */
    __device__ __forceinline__ int chunk(i32 slot) const { return slot / per_chunk; }
};

/* send_plan. Choice p stands for its token at the rank that it names, if no choice before it names that: the key is (rank, the first
 * chunk that any of them wants there). */
struct SendKeys {
    Places at;
    int chunks;
    __device__ __forceinline__ i32 operator()(i64 p) const {
        i64 first = p / at.k * at.k;
        int j = (int)(p - first);
        i32 mine = at.slot(p), rank = mine / at.slots, chunk = at.chunk(mine % at.slots);
        for (int i = 0; i < at.k; i++) {
            i32 other = at.slot(first + i);
            if (other / at.slots != rank)
                continue;
            if (i < j)
                return -1;
            chunk = least(chunk, at.chunk(other % at.slots));
        }
        return rank * chunks + chunk;
    }
};

struct SendSink {
    i32 *idx, *cells; /* idx may be NULL; cells: the sorted keys */
    int k;
    __device__ __forceinline__ void put(i64 p, i32 key, i64 s) const {
        if (idx)
            idx[s] = (i32)(p / k);
        cells[s] = key;
    }
    __device__ __forceinline__ void skip(i64) const {}
};

struct SendBefore {
    const i32 *cells;
    __device__ __forceinline__ bool operator()(i64 s, int c) const { return cells[s] < c; }
};

/* expert_plan. Slots of this rank, from `base`. */
struct HerePlaces {
    Places at;
    i32 base;
    __device__ __forceinline__ HerePlaces(const Places &p, const i32 *ep_rank)
        : at(p), base(ep_rank[0] * p.slots) {}
    /* 0 .. slots-1, or -1: elsewhere. */
    __device__ __forceinline__ i32 slot(i64 p) const {
        i32 s = at.slot(p) - base;
        return s >= 0 && s < at.slots ? s : -1;
    }
};

/* Tokens by the first chunk here that wants them. */
struct TokenKeys {
    HerePlaces here;
    __device__ __forceinline__ i32 operator()(i64 t) const {
        i32 first = -1;
        for (int j = 0; j < here.at.k; j++) {
            i32 s = here.slot(t * here.at.k + j);
            if (s >= 0 && (first < 0 || here.at.chunk(s) < first))
                first = here.at.chunk(s);
        }
        return first;
    }
};

/* Token t is received row u; -1: it is not received. */
struct TokenSink {
    i32 *tokens, *received; /* [u], [t] */
    __device__ __forceinline__ void put(i64 t, i32, i64 u) const {
        tokens[u] = (i32)t;
        received[t] = (i32)u;
    }
    __device__ __forceinline__ void skip(i64 t) const { received[t] = -1; }
};

struct TokenBefore {
    TokenKeys keys;
    const i32 *tokens, *tok;
    int shards;
    __device__ __forceinline__ bool operator()(i64 u, int c) const {
        i32 t = tokens[u], chunk = keys(t), cell = c / shards;
        return chunk < cell || (chunk == cell && tok && t < tok[c % shards]);
    }
};

/* Choices of slots here by slot. */
struct ChoiceKeys {
    HerePlaces here;
    __device__ __forceinline__ i32 operator()(i64 p) const { return here.slot(p); }
};

struct ChoiceSink {
    const i32 *received;
    i32 *src, *inv, *choices; /* src, inv may be NULL; choices: [r], in the group's tokens */
    int k;
    __device__ __forceinline__ i64 position(i64 p) const {
        i64 t = p / k, u = received[t];
        return u < 0 ? -1 : u * k + (p - t * k);
    }
    __device__ __forceinline__ void put(i64 p, i32, i64 r) const {
        i64 at = position(p);
        if (src)
            src[r] = (i32)at;
        if (inv)
            inv[at] = (i32)r;
        choices[r] = (i32)p;
    }
    __device__ __forceinline__ void skip(i64 p) const {
        i64 at = inv ? position(p) : -1;
        if (at >= 0)
            inv[at] = -1;
    }
};

struct ChoiceBefore {
    HerePlaces here;
    const i32 *choices, *tok;
    int shards;
    __device__ __forceinline__ bool operator()(i64 r, int c) const {
        i32 p = choices[r], slot = here.slot(p), cell = c / shards;
        return slot < cell || (slot == cell && tok && p < (i64)tok[c % shards] * here.at.k);
    }
};

/* expert_plan's workspace for n live tokens: lists, and behind them the place of the two sorts, one after the other. */
struct ExpertWork {
    i32 *received, *tokens, *choices, *sort;
    __device__ __forceinline__ ExpertWork(i32 *work, i64 n, int k) {
        received = work;
        tokens = received + sort_round(n);
        choices = tokens + sort_round(n);
        sort = choices + sort_round(n * k);
    }
};

/* ---- counts ---- */

__device__ __forceinline__ void expert_counts(const i32 *seg, int experts, int shards, i32 *out) {
    for (int e = blockIdx.x * blockDim.x + threadIdx.x; e < experts; e += gridDim.x * blockDim.x)
        out[e] = segs_count(seg, e * shards, (e + 1) * shards);
}

/* How many of n labels are >= 0; one block. */
template <int THREADS>
__device__ __forceinline__ void count_valid(const i32 *labels, i64 n, i32 *out) {
    __shared__ i32 of_warp[THREADS / 32];
    i32 sum = 0;
    for (i64 i = threadIdx.x; i < n; i += THREADS)
        sum += labels[i] >= 0;
    sum = warp_sum(sum);
    if (lane() == 0)
        of_warp[warp()] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 1; i < THREADS / 32; i++)
            sum += of_warp[i];
        out[0] = sum;
    }
}

} /* namespace moe */

#endif
