/* Which cores a process may use, told to others. See cores.h. */
#include "base/cores.h"

#include <sched.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "base/io.h"
#include "base/pool.h"

uint64_t moe_host_id(void) {
    char *boot = NULL;
    size_t n = 0;
    struct stat names;
    MoeStatus st = moe_file_read("/proc/sys/kernel/random/boot_id", 4096, &boot, &n);
    if (st || stat("/proc/self/ns/pid", &names) != 0) {
        moe_status_free(st);
        free(boot);
        return 0;
    }
    uint64_t both[2] = {moe_hash_64(boot, n), (uint64_t)names.st_ino};
    free(boot);
    return moe_hash_64(both, sizeof both);
}

MoeCores moe_cores_of_process(int threads) {
    MoeCores c = {.host = moe_host_id(), .threads = threads, .usable = moe_cpu_count()};
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0)
        return c; /* more than 1024 cores: the count will do */
    for (int i = 0; i < MOE_CORE_WORDS * 64 && i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &set))
            c.mask[i / 64] |= 1ull << (i % 64);
    return c;
}

static int count_bits(const uint64_t *mask) {
    int n = 0;
    for (int i = 0; i < MOE_CORE_WORDS; i++)
        for (uint64_t w = mask[i]; w; w &= w - 1)
            n++;
    return n;
}

static int smaller(int a, int b) {
    return a < b ? a : b;
}

/* Of the processes on the host of process `first`. */
static int busy_of_host(const MoeCores *all, int n, int first) {
    uint64_t mask[MOE_CORE_WORDS] = {0};
    int threads = 0, quota = 0;
    for (int i = first; i < n; i++) {
        if (all[i].host != all[first].host)
            continue;
        threads += all[i].threads;
        for (int w = 0; w < MOE_CORE_WORDS; w++)
            mask[w] |= all[i].mask[w];
        if (all[i].usable < count_bits(all[i].mask) && all[i].usable > quota)
            quota = all[i].usable;
    }
    int cores = smaller(threads, count_bits(mask));
    return quota ? smaller(cores, quota) : cores;
}

int moe_cores_busy(const MoeCores *all, int n) {
    int cores = 0;
    for (int i = 0; i < n; i++) {
        bool known = all[i].host != 0 && count_bits(all[i].mask) > 0, first = true;
        for (int k = 0; k < i && known; k++)
            first &= all[k].host != all[i].host;
        if (!known)
            cores += smaller(all[i].threads, all[i].usable);
        else if (first)
            cores += busy_of_host(all, n, i);
    }
    return cores > 0 ? cores : 1;
}
