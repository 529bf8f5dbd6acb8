/* The mesh of ranks and how parameters are sliced over it (docs/RANKS.md). Pure arithmetic: the shard pass, the plan writer,
 * the runtime and tests all take it from here.
 *
 * world = dp x shard x ep x tp; rank = ((i_dp*shard + i_shard)*ep + i_ep)*tp + i_tp. A data rank is rank / tp: ranks that
 * differ in i_tp alone work on the same data. Expert tensors are split over ep (slots), then over shard; all others over
 * dense_shard parts of the shard*ep ranks that share i_dp.
 *
 * Ranges of layers may divide the same data ranks otherwise for their experts: division 0 is the mesh's own dp, shard and ep,
 * division k > 0 that of ranges[k-1]. Data ranks, tp and everything that is no expert's stay as they are. */
#ifndef MOE_BASE_MESH_H
#define MOE_BASE_MESH_H

#include <stdbool.h>
#include <stdint.h>
#include "base/status.h"

#define MOE_MAX_RANKS   4096
#define MOE_SLICE_BLOCK 4096 /* slices are cut at these elements: the gradient norm's blocks */

#define MOE_MAX_RANGES  15
#define MOE_MAX_EXTRA_SLOTS 1024

/* MoE layers first..last; dp*shard*ep is the mesh's. */
typedef struct {
    int first, last, dp, shard, ep;
} MoeMeshRange;

typedef struct {
    int dp, shard, ep, tp; /* degrees, each >= 1 */
    int dense_shard;       /* parts of a parameter that is no expert's; divides shard*ep */
    int n_ranges;
    MoeMeshRange ranges[MOE_MAX_RANGES];
    int extra_slots; /* >= 0: of an EP rank, for copies of experts; none where ep is 1 */
} MoeMesh;

MoeMesh moe_mesh_one(void); /* one rank */
int moe_mesh_size(const MoeMesh *m);
int moe_mesh_data_ranks(const MoeMesh *m); /* dp*shard*ep */

typedef struct {
    int dp, shard, ep, tp, data; /* data = rank / tp */
} MoeCoords;
MoeCoords moe_mesh_coords(const MoeMesh *m, int rank);

/* The division of a layer's experts: of ranges with the same degrees the first, 0 if they are the mesh's own. */
int moe_mesh_of_layer(const MoeMesh *m, int layer);
/* The division as a mesh without ranges, for what is an expert's (its dense_shard is 1). k <= n_ranges. */
MoeMesh moe_mesh_division(const MoeMesh *m, int k);
/* Inputs of a rank by division: "tok_ep", "tok_ep.1". name has room for 32 bytes. */
void moe_mesh_input_name(const char *what, int k, char *name);
/* Whether `name` is that input of any division. */
bool moe_mesh_is_input(const char *name, const char *what, int *out_k);

/* Groups of ranks that a collective runs in. GROUP(ID, name): the ranks that differ from this one in ... alone */
#define MOE_MESH_GROUPS(X)                                                                         \
    X(WORLD, world)               /* everything */                                                 \
    X(DATA, data)                 /* dp, shard, ep: the data ranks with this i_tp */               \
    X(EP, ep)                     /* ep */                                                         \
    X(EXPERT_DATA, expert_data)   /* dp, shard: those that hold the same experts */                \
    X(EXPERT_SHARD, expert_shard) /* shard: those that share out one expert's tensors */           \
    X(DENSE_SHARD, dense_shard)   /* those that share out one other tensor */                      \
    X(TP, tp)                     /* tp */
typedef enum {
#define X(id, name) MOE_GROUP_##id,
    MOE_MESH_GROUPS(X)
#undef X
        MOE_N_OWN_GROUPS,
    /* then ep, expert_data, expert_shard of each other division: "ep.1", "expert_data.1", ... */
    MOE_N_GROUPS = MOE_N_OWN_GROUPS + 3 * MOE_MAX_RANGES
} MoeMeshGroup;
/* The group of division k that g is in the mesh's own: g itself unless it is ep, expert_data or expert_shard. */
MoeMeshGroup moe_mesh_group_in(MoeMeshGroup g, int k);
MoeMeshGroup moe_mesh_group_kind(MoeMeshGroup g); /* the reverse: one of the mesh's own */
int moe_mesh_group_division(MoeMeshGroup g);
bool moe_mesh_has_group(const MoeMesh *m, MoeMeshGroup g);
const char *moe_mesh_group_name(MoeMeshGroup g);
bool moe_mesh_group_from_name(const char *name, MoeMeshGroup *out);
/* Of groups that the mesh has (moe_mesh_has_group). */
int moe_mesh_group_size(const MoeMesh *m, MoeMeshGroup g);
/* World ranks of `rank`'s group, ascending in the order of slices (and of virtual shards); out has room for the group's size.
 * Returns rank's own position. */
int moe_mesh_group_ranks(const MoeMesh *m, int rank, MoeMeshGroup g, int *out);

/* MOE_E_MISUSE naming the numbers: degrees >= 1; data ranks a power of two and at most virtual_shards / micro_batches;
 * dense_shard divides shard*ep; at most MOE_MAX_RANKS and MOE_MAX_EXTRA_SLOTS; ranges of layers in order, apart, of as many data ranks. */
MoeStatus moe_mesh_check(const MoeMesh *m, int virtual_shards, int micro_batches);

/* Part `index` of `parts` of n elements, cut at multiples of `unit`: elements [first, first + count); count may be 0. Buffers
 * hold `cap` elements, the same for all parts (the rest is zero): min(n, ceil(ceil(n/unit) / parts) * unit). */
typedef struct {
    int64_t first, count, cap;
} MoeSlice;
MoeSlice moe_slice(int64_t n, int64_t unit, int parts, int index);

/* How n ranks add up f32 tensors (`outer` rows of `elements`, each row sliced in `parts` at multiples of `unit`; parts = 1:
 * all want the whole). A rank takes in its share of the n-1 others' terms. Directly, the share is its slice; in two turns
 * (where that saves enough traffic) the n/parts ranks that want the same slice add up a part of it each, cut at
 * MOE_SUM_PART elements, and then send these to each other. The same bits either way. */
#define MOE_SUM_PART 16
typedef struct {
    bool twice;
    int64_t share;       /* elements of a row, at most */
    int64_t stage_bytes; /* room for the others' terms, whole 64s */
    int64_t sent_bytes;  /* by a rank, both turns, at most */
} MoeSumShares;
MoeSumShares moe_sum_shares(int n, int parts, int64_t elements, int64_t unit, int64_t outer);

/* Slots: each EP rank has `slots` places for experts: ceil(E/ep), and with ep > 1 the extra ones. Global slot g = i_ep*slots + slot.
 * The map of a layer gives for each expert its global slot; at first expert e is on rank e / ceil(E/ep), in order. */
int moe_mesh_slots(const MoeMesh *m, int experts);
/* Whether experts may have copies: the mesh is a division. */
bool moe_mesh_has_copies(const MoeMesh *m);

/* Virtual shards of micro-batch m that data rank d owns: the aligned run [*first, *first + V/(M*D)). */
int moe_mesh_shard_run(const MoeMesh *m, int virtual_shards, int micro_batches, int micro_batch,
                       int data_rank, int *out_first);
/* The most sequences that a data rank has in any micro-batch. */
int64_t moe_mesh_most_sequences(const MoeMesh *m, int64_t batch, int micro_batches);

#endif
