/* The parser, settings file and environment over the one option table. */
#include "cli/options.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"

typedef enum { TYPE_STRING, TYPE_INT, TYPE_REAL, TYPE_FLAG, TYPE_CHOICE, TYPE_SIZE } Type;

typedef struct {
    const char *name;
    char short_name;
    Type type;
    const char *default_value, *metavar, *commands, *help;
} Row;

static const Row rows[N_OPTIONS] = {
#define OPT(id, name, short_name, type, default_value, metavar, commands, help)                                                 \
    {name, short_name, TYPE_##type, default_value, metavar, commands, help},
#include "cli/options.def"
#undef OPT
};

static const struct {
    const char *name, *positionals, *summary;
} commands[] = {
#define COMMAND(name, positionals, summary) {#name, positionals, summary},
#include "cli/commands.def"
#undef COMMAND
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

static bool applies(const Row *r, const char *command) {
    char key[64];
    snprintf(key, sizeof key, " %s ", command);
    return strstr(r->commands, key) != NULL;
}

static int find(const char *command, const char *name, size_t n) {
    for (int i = 0; i < N_OPTIONS; i++)
        if (applies(&rows[i], command) && strlen(rows[i].name) == n && strncmp(rows[i].name, name, n) == 0)
            return i;
    return -1;
}

static bool choice_ok(const char *choices, const char *value) {
    size_t n = strlen(value);
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

static MoeStatus check(const Row *r, const char *value, const char *source) {
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
        return moe_error(MOE_E_MISUSE, "%s: \"%s\" is not %s%s", source, value, r->type == TYPE_CHOICE ? "one of " : "", want);
    return NULL;
}

static char *own(MoeOptions *o, const char *text) {
    o->owned = realloc(o->owned, sizeof *o->owned * (size_t)(o->n_owned + 1));
    return o->owned[o->n_owned++] = strdup(text);
}

static MoeStatus set(MoeOptions *o, int id, const char *value, const char *source) {
    MOE_TRY(check(&rows[id], value, source));
    o->values[id] = own(o, value);
    o->source[id] = own(o, source);
    return NULL;
}

static void env_name(const Row *r, char out[64]) {
    size_t n = (size_t)snprintf(out, 64, "MOEC_%s", r->name);
    for (size_t i = 0; i < n; i++)
        out[i] = out[i] == '-' ? '_' : (char)toupper((unsigned char)out[i]);
}

static MoeStatus unknown_option(const char *command, const char *source, const char *name) {
    const char *names[N_OPTIONS];
    size_t n = 0;
    for (int i = 0; i < N_OPTIONS; i++)
        if (applies(&rows[i], command))
            names[n++] = rows[i].name;
    const char *near = moe_nearest_name(name, names, n);
    return moe_error(MOE_E_MISUSE, "%s: unknown option \"%s\"%s%s%s; 'moec help %s' lists the options", source, name,
                     near ? " (did you mean --" : "", near ? near : "", near ? "?)" : "", command);
}

static MoeStatus from_file(MoeOptions *o, const char *path) {
    json_t *json = NULL;
    MOE_TRY(moe_json_load_file(path, 1 << 20, &json));
    MoeStatus st = json_is_object(json) ? NULL : moe_error(MOE_E_INPUT, "%s: expected a JSON object of settings", path);
    const char *key;
    json_t *v;
    char source[512], text[64];
    if (!st)
        json_object_foreach(json, key, v) {
            int id = find(o->command, key, strlen(key));
            if (id < 0) {
                st = unknown_option(o->command, path, key);
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
                st = moe_error(MOE_E_INPUT, "%s: \"%s\" must be a string, a number or true/false", path, key);
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

/* One pass over argv; with only_config, just --config is looked at (the file ranks below the rest). */
static MoeStatus from_flags(MoeOptions *o, int argc, char **argv, bool only_config) {
    bool options_end = false;
    char source[128];
    for (int a = 0; a < argc; a++) {
        const char *arg = argv[a];
        if (options_end || arg[0] != '-' || arg[1] == 0) {
            if (!only_config) {
                o->positionals = realloc(o->positionals, sizeof *o->positionals * (size_t)(o->n_positionals + 1));
                o->positionals[o->n_positionals++] = arg;
            }
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
        bool negated = false;
        const char *value = NULL;
        if (arg[1] == '-') {
            const char *eq = strchr(arg + 2, '=');
            size_t n = eq ? (size_t)(eq - arg - 2) : strlen(arg + 2);
            value = eq ? eq + 1 : NULL;
            id = find(o->command, arg + 2, n);
            if (id < 0 && strncmp(arg + 2, "no-", 3) == 0 && !eq) {
                id = find(o->command, arg + 5, n - 3);
                negated = id >= 0 && rows[id].type == TYPE_FLAG;
                id = negated ? id : -1;
            }
            if (id < 0) {
                snprintf(source, sizeof source, "%.*s", (int)n, arg + 2);
                return unknown_option(o->command, "moec", source);
            }
        } else {
            for (int i = 0; i < N_OPTIONS && id < 0; i++)
                if (rows[i].short_name == arg[1] && applies(&rows[i], o->command))
                    id = i;
            if (id < 0)
                return unknown_option(o->command, "moec", arg + 1);
            value = arg[2] ? arg + 2 : NULL;
        }
        snprintf(source, sizeof source, "--%s", rows[id].name);
        if (rows[id].type == TYPE_FLAG)
            value = value ? value : negated ? "false" : "true";
        else if (!value) {
            if (a + 1 >= argc)
                return moe_error(MOE_E_MISUSE, "%s needs a value: --%s %s", source, rows[id].name, rows[id].metavar);
            value = argv[++a];
        }
        if (only_config == (id == OPT_CONFIG))
            MOE_TRY(set(o, id, value, source));
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
    MOE_TRY(from_flags(out, argc, argv, true));
    out->want_help = false;
    if (*out->values[OPT_CONFIG])
        MOE_TRY(from_file(out, out->values[OPT_CONFIG]));
    for (int i = 0; i < N_OPTIONS; i++) {
        char name[64];
        env_name(&rows[i], name);
        const char *v = getenv(name);
        if (v && applies(&rows[i], command) && i != OPT_CONFIG)
            MOE_TRY(set(out, i, v, name));
    }
    return from_flags(out, argc, argv, false);
}

void moe_options_free(MoeOptions *o) {
    for (int i = 0; i < o->n_owned; i++)
        free(o->owned[i]);
    free(o->owned);
    free(o->positionals);
    memset(o, 0, sizeof *o);
}

const char *moe_opt(const MoeOptions *o, MoeOption id) { return o->values[id]; }

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

bool moe_opt_b(const MoeOptions *o, MoeOption id) { return strcmp(o->values[id], "true") == 0; }
bool moe_opt_given(const MoeOptions *o, MoeOption id) { return strcmp(o->source[id], "default") != 0; }

json_t *moe_options_json(const MoeOptions *o) {
    json_t *out = json_object();
    for (int i = 0; i < N_OPTIONS; i++) {
        if (!applies(&rows[i], o->command) || i == OPT_CONFIG)
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

static int command_index(const char *name) {
    for (int i = 0; i < N_COMMANDS; i++)
        if (strcmp(commands[i].name, name) == 0)
            return i;
    return -1;
}

MoeStatus moe_options_expect(const MoeOptions *o, int n) {
    if (o->n_positionals == n)
        return NULL;
    int c = command_index(o->command);
    return moe_error(MOE_E_MISUSE, "usage: moec %s %s [options]   (%d argument%s given, %d expected); 'moec help %s' says more", o->command,
                     c >= 0 ? commands[c].positionals : "", o->n_positionals, o->n_positionals == 1 ? "" : "s", n, o->command);
}

bool moe_command_known(const char *name) { return command_index(name) >= 0; }

const char *moe_command_nearest(const char *name) {
    const char *names[N_COMMANDS];
    for (int i = 0; i < N_COMMANDS; i++)
        names[i] = commands[i].name;
    return moe_nearest_name(name, names, N_COMMANDS);
}

/* ---- help, docs, completion ---- */

static void option_label(const Row *r, MoeStr *out) {
    if (r->short_name)
        moe_str_printf(out, "-%c, ", r->short_name);
    moe_str_printf(out, "--%s%s%s", r->name, *r->metavar ? " " : "", r->metavar);
}

static void wrap(MoeStr *out, const char *text, size_t indent, size_t width) {
    size_t col = indent;
    while (*text) {
        size_t n = strcspn(text, " ");
        if (col > indent && col + 1 + n > width) {
            moe_str_printf(out, "\n%*s", (int)indent, "");
            col = indent;
        } else if (col > indent) {
            moe_str_putc(out, ' ');
            col++;
        }
        moe_str_append_n(out, text, n);
        col += n;
        text += n;
        text += strspn(text, " ");
    }
    moe_str_putc(out, '\n');
}

void moe_options_help(const char *command, MoeStr *out) {
    int c = command ? command_index(command) : -1;
    if (c < 0) {
        moe_str_append(out, "moec: a compiler and runtime for training Mixture-of-Experts transformers\n\nusage: moec COMMAND ...\n\n");
        for (int i = 0; i < N_COMMANDS; i++)
            moe_str_printf(out, "  %-8s %-10s %s\n", commands[i].name, commands[i].positionals, commands[i].summary);
        moe_str_append(out, "\n'moec help COMMAND' lists its options. Exit status: 0 good, 1 failed, 2 misuse.\n");
        return;
    }
    moe_str_printf(out, "usage: moec %s %s [options]\n\n%s.\n\noptions (setting order: default < --config FILE < MOEC_NAME < flag):\n",
                   commands[c].name, commands[c].positionals, commands[c].summary);
    for (int i = 0; i < N_OPTIONS; i++) {
        if (!applies(&rows[i], command))
            continue;
        MoeStr label = {0}, text = {0};
        option_label(&rows[i], &label);
        moe_str_append(&text, rows[i].help);
        if (*rows[i].default_value && rows[i].default_value[0] != '\n')
            moe_str_printf(&text, " [%s]", rows[i].default_value);
        moe_str_printf(out, "  %-28s", moe_str_c(&label));
        if (label.len > 28)
            moe_str_printf(out, "\n%30s", "");
        wrap(out, moe_str_c(&text), 30, 100);
        moe_str_free(&label);
        moe_str_free(&text);
    }
}

void moe_options_markdown(MoeStr *out) {
    moe_str_append(out, "# The command line\n\n<!-- made by `moec help markdown`; a test keeps it true -->\n\n"
                        "Settings: default < JSON file (`--config FILE`) < environment (`MOEC_BATCH` for `--batch`) < flag. Exit status: 0 good, 1 failed, 2 misuse.\n");
    for (int c = 0; c < N_COMMANDS; c++) {
        moe_str_printf(out, "\n## moec %s %s\n\n%s.\n", commands[c].name, commands[c].positionals, commands[c].summary);
        bool first = true;
        for (int i = 0; i < N_OPTIONS; i++) {
            if (!applies(&rows[i], commands[c].name))
                continue;
            if (first)
                moe_str_append(out, "\n| option | default | meaning |\n|---|---|---|\n");
            first = false;
            MoeStr label = {0};
            option_label(&rows[i], &label);
            moe_str_append(out, "| `");
            for (const char *p = moe_str_c(&label); *p; p++)
                moe_str_printf(out, *p == '|' ? "\\%c" : "%c", *p);
            const char *d = rows[i].default_value;
            moe_str_printf(out, "` | %s%s%s | %s |\n", *d ? "`" : "", d[0] == '\n' ? "\\n" : d, *d ? "`" : "", rows[i].help);
            moe_str_free(&label);
        }
    }
}

void moe_options_bash(MoeStr *out) {
    moe_str_append(out, "# bash completion for moec: source <(moec help bash)\n_moec() {\n    local cur=${COMP_WORDS[COMP_CWORD]} cmd=${COMP_WORDS[1]}\n"
                        "    if [ \"$COMP_CWORD\" = 1 ]; then\n        COMPREPLY=($(compgen -W \"");
    for (int c = 0; c < N_COMMANDS; c++)
        moe_str_printf(out, "%s%s", c ? " " : "", commands[c].name);
    moe_str_append(out, "\" -- \"$cur\"))\n        return\n    fi\n    case $cmd in\n");
    for (int c = 0; c < N_COMMANDS; c++) {
        moe_str_printf(out, "    %s) COMPREPLY=($(compgen -W \"", commands[c].name);
        for (int i = 0; i < N_OPTIONS; i++)
            if (applies(&rows[i], commands[c].name))
                moe_str_printf(out, "--%s ", rows[i].name);
        moe_str_append(out, "\" -f -- \"$cur\")) ;;\n");
    }
    moe_str_append(out, "    esac\n}\ncomplete -o filenames -F _moec moec\n");
}
