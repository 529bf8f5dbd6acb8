/* copy_plan and root_plan (docs/PLACEMENT.md). copy_plan: the choices sorted by expert, the table of (expert, shard) from that, one
 * block that divides each expert's rows among its copies (device/split.cuh: what base/split.c does on the host), then each choice
 * looks for the run that has it. root_plan: one block. */
#include "codegen/cuda/kind_copy_plan.h"

#include "base/assert.h"
#include "base/split_internal.h"
#include "codegen/cuda/sort.h"

enum { THREADS = 256 };

typedef struct {
    int64_t experts, ranks, slots, shards, k, choices;
    int leaf_rows; /* of the graph: rows are divided at leaves */
} Sizes;

static Sizes sizes_of(const MoeOp *op) {
    const MoeType *all = &op->operands[1]->type;
    Sizes s = {.experts = moe_attr_i(op, "experts"),
               .ranks = moe_attr_i(op, "ranks"),
               .slots = moe_attr_i(op, "slots"),
               .shards = moe_rows_seg(all)->type.shards,
               .k = moe_type_cols(all)};
    s.choices = all->dims[0].size * s.k;
    return s;
}

/* Bytes that struct Division lays out. */
static int64_t division_bytes(const Sizes *s) {
    int64_t edges = (s->ranks + 1) * MOE_SPLIT_EDGES;
    return 2 * MOE_SPLIT_EDGES * 8 + edges * (12 + 4) +
           4 * (3 * s->ranks * s->slots + 4 * s->experts + s->experts + 1 + 4 * s->ranks +
                2 * (s->ranks + 1) + s->shards + 1);
}

/* Behind each other in the workspace; the sort's place, which the live rows lay out, is last. */
typedef struct {
    int64_t cells, first, slot, division, lists;
} Work;

static Work work_of(const Sizes *s) {
    Work w = {.cells = 0};
    w.first = w.cells + moe_cuda_list_bytes(s->experts * s->shards + 1);
    w.slot = w.first + moe_cuda_list_bytes(s->experts + 1);
    w.division = w.slot + moe_cuda_list_bytes(s->ranks * s->slots);
    w.lists = w.division + moe_cuda_list_bytes(division_bytes(s) / 4 + 1);
    return w;
}

int64_t moe_cuda_copy_plan_workspace(const MoeOp *op) {
    Sizes s = sizes_of(op);
    return work_of(&s).lists + 2 * moe_cuda_list_bytes(s.choices) +
           moe_cuda_sort_bytes(s.experts, s.choices);
}

static void name_buffer(MoeStr *text, const char *name, int buf) {
    if (buf < 0)
        moe_str_printf(text, "i32 *%s = nullptr;\n", name);
    else
        moe_str_printf(text, "i32 *%s = buf<i32>(a, %d);\n", name, buf);
}

/* The launch that divides: in shared memory where that is enough. */
static void divide(MoeCudaSteps *steps, const Sizes *s) {
    MoeStr body = {0};
    int64_t bytes = division_bytes(s);
    bool shared = bytes + 4096 <= steps->t->arch->shared_bytes;
    if (shared)
        moe_str_append(&body, "MOE_SHARED(memory);\n");
    else
        moe_str_append(&body, "char *memory = (char *)division;\n");
    moe_str_printf(&body,
                   "Division<%lld, %lld, %lld, %lld, %d, %d, %d, %d, %d> d(cells, memory);\n"
                   "d.run<%d>(copies, runs, first, slot);\n",
                   (long long)s->experts, (long long)s->ranks, (long long)s->slots,
                   (long long)s->shards, s->leaf_rows, MOE_COPY_ROOTS, MOE_SPLIT_EDGES,
                   MOE_SPLIT_ROOT_PRICE, MOE_SPLIT_RETRIES, THREADS);
    steps->shared = shared ? bytes : 0;
    moe_cuda_step(steps, "_divide", THREADS, 1, moe_str_c(&body));
    steps->shared = 0;
    moe_str_free(&body);
}

MoeStatus moe_cuda_copy_plan_lower(MoeCudaTarget *t, const MoeGroup *g, MoeLowered *out) {
    const MoeOp *op = g->ops[0];
    const MoeType *ids = &op->operands[0]->type, *all = &op->operands[1]->type;
    Sizes s = sizes_of(op);
    s.leaf_rows = moe_graph_leaf_rows(g->graph);
    Work w = work_of(&s);
    MoeBufs bufs = {.n = 0};
    MoeStr begin = {0}, text = {0};
    name_buffer(&begin, "ids", moe_bufs_add(&bufs, op->operands[1]));
    name_buffer(&begin, "tok_all", moe_bufs_add_seg(&bufs, all));
    name_buffer(&begin, "tok_own", moe_bufs_add_seg(&bufs, ids));
    name_buffer(&begin, "copies", moe_bufs_add(&bufs, op->operands[2]));
    name_buffer(&begin, "own", moe_bufs_add(&bufs, op->results[0]));
    name_buffer(&begin, "to", moe_bufs_add(&bufs, op->results[1]));
    name_buffer(&begin, "counts", moe_bufs_add(&bufs, op->results[2]));
    name_buffer(&begin, "runs", moe_bufs_add(&bufs, op->results[3]));
    name_buffer(&begin, "cells", moe_bufs_add_work(&bufs, w.cells));
    name_buffer(&begin, "first", moe_bufs_add_work(&bufs, w.first));
    name_buffer(&begin, "slot", moe_bufs_add_work(&bufs, w.slot));
    name_buffer(&begin, "division", moe_bufs_add_work(&bufs, w.division));
    name_buffer(&begin, "order", moe_bufs_add_work(&bufs, w.lists));
    moe_str_printf(&begin,
                   "const i64 n = (i64)tok_all[%lld] * %lld;\n"
                   "i32 *row = order + sort_round(n), *work = row + sort_round(n);\n",
                   (long long)s.shards, (long long)s.k);
    MoeCudaSteps steps = {t,
                          out,
                          &bufs,
                          "copy_plan",
                          1u << MOE_CUDA_PART_route | 1u << MOE_CUDA_PART_split,
                          moe_str_c(&begin),
                          0,
                          0};
    moe_cuda_sort(&steps, &(MoeCudaSort){s.experts, s.choices, "n", "IdKeys{ids}",
                                         "CopySink{order, row}", "work"});
    moe_str_printf(&text, "RouteBefore{ids, order, tok_all, %lld, %lld}", (long long)s.shards,
                   (long long)s.k);
    moe_cuda_sort_table(&steps, "_table", s.experts * s.shards, moe_str_c(&text), "work[0]",
                        "cells");
    divide(&steps, &s);
    moe_str_clear(&text);
    moe_str_printf(
        &text,
        "copy_counts(cells, %lld, counts);\n"
        "copy_slots(CopySlots{ids, row, cells, runs, first, slot, %lld}, n, to, tok_all, "
        "tok_own, %lld, own);\n",
        (long long)(s.experts * s.shards), (long long)s.shards, (long long)s.k);
    moe_cuda_step(&steps, "_slots", THREADS,
                  moe_cuda_blocks(t, (s.choices + THREADS - 1) / THREADS, 8), moe_str_c(&text));
    moe_str_free(&text);
    moe_str_free(&begin);
    return NULL;
}

MoeStatus moe_cuda_root_plan_lower(MoeCudaTarget *t, const MoeGroup *g, MoeLowered *out) {
    const MoeOp *op = g->ops[0];
    const MoeType *seg = &op->operands[0]->type;
    MoeBufs bufs = {.n = 0};
    MoeStr begin = {0}, body = {0};
    MOE_ASSERT(seg->groups <= 400, "root_plan: %lld slots on a rank, at most 400 are done",
               (long long)seg->groups);
    name_buffer(&begin, "counts", moe_bufs_add(&bufs, op->operands[1]));
    name_buffer(&begin, "runs", moe_bufs_add(&bufs, op->operands[2]));
    name_buffer(&begin, "copies", moe_bufs_add(&bufs, op->operands[3]));
    name_buffer(&begin, "rank", moe_bufs_add(&bufs, op->operands[4]));
    name_buffer(&begin, "roots", moe_bufs_add(&bufs, op->results[0]));
    name_buffer(&begin, "more", moe_bufs_add(&bufs, op->results[1]));
    MoeCudaSteps steps = {t,
                          out,
                          &bufs,
                          "root_plan",
                          1u << MOE_CUDA_PART_route | 1u << MOE_CUDA_PART_split,
                          moe_str_c(&begin),
                          0,
                          0};
    moe_str_printf(
        &body, "root_plan<%d, %lld, %lld, %d, %d>(counts, runs, copies, rank[0], roots, more);\n",
        THREADS, (long long)seg->groups, (long long)seg->shards,
        moe_graph_leaf_rows(g->graph), MOE_COPY_ROOTS);
    moe_cuda_step(&steps, "", THREADS, 1, moe_str_c(&body));
    moe_str_free(&body);
    moe_str_free(&begin);
    return NULL;
}
