/* Export: a directory that transformers' from_pretrained reads. Declared in weights.h.
 *
 * Built as DIR.tmp-PID and renamed over DIR; shards of at most max_shard_bytes with an index, as
 * transformers writes them. */
#include "runtime/weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/half.h"
#include "base/io.h"
#include "base/str.h"
#include "runtime/checkpoint_internal.h"

#define DEFAULT_SHARD_BYTES ((int64_t)5 * 1000 * 1000 * 1000)
#define CHUNK               16384

typedef struct {
    const MoeStOut *tensors; /* dtype as exported; data NULL */
    size_t first;            /* of the shard being written */
    MoeExportRead read;
    void *ctx;
    bool bf16;
} Writer;

static MoeStatus fill(void *ctx, size_t tensor, int64_t first, int64_t n, void *out) {
    const Writer *w = ctx;
    float chunk[CHUNK];
    if (!w->bf16)
        return w->read(w->ctx, w->first + tensor, first, n, out);
    uint16_t *half = out;
    for (int64_t i = 0; i < n; i += CHUNK) {
        int64_t k = n - i < CHUNK ? n - i : CHUNK;
        MOE_TRY(w->read(w->ctx, w->first + tensor, first + i, k, chunk));
        for (int64_t j = 0; j < k; j++)
            half[i + j] = moe_f32_to_bf16(chunk[j]);
    }
    return NULL;
}

static int64_t tensor_bytes(const MoeStOut *t) {
    return moe_checkpoint_elements(t) * (int64_t)moe_st_dtype_bytes(t->dtype);
}

static MoeStatus write_json(const char *dir, const char *name, const json_t *v, size_t flags) {
    char *path = moe_path_join(dir, name), *text = json_dumps(v, flags | JSON_REAL_PRECISION(17));
    MoeStr s = {0};
    MoeStatus st = NULL;
    if (text) {
        moe_str_append(&s, text);
        moe_str_putc(&s, '\n');
        st = moe_file_write_atomic(path, moe_str_c(&s), s.len);
    } else {
        st = moe_error(MOE_E_NOMEM, "no memory for %s", path);
    }
    moe_str_free(&s);
    free(text);
    free(path);
    return st;
}

/* model.safetensors, or shards and their index. */
static MoeStatus write_weights(const char *dir, Writer *w, size_t n, int64_t max_bytes) {
    static const char *const metadata[] = {"format", "pt", "generator", "moec export"};
    int64_t total = 0, elements = 0, in_shard = 0;
    size_t n_shards = 1;
    size_t *ends = calloc(n + 1, sizeof *ends); /* shard i: tensors ends[i-1] .. ends[i] */
    json_t *map = json_object();
    MoeStatus st = NULL;
    if (!ends) {
        json_decref(map);
        return moe_error(MOE_E_NOMEM, "no memory to export %zu tensors", n);
    }
    for (size_t i = 0; i < n; i++) {
        int64_t bytes = tensor_bytes(&w->tensors[i]);
        if (in_shard && in_shard + bytes > max_bytes) {
            n_shards++;
            in_shard = 0;
        }
        in_shard += bytes;
        total += bytes;
        elements += moe_checkpoint_elements(&w->tensors[i]);
        ends[n_shards - 1] = i + 1;
    }
    for (size_t s = 0; s < n_shards && !st; s++) {
        char name[64] = "model.safetensors";
        w->first = s ? ends[s - 1] : 0;
        if (n_shards > 1)
            snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", s + 1, n_shards);
        char *path = moe_path_join(dir, name), hash[33];
        uint64_t bytes;
        st = moe_st_write(path, w->tensors + w->first, ends[s] - w->first, metadata, 2, fill, w,
                          &bytes, hash);
        for (size_t i = w->first; i < ends[s]; i++)
            json_object_set_new(map, w->tensors[i].name, json_string(name));
        free(path);
    }
    if (!st && n_shards > 1) {
        json_t *index =
            json_pack("{s:{s:I, s:I}, s:O}", "metadata", "total_parameters", (json_int_t)elements,
                      "total_size", (json_int_t)total, "weight_map", map);
        st =
            write_json(dir, "model.safetensors.index.json", index, JSON_INDENT(2) | JSON_SORT_KEYS);
        json_decref(index);
    }
    json_decref(map);
    free(ends);
    return st;
}

/* The config as it came, with the dtype that is exported; both spellings of the key where they are
 * there, the old one (which all versions read) where neither is. */
static json_t *export_config(const json_t *model, bool bf16) {
    json_t *c = json_deep_copy(model);
    const char *dtype = bf16 ? "bfloat16" : "float32";
    bool old = json_object_get(c, "torch_dtype"), new = json_object_get(c, "dtype");
    if (new)
        json_object_set_new(c, "dtype", json_string(dtype));
    if (old || !new)
        json_object_set_new(c, "torch_dtype", json_string(dtype));
    return c;
}

static json_t *generation_config(const json_t *model) {
    static const char *const keys[] = {"bos_token_id", "eos_token_id", "pad_token_id",
                                       "transformers_version"};
    json_t *g = json_pack("{s:b}", "_from_model_config", 1);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        json_t *v = json_object_get(model, keys[i]);
        if (v && !json_is_null(v))
            json_object_set(g, keys[i], v);
    }
    return g;
}

/* Absent, an empty directory, or an export of ours: all else is refused. */
static MoeStatus check_target(const char *dir) {
    if (!moe_path_exists(dir))
        return NULL;
    char **names = NULL;
    size_t n = 0;
    bool ours = false;
    if (moe_path_is_dir(dir)) {
        MOE_TRY(moe_dir_list(dir, &names, &n));
        MoeSafetensors *s = NULL;
        MoeStatus st = n ? moe_st_open(dir, &s) : NULL;
        const char *generator = s ? moe_st_metadata(s, "generator") : NULL;
        ours = n == 0 || (generator && !strcmp(generator, "moec export"));
        moe_status_free(st);
        moe_st_close(s);
        moe_dir_list_free(names, n);
    }
    return ours ? NULL
                : moe_error(MOE_E_INPUT,
                            "%s is there already and is no export of moec; nothing in it was "
                            "touched: give another -o",
                            dir);
}

MoeStatus moe_export_tensors(const MoeStOut *tensors, size_t n, MoeExportRead read, void *ctx,
                             const json_t *model, const char *dir, const MoeExportOptions *o) {
    MOE_TRY(check_target(dir));
    size_t len = strlen(dir);
    while (len > 1 && dir[len - 1] == '/')
        len--;
    char *parent = len ? strndup(dir, len) : strdup("."),
         *slash = parent ? strrchr(parent, '/') : NULL;
    MoeStr tmp = {0}, old = {0}, final = {0};
    moe_str_append_n(&final, dir, len);
    moe_str_printf(&tmp, "%s.tmp-%ld", moe_str_c(&final), (long)getpid());
    moe_str_printf(&old, "%s.old-%ld", moe_str_c(&final), (long)getpid());
    if (slash && slash != parent)
        *slash = 0;
    MoeStOut *items = malloc(sizeof *items * (n + 1));
    json_t *config = export_config(model, o->bf16), *generation = generation_config(model);
    Writer w = {items, 0, read, ctx, o->bf16};
    MoeStatus st = parent && items && config && generation
                       ? NULL
                       : moe_error(MOE_E_NOMEM, "no memory for the export");
    if (st)
        goto done;
    for (size_t i = 0; i < n; i++) {
        items[i] = tensors[i];
        items[i].dtype = o->bf16 ? MOE_ST_BF16 : MOE_ST_F32;
        items[i].data = NULL;
    }
    MOE_TRY_GOTO(st, moe_dir_remove(tmp.data), done);
    MOE_TRY_GOTO(st, moe_dir_make(tmp.data), done);
    st = write_weights(tmp.data, &w, n,
                       o->max_shard_bytes > 0 ? o->max_shard_bytes : DEFAULT_SHARD_BYTES);
    if (!st)
        st = write_json(tmp.data, "config.json", config, JSON_INDENT(2));
    if (!st)
        st = write_json(tmp.data, "generation_config.json", generation, JSON_INDENT(2));
    if (!st)
        st = moe_dir_sync(tmp.data);
    bool replaced = !st && moe_path_exists(final.data);
    if (replaced && rename(final.data, old.data))
        st = moe_error_errno("cannot rename %s", final.data);
    if (!st && rename(tmp.data, final.data)) {
        st = moe_error_errno("cannot rename %s to %s", tmp.data, final.data);
        if (replaced && rename(old.data, final.data))
            st = moe_status_prefix(st, "the earlier export is now %s", old.data);
    }
    if (!st)
        st = moe_dir_sync(slash ? (slash == parent ? "/" : parent) : ".");
    if (st)
        moe_status_free(moe_dir_remove(tmp.data));
    else if (replaced)
        st = moe_dir_remove(old.data);
done:
    json_decref(config);
    json_decref(generation);
    free(items);
    free(parent);
    moe_str_free(&tmp);
    moe_str_free(&old);
    moe_str_free(&final);
    return st;
}

/* ---- sources ---- */

static MoeStatus read_memory(void *ctx, size_t tensor, int64_t first, int64_t n, float *out) {
    const MoeStOut *items = ctx;
    memcpy(out, (const float *)items[tensor].data + first, sizeof *out * (size_t)n);
    return NULL;
}

MoeStatus moe_export_model(const MoePlan *plan, MoeExec *x, const char *dir,
                           const MoeExportOptions *o) {
    MoeWeightList list;
    MoeCheckpointTensors t;
    MOE_TRY(moe_weight_list(plan, &list));
    moe_checkpoint_tensors(plan, x, &list, 0, &t);
    MoeStatus st = moe_export_tensors(t.items, t.n, read_memory, t.items, plan->model, dir, o);
    moe_weight_list_free(&list);
    return st;
}

static MoeStatus read_checkpoint(void *ctx, size_t tensor, int64_t first, int64_t n, float *out) {
    return moe_st_read_f32(moe_st_at(ctx, tensor), first, n, out);
}

static MoeStatus export_verified(const char *checkpoint, const json_t *manifest, const char *dir,
                                 const MoeExportOptions *o) {
    char *path = moe_path_join(checkpoint, moe_checkpoint_files[0]);
    const json_t *model = json_object_get(json_object_get(manifest, "plan"), "model");
    MoeSafetensors *s = NULL;
    MoeStOut *items = NULL;
    MoeStatus st = moe_st_open(path, &s);
    size_t n = s ? moe_st_count(s) : 0;
    if (!st && !json_is_object(model))
        st = moe_error(MOE_E_CORRUPT, "%s: its manifest has no model", checkpoint);
    if (!st && !(items = calloc(n + 1, sizeof *items)))
        st = moe_error(MOE_E_NOMEM, "no memory to export %zu tensors", n);
    for (size_t i = 0; i < n && !st; i++) {
        const MoeStTensor *t = moe_st_at(s, i);
        items[i] = (MoeStOut){.name = t->name, .rank = t->rank};
        memcpy(items[i].dims, t->dims, sizeof items[i].dims);
    }
    if (!st)
        st = moe_export_tensors(items, n, read_checkpoint, s, model, dir, o);
    free(items);
    moe_st_close(s);
    free(path);
    return st;
}

MoeStatus moe_export_checkpoint(const char *path, const char *dir, const MoeExportOptions *o) {
    char *manifest_path = moe_path_join(path, "manifest.json"), *found = NULL;
    json_t *manifest = NULL;
    int64_t step;
    MoeStatus st = NULL;
    if (!moe_path_is_dir(path))
        st = moe_error(MOE_E_INPUT, "%s: no such run or checkpoint directory", path);
    else if (moe_path_exists(manifest_path))
        found = strdup(path);
    else
        st = moe_checkpoint_find(path, &found, &step);
    if (!st && !found)
        st = moe_error(MOE_E_INPUT, "%s holds no checkpoint", path);
    if (!st)
        st = moe_checkpoint_verify(found, &manifest);
    if (!st)
        st = export_verified(found, manifest, dir, o);
    json_decref(manifest);
    free(found);
    free(manifest_path);
    return st;
}
