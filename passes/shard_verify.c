/* The verifier of sharded graphs. In: a module whose graphs are programs of a rank. Out: NULL, or the first op that does not
 * get what it needs. Nothing of what the shard pass knew is used: states come from the declarations (shard.h). */
#include "passes/shard.h"
#include "ir/text.h"
#include "base/str.h"

/* The local type of a parameter, from what it says of the whole. */
static const char *check_param(MoeShardRules *r, const MoeOp *op) {
    const MoeType *have = &op->results[0]->type;
    MoeType part = {.kind = MOE_TYPE_TENSOR, .dtype = have->dtype};
    const char *whole = moe_attr(op, "whole") ? moe_attr_s(op, "whole") : NULL;
    if (!whole)
        return moe_shard_fail(r, "parameter %.80s does not say what it is a part of (whole)",
                              moe_attr_s(op, "name"));
    const char *problem = moe_dims_from_text(whole, &part);
    if (problem)
        return moe_shard_fail(r, "parameter %.80s: whole = \"%.60s\": %s", moe_attr_s(op, "name"),
                              whole, problem);
    int outer = (int)moe_attr_i_or(op, "expert", 0);
    int64_t tp_dim = moe_attr_i_or(op, "tp_dim", -1);
    int division = (int)moe_attr_i_or(op, "mesh", 0); /* there is such: param_state */
    if (division && !outer)
        return moe_shard_fail(r, "parameter %.80s has a division of its own, but no experts",
                              moe_attr_s(op, "name"));
    if (outer)
        part.dims[0].size = moe_shard_slots(r, division, part.dims[0].size);
    if (tp_dim >= part.rank)
        return moe_shard_fail(r, "parameter %.80s: tp_dim %lld of %d dims", moe_attr_s(op, "name"),
                              (long long)tp_dim, part.rank);
    if (tp_dim >= 0)
        part.dims[tp_dim].size /= r->mesh->tp;
    int parts = moe_shard_group_size(
        r, outer ? MOE_GROUP_EXPERT_SHARD : MOE_GROUP_DENSE_SHARD, division);
    if (parts > 1) {
        int64_t n = 1;
        for (int i = outer; i < part.rank; i++)
            n *= part.dims[i].size;
        int64_t cap = moe_slice(n, MOE_SLICE_BLOCK, parts, 0).cap;
        part = outer ? moe_type_2d(part.dtype, part.dims[0], cap) : moe_type_1d(part.dtype, cap);
    }
    if (moe_type_equal(&part, have))
        return NULL;
    MoeStr want = {0};
    moe_type_print(&part, &want);
    problem = moe_shard_fail(r, "parameter %.80s should have the type %s", moe_attr_s(op, "name"),
                             moe_str_c(&want));
    moe_str_free(&want);
    return problem;
}

static MoeStatus verify_graph(const MoeGraph *g, const MoeMesh *mesh, const char *pass) {
    MoeArena *a = moe_arena_create();
    MoeShardRules r = {.mesh = mesh, .g = g, .a = a};
    MoeStatus st = NULL;
    for (size_t i = 0; i < g->n_ops && !st; i++) {
        const MoeOp *op = g->ops[i];
        const char *problem = moe_shard_derive(&r, op);
        if (!problem && op->opcode == MOE_OP_PARAM)
            problem = check_param(&r, op);
        if (!problem)
            continue;
        MoeStr line = {0};
        moe_print_op(op, &line);
        st = moe_error(MOE_E_INTERNAL, "after pass %s, graph @%s on %d ranks: %s, in: %.400s", pass,
                       g->name, moe_mesh_size(mesh), problem, moe_str_c(&line));
        moe_str_free(&line);
    }
    moe_arena_destroy(a);
    return st;
}

MoeStatus moe_shard_verify(const MoeModule *m, const MoeMesh *mesh, const char *after_pass) {
    for (size_t i = 0; i < m->n_graphs; i++)
        MOE_TRY(verify_graph(m->graphs[i], mesh, after_pass));
    return NULL;
}
