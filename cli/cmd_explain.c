/* moec explain PLAN: where the time and memory of a plan are predicted to go, op by op; with --against RUN beside what a run of it and a
 * profiled step on this machine measured. */
#include "cli/commands.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "base/pool.h"
#include "base/rng.h"
#include "cli/driver.h"
#include "cli/explain_planner.h"
#include "cli/explain_ranks.h"
#include "cli/explain_step.h"
#include "runtime/exec.h"
#include "runtime/init.h"
#include "runtime/ranks.h"

/* Steps of one name and phase, added up over layers (name without its layer number). */
typedef struct {
    char name[96], kind[24];
    MoePlanPhase phase;
    int n;
    double flops, bytes, predicted, measured;
} Line;

typedef struct {
    const MoePlan *plan;
    const MoePlanProgram *program;
    Line *lines;
    size_t n_lines;
    double predicted, measured; /* seconds of a whole step (all micro-batches) */
    bool has_measured;
    MoeExplainMemory memory;
    MoeExplainTouched touched;
    double log_emulated; /* of the run's log, on emulated links: mean step; NAN = none */
    double loaded;       /* the step predicted for the run's own load; NAN = unknown */
    double log_seconds, log_memory, log_memory_max; /* of the run's log: median step, last memory; NAN = none */
    double *profile;
} Report;

static const char *const phase_names[] = {"forward", "backward", "reduce", "update"};

/* "layers.3.q_proj" -> "layers.*.q_proj" */
static void without_layer(const char *name, char *out, size_t n) {
    const char *p = strstr(name, "layers.");
    if (!p) {
        snprintf(out, n, "%s", name);
        return;
    }
    const char *rest = p + 7 + strspn(p + 7, "0123456789");
    snprintf(out, n, "%.*slayers.*%s", (int)(p - name), name, rest);
}

static void collect(Report *r) {
    const MoePlanProgram *p = r->program;
    r->lines = calloc(p->n_steps ? p->n_steps : 1, sizeof *r->lines);
    for (size_t i = 0; i < p->n_steps; i++) {
        const MoePlanStep *s = &p->steps[i];
        char name[96];
        without_layer(s->name, name, sizeof name);
        Line *line = NULL;
        for (size_t k = 0; k < r->n_lines && !line; k++)
            if (r->lines[k].phase == s->phase && strcmp(r->lines[k].name, name) == 0 &&
                strcmp(r->lines[k].kind, s->kind) == 0)
                line = &r->lines[k];
        if (!line) {
            line = &r->lines[r->n_lines++];
            snprintf(line->name, sizeof line->name, "%s", name);
            snprintf(line->kind, sizeof line->kind, "%s", s->kind);
            line->phase = s->phase;
        }
        double times = moe_explain_times(r->plan, p, s);
        line->n++;
        line->flops += times * s->flops;
        line->bytes += times * s->bytes;
        line->predicted += times * s->seconds;
        line->measured += r->profile ? r->profile[i] : 0; /* of all micro-batches */
        r->predicted += times * s->seconds;
        r->measured += r->profile ? r->profile[i] : 0;
    }
    if (p->predicted.seconds > 0) /* what overlaps counts once */
        r->predicted = p->predicted.seconds;
}

typedef struct {
    Report *report;
    const char *program;
    const int32_t *ids; /* [seqs, seq] and one more */
    int64_t seqs;
    int threads; /* of each rank */
    MoeDevicePlace device;
} Measure;

static MoeStatus run_once(MoeExec *x, const Measure *m, int turn) {
    MoeBatch b = {m->ids, m->ids + 1, m->seqs};
    MoeHyper h = {1e-4, 0.9, 0.95, 1e-8, 0.1, 1.0, turn + 1};
    MoeStepResult result;
    double nll;
    int64_t tokens;
    const float *logits;
    if (strcmp(m->program, "train") == 0)
        return moe_exec_train_step(x, &b, &h, &result);
    return strcmp(m->program, "eval") == 0 ? moe_exec_eval(x, &b, &nll, &tokens)
                                           : moe_exec_logits(x, &b, &logits);
}

/* The steps of the program, profiled: the best of three for each, on rank 0. */
static MoeStatus measure_rank(void *ctx, MoeComm *comm) {
    const Measure *m = ctx;
    Report *r = m->report;
    MoeExec *x = NULL;
    MOE_TRY(moe_exec_create_on(r->plan, comm, m->threads, &m->device, &x));
    MoeStatus st = moe_init_params(r->plan, x, 1);
    moe_exec_profile(x, true);
    for (int turn = 0; turn < 3 && !st; turn++) {
        st = run_once(x, m, turn);
        const double *seconds = moe_exec_profile_seconds(x, m->program);
        for (size_t i = 0; i < r->program->n_steps && !st && comm->rank == 0; i++)
            r->profile[i] = fmin(r->profile[i], seconds[i]);
    }
    moe_exec_destroy(x);
    return st;
}

/* On random tokens, with as many ranks as the plan has, of so many threads each. */
static MoeStatus measure(Report *r, int threads, MoeDevicePlace device, const char *program) {
    const MoePlan *plan = r->plan;
    Measure m = {r, program, NULL, strcmp(program, "logits") == 0 ? 1 : plan->batch, threads,
                 device};
    int64_t n = m.seqs * plan->seq;
    int32_t *ids = malloc(sizeof *ids * (size_t)(n + 1));
    r->profile = malloc(sizeof(double) * (r->program->n_steps + 1));
    for (int64_t i = 0; i <= n; i++)
        ids[i] = (int32_t)moe_rng_below(1, 2, (uint64_t)i, (uint64_t)plan->vocab_size);
    for (size_t i = 0; i < r->program->n_steps; i++)
        r->profile[i] = INFINITY;
    m.ids = ids;
    MoeStatus st = moe_ranks_run(plan->ranks, 0, measure_rank, &m);
    r->has_measured = !st;
    free(ids);
    return st;
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static MoeStatus read_log(Report *r, const char *run) {
    char *path = moe_path_join(run, "log.jsonl"), *text = NULL;
    size_t n = 0, count = 0, cap = 0, n_emulated = 0;
    double *seconds = NULL, emulated = 0;
    MoeStatus st = moe_file_read(path, (size_t)1 << 32, &text, &n);
    for (char *line = text; !st && line && *line;) {
        char *end = strchr(line, '\n');
        size_t len = end ? (size_t)(end - line) : strlen(line);
        json_t *json = json_loadb(line, len, 0, NULL);
        const json_t *s = json_object_get(json, "seconds");
        if (json_is_number(s)) {
            if (count == cap)
                seconds = realloc(seconds, sizeof *seconds * (cap = cap ? cap * 2 : 256));
            seconds[count++] = json_number_value(s);
        }
        const json_t *e = json_object_get(json, "emulated_seconds");
        if (json_is_number(e)) {
            emulated += json_number_value(e);
            n_emulated++;
        }
        const json_t *one = json_object_get(json, "memory_bytes"),
                     *max = json_object_get(json, "memory_bytes_max");
        if (json_is_number(one))
            r->log_memory = r->log_memory_max = json_number_value(one);
        if (json_is_number(max))
            r->log_memory_max = json_number_value(max);
        json_decref(json);
        line = end ? end + 1 : NULL;
    }
    if (!st && !count)
        st = moe_error(MOE_E_INPUT, "%s: no steps in it", path);
    if (!st) {
        qsort(seconds, count, sizeof *seconds, compare_doubles);
        r->log_seconds = seconds[count / 2];
        r->log_emulated = n_emulated ? emulated / (double)n_emulated : NAN;
    }
    free(seconds);
    free(text);
    free(path);
    return st;
}

static void print_memory_md(const Report *r) {
    const MoePlanProgram *p = r->program;
    const MoeExplainMemory *m = &r->memory;
    struct {
        const char *what;
        double bytes;
    } rows[] = {{"parameters (f32 masters)", m->parameters},
                {"optimiser state", m->states},
                {"gradients", m->gradients},
                {"activations", m->activations},
                {"workspace", m->workspace},
                {"other", m->other},
                {"communication buffers", m->communication},
                {"inputs", m->inputs},
                {"scratch of the threads", m->scratch},
                {"gaps in the slab", m->gaps},
                {"rows beyond balanced routing", m->uneven}};
    char text[32];
    bool elastic = p->elastic_bytes > 0;
    printf("\n| memory at the peak%s | bytes |\n|---|---:|\n",
           elastic ? ", the rank with the most" : r->plan->ranks > 1 ? ", each rank" : "");
    for (size_t i = 0; i < sizeof rows / sizeof *rows - !elastic; i++)
        printf("| %s | %s |\n", rows[i].what, moe_format_bytes(rows[i].bytes, text));
    double total = moe_explain_memory_total(m);
    printf("| **total** | %s |\n", moe_format_bytes(total, text));
    double slab = (double)(p->slab_bytes - p->elastic_bytes + p->elastic_expect);
    printf("\nslab %s, ", moe_format_bytes(slab, text));
    printf("lower bound %s, ratio %.3f", moe_format_bytes((double)p->slab_lower_bound, text),
           p->slab_lower_bound ? slab / (double)p->slab_lower_bound : 1.0);
    if (p->elastic_bytes) {
        printf("; %s of it for rows between ranks when routing is balanced, ",
               moe_format_bytes((double)p->elastic_expect, text));
        printf("%s at worst; ", moe_format_bytes((double)p->elastic_bytes, text));
        printf("counted: %s %s", moe_format_bytes(r->touched.most, text),
               r->touched.of_run ? "by the load of the run"
                                 : "as untrained routers take on average");
    }
    if (p->mem_offloaded)
        printf("; %s offloaded between forward and backward",
               moe_format_bytes((double)p->mem_offloaded, text));
    if (!isnan(r->log_memory))
        printf("; the run reports %s in all, %.3f of the prediction",
               moe_format_bytes(r->log_memory_max, text), r->log_memory_max / total);
    printf("\n");
}

/* Of communication: how long it takes by itself, and how much of that lengthens the step. */
static void print_overlap_md(const Report *r) {
    const MoePlanPrediction *p = &r->program->predicted;
    if (r->plan->ranks == 1 || !(p->seconds > 0))
        return;
    printf("\ncommunication predicted: %.3f ms by itself (%.3f ms of expert rows), of which waits add "
           "%.3f ms (%.3f ms) to %.3f ms of compute; no order of these steps could hide %.3f ms\n",
           (p->a2a + p->other) * 1e3, p->a2a * 1e3, (p->a2a_exposed + p->other_exposed) * 1e3,
           p->a2a_exposed * 1e3, p->compute * 1e3, p->bound * 1e3);
}

static void print_md(const Report *r) {
    const MoePlan *p = r->plan;
    printf("# %s: program %s for %s\n\nbatch %lld x %lld tokens, %s, %d virtual shards, %d "
           "micro-batch%s\n\n",
           p->dir ? p->dir : "plan", r->program->name, p->target, (long long)p->batch,
           (long long)p->seq, p->dtype, p->virtual_shards, p->micro_batches,
           p->micro_batches == 1 ? "" : "es");
    if (p->fast_reduce)
        printf("compiled with --fast-reduce: weight gradients add up a rank's rows in one chain, so bits depend on ranks, "
               "micro-batches, placement and copies (two runs of this plan have the same)\n\n");
    else
        printf("weight gradients: trees over leaves of %d rows, the same bits at any layout\n\n", p->leaf_rows);
    printf("| op | phase | kind | launches | GFLOP | MB | predicted ms "
           "|%s\n|---|---|---|---:|---:|---:|---:|%s\n",
           r->has_measured ? " measured ms | GFLOP/s | GB/s |" : "",
           r->has_measured ? "---:|---:|---:|" : "");
    for (size_t i = 0; i < r->n_lines; i++) {
        const Line *l = &r->lines[i];
        printf("| %s | %s | %s | %d | %.3f | %.2f | %.3f |", l->name, phase_names[l->phase],
               l->kind, l->n, l->flops / 1e9, l->bytes / 1e6, l->predicted * 1e3);
        if (r->has_measured)
            printf(" %.3f | %.1f | %.1f |", l->measured * 1e3, l->flops / l->measured / 1e9,
                   l->bytes / l->measured / 1e9);
        printf("\n");
    }
    printf("| **step** | | | | | | %.3f |", r->predicted * 1e3);
    if (r->has_measured)
        printf(" %.3f | | |", r->measured * 1e3);
    printf("\n\npredicted %.0f tokens/s", (double)(p->batch * p->seq) / r->predicted);
    if (r->has_measured)
        printf("; measured here %.0f tokens/s, %.2f of the predicted time",
               (double)(p->batch * p->seq) / r->measured, r->measured / r->predicted);
    if (!isnan(r->log_seconds))
        printf("; the run's median step %.3f ms (%.0f tokens/s)", r->log_seconds * 1e3,
               (double)(p->batch * p->seq) / r->log_seconds);
    printf("\n");
    if (!isnan(r->loaded))
        printf("\npredicted for the run's own load, with experts where they were: %.3f ms a step\n", r->loaded * 1e3);
    if (!isnan(r->log_emulated))
        printf("\nthe run's emulated step: %.3f ms, %.3f of what is predicted%s\n", r->log_emulated * 1e3,
               r->log_emulated / (isnan(r->loaded) ? r->predicted : r->loaded),
               isnan(r->loaded) ? "" : " for its load");
    print_overlap_md(r);
    moe_explain_ranks_md(p, r->program, &r->memory, &r->touched);
    print_memory_md(r);
    moe_planner_print(json_object_get(p->json, "planner"), stdout);
}

static void print_csv(const Report *r) {
    printf("op,phase,kind,launches,flops,bytes,predicted_seconds,measured_seconds\n");
    for (size_t i = 0; i < r->n_lines; i++) {
        const Line *l = &r->lines[i];
        printf("%s,%s,%s,%d,%.17g,%.17g,%.17g,", l->name, phase_names[l->phase], l->kind, l->n,
               l->flops, l->bytes, l->predicted);
        if (r->has_measured)
            printf("%.17g", l->measured);
        printf("\n");
    }
}

static void print_json(const Report *r) {
    const MoePlanProgram *p = r->program;
    json_t *ops = json_array();
    for (size_t i = 0; i < r->n_lines; i++) {
        const Line *l = &r->lines[i];
        json_t *o = json_pack("{s:s, s:s, s:s, s:i, s:f, s:f, s:f}", "op", l->name, "phase",
                              phase_names[l->phase], "kind", l->kind, "launches", l->n, "flops",
                              l->flops, "bytes", l->bytes, "predicted_seconds", l->predicted);
        if (r->has_measured)
            json_object_set_new(o, "measured_seconds", json_real(l->measured));
        json_array_append_new(ops, o);
    }
    json_t *root = json_pack("{s:s, s:s, s:o, s:f}", "program", p->name, "target", r->plan->target,
                             "ops", ops, "predicted_seconds", r->predicted);
    json_object_set_new(root, "leaf_rows", json_integer(r->plan->leaf_rows));
    json_object_set_new(root, "fast_reduce", json_boolean(r->plan->fast_reduce));
    if (r->has_measured)
        json_object_set_new(root, "measured_seconds", json_real(r->measured));
    if (!isnan(r->log_seconds))
        json_object_set_new(root, "run_step_seconds", json_real(r->log_seconds));
    if (!isnan(r->log_emulated))
        json_object_set_new(root, "run_emulated_seconds", json_real(r->log_emulated));
    if (!isnan(r->loaded))
        json_object_set_new(root, "predicted_for_run_seconds", json_real(r->loaded));
    if (json_object_get(r->plan->json, "planner"))
        json_object_set(root, "planner", json_object_get(r->plan->json, "planner"));
    if (!isnan(r->log_memory))
        json_object_set_new(root, "run_memory_bytes", json_real(r->log_memory));
    if (!isnan(r->log_memory_max))
        json_object_set_new(root, "run_memory_bytes_max", json_real(r->log_memory_max));
    const MoeExplainMemory *m = &r->memory;
    json_object_set_new(
        root, "memory",
        json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:s, s:I, s:I, s:I, s:I, s:I}",
                  "parameters", m->parameters, "states", m->states, "gradients", m->gradients,
                  "activations", m->activations, "workspace", m->workspace, "other", m->other,
                  "communication", m->communication, "inputs", m->inputs, "scratch", m->scratch,
                  "gaps", m->gaps, "uneven", m->uneven, "total", moe_explain_memory_total(m),
                  "load", r->touched.of_run ? "run" : "untrained", "slab",
                  (json_int_t)p->slab_bytes, "elastic", (json_int_t)p->elastic_bytes,
                  "elastic_expect", (json_int_t)p->elastic_expect, "slab_lower_bound",
                  (json_int_t)p->slab_lower_bound, "offloaded", (json_int_t)p->mem_offloaded));
    const MoePlanPrediction *q = &p->predicted;
    json_object_set_new(root, "overlap",
                        json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "compute", q->compute,
                                  "a2a", q->a2a, "other", q->other, "a2a_exposed", q->a2a_exposed,
                                  "other_exposed", q->other_exposed, "a2a_bound", q->a2a_bound,
                                  "bound", q->bound));
    moe_explain_ranks_json(r->plan, p, m, &r->touched, root);
    MoeStr text = {0};
    moe_json_dump(root, &text);
    fputs(moe_str_c(&text), stdout);
    moe_str_free(&text);
    json_decref(root);
}

/* Rows of experts by the run's own trace, if there is one. */
static MoeStatus predict_load(const MoePlan *plan, const char *run, Report *r) {
    MoeExplainTouched *out = &r->touched;
    char *path = moe_path_join(run, "trace.csv");
    MoeArena *a = moe_arena_create();
    MoeLoad load;
    bool traced = *run && moe_path_exists(path);
    MoeStatus st = traced ? moe_load_read(path, a, &load) : NULL;
    if (!st)
        st = traced ? moe_explain_touched_by(plan, &load, run, out)
                    : moe_explain_touched_untrained(plan, out);
    if (!st && traced && strcmp(r->program->name, "train") == 0)
        st = moe_explain_loaded_seconds(plan, &load, run, &r->loaded);
    moe_arena_destroy(a);
    free(path);
    return st;
}

MoeStatus moe_cmd_explain(const MoeOptions *o) {
    MOE_TRY(moe_options_expect(o, 1));
    const char *run = moe_opt(o, OPT_AGAINST), *program = moe_opt(o, OPT_PROGRAM),
               *format = moe_opt(o, OPT_REPORT);
    MoePlan *plan = NULL;
    Report r = {.log_seconds = NAN, .log_memory = NAN, .log_memory_max = NAN, .log_emulated = NAN, .loaded = NAN};
    MoeStatus st = NULL;
    if (*run)
        st = moe_driver_open_plan(o->positionals[0], &plan);
    else { /* nothing will run: the object code need not fit this machine */
        char *path = moe_path_join(o->positionals[0], "plan.json"), *text = NULL;
        size_t n = 0;
        if (!moe_path_exists(path))
            st = moe_error(MOE_E_INPUT, "%s: no plan here (no plan.json)", o->positionals[0]);
        if (!st)
            st = moe_file_read(path, (size_t)1 << 30, &text, &n);
        if (!st)
            st = moe_plan_load_memory(text, n, path, NULL, 0, &plan);
        free(text);
        free(path);
    }
    if (st)
        goto done;
    r.plan = plan;
    r.program = moe_plan_program(plan, program);
    if (!r.program) {
        st = moe_error(MOE_E_MISUSE, "--program %s: the plan has train, eval and logits", program);
        goto done;
    }
    int threads = moe_opt_i(o, OPT_THREADS) > 0 ? (int)moe_opt_i(o, OPT_THREADS) : moe_cpu_count();
    int of_rank = threads / plan->ranks > 1 ? threads / plan->ranks : 1;
    MOE_TRY_GOTO(st, predict_load(plan, run, &r), done);
    r.memory = moe_explain_memory(plan, r.program, of_rank, r.touched.most);
    if (*run) {
        MOE_TRY_GOTO(st, read_log(&r, run), done);
        MoeDevicePlace device;
        MOE_TRY_GOTO(st, moe_device_option(o, &device), done);
        MOE_TRY_GOTO(st, measure(&r, of_rank, device, program), done);
    }
    collect(&r);
    if (strcmp(format, "csv") == 0)
        print_csv(&r);
    else if (strcmp(format, "json") == 0)
        print_json(&r);
    else
        print_md(&r);
done:
    free(r.touched.bytes);
    free(r.lines);
    free(r.profile);
    if (plan)
        moe_plan_free(plan);
    return st;
}
