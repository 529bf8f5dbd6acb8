/* Whether a thread of this process is at work: for the communicator of ranks as threads, where one that computes or writes a
 * checkpoint for long makes no calls and yet is not lost. */
#ifndef MOE_RUNTIME_COMM_LIFE_H
#define MOE_RUNTIME_COMM_LIFE_H

#include <stdbool.h>
#include <stdint.h>

int moe_thread_id(void); /* of the calling thread; cheap */
/* It has used CPU time since *ticks was written (which is brought up to date; 0 at first), or is waiting for a disk. False
 * where the system does not say. */
bool moe_thread_at_work(int thread_id, int64_t *ticks);

#endif
