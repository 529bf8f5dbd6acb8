/* What programs touch of the slab's end, where rows that routing may send have address space for the worst case (docs/PLAN.md): values
 * of one program and of others share addresses, so what counts is the union of what was ever in use. An execution asks with
 * the rows that it had (exec_elastic.c), `moec explain` with those that it expects. */
#ifndef MOE_RUNTIME_TOUCHED_H
#define MOE_RUNTIME_TOUCHED_H

#include "runtime/plan.h"

/* A value that lies there: elastic, or of known size in the place of one that does not live meanwhile. */
typedef struct {
    int program, value; /* index in plan->programs, in its values */
    bool elastic;
    int64_t at, used; /* in the slab; bytes from there on that were in use, 0 at first */
} MoeTouch;

/* The slab without the part that only live rows touch: of the program that needs the most. */
int64_t moe_plan_fixed_bytes(const MoePlan *p);
/* All values that reach beyond moe_plan_fixed_bytes, by ascending `at`; *out_n may be 0. malloc'd. */
MoeStatus moe_touch_list(const MoePlan *p, MoeTouch **out, size_t *out_n);
/* Bytes beyond `fixed` in the union of [at, at + used). */
int64_t moe_touch_bytes(const MoeTouch *t, size_t n, int64_t fixed);

#endif
