/* Groups: the steps of a program. fuse numbers the ops of a graph; this turns the numbers into MoeGroup, the view of a
 * kernel that targets see (ir/target.h). Called by memplan, kernels, recompute (to predict memory) and the plan writer.
 * A group of COMM ops is one exchange between ranks, a group of `wait` its end: steps without a kernel, which targets never see.
 *
 * Where expert rows travel in chunks of slots (docs/RANKS.md, "Overlap"), a group is several steps, a chunk each
 * (MoeGroup.part): an exchange that sends rows out runs chunk after chunk, and so does the wait for rows that come home; what
 * lies between, the wait for rows sent out, the work on expert rows and the exchange that sends them home, is a loop: all of
 * a run of such groups for one chunk, then for the next. group_parts.c has the rules.
 *
 * A value is an output of its group when anything outside reads it: another group, an output, an assign, accumulate or
 * batch_sum, or a type that names it as its segs. A result that nobody reads is an output too when its op has several
 * results: the kernel writes it, so it needs memory. */
#ifndef MOE_PASSES_GROUP_H
#define MOE_PASSES_GROUP_H

#include "ir/target.h"

typedef struct {
    MoeGroup *groups; /* in program order: the steps */
    size_t n_groups;
    int *
        step_of; /* by value id: the (first) step that defines it; -1: declarations, accumulate and batch_sum */
    int n_values;
} MoeGroups;

/* A step as a group and its part. */
typedef struct {
    int group, part, parts; /* parts 0: all of it */
} MoeGroupStep;

/* Whether the op runs as (part of) a kernel: no declaration, no accumulate or batch_sum, nothing between ranks or out of the slab. */
bool moe_op_has_kernel(const MoeOp *op);
/* A collective, or a wait. */
bool moe_op_is_comm(const MoeOp *op);
/* An offload or a load. */
bool moe_op_is_store(const MoeOp *op);
/* Whether the op's result is the memory of operand 0, written over where it changes: waits, and what fills or folds slots of experts
 * between ranks. */
bool moe_op_is_in_place(const MoeOp *op);
/* Whether the op is (part of) a step: a kernel, an exchange, an offload or load, or a wait. */
bool moe_op_has_step(const MoeOp *op);
bool moe_group_has_kernel(const MoeGroup *g);
bool moe_group_is_comm(const MoeGroup *g);
/* All groups of g. Asserts that every op with a step has a group, that the ops of a group are consecutive and of one
 * phase. The arrays live in `a`. */
MoeGroups moe_groups_of(const MoeGraph *g, MoeArena *a);
/* The groups themselves, each once, whatever chunks there are; step_of is by group then. */
MoeGroups moe_groups_whole(const MoeGraph *g, MoeArena *a);
/* The steps of whole groups in the order given; chunks: of every plan, 0: as its ops say. Returns how many; *out in `a`. */
size_t moe_groups_steps(const MoeGroups *whole, const int *order, size_t n, int chunks, MoeArena *a,
                        MoeGroupStep **out);
/* The expert_plan whose chunks the group goes by, and what it is to them. */
typedef enum {
    MOE_CHUNK_NONE,   /* all at once */
    MOE_CHUNK_SEND,   /* an exchange that sends rows to their experts */
    MOE_CHUNK_ARRIVE, /* the wait for it */
    MOE_CHUNK_WORK,   /* kernels that make rows of experts, each from such rows or from rows that arrived */
    MOE_CHUNK_HOME,   /* an exchange that sends expert rows home */
    MOE_CHUNK_RETURN  /* the wait for it */
} MoeChunkRole;
MoeChunkRole moe_group_chunk_role(const MoeGroup *g, const MoeOp **out_plan);
/* The slots of chunk `part` of the plan: as many in each, but for the last. */
void moe_chunk_slots(const MoeOp *plan, int part, int parts, int64_t *out_lo, int64_t *out_hi);
/* Whether the role is inside the loop. */
bool moe_chunk_role_loops(MoeChunkRole r);
/* The group that makes v, also through accumulate and batch_sum; -1: a declaration. */
int moe_groups_source(const MoeGroups *gs, const MoeValue *v);
/* By whole group: an exchange that a later `wait` ends. */
bool *moe_groups_waited(const MoeGroups *whole, MoeArena *a);
/* Which steps the counting pass of several micro-batches repeats: those that the operands of batch_sum depend on. By step;
 * all false with one micro-batch. Asserts that they are of the forward phase. */
bool *moe_groups_counted(const MoeGraph *g, const MoeGroups *gs, int micro_batches, MoeArena *a);
/* Which parameter's gradient each value is: what the step that makes the new parameter reads beside declarations, in the
 * parameter's shape, and what that sums up over micro-batches and ranks. By value id, PARAM ops; NULL: none. */
const MoeOp **moe_groups_gradients(const MoeGraph *g, const MoeGroups *gs, MoeArena *a);
bool moe_group_has_input(const MoeGroup *g, const MoeValue *v);
bool moe_group_has_output(const MoeGroup *g, const MoeValue *v);

#endif
