/* Maps of experts as JSON: placement.json of a plan or a run (its first maps) or of a user, and the maps in a checkpoint's manifest.
 *   {"format_version": 1, "layers": [{"layer": 3, "slots": [[expert or -1, ...] per EP rank], "primary": [slot of expert 0, ...]}]}
 * A slot in "primary" is a global one: EP rank * slots + slot. Without "primary" an expert's copy on the lowest rank is. */
#ifndef MOE_RUNTIME_PLACE_FILE_H
#define MOE_RUNTIME_PLACE_FILE_H

#include "base/json.h"
#include "runtime/exec.h"

/* Sets the maps of the layers that the file names; the others stay. MOE_E_INPUT names file, layer and numbers. */
MoeStatus moe_place_file_read(const char *path, const MoePlan *plan, MoeExec *x);
/* All layers' maps, atomically. */
MoeStatus moe_place_file_write(const char *path, const MoePlan *plan, const MoeExec *x);
/* The array "layers" of all layers' maps. */
json_t *moe_place_json(const MoePlan *plan, const MoeExec *x);
/* Sets the maps of such an array, as far as they are of the execution's ranks and slots; the others stay. */
MoeStatus moe_place_json_take(const json_t *layers, const char *where, const MoePlan *plan,
                              MoeExec *x);

#endif
