/* What a kernel compiled for the simulator and the simulator tell each other: plain C, read by both.
 *
 * A compiled unit is a shared object with one symbol `moe_sim_module` (MoeSimModule) and one `moe_sim_entry_NAME`
 * (MoeSimEntry) for each kernel. The simulator fills in `self` before a thread goes on and `api` when it loads the unit.
 * Threads of a block are coroutines of one thread of the host: nothing here needs locks, and any call may switch. */
#ifndef MOE_TESTS_SIM_KERNEL_API_H
#define MOE_TESTS_SIM_KERNEL_API_H

enum { MOE_SIM_VERSION = 1, MOE_SIM_PARAMS = 8, MOE_SIM_DATA = 96 };

typedef struct {
    unsigned x, y, z;
} MoeSimDim;

/* A thread as its kernel sees it. */
typedef struct {
    MoeSimDim thread, block, block_dim, grid_dim;
    unsigned lane, warp;
    char *shared; /* the block's dynamic shared memory */
    unsigned shared_bytes;
} MoeSimSelf;

/* What a group of lanes does together: args[i] is what the i-th lane brought, NULL for lanes that take no part. */
typedef void (*MoeSimTogether)(void *const *args);
/* A copy or product that may land later than where it stands; data: as it was handed over. */
typedef void (*MoeSimLater)(void *data);

typedef enum { MOE_SIM_SYNC, MOE_SIM_OR, MOE_SIM_AND, MOE_SIM_COUNT, MOE_SIM_ARRIVE } MoeSimBarrier;

/* Queues of copies and products whose end is waited for by number: a thread's copies, a warpgroup's products, a thread's
 * copies out of shared memory by tensor map. */
typedef enum {
    MOE_SIM_COPIES,
    MOE_SIM_PRODUCTS,
    MOE_SIM_STORES,
    MOE_SIM_N_QUEUES,
    MOE_SIM_COPIES_END, /* push: among the copies, but not before those that are there */
} MoeSimQueue;

typedef struct {
    /* Waits for the lanes of the warp named in mask, all with the same mask and `what`; then `act` runs once for all. */
    void (*warp)(unsigned mask, const char *what, MoeSimTogether act, void *arg);
    /* The same for the 128 threads of a warpgroup. */
    void (*warpgroup)(const char *what, MoeSimTogether act, void *arg);
    /* Barrier `id` of the block, of `threads` threads (0: all). The result of OR, AND and COUNT over `value`. */
    int (*barrier)(unsigned id, unsigned threads, MoeSimBarrier kind, int value);
    /* Goes on once ready(arg) is true. */
    void (*wait)(const char *what, int (*ready)(void *arg), void *arg);
    /* Lets other threads run: for loops that look again and again. */
    void (*relax)(const char *what);
    /* A copy or product of `bytes` bytes of data (MOE_SIM_DATA at most), at once or later, as it pleases the simulator, but
     * before a wait that covers it ends. */
    void (*push)(MoeSimQueue q, MoeSimLater act, const void *data, unsigned bytes);
    void (*commit)(MoeSimQueue q);            /* what was pushed since the last one is a group */
    void (*drain)(MoeSimQueue q, unsigned n); /* all groups but the latest n have landed */
    /* The same for the whole block, waited for by other means (an mbarrier): lands when it pleases. */
    void (*later)(MoeSimLater act, const void *data, unsigned bytes);
    unsigned (*shared_addr)(const void *p); /* in the block's window of 32-bit addresses */
    void *(*shared_at)(unsigned addr, unsigned bytes); /* and back; bytes that must be inside */
    /* What a tensor map says (tensor_map.h); an error if the driver never made it. */
    const void *(*tensor_map)(const void *map);
    void (*fail)(
        const char *why); /* ends the kernel: a launch failure that says so; does not return */
} MoeSimApi;

typedef struct {
    unsigned version;
    MoeSimSelf *self;
    const MoeSimApi *api;
    char *shared, *shared_end; /* static shared memory of all kernels of the unit */
} MoeSimModule;

typedef struct {
    unsigned threads; /* of __launch_bounds__ */
    unsigned n_params, param_bytes[MOE_SIM_PARAMS];
    void (*call)(void *const *params);
} MoeSimEntry;

#endif
