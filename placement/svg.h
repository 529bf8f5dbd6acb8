/* The few shapes that plots consist of, as SVG text. Coordinates are CSS pixels, y downwards. */
#ifndef MOE_PLACEMENT_SVG_H
#define MOE_PLACEMENT_SVG_H

#include <stdbool.h>
#include "base/str.h"

typedef struct {
    double x, y, width, height;
} MoeSvgBox;

typedef enum { MOE_SVG_START, MOE_SVG_MIDDLE, MOE_SVG_END } MoeSvgAnchor;

void moe_svg_begin(MoeStr *out, double width, double height);
void moe_svg_end(MoeStr *out);
/* Text, escaped. size: of the font. */
void moe_svg_text(MoeStr *out, double x, double y, MoeSvgAnchor anchor, double size,
                  const char *style, const char *fmt, ...) MOE_PRINTF(7, 8);
/* A title that runs upwards, centred at (x, y). */
void moe_svg_text_up(MoeStr *out, double x, double y, double size, const char *text);
void moe_svg_line(MoeStr *out, double x1, double y1, double x2, double y2, const char *style);
void moe_svg_rect(MoeStr *out, MoeSvgBox b, const char *style);

/* An axis: values lo..hi over the length of a side of the box. */
typedef struct {
    double lo, hi, step; /* step: between ticks */
} MoeSvgAxis;
/* Ends on ticks if `round`, else just covers lo..hi; about n ticks; whole numbers only if `whole`. */
MoeSvgAxis moe_svg_axis(double lo, double hi, int n, bool round, bool whole);
double moe_svg_x(const MoeSvgAxis *a, MoeSvgBox b, double v);
double moe_svg_y(const MoeSvgAxis *a, MoeSvgBox b, double v);
/* Frame, ticks, numbers and titles; grid: lines across at the y axis's ticks. NULL: no such axis. */
void moe_svg_axes(MoeStr *out, MoeSvgBox b, const MoeSvgAxis *x, const char *x_title,
                  const MoeSvgAxis *y, const char *y_title, bool grid);

/* A scale of colours from light to dark, which paper without colour keeps apart: level 0 to MOE_SVG_LEVELS - 1. */
enum { MOE_SVG_LEVELS = 16 };
const char *moe_svg_colour(int level); /* "#rrggbb" */
bool moe_svg_is_dark(int level);
/* Line i of a chart: its colour and dashes, as a style. */
const char *moe_svg_line_style(size_t i);

#endif
