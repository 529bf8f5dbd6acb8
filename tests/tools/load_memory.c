/* How much memory a rank takes while it loads: started once a rank (bench/load_memory).
 *
 *   load_memory COMM PLAN save RUN      seeded weights and moments, saved as step 1 of the run
 *   load_memory COMM PLAN load RUN      its newest checkpoint
 *   load_memory COMM PLAN import DIR    weights from a Hugging Face directory
 *
 * load and import print a line from each rank: its own shard, what the process took at most, and how much more that is than
 * the shard, all in bytes. The plan's kernels are not linked: nothing is run. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

#include "base/io.h"
#include "base/mem.h"
#include "base/rng.h"
#include "runtime/checkpoint.h"
#include "runtime/init.h"
#include "runtime/launch.h"
#include "runtime/weights.h"

static MoeStatus open_plan(const char *dir, MoePlan **out) {
    char *path = moe_path_join(dir, "plan.json"), *text = NULL;
    size_t n;
    MoeStatus st = moe_file_read(path, (size_t)1 << 28, &text, &n);
    if (!st)
        st = moe_plan_load_memory(text, n, path, NULL, 0, out);
    free(text);
    free(path);
    return st;
}

static MoeStatus join(const char *name, int ranks, MoeComm **out) {
    MoeLaunchInfo launch = moe_launch_detect();
    MoeCommKind kind;
    MOE_TRY(moe_comm_choose(name, ranks, &launch, &kind));
    return moe_comm_open(kind, &launch, 60, out);
}

/* Bytes of the pieces that this rank has: weights, and states. */
static MoeStatus shard_bytes(const MoePlan *plan, const MoeExec *x, bool states, int64_t *out) {
    MoeWeightList list;
    MOE_TRY(moe_weight_list(plan, x, &list));
    *out = 0;
    for (size_t i = 0; i < list.n; i++) {
        const MoeWeight *w = &list.items[i];
        *out += w->piece.count * 4 * (1 + (states ? (int64_t)plan->params[w->param].n_states : 0));
    }
    moe_weight_list_free(&list);
    return NULL;
}

static MoeStatus save(const MoePlan *plan, MoeExec *x, const char *run) {
    MoeTrainState state = {.step = 1};
    MOE_TRY(moe_init_params(plan, x, 1));
    for (size_t i = 0; i < plan->n_params; i++)
        for (size_t k = 0; k < plan->params[i].n_states; k++) {
            int b = plan->params[i].states[k].buffer;
            float *to = moe_exec_buffer(x, b), *from = moe_exec_buffer(x, plan->params[i].buffer);
            for (int64_t e = 0; e < plan->buffers[b].elements; e++)
                to[e] = from[e] * (float)(k + 2);
        }
    return moe_checkpoint_save(plan, x, run, &state);
}

/* From now on the peak is counted anew. */
static MoeStatus reset_peak(void) {
    FILE *f = fopen("/proc/self/clear_refs", "w");
    bool good = f && fputs("5", f) >= 0;
    if ((f && fclose(f)) || !good)
        return moe_error_errno("cannot reset the peak of this process's memory");
    return NULL;
}

static MoeStatus measure(const MoePlan *plan, MoeExec *x, const char *what, const char *path) {
    bool found = false, import = !strcmp(what, "import");
    int64_t shard;
    MOE_TRY(shard_bytes(plan, x, !import, &shard));
    MOE_TRY(reset_peak());
    size_t before = moe_rss_bytes();
    MOE_TRY(import ? moe_weights_load(plan, x, path)
                   : moe_checkpoint_load_newest(plan, x, path, true, NULL, &found));
    size_t peak = moe_rss_peak_bytes();
    if (!import && !found)
        return moe_error(MOE_E_INPUT, "%s holds no checkpoint", path);
    char line[200];
    int n = snprintf(line, sizeof line, "rank %d shard %lld before %zu peak %zu above %lld\n",
                     moe_exec_rank(x), (long long)shard, before, peak,
                     (long long)peak - (long long)shard);
    fwrite(line, 1, (size_t)n, stdout); /* in one piece: all ranks print to one file */
    fflush(stdout);
    return NULL;
}

int main(int argc, char **argv) {
    MoePlan *plan = NULL;
    MoeComm *comm = NULL;
    MoeExec *x = NULL;
    MoeStatus st = NULL;
    if (argc != 5 ||
        (strcmp(argv[3], "save") && strcmp(argv[3], "load") && strcmp(argv[3], "import"))) {
        fprintf(stderr, "usage: load_memory COMM PLAN save|load|import PATH\n");
        return 2;
    }
    prctl(PR_SET_THP_DISABLE, 1, 0, 0,
          0); /* a huge page counts as touched where nothing was written */
    MOE_TRY_GOTO(st, open_plan(argv[2], &plan), done);
    MOE_TRY_GOTO(st, join(argv[1], plan->ranks, &comm), done);
    MOE_TRY_GOTO(st, moe_exec_create(plan, comm, 1, &x), done);
    st = strcmp(argv[3], "save") ? measure(plan, x, argv[3], argv[4]) : save(plan, x, argv[4]);
    st = moe_comm_agree(comm, st, "the end");
done:
    if (st)
        fprintf(stderr, "load_memory: %s\n", moe_status_message(st));
    moe_exec_destroy(x);
    moe_comm_destroy(comm);
    moe_plan_free(plan);
    int code = moe_status_exit_code(st);
    moe_status_free(st);
    return code;
}
