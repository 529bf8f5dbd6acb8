/* Loading a plan: read plan.json (plan_read.c), check the hash of its code, link that (plan_link.c; plan_cubins.c for GPUs). */
#include "runtime/plan.h"

#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/io.h"
#include "base/kernel_abi.h"
#include "runtime/plan_read.h"

#define MAX_PLAN_BYTES   ((size_t)256 << 20)
#define MAX_OBJECT_BYTES ((size_t)1 << 30)

size_t moe_plan_dtype_bytes(MoePlanDtype d) {
    return d == MOE_PLAN_BF16 ? 2 : 4;
}

/* Takes over `json`. */
static MoeStatus plan_from_json(json_t *json, const char *name, MoePlan **out) {
    MoePlan *p = calloc(1, sizeof *p);
    if (!p) {
        json_decref(json);
        return moe_error(MOE_E_NOMEM, "no memory for the plan %s", name);
    }
    p->json = json;
    p->arena = moe_arena_create();
    MoeStatus st = moe_plan_read(p, name);
    if (st) {
        moe_plan_free(p);
        return st;
    }
    *out = p;
    return NULL;
}

bool moe_plan_is_cuda(const MoePlan *p) {
    return strncmp(p->target, "cuda:", 5) == 0;
}

int64_t moe_plan_buffer_bytes(const MoePlanBuffer *b) {
    return (b->bytes + MOE_BUFFER_ALIGN - 1) / MOE_BUFFER_ALIGN * MOE_BUFFER_ALIGN;
}

/* Whole cache lines and a gap, so that threads do not share lines at the seams. */
int64_t moe_plan_scratch_bytes(const MoePlan *p) {
    int64_t most = 0;
    for (size_t i = 0; i < p->n_programs; i++)
        most = p->programs[i].scratch_bytes > most ? p->programs[i].scratch_bytes : most;
    return moe_plan_is_cuda(p) ? 0 : (most + MOE_BUFFER_SLACK + 255) / 256 * 256;
}

static const char *code_file(const MoePlan *p) {
    return moe_plan_is_cuda(p) ? "kernels.cubin" : "kernels.o";
}

/* The code of every step, from the bytes of its file. */
static MoeStatus link_code(MoePlan *p, const char *name, const void *code, size_t n) {
    if (moe_plan_is_cuda(p))
        return moe_plan_link_cubins(p, name, code, n);
    MOE_TRY(moe_plan_target_check(p, name));
    return moe_plan_link(p, name, code, n);
}

static MoeStatus check_hash(const MoePlan *p, const char *name, const char *data, size_t n) {
    const char *want = json_string_value(json_object_get(p->json, "kernels_xxh3"));
    if (!want)
        return moe_error(MOE_E_CORRUPT, "%s: kernels_xxh3 is missing; compile the plan again",
                         name);
    char have[33];
    moe_hash_hex(data, n, have);
    if (strcmp(want, have))
        return moe_error(
            MOE_E_CORRUPT,
            "%s: %s does not match the plan (XXH3 %s, expected %s); compile the "
            "plan again",
            name, code_file(p), have, want);
    return NULL;
}

MoeStatus moe_plan_load(const char *dir, MoePlan **out) {
    *out = NULL;
    char *json_path = moe_path_join(dir, "plan.json"), *object_path = NULL;
    char *object = NULL;
    size_t object_bytes = 0;
    json_t *json = NULL;
    MoePlan *p = NULL;
    MoeStatus st = NULL;
    if (!moe_path_is_dir(dir)) {
        st = moe_error(MOE_E_INPUT,
                       moe_path_exists(dir)
                           ? "%s is not a plan: a plan is a directory made by `moec compile`"
                           : "%s: no such plan; make one with `moec compile`",
                       dir);
        goto done;
    }
    if (!moe_path_exists(json_path)) {
        st = moe_error(MOE_E_INPUT,
                       "%s is not a plan: it has no plan.json; make one with `moec compile MODEL "
                       "-o NAME.plan`",
                       dir);
        goto done;
    }
    MOE_TRY_GOTO(st, moe_json_load_file(json_path, MAX_PLAN_BYTES, &json), done);
    st = plan_from_json(json, json_path, &p);
    if (st)
        goto done;
    p->dir = strdup(dir);
    if (!moe_plan_is_cuda(p))
        MOE_TRY_GOTO(st, moe_plan_target_check(p, dir), done);
    object_path = moe_path_join(dir, code_file(p));
    MOE_TRY_GOTO(st, moe_file_read(object_path, MAX_OBJECT_BYTES, &object, &object_bytes), done);
    MOE_TRY_GOTO(st, check_hash(p, dir, object, object_bytes), done);
    MOE_TRY_GOTO(st, link_code(p, dir, object, object_bytes), done);
    *out = p;
    p = NULL;
done:
    moe_plan_free(p);
    free(object);
    free(json_path);
    free(object_path);
    return st;
}

MoeStatus moe_plan_load_memory(const char *json_text, size_t n, const char *name,
                               const void *object, size_t object_bytes, MoePlan **out) {
    *out = NULL;
    json_t *json = NULL;
    MoePlan *p = NULL;
    MOE_TRY(moe_json_load_text(json_text, n, name, &json));
    MOE_TRY(plan_from_json(json, name, &p));
    MoeStatus st = NULL;
    if (object)
        st = link_code(p, name, object, object_bytes);
    if (st) {
        moe_plan_free(p);
        return st;
    }
    *out = p;
    return NULL;
}

void moe_plan_free(MoePlan *p) {
    if (!p)
        return;
    moe_plan_unlink(p);
    moe_plan_unlink_cubins(p);
    moe_arena_destroy(p->arena);
    json_decref(p->json);
    free(p->dir);
    free(p);
}

const MoePlanProgram *moe_plan_program(const MoePlan *p, const char *name) {
    for (size_t i = 0; i < p->n_programs; i++)
        if (!strcmp(p->programs[i].name, name))
            return &p->programs[i];
    return NULL;
}
