/* Arena: a list of zeroed blocks, bumped; requests larger than a quarter block get a block of their
 * own, so that one large array does not waste the rest of the current block. */
#include "base/arena.h"

#include <stdalign.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/str.h"

#define ARENA_ALIGN 16
#define BLOCK_BYTES ((size_t)64 * 1024)

typedef struct Block {
    struct Block *next;
    size_t unused; /* keeps the data 16-byte aligned */
    alignas(ARENA_ALIGN) unsigned char data[];
} Block;

struct MoeArena {
    Block *blocks; /* every block, for destroy */
    unsigned char *at;
    size_t left;
};

MoeArena *moe_arena_create(void) {
    MoeArena *a = calloc(1, sizeof *a);
    MOE_ASSERT(a, "out of memory for an arena");
    return a;
}

void moe_arena_destroy(MoeArena *a) {
    if (!a)
        return;
    for (Block *b = a->blocks; b;) {
        Block *next = b->next;
        free(b);
        b = next;
    }
    free(a);
}

static unsigned char *add_block(MoeArena *a, size_t n_bytes) {
    Block *b = calloc(1, sizeof *b + n_bytes);
    MOE_ASSERT(b, "out of memory: an arena block of %zu bytes", n_bytes);
    b->next = a->blocks;
    a->blocks = b;
    return b->data;
}

void *moe_arena_alloc(MoeArena *a, size_t n_bytes) {
    MOE_ASSERT(n_bytes < SIZE_MAX / 4, "an arena request of %zu bytes", n_bytes);
    size_t n = (n_bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    if (n == 0)
        n = ARENA_ALIGN; /* distinct addresses for distinct objects */
    if (n > a->left) {
        if (n > BLOCK_BYTES / 4)
            return add_block(a, n);
        a->at = add_block(a, BLOCK_BYTES);
        a->left = BLOCK_BYTES;
    }
    void *p = a->at;
    a->at += n;
    a->left -= n;
    return p;
}

void *moe_arena_copy(MoeArena *a, const void *p, size_t n_bytes) {
    void *q = moe_arena_alloc(a, n_bytes);
    if (n_bytes)
        memcpy(q, p, n_bytes);
    return q;
}

char *moe_arena_strndup(MoeArena *a, const char *s, size_t n) {
    size_t len = strnlen(s, n);
    char *q = moe_arena_alloc(a, len + 1);
    memcpy(q, s, len);
    return q;
}

char *moe_arena_strdup(MoeArena *a, const char *s) {
    return moe_arena_copy(a, s, strlen(s) + 1);
}

char *moe_arena_vprintf(MoeArena *a, const char *fmt, va_list args) {
    MoeStr text = {0};
    moe_str_vprintf(&text, fmt, args);
    char *q = moe_arena_copy(a, moe_str_c(&text), text.len + 1);
    moe_str_free(&text);
    return q;
}

char *moe_arena_printf(MoeArena *a, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    char *q = moe_arena_vprintf(a, fmt, args);
    va_end(args);
    return q;
}
