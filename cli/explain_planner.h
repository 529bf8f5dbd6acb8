/* What the offline planner looked at and why it chose what it did: as JSON (plan.json, "planner") and for people. Called by
 * auto_strategy.c, cmd_compile.c and cmd_explain.c. */
#ifndef MOE_CLI_EXPLAIN_PLANNER_H
#define MOE_CLI_EXPLAIN_PLANNER_H

#include <stdio.h>
#include "base/json.h"
#include "passes/pass.h"
#include "placement/planner.h"

/* A division that was compiled as far as its memory plan and simulated. */
typedef struct {
    MoePlanCandidate candidate; /* with the estimates */
    MoePrediction predicted;
    double memory;         /* bytes of a rank */
    double imbalance;      /* the busiest rank's rows over the mean, with the first maps */
    const char *placement; /* the policy that made those; NULL: the usual ones, or none with all experts on each rank */
} MoePlannerRow;

typedef struct {
    const MoeCluster *cluster;
    const char *load;
    double memory_limit; /* 0: none */
    const MoePlannerRow *rows;
    size_t n_rows, best;
    const MoePlannerRow *usual; /* the best with the usual maps; NULL: those it has */
    size_t considered, dropped, refused;
    double seconds; /* that planning took */
} MoePlannerReport;

/* Best first; pools are numbered in that order. */
json_t *moe_planner_json(const MoePlannerReport *r);
/* As Markdown. Nothing for NULL. */
void moe_planner_print(const json_t *report, FILE *to);

#endif
