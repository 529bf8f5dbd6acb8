/* Exchanges between ranks whose memory this device reads (docs/GPU.md, "Exchanges between peers"): a rank pulls what it gets, by tables of
 * ops that the runtime made once (MoeRtPeerOp in base/cuda_abi.h). Extents of rows are read off the tables of both ranks here, so nobody
 * asks the host. Every op goes over the whole grid, and one starts where the last one's work ended, so that many small ones keep all
 * threads busy. */
#ifndef MOE_DEVICE_PEER
#define MOE_DEVICE_PEER

namespace moe {

constexpr int PEERS = 32;                 /* MOE_RT_PEERS */
constexpr int PEER_ROOTS = 4;             /* MOE_COPY_ROOTS */
constexpr int PEER_DEPTH = 32;            /* sums of a gradient's tree that wait for their right neighbour */
enum { PEER_SHARD_LEVEL = 32 };           /* leaves join below shards */

/* MoeRtPeerOp. */
struct PeerOp {
    i32 kind, n, self, word;
    i64 a[8];
    const i32 *t[4];
    char *to, *work;
    const char *from[PEERS];
    const void *table[PEERS], *index[PEERS];
    i64 at[PEERS], count[PEERS];
};

/* ---- words between ranks ---- */

/* mode 0: out = whether stop is set. 1: out = whether any of the n words that list has is. 2: stop = code where word is set. */
__device__ __forceinline__ void rt_peer_word(const MoeArgs<5> &a) {
    const i64 mode = number(a, 0), n = number(a, 3);
    i32 *to = buf<i32>(a, 1);
    if (blockIdx.x || threadIdx.x >= 32)
        return;
    if (mode == 0 && threadIdx.x == 0)
        *to = *buf<const volatile i32>(a, 2) != 0;
    if (mode == 1) {
        const i32 *const volatile *list = buf<const i32 *const volatile>(a, 2);
        bool any = (i64)threadIdx.x < n && *(const volatile i32 *)list[threadIdx.x] != 0;
        u32 those = __ballot_sync(0xffffffffu, any);
        if (threadIdx.x == 0)
            *to = those != 0;
    }
    if (mode == 2 && threadIdx.x == 0 && *buf<const volatile i32>(a, 2))
        *to = (i32)number(a, 4);
}

/* ---- copying ---- */

/* Work of all threads, or of groups of `lanes` of them: item i of the next n is number first(n) + k * all's. */
struct PeerTeam {
    i64 id, all, base;
    int lane, lanes;

    __device__ __forceinline__ explicit PeerTeam(int each) : base(0), lanes(each) {
        i64 thread = (i64)blockIdx.x * blockDim.x + threadIdx.x;
        lane = (int)(thread % each);
        id = thread / each;
        all = (i64)gridDim.x * blockDim.x / each;
    }
    __device__ __forceinline__ i64 first(i64 n) {
        i64 i = id - base;
        base = (base + n) % all;
        return i < 0 ? i + all : i;
    }
};

template <class Word>
__device__ __forceinline__ void peer_words(const char *from, char *to, i64 i, i64 n, i64 step) {
    const Word *f = (const Word *)from;
    Word *t = (Word *)to;
    for (; i + 3 * step < n; i += 4 * step) {
        Word w[4];
#pragma unroll
        for (int k = 0; k < 4; k++)
            w[k] = f[i + k * step];
#pragma unroll
        for (int k = 0; k < 4; k++)
            t[i + k * step] = w[k];
    }
    for (; i < n; i += step)
        t[i] = f[i];
}

/* n words of so many bytes, from word i in steps. */
__device__ __forceinline__ void peer_copy(int word, const char *from, char *to, i64 i, i64 n,
                                          i64 step) {
    if (word == 16)
        peer_words<Words4>(from, to, i, n, step);
    else if (word == 8)
        peer_words<Words2>(from, to, i, n, step);
    else if (word == 4)
        peer_words<u32>(from, to, i, n, step);
    else
        peer_words<bf16>(from, to, i, n, step);
}

__device__ __forceinline__ void peer_span(const PeerOp &o, PeerTeam &all, const char *from, char *to,
                                          i64 bytes) {
    i64 n = bytes / o.word;
    peer_copy(o.word, from, to, all.first(n), n, all.all);
}

/* ---- whose rows ---- */

/* Virtual shards of data rank d in this micro-batch: [first, first + n). */
struct PeerRun {
    i64 first, n;
};

/* t[3]: the micro-batch's number, and how many there are. a[1] shards, a[2] data ranks. */
__device__ __forceinline__ PeerRun peer_run(const PeerOp &o, i64 d) {
    i64 per_micro = o.a[1] / o.t[3][1], n = per_micro / o.a[2];
    return PeerRun{o.t[3][0] * per_micro + d * n, n};
}

/* ---- the ops ---- */

/* all_gather, parts of sums: a[0] rows of count[i] bytes at strides a[1], a[2]; member i's go to at[i]. */
__device__ __forceinline__ void peer_gather(const PeerOp &o, PeerTeam &all) {
    for (int i = 0; i < o.n; i++)
        for (i64 l = 0; o.count[i] > 0 && l < o.a[0]; l++)
            peer_span(o, all, o.from[i] + l * o.a[1], o.to + o.at[i] + l * o.a[2], o.count[i]);
}

/* all_gather_rows by t[0], the segs of the result. a[0]: bytes of a row; at: data ranks. */
__device__ __forceinline__ void peer_rows(const PeerOp &o, PeerTeam &all) {
    for (int i = 0; i < o.n; i++) {
        PeerRun run = peer_run(o, o.at[i]);
        i64 at = o.t[0][run.first], n = o.t[0][run.first + run.n] - at;
        peer_span(o, all, o.from[i], o.to + at * o.a[0], n * o.a[0]);
    }
}

/* a2a_dispatch: chunks a[4] .. a[5]-1 of a[3]; t[0] recv; table: the sources' send, index: theirs. */
__device__ __forceinline__ void peer_dispatch(const PeerOp &o) {
    const i64 bytes = o.a[0], V = o.a[1], chunks = o.a[3], n_words = bytes / o.word;
    int lanes = 1;
    while (lanes < 32 && lanes < n_words)
        lanes *= 2;
    PeerTeam rows(lanes);
    for (int i = 0; i < o.n; i++) {
        PeerRun run = peer_run(o, o.at[i]);
        const i32 *send = (const i32 *)o.table[i] + o.self * chunks;
        for (i64 k = o.a[4]; k < o.a[5]; k++) {
            const i32 *cell = o.t[0] + k * V + run.first;
            const i32 *index = (const i32 *)o.index[i] + send[k];
            const i64 at = cell[0], n = cell[run.n] - at;
            for (i64 r = rows.first(n); r < n; r += rows.all)
                peer_copy(o.word, o.from[i] + index[r] * bytes, o.to + (at + r) * bytes, rows.lane,
                          n_words, rows.lanes);
        }
    }
}

/* a2a_combine: slots a[4] .. a[5]-1 of a[3] a rank; t[0] home segs of a[6] experts, t[1] their slots or NULL; table: the sources' segs;
 * a[7]: this data rank. An expert's rows lie together on both sides. */
__device__ __forceinline__ void peer_combine(const PeerOp &o, PeerTeam &all) {
    const i64 bytes = o.a[0], V = o.a[1], slots = o.a[3];
    PeerRun run = peer_run(o, o.a[7]);
    for (i64 e = 0; e < o.a[6]; e++) {
        i64 slot = o.t[1] ? (i64)o.t[1][e] : e, s = slot % slots;
        i64 to = o.t[0][e * V], n = o.t[0][(e + 1) * V] - to;
        if (s < o.a[4] || s >= o.a[5] || n == 0)
            continue;
        int i = (int)(slot / slots);
        i64 from = ((const i32 *)o.table[i])[s * V + run.first];
        peer_span(o, all, o.from[i] + from * bytes, o.to + to * bytes, n * bytes);
    }
}

/* copy_experts: a[0] bytes of a slot, a[3] slots a rank; t[0] place, t[1] copies. */
__device__ __forceinline__ void peer_experts(const PeerOp &o, PeerTeam &all) {
    const i64 slots = o.a[3];
    for (i64 s = 0; s < slots; s++) {
        i64 g = o.self * slots + s, e = o.t[1][g], from = e < 0 ? g : (i64)o.t[0][e];
        if (from != g)
            peer_span(o, all, o.from[from / slots] + from % slots * o.a[0], o.to + s * o.a[0],
                      o.a[0]);
    }
}

/* Slots without a primary: their roots have gone to it. */
__device__ __forceinline__ void peer_clear(const PeerOp &o, PeerTeam &all) {
    const i64 slots = o.a[3], n = o.a[0] / 4;
    for (i64 s = 0; s < slots; s++) {
        i64 g = o.self * slots + s, e = o.t[1][g];
        float *to = (float *)(o.to + s * o.a[0]);
        if (e >= 0 && o.t[0][e] == g)
            continue;
        for (i64 i = all.first(n); i < n; i += all.all)
            to[i] = 0.0f;
    }
}

/* ---- sums ---- */

/* E neighbours of every member, added up by the tree over members in order (docs/NUMBERS.md 4): a subtree of 2^l of them waits in at[l]
 * for its right sibling. Eight loads are under way at a time. */
template <int E> struct PeerTree {
    float at[6][E];
    u32 count;

    __device__ __forceinline__ void push(float (&v)[E]) {
        bool climbs = true;
#pragma unroll
        for (int l = 0; l < 6; l++) {
            bool waits = (count >> l & 1u) != 0;
#pragma unroll
            for (int k = 0; k < E; k++)
                if (climbs && waits)
                    v[k] = at[l][k] + v[k];
                else if (climbs)
                    at[l][k] = v[k];
            climbs = climbs && waits;
        }
        count++;
    }
    __device__ __forceinline__ void finish(float (&v)[E]) const {
        bool any = false;
#pragma unroll
        for (int l = 0; l < 6; l++)
            if (count >> l & 1u) {
#pragma unroll
                for (int k = 0; k < E; k++)
                    v[k] = any ? at[l][k] + v[k] : at[l][k];
                any = true;
            }
    }
};

template <int E>
__device__ __forceinline__ void peer_tree(const PeerOp &o, i64 at, float (&sum)[E]) {
    constexpr int U = E == 1 ? 8 : 4;
    PeerTree<E> tree;
    tree.count = 0;
    for (int i = 0; i < o.n; i += U) {
        float v[U][E];
#pragma unroll
        for (int u = 0; u < U; u++)
            if (i + u < o.n)
                load_n<E>((const float *)o.from[i + u] + at, v[u]);
#pragma unroll
        for (int u = 0; u < U; u++)
            if (i + u < o.n)
                tree.push(v[u]);
    }
    tree.finish(sum);
}

/* a[0] rows at strides a[1] (of the terms) and a[2] (of the result), elements: a[4] of each from a[3] on go to a[5]; the result's
 * [a[6], a[2]) is zero. */
template <int E> __device__ __forceinline__ void peer_sum(const PeerOp &o, PeerTeam &all) {
    const i64 each = o.a[4] / E, n = o.a[0] * each;
    float *out = (float *)o.to;
    for (i64 q = all.first(n); q < n; q += all.all) {
        i64 l = q / each, k = q % each * E;
        float sum[E];
        peer_tree<E>(o, l * o.a[1] + o.a[3] + k, sum);
        store_n<E>(out + l * o.a[2] + o.a[5] + k, sum);
    }
}

__device__ __forceinline__ void peer_sum_i32(const PeerOp &o, PeerTeam &all) {
    const i64 each = o.a[4], n = o.a[0] * each;
    i32 *out = (i32 *)o.to;
    for (i64 q = all.first(n); q < n; q += all.all) {
        i64 l = q / each, k = q % each;
        u32 sum = 0;
        for (int i = 0; i < o.n; i++)
            sum += ((const u32 *)o.from[i])[l * o.a[1] + o.a[3] + k];
        out[l * o.a[2] + o.a[5] + k] = (i32)sum;
    }
}

__device__ __forceinline__ void peer_sum_rest(const PeerOp &o, PeerTeam &all) {
    const i64 each = o.a[2] - o.a[6], n = o.a[0] * each;
    for (i64 q = all.first(n); q < n; q += all.all)
        ((u32 *)o.to)[q / each * o.a[2] + o.a[6] + q % each] = 0;
}

/* ---- gradients of experts with copies ---- */

/* Of a slot: the roots of all copies of its expert in the order of rows; level[i]: how high in the tree over rows the two neighbours
 * i-1 and i have their first common ancestor. The higher of two such is the later sum, so these say the whole tree. */
struct PeerFold {
    i32 n, unused;
    const float *root[PEERS * PEER_ROOTS];
    i32 level[PEERS * PEER_ROOTS];
};

__device__ __forceinline__ i32 high_bit(u32 v) {
    i32 n = -1;
    for (; v; v >>= 1)
        n++;
    return n;
}

/* Of the boundary before row `row`, which has rows on both sides and is an edge. */
__device__ __forceinline__ i32 peer_level(const SplitRowsAny &x, i32 row) {
    SplitEdge e = x.edge_at(row);
    if (e.leaf > 0)
        return high_bit((u32)e.leaf & (0u - (u32)e.leaf));
    int before = e.shard - 1;
    while (before > 0 && x.count(before) == 0)
        before--;
    return PEER_SHARD_LEVEL + high_bit((u32)(before ^ e.shard));
}

/* The roots of global slot g of expert e, behind those that are there. */
__device__ __forceinline__ void peer_list_roots(const PeerOp &o, const SplitRowsAny &x, i64 g,
                                                PeerFold *f) {
    const i64 slots = o.a[3], s = g % slots;
    const int i = (int)(g / slots);
    const i32 *runs = o.t[3], *more = (const i32 *)o.table[i];
    SplitRoot roots[PEER_ROOTS];
    SplitRoots<PEER_ROOTS> r{roots, 0, PEER_ROOTS, runs[2 * g]};
    if (runs[2 * g] < runs[2 * g + 1])
        put_roots(x, x.edge_at(runs[2 * g]), x.edge_at(runs[2 * g + 1]), r);
    for (int k = 0; k < least(r.n, PEER_ROOTS); k++) {
        const char *at = k ? (const char *)o.index[i] + (more[s] + k - 1) * o.a[0]
                           : o.from[i] + s * o.a[0];
        f->root[f->n] = (const float *)at;
        f->level[f->n] = roots[k].begin > 0 ? peer_level(x, roots[k].begin) : 0;
        f->n++;
    }
}

/* A thread for each of this rank's slots. a[0] bytes of a slot, a[1] shards, a[3] slots, a[6] rows of a leaf; t: place, copies, counts,
 * runs; from: gradients, index: roots beyond the first, table: how many. work: PeerFold[slots], then prefixes[slots][shards + 1]. */
__device__ __forceinline__ void peer_fold_plan(const PeerOp &o) {
    const i64 slots = o.a[3], V = o.a[1];
    for (i64 s = (i64)blockIdx.x * blockDim.x + threadIdx.x; s < slots;
         s += (i64)gridDim.x * blockDim.x) {
        PeerFold *f = (PeerFold *)o.work + s;
        i32 *prefix = (i32 *)((PeerFold *)o.work + slots) + s * (V + 1);
        i64 g = o.self * slots + s, e = o.t[1][g];
        f->n = 0;
        if (e < 0 || o.t[0][e] != g)
            continue;
        prefix[0] = 0;
        for (i64 v = 0; v < V; v++)
            prefix[v + 1] = prefix[v] + o.t[2][e * V + v];
        SplitRowsAny x{prefix, (int)V, (int)o.a[6]};
        for (i64 h = 0; h < slots * o.n; h++)
            if (o.t[1][h] == e)
                peer_list_roots(o, x, h, f);
    }
}

/* Each element by a thread, with the sums that wait in the block's memory. */
template <int THREADS> __device__ __forceinline__ void rt_peer_fold(const MoeArgs<1> &a) {
    __shared__ float waits[PEER_DEPTH][THREADS];
    const PeerOp &o = *buf<const PeerOp>(a, 0);
    const i64 n = o.a[0] / 4;
    PeerTeam all(1);
    for (i64 s = 0; s < o.a[3]; s++) {
        const PeerFold &f = ((const PeerFold *)o.work)[s];
        float *out = (float *)(o.to + s * o.a[0]);
        if (f.n == 0 || (f.n == 1 && f.root[0] == out))
            continue;
        for (i64 i = all.first(n); i < n; i += all.all) {
            int depth = 0;          /* of waits; level_at: of the boundary behind each of them */
            u64 levels = 0;         /* bits of the levels that wait, highest at the bottom */
            float sum = f.root[0][i];
            for (int k = 1; k < f.n; k++) {
                const int level = f.level[k];
                /* sums whose boundary is lower than this one are whole */
                while (depth > 0 && (levels & (((u64)1 << level) - 1))) {
                    levels &= levels - 1;
                    sum = waits[--depth][threadIdx.x] + sum;
                }
                waits[depth++][threadIdx.x] = sum;
                levels |= (u64)1 << level;
                sum = f.root[k][i];
            }
            while (depth > 0)
                sum = waits[--depth][threadIdx.x] + sum;
            out[i] = sum;
        }
    }
}

/* ---- all of them ---- */

enum {
    PEER_GATHER,
    PEER_ROWS,
    PEER_DISPATCH,
    PEER_COMBINE,
    PEER_EXPERTS,
    PEER_CLEAR,
    PEER_SUM,
    PEER_SUM_I32,
    PEER_FOLD_PLAN
};

__device__ __forceinline__ void rt_peer_pull(const MoeArgs<2> &a) {
    const PeerOp *ops = buf<const PeerOp>(a, 0);
    PeerTeam all(1);
    for (i64 k = 0; k < number(a, 1); k++) {
        const PeerOp &o = ops[k];
        if (o.kind == PEER_GATHER)
            peer_gather(o, all);
        else if (o.kind == PEER_ROWS)
            peer_rows(o, all);
        else if (o.kind == PEER_DISPATCH)
            peer_dispatch(o);
        else if (o.kind == PEER_COMBINE)
            peer_combine(o, all);
        else if (o.kind == PEER_EXPERTS)
            peer_experts(o, all);
        else if (o.kind == PEER_CLEAR)
            peer_clear(o, all);
        else if (o.kind == PEER_SUM && o.word == 16)
            peer_sum<4>(o, all);
        else if (o.kind == PEER_SUM)
            peer_sum<1>(o, all);
        else if (o.kind == PEER_SUM_I32)
            peer_sum_i32(o, all);
        else if (o.kind == PEER_FOLD_PLAN)
            peer_fold_plan(o);
        if (o.kind == PEER_SUM || o.kind == PEER_SUM_I32)
            peer_sum_rest(o, all);
    }
}

} /* namespace moe */

#endif
