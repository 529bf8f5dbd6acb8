/* Named points of a move at which tests end a rank or let it fail; without the variable below they do nothing. */
#ifndef MOE_RUNTIME_PLACE_FAULT_H
#define MOE_RUNTIME_PLACE_FAULT_H

#include "base/status.h"
#include <stdint.h>

/* MOEC_MOVE_FAULT="kill|fail|flip POINT RANK N" does so the N-th time
 * (from 1) that RANK comes there. kill: SIGKILL; fail: an error, at points before the commit; flip: a bit of what arrived. */
#define MOE_PLACE_POINTS(X)                                                                        \
    X(DECIDED, decided)   /* rank 0 has maps, nobody else knows */                                 \
    X(TOLD, told)         /* this rank knows them */                                               \
    X(LISTED, listed)     /* and what goes where */                                                \
    X(STAGED, staged)     /* memory for what comes is there */                                     \
    X(STARTED, started)   /* transfers are under way */                                            \
    X(ARRIVED, arrived)   /* all that comes has come */                                            \
    X(HASHED, hashed)     /* hashes are known on both sides */                                     \
    X(CONFIRMED, confirmed) /* this rank has what was sent; the others are not asked yet */        \
    X(AGREED, agreed)     /* all ranks have: nothing is committed yet */                           \
    X(COPYING, copying)   /* one expert is in its slot, others are not */                          \
    X(COPIED, copied)     /* all are; old slots still hold what was there */                       \
    X(ZEROED, zeroed)     /* old slots are zero, maps are the old ones */                          \
    X(MAPPED, mapped)     /* maps are the new ones */                                              \
    X(LOGGED, logged)     /* and that was logged */
typedef enum {
#define X(id, name) MOE_PLACE_AT_##id,
    MOE_PLACE_POINTS(X)
#undef X
        MOE_N_PLACE_POINTS
} MoePlacePoint;
/* Counts from the start again. */
void moe_place_fault_reset(void);
/* staged: what came, for flip; may be NULL. */
MoeStatus moe_place_point(int rank, MoePlacePoint point, void *staged, int64_t bytes);

#endif
