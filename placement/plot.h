/* Draws replays as SVG, without scripts, for browsers and paper: imbalance over time, a line a policy; the load of the watched
 * layer's experts; where its experts are over time, for each policy that moves any. */
#ifndef MOE_PLACEMENT_PLOT_H
#define MOE_PLACEMENT_PLOT_H

#include "placement/report.h"

/* The traces below each other. Reports whose replays watched a layer get its pictures. */
void moe_plot(const MoeReport *reports, size_t n, MoeStr *out);

#endif
