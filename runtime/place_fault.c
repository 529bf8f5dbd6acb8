/* See place_fault.h. */
#include "runtime/place_fault.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const names[] = {
#define X(id, name) #name,
    MOE_PLACE_POINTS(X)
#undef X
};

static atomic_int times;

void moe_place_fault_reset(void) {
    atomic_store(&times, 0);
}

MoeStatus moe_place_point(int rank, MoePlacePoint point, void *staged, int64_t bytes) {
    const char *text = getenv("MOEC_MOVE_FAULT");
    char what[8], name[16];
    int at, n;
    if (!text || sscanf(text, "%7s %15s %d %d", what, name, &at, &n) != 4 || rank != at ||
        strcmp(name, names[point]) || atomic_fetch_add(&times, 1) + 1 != n)
        return NULL;
    if (!strcmp(what, "kill")) {
        (void)kill(getpid(), SIGKILL);
        for (;;) /* until it arrives */
            (void)pause();
    }
    if (!strcmp(what, "flip") && staged && bytes)
        ((char *)staged)[bytes / 2] ^= 4;
    if (!strcmp(what, "fail"))
        return moe_error(MOE_E_IO, "a fault at \"%s\", asked for with MOEC_MOVE_FAULT", name);
    return NULL;
}
