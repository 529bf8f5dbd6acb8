/* Typed reading of plan.json's entries, shared by plan_read.c and plan_read_program.c: the first
 * error sticks. */
#ifndef MOE_RUNTIME_PLAN_READER_H
#define MOE_RUNTIME_PLAN_READER_H

#include "runtime/plan_read.h"

#define MOE_PLAN_MAX_DIM   ((int64_t)1 << 40)
#define MOE_PLAN_MAX_BYTES ((int64_t)1 << 50)

/* The first error sticks: readers go on with harmless values and the caller looks at `st` at the
 * end of each entry. */
typedef struct {
    MoePlan *plan;
    const char *name;
    MoeStatus st;
    char at[512]; /* path of the entry being read */
} MoePlanReader;

/* Where the reader is, for errors. */
void moe_plan_at(MoePlanReader *r, const char *fmt, ...) MOE_PRINTF(2, 3);
/* "NAME: damaged plan: AT.KEY TEXT; compile it again", unless there is an error already. */
void moe_plan_fail(MoePlanReader *r, const char *key, const char *fmt, ...) MOE_PRINTF(3, 4);
int64_t moe_plan_int(MoePlanReader *r, const json_t *o, const char *key, int64_t lo, int64_t hi);
/* Finite and >= 0; absent is 0 unless required. */
double moe_plan_num(MoePlanReader *r, const json_t *o, const char *key, bool required);
bool moe_plan_bool(MoePlanReader *r, const json_t *o, const char *key);
/* Never NULL; "" after an error. */
const char *moe_plan_str(MoePlanReader *r, const json_t *o, const char *key);
/* The array, its length in *out_n (0 on error). */
const json_t *moe_plan_array(MoePlanReader *r, const json_t *o, const char *key, size_t *out_n);
MoePlanDtype moe_plan_dtype(MoePlanReader *r, const json_t *o);
/* dims -> rank and elements. */
void moe_plan_dims(MoePlanReader *r, const json_t *o, int *out_rank, int64_t dims[8],
                   int64_t *out_elements);
const char *moe_plan_kind(const json_t *v); /* "an object", ..., for errors */

/* plan_read_program.c: one program; buffers and the plan's numbers are read already. */
void moe_plan_read_program(MoePlanReader *r, const char *name, const json_t *o, MoePlanProgram *g);
/* An index into the program's values; 0 after an error. */
int moe_plan_value(MoePlanReader *r, const json_t *v, const MoePlanProgram *g, const char *key);
/* plan_read_store.c: the capacities of slots outside the slab; step i as offloads or loads; whether what is loaded was offloaded. */
void moe_plan_read_slot_bytes(MoePlanReader *r, const json_t *o, MoePlanProgram *g);
void moe_plan_read_store(MoePlanReader *r, const json_t *o, MoePlanProgram *g, size_t i);
void moe_plan_check_moves(MoePlanReader *r, const MoePlanProgram *g);
/* plan_read_comm.c: step i as an exchange, or as the wait for an earlier one. */
void moe_plan_read_comm(MoePlanReader *r, const json_t *o, MoePlanProgram *g, size_t i);
void moe_plan_read_wait(MoePlanReader *r, const json_t *o, MoePlanProgram *g, size_t i);
/* The slots that the kernel of step i works on, if not on all. */
void moe_plan_read_slots(MoePlanReader *r, const json_t *o, MoePlanProgram *g, size_t i);
/* plan_read_place.c: how the work of step i goes by rows of experts; the costs of the layers' maps. */
void moe_plan_read_live(MoePlanReader *r, const json_t *o, MoePlanProgram *g, size_t i);
void moe_plan_read_placement(MoePlanReader *r, const json_t *root);
/* plan_read_shape.c: how a GPU runs the kernel of step i. */
void moe_plan_read_shape(MoePlanReader *r, const json_t *o, MoePlanProgram *g, size_t i);
/* plan_read_dense.c: the product that step i is, if it is one. */
void moe_plan_read_dense(MoePlanReader *r, const json_t *o, MoePlanProgram *g, size_t i);
/* plan_read_attn.c: which attention begins with step i, if one does; once all steps are read, whether those behind it are there. */
void moe_plan_read_attn(MoePlanReader *r, const json_t *o, MoePlanProgram *g, size_t i);
void moe_plan_check_attn(MoePlanReader *r, const MoePlanProgram *g);
/* Every exchange that is started ends. */
void moe_plan_check_waits(MoePlanReader *r, MoePlanProgram *g);

#endif
