/* Exchanges whose bytes follow from who sends them to whom, and blocks laid out at random: see comm_suite_internal.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "tests/support/comm_suite_internal.h"

#define UNTOUCHED 0xEE

typedef struct {
    MoeBlock *blocks;
    int64_t *first; /* of each block: its place in its peer's stream */
    int64_t *rows;  /* rows of memory that the block's base has */
    size_t n, cap;
} Side;

struct CommJob {
    int exchange, rank;
    char what[48];
    Side sends, recvs;
    MoeRequest *request;
    uint64_t seed, drawn;
};

static uint64_t draw(CommJob *j, uint64_t below) {
    return moe_rng_below(j->seed, (uint64_t)j->rank << 32 | (uint32_t)j->exchange, j->drawn++,
                         below);
}

static void *must(void *p) {
    MOE_ASSERT(p, "out of memory in a test");
    return p;
}

/* Byte i of what `from` sends to `to`. */
static unsigned char byte_of(int exchange, int from, int to, int64_t i) {
    uint32_t h = (uint32_t)exchange * 0xC2B2AE3Du ^ (uint32_t)from * 0x9E3779B1u ^
                 (uint32_t)to * 0x85EBCA77u ^ (uint32_t)i * 0x27D4EB2Fu;
    h ^= h >> 15;
    h *= 0x2C1B3C6Du;
    return (unsigned char)(h >> 24);
}

int64_t comm_bytes_uneven(int exchange, int from, int to, int size) {
    uint32_t h = (uint32_t)(exchange * 7 + from * size + to) * 0x9E3779B1u;
    h ^= h >> 16;
    return h % 3 == 0 ? 0 : (int64_t)(h % 1777);
}

/* A block of `n` rows of row_bytes; its memory is its own, with an index over up to twice the rows. */
static void add_block(CommJob *j, Side *s, int peer, int64_t first, int64_t row_bytes, int64_t n,
                      bool indexed) {
    if (s->n == s->cap) {
        s->cap = s->cap ? 2 * s->cap : 16;
        s->blocks = must(realloc(s->blocks, s->cap * sizeof *s->blocks));
        s->first = must(realloc(s->first, s->cap * sizeof *s->first));
        s->rows = must(realloc(s->rows, s->cap * sizeof *s->rows));
    }
    int64_t rows = indexed ? n + (int64_t)draw(j, (uint64_t)n + 1) : n;
    int32_t *index = NULL;
    if (indexed) { /* n of the rows, in any order: a partial shuffle */
        index = must(malloc((size_t)rows * sizeof *index));
        for (int64_t i = 0; i < rows; i++)
            index[i] = (int32_t)i;
        for (int64_t i = 0; i < n; i++) {
            int64_t with = i + (int64_t)draw(j, (uint64_t)(rows - i));
            int32_t t = index[i];
            index[i] = index[with];
            index[with] = t;
        }
    }
    void *base = must(malloc((size_t)(rows * row_bytes)));
    memset(base, UNTOUCHED, (size_t)(rows * row_bytes));
    s->first[s->n] = first;
    s->rows[s->n] = rows;
    s->blocks[s->n++] =
        (MoeBlock){.peer = peer, .base = base, .row_bytes = row_bytes, .n = n, .index = index};
}

/* The next block of `left` > 0 bytes for peer, returns how many of them it took. */
static int64_t lay(CommJob *j, Side *s, int peer, int64_t first, int64_t left, CommLay how) {
    int64_t row_bytes = 1, n = left;
    bool indexed = how == COMM_LAY_INDEX;
    if (how == COMM_LAY_INDEX) {
        for (row_bytes = 12; left % row_bytes;)
            row_bytes--;
        n = left / row_bytes;
    } else if (how == COMM_LAY_RANDOM) {
        row_bytes = 1 + (int64_t)draw(j, (uint64_t)(left < 64 ? left : 64));
        n = 1 + (int64_t)draw(j, (uint64_t)(left / row_bytes));
        indexed = draw(j, 2) == 0;
    }
    add_block(j, s, peer, first, row_bytes, n, indexed);
    return n * row_bytes;
}

/* All blocks of a side: a peer's in order, but peers mixed. bytes[q]: what goes to, or comes from, q. */
static void lay_out(CommJob *j, Side *s, const int64_t *bytes, int size, CommLay how) {
    int64_t *at = must(calloc((size_t)size, sizeof *at)), left = 0;
    for (int q = 0; q < size; q++)
        left += bytes[q];
    for (int q = j->rank; left; q = how == COMM_LAY_RANDOM ? (int)draw(j, (uint64_t)size) : q + 1) {
        int p = q % size;
        if (at[p] == bytes[p])
            continue;
        int64_t took = lay(j, s, p, at[p], bytes[p] - at[p], how);
        at[p] += took;
        left -= took;
    }
    free(at);
}

static unsigned char *row_of(const MoeBlock *b, int64_t row) {
    return (unsigned char *)b->base + (b->index ? b->index[row] : row) * b->row_bytes;
}

static void fill(CommJob *j) {
    for (size_t k = 0; k < j->sends.n; k++) {
        const MoeBlock *b = &j->sends.blocks[k];
        int64_t i = j->sends.first[k];
        for (int64_t row = 0; row < b->n; row++)
            for (int64_t c = 0; c < b->row_bytes; c++)
                row_of(b, row)[c] = byte_of(j->exchange, j->rank, b->peer, i++);
    }
}

CommJob *comm_job(const MoeComm *c, int exchange, CommBytes bytes, CommLay sends, CommLay recvs,
                  uint64_t seed) {
    CommJob *j = must(calloc(1, sizeof *j));
    j->exchange = exchange;
    j->rank = c->rank;
    j->seed = seed;
    snprintf(j->what, sizeof j->what, "test exchange %d", exchange);
    int64_t *n = must(calloc((size_t)c->size, sizeof *n));
    for (int q = 0; q < c->size; q++)
        n[q] = bytes(exchange, c->rank, q, c->size);
    lay_out(j, &j->sends, n, c->size, sends);
    for (int q = 0; q < c->size; q++)
        n[q] = bytes(exchange, q, c->rank, c->size);
    lay_out(j, &j->recvs, n, c->size, recvs);
    free(n);
    fill(j);
    return j;
}

MoeStatus comm_job_start(CommJob *j, MoeComm *c) {
    return moe_comm_start(c, j->sends.blocks, j->sends.n, j->recvs.blocks, j->recvs.n, j->what,
                          &j->request);
}

MoeStatus comm_job_wait(CommJob *j, MoeComm *c) {
    return moe_comm_wait(c, j->request);
}

/* One block's rows hold the stream from `from` to `to`, and the rows that are not its own hold nothing. */
static char *check_block(const CommJob *j, const Side *s, size_t k, int from, int to) {
    const MoeBlock *b = &s->blocks[k];
    bool *used = must(calloc((size_t)s->rows[k] + 1, 1));
    int64_t i = s->first[k];
    char *wrong = NULL;
    for (int64_t row = 0; row < b->n && !wrong; row++) {
        used[b->index ? b->index[row] : row] = true;
        for (int64_t c = 0; c < b->row_bytes && !wrong; c++, i++) {
            int got = row_of(b, row)[c], want = byte_of(j->exchange, from, to, i);
            if (got != want)
                wrong = comm_wrong("%s: byte %lld from rank %d to rank %d is %d, not %d", j->what,
                                   (long long)i, from, to, got, want);
        }
    }
    for (int64_t row = 0; row < s->rows[k] && !wrong; row++)
        for (int64_t c = 0; c < b->row_bytes && !used[row] && !wrong; c++)
            if (((unsigned char *)b->base)[row * b->row_bytes + c] != UNTOUCHED)
                wrong = comm_wrong("%s: row %lld of a block for rank %d, which the index leaves "
                                   "out, was written",
                                   j->what, (long long)row, b->peer);
    free(used);
    return wrong;
}

static void free_side(Side *s) {
    for (size_t k = 0; k < s->n; k++) {
        free(s->blocks[k].base);
        free((void *)(uintptr_t)s->blocks[k].index);
    }
    free(s->blocks);
    free(s->first);
    free(s->rows);
}

char *comm_job_check(CommJob *j, MoeStatus st) {
    char *wrong = st ? comm_unexpected(st, j->what) : NULL;
    for (size_t k = 0; k < j->recvs.n && !wrong; k++)
        wrong = check_block(j, &j->recvs, k, j->recvs.blocks[k].peer, j->rank);
    for (size_t k = 0; k < j->sends.n && !wrong; k++)
        wrong = check_block(j, &j->sends, k, j->rank, j->sends.blocks[k].peer);
    free_side(&j->sends);
    free_side(&j->recvs);
    free(j);
    return wrong;
}

char *comm_job_run(MoeComm *c, int exchange, CommBytes bytes, CommLay sends, CommLay recvs,
                   uint64_t seed) {
    CommJob *j = comm_job(c, exchange, bytes, sends, recvs, seed);
    MoeStatus st = comm_job_start(j, c);
    if (!st)
        st = comm_job_wait(j, c);
    return comm_job_check(j, st);
}
