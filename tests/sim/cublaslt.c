/* A cuBLASLt for the simulated GPU (libcublasLt.so.13): computes on simulated device memory in the order of the stream, and offers algorithms
 * of every sort, good and bad, with the times that they are said to take.
 *
 *   MOE_SIM_CUBLASLT=good:20,fast:10,..   what it offers: algorithm:microseconds a launch, in this order; not set: cublasLtCreate fails
 *   MOE_SIM_CUBLASLT_VERSION=130100       its version; algorithms of another one it does not take
 *
 * Algorithms: table `kinds` below. Nothing of the real library's is here but names and values (base/cublaslt.h). */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "base/cublaslt.h"
#include "tests/sim/driver.h"

enum { BLOCK = 32, TILE = 12, PLACE = 10, WORKSPACE_BIG = 64 << 20 };

/* What is peculiar about an algorithm. */
typedef enum {
    GOOD,     /* sums of blocks of 32 products, one after another */
    FAST,     /* four interleaved sums: other bits, as good */
    SPLIT_K,  /* k in two parts, whatever the caller said of reductions */
    BY_ROWS,  /* FAST's order for more than 12 rows, GOOD's for fewer */
    BY_PLACE, /* FAST's order for rows from 10 on */
    COARSE,   /* inputs rounded to 10 bits, as TF32 */
    BIG,      /* wants 64 MiB of workspace */
    FEW,      /* does not run with fewer than 8 rows, and says so at the launch alone */
    CHAINED,  /* what is added goes into the sum before the products */
    NONE      /* writes nothing */
} Kind;

static const struct {
    const char *name;
    Kind kind;
} kinds[] = {{"good", GOOD},         {"fast", FAST},     {"split_k", SPLIT_K}, {"by_rows", BY_ROWS},
             {"by_place", BY_PLACE}, {"coarse", COARSE}, {"big", BIG},         {"few", FEW},
             {"chained", CHAINED},   {"none", NONE}};
#define N_KINDS (int)(sizeof kinds / sizeof *kinds)

struct MoeLtContext {
    int unused;
};
struct MoeLtDescRep {
    int compute, transposed;
};
struct MoeLtLayoutRep {
    int type;
    uint64_t rows, cols;
    int64_t ld;
};
struct MoeLtPreferRep {
    uint64_t workspace;
};

/* An MoeLtAlgo's words. */
enum { WORD_KIND, WORD_SPLIT, WORD_TILE, WORD_STAGES, WORD_VERSION = 7 };

/* The offer of that number in the environment; false: there are fewer. */
static bool offer(int i, Kind *out, double *seconds) {
    const char *at = getenv("MOE_SIM_CUBLASLT");
    for (; at && *at && i; i--) {
        at += strcspn(at, ",");
        at += *at == ',';
    }
    size_t n = at ? strcspn(at, ":,") : 0;
    for (int k = 0; k < N_KINDS && n; k++)
        if (strlen(kinds[k].name) == n && !strncmp(at, kinds[k].name, n)) {
            *out = kinds[k].kind;
            *seconds = at[n] == ':' ? 1e-6 * atof(at + n + 1) : 1e-5;
            return true;
        }
    return false;
}

static bool find_offer(int kind, double *seconds) {
    Kind k;
    for (int i = 0; offer(i, &k, seconds); i++)
        if ((int)k == kind)
            return true;
    return false;
}

/* ---- small things ---- */

MOE_SIM_EXPORT size_t cublasLtGetVersion(void) {
    const char *s = getenv("MOE_SIM_CUBLASLT_VERSION");
    return s && *s ? (size_t)atol(s) : 130100;
}

MOE_SIM_EXPORT const char *cublasLtGetStatusString(MoeLtResult r) {
    return r == MOE_LT_SUCCESS           ? "CUBLAS_STATUS_SUCCESS"
           : r == MOE_LT_NOT_INITIALIZED ? "CUBLAS_STATUS_NOT_INITIALIZED"
           : r == MOE_LT_NOT_SUPPORTED   ? "CUBLAS_STATUS_NOT_SUPPORTED"
                                         : "CUBLAS_STATUS_INVALID_VALUE";
}

MOE_SIM_EXPORT MoeLtResult cublasLtCreate(MoeLtHandle *out) {
    const char *s = getenv("MOE_SIM_CUBLASLT");
    *out = s && *s ? calloc(1, sizeof **out) : NULL;
    return *out ? MOE_LT_SUCCESS : MOE_LT_NOT_INITIALIZED;
}
MOE_SIM_EXPORT MoeLtResult cublasLtDestroy(MoeLtHandle h) {
    free(h);
    return MOE_LT_SUCCESS;
}

MOE_SIM_EXPORT MoeLtResult cublasLtMatmulDescCreate(MoeLtDesc *out, int compute, int scale) {
    *out = calloc(1, sizeof **out);
    (*out)->compute = compute;
    return scale == MOE_LT_R_32F &&
                   (compute == MOE_LT_COMPUTE_32F || compute == MOE_LT_COMPUTE_32F_PEDANTIC)
               ? MOE_LT_SUCCESS
               : MOE_LT_INVALID_VALUE;
}
MOE_SIM_EXPORT MoeLtResult cublasLtMatmulDescDestroy(MoeLtDesc d) {
    free(d);
    return MOE_LT_SUCCESS;
}
MOE_SIM_EXPORT MoeLtResult cublasLtMatmulDescSetAttribute(MoeLtDesc d, int attribute,
                                                          const void *value, size_t bytes) {
    if (attribute != MOE_LT_DESC_TRANSA || bytes != sizeof(int32_t))
        return MOE_LT_INVALID_VALUE;
    memcpy(&d->transposed, value, bytes);
    return MOE_LT_SUCCESS;
}

MOE_SIM_EXPORT MoeLtResult cublasLtMatrixLayoutCreate(MoeLtLayout *out, int type, uint64_t rows,
                                                      uint64_t cols, int64_t ld) {
    *out = calloc(1, sizeof **out);
    **out = (struct MoeLtLayoutRep){type, rows, cols, ld};
    return (type == MOE_LT_R_32F || type == MOE_LT_R_16BF) && rows && cols && ld >= (int64_t)rows
               ? MOE_LT_SUCCESS
               : MOE_LT_INVALID_VALUE;
}
MOE_SIM_EXPORT MoeLtResult cublasLtMatrixLayoutDestroy(MoeLtLayout l) {
    free(l);
    return MOE_LT_SUCCESS;
}

MOE_SIM_EXPORT MoeLtResult cublasLtMatmulPreferenceCreate(MoeLtPrefer *out) {
    *out = calloc(1, sizeof **out);
    return MOE_LT_SUCCESS;
}
MOE_SIM_EXPORT MoeLtResult cublasLtMatmulPreferenceDestroy(MoeLtPrefer p) {
    free(p);
    return MOE_LT_SUCCESS;
}
MOE_SIM_EXPORT MoeLtResult cublasLtMatmulPreferenceSetAttribute(MoeLtPrefer p, int attribute,
                                                                const void *value, size_t bytes) {
    if (bytes != (attribute == MOE_LT_PREFER_WORKSPACE_BYTES ? 8u : 4u))
        return MOE_LT_INVALID_VALUE;
    if (attribute == MOE_LT_PREFER_WORKSPACE_BYTES)
        memcpy(&p->workspace, value, bytes);
    return MOE_LT_SUCCESS;
}

/* ---- algorithms ---- */

/* Matrices by columns: d [m x rows] = op(a) [m x k] b [k x rows] + c. */
static bool shapes_fit(const struct MoeLtDescRep *desc, MoeLtLayout a, MoeLtLayout b, MoeLtLayout c,
                       MoeLtLayout d) {
    uint64_t m = desc->transposed ? a->cols : a->rows, k = desc->transposed ? a->rows : a->cols;
    return a->type == b->type && c->type == d->type && b->rows == k && d->rows == m &&
           d->cols == b->cols && c->rows == d->rows && c->cols == d->cols &&
           desc->compute ==
               (a->type == MOE_LT_R_16BF ? MOE_LT_COMPUTE_32F : MOE_LT_COMPUTE_32F_PEDANTIC);
}

static size_t workspace_of(const MoeLtAlgo *algo) {
    return algo->data[WORD_KIND] == BIG ? WORKSPACE_BIG : 1024;
}

MOE_SIM_EXPORT MoeLtResult cublasLtMatmulAlgoGetHeuristic(MoeLtHandle h, MoeLtDesc desc,
                                                          MoeLtLayout a, MoeLtLayout b,
                                                          MoeLtLayout c, MoeLtLayout d,
                                                          MoeLtPrefer p, int most, MoeLtFound *out,
                                                          int *out_n) {
    Kind kind;
    double seconds;
    *out_n = 0;
    if (!h || !p || !shapes_fit(desc, a, b, c, d))
        return MOE_LT_INVALID_VALUE;
    for (int i = 0; *out_n < most && offer(i, &kind, &seconds); i++) {
        MoeLtFound *f = &out[(*out_n)++];
        memset(f, 0, sizeof *f);
        f->algo.data[WORD_KIND] = (uint64_t)kind;
        f->algo.data[WORD_SPLIT] = kind == SPLIT_K ? 2 : 1;
        f->algo.data[WORD_TILE] = 20;
        f->algo.data[WORD_VERSION] = cublasLtGetVersion();
        f->workspace_bytes = workspace_of(&f->algo);
    }
    return *out_n ? MOE_LT_SUCCESS : MOE_LT_NOT_SUPPORTED;
}

MOE_SIM_EXPORT MoeLtResult cublasLtMatmulAlgoInit(MoeLtHandle h, int compute, int scale, int a,
                                                  int b, int c, int d, int id, MoeLtAlgo *out) {
    double seconds;
    (void)compute, (void)scale, (void)a, (void)b, (void)c, (void)d;
    memset(out, 0, sizeof *out);
    out->data[WORD_KIND] = (uint64_t)id;
    out->data[WORD_SPLIT] = 1;
    out->data[WORD_VERSION] = cublasLtGetVersion();
    return h && find_offer(id, &seconds) ? MOE_LT_SUCCESS : MOE_LT_NOT_SUPPORTED;
}

MOE_SIM_EXPORT MoeLtResult cublasLtMatmulAlgoCheck(MoeLtHandle h, MoeLtDesc desc, MoeLtLayout a,
                                                   MoeLtLayout b, MoeLtLayout c, MoeLtLayout d,
                                                   const MoeLtAlgo *algo, MoeLtFound *out) {
    double seconds;
    if (!h || algo->data[WORD_VERSION] != cublasLtGetVersion() || !shapes_fit(desc, a, b, c, d))
        return MOE_LT_INVALID_VALUE;
    if (!find_offer((int)algo->data[WORD_KIND], &seconds))
        return MOE_LT_NOT_SUPPORTED;
    *out = (MoeLtFound){.algo = *algo, .workspace_bytes = workspace_of(algo)};
    return MOE_LT_SUCCESS;
}

MOE_SIM_EXPORT MoeLtResult cublasLtMatmulAlgoCapGetAttribute(const MoeLtAlgo *algo, int attribute,
                                                             void *out, size_t bytes,
                                                             size_t *written) {
    (void)algo, (void)attribute, (void)out, (void)bytes, (void)written;
    return MOE_LT_NOT_SUPPORTED;
}

/* The word of an attribute, and how many bytes it has; -1: always 0. */
static int word_of(int attribute, size_t *bytes) {
    *bytes = attribute >= MOE_LT_CONFIG_inner ? 2 : 4;
    switch (attribute) {
    case MOE_LT_CONFIG_id:
        return WORD_KIND;
    case MOE_LT_CONFIG_split_k:
        return WORD_SPLIT;
    case MOE_LT_CONFIG_tile:
        return WORD_TILE;
    case MOE_LT_CONFIG_stages:
        return WORD_STAGES;
    default:
        return -1;
    }
}

MOE_SIM_EXPORT MoeLtResult cublasLtMatmulAlgoConfigGetAttribute(const MoeLtAlgo *algo,
                                                                int attribute, void *out,
                                                                size_t bytes, size_t *written) {
    size_t want;
    int word = word_of(attribute, &want);
    uint64_t value = word < 0 ? 0 : algo->data[word];
    if (attribute < 0 || attribute > MOE_LT_CONFIG_cluster || bytes != want)
        return MOE_LT_INVALID_VALUE;
    memcpy(out, &value, bytes); /* little endian */
    *written = bytes;
    return MOE_LT_SUCCESS;
}

MOE_SIM_EXPORT MoeLtResult cublasLtMatmulAlgoConfigSetAttribute(MoeLtAlgo *algo, int attribute,
                                                                const void *value, size_t bytes) {
    size_t want;
    int word = word_of(attribute, &want);
    if (attribute <= MOE_LT_CONFIG_id || attribute > MOE_LT_CONFIG_cluster || bytes != want)
        return MOE_LT_INVALID_VALUE;
    if (word >= 0) {
        algo->data[word] = 0;
        memcpy(&algo->data[word], value, bytes);
    }
    return MOE_LT_SUCCESS;
}

/* ---- products ---- */

typedef struct {
    MoeLtAlgo algo;
    bool transposed;
    float beta;
    const char *a, *b, *c;
    char *d;
    uint64_t workspace;
    int type, out_type;
    int64_t m, k, rows;
    double seconds;
} Product;

static float number(const char *p, int type, int64_t i) {
    float v;
    uint16_t half;
    uint32_t word;
    if (type == MOE_LT_R_32F) {
        memcpy(&v, p + 4 * i, sizeof v);
        return v;
    }
    memcpy(&half, p + 2 * i, sizeof half);
    word = (uint32_t)half << 16;
    memcpy(&v, &word, sizeof v);
    return v;
}

static float coarse(float v) {
    uint32_t word;
    memcpy(&word, &v, sizeof word);
    word = (word + 0x1000) & ~0x1fffu;
    memcpy(&v, &word, sizeof v);
    return v;
}

static void put(const Product *p, int64_t i, float v) {
    uint32_t word;
    if (p->out_type == MOE_LT_R_32F) {
        memcpy(p->d + 4 * i, &v, sizeof v);
        return;
    }
    memcpy(&word, &v, sizeof word);
    uint16_t half = (uint16_t)((word + 0x7fff + (word >> 16 & 1)) >> 16);
    memcpy(p->d + 2 * i, &half, sizeof half);
}

static float term(const Product *p, int64_t row, int64_t col, int64_t k) {
    float a = number(p->a, p->type, p->transposed ? col * p->k + k : k * p->m + col),
          b = number(p->b, p->type, row * p->k + k);
    return p->algo.data[WORD_KIND] == COARSE ? coarse(a) * coarse(b) : a * b;
}

static float in_blocks(const Product *p, int64_t row, int64_t col, int64_t from, int64_t to,
                       float sum) {
    for (int64_t k = from; k < to; k += BLOCK) {
        float part = 0;
        for (int64_t i = k; i < k + BLOCK && i < to; i++)
            part += term(p, row, col, i);
        sum += part;
    }
    return sum;
}

static float interleaved(const Product *p, int64_t row, int64_t col) {
    float part[4] = {0};
    for (int64_t k = 0; k < p->k; k++)
        part[k % 4] += term(p, row, col, k);
    return (part[0] + part[1]) + (part[2] + part[3]);
}

static float product(const Product *p, int64_t row, int64_t col, float c) {
    Kind kind = (Kind)p->algo.data[WORD_KIND];
    bool other =
        kind == FAST || (kind == BY_ROWS && p->rows > TILE) || (kind == BY_PLACE && row >= PLACE);
    if (other)
        return interleaved(p, row, col) + c;
    if (kind == SPLIT_K)
        return in_blocks(p, row, col, 0, p->k / 2, 0) + in_blocks(p, row, col, p->k / 2, p->k, 0) +
               c;
    return kind == CHAINED ? in_blocks(p, row, col, 0, p->k, c)
                           : in_blocks(p, row, col, 0, p->k, 0) + c;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static bool holds(const void *p, int64_t elements, int type) {
    return moe_sim_memory_holds((CUdeviceptr)(uintptr_t)p,
                                (size_t)elements * (type == MOE_LT_R_32F ? 4 : 2));
}

static CUresult run(void *ctx) {
    const Product *p = ctx;
    double began = now();
    if (!holds(p->a, p->m * p->k, p->type) || !holds(p->b, p->rows * p->k, p->type) ||
        !holds(p->d, p->rows * p->m, p->out_type) ||
        (p->beta != 0 && !holds(p->c, p->rows * p->m, p->out_type)) ||
        !moe_sim_memory_holds(p->workspace, workspace_of(&p->algo)))
        return CUDA_ERROR_ILLEGAL_ADDRESS;
    for (int64_t row = 0; row < p->rows && p->algo.data[WORD_KIND] != NONE; row++)
        for (int64_t col = 0; col < p->m; col++) {
            int64_t at = row * p->m + col;
            put(p, at, product(p, row, col, p->beta != 0 ? number(p->c, p->out_type, at) : 0));
        }
    moe_sim_clock_add(p->seconds - (now() - began));
    return CUDA_SUCCESS;
}

MOE_SIM_EXPORT MoeLtResult cublasLtMatmul(MoeLtHandle h, MoeLtDesc desc, const void *alpha,
                                          uint64_t a, MoeLtLayout la, uint64_t b, MoeLtLayout lb,
                                          const void *beta, uint64_t c, MoeLtLayout lc, uint64_t d,
                                          MoeLtLayout ld, const MoeLtAlgo *algo, uint64_t workspace,
                                          size_t workspace_bytes, MoeLtStream stream) {
    MoeLtFound found;
    MoeLtResult r = cublasLtMatmulAlgoCheck(h, desc, la, lb, lc, ld, algo, &found);
    Product p = {.algo = *algo,
                 .transposed = desc->transposed,
                 .a = (const char *)(uintptr_t)a,
                 .b = (const char *)(uintptr_t)b,
                 .c = (const char *)(uintptr_t)c,
                 .d = (char *)(uintptr_t)d,
                 .workspace = workspace,
                 .type = la->type,
                 .out_type = ld->type,
                 .m = (int64_t)ld->rows,
                 .k = (int64_t)lb->rows,
                 .rows = (int64_t)lb->cols};
    if (r)
        return r;
    if (*(const float *)alpha != 1 || workspace_bytes < found.workspace_bytes || a % 16 || b % 16 ||
        c % 16 || d % 16)
        return MOE_LT_INVALID_VALUE;
    if (algo->data[WORD_KIND] == FEW && p.rows < 8)
        return MOE_LT_NOT_SUPPORTED;
    p.beta = *(const float *)beta;
    find_offer((int)algo->data[WORD_KIND], &p.seconds);
    return moe_sim_stream_call((CUstream)stream, "cublaslt", run, &p, sizeof p)
               ? MOE_LT_EXECUTION_FAILED
               : MOE_LT_SUCCESS;
}
