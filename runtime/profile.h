/* The timeline of one training step: RUN/profile-rank-R.jsonl of each rank, which `moec trace` draws. */
#ifndef MOE_RUNTIME_PROFILE_H
#define MOE_RUNTIME_PROFILE_H

#include "runtime/exec.h"

/* Recording: between begin and end every step of the plan that x runs is kept. */
typedef struct MoeProfile MoeProfile;
MoeStatus moe_profile_begin(MoeExec *x, MoeProfile **out);
/* Writes this rank's file, replacing one of an earlier step, and frees p (also on error). */
MoeStatus moe_profile_end(MoeProfile *p, const char *run_dir, int64_t step);
void moe_profile_abandon(MoeProfile *p); /* NULL is fine */

/* Reading: one rank's spans, ascending as they ran. */
typedef struct {
    int rank;
    int64_t step; /* of the training */
    bool emulated;
    MoeExecSpan *spans; /* malloc'd */
    size_t n;
} MoeProfileRank;
/* MOE_E_INPUT where a run has no such file, MOE_E_CORRUPT naming the line where one is damaged or of another plan. */
MoeStatus moe_profile_read(const char *run_dir, int rank, const MoePlanProgram *program,
                           MoeProfileRank *out);

#endif
