/* Names in the text form: what a value may be called, and a map from names (parser, verifier). */
#include <string.h>

#include "base/rng.h"
#include "ir/internal.h"

static bool is_alpha(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

bool moe_value_name_valid(const char *name) {
    if (!is_alpha(name[0]))
        return false;
    for (const char *p = name; *p; p++) {
        if (!is_alpha(*p) && !(*p >= '0' && *p <= '9') && *p != '.' && *p != '-')
            return false;
    }
    return true;
}

/* The slot that holds key, or the empty one where it belongs. cap is a power of two and never full.
 */
static size_t find_slot(const MoeNameMap *m, const char *key) {
    size_t at = (size_t)moe_hash_name(key) & (m->cap - 1);
    while (m->keys[at] && strcmp(m->keys[at], key) != 0)
        at = (at + 1) & (m->cap - 1);
    return at;
}

void *moe_names_get(const MoeNameMap *m, const char *key) {
    return m->cap ? m->values[find_slot(m, key)] : NULL;
}

static void grow(MoeNameMap *m) {
    MoeNameMap old = *m;
    m->cap = old.cap ? old.cap * 2 : 64;
    m->keys = MOE_NEW_N(m->arena, const char *, m->cap);
    m->values = MOE_NEW_N(m->arena, void *, m->cap);
    for (size_t i = 0; i < old.cap; i++) {
        if (old.keys[i]) {
            size_t at = find_slot(m, old.keys[i]);
            m->keys[at] = old.keys[i];
            m->values[at] = old.values[i];
        }
    }
}

bool moe_names_add(MoeNameMap *m, const char *key, void *value) {
    if ((m->n + 1) * 2 > m->cap)
        grow(m);
    size_t at = find_slot(m, key);
    if (m->keys[at])
        return false;
    m->keys[at] = key;
    m->values[at] = value;
    m->n++;
    return true;
}
