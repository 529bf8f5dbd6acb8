/* Runs the blocks of a launch: a block's threads are coroutines of the calling thread of the host, switched where they
 * wait. Blocks run one after another, backwards or shuffled (MOE_SIM_ORDER=up, down, shuffle), every second one with its threads
 * in descending order, so that what depends on an order differs; shared memory begins as NaNs.
 *
 * Copies and products that a kernel may only rely on after a wait (cp.async, wgmma, copies by tensor map) land at once in
 * some blocks, as late as allowed in others, in turn by the number of the launch and block (MOE_SIM_ASYNC=early or late:
 * all of them so). */
#ifndef MOE_TESTS_SIM_BLOCK_H
#define MOE_TESTS_SIM_BLOCK_H

#include <stdbool.h>
#include <stddef.h>
#include "tests/sim/kernel_api.h"

typedef struct {
    const char *name;
    const MoeSimEntry *entry;
    MoeSimModule *module;
    void *const *params;
    MoeSimDim grid, block;
    unsigned shared_bytes; /* dynamic */
} MoeSimLaunch;

typedef enum {
    MOE_SIM_RAN,
    MOE_SIM_FAILED, /* a barrier that some threads never reach, a misuse that the kernel or an instruction noticed */
    MOE_SIM_ILLEGAL, /* an access to memory that is not there */
} MoeSimResult;

/* One launch at a time in a process: the caller holds the simulator's lock. why: of what went wrong, with kernel, block
 * and thread. */
MoeSimResult moe_sim_run(const MoeSimLaunch *l, char *why, size_t why_bytes);

#endif
