/* Reading JSON (jansson) with errors that name file and key, and the caps for hostile input.
 * A MoeJson points into a document owned by a MoeJsonDoc. */
#ifndef MOE_BASE_JSON_H
#define MOE_BASE_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include "base/status.h"
#include "base/str.h"

/* Parses a whole file (or text); duplicate keys are errors, depth is capped by jansson at 2048, size at max_bytes.
 * The error names file:line:col. *out is owned by the caller: json_decref. */
MoeStatus moe_json_load_file(const char *path, size_t max_bytes, json_t **out);
MoeStatus moe_json_load_text(const char *text, size_t n, const char *name, json_t **out);

/* Typed getters on an object. `where` names the object in errors ("config.json", "plan.json: buffers[3]").
 * Without the key: `required` makes it an error, else *out keeps its value. null counts as absent.
 * A wrong type is an error that says what was found and what was expected. */
MoeStatus moe_json_i64(const json_t *obj, const char *where, const char *key, bool required,
                       int64_t *out);
MoeStatus moe_json_f64(const json_t *obj, const char *where, const char *key, bool required,
                       double *out);
MoeStatus moe_json_bool(const json_t *obj, const char *where, const char *key, bool required,
                        bool *out);
MoeStatus moe_json_str(const json_t *obj, const char *where, const char *key, bool required,
                       const char **out); /* borrowed */
MoeStatus moe_json_array(const json_t *obj, const char *where, const char *key, bool required,
                         json_t **out); /* borrowed */
MoeStatus moe_json_object(const json_t *obj, const char *where, const char *key, bool required,
                          json_t **out); /* borrowed */

/* Deterministic text: sorted nothing (insertion order kept), indent 1, reals with 17 digits, trailing newline. */
void moe_json_dump(const json_t *v, MoeStr *out);

#endif
