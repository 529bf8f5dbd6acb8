/* See launch.h. */
#include "runtime/launch.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/str.h"

/* The variables of each launcher, the surest first. size and rank must both be there and make sense. */
static const struct {
    MoeLaunchKind kind;
    const char *size, *rank, *local_rank, *local_size;
    const char *also; /* must be set too; NULL: nothing */
} launchers[] = {
    {MOE_LAUNCH_MPIRUN, "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK",
     "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE", NULL},
    {MOE_LAUNCH_MPIRUN, "PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", NULL},
    {MOE_LAUNCH_TORCHRUN, "WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"},
    /* Of a step, so that the shell of an allocation, with SLURM_NTASKS and no tasks, is none. The tasks of a node are not
     * a number: "2(x3),1". */
    {MOE_LAUNCH_SLURM, "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", NULL,
     "SLURM_STEP_ID"},
};

static bool read_number(const char *name, int *out) {
    const char *text = name ? getenv(name) : NULL;
    int64_t v;
    if (!text || !moe_parse_i64(text, &v) || v < 0 || v > 1 << 20)
        return false;
    *out = (int)v;
    return true;
}

MoeLaunchInfo moe_launch_detect(void) {
    for (size_t i = 0; i < sizeof launchers / sizeof *launchers; i++) {
        MoeLaunchInfo l = {.kind = launchers[i].kind, .variables = launchers[i].size};
        if (!read_number(launchers[i].size, &l.size) || !read_number(launchers[i].rank, &l.rank) ||
            l.rank >= l.size || (launchers[i].also && !getenv(launchers[i].also)))
            continue;
        /* `srun --pty bash`: one task, whose programs start ranks themselves. */
        if (l.kind == MOE_LAUNCH_SLURM && l.size == 1)
            continue;
        if (!read_number(launchers[i].local_rank, &l.local_rank))
            l.local_rank = -1;
        if (!read_number(launchers[i].local_size, &l.local_size) || l.local_size > l.size)
            l.local_size = 0;
        return l;
    }
    return (MoeLaunchInfo){
        .kind = MOE_LAUNCH_NONE, .size = 1, .local_rank = 0, .local_size = 1, .variables = ""};
}

const char *moe_launch_name(MoeLaunchKind k) {
    switch (k) {
    case MOE_LAUNCH_NONE:
        return "no launcher";
    case MOE_LAUNCH_MPIRUN:
        return "mpirun";
    case MOE_LAUNCH_SLURM:
        return "Slurm";
    case MOE_LAUNCH_TORCHRUN:
        return "torchrun";
    }
    return "?";
}

static MoeCommKind automatic(int plan_ranks, const MoeLaunchInfo *l) {
    if (plan_ranks == 1 && l->size == 1)
        return MOE_COMM_SELF;
    switch (l->kind) {
    case MOE_LAUNCH_MPIRUN:
    case MOE_LAUNCH_SLURM:
        return MOE_COMM_MPI;
    case MOE_LAUNCH_TORCHRUN:
        return MOE_COMM_TCP;
    case MOE_LAUNCH_NONE:
        break;
    }
    return MOE_COMM_THREADS;
}

static bool by_name(const char *choice, MoeCommKind *out) {
    static const char *const names[] = {
        [MOE_COMM_SELF] = "self",
        [MOE_COMM_THREADS] = "threads",
        [MOE_COMM_MPI] = "mpi",
        [MOE_COMM_TCP] = "tcp",
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(choice, names[i]) == 0) {
            *out = (MoeCommKind)i;
            return true;
        }
    return false;
}

/* Each process would be a whole run of its own, all writing the same files. */
static MoeStatus check_in_process(const char *choice, int plan_ranks, const MoeLaunchInfo *l,
                                  MoeCommKind kind) {
    if (l->size > 1)
        return moe_error(
            MOE_E_MISUSE,
            "--comm %s puts all ranks into one process, but %s started %d (%s); leave it out, "
            "or start one process",
            choice, moe_launch_name(l->kind), l->size, l->variables);
    if (kind == MOE_COMM_SELF && plan_ranks != 1)
        return moe_error(MOE_E_MISUSE,
                         "--comm self is one rank, but the plan is for %d; use "
                         "--comm threads, or start %d processes with mpirun",
                         plan_ranks, plan_ranks);
    return NULL;
}

static MoeStatus check_processes(const char *choice, int plan_ranks, const MoeLaunchInfo *l) {
    if (l->kind == MOE_LAUNCH_NONE && plan_ranks > 1)
        return moe_error(
            MOE_E_MISUSE,
            "--comm %s needs a process a rank: start %d with \"mpirun -n %d moec ...\"%s", choice,
            plan_ranks, plan_ranks, strcmp(choice, "tcp") == 0 ? " or torchrun" : "");
    if (l->size != plan_ranks)
        return moe_error(
            MOE_E_MISUSE,
            "the plan is for %d ranks, but %s started %d processes (%s=%d); start %d, or compile "
            "the plan with --ranks %d",
            plan_ranks, moe_launch_name(l->kind), l->size, l->variables, l->size, plan_ranks,
            l->size);
    return NULL;
}

MoeStatus moe_comm_choose(const char *choice, int plan_ranks, const MoeLaunchInfo *launch,
                          MoeCommKind *out) {
    if (!choice || strcmp(choice, "auto") == 0)
        *out = automatic(plan_ranks, launch);
    else if (!by_name(choice, out))
        return moe_error(MOE_E_MISUSE, "--comm %s: expected auto, self, threads, mpi or tcp",
                         choice);
    bool in_process = *out == MOE_COMM_SELF || *out == MOE_COMM_THREADS;
    return in_process ? check_in_process(choice, plan_ranks, launch, *out)
                      : check_processes(choice ? choice : "auto", plan_ranks, launch);
}

/* The processes that MPI sees must be those that the launcher started. */
static MoeStatus open_mpi(const MoeLaunchInfo *l, MoeComm **out) {
    MOE_TRY(moe_comm_mpi(out));
    if ((*out)->size == l->size)
        return NULL;
    MoeStatus st = moe_error(
        MOE_E_INPUT,
        "%s started %d processes (%s), but MPI sees %d; is moec's MPI plugin built with the MPI "
        "that this launcher belongs to%s?",
        moe_launch_name(l->kind), l->size, l->variables, (*out)->size,
        l->kind == MOE_LAUNCH_SLURM ? ", and srun called with --mpi=pmix" : "");
    moe_comm_destroy(*out);
    *out = NULL;
    return st;
}

MoeStatus moe_comm_open(MoeCommKind kind, const MoeLaunchInfo *launch, double silence_limit,
                        MoeComm **out) {
    *out = NULL;
    switch (kind) {
    case MOE_COMM_SELF:
        MOE_TRY(moe_comm_self(out));
        break;
    case MOE_COMM_MPI:
        MOE_TRY(open_mpi(launch, out));
        break;
    case MOE_COMM_TCP:
        MOE_TRY(moe_comm_tcp(launch->rank, launch->size, silence_limit, out));
        break;
    case MOE_COMM_THREADS:
        return moe_error(MOE_E_INTERNAL, "moe_comm_open makes one rank; use moe_comm_threads");
    }
    (*out)->silence_limit = silence_limit;
    return NULL;
}

bool moe_launch_bound(void) {
    cpu_set_t mine, parents;
    return !sched_getaffinity(0, sizeof mine, &mine) &&
           !sched_getaffinity(getppid(), sizeof parents, &parents) && !CPU_EQUAL(&mine, &parents);
}

void moe_launch_say(MoeComm *comm, MoeStatus st) {
    if (!moe_status_is_told(st) && comm->rank > 0)
        st = moe_status_prefix(st, "rank %d", comm->rank);
    moe_log_error(st);
    moe_status_free(moe_comm_barrier(comm, "the end"));
}
