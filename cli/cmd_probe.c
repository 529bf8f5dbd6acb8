/* moec probe -o cluster.json: measures what this machine, or what a launcher's processes run on, computes and carries, as a cluster
 * file. Alone, ranks are threads of this process; under mpirun, srun or torchrun they are its processes. */
#include "cli/commands.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/io.h"
#include "base/pool.h"
#include "cli/probe.h"
#include "runtime/launch.h"
#include "runtime/ranks.h"

enum { SILENCE = 15 }; /* seconds without a sign of life of a process after which the others give up */

typedef struct {
    const char *path;
    int threads; /* of a rank; 0: the host's cores, shared out */
    bool quiet, processes;
    MoeProbeModel models[MOE_PROBE_MODELS];
    int n_models;
    double start;
} Probe;

static void say_rates(const MoeRates *r) {
    printf("compute of a rank, %d thread%s:\n", r->threads, r->threads == 1 ? "" : "s");
    for (int i = 0; i < MOE_N_RATES; i++) {
        const MoeRateTable *t = &r->tables[i];
        bool flops = moe_rate_in_flops((MoeRateName)i);
        if (t->n)
            printf("  %-14s", moe_rate_name((MoeRateName)i));
        for (int k = t->n > 5 ? t->n - 5 : 0; k < t->n; k++)
            printf("  %.3g %s: %.1f", t->at[k].size / 1e6, flops ? "MFLOP" : "MB", t->at[k].rate / 1e9);
        if (t->n)
            printf("  %s\n", flops ? "GFLOP/s" : "GB/s");
    }
}

static void say_link(const char *what, const MoeLink *l) {
    printf("%s: latency %.1f us, bandwidth %.2f GB/s of a rank, each way\n", what, 1e6 * l->latency, l->bandwidth / 1e9);
}

static void say(const Probe *p, const MoeCluster *c) {
    printf("%d rank%s on %d host%s%s\n", moe_cluster_ranks(c), moe_cluster_ranks(c) == 1 ? "" : "s", c->nodes,
           c->nodes == 1 ? "" : "s", p->processes ? "" : ", threads of this process");
    say_rates(&c->rates);
    if (c->ranks_per_node > 1) {
        say_link("links inside a host", &c->links[MOE_LINK_INTRA]);
        printf("  %s\n", c->by_cores ? "ranks' own cores carry: nothing is computed beside" : "beside them ranks compute");
    }
    if (c->nodes > 1)
        say_link("links between hosts", &c->links[MOE_LINK_INTER]);
    printf("%s written, %.1f s; 'moec compile --cluster %s' plans for it\n", p->path, moe_now() - p->start, p->path);
}

static MoeStatus write_cluster(const char *path, const MoeCluster *c) {
    json_t *o = moe_cluster_json(c);
    MoeStr text = {0};
    json_object_set_new(o, "note", json_string("measured by moec probe"));
    moe_json_dump(o, &text);
    json_decref(o);
    MoeStatus st = moe_file_write_atomic(path, moe_str_c(&text), text.len);
    moe_str_free(&text);
    return st;
}

/* Before anything is measured: whether the file's directory can be written to. */
static MoeStatus check_place(const char *path) {
    char *dir = strdup(path), *slash = strrchr(dir, '/');
    if (slash)
        slash[slash == dir] = 0;
    MoeStatus st = access(slash ? dir : ".", W_OK) ? moe_error_errno("%s", slash ? dir : ".") : NULL;
    free(dir);
    return st;
}

/* Of the ranks' rates, rank 0's go into the file: ranks are taken to be alike. */
static MoeStatus probe_rank(void *ctx, MoeComm *comm) {
    const Probe *p = ctx;
    MoeCluster c = {0};
    double memory = 0;
    MOE_TRY(moe_probe_links(comm, &c));
    int sharing = p->processes && moe_launch_bound() ? 1 : c.ranks_per_node;
    int threads = p->threads ? p->threads : moe_cpu_count() / sharing;
    MOE_TRY(moe_probe_compute(p->models, p->n_models, threads > 1 ? threads : 1, comm, &c.rates));
    MOE_TRY(moe_probe_memory(comm, &memory));
    c.rates.tables[MOE_RATE_copy] = (MoeRateTable){1, {{1, memory}}};
    MoeStatus st = comm->rank == 0 ? write_cluster(p->path, &c) : NULL;
    if (!st && comm->rank == 0 && !p->quiet)
        say(p, &c);
    return moe_comm_agree(comm, st, "writing the cluster file");
}

/* This process is a rank among others. All give up together, where one has a reason to: rank 0 alone writes, so the file's place is
 * its host's. */
static MoeStatus probe_process(Probe *p, const char *target, MoeComm *comm) {
    MoeStatus st = comm->rank == 0 ? check_place(p->path) : NULL;
    st = moe_comm_agree(comm, st, "the cluster file");
    if (!st)
        st = moe_comm_agree(comm, moe_probe_models(target, p->models, &p->n_models), "the models");
    if (st) {
        moe_launch_say(comm, st);
        return st;
    }
    return probe_rank(p, comm);
}

/* Ranks are threads of this process. */
static MoeStatus probe_threads(Probe *p, const char *target, int ranks) {
    MOE_TRY(check_place(p->path));
    MOE_TRY(moe_probe_models(target, p->models, &p->n_models));
    return moe_ranks_run(ranks, 0, probe_rank, p);
}

MoeStatus moe_cmd_probe(const MoeOptions *o) {
    MOE_TRY(moe_options_expect(o, 0));
    int64_t ranks = moe_opt_i(o, OPT_PROBE_RANKS), threads = moe_opt_i(o, OPT_THREADS);
    Probe p = {.path = moe_opt(o, OPT_CLUSTER_OUT), .threads = (int)threads, .quiet = moe_opt_b(o, OPT_QUIET),
               .start = moe_now()};
    MoeLaunchInfo launch = moe_launch_detect();
    MoeCommKind kind;
    if (!*p.path)
        return moe_error(MOE_E_MISUSE, "moec probe: -o cluster.json says where the cluster file goes");
    if (ranks < 0 || ranks > MOE_MAX_RANKS || threads < 0 || threads > 1 << 16)
        return moe_error(MOE_E_MISUSE, "moec probe: --ranks 0 to %d, --threads 0 to 65536", MOE_MAX_RANKS);
    p.processes = launch.size > 1;
    if (p.processes && ranks && ranks != launch.size)
        return moe_error(MOE_E_MISUSE, "--ranks %lld: %s started %d processes; leave --ranks out", (long long)ranks,
                         moe_launch_name(launch.kind), launch.size);
    int n = p.processes ? launch.size : ranks ? (int)ranks : moe_cpu_count();
    MOE_TRY(moe_comm_choose("auto", n, &launch, &kind));
    const char *target = moe_opt(o, OPT_TARGET);
    MoeComm *comm = NULL;
    MoeStatus st = p.processes ? moe_comm_open(kind, &launch, SILENCE, &comm) : probe_threads(&p, target, n);
    if (comm)
        st = probe_process(&p, target, comm);
    moe_comm_destroy(comm);
    moe_probe_models_free(p.models, p.n_models);
    return st;
}
