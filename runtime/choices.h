/* What was chosen by measurement and must stay chosen: which of several implementations, all correct, runs a part of a plan on this
 * device, where their bits may differ. A choice is two short texts of its kind ("dense", "attention", ...): key, what it is about,
 * and value, what was chosen; only the kind reads them.
 *
 * A run's choices are the same on all ranks, and stand in its checkpoints' manifests ("choices"), so that it goes on with the bits
 * that it began with, also elsewhere. Beside that a cache on disk keeps them from being measured again: there a choice also belongs
 * to a place, a text that names device, driver and library with their versions.
 *
 *   if (!(v = moe_choices_get(c, kind, key))) {                   decided in this run, or by its checkpoint
 *       if (rank == 0 && !(v = moe_choices_cached(kind, place, key, ..))) measure, moe_choices_keep(kind, place, key, v);
 *       moe_choices_share(c, comm, kind, key, v);                 all ranks: rank 0's
 *   }
 *
 * Used by runtime/dense.c and runtime/cuda/. Not for several threads at once: each rank has its own. */
#ifndef MOE_RUNTIME_CHOICES_H
#define MOE_RUNTIME_CHOICES_H

#include <stdbool.h>
#include "base/json.h"
#include "runtime/comm.h"

enum { MOE_CHOICE_BYTES = 512 }; /* of key and of value, at most, with the NUL */

typedef struct {
    char *kind, *key, *value;
    bool taken; /* from a checkpoint */
} MoeChoice;

typedef struct {
    MoeChoice *items;
    size_t n, cap;
} MoeChoices; /* begins as {0} */

void moe_choices_free(MoeChoices *c);
/* NULL: not decided. Valid until the next put of that key. */
const char *moe_choices_get(const MoeChoices *c, const char *kind, const char *key);
/* Whether it came with a checkpoint; false where it is not decided. */
bool moe_choices_taken(const MoeChoices *c, const char *kind, const char *key);
/* Decides, or decides anew. Texts are copied; MOE_E_INTERNAL where one is longer than MOE_CHOICE_BYTES allows. */
MoeStatus moe_choices_put(MoeChoices *c, const char *kind, const char *key, const char *value);
/* Collective: rank 0's value (others pass NULL) is put on all ranks, for the same kind and key on all. */
MoeStatus moe_choices_share(MoeChoices *c, MoeComm *comm, const char *kind, const char *key,
                            const char *value);

/* What a library that can be chosen must be: there on every rank, and the same. Collective. version: this rank's; *opened: what
 * opening it said (NULL: it is open), in whose place comes, where versions differ, a status that says so. *out_usable is every
 * rank's; it is true only where *opened is NULL. After an error *opened is NULL. */
MoeStatus moe_choices_same_library(MoeComm *comm, const char *name, int64_t version,
                                   MoeStatus *opened, bool *out_usable);
/* Of n choices, out[i]: the lowest rank that cannot do what rank 0 chose, -1: all can. Collective, and takes proved, this rank's
 * status; ok [n]: what it can do. `what` is for errors. */
MoeStatus moe_choices_refused(MoeComm *comm, MoeStatus proved, const uint8_t *ok, size_t n,
                              const char *what, int *out);

/* The array of a manifest: [{"kind", "key", "value"}], in the order of decision; never NULL. */
json_t *moe_choices_json(const MoeChoices *c);
/* In its place what a manifest says (absent: nothing is decided). Another shape is MOE_E_CORRUPT, with `where`. */
MoeStatus moe_choices_take(MoeChoices *c, const json_t *choices, const char *where);

/* The cache: $MOEC_CACHE (empty: none), else $XDG_CACHE_HOME/moec, else ~/.cache/moec; a file a choice, which may be removed at any
 * time. A damaged one, or another key's, is as good as none; one that cannot be written is let be. */
bool moe_choices_cached(const char *kind, const char *place, const char *key,
                        char out[MOE_CHOICE_BYTES]);
void moe_choices_keep(const char *kind, const char *place, const char *key, const char *value);

#endif
