/* copy_plan and root_plan (docs/PLACEMENT.md): one task each, which calls the function of base/split_rows.h. The division of rows among
 * copies is far from a kernel of loops over rows, and it must be the one that everybody else works out. */
#include "codegen/cpu/kind_copy_plan.h"

#include "base/assert.h"
#include "base/split_rows.h"
#include "codegen/cpu/live.h"

enum { MAX_ARGS = 16 };

/* Arguments of the call, in order. */
typedef struct {
    MoeEmit *e;
    MoeVal values[MAX_ARGS];
    LLVMTypeRef types[MAX_ARGS];
    unsigned n;
} Call;

static void add(Call *c, MoeVal v, LLVMTypeRef type) {
    MOE_ASSERT(c->n < MAX_ARGS, "kernel %s: too many arguments", c->e->name);
    c->values[c->n] = v;
    c->types[c->n++] = type;
}

static void add_number(Call *c, int64_t n) {
    add(c, moe_k64(c->e, n), c->e->i64);
}

static void add_bufs(Call *c, const int *bufs, int n) {
    for (int i = 0; i < n; i++)
        add(c, moe_emit_buf(c->e, bufs[i]), c->e->ptr);
}

/* A function of this process: void, by its C name. */
static void emit_call(Call *c, const char *name) {
    MoeEmit *e = c->e;
    LLVMTypeRef type = LLVMFunctionType(LLVMVoidTypeInContext(e->c), c->types, c->n, false);
    LLVMValueRef fn = LLVMGetNamedFunction(e->m, name);
    if (!fn)
        fn = LLVMAddFunction(e->m, name, type);
    LLVMBuildCall2(e->b, type, fn, c->values, c->n, "");
}

static bool begin(MoeCpuTarget *t, const MoeStr *key, const char *what, MoeEmit *e,
                  const char **name) {
    if (!moe_emit_begin(t, moe_str_c(key), what, e, name))
        return false;
    moe_emit_tasks_body(e);
    moe_emit_return(e, moe_k64(e, 1));
    moe_emit_kernel_body(e);
    return true;
}

/* ids' are the rows of all' that are of this rank's tokens: its virtual shards are among the group's. */
static void emit_own_rows(MoeEmit *e, int64_t shards, int64_t k, const int *own, const int *all) {
    MoeVal zero = moe_k64(e, 0), one = moe_k64(e, 1);
    MoeLoop by_shard, by_id;
    moe_loop_begin(e, &by_shard, zero, moe_k64(e, shards), one);
    MoeVal v = by_shard.index, next = moe_iadd(e, v, one), cols = moe_k64(e, k);
    MoeVal lo = moe_imul(e, moe_load_index(e, moe_emit_buf(e, own[1]), v), cols);
    MoeVal hi = moe_imul(e, moe_load_index(e, moe_emit_buf(e, own[1]), next), cols);
    MoeVal from = moe_imul(e, moe_load_index(e, moe_emit_buf(e, all[1]), v), cols);
    moe_loop_begin(e, &by_id, lo, hi, one);
    MoeVal at = moe_iadd(e, from, moe_isub(e, by_id.index, lo));
    moe_store_i32(e, moe_load_index(e, moe_emit_buf(e, all[0]), at), moe_emit_buf(e, own[0]),
                  by_id.index);
    moe_loop_end(e, &by_id);
    moe_loop_end(e, &by_shard);
}

MoeStatus moe_cpu_copy_plan_lower(MoeCpuTarget *t, const MoeGroup *g, MoeLowered *out) {
    const MoeOp *op = g->ops[0];
    const MoeType *ids = &op->operands[0]->type, *all = &op->operands[1]->type;
    int64_t experts = moe_attr_i(op, "experts"), ranks = moe_attr_i(op, "ranks"),
            slots = moe_attr_i(op, "slots"), shards = moe_rows_seg(all)->type.shards,
            k = moe_type_cols(ids);
    MoeBufs bufs = {.n = 0};
    int in[3] = {moe_bufs_add(&bufs, op->operands[1]), moe_bufs_add_seg(&bufs, all),
                 moe_bufs_add(&bufs, op->operands[2])};
    int to[4] = {moe_bufs_add(&bufs, op->results[1]), moe_bufs_add(&bufs, op->results[2]),
                 moe_bufs_add(&bufs, op->results[3]), moe_bufs_add(&bufs, op->results[0])};
    int tok = moe_bufs_add_seg(&bufs, ids);
    MoeStr key = {0};
    MoeEmit e;
    const char *name;
    moe_str_printf(&key, "copy_plan leaf=%d %lld %lldx%lld %lld %lld %d,%d",
                   moe_graph_leaf_rows(g->graph), (long long)experts,
                   (long long)ranks, (long long)slots, (long long)shards, (long long)k, in[1], tok);
    if (begin(t, &key, "copy_plan", &e, &name)) {
        Call c = {.e = &e};
        add_bufs(&c, in, 3);
        add_bufs(&c, to, 3);
        const int64_t sizes[] = {experts, ranks, slots, shards, k, moe_graph_leaf_rows(g->graph)};
        for (int i = 0; i < 6; i++)
            add_number(&c, sizes[i]);
        add(&c, e.scratch, e.ptr);
        emit_call(&c, "moe_split_copy_plan");
        emit_own_rows(&e, shards, k, (int[]){to[3], tok}, (int[]){to[0], in[1]});
        moe_emit_end(&e);
    }
    moe_str_free(&key);
    moe_cpu_need_scratch(out, moe_split_plan_scratch(experts, ranks, slots, shards));
    moe_cpu_launch(out, name, bufs.refs, (size_t)bufs.n);
    return NULL;
}

MoeStatus moe_cpu_root_plan_lower(MoeCpuTarget *t, const MoeGroup *g, MoeLowered *out) {
    const MoeOp *op = g->ops[0];
    const MoeType *seg = &op->operands[0]->type;
    MoeBufs bufs = {.n = 0};
    int in[3], to[2], rank = 0;
    for (int i = 0; i < 3; i++)
        in[i] = moe_bufs_add(&bufs, op->operands[i + 1]);
    rank = moe_bufs_add(&bufs, op->operands[4]);
    for (int i = 0; i < 2; i++)
        to[i] = moe_bufs_add(&bufs, op->results[i]);
    MoeStr key = {0};
    MoeEmit e;
    const char *name;
    moe_str_printf(&key, "root_plan leaf=%d %lldx%lld", moe_graph_leaf_rows(g->graph),
                   (long long)seg->groups, (long long)seg->shards);
    if (begin(t, &key, "root_plan", &e, &name)) {
        Call c = {.e = &e};
        add_bufs(&c, in, 3);
        add(&c, moe_load_index(&e, moe_emit_buf(&e, rank), moe_k64(&e, 0)), e.i64);
        add_bufs(&c, to, 2);
        const int64_t sizes[] = {seg->groups, seg->shards, moe_graph_leaf_rows(g->graph)};
        for (int i = 0; i < 3; i++)
            add_number(&c, sizes[i]);
        emit_call(&c, "moe_split_root_plan");
        moe_emit_end(&e);
    }
    moe_str_free(&key);
    moe_cpu_launch(out, name, bufs.refs, (size_t)bufs.n);
    return NULL;
}
