/* Makes load traces. A kind gives every expert of a layer a score at every step (the logarithm of its popularity); from there all go
 * the same way: a source's leaning is added, popularities become the probabilities that a token chooses the expert among its
 * top_k, counts are drawn around their means. */
#include "placement/synthetic.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

#define LEANING     0.2  /* of a source, standard deviation of log popularity */
#define DRIFT_KEEPS 0.98 /* of its score an expert keeps from step to step: a memory of 50 steps */
#define BURST_STEPS 8
#define BURST_ODDS  0.03

typedef struct {
    const MoeSyntheticSizes *n;
    double parameter;
    int layer, step;
    const int *order;       /* [experts]: each expert's rank of popularity in the layer */
    const double *previous; /* [experts]: scores of the step before; NULL at the first */
    uint64_t stream;        /* of the layer, for random numbers */
} Ask;

static double random_normal(const Ask *q, int what, int e) {
    uint64_t at =
        ((uint64_t)what * (uint64_t)q->n->steps + (uint64_t)q->step) * (uint64_t)q->n->experts;
    return moe_rng_normal(q->n->seed, q->stream, at + (uint64_t)e);
}

static int by_key(const void *a, const void *b) {
    const uint64_t *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

/* A random order of the experts: out[e] is the place of e. */
static void shuffle(uint64_t seed, uint64_t stream, uint64_t turn, int experts, uint64_t *scratch,
                    int *out) {
    for (int e = 0; e < experts; e++) {
        uint64_t random = moe_rng_u64(seed, stream, turn * (uint64_t)experts + (uint64_t)e);
        scratch[e] = (random & ~(uint64_t)0xffff) | (uint64_t)e; /* experts are at most 2^16 */
    }
    qsort(scratch, (size_t)experts, sizeof *scratch, by_key);
    for (int i = 0; i < experts; i++)
        out[scratch[i] & 0xffff] = i;
}

/* ---- the kinds: scores of a step ---- */

static void uniform(const Ask *q, double *score) {
    memset(score, 0, sizeof *score * (size_t)q->n->experts);
}

static void zipf(const Ask *q, double *score) {
    for (int e = 0; e < q->n->experts; e++)
        score[e] = -q->parameter * log(1.0 + q->order[e]);
}

/* A stationary walk: normal with the standard deviation `parameter` at every step. */
static void drift(const Ask *q, double *score) {
    double fresh = sqrt(1 - DRIFT_KEEPS * DRIFT_KEEPS);
    for (int e = 0; e < q->n->experts; e++) {
        double z = q->parameter * random_normal(q, 0, e);
        score[e] = q->previous ? DRIFT_KEEPS * q->previous[e] + fresh * z : z;
    }
}

/* Zipf of exponent 0.5, and now and then an expert is wanted `parameter` times as much for some steps. */
static void bursts(const Ask *q, double *score) {
    for (int e = 0; e < q->n->experts; e++) {
        uint64_t at =
            (uint64_t)q->step + moe_rng_below(q->n->seed, q->stream + 1, (uint64_t)e, BURST_STEPS);
        uint64_t block = at / BURST_STEPS * (uint64_t)q->n->experts + (uint64_t)e;
        bool bursting = moe_rng_uniform(q->n->seed, q->stream + 2, block) < BURST_ODDS;
        score[e] = -0.5 * log(1.0 + q->order[e]) + (bursting ? log(q->parameter) : 0);
    }
}

/* Zipf whose order is another every `parameter` steps: the driver shuffles. */
static void switching(const Ask *q, double *score) {
    for (int e = 0; e < q->n->experts; e++)
        score[e] = -log(1.0 + q->order[e]);
}

/* One expert has `parameter` times the mean load, the others what is left. */
static void hot(const Ask *q, double *score) {
    double n = q->n->experts, x = q->parameter < n ? q->parameter : n - 0.01;
    for (int e = 0; e < q->n->experts; e++)
        score[e] = q->order[e] == 0 && n > 1 ? log(x * (n - 1) / (n - x)) : 0;
}

static const struct {
    const char *name;
    double parameter, least; /* by default; the least that makes sense. NAN: it has none */
    void (*score)(const Ask *q, double *score);
} kinds[] = {
    {"uniform", NAN, NAN, uniform}, /* no trend at all */
    {"zipf", 1, 0, zipf},           /* popularity ~ 1 / rank^s, for ever */
    {"drift", 1, 0, drift},         /* popularities wander */
    {"bursts", 6, 1, bursts},       /* experts that are wanted for a few steps */
    {"switch", 50, 1, switching},   /* all changes every so many steps */
    {"hot", 8, 1, hot},             /* one expert with so many times the mean */
};
#define N_KINDS (sizeof kinds / sizeof *kinds)

void moe_synthetic_kinds(MoeStr *out) {
    for (size_t i = 0; i < N_KINDS; i++) {
        moe_str_printf(out, "%s%s", i ? ", " : "", kinds[i].name);
        if (!isnan(kinds[i].parameter))
            moe_str_printf(out, "[:%g]", kinds[i].parameter);
    }
}

static MoeStatus find_kind(const char *kind, size_t *out, double *parameter) {
    size_t n = strcspn(kind, ":");
    for (size_t i = 0; i < N_KINDS; i++) {
        if (strlen(kinds[i].name) != n || memcmp(kinds[i].name, kind, n))
            continue;
        *out = i;
        *parameter = kinds[i].parameter;
        if (!kind[n])
            return NULL;
        if (isnan(kinds[i].parameter))
            return moe_error(MOE_E_MISUSE, "synthetic load \"%s\": %s has no parameter", kind,
                             kinds[i].name);
        if (!moe_parse_double(kind + n + 1, parameter) || !(*parameter >= kinds[i].least) ||
            *parameter > 1e6)
            return moe_error(
                MOE_E_MISUSE,
                "synthetic load \"%s\": the parameter of %s is a number from %g to 1e6", kind,
                kinds[i].name, kinds[i].least);
        return NULL;
    }
    MoeStr names = {0};
    moe_synthetic_kinds(&names);
    MoeStatus st = moe_error(MOE_E_MISUSE, "unknown synthetic load \"%s\"; there are %s", kind,
                             moe_str_c(&names));
    moe_str_free(&names);
    return st;
}

/* ---- counts ---- */

typedef struct {
    const MoeSyntheticSizes *n;
    double *chance;  /* [experts] */
    double *leaning; /* [layers][sources][experts]: factors */
} Draw;

/* Popularities to the probability that a token has the expert among its top_k: in proportion, but at most 1. */
static void chances(double *p, int experts, int top_k) {
    double left = top_k, sum = 0;
    for (int e = 0; e < experts; e++)
        sum += p[e];
    for (bool again = true; again && sum > 0;) {
        again = false;
        double scale = left / sum;
        for (int e = 0; e < experts; e++)
            if (p[e] < INFINITY &&
                p[e] * scale >= 1) { /* certain: its share is divided among the others */
                left -= 1;
                sum -= p[e];
                p[e] = INFINITY;
                again = true;
            }
    }
    for (int e = 0; e < experts; e++)
        p[e] = p[e] < INFINITY ? sum > 0 ? p[e] * left / sum : 0 : 1;
}

/* Counts around tokens * chance, of top_k * tokens in all: rounding their running sum loses no row, and gives no expert more rows
 * than there are tokens. */
static void draw(Draw *d, uint64_t stream, uint64_t at, int64_t tokens, int32_t *out) {
    int experts = d->n->experts;
    double sum = 0, want = (double)tokens * d->n->top_k, run = 0;
    for (int e = 0; e < experts; e++) {
        double q = d->chance[e], mean = (double)tokens * q;
        double x =
            mean + sqrt(mean * (1 - q)) * moe_rng_normal(d->n->seed, stream, at + (uint64_t)e);
        d->chance[e] = x > 0.01 * mean ? x : 0.01 * mean;
        sum += d->chance[e];
    }
    /* What scatter has added or taken away is given back by those that are not certain, as far as they go. */
    chances(d->chance, experts, d->n->top_k);
    int64_t before = 0;
    for (int e = 0; e < experts; e++) {
        run += d->chance[e] * (double)tokens;
        int64_t now = (int64_t)floor(run + 0.5);
        if (e == experts - 1)
            now = sum > 0 ? (int64_t)want : 0;
        out[e] = (int32_t)(now - before);
        before = now;
    }
}

static MoeStatus check_sizes(const MoeSyntheticSizes *n) {
    struct {
        const char *name;
        int64_t value, most;
    } all[] = {{"experts", n->experts, MOE_LOAD_EXPERTS},
               {"layers", n->layers, 1 << 16},
               {"steps", n->steps, 1 << 24},
               {"sources", n->sources, MOE_LOAD_SOURCES},
               {"tokens", n->tokens, 1 << 28},
               {"top_k", n->top_k, n->experts}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i].value < 1 || all[i].value > all[i].most)
            return moe_error(MOE_E_MISUSE, "synthetic load: %lld %s; expected 1 to %lld",
                             (long long)all[i].value, all[i].name, (long long)all[i].most);
    if (n->tokens * n->top_k > INT32_MAX)
        return moe_error(MOE_E_MISUSE,
                         "synthetic load: %lld tokens with %d experts each are more than %d rows",
                         (long long)n->tokens, n->top_k, INT32_MAX);
    return NULL;
}

/* Streams of random numbers: a layer's scores have a few, its sources one each. */
static uint64_t stream_of(const char *what, int layer) {
    return moe_hash_name(what) + 16 * (uint64_t)layer;
}

static void make_layer(size_t kind, Ask *q, Draw *d, MoeLoad *out, MoeArena *a) {
    const MoeSyntheticSizes *n = q->n;
    int experts = n->experts;
    int *order = MOE_NEW_N(a, int, experts);
    uint64_t *scratch = MOE_NEW_N(a, uint64_t, experts);
    double *scores[2] = {MOE_NEW_N(a, double, experts), MOE_NEW_N(a, double, experts)};
    q->stream = stream_of(kinds[kind].name, q->layer);
    q->order = order;
    q->previous = NULL;
    for (int s = 0; s < n->sources; s++)
        for (int e = 0; e < experts; e++)
            d->leaning[(int64_t)s * experts + e] =
                exp(LEANING * moe_rng_normal(n->seed, stream_of("leaning", q->layer),
                                             (uint64_t)s * (uint64_t)experts + (uint64_t)e));
    for (q->step = 0; q->step < n->steps; q->step++) {
        double *score = scores[q->step % 2];
        bool reshuffled = kinds[kind].score == switching;
        uint64_t turn = reshuffled ? (uint64_t)(q->step / q->parameter) : 0;
        if (q->step == 0 || reshuffled)
            shuffle(n->seed, q->stream + 3, turn, experts, scratch, order);
        kinds[kind].score(q, score);
        q->previous = score;
        for (int s = 0; s < n->sources; s++) {
            int64_t tokens = n->tokens * (s + 1) / n->sources - n->tokens * s / n->sources;
            for (int e = 0; e < experts; e++)
                d->chance[e] = exp(score[e]) * d->leaning[(int64_t)s * experts + e];
            chances(d->chance, experts, n->top_k);
            int64_t row = ((int64_t)q->step * n->layers + q->layer) * n->sources + s;
            draw(d, q->stream + 4,
                 (uint64_t)((int64_t)q->step * n->sources + s) * (uint64_t)experts, tokens,
                 out->counts + row * experts);
        }
    }
}

MoeStatus moe_synthetic_make(const char *kind, const MoeSyntheticSizes *n, MoeArena *a,
                             MoeLoad *out) {
    size_t which = 0;
    double parameter = 0;
    MOE_TRY(find_kind(kind, &which, &parameter));
    MOE_TRY(check_sizes(n));
    double counts = (double)n->steps * n->layers * n->sources * n->experts;
    if (counts > 2e9)
        return moe_error(MOE_E_MISUSE,
                         "synthetic load: %d steps x %d layers x %d sources x %d experts are %.2g "
                         "counts; at most 2e9 are made",
                         n->steps, n->layers, n->sources, n->experts, counts);
    *out = (MoeLoad){.steps = n->steps,
                     .layers = n->layers,
                     .sources = n->sources,
                     .experts = n->experts,
                     .layer = MOE_NEW_N(a, int32_t, n->layers),
                     .counts = MOE_NEW_N(a, int32_t, counts)};
    MoeArena *scratch = moe_arena_create();
    Draw d = {.n = n,
              .chance = MOE_NEW_N(scratch, double, n->experts),
              .leaning = MOE_NEW_N(scratch, double, (int64_t)n->sources * n->experts)};
    for (int k = 0; k < n->layers; k++) {
        out->layer[k] = k;
        make_layer(which, &(Ask){.n = n, .parameter = parameter, .layer = k}, &d, out, scratch);
    }
    moe_arena_destroy(scratch);
    return NULL;
}
