/* Online placement: while training, a policy (placement/policy.h) looks at the loads of past steps and experts move, at a step's
 * boundary, with weights and states (docs/PLACEMENT.md). Rank 0 decides, all ranks move; no bit of what is trained changes. */
#ifndef MOE_RUNTIME_PLACE_H
#define MOE_RUNTIME_PLACE_H

#include "base/str.h"
#include "placement/cluster.h"
#include "runtime/exec.h"

typedef struct {
    const char *policy; /* a name (moe_policy_find); "static": experts stay where they are. "static" */
    const char *program; /* of the policy "program": a command line; NULL */
    double program_seconds; /* that it has for an answer. 10 */
    const char *from;    /* placement.json with the maps of a new run; NULL: the plan's */
    int64_t every, window; /* steps between decisions; steps that one looks back on. 10, 10 */
    double drift, hysteresis; /* MoePlacerGate. 0, 1 */
    int64_t staging_bytes; /* memory of a rank for experts on their way, if one more would fit into less; 256 MiB */
    const MoeCluster *cluster; /* of the ranks, for what moves and imbalance cost; NULL: as the plan says. Borrowed */
} MoePlaceOptions;

void moe_place_options_default(MoePlaceOptions *o);
/* Names and numbers: MOE_E_MISUSE naming the flag. */
MoeStatus moe_place_options_check(const MoePlaceOptions *o);

typedef struct MoePlace MoePlace;
/* Collective. *out NULL: nothing can move (a static policy, one rank, no experts). seed: of policies that draw
 * numbers. */
MoeStatus moe_place_open(const MoePlan *plan, MoeExec *x, const MoePlaceOptions *o, uint64_t seed,
                         MoePlace **out);
void moe_place_close(MoePlace *p);

/* Rank 0 (others: nothing). The load of a step that has ended, as moe_exec_load has it; and of steps before the start. */
void moe_place_observe(MoePlace *p, int64_t step, const int32_t *load);
/* Rank 0: whether there is something to decide before `step`. */
bool moe_place_due(const MoePlace *p, int64_t step);
int moe_place_window(const MoePlace *p);

/* What a change was. */
typedef struct {
    bool moved;          /* maps changed */
    bool failed;         /* and the move was given up: maps are as before (or of batches that were done) */
    int experts;         /* primary copies that went to another rank */
    int64_t bytes;       /* that all ranks sent */
    int64_t staging_bytes; /* of the rank that had the most */
    int batches;
    double decide_seconds, seconds; /* rank 0's, to decide; all of it */
    double emulated_seconds;        /* NAN without emulated links */
} MoePlaceChange;
/* Collective, before `step`. Rank 0 asks the policies; all ranks move what changes. events (rank 0; may be NULL): a line of JSON
 * for each layer for which another map was proposed, and one of it all (docs/PLACEMENT.md). An error: only where training cannot go on (MOE_E_PEER, ...). */
MoeStatus moe_place_change(MoePlace *p, int64_t step, MoeStr *events, MoePlaceChange *out);

#endif
