/* The lists of cases, op by op, with their tolerances. Tolerances are for a kernel in f32 (bf16 where the dtype says so)
 * against the f64 interpreter, on standard normal data of exactly the same bits:
 *   exact      the op moves or compares values: equal bits
 *   rounded    correctly rounded f32: half an ulp, 6e-8 of the element (bf16: one ulp of bf16, 2^-7, as a tie may
 *              fall to the other side after the rounding to f32)
 *   sum of n   n additions of products of variance 1: errors add up like eps * n / 2 at the most likely, 2e-7 * n here,
 *              absolute, because a sum of n signed terms may cancel */
#include "tests/support/op_cases.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/assert.h"

#define LEN(a) (sizeof(a) / sizeof *(a))

static const MoeTolerance exact = {0, 0, 0};
static const MoeTolerance rounded = {0, 0, 1.2e-7};
static const MoeTolerance bf16_rounded = {1e-38, 0, 0x1p-7};

static MoeTolerance sum_of(int64_t n) { return (MoeTolerance){2e-7 * (double)n, 0, 2.4e-7}; }

typedef struct {
    MoeOpCase *out;
    size_t cap, n;
} List;

static const char *form_name(MoeCaseForm f) {
    static const char *const names[] = {
#define X(id, name) #name,
        MOE_CASE_FORMS(X)
#undef X
    };
    return names[f];
}

static const char *layout_name(MoeShardLayout l) {
    static const char *const names[] = {
#define X(id, name) #name,
        MOE_SHARD_LAYOUTS(X)
#undef X
    };
    return names[l];
}

static const char *routing_name(MoeRouting r) {
    static const char *const names[] = {
#define X(id, name) #name,
        MOE_ROUTINGS(X)
#undef X
    };
    return names[r];
}

/* Only what the case sets, T always. */
static void make_id(MoeOpCase *c) {
    const struct {
        const char *key;
        int64_t value;
    } fields[] = {{"C", c->cols},       {"k", c->k},           {"n", c->n},       {"E", c->experts},
                  {"K", c->topk},       {"V", c->shards},      {"h", c->heads},   {"kv", c->kv_heads},
                  {"d", c->head_dim},   {"seq", c->seq},       {"win", c->window}, {"N", c->vocab},
                  {"tb", c->tb},        {"inverse", c->inverse}};
    MoeStr s = {0};
    moe_str_printf(&s, "%s/%s/T=%lld", moe_op_info(c->op)->name, moe_dtype_name(c->dtype),
                   (long long)c->rows);
    for (size_t i = 0; i < LEN(fields); i++)
        if (fields[i].value)
            moe_str_printf(&s, ",%s=%lld", fields[i].key, (long long)fields[i].value);
    if (c->grouped)
        moe_str_append(&s, ",grouped");
    if (c->form != MOE_FORM_PLAIN)
        moe_str_printf(&s, ",%s", form_name(c->form));
    if (c->shards > 1)
        moe_str_printf(&s, ",shards:%s", layout_name(c->layout));
    if (c->experts)
        moe_str_printf(&s, ",route:%s", routing_name(c->routing));
    MOE_ASSERT(s.len < sizeof c->id, "case id too long: %s", moe_str_c(&s));
    snprintf(c->id, sizeof c->id, "%s", moe_str_c(&s));
    moe_str_free(&s);
}

static void add(List *l, MoeOpCase c) {
    if (c.capacity < c.rows + 3)
        c.capacity = c.rows + 3; /* never the live extent itself */
    if (l->n < l->cap) {
        make_id(&c);
        l->out[l->n] = c;
    }
    l->n++;
}

/* Rows and columns that elementwise and row ops see. */
static const struct {
    int64_t rows, cols, shards;
    MoeShardLayout layout;
} grid[] = {{0, 7, 8, MOE_SHARDS_EVEN},      {1, 1, 1, MOE_SHARDS_EVEN},
            {1, 513, 8, MOE_SHARDS_LAST},    {17, 1, 8, MOE_SHARDS_EVEN},
            {17, 16, 8, MOE_SHARDS_RANDOM},  {17, 33, 1, MOE_SHARDS_EVEN},
            {17, 130, 8, MOE_SHARDS_FIRST},  {1023, 7, 8, MOE_SHARDS_RANDOM},
            {1023, 48, 1, MOE_SHARDS_EVEN},  {257, 513, 8, MOE_SHARDS_EVEN}};

static MoeOpCase on_grid(MoeOpcode op, MoeDtype d, size_t i, MoeTolerance t) {
    return (MoeOpCase){.op = op, .dtype = d, .rows = grid[i].rows, .cols = grid[i].cols,
                       .shards = grid[i].shards, .layout = grid[i].layout, .tolerance = {t, t, t}};
}

static void elementwise(List *l, MoeOpcode op, int operands, MoeTolerance f32, bool bf16) {
    static const MoeCaseForm two[] = {MOE_FORM_PLAIN, MOE_FORM_COLS,  MOE_FORM_ROWS,
                                      MOE_FORM_SCALAR, MOE_FORM_LEFT, MOE_FORM_OUTER,
                                      MOE_FORM_VECTOR, MOE_FORM_MATRIX, MOE_FORM_STACK,
                                      MOE_FORM_EXPERT, MOE_FORM_SAME};
    static const MoeCaseForm one[] = {MOE_FORM_SCALAR, MOE_FORM_VECTOR, MOE_FORM_STACK,
                                      MOE_FORM_EXPERT};
    const MoeCaseForm *forms = operands == 2 ? two : one;
    size_t n_forms = operands == 2 ? LEN(two) : LEN(one);
    for (size_t i = 0; i < LEN(grid); i++)
        add(l, on_grid(op, MOE_F32, i, f32));
    for (size_t f = 0; f < n_forms; f++)
        for (size_t i = 4; i < LEN(grid); i += 2) { /* 16, 130, 48 columns */
            MoeOpCase c = on_grid(op, MOE_F32, i, f32);
            c.form = forms[f];
            if (c.form == MOE_FORM_EXPERT)
                c.experts = 5, c.shards = 8;
            if (c.form == MOE_FORM_STACK && op == MOE_OP_SOFTMAX)
                continue; /* made of row ops: rank 2 at most */
            if (c.form != MOE_FORM_PLAIN)
                add(l, c);
        }
    if (!bf16)
        return;
    MoeTolerance t = f32.of_element > 0 ? bf16_rounded : f32;
    for (size_t i = 0; i < LEN(grid); i++)
        add(l, on_grid(op, MOE_BF16, i, t));
    for (size_t f = 0; f < n_forms; f++) {
        MoeOpCase c = on_grid(op, MOE_BF16, 5, t);
        c.form = forms[f];
        if (c.form == MOE_FORM_EXPERT)
            c.experts = 5, c.shards = 8;
        if (c.form != MOE_FORM_PLAIN)
            add(l, c);
    }
}

/* i32 add: [C], [C] with [1], rows. */
static void integer_add(List *l) {
    static const MoeCaseForm forms[] = {MOE_FORM_PLAIN, MOE_FORM_VECTOR, MOE_FORM_STACK};
    for (size_t f = 0; f < LEN(forms); f++)
        for (size_t i = 1; i < LEN(grid); i += 3) {
            MoeOpCase c = on_grid(MOE_OP_ADD, MOE_I32, i, exact);
            c.form = forms[f];
            add(l, c);
        }
}

/* dtype: that of the operand. */
static void converts(List *l) {
    static const MoeDtype from[] = {MOE_F32, MOE_BF16, MOE_I32};
    static const MoeCaseForm forms[] = {MOE_FORM_PLAIN, MOE_FORM_VECTOR, MOE_FORM_STACK};
    for (size_t d = 0; d < LEN(from); d++)
        for (size_t f = 0; f < LEN(forms); f++)
            for (size_t i = 0; i < LEN(grid); i += f ? 4 : 1) {
                MoeOpCase c = on_grid(MOE_OP_CONVERT, from[d], i, exact);
                c.form = forms[f];
                add(l, c);
            }
}

/* VECTOR: rows = 0; SCALAR, COLS, ROWS: what is repeated; MATRIX: static rows; EXPERT: a scalar over expert rows. */
static void broadcasts(List *l) {
    static const MoeCaseForm forms[] = {MOE_FORM_VECTOR, MOE_FORM_SCALAR, MOE_FORM_COLS,
                                        MOE_FORM_ROWS,   MOE_FORM_MATRIX, MOE_FORM_EXPERT};
    for (size_t f = 0; f < LEN(forms); f++)
        for (size_t i = 0; i < LEN(grid); i++) {
            MoeOpCase c = on_grid(MOE_OP_BROADCAST, i % 3 == 2 ? MOE_BF16 : MOE_F32, i, exact);
            c.form = forms[f];
            if (c.form == MOE_FORM_EXPERT)
                c.experts = 5, c.shards = 8;
            add(l, c);
        }
}

static void row_reduces(List *l, MoeOpcode op) {
    for (size_t i = 0; i < LEN(grid); i++) {
        MoeTolerance t = op == MOE_OP_ROW_MAX ? exact : sum_of(grid[i].cols);
        add(l, on_grid(op, MOE_F32, i, t));
        MoeOpCase c = on_grid(op, MOE_F32, i, t);
        c.form = MOE_FORM_VECTOR;
        if (i % 3 == 0)
            add(l, c);
        c.form = MOE_FORM_EXPERT;
        c.experts = 5;
        c.shards = 8;
        if (i % 4 == 0)
            add(l, c);
    }
}

static const struct {
    int64_t rows, topk, experts, shards;
    MoeShardLayout layout;
    MoeRouting routing;
} routes[] = {{0, 2, 8, 8, MOE_SHARDS_EVEN, MOE_ROUTING_RANDOM},
              {1, 1, 5, 8, MOE_SHARDS_LAST, MOE_ROUTING_RANDOM},
              {1, 3, 5, 1, MOE_SHARDS_EVEN, MOE_ROUTING_RANDOM},
              {17, 1, 5, 8, MOE_SHARDS_RANDOM, MOE_ROUTING_GAP},
              {17, 3, 5, 8, MOE_SHARDS_RANDOM, MOE_ROUTING_RANDOM},
              {17, 2, 8, 1, MOE_SHARDS_EVEN, MOE_ROUTING_ONE},
              {17, 1, 1, 8, MOE_SHARDS_EVEN, MOE_ROUTING_RANDOM},
              {100, 4, 4, 8, MOE_SHARDS_EVEN, MOE_ROUTING_RANDOM},
              {130, 8, 64, 8, MOE_SHARDS_RANDOM, MOE_ROUTING_RANDOM},
              {1023, 1, 8, 8, MOE_SHARDS_RANDOM, MOE_ROUTING_ONE},
              {1023, 2, 8, 8, MOE_SHARDS_EVEN, MOE_ROUTING_GAP},
              {1023, 3, 5, 1, MOE_SHARDS_EVEN, MOE_ROUTING_RANDOM},
              {1023, 2, 8, 8, MOE_SHARDS_FIRST, MOE_ROUTING_RANDOM}};

static MoeOpCase on_route(MoeOpcode op, size_t i) {
    return (MoeOpCase){.op = op, .dtype = MOE_F32, .rows = routes[i].rows, .topk = routes[i].topk,
                       .experts = routes[i].experts, .shards = routes[i].shards,
                       .layout = routes[i].layout, .routing = routes[i].routing};
}

static void routed(List *l, MoeOpcode op) {
    for (size_t i = 0; i < LEN(routes); i++)
        add(l, on_route(op, i));
}

/* Moves of rows with C columns. */
static void moves(List *l, MoeOpcode op, bool bf16) {
    static const int64_t cols[] = {7, 16, 33, 1, 48, 130, 513};
    for (size_t i = 0; i < LEN(routes); i++) {
        MoeOpCase c = on_route(op, i);
        c.cols = cols[i % LEN(cols)];
        if (op == MOE_OP_GATHER_SUM)
            c.tolerance[0] = sum_of(c.topk);
        add(l, c);
        c.dtype = MOE_BF16;
        if (bf16)
            add(l, c);
    }
}

static void counts(List *l, MoeOpcode op) {
    for (size_t i = 0; i < LEN(routes); i++) {
        MoeOpCase c = on_route(op, i);
        c.topk = 0;
        add(l, c);
        if (op == MOE_OP_ROW_COUNT) { /* a token table too */
            c.experts = 0;
            c.shards = 1 + (int64_t)i;
            c.layout = MOE_SHARDS_RANDOM;
            add(l, c);
        }
    }
}

static void valid_counts(List *l) {
    for (size_t i = 0; i < LEN(grid); i++) {
        MoeOpCase c = on_grid(MOE_OP_COUNT_VALID, MOE_I32, i, exact);
        c.cols = 0;
        c.vocab = grid[i].cols; /* also the only thing that tells apart cases of equal rows */
        add(l, c);
    }
}

/* Rows around the leaf of 128; tables with empty shards. */
static const struct {
    int64_t rows, shards;
    MoeShardLayout layout;
} leaves[] = {{0, 8, MOE_SHARDS_EVEN},   {1, 8, MOE_SHARDS_LAST},     {17, 8, MOE_SHARDS_RANDOM},
              {127, 1, MOE_SHARDS_EVEN}, {128, 8, MOE_SHARDS_FIRST},  {129, 1, MOE_SHARDS_EVEN},
              {300, 4, MOE_SHARDS_LAST}, {1023, 8, MOE_SHARDS_EVEN},  {1023, 8, MOE_SHARDS_RANDOM},
              {1023, 1, MOE_SHARDS_EVEN}};

static void col_sums(List *l) {
    static const int64_t cols[] = {7, 1, 16, 33, 48, 130, 513};
    for (size_t i = 0; i < LEN(leaves); i++) {
        MoeOpCase c = {.op = MOE_OP_COL_SUM, .rows = leaves[i].rows, .shards = leaves[i].shards,
                       .layout = leaves[i].layout, .cols = cols[i % LEN(cols)],
                       .tolerance = {sum_of(leaves[i].rows)}};
        add(l, c);
        c.form = MOE_FORM_EXPERT;
        c.experts = i % 2 ? 5 : 8;
        c.routing = (MoeRouting)(i % 3);
        add(l, c);
    }
}

/* VECTOR [n], MATRIX [3,n], STACK [3,5,n]: around the block of 4096. All terms positive, so relative to the sum. */
static void square_sums(List *l) {
    static const int64_t n[] = {1, 7, 513, 1365, 1366, 4095, 4096, 4097, 12289};
    static const MoeCaseForm forms[] = {MOE_FORM_VECTOR, MOE_FORM_MATRIX, MOE_FORM_STACK};
    for (size_t i = 0; i < LEN(n); i++)
        for (size_t f = 0; f < LEN(forms); f++)
            add(l, (MoeOpCase){.op = MOE_OP_SUM_SQUARES, .cols = n[i], .form = forms[f],
                               .tolerance = {{0, 0, 4e-6}}});
}

static void identities(List *l, MoeOpcode op, MoeDtype d) {
    static const MoeCaseForm forms[] = {MOE_FORM_VECTOR, MOE_FORM_MATRIX, MOE_FORM_STACK};
    static const int64_t n[] = {1, 8, 130};
    for (size_t f = 0; f < LEN(forms); f++)
        for (size_t i = 0; i < LEN(n); i++)
            add(l, (MoeOpCase){.op = op, .dtype = d, .cols = n[i], .form = forms[f]});
}

static const struct {
    int64_t rows, k, n;
} gemms[] = {{0, 16, 16},   {1, 1, 1},     {1, 513, 33},  {1, 48, 130},  {17, 7, 16},
             {17, 33, 49},  {17, 130, 1},  {7, 16, 513},  {9, 48, 48},   {64, 64, 96},
             {65, 130, 97}, {300, 33, 7},  {1023, 16, 33}, {1023, 48, 17}, {257, 513, 130}};

static void matmuls(List *l) {
    for (size_t i = 0; i < LEN(gemms); i++)
        for (int way = 0; way < 8; way++) {
            MoeOpCase c = {.op = MOE_OP_MATMUL, .rows = gemms[i].rows, .k = gemms[i].k,
                           .n = gemms[i].n, .shards = i % 2 ? 8 : 1, .layout = MOE_SHARDS_RANDOM,
                           .tolerance = {sum_of(gemms[i].k)}};
            c.tb = way & 1;
            c.grouped = way & 2;
            c.dtype = way & 4 ? MOE_BF16 : MOE_F32;
            if (c.grouped) {
                c.experts = i % 3 ? 5 : 8;
                c.routing = (MoeRouting)(i % 3);
            }
            add(l, c);
        }
    /* Static rows, without any table. */
    add(l, (MoeOpCase){.op = MOE_OP_MATMUL, .form = MOE_FORM_MATRIX, .k = 33, .n = 49, .tb = true,
                       .tolerance = {sum_of(33)}});
}

static void weight_grads(List *l) {
    for (size_t i = 0; i < LEN(leaves); i++)
        for (int way = 0; way < 4; way++) {
            const size_t j = (i * 7 + 3) % LEN(gemms);
            MoeOpCase c = {.op = MOE_OP_WEIGHT_GRAD, .rows = leaves[i].rows, .k = gemms[j].k,
                           .n = gemms[j].n, .shards = leaves[i].shards, .layout = leaves[i].layout,
                           .tolerance = {sum_of(leaves[i].rows)}};
            c.grouped = way & 1;
            c.dtype = way & 2 ? MOE_BF16 : MOE_F32;
            if (c.grouped) {
                c.experts = i % 2 ? 5 : 8;
                c.routing = (MoeRouting)(i % 3);
            }
            add(l, c);
        }
}

static void embeddings(List *l, MoeOpcode op) {
    for (size_t i = 0; i < LEN(leaves); i++) {
        static const int64_t vocab[] = {160, 1000, 5}, cols[] = {16, 7, 33, 48, 1, 130};
        MoeOpCase c = {.op = op, .rows = leaves[i].rows, .shards = leaves[i].shards,
                       .layout = leaves[i].layout, .vocab = vocab[i % 3], .cols = cols[i % 6]};
        if (op == MOE_OP_EMBEDDING_GRAD)
            c.tolerance[0] = sum_of(leaves[i].rows);
        add(l, c);
    }
}

/* Angles reach `seq` radians: the sine of an f32 angle is off by eps * seq. */
static void ropes(List *l) {
    static const struct {
        int64_t heads, dim, seq, batch;
    } shapes[] = {{1, 2, 1, 3}, {2, 8, 7, 1}, {3, 24, 17, 2}, {4, 64, 32, 3}, {1, 16, 1023, 1},
                  {8, 6, 9, 0}};
    for (size_t i = 0; i < LEN(shapes); i++)
        for (int inverse = 0; inverse < 2; inverse++)
            add(l, (MoeOpCase){.op = MOE_OP_ROPE, .heads = shapes[i].heads,
                               .head_dim = shapes[i].dim, .seq = shapes[i].seq,
                               .rows = shapes[i].seq * shapes[i].batch, .shards = i % 2 ? 8 : 1,
                               .inverse = inverse, .layout = MOE_SHARDS_RANDOM,
                               .tolerance = {{4e-6 + 1e-6 * (double)shapes[i].seq, 0, 0}}});
}

/* f32: exp and sums of f32, a few 1e-6. bf16: P (and dS) are rounded to bf16 inside, each off by 2^-9 of itself, and o by
 * 2^-8 of itself when stored; lse is computed in f32 either way. */
static void attentions(List *l, MoeOpcode op) {
    static const struct {
        int64_t heads, kv, dim, seq, batch, window;
    } shapes[] = {{1, 1, 8, 1, 1, 0},    {4, 1, 8, 7, 3, 0},   {4, 2, 24, 17, 2, 0},
                  {2, 2, 64, 33, 2, 0},  {4, 4, 16, 64, 1, 0}, {6, 2, 8, 65, 2, 16},
                  {2, 1, 24, 129, 1, 1}, {3, 1, 64, 130, 1, 64}, {2, 1, 8, 341, 3, 100},
                  {2, 2, 8, 16, 0, 0},   {8, 4, 32, 48, 2, 0}};
    for (size_t i = 0; i < LEN(shapes); i++)
        for (int bf16 = 0; bf16 < 2; bf16++) {
            MoeOpCase c = {.op = op, .dtype = bf16 ? MOE_BF16 : MOE_F32, .heads = shapes[i].heads,
                           .kv_heads = shapes[i].kv, .head_dim = shapes[i].dim,
                           .seq = shapes[i].seq, .rows = shapes[i].seq * shapes[i].batch,
                           .window = shapes[i].window, .shards = i % 2 ? 8 : 1,
                           .layout = MOE_SHARDS_RANDOM};
            const MoeTolerance grad = bf16 ? (MoeTolerance){0, 0x1p-6, 0x1p-7}
                                           : (MoeTolerance){2e-6, 1e-5, 0};
            if (op == MOE_OP_ATTENTION) {
                c.tolerance[0] = bf16 ? (MoeTolerance){0x1p-7, 0, 0x1p-7}
                                      : (MoeTolerance){8e-6, 0, 1e-6};
                c.tolerance[1] = (MoeTolerance){8e-6, 0, 1e-6};
            } else
                c.tolerance[0] = c.tolerance[1] = c.tolerance[2] = grad;
            add(l, c);
        }
}

/* Logits have a standard deviation of 2. nll and dh come from f32 sums whatever the operands; bf16 rounds dlogits inside,
 * as the interpreter does, but values near a tie may fall to the other side: 2^-8 of the element. */
static void cross_entropies(List *l, MoeOpcode op) {
    static const struct {
        int64_t rows, cols, vocab, shards;
        MoeShardLayout layout;
    } shapes[] = {{0, 16, 160, 8, MOE_SHARDS_EVEN},    {1, 7, 160, 1, MOE_SHARDS_EVEN},
                  {17, 33, 160, 8, MOE_SHARDS_RANDOM}, {17, 48, 1000, 8, MOE_SHARDS_FIRST},
                  {130, 130, 1000, 8, MOE_SHARDS_EVEN}, {300, 16, 5, 4, MOE_SHARDS_LAST},
                  {1023, 24, 160, 8, MOE_SHARDS_RANDOM}, {3, 513, 1, 1, MOE_SHARDS_EVEN},
                  {129, 1, 33, 1, MOE_SHARDS_EVEN}};
    for (size_t i = 0; i < LEN(shapes); i++)
        for (int bf16 = 0; bf16 < 2; bf16++) {
            MoeOpCase c = {.op = op, .dtype = bf16 ? MOE_BF16 : MOE_F32, .rows = shapes[i].rows,
                           .cols = shapes[i].cols, .vocab = shapes[i].vocab,
                           .shards = shapes[i].shards, .layout = shapes[i].layout};
            c.tolerance[0] = (MoeTolerance){1e-5, 0, 1e-6};
            c.tolerance[1] = c.tolerance[2] =
                bf16 ? (MoeTolerance){1e-6, 0x1p-8, 0} : (MoeTolerance){1e-6, 2e-5, 0};
            add(l, c);
        }
}

/* p' = p (1 - lr wd) - update with lr = 0.1, |update| about lr: absolute, in f32 of values of about 4. */
static void adamws(List *l) {
    static const int64_t n[] = {1, 7, 16, 513, 4099};
    static const MoeCaseForm forms[] = {MOE_FORM_VECTOR, MOE_FORM_MATRIX, MOE_FORM_STACK};
    for (size_t i = 0; i < LEN(n); i++)
        for (size_t f = 0; f < LEN(forms); f++)
            add(l, (MoeOpCase){.op = MOE_OP_ADAMW, .cols = n[i], .form = forms[f],
                               .tolerance = {{1e-6, 0, 4e-7}, {4e-7, 0, 4e-7}, {0, 0, 1e-6}}});
}

static void declarations(List *l, MoeOpcode op) {
    add(l, (MoeOpCase){.op = op, .rows = 5, .cols = 7, .shards = 8, .tolerance = {rounded}});
    if (op == MOE_OP_INPUT || op == MOE_OP_CONST || op == MOE_OP_OUTPUT)
        add(l, (MoeOpCase){.op = op, .dtype = MOE_I32, .rows = 5, .cols = 7, .shards = 8});
}

static void list_cases(List *l, MoeOpcode op) {
    const MoeTolerance sig = {1e-38, 0, 6e-7}; /* exp to 2 ulp, a sum and a division */
    switch (op) {
    case MOE_OP_INPUT: case MOE_OP_PARAM: case MOE_OP_STATE: case MOE_OP_CONST: case MOE_OP_OUTPUT:
    case MOE_OP_ASSIGN: declarations(l, op); break;
    case MOE_OP_ADD: elementwise(l, op, 2, rounded, true); integer_add(l); break;
    case MOE_OP_SUB: case MOE_OP_MUL: case MOE_OP_DIV: elementwise(l, op, 2, rounded, true); break;
    case MOE_OP_MAX: case MOE_OP_MIN: elementwise(l, op, 2, exact, true); break;
    case MOE_OP_NEG: elementwise(l, op, 1, exact, true); break;
    case MOE_OP_EXP: elementwise(l, op, 1, (MoeTolerance){0, 0, 4e-7}, true); break;
    case MOE_OP_LOG: elementwise(l, op, 1, (MoeTolerance){2e-7, 0, 4e-7}, true); break;
    case MOE_OP_SQRT: elementwise(l, op, 1, rounded, true); break;
    case MOE_OP_RSQRT: elementwise(l, op, 1, (MoeTolerance){0, 0, 2.4e-7}, true); break;
    case MOE_OP_SIGMOID: elementwise(l, op, 1, sig, true); break;
    case MOE_OP_SILU: elementwise(l, op, 1, sig, false); break;
    case MOE_OP_CONVERT: converts(l); break;
    case MOE_OP_BROADCAST: broadcasts(l); break;
    case MOE_OP_ROW_SUM: case MOE_OP_ROW_MAX: row_reduces(l, op); break;
    case MOE_OP_TOPK: case MOE_OP_TAKE: case MOE_OP_PUT: routed(l, op); break;
    case MOE_OP_COL_SUM: col_sums(l); break;
    case MOE_OP_SUM_SQUARES: square_sums(l); break;
    case MOE_OP_ACCUMULATE: identities(l, op, MOE_F32); break;
    case MOE_OP_BATCH_SUM: identities(l, op, MOE_I32); break;
    case MOE_OP_MATMUL: matmuls(l); break;
    case MOE_OP_WEIGHT_GRAD: weight_grads(l); break;
    case MOE_OP_ROUTE_PLAN: routed(l, op); break;
    case MOE_OP_EXPERT_COUNTS: case MOE_OP_ROW_COUNT: counts(l, op); break;
    case MOE_OP_COUNT_VALID: valid_counts(l); break;
    case MOE_OP_DISPATCH: moves(l, op, true); break;
    case MOE_OP_GATHER_SUM: moves(l, op, false); break;
    case MOE_OP_DISPATCH_WEIGHT: case MOE_OP_COLLECT_WEIGHT: routed(l, op); break;
    case MOE_OP_EMBEDDING: case MOE_OP_EMBEDDING_GRAD: embeddings(l, op); break;
    case MOE_OP_ROPE: ropes(l); break;
    case MOE_OP_ATTENTION: case MOE_OP_ATTENTION_GRAD: attentions(l, op); break;
    case MOE_OP_LINEAR_CROSS_ENTROPY: case MOE_OP_LINEAR_CROSS_ENTROPY_GRAD:
        cross_entropies(l, op); break;
    case MOE_OP_SOFTMAX: elementwise(l, op, 1, (MoeTolerance){1e-38, 0, 4e-6}, false); break;
    case MOE_OP_RMSNORM:
        for (size_t i = 0; i < LEN(grid); i++)
            add(l, on_grid(op, MOE_F32, i, (MoeTolerance){0, 0, 4e-6}));
        break;
    case MOE_OP_ADAMW: adamws(l); break;
    case MOE_N_OPS: break;
    }
}

size_t moe_op_cases(MoeOpcode op, MoeOpCase *out, size_t cap) {
    List l = {out, cap, 0};
    list_cases(&l, op);
    return l.n;
}

MoeOpCase *moe_op_cases_all(const char *prefix, size_t *out_n) {
    size_t n = 0, kept = 0;
    for (int op = 0; op < MOE_N_OPS; op++)
        n += moe_op_cases((MoeOpcode)op, NULL, 0);
    MoeOpCase *all = calloc(n, sizeof *all);
    MOE_ASSERT(all, "out of memory for %zu cases", n);
    for (size_t op = 0, at = 0; op < MOE_N_OPS; op++)
        at += moe_op_cases((MoeOpcode)op, all + at, n - at);
    for (size_t i = 0; i < n; i++)
        if (!strncmp(all[i].id, prefix, strlen(prefix)))
            all[kept++] = all[i];
    *out_n = kept;
    return all;
}
