/* Where a rank stands, in words. See comm_place.h. */
#include "runtime/comm_place.h"

#include <stdio.h>

void moe_comm_place_set(MoeCommPlace *p, int64_t step, const char *phase) {
    p->step = step;
    snprintf(p->phase, sizeof p->phase, "%s", phase);
}

char *moe_comm_place_text(int rank, const MoeCommPlace *p, char *out) {
    if (*p->phase)
        snprintf(out, MOE_COMM_PLACE_TEXT, "rank %d (step %lld, %s)", rank, (long long)p->step,
                 p->phase);
    else
        snprintf(out, MOE_COMM_PLACE_TEXT, "rank %d (before its first step)", rank);
    return out;
}
