/* Executes a plan's programs on one rank: owns its parameter and state buffers, one slab for all programs, inputs, per-thread
 * scratch. With several ranks each has an execution of its own, and all of them make the same calls in the same order: what
 * runs a program is collective. An error on one rank (its own, not MOE_E_PEER) leaves the others waiting: the caller then
 * tells them with moe_comm_abort. */
#ifndef MOE_RUNTIME_EXEC_H
#define MOE_RUNTIME_EXEC_H

#include "base/pool.h"
#include "placement/map.h"
#include "runtime/choices.h"
#include "runtime/comm.h"
#include "runtime/plan.h"

typedef struct MoeExec MoeExec;

/* How ranks on GPUs exchange (docs/GPU.md): by kernels that read each other's memory, over NCCL, through host memory; auto: the
 * first of them that can. Every rank asks for the same. The bits do not depend on it. */
typedef enum { MOE_EXCHANGE_AUTO, MOE_EXCHANGE_PEER, MOE_EXCHANGE_NCCL, MOE_EXCHANGE_HOST } MoeExchange;

/* What runs dense products on a GPU (docs/GPU.md): the plan's own kernels; cuBLASLt wherever one of its algorithms may be used; the
 * faster of both; the same, and an error where a checkpoint's choice cannot be kept. */
typedef enum { MOE_DENSE_EMITTED, MOE_DENSE_CUBLASLT, MOE_DENSE_AUTO, MOE_DENSE_SAME } MoeDenseMode;

/* What runs attention on a GPU: the plan's own kernels; cuDNN wherever it may be used; the faster of both. */
typedef enum { MOE_ATTENTION_EMITTED, MOE_ATTENTION_CUDNN, MOE_ATTENTION_AUTO } MoeAttentionMode;

/* Which of a host's devices, where the plan's target has several, and how it exchanges with those of other ranks. */
typedef struct {
    int device; /* its number; -1: the rank's number on its host, modulo the devices there */
    int local;  /* this rank's number among those of its host; -1: its rank */
    MoeExchange exchange;
    MoeDenseMode dense;
    MoeAttentionMode attention;
} MoeDevicePlace;

/* Allocates everything. One exec runs all programs of the plan (they share the slab). comm: of as many ranks as the plan
 * has, borrowed; NULL for a plan of one rank. n_threads: of this rank; 0 = one a core. */
MoeStatus moe_exec_create(const MoePlan *plan, MoeComm *comm, int n_threads, MoeExec **out);
/* The same on a device of the caller's choice. place: NULL as above. */
MoeStatus moe_exec_create_on(const MoePlan *plan, MoeComm *comm, int n_threads,
                             const MoeDevicePlace *place, MoeExec **out);
void moe_exec_destroy(MoeExec *x);
int moe_exec_threads(const MoeExec *x);
int moe_exec_rank(const MoeExec *x);
MoeComm *moe_exec_comm(const MoeExec *x); /* never NULL */
int moe_exec_device(const MoeExec *x);    /* its number among the host's; -1: the CPU */
/* Where the experts of plan->moe_layers[k] are (docs/PLACEMENT.md); at first in order, without copies. Borrowed; changed by
 * moe_exec_set_map alone. */
const MoePlaceMap *moe_exec_map(const MoeExec *x, size_t k);
/* Of it the primary copies: [E], expert -> global slot. */
const int32_t *moe_exec_place(const MoeExec *x, size_t k);
/* Whether the programs read a map of that layer (experts are on several ranks), and copies of experts. */
bool moe_exec_can_place(const MoeExec *x, size_t k);
bool moe_exec_can_copy(const MoeExec *x, size_t k);
/* Another map for the next runs, and for what is initialised, loaded and saved from now on; every rank sets the same. No data
 * moves: parameters and states in slots that are another expert's now are to be loaded or moved (runtime/place_move.h). copies
 * [ep*slots]: the expert in each global slot, -1 empty; primary [E]; both copied. MOE_E_INPUT, with nothing changed, for a map
 * that is wrong or that the plan's programs do not know. */
MoeStatus moe_exec_set_map(MoeExec *x, size_t k, const int32_t *copies, const int32_t *primary);
/* The same without setting it. */
MoeStatus moe_exec_check_map(const MoeExec *x, size_t k, const int32_t *copies,
                             const int32_t *primary);
/* Whether a checkpoint that is loaded leaves the maps as they are; false at first: its own are taken. */
void moe_exec_keep_maps(MoeExec *x, bool keep);
bool moe_exec_keeps_maps(const MoeExec *x);
/* Where rows go that the plan offloads: a file in `dir` without a name, gone with the process; NULL: the process's memory, as at
 * first. Before the first run; nothing happens with a plan that offloads nothing. */
MoeStatus moe_exec_offload_to(MoeExec *x, const char *dir);
int64_t moe_exec_offloaded_bytes(MoeExec *x); /* written so far */
/* Collective. Makes the choices that are made by measurement (choices.h), unless that was done: the first run does it else. */
MoeStatus moe_exec_decide(MoeExec *x);
/* For a checkpoint's manifest; and what one says, in place of all that was chosen (NULL: nothing). MOE_E_CORRUPT with `where`. */
MoeChoices *moe_exec_choices(MoeExec *x);
MoeStatus moe_exec_take_choices(MoeExec *x, const json_t *choices, const char *where);
/* The training step that the next runs belong to, for the messages of other ranks. */
void moe_exec_set_step(MoeExec *x, int64_t step);
/* The host's address of shared buffer i (a parameter or state), valid as long as x. On a CPU that is its memory; where a
 * device has memory of its own a mirror of it: moe_exec_fetch copies memory to mirror before it is read, moe_exec_send
 * mirror to memory once it is written (any part of one buffer); moe_exec_forget gives the mirror's memory back to the process.
 * On a CPU these three do nothing. */
void *moe_exec_buffer(MoeExec *x, int buffer);
MoeStatus moe_exec_fetch(MoeExec *x, const void *at, int64_t bytes);
MoeStatus moe_exec_send(MoeExec *x, const void *at, int64_t bytes);
void moe_exec_forget(MoeExec *x, void *at, int64_t bytes);
MoeStatus moe_exec_zero(MoeExec *x, void *at, int64_t bytes); /* memory and mirror; also on a CPU */
bool moe_exec_on_host(const MoeExec *x); /* whether mirrors are the memory itself */
/* The host's address of a named input/output of a program; NULL if the program has none of that name. Inputs are sent
 * when the program runs next. Outputs are fetched by the call, and valid until the next run of any program. */
void *moe_exec_input(MoeExec *x, const char *program, const char *name);
const void *moe_exec_output(MoeExec *x, const char *program, const char *name,
                            const MoePlanPort **out_port);

/* The tokens of sequences for one global batch, the same on every rank (each takes its own): ids, labels [batch*seq]; n_seqs <= plan batch (the rest of the batch is absent:
 * shard v holds sequences floor(v*n_seqs/V) .. floor((v+1)*n_seqs/V)-1). */
typedef struct {
    const int32_t *ids, *labels; /* [n_seqs, seq]; labels may be NULL for logits */
    int64_t n_seqs;
} MoeBatch;

/* Scalars of a training step. */
typedef struct {
    double lr, beta1, beta2, eps, weight_decay, max_grad_norm; /* max_grad_norm <= 0: no clipping */
    int64_t step; /* 1-based, for the bias corrections */
} MoeHyper;

typedef struct {
    double loss, ce_loss, aux_loss, grad_norm;
    int64_t tokens;
    bool has_aux,
        updated; /* updated = false: loss or norm not finite, parameters and states untouched */
    double seconds;
    double compute_seconds; /* with several ranks: CPU time of this rank's calling thread in kernels */
} MoeStepResult;

/* One optimiser step over the global batch: counting pass if needed, micro-batches, reduce, update. */
MoeStatus moe_exec_train_step(MoeExec *x, const MoeBatch *b, const MoeHyper *h, MoeStepResult *out);
/* The same without the update phase (gradients stay readable as outputs "grad.NAME" if the plan has them). */
MoeStatus moe_exec_train_grads(MoeExec *x, const MoeBatch *b, const MoeHyper *h,
                               MoeStepResult *out);
/* Sum of nll and count of labels over the batch. */
MoeStatus moe_exec_eval(MoeExec *x, const MoeBatch *b, double *out_nll_sum, int64_t *out_tokens);
/* logits [n_seqs*seq, vocab] on rank 0, valid until the next run; the others take part and have what they computed. n_seqs
 * is at most what the program holds (one, from moec compile). */
MoeStatus moe_exec_logits(MoeExec *x, const MoeBatch *b, const float **out_logits);
/* After a train step: rows routed to each expert from each virtual shard, layer by layer: [n_moe_layers][V][E]. Borrowed. Of
 * the whole batch on rank 0; of its own shards on any other. */
const int32_t *moe_exec_load(const MoeExec *x);
/* Bytes of params + states + slab + inputs + scratch + staging of this rank. What live rows touch of the slab counts as it
 * was at most so far; before the first training step as with balanced routing. */
int64_t moe_exec_memory_bytes(const MoeExec *x);
/* Elastic values of a layer (rows that routing sent here), summed: what the plan counts on, and the most that a run
 * had. */
typedef struct {
    int layer;
    int64_t planned, used;
} MoeExecGrowth;
/* The layer whose rows grew the most beyond the plan and what was said of it before; false when none did. Each growth
 * is told once. */
bool moe_exec_growth(MoeExec *x, MoeExecGrowth *out);
/* Measured seconds per step of the last run program (indexed like program->steps), for explain; NULL unless profiling. */
void moe_exec_profile(MoeExec *x, bool on);
const double *moe_exec_profile_seconds(const MoeExec *x, const char *program);
/* A step of a program as it ran: when it began and ended, on the monotonic clock of the machine, or on the rank's emulated
 * clock where links are emulated; the micro-batch; whether that was in the counting pass. */
typedef struct {
    size_t step; /* index into program->steps */
    int micro;
    bool counting;
    double begin, end;
} MoeExecSpan;
/* Calls fn after each step of the runs to come, on the rank's thread; NULL: no longer. */
void moe_exec_watch(MoeExec *x, void (*fn)(void *ctx, const MoeExecSpan *span), void *ctx);

#endif
