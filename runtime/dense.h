/* Dense products that a library may run in place of the plan's kernels (docs/GPU.md, "Dense products"): which of a plan's steps are the
 * same product, and what is chosen for one, as the text of a choice (choices.h, kind "dense"). */
#ifndef MOE_RUNTIME_DENSE_H
#define MOE_RUNTIME_DENSE_H

#include "base/cublaslt.h"
#include "runtime/choices.h"
#include "runtime/plan.h"

#define MOE_DENSE_KIND "dense"

enum { MOE_DENSE_MAX_ROWS = 16, MOE_DENSE_KEY_BYTES = 96 };

/* Steps of any program that differ in nothing but their rows. */
typedef struct {
    MoePlanDense shape;               /* of the step with the most rows */
    size_t program, step;             /* that step */
    char key[MOE_DENSE_KEY_BYTES];    /* "n 4096 k 1024 bf16 to f32 transposed added" */
    int64_t rows[MOE_DENSE_MAX_ROWS]; /* of these steps, each number once, descending */
    int n_rows;
} MoeDenseProduct;

/* The plan's products, in order of first use (malloc'd; NULL: none), those alone whose rows and results lie in the slab, at places that
 * do not grow. */
MoeStatus moe_dense_products(const MoePlan *p, MoeDenseProduct **out, size_t *out_n);
/* The product of a step; n: it is none. */
size_t moe_dense_find(const MoeDenseProduct *products, size_t n, const MoePlanStep *s);
void moe_dense_key(const MoePlanDense *d, char out[MOE_DENSE_KEY_BYTES]);

/* An algorithm's attributes, as the library's (base/cublaslt.h). */
typedef struct {
#define X(member, value, type) type member;
    MOE_LT_CONFIG(X)
#undef X
} MoeLtConfig;

/* What runs a product. */
typedef struct {
    bool library;   /* this algorithm of the library; else the plan's kernel */
    size_t version; /* of the library */
    MoeLtAlgo algo;
    MoeLtConfig config;
    double rate,
        emitted_rate; /* FLOP/s as measured, of the algorithm and of the plan's kernel; 0: unknown */
} MoeDenseChoice;

/* "emitted", or "cublaslt version=130100 algo=HEX id=.. ... rate=.. emitted=..". */
void moe_dense_choice_text(const MoeDenseChoice *c, char out[MOE_CHOICE_BYTES]);
/* false: it is no such text. */
bool moe_dense_choice_read(const char *text, MoeDenseChoice *out);

#endif
