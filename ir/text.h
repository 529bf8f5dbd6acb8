/* The text form. parse(print(m)) prints the same bytes again.
 *
 *   moe 1                                                 format version
 *   graph @train {                                        or: graph @train leaf_rows = 512, fast_reduce = 1 {
 *     %tok = input {name = "tok"} : segs<1,8>
 *     %ids = input {name = "ids"} : i32[r<=4096 @%tok]
 *     %w = param {name = "model.embed_tokens.weight", init = "normal", std = 0.02, decay = 1} : f32[256, 64]
 *     %0 = embedding %w, %ids : f32[r<=4096 @%tok, 64]
 *     %seg, %src, %inv = route_plan %ids2 {experts = 8, layer = 0} : segs<8,8>, i32[r<=8192 @%seg], i32[r<=4096 @%tok, 2]
 *   backward:                                             ops from here on are of that phase
 *     %1 = add %0, %0 : f32[r<=4096 @%tok, 64] #3         #N: kernel group
 *     output %1 {name = "x"}
 *   }
 * Comments run from '//' to the end of the line and are not kept, so printed text has none.
 * Attributes print in the order of ops.def's column, layer last. Ints: decimal; floats: moe_format_double;
 * strings: JSON escapes. */
#ifndef MOE_IR_TEXT_H
#define MOE_IR_TEXT_H

#include "ir/graph.h"

#define MOE_IR_FORMAT_VERSION 1

/* Errors go to `d` (several are collected); NULL is returned if there was any. d->file and d->source are set by the
 * caller; source is NUL-terminated. Runs moe_verify on what it read. */
MoeModule *moe_parse(MoeDiag *d);
MoeStatus moe_parse_file(const char *path, MoeModule **out);
void moe_print(const MoeModule *m, MoeStr *out);
void moe_print_graph(const MoeGraph *g, MoeStr *out);
void moe_print_op(const MoeOp *op,
                  MoeStr *out); /* one line, no newline; unnamed values as %N by id */

#endif
