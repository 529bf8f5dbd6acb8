/* See dense.h. */
#include "runtime/dense.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- products ---- */

static const char *dtype_name(MoePlanDtype d) {
    return d == MOE_PLAN_BF16 ? "bf16" : "f32";
}

void moe_dense_key(const MoePlanDense *d, char out[MOE_DENSE_KEY_BYTES]) {
    snprintf(out, MOE_DENSE_KEY_BYTES, "n %lld k %lld %s to %s%s%s", (long long)d->n,
             (long long)d->k, dtype_name(d->dtype), dtype_name(d->out_dtype),
             d->transposed ? " transposed" : "", d->c >= 0 ? " added" : "");
}

size_t moe_dense_find(const MoeDenseProduct *products, size_t n, const MoePlanStep *s) {
    char key[MOE_DENSE_KEY_BYTES];
    if (!s->dense)
        return n;
    moe_dense_key(s->dense, key);
    for (size_t i = 0; i < n; i++)
        if (!strcmp(products[i].key, key))
            return i;
    return n;
}

/* Whether buffer b of the step is memory of the slab that is there from the start. */
static bool is_fixed(const MoePlanProgram *g, const MoePlanStep *s, int b) {
    const MoePlanValue *v = &g->values[s->buf_value[b]];
    return v->kind == MOE_VALUE_SLAB && !v->elastic;
}

static bool is_product(const MoePlanProgram *g, const MoePlanStep *s) {
    const MoePlanDense *d = s->dense;
    return d && is_fixed(g, s, d->a) && is_fixed(g, s, d->out) &&
           (d->c < 0 || is_fixed(g, s, d->c)) && !g->values[s->buf_value[d->b]].elastic;
}

static void add_rows(MoeDenseProduct *p, int64_t rows) {
    int at = 0;
    while (at < p->n_rows && p->rows[at] > rows)
        at++;
    if ((at < p->n_rows && p->rows[at] == rows) || at == MOE_DENSE_MAX_ROWS)
        return;
    if (p->n_rows < MOE_DENSE_MAX_ROWS)
        p->n_rows++;
    memmove(&p->rows[at + 1], &p->rows[at], sizeof *p->rows * (size_t)(p->n_rows - 1 - at));
    p->rows[at] = rows;
}

static MoeStatus add_step(const MoePlan *p, size_t g, size_t i, MoeDenseProduct **products,
                          size_t *n) {
    const MoePlanStep *s = &p->programs[g].steps[i];
    size_t at = moe_dense_find(*products, *n, s);
    if (at == *n) {
        MoeDenseProduct *more = realloc(*products, (*n + 1) * sizeof *more);
        if (!more)
            return moe_error(MOE_E_NOMEM, "no memory for the plan's products");
        *products = more;
        more[(*n)++] = (MoeDenseProduct){.shape = *s->dense, .program = g, .step = i};
        moe_dense_key(s->dense, more[at].key);
    }
    MoeDenseProduct *product = &(*products)[at];
    if (s->dense->rows > product->shape.rows) {
        product->shape = *s->dense;
        product->program = g;
        product->step = i;
    }
    add_rows(product, s->dense->rows);
    return NULL;
}

MoeStatus moe_dense_products(const MoePlan *p, MoeDenseProduct **out, size_t *out_n) {
    *out = NULL;
    *out_n = 0;
    for (size_t g = 0; g < p->n_programs; g++)
        for (size_t i = 0; i < p->programs[g].n_steps; i++)
            if (is_product(&p->programs[g], &p->programs[g].steps[i])) {
                MoeStatus st = add_step(p, g, i, out, out_n);
                if (st) {
                    free(*out);
                    *out = NULL;
                    *out_n = 0;
                    return st;
                }
            }
    return NULL;
}

/* ---- choices as text ---- */

void moe_dense_choice_text(const MoeDenseChoice *c, char out[MOE_CHOICE_BYTES]) {
    int n = snprintf(out, MOE_CHOICE_BYTES, "%s", c->library ? "cublaslt" : "emitted");
    if (c->library) {
        n += snprintf(out + n, (size_t)(MOE_CHOICE_BYTES - n), " version=%zu algo=", c->version);
        for (size_t i = 0; i < sizeof c->algo.data / sizeof *c->algo.data; i++)
            n += snprintf(out + n, (size_t)(MOE_CHOICE_BYTES - n), "%016" PRIx64, c->algo.data[i]);
#define X(member, value, type)                                                                     \
    n += snprintf(out + n, (size_t)(MOE_CHOICE_BYTES - n), " " #member "=%lld",                    \
                  (long long)c->config.member);
        MOE_LT_CONFIG(X)
#undef X
        n += snprintf(out + n, (size_t)(MOE_CHOICE_BYTES - n), " rate=%.6g", c->rate);
    }
    snprintf(out + n, (size_t)(MOE_CHOICE_BYTES - n), " emitted=%.6g", c->emitted_rate);
}

/* " NAME=" at *at: passes over it. */
static bool skip(const char **at, const char *name) {
    size_t n = strlen(name);
    if (**at != ' ' || strncmp(*at + 1, name, n) || (*at)[1 + n] != '=')
        return false;
    *at += n + 2;
    return true;
}

static bool read_number(const char **at, const char *name, long long *out) {
    char *end;
    if (!skip(at, name))
        return false;
    *out = strtoll(*at, &end, 10);
    bool ok = end > *at;
    *at = end;
    return ok;
}

static bool read_rate(const char **at, const char *name, double *out) {
    char *end;
    if (!skip(at, name))
        return false;
    *out = strtod(*at, &end);
    bool ok = end > *at && *out >= 0;
    *at = end;
    return ok;
}

static bool read_algo(const char **at, MoeLtAlgo *out) {
    if (!skip(at, "algo"))
        return false;
    for (size_t i = 0; i < sizeof out->data / sizeof *out->data; i++, *at += 16) {
        char digits[17] = "";
        if (strspn(*at, "0123456789abcdef") < 16)
            return false;
        memcpy(digits, *at, 16);
        out->data[i] = strtoull(digits, NULL, 16);
    }
    return true;
}

bool moe_dense_choice_read(const char *text, MoeDenseChoice *out) {
    long long n = 0;
    *out = (MoeDenseChoice){.library = !strncmp(text, "cublaslt ", 9)};
    const char *at = text + (out->library ? 8 : 7);
    if (!out->library)
        return !strncmp(text, "emitted ", 8) && read_rate(&at, "emitted", &out->emitted_rate) &&
               !*at;
    if (!read_number(&at, "version", &n) || n < 0 || !read_algo(&at, &out->algo))
        return false;
    out->version = (size_t)n;
#define X(member, value, type)                                                                     \
    if (!read_number(&at, #member, &n) || (long long)(type)n != n)                                 \
        return false;                                                                              \
    out->config.member = (type)n;
    MOE_LT_CONFIG(X)
#undef X
    return read_rate(&at, "rate", &out->rate) && read_rate(&at, "emitted", &out->emitted_rate) &&
           !*at;
}
