/* Inside `moec explain`: how much of a rank's memory the rows of experts take, by the load that routing brings. Called by
 * cmd_explain.c. */
#ifndef MOE_CLI_EXPLAIN_LOAD_H
#define MOE_CLI_EXPLAIN_LOAD_H

#include "placement/load.h"
#include "runtime/plan.h"

/* Bytes that a rank touches of the slab's end, where rows between ranks are (runtime/touched.h). */
typedef struct {
    double *bytes; /* [data ranks], malloc'd; NULL: all have `most` */
    double most;
    bool of_run; /* else: of a router that nobody has trained */
} MoeExplainTouched;

/* By the most rows that each rank gets in any step of the load, which has the virtual shards as sources. Experts are where they were at
 * each step of the run (run_maps.h), rows of copies divided as training does. Exact but for the rows that arrive for several experts at
 * once: how often that is, is estimated (as if tokens chose experts independently but for taking k different ones). MOE_E_INPUT if the
 * load is of another model. */
MoeStatus moe_explain_touched_by(const MoePlan *p, const MoeLoad *load, const char *run,
                                 MoeExplainTouched *out);
/* What the busiest rank may expect of a router before or soon after training begins: the mean over random ones. */
MoeStatus moe_explain_touched_untrained(const MoePlan *p, MoeExplainTouched *out);

#endif
