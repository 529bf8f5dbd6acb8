/* The rows that a group's kernels run over, for every target: all of a static tensor, the live ones of a ragged one, or one
 * group of them after the other. */
#ifndef MOE_CODEGEN_ROW_SPACE_H
#define MOE_CODEGEN_ROW_SPACE_H

#include "ir/graph.h"

typedef enum {
    MOE_ROWS_STATIC, /* rows 0 .. capacity */
    MOE_ROWS_LIVE,   /* rows 0 .. the last entry of the segs table */
    MOE_ROWS_GROUPS, /* group g: rows s[g*V] .. s[(g+1)*V] */
    MOE_ROWS_RANGE   /* one range: i32 lo, hi at the start of the buffer */
} MoeRowMode;

/* Which rows a product runs over. */
typedef struct {
    MoeRowMode mode;
    int64_t capacity, groups, shards;
    int64_t expected; /* rows that work is divided for (moe_segs_expected_rows) */
    int buf;          /* the table's kernel buffer; unused for STATIC */
} MoeRowSpace;

MoeRowSpace moe_row_space(const MoeType *rows, bool grouped, int buf);

#endif
