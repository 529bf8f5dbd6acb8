/* Where a rank stands, as moe_comm_phase says: for the messages that other ranks get. For those who write a communicator. */
#ifndef MOE_RUNTIME_COMM_PLACE_H
#define MOE_RUNTIME_COMM_PLACE_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    int64_t step;
    char phase[96]; /* "" until the first moe_comm_phase */
} MoeCommPlace;

#define MOE_COMM_PLACE_TEXT 160

void moe_comm_place_set(MoeCommPlace *p, int64_t step, const char *phase);
/* "rank 2 (step 17, forward layers.3)", "rank 2 (before its first step)"; out has MOE_COMM_PLACE_TEXT bytes; returns it. */
char *moe_comm_place_text(int rank, const MoeCommPlace *p, char *out);

#endif
