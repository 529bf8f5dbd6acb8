/* See slices.h. */
#include "runtime/slices.h"

#include <string.h>

void moe_rank_slices(const MoeMesh *m, int rank, int slots, MoeRankSlices *out) {
    int group[MOE_MAX_RANKS];
    *out = (MoeRankSlices){.mesh = *m, .at = moe_mesh_coords(m, rank), .slots = slots};
    out->dense_index = moe_mesh_group_ranks(m, rank, MOE_GROUP_DENSE_SHARD, group);
    /* Groups of ranks that share i_dp lie side by side: the first member's place is the group's. */
    int groups = m->shard * m->ep / m->dense_shard;
    out->dense_copies = m->dp * groups;
    out->dense_copy = out->at.dp * groups + group[0] / m->tp % (m->shard * m->ep);
}

MoePiece moe_piece_whole(int64_t n) {
    return (MoePiece){0, n, n, n, 0, 0};
}

MoePiece moe_piece_of(const MoeRankSlices *s, const MoeWeightShape *w) {
    const MoeMesh *m = &s->mesh;
    bool expert = w->slot >= 0;
    int64_t outer = 1, inner = 1;
    for (int i = 0; i < w->rank; i++)
        *(i < w->tp_dim ? &outer : &inner) *= w->dims[i];
    MoePiece p = {.stride = inner, .width = inner};
    if (w->tp_dim >= 0) {
        p.width = inner / m->tp;
        p.column = s->at.tp * p.width;
    }
    if (expert && w->slot / s->slots != s->at.ep)
        return p;
    MoeSlice part = moe_slice(outer * p.width, MOE_SLICE_BLOCK, expert ? m->shard : m->dense_shard,
                              expert ? s->at.shard : s->dense_index);
    p.first = part.first;
    p.count = part.count;
    p.offset = expert ? w->slot % s->slots * part.cap : 0;
    return p;
}

MoePiece moe_piece_written(const MoeRankSlices *s, const MoeWeightShape *w) {
    MoePiece p = moe_piece_of(s, w);
    int copies = w->slot >= 0 ? s->mesh.dp : s->dense_copies,
        copy = w->slot >= 0 ? s->at.dp : s->dense_copy;
    if (w->tp_dim < 0) {
        copies *= s->mesh.tp;
        copy = copy * s->mesh.tp + s->at.tp;
    }
    MoeSlice mine = moe_slice(p.count, MOE_SLICE_BLOCK, copies, copy);
    p.first += mine.first;
    p.offset += mine.first;
    p.count = mine.count;
    return p;
}

/* ---- runs ---- */

bool moe_piece_run(const MoePiece *p, int64_t from, MoeRun *out) {
    int64_t end = p->first + p->count, i = 0;
    if (p->count <= 0)
        return false;
    if (from > 0) { /* the first element of the piece's part at or behind `from` */
        int64_t row = from / p->stride, in_row = from % p->stride - p->column;
        i = row * p->width + (in_row < 0 ? 0 : in_row < p->width ? in_row : p->width);
    }
    i = i < p->first ? p->first : i;
    if (i >= end)
        return false;
    int64_t in_row = i % p->width, n = p->width - in_row;
    *out = (MoeRun){i / p->width * p->stride + p->column + in_row, n < end - i ? n : end - i,
                    p->offset + i - p->first};
    return true;
}

bool moe_piece_common(const MoePiece *a, const MoePiece *b, int64_t from, MoeRun *out_a,
                      MoeRun *out_b) {
    MoeRun x, y;
    while (moe_piece_run(a, from, &x) && moe_piece_run(b, from, &y)) {
        int64_t first = x.first > y.first ? x.first : y.first, x_end = x.first + x.n,
                y_end = y.first + y.n, end = x_end < y_end ? x_end : y_end;
        if (first < end) {
            *out_a = (MoeRun){first, end - first, x.at + first - x.first};
            *out_b = (MoeRun){first, end - first, y.at + first - y.first};
            return true;
        }
        from = first; /* one of the two ends before: to its next */
    }
    return false;
}

/* ---- proofs ---- */

static uint64_t mix(uint64_t v) { /* the finaliser of splitmix64 */
    v = (v ^ v >> 30) * 0xbf58476d1ce4e5b9u;
    v = (v ^ v >> 27) * 0x94d049bb133111ebu;
    return v ^ v >> 31;
}

static uint64_t mark(int64_t element) {
    return mix((uint64_t)element + 0x9e3779b97f4a7c15u);
}

uint64_t moe_piece_cover(const MoePiece *p) {
    uint64_t sum = 0;
    MoeRun r;
    for (int64_t at = 0; moe_piece_run(p, at, &r); at = r.first + r.n)
        sum += mark(r.first + r.n) - mark(r.first);
    return sum;
}

uint64_t moe_whole_cover(int64_t n) {
    return mark(n) - mark(0);
}

/* A number for element i with these bits: one multiplication, since every element of a model goes through here. */
static uint64_t element_number(uint64_t key, uint32_t bits) {
    uint64_t h = key + bits;
    h = (h ^ h >> 32) * 0x9fb21c651e98df25u;
    return h ^ h >> 29;
}

uint64_t moe_piece_sum(const MoePiece *p, const float *data) {
    const uint64_t step =
        0x9e3779b97f4a7c15u; /* keys of neighbours are far apart, also modulo 2^32 */
    uint64_t sum = 0;
    MoeRun r;
    for (int64_t at = 0; moe_piece_run(p, at, &r); at = r.first + r.n) {
        const float *from = data + (r.at - p->offset);
        uint64_t key = (uint64_t)(r.first + 1) * step;
        for (int64_t i = 0; i < r.n; i++, key += step) {
            uint32_t bits;
            memcpy(&bits, from + i, sizeof bits);
            sum += element_number(key, bits);
        }
    }
    return sum;
}
