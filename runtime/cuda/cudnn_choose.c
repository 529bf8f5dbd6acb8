/* What runs each kind of attention: rank 0 decides, by the checkpoint that the run goes on from, else by the cache, else by measuring;
 * all ranks prove that they can, and all do the same. See cuda/cudnn.h, choices.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "runtime/cuda/cudnn.h"

typedef struct {
    MoeDeviceCuda *d;
    MoeExec *x;
    MoeAttentionMode mode;
    bool speaks;
    char place[256]; /* of the cache: device, driver, library */
    bool measured;
} Choosing;

/* ---- texts ---- */

void moe_attn_choice_text(const MoeAttnChoice *c, char out[MOE_CHOICE_BYTES]) {
    if (c->library)
        snprintf(out, MOE_CHOICE_BYTES, "cudnn %s version=%zu seconds=%.4g emitted=%.4g",
                 moe_cudnn_form_name(c->form), c->version, c->seconds, c->emitted);
    else
        snprintf(out, MOE_CHOICE_BYTES, "emitted seconds=%.4g", c->emitted);
}

bool moe_attn_choice_read(const char *text, MoeAttnChoice *out) {
    char form[16] = "";
    *out = (MoeAttnChoice){0};
    if (sscanf(text, "emitted seconds=%lf", &out->emitted) == 1)
        return true;
    if (sscanf(text, "cudnn %15s version=%zu seconds=%lf emitted=%lf", form, &out->version,
               &out->seconds, &out->emitted) != 4)
        return false;
    out->library = true;
    while (out->form < MOE_N_CUDNN_FORMS && strcmp(moe_cudnn_form_name(out->form), form))
        out->form++;
    return out->form < MOE_N_CUDNN_FORMS;
}

/* Whether the form is one of that kind. */
static bool is_form_of(const MoeAttnKind *k, MoeCudnnForm f) {
    return k->of->grad == (f != MOE_CUDNN_FORWARD);
}

/* ---- one kind, on rank 0 ---- */

/* The fastest form of cuDNN that may be used; library false: there is none. */
static MoeStatus measure(Choosing *c, const MoeAttnKind *k, MoeAttnChoice *out) {
    *out = (MoeAttnChoice){.version = c->d->cudnn->version};
    if (!c->measured)
        moe_note("measuring the plan's attention, with cuDNN %zu.%zu.%zu and by moec's own kernels",
                 c->d->cudnn->version / 10000, c->d->cudnn->version / 100 % 100,
                 c->d->cudnn->version % 100);
    c->measured = true;
    for (MoeCudnnForm f = MOE_CUDNN_FORWARD; f < MOE_N_CUDNN_FORMS; f++) {
        bool good = false;
        double seconds = 0;
        if (!is_form_of(k, f))
            continue;
        MOE_TRY(moe_cuda_cudnn_try(c->d, c->x, k, f, &good, &seconds, &out->emitted));
        if (!good || (out->library && seconds >= out->seconds))
            continue;
        out->library = true;
        out->form = f;
        out->seconds = seconds;
    }
    return NULL;
}

static MoeStatus prove(Choosing *c, const MoeAttnKind *k, const MoeAttnChoice *v, bool *good) {
    double seconds, emitted;
    *good = true;
    if (!v->library)
        return NULL;
    *good = is_form_of(k, v->form);
    return *good ? moe_cuda_cudnn_try(c->d, c->x, k, v->form, good, &seconds, &emitted) : NULL;
}

/* Goes on with what a checkpoint says, if that can be; *done false: it is to be chosen anew. */
static MoeStatus honour(Choosing *c, const MoeAttnKind *k, const char *text, MoeAttnChoice *out,
                        bool *done) {
    *done = moe_attn_choice_read(text, out);
    if (*done && !out->library && c->mode == MOE_ATTENTION_CUDNN) {
        moe_warn(
            "attention %s: the run so far took moec's own kernels; --attention cudnn changes its "
            "bits",
            k->key);
        *done = false;
        return NULL;
    }
    if (*done && out->library && out->version != c->d->cudnn->version)
        moe_warn(
            "attention %s: the checkpoint was made with cuDNN %zu, here is %zu: bits may differ "
            "from those of the run so far",
            k->key, out->version, c->d->cudnn->version);
    out->version = c->d->cudnn->version;
    if (*done)
        MOE_TRY(prove(c, k, out, done));
    if (!*done)
        moe_warn("attention %s: the run so far took \"%s\", which is not to be had here: bits may "
                 "differ "
                 "from those of the run so far",
                 k->key, text);
    return NULL;
}

static MoeStatus decide_one(Choosing *c, MoeAttnKind *k) {
    const char *known = moe_choices_get(&c->x->choices, MOE_ATTN_KIND, k->key);
    char text[MOE_CHOICE_BYTES] = "";
    MoeAttnChoice best;
    bool done = false;
    if (known)
        MOE_TRY(honour(c, k, known, &k->choice, &done));
    if (done)
        return NULL;
    if (moe_choices_cached(MOE_ATTN_KIND, c->place, k->key, text) &&
        moe_attn_choice_read(text, &best))
        MOE_TRY(prove(c, k, &best, &done));
    if (!done) {
        MOE_TRY(measure(c, k, &best));
        moe_attn_choice_text(&best, text);
        moe_choices_keep(MOE_ATTN_KIND, c->place, k->key, text);
    }
    if (best.library && c->mode != MOE_ATTENTION_CUDNN && best.seconds >= best.emitted)
        best.library = false;
    k->choice = best;
    return NULL;
}

static void say(const MoeAttnKind *k) {
    const MoeAttnChoice *v = &k->choice;
    char text[96] = "";
    if (v->library && v->seconds > 0)
        snprintf(text, sizeof text, ": %.3g ms, moec's own kernels %.3g ms", 1e3 * v->seconds,
                 1e3 * v->emitted);
    else if (v->emitted > 0)
        snprintf(text, sizeof text, ": %.3g ms", 1e3 * v->emitted);
    moe_note("attention %s: %s%s", k->key, v->library ? "cuDNN" : "moec's own kernels", text);
}

/* ---- all ranks ---- */

static MoeStatus put(Choosing *c, const MoeAttnKind *k) {
    char text[MOE_CHOICE_BYTES];
    moe_attn_choice_text(&k->choice, text);
    return moe_choices_put(&c->x->choices, MOE_ATTN_KIND, k->key, text);
}

/* All by the plan's kernels; also written down, so that a run that goes on where cuDNN is there keeps its bits. */
static MoeStatus all_emitted(Choosing *c, MoeAttnKind *kinds, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const char *known = moe_choices_get(&c->x->choices, MOE_ATTN_KIND, kinds[i].key);
        MoeAttnChoice was;
        if (c->speaks && known && moe_attn_choice_read(known, &was) && was.library)
            moe_warn(
                "attention %s: of the run so far cuDNN's; it goes on by moec's own kernels, with "
                "other bits",
                kinds[i].key);
        MOE_TRY(put(c, &kinds[i]));
    }
    return NULL;
}

/* The library on this rank, and whether it is the same on all. *usable: on every rank alike. */
static MoeStatus find_library(Choosing *c, bool *usable) {
    MoeComm *comm = c->x->comm;
    MoeStatus st = moe_cuda_cudnn_open(c->d);
    MOE_TRY(moe_choices_same_library(comm, "cuDNN", st ? 0 : (int64_t)c->d->cudnn->version, &st,
                                     usable));
    if (c->mode == MOE_ATTENTION_CUDNN)
        return moe_comm_agree(comm, st, "cuDNN");
    if (c->speaks && st)
        moe_note("attention runs by moec's own kernels: %s", moe_status_message(st));
    moe_status_free(st);
    return NULL;
}

/* Rank 0's choices on all ranks. */
static MoeStatus share(Choosing *c) {
    MoeCudaCudnn *lib = c->d->cudnn;
    MoeStatus st = NULL;
    for (size_t i = 0; i < lib->n_kinds && !st && c->speaks; i++)
        st = decide_one(c, &lib->kinds[i]);
    st = moe_comm_agree(c->x->comm, st, "choosing what runs attention");
    for (size_t i = 0; i < lib->n_kinds && !st; i++) {
        char text[MOE_CHOICE_BYTES];
        moe_attn_choice_text(&lib->kinds[i].choice, text);
        st = moe_choices_share(&c->x->choices, c->x->comm, MOE_ATTN_KIND, lib->kinds[i].key,
                               c->speaks ? text : NULL);
    }
    return st;
}

/* What this rank can do of rank 0's choices: ok[i]. */
static MoeStatus prove_all(Choosing *c, uint8_t *ok) {
    MoeCudaCudnn *lib = c->d->cudnn;
    for (size_t i = 0; i < lib->n_kinds; i++) {
        MoeAttnKind *k = &lib->kinds[i];
        bool good = true;
        const char *text = moe_choices_get(&c->x->choices, MOE_ATTN_KIND, k->key);
        if (!moe_attn_choice_read(text, &k->choice))
            return moe_error(MOE_E_INTERNAL, "attention %s: a choice that cannot be read: %s",
                             k->key, text);
        if (!c->speaks) /* rank 0 has done so */
            MOE_TRY(prove(c, k, &k->choice, &good));
        ok[i] = good;
    }
    return NULL;
}

/* A kind that some rank cannot run so is the plan's kernels' on all. */
static MoeStatus settle(Choosing *c) {
    MoeCudaCudnn *lib = c->d->cudnn;
    size_t n = lib->n_kinds;
    uint8_t *ok = calloc(n + 1, 1);
    int *refused = calloc(n + 1, sizeof *refused);
    MoeStatus st =
        ok && refused ? prove_all(c, ok) : moe_error(MOE_E_NOMEM, "no memory for choices");
    st = moe_choices_refused(c->x->comm, st, ok, n, "proving what runs attention", refused);
    for (size_t i = 0; i < n && !st; i++) {
        if (refused[i] >= 0) {
            lib->kinds[i].choice.library = false;
            st = put(c, &lib->kinds[i]);
            if (c->speaks)
                moe_warn("attention %s: rank %d's GPU does not run rank 0's form of cuDNN with "
                         "bits that "
                         "do not depend on the sequences around: moec's own kernels are used",
                         lib->kinds[i].key, refused[i]);
        }
        if (c->speaks)
            say(&lib->kinds[i]);
    }
    free(ok);
    free(refused);
    return st;
}

static bool any_library(const MoeCudaCudnn *c) {
    for (size_t i = 0; i < c->n_kinds; i++)
        if (c->kinds[i].choice.library)
            return true;
    return false;
}

static MoeStatus choose(Choosing *c, MoeAttnKind *kinds, size_t n) {
    MoeDeviceCuda *d = c->d;
    bool usable = false;
    int driver = 0;
    if (c->mode != MOE_ATTENTION_EMITTED)
        MOE_TRY(find_library(c, &usable));
    if (!usable) {
        moe_cuda_cudnn_close(d);
        return all_emitted(c, kinds, n);
    }
    MOE_TRY(moe_cuda_check(d, d->cu->driver_version(&driver), "cuDriverGetVersion"));
    snprintf(c->place, sizeof c->place, "%s, driver %d, cuDNN %zu, kernels %s", d->name, driver,
             d->cudnn->version, d->plan->target);
    MOE_TRY(share(c));
    MOE_TRY(settle(c));
    if (any_library(d->cudnn))
        return moe_comm_agree(c->x->comm, moe_cuda_cudnn_bind(d, c->x), "attention");
    moe_cuda_cudnn_close(d);
    return NULL;
}

MoeStatus moe_cuda_cudnn_decide(MoeDeviceCuda *d, MoeExec *x) {
    Choosing c = {.d = d, .x = x, .mode = x->attention, .speaks = x->comm->rank == 0};
    MoeAttnKind *kinds;
    size_t n;
    MOE_TRY(moe_attn_kinds(x->plan, &kinds, &n));
    MoeStatus st = n ? choose(&c, kinds, n) : NULL;
    if (!n && c.mode == MOE_ATTENTION_CUDNN && c.speaks)
        moe_note("the plan has no attention that cuDNN could run: bf16, heads of a multiple of 8 "
                 "columns up to 256");
    free(kinds);
    return st;
}
