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

MoeStatus moe_weight_list(const MoePlan *plan, MoeWeightList *out) {
    *out = (MoeWeightList){0};
    size_t n = 0;
    for (size_t i = 0; i < plan->n_params; i++)
        n += plan->params[i].stacked ? (size_t)plan->buffers[plan->params[i].buffer].dims[0] : 1;
    if (n > (size_t)16 << 20)
        return moe_error(MOE_E_CORRUPT, "the plan names %zu weights; at most 2^24 are supported",
                         n);
    MoeArena *arena = moe_arena_create();
    out->arena = arena;
    out->items = MOE_NEW_N(arena, MoeWeight, n);
    for (size_t i = 0; i < plan->n_params; i++) {
        const MoePlanParam *p = &plan->params[i];
        const MoePlanBuffer *b = &plan->buffers[p->buffer];
        int64_t count = p->stacked ? b->dims[0] : 1;
        const char *star = strchr(p->name, '*');
        for (int64_t e = 0; e < count; e++) {
            MoeWeight *w = &out->items[out->n++];
            w->name = star ? moe_arena_printf(arena, "%.*s%lld%s", (int)(star - p->name), p->name,
                                              (long long)e, star + 1)
                           : p->name;
            if (!star)
                w->name = moe_arena_strdup(arena, p->name);
            w->rank = b->rank - (p->stacked ? 1 : 0);
            memcpy(w->dims, b->dims + (p->stacked ? 1 : 0), sizeof *w->dims * (size_t)w->rank);
            w->elements = count ? b->elements / count : 0;
            w->param = (int)i;
            w->first = e * w->elements;
        }
    }
    qsort(out->items, out->n, sizeof *out->items, compare_weights);
    for (size_t i = 1; i < out->n; i++)
        if (!strcmp(out->items[i - 1].name, out->items[i].name)) {
            MoeStatus st =
                moe_error(MOE_E_CORRUPT, "damaged plan: two parameters give the weight %s",
                          out->items[i].name);
            moe_weight_list_free(out);
            return st;
        }
    return NULL;
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
    *out_same = embed && embed->elements == head->elements;
    float a[512], b[512];
    for (int64_t i = 0; *out_same && i < head->elements; i += 512) {
        int64_t n = head->elements - i < 512 ? head->elements - i : 512;
        MOE_TRY(moe_st_read_f32(head, i, n, a));
        MOE_TRY(moe_st_read_f32(embed, i, n, b));
        *out_same = !memcmp(a, b, sizeof *a * (size_t)n);
    }
    return NULL;
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

MoeStatus moe_weights_load(const MoePlan *plan, MoeExec *x, const char *path) {
    MoeSafetensors *s = NULL;
    MoeWeightList list = {0};
    MoeStatus st = NULL;
    MOE_TRY_GOTO(st, moe_weight_list(plan, &list), done);
    MOE_TRY_GOTO(st, moe_st_open(path, &s), done);
    MOE_TRY_GOTO(st, check_tensors(plan, &list, s, path), done);
    for (size_t i = 0; i < list.n; i++) {
        const MoeWeight *w = &list.items[i];
        float *data = (float *)moe_exec_buffer(x, plan->params[w->param].buffer) + w->first;
        MOE_TRY_GOTO(st, moe_st_read_f32(moe_st_find(s, w->name), 0, w->elements, data), done);
        for (int64_t k = 0; k < w->elements; k++)
            if (!isfinite(data[k])) {
                moe_warn("%s: %s holds values that are not finite (first at element %lld)", path,
                         w->name, (long long)k);
                break;
            }
    }
done:
    moe_st_close(s);
    moe_weight_list_free(&list);
    return st;
}
