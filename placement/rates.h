/* How fast a rank computes, as measured (moec probe): by kind of kernel, type and size. Part of cluster.json ("rates", docs/CLUSTER.md);
 * the cost model looks seconds up in it.
 *
 * A table has points (size, rate). Kinds that multiply matrices are measured in FLOPs of a step and FLOP/s, all others in bytes of memory
 * traffic, as the cost model counts it, and bytes/s. Between points the rate goes as a power of the size; outside it is that of
 * the nearest one. */
#ifndef MOE_PLACEMENT_RATES_H
#define MOE_PLACEMENT_RATES_H

#include <stdbool.h>
#include "base/json.h"

/* X(name, whether in FLOPs) */
#define MOE_RATE_TABLES(X)                                                                         \
    X(gemm, true)                                                                                  \
    X(gemm_bf16, true)                                                                             \
    X(wgrad, true)                                                                                 \
    X(wgrad_bf16, true)                                                                            \
    X(attn, true)                                                                                  \
    X(attn_bf16, true)                                                                             \
    X(attn_grad, true)                                                                             \
    X(attn_grad_bf16, true)                                                                        \
    X(xent, true)                                                                                  \
    X(xent_bf16, true)                                                                             \
    X(pack, false)   /* weights, into the order in which a product reads them */                   \
    X(copy, false)   /* of one thread, memory to memory: rows to oneself, sums of ranks' terms */  \
    X(update, false) /* AdamW */                                                                   \
    X(reduce, false) /* sums, norms */                                                             \
    X(row, false)    /* everything else on activations */
typedef enum {
#define X(name, flops) MOE_RATE_##name,
    MOE_RATE_TABLES(X)
#undef X
        MOE_N_RATES
} MoeRateName;
const char *moe_rate_name(MoeRateName n);
bool moe_rate_in_flops(MoeRateName n);

enum { MOE_RATE_POINTS = 16 };
typedef struct {
    int n;
    struct {
        double size, rate;
    } at[MOE_RATE_POINTS]; /* sizes ascending */
} MoeRateTable;

typedef struct {
    int threads; /* of the rank that was measured; 0: there are no rates */
    MoeRateTable tables[MOE_N_RATES];
} MoeRates;

/* Seconds of a step of `size`; an empty table takes those of its f32 twin, or of row; 0 if that is empty, too. pack and copy have
 * no substitute: 0. */
double moe_rates_seconds(const MoeRates *r, MoeRateName name, double size);

/* MOE_E_INPUT naming `where` and the key. */
MoeStatus moe_rates_read(const json_t *o, const char *where, MoeRates *out);
json_t *moe_rates_json(const MoeRates *r);

#endif
