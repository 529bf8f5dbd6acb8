/* A step's timeline on rows: what computes, what travels. From a recorded step (runtime/profile.h), or from the plan's own numbers. */
#ifndef MOE_CLI_STEP_TIMELINE_H
#define MOE_CLI_STEP_TIMELINE_H

#include "runtime/profile.h"

typedef enum { MOE_ROW_COMPUTE, MOE_ROW_LINKS, MOE_ROW_STORE, MOE_N_ROWS } MoeStepTimelineRow;

typedef struct {
    MoeStepTimelineRow row;
    const MoePlanStep
        *step; /* of a wait: itself; its exchange is an event of its own on the row of links */
    int micro;
    bool counting;
    double begin, end; /* seconds from the timeline's start */
} MoeStepTimelineEvent;

typedef struct {
    MoeStepTimelineEvent *events; /* malloc'd; by begin */
    size_t n, cap;
    double seconds;
} MoeStepTimeline;

/* As recorded. start: the clock's reading that counts as 0. */
void moe_step_timeline_measured(const MoePlanProgram *g, const MoeProfileRank *p, double start,
                                MoeStepTimeline *out);
/* As the plan's seconds have it, on any rank: kernels one after another; an exchange that has been started goes on beside
 * them, one at a time, until its wait, which takes what is left of it. */
void moe_step_timeline_predicted(const MoePlan *plan, const MoePlanProgram *g,
                                 MoeStepTimeline *out);
void moe_step_timeline_free(MoeStepTimeline *t);

#endif
