/* live.h */
#include "codegen/cpu/live.h"

MoeVal moe_live_rows(MoeEmit *e, const MoeType *t, int seg_buf) {
    const MoeValue *seg = moe_rows_seg(t);
    if (!seg)
        return moe_k64(e, t->dims[0].size);
    return moe_load_index(e, moe_emit_buf(e, seg_buf),
                          moe_k64(e, seg->type.groups * seg->type.shards));
}

MoeVal moe_segs_first(MoeEmit *e, const MoeType *segs, int seg_buf) {
    if (segs->groups == 1)
        return moe_k64(e, 0);
    return moe_load_index(e, moe_emit_buf(e, seg_buf), moe_k64(e, 0));
}

MoeVal moe_live_first(MoeEmit *e, const MoeType *t, int seg_buf) {
    const MoeValue *seg = moe_rows_seg(t);
    return seg ? moe_segs_first(e, &seg->type, seg_buf) : moe_k64(e, 0);
}

void moe_live_tasks(MoeEmit *e, MoeVal live, int64_t per_task) {
    moe_emit_return(e, moe_iceildiv(e, live, per_task));
}

void moe_live_loop(MoeEmit *e, MoeLoop *l, MoeVal live, int64_t per_task) {
    MoeVal lo = moe_imul(e, e->task, moe_k64(e, per_task));
    moe_loop_begin(e, l, lo, moe_imin(e, live, moe_iadd(e, lo, moe_k64(e, per_task))),
                   moe_k64(e, 1));
}

int64_t moe_live_block(int64_t cols) {
    int64_t n = 16384 / (cols > 0 ? cols : 1);
    return n < 1 ? 1 : n;
}

void moe_live_key(MoeStr *key, const MoeType *t) {
    moe_str_printf(key, " %s", moe_dtype_name(t->dtype));
    for (int d = 0; d < t->rank; d++) {
        const MoeValue *seg = t->dims[d].seg;
        if (seg)
            moe_str_printf(key, ",r%lldx%lld", (long long)seg->type.groups,
                           (long long)seg->type.shards);
        else
            moe_str_printf(key, ",%lld", (long long)t->dims[d].size);
    }
    if (t->kind == MOE_TYPE_SEGS)
        moe_str_printf(key, " segs%lldx%lld", (long long)t->groups, (long long)t->shards);
}
