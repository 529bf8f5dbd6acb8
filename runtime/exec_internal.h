/* What exec.c (memory), exec_run.c (running), exec_elastic.c and exec_comm*.c share. */
#ifndef MOE_RUNTIME_EXEC_INTERNAL_H
#define MOE_RUNTIME_EXEC_INTERNAL_H

#include "runtime/device.h"
#include "runtime/touched.h"

/* The runtime's memory for one input name; all programs share it. */
typedef struct {
    const char *name;
    char *data;
    int64_t bytes;
} MoeExecInput;

/* An elastic value: after the first step that has it, the live rows are read off its table. */
typedef struct {
    int value, layer; /* layer: of that step, -1 none */
} MoeExecElastic;

/* Addresses here are the host's (runtime/device.h). */
struct MoeExecProgram {
    const MoePlanProgram *plan;
    char **values;           /* [n_values] */
    void ***step_bufs;       /* [n_steps][n_bufs] */
    double *seconds;         /* [n_steps], when profiling */
    int32_t **windows; /* [n_steps]: the table that a step on some slots gets; NULL without any */
    char *window_memory;
    int64_t window_bytes;
    MoeExecElastic *elastic; /* [n_elastic], by step; NULL without any */
    size_t n_elastic;
    size_t *elastic_at; /* [n_steps + 1]: the first of a step */
    int64_t *used;      /* [n_values]: bytes of an elastic value, the most so far; NULL without any */
    bool ran;           /* with elastic values: a step of it has run */
};

/* What was said of a layer's growth. */
typedef struct {
    int layer;
    int64_t planned, used, told;
} MoeExecLayer;

typedef struct MoeExecComm MoeExecComm;
typedef struct MoeStore MoeStore;

struct MoeExec {
    const MoePlan *plan;
    MoeComm *comm, *own_comm; /* own: made here, for one rank */
    int rank;
    MoeCoords coords;
    int micro, parts; /* the micro-batch under way, of how many */
    int64_t step;     /* 0 unknown */
    double compute;   /* CPU seconds in kernels so far, with several ranks */
    bool computing;   /* a kernel was the last step; compute counts since the clock said compute_began */
    double compute_began;
    MoeExecComm *between;
    MoeStore *store; /* of offloaded rows; NULL: the plan has none */
    MoePool *pool;
    MoeDevice *device;
    MoeDenseMode dense;
    MoeAttentionMode attention;
    MoeChoices choices;
    bool decided; /* choices are made, and the device goes by them */
    char *region; /* all shared buffers */
    int64_t region_bytes;
    char **buffers;
    char *slab;
    int64_t slab_bytes;
    int64_t fixed_bytes; /* of it without elastic values, the most of any program */
    int64_t elastic_expect, elastic_used;
    bool elastic_grew;
    MoeTouch *touched; /* [n_touched]; NULL without elastic values */
    size_t n_touched;
    MoeExecLayer *layers; /* with elastic values in the train program */
    size_t n_layers;
    char *scratch; /* [threads][scratch_stride] */
    int64_t scratch_stride, scratch_bytes;
    char *input_memory; /* of all inputs */
    int64_t input_bytes;
    MoeExecInput *inputs;
    size_t n_inputs;
    MoeExecProgram *programs; /* like plan->programs */
    int32_t *load;            /* [n_moe_layers][V][E] */
    const int32_t **segs;     /* [micro_batches][n_moe_layers]: tables of rows that were asked of the device, so far */
    size_t n_segs;
    MoePlaceMap *maps;        /* [n_moe_layers] */
    bool keep_maps;
    bool profile;
    void (*watch)(void *ctx, const MoeExecSpan *span); /* NULL: nobody */
    void *watch_ctx;
};

/* Whether a run of phases lo .. hi (of the counting pass alone) has that step. */
static inline bool moe_exec_is_due(const MoePlanStep *s, MoePlanPhase lo, MoePlanPhase hi,
                                   bool counting) {
    return s->phase >= lo && s->phase <= hi && (s->count || !counting);
}

MoeExecProgram *moe_exec_program(const MoeExec *x, const char *name);
/* The micro-batches whose sums wait for micro-batch m's: as many slots of the tree are added to its own (docs/PLAN.md). */
int moe_exec_fold_depth(int m);
/* exec_elastic.c: finds the elastic values; after step i, how much of those that it begins is used; after a run, how
 * much memory that makes. */
MoeStatus moe_exec_elastic_create(MoeExec *x);
void moe_exec_elastic_destroy(MoeExec *x);
void moe_exec_elastic_step(MoeExec *x, MoeExecProgram *g, size_t i);
/* `used` bytes of elastic value v of program g are in use. */
void moe_exec_elastic_used(MoeExec *x, MoeExecProgram *g, int value, int64_t used);
void moe_exec_elastic_sum(MoeExec *x);

/* exec_window.c: tables for steps that work on the rows of some slots (docs/RANKS.md, "Overlap"). Once the steps' buffers are
 * bound; before such a step runs. */
MoeStatus moe_exec_windows_create(MoeExec *x);
void moe_exec_windows_destroy(MoeExec *x);
void moe_exec_window_fill(const MoeExec *x, MoeExecProgram *g, size_t i);

/* exec_store.c: the store, if the plan offloads anything; a step that offloads or loads, or waits for one that did. */
MoeStatus moe_exec_store_create(MoeExec *x);
MoeStatus moe_exec_store_step(MoeExec *x, MoeExecProgram *g, size_t i);

/* exec_place.c: the maps, and their inputs, once these are there. */
MoeStatus moe_exec_place_create(MoeExec *x);
void moe_exec_place_destroy(MoeExec *x);

/* Tokens that the logits program's input holds. */
int64_t moe_exec_logits_ids(const MoeExec *x);

#endif
