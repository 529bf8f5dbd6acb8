/* See svg.h. */
#include "placement/svg.h"

#include <math.h>
#include <stdarg.h>
#include <string.h>

void moe_svg_begin(MoeStr *out, double width, double height) {
    moe_str_printf(out,
                   "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<svg "
                   "xmlns=\"http://www.w3.org/2000/svg\" width=\"%g\" height=\"%g\" "
                   "viewBox=\"0 0 %g %g\" font-family=\"Helvetica, Arial, sans-serif\">\n<rect "
                   "width=\"%g\" height=\"%g\" "
                   "fill=\"#ffffff\"/>\n",
                   width, height, width, height, width, height);
}

void moe_svg_end(MoeStr *out) {
    moe_str_append(out, "</svg>\n");
}

static void escape(MoeStr *out, const char *text) {
    size_t bad = 0;
    bool utf8 = moe_utf8_valid(text, strlen(text), &bad);
    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        const char *entity = *p == '<'   ? "&lt;"
                             : *p == '>' ? "&gt;"
                             : *p == '&' ? "&amp;"
                             : *p == '"' ? "&quot;"
                                         : NULL;
        if (entity)
            moe_str_append(out, entity);
        else
            moe_str_putc(out, *p < 32 || (*p >= 128 && !utf8) ? '?' : (char)*p);
    }
}

void moe_svg_text(MoeStr *out, double x, double y, MoeSvgAnchor anchor, double size,
                  const char *style, const char *fmt, ...) {
    static const char *const anchors[] = {"start", "middle", "end"};
    MoeStr text = {0};
    va_list ap;
    va_start(ap, fmt);
    moe_str_vprintf(&text, fmt, ap);
    va_end(ap);
    moe_str_printf(out, "<text x=\"%.1f\" y=\"%.1f\" font-size=\"%g\" text-anchor=\"%s\"%s%s>", x,
                   y, size, anchors[anchor], *style ? " " : "", style);
    escape(out, moe_str_c(&text));
    moe_str_append(out, "</text>\n");
    moe_str_free(&text);
}

void moe_svg_text_up(MoeStr *out, double x, double y, double size, const char *text) {
    moe_str_printf(out,
                   "<text transform=\"translate(%.1f %.1f) rotate(-90)\" font-size=\"%g\" "
                   "text-anchor=\"middle\">",
                   x, y, size);
    escape(out, text);
    moe_str_append(out, "</text>\n");
}

void moe_svg_line(MoeStr *out, double x1, double y1, double x2, double y2, const char *style) {
    moe_str_printf(out, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" %s/>\n", x1, y1, x2,
                   y2, style);
}

void moe_svg_rect(MoeStr *out, MoeSvgBox b, const char *style) {
    moe_str_printf(out, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" %s/>\n", b.x,
                   b.y, b.width, b.height, style);
}

/* ---- axes ---- */

MoeSvgAxis moe_svg_axis(double lo, double hi, int n, bool round, bool whole) {
    if (!(hi > lo))
        hi = lo + 1;
    double rough = (hi - lo) / n, power = pow(10, floor(log10(rough))), m = rough / power;
    double step = (m <= 1 ? 1 : m <= 2 ? 2 : m <= 5 ? 5 : 10) * power;
    if (whole && step < 1)
        step = 1;
    MoeSvgAxis a = {lo, hi, step};
    if (round) {
        a.lo = floor(lo / step + 1e-9) * step;
        a.hi = ceil(hi / step - 1e-9) * step;
    }
    return a;
}

double moe_svg_x(const MoeSvgAxis *a, MoeSvgBox b, double v) {
    return b.x + (v - a->lo) / (a->hi - a->lo) * b.width;
}

double moe_svg_y(const MoeSvgAxis *a, MoeSvgBox b, double v) {
    return b.y + b.height - (v - a->lo) / (a->hi - a->lo) * b.height;
}

/* Zero without a sign. */
static double first_tick(const MoeSvgAxis *a) {
    return ceil(a->lo / a->step - 1e-9) * a->step + 0.0;
}

void moe_svg_axes(MoeStr *out, MoeSvgBox b, const MoeSvgAxis *x, const char *x_title,
                  const MoeSvgAxis *y, const char *y_title, bool grid) {
    const char *tick = "stroke=\"#000000\" stroke-width=\"1\"";
    double bottom = b.y + b.height;
    for (double v = y ? first_tick(y) : 1; y && v <= y->hi + y->step * 1e-6; v += y->step) {
        double at = moe_svg_y(y, b, v);
        if (grid)
            moe_svg_line(out, b.x, at, b.x + b.width, at,
                         "stroke=\"#d8d8d8\" stroke-width=\"0.7\"");
        moe_svg_line(out, b.x - 4, at, b.x, at, tick);
        moe_svg_text(out, b.x - 7, at + 4, MOE_SVG_END, 11, "", "%.6g", v);
    }
    for (double v = x ? first_tick(x) : 1; x && v <= x->hi + x->step * 1e-6; v += x->step) {
        double at = moe_svg_x(x, b, v);
        moe_svg_line(out, at, bottom, at, bottom + 4, tick);
        moe_svg_text(out, at, bottom + 16, MOE_SVG_MIDDLE, 11, "", "%.9g", v);
    }
    moe_svg_rect(out, b, "fill=\"none\" stroke=\"#000000\" stroke-width=\"1\"");
    if (x_title)
        moe_svg_text(out, b.x + b.width / 2, bottom + 32, MOE_SVG_MIDDLE, 12, "", "%s", x_title);
    if (y_title)
        moe_svg_text_up(out, b.x - 44, b.y + b.height / 2, 12, y_title);
}

/* ---- colours ---- */

static const char *const colours[MOE_SVG_LEVELS] = {
    "#ffffff", "#fff4d6", "#ffe9b0", "#ffdc8c", "#ffcc6d", "#ffba56", "#fda547", "#f8903f",
    "#ef7a3d", "#e2643f", "#d14f45", "#bb3d4d", "#a12d55", "#842058", "#651753", "#450f47"};

const char *moe_svg_colour(int level) {
    return colours[level < 0 ? 0 : level >= MOE_SVG_LEVELS ? MOE_SVG_LEVELS - 1 : level];
}

bool moe_svg_is_dark(int level) {
    return level >= 9;
}

/* Eight colours that the colour-blind keep apart (Okabe and Ito, "Color Universal Design", 2008), dashes for paper without any. */
const char *moe_svg_line_style(size_t i) {
    static const char *const styles[] = {
        "stroke=\"#000000\"",
        "stroke=\"#0072b2\"",
        "stroke=\"#d55e00\"",
        "stroke=\"#009e73\" stroke-dasharray=\"7 3\"",
        "stroke=\"#cc79a7\" stroke-dasharray=\"2 2\"",
        "stroke=\"#56b4e9\" stroke-dasharray=\"9 2 2 2\"",
        "stroke=\"#e69f00\" stroke-dasharray=\"4 4\"",
        "stroke=\"#7f7f7f\" stroke-dasharray=\"12 4\"",
        "stroke=\"#0072b2\" stroke-dasharray=\"2 4\"",
        "stroke=\"#d55e00\" stroke-dasharray=\"5 2 1 2\"",
        "stroke=\"#009e73\"",
    };
    return styles[i % (sizeof styles / sizeof *styles)];
}
