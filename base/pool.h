/* Thread pool: runs task indices 0..n-1 on n_threads threads, the caller among them. Which thread runs which task
 * is not fixed, so tasks must write disjoint memory and depend on their index alone: results never depend on the
 * number of threads. Threads spin briefly, then sleep. */
#ifndef MOE_BASE_POOL_H
#define MOE_BASE_POOL_H

#include <stdint.h>
#include "base/status.h"

typedef struct MoePool MoePool;
/* thread: 0..n_threads-1, for per-thread scratch. */
typedef void (*MoePoolFn)(void *ctx, int64_t task, int thread);

MoeStatus moe_pool_create(int n_threads, MoePool **out); /* n_threads >= 1 */
int moe_pool_threads(const MoePool *p);
void moe_pool_run(MoePool *p, int64_t n_tasks, MoePoolFn fn,
                  void *ctx); /* returns when all have run */
void moe_pool_destroy(MoePool *p);

/* CPU time of launches that were shared out over the threads (several tasks, several threads), in seconds. */
typedef struct {
    double caller; /* of the calling thread, from a launch's start to its end */
    double tasks;  /* of all threads, in tasks */
} MoePoolCpu;
void moe_pool_count_cpu(MoePool *p); /* starts to count; before the first launch */
MoePoolCpu
moe_pool_cpu(const MoePool *p); /* so far; asked by the calling thread, between launches */

int moe_cpu_count(void); /* usable cores of this process: affinity and cgroup quota, at least 1 */
double moe_now(void);    /* monotonic seconds */
double moe_thread_cpu(void); /* CPU seconds of the calling thread */

#endif
