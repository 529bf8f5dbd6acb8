/* Run directories: recognising, continuing, locking. See run_config.h. */
#include "runtime/run_config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/io.h"
#include "base/log.h"

#define RUN_FORMAT       1
#define MAX_CONFIG_BYTES ((size_t)16 << 20)

json_t *moe_plan_facts(const MoePlan *plan) {
    return json_pack("{s:O, s:i, s:I, s:s, s:I, s:I, s:s, s:s, s:i, s:i, s:b}", "model",
                     plan->model, "virtual_shards", plan->virtual_shards, "vocab_size",
                     (json_int_t)plan->vocab_size, "tokenizer", plan->tokenizer, "batch",
                     (json_int_t)plan->batch, "seq", (json_int_t)plan->seq, "dtype", plan->dtype,
                     "target", plan->target, "micro_batches", plan->micro_batches, "leaf_rows",
                     plan->leaf_rows, "fast_reduce", plan->fast_reduce);
}

/* Keys of a config that say nothing about what the weights mean. */
static bool is_informative(const char *key) {
    static const char *const keys[] = {"dtype", "torch_dtype", "transformers_version",
                                       "_name_or_path", "use_cache"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (!strcmp(key, keys[i]))
            return true;
    return false;
}

static void print_value(MoeStr *s, const json_t *v) {
    char *text = v ? json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
    moe_str_printf(s, "%.60s", text ? text : "absent");
    free(text);
}

static MoeStatus differs(const char *where, const char *key, const json_t *theirs,
                         const json_t *ours) {
    MoeStr a = {0}, b = {0};
    print_value(&a, theirs);
    print_value(&b, ours);
    MoeStatus st = moe_error(MOE_E_INPUT,
                             "%s belongs to another model or plan: its %s is %s, this plan's is "
                             "%s; start anew with another --out",
                             where, key, moe_str_c(&a), moe_str_c(&b));
    moe_str_free(&a);
    moe_str_free(&b);
    return st;
}

static MoeStatus check_model(const json_t *ours, const json_t *theirs, const char *where) {
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)ours, key, v) {
        if (!is_informative(key) && !json_equal(v, json_object_get(theirs, key)))
            return differs(where, key, json_object_get(theirs, key), v);
    }
    json_object_foreach((json_t *)(uintptr_t)theirs, key, v) {
        if (!is_informative(key) && !json_object_get(ours, key))
            return differs(where, key, v, NULL);
    }
    return NULL;
}

/* What plans from before leaf_rows had. */
static int leaf_rows_of(const json_t *facts) {
    const json_t *v = json_object_get(facts, "leaf_rows");
    return v ? (int)json_integer_value(v) : 128;
}

/* "cpu:znver4" and "cpu:x86-64-v3", not "cuda:sm_90a": another kind of target has other bits in any case. */
static bool same_kind_of_target(const MoePlan *plan, const json_t *facts) {
    const char *theirs = json_string_value(json_object_get(facts, "target"));
    size_t n = strcspn(plan->target, ":");
    return theirs && strcspn(theirs, ":") == n && strncmp(theirs, plan->target, n) == 0;
}

/* The leaf of weight gradients is part of what a run's bits follow from; with --fast-reduce they follow from none. */
static MoeStatus check_leaf(const MoePlan *plan, const json_t *facts, const char *where) {
    int theirs = leaf_rows_of(facts);
    bool fast = plan->fast_reduce || json_is_true(json_object_get(facts, "fast_reduce"));
    if (theirs == plan->leaf_rows || fast || !same_kind_of_target(plan, facts))
        return NULL;
    return moe_error(MOE_E_INPUT,
                     "%s was trained with leaves of %d rows, this plan has %d, so its bits could not go on: "
                     "compile with --leaf-rows %d, or start anew with another --out",
                     where, theirs, plan->leaf_rows, theirs);
}

/* For people: what a run loses or gains from here on. */
static void note_fast_reduce(const MoePlan *plan, const json_t *facts, const char *where) {
    bool theirs = json_is_true(json_object_get(facts, "fast_reduce"));
    if (theirs != plan->fast_reduce)
        moe_note("%s was trained %s --fast-reduce, this plan is %s: from here on its weights differ by rounding from "
                 "those of a run that never changed",
                 where, theirs ? "with" : "without", plan->fast_reduce ? "with it" : "without it");
}

MoeStatus moe_plan_facts_check(const MoePlan *plan, const json_t *facts, const char *where) {
    static const char *const keys[] = {"virtual_shards", "vocab_size", "tokenizer"};
    json_t *ours = moe_plan_facts(plan);
    MoeStatus st = check_model(plan->model, json_object_get(facts, "model"), where);
    for (size_t i = 0; i < sizeof keys / sizeof *keys && !st; i++)
        if (!json_equal(json_object_get(ours, keys[i]), json_object_get(facts, keys[i])))
            st = differs(where, keys[i], json_object_get(facts, keys[i]),
                         json_object_get(ours, keys[i]));
    json_decref(ours);
    return st ? st : check_leaf(plan, facts, where);
}

static MoeStatus not_a_run(const char *dir, const char *why) {
    return moe_error(
        MOE_E_INPUT,
        "%s is not a run directory (%s); nothing in it was touched: give another --out", dir, why);
}

MoeStatus moe_run_config_read(const char *run_dir, MoeRunConfig *out) {
    *out = (MoeRunConfig){0};
    char *path = moe_path_join(run_dir, "config.json");
    json_t *j = NULL;
    MoeStatus st = NULL;
    if (!moe_path_is_dir(run_dir))
        st = moe_error(MOE_E_INPUT, "%s: no such run directory", run_dir);
    else if (!moe_path_exists(path))
        st = not_a_run(run_dir, "it has no config.json");
    if (!st)
        st = moe_json_load_file(path, MAX_CONFIG_BYTES, &j);
    const char *kind = json_string_value(json_object_get(j, "kind")), *s;
    if (!st && (!kind || strcmp(kind, "moec run")))
        st = not_a_run(run_dir, "its config.json is something else");
    if (!st && json_integer_value(json_object_get(j, "format_version")) > RUN_FORMAT)
        st = moe_error(MOE_E_INPUT, "%s: format version %lld; this moec reads up to %d", path,
                       (long long)json_integer_value(json_object_get(j, "format_version")),
                       RUN_FORMAT);
    free(path);
    if (st) {
        json_decref(j);
        return st;
    }
    out->json = j;
    out->plan_dir = (s = json_string_value(json_object_get(j, "plan_dir"))) ? strdup(s) : NULL;
    out->data_path = (s = json_string_value(json_object_get(j, "data"))) ? strdup(s) : NULL;
    return NULL;
}

void moe_run_config_free(MoeRunConfig *c) {
    free(c->plan_dir);
    free(c->data_path);
    json_decref(c->json);
    *c = (MoeRunConfig){0};
}

/* The path as it is found from anywhere, or null. */
static json_t *absolute(const char *path) {
    char *real = path ? realpath(path, NULL) : NULL;
    json_t *v = real ? json_string(real) : NULL;
    free(real);
    return v ? v : json_null();
}

MoeStatus moe_run_config_write(const char *run_dir, const MoePlan *plan, const char *plan_dir,
                               const char *data_path, const json_t *resolved) {
    json_t *j = json_pack("{s:i, s:s, s:o, s:o, s:o, s:o}", "format_version", RUN_FORMAT, "kind",
                          "moec run", "plan_dir", absolute(plan_dir), "data", absolute(data_path),
                          "plan", moe_plan_facts(plan), "settings",
                          resolved ? json_deep_copy(resolved) : json_object());
    if (!j)
        return moe_error(MOE_E_NOMEM, "no memory for %s/config.json", run_dir);
    char *path = moe_path_join(run_dir, "config.json");
    MoeStr text = {0};
    moe_json_dump(j, &text);
    MoeStatus st = moe_file_write_atomic(path, moe_str_c(&text), text.len);
    moe_str_free(&text);
    free(path);
    json_decref(j);
    return st;
}

/* What a killed first start can leave behind is still an empty directory to us. */
static bool is_leftover(const char *name) {
    return !strcmp(name, "lock") || !strncmp(name, "config.json.tmp-", 16);
}

MoeStatus moe_run_dir_prepare(const char *run_dir, const MoePlan *plan, bool *out_existing) {
    *out_existing = false;
    if (!moe_path_exists(run_dir))
        return moe_dir_make(run_dir);
    if (!moe_path_is_dir(run_dir))
        return not_a_run(run_dir, "it is a file");
    char **names = NULL;
    size_t n, others = 0;
    MOE_TRY(moe_dir_list(run_dir, &names, &n));
    for (size_t i = 0; i < n; i++)
        others += !is_leftover(names[i]);
    moe_dir_list_free(names, n);
    if (!others)
        return NULL;
    MoeRunConfig c;
    MOE_TRY(moe_run_config_read(run_dir, &c));
    const json_t *facts = json_object_get(c.json, "plan");
    MoeStatus st = moe_plan_facts_check(plan, facts, run_dir);
    if (!st)
        note_fast_reduce(plan, facts, run_dir);
    moe_run_config_free(&c);
    *out_existing = !st;
    return st;
}

MoeStatus moe_run_lock(const char *run_dir, int *out_fd) {
    char *path = moe_path_join(run_dir, "lock");
    MoeStatus st = NULL;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0)
        st = moe_error_errno("cannot open %s", path);
    else if (flock(fd, LOCK_EX | LOCK_NB)) {
        st = errno == EWOULDBLOCK
                 ? moe_error(MOE_E_INPUT,
                             "another moec is training into %s; wait for it, or give another --out",
                             run_dir)
                 : moe_error_errno("cannot lock %s", path);
        close(fd);
    } else {
        *out_fd = fd;
    }
    free(path);
    return st;
}

void moe_run_unlock(int fd) {
    if (fd >= 0)
        close(fd);
}
