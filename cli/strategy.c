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
};
enum { N_DEGREES = sizeof degrees / sizeof degrees[0] };

static int64_t *degree(MoeStrategy *s, int i) {
    return (int64_t *)((char *)s + degrees[i].offset);
}

static MoeStatus unknown_key(const char *path, const char *key) {
    const char *names[N_DEGREES];
    MoeStr all = {0};
    for (int i = 0; i < N_DEGREES; i++) {
        names[i] = degrees[i].key;
        moe_str_printf(&all, "%s%s", i ? ", " : "", names[i]);
    }
    const char *nearest = moe_nearest_name(key, names, N_DEGREES);
    MoeStatus st = nearest ? moe_error(MOE_E_INPUT, "%s: unknown key \"%s\"; did you mean \"%s\"?",
                                       path, key, nearest)
                           : moe_error(MOE_E_INPUT, "%s: unknown key \"%s\"; the keys are %s", path,
                                       key, moe_str_c(&all));
    moe_str_free(&all);
    return st;
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
        while (i < N_DEGREES && strcmp(key, degrees[i].key) != 0)
            i++;
        if (i == N_DEGREES) {
            st = unknown_key(path, key);
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
    if (*path)
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
    return NULL;
}

MoeStrategy moe_strategy_of_mesh(const MoeMesh *m) {
    return (MoeStrategy){moe_mesh_size(m), m->ep, m->shard, m->tp, m->dense_shard};
}

void moe_strategy_text(const MoeMesh *m, MoeStr *out) {
    const struct {
        int n;
        const char *what;
    } parts[] = {{m->dp, "data parallel"},
                 {m->shard, "shard"},
                 {m->ep, "expert parallel"},
                 {m->tp, "tensor parallel"}};
    moe_str_printf(out, "%d rank%s", moe_mesh_size(m), moe_mesh_size(m) == 1 ? "" : "s");
    const char *before = ": ";
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        if (parts[i].n > 1) {
            moe_str_printf(out, "%s%s %d", before, parts[i].what, parts[i].n);
            before = " x ";
        }
    if (m->dense_shard != m->shard)
        moe_str_printf(out, ", tensors that are no expert's over %d", m->dense_shard);
}
