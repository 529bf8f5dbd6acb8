/* send_plan and expert_plan (docs/RANKS.md) by stable sorts (device/sort.cuh, route.cuh). Experts are found through `place`, expert ->
 * global slot, or the choices are global slots themselves: global slot g is slot g % slots of rank g / slots, in chunk
 * (g % slots) / ceil(slots / chunks).
 *
 *   send_plan    of a token's choices on one rank the first stands for all: sorted by (rank, first chunk wanted there)
 *   expert_plan  two sorts: tokens with an expert here by (first chunk, token) make the received rows, their choices here by (slot,
 *                token) the expert rows, which are then named by received row */
#include "codegen/cuda/kind_expert_plan.h"

#include "base/assert.h"
#include "codegen/cuda/sort.h"

typedef struct {
    const MoeOp *op;
    const MoeType *ids;
    int64_t k, slots, chunks, shards;
    MoeBufs bufs;
    int place, tok; /* buffers; place -1: ids are global slots; tok -1: static rows, one shard */
    MoeStr begin;
} Plan;

static int64_t tokens_of(const MoeOp *op) {
    return op->operands[0]->type.dims[0].size;
}
static int64_t choices_of(const MoeOp *op) {
    return tokens_of(op) * op->operands[0]->type.dims[1].size;
}

static void plan_begin(Plan *p, const MoeOp *op, bool place) {
    *p = (Plan){.op = op,
                .ids = &op->operands[0]->type,
                .slots = moe_attr_i(op, "slots"),
                .chunks = moe_attr_i(op, "chunks"),
                .place = -1};
    const MoeValue *tok = moe_rows_seg(p->ids);
    p->k = p->ids->dims[1].size;
    p->shards = tok ? tok->type.groups * tok->type.shards : 1;
    MOE_ASSERT(p->chunks >= 1 && p->chunks <= p->slots, "%s: %lld slots in %lld chunks",
               moe_op_info(op->opcode)->name, (long long)p->slots, (long long)p->chunks);
    int ids = moe_bufs_add(&p->bufs, op->operands[0]);
    if (place)
        p->place = moe_bufs_add(&p->bufs, op->operands[1]);
    p->tok = moe_bufs_add_seg(&p->bufs, p->ids);
    moe_cuda_live_rows(&p->begin, "n", p->ids, p->tok);
    moe_str_printf(&p->begin, "const Places places{buf<i32>(a, %d), ", ids);
    if (place)
        moe_str_printf(&p->begin, "buf<i32>(a, %d)", p->place);
    else
        moe_str_append(&p->begin, "nullptr");
    moe_str_printf(&p->begin, ", %lld, %lld, %lld};\n", (long long)p->k, (long long)p->slots,
                   (long long)((p->slots + p->chunks - 1) / p->chunks));
}

/* "i32 *NAME = buffer;" or NULL. */
static void name_buffer(Plan *p, const char *name, int buf) {
    if (buf < 0)
        moe_str_printf(&p->begin, "i32 *%s = nullptr;\n", name);
    else
        moe_str_printf(&p->begin, "i32 *%s = buf<i32>(a, %d);\n", name, buf);
}

static MoeCudaSteps steps_of(MoeCudaTarget *t, MoeLowered *out, const Plan *p, const char *prefix) {
    return (MoeCudaSteps){t, out, &p->bufs, prefix, 1u << MOE_CUDA_PART_route, moe_str_c(&p->begin),
                          0, 0};
}

/* ---- send_plan ---- */

static int64_t send_keys(const MoeOp *op) {
    return moe_attr_i(op, "ranks") * moe_attr_i(op, "chunks");
}

int64_t moe_cuda_send_plan_workspace(const MoeOp *op) {
    return moe_cuda_list_bytes(choices_of(op)) + moe_cuda_sort_bytes(send_keys(op), choices_of(op));
}

MoeStatus moe_cuda_send_plan_lower(MoeCudaTarget *t, const MoeGroup *g, MoeLowered *out) {
    Plan p;
    plan_begin(&p, g->ops[0], g->ops[0]->n_operands == 2);
    int send = moe_bufs_add_output(&p.bufs, g, 0), idx = moe_bufs_add_output(&p.bufs, g, 1);
    name_buffer(&p, "send", send);
    name_buffer(&p, "idx", idx);
    name_buffer(&p, "cells", moe_bufs_add_work(&p.bufs, 0));
    moe_str_printf(&p.begin,
                   "[[maybe_unused]] const i64 choices = n * %lld;\n"
                   "i32 *work = cells + sort_round(choices);\n",
                   (long long)p.k);
    moe_str_printf(&p.begin,
                   "[[maybe_unused]] const SendKeys keys{places, %lld};\n"
                   "[[maybe_unused]] const SendSink sink{idx, cells, %lld};\n",
                   (long long)p.chunks, (long long)p.k);
    MoeCudaSteps steps = steps_of(t, out, &p, "send_plan");
    moe_cuda_sort(&steps, &(MoeCudaSort){send_keys(p.op), choices_of(p.op), "choices", "keys",
                                         "sink", "work"});
    if (send >= 0)
        moe_cuda_sort_table(&steps, "_table", send_keys(p.op), "SendBefore{cells}", "work[0]",
                            "send");
    moe_str_free(&p.begin);
    return NULL;
}

/* ---- expert_plan ---- */

int64_t moe_cuda_expert_plan_workspace(const MoeOp *op) {
    int64_t tokens = tokens_of(op), choices = choices_of(op),
            by_chunk = moe_cuda_sort_bytes(moe_attr_i(op, "chunks"), tokens),
            by_slot = moe_cuda_sort_bytes(moe_attr_i(op, "slots"), choices);
    return 2 * moe_cuda_list_bytes(tokens) + moe_cuda_list_bytes(choices) +
           (by_chunk > by_slot ? by_chunk : by_slot);
}

MoeStatus moe_cuda_expert_plan_lower(MoeCudaTarget *t, const MoeGroup *g, MoeLowered *out) {
    Plan p;
    const MoeOp *op = g->ops[0];
    plan_begin(&p, op, op->n_operands == 3);
    int rank = moe_bufs_add(&p.bufs, op->operands[op->n_operands - 1]),
        recv = moe_bufs_add_output(&p.bufs, g, 0), seg = moe_bufs_add_output(&p.bufs, g, 1),
        src = moe_bufs_add_output(&p.bufs, g, 2), inv = moe_bufs_add_output(&p.bufs, g, 3);
    name_buffer(&p, "tok", p.tok);
    name_buffer(&p, "recv", recv);
    name_buffer(&p, "seg", seg);
    name_buffer(&p, "src", src);
    name_buffer(&p, "inv", inv);
    moe_str_printf(&p.begin,
                   "[[maybe_unused]] const i64 choices = n * %lld;\n"
                   "const HerePlaces here(places, buf<i32>(a, %d));\n"
                   "const ExpertWork work(buf<i32>(a, %d), n, %lld);\n",
                   (long long)p.k, rank, moe_bufs_add_work(&p.bufs, 0), (long long)p.k);
    MoeCudaSteps steps = steps_of(t, out, &p, "receive");
    MoeStr before = {0};
    moe_cuda_sort(&steps, &(MoeCudaSort){p.chunks, tokens_of(op), "n", "TokenKeys{here}",
                                         "TokenSink{work.tokens, work.received}", "work.sort"});
    if (recv >= 0) {
        moe_str_printf(&before, "TokenBefore{TokenKeys{here}, work.tokens, tok, %lld}",
                       (long long)p.shards);
        moe_cuda_sort_table(&steps, "_table", p.chunks * p.shards, moe_str_c(&before),
                            "work.sort[0]", "recv");
    }
    steps.prefix = "expert_plan";
    moe_str_clear(&before);
    moe_str_printf(&before, "ChoiceSink{work.received, src, inv, work.choices, %lld}",
                   (long long)p.k);
    moe_cuda_sort(&steps, &(MoeCudaSort){p.slots, choices_of(op), "choices", "ChoiceKeys{here}",
                                         moe_str_c(&before), "work.sort"});
    if (seg >= 0) {
        moe_str_clear(&before);
        moe_str_printf(&before, "ChoiceBefore{here, work.choices, tok, %lld}", (long long)p.shards);
        moe_cuda_sort_table(&steps, "_table", p.slots * p.shards, moe_str_c(&before),
                            "work.sort[0]", "seg");
    }
    moe_str_free(&before);
    moe_str_free(&p.begin);
    return NULL;
}
