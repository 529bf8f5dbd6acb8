/* The CUDA target: MoeTarget over the table of kinds (codegen/kinds.h).
 *
 * In: groups of ops. Out: launches of kernels with their shapes, then the container of their code and their text. A group's kind
 * is that of its anchor. Kernels are shared by text (module.c). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/assert.h"
#include "codegen/cuda/gemm.h"
#include "codegen/cuda/module.h"

typedef struct {
    int64_t (*workspace)(MoeCudaTarget *t, const MoeGroup *g);
    MoeStatus (*lower)(MoeCudaTarget *t, const MoeGroup *g, MoeLowered *out);
} KindRow;

static const KindRow rows[MOE_N_GROUP_KINDS] = {
#define X(name) [MOE_GROUP_##name] = {moe_cuda_##name##_workspace, moe_cuda_##name##_lower},
    MOE_GROUP_KINDS(X)
#undef X
};

/* ---- groups ---- */

static bool target_can_alias(const MoeTarget *t, const MoeGroup *group, const MoeValue *input,
                             const MoeValue *output) {
    MoeRowRules rules = moe_cuda_row_rules((const MoeCudaTarget *)t);
    return moe_group_can_alias(&rules, group, input, output);
}

static int64_t target_workspace(MoeTarget *t, const MoeGroup *group) {
    MoeGroupKind kind = moe_group_kind(group->ops, group->n_ops);
    return kind == MOE_N_GROUP_KINDS ? 0 : rows[kind].workspace((MoeCudaTarget *)t, group);
}

static int64_t target_workspace_expected(MoeTarget *t, const MoeGroup *group) {
    MoeRowRules rules = moe_cuda_row_rules((const MoeCudaTarget *)t);
    if (moe_group_works_by_rows(group))
        return moe_row_workspace_expected(&rules, group);
    if (moe_group_kind(group->ops, group->n_ops) == MOE_GROUP_gemm)
        return moe_cuda_gemm_workspace_expected(group);
    return target_workspace(t, group);
}

static MoeStatus target_lower(MoeTarget *t, const MoeGroup *group, MoeLowered *out) {
    MoeGroupKind kind = moe_group_kind(group->ops, group->n_ops);
    return kind == MOE_N_GROUP_KINDS ? NULL : rows[kind].lower((MoeCudaTarget *)t, group, out);
}

/* ---- code ---- */

static MoeStatus target_finish(MoeTarget *base, bool want_text, void **out_object, size_t *out_n,
                               char **out_text) {
    MoeCudaTarget *t = (MoeCudaTarget *)base;
    MoeStr text = {0};
    (void)want_text; /* people read it in any case */
    *out_text = NULL;
    moe_cuda_add_runtime(t);
    MOE_TRY(moe_cuda_module_compile(t, out_object, out_n));
    moe_cuda_module_text(t, &text);
    *out_text = strdup(moe_str_c(&text));
    moe_str_free(&text);
    if (*out_text)
        return NULL;
    free(*out_object);
    *out_object = NULL;
    return moe_error(MOE_E_NOMEM, "no memory for the kernels' text");
}

static void target_destroy(MoeTarget *base) {
    MoeCudaTarget *t = (MoeCudaTarget *)base;
    moe_arena_destroy(t->arena);
    free(t);
}

/* ---- creation ---- */

MoeStatus moe_cuda_target_create(const char *arch, MoeTarget **out) {
    const MoeCudaArch *a;
    *out = NULL;
    MOE_TRY(moe_cuda_arch_get(arch, &a));
    MoeCudaTarget *t = calloc(1, sizeof *t);
    if (!t)
        return moe_error(MOE_E_NOMEM, "no memory for the target");
    t->arch = a;
    t->arena = moe_arena_create();
    snprintf(t->base.name, sizeof t->base.name, "cuda:%.58s", a->name);
    t->base.object_file = "kernels.cubin";
    t->base.text_file = "kernels.cu";
    t->base.fuse = (MoeFuseRules){
        .row = true, .gather_matmul = true, .matmul_epilogue = true, .matmul_row_sums = true};
    t->base.rounds_weights = true;
    t->base.leaf_rows = MOE_CUDA_LEAF_ROWS;
    t->base.implements = moe_implements_primitives;
    t->base.can_join = moe_group_can_join;
    t->base.workspace_bytes = target_workspace;
    t->base.workspace_expected = target_workspace_expected;
    t->base.can_alias = target_can_alias;
    t->base.lower = target_lower;
    t->base.finish = target_finish;
    t->base.destroy = target_destroy;
    t->base.peak_flops_f32 = a->flops_f32;
    t->base.peak_flops_bf16 = a->flops_bf16;
    t->base.memory_bandwidth = a->bandwidth;
    *out = &t->base;
    return NULL;
}

/* ---- launches ---- */

void moe_cuda_launch_maps(MoeCudaTarget *t, MoeLowered *out, const char *kernel, int64_t blocks,
                          const MoeBufRef *refs, size_t n, const MoeTensorMap *maps,
                          size_t n_maps) {
    const MoeCudaKernel *k = moe_cuda_find_kernel(t, kernel);
    MOE_ASSERT(k, "launch: no kernel %s", kernel);
    MOE_ASSERT(n == (size_t)k->text.n_bufs && n_maps == (size_t)k->text.n_maps,
               "launch of %s: %zu buffers and %zu maps, it has %d and %d", kernel, n, n_maps,
               k->text.n_bufs, k->text.n_maps);
    for (size_t i = 0; i < n_maps; i++)
        MOE_ASSERT(
            maps[i].buf >= 0 && (size_t)maps[i].buf < n && maps[i].rank >= 1 && maps[i].rank <= 5,
            "launch of %s: map %zu is of buffer %d, rank %d", kernel, i, maps[i].buf, maps[i].rank);
    MoeLaunch launch = {.kernel = k->name,
                        .bufs = moe_arena_copy(out->arena, refs, n * sizeof *refs),
                        .n_bufs = n,
                        .shape = {.grid = blocks < 1 ? 1 : blocks,
                                  .block = k->text.threads,
                                  .shared_bytes = k->text.shared_bytes,
                                  .maps = moe_arena_copy(out->arena, maps, n_maps * sizeof *maps),
                                  .n_maps = n_maps}};
    MOE_PUSH(out->arena, out->launches, out->n_launches, out->cap_launches, launch);
}

void moe_cuda_launch(MoeCudaTarget *t, MoeLowered *out, const char *kernel, int64_t blocks,
                     const MoeBufRef *refs, size_t n) {
    moe_cuda_launch_maps(t, out, kernel, blocks, refs, n, NULL, 0);
}

int64_t moe_cuda_blocks(const MoeCudaTarget *t, int64_t tasks, int waves) {
    int64_t most = (int64_t)t->arch->multiprocessors * waves;
    return tasks < 1 ? 1 : tasks < most ? tasks : most;
}
