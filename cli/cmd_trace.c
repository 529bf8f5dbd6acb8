/* moec trace RUN: the timeline of the step that moec run --profile-step recorded, and the one that its plan predicts, as Chrome's trace
 * event format (JSON), which chrome://tracing and Perfetto show. A process a rank, rows for compute and for links. */
#include "cli/commands.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/io.h"
#include "base/json.h"
#include "base/log.h"
#include "cli/step_timeline.h"
#include "runtime/run_config.h"

#define MAX_LANES 16 /* rows of exchanges that are under way at the same time */

static const char *const phases[] = {"forward", "backward", "reduce", "update"};
static const char *const row_names[MOE_N_ROWS] = {"compute", "links", "offload"};

static void begin_event(MoeStr *s) {
    moe_str_append(s, s->data[s->len - 1] == '[' ? "\n" : ",\n");
}

static void name_event(MoeStr *s, const char *what, int pid, int tid, const char *name) {
    json_t *text = json_string(name);
    char *quoted = json_dumps(text, JSON_ENCODE_ANY);
    begin_event(s);
    moe_str_printf(
        s, "{\"ph\": \"M\", \"name\": \"%s\", \"pid\": %d, \"tid\": %d, \"args\": {\"name\": %s}}",
        what, pid, tid, quoted ? quoted : "\"?\"");
    free(quoted);
    json_decref(text);
}

/* Exchanges that overlap need rows of their own: the first that is free. */
static int lane_of(const MoeStepTimelineEvent *e, double free_at[MOE_N_ROWS][MAX_LANES]) {
    if (e->row == MOE_ROW_COMPUTE)
        return 0;
    int lane = 0;
    while (lane < MAX_LANES - 1 && free_at[e->row][lane] > e->begin + 1e-12)
        lane++;
    free_at[e->row][lane] = fmax(free_at[e->row][lane], e->end);
    return lane;
}

static void put_event(MoeStr *s, const MoePlan *plan, const MoeStepTimelineEvent *e, int pid,
                      int lane) {
    const MoePlanStep *p = e->step;
    json_t *name = json_string(p->name);
    char *quoted = json_dumps(name, JSON_ENCODE_ANY);
    begin_event(s);
    moe_str_printf(s,
                   "{\"ph\": \"X\", \"name\": %s, \"cat\": \"%s\", \"pid\": %d, \"tid\": %d, "
                   "\"ts\": %.3f, \"dur\": %.3f, \"args\": {\"phase\": \"%s\"",
                   quoted ? quoted : "\"?\"", p->wait >= 0 ? "wait" : row_names[e->row], pid,
                   (int)e->row * MAX_LANES + lane, e->begin * 1e6, (e->end - e->begin) * 1e6,
                   phases[p->phase]);
    free(quoted);
    json_decref(name);
    if (p->layer >= 0)
        moe_str_printf(s, ", \"layer\": %d", p->layer);
    if (plan->micro_batches > 1)
        moe_str_printf(s, ", \"micro_batch\": %d", e->micro);
    if (e->counting)
        moe_str_append(s, ", \"counting\": true");
    if (p->flops > 0)
        moe_str_printf(s, ", \"flops\": %.17g", p->flops);
    if (p->bytes > 0)
        moe_str_printf(s, ", \"bytes\": %.17g", p->bytes);
    moe_str_printf(s, ", \"predicted_us\": %.3f}}", p->seconds * 1e6);
}

static void put_timeline(MoeStr *s, const MoePlan *plan, const MoeStepTimeline *t, int pid,
                         const char *name) {
    double free_at[MOE_N_ROWS][MAX_LANES] = {{0}};
    bool used[MOE_N_ROWS * MAX_LANES] = {false};
    name_event(s, "process_name", pid, 0, name);
    for (size_t i = 0; i < t->n; i++) {
        const MoeStepTimelineEvent *e = &t->events[i];
        int lane = lane_of(e, free_at), tid = (int)e->row * MAX_LANES + lane;
        if (!used[tid]) {
            char row[32];
            snprintf(row, sizeof row, lane ? "%s %d" : "%s", row_names[e->row], lane + 1);
            name_event(s, "thread_name", pid, tid, row);
            used[tid] = true;
        }
        put_event(s, plan, e, pid, lane);
    }
}

/* The ranks' recordings. Clocks of one machine, or emulated ones, are the same clock: the step begins with the first rank. */
static MoeStatus put_measured(MoeStr *s, const MoePlan *plan, const MoePlanProgram *g,
                              const char *run) {
    MoeProfileRank *ranks = calloc((size_t)plan->ranks, sizeof *ranks);
    if (!ranks)
        return moe_error(MOE_E_NOMEM, "no memory for %d ranks", plan->ranks);
    double start = INFINITY, longest = 0;
    MoeStatus st = NULL;
    for (int r = 0; r < plan->ranks && !st; r++) {
        st = moe_profile_read(run, r, g, &ranks[r]);
        if (!st && ranks[r].step != ranks[0].step)
            st = moe_error(
                MOE_E_INPUT,
                "%s: rank %d recorded step %lld, rank 0 step %lld; train with --profile-step again",
                run, r, (long long)ranks[r].step, (long long)ranks[0].step);
        for (size_t i = 0; i < ranks[r].n && !st; i++)
            start = fmin(start, ranks[r].spans[i].begin);
    }
    for (int r = 0; r < plan->ranks && !st; r++) {
        MoeStepTimeline t;
        char name[96];
        moe_step_timeline_measured(g, &ranks[r], start, &t);
        snprintf(name, sizeof name, "rank %d, step %lld %s", r, (long long)ranks[r].step,
                 ranks[r].emulated ? "on emulated links" : "measured");
        put_timeline(s, plan, &t, r, name);
        longest = fmax(longest, t.seconds);
        moe_step_timeline_free(&t);
    }
    if (!st)
        moe_note("step %lld of %s: %.3f ms, predicted %.3f ms", (long long)ranks[0].step, run,
                 longest * 1e3, g->predicted.seconds * 1e3);
    for (int r = 0; r < plan->ranks; r++)
        free(ranks[r].spans);
    free(ranks);
    return st;
}

static MoeStatus open_plan(const char *run, MoePlan **out) {
    MoeRunConfig config;
    MOE_TRY(moe_run_config_read(run, &config));
    char *path = config.plan_dir ? moe_path_join(config.plan_dir, "plan.json") : NULL, *text = NULL;
    size_t n = 0;
    MoeStatus st = path ? moe_file_read(path, (size_t)1 << 30, &text, &n)
                        : moe_error(MOE_E_INPUT, "%s/config.json does not name the plan", run);
    if (!st) /* nothing will run: the object code need not fit this machine */
        st = moe_plan_load_memory(text, n, path, NULL, 0, out);
    free(text);
    free(path);
    moe_run_config_free(&config);
    return st;
}

MoeStatus moe_cmd_trace(const MoeOptions *o) {
    MOE_TRY(moe_options_expect(o, 1));
    const char *run = o->positionals[0], *path = moe_opt(o, OPT_TRACE_OUT);
    if (!*path)
        return moe_error(MOE_E_MISUSE,
                         "moec trace needs -o FILE.json: where to write the timeline");
    MoePlan *plan = NULL;
    MOE_TRY(open_plan(run, &plan));
    const MoePlanProgram *g = moe_plan_program(plan, "train");
    MoeStr s = {0};
    MoeStepTimeline t = {0};
    moe_str_append(&s, "{\"displayTimeUnit\": \"ms\", \"traceEvents\": [");
    MoeStatus st = g ? put_measured(&s, plan, g, run)
                     : moe_error(MOE_E_INPUT, "the plan of %s has no program train", run);
    if (!st) {
        moe_step_timeline_predicted(plan, g, &t);
        put_timeline(&s, plan, &t, plan->ranks,
                     plan->ranks > 1 ? "predicted, any rank" : "predicted");
        moe_step_timeline_free(&t);
        moe_str_append(&s, "\n]}\n");
        st = moe_file_write_atomic(path, moe_str_c(&s), s.len);
    }
    moe_str_free(&s);
    moe_plan_free(plan);
    return st;
}
