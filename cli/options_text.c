/* What is made from the option table for people and shells: help, docs/CLI.md, bash completion. */
#include "cli/options_internal.h"

#include <string.h>

/* A flag that is on by default is shown as what turns it off. */
static void option_label(const MoeOptionRow *r, MoeStr *out) {
    if (r->short_name)
        moe_str_printf(out, "-%c, ", r->short_name);
    bool on = r->type == TYPE_FLAG && strcmp(r->default_value, "true") == 0;
    moe_str_printf(out, "--%s%s%s%s", on ? "[no-]" : "", r->name, *r->metavar ? " " : "",
                   r->metavar);
}

/* Text in a cell of a markdown table. */
static void append_cell(MoeStr *out, const char *text) {
    for (; *text; text++) {
        if (*text == '|')
            moe_str_putc(out, '\\');
        if (*text == '\n')
            moe_str_append(out, "\\n");
        else
            moe_str_putc(out, *text);
    }
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
    int c = command ? moe_command_index(command) : -1;
    if (c < 0) {
        moe_str_append(out, "moec: a compiler and runtime for training Mixture-of-Experts "
                            "transformers\n\nusage: moec COMMAND ...\n\n");
        for (int i = 0; i < N_COMMANDS; i++)
            moe_str_printf(out, "  %-8s %-10s %s\n", moe_command_rows[i].name,
                           moe_command_rows[i].positionals, moe_command_rows[i].summary);
        moe_str_append(
            out,
            "\n'moec help COMMAND' lists its options. Exit status: 0 good, 1 failed, 2 misuse.\n");
        return;
    }
    moe_str_printf(out,
                   "usage: moec %s %s [options]\n\n%s.\n\noptions (setting order: default < "
                   "--config FILE < MOEC_NAME < flag):\n",
                   moe_command_rows[c].name, moe_command_rows[c].positionals,
                   moe_command_rows[c].summary);
    for (int i = 0; i < N_OPTIONS; i++) {
        const MoeOptionRow *r = &moe_option_rows[i];
        if (!moe_option_applies(r, command))
            continue;
        MoeStr label = {0}, text = {0};
        option_label(r, &label);
        moe_str_append(&text, r->help);
        if (*r->default_value && r->default_value[0] != '\n')
            moe_str_printf(&text, " [%s]", r->default_value);
        moe_str_printf(out, "  %-28s", moe_str_c(&label));
        if (label.len >= 28)
            moe_str_printf(out, "\n%30s", "");
        wrap(out, moe_str_c(&text), 30, 100);
        moe_str_free(&label);
        moe_str_free(&text);
    }
}

void moe_options_markdown(MoeStr *out) {
    moe_str_append(
        out, "# The command line\n\n<!-- made by `moec help markdown`; a test keeps it true -->\n\n"
             "Settings: default < JSON file (`--config FILE`) < environment (`MOEC_BATCH` for "
             "`--batch`) < flag. Exit status: 0 good, 1 failed, 2 misuse.\n");
    for (int c = 0; c < N_COMMANDS; c++) {
        moe_str_printf(out, "\n## moec %s %s\n\n%s.\n", moe_command_rows[c].name,
                       moe_command_rows[c].positionals, moe_command_rows[c].summary);
        bool first = true;
        for (int i = 0; i < N_OPTIONS; i++) {
            const MoeOptionRow *r = &moe_option_rows[i];
            if (!moe_option_applies(r, moe_command_rows[c].name))
                continue;
            if (first)
                moe_str_append(out, "\n| option | default | meaning |\n|---|---|---|\n");
            first = false;
            MoeStr label = {0};
            option_label(r, &label);
            moe_str_append(out, "| `");
            append_cell(out, moe_str_c(&label));
            const char *d = r->default_value, *tick = *d ? "`" : "";
            moe_str_printf(out, "` | %s", tick);
            append_cell(out, d);
            moe_str_printf(out, "%s | ", tick);
            append_cell(out, r->help);
            moe_str_append(out, " |\n");
            moe_str_free(&label);
        }
    }
}

void moe_options_bash(MoeStr *out) {
    moe_str_append(out, "# bash completion for moec: source <(moec help bash)\n_moec() {\n    "
                        "local cur=${COMP_WORDS[COMP_CWORD]} cmd=${COMP_WORDS[1]}\n"
                        "    if [ \"$COMP_CWORD\" = 1 ]; then\n        COMPREPLY=($(compgen -W \"");
    for (int c = 0; c < N_COMMANDS; c++)
        moe_str_printf(out, "%s%s", c ? " " : "", moe_command_rows[c].name);
    moe_str_append(out, "\" -- \"$cur\"))\n        return\n    fi\n    case $cmd in\n");
    for (int c = 0; c < N_COMMANDS; c++) {
        moe_str_printf(out, "    %s) COMPREPLY=($(compgen -W \"", moe_command_rows[c].name);
        for (int i = 0; i < N_OPTIONS; i++)
            if (moe_option_applies(&moe_option_rows[i], moe_command_rows[c].name))
                moe_str_printf(out, "--%s ", moe_option_rows[i].name);
        moe_str_append(out, "\" -f -- \"$cur\")) ;;\n");
    }
    moe_str_append(out, "    esac\n}\ncomplete -o filenames -F _moec moec\n");
}
