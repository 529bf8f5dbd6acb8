/* The lists of cases: contractions, experts, sequence, loss. */
#include "tests/support/op_cases_internal.h"

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
    return (MoeOpCase){.op = op,
                       .dtype = MOE_F32,
                       .rows = routes[i].rows,
                       .topk = routes[i].topk,
                       .experts = routes[i].experts,
                       .shards = routes[i].shards,
                       .layout = routes[i].layout,
                       .routing = routes[i].routing};
}

/* The same moves, over received rows; rows far below the capacity. */
static void add_received(MoeCaseList *l, MoeOpCase c, size_t i) {
    static const int64_t chunks[] = {1, 3, 2};
    c.form = MOE_FORM_RECEIVED;
    c.chunks = chunks[i % LEN(chunks)];
    c.capacity = 64 * c.rows;
    if (c.rows < 1000) /* a thousand rows of that would be mostly waiting */
        moe_case_add(l, c);
}

void moe_cases_routed(MoeCaseList *l, MoeOpcode op) {
    for (size_t i = 0; i < LEN(routes); i++) {
        moe_case_add(l, on_route(op, i));
        if (op == MOE_OP_DISPATCH_WEIGHT)
            add_received(l, on_route(op, i), i);
    }
}

/* Plans of 1 .. more ranks than experts; slots rounded up, so some are empty; one chunk, or a slot a
 * chunk. expert_plan: as the first rank and as the last, so that with all tokens on one expert some
 * rank has them all and another none. */
void moe_cases_rank_plan(MoeCaseList *l, MoeOpcode op) {
    static const int64_t ranks[] = {1, 2, 3, 8, 70};
    for (size_t i = 0; i < LEN(routes); i++)
        for (size_t r = 0; r < LEN(ranks); r++) {
            MoeOpCase c = on_route(op, i);
            c.ranks = ranks[r];
            c.slots = (c.experts + c.ranks - 1) / c.ranks;
            if (i % 4 == 3 && c.slots == 1) /* two chunks, the last of them smaller or not */
                c.slots++;
            int64_t most = i % 4 == 3 ? 2 : c.slots;
            for (c.chunks = 1; c.chunks <= most; c.chunks += most > 1 ? most - 1 : 1)
                for (c.ep_rank = 0; c.ep_rank<c.ranks; c.ep_rank += c.ranks> 1 ? c.ranks - 1 : 1) {
                    if (op == MOE_OP_EXPERT_PLAN || c.ep_rank == 0)
                        moe_case_add(l, c);
                }
        }
}

/* Moves of rows with C columns. */
void moe_cases_move(MoeCaseList *l, MoeOpcode op, bool bf16) {
    static const int64_t cols[] = {7, 16, 33, 1, 48, 130, 513};
    for (size_t i = 0; i < LEN(routes); i++) {
        MoeOpCase c = on_route(op, i);
        c.cols = cols[i % LEN(cols)];
        if (op == MOE_OP_GATHER_SUM)
            c.tolerance[0] = moe_tol_sum(c.topk);
        moe_case_add(l, c);
        if (op == MOE_OP_DISPATCH)
            add_received(l, c, i);
        c.dtype = MOE_BF16;
        if (bf16)
            moe_case_add(l, c);
        if (bf16)
            add_received(l, c, i);
    }
}

void moe_cases_count(MoeCaseList *l, MoeOpcode op) {
    for (size_t i = 0; i < LEN(routes); i++) {
        MoeOpCase c = on_route(op, i);
        c.topk = 0;
        moe_case_add(l, c);
        if (op == MOE_OP_ROW_COUNT) { /* a token table too */
            c.experts = 0;
            c.shards = 1 + (int64_t)i;
            c.layout = MOE_SHARDS_RANDOM;
            moe_case_add(l, c);
        }
    }
}

static const struct {
    int64_t rows, k, n;
} gemms[] = {{0, 16, 16},   {1, 1, 1},    {1, 513, 33},   {1, 48, 130},   {17, 7, 16},
             {17, 33, 49},  {17, 130, 1}, {7, 16, 513},   {9, 48, 48},    {64, 64, 96},
             {65, 130, 97}, {300, 33, 7}, {1023, 16, 33}, {1023, 48, 17}, {257, 513, 130}};

void moe_cases_matmul(MoeCaseList *l) {
    for (size_t i = 0; i < LEN(gemms); i++)
        for (int way = 0; way < 8; way++) {
            MoeOpCase c = {.op = MOE_OP_MATMUL,
                           .rows = gemms[i].rows,
                           .k = gemms[i].k,
                           .n = gemms[i].n,
                           .shards = i % 2 ? 8 : 1,
                           .layout = MOE_SHARDS_RANDOM,
                           .tolerance = {moe_tol_sum(gemms[i].k)}};
            c.tb = way & 1;
            c.grouped = way & 2;
            c.dtype = way & 4 ? MOE_BF16 : MOE_F32;
            if (c.grouped) {
                c.experts = i % 3 ? 5 : 8;
                c.routing = (MoeRouting)(i % 3);
            }
            moe_case_add(l, c);
        }
    /* Static rows, without any table. */
    moe_case_add(l, (MoeOpCase){.op = MOE_OP_MATMUL,
                                .form = MOE_FORM_MATRIX,
                                .k = 33,
                                .n = 49,
                                .tb = true,
                                .tolerance = {moe_tol_sum(33)}});
}

/* Leaves that are not the usual ones, and none: on both sides of their edges. */
static const struct {
    int leaf_rows;
    bool fast_reduce;
    int64_t rows, shards;
} leaves[] = {{64, false, 1023, 8},  {64, false, 65, 1},  {512, false, 1500, 2}, {1024, false, 1500, 1},
              {4096, false, 700, 2}, {0, true, 1500, 8},  {0, true, 129, 1},     {0, true, 0, 8},
              {512, true, 17, 8}};

static void leaf_case(MoeCaseList *l, MoeOpCase c, size_t i) {
    c.leaf_rows = leaves[i].leaf_rows;
    c.fast_reduce = leaves[i].fast_reduce;
    c.rows = leaves[i].rows;
    c.shards = leaves[i].shards;
    c.layout = MOE_SHARDS_RANDOM;
    c.tolerance[0] = c.tolerance[1] = moe_tol_sum(2 * leaves[i].rows);
    moe_case_add(l, c);
}

static void leaf_grads(MoeCaseList *l) {
    for (size_t i = 0; i < LEN(leaves); i++)
        for (int way = 0; way < 4; way++)
            leaf_case(l,
                      (MoeOpCase){.op = MOE_OP_WEIGHT_GRAD,
                                  .grouped = way & 1,
                                  .experts = way & 1 ? 3 : 0,
                                  .dtype = way & 2 ? MOE_BF16 : MOE_F32,
                                  .k = way & 2 ? 48 : 33,
                                  .n = i % 2 ? 40 : 17},
                      i);
}

void moe_cases_weight_grad(MoeCaseList *l) {
    leaf_grads(l);
    for (size_t i = 0; i < MOE_N_LEAF_SHAPES; i++)
        for (int way = 0; way < 4; way++) {
            const size_t j = (i * 7 + 3) % LEN(gemms);
            MoeOpCase c = {.op = MOE_OP_WEIGHT_GRAD,
                           .rows = moe_leaf_shapes[i].rows,
                           .k = gemms[j].k,
                           .n = gemms[j].n,
                           .shards = moe_leaf_shapes[i].shards,
                           .layout = moe_leaf_shapes[i].layout,
                           .tolerance = {moe_tol_sum(moe_leaf_shapes[i].rows)}};
            c.grouped = way & 1;
            c.dtype = way & 2 ? MOE_BF16 : MOE_F32;
            if (c.grouped) {
                c.experts = i % 2 ? 5 : 8;
                c.routing = (MoeRouting)(i % 3);
            }
            moe_case_add(l, c);
        }
}

/* Slots for copies: none, one or three a rank. */
void moe_cases_copies(MoeCaseList *l, MoeOpcode op) {
    for (size_t i = 0; i < LEN(leaves); i += 2)
        leaf_case(l,
                  (MoeOpCase){.op = op,
                              .dtype = op == MOE_OP_ROOT_GRAD && i % 4 ? MOE_BF16 : MOE_F32,
                              .topk = 2,
                              .experts = 5,
                              .k = op == MOE_OP_ROOT_GRAD ? 33 : 0,
                              .n = op == MOE_OP_ROOT_GRAD ? 17 : 0,
                              .ranks = 2,
                              .ep_rank = op == MOE_OP_ROOT_PLAN,
                              .slots = 4},
                  i);
    for (size_t i = 0; i < MOE_N_LEAF_SHAPES; i++)
        for (int way = 0; way < (op == MOE_OP_COPY_PLAN ? 3 : 6); way++) {
            const size_t j = (i * 5 + 2) % LEN(gemms);
            MoeOpCase c = {.op = op,
                           .dtype = MOE_F32,
                           .rows = moe_leaf_shapes[i].rows,
                           .topk = 1 + (int64_t)i % 2,
                           .experts = i % 2 ? 5 : 8,
                           .shards = moe_leaf_shapes[i].shards,
                           .layout = moe_leaf_shapes[i].layout,
                           .routing = (MoeRouting)(way % 3),
                           .ranks = 2 + (int64_t)i % 3};
            c.slots = (c.experts + c.ranks - 1) / c.ranks + (way % 3 == 2 ? 3 : way % 3);
            if (op == MOE_OP_ROOT_PLAN)
                c.ep_rank = way < 3 ? 0 : c.ranks - 1;
            if (op == MOE_OP_ROOT_GRAD) {
                c.dtype = way < 3 ? MOE_F32 : MOE_BF16;
                c.k = gemms[j].k;
                c.n = gemms[j].n;
                c.tolerance[0] = c.tolerance[1] = moe_tol_sum(2 * moe_leaf_shapes[i].rows);
            }
            moe_case_add(l, c);
        }
}

void moe_cases_embedding(MoeCaseList *l, MoeOpcode op) {
    for (size_t i = 0; i < MOE_N_LEAF_SHAPES; i++) {
        static const int64_t vocab[] = {160, 1000, 5}, cols[] = {16, 7, 33, 48, 1, 130};
        MoeOpCase c = {.op = op,
                       .rows = moe_leaf_shapes[i].rows,
                       .shards = moe_leaf_shapes[i].shards,
                       .layout = moe_leaf_shapes[i].layout,
                       .vocab = vocab[i % 3],
                       .cols = cols[i % 6]};
        if (op == MOE_OP_EMBEDDING_GRAD)
            c.tolerance[0] = moe_tol_sum(moe_leaf_shapes[i].rows);
        moe_case_add(l, c);
        for (c.ranks = 1; c.ranks <= 3; c.ranks++) /* as the last part */ {
            c.ep_rank = c.ranks - 1;
            moe_case_add(l, c);
        }
        c.ranks = 3;
        c.ep_rank = 0;
        moe_case_add(l, c);
    }
}

/* Angles reach `seq` radians: the sine of an f32 angle is off by eps * seq. */
void moe_cases_rope(MoeCaseList *l) {
    static const struct {
        int64_t heads, dim, seq, batch;
    } shapes[] = {{1, 2, 1, 3},   {2, 8, 7, 1},     {3, 24, 17, 2},
                  {4, 64, 32, 3}, {1, 16, 1023, 1}, {8, 6, 9, 0}};
    for (size_t i = 0; i < LEN(shapes); i++)
        for (int inverse = 0; inverse < 2; inverse++)
            moe_case_add(l,
                         (MoeOpCase){.op = MOE_OP_ROPE,
                                     .heads = shapes[i].heads,
                                     .head_dim = shapes[i].dim,
                                     .seq = shapes[i].seq,
                                     .rows = shapes[i].seq * shapes[i].batch,
                                     .shards = i % 2 ? 8 : 1,
                                     .inverse = inverse,
                                     .layout = MOE_SHARDS_RANDOM,
                                     .tolerance = {{4e-6 + 1e-6 * (double)shapes[i].seq, 0, 0}}});
}

/* f32: exp and sums of f32, a few 1e-6. bf16: P (and dS) are rounded to bf16 inside, each off by
 * 2^-9 of itself, and o by 2^-8 of itself when stored; lse is computed in f32 either way. */
void moe_cases_attention(MoeCaseList *l, MoeOpcode op) {
    static const struct {
        int64_t heads, kv, dim, seq, batch, window;
    } shapes[] = {{1, 1, 8, 1, 1, 0},    {4, 1, 8, 7, 3, 0},     {4, 2, 24, 17, 2, 0},
                  {2, 2, 64, 33, 2, 0},  {4, 4, 16, 64, 1, 0},   {6, 2, 8, 65, 2, 16},
                  {2, 1, 24, 129, 1, 1}, {3, 1, 64, 130, 1, 64}, {2, 1, 8, 341, 3, 100},
                  {4, 2, 8, 9, 2, 3},    {2, 2, 8, 16, 0, 0},    {8, 4, 32, 48, 2, 0},
                  {2, 1, 15, 33, 1, 5},  {2, 1, 128, 150, 1, 40}, {1, 1, 160, 37, 1, 0},
                  {1, 1, 300, 20, 1, 0}};
    for (size_t i = 0; i < LEN(shapes); i++)
        for (int bf16 = 0; bf16 < 2; bf16++) {
            MoeOpCase c = {.op = op,
                           .dtype = bf16 ? MOE_BF16 : MOE_F32,
                           .heads = shapes[i].heads,
                           .kv_heads = shapes[i].kv,
                           .head_dim = shapes[i].dim,
                           .seq = shapes[i].seq,
                           .rows = shapes[i].seq * shapes[i].batch,
                           .window = shapes[i].window,
                           .shards = i % 2 ? 8 : 1,
                           .layout = MOE_SHARDS_RANDOM};
            /* With a window of one key dq and dk are zero: what is left is f32 rounding. */
            const MoeTolerance grad =
                bf16 ? (MoeTolerance){2e-6, 0x1p-6, 0x1p-7} : (MoeTolerance){2e-6, 1e-5, 0};
            if (op == MOE_OP_ATTENTION) {
                c.tolerance[0] =
                    bf16 ? (MoeTolerance){0x1p-7, 0, 0x1p-7} : (MoeTolerance){8e-6, 0, 1e-6};
                c.tolerance[1] = (MoeTolerance){8e-6, 0, 1e-6};
            } else
                c.tolerance[0] = c.tolerance[1] = c.tolerance[2] = grad;
            moe_case_add(l, c);
        }
}

/* Logits have a standard deviation of 2. nll and dh come from f32 sums whatever the operands; bf16
 * rounds dlogits inside, as the interpreter does, but values near a tie may fall to the other side:
 * 2^-8 of the element. */
void moe_cases_cross_entropy(MoeCaseList *l, MoeOpcode op) {
    static const struct {
        int64_t rows, cols, vocab, shards;
        MoeShardLayout layout;
    } shapes[] = {{0, 16, 160, 8, MOE_SHARDS_EVEN},      {1, 7, 160, 1, MOE_SHARDS_EVEN},
                  {17, 33, 160, 8, MOE_SHARDS_RANDOM},   {17, 48, 1000, 8, MOE_SHARDS_FIRST},
                  {130, 130, 1000, 8, MOE_SHARDS_EVEN},  {300, 16, 5, 4, MOE_SHARDS_LAST},
                  {1023, 24, 160, 8, MOE_SHARDS_RANDOM}, {3, 513, 1, 1, MOE_SHARDS_EVEN},
                  {129, 1, 33, 1, MOE_SHARDS_EVEN},      {5, 24, 8925, 2, MOE_SHARDS_RANDOM}};
    for (size_t i = 0; i < LEN(shapes); i++)
        for (int bf16 = 0; bf16 < 2; bf16++) {
            MoeOpCase c = {.op = op,
                           .dtype = bf16 ? MOE_BF16 : MOE_F32,
                           .rows = shapes[i].rows,
                           .cols = shapes[i].cols,
                           .vocab = shapes[i].vocab,
                           .shards = shapes[i].shards,
                           .layout = shapes[i].layout};
            c.tolerance[0] = (MoeTolerance){1e-5, 0, 1e-6};
            c.tolerance[1] = c.tolerance[2] =
                bf16 ? (MoeTolerance){1e-6, 0x1p-8, 0} : (MoeTolerance){1e-6, 2e-5, 0};
            if (op == MOE_OP_LINEAR_CROSS_ENTROPY || op == MOE_OP_LINEAR_CROSS_ENTROPY_GRAD) {
                moe_case_add(l, c);
                continue;
            }
            if (op == MOE_OP_LINEAR_CROSS_ENTROPY_PART_GRAD)
                c.tolerance[0] = c.tolerance[1];
            else
                c.tolerance[0].of_element = 4e-6; /* sums of up to 1000 exponentials */
            for (c.ranks = 1; c.ranks <= 3; c.ranks += 2)
                for (c.ep_rank = 0; c.ep_rank < c.ranks; c.ep_rank++)
                    moe_case_add(l, c);
        }
}

void moe_cases_cross_entropy_join(MoeCaseList *l) {
    static const int64_t parts[] = {1, 2, 3, 8};
    for (size_t i = 0; i < MOE_N_LEAF_SHAPES; i++)
        for (size_t p = 0; p < LEN(parts); p++)
            moe_case_add(l, (MoeOpCase){.op = MOE_OP_CROSS_ENTROPY_JOIN,
                                        .rows = moe_leaf_shapes[i].rows,
                                        .shards = moe_leaf_shapes[i].shards,
                                        .layout = moe_leaf_shapes[i].layout,
                                        .ranks = parts[p],
                                        .tolerance = {{2e-6, 0, 4e-7}, {2e-6, 0, 4e-7}}});
}
