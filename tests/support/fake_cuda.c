/* See fake_cuda.h. The kernels are those of fake_plan.c, by one thread each. */
#include "tests/support/fake_cuda.h"

#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/assert.h"
#include "codegen/cuda/cuda.h"

/* What the kernels' bodies begin with: V and names for what all of them need. */
static const char *const before =
    "using namespace moe; const int V = %d, CLASSES = 8; (void)CLASSES;\n"
    "if (blockIdx.x || threadIdx.x) return;\n"
    /* The tree over shards; one without rows is absent. */
    "auto tree = [&](const i32 *tok, auto term) {\n"
    "    float s[64]; bool there[64];\n"
    "    for (int v = 0; v < V; v++) {\n"
    "        s[v] = 0; there[v] = tok[v + 1] > tok[v];\n"
    "        for (int t = tok[v]; t < tok[v + 1]; t++) s[v] += term(t);\n"
    "    }\n"
    "    for (int w = 1; w < V; w *= 2)\n"
    "        for (int v = 0; v < V; v += 2 * w) {\n"
    "            s[v] = there[v] && there[v + w] ? s[v] + s[v + w] : there[v] ? s[v] : there[v + w] ? s[v + w] : 0.0f;\n"
    "            there[v] = there[v] || there[v + w];\n"
    "        }\n"
    "    return s[0];\n"
    "};\n"
    "auto error = [&](const i32 *ids, const i32 *labels, const float *w, int t) {\n"
    "    return labels[t] == -100 ? 0.0f : w[ids[t] %% 8] - (float)labels[t] / 64.0f;\n"
    "};\n"
    "auto weight = [&](const i32 *counts) {\n"
    "    float s = 1;\n"
    "    for (int k = 0; k < 8; k++)\n"
    "        s += (float)counts[k] * (float)counts[k] / ((float)counts[8] * (float)counts[8] + 1.0f);\n"
    "    return s;\n"
    "};\n"
    "(void)tree; (void)error; (void)weight;\n";

#define I(k) "((const i32 *)a.p[" #k "])"
#define F(k) "((float *)a.p[" #k "])"
#define N(k) "((i32 *)a.p[" #k "])"

static const struct {
    const char *name;
    int n_bufs;
    const char *body;
} kernels[] = {
    {"k_count", 4,
     "for (int k = 0; k < 9; k++) " N(3) "[k] = 0;\n"
     "for (int t = 0; t < " I(0) "[V]; t++) { " N(3) "[" I(1) "[t] % 8]++; " N(3) "[8] += " I(2) "[t] != -100; }\n"},
    {"k_segs", 3,
     "int n = 0; " N(2) "[0] = 0;\n"
     "for (int e = 0; e < 4; e++)\n"
     "    for (int v = 0; v < V; v++) {\n"
     "        for (int t = " I(0) "[v]; t < " I(0) "[v + 1]; t++) n += " I(1) "[t] % 4 == e;\n"
     "        " N(2) "[e * V + v + 1] = n;\n"
     "    }\n"},
    {"k_loss", 6,
     "float s = tree(" I(0) ", [&](int t) { float e = error(" I(1) ", " I(2) ", " F(3) ", t); return e * e; });\n"
     F(5) "[0] = s * (weight(" I(4) ") > 1.0f ? 1.0f : 0.0f);\n"},
    {"k_grad", 5,
     "for (int c = 0; c < 8; c++)\n"
     "    " F(4) "[c] = tree(" I(0) ", [&](int t) {\n"
     "        return " I(1) "[t] % 8 == c ? 2.0f * error(" I(1) ", " I(2) ", " F(3) ", t) : 0.0f; });\n"},
    {"k_reduce", 8,
     N(7) "[0] = " I(1) "[8];\n"
     F(4) "[0] = " F(0) "[0] / (float)" I(1) "[8];\n"
     F(5) "[0] = weight(" I(1) ");\n"
     F(3) "[0] = " F(4) "[0] + 0.01f * " F(5) "[0];\n"
     "float n = 0;\n"
     "for (int k = 0; k < 8; k++) n += " F(2) "[k] * " F(2) "[k];\n"
     F(6) "[0] = sqrtf(n);\n"},
    {"k_update", 16,
     "float *w = " F(0) ", *m = " F(1) ", *v = " F(2) ", *u = " F(3) ", *um = " F(4) ", *uv = " F(5) ";\n"
     "float lr = " F(8) "[0], b1 = " F(9) "[0], b2 = " F(10) "[0], eps = " F(11) "[0], bias1 = " F(12) "[0], "
     "bias2 = " F(13) "[0], norm = " F(14) "[0];\n"
     "float clip = " F(15) "[0] / (norm + 1e-6f);\n"
     "for (int k = 0; k < 8; k++) {\n"
     "    float g = " F(6) "[k] / (float)" I(7) "[8] * (clip < 1 ? clip : 1.0f);\n"
     "    m[k] = b1 * m[k] + (1 - b1) * g;\n"
     "    v[k] = b2 * v[k] + (1 - b2) * g * g;\n"
     "    w[k] -= lr / bias1 * m[k] / (sqrtf(v[k]) / sqrtf(bias2) + eps);\n"
     "    for (int i = k; i < 24; i += 8) {\n"
     "        um[i] = b1 * um[i] + (1 - b1) * g;\n"
     "        uv[i] = b2 * uv[i] + (1 - b2) * g * g;\n"
     "        u[i] -= lr * um[i] / (sqrtf(uv[i]) + eps);\n"
     "    }\n"
     "}\n"},
    {"k_eval", 6,
     F(4) "[0] = tree(" I(0) ", [&](int t) { float e = error(" I(1) ", " I(2) ", " F(3) ", t); return e * e; });\n"
     N(5) "[0] = 0;\n"
     "for (int t = 0; t < " I(0) "[V]; t++) " N(5) "[0] += " I(2) "[t] != -100;\n"},
    {"k_logits", 4,
     "for (int t = 0; t < " I(0) "[V]; t++)\n"
     "    for (int c = 0; c < 256; c++)\n"
     "        " F(3) "[t * 256 + c] = c == (" I(1) "[t] + 1) % 256 ? 9.0f : -(float)c / 1000.0f;\n"},
    {"k_rows", 2, N(1) "[0] = 0; " N(1) "[1] = " I(0) "[V];\n"},
    {"k_fill", 2, "for (int i = 0; i < " I(0) "[1]; i++) " F(1) "[(i64)i * 16384] = (float)i * 0.37f;\n"},
    {"k_use", 3,
     F(2) "[0] = 0;\n"
     "for (int i = 0; i < " I(0) "[1]; i++) " F(2) "[0] += " F(1) "[(i64)i * 16384];\n"},
};

MoeStatus fake_cuda_code(const char *arch, int virtual_shards, void **out, size_t *out_n) {
    MoeTarget *base = NULL;
    char *text = NULL;
    MOE_ASSERT(virtual_shards <= 64, "%d shards", virtual_shards);
    MOE_TRY(moe_cuda_target_create(arch, &base));
    MoeCudaTarget *t = (MoeCudaTarget *)base;
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++) {
        char *frame = moe_arena_printf(t->arena, before, virtual_shards);
        moe_cuda_kernel(t, &(MoeCudaKernelText){
                               .prefix = kernels[i].name,
                               .exact = true,
                               .n_bufs = kernels[i].n_bufs,
                               .threads = 64,
                               .body = moe_arena_printf(t->arena, "%s%s", frame, kernels[i].body)});
    }
    MoeStatus st = base->finish(base, false, out, out_n, &text);
    free(text);
    base->destroy(base);
    return st;
}

MoePlan *fake_cuda_plan(const FakePlanOptions *o) {
    MoeStr text = {0};
    MoePlan *p = NULL;
    void *code = NULL;
    size_t n = 0;
    fake_plan_json(o, &text);
    MoeStatus st = fake_cuda_code(o->target + strlen("cuda:"), o->virtual_shards, &code, &n);
    if (!st)
        st = moe_plan_load_memory(moe_str_c(&text), text.len, "fake", code, n, &p);
    MOE_ASSERT(!st, "fake plan for %s: %s", o->target, moe_status_message(st));
    moe_str_free(&text);
    free(code);
    return p;
}
