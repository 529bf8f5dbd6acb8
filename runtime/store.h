/* Memory outside the slab, where rows wait that the backward pass reads again: slots in an unlinked file, or in this process.
 * Threads of its own copy between slab and slots while the rank computes; the caller's tickets say what to wait for.
 *
 * A slot that cannot be written (a full disk) is kept in the process's memory from then on, which is said once; only what cannot be
 * read back fails. Called by one thread. */
#ifndef MOE_RUNTIME_STORE_H
#define MOE_RUNTIME_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct MoeStore MoeStore;

/* n slots of these capacities; n_tickets tickets, none under way. In the process's memory, until told otherwise. */
MoeStatus moe_store_create(const int64_t *slot_bytes, size_t n, size_t n_tickets, MoeStore **out);
/* From now on in a file in `dir` that has no name and ends with the process. Nothing may be under way. `who` is put before
 * warnings ("rank 3: ", ""); copied. */
MoeStatus moe_store_open(MoeStore *s, const char *dir, const char *who);

/* Starts to copy n_bytes from `data` to the slot (load: from the slot to data); data is borrowed until the ticket's wait. A slot
 * is loaded after the wait for its last offload, with at most as many bytes. A ticket may have several copies under way. */
MoeStatus moe_store_start(MoeStore *s, size_t ticket, size_t slot, bool load, void *data,
                          int64_t n_bytes);
/* Whether all copies of the ticket have ended, waiting up to so many seconds. */
bool moe_store_done(MoeStore *s, size_t ticket, double seconds);
/* What went wrong with loads since the last call; the ticket is done. */
MoeStatus moe_store_result(MoeStore *s, size_t ticket);

/* Bytes of slots in the process's memory, as far as they were used; nothing is under way. */
int64_t moe_store_memory(const MoeStore *s);
int64_t moe_store_moved(MoeStore *s); /* bytes offloaded so far */
void moe_store_destroy(MoeStore *s);  /* waits for what is under way; NULL is fine */

#endif
