/* Data of inputs: finding it, handing it to an interpreter, and its bytes as kernels see them. */
#include "tests/support/random_graph.h"

#include <string.h>
#include "base/half.h"

MoeTensor *moe_inputs_of(const MoeInputs *in, const MoeValue *v) {
    for (size_t i = 0; i < in->n; i++)
        if (in->items[i].value == v)
            return &in->items[i].t;
    return NULL;
}

MoeTensor *moe_inputs_find(const MoeInputs *in, const char *name) {
    for (size_t i = 0; i < in->n; i++) {
        const MoeOp *op = in->items[i].value->def;
        if (op->opcode != MOE_OP_STATE && !strcmp(moe_attr_s(op, "name"), name))
            return &in->items[i].t;
    }
    return NULL;
}

MoeStatus moe_inputs_give(const MoeInputs *in, MoeEval *ev) {
    for (size_t i = 0; i < in->n; i++) {
        const MoeInputData *d = &in->items[i];
        if (d->t.f)
            MOE_TRY(moe_eval_set_f(ev, d->value, d->t.f, d->t.n));
        else
            MOE_TRY(moe_eval_set_i(ev, d->value, d->t.i, d->t.n));
    }
    return NULL;
}

size_t moe_tensor_bytes(const MoeTensor *t) {
    return (size_t)t->n * (size_t)moe_dtype_bytes(t->dtype);
}

void moe_tensor_pack(const MoeTensor *t, void *dst) {
    for (int64_t k = 0; k < t->n; k++) {
        if (t->dtype == MOE_I32)
            ((int32_t *)dst)[k] = t->i[k];
        else if (t->dtype == MOE_F32)
            ((float *)dst)[k] = (float)t->f[k];
        else
            ((uint16_t *)dst)[k] = moe_f32_to_bf16((float)moe_eval_round_bf16(t->f[k]));
    }
}

void moe_tensor_unpack(const void *src, MoeTensor *t) {
    for (int64_t k = 0; k < t->n; k++) {
        if (t->dtype == MOE_I32)
            t->i[k] = ((const int32_t *)src)[k];
        else if (t->dtype == MOE_F32)
            t->f[k] = ((const float *)src)[k];
        else
            t->f[k] = moe_bf16_to_f32(((const uint16_t *)src)[k]);
    }
}
