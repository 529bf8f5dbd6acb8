/* See dump.h. */
#include "placement/dump.h"

#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "base/json.h"

#define FLUSH_BYTES ((size_t)1 << 20)

struct MoeDump {
    MoeFileOut *file;
    MoeStr text;
    char *head; /* {"trace": ..., "policy": ... */
    const MoeLoad *load;
    int groups;
};

MoeStatus moe_dump_open(const char *path, MoeDump **out) {
    MoeDump *d = calloc(1, sizeof *d);
    if (!d)
        return moe_error(MOE_E_NOMEM, "no memory to write %s", path);
    MoeStatus st = moe_out_create(path, &d->file);
    if (st) {
        free(d);
        return st;
    }
    *out = d;
    return NULL;
}

void moe_dump_begin(MoeDump *d, const MoeLoad *load, const char *trace, const char *policy,
                    int groups) {
    json_t *head = json_pack("{s:s, s:s}", "trace", trace, "policy", policy);
    if (!head) /* a path that is no UTF-8 */
        head = json_pack("{s:s, s:s}", "trace", "?", "policy", policy);
    free(d->head);
    d->head = json_dumps(head, 0);
    json_decref(head);
    if (d->head)
        d->head[strlen(d->head) - 1] = 0; /* the brace */
    d->load = load;
    d->groups = groups;
}

static void begin_line(MoeDump *d, int64_t step, int layer) {
    moe_str_printf(&d->text, "%s, \"step\": %lld, \"layer\": %d, ", d->head ? d->head : "{",
                   (long long)step, d->load->layer[layer]);
}

static MoeStatus end_line(MoeDump *d) {
    moe_str_append(&d->text, "}\n");
    if (d->text.len < FLUSH_BYTES)
        return NULL;
    MoeStatus st = moe_out_write(d->file, moe_str_c(&d->text), d->text.len);
    moe_str_clear(&d->text);
    return st;
}

static MoeStatus dump_map(void *ctx, int64_t step, int layer, const MoePlaceMap *m,
                          const MoePlaceDecision *decision) {
    static const char *const verdicts[] = {[MOE_PLACE_KEPT] = "kept",
                                           [MOE_PLACE_CHANGED] = "changed",
                                           [MOE_PLACE_TOO_DEAR] = "too dear",
                                           [MOE_PLACE_REFUSED] = "refused"};
    MoeDump *d = ctx;
    begin_line(d, step, layer);
    if (decision)
        moe_str_printf(&d->text, "\"verdict\": \"%s\", ", verdicts[decision->verdict]);
    moe_str_append(&d->text, "\"slots\": [");
    for (int g = 0; g < m->ranks * m->slots; g++)
        moe_str_printf(&d->text, "%s%d%s",
                       g % m->slots ? ", "
                       : g          ? ", ["
                                    : "[",
                       m->expert[g], g % m->slots == m->slots - 1 ? "]" : "");
    moe_str_putc(&d->text, ']');
    return end_line(d);
}

static MoeStatus dump_division(void *ctx, int64_t step, int layer, const MoePlaceMap *m,
                               const MoeSplitRun *runs) {
    MoeDump *d = ctx;
    begin_line(d, step, layer);
    moe_str_append(&d->text, "\"tokens\": [");
    for (int g = 0; g < d->groups * m->ranks * m->slots; g++)
        moe_str_printf(&d->text, "%s%d%s",
                       g % m->slots ? ", "
                       : g          ? ", ["
                                    : "[",
                       runs[g].end - runs[g].begin, g % m->slots == m->slots - 1 ? "]" : "");
    moe_str_putc(&d->text, ']');
    return end_line(d);
}

void moe_dump_observe(MoeDump *d, MoeReplayObserver *see) {
    see->ctx = d;
    see->map = dump_map;
    see->division = dump_division;
}

MoeStatus moe_dump_close(MoeDump *d) {
    MoeStatus st = moe_out_write(d->file, moe_str_c(&d->text), d->text.len);
    if (st) {
        moe_dump_abandon(d);
        return st;
    }
    st = moe_out_finish(d->file, NULL, NULL);
    d->file = NULL;
    moe_dump_abandon(d);
    return st;
}

void moe_dump_abandon(MoeDump *d) {
    if (!d)
        return;
    if (d->file)
        moe_out_abandon(d->file);
    moe_str_free(&d->text);
    free(d->head);
    free(d);
}
