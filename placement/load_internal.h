/* What the readers of load traces share (load.c, load_csv.c, load_matrix.c, load_router.c): rows of a trace in any order, put in
 * order and checked to be complete. */
#ifndef MOE_PLACEMENT_LOAD_INTERNAL_H
#define MOE_PLACEMENT_LOAD_INTERNAL_H

#include <stddef.h>
#include "placement/load.h"

/* One row: the counts of a layer's source at a step. */
typedef struct {
    int64_t step, layer; /* layer: as the file numbers it */
    int32_t source;      /* the file's rank; its place among the layer's ranks once arranged */
    int32_t file;        /* index into MoeLoadRows.files */
    int64_t line;
    int32_t place;    /* of the layer, once arranged */
    int32_t n;        /* counts in data; of CSV as many as the header says */
    const void *data; /* the reader's */
} MoeLoadRow;

typedef struct {
    const char **files;
    MoeLoadRow *rows;
    size_t n, cap;
    bool sum;     /* rows of one step, layer and source are added up, else they are an error */
    bool growing; /* a last step that is not complete is left out, else it is an error */
} MoeLoadRows;

/* Sorts the rows, numbers layers and sources, checks that every step has every source of every layer; fills in all of `out` but
 * experts and counts. */
MoeStatus moe_load_arrange(MoeLoadRows *r, MoeArena *a, MoeLoad *out);
/* counts for l->experts, zeroed. MOE_E_INPUT if they are more than is ever needed. */
MoeStatus moe_load_allocate(const char *path, MoeArena *a, MoeLoad *l);
/* Where a row's counts go. */
int32_t *moe_load_cell(const MoeLoad *l, const MoeLoadRow *r);
/* MOE_E_INPUT if a layer has more rows at a step than an int32 holds. */
MoeStatus moe_load_check_totals(const char *path, const MoeLoad *l);

MoeStatus moe_load_read_csv(const char *path, const char *text, size_t n, bool growing, MoeArena *a,
                            MoeLoad *out);
MoeStatus moe_load_read_matrix(const char *path, const char *text, size_t n, MoeArena *a,
                               MoeLoad *out);
MoeStatus moe_load_read_router(const char **paths, int n_paths, MoeArena *a, MoeLoad *out);

#endif
