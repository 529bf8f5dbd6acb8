/* What runs each dense product: rank 0 decides, by the checkpoint that the run goes on from, else by the cache, else by measuring; all
 * ranks prove that they can, and all do the same. See cuda/blaslt.h, choices.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "runtime/cuda/blaslt.h"

typedef struct {
    MoeDeviceCuda *d;
    MoeExec *x;
    MoeDenseMode mode;
    bool speaks;
    char place[256]; /* of the cache: device, driver, library */
    char version[24];
    size_t n_measured;
} Choosing;

static const char *key_of(const Choosing *c, size_t i) {
    return c->d->blaslt->products[i].key;
}

/* ---- one product, on rank 0 ---- */

/* With its measurement: what the mode makes of it. */
static MoeDenseChoice decision(const Choosing *c, const MoeDenseChoice *best) {
    bool library =
        best->library && (c->mode == MOE_DENSE_CUBLASLT || best->rate > best->emitted_rate);
    return library ? *best : (MoeDenseChoice){.emitted_rate = best->emitted_rate};
}

static MoeStatus differs(const Choosing *c, size_t i, const char *why) {
    if (c->mode == MOE_DENSE_SAME)
        return moe_error(
            MOE_E_INPUT,
            "product %s: the checkpoint was made with cuBLASLt, and %s; --dense auto goes on "
            "with other bits",
            key_of(c, i), why);
    moe_warn(
        "product %s: the checkpoint was made with cuBLASLt, and %s: bits may differ from those "
        "of the run so far (--dense same would refuse)",
        key_of(c, i), why);
    return NULL;
}

/* Goes on with what a checkpoint says, if that can be; *done false: it is to be chosen anew. */
static MoeStatus honour(Choosing *c, size_t i, const char *text, MoeDenseChoice *out, bool *done) {
    char why[160], was[24];
    *done = false;
    if (!moe_dense_choice_read(text, out))
        return differs(c, i, "what it says of that is nothing that this moec knows");
    if (!out->library) { /* a wish for the library goes before what was */
        *done = c->mode != MOE_DENSE_CUBLASLT;
        if (!*done)
            moe_warn(
                "product %s: the run so far took moec's own kernel; --dense cublaslt changes its "
                "bits",
                key_of(c, i));
        return NULL;
    }
    if (out->version != c->d->blaslt->version) {
        snprintf(why, sizeof why, "version %s of it, here is %s",
                 moe_cublaslt_version_text(out->version, was), c->version);
        MOE_TRY(differs(c, i, why));
        if (!moe_cuda_blaslt_rebuild(c->d, i, &out->config, &out->algo))
            return NULL;
        out->version = c->d->blaslt->version;
        return moe_cuda_blaslt_verify(c->d, c->x, i, out, done);
    }
    MOE_TRY(moe_cuda_blaslt_verify(c->d, c->x, i, out, done));
    return *done ? NULL : differs(c, i, "its algorithm does not run here");
}

static MoeStatus decide_one(Choosing *c, size_t i, MoeDenseChoice *out) {
    const char *key = key_of(c, i), *known = moe_choices_get(&c->x->choices, MOE_DENSE_KIND, key);
    char text[MOE_CHOICE_BYTES] = "";
    MoeDenseChoice best = {.library = false};
    bool done = false;
    if (known)
        MOE_TRY(honour(c, i, known, out, &done));
    if (done)
        return NULL;
    if (moe_choices_cached(MOE_DENSE_KIND, c->place, key, text) &&
        moe_dense_choice_read(text, &best))
        done = !best.library;
    if (best.library)
        MOE_TRY(moe_cuda_blaslt_verify(c->d, c->x, i, &best, &done));
    if (!done) {
        if (!c->n_measured++)
            moe_note("measuring the plan's %zu dense products, with cuBLASLt %s and by moec's own "
                     "kernels",
                     c->d->blaslt->n_products, c->version);
        MOE_TRY(moe_cuda_blaslt_measure(c->d, c->x, i, &best));
        moe_dense_choice_text(&best, text);
        moe_choices_keep(MOE_DENSE_KIND, c->place, key, text);
    }
    *out = decision(c, &best);
    return NULL;
}

static void say(const Choosing *c, size_t i, const MoeDenseChoice *v) {
    char text[96] = "";
    if (v->library && v->rate > 0)
        snprintf(text, sizeof text, ": %.3g TFLOP/s, moec's own kernel %.3g", v->rate * 1e-12,
                 v->emitted_rate * 1e-12);
    else if (v->emitted_rate > 0)
        snprintf(text, sizeof text, ": %.3g TFLOP/s", v->emitted_rate * 1e-12);
    moe_note("dense product %s: %s%s", key_of(c, i), v->library ? "cuBLASLt" : "moec's own kernel",
             text);
}

/* ---- all ranks ---- */

/* Every product by the plan's kernels. */
static MoeStatus all_emitted(Choosing *c, const MoeDenseProduct *products, size_t n) {
    size_t changed = 0;
    for (size_t i = 0; i < n; i++) {
        MoeDenseChoice was, now = {.library = false};
        char text[MOE_CHOICE_BYTES];
        const char *known = moe_choices_get(&c->x->choices, MOE_DENSE_KIND, products[i].key);
        changed += known && (!moe_dense_choice_read(known, &was) || was.library);
        moe_dense_choice_text(&now, text);
        MOE_TRY(moe_choices_put(&c->x->choices, MOE_DENSE_KIND, products[i].key, text));
    }
    if (changed && c->speaks)
        moe_warn("%zu dense products of the run so far were cuBLASLt's; they go on by moec's own "
                 "kernels, "
                 "with other bits",
                 changed);
    return NULL;
}

/* The library on this rank, and whether it is the same on all. *out_usable: on every rank alike. */
static MoeStatus find_library(Choosing *c, bool *out_usable) {
    MoeComm *comm = c->x->comm;
    MoeStatus st = moe_cuda_blaslt_open(c->d);
    MOE_TRY(moe_choices_same_library(comm, "cuBLASLt", st ? 0 : (int64_t)c->d->blaslt->version, &st,
                                     out_usable));
    if (*out_usable || c->mode == MOE_DENSE_CUBLASLT)
        return moe_comm_agree(comm, st, "cuBLASLt");
    if (c->speaks && st)
        moe_note("dense products run by moec's own kernels: %s", moe_status_message(st));
    moe_status_free(st);
    return NULL;
}

/* Whether a checkpoint wants the library for any product. */
static bool is_wanted(const Choosing *c, const MoeDenseProduct *products, size_t n) {
    for (size_t i = 0; i < n; i++) {
        MoeDenseChoice was;
        const char *known = moe_choices_get(&c->x->choices, MOE_DENSE_KIND, products[i].key);
        if (known && moe_dense_choice_read(known, &was) && was.library)
            return true;
    }
    return false;
}

/* Rank 0's choices on all ranks. */
static MoeStatus share(Choosing *c) {
    MoeCudaBlasLt *b = c->d->blaslt;
    MoeStatus st = NULL;
    for (size_t i = 0; i < b->n_products && !st && c->speaks; i++)
        st = decide_one(c, i, &b->run[i].choice);
    st = moe_comm_agree(c->x->comm, st, "choosing what runs dense products");
    for (size_t i = 0; i < b->n_products && !st; i++) {
        char text[MOE_CHOICE_BYTES];
        moe_dense_choice_text(&b->run[i].choice, text);
        st = moe_choices_share(&c->x->choices, c->x->comm, MOE_DENSE_KIND, key_of(c, i),
                               c->speaks ? text : NULL);
    }
    return st;
}

/* What this rank can do of it: ok[i]. */
static MoeStatus prove(Choosing *c, uint8_t *ok) {
    MoeCudaBlasLt *b = c->d->blaslt;
    for (size_t i = 0; i < b->n_products; i++) {
        bool good = true;
        const char *text = moe_choices_get(&c->x->choices, MOE_DENSE_KIND, key_of(c, i));
        if (!moe_dense_choice_read(text, &b->run[i].choice))
            return moe_error(MOE_E_INTERNAL, "product %s: a choice that cannot be read: %s",
                             key_of(c, i), text);
        if (b->run[i].choice.library && !c->speaks) /* rank 0 has done so */
            MOE_TRY(moe_cuda_blaslt_verify(c->d, c->x, i, &b->run[i].choice, &good));
        ok[i] = good;
    }
    return NULL;
}

/* A product that some rank cannot do is the kernel's on all. */
static MoeStatus settle(Choosing *c) {
    MoeCudaBlasLt *b = c->d->blaslt;
    size_t n = b->n_products;
    uint8_t *ok = calloc(n + 1, 1);
    int *refused = calloc(n + 1, sizeof *refused);
    MoeStatus st = ok && refused ? prove(c, ok) : moe_error(MOE_E_NOMEM, "no memory for choices");
    st = moe_choices_refused(c->x->comm, st, ok, n, "proving what runs dense products", refused);
    for (size_t i = 0; i < n && !st; i++) {
        char text[MOE_CHOICE_BYTES];
        if (refused[i] >= 0) {
            b->run[i].choice = (MoeDenseChoice){.emitted_rate = b->run[i].choice.emitted_rate};
            moe_dense_choice_text(&b->run[i].choice, text);
            st = moe_choices_put(&c->x->choices, MOE_DENSE_KIND, key_of(c, i), text);
            if (c->speaks)
                moe_warn(
                    "product %s: rank %d's GPU does not run rank 0's algorithm of cuBLASLt with "
                    "bits that do not depend on the rows around: moec's own kernel is used",
                    key_of(c, i), refused[i]);
        }
        if (c->speaks)
            say(c, i, &b->run[i].choice);
    }
    free(ok);
    free(refused);
    return st;
}

static bool any_library(const MoeCudaBlasLt *b) {
    for (size_t i = 0; i < b->n_products; i++)
        if (b->run[i].choice.library)
            return true;
    return false;
}

static MoeStatus choose(Choosing *c, const MoeDenseProduct *products, size_t n) {
    bool usable = false;
    int driver = 0;
    if (c->mode == MOE_DENSE_EMITTED) {
        moe_cuda_blaslt_close(c->d);
        return all_emitted(c, products, n);
    }
    MOE_TRY(find_library(c, &usable));
    if (!usable) {
        moe_cuda_blaslt_close(c->d);
        if (c->mode == MOE_DENSE_SAME && is_wanted(c, products, n))
            return moe_error(MOE_E_INPUT,
                             "--dense same: the checkpoint was made with cuBLASLt, which cannot "
                             "be used here; --dense auto goes on with other bits");
        return all_emitted(c, products, n);
    }
    MOE_TRY(moe_cuda_check(c->d, c->d->cu->driver_version(&driver), "cuDriverGetVersion"));
    moe_cublaslt_version_text(c->d->blaslt->version, c->version);
    snprintf(c->place, sizeof c->place, "%s, driver %d, cuBLASLt %zu, kernels %s", c->d->name,
             driver, c->d->blaslt->version, c->d->plan->target);
    MOE_TRY(share(c));
    MOE_TRY(settle(c));
    if (any_library(c->d->blaslt))
        return moe_comm_agree(c->x->comm, moe_cuda_blaslt_bind(c->d, c->x), "dense products");
    moe_cuda_blaslt_close(c->d);
    return NULL;
}

MoeStatus moe_cuda_decide(MoeDevice *base, MoeExec *x) {
    Choosing c = {
        .d = (MoeDeviceCuda *)base, .x = x, .mode = x->dense, .speaks = x->comm->rank == 0};
    MoeDenseProduct *products;
    size_t n;
    MOE_TRY(moe_cuda_enter(c.d));
    MOE_TRY(moe_dense_products(x->plan, &products, &n));
    MoeStatus st = n ? choose(&c, products, n) : NULL;
    free(products);
    return st ? st : moe_cuda_cudnn_decide(c.d, x);
}
