/* See plot.h. A report is a title and panels below each other, all over the same time: the chart of imbalance, the heat map of the
 * watched layer's experts, a map of slots for each policy that moves experts. */
#include "placement/plot.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "placement/svg.h"

#define PAGE_WIDTH  1000.0
#define LEFT        80.0
#define PLOT_WIDTH  720.0
#define LEGEND_X    (LEFT + PLOT_WIDTH + 16)
#define CHART       260.0
#define ABOVE       34.0 /* of a panel: its title */
#define BELOW       44.0 /* its axis */
#define MAX_COLUMNS 360  /* of heat maps and lines */
#define MAX_ROWS    256
#define MAX_MAPS    8 /* policies whose slots are drawn */

typedef struct {
    const MoeReport *r;
    MoeStr *out;
    double y;
    int steps, layer, columns; /* the watched layer; steps go into so many columns */
    double *heat;              /* [columns][experts]: rows over the mean of the layer's experts */
    double most;               /* where the scale of colours ends */
} Plot;

static int first_step_of(const Plot *p, int column) {
    return (int)((int64_t)column * p->steps / p->columns);
}

static MoeSvgAxis time_axis(const Plot *p) {
    double first = (double)p->r->fixed->first_step;
    return moe_svg_axis(first, first + p->steps, 10, false, true);
}

static MoeSvgBox panel(const Plot *p, double height) {
    return (MoeSvgBox){LEFT, p->y + ABOVE, PLOT_WIDTH, height};
}

static void panel_title(Plot *p, const char *title) {
    moe_svg_text(p->out, LEFT, p->y + ABOVE - 10, MOE_SVG_START, 13, "font-weight=\"bold\"", "%s",
                 title);
}

/* ---- imbalance over time ---- */

/* Mean over layers and the steps of a column. */
static double imbalance_at(const Plot *p, const MoeReplay *x, int column) {
    int from = first_step_of(p, column), to = first_step_of(p, column + 1);
    double sum = 0;
    for (int64_t i = (int64_t)from * x->layers; i < (int64_t)to * x->layers; i++)
        sum += x->imbalance[i];
    return sum / ((double)(to - from) * x->layers);
}

static void draw_lines(Plot *p, MoeSvgBox b, const MoeSvgAxis *x, const MoeSvgAxis *y) {
    for (size_t i = 0; i < p->r->n_replays; i++) {
        const MoeReplay *re = &p->r->replays[i];
        double label = b.y + 8 + 18 * (double)i;
        moe_str_printf(
            p->out,
            "<polyline fill=\"none\" stroke-width=\"1.4\" stroke-linejoin=\"round\" %s points=\"",
            moe_svg_line_style(i));
        for (int c = 0; c < p->columns; c++)
            moe_str_printf(p->out, "%.1f,%.1f ",
                           moe_svg_x(x, b,
                                     (double)re->first_step +
                                         (first_step_of(p, c) + first_step_of(p, c + 1)) / 2.0),
                           moe_svg_y(y, b, imbalance_at(p, re, c)));
        moe_str_append(p->out, "\"/>\n");
        MoeStr style = {0};
        moe_str_printf(&style, "stroke-width=\"2\" %s", moe_svg_line_style(i));
        moe_svg_line(p->out, LEGEND_X, label - 4, LEGEND_X + 28, label - 4, moe_str_c(&style));
        moe_str_free(&style);
        moe_svg_text(p->out, LEGEND_X + 34, label, MOE_SVG_START, 12, "", "%s %.3f", re->policy,
                     re->all.mean);
    }
}

static void draw_chart(Plot *p) {
    MoeSvgBox b = panel(p, CHART);
    double most = 1;
    for (size_t i = 0; i < p->r->n_replays; i++)
        for (int c = 0; c < p->columns; c++)
            most = fmax(most, imbalance_at(p, &p->r->replays[i], c));
    MoeSvgAxis x = time_axis(p), y = moe_svg_axis(1, most, 6, true, false);
    int warmup = p->r->options->warmup;
    panel_title(p, "Imbalance over time");
    if (warmup > 0) {
        double to = moe_svg_x(&x, b, (double)p->r->fixed->first_step + warmup);
        moe_svg_rect(p->out, (MoeSvgBox){b.x, b.y, to - b.x, b.height}, "fill=\"#eeeeee\"");
    }
    moe_svg_axes(p->out, b, &x, "step", &y, "busiest rank's rows / mean", true);
    draw_lines(p, b, &x, &y);
    double below = b.y + 8 + 18 * (double)p->r->n_replays + 6;
    moe_svg_text(p->out, LEGEND_X, below, MOE_SVG_START, 10, "fill=\"#444444\"",
                 "mean of the layers;");
    moe_svg_text(p->out, LEGEND_X, below + 13, MOE_SVG_START, 10, "fill=\"#444444\"",
                 "numbers: from step %lld on%s", (long long)(p->r->fixed->first_step + warmup),
                 warmup > 0 ? "" : " (all)");
    if (warmup > 0)
        moe_svg_text(p->out, LEGEND_X, below + 26, MOE_SVG_START, 10, "fill=\"#444444\"",
                     "(grey: the warm-up)");
    p->y += ABOVE + CHART + BELOW;
}

/* ---- colours of load ---- */

static int by_value(const void *a, const void *b) {
    const double *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

static void fill_heat(Plot *p) {
    const MoeLoad *l = p->r->load;
    size_t n = (size_t)p->columns * (size_t)l->experts;
    p->heat = calloc(n, sizeof *p->heat);
    double *sorted = malloc(n * sizeof *sorted);
    MOE_ASSERT(p->heat && sorted, "no memory to draw %zu cells", n);
    for (int c = 0; c < p->columns; c++) {
        double *row = p->heat + (size_t)c * (size_t)l->experts, total = 0;
        for (int s = first_step_of(p, c); s < first_step_of(p, c + 1); s++) {
            const int32_t *counts = moe_load_at(l, s % l->steps, p->layer);
            for (int i = 0; i < l->sources * l->experts; i++) {
                row[i % l->experts] += counts[i];
                total += counts[i];
            }
        }
        for (int e = 0; e < l->experts; e++)
            row[e] *= total > 0 ? l->experts / total : 0;
    }
    memcpy(sorted, p->heat, n * sizeof *sorted);
    qsort(sorted, n, sizeof *sorted, by_value);
    p->most = ceil(fmax(2, sorted[(size_t)(0.995 * (double)(n - 1))]));
    free(sorted);
}

static int level_of(const Plot *p, double load) {
    return (int)fmin(load / p->most * MOE_SVG_LEVELS, MOE_SVG_LEVELS - 1);
}

static void draw_scale(Plot *p, double top, double height) {
    MoeSvgBox b = {LEGEND_X, top, 14, height};
    for (int i = 0; i < MOE_SVG_LEVELS; i++) {
        MoeStr style = {0};
        moe_str_printf(&style, "fill=\"%s\"", moe_svg_colour(i));
        moe_svg_rect(p->out,
                     (MoeSvgBox){b.x, b.y + b.height * (MOE_SVG_LEVELS - 1 - i) / MOE_SVG_LEVELS,
                                 b.width, b.height / MOE_SVG_LEVELS + 0.5},
                     moe_str_c(&style));
        moe_str_free(&style);
    }
    moe_svg_rect(p->out, b, "fill=\"none\" stroke=\"#000000\" stroke-width=\"0.7\"");
    MoeSvgAxis y = moe_svg_axis(0, p->most, 4, false, true);
    for (double v = 0; v <= p->most + 1e-9; v += y.step)
        moe_svg_text(p->out, b.x + b.width + 5, moe_svg_y(&y, b, v) + 4, MOE_SVG_START, 11, "",
                     "%g%s", v, v >= p->most ? " or more" : "");
    moe_svg_text(p->out, b.x, b.y + b.height + 16, MOE_SVG_START, 10, "fill=\"#444444\"",
                 "rows of an expert / mean");
}

/* ---- load of experts ---- */

/* One path a level, of rectangles as long as the level stays. */
static void draw_cells(Plot *p, MoeSvgBox b, int rows, int levels[]) {
    double w = b.width / p->columns, h = b.height / rows;
    for (int level = 1; level < MOE_SVG_LEVELS; level++) { /* 0 is the paper */
        bool any = false;
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < p->columns;) {
                int end = c;
                while (end < p->columns && levels[(size_t)end * (size_t)rows + (size_t)r] == level)
                    end++;
                if (end == c) {
                    c++;
                    continue;
                }
                if (!any)
                    moe_str_printf(p->out, "<path shape-rendering=\"crispEdges\" fill=\"%s\" d=\"",
                                   moe_svg_colour(level));
                any = true;
                moe_str_printf(p->out, "M%.1f %.2fh%.1fv%.2fh%.1fz", b.x + c * w, b.y + r * h,
                               (end - c) * w, h, -(end - c) * w);
                c = end;
            }
        if (any)
            moe_str_append(p->out, "\"/>\n");
    }
}

static void draw_heat(Plot *p) {
    const MoeLoad *l = p->r->load;
    int rows = l->experts < MAX_ROWS ? l->experts : MAX_ROWS;
    double height = fmin(fmax(rows * 10.0, 120), 360);
    MoeSvgBox b = panel(p, height);
    int *levels = malloc(sizeof *levels * (size_t)p->columns * (size_t)rows);
    MOE_ASSERT(levels, "no memory to draw");
    for (int c = 0; c < p->columns; c++)
        for (int r = 0; r < rows;
             r++) { /* the first expert at the bottom; of several in a row the hottest */
            int from = (int)((int64_t)(rows - 1 - r) * l->experts / rows),
                to = (int)((int64_t)(rows - r) * l->experts / rows);
            double most = 0;
            for (int e = from; e < to; e++)
                most = fmax(most, p->heat[(size_t)c * (size_t)l->experts + (size_t)e]);
            levels[(size_t)c * (size_t)rows + (size_t)r] = level_of(p, most);
        }
    MoeStr title = {0};
    moe_str_printf(&title, "Load of layer %d's experts%s", l->layer[p->layer],
                   rows < l->experts ? " (a line shows the hottest of some)" : "");
    panel_title(p, moe_str_c(&title));
    moe_str_free(&title);
    draw_cells(p, b, rows, levels);
    free(levels);
    MoeSvgAxis x = time_axis(p), y = moe_svg_axis(-0.5, l->experts - 0.5, 8, false, true);
    moe_svg_axes(p->out, b, &x, "step", &y, "expert", false);
    draw_scale(p, b.y, fmin(height, 160));
    p->y += ABOVE + height + BELOW;
}

/* ---- slots over time ---- */

typedef struct {
    MoeSvgBox b;
    const MoeReplay *re;
    int shown; /* slots */
    double row;
    MoeSvgAxis x;
} Slots;

/* What slot g held from its map `from` up to map `to`, with the load that its expert had meanwhile. */
static void draw_stay(Plot *p, const Slots *s, int g, size_t from, size_t to) {
    const MoePlaceMap *m = &s->re->watched[from].map;
    int e = m->expert[g], experts = p->r->load->experts;
    if (e < 0)
        return;
    int64_t first = s->re->watched[from].step,
            last = to < s->re->n_watched ? s->re->watched[to].step : s->re->first_step + p->steps;
    double sum = 0, x0 = moe_svg_x(&s->x, s->b, (double)first),
           x1 = moe_svg_x(&s->x, s->b, (double)last), y = s->b.y + g * s->row;
    int n = 0;
    for (int c = 0; c < p->columns; c++) {
        int64_t at = s->re->first_step + first_step_of(p, c);
        if (at >= first && at < last) {
            sum += p->heat[(size_t)c * (size_t)experts + (size_t)e];
            n++;
        }
    }
    int level = level_of(p, n ? sum / n : 0);
    MoeStr style = {0};
    moe_str_printf(&style, "fill=\"%s\" stroke=\"#8c8c8c\" stroke-width=\"0.3\"",
                   moe_svg_colour(level));
    moe_svg_rect(p->out, (MoeSvgBox){x0, y, x1 - x0, s->row}, moe_str_c(&style));
    moe_str_clear(&style);
    double size = fmin(s->row - 1, 10);
    moe_str_printf(&style, "%s%s", moe_svg_is_dark(level) ? "fill=\"#ffffff\"" : "",
                   m->primary[e] == g ? " font-weight=\"bold\"" : "");
    if (size >= 6 && x1 - x0 >= (e < 10 ? 0.8 : e < 100 ? 1.4 : 2) * size)
        moe_svg_text(p->out, (x0 + x1) / 2, y + s->row / 2 + size * 0.36, MOE_SVG_MIDDLE, size,
                     moe_str_c(&style), "%d", e);
    moe_str_free(&style);
}

/* Whether a slot's picture changes between two maps: another expert, or another role of it. */
static bool changes(const MoePlaceMap *a, const MoePlaceMap *b, int g) {
    int e = a->expert[g];
    return e != b->expert[g] || (e >= 0 && (a->primary[e] == g) != (b->primary[e] == g));
}

static void draw_slots(Plot *p, const MoeReplay *re) {
    const MoeReplayOptions *o = p->r->options;
    int ranks = o->ranks, most = MAX_ROWS / re->slots > 0 ? MAX_ROWS / re->slots : 1;
    ranks = ranks < most ? ranks : most;
    Slots s = {.re = re, .shown = ranks * re->slots, .x = time_axis(p)};
    double height = fmin(fmax(s.shown * 11.0, 90), 520);
    s.b = panel(p, height);
    s.row = height / s.shown;
    MoeStr title = {0};
    moe_str_printf(&title, "Layer %d's experts in slots, policy %s: %d arrivals",
                   p->r->load->layer[p->layer], re->policy, (int)re->layer[p->layer].arrivals);
    if (ranks < o->ranks)
        moe_str_printf(&title, " (the first %d of %d ranks)", ranks, o->ranks);
    panel_title(p, moe_str_c(&title));
    moe_str_free(&title);
    for (int g = 0; g < s.shown; g++)
        for (size_t from = 0, to; from < re->n_watched; from = to) {
            for (to = from + 1;
                 to < re->n_watched && !changes(&re->watched[from].map, &re->watched[to].map, g);)
                to++;
            draw_stay(p, &s, g, from, to);
        }
    int every = 1;
    while (ranks / every * 11.0 > height)
        every *= 2;
    for (int r = 0; r < ranks; r++) {
        double y = s.b.y + r * re->slots * s.row;
        if (r)
            moe_svg_line(p->out, s.b.x, y, s.b.x + s.b.width, y,
                         "stroke=\"#000000\" stroke-width=\"0.8\"");
        if (r % every == 0)
            moe_svg_text(p->out, s.b.x - 7, y + re->slots * s.row / 2 + 4, MOE_SVG_END, 11, "",
                         "%d", r);
    }
    moe_svg_axes(p->out, s.b, &s.x, "step", NULL, "rank", false);
    moe_svg_text(p->out, LEGEND_X, s.b.y + 10, MOE_SVG_START, 10, "fill=\"#444444\"",
                 "numbers: experts");
    moe_svg_text(p->out, LEGEND_X, s.b.y + 23, MOE_SVG_START, 10, "fill=\"#444444\"",
                 "(bold: the primary copy)");
    moe_svg_text(p->out, LEGEND_X, s.b.y + 36, MOE_SVG_START, 10, "fill=\"#444444\"",
                 "colours: their load, as above");
    p->y += ABOVE + height + BELOW;
}

/* ---- a report ---- */

static void draw_report(Plot *p) {
    const MoeReport *r = p->r;
    const MoeReplayOptions *o = r->options;
    moe_svg_text(p->out, LEFT, p->y + 24, MOE_SVG_START, 16, "font-weight=\"bold\"", "%s",
                 r->trace);
    moe_svg_text(p->out, LEFT, p->y + 42, MOE_SVG_START, 12, "",
                 "%d experts, %d layer%s; %d ranks of %d slots; decisions every %d steps",
                 r->load->experts, r->load->layers, r->load->layers == 1 ? "" : "s",
                 o->ranks * o->groups, r->fixed->slots, o->every);
    p->y += 50;
    draw_chart(p);
    if (p->layer < 0)
        return;
    fill_heat(p);
    draw_heat(p);
    int drawn = 0;
    for (size_t i = 0; i < r->n_replays; i++)
        if (r->replays[i].n_watched > 1 && drawn++ < MAX_MAPS)
            draw_slots(p, &r->replays[i]);
    free(p->heat);
}

void moe_plot(const MoeReport *reports, size_t n, MoeStr *out) {
    MoeStr body = {0};
    double y = 6;
    for (size_t i = 0; i < n; i++) {
        int steps = reports[i].fixed->steps;
        Plot p = {.r = &reports[i],
                  .out = &body,
                  .y = y,
                  .steps = steps,
                  .layer = reports[i].options->watch,
                  .columns = steps < MAX_COLUMNS ? steps : MAX_COLUMNS};
        draw_report(&p);
        y = p.y + 10;
    }
    moe_svg_begin(out, PAGE_WIDTH, y);
    moe_str_append_n(out, moe_str_c(&body), body.len);
    moe_svg_end(out);
    moe_str_free(&body);
}
