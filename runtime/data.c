/* Windows of the token stream, the held-out split, and the seeded order of each epoch. See data.h.
 */
#include "runtime/data.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "base/rng.h"

#define MAX_WINDOWS ((int64_t)UINT32_MAX)

struct MoeData {
    MoeTokens *tokens;
    int64_t n_tokens, seq, n_train, n_eval;
    uint64_t seed;
    MoeDataPosition position;
    uint32_t *order;     /* [n_train], of order_epoch */
    int64_t order_epoch; /* -1: none yet */
    int32_t *window;     /* [seq + 1] */
    char fingerprint[40];
};

/* Counts, the division, and tokens sampled over the whole stream: cheap at any size, and a file that was edited
 * or swapped shows. */
static void fingerprint(MoeData *d) {
    enum { SAMPLES = 4096 };
    int32_t *s = malloc(sizeof *s * (SAMPLES + 64));
    if (!s)
        return; /* stays "": unknown */
    int64_t n = 0;
    const int64_t head[3] = {d->n_tokens, d->seq, d->n_train};
    memcpy(s, head, sizeof head);
    n += 6;
    int64_t stride = d->n_tokens / SAMPLES + 1;
    for (int64_t i = 0; i < d->n_tokens && n < SAMPLES; i += stride)
        moe_tokens_read(d->tokens, i, 1, &s[n++]);
    int64_t tail = d->n_tokens < 16 ? d->n_tokens : 16;
    moe_tokens_read(d->tokens, d->n_tokens - tail, tail, &s[n]);
    n += tail;
    moe_hash_hex(s, (size_t)n * sizeof *s, d->fingerprint);
    free(s);
}

/* ---- the held-out split: blocks of windows, spread evenly over the stream ---- */

#define BLOCK_WINDOWS                                                                              \
    16 /* neighbours held out together, so that few have trained text beside them */

static int64_t eval_blocks(const MoeData *d) {
    return (d->n_eval + BLOCK_WINDOWS - 1) / BLOCK_WINDOWS;
}

/* First held-out window of block b, counted among the held-out ones. */
static int64_t block_first(const MoeData *d, int64_t b) {
    return d->n_eval * b / eval_blocks(d);
}

/* Where block b stands in the stream: in the middle of the b-th of equal parts. */
static int64_t block_window(const MoeData *d, int64_t b) {
    int64_t windows = d->n_train + d->n_eval, blocks = eval_blocks(d);
    int64_t lo = windows * b / blocks, hi = windows * (b + 1) / blocks;
    return lo + (hi - lo - (block_first(d, b + 1) - block_first(d, b))) / 2;
}

/* The i-th held-out window's place in the stream. */
static int64_t eval_window(const MoeData *d, int64_t i) {
    int64_t b = ((i + 1) * eval_blocks(d) - 1) / d->n_eval;
    return block_window(d, b) + i - block_first(d, b);
}

/* The training windows in the stream's order. */
static void list_training_windows(const MoeData *d, uint32_t *out) {
    int64_t windows = d->n_train + d->n_eval, held = 0, n = 0;
    for (int64_t w = 0; w < windows; w++) {
        if (held < d->n_eval && w == eval_window(d, held))
            held++;
        else
            out[n++] = (uint32_t)w;
    }
}

/* Fisher-Yates with numbers that depend on (seed, epoch, i) alone. */
static void shuffle(MoeData *d, int64_t epoch) {
    uint64_t stream = moe_hash_name("data order") + (uint64_t)epoch;
    list_training_windows(d, d->order);
    for (int64_t i = d->n_train - 1; i > 0; i--) {
        int64_t j = (int64_t)moe_rng_below(d->seed, stream, (uint64_t)i, (uint64_t)i + 1);
        uint32_t t = d->order[i];
        d->order[i] = d->order[j];
        d->order[j] = t;
    }
    d->order_epoch = epoch;
}

MoeStatus moe_data_from_tokens(MoeTokens *tokens, const char *name, int64_t seq,
                               double eval_fraction, uint64_t seed, MoeData **out) {
    *out = NULL;
    MoeData *d = calloc(1, sizeof *d);
    if (!d) {
        moe_tokens_close(tokens);
        return moe_error(MOE_E_NOMEM, "no memory for the data order");
    }
    d->tokens = tokens;
    d->seq = seq;
    d->seed = seed;
    d->order_epoch = -1;
    d->n_tokens = moe_tokens_count(tokens);
    int64_t windows = d->n_tokens > 0 ? (d->n_tokens - 1) / seq : 0,
            least = eval_fraction > 0 ? 2 : 1;
    MoeStatus st = NULL;
    if (windows < least) {
        st = moe_error(MOE_E_INPUT,
                       "%s: %lld tokens are too few: sequences of %lld tokens need at least %lld "
                       "(%s); use more data or "
                       "compile with a shorter --seq",
                       name, (long long)d->n_tokens, (long long)seq, (long long)(least * seq + 1),
                       least == 2 ? "one sequence to train on, one held out, and one token more"
                                  : "one sequence and one token more");
    } else if (windows > MAX_WINDOWS) {
        st = moe_error(MOE_E_INPUT, "%s: %lld sequences; at most %lld are supported", name,
                       (long long)windows, (long long)MAX_WINDOWS);
    }
    if (st) {
        moe_data_close(d);
        return st;
    }
    if (eval_fraction > 0) {
        d->n_eval = llround((double)windows * eval_fraction);
        d->n_eval = d->n_eval < 1 ? 1 : d->n_eval > windows - 1 ? windows - 1 : d->n_eval;
    }
    d->n_train = windows - d->n_eval;
    d->order = malloc(sizeof *d->order * (size_t)d->n_train);
    d->window = malloc(sizeof *d->window * (size_t)(seq + 1));
    if (!d->order || !d->window) {
        moe_data_close(d);
        return moe_error(MOE_E_NOMEM, "no memory for the order of %lld sequences",
                         (long long)windows);
    }
    fingerprint(d);
    *out = d;
    return NULL;
}

MoeStatus moe_data_open(const MoePlan *plan, const MoeDataOptions *o, MoeData **out) {
    *out = NULL;
    MoeTokens *tokens = NULL;
    MOE_TRY(moe_tokens_open(o->path, o->format, plan->tokenizer, plan->vocab_size, &tokens));
    return moe_data_from_tokens(tokens, o->path, plan->seq, o->eval_fraction, o->seed, out);
}

void moe_data_close(MoeData *d) {
    if (!d)
        return;
    moe_tokens_close(d->tokens);
    free(d->order);
    free(d->window);
    free(d);
}

int64_t moe_data_tokens(const MoeData *d) {
    return d->n_tokens;
}
int64_t moe_data_train_windows(const MoeData *d) {
    return d->n_train;
}
int64_t moe_data_eval_windows(const MoeData *d) {
    return d->n_eval;
}
double moe_data_bytes_per_token(const MoeData *d) {
    return moe_tokens_bytes_per_token(d->tokens);
}
const char *moe_data_fingerprint(const MoeData *d) {
    return d->fingerprint;
}
MoeDataPosition moe_data_position(const MoeData *d) {
    return d->position;
}

void moe_data_set_seed(MoeData *d, uint64_t seed) {
    d->seed = seed;
    d->order_epoch = -1;
}

MoeStatus moe_data_seek(MoeData *d, MoeDataPosition p) {
    if (p.epoch < 0 || p.index < 0 || p.index >= d->n_train)
        return moe_error(
            MOE_E_CORRUPT,
            "position %lld of epoch %lld is outside the data's %lld training sequences",
            (long long)p.index, (long long)p.epoch, (long long)d->n_train);
    d->position = p;
    return NULL;
}

/* Window w of the whole stream: ids and labels [seq]. */
static void read_window(const MoeData *d, int64_t w, int32_t *ids, int32_t *labels) {
    moe_tokens_read(d->tokens, w * d->seq, d->seq + 1, d->window);
    memcpy(ids, d->window, sizeof *ids * (size_t)d->seq);
    memcpy(labels, d->window + 1, sizeof *labels * (size_t)d->seq);
}

MoeStatus moe_data_next(MoeData *d, int64_t n, int32_t *ids, int32_t *labels) {
    for (int64_t i = 0; i < n; i++) {
        if (d->order_epoch != d->position.epoch)
            shuffle(d, d->position.epoch);
        read_window(d, d->order[d->position.index], ids + i * d->seq, labels + i * d->seq);
        if (++d->position.index == d->n_train)
            d->position = (MoeDataPosition){d->position.epoch + 1, 0};
    }
    return NULL;
}

int64_t moe_data_eval(const MoeData *d, int64_t first, int64_t n, int32_t *ids, int32_t *labels) {
    if (first < 0 || first >= d->n_eval)
        return 0;
    if (n > d->n_eval - first)
        n = d->n_eval - first;
    for (int64_t i = 0; i < n; i++)
        read_window(d, eval_window(d, first + i), ids + i * d->seq, labels + i * d->seq);
    return n;
}
