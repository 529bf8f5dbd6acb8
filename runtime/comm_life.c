/* Threads at work, from /proc. See comm_life.h. */
#include "runtime/comm_life.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

int moe_thread_id(void) {
    static _Thread_local int id;
    if (!id)
        id = (int)gettid();
    return id;
}

bool moe_thread_at_work(int thread_id, int64_t *ticks) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", thread_id);
    FILE *f = fopen(path, "r");
    if (!f)
        return false;
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = 0;
    /* "id (name) state ..., user and system time being fields 14 and 15; the name may hold anything. */
    const char *end = strrchr(text, ')');
    char state;
    unsigned long user, system;
    if (!end || sscanf(end + 1, " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &state,
                       &user, &system) != 3)
        return false;
    int64_t now = (int64_t)(user + system) + 1;
    bool worked = now != *ticks;
    *ticks = now;
    return worked || state == 'D';
}
