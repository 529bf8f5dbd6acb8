/* The figures of replays for people (Markdown), for tables (CSV) and for programs (JSON). */
#ifndef MOE_PLACEMENT_REPORT_H
#define MOE_PLACEMENT_REPORT_H

#include <jansson.h>
#include "base/str.h"
#include "placement/replay.h"

/* A trace and what each policy made of it. */
typedef struct {
    const char *trace; /* its path, or what it was made of */
    const MoeLoad *load;
    const MoeReplayOptions *options;
    const char *cluster;      /* "the default cluster", or the file's path */
    double scale;             /* rows that a row of the trace stands for in the costs */
    bool divided;             /* the trace's sources were divided */
    const MoeReplay *fixed;   /* static: what speed-ups are against */
    const MoeReplay *replays; /* one a policy */
    size_t n_replays;
    bool per_layer;
} MoeReport;

void moe_report_md(const MoeReport *r, MoeStr *out);
/* A line a policy, and with per_layer a line a layer: the column `layer` is empty where a line is of all layers. */
void moe_report_csv(const MoeReport *r, bool header, MoeStr *out);
json_t *moe_report_json(const MoeReport *r); /* new reference */

#endif
