/* A policy that is a program of the user's: JSON lines (docs/ADD_A_POLICY.md). It is started once. An answer that is nonsense is refused and
 * the program asked again at the next decision. One that ends or hangs is killed and started anew at a later step, RESTARTS
 * times; the rest of that step's layers are refused at once. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "placement/map_json.h"
#include "placement/policy.h"
#include "placement/policy_program_io.h"

enum { RESTARTS = 3 };
#define SECONDS 10.0 /* to answer in, where the setup does not say */

typedef struct {
    const MoePolicySetup *s;
    MoeLineProgram *program; /* NULL: not running */
    int restarts;            /* left */
    int64_t failed_at;       /* step at which it failed last, -1: it did not */
    MoeStr answer;
} Program;

static double seconds(const Program *p) {
    return p->s->program_seconds > 0 ? p->s->program_seconds : SECONDS;
}

/* One question, one answer; *out is the caller's. */
static MoeStatus ask_json(Program *p, json_t *question, json_t **out) {
    char *text = json_dumps(question, JSON_COMPACT);
    MoeStatus st =
        text ? moe_line_program_ask(p->program, text, strlen(text), seconds(p), &p->answer)
             : moe_error(MOE_E_NOMEM, "out of memory for a question of the placement program");
    free(text);
    if (st) {
        moe_line_program_stop(p->program);
        p->program = NULL;
        return moe_status_prefix(st, "placement program '%s'", p->s->program);
    }
    return moe_json_load_text(moe_str_c(&p->answer), p->answer.len,
                              "the placement program's answer", out);
}

/* Starts it and says what it will be asked about. */
static MoeStatus begin(Program *p) {
    const MoePolicySetup *s = p->s;
    MOE_TRY(moe_line_program_start(s->program, &p->program));
    json_t *hello = json_pack("{s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:I}", "moec", 1,
                              "layers", s->layers, "experts", s->experts, "ranks", s->ranks,
                              "slots", s->slots, "groups", s->groups, "sources", s->sources,
                              "every", s->every, "window", s->window, "seed", (json_int_t)s->seed);
    json_t *answer = NULL;
    bool ready = false;
    MoeStatus st = ask_json(p, hello, &answer);
    json_decref(hello);
    if (!st)
        st = moe_json_bool(answer, "the placement program's first answer", "ready", true, &ready);
    json_decref(answer);
    if (!st && !ready)
        st = moe_error(MOE_E_INPUT,
                       "placement program '%s': its first answer is not {\"ready\": true}",
                       s->program);
    if (st) {
        moe_line_program_stop(p->program);
        p->program = NULL;
    }
    return st;
}

static void destroy(void *state) {
    Program *p = state;
    moe_line_program_stop(p->program);
    moe_str_free(&p->answer);
    free(p);
}

static MoeStatus create(const MoePolicySetup *s, void **out) {
    if (!s->program || !*s->program)
        return moe_error(MOE_E_MISUSE, "policy program: which program? Give its command line");
    Program *p = calloc(1, sizeof *p);
    if (!p)
        return moe_error(MOE_E_NOMEM, "out of memory for a placement program");
    p->s = s;
    p->restarts = RESTARTS;
    p->failed_at = -1;
    MoeStatus st = begin(p);
    if (st)
        destroy(p);
    else
        *out = p;
    return st;
}

/* It runs, or is started anew if it may be. */
static MoeStatus running(Program *p, int64_t step) {
    if (p->program)
        return NULL;
    if (p->failed_at == step)
        return moe_error(MOE_E_IO, "placement program '%s' failed at this step", p->s->program);
    if (p->restarts == 0)
        return moe_error(MOE_E_IO,
                         "placement program '%s' failed %d times and is not started again",
                         p->s->program, RESTARTS + 1);
    p->restarts--;
    p->failed_at = step;
    return begin(p);
}

static json_t *question(const MoePolicySetup *s, const MoePolicyAsk *ask) {
    json_t *q = moe_place_map_json(ask->layer, ask->now), *loads = json_array(),
           *sources = json_array();
    for (int i = 0; i < ask->n_loads; i++) {
        json_t *row = json_array();
        for (int e = 0; e < s->experts; e++)
            json_array_append_new(row, json_integer(ask->totals[i][e]));
        json_array_append_new(loads, row);
    }
    for (int e = 0; e < s->experts; e++) {
        json_t *row = json_array();
        for (int v = 0; v < s->sources; v++)
            json_array_append_new(
                row, json_integer(
                         ask->loads[ask->n_loads - 1][(size_t)e * (size_t)s->sources + (size_t)v]));
        json_array_append_new(sources, row);
    }
    json_object_set_new(q, "step", json_integer(ask->step));
    json_object_set_new(q, "loads", loads);
    json_object_set_new(q, "sources", sources);
    return q;
}

#define ANSWER "the placement program's answer"

/* The integers of an array, at most n of them, into out. */
static MoeStatus integers(const json_t *array, const char *what, size_t n, int32_t *out) {
    if (!json_is_array(array) || json_array_size(array) > n)
        return moe_error(MOE_E_INPUT, ANSWER ": %s is not an array of at most %zu integers", what,
                         n);
    for (size_t i = 0; i < json_array_size(array); i++) {
        const json_t *v = json_array_get(array, i);
        if (!json_is_integer(v) || json_integer_value(v) < -1 || json_integer_value(v) > INT32_MAX)
            return moe_error(MOE_E_INPUT, ANSWER ": %s[%zu] is not an integer from -1 on", what, i);
        out[i] = (int32_t)json_integer_value(v);
    }
    return NULL;
}

static MoeStatus read_answer(const json_t *answer, const MoePolicyAsk *ask, MoePlaceMap *out) {
    json_t *slots = NULL, *primary = NULL;
    const char *error = NULL;
    bool keep = false;
    MOE_TRY(moe_json_str(answer, ANSWER, "error", false, &error));
    if (error)
        return moe_error(MOE_E_INPUT, "the placement program says: %.150s", error);
    MOE_TRY(moe_json_bool(answer, ANSWER, "keep", false, &keep));
    if (keep)
        return NULL;
    MOE_TRY(moe_json_array(answer, ANSWER, "slots", true, &slots));
    MOE_TRY(moe_json_array(answer, ANSWER, "primary", false, &primary));
    if (json_array_size(slots) != (size_t)out->ranks)
        return moe_error(MOE_E_INPUT, ANSWER ": slots has %zu ranks: there are %d",
                         json_array_size(slots), out->ranks);
    moe_policy_clear(out);
    for (int r = 0; r < out->ranks; r++) {
        char what[40];
        snprintf(what, sizeof what, "slots[%d]", r);
        MOE_TRY(integers(json_array_get(slots, (size_t)r), what, (size_t)out->slots,
                         out->expert + (size_t)r * (size_t)out->slots));
    }
    if (!primary) { /* stay where they can; but first, what is there must be experts */
        for (int g = 0; g < out->ranks * out->slots; g++)
            if (out->expert[g] >= out->experts)
                return NULL; /* the map's check says which */
        moe_place_map_settle(out, ask->now);
        return NULL;
    }
    if (json_array_size(primary) != (size_t)out->experts)
        return moe_error(MOE_E_INPUT, ANSWER ": primary has %zu experts: there are %d",
                         json_array_size(primary), out->experts);
    return integers(primary, "primary", (size_t)out->experts, out->primary);
}

static MoeStatus propose(void *state, const MoePolicyAsk *ask, MoePlaceMap *out) {
    Program *p = state;
    MOE_TRY(running(p, ask->step));
    json_t *q = question(p->s, ask), *answer = NULL;
    MoeStatus st = ask_json(p, q, &answer);
    json_decref(q);
    if (!p->program)
        p->failed_at = ask->step;
    if (!st)
        st = read_answer(answer, ask, out);
    json_decref(answer);
    return st;
}

const MoePolicy moe_policy_program = {
    .name = "program",
    .doc = "a program of yours, asked by JSON lines (docs/ADD_A_POLICY.md)",
    .may_replicate = true,
    .create = create,
    .propose = propose,
    .destroy = destroy,
};
