/* The plan of fake_plan.h for a GPU: its kernels as CUDA C++, compiled as a plan's are. What they compute has the bits of those in
 * C where the device rounds as the host does. */
#ifndef MOE_TESTS_FAKE_CUDA_H
#define MOE_TESTS_FAKE_CUDA_H

#include "tests/support/fake_plan.h"

/* kernels.cubin for plans of V virtual shards, malloc'd. arch: "sm_80". */
MoeStatus fake_cuda_code(const char *arch, int virtual_shards, void **out, size_t *out_n);
/* Loaded; o->target says which. Asserts that it loads. */
MoePlan *fake_cuda_plan(const FakePlanOptions *o);

#endif
