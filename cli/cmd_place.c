/* moec place TRACE...: the laboratory of placement. Replays load traces (or load made by --synthetic) through policies and reports what each
 * of them made of it; --dump writes every map and division down, --plot draws. */
#include "cli/commands.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/io.h"
#include "base/json.h"
#include "base/log.h"
#include "base/mesh.h"
#include "cli/progress_line.h"
#include "placement/dump.h"
#include "placement/plot.h"
#include "placement/report.h"
#include "placement/synthetic.h"

/* The layer that costs are of when nothing says: that of a model with experts of 4096 x 1536 in bf16, trained with AdamW. */
#define DEFAULT_HIDDEN       4096
#define DEFAULT_INTERMEDIATE 1536
#define DEFAULT_MEAN_ROWS    16384 /* that the mean rank computes in a layer and step */

typedef struct {
    const MoeOptions *o;
    MoeArena *arena;
    MoePool *pool;
    const MoePolicy **policies;
    size_t n_policies, cap_policies;
    bool all;            /* --policy all: those that do not fit the case are left out */
    const char **traces; /* paths, then kinds of synthetic load */
    size_t n_traces, n_files, cap_traces;
    MoeReport *reports;
    size_t n_reports;
    MoeDump *dump;
    MoeProgressLine *progress;
    const char *doing;      /* for the progress line */
    double part_done, part; /* of all replays: behind us, this one */
} Place;

/* ---- what is asked ---- */

/* An int from lo to hi. */
static MoeStatus int_option(const MoeOptions *o, MoeOption id, const char *name, int64_t lo,
                            int64_t hi, int *out) {
    int64_t v = moe_opt_i(o, id);
    if (v < lo || v > hi)
        return moe_error(MOE_E_MISUSE, "--%s %lld: expected %lld to %lld", name, (long long)v,
                         (long long)lo, (long long)hi);
    *out = (int)v;
    return NULL;
}

/* Calls `add` with each part of "a,b,c". */
static MoeStatus each_name(Place *p, const char *list,
                           MoeStatus (*add)(Place *p, const char *name)) {
    while (*list) {
        size_t n = strcspn(list, ",");
        MOE_TRY(add(p, moe_arena_strndup(p->arena, list, n)));
        list += n + (list[n] == ',');
    }
    return NULL;
}

static MoeStatus add_policy(Place *p, const char *name) {
    const MoePolicy *policy = NULL;
    if (strcmp(name, "all") == 0) {
        p->all = true;
        for (size_t i = 0; i < moe_policy_count(); i++)
            if (strcmp(moe_policy_at(i)->name, "program") != 0 || *moe_opt(p->o, OPT_PLACE_PROGRAM))
                MOE_PUSH(p->arena, p->policies, p->n_policies, p->cap_policies, moe_policy_at(i));
        return NULL;
    }
    MOE_TRY(moe_policy_find(name, &policy));
    MOE_PUSH(p->arena, p->policies, p->n_policies, p->cap_policies, policy);
    return NULL;
}

static MoeStatus add_synthetic(Place *p, const char *kind) {
    MOE_PUSH(p->arena, p->traces, p->n_traces, p->cap_traces, kind);
    return NULL;
}

static MoeStatus read_options(Place *p, MoeReplayOptions *r) {
    const MoeOptions *o = p->o;
    MOE_TRY(int_option(o, OPT_PLACE_RANKS, "ranks", 1, MOE_MAX_RANKS, &r->ranks));
    MOE_TRY(int_option(o, OPT_GROUPS, "groups", 1, MOE_MAX_RANKS, &r->groups));
    MOE_TRY(int_option(o, OPT_PLACE_EXTRA, "extra-slots", 0, MOE_LOAD_EXPERTS, &r->extra_slots));
    MOE_TRY(int_option(o, OPT_EVERY, "every", 1, 1 << 20, &r->every));
    MOE_TRY(int_option(o, OPT_WINDOW, "window", 1, 1 << 16, &r->window));
    MOE_TRY(int_option(o, OPT_PLACE_WARMUP, "warmup", 0, 1 << 24, &r->warmup));
    MOE_TRY(int_option(o, OPT_GRAIN, "grain", 1, 1 << 20, &r->grain));
    r->even = strcmp(moe_opt(o, OPT_SPLIT), "even") == 0;
    r->gate = (MoePlacerGate){.hysteresis = moe_opt_f(o, OPT_HYSTERESIS), .drift = moe_opt_f(o, OPT_DRIFT)};
    if (r->gate.hysteresis < 0 || r->gate.drift < 0)
        return moe_error(MOE_E_MISUSE, "--hysteresis %g, --drift %g: expected 0 or more",
                         r->gate.hysteresis, r->gate.drift);
    r->seed = (uint64_t)moe_opt_i(o, OPT_PLACE_SEED);
    r->program = *moe_opt(o, OPT_PLACE_PROGRAM) ? moe_opt(o, OPT_PLACE_PROGRAM) : NULL;
    r->pool = p->pool;
    return each_name(p, moe_opt(o, OPT_POLICY), add_policy);
}

static MoeStatus read_trace(Place *p, size_t i, MoeLoad *out) {
    const MoeOptions *o = p->o;
    int experts = 0, top_k = 0;
    MOE_TRY(int_option(o, OPT_EXPERTS, "experts", 0, MOE_LOAD_EXPERTS, &experts));
    if (i < p->n_files) {
        MOE_TRY(moe_load_read(p->traces[i], p->arena, out));
        return experts ? moe_status_prefix(moe_load_widen(out, experts, p->arena), "%s, --experts",
                                           p->traces[i])
                       : NULL;
    }
    MoeSyntheticSizes n = {.experts = experts ? experts : 64,
                           .tokens = moe_opt_i(o, OPT_PLACE_TOKENS),
                           .seed = (uint64_t)moe_opt_i(o, OPT_PLACE_SEED)};
    MOE_TRY(int_option(o, OPT_LAYERS, "layers", 1, 1 << 16, &n.layers));
    MOE_TRY(int_option(o, OPT_PLACE_STEPS, "steps", 1, 1 << 24, &n.steps));
    MOE_TRY(int_option(o, OPT_SOURCES, "sources", 1, MOE_LOAD_SOURCES, &n.sources));
    MOE_TRY(int_option(o, OPT_PLACE_TOP_K, "top-k", 1, MOE_LOAD_EXPERTS, &top_k));
    n.top_k = top_k;
    return moe_synthetic_make(p->traces[i], &n, p->arena, out);
}

/* ---- costs ---- */

static MoeStatus costs_of(Place *p, const MoeReplayOptions *r, const MoeLoad *load,
                          MoeReport *report, MoePlaceCost *out) {
    const char *path = moe_opt(p->o, OPT_PLACE_CLUSTER);
    MoeCluster cluster = moe_replay_default_cluster(r->ranks);
    report->cluster = *path ? path : "the default cluster";
    if (*path)
        MOE_TRY(moe_cluster_load(path, &cluster));
    if (moe_cluster_ranks(&cluster) != r->ranks)
        return moe_error(MOE_E_MISUSE,
                         "%s: %d ranks (%d nodes of %d), --ranks says %d; a cluster here is that "
                         "of one EP group's ranks",
                         path, moe_cluster_ranks(&cluster), cluster.nodes, cluster.ranks_per_node,
                         r->ranks);
    MoePlaceModel model = {.hidden = DEFAULT_HIDDEN,
                           .intermediate = DEFAULT_INTERMEDIATE,
                           .element_bytes = 2,
                           .states = 2};
    MOE_TRY(int_option(p->o, OPT_PLACE_TOP_K, "top-k", 1, MOE_LOAD_EXPERTS, &model.top_k));
    *out = moe_place_cost_of(&cluster, &model);
    double mean = moe_replay_mean_rows(load, r->ranks, r->groups);
    report->scale = moe_opt_f(p->o, OPT_SCALE);
    if (report->scale < 0)
        return moe_error(MOE_E_MISUSE, "--scale %g: expected a number above 0, or 0",
                         report->scale);
    if (report->scale == 0)
        report->scale = *path || mean <= 0 ? 1 : DEFAULT_MEAN_ROWS / mean;
    moe_replay_scale(out, report->scale);
    return NULL;
}

/* ---- replays ---- */

static void show_progress(void *ctx, int step, int steps) {
    Place *p = ctx;
    moe_progress_line(p->progress, p->part_done + p->part * step / steps, "%s: step %d/%d",
                      p->doing, step, steps);
}

static MoeStatus replay(Place *p, const MoeReport *report, const MoePolicy *policy, bool quietly,
                        MoeReplay *out) {
    MoeReplayObserver see = {.progress = show_progress, .progress_ctx = p};
    if (p->dump && !quietly) {
        moe_dump_begin(p->dump, report->load, report->trace, policy->name, report->options->groups);
        moe_dump_observe(p->dump, &see);
    }
    p->doing = moe_arena_printf(p->arena, "%s: %s", report->trace, policy->name);
    MoeStatus st = moe_replay(report->load, policy, report->options, &see, p->arena, out);
    p->part_done += p->part;
    return moe_status_prefix(st, "%s, policy %s", report->trace, policy->name);
}

/* All policies, and static for the speed-ups. */
static MoeStatus replay_all(Place *p, MoeReport *report) {
    MoeReplay *all = MOE_NEW_N(p->arena, MoeReplay, p->n_policies + 1);
    const MoePolicy *fixed = NULL;
    MOE_TRY(moe_policy_find("static", &fixed));
    report->replays = all;
    for (size_t i = 0; i < p->n_policies; i++) {
        MoeReplay *to = &all[report->n_replays];
        MoeStatus st = replay(p, report, p->policies[i], false, to);
        /* What static cannot do is wrong for all. */
        if (st && p->all && p->policies[i] != fixed && moe_status_code(st) == MOE_E_MISUSE) {
            moe_warn("left out: %s", moe_status_message(st));
            moe_status_free(st);
            continue;
        }
        MOE_TRY(st);
        report->fixed = p->policies[i] == fixed ? to : report->fixed;
        report->n_replays++;
    }
    if (!report->fixed) {
        MOE_TRY(replay(p, report, fixed, true, &all[p->n_policies]));
        report->fixed = &all[p->n_policies];
    }
    return NULL;
}

static bool divides(const MoeLoad *l, const MoeReplayOptions *r) {
    return l->sources % (r->ranks * r->groups) != 0;
}

static MoeStatus do_trace(Place *p, size_t i, const MoeReplayOptions *options) {
    MoeLoad *load = MOE_NEW(p->arena, MoeLoad);
    MoeReplayOptions *own = moe_arena_copy(p->arena, options, sizeof *options);
    MoePlaceCost *cost = MOE_NEW(p->arena, MoePlaceCost);
    MoeReport *r = &p->reports[p->n_reports];
    MOE_TRY(read_trace(p, i, load));
    *r = (MoeReport){.trace = i < p->n_files
                                  ? p->traces[i]
                                  : moe_arena_printf(p->arena, "synthetic %s", p->traces[i]),
                     .load = load,
                     .options = own,
                     .divided = options->ranks && divides(load, options),
                     .per_layer = moe_opt_b(p->o, OPT_PER_LAYER)};
    if (*moe_opt(p->o, OPT_SAVE_TRACE))
        MOE_TRY(moe_load_write(moe_opt(p->o, OPT_SAVE_TRACE), load));
    if (!options->ranks)
        return NULL;
    MOE_TRY(costs_of(p, own, load, r, cost));
    own->cost = cost;
    own->watch = *moe_opt(p->o, OPT_PLOT) ? moe_replay_worst_layer(load, own->ranks) : -1;
    if (r->divided)
        moe_note("%s: %d sources, divided by largest remainder for %d ranks", r->trace,
                 load->sources, own->ranks * own->groups);
    MOE_TRY(replay_all(p, r));
    p->n_reports++;
    return NULL;
}

/* ---- output ---- */

static void print(const Place *p) {
    const char *format = moe_opt(p->o, OPT_REPORT);
    MoeStr out = {0};
    json_t *traces = json_array();
    for (size_t i = 0; i < p->n_reports; i++) {
        if (strcmp(format, "csv") == 0)
            moe_report_csv(&p->reports[i], i == 0, &out);
        else if (strcmp(format, "json") == 0)
            json_array_append_new(traces, moe_report_json(&p->reports[i]));
        else {
            moe_str_append(&out, i ? "\n" : "");
            moe_report_md(&p->reports[i], &out);
        }
    }
    if (strcmp(format, "json") == 0) {
        json_t *root = json_pack("{s:O}", "traces", traces);
        moe_json_dump(root, &out);
        json_decref(root);
    }
    json_decref(traces);
    fputs(moe_str_c(&out), stdout);
    moe_str_free(&out);
}

static MoeStatus write_plot(const Place *p) {
    MoeStr svg = {0};
    moe_plot(p->reports, p->n_reports, &svg);
    MoeStatus st = moe_file_write_atomic(moe_opt(p->o, OPT_PLOT), moe_str_c(&svg), svg.len);
    moe_str_free(&svg);
    return st;
}

static MoeStatus run(Place *p) {
    const MoeOptions *o = p->o;
    MoeReplayOptions r = {0};
    bool save = *moe_opt(o, OPT_SAVE_TRACE);
    for (int i = 0; i < o->n_positionals; i++)
        MOE_PUSH(p->arena, p->traces, p->n_traces, p->cap_traces, o->positionals[i]);
    p->n_files = p->n_traces;
    MOE_TRY(each_name(p, moe_opt(o, OPT_SYNTHETIC), add_synthetic));
    if (!p->n_traces)
        return moe_error(MOE_E_MISUSE, "usage: moec place TRACE... --ranks N [options]   (or "
                                       "--synthetic KIND,... in place of traces); "
                                       "'moec help place' says more");
    if (save && p->n_traces != 1)
        return moe_error(MOE_E_MISUSE, "--save-trace keeps one trace; %zu are given", p->n_traces);
    if (moe_opt_given(o, OPT_PLACE_RANKS) || !save)
        MOE_TRY(read_options(p, &r));
    p->reports = MOE_NEW_N(p->arena, MoeReport, p->n_traces);
    size_t replays = p->n_policies + 1; /* and static, unless it is among them */
    for (size_t i = 0; i < p->n_policies; i++)
        replays -= strcmp(p->policies[i]->name, "static") == 0;
    p->part = 1.0 / (double)(p->n_traces * (replays ? replays : 1));
    for (size_t i = 0; i < p->n_traces; i++)
        MOE_TRY(do_trace(p, i, &r));
    return NULL;
}

MoeStatus moe_cmd_place(const MoeOptions *o) {
    Place p = {.o = o, .arena = moe_arena_create()};
    int threads = (int)moe_opt_i(o, OPT_THREADS);
    p.progress = moe_progress_line_create(moe_opt_b(o, OPT_QUIET));
    MoeStatus st = moe_pool_create(threads > 0 ? threads : moe_cpu_count(), &p.pool);
    if (!st && *moe_opt(o, OPT_DUMP))
        st = moe_dump_open(moe_opt(o, OPT_DUMP), &p.dump);
    if (!st)
        st = run(&p);
    moe_progress_line_done(p.progress);
    if (!st && p.dump) {
        st = moe_dump_close(p.dump);
        p.dump = NULL;
    }
    if (!st && p.n_reports && *moe_opt(o, OPT_PLOT))
        st = write_plot(&p);
    if (!st && p.n_reports)
        print(&p);
    moe_dump_abandon(p.dump);
    if (p.pool)
        moe_pool_destroy(p.pool);
    moe_arena_destroy(p.arena);
    return st;
}
