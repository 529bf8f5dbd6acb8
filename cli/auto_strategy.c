/* See auto_strategy.h. In: options. Out: options with a strategy, a report. */
#include "cli/auto_strategy.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/pool.h"
#include "cli/explain_planner.h"
#include "passes/comm_cost.h"
#include "passes/memplan.h"
#include "passes/predict.h"
#include "passes/summary.h"

/* How many divisions go through the compiler: at least so many that fit, of one mesh no more than a few at first. */
enum { SHORTLIST = 12, MOST_TRIED = 32, OF_A_MESH = 3, SMALLEST = 8, MOST_EXTRA = 2 };
/* A division whose estimate is so many times the best prediction is not worth a look. */
#define HOPELESS      2.0
#define TELL_SECONDS  3.0 /* between lines of progress, where they are not rewritten */

static const MoeRecompute levels[MOE_N_PLAN_LEVELS] = {
    [MOE_PLAN_KEEP] = MOE_RECOMPUTE_NONE, [MOE_PLAN_CHEAP] = MOE_RECOMPUTE_CHEAP, [MOE_PLAN_LAYER] = MOE_RECOMPUTE_LAYER};

typedef struct {
    const MoeDriverOptions *d;
    MoeCluster cluster;
    MoePlanWish wish;
    MoeModelSummary model;
    MoePlanCandidate *list;
    size_t n, dropped;
    double least;          /* bytes that the smallest needs */
    MoePlannerRow *rows;   /* [n_rows]: compiled */
    size_t n_rows, tried, too_large, refused;
    int best;              /* of rows; -1 */
    double start, told;
    MoeArena *a;
} Plan;

bool moe_auto_strategy_asked(const MoeOptions *o) {
    return strcmp(moe_opt(o, OPT_STRATEGY), "auto") == 0;
}

/* ---- what is asked ---- */

static MoeStatus read_wish(const MoeOptions *o, Plan *p) {
    const MoeStrategy *s = &p->d->strategy;
    p->wish = (MoePlanWish){.ep = (int)s->ep, .shard = (int)s->shard, .tp = (int)s->tp, .dense_shard = (int)s->dense_shard,
                            .memory_limit = (double)p->d->pass.memory_limit};
    /* copies are of use where a policy places them */
    p->wish.placed = p->d->pass.first_placement && strcmp(p->d->pass.first_placement, "static") != 0;
    p->wish.least_extra = (int)s->extra_slots;
    p->wish.most_extra = moe_opt_given(o, OPT_EXTRA_SLOTS) ? (int)s->extra_slots : p->wish.placed ? MOST_EXTRA : 0;
    if (moe_opt_given(o, OPT_MICRO_BATCHES))
        p->wish.micro_batches = p->d->frontend.micro_batches;
    for (int l = 0; l < MOE_N_PLAN_LEVELS; l++)
        p->wish.levels[l] = p->d->pass.recompute == MOE_RECOMPUTE_AUTO || p->d->pass.recompute == levels[l];
    MoePassOptions pass = p->d->pass;
    pass.mesh = (MoeMesh){.dp = (int)(s->ranks ? s->ranks : 1), .shard = 1, .ep = 1, .tp = 1, .dense_shard = 1};
    p->cluster = moe_pass_cluster(&pass);
    if (!s->ranks)
        return moe_error(MOE_E_MISUSE, "--strategy auto: --cluster FILE, or --ranks N for ranks of one host, says what to plan for");
    return moe_cluster_check_ranks(&p->cluster, (int)s->ranks);
}

/* ---- the survey ---- */

static MoeDriverOptions quiet_options(const Plan *p) {
    MoeDriverOptions d = *p->d;
    d.quiet = true;
    d.pipeline = (MoePipelineOptions){.stop_after = "memplan", .out = stdout, .err = stderr};
    return d;
}

/* One rank's work with the whole batch; *out keeps the load. */
static MoeStatus survey_level(Plan *p, MoePlanLevel l, MoeCompiled *out) {
    MoeDriverOptions d = quiet_options(p);
    d.survey = true;
    d.quiet = p->d->quiet || l > 0; /* warnings about the model once */
    d.strategy = (MoeStrategy){.ranks = 1};
    d.frontend.micro_batches = 1;
    d.pass.cluster = p->cluster;
    d.pass.recompute = levels[l];
    d.pass.memory_limit = 0;
    MOE_TRY(moe_driver_compile(&d, out));
    moe_summary_add(&out->cx, l, &p->model);
    return NULL;
}

/* Fills p->model and the candidates. */
static MoeStatus survey(Plan *p) {
    MoeCompiled c[MOE_N_PLAN_LEVELS] = {{0}};
    MoeStatus st = NULL;
    for (int l = 0; l < MOE_N_PLAN_LEVELS && !st; l++)
        if (p->wish.levels[l])
            st = survey_level(p, (MoePlanLevel)l, &c[l]);
    const MoeLoad *load = NULL;
    for (int l = 0; l < MOE_N_PLAN_LEVELS; l++)
        load = c[l].arena && c[l].cx.options.load ? c[l].cx.options.load : load;
    if (!st)
        p->n = moe_planner_enumerate(&p->model, &p->cluster, load, &p->wish, p->a, &p->list, &p->dropped, &p->least);
    for (int l = 0; l < MOE_N_PLAN_LEVELS; l++)
        if (c[l].arena)
            moe_driver_free(&c[l]);
    return st;
}

/* ---- the shortlist ---- */

static void set_candidate(MoeDriverOptions *d, const MoePlanCandidate *x) {
    d->strategy = moe_strategy_of_mesh(&x->mesh);
    d->frontend.micro_batches = x->micro_batches;
    d->pass.recompute = levels[x->level];
}

/* Bytes of a rank: parameters, states, the slab with the load's rows, staging memory. */
static double memory_of(const MoePassContext *cx, const MoeProgram *train) {
    double n = (double)moe_memplan_expected_bytes(&train->memory), most = 1;
    for (size_t i = 0; i < train->graph->n_ops; i++) {
        const MoeOp *op = train->graph->ops[i];
        if (op->opcode == MOE_OP_PARAM || op->opcode == MOE_OP_STATE)
            n += (double)moe_type_bytes(&op->results[0]->type);
    }
    for (size_t i = 0; cx->skew && i < cx->skew->n_layers; i++)
        most = cx->skew->layers[i].of.rows > most ? cx->skew->layers[i].of.rows : most;
    return n + (most - 1) * (double)train->memory.elastic_expect;
}

static double imbalance_of(const MoePassContext *cx) {
    double sum = 0;
    size_t n = cx->skew ? cx->skew->n_layers : 0;
    for (size_t i = 0; i < n; i++)
        sum += cx->skew->layers[i].of.rows;
    return n ? sum / (double)n : 1;
}

/* Compiles a candidate up to its memory plan; out->seconds 0: the compiler refuses it. */
static MoeStatus judge(const Plan *p, const MoePlanCandidate *x, const char *policy, MoePlannerRow *out) {
    MoeDriverOptions d = quiet_options(p);
    MoeCompiled c;
    if (x->mesh.ep == 1) /* each rank has all experts: nothing to place */
        policy = NULL;
    *out = (MoePlannerRow){.candidate = *x, .placement = policy};
    set_candidate(&d, x);
    d.pass.first_placement = policy;
    MoeStatus st = moe_driver_compile(&d, &c);
    for (size_t i = 0; i < (st ? 0 : c.module->n_graphs); i++) {
        const MoeProgram *train = &c.cx.programs[i];
        if (strcmp(train->graph->name, "train") != 0)
            continue;
        MoeCommModel model;
        moe_comm_model(&c.cx, &model);
        out->predicted = moe_predict_graph(&c.cx, train->graph, &model);
        out->memory = memory_of(&c.cx, train);
        out->imbalance = imbalance_of(&c.cx);
    }
    moe_driver_free(&c);
    bool refused = st && (moe_status_code(st) == MOE_E_MISUSE || moe_status_code(st) == MOE_E_INPUT);
    if (!refused)
        return st;
    moe_status_free(st);
    return NULL;
}

static bool same_mesh(const MoeMesh *a, const MoeMesh *b) {
    return a->extra_slots == b->extra_slots && a->dp == b->dp && a->shard == b->shard && a->ep == b->ep && a->tp == b->tp;
}

static size_t of_mesh(const Plan *p, const MoePlanCandidate *x) {
    size_t n = 0;
    for (size_t i = 0; i < p->n_rows; i++)
        n += same_mesh(&p->rows[i].candidate.mesh, &x->mesh);
    return n;
}

/* Another level of recomputation that came to the same schedule. */
static bool found_before(const Plan *p, const MoePlannerRow *row) {
    for (size_t i = 0; i < p->n_rows; i++) {
        const MoePlannerRow *r = &p->rows[i];
        if (same_mesh(&r->candidate.mesh, &row->candidate.mesh) &&
            r->candidate.mesh.dense_shard == row->candidate.mesh.dense_shard &&
            r->candidate.micro_batches == row->candidate.micro_batches && r->memory == row->memory &&
            r->predicted.seconds == row->predicted.seconds)
            return true;
    }
    return false;
}

static void tell(Plan *p, bool end) {
    bool terminal = isatty(STDERR_FILENO);
    double now = moe_now(), left = (now - p->start) / (double)(p->tried + 1) * (double)(SHORTLIST - p->n_rows);
    if (p->d->quiet || now - p->start < TELL_SECONDS || (!terminal && (end || now - p->told < TELL_SECONDS)))
        return;
    p->told = now;
    if (end)
        fprintf(stderr, "\r\033[K");
    else
        fprintf(stderr, "%splanning: %zu of %d divisions compiled, about %.0f s left%s", terminal ? "\r\033[K" : "",
                p->n_rows, SHORTLIST, left > 0 ? left : 0, terminal ? "" : "\n");
    fflush(stderr);
}

static MoeStatus try_candidate(Plan *p, const MoePlanCandidate *x) {
    MoePlannerRow row;
    MOE_TRY(judge(p, x, p->d->pass.first_placement, &row));
    p->tried++;
    tell(p, false);
    bool fits = !(p->wish.memory_limit > 0) || row.memory <= p->wish.memory_limit;
    p->refused += !(row.predicted.seconds > 0);
    p->too_large += row.predicted.seconds > 0 && !fits;
    if (!(row.predicted.seconds > 0) || !fits) {
        if (row.memory > 0 && (row.memory < p->least || p->too_large == 1)) /* no longer an estimate */
            p->least = row.memory;
        return NULL;
    }
    if (found_before(p, &row))
        return NULL;
    p->rows[p->n_rows] = row;
    if (p->best < 0 || row.predicted.seconds < p->rows[p->best].predicted.seconds)
        p->best = (int)p->n_rows;
    p->n_rows++;
    return NULL;
}

/* Those that need the least memory, by estimate: for a limit that fast ones do not keep. */
static MoeStatus try_smallest(Plan *p, bool *done) {
    for (int n = 0; n < SMALLEST && p->best < 0; n++) {
        size_t least = p->n;
        for (size_t i = 0; i < p->n; i++)
            if (!done[i] && (least == p->n || p->list[i].memory < p->list[least].memory))
                least = i;
        if (least == p->n)
            break;
        done[least] = true;
        MOE_TRY(try_candidate(p, &p->list[least]));
    }
    return NULL;
}

/* Best estimates first, a few of each mesh; then the rest as long as there is room. */
static MoeStatus shortlist(Plan *p) {
    bool *done = MOE_NEW_N(p->a, bool, p->n);
    p->rows = MOE_NEW_N(p->a, MoePlannerRow, SHORTLIST + 1);
    p->best = -1;
    for (int turn = 0; turn < 2; turn++)
        for (size_t i = 0; i < p->n && p->n_rows < SHORTLIST && p->tried < MOST_TRIED; i++) {
            const MoePlanCandidate *x = &p->list[i];
            if (done[i] || (turn == 0 && of_mesh(p, x) >= OF_A_MESH) ||
                (p->best >= 0 && x->seconds > HOPELESS * p->rows[p->best].predicted.seconds))
                continue;
            done[i] = true;
            MOE_TRY(try_candidate(p, x));
        }
    MOE_TRY(try_smallest(p, done));
    tell(p, true);
    return NULL;
}

static MoeStatus nothing_fits(const Plan *p) {
    char least[32], limit[32];
    moe_format_bytes(p->least, least);
    moe_format_bytes(p->wish.memory_limit, limit);
    if (p->too_large || p->dropped)
        return moe_error(MOE_E_INPUT,
                         "--strategy auto: none of %zu divisions over %d ranks fits --memory-limit %s; the least needs about %s a rank",
                         p->n + p->dropped, moe_cluster_ranks(&p->cluster), limit, least);
    return moe_error(MOE_E_MISUSE,
                     "--strategy auto: no division over %d ranks is possible with %d virtual shards, %d experts, %lld sequences and the "
                     "degrees given: data ranks must be a power of two, at most the virtual shards; tensor parallelism must divide %lld",
                     moe_cluster_ranks(&p->cluster), p->model.virtual_shards, p->model.experts, (long long)p->model.batch,
                     (long long)p->model.tp_divides);
}

MoeStatus moe_auto_strategy(const MoeOptions *o, MoeDriverOptions *d, json_t **out_report) {
    Plan p = {.d = d, .start = moe_now(), .a = moe_arena_create()};
    MoePlannerRow usual = {0};
    MoeStatus st;
    *out_report = NULL;
    MOE_TRY_GOTO(st, read_wish(o, &p), done);
    MOE_TRY_GOTO(st, survey(&p), done);
    MOE_TRY_GOTO(st, shortlist(&p), done);
    if (p.best < 0) {
        st = nothing_fits(&p);
        goto done;
    }
    const MoePlannerRow *best = &p.rows[p.best];
    if (best->placement) /* the same pool without the first placement: what that is worth */
        MOE_TRY_GOTO(st, judge(&p, &best->candidate, NULL, &usual), done);
    set_candidate(d, &best->candidate);
    MoePlannerReport r = {.cluster = &p.cluster, .load = *d->trace ? d->trace : *d->load ? d->load : "balanced",
                          .memory_limit = p.wish.memory_limit, .rows = p.rows, .n_rows = p.n_rows, .best = (size_t)p.best,
                          .usual = usual.predicted.seconds > 0 ? &usual : NULL, .considered = p.n + p.dropped,
                          .dropped = p.dropped + p.too_large, .refused = p.refused, .seconds = moe_now() - p.start};
    *out_report = moe_planner_json(&r);
done:
    moe_arena_destroy(p.a);
    return st;
}
