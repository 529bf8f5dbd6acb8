/* Strategies: options and files in, a mesh out. See strategy.h. */
#include "cli/strategy.h"

#include <stddef.h>
#include <string.h>

#include "base/json.h"

static const struct {
    const char *key;
    MoeOption option;
    size_t offset;
} degrees[] = {
    {"ranks", OPT_RANKS, offsetof(MoeStrategy, ranks)},
    {"expert_parallel_degree", OPT_EXPERT_PARALLEL, offsetof(MoeStrategy, ep)},
    {"hybrid_shard_degree", OPT_HYBRID_SHARD, offsetof(MoeStrategy, shard)},
    {"tensor_parallel_degree", OPT_TENSOR_PARALLEL, offsetof(MoeStrategy, tp)},
    {"dense_shard_degree", OPT_DENSE_SHARD, offsetof(MoeStrategy, dense_shard)},
    {"extra_slots", OPT_EXTRA_SLOTS, offsetof(MoeStrategy, extra_slots)},
};
enum { N_DEGREES = sizeof degrees / sizeof degrees[0], MAX_LAYER = 65535 };
#define LAYERS "layers"

static int64_t *degree(MoeStrategy *s, int i) {
    return (int64_t *)((char *)s + degrees[i].offset);
}

static MoeStatus unknown_key(const char *path, const char *key, const char *const *names, int n) {
    MoeStr all = {0};
    for (int i = 0; i < n; i++)
        moe_str_printf(&all, "%s%s", i ? ", " : "", names[i]);
    const char *nearest = moe_nearest_name(key, names, (size_t)n);
    MoeStatus st = nearest ? moe_error(MOE_E_INPUT, "%s: unknown key \"%s\"; did you mean \"%s\"?",
                                       path, key, nearest)
                           : moe_error(MOE_E_INPUT, "%s: unknown key \"%s\"; the keys are %s", path,
                                       key, moe_str_c(&all));
    moe_str_free(&all);
    return st;
}

/* ---- "layers" ---- */

static const struct {
    const char *key;
    int64_t least, most;
    size_t offset;
} layer_keys[] = {
    {"first", 0, MAX_LAYER, offsetof(MoeStrategyLayers, first)},
    {"last", 0, MAX_LAYER, offsetof(MoeStrategyLayers, last)},
    {"expert_parallel_degree", 1, MOE_MAX_RANKS, offsetof(MoeStrategyLayers, ep)},
    {"hybrid_shard_degree", 1, MOE_MAX_RANKS, offsetof(MoeStrategyLayers, shard)},
};
enum { N_LAYER_KEYS = sizeof layer_keys / sizeof layer_keys[0] };

static MoeStatus check_layer_keys(const char *path, json_t *o) {
    const char *names[N_LAYER_KEYS];
    for (int i = 0; i < N_LAYER_KEYS; i++)
        names[i] = layer_keys[i].key;
    for (void *it = json_object_iter(o); it; it = json_object_iter_next(o, it)) {
        int i = 0;
        while (i < N_LAYER_KEYS && strcmp(json_object_iter_key(it), names[i]) != 0)
            i++;
        if (i == N_LAYER_KEYS)
            return unknown_key(path, json_object_iter_key(it), names, N_LAYER_KEYS);
    }
    return NULL;
}

static MoeStatus load_range(const char *path, json_t *o, MoeStrategyLayers *out) {
    if (!json_is_object(o))
        return moe_error(MOE_E_INPUT, "%s: expected an object for each range of layers", path);
    MOE_TRY(check_layer_keys(path, o));
    for (int i = 0; i < N_LAYER_KEYS; i++) {
        int64_t *n = (int64_t *)((char *)out + layer_keys[i].offset);
        MOE_TRY(moe_json_i64(o, path, layer_keys[i].key, i < 2, n));
        if (json_object_get(o, layer_keys[i].key) &&
            (*n < layer_keys[i].least || *n > layer_keys[i].most))
            return moe_error(MOE_E_INPUT, "%s: \"%s\" is %lld; expected %lld to %lld", path,
                             layer_keys[i].key, (long long)*n, (long long)layer_keys[i].least,
                             (long long)layer_keys[i].most);
    }
    if (out->last < out->first)
        return moe_error(MOE_E_INPUT, "%s: layers %lld to %lld: \"last\" is before \"first\"", path,
                         (long long)out->first, (long long)out->last);
    return NULL;
}

static MoeStatus load_layers(const char *path, const json_t *a, MoeStrategy *out) {
    if (!json_is_array(a) || json_array_size(a) > MOE_MAX_RANGES)
        return moe_error(MOE_E_INPUT, "%s: \"layers\": expected a list of at most %d ranges of layers",
                         path, MOE_MAX_RANGES);
    out->n_layers = 0;
    for (size_t i = 0; i < json_array_size(a); i++) {
        MoeStrategyLayers x = {0};
        MOE_TRY(moe_status_prefix(load_range(path, json_array_get(a, i), &x), "layers[%zu]", i));
        int at = out->n_layers++;
        for (; at > 0 && out->layers[at - 1].first > x.first; at--)
            out->layers[at] = out->layers[at - 1];
        out->layers[at] = x;
    }
    return NULL;
}

static MoeStatus unknown_top_key(const char *path, const char *key) {
    const char *names[N_DEGREES + 1];
    for (int i = 0; i < N_DEGREES; i++)
        names[i] = degrees[i].key;
    names[N_DEGREES] = LAYERS;
    return unknown_key(path, key, names, N_DEGREES + 1);
}

MoeStatus moe_strategy_load(const char *path, MoeStrategy *out) {
    json_t *json = NULL;
    MOE_TRY(moe_json_load_file(path, 1 << 20, &json));
    MoeStatus st =
        json_is_object(json) ? NULL : moe_error(MOE_E_INPUT, "%s: expected a JSON object", path);
    for (void *it = st ? NULL : json_object_iter(json); it && !st;
         it = json_object_iter_next(json, it)) {
        const char *key = json_object_iter_key(it);
        int i = 0;
        if (strcmp(key, LAYERS) == 0) {
            st = load_layers(path, json_object_get(json, LAYERS), out);
            continue;
        }
        while (i < N_DEGREES && strcmp(key, degrees[i].key) != 0)
            i++;
        if (i == N_DEGREES) {
            st = unknown_top_key(path, key);
            break;
        }
        st = moe_json_i64(json, path, key, false, degree(out, i));
        if (!st && (*degree(out, i) < 1 || *degree(out, i) > MOE_MAX_RANKS))
            st = moe_error(MOE_E_INPUT, "%s: \"%s\" is %lld; expected 1 to %d", path, key,
                           (long long)*degree(out, i), MOE_MAX_RANKS);
    }
    json_decref(json);
    return st;
}

MoeStatus moe_strategy_from_options(const MoeOptions *o, MoeStrategy *out) {
    *out = (MoeStrategy){0};
    const char *path = moe_opt(o, OPT_STRATEGY);
    if (*path && strcmp(path, "auto") != 0) /* auto: what the planner finds (auto_strategy.h) */
        MOE_TRY(moe_strategy_load(path, out));
    for (int i = 0; i < N_DEGREES; i++) {
        if (!moe_opt_given(o, degrees[i].option))
            continue;
        int64_t n = moe_opt_i(o, degrees[i].option);
        if (n < 1 || n > MOE_MAX_RANKS)
            return moe_error(MOE_E_MISUSE, "%s %lld: expected 1 to %d",
                             o->source[degrees[i].option], (long long)n, MOE_MAX_RANKS);
        *degree(out, i) = n;
    }
    return NULL;
}

/* Ranges of layers divide the data ranks of `m`. */
static MoeStatus resolve_layers(const MoeStrategy *s, int64_t experts, MoeMesh *m) {
    int64_t data = moe_mesh_data_ranks(m);
    for (int i = 0; i < s->n_layers; i++) {
        const MoeStrategyLayers *x = &s->layers[i], *next = i + 1 < s->n_layers ? x + 1 : NULL;
        int64_t ep = x->ep ? x->ep : 1, shard = x->shard ? x->shard : 1;
        long long first = x->first, last = x->last;
        if (!experts)
            return moe_error(MOE_E_MISUSE,
                             "strategy for layers %lld to %lld: the model has no experts; "
                             "without \"layers\" its parameters are shared out alike",
                             first, last);
        if (next && next->first <= x->last)
            return moe_error(MOE_E_MISUSE,
                             "strategy: layers %lld to %lld and layers %lld to %lld overlap", first,
                             last, (long long)next->first, (long long)next->last);
        if (data % (ep * shard))
            return moe_error(MOE_E_MISUSE,
                             "strategy for layers %lld to %lld: the %lld data ranks cannot be "
                             "divided by %lld (hybrid shard degree %lld x expert parallel degree "
                             "%lld)",
                             first, last, (long long)data, (long long)(ep * shard),
                             (long long)shard, (long long)ep);
        m->ranges[m->n_ranges++] = (MoeMeshRange){.first = (int)x->first,
                                                  .last = (int)x->last,
                                                  .dp = (int)(data / (ep * shard)),
                                                  .shard = (int)shard,
                                                  .ep = (int)ep};
    }
    return NULL;
}

MoeStatus moe_strategy_resolve(const MoeStrategy *s, int64_t experts, MoeMesh *out) {
    int64_t ranks = s->ranks ? s->ranks : 1, tp = s->tp ? s->tp : 1, ep = s->ep, shard = s->shard;
    if (!ep && !shard && !s->tp && !s->dense_shard) {
        for (ep = 1; ep * 2 <= experts && ranks % (ep * 2) == 0;)
            ep *= 2;
        shard = ranks / ep;
    }
    ep = ep ? ep : 1;
    shard = shard ? shard : 1;
    int64_t used = shard * ep * tp; /* each at most MOE_MAX_RANKS */
    if (ranks % used)
        return moe_error(MOE_E_MISUSE,
                         "%lld ranks cannot be divided by %lld (hybrid shard degree %lld x expert "
                         "parallel degree %lld x tensor parallel degree %lld)%s",
                         (long long)ranks, (long long)used, (long long)shard, (long long)ep,
                         (long long)tp, s->ranks ? "" : "; --ranks N says how many there are");
    if (ep > 1 && !experts)
        return moe_error(MOE_E_MISUSE,
                         "--expert-parallel-degree %lld: the model has no experts; "
                         "--hybrid-shard-degree shares out its parameters",
                         (long long)ep);
    *out = (MoeMesh){.dp = (int)(ranks / used), .shard = (int)shard, .ep = (int)ep, .tp = (int)tp};
    out->dense_shard = s->dense_shard ? (int)s->dense_shard : out->shard;
    out->extra_slots = (int)s->extra_slots;
    MOE_TRY(resolve_layers(s, experts, out));
    bool copies = moe_mesh_has_copies(out);
    for (int k = 1; k <= out->n_ranges; k++) {
        MoeMesh d = moe_mesh_division(out, k);
        copies |= moe_mesh_has_copies(&d);
    }
    if (out->extra_slots && !copies)
        return moe_error(MOE_E_MISUSE,
                         "--extra-slots %d: slots for copies of experts need an expert parallel "
                         "degree of 2 or more",
                         out->extra_slots);
    return NULL;
}

MoeStrategy moe_strategy_of_mesh(const MoeMesh *m) {
    MoeStrategy s = {.ranks = moe_mesh_size(m),
                     .ep = m->ep,
                     .shard = m->shard,
                     .tp = m->tp,
                     .dense_shard = m->dense_shard,
                     .extra_slots = m->extra_slots,
                     .n_layers = m->n_ranges};
    for (int i = 0; i < m->n_ranges; i++)
        s.layers[i] = (MoeStrategyLayers){m->ranges[i].first, m->ranges[i].last, m->ranges[i].ep,
                                          m->ranges[i].shard};
    return s;
}

/* ": shard 2 x expert parallel 4" */
static void degrees_text(const MoeMesh *m, MoeStr *out) {
    const struct {
        int n;
        const char *what;
    } parts[] = {{m->dp, "data parallel"},
                 {m->shard, "shard"},
                 {m->ep, "expert parallel"},
                 {m->tp, "tensor parallel"}};
    const char *before = ": ";
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        if (parts[i].n > 1) {
            moe_str_printf(out, "%s%s %d", before, parts[i].what, parts[i].n);
            before = " x ";
        }
}

void moe_strategy_text(const MoeMesh *m, MoeStr *out) {
    moe_str_printf(out, "%d rank%s", moe_mesh_size(m), moe_mesh_size(m) == 1 ? "" : "s");
    degrees_text(m, out);
    if (m->dense_shard != m->shard)
        moe_str_printf(out, ", tensors that are no expert's over %d", m->dense_shard);
    if (m->extra_slots)
        moe_str_printf(out, ", %d extra slot%s a rank for copies of experts", m->extra_slots,
                       m->extra_slots == 1 ? "" : "s");
    for (int i = 0; i < m->n_ranges; i++) {
        MoeMesh d = moe_mesh_division(m, i + 1);
        moe_str_printf(out, "; experts of layers %d-%d", m->ranges[i].first, m->ranges[i].last);
        degrees_text(&d, out);
    }
}
