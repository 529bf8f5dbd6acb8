/* Shared by the files that write plan.json: the plan and one program while they are written. */
#ifndef MOE_PASSES_PLAN_JSON_INTERNAL_H
#define MOE_PASSES_PLAN_JSON_INTERNAL_H

#include "passes/plan_json.h"

/* Members of an object that is being written. */
static inline void set(json_t *o, const char *key, json_t *v) {
    json_object_set_new(o, key, v);
}
static inline void set_i(json_t *o, const char *key, int64_t v) {
    set(o, key, json_integer(v));
}
static inline void set_s(json_t *o, const char *key, const char *v) {
    set(o, key, json_string(v ? v : ""));
}

typedef struct {
    const char *name; /* of the buffer */
    const MoeOp *op;  /* PARAM or STATE, as first declared */
} MoePlanShared;

typedef struct {
    MoePassContext *cx;
    MoePlanShared *shared;
    size_t n_shared, cap_shared;
} MoePlanJson;

typedef struct {
    const MoePlanJson *plan;
    const MoeProgram *p;
    json_t *values;
    int *index; /* by value id: entry of its memory; -1 = not mentioned yet */
} MoePlanWriter;

/* plan_json_params.c. */
MoeStatus moe_plan_collect_shared(MoePlanJson *p);
json_t *moe_plan_json_buffers(const MoePlanJson *p);
json_t *moe_plan_json_params(const MoePlanJson *p);
/* Of a PARAM or STATE; in the arena. */
const char *moe_plan_shared_name(const MoeOp *op, MoeArena *a);
int moe_plan_find_shared(const MoePlanJson *p, const char *name); /* -1: none */
json_t *moe_plan_json_dims(const MoeType *t);

/* The entry of the memory that v lives in; made when it is first asked for. */
int moe_plan_value_entry(MoePlanWriter *w, const MoeValue *v);

/* plan_json_comm.c. What a step of COMM ops adds to the members that all steps have: "comm", "start"; of a `wait`: "wait", the
 * index in plan.json of the step that it ends. json_step: by group, that index. */
void moe_plan_json_comm(MoePlanWriter *w, size_t step, const int *json_step, json_t *o);
/* plan_json_store.c. The capacities of the slots outside the slab; what a step of STORE ops adds: "store". */
json_t *moe_plan_json_offloaded(const MoeGraph *g);
void moe_plan_json_store(MoePlanWriter *w, size_t step, json_t *o);
/* plan_json_place.c. How the work of a kernel's step goes by rows of experts: "live"; nothing where it does not. The costs of the
 * MoE layers' maps; NULL: there are none. */
void moe_plan_json_live(MoePlanWriter *w, const MoeGroup *g, json_t *o);
json_t *moe_plan_json_placement(const MoePassContext *cx);
/* plan_json_shape.c. What a kernel's step adds on a device that is told the shape of launches: "grid", "block", "shared", "maps". */
void moe_plan_json_shape(const MoeLaunchShape *s, json_t *o);
/* The same file: what a launch adds that is one product over dense rows: "dense"; d may be NULL. */
void moe_plan_json_dense(const MoeDense *d, json_t *o);
/* The same of attention: "attention". */
void moe_plan_json_attention(MoePlanWriter *w, const MoeAttention *a, json_t *o);
/* What a kernel's step adds when it works on one chunk of slots: "slots", "segs". */
void moe_plan_json_slots(MoePlanWriter *w, const MoeGroup *g, json_t *o);

#endif
