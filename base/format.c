/* Numbers for people and for files: shortest round-trip doubles, byte counts, durations (declared
 * in str.h). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"

#define BUF_BYTES 32 /* what the callers promise */

char *moe_format_double(double v, char *buf) {
    if (isnan(v)) {
        memcpy(buf, "nan", 4);
        return buf;
    }
    if (isinf(v)) {
        snprintf(buf, BUF_BYTES, "%s", v < 0 ? "-inf" : "inf");
        return buf;
    }
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(buf, BUF_BYTES - 2, "%.*g", digits, v); /* 24 characters at most */
        if (digits == 17 || strtod(buf, NULL) == v)
            break;
    }
    if (!strpbrk(buf, ".e"))
        strcat(buf, ".0");
    return buf;
}

char *moe_format_bytes(double n_bytes, char *buf) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    size_t u = 0;
    double v = n_bytes;
    /* 1023.96 would print as "1024.0": move on to the next unit before that. */
    while (fabs(v) >= (u ? 1023.95 : 1023.5) && u + 1 < sizeof units / sizeof *units) {
        v /= 1024;
        u++;
    }
    snprintf(buf, BUF_BYTES, u ? "%.1f %s" : "%.0f %s", v, units[u]);
    return buf;
}

char *moe_format_duration(double seconds, char *buf) {
    if (!(seconds >= 0) || seconds > 1e12) { /* also NaN */
        snprintf(buf, BUF_BYTES, "?");
        return buf;
    }
    if (seconds < 1e-3)
        snprintf(buf, BUF_BYTES, "%.0fus", seconds * 1e6);
    else if (seconds < 0.9995)
        snprintf(buf, BUF_BYTES, "%.0fms", seconds * 1e3);
    else if (seconds < 59.95)
        snprintf(buf, BUF_BYTES, "%.1fs", seconds);
    else {
        long long s = llround(seconds);
        if (s < 3600)
            snprintf(buf, BUF_BYTES, "%lldm%02llds", s / 60, s % 60);
        else if (s < 86400)
            snprintf(buf, BUF_BYTES, "%lldh%02lldm", s / 3600, s / 60 % 60);
        else
            snprintf(buf, BUF_BYTES, "%lldd%02lldh", s / 86400, s / 3600 % 24);
    }
    return buf;
}
