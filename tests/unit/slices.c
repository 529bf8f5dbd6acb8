/* runtime/slices.h: over random meshes, shapes and maps of experts, every element of every weight is in the buffer that
 * docs/RANKS.md names, written by exactly one rank (those that hold the same share the work), and the proofs (cover, sum) see every fault. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "runtime/slices.h"
#include "tests/support/check_main.h"
#include "tests/support/status_checks.h"

static uint64_t counter;
static int64_t below(int64_t n) {
    return (int64_t)moe_rng_below(11, 3, counter++, (uint64_t)n);
}

/* A mesh that moe_mesh_check takes with 64 virtual shards (dp, shard and ep are powers of two; tp need not be). */
static MoeMesh random_mesh(void) {
    static const int tps[] = {1, 1, 2, 3, 4};
    MoeMesh m = {
        .dp = 1 << below(3), .shard = 1 << below(3), .ep = 1 << below(3), .tp = tps[below(5)]};
    int both = m.shard * m.ep;
    m.dense_shard = below(2) ? m.shard : 1 << below(6);
    if (both % m.dense_shard)
        m.dense_shard = both;
    MoeStatus st = moe_mesh_check(&m, 64, 1);
    ck_assert_msg(!st, "%s", moe_status_message(st));
    return m;
}

typedef struct {
    MoeWeightShape w;
    int64_t dims[3], n;
} Case;

static void random_weight(const MoeMesh *m, int slot, Case *c) {
    static const int64_t sizes[3][5] = {
        {1, 7, 4096, 4097, 20001}, {1, 3, 5, 64, 129}, {1, 3, 8, 13, 31}};
    *c = (Case){.w = {.rank = 1 + (int)below(3), .tp_dim = -1, .slot = slot}, .n = 1};
    if (below(2))
        c->w.tp_dim = (int)below(c->w.rank);
    for (int i = 0; i < c->w.rank; i++) {
        c->dims[i] = sizes[c->w.rank - 1][below(5)];
        if (i == c->w.tp_dim)
            c->dims[i] *= m->tp;
        c->n *= c->dims[i];
    }
    if (below(20) == 0)
        c->n = c->dims[0] = 0;
    c->w.dims = c->dims;
    if (c->w.rank > 1 && c->n == 0)
        c->w.tp_dim = below(2) ? 1 : -1;
    if (c->w.tp_dim >= 0 && c->dims[c->w.tp_dim] % m->tp)
        c->w.tp_dim = -1;
}

/* The element of the whole tensor that is local element i of tp rank t, in the plainest words. */
static int64_t whole_of(const Case *c, int tp, int t, int64_t i) {
    int64_t at[3] = {0}, e = 0;
    for (int d = c->w.rank - 1; d >= 0; d--) {
        int64_t n = d == c->w.tp_dim ? c->dims[d] / tp : c->dims[d];
        at[d] = i % n + (d == c->w.tp_dim ? t * n : 0);
        i /= n;
    }
    for (int d = 0; d < c->w.rank; d++)
        e = e * c->dims[d] + at[d];
    return e;
}

static int64_t slot_cap(const MoeMesh *m, const Case *c) {
    int64_t n = c->w.tp_dim >= 0 ? c->n / m->tp : c->n;
    return moe_slice(n, MOE_SLICE_BLOCK, c->w.slot >= 0 ? m->shard : m->dense_shard, 0).cap;
}

/* Fills what the piece holds with the elements' numbers, + 1; checks each against the definition. */
static void fill(const MoeRankSlices *s, const Case *c, const MoePiece *p, float *buffer) {
    const MoeMesh *m = &s->mesh;
    int64_t n = c->w.tp_dim >= 0 ? c->n / m->tp : c->n, seen = 0, from = 0;
    MoeSlice part = moe_slice(n, MOE_SLICE_BLOCK, c->w.slot >= 0 ? m->shard : m->dense_shard,
                              c->w.slot >= 0 ? s->at.shard : s->dense_index);
    int64_t base = c->w.slot >= 0 ? c->w.slot % s->slots * slot_cap(m, c) : 0;
    MoeRun r;
    for (; moe_piece_run(p, from, &r); from = r.first + r.n) {
        ck_assert(r.first >= from && r.n > 0);
        for (int64_t i = 0; i < r.n; i++, seen++) {
            CHECK_EACH(r.at + i == base + seen, "element %lld of a run lies elsewhere", (long long)i);
            CHECK_EACH(r.first + i == whole_of(c, m->tp, s->at.tp, part.first + seen),
                       "element %lld of a run is another of the whole", (long long)i);
            buffer[r.at + i] = (float)(r.first + i + 1);
        }
    }
    bool here = c->w.slot < 0 || c->w.slot / s->slots == s->at.ep;
    ck_assert_int_eq(seen, here ? part.count : 0);
}

START_TEST(test_every_element_once) {
    for (int round = 0; round < 150; round++) {
        MoeMesh m = random_mesh();
        int experts = 1 + (int)below(9), slots = moe_mesh_slots(&m, experts),
            ranks = moe_mesh_size(&m);
        slots += (int)below(2); /* some stay empty */
        Case c;
        random_weight(&m, below(2) ? (int)below(slots * m.ep) : -1, &c);
        int *held = calloc((size_t)c.n + 1, sizeof *held),
            *writer = calloc((size_t)c.n + 1, sizeof *writer);
        int64_t cap = slot_cap(&m, &c) * (c.w.slot >= 0 ? slots : 1);
        int copies = m.dp * (c.w.tp_dim < 0 ? m.tp : 1) *
                     (c.w.slot < 0 ? m.shard * m.ep / m.dense_shard : 1);
        uint64_t cover = 0, sum = 0;
        float *all = calloc((size_t)c.n + 1, sizeof *all);
        for (int64_t i = 0; i < c.n; i++)
            all[i] = (float)(i + 1);
        for (int r = 0; r < ranks; r++) {
            MoeRankSlices s;
            float *buffer = calloc((size_t)cap + 1, sizeof *buffer);
            moe_rank_slices(&m, r, slots, &s);
            MoePiece p = moe_piece_of(&s, &c.w);
            ck_assert(p.count == 0 || p.offset + p.count <= cap);
            fill(&s, &c, &p, buffer);
            MoePiece mine = moe_piece_written(&s, &c.w);
            int64_t blocks = (p.count + MOE_SLICE_BLOCK - 1) / MOE_SLICE_BLOCK;
            ck_assert(mine.count <= (blocks + copies - 1) / copies * MOE_SLICE_BLOCK);
            ck_assert(mine.offset >= p.offset && mine.offset + mine.count <= p.offset + p.count);
            for (int64_t i = p.offset; i < p.offset + p.count; i++) {
                int64_t e = (int64_t)buffer[i] - 1;
                held[e]++;
                writer[e] += i >= mine.offset && i < mine.offset + mine.count;
            }
            cover += moe_piece_cover(&mine);
            sum += moe_piece_sum(&mine, buffer + mine.offset);
            free(buffer);
        }
        MoePiece whole = moe_piece_whole(c.n);
        for (int64_t e = 0; e < c.n; e++)
            CHECK_EACH(writer[e] == 1 && held[e] == copies,
                       "element %lld: %d writers, %d of %d holders", (long long)e, writer[e],
                       held[e], copies);
        ck_assert(cover == moe_whole_cover(c.n) && moe_piece_cover(&whole) == cover);
        ck_assert(sum == moe_piece_sum(&whole, all));
        free(all);
        free(held);
        free(writer);
    }
}
END_TEST

static MoePiece random_piece(const Case *c, const MoeMesh *m, int slots) {
    MoeRankSlices s;
    moe_rank_slices(m, (int)below(moe_mesh_size(m)), slots, &s);
    return moe_piece_of(&s, &c->w);
}

/* What two layouts have in common, element by element, is what moe_piece_common says. */
START_TEST(test_common) {
    for (int round = 0; round < 600; round++) {
        MoeMesh a = random_mesh(), b = random_mesh();
        int tps[] = {a.tp, b.tp};
        Case c;
        a.tp *= tps[1]; /* dims that both tp degrees divide */
        random_weight(&a, -1, &c);
        a.tp = tps[0];
        MoePiece p = random_piece(&c, &a, 1), q = random_piece(&c, &b, 1);
        p.offset += below(50);
        char *in = calloc((size_t)c.n + 1, 1);
        int64_t *place = calloc((size_t)c.n + 1, sizeof *place), from = 0, both = 0, found = 0;
        MoeRun x, y;
        for (; moe_piece_run(&p, from, &x); from = x.first + x.n)
            for (int64_t i = 0; i < x.n; i++) {
                in[x.first + i] = 1;
                place[x.first + i] = x.at + i;
            }
        for (from = 0; moe_piece_run(&q, from, &y); from = y.first + y.n)
            for (int64_t i = 0; i < y.n; i++)
                both += in[y.first + i];
        for (from = 0; moe_piece_common(&p, &q, from, &x, &y); from = x.first + x.n) {
            ck_assert(x.first >= from && x.first == y.first && x.n == y.n && x.n > 0);
            for (int64_t i = 0; i < x.n; i++) {
                CHECK_EACH(in[x.first + i] == 1 && place[x.first + i] == x.at + i,
                           "element %lld is not common, or common twice",
                           (long long)(x.first + i));
                in[x.first + i] = 2;
            }
            found += x.n;
        }
        ck_assert_int_eq(found, both);
        free(in);
        free(place);
    }
}
END_TEST

/* The cover of pieces that overlap, leave a hole or come twice is not the whole's. */
START_TEST(test_cover_sees) {
    for (int round = 0; round < 2000; round++) {
        int64_t n = 2 + below(10000), cut = 1 + below(n - 1);
        MoePiece a = {0, cut, n, n, 0, 0}, b = {cut, n - cut, n, n, 0, 0};
        ck_assert(moe_piece_cover(&a) + moe_piece_cover(&b) == moe_whole_cover(n));
        ck_assert(moe_piece_cover(&a) != moe_whole_cover(n)); /* missing */
        ck_assert(moe_piece_cover(&a) + 2 * moe_piece_cover(&b) != moe_whole_cover(n));
        MoePiece c = b;
        c.first += below(2) ? 1 : -1; /* a hole; one twice */
        c.count = n - c.first;
        ck_assert(moe_piece_cover(&a) + moe_piece_cover(&c) != moe_whole_cover(n));
        c = b;
        c.count++; /* past the end */
        ck_assert(moe_piece_cover(&a) + moe_piece_cover(&c) != moe_whole_cover(n));
    }
    /* Columns, and the sum of what is in them. */
    float data[60];
    for (int i = 0; i < 60; i++)
        data[i] = (float)i;
    float left[40], right[20];
    for (int r = 0; r < 10; r++) {
        memcpy(left + 4 * r, data + 6 * r, sizeof *left * 4);
        memcpy(right + 2 * r, data + 6 * r + 4, sizeof *left * 2);
    }
    MoePiece l = {0, 40, 4, 6, 0, 0}, r = {0, 20, 2, 6, 4, 0}, whole = moe_piece_whole(60);
    ck_assert(moe_piece_cover(&l) + moe_piece_cover(&r) == moe_whole_cover(60));
    uint64_t sum = moe_piece_sum(&whole, data);
    ck_assert(moe_piece_sum(&l, left) + moe_piece_sum(&r, right) == sum);
    for (int i = 0; i < 60; i++)
        for (int bit = 0; bit < 32; bit++) { /* every bit counts, and where it is */
            float was = data[i], other = data[(i + 7) % 60];
            uint32_t bits;
            memcpy(&bits, &data[i], 4);
            bits ^= 1u << bit;
            memcpy(&data[i], &bits, 4);
            ck_assert(moe_piece_sum(&whole, data) != sum);
            data[i] = other;
            data[(i + 7) % 60] = was;
            ck_assert(moe_piece_sum(&whole, data) != sum);
            data[i] = was;
            data[(i + 7) % 60] = other;
        }
    r.column = 3;
    ck_assert(moe_piece_cover(&l) + moe_piece_cover(&r) != moe_whole_cover(60));
}
END_TEST

int main(void) {
    Suite *s = suite_create("slices");
    TCase *t = tcase_create("slices");
    tcase_set_timeout(t, 120);
    tcase_add_test(t, test_every_element_once);
    tcase_add_test(t, test_common);
    tcase_add_test(t, test_cover_sees);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
