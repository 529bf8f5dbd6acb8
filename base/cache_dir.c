/* See cache_dir.h. */
#include "base/cache_dir.h"

#include <stdlib.h>

bool moe_cache_dir(MoeStr *out) {
    const char *dir = getenv("MOEC_CACHE"), *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    size_t before = out->len;
    if (dir)
        moe_str_append(out, dir);
    else if (xdg && *xdg)
        moe_str_printf(out, "%s/moec", xdg);
    else if (home && *home)
        moe_str_printf(out, "%s/.cache/moec", home);
    return out->len > before;
}
