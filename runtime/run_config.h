/* A run directory: RUN/config.json says that it is one, what plan and data it trains, with what
 * settings; RUN/lock keeps a second trainer out. */
#ifndef MOE_RUNTIME_RUN_CONFIG_H
#define MOE_RUNTIME_RUN_CONFIG_H

#include "runtime/plan.h"

typedef struct {
    char *plan_dir, *data_path; /* malloc'd; NULL if unknown */
    json_t *json;               /* the whole file */
} MoeRunConfig;

/* "DIR is not a run directory ..." when it is something else. */
MoeStatus moe_run_config_read(const char *run_dir, MoeRunConfig *out);
void moe_run_config_free(MoeRunConfig *c);
/* Atomically. resolved: the settings (may be NULL). */
MoeStatus moe_run_config_write(const char *run_dir, const MoePlan *plan, const char *plan_dir,
                               const char *data_path, const json_t *resolved);

/* Makes RUN ready: absent or empty -> made, *out_existing false; a run of the same model and V ->
 * true; a run of another, or any other directory or file: MOE_E_INPUT that says how to start anew.
 */
MoeStatus moe_run_dir_prepare(const char *run_dir, const MoePlan *plan, bool *out_existing);
/* Takes RUN/lock for this process; another live trainer is an error. */
MoeStatus moe_run_lock(const char *run_dir, int *out_fd);
void moe_run_unlock(int fd);
/* What must agree to continue a run: {"model", "virtual_shards", "vocab_size", "tokenizer"}; on one kind of target, without
 * "fast_reduce", "leaf_rows", too; and, informative, seq, batch, dtype, target, micro_batches. */
json_t *moe_plan_facts(const MoePlan *plan);
/* NULL when the plan may continue what `facts` describes, else MOE_E_INPUT naming the first
 * difference. */
MoeStatus moe_plan_facts_check(const MoePlan *plan, const json_t *facts, const char *where);

#endif
