/* The graphs made from a config: they verify over a grid of configs and options, declare the
 * parameters that transformers saves, are the same at every build, agree with each other in the
 * interpreter; the sizes and FLOPs that belong to them. The values themselves are checked against
 * transformers by the parity test. */
#include <check.h>
#include <dirent.h>
#include <glob.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "base/json.h"
#include "base/mem.h"
#include "formats/safetensors.h"
#include "frontends/frontend.h"
#include "ir/eval/eval.h"
#include "ir/text.h"
#include "ir/verify.h"
#include "passes/eval_each.h"
#include "passes/pass.h"
#include "tests/support/check_main.h"
#include "tests/support/files.h"

#define DATA   MOE_SOURCE_DIR "/tests/data"
#define GOLDEN MOE_SOURCE_DIR "/tests/golden/frontends"

static void ok(MoeStatus st) {
    ck_assert_msg(!st, "%s", moe_status_message(st));
}

/* 4 heads of 4, 16 wide, 2 layers, 8 experts top-2 of 12, 24 words; or dense. */
static MoeHfConfig small(bool dense) {
    MoeHfConfig c = {.vocab_size = 24,
                     .hidden_size = 16,
                     .intermediate_size = 12,
                     .layers = 2,
                     .heads = 4,
                     .kv_heads = 2,
                     .head_dim = 4,
                     .max_positions = 64,
                     .rope_theta = 1e4,
                     .rms_norm_eps = 1e-5,
                     .initializer_range = 0.02};
    snprintf(c.model_type, sizeof c.model_type, dense ? "llama" : "mixtral");
    if (!dense) {
        c.experts = 8;
        c.experts_per_token = 2;
        c.router_aux_loss_coef = 0.02;
        c.output_router_logits = true;
    }
    return c;
}

static MoeFrontendOptions options(int64_t batch, int64_t seq, int v, int m) {
    return (MoeFrontendOptions){
        .batch = batch, .seq = seq, .virtual_shards = v, .micro_batches = m};
}

static MoeModule *build(const MoeHfConfig *c, const MoeFrontendOptions *o) {
    MoeModule *m = NULL;
    ok(moe_hf_build(c, o, &m));
    return m;
}

static void check_verifies(const MoeModule *m, const char *what) {
    MoeDiag d = {.file = what};
    ck_assert_msg(moe_verify(m, &d), "%s: %s", what, moe_str_c(&d.text));
    moe_diag_free(&d);
}

static int count_ops(const MoeGraph *g, MoeOpcode opcode) {
    int n = 0;
    for (size_t i = 0; i < g->n_ops; i++)
        n += g->ops[i]->opcode == opcode;
    return n;
}

static const MoeOp *first_op(const MoeGraph *g, MoeOpcode opcode) {
    for (size_t i = 0; i < g->n_ops; i++)
        if (g->ops[i]->opcode == opcode)
            return g->ops[i];
    ck_abort_msg("no %s in @%s", moe_op_info(opcode)->name, g->name);
}

static int count_bf16(const MoeGraph *g) {
    int n = 0;
    for (size_t i = 0; i < g->n_ops; i++)
        for (int r = 0; r < g->ops[i]->n_results; r++)
            n += g->ops[i]->results[r]->type.dtype == MOE_BF16;
    return n;
}

/* ---- structure ---- */

static void check_built(const MoeHfConfig *c, const MoeFrontendOptions *o, const char *what) {
    MoeModule *m = build(c, o), *again = build(c, o);
    check_verifies(m, what);
    ck_assert_int_eq(m->n_graphs, 3);
    const MoeGraph *train = moe_module_find(m, "train"), *eval = moe_module_find(m, "eval"),
                   *logits = moe_module_find(m, "logits");
    ck_assert(train && eval && logits);

    /* Capacities: the largest micro-batch; one sequence in @logits. */
    int64_t capacity = moe_token_capacity(o->batch, o->seq, o->micro_batches);
    ck_assert_int_eq(moe_graph_find_input(train, "ids")->type.dims[0].size, capacity);
    ck_assert_int_eq(moe_graph_find_input(eval, "labels")->type.dims[0].size, capacity);
    ck_assert_int_eq(moe_graph_find_input(logits, "ids")->type.dims[0].size, o->seq);
    ck_assert_int_eq(moe_graph_find_input(train, "tok")->type.shards, o->virtual_shards);
    ck_assert_ptr_null(moe_graph_find_input(logits, "labels"));

    /* Outputs. */
    bool aux = c->experts &&
               (o->aux == MOE_AUX_ON || (o->aux == MOE_AUX_FROM_CONFIG && c->output_router_logits));
    static const char *const names[] = {"loss", "ce_loss", "tokens"};
    for (size_t i = 0; i < 3; i++)
        ck_assert_ptr_nonnull(moe_graph_find_output(train, names[i]));
    ck_assert_msg((moe_graph_find_output(train, "aux_loss") != NULL) == aux, "%s", what);
    for (int64_t l = 0; l < c->layers + 1; l++) {
        char name[32];
        snprintf(name, sizeof name, "segs.%d", (int)l);
        bool expected = c->experts && l < c->layers;
        ck_assert_msg((moe_graph_find_output(train, name) != NULL) == expected, "%s: %s", what,
                      name);
    }
    ck_assert_ptr_nonnull(moe_graph_find_output(eval, "nll_sum"));
    ck_assert_ptr_nonnull(moe_graph_find_output(eval, "tokens"));
    const MoeValue *out = moe_graph_find_output(logits, "logits");
    ck_assert_int_eq(out->type.dims[1].size, c->vocab_size);

    for (size_t i = 0; i < 3; i++) {
        const MoeGraph *g = m->graphs[i];
        ck_assert_int_eq(count_ops(g, MOE_OP_ATTENTION), c->layers);
        ck_assert_int_eq(count_ops(g, MOE_OP_ROUTE_PLAN), c->experts ? c->layers : 0);
        const MoeOp *attention = first_op(g, MOE_OP_ATTENTION);
        int64_t window = c->sliding_window < o->seq ? c->sliding_window : 0;
        ck_assert_int_eq(moe_attr_i(attention, "window"), window);
        ck_assert_int_eq(moe_attr_i(attention, "kv_heads"), c->kv_heads);
        ck_assert_int_eq(moe_attr_i(attention, "seq"), o->seq);
        ck_assert_msg((count_bf16(g) > 0) == o->mixed_bf16, "%s: bf16 in @%s", what, g->name);
    }

    MoeStr first = {0}, second = {0};
    moe_print(m, &first);
    moe_print(again, &second);
    ck_assert_msg(strcmp(first.data, second.data) == 0, "%s: two builds differ", what);
    MoeDiag d = {.file = what, .source = first.data};
    MoeModule *parsed = moe_parse(&d);
    ck_assert_msg(parsed, "%s: %s", what, moe_str_c(&d.text));
    moe_str_clear(&second);
    moe_print(parsed, &second);
    ck_assert_msg(strcmp(first.data, second.data) == 0, "%s: parse and print differ", what);
    moe_module_destroy(parsed);
    moe_diag_free(&d);
    moe_str_free(&first);
    moe_str_free(&second);
    moe_module_destroy(again);
    moe_module_destroy(m);
}

START_TEST(grid) {
    static const int kv_heads[] = {4, 2, 1}, windows[] = {0, 3, 100},
                     experts[][2] = {{0, 0}, {8, 2}, {5, 3}, {4, 1}, {1, 1}};
    static const struct {
        int64_t batch, seq;
        int v, m;
    } runs[] = {{8, 6, 8, 1}, {5, 7, 4, 2}, {1, 1, 1, 1}, {3, 4, 8, 8}};
    int n = 0;
    for (size_t e = 0; e < 5; e++)
        for (int kv = 0; kv < 3; kv++)
            for (int w = 0; w < 3; w++)
                for (int flags = 0; flags < 16; flags++) {
                    bool dense = experts[e][0] == 0;
                    int run = (n + n / 16) % 4; /* each with all flags */
                    MoeHfConfig c = small(dense);
                    c.experts = experts[e][0];
                    c.experts_per_token = experts[e][1];
                    c.kv_heads = kv_heads[kv];
                    c.sliding_window = windows[w];
                    c.tie_word_embeddings = flags & 1;
                    c.layers = flags & 2 ? 1 : 3;
                    c.output_router_logits = flags & 8 && !dense;
                    MoeFrontendOptions o =
                        options(runs[run].batch, runs[run].seq, runs[run].v, runs[run].m);
                    o.mixed_bf16 = flags & 4;
                    o.aux = (MoeAuxChoice)(n % 3);
                    char what[256];
                    snprintf(what, sizeof what,
                             "experts %d top %d, kv heads %d, window %d, flags %d, aux %d, run %d",
                             experts[e][0], experts[e][1], kv_heads[kv], windows[w], flags, n % 3,
                             run);
                    check_built(&c, &o, what);
                    n++;
                }
    ck_assert_int_eq(n, 5 * 3 * 3 * 16);
}
END_TEST

/* mixed_from_config: the config's dtype decides; what it cannot train in, it says. */
START_TEST(dtypes) {
    MoeHfConfig c = small(false);
    MoeFrontendOptions o = options(2, 4, 2, 1);
    for (int bf16 = 0; bf16 < 2; bf16++)
        for (int from_config = 0; from_config < 2; from_config++)
            for (int mixed = 0; mixed < 2; mixed++) {
                c.bf16 = bf16;
                o.mixed_from_config = from_config;
                o.mixed_bf16 = mixed;
                MoeModule *m = build(&c, &o);
                bool expected = from_config ? bf16 : mixed;
                ck_assert((count_bf16(moe_module_find(m, "train")) > 0) == expected);
                moe_module_destroy(m);
            }
    c.bf16 = false;
    c.f16 = true;
    MoeModule *m = NULL;
    o.mixed_from_config = true;
    const char *why =
        moe_test_error(moe_hf_build(&c, &o, &m), MOE_E_INPUT, "float16", "--dtype", NULL);
    ck_assert_msg(!why, "%s", why);
    o.mixed_from_config = false;
    moe_module_destroy(build(&c, &o));
}
END_TEST

/* seq 0 is the config's, at most 512. */
START_TEST(default_seq) {
    static const int64_t positions[][2] = {{64, 64}, {511, 511}, {512, 512}, {4096, 512}};
    for (size_t i = 0; i < 4; i++) {
        MoeHfConfig c = small(true);
        c.max_positions = positions[i][0];
        MoeFrontendOptions o = options(1, 0, 1, 1);
        MoeModule *m = build(&c, &o);
        const MoeGraph *g = moe_module_find(m, "train");
        ck_assert_int_eq(moe_graph_find_input(g, "ids")->type.dims[0].size, positions[i][1]);
        ck_assert_int_eq(moe_attr_i(first_op(g, MOE_OP_ROPE), "seq"), positions[i][1]);
        moe_module_destroy(m);
    }
}
END_TEST

START_TEST(refusals) {
    MoeHfConfig c = small(false), large = small(false), wide = small(true);
    large.max_positions = wide.max_positions = (int64_t)1 << 31;
    wide.vocab_size = 4 << 20;
    wide.intermediate_size = 1 << 24;
    const struct {
        const MoeHfConfig *c;
        MoeFrontendOptions o;
        MoeCode code;
        const char *words[2];
    } rows[] = {
        {&c, options(0, 4, 1, 1), MOE_E_MISUSE, {"batch 0", "at least 1"}},
        {&c, options(-3, 4, 1, 1), MOE_E_MISUSE, {"batch -3", "at least 1"}},
        {&c, options(1, -4, 1, 1), MOE_E_MISUSE, {"sequence length -4", "at least 1"}},
        {&c, options(1, 65, 1, 1), MOE_E_INPUT, {"sequence length 65", "64 (max_position"}},
        {&large, options(1 << 20, 1 << 10, 1, 1), MOE_E_INPUT, {"1048576 x 1024", "32 bits"}},
        {&large, options(INT64_MAX, INT32_MAX, 1, 1), MOE_E_INPUT, {"too large", "32 bits"}},
        {&wide, options(64, 1024, 8, 1), MOE_E_INPUT, {"64 x 1024", "more micro-batches"}},
        {&wide, options(1, 1 << 20, 1, 1), MOE_E_INPUT, {"1 x 1048576", "shorter sequences"}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        MoeModule *m = NULL;
        const char *why = moe_test_error(moe_hf_build(rows[i].c, &rows[i].o, &m), rows[i].code,
                                         rows[i].words[0], rows[i].words[1], NULL);
        ck_assert_msg(!why, "case %zu: %s", i, why);
        ck_assert_ptr_null(m);
    }
    /* The same batch fits in micro-batches. */
    MoeFrontendOptions o = options(64, 512, 8, 8);
    moe_module_destroy(build(&wide, &o));
}
END_TEST

/* ---- parameters ---- */

/* Every tensor of the model's file is one parameter, or one expert of one, of the same shape. */
static void check_params(const char *dir) {
    char *config_path = moe_path_join(dir, "config.json");
    MoeHfConfig c;
    json_t *json = NULL;
    ok(moe_hf_config_read(config_path, &c, &json));
    json_decref(json);
    free(config_path);
    MoeFrontendOptions o = options(2, 8, 8, 1);
    MoeModule *m = build(&c, &o);
    MoeSafetensors *file = NULL;
    ok(moe_st_open(dir, &file));
    for (size_t k = 0; k < m->n_graphs; k++) {
        const MoeGraph *g = m->graphs[k];
        size_t found = 0;
        for (size_t i = 0; i < g->n_ops; i++) {
            const MoeOp *op = g->ops[i];
            if (op->opcode != MOE_OP_PARAM)
                continue;
            const MoeType *t = &op->results[0]->type;
            const char *name = moe_attr_s(op, "name"), *star = strchr(name, '*');
            bool stacked = moe_attr_i_or(op, "stacked", 0);
            ck_assert_msg(stacked == (star != NULL), "%s", name);
            ck_assert_int_eq(moe_attr_i(op, "decay"), t->rank >= 2);
            ck_assert_str_eq(moe_attr_s(op, "init"), t->rank >= 2 ? "normal" : "ones");
            ck_assert(moe_attr_f(op, "std") == c.initializer_range);
            for (int64_t e = 0; e < (stacked ? t->dims[0].size : 1); e++) {
                char full[256];
                if (star)
                    snprintf(full, sizeof full, "%.*s%d%s", (int)(star - name), name, (int)e,
                             star + 1);
                else
                    snprintf(full, sizeof full, "%s", name);
                const MoeStTensor *tensor = moe_st_find(file, full);
                ck_assert_msg(tensor, "%s has no tensor %s", dir, full);
                ck_assert_int_eq(tensor->rank, t->rank - stacked);
                for (int d = 0; d < tensor->rank; d++)
                    ck_assert_msg(tensor->dims[d] == t->dims[d + stacked].size, "%s: dim %d of %s",
                                  dir, d, full);
                found++;
            }
        }
        ck_assert_msg(found == moe_st_count(file), "%s: @%s declares %zu of %zu tensors", dir,
                      g->name, found, moe_st_count(file));
    }
    moe_st_close(file);
    moe_module_destroy(m);
}

START_TEST(params_are_those_of_transformers) {
    DIR *d = opendir(DATA);
    ck_assert_ptr_nonnull(d);
    int n = 0;
    for (struct dirent *e; (e = readdir(d));) {
        char *dir = moe_path_join(DATA, e->d_name), *file = moe_path_join(dir, "model.safetensors");
        if (moe_path_exists(file)) {
            check_params(dir);
            n++;
        }
        free(file);
        free(dir);
    }
    closedir(d);
    ck_assert_int_ge(n, 10);
}
END_TEST

/* The examples are Mixtrals over bytes, small enough for a laptop. */
START_TEST(examples) {
    glob_t found;
    ck_assert_int_eq(glob(MOE_SOURCE_DIR "/examples/*/config.json", 0, NULL, &found), 0);
    for (size_t i = 0; i < found.gl_pathc; i++) {
        MoeHfConfig c;
        json_t *json = NULL;
        ok(moe_hf_config_read(found.gl_pathv[i], &c, &json));
        json_decref(json);
        ck_assert_int_eq(c.vocab_size, 256);
        ck_assert(c.experts > 1 && c.output_router_logits && c.router_aux_loss_coef > 0);
        ck_assert(moe_hf_flops_per_token(&c, 512) < 1e9);
        MoeFrontendOptions o = options(8, 0, 8, 1);
        o.mixed_from_config = true;
        MoeModule *m = build(&c, &o);
        check_verifies(m, found.gl_pathv[i]);
        moe_module_destroy(m);
    }
    globfree(&found);
}
END_TEST

/* Mixtral 8x7B: 46.7 billion parameters, and a graph with its gradients that takes little memory.
 */
START_TEST(mixtral_8x7b) {
    MoeHfConfig c;
    json_t *json = NULL;
    ok(moe_hf_config_read(DATA "/configs/mixtral-8x7b.json", &c, &json));
    json_decref(json);
    ck_assert(c.bf16 && c.layers == 32 && c.experts == 8 && c.kv_heads == 8);
    size_t before = moe_rss_peak_bytes();
    MoeFrontendOptions o = options(8, 0, 8, 1);
    o.mixed_from_config = true;
    o.aux = MOE_AUX_ON;
    MoeModule *m = build(&c, &o);
    const MoeGraph *g = moe_module_find(m, "train");
    int64_t n = 0;
    for (size_t i = 0; i < g->n_ops; i++)
        if (g->ops[i]->opcode == MOE_OP_PARAM)
            n += moe_type_elements(&g->ops[i]->results[0]->type);
    ck_assert_int_eq(n, 46702792704);
    /* 12.9 billion active, less norms and the embedding, which is looked up. */
    ck_assert(fabs(moe_hf_flops_per_token(&c, 512) - 6 * 12.748e9) < 0.02 * 6 * 12.748e9);
    MoePassContext cx = {.module = m, .arena = m->arena};
    cx.options = (MoePassOptions){
        .batch = 8, .seq = 512, .micro_batches = 1, .virtual_shards = 8, .mixed_bf16 = true};
    ok(moe_pass_grad(&cx));
    check_verifies(m, "mixtral-8x7b after grad");
    ck_assert_int_eq(count_ops(g, MOE_OP_ADAMW), count_ops(g, MOE_OP_PARAM));
    size_t grown = moe_rss_peak_bytes() - before;
    ck_assert_msg(grown < (size_t)256 << 20, "%zu bytes for the graph", grown);
    moe_module_destroy(m);
}
END_TEST

/* ---- sizes ---- */

/* The largest micro-batch, counted sequence by sequence. */
static int64_t most_sequences(int64_t batch, int v, int m) {
    int64_t most = 0, *of = calloc((size_t)m, sizeof *of);
    for (int64_t s = 0; s < batch; s++)
        for (int shard = 0; shard < v; shard++) {
            int64_t lo = shard * batch / v, hi = (shard + 1) * batch / v;
            if (s >= lo && s < hi)
                of[shard / (v / m)]++;
        }
    for (int i = 0; i < m; i++)
        most = of[i] > most ? of[i] : most;
    free(of);
    return most;
}

START_TEST(token_capacity) {
    for (int64_t batch = 1; batch <= 40; batch++)
        for (int v = 1; v <= 32; v *= 2)
            for (int m = 1; m <= v; m *= 2) {
                int64_t most = most_sequences(batch, v, m);
                ck_assert_msg(moe_token_capacity(batch, 7, m) == most * 7,
                              "batch %d, V %d, M %d: %lld, counted %lld", (int)batch, v, m,
                              (long long)moe_token_capacity(batch, 7, m), (long long)most * 7);
                ck_assert_int_ge(most * m, batch);
            }
    ck_assert_int_eq(moe_token_capacity(5, 10, 4), 20);
    ck_assert_int_eq(moe_token_capacity(1, 10, 8), 10);
    ck_assert_int_eq(moe_token_capacity(1 << 24, 1 << 7, 1), (int64_t)1 << 31);
}
END_TEST

START_TEST(flops) {
    MoeHfConfig c = {.vocab_size = 16,
                     .hidden_size = 4,
                     .intermediate_size = 8,
                     .layers = 3,
                     .heads = 2,
                     .kv_heads = 1,
                     .head_dim = 2,
                     .experts = 4,
                     .experts_per_token = 2};
    /* A layer: q and o 2*16, k and v 2*8, experts 2*96, router 16 = 256; the head 64: 832 in all.
     * Attention forward: 4 * (10 / 2 keys) * 4 columns = 80 a layer. */
    ck_assert_double_eq(moe_hf_flops_per_token(&c, 10), 6 * 832 + 3 * 3 * 80);
    c.sliding_window = 5; /* the first 5 queries see 2.5 keys on average, the others 5 */
    ck_assert_double_eq(moe_hf_flops_per_token(&c, 10), 6 * 832 + 3 * 3 * 4 * 3.75 * 4);
    c.sliding_window = 10;
    ck_assert_double_eq(moe_hf_flops_per_token(&c, 10), 6 * 832 + 3 * 3 * 80);
    c.sliding_window = 1000;
    ck_assert_double_eq(moe_hf_flops_per_token(&c, 10), 6 * 832 + 3 * 3 * 80);
    c.sliding_window = 0;
    c.experts = c.experts_per_token = 0; /* 48 + 96 a layer, 496 in all */
    ck_assert_double_eq(moe_hf_flops_per_token(&c, 10), 6 * 496 + 3 * 3 * 80);
}
END_TEST

/* ---- the three graphs agree ---- */

enum { BATCH = 5, SEQ = 6, SHARDS = 4, ROWS = BATCH * SEQ };

typedef struct {
    int32_t ids[ROWS], labels[ROWS];
} Batch;

static MoeEval *start(const MoeGraph *g, const int32_t *tok, const int32_t *ids,
                      const int32_t *labels, int64_t rows) {
    MoeEval *ev = moe_eval_create(g);
    ok(moe_eval_fill(ev, g, 11)); /* parameters: by name, so the same in every graph */
    ok(moe_eval_set_i(ev, moe_graph_find_input(g, "tok"), tok, SHARDS + 1));
    ok(moe_eval_set_i(ev, moe_graph_find_input(g, "ids"), ids, rows));
    if (labels)
        ok(moe_eval_set_i(ev, moe_graph_find_input(g, "labels"), labels, rows));
    ok(moe_eval_run(ev));
    return ev;
}

static double number(const MoeEval *ev, const MoeGraph *g, const char *output) {
    const MoeTensor *t = moe_eval_get(ev, moe_graph_find_output(g, output));
    return t->f ? t->f[0] : t->i[0];
}

/* nll of the batch from @logits, one sequence at a time. */
static double nll_from_logits(const MoeModule *m, const Batch *b, int64_t vocab) {
    const MoeGraph *g = moe_module_find(m, "logits");
    const int32_t tok[SHARDS + 1] = {0, SEQ, SEQ, SEQ, SEQ};
    double nll = 0;
    for (int s = 0; s < BATCH; s++) {
        MoeEval *ev = start(g, tok, b->ids + s * SEQ, NULL, SEQ);
        const MoeTensor *t = moe_eval_get(ev, moe_graph_find_output(g, "logits"));
        ck_assert_int_eq(t->n, SEQ * vocab);
        for (int r = 0; r < SEQ; r++) {
            int32_t label = b->labels[s * SEQ + r];
            const double *row = t->f + r * vocab;
            double most = row[0], sum = 0;
            for (int64_t c = 1; c < vocab; c++)
                most = fmax(most, row[c]);
            for (int64_t c = 0; c < vocab; c++)
                sum += exp(row[c] - most);
            if (label >= 0)
                nll += most + log(sum) - row[label];
        }
        moe_eval_destroy(ev);
    }
    return nll;
}

static void check_agree(const MoeHfConfig *c, bool bf16) {
    MoeFrontendOptions o = options(BATCH, SEQ, SHARDS, 1);
    o.mixed_bf16 = bf16;
    MoeModule *m = build(c, &o);
    const MoeGraph *train = moe_module_find(m, "train"), *eval = moe_module_find(m, "eval");
    Batch b;
    int valid = 0;
    for (int i = 0; i < ROWS; i++) {
        b.ids[i] = (int32_t)((i * 7 + i / 5) % c->vocab_size);
        b.labels[i] = i % 4 == 3 ? -100 : (int32_t)((i * 5 + 1) % c->vocab_size);
        valid += b.labels[i] >= 0;
    }
    /* Shard v begins at sequence floor(5 v / 4). */
    const int32_t tok[SHARDS + 1] = {0, SEQ, 2 * SEQ, 3 * SEQ, 5 * SEQ};
    MoeEval *t = start(train, tok, b.ids, b.labels, ROWS);
    MoeEval *e = start(eval, tok, b.ids, b.labels, ROWS);
    double nll = number(e, eval, "nll_sum"), ce = number(t, train, "ce_loss");
    ck_assert_int_eq((int)number(e, eval, "tokens"), valid);
    ck_assert_int_eq((int)number(t, train, "tokens"), valid);
    ck_assert_msg(fabs(nll / valid - ce) < 1e-12, "eval %.17g, train %.17g", nll / valid, ce);
    double from_logits = nll_from_logits(m, &b, c->vocab_size);
    ck_assert_msg(fabs(nll - from_logits) < 1e-10 * nll, "eval %.17g, logits %.17g", nll,
                  from_logits);
    ck_assert(ce > 0.5 && ce < 20);
    double loss = number(t, train, "loss");
    if (c->experts) {
        double aux = number(t, train, "aux_loss");
        ck_assert_msg(fabs(loss - ce - c->router_aux_loss_coef * aux) < 1e-12, "%.17g", loss);
        /* Even load and even probabilities would give top-k; the most uneven, top-k * E. */
        double k = (double)c->experts_per_token;
        ck_assert_msg(aux > 0.5 * k && aux <= k * (double)c->experts, "aux %g", aux);
    } else
        ck_assert(loss == ce);
    moe_eval_destroy(t);
    moe_eval_destroy(e);
    moe_module_destroy(m);
}

START_TEST(graphs_agree) {
    for (int i = 0; i < 16; i++) {
        MoeHfConfig c = small(i & 1);
        c.tie_word_embeddings = i & 2;
        c.sliding_window = i & 4 ? 2 : 0;
        if (i & 8 && c.experts) {
            c.experts = 3;
            c.experts_per_token = 3;
        }
        check_agree(&c, i & 8);
    }
}
END_TEST

/* ---- golden text ---- */

START_TEST(golden) {
    static const struct {
        const char *file;
        bool dense;
    } rows[] = {{GOLDEN "/mixtral.moe", false}, {GOLDEN "/llama_bf16.moe", true}};
    MoeHfConfig c = small(rows[_i].dense);
    c.layers = 1;
    c.tie_word_embeddings = rows[_i].dense;
    MoeFrontendOptions o = options(4, 8, 4, 1);
    o.mixed_bf16 = rows[_i].dense;
    MoeModule *m = build(&c, &o);
    MoeStr text = {0};
    moe_print(m, &text);
    if (getenv("MOE_BLESS"))
        ok(moe_file_write_atomic(rows[_i].file, text.data, text.len));
    char *expected;
    size_t n;
    ok(moe_file_read(rows[_i].file, 1 << 20, &expected, &n));
    size_t at = 0, line = 0;
    for (; expected[at] && expected[at] == text.data[at]; at++)
        line = expected[at] == '\n' ? at + 1 : line;
    ck_assert_msg(expected[at] == text.data[at],
                  "%s: expected\n%.200s\ngot\n%.200s\n(MOE_BLESS=1 accepts this)", rows[_i].file,
                  expected + line, text.data + line);
    free(expected);
    moe_str_free(&text);
    moe_module_destroy(m);
}
END_TEST

int main(void) {
    Suite *s = suite_create("frontend_build");
    TCase *tc = tcase_create("build");
    tcase_add_test(tc, grid);
    tcase_add_test(tc, dtypes);
    tcase_add_test(tc, default_seq);
    tcase_add_test(tc, refusals);
    tcase_add_test(tc, params_are_those_of_transformers);
    tcase_add_test(tc, examples);
    tcase_add_test(tc, mixtral_8x7b);
    tcase_add_test(tc, token_capacity);
    tcase_add_test(tc, flops);
    tcase_add_test(tc, graphs_agree);
    tcase_add_loop_test(tc, golden, 0, 2);
    suite_add_tcase(s, tc);
    return moe_check_main(s);
}
