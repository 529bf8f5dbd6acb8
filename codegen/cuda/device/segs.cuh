/* Tables of rows, segs<G,V>: i32[G*V+1], ascending; rows [s[c], s[c+1]) are those of cell c = g*V + v.
 *
 * A step on a chunk of experts gets a window of its table (docs/RANKS.md, "Overlap"): cells outside are empty, rows keep
 * their places, so live rows begin at s[0], which is 0 otherwise. */
#ifndef MOE_DEVICE_SEGS
#define MOE_DEVICE_SEGS

namespace moe {

/* Live rows [first, end). */
struct Rows {
    i64 first, end;
};

/* Those of a table of so many cells. */
__device__ __forceinline__ Rows segs_rows(const i32 *s, int cells) {
    return Rows{s[0], s[cells]};
}

/* The cell that has row `row`, s[0] <= row < s[cells]. Empty cells before it are passed over. */
__device__ __forceinline__ int segs_cell(const i32 *s, int cells, i64 row) {
    int lo = 0, hi = cells;
    while (hi - lo > 1) {
        int mid = (lo + hi) / 2;
        if (s[mid] <= row)
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}

/* Rows of cells [from, end). */
__device__ __forceinline__ i32 segs_count(const i32 *s, int from, int end) {
    return s[end] - s[from];
}

} /* namespace moe */

#endif
