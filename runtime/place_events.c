/* See place_events.h. */
#include "runtime/place_events.h"

#include <math.h>
#include <stdlib.h>

#include "base/json.h"
#include "placement/map_json.h"

static const char *const verdicts[] = {[MOE_PLACE_KEPT] = "kept",
                                       [MOE_PLACE_CHANGED] = "changed",
                                       [MOE_PLACE_TOO_DEAR] = "too dear",
                                       [MOE_PLACE_REFUSED] = "refused"};

static void put(MoeStr *out, json_t *event) {
    char *text = event ? json_dumps(event, JSON_REAL_PRECISION(17)) : NULL;
    if (text)
        moe_str_printf(out, "%s\n", text);
    free(text);
    json_decref(event);
}

static json_t *number(double v) {
    return isfinite(v) ? json_real(v) : json_null();
}

void moe_place_put_decision(MoeStr *out, int64_t step, int layer, const MoePlaceDecision *d,
                            const MoePlaceMap *map) {
    if (d->verdict == MOE_PLACE_KEPT)
        return;
    json_t *event = json_pack("{s:I, s:s, s:i, s:s}", "step", (json_int_t)step, "event", "decision",
                              "layer", layer, "verdict", verdicts[d->verdict]);
    if (d->verdict == MOE_PLACE_REFUSED)
        json_object_set_new(event, "why", json_string(d->why));
    if (d->verdict == MOE_PLACE_CHANGED || d->verdict == MOE_PLACE_TOO_DEAR) {
        json_object_set_new(event, "gain", number(d->gain));
        json_object_set_new(event, "cost", number(d->cost));
        json_object_set_new(event, "before", number(d->before));
        json_object_set_new(event, "after", number(d->after));
        json_object_set_new(event, "arrivals", json_integer(d->arrivals));
        json_object_set_new(event, "moves", json_integer(d->moves));
    }
    if (d->verdict == MOE_PLACE_CHANGED)
        json_object_update_missing_new(event, moe_place_map_json(layer, map));
    put(out, event);
}

void moe_place_put_failure(MoeStr *out, int64_t step, const char *why, int batches) {
    put(out, json_pack("{s:I, s:s, s:s, s:i}", "step", (json_int_t)step, "event", "failure", "why",
                       why, "batches", batches));
}

void moe_place_put_change(MoeStr *out, int64_t step, bool changed,
                          const int counts[MOE_PLACE_VERDICTS], const MoePlaceChange *c) {
    json_t *event =
        json_pack("{s:I, s:s}", "step", (json_int_t)step, "event", changed ? "move" : "asked");
    for (int i = 0; i < MOE_PLACE_VERDICTS; i++)
        json_object_set_new(event, verdicts[i], json_integer(counts[i]));
    if (changed) {
        json_object_set_new(event, "experts", json_integer(c->experts));
        json_object_set_new(event, "bytes", json_integer(c->bytes));
        json_object_set_new(event, "staging_bytes", json_integer(c->staging_bytes));
        json_object_set_new(event, "batches", json_integer(c->batches));
    }
    json_object_set_new(event, "decide_seconds", number(c->decide_seconds));
    json_object_set_new(event, "seconds", number(c->seconds));
    json_object_set_new(event, "emulated_seconds", number(c->emulated_seconds));
    put(out, event);
}
