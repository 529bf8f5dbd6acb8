/* Shared by the files of ir/ only: building ops in steps (the parser binds result names before it
 * reads the types), printing with a numbering, and maps from names. */
#ifndef MOE_IR_INTERNAL_H
#define MOE_IR_INTERNAL_H

#include "ir/graph.h"

/* An op with its results (untyped, ids given), not yet in the list. Attributes are copied as given.
 */
MoeOp *moe_op_new(MoeGraph *g, MoeOpcode opcode, MoeValue *const *operands, int n_operands,
                  const MoeAttr *attrs, int n_attrs);
/* Puts attributes into the order of the column, layer last, and gives each the type letter of its
 * declaration: an int for a bool or a float becomes one. Unknown and repeated keys stay, for
 * moe_infer to refuse. */
void moe_op_normalise_attrs(MoeOp *op);

/* A value as %name or %number. numbers: by value id, or NULL for the id itself. */
void moe_value_print_numbered(const MoeValue *v, const int *numbers, int n_numbers, MoeStr *out);
void moe_type_print_numbered(const MoeType *t, const int *numbers, int n_numbers, MoeStr *out);
void moe_op_print_numbered(const MoeOp *op, const int *numbers, int n_numbers, MoeStr *out);

/* A value's name in text: a letter or _, then letters, digits, _ . and -. */
bool moe_value_name_valid(const char *name);

/* A map from strings to pointers: open addressing, keys borrowed. */
typedef struct {
    MoeArena *arena;
    const char **keys;
    void **values;
    size_t n, cap;
} MoeNameMap;
void *moe_names_get(const MoeNameMap *m, const char *key); /* NULL if absent */
/* false (and no change) if the key is there already. value != NULL. */
bool moe_names_add(MoeNameMap *m, const char *key, void *value);

#endif
