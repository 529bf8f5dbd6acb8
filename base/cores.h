/* The cores that processes may use, in a form that they tell each other: how many of them several processes can keep busy, with
 * those that they share counted once. */
#ifndef MOE_BASE_CORES_H
#define MOE_BASE_CORES_H

#include <stdint.h>

enum { MOE_CORE_WORDS = 16 };

typedef struct {
    uint64_t host;   /* the same on all processes of a host (and container); 0: unknown */
    int32_t threads; /* that compute in this process (or for this rank) */
    int32_t usable;  /* as moe_cpu_count says: fewer than in the mask under a quota */
    uint64_t mask[MOE_CORE_WORDS]; /* a bit for each core that threads may run on; all 0: unknown */
} MoeCores;

/* A host's identity; 0 when it cannot be known. */
uint64_t moe_host_id(void);
MoeCores moe_cores_of_process(int threads);
/* Cores that all of them together can keep busy: of each host at most as many as they have threads there, as are in any of
 * their masks, and as a quota leaves, which processes of one host are taken to share. At least 1. */
int moe_cores_busy(const MoeCores *all, int n);

#endif
