/* The one option table, and the parser, settings file and environment over it. */
#include "cli/options_internal.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/json.h"

const MoeOptionRow moe_option_rows[N_OPTIONS] = {
#define OPT(id, name, short_name, type, default_value, metavar, commands, help)                    \
    {name, short_name, TYPE_##type, default_value, metavar, commands, help},
#include "cli/options.def"
#undef OPT
};
static const MoeOptionRow *const rows = moe_option_rows;

const MoeCommandRow moe_command_rows[] = {
#define COMMAND(name, positionals, summary) {#name, positionals, summary},
#include "cli/commands.def"
#undef COMMAND
};

bool moe_option_applies(const MoeOptionRow *r, const char *command) {
    char key[64];
    snprintf(key, sizeof key, " %s ", command);
    return strstr(r->commands, key) != NULL;
}

int moe_command_index(const char *name) {
    for (int i = 0; i < N_COMMANDS; i++)
        if (strcmp(moe_command_rows[i].name, name) == 0)
            return i;
    return -1;
}

static int find(const char *command, const char *name, size_t n) {
    for (int i = 0; i < N_OPTIONS; i++)
        if (moe_option_applies(&rows[i], command) && strlen(rows[i].name) == n &&
            strncmp(rows[i].name, name, n) == 0)
            return i;
    return -1;
}

static bool choice_ok(const char *choices, const char *value) {
    size_t n = strcspn(value, "|");
    if (n == 0 || value[n])
        return false;
    for (const char *p = choices; p; p = strchr(p, '|') ? strchr(p, '|') + 1 : NULL)
        if (strncmp(p, value, n) == 0 && (p[n] == '|' || p[n] == 0))
            return true;
    return false;
}

/* "512M" -> bytes; K M G T are powers of 1024. */
static bool parse_size(const char *s, int64_t *out) {
    char digits[32];
    size_t n = strspn(s, "0123456789.");
    if (n == 0 || n >= sizeof digits)
        return false;
    memcpy(digits, s, n);
    digits[n] = 0;
    double v, scale = 1;
    if (!moe_parse_double(digits, &v))
        return false;
    const char *units = "KMGT", *u = s[n] ? strchr(units, toupper((unsigned char)s[n])) : NULL;
    if (s[n] && !u)
        return false;
    if (u) {
        scale = pow(1024.0, (double)(u - units + 1));
        const char *rest = s + n + 1;
        if (*rest && strcmp(rest, "B") != 0 && strcmp(rest, "iB") != 0)
            return false;
    }
    if (v * scale > 9e18)
        return false;
    *out = (int64_t)(v * scale);
    return true;
}

static MoeStatus check(const MoeOptionRow *r, const char *value, const char *source) {
    int64_t i;
    double f;
    const char *want = NULL;
    switch (r->type) {
    case TYPE_STRING:
        break;
    case TYPE_INT:
        want = moe_parse_i64(value, &i) ? NULL : "an integer";
        break;
    case TYPE_REAL:
        want = moe_parse_double(value, &f) && isfinite(f) ? NULL : "a number";
        break;
    case TYPE_FLAG:
        want = strcmp(value, "true") == 0 || strcmp(value, "false") == 0 ? NULL : "true or false";
        break;
    case TYPE_CHOICE:
        want = choice_ok(r->metavar, value) ? NULL : r->metavar;
        break;
    case TYPE_SIZE:
        want = parse_size(value, &i) ? NULL : "a size such as 512M or 8G";
        break;
    }
    if (want)
        return moe_error(MOE_E_MISUSE, "%s: \"%s\" is not %s%s", source, value,
                         r->type == TYPE_CHOICE ? "one of " : "", want);
    return NULL;
}

static char *own(MoeOptions *o, const char *text) {
    o->owned = realloc(o->owned, sizeof *o->owned * (size_t)(o->n_owned + 1));
    char *copy = strdup(text);
    MOE_ASSERT(o->owned && copy, "out of memory for the settings");
    return o->owned[o->n_owned++] = copy;
}

static MoeStatus set(MoeOptions *o, int id, const char *value, const char *source) {
    MOE_TRY(check(&rows[id], value, source));
    o->values[id] = own(o, value);
    o->source[id] = own(o, source);
    return NULL;
}

static void env_name(const MoeOptionRow *r, char out[64]) {
    size_t n = (size_t)snprintf(out, 64, "MOEC_%s", r->name);
    for (size_t i = 0; i < n; i++)
        out[i] = out[i] == '-' ? '_' : (char)toupper((unsigned char)out[i]);
}

/* source: the settings file, or NULL for the command line, where dashes are "--" or "-". */
static MoeStatus unknown_option(const char *command, const char *source, const char *dashes,
                                const char *name) {
    const char *names[N_OPTIONS];
    size_t n = 0;
    MoeStr hint = {0}, elsewhere = {0}; /* commands with such an option: " run", " place", ... */
    for (int i = 0; i < N_OPTIONS; i++)
        if (moe_option_applies(&rows[i], command))
            names[n++] = rows[i].name;
        else if (strcmp(rows[i].name, name) == 0)
            moe_str_append_n(&elsewhere, rows[i].commands, strlen(rows[i].commands) - 1);
    const char *near = moe_nearest_name(name, names, n);
    if (elsewhere.len)
        moe_str_printf(&hint, " (it belongs to:%s)", moe_str_c(&elsewhere));
    else if (near)
        moe_str_printf(&hint, " (did you mean \"%s%s\"?)", source ? "" : "--", near);
    MoeStatus st = moe_error(
        MOE_E_MISUSE, "%s%sunknown option \"%s%s\"%s; 'moec help %s' lists the options",
        source ? source : "", source ? ": " : "", dashes, name, moe_str_c(&hint), command);
    moe_str_free(&hint);
    moe_str_free(&elsewhere);
    return st;
}

static MoeStatus from_file(MoeOptions *o, const char *path) {
    json_t *json = NULL;
    MOE_TRY(moe_json_load_file(path, 1 << 20, &json));
    MoeStatus st = json_is_object(json)
                       ? NULL
                       : moe_error(MOE_E_INPUT, "%s: expected a JSON object of settings", path);
    const char *key;
    json_t *v;
    char source[512], text[64];
    if (!st)
        json_object_foreach(json, key, v) {
            int id = find(o->command, key, strlen(key));
            if (id < 0) {
                st = unknown_option(o->command, path, "", key);
                break;
            }
            const char *value = text;
            if (json_is_string(v))
                value = json_string_value(v);
            else if (json_is_boolean(v))
                value = json_is_true(v) ? "true" : "false";
            else if (json_is_integer(v))
                snprintf(text, sizeof text, "%lld", (long long)json_integer_value(v));
            else if (json_is_real(v))
                snprintf(text, sizeof text, "%.17g", json_real_value(v));
            else {
                st = moe_error(MOE_E_INPUT, "%s: \"%s\" must be a string, a number or true/false",
                               path, key);
                break;
            }
            snprintf(source, sizeof source, "%s: %s", path, key);
            st = set(o, id, value, source);
            if (st)
                break;
        }
    json_decref(json);
    return st;
}

static void add_positional(MoeOptions *o, const char *arg) {
    o->positionals =
        realloc(o->positionals, sizeof *o->positionals * (size_t)(o->n_positionals + 1));
    MOE_ASSERT(o->positionals, "out of memory for the arguments");
    o->positionals[o->n_positionals++] = arg;
}

/* "--name", "--name=value", "--no-name", "-x", "-xvalue", "-x=value". *value: what the argument
 * itself holds of a value, or NULL. */
static MoeStatus read_flag(const char *command, const char *arg, int *out_id, const char **value) {
    if (arg[1] != '-') {
        for (int i = 0; i < N_OPTIONS; i++)
            if (rows[i].short_name == arg[1] && moe_option_applies(&rows[i], command)) {
                *out_id = i;
                *value = arg[2] == '=' ? arg + 3 : arg[2] ? arg + 2 : NULL;
                return NULL;
            }
        return unknown_option(command, NULL, "-", arg + 1);
    }
    const char *name = arg + 2, *eq = strchr(name, '=');
    size_t n = eq ? (size_t)(eq - name) : strlen(name);
    *value = eq ? eq + 1 : NULL;
    *out_id = find(command, name, n);
    if (*out_id < 0 && strncmp(name, "no-", 3) == 0 && !eq) {
        int id = find(command, name + 3, n - 3);
        if (id >= 0 && rows[id].type == TYPE_FLAG) {
            *out_id = id;
            *value = "false";
        }
    }
    if (*out_id >= 0)
        return NULL;
    char text[128];
    snprintf(text, sizeof text, "%.*s", (int)(n < 100 ? n : 100), name);
    return unknown_option(command, NULL, "--", text);
}

/* One pass over argv; with only_config, just --config and --help are looked at (the settings file
 * ranks below the rest). */
static MoeStatus from_flags(MoeOptions *o, int argc, char **argv, bool only_config) {
    bool options_end = false;
    char source[128];
    for (int a = 0; a < argc; a++) {
        const char *arg = argv[a], *value = NULL;
        if (options_end || arg[0] != '-' || arg[1] == 0) {
            if (!only_config)
                add_positional(o, arg);
            continue;
        }
        if (strcmp(arg, "--") == 0) {
            options_end = true;
            continue;
        }
        if (strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0) {
            o->want_help = true;
            continue;
        }
        int id = -1;
        MOE_TRY(read_flag(o->command, arg, &id, &value));
        MOE_ASSERT(id >= 0, "option %s", arg);
        snprintf(source, sizeof source, "--%s", rows[id].name);
        if (!value && rows[id].type == TYPE_FLAG)
            value = "true";
        if (!value && a + 1 >= argc)
            return moe_error(MOE_E_MISUSE, "%s needs a value: %s %s", source, source,
                             rows[id].metavar);
        if (!value)
            value = argv[++a];
        if (only_config == (id == OPT_CONFIG))
            MOE_TRY(set(o, id, value, source));
    }
    return NULL;
}

static MoeStatus from_environment(MoeOptions *o, bool only_config) {
    for (int i = 0; i < N_OPTIONS; i++) {
        char name[64];
        env_name(&rows[i], name);
        const char *v = getenv(name);
        if (v && moe_option_applies(&rows[i], o->command) && only_config == (i == OPT_CONFIG))
            MOE_TRY(set(o, i, v, name));
    }
    return NULL;
}

MoeStatus moe_options_parse(const char *command, int argc, char **argv, MoeOptions *out) {
    memset(out, 0, sizeof *out);
    out->command = command;
    for (int i = 0; i < N_OPTIONS; i++) {
        out->values[i] = rows[i].default_value;
        out->source[i] = "default";
    }
    MOE_TRY(from_environment(out, true));
    MOE_TRY(from_flags(out, argc, argv, true));
    if (out->want_help) /* whatever else is wrong, help is what was asked for */
        return NULL;
    if (*out->values[OPT_CONFIG])
        MOE_TRY(from_file(out, out->values[OPT_CONFIG]));
    MOE_TRY(from_environment(out, false));
    return from_flags(out, argc, argv, false);
}

void moe_options_free(MoeOptions *o) {
    for (int i = 0; i < o->n_owned; i++)
        free(o->owned[i]);
    free(o->owned);
    free(o->positionals);
    memset(o, 0, sizeof *o);
}

const char *moe_opt(const MoeOptions *o, MoeOption id) {
    return o->values[id];
}

int64_t moe_opt_i(const MoeOptions *o, MoeOption id) {
    int64_t v = 0;
    if (rows[id].type == TYPE_SIZE)
        parse_size(o->values[id], &v);
    else
        moe_parse_i64(o->values[id], &v);
    return v;
}

double moe_opt_f(const MoeOptions *o, MoeOption id) {
    double v = 0;
    moe_parse_double(o->values[id], &v);
    return v;
}

bool moe_opt_b(const MoeOptions *o, MoeOption id) {
    return strcmp(o->values[id], "true") == 0;
}
bool moe_opt_given(const MoeOptions *o, MoeOption id) {
    return strcmp(o->source[id], "default") != 0;
}

json_t *moe_options_json(const MoeOptions *o) {
    json_t *out = json_object();
    for (int i = 0; i < N_OPTIONS; i++) {
        if (!moe_option_applies(&rows[i], o->command) || i == OPT_CONFIG)
            continue;
        json_t *v = NULL;
        switch (rows[i].type) {
        case TYPE_STRING:
        case TYPE_CHOICE:
            v = json_string(o->values[i]);
            break;
        case TYPE_INT:
        case TYPE_SIZE:
            v = json_integer(moe_opt_i(o, (MoeOption)i));
            break;
        case TYPE_REAL:
            v = json_real(moe_opt_f(o, (MoeOption)i));
            break;
        case TYPE_FLAG:
            v = json_boolean(moe_opt_b(o, (MoeOption)i));
            break;
        }
        json_object_set_new(out, rows[i].name, v);
    }
    return out;
}

MoeStatus moe_options_expect(const MoeOptions *o, int n) {
    if (o->n_positionals == n)
        return NULL;
    int c = moe_command_index(o->command);
    return moe_error(MOE_E_MISUSE,
                     "usage: moec %s %s [options]   (%d argument%s given, %d expected); 'moec help "
                     "%s' says more",
                     o->command, c >= 0 ? moe_command_rows[c].positionals : "", o->n_positionals,
                     o->n_positionals == 1 ? "" : "s", n, o->command);
}

bool moe_command_known(const char *name) {
    return moe_command_index(name) >= 0;
}

const char *moe_command_nearest(const char *name) {
    const char *names[N_COMMANDS];
    for (int i = 0; i < N_COMMANDS; i++)
        names[i] = moe_command_rows[i].name;
    return moe_nearest_name(name, names, N_COMMANDS);
}
