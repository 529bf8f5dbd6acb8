/* runtime/exec_comm*.c: every collective on many meshes, ranks as threads, against what its definition says, bit for bit; on the
 * CPU, and on some meshes over a (simulated) NCCL, from GPU to GPU. The plan is written here: a program whose steps are exchanges
 * alone, with the runtime's inputs as operands. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "runtime/exec_comm.h"
#include "runtime/ranks.h"
#include "tests/support/check_main.h"
#include "tests/support/exchange_gpu.h"
#include "tests/support/mesh.h"
#include "tests/support/status_checks.h"

enum { V = 16, SEQ = 3, BATCH = 37, MAX_RANKS = 16 };

static const MoeMesh meshes[] = {MESH(1, 1, 1, 1, 1), MESH(2, 1, 1, 1, 1), MESH(1, 2, 1, 1, 2),
                                 MESH(1, 1, 2, 1, 1), MESH(1, 1, 4, 1, 2), MESH(2, 2, 2, 1, 4),
                                 MESH(2, 2, 2, 1, 2), MESH(1, 2, 4, 1, 1), MESH(8, 1, 1, 1, 1),
                                 MESH(1, 1, 2, 2, 2), MESH(2, 1, 2, 2, 1), MESH(4, 2, 2, 1, 2)};
#define N_MESHES (sizeof meshes / sizeof *meshes)

static bool gpu; /* plans are for GPUs */

/* ---- a plan with one program "t" ---- */

typedef struct {
    MoeStr values, inputs, outputs, steps;
    int n;
    int64_t slab;
} Text;

static int add_input(Text *t, const char *name, const char *dtype, int64_t n, int64_t size) {
    moe_str_printf(&t->values, "%s{\"input\": \"%s\", \"bytes\": %lld}", t->n ? ", " : "", name,
                   (long long)(n * size));
    moe_str_printf(&t->inputs,
                   "%s{\"name\": \"%s\", \"value\": %d, \"dtype\": \"%s\", \"dims\": [%lld], "
                   "\"ragged\": false}",
                   t->inputs.len ? ", " : "", name, t->n, dtype, (long long)n);
    return t->n++;
}

static int add_result(Text *t, const char *name, const char *dtype, int64_t n, int64_t size) {
    moe_str_printf(&t->values, "%s{\"slab\": %lld, \"bytes\": %lld}", t->n ? ", " : "",
                   (long long)t->slab, (long long)(n * size));
    moe_str_printf(&t->outputs,
                   "%s{\"name\": \"%s\", \"value\": %d, \"dtype\": \"%s\", \"dims\": [%lld], "
                   "\"ragged\": false}",
                   t->outputs.len ? ", " : "", name, t->n, dtype, (long long)n);
    t->slab += (n * size + 63) / 64 * 64;
    return t->n++;
}

static void add_step(Text *t, const char *name, const char *rest) {
    moe_str_printf(&t->steps,
                   "%s{\"name\": \"%s\", \"phase\": \"forward\", \"count\": false, \"layer\": -1, "
                   "%s}",
                   t->steps.len ? ",\n" : "", name, rest);
}

static MoeStatus load(const MoeMesh *m, int micro, int experts, Text *t, MoePlan **out) {
    MoeStr s = {0};
    moe_str_printf(
        &s,
        "{\"format_version\": 1, \"abi\": 1, \"target\": \"cpu:generic\", \"model\": {}, "
        "\"tokenizer\": \"byte\", \"vocab_size\": 256, \"batch\": %d, \"seq\": %d, "
        "\"virtual_shards\": %d, \"micro_batches\": %d, \"dtype\": \"f32\", \"moe_layers\": "
        "[], \"experts\": %d, \"experts_per_token\": 0, \"ranks\": %d, \"slots\": %d, "
        "\"mesh\": {\"dp\": %d, \"shard\": %d, \"ep\": %d, \"tp\": %d, \"dense_shard\": "
        "%d}, \"buffers\": [], \"params\": [], \"programs\": {\"t\": {\"slab_bytes\": %lld, "
        "\"slab_lower_bound\": 0, \"scratch_bytes\": 0, \"values\": [%s], \"inputs\": [%s], "
        "\"outputs\": [%s], \"steps\": [%s]}}}",
        BATCH, SEQ, V, micro, experts, moe_mesh_size(m), moe_mesh_slots(m, experts), m->dp,
        m->shard, m->ep, m->tp, m->dense_shard, (long long)t->slab, moe_str_c(&t->values),
        moe_str_c(&t->inputs), moe_str_c(&t->outputs), moe_str_c(&t->steps));
    MoeStatus st = exchange_load(moe_str_c(&s), s.len, gpu, out);
    moe_str_free(&s);
    moe_str_free(&t->values);
    moe_str_free(&t->inputs);
    moe_str_free(&t->outputs);
    moe_str_free(&t->steps);
    return st;
}

/* ---- sliced tensors ---- */

/* Element i of rank r's term: sums of these depend on their order. */
static float term(int what, int r, int64_t i) {
    uint32_t h = (uint32_t)i * 2654435761u + (uint32_t)(what * 100 + r) * 40503u;
    h ^= h >> 15;
    h *= 2246822519u;
    return (float)(int32_t)h / (float)(1 << (h % 31));
}

/* The tree over the group's terms, by the rule of docs/NUMBERS.md told with a stack. */
static float tree_sum(const int *ranks, int n, int what, int64_t i) {
    float stack[32];
    int top = 0;
    for (int k = 0; k < n; k++) {
        stack[top++] = term(what, ranks[k], i);
        for (int c = k + 1; c % 2 == 0; c /= 2, top--)
            stack[top - 2] = stack[top - 2] + stack[top - 1];
    }
    for (; top > 1; top--)
        stack[top - 2] = stack[top - 2] + stack[top - 1];
    return stack[0];
}

typedef struct {
    const MoePlan *plan;
    int64_t elements, outer;
    const char *sum, *scatter;
    bool started;
    int threads;
} Sliced;

/* Checks are costly when they hold: only a wrong element makes one. */
#define SAME(cond, ...)                                                                            \
    do {                                                                                           \
        if (!(cond))                                                                               \
            ck_abort_msg(__VA_ARGS__);                                                             \
    } while (0)

static MoeMeshGroup group(const char *name) {
    MoeMeshGroup g;
    ck_assert(moe_mesh_group_from_name(name, &g));
    return g;
}

static void check_reduced(const Sliced *s, MoeExec *x) {
    const MoeMesh *m = &s->plan->mesh;
    int ranks[MAX_RANKS], mine[MAX_RANKS], n = moe_mesh_group_size(m, group(s->sum)),
                                           parts = moe_mesh_group_size(m, group(s->scatter));
    moe_mesh_group_ranks(m, x->rank, group(s->sum), ranks);
    int self = moe_mesh_group_ranks(m, x->rank, group(s->scatter), mine);
    MoeSlice slice = moe_slice(s->elements, 4096, parts, self);
    const float *scattered = moe_exec_output(x, "t", "scattered", NULL),
                *gathered = moe_exec_output(x, "t", "gathered", NULL),
                *summed = moe_exec_output(x, "t", "summed", NULL);
    const int32_t *counted = moe_exec_output(x, "t", "counted", NULL);
    for (int64_t l = 0; l < s->outer; l++) {
        for (int64_t i = 0; i < slice.cap; i++) {
            float want =
                i < slice.count ? tree_sum(ranks, n, 1, l * s->elements + slice.first + i) : 0.0f;
            SAME(!memcmp(&want, &scattered[l * slice.cap + i], 4),
                 "rank %d, row %lld, element %lld: %g, expected %g", x->rank, (long long)l,
                 (long long)i, (double)scattered[l * slice.cap + i], (double)want);
        }
        for (int64_t i = 0; i < s->elements; i++) { /* its slices are of what reduce_scatter left */
            float want = tree_sum(ranks, n, 1, l * s->elements + i);
            SAME(!memcmp(&want, &gathered[l * s->elements + i], 4),
                 "gathered: rank %d, element %lld", x->rank, (long long)i);
        }
    }
    for (int64_t i = 0; i < s->elements; i++) {
        float want = tree_sum(ranks, n, 2, i);
        int32_t sum = 0;
        SAME(!memcmp(&want, &summed[i], 4), "summed: rank %d, element %lld", x->rank, (long long)i);
        for (int k = 0; k < n; k++)
            sum += (int32_t)(ranks[k] * 1000 + i);
        SAME(counted[i] == sum, "counted: %d, expected %d", counted[i], sum);
    }
}

static MoeStatus sliced_rank(void *ctx, MoeComm *comm) {
    const Sliced *s = ctx;
    MoeExec *x;
    OK(exchange_create(s->plan, comm, s->threads, &x));
    float *a = moe_exec_input(x, "t", "a"), *b = moe_exec_input(x, "t", "b");
    int32_t *c = moe_exec_input(x, "t", "c");
    for (int64_t i = 0; i < s->outer * s->elements; i++)
        a[i] = term(1, x->rank, i);
    for (int64_t i = 0; i < s->elements; i++) {
        b[i] = term(2, x->rank, i);
        c[i] = (int32_t)(x->rank * 1000 + i);
    }
    for (int turn = 0; turn < 2; turn++) { /* staging memory is used again */
        if (!gpu)
            memset(x->slab, 0xee, (size_t)x->slab_bytes);
        OK(exchange_run(x));
        ck_assert(gpu == (x->device->links != NULL));
        check_reduced(s, x);
    }
    moe_exec_destroy(x);
    return NULL;
}

static void sliced_case(const MoeMesh *m, const char *sum, const char *scatter, int64_t elements,
                        int64_t outer, bool started) {
    Text t = {0};
    char rest[600];
    Sliced s = {NULL, elements, outer, sum, scatter, started, 1 + (int)(elements % 2)};
    int64_t cap = moe_slice(elements, 4096, moe_mesh_group_size(m, group(scatter)), 0).cap;
    int a = add_input(&t, "a", "f32", outer * elements, 4),
        b = add_input(&t, "b", "f32", elements, 4), c = add_input(&t, "c", "i32", elements, 4);
    int scattered = add_result(&t, "scattered", "f32", outer * cap, 4),
        summed = add_result(&t, "summed", "f32", elements, 4),
        counted = add_result(&t, "counted", "i32", elements, 4),
        gathered = add_result(&t, "gathered", "f32", outer * elements, 4);
    snprintf(
        rest, sizeof rest,
        "\"kind\": \"comm\", \"start\": %s, \"comm\": [{\"op\": \"reduce_scatter\", \"in\": [%d], "
        "\"out\": %d, \"sum\": \"%s\", \"scatter\": \"%s\", \"unit\": 4096, \"outer\": %lld, "
        "\"elements\": %lld}]",
        started ? "true" : "false", a, scattered, sum, scatter, (long long)outer,
        (long long)elements);
    add_step(&t, "scatter", rest);
    snprintf(rest, sizeof rest,
             "\"kind\": \"comm\", \"start\": %s, \"comm\": [{\"op\": \"all_reduce\", \"in\": [%d], "
             "\"out\": %d, \"dtype\": \"f32\", \"group\": \"%s\", \"elements\": %lld}, {\"op\": "
             "\"all_reduce\", \"in\": [%d], \"out\": %d, \"dtype\": \"i32\", \"group\": \"%s\", "
             "\"elements\": %lld}]",
             started ? "true" : "false", b, summed, sum, (long long)elements, c, counted, sum,
             (long long)elements);
    add_step(&t, "sums", rest);
    for (int i = 0; i < 2 && started; i++) { /* two under way; they end out of order */
        snprintf(rest, sizeof rest, "\"kind\": \"wait\", \"wait\": %d", 1 - i);
        add_step(&t, "wait", rest);
    }
    snprintf(
        rest, sizeof rest,
        "\"kind\": \"comm\", \"comm\": [{\"op\": \"all_gather\", \"in\": [%d], \"out\": %d, "
        "\"dtype\": \"f32\", \"group\": \"%s\", \"unit\": 4096, \"outer\": %lld, \"elements\": "
        "%lld}]",
        scattered, gathered, scatter, (long long)outer, (long long)elements);
    add_step(&t, "gather", rest);
    MoePlan *p;
    OK(load(m, 1, 0, &t, &p));
    s.plan = p;
    OK(moe_ranks_run(p->ranks, 0, sliced_rank, &s));
    moe_plan_free(p);
}

START_TEST(test_sliced) {
    static const int64_t sizes[][2] = {{1, 1}, {5000, 3}, {40961, 1}, {8192, 2}};
    static const char *const groups[][2] = {{"data", "dense_shard"},
                                            {"expert_data", "expert_shard"}};
    for (int k = 0; k < 4; k++)
        for (int g = 0; g < 2; g++)
            sliced_case(&meshes[_i], groups[g][0], groups[g][1], sizes[k][0], sizes[k][1],
                        (k + g) % 2);
}
END_TEST

/* ---- ragged rows ---- */

enum { E = 5, K = 2, T = BATCH * SEQ, COLS = 3 };

/* One batch's tokens and choices, known to all ranks. */
typedef struct {
    const MoePlan *plan;
    int micro, parts, chunks, seqs;
    int32_t tok[V + 1]; /* of the whole batch */
    int32_t ids[T][K], place[E];
} Batch;

/* Tokens [first, last) of data rank d in this micro-batch; the shard of a token. */
static void tokens_of(const Batch *b, int d, int *first, int *last) {
    int run, n = moe_mesh_shard_run(&b->plan->mesh, V, b->parts, b->micro, d, &run);
    *first = b->tok[run];
    *last = b->tok[run + n];
}

static int shard_of(const Batch *b, int t) {
    int v = 0;
    while (b->tok[v + 1] <= t)
        v++;
    return v;
}

/* Chunk in which token t goes to EP rank q: the first with an expert it chose; -1 = none. */
static int chunk_for(const Batch *b, int t, int q) {
    int slots = b->plan->slots, best = -1;
    for (int j = 0; j < K; j++) {
        int at = b->place[b->ids[t][j]];
        int each = (slots + b->chunks - 1) / b->chunks;
        if (at / slots == q && (best < 0 || at % slots / each < best))
            best = at % slots / each;
    }
    return best;
}

static bool chose(const Batch *b, int t, int e) {
    return b->ids[t][0] == e || b->ids[t][1] == e;
}

static float payload(int t, int e, int c) {
    return (float)(t * 64 + e * 4 + c);
}

/* A segs table of rows counted per (group, shard). */
static void to_segs(const int32_t *counts, int n, int32_t *segs) {
    segs[0] = 0;
    for (int i = 0; i < n; i++)
        segs[i + 1] = segs[i] + counts[i];
}

static void fill_rank(const Batch *b, MoeExec *x) {
    const MoeMesh *m = &b->plan->mesh;
    const int slots = b->plan->slots, ep = m->ep;
    int first, last, group_first, group_last, n = 0, rows = 0;
    int32_t *send = moe_exec_input(x, "t", "send"), *idx = moe_exec_input(x, "t", "idx"),
            counts[E * V + 64 * V] = {0};
    float *xr = moe_exec_input(x, "t", "x"), *y = moe_exec_input(x, "t", "y");
    tokens_of(b, x->coords.data, &first, &last);
    tokens_of(b, x->coords.data - x->coords.ep, &group_first, &group_last);
    tokens_of(b, x->coords.data - x->coords.ep + ep - 1, &n, &group_last);
    for (int t = first; t < last; t++)
        for (int c = 0; c < COLS; c++)
            xr[(t - first) * COLS + c] = payload(t, 0, c);
    send[0] = 0;
    n = 0;
    for (int q = 0; q < ep; q++)
        for (int k = 0; k < b->chunks; k++) {
            for (int t = first; t < last; t++)
                if (chunk_for(b, t, q) == k)
                    idx[n++] = t - first;
            send[q * b->chunks + k + 1] = n;
        }
    for (int t = group_first; t < group_last; t++)
        if (chunk_for(b, t, x->coords.ep) >= 0)
            counts[chunk_for(b, t, x->coords.ep) * V + shard_of(b, t)]++;
    to_segs(counts, b->chunks * V, moe_exec_input(x, "t", "recv"));
    memset(counts, 0, sizeof counts);
    for (int s = 0; s < slots; s++)
        for (int e = 0; e < E; e++)
            for (int t = group_first; t < group_last && b->place[e] == x->coords.ep * slots + s;
                 t++)
                if (chose(b, t, e)) {
                    counts[s * V + shard_of(b, t)]++;
                    for (int c = 0; c < COLS; c++)
                        y[rows * COLS + c] = payload(t, e, c);
                    rows++;
                }
    to_segs(counts, slots * V, moe_exec_input(x, "t", "seg"));
    memset(counts, 0, sizeof counts);
    for (int e = 0; e < E; e++)
        for (int t = first; t < last; t++)
            counts[e * V + shard_of(b, t)] += chose(b, t, e);
    to_segs(counts, E * V, moe_exec_input(x, "t", "home"));
    memcpy(moe_exec_input(x, "t", "place"), b->place, sizeof b->place);
    memset(counts, 0, sizeof counts);
    for (int t = group_first; t < group_last; t++)
        counts[shard_of(b, t)]++;
    to_segs(counts, V, moe_exec_input(x, "t", "tok_ep"));
    int32_t *fixed = moe_exec_input(x, "t", "fixed");
    fixed[0] = x->rank;
    fixed[1] = -x->rank;
    x->micro = b->micro;
    x->parts = b->parts;
}

static void check_row(const float *row, int t, int e, const char *what, int rank) {
    for (int c = 0; c < COLS; c++)
        SAME(row[c] == payload(t, e, c), "%s of rank %d: %g, expected token %d, expert %d", what,
             rank, (double)row[c], t, e);
}

static void check_rank(const Batch *b, MoeExec *x) {
    const MoeMesh *m = &b->plan->mesh;
    int first, last, group_first, group_last, n = 0, ranks[MAX_RANKS];
    const float *row = moe_exec_output(x, "t", "arrived", NULL);
    tokens_of(b, x->coords.data, &first, &last);
    tokens_of(b, x->coords.data - x->coords.ep, &group_first, &group_last);
    tokens_of(b, x->coords.data - x->coords.ep + m->ep - 1, &n, &group_last);
    for (int k = 0; k < b->chunks; k++)
        for (int t = group_first; t < group_last; t++)
            if (chunk_for(b, t, x->coords.ep) == k) {
                check_row(row, t, 0, "dispatch", x->rank);
                row += COLS;
            }
    row = moe_exec_output(x, "t", "back", NULL);
    for (int e = 0; e < E; e++)
        for (int t = first; t < last; t++)
            if (chose(b, t, e)) {
                check_row(row, t, e, "combine", x->rank);
                row += COLS;
            }
    row = moe_exec_output(x, "t", "all", NULL);
    for (int t = group_first; t < group_last; t++, row += COLS)
        check_row(row, t, 0, "rows", x->rank);
    const int32_t *fixed = moe_exec_output(x, "t", "allfixed", NULL);
    moe_mesh_group_ranks(m, x->rank, MOE_GROUP_EP, ranks);
    for (int i = 0; i < m->ep; i++)
        ck_assert(fixed[2 * i] == ranks[i] && fixed[2 * i + 1] == -ranks[i]);
}

static MoeStatus ragged_rank(void *ctx, MoeComm *comm) {
    const Batch *b = ctx;
    MoeExec *x;
    OK(exchange_create(b->plan, comm, 1, &x));
    if (!gpu)
        memset(x->slab, 0xee, (size_t)x->slab_bytes);
    fill_rank(b, x);
    OK(exchange_run(x));
    ck_assert(gpu == (x->device->links != NULL));
    check_rank(b, x);
    moe_exec_destroy(x);
    return NULL;
}

static MoePlan *ragged_plan(const MoeMesh *m, int micro, int chunks) {
    Text t = {0};
    MoePlan *p;
    char rest[900];
    int slots = moe_mesh_slots(m, E), ep = m->ep;
    int x = add_input(&t, "x", "f32", T * COLS, 4),
        send = add_input(&t, "send", "i32", ep * chunks + 1, 4),
        idx = add_input(&t, "idx", "i32", T * ep, 4),
        recv = add_input(&t, "recv", "i32", chunks * V + 1, 4),
        y = add_input(&t, "y", "f32", T * K * COLS, 4),
        seg = add_input(&t, "seg", "i32", slots * V + 1, 4),
        place = add_input(&t, "place", "i32", E, 4),
        home = add_input(&t, "home", "i32", E * V + 1, 4),
        tok_ep = add_input(&t, "tok_ep", "i32", V + 1, 4),
        fixed = add_input(&t, "fixed", "i32", 2, 4);
    int arrived = add_result(&t, "arrived", "f32", T * COLS, 4),
        back = add_result(&t, "back", "f32", T * K * COLS, 4),
        all = add_result(&t, "all", "f32", T * COLS, 4),
        allfixed = add_result(&t, "allfixed", "i32", 2 * ep, 4);
    snprintf(
        rest, sizeof rest,
        "\"kind\": \"comm\", \"comm\": [{\"op\": \"a2a_dispatch\", \"in\": [%d,%d,%d,%d], "
        "\"out\": %d, \"group\": \"ep\", \"row_bytes\": %d, \"chunks\": %d, \"capacity\": %d}, "
        "{\"op\": \"a2a_combine\", \"in\": [%d,%d,%d,%d], \"out\": %d, \"group\": \"ep\", "
        "\"row_bytes\": %d, \"slots\": %d, \"experts\": %d}]",
        x, send, idx, recv, arrived, COLS * 4, chunks, T, y, seg, place, home, back, COLS * 4,
        slots, E);
    add_step(&t, "a2a", rest);
    snprintf(
        rest, sizeof rest,
        "\"kind\": \"comm\", \"comm\": [{\"op\": \"all_gather_rows\", \"in\": [%d,%d], \"out\": "
        "%d, \"group\": \"ep\", \"row_bytes\": %d}, {\"op\": \"all_gather_rows\", \"in\": [%d], "
        "\"out\": %d, \"group\": \"ep\", \"row_bytes\": 4, \"rows\": 2}]",
        x, tok_ep, all, COLS * 4, fixed, allfixed);
    add_step(&t, "rows", rest);
    OK(load(m, micro, E, &t, &p));
    return p;
}

/* routing: 0 random, 1 all tokens to experts 0 and 1, 2 nobody wants expert 0. */
static void ragged_case(const MoeMesh *m, int micro, int seqs, int routing, int chunks) {
    static Batch b;
    b = (Batch){.parts = micro, .chunks = chunks, .seqs = seqs};
    MoePlan *p = ragged_plan(m, micro, chunks);
    b.plan = p;
    for (int v = 0; v <= V; v++)
        b.tok[v] = v * seqs / V * SEQ;
    for (int t = 0; t < T; t++) {
        int lo = routing == 2, n = routing == 1 ? 2 : E - lo;
        int first = (int)moe_rng_below(3, 1, (uint64_t)t, (uint64_t)n),
            second = (int)moe_rng_below(3, 2, (uint64_t)t, (uint64_t)n - 1);
        b.ids[t][0] = lo + first;
        b.ids[t][1] = lo + (second < first ? second : second + 1);
    }
    int total = p->slots * m->ep; /* any slots will do: e -> a + e * b of them */
    for (int e = 0; e < E; e++)
        b.place[e] = routing == 0 ? e : (total - 1 - e + routing) % total;
    for (b.micro = 0; b.micro < micro; b.micro++)
        OK(moe_ranks_run(p->ranks, 0, ragged_rank, &b));
    moe_plan_free(p);
}

START_TEST(test_ragged) {
    const MoeMesh *m = &meshes[_i];
    int slots = moe_mesh_slots(m, E);
    for (int routing = 0; routing < 3; routing++) {
        ragged_case(m, 1, BATCH, routing, 1);
        ragged_case(m, 1, 2, routing, slots);
        if (moe_mesh_data_ranks(m) * 2 <= V)
            ragged_case(m, 2, BATCH - 6, routing, slots);
    }
}
END_TEST

/* ---- GPUs ---- */

static const int on_gpus[] = {1, 4, 5, 7, 9}; /* of meshes: with at most 8 ranks */

START_TEST(test_sliced_gpu) {
    gpu = true;
    if (!exchange_gpus())
        return;
    sliced_case(&meshes[on_gpus[_i]], "data", "dense_shard", 5000, 3, true);
    sliced_case(&meshes[on_gpus[_i]], "expert_data", "expert_shard", 40961, 1, false);
    sliced_case(&meshes[on_gpus[_i]], "data", "dense_shard", 1, 1, false);
}
END_TEST

START_TEST(test_ragged_gpu) {
    gpu = true;
    if (!exchange_gpus())
        return;
    int slots = moe_mesh_slots(&meshes[on_gpus[_i]], E);
    for (int routing = 0; routing < 3; routing++)
        ragged_case(&meshes[on_gpus[_i]], 1, routing ? 2 : BATCH, routing, routing ? slots : 1);
    ragged_case(&meshes[on_gpus[_i]], 2, BATCH - 6, 0, slots);
}
END_TEST

/* ---- failures ---- */

static MoeStatus failing_rank(void *ctx, MoeComm *comm) {
    const MoePlan *p = ctx;
    MoeExec *x;
    MOE_TRY(moe_exec_create(p, comm, 1, &x));
    MoeStatus st = comm->rank == 1 ? moe_error(MOE_E_INPUT, "the disk is wet")
                                   : moe_comm_barrier(comm, "waiting for the others");
    moe_exec_destroy(x);
    return st;
}

static MoeStatus wrong_size(void *ctx, MoeComm *comm) {
    MoeExec *x;
    return moe_exec_create(ctx, comm, 1, &x);
}

/* A rank that fails ends the others; its own message comes out, with its number. */
START_TEST(test_failures) {
    MoePlan *p = ragged_plan(&meshes[4], 1, 1);
    FAILS(moe_ranks_run(4, 0, failing_rank, p), MOE_E_INPUT, "rank 1", "the disk is wet");
    FAILS(moe_ranks_run(2, 0, wrong_size, p), MOE_E_MISUSE, "4 ranks", "2 are there");
    moe_plan_free(p);
}
END_TEST

int main(void) {
    Suite *s = suite_create("exec_comm");
    TCase *t = tcase_create("exec_comm");
    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, test_sliced, 0, N_MESHES);
    tcase_add_loop_test(t, test_ragged, 0, N_MESHES);
    tcase_add_loop_test(t, test_sliced_gpu, 0, sizeof on_gpus / sizeof *on_gpus);
    tcase_add_loop_test(t, test_ragged_gpu, 0, sizeof on_gpus / sizeof *on_gpus);
    tcase_add_test(t, test_failures);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
