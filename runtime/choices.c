/* See choices.h. */
#include "runtime/choices.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"

void moe_choices_free(MoeChoices *c) {
    for (size_t i = 0; i < c->n; i++) {
        free(c->items[i].kind);
        free(c->items[i].key);
        free(c->items[i].value);
    }
    free(c->items);
    *c = (MoeChoices){0};
}

static MoeChoice *find(const MoeChoices *c, const char *kind, const char *key) {
    for (size_t i = 0; i < c->n; i++)
        if (!strcmp(c->items[i].kind, kind) && !strcmp(c->items[i].key, key))
            return &c->items[i];
    return NULL;
}

const char *moe_choices_get(const MoeChoices *c, const char *kind, const char *key) {
    const MoeChoice *found = find(c, kind, key);
    return found ? found->value : NULL;
}

bool moe_choices_taken(const MoeChoices *c, const char *kind, const char *key) {
    const MoeChoice *found = find(c, kind, key);
    return found && found->taken;
}

static MoeStatus no_memory(void) {
    return moe_error(MOE_E_NOMEM, "no memory for a choice");
}

static MoeStatus add(MoeChoices *c, const char *kind, const char *key, const char *value) {
    if (c->n == c->cap) {
        size_t cap = c->cap ? 2 * c->cap : 16;
        MoeChoice *items = realloc(c->items, cap * sizeof *items);
        if (!items)
            return no_memory();
        c->items = items;
        c->cap = cap;
    }
    MoeChoice added = {strdup(kind), strdup(key), strdup(value), false};
    if (!added.kind || !added.key || !added.value) {
        free(added.kind);
        free(added.key);
        free(added.value);
        return no_memory();
    }
    c->items[c->n++] = added;
    return NULL;
}

MoeStatus moe_choices_put(MoeChoices *c, const char *kind, const char *key, const char *value) {
    MoeChoice *old = find(c, kind, key);
    if (strlen(key) >= MOE_CHOICE_BYTES || strlen(value) >= MOE_CHOICE_BYTES)
        return moe_error(MOE_E_INTERNAL, "choice of %s: a text of more than %d bytes", kind,
                         MOE_CHOICE_BYTES - 1);
    if (!old)
        return add(c, kind, key, value);
    char *copy = strdup(value);
    if (!copy)
        return no_memory();
    free(old->value);
    old->value = copy;
    old->taken = false;
    return NULL;
}

MoeStatus moe_choices_share(MoeChoices *c, MoeComm *comm, const char *kind, const char *key,
                            const char *value) {
    char mine[MOE_CHOICE_BYTES] = "", *all = malloc(sizeof mine * (size_t)comm->size);
    MoeStatus st = all ? NULL : no_memory();
    if (!st && comm->rank == 0) {
        MOE_ASSERT(value, "choice of %s for %s: rank 0 has none", kind, key);
        if (strlen(value) >= sizeof mine)
            st = moe_error(MOE_E_INTERNAL, "choice of %s: a text of more than %zu bytes", kind,
                           sizeof mine - 1);
        else
            memcpy(mine, value, strlen(value) + 1);
    }
    st = moe_comm_agree(comm, st, "sharing a choice");
    if (!st)
        st = moe_comm_all_gather(comm, mine, sizeof mine, all, "sharing a choice");
    if (!st)
        st = moe_choices_put(c, kind, key, all);
    free(all);
    return st;
}

MoeStatus moe_choices_same_library(MoeComm *comm, const char *name, int64_t version,
                                   MoeStatus *opened, bool *out_usable) {
    char what[64];
    int64_t mine = *opened ? 0 : version, *all = malloc(sizeof mine * (size_t)comm->size);
    snprintf(what, sizeof what, "%s's version", name);
    MoeStatus st = moe_comm_agree(comm, all ? NULL : no_memory(), what);
    if (!st)
        st = moe_comm_all_gather(comm, &mine, sizeof mine, all, what);
    *out_usable = !st;
    for (int r = 0; r < comm->size && !st; r++)
        *out_usable = *out_usable && all[r] && all[r] == all[0];
    if (!st && !*out_usable && !*opened)
        *opened = moe_error(MOE_E_INPUT, "%s is not the same on all ranks: here %lld, on rank 0 %lld",
                            name, (long long)mine, (long long)all[0]);
    if (st) {
        moe_status_free(*opened);
        *opened = NULL;
    }
    free(all);
    return st;
}

MoeStatus moe_choices_refused(MoeComm *comm, MoeStatus proved, const uint8_t *ok, size_t n,
                              const char *what, int *out) {
    uint8_t *all = calloc(n * (size_t)comm->size + 1, 1);
    MoeStatus st = moe_comm_agree(comm, proved || all ? proved : no_memory(), what);
    if (!st)
        st = moe_comm_all_gather(comm, ok, (int64_t)n, all, what);
    for (size_t i = 0; i < n && !st; i++) {
        out[i] = -1;
        for (int r = comm->size - 1; r >= 0; r--)
            out[i] = all[(size_t)r * n + i] ? out[i] : r;
    }
    free(all);
    return st;
}

json_t *moe_choices_json(const MoeChoices *c) {
    json_t *a = json_array();
    for (size_t i = 0; i < c->n; i++)
        json_array_append_new(a, json_pack("{s:s, s:s, s:s}", "kind", c->items[i].kind, "key",
                                           c->items[i].key, "value", c->items[i].value));
    return a;
}

static MoeStatus take_one(MoeChoices *c, const json_t *o, const char *where) {
    const char *kind, *key, *value;
    MOE_TRY(moe_json_str(o, where, "kind", true, &kind));
    MOE_TRY(moe_json_str(o, where, "key", true, &key));
    MOE_TRY(moe_json_str(o, where, "value", true, &value));
    MOE_TRY(moe_choices_put(c, kind, key, value));
    find(c, kind, key)->taken = true;
    return NULL;
}

MoeStatus moe_choices_take(MoeChoices *c, const json_t *choices, const char *where) {
    MoeChoices taken = {0};
    MoeStatus st = NULL;
    if (choices && !json_is_array(choices))
        st = moe_error(MOE_E_CORRUPT, "%s: \"choices\" is no array", where);
    for (size_t i = 0; !st && i < json_array_size(choices); i++) {
        st = take_one(&taken, json_array_get(choices, i), where);
        if (st && moe_status_code(st) != MOE_E_NOMEM) {
            MoeStatus damaged =
                moe_error(MOE_E_CORRUPT, "choices[%zu]: %s", i, moe_status_message(st));
            moe_status_free(st);
            st = damaged;
        }
    }
    if (st) {
        moe_choices_free(&taken);
        return st;
    }
    moe_choices_free(c);
    *c = taken;
    return NULL;
}
