/* Training data order: which windows of the token stream make up each batch, and exactly where
 * training stands.
 *
 * The stream is cut into windows of `seq` inputs that start at multiples of seq; the label of a
 * window's last position is the next window's first token. A part of the windows, eval_fraction
 * (at least one), is held out: blocks of up to 16 windows spread evenly over the stream, so that
 * they are like the rest; no label is both trained and held out. The rest is drawn in an order
 * shuffled anew each epoch; the order depends on (seed, epoch) alone. A batch that reaches the end of an epoch
 * goes on with the next one. Called by train and by the commands. */
#ifndef MOE_RUNTIME_DATA_H
#define MOE_RUNTIME_DATA_H

#include "formats/tokens.h"
#include "runtime/plan.h"

typedef struct {
    const char *path;
    MoeDataFormat format;
    double eval_fraction; /* 0: nothing held out */
    uint64_t seed;
} MoeDataOptions;

/* Where training stands: the next window is the index-th of the epoch's order. */
typedef struct {
    int64_t epoch, index;
} MoeDataPosition;

typedef struct MoeData MoeData;

/* Opens the file with the plan's tokenizer, vocabulary and sequence length. Too short: MOE_E_INPUT
 * with the numbers. */
MoeStatus moe_data_open(const MoePlan *plan, const MoeDataOptions *o, MoeData **out);
/* The same from an open token source (owned from now on, freed on failure too); `name` is for
 * errors. */
MoeStatus moe_data_from_tokens(MoeTokens *tokens, const char *name, int64_t seq,
                               double eval_fraction, uint64_t seed, MoeData **out);
void moe_data_close(MoeData *d);

int64_t moe_data_tokens(const MoeData *d); /* in the stream */
int64_t moe_data_train_windows(const MoeData *d);
int64_t moe_data_eval_windows(const MoeData *d);
double moe_data_bytes_per_token(const MoeData *d); /* 0 if unknown */
/* 32 hex digits that tell this stream and its division from others (counts, sequence length,
 * sampled tokens): a position means the same window only while it stays. */
const char *moe_data_fingerprint(const MoeData *d);

/* The order of every epoch from now on; the position stays. */
void moe_data_set_seed(MoeData *d, uint64_t seed);
MoeDataPosition moe_data_position(const MoeData *d);
MoeStatus moe_data_seek(MoeData *d, MoeDataPosition p); /* MOE_E_CORRUPT when outside the epoch */

/* The next n training sequences: ids and labels [n, seq]; advances the position. */
MoeStatus moe_data_next(MoeData *d, int64_t n, int32_t *ids, int32_t *labels);
/* Held-out sequences first .. first+n-1 (n capped by what is left; the number comes back). */
int64_t moe_data_eval(const MoeData *d, int64_t first, int64_t n, int32_t *ids, int32_t *labels);

#endif
