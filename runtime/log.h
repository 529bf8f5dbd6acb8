/* What a run says: RUN/log.jsonl (one object a step), RUN/trace.csv (expert load), and the progress
 * line for people. */
#ifndef MOE_RUNTIME_LOG_H
#define MOE_RUNTIME_LOG_H

#include "runtime/exec.h"

/* One step's record. NAN stands for unknown and becomes null. */
typedef struct {
    int64_t step, tokens, memory_bytes; /* memory of rank 0 */
    int n_ranks;
    int64_t memory_bytes_max; /* of the rank that has the most; written with several ranks */
    double
        compute_imbalance; /* the busiest rank's compute time over the mean; with several ranks */
    double loss, ce_loss, aux_loss, grad_norm, lr, seconds, tokens_per_second, mfu;
    bool has_aux, skipped;
    bool fast_reduce; /* of the plan: bits depend on the layout */
    bool emulated;
    double emulated_seconds;                    /* of the step, on the links of --emulate */
    double emulated_exposed, emulated_a2a_exposed; /* waits for exchanges, for expert rows: the mean over ranks */
    const double *imbalance, *expert_imbalance; /* [n_layers] */
    size_t n_layers;
    bool has_eval;
    double eval_loss, eval_bits_per_byte;
    int64_t eval_tokens;
} MoeLogRecord;

typedef struct MoeLog MoeLog;
/* Opens (creates) RUN/log.jsonl and, with trace, RUN/trace.csv, both (and RUN/placement.jsonl, if there is one) cut back to what
 * belongs to steps <= last_step. */
MoeStatus moe_log_open(const char *run_dir, bool trace, int n_experts, int64_t last_step,
                       MoeLog **out);
/* load: [n_layers][V][E] of the step, may be NULL. layers: the decoder layers' numbers. A full disk
 * is an error, with the files cut back to whole lines; later steps may be written again. */
MoeStatus moe_log_step(MoeLog *l, const MoeLogRecord *r, const int32_t *load, const int *layers,
                       int n_shards);
/* Lines of JSON that begin with "step" into RUN/placement.jsonl, which is made by the first: what was decided and moved before
 * that step. */
MoeStatus moe_log_placement(MoeLog *l, const char *lines, size_t n);
MoeStatus moe_log_sync(MoeLog *l); /* fsync, before a checkpoint */
void moe_log_close(MoeLog *l);
/* The record as its line of JSON (with the newline). */
void moe_log_format(const MoeLogRecord *r, MoeStr *out);
/* Length of the part of a log (JSON lines or the trace's CSV) that belongs to steps <= last_step
 * and consists of whole lines. */
int64_t moe_log_keep_bytes(const char *text, int64_t n, bool csv, int64_t last_step);

/* Sums RUN/trace.csv over all its steps: out [n_layers][n_experts] is added to. Lines of other
 * layers are passed over; false when there is no trace to read. */
bool moe_trace_sum(const char *run_dir, const int *layers, size_t n_layers, size_t n_experts,
                   int64_t *out);

/* Of RUN/trace.csv the loads of steps first..last: out [last-first+1][n_layers][n_shards][n_experts], there [last-first+1] whether
 * the trace has all of a step. false: none. */
bool moe_trace_steps(const char *run_dir, const int *layers, size_t n_layers, int n_shards, int n_experts,
                     int64_t first, int64_t last, int32_t *out, bool *there);

/* Progress on stderr: a line that rewrites itself on a terminal, else a plain line every `seconds`.
 */
typedef struct MoeProgress MoeProgress;
MoeProgress *moe_progress_create(bool quiet, double every_seconds, int64_t steps,
                                 double max_seconds);
void moe_progress_step(MoeProgress *p, const MoeLogRecord *r, double elapsed_seconds);
/* A whole line that stays (evaluation, checkpoint, ...), above the progress line. */
void moe_progress_say(MoeProgress *p, const char *fmt, ...) MOE_PRINTF(2, 3);
void moe_progress_done(MoeProgress *p); /* ends the line, frees p */

#endif
