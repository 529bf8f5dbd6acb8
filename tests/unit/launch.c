/* runtime/launch.h: what the variables of launchers say, and which communicator follows for a plan. */
#include <check.h>
#include <stdlib.h>

#include "runtime/launch.h"
#include "tests/support/check_main.h"
#include "tests/support/status_checks.h"

/* NULL-terminated pairs of name and value; everything that a launcher sets is unset before. */
static MoeLaunchInfo with(const char *const *vars) {
    static const char *const known[] = {"OMPI_COMM_WORLD_SIZE",
                                        "OMPI_COMM_WORLD_RANK",
                                        "OMPI_COMM_WORLD_LOCAL_RANK",
                                        "OMPI_COMM_WORLD_LOCAL_SIZE",
                                        "PMI_SIZE",
                                        "PMI_RANK",
                                        "MPI_LOCALRANKID",
                                        "MPI_LOCALNRANKS",
                                        "WORLD_SIZE",
                                        "RANK",
                                        "LOCAL_RANK",
                                        "LOCAL_WORLD_SIZE",
                                        "MASTER_ADDR",
                                        "MASTER_PORT",
                                        "SLURM_STEP_NUM_TASKS",
                                        "SLURM_NTASKS",
                                        "SLURM_PROCID",
                                        "SLURM_LOCALID",
                                        "SLURM_STEP_ID"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        unsetenv(known[i]);
    for (; *vars; vars += 2)
        setenv(vars[0], vars[1], 1);
    return moe_launch_detect();
}
#define WITH(...)            with((const char *const[]){__VA_ARGS__, NULL})
#define MPIRUN(size, rank)   WITH("OMPI_COMM_WORLD_SIZE", size, "OMPI_COMM_WORLD_RANK", rank)
#define TORCHRUN(size, rank) WITH("WORLD_SIZE", size, "RANK", rank, "MASTER_ADDR", "127.0.0.1")
#define SLURM(size, rank)                                                                          \
    WITH("SLURM_STEP_NUM_TASKS", size, "SLURM_PROCID", rank, "SLURM_STEP_ID", "0")

static void is(MoeLaunchInfo l, MoeLaunchKind kind, int size, int rank) {
    ck_assert_str_eq(moe_launch_name(l.kind), moe_launch_name(kind));
    ck_assert_int_eq(l.size, size);
    ck_assert_int_eq(l.rank, rank);
}

START_TEST(detects) {
    is(WITH("HOME", "/"), MOE_LAUNCH_NONE, 1, 0);
    is(MPIRUN("8", "3"), MOE_LAUNCH_MPIRUN, 8, 3);
    is(WITH("PMI_SIZE", "4", "PMI_RANK", "0"), MOE_LAUNCH_MPIRUN, 4, 0);
    is(TORCHRUN("4", "2"), MOE_LAUNCH_TORCHRUN, 4, 2);
    is(SLURM("16", "15"), MOE_LAUNCH_SLURM, 16, 15);
    /* mpirun inside an allocation: mpirun's own count. */
    is(WITH("OMPI_COMM_WORLD_SIZE", "2", "OMPI_COMM_WORLD_RANK", "1", "SLURM_STEP_NUM_TASKS", "4",
            "SLURM_PROCID", "0", "SLURM_STEP_ID", "0"),
       MOE_LAUNCH_MPIRUN, 2, 1);
}
END_TEST

START_TEST(detects_nothing_where_there_is_nothing) {
    is(WITH("SLURM_NTASKS", "8", "SLURM_PROCID", "0"), MOE_LAUNCH_NONE, 1, 0); /* a batch script */
    is(SLURM("1", "0"), MOE_LAUNCH_NONE, 1, 0);                                /* srun --pty bash */
    is(WITH("WORLD_SIZE", "4", "RANK", "1"), MOE_LAUNCH_NONE, 1, 0);           /* nowhere to meet */
    is(WITH("RANK", "1", "MASTER_ADDR", "a"), MOE_LAUNCH_NONE, 1, 0);
    is(MPIRUN("2", "2"), MOE_LAUNCH_NONE, 1, 0);
    is(MPIRUN("x", "0"), MOE_LAUNCH_NONE, 1, 0);
    is(MPIRUN("-1", "0"), MOE_LAUNCH_NONE, 1, 0);
    is(MPIRUN("99999999999999", "0"), MOE_LAUNCH_NONE, 1, 0);
    is(MPIRUN("", ""), MOE_LAUNCH_NONE, 1, 0);
}
END_TEST

START_TEST(knows_the_host) {
    MoeLaunchInfo l = WITH("OMPI_COMM_WORLD_SIZE", "8", "OMPI_COMM_WORLD_RANK", "5",
                           "OMPI_COMM_WORLD_LOCAL_RANK", "1", "OMPI_COMM_WORLD_LOCAL_SIZE", "4");
    ck_assert_int_eq(l.local_rank, 1);
    ck_assert_int_eq(l.local_size, 4);
    l = MPIRUN("8", "5");
    ck_assert_int_eq(l.local_rank, -1);
    ck_assert_int_eq(l.local_size, 0);
    l = WITH("HOME", "/");
    ck_assert_int_eq(l.local_rank, 0);
    ck_assert_int_eq(l.local_size, 1);
}
END_TEST

static MoeCommKind choose(const char *choice, int ranks, MoeLaunchInfo l) {
    MoeCommKind k = MOE_COMM_SELF;
    OK(moe_comm_choose(choice, ranks, &l, &k));
    return k;
}

START_TEST(chooses) {
    MoeLaunchInfo none = WITH("HOME", "/");
    ck_assert_int_eq(choose("auto", 1, none), MOE_COMM_SELF);
    ck_assert_int_eq(choose(NULL, 4, none), MOE_COMM_THREADS);
    ck_assert_int_eq(choose("threads", 4, none), MOE_COMM_THREADS);
    ck_assert_int_eq(choose("auto", 4, MPIRUN("4", "0")), MOE_COMM_MPI);
    ck_assert_int_eq(choose("auto", 1, MPIRUN("1", "0")), MOE_COMM_SELF);
    ck_assert_int_eq(choose("threads", 4, MPIRUN("1", "0")), MOE_COMM_THREADS);
    ck_assert_int_eq(choose("tcp", 4, MPIRUN("4", "0")), MOE_COMM_TCP);
    ck_assert_int_eq(choose("auto", 4, TORCHRUN("4", "0")), MOE_COMM_TCP);
    ck_assert_int_eq(choose("mpi", 4, TORCHRUN("4", "0")), MOE_COMM_MPI);
    ck_assert_int_eq(choose("auto", 4, SLURM("4", "0")), MOE_COMM_MPI);
}
END_TEST

static void refuses(const char *choice, int ranks, MoeLaunchInfo l, const char *a, const char *b) {
    MoeCommKind k;
    FAILS(moe_comm_choose(choice, ranks, &l, &k), MOE_E_MISUSE, a, b);
}

START_TEST(refuses_what_does_not_fit) {
    MoeLaunchInfo none = WITH("HOME", "/");
    refuses("mpi", 4, none, "--comm mpi", "mpirun -n 4");
    refuses("tcp", 4, none, "--comm tcp", "torchrun");
    refuses("self", 4, none, "--comm self", "4");
    refuses("nccl", 4, none, "--comm nccl", "threads");
    refuses("auto", 4, MPIRUN("2", "0"), "for 4 ranks", "mpirun started 2");
    refuses("auto", 1, MPIRUN("2", "0"), "for 1 rank", "OMPI_COMM_WORLD_SIZE=2");
    refuses("auto", 4, MPIRUN("1", "0"), "for 4 ranks", "mpirun started 1");
    refuses("auto", 4, TORCHRUN("8", "0"), "for 4 ranks", "torchrun started 8");
    refuses("threads", 4, MPIRUN("4", "0"), "--comm threads", "mpirun started 4");
    refuses("threads", 4, SLURM("4", "0"), "one process", "Slurm started 4");
}
END_TEST

/* In a process of its own a communicator of one rank is there at once, also over TCP. */
START_TEST(opens) {
    MoeLaunchInfo l = WITH("HOME", "/");
    MoeComm *c;
    OK(moe_comm_open(MOE_COMM_SELF, &l, 3, &c));
    ck_assert_int_eq(c->size, 1);
    ck_assert(c->silence_limit == 3);
    moe_comm_destroy(c);
    OK(moe_comm_open(MOE_COMM_TCP, &l, 3, &c));
    ck_assert_str_eq(c->ops->name, "tcp");
    OK(moe_comm_barrier(c, "alone"));
    moe_comm_destroy(c);
    setenv("MASTER_PORT", "70000", 1);
    FAILS(moe_comm_open(MOE_COMM_TCP, &l, 3, &c), MOE_E_INPUT, "MASTER_PORT", "70000");
    FAILS(moe_comm_open(MOE_COMM_THREADS, &l, 3, &c), MOE_E_INTERNAL, "moe_comm_threads");
}
END_TEST

int main(void) {
    Suite *s = suite_create("launch");
    TCase *t = tcase_create("launch");
    tcase_add_test(t, detects);
    tcase_add_test(t, detects_nothing_where_there_is_nothing);
    tcase_add_test(t, knows_the_host);
    tcase_add_test(t, chooses);
    tcase_add_test(t, refuses_what_does_not_fit);
    tcase_add_test(t, opens);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
