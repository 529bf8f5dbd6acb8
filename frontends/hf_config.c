/* Reads a Hugging Face config.json of a Mixtral or a dense Llama into an MoeHfConfig.
 *
 * Both spellings of the keys are read (transformers before and after version 5), defaults are those
 * of transformers, and all mistakes are collected into one message. What this compiler does not
 * implement is refused by key, never ignored silently. null counts as absent, as in transformers.
 */
#include "frontends/frontend.h"

#include <string.h>

#include "base/json.h"
#include "base/log.h"

#define MAX_DIM       ((int64_t)1 << 24)
#define MAX_HEAD_DIM  512 /* what attention kernels of every target take */
#define MAX_POSITIONS ((int64_t)1 << 31)
#define MAX_TENSOR    1e12 /* numbers in one parameter (experts stacked) */

static const char *const model_types[] = {"mixtral", "llama"};
enum { N_MODEL_TYPES = sizeof model_types / sizeof *model_types };

/* Keys that a config of these two models may carry; one that is close to an absent one of these is
 * probably misspelt. */
/* clang-format off */
static const char *const common_keys[] = {
    "_attn_implementation_autoset", "_name_or_path", "architectures", "attention_bias",
    "attention_dropout", "auto_map", "bos_token_id", "dtype", "eos_token_id", "head_dim",
    "hidden_act", "hidden_size", "initializer_range", "intermediate_size",
    "max_position_embeddings", "mlp_bias", "model_type", "num_attention_heads",
    "num_hidden_layers", "num_key_value_heads", "pad_token_id", "partial_rotary_factor",
    "pretraining_tp", "quantization_config", "rms_norm_eps", "rope_parameters", "rope_scaling",
    "rope_theta", "tie_word_embeddings", "torch_dtype", "transformers_version", "use_cache",
    "vocab_size"};
/* clang-format on */
/* These mean nothing in a llama. */
static const char *const mixtral_keys[] = {
    "experts_implementation", "num_experts",          "num_experts_per_tok", "num_local_experts",
    "output_router_logits",   "router_aux_loss_coef", "router_jitter_noise", "sliding_window"};
enum {
    N_COMMON_KEYS = sizeof common_keys / sizeof *common_keys,
    N_MIXTRAL_KEYS = sizeof mixtral_keys / sizeof *mixtral_keys,
    N_KEYS = N_COMMON_KEYS + N_MIXTRAL_KEYS
};

static const char *known_key(size_t i) {
    return i < N_COMMON_KEYS ? common_keys[i] : mixtral_keys[i - N_COMMON_KEYS];
}

typedef struct {
    const json_t *json;
    const char *where;
    MoeStr errors;
    int n_errors;
} Reader;

static void complain(Reader *r, const char *fmt, ...) MOE_PRINTF(2, 3);
static void complain(Reader *r, const char *fmt, ...) {
    if (r->n_errors++)
        moe_str_append(&r->errors, "\n  ");
    va_list ap;
    va_start(ap, fmt);
    moe_str_vprintf(&r->errors, fmt, ap);
    va_end(ap);
}

/* Collects the error of a getter, without the file's name: the message starts with it once. */
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

/* The value of a key; NULL if absent or null. */
static const json_t *value_of(const json_t *object, const char *key) {
    const json_t *v = json_object_get(object, key);
    return json_is_null(v) ? NULL : v;
}

/* ---- typed values in ranges; an absent one leaves *out ---- */

static void get_int(Reader *r, const char *key, bool required, int64_t lo, int64_t hi,
                    int64_t *out) {
    int64_t v = lo;
    int before = r->n_errors;
    keep_error(r, moe_json_i64(r->json, r->where, key, required, &v));
    if (r->n_errors > before || !value_of(r->json, key))
        return;
    if (v < lo || v > hi)
        complain(r, "\"%s\" is %lld; expected %lld to %lld", key, (long long)v, (long long)lo,
                 (long long)hi);
    else
        *out = v;
}

/* Of the object named `where`: r->where, or the key of an object inside the config. */
static void get_real(Reader *r, const json_t *object, const char *where, const char *key, double lo,
                     double hi, double *out) {
    double v = lo;
    int before = r->n_errors;
    keep_error(r, moe_json_f64(object, where, key, false, &v));
    if (r->n_errors > before || !value_of(object, key))
        return;
    if (v >= lo && v <= hi) {
        *out = v;
        return;
    }
    bool inner = where != r->where;
    complain(r, "\"%s%s%s\" is %g; expected %g to %g", inner ? where : "", inner ? "." : "", key, v,
             lo, hi);
}

static void get_bool(Reader *r, const char *key, bool *out) {
    keep_error(r, moe_json_bool(r->json, r->where, key, false, out));
}

static const char *get_str(Reader *r, const json_t *object, const char *where, const char *key,
                           const char *otherwise) {
    const char *v = otherwise;
    keep_error(r, moe_json_str(object, where, key, false, &v));
    return v;
}

/* ---- keys with two spellings ---- */

/* "rope_parameters" (since transformers 5) or "rope_scaling" (before): type and base in an object.
 * Per-layer-type objects inside it, and any type but the plain one, are refused. */
static void read_rope_object(Reader *r, const char *where, MoeHfConfig *c) {
    const json_t *object = value_of(r->json, where);
    if (!object)
        return;
    if (!json_is_object(object)) {
        complain(r, "\"%s\" must be an object or null", where);
        return;
    }
    const char *key = value_of(object, "rope_type") ? "rope_type" : "type";
    const char *type = get_str(r, object, where, key, "default");
    if (strcmp(type, "default") != 0)
        complain(r, "\"%s.%s\" is \"%.40s\"; only \"default\" is supported", where, key, type);
    const json_t *v;
    json_object_foreach((json_t *)object, key, v) if (json_is_object(v)) complain(
        r, "\"%s.%.40s\": rotary embeddings that differ by layer are not supported", where, key);
    double top = c->rope_theta, partial = 1;
    get_real(r, object, where, "rope_theta", 1.0, 1e12, &c->rope_theta);
    if (json_is_number(value_of(object, "rope_theta")) && value_of(r->json, "rope_theta") &&
        c->rope_theta != top)
        complain(r, "\"rope_theta\" is %g but \"%s.rope_theta\" is %g; keep one", top, where,
                 json_number_value(value_of(object, "rope_theta")));
    get_real(r, object, where, "partial_rotary_factor", 0.0, 1.0, &partial);
    if (partial != 1)
        complain(r, "\"%s.partial_rotary_factor\" is %g; only 1 is supported", where, partial);
}

static void read_rope(Reader *r, MoeHfConfig *c) {
    double partial = 1;
    get_real(r, r->json, r->where, "rope_theta", 1.0, 1e12, &c->rope_theta);
    get_real(r, r->json, r->where, "partial_rotary_factor", 0.0, 1.0, &partial);
    if (partial != 1)
        complain(r, "\"partial_rotary_factor\" is %g; only 1 is supported", partial);
    read_rope_object(r, "rope_parameters", c);
    read_rope_object(r, "rope_scaling", c);
}

/* "dtype" (since transformers 5) or "torch_dtype" (before). */
static void read_dtype(Reader *r, MoeHfConfig *c) {
    static const char *const keys[] = {"torch_dtype", "dtype"};
    const char *seen = NULL;
    for (int i = 0; i < 2; i++) {
        const char *dtype = get_str(r, r->json, r->where, keys[i], NULL);
        if (!dtype)
            continue;
        if (strncmp(dtype, "torch.", 6) == 0)
            dtype += 6;
        c->bf16 = strcmp(dtype, "bfloat16") == 0;
        c->f16 = strcmp(dtype, "float16") == 0;
        if (!c->bf16 && !c->f16 && strcmp(dtype, "float32") != 0)
            complain(r, "\"%s\" is \"%.40s\"; expected \"float32\", \"bfloat16\" or \"float16\"",
                     keys[i], dtype);
        if (seen && strcmp(seen, dtype) != 0)
            complain(r, "\"torch_dtype\" is \"%.40s\" but \"dtype\" is \"%.40s\"; keep one", seen,
                     dtype);
        seen = dtype;
    }
}

/* "num_local_experts", or its alias in transformers "num_experts". */
static void read_experts(Reader *r, MoeHfConfig *c) {
    int64_t alias = 0;
    c->experts = 8;
    get_int(r, "num_experts", false, 1, 65536, &alias);
    if (alias)
        c->experts = alias;
    get_int(r, "num_local_experts", false, 1, 65536, &c->experts);
    if (alias && c->experts != alias)
        complain(r, "\"num_local_experts\" is %lld but \"num_experts\" is %lld; keep one",
                 (long long)c->experts, (long long)alias);
    c->experts_per_token = 2;
    get_int(r, "num_experts_per_tok", false, 1, 65536, &c->experts_per_token);
}

/* ---- what is refused or warned of ---- */

static void refuse_unless_zero(Reader *r, const char *key) {
    double v = 0;
    get_real(r, r->json, r->where, key, 0, 1, &v);
    if (v > 0)
        complain(r, "\"%s\" is %g; it is not supported, set it to 0", key, v);
}

static void refuse_if_true(Reader *r, const char *key) {
    bool v = false;
    get_bool(r, key, &v);
    if (v)
        complain(r, "\"%s\" is true; projections with a bias are not supported", key);
}

static void read_unsupported(Reader *r, bool mixtral) {
    const char *act = get_str(r, r->json, r->where, "hidden_act", "silu");
    if (strcmp(act, "silu") != 0)
        complain(r, "\"hidden_act\" is \"%.40s\"; only \"silu\" is supported", act);
    refuse_unless_zero(r, "attention_dropout");
    if (mixtral)
        refuse_unless_zero(r, "router_jitter_noise");
    refuse_if_true(r, "attention_bias");
    refuse_if_true(r, "mlp_bias");
    if (value_of(r->json, "quantization_config"))
        complain(r, "\"quantization_config\": quantized weights are not supported; start from the "
                    "unquantized model");
}

/* The known key that an unknown one probably means: close to it, and itself absent. */
static const char *misspelt(const json_t *json, const char *key) {
    const char *absent[N_KEYS];
    size_t n = 0;
    for (size_t i = 0; i < N_KEYS; i++) {
        if (strcmp(key, known_key(i)) == 0)
            return NULL;
        if (!json_object_get(json, known_key(i)))
            absent[n++] = known_key(i);
    }
    return moe_nearest_name(key, absent, n);
}

/* Said with the errors if there are any (the mistake may be the cause), else as warnings. */
static void report_keys(Reader *r, bool mixtral) {
    bool errors = r->n_errors > 0;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)r->json, key, value) {
        const char *near = misspelt(r->json, key);
        if (near && errors)
            complain(r, "unknown key \"%s\" (did you mean \"%s\"?)", key, near);
        else if (near)
            moe_warn("%s: unknown key \"%s\" (did you mean \"%s\"?); it has no effect", r->where,
                     key, near);
    }
    if (!errors && value_of(r->json, "pad_token_id"))
        moe_warn("%s: \"pad_token_id\": the embedding of that token is trained like the others; "
                 "transformers would keep it as it is",
                 r->where);
    for (size_t i = 0; i < N_MIXTRAL_KEYS && !mixtral && !errors; i++)
        if (value_of(r->json, mixtral_keys[i]))
            moe_warn("%s: \"%s\" has no effect in a llama", r->where, mixtral_keys[i]);
}

static void check_tensor(Reader *r, const char *what, int64_t a, int64_t b, int64_t c) {
    double n = (double)a * (double)b * (double)c;
    if (n > MAX_TENSOR)
        complain(r, "the sizes are absurd: %s would hold %.3g numbers; at most %g are taken", what,
                 n, MAX_TENSOR);
}

static void check_together(Reader *r, MoeHfConfig *c, bool mixtral) {
    const char *said = value_of(r->json, "head_dim") ? "" : " (and there is no \"head_dim\")";
    long long heads = c->heads, kv_heads = c->kv_heads;
    /* transformers refuses it in a llama whatever head_dim says. */
    if (c->hidden_size % c->heads != 0 && (c->head_dim == 0 || !mixtral)) {
        complain(r, "\"num_attention_heads\" %lld does not divide \"hidden_size\" %lld%s", heads,
                 (long long)c->hidden_size, said);
    } else {
        if (c->head_dim == 0)
            c->head_dim = c->hidden_size / c->heads;
        if (c->head_dim % 2 != 0 || c->head_dim > MAX_HEAD_DIM)
            complain(r, "%s is %lld; expected an even number up to %d",
                     *said ? "the head dimension (\"hidden_size\" / heads)" : "\"head_dim\"",
                     (long long)c->head_dim, MAX_HEAD_DIM);
    }
    if (c->heads % c->kv_heads != 0)
        complain(r, "\"num_key_value_heads\" %lld%s does not divide \"num_attention_heads\" %lld",
                 kv_heads, json_object_get(r->json, "num_key_value_heads") ? "" : " (the default)",
                 heads);
    if (c->experts && c->experts_per_token > c->experts)
        complain(r, "\"num_experts_per_tok\" %lld is more than \"num_local_experts\" %lld",
                 (long long)c->experts_per_token, (long long)c->experts);
    check_tensor(r, "the embedding", c->vocab_size, c->hidden_size, 1);
    check_tensor(r, "a query projection", c->heads, c->head_dim, c->hidden_size);
    check_tensor(r, c->experts ? "the experts of a layer" : "an MLP projection",
                 c->experts ? c->experts : 1, c->intermediate_size, c->hidden_size);
}

static MoeStatus read_model_type(const json_t *json, const char *where, const char **out) {
    if (!json_is_object(json))
        return moe_error(MOE_E_INPUT, "%s: expected a JSON object with the model's configuration",
                         where);
    MoeStr all = {0};
    for (size_t i = 0; i < N_MODEL_TYPES; i++)
        moe_str_printf(&all, "%s\"%s\"", i ? ", " : "", model_types[i]);
    *out = NULL;
    MoeStatus st = moe_json_str(json, where, "model_type", false, out);
    bool found = false;
    for (size_t i = 0; *out && i < N_MODEL_TYPES; i++)
        found |= strcmp(*out, model_types[i]) == 0;
    if (!st && !*out)
        st = moe_error(MOE_E_INPUT, "%s: \"model_type\" is missing; it is required, one of %s",
                       where, moe_str_c(&all));
    if (!st && !found) {
        const char *near = moe_nearest_name(*out, model_types, N_MODEL_TYPES);
        st = moe_error(MOE_E_INPUT, "%s: unknown model_type \"%.60s\"%s%s%s; supported are %s",
                       where, *out, near ? " (did you mean \"" : "", near ? near : "",
                       near ? "\"?)" : "", moe_str_c(&all));
    }
    moe_str_free(&all);
    return st;
}

MoeStatus moe_hf_config_parse(const json_t *json, const char *where, MoeHfConfig *c) {
    Reader r = {.json = json, .where = where};
    memset(c, 0, sizeof *c);
    const char *type;
    MOE_TRY(read_model_type(json, where, &type));
    bool mixtral = strcmp(type, "mixtral") == 0;
    snprintf(c->model_type, sizeof c->model_type, "%s", type);
    int64_t pad = 0;

    get_int(&r, "vocab_size", true, 1, 4 << 20, &c->vocab_size);
    get_int(&r, "hidden_size", true, 2, MAX_DIM, &c->hidden_size);
    get_int(&r, "intermediate_size", true, 1, MAX_DIM, &c->intermediate_size);
    get_int(&r, "num_hidden_layers", true, 1, 4096, &c->layers);
    get_int(&r, "num_attention_heads", true, 1, 65536, &c->heads);
    /* Absent, a Mixtral has 8; null, as many as heads. */
    c->kv_heads = mixtral && !json_object_get(json, "num_key_value_heads") ? 8 : c->heads;
    get_int(&r, "num_key_value_heads", false, 1, 65536, &c->kv_heads);
    get_int(&r, "head_dim", false, 2, MAX_HEAD_DIM, &c->head_dim);
    c->max_positions = mixtral ? 131072 : 2048;
    get_int(&r, "max_position_embeddings", false, 1, MAX_POSITIONS, &c->max_positions);
    c->rms_norm_eps = mixtral ? 1e-5 : 1e-6;
    get_real(&r, json, where, "rms_norm_eps", 0.0, 1.0, &c->rms_norm_eps);
    c->initializer_range = 0.02;
    get_real(&r, json, where, "initializer_range", 0.0, 1.0, &c->initializer_range);
    c->rope_theta = mixtral ? 1e6 : 1e4;
    read_rope(&r, c);
    read_dtype(&r, c);
    get_bool(&r, "tie_word_embeddings", &c->tie_word_embeddings);
    if (mixtral) {
        read_experts(&r, c);
        get_int(&r, "sliding_window", false, 1, MAX_POSITIONS, &c->sliding_window);
        c->router_aux_loss_coef = 0.001;
        get_real(&r, json, where, "router_aux_loss_coef", 0.0, 1e6, &c->router_aux_loss_coef);
        get_bool(&r, "output_router_logits", &c->output_router_logits);
    }
    read_unsupported(&r, mixtral);
    if (c->vocab_size) /* as torch counts: negative ones from the end */
        get_int(&r, "pad_token_id", false, -c->vocab_size, c->vocab_size - 1, &pad);
    if (r.n_errors == 0)
        check_together(&r, c, mixtral);
    report_keys(&r, mixtral);
    MoeStatus st = NULL;
    if (r.n_errors)
        st = moe_error(MOE_E_INPUT, "%s: %s", where, moe_str_c(&r.errors));
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
