/* Types of IR values: a tensor of dtype and dims, or a segment table.
 *
 * A dim is static, or ragged: a capacity `size` for planning and a live extent in the segment value `seg`
 * (its last entry). Text: f32[8, 512]   bf16[r<=4096 @%tok, 512]   segs<8,8>.
 * A scalar is [1]. Rank is 1..MOE_MAX_RANK. Only dim 0 may be ragged.
 *
 * segs<G,V>: int32[G*V+1], non-decreasing from 0: the rows of group g and virtual shard v are
 * [s[g*V+v], s[g*V+v+1]). The token segments that the runtime gives are segs<1,V>; an expert's rows, segs<E,V>. */
#ifndef MOE_IR_TYPE_H
#define MOE_IR_TYPE_H

#include <stdbool.h>
#include <stdint.h>
#include "base/str.h"

#define MOE_MAX_RANK 4

/* DTYPE(ID, name, bytes) */
#define MOE_DTYPES(X)                                                                              \
    X(F32, f32, 4)                                                                                 \
    X(BF16, bf16, 2)                                                                               \
    X(I32, i32, 4)

typedef enum {
#define X(id, name, bytes) MOE_##id,
    MOE_DTYPES(X)
#undef X
        MOE_N_DTYPES
} MoeDtype;

struct MoeValue;

typedef struct {
    int64_t size;               /* static extent, or the capacity of a ragged dim; >= 0 */
    const struct MoeValue *seg; /* NULL for a static dim */
} MoeDim;

typedef enum { MOE_TYPE_TENSOR, MOE_TYPE_SEGS } MoeTypeKind;

typedef struct {
    MoeTypeKind kind;
    MoeDtype dtype; /* I32 for segs */
    int rank;
    MoeDim dims[MOE_MAX_RANK];
    int64_t groups, shards; /* segs<G,V> */
} MoeType;

const char *moe_dtype_name(MoeDtype d);
int moe_dtype_bytes(MoeDtype d);
bool moe_dtype_from_name(const char *name, MoeDtype *out);
bool moe_dtype_is_float(MoeDtype d);

MoeType moe_type_1d(MoeDtype d, int64_t n);
MoeType moe_type_2d(MoeDtype d, MoeDim rows, int64_t cols);
MoeType moe_type_3d(MoeDtype d, int64_t a, int64_t b, int64_t c);
MoeType moe_type_segs(int64_t groups, int64_t shards);
MoeDim moe_dim(int64_t n);
MoeDim moe_dim_ragged(int64_t capacity, const struct MoeValue *seg);

/* Caps on what text and shape rules may make: elements of a tensor, int32 entries of a segs table, its shards. */
#define MOE_MAX_ELEMENTS     ((int64_t)1 << 48)
#define MOE_MAX_SEGS_ENTRIES ((int64_t)1 << 24)
#define MOE_MAX_SEGS_SHARDS  64

bool moe_dim_equal(MoeDim a,
                   MoeDim b); /* the same extent: equal size and the same seg value (or none) */
/* NULL if the type keeps the rules above (rank, caps, dim 0 alone ragged, over a segs value), else what is wrong (static text). */
const char *moe_type_check(const MoeType *t);
bool moe_type_equal(const MoeType *a, const MoeType *b); /* dtype, dims and the same seg values */
bool moe_type_same_shape(const MoeType *a, const MoeType *b); /* all but the dtype */
int64_t moe_type_elements(const MoeType *t);                  /* at capacity; G*V+1 for segs */
int64_t moe_type_bytes(const MoeType *t);                     /* at capacity */
int64_t moe_type_cols(const MoeType *t); /* last dim (rank 1: the whole extent) */
void moe_type_print(const MoeType *t, MoeStr *out);

/* Static dims as an attribute's text, "8,1024,512". From text: sets rank and dims of *t; NULL, or what is wrong (static
 * text). To text: appended to *out. */
const char *moe_dims_from_text(const char *text, MoeType *t);
void moe_dims_to_text(const MoeType *t, MoeStr *out);

#endif
