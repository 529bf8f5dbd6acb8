/* The list of a plan's weights under Hugging Face names, and reading them from safetensors. See
 * weights.h. */
#include "runtime/weights.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/log.h"

#define NAMED_AT_MOST 20 /* of each kind of fault in an error */

static int compare_weights(const void *a, const void *b) {
    return strcmp(((const MoeWeight *)a)->name, ((const MoeWeight *)b)->name);
}

int moe_param_layer(const MoePlan *plan, const MoePlanParam *p) {
    const char *at = strstr(p->name, "layers.");
    int64_t layer = at ? strtoll(at + strlen("layers."), NULL, 10) : -1;
    if (!p->expert)
        return -1;
    for (size_t k = 0; k < plan->n_moe_layers; k++)
        if (plan->moe_layers[k] == layer || (!at && plan->n_moe_layers == 1))
            return (int)k;
    return -1;
}

/* What this rank has of weight w, tensor e of parameter p. */
static void set_piece(const MoeRankSlices *s, const MoePlanParam *p, int64_t e,
                      const int32_t *place, MoeWeight *w) {
    MoeWeightShape shape = {w->rank, w->dims, -1, -1};
    if (p->stacked)
        shape.slot = place ? place[e] : (int)e;
    if (p->tp_dim >= 0)
        shape.tp_dim = p->tp_dim - (p->stacked ? 1 : 0);
    w->piece = moe_piece_of(s, &shape);
    w->written = moe_piece_written(s, &shape);
}

/* The parameter's weights, with this rank's pieces. */
static MoeStatus add_weights(const MoePlan *plan, const MoeExec *x, size_t param,
                             MoeWeightList *out) {
    const MoePlanParam *p = &plan->params[param];
    int64_t count = p->stacked ? p->dims[0] : 1;
    const char *star = strchr(p->name, '*');
    int layer = moe_param_layer(plan, p);
    const MoePlaceMap *map = layer >= 0 ? moe_exec_map(x, (size_t)layer) : NULL;
    MoeRankSlices slices;
    if (plan->ranks > 1 && (p->stacked != p->expert || (p->expert && layer < 0)))
        return moe_error(MOE_E_CORRUPT, "damaged plan: %s belongs to the experts of no MoE layer",
                         p->name);
    MoeMesh mesh = moe_mesh_division(&plan->mesh, p->division);
    moe_rank_slices(&mesh, moe_exec_rank(x), map ? map->slots : (int)count, &slices);
    for (int64_t e = 0; e < count; e++) {
        MoeWeight *w = &out->items[out->n++];
        w->name = star ? moe_arena_printf(out->arena, "%.*s%lld%s", (int)(star - p->name), p->name,
                                          (long long)e, star + 1)
                       : moe_arena_strdup(out->arena, p->name);
        w->rank = p->rank - (p->stacked ? 1 : 0);
        memcpy(w->dims, p->dims + (p->stacked ? 1 : 0), sizeof *w->dims * (size_t)w->rank);
        w->elements = p->elements / (count ? count : 1);
        w->param = (int)param;
        set_piece(&slices, p, e, map ? map->primary : NULL, w);
    }
    return NULL;
}

MoeStatus moe_weight_list(const MoePlan *plan, const MoeExec *x, MoeWeightList *out) {
    MoeStatus st = NULL;
    *out = (MoeWeightList){0};
    size_t n = 0;
    for (size_t i = 0; i < plan->n_params; i++)
        n += plan->params[i].stacked ? (size_t)plan->params[i].dims[0] : 1;
    if (n > (size_t)16 << 20)
        return moe_error(MOE_E_CORRUPT, "the plan names %zu weights; at most 2^24 are supported",
                         n);
    out->arena = moe_arena_create();
    out->items = MOE_NEW_N(out->arena, MoeWeight, n);
    for (size_t i = 0; i < plan->n_params && !st; i++)
        st = add_weights(plan, x, i, out);
    qsort(out->items, out->n, sizeof *out->items, compare_weights);
    for (size_t i = 1; i < out->n && !st; i++)
        if (!strcmp(out->items[i - 1].name, out->items[i].name))
            st = moe_error(MOE_E_CORRUPT, "damaged plan: two parameters give the weight %s",
                           out->items[i].name);
    if (st)
        moe_weight_list_free(out);
    return st;
}

void moe_weight_list_free(MoeWeightList *l) {
    moe_arena_destroy(l->arena);
    *l = (MoeWeightList){0};
}

const MoeWeight *moe_weight_find(const MoeWeightList *l, const char *name) {
    MoeWeight key = {.name = name};
    return bsearch(&key, l->items, l->n, sizeof *l->items, compare_weights);
}

/* ---- checking a directory against the plan ---- */

static bool same_shape(const MoeWeight *w, const MoeStTensor *t) {
    return w->rank == t->rank && !memcmp(w->dims, t->dims, sizeof *w->dims * (size_t)w->rank);
}

static bool is_float(MoeStDtype d) {
    return d == MOE_ST_F32 || d == MOE_ST_BF16 || d == MOE_ST_F16 || d == MOE_ST_F64;
}

static void print_dims(MoeStr *s, int rank, const int64_t *dims) {
    moe_str_putc(s, '[');
    for (int i = 0; i < rank; i++)
        moe_str_printf(s, "%s%lld", i ? ", " : "", (long long)dims[i]);
    moe_str_putc(s, ']');
}

/* A kind of fault: its first names, and how many there are. */
typedef struct {
    MoeStr text;
    size_t n;
} Faults;

static MoeStr *fault(Faults *f) {
    static const char *const lead = "\n    ";
    if (f->n++ >= NAMED_AT_MOST)
        return NULL;
    moe_str_append(&f->text, lead);
    return &f->text;
}

static void append_faults(MoeStr *out, const char *title, Faults *f) {
    if (f->n)
        moe_str_printf(out, "\n  %s (%zu):%s", title, f->n, moe_str_c(&f->text));
    if (f->n > NAMED_AT_MOST)
        moe_str_printf(out, "\n    and %zu more", f->n - NAMED_AT_MOST);
    moe_str_free(&f->text);
}

static bool is_tied(const MoePlan *plan) {
    return json_is_true(json_object_get(plan->model, "tie_word_embeddings"));
}

/* Tensors that older files carry and nobody reads: rotary tables. */
static bool is_ignorable(const char *name) {
    const char *tail = "rotary_emb.inv_freq";
    size_t n = strlen(name), k = strlen(tail);
    return n >= k && !strcmp(name + n - k, tail);
}

/* lm_head.weight of a tied model: fine when it equals the embedding. */
static MoeStatus check_tied_head(const MoeSafetensors *s, const MoeStTensor *head, bool *out_same) {
    const MoeStTensor *embed = moe_st_find(s, "model.embed_tokens.weight");
    MoeBlockFile *f = NULL, *g = NULL;
    float a[4096], b[4096];
    const int64_t step = 4096;
    MoeStatus st = NULL;
    *out_same = embed && embed->elements == head->elements;
    if (!*out_same)
        return NULL;
    MOE_TRY_GOTO(st, moe_block_open(head->file, 0, NULL, &f), done);
    MOE_TRY_GOTO(st, moe_block_open(embed->file, 0, NULL, &g), done);
    for (int64_t i = 0; *out_same && i < head->elements; i += step) {
        int64_t n = head->elements - i < step ? head->elements - i : step;
        MOE_TRY_GOTO(st, moe_st_pread_f32(f, head, i, n, a), done);
        MOE_TRY_GOTO(st, moe_st_pread_f32(g, embed, i, n, b), done);
        *out_same = !memcmp(a, b, sizeof *a * (size_t)n);
    }
done:
    moe_block_close(f);
    moe_block_close(g);
    return st;
}

static MoeStatus check_tensors(const MoePlan *plan, const MoeWeightList *list,
                               const MoeSafetensors *s, const char *path) {
    Faults missing = {0}, unexpected = {0}, shapes = {0}, dtypes = {0};
    MoeStr *line;
    MoeStatus st = NULL;
    for (size_t i = 0; i < list->n; i++) {
        const MoeWeight *w = &list->items[i];
        const MoeStTensor *t = moe_st_find(s, w->name);
        if (!t && (line = fault(&missing)))
            moe_str_append(line, w->name);
        if (t && !same_shape(w, t) && (line = fault(&shapes))) {
            moe_str_printf(line, "%s is ", w->name);
            print_dims(line, t->rank, t->dims);
            moe_str_append(line, ", expected ");
            print_dims(line, w->rank, w->dims);
        }
        if (t && !is_float(t->dtype) && (line = fault(&dtypes)))
            moe_str_printf(line, "%s is %s, expected F32, BF16 or F16", w->name,
                           moe_st_dtype_name(t->dtype));
    }
    for (size_t i = 0; i < moe_st_count(s) && !st; i++) {
        const MoeStTensor *t = moe_st_at(s, i);
        bool known = moe_weight_find(list, t->name) || is_ignorable(t->name);
        if (!known && is_tied(plan) && !strcmp(t->name, "lm_head.weight") && is_float(t->dtype)) {
            st = check_tied_head(s, t, &known);
            if (!st && !known && (line = fault(&unexpected)))
                moe_str_append(line, "lm_head.weight (the model ties it to "
                                     "model.embed_tokens.weight, from which it differs)");
        } else if (!known && (line = fault(&unexpected))) {
            moe_str_append(line, t->name);
        }
    }
    size_t n = missing.n + unexpected.n + shapes.n + dtypes.n;
    MoeStr text = {0};
    append_faults(&text, "missing", &missing);
    append_faults(&text, "wrong shape", &shapes);
    append_faults(&text, "wrong dtype", &dtypes);
    append_faults(&text, "not in the model", &unexpected);
    if (!st && n)
        st = moe_error(MOE_E_INPUT, "%s does not hold this plan's weights:%s", path,
                       moe_str_c(&text));
    moe_str_free(&text);
    return st;
}

/* ---- reading ---- */

/* A weight and where it is read from. */
typedef struct {
    const MoeWeight *w;
    const MoeStTensor *t;
} Source;

static int in_file_order(const void *a, const void *b) {
    const MoeStTensor *x = ((const Source *)a)->t, *y = ((const Source *)b)->t;
    int files = strcmp(x->file, y->file);
    return files ? files : x->at < y->at ? -1 : x->at > y->at;
}

static void warn_not_finite(const MoeWeight *w, const float *data, const char *path) {
    MoeRun r;
    for (int64_t at = 0; moe_piece_run(&w->written, at, &r); at = r.first + r.n)
        for (int64_t i = 0; i < r.n; i++)
            if (!isfinite(data[r.at + i])) {
                moe_warn("%s: %s holds values that are not finite (first at element %lld)", path,
                         w->name, (long long)(r.first + i));
                return;
            }
}

/* This rank's piece of the weight into its buffer. */
static MoeStatus read_piece(MoeBlockFile *f, const Source *s, float *data) {
    MoeRun r;
    for (int64_t at = 0; moe_piece_run(&s->w->piece, at, &r); at = r.first + r.n)
        MOE_TRY(moe_st_pread_f32(f, s->t, r.first, r.n, data + r.at));
    return NULL;
}

static MoeStatus read_sources(const MoePlan *plan, MoeExec *x, const Source *sources, size_t n,
                              const char *path) {
    MoeBlockFile *f = NULL;
    MoeStatus st = NULL;
    for (size_t i = 0; i < n; i++) {
        const Source *s = &sources[i];
        if (!f || strcmp(moe_block_path(f), s->t->file)) {
            moe_block_close(f);
            f = NULL;
            MOE_TRY_GOTO(st, moe_block_open(s->t->file, 0, NULL, &f), done);
        }
        float *data = moe_exec_buffer(x, plan->params[s->w->param].buffer);
        float *piece = data + s->w->piece.offset;
        int64_t bytes = s->w->piece.count * (int64_t)sizeof *data;
        MOE_TRY_GOTO(st, read_piece(f, s, data), done);
        warn_not_finite(s->w, data, path);
        MOE_TRY_GOTO(st, moe_exec_send(x, piece, bytes), done);
        moe_exec_forget(x, piece, bytes);
    }
done:
    moe_block_close(f);
    return st;
}

static MoeStatus load_weights(const MoePlan *plan, MoeExec *x, const char *path) {
    MoeSafetensors *s = NULL;
    MoeWeightList list = {0};
    Source *sources = NULL;
    size_t n = 0;
    MoeStatus st = NULL;
    MOE_TRY_GOTO(st, moe_weight_list(plan, x, &list), done);
    MOE_TRY_GOTO(st, moe_st_open(path, &s), done);
    MOE_TRY_GOTO(st, check_tensors(plan, &list, s, path), done);
    sources = malloc((list.n + 1) * sizeof *sources);
    if (!sources) {
        st = moe_error(MOE_E_NOMEM, "no memory to read %zu weights", list.n);
        goto done;
    }
    for (size_t i = 0; i < list.n; i++)
        if (list.items[i].piece.count)
            sources[n++] = (Source){&list.items[i], moe_st_find(s, list.items[i].name)};
    qsort(sources, n, sizeof *sources, in_file_order);
    st = read_sources(plan, x, sources, n, path);
done:
    free(sources);
    moe_st_close(s);
    moe_weight_list_free(&list);
    return st;
}

MoeStatus moe_weights_load(const MoePlan *plan, MoeExec *x, const char *path) {
    return moe_comm_agree(moe_exec_comm(x), load_weights(plan, x, path), "loading weights");
}
