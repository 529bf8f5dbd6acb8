/* How fast kernels run: small models of several sizes and types are compiled as any other and trained for a few steps; each kernel's
 * median time, together with the FLOPs and bytes that the cost model counts for it, makes a point. Steps of one kind and about one
 * size are one point of its table. Ranks of a host share its memory: they start each kernel together, and it is the median that counts,
 * as a rank's best time is that in which the others left the memory to it. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/io.h"
#include "base/rng.h"
#include "cli/probe.h"
#include "passes/cost.h"
#include "runtime/exec.h"
#include "runtime/init.h"

/* turns: steps of training that count; one more goes before them */
static const struct {
    const char *name;
    int hidden, intermediate, heads, batch, seq, turns;
    bool bf16;
} sizes[] = {{"hidden 128, f32", 128, 256, 4, 4, 128, 5, false},    {"hidden 256, f32", 256, 512, 4, 8, 128, 5, false},
             {"hidden 512, f32", 512, 1024, 8, 4, 256, 5, false},   {"hidden 128, bf16", 128, 256, 4, 4, 128, 5, true},
             {"hidden 512, bf16", 512, 1024, 8, 4, 256, 5, true}};
enum { MOST_TURNS = 8 };
#define N_SIZES ((int)(sizeof sizes / sizeof sizes[0]))
_Static_assert(sizeof sizes / sizeof sizes[0] <= MOE_PROBE_MODELS, "room for all models");

/* ---- models ---- */

static MoeStatus write_config(int i, const char *path) {
    char text[1024];
    snprintf(text, sizeof text,
             "{\"architectures\": [\"MixtralForCausalLM\"], \"model_type\": \"mixtral\", \"vocab_size\": 2048, \"hidden_size\": %d, "
             "\"intermediate_size\": %d, \"num_hidden_layers\": 2, \"num_attention_heads\": %d, \"num_key_value_heads\": 2, "
             "\"num_local_experts\": 8, \"num_experts_per_tok\": 2, \"max_position_embeddings\": 512, \"output_router_logits\": true, "
             "\"router_aux_loss_coef\": 0.02, \"rope_theta\": 10000.0, \"rms_norm_eps\": 1e-5}",
             sizes[i].hidden, sizes[i].intermediate, sizes[i].heads);
    return moe_file_write_atomic(path, text, strlen(text));
}

static MoeStatus compile(int i, const char *path, const char *target, MoeProbeModel *out) {
    MoeDriverOptions d;
    moe_driver_defaults(&d);
    d.model = path;
    d.target = target;
    d.quiet = true;
    d.frontend.batch = sizes[i].batch;
    d.frontend.seq = sizes[i].seq;
    d.frontend.mixed_from_config = false;
    d.frontend.mixed_bf16 = sizes[i].bf16;
    d.pass.recompute = MOE_RECOMPUTE_NONE;
    d.pipeline.verify_each = false;
    out->name = sizes[i].name;
    MOE_TRY(write_config(i, path));
    MOE_TRY(moe_driver_compile(&d, &out->compiled));
    return moe_driver_load(&out->compiled, &out->plan);
}

MoeStatus moe_probe_models(const char *target, MoeProbeModel models[MOE_PROBE_MODELS], int *n) {
    const char *tmp = getenv("TMPDIR");
    MoeStr dir = {0};
    moe_str_printf(&dir, "%s/moec-probe-%ld", tmp && *tmp ? tmp : "/tmp", (long)getpid());
    *n = 0;
    MoeStatus st = moe_dir_make(moe_str_c(&dir));
    char *path = moe_path_join(moe_str_c(&dir), "config.json");
    for (int i = 0; i < N_SIZES && !st; i++) {
        models[i] = (MoeProbeModel){0};
        *n = i + 1;
        st = compile(i, path, target, &models[i]);
    }
    MoeStatus gone = moe_dir_remove(moe_str_c(&dir));
    if (st)
        moe_status_free(gone);
    free(path);
    moe_str_free(&dir);
    return st ? st : gone;
}

void moe_probe_models_free(MoeProbeModel *models, int n) {
    for (int i = 0; i < n; i++) {
        if (models[i].plan)
            moe_plan_free(models[i].plan);
        if (models[i].compiled.arena)
            moe_driver_free(&models[i].compiled);
    }
}

/* ---- points ---- */

/* Steps of one kind whose sizes are within a factor of four: their sizes and seconds, added up. */
enum { BUCKETS = 40 };
typedef struct {
    double size[MOE_N_RATES][BUCKETS], seconds[MOE_N_RATES][BUCKETS];
    int n[MOE_N_RATES][BUCKETS];
} Points;

static void add_point(Points *p, MoeRateName name, double size, double seconds) {
    if (!(size > 0) || !(seconds > 0) || !isfinite(seconds))
        return;
    int b = (int)floor(log(size) / log(4.0));
    b = b < 0 ? 0 : b >= BUCKETS ? BUCKETS - 1 : b;
    p->size[name][b] += size;
    p->seconds[name][b] += seconds;
    p->n[name][b]++;
}

static void table_of(const Points *p, MoeRateName name, MoeRateTable *out) {
    int first = 0, n = 0;
    for (int b = 0; b < BUCKETS; b++)
        n += p->n[name][b] > 0;
    for (; n > MOE_RATE_POINTS; first++) /* the smallest matter least */
        n -= p->n[name][first] > 0;
    out->n = 0;
    for (int b = first; b < BUCKETS; b++)
        if (p->n[name][b]) {
            out->at[out->n].size = p->size[name][b] / p->n[name][b];
            out->at[out->n++].rate = p->size[name][b] / p->seconds[name][b];
        }
}

/* ---- measuring ---- */

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Of n steps' seconds in `turns` turns, [turns][n], each step's median. */
static void medians(const double *all, size_t n, int turns, double *out) {
    double of[MOST_TURNS];
    for (size_t i = 0; i < n; i++) {
        for (int t = 0; t < turns; t++)
            of[t] = all[(size_t)t * n + i];
        qsort(of, (size_t)turns, sizeof *of, compare);
        out[i] = (of[(turns - 1) / 2] + of[turns / 2]) / 2;
    }
}

/* A turn's seconds by step, and the ranks that take it with this one. */
typedef struct {
    MoeComm *comm;
    double *seconds;
    MoeStatus failed;
} Turn;

/* Called behind each step: the next one starts when all ranks are there. */
static void step_ended(void *ctx, const MoeExecSpan *span) {
    Turn *t = ctx;
    t->seconds[span->step] = span->end - span->begin;
    if (!t->failed)
        t->failed = moe_comm_barrier(t->comm, "probe of compute");
}

/* Seconds of each of the plan's steps. */
static MoeStatus measure(const MoeProbeModel *m, int turns, int threads, MoeComm *comm, double *out) {
    MoeExec *x = NULL;
    const MoePlan *p = m->plan;
    const MoePlanProgram *g = moe_plan_program(p, "train");
    int64_t n = p->batch * p->seq;
    int32_t *ids = malloc(sizeof *ids * (size_t)(n + 1));
    double *all = calloc((g->n_steps + 1) * (size_t)turns, sizeof *all);
    Turn now = {.comm = comm};
    MoeStatus st = ids && all ? moe_exec_create(p, NULL, threads, &x) : moe_error(MOE_E_NOMEM, "no memory for tokens");
    for (int64_t i = 0; i <= n && !st; i++)
        ids[i] = (int32_t)moe_rng_below(1, 2, (uint64_t)i, (uint64_t)p->vocab_size);
    if (!st)
        st = moe_init_params(p, x, 1);
    if (!st)
        moe_exec_watch(x, step_ended, &now);
    for (int turn = 0; turn <= turns && !st; turn++) { /* the first finds all pages new */
        MoeBatch b = {ids, ids + 1, p->batch};
        MoeHyper h = {1e-4, 0.9, 0.95, 1e-8, 0.1, 1.0, turn + 1};
        MoeStepResult r;
        now.seconds = all + (size_t)(turn > 0 ? turn - 1 : 0) * g->n_steps;
        st = moe_exec_train_step(x, &b, &h, &r);
        if (st)
            moe_status_free(now.failed);
        else
            st = now.failed;
    }
    if (!st)
        medians(all, g->n_steps, turns, out);
    if (x)
        moe_exec_destroy(x);
    free(all);
    free(ids);
    return st;
}

/* Those of a product's launches that pack its weights are the last but one, or two: points of their own. Their seconds. */
static double add_packs(const MoeStep *s, const double *took, Points *points) {
    double sum = 0;
    size_t n = 0, at;
    for (size_t i = 0; i < s->group.n_ops; i++)
        n += moe_op_packed_bytes(s->group.ops[i]) > 0;
    if (!n || s->lowered.n_launches <= n)
        return 0;
    at = s->lowered.n_launches - 1 - n;
    for (size_t i = 0; i < s->group.n_ops; i++) {
        double bytes = moe_op_packed_bytes(s->group.ops[i]);
        if (!(bytes > 0))
            continue;
        add_point(points, MOE_RATE_pack, bytes, took[at]);
        sum += took[at++];
    }
    return sum;
}

/* A group is one step of the plan for each of its launches. */
static void add_model(const MoeProbeModel *m, const double *took, Points *points) {
    const MoeProgram *p = NULL;
    for (size_t i = 0; i < m->compiled.module->n_graphs; i++)
        if (strcmp(m->compiled.module->graphs[i]->name, "train") == 0)
            p = &m->compiled.cx.programs[i];
    size_t at = 0;
    for (size_t i = 0; p && i < p->n_steps; i++) {
        const MoeStep *s = &p->steps[i];
        double seconds = -add_packs(s, took + at, points);
        for (size_t k = 0; k < s->lowered.n_launches; k++)
            seconds += took[at++];
        MoeRateName name = moe_group_rate(&s->group);
        add_point(points, name, moe_rate_in_flops(name) ? s->flops : s->bytes, seconds);
    }
}

MoeStatus moe_probe_compute(const MoeProbeModel *models, int n, int threads, MoeComm *comm, MoeRates *out) {
    Points *points = calloc(1, sizeof *points);
    MoeStatus st = points ? NULL : moe_error(MOE_E_NOMEM, "no memory for measurements");
    for (int i = 0; i < n && !st; i++) {
        double *took = calloc(moe_plan_program(models[i].plan, "train")->n_steps + 1, sizeof *took);
        st = took ? measure(&models[i], sizes[i].turns, threads, comm, took)
                  : moe_error(MOE_E_NOMEM, "no memory for measurements");
        if (!st)
            add_model(&models[i], took, points);
        free(took);
    }
    *out = (MoeRates){.threads = threads};
    for (int i = 0; i < MOE_N_RATES && !st; i++)
        table_of(points, (MoeRateName)i, &out->tables[i]);
    free(points);
    return st;
}
