/* See bufs.h. */
#include "codegen/bufs.h"

#include "base/assert.h"

MoeBufRef moe_ref(const MoeValue *v) {
    return (MoeBufRef){.value = v, .offset = 0};
}

MoeBufRef moe_ref_work(int64_t offset) {
    return (MoeBufRef){.value = NULL, .offset = offset};
}

const MoeValue *moe_rows_seg(const MoeType *t) {
    return t->kind == MOE_TYPE_TENSOR ? t->dims[0].seg : NULL;
}

static int add(MoeBufs *b, MoeBufRef r) {
    MOE_ASSERT(b->n < 16, "codegen: a kernel of more than 16 buffers");
    b->refs[b->n] = r;
    return b->n++;
}

int moe_bufs_add(MoeBufs *b, const MoeValue *v) {
    for (int i = 0; i < b->n; i++)
        if (b->refs[i].value == v)
            return i;
    return add(b, moe_ref(v));
}

int moe_bufs_add_seg(MoeBufs *b, const MoeType *t) {
    const MoeValue *seg = moe_rows_seg(t);
    return seg ? moe_bufs_add(b, seg) : -1;
}

int moe_bufs_add_work(MoeBufs *b, int64_t offset) {
    return add(b, moe_ref_work(offset));
}

int moe_bufs_add_output(MoeBufs *b, const MoeGroup *g, int i) {
    const MoeValue *v = g->ops[0]->results[i];
    for (size_t k = 0; k < g->n_outputs; k++)
        if (g->outputs[k] == v)
            return moe_bufs_add(b, v);
    return -1;
}
