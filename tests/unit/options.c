/* The command line: where values come from and who wins, how flags are spelt, what is refused and
 * how it is said, and that help, docs/CLI.md and completion tell the whole table. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "base/json.h"
#include "cli/options_internal.h"
#include "tests/support/check_main.h"
#include "tests/support/files.h"

#define CLI_MD MOE_SOURCE_DIR "/docs/CLI.md"

static void ok(MoeStatus st) {
    ck_assert_msg(!st, "%s", moe_status_message(st));
}

/* Arguments as a list ended by NULL. */
#define ARGS(...)                                                                                  \
    (char *[]) {                                                                                   \
        __VA_ARGS__, NULL                                                                          \
    }

static MoeStatus parse(const char *command, char **args, MoeOptions *o) {
    int n = 0;
    while (args[n])
        n++;
    return moe_options_parse(command, n, args, o);
}

static MoeOptions good(const char *command, char **args) {
    MoeOptions o;
    ok(parse(command, args, &o));
    return o;
}

#define BAD(command, args, code, ...)                                                              \
    do {                                                                                           \
        MoeOptions bad_o;                                                                          \
        const char *bad_why =                                                                      \
            moe_test_error(parse(command, args, &bad_o), code, __VA_ARGS__, NULL);                 \
        ck_assert_msg(!bad_why, "%s", bad_why);                                                    \
        moe_options_free(&bad_o);                                                                  \
    } while (0)

static char *none[] = {NULL};

static const char *file(const char *name, const char *text) {
    return moe_test_file(name, text, strlen(text));
}

/* ---- the table itself ---- */

START_TEST(table) {
    for (int i = 0; i < N_OPTIONS; i++) {
        const MoeOptionRow *r = &moe_option_rows[i];
        size_t n = strlen(r->commands);
        ck_assert_msg(n > 2 && r->commands[0] == ' ' && r->commands[n - 1] == ' ', "%s", r->name);
        char *list = strdup(r->commands);
        for (char *save, *c = strtok_r(list, " ", &save); c; c = strtok_r(NULL, " ", &save)) {
            ck_assert_msg(moe_command_known(c), "%s: command %s", r->name, c);
            for (int k = 0; k < i; k++)
                if (moe_option_applies(&moe_option_rows[k], c)) {
                    ck_assert_msg(strcmp(moe_option_rows[k].name, r->name), "%s: two --%s", c,
                                  r->name);
                    ck_assert_msg(!r->short_name || r->short_name != moe_option_rows[k].short_name,
                                  "%s: two -%c", c, r->short_name);
                }
        }
        free(list);
        ck_assert_msg((r->type == TYPE_FLAG) == !*r->metavar, "%s: metavar", r->name);
        ck_assert_msg(*r->help && r->help[strlen(r->help) - 1] != '.', "%s: help", r->name);
    }
}
END_TEST

/* Every default is a value that the option itself takes. */
START_TEST(defaults_are_values) {
    for (int c = 0; c < N_COMMANDS; c++) {
        const char *command = moe_command_rows[c].name;
        MoeOptions o = good(command, none);
        for (int i = 0; i < N_OPTIONS; i++) {
            const MoeOptionRow *r = &moe_option_rows[i];
            ck_assert_str_eq(moe_opt(&o, (MoeOption)i), r->default_value);
            ck_assert(!moe_opt_given(&o, (MoeOption)i));
            if (!moe_option_applies(r, command))
                continue;
            char arg[256];
            snprintf(arg, sizeof arg, "--%s=%s", r->name, r->default_value);
            MoeOptions given = good(command, ARGS(arg));
            ck_assert_str_eq(moe_opt(&given, (MoeOption)i), r->default_value);
            moe_options_free(&given);
        }
        moe_options_free(&o);
    }
}
END_TEST

/* ---- precedence ---- */

START_TEST(precedence) {
    char config[1024];
    snprintf(config, sizeof config, "--config=%s", file("s.json", "{\"steps\": 10, \"lr\": 0.5}"));
    MoeOptions o = good("run", none);
    ck_assert_int_eq(moe_opt_i(&o, OPT_STEPS), 1000);
    ck_assert_str_eq(o.source[OPT_STEPS], "default");
    moe_options_free(&o);

    o = good("run", ARGS(config));
    ck_assert_int_eq(moe_opt_i(&o, OPT_STEPS), 10);
    ck_assert(moe_opt_f(&o, OPT_LR) == 0.5);
    ck_assert(strstr(o.source[OPT_STEPS], "s.json: steps") != NULL);
    ck_assert(moe_opt_given(&o, OPT_STEPS) && !moe_opt_given(&o, OPT_SEED));
    moe_options_free(&o);

    setenv("MOEC_STEPS", "20", 1);
    o = good("run", ARGS(config));
    ck_assert_int_eq(moe_opt_i(&o, OPT_STEPS), 20);
    ck_assert(moe_opt_f(&o, OPT_LR) == 0.5);
    ck_assert_str_eq(o.source[OPT_STEPS], "MOEC_STEPS");
    moe_options_free(&o);

    o = good("run", ARGS("--steps", "30", config)); /* wherever --config stands */
    ck_assert_int_eq(moe_opt_i(&o, OPT_STEPS), 30);
    ck_assert_str_eq(o.source[OPT_STEPS], "--steps");
    moe_options_free(&o);

    o = good("run", ARGS("--steps", "30", "--steps=31")); /* the last one counts */
    ck_assert_int_eq(moe_opt_i(&o, OPT_STEPS), 31);
    moe_options_free(&o);
    /* A variable of another command's option is not looked at. */
    setenv("MOEC_STEPS", "many", 1);
    o = good("compile", none);
    moe_options_free(&o);
    BAD("run", none, MOE_E_MISUSE, "MOEC_STEPS", "\"many\" is not an integer");
    unsetenv("MOEC_STEPS");
}
END_TEST

START_TEST(environment) {
    setenv("MOEC_MICRO_BATCHES", "4", 1);
    setenv("MOEC_CLIP_GRAD_NORM", "2.5", 1);
    setenv("MOEC_QUIET", "true", 1);
    MoeOptions o = good("compile", none), r = good("run", none);
    ck_assert_int_eq(moe_opt_i(&o, OPT_MICRO_BATCHES), 4);
    ck_assert(moe_opt_f(&r, OPT_CLIP) == 2.5);
    ck_assert(moe_opt_b(&o, OPT_QUIET));
    moe_options_free(&o);
    moe_options_free(&r);
    setenv("MOEC_CONFIG", file("e.json", "{\"micro-batches\": 8, \"batch\": 16}"), 1);
    o = good("compile", none); /* the file still ranks below the variable */
    ck_assert_int_eq(moe_opt_i(&o, OPT_MICRO_BATCHES), 4);
    ck_assert_int_eq(moe_opt_i(&o, OPT_BATCH), 16);
    moe_options_free(&o);
    char config[1024];
    snprintf(config, sizeof config, "--config=%s", file("f.json", "{\"batch\": 32}"));
    o = good("compile", ARGS(config));
    ck_assert_int_eq(moe_opt_i(&o, OPT_BATCH), 32);
    moe_options_free(&o);
    unsetenv("MOEC_MICRO_BATCHES");
    unsetenv("MOEC_CLIP_GRAD_NORM");
    unsetenv("MOEC_QUIET");
    unsetenv("MOEC_CONFIG");
}
END_TEST

START_TEST(settings_file) {
    static const struct {
        const char *text;
        MoeCode code;
        const char *words[3];
    } bad[] = {
        {"{\"stps\": 1}", MOE_E_MISUSE, {"b.json", "\"stps\"", "did you mean \"steps\"?"}},
        {"{\"batch\": 1}", MOE_E_MISUSE, {"b.json", "\"batch\"", "belongs to: compile"}},
        {"{\"steps\": [1]}", MOE_E_INPUT, {"b.json", "\"steps\"", "string, a number or true"}},
        {"{\"steps\": null}", MOE_E_INPUT, {"b.json", "\"steps\"", "must be"}},
        {"{\"steps\": 1.5}", MOE_E_MISUSE, {"b.json: steps", "\"1.5\"", "an integer"}},
        {"{\"quiet\": \"yes\"}", MOE_E_MISUSE, {"b.json: quiet", "\"yes\"", "true or false"}},
        {"[]", MOE_E_INPUT, {"b.json", "JSON object", "settings"}},
        {"{\"steps\": 1,}", MOE_E_INPUT, {"b.json:1:", "bad JSON", ""}},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        BAD("run", ARGS("--config", (char *)file("b.json", bad[i].text)), bad[i].code,
            bad[i].words[0], bad[i].words[1], bad[i].words[2]);
    BAD("run", ARGS("--config", "/no/such.json"), MOE_E_IO, "/no/such.json");
    MoeOptions o = good("run", ARGS("--config", (char *)file("g.json", "{\"steps\": \"7\", "
                                                                       "\"lr\": 1, \"beta2\": "
                                                                       "0.1, \"quiet\": true}")));
    ck_assert_int_eq(moe_opt_i(&o, OPT_STEPS), 7);
    ck_assert(moe_opt_f(&o, OPT_LR) == 1 && moe_opt_f(&o, OPT_BETA2) == 0.1);
    ck_assert(moe_opt_b(&o, OPT_QUIET));
    moe_options_free(&o);
}
END_TEST

/* What a run keeps is a settings file that gives the same settings again. */
START_TEST(resolved_settings_come_back) {
    MoeOptions o = good("run", ARGS("--lr=0.1", "--steps=77", "--quiet", "--resume=never", "--data",
                                    "a \"b\".txt", "--eps=1e-9"));
    json_t *json = moe_options_json(&o);
    ck_assert(json_is_true(json_object_get(json, "quiet")));
    ck_assert_int_eq(json_integer_value(json_object_get(json, "steps")), 77);
    ck_assert_ptr_null(json_object_get(json, "config"));
    ck_assert_ptr_null(json_object_get(json, "batch"));
    MoeStr text = {0};
    moe_json_dump(json, &text);
    MoeOptions again = good("run", ARGS("--config", (char *)file("r.json", moe_str_c(&text))));
    json_t *json_again = moe_options_json(&again);
    ck_assert_msg(json_equal(json, json_again), "%s", moe_str_c(&text));
    json_decref(json);
    json_decref(json_again);
    moe_str_free(&text);
    moe_options_free(&o);
    moe_options_free(&again);
}
END_TEST

/* ---- spelling ---- */

START_TEST(spellings) {
    MoeOptions o = good("compile", ARGS("--batch=4", "m.json", "--seq", "16", "-q", "-o", "a.plan",
                                        "--", "--batch", "-"));
    ck_assert_int_eq(moe_opt_i(&o, OPT_BATCH), 4);
    ck_assert_int_eq(moe_opt_i(&o, OPT_SEQ), 16);
    ck_assert(moe_opt_b(&o, OPT_QUIET));
    ck_assert_str_eq(moe_opt(&o, OPT_OUTPUT), "a.plan");
    ck_assert_int_eq(o.n_positionals, 3);
    ck_assert_str_eq(o.positionals[0], "m.json");
    ck_assert_str_eq(o.positionals[1], "--batch");
    ck_assert_str_eq(o.positionals[2], "-");
    moe_options_free(&o);

    static const struct {
        char *arg;
        bool on;
    } flags[] = {{"--verify-each", true},
                 {"--no-verify-each", false},
                 {"--verify-each=true", true},
                 {"--verify-each=false", false}};
    for (size_t i = 0; i < 4; i++) {
        o = good("compile", ARGS("--verify-each=false", "--verify-each=true", flags[i].arg));
        ck_assert_msg(moe_opt_b(&o, OPT_VERIFY_EACH) == flags[i].on, "%s", flags[i].arg);
        ck_assert_str_eq(o.source[OPT_VERIFY_EACH], "--verify-each");
        moe_options_free(&o);
    }
    o = good("compile", ARGS("--no-verify-each", "--quiet", "--no-quiet"));
    ck_assert(!moe_opt_b(&o, OPT_VERIFY_EACH) && !moe_opt_b(&o, OPT_QUIET));
    moe_options_free(&o);
    /* A flag never takes the next argument. */
    o = good("compile", ARGS("--quiet", "false"));
    ck_assert(moe_opt_b(&o, OPT_QUIET) && o.n_positionals == 1);
    moe_options_free(&o);

    static char *outputs[][3] = {{"-oa.plan", NULL, NULL},
                                 {"-o=a.plan", NULL, NULL},
                                 {"--output=a.plan", NULL, NULL},
                                 {"--output", "a.plan", NULL}};
    for (size_t i = 0; i < 4; i++) {
        o = good("compile", outputs[i]);
        ck_assert_str_eq(moe_opt(&o, OPT_OUTPUT), "a.plan");
        moe_options_free(&o);
    }
    /* A value may look like an option or hold anything; an empty one is a value. */
    o = good("run", ARGS("--min-lr", "-1e-3", "--data=--x=y", "--out="));
    ck_assert(moe_opt_f(&o, OPT_MIN_LR) == -1e-3);
    ck_assert_str_eq(moe_opt(&o, OPT_DATA), "--x=y");
    ck_assert(moe_opt_given(&o, OPT_RUN_OUT) && !*moe_opt(&o, OPT_RUN_OUT));
    moe_options_free(&o);
    /* One name, two meanings: a path for compile, a format for explain. */
    o = good("explain", ARGS("-o", "json"));
    ck_assert_str_eq(moe_opt(&o, OPT_REPORT), "json");
    ck_assert(!moe_opt_given(&o, OPT_OUTPUT));
    moe_options_free(&o);
}
END_TEST

START_TEST(unknown_options) {
    BAD("compile", ARGS("--bach=4"), MOE_E_MISUSE, "unknown option \"--bach\"",
        "did you mean \"--batch\"?", "moec help compile");
    BAD("compile", ARGS("--steps", "4"), MOE_E_MISUSE, "unknown option \"--steps\"",
        "belongs to: run");
    BAD("run", ARGS("--zzzzzzzz"), MOE_E_MISUSE, "unknown option \"--zzzzzzzz\";");
    BAD("run", ARGS("-z"), MOE_E_MISUSE, "unknown option \"-z\"");
    BAD("run", ARGS("--no-steps"), MOE_E_MISUSE, "unknown option \"--no-steps\"");
    BAD("run", ARGS("--no-quiet=true"), MOE_E_MISUSE, "unknown option \"--no-quiet\"");
    BAD("run",
        ARGS("--"
             "stepsstepsstepsstepsstepsstepsstepsstepsstepsstepsstepsstepsstepsstepsstepss"
             "tepsstepsstepsstepsstepsstepsstepsstepsstepsstepsstepsstepsstepsstepssteps="),
        MOE_E_MISUSE, "unknown option \"--stepssteps");
    BAD("run", ARGS("--steps"), MOE_E_MISUSE, "--steps needs a value: --steps N");
    BAD("compile", ARGS("-o"), MOE_E_MISUSE, "--output needs a value: --output PATH");
    BAD("run", ARGS("--config"), MOE_E_MISUSE, "--config needs a value");
    ck_assert_str_eq(moe_command_nearest("complie"), "compile");
    ck_assert_ptr_null(moe_command_nearest("frobnicate"));
    ck_assert(moe_command_known("run") && !moe_command_known("rum"));
}
END_TEST

START_TEST(positionals) {
    MoeOptions o = good("compile", ARGS("a", "b"));
    ok(moe_options_expect(&o, 2));
    const char *why =
        moe_test_error(moe_options_expect(&o, 1), MOE_E_MISUSE, "usage: moec compile MODEL",
                       "2 arguments given, 1 expected", NULL);
    ck_assert_msg(!why, "%s", why);
    moe_options_free(&o);
}
END_TEST

/* ---- values ---- */

START_TEST(bad_values) {
    static const struct {
        const char *command;
        char *arg;
        const char *source, *expected;
    } rows[] = {
        {"compile", "--batch=four", "--batch", "\"four\" is not an integer"},
        {"compile", "--batch=", "--batch", "\"\" is not an integer"},
        {"compile", "--batch=4x", "--batch", "\"4x\" is not an integer"},
        {"compile", "--batch=4.0", "--batch", "\"4.0\" is not an integer"},
        {"compile", "--batch=99999999999999999999", "--batch", "is not an integer"},
        {"run", "--lr=fast", "--lr", "\"fast\" is not a number"},
        {"run", "--lr=nan", "--lr", "\"nan\" is not a number"},
        {"run", "--lr=inf", "--lr", "\"inf\" is not a number"},
        {"run", "--lr=1e999", "--lr", "is not a number"},
        {"run", "--quiet=yes", "--quiet", "\"yes\" is not true or false"},
        {"run", "-qq", "--quiet", "\"q\" is not true or false"},
        {"compile", "--dtype=f16", "--dtype", "\"f16\" is not one of config|f32|bf16"},
        {"compile", "--dtype=f3", "--dtype", "\"f3\" is not one of"},
        {"compile", "--dtype=", "--dtype", "\"\" is not one of"},
        {"compile", "--dtype=config|f32", "--dtype", "is not one of"},
        {"compile", "--memory-limit=lots", "--memory-limit", "\"lots\" is not a size"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        BAD(rows[i].command, ARGS(rows[i].arg), MOE_E_MISUSE, rows[i].source, rows[i].expected);
    static char *choices[] = {"config", "f32", "bf16"};
    for (size_t i = 0; i < 3; i++) {
        MoeOptions o = good("compile", ARGS("--dtype", choices[i]));
        ck_assert_str_eq(moe_opt(&o, OPT_DTYPE), choices[i]);
        moe_options_free(&o);
    }
}
END_TEST

START_TEST(sizes) {
    static const struct {
        char *text;
        int64_t bytes; /* -1: refused */
    } rows[] = {{"0", 0},
                {"4096", 4096},
                {"1K", 1024},
                {"512M", 512 << 20},
                {"8G", (int64_t)8 << 30},
                {"2T", (int64_t)2 << 40},
                {"8g", (int64_t)8 << 30},
                {"8GB", (int64_t)8 << 30},
                {"8GiB", (int64_t)8 << 30},
                {"1.5K", 1536},
                {"0.5G", 512 << 20},
                {"", -1},
                {"G", -1},
                {"-1", -1},
                {"8 G", -1},
                {"8GG", -1},
                {"8P", -1},
                {"1e9", -1},
                {"1.2.3", -1},
                {".", -1},
                {"9999999999T", -1},
                {"99999999999999999999999999999999999999", -1}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char *args[] = {"--memory-limit", rows[i].text, NULL};
        if (rows[i].bytes < 0) {
            BAD("compile", args, MOE_E_MISUSE, "--memory-limit",
                "is not a size such as 512M or 8G");
            continue;
        }
        MoeOptions o = good("compile", args);
        ck_assert_msg(moe_opt_i(&o, OPT_MEMORY_LIMIT) == rows[i].bytes, "%s", rows[i].text);
        moe_options_free(&o);
    }
}
END_TEST

/* ---- help, docs, completion ---- */

START_TEST(help) {
    MoeStr all = {0};
    moe_options_help(NULL, &all);
    for (int c = 0; c < N_COMMANDS; c++) {
        const char *command = moe_command_rows[c].name;
        ck_assert_msg(strstr(moe_str_c(&all), moe_command_rows[c].summary), "%s", command);
        MoeStr text = {0};
        moe_options_help(command, &text);
        ck_assert(strstr(moe_str_c(&text), moe_command_rows[c].positionals) != NULL);
        for (int i = 0; i < N_OPTIONS; i++) {
            const MoeOptionRow *r = &moe_option_rows[i];
            bool on = r->type == TYPE_FLAG && strcmp(r->default_value, "true") == 0;
            char label[96];
            snprintf(label, sizeof label, "%s%s%s%s", on ? "--[no-]" : "--", r->name,
                     *r->metavar ? " " : "", r->metavar);
            bool said = strstr(moe_str_c(&text), label) != NULL;
            if (moe_option_applies(r, command))
                ck_assert_msg(said, "moec help %s does not say %s", command, label);
        }
        for (const char *p = moe_str_c(&text); *p; p += strcspn(p, "\n") + 1) {
            ck_assert_msg(strcspn(p, "\n") <= 100, "moec help %s: a line of %zu: %.100s", command,
                          strcspn(p, "\n"), p);
            ck_assert_msg(p == moe_str_c(&text) || p[0] == '\n' || p[strcspn(p, "\n") - 1] != ' ',
                          "moec help %s: space at the end of: %.100s", command, p);
            if (!p[strcspn(p, "\n")])
                break;
        }
        moe_str_free(&text);
    }
    moe_str_free(&all);
    /* Asked for help, nothing else matters. */
    MoeOptions o = good("run", ARGS("--steps=many", "--config=/no/such.json", "--help"));
    ck_assert(o.want_help);
    moe_options_free(&o);
    o = good("run", ARGS("-h"));
    ck_assert(o.want_help);
    moe_options_free(&o);
    o = good("run", ARGS("--", "--help"));
    ck_assert(!o.want_help && o.n_positionals == 1);
    moe_options_free(&o);
}
END_TEST

START_TEST(markdown) {
    MoeStr text = {0};
    moe_options_markdown(&text);
    for (int i = 0; i < N_OPTIONS; i++)
        ck_assert(strstr(moe_str_c(&text), moe_option_rows[i].name) != NULL);
    /* Every row of a table has three cells. */
    for (const char *p = moe_str_c(&text); *p; p += strcspn(p, "\n") + 1) {
        int bars = 0;
        if (*p == '|')
            for (const char *q = p; *q != '\n'; q++)
                bars += *q == '|' && (q == p || q[-1] != '\\');
        ck_assert_msg(bars == 0 || bars == 4, "%d bars: %.*s", bars, (int)strcspn(p, "\n"), p);
    }
    if (getenv("MOE_BLESS"))
        ok(moe_file_write_atomic(CLI_MD, text.data, text.len));
    char *doc;
    size_t n;
    ok(moe_file_read(CLI_MD, 1 << 20, &doc, &n));
    ck_assert_msg(strcmp(doc, moe_str_c(&text)) == 0,
                  "docs/CLI.md is not the option table's; MOE_BLESS=1 writes it anew");
    free(doc);
    moe_str_free(&text);
}
END_TEST

/* The script in a real bash: what it offers after some words. */
START_TEST(completion) {
    MoeStr text = {0};
    moe_options_bash(&text);
    moe_str_append(&text, "COMP_WORDS=(moec co) COMP_CWORD=1; _moec; echo \"${COMPREPLY[*]}\"\n"
                          "COMP_WORDS=(moec compile --me) COMP_CWORD=2; _moec; "
                          "echo \"${COMPREPLY[*]}\"\n"
                          "COMP_WORDS=(moec run --me) COMP_CWORD=2; _moec; "
                          "echo \"${COMPREPLY[*]}.\"\n");
    char command[1200];
    snprintf(command, sizeof command, "cd / && bash %s 2>&1", file("c.sh", moe_str_c(&text)));
    FILE *p = popen(command, "r");
    ck_assert_ptr_nonnull(p);
    char said[1024] = "";
    size_t n = fread(said, 1, sizeof said - 1, p);
    said[n] = 0;
    ck_assert_int_eq(pclose(p), 0);
    ck_assert_str_eq(said, "compile\n--memory-limit\n.\n");
    moe_str_free(&text);
}
END_TEST

int main(void) {
    for (int i = 0; i < N_OPTIONS; i++) { /* the user's own settings are no part of the tests */
        char name[96] = "MOEC_";
        for (size_t k = 0; moe_option_rows[i].name[k]; k++) {
            char c = moe_option_rows[i].name[k];
            name[5 + k] = c == '-' ? '_' : c >= 'a' && c <= 'z' ? (char)(c - 'a' + 'A') : c;
        }
        unsetenv(name);
    }
    moe_test_dir();
    Suite *s = suite_create("options");
    TCase *tc = tcase_create("options");
    tcase_add_test(tc, table);
    tcase_add_test(tc, defaults_are_values);
    tcase_add_test(tc, precedence);
    tcase_add_test(tc, environment);
    tcase_add_test(tc, settings_file);
    tcase_add_test(tc, resolved_settings_come_back);
    tcase_add_test(tc, spellings);
    tcase_add_test(tc, unknown_options);
    tcase_add_test(tc, positionals);
    tcase_add_test(tc, bad_values);
    tcase_add_test(tc, sizes);
    tcase_add_test(tc, help);
    tcase_add_test(tc, markdown);
    tcase_add_test(tc, completion);
    suite_add_tcase(s, tc);
    return moe_check_main(s);
}
