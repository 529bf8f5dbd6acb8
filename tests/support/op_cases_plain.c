/* The lists of cases: declarations, elementwise ops, ops on rows, reductions, the update. */
#include "tests/support/op_cases_internal.h"

static const MoeTolerance exact = {0, 0, 0};
static const MoeTolerance bf16_rounded = {1e-38, 0, 0x1p-7};

const MoeLeafShape moe_leaf_shapes[MOE_N_LEAF_SHAPES] = {
    {0, 8, MOE_SHARDS_EVEN},   {1, 8, MOE_SHARDS_LAST},    {17, 8, MOE_SHARDS_RANDOM},
    {127, 1, MOE_SHARDS_EVEN}, {128, 8, MOE_SHARDS_FIRST}, {129, 1, MOE_SHARDS_EVEN},
    {300, 4, MOE_SHARDS_LAST}, {1023, 8, MOE_SHARDS_EVEN}, {1023, 8, MOE_SHARDS_RANDOM},
    {1023, 1, MOE_SHARDS_EVEN}};

/* Rows and columns that elementwise and row ops see. */
static const struct {
    int64_t rows, cols, shards;
    MoeShardLayout layout;
} grid[] = {{0, 7, 8, MOE_SHARDS_EVEN},     {1, 1, 1, MOE_SHARDS_EVEN},
            {1, 513, 8, MOE_SHARDS_LAST},   {17, 1, 8, MOE_SHARDS_EVEN},
            {17, 16, 8, MOE_SHARDS_RANDOM}, {17, 33, 1, MOE_SHARDS_EVEN},
            {17, 130, 8, MOE_SHARDS_FIRST}, {1023, 7, 8, MOE_SHARDS_RANDOM},
            {1023, 48, 1, MOE_SHARDS_EVEN}, {257, 513, 8, MOE_SHARDS_EVEN}};

static MoeOpCase on_grid(MoeOpcode op, MoeDtype d, size_t i, MoeTolerance t) {
    return (MoeOpCase){.op = op,
                       .dtype = d,
                       .rows = grid[i].rows,
                       .cols = grid[i].cols,
                       .shards = grid[i].shards,
                       .layout = grid[i].layout,
                       .tolerance = {t, t, t}};
}

void moe_cases_elementwise(MoeCaseList *l, MoeOpcode op, int operands, MoeTolerance f32,
                           bool bf16) {
    static const MoeCaseForm two[] = {MOE_FORM_PLAIN,  MOE_FORM_COLS,   MOE_FORM_ROWS,
                                      MOE_FORM_SCALAR, MOE_FORM_LEFT,   MOE_FORM_OUTER,
                                      MOE_FORM_VECTOR, MOE_FORM_MATRIX, MOE_FORM_STACK,
                                      MOE_FORM_EXPERT, MOE_FORM_SAME};
    static const MoeCaseForm one[] = {MOE_FORM_SCALAR, MOE_FORM_VECTOR, MOE_FORM_STACK,
                                      MOE_FORM_EXPERT};
    const MoeCaseForm *forms = operands == 2 ? two : one;
    size_t n_forms = operands == 2 ? LEN(two) : LEN(one);
    for (size_t i = 0; i < LEN(grid); i++)
        moe_case_add(l, on_grid(op, MOE_F32, i, f32));
    for (size_t f = 0; f < n_forms; f++)
        for (size_t i = 4; i < LEN(grid); i += 2) { /* 16, 130, 48 columns */
            MoeOpCase c = on_grid(op, MOE_F32, i, f32);
            c.form = forms[f];
            if (c.form == MOE_FORM_EXPERT)
                c.experts = 5, c.shards = 8;
            if (c.form == MOE_FORM_STACK && op == MOE_OP_SOFTMAX)
                continue; /* made of row ops: rank 2 at most */
            if (c.form != MOE_FORM_PLAIN)
                moe_case_add(l, c);
        }
    if (!bf16)
        return;
    MoeTolerance t = f32.of_element > 0 ? bf16_rounded : f32;
    for (size_t i = 0; i < LEN(grid); i++)
        moe_case_add(l, on_grid(op, MOE_BF16, i, t));
    for (size_t f = 0; f < n_forms; f++) {
        MoeOpCase c = on_grid(op, MOE_BF16, 5, t);
        c.form = forms[f];
        if (c.form == MOE_FORM_EXPERT)
            c.experts = 5, c.shards = 8;
        if (c.form != MOE_FORM_PLAIN)
            moe_case_add(l, c);
    }
}

/* i32 add: [C], [C] with [1], rows. */
void moe_cases_integer_add(MoeCaseList *l) {
    static const MoeCaseForm forms[] = {MOE_FORM_PLAIN, MOE_FORM_VECTOR, MOE_FORM_STACK};
    for (size_t f = 0; f < LEN(forms); f++)
        for (size_t i = 1; i < LEN(grid); i += 3) {
            MoeOpCase c = on_grid(MOE_OP_ADD, MOE_I32, i, exact);
            c.form = forms[f];
            moe_case_add(l, c);
        }
}

/* dtype: that of the operand. */
void moe_cases_convert(MoeCaseList *l) {
    static const MoeDtype from[] = {MOE_F32, MOE_BF16, MOE_I32};
    static const MoeCaseForm forms[] = {MOE_FORM_PLAIN, MOE_FORM_VECTOR, MOE_FORM_STACK};
    for (size_t d = 0; d < LEN(from); d++)
        for (size_t f = 0; f < LEN(forms); f++)
            for (size_t i = 0; i < LEN(grid); i += f ? 4 : 1) {
                MoeOpCase c = on_grid(MOE_OP_CONVERT, from[d], i, exact);
                c.form = forms[f];
                moe_case_add(l, c);
            }
}

/* VECTOR: rows = 0; SCALAR, COLS, ROWS: what is repeated; MATRIX: static rows; EXPERT: a scalar
 * over expert rows. */
void moe_cases_broadcast(MoeCaseList *l) {
    static const MoeCaseForm forms[] = {MOE_FORM_VECTOR, MOE_FORM_SCALAR, MOE_FORM_COLS,
                                        MOE_FORM_ROWS,   MOE_FORM_MATRIX, MOE_FORM_EXPERT};
    for (size_t f = 0; f < LEN(forms); f++)
        for (size_t i = 0; i < LEN(grid); i++) {
            MoeOpCase c = on_grid(MOE_OP_BROADCAST, i % 3 == 2 ? MOE_BF16 : MOE_F32, i, exact);
            c.form = forms[f];
            if (c.form == MOE_FORM_EXPERT)
                c.experts = 5, c.shards = 8;
            moe_case_add(l, c);
        }
}

void moe_cases_row_reduce(MoeCaseList *l, MoeOpcode op) {
    for (size_t i = 0; i < LEN(grid); i++) {
        MoeTolerance t = op == MOE_OP_ROW_MAX ? exact : moe_tol_sum(grid[i].cols);
        moe_case_add(l, on_grid(op, MOE_F32, i, t));
        MoeOpCase c = on_grid(op, MOE_F32, i, t);
        c.form = MOE_FORM_VECTOR;
        if (i % 3 == 0)
            moe_case_add(l, c);
        c.form = MOE_FORM_EXPERT;
        c.experts = 5;
        c.shards = 8;
        if (i % 4 == 0)
            moe_case_add(l, c);
    }
}

void moe_cases_count_valid(MoeCaseList *l) {
    for (size_t i = 0; i < LEN(grid); i++) {
        MoeOpCase c = on_grid(MOE_OP_COUNT_VALID, MOE_I32, i, exact);
        c.cols = 0;
        c.vocab = grid[i].cols; /* also the only thing that tells apart cases of equal rows */
        moe_case_add(l, c);
    }
}

void moe_cases_col_sum(MoeCaseList *l) {
    static const int64_t cols[] = {7, 1, 16, 33, 48, 130, 513};
    for (size_t i = 0; i < MOE_N_LEAF_SHAPES; i++) {
        MoeOpCase c = {.op = MOE_OP_COL_SUM,
                       .rows = moe_leaf_shapes[i].rows,
                       .shards = moe_leaf_shapes[i].shards,
                       .layout = moe_leaf_shapes[i].layout,
                       .cols = cols[i % LEN(cols)],
                       .tolerance = {moe_tol_sum(moe_leaf_shapes[i].rows)}};
        moe_case_add(l, c);
        c.form = MOE_FORM_EXPERT;
        c.experts = i % 2 ? 5 : 8;
        c.routing = (MoeRouting)(i % 3);
        moe_case_add(l, c);
    }
}

/* VECTOR [n], MATRIX [3,n], STACK [3,5,n]: around the block of 4096. All terms positive, so
 * relative to the sum. */
void moe_cases_sum_squares(MoeCaseList *l) {
    static const int64_t n[] = {1, 7, 513, 1365, 1366, 4095, 4096, 4097, 12289};
    static const MoeCaseForm forms[] = {MOE_FORM_VECTOR, MOE_FORM_MATRIX, MOE_FORM_STACK};
    for (size_t i = 0; i < LEN(n); i++)
        for (size_t f = 0; f < LEN(forms); f++)
            moe_case_add(l, (MoeOpCase){.op = MOE_OP_SUM_SQUARES,
                                        .cols = n[i],
                                        .form = forms[f],
                                        .tolerance = {{0, 0, 4e-6}}});
}

/* VECTOR [n], MATRIX [3,n], STACK [3,5,n]: of each row by itself. */
void moe_cases_block_squares(MoeCaseList *l) {
    static const int64_t n[] = {0, 1, 7, 819, 820, 4095, 4096, 4097, 12289};
    static const MoeCaseForm forms[] = {MOE_FORM_VECTOR, MOE_FORM_MATRIX, MOE_FORM_STACK};
    for (size_t i = 0; i < LEN(n); i++)
        for (size_t f = 0; f < LEN(forms); f++)
            moe_case_add(l, (MoeOpCase){.op = MOE_OP_BLOCK_SQUARES,
                                        .cols = n[i],
                                        .form = forms[f],
                                        .tolerance = {{0, 0, 4e-6}}});
}

/* VECTOR [n]; MATRIX [3,n]; with experts [ranks * slots, n] and a place. */
void moe_cases_block_tree(MoeCaseList *l) {
    static const int64_t n[] = {0, 1, 2, 3, 17, 64, 129};
    static const struct {
        int64_t experts, ranks, slots;
    } places[] = {{0, 0, 0}, {1, 1, 1}, {8, 1, 8}, {5, 2, 3}, {3, 4, 2}};
    for (size_t i = 0; i < LEN(n); i++) {
        MoeOpCase c = {.op = MOE_OP_BLOCK_TREE,
                       .cols = n[i],
                       .form = MOE_FORM_VECTOR,
                       .tolerance = {moe_tol_sum(n[i] * 8)}};
        moe_case_add(l, c);
        c.form = MOE_FORM_MATRIX;
        for (size_t p = 0; p < LEN(places); p++) {
            c.experts = places[p].experts;
            c.ranks = places[p].ranks;
            c.slots = places[p].slots;
            moe_case_add(l, c);
        }
    }
}

void moe_cases_identity(MoeCaseList *l, MoeOpcode op, MoeDtype d) {
    static const MoeCaseForm forms[] = {MOE_FORM_VECTOR, MOE_FORM_MATRIX, MOE_FORM_STACK};
    static const int64_t n[] = {1, 8, 130};
    for (size_t f = 0; f < LEN(forms); f++)
        for (size_t i = 0; i < LEN(n); i++)
            moe_case_add(l, (MoeOpCase){.op = op, .dtype = d, .cols = n[i], .form = forms[f]});
}

void moe_cases_rmsnorm(MoeCaseList *l) {
    for (size_t i = 0; i < LEN(grid); i++)
        moe_case_add(l, on_grid(MOE_OP_RMSNORM, MOE_F32, i, (MoeTolerance){0, 0, 4e-6}));
}

/* p' = p (1 - lr wd) - update with lr = 0.1, |update| about lr: absolute, in f32 of values of
 * about 4. */
void moe_cases_adamw(MoeCaseList *l) {
    static const int64_t n[] = {1, 7, 16, 513, 4099};
    static const MoeCaseForm forms[] = {MOE_FORM_VECTOR, MOE_FORM_MATRIX, MOE_FORM_STACK};
    for (size_t i = 0; i < LEN(n); i++)
        for (size_t f = 0; f < LEN(forms); f++)
            moe_case_add(
                l, (MoeOpCase){.op = MOE_OP_ADAMW,
                               .cols = n[i],
                               .form = forms[f],
                               .tolerance = {{1e-6, 0, 4e-7}, {4e-7, 0, 4e-7}, {0, 0, 1e-6}}});
}

void moe_cases_declaration(MoeCaseList *l, MoeOpcode op) {
    moe_case_add(
        l,
        (MoeOpCase){.op = op, .rows = 5, .cols = 7, .shards = 8, .tolerance = {moe_tol_rounded()}});
    if (op == MOE_OP_INPUT || op == MOE_OP_CONST || op == MOE_OP_OUTPUT)
        moe_case_add(l, (MoeOpCase){.op = op, .dtype = MOE_I32, .rows = 5, .cols = 7, .shards = 8});
}
