/* The buffers of a kernel that runs one op, and the references to them in launches: the same for every target. */
#ifndef MOE_CODEGEN_BUFS_H
#define MOE_CODEGEN_BUFS_H

#include "ir/target.h"

MoeBufRef moe_ref(const MoeValue *v);
MoeBufRef
moe_ref_work(int64_t offset); /* workspace bytes from its start; keep offsets multiples of 64 */

/* The segs value that the rows of a tensor type are ragged over; NULL for static rows. */
const MoeValue *moe_rows_seg(const MoeType *t);

/* The buffers of a one-op kernel, in the order they are added; equal values share one. */
typedef struct {
    MoeBufRef refs[16];
    int n;
} MoeBufs;
int moe_bufs_add(MoeBufs *b, const MoeValue *v);
/* The segs value of t's rows; -1 for static rows. */
int moe_bufs_add_seg(MoeBufs *b, const MoeType *t);
int moe_bufs_add_work(MoeBufs *b, int64_t offset);
/* Result i of the group's one op if it is read outside the group, else -1. */
int moe_bufs_add_output(MoeBufs *b, const MoeGroup *g, int i);

#endif
