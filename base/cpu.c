/* How many cores this process may use, and the clock (declared in pool.h). */
#include <math.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/pool.h"

double moe_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int affinity_count(void) {
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    int n = online > 0 ? (int)online : 1;
    for (int bits = 1024; bits <= 1 << 20;
         bits *= 4) { /* the kernel's mask may be larger than ours */
        cpu_set_t *set = CPU_ALLOC((size_t)bits);
        if (!set)
            break;
        size_t bytes = CPU_ALLOC_SIZE((size_t)bits);
        int rc = sched_getaffinity(0, bytes, set);
        int count = rc == 0 ? CPU_COUNT_S(bytes, set) : 0;
        CPU_FREE(set);
        if (rc == 0 && count > 0)
            return count;
    }
    return n;
}

/* Cores of one cgroup v2 directory's cpu.max ("max 100000" or "150000 100000"); HUGE_VAL without a
 * limit. */
static double cgroup_limit(const char *dir) {
    char path[4400], quota[32];
    double period = 0, limit = 0;
    snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max", dir);
    FILE *f = fopen(path, "r");
    if (!f)
        return HUGE_VAL;
    int n = fscanf(f, "%31s %lf", quota, &period);
    fclose(f);
    if (n != 2 || sscanf(quota, "%lf", &limit) != 1 || !(limit > 0) || !(period > 0))
        return HUGE_VAL;
    return limit / period;
}

static double cgroup_v1_limit(void) {
    double quota = -1, period = 0;
    FILE *q = fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "r");
    FILE *p = fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "r");
    bool ok = q && p && fscanf(q, "%lf", &quota) == 1 && fscanf(p, "%lf", &period) == 1;
    if (q)
        fclose(q);
    if (p)
        fclose(p);
    return ok && quota > 0 && period > 0 ? quota / period : HUGE_VAL;
}

/* The tightest limit from this process's group up to the root. */
static double cgroup_quota(void) {
    double limit = cgroup_v1_limit();
    char line[4200] = "", dir[4096] = "";
    FILE *f = fopen("/proc/self/cgroup", "r");
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, "0::", 3))
            snprintf(dir, sizeof dir, "%.*s", (int)strcspn(line + 3, "\n"), line + 3);
    if (f)
        fclose(f);
    for (;;) {
        double here = cgroup_limit(dir);
        limit = here < limit ? here : limit;
        char *slash = strrchr(dir, '/');
        if (!slash)
            return limit;
        *slash = '\0';
    }
}

int moe_cpu_count(void) {
    int n = affinity_count();
    double quota = ceil(cgroup_quota());
    if (quota < n)
        n = quota < 1 ? 1 : (int)quota;
    return n;
}
