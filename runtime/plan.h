/* A loaded plan: plan.json parsed and checked, kernels.o linked by ORC, or kernels.cubin read. The only thing the runtime knows
 * of the compiler. */
#ifndef MOE_RUNTIME_PLAN_H
#define MOE_RUNTIME_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/cubins.h"
#include "base/json.h"
#include "base/kernel_abi.h"
#include "base/mesh.h"
#include "base/status.h"
#include "placement/cost.h"

typedef enum { MOE_PHASE_FWD, MOE_PHASE_BWD, MOE_PHASE_RED, MOE_PHASE_UPD } MoePlanPhase;
typedef enum { MOE_PLAN_F32, MOE_PLAN_BF16, MOE_PLAN_I32 } MoePlanDtype;

typedef struct {
    const char *name;
    MoePlanDtype dtype;
    int rank;
    int64_t dims[8];
    int64_t elements, bytes;
} MoePlanBuffer;

typedef struct {
    const char *name;
    int buffer;
} MoePlanState;

typedef struct {
    const char *name; /* Hugging Face name; '*' = expert index when stacked */
    bool stacked, decay;
    bool expert; /* dim 0 is the expert: divided over ep by slots, each slot's tensor over shard */
    int division; /* of ranks (base/mesh.h), expert alone */
    int tp_dim;  /* the dim divided over tp; -1: none */
    int rank;    /* of the whole tensor; the buffer holds this rank's part (docs/RANKS.md) */
    int64_t dims[8], elements;
    const char *init;
    double std;
    int buffer;
    MoePlanState *states;
    size_t n_states;
} MoePlanParam;

typedef enum { MOE_VALUE_BUFFER, MOE_VALUE_SLAB, MOE_VALUE_INPUT } MoePlanValueKind;
typedef struct {
    MoePlanValueKind kind;
    int buffer;     /* BUFFER */
    int64_t offset; /* SLAB */
    int64_t bytes;
    const char *input; /* INPUT */
    /* Elastic: `bytes` of address space, `expect` of them used when routing is balanced. */
    bool elastic;
    int64_t expect, row_bytes;
    int rows; /* the segs value whose last entry counts the live rows */
} MoePlanValue;

typedef struct {
    const char *name;
    int value;
    MoePlanDtype dtype;
    int rank;
    int64_t dims[8];
    bool ragged;
    int64_t elements;
} MoePlanPort;

/* Collectives (docs/RANKS.md, docs/PLAN.md). ENTRY(ID, name, operands at least, at most) */
#define MOE_PLAN_COMM_OPS(X)                                                                       \
    X(ALL_GATHER, all_gather, 1, 1)                                                                \
    X(ALL_GATHER_ROWS, all_gather_rows, 1, 2) /* x (, segs of the result) */                       \
    X(REDUCE_SCATTER, reduce_scatter, 1, 1)                                                        \
    X(ALL_REDUCE, all_reduce, 1, 1)                                                                \
    X(A2A_DISPATCH, a2a_dispatch, 4, 4) /* x, send, idx, recv */                                   \
    X(A2A_COMBINE, a2a_combine, 3, 4)   /* y, seg (, place), home segs */                         \
    X(COPY_EXPERTS, copy_experts, 3, 3) /* w, place, copies; the result is w's memory */           \
    X(FOLD_COPIES, fold_copies, 7, 7)   /* first, rest, more, counts, runs, copies, place; the result is first's memory */
typedef enum {
#define X(id, name, least, most) MOE_PLAN_##id,
    MOE_PLAN_COMM_OPS(X)
#undef X
        MOE_N_PLAN_COMM_OPS
} MoePlanCommOp;
const char *moe_plan_comm_op_name(MoePlanCommOp op);

typedef struct {
    MoePlanCommOp op;
    int in[8], n_in, out; /* values */
    MoePlanDtype dtype;   /* of elements: all_gather, all_reduce; f32 else */
    MoeMeshGroup group;   /* reduce_scatter: that the sum is over */
    MoeMeshGroup scatter; /* reduce_scatter alone */
    int64_t unit, outer;  /* `outer` rows of `elements`, each sliced at multiples of `unit` */
    int64_t elements;
    int64_t row_bytes, rows; /* rows: of one rank, all_gather_rows without segs */
    int64_t chunks, capacity, slots, experts; /* a2a_combine without place: experts = all slots */
    int64_t leaf; /* fold_copies: rows of a leaf of the weight gradients' trees */
    int64_t lo, hi; /* what of it goes in this step: chunks of a2a_dispatch, slots of a2a_combine */
    double bytes; /* that a rank sends with balanced routing */
} MoePlanComm;

/* Rows on their way out of the slab or back (load). */
typedef struct {
    bool load;
    int value, slot;
    int64_t bytes, row_bytes; /* bytes: at most */
    int rows;                 /* the segs value whose last entry counts the live rows; -1: all bytes move */
} MoePlanMove;

/* How a kernel's work goes by rows of experts: of each row, and how many the step's numbers count. */
typedef struct {
    int rows; /* the segs value whose last entry counts the live ones; -1: the work is always the same */
    double expect, flops, bytes;
} MoePlanLive;

/* A box of a matrix that a kernel on a GPU copies by tensor map (docs/GPU.md, ir/target.h): elements, innermost first;
 * strides: bytes of dims 1 .. rank-1. */
typedef struct {
    int buf; /* of the step's */
    MoePlanDtype dtype;
    int rank;
    int64_t dims[5], strides[4];
    int box[5];
    int swizzle; /* bytes */
} MoePlanTensorMap;

/* The product that a step is, if it is nothing else and over all rows: out [rows][n] = round(a [rows][k] b (+ c)), all row-major without
 * gaps, sums in f32. Indices into the step's bufs; c, live: -1 none; c may be out. */
typedef struct {
    int a, b, c, out, live; /* live: the segs whose last entry counts the live rows */
    MoePlanDtype dtype, out_dtype; /* of a and b; of out: f32, or without c bf16 */
    int64_t rows, n, k;
    bool transposed; /* b is [n][k], else [k][n] */
} MoePlanDense;

/* The attention that a step, with those behind it, is: over sequences of seq rows, in bf16, causal (docs/PLAN.md). X(member): values,
 * those of the gradient alone last. */
#define MOE_PLAN_ATTN_VALUES(X) X(q) X(k) X(v) X(o) X(lse) X(segs) X(d_o) X(dq) X(dk) X(dv)
typedef struct {
    bool grad;
    int steps; /* this one and so many - 1 behind it */
    int64_t heads, kv_heads, head_dim, seq, window, rows; /* rows: at most; segs: its last entry counts the live ones */
    double scale;
    struct {
#define X(member) int member;
        MOE_PLAN_ATTN_VALUES(X)
#undef X
    } values; /* -1: not of this one */
} MoePlanAttn;

/* How a GPU runs a kernel. */
typedef struct {
    int64_t grid; /* blocks */
    int block;    /* threads of a block */
    int64_t shared_bytes;
    MoePlanTensorMap *maps;
    size_t n_maps;
} MoePlanShape;

/* A step is a kernel, an exchange (n_comm > 0), offloads or loads (n_moves > 0), or the wait for one of these that was started
 * (wait >= 0). */
typedef struct {
    const char *name, *kernel, *kind; /* kernel: NULL unless one */
    MoePlanComm *comm;
    size_t n_comm;
    MoePlanMove *moves;
    size_t n_moves;
    bool start; /* the exchange ends at a later wait; moves always do */
    int wait;   /* index of the step that started it; -1 */
    int layer;  /* -1 none */
    MoePlanPhase phase;
    bool count;
    int slot_lo, slot_hi; /* a kernel that works on the rows of these slots alone; both 0: on all */
    int n_slots;          /* of so many */
    int segs;             /* their table, of n_slots x virtual_shards; the kernel gets a window of it */
    size_t n_bufs;
    int *buf_value;
    int64_t *buf_offset;
    double flops, bytes, seconds;
    MoePlanLive live; /* a kernel's */
    MoeKernelTasksFn tasks; /* after linking, on a CPU */
    MoeKernelFn run;
    MoePlanShape shape; /* on a GPU */
    MoePlanDense *dense; /* on a GPU; NULL: the step is no such product */
    MoePlanAttn *attn;   /* on a GPU; NULL: no attention begins here */
} MoePlanStep;

typedef struct {
    int source, value;
    int64_t elements;
    int *slots;
    size_t n_slots;
} MoePlanAccumulate; /* batch_sums have no slots */

/* Seconds of a step (a run of the program), in the order of its steps: docs/PLAN.md. All 0: the plan does not say. */
typedef struct {
    double seconds, compute;
    double a2a, other, a2a_exposed, other_exposed; /* exchanges by themselves; what waits for them add */
    double a2a_bound, bound;                       /* what no order could hide */
} MoePlanPrediction;

typedef struct {
    const char *name;
    MoePlanPrediction predicted;
    int64_t slab_bytes, slab_lower_bound, scratch_bytes;
    int64_t elastic_bytes,
        elastic_expect; /* the slab's end, for elastic values; of it counted on */
    int64_t mem_activations, mem_gradients, mem_workspace, mem_other;
    int64_t mem_communication; /* staging memory of exchanges, beside the slab */
    int64_t mem_offloaded;     /* of what leaves the slab in between, as expected */
    int64_t *slot_bytes;       /* [n_slots]: places outside the slab */
    size_t n_slots;
    MoePlanValue *values;
    size_t n_values;
    MoePlanPort *inputs, *outputs;
    size_t n_inputs, n_outputs;
    MoePlanStep *steps;
    size_t n_steps;
    MoePlanAccumulate *accumulates, *batch_sums;
    size_t n_accumulates, n_batch_sums;
} MoePlanProgram;

typedef struct MoePlan {
    char *dir; /* NULL when from memory */
    json_t *json, *model;
    const char *target, *tokenizer, *dtype;
    int64_t vocab_size, batch, seq;
    int virtual_shards, micro_batches;
    int leaf_rows;    /* of the weight gradients' trees (docs/NUMBERS.md, 4): where copies of experts may divide rows */
    bool fast_reduce; /* weight gradients without leaves and virtual shards: their bits depend on the layout */
    int *moe_layers;
    size_t n_moe_layers;
    int experts, experts_per_token;
    int ranks; /* of the mesh */
    MoeMesh mesh;
    int slots; /* places for experts on an EP rank, in division 0; 0 = dense model */
    MoePlaceCost *place_costs; /* [n_moe_layers]: what the layers' maps cost; NULL: the plan does not say */
    double flops_per_token;
    double peak_flops; /* estimate of one thread's peak in the plan's dtype, FLOP/s; 0 = unknown */
    MoePlanBuffer *buffers;
    size_t n_buffers;
    MoePlanParam *params;
    size_t n_params;
    MoePlanProgram *programs;
    size_t n_programs;
    void *arena; /* MoeArena * */
    void *jit;   /* the ORC instance that owns the code, on a CPU */
    MoeCubins cubins; /* on a GPU: the code, in the bytes of kernels.cubin; none: not linked */
    void *code;
} MoePlan;

/* Reads DIR/plan.json, checks every index, size and offset (a damaged plan is MOE_E_CORRUPT naming the entry), the hash of kernels.o, and links it;
 * of a plan for a GPU kernels.cubin, for which no GPU need be there before an execution is made.
 * A plan whose target does not run here: MOE_E_INPUT; the command line compiles such plans again from model.moe first. */
MoeStatus moe_plan_load(const char *dir, MoePlan **out);
/* From memory; object may be NULL: nothing is linked (moec explain). */
MoeStatus moe_plan_load_memory(const char *json_text, size_t n, const char *name,
                               const void *object, size_t object_bytes, MoePlan **out);
void moe_plan_free(MoePlan *p);
bool moe_plan_is_cuda(const MoePlan *p); /* target "cuda:..." */
/* What a rank's memory is made of, to the byte: a parameter or state with what it takes to the next one; scratch of one thread of
 * the host, 0 where kernels run on a GPU. The rest: moe_plan_fixed_bytes (touched.h). */
int64_t moe_plan_buffer_bytes(const MoePlanBuffer *b);
int64_t moe_plan_scratch_bytes(const MoePlan *p);
const MoePlanProgram *moe_plan_program(const MoePlan *p, const char *name); /* NULL if absent */

#endif
