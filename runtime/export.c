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

static int64_t elements_of(const MoeStOut *t) {
    int64_t n = 1;
    for (int i = 0; i < t->rank; i++)
        n *= t->dims[i];
    return n;
}

static int64_t tensor_bytes(const MoeStOut *t) {
    return elements_of(t) * (int64_t)moe_st_dtype_bytes(t->dtype);
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
        elements += elements_of(&w->tensors[i]);
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
