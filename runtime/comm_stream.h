/* A pair of ranks' blocks as a stream of bytes: blocks for one peer one after another, their rows gathered through `index`.
 * The two ends of a transfer may cut it differently. For those who write a communicator. */
#ifndef MOE_RUNTIME_COMM_STREAM_H
#define MOE_RUNTIME_COMM_STREAM_H

#include "runtime/comm.h"

typedef struct {
    const MoeBlock *blocks; /* borrowed */
    size_t n, at;           /* blocks, the one that the next byte is in */
    int peer;
    int64_t row, offset; /* the next byte in it */
} MoeStream;

/* Bytes of the blocks for `peer`; bytes of a block's rows must fit int64. */
int64_t moe_blocks_bytes(const MoeBlock *blocks, size_t n, int peer);
MoeStream moe_stream(const MoeBlock *blocks, size_t n, int peer);
/* The next run of adjacent bytes, at most `most` > 0 of them; 0 at the end. *out points at it. */
int64_t moe_stream_next(MoeStream *s, int64_t most, char **out);
/* From one stream to the other until either ends; returns the bytes copied. Memory of the two may be the same place but not
 * overlap otherwise. */
int64_t moe_stream_copy(MoeStream *from, MoeStream *to);

#endif
