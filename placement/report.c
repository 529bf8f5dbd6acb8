/* See report.h. */
#include "placement/report.h"

#include <stdio.h>

#include "base/json.h"

static double speed_up(const MoeReplayFigures *fixed, const MoeReplayFigures *f) {
    return f->seconds > 0 ? fixed->seconds / f->seconds : 1;
}

/* Milliseconds with four digits or so. */
static const char *ms(double seconds, char buf[32]) {
    double v = seconds * 1e3;
    snprintf(buf, 32, v < 0.01 ? "%.4f" : v < 10 ? "%.3f" : v < 1000 ? "%.1f" : "%.0f", v);
    return buf;
}

static double mean_decide(const MoeReplay *r) {
    return r->decide_times ? r->decide_seconds / r->decide_times : 0;
}

/* ---- Markdown ---- */

static void put_figures_md(const MoeReplayFigures *f, const MoeReplayFigures *fixed, MoeStr *out) {
    char a[32], b[32], bytes[32];
    moe_str_printf(out, " %.4f | %.4f | %.4f | %s | %s | %.3f | %lld | %lld | %s |", f->mean,
                   f->p95, f->max, ms(f->seconds, a), ms(f->move_seconds, b), speed_up(fixed, f),
                   (long long)f->arrivals, (long long)f->moves,
                   moe_format_bytes(f->moved_bytes, bytes));
}

#define FIGURES_HEAD                                                                               \
    "imbalance | p95 | max | step ms | of it moves | speed-up | arrivals | moves | moved |"
#define FIGURES_RULE "---:|---:|---:|---:|---:|---:|---:|---:|---:|"

static void put_head_md(const MoeReport *r, MoeStr *out) {
    const MoeLoad *l = r->load;
    const MoeReplayOptions *o = r->options;
    int slots = r->fixed->slots;
    moe_str_printf(out, "# %s\n\n%d experts, %d layer%s, ", r->trace, l->experts, l->layers,
                   l->layers == 1 ? "" : "s");
    if (l->steps == 1)
        moe_str_printf(out, "one step, taken as the load of all steps; ");
    else
        moe_str_printf(out, "steps %lld to %lld; ", (long long)l->first_step,
                       (long long)(l->first_step + l->steps - 1));
    moe_str_printf(out, "%d sources%s; %d ranks", l->sources,
                   r->divided ? " (divided by largest remainder)" : "", o->ranks);
    if (o->groups > 1)
        moe_str_printf(out, " in each of %d groups", o->groups);
    moe_str_printf(out,
                   ", %d slot%s each (%d extra). Asked every %d steps with %d steps of history; "
                   "figures from step %lld on; rows of copies %s, "
                   "grain %d.\n",
                   slots, slots == 1 ? "" : "s", o->extra_slots, o->every, o->window,
                   (long long)(r->fixed->first_step + o->warmup),
                   o->even ? "shared evenly" : "divided by flow", o->grain);
    const MoeCluster *c = &o->cost->cluster;
    moe_str_printf(out, "Times on %s, %d node%s of %d rank%s", r->cluster, c->nodes,
                   c->nodes == 1 ? "" : "s", c->ranks_per_node, c->ranks_per_node == 1 ? "" : "s");
    if (r->scale != 1)
        moe_str_printf(out, ", a row of the trace standing for %.3g", r->scale);
    if (r->fixed->seconds_every > 1)
        moe_str_printf(out, ", of every %dth step", r->fixed->seconds_every);
    moe_str_append(out, ".\n\n");
}

void moe_report_md(const MoeReport *r, MoeStr *out) {
    char a[32], b[32];
    put_head_md(r, out);
    moe_str_append(
        out, "| policy | " FIGURES_HEAD
             " decided | changed | too dear | refused | decide ms | longest |\n|---|" FIGURES_RULE
             "---:|---:|---:|---:|---:|---:|\n");
    for (size_t i = 0; i < r->n_replays; i++) {
        const MoeReplay *x = &r->replays[i];
        moe_str_printf(out, "| %s |", x->policy);
        put_figures_md(&x->all, &r->fixed->all, out);
        moe_str_printf(out, " %d | %d | %d | %d | %s | %s |\n", x->all.decisions, x->all.changes,
                       x->all.too_dear, x->all.refused, ms(mean_decide(x), a),
                       ms(x->decide_worst, b));
    }
    for (size_t i = 0; i < r->n_replays; i++)
        if (*r->replays[i].first_refusal)
            moe_str_printf(out, "\n%s: an answer was refused at %s\n", r->replays[i].policy,
                           r->replays[i].first_refusal);
    if (!r->per_layer)
        return;
    moe_str_append(out, "\n| policy | layer | " FIGURES_HEAD " changed |\n|---|---:|" FIGURES_RULE
                        "---:|\n");
    for (size_t i = 0; i < r->n_replays; i++)
        for (int k = 0; k < r->load->layers; k++) {
            const MoeReplayFigures *f = &r->replays[i].layer[k];
            moe_str_printf(out, "| %s | %d |", r->replays[i].policy, r->load->layer[k]);
            put_figures_md(f, &r->fixed->layer[k], out);
            moe_str_printf(out, " %d |\n", f->changes);
        }
}

/* ---- CSV ---- */

/* A text in a cell: quoted if it has to be. */
static void put_cell(MoeStr *out, const char *text) {
    bool quote = false;
    for (const char *p = text; *p; p++)
        quote |= *p == ',' || *p == '"' || *p == '\n';
    if (quote)
        moe_str_putc(out, '"');
    for (const char *p = text; *p; p++) {
        if (*p == '"')
            moe_str_putc(out, '"');
        moe_str_putc(out, *p);
    }
    if (quote)
        moe_str_putc(out, '"');
}

static void put_line_csv(const MoeReport *r, const MoeReplay *x, int k, MoeStr *out) {
    const MoeReplayFigures *f = k < 0 ? &x->all : &x->layer[k],
                           *fixed = k < 0 ? &r->fixed->all : &r->fixed->layer[k];
    put_cell(out, r->trace);
    moe_str_putc(out, ',');
    put_cell(out, x->policy);
    moe_str_putc(out, ',');
    if (k >= 0)
        moe_str_printf(out, "%d", r->load->layer[k]);
    moe_str_printf(out, ",%d,%d,%.17g,%.17g,%.17g,%.17g,%.17g,%.17g,%lld,%lld,%.17g,%d,%d,%d,%d,",
                   r->options->ranks, x->slots, f->mean, f->p95, f->max, f->seconds,
                   f->move_seconds, speed_up(fixed, f), (long long)f->arrivals, (long long)f->moves,
                   f->moved_bytes, f->decisions, f->changes, f->too_dear, f->refused);
    if (k < 0)
        moe_str_printf(out, "%.17g,%.17g", mean_decide(x), x->decide_worst);
    else
        moe_str_putc(out, ',');
    moe_str_putc(out, '\n');
}

void moe_report_csv(const MoeReport *r, bool header, MoeStr *out) {
    if (header)
        moe_str_append(out, "trace,policy,layer,ranks,slots,imbalance_mean,imbalance_p95,imbalance_"
                            "max,step_seconds,move_seconds,speed_up,"
                            "arrivals,moves,moved_bytes,decisions,changes,too_dear,refused,decide_"
                            "seconds,decide_seconds_max\n");
    for (size_t i = 0; i < r->n_replays; i++) {
        put_line_csv(r, &r->replays[i], -1, out);
        for (int k = 0; k < r->load->layers && r->per_layer; k++)
            put_line_csv(r, &r->replays[i], k, out);
    }
}

/* ---- JSON ---- */

static json_t *figures_json(const MoeReplayFigures *f, const MoeReplayFigures *fixed) {
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:I, s:I, s:f, s:i, s:i, s:i, s:i}",
                     "imbalance_mean", f->mean, "imbalance_p95", f->p95, "imbalance_max", f->max,
                     "step_seconds", f->seconds, "move_seconds", f->move_seconds, "speed_up",
                     speed_up(fixed, f), "arrivals", (json_int_t)f->arrivals, "moves",
                     (json_int_t)f->moves, "moved_bytes", f->moved_bytes, "decisions", f->decisions,
                     "changes", f->changes, "too_dear", f->too_dear, "refused", f->refused);
}

static json_t *policy_json(const MoeReport *r, const MoeReplay *x) {
    json_t *o = figures_json(&x->all, &r->fixed->all);
    json_object_set_new(o, "policy", json_string(x->policy));
    json_object_set_new(o, "decide_seconds", json_real(mean_decide(x)));
    json_object_set_new(o, "decide_seconds_max", json_real(x->decide_worst));
    if (*x->first_refusal)
        json_object_set_new(o, "first_refusal", json_string(x->first_refusal));
    if (r->per_layer) {
        json_t *layers = json_array();
        for (int k = 0; k < x->layers; k++) {
            json_t *l = figures_json(&x->layer[k], &r->fixed->layer[k]);
            json_object_set_new(l, "layer", json_integer(r->load->layer[k]));
            json_array_append_new(layers, l);
        }
        json_object_set_new(o, "layers", layers);
    }
    return o;
}

json_t *moe_report_json(const MoeReport *r) {
    const MoeReplayOptions *o = r->options;
    const MoeLoad *l = r->load;
    json_t *policies = json_array(), *root;
    for (size_t i = 0; i < r->n_replays; i++)
        json_array_append_new(policies, policy_json(r, &r->replays[i]));
    root = json_pack(
        "{s:i, s:i, s:I, s:i, s:i, s:b, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:s, s:f}",
        "experts", l->experts, "layers", l->layers, "first_step", (json_int_t)l->first_step,
        "steps", r->fixed->steps, "sources", l->sources, "divided", (int)r->divided, "ranks",
        o->ranks, "groups", o->groups, "slots", r->fixed->slots, "extra_slots", o->extra_slots,
        "every", o->every, "window", o->window, "warmup", o->warmup, "grain", o->grain, "split",
        o->even ? "even" : "flow", "row_scale", r->scale);
    json_t *trace = json_string(r->trace), *cluster = json_string(r->cluster); /* NULL: no UTF-8 */
    json_object_set_new(root, "trace", trace ? trace : json_null());
    json_object_set_new(root, "cluster", cluster ? cluster : json_null());
    json_object_set_new(root, "seconds_every", json_integer(r->fixed->seconds_every));
    json_object_set_new(root, "policies", policies);
    return root;
}
