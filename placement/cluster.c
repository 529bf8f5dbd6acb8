/* Reads cluster.json. See cluster.h and docs/CLUSTER.md. */
#include "placement/cluster.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/str.h"

#define MAX_BYTES ((size_t)1 << 20)
#define FORMAT    1

static const char *const keys[] = {"format_version", "nodes", "ranks_per_node",   "intra",
                                   "inter",          "flops", "memory_bandwidth", "real_time",
                                   "rates",          "note"};
static const char *const link_keys[] = {"latency", "bandwidth", "by_cores"}; /* the last: intra's alone */
static const char *const link_names[MOE_N_LINKS] = {"intra", "inter"};
#define N_KEYS(list) (sizeof(list) / sizeof *(list))

/* A key that is misspelt would be left out in silence. */
static MoeStatus check_keys(const json_t *o, const char *where, const char *const *known,
                            size_t n) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)o, key, value) {
        size_t i = 0;
        while (i < n && strcmp(key, known[i]))
            i++;
        if (i < n)
            continue;
        const char *near = moe_nearest_name(key, known, n);
        return moe_error(MOE_E_INPUT, "%s: unknown key \"%s\"%s%s%s", where, key,
                         near ? "; did you mean \"" : "", near ? near : "", near ? "\"?" : "");
    }
    return NULL;
}

static MoeStatus read_count(const json_t *o, const char *where, const char *key, int *out) {
    int64_t n = 0;
    MOE_TRY(moe_json_i64(o, where, key, true, &n));
    if (n < 1 || n > MOE_MAX_RANKS)
        return moe_error(MOE_E_INPUT, "%s: \"%s\" is %lld; expected 1 to %d", where, key,
                         (long long)n, MOE_MAX_RANKS);
    *out = (int)n;
    return NULL;
}

/* A rate: above zero where it is there. */
static MoeStatus read_rate(const json_t *o, const char *where, const char *key, bool required,
                           double *out) {
    double v = NAN;
    MOE_TRY(moe_json_f64(o, where, key, required, &v));
    if (isnan(v))
        return NULL;
    if (!(v > 0) || isinf(v))
        return moe_error(MOE_E_INPUT, "%s: \"%s\" is %g; expected a number above 0", where, key, v);
    *out = v;
    return NULL;
}

static MoeStatus read_link(const json_t *root, const char *name, MoeLinkClass k, bool needed, MoeCluster *c) {
    MoeLink *out = &c->links[k];
    json_t *o = NULL;
    MOE_TRY(moe_json_object(root, name, link_names[k], needed, &o));
    *out = (MoeLink){0, INFINITY};
    if (!o)
        return NULL;
    char where[512];
    snprintf(where, sizeof where, "%s: %s", name, link_names[k]);
    MOE_TRY(check_keys(o, where, link_keys, N_KEYS(link_keys) - (k != MOE_LINK_INTRA)));
    if (k == MOE_LINK_INTRA)
        MOE_TRY(moe_json_bool(o, where, "by_cores", false, &c->by_cores));
    MOE_TRY(moe_json_f64(o, where, "latency", true, &out->latency));
    if (!(out->latency >= 0) || isinf(out->latency))
        return moe_error(MOE_E_INPUT, "%s: \"latency\" is %g; expected seconds, 0 or more", where,
                         out->latency);
    return read_rate(o, where, "bandwidth", true, &out->bandwidth);
}

static MoeStatus read_all(const json_t *root, const char *name, MoeCluster *c) {
    int64_t version = 0;
    MOE_TRY(moe_json_i64(root, name, "format_version", true, &version));
    if (version != FORMAT)
        return moe_error(MOE_E_INPUT, "%s: format version %lld; this moec reads version %d", name,
                         (long long)version, FORMAT);
    MOE_TRY(check_keys(root, name, keys, N_KEYS(keys)));
    MOE_TRY(read_count(root, name, "nodes", &c->nodes));
    MOE_TRY(read_count(root, name, "ranks_per_node", &c->ranks_per_node));
    if (c->nodes > MOE_MAX_RANKS / c->ranks_per_node)
        return moe_error(MOE_E_INPUT, "%s: %d nodes of %d ranks; at most %d ranks in all", name,
                         c->nodes, c->ranks_per_node, MOE_MAX_RANKS);
    MOE_TRY(read_link(root, name, MOE_LINK_INTRA, c->ranks_per_node > 1, c));
    MOE_TRY(read_link(root, name, MOE_LINK_INTER, c->nodes > 1, c));
    MOE_TRY(read_rate(root, name, "flops", false, &c->flops));
    MOE_TRY(read_rate(root, name, "memory_bandwidth", false, &c->memory_bandwidth));
    MOE_TRY(moe_json_bool(root, name, "real_time", false, &c->real_time));
    json_t *rates = NULL;
    const char *note = NULL; /* for people */
    MOE_TRY(moe_json_str(root, name, "note", false, &note));
    MOE_TRY(moe_json_object(root, name, "rates", false, &rates));
    char where[512];
    snprintf(where, sizeof where, "%s: rates", name);
    if (rates && moe_cluster_predicts(c))
        return moe_error(MOE_E_INPUT, "%s: \"rates\" beside \"flops\" or \"memory_bandwidth\": give either", name);
    return rates ? moe_rates_read(rates, where, &c->rates) : NULL;
}

MoeStatus moe_cluster_read(const json_t *o, const char *name, MoeCluster *out) {
    MoeCluster c = {0};
    if (!json_is_object(o))
        return moe_error(MOE_E_INPUT, "%s: expected a JSON object", name);
    MOE_TRY(read_all(o, name, &c));
    *out = c;
    return NULL;
}

MoeStatus moe_cluster_parse(const char *text, size_t n, const char *name, MoeCluster *out) {
    json_t *root;
    MOE_TRY(moe_json_load_text(text, n, name, &root));
    MoeStatus st = moe_cluster_read(root, name, out);
    json_decref(root);
    return st;
}

MoeStatus moe_cluster_load(const char *path, MoeCluster *out) {
    json_t *root;
    MOE_TRY(moe_json_load_file(path, MAX_BYTES, &root));
    MoeStatus st = moe_cluster_read(root, path, out);
    json_decref(root);
    return st;
}

json_t *moe_cluster_json(const MoeCluster *c) {
    json_t *o = json_pack("{s:i, s:i, s:i}", "format_version", FORMAT, "nodes", c->nodes, "ranks_per_node",
                          c->ranks_per_node);
    const bool used[MOE_N_LINKS] = {[MOE_LINK_INTRA] = c->ranks_per_node > 1, [MOE_LINK_INTER] = c->nodes > 1};
    for (int k = 0; k < MOE_N_LINKS; k++)
        if (used[k])
            json_object_set_new(o, link_names[k], json_pack("{s:f, s:f}", "latency", c->links[k].latency, "bandwidth",
                                                            c->links[k].bandwidth));
    if (c->by_cores && used[MOE_LINK_INTRA])
        json_object_set_new(json_object_get(o, link_names[MOE_LINK_INTRA]), "by_cores", json_true());
    if (c->flops > 0)
        json_object_set_new(o, "flops", json_real(c->flops));
    if (c->memory_bandwidth > 0)
        json_object_set_new(o, "memory_bandwidth", json_real(c->memory_bandwidth));
    if (c->rates.threads)
        json_object_set_new(o, "rates", moe_rates_json(&c->rates));
    return o;
}

int moe_cluster_ranks(const MoeCluster *c) {
    return c->nodes * c->ranks_per_node;
}

MoeStatus moe_cluster_check_ranks(const MoeCluster *c, int ranks) {
    if (moe_cluster_ranks(c) == ranks)
        return NULL;
    return moe_error(MOE_E_MISUSE,
                     "the cluster has %d ranks (%d nodes of %d), the plan has %d; change \"nodes\" "
                     "or \"ranks_per_node\", or compile for %d ranks",
                     moe_cluster_ranks(c), c->nodes, c->ranks_per_node, ranks,
                     moe_cluster_ranks(c));
}

MoeLinkClass moe_cluster_link(const MoeCluster *c, int a, int b) {
    return a / c->ranks_per_node == b / c->ranks_per_node ? MOE_LINK_INTRA : MOE_LINK_INTER;
}

MoeCluster moe_cluster_of_group(const MoeCluster *c, const MoeMesh *division) {
    MoeCluster out = *c;
    int here = c->ranks_per_node / division->tp; /* ranks of a group are tp apart */
    out.ranks_per_node = here < 1 ? 1 : here < division->ep ? here : division->ep;
    out.nodes = (division->ep + out.ranks_per_node - 1) / out.ranks_per_node;
    return out;
}

bool moe_cluster_predicts(const MoeCluster *c) {
    return c->flops > 0 || c->memory_bandwidth > 0;
}

double moe_cluster_seconds(const MoeCluster *c, double flops, double bytes) {
    double compute = c->flops > 0 ? flops / c->flops : 0;
    double memory = c->memory_bandwidth > 0 ? bytes / c->memory_bandwidth : 0;
    return fmax(compute, memory);
}
