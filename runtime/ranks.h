/* Ranks as threads of this process: one thread a rank, over the threads communicator. Called by the commands and by tests. */
#ifndef MOE_RUNTIME_RANKS_H
#define MOE_RUNTIME_RANKS_H

#include "runtime/comm.h"

/* What a rank does; comm is its own, borrowed. */
typedef MoeStatus (*MoeRankFn)(void *ctx, MoeComm *comm);

/* Runs fn(ctx, comm) as each of n ranks and waits for all. A rank that fails ends the others: their waits return
 * MOE_E_PEER. NULL if all did well, else the error of the lowest rank that failed by itself, with its number in front
 * unless all ranks agreed on it and it is that of rank 0. n = 1: in the calling thread. silence_limit: seconds, 0 = the communicator's own. */
MoeStatus moe_ranks_run(int n, double silence_limit, MoeRankFn fn, void *ctx);
/* The same over communicators that the caller has made and keeps, comms[0..n-1]. */
MoeStatus moe_ranks_run_on(MoeComm **comms, int n, MoeRankFn fn, void *ctx);

#endif
