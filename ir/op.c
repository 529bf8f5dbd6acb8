/* Facts about ops: the tables that ops.def expands to, and lookups in them. */
#include "ir/op.h"

#include <string.h>

#include "base/assert.h"

static const MoeOpInfo infos[MOE_N_OPS] = {
#define OP(id, name, min_in, max_in, n_out, kind, attrs, infer, grad, decomp, shard, cost, doc)    \
    [MOE_OP_##id] = {#id, #name, min_in, max_in, n_out, MOE_KIND_##kind, attrs, doc},
#include "ir/ops.def"
#undef OP
};

static const char *const kind_names[MOE_N_KINDS] = {
#define X(id, name) [MOE_KIND_##id] = #name,
    MOE_KINDS(X)
#undef X
};

const MoeOpInfo *moe_op_info(MoeOpcode op) {
    MOE_ASSERT((unsigned)op < MOE_N_OPS, "opcode %d", (int)op);
    return &infos[op];
}

bool moe_op_from_name(const char *name, MoeOpcode *out) {
    for (int i = 0; i < MOE_N_OPS; i++) {
        if (strcmp(infos[i].name, name) == 0) {
            *out = (MoeOpcode)i;
            return true;
        }
    }
    return false;
}

const char *moe_kind_name(MoeKind k) {
    MOE_ASSERT((unsigned)k < MOE_N_KINDS, "kind %d", (int)k);
    return kind_names[k];
}

/* Reads one "key:t" or "key:t?" of an attrs column; returns where the next begins, NULL at the end.
 */
static const char *next_decl(const char *p, MoeAttrDecl *out) {
    p += strspn(p, " ");
    if (!*p)
        return NULL;
    size_t n = strcspn(p, ":");
    MOE_ASSERT(n < sizeof out->key && p[n] == ':' && strchr("ifsb", p[n + 1]) && p[n + 1],
               "attribute column of ops.def: '%s'", p);
    memcpy(out->key, p, n);
    out->key[n] = 0;
    out->type = p[n + 1];
    p += n + 2;
    out->optional = *p == '?';
    return p + out->optional;
}

static const MoeAttrDecl layer_decl = {"layer", 'i', true};

int moe_op_attr_decls(MoeOpcode op, MoeAttrDecl out[MOE_MAX_ATTRS]) {
    int n = 0;
    MoeAttrDecl decl;
    for (const char *p = moe_op_info(op)->attrs; (p = next_decl(p, &decl));) {
        MOE_ASSERT(n < MOE_MAX_ATTRS - 1, "op %s declares too many attributes", infos[op].name);
        out[n++] = decl;
    }
    out[n++] = layer_decl;
    return n;
}

char moe_op_attr_type(MoeOpcode op, const char *key, bool *out_optional) {
    MoeAttrDecl decls[MOE_MAX_ATTRS];
    int n = moe_op_attr_decls(op, decls);
    for (int i = 0; i < n; i++) {
        if (strcmp(decls[i].key, key) == 0) {
            if (out_optional)
                *out_optional = decls[i].optional;
            return decls[i].type;
        }
    }
    return 0;
}
