/* Reads a Hugging Face config.json of a Mixtral or a dense Llama into an MoeHfConfig.
 *
 * Both spellings of the keys are read (transformers before and after version 5), defaults are those of transformers, and all mistakes are
 * collected into one message. What this compiler does not implement is refused by key, never ignored silently. */
#include "frontends/frontend.h"

#include <math.h>
#include <string.h>

#include "base/json.h"
#include "base/log.h"

#define MAX_DIM ((int64_t)1 << 24)

static const char *const model_types[] = {"mixtral", "llama"};

/* Keys that a config of these two models may carry; others close to one of these are probably misspelt. */
static const char *const known_keys[] = {
    "_attn_implementation_autoset", "_name_or_path", "architectures", "attention_bias", "attention_dropout", "auto_map",
    "bos_token_id", "dtype", "eos_token_id", "experts_implementation", "head_dim", "hidden_act", "hidden_size",
    "initializer_range", "intermediate_size", "max_position_embeddings", "mlp_bias", "model_type", "num_attention_heads",
    "num_experts", "num_experts_per_tok", "num_hidden_layers", "num_key_value_heads", "num_local_experts",
    "output_router_logits", "pad_token_id", "pretraining_tp", "rms_norm_eps", "rope_parameters", "rope_scaling", "rope_theta",
    "router_aux_loss_coef", "router_jitter_noise", "sliding_window", "tie_word_embeddings", "torch_dtype",
    "transformers_version", "use_cache", "vocab_size"};

typedef struct {
    const json_t *json;
    const char *where;
    MoeStr errors;
    int n_errors;
} Reader;

static void complain(Reader *r, const char *fmt, ...) MOE_PRINTF(2, 3);
static void complain(Reader *r, const char *fmt, ...) {
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    moe_str_printf(&r->errors, "%s%s", r->n_errors ? "\n  " : "", text);
    r->n_errors++;
}

static void keep_error(Reader *r, MoeStatus s) {
    if (!s)
        return;
    const char *m = moe_status_message(s);
    size_t n = strlen(r->where);
    if (strncmp(m, r->where, n) == 0 && strncmp(m + n, ": ", 2) == 0)
        m += n + 2;
    complain(r, "%s", m);
    moe_status_free(s);
}

static void get_int(Reader *r, const char *key, bool required, int64_t lo, int64_t hi, int64_t *out) {
    int before = r->n_errors;
    keep_error(r, moe_json_i64(r->json, r->where, key, required, out));
    const json_t *v = json_object_get(r->json, key);
    if (r->n_errors == before && v && !json_is_null(v) && (*out < lo || *out > hi))
        complain(r, "\"%s\" is %lld; expected %lld to %lld", key, (long long)*out, (long long)lo, (long long)hi);
}

static void get_real(Reader *r, const char *key, double lo, double hi, double *out) {
    int before = r->n_errors;
    keep_error(r, moe_json_f64(r->json, r->where, key, false, out));
    if (r->n_errors == before && !(*out >= lo && *out <= hi))
        complain(r, "\"%s\" is %g; expected %g to %g", key, *out, lo, hi);
}

/* rope_theta at the top level (before transformers 5) or in rope_parameters (since). */
static void read_rope(Reader *r, MoeHfConfig *c) {
    const json_t *params = json_object_get(r->json, "rope_parameters");
    const json_t *scaling = json_object_get(r->json, "rope_scaling");
    get_real(r, "rope_theta", 1.0, 1e12, &c->rope_theta);
    if (params && !json_is_null(params)) {
        if (!json_is_object(params)) {
            complain(r, "\"rope_parameters\" is not an object");
            return;
        }
        double theta = c->rope_theta;
        keep_error(r, moe_json_f64(params, "rope_parameters", "rope_theta", false, &theta));
        const json_t *top = json_object_get(r->json, "rope_theta");
        if (json_is_number(top) && json_object_get(params, "rope_theta") && theta != c->rope_theta)
            complain(r, "\"rope_theta\" is %g but rope_parameters.rope_theta is %g; keep one", c->rope_theta, theta);
        c->rope_theta = theta;
        if (!(theta >= 1.0 && theta <= 1e12))
            complain(r, "rope_parameters.rope_theta is %g; expected 1 to 1e12", theta);
        const char *type = "default";
        keep_error(r, moe_json_str(params, "rope_parameters", "rope_type", false, &type));
        if (strcmp(type, "default") != 0)
            complain(r, "rope_parameters.rope_type \"%s\" is not supported; only \"default\" is", type);
    }
    if (scaling && !json_is_null(scaling)) {
        const char *type = "default";
        if (json_is_object(scaling)) {
            const json_t *t = json_object_get(scaling, "rope_type");
            if (!t)
                t = json_object_get(scaling, "type");
            type = json_is_string(t) ? json_string_value(t) : "?";
        }
        if (strcmp(type, "default") != 0)
            complain(r, "\"rope_scaling\" of type \"%s\" is not supported; only \"default\" or null is", type);
    }
}

/* torch_dtype (before transformers 5) or dtype (since). */
static void read_dtype(Reader *r, MoeHfConfig *c) {
    const char *key = json_object_get(r->json, "dtype") && !json_is_null(json_object_get(r->json, "dtype")) ? "dtype" : "torch_dtype";
    const char *dtype = "float32";
    keep_error(r, moe_json_str(r->json, r->where, key, false, &dtype));
    if (strncmp(dtype, "torch.", 6) == 0)
        dtype += 6;
    if (strcmp(dtype, "bfloat16") == 0)
        c->bf16 = true;
    else if (strcmp(dtype, "float32") != 0 && strcmp(dtype, "float16") != 0)
        complain(r, "\"%s\" is \"%s\"; expected \"float32\", \"bfloat16\" or \"float16\"", key, dtype);
}

static void read_unsupported(Reader *r, bool mixtral) {
    const char *act = "silu";
    keep_error(r, moe_json_str(r->json, r->where, "hidden_act", false, &act));
    if (strcmp(act, "silu") != 0)
        complain(r, "\"hidden_act\" is \"%s\"; only \"silu\" is supported", act);
    double dropout = 0, jitter = 0;
    get_real(r, "attention_dropout", 0, 1, &dropout);
    if (dropout > 0)
        complain(r, "\"attention_dropout\" is %g; dropout is not supported, set it to 0", dropout);
    if (mixtral) {
        get_real(r, "router_jitter_noise", 0, 1, &jitter);
        if (jitter > 0)
            complain(r, "\"router_jitter_noise\" is %g; jitter is not supported, set it to 0", jitter);
    } else {
        bool bias = false;
        keep_error(r, moe_json_bool(r->json, r->where, "attention_bias", false, &bias));
        if (bias)
            complain(r, "\"attention_bias\" is true; projections with a bias are not supported");
        bias = false;
        keep_error(r, moe_json_bool(r->json, r->where, "mlp_bias", false, &bias));
        if (bias)
            complain(r, "\"mlp_bias\" is true; projections with a bias are not supported");
    }
}

static void warn_unknown_keys(const json_t *json, const char *where) {
    const char *key;
    json_t *value;
    size_t n = sizeof known_keys / sizeof *known_keys;
    json_object_foreach((json_t *)json, key, value) {
        bool known = false;
        for (size_t i = 0; i < n && !known; i++)
            known = strcmp(key, known_keys[i]) == 0;
        const char *near = known ? NULL : moe_nearest_name(key, known_keys, n);
        if (near && !json_object_get(json, near))
            moe_warn("%s: unknown key \"%s\" (did you mean \"%s\"?); it is kept but has no effect", where, key, near);
    }
}

static void check_together(Reader *r, MoeHfConfig *c, bool has_head_dim) {
    if (!has_head_dim && c->hidden_size % c->heads != 0)
        complain(r, "\"num_attention_heads\" %lld does not divide \"hidden_size\" %lld (and there is no \"head_dim\")",
                 (long long)c->heads, (long long)c->hidden_size);
    else if (c->head_dim % 2 != 0)
        complain(r, "the head dimension is %lld; rotary embeddings need an even one", (long long)c->head_dim);
    if (c->heads % c->kv_heads != 0)
        complain(r, "\"num_key_value_heads\" %lld does not divide \"num_attention_heads\" %lld", (long long)c->kv_heads,
                 (long long)c->heads);
    if (c->experts && c->experts_per_token > c->experts)
        complain(r, "\"num_experts_per_tok\" %lld is more than \"num_local_experts\" %lld", (long long)c->experts_per_token,
                 (long long)c->experts);
    /* The largest single tensor must stay addressable: the caps of single keys alone do not say so. */
    double biggest = (double)c->hidden_size * (double)c->intermediate_size * (double)(c->experts ? c->experts : 1);
    if (biggest > 1e13 || (double)c->vocab_size * (double)c->hidden_size > 1e13)
        complain(r, "sizes are absurd: a single tensor would hold more than 1e13 numbers");
}

MoeStatus moe_hf_config_parse(const json_t *json, const char *where, MoeHfConfig *c) {
    Reader r = {.json = json, .where = where};
    memset(c, 0, sizeof *c);
    if (!json_is_object(json))
        return moe_error(MOE_E_INPUT, "%s: expected a JSON object with the model's configuration", where);
    const char *type = NULL;
    MOE_TRY(moe_json_str(json, where, "model_type", true, &type));
    size_t n_types = sizeof model_types / sizeof *model_types;
    bool found = false;
    for (size_t i = 0; i < n_types && !found; i++)
        found = strcmp(type, model_types[i]) == 0;
    if (!found) {
        const char *near = moe_nearest_name(type, model_types, n_types);
        return moe_error(MOE_E_INPUT, "%s: unknown model_type \"%s\"%s%s%s; supported: mixtral, llama", where, type,
                         near ? " (did you mean \"" : "", near ? near : "", near ? "\"?)" : "");
    }
    bool mixtral = strcmp(type, "mixtral") == 0;
    snprintf(c->model_type, sizeof c->model_type, "%s", type);

    get_int(&r, "vocab_size", true, 1, 4 << 20, &c->vocab_size);
    get_int(&r, "hidden_size", true, 1, MAX_DIM, &c->hidden_size);
    get_int(&r, "intermediate_size", true, 1, MAX_DIM, &c->intermediate_size);
    get_int(&r, "num_hidden_layers", true, 1, 4096, &c->layers);
    get_int(&r, "num_attention_heads", true, 1, 65536, &c->heads);
    c->kv_heads = mixtral ? 8 : c->heads;
    if (mixtral && !json_object_get(json, "num_key_value_heads") && c->heads < 8)
        c->kv_heads = c->heads;
    get_int(&r, "num_key_value_heads", false, 1, 65536, &c->kv_heads);
    const json_t *hd = json_object_get(json, "head_dim");
    bool has_head_dim = hd && !json_is_null(hd);
    get_int(&r, "head_dim", false, 1, 65536, &c->head_dim);
    c->max_positions = mixtral ? 131072 : 2048;
    get_int(&r, "max_position_embeddings", false, 1, (int64_t)1 << 31, &c->max_positions);
    c->rms_norm_eps = mixtral ? 1e-5 : 1e-6;
    get_real(&r, "rms_norm_eps", 0.0, 1.0, &c->rms_norm_eps);
    c->initializer_range = 0.02;
    get_real(&r, "initializer_range", 0.0, 100.0, &c->initializer_range);
    c->rope_theta = mixtral ? 1e6 : 1e4;
    read_rope(&r, c);
    read_dtype(&r, c);
    keep_error(&r, moe_json_bool(json, where, "tie_word_embeddings", false, &c->tie_word_embeddings));
    if (mixtral) {
        /* num_experts is transformers' alias of num_local_experts. */
        c->experts = 8;
        get_int(&r, "num_experts", false, 1, 65536, &c->experts);
        get_int(&r, "num_local_experts", false, 1, 65536, &c->experts);
        c->experts_per_token = 2;
        get_int(&r, "num_experts_per_tok", false, 1, 65536, &c->experts_per_token);
        get_int(&r, "sliding_window", false, 1, (int64_t)1 << 31, &c->sliding_window);
        c->router_aux_loss_coef = 0.001;
        get_real(&r, "router_aux_loss_coef", 0.0, 1e6, &c->router_aux_loss_coef);
        keep_error(&r, moe_json_bool(json, where, "output_router_logits", false, &c->output_router_logits));
    }
    read_unsupported(&r, mixtral);
    if (r.n_errors == 0) {
        if (!has_head_dim)
            c->head_dim = c->hidden_size / c->heads;
        check_together(&r, c, has_head_dim);
    }
    MoeStatus st = NULL;
    if (r.n_errors)
        st = moe_error(MOE_E_INPUT, "%s: %s", where, moe_str_c(&r.errors));
    else
        warn_unknown_keys(json, where);
    moe_str_free(&r.errors);
    return st;
}

MoeStatus moe_hf_config_read(const char *path, MoeHfConfig *out, json_t **out_json) {
    json_t *json = NULL;
    MOE_TRY(moe_json_load_file(path, 1 << 24, &json));
    MoeStatus st = moe_hf_config_parse(json, path, out);
    if (st) {
        json_decref(json);
        return st;
    }
    *out_json = json;
    return NULL;
}

double moe_hf_flops_per_token(const MoeHfConfig *c, int64_t seq) {
    double d = (double)c->hidden_size, q = (double)(c->heads * c->head_dim), kv = (double)(c->kv_heads * c->head_dim);
    double attention = d * q * 2 + d * kv * 2; /* q, o; k, v */
    double mlp = 3.0 * d * (double)c->intermediate_size;
    if (c->experts)
        mlp = mlp * (double)c->experts_per_token + d * (double)c->experts;
    double span = (double)seq / 2; /* mean number of keys a query sees, causal */
    if (c->sliding_window && (double)c->sliding_window < span)
        span = (double)c->sliding_window;
    double params = (double)c->layers * (attention + mlp) + d * (double)c->vocab_size;
    return 6.0 * params + 3.0 * (double)c->layers * 4.0 * span * q;
}
