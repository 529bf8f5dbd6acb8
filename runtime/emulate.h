/* Emulated links: a communicator around another that keeps a clock for each rank, as if the ranks were the cluster's
 * (placement/cluster.h). Everything that is sent is really sent, so results have the same bits; only the clocks are made up.
 * What they show is emulated seconds, and is reported as such wherever it shows. Rules: docs/CLUSTER.md.
 *
 * Compute: where the cluster file gives rates, the clock advances by moe_emulate_work (or moe_emulate_compute) alone, and
 * emulated times are the same in every run. Otherwise by the CPU time that the rank's thread spends between calls of the
 * communicator (its pool's threads counted in), whatever else the machine does meanwhile.
 * Links: an exchange's transfers are laid on the ranks' links by start clocks; each rank works out all of them by the same
 * rule from what all ranks tell each other, so that no clock depends on how threads are scheduled.
 *
 * Called by the rank's thread. Functions taking any communicator do nothing on one that is not emulated. */
#ifndef MOE_RUNTIME_EMULATE_H
#define MOE_RUNTIME_EMULATE_H

#include "base/pool.h"
#include "placement/cluster.h"
#include "runtime/comm.h"

/* Of one rank, in emulated seconds. */
typedef struct {
    double clock;
    double compute;       /* the rank computed */
    double communication; /* a transfer of the rank was under way, hidden or not */
    double exposed;       /* waits advanced the clock */
    double
        late; /* the part of `exposed` before the last peer it waited for had started the exchange */
    double marked; /* the part of `exposed` in waits while moe_emulate_mark was on */
} MoeEmulateStats;

/* Around this rank's `inner`, which it takes (also on error): destroying *out destroys it. MOE_E_MISUSE if the cluster has
 * not as many ranks as inner. The cluster is copied. Every rank of inner does the same. */
MoeStatus moe_comm_emulate(MoeComm *inner, const MoeCluster *cluster, MoeComm **out);
/* n ranks in this process on emulated links: out[0..n-1], as moe_comm_threads. Nothing to destroy on error. */
MoeStatus moe_comm_threads_emulated(int n, const MoeCluster *cluster, MoeComm **out);
bool moe_comm_emulated(const MoeComm *c);

/* The pool whose threads compute for this rank (measured compute): the clock advances by a mean over its threads of what
 * they spend in tasks. Call it before the pool's first launch and with NULL before the pool is destroyed. */
void moe_emulate_pool(MoeComm *c, MoePool *pool);
/* This rank did work of so many FLOPs and bytes of memory traffic: advances the clock if the cluster file gives rates. Call
 * it after each launch. */
void moe_emulate_work(MoeComm *c, double flops, double bytes);
/* Whether waits from now on count in `marked`, too: for those of one kind. */
void moe_emulate_mark(MoeComm *c, bool on);
/* Advances the clock by so many seconds of compute, in any case. */
void moe_emulate_compute(MoeComm *c, double seconds);

/* So far. MOE_ASSERTs that c is emulated. */
MoeEmulateStats moe_emulate_stats(MoeComm *c);
/* Ends a step; all ranks call it. *out_seconds: by how much the latest clock of all ranks has advanced since the last call
 * (since the start), the same on every rank. out_ranks: room for `size` entries, each rank's statistics since the last call
 * with its clock now; or NULL. Costs no emulated time. MOE_ASSERTs that c is emulated. */
MoeStatus moe_emulate_step(MoeComm *c, double *out_seconds, MoeEmulateStats *out_ranks);

#endif
