/* Blocks as a stream of bytes. See comm_stream.h. */
#include "runtime/comm_stream.h"

#include <string.h>

int64_t moe_blocks_bytes(const MoeBlock *blocks, size_t n, int peer) {
    int64_t bytes = 0;
    for (size_t i = 0; i < n; i++)
        if (blocks[i].peer == peer)
            bytes += blocks[i].n * blocks[i].row_bytes;
    return bytes;
}

MoeStream moe_stream(const MoeBlock *blocks, size_t n, int peer) {
    return (MoeStream){.blocks = blocks, .n = n, .peer = peer};
}

static bool has_bytes(const MoeBlock *b, int peer) {
    return b->peer == peer && b->n > 0 && b->row_bytes > 0;
}

int64_t moe_stream_next(MoeStream *s, int64_t most, char **out) {
    while (s->at < s->n && !has_bytes(&s->blocks[s->at], s->peer))
        s->at++;
    if (s->at == s->n)
        return 0;
    const MoeBlock *b = &s->blocks[s->at];
    int64_t first = s->row, rows = b->n - first; /* adjacent rows from here on */
    if (b->index) {
        first = b->index[s->row];
        for (rows = 1; s->row + rows < b->n && rows * b->row_bytes - s->offset < most; rows++)
            if (b->index[s->row + rows] != first + rows)
                break;
    }
    int64_t run = rows * b->row_bytes - s->offset;
    run = run < most ? run : most;
    *out = (char *)b->base + first * b->row_bytes + s->offset;
    s->offset += run;
    s->row += s->offset / b->row_bytes;
    s->offset %= b->row_bytes;
    if (s->row == b->n) {
        s->at++;
        s->row = 0;
    }
    return run;
}

int64_t moe_stream_copy(MoeStream *from, MoeStream *to) {
    int64_t copied = 0, n_from = 0, n_to = 0;
    char *src = NULL, *dst = NULL;
    for (;;) {
        if (!n_from)
            n_from = moe_stream_next(from, INT64_MAX, &src);
        if (!n_to)
            n_to = moe_stream_next(to, INT64_MAX, &dst);
        int64_t n = n_from < n_to ? n_from : n_to;
        if (!n)
            return copied;
        if (src != dst)
            memcpy(dst, src, (size_t)n);
        src += n;
        dst += n;
        n_from -= n;
        n_to -= n;
        copied += n;
    }
}
