/* The GPU of a test: the simulator of tests/sim where it was built, or the machine's own with MOE_TEST_GPU=real.
 *
 *   MOE_TEST_GPU=real build/tests/ops      on a machine with a GPU: the same cases, kernels compiled by NVRTC */
#ifndef MOE_TESTS_SUPPORT_GPU_H
#define MOE_TESTS_SUPPORT_GPU_H

#include <stdbool.h>

/* Opens the simulator's libraries, so that what asks for libcuda and libnvrtc finds them, with devices of these compute
 * capabilities ("90,80"); false where it was not built. Before the first use of a driver in this process. */
bool moe_test_simulate(const char *devices);
/* For a program whose kernels take longer to compile than to run: the simulator's compiler does not optimize. Before anything
 * else of this header; such kernels are kept beside the others, in build/tests/sim/cache-plain. */
void moe_test_compile_plainly(void);
/* Whether code for the target runs in this process. A "cuda:" target gets a device that can, simulated unless MOE_TEST_GPU is
 * real: then "cuda:sm_80", which is in every test's list, stands for the machine's GPU, whatever it is, and
 * the other CUDA targets are passed over. Other targets: moe_target_runs_here. */
bool moe_test_runs(const char *target);
/* Whether a test does all that it has on that target: not where a GPU is simulated, whose kernels take half a second each to
 * compile, unless MOE_ALL_CASES is set. */
bool moe_test_does_all(const char *target);
/* The target to compile for: "cuda:native" for "cuda:sm_80" with MOE_TEST_GPU=real, else itself. */
const char *moe_test_target(const char *target);

#endif
