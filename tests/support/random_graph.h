/* Random data for the inputs, params and states of any graph: deterministic by seed and value name,
 * and sensible by how a value is used. Segment tables are valid and fit the capacities; ids are in
 * range (a few labels -1), expert ids distinct in a row, experts in slots of their own; src and inv of
 * a move op form a plan with their tables; operands of log, sqrt, rsqrt are positive, divisors away from zero; floats
 * otherwise standard normal, exact in their dtype. Used by the op cases, the gradient and property
 * tests, and whoever compares a compiled graph with the interpreter. */
#ifndef MOE_TESTS_RANDOM_GRAPH_H
#define MOE_TESTS_RANDOM_GRAPH_H

#include "ir/eval/eval.h"
#include "ir/graph.h"

/* How sequences (or rows) fall on the virtual shards. SHARDS(ID, name) */
#define MOE_SHARD_LAYOUTS(X)                                                                       \
    X(EVEN, even)     /* floor(vB/V) .. floor((v+1)B/V) */                                         \
    X(RANDOM, random) /* random cuts: some shards empty */                                         \
    X(FIRST, first)   /* all in the first shard */                                                 \
    X(LAST, last)     /* all in the last */
typedef enum {
#define X(id, name) MOE_SHARDS_##id,
    MOE_SHARD_LAYOUTS(X)
#undef X
} MoeShardLayout;

/* How tokens choose experts. ROUTING(ID, name) */
#define MOE_ROUTINGS(X)                                                                            \
    X(RANDOM, random)                                                                              \
    X(ONE, one) /* every token has expert E-1 among its choices; the rest are 0, 1, .. */          \
    X(GAP, gap) /* no token chooses expert 1 (where E - 1 >= k) */
typedef enum {
#define X(id, name) MOE_ROUTING_##id,
    MOE_ROUTINGS(X)
#undef X
} MoeRouting;

typedef struct {
    uint64_t seed;
    int64_t rows; /* live rows of segment tables; < 0: as many as their capacity */
    MoeShardLayout shards;
    MoeRouting routing;
    double ignored; /* share of labels that are -1 */
    /* Plans between ranks: global slots that a place may name (0: as many as the plan's ops need at least), and this rank's
     * number in its group. */
    int64_t slots, ep_rank;
    int64_t
        parts; /* of a vocabulary, where its ops have an operand `part` (which is ep_rank); 0: one */
    bool
        elsewhere; /* plans of move ops over received rows: about half of the choices are -1 in inv */
} MoeRandomOptions;

typedef struct {
    const MoeValue *value; /* result of an input, param or state op */
    MoeTensor t;
} MoeInputData;

typedef struct {
    MoeInputData *items; /* in order of definition */
    size_t n;
} MoeInputs;

/* Error if the graph asks for what cannot be made (say, src an input but inv computed). Memory from
 * `a`. */
MoeStatus moe_random_inputs(const MoeGraph *g, const MoeRandomOptions *o, MoeArena *a,
                            MoeInputs *out);
/* The data of a value, or of the input with a name; NULL if there is none. */
MoeTensor *moe_inputs_of(const MoeInputs *in, const MoeValue *v);
MoeTensor *moe_inputs_find(const MoeInputs *in, const char *name);
/* Hands all of them to an interpreter. */
MoeStatus moe_inputs_give(const MoeInputs *in, MoeEval *ev);

/* As a kernel sees it: n elements of the dtype, row-major; bf16 as uint16. */
size_t moe_tensor_bytes(const MoeTensor *t);
void moe_tensor_pack(const MoeTensor *t, void *dst);
void moe_tensor_unpack(const void *src, MoeTensor *t); /* into t's storage, by t's dtype and n */

/* Distinct expert ids (rows x k) of E by a routing; exported for tests of routing. */
void moe_random_expert_ids(int32_t *ids, int64_t rows, int64_t k, int64_t experts,
                           MoeRouting routing, uint64_t seed, uint64_t stream);

#endif
