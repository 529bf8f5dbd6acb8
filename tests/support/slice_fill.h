/* Known values in the buffers of a slice plan's ranks: filled in, and looked for again after whatever moved them. */
#ifndef MOE_TESTS_SLICE_FILL_H
#define MOE_TESTS_SLICE_FILL_H

#include "runtime/weights.h"
#include "tests/support/slice_plan.h"

/* Element i of the weight (kind 0) or a state (1, 2) at a step: never zero. */
float slice_value(const MoeWeight *w, int kind, int64_t i, int64_t step);

int slice_buffer(const MoePlan *plan, const MoeWeight *w, int kind); /* where they are */

typedef struct {
    int64_t step;
    bool check;    /* else fill */
    bool weights;  /* states are not looked at */
    int64_t wrong; /* elements, added to */
} SliceFill;
/* What one rank holds by its maps. Aborts on errors: also run outside of a test. */
void slice_fill_rank(SliceFill *f, MoePlan *plan, MoeExec *x);
/* Elements that are no weight's or state's and not zero, as the buffers were made. */
int64_t slice_padding(const MoePlan *plan, MoeExec *x);
void slice_fill(SliceRanks *r, int64_t step);
void slice_wipe(SliceRanks *r);
/* Every rank's buffers hold the step's values, and nothing but them. */
bool slice_holds(SliceRanks *r, int64_t step);

#endif
