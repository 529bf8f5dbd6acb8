/* How an expert's rows are divided among its copies (docs/PLACEMENT.md): base/split_flow.c and base/split_edges.c on a device, by one
 * block, step for step, since every rank and the host must find the same integers. What these do one after the other where order
 * matters (whose rows go first, which rank a search meets first, which of two equal cuts is taken) is done here by one warp in the same
 * order, with its lanes over copies, slots and candidates. Rows of all experts together are less than 2^31, as numbers of choices
 * are. */
#ifndef MOE_DEVICE_SPLIT
#define MOE_DEVICE_SPLIT

namespace moe {

/* Where a cut may fall: before leaf `leaf` of shard `shard` (base/split_internal.h). */
struct SplitEdge {
    i32 row, shard, leaf;
};

/* A subtree of the trees over rows (MoeSplitRoot). */
struct SplitRoot {
    i32 begin, end, shard, shards, leaf_begin, leaf_end;
};

constexpr i64 SPLIT_NO_COST = 0x7fffffffffffffffll;
constexpr i32 SPLIT_NO_LIMIT = 0x7fffffff;

__device__ __forceinline__ i64 shfl_xor(i64 v, int d) {
    u32 low = (u32)__shfl_xor_sync(0xffffffffu, (i32)(u32)v, d);
    i32 high = __shfl_xor_sync(0xffffffffu, (i32)(v >> 32), d);
    return (i64)high << 32 | low;
}
__device__ __forceinline__ i32 warp_most(i32 v) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2)
        v = most(v, (i32)__shfl_xor_sync(0xffffffffu, v, d));
    return v;
}
__device__ __forceinline__ int lowest_bit(u32 mask) {
    return __popc((mask & (0u - mask)) - 1);
}
/* The largest power of two that is at most n > 0. */
__device__ __forceinline__ u32 power_below(u32 n) {
    n |= n >> 1;
    n |= n >> 2;
    n |= n >> 4;
    n |= n >> 8;
    n |= n >> 16;
    return n - (n >> 1);
}

/* ---- roots ---- */

/* The rows of one expert as trees see them: prefix [SHARDS+1] sums of its counts. */
template <int SHARDS, int LEAF> struct SplitRows {
    const i32 *prefix;

    static __device__ __forceinline__ constexpr int shards() { return SHARDS; }
    static __device__ __forceinline__ constexpr int leaf() { return LEAF; }
    __device__ __forceinline__ i32 count(int v) const { return prefix[v + 1] - prefix[v]; }
    __device__ __forceinline__ int leaves(int v) const { return (count(v) + LEAF - 1) / LEAF; }
    /* The shard that has row `row`; SHARDS at the end. */
    __device__ __forceinline__ int shard_at(i32 row) const {
        int lo = 0, hi = SHARDS;
        while (lo < hi) {
            int mid = (lo + hi) / 2;
            if (prefix[mid + 1] > row)
                hi = mid;
            else
                lo = mid + 1;
        }
        return lo;
    }
    __device__ __forceinline__ SplitEdge edge_at(i32 row) const {
        int v = shard_at(row);
        return SplitEdge{row, v, v < SHARDS ? (row - prefix[v]) / LEAF : 0};
    }
};

/* The same where both are known when it runs. */
struct SplitRowsAny {
    const i32 *prefix;
    int n_shards, leaf_rows;

    __device__ __forceinline__ int shards() const { return n_shards; }
    __device__ __forceinline__ int leaf() const { return leaf_rows; }
    __device__ __forceinline__ i32 count(int v) const { return prefix[v + 1] - prefix[v]; }
    __device__ __forceinline__ int leaves(int v) const {
        return (count(v) + leaf_rows - 1) / leaf_rows;
    }
    __device__ __forceinline__ SplitEdge edge_at(i32 row) const {
        int v = 0;
        while (v < n_shards && prefix[v + 1] <= row)
            v++;
        return SplitEdge{row, v, v < n_shards ? (row - prefix[v]) / leaf_rows : 0};
    }
};

/* Roots on their way out; more than `enough` are not looked for. */
template <int MOST> struct SplitRoots {
    SplitRoot *out;
    int n, enough;
    i32 at;

    __device__ __forceinline__ void put(i32 rows, SplitRoot root) {
        if (MOST && n < MOST) {
            root.begin = at;
            root.end = at + rows;
            out[n] = root;
        }
        n++;
        at += rows;
    }
};

__device__ __forceinline__ int subtree_end(int i, int hi, int end) {
    u32 size = i ? (u32)i & (0u - (u32)i) : 1u << 31;
    if (hi < end)
        size = least(size, power_below((u32)(hi - i)));
    return (i64)i + size < end ? (int)((u32)i + size) : end;
}

template <int MOST, class Rows>
__device__ __forceinline__ void put_leaves(const Rows &x, int shard, int lo, int hi,
                                           SplitRoots<MOST> &r) {
    i32 count = x.count(shard);
    int leaves = x.leaves(shard);
    for (int i = lo, end; i < hi && r.n <= r.enough; i = end) {
        end = subtree_end(i, hi, leaves);
        i32 last = end == leaves ? count : end * x.leaf();
        r.put(last - i * x.leaf(), SplitRoot{0, 0, shard, 1, i, end});
    }
}

template <int MOST, class Rows>
__device__ __forceinline__ void put_shards(const Rows &x, int lo, int hi, SplitRoots<MOST> &r) {
    for (int i = lo, end; i < hi && r.n <= r.enough; i = end) {
        end = subtree_end(i, hi, x.shards());
        i32 rows = x.prefix[end] - x.prefix[i];
        if (rows)
            r.put(rows, SplitRoot{0, 0, i, end - i, 0, 0});
    }
}

template <int MOST, class Rows>
__device__ __forceinline__ void put_roots(const Rows &x, SplitEdge a, SplitEdge b,
                                          SplitRoots<MOST> &r) {
    if (a.row >= b.row)
        return;
    int first = a.shard;
    if (a.leaf > 0) {
        put_leaves(x, a.shard, a.leaf, b.shard == a.shard ? b.leaf : x.leaves(a.shard), r);
        if (b.shard == a.shard)
            return;
        first++;
    } else {
        while (first > 0 && x.count(first - 1) == 0)
            first--;
    }
    put_shards(x, first, b.shard, r);
    if (b.leaf > 0)
        put_leaves(x, b.shard, 0, b.leaf, r);
}

/* ---- the division ---- */

/* EDGES, PRICE, RETRIES, ROOTS: the constants of base/split*.h. */
template <int EXPERTS, int RANKS, int SLOTS, int SHARDS, int LEAF, int ROOTS, int EDGES, int PRICE,
          int RETRIES>
struct Division {
    static constexpr int GLOBAL = RANKS * SLOTS;
    using Rows = SplitRows<SHARDS, LEAF>;

    const i32 *cells; /* [EXPERTS*SHARDS+1]: rows by (expert, shard) */
    i64 *cost;        /* [2][EDGES] */
    SplitEdge *edges; /* [RANKS+1][EDGES] */
    i32 *best;        /* [RANKS+1][EDGES] */
    i32 *copies, *rows, *load, *amount, *first, *slot, *order, *left, *queue, *via, *from, *saved,
        *prefix, *n_edges, *cut;
    i32 level, n_order;

    /* Bytes: MoeCudaDivision in kind_copy_plan.c. */
    __device__ __forceinline__ Division(const i32 *table, char *memory)
        : cells(table), level(0), n_order(0) {
        cost = (i64 *)memory;
        edges = (SplitEdge *)(cost + 2 * EDGES);
        best = (i32 *)(edges + (RANKS + 1) * EDGES);
        copies = best + (RANKS + 1) * EDGES;
        amount = copies + GLOBAL;
        slot = amount + GLOBAL;
        rows = slot + GLOBAL;
        order = rows + EXPERTS;
        left = order + EXPERTS;
        from = left + EXPERTS;
        first = from + EXPERTS;
        load = first + EXPERTS + 1;
        queue = load + RANKS;
        via = queue + RANKS;
        saved = via + RANKS;
        n_edges = saved + RANKS;
        cut = n_edges + RANKS + 1;
        prefix = cut + RANKS + 1;
    }

    __device__ __forceinline__ int n_copies(int e) const { return first[e + 1] - first[e]; }
    __device__ __forceinline__ i32 &load_at(int i) const { /* of the rank of entry i of `slot` */
        return load[slot[i] / SLOTS];
    }

    /* ---- the start, by the block ---- */

    /* Global slots by expert, and experts with several copies by rows; what has one copy goes to it. */
    template <int THREADS> __device__ __forceinline__ void start(const i32 *global_copies) {
        for (int g = threadIdx.x; g < GLOBAL; g += THREADS) {
            copies[g] = global_copies[g];
            amount[g] = 0;
        }
        for (int e = threadIdx.x; e < EXPERTS; e += THREADS) {
            rows[e] = cells[(e + 1) * SHARDS] - cells[e * SHARDS];
            left[e] = 0;
        }
        __syncthreads();
        block_before<THREADS>(
            [&](int e) {
                i32 n = 0;
                for (int g = 0; g < GLOBAL; g++)
                    n += copies[g] == e;
                return n;
            },
            EXPERTS, first);
        for (int e = threadIdx.x; e < EXPERTS; e += THREADS) {
            int at = first[e], end = first[e + 1];
            for (int g = 0; at < end; g++)
                if (copies[g] == e)
                    slot[at++] = g;
            if (n_copies(e) == 1)
                amount[slot[first[e]]] = rows[e];
        }
        __syncthreads();
        for (int r = threadIdx.x; r < RANKS; r += THREADS) {
            i32 sum = 0;
            for (int s = 0; s < SLOTS; s++)
                sum += amount[r * SLOTS + s];
            load[r] = sum;
        }
        for (int e = threadIdx.x; e < EXPERTS; e += THREADS) {
            if (n_copies(e) < 2 || rows[e] == 0)
                continue;
            int at = 0;
            for (int i = 0; i < EXPERTS; i++)
                at += n_copies(i) > 1 && (rows[i] > rows[e] || (rows[i] == rows[e] && i < e));
            order[at] = e;
            left[e] = rows[e];
        }
        __syncthreads();
    }

    /* The least level that the start permits. By one warp, as all that follows. */
    __device__ __forceinline__ void set_level() {
        i32 total = 0, busiest = 0, n = 0;
        for (int e = lane(); e < EXPERTS; e += 32) {
            total += n_copies(e) ? rows[e] : 0;
            n += n_copies(e) > 1 && rows[e] > 0;
        }
        for (int r = lane(); r < RANKS; r += 32)
            busiest = most(busiest, load[r]);
        n_order = warp_sum(n);
        level = (i32)ceil_div((u32)warp_sum(total), (u32)RANKS);
        level = most(level, warp_most(busiest));
    }

    /* ---- the exact division ---- */

    /* Gives left[e] rows to e's copies so that its ranks become level, none above `limit`. */
    __device__ __forceinline__ void fill(int e, i32 limit) {
        int lo = first[e], hi = first[e + 1];
        i32 need = left[e];
        for (;;) { /* ranks above the limit drop out, so it falls until it holds */
            i32 sum = 0, n = 0;
            for (int i = lo + lane(); i < hi; i += 32)
                if (load_at(i) < limit) {
                    sum += load_at(i);
                    n++;
                }
            sum = warp_sum(sum) + need;
            n = warp_sum(n);
            if (n == 0)
                return;
            i32 next = (i32)ceil_div((u32)sum, (u32)n);
            if (next >= limit)
                break;
            limit = next;
        }
        for (int begin = lo; begin < hi && need > 0; begin += 32) {
            int i = begin + lane();
            i32 room = i < hi ? most(limit - load_at(i), 0) : 0;
            room = least(room, need); /* so that sums stay small */
            i32 sum = 0, all, mine = 0;
            for (int d = 0; d < 32 && begin + d < hi;
                 d++) { /* ascending: the first take what there is */
                i32 r = __shfl_sync(0xffffffffu, room, d), take = least(r, need - sum);
                mine = d == lane() ? take : mine;
                sum += take;
            }
            all = sum;
            if (i < hi && mine > 0) {
                amount[slot[i]] += mine;
                load_at(i) += mine;
            }
            need -= all;
        }
        __syncwarp();
        if (lane() == 0)
            left[e] = need;
        __syncwarp();
    }

    /* The search meets expert e, which has rows to give (`source`: the slot, -1 for those left): so it meets e's ranks. Returns one
     * with room, or -1. */
    __device__ __forceinline__ int meet(int e, int source, int *n_queue) {
        int lo = first[e], hi = first[e + 1];
        if (lane() == 0)
            from[e] = source;
        for (int begin = lo; begin < hi; begin += 32) {
            int i = begin + lane(), g = i < hi ? slot[i] : 0, r = g / SLOTS;
            bool fresh = i < hi && via[r] < 0;
            u32 met = __ballot_sync(0xffffffffu, fresh);
            u32 room = __ballot_sync(0xffffffffu, fresh && load[r] < level);
            int stop = room ? lowest_bit(room) : 32;
            if (fresh && lane() <= stop)
                via[r] = g;
            if (fresh && lane() < stop)
                queue[*n_queue + __popc(met & ((1u << lane()) - 1))] = r;
            __syncwarp();
            if (room)
                return __shfl_sync(0xffffffffu, r, stop);
            *n_queue += __popc(met);
        }
        return -1;
    }

    /* Breadth first from the experts with rows left. Returns a rank with room; else -1, and queue[0, *n_queue) are all ranks within
     * reach. */
    __device__ __forceinline__ int search(int *n_queue) {
        *n_queue = 0;
        for (int r = lane(); r < RANKS; r += 32)
            via[r] = -1;
        for (int i = lane(); i < n_order; i += 32)
            from[order[i]] = -2;
        __syncwarp();
        for (int begin = 0; begin < n_order; begin += 32) {
            int mine = begin + lane() < n_order ? order[begin + lane()] : -1;
            u32 some = __ballot_sync(0xffffffffu, mine >= 0 && left[mine >= 0 ? mine : 0] > 0);
            for (; some; some &= some - 1) {
                int r = meet(__shfl_sync(0xffffffffu, mine, lowest_bit(some)), -1, n_queue);
                if (r >= 0)
                    return r;
            }
        }
        for (int head = 0; head < *n_queue; head++) {
            int base = queue[head] * SLOTS;
            for (int begin = 0; begin < SLOTS; begin += 32) {
                int s = base + begin + lane(), e = begin + lane() < SLOTS ? copies[s] : -1;
                bool could = e >= 0 && amount[s] != 0 && n_copies(e) > 1 && from[e] == -2;
                u32 some = __ballot_sync(0xffffffffu, could);
                for (; some; some &= some - 1) {
                    int at = lowest_bit(some);
                    int r = meet(__shfl_sync(0xffffffffu, e, at), base + begin + at, n_queue);
                    if (r >= 0)
                        return r;
                }
            }
        }
        return -1;
    }

    /* Sends rows along the path that the search found to `rank`. */
    __device__ __forceinline__ void augment(int rank) {
        if (lane() == 0) {
            i32 n = level - load[rank];
            int e = copies[via[rank]];
            for (; from[e] >= 0; e = copies[via[from[e] / SLOTS]])
                n = least(n, amount[from[e]]);
            n = least(n, left[e]);
            left[e] -= n;
            load[rank] += n;
            amount[via[rank]] += n;
            for (e = copies[via[rank]]; from[e] >= 0;) {
                int s = from[e], g = via[s / SLOTS];
                amount[s] -= n;
                amount[g] += n;
                e = copies[g];
            }
        }
        __syncwarp();
    }

    __device__ __forceinline__ i32 stuck() const {
        i32 sum = 0;
        for (int i = lane(); i < n_order; i += 32)
            sum += left[order[i]];
        return warp_sum(sum);
    }

    /* All rows that are left, at the least possible level. */
    __device__ __forceinline__ void solve() {
        for (;;) {
            for (int i = 0; i < n_order; i++)
                if (left[order[i]] > 0)
                    fill(order[i], level);
            if (stuck() == 0)
                return;
            int n_queue, rank;
            while ((rank = search(&n_queue)) >= 0)
                augment(rank);
            i32 rest = stuck();
            if (rest == 0)
                return;
            level += (i32)ceil_div((u32)rest, (u32)n_queue);
        }
    }

    /* ---- cuts at leaf edges ---- */

    /* Edges on the way down to `row` (split_edges.c); by one lane. */
    __device__ __forceinline__ int candidates(const Rows &x, i32 row, i32 reach,
                                              SplitEdge *out) const {
        int n = 0, lo = 0, hi = 1;
        out[n++] = SplitEdge{0, x.shard_at(0), 0};
        out[n++] = SplitEdge{x.prefix[SHARDS], SHARDS, 0};
        while (hi < SHARDS)
            hi *= 2;
        while (hi - lo > 1) {
            int mid = lo + (hi - lo) / 2;
            if (mid >= SHARDS) {
                hi = mid;
                continue;
            }
            int end = least(hi, SHARDS);
            i32 at = x.prefix[mid];
            if (at > x.prefix[lo] && at < x.prefix[end] &&
                (!reach || x.prefix[end] - x.prefix[lo] <= reach))
                out[n++] = SplitEdge{at, x.shard_at(at), 0};
            if (row < at)
                hi = mid;
            else
                lo = mid;
        }
        i32 start = x.prefix[lo], leaves = x.leaves(lo), begin = 0, end = 1;
        while (end < leaves)
            end *= 2;
        while (end - begin > 1) {
            i32 mid = begin + (end - begin) / 2, at = start + mid * LEAF;
            if (mid < leaves && (!reach || (i64)(end - begin) * LEAF <= reach))
                out[n++] = SplitEdge{at, lo, mid};
            if (mid >= leaves || row < at)
                end = mid;
            else
                begin = mid;
        }
        return n;
    }

    /* Of giving the rows between two edges to a rank that has `others`; NO_COST with too many roots, or if not less than `limit`. */
    __device__ __forceinline__ i64 run_cost(const Rows &x, SplitEdge a, SplitEdge b, i32 others,
                                            i64 limit) const {
        i64 above = (i64)others + (b.row - a.row) - level, sum = most(above, (i64)0) * PRICE;
        if (sum >= limit)
            return SPLIT_NO_COST;
        SplitRoots<0> r{nullptr, 0, ROOTS, a.row};
        put_roots(x, a, b, r);
        sum += (i64)r.n * level;
        return r.n > ROOTS || sum >= limit ? SPLIT_NO_COST : sum;
    }

    /* cost[k] of the best division up to edge k of cut i, 8 lanes an edge; of equals the last edge of the cut before is taken. */
    __device__ __forceinline__ void best_before(const Rows &x, int i, i32 others) {
        const SplitEdge *before = edges + (i - 1) * EDGES, *here = edges + i * EDGES;
        const i64 *known = cost + (i - 1) % 2 * EDGES;
        int n_before = n_edges[i - 1], n_here = n_edges[i];
        for (int k0 = 0; k0 < n_here; k0 += 4) {
            int k = k0 + lane() / 8;
            i64 fewest = SPLIT_NO_COST;
            i32 arg = -1;
            for (int j = n_before - 1 - lane() % 8; k < n_here && j >= 0; j -= 8) {
                if (known[j] >= fewest || before[j].row > here[k].row)
                    continue;
                i64 run = run_cost(x, before[j], here[k], others, fewest - known[j]);
                if (run < SPLIT_NO_COST) {
                    fewest = known[j] + run;
                    arg = j;
                }
            }
            __syncwarp();
#pragma unroll
            for (int d = 4; d > 0; d /= 2) {
                i64 cost_there = shfl_xor(fewest, d);
                i32 arg_there = __shfl_xor_sync(0xffffffffu, arg, d);
                if (cost_there < fewest || (cost_there == fewest && arg_there > arg)) {
                    fewest = cost_there;
                    arg = arg_there;
                }
            }
            if (k < n_here && lane() % 8 == 0) {
                cost[i % 2 * EDGES + k] = fewest;
                best[i * EDGES + k] = arg;
            }
        }
        __syncwarp();
    }

    /* Writes the amounts of the best cuts among the candidates; false if no choice keeps to the number of roots. */
    __device__ __forceinline__ bool best_cuts(int e, const Rows &x) {
        int n = n_copies(e), lo = first[e];
        if (lane() == 0)
            cost[0] = 0;
        __syncwarp();
        for (int i = 1; i <= n; i++)
            best_before(x, i, load_at(lo + i - 1));
        if (cost[n % 2 * EDGES] == SPLIT_NO_COST)
            return false;
        if (lane() == 0)
            for (int i = n, k = 0; i > 0; i--) {
                int j = best[i * EDGES + k];
                amount[slot[lo + i - 1]] =
                    edges[i * EDGES + k].row - edges[(i - 1) * EDGES + j].row;
                k = j;
            }
        __syncwarp();
        return true;
    }

    /* sign * the amounts of e's copies onto their ranks. */
    __device__ __forceinline__ void add_load(int e, i32 sign) {
        for (int i = first[e] + lane(); i < first[e + 1]; i += 32)
            load_at(i) += sign * amount[slot[i]];
        __syncwarp();
    }

    /* Candidates of all cuts, near the amounts that e's copies have; all of them if wide. */
    __device__ __forceinline__ void list_edges(int e, const Rows &x, bool wide) {
        int n = n_copies(e), lo = first[e];
        if (lane() == 0) {
            i32 at = 0;
            for (int i = 0; i <= n; i++) {
                cut[i] = at;
                at += i < n ? amount[slot[lo + i]] : 0;
            }
        }
        __syncwarp();
        for (int i = lane(); i <= n; i += 32) {
            i32 before = i ? amount[slot[lo + i - 1]] : 0, after = i < n ? amount[slot[lo + i]] : 0;
            i64 reach = 2 * (i64)most(before, after) + LEAF;
            SplitEdge *to = edges + i * EDGES;
            n_edges[i] =
                candidates(x, cut[i], wide ? 0 : (i32)least(reach, (i64)SPLIT_NO_LIMIT), to);
            if (i == n)
                to[0] = to[1];
            if (i == 0 || i == n)
                n_edges[i] = 1;
        }
        __syncwarp();
    }

    __device__ __forceinline__ i32 busiest_of(int e) const {
        i32 v = 0;
        for (int i = first[e] + lane(); i < first[e + 1]; i += 32)
            v = most(v, load_at(i));
        return warp_most(v);
    }

    /* Cuts expert e near the amounts that it has now, or, if `even` or one of its ranks is above the level, near those that make its
     * ranks level. */
    __device__ __forceinline__ void cut_expert(int e, bool even) {
        Rows x{prefix};
        for (int v = lane(); v <= SHARDS; v += 32)
            prefix[v] = cells[e * SHARDS + v] - cells[e * SHARDS];
        even = even || busiest_of(e) > level;
        __syncwarp();
        add_load(e, -1);
        if (even) {
            for (int i = first[e] + lane(); i < first[e + 1]; i += 32)
                amount[slot[i]] = 0;
            if (lane() == 0)
                left[e] = rows[e];
            __syncwarp();
            fill(e, SPLIT_NO_LIMIT);
            add_load(e, -1);
        }
        for (int wide = n_copies(e) <= 3; wide < 2;
             wide++) { /* many copies: first the near edges alone */
            list_edges(e, x, wide != 0);
            if (best_cuts(e, x))
                break;
        }
        add_load(e, 1);
    }

    /* Cuts e anew; puts it back as it was unless its busiest rank then has fewer rows. */
    __device__ __forceinline__ bool retry(int e) {
        int lo = first[e], hi = first[e + 1];
        i32 before = busiest_of(e);
        for (int i = lo + lane(); i < hi; i += 32)
            saved[i - lo] = amount[slot[i]];
        __syncwarp();
        cut_expert(e, true);
        if (busiest_of(e) < before)
            return true;
        __syncwarp();
        for (int i = lo + lane(); i < hi; i += 32) {
            load_at(i) += saved[i - lo] - amount[slot[i]];
            amount[slot[i]] = saved[i - lo];
        }
        __syncwarp();
        return false;
    }

    /* The rank with the most rows, of equals the first. */
    __device__ __forceinline__ int busiest() const {
        i32 v = 0;
        for (int r = lane(); r < RANKS; r += 32)
            v = most(v, load[r]);
        v = warp_most(v);
        for (int begin = 0;; begin += 32) {
            int r = begin + lane();
            u32 those = __ballot_sync(0xffffffffu, r < RANKS && load[r] == v);
            if (those)
                return begin + lowest_bit(those);
        }
    }

    __device__ __forceinline__ void to_edges() {
        for (int i = 0; i < n_order; i++)
            cut_expert(order[i], false);
        for (int tries = RETRIES * RANKS; tries > 0; tries--) {
            int r = busiest();
            if (load[r] <= level)
                return;
            bool better = false;
            for (int s = r * SLOTS; s < (r + 1) * SLOTS && !better; s++) {
                int e = copies[s];
                better = e >= 0 && rows[e] > 0 && n_copies(e) > 1 && retry(e);
            }
            if (!better)
                return;
        }
    }

    /* ---- all of it ---- */

    /* runs [GLOBAL][2]; lists: first [EXPERTS+1] and slot [GLOBAL], for those who look for a row's slot. By one block. */
    template <int THREADS>
    __device__ __forceinline__ void run(const i32 *global_copies, i32 *runs, i32 *list_first,
                                        i32 *list_slot) {
        start<THREADS>(global_copies);
        if (warp() == 0) {
            set_level();
            solve();
            if (LEAF > 1 && n_order > 0)
                to_edges();
        }
        __syncthreads();
        for (int g = threadIdx.x; g < GLOBAL; g += THREADS)
            if (copies[g] < 0)
                runs[2 * g] = runs[2 * g + 1] = 0;
        for (int e = threadIdx.x; e < EXPERTS; e += THREADS) {
            i32 at = 0;
            for (int i = first[e]; i < first[e + 1]; i++) {
                int g = slot[i];
                runs[2 * g] = at;
                at += amount[g];
                runs[2 * g + 1] = at;
                list_slot[i] = g;
            }
            list_first[e] = first[e];
            if (e == EXPERTS - 1)
                list_first[EXPERTS] = first[EXPERTS];
        }
    }
};

/* ---- copy_plan ---- */

/* Choice p is the row-th choice at all in the order of experts. */
struct CopySink {
    i32 *order, *row; /* [row], [p] */
    __device__ __forceinline__ void put(i64 p, i32, i64 r) const {
        order[r] = (i32)p;
        row[p] = (i32)r;
    }
    __device__ __forceinline__ void skip(i64) const {}
};

/* The slot whose run has the choice. */
struct CopySlots {
    const i32 *ids, *row, *cells, *runs, *first, *slot;
    int shards;
    __device__ __forceinline__ i32 operator()(i64 p) const {
        int e = ids[p], i = first[e], last = first[e + 1] - 1;
        i32 r = row[p] - cells[e * shards];
        while (i < last && r >= runs[2 * slot[i] + 1])
            i++;
        return slot[i];
    }
};

/* to [n choices] of the EP group; own: those of this rank's tokens, whose virtual shards are among the group's. */
__device__ __forceinline__ void copy_slots(const CopySlots &at, i64 n, i32 *to, const i32 *tok_all,
                                           const i32 *tok_own, int k, i32 *own) {
    i64 step = (i64)gridDim.x * blockDim.x, i0 = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    for (i64 p = i0; p < n; p += step)
        to[p] = at(p);
    i64 n_own = (i64)(tok_own ? tok_own[at.shards] : tok_all[at.shards]) * k;
    for (i64 q = i0; q < n_own; q += step) {
        i64 t = q / k, p = q;
        if (tok_own) {
            int v = segs_cell(tok_own, at.shards, t);
            p += ((i64)tok_all[v] - tok_own[v]) * k;
        }
        own[q] = at(p);
    }
}

__device__ __forceinline__ void copy_counts(const i32 *cells, int n, i32 *counts) {
    for (int c = blockIdx.x * blockDim.x + threadIdx.x; c < n; c += gridDim.x * blockDim.x)
        counts[c] = cells[c + 1] - cells[c];
}

/* ---- root_plan ---- */

/* One block. roots, more: as in base/split_rows.h. */
template <int THREADS, int SLOTS, int SHARDS, int LEAF, int ROOTS>
__device__ __forceinline__ void root_plan(const i32 *counts, const i32 *runs, const i32 *copies,
                                          int rank, i32 *roots, i32 *more) {
    constexpr int WARPS = THREADS / 32;
    __shared__ i32 prefix[WARPS][SHARDS + 1];
    __shared__ SplitRoot root[SLOTS][ROOTS];
    __shared__ i32 n_roots[SLOTS], group[SLOTS + 1];
    for (int s0 = 0; s0 < SLOTS; s0 += WARPS) {
        int s = s0 + warp(), g = rank * SLOTS + s, e = s < SLOTS ? most(copies[g], 0) : 0;
        i32 carry = 0;
        for (int v0 = 0; v0 < SHARDS; v0 += 32) {
            int v = v0 + lane();
            i32 all, before = warp_before(v < SHARDS ? counts[e * SHARDS + v] : 0, &all);
            if (v < SHARDS)
                prefix[warp()][v] = carry + before;
            carry += all;
        }
        if (lane() == 0)
            prefix[warp()][SHARDS] = carry;
        __syncwarp();
        if (s < SLOTS && lane() == 0) {
            SplitRows<SHARDS, LEAF> x{prefix[warp()]};
            i32 begin = runs[2 * g], end = runs[2 * g + 1];
            SplitRoots<ROOTS> r{root[s], 0, ROOTS, begin};
            if (begin < end)
                put_roots(x, x.edge_at(begin), x.edge_at(end), r);
            n_roots[s] = least(r.n, ROOTS);
        }
        __syncwarp();
    }
    __syncthreads();
    block_before<THREADS>([&](int s) { return most(n_roots[s], 1); }, SLOTS, group);
    for (int s = threadIdx.x; s <= SLOTS; s += THREADS)
        more[s] = group[s] - s;
    block_before<THREADS>(
        [&](int c) {
            int at = c / SHARDS, v = c % SHARDS;
            if (at >= group[SLOTS])
                return 0;
            int s = segs_cell(group, SLOTS, at), i = at - group[s];
            if (i >= n_roots[s])
                return 0;
            SplitRoot r = root[s][i];
            if (v < r.shard || v >= r.shard + r.shards)
                return 0;
            if (r.leaf_end > r.leaf_begin)
                return r.end - r.begin;
            return (int)counts[copies[rank * SLOTS + s] * SHARDS + v];
        },
        SLOTS * ROOTS * SHARDS, roots);
}

} /* namespace moe */

#endif
