/* How this process was started, and which communicator follows from that.
 *
 * A launcher (mpirun, srun, torchrun) starts one process a rank and tells each its place through environment variables.
 * Without one there is one process, and ranks are its threads. Called once, by `moec run`, `moec probe` and the test programs. */
#ifndef MOE_RUNTIME_LAUNCH_H
#define MOE_RUNTIME_LAUNCH_H

#include "runtime/comm.h"

typedef enum {
    MOE_LAUNCH_NONE,
    MOE_LAUNCH_MPIRUN,
    MOE_LAUNCH_SLURM,
    MOE_LAUNCH_TORCHRUN
} MoeLaunchKind;

typedef struct {
    MoeLaunchKind kind;
    int size, rank;        /* processes, this one's number; 1 and 0 without a launcher */
    int local_rank;        /* number of this process on its host; -1 unknown */
    int local_size;        /* processes of the job on this host; 0 unknown */
    const char *variables; /* where size and rank come from, for messages: "OMPI_COMM_WORLD_SIZE" */
} MoeLaunchInfo;

/* Never fails: variables that make no sense are as good as absent. */
MoeLaunchInfo moe_launch_detect(void);
const char *moe_launch_name(MoeLaunchKind k); /* "mpirun", "Slurm", "torchrun", "no launcher" */

typedef enum { MOE_COMM_SELF, MOE_COMM_THREADS, MOE_COMM_MPI, MOE_COMM_TCP } MoeCommKind;

/* The communicator for a plan of `plan_ranks` ranks. choice: "auto" (or NULL), "self", "threads", "mpi", "tcp". auto: one
 * rank: self; started by mpirun or Slurm: mpi; by torchrun: tcp; else threads. MOE_E_MISUSE with both numbers when the
 * launcher's processes are not as many as the plan's ranks, or the choice cannot serve this start. */
MoeStatus moe_comm_choose(const char *choice, int plan_ranks, const MoeLaunchInfo *launch,
                          MoeCommKind *out);

/* Whether the launcher gave this process cores of its own: others than it has itself. */
bool moe_launch_bound(void);

/* Opens self, mpi or tcp (threads: moe_comm_threads, which makes all ranks at once). silence_limit: seconds, > 0.
 * MOE_E_INPUT with what to do if MPI, the plugin or the rendezvous is missing. */
MoeStatus moe_comm_open(MoeCommKind kind, const MoeLaunchInfo *launch, double silence_limit,
                        MoeComm **out);

/* Of an error that all processes agreed on: the one whose own it is says it, and does before any of them ends, as launchers kill
 * the others then. `st` stays the caller's. */
void moe_launch_say(MoeComm *comm, MoeStatus st);

/* Ranks as processes over TCP; the rendezvous is at $MASTER_ADDR (127.0.0.1) : $MASTER_PORT (29400). comm_tcp_meet.c */
MoeStatus moe_comm_tcp(int rank, int size, double silence_limit, MoeComm **out);

#endif
