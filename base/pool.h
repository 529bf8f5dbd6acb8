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
int moe_cpu_count(void); /* usable cores of this process: affinity and cgroup quota, at least 1 */
double moe_now(void);    /* monotonic seconds */

#endif
