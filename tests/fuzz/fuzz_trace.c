/* libFuzzer target: a load trace in any format. What is read has sizes that agree and counts that are none below zero; from any number
 * of sources it is the same load; written as CSV it is read back. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/assert.h"
#include "placement/load.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static int64_t total(const MoeLoad *l, int step, int layer) {
    int64_t sum = 0;
    const int32_t *c = moe_load_at(l, step, layer);
    for (int i = 0; i < l->sources * l->experts; i++) {
        MOE_ASSERT(c[i] >= 0, "a count of %d", (int)c[i]);
        sum += c[i];
    }
    return sum;
}

static void check(const MoeLoad *l, MoeArena *a, const char *copy) {
    MoeLoad other, again;
    bool divided;
    MOE_ASSERT(l->steps > 0 && l->layers > 0 && l->sources > 0 && l->experts > 0 &&
                   l->first_step >= 0,
               "a trace without anything");
    if ((int64_t)l->steps * l->layers * l->sources * l->experts > 1 << 20)
        return;
    MoeStatus st = moe_load_sources(l, l->sources > 3 ? 3 : 5, a, &other, &divided);
    MOE_ASSERT(!st, "%s", moe_status_message(st));
    for (int s = 0; s < l->steps; s++)
        for (int k = 0; k < l->layers; k++)
            MOE_ASSERT(total(l, s, k) == total(&other, s, k), "step %d, layer %d: rows lost", s, k);
    st = moe_load_write(copy, l);
    MOE_ASSERT(!st, "%s", moe_status_message(st));
    st = moe_load_read(copy, a, &again);
    MOE_ASSERT(!st, "%s", moe_status_message(st));
    MOE_ASSERT(again.steps == l->steps && again.layers == l->layers &&
                   again.sources == l->sources && again.experts == l->experts &&
                   again.first_step == l->first_step,
               "other sizes");
    size_t bytes = sizeof(int32_t) * (size_t)l->steps * (size_t)l->layers * (size_t)l->sources *
                   (size_t)l->experts;
    MOE_ASSERT(!memcmp(again.counts, l->counts, bytes), "other counts");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    static int fd = -1;
    static char path[64], copy[64];
    if (fd < 0) {
        fd = memfd_create("fuzz", 0);
        MOE_ASSERT(fd >= 0, "memfd_create");
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        snprintf(copy, sizeof copy, "/tmp/moec-fuzz-trace.%d", (int)getpid());
    }
    MOE_ASSERT(ftruncate(fd, 0) == 0 && pwrite(fd, data, n, 0) == (ssize_t)n,
               "cannot write the input");
    MoeArena *a = moe_arena_create();
    MoeLoad l;
    MoeStatus st = moe_load_read(path, a, &l);
    if (st)
        moe_status_free(st);
    else
        check(&l, a, copy);
    moe_arena_destroy(a);
    unlink(copy);
    return 0;
}
