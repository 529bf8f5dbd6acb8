/* Facts about ops, all from ops.def. */
#ifndef MOE_IR_OP_H
#define MOE_IR_OP_H

#include <stdbool.h>
#include <stddef.h>

/* Kernel kinds: what a backend implements, one row of its table each. KIND(ID, name) */
#define MOE_KINDS(X)                                                                               \
    X(DECL, decl)                                                                                  \
    X(EW, ew)                                                                                      \
    X(ROW, row)                                                                                    \
    X(REDUCE, reduce)                                                                              \
    X(SYNC, sync)                                                                                  \
    X(GEMM, gemm)                                                                                  \
    X(WGRAD, wgrad)                                                                                \
    X(ROUTE, route)                                                                                \
    X(MOVE, move)                                                                                  \
    X(EMBED, embed)                                                                                \
    X(EMBED_GRAD, embed_grad)                                                                      \
    X(ROPE, rope)                                                                                  \
    X(ATTN, attn)                                                                                  \
    X(ATTN_GRAD, attn_grad)                                                                        \
    X(XENT, xent)                                                                                  \
    X(COMM, comm)                                                                                  \
    X(STORE, store)                                                                                \
    X(COMPOSITE, composite)

typedef enum {
#define X(id, name) MOE_KIND_##id,
    MOE_KINDS(X)
#undef X
        MOE_N_KINDS
} MoeKind;

typedef enum {
#define OP(id, name, min_in, max_in, n_out, kind, attrs, infer, grad, decomp, shard, cost, doc)    \
    MOE_OP_##id,
#include "ir/ops.def"
#undef OP
    MOE_N_OPS
} MoeOpcode;

typedef struct {
    const char *id;   /* "ADD" */
    const char *name; /* "add" */
    int min_in, max_in, n_out;
    MoeKind kind;
    const char *attrs; /* the column of ops.def */
    const char *doc;
} MoeOpInfo;

const MoeOpInfo *moe_op_info(MoeOpcode op);
bool moe_op_from_name(const char *name, MoeOpcode *out);
const char *moe_kind_name(MoeKind k);
typedef struct {
    char key[24];
    char type;
    bool optional;
} MoeAttrDecl;
#define MOE_MAX_ATTRS 16
/* The op's attributes in the order of the column, then layer. Returns how many. */
int moe_op_attr_decls(MoeOpcode op, MoeAttrDecl out[MOE_MAX_ATTRS]);
/* The declared type letter of attribute `key` ('i' 'f' 's' 'b'), 0 if the op has no such attribute. */
char moe_op_attr_type(MoeOpcode op, const char *key, bool *out_optional);

#endif
