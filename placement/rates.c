/* See rates.h. */
#include "placement/rates.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    bool flops;
} names[MOE_N_RATES] = {
#define X(id, in_flops) {#id, in_flops},
    MOE_RATE_TABLES(X)
#undef X
};

const char *moe_rate_name(MoeRateName n) {
    return names[n].name;
}

bool moe_rate_in_flops(MoeRateName n) {
    return names[n].flops;
}

/* ---- looking up ---- */

static const MoeRateTable *table_of(const MoeRates *r, MoeRateName n) {
    const MoeRateTable *t = &r->tables[n];
    const char *bf16 = strstr(names[n].name, "_bf16");
    if (t->n)
        return t;
    if (n == MOE_RATE_pack || n == MOE_RATE_copy)
        return t;
    return bf16 ? &r->tables[n - 1] : &r->tables[MOE_RATE_row];
}

double moe_rates_seconds(const MoeRates *r, MoeRateName name, double size) {
    const MoeRateTable *t = table_of(r, name);
    if (!t->n || !(size > 0))
        return 0;
    int i = 0;
    while (i < t->n && t->at[i].size < size)
        i++;
    double rate = t->at[i == t->n ? i - 1 : i].rate;
    if (i > 0 && i < t->n) {
        double part = log(size / t->at[i - 1].size) / log(t->at[i].size / t->at[i - 1].size);
        rate = t->at[i - 1].rate * pow(t->at[i].rate / t->at[i - 1].rate, part);
    }
    return size / rate;
}

/* ---- JSON ---- */

static MoeStatus read_table(const json_t *a, const char *where, const char *key, MoeRateTable *out) {
    size_t n = json_array_size(a);
    if (!json_is_array(a) || n < 1 || n > MOE_RATE_POINTS)
        return moe_error(MOE_E_INPUT, "%s: \"%s\": expected a list of 1 to %d pairs [size, rate]", where, key,
                         MOE_RATE_POINTS);
    for (size_t i = 0; i < n; i++) {
        const json_t *p = json_array_get(a, i), *size = json_array_get(p, 0), *rate = json_array_get(p, 1);
        double s = json_number_value(size), r = json_number_value(rate);
        if (json_array_size(p) != 2 || !json_is_number(size) || !json_is_number(rate) || !(s > 0) || !(r > 0) ||
            isinf(s) || isinf(r))
            return moe_error(MOE_E_INPUT, "%s: \"%s\"[%zu]: expected [size, rate], numbers above 0", where, key, i);
        if (i && s <= out->at[i - 1].size)
            return moe_error(MOE_E_INPUT, "%s: \"%s\"[%zu]: size %g is not above the one before it, %g", where, key, i,
                             s, out->at[i - 1].size);
        out->at[i].size = s;
        out->at[i].rate = r;
    }
    out->n = (int)n;
    return NULL;
}

MoeStatus moe_rates_read(const json_t *o, const char *where, MoeRates *out) {
    const char *key, *known[MOE_N_RATES + 1];
    json_t *value;
    int64_t threads = 0;
    for (int i = 0; i < MOE_N_RATES; i++)
        known[i] = names[i].name;
    known[MOE_N_RATES] = "threads";
    *out = (MoeRates){0};
    json_object_foreach((json_t *)(uintptr_t)o, key, value) {
        int i = 0;
        while (i <= MOE_N_RATES && strcmp(key, known[i]) != 0)
            i++;
        if (i < MOE_N_RATES) {
            MOE_TRY(read_table(value, where, key, &out->tables[i]));
        } else if (i > MOE_N_RATES) {
            const char *near = moe_nearest_name(key, known, MOE_N_RATES + 1);
            return moe_error(MOE_E_INPUT, "%s: unknown key \"%s\"%s%s%s", where, key, near ? "; did you mean \"" : "",
                             near ? near : "", near ? "\"?" : "");
        }
    }
    MOE_TRY(moe_json_i64(o, where, "threads", true, &threads));
    if (threads < 1 || threads > 1 << 16)
        return moe_error(MOE_E_INPUT, "%s: \"threads\" is %lld; expected 1 to 65536", where, (long long)threads);
    if (!out->tables[MOE_RATE_gemm].n || !out->tables[MOE_RATE_row].n)
        return moe_error(MOE_E_INPUT, "%s: \"gemm\" and \"row\" are needed; other kinds may be left out", where);
    out->threads = (int)threads;
    return NULL;
}

json_t *moe_rates_json(const MoeRates *r) {
    json_t *o = json_pack("{s:i}", "threads", r->threads);
    for (int i = 0; i < MOE_N_RATES; i++) {
        const MoeRateTable *t = &r->tables[i];
        json_t *a = json_array();
        for (int k = 0; k < t->n; k++)
            json_array_append_new(a, json_pack("[f, f]", t->at[k].size, t->at[k].rate));
        if (t->n)
            json_object_set(o, names[i].name, a);
        json_decref(a);
    }
    return o;
}
