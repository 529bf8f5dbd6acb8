/* Hugging Face configs: both spellings of the keys, transformers' defaults, every refusal (by key,
 * all of them in one message), the hints for misspelt keys. What is built from them:
 * frontend_build.c. */
#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/io.h"
#include "base/json.h"
#include "frontends/frontend.h"
#include "tests/support/check_main.h"
#include "tests/support/files.h"

#define SIZES                                                                                      \
    "\"vocab_size\": 96, \"hidden_size\": 32, \"intermediate_size\": 48, \"num_hidden_layers\": "  \
    "2, "                                                                                          \
    "\"num_attention_heads\": 8"
#define MIXTRAL "{\"model_type\": \"mixtral\", " SIZES ", "
#define LLAMA   "{\"model_type\": \"llama\", " SIZES ", "
#define END     "\"use_cache\": true}"

static MoeStatus parse_text(const char *text, MoeHfConfig *c) {
    json_t *json = NULL;
    MoeStatus st = moe_json_load_text(text, strlen(text), "c.json", &json);
    ck_assert_msg(!st, "the test's JSON: %s", moe_status_message(st));
    st = moe_hf_config_parse(json, "c.json", c);
    json_decref(json);
    return st;
}

static MoeHfConfig good(const char *text) {
    MoeHfConfig c;
    MoeStatus st = parse_text(text, &c);
    ck_assert_msg(!st, "%s: %s", text, moe_status_message(st));
    return c;
}

/* A refusal that names the file once and holds every word; NULL ends the words. */
#define BAD(text, ...)                                                                             \
    do {                                                                                           \
        MoeHfConfig bad_c;                                                                         \
        MoeStatus bad_st = parse_text(text, &bad_c);                                               \
        ck_assert_msg(!bad_st || strncmp(moe_status_message(bad_st), "c.json: ", 8) == 0, "%s",    \
                      moe_status_message(bad_st));                                                 \
        ck_assert_msg(!bad_st || !strstr(moe_status_message(bad_st) + 8, "c.json"), "%s",          \
                      moe_status_message(bad_st));                                                 \
        const char *bad_why = moe_test_error(bad_st, MOE_E_INPUT, __VA_ARGS__, NULL);              \
        ck_assert_msg(!bad_why, "%s: %s", text, bad_why);                                          \
    } while (0)

/* What parsing says on standard error (malloc'd). */
static char *said(const char *text) {
    const char *path = moe_test_path("stderr");
    fflush(stderr);
    int keep = dup(2);
    ck_assert_ptr_nonnull(freopen(path, "w", stderr));
    good(text);
    fflush(stderr);
    dup2(keep, 2);
    close(keep);
    char *out;
    size_t n;
    MoeStatus st = moe_file_read(path, 1 << 20, &out, &n);
    ck_assert_msg(!st, "%s", moe_status_message(st));
    return out;
}

/* ---- what is read ---- */

/* MixtralConfig().to_dict() and LlamaConfig().to_dict() of transformers 5.23. */
START_TEST(defaults) {
    MoeHfConfig m = good(MIXTRAL END), l = good(LLAMA END);
    ck_assert_str_eq(m.model_type, "mixtral");
    ck_assert_str_eq(l.model_type, "llama");
    ck_assert_int_eq(m.vocab_size, 96);
    ck_assert_int_eq(m.hidden_size, 32);
    ck_assert_int_eq(m.intermediate_size, 48);
    ck_assert_int_eq(m.layers, 2);
    ck_assert_int_eq(m.heads, 8);
    ck_assert_int_eq(m.head_dim, 4);
    ck_assert_int_eq(l.head_dim, 4);
    ck_assert_int_eq(m.kv_heads, 8);
    ck_assert_int_eq(l.kv_heads, 8);
    ck_assert_int_eq(m.max_positions, 131072);
    ck_assert_int_eq(l.max_positions, 2048);
    ck_assert(m.rms_norm_eps == 1e-5 && l.rms_norm_eps == 1e-6);
    ck_assert(m.rope_theta == 1e6 && l.rope_theta == 1e4);
    ck_assert(m.initializer_range == 0.02 && l.initializer_range == 0.02);
    ck_assert(m.experts == 8 && m.experts_per_token == 2);
    ck_assert(l.experts == 0 && l.experts_per_token == 0);
    ck_assert(m.router_aux_loss_coef == 0.001 && !m.output_router_logits);
    ck_assert(m.sliding_window == 0 && l.sliding_window == 0);
    ck_assert(!m.tie_word_embeddings && !l.tie_word_embeddings);
    ck_assert(!m.bf16 && !l.bf16 && !m.f16 && !l.f16);
}
END_TEST

START_TEST(given_values) {
    MoeHfConfig c = good(MIXTRAL "\"num_key_value_heads\": 2, \"head_dim\": 16, "
                                 "\"max_position_embeddings\": 64, \"rms_norm_eps\": 0.5, "
                                 "\"initializer_range\": 0.25, \"tie_word_embeddings\": true, "
                                 "\"num_local_experts\": 5, \"num_experts_per_tok\": 3, "
                                 "\"sliding_window\": 7, \"router_aux_loss_coef\": 0.125, "
                                 "\"output_router_logits\": true}");
    ck_assert_int_eq(c.kv_heads, 2);
    ck_assert_int_eq(c.head_dim, 16);
    ck_assert_int_eq(c.max_positions, 64);
    ck_assert(c.rms_norm_eps == 0.5 && c.initializer_range == 0.25);
    ck_assert(c.tie_word_embeddings && c.output_router_logits);
    ck_assert(c.experts == 5 && c.experts_per_token == 3);
    ck_assert_int_eq(c.sliding_window, 7);
    ck_assert(c.router_aux_loss_coef == 0.125);
    /* A number may be written as an integer where a real one is meant. */
    ck_assert(good(LLAMA "\"rope_theta\": 500}").rope_theta == 500);
}
END_TEST

/* null counts as absent; num_key_value_heads alone tells the two apart, as in transformers. */
START_TEST(nulls) {
    MoeHfConfig c =
        good("{\"model_type\": \"mixtral\", \"vocab_size\": 9, \"hidden_size\": 32, "
             "\"intermediate_size\": 8, \"num_hidden_layers\": 1, \"num_attention_heads\": 4, "
             "\"num_key_value_heads\": null, \"head_dim\": null, \"sliding_window\": null, "
             "\"rope_theta\": null, \"rope_parameters\": null, \"rope_scaling\": null, "
             "\"dtype\": null, \"torch_dtype\": null, \"num_local_experts\": null, "
             "\"num_experts\": null, \"num_experts_per_tok\": null, \"attention_dropout\": null, "
             "\"quantization_config\": null, \"hidden_act\": null, \"rms_norm_eps\": null, "
             "\"max_position_embeddings\": null, \"tie_word_embeddings\": null}");
    ck_assert_int_eq(c.kv_heads, 4);
    ck_assert_int_eq(c.head_dim, 8);
    ck_assert(c.rope_theta == 1e6 && c.rms_norm_eps == 1e-5);
    ck_assert(c.experts == 8 && c.experts_per_token == 2);
    BAD("{\"model_type\": \"mixtral\", \"vocab_size\": 9, \"hidden_size\": 32, "
        "\"intermediate_size\": 8, \"num_hidden_layers\": 1, \"num_attention_heads\": 4}",
        "\"num_key_value_heads\" 8 (the default) does not divide \"num_attention_heads\" 4");
}
END_TEST

START_TEST(two_spellings) {
    static const struct {
        const char *text;
        double theta;
    } thetas[] = {
        {MIXTRAL "\"rope_theta\": 500.0}", 500},
        {MIXTRAL "\"rope_parameters\": {\"rope_theta\": 500.0}}", 500},
        {MIXTRAL "\"rope_theta\": 500, \"rope_parameters\": {\"rope_theta\": 500.0, "
                 "\"rope_type\": \"default\"}}",
         500},
        {MIXTRAL "\"rope_theta\": 500.0, \"rope_parameters\": {\"type\": \"default\"}}", 500},
        {LLAMA "\"rope_scaling\": {\"type\": \"default\"}}", 1e4},
        {LLAMA "\"rope_scaling\": {\"rope_type\": \"default\", \"rope_theta\": 7}}", 7},
        {LLAMA "\"rope_parameters\": {}}", 1e4}};
    for (size_t i = 0; i < sizeof thetas / sizeof *thetas; i++)
        ck_assert_msg(good(thetas[i].text).rope_theta == thetas[i].theta, "%s", thetas[i].text);
    static const char *const bf16[] = {MIXTRAL "\"torch_dtype\": \"bfloat16\"}",
                                       MIXTRAL "\"dtype\": \"bfloat16\"}",
                                       MIXTRAL "\"dtype\": \"torch.bfloat16\"}",
                                       MIXTRAL
                                       "\"dtype\": \"bfloat16\", \"torch_dtype\": \"bfloat16\"}",
                                       MIXTRAL "\"dtype\": null, \"torch_dtype\": \"bfloat16\"}",
                                       MIXTRAL "\"dtype\": \"bfloat16\", \"torch_dtype\": null}"};
    for (size_t i = 0; i < sizeof bf16 / sizeof *bf16; i++) {
        MoeHfConfig c = good(bf16[i]);
        ck_assert_msg(c.bf16 && !c.f16, "%s", bf16[i]);
    }
    MoeHfConfig f16 = good(LLAMA "\"torch_dtype\": \"float16\"}"),
                f32 = good(LLAMA "\"dtype\": \"float32\"}");
    ck_assert(f16.f16 && !f16.bf16 && !f32.f16 && !f32.bf16);
    ck_assert_int_eq(good(MIXTRAL "\"num_experts\": 4}").experts, 4);
    ck_assert_int_eq(good(MIXTRAL "\"num_experts\": 4, \"num_local_experts\": 4}").experts, 4);
}
END_TEST

START_TEST(spellings_that_contradict) {
    BAD(MIXTRAL "\"rope_theta\": 500, \"rope_parameters\": {\"rope_theta\": 600}}",
        "\"rope_theta\" is 500", "\"rope_parameters.rope_theta\" is 600", "keep one");
    BAD(MIXTRAL "\"dtype\": \"float32\", \"torch_dtype\": \"bfloat16\"}",
        "\"torch_dtype\" is \"bfloat16\" but \"dtype\" is \"float32\"");
    BAD(MIXTRAL "\"num_experts\": 4, \"num_local_experts\": 8}",
        "\"num_local_experts\" is 8 but \"num_experts\" is 4");
}
END_TEST

/* ---- what is refused ---- */

START_TEST(model_types) {
    BAD("{\"model_type\": \"mixtrl\"}", "unknown model_type \"mixtrl\"",
        "did you mean \"mixtral\"?", "\"mixtral\", \"llama\"");
    BAD("{\"model_type\": \"lama\"}", "did you mean \"llama\"?");
    BAD("{\"model_type\": \"deepseek_v3\"}", "\"deepseek_v3\"", "\"mixtral\", \"llama\"");
    BAD("{\"hidden_size\": 4}", "\"model_type\" is missing", "\"mixtral\", \"llama\"");
    BAD("{\"model_type\": null}", "\"model_type\" is missing");
    BAD("{\"model_type\": 3}", "\"model_type\" must be a string", "3");
    BAD("[1, 2]", "expected a JSON object");
}
END_TEST

START_TEST(missing_keys) {
    BAD("{\"model_type\": \"mixtral\"}", "\"vocab_size\" is missing", "\"hidden_size\" is missing",
        "\"intermediate_size\" is missing", "\"num_hidden_layers\" is missing",
        "\"num_attention_heads\" is missing");
    BAD("{\"model_type\": \"llama\", \"vocab_size\": 9, \"hidden_size\": null, "
        "\"intermediate_size\": 8, \"num_hidden_layers\": 1, \"num_attention_heads\": 4}",
        "\"hidden_size\" is null; it is required");
    /* The cause beside the error. */
    BAD("{\"model_type\": \"llama\", \"vocab_size\": 9, \"hiden_size\": 32, "
        "\"intermediate_size\": 8, \"num_hidden_layers\": 1, \"num_attention_heads\": 4}",
        "\"hidden_size\" is missing", "unknown key \"hiden_size\" (did you mean \"hidden_size\"?)");
}
END_TEST

/* Each of these alone is one complaint that names key, expectation and what is there; all together
 * are as many complaints. */
START_TEST(mistyped_keys) {
    static const struct {
        const char *key, *value, *expected;
    } rows[] = {
        {"vocab_size", "\"many\"", "an integer"},
        {"hidden_size", "32.5", "an integer"},
        {"intermediate_size", "true", "an integer"},
        {"num_hidden_layers", "[2]", "an integer"},
        {"num_attention_heads", "{}", "an integer"},
        {"num_key_value_heads", "\"2\"", "an integer"},
        {"head_dim", "8.0", "an integer"},
        {"max_position_embeddings", "1e3", "an integer"},
        {"num_local_experts", "\"8\"", "an integer"},
        {"num_experts_per_tok", "2.0", "an integer"},
        {"sliding_window", "false", "an integer"},
        {"rms_norm_eps", "\"1e-5\"", "a number"},
        {"initializer_range", "[]", "a number"},
        {"rope_theta", "\"1e6\"", "a number"},
        {"router_aux_loss_coef", "true", "a number"},
        {"attention_dropout", "\"0\"", "a number"},
        {"router_jitter_noise", "{}", "a number"},
        {"tie_word_embeddings", "0", "true or false"},
        {"output_router_logits", "\"true\"", "true or false"},
        {"attention_bias", "1", "true or false"},
        {"hidden_act", "1", "a string"},
        {"torch_dtype", "32", "a string"},
        {"rope_scaling", "2", "an object"},
        {"rope_parameters", "[]", "an object"},
    };
    size_t n = sizeof rows / sizeof *rows;
    json_t *all = json_loads(MIXTRAL END, 0, NULL);
    for (size_t i = 0; i < n; i++) {
        json_t *one = json_loads(MIXTRAL END, 0, NULL);
        json_object_set_new(one, rows[i].key, json_loads(rows[i].value, JSON_DECODE_ANY, NULL));
        json_object_set_new(all, rows[i].key, json_loads(rows[i].value, JSON_DECODE_ANY, NULL));
        char *text = json_dumps(one, 0), quoted[64];
        snprintf(quoted, sizeof quoted, "\"%s\" must be %s", rows[i].key, rows[i].expected);
        BAD(text, quoted);
        free(text);
        json_decref(one);
    }
    MoeHfConfig c;
    MoeStatus st = moe_hf_config_parse(all, "c.json", &c);
    ck_assert_ptr_nonnull(st);
    size_t lines = 1;
    for (const char *p = moe_status_message(st); *p; p++)
        lines += *p == '\n';
    ck_assert_msg(lines == n, "%zu complaints for %zu mistakes:\n%s", lines, n,
                  moe_status_message(st));
    moe_status_free(st);
    json_decref(all);
}
END_TEST

START_TEST(sizes_that_do_not_fit) {
    BAD(MIXTRAL "\"head_dim\": null, \"num_key_value_heads\": 3}",
        "\"num_key_value_heads\" 3 does not divide \"num_attention_heads\" 8");
    BAD("{\"model_type\": \"mixtral\", \"vocab_size\": 9, \"hidden_size\": 30, "
        "\"intermediate_size\": 8, \"num_hidden_layers\": 1, \"num_attention_heads\": 8}",
        "\"num_attention_heads\" 8 does not divide \"hidden_size\" 30", "no \"head_dim\"");
    /* With head_dim given, a Mixtral may; a llama may not, says transformers. */
    MoeHfConfig c = good("{\"model_type\": \"mixtral\", \"vocab_size\": 9, \"hidden_size\": 30, "
                         "\"head_dim\": 4, \"intermediate_size\": 8, \"num_hidden_layers\": 1, "
                         "\"num_attention_heads\": 8}");
    ck_assert_int_eq(c.head_dim, 4);
    BAD("{\"model_type\": \"llama\", \"vocab_size\": 9, \"hidden_size\": 30, \"head_dim\": 4, "
        "\"intermediate_size\": 8, \"num_hidden_layers\": 1, \"num_attention_heads\": 8}",
        "\"num_attention_heads\" 8 does not divide \"hidden_size\" 30");
    BAD(MIXTRAL "\"head_dim\": 7}", "\"head_dim\" is 7; expected an even number up to 512");
    BAD("{\"model_type\": \"llama\", \"vocab_size\": 9, \"hidden_size\": 24, "
        "\"intermediate_size\": 8, \"num_hidden_layers\": 1, \"num_attention_heads\": 8}",
        "head dimension (\"hidden_size\" / heads) is 3", "even number up to 512");
    BAD(MIXTRAL "\"num_local_experts\": 4, \"num_experts_per_tok\": 5}",
        "\"num_experts_per_tok\" 5 is more than \"num_local_experts\" 4");
    BAD("{\"model_type\": \"llama\", \"vocab_size\": 9, \"hidden_size\": 4096, "
        "\"intermediate_size\": 8, \"num_hidden_layers\": 1, \"num_attention_heads\": 4}",
        "head dimension (\"hidden_size\" / heads) is 1024", "even number up to 512");
    good(MIXTRAL "\"head_dim\": 512}");
    good(MIXTRAL "\"num_local_experts\": 4, \"num_experts_per_tok\": 4}");
    good(MIXTRAL "\"num_local_experts\": 1, \"num_experts_per_tok\": 1}");
    /* Two that do not fit are both named. */
    BAD(MIXTRAL "\"num_key_value_heads\": 5, \"num_experts_per_tok\": 9}",
        "\"num_key_value_heads\" 5", "\"num_experts_per_tok\" 9");
}
END_TEST

START_TEST(absurd_sizes) {
    static const char *const keys[] = {"vocab_size",
                                       "hidden_size",
                                       "intermediate_size",
                                       "num_hidden_layers",
                                       "num_attention_heads",
                                       "num_key_value_heads",
                                       "head_dim",
                                       "max_position_embeddings",
                                       "num_local_experts",
                                       "num_experts_per_tok",
                                       "sliding_window"};
    static const int64_t values[] = {0, -1, INT64_MIN, INT64_MAX, (int64_t)1 << 40};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        for (size_t j = 0; j < sizeof values / sizeof *values; j++) {
            json_t *one = json_loads(MIXTRAL END, 0, NULL);
            json_object_set_new(one, keys[i], json_integer(values[j]));
            char *text = json_dumps(one, 0), quoted[96];
            bool two = strcmp(keys[i], "hidden_size") == 0 || strcmp(keys[i], "head_dim") == 0;
            snprintf(quoted, sizeof quoted, "\"%s\" is %lld; expected %d to", keys[i],
                     (long long)values[j], two ? 2 : 1);
            BAD(text, quoted);
            free(text);
            json_decref(one);
        }
    BAD(MIXTRAL "\"pad_token_id\": 96}", "\"pad_token_id\" is 96; expected -96 to 95");
    BAD(MIXTRAL "\"rms_norm_eps\": -1}", "\"rms_norm_eps\" is -1; expected 0 to 1");
    BAD(MIXTRAL "\"initializer_range\": -0.5}", "\"initializer_range\" is -0.5");
    BAD(MIXTRAL "\"rope_theta\": 0}", "\"rope_theta\" is 0; expected 1 to");
    BAD(MIXTRAL "\"rope_parameters\": {\"rope_theta\": -4}}",
        "\"rope_parameters.rope_theta\" is -4");
    BAD(MIXTRAL "\"router_aux_loss_coef\": -1}", "\"router_aux_loss_coef\" is -1");
    /* Each size allowed, their product not. */
    BAD("{\"model_type\": \"mixtral\", \"vocab_size\": 4194304, \"hidden_size\": 16777216, "
        "\"intermediate_size\": 16777216, \"num_hidden_layers\": 4096, "
        "\"num_attention_heads\": 65536, \"num_key_value_heads\": 65536, \"head_dim\": 512, "
        "\"num_local_experts\": 65536}",
        "the embedding would hold", "a query projection would hold",
        "the experts of a layer would hold");
}
END_TEST

START_TEST(unsupported) {
    BAD(MIXTRAL "\"hidden_act\": \"gelu\"}", "\"hidden_act\" is \"gelu\"", "\"silu\"");
    BAD(LLAMA "\"attention_bias\": true}", "\"attention_bias\" is true");
    BAD(LLAMA "\"mlp_bias\": true}", "\"mlp_bias\" is true");
    BAD(MIXTRAL "\"attention_bias\": true}", "\"attention_bias\" is true");
    BAD(MIXTRAL "\"attention_dropout\": 0.1}", "\"attention_dropout\" is 0.1", "set it to 0");
    BAD(MIXTRAL "\"router_jitter_noise\": 0.01}", "\"router_jitter_noise\" is 0.01", "set it to 0");
    BAD(MIXTRAL "\"dtype\": \"float8_e4m3fn\"}", "\"dtype\" is \"float8_e4m3fn\"", "\"bfloat16\"");
    BAD(MIXTRAL "\"torch_dtype\": \"int8\"}", "\"torch_dtype\" is \"int8\"");
    BAD(LLAMA "\"rope_scaling\": {\"type\": \"linear\", \"factor\": 2.0}}",
        "\"rope_scaling.type\" is \"linear\"", "\"default\"");
    BAD(LLAMA "\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8.0}}",
        "\"rope_scaling.rope_type\" is \"llama3\"");
    BAD(LLAMA "\"rope_parameters\": {\"rope_type\": \"yarn\"}}",
        "\"rope_parameters.rope_type\" is \"yarn\"");
    BAD(LLAMA "\"rope_parameters\": {\"full_attention\": {\"rope_theta\": 5}}}",
        "\"rope_parameters.full_attention\"", "differ by layer");
    BAD(LLAMA "\"partial_rotary_factor\": 0.5}", "\"partial_rotary_factor\" is 0.5");
    BAD(LLAMA "\"rope_parameters\": {\"partial_rotary_factor\": 0.5}}",
        "\"rope_parameters.partial_rotary_factor\" is 0.5");
    BAD(LLAMA "\"quantization_config\": {\"bits\": 4}}", "\"quantization_config\"");
    good(LLAMA "\"attention_bias\": false, \"mlp_bias\": false, \"attention_dropout\": 0, "
               "\"hidden_act\": \"silu\", \"partial_rotary_factor\": 1.0, "
               "\"quantization_config\": null}");
}
END_TEST

/* ---- hints ---- */

START_TEST(misspelt_keys) {
    char *text = said(MIXTRAL "\"slidng_window\": 4, \"router_aux_loss_coeff\": 1, "
                              "\"my_own_notes\": {}}");
    ck_assert_ptr_nonnull(
        strstr(text, "c.json: unknown key \"slidng_window\" (did you mean \"sliding_window\"?)"));
    ck_assert_ptr_nonnull(strstr(text, "(did you mean \"router_aux_loss_coef\"?)"));
    ck_assert_msg(!strstr(text, "my_own_notes"), "%s", text);
    free(text);
    text = said(LLAMA "\"sliding_window\": 4, \"num_local_experts\": null}");
    ck_assert_ptr_nonnull(strstr(text, "\"sliding_window\" has no effect in a llama"));
    ck_assert_msg(!strstr(text, "num_local_experts"), "%s", text);
    free(text);
    text = said(LLAMA "\"pad_token_id\": -1}");
    ck_assert_ptr_nonnull(strstr(text, "\"pad_token_id\""));
    free(text);
}
END_TEST

/* What transformers writes itself, and what it adds to every config, is nothing to warn of. */
START_TEST(own_keys_are_known) {
    char *text =
        said(MIXTRAL "\"output_hidden_states\": false, \"return_dict\": true, \"dtype\": null, "
                     "\"chunk_size_feed_forward\": 0, \"is_encoder_decoder\": false, "
                     "\"id2label\": {}, \"label2id\": {}, \"problem_type\": null, "
                     "\"pad_token_id\": null, \"bos_token_id\": 1, \"eos_token_id\": 2, "
                     "\"_name_or_path\": \"\", \"output_attentions\": false, "
                     "\"transformers_version\": \"5.23.0\", \"architectures\": null, " END);
    ck_assert_str_eq(text, "");
    free(text);
}
END_TEST

START_TEST(files) {
    MoeHfConfig c;
    json_t *json = NULL;
    const char *why;
#define READ_BAD(path, code, ...)                                                                  \
    why = moe_test_error(moe_hf_config_read(path, &c, &json), code, __VA_ARGS__, NULL);            \
    ck_assert_msg(!why, "%s", why)
    READ_BAD(moe_test_path("absent.json"), MOE_E_IO, "absent.json");
    const char broken[] = "{\"model_type\": \"mixtral\",\n \"vocab_size\" 4}";
    READ_BAD(moe_test_file("broken.json", broken, strlen(broken)), MOE_E_INPUT, "broken.json:2:");
    const char twice[] = "{\"model_type\": \"mixtral\", \"model_type\": \"llama\"}";
    READ_BAD(moe_test_file("twice.json", twice, strlen(twice)), MOE_E_INPUT,
             "twice.json:1:", "model_type");
    const char bytes[] = "{\"model_type\": \"mix\xff\"}";
    READ_BAD(moe_test_file("bytes.json", bytes, strlen(bytes)), MOE_E_INPUT, "bytes.json:1:");
    READ_BAD(moe_test_file("empty.json", "", 0), MOE_E_INPUT, "empty.json");
    const char huge[] = MIXTRAL "\"head_dim\": 123456789012345678901234567890}";
    READ_BAD(moe_test_file("huge.json", huge, strlen(huge)), MOE_E_INPUT, "huge.json:1:");
    ck_assert_ptr_null(json);
    MoeStatus st = moe_hf_config_read(
        moe_test_file("fine.json", MIXTRAL "\"extra\": 1}", strlen(MIXTRAL "\"extra\": 1}")), &c,
        &json);
    ck_assert_msg(!st, "%s", moe_status_message(st));
    ck_assert_int_eq(json_integer_value(json_object_get(json, "extra")), 1);
    json_decref(json);
}
END_TEST

int main(void) {
    Suite *s = suite_create("frontend");
    TCase *tc = tcase_create("read");
    tcase_add_test(tc, defaults);
    tcase_add_test(tc, given_values);
    tcase_add_test(tc, nulls);
    tcase_add_test(tc, two_spellings);
    tcase_add_test(tc, spellings_that_contradict);
    suite_add_tcase(s, tc);
    tc = tcase_create("refused");
    tcase_add_test(tc, model_types);
    tcase_add_test(tc, missing_keys);
    tcase_add_test(tc, mistyped_keys);
    tcase_add_test(tc, sizes_that_do_not_fit);
    tcase_add_test(tc, absurd_sizes);
    tcase_add_test(tc, unsupported);
    tcase_add_test(tc, misspelt_keys);
    tcase_add_test(tc, own_keys_are_known);
    tcase_add_test(tc, files);
    suite_add_tcase(s, tc);
    moe_test_dir();
    return moe_check_main(s);
}
