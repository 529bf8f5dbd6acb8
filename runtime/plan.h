/* A loaded plan: plan.json parsed and checked, kernels.o linked by ORC. The only thing the runtime knows of the compiler. */
#ifndef MOE_RUNTIME_PLAN_H
#define MOE_RUNTIME_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/json.h"
#include "base/kernel_abi.h"
#include "base/status.h"

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

typedef struct {
    const char *name, *kernel, *kind;
    int layer; /* -1 none */
    MoePlanPhase phase;
    bool count;
    size_t n_bufs;
    int *buf_value;
    int64_t *buf_offset;
    double flops, bytes, seconds;
    MoeKernelTasksFn tasks; /* after linking */
    MoeKernelFn run;
} MoePlanStep;

typedef struct {
    int source, value;
    int64_t elements;
    int *slots;
    size_t n_slots;
} MoePlanAccumulate; /* batch_sums have no slots */

typedef struct {
    const char *name;
    int64_t slab_bytes, slab_lower_bound, scratch_bytes;
    int64_t mem_activations, mem_gradients, mem_workspace, mem_other;
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
    int *moe_layers;
    size_t n_moe_layers;
    int experts, experts_per_token;
    double flops_per_token;
    double peak_flops; /* estimate of one thread's peak in the plan's dtype, FLOP/s; 0 = unknown */
    MoePlanBuffer *buffers;
    size_t n_buffers;
    MoePlanParam *params;
    size_t n_params;
    MoePlanProgram *programs;
    size_t n_programs;
    void *arena; /* MoeArena * */
    void *jit;   /* the ORC instance that owns the code */
} MoePlan;

/* Reads DIR/plan.json, checks every index, size and offset (a damaged plan is MOE_E_CORRUPT naming the entry), the hash of kernels.o, and links it.
 * A plan whose target does not run here: MOE_E_INPUT; the command line compiles such plans again from model.moe first. */
MoeStatus moe_plan_load(const char *dir, MoePlan **out);
/* From memory; object may be NULL: nothing is linked (moec explain). */
MoeStatus moe_plan_load_memory(const char *json_text, size_t n, const char *name,
                               const void *object, size_t object_bytes, MoePlan **out);
void moe_plan_free(MoePlan *p);
const MoePlanProgram *moe_plan_program(const MoePlan *p, const char *name); /* NULL if absent */

#endif
