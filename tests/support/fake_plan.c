/* See fake_plan.h. */
#include "tests/support/fake_plan.h"

#include <math.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/pool.h"

#define CLASSES  8
#define N_COUNTS (CLASSES + 1) /* tokens a class, and labels counted */

int fake_poison_steps, fake_sleep_us;
_Atomic int fake_updates; /* ranks are threads */
static int shards; /* V of the plan in use */
static const char *shape; /* of launches on a GPU, for plan.json; "" on a CPU */

/* ---- the kernels ---- */

static int64_t one_task(void *const *bufs) {
    (void)bufs;
    return 1;
}

static int64_t class_tasks(void *const *bufs) {
    (void)bufs;
    return CLASSES;
}

/* tok, ids, labels -> counts */
static void k_count(void *const *bufs, int64_t task, void *scratch) {
    (void)task, (void)scratch;
    const int32_t *tok = bufs[0], *ids = bufs[1], *labels = bufs[2];
    int32_t *counts = bufs[3];
    memset(counts, 0, N_COUNTS * sizeof *counts);
    for (int32_t t = 0; t < tok[shards]; t++) {
        counts[ids[t] % CLASSES]++;
        counts[CLASSES] += labels[t] != -100;
    }
}

/* tok, ids -> segs: id % 4 is the token's expert */
static void k_segs(void *const *bufs, int64_t task, void *scratch) {
    (void)task, (void)scratch;
    const int32_t *tok = bufs[0], *ids = bufs[1];
    int32_t *segs = bufs[2], n = 0;
    segs[0] = 0;
    for (int e = 0; e < FAKE_EXPERTS; e++)
        for (int v = 0; v < shards; v++) {
            for (int32_t t = tok[v]; t < tok[v + 1]; t++)
                n += ids[t] % FAKE_EXPERTS == e;
            segs[e * shards + v + 1] = n;
        }
}

/* The tree over shards; a shard without rows is absent. */
typedef float (*TermFn)(const int32_t *ids, const int32_t *labels, const float *w, int32_t t,
                        int cls);

static float shard_tree(const int32_t *tok, const int32_t *ids, const int32_t *labels,
                        const float *w, int cls, TermFn term, int lo, int hi, bool *present) {
    if (hi - lo == 1) {
        float s = 0;
        *present = tok[hi] > tok[lo];
        for (int32_t t = tok[lo]; t < tok[hi]; t++)
            s += term(ids, labels, w, t, cls);
        return s;
    }
    bool a_there, b_there;
    int mid = (lo + hi) / 2;
    float a = shard_tree(tok, ids, labels, w, cls, term, lo, mid, &a_there);
    float b = shard_tree(tok, ids, labels, w, cls, term, mid, hi, &b_there);
    *present = a_there || b_there;
    return a_there && b_there ? a + b : a_there ? a : b_there ? b : 0.0f;
}

static float error_at(const int32_t *ids, const int32_t *labels, const float *w, int32_t t) {
    return labels[t] == -100 ? 0.0f : w[ids[t] % CLASSES] - (float)labels[t] / 64.0f;
}

static float loss_term(const int32_t *ids, const int32_t *labels, const float *w, int32_t t,
                       int cls) {
    (void)cls;
    float e = error_at(ids, labels, w, t);
    return e * e;
}

static float grad_term(const int32_t *ids, const int32_t *labels, const float *w, int32_t t,
                       int cls) {
    return ids[t] % CLASSES == cls ? 2.0f * error_at(ids, labels, w, t) : 0.0f;
}

/* The whole batch's counts: needs the counting pass. */
static float batch_weight(const int32_t *counts) {
    float s = 1;
    for (int k = 0; k < CLASSES; k++)
        s += (float)counts[k] * (float)counts[k] /
             ((float)counts[CLASSES] * (float)counts[CLASSES] + 1.0f);
    return s;
}

/* tok, ids, labels, w, counts -> loss part; each leaf has the batch's weight in it */
static void k_loss(void *const *bufs, int64_t task, void *scratch) {
    (void)task, (void)scratch;
    bool present;
    float *out = bufs[5];
    float s = shard_tree(bufs[0], bufs[1], bufs[2], bufs[3], 0, loss_term, 0, shards, &present);
    *out = s * (batch_weight(bufs[4]) > 1.0f ? 1.0f
                                             : 0.0f); /* zero when the counts are not there yet */
}

/* tok, ids, labels, w -> grad; uses its scratch, so that a wrong one would show */
static void k_grad(void *const *bufs, int64_t task, void *scratch) {
    bool present;
    float *out = bufs[4], *mine = scratch;
    mine[0] =
        shard_tree(bufs[0], bufs[1], bufs[2], bufs[3], (int)task, grad_term, 0, shards, &present);
    out[task] = mine[0];
}

/* loss sum, counts, grad -> loss, ce_loss, aux_loss, grad_norm, tokens */
static void k_reduce(void *const *bufs, int64_t task, void *scratch) {
    (void)task, (void)scratch;
    const float *sum = bufs[0], *grad = bufs[2];
    const int32_t *counts = bufs[1];
    float *loss = bufs[3], *ce = bufs[4], *aux = bufs[5], *norm = bufs[6], n = 0;
    int32_t *tokens = bufs[7];
    *tokens = counts[CLASSES];
    *ce = *sum / (float)counts[CLASSES];
    *aux = batch_weight(counts);
    *loss = *ce + 0.01f * *aux;
    if (fake_poison_steps > 0) {
        fake_poison_steps--;
        *loss = NAN;
    }
    for (int k = 0; k < CLASSES; k++)
        n += grad[k] * grad[k];
    *norm = sqrtf(n);
    double until = moe_now() + fake_sleep_us * 1e-6;
    while (fake_sleep_us && moe_now() < until) /* signals cut a sleep short */
        usleep(500);
}

/* w, m, v, experts, experts m, experts v, grad, counts, lr, beta1, beta2, eps, bias1, bias2, norm,
 * max_norm */
static void k_update(void *const *bufs, int64_t task, void *scratch) {
    (void)scratch;
    float *w = bufs[0], *m = bufs[1], *v = bufs[2], *u = bufs[3], *um = bufs[4], *uv = bufs[5];
    const float *grad = bufs[6], lr = *(float *)bufs[8], b1 = *(float *)bufs[9],
                b2 = *(float *)bufs[10], eps = *(float *)bufs[11], bias1 = *(float *)bufs[12],
                bias2 = *(float *)bufs[13], norm = *(float *)bufs[14],
                max_norm = *(float *)bufs[15];
    const int32_t *counts = bufs[7];
    float clip = max_norm / (norm + 1e-6f);
    float g = grad[task] / (float)counts[CLASSES] * (clip < 1 ? clip : 1.0f);
    m[task] = b1 * m[task] + (1 - b1) * g;
    v[task] = b2 * v[task] + (1 - b2) * g * g;
    w[task] -= lr / bias1 * m[task] / (sqrtf(v[task]) / sqrtf(bias2) + eps);
    for (int64_t i = task; i < FAKE_EXPERTS * 6; i += CLASSES) {
        um[i] = b1 * um[i] + (1 - b1) * g;
        uv[i] = b2 * uv[i] + (1 - b2) * g * g;
        u[i] -= lr * um[i] / (sqrtf(uv[i]) + eps);
    }
    if (task == 0)
        fake_updates++;
}

/* tok -> rows: a table whose last entry counts the tokens */
static void k_rows(void *const *bufs, int64_t task, void *scratch) {
    (void)task, (void)scratch;
    const int32_t *tok = bufs[0];
    int32_t *rows = bufs[1];
    rows[0] = 0;
    rows[1] = tok[shards];
}

/* rows -> the first number of each row */
static void k_fill(void *const *bufs, int64_t task, void *scratch) {
    (void)task, (void)scratch;
    const int32_t *rows = bufs[0];
    char *out = bufs[1];
    for (int32_t i = 0; i < rows[1]; i++)
        *(float *)(void *)(out + (int64_t)i * FAKE_ROW_BYTES) = (float)i * 0.37f;
}

/* rows, what k_fill made -> their sum */
static void k_use(void *const *bufs, int64_t task, void *scratch) {
    (void)task, (void)scratch;
    const int32_t *rows = bufs[0];
    const char *in = bufs[1];
    float *out = bufs[2];
    *out = 0;
    for (int32_t i = 0; i < rows[1]; i++)
        *out += *(const float *)(const void *)(in + (int64_t)i * FAKE_ROW_BYTES);
}

/* tok, ids, labels, w -> nll_sum, tokens */
static void k_eval(void *const *bufs, int64_t task, void *scratch) {
    (void)task, (void)scratch;
    bool present;
    const int32_t *tok = bufs[0], *labels = bufs[2];
    int32_t *tokens = bufs[5];
    *(float *)bufs[4] =
        shard_tree(bufs[0], bufs[1], bufs[2], bufs[3], 0, loss_term, 0, shards, &present);
    *tokens = 0;
    for (int32_t t = 0; t < tok[shards]; t++)
        *tokens += labels[t] != -100;
}

/* tok, ids, w -> logits: token (id + 1) is the likeliest next one */
static void k_logits(void *const *bufs, int64_t task, void *scratch) {
    (void)task, (void)scratch;
    const int32_t *tok = bufs[0], *ids = bufs[1];
    float *out = bufs[3];
    for (int32_t t = 0; t < tok[shards]; t++)
        for (int c = 0; c < FAKE_VOCAB; c++)
            out[(int64_t)t * FAKE_VOCAB + c] =
                c == (ids[t] + 1) % FAKE_VOCAB ? 9.0f : -(float)c / 1000.0f;
}

/* ---- the plan ---- */

static const struct {
    const char *name;
    MoeKernelTasksFn tasks;
    MoeKernelFn run;
} kernels[] = {{"k_count", one_task, k_count},   {"k_segs", one_task, k_segs},
               {"k_loss", one_task, k_loss},     {"k_grad", class_tasks, k_grad},
               {"k_reduce", one_task, k_reduce}, {"k_update", class_tasks, k_update},
               {"k_eval", one_task, k_eval},     {"k_logits", one_task, k_logits},
               {"k_rows", one_task, k_rows},     {"k_fill", one_task, k_fill},
               {"k_use", one_task, k_use}};

/* Values, in order of definition; the slab grows as they are added. */
typedef struct {
    MoeStr text;
    int n;
    int64_t slab;
    int64_t elastic; /* bytes behind SEAM */
} Values;

#define SEAM 65536 /* of the slab where it has an elastic part */

static int add_buffer(Values *v, int buffer) {
    moe_str_printf(&v->text, "%s{\"buffer\": %d}", v->n ? ", " : "", buffer);
    return v->n++;
}

static int add_slab(Values *v, int64_t bytes) {
    moe_str_printf(&v->text, "%s{\"slab\": %lld, \"bytes\": %lld}", v->n ? ", " : "",
                   (long long)v->slab, (long long)bytes);
    v->slab += (bytes + 63) / 64 * 64;
    return v->n++;
}

/* The elastic value; one a program. rows: the value with its table. */
static int add_elastic(Values *v, int rows, int64_t capacity) {
    v->elastic = capacity * FAKE_ROW_BYTES;
    moe_str_printf(&v->text,
                   ", {\"slab\": %d, \"bytes\": %lld, \"expect\": %d, \"rows\": %d, "
                   "\"row_bytes\": %d}",
                   SEAM, (long long)v->elastic, FAKE_ROW_BYTES, rows, FAKE_ROW_BYTES);
    return v->n++;
}

static int add_input(Values *v, MoeStr *inputs, const char *name, const char *dtype, int64_t n) {
    moe_str_printf(&v->text, "%s{\"input\": \"%s\", \"bytes\": %lld}", v->n ? ", " : "", name,
                   (long long)n * 4);
    moe_str_printf(
        inputs,
        "%s{\"name\": \"%s\", \"value\": %d, \"dtype\": \"%s\", \"dims\": [%lld], \"ragged\": %s}",
        inputs->len ? ", " : "", name, v->n, dtype, (long long)n,
        n > 1 && strcmp(name, "tok") ? "true" : "false");
    return v->n++;
}

static void add_output(MoeStr *outputs, const char *name, int value, const char *dtype, int64_t n) {
    moe_str_printf(outputs,
                   "%s{\"name\": \"%s\", \"value\": %d, \"dtype\": \"%s\", \"dims\": [%lld], "
                   "\"ragged\": false}",
                   outputs->len ? ", " : "", name, value, dtype, (long long)n);
}

static void add_step(MoeStr *steps, const char *kernel, const char *phase, bool count,
                     const int *bufs, int n) {
    moe_str_printf(steps,
                   "%s{\"name\": \"%s\", \"kernel\": \"%s\", \"phase\": \"%s\", \"count\": %s, "
                   "\"kind\": \"fake\", \"layer\": -1, \"bufs\": [",
                   steps->len ? ",\n   " : "", kernel, kernel, phase, count ? "true" : "false");
    for (int i = 0; i < n; i++)
        moe_str_printf(steps, "%s[%d, 0]", i ? ", " : "", bufs[i]);
    moe_str_printf(steps, "]%s, \"flops\": 1.0, \"bytes\": 1.0, \"seconds\": 1e-9}", shape);
}

/* The sum of `value` over the ranks: a step that makes it, and the value that it makes. */
static int add_sum(const FakePlanOptions *o, Values *v, MoeStr *steps, const char *phase,
                   bool count, int value, const char *dtype, int64_t n) {
    if (o->ranks < 2)
        return value;
    int sum = add_slab(v, n * 4);
    moe_str_printf(steps,
                   "%s{\"name\": \"sum\", \"phase\": \"%s\", \"count\": %s, \"kind\": \"comm\", "
                   "\"layer\": -1, \"comm\": [{\"op\": \"all_reduce\", \"in\": [%d], \"out\": %d, "
                   "\"dtype\": \"%s\", \"group\": \"data\", \"elements\": %lld}]}",
                   steps->len ? ",\n   " : "", phase, count ? "true" : "false", value, sum, dtype,
                   (long long)n);
    return sum;
}

static void close_program(MoeStr *out, const char *name, Values *v, MoeStr *inputs, MoeStr *outputs,
                          MoeStr *steps, const char *folds) {
    moe_str_printf(out,
                   "  \"%s\": {\"slab_bytes\": %lld, \"slab_lower_bound\": %lld, "
                   "\"elastic_bytes\": %lld, \"elastic_expect\": %d, \"scratch_bytes\": 256,\n   \"memory\": {\"activations\": 1, "
                   "\"gradients\": 1, \"workspace\": 1, \"other\": 1},\n   \"values\": [%s],\n   "
                   "\"inputs\": [%s],\n   \"outputs\": [%s],\n   "
                   "\"steps\": [%s]%s}",
                   name, (long long)(v->elastic ? SEAM + v->elastic : v->slab), (long long)v->slab,
                   (long long)v->elastic, v->elastic ? FAKE_ROW_BYTES : 0, moe_str_c(&v->text),
                   moe_str_c(inputs), moe_str_c(outputs), moe_str_c(steps), folds);
    moe_str_free(&v->text);
    moe_str_free(inputs);
    moe_str_free(outputs);
    moe_str_free(steps);
}

/* "slots": [...] for one accumulated value. */
static void add_accumulate(MoeStr *s, Values *v, int source, int value, int64_t elements,
                           int micro_batches) {
    moe_str_printf(s, "%s{\"source\": %d, \"value\": %d, \"elements\": %lld, \"slots\": [",
                   s->len ? ", " : "", source, value, (long long)elements);
    for (int m = micro_batches, i = 0; m > 1; m /= 2, i++)
        moe_str_printf(s, "%s%d", i ? ", " : "", add_slab(v, elements * 4));
    moe_str_append(s, "]}");
}

static void train_program(const FakePlanOptions *o, int64_t cap, MoeStr *out) {
    const int V = o->virtual_shards, M = o->micro_batches;
    Values v = {0};
    MoeStr in = {0}, outs = {0}, steps = {0}, acc = {0}, folds = {0};
    int w = add_buffer(&v, 0), m = add_buffer(&v, 1), q = add_buffer(&v, 2), u = add_buffer(&v, 3),
        um = add_buffer(&v, 4), uv = add_buffer(&v, 5);
    int tok = add_input(&v, &in, "tok", "i32", V + 1), ids = add_input(&v, &in, "ids", "i32", cap),
        labels = add_input(&v, &in, "labels", "i32", cap);
    int lr = add_input(&v, &in, "lr", "f32", 1), b1 = add_input(&v, &in, "beta1", "f32", 1),
        b2 = add_input(&v, &in, "beta2", "f32", 1), eps = add_input(&v, &in, "eps", "f32", 1),
        bias1 = add_input(&v, &in, "bias1", "f32", 1),
        bias2 = add_input(&v, &in, "bias2", "f32", 1),
        max_norm = add_input(&v, &in, "max_grad_norm", "f32", 1);
    add_input(&v, &in, "weight_decay", "f32", 1);
    int own_counts = add_slab(&v, N_COUNTS * 4), own_part = add_slab(&v, 4),
        own_grad = add_slab(&v, CLASSES * 4);
    int segs = add_slab(&v, (FAKE_EXPERTS * V + 1) * 4);
    add_step(&steps, "k_count", "forward", true, (int[]){tok, ids, labels, own_counts}, 4);
    int counts = add_sum(o, &v, &steps, "forward", true, own_counts, "i32", N_COUNTS),
        counts_sum = M > 1 ? add_slab(&v, N_COUNTS * 4) : counts;
    if (o->elastic) {
        int rows = add_slab(&v, 8), filled = add_elastic(&v, rows, cap), extra = add_slab(&v, 4);
        add_step(&steps, "k_rows", "forward", false, (int[]){tok, rows}, 2);
        add_step(&steps, "k_fill", "forward", false, (int[]){rows, filled}, 2);
        add_step(&steps, "k_use", "forward", false, (int[]){rows, filled, extra}, 3);
        add_output(&outs, "extra", extra, "f32", 1);
    }
    add_step(&steps, "k_segs", "forward", false, (int[]){tok, ids, segs}, 3);
    add_step(&steps, "k_loss", "forward", false, (int[]){tok, ids, labels, w, counts_sum, own_part},
             6);
    int part = add_sum(o, &v, &steps, "forward", false, own_part, "f32", 1),
        loss_sum = M > 1 ? add_slab(&v, 4) : part;
    add_step(&steps, "k_grad", "backward", false, (int[]){tok, ids, labels, w, own_grad}, 5);
    int grad = add_sum(o, &v, &steps, "backward", false, own_grad, "f32", CLASSES),
        grad_sum = M > 1 ? add_slab(&v, CLASSES * 4) : grad;
    int loss = add_slab(&v, 4), ce = add_slab(&v, 4), aux = add_slab(&v, 4), norm = add_slab(&v, 4),
        tokens = add_slab(&v, 4);
    if (M > 1) {
        add_accumulate(&acc, &v, part, loss_sum, 1, M);
        add_accumulate(&acc, &v, grad, grad_sum, CLASSES, M);
        moe_str_printf(&folds,
                       ",\n   \"batch_sums\": [{\"source\": %d, \"value\": %d, \"elements\": "
                       "%d}],\n   \"accumulates\": [%s]",
                       counts, counts_sum, N_COUNTS, moe_str_c(&acc));
    } else {
        moe_str_append(&folds, ",\n   \"batch_sums\": [], \"accumulates\": []");
    }
    add_step(&steps, "k_reduce", "reduce", false,
             (int[]){loss_sum, counts_sum, grad_sum, loss, ce, aux, norm, tokens}, 8);
    add_step(&steps, "k_update", "update", false,
             (int[]){w, m, q, u, um, uv, grad_sum, counts_sum, lr, b1, b2, eps, bias1, bias2, norm,
                     max_norm},
             16);
    add_output(&outs, "loss", loss, "f32", 1);
    add_output(&outs, "ce_loss", ce, "f32", 1);
    add_output(&outs, "aux_loss", aux, "f32", 1);
    add_output(&outs, "grad_norm", norm, "f32", 1);
    add_output(&outs, "tokens", tokens, "i32", 1);
    add_output(&outs, "segs.0", segs, "i32", FAKE_EXPERTS * V + 1);
    close_program(out, "train", &v, &in, &outs, &steps, moe_str_c(&folds));
    moe_str_free(&acc);
    moe_str_free(&folds);
}

static void other_program(const FakePlanOptions *o, int64_t cap, bool eval, MoeStr *out) {
    Values v = {0};
    MoeStr in = {0}, outs = {0}, steps = {0};
    int w = add_buffer(&v, 0), tok = add_input(&v, &in, "tok", "i32", o->virtual_shards + 1),
        ids = add_input(&v, &in, "ids", "i32", cap);
    if (eval) {
        int labels = add_input(&v, &in, "labels", "i32", cap), nll = add_slab(&v, 4),
            tokens = add_slab(&v, 4);
        add_step(&steps, "k_eval", "forward", false, (int[]){tok, ids, labels, w, nll, tokens}, 6);
        nll = add_sum(o, &v, &steps, "forward", false, nll, "f32", 1);
        tokens = add_sum(o, &v, &steps, "forward", false, tokens, "i32", 1);
        add_output(&outs, "nll_sum", nll, "f32", 1);
        add_output(&outs, "tokens", tokens, "i32", 1);
    } else {
        int logits = add_slab(&v, cap * FAKE_VOCAB * 4);
        add_step(&steps, "k_logits", "forward", false, (int[]){tok, ids, w, logits}, 4);
        add_output(&outs, "logits", logits, "f32", cap * FAKE_VOCAB);
    }
    close_program(out, eval ? "eval" : "logits", &v, &in, &outs, &steps, "");
}

void fake_plan_json(const FakePlanOptions *o, MoeStr *out) {
    shape = o->target && !strncmp(o->target, "cuda:", 5) ? ", \"grid\": 2, \"block\": 64" : "";
    static const char *const names[] = {"w", "w.m", "w.v", "u", "u.m", "u.v"};
    int64_t ranks = o->ranks > 1 ? o->ranks : 1, parts = o->micro_batches * ranks,
            cap = (o->batch + parts - 1) / parts * o->seq;
    moe_str_printf(
        out,
        "{\"format_version\": 1, \"abi\": 1, \"target\": \"%s\", \"compile\": "
        "\"by hand\",\n"
        " \"model\": {\"model_type\": \"mixtral\", \"hidden_size\": 8, \"vocab_size\": "
        "%d%s},\n \"tokenizer\": \"byte\", "
        "\"ranks\": %d, \"mesh\": {\"dp\": %d, \"shard\": 1, \"ep\": 1, \"tp\": 1, "
        "\"dense_shard\": 1},\n \"vocab_size\": %d, \"batch\": %lld, \"seq\": %lld, "
        "\"virtual_shards\": %d, "
        "\"micro_batches\": %d, \"dtype\": \"f32\",\n"
        " \"moe_layers\": [0], \"experts\": %d, \"experts_per_token\": 1, "
        "\"flops_per_token\": 100.0, \"peak_flops\": 1e9, "
        "\"kernels_xxh3\": \"00\",\n \"params\": [\n"
        "  {\"name\": \"model.w.weight\", \"dims\": [8], \"stacked\": false, \"init\": "
        "\"normal\", \"std\": 0.5, \"decay\": false,\n"
        "   \"buffer\": 0, \"states\": [{\"name\": \"exp_avg\", \"buffer\": 1}, "
        "{\"name\": \"exp_avg_sq\", \"buffer\": 2}]},\n"
        "  {\"name\": \"model.layers.0.experts.*.u.weight\", \"dims\": [4, 2, 3], \"stacked\": "
        "true, \"expert\": true, \"init\": \"normal\", \"std\": 0.02, "
        "\"decay\": true,\n   \"buffer\": 3, \"states\": [{\"name\": \"exp_avg\", "
        "\"buffer\": 4}, {\"name\": \"exp_avg_sq\", \"buffer\": "
        "5}]}],\n \"buffers\": [",
        o->target ? o->target : "cpu:generic", FAKE_VOCAB, o->extra_model ? o->extra_model : "", (int)ranks, (int)ranks, FAKE_VOCAB,
        (long long)o->batch, (long long)o->seq, o->virtual_shards, o->micro_batches, FAKE_EXPERTS);
    for (int i = 0; i < 6; i++)
        moe_str_printf(out, "%s{\"name\": \"%s\", \"dtype\": \"f32\", \"dims\": %s, \"bytes\": %d}",
                       i ? ", " : "", names[i], i < 3 ? "[8]" : "[4, 2, 3]", i < 3 ? 32 : 96);
    moe_str_append(out, "],\n \"programs\": {\n");
    train_program(o, cap, out);
    moe_str_append(out, ",\n");
    other_program(o, cap, true, out);
    moe_str_append(out, ",\n");
    other_program(o, o->seq, false, out); /* one sequence, as moec compile makes it */
    moe_str_append(out, "}}\n");
}

MoePlan *fake_plan(const FakePlanOptions *o) {
    MoeStr text = {0};
    MoePlan *p = NULL;
    fake_plan_json(o, &text);
    MoeStatus st = moe_plan_load_memory(moe_str_c(&text), text.len, "fake", NULL, 0, &p);
    MOE_ASSERT(!st, "fake plan: %s", moe_status_message(st));
    moe_str_free(&text);
    shards = o->virtual_shards;
    for (size_t g = 0; g < p->n_programs; g++)
        for (size_t i = 0; i < p->programs[g].n_steps; i++)
            for (size_t k = 0; k < sizeof kernels / sizeof *kernels; k++)
                if (p->programs[g].steps[i].kernel &&
                    !strcmp(p->programs[g].steps[i].kernel, kernels[k].name)) {
                    p->programs[g].steps[i].tasks = kernels[k].tasks;
                    p->programs[g].steps[i].run = kernels[k].run;
                }
    return p;
}
