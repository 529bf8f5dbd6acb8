/* Arena: bump allocation for the compiler (graphs, pass scratch, plans). Everything is freed at once.
 * Allocation never returns NULL: running out of memory here is reported and ends the process by
 * assertion (compiler structures are small; large buffers use moe_alloc_big in base/mem.h). */
#ifndef MOE_BASE_ARENA_H
#define MOE_BASE_ARENA_H

#include <stddef.h>
#include "base/status.h"

typedef struct MoeArena MoeArena;

MoeArena *moe_arena_create(void);
void moe_arena_destroy(MoeArena *a); /* NULL is fine */
/* Zeroed memory, aligned to 16. n_bytes may be 0. */
void *moe_arena_alloc(MoeArena *a, size_t n_bytes);
char *moe_arena_strdup(MoeArena *a, const char *s);
char *moe_arena_strndup(MoeArena *a, const char *s, size_t n);
char *moe_arena_printf(MoeArena *a, const char *fmt, ...) MOE_PRINTF(2, 3);
char *moe_arena_vprintf(MoeArena *a, const char *fmt, va_list args);
void *moe_arena_copy(MoeArena *a, const void *p, size_t n_bytes);

#define MOE_NEW(a, type)      ((type *)moe_arena_alloc((a), sizeof(type)))
#define MOE_NEW_N(a, type, n) ((type *)moe_arena_alloc((a), sizeof(type) * (size_t)(n)))

/* Growable array in an arena: T *items; size_t n, cap. Old storage is left to the arena. */
#define MOE_PUSH(a, items, n, cap, value)                                                          \
    do {                                                                                           \
        if ((n) == (cap)) {                                                                        \
            size_t moe_cap_ = (cap) ? (size_t)(cap)*2 : 8;                                         \
            void *moe_p_ = moe_arena_alloc((a), moe_cap_ * sizeof *(items));                       \
            if (n)                                                                                 \
                memcpy(moe_p_, (items), (size_t)(n) * sizeof *(items));                            \
            (items) = moe_p_;                                                                      \
            (cap) = moe_cap_;                                                                      \
        }                                                                                          \
        (items)[(n)++] = (value);                                                                  \
    } while (0)

#endif
