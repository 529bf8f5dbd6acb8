/* A target without LLVM, for tests of passes: accepts what the rules of fuse allow, gives workspaces to reductions, and
 * invents one launch a group. */
#ifndef MOE_TESTS_SUPPORT_FAKE_TARGET_H
#define MOE_TESTS_SUPPORT_FAKE_TARGET_H

#include "ir/target.h"

typedef struct {
    MoeTarget base; /* first */
    bool refuse_joins, refuse_alias;
    int64_t workspace; /* of a group with a reduction over rows */
    size_t n_lowered;
} MoeFakeTarget;

/* All fuse rules on. Lives in t; destroy does nothing. */
void moe_fake_target_init(MoeFakeTarget *t);

#endif
