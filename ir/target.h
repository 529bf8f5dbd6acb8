/* What the passes ask of a target. codegen/ fills it in; cli/ hands it over. One row of codegen's table is one MoeTarget.
 *
 * The passes hand over groups: runs of consecutive ops that fuse marked with one group number (or a single op). A group
 * reads external values (inputs), and produces values that later ops read (outputs); values used only inside are never
 * materialised. */
#ifndef MOE_IR_TARGET_H
#define MOE_IR_TARGET_H

#include "ir/graph.h"

typedef struct {
    const MoeGraph *graph;
    MoeOp *const *ops; /* consecutive, in order */
    size_t n_ops;
    MoeValue *const
        *inputs; /* values read that no op of the group defines, in order of first use, each once;
                                 the segs values that the types of operands and results name are among them (last) */
    size_t n_inputs;
    MoeValue *const *
        outputs; /* values defined here and used outside, in order of definition; also unused results of an
                                 op with several results, which its kernel writes all the same */
    size_t n_outputs;
    int part, parts; /* a step that works on the rows of one chunk of slots: which, of how many; parts 0: on all rows.
                        The kernels are the same; the table of rows that they get has the other slots empty */
} MoeGroup;

/* One launch: a kernel and the buffers it gets. */
typedef struct {
    const MoeValue *value; /* an input or output of the group, or NULL: the group's workspace */
    int64_t offset;        /* bytes from the start of the workspace (value NULL only) */
} MoeBufRef;

/* A box of a matrix in device memory that a kernel copies by its tensor map (sm_90 and later). The runtime makes the map once the
 * buffers have addresses. dims and box: elements, innermost first; strides: bytes of dims 1 .. rank-1, multiples of 16. */
typedef struct {
    int buf;        /* index into the launch's bufs */
    MoeDtype dtype; /* bf16 or f32 */
    int rank;       /* 1 .. 5 */
    int64_t dims[5], strides[4];
    int box[5];
    int swizzle; /* bytes: 0, 32, 64 or 128 */
} MoeTensorMap;

/* How a device runs a launch; all 0 on the CPU, whose kernels say themselves how many tasks they have (base/kernel_abi.h). */
typedef struct {
    int64_t grid; /* blocks */
    int block;    /* threads of a block */
    int64_t shared_bytes;
    MoeTensorMap *maps;
    size_t n_maps;
} MoeLaunchShape;

/* What a launch computes that is nothing but one product over rows whose number is a constant of the plan:
 * out [rows][n] = round(a [rows][k] b (+ c)), sums in f32, in the dtype of out. The runtime may leave it to a library (docs/GPU.md). */
typedef struct {
    int a, b, c, out, live; /* indices into the launch's bufs. c: an f32 matrix like out, -1 none; it may be out. live: the segs whose
                               last entry counts the live rows, -1: all are */
    MoeDtype dtype, out_dtype; /* of a and b; of out: f32 or, without c, bf16 */
    int64_t rows, n, k;
    bool transposed; /* b is [n][k], else [k][n] */
} MoeDense;

/* What a launch, with those behind it, computes that is causal attention over sequences of equal length, or its gradient: the ops of
 * that name (docs/OPS.md), in bf16. The runtime may leave it to a library (docs/GPU.md). X(member): buffers, in this order; those of
 * the gradient alone follow `segs`. */
#define MOE_ATTN_BUFS(X) X(q) X(k) X(v) X(o) X(lse) X(segs) X(d_o) X(dq) X(dk) X(dv)
enum { MOE_ATTN_FORWARD_BUFS = 6, MOE_ATTN_GRAD_BUFS = 10 };
typedef struct {
    bool grad;
    int launches; /* this one and so many - 1 behind it */
    int64_t heads, kv_heads, head_dim, seq, window, rows; /* rows: at most, a multiple of seq; segs: the live ones */
    double scale;
    MoeBufRef bufs[MOE_ATTN_GRAD_BUFS];
} MoeAttention;

typedef struct {
    const char *kernel; /* symbol name */
    MoeBufRef *bufs;
    size_t n_bufs;
    MoeLaunchShape shape;
    const MoeDense *dense;         /* NULL: it is none */
    const MoeAttention *attention; /* NULL: it is none, or not the first of one */
} MoeLaunch;

typedef struct {
    MoeLaunch *launches;
    size_t n_launches, cap_launches;
    int64_t scratch_bytes; /* per thread */
    MoeArena *arena;       /* for the arrays above; set by the caller */
} MoeLowered;

typedef struct MoeTarget MoeTarget;

/* What fuse may do in this target. */
typedef struct {
    bool row;           /* merge elementwise and row ops over one row space into one kernel */
    bool gather_matmul; /* dispatch folded into the rows of a grouped matmul or weight_grad */
    bool
        matmul_epilogue; /* elementwise tail folded into a matmul (or a pair that shares its rows) */
    bool matmul_row_sums; /* row sums of such a tail, too, where nothing in the group reads them */
} MoeFuseRules;

struct MoeTarget {
    bool rounds_weights; /* products read bf16 weights as they lie in memory: each rounding is a pass over the weight, worth keeping
                            for the backward phase where memory allows. Else they are packed for each product anyway */
    char name[64]; /* "cpu:znver4": enough to build the same target again */
    char code_note[256]; /* a line for people on the code that finish made; empty: nothing to say */
    const char *object_file, *text_file; /* their names in the plan: "kernels.o", "kernels.ll" */
    MoeFuseRules fuse;
    int leaf_rows; /* rows of a leaf of weight gradients' trees where neither graph nor options say it; 0: MOE_LEAF_ROWS */
    double peak_flops_f32, peak_flops_bf16; /* per thread, FLOP/s, estimates for the cost model */
    double memory_bandwidth;                /* bytes/s, whole machine, estimate */
    /* Whether the target runs this op whole, so that decompose keeps it. */
    bool (*implements)(const MoeTarget *t, MoeOpcode op);
    /* Whether fuse may add `op` to the group in `ops` (checked op by op). */
    bool (*can_join)(const MoeTarget *t, MoeOp *const *ops, size_t n_ops, const MoeOp *op);
    /* Bytes of workspace that the group's launches share; known before memory planning. */
    int64_t (*workspace_bytes)(MoeTarget *t, const MoeGroup *group);
    /* Bytes of that workspace that are touched when routing between ranks is balanced (moe_segs_expected_rows), the
     * touched part first; NULL: all. */
    int64_t (*workspace_expected)(MoeTarget *t, const MoeGroup *group);
    /* Whether output may share the buffer of the dying input (same bytes): elementwise in place. */
    bool (*can_alias)(const MoeTarget *t, const MoeGroup *group, const MoeValue *input,
                      const MoeValue *output);
    /* Emits (or reuses) the group's kernels and appends its launches. */
    MoeStatus (*lower)(MoeTarget *t, const MoeGroup *group, MoeLowered *out);
    /* After the last group: the object code (malloc'd) and readable text (LLVM IR, CUDA C++; malloc'd, may be NULL). */
    MoeStatus (*finish)(MoeTarget *t, bool want_text, void **out_object, size_t *out_n,
                        char **out_text);
    void (*destroy)(MoeTarget *t);
};

#endif
